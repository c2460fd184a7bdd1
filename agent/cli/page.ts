/**
 * What a command is: its page, which `--help` prints exactly, and its verbs `check` and `run`. The
 * page is also what the arguments are read by, so a flag that is not on it does not exist.
 */
import { TunnelError } from '../../core/errors.ts'
import type { World } from '../world.ts'

/** Width of the first column of tables; longer entries get a line of their own. */
const COLUMN = 28
const WIDTH = 100
/** More commands are not listed in a hint. */
const LISTED_MAX = 6

export interface Flag {
  /** Long name without dashes. */
  readonly name: string
  /** One letter, typed after one dash. */
  readonly short?: string
  /** What its value is called; absent: a switch. */
  readonly value?: string
  /** The default in words, with its unit. */
  readonly without?: string
  readonly help: string
  /** May be given several times. */
  readonly many?: boolean
  /** Takes all that follows it, as it is; a list. */
  readonly rest?: boolean
}

export interface Page {
  /** As typed, such as `sotto relay keys create`. */
  readonly name: string
  /** One line, without a full stop. */
  readonly summary: string
  /** Positional arguments; `[NAME]` may be left out. */
  readonly args?: readonly string[]
  /** Said to who types arguments where there are none. */
  readonly refusesArgs?: string
  readonly examples: readonly (readonly [command: string, what: string])[]
  readonly flags: readonly Flag[]
  /** A few lines after the flags. */
  readonly more?: string
}

/** What was typed after the command's name. Switches are true, flags that may repeat are arrays. */
export interface Given {
  readonly args: readonly string[]
  readonly flags: Readonly<Record<string, string | boolean | readonly string[] | undefined>>
}

/** One verb. `Options` is what the flags become once read, in full words. */
export interface Verb<Options> {
  readonly page: Page
  /** Throws `cli/…` on words that are no such value. */
  read(given: Given): Options
  /** Every refusal that needs no network and no file. */
  check(options: Options): void
  /** Gives the exit code. */
  run(options: Options, world: World): Promise<number>
}

/** A verb whose options are its own business. */
export interface Command {
  readonly page: Page
  /** Reads and checks; what it gives back runs. */
  prepare(given: Given): (world: World) => Promise<number>
}

export function command<Options>(verb: Verb<Options>): Command {
  return {
    page: verb.page,
    prepare: (given) => {
      const options = verb.read(given)
      verb.check(options)
      return (world) => verb.run(options, world)
    },
  }
}

/** Understood by every command, and on the pages of those that speak to a relay. */
export const PROFILE_FLAG: Flag = {
  name: 'profile',
  value: 'NAME',
  without: 'SOTTO_PROFILE, else that of "sotto profiles use"',
  help: 'Which profile: relay, key, pins and identity.',
}

/** Flags of every command that speaks to a relay. */
export const RELAY_FLAGS: readonly Flag[] = [
  {
    name: 'relay',
    value: 'URL',
    without: 'SOTTO_RELAY, else the profile',
    help: 'The relay, such as https://relay.example.',
  },
  {
    name: 'relay-fingerprint',
    value: 'SHA256:…',
    without: 'pinned on first use',
    help: "The relay's identity; with it a self-signed certificate will do.",
  },
  {
    name: 'ca',
    value: 'PATH',
    without: 'SSL_CERT_FILE, else the CAs that come with sotto',
    help: "PEM file: CAs to trust for the relay's certificate, in place of all others.",
  },
  PROFILE_FLAG,
]

export const JSON_FLAG: Flag = {
  name: 'json',
  help: 'Print one JSON object a line on standard output.',
}

export function textOf(given: Given, name: string): string | undefined {
  const value = given.flags[name]
  return typeof value === 'string' ? value : undefined
}

export function listOf(given: Given, name: string): string[] {
  const value = given.flags[name]
  return Array.isArray(value) ? [...value as string[]] : typeof value === 'string' ? [value] : []
}

export function isSet(given: Given, name: string): boolean {
  return given.flags[name] === true
}

/** `true` or `false` in words; undefined when it was not given. Throws `cli/switch`. */
export function switchOf(given: Given, name: string): boolean | undefined {
  const value = given.flags[name]
  if (value === undefined) return undefined
  if (value === true || value === 'true') return true
  if (value === false || value === 'false') return false
  throw new TunnelError(
    'cli/switch',
    `Cannot read --${name}: found "${value}", expected true or false`,
  )
}

/** A whole number within bounds; undefined when it was not given. Throws `cli/number`. */
export function numberOf(
  given: Given,
  name: string,
  { min, max }: { min: number; max: number },
): number | undefined {
  const value = textOf(given, name)
  if (value === undefined) return undefined
  const number = /^\d{1,9}$/.test(value) ? Number(value) : NaN
  if (number >= min && number <= max) return number
  throw new TunnelError(
    'cli/number',
    `Cannot read --${name}: found "${value}", expected a whole number from ${min} to ${max}`,
  )
}

/** The page as `--help` prints it. */
export function renderPage(page: Page): string {
  const words = [page.name, ...(page.args ?? []), ...(page.flags.length > 0 ? ['[flags]'] : [])]
  const flags = [...page.flags, { name: 'help', help: 'Print this page.' }]
  return [
    `${page.name}: ${page.summary}`,
    '',
    `usage: ${words.join(' ')}`,
    '',
    'examples:',
    ...page.examples.flatMap(([typed, what]) => [`  ${typed}`, `      ${what}`]),
    '',
    'flags:',
    ...table(flags.map((flag) => [flagWords(flag), flagHelp(flag)])),
    ...(page.more === undefined ? [] : ['', page.more.trimEnd()]),
    '',
  ].join('\n')
}

/** What to say to a word that is no command; with the one that was probably meant. */
export async function unknownVerb(
  { path, typed, known }: { path: readonly string[]; typed: string; known: readonly string[] },
): Promise<TunnelError> {
  // Loaded here: whoever types no wrong word does not wait for it.
  const { nearest } = await import('../config_words.ts')
  const name = path.join(' ')
  const near = nearest(typed, known)
  return new TunnelError('cli/unknown', `Cannot run "${name} ${typed}": there is no such command`, {
    hint: near !== undefined
      ? `Did you mean "${name} ${near}"? "${name} --help" lists all.`
      : known.length > LISTED_MAX
      ? `"${name} --help" lists the commands.`
      : `The commands: ${known.join(', ')}.`,
  })
}

/** Two columns; the second is broken at `WIDTH`. */
export function table(rows: readonly (readonly [left: string, right: string])[]): string[] {
  return rows.flatMap(([left, right]) => {
    const lines = wrap(right, WIDTH - COLUMN)
    const head = `  ${left}`
    const indent = ' '.repeat(COLUMN)
    if (head.length > COLUMN - 2) return [head, ...lines.map((line) => indent + line)]
    return [head.padEnd(COLUMN) + lines[0]!, ...lines.slice(1).map((line) => indent + line)]
  })
}

function flagWords({ name, short, value }: Flag): string {
  const words = `${short === undefined ? '' : `-${short}, `}--${name}`
  return value === undefined ? words : `${words} ${value}`
}

function flagHelp({ help, without, many }: Flag): string {
  const notes = [
    ...(many ? ['may be repeated'] : []),
    ...(without === undefined ? [] : [`default: ${without}`]),
  ]
  return notes.length === 0 ? help : `${help} (${notes.join('; ')})`
}

function wrap(text: string, width: number): string[] {
  const lines: string[] = []
  let line = ''
  for (const word of text.split(' ')) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line)
      line = word
    } else line = line === '' ? word : `${line} ${word}`
  }
  return [...lines, line]
}
