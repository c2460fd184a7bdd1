/**
 * Our end as a client of any WireGuard server, by a file of wg-quick or wireproxy: a device with its
 * stack over UDP, no agent and no relay. A server behind a name is looked up again when handshakes with
 * it fail, since names move; of several addresses the next is tried each time.
 */
import { formatAddress, parseAddress } from '../../core/address.ts'
import type { Network as Range } from '../../core/address.ts'
import type { Timer } from '../../core/clock.ts'
import { asTunnelError } from '../../core/errors.ts'
import type { TunnelError } from '../../core/errors.ts'
import type { SocketPath, World } from '../world.ts'
import { encodeEndpoint } from '../wireguard-wasm/address.ts'
import type { Peer } from '../wireguard-wasm/peer.ts'
import { Tunnel } from '../wireguard-wasm/tunnel.ts'
import { HandshakeWatch } from './handshake_watch.ts'
import { prefixText } from './peer_table.ts'
import type { QuickConfig, QuickPeer } from './quick_config.ts'
import { UDP_PATH } from './relay_path.ts'
import { StackNetwork } from './stack_network.ts'

const MTU = 1_420
/** Handshakes in a row, 5 s apart, that nobody answered. */
const FAILED_MAX = 3
/** A name that nobody knows is asked for again. */
const UNKNOWN_MS = 15_000

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
  readonly #watch: HandshakeWatch
  #timer: Timer | undefined
  #isClosed = false

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
      if (failed.length > 0) made.#askAgain()
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
      soon: (run) => world.later(run),
      onIncoming: (incoming) => network.incoming(incoming),
      onMessage: (message) => network.message(message),
      onNotice: (notice, peer) => {
        const own = this.#peers.get(peer)
        if (own && notice === 'connected') events.connected(own)
        else if (own && notice === 'gave-up') void this.#again(peer, own)
      },
    })
    network.use(tunnel)
    const failed = (): void => {
      // The device is in the middle of sending.
      world.later(() => this.#failed())
    }
    this.#watch = new HandshakeWatch(udp, { limit: FAILED_MAX, failed })
    tunnel.addPath(UDP_PATH, this.#watch)
  }

  close(): void {
    this.#isClosed = true
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
      throw error
    }
  }

  /** The address after the one that it has, where its name leads to several and that one was there. */
  async #locate(made: Peer, { endpoint, keepaliveSeconds }: QuickPeer): Promise<void> {
    if (!endpoint) return
    const found = parseAddress(endpoint.host)
      ? [endpoint.host]
      : await this.#world.net.lookup(endpoint.host)
    if (this.#isClosed) return
    const before = made.stats().endpoint?.host
    const host = found[(found.findIndex((one) => plain(one) === before) + 1) % found.length]!
    made.update({ endpoint: { host: plain(host), port: endpoint.port } })
    if (keepaliveSeconds > 0) made.connect()
    this.tunnel.wake()
  }

  #failed(): void {
    if (this.#isClosed) return
    for (const [made, peer] of this.#peers) {
      const at = made.stats().endpoint
      if (at && this.#watch.takeFailed(encodeEndpoint(at))) void this.#again(made, peer)
    }
  }

  /** Those whose names nobody knew. */
  #askAgain(): void {
    this.#timer = this.#world.clock.after(UNKNOWN_MS, () => {
      const missing = [...this.#peers].filter(([made, { endpoint }]) =>
        endpoint && made.stats().endpoint === undefined
      )
      for (const [made, peer] of missing) void this.#again(made, peer)
      if (missing.length > 0) this.#askAgain()
    })
  }

  async #again(made: Peer, peer: QuickPeer): Promise<void> {
    try {
      await this.#locate(made, peer)
      if (!this.#isClosed) this.#events.silent(peer)
    } catch (error) {
      if (!this.#isClosed) this.#events.silent(peer, asTunnelError(error, 'net/unknown-host'))
    }
  }
}

/** As the device writes it; a link-local address keeps its zone. */
function plain(address: string): string {
  const bytes = parseAddress(address)
  return bytes && !address.includes('%') ? formatAddress(bytes) : address
}
