/**
 * Bulk links, relay side: idle TCP connections that an agent keeps to the public port, each claimed
 * with a one-time ticket, onto which a visitor is spliced: no framing, no shared window. The
 * visitor's first bytes travel behind the prelude and are kept until the agent's one-byte answer,
 * so that another member can be tried. Beside them a process may keep one shared link for each home
 * link, onto which visitors of raw ports go as streams while many come. docs/protocol.md, "Bulk links".
 */
import type { Crypto } from '../core/crypto.ts'
import type { Clock, Timer } from '../core/clock.ts'
import { concat, EMPTY, hex } from '../core/bytes.ts'
import { RESET } from '../core/frame.ts'
import type { Visit } from '../core/frame.ts'
import { SharedLink } from '../core/shared_link.ts'
import type { SharedLinkPorts } from '../core/shared_link.ts'
import { ANSWER, encodePrelude } from '../core/ticket.ts'
import type { Ticket, TicketClass } from '../core/ticket.ts'
import type { Conn } from '../core/socket.ts'

/** How long an agent may take to answer a prelude. */
export const ANSWER_MS_MAX = 5000
/** Idle bulk links kept for one process group in one class; more are closed at once. */
const IDLE_MAX = 256
/**
 * Visitors of an endpoint for whom a link of their own pays: it is the fastest for one great stream,
 * while a request of one among many costs both ends almost twice what it does on a shared link.
 * docs/decisions/shared_link.md.
 */
const FEW_VISITORS = 2
/** Links that a shared link beside them lets be used up in a burst and a second: each is one to be made again. */
const SPARED_BURST = 4
const SPARED_PER_S = 20
/** The classes of links that wait for one visitor each. */
export type PoolClass = Exclude<TicketClass, 'shared'>

/** How an offer to an agent ended; `rest` is what came behind the answer. */
export type Answer =
  | { kind: 'taken'; rest: Uint8Array }
  | { kind: 'refused' }
  | { kind: 'timeout' }
  | { kind: 'gone' }

/** One idle connection with the ticket that claimed it. */
export class BulkLink {
  readonly conn: Conn
  /** The home link under whose key it was claimed, in hex. */
  readonly link: string
  readonly #ticket: Ticket
  readonly #key: Uint8Array
  #leave: (() => void) | undefined

  constructor(conn: Conn, claim: { ticket: Ticket; key: Uint8Array }) {
    this.conn = conn
    this.link = hex(claim.ticket.linkId)
    this.#ticket = claim.ticket
    this.#key = claim.key
  }

  /** Waits in a pool: anything that the agent says before it is asked, or its end, drops the link. */
  idle(leave: () => void): void {
    this.#leave = leave
    const drop = (): void => {
      this.#leave?.()
      this.#leave = undefined
      this.conn.abort()
    }
    this.conn.handle({ data: drop, end: drop, closed: drop })
  }

  /**
   * Offers a visitor: one write of prelude and first bytes, then one byte of answer within
   * `ANSWER_MS_MAX`. `answered` runs once. The link is the caller's after 'taken', dead after all else.
   */
  offer(
    offer: { visit: Visit; first: Uint8Array; crypto: Crypto; clock: Clock },
    answered: (answer: Answer) => void,
  ): void {
    this.#leave = undefined
    const { visit, first, crypto, clock } = offer
    const timer: Timer = clock.after(ANSWER_MS_MAX, () => finish({ kind: 'timeout' }))
    let open = true
    const finish = (answer: Answer): void => {
      if (!open) return
      open = false
      timer.cancel()
      if (answer.kind !== 'taken') this.conn.abort()
      answered(answer)
    }
    this.conn.handle({
      data(bytes) {
        if (bytes[0] === ANSWER.taken) {
          finish({ kind: 'taken', rest: bytes.length > 1 ? bytes.subarray(1) : EMPTY })
        } else finish({ kind: 'refused' })
      },
      end: () => finish({ kind: 'gone' }),
      closed: () => finish({ kind: 'gone' }),
    })
    const { linkId, counter } = this.#ticket
    const prelude = encodePrelude(visit, { crypto, linkId, counter, bulkKey: this.#key })
    if (this.conn.write(first.length > 0 ? concat(prelude, first) : prelude) === 'lost') {
      finish({ kind: 'gone' })
    }
  }
}

/** What `BulkPool.share` needs of the relay. */
export interface ShareOptions extends Pick<SharedLinkPorts, 'clock' | 'later' | 'windowMaxBytes'> {
  /** The home link under whose key it was claimed, in hex. */
  home: string
  failed(code: string, message: string): void
}

/** The bulk links of one process group: idle ones, and those that are shared. */
export class BulkPool {
  /** By class; made with the first link of that class. */
  readonly #idle: { [K in PoolClass]?: Set<BulkLink> } = {}
  /** By home link. */
  #shared: Map<string, SharedLink> | undefined
  /** How much of the burst is used up, and when that was so. */
  #spent = 0
  #spentMs = 0
  #closed = false

  get size(): number {
    return (this.#idle.verified?.size ?? 0) + (this.#idle.clear?.size ?? 0)
  }

  /** Visitors on shared links. */
  get sharedStreams(): number {
    let sum = 0
    for (const link of this.#shared?.values() ?? []) sum += link.size
    return sum
  }

  add(link: BulkLink, kind: PoolClass): void {
    const idle = this.#idle[kind] ??= new Set()
    if (this.#closed || idle.size >= IDLE_MAX) {
      link.conn.abort()
      return
    }
    idle.add(link)
    link.idle(() => void idle.delete(link))
  }

  /** The longest idle link of a class, or undefined: then a stream carries the visitor, at once. */
  take(kind: PoolClass): BulkLink | undefined {
    const idle = this.#idle[kind]
    if (!idle) return undefined
    for (const link of idle) {
      idle.delete(link)
      return link
    }
    return undefined
  }

  /** Takes a connection as the shared link of a home link, in place of an earlier one. */
  share(conn: Conn, options: ShareOptions): void {
    if (this.#closed) return conn.abort()
    const { home } = options
    const shared = this.#shared ??= new Map()
    shared.get(home)?.close()
    const link = new SharedLink(conn, {
      ...options,
      side: 'relay',
      // Visitors come from here: an agent has nobody to open a stream for.
      onOpen: (stream) => stream.reset(RESET.refused),
      onClosed: (error) => {
        if (shared.get(home) === link) shared.delete(home)
        if (error) options.failed(error.code, error.message)
      },
    })
    shared.set(home, link)
  }

  /** The shared link with the fewest streams among those that answer. */
  get shared(): SharedLink | undefined {
    let best: SharedLink | undefined
    for (const link of this.#shared?.values() ?? []) {
      if (link.ready && (!best || link.size < best.size)) best = link
    }
    return best
  }

  /**
   * Whether one more of `visitors` may have a link of its own where a shared one would carry it too.
   * Counts as if it took one.
   */
  spares(visitors: number, nowMs: number): boolean {
    if (visitors > FEW_VISITORS) return false
    const left = this.#spent - ((nowMs - this.#spentMs) * SPARED_PER_S) / 1000
    this.#spent = Math.max(0, left)
    this.#spentMs = nowMs
    if (this.#spent > SPARED_BURST - 1) return false
    this.#spent++
    return true
  }

  /** Lets go of those that came with a home link which is gone: they may be as dead as it. */
  drop(home: string): void {
    this.#shared?.get(home)?.close()
    for (const idle of [this.#idle.verified, this.#idle.clear]) {
      for (const link of idle ?? []) {
        if (link.link !== home) continue
        idle!.delete(link)
        link.conn.abort()
      }
    }
  }

  close(): void {
    this.#closed = true
    for (const link of [...(this.#shared?.values() ?? [])]) link.close()
    for (const idle of [this.#idle.verified, this.#idle.clear]) {
      for (const link of idle ?? []) link.conn.abort()
      idle?.clear()
    }
  }
}
