/**
 * Fixed ways through a network: a local TCP or UDP port onto a place of the far side, and the reverse, a port of our
 * own address in the network onto a place of this side. Spelled as ssh does.
 */
import { formatAddress, parseAddress } from '../../core/address.ts'
import { utf8 } from '../../core/bytes.ts'
import type { Clock, Timer } from '../../core/clock.ts'
import { TunnelError } from '../../core/errors.ts'
import { splice } from '../../core/socket.ts'
import type { Conn, Listener } from '../../core/socket.ts'
import type { Net } from '../world.ts'
import type { BindUdp, DatagramFlow, FarEnd, Network, Place } from './network.ts'
import { placeText } from './network.ts'
import { hostName } from './socks.ts'

/** One forward's connections at a time. */
const CONNECTIONS_MAX = 1_024
const CONNECT_MS_MAX = 30_000
/** Senders of one UDP forward; the one that has been silent longest makes room. */
const SENDERS_MAX = 1_024
/** RFC 4787 REQ-5. */
const SENDER_IDLE_MS = 300_000
const SWEEP_MS = 15_000
const WAITING_MAX = 16

export type ForwardKind = 'tcp' | 'udp' | 'reverse'

export interface Forward {
  readonly kind: ForwardKind
  /** Where it is taken: an address of this machine, or, of a reverse one, our address in the network. */
  readonly listen: { readonly host: string; readonly port: number }
  readonly to: Place
}

const FLAG: Readonly<Record<ForwardKind, string>> = { tcp: '-L', udp: '-U', reverse: '-R' }

/**
 * `5432:db.internal:5432`, `127.0.0.1:5432:db.internal:5432`, `[::1]:5432:[fd00::1]:5432`; without an address it is
 * loopback. Throws `forward/format`.
 */
export function parseForward(kind: ForwardKind, words: string): Forward {
  const host = '(?:\\[([0-9a-fA-F:.]{2,45})\\]|([^:[\\]]{1,253}))'
  const [, ...parts] = new RegExp(`^(?:${host}:)?(\\d{1,5}):${host}:(\\d{1,5})$`).exec(words) ?? []
  const [bindSix, bindFour, from, toSix, toName, toPort] = parts
  const bind = bindSix ?? (bindFour === 'localhost' ? undefined : bindFour) ?? '127.0.0.1'
  const to = hostName(utf8(toSix ?? toName ?? ''))
  const good = to !== undefined && Number(from) <= 65_535 && Number(toPort) >= 1 &&
    Number(toPort) <= 65_535 && (bind === '*' || /^[0-9.]{7,15}$|:/.test(bind)) &&
    (kind !== 'reverse' || (bindSix ?? bindFour) === undefined)
  if (!good) {
    const example = kind === 'udp' ? '53:10.0.0.53:53' : '5432:db.internal:5432'
    throw new TunnelError(
      'forward/format',
      `Cannot read ${FLAG[kind]} ${JSON.stringify(words.slice(0, 120))}: expected ` +
        `${kind === 'reverse' ? '' : '[ADDRESS:]'}PORT:HOST:PORT, such as ${FLAG[kind]} ${example}`,
    )
  }
  return {
    kind,
    listen: { host: bind === '*' ? '0.0.0.0' : bind, port: Number(from) },
    to: { host: to, port: Number(toPort) },
  }
}

export interface ForwardPorts {
  readonly net: Pick<Net, 'listen' | 'connect'>
  readonly bindUdp: BindUdp
  readonly clock: Clock
  readonly network: Network
  /** A connection that was not made, and why. */
  readonly told?: (forward: Forward, error: unknown) => void
}

export interface OpenForward {
  readonly forward: Forward
  /** The port that was taken. */
  readonly port: number
  /** Connections or senders now. */
  readonly active: number
  close(): Promise<void>
}

/** Throws `net/in-use`, `net/denied`, `forward/reverse`. */
export async function openForward(ports: ForwardPorts, forward: Forward): Promise<OpenForward> {
  if (forward.kind === 'udp') return await UdpForward.open(ports, forward)
  return await TcpForward.open(ports, forward)
}

/** All of them or none. */
export async function openForwards(
  ports: ForwardPorts,
  forwards: readonly Forward[],
): Promise<OpenForward[]> {
  const open: OpenForward[] = []
  try {
    for (const forward of forwards) open.push(await openForward(ports, forward))
    return open
  } catch (error) {
    for (const one of open) await one.close()
    throw error
  }
}

class TcpForward implements OpenForward {
  readonly forward: Forward
  readonly #ports: ForwardPorts
  readonly #conns = new Set<Conn>()
  #listener!: Listener
  #closed = false

  private constructor(ports: ForwardPorts, forward: Forward) {
    this.#ports = ports
    this.forward = forward
  }

  static async open(ports: ForwardPorts, forward: Forward): Promise<TcpForward> {
    const made = new TcpForward(ports, forward)
    const accepted = (conn: Conn): void => void made.#carry(conn)
    if (forward.kind === 'tcp') {
      made.#listener = await ports.net.listen(forward.listen, accepted)
      return made
    }
    if (!ports.network.listen) {
      throw new TunnelError(
        'forward/reverse',
        `Cannot listen on port ${forward.listen.port} in the network: it opens nothing to us`,
      )
    }
    made.#listener = await ports.network.listen({ port: forward.listen.port }, accepted)
    return made
  }

  get port(): number {
    return this.#listener.port
  }

  get active(): number {
    return this.#conns.size
  }

  async close(): Promise<void> {
    this.#closed = true
    await this.#listener.close()
    for (const conn of this.#conns) conn.abort()
  }

  async #carry(conn: Conn): Promise<void> {
    if (this.#closed || this.#conns.size >= CONNECTIONS_MAX) return conn.abort()
    this.#conns.add(conn)
    const { network, net } = this.#ports
    const to = { ...this.forward.to, timeoutMs: CONNECT_MS_MAX }
    try {
      const far = await (this.forward.kind === 'tcp' ? network.connect(to) : net.connect(to))
      splice(conn, far, () => void this.#conns.delete(conn))
    } catch (error) {
      this.#conns.delete(conn)
      conn.abort()
      this.#ports.told?.(this.forward, error)
    }
  }
}

interface Sender {
  readonly from: FarEnd
  flow: DatagramFlow | undefined
  to: FarEnd | undefined
  waiting: Uint8Array[]
  activeMs: number
}

class UdpForward implements OpenForward {
  readonly forward: Forward
  readonly #ports: ForwardPorts
  /** In the order of their last datagram. */
  readonly #senders = new Map<string, Sender>()
  #local!: DatagramFlow
  #sweeper: Timer | undefined
  #closed = false

  private constructor(ports: ForwardPorts, forward: Forward) {
    this.#ports = ports
    this.forward = forward
  }

  static async open(ports: ForwardPorts, forward: Forward): Promise<UdpForward> {
    const made = new UdpForward(ports, forward)
    made.#local = await ports.bindUdp(forward.listen)
    made.#local.handle({ message: (from, bytes) => made.#outward(from, bytes) })
    return made
  }

  get port(): number {
    return this.#local.port
  }

  get active(): number {
    return this.#senders.size
  }

  async close(): Promise<void> {
    this.#closed = true
    this.#sweeper?.cancel()
    this.#local.close()
    for (const sender of this.#senders.values()) sender.flow?.close()
    this.#senders.clear()
    await Promise.resolve()
  }

  #outward(from: FarEnd, bytes: Uint8Array): void {
    if (this.#closed) return
    const key = placeText({ host: from.address, port: from.port })
    const sender = this.#senders.get(key) ?? this.#welcome(key, from)
    sender.activeMs = this.#ports.clock.monotonic()
    // To the end of the order.
    this.#senders.delete(key)
    this.#senders.set(key, sender)
    if (sender.flow) sender.flow.send(sender.to!, bytes)
    else if (sender.waiting.length < WAITING_MAX) sender.waiting.push(bytes)
  }

  #welcome(key: string, from: FarEnd): Sender {
    if (this.#senders.size >= SENDERS_MAX) this.#forget(this.#senders.keys().next().value!)
    const sender: Sender = { from, flow: undefined, to: undefined, waiting: [], activeMs: 0 }
    this.#senders.set(key, sender)
    this.#open(sender).catch((error) => {
      if (this.#senders.get(key) === sender) this.#forget(key)
      this.#ports.told?.(this.forward, error)
    })
    this.#sweepLater()
    return sender
  }

  async #open(sender: Sender): Promise<void> {
    const { network } = this.#ports
    const { host, port } = this.forward.to
    const [found = ''] = parseAddress(host) ? [host] : await network.resolve(host)
    const bytes = parseAddress(found)
    if (!bytes) {
      throw new TunnelError('net/unknown-host', `Cannot find ${host}: it has no address`)
    }
    const flow = await network.bindDatagrams()
    const key = placeText({ host: sender.from.address, port: sender.from.port })
    if (this.#closed || this.#senders.get(key) !== sender) return flow.close()
    sender.flow = flow
    const address = formatAddress(bytes)
    sender.to = { address, port }
    flow.handle({
      message: (from, datagram) => {
        // Only what it was forwarded to answers.
        if (from.address === address && from.port === port) this.#local.send(sender.from, datagram)
      },
      closed: () => {
        if (this.#senders.get(key) === sender) this.#forget(key)
      },
    })
    for (const datagram of sender.waiting) flow.send(sender.to, datagram)
    sender.waiting = []
  }

  #forget(key: string): void {
    this.#senders.get(key)?.flow?.close()
    this.#senders.delete(key)
  }

  #sweepLater(): void {
    this.#sweeper ??= this.#ports.clock.after(SWEEP_MS, () => {
      this.#sweeper = undefined
      const oldestMs = this.#ports.clock.monotonic() - SENDER_IDLE_MS
      for (const [key, { activeMs }] of [...this.#senders]) {
        if (activeMs <= oldestMs) this.#forget(key)
      }
      if (this.#senders.size > 0 && !this.#closed) this.#sweepLater()
    })
  }
}
