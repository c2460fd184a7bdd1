/** Agreements on tunnels between two agents on a real relay, with real devices: who serves, and who asks. */
import * as assert from 'uvu/assert'
import { parseNetwork } from '../../core/address.ts'
import { AgreementReader } from '../../core/agreement.ts'
import type { AgreementMessage } from '../../core/agreement.ts'
import { hex } from '../../core/bytes.ts'
import type { Clock } from '../../core/clock.ts'
import { TunnelError } from '../../core/errors.ts'
import { formatKey } from '../../core/key.ts'
import { join } from '../../agent/join.ts'
import type { Joining, RelayChoice } from '../../agent/join.ts'
import { Presence } from '../../agent/presence.ts'
import type { World } from '../../agent/world.ts'
import { Device, Driver, packetEngine } from '../../agent/wireguard-wasm/index.ts'
import { loadModule } from '../../agent/wireguard-wasm/load_file.ts'
import type { PeerTable } from '../../agent/wireguard/peer_table.ts'
import { RELAY_PATH, RelayPath } from '../../agent/wireguard/relay_path.ts'
import { TunnelClient } from '../../agent/wireguard/tunnel_client.ts'
import type { TunnelState } from '../../agent/wireguard/tunnel_client.ts'
import { TunnelServer } from '../../agent/wireguard/tunnel_server.ts'
import type { Member, TunnelServerPorts } from '../../agent/wireguard/tunnel_server.ts'
import { testWorld } from './agent_world.ts'
import type { TestWorld } from './agent_world.ts'
import { WarpClock } from './warp_clock.ts'
import { Scene } from './scene.ts'
import type { RelayHome } from './scene.ts'

const module = await loadModule()

/** A device with its driver and its way through the relay. */
export class Engine {
  readonly device: Device
  readonly driver: Driver
  readonly channels = new RelayPath()
  readonly table: PeerTable
  readonly packets: string[] = []
  #heard: (() => void)[] = []

  constructor(privateKey: Uint8Array) {
    const device = this.device = new Device({ module, privateKey })
    this.driver = new Driver(packetEngine(device, (packets) => {
      packets.each((packet) => void this.packets.push(hex(packet)))
      for (const run of this.#heard.splice(0)) run()
    }))
    this.driver.addPath(RELAY_PATH, this.channels)
    const driver = this.driver
    this.table = {
      get publicKey() {
        return device.publicKey
      },
      addPeer: (options) => device.addPeer(options),
      wake: () => driver.wake(),
    }
  }

  send(packet: Uint8Array): void {
    assert.ok(this.device.send(packet))
    this.driver.wake()
  }

  async until(packet: Uint8Array): Promise<void> {
    while (!this.packets.includes(hex(packet))) {
      await new Promise<void>((resolve) => void this.#heard.push(resolve))
    }
  }

  close(): void {
    this.driver.close()
    this.channels.close()
  }
}

/** An IPv4 packet of nobody's protocol. */
export function packetOf(from: Uint8Array, to: Uint8Array, length = 60): Uint8Array {
  const packet = new Uint8Array(length)
  packet.set([0x45, 0, length >> 8, length & 255, 0, 0, 0, 0, 64, 253, 0, 0])
  packet.set(from, 12)
  packet.set(to, 16)
  return packet
}

export interface Actor {
  presence: Presence
  joining: Joining
  key: string
  test: TestWorld
  /** The relay. */
  choice: RelayChoice
  cut(key: string): void
  /** The machine is gone without a word: links end, and none is opened any more. */
  strand(): void
}

let scene: Scene
let relay: RelayHome
let env: Record<string, string>
let actors: Actor[]
let engines: Engine[]
let closes: (() => void)[]

export async function begin(): Promise<void> {
  scene = await Scene.make()
  relay = await scene.relay()
  env = await scene.friend(relay, 'team')
  actors = []
  engines = []
  closes = []
}
export async function end(): Promise<void> {
  for (const close of closes) close()
  for (const engine of engines) engine.close()
  for (const { presence, test } of actors) {
    presence.close()
    await test.close()
  }
  await scene.close()
}

export async function enter(name: string): Promise<Actor> {
  const t = await testWorld(env)
  const links: { url: string; end(): void }[] = []
  let isStranded = false
  const world: World = {
    ...t.world,
    link: {
      open: async (url, options) => {
        if (isStranded) throw new TunnelError('net/unreachable', 'There is no network')
        const opened = await t.world.link.open(url, options)
        links.push({ url, end: () => opened.socket.terminate() })
        return opened
      },
    },
  }
  const choice = { relay: undefined, fingerprint: relay.fingerprint }
  const joining = await join(world, choice, () => {})
  const presence = await Presence.open(world, { joining, tell() {} })
  const actor: Actor = {
    presence,
    joining,
    key: formatKey(joining.identity.public),
    test: t,
    choice,
    cut: (key) => links.filter(({ url }) => url.endsWith(key)).forEach((link) => link.end()),
    strand: () => {
      isStranded = true
      for (const link of links) link.end()
    },
  }
  actors.push(actor)
  await presence.ready()
  await presence.agent.announce(name)
  return actor
}

export function engine(who: Actor, privateKey?: Uint8Array): Engine {
  const made = new Engine(privateKey ?? who.test.world.crypto.randomBytes(32))
  engines.push(made)
  return made
}

export async function allow(
  server: Actor,
  client: Actor,
  services: 'wg'[] = ['wg'],
): Promise<void> {
  await server.joining.profile.changeAccess((rules) => ({
    rules: [...rules, { peer: client.key, services }],
    answer: undefined,
  }))
}

export interface Serving {
  engine: Engine
  server: TunnelServer
  joined: Member[]
  left: string[]
  leases: Map<string, number>
}

export function serve(who: Actor, options: Partial<TunnelServerPorts> = {}): Serving {
  const { crypto, clock } = who.test.world
  const made = engine(who)
  const joined: Member[] = []
  const left: string[] = []
  const leases = new Map<string, number>()
  const server = new TunnelServer({
    clock,
    crypto,
    peers: who.presence.peers,
    table: made.table,
    channels: made.channels,
    lease: (key, { number }) => {
      const holder = `${key}/${number}`
      const host = leases.get(holder) ?? leases.size + 2
      leases.set(holder, host)
      const address6 = new Uint8Array(16)
      address6.set([0xfd, 7])
      address6[15] = host
      return Promise.resolve({
        address4: { bytes: Uint8Array.of(100, 80, 1, host), bits: 24 },
        address6: { bytes: address6, bits: 64 },
        release() {},
      })
    },
    offer: () => ({
      relayMtu: 1420,
      directMtu: 1420,
      dns: [],
      routes: [parseNetwork('192.168.1.0/24')!],
      endpoints: [],
    }),
    joined: (member) => void joined.push(member),
    left: (_, why) => void left.push(why),
    ...options,
  })
  closes.push(() => server.close())
  return { engine: made, server, joined, left, leases }
}

export interface Asking {
  client: TunnelClient
  engine(): Engine
  states: TunnelState[]
  until(kind: TunnelState['kind']): Promise<TunnelState>
}

export function ask(
  who: Actor,
  name = 'office',
  { clock = who.test.world.clock, peers = who.presence.peers }: {
    clock?: Clock
    peers?: Presence['peers']
  } = {},
): Asking {
  const { crypto } = who.test.world
  const states: TunnelState[] = []
  const heard: (() => void)[] = []
  let made: Engine | undefined
  const client = new TunnelClient({
    clock,
    crypto,
    peers,
    name,
    taken: () => [],
    endpoints: () => [],
    device: (privateKey) => {
      if (made) made.device.setPrivateKey(privateKey)
      else made = engine(who, privateKey)
      return Promise.resolve({ table: made.table, channels: made.channels })
    },
    changed: (state) => {
      states.push(state)
      for (const run of heard.splice(0)) run()
    },
  })
  closes.push(() => client.close())
  let seen = 0
  return {
    client,
    engine: () => made!,
    states,
    async until(kind) {
      for (;;) {
        while (seen < states.length) {
          const state = states[seen++]!
          if (state.kind === kind) return state
        }
        await new Promise<void>((resolve) => void heard.push(resolve))
      }
    },
  }
}

export const HOST = Uint8Array.of(192, 168, 1, 100)

export async function changed(
  peer: { state: { presharedKey: Uint8Array | undefined } },
  before: string,
) {
  while (hex(peer.state.presharedKey!) === before) {
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  return hex(peer.state.presharedKey!)
}

/** One who holds the right and speaks as it likes; what the server says. */
export async function speak(client: Actor, said: Uint8Array[]): Promise<AgreementMessage[]> {
  const { session } = await client.presence.peers.open('office', 'wg')
  const stream = session.open()
  const reader = new AgreementReader()
  const heard: AgreementMessage[] = []
  await new Promise<void>((resolve) => {
    stream.handle({
      data: (bytes) => void heard.push(...reader.push(bytes)),
      end: resolve,
      closed: () => resolve(),
    })
    for (const bytes of said) stream.write(bytes)
  })
  session.close()
  return heard
}

/** Time passes, and all that falls due in it. */
export function pass(clock: WarpClock, ms: number): void {
  clock.skip(ms)
}
