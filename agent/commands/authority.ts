/** `sotto authority`: vouching for a fleet, as an SSH certificate authority does. */
import { text, utf8 } from '../../core/bytes.ts'
import { isTunnelError, TunnelError } from '../../core/errors.ts'
import { fingerprint, formatKey, isName, parseKey } from '../../core/key.ts'
import { parseLabels } from '../../core/labels.ts'
import { openStatement } from '../../core/statement.ts'
import type { Statement } from '../../core/statement.ts'
import { Authority, checkAuthorityName, DAYS_DEFAULT, DAYS_MAX, withdrawn } from '../authority.ts'
import type { Grant, RegisterLine } from '../authority.ts'
import { toBase64 } from '../base64.ts'
import { printList } from '../cli/operator.ts'
import { command, isSet, JSON_FLAG, listOf, numberOf, RELAY_FLAGS, textOf } from '../cli/page.ts'
import type { Flag, Given } from '../cli/page.ts'
import { readChoice } from '../cli/plan.ts'
import { Screen } from '../cli/screen.ts'
import { readStatement, readWords, writeNew } from '../cli/statement_file.ts'
import { enquire, publishStatement } from '../enquiry.ts'
import { checkChoice, join } from '../join.ts'
import type { Joining, RelayChoice } from '../join.ts'
import { Profile } from '../profile.ts'
import type { World } from '../world.ts'

/** Identities in one go. */
const KEYS_MAX = 10_000

const KEY_FILE_FLAG: Flag = {
  name: 'key-file',
  value: 'PATH',
  without: 'authorities/NAME in the profile',
  help: "The authority's key, such as on a disk that is kept apart; its register lies beside it.",
}

const WHICH_FLAGS: readonly Flag[] = [
  {
    name: 'authority',
    value: 'NAME',
    without: 'the only one there is',
    help: 'Which of the authorities whose keys are here.',
  },
  KEY_FILE_FLAG,
]

const OUT_FLAG: Flag = {
  name: 'out',
  short: 'o',
  value: 'FILE',
  without: 'standard output, and the relay where it takes them',
  help: 'A new file for the statements, one a line; no relay is asked then.',
}

interface Which {
  name: string | undefined
  keyFile: string | undefined
}

function whichOf(given: Given): Which {
  return { name: textOf(given, 'authority'), keyFile: textOf(given, 'key-file') }
}

export const initAuthority = command<Which & { name: string; json: boolean }>({
  page: {
    name: 'sotto authority init',
    summary: 'make an authority, an identity that vouches for others',
    args: ['NAME'],
    examples: [
      ['sotto authority init ops', 'Its key is kept in this profile.'],
      ['sotto authority init ops --key-file /media/stick/ops', 'Its key is kept on a stick.'],
    ],
    flags: [KEY_FILE_FLAG, JSON_FLAG],
  },
  read: (given) => ({
    name: given.args[0]!,
    keyFile: textOf(given, 'key-file'),
    json: isSet(given, 'json'),
  }),
  check: ({ name }) => checkAuthorityName(name),
  async run(options, world) {
    const authority = await Authority.init(world, new Profile(world), options)
    const { key, name } = authority
    const print = fingerprint(world.crypto, authority.identity.public)
    new Screen(world, options).show('authority', [
      { name: 'name', value: name },
      { name: 'key', value: key, line: `key          ${key}` },
      { name: 'fingerprint', value: print, line: `fingerprint  ${print}` },
      { name: 'trust', value: `sotto peers trust --authority ${name} ${key}` },
    ])
    if (!options.json) {
      world.terminal.stderr.write(
        `On each machine of the fleet: sotto peers trust --authority ${name} ${key}\n`,
      )
    }
    return 0
  },
})

interface SignOptions extends Which {
  words: string[]
  names: string[]
  scope: string
  labels: Readonly<Record<string, string>>
  days: number
  out: string | undefined
  choice: RelayChoice
  json: boolean
}

export const signVouches = command<SignOptions>({
  page: {
    name: 'sotto authority sign',
    summary: 'vouch for identities: their names, labels, and until when',
    args: ['KEY_OR_FILE...'],
    examples: [
      [
        'sotto authority sign web-1.key --name web --label role=web',
        'Printed; on that machine: sotto authority publish FILE.',
      ],
      ['sotto authority sign fleet.txt --days 90 -o vouches.txt', 'Lines of KEY and NAMEs.'],
    ],
    flags: [
      ...WHICH_FLAGS,
      {
        name: 'name',
        value: 'NAME',
        many: true,
        without: 'none',
        help: 'A name that it may serve; where the authority is pinned this is as good as a pin.',
      },
      { name: 'scope', value: 'SCOPE', without: 'any', help: 'Those names in this scope alone.' },
      {
        name: 'label',
        value: 'NAME=VALUE',
        many: true,
        without: 'none',
        help: 'What it is, for rules of "sotto access".',
      },
      { name: 'days', value: 'DAYS', without: `${DAYS_DEFAULT}`, help: 'How long it holds.' },
      OUT_FLAG,
      ...RELAY_FLAGS,
      JSON_FLAG,
    ],
    more: `A file has lines of KEY and NAMEs, which come to those of --name; # begins a comment.
A relay takes a vouch from the identity itself alone, so that nobody can fill its place with others.`,
  },
  read: (given) => ({
    ...whichOf(given),
    words: [...given.args],
    names: listOf(given, 'name'),
    scope: textOf(given, 'scope') ?? '',
    labels: parseLabels(listOf(given, 'label')),
    days: numberOf(given, 'days', { min: 1, max: DAYS_MAX }) ?? DAYS_DEFAULT,
    out: textOf(given, 'out'),
    choice: readChoice(given),
    json: isSet(given, 'json'),
  }),
  check({ names, scope, choice }) {
    checkChoice(choice)
    for (const name of scope === '' ? names : [...names, scope]) checkName(name)
  },
  async run(options, world) {
    const { names, scope, labels, days, out, json } = options
    const profile = new Profile(world)
    const authority = await Authority.open(world, profile, options)
    const grants = (await readKeys(world, options.words)).map(({ key, names: own }): Grant => ({
      key,
      names: [...names, ...own],
      scope,
      labels,
      days,
    }))
    const signed = await authority.sign(grants)
    const { stdout, stderr } = world.terminal
    const lines = signed.map(({ statement }) => `${toBase64(statement)}\n`).join('')
    if (out !== undefined) await writeNew(world, out, utf8(lines))
    for (const { serial, key, statement } of signed) {
      const print = fingerprint(world.crypto, parseKey(key))
      if (json) {
        const line = { serial, key, fingerprint: print, statement: toBase64(statement) }
        stdout.write(`${JSON.stringify(line)}\n`)
      } else stderr.write(`${serial}: signed ${print}\n`)
    }
    if (!json && out === undefined) stdout.write(lines)
    const own = formatKey((await profile.identity()).public)
    const mine = signed.filter(({ key }) => key === own)
    for (const { statement } of mine) await profile.keepStatement(statement)
    if (mine.length < signed.length && !json) {
      stderr.write(
        'On each of those machines, with its line in FILE: sotto authority publish FILE\n',
      )
    }
    if (mine.length > 0 && out === undefined) await tellRelay(world, options, [])
    return 0
  },
})

export const revokeVouches = command<
  Which & { serials: number[]; out: string | undefined; choice: RelayChoice; json: boolean }
>({
  page: {
    name: 'sotto authority revoke',
    summary: 'take vouches back, by their serial numbers',
    args: ['SERIAL...'],
    examples: [
      ['sotto authority revoke 17', 'The relay hands the list to all who ask.'],
      ['sotto authority revoke 17 18 -o list.txt', 'For "sotto authority publish" elsewhere.'],
    ],
    flags: [...WHICH_FLAGS, OUT_FLAG, ...RELAY_FLAGS, JSON_FLAG],
    more:
      `Each list has all that was ever taken back and has not run out. Publish it at every relay.`,
  },
  read: (given) => ({
    ...whichOf(given),
    serials: given.args.map(readSerial),
    out: textOf(given, 'out'),
    choice: readChoice(given),
    json: isSet(given, 'json'),
  }),
  check: ({ choice }) => checkChoice(choice),
  async run(options, world) {
    const authority = await Authority.open(world, new Profile(world), options)
    const { sequence, statement } = await authority.revoke(options.serials)
    const line = `${toBase64(statement)}\n`
    const { stdout } = world.terminal
    if (options.json) {
      stdout.write(`${JSON.stringify({ sequence, statement: toBase64(statement) })}\n`)
    } else if (options.out === undefined) stdout.write(line)
    if (options.out !== undefined) await writeNew(world, options.out, utf8(line))
    else await tellRelay(world, options, [statement])
    return 0
  },
})

export const listVouches = command<Which & { json: boolean }>({
  page: {
    name: 'sotto authority list',
    summary: 'list what an authority signed and took back',
    examples: [
      ['sotto authority list', 'Serial numbers, for whom, until when.'],
      ['sotto authority list --authority ops --json', 'The same for programs.'],
    ],
    flags: [...WHICH_FLAGS, JSON_FLAG],
  },
  read: (given) => ({ ...whichOf(given), json: isSet(given, 'json') }),
  check() {},
  async run(options, world) {
    const authority = await Authority.open(world, new Profile(world), options)
    const lines = await authority.register()
    const gone = withdrawn(lines)
    const items = lines.filter((line): line is RegisterLine & { do: 'sign' } => line.do === 'sign')
      .map(({ serial, key, names, scope, labels, until }) => ({
        serial,
        state: gone.has(serial)
          ? 'revoked'
          : Date.parse(until) < world.clock.now()
          ? 'expired'
          : 'good',
        names,
        scope,
        labels: Object.keys(labels).length === 0 && !options.json ? undefined : labels,
        until,
        fingerprint: fingerprint(world.crypto, parseKey(key)),
        key,
      }))
    printList(world, {
      items,
      heads: {
        SERIAL: 'serial',
        STATE: 'state',
        NAMES: 'names',
        SCOPE: 'scope',
        LABELS: 'labels',
        UNTIL: 'until',
        FINGERPRINT: 'fingerprint',
      },
      json: options.json,
      none: `${authority.name} has signed nothing yet`,
    })
    return 0
  },
})

export const publishStatements = command<{ path: string; choice: RelayChoice; json: boolean }>({
  page: {
    name: 'sotto authority publish',
    summary: 'give signed statements to the relay, such as the vouch for this machine',
    args: ['FILE'],
    examples: [
      ['sotto authority publish vouch.txt', 'A vouch for this identity is kept, for each relay.'],
      ['sotto authority publish -', 'From standard input.'],
    ],
    flags: [...RELAY_FLAGS, JSON_FLAG],
    more: 'Vouches for other identities are passed over: they publish their own.',
  },
  read: (given) => ({
    path: given.args[0]!,
    choice: readChoice(given),
    json: isSet(given, 'json'),
  }),
  check: ({ choice }) => checkChoice(choice),
  async run(options, world) {
    const profile = new Profile(world)
    const own = formatKey((await profile.identity()).public)
    const lines = text(await readWords(world, options.path)).split('\n').map((one) => one.trim())
    const taken: { bytes: Uint8Array; said: Statement }[] = []
    for (const line of lines.filter((one) => one !== '' && !one.startsWith('#'))) {
      const bytes = readStatement(line)
      const said = openStatement(world.crypto, bytes)
      if (said.kind === 'vouch' && formatKey(said.identity) !== own) continue
      if (said.kind === 'vouch') await profile.keepStatement(bytes)
      taken.push({ bytes, said })
    }
    if (taken.length === 0) {
      throw new TunnelError('authority/none', `Cannot publish ${options.path}: nothing is for us`, {
        hint: `This identity is ${own}.`,
      })
    }
    await tellRelay(world, options, taken.map(({ bytes }) => bytes))
    return 0
  },
})

/** Without a relay what is ours is told later, at the next joining. */
async function tellRelay(
  world: World,
  { choice, json }: { choice: RelayChoice; json: boolean },
  statements: readonly Uint8Array[],
): Promise<void> {
  const screen = new Screen(world, { json: false })
  const tell = (line: string): void => json ? undefined : screen.tell(line)
  let joining: Joining
  try {
    joining = await join(world, choice, tell)
  } catch (error) {
    if (!isTunnelError(error, 'relay/none')) throw error
    tell('no relay is set, so none was told; "sotto authority publish FILE" tells one later')
    return
  }
  await enquire(world, joining, async (uplink) => {
    for (const statement of statements) await publishStatement(uplink, statement)
  })
  tell(`published at ${joining.relay.host}`)
}

/** KEYs with names of their own, from words that are KEYs or files of them. */
async function readKeys(
  world: World,
  words: readonly string[],
): Promise<{ key: string; names: string[] }[]> {
  const found: { key: string; names: string[] }[] = []
  for (const word of words) {
    if (isKey(word)) {
      found.push({ key: word, names: [] })
      continue
    }
    const lines = text(await readWords(world, word)).split('\n')
    for (const [i, line] of lines.entries()) {
      const [key, ...names] = line.replace(/#.*/, '').trim().split(/\s+/)
      if (key === '' || key === undefined) continue
      if (!isKey(key)) {
        throw new TunnelError('cli/key', `Cannot sign ${word}: line ${i + 1} begins with no KEY`)
      }
      names.forEach(checkName)
      found.push({ key, names })
    }
  }
  if (found.length > 0 && found.length <= KEYS_MAX) return found
  throw new TunnelError(
    'cli/key',
    `Cannot sign: found ${found.length} KEYs, expected 1 to ${KEYS_MAX}`,
  )
}

function isKey(word: string): boolean {
  try {
    parseKey(word)
    return true
  } catch {
    return false
  }
}

function checkName(name: string): void {
  if (isName(name)) return
  throw new TunnelError(
    'cli/name',
    `Cannot sign the name "${name.slice(0, 60)}": expected a lower-case label`,
  )
}

function readSerial(word: string): number {
  const serial = /^\d{1,15}$/.test(word) ? Number(word) : 0
  if (serial > 0) return serial
  throw new TunnelError('cli/number', `Cannot read the serial "${word}": expected a number from 1`)
}
