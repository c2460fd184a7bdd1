/**
 * One network that this agent serves: a device with a stack, the exit behind it, addresses for members,
 * and the ways that lead to it. Members of two kinds: agents, who agree in sessions, and stock clients of
 * WireGuard, whose keys a person has made (`stock_clients.ts`).
 */
import type { TunnelEndpoint } from '../../core/agreement.ts'
import { formatAddress, parseAddress } from '../../core/address.ts'
import type { Network as Range } from '../../core/address.ts'
import type { TunnelError } from '../../core/errors.ts'
import type { PeerView } from '../access.ts'
import type { Peers } from '../peers.ts'
import type { Profile } from '../profile.ts'
import type { SocketPath, World } from '../world.ts'
import type { Path } from '../wireguard-wasm/driver.ts'
import { Tunnel } from '../wireguard-wasm/tunnel.ts'
import { Exit } from './exit.ts'
import { ExitPolicy } from './exit_policy.ts'
import { Gateway } from './gateway.ts'
import type { GatewayMember } from './gateway.ts'
import { Leases, namedSubnet } from './leases.ts'
import type { Lease as StoredLease } from './leases.ts'
import type { MemberNetwork, ReachedMember } from './member_forward.ts'
import type { Place } from './network.ts'
import { ownAddresses, ownEndpoints, takenNetworks } from './own_addresses.ts'
import type { PeerTable, TablePeer } from './peer_table.ts'
import { PUBLIC_PATH, PublicPort } from './public_port.ts'
import { RACE_PATH, RacePath } from './race_path.ts'
import { RELAY_PATH, RelayPath, UDP_PATH } from './relay_path.ts'
import { StockClients } from './stock_clients.ts'
import { TunnelServer } from './tunnel_server.ts'
import type { Lease, Member } from './tunnel_server.ts'

/** Where the relay alone carries datagrams, packets may be large: fewer of them, and fewer seals. */
const RELAY_MTU = 16_384
/** Where UDP may: as WireGuard itself has it for an Ethernet of 1,500, unless it is said to be less. */
export const DIRECT_MTU = 1_420
/** Refusals by the rules that are told in so long: whoever tries place after place fills no log. */
const DENIED_TOLD_MAX = 30
const DENIED_MS = 60_000

export interface ServedOptions {
  name: string
  routes: readonly Range[]
  /** Names are answered for members. */
  dns: boolean
  /** Of those whom the rules let in, these names, KEYs and fingerprints alone; none: all of them. */
  peers: readonly string[]
  udpPort: number | undefined
  /** Where the UDP port is reached from outside: names and addresses that no interface has. */
  endpoints?: readonly Place[]
  /** Of packets inside, where UDP may carry them (1,420). */
  mtu?: number | undefined
  /** A UDP port of the relay, for stock clients; 0 is any. */
  publicPort?: number | undefined
  subnet: string | undefined
  loopback: boolean
  linkLocal: boolean
  own: boolean
  /** Members reach the ports that others of them listen on. */
  between: boolean
}

export interface ServedEvents {
  joined(member: Member): void
  left(member: Member, why: string): void
  refused(member: GatewayMember, to: { address: string; port: number; error: TunnelError }): void
  problem(error: unknown): void
}

interface ServedLease extends Lease {
  stored: StoredLease
  /** As the member is told. */
  endpoints: TunnelEndpoint[]
}

/** A stock client, as far as the device knows it. */
interface StockMember {
  name: string
  lease: StoredLease
  wireguard: TablePeer
  member: GatewayMember
}

export class ServedNetwork implements MemberNetwork {
  readonly server: TunnelServer
  readonly tunnel: Tunnel
  readonly udpPort: number | undefined
  /** For the agent to claim. */
  readonly publicPort: PublicPort | undefined
  onLeave: ((member: object) => void) | undefined
  readonly #world: World
  readonly #options: ServedOptions
  readonly #gateway: Gateway
  readonly #channels: RelayPath
  readonly #udp: SocketPath | undefined
  readonly #race: RacePath | undefined
  readonly #leases: Leases
  readonly #stock: StockClients
  /** By address. */
  /** The last is who has it; one before is about to leave. */
  readonly #members = new Map<string, GatewayMember[]>()
  readonly #stockMembers = new Map<string, StockMember>()
  readonly #table: PeerTable
  readonly #events: ServedEvents
  /** Never rejects. */
  #refreshing = Promise.resolve()
  #nextRefresh: Promise<void> | undefined
  #denied = { count: 0, sinceMs: -Infinity }
  readonly #stops: (() => void)[]

  /** Throws `lease/…`, `net/in-use`, `net/denied`, `exit/…`, `profile/…`. */
  static async open(
    world: World,
    { peers, profile, identity32 }: {
      peers: Pick<Peers, 'serve' | 'expectChannel' | 'mayStill'>
      profile: Profile
      identity32: Uint8Array
    },
    options: ServedOptions,
    events: ServedEvents,
  ): Promise<ServedNetwork> {
    const module = await world.wireguard.module()
    const key = await profile.wireguardKey(options.name)
    const udp = options.udpPort === undefined
      ? undefined
      : await world.wireguard.udpPath({ port: options.udpPort })
    try {
      const leases = networkLeases(world, { profile, identity32, ...options })
      const stock = new StockClients(world, profile, options.name)
      const parts = { peers, profile, key: key.private32, module, udp, leases, stock }
      const served = new ServedNetwork(world, parts, options, events)
      await served.refresh()
      return served
    } catch (error) {
      udp?.close()
      throw error
    }
  }

  private constructor(
    world: World,
    parts: {
      peers: Pick<Peers, 'serve' | 'expectChannel' | 'mayStill'>
      profile: Profile
      key: Uint8Array
      module: WebAssembly.Module
      udp: SocketPath | undefined
      leases: Leases
      stock: StockClients
    },
    options: ServedOptions,
    events: ServedEvents,
  ) {
    const { clock, crypto, wireguard } = world
    const { udp, profile } = parts
    this.#world = world
    this.#options = options
    this.#leases = parts.leases
    this.#stock = parts.stock
    this.#udp = udp
    this.#events = events
    this.udpPort = udp?.port
    this.publicPort = options.publicPort === undefined
      ? undefined
      : new PublicPort(options.name, options.publicPort)
    const policy = new ExitPolicy(options, () => ownAddresses(world))
    const exit = new Exit({
      net: { connect: wireguard.dial, lookup: wireguard.lookup },
      clock,
      bindUdp: wireguard.bindUdp,
      ping: wireguard.ping,
    }, policy)
    const gateway = this.#gateway = new Gateway({
      clock,
      exit,
      member: (address) => this.memberAt(address),
      names: options.dns,
      between: options.between,
      tunnel: () => this.tunnel,
      told: ({ member, address, port, error }) => {
        if (error && this.#isTold(error)) events.refused(member, { address, port, error })
      },
    })
    this.tunnel = new Tunnel({
      module: parts.module,
      privateKey: parts.key,
      addresses: [],
      mtu: RELAY_MTU,
      after: (ms, run) => clock.after(ms, run),
      soon: (run) => world.later(run),
      onIncoming: (incoming) => gateway.incoming(incoming),
      onMessage: (message) => gateway.message(message),
      onRestart: (cause) => events.problem(cause),
      onNotice: (notice, peer) => this.#race?.noticed(notice, peer),
    })
    // The stack takes the size of segments from the other end; padding must not go beyond what UDP carries.
    this.tunnel.device.setMtu(this.#directMtu)
    this.#channels = new RelayPath()
    this.tunnel.addPath(RELAY_PATH, this.#channels)
    if (udp) this.tunnel.addPath(UDP_PATH, udp)
    if (this.publicPort) this.tunnel.addPath(PUBLIC_PATH, this.publicPort)
    this.#table = tableOf(this.tunnel)
    const race = this.#race = udp && new RacePath(
      clock,
      new Map<number, Path>([[UDP_PATH, udp], [RELAY_PATH, this.#channels]]),
    )
    if (race) this.tunnel.addPath(RACE_PATH, race)
    this.server = new TunnelServer({
      clock,
      crypto,
      peers: parts.peers,
      table: this.#table,
      channels: this.#channels,
      ...(race ? { races: race } : {}),
      lease: (client, asked) => this.#lease(client, asked),
      offer: (lease) => this.#offer(lease),
      ...(options.peers.length === 0 ? {} : { narrows: (view) => isAmong(options.peers, view) }),
      joined: (member) => events.joined(member),
      left: (member, why) => events.left(member, why),
    })
    const changed = (): void => void this.refresh().catch((error) => events.problem(error))
    this.#stops = [profile.settingsPath, `${profile.configDir}/known_agents`, parts.stock.path]
      .map((path) => world.files.watch(path, changed))
  }

  get publicKey(): Uint8Array {
    return this.tunnel.device.publicKey
  }

  get counts(): { connections: number; flows: number; aead: string } {
    return { ...this.#gateway.counts, aead: this.tunnel.device.aead }
  }

  /** Who has this address now. */
  memberAt(address: string): GatewayMember | undefined {
    return this.#members.get(address)?.at(-1)
  }

  get stockMembers(): StockMember[] {
    return [...this.#stockMembers.values()]
  }

  /** Of several processes of one agent the first; a stock client by its name. */
  find(name: string): ReachedMember | undefined {
    const { members } = this.server
    const agent = members.filter(({ view }) => view.names.includes(name) || view.key === name)
      .sort((one, other) => one.number - other.number)[0]
    const address = agent
      ? formatAddress(agent.address4.bytes)
      : this.stockMembers.find((one) => one.name === name)?.lease.four ?? name
    const member = this.memberAt(address)
    const from = member?.own.find((own) => own.includes(':') === address.includes(':'))
    return member && from !== undefined ? { member, address, from } : undefined
  }

  /** What a person may have changed: rights, and stock clients. What changes meanwhile is looked at after it. */
  refresh(): Promise<void> {
    return this.#nextRefresh ??= this.#refreshing.then(async () => {
      this.#nextRefresh = undefined
      const refreshing = this.#refresh()
      this.#refreshing = refreshing.catch(() => {})
      await refreshing
    })
  }

  async #refresh(): Promise<void> {
    await this.server.recheck()
    const wanted = await this.#stock.list()
    for (const [key, member] of this.#stockMembers) {
      if (!wanted.some((one) => one.key === key)) this.#dropStock(key, member)
    }
    for (const { name, key, presharedKey } of wanted) {
      if (this.#stockMembers.has(key)) continue
      const lease = await this.#leases.lease(stockClient(name))
      const publicKey = Uint8Array.from(atob(key), (character) => character.charCodeAt(0))
      const wireguard = this.#table.addPeer({
        publicKey,
        presharedKey: Uint8Array.from(atob(presharedKey), (one) => one.charCodeAt(0)),
        allowedIps: [`${lease.four}/32`, `${lease.six}/128`],
      })
      const member = this.#enter(lease, this.#directMtu)
      this.#stockMembers.set(key, { name, lease, wireguard, member })
    }
    this.tunnel.wake()
  }

  close(): void {
    for (const stop of this.#stops) stop()
    this.server.close()
    this.#gateway.close()
    this.tunnel.close()
    this.#race?.close()
    this.#channels.close()
    this.publicPort?.close()
    this.#udp?.close()
  }

  #isTold({ code }: TunnelError): boolean {
    if (code !== 'exit/denied') return true
    const nowMs = this.#world.clock.monotonic()
    if (nowMs - this.#denied.sinceMs >= DENIED_MS) this.#denied = { count: 0, sinceMs: nowMs }
    return ++this.#denied.count <= DENIED_TOLD_MAX
  }

  get #directMtu(): number {
    return this.#options.mtu ?? DIRECT_MTU
  }

  /** Where this machine takes UDP. */
  async #endpoints(): Promise<TunnelEndpoint[]> {
    const { udpPort: port } = this
    const { endpoints: named = [] } = this.#options
    return port === undefined ? [] : await ownEndpoints(this.#world, { port, named })
  }

  async #lease(
    key: string,
    { number, taken, direct }: { number: number; taken: readonly Range[]; direct: boolean },
  ): Promise<ServedLease> {
    const client = number === 0 ? key : `${key}/${number + 1}`
    const stored = await this.#leases.lease(client, taken)
    const { four, six, subnet } = stored
    const endpoints = await this.#endpoints()
    const mtu = direct && endpoints.length > 0 ? this.#directMtu : RELAY_MTU
    const member = this.#enter(stored, mtu)
    return {
      endpoints,
      address4: { bytes: parseAddress(four)!, bits: subnet.four.bits },
      address6: { bytes: parseAddress(six)!, bits: subnet.six.bits },
      stored,
      release: () => this.#leave(stored, member),
    }
  }

  #enter({ client, four, six, serverFour, serverSix }: StoredLease, mtu: number): GatewayMember {
    const member = { client, own: [serverFour, serverSix], mtu }
    for (const address of [four, six]) {
      this.#members.set(address, [...this.#members.get(address) ?? [], member])
    }
    return member
  }

  /** What it has open ends, unless another session of the same identity has the address by now. */
  #leave({ four, six }: StoredLease, member: GatewayMember): void {
    for (const address of [four, six]) {
      const others = this.#members.get(address)?.filter((one) => one !== member) ?? []
      if (others.length > 0) this.#members.set(address, others)
      else this.#members.delete(address)
    }
    this.onLeave?.(member)
    if (!this.memberAt(four)) this.#gateway.forget([four, six], member.client)
  }

  #dropStock(key: string, { lease, wireguard, member }: StockMember): void {
    wireguard.remove()
    this.#stockMembers.delete(key)
    this.#leave(lease, member)
  }

  #offer(lease: Lease) {
    const { stored, endpoints } = lease as ServedLease
    const { serverFour } = stored
    return {
      relayMtu: RELAY_MTU,
      directMtu: this.#directMtu,
      dns: this.#options.dns ? [parseAddress(serverFour)!] : [],
      routes: [...this.#options.routes],
      endpoints,
    }
  }
}

/** Of the networks that this profile serves: one file each. */
export function networkLeases(
  world: Pick<World, 'files' | 'clock' | 'crypto' | 'probes'>,
  { profile, identity32, name, subnet }: {
    profile: Profile
    identity32: Uint8Array
    name: string
    subnet: string | undefined
  },
): Leases {
  return new Leases(world, `${profile.stateDir}/wireguard/${name}.json`, {
    identity32,
    taken: () => takenNetworks(world),
    ...(subnet === undefined ? {} : { named: namedSubnet(world.crypto, identity32, subnet) }),
  })
}

/** Under which a stock client has its lease. */
export function stockClient(name: string): string {
  return `stock:${name}`
}

/** A tunnel as the table of peers that agreements need. */
export function tableOf(tunnel: Pick<Tunnel, 'device' | 'wake'>): PeerTable {
  return {
    get publicKey() {
      return tunnel.device.publicKey
    },
    addPeer: (options) => tunnel.device.addPeer(options),
    wake: () => tunnel.wake(),
  }
}

function isAmong(names: readonly string[], view: PeerView): boolean {
  return names.some((name) =>
    name === view.key || name === view.fingerprint || view.names.includes(name)
  )
}
