/**
 * Bulk links, agent side: a small pool of idle TCP connections to the relay's public port, each
 * claimed with a one-time ticket, so that a visitor is spliced without framing. The pool grows when
 * it ran dry and shrinks when it is calm; when a visitor finds none, a stream carries it at once. Beside
 * a shared link (agent/shared_bulk.ts) it stays as it is: that link is where a rush goes.
 */
import { fromHex } from '../core/bytes.ts'
import type { Clock, Timer } from '../core/clock.ts'
import { concat, EMPTY } from '../core/bytes.ts'
import type { Crypto } from '../core/crypto.ts'
import type { Visit } from '../core/frame.ts'
import type { Conn } from '../core/socket.ts'
import { ANSWER, encodeTicket, readPrelude } from '../core/ticket.ts'
import type { TicketClass } from '../core/ticket.ts'
import type { Up } from './uplink.ts'

/** Most idle connections of one class, however great the rush. */
const IDLE_MAX = 128
/** Without a visitor for so long the pool halves, down to what the relay asked for. */
const CALM_MS = 120_000
/** A connection that cannot be made waits, doubling from here. */
const RETRY_MS_MIN = 200
const RETRY_MS_MAX = 10_000
/** Connections being opened at once. */
const OPENING_MAX = 32

/** A visitor that came over a bulk link; answer within 5 s. */
export interface Offer {
  visit: Visit
  conn: Conn
  /** What followed the prelude in the same read. */
  first: Uint8Array
  /** Takes it: from here the connection belongs to the caller, whose handler gets the rest. */
  take(): void
  refuse(): void
}

export interface BulkPorts {
  clock: Clock
  crypto: Crypto
  /** Opens a connection to the relay's public port; in TLS where `kind` is clear and it is not loopback. */
  connect(kind: TicketClass): Promise<Conn>
  offered(offer: Offer): void
}

/** The pool of one class on one home link; it ends with that link, whose key its tickets are under. */
export class BulkPool {
  readonly #ports: BulkPorts
  readonly #up: Up
  readonly #kind: TicketClass
  readonly #linkId: Uint8Array
  readonly #count: () => number
  readonly #grows: boolean
  readonly #idle = new Set<Conn>()
  #opening = 0
  #target: number
  #closed = false
  #retry: Timer | undefined
  #retryMs = RETRY_MS_MIN
  #calm: Timer | undefined
  #lastUseMs: number

  /** `count` numbers the tickets of the link, for all of its pools. */
  constructor(
    ports: BulkPorts,
    of: { up: Up; kind: TicketClass; count: () => number; grows: boolean },
  ) {
    this.#ports = ports
    this.#up = of.up
    this.#grows = of.grows
    this.#kind = of.kind
    this.#count = of.count
    this.#linkId = fromHex(of.up.welcome.link)
    this.#target = Math.min(of.up.welcome.bulk, IDLE_MAX)
    this.#lastUseMs = ports.clock.monotonic()
  }

  get kind(): TicketClass {
    return this.#kind
  }

  get idle(): number {
    return this.#idle.size
  }

  start(): void {
    this.#fill()
    if (this.#grows) this.#rest()
  }

  close(): void {
    this.#closed = true
    this.#retry?.cancel()
    this.#calm?.cancel()
    for (const conn of this.#idle) conn.abort()
    this.#idle.clear()
  }

  /** A visitor came over a stream because no link was idle: the next rush finds one more. */
  overflowed(): void {
    this.#lastUseMs = this.#ports.clock.monotonic()
    if (this.#grows) this.#target = Math.min(this.#target + 1, IDLE_MAX)
    this.#fill()
  }

  #fill(): void {
    if (this.#retry) return
    while (
      !this.#closed && this.#opening < OPENING_MAX && this.#idle.size + this.#opening < this.#target
    ) {
      this.#opening++
      this.#ports.connect(this.#kind).then(
        (conn) => this.#opened(conn),
        () => this.#failed(),
      )
    }
  }

  #failed(): void {
    this.#opening--
    if (this.#closed || this.#retry) return
    this.#retry = this.#ports.clock.after(this.#retryMs, () => {
      this.#retry = undefined
      this.#fill()
    })
    this.#retryMs = Math.min(this.#retryMs * 2, RETRY_MS_MAX)
  }

  #opened(conn: Conn): void {
    this.#opening--
    if (this.#closed || this.#idle.size >= this.#target) return conn.abort()
    const counter = this.#count()
    const { crypto } = this.#ports
    const { bulkKey } = this.#up
    this.#idle.add(conn)
    const context = { crypto, linkId: this.#linkId, counter, bulkKey }
    let held = EMPTY
    const openedMs = this.#ports.clock.monotonic()
    const gone = (): void => {
      if (!this.#idle.delete(conn)) return
      conn.abort()
      // One that died at once would be remade at once, for ever: it counts as a failure.
      const young = this.#ports.clock.monotonic() - openedMs < 1000
      if (young) {
        this.#opening++
        this.#failed()
      } else this.#fill()
    }
    conn.handle({
      data: (bytes) => {
        held = held.length === 0 ? bytes : concat(held, bytes)
        let prelude
        try {
          prelude = readPrelude(held, context)
        } catch {
          return gone()
        }
        if (prelude === 'more') return
        this.#retryMs = RETRY_MS_MIN
        this.#used(conn)
        this.#offer(conn, { visit: prelude.visit, first: held.subarray(prelude.bytes) })
      },
      end: gone,
      closed: gone,
    })
    conn.write(encodeTicket(crypto, { linkId: this.#linkId, counter, class: this.#kind }, bulkKey))
  }

  #used(conn: Conn): void {
    this.#idle.delete(conn)
    this.#lastUseMs = this.#ports.clock.monotonic()
    if (this.#grows && this.#idle.size === 0) this.#target = Math.min(this.#target * 2, IDLE_MAX)
    this.#fill()
  }

  #offer(conn: Conn, { visit, first }: { visit: Visit; first: Uint8Array }): void {
    // Nothing more is told until somebody owns the connection.
    conn.hold()
    this.#ports.offered({
      visit,
      conn,
      first,
      take: () => void conn.write(Uint8Array.of(ANSWER.taken)),
      refuse: () => {
        conn.handle({ data() {}, end() {}, closed() {} })
        conn.write(Uint8Array.of(ANSWER.refused))
        conn.end()
      },
    })
  }

  #rest(): void {
    this.#calm = this.#ports.clock.after(CALM_MS, () => {
      const base = Math.min(this.#up.welcome.bulk, IDLE_MAX)
      if (this.#ports.clock.monotonic() - this.#lastUseMs >= CALM_MS && this.#target > base) {
        this.#target = Math.max(base, this.#target >> 1)
        for (const conn of this.#idle) {
          if (this.#idle.size <= this.#target) break
          this.#idle.delete(conn)
          conn.abort()
        }
      }
      this.#rest()
    })
  }
}
