/**
 * What is wrong with a configuration file, and where: the place, the line with a caret below it, what
 * was found and what was expected. A file has as many of them as there are, up to a bound.
 */
import { TunnelError } from '../core/errors.ts'
import type { ErrorCode } from '../core/errors.ts'
import { printable } from './cli/screen.ts'

/** Told of one file; who has more to correct will ask again. */
export const PROBLEMS_MAX = 20
/** Characters of a line that are shown, the found ones among them. */
const EXCERPT_LENGTH_MAX = 72

export interface ConfigProblem {
  readonly code: ErrorCode
  /** From 1; 0 where it is the file as a whole. */
  readonly line: number
  readonly column: number
  /** Such as `tunnels.web.http`; empty for the file itself. */
  readonly field: string
  /** "Cannot read tunnels.web: found …, expected …". */
  readonly message: string
  readonly hint?: string
  /** The line, and a line with carets below what was found. */
  readonly excerpt: readonly string[]
}

/** Makes the excerpt of `length` characters at a line and column, both from 1. */
export function excerptOf(
  text: string,
  { line, column, length }: { line: number; column: number; length: number },
): string[] {
  const whole = text.split(/\r\n|[\r\n]/)[line - 1] ?? ''
  const at = Math.min(column - 1, whole.length)
  const cut = at > EXCERPT_LENGTH_MAX - 24 ? at - 24 : 0
  const shown = printable(whole.slice(cut, cut + EXCERPT_LENGTH_MAX))
  const carets = Math.max(1, Math.min(length, shown.length - (at - cut)))
  const number = String(line)
  return [
    `  ${number} | ${shown}`.trimEnd(),
    `  ${' '.repeat(number.length)} | ${' '.repeat(at - cut)}${'^'.repeat(carets)}`,
  ]
}

/** `sotto.yaml:4:5: Cannot …`, the excerpt, the hint. */
export function problemLines(file: string, problem: ConfigProblem): string[] {
  const { line, column, message, excerpt, hint } = problem
  const place = line === 0 ? file : `${file}:${line}:${column}`
  return [
    printable(`${place}: ${message}`),
    ...excerpt,
    ...(hint === undefined ? [] : [printable(hint)]),
  ]
}

/** A file that cannot be used, for whoever asked to run it. */
export class ConfigError extends TunnelError {
  readonly file: string
  readonly problems: readonly ConfigProblem[]

  constructor(file: string, problems: readonly ConfigProblem[]) {
    const [first, ...more] = problems
    const { hint: _, ...bare } = first!
    const others = more.length === 0
      ? ''
      : more.length === 1
      ? '\nOne more is wrong; "sotto config check" shows it.'
      : `\n${more.length} more are wrong; "sotto config check" shows them.`
    super(first!.code, problemLines(file, bare).join('\n') + others, {
      ...(first!.hint === undefined ? {} : { hint: first!.hint }),
    })
    this.file = file
    this.problems = problems
  }
}
