/**
 * What the commands that manage a relay have in common: the key they ask with, which is never on a
 * command line, and how a list is printed.
 */
import { text } from '../../core/bytes.ts'
import { TunnelError } from '../../core/errors.ts'
import { checkChoice, join, parseRelay } from '../join.ts'
import type { RelayChoice } from '../join.ts'
import { Profile } from '../profile.ts'
import { RelayApi } from '../relay_api.ts'
import type { World } from '../world.ts'
import { isSet, JSON_FLAG, RELAY_FLAGS, textOf } from './page.ts'
import type { Flag, Given } from './page.ts'
import { readChoice } from './plan.ts'
import { columns, Screen } from './screen.ts'

const KEY_BYTES_MAX = 4096

export const OPERATOR_FLAGS: readonly Flag[] = [
  {
    name: 'key-file',
    value: 'PATH',
    without: 'SOTTO_ADMIN_KEY, SOTTO_API_KEY, else the profile',
    help: 'File with the admin key, or an API key for what is of its scope.',
  },
  ...RELAY_FLAGS,
  JSON_FLAG,
]

export const SCOPE_FLAG: Flag = {
  name: 'scope',
  value: 'SCOPE',
  without: "your key's own, or all for the admin key",
  help: 'Whose.',
}

export interface OperatorOptions {
  choice: RelayChoice
  keyFile: string | undefined
  json: boolean
}

export function readOperator(given: Given): OperatorOptions {
  return {
    choice: readChoice(given),
    keyFile: textOf(given, 'key-file'),
    json: isSet(given, 'json'),
  }
}

export function checkOperator({ choice }: OperatorOptions): void {
  checkChoice(choice)
}

/** The relay's API with the operator's key. Throws `relay/credential`, `files/…`, what joining throws. */
export async function openApi(
  world: World,
  { choice, keyFile, json }: OperatorOptions,
): Promise<{ api: RelayApi; screen: Screen }> {
  const screen = new Screen(world, { json })
  const joining = await join(world, choice, (line) => screen.tell(line))
  const secret = await findKey(world, { keyFile, host: joining.relay.host })
  return { api: new RelayApi(world, joining, secret), screen }
}

async function findKey(
  world: World,
  { keyFile, host }: { keyFile: string | undefined; host: string },
): Promise<string> {
  if (keyFile !== undefined) {
    const content = await world.files.read(keyFile, { bytesMax: KEY_BYTES_MAX })
    const secret = content && text(content).trim()
    if (secret) return secret
    throw new TunnelError('relay/credential', `Cannot read a key from ${keyFile}: found nothing`)
  }
  const profile = new Profile(world)
  const settings = await profile.settings()
  const { relay } = settings
  const own = relay !== undefined && parseRelay(relay, profile.settingsPath).host === host
  const admin = settings['adminKey']
  const secret = world.env['SOTTO_ADMIN_KEY'] || world.env['SOTTO_API_KEY'] ||
    (own && typeof admin === 'string' ? admin : undefined) || (own ? settings.apiKey : undefined)
  if (secret) return secret
  throw new TunnelError('relay/credential', 'Cannot ask the relay: no admin key is set', {
    hint: 'The relay showed it at its first start. Set SOTTO_ADMIN_KEY, or say --key-file PATH.',
  })
}

/** A list: a table for people, an object a line with `--json`. */
export function printList(
  world: World,
  { items, heads, json, none }: {
    items: readonly Record<string, unknown>[]
    /** Heading → field, in order. */
    heads: Readonly<Record<string, string>>
    json: boolean
    none: string
  },
): void {
  const { stdout, stderr } = world.terminal
  if (json) {
    for (const item of items) stdout.write(`${JSON.stringify(item)}\n`)
  } else if (items.length === 0) stderr.write(`${none}\n`)
  else {
    stdout.write(
      columns(
        Object.keys(heads),
        items.map((item) => Object.values(heads).map((field) => cell(item[field]))),
        stdout,
      ),
    )
  }
}

function cell(value: unknown): string {
  if (value === undefined || value === null || value === '') return '-'
  if (Array.isArray(value)) return value.length === 0 ? '-' : value.join(',')
  if (typeof value === 'object') {
    return Object.entries(value).map(([name, one]) => `${name}=${one}`).join(',')
  }
  // Times to the minute are enough for people.
  return String(value).replace(/^(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d(\.\d+)?Z$/, '$1 $2')
}

/** `30d`, `12h`, `90m`, or a moment of ISO 8601. Throws `cli/expires`. */
export function expiryOf(words: string | undefined, nowMs: number): string | undefined {
  if (words === undefined) return undefined
  const parts = /^(\d{1,6})([mhd])$/.exec(words)
  const units = { m: 60_000, h: 3_600_000, d: 86_400_000 }
  const at = parts
    ? nowMs + Number(parts[1]) * units[parts[2] as keyof typeof units]
    : /^\d{4}-\d\d-\d\d/.test(words)
    ? Date.parse(words)
    : NaN
  if (Number.isFinite(at) && at > nowMs) return new Date(at).toISOString()
  throw new TunnelError(
    'cli/expires',
    `Cannot read --expires: found "${words}", expected 90m, 12h, 30d or a date that is to come`,
  )
}
