/**
 * The serving agent inside its network: what its members send into the tunnel leaves through the exit,
 * with ordinary sockets, within the exit's rules; what is asked of the agent's own address is answered
 * here: names, where they are served, and echoes. Members reach each other only where that was asked for.
 */
import type { Clock } from '../../core/clock.ts'
import { asTunnelError, TunnelError } from '../../core/errors.ts'
import { splice } from '../../core/socket.ts'
import type { Message, Unreachable } from '../wireguard-wasm/message.ts'
import type { Incoming, Tunnel } from '../wireguard-wasm/tunnel.ts'
import type { Exit, ExitClient } from './exit.ts'
import { answerNames } from './name_server.ts'
import type { DatagramFlow } from './network.ts'

const DNS_PORT = 53
/** A member gives up after as long; RFC 6298 §2.1 has its third try at 7 s. */
const CONNECT_MS = 10_000
const PING_MS = 5_000
/** UDP ports of all members together; the one that was used longest ago makes room. */
const PORTS_MAX = 16_384

/**
 * Connections that wait for an answer, as many as the stack keeps. Each member has no more of them than are
 * free, so that whoever asks for dead places leaves room for the others, however many they are.
 */
const WAITING_MAX = 1_024

/** Connections of one member to others of them; those to the network are the exit's to count. */
export const BETWEEN_MAX = 256

/** Of IP, and of UDP or an echo. */
const HEAD4_BYTES = 28
const HEAD6_BYTES = 48

/** A member, by the address that its packets come from. */
export interface GatewayMember {
  /** Its name at the exit, whose bounds are for each. */
  readonly client: string
  /** Our own addresses in its subnet. */
  readonly own: readonly string[]
  /** Largest packet that every way to it carries. */
  readonly mtu: number
}

export interface GatewayPorts {
  clock: Clock
  exit: Exit
  /** Of whoever has this address now. */
  member(address: string): GatewayMember | undefined
  /** Whether names are answered. */
  names: boolean
  /** Members reach the ports that others of them listen on. */
  between: boolean
  /** Where the packets of members go. */
  tunnel(): Pick<Tunnel, 'send' | 'connect'>
  /** A connection that was made, or not and why. */
  told?(
    event: { member: GatewayMember; address: string; port: number; error?: TunnelError },
  ): void
}

/** A connection of one member to another; cut, nothing of it is left. */
interface Pair {
  /** At the exit. */
  readonly to: string
  cut(): void
}

export interface GatewayCounts {
  connections: number
  /** UDP ports. */
  flows: number
}

export class Gateway {
  readonly #ports: GatewayPorts
  /** By member's address and port. */
  readonly #flows = new Map<string, DatagramFlow>()
  #connections = 0
  /** Connections that are not made yet, of each member and all told. */
  readonly #waiting = new Map<string, number>()
  #waitingCount = 0
  /** Connections between members, by whose they are. */
  readonly #pairs = new Map<string, Set<Pair>>()

  constructor(ports: GatewayPorts) {
    this.#ports = ports
  }

  get counts(): GatewayCounts {
    return { connections: this.#connections, flows: this.#flows.size }
  }

  /** Somebody opens a connection. */
  incoming(incoming: Incoming): void {
    const { localAddress: address, localPort: port, remoteAddress } = incoming
    const member = this.#ports.member(remoteAddress)
    // The device has checked the source: a peer that went away a moment ago.
    if (!member) return incoming.reject('reset')
    if (member.own.includes(address)) return incoming.reject('reset')
    const free = WAITING_MAX - this.#waitingCount
    const own = this.#waiting.get(member.client) ?? 0
    if (own >= free) {
      incoming.reject('host')
      return this.#ports.told?.({ member, address, port, error: crowded(address, own) })
    }
    const over = this.#wait(member)
    void this.#dial(incoming, member).finally(over).then(
      () => this.#ports.told?.({ member, address, port }),
      (thrown) => {
        const error = asTunnelError(thrown, 'net/failed')
        // A reset, whatever the reason: stacks take an error of ICMP for one that may pass, and ask on.
        incoming.reject('reset')
        this.#ports.told?.({ member, address, port, error })
      },
    )
  }

  message(message: Message): void {
    const member = this.#ports.member(message.source)
    if (!member) return
    if (message.kind === 'datagram') this.#datagram(member, message)
    else if (message.kind === 'echo-request') this.#echo(member, message)
  }

  /** Whoever had this address has left: nothing of it stays open. */
  forget(addresses: readonly string[], client: string): void {
    for (const [key, flow] of this.#flows) {
      if (addresses.some((address) => key.startsWith(`${address} `))) {
        flow.close()
        this.#flows.delete(key)
      }
    }
    this.#ports.exit.clients.get(client)?.close()
    for (const [from, pairs] of this.#pairs) {
      for (const pair of [...pairs]) if (from === client || pair.to === client) pair.cut()
    }
  }

  close(): void {
    for (const flow of this.#flows.values()) flow.close()
    this.#flows.clear()
    for (const pairs of this.#pairs.values()) for (const pair of [...pairs]) pair.cut()
    this.#ports.exit.close()
  }

  #wait({ client }: GatewayMember): () => void {
    this.#waitingCount++
    this.#waiting.set(client, (this.#waiting.get(client) ?? 0) + 1)
    return () => {
      this.#waitingCount--
      const left = this.#waiting.get(client)! - 1
      if (left === 0) this.#waiting.delete(client)
      else this.#waiting.set(client, left)
    }
  }

  #client({ client }: GatewayMember): ExitClient {
    return this.#ports.exit.client(client)
  }

  async #dial(incoming: Incoming, member: GatewayMember): Promise<void> {
    const { localAddress: host, localPort: port } = incoming
    const other = this.#ports.between ? this.#ports.member(host) : undefined
    if (other) return await this.#join(incoming, member, other)
    const far = await this.#client(member).connect({ host, port, timeoutMs: CONNECT_MS })
    const flow = incoming.accept()
    // It gave up meanwhile.
    if (!flow) return far.abort()
    this.#connections++
    splice(flow, far, () => void this.#connections--)
  }

  /** Another member, through the tunnel, from our own address. */
  async #join(incoming: Incoming, member: GatewayMember, other: GatewayMember): Promise<void> {
    const { localAddress: address, localPort: port } = incoming
    const { client } = member
    const pairs = this.#pairs.get(client) ?? new Set()
    this.#pairs.set(client, pairs)
    if (pairs.size >= BETWEEN_MAX) {
      const found = `${BETWEEN_MAX} connections of this member to others`
      throw new TunnelError('exit/busy', `Cannot reach ${address}: found ${found} already`)
    }
    let isCut = false
    const pair: Pair = { to: other.client, cut: () => void (isCut = true) }
    const over = (): void => {
      pairs.delete(pair)
      if (pairs.size === 0 && this.#pairs.get(client) === pairs) this.#pairs.delete(client)
    }
    pairs.add(pair)
    const from = other.own.find((own) => own.includes(':') === address.includes(':'))
    const far = await this.#ports.tunnel().connect({
      address,
      port,
      timeoutMs: CONNECT_MS,
      ...(from === undefined ? {} : { from: { address: from } }),
    }).catch((error) => {
      over()
      throw error
    })
    const flow = isCut ? undefined : incoming.accept()
    // It gave up meanwhile, or one of them has left.
    if (!flow) {
      over()
      return far.abort()
    }
    this.#connections++
    pair.cut = () => {
      flow.abort()
      far.abort()
    }
    splice(flow, far, () => {
      this.#connections--
      over()
    })
  }

  #datagram(member: GatewayMember, message: Message): void {
    const { source, sourcePort, destination, destinationPort, payload } = message
    if (member.own.includes(destination)) {
      if (destinationPort !== DNS_PORT || !this.#ports.names) return this.#cannot(message, 'port')
      const resolve = (name: string): Promise<string[]> => this.#client(member).resolve(name)
      void answerNames(payload, resolve).then((answer) => {
        if (answer) this.#back(member, message, answer)
      })
      return
    }
    const key = `${source} ${sourcePort}`
    const known = this.#flows.get(key)
    const send = (flow: DatagramFlow): void => {
      const to = { address: destination, port: destinationPort }
      if (!flow.send(to, payload)) this.#cannot(message, 'prohibited')
    }
    if (known) {
      // The newest is the last.
      this.#flows.delete(key)
      this.#flows.set(key, known)
      return send(known)
    }
    void this.#open(member, message, key).then(
      (flow) => flow && send(flow),
      () => this.#cannot(message, 'prohibited'),
    )
  }

  async #open(
    member: GatewayMember,
    { source, sourcePort }: Message,
    key: string,
  ): Promise<DatagramFlow | undefined> {
    const flow = await this.#client(member).bindDatagrams()
    const other = this.#flows.get(key)
    if (other) {
      flow.close()
      return other
    }
    if (this.#flows.size >= PORTS_MAX) {
      const [oldest] = this.#flows
      oldest![1].close()
      this.#flows.delete(oldest![0])
    }
    this.#flows.set(key, flow)
    flow.handle({
      message: (from, payload) => {
        this.#send(member, {
          kind: 'datagram',
          source: from.address,
          sourcePort: from.port,
          destination: source,
          destinationPort: sourcePort,
          payload,
        })
      },
      closed: () => {
        if (this.#flows.get(key) === flow) this.#flows.delete(key)
      },
    })
    return flow
  }

  #echo(member: GatewayMember, message: Message): void {
    const reply = (): void => {
      const { source, destination } = message
      this.#send(member, {
        ...message,
        kind: 'echo-reply',
        source: destination,
        destination: source,
      })
    }
    if (member.own.includes(message.destination)) return reply()
    const bytes = message.payload.length
    this.#client(member).ping(message.destination, { timeoutMs: PING_MS, bytes }).then(
      reply,
      // No answer is an answer; there is no error of ICMP for an echo that a program sent.
      () => {},
    )
  }

  /** What no way to the member may carry is lost, as where a router must not break it up. */
  #send(member: GatewayMember, message: Message): void {
    const headBytes = message.source.includes(':') ? HEAD6_BYTES : HEAD4_BYTES
    if (headBytes + message.payload.length <= member.mtu) this.#ports.tunnel().send(message)
  }

  #back(member: GatewayMember, message: Message, payload: Uint8Array): void {
    this.#send(member, {
      kind: 'datagram',
      source: message.destination,
      sourcePort: message.destinationPort,
      destination: message.source,
      destinationPort: message.sourcePort,
      payload,
    })
  }

  #cannot(message: Message, reason: Unreachable): void {
    this.#ports.tunnel().send({ ...message, kind: 'unreachable', reason })
  }
}

function crowded(address: string, own: number): TunnelError {
  const found = `${own} connections of this member that wait for an answer`
  return new TunnelError('exit/busy', `Cannot reach ${address}: found ${found} already`)
}
