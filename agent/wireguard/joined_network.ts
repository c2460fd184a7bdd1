/**
 * A network of another agent, joined by this process: a session with its agreement, a device with its
 * stack, the relay's channel and direct UDP where that is known. The network outlives its sessions.
 */
import type { Agreed, TunnelEndpoint } from '../../core/agreement.ts'
import { formatAddress } from '../../core/address.ts'
import type { Peers } from '../peers.ts'
import type { SocketPath, World } from '../world.ts'
import type { Endpoint } from '../wireguard-wasm/address.ts'
import type { Path } from '../wireguard-wasm/driver.ts'
import type { Peer, PeerStats } from '../wireguard-wasm/peer.ts'
import { Tunnel } from '../wireguard-wasm/tunnel.ts'
import type { Notice } from '../wireguard-wasm/device.ts'
import type { NearEnd, NearEndOptions, NearEnds } from './near_end.ts'
import { lanEndpoints, takenNetworks } from './own_addresses.ts'
import { RACE_PATH, RacePath } from './race_path.ts'
import { RELAY_PATH, RelayPath, UDP_PATH } from './relay_path.ts'
import { tableOf } from './served_network.ts'
import { StackNetwork } from './stack_network.ts'
import { allowedOf, TunnelClient } from './tunnel_client.ts'
import type { ClientDevice, TunnelState } from './tunnel_client.ts'

/** Of the largest size, until UDP is known not to carry it. */
const ECHOES = 3
const ECHO_MS = 1_500
/** Of IPv4 and ICMP. */
const ECHO_HEAD_BYTES = 28

export interface JoinedEvents {
  changed(state: TunnelState): void
  /** Packets take this way from now on: `relay`, `udp` with the far end. */
  moved?(path: string): void
  problem(error: unknown): void
}

export interface JoinedFacts {
  name: string
  state: TunnelState['kind'] | 'opening'
  addresses: readonly string[]
  /** `relay`, `udp` with the far end, or undefined before the first datagram. */
  path: string | undefined
  stats: PeerStats | undefined
  flows: number
  /** Largest packet inside, 0 before the first agreement. */
  mtu: number
  /** Whose code seals and opens long packets, once there is a tunnel: `wasm`, or a library's name. */
  aead?: string
  /** Of this machine, where the network has one. */
  interface?: string
}

export interface JoinOptions {
  peers: Pick<Peers, 'open' | 'openPackets'>
  name: string
  /** Whether UDP is tried where the server takes it. */
  direct?: boolean
  /** What is at our end; a stack, which `network` is over, unless given. */
  ends?: NearEnds
}

export class JoinedNetwork {
  readonly name: string
  readonly network: StackNetwork
  readonly #world: World
  readonly #client: TunnelClient
  readonly #module: WebAssembly.Module
  readonly #events: JoinedEvents
  /** Undefined: the relay alone carries. */
  readonly #udp: SocketPath | undefined
  /** What was offered in the agreement that is being made. */
  #offered: TunnelEndpoint[] = []
  #agreed: Agreed | undefined
  #mtu = 0
  #state: JoinedFacts['state'] = 'opening'
  readonly #ends: NearEnds
  #tunnel: NearEnd | undefined
  #addresses: readonly string[] = []
  #isClosed = false
  #channels: RelayPath | undefined
  #race: RacePath | undefined

  /** Resolves when it is up. Throws what `TunnelClient.open` throws. */
  static async open(
    world: World,
    { peers, name, direct = true, ends }: JoinOptions,
    events: JoinedEvents,
  ): Promise<JoinedNetwork> {
    const module = await world.wireguard.module()
    // The relay carries where there is no UDP.
    const udp = direct
      ? await world.wireguard.udpPath({ port: 0 }).catch((error) => events.problem(error))
      : undefined
    const joined = new JoinedNetwork(
      world,
      { peers, name, module, ...(udp ? { udp } : {}), ...(ends ? { ends } : {}) },
      events,
    )
    try {
      await joined.#client.open()
      return joined
    } catch (error) {
      joined.close()
      throw error
    }
  }

  private constructor(
    world: World,
    { peers, name, udp, module, ends }: Omit<JoinOptions, 'direct'> & {
      udp?: SocketPath
      module: WebAssembly.Module
    },
    events: JoinedEvents,
  ) {
    const { clock, crypto } = world
    this.#world = world
    this.name = name
    this.#module = module
    this.#udp = udp
    this.#events = events
    this.#ends = ends ?? { make: (options) => this.#stack(options) }
    this.network = new StackNetwork({
      clock,
      crypto,
      resolvers: () => this.#agreed?.dns.map(formatAddress) ?? [],
      routes: () => this.#agreed ? allowedOf(this.#agreed) : [],
    })
    this.#client = new TunnelClient({
      clock,
      crypto,
      peers,
      name,
      taken: () => takenNetworks(world),
      endpoints: () => this.#offered = udp ? lanEndpoints(this.#outside, udp.port) : [],
      networks: () => JSON.stringify(this.#outside.probes.interfaces()),
      device: (privateKey, agreed) => this.#device(privateKey, agreed),
      changed: (state) => this.#changed(state),
      moved: (endpoint) => events.moved?.(pathText(endpoint)),
      ...(ends ? {} : { fits: (agreed: Agreed) => this.#fits(agreed) }),
    })
  }

  /** This machine without what it has in the network itself. */
  get #outside(): Pick<World, 'probes'> {
    const { probes } = this.#world
    const interfaces = () =>
      probes.interfaces().filter(({ address }) => !this.#addresses.includes(address))
    return { probes: { ...probes, interfaces } }
  }

  /** The serving agent answers echoes, as large as packets may be. */
  async #fits({ address4 }: Agreed): Promise<boolean> {
    const server = address4.bytes.map((byte, i) =>
      byte & (0xff00 >> Math.min(8, Math.max(0, address4.bits - 8 * i)))
    )
    server[3]!++
    const echo = async (bytes: number): Promise<boolean> => {
      try {
        await this.network.ping(formatAddress(server), { bytes, timeoutMs: ECHO_MS })
        return true
      } catch {
        return false
      }
    }
    for (let i = 0; i < ECHOES; i++) if (await echo(this.#mtu - ECHO_HEAD_BYTES)) return true
    // Whoever answers no echo at all says nothing.
    return !await echo(0)
  }

  get agreed(): Agreed | undefined {
    return this.#agreed
  }

  get facts(): JoinedFacts {
    const stats = this.#client.wireguard?.stats()
    return {
      name: this.name,
      state: this.#state,
      addresses: this.#addresses,
      path: stats?.endpoint && pathText(stats.endpoint),
      stats,
      flows: this.#tunnel?.flows ?? 0,
      mtu: this.#mtu,
      ...(this.#tunnel ? { aead: this.#tunnel.device.aead } : {}),
      ...(this.#ends.interface === undefined ? {} : { interface: this.#ends.interface }),
    }
  }

  close(): void {
    this.#isClosed = true
    this.#client.close()
    this.network.close()
    this.#tunnel?.close()
    this.#race?.close()
    this.#channels?.close()
    this.#udp?.close()
  }

  #changed(state: TunnelState): void {
    this.#state = state.kind
    this.#events.changed(state)
  }

  async #device(privateKey: Uint8Array, agreed: Agreed): Promise<ClientDevice> {
    const before = this.#tunnel && this.#addresses.join()
    this.#agreed = agreed
    const addresses = [agreed.address4, agreed.address6].map(({ bytes }) => formatAddress(bytes))
    // The size of segments is agreed on when a connection opens: all ways that may come have to carry them.
    const isDirect = this.#offered.length > 0 && agreed.endpoints.length > 0
    const mtu = isDirect ? agreed.directMtu : agreed.relayMtu
    // Another address or size: connections of the one before could not go on.
    if (before === addresses.join() && this.#mtu === mtu) {
      // The server ends what is open with the session that it was opened in.
      this.#tunnel!.reset?.()
      this.#tunnel!.device.setPrivateKey(privateKey)
      await this.#ends.renewed?.(agreed)
    } else await this.#build(privateKey, { addresses, mtu, agreed })
    return {
      table: tableOf(this.#tunnel!),
      channels: this.#channels!,
      ...(this.#race && isDirect ? { races: this.#race } : {}),
    }
  }

  async #build(
    privateKey: Uint8Array,
    { addresses, mtu, agreed }: { addresses: string[]; mtu: number; agreed: Agreed },
  ): Promise<void> {
    this.#tunnel?.close()
    this.#race?.close()
    this.#channels?.close()
    this.#tunnel = undefined
    const tunnel = await this.#ends.make({
      module: this.#module,
      privateKey,
      addresses,
      mtu,
      after: (ms, run) => this.#world.clock.after(ms, run),
      onRestart: (cause: unknown) => this.#events.problem(cause),
      onNotice: (notice: Notice, peer: Peer) => this.#race?.noticed(notice, peer),
    }, agreed)
    // It was closed meanwhile.
    if (this.#isClosed) tunnel.close()
    this.#tunnel = tunnel
    this.#addresses = addresses
    this.#mtu = mtu
    const channels = this.#channels = new RelayPath()
    const ways = new Map<number, Path>([[RELAY_PATH, channels]])
    if (this.#udp) {
      ways.set(UDP_PATH, this.#udp)
      this.#race = new RacePath(this.#world.clock, ways)
      tunnel.addPath(RACE_PATH, this.#race)
    }
    for (const [number, path] of ways) tunnel.addPath(number, path)
  }

  #stack(options: NearEndOptions): NearEnd {
    const tunnel = new Tunnel({
      ...options,
      soon: (run) => this.#world.later(run),
      onIncoming: (incoming) => this.network.incoming(incoming),
      onMessage: (message) => this.network.message(message),
    })
    this.network.use(tunnel)
    return {
      device: tunnel.device,
      addPath: (number, path) => tunnel.addPath(number, path),
      wake: () => tunnel.wake(),
      get flows() {
        return tunnel.stats().flows
      },
      reset: () => tunnel.reset(new Error('the network was joined anew')),
      close: () => tunnel.close(),
    }
  }
}

/** `relay`, `udp 192.0.2.1 port 51820`. */
export function pathText({ path, host, port }: Endpoint): string {
  return path === RELAY_PATH ? 'relay' : `udp ${host} port ${port}`
}
