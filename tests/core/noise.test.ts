/**
 * Handshakes against every published vector over 25519 and SHA-256 (tests/vectors/noise_*.json),
 * and the hybrid ones, of which none are published, against a second implementation that shares no
 * code with the first.
 */
import fc from 'fast-check'
import { readFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, EMPTY, fromHex, hex, utf8 } from '../../core/bytes.ts'
import type { Crypto } from '../../core/crypto.ts'
import type { PatternName, Role, Split, StaticKey, Suite } from '../../core/noise.ts'
import { Handshake, PATTERNS, protocolName } from '../../core/noise.ts'
import { codeOf, CRYPTOS, fast, filled } from '../support/crypto.ts'
import { isOneWay, patternNamed } from '../support/noise_patterns.ts'
import type { SlowInput } from '../support/slow_noise.ts'
import { slowNoise, slowSeal } from '../support/slow_noise.ts'

const test = suite('core/noise')

interface Vector {
  protocol_name: string
  init_prologue: string
  init_static?: string
  init_ephemeral: string
  init_remote_static?: string
  init_psks?: string[]
  resp_prologue: string
  resp_static?: string
  resp_ephemeral?: string
  resp_remote_static?: string
  resp_psks?: string[]
  handshake_hash?: string
  messages: { payload: string; ciphertext: string }[]
}

function vectorsOf(name: string): Vector[] {
  const path = new URL(`../vectors/noise_${name}.json`, import.meta.url)
  return (JSON.parse(readFileSync(path, 'utf8')) as { vectors: Vector[] }).vectors
}

const SUITES: Record<string, Suite> = { AESGCM: 'aesgcm', ChaChaPoly: 'chachapoly' }

function sideOf(crypto: Crypto, role: Role, vector: Vector): Handshake {
  const [, name, , cipher] = vector.protocol_name.split('_') as [string, string, string, string]
  const side = role === 'initiator' ? 'init' : 'resp'
  const privateKey = vector[`${side}_static`]
  const remote = vector[`${side}_remote_static`]
  const ephemeral = vector[`${side}_ephemeral`]
  const pattern = patternNamed(name)
  assert.is(protocolName(pattern, SUITES[cipher]!), vector.protocol_name)
  return new Handshake({
    crypto,
    pattern,
    suite: SUITES[cipher]!,
    role,
    prologue: fromHex(vector[`${side}_prologue`]),
    local: privateKey === undefined ? undefined : keyOf(crypto, fromHex(privateKey)),
    remoteStatic: remote === undefined ? undefined : fromHex(remote),
    psks: vector[`${side}_psks`]?.map(fromHex),
    ephemeral: ephemeral === undefined ? undefined : { private32: fromHex(ephemeral) },
  })
}

function keyOf(crypto: Crypto, private32: Uint8Array): StaticKey {
  return { private32, public32: crypto.x25519Public(private32) }
}

function play(crypto: Crypto, vector: Vector): void {
  const name = vector.protocol_name.split('_')[1]!
  const sides = [sideOf(crypto, 'initiator', vector), sideOf(crypto, 'responder', vector)]
  const [initiator, responder] = sides as [Handshake, Handshake]
  let splits: Split[] = []
  for (const [i, { payload, ciphertext }] of vector.messages.entries()) {
    const from = isOneWay(name) ? 0 : i % 2
    if (splits.length === 0) {
      assert.is(hex(sides[from]!.write(fromHex(payload))), ciphertext, vector.protocol_name)
      assert.is(hex(sides[1 - from]!.read(fromHex(ciphertext))), payload)
      if (initiator.isDone) splits = sides.map((side) => side.split())
      continue
    }
    assert.is(hex(splits[from]!.send.seal(EMPTY, fromHex(payload))), ciphertext)
    assert.is(hex(splits[1 - from]!.receive.open(EMPTY, fromHex(ciphertext))), payload)
  }
  assert.ok(responder.isDone)
  assert.equal(splits[0]!.hash, splits[1]!.hash)
  assert.equal(splits[0]!.exporterSecret, splits[1]!.exporterSecret)
  if (vector.handshake_hash !== undefined) {
    assert.is(hex(splits[0]!.hash), vector.handshake_hash, vector.protocol_name)
  }
}

for (const [name, crypto] of CRYPTOS) {
  for (const source of ['cacophony', 'snow']) {
    test(`${name}: every vector of ${source}`, () => {
      const vectors = vectorsOf(source)
      for (const vector of vectors) play(crypto, vector)
      assert.ok(vectors.length > 100)
      for (const protocol of ['IK_25519_AESGCM', 'XX_25519_ChaChaPoly', 'IK_25519_ChaChaPoly']) {
        assert.ok(vectors.some((one) => one.protocol_name === `Noise_${protocol}_SHA256`), protocol)
      }
    })
  }
}

test('the named patterns are those of the specifications', () => {
  for (const name of Object.keys(PATTERNS) as PatternName[]) {
    assert.equal(PATTERNS[name], patternNamed(name))
  }
  // The table of the hfs extension, §5, row IK.
  assert.equal(patternNamed('IKhfs').messages, [
    ['e', 'es', 'e1', 's', 'ss'],
    ['e', 'ee', 'ekem1', 'se'],
  ])
  assert.is(protocolName('IKhfs', 'aesgcm'), 'Noise_IKhfs_25519+MLKEM768_AESGCM_SHA256')
  assert.is(protocolName('XX', 'chachapoly'), 'Noise_XX_25519_ChaChaPoly_SHA256')
})

function hybrid(seed: number, name: PatternName, suite: Suite): SlowInput {
  const bytes = (label: string, length: number): Uint8Array =>
    fast.hkdfSha256({ key: filled(seed), salt: EMPTY, info: label, bytes: length })
  return {
    pattern: PATTERNS[name],
    suite,
    prologue: bytes('prologue', 1 + seed),
    initiator: { static32: bytes('i s', 32), ephemeral32: bytes('i e', 32) },
    responder: { static32: bytes('r s', 32), ephemeral32: bytes('r e', 32) },
    kemSeed64: bytes('kem', 64),
    kemMessage32: bytes('m', 32),
    payloads: PATTERNS[name].messages.map((_, i) => bytes(`payload ${i}`, 1 + 7 * i + seed)),
  }
}

function bothSides(crypto: Crypto, input: SlowInput): [Handshake, Handshake] {
  const { pattern, suite, prologue, kemSeed64, kemMessage32 } = input
  const remoteStatic = pattern.known.includes('responder')
    ? crypto.x25519Public(input.responder.static32)
    : undefined
  const [initiator, responder] = (['initiator', 'responder'] as const).map((role) =>
    new Handshake({
      crypto,
      pattern,
      suite,
      role,
      prologue,
      local: keyOf(crypto, input[role].static32),
      remoteStatic: role === 'initiator' ? remoteStatic : undefined,
      ephemeral: { private32: input[role].ephemeral32, kemSeed64, kemMessage32 },
    })
  )
  return [initiator!, responder!]
}

for (const [name, crypto] of CRYPTOS) {
  for (const patternName of ['IKhfs', 'XXhfs', 'IK', 'XX'] as const) {
    test(`${name}: ${patternName} is byte for byte what the slow twin computes`, () => {
      for (const suiteName of ['aesgcm', 'chachapoly'] as const) {
        const input = hybrid(3, patternName, suiteName)
        const slow = slowNoise(input)
        const sides = bothSides(crypto, input)
        for (const [i, payload] of input.payloads.entries()) {
          assert.is(hex(sides[i % 2]!.write(payload)), hex(slow.messages[i]!))
          assert.is(hex(sides[1 - i % 2]!.read(slow.messages[i]!)), hex(payload))
        }
        const [a, b] = sides.map((side) => side.split()) as [Split, Split]
        const exporter = crypto.hmacSha256(
          slow.chainingKey,
          utf8('sotto session v1 exporter'),
          filled(0, 1),
          slow.hash,
        )
        for (const split of [a, b]) {
          assert.is(hex(split.hash), hex(slow.hash))
          assert.is(hex(split.exporterSecret), hex(exporter))
        }
        const text = utf8('record')
        for (const counter of [0n, 1n]) {
          const sealed = slowSeal(suiteName, slow.keys[0], counter, filled(9, 4), text)
          assert.is(hex(a.send.seal(filled(9, 4), text)), hex(sealed))
          assert.equal(b.receive.open(filled(9, 4), sealed), text)
          const answer = slowSeal(suiteName, slow.keys[1], counter, EMPTY, text)
          assert.is(hex(b.send.seal(EMPTY, text)), hex(answer))
          assert.equal(a.receive.open(EMPTY, answer), text)
        }
      }
    })
  }
}

test('each side learns the static key of the other, and only from a message that opened', () => {
  const input = hybrid(5, 'IKhfs', 'aesgcm')
  const [initiator, responder] = bothSides(fast, input)
  const keys = [input.initiator, input.responder].map((side) => fast.x25519Public(side.static32))
  const first = initiator.write(EMPTY)
  assert.is(responder.remoteStatic, undefined)
  const forged = Uint8Array.from(first)
  forged[forged.length - 1]! ^= 1
  assert.is(codeOf(() => responder.read(forged)), 'noise/forged')
  assert.is(responder.remoteStatic, undefined)
  responder.read(first)
  assert.equal(responder.remoteStatic, keys[0])
  assert.equal(initiator.remoteStatic, keys[1])
})

test('random handshakes agree, and no two have anything in common', () => {
  const seen = new Set<string>()
  const one = fc.record({
    pattern: fc.constantFrom<PatternName>('IK', 'IKhfs', 'XX', 'XXhfs'),
    suite: fc.constantFrom<Suite>('aesgcm', 'chachapoly'),
    prologue: fc.uint8Array({ maxLength: 100 }),
    payload: fc.uint8Array({ maxLength: 2000 }),
  })
  fc.assert(
    fc.property(one, ({ pattern, suite, prologue, payload }) => {
      const local = keyOf(fast, fast.randomBytes(32))
      const other = keyOf(fast, fast.randomBytes(32))
      const isKnown = PATTERNS[pattern].known.length > 0
      const shared = { crypto: fast, pattern, suite, prologue }
      const sides = [
        new Handshake({
          ...shared,
          role: 'initiator',
          local,
          remoteStatic: isKnown ? other.public32 : undefined,
        }),
        new Handshake({ ...shared, role: 'responder', local: other }),
      ]
      for (let i = 0; !sides[0]!.isDone; i++) {
        const message = sides[i % 2]!.write(payload)
        seen.add(hex(message.subarray(0, 32)))
        assert.equal(sides[1 - i % 2]!.read(message), payload)
      }
      const [a, b] = sides.map((side) => side.split()) as [Split, Split]
      assert.equal(a.hash, b.hash)
      assert.equal(a.exporterSecret, b.exporterSecret)
      seen.add(hex(a.exporterSecret))
      assert.equal(b.receive.open(payload, a.send.seal(payload, prologue)), prologue)
      assert.equal(a.receive.open(payload, b.send.seal(payload, prologue)), prologue)
      assert.is(codeOf(() => sides[0]!.split()), 'noise/order')
    }),
    { numRuns: 30 },
  )
  assert.ok(seen.size >= 30 * 3)
})

test('messages hold up to 65,535 bytes, and no more', () => {
  const [initiator, responder] = bothSides(fast, hybrid(1, 'IKhfs', 'aesgcm'))
  const overhead = 32 + 1184 + 16 + 32 + 16 + 16
  assert.is(codeOf(() => initiator.write(filled(0, 65_535 - overhead + 1))), 'noise/size')
  const first = initiator.write(filled(0, 65_535 - overhead))
  assert.is(first.length, 65_535)
  assert.is(codeOf(() => responder.read(concat(first, filled(0, 1)))), 'noise/size')
  assert.is(responder.read(first).length, 65_535 - overhead)
})

test.run()
