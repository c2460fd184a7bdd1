/**
 * The HTTP-aware path of a tunnel, for upstreams that look at the Host header (dev servers refuse names
 * that they do not know). Requests are read, their Host is replaced, the visitor is named in headers
 * that nobody can forge, and bodies stream both ways; upgrades pass.
 */
import { asTunnelError } from '../core/errors.ts'
import type { TunnelError } from '../core/errors.ts'
import { splice } from '../core/socket.ts'
import {
  parseAddress,
  unavailableBody,
  unavailableHeaders,
  upstreamAuthority,
  upstreamTarget,
} from './forward.ts'
import { reachUpstream } from './forward.ts'
import type { Endpoint, Upstream } from './forward.ts'
import type {
  HeaderList,
  HttpIncoming,
  HttpOutgoing,
  HttpRequestOptions,
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

  constructor(world: World, options: HttpPathOptions) {
    this.#world = world
    this.#options = options
    this.#server = world.http.server({
      request: (request, response) => void this.#forward(request, response),
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

  #request(
    request: HttpIncoming,
    headers: HeaderList,
  ): Omit<HttpRequestOptions, 'target'> {
    const { upstream } = this.#options
    return {
      method: request.method,
      path: request.target,
      headers,
      ...(upstream.kind === 'tls'
        ? { tls: { servername: upstream.host, verify: upstream.verify } }
        : {}),
    }
  }

  /** The other family of `localhost` is looked for here, before the exchange: a body is sent only once. */
  async #prepare(): Promise<void> {
    const { upstream } = this.#options
    if (upstream.kind === 'unix' || upstream.host !== 'localhost') return
    await reachUpstream(upstream, async (target) => {
      const conn = await this.#world.net.connect(target)
      conn.handle({ data() {}, end() {}, closed() {} })
      conn.abort()
    })
  }

  #forward(request: HttpIncoming, response: HttpOutgoing, again = true): void {
    const { upstream } = this.#options
    const rules = rulesOf(request, this.#options)
    let answered = false
    let sending: HttpSending | undefined
    const options = this.#request(request, requestHeaders(request, rules))
    sending = this.#world.http.request({ ...options, target: upstreamTarget(upstream) }, {
      info: (status, headers) => {
        if (!answered) response.info(status, headers)
      },
      response: (status, headers, body, reason) => {
        answered = true
        response.head(status, responseHeaders(headers, rules), reason)
        body.handle({
          data(bytes) {
            if (!response.write(bytes)) body.pause()
          },
          end: (trailers) => response.end(trailers),
          aborted: () => response.abort(),
        })
        response.onDrain(() => body.resume())
        body.resume()
      },
      drain: () => request.resume(),
      failed: (error) => {
        if (answered) return response.abort()
        const trouble = asTunnelError(error, 'upstream/unreachable')
        if (again && trouble.code === 'net/refused') {
          // Nothing was sent yet. Where `localhost` listens on the other family, that is found now.
          request.pause()
          this.#prepare().then(
            () => this.#forward(request, response, false),
            () => this.#unavailable(response, trouble),
          )
          return
        }
        answered = true
        this.#unavailable(response, trouble)
      },
    })
    response.onClose(() => sending?.abort())
    const body = sending
    request.handle({
      data(bytes) {
        if (!body.write(bytes)) request.pause()
      },
      end: (trailers) => body.end(trailers),
      aborted: () => body.abort(),
    })
  }

  #unavailable(response: HttpOutgoing, trouble: TunnelError): void {
    this.#options.onTrouble?.(trouble)
    const page = unavailableBody(trouble)
    response.head(502, [...unavailableHeaders(page), ['Connection', 'close']])
    response.write(page)
    response.end()
  }

  #upgrade(request: HttpIncoming, tunnel: HttpUpgrade): void {
    const rules = rulesOf(request, this.#options)
    const headers = requestHeaders(request, rules)
    for (const name of ['connection', 'upgrade']) {
      const value = valueOf(request.headers, name)
      if (value !== undefined) headers.push([name === 'upgrade' ? 'Upgrade' : 'Connection', value])
    }
    void headers
    void tunnel
    void splice
  }
}
