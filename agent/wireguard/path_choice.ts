/**
 * Which way one peer's packets take: the relay, which carries at once, or UDP, which is tried beside it.
 * Nothing moves but by what WireGuard has authenticated, or after a silence that the peer should have broken.
 *
 *   relay ── a race to the direct endpoints, less and less often ──▶ udp
 *   udp ── sent and not answered: a race over all ways; silent still ──▶ relay
 *
 * A way over UDP that does not hold for a minute is tried half as often as before.
 */
import type { Clock } from '../../core/clock.ts'
import { type Endpoint, formatEndpoint } from '../wireguard-wasm/address.ts'
import type { TablePeer } from './peer_table.ts'
import { RELAY_PATH, UDP_PATH } from './relay_path.ts'

/** How often `look` is to be called. */
export const LOOK_MS = 1_000
/** Between tries of UDP: it doubles, and begins anew after UDP has held. WireGuard itself allows one in 5 s. */
export const TRY_MS_MIN = 6_000
export const TRY_MS_MAX = 300_000
/** UDP that has held for so long is a good way. */
export const STABLE_MS = 60_000
/** Sent and not answered for so long: it is asked whether UDP is still there. */
export const SILENT_MS = 3_000
/** Whoever only listens answers by a keepalive, 10 s later. */
const SILENT_MS_MAX = 12_000
/** From the question until the relay carries. */
const ANSWER_MS = 2_000
/** Questions where there is no relay to go to. */
const ASK_MS = 10_000
/** What the relay still had under way when UDP won comes later, and moves nothing back. */
const TAIL_MS = 2_000
/** A keepalive is not answered. */
const KEEPALIVE_BYTES = 32
/** Since the last look: more than handshakes and keepalives. */
const TALK_BYTES = 1_000

/** What a device gives to whoever chooses the ways of its peers. */
export interface Races {
  /** A handshake over all of these, UDP first where asked; the peer stays where it is. A turn is to follow. */
  start(
    peer: TablePeer,
    endpoints: readonly Endpoint[],
    options?: { headStart?: boolean },
  ): void
  /** Calls `roamed` when the peer was heard from another endpoint, until what comes back is called. */
  watch(peer: TablePeer, roamed: () => void): () => void
}

export interface PathChoicePorts {
  clock: Pick<Clock, 'monotonic'>
  peer: TablePeer
  races: Races
  /** After a change of the peer. */
  wake(): void
  /** The relay's channel, while there is one. */
  relay(): Endpoint | undefined
  /** Where the peer says that it takes UDP. */
  direct: readonly Endpoint[]
  /** Until the first try. The two ends differ: a packet is lost where their handshakes cross. */
  firstMs: number
  /** After each move. */
  moved?(endpoint: Endpoint): void
  /** Whether the largest packets pass by UDP, which carries now: some ways swallow them without a word. */
  fits?(): Promise<boolean>
}

export class PathChoice {
  /** Moves between the ways that were seen. */
  moves = 0
  readonly #ports: PathChoicePorts
  /** Where it was reached by UDP last: behind a NAT it is told by nobody else. */
  #last: Endpoint | undefined
  #way: string | undefined
  #isDirect = false
  #sinceMs = 0
  #triedMs: number
  #waitMs = TRY_MS_MIN
  #received = 0
  #sent = 0
  /** Since when something is sent and nothing heard. */
  #unansweredMs: number | undefined
  #silentMs = SILENT_MS
  #askedMs: number | undefined
  /** UDP has won, by what was heard last. */
  #won: { endpoint: Endpoint; sinceMs: number } | undefined
  readonly #forget: () => void

  constructor(ports: PathChoicePorts) {
    this.#ports = ports
    this.#triedMs = this.#triedNow(ports.clock.monotonic())
    this.#forget = ports.races.watch(ports.peer, () => this.#roamed())
  }

  close(): void {
    this.#forget()
  }

  /** UDP carries, as far as was seen. */
  get isDirect(): boolean {
    return this.#isDirect
  }

  /** Every second. */
  look(): void {
    const nowMs = this.#ports.clock.monotonic()
    const stats = this.#ports.peer.stats()
    const { endpoint } = stats
    const isDirect = endpoint?.path === UDP_PATH && stats.lastHandshakeMs !== undefined
    if (isDirect !== this.#isDirect) this.#turn(isDirect, nowMs)
    if (stats.sentBytes - this.#sent > KEEPALIVE_BYTES) this.#unansweredMs ??= nowMs
    this.#sent = stats.sentBytes
    if (stats.receivedBytes !== this.#received) {
      if (stats.receivedBytes - this.#received > TALK_BYTES) this.#silentMs = SILENT_MS
      this.#received = stats.receivedBytes
      this.#unansweredMs = this.#askedMs = undefined
    }
    if (endpoint && stats.lastHandshakeMs !== undefined) this.#tell(endpoint)
    if (!isDirect) return this.#try(nowMs)
    this.#last = endpoint
    const isSilent = this.#unansweredMs !== undefined &&
      nowMs - this.#unansweredMs >= this.#silentMs
    if (isSilent || this.#askedMs !== undefined) this.#ask(nowMs)
  }

  /** The machine slept, its network is another, or the relay is lost: nothing is known of the ways. */
  again(): void {
    const nowMs = this.#ports.clock.monotonic()
    this.#waitMs = TRY_MS_MIN
    this.#triedMs = this.#triedNow(nowMs)
    if (this.#isDirect) {
      this.#askedMs = nowMs
      this.#race(true)
    } else if (this.#ports.relay()) {
      // Alone: UDP that leads there and not back would be answered in vain.
      this.#ports.peer.connect()
      this.#ports.wake()
    } else this.#race(false)
  }

  #roamed(): void {
    const { endpoint } = this.#ports.peer.stats()
    const nowMs = this.#ports.clock.monotonic()
    if (endpoint?.path === UDP_PATH) {
      this.#won = { endpoint, sinceMs: this.#won?.sinceMs ?? nowMs }
    } else if (this.#won && nowMs - this.#won.sinceMs < TAIL_MS) {
      this.#ports.peer.update({ endpoint: this.#won.endpoint })
    } else this.#won = undefined
  }

  #turn(isDirect: boolean, nowMs: number): void {
    this.#isDirect = isDirect
    if (!isDirect) {
      this.#waitMs = nowMs - this.#sinceMs >= STABLE_MS
        ? TRY_MS_MIN
        : Math.min(TRY_MS_MAX, this.#waitMs * 2)
      this.#triedMs = this.#triedNow(nowMs)
    } else this.#measure(nowMs)
    this.#sinceMs = nowMs
    this.#silentMs = SILENT_MS
    this.#unansweredMs = this.#askedMs = undefined
  }

  #triedNow(nowMs: number): number {
    return nowMs + this.#ports.firstMs - TRY_MS_MIN
  }

  #try(nowMs: number): void {
    if (nowMs - this.#triedMs < this.#waitMs) return
    if (this.#direct.length === 0) return
    this.#triedMs = nowMs
    this.#waitMs = Math.min(TRY_MS_MAX, this.#waitMs * 2)
    this.#race(false)
  }

  #ask(nowMs: number): void {
    if (this.#askedMs === undefined) {
      this.#askedMs = nowMs
      // An answer over UDP says that silence was right.
      this.#silentMs = Math.min(SILENT_MS_MAX, this.#silentMs * 2)
      return this.#race(true, { headStart: true })
    }
    const waitedMs = nowMs - this.#askedMs
    const relay = this.#ports.relay()
    if (relay && waitedMs >= ANSWER_MS) this.#leave(relay)
    else if (waitedMs >= ASK_MS) {
      this.#askedMs = nowMs
      this.#race(true, { headStart: true })
    }
  }

  #leave(relay: Endpoint): void {
    const { peer, wake, clock } = this.#ports
    this.#won = undefined
    peer.update({ endpoint: relay })
    peer.connect()
    wake()
    this.#turn(false, clock.monotonic())
    this.#tell(relay)
  }

  #measure(sinceMs: number): void {
    void this.#ports.fits?.().then((fits) => {
      const relay = this.#ports.relay()
      if (fits || !relay || !this.#isDirect || this.#sinceMs !== sinceMs) return
      this.#leave(relay)
    })
  }

  get #direct(): Endpoint[] {
    const { direct } = this.#ports
    const last = this.#last
    return last ? [last, ...direct.filter((one) => !isSame(one, last))] : [...direct]
  }

  #race(withRelay: boolean, options?: { headStart: boolean }): void {
    const relay = withRelay ? this.#ports.relay() : undefined
    const endpoints = relay ? [...this.#direct, relay] : this.#direct
    if (endpoints.length === 0) return
    this.#ports.races.start(this.#ports.peer, endpoints, options)
    this.#ports.wake()
  }

  #tell(endpoint: Endpoint): void {
    const way = endpoint.path === RELAY_PATH ? 'relay' : formatEndpoint(endpoint)
    if (way === this.#way) return
    const isMove = this.#way !== undefined
    this.#way = way
    if (!isMove) return
    this.moves++
    this.#ports.moved?.(endpoint)
  }
}

function isSame(a: Endpoint, b: Endpoint): boolean {
  return a.host === b.host && a.port === b.port && (a.scope ?? 0) === (b.scope ?? 0)
}
