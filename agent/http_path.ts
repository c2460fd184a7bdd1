/**
 * The HTTP-aware path of a tunnel, for upstreams that look at the Host header (dev servers refuse names
 * that they do not know). Requests are read, their Host is replaced, the visitor is named in headers
 * that nobody can forge, and bodies stream both ways; upgrades pass.
 */
import { asTunnelError } from '../core/errors.ts'
import type { TunnelError } from '../core/errors.ts'
import { splice } from '../core/socket.ts'
import { parseAddress } from '../core/address.ts'
import { concat } from '../core/bytes.ts'
import type { Endpoint } from '../core/proxy_protocol.ts'
import {
  reachUpstream,
  serverName,
  unavailableBody,
  unavailableHeaders,
  upstreamAuthority,
  upstreamTarget,
} from './forward.ts'
import type { Upstream } from './forward.ts'
import type {
  HeaderList,
  HttpIncoming,
  HttpOutgoing,
  HttpResponseHandler,
  HttpSending,
  HttpServer,
  HttpUpgrade,
  TlsConn,
  World,
} from './world.ts'

/** `rewrite` puts the upstream's own name in; anything else is the value itself. */
export type HostHeader = string

export interface HttpPathOptions {
  upstream: Upstream
  hostHeader: HostHeader
  /** The upstream could not be reached or broke off. */
  onTrouble?: (error: TunnelError) => void
}

/** Most of an upstream's refusal to upgrade that is passed on. */
const REFUSAL_BYTES_MAX = 65_536

/** RFC 9110 §7.6.1, and what never leaves one connection in practice. */
const HOP_BY_HOP: ReadonlySet<string> = new Set([
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'transfer-encoding',
  'upgrade',
  'expect',
])
/** Only this end may say these. */
const OURS: ReadonlySet<string> = new Set([
  'forwarded',
  'x-forwarded-for',
  'x-forwarded-host',
  'x-forwarded-port',
  'x-forwarded-proto',
  'x-forwarded-server',
  'x-real-ip',
])

export class HttpPath {
  readonly #world: World
  readonly #options: HttpPathOptions
  readonly #server: HttpServer
  /** Set while it is known at which address `localhost` answers. */
  #reached: Promise<void> | undefined

  constructor(world: World, options: HttpPathOptions) {
    this.#world = world
    this.#options = options
    this.#server = world.http.server({
      request: (request, response) => void this.#request(request, response),
      upgrade: (request, tunnel) => void this.#upgrade(request, tunnel),
    })
  }

  /** Serves one connection; resolves when it is closed. */
  serve(conn: TlsConn, visitor: Endpoint): Promise<void> {
    return this.#server.accept(conn, visitor)
  }

  close(): void {
    this.#server.close()
  }

  /** `localhost` may mean either family. It is settled before an exchange, since a body is sent only once. */
  #reach(): Promise<void> {
    const { upstream } = this.#options
    if (upstream.kind === 'unix' || upstream.host !== 'localhost') return Promise.resolve()
    this.#reached ??= reachUpstream(upstream, async (target) => {
      const conn = await this.#world.net.connect(target)
      conn.handle({ data() {}, end() {}, closed() {} })
      conn.abort()
    })
    return this.#reached
  }

  async #request(request: HttpIncoming, response: HttpOutgoing): Promise<void> {
    try {
      await this.#reach()
    } catch (error) {
      return this.#unavailable(response, error)
    }
    const rules = rulesOf(request, this.#options)
    let answered = false
    const sending = this.#send(request, { headers: requestHeaders(request.headers, rules) }, {
      info(status, headers) {
        if (!answered) response.info(status, headers)
      },
      response(status, headers, body, reason) {
        answered = true
        response.head(status, responseHeaders(headers, rules), reason)
        response.onDrain(() => body.resume())
        body.handle({
          data(bytes) {
            if (!response.write(bytes)) body.pause()
          },
          end: (trailers) => response.end(trailers),
          aborted: () => response.abort(),
        })
        body.resume()
      },
      drain: () => request.resume(),
      failed: (error) => {
        if (answered) response.abort()
        else this.#unavailable(response, error)
      },
    })
    response.onClose(() => sending.abort())
    request.handle({
      data(bytes) {
        if (!sending.write(bytes)) request.pause()
      },
      end: (trailers) => sending.end(trailers),
      aborted: () => sending.abort(),
    })
  }

  #send(
    request: HttpIncoming,
    { headers }: { headers: HeaderList },
    handler: HttpResponseHandler,
  ): HttpSending {
    const { upstream } = this.#options
    return this.#world.http.request({
      target: upstreamTarget(upstream),
      method: request.method,
      path: request.target,
      headers,
      ...(upstream.kind === 'tls'
        ? { tls: { servername: serverName(upstream.host), verify: upstream.verify } }
        : {}),
    }, handler)
  }

  #unavailable(response: HttpOutgoing, error: unknown): void {
    const page = unavailableBody(this.#trouble(error))
    response.head(502, [...unavailableHeaders(page), ['Connection', 'close']])
    response.write(page)
    response.end()
  }

  #trouble(error: unknown): TunnelError {
    this.#reached = undefined
    const trouble = asTunnelError(error, 'upstream/unreachable')
    this.#options.onTrouble?.(trouble)
    return trouble
  }

  /** WebSocket and the like: after 101 both directions are bytes. */
  async #upgrade(request: HttpIncoming, tunnel: HttpUpgrade): Promise<void> {
    const unavailable = (error: unknown): void => {
      const page = unavailableBody(this.#trouble(error))
      tunnel.respond(502, [...unavailableHeaders(page), ['Connection', 'close']], page)
    }
    try {
      await this.#reach()
    } catch (error) {
      return unavailable(error)
    }
    const rules = rulesOf(request, this.#options)
    const headers = [...requestHeaders(request.headers, rules), ...upgradeOf(request.headers)]
    const sending = this.#send(request, { headers }, {
      // The upstream would rather not: its answer is passed on, whole, and the connection ends.
      response(status, given, body) {
        const parts: Uint8Array[] = []
        let length = 0
        body.handle({
          data(bytes) {
            length += bytes.length
            if (length <= REFUSAL_BYTES_MAX) parts.push(bytes)
          },
          end() {
            const kept = responseHeaders(given, rules).filter(([name]) =>
              name.toLowerCase() !== 'content-length'
            )
            const page = concat(...parts)
            tunnel.respond(status, [
              ...kept,
              ['Content-Length', String(page.length)],
              ['Connection', 'close'],
            ], page)
          },
          aborted: () => unavailable(new Error('the upstream broke off')),
        })
        body.resume()
      },
      upgraded(given, conn) {
        const visitor = tunnel.respond(101, [
          ...responseHeaders(given, rules),
          ...upgradeOf(given),
        ])
        if (visitor) splice(visitor, conn)
        else conn.abort()
      },
      failed: unavailable,
    })
    tunnel.onClose(() => sending.abort())
    sending.end()
  }
}

interface Rules {
  /** What the upstream reads as Host. */
  host: string
  /** The origin that the visitor sees, and the one that the upstream believes in. */
  publicOrigin: string
  upstreamOrigin: string
  added: HeaderList
}

function rulesOf(request: HttpIncoming, options: HttpPathOptions): Rules {
  const { upstream, hostHeader } = options
  const publicHost = valueOf(request.headers, 'host') ?? ''
  const host = hostHeader === 'rewrite' ? upstreamAuthority(upstream) : hostHeader
  const { address } = request.visitor
  const added: HeaderList = [['X-Forwarded-Host', publicHost], ['X-Forwarded-Proto', 'https']]
  const known = parseAddress(address)
  if (known) added.push(['X-Forwarded-For', address])
  const who = !known ? 'unknown' : known.length === 4 ? address : `"[${address}]"`
  added.push(['Forwarded', `for=${who};host="${publicHost.replace(/["\\]/g, '')}";proto=https`])
  return {
    host,
    publicOrigin: `https://${publicHost}`,
    upstreamOrigin: `${upstream.kind === 'tls' ? 'https' : 'http'}://${host}`,
    added,
  }
}

/** What passes to the upstream: hop-by-hop fields and everything that names the visitor are dropped first. */
export function requestHeaders(headers: HeaderList, rules: Rules): HeaderList {
  const dropped = droppedOf(headers)
  const out: HeaderList = [['Host', rules.host]]
  for (const [name, value] of headers) {
    const lower = name.toLowerCase()
    if (lower === 'host' || OURS.has(lower) || dropped.has(lower)) continue
    // A page of this tunnel calls its own origin by the public name; the upstream knows itself by another.
    if (lower === 'origin' && value === rules.publicOrigin) out.push([name, rules.upstreamOrigin])
    else out.push([name, value])
  }
  const framing = headers.filter(([name]) => name.toLowerCase() === 'transfer-encoding')
  return [...out, ...framing, ...rules.added]
}

function responseHeaders(headers: HeaderList, rules: Rules): HeaderList {
  const dropped = droppedOf(headers)
  const out: HeaderList = []
  for (const [name, value] of headers) {
    const lower = name.toLowerCase()
    if (dropped.has(lower)) continue
    const own = lower === 'location' &&
      (value === rules.upstreamOrigin || value.startsWith(`${rules.upstreamOrigin}/`))
    out.push([name, own ? rules.publicOrigin + value.slice(rules.upstreamOrigin.length) : value])
  }
  return out
}

/** Hop-by-hop names, and those that this message's own Connection field names. */
function droppedOf(headers: HeaderList): Set<string> {
  const dropped = new Set(HOP_BY_HOP)
  for (const [name, value] of headers) {
    if (name.toLowerCase() !== 'connection') continue
    for (const token of value.split(',')) dropped.add(token.trim().toLowerCase())
  }
  return dropped
}

function upgradeOf(headers: HeaderList): HeaderList {
  const upgrade = valueOf(headers, 'upgrade')
  return upgrade === undefined ? [] : [['Upgrade', upgrade], ['Connection', 'Upgrade']]
}

function valueOf(headers: HeaderList, name: string): string | undefined {
  return headers.find(([given]) => given.toLowerCase() === name)?.[1]
}
