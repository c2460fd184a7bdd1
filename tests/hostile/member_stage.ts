/**
 * A served network with two stock clients over UDP: a neighbour with a stack, who does what people do, and
 * a member whose every packet is made by hand and sealed by a real device. What lies behind the exit is in
 * this process, and writes down whatever reached it.
 */
import { parseRoute } from '../../agent/wireguard/exit_policy.ts'
import { ServedNetwork } from '../../agent/wireguard/served_network.ts'
import type { ServedOptions } from '../../agent/wireguard/served_network.ts'
import { StackNetwork } from '../../agent/wireguard/stack_network.ts'
import { StockClients } from '../../agent/wireguard/stock_clients.ts'
import type { DatagramHandler } from '../../agent/wireguard/network.ts'
import { Profile } from '../../agent/profile.ts'
import type { SocketPath, World } from '../../agent/world.ts'
import { toBase64 } from '../../agent/base64.ts'
import { Device } from '../../agent/wireguard-wasm/device.ts'
import { Driver, packetEngine } from '../../agent/wireguard-wasm/driver.ts'
import type { Peer } from '../../agent/wireguard-wasm/peer.ts'
import { Tunnel } from '../../agent/wireguard-wasm/tunnel.ts'
import { parseAddress } from '../../core/address.ts'
import { concat, EMPTY, text, utf8 } from '../../core/bytes.ts'
import { TunnelError } from '../../core/errors.ts'
import { memoryConns } from '../../core/socket.ts'
import { testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'
import { fast } from '../support/crypto.ts'
import { module } from '../support/wireguard.ts'

/** Behind the exit (RFC 5737): one that says back what it is told, and one that never answers, as all of 198.51.100.0/24. */
export const HOST = '192.0.2.10'
export const DEAD = '192.0.2.66'
const EVERYWHERE = ['0.0.0.0/0', '::/0']
const LATE_MS = 5000
const AGAIN_MS = 300

export interface Client {
  address: string
  address6: string
  privateKey: Uint8Array
  presharedKey: Uint8Array
}

export class MemberStage {
  served!: ServedNetwork
  readonly heard = new Set<string>()
  /** What the exit dialled and sent to, as "address port". */
  readonly dialled: string[] = []
  readonly sent: string[] = []
  /** How often the person was told of a place that no route names. */
  denials = 0
  dialling = 0
  diallingMost = 0
  portsOpen = 0
  portsMost = 0
  pinging = 0
  pingingMost = 0
  readonly names = new Map<string, string[]>()
  member!: Member
  neighbour!: StackNetwork
  neighbourAt!: Client
  readonly #test: TestWorld
  readonly #world: World
  readonly #stock: StockClients
  readonly #profile: Profile
  readonly #closers: (() => void)[] = []

  static async open(options: Partial<ServedOptions> = {}): Promise<MemberStage> {
    const stage = new MemberStage(await testWorld())
    await stage.#open(options)
    return stage
  }

  private constructor(test: TestWorld) {
    this.#test = test
    this.#world = this.#behind(test.world)
    this.#profile = new Profile(this.#world)
    this.#stock = new StockClients(this.#world, this.#profile, 'office')
  }

  async #open(options: Partial<ServedOptions>): Promise<void> {
    const { public: identity32 } = await this.#profile.identity()
    this.served = await ServedNetwork.open(
      this.#world,
      {
        // There are no agents here.
        peers: {
          serve() {},
          expectChannel: () => false,
          mayStill: () => Promise.resolve(false),
        },
        profile: this.#profile,
        identity32,
      },
      {
        name: 'office',
        routes: EVERYWHERE.map(parseRoute),
        dns: true,
        peers: [],
        udpPort: 0,
        subnet: undefined,
        loopback: false,
        linkLocal: false,
        own: false,
        between: false,
        ...options,
      },
      {
        joined() {},
        left() {},
        refused: (_, { error }) => {
          this.heard.add(error.code)
          if (error.code === 'exit/denied') this.denials++
        },
        problem: (error) => void this.heard.add(`problem ${error}`),
      },
    )
    this.#closers.push(() => this.served.close())
    const [neighbour, member] = [await this.#client('neighbour'), await this.#client('member')]
    this.neighbourAt = neighbour
    this.neighbour = await this.#stack(neighbour)
    const path = await this.#path()
    this.member = new Member(this, member, path)
    this.#closers.push(() => this.member.close())
  }

  get exit(): string {
    return `127.0.0.1:${this.served.udpPort}`
  }

  /** Also what the device turned away. */
  codes(): Set<string> {
    const { drops, restarts } = this.served.tunnel.device.stats()
    for (const [name, count] of Object.entries(drops)) {
      if (count > 0) this.heard.add(`wireguard/${name}`)
    }
    if (this.served.tunnel.stats().dropped > 0) this.heard.add('stack/dropped')
    if (restarts > 0) this.heard.add('wireguard/trapped')
    return this.heard
  }

  async until(is: () => boolean, what: string): Promise<void> {
    const endMs = performance.now() + LATE_MS
    while (!is()) {
      if (performance.now() > endMs) {
        throw new Error(`${what} did not come; heard: ${[...this.codes()].join(', ')}`)
      }
      await new Promise((resolve) => setTimeout(resolve, 2))
    }
  }

  /** The neighbour opens a connection, says something and hears it back. */
  async neighbourIsServed(): Promise<void> {
    const conn = await this.neighbour.connect({ host: HOST, port: 7, timeoutMs: LATE_MS })
    const words = `hello ${performance.now()}`
    const back = await new Promise<string>((resolve, reject) => {
      let got: Uint8Array = EMPTY
      conn.handle({
        data: (bytes) => void (got = concat(got, bytes)),
        end: () => resolve(text(got)),
        closed: (error) => reject(error ?? new Error('closed')),
      })
      conn.write(utf8(words))
      conn.end()
    })
    if (back !== words) throw new Error(`the neighbour heard ${back}`)
  }

  /** The right of the member ends. */
  async withdraw(): Promise<void> {
    await this.#stock.remove('member')
    await this.until(() => this.served.stockMembers.length === 1, 'its end')
  }

  async close(): Promise<void> {
    for (const close of this.#closers.reverse()) close()
    await this.#test.close()
  }

  async #client(name: string): Promise<Client> {
    const [privateKey, presharedKey] = [fast.randomBytes(32), fast.randomBytes(32)]
    const key = toBase64(fast.x25519Public(privateKey))
    const entry = { name, key, presharedKey: toBase64(presharedKey), sinceMs: 0 }
    await this.#stock.add(entry, () => Promise.resolve())
    await this.served.refresh()
    const { lease } = this.served.stockMembers.find((one) => one.name === name)!
    return { address: lease.four, address6: lease.six, privateKey, presharedKey }
  }

  async #path(): Promise<SocketPath> {
    const path = await this.#world.wireguard.udpPath({ port: 0 })
    this.#closers.push(() => path.close())
    return path
  }

  async #stack({ address, address6, privateKey, presharedKey }: Client): Promise<StackNetwork> {
    const network: StackNetwork = new StackNetwork({
      clock: this.#world.clock,
      crypto: fast,
      resolvers: () => [this.served.stockMembers[0]!.lease.serverFour],
      routes: () => EVERYWHERE.map(parseRoute),
    })
    const tunnel = new Tunnel({
      module,
      privateKey,
      addresses: [address, address6],
      onIncoming: (incoming) => {
        this.heard.add('neighbour/called')
        network.incoming(incoming)
      },
      onMessage: (message) => {
        if (message.source.startsWith(this.member.at.address)) this.heard.add('neighbour/called')
        network.message(message)
      },
    })
    network.use(tunnel)
    tunnel.addPath(0, await this.#path())
    tunnel.device.addPeer({
      publicKey: this.served.publicKey,
      presharedKey,
      allowedIps: EVERYWHERE,
      endpoint: this.exit,
    })
    this.#closers.push(() => tunnel.close())
    return network
  }

  #behind(world: World): World {
    return {
      ...world,
      wireguard: {
        ...world.wireguard,
        lookup: (name) => {
          const found = this.names.get(name)
          if (found) return Promise.resolve(found)
          return Promise.reject(new TunnelError('net/unknown-host', `Cannot find ${name}`))
        },
        dial: (target) => this.#dial(target as { host: string; port: number }),
        bindUdp: () => {
          let handler: DatagramHandler | undefined
          this.portsMost = Math.max(this.portsMost, ++this.portsOpen)
          return Promise.resolve({
            port: 1,
            send: (to, bytes) => {
              this.sent.push(`${to.address} ${to.port}`)
              queueMicrotask(() => handler?.message(to, bytes))
              return true
            },
            handle: (one) => void (handler = one),
            close: () => void this.portsOpen--,
          })
        },
        ping: async () => {
          this.pingingMost = Math.max(this.pingingMost, ++this.pinging)
          await new Promise((resolve) => setTimeout(resolve, 20))
          this.pinging--
          return 1
        },
      },
    }
  }

  async #dial({ host, port, timeoutMs }: { host: string; port: number; timeoutMs?: number }) {
    this.dialled.push(`${host} ${port}`)
    this.diallingMost = Math.max(this.diallingMost, ++this.dialling)
    try {
      if (host === DEAD || host.startsWith('198.51.100.')) {
        await new Promise<void>((resolve) => {
          this.#world.clock.after(timeoutMs ?? LATE_MS, resolve)
        })
        throw new TunnelError('net/timeout', `Cannot connect to ${host}: no answer in time`)
      }
      const [near, far] = memoryConns()
      far.handle({
        data: (bytes) => void far.write(bytes),
        end: () => far.end(),
        closed() {},
      })
      return await Promise.resolve(near)
    } finally {
      this.dialling--
    }
  }
}

/** Packets by hand, under a real handshake. */
export class Member {
  readonly at: Client
  readonly device: Device
  readonly peer: Peer
  /** What came back. */
  readonly packets: Uint8Array[] = []
  readonly #driver: Driver
  readonly #stage: MemberStage

  constructor(stage: MemberStage, at: Client, path: SocketPath) {
    this.#stage = stage
    this.at = at
    this.device = new Device({ module, privateKey: at.privateKey, mtu: 16_000 })
    this.#driver = new Driver(packetEngine(this.device, (packets) => {
      packets.each((packet) => this.packets.push(packet.slice()))
    }))
    this.#driver.addPath(0, path)
    this.peer = this.device.addPeer({
      publicKey: stage.served.publicKey,
      presharedKey: at.presharedKey,
      allowedIps: EVERYWHERE,
      endpoint: stage.exit,
    })
  }

  /** Sends packets, some at a time, so that no socket drops them. */
  async send(packets: Iterable<Uint8Array>): Promise<void> {
    let count = 0
    for (const packet of packets) {
      while (!this.device.send(packet)) {
        this.#driver.wake()
        await new Promise((resolve) => setTimeout(resolve, 1))
      }
      if (++count % 64 > 0) continue
      this.#driver.wake()
      await new Promise((resolve) => setTimeout(resolve, 1))
    }
    this.#driver.wake()
  }

  /** Says something to the host from an address and port of its own, and hears it back. */
  async isServed(port = 4000): Promise<void> {
    const payload = fast.randomBytes(16)
    const ask = udp({ source: this.at.address, destination: HOST, sourcePort: port, payload })
    const is = (one: Uint8Array): boolean =>
      isFrom(one, HOST) && one[9] === 17 && Buffer.from(one.subarray(28)).equals(payload)
    await this.#asks(ask, is, 'the answer of the host')
  }

  /** A SYN of its own is answered by SYN and ACK. */
  async connects(destination: string, destinationPort: number): Promise<void> {
    const ask = syn({ source: this.at.address, destination, destinationPort })
    const is = (one: Uint8Array): boolean =>
      isFrom(one, destination) && one[9] === 6 && one[33] === 0x12
    await this.#asks(ask, is, 'SYN and ACK')
  }

  /** Asks again as long as no answer comes, as programs do: datagrams may be lost. */
  async #asks(ask: Uint8Array, is: (packet: Uint8Array) => boolean, what: string): Promise<void> {
    const before = this.packets.length
    let againMs = 0
    await this.#stage.until(() => {
      if (performance.now() >= againMs) {
        againMs = performance.now() + AGAIN_MS
        void this.send([ask])
      }
      return this.packets.slice(before).some(is)
    }, what)
  }

  close(): void {
    this.#driver.close()
  }
}

export function isFrom(packet: Uint8Array, address: string): boolean {
  return packet.slice(12, 16).join('.') === address
}

export interface PacketOptions {
  source: string
  destination: string
  sourcePort?: number
  destinationPort?: number
  payload?: Uint8Array
}

/** RFC 1071. */
function checksum(...parts: Uint8Array[]): number {
  const bytes = concat(...parts)
  let sum = 0
  for (let i = 0; i < bytes.length; i += 2) sum += bytes[i]! << 8 | (bytes[i + 1] ?? 0)
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16)
  return ~sum & 0xffff
}

/** RFC 791, or RFC 8200 by the addresses. `fragment`: flags and offset as on the wire. */
export function ip(
  { source, destination }: PacketOptions,
  protocol: number,
  payload: Uint8Array,
  { id = 0, fragment = 0 }: { id?: number; fragment?: number } = {},
): Uint8Array {
  const [from, to] = [parseAddress(source)!, parseAddress(destination)!]
  if (from.length === 16) {
    const head = Uint8Array.of(
      0x60,
      0,
      0,
      0,
      payload.length >> 8,
      payload.length & 255,
      protocol,
      64,
    )
    return concat(head, from, to, payload)
  }
  const head = new Uint8Array(20)
  const length = 20 + payload.length
  head.set([0x45, 0, length >> 8, length & 255, id >> 8, id & 255, fragment >> 8, fragment & 255])
  head.set([64, protocol, 0, 0, ...from, ...to], 8)
  const sum = checksum(head)
  head.set([sum >> 8, sum & 255], 10)
  return concat(head, payload)
}

function pseudo({ source, destination }: PacketOptions, protocol: number, length: number) {
  const [from, to] = [parseAddress(source)!, parseAddress(destination)!]
  return concat(from, to, Uint8Array.of(0, 0, length >> 8, length & 255, 0, protocol))
}

export function udp(options: PacketOptions): Uint8Array {
  return ip(options, 17, udpSegment(options))
}

export function udpSegment(options: PacketOptions): Uint8Array {
  const { sourcePort = 4000, destinationPort = 53, payload = utf8('hello') } = options
  const length = 8 + payload.length
  const ports = [sourcePort, destinationPort, length].flatMap((one) => [one >> 8, one & 255])
  const segment = concat(Uint8Array.of(...ports, 0, 0), payload)
  const sum = checksum(pseudo(options, 17, length), segment) || 0xffff
  segment.set([sum >> 8, sum & 255], 6)
  return segment
}

/** RFC 9293, a first segment. */
export function syn(options: PacketOptions): Uint8Array {
  const { sourcePort = 4000, destinationPort = 80 } = options
  const ports = [sourcePort, destinationPort].flatMap((one) => [one >> 8, one & 255])
  const segment = Uint8Array.of(...ports, 1, 2, 3, 4, 0, 0, 0, 0, 0x50, 2, 255, 255, 0, 0, 0, 0)
  const sum = checksum(pseudo(options, 6, segment.length), segment)
  segment.set([sum >> 8, sum & 255], 16)
  return ip(options, 6, segment)
}

export function echo(options: PacketOptions, sequence: number): Uint8Array {
  const head = Uint8Array.of(8, 0, 0, 0, 0, 7, sequence >> 8, sequence & 255)
  const sum = checksum(head)
  head.set([sum >> 8, sum & 255], 2)
  return ip(options, 1, head)
}
