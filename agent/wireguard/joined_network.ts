/**
 * A network of another agent, joined by this process: a session with its agreement, a device with its
 * stack, the relay's channel and direct UDP where that is known. The network outlives its sessions.
 */
import type { Agreed } from '../../core/agreement.ts'
import { formatAddress } from '../../core/address.ts'
import type { Peers } from '../peers.ts'
import type { SocketPath, World } from '../world.ts'
import type { PeerStats } from '../wireguard-wasm/peer.ts'
import { Tunnel } from '../wireguard-wasm/tunnel.ts'
import { RELAY_PATH, RelayPath, UDP_PATH } from './relay_path.ts'
import { tableOf, takenNetworks } from './served_network.ts'
import { StackNetwork } from './stack_network.ts'
import { allowedOf, TunnelClient } from './tunnel_client.ts'
import type { TunnelState } from './tunnel_client.ts'

export interface JoinedEvents {
  /** After the first time. */
  changed(state: TunnelState): void
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
}

export class JoinedNetwork {
  readonly name: string
  readonly network: StackNetwork
  readonly #world: World
  readonly #client: TunnelClient
  readonly #module: WebAssembly.Module
  readonly #events: JoinedEvents
  readonly #direct: boolean
  #agreed: Agreed | undefined
  #state: JoinedFacts['state'] = 'opening'
  #tunnel: Tunnel | undefined
  #channels: RelayPath | undefined
  #udp: SocketPath | undefined

  /** Resolves when it is up. Throws what `TunnelClient.open` throws. */
  static async open(
    world: World,
    { peers, name, direct = true }: {
      peers: Pick<Peers, 'open' | 'openPackets'>
      name: string
      /** Whether UDP is tried where the server names an endpoint. */
      direct?: boolean
    },
    events: JoinedEvents,
  ): Promise<JoinedNetwork> {
    const module = await world.wireguard.module()
    const joined = new JoinedNetwork(world, { peers, name, direct, module }, events)
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
    { peers, name, direct, module }: {
      peers: Pick<Peers, 'open' | 'openPackets'>
      name: string
      direct: boolean
      module: WebAssembly.Module
    },
    events: JoinedEvents,
  ) {
    const { clock, crypto } = world
    this.#world = world
    this.name = name
    this.#module = module
    this.#direct = direct
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
      direct,
      taken: () => takenNetworks(world),
      endpoints: () => [],
      device: (privateKey, agreed) => this.#device(privateKey, agreed),
      changed: (state) => this.#changed(state),
    })
  }

  get agreed(): Agreed | undefined {
    return this.#agreed
  }

  get facts(): JoinedFacts {
    const stats = this.#client.wireguard?.stats()
    const far = stats?.endpoint
    return {
      name: this.name,
      state: this.#state,
      addresses: this.network.localAddresses,
      path: far && (far.path === RELAY_PATH ? 'relay' : `udp ${far.host} port ${far.port}`),
      stats,
      flows: this.#tunnel?.stats().flows ?? 0,
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

  async #device(privateKey: Uint8Array, agreed: Agreed) {
    const before = this.#agreed
    this.#agreed = agreed
    const addresses = [agreed.address4, agreed.address6].map(({ bytes }) => formatAddress(bytes))
    const isSame = before && addresses.join() === this.network.localAddresses.join() &&
      before.relayMtu === agreed.relayMtu
    // Another address: flows of the one before could not go on.
    if (!isSame) await this.#build(privateKey, agreed, addresses)
    else this.#tunnel!.device.setPrivateKey(privateKey)
    return { table: tableOf(this.#tunnel!), channels: this.#channels! }
  }

  async #build(privateKey: Uint8Array, agreed: Agreed, addresses: string[]): Promise<void> {
    this.#tunnel?.close()
    this.#channels?.close()
    this.#udp?.close()
    const { clock } = this.#world
    const isDirect = this.#direct && agreed.endpoints.length > 0
    const tunnel = this.#tunnel = new Tunnel({
      module: this.#module,
      privateKey,
      addresses,
      mtu: isDirect ? agreed.directMtu : agreed.relayMtu,
      after: (ms, run) => clock.after(ms, run),
      onIncoming: (incoming) => this.network.incoming(incoming),
      onMessage: (message) => this.network.message(message),
      onRestart: (cause) => this.#events.problem(cause),
    })
    this.network.use(tunnel)
    this.#channels = new RelayPath()
    tunnel.addPath(RELAY_PATH, this.#channels)
    this.#udp = undefined
    if (!isDirect) return
    try {
      this.#udp = await this.#world.wireguard.udpPath({ port: 0 })
      tunnel.addPath(UDP_PATH, this.#udp)
    } catch (error) {
      // The relay carries.
      this.#events.problem(error)
    }
  }
}
