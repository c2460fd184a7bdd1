/**
 * What a person sees of a running tunnel: a few lines that stay, one line that lives, and a sentence
 * when something is worth it. Without a terminal the same in plain lines, with `--json` one object a
 * line on standard output. Not a log.
 */
import type { Timer } from '../../core/clock.ts'
import type { TunnelError } from '../../core/errors.ts'
import type { TerminalOutput, World } from '../world.ts'
import { asciiWords, looksOf } from './looks.ts'
import type { Looks } from './looks.ts'

/** How often the living line is looked at. */
const REFRESH_MS = 500
/** In plain mode what lives is said as a sentence, at most so often. */
const PLAIN_MS = 30_000
/** The same sentence is not said again within this time. */
const REPEAT_MS = 60_000
/** Sentences remembered for that. */
const REMEMBERED_MAX = 64

/** Narrower terminals break lines themselves. */
const FOLDED_WIDTH_MIN = 24

const CLEAR_LINE = '\r\x1b[2K'

export interface Counts {
  visitors: number
  total: number
  bytesIn: number
  bytesOut: number
}

/** One fact, such as `url`: its name in JSON, and the line for people. */
export interface Fact {
  readonly name: string
  readonly value: string | number | readonly object[]
  /** Left out: not for people. */
  readonly line?: string
  /** Never broken where the terminal is narrower: somebody will paste it. */
  readonly whole?: boolean
}

export interface Telling {
  /** What the person can do about it. */
  hint?: string
  /** The same as an object, for `--json`. */
  event?: string
  fields?: Readonly<Record<string, unknown>>
  /** Said even when the same was said just before. */
  again?: boolean
}

type ScreenWorld = Pick<World, 'terminal' | 'clock'> & Partial<Pick<World, 'env'>>

export class Screen {
  readonly looks: Looks
  readonly #world: ScreenWorld
  readonly #json: boolean
  readonly #live: boolean
  readonly #said = new Map<string, number>()
  #status = ''
  #timer: Timer | undefined

  constructor(world: ScreenWorld, options: { json: boolean; plain?: boolean }) {
    this.#world = world
    this.#json = options.json
    const looks = looksOf(world.env ?? {}, options)
    // Colours in a file are noise.
    this.looks = { ...looks, colours: looks.colours && world.terminal.stdout.isTTY }
    this.#live = !options.json && world.terminal.stdout.isTTY && this.looks.moves
  }

  /** A person looks at it, on a terminal where lines can be drawn again. */
  get isLive(): boolean {
    return this.#live
  }

  /** In columns. */
  get width(): number {
    return this.#world.terminal.stdout.columns
  }

  get isJson(): boolean {
    return this.#json
  }

  /** The lines that stay: where the endpoint is and what holds there. */
  show(event: string, facts: readonly Fact[]): void {
    if (this.#json) return this.#object(event, factsObject(facts))
    const width = this.#world.terminal.stdout.columns - 3
    const lines = facts.flatMap(({ line, whole }) =>
      (line?.split('\n') ?? []).flatMap((one) =>
        this.#live ? (whole ? [one] : fold(one, width)) : one === '' ? [] : [one]
      )
    )
    const indent = this.#live ? '  ' : ''
    const text = lines.map((line) => line === '' ? '\n' : `${indent}${line}\n`).join('')
    this.print([], this.#live ? `\n${text}\n` : text)
  }

  /** Lines as they are, above the living one; for people alone. */
  print(lines: readonly string[], text = lines.map((line) => `${line}\n`).join('')): void {
    if (this.#json) return
    const { stdout } = this.#world.terminal
    this.#above(() => stdout.write(this.#words(text, stdout)))
  }

  /** An answer to the person, at once and each time. */
  say(sentence: string): void {
    this.tell(sentence, { again: true })
  }

  /** Something that happened, for programs; people see it in the living line. */
  event(event: string, fields: Readonly<Record<string, unknown>>): void {
    if (this.#json) this.#object(event, fields)
  }

  /** One sentence to the person, on standard error; said again only after a while. */
  tell(sentence: string, more: Telling = {}): void {
    if (more.event !== undefined) this.event(more.event, more.fields ?? {})
    const now = this.#world.clock.monotonic()
    const last = this.#said.get(sentence)
    if (!more.again && last !== undefined && now - last < REPEAT_MS) return
    if (this.#said.size >= REMEMBERED_MAX) this.#said.clear()
    this.#said.set(sentence, now)
    const { stderr } = this.#world.terminal
    const folded = stderr.isTTY
      ? fold(printable(sentence), stderr.columns - 1, '')
      : [printable(sentence)]
    // Hints are there to be pasted.
    const lines = [...folded, ...(more.hint === undefined ? [] : [printable(more.hint)])]
    const text = lines.map((line) => `${line}\n`).join('')
    this.#above(() => stderr.write(this.#words(text, stderr)))
  }

  trouble(error: TunnelError): void {
    this.tell(error.message, {
      event: 'trouble',
      fields: error.toJSON(),
      ...(error.hint === undefined ? {} : { hint: error.hint }),
    })
  }

  /** Keeps the last line up to date until `close`. */
  follow(status: () => string): void {
    if (this.looks.plain && !this.#json && this.#world.terminal.stdout.isTTY) {
      return this.#followPlain(status)
    }
    if (!this.#live) return
    this.#timer?.cancel()
    const look = (): void => {
      const next = status()
      if (next !== this.#status) {
        this.#status = next
        this.#draw()
      }
      this.#timer = this.#world.clock.after(REFRESH_MS, look)
    }
    look()
  }

  #followPlain(status: () => string): void {
    this.#timer?.cancel()
    let said = ''
    const look = (): void => {
      const next = `${status().replaceAll(' · ', ', ')}.`
      if (next !== said) this.print([said = next])
      this.#timer = this.#world.clock.after(PLAIN_MS, look)
    }
    look()
  }

  close(): void {
    this.#timer?.cancel()
    if (this.#status !== '') this.#world.terminal.stdout.write('\n')
    this.#status = ''
  }

  #draw(): void {
    const { stdout } = this.#world.terminal
    // A line that wraps could not be taken back: its last parts go first.
    const width = Math.max(1, stdout.columns - 1)
    const parts = this.#status.split(' · ')
    while (parts.length > 1 && parts.join(' · ').length + 2 > width) parts.pop()
    const line = this.#words(`  ${parts.join(' · ')}`, stdout)
    stdout.write(CLEAR_LINE + line.slice(0, width))
  }

  /** In the letters that the terminal has. */
  #words(text: string, to: TerminalOutput): string {
    return to.isTTY && !this.looks.unicode ? asciiWords(text) : text
  }

  #above(write: () => void): void {
    if (this.#status !== '') this.#world.terminal.stdout.write(CLEAR_LINE)
    write()
    if (this.#status !== '') this.#draw()
  }

  #object(event: string, fields: Readonly<Record<string, unknown>>): void {
    this.#world.terminal.stdout.write(`${JSON.stringify({ event, ...fields })}\n`)
  }
}

function factsObject(facts: readonly Fact[]): Record<string, Fact['value']> {
  return Object.fromEntries(facts.map(({ name, value }) => [name, value]))
}

/**
 * Breaks what is wider than the terminal at spaces, and at colons as in fingerprints of certificates;
 * `SHA256:…` stays whole, since somebody will compare it.
 */
function fold(line: string, width: number, indent = '    '): string[] {
  if (line.length <= width || width < FOLDED_WIDTH_MIN) return [line]
  const from = line.search(/\S/)
  let at = -1
  for (const { index } of line.matchAll(/ |(?<!SHA256):/g)) {
    // The first that is too far is better than none.
    if (index <= from || (index >= width && at >= 0)) continue
    at = index
  }
  const rest = line.slice(at + 1)
  if (at < 0 || rest === '') return [line]
  return [line.slice(0, at + 1).trimEnd(), ...fold(`${indent}${rest}`, width, indent)]
}

/** `2 visitors now · 14 so far · 12 kB in · 3.4 MB out`. */
export function describeCounts({ visitors, total, bytesIn, bytesOut }: Counts): string {
  const now = visitors === 1 ? '1 visitor now' : `${visitors} visitors now`
  return `${now} · ${total} so far · ${bytesWords(bytesIn)} in · ${bytesWords(bytesOut)} out`
}

/** Three digits at most, in powers of 1,000. */
export function bytesWords(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB']
  let value = bytes
  let unit = 0
  // 999.5 would be rounded to a fourth digit.
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000
    unit++
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2
  return `${Number(value.toFixed(digits))} ${units[unit]}`
}

/** A wait as people say it: `0.4 s`, `4 s`, `2 min`. */
export function waitWords(ms: number): string {
  if (ms < 950) return `${Math.max(0.1, Math.round(ms / 100) / 10)} s`
  const seconds = Math.round(ms / 1000)
  return seconds < 100 ? `${seconds} s` : `${Math.round(seconds / 60)} min`
}

/** What a relay or a visitor says must not move the cursor: control characters become spaces. */
export function printable(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g, ' ')
}

/** The same for text of several lines: line feeds and tabs stay. */
export function printableLines(text: string): string {
  return text.replace(
    // deno-lint-ignore no-control-regex
    /[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g,
    ' ',
  )
}

/**
 * Rows under their headings, as wide as their longest entry. On a terminal that is narrower each row
 * is a block of lines, with its headings before its entries.
 */
export function columns(
  heads: readonly string[],
  rows: readonly (readonly string[])[],
  terminal?: Pick<TerminalOutput, 'isTTY' | 'columns'>,
): string {
  const all = [heads, ...rows]
  const widths = heads.map((_, i) => Math.max(...all.map((row) => (row[i] ?? '').length)))
  const width = widths.reduce((sum, one) => sum + one + 2, -2)
  if (terminal?.isTTY && width > terminal.columns) {
    const names = heads.map((head) => head.toLowerCase())
    const nameWidth = Math.max(...names.map(({ length }) => length))
    return rows.map((row) =>
      row.map((cell, i) => `${names[i]!.padEnd(nameWidth)}  ${printable(cell) || '-'}\n`).join('')
    ).join('\n')
  }
  return all.map((row) =>
    `${row.map((cell, i) => printable(cell).padEnd(widths[i]!)).join('  ').trimEnd()}\n`
  ).join('')
}
