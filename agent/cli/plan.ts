/** What tunnel commands have in common before anything is opened: names, switches, refusals. */
import { TunnelError } from '../../core/errors.ts'
import { formatKey, isName } from '../../core/key.ts'
import type { Identity } from '../../core/key.ts'
import { readService } from '../access.ts'
import type { Service } from '../access.ts'
import { parseUpstream } from '../forward.ts'
import type { Upstream } from '../forward.ts'
import { checkChoice } from '../join.ts'
import type { RelayChoice } from '../join.ts'
import type { Flag, Given } from './page.ts'
import { isSet, listOf, switchOf, textOf } from './page.ts'

/** Letters of the identity's KEY in a name that nobody chose. */
const NAME_KEY_LETTERS = 6

export interface TunnelChoice {
  upstream: string
  name: string | undefined
  choice: RelayChoice
  e2ee: boolean
  json: boolean
  /** Whole lines in their order. */
  plain: boolean
}

export const NAME_FLAG: Flag = {
  name: 'name',
  value: 'NAME',
  without: 'the port and the beginning of your key',
  help: 'The endpoint, one label of its host name; reserved to you on first use.',
}

export const E2EE_FLAG: Flag = {
  name: 'e2ee',
  value: 'SWITCH',
  without: 'true',
  help: 'Whether TLS ends in this agent.',
}

export const PROXY_FLAG: Flag = {
  name: 'proxy-protocol',
  value: 'VERSION',
  without: 'none',
  help: "Tell the upstream the visitor's address by a PROXY protocol header, v1 or v2.",
}

export const QR_FLAG: Flag = {
  name: 'qr',
  help: 'Show the URL as a QR code; the key "q" does so later.',
}

export const PLAIN_FLAG: Flag = {
  name: 'plain',
  without: 'SOTTO_PLAIN',
  help: 'Whole lines in their order, for screen readers: nothing is drawn twice.',
}

export const LABEL_FLAG: Flag = {
  name: 'label',
  value: 'NAME=VALUE',
  many: true,
  without: '"labels" of the profile',
  help: 'What this agent is, for the relay and its fleet tokens, such as role=web.',
}

export function readTunnel(given: Given): TunnelChoice {
  return {
    upstream: given.args[0]!,
    name: textOf(given, 'name'),
    choice: readLabelled(given),
    e2ee: switchOf(given, 'e2ee') ?? true,
    json: isSet(given, 'json'),
    plain: isSet(given, 'plain'),
  }
}

export function readChoice(given: Given): RelayChoice {
  return {
    relay: textOf(given, 'relay'),
    fingerprint: textOf(given, 'relay-fingerprint'),
    ca: textOf(given, 'ca'),
  }
}

/** With `--label`, for commands that hold a link. */
export function readLabelled(given: Given): RelayChoice {
  return { ...readChoice(given), labels: listOf(given, 'label') }
}

/** Throws `upstream/format`, `cli/name`, `relay/address`, `key/format`. */
export function checkTunnel({ upstream, name, choice }: TunnelChoice): void {
  parseUpstream(upstream)
  if (name !== undefined) checkName(name)
  checkChoice(choice)
}

/** Throws `cli/name`. */
export function checkName(name: string): void {
  if (isName(name)) return
  throw new TunnelError(
    'cli/name',
    `Cannot use the name "${name}": expected 1 to 63 of a-z 0-9 and inner hyphens`,
    { hint: 'Choose one like "web" or "api-2".' },
  )
}

/** `v1` or `v2`. Throws `cli/proxy-protocol`. */
export function proxyOf(given: Given): 'v1' | 'v2' | undefined {
  const value = textOf(given, 'proxy-protocol')
  if (value === undefined || value === 'v1' || value === 'v2') return value
  throw new TunnelError(
    'cli/proxy-protocol',
    `Cannot read --proxy-protocol: found "${value}", expected v1 or v2`,
  )
}

/** Stays the same for one agent and one upstream, and nobody else has it. */
export function defaultName(upstream: Upstream, identity: Identity): string {
  const key = formatKey(identity.public).slice(0, NAME_KEY_LETTERS)
  const base = upstream.kind === 'unix'
    ? upstream.path.slice(upstream.path.lastIndexOf('/') + 1).replace(/\.[a-z]+$/, '')
    : String(upstream.port)
  const label = base.toLowerCase().replace(/[^a-z0-9]+/g, '-').replace(/^-+|-+$/g, '').slice(0, 40)
  return label === '' ? key : `${label}-${key}`
}

/** What an agent is called that takes sessions and that nobody has named. */
export function defaultAgentName(identity: Identity): string {
  return `agent-${formatKey(identity.public).slice(0, NAME_KEY_LETTERS)}`
}

/** Services with commas between; none where it was not given. Throws `access/service`. */
export function servicesOf(given: Given, name: string): Service[] {
  const words = (textOf(given, name) ?? '').split(',').map((one) => one.trim())
  return words.filter((one) => one !== '').map((one) => readService(one))
}

/** `30s`, `5m`, `1h` in milliseconds; undefined when it was not given. Throws `cli/duration`. */
export function durationOf(given: Given, name: string): number | undefined {
  const words = textOf(given, name)
  if (words === undefined) return undefined
  const parts = /^(\d{1,6})(ms|s|m|h)$/.exec(words)
  const units = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }
  const ms = parts ? Number(parts[1]) * units[parts[2] as keyof typeof units] : 0
  if (ms > 0 && ms <= 604_800_000) return ms
  throw new TunnelError(
    'cli/duration',
    `Cannot read --${name}: found "${words}", expected a time such as 30s, 5m or 1h`,
  )
}
