/**
 * From a tunnel to what it leads to. The words a person types for an upstream, the connection to it,
 * and the page that a visitor gets when it is down.
 */
import { parseAddress } from '../core/address.ts'
import { concat, utf8 } from '../core/bytes.ts'
import { asTunnelError, TunnelError } from '../core/errors.ts'
import type { Conn } from '../core/socket.ts'
import type { Target, World } from './world.ts'

const CONNECT_MS = 10_000
/** How long an upstream may take to answer the HTTP/2 preface. */
const PROBE_MS = 2_000
const PORT_HTTP = 80
const PORT_HTTPS = 443
const HINT = 'Say it as 3000, host:port, http://host:port, https://host[:port] or unix:/path'

/** Where a tunnel leads to; `text` is what people read. */
export type Upstream =
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number; readonly text: string }
  | {
    readonly kind: 'tls'
    readonly host: string
    readonly port: number
    /** False where the traffic stays on this machine, or the person said so. */
    readonly verify: boolean
    readonly text: string
  }
  | { readonly kind: 'unix'; readonly path: string; readonly text: string }

/**
 * `3000`, `host:port`, `[::1]:port`, `http://…`, `https://…`, `https+insecure://…`, `unix:/path`.
 * Throws `upstream/format`.
 */
export function parseUpstream(words: string): Upstream {
  const text = words.trim()
  if (text === '') throw wrong(text, 'nothing')
  if (/^\d+$/.test(text)) {
    const port = portOf(text, text)
    return { kind: 'tcp', host: 'localhost', port, text: `http://localhost:${port}` }
  }
  if (/^unix:/i.test(text)) return parseUnix(text)
  const scheme = /^([a-z][a-z0-9+.-]*):\/\//i.exec(text)?.[1]?.toLowerCase()
  if (scheme === undefined) {
    const { host, port } = hostAndPort(text, text)
    if (port === undefined) throw wrong(text, 'no port')
    return { kind: 'tcp', host, port, text: `${host}:${port}` }
  }
  const rest = text.slice(text.indexOf('://') + 3)
  const [authority, ...path] = rest.split('/')
  if (path.join('').length > 0 || /[?#@]/.test(rest)) {
    throw wrong(text, 'more than a host and a port')
  }
  const { host, port } = hostAndPort(authority!, text)
  if (scheme === 'http' || scheme === 'tcp') {
    if (scheme === 'tcp' && port === undefined) throw wrong(text, 'no port')
    const at = port ?? PORT_HTTP
    return { kind: 'tcp', host, port: at, text: `${scheme}://${host}:${at}` }
  }
  if (scheme === 'https' || scheme === 'https+insecure') {
    const at = port ?? PORT_HTTPS
    const verify = scheme === 'https' && !isLoopback(host)
    return { kind: 'tls', host, port: at, verify, text: `https://${host}:${at}` }
  }
  throw wrong(text, `the scheme ${scheme}`)
}

function parseUnix(text: string): Upstream {
  const path = text.slice('unix:'.length).replace(/^\/\/(?=\/)/, '')
  if (!path.startsWith('/') || path.includes('\0')) {
    throw wrong(text, 'a path that is not absolute')
  }
  return { kind: 'unix', path, text: `unix:${path}` }
}

function hostAndPort(authority: string, text: string): { host: string; port: number | undefined } {
  const parts = /^(\[[0-9a-fA-F:.]+\]|[^:[\]/?#@\s]+)(?::(\d+))?$/.exec(authority)
  if (!parts) throw wrong(text, 'no host that makes sense')
  return {
    host: parts[1]!.toLowerCase(),
    port: parts[2] === undefined ? undefined : portOf(parts[2], text),
  }
}

function portOf(digits: string, text: string): number {
  const port = Number(digits)
  if (digits.length > 5 || port < 1 || port > 65_535) {
    throw wrong(text, `port ${digits}, outside 1 to 65535`)
  }
  return port
}

function wrong(text: string, found: string): TunnelError {
  return new TunnelError(
    'upstream/format',
    `Cannot read upstream "${text}": found ${found}, expected a port or an address`,
    { hint: HINT },
  )
}

/** True for this machine's own addresses. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host.endsWith('.localhost') || host === '[::1]' ||
    /^127\.\d+\.\d+\.\d+$/.test(host)
}

/** What TLS is told of a host; an address cannot be a server name (RFC 6066 §3). */
export function serverName(host: string): string {
  return parseAddress(host.replace(/^\[|\]$/g, '')) ? '' : host
}

/** `host:port` as a Host header says it: the port is left out where it is the scheme's own. */
export function upstreamAuthority(upstream: Upstream): string {
  if (upstream.kind === 'unix') return 'localhost'
  const own = upstream.kind === 'tls' ? PORT_HTTPS : PORT_HTTP
  return upstream.port === own ? upstream.host : `${upstream.host}:${upstream.port}`
}

/** `localhost` may be either family, and a server may listen on one alone: the one that worked is kept. */
const families = new WeakMap<Upstream, string>()
const FAMILIES = ['127.0.0.1', '[::1]']

/** Where to connect to. For `localhost` that is the address that answered last. */
export function upstreamTarget(upstream: Upstream): Target {
  if (upstream.kind === 'unix') return { path: upstream.path }
  const { host, port } = upstream
  return { host: host === 'localhost' ? families.get(upstream) ?? FAMILIES[0]! : host, port }
}

/** Tries the other family of `localhost` when the first refuses; anything else is tried once. */
export async function reachUpstream<T>(
  upstream: Upstream,
  open: (target: Target) => Promise<T>,
): Promise<T> {
  const target = upstreamTarget(upstream)
  try {
    return await open(target)
  } catch (error) {
    const refused = asTunnelError(error, 'upstream/failed').code === 'net/refused'
    if (!refused || upstream.kind === 'unix' || upstream.host !== 'localhost') throw error
    const other = FAMILIES.find((address) => 'host' in target && address !== target.host)!
    const opened = await open({ host: other, port: upstream.port })
      // Both refuse: what is said about the first is what a person expects to read.
      .catch(() => Promise.reject(error))
    families.set(upstream, other)
    return opened
  }
}

export interface OpenUpstreamOptions {
  /** Asked of an upstream that speaks TLS. */
  alpn?: readonly string[]
  timeoutMs?: number
}

/** A plain connection to the upstream. Throws `net/…`, `tls/…`. */
export function openUpstream(
  world: Pick<World, 'net' | 'tls'>,
  upstream: Upstream,
  options: OpenUpstreamOptions = {},
): Promise<Conn> {
  const timeoutMs = options.timeoutMs ?? CONNECT_MS
  return reachUpstream<Conn>(upstream, (target) => {
    if (upstream.kind !== 'tls') return world.net.connect({ ...target, timeoutMs })
    return world.tls.connect({
      target,
      servername: upstream.host,
      timeoutMs,
      ...(options.alpn ? { alpn: options.alpn } : {}),
      ...(upstream.verify ? {} : { verify: () => {} }),
    })
  })
}

/** True when the upstream speaks HTTP/2: by ALPN over TLS, else by its answer to the preface (RFC 9113 §3.3). */
export async function speaksH2(
  world: Pick<World, 'net' | 'tls' | 'clock'>,
  upstream: Upstream,
): Promise<boolean> {
  let conn: Conn
  try {
    conn = await openUpstream(world, upstream, {
      alpn: ['h2', 'http/1.1'],
      timeoutMs: PROBE_MS,
    })
  } catch {
    return false
  }
  if (upstream.kind === 'tls') {
    conn.abort()
    return 'alpn' in conn && conn.alpn === 'h2'
  }
  return await new Promise((resolve) => {
    let head: Uint8Array = new Uint8Array(0)
    const timer = world.clock.after(PROBE_MS, () => answer(false))
    function answer(speaks: boolean): void {
      timer.cancel()
      resolve(speaks)
      conn.abort()
    }
    conn.handle({
      data(bytes) {
        head = concat(head, bytes)
        // A server's first frame is SETTINGS on stream 0: length 3, type 4, flags, stream id.
        if (head.length < 9) return
        answer(head[3] === 4 && head.subarray(5, 9).every((byte) => byte === 0))
      },
      end: () => answer(false),
      closed: () => answer(false),
    })
    conn.write(
      concat(utf8('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), new Uint8Array([0, 0, 0, 4, 0, 0, 0, 0, 0])),
    )
  })
}

/** The page that says why there is nothing; HTML without scripts or anything from elsewhere. */
export function unavailableBody(error: TunnelError): Uint8Array {
  return utf8(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>502: the service does not answer</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:34em;margin:15vh auto;padding:0 1em}
code{word-break:break-word}</style>
<h1>The service does not answer</h1>
<p>The tunnel works, but what it leads to could not be reached:</p>
<p><code>${escapeHtml(error.message)}</code></p>
<p>If it is yours, start it and load this page again.</p>
</html>
`)
}

/** A whole HTTP/1.1 response with that page; the connection ends with it. */
export function unavailablePage(error: TunnelError): Uint8Array {
  const body = unavailableBody(error)
  const lines = [
    'HTTP/1.1 502 Bad Gateway',
    ...unavailableHeaders(body).map(([name, value]) => `${name}: ${value}`),
    'Connection: close',
  ]
  return concat(utf8(`${lines.join('\r\n')}\r\n\r\n`), body)
}

export function unavailableHeaders(body: Uint8Array): [name: string, value: string][] {
  return [
    ['Content-Type', 'text/html; charset=utf-8'],
    ['Content-Length', String(body.length)],
    ['Cache-Control', 'no-store'],
    ['X-Content-Type-Options', 'nosniff'],
    ['Content-Security-Policy', "default-src 'none'; style-src 'unsafe-inline'"],
  ]
}

function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`)
}
