/**
 * Visitors: everybody who is being carried to an endpoint right now. One place joins a visitor's
 * connection to an agent, be it over a bulk link or a stream, tries the next member of a pool while
 * no byte was used, counts, and cuts off when the operator says so.
 */
import { EMPTY } from '../core/bytes.ts'
import type { Clock } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { isTunnelError } from '../core/errors.ts'
import type { VisitName } from '../core/frame.ts'
import { splice } from '../core/socket.ts'
import type { Conn, Pace } from '../core/socket.ts'
import type { SharedLink } from '../core/shared_link.ts'
import type { Endpoint, Endpoints, Serving } from './endpoints.ts'

/** Members of a pool that are tried for one visitor. */
const ATTEMPTS_MAX = 3

/** What carries a visitor: a bulk link of its own, a shared one, the home link; nothing yet. */
export type Route = 'bulk' | 'shared' | 'stream' | 'none'

export interface Visitor {
  readonly conn: Conn
  readonly endpoint: Endpoint
  readonly address: string
  readonly port: number
  readonly route: Route
  /** The home link of the bulk link that carries it, in hex. */
  readonly link: string | undefined
  /** Bytes of the visitor's first flight, held until an agent took it. */
  readonly helloBytes: number
  readonly bytes: { forth: number; back: number }
  readonly sinceMs: number
}

export interface VisitorsPorts {
  crypto: Crypto
  clock: Clock
  endpoints: Endpoints
  /** Counts one more visitor of them until it is called; undefined: they have as many as they may. */
  hold(address: string, scope: string): (() => void) | undefined
  /** What the bytes of a visitor are counted against; undefined where they are unlimited. */
  pace(address: string, scope: string): Pace | undefined
  /** Told once for each visitor: how it went. */
  outcome(result: {
    endpoint: Endpoint
    route: Route
    result: 'done' | 'refused' | 'timeout' | 'gone' | 'left'
    forth: number
    back: number
    address: string
  }): void
}

type Attempt =
  | { kind: 'taken'; carrier: Conn; rest: Uint8Array }
  | { kind: 'refused' | 'timeout' | 'gone' }

interface Live {
  conn: Conn
  endpoint: Endpoint
  address: string
  port: number
  route: Route
  link: string | undefined
  helloBytes: number
  bytes: { forth: number; back: number }
  sinceMs: number
  carrier: Conn | undefined
  release: () => void
}

export class Visitors {
  readonly #ports: VisitorsPorts
  readonly #live = new Set<Live>()
  #idle: (() => void)[] = []

  constructor(ports: VisitorsPorts) {
    this.#ports = ports
  }

  get size(): number {
    return this.#live.size
  }

  all(): Iterable<Visitor> {
    return this.#live
  }

  /** Runs `done` when the last visitor has gone. */
  whenIdle(done: () => void): void {
    if (this.#live.size === 0) done()
    else this.#idle.push(done)
  }

  /** Ends every visitor that `chosen` names, at once. */
  cut(chosen: (visitor: Visitor) => boolean): number {
    let count = 0
    for (const live of [...this.#live]) {
      if (!chosen(live)) continue
      count++
      live.carrier?.abort()
      live.conn.abort()
    }
    return count
  }

  /**
   * Carries `conn`, whose first bytes are `first`, to the endpoint. `refused` runs when no member
   * would take it, with the connection still open and paused: the caller says goodbye in the
   * protocol that the visitor speaks.
   */
  carry(
    conn: Conn,
    what: { endpoint: Endpoint; kind: VisitName; first: Uint8Array },
    refused: (why: 'refused' | 'timeout' | 'gone' | 'quota') => void,
  ): void {
    const { clock, endpoints } = this.#ports
    const { endpoint, kind, first } = what
    const release = this.#ports.hold(conn.remoteAddress, endpoint.scope)
    if (!release) return refused('quota')
    const live: Live = {
      conn,
      endpoint,
      address: conn.remoteAddress,
      port: conn.remotePort,
      route: 'none',
      link: undefined,
      helloBytes: first.length,
      bytes: { forth: 0, back: 0 },
      sinceMs: clock.now(),
      carrier: undefined,
      release,
    }
    this.#live.add(live)
    // Nothing more is taken in while an agent is asked, so what is held stays what was peeked; a
    // visitor that leaves meanwhile is noticed when its connection is joined or said goodbye to.
    conn.hold()
    const servings = endpoints.pick(endpoint).slice(0, ATTEMPTS_MAX)
    const next = (last: 'refused' | 'timeout' | 'gone'): void => {
      const serving = servings.shift()
      if (!serving) {
        this.#leave(live, last)
        refused(last)
        return
      }
      serving.active++
      const final = servings.length === 0
      this.#attempt(live, { serving, kind, first, final }, (attempt) => {
        if (attempt.kind !== 'taken') {
          serving.active--
          if (attempt.kind === 'timeout') endpoints.failed(serving)
          next(attempt.kind)
          return
        }
        this.#join(live, { ...attempt, serving })
      })
    }
    next('gone')
  }

  #attempt(
    live: Live,
    what: { serving: Serving; kind: VisitName; first: Uint8Array; final: boolean },
    done: (attempt: Attempt) => void,
  ): void {
    const { serving, kind, first, final } = what
    const { crypto, clock } = this.#ports
    const visit = {
      kind,
      address: live.address,
      port: live.port,
      endpoint: live.endpoint.name,
      tail: EMPTY,
    }
    const { bulk } = serving.group
    const shared = kind === 'raw' ? bulk.shared : undefined
    const link = shared && !bulk.spares(serving.active, clock.monotonic())
      ? undefined
      : bulk.take(kind === 'tls' ? 'verified' : 'clear')
    if (link) {
      live.route = 'bulk'
      live.link = link.link
      live.carrier = link.conn
      link.offer({ visit: { ...visit, windowBytes: 0 }, first, crypto, clock }, (answer) => {
        if (answer.kind === 'taken') done({ kind: 'taken', carrier: link.conn, rest: answer.rest })
        // A bulk link that died while it was idle says nothing about the agent, and neither does one
        // that a box on the way has forgotten: a stream is next.
        else if (answer.kind === 'gone' || (answer.kind === 'timeout' && final)) {
          this.#stream(live, { serving, visit, first, final, shared }, done)
        } else done(answer)
      })
      return
    }
    this.#stream(live, { serving, visit, first, final, shared }, done)
  }

  #stream(
    live: Live,
    what: {
      serving: Serving
      visit: Parameters<Serving['group']['open']>[0]
      first: Uint8Array
      final: boolean
      shared: SharedLink | undefined
      again?: false
    },
    done: (attempt: Attempt) => void,
  ): void {
    const { shared } = what
    live.route = shared ? 'shared' : 'stream'
    live.link = undefined
    let stream
    try {
      stream = (shared ?? what.serving.group).open(what.visit)
    } catch (error) {
      // Full, or gone a moment ago: the home link has room of its own.
      if (shared) return this.#stream(live, { ...what, shared: undefined }, done)
      done({ kind: isTunnelError(error, 'hub/gone') ? 'gone' : 'refused' })
      return
    }
    const carrier = stream
    live.carrier = carrier
    let answered = false
    carrier.onAccept = () => {
      answered = true
      done({ kind: 'taken', carrier, rest: EMPTY })
    }
    carrier.handle({
      data: () => {},
      end: () => {},
      closed: (error) => {
        if (answered) return
        answered = true
        const code = isTunnelError(error) ? error.code : ''
        if (shared && code === 'stream/timeout') shared.doubt()
        if (shared && (code === 'stream/gone' || (code === 'stream/timeout' && what.final))) {
          return this.#stream(live, { ...what, shared: undefined }, done)
        }
        // The link ended before it was asked; the process may have another by now.
        if (code === 'stream/gone' && what.again !== false) {
          return this.#stream(live, { ...what, again: false }, done)
        }
        done({
          kind: code === 'stream/timeout' ? 'timeout' : code === 'stream/gone' ? 'gone' : 'refused',
        })
      },
    })
    if (what.first.length > 0) carrier.write(what.first)
  }

  #join(live: Live, joined: { carrier: Conn; rest: Uint8Array; serving: Serving }): void {
    const { carrier, rest, serving } = joined
    const { conn } = live
    live.carrier = carrier
    live.bytes = splice(conn, carrier, (bytes) => {
      serving.active--
      live.bytes = bytes
      this.#leave(live, 'done')
    }, this.#ports.pace(live.address, live.endpoint.scope))
    live.bytes.forth += live.helloBytes
    if (rest.length > 0) {
      live.bytes.back += rest.length
      if (conn.write(rest) === 'queued') carrier.pause()
    }
  }

  #leave(live: Live, result: 'done' | 'refused' | 'timeout' | 'gone' | 'left'): void {
    if (!this.#live.delete(live)) return
    live.release()
    this.#ports.outcome({
      endpoint: live.endpoint,
      route: live.route,
      result,
      forth: live.bytes.forth,
      back: live.bytes.back,
      address: live.address,
    })
    if (this.#live.size > 0) return
    const idle = this.#idle
    this.#idle = []
    for (const done of idle) done()
  }
}
