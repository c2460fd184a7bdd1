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
import type { PeerStats } from '../wireguard-wasm/peer.ts'
import { Tunnel } from '../wireguard-wasm/tunnel.ts'
import { lanEndpoints, takenNetworks } from './own_addresses.ts'
import { RACE_PATH, RacePath } from './race_path.ts'
import { RELAY_PATH, RelayPath, UDP_PATH } from './relay_path.ts'
import { tableOf } from './served_network.ts'
import { StackNetwork } from './stack_network.ts'
import { allowedOf, TunnelClient } from './tunnel_client.ts'
import type { ClientDevice, TunnelState } from './tunnel_client.ts'

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
  #tunnel: Tunnel | undefined
  #channels: RelayPath | undefined
  #race: RacePath | undefined

  /** Resolves when it is up. Throws what `TunnelClient.open` throws. */
  static async open(
    world: World,
    { peers, name, direct = true }: {
      peers: Pick<Peers, 'open' | 'openPackets'>
      name: string
      /** Whether UDP is tried where the server takes it. */
      direct?: boolean
    },
    events: JoinedEvents,
  ): Promise<JoinedNetwork> {
    const module = await world.wireguard.module()
    // The relay carries where there is no UDP.
    const udp = direct
      ? await world.wireguard.udpPath({ port: 0 }).catch((error) => events.problem(error))
      : undefined
    const joined = new JoinedNetwork(
      world,
      { peers, name, module, ...(udp ? { udp } : {}) },
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
    { peers, name, udp, module }: {
      peers: Pick<Peers, 'open' | 'openPackets'>
      name: string
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
      endpoints: () => this.#offered = udp ? lanEndpoints(world, udp.port) : [],
      networks: () => JSON.stringify(world.probes.interfaces()),
      device: (privateKey, agreed) => this.#device(privateKey, agreed),
      changed: (state) => this.#changed(state),
      moved: (endpoint) => events.moved?.(pathText(endpoint)),
    })
  }

  get agreed(): Agreed | undefined {
    return this.#agreed
  }

  get facts(): JoinedFacts {
    const stats = this.#client.wireguard?.stats()
    return {
      name: this.name,
      state: this.#state,
      addresses: this.network.localAddresses,
      path: stats?.endpoint && pathText(stats.endpoint),
      stats,
      flows: this.#tunnel?.stats().flows ?? 0,
      mtu: this.#mtu,
    }
  }

  close(): void {
    this.#client.close()
    this.network.close()
    this.#tunnel?.close()
    this.#channels?.close()
    this.#udp?.close()
  }

  #changed(state: TunnelState): void {
    this.#state = state.kind
    this.#events.changed(state)
  }

  #device(privateKey: Uint8Array, agreed: Agreed): Promise<ClientDevice> {
    const before = this.#tunnel && this.network.localAddresses.join()
    this.#agreed = agreed
    const addresses = [agreed.address4, agreed.address6].map(({ bytes }) => formatAddress(bytes))
    // The size of segments is agreed on when a connection opens: all ways that may come have to carry them.
    const isDirect = this.#offered.length > 0 && agreed.endpoints.length > 0
    const mtu = isDirect ? agreed.directMtu : agreed.relayMtu
    // Another address or size: connections of the one before could not go on.
    if (before === addresses.join() && this.#mtu === mtu) {
      this.#tunnel!.device.setPrivateKey(privateKey)
    } else this.#build(privateKey, { addresses, mtu })
    return Promise.resolve({
      table: tableOf(this.#tunnel!),
      channels: this.#channels!,
      ...(this.#race && isDirect ? { races: this.#race } : {}),
    })
  }

  #build(privateKey: Uint8Array, { addresses, mtu }: { addresses: string[]; mtu: number }): void {
    this.#tunnel?.close()
    this.#channels?.close()
    const { clock } = this.#world
    const tunnel = this.#tunnel = new Tunnel({
      module: this.#module,
      privateKey,
      addresses,
      mtu,
      after: (ms, run) => clock.after(ms, run),
      onIncoming: (incoming) => this.network.incoming(incoming),
      onMessage: (message) => this.network.message(message),
      onRestart: (cause) => this.#events.problem(cause),
      onNotice: (notice, peer) => this.#race?.noticed(notice, peer),
    })
    this.#mtu = mtu
    this.network.use(tunnel)
    const channels = this.#channels = new RelayPath()
    const ways = new Map<number, Path>([[RELAY_PATH, channels]])
    if (this.#udp) {
      ways.set(UDP_PATH, this.#udp)
      this.#race = new RacePath(ways)
      tunnel.addPath(RACE_PATH, this.#race)
    }
    for (const [number, path] of ways) tunnel.addPath(number, path)
  }
}

/** `relay`, `udp 192.0.2.1 port 51820`. */
export function pathText({ path, host, port }: Endpoint): string {
  return path === RELAY_PATH ? 'relay' : `udp ${host} port ${port}`
}
