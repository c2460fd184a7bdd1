/**
 * What a command is: its page, which `--help` prints exactly, and its verbs `check` and `run`. The
 * page is also what the arguments are read by, so a flag that is not on it does not exist.
 */
import { TunnelError } from '../../core/errors.ts'
import type { TerminalOutput, World } from '../world.ts'

/** Width of the first column of tables; longer entries get a line of their own. */
const COLUMN = 28
const WIDTH = 100
/** Narrower than this, the second column goes below the first. */
const TWO_COLUMNS_WIDTH_MIN = 64
const BELOW_INDENT = 6
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

/** Before a command. */
export const ROOT_FLAGS: readonly Flag[] = [
  PROFILE_FLAG,
  { name: 'version', help: 'Print the version.' },
]

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

/** The width for a page: the terminal's own where it is narrower; in a file, and wider, always the same. */
export function pageWidth({ isTTY, columns }: Pick<TerminalOutput, 'isTTY' | 'columns'>): number {
  return isTTY ? Math.min(WIDTH, columns) : WIDTH
}

/** The page as `--help` prints it. */
export function renderPage(page: Page, width = WIDTH): string {
  const words = [page.name, ...(page.args ?? []), ...(page.flags.length > 0 ? ['[flags]'] : [])]
  const flags = [...page.flags, { name: 'help', help: 'Print this page.' }]
  return [
    ...wrap(`${page.name}: ${page.summary}`, width),
    '',
    `usage: ${words.join(' ')}`,
    '',
    ...exampleLines(page.examples, width),
    '',
    'flags:',
    ...table(flags.map((flag) => [flagWords(flag), flagHelp(flag)]), width),
    ...(page.more === undefined ? [] : ['', ...foldText(page.more, width)]),
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

/** Two columns; the second is broken at `width`. */
export function table(
  rows: readonly (readonly [left: string, right: string])[],
  width = WIDTH,
): string[] {
  const at = width < TWO_COLUMNS_WIDTH_MIN ? BELOW_INDENT : COLUMN
  return rows.flatMap(([left, right]) => {
    const lines = wrap(right, width - at)
    const head = `  ${left}`
    const indent = ' '.repeat(at)
    if (at === BELOW_INDENT || head.length > COLUMN - 2) {
      return [
        head,
        ...lines.map((line) => indent + line),
      ]
    }
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

/** Broken at spaces; a word that is longer stays whole. */
export function wrap(text: string, width: number): string[] {
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

/** Lines that are too wide are broken anew, with what goes on in the line below; indented ones stay. */
function foldText(text: string, width: number): string[] {
  const lines = text.trimEnd().split('\n')
  if (lines.every(({ length }) => length <= width)) return lines
  const whole: string[] = []
  for (const line of lines) {
    const before = whole.at(-1)
    const goesOn = before && line && !/^ /.test(before) && !/^ /.test(line) && !/[.:]$/.test(before)
    if (goesOn) whole.push(`${whole.pop()} ${line}`)
    else whole.push(line)
  }
  return whole.flatMap((line) => line.startsWith(' ') ? [line] : wrap(line, width))
}

const ROOT_EXAMPLES: Page['examples'] = [
  ['sotto login relay.example', 'Once: it shows a code, and whoever may let you in enters it.'],
  ['sotto http 3000', 'Port 3000 of this machine at an https URL, until Ctrl-C.'],
  ['sotto relay', 'A relay of your own.'],
]

/** The commands below one that is none itself, or below all. */
export function renderOverview(
  name: string,
  { summary, verbs = {} }: {
    summary: string
    verbs?: Readonly<Record<string, { summary: string }>>
  },
  width = WIDTH,
): string {
  const isRoot = name === 'sotto'
  return [
    ...wrap(`${name}: ${summary}`, width),
    '',
    `usage: ${name} COMMAND`,
    '',
    ...(isRoot ? [...exampleLines(ROOT_EXAMPLES, width), ''] : []),
    'commands:',
    ...table(Object.entries(verbs).map(([verb, { summary }]) => [verb, summary]), width),
    '',
    ...(isRoot
      ? [
        'flags before a command:',
        ...table(ROOT_FLAGS.map((flag) => [flagWords(flag), flagHelp(flag)]), width),
        '',
      ]
      : []),
    `"${name} COMMAND --help" says more.`,
    '',
  ].join('\n')
}

function exampleLines(examples: Page['examples'], width: number): string[] {
  const indent = ' '.repeat(BELOW_INDENT)
  return [
    'examples:',
    ...examples.flatMap(([typed, what]) => [
      `  ${typed}`,
      ...wrap(what, width - BELOW_INDENT).map((line) => indent + line),
    ]),
  ]
}

/** The sentence, and beneath it the hint, or where more is said. */
export function describeError(
  { message, hint, code }: TunnelError,
  { isTTY, columns }: Pick<TerminalOutput, 'isTTY' | 'columns'>,
): string {
  // Hints are there to be pasted, and stay whole.
  const lines = isTTY ? message.split('\n').flatMap((one) => wrap(one, columns - 1)) : [message]
  return [...lines, hint ?? `More about it: sotto explain ${code}`].join('\n')
}
