/**
 * The far side: dials out with ordinary sockets of its machine what clients of the network ask for, within
 * the policy, and within bounds for each client. A name is resolved here, every address that it has is
 * judged, and the one that was judged is dialled, so an answer that changes in between changes nothing.
 */
import { formatAddress, parseAddress } from '../../core/address.ts'
import type { Clock, Timer } from '../../core/clock.ts'
import { asTunnelError, isTunnelError, TunnelError } from '../../core/errors.ts'
import type { Conn } from '../../core/socket.ts'
import type { Net } from '../world.ts'
import { ExitFlow } from './exit_flow.ts'
import type { ExitPolicy, Refusal } from './exit_policy.ts'
import { CountedConn } from './counted_conn.ts'
import { DialQueue } from './dial_queue.ts'
import type { BindUdp, DatagramFlow, Network, Pinger, Place } from './network.ts'
import { placeText } from './network.ts'

/** Bounds for each client; `Exit` takes others. RFC 6888 REQ-4: one subscriber must not starve the others. */
export const EXIT_LIMITS = {
  connections: 2_048,
  /** UDP ports of this machine. */
  flows: 1_024,
  /** Attempts that are under way, all told and to one host and port: a dead one takes no more than its share. */
  dials: 256,
  dialsToOne: 32,
  dialsWaiting: 1_024,
  pings: 8,
  /** Of all clients; one has no more than are free, so that a few leave room for others. */
  pingsOfAll: 64,
  lookups: 64,
} as const

export type ExitLimits = { readonly [Name in keyof typeof EXIT_LIMITS]: number }

const CONNECT_MS_MAX = 15_000
/** One of several addresses that does not answer must not take all the time. */
const CONNECT_ONE_MS = 4_000
/** RFC 5382 REQ-5 asks for no less than 2 hours 4 minutes. */
const CONNECTION_IDLE_MS = 7_500_000
/** RFC 4787 REQ-5: at least 2 minutes, 5 recommended. */
const FLOW_IDLE_MS = 300_000
const SWEEP_MS = 15_000
const ADDRESSES_MAX = 16
const PING_MS_MAX = 10_000
const PING_BYTES_MAX = 1_400
const PING_BYTES = 56

export interface ExitPorts {
  readonly net: Pick<Net, 'connect' | 'lookup'>
  readonly bindUdp: BindUdp
  readonly ping: Pinger
  readonly clock: Clock
}

export interface ExitCounts {
  connections: number
  flows: number
  dials: number
  /** Since the start: what the policy, or a bound, turned away. */
  denied: number
  busy: number
}

export class Exit {
  readonly ports: ExitPorts
  readonly policy: ExitPolicy
  readonly limits: ExitLimits
  /** Echoes that are under way. */
  pings = 0
  readonly #clients = new Map<string, ExitClient>()

  constructor(ports: ExitPorts, policy: ExitPolicy, limits: Partial<ExitLimits> = {}) {
    this.ports = ports
    this.policy = policy
    this.limits = { ...EXIT_LIMITS, ...limits }
  }

  /** The network as one client has it, the same for the same `id` until it is closed. */
  client(id: string): ExitClient {
    const known = this.#clients.get(id)
    if (known) return known
    const made = new ExitClient(this, () => void this.#clients.delete(id))
    this.#clients.set(id, made)
    return made
  }

  get clients(): ReadonlyMap<string, ExitClient> {
    return this.#clients
  }

  close(): void {
    for (const client of [...this.#clients.values()]) client.close()
  }
}

export class ExitClient implements Network {
  /** It has the machine's addresses, and none of its own. */
  readonly localAddresses: readonly string[] = []
  readonly #exit: Exit
  readonly #forget: () => void
  readonly #conns = new Set<CountedConn>()
  readonly #flows = new Set<ExitFlow>()
  readonly #dials: DialQueue
  readonly #now = { pings: 0, lookups: 0 }
  readonly #turned = { denied: 0, busy: 0 }
  #sweeper: Timer | undefined
  #closed = false

  constructor(exit: Exit, forget: () => void) {
    this.#exit = exit
    this.#forget = forget
    this.#dials = new DialQueue(exit.limits, exit.ports.clock)
  }

  get counts(): ExitCounts {
    return {
      connections: this.#conns.size,
      flows: this.#flows.size,
      dials: this.#dials.running,
      ...this.#turned,
    }
  }

  async connect(to: Place & { readonly timeoutMs?: number }): Promise<Conn> {
    const { limits, ports: { clock } } = this.#exit
    const endMs = clock.monotonic() + (to.timeoutMs ?? CONNECT_MS_MAX)
    if (this.#closed || this.#conns.size + this.#dials.size >= limits.connections) {
      throw this.#busy(placeText(to), `${limits.connections} connections of one client`)
    }
    const release = await this.#turn(placeText(to), endMs - clock.monotonic())
    try {
      const addresses = await this.#addresses(to)
      return await this.#dialFirst(addresses, { ...to, endMs })
    } finally {
      release()
    }
  }

  async bindDatagrams(): Promise<DatagramFlow> {
    const { limits, policy, ports } = this.#exit
    if (this.#closed || this.#flows.size >= limits.flows) {
      throw this.#busy('a UDP port', `${limits.flows} UDP ports of one client`)
    }
    const flow = new ExitFlow(ports, {
      judge: (address) => {
        const refusal = policy.judge(address)
        if (refusal !== undefined) this.#turned.denied++
        return refusal
      },
      closed: () => void this.#flows.delete(flow),
    })
    this.#flows.add(flow)
    this.#sweepLater()
    return await Promise.resolve(flow)
  }

  async ping(
    address: string,
    { timeoutMs = PING_MS_MAX, bytes = PING_BYTES }: { timeoutMs?: number; bytes?: number } = {},
  ): Promise<number> {
    const plain = this.#judged(address)
    const { pings, pingsOfAll } = this.#exit.limits
    const places = Math.min(pings, pingsOfAll - this.#exit.pings)
    if (this.#now.pings >= places) {
      throw this.#busy(address, `${this.#now.pings} echoes of one client at a time`)
    }
    this.#now.pings++
    this.#exit.pings++
    try {
      return await this.#exit.ports.ping(plain, {
        timeoutMs: Math.min(timeoutMs, PING_MS_MAX),
        bytes: Math.min(Math.max(0, bytes), PING_BYTES_MAX),
      })
    } finally {
      this.#now.pings--
      this.#exit.pings--
    }
  }

  /** All addresses, those that are not dialled as well: the policy is about dialling, and is asked then. */
  async resolve(name: string): Promise<string[]> {
    if (this.#now.lookups >= this.#exit.limits.lookups) {
      throw this.#busy(name, `${this.#exit.limits.lookups} questions of one client at a time`)
    }
    this.#now.lookups++
    try {
      return (await this.#exit.ports.net.lookup(name)).slice(0, ADDRESSES_MAX)
    } finally {
      this.#now.lookups--
    }
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#sweeper?.cancel()
    this.#dials.close()
    for (const flow of [...this.#flows]) flow.close()
    for (const conn of [...this.#conns]) conn.abort()
    this.#forget()
  }

  /** Those of `to` that may be dialled, in the order of the resolver; throws where there is none. */
  async #addresses({ host }: Place): Promise<string[]> {
    if (parseAddress(host)) return [this.#judged(host)]
    const found = await this.resolve(host)
    if (found.length === 0) {
      throw new TunnelError('net/unknown-host', `Cannot find ${host}: it has no address`)
    }
    const refusals = found.map((address) => this.#exit.policy.judge(address))
    const allowed = found.filter((_, i) => refusals[i] === undefined)
    if (allowed.length === 0) throw this.#denied(host, refusals[0]!)
    return allowed.map(plainText)
  }

  async #dialFirst(
    addresses: readonly string[],
    { port, endMs }: { port: number; endMs: number },
  ): Promise<Conn> {
    const { net, clock } = this.#exit.ports
    let last: unknown
    for (const [i, host] of addresses.entries()) {
      const leftMs = endMs - clock.monotonic()
      if (leftMs <= 0) break
      const isLast = i === addresses.length - 1
      const timeoutMs = isLast ? leftMs : Math.min(leftMs, CONNECT_ONE_MS)
      try {
        return this.#count(await net.connect({ host, port, timeoutMs }))
      } catch (error) {
        last = error
      }
    }
    throw last === undefined
      ? new TunnelError('net/timeout', `Cannot connect to port ${port}: no answer in time`)
      : asTunnelError(last, 'net/failed')
  }

  #count(conn: Conn): Conn {
    if (this.#closed) {
      conn.abort()
      throw new TunnelError('net/unreachable', 'Cannot connect: the client has left')
    }
    const counted: CountedConn = new CountedConn(conn, this.#exit.ports.clock, () => {
      this.#conns.delete(counted)
    })
    this.#conns.add(counted)
    this.#sweepLater()
    return counted
  }

  async #turn(place: string, timeoutMs: number): Promise<() => void> {
    try {
      return await this.#dials.take(place, timeoutMs)
    } catch (error) {
      if (isTunnelError(error, 'exit/busy')) this.#turned.busy++
      throw error
    }
  }

  #judged(address: string): string {
    const refusal = this.#exit.policy.judge(address)
    if (refusal !== undefined) throw this.#denied(address, refusal)
    return plainText(address)
  }

  #denied(host: string, refusal: Refusal): TunnelError {
    this.#turned.denied++
    return new TunnelError('exit/denied', `Cannot reach ${host}: ${WORDS[refusal]}`)
  }

  #busy(what: string, found: string): TunnelError {
    this.#turned.busy++
    return new TunnelError('exit/busy', `Cannot reach ${what}: there are ${found} already`)
  }

  #sweepLater(): void {
    if (this.#sweeper || this.#closed) return
    this.#sweeper = this.#exit.ports.clock.after(SWEEP_MS, () => {
      this.#sweeper = undefined
      const nowMs = this.#exit.ports.clock.monotonic()
      for (const flow of [...this.#flows]) {
        if (nowMs - flow.activeMs >= FLOW_IDLE_MS) flow.expire()
      }
      for (const conn of [...this.#conns]) {
        if (nowMs - conn.activeMs >= CONNECTION_IDLE_MS) conn.abort()
      }
      if (this.#flows.size + this.#conns.size > 0) this.#sweepLater()
    })
  }
}

const WORDS: Readonly<Record<Refusal, string>> = {
  malformed: 'it is no address',
  unspecified: 'it is the address of no machine',
  loopback: 'it is the serving machine itself, which it does not offer',
  'link-local': 'it is of one link alone, which the serving side does not offer',
  multicast: 'it is an address of many receivers',
  reserved: 'it is a reserved address',
  own: "it is the serving machine's own address, which it does not offer",
  route: 'it is in no route that the serving side offers',
}

/** One spelling, so that what was judged is what the system reads; a zone stays with its address. */
function plainText(address: string): string {
  const zone = /%.*$/.exec(address)?.[0] ?? ''
  return formatAddress(parseAddress(address)!) + zone
}
