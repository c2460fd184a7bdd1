/**
 * The page behind `npm start`: what the agent saw of a request, which is everything, beside what the
 * relay saw of the very connection that carried it, which is a name and sizes. Served to connections
 * that begin with a PROXY protocol header, by which the visitor is known on both sides.
 */
import { concat, EMPTY, text, utf8 } from '../../core/bytes.ts'
import type { Clock } from '../../core/clock.ts'
import type { Conn } from '../../core/socket.ts'
import { printable } from './screen.ts'

const HEAD_BYTES_MAX = 32_768
/** From the connection to its whole head. */
const HEAD_MS_MAX = 10_000
/** Headers and their length on the page. */
const SHOWN_MAX = 50
const SHOWN_LENGTH_MAX = 200

/** All that a relay knows of one connection. */
export interface RelaySight {
  serverName: string
  /** `bulk link` or `stream`. */
  route: string
  fromVisitorBytes: number
  toVisitorBytes: number
}

export interface Visitor {
  address: string
  port: number
}

export interface DemoPagePorts {
  clock: Clock
  /** What the relay has noted of this visitor's connection until now. */
  relaySaw(visitor: Visitor): RelaySight | undefined
}

interface Request {
  visitor: Visitor | undefined
  line: string
  headers: [name: string, value: string][]
}

/** Answers one request on `conn` and ends it. */
export function servePage(conn: Conn, ports: DemoPagePorts): void {
  let head: Uint8Array = EMPTY
  let answered = false
  const late = ports.clock.after(HEAD_MS_MAX, () => conn.abort())
  conn.handle({
    data(bytes) {
      // A body has nothing to say here; what follows the answer is let go.
      if (answered) return
      head = concat(head, bytes)
      const request = parseHead(head)
      if (request === 'more' && head.length <= HEAD_BYTES_MAX) return
      answered = true
      conn.write(request === 'more' || request === 'wrong' ? BAD_REQUEST : answer(request, ports))
      conn.end()
    },
    end: () => conn.end(),
    closed: () => late.cancel(),
  })
}

const BAD_REQUEST = utf8(
  'HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n',
)

/** Exported for its test: a PROXY v1 line, then the head of an HTTP/1.1 request. */
export function parseHead(bytes: Uint8Array): Request | 'more' | 'wrong' {
  let words: string
  try {
    words = text(bytes)
  } catch {
    return 'wrong'
  }
  const end = words.indexOf('\r\n\r\n')
  if (end < 0) return 'more'
  const lines = words.slice(0, end).split('\r\n')
  const proxy = /^PROXY (?:UNKNOWN|TCP[46] (\S+) \S+ (\d+) \d+)$/.exec(lines[0]!)
  if (proxy) lines.shift()
  const line = lines.shift() ?? ''
  if (!/^[A-Z]+ \S+ HTTP\/1\.[01]$/.test(line)) return 'wrong'
  const headers = lines.map((one): [string, string] => {
    const colon = one.indexOf(':')
    return [one.slice(0, colon), one.slice(colon + 1).trim()]
  })
  const visitor = proxy?.[1] ? { address: proxy[1], port: Number(proxy[2]) } : undefined
  return { visitor, line, headers }
}

function answer(request: Request, ports: DemoPagePorts): Uint8Array {
  const { line, headers, visitor } = request
  const sight = visitor && ports.relaySaw(visitor)
  const [method, path] = line.split(' ')
  const wantsHtml = headers.some(([name, value]) =>
    name.toLowerCase() === 'accept' && value.includes('text/html')
  )
  const found = path!.split('?')[0] === '/'
  const status = found ? '200 OK' : '404 Not Found'
  const body = utf8(
    found
      ? wantsHtml ? html(request, sight) : plain(request, sight)
      : 'There is one page here: /\n',
  )
  const head = [
    `HTTP/1.1 ${status}`,
    `Content-Type: text/${found && wantsHtml ? 'html' : 'plain'}; charset=utf-8`,
    `Content-Length: ${body.length}`,
    'Cache-Control: no-store',
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'",
    'X-Content-Type-Options: nosniff',
    'Referrer-Policy: no-referrer',
    'Connection: close',
  ]
  return concat(utf8(`${head.join('\r\n')}\r\n\r\n`), method === 'HEAD' ? EMPTY : body)
}

/** The two halves as rows of name and value, bounded. */
function agentRows({ line, headers }: Request): [string, string][] {
  const rows = headers.slice(0, SHOWN_MAX)
  return [['request', line], ...rows].map(([name, value]) => [short(name!), short(value!)])
}

function relayRows(
  { visitor }: Request,
  sight: RelaySight | undefined,
): [string, string][] {
  if (!sight) return [['nothing', 'this connection did not come through the relay']]
  return [
    ['server name', sight.serverName],
    ['your address', visitor ? `${visitor.address} port ${visitor.port}` : 'unknown'],
    ['sealed bytes from you', `${sight.fromVisitorBytes}`],
    ['sealed bytes to you', `${sight.toVisitorBytes}`],
    ['carried over', `a ${sight.route}`],
  ]
}

function short(value: string): string {
  const clean = printable(value)
  return clean.length > SHOWN_LENGTH_MAX ? `${clean.slice(0, SHOWN_LENGTH_MAX)}…` : clean
}

function plain(request: Request, sight: RelaySight | undefined): string {
  const rows = (list: [string, string][]): string =>
    list.map(([name, value]) => `  ${name}: ${value}\n`).join('')
  return [
    'This page came through a relay that cannot read it.\n\n',
    'What the agent saw:\n',
    rows(agentRows(request)),
    '\nWhat the relay saw of this very connection:\n',
    rows(relayRows(request, sight)),
    '  and nothing else: it has no key of it\n',
  ].join('')
}

const STYLE = `:root{color-scheme:light dark;--line:#8884;--dim:#777}
body{font:16px/1.5 system-ui,sans-serif;max-width:70em;margin:0 auto;padding:8vh 1.2em}
h1{font-size:1.7em;margin:0 0 .2em}h2{font-size:1.05em;margin:0 0 .6em}p{margin:.3em 0 2em;color:var(--dim)}
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24em),1fr));gap:1.5em;align-items:start}
section{border:1px solid var(--line);border-radius:10px;padding:1.2em}
table{border-collapse:collapse;width:100%}td{padding:.25em 0;vertical-align:top;border-top:1px solid var(--line)}
td:first-child{color:var(--dim);padding-right:1em;white-space:nowrap}td:last-child{word-break:break-word;font-family:ui-monospace,monospace;font-size:.9em}
section>p{margin:1em 0 0}`

function html(request: Request, sight: RelaySight | undefined): string {
  const rows = (list: [string, string][]): string =>
    list.map(([name, value]) => `<tr><td>${escape(name)}<td>${escape(value)}\n`).join('')
  return `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>sotto: it works</title>
<style>${STYLE}</style>
<h1>This page came through a relay that cannot read it</h1>
<p>TLS ended in the agent, beside this page. The relay moved sealed bytes.</p>
<main>
<section><h2>What the agent saw</h2><table>
${rows(agentRows(request))}</table></section>
<section><h2>What the relay saw of this very connection</h2><table>
${rows(relayRows(request, sight))}</table>
<p>And nothing else: it has no key of it.</p></section>
</main>
</html>
`
}

function escape(words: string): string {
  return words.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`)
}
