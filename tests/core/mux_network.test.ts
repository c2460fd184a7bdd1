/**
 * Two muxes over a simulated network: delay, jitter, bandwidth, stalls, all from a seed. Bytes
 * arrive identical, every stream ends, nothing is held above its window, nothing is left behind.
 */
import * as fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ManualClock } from '../../core/clock.ts'
import { decodeFrame, FRAME, frameId, RESET } from '../../core/frame.ts'
import {
  Mux,
  type MuxOptions,
  QUANTUM_BYTES,
  SOCKET_BYTES_MAX,
  type Stream,
} from '../../core/mux.ts'
import { splice } from '../../core/socket.ts'
import { QUEUE_HIGH_BYTES } from '../../core/stream.ts'
import {
  type NetworkOptions,
  NetworkSocket,
  networkSockets,
  runUntil,
  seeded,
  turn,
} from '../support/network.ts'
import { VISIT_TO_WEB } from '../support/streams.ts'

const test = suite('core/mux over a network')

interface Joined {
  clock: ManualClock
  agent: Mux
  relay: Mux
  sockets: [NetworkSocket, NetworkSocket]
}

type Open = (stream: Stream) => void

function join(
  network: Omit<NetworkOptions, 'clock'>,
  on: { agent?: Open; relay?: Open } & Partial<MuxOptions>,
): Joined {
  const clock = new ManualClock()
  const sockets = networkSockets({ ...network, clock })
  function attach(side: 'agent' | 'relay', socket: NetworkSocket, onOpen: Open): Mux {
    const { agent: _a, relay: _r, ...options } = on
    const mux = new Mux({
      side,
      clock,
      send: (frame) => socket.send(frame),
      buffered: () => socket.buffered(),
      onOpen,
      onProtocolError: (error) => {
        throw error
      },
      ...options,
    })
    socket.handle({
      message: (bytes) => void mux.receive(decodeFrame(bytes)),
      drain: () => mux.drain(),
      closed: () => mux.close(),
    })
    return mux
  }
  const agent = attach('agent', sockets[0], on.agent ?? ((stream) => stream.reset(RESET.refused)))
  const relay = attach('relay', sockets[1], on.relay ?? ((stream) => stream.reset(RESET.refused)))
  return { clock, agent, relay, sockets }
}

/** Byte `at` of direction `lane`; any shift, loss or mix-up shows. */
function byteAt(lane: number, at: number): number {
  return (Math.imul(at + 1, 0x9e3779b1) >>> 24) ^ (lane & 255)
}

interface Plan {
  bytes: number
  chunk: number
  /** Pauses after this many bytes, for `pauseMs`, again and again; 0 for never. */
  pauseEvery: number
  pauseMs: number
  /** Resets after having sent so many bytes; -1 for never. */
  resetAt: number
}

interface End {
  stream: Stream
  received: number
  ended: boolean
  closed: boolean
  error: Error | undefined
}

/** Sends and checks as `plan` says; `lanes` are those of what it sends and what it receives. */
function drive(
  clock: ManualClock,
  stream: Stream,
  options: { plan: Plan; sends: number; receives: number },
): End {
  const { plan, sends, receives } = options
  const end: End = { stream, received: 0, ended: false, closed: false, error: undefined }
  let sent = 0
  let sincePause = 0
  function pump(): void {
    while (sent < plan.bytes) {
      if (plan.resetAt >= 0 && sent >= plan.resetAt) return stream.reset(RESET.aborted)
      const from = sent
      const length = Math.min(plan.chunk, plan.bytes - sent)
      sent += length
      const answer = stream.write(Uint8Array.from({ length }, (_, i) => byteAt(sends, from + i)))
      assert.ok(stream.buffered() <= QUEUE_HIGH_BYTES + plan.chunk)
      if (answer !== 'ok') return
    }
    stream.end()
  }
  stream.handle({
    data(bytes) {
      assert.not(end.ended || end.closed)
      for (let i = 0; i < bytes.length; i++) {
        if (bytes[i] !== byteAt(receives, end.received + i)) {
          throw new Error(`lane ${receives} differs at ${end.received + i}`)
        }
      }
      end.received += bytes.length
      sincePause += bytes.length
      if (plan.pauseEvery === 0 || sincePause < plan.pauseEvery) return
      sincePause = 0
      stream.pause()
      clock.after(plan.pauseMs, () => stream.resume())
    },
    drain: pump,
    end() {
      assert.not(end.ended)
      end.ended = true
    },
    closed(error) {
      assert.not(end.closed)
      end.closed = true
      end.error = error
    },
  })
  queueMicrotask(pump)
  return end
}

const PLAN = fc.record<Plan>({
  bytes: fc.oneof(fc.constantFrom(0, 1, 65_536, 262_144), fc.integer({ min: 0, max: 700_000 })),
  chunk: fc.constantFrom(1000, 16_384, 65_536, 200_000),
  pauseEvery: fc.constantFrom(0, 0, 10_000, 300_000),
  pauseMs: fc.integer({ min: 1, max: 200 }),
  resetAt: fc.oneof({ weight: 5, arbitrary: fc.constant(-1) }, {
    weight: 1,
    arbitrary: fc.integer({ min: 0, max: 300_000 }),
  }),
})

const SCHEDULE = fc.record({
  network: fc.record({
    seed: fc.integer(),
    delayMs: fc.constantFrom(0, 1, 20, 150),
    jitterMs: fc.constantFrom(0, 30),
    bytesPerMs: fc.constantFrom(1000, 20_000, Number.POSITIVE_INFINITY),
    stallChance: fc.constantFrom(0, 0.02),
    stallMsMax: fc.constantFrom(10, 400),
    highWaterBytes: fc.constantFrom(0, 65_536, 1_048_576),
  }),
  streams: fc.array(
    fc.record({ byAgent: fc.boolean(), openAtMs: fc.nat(100), forth: PLAN, back: PLAN }),
    { minLength: 1, maxLength: 8 },
  ),
  windowMaxBytes: fc.constantFrom(1, 70_000, 262_144, 1_048_576, undefined),
})

test('any schedule: identical bytes, every stream ends, held within windows, all released', async () => {
  await fc.assert(
    fc.asyncProperty(SCHEDULE, async ({ network, streams, windowMaxBytes }) => {
      const ends: End[] = []
      // A window of one byte is legal and needs a frame a byte: keep those transfers short.
      const small = windowMaxBytes === 1
      function plan(index: number, way: 'forth' | 'back'): Plan {
        const whole = streams[index]![way]
        return small ? { ...whole, bytes: Math.min(whole.bytes, 300) } : whole
      }
      const joined: Joined = join(network, {
        agent: (stream) => answer(stream),
        relay: (stream) => answer(stream),
        openTimeoutMs: 1_000_000,
        ...(windowMaxBytes === undefined ? {} : { windowMaxBytes }),
      })
      const { clock, agent, relay, sockets } = joined
      function answer(stream: Stream): void {
        const index = stream.visit.port
        const options = { plan: plan(index, 'back'), sends: 2 * index + 1, receives: 2 * index }
        clock.after(index * 7, () => {
          stream.accept()
          ends.push(drive(clock, stream, options))
        })
      }
      streams.forEach(({ byAgent, openAtMs }, index) => {
        clock.after(openAtMs, () => {
          const stream = (byAgent ? agent : relay).open({ ...VISIT_TO_WEB, port: index })
          const options = { plan: plan(index, 'forth'), sends: 2 * index, receives: 2 * index + 1 }
          ends.push(drive(clock, stream, options))
        })
      })
      const done = await runUntil(clock, () => {
        for (const { stream } of ends) assert.ok(stream.heldBytes <= stream.windowBytes)
        return ends.length === 2 * streams.length && ends.every((end) => end.closed)
      }, { limitMs: 3_600_000, stepMs: 25 })
      assert.ok(done, 'a stream did not end')
      for (const { stream, received, error, ended } of ends) {
        const index = stream.visit.port
        const resets = [plan(index, 'forth'), plan(index, 'back')].some((plan) =>
          plan.resetAt >= 0 && plan.resetAt < plan.bytes
        )
        if (!resets) {
          assert.is(error, undefined)
          assert.ok(ended)
          assert.is(received, plan(index, stream.opener ? 'back' : 'forth').bytes)
        }
      }
      clock.advance(10_000)
      assert.is(agent.size + relay.size, 0)
      assert.is(agent.bufferedBytes + relay.bufferedBytes, 0)
      assert.is(sockets[0].buffered() + sockets[1].buffered(), 0)
      assert.is(clock.pending, 0)
    }),
    { numRuns: 120 },
  )
})

/** Bytes as fast as credit allows. */
function gush(stream: Stream): void {
  const chunk = new Uint8Array(65_536)
  function pump(): void {
    while (stream.write(chunk) === 'ok');
  }
  stream.handle({ data() {}, end() {}, closed() {}, drain: pump })
  queueMicrotask(pump)
}

test('one bulk stream and 64 small ones on a slow link: each is served within a round', async () => {
  const small = 64
  const arrivals = new Map<number, number>()
  let order: number[] = []
  const { clock, agent, relay, sockets } = join({ seed: 1, delayMs: 5, bytesPerMs: 1000 }, {
    relay(stream) {
      stream.accept()
      stream.handle({
        data: () => void arrivals.set(stream.id, clock.monotonic()),
        end() {},
        closed() {},
      })
    },
  })
  const send = sockets[0].send.bind(sockets[0])
  sockets[0].send = (frame) => {
    if (frame[0] === FRAME.data) order.push(frameId(frame))
    return send(frame)
  }
  const bulk = agent.open(VISIT_TO_WEB)
  gush(bulk)
  const streams = Array.from({ length: small }, () => agent.open(VISIT_TO_WEB))
  await runUntil(clock, () => bulk.receivedBytes + bulk.sentBytes > 300_000, { limitMs: 10_000 })
  for (let round = 0; round < 20; round++) {
    arrivals.clear()
    order = []
    const startMs = clock.monotonic()
    for (const stream of streams) stream.write(new Uint8Array(100))
    const done = await runUntil(clock, () => arrivals.size >= small + 1, { limitMs: 10_000 })
    assert.ok(done)
    const first = streams.map((stream) => order.indexOf(stream.id))
    const bulks = order.slice(0, Math.max(...first)).filter((id) => id === bulk.id).length
    assert.ok(bulks <= 2, `the bulk stream had ${bulks} turns before the last small one`)
    const last = Math.max(...streams.map((stream) => arrivals.get(stream.id)!))
    // What the socket held already, one quantum of bulk, the small ones themselves, the way.
    const most = 65_536 * 2 + QUANTUM_BYTES + small * 105
    assert.ok(last - startMs <= most / 1000 + 5 + 2, `${last - startMs} ms`)
  }
  agent.close()
  relay.close()
})

test('eight bulk streams share a link evenly', async () => {
  const got = new Map<number, number>()
  const { clock, agent, relay } = join({ seed: 2, delayMs: 10, bytesPerMs: 5000 }, {
    relay(stream) {
      stream.accept()
      stream.handle({
        data: (bytes) => void got.set(stream.id, (got.get(stream.id) ?? 0) + bytes.length),
        end() {},
        closed() {},
      })
    },
  })
  for (let i = 0; i < 8; i++) gush(agent.open(VISIT_TO_WEB))
  await runUntil(clock, () => clock.monotonic() > 4000, { limitMs: 5000 })
  const shares = [...got.values()]
  assert.is(shares.length, 8)
  const all = shares.reduce((a, b) => a + b, 0)
  assert.ok(all > 0.9 * 5000 * 4000, `the link was used to ${all}`)
  assert.ok(Math.min(...shares) > 0.9 * Math.max(...shares), shares.join(' '))
  agent.close()
  relay.close()
})

test('a window grows to fill a long fat link, and only as far as it pays', async () => {
  async function reach(delayMs: number): Promise<{ rate: number; window: number }> {
    let got = 0
    let stream: Stream | undefined
    const { clock, agent, relay } = join({ seed: 3, delayMs, bytesPerMs: 50_000 }, {
      relay(opened) {
        stream = opened
        opened.accept()
        opened.handle({ data: (bytes) => void (got += bytes.length), end() {}, closed() {} })
      },
    })
    relay.rtt(2 * delayMs)
    gush(agent.open(VISIT_TO_WEB))
    await runUntil(clock, () => clock.monotonic() >= 3000, { limitMs: 4000 })
    const before = got
    await runUntil(clock, () => clock.monotonic() >= 4000, { limitMs: 4000 })
    const result = { rate: (got - before) / 1000, window: stream!.windowBytes }
    agent.close()
    relay.close()
    return result
  }
  const far = await reach(50)
  assert.ok(far.rate > 45_000, `${far.rate} bytes a millisecond at 100 ms`)
  assert.ok(far.window >= 5_000_000 && far.window <= 16_777_216, `${far.window}`)
  const near = await reach(1)
  assert.ok(near.rate > 45_000, `${near.rate} bytes a millisecond at 2 ms`)
  assert.ok(near.window <= 524_288, `${near.window} where 100,000 would do`)
})

test('a stalled reader stalls its own stream and no other', async () => {
  const got = new Map<number, number>()
  const { clock, agent, relay } = join({ seed: 4, delayMs: 5, bytesPerMs: 10_000 }, {
    relay(stream) {
      stream.accept()
      stream.handle({
        data: (bytes) => void got.set(stream.id, (got.get(stream.id) ?? 0) + bytes.length),
        end() {},
        closed() {},
      })
      if (stream.id === 1) stream.pause()
    },
  })
  const streams = Array.from({ length: 8 }, () => agent.open(VISIT_TO_WEB))
  streams.forEach(gush)
  await runUntil(clock, () => clock.monotonic() > 3000, { limitMs: 4000 })
  assert.is(got.get(1), undefined)
  const rest = [...got.values()].reduce((a, b) => a + b, 0)
  assert.ok(rest > 0.9 * 10_000 * 3000, `the seven had ${rest}`)
  assert.is(streams[0]!.creditBytes, 0)
  assert.ok(relay.bufferedBytes <= 262_144)
  assert.ok(streams[0]!.buffered() <= QUEUE_HIGH_BYTES + 65_536)
  agent.close()
  relay.close()
})

test('a socket that takes nothing holds 512 KiB and a frame, whatever is written', async () => {
  const { clock, agent, relay, sockets } = join({ seed: 5, highWaterBytes: 2 ** 30 }, {
    relay: (stream) => stream.accept(),
  })
  sockets[0].hold()
  for (let i = 0; i < 50; i++) agent.open(VISIT_TO_WEB).write(new Uint8Array(200_000))
  clock.advance(100)
  assert.ok(sockets[0].buffered() <= SOCKET_BYTES_MAX + 65_541 + 50 * 26)
  assert.ok(sockets[0].buffered() >= SOCKET_BYTES_MAX)
  sockets[0].release()
  const all = (): boolean => relay.bufferedBytes === 50 * 200_000
  assert.ok(await runUntil(clock, all, { limitMs: 10_000 }), 'it goes on without a drain event')
  agent.close()
  relay.close()
  assert.is(agent.bufferedBytes + relay.bufferedBytes, 0)
})

test('the link dies in the middle: every stream on both ends is told, nothing is left', async () => {
  const random = seeded(6)
  const errors: (string | undefined)[] = []
  function take(stream: Stream): void {
    stream.accept()
    stream.handle({
      data: () => void (random() < 0.3 && stream.pause()),
      end() {},
      closed: (error) => void errors.push((error as { code?: string } | undefined)?.code),
    })
    stream.write(new Uint8Array(400_000))
  }
  const { clock, agent, relay, sockets } = join({ seed: 6, bytesPerMs: 500 }, { relay: take })
  for (let i = 0; i < 20; i++) take(agent.open(VISIT_TO_WEB))
  await runUntil(clock, () => clock.monotonic() >= 2000, { limitMs: 3000 })
  assert.is(relay.size, 20)
  sockets[0].terminate()
  await turn()
  assert.equal(errors, Array.from({ length: 40 }, () => 'stream/gone'))
  assert.is(agent.bufferedBytes + relay.bufferedBytes + agent.size + relay.size, 0)
  assert.is(clock.pending, 0)
})

test('splice() of two streams carries bytes and half-close through a middle mux', async () => {
  // agent A ── link 1 ── relay ── link 2 ── agent B, joined in the relay as bytes.
  const ends: End[] = []
  const network = { seed: 7, delayMs: 3, bytesPerMs: 3000 }
  const plan: Plan = { bytes: 500_000, chunk: 50_000, pauseEvery: 40_000, pauseMs: 9, resetAt: -1 }
  const out: Joined = join(network, {
    agent(stream) {
      stream.accept()
      ends.push(drive(out.clock, stream, { plan, sends: 1, receives: 0 }))
    },
  })
  const inward = join(network, {
    relay(stream) {
      const onward = out.relay.open(VISIT_TO_WEB)
      onward.onAccept = () => {
        stream.accept()
        splice(stream, onward)
      }
    },
  })
  const first = drive(inward.clock, inward.agent.open(VISIT_TO_WEB), {
    plan,
    sends: 0,
    receives: 1,
  })
  ends.push(first)
  const done = await runUntil(inward.clock, () => {
    out.clock.advance(1)
    return ends.length === 2 && ends.every((end) => end.closed)
  }, { limitMs: 20_000 })
  assert.ok(done)
  assert.equal(ends.map(({ received, error }) => [received, error]), [
    [500_000, undefined],
    [500_000, undefined],
  ])
  await turn()
  const { agent, relay } = out
  assert.is(inward.agent.size + inward.relay.size + agent.size + relay.size, 0)
  assert.is(inward.clock.pending + out.clock.pending, 0)
})

test.run()
