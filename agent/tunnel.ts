/**
 * A tunnel: one endpoint of this process and what it leads to. Visitors come over bulk links and
 * streams alike, as a `Conn` with its first bytes; TLS ends here, and the upstream gets plain bytes.
 * What the upstream cannot take is said to the visitor, never left hanging.
 */
import type { Visit } from '../core/frame.ts'
import { RESET } from '../core/frame.ts'
import { asTunnelError, TunnelError } from '../core/errors.ts'
import { Stream } from '../core/mux.ts'
import { proxyHeader } from '../core/proxy_protocol.ts'
import { splice } from '../core/socket.ts'
import type { Conn } from '../core/socket.ts'
import { CHALLENGE_ALPN, challengedName, lastWords, peekHello } from './acme_challenge.ts'
import { serveExchange } from './exchange.ts'
import { openUpstream, unavailablePage } from './forward.ts'
import type { Upstream } from './forward.ts'
import { HttpPath } from './http_path.ts'
import type { HostHeader } from './http_path.ts'
import type { Offer } from './bulk.ts'
import type { TlsConn, TlsIdentity, World } from './world.ts'

/** Visitors of one tunnel at once. */
const VISITORS_MAX = 512

export type TunnelKind = 'http' | 'tcp' | 'udp'
export type TunnelMode = 'verified' | 'inspectable' | 'raw'

export interface TunnelOptions {
  name: string
  kind: TunnelKind
  mode: TunnelMode
  /** Raw: the public port asked for, 0 for any. */
  port: number
  upstream: Upstream
  /** The certificate to serve now; asked for each visitor, since files may change. */
  identity?: (serverName?: string) => TlsIdentity
  /** A CA asks for `acme-tls/1` at this name: what answers it (agent/acme_challenge.ts). */
  challenge?: (serverName: string) => TlsIdentity | undefined
  /** Whether a visitor's hello must be read before TLS begins: a challenge is open, or names differ. */
  peeks?: () => boolean
  /** Offered to visitors, in order; `h2` only where the upstream speaks it. */
  alpn?: readonly string[]
  proxyProtocol?: 'v1' | 'v2'
  hostHeader?: HostHeader
  /** Private endpoint: who may come in, by SHA-256 of the client certificate. Absent: anybody. */
  admits?: (fingerprint: Uint8Array) => string | undefined
  /** Somebody was refused; `fingerprint` is absent when they showed no certificate. */
  onKnock?: (knock: { fingerprint: Uint8Array | undefined; address: string }) => void
  onTrouble?: (error: TunnelError) => void
  onVisitor?: (visitor: { address: string; port: number; endpoint: string }) => void
}

/** Where the endpoint can be reached, as the relay answered. */
export interface Place {
  name: string
  host: string
  port: number
  url: string | undefined
}

export class Tunnel {
  readonly options: TunnelOptions
  place: Place | undefined
  total = 0
  readonly #world: World
  readonly #live = new Map<Conn, { forth: number; back: number }>()
  /** Bulk links that visitors are on. */
  readonly #taken = new Set<Conn>()
  #visitors = 0
  #bytesIn = 0
  #bytesOut = 0
  #httpPath: HttpPath | undefined

  constructor(world: World, options: TunnelOptions) {
    this.#world = world
    this.options = options
    if (options.hostHeader !== undefined) {
      this.#httpPath = new HttpPath(world, {
        upstream: options.upstream,
        hostHeader: options.hostHeader,
        ...(options.onTrouble ? { onTrouble: options.onTrouble } : {}),
      })
    }
  }

  /** What is asked of the relay; docs/protocol.md, "Welcome and requests". */
  claim(): object {
    const { name, kind, mode, port } = this.options
    return { do: 'claim', name, kind, mode, ...(mode === 'raw' ? { port } : {}) }
  }

  claimed(reply: Record<string, unknown>): void {
    this.place = {
      name: String(reply['name']),
      host: String(reply['host']),
      port: Number(reply['port']),
      url: typeof reply['url'] === 'string' ? reply['url'] : undefined,
    }
  }

  get counts(): { visitors: number; total: number; bytesIn: number; bytesOut: number } {
    let bytesIn = this.#bytesIn
    let bytesOut = this.#bytesOut
    for (const bytes of this.#live.values()) {
      bytesIn += bytes.forth
      bytesOut += bytes.back
    }
    return { visitors: this.#visitors, total: this.total, bytesIn, bytesOut }
  }

  close(): void {
    for (const conn of [...this.#live.keys()]) conn.abort()
    this.#httpPath?.close()
  }

  /** The way to the relay is dead and nobody will say so: visitors on bulk links end here. */
  cutBulk(): void {
    for (const conn of this.#taken) conn.abort()
    this.#taken.clear()
  }

  /** A visitor over a bulk link. */
  offered(offer: Offer): void {
    const kind = offer.visit.kind
    if (this.#visitors >= VISITORS_MAX || !this.#takes(kind) || kind === 'http' || kind === 'udp') {
      return offer.refuse()
    }
    const { conn, visit, first } = offer
    offer.take()
    this.#taken.add(conn)
    void this.#serve(conn, { visit, first }).then(() => this.#taken.delete(conn))
  }

  /** A visitor over a stream. */
  opened(stream: Stream): void {
    const { visit } = stream
    if (this.#visitors >= VISITORS_MAX) return stream.reset(RESET.overload, 'too many visitors')
    if (!this.#takes(visit.kind)) return stream.reset(RESET.refused, 'not served in this mode')
    stream.accept()
    if (visit.kind === 'udp') void this.#flow(stream)
    else if (visit.kind === 'http') this.#exchange(stream)
    else void this.#serve(stream, { visit, first: new Uint8Array(0) })
  }

  /** A verified endpoint takes TLS alone: its name has no readable twin, whatever a relay asks for. */
  #takes(kind: Visit['kind']): boolean {
    const { mode, kind: own } = this.options
    if (mode === 'verified') return kind === 'tls' || kind === 'connect'
    if (mode === 'inspectable') return kind === 'http'
    return own === 'udp' ? kind === 'udp' : kind === 'raw'
  }

  async #serve(conn: Conn, { visit, first }: { visit: Visit; first: Uint8Array }): Promise<void> {
    this.#visitors++
    this.total++
    this.options.onVisitor?.({ address: visit.address, port: visit.port, endpoint: visit.endpoint })
    try {
      if (visit.kind === 'raw') await this.#forward(conn, { visit, first })
      else await this.#secure(conn, { visit, first })
    } catch {
      conn.abort()
    } finally {
      this.#visitors--
    }
  }

  async #secure(conn: Conn, { visit, first }: { visit: Visit; first: Uint8Array }): Promise<void> {
    const { identity, admits, onKnock, alpn } = this.options
    const { tls, crypto } = this.#world
    const opening = this.options.peeks?.() ? await this.#peek(conn, first) : { bytes: first }
    if (!opening) return
    let refused = false
    let shown: Uint8Array | undefined
    let ended: TlsConn
    try {
      ended = await tls.serve(conn, opening.bytes, {
        identity: identity!(opening.name),
        ...(alpn ? { alpn } : {}),
        ...(admits
          ? {
            admit: (certificate: Uint8Array | undefined): boolean => {
              shown = certificate && crypto.sha256(certificate)
              refused = shown === undefined || admits(shown) === undefined
              return !refused
            },
          }
          : {}),
      })
    } catch (error) {
      if (refused) onKnock?.({ fingerprint: shown, address: visit.address })
      else if (!/^tls\//.test(asTunnelError(error, 'tls/handshake').code)) throw error
      return
    }
    if (this.#httpPath) return await this.#httpPath.serve(ended, visit)
    await this.#forward(ended, { visit, first: new Uint8Array(0) })
  }

  /** The hello, and whom it is for; undefined when it was a CA's and has been answered. */
  async #peek(
    conn: Conn,
    first: Uint8Array,
  ): Promise<{ bytes: Uint8Array; name?: string } | undefined> {
    const { clock, tls } = this.#world
    const hello = await peekHello(conn, { first, clock })
    if (!hello) return undefined
    const { verdict, bytes } = hello
    const asked = challengedName(verdict)
    const answer = asked === undefined ? undefined : this.options.challenge?.(asked)
    if (answer) {
      const options = { identity: answer, alpn: [CHALLENGE_ALPN] }
      await lastWords(await tls.serve(conn, bytes, options), clock)
      return undefined
    }
    return verdict.kind === 'hello' ? { bytes, name: verdict.serverName } : { bytes }
  }

  async #forward(conn: Conn, { visit, first }: { visit: Visit; first: Uint8Array }): Promise<void> {
    const { upstream, kind, proxyProtocol, onTrouble } = this.options
    let target: Conn
    // Nothing is read from the visitor until there is somewhere to put it.
    conn.hold()
    try {
      const alpn = 'alpn' in conn ? (conn as TlsConn).alpn : false
      target = await openUpstream(this.#world, upstream, alpn === false ? {} : { alpn: [alpn] })
    } catch (error) {
      const trouble = asTunnelError(error, 'upstream/unreachable')
      onTrouble?.(trouble)
      if (kind === 'http' && 'alpn' in conn && (conn as TlsConn).alpn !== 'h2') {
        await this.#apologise(conn, unavailablePage(trouble))
      } else conn.abort()
      return
    }
    if (proxyProtocol) target.write(proxyHeader(proxyProtocol, visit, this.place?.port ?? 0))
    if (first.length > 0 && target.write(first) === 'lost') return conn.abort()
    await new Promise<void>((resolve) => {
      const bytes = splice(conn, target, (final) => {
        this.#live.delete(conn)
        this.#bytesIn += final.forth
        this.#bytesOut += final.back
        resolve()
      })
      bytes.forth += first.length
      this.#live.set(conn, bytes)
    })
  }

  /** One page and a half-close, once the visitor has said something; then what it still sends is let go. */
  #apologise(conn: Conn, page: Uint8Array): Promise<void> {
    return new Promise((resolve) => {
      let said = false
      const late = this.#world.clock.after(10_000, () => conn.abort())
      conn.handle({
        data: () => {
          if (said) return
          said = true
          conn.write(page)
          conn.end()
        },
        end: () => conn.end(),
        closed: () => {
          late.cancel()
          resolve()
        },
      })
    })
  }

  #exchange(stream: Stream): void {
    this.#visitors++
    this.total++
    const { upstream, onTrouble } = this.options
    const live = { forth: 0, back: 0 }
    this.#live.set(stream, live)
    serveExchange(stream, {
      world: this.#world,
      upstream,
      bytes: live,
      ...(onTrouble ? { onTrouble } : {}),
      done: () => {
        this.#visitors--
        this.#live.delete(stream)
        this.#bytesIn += live.forth
        this.#bytesOut += live.back
      },
    })
  }

  /** One visitor of a UDP port: a socket of its own towards the upstream, so that answers find back. */
  async #flow(stream: Stream): Promise<void> {
    const { upstream } = this.options
    const { net } = this.#world
    if (upstream.kind !== 'tcp') return stream.reset(RESET.unreachable, 'no UDP upstream')
    this.#visitors++
    this.total++
    let socket
    const early: Uint8Array[] = []
    stream.onPacket = (datagram) => void (early.length < 64 && early.push(datagram))
    try {
      socket = await net.udp({ host: upstream.host, port: upstream.port })
    } catch (error) {
      this.#visitors--
      this.options.onTrouble?.(asTunnelError(error, 'upstream/unreachable'))
      return stream.reset(RESET.unreachable, 'upstream')
    }
    const close = (): void => {
      this.#visitors--
      socket.close()
    }
    const send = (datagram: Uint8Array): void => {
      this.#bytesIn += datagram.length
      socket.send(datagram)
    }
    socket.handle({
      message: (datagram) => {
        this.#bytesOut += datagram.length
        stream.sendPacket(datagram)
      },
      // A refusal by the upstream ends the flow; the visitor's next packet makes a new one.
      closed: () => stream.reset(RESET.unreachable, 'upstream'),
    })
    stream.onPacket = send
    for (const datagram of early) send(datagram)
    stream.handle({ data: () => stream.reset(RESET.protocol), end() {}, closed: close })
  }
}
