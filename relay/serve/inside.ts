/**
 * The way from the public port to the relay's own servers. The ingress has read the first bytes of
 * a connection, and no runtime takes a half-read socket into its HTTP server on equal terms, so the
 * connection is spliced to a listener on loopback; who is at the other end is remembered by the
 * local port of that splice. Measured on Bun: 2 KiB an idle link more than without.
 */
import { concat } from '../../core/bytes.ts'
import type { Clock, Timer } from '../../core/clock.ts'
import { splice } from '../../core/socket.ts'
import type { Conn } from '../../core/socket.ts'
import { readTicket, TICKET_BYTES } from '../../core/ticket.ts'
import type { Ticket } from '../../core/ticket.ts'

export const LOOPBACK = '127.0.0.1'
/** What links and requests may take to end once the relay goes down. */
export const GOODBYE_MS_MAX = 1000
/** A ticket inside TLS is awaited as long as one in clear. */
const TICKET_MS_MAX = 3000

/** From the ClientHello to a good ticket, for a connection that is to become a bulk link. */
const PROVE_MS_MAX = 10_000

export class Inside {
  readonly #connect: (port: number) => Promise<{ conn: Conn; localPort: number }>
  /** By the local port of the splice. */
  readonly #passages = new Map<number, Passage>()
  #whenEmpty: (() => void) | undefined

  /** `connect` opens a connection to a loopback port and says which local port it has. */
  constructor(connect: (port: number) => Promise<{ conn: Conn; localPort: number }>) {
    this.#connect = connect
  }

  /** Who is behind a connection that arrived from this loopback port; undefined: not one of ours. */
  address(port: number): string | undefined {
    return this.#passages.get(port)?.conn.remoteAddress
  }

  /** When the last connection has gone, or when `msMax` have: links were told why they end. */
  emptied(clock: Clock, msMax: number): Promise<void> {
    if (this.#passages.size === 0) return Promise.resolve()
    return new Promise((resolve) => {
      const timer = clock.after(msMax, resolve)
      this.#whenEmpty = () => {
        timer.cancel()
        resolve()
      }
    })
  }

  /** The connection from this loopback port has shown a ticket; from then on it may be idle. */
  proven(port: number): void {
    this.#passages.get(port)?.leave()
  }

  /**
   * Joins a peeked connection to the server on `port`; `left` is called when it is closed. With
   * `clock` it has to be `proven` in time, and has left then: an agent's pool is counted by its link.
   */
  join(
    conn: Conn,
    { first, port, left, clock }: {
      first: Uint8Array
      port: number
      left(conn: Conn): void
      clock?: Clock
    },
  ): void {
    conn.hold()
    const passage = new Passage(conn, left)
    this.#connect(port).then(({ conn: inner, localPort }) => {
      this.#passages.set(localPort, passage)
      passage.late = clock?.after(PROVE_MS_MAX, () => conn.abort())
      this.#splice(passage, inner, localPort)
      inner.write(first)
    }, () => {
      passage.leave()
      conn.abort()
    })
  }

  /** On its own: a closure keeps all that its function sees, and this one lives as long as the link. */
  #splice(passage: Passage, inner: Conn, localPort: number): void {
    splice(passage.conn, inner, () => {
      this.#passages.delete(localPort)
      if (this.#passages.size === 0) this.#whenEmpty?.()
      passage.leave()
    })
  }
}

/** A connection on its way through: one object and no more, since idle links stay here. */
class Passage {
  readonly conn: Conn
  late: Timer | undefined
  #left: ((conn: Conn) => void) | undefined

  constructor(conn: Conn, left: (conn: Conn) => void) {
    this.conn = conn
    this.#left = left
  }

  /** Counts no more, and may be idle. */
  leave(): void {
    this.late?.cancel()
    this.late = undefined
    this.#left?.(this.conn)
    this.#left = undefined
  }
}

/** A connection inside TLS that must begin with a ticket. */
export function awaitTicket(
  conn: Conn,
  ports: { clock: Clock; inside: Inside; claim(conn: Conn, ticket: Ticket): boolean },
): void {
  let held = new Uint8Array(0)
  const late = ports.clock.after(TICKET_MS_MAX, () => conn.abort())
  conn.handle({
    data(bytes) {
      held = concat(held, bytes) as Uint8Array<ArrayBuffer>
      try {
        const ticket = readTicket(held)
        if (ticket === 'more') return
        late.cancel()
        if (held.length > TICKET_BYTES || !ports.claim(conn, ticket)) conn.abort()
        else ports.inside.proven(conn.remotePort)
      } catch {
        conn.abort()
      }
    },
    end: () => conn.abort(),
    closed: () => late.cancel(),
  })
}
