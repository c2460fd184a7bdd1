/**
 * ML-KEM-768 against published vectors (tests/vectors/mlkem768.json), against the runtime's own
 * where it has one (Bun and Deno), and against keys and ciphertexts that an attacker would choose.
 */
import { shake128 } from '@noble/hashes/sha3.js'
import { readFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { hex } from '../../core/bytes.ts'
import { nobleCrypto } from '../../core/crypto.ts'
import { codeOf, CRYPTOS, filled } from '../support/crypto.ts'

const test = suite('core/mlkem')

const ACCUMULATED = JSON.parse(
  readFileSync(new URL('../vectors/mlkem768.json', import.meta.url), 'utf8'),
) as { count: number; shake128: string }

for (const [name, crypto] of CRYPTOS) {
  test(`${name}: ML-KEM-768 refuses public keys with a coefficient of q or more`, () => {
    const key = crypto.mlkemKey(filled(5, 64))
    for (const coefficient of [0, 1, 255, 256, 766, 767]) {
      for (const value of [3329, 3330, 4095]) {
        const bad = Uint8Array.from(key.public1184)
        const at = 3 * (coefficient >> 1)
        if (coefficient % 2 === 0) {
          bad[at] = value & 0xff
          bad[at + 1] = (bad[at + 1]! & 0xf0) | (value >> 8)
        } else {
          bad[at + 1] = (bad[at + 1]! & 0x0f) | ((value & 0x0f) << 4)
          bad[at + 2] = value >> 4
        }
        assert.is(codeOf(() => crypto.mlkemEncapsulate(bad, filled(1))), 'crypto/kem')
      }
    }
    crypto.mlkemEncapsulate(key.public1184, filled(1))
  })

  test(`${name}: a ciphertext that was changed gives another secret, and never an error`, () => {
    const key = crypto.mlkemKey(filled(5, 64))
    const { ciphertext1088, shared32 } = crypto.mlkemEncapsulate(key.public1184, filled(6))
    const seen = new Set([hex(shared32)])
    for (const at of [0, 1, 500, 959, 960, 1087]) {
      const changed = Uint8Array.from(ciphertext1088)
      changed[at]! ^= 1
      const secret = hex(key.decapsulate(changed))
      assert.not(seen.has(secret), `${at}`)
      assert.is(hex(key.decapsulate(changed)), secret)
      seen.add(secret)
    }
    assert.equal(key.decapsulate(ciphertext1088), shared32)
  })
}

test('ML-KEM-768 gives the accumulated vectors of C2SP, implicit rejection with them', () => {
  const source = shake128.create()
  const sink = shake128.create()
  for (let i = 0; i < ACCUMULATED.count; i++) {
    const key = nobleCrypto.mlkemKey(source.xof(64))
    const made = nobleCrypto.mlkemEncapsulate(key.public1184, source.xof(32))
    assert.equal(key.decapsulate(made.ciphertext1088), made.shared32)
    const rejected = key.decapsulate(source.xof(1088))
    sink.update(key.public1184).update(made.ciphertext1088).update(made.shared32).update(rejected)
    key.erase()
  }
  assert.is(hex(sink.xof(32)), ACCUMULATED.shake128)
})

test('ML-KEM-768 agrees with the runtime, where that has its own', async () => {
  const { subtle } = globalThis.crypto as unknown as { subtle: Record<string, unknown> }
  if (typeof subtle['encapsulateBits'] !== 'function') return
  const native = subtle as unknown as {
    importKey(...input: unknown[]): Promise<unknown>
    encapsulateBits(
      ...input: unknown[]
    ): Promise<{ sharedKey: ArrayBuffer; ciphertext: ArrayBuffer }>
    decapsulateBits(...input: unknown[]): Promise<ArrayBuffer>
  }
  const seed = filled(9, 64)
  const key = nobleCrypto.mlkemKey(seed)
  const name = 'ML-KEM-768'
  const theirs = await native.importKey('raw-seed', seed, name, false, ['decapsulateBits'])
  const other = await native.importKey('raw-public', key.public1184, name, true, [
    'encapsulateBits',
  ])
  for (let i = 0; i < 5; i++) {
    const { sharedKey, ciphertext } = await native.encapsulateBits(name, other)
    assert.is(hex(key.decapsulate(new Uint8Array(ciphertext))), hex(new Uint8Array(sharedKey)))
    const made = nobleCrypto.mlkemEncapsulate(key.public1184, nobleCrypto.randomBytes(32))
    const opened = await native.decapsulateBits(name, theirs, made.ciphertext1088)
    assert.is(hex(new Uint8Array(opened)), hex(made.shared32))
    made.ciphertext1088[i * 200]! ^= 1
    const rejected = await native.decapsulateBits(name, theirs, made.ciphertext1088)
    assert.is(hex(new Uint8Array(rejected)), hex(key.decapsulate(made.ciphertext1088)))
  }
})

test.run()
