/**
 * What an attacker may send in a handshake, and what callers may do wrong: each is a named error,
 * and after each the true message still works, since a failed read or write changes nothing.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, EMPTY, fromHex, hex } from '../../core/bytes.ts'
import type { HandshakeOptions, Pattern, PatternName, StaticKey } from '../../core/noise.ts'
import { Handshake, PATTERNS } from '../../core/noise.ts'
import { codeOf, fast, filled, seededCrypto } from '../support/crypto.ts'
import { patternNamed } from '../support/noise_patterns.ts'
import { slowSeal } from '../support/slow_noise.ts'

const test = suite('core/noise attacks')

const PAYLOAD = filled(7, 40)
const key = (byte: number): StaticKey => ({
  private32: filled(byte),
  public32: fast.x25519Public(filled(byte)),
})
const ALICE = key(1)
const BOB = key(2)

/** The u coordinates of order 1, 2, 4 and 8, as in tests/core/crypto.test.ts. */
const SMALL_ORDER = [
  '0000000000000000000000000000000000000000000000000000000000000000',
  '0100000000000000000000000000000000000000000000000000000000000000',
  'e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800',
  '5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157',
  'ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
  'edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
  'eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
].map(fromHex)

type Changes = Partial<HandshakeOptions>

function initiatorOf(pattern: PatternName | Pattern, changes: Changes = {}): Handshake {
  const known = (typeof pattern === 'string' ? PATTERNS[pattern] : pattern).known
  return new Handshake({
    crypto: fast,
    pattern,
    suite: 'aesgcm',
    role: 'initiator',
    prologue: EMPTY,
    local: ALICE,
    remoteStatic: known.includes('responder') ? BOB.public32 : undefined,
    ...changes,
  })
}

function responderOf(pattern: PatternName | Pattern, changes: Changes = {}): Handshake {
  return new Handshake({
    crypto: fast,
    pattern,
    suite: 'aesgcm',
    role: 'responder',
    prologue: EMPTY,
    local: BOB,
    ...changes,
  })
}

function flipped(message: Uint8Array, at: number, bit = 1): Uint8Array {
  const changed = Uint8Array.from(message)
  changed[at]! ^= bit
  return changed
}

/** A byte of each field, its first and last, and steps between: kem fields are long. */
function places(length: number, borders: number[]): number[] {
  const all = new Set(borders.flatMap((at) => [at - 1, at]).filter((at) => at >= 0 && at < length))
  for (let at = 0; at < length; at += 37) all.add(at)
  all.add(length - 1)
  return [...all]
}

const FIELDS: Record<'IKhfs' | 'XXhfs', [writer: 'initiator' | 'responder', borders: number[]][]> =
  {
    IKhfs: [['initiator', [0, 32, 1232, 1280]], ['responder', [0, 32, 1136]]],
    XXhfs: [
      ['initiator', [0, 32, 1216]],
      ['responder', [0, 32, 1136, 1184]],
      ['initiator', [0, 48]],
    ],
  }

for (const pattern of ['IKhfs', 'XXhfs'] as const) {
  test(`${pattern}: messages cut or changed are refused by name, and then the true one is read`, () => {
    const sides = { initiator: initiatorOf(pattern), responder: responderOf(pattern) }
    for (const [i, [writer, borders]] of FIELDS[pattern].entries()) {
      const reader = sides[writer === 'initiator' ? 'responder' : 'initiator']
      const message = sides[writer].write(PAYLOAD)
      // The very first message of XX is in clear: nothing can fail but its length.
      const isClear = pattern === 'XXhfs' && i === 0
      for (const length of places(message.length, borders)) {
        if (isClear && length >= 32 + 1184) continue
        const code = codeOf(() => reader.read(message.subarray(0, length)))
        assert.ok(
          code === 'noise/size' || code === 'noise/forged',
          `${i} cut to ${length}: ${code}`,
        )
        if (length < borders.at(-1)!) assert.is(code, 'noise/size', `${i} ${length}`)
      }
      if (!isClear) {
        for (const at of places(message.length, borders)) {
          const code = codeOf(() => reader.read(flipped(message, at)))
          assert.is(code, 'noise/forged', `${i} flipped at ${at}`)
        }
        const longer = concat(message, filled(0, 1))
        assert.is(codeOf(() => reader.read(longer)), 'noise/forged')
        assert.equal(reader.read(message), PAYLOAD, 'the true message')
      } else {
        sides.responder = responderOf(pattern)
        assert.equal(sides.responder.read(message), PAYLOAD)
      }
    }
    assert.equal(sides.initiator.split().hash, sides.responder.split().hash)
  })
}

test('IK: every byte of both messages, each cut and each flipped bit', () => {
  const initiator = initiatorOf('IK')
  const responder = responderOf('IK')
  for (const [writer, reader] of [[initiator, responder], [responder, initiator]] as const) {
    const message = writer.write(PAYLOAD)
    for (let at = 0; at < message.length; at++) {
      const cut = codeOf(() => reader.read(message.subarray(0, at)))
      assert.ok(cut === 'noise/size' || cut === 'noise/forged', `${at}: ${cut}`)
      // The top bit of a public key is not part of it (RFC 7748 §5), but it is hashed.
      for (const bit of [1, 0x80]) {
        assert.is(codeOf(() => reader.read(flipped(message, at, bit))), 'noise/forged', `${at}`)
      }
    }
    assert.equal(reader.read(message), PAYLOAD)
  }
  assert.equal(initiator.split().hash, responder.split().hash)
})

test('public keys of small order are refused, in every place where one can stand', () => {
  for (const point of SMALL_ORDER) {
    const responder = responderOf('IKhfs')
    const initiator = initiatorOf('IKhfs')
    const first = initiator.write(PAYLOAD)
    const bad = concat(point, first.subarray(32))
    assert.is(codeOf(() => responder.read(bad)), 'noise/point', hex(point))
    responder.read(first)
    const second = responder.write(PAYLOAD)
    const answer = concat(point, second.subarray(32))
    assert.is(codeOf(() => initiator.read(answer)), 'noise/point')
    assert.equal(initiator.read(second), PAYLOAD)

    const known = initiatorOf('IKhfs', { remoteStatic: point })
    assert.is(codeOf(() => known.write(PAYLOAD)), 'noise/point', 'the static key known beforehand')

    // A static key that comes sealed: the attacker of XX names it himself.
    const mallory = responderOf('XX', { local: { private32: filled(3), public32: point } })
    const alice = initiatorOf('XX')
    mallory.read(alice.write(EMPTY))
    const named = mallory.write(EMPTY)
    assert.is(codeOf(() => alice.read(named)), 'noise/point')
    assert.is(alice.remoteStatic, undefined)
  }
})

test('an ephemeral key of small order is refused when one answers it, too', () => {
  const responder = responderOf('XX')
  responder.read(concat(SMALL_ORDER[0]!, PAYLOAD))
  for (let i = 0; i < 2; i++) assert.is(codeOf(() => responder.write(PAYLOAD)), 'noise/point')
  assert.not(responder.isDone)
})

test('ML-KEM keys that are not reduced are refused when one answers them', () => {
  const initiator = initiatorOf('XXhfs')
  const message = initiator.write(EMPTY)
  for (const at of [0, 600, 1149]) {
    const bad = Uint8Array.from(message)
    // Two coefficients of 4,095, above q - 1 = 3,328.
    bad.fill(0xff, 32 + at, 32 + at + 3)
    const responder = responderOf('XXhfs')
    responder.read(bad)
    assert.is(codeOf(() => responder.write(EMPTY)), 'noise/kem', `${at}`)
    assert.is(codeOf(() => responder.write(EMPTY)), 'noise/kem', 'as before')
  }
  const responder = responderOf('XXhfs')
  responder.read(message)
  initiator.read(responder.write(EMPTY))
})

test('a ciphertext for another ML-KEM key gives another secret, and the message does not open', () => {
  const [right, wrong] = [4, 5].map((byte) => fast.mlkemKey(filled(byte, 64)))
  const made = fast.mlkemEncapsulate(right!.public1184, filled(6))
  assert.equal(right!.decapsulate(made.ciphertext1088), made.shared32)
  const rejected = wrong!.decapsulate(made.ciphertext1088)
  assert.is.not(hex(rejected), hex(made.shared32))
  assert.equal(wrong!.decapsulate(made.ciphertext1088), rejected, 'and always the same')

  // The responder answers an `e1` that somebody exchanged on the way: XX sends it in clear.
  const initiator = initiatorOf('XXhfs')
  const first = initiator.write(EMPTY)
  const exchanged = concat(first.subarray(0, 32), wrong!.public1184)
  const responder = responderOf('XXhfs')
  responder.read(exchanged)
  const answer = responder.write(PAYLOAD)
  assert.is(codeOf(() => initiator.read(answer)), 'noise/forged')
  const honest = responderOf('XXhfs')
  honest.read(first)
  assert.equal(initiator.read(honest.write(PAYLOAD)), PAYLOAD)
})

test('a ciphertext that opens under the handshake but was changed before sealing does not pass', () => {
  // The responder itself lies in `ekem1`: implicit rejection, then the payload does not open.
  const lying = {
    ...fast,
    mlkemEncapsulate: (public1184: Uint8Array, random32: Uint8Array) => {
      const made = fast.mlkemEncapsulate(public1184, random32)
      return { ...made, ciphertext1088: flipped(made.ciphertext1088, 500) }
    },
  }
  const initiator = initiatorOf('IKhfs')
  const responder = responderOf('IKhfs', { crypto: lying })
  responder.read(initiator.write(PAYLOAD))
  const answer = responder.write(PAYLOAD)
  assert.is(codeOf(() => initiator.read(answer)), 'noise/forged')
})

test('another prologue, suite, pattern, static key or pre-shared key never agrees', () => {
  const psk = (byte: number): Changes => ({ psks: [filled(byte)] })
  const IKpsk2 = patternNamed('IKpsk2')
  const cases: [Handshake, Handshake][] = [
    [initiatorOf('IK'), responderOf('IK', { prologue: filled(0, 1) })],
    [initiatorOf('IK', { suite: 'chachapoly' }), responderOf('IK')],
    [initiatorOf('IK', { remoteStatic: key(3).public32 }), responderOf('IK')],
    [initiatorOf('IK'), responderOf('IK', { local: key(3) })],
    [initiatorOf('IK'), responderOf({ ...PATTERNS.IK, name: 'KI' })],
  ]
  for (const [initiator, responder] of cases) {
    const first = initiator.write(PAYLOAD)
    assert.is(codeOf(() => responder.read(first)), 'noise/forged')
  }
  const initiator = initiatorOf(IKpsk2, psk(8))
  const responder = responderOf(IKpsk2, psk(9))
  responder.read(initiator.write(PAYLOAD))
  const second = responder.write(PAYLOAD)
  assert.is(codeOf(() => initiator.read(second)), 'noise/forged')
})

test('without the static key that it names, an initiator gets nowhere', () => {
  const mallory = initiatorOf('IK', { local: { private32: filled(3), public32: ALICE.public32 } })
  const message = mallory.write(PAYLOAD)
  const responder = responderOf('IK')
  assert.is(codeOf(() => responder.read(message)), 'noise/forged')
  assert.is(responder.remoteStatic, undefined)
})

test('a message sent back to its sender is refused', () => {
  const initiator = initiatorOf('IKhfs')
  const message = initiator.write(PAYLOAD)
  assert.is(codeOf(() => initiator.read(message)), 'noise/forged')
  const alone = initiatorOf('XX')
  const first = alone.write(EMPTY)
  assert.is(codeOf(() => alone.read(concat(first, filled(0, 64)))), 'noise/forged')
})

test('a message replayed opens for no session: the answer is fresh each time', () => {
  const first = initiatorOf('IKhfs').write(PAYLOAD)
  const answers = [1, 2].map(() => {
    const responder = responderOf('IKhfs')
    assert.equal(responder.read(first), PAYLOAD)
    return hex(responder.write(EMPTY))
  })
  assert.is.not(answers[0], answers[1])
})

test('whoever speaks out of turn, too often or too early is told so', () => {
  const initiator = initiatorOf('IK')
  const responder = responderOf('IK')
  assert.is(codeOf(() => responder.write(EMPTY)), 'noise/order')
  assert.is(codeOf(() => initiator.read(filled(0, 96))), 'noise/order')
  assert.is(codeOf(() => initiator.split()), 'noise/order')
  const first = initiator.write(PAYLOAD)
  assert.is(codeOf(() => initiator.write(PAYLOAD)), 'noise/order')
  responder.read(first)
  assert.is(codeOf(() => responder.read(first)), 'noise/order')
  const second = responder.write(PAYLOAD)
  initiator.read(second)
  assert.ok(initiator.isDone && responder.isDone)
  for (const side of [initiator, responder]) {
    assert.is(codeOf(() => side.write(EMPTY)), 'noise/order')
    assert.is(codeOf(() => side.read(second)), 'noise/order')
    side.split()
    assert.is(codeOf(() => side.split()), 'noise/order')
  }
})

test('keys that are missing, of another length or not asked for are refused at once', () => {
  for (
    const run of [
      () => initiatorOf('IK', { local: undefined }),
      () => initiatorOf('IK', { local: { ...ALICE, private32: filled(1, 31) } }),
      () => initiatorOf('IK', { local: { ...ALICE, public32: filled(1, 33) } }),
      () => initiatorOf('IK', { remoteStatic: undefined }),
      () => initiatorOf('IK', { remoteStatic: filled(1, 31) }),
      () => responderOf('IK', { remoteStatic: ALICE.public32 }),
      () => responderOf('IK', { psks: [filled(1)] }),
      () => responderOf(patternNamed('IKpsk2')),
      () => responderOf(patternNamed('IKpsk2'), { psks: [filled(1, 31)] }),
    ]
  ) assert.is(codeOf(run), 'noise/keys', String(run))
})

test('a failed write leaves no ephemeral key behind, and nothing of it is used again', () => {
  const crypto = seededCrypto('writes')
  const initiator = initiatorOf('IKhfs', { crypto })
  assert.is(codeOf(() => initiator.write(filled(0, 65_535))), 'noise/size')
  const message = initiator.write(PAYLOAD)
  const same = initiatorOf('IKhfs', { crypto: seededCrypto('writes') }).write(PAYLOAD)
  assert.is.not(hex(message.subarray(0, 32)), hex(same.subarray(0, 32)))
  assert.equal(responderOf('IKhfs').read(message), PAYLOAD)
})

test('what the caller does to its arrays afterwards changes nothing', () => {
  const remoteStatic = Uint8Array.from(BOB.public32)
  const initiator = initiatorOf('IKhfs', { remoteStatic })
  remoteStatic.fill(0)
  const responder = responderOf('IKhfs')
  const first = Uint8Array.from(initiator.write(PAYLOAD))
  responder.read(first)
  first.fill(0)
  const second = Uint8Array.from(responder.write(PAYLOAD))
  initiator.read(second)
  second.fill(0)
  const [a, b] = [initiator.split(), responder.split()]
  assert.equal(b.receive.open(EMPTY, a.send.seal(EMPTY, PAYLOAD)), PAYLOAD)
})

test('split() erases the key that the exporter secret came from', () => {
  const made: Uint8Array[] = []
  const crypto = {
    ...fast,
    hmacSha256(key: Uint8Array, ...parts: Uint8Array[]) {
      made.push(key)
      return fast.hmacSha256(key, ...parts)
    },
  }
  const initiator = initiatorOf('IK', { crypto })
  const responder = responderOf('IK')
  responder.read(initiator.write(EMPTY))
  initiator.read(responder.write(EMPTY))
  const { send } = initiator.split()
  assert.is(made.length, 1)
  assert.equal(made[0], filled(0))
  // The cipher keys are copies: erasing what they came from leaves them whole.
  assert.is.not(
    hex(send.seal(EMPTY, EMPTY)),
    hex(slowSeal('aesgcm', filled(0), 0n, EMPTY, EMPTY)),
  )
})

test.run()
