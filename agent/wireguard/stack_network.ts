/**
 * The network behind a tunnel as programs of this machine use it: connections, datagrams, echoes and
 * names over the stack of the device. Names are asked of the resolvers inside the tunnel, never of this
 * machine's.
 */
import { isWithin, parseAddress } from '../../core/address.ts'
import type { Network as Range } from '../../core/address.ts'
import type { Clock, Timer } from '../../core/clock.ts'
import type { Crypto } from '../../core/crypto.ts'
import { decodeDnsAnswer, encodeDnsQuery } from '../../core/dns.ts'
import { TunnelError } from '../../core/errors.ts'
import type { Conn, Listener } from '../../core/socket.ts'
import type { Message } from '../wireguard-wasm/message.ts'
import type { Incoming, Tunnel } from '../wireguard-wasm/tunnel.ts'
import type { DatagramFlow, DatagramHandler, FarEnd, Network, Place } from './network.ts'

const CONNECT_MS_MAX = 30_000
const PING_MS_MAX = 10_000
const PING_BYTES = 56
const PING_BYTES_MAX = 1_400
const PINGS_MAX = 64
const FLOWS_MAX = 4_096
const LISTENERS_MAX = 256
/** RFC 6335 §6. */
const PORT_MIN = 49_152
const PORT_TRIES = 64
const DNS_PORT = 53
/** A question is sent again so often. */
const ASKED_MS = [1_000, 2_000, 4_000]
const ADDRESSES_MAX = 16

export interface StackNetworkPorts {
  clock: Clock
  crypto: Pick<Crypto, 'randomBytes'>
  /** Resolvers inside the tunnel; none: names are not known there. */
  resolvers(): readonly string[]
  /** Networks that the tunnel leads to; nothing else is tried. */
  routes(): readonly Range[]
}

export class StackNetwork implements Network {
  readonly #ports: StackNetworkPorts
  #tunnel: Tunnel | undefined
  readonly #flows = new Map<number, StackFlow>()
  readonly #listeners = new Map<number, (conn: Conn) => void>()
  readonly #pings = new Map<string, () => void>()

  constructor(ports: StackNetworkPorts) {
    this.#ports = ports
  }

  /** Before anything else: the tunnel whose `incoming` and `message` come here. */
  use(tunnel: Tunnel): void {
    this.#tunnel = tunnel
  }

  get localAddresses(): readonly string[] {
    return this.#tunnel?.addresses ?? []
  }

  get counts(): { flows: number; listeners: number } {
    return { flows: this.#flows.size, listeners: this.#listeners.size }
  }

  async connect(
    { host, port, timeoutMs = CONNECT_MS_MAX }: Place & { timeoutMs?: number },
  ): Promise<Conn> {
    const found = parseAddress(host) ? [host] : await this.resolve(host)
    const addresses = found.filter((address) => isWithin(address, this.#ports.routes()))
    if (addresses.length === 0) throw unrouted(host)
    const { clock } = this.#ports
    const endMs = clock.monotonic() + timeoutMs
    let last: unknown
    for (const [i, address] of addresses.entries()) {
      const leftMs = endMs - clock.monotonic()
      if (leftMs <= 0) break
      const ms = i === addresses.length - 1 ? leftMs : Math.min(leftMs, 5_000)
      try {
        return await this.#need().connect({ address, port, timeoutMs: ms })
      } catch (error) {
        last = error
      }
    }
    throw connectProblem(last, `${host} port ${port}`)
  }

  listen({ port }: { port: number }, accepted: (conn: Conn) => void): Promise<Listener> {
    if (this.#listeners.has(port) || this.#listeners.size >= LISTENERS_MAX) {
      throw new TunnelError(
        'net/in-use',
        `Cannot listen on port ${port} in the network: it is taken`,
      )
    }
    this.#listeners.set(port, accepted)
    return Promise.resolve({
      host: this.localAddresses[0] ?? '',
      port,
      close: () => {
        this.#listeners.delete(port)
        return Promise.resolve()
      },
    })
  }

  bindDatagrams({ port = 0 }: { port?: number } = {}): Promise<DatagramFlow> {
    if (this.#flows.size >= FLOWS_MAX) {
      throw new TunnelError('exit/busy', `Cannot open a UDP port: found ${FLOWS_MAX} open`)
    }
    const taken = port === 0 ? this.#freePort() : port
    if (taken === undefined || this.#flows.has(taken)) {
      throw new TunnelError('net/in-use', `Cannot open UDP port ${port}: it is taken`)
    }
    const flow: StackFlow = new StackFlow(taken, () => this.#need(), () => {
      this.#flows.delete(taken)
    })
    this.#flows.set(taken, flow)
    return Promise.resolve(flow)
  }

  ping(
    address: string,
    { timeoutMs = PING_MS_MAX, bytes = PING_BYTES }: { timeoutMs?: number; bytes?: number } = {},
  ): Promise<number> {
    const tunnel = this.#need()
    const source = tunnel.addressFor(address)
    if (source === undefined || !isWithin(address, this.#ports.routes())) throw unrouted(address)
    if (this.#pings.size >= PINGS_MAX) {
      throw new TunnelError('exit/busy', `Cannot ping ${address}: found ${PINGS_MAX} echoes open`)
    }
    const { clock, crypto } = this.#ports
    const [a, b, c, d] = crypto.randomBytes(4)
    const [sourcePort, destinationPort] = [a! * 256 + b!, c! * 256 + d!]
    const key = `${address} ${sourcePort} ${destinationPort}`
    const startMs = clock.monotonic()
    const payload = crypto.randomBytes(Math.min(Math.max(0, bytes), PING_BYTES_MAX))
    return new Promise((resolve, reject) => {
      const late = clock.after(timeoutMs, () => {
        this.#pings.delete(key)
        const text = `Cannot reach ${address}: no echo came in ${timeoutMs} ms`
        reject(new TunnelError('net/timeout', text))
      })
      this.#pings.set(key, () => {
        this.#pings.delete(key)
        late.cancel()
        resolve(clock.monotonic() - startMs)
      })
      const destination = address
      tunnel.send({
        kind: 'echo-request',
        source,
        destination,
        sourcePort,
        destinationPort,
        payload,
      })
    })
  }

  /** IPv4 first, since a network behind an agent mostly has that. */
  async resolve(name: string): Promise<string[]> {
    const [server] = this.#ports.resolvers()
    if (server === undefined) {
      throw new TunnelError(
        'net/unknown-host',
        `Cannot find ${name}: the network answers no names`,
        { hint: 'Use an address, or serve names there: sotto wg serve --dns' },
      )
    }
    const answers = await Promise.all([
      this.#ask(server, name, 'A'),
      this.#ask(server, name, 'AAAA'),
    ])
    const found = answers.flat().slice(0, ADDRESSES_MAX)
    if (found.length > 0) return found
    throw new TunnelError('net/unknown-host', `Cannot find ${name}: the network has no such name`)
  }

  async #ask(server: string, name: string, type: 'A' | 'AAAA'): Promise<string[]> {
    const { clock, crypto } = this.#ports
    const flow = await this.bindDatagrams()
    const [a, b] = crypto.randomBytes(2)
    const question = { id: a! * 256 + b!, name: name.toLowerCase(), type }
    const query = encodeDnsQuery(question)
    let timer: Timer | undefined
    try {
      return await new Promise<string[]>((resolve, reject) => {
        flow.handle({
          message: (from, bytes) => {
            if (from.address !== server || from.port !== DNS_PORT) return
            try {
              const { records } = decodeDnsAnswer(bytes, question)
              resolve(records.filter((one) => one.type === type).map(({ value }) => value))
            } catch {
              // Not the answer; it may still come.
            }
          },
        })
        const ask = (round: number): void => {
          const ms = ASKED_MS[round]
          if (ms === undefined) {
            const text = `Cannot find ${name}: the network's resolver does not answer`
            return reject(new TunnelError('net/timeout', text))
          }
          flow.send({ address: server, port: DNS_PORT }, query)
          timer = clock.after(ms, () => ask(round + 1))
        }
        ask(0)
      })
    } finally {
      timer?.cancel()
      flow.close()
    }
  }

  /** Somebody in the network opens a connection to us. */
  incoming(incoming: Incoming): void {
    const accepted = this.#listeners.get(incoming.localPort)
    const own = this.localAddresses.includes(incoming.localAddress)
    if (!accepted || !own) return incoming.reject('reset')
    const flow = incoming.accept()
    if (flow) accepted(flow)
  }

  message(message: Message): void {
    const { kind, source, destination, payload } = message
    if (!this.localAddresses.includes(destination) && kind !== 'unreachable') return
    if (kind === 'datagram') {
      this.#flows.get(message.destinationPort)?.take(
        { address: source, port: message.sourcePort },
        payload,
      )
    } else if (kind === 'echo-reply') {
      this.#pings.get(`${source} ${message.sourcePort} ${message.destinationPort}`)?.()
    } else if (kind === 'echo-request') {
      this.#need().send({
        ...message,
        kind: 'echo-reply',
        source: destination,
        destination: source,
      })
    }
  }

  close(): void {
    for (const flow of [...this.#flows.values()]) flow.close()
    this.#listeners.clear()
  }

  #need(): Tunnel {
    if (this.#tunnel) return this.#tunnel
    throw new TunnelError('net/unreachable', 'Cannot use the network: it is not up')
  }

  #freePort(): number | undefined {
    for (let i = 0; i < PORT_TRIES; i++) {
      const [a, b] = this.#ports.crypto.randomBytes(2)
      const port = PORT_MIN + (a! * 256 + b!) % (65_536 - PORT_MIN)
      if (!this.#flows.has(port)) return port
    }
    return undefined
  }
}

class StackFlow implements DatagramFlow {
  readonly port: number
  /** Another one where the address or the size of packets has changed. */
  readonly #tunnel: () => Tunnel
  readonly #over: () => void
  #handler: DatagramHandler | undefined
  #closed = false

  constructor(port: number, tunnel: () => Tunnel, over: () => void) {
    this.port = port
    this.#tunnel = tunnel
    this.#over = over
  }

  send({ address, port }: FarEnd, payload: Uint8Array): boolean {
    const tunnel = this.#tunnel()
    const source = tunnel.addressFor(address)
    if (this.#closed || source === undefined || !parseAddress(address)) return false
    return tunnel.send({
      kind: 'datagram',
      source,
      sourcePort: this.port,
      destination: address,
      destinationPort: port,
      payload,
    })
  }

  take(from: FarEnd, bytes: Uint8Array): void {
    this.#handler?.message(from, bytes)
  }

  handle(handler: DatagramHandler): void {
    this.#handler = handler
  }

  close(): void {
    this.#closed = true
    this.#over()
  }
}

function unrouted(host: string): TunnelError {
  return new TunnelError('net/denied', `Cannot reach ${host}: the network does not lead there`, {
    hint: 'Whoever serves it names what it leads to: sotto wg serve --route',
  })
}

/** The stack says why in words alone. */
/** What the stack says of a connection that it could not make. */
export function connectProblem(cause: unknown, place: string): TunnelError {
  const words = cause instanceof Error ? cause.message : 'timed out'
  if (/timed out/.test(words)) {
    return new TunnelError('net/timeout', `Cannot connect to ${place}: no answer in time`, {
      cause,
    })
  }
  if (/reset|refused/.test(words)) {
    return new TunnelError('net/refused', `Cannot connect to ${place}: it is refused there`, {
      cause,
    })
  }
  return new TunnelError('net/unreachable', `Cannot connect to ${place}: ${words}`, { cause })
}
