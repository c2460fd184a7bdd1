/**
 * The chains of a session, docs/protocol.md §12: golden values made with another implementation, then
 * checkpoints that are forged, reflected, moved or silent, and the search for the record that differs.
 */
// runtimes: bun, node, deno
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, hex, utf8 } from '../../core/bytes.ts'
import { CHECKPOINT_BYTES, openCheckpoint, TRACE_BYTES } from '../../core/chain.ts'
import { KEPT_VALUES_MAX } from '../../core/transcript.ts'
import { codeOf, CRYPTOS, fast, filled } from '../support/crypto.ts'
import type { Middle } from '../support/transcripts.ts'
import {
  ACK,
  ALICE,
  BOB,
  CHECKPOINT,
  DATA,
  Pair,
  SESSION,
  START,
  TRACE,
} from '../support/transcripts.ts'

const test = suite('core/transcript')

const CONTEXT = { session: SESSION, initiator: ALICE.public, responder: BOB.public }
const GOLDEN_CHAIN = '526c3ae5f530ec42713aed047f7193e12a8a5a12263461efce7143d0927cf3a3'
/** Changes the tag of record `number` from `side`. */
const bend = (number: number, side: string): Middle => (record, from) =>
  record.counter === number && from === side ? { ...record, tag: filled(0xee, 16) } : record

test('chains are those that the text of §12 gives', () => {
  const pair = new Pair()
  pair.pass('alice', DATA, 0x010203)
  const opened = openCheckpoint(fast, pair.alice.transcript.checkpoint(START), {
    context: CONTEXT,
    role: 'initiator',
  })
  const sha256 = fast.sha256
  const tag = sha256(utf8('tag 0')).subarray(0, 16)
  const start = sha256(utf8('sotto transcript v1\0'), SESSION, Uint8Array.of(1))
  const counter = new Uint8Array(8)
  const first = sha256(
    utf8('sotto record v1\0'),
    start,
    counter,
    Uint8Array.of(DATA, 1, 2, 3),
    tag,
  )
  assert.is(opened.sent, 1)
  assert.is(hex(opened.sentChain), hex(first))
  assert.is(hex(opened.sentChain), GOLDEN_CHAIN)
  const other = sha256(utf8('sotto transcript v1\0'), SESSION, Uint8Array.of(2))
  assert.is(hex(opened.receivedChain), hex(other))
  assert.is(
    hex(opened.sentCommitmentsChain),
    hex(sha256(utf8('sotto commitments v1\0'), SESSION, Uint8Array.of(1))),
  )
})

for (const [name, crypto] of CRYPTOS) {
  test(`${name}: both ends agree after any mix of records and checkpoints`, () => {
    const step = fc.constantFrom('a', 'b', 'ca', 'cb')
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const pair = new Pair()
        for (const one of steps) {
          if (one === 'a') pair.pass('alice')
          else if (one === 'b') pair.pass('bob')
          else assert.equal(pair.check(one === 'ca' ? 'alice' : 'bob'), {})
        }
        assert.equal(pair.check('alice', { final: true }), {})
        assert.equal(pair.check('bob', { final: true }), {})
        assert.ok(pair.alice.transcript.peerFinal && pair.bob.transcript.peerFinal)
      }),
      { numRuns: crypto === fast ? 30 : 1 },
    )
  })
}

test('lengths are those of the table', () => {
  const pair = new Pair(bend(0, 'alice'))
  pair.pass('alice')
  assert.is(CHECKPOINT_BYTES, 233)
  assert.is(pair.alice.transcript.checkpoint(START).length, 233)
  assert.is(pair.check('alice').trace!.length, TRACE_BYTES)
  assert.is(TRACE_BYTES, 42)
})

test('record() refuses a number that is not the next', () => {
  const { transcript } = new Pair().alice
  const record = { type: DATA, length: 20, tag: filled(1, 16) }
  assert.is(
    codeOf(() => transcript.record('sent', { ...record, counter: 1 })),
    'transcript/counter',
  )
  transcript.record('sent', { ...record, counter: 0 })
  for (const counter of [0, 2, -1, 0.5]) {
    assert.is(codeOf(() => transcript.record('sent', { ...record, counter })), 'transcript/counter')
  }
  transcript.record('received', { ...record, counter: 0 })
  assert.is(transcript.sentRecords, 1)
  assert.is(transcript.receivedRecords, 1)
})

test('receive() refuses a checkpoint that is cut, longer or changed in any byte, and stays as it was', () => {
  const pair = new Pair()
  for (let i = 0; i < 5; i++) pair.pass('alice')
  const bytes = Uint8Array.from(pair.alice.transcript.checkpoint(START))
  pair.pass('alice', CHECKPOINT)
  const { transcript } = pair.bob
  for (let length = 0; length < bytes.length; length += 7) {
    const cut = bytes.subarray(0, length)
    assert.is(codeOf(() => transcript.receive(cut)), 'transcript/length')
  }
  assert.is(codeOf(() => transcript.receive(concat(bytes, filled(0, 1)))), 'transcript/length')
  for (let i = 0; i < bytes.length; i++) {
    const changed = Uint8Array.from(bytes)
    changed[i]! ^= 1
    assert.is(codeOf(() => transcript.receive(changed)), 'transcript/forged', `byte ${i}`)
  }
  assert.not.ok(transcript.suspect)
  assert.equal(transcript.receive(bytes), {})
})

test('a checkpoint is of one session, one side and two identities', () => {
  const pair = new Pair()
  const bytes = pair.alice.transcript.checkpoint(START)
  const own = pair.alice.transcript
  pair.pass('bob', CHECKPOINT)
  assert.is(codeOf(() => own.receive(bytes)), 'transcript/forged', 'reflected')
  const open = (context: typeof CONTEXT, role: 'initiator' | 'responder' = 'initiator') =>
    codeOf(() => openCheckpoint(fast, bytes, { context, role }))
  assert.is(open(CONTEXT), undefined)
  assert.is(open(CONTEXT, 'responder'), 'transcript/forged')
  assert.is(open({ ...CONTEXT, session: filled(1, 16) }), 'transcript/forged')
  assert.is(open({ ...CONTEXT, responder: ALICE.public }), 'transcript/forged')
})

test('numbers that cannot be are refused: ahead, behind, above what was sent, after the last', () => {
  const pair = new Pair()
  pair.pass('alice')
  const old = Uint8Array.from(pair.alice.transcript.checkpoint(START))
  pair.pass('alice', CHECKPOINT)
  pair.bob.transcript.receive(old)
  pair.pass('alice', CHECKPOINT)
  assert.is(codeOf(() => pair.bob.transcript.receive(old)), 'transcript/count', 'replayed')

  const lossy = new Pair((record, from) => from === 'alice' && record.counter === 1 ? null : record)
  lossy.pass('alice')
  lossy.pass('alice')
  assert.is(codeOf(() => lossy.check('alice')), 'transcript/count', 'one record is missing')

  const boast = new Pair()
  const { transcript } = boast.alice
  transcript.record('received', { counter: 0, type: DATA, length: 20, tag: filled(1, 16) })
  assert.is(codeOf(() => boast.check('alice')), 'transcript/count', 'received what was never sent')

  const over = new Pair()
  over.check('alice', { final: true })
  assert.is(codeOf(() => over.check('alice')), 'transcript/final')
})

test('due(): after 4,096 records of both directions, or 30 s after the first that counts', () => {
  const pair = new Pair()
  const { transcript } = pair.alice
  assert.not.ok(transcript.due(0))
  assert.is(transcript.dueAt, undefined)
  for (let i = 0; i < 4095; i++) pair.pass(i % 2 ? 'alice' : 'bob')
  assert.not.ok(transcript.due(1000))
  assert.is(transcript.dueAt, 31_000)
  pair.pass('bob')
  assert.ok(transcript.due(1000))
  pair.check('alice')
  assert.not.ok(transcript.due(90_000), 'its own checkpoint counts for nothing')
  pair.pass('bob')
  assert.not.ok(transcript.due(100_000))
  assert.not.ok(transcript.due(129_999))
  assert.ok(transcript.due(130_000))
})

test('acks, checkpoints and traces alone never call for a checkpoint', () => {
  const pair = new Pair()
  for (const type of [ACK, CHECKPOINT, TRACE]) {
    pair.pass('alice', type)
    pair.pass('bob', type)
  }
  for (const side of [pair.alice, pair.bob]) {
    assert.not.ok(side.transcript.due(0))
    assert.not.ok(side.transcript.due(1e9))
    assert.is(side.transcript.dueAt, undefined)
  }
})

test('a peer that sends no checkpoint ends the session: by its records, and by its acks', () => {
  const pair = new Pair()
  for (let i = 0; i < KEPT_VALUES_MAX; i++) {
    pair.alice.transcript.record('received', record(i))
  }
  const one = record(KEPT_VALUES_MAX)
  assert.is(codeOf(() => pair.alice.transcript.record('received', one)), 'transcript/silent')
  const { transcript } = new Pair().alice
  for (let i = 0; i < 8193; i++) transcript.record('sent', record(i))
  transcript.opened(8192)
  assert.is(codeOf(() => transcript.opened(8193)), 'transcript/silent')
})

function record(counter: number) {
  return { counter, type: DATA, length: 20, tag: filled(counter & 0xff, 16) }
}

test("full: nothing but what must pass is sent until the peer's checkpoint has come", () => {
  const pair = new Pair()
  for (let i = 0; i < 15_359; i++) pair.pass('alice')
  assert.not.ok(pair.alice.transcript.full)
  pair.pass('alice')
  assert.ok(pair.alice.transcript.full)
  pair.check('bob')
  assert.not.ok(pair.alice.transcript.full)
  pair.check('alice')
  for (let i = 0; i < 3000; i++) pair.pass('alice')
  assert.equal(pair.check('alice'), {}, 'and blocks that were freed are not missed')
})

for (const side of ['alice', 'bob'] as const) {
  const other = side === 'alice' ? 'bob' : 'alice'
  for (const total of [1, 2, 5, 64, 1000, 4095]) {
    for (const number of new Set([0, Math.floor(total / 2), total - 1])) {
      test(`a difference in record ${number} of ${total} from ${side} is found by both`, () => {
        for (const checker of [side, other] as const) {
          const pair = new Pair(bend(number, side))
          for (let i = 0; i < total; i++) pair.pass(side)
          const step = pair.check(checker)
          assert.ok(step.trace && !step.failed)
          const finder = checker === 'alice' ? 'bob' : 'alice'
          assert.ok(pair[finder].transcript.suspect)
          const { failed, questions } = pair.search(step, finder)
          const from = side === 'alice' ? 'initiator' : 'responder'
          assert.match(failed.alice, `record ${number} from the ${from}`)
          assert.match(failed.bob, `record ${number} from the ${from}`)
          assert.ok(questions <= 32, `${questions} messages`)
        }
      })
    }
  }
}

test('the search holds where both had agreed before and forgot what they agreed on', () => {
  fc.assert(
    fc.property(fc.nat(400), fc.nat(400), fc.nat(399), fc.boolean(), (first, second, at, twice) => {
      const pair = new Pair(bend(first + 2 + at % (second + 1), 'alice'))
      for (let i = 0; i < first; i++) pair.pass('alice')
      pair.check('alice')
      if (twice) pair.check('bob')
      pair.pass('alice')
      for (let i = 0; i <= second; i++) pair.pass('alice')
      const step = pair.check('bob')
      if (!step.trace) return
      const { failed } = pair.search(step, 'alice')
      const number = `record ${first + 2 + at % (second + 1)} `
      assert.match(failed.alice, number)
      assert.match(failed.bob, number)
    }),
    { numRuns: 40 },
  )
})

test('while a search goes on nothing is due and checkpoints are kept and not judged', () => {
  const pair = new Pair(bend(0, 'alice'))
  pair.pass('alice')
  pair.check('alice')
  const { transcript } = pair.bob
  assert.not.ok(transcript.due(5))
  assert.is(transcript.dueAt, 10_005)
  assert.equal(pair.check('alice'), {})
  assert.not.ok(transcript.due(10_004))
  assert.is(codeOf(() => transcript.due(10_005)), 'transcript/mismatch')
})

test('traces that no honest peer sends end the session', () => {
  const pair = new Pair(bend(3, 'alice'))
  for (let i = 0; i < 8; i++) pair.pass('alice')
  const step = pair.check('alice')
  const { transcript } = pair.bob
  const question = step.trace!
  const bytes = (changes: [number, number][]) => {
    const out = Uint8Array.from(question)
    for (const [at, value] of changes) out[at] = value
    return out
  }
  assert.is(codeOf(() => transcript.receiveTrace(question.subarray(1))), 'transcript/length')
  for (const changes of [[[0, 3]], [[1, 0]], [[1, 3]], [[0, 2], [1, 2]]] as [number, number][][]) {
    assert.is(codeOf(() => transcript.receiveTrace(bytes(changes))), 'transcript/trace')
  }
  assert.is(codeOf(() => transcript.receiveTrace(bytes([[0, 2], [9, 200]]))), 'transcript/trace')
  assert.is(
    codeOf(() => new Pair().alice.transcript.receiveTrace(bytes([[0, 2]]))),
    'transcript/trace',
  )
  const asked = new Pair().alice.transcript
  for (let i = 0; i < 64; i++) asked.receiveTrace(bytes([]))
  assert.is(codeOf(() => asked.receiveTrace(bytes([]))), 'transcript/trace', 'one too many')
})

test('a peer that answers beside the question is not followed for ever', () => {
  const pair = new Pair(bend(100, 'alice'))
  for (let i = 0; i < 4000; i++) pair.pass('alice')
  let step = pair.check('alice')
  const answer = Uint8Array.from(step.trace!)
  answer[0] = 2
  for (let rounds = 0; step.trace; rounds++) {
    assert.ok(rounds < 64)
    step = pair.bob.transcript.receiveTrace(answer)
  }
  assert.is((step.failed as { code?: string }).code, 'transcript/mismatch')
})

test('contents are committed to, shown in any order, and each opens alone', () => {
  const pair = new Pair()
  const [alice, bob] = [pair.alice.transcript, pair.bob.transcript]
  const contents = ['one', 'two', 'three', 'one'].map((one) => fast.sha256(utf8(one)))
  const commitments = contents.map((one) => alice.commit(one))
  assert.equal(commitments.map(({ index }) => index), [0, 1, 2, 3])
  const values = commitments.map(({ value }) => value)
  assert.is(new Set(values.map(hex)).size, 4, 'the same content twice is not seen to be')
  assert.equal(values.map((one) => bob.commitReceived(one)), commitments)
  for (const i of [2, 0, 3]) bob.openReceived(i, contents[i]!)
  assert.equal(pair.check('alice'), {}, 'a content that was not read is no fault')
  bob.openReceived(1, contents[1]!)
  assert.equal(pair.check('bob'), {})
  for (const [i, { index, value }] of commitments.entries()) {
    const salt = bob.salt('received', index)
    assert.equal(salt, alice.salt('sent', index))
    assert.equal(fast.hmacSha256(salt, contents[i]!), value)
    assert.is.not(hex(fast.hmacSha256(salt, fast.sha256(utf8('another')))), hex(value))
  }
})

test('another content than the one committed to is found, and so is another chain', () => {
  const content = fast.sha256(utf8('yes'))
  const lie = fast.sha256(utf8('no'))
  const pair = new Pair()
  const { transcript } = pair.bob
  transcript.commitReceived(pair.alice.transcript.commit(content).value)
  assert.is(codeOf(() => transcript.openReceived(0, lie)), 'transcript/commitment')
  transcript.openReceived(0, content)
  for (const index of [0, 1, -1, 0.5, NaN]) {
    const run = () => transcript.openReceived(index, content)
    assert.is(codeOf(run), 'transcript/commitment', `${index}, of which none is open`)
  }
  assert.is(codeOf(() => transcript.commitReceived(content.subarray(1))), 'transcript/length')

  for (const signer of ['alice', 'bob'] as const) {
    const other = new Pair()
    other.alice.transcript.commit(content)
    other.bob.transcript.commitReceived(filled(3))
    assert.is(codeOf(() => other.check(signer)), 'transcript/commitment', signer)
  }
})

test('a checkpoint counts all commitments that came before it, and none that did not', () => {
  const held = new Pair()
  held.alice.transcript.commit(filled(1))
  assert.is(codeOf(() => held.check('alice')), 'transcript/count', 'one was held back')
  const more = new Pair()
  more.bob.transcript.commitReceived(filled(3))
  assert.is(codeOf(() => more.check('bob')), 'transcript/count', 'of what was never committed to')
  assert.is(codeOf(() => more.check('alice')), 'transcript/count')
})

test.run()
