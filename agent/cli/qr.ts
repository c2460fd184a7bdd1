/**
 * A QR code as lines of text (ISO/IEC 18004, by uqr), dark on light wherever colours are allowed: by
 * half blocks two rows a line, or in ASCII two columns a module. Where colours are not, the terminal is
 * taken to be dark, and light modules are drawn.
 */
import type { Looks } from './looks.ts'

/** Light modules around it; the standard asks for 4, cameras are content with 2. */
const BORDER_MODULES = 2
const DARK_ON_LIGHT = '\x1b[30;107m'
const RESET = '\x1b[0m'

export interface QrPicture {
  readonly lines: readonly string[]
  /** Columns that it takes. */
  readonly width: number
}

export async function qrPicture(
  words: string,
  { unicode, colours }: Pick<Looks, 'unicode' | 'colours'>,
): Promise<QrPicture> {
  const { encode } = await import('uqr')
  const { data, size } = encode(words, { ecc: 'L', border: BORDER_MODULES })
  /** Whether to draw: dark modules on a light ground, else light ones. */
  const isDrawn = (x: number, y: number): boolean => (data[y]?.[x] ?? false) === colours
  const lines: string[] = []
  for (let y = 0; y < size; y += unicode ? 2 : 1) {
    let line = ''
    for (let x = 0; x < size; x++) {
      // Below the last row of an odd number nothing is drawn.
      const under = y + 1 < size && isDrawn(x, y + 1)
      if (unicode) line += isDrawn(x, y) ? under ? '█' : '▀' : under ? '▄' : ' '
      else line += isDrawn(x, y) ? '##' : '  '
    }
    lines.push(colours ? `${DARK_ON_LIGHT}${line}${RESET}` : line)
  }
  return { lines, width: unicode ? size : size * 2 }
}
