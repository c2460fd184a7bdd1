/**
 * Two devices with two ways between them, in virtual time: a wire that is UDP and one that is a relay, each
 * cut by hand. Who is where, what comes through, and how often it moves.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ManualClock } from '../../../core/clock.ts'
import {
  Batch,
  Device,
  Driver,
  encodeEndpoint,
  packetEngine,
  RUN_WORDS,
} from '../../../agent/wireguard-wasm/index.ts'
import type { Endpoint, Path, Peer } from '../../../agent/wireguard-wasm/index.ts'
import { LOOK_MS, PathChoice, TRY_MS_MIN } from '../../../agent/wireguard/path_choice.ts'
import { RACE_PATH, RacePath } from '../../../agent/wireguard/race_path.ts'
import { RELAY_PATH, UDP_PATH } from '../../../agent/wireguard/relay_path.ts'
import { module } from '../../support/wireguard.ts'

// seconds: 60
const test = suite('agent/wireguard/path_choice')

const UDP_MS = 5
/** Farther than the relay. */
const FAR_MS = 120
const RELAY_MS = 20
const CLIENT = Uint8Array.of(10, 0, 0, 2)
const SERVER = Uint8Array.of(10, 0, 0, 1)

/** One direction of one way. */
class Wire implements Path {
  readonly mtu = 1_500
  onReceive: Path['onReceive']
  onDrain: Path['onDrain']
  inbox: Path['inbox']
  other!: Wire
  isCut = false
  /** Datagrams by their types, as sent. */
  readonly sent = [0, 0, 0, 0, 0]
  /** Asked of each endpoint; false: nobody is there. */
  knows: (endpoint: number) => boolean = () => true
  readonly #clock: ManualClock
  readonly #record: Uint8Array
  ms: number

  constructor(clock: ManualClock, own: Endpoint, ms: number) {
    this.#clock = clock
    this.#record = encodeEndpoint(own)
    this.ms = ms
  }

  send(batch: Batch, from = 0, to: number = batch.count): boolean {
    for (let run = from; run < to; run++) {
      const [at = 0, length = 0, , size = 0] = batch.words.subarray(run * RUN_WORDS)
      this.sent[batch.bytes[at]!]!++
      const copy = Batch.make(length, 1)
      copy.push(batch.bytes.subarray(at, at + length), this.#record, size)
      if (this.isCut || !this.knows(batch.endpoints[run * 32 + 11]!)) continue
      this.#clock.after(this.ms, () => this.other.onReceive?.(copy))
    }
    return true
  }
}

class End {
  readonly device: Device
  readonly driver: Driver
  readonly udp: Wire
  readonly relay: Wire
  readonly race: RacePath
  readonly heard: number[] = []
  peer!: Peer
  choice!: PathChoice
  onPacket: ((packet: Uint8Array) => void) | undefined
  readonly #clock: ManualClock

  constructor(clock: ManualClock, number: number) {
    this.#clock = clock
    this.device = new Device({
      module,
      privateKey: new Uint8Array(32).fill(number),
      now: () => clock.monotonic(),
      wallClock: () => clock.now(),
      onNotice: (notice, peer) => this.race.noticed(notice, peer),
    })
    this.driver = new Driver(
      packetEngine(this.device, (packets) =>
        packets.each((packet) => {
          this.heard.push(packet[40]! * 65_536 + packet[41]! * 256 + packet[42]!)
          this.onPacket?.(packet)
        })),
      { after: (ms, run) => clock.after(ms, run) },
    )
    this.udp = new Wire(clock, { host: `192.0.2.${number}`, port: 5000 }, UDP_MS)
    this.relay = new Wire(clock, relayOf(number), RELAY_MS)
    this.race = new RacePath(
      clock,
      new Map<number, Path>([[UDP_PATH, this.udp], [RELAY_PATH, this.relay]]),
    )
    this.driver.addPath(UDP_PATH, this.udp)
    this.driver.addPath(RELAY_PATH, this.relay)
    this.driver.addPath(RACE_PATH, this.race)
  }

  meet(other: End, { number, direct, firstMs }: {
    number: number
    direct: Endpoint[]
    firstMs: number
  }): void {
    const isClient = firstMs === TRY_MS_MIN
    this.udp.other = other.udp
    this.relay.other = other.relay
    this.peer = this.device.addPeer({
      publicKey: other.device.publicKey,
      presharedKey: new Uint8Array(32).fill(7),
      allowedIps: ['10.0.0.0/8'],
      ...(isClient ? { keepaliveSeconds: 25 } : {}),
    })
    this.choice = new PathChoice({
      clock: this.#clock,
      peer: this.peer,
      races: this.race,
      wake: () => this.driver.turn(),
      relay: () => relayOf(number),
      direct,
      firstMs,
    })
  }

  send(number: number, to: Uint8Array): void {
    const packet = new Uint8Array(200)
    packet.set([0x45, 0, 0, 200, 0, 0, 0, 0, 64, 253, 0, 0])
    packet.set(to === SERVER ? CLIENT : SERVER, 12)
    packet.set(to, 16)
    packet.set([number >> 16, number >> 8, number], 40)
    this.device.send(packet)
    this.driver.turn()
  }

  get way(): string {
    const { endpoint } = this.peer.stats()
    return endpoint?.path === UDP_PATH ? 'udp' : endpoint?.path === RELAY_PATH ? 'relay' : 'none'
  }
}

function relayOf(number: number): Endpoint {
  return { host: `0.0.0.${number}`, port: 1, path: RELAY_PATH }
}

class Pair {
  readonly clock = new ManualClock()
  readonly client = new End(this.clock, 2)
  readonly server = new End(this.clock, 1)
  #number = 0

  constructor(
    { known = [{ host: '192.0.2.1', port: 5000 }], told = [] as Endpoint[], udpMs = UDP_MS } = {},
  ) {
    this.client.udp.ms = this.server.udp.ms = udpMs
    this.client.meet(this.server, { number: 1, direct: known, firstMs: TRY_MS_MIN })
    this.server.meet(this.client, { number: 2, direct: told, firstMs: 9_000 })
    this.server.onPacket = (packet) =>
      this.server.send(packet[40]! * 65_536 + packet[41]! * 256 + packet[42]!, CLIENT)
    this.client.peer.update({ endpoint: relayOf(1) })
    this.client.driver.turn()
  }

  cut(isCut: boolean): void {
    this.client.udp.isCut = this.server.udp.isCut = isCut
  }

  /** With a question every 100 ms, which is answered; how many answers came. */
  talk(seconds: number): number {
    const before = this.client.heard.length
    for (let i = 0; i < seconds * 10; i++) {
      this.client.send(++this.#number, SERVER)
      this.run(100)
    }
    return this.client.heard.length - before
  }

  run(ms: number): void {
    for (let left = ms; left > 0; left -= 100) {
      this.clock.advance(Math.min(100, left))
      const nowMs = this.clock.monotonic()
      if (nowMs % LOOK_MS !== 0) continue
      this.client.choice.look()
      this.server.choice.look()
    }
  }

  get ways(): string {
    return `${this.client.way} ${this.server.way}`
  }
}

test('the relay carries at once, and UDP as soon as it is answered there', () => {
  const pair = new Pair()
  assert.is(pair.talk(5), 50)
  assert.is(pair.ways, 'relay relay')
  assert.is(pair.talk(3), 30)
  assert.is(pair.ways, 'udp udp')
  for (const blocked of [new Pair(), new Pair({ known: [] })]) {
    blocked.cut(true)
    assert.is(blocked.talk(60), 600)
    assert.is(blocked.ways, 'relay relay')
  }
})

test('UDP that goes away: the relay carries within seconds, and UDP again when it is back', () => {
  const pair = new Pair()
  pair.talk(70)
  pair.cut(true)
  const lost = 100 - pair.talk(10)
  assert.ok(lost <= 60, `${lost} answers of 100 were lost`)
  assert.is(pair.ways, 'relay relay')
  assert.is(pair.talk(20), 200)
  pair.cut(false)
  assert.ok(pair.talk(60) >= 599)
  assert.is(pair.ways, 'udp udp')
  assert.is(new Set(pair.client.heard).size, pair.client.heard.length)
  assert.is(new Set(pair.server.heard).size, pair.server.heard.length)
})

test('one that only listens finds it out as well: the sender asks', () => {
  const pair = new Pair()
  pair.talk(10)
  assert.is(pair.ways, 'udp udp')
  pair.server.onPacket = undefined
  pair.cut(true)
  // The client says nothing, and hears nothing.
  const before = pair.client.heard.length
  for (let i = 0; i < 100; i++) {
    pair.server.send(1_000 + i, CLIENT)
    pair.run(100)
  }
  assert.ok(pair.client.heard.length - before >= 40, `${pair.client.heard.length - before} of 100`)
  assert.is(pair.ways, 'relay relay')
})

test('UDP that comes and goes is tried less and less often', () => {
  const pair = new Pair()
  const moves: number[] = []
  let answers = 0
  for (let minute = 0; minute < 60; minute++) {
    const before = pair.client.choice.moves
    for (let i = 0; i < 3; i++) {
      pair.cut(false)
      answers += pair.talk(10)
      pair.cut(true)
      answers += pair.talk(10)
    }
    moves.push(pair.client.choice.moves - before)
  }
  const late = moves.slice(30).reduce((sum, one) => sum + one, 0)
  assert.ok(late <= 16, `${late} moves in the last half hour: ${moves.join(' ')}`)
  assert.ok(answers > 0.97 * 36_000, `${answers} of 36000 answers`)
})

test('UDP that has held for long is tried soon after it was lost', () => {
  const pair = new Pair()
  for (let i = 0; i < 4; i++) {
    pair.talk(120)
    assert.is(pair.ways, 'udp udp')
    pair.cut(true)
    pair.talk(8)
    assert.is(pair.ways, 'relay relay')
    pair.cut(false)
    pair.talk(2 * TRY_MS_MIN / 1_000 + 1)
    assert.is(pair.ways, 'udp udp')
  }
})

test('silence is no loss: an idle tunnel stays where it is, with the handshakes that it needs', () => {
  const pair = new Pair()
  pair.talk(10)
  const { moves } = pair.client.choice
  pair.run(1_200_000)
  assert.is(pair.ways, 'udp udp')
  assert.is(pair.client.choice.moves, moves)
  const handshakes = pair.client.udp.sent[1]! + pair.server.udp.sent[1]!
  // One in two minutes, by WireGuard's own rule.
  assert.ok(handshakes <= 14, `${handshakes} handshakes`)
})

for (const udpMs of [UDP_MS, FAR_MS]) {
  test(`who sends and is never answered moves nowhere while UDP stands, ${udpMs} ms away`, () => {
    const pair = new Pair({ udpMs })
    pair.talk(10)
    pair.run(500)
    pair.server.onPacket = undefined
    const { moves } = pair.client.choice
    const before = pair.server.heard.length
    assert.is(pair.talk(300), 0)
    pair.run(500)
    assert.is(pair.server.heard.length - before, 3_000)
    assert.is(pair.client.choice.moves, moves)
    assert.is(pair.ways, 'udp udp')
    assert.ok(pair.client.udp.sent[1]! <= 40, `${pair.client.udp.sent[1]} handshakes`)
  })
}

test('UDP that leads one way only holds nothing up for long', () => {
  for (const deaf of ['client', 'server'] as const) {
    const pair = new Pair({ told: [{ host: '192.0.2.2', port: 5000 }] })
    pair.talk(70)
    pair[deaf === 'client' ? 'server' : 'client'].udp.isCut = true
    pair.talk(10)
    const answers = pair.talk(600)
    // Each try costs seconds, where the other end believes what it hears; there are fewer and fewer.
    assert.ok(answers > 0.9 * 6_000, `${deaf}: ${answers} of 6000`)
    const { moves } = pair.client.choice
    assert.ok(moves < 40, `${deaf}: ${moves} moves`)
  }
})

test('a server that is behind a NAT reaches a member in the open, who cannot reach it first', () => {
  const pair = new Pair({ known: [], told: [{ host: '192.0.2.2', port: 5000 }] })
  let isOpen = false
  pair.server.udp.knows = () => isOpen = true
  pair.client.udp.knows = () => isOpen
  assert.is(pair.talk(8), 80)
  assert.is(pair.ways, 'relay relay')
  assert.is(pair.talk(3), 30)
  assert.is(pair.ways, 'udp udp')
  // It is remembered, though nobody has told it.
  pair.cut(true)
  pair.talk(10)
  assert.is(pair.ways, 'relay relay')
  pair.cut(false)
  pair.talk(60)
  assert.is(pair.ways, 'udp udp')
})

test('datagrams that nobody has sealed move nothing, nor do repeated ones', () => {
  const pair = new Pair()
  pair.cut(true)
  const kept: Batch[] = []
  const { onReceive } = pair.server.relay
  pair.server.relay.onReceive = (batch) => {
    const copy = Batch.make(batch.end, 1)
    copy.push(batch.bytes.subarray(0, batch.end), encodeEndpoint({ host: '192.0.2.99', port: 9 }))
    kept.push(copy)
    onReceive?.(batch)
  }
  pair.talk(3)
  pair.cut(false)
  const types = new Set<number>()
  for (const batch of kept) {
    types.add(batch.bytes[0]!)
    pair.server.udp.onReceive?.(batch)
    const changed = Batch.make(batch.end, 1)
    const bytes = batch.bytes.slice(0, batch.end)
    bytes[bytes.length - 1]! ^= 1
    changed.push(bytes, encodeEndpoint({ host: '192.0.2.99', port: 9 }))
    pair.server.udp.onReceive?.(changed)
  }
  assert.equal([...types].sort(), [1, 4])
  assert.is(pair.server.way, 'relay')
  assert.is(pair.server.udp.sent[2], 0)
})

test('after a sleep, or in another network, all ways are asked at once', () => {
  const pair = new Pair()
  pair.talk(70)
  pair.cut(true)
  pair.clock.jump(3_600_000)
  pair.client.choice.again()
  const lost = 50 - pair.talk(5)
  assert.ok(lost <= 2, `${lost} answers of 50 were lost`)
  assert.is(pair.ways, 'relay relay')
  pair.talk(300)
  pair.cut(false)
  pair.client.choice.again()
  assert.is(pair.talk(8), 80)
  assert.is(pair.ways, 'udp udp')
})

test('a peer that is gone costs a bounded number of handshakes', () => {
  const pair = new Pair({ told: [{ host: '192.0.2.2', port: 5000 }] })
  pair.cut(true)
  pair.talk(1)
  const before = pair.client.udp.sent[1]! + pair.server.udp.sent[1]!
  pair.run(3_600_000)
  const tries = pair.client.udp.sent[1]! + pair.server.udp.sent[1]! - before
  assert.ok(tries > 10 && tries < 50, `${tries} tries in an hour`)
})

test.run()
