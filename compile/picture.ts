/**
 * A terminal as a picture: lines as they stood on the screen, with their colours, each appearing when it
 * did. One SVG without scripts or anything from elsewhere; who wants no motion sees the whole at once.
 */

/** Lines that appeared together; `text` may hold SGR sequences (ECMA-48 §8.3.117). */
export interface Shown {
  readonly text: string
  readonly atMs: number
}

const COLUMN_PX = 8.4
const ROW_PX = 20
const MARGIN_PX = 16
const BAR_PX = 34
const COLUMNS_MIN = 60
/** Nobody watches a line that takes longer than this to come. */
const WAIT_MS_MAX = 1500

const COLOURS = [
  ...['#5c6370', '#e06c75', '#98c379', '#e5c07b', '#61afef', '#c678dd', '#56b6c2', '#dcdfe4'],
]

interface Style {
  bold: boolean
  dim: boolean
  colour: number | undefined
}

/** The SVG. `title` is read out to those who cannot see it, and so are all lines. */
export function renderPicture(lines: readonly Shown[], title: string): string {
  const columns = Math.max(COLUMNS_MIN, ...lines.map(({ text }) => [...plain(text)].length))
  const width = Math.ceil(columns * COLUMN_PX + 2 * MARGIN_PX)
  const height = BAR_PX + lines.length * ROW_PX + MARGIN_PX
  let shownMs = 0
  let beforeMs = lines[0]?.atMs ?? 0
  const rows = lines.map(({ text, atMs }, row) => {
    shownMs += Math.min(WAIT_MS_MAX, Math.max(0, atMs - beforeMs))
    beforeMs = atMs
    const y = BAR_PX + (row + 1) * ROW_PX - 6
    const delay = shownMs > 0 ? ` style="animation-delay:${(shownMs / 1000).toFixed(2)}s"` : ''
    return `<text x="${MARGIN_PX}" y="${y}"${delay}>${spans(text)}</text>`
  })
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img">
<title>${escaped(title)}</title>
<desc>${escaped(lines.map(({ text }) => plain(text)).join('\n'))}</desc>
<style>
text { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #dcdfe4; white-space: pre; opacity: 0; animation: come .15s forwards }
.b { font-weight: 700 } .d { fill: #9aa1ac } ${
    COLOURS.map((colour, i) => `.c${i} { fill: ${colour} }`).join(' ')
  }
@keyframes come { to { opacity: 1 } }
@media (prefers-reduced-motion: reduce) { text { animation: none; opacity: 1 } }
</style>
<rect width="${width}" height="${height}" rx="10" fill="#1e222a"/>
<circle cx="20" cy="17" r="5.5" fill="#e06c75"/><circle cx="38" cy="17" r="5.5" fill="#e5c07b"/><circle cx="56" cy="17" r="5.5" fill="#98c379"/>
${rows.join('\n')}
</svg>
`
}

/** Without its sequences. */
export function plain(text: string): string {
  return pieces(text).map(([piece]) => piece).join('')
}

function spans(text: string): string {
  return pieces(text).map(([piece, { bold, dim, colour }]) => {
    const names = [bold && 'b', dim && 'd', colour !== undefined && `c${colour}`].filter(Boolean)
    const inner = escaped(piece)
    return names.length === 0 ? inner : `<tspan class="${names.join(' ')}">${inner}</tspan>`
  }).join('')
}

/** Runs of one style; sequences that say anything else are dropped. */
function pieces(text: string): [string, Style][] {
  let style: Style = { bold: false, dim: false, colour: undefined }
  const found: [string, Style][] = []
  // deno-lint-ignore no-control-regex
  for (const part of text.split(/(\x1b\[[0-9;]*[A-Za-z]|\x1b\][^\x07]*\x07)/)) {
    if (!part.startsWith('\x1b')) {
      if (part !== '') found.push([part, style])
    } else if (part.startsWith('\x1b[') && part.endsWith('m')) {
      style = restyled(style, part.slice(2, -1).split(';').map(Number))
    }
  }
  return found
}

function restyled(before: Style, codes: readonly number[]): Style {
  const style = { ...before }
  for (const code of codes) {
    if (code === 0) Object.assign(style, { bold: false, dim: false, colour: undefined })
    else if (code === 1) style.bold = true
    else if (code === 2) style.dim = true
    else if (code === 22) style.bold = style.dim = false
    else if (code === 39) style.colour = undefined
    else if (code >= 30 && code <= 37) style.colour = code - 30
    else if (code >= 90 && code <= 97) style.colour = code - 90
  }
  return style
}

function escaped(text: string): string {
  return text.replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`)
}
