/**
 * Comparing by eye, docs/protocol.md §15: what both ends show, and what somebody between them can do,
 * which is to hit 42 bits with one try.
 */
// runtimes: bun, node, deno
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, EMPTY, hex } from '../../core/bytes.ts'
import type { Emoji, SasStep } from '../../core/sas.ts'
import { EMOJI, formatSas, Sas, sasEmoji } from '../../core/sas.ts'
import { codeOf, CRYPTOS, fast, filled, seededCrypto } from '../support/crypto.ts'

const test = suite('core/sas')

const SECRET = filled(7)
/** Of the seven for SECRET and nonces of 32 times 1 and 32 times 2. */
const GOLDEN = 'Corn Unicorn Santa Smiley Hammer Cloud Rabbit'
const TABLE_HASH = '15d7bf6b651008b26cbbb8ae69123c877212f447182f1311bd3548beacff913d'
const side = (role: 'initiator' | 'responder', secret = SECRET) =>
  new Sas({ crypto: fast, role, secret })
const names = (emoji: readonly Emoji[]) => emoji.map(({ name }) => name).join(' ')

/** Both ends up to the point where the people compare. */
function meet(a = side('initiator'), b = side('responder')) {
  const nonceB = b.receive(a.start()).send
  const ofA = a.receive(nonceB)
  const ofB = b.receive(ofA.send)
  return { a, b, ofA, ofB }
}

test('both ends of one session show the same seven', () => {
  const { ofA, ofB } = meet()
  assert.is(ofA.emoji!.length, 7)
  assert.equal(ofA.emoji, ofB.emoji)
})

test('every run shows others, and another session shows others', () => {
  assert.is.not(names(meet().ofA.emoji!), names(meet().ofA.emoji!))
  const { ofA, ofB } = meet(side('initiator'), side('responder', filled(8)))
  assert.is.not(names(ofA.emoji!), names(ofB.emoji!))
})

test('only two yes verify', () => {
  for (const yesA of [true, false]) {
    for (const yesB of [true, false]) {
      const { a, b } = meet()
      assert.is(a.verified, undefined)
      const fromA = a.answer(yesA)
      assert.is(a.verified, yesA ? undefined : false)
      assert.is(b.receive(fromA).peerAnswer, yesA)
      assert.is(a.receive(b.answer(yesB)).peerAnswer, yesB)
      assert.is(a.verified, yesA && yesB)
      assert.is(b.verified, yesA && yesB)
      assert.is(a.ended(), undefined)
    }
  }
})

test('bytes may come in any pieces, and the answer right behind the nonce', () => {
  const a = side('initiator')
  const b = side('responder')
  const feed = (to: Sas, bytes: Uint8Array): SasStep => {
    let step: SasStep = { send: EMPTY }
    for (const byte of bytes) {
      const next = to.receive(Uint8Array.of(byte))
      step = { ...step, ...next, send: concat(step.send, next.send) }
    }
    return step
  }
  const reveal = feed(a, feed(b, a.start()).send).send
  const both = feed(b, concat(reveal, a.answer(true)))
  assert.is(both.emoji!.length, 7)
  assert.is(both.peerAnswer, true)
})

test('a nonce that was changed after the commitment is refused, whichever bit', () => {
  fc.assert(
    fc.property(fc.nat(255), (bit) => {
      const a = side('initiator')
      const b = side('responder')
      const reveal = a.receive(b.receive(a.start()).send).send
      const changed = Uint8Array.from(reveal)
      changed[bit >> 3]! ^= 1 << (bit & 7)
      assert.is(codeOf(() => b.receive(changed)), 'sas/commitment')
      assert.is(b.verified, false)
      assert.is(codeOf(() => b.receive(reveal)), 'sas/trailing', 'there is no second try')
      assert.is(codeOf(() => b.answer(true)), 'sas/early')
    }),
    { numRuns: 64 },
  )
})

test('somebody between two sessions cannot search for a nonce that makes both agree', () => {
  // With the responder's nonce known, a search for equal emoji is what the commitment forbids. Here
  // the space is cut to the first emoji, and the search succeeds at once; the reveal is refused.
  const crypto = seededCrypto('middle')
  const b = side('responder', filled(2))
  const first = crypto.randomBytes(32)
  const nonceB =
    b.receive(fast.sha256(new TextEncoder().encode('sotto sas commit v1\0'), first)).send
  const target = 'Dog'
  let found: Uint8Array | undefined
  for (let i = 0; i < 10_000 && !found; i++) {
    const nonceA = crypto.randomBytes(32)
    const shown = sasEmoji(fast, { secret: filled(2), nonceA, nonceB })
    if (shown[0]!.name === target) found = nonceA
  }
  assert.ok(found, 'the search itself is easy')
  assert.is(codeOf(() => b.receive(found!)), 'sas/commitment')
})

test('messages reflected to their sender are refused or show nothing equal', () => {
  const a = side('initiator')
  a.start()
  const nonce = side('responder').receive(filled(1)).send
  const reveal = a.receive(nonce).send
  assert.is.not(hex(reveal), hex(nonce))
  const b = side('responder')
  const own = b.receive(fast.sha256(filled(0))).send
  assert.is(codeOf(() => b.receive(own)), 'sas/commitment')
  const same = new Sas({
    crypto: { ...fast, randomBytes: () => filled(5) },
    role: 'initiator',
    secret: SECRET,
  })
  assert.is(codeOf(() => same.receive(filled(5))), 'sas/reflected')
})

test("the end before the peer's answer is a no", () => {
  const { a, b } = meet()
  a.answer(true)
  assert.is(a.ended()!.code, 'sas/truncated')
  assert.is(a.verified, false)
  assert.is(side('responder').ended()!.code, 'sas/truncated')
  assert.is(codeOf(() => b.receive(Uint8Array.of(2))), 'sas/answer')
  assert.is(b.verified, false)
})

test('bytes after the answer take it back', () => {
  const { a } = meet()
  a.answer(true)
  assert.is(codeOf(() => a.receive(Uint8Array.of(1, 1))), 'sas/trailing')
  assert.is(a.verified, false)
})

test('an answer needs emoji, and there is one', () => {
  const early = side('initiator')
  assert.is(codeOf(() => early.answer(true)), 'sas/early')
  const { a } = meet()
  a.answer(false)
  assert.is(codeOf(() => a.answer(true)), 'sas/early')
})

for (const [name, crypto] of CRYPTOS) {
  test(`${name}: sasEmoji() takes the first 42 bits, six at a time`, () => {
    const nonces = { secret: SECRET, nonceA: filled(1), nonceB: filled(2) }
    const bytes = crypto.hkdfSha256({
      key: SECRET,
      salt: concat(filled(1), filled(2)),
      info: 'sotto sas v1',
      bytes: 6,
    })
    let bits = ''
    for (const byte of bytes) bits += byte.toString(2).padStart(8, '0')
    const expected = Array.from(
      { length: 7 },
      (_, i) => EMOJI[Number.parseInt(bits.slice(6 * i, 6 * i + 6), 2)]!,
    )
    assert.equal(sasEmoji(crypto, nonces), expected)
    assert.is(names(expected), GOLDEN)
  })
}

test('the table has 64 entries, no two alike, and never changes', () => {
  assert.is(EMOJI.length, 64)
  assert.is(new Set(EMOJI.map(({ name }) => name)).size, 64)
  assert.is(new Set(EMOJI.map(({ symbol }) => symbol)).size, 64)
  for (const { symbol, name } of EMOJI) {
    assert.match(name, /^[A-Z][a-z]+( [A-Z][a-z]+)?$/)
    assert.match(symbol, /^\p{Extended_Pictographic}\ufe0f?$/u)
  }
  const table = new TextEncoder().encode(EMOJI.map(({ symbol, name }) => symbol + name).join('\n'))
  assert.is(hex(fast.sha256(table)), TABLE_HASH)
})

test('formatSas() puts nothing behind an emoji, whose width nobody knows', () => {
  const lines = formatSas([0, 29, 36, 41, 25, 61, 63].map((i) => EMOJI[i]!)).split('\n')
  assert.is(lines.length, 7)
  assert.is(lines[0], '1  Dog         🐶')
  assert.is(lines[1], '2  Heart       ❤️')
  assert.is(lines[2], '3  Thumbs Up   👍')
  const starts = lines.map((line) => line.search(/[^\x20-\x7e]/u))
  assert.equal(new Set(starts).size, 1, 'emoji begin in one column')
})

test.run()
