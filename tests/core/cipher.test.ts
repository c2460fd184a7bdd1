/** Records: nonces, limits, rekeying, and that nothing opens but what was sealed in that place. */
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { EMPTY, hex } from '../../core/bytes.ts'
import { CipherState, COUNTER_LIMIT } from '../../core/cipher.ts'
import { codeOf, CRYPTOS, fast, filled } from '../support/crypto.ts'
import { slowSeal } from '../support/slow_noise.ts'

const test = suite('core/cipher')

const KEY = filled(0x31)
const SUITES = ['aesgcm', 'chachapoly'] as const

for (const [name, crypto] of CRYPTOS) {
  for (const suiteName of SUITES) {
    const cipher = (counter = 0): CipherState =>
      new CipherState({ crypto, suite: suiteName, key32: KEY, counter })

    test(`${name}: ${suiteName} uses the nonce of Noise at every counter`, () => {
      for (const counter of [0, 1, 255, 2 ** 31, 2 ** 32 - 1, 2 ** 32, COUNTER_LIMIT - 1]) {
        const state = cipher(counter)
        const expected = slowSeal(suiteName, KEY, BigInt(counter), filled(1, 4), filled(2, 50))
        const sealed = state.seal(filled(1, 4), filled(2, 50))
        assert.is(hex(sealed), hex(expected), `${counter}`)
        assert.is(sealed.constructor, Uint8Array)
        assert.is(state.counter, counter + 1)
        assert.equal(cipher().openAt(counter, filled(1, 4), sealed), filled(2, 50))
      }
    })

    test(`${name}: ${suiteName} opens nothing that was changed, and does not count it`, () => {
      const sealed = cipher().seal(filled(1, 4), filled(2, 20))
      const reader = cipher()
      for (let at = 0; at < sealed.length; at++) {
        const changed = Uint8Array.from(sealed)
        changed[at]! ^= 1
        assert.is(codeOf(() => reader.open(filled(1, 4), changed)), 'noise/forged')
        const cut = sealed.subarray(0, at)
        assert.is(codeOf(() => reader.open(filled(1, 4), cut)), 'noise/forged')
      }
      assert.is(codeOf(() => reader.open(EMPTY, sealed)), 'noise/forged')
      assert.is(codeOf(() => reader.openAt(1, filled(1, 4), sealed)), 'noise/forged')
      assert.is(reader.counter, 0)
      assert.equal(reader.open(filled(1, 4), sealed), filled(2, 20))
      assert.is(reader.counter, 1)
      assert.is(codeOf(() => reader.open(filled(1, 4), sealed)), 'noise/forged', 'a replay')
    })

    test(`${name}: ${suiteName} counters never wrap`, () => {
      const state = cipher(COUNTER_LIMIT - 1)
      const last = state.seal(EMPTY, EMPTY)
      for (let i = 0; i < 2; i++) {
        assert.is(codeOf(() => state.seal(EMPTY, EMPTY)), 'noise/exhausted')
        assert.is(codeOf(() => state.open(EMPTY, last)), 'noise/exhausted')
      }
      assert.is(state.counter, COUNTER_LIMIT)
      for (const counter of [-1, 0.5, NaN, 2 ** 53, 2 ** 64, Infinity]) {
        assert.is(codeOf(() => state.sealAt(counter, EMPTY, EMPTY)), 'noise/exhausted')
        assert.is(codeOf(() => state.openAt(counter, EMPTY, last)), 'noise/exhausted')
      }
    })

    test(`${name}: ${suiteName} rekeys to ENCRYPT(k, 2^64 - 1, "", zeros), and counts on`, () => {
      const next = slowSeal(suiteName, KEY, 2n ** 64n - 1n, EMPTY, filled(0)).slice(0, 32)
      const state = cipher(5)
      const fork = state.rekeyed()
      const before = state.sealAt(9, EMPTY, EMPTY)
      state.rekey()
      assert.is(state.counter, 5)
      assert.is(hex(state.seal(EMPTY, KEY)), hex(slowSeal(suiteName, next, 5n, EMPTY, KEY)))
      assert.is(codeOf(() => state.openAt(9, EMPTY, before)), 'noise/forged')
      assert.is(fork.counter, 0)
      assert.is(hex(fork.seal(EMPTY, KEY)), hex(slowSeal(suiteName, next, 0n, EMPTY, KEY)))
    })

    test(`${name}: ${suiteName} seals into the room it is given, exactly`, () => {
      const plaintext = filled(4, 100)
      const room = filled(0xee, 140)
      const state = cipher()
      const sealed = state.seal(filled(1, 4), plaintext, room.subarray(10, 126))
      assert.is(sealed.buffer, room.buffer)
      assert.is(hex(room.subarray(10, 126)), hex(cipher().seal(filled(1, 4), plaintext)))
      assert.equal([...room.subarray(0, 10), ...room.subarray(126)], Array(24).fill(0xee))
      for (const length of [115, 117]) {
        const wrong = new Uint8Array(length)
        assert.is(codeOf(() => state.seal(EMPTY, plaintext, wrong)), 'crypto/length')
      }
      assert.is(state.counter, 1)
    })

    test(`${name}: ${suiteName} records hold up to 65,535 bytes with their tag`, () => {
      const state = cipher()
      const most = filled(1, 65_519)
      assert.is(codeOf(() => state.seal(EMPTY, filled(1, 65_520))), 'noise/size')
      const sealed = state.seal(EMPTY, most)
      assert.is(sealed.length, 65_535)
      assert.equal(cipher().open(EMPTY, sealed), most)
      assert.is(codeOf(() => cipher().open(EMPTY, filled(0, 65_536))), 'noise/size')
    })
  }
}

test('a key of another length is refused, and the key is copied', () => {
  for (const length of [0, 16, 31, 33]) {
    const run = () => new CipherState({ crypto: fast, suite: 'aesgcm', key32: filled(1, length) })
    assert.is(codeOf(run), 'noise/keys')
  }
  const key32 = filled(1)
  const state = new CipherState({ crypto: fast, suite: 'aesgcm', key32 })
  const before = state.sealAt(0, EMPTY, EMPTY)
  key32.fill(0)
  assert.equal(state.sealAt(0, EMPTY, EMPTY), before)
  state.erase()
  assert.equal(state.sealAt(0, EMPTY, EMPTY), slowSeal('aesgcm', filled(0), 0n, EMPTY, EMPTY))
})

test('both implementations seal alike and open what the other sealed', () => {
  const [slow, quick] = CRYPTOS.map(([, crypto]) => crypto)
  const bytes = fc.uint8Array({ maxLength: 400 })
  const counter = fc.integer({ min: 0, max: COUNTER_LIMIT - 1 })
  fc.assert(
    fc.property(fc.constantFrom(...SUITES), counter, bytes, bytes, (suiteName, at, ad, text) => {
      const [a, b] = [slow!, quick!].map((crypto) =>
        new CipherState({ crypto, suite: suiteName, key32: KEY })
      )
      const sealed = a!.sealAt(at, ad, text)
      assert.equal(b!.sealAt(at, ad, text), sealed)
      assert.equal(b!.openAt(at, ad, sealed), text)
      assert.equal(a!.openAt(at, ad, sealed), text)
    }),
    { numRuns: 60 },
  )
})

test.run()
