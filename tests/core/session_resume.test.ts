/**
 * Carriers are lost at every byte, delayed, replayed and forged: all bytes of all streams arrive
 * exactly once, or the session ends with a name. docs/protocol.md §10, "Resumption".
 */
// runtimes: bun, node, deno
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { hex, utf8 } from '../../core/bytes.ts'
import { encodeEnvelope, ENVELOPE } from '../../core/envelope.ts'
import type { Stream } from '../../core/mux.ts'
import { RESEND_BYTES_MAX, RESERVE_BYTES_MAX } from '../../core/records.ts'
import { RESUMING_OF_ONE_MAX, STEP_MS } from '../../core/responder.ts'
import { encodeProceed, encodeResume, openResumed } from '../../core/resume.ts'
import { type Session, SPOILED_CARRIERS_MAX } from '../../core/session.ts'
import { fast } from '../support/crypto.ts'
import { seeded, turn } from '../support/network.ts'
import { Collector, Pair, RelayedCarrier, type Tamper } from '../support/sessions.ts'

const test = suite('core/session, resumed')
const FIRST_SEED = Math.floor(Math.random() * 2 ** 31)
const SEEDS = 25

/** Bytes that say where in which stream they are. */
function pattern(stream: number, length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 31 + (i >> 8) * 7 + stream * 101) & 0xff)
}

function same(found: Uint8Array, expected: Uint8Array): boolean {
  return found.length === expected.length && found.every((byte, i) => byte === expected[i])
}

/** Writes all of `content` as the stream takes it, then ends. */
function send(stream: Stream, content: Uint8Array, collector: Collector): void {
  let at = 0
  function go(): void {
    while (at < content.length) {
      const chunk = content.subarray(at, at + 20_000)
      at += chunk.length
      if (stream.write(chunk) === 'queued') return
    }
    stream.end()
  }
  stream.handle({
    data: (bytes) => collector.take(bytes),
    drain: go,
    end: () => void (collector.isEnded = true),
    closed: (error) => {
      collector.isClosed = true
      collector.error = error
    },
  })
  go()
}

test(`all bytes of all streams arrive once, whatever is cut, seeds from ${FIRST_SEED}`, async () => {
  let cuts = 0
  let resumed = 0
  for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) {
    const random = seeded(seed)
    const pair = new Pair()
    const recorded: Uint8Array[] = []
    let isCalm = false
    /** A way that splits, delays, and ends at any byte. */
    const way = (carrier: () => RelayedCarrier | undefined, left: number): Tamper => {
      let untilMs = 0
      return (chunk, pass) => {
        if (isCalm) left = Infinity
        if (chunk[0] === ENVELOPE.resume) recorded.push(chunk)
        for (let at = 0; at < chunk.length;) {
          const length = 1 + Math.floor(random() * (random() < 0.3 ? 20 : chunk.length))
          const part = chunk.subarray(at, Math.min(at + length, at + Math.max(1, left)))
          at += part.length
          left -= part.length
          untilMs = Math.max(untilMs, pair.clock.monotonic() + (random() < 0.1 ? random() * 40 : 0))
          const isLast = left <= 0 && !isCalm
          pair.clock.after(untilMs - pair.clock.monotonic(), () => {
            if (!carrier()?.isCut) pass(part)
            if (isLast && !carrier()?.isCut) {
              cuts++
              carrier()?.cut()
            }
          })
          if (isLast) return
        }
      }
    }
    let number = 0
    const dial = pair.dial.bind(pair)
    pair.dial = () => {
      const own = number++
      const fatal = own > 0 && own < 9 && random() < 0.9
      const holder: { carrier?: RelayedCarrier } = {}
      const most = random() < 0.4 ? 300 : 150_000
      pair.tamper = {
        forth: way(() => holder.carrier, fatal ? 1 + random() * most : Infinity),
        back: way(() => holder.carrier, fatal ? 1 + random() * most : Infinity),
        end: (_way, pass) => void pair.clock.after(2000, pass),
      }
      return holder.carrier = dial()
    }
    const got: Collector[] = []
    pair.onOpenB = (stream) => {
      const collector = new Collector()
      got.push(collector)
      send(stream, pattern(100 + got.length, 60_000), collector)
    }
    const { a, b } = await settle(pair, pair.open())
    const back: Collector[] = []
    for (let i = 1; i <= 4; i++) {
      const collector = new Collector()
      back.push(collector)
      send(a.open(utf8(`${i}`)), pattern(i, 120_000), collector)
    }
    pair.carrier.cut()
    for (let i = 0; i < 60_000 && !back.every((one) => one.isClosed); i += 20) {
      await pair.pass(20)
      // What the relay recorded is played to the responder again.
      if (recorded.length > 0 && random() < 0.02) {
        const replay = new RelayedCarrier()
        pair.responder.accept(replay.b)
        replay.inject('forth', recorded[Math.floor(random() * recorded.length)]!)
        replay.inject('forth', encodeEnvelope(ENVELOPE.proceed, fast.randomBytes(32)))
      }
    }
    isCalm = true
    await pair.pass(6000)
    const { states, stateErrors, ends } = pair.atA
    const why = `seed ${seed}: ${JSON.stringify([a.state, b.state, states, stateErrors, ends])}`
    assert.ok(back.every((one) => one.isEnded && !one.error), why)
    for (const [i, one] of got.entries()) {
      assert.ok(same(one.content, pattern(i + 1, 120_000)) && one.isEnded, why)
      assert.ok(same(back[i]!.content, pattern(101 + i, 60_000)), why)
    }
    assert.is(got.length, 4, why)
    resumed += pair.atA.states.filter((state) => state === 'open').length
    a.close()
    await pair.pass(3000)
    assert.equal(pair.atA.ends, [{ code: 0, reason: '', remote: false }], why)
    assert.equal(pair.atB.ends, [{ code: 0, reason: '', remote: true }], why)
    assert.equal(a.transcript.peerFinal && b.transcript.peerFinal, true, why)
  }
  assert.ok(cuts > SEEDS && resumed > SEEDS, `${cuts} cuts, ${resumed} resumptions`)
})

/** Time moves while something is awaited. */
async function settle<T>(pair: Pair, promise: Promise<T>): Promise<T> {
  let isDone = false
  promise.finally(() => void (isDone = true)).catch(() => {})
  while (!isDone) await pair.pass(20)
  return promise
}

test('what was sealed is sent again byte for byte, and never sealed again', async () => {
  const pair = new Pair()
  let isOpen = true
  pair.tamper = { forth: (chunk, pass) => void (isOpen && pass(chunk)) }
  const { a } = await pair.open()
  const got = new Collector()
  pair.onOpenB = (stream) => send(stream, new Uint8Array(0), got)
  const stream = a.open()
  await pair.pass(200)
  const before = pair.carrier
  const at = before.bytes('forth').length
  isOpen = false
  stream.write(pattern(1, 30_000))
  await turn()
  const sealed = hex(before.bytes('forth').subarray(at))
  assert.is(sealed.length, 2 * (4 + 5 + 30_000 + 16))
  isOpen = true
  before.cut()
  await pair.pass(100)
  assert.is(pair.carriers.length, 2)
  // After resume and proceed.
  const again = hex(pair.carrier.bytes('forth').subarray(92 + 36))
  assert.ok(again.startsWith(sealed))
  assert.ok(same(got.content, pattern(1, 30_000)))
  a.close()
  await pair.pass(20)
})

test('a session without a carrier ends after 60 s at both ends, and no later resume moves it', async () => {
  const pair = new Pair()
  const { a, b } = await pair.open()
  const stream = a.open()
  const collector = new Collector(stream)
  await pair.pass(100)
  const offer = {
    session: a.id,
    initiatorNonce: new Uint8Array(32),
    initiatorReceived: a.received,
  }
  const resume = encodeEnvelope(ENVELOPE.resume, encodeResume(fast, a.resumeKeys, offer))
  pair.isAway = true
  pair.carrier.cut()
  await pair.pass(59_900)
  assert.equal([a.state, b.state], ['waiting', 'waiting'])
  assert.not.ok(collector.isClosed)
  await pair.pass(200)
  assert.is(pair.atA.ends[0]!.error!.code, 'session/lost')
  assert.is(pair.atB.ends[0]!.error!.code, 'session/lost')
  // A stream that was cut is never taken for one that ended.
  assert.ok(collector.isClosed && !collector.isEnded)
  assert.is((collector.error as { code?: string }).code, 'stream/gone')
  pair.dial().a.write(resume)
  await pair.pass(20)
  assert.equal(pair.dropped, ['session/unknown'])
  assert.is(pair.clock.pending, 0)
})

test('a carrier that ends without a close is a loss, not an end', async () => {
  const pair = new Pair()
  const { a, b } = await pair.open()
  const collector = new Collector(a.open())
  await pair.pass(100)
  pair.carrier.a.end()
  pair.carrier.b.end()
  await pair.pass(500)
  assert.equal([a.state, b.state], ['open', 'open'])
  assert.equal(pair.atA.states, ['waiting', 'open'])
  assert.not.ok(collector.isEnded || collector.isClosed)
  a.close()
  await pair.pass(20)
})

test('attempts are made at once, then after waits that double from 200 ms to 5 s', async () => {
  const pair = new Pair()
  const at: number[] = []
  const start = { ms: 0 }
  const { a } = await pair.open({
    redial: () => {
      at.push(pair.clock.monotonic() - start.ms)
      return Promise.reject(new Error('away'))
    },
  })
  await pair.pass(6000)
  start.ms = pair.clock.monotonic()
  pair.carrier.cut()
  await pair.pass(61_000)
  assert.ok(at[0]! <= 10, at.join())
  const waits = at.slice(1).map((ms, i) => ms - at[i]!)
  const expected = [200, 400, 800, 1600, 3200, ...Array<number>(waits.length - 5).fill(5000)]
  // The clock of this test moves in steps of 10 ms.
  assert.ok(waits.every((ms, i) => ms >= expected[i]! && ms <= expected[i]! + 20), waits.join())
  assert.ok(a.ended)
})

test('forged, replayed and stale resumptions move nothing', async () => {
  const pair = new Pair()
  const { a, b } = await pair.open()
  new Collector(a.open())
  await pair.pass(100)
  const live = pair.carrier
  const keys = a.resumeKeys
  const offer = { session: a.id, initiatorNonce: fast.randomBytes(32), initiatorReceived: 0 }
  const body = encodeResume(fast, keys, offer)
  const code = async (bytes: Uint8Array): Promise<string> => {
    const dropped = pair.dropped.length
    const { a: conn } = pair.dial()
    conn.write(encodeEnvelope(ENVELOPE.resume, bytes))
    await pair.pass(20)
    return pair.dropped.slice(dropped).join()
  }
  // Every bit: another session, nonce, number or tag.
  for (let bit = 0; bit < body.length * 8; bit += 5) {
    const forged = body.slice()
    forged[bit >> 3]! ^= 1 << (bit & 7)
    const expected = bit < 128 ? ['session/unknown'] : ['session/resume', 'session/range']
    assert.ok(expected.includes(await code(forged)), `bit ${bit}`)
  }
  // The responder's own words come back.
  const other = encodeResume(fast, { initiator: keys.responder, responder: keys.initiator }, offer)
  assert.is(await code(other), 'session/resume')
  // A true one, replayed: it is answered, and forgotten after 5 s.
  assert.is(await code(body), '')
  assert.is(pair.responder.pending, 1)
  await pair.pass(STEP_MS)
  assert.is(pair.responder.pending, 0)
  assert.is(pair.dropped.at(-1), 'session/timeout')
  // However many, few wait at a time.
  for (let i = 0; i < 20; i++) await code(body)
  assert.is(pair.responder.pending, RESUMING_OF_ONE_MAX)
  assert.not.ok(live.isCut)
  assert.equal([a.state, b.state, pair.atA.states, pair.atB.states], ['open', 'open', [], []])
  a.close()
  await pair.pass(20)
  assert.is(pair.responder.pending, 0)
})

/** Resumes by hand, from what this end says that it received. */
async function resumeByHand(pair: Pair, a: Session, initiatorReceived: number): Promise<void> {
  const offer = { session: a.id, initiatorNonce: fast.randomBytes(32), initiatorReceived }
  const { a: conn } = pair.dial()
  const parts: Uint8Array[] = []
  conn.handle({ data: (bytes) => void parts.push(bytes), end() {}, closed() {} })
  conn.write(encodeEnvelope(ENVELOPE.resume, encodeResume(fast, a.resumeKeys, offer)))
  await pair.pass(20)
  const facts = openResumed(fast, a.resumeKeys, { offer, body: parts[0]!.subarray(4) })
  conn.write(encodeEnvelope(ENVELOPE.proceed, encodeProceed(fast, a.resumeKeys, facts)))
  await pair.pass(20)
}

test('a number below what was acknowledged, or above what was sent, ends the session', async () => {
  for (const wrong of ['below', 'above']) {
    const pair = new Pair()
    pair.onOpenB = (stream) => {
      stream.accept()
      stream.write(utf8('answer'))
    }
    const { a } = await pair.open()
    new Collector(a.open())
    await pair.pass(200)
    assert.ok(a.received > 1)
    await resumeByHand(pair, a, wrong === 'below' ? 0 : a.received + 100)
    assert.is(pair.atB.ends[0]!.error!.code, 'session/ack', wrong)
    a.close()
    await pair.pass(6000)
  }
})

test('proceed moves the session, and drops attempts that came before', async () => {
  const pair = new Pair()
  const { a, b } = await pair.open()
  new Collector(a.open())
  await pair.pass(100)
  const offer = {
    session: a.id,
    initiatorNonce: fast.randomBytes(32),
    initiatorReceived: a.received,
  }
  const stale = pair.dial()
  const parts: Uint8Array[] = []
  stale.a.handle({ data: (bytes) => void parts.push(bytes), end() {}, closed() {} })
  stale.a.write(encodeEnvelope(ENVELOPE.resume, encodeResume(fast, a.resumeKeys, offer)))
  await pair.pass(20)
  assert.is(pair.responder.pending, 1)
  pair.carriers[0]!.cut()
  await pair.pass(300)
  assert.equal([a.state, b.state, pair.responder.pending], ['open', 'open', 0])
  // The word that would have moved it comes late.
  const facts = openResumed(fast, a.resumeKeys, { offer, body: parts[0]!.subarray(4) })
  stale.inject('forth', encodeEnvelope(ENVELOPE.proceed, encodeProceed(fast, a.resumeKeys, facts)))
  await pair.pass(300)
  assert.equal([a.state, b.state, pair.atB.ends], ['open', 'open', []])
  a.close()
  await pair.pass(20)
})

test('what a peer does not acknowledge is bounded, and streams wait', async () => {
  const pair = new Pair()
  const { a } = await pair.open({ limits: { windowMaxBytes: 16_777_216 } })
  pair.onOpenB = (stream) => {
    stream.accept()
    new Collector(stream)
  }
  const streams = Array.from({ length: 200 }, () => a.open())
  await pair.pass(100)
  pair.isAway = true
  pair.carrier.cut()
  await pair.pass(20)
  let kept = 0
  for (let i = 0; i < 30; i++) {
    for (const stream of streams) stream.write(new Uint8Array(10_000))
    await pair.pass(10)
    kept = Math.max(kept, a.keptBytes)
  }
  assert.ok(kept <= RESEND_BYTES_MAX + RESERVE_BYTES_MAX, `${kept}`)
  assert.ok(a.bufferedBytes < RESEND_BYTES_MAX + RESERVE_BYTES_MAX)
  pair.isAway = false
  await pair.pass(10_000)
  assert.is(a.state, 'open')
  assert.ok(a.bufferedBytes < 1_000_000, `${a.bufferedBytes}`)
  a.close()
  await pair.pass(20)
})

test('a way on which records are forged again and again is given up with a name', async () => {
  const pair = new Pair()
  pair.onOpenB = (stream) => new Collector(stream)
  const { a, b } = await pair.open()
  const collector = new Collector(a.open())
  await pair.pass(100)
  let forged = 0
  pair.tamper = {
    back: (chunk, pass) => {
      if (chunk[0]! < ENVELOPE.ready) return pass(chunk)
      const wrong = chunk.slice()
      wrong[wrong.length - 1]! ^= 1
      forged++
      pass(wrong)
    },
  }
  pair.carrier.cut()
  await pair.pass(5000)
  assert.ok(forged >= SPOILED_CARRIERS_MAX)
  assert.is(pair.atA.ends[0]!.error!.code, 'session/forged')
  assert.ok(pair.atA.stateErrors.includes('session/forged'))
  assert.not.ok(collector.isEnded)
  assert.ok(collector.isClosed)
  await pair.pass(61_000)
  assert.ok(b.ended)
})

test.run()
