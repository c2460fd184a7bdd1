// Two devices through the module over a network that loses, delays, repeats and changes, with clocks that
// step, in virtual time; and two tunnels whose streams must come byte for byte. WIREGUARD_SIMULATIONS=200
// for more seeds.
// runtimes: bun node
// seconds: 240
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Batch, encodeEndpoint, Tunnel } from '../../agent/wireguard-wasm/index.ts'
import type { Flow, Path } from '../../agent/wireguard-wasm/index.ts'
import { ipv4, module, Node, Time } from '../support/wireguard.ts'

const SEEDS = Number(process.env['WIREGUARD_SIMULATIONS'] ?? 4)
const STEP_MS = 10
const test = suite('wireguard/simulation')

function dice(seed: number): (below: number) => number {
  let state = seed * 2_654_435_761 >>> 0 || 1
  return (below) => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) % below
  }
}

interface Weather {
  lossPercent: number
  delayMs: number
  repeatPercent: number
  changePercent: number
}
const FINE: Weather = { lossPercent: 0, delayMs: 5, repeatPercent: 0, changePercent: 0 }

class World {
  readonly time = new Time()
  readonly walls = [1.7e12, 1.6e12]
  readonly nodes: [Node, Node]
  readonly arrived = new Set<string>()
  readonly roll: (below: number) => number
  sent = 0
  readonly #nonces = new Set<string>()
  #wire: { at: number; to: 0 | 1; bytes: Uint8Array }[] = []

  constructor(seed: number) {
    this.roll = dice(seed)
    const node = (number: 0 | 1): Node =>
      new Node(number + 1, this.time, { wallClock: () => this.walls[number]! + this.time.ms })
    this.nodes = [node(0), node(1)]
    this.nodes[0].know(this.nodes[1])
    this.nodes[1].know(this.nodes[0])
  }

  send(who: 0 | 1): void {
    const body = new Uint8Array(60)
    new DataView(body.buffer).setUint32(0, this.sent++)
    this.nodes[who].device.send(ipv4(who + 1, 2 - who, body))
  }

  run(ms: number, weather: Weather, each: () => void): void {
    for (const end = this.time.ms + ms; this.time.ms < end; this.time.ms += STEP_MS) {
      each()
      const due = this.#wire.filter(({ at }) => at <= this.time.ms)
      this.#wire = this.#wire.filter(({ at }) => at > this.time.ms)
      for (const { to, bytes } of due.sort((a, b) => a.at - b.at)) this.#arrive(to, bytes)
      for (const who of [0, 1] as const) {
        const { device } = this.nodes[who]
        if (device.nextDeadline <= this.time.ms) assert.ok(device.tick() > this.time.ms)
        for (const bytes of this.nodes[who].flush()) this.#launch(who, bytes, weather)
      }
    }
  }

  #arrive(to: 0 | 1, bytes: Uint8Array): void {
    const node = this.nodes[to]
    node.packets.length = 0
    node.take([bytes], this.nodes[to === 0 ? 1 : 0])
    for (const packet of node.packets) {
      const number = new DataView(packet.buffer).getUint32(20)
      const body = new Uint8Array(60)
      new DataView(body.buffer).setUint32(0, number)
      assert.equal(packet, ipv4(2 - to, to + 1, body))
      assert.not.ok(this.arrived.has(`${to} ${number}`), 'a packet came twice')
      this.arrived.add(`${to} ${number}`)
    }
  }

  #launch(from: 0 | 1, bytes: Uint8Array, weather: Weather): void {
    if (bytes[0] === 4) {
      const nonce = `${from} ${bytes.subarray(4, 16)}`
      assert.not.ok(this.#nonces.has(nonce), 'a nonce was used twice')
      this.#nonces.add(nonce)
    }
    for (let copies = this.roll(100) < weather.repeatPercent ? 2 : 1; copies > 0; copies--) {
      if (this.roll(100) < weather.lossPercent) continue
      const copy = bytes.slice()
      if (this.roll(100) < weather.changePercent) copy[this.roll(copy.length)]! ^= 1
      const at = this.time.ms + 1 + this.roll(weather.delayMs + 1)
      this.#wire.push({ at, to: from === 0 ? 1 : 0, bytes: copy })
    }
  }
}

test(`sessions converge after any weather, and no nonce is used twice (${SEEDS} seeds)`, () => {
  for (let seed = 1; seed <= SEEDS; seed++) {
    const world = new World(seed)
    const { roll } = world
    const weather: Weather = {
      lossPercent: roll(60),
      delayMs: roll(2000),
      repeatPercent: roll(30),
      changePercent: roll(20),
    }
    world.run(400_000, weather, () => {
      for (const who of [0, 1] as const) {
        if (roll(40) === 0) world.send(who)
        if (roll(3000) === 0) world.walls[who] = world.walls[who]! + roll(7_200_000) - 3_600_000
      }
    })
    assert.ok(world.arrived.size > 0, `seed ${seed}: something came in bad weather`)
    const both = (everyMs: number) => (): void => {
      if (world.time.ms % everyMs !== 0) return
      world.send(0)
      world.send(1)
    }
    world.run(20_000, FINE, both(1000))
    const before = { sent: world.sent, arrived: world.arrived.size }
    world.run(20_000, FINE, both(100))
    world.run(1000, FINE, () => {})
    const [sent, arrived] = [world.sent - before.sent, world.arrived.size - before.arrived]
    assert.ok(arrived >= sent, `seed ${seed}: ${arrived} of ${sent} in fine weather`)
    for (const { device } of world.nodes) assert.is(device.stats().restarts, 0)
  }
})

/** Timers of two tunnels in virtual time. */
class Timers {
  readonly time = new Time()
  #due: { at: number; run: () => void }[] = []

  readonly after = (ms: number, run: () => void): { cancel(): void } => {
    const one = { at: this.time.ms + ms, run }
    this.#due.push(one)
    return { cancel: () => void (this.#due = this.#due.filter((other) => other !== one)) }
  }

  /** Goes on to the next that is due. */
  async step(): Promise<boolean> {
    // What waits in microtasks is now.
    for (let turns = 0; turns < 8; turns++) await Promise.resolve()
    const next = this.#due.reduce<{ at: number; run: () => void } | undefined>(
      (first, one) => !first || one.at < first.at ? one : first,
      undefined,
    )
    if (!next) return false
    this.#due = this.#due.filter((one) => one !== next)
    this.time.ms = Math.max(this.time.ms, next.at)
    next.run()
    return true
  }
}

function stormy(
  timers: Timers,
  roll: (below: number) => number,
  weather: Weather,
  seen?: (from: number, bytes: Uint8Array) => void,
): [Path, Path] {
  const make = (number: number): Path & { other?: Path } => ({
    mtu: 1452,
    send(batch, from = 0, to = batch.count) {
      const record = encodeEndpoint({ host: `192.0.2.${number}`, port: 1 })
      for (let i = from; i < to; i++) {
        const [at = 0, length = 0, , size = 0] = batch.words.subarray(i * 4, i * 4 + 4)
        for (let start = at; start < at + length; start += size) {
          seen?.(number, batch.bytes.subarray(start, Math.min(start + size, at + length)))
          for (let copies = roll(100) < weather.repeatPercent ? 2 : 1; copies > 0; copies--) {
            if (roll(1000) < weather.lossPercent * 10) continue
            const copy = Batch.make(size, 1)
            const bytes = batch.bytes.slice(start, Math.min(start + size, at + length))
            if (roll(1000) < weather.changePercent * 10) bytes[roll(bytes.length)]! ^= 1
            copy.push(bytes, record)
            timers.after(5 + roll(weather.delayMs + 1), () => this.other!.onReceive?.(copy))
          }
        }
      }
      return true
    },
  })
  const [a, b] = [make(1), make(2)]
  a.other = b
  b.other = a
  return [a, b]
}

test('streams come byte for byte through loss, reordering, repetition, change, stepping clocks and new sessions', async () => {
  for (let seed = 1; seed <= Math.min(SEEDS, 8); seed++) {
    const timers = new Timers()
    const roll = dice(seed * 77)
    const weather = {
      lossPercent: roll(4),
      delayMs: roll(60),
      repeatPercent: roll(5),
      changePercent: roll(3),
    }
    const nonces = new Set<string>()
    const sessions = new Set<string>()
    const [left, right] = stormy(timers, roll, weather, (from, bytes) => {
      if (bytes[0] !== 4) return
      const nonce = `${from} ${bytes.subarray(4, 16)}`
      assert.not.ok(nonces.has(nonce), `seed ${seed}: a nonce was used twice`)
      nonces.add(nonce)
      sessions.add(`${from} ${bytes.subarray(4, 8)}`)
    })
    let stepMs = 0
    const make = (number: number, onIncoming?: (flow: Flow) => void): Tunnel =>
      new Tunnel({
        module,
        privateKey: crypto.getRandomValues(new Uint8Array(32)),
        addresses: [`10.0.0.${number}`],
        now: timers.time.now,
        wallClock: () => timers.time.wallClock() + stepMs,
        after: timers.after,
        ...(onIncoming ? { onIncoming: (asked) => onIncoming(asked.accept()!) } : {}),
      })
    const bytes = Uint8Array.from({ length: 400_000 }, (_, i) => (i * 31 + (i >> 9)) & 255)
    const [a, b] = [make(1), make(2, (flow) => echo(flow))]
    a.device.addPeer({
      publicKey: b.device.publicKey,
      allowedIps: ['10.0.0.2/32'],
      endpoint: '192.0.2.2:1',
    })
    b.device.addPeer({ publicKey: a.device.publicKey, allowedIps: ['10.0.0.1/32'] })
    a.addPath(0, left)
    b.addPath(0, right)
    const parts: Uint8Array[] = []
    let got = 0
    let waits = 0
    let ended: { error: Error | undefined } | undefined
    void a.connect({ address: '10.0.0.2', port: 7, timeoutMs: 120_000 }).then((flow) => {
      flow.handle({
        data: (part) => {
          parts.push(part)
          got += part.length
          // A reader that does nothing for longer than a session lasts, while clocks step.
          if (got < (waits + 1) * bytes.length / 3) return
          waits++
          flow.pause()
          stepMs += roll(7_200_000) - 3_600_000
          timers.after(100_000 + roll(100_000), () => flow.resume())
        },
        end: () => {},
        closed: (error) => ended = { error },
      })
      const half = bytes.length / 2
      flow.write(bytes.subarray(0, half))
      // The rest in another session, by clocks that may have stepped.
      timers.after(130_000 + roll(100_000), () => {
        flow.write(bytes.subarray(half))
        flow.end()
      })
    })
    const from = timers.time.ms
    while (!ended && timers.time.ms - from < 1_800_000) assert.ok(await timers.step())
    assert.equal(ended, { error: undefined }, `seed ${seed}: it ends in good order`)
    assert.ok(Buffer.concat(parts).equals(bytes), `seed ${seed}: byte for byte`)
    assert.ok(waits > 1 && sessions.size > 2, `seed ${seed}: ${sessions.size} sessions`)
    a.close()
    b.close()
  }
})

function echo(flow: Flow): void {
  flow.handle({
    data: (bytes) => {
      if (flow.write(bytes) === 'queued') flow.pause()
    },
    drain: () => flow.resume(),
    end: () => flow.end(),
    closed: () => {},
  })
}

test.run()
