/**
 * Raw public ports: a TCP or UDP port of the relay that leads to one endpoint, for protocols that
 * bring their own encryption. TCP visitors are spliced like any other; each UDP visitor is a flow, a
 * packet channel of its own that its stream ends when it is quiet.
 */
import { EMPTY } from '../core/bytes.ts'
import { TunnelError } from '../core/errors.ts'
import type { Stream } from '../core/mux.ts'
import type { Conn, Listener } from '../core/socket.ts'
import type { Endpoint, Endpoints } from './endpoints.ts'
import type { Visitors } from './visitors.ts'

/** Flows of one port; more visitors are dropped, not queued. */
const FLOWS_MAX = 4096
/** Answers may exceed what a visitor sent by this much until it has sent more: no amplification of forged addresses. */
const AMPLIFICATION_MAX = 3
const AMPLIFICATION_FREE_BYTES = 2048
/** A visitor that has answered an answer is real: after so many packets both ways the limit is lifted. */
const PROVEN_PACKETS = 3

/** One bound UDP port of the runtime. */
export interface Datagrams {
  readonly port: number
  send(bytes: Uint8Array, to: { address: string; port: number }): void
  close(): Promise<void>
}

export interface RetiringListener extends Listener {
  /** Accepts no more; what is open goes on. */
  retire(): void
}

export interface PublicPortsNet {
  /** Runs `run` when the events at hand have been handled: `setImmediate`. */
  later(run: () => void): void
  listen(
    at: { host: string; port: number },
    accepted: (conn: Conn) => void,
  ): Promise<RetiringListener>
  udp(
    at: { host: string; port: number },
    received: (bytes: Uint8Array, from: { address: string; port: number }) => void,
  ): Promise<Datagrams>
}

export interface PublicPortsPorts {
  net: PublicPortsNet
  endpoints: Endpoints
  visitors: Visitors
  host: string
  range: readonly [first: number, last: number] | undefined
  admits(address: string, scope: string): boolean
  /** Counts one more UDP flow until it is called; undefined: there are as many as may be. */
  hold(address: string, scope: string): (() => void) | undefined
  refused(reason: string, fields: { address: string }): void
  packets(count: number, result: 'in' | 'out' | 'dropped'): void
}

interface Flow {
  stream: Stream
  bytesIn: number
  bytesOut: number
  packetsIn: number
  packetsOut: number
  /** Of those that the stream dropped, how many were told. */
  dropped: number
}

interface Open {
  port: number
  close(): Promise<void>
}

export class PublicPorts {
  readonly #ports: PublicPortsPorts
  readonly #open = new Map<string, Promise<Open>>()
  readonly #taken = new Set<number>()

  constructor(ports: PublicPortsPorts) {
    this.#ports = ports
  }

  /**
   * Opens the port for an endpoint, or returns the one that is open. `wanted` 0 takes a free one of
   * the range, the same for the same name as long as it is free. Throws `ports/closed` where the
   * relay has no range, `ports/range`, `ports/taken`.
   */
  async open(name: string, kind: 'tcp' | 'udp', wanted: number): Promise<number> {
    const open = this.#open.get(name)
    if (open) {
      const { port } = await open
      if (wanted === 0 || wanted === port) return port
      throw taken(wanted)
    }
    const opening = this.#choose(name, { kind, wanted })
    this.#open.set(name, opening)
    try {
      return (await opening).port
    } catch (error) {
      this.#open.delete(name)
      throw error
    }
  }

  /** Gives the port back. Visitors of TCP finish; flows of UDP end. */
  async close(name: string): Promise<void> {
    const opening = this.#open.get(name)
    if (!opening) return
    this.#open.delete(name)
    const open = await opening
    this.#taken.delete(open.port)
    await open.close()
  }

  async closeAll(): Promise<void> {
    await Promise.allSettled([...this.#open.keys()].map((name) => this.close(name)))
  }

  async #choose(name: string, want: { kind: 'tcp' | 'udp'; wanted: number }): Promise<Open> {
    const range = this.#ports.range
    if (!range) {
      throw new TunnelError('ports/closed', 'Cannot open a public port: this relay offers none', {
        hint: 'Its operator can start it with --public-ports 20000-20999.',
      })
    }
    const [first, last] = range
    const { kind, wanted } = want
    if (wanted !== 0 && (wanted < first || wanted > last)) {
      throw new TunnelError(
        'ports/range',
        `Cannot open public port ${wanted}: expected ${first} to ${last}`,
        { hint: `Choose --public-port between ${first} and ${last}, or 0 for any.` },
      )
    }
    const count = last - first + 1
    let hash = 0
    for (const letter of name) hash = (hash * 31 + letter.charCodeAt(0)) % count
    const candidates = wanted !== 0 ? 1 : Math.min(count, 64)
    for (let i = 0; i < candidates; i++) {
      const port = wanted !== 0 ? wanted : first + ((hash + i) % count)
      if (this.#taken.has(port)) continue
      this.#taken.add(port)
      try {
        return kind === 'tcp' ? await this.#tcp(name, port) : await this.#udp(name, port)
      } catch {
        this.#taken.delete(port)
      }
    }
    throw wanted !== 0
      ? taken(wanted)
      : new TunnelError('ports/taken', 'Cannot open a public port: found none free in the range')
  }

  async #tcp(name: string, port: number): Promise<Open> {
    const { net, host, endpoints, visitors } = this.#ports
    const listener = await net.listen({ host, port }, (conn) => {
      const endpoint = endpoints.get(name)
      if (!this.#admits(endpoint, conn.remoteAddress)) return conn.abort()
      visitors.carry(conn, { endpoint, kind: 'raw', first: EMPTY }, (why) => {
        const reason = why === 'quota' ? why : `agent-${why}`
        this.#ports.refused(reason, { address: conn.remoteAddress })
        conn.abort()
      })
    })
    // Whoever is here stays as long as the agent serves them, as with names; `Visitors` ends them with the relay.
    return { port: listener.port, close: () => Promise.resolve(listener.retire()) }
  }

  #admits(endpoint: Endpoint | undefined, address: string): endpoint is Endpoint {
    if (!endpoint) {
      this.#ports.refused('unknown-endpoint', { address })
      return false
    }
    if (this.#ports.admits(address, endpoint.scope)) return true
    this.#ports.refused('quota', { address })
    return false
  }

  async #udp(name: string, port: number): Promise<Open> {
    const flows = new Map<string, Flow>()
    const datagrams = await this.#ports.net.udp(
      { host: this.#ports.host, port },
      (bytes, from) => {
        const id = `${from.address} ${from.port}`
        const flow = flows.get(id) ?? this.#flow(name, { flows, id, from, datagrams })
        if (!flow) return this.#ports.packets(1, 'dropped')
        flow.bytesIn += bytes.length
        flow.packetsIn++
        this.#ports.packets(1, 'in')
        flow.stream.sendPacket(bytes)
        this.#countDrops(flow)
      },
    )
    const close = async (): Promise<void> => {
      for (const flow of [...flows.values()]) flow.stream.abort()
      await datagrams.close()
    }
    return { port: datagrams.port, close }
  }

  /** The stream drops the oldest for a newer one; here that becomes a number that people see. */
  #countDrops(flow: Flow): void {
    const count = flow.stream.packetsDropped - flow.dropped
    if (count === 0) return
    flow.dropped += count
    this.#ports.packets(count, 'dropped')
  }

  #flow(
    name: string,
    made: {
      flows: Map<string, Flow>
      id: string
      from: { address: string; port: number }
      datagrams: Datagrams
    },
  ): Flow | undefined {
    const { flows, id, from, datagrams } = made
    const { endpoints } = this.#ports
    const endpoint = endpoints.get(name)
    if (flows.size >= FLOWS_MAX || !this.#admits(endpoint, from.address)) return undefined
    const serving = endpoints.pick(endpoint)[0]
    if (!serving) return undefined
    const release = this.#ports.hold(from.address, endpoint.scope)
    if (!release) {
      this.#ports.refused('quota', from)
      return undefined
    }
    let stream: Stream
    try {
      stream = serving.group.open({ kind: 'udp', ...from, endpoint: name, tail: EMPTY })
    } catch {
      release()
      return undefined
    }
    serving.active++
    const flow: Flow = {
      stream,
      bytesIn: 0,
      bytesOut: 0,
      packetsIn: 0,
      packetsOut: 0,
      dropped: 0,
    }
    stream.onPacket = (bytes) => {
      const proven = flow.packetsIn >= PROVEN_PACKETS && flow.packetsOut > 0
      const allowed = AMPLIFICATION_FREE_BYTES + flow.bytesIn * AMPLIFICATION_MAX
      if (!proven && flow.bytesOut + bytes.length > allowed) {
        return this.#ports.packets(1, 'dropped')
      }
      flow.bytesOut += bytes.length
      flow.packetsOut++
      this.#ports.packets(1, 'out')
      datagrams.send(bytes, from)
    }
    stream.handle({
      data: () => stream.reset(9),
      end: () => {},
      closed: () => {
        serving.active--
        release()
        this.#countDrops(flow)
        flows.delete(id)
      },
    })
    flows.set(id, flow)
    return flow
  }
}

function taken(port: number): TunnelError {
  return new TunnelError('ports/taken', `Cannot open public port ${port}: it is in use`, {
    hint: 'Choose another --public-port, or 0 for any free one.',
  })
}
