/**
 * A relay behind a proxy that forwards TCP: each connection of a trusted address begins with a PROXY
 * protocol header, and from then on is the visitor's own. Everybody else is turned away: who could
 * come past the proxy could also say to be anybody, and a header that is left out would hide one.
 */
import { isWithin } from '../core/address.ts'
import type { Network } from '../core/address.ts'
import { concat, EMPTY } from '../core/bytes.ts'
import type { Clock, Timer } from '../core/clock.ts'
import { readProxyHeader } from '../core/proxy_protocol.ts'
import type { Conn, ConnHandler, Sent } from '../core/socket.ts'

/** From accept to the whole header, which a proxy sends with its first segment. */
export const HEADER_MS_MAX = 3000
/** Connections whose header is awaited; beyond, the oldest is dropped. */
const WAITING_MAX = 8192
/** RFC 4291 §2.5.2: "indicates the absence of an address". Never loopback, whoever forwarded it. */
export const NO_ADDRESS = '::'

export interface BehindProxyPorts {
  clock: Clock
  trusted: readonly Network[]
  /** A connection under its visitor's address. */
  accept(conn: Conn): void
  refused(reason: string, fields: { address: string }): void
}

/** Takes the connections of the public port. */
export class BehindProxy {
  readonly #ports: BehindProxyPorts
  readonly #waiting = new Set<Awaiting>()

  constructor(ports: BehindProxyPorts) {
    this.#ports = ports
  }

  accept(conn: Conn): void {
    const { trusted, refused } = this.#ports
    if (!isWithin(conn.remoteAddress, trusted)) {
      refused('untrusted-proxy', { address: conn.remoteAddress })
      return conn.abort()
    }
    if (this.#waiting.size >= WAITING_MAX) {
      for (const oldest of this.#waiting) {
        this.#refuse(oldest, 'crowded')
        break
      }
    }
    const awaiting: Awaiting = { conn, held: EMPTY, late: undefined }
    awaiting.late = this.#ports.clock.after(
      HEADER_MS_MAX,
      () => this.#refuse(awaiting, 'too-slow'),
    )
    this.#waiting.add(awaiting)
    conn.handle({
      data: (bytes) => this.#received(awaiting, bytes),
      end: () => this.#refuse(awaiting, 'ended-early'),
      closed: () => this.#forget(awaiting),
    })
  }

  close(): void {
    for (const awaiting of [...this.#waiting]) {
      this.#forget(awaiting)
      awaiting.conn.abort()
    }
  }

  #received(awaiting: Awaiting, bytes: Uint8Array): void {
    if (!this.#waiting.has(awaiting)) return
    awaiting.held = awaiting.held.length === 0 ? bytes : concat(awaiting.held, bytes)
    const { conn, held } = awaiting
    const verdict = readProxyHeader(held)
    if (verdict.kind === 'more') return
    if (verdict.kind === 'refuse') return this.#refuse(awaiting, `proxy-${verdict.reason}`)
    this.#forget(awaiting)
    conn.hold()
    const rest = held.subarray(verdict.bytes)
    const from = verdict.kind === 'visitor'
      ? verdict
      : verdict.kind === 'proxy'
      ? { address: conn.remoteAddress, port: conn.remotePort }
      : { address: NO_ADDRESS, port: 0 }
    this.#ports.accept(new ForwardedConn(conn, { ...from, rest }))
  }

  #forget(awaiting: Awaiting): void {
    awaiting.late?.cancel()
    this.#waiting.delete(awaiting)
  }

  #refuse(awaiting: Awaiting, reason: string): void {
    if (!this.#waiting.has(awaiting)) return
    this.#forget(awaiting)
    this.#ports.refused(reason, { address: awaiting.conn.remoteAddress })
    awaiting.conn.abort()
  }
}

interface Awaiting {
  readonly conn: Conn
  held: Uint8Array
  late: Timer | undefined
}

/** A connection behind its header: the visitor's address, and first what came with the header. */
class ForwardedConn implements Conn {
  readonly remoteAddress: string
  readonly remotePort: number
  readonly #conn: Conn
  #rest: Uint8Array | undefined
  #handler: ConnHandler | undefined
  #told = false

  constructor(
    conn: Conn,
    { address, port, rest }: { address: string; port: number; rest: Uint8Array },
  ) {
    this.#conn = conn
    this.remoteAddress = address
    this.remotePort = port
    this.#rest = rest.length > 0 ? rest : undefined
  }

  handle(handler: ConnHandler): void {
    // The connection itself is on hold until the rest was told: order is kept, and all else waits.
    this.#handler = this.#rest ? handler : undefined
    if (!this.#rest) return this.#conn.handle(handler)
    if (this.#told) return
    this.#told = true
    queueMicrotask(() => this.#tell())
  }

  #tell(): void {
    this.#told = false
    const rest = this.#rest
    if (!rest || !this.#handler) return
    this.#rest = undefined
    const teller = this.#handler
    teller.data(rest)
    // Whoever took it over meanwhile, or put it on hold, has said so to the connection itself.
    if (this.#handler === teller) this.#conn.handle(teller)
    this.#handler = undefined
  }

  hold(): void {
    this.#handler = undefined
    this.#conn.hold()
  }

  write(bytes: Uint8Array): Sent {
    return this.#conn.write(bytes)
  }

  end(): void {
    this.#conn.end()
  }

  abort(): void {
    this.#conn.abort()
  }

  pause(): void {
    this.#conn.pause()
  }

  resume(): void {
    this.#conn.resume()
  }

  buffered(): number {
    return this.#conn.buffered()
  }
}
