/**
 * Our end as a client of any WireGuard server, by a file of wg-quick or wireproxy: a device with its
 * stack over UDP, no agent and no relay. A server behind a name is looked up again when it does not
 * answer, since names move.
 */
import { formatAddress, parseAddress } from '../../core/address.ts'
import type { Network as Range } from '../../core/address.ts'
import type { Timer } from '../../core/clock.ts'
import { asTunnelError } from '../../core/errors.ts'
import type { TunnelError } from '../../core/errors.ts'
import type { SocketPath, World } from '../world.ts'
import type { Peer } from '../wireguard-wasm/peer.ts'
import { Tunnel } from '../wireguard-wasm/tunnel.ts'
import { prefixText } from './peer_table.ts'
import type { QuickConfig, QuickPeer } from './quick_config.ts'
import { UDP_PATH } from './relay_path.ts'
import { StackNetwork } from './stack_network.ts'

const MTU = 1_420
/** A handshake that is wanted and has not come for so long: two or three tries. */
const UNANSWERED_MS = 15_000

export interface StockEvents {
  connected(peer: QuickPeer): void
  /** It is tried on. */
  silent(peer: QuickPeer, error?: TunnelError): void
}

export class StockNetwork {
  readonly network: StackNetwork
  readonly tunnel: Tunnel
  readonly #world: World
  readonly #udp: SocketPath
  readonly #peers = new Map<Peer, QuickPeer>()
  readonly #events: StockEvents
  #timer: Timer | undefined
  /** When a peer was last heard to be silent, by its device's entry. */
  readonly #sinceMs = new Map<Peer, number>()

  /** Throws `net/unknown-host` where no peer's name is known, `net/in-use`, `net/denied`. */
  static async open(
    world: World,
    config: QuickConfig,
    events: StockEvents,
  ): Promise<StockNetwork> {
    const module = await world.wireguard.module()
    const udp = await world.wireguard.udpPath({ port: config.listenPort ?? 0 })
    const made = new StockNetwork(world, { config, module, udp }, events)
    try {
      const ends = await Promise.allSettled(
        config.peers.map((peer) => made.#add(peer)),
      )
      const failed = ends.filter((one) => one.status === 'rejected')
      if (failed.length === ends.length && failed.length > 0) throw failed[0]!.reason
      made.#watch()
      return made
    } catch (error) {
      made.close()
      throw error
    }
  }

  private constructor(
    world: World,
    { config, module, udp }: {
      config: QuickConfig
      module: WebAssembly.Module
      udp: SocketPath
    },
    events: StockEvents,
  ) {
    const { clock, crypto } = world
    this.#world = world
    this.#udp = udp
    this.#events = events
    const routes = config.peers.flatMap(({ allowed }): readonly Range[] => allowed)
    const network = this.network = new StackNetwork({
      clock,
      crypto,
      resolvers: () => config.dns,
      routes: () => routes,
    })
    const tunnel = this.tunnel = new Tunnel({
      module,
      privateKey: config.privateKey,
      addresses: config.addresses.map(({ bytes }) => formatAddress(bytes)),
      mtu: config.mtu ?? MTU,
      after: (ms, run) => clock.after(ms, run),
      onIncoming: (incoming) => network.incoming(incoming),
      onMessage: (message) => network.message(message),
      onNotice: (notice, peer) => {
        const own = this.#peers.get(peer)
        if (own && notice === 'connected') {
          this.#sinceMs.delete(peer)
          events.connected(own)
        } else if (own && notice === 'gave-up') void this.#again(peer, own)
      },
    })
    network.use(tunnel)
    tunnel.addPath(UDP_PATH, udp)
  }

  close(): void {
    this.#timer?.cancel()
    this.network.close()
    this.tunnel.close()
    this.#udp.close()
  }

  async #add(peer: QuickPeer): Promise<void> {
    const { publicKey, presharedKey, allowed, keepaliveSeconds } = peer
    const made = this.tunnel.device.addPeer({
      publicKey,
      allowedIps: allowed.map(prefixText),
      keepaliveSeconds,
      ...(presharedKey ? { presharedKey } : {}),
    })
    this.#peers.set(made, peer)
    try {
      await this.#locate(made, peer)
    } catch (error) {
      this.#events.silent(peer, asTunnelError(error, 'net/unknown-host'))
      // It is looked up again by and by.
      this.#sinceMs.set(made, this.#world.clock.monotonic())
      throw error
    }
  }

  async #locate(made: Peer, { endpoint, keepaliveSeconds }: QuickPeer): Promise<void> {
    if (!endpoint) return
    const [host = ''] = parseAddress(endpoint.host)
      ? [endpoint.host]
      : await this.#world.net.lookup(endpoint.host)
    if (made.id < 0) return
    made.update({ endpoint: { host, port: endpoint.port } })
    if (keepaliveSeconds > 0) made.connect()
    this.tunnel.wake()
  }

  /** Tells when packets wait for a session that does not come, and looks its name up anew. */
  #watch(): void {
    const { clock } = this.#world
    this.#timer = clock.after(UNANSWERED_MS / 3, () => {
      for (const [made, peer] of this.#peers) {
        const isWaiting = made.stats().waiting > 0 || this.#sinceMs.has(made)
        const since = this.#sinceMs.get(made)
        const now = clock.monotonic()
        if (!isWaiting) continue
        if (since === undefined) this.#sinceMs.set(made, now)
        else if (now - since >= UNANSWERED_MS) void this.#again(made, peer)
      }
      this.#watch()
    })
  }

  async #again(made: Peer, peer: QuickPeer): Promise<void> {
    this.#sinceMs.set(made, this.#world.clock.monotonic())
    try {
      await this.#locate(made, peer)
      this.#events.silent(peer)
    } catch (error) {
      this.#events.silent(peer, asTunnelError(error, 'net/unknown-host'))
    }
  }
}
