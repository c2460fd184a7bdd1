/**
 * A relay that lies, a stranger that floods, and a peer that breaks the rules: each ends with a
 * name, and nothing is delivered that was not sent. docs/protocol.md §10.
 */
// runtimes: bun, node, deno
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ByteWriter, EMPTY, fromHex, hex, text, utf8 } from '../../core/bytes.ts'
import {
  encodeEnvelope,
  ENVELOPE,
  type Envelope,
  EnvelopeReader,
  SESSION_SIZES,
} from '../../core/envelope.ts'
import type { TunnelError } from '../../core/errors.ts'
import { encodeFrame, encodeVisit, type Visit } from '../../core/frame.ts'
import type { InitiateOptions } from '../../core/initiate.ts'
import { InitiatorHello, suiteName } from '../../core/opening.ts'
import { encodePassport } from '../../core/passport.ts'
import { RecordReceiver, RecordSender } from '../../core/records.ts'
import { PENDING_OF_ONE_MAX, SILENT_MAX, STEP_MS } from '../../core/responder.ts'
import { fast } from '../support/crypto.ts'
import { seeded, turn } from '../support/network.ts'
import { Collector, makeParty, Pair, RelayedCarrier, type Tampers } from '../support/sessions.ts'

const test = suite('core/session, attacked')

async function failure(pair: Pair, options: Partial<InitiateOptions> = {}): Promise<string> {
  let code = 'none'
  const attempt = pair.initiate(options).then(
    () => 'opened',
    (error: TunnelError) => error.code,
  ).then((found) => void (code = found))
  for (let i = 0; i < 60 && code === 'none'; i++) await pair.pass(100)
  await attempt
  return code
}

function nothingTold(pair: Pair): void {
  assert.equal([pair.sessionsOfB, pair.atB.streams, pair.atB.ends], [[], [], []])
}

/** An initiator whose every record the test makes itself. */
async function rawInitiator(pair: Pair): Promise<{
  send: RecordSender
  receive: RecordReceiver
  write(): void
  read(): Envelope | undefined
  carrier: RelayedCarrier
}> {
  const { a, b, clock, crypto } = pair
  const hello = new InitiatorHello({
    crypto,
    opening: {
      suite: 'aesgcm',
      initiator: a.identity.public,
      responder: b.identity.public,
      service: 'a2a',
    },
    staticKey: a.staticKey,
    passport: a.passport,
    peer: b.opened,
  })
  const carrier = pair.dial()
  const reader = new EnvelopeReader(SESSION_SIZES)
  carrier.a.handle({ data: (bytes) => reader.push(bytes), end() {}, closed() {} })
  carrier.a.write(encodeEnvelope(ENVELOPE.opening, hello.body))
  await pair.pass(20)
  const { split } = hello.answer(reader.next()!.body, clock.now())
  const send = new RecordSender({ cipher: split.send, clock, onRecord() {} })
  return {
    send,
    receive: new RecordReceiver({ cipher: split.receive, clock, onRecord() {} }),
    write() {
      for (let one = send.take(); one; one = send.take()) carrier.a.write(one)
    },
    read: () => reader.next(),
    carrier,
  }
}

test('every bit of opening and answer matters', async () => {
  const pair = new Pair()
  const { a } = await pair.open()
  const opening = pair.carrier.sent.forth[0]!
  const answer = pair.carrier.sent.back[0]!
  a.close()
  await pair.pass(20)
  assert.is(opening[0], ENVELOPE.opening)
  assert.is(answer[0], ENVELOPE.answer)
  const codes = new Set<string>()
  for (const [way, whole] of [['forth', opening], ['back', answer]] as const) {
    // All bits of what is in clear, then one of each byte.
    for (let bit = 0; bit < whole.length * 8; bit += bit < 85 * 8 ? 7 : 41) {
      const pair = new Pair()
      let count = 0
      pair.tamper = {
        [way]: (chunk: Uint8Array, pass: (bytes: Uint8Array) => void) => {
          if (count++ > 0) return pass(chunk)
          const wrong = chunk.slice()
          wrong[bit >> 3]! ^= 1 << (bit & 7)
          pass(wrong)
        },
      }
      const code = await failure(pair)
      codes.add(code)
      assert.ok(
        /^(session\/(unanswered|envelope|timeout)|noise\/\w+)$/.test(code),
        `${way} bit ${bit}: ${code}`,
      )
      assert.ok(count > 0)
      nothingTold(pair)
    }
  }
  assert.ok(codes.has('noise/forged') && codes.has('session/unanswered'))
})

test('a handshake that is cut at any byte delivers nothing', async () => {
  for (const way of ['forth', 'back'] as const) {
    for (let length = 0; length < 1400; length += 97) {
      const pair = new Pair()
      pair.tamper = {
        [way]: (chunk: Uint8Array, pass: (b: Uint8Array) => void) =>
          pass(chunk.subarray(0, length)),
      } as Tampers
      assert.is(await failure(pair), 'session/timeout')
      await pair.pass(2 * STEP_MS)
      nothingTold(pair)
      assert.is(pair.responder.pending, 0)
    }
  }
})

test('message 1 replayed does nothing: no owner is told, and it is forgotten after 5 s', async () => {
  const admitted: string[] = []
  const pair = new Pair({ admit: ({ service }) => void admitted.push(service) })
  const { a } = await pair.open()
  const recorded = pair.carrier.bytes('forth')
  const { length } = pair.carrier.sent.forth[0]!
  assert.equal(admitted, ['a2a'])
  for (const replay of [recorded.subarray(0, length), recorded]) {
    const carrier = pair.dial()
    carrier.a.write(replay)
    await pair.pass(20)
  }
  // The records behind it are under keys of another handshake.
  assert.equal(pair.dropped, ['session/lost'])
  assert.is(pair.responder.pending, 1)
  await pair.pass(STEP_MS)
  assert.is(pair.responder.pending, 0)
  assert.equal([admitted, pair.sessionsOfB.length], [['a2a'], 1])
  a.close()
  await pair.pass(20)
})

test('the wrong identity, key, passport, suite or service stops it', async () => {
  const pair = new Pair()
  const { clock, a, b } = pair
  const other = makeParty(clock)
  // A relay that hands out its own static key under the peer's name could not sign the passport.
  assert.is(
    await failure(pair, { peer: { ...b.opened, staticKey: other.staticKey.public32 } }),
    'session/unanswered',
  )
  assert.is(await failure(pair, { peer: other.opened }), 'session/unanswered')
  assert.is(pair.dropped.at(-1), 'session/responder')
  assert.is(await failure(pair, { passport: other.passport }), 'session/unanswered')
  assert.is(pair.dropped.at(-1), 'passport/signer')
  assert.is(await failure(pair, { staticKey: other.staticKey }), 'session/unanswered')
  assert.is(pair.dropped.at(-1), 'session/passport')
  assert.is(await failure(pair, { identity: other.identity }), 'session/unanswered')
  assert.is(pair.dropped.at(-1), 'passport/signer')
  assert.is(await failure(pair, { service: 'Not A Name' }), 'session/service')
  assert.is(await failure(pair, { peer: a.opened }), 'session/reflected')
  assert.is(await failure(pair, { peer: { ...b.opened, ciphers: [] } }), 'session/suite')
  const only = { ...b.opened, ciphers: [suiteName('chachapoly')] }
  assert.is(await failure(pair, { peer: only, suite: 'aesgcm' }), 'session/suite')
  assert.is(
    await failure(pair, { peer: { ...b.opened, staticKey: undefined } }),
    'session/passport',
  )
  // The initiator knows a newer passport than the responder gives.
  assert.is(await failure(pair, { peer: { ...b.opened, sequence: 6 } }), 'passport/stale')
  nothingTold(pair)
  clock.jump(10 * 86_400_000)
  assert.is(await failure(pair), 'session/unanswered')
  assert.is(pair.dropped.at(-1), 'passport/expired')
})

test('a suite that the responder does not offer is refused there too', async () => {
  const pair = new Pair({ ciphers: [suiteName('chachapoly')] })
  assert.is(await failure(pair, { suite: 'aesgcm' }), 'session/unanswered')
  assert.equal(pair.dropped, ['session/suite'])
})

test('a responder whose passport holds another static key is not believed', async () => {
  const clock = new Pair().clock
  const pair = new Pair()
  const other = makeParty(clock)
  const { identity } = pair.b
  pair.b.passport = encodePassport(
    { ...pair.b.opened, sequence: 9, staticKey: other.staticKey.public32 },
    (message) => fast.ed25519Sign(identity.seed, message),
  )
  assert.is(await failure(pair), 'session/passport')
  pair.b.passport = other.passport
  assert.is(await failure(pair), 'passport/signer')
})

test("the initiator's own words come back: no answer, no session", async () => {
  const pair = new Pair()
  const carrier = new RelayedCarrier()
  carrier.b.handle({ data: (bytes) => void carrier.b.write(bytes), end() {}, closed() {} })
  assert.is(await failure(pair, { carrier: carrier.a }), 'session/envelope')
  // And records, reflected within a session that is open.
  const open = new Pair()
  const { a } = await open.open()
  a.open(utf8('x')).write(utf8('secret'))
  await open.pass(20)
  open.isAway = true
  open.carrier.inject('back', open.carrier.sent.forth.at(-1)!)
  await open.pass(20)
  assert.equal(open.atA.stateErrors, ['session/forged'])
})

test('records dropped, doubled, swapped, changed or cut deliver a true prefix and no end', async () => {
  const attacks: Record<string, (list: Uint8Array[], random: () => number) => Uint8Array[]> = {
    drop: (list, random) => list.toSpliced(Math.floor(random() * (list.length - 1)), 1),
    double: (list, random) => {
      const at = Math.floor(random() * list.length)
      return list.toSpliced(at, 0, list[at]!)
    },
    swap: (list, random) => {
      const at = Math.floor(random() * (list.length - 1))
      return list.toSpliced(at, 2, list[at + 1]!, list[at]!)
    },
    flip: (list, random) =>
      list.with(
        1,
        list[1]!.map((byte, i) => i === 4 + Math.floor(random() * 30) ? byte ^ 64 : byte),
      ),
    truncate: (list) => [list[0]!.subarray(0, -1), ...list.slice(1)],
    retype: (list) => [list[0]!.with(0, ENVELOPE.control), ...list.slice(1)],
    insert: (list) => [encodeEnvelope(ENVELOPE.data, fast.randomBytes(100)), ...list],
    unknown: (list) => [new Uint8Array([0x77, 0, 0, 0]), ...list],
    handshake: (list) => [encodeEnvelope(ENVELOPE.proceed, new Uint8Array(32)), ...list],
  }
  const random = seeded(1)
  const content = Uint8Array.from({ length: 300_000 }, (_, i) => i * 7 + (i >> 9))
  for (const [name, attack] of Object.entries(attacks)) {
    const pair = new Pair()
    let isHeld = false
    const held: Uint8Array[] = []
    pair.tamper = { forth: (chunk, pass) => isHeld ? void held.push(chunk) : pass(chunk) }
    let got: Collector | undefined
    pair.onOpenB = (stream) => {
      stream.accept()
      got = new Collector(stream)
    }
    const { a } = await pair.open()
    const stream = a.open()
    await pair.pass(100)
    isHeld = true
    pair.isAway = true
    for (let at = 0; at < content.length; at += 30_000) stream.write(content.slice(at, at + 30_000))
    stream.end()
    await turn()
    assert.ok(held.length > 5, name)
    for (const chunk of attack(held, random)) pair.carrier.inject('forth', chunk)
    await pair.pass(100)
    assert.ok(got!.bytes < content.length && !got!.isEnded, name)
    assert.is(hex(got!.content), hex(content.subarray(0, got!.bytes)), name)
    const code = pair.atB.stateErrors.at(-1)
    assert.ok(
      ['session/forged', 'session/envelope', 'session/order'].includes(code!),
      `${name}: ${code}`,
    )
    // Without the attack it succeeds: what was sealed is sent again.
    isHeld = false
    pair.isAway = false
    await pair.pass(6000)
    assert.is(hex(got!.content), hex(content), name)
    assert.ok(got!.isEnded, name)
    a.close()
    await pair.pass(100)
  }
})

test('strangers are bounded: silent ones, unfinished handshakes, those of one initiator', async () => {
  const pair = new Pair()
  const silent = Array.from({ length: SILENT_MAX + 10 }, () => pair.dial())
  await turn()
  assert.is(pair.responder.pending, SILENT_MAX)
  await pair.pass(STEP_MS)
  assert.is(pair.responder.pending, 0)
  assert.ok(silent.length > 0 && pair.dropped.every((code) => code === 'session/timeout'))
  pair.dropped.length = 0
  const raw = []
  for (let i = 0; i < PENDING_OF_ONE_MAX; i++) raw.push(await rawInitiator(pair))
  assert.is(pair.responder.pending, PENDING_OF_ONE_MAX)
  assert.is(await failure(pair), 'session/unanswered')
  assert.equal(pair.dropped, ['session/overload'])
  await pair.pass(STEP_MS)
  assert.is(pair.responder.pending, 0)
  assert.is(await failure(pair), 'opened')
  await pair.pass(20)
  nothingToldButOne(pair)
})

function nothingToldButOne(pair: Pair): void {
  assert.equal([pair.sessionsOfB.length, pair.atB.streams.length], [1, 0])
}

const VISIT: Visit = {
  kind: 'service',
  windowBytes: 1000,
  address: '',
  port: 0,
  endpoint: 'a2a',
  tail: EMPTY,
}
const number = (value: number): Uint8Array => new ByteWriter(8).u64(value).done()

type Break = [name: string, expected: string, run: (send: RecordSender) => void]
const BREAKS: Break[] = [
  ['ready twice', 'session/order', (send) => send.seal('ready', EMPTY)],
  [
    'data in control',
    'session/frame',
    (send) => send.seal('control', encodeFrame('data', 1, utf8('x'))),
  ],
  [
    'control in data',
    'session/frame',
    (send) => send.seal('data', encodeFrame('credit', 1, new Uint8Array(4))),
  ],
  [
    'a frame of links',
    'session/frame',
    (send) => send.seal('control', encodeFrame('ping', 0, new Uint8Array(8))),
  ],
  ['no frame at all', 'frame/unknown', (send) => send.seal('control', new Uint8Array(9))],
  ['a stream never opened', 'mux/unknown', (send) => send.seal('control', encodeFrame('fin', 9))],
  [
    'an id of the other side',
    'mux/parity',
    (send) => send.seal('control', encodeFrame('open', 2, encodeVisit(VISIT))),
  ],
  ['ack of what was never sent', 'session/ack', (send) => send.seal('ack', number(1000))],
  ['ack too short', 'session/truncated', (send) => send.seal('ack', new Uint8Array(7))],
  ['ack too long', 'session/trailing', (send) => send.seal('ack', new Uint8Array(9))],
  ['rekey with words', 'session/size', (send) => send.seal('rekey', utf8('x'))],
  ['a channel too short', 'session/order', (send) => send.seal('channel', new Uint8Array(15))],
  [
    'a checkpoint that nobody signed',
    'transcript/forged',
    (send) => send.seal('checkpoint', new Uint8Array(233)),
  ],
  [
    'a trace without a search',
    'transcript/trace',
    (send) => send.seal('trace', fromHex('02' + '01' + '00'.repeat(40))),
  ],
]
for (const [name, expected, run] of BREAKS) {
  test(`a peer that breaks the rules ends the session: ${name}`, async () => {
    const pair = new Pair()
    const raw = await rawInitiator(pair)
    raw.send.seal('ready', EMPTY)
    raw.write()
    await pair.pass(20)
    assert.is(pair.sessionsOfB.length, 1)
    run(raw.send)
    raw.write()
    await pair.pass(20)
    assert.is(pair.atB.ends[0]?.error?.code, expected)
    assert.is(pair.atB.ends[0]!.remote, false)
    // The peer is told, authenticated, as the last record.
    let last: [number, string] | undefined
    for (let one = raw.read(); one; one = raw.read()) {
      const content = raw.receive.open(one)
      last = [one.type, one.type === ENVELOPE.close ? text(content.subarray(2)) : '']
    }
    assert.is(last![0], ENVELOPE.close)
    assert.is(last![1], expected)
    assert.is(pair.responder.sessions.length, 0)
    await pair.pass(6000)
    assert.is(pair.clock.pending, 0)
  })
}

test('a record under another type does not open', async () => {
  const pair = new Pair()
  const raw = await rawInitiator(pair)
  raw.send.seal('ready', EMPTY)
  raw.write()
  await pair.pass(20)
  raw.send.seal('channel', new Uint8Array(16))
  raw.carrier.a.write(raw.send.take()!.with(0, ENVELOPE.ack))
  await pair.pass(20)
  assert.equal([pair.atB.ends, pair.atB.stateErrors], [[], ['session/forged']])
})

test('a stream of another kind or service is refused, and the session goes on', async () => {
  const pair = new Pair()
  const raw = await rawInitiator(pair)
  raw.send.seal('ready', EMPTY)
  for (
    const [id, visit] of [[1, { ...VISIT, endpoint: 'shell' }], [3, {
      ...VISIT,
      kind: 'udp',
    }]] as const
  ) {
    raw.send.seal('control', encodeFrame('open', id, encodeVisit(visit as Visit)))
  }
  raw.send.seal('control', encodeFrame('open', 5, encodeVisit(VISIT)))
  raw.write()
  await pair.pass(20)
  assert.equal(pair.atB.streams.map(({ id }) => id), [5])
  assert.is(pair.atB.ends.length, 0)
})

test('first record that is not ready: nothing is told', async () => {
  const pair = new Pair()
  const raw = await rawInitiator(pair)
  raw.send.seal('control', encodeFrame('open', 1, encodeVisit(VISIT)))
  raw.write()
  await pair.pass(20)
  nothingTold(pair)
  assert.equal(pair.dropped, ['session/order'])
  assert.is(raw.carrier.bytes('back').length, pair.carrier.sent.back[0]!.length, 'and no word more')
})

test('a packet channel that nobody names is dropped after 5 s, and few wait', async () => {
  const pair = new Pair()
  let resets = 0
  const stream = () => ({ sendPacket: () => 'ok' as const, reset: () => void resets++ })
  for (let i = 0; i < 100; i++) pair.responder.acceptChannel(stream(), new Uint8Array(16).fill(i))
  assert.is(resets, 36)
  await pair.pass(STEP_MS)
  assert.is(resets, 100)
})

test.run()
