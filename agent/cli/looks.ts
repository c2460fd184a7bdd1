/**
 * What the terminal takes: whether a line may be drawn again, letters beyond ASCII, colours. Read from
 * the variables that programs agree on; `SOTTO_PLAIN` (or `--plain`) wants whole lines of plain words in
 * their order, as screen readers say them.
 */

export interface Looks {
  /** Lines in their order, whole sentences, no cursor movement. */
  readonly plain: boolean
  /** The cursor can be moved within its line. */
  readonly moves: boolean
  readonly unicode: boolean
  readonly colours: boolean
}

type Env = Readonly<Record<string, string | undefined>>

export function looksOf(env: Env, { plain = false }: { plain?: boolean } = {}): Looks {
  const isPlain = plain || isOn(env['SOTTO_PLAIN'])
  const isDumb = env['TERM'] === 'dumb'
  return {
    plain: isPlain,
    moves: !isPlain && !isDumb,
    unicode: isUtf8(env),
    // https://no-color.org: any value but the empty one.
    colours: !isPlain && !isDumb && !env['NO_COLOR'],
  }
}

function isOn(value: string | undefined): boolean {
  return value !== undefined && !/^(|0|no|off|false)$/i.test(value)
}

/** POSIX: the first of these that is set says it. Where none is, Windows and most others mean UTF-8. */
function isUtf8(env: Env): boolean {
  const locale = env['LC_ALL'] || env['LC_CTYPE'] || env['LANG']
  return locale ? /utf-?8/i.test(locale) : true
}

const TWINS: Readonly<Record<string, string>> = {
  '·': '-',
  '…': '...',
  '–': '-',
  '—': '-',
  '‘': "'",
  '’': "'",
  '“': '"',
  '”': '"',
  '→': '->',
  '✓': 'ok',
  '\u00a0': ' ',
}

/** The same in ASCII, for a terminal of another character set; what has no twin becomes `?`. */
export function asciiWords(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replace(/[^\x00-\x7f]/gu, (letter) => TWINS[letter] ?? '?')
}
