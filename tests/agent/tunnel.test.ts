/**
 * Agreements on tunnels between two agents on a real relay, with real devices: packets pass, nobody gets
 * in without the right, whoever loses it is out at once, and a lost session is opened anew under the same
 * address.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { parseAddress, parseNetwork } from '../../core/address.ts'
import { AgreementReader, encodeAgreement } from '../../core/agreement.ts'
import type { Agreed, AgreementMessage } from '../../core/agreement.ts'
import { hex } from '../../core/bytes.ts'
import type { Clock } from '../../core/clock.ts'
import { isTunnelError, TunnelError } from '../../core/errors.ts'
import { formatKey } from '../../core/key.ts'
import { join } from '../../agent/join.ts'
import type { Joining } from '../../agent/join.ts'
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
import { testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'
import { WarpClock } from '../support/warp_clock.ts'
import { Scene } from '../support/scene.ts'
import type { RelayHome } from '../support/scene.ts'

// seconds: 120
const test = suite('agent/tunnel')
const module = await loadModule()

/** A device with its driver and its way through the relay. */
class Engine {
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
function packetOf(from: Uint8Array, to: Uint8Array, length = 60): Uint8Array {
  const packet = new Uint8Array(length)
  packet.set([0x45, 0, length >> 8, length & 255, 0, 0, 0, 0, 64, 253, 0, 0])
  packet.set(from, 12)
  packet.set(to, 16)
  return packet
}

interface Actor {
  presence: Presence
  joining: Joining
  key: string
  test: TestWorld
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

test.before.each(async () => {
  scene = await Scene.make()
  relay = await scene.relay()
  env = await scene.friend(relay, 'team')
  actors = []
  engines = []
  closes = []
})
test.after.each(async () => {
  for (const close of closes) close()
  for (const engine of engines) engine.close()
  for (const { presence, test } of actors) {
    presence.close()
    await test.close()
  }
  await scene.close()
})

async function enter(name: string): Promise<Actor> {
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

function engine(who: Actor, privateKey?: Uint8Array): Engine {
  const made = new Engine(privateKey ?? who.test.world.crypto.randomBytes(32))
  engines.push(made)
  return made
}

async function allow(server: Actor, client: Actor, services: 'wg'[] = ['wg']): Promise<void> {
  await server.joining.profile.changeAccess((rules) => ({
    rules: [...rules, { peer: client.key, services }],
    answer: undefined,
  }))
}

interface Serving {
  engine: Engine
  server: TunnelServer
  joined: Member[]
  left: string[]
  leases: Map<string, number>
}

function serve(who: Actor, options: Partial<TunnelServerPorts> = {}): Serving {
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

interface Asking {
  client: TunnelClient
  engine(): Engine
  states: TunnelState[]
  until(kind: TunnelState['kind']): Promise<TunnelState>
}

function ask(
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

const HOST = Uint8Array.of(192, 168, 1, 100)

test('packets pass both ways through the relay, sealed by keys that were agreed in a session', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const served = serve(server)
  const asking = ask(client)
  const agreed = await asking.client.open()
  assert.equal([...agreed.address4.bytes], [100, 80, 1, 2])
  assert.equal([...agreed.key], [...served.engine.device.publicKey])
  const request = packetOf(agreed.address4.bytes, HOST)
  asking.engine().send(request)
  await served.engine.until(request)
  const answer = packetOf(HOST, agreed.address4.bytes, 1400)
  served.engine.send(answer)
  await asking.engine().until(answer)
  assert.is(served.joined.length, 1)
  assert.is(served.joined[0]!.peer.key, client.key)
  // The one that was agreed, and no other.
  assert.ok(served.joined[0]!.wireguard.stats().lastHandshakeMs !== undefined)
})

test('whoever has no right is refused, and no key of theirs is kept', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  const served = serve(server)
  await ask(client).client.open().then(
    () => assert.unreachable(),
    (error) => assert.is(error.code, 'session/refused'),
  )
  assert.is(served.engine.device.peers.length, 0)
})

test('a right that is taken back ends the tunnel at once, and the client tries no more', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const served = serve(server)
  const asking = ask(client)
  await asking.client.open()
  await server.joining.profile.changeAccess(() => ({ rules: [], answer: undefined }))
  await served.server.recheck()
  assert.is(served.engine.device.peers.length, 0)
  assert.is(served.server.members.length, 0)
  const over = await asking.until('over')
  assert.is(over.kind === 'over' && over.error?.code, 'network/revoked')
  assert.is(asking.engine().device.peers.length, 0)
})

test('a narrower choice of members refuses whom the rules alone would let in', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  serve(server, { narrows: () => false })
  await ask(client).client.open().then(
    () => assert.unreachable(),
    (error) => assert.is(error.code, 'session/refused'),
  )
})

test('two processes of one identity have an address each; the first keeps its own', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const served = serve(server)
  const [one, two] = [ask(client), ask(client)]
  const [first, second] = [await one.client.open(), await two.client.open()]
  assert.equal([first.address4.bytes[3], second.address4.bytes[3]], [2, 3])
  for (const [asking, agreed] of [[one, first], [two, second]] as const) {
    const packet = packetOf(agreed.address4.bytes, HOST)
    asking.engine().send(packet)
    await served.engine.until(packet)
  }
  // Somebody else's address is not taken, even by one with the right.
  const before = served.engine.device.stats().drops.foreignSource
  two.engine().send(packetOf(first.address4.bytes, HOST))
  const good = packetOf(second.address4.bytes, HOST, 99)
  two.engine().send(good)
  await served.engine.until(good)
  assert.is(served.engine.device.stats().drops.foreignSource, before + 1)
})

test('a lost way is found again in the same session, with a new pre-shared key', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const served = serve(server)
  const asking = ask(client)
  const agreed = await asking.client.open()
  const packet = packetOf(agreed.address4.bytes, HOST)
  asking.engine().send(packet)
  await served.engine.until(packet)
  const [peer] = served.engine.device.peers
  const before = hex(peer!.state.presharedKey!)
  client.cut(server.key)
  for (let length = 61;; length++) {
    const again = packetOf(agreed.address4.bytes, HOST, length)
    asking.engine().send(again)
    const late = new Promise<false>((resolve) => setTimeout(resolve, 200, false))
    if (await Promise.race([served.engine.until(again).then(() => true), late])) break
    assert.ok(length < 400, 'it never came')
  }
  while (hex(peer!.state.presharedKey!) === before) {
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  assert.equal(
    hex(asking.engine().device.peers[0]!.state.presharedKey!),
    hex(peer!.state.presharedKey!),
  )
  assert.is(asking.states.length, 1)
})

test('a session that ended is opened anew: another key, the same address', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const served = serve(server)
  const asking = ask(client)
  const agreed = await asking.client.open()
  await asking.until('up')
  const key = hex(asking.engine().device.publicKey)
  server.presence.peers.sessions[0]!.close()
  const up = await asking.until('up') as { agreed: Agreed }
  assert.equal([...up.agreed.address4.bytes], [...agreed.address4.bytes])
  assert.is.not(hex(asking.engine().device.publicKey), key)
  const packet = packetOf(agreed.address4.bytes, HOST)
  asking.engine().send(packet)
  await served.engine.until(packet)
  assert.is(served.engine.device.peers.length, 1)
})

async function changed(peer: { state: { presharedKey: Uint8Array | undefined } }, before: string) {
  while (hex(peer.state.presharedKey!) === before) {
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  return hex(peer.state.presharedKey!)
}

test('a tunnel that is held for long has a new pre-shared key every half hour, and its sessions use it', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const clock = new WarpClock()
  const served = serve(server, { clock })
  const asking = ask(client, 'office', { clock })
  const agreed = await asking.client.open()
  const [there] = served.engine.device.peers
  const [here] = asking.engine().device.peers
  const keys = [hex(there!.state.presharedKey!)]
  const first = here!.state.presharedKey!
  for (let i = 0; i < 3; i++) {
    clock.skip(1_790_000)
    assert.is(hex(here!.state.presharedKey!), keys.at(-1))
    clock.skip(11_000)
    keys.push(await changed(here!, keys.at(-1)!))
    assert.is(hex(there!.state.presharedKey!), keys.at(-1))
  }
  assert.is(new Set(keys).size, 4)
  assert.equal([...first], [...new Uint8Array(32)])
  // Packets pass by keys that hold the newest: the first handshake is some seconds old by then.
  here!.connect()
  const packet = packetOf(agreed.address4.bytes, HOST)
  asking.engine().send(packet)
  await served.engine.until(packet)
  assert.equal(asking.states.map(({ kind }) => kind), ['up'])
})

test('a server that renews no keys is left, and agreed with anew', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  serve(server)
  const clock = new WarpClock()
  const asking = ask(client, 'office', { clock })
  await asking.client.open()
  // No answer can come in between.
  clock.skip(1_800_500)
  clock.skip(1_800_500)
  const down = await asking.until('down')
  assert.match(`${down.kind === 'down' && down.error?.message}`, /keys were not renewed/)
  clock.skip(1_000)
  await asking.until('up')
})

test('a way that is lost again and again in a moment renews no faster than the server allows', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const served = serve(server)
  const asking = ask(client)
  await asking.client.open()
  const [there] = served.engine.device.peers
  const [here] = asking.engine().device.peers
  let key = hex(here!.state.presharedKey!)
  for (let i = 0; i < 3; i++) {
    client.cut(server.key)
    key = await changed(here!, key)
    assert.is(hex(there!.state.presharedKey!), key)
  }
  assert.equal(asking.states.map(({ kind }) => kind), ['up'])
})

test('a process that died leaves its address to the one that comes after it', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const served = serve(server)
  const agreed = await ask(client).client.open()
  client.strand()
  while (server.presence.peers.sessions[0]!.state !== 'waiting') {
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  const { world } = client.test
  const choice = { relay: undefined, fingerprint: relay.fingerprint }
  const joining = await join(world, choice, () => {})
  const presence = await Presence.open(world, { joining, tell() {} })
  await presence.ready()
  try {
    const asking = ask(client, 'office', { peers: presence.peers })
    const again = await asking.client.open()
    assert.equal([...again.address4.bytes], [...agreed.address4.bytes])
    assert.is(served.server.members.length, 1)
    const packet = packetOf(agreed.address4.bytes, HOST)
    asking.engine().send(packet)
    await served.engine.until(packet)
    asking.client.close()
  } finally {
    presence.close()
  }
})

/** One who holds the right and speaks as it likes; what the server says. */
async function speak(client: Actor, said: Uint8Array[]): Promise<AgreementMessage[]> {
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

test('hostile members are refused by name, and leave nothing behind', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const served = serve(server)
  const propose = (fields: object = {}): Uint8Array =>
    encodeAgreement({
      kind: 'propose',
      key: client.test.world.crypto.randomBytes(32),
      nonce: new Uint8Array(32),
      channel: client.test.world.crypto.randomBytes(16),
      taken: [],
      endpoints: [],
      ...fields,
    })
  const renew = encodeAgreement({ kind: 'renew', nonce: new Uint8Array(32) })
  const version = propose()
  version[5] = 9
  const rows: [claim: string, said: Uint8Array[], reason: string][] = [
    ['another version', [version], 'version'],
    ['bytes of nothing', [Uint8Array.of(1, 2, 3, 4)], 'order'],
    ['a renewal before anything', [renew], 'order'],
    ['two proposals', [propose(), propose()], 'order'],
    [
      'the word of a server',
      [encodeAgreement({ kind: 'renewed', nonce: new Uint8Array(32) })],
      'order',
    ],
    ["the server's own key", [propose({ key: served.engine.device.publicKey })], 'fault'],
  ]
  for (const [claim, said, reason] of rows) {
    const heard = await speak(client, said)
    const last = heard.at(-1)!
    assert.is(last.kind === 'refused' && last.reason, reason, claim)
    assert.is(served.engine.device.peers.length, 0, claim)
    assert.is(served.server.members.length, 0, claim)
  }
})

test('a member that names endpoints of others makes the server knock at few of them, and seldom', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const clock = new WarpClock()
  const knocked: string[] = []
  const races = {
    start: (_: unknown, endpoints: readonly { host: string; port: number }[]) =>
      void knocked.push(...endpoints.map(({ host, port }) => `${host} ${port}`)),
    watch: () => () => {},
  }
  const served = serve(server, { clock, races })
  const said = [
    ['127.0.0.1', 5000],
    ['0.0.0.0', 5000],
    ['169.254.169.254', 8080],
    ['224.0.0.251', 5353],
    ['255.255.255.255', 5000],
    ['192.168.1.1', 53],
    ['::1', 5000],
    ['fe80::1', 5000],
    ['ff02::1', 5000],
    ['192.0.2.7', 1023],
    ['192.0.2.7', 1024],
    ['2001:db8::7', 5000],
  ] as const
  const { session } = await client.presence.peers.open('office', 'wg')
  const stream = session.open()
  const heard: Uint8Array[] = []
  stream.handle({ data: (bytes) => void heard.push(bytes), end() {}, closed() {} })
  stream.write(
    encodeAgreement({
      kind: 'propose',
      key: client.test.world.crypto.randomBytes(32),
      nonce: new Uint8Array(32),
      channel: client.test.world.crypto.randomBytes(16),
      taken: [],
      endpoints: [
        // ::ffff:127.0.0.1
        { address: Uint8Array.of(...new Uint8Array(10), 255, 255, 127, 0, 0, 1), port: 5000 },
        ...said.map(([host, port]) => ({ address: parseAddress(host)!, port })),
      ],
    }),
  )
  while (served.joined.length === 0) await new Promise((resolve) => setTimeout(resolve, 5))
  clock.skip(8_000)
  assert.equal(knocked, [])
  clock.skip(3_592_000)
  assert.equal([...new Set(knocked)], ['192.0.2.7 1024', '2001:db8::7 5000'])
  assert.ok(knocked.length > 2 && knocked.length <= 2 * 20, `${knocked.length} in an hour`)
  session.close()
})

test("a member cannot take another's key or channel", async () => {
  const [server, client, other] = [await enter('office'), await enter('laptop'), await enter('eve')]
  await allow(server, client)
  await allow(server, other)
  const served = serve(server)
  const asking = ask(client)
  const agreed = await asking.client.open()
  const { publicKey } = asking.engine().device
  const heard = await speak(other, [
    encodeAgreement({
      kind: 'propose',
      key: publicKey,
      nonce: new Uint8Array(32),
      channel: new Uint8Array(16),
      taken: [],
      endpoints: [],
    }),
  ])
  assert.is(heard.at(-1)!.kind, 'refused')
  const packet = packetOf(agreed.address4.bytes, HOST)
  asking.engine().send(packet)
  await served.engine.until(packet)
})

test('a relay that floods, repeats, reorders and changes datagrams delivers none twice and none of its own', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const { crypto } = server.test.world
  let held: Uint8Array | undefined
  const served = serve(server, {
    channels: {
      add: (stream) => {
        const path = paths.add(stream)
        const take = stream.onPacket!
        stream.onPacket = (datagram) => {
          for (let i = 0; i < 50; i++) take(crypto.randomBytes(32 + i * 8))
          // A handshake is left alone: without it nothing would be shown.
          if (datagram[0] !== 4) return take(datagram)
          // It may be a Buffer, whose slice is a view.
          const changed = Uint8Array.from(datagram)
          changed[changed.length - 1]! ^= 1
          take(changed)
          const bytes = Uint8Array.from(datagram)
          // Each pair the other way round, and all of it three times.
          if (!held) held = bytes
          else {
            for (const one of [bytes, held, bytes, held, held, bytes]) take(one.slice())
            held = undefined
          }
        }
        return path
      },
      remove: (path) => paths.remove(path),
    },
  })
  const paths: Engine['channels'] = served.engine.channels
  const asking = ask(client)
  const agreed = await asking.client.open()
  const sent = Array.from({ length: 40 }, (_, i) => packetOf(agreed.address4.bytes, HOST, 100 + i))
  for (const packet of sent) asking.engine().send(packet)
  // One that is held back may wait for another behind it.
  await Promise.race([
    Promise.all(sent.map((packet) => served.engine.until(packet))),
    (async () => {
      for (let i = 0; i < 40; i++) {
        await new Promise((resolve) => setTimeout(resolve, 50))
        asking.engine().send(packetOf(agreed.address4.bytes, HOST, 60))
      }
    })(),
  ])
  for (const packet of sent) {
    assert.is(served.engine.packets.filter((one) => one === hex(packet)).length, 1)
  }
  const { drops } = served.engine.device.stats()
  assert.ok(drops.replayed > 0 && drops.forged > 0 && drops.malformed > 0, JSON.stringify(drops))
  const known = new Set([...sent.map(hex), hex(packetOf(agreed.address4.bytes, HOST, 60))])
  assert.ok(served.engine.packets.every((one) => known.has(one)))
})

test('a network that nobody serves is said to be away', async () => {
  const client = await enter('laptop')
  try {
    await ask(client).client.open()
    assert.unreachable()
  } catch (error) {
    assert.ok(isTunnelError(error))
    assert.is(error.code, 'dial/unknown')
  }
})

test.run()
