/**
 * One line, typed at a terminal in raw mode: keys come in, what to draw goes out. Names no terminal,
 * so that what a person sees is tested without one.
 *
 * Arrows, Home, End, Ctrl-A and Ctrl-E move; Backspace, Delete, Ctrl-U and Ctrl-W take away; Tab
 * completes, and lists the ways to go on where there are several.
 */

/** Longer lines are cut off: nothing that is asked for here is that long. */
const LINE_LENGTH_MAX = 256
/** For what is typed, or the question gets lines of its own. */
const ROOM_MIN = 32
const CLEAR_LINE = '\r\x1b[2K'
// deno-lint-ignore no-control-regex
const ESCAPE = /^\x1b(?:\[[0-9;?]*[A-Za-z~]|O[A-Za-z]|[^[O])/
// deno-lint-ignore no-control-regex
const ESCAPE_BEGUN = /^\x1b(?:\[[0-9;?]*|O)?$/

export interface LineEditorOptions {
  /** Stands before what is typed. */
  question: string
  /** Of the terminal. */
  columns: number
  /** What is typed is not shown. */
  hidden?: boolean | undefined
  /** Whole lines that `text` may become. */
  complete?: ((text: string) => readonly string[]) | undefined
}

/** `line`: Enter. `interrupt`: Ctrl-C. `end`: Ctrl-D on an empty line. */
export type LineOutcome = 'line' | 'interrupt' | 'end'

export interface LineStep {
  write: string
  outcome?: LineOutcome
  /** Keys that came after the outcome. */
  rest?: string
}

export class LineEditor {
  readonly #options: LineEditorOptions
  #text = ''
  #at = 0
  /** Of an escape sequence that has not come whole. */
  #begun = ''

  constructor(options: LineEditorOptions) {
    this.#options = options
  }

  get text(): string {
    return this.#text
  }

  /** What the line begins with: the question, where enough room is left beside it. */
  get #mark(): string {
    const { question, columns } = this.#options
    return columns - question.length >= ROOM_MIN ? question : '> '
  }

  /** What to write first. */
  start(): string {
    const { question, columns } = this.#options
    return this.#mark === question
      ? this.draw()
      : `${fold(question.trimEnd(), columns)}${this.draw()}`
  }

  /** What the line looks like now. */
  draw(): string {
    const question = this.#mark
    // A line that wraps could not be drawn again: what does not fit moves out to the left.
    const room = Math.max(8, this.#options.columns - question.length - 1)
    const from = Math.max(0, this.#at - room + 1)
    const shown = this.#options.hidden ? '' : this.#text.slice(from, from + room)
    const back = this.#options.hidden ? 0 : shown.length - (this.#at - from)
    return `${CLEAR_LINE}${question}${shown}${back > 0 ? `\x1b[${back}D` : ''}`
  }

  feed(typed: string): LineStep {
    let keys = this.#begun + typed
    this.#begun = ''
    let listed = ''
    while (keys !== '') {
      if (ESCAPE_BEGUN.test(keys)) {
        this.#begun = keys
        break
      }
      const key = ESCAPE.exec(keys)?.[0] ?? String.fromCodePoint(keys.codePointAt(0)!)
      keys = keys.slice(key.length)
      const outcome = this.#outcome(key)
      if (outcome) return { write: `${listed}${this.draw()}\r\n`, outcome, rest: keys }
      if (key === '\t') listed += this.#complete()
      else this.#press(key)
    }
    return { write: listed + this.draw() }
  }

  #outcome(key: string): LineOutcome | undefined {
    if (key === '\r' || key === '\n') return 'line'
    if (key === '\x03') return 'interrupt'
    return key === '\x04' && this.#text === '' ? 'end' : undefined
  }

  #press(key: string): void {
    const before = this.#text.slice(0, this.#at)
    const after = this.#text.slice(this.#at)
    switch (key) {
      case '\x7f':
      case '\x08':
        return this.#set([...before].slice(0, -1).join(''), after)
      case '\x04':
      case '\x1b[3~':
        return this.#set(before, after.slice(1))
      case '\x15':
        return this.#set('', after)
      case '\x17':
        return this.#set(before.replace(/[^\s-]*[\s-]*$/, ''), after)
      case '\x01':
      case '\x1b[H':
      case '\x1bOH':
        this.#at = 0
        return
      case '\x05':
      case '\x1b[F':
      case '\x1bOF':
        this.#at = this.#text.length
        return
      case '\x1b[D':
      case '\x1bOD':
        this.#at = Math.max(0, this.#at - 1)
        return
      case '\x1b[C':
      case '\x1bOC':
        this.#at = Math.min(this.#text.length, this.#at + 1)
        return
    }
    // Other keys and control characters are nothing that a line holds.
    // deno-lint-ignore no-control-regex
    if (/[\x00-\x1f\x7f-\x9f]/.test(key)) return
    if (before.length + key.length + after.length > LINE_LENGTH_MAX) return
    this.#set(before + key, after)
  }

  #set(before: string, after: string): void {
    this.#text = before + after
    this.#at = before.length
  }

  /** What to write above the line: the ways to go on, where there are several and none is nearer. */
  #complete(): string {
    const ways = this.#options.complete?.(this.#text.slice(0, this.#at)) ?? []
    if (ways.length === 0) return ''
    const common = ways.reduce(commonStart)
    const typed = this.#text.slice(0, this.#at)
    if (common.length > typed.length || ways.length === 1) {
      this.#set(common, this.#text.slice(this.#at))
      return ''
    }
    // The ends alone: what stands before them is on the line.
    const ends = ways.map((way) => way.slice(typed.search(/[^\s-]*$/)).replace(/-$/, ''))
    const line = ends.join('  ')
    const width = this.#options.columns - 1
    const cut = line.lastIndexOf('  ', width - 2)
    const shown = line.length <= width || cut < 0 ? line.slice(0, width) : `${line.slice(0, cut)} …`
    return `${this.draw()}\r\n${shown}\r\n`
  }
}

/** Whole words in lines of at most so many characters. */
function fold(text: string, width: number): string {
  const lines = ['']
  for (const word of text.split(' ')) {
    const last = lines.at(-1)!
    if (last !== '' && last.length + 1 + word.length > width) lines.push(word)
    else lines[lines.length - 1] = last === '' ? word : `${last} ${word}`
  }
  return lines.map((line) => `${line}\r\n`).join('')
}

function commonStart(a: string, b: string): string {
  let length = 0
  while (length < a.length && a[length] === b[length]) length++
  return a.slice(0, length)
}
