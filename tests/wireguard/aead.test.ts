// The AEAD of data messages as it runs in this engine: RFC 8439, Wycheproof, the crate's code in the same
// module at every length, and the code of noble at some.
// runtimes: bun node deno
// seconds: 20
import { chacha20poly1305 } from '@noble/ciphers/chacha.js'
import { readFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { fromHex } from '../../core/bytes.ts'
import { loadModule } from '../../agent/wireguard-wasm/load_file.ts'

const test = suite('wireguard/aead')
const POOL_BYTES = 1 << 16
const TAG_BYTES = 16
const AD_AT = 64
const OURS = 0
const CRATE = 2
const SEAL = 0
const OPEN = 1

type Exports = Record<string, (...numbers: number[]) => number>
interface Box {
  key: Uint8Array
  nonce: Uint8Array
  ad: Uint8Array
}

const exports = new WebAssembly.Instance(await loadModule(), {}).exports
const call = exports as unknown as Exports
const memory = exports['memory'] as WebAssembly.Memory
call['wg_init']!(POOL_BYTES, POOL_BYTES, POOL_BYTES)
const scratch = call['wg_area']!(8)
const pool = call['wg_area']!(1)

/** Lays key, nonce, additional data and a text with its tag, runs, and gives back what is there then. */
function run(
  what: number,
  { key, nonce, ad }: Box,
  text: Uint8Array,
): [boolean, Uint8Array<ArrayBuffer>] {
  const bytes = new Uint8Array(memory.buffer)
  bytes.set(key, scratch)
  bytes.set(nonce, scratch + 32)
  new DataView(memory.buffer).setUint32(scratch + 44, ad.length, true)
  bytes.set(ad, scratch + AD_AT)
  bytes.set(text, pool)
  const done = call['wg_aead']!(what, text.length - TAG_BYTES, 1) === 1
  return [done, bytes.slice(pool, pool + text.length)]
}

const withTag = (text: Uint8Array, tag: Uint8Array = new Uint8Array(TAG_BYTES)): Uint8Array => {
  const both = new Uint8Array(text.length + TAG_BYTES)
  both.set(text)
  both.set(tag, text.length)
  return both
}

/** Bytes that look random and are the same in every run. */
function bytesOf(seed: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length)
  for (let i = 0, x = seed * 2654435761 | 1; i < length; i++) {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    bytes[i] = x >>> 24
  }
  return bytes
}

test('RFC 8439 §2.8.2', () => {
  const box = {
    key: fromHex('808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f'),
    nonce: fromHex('070000004041424344454647'),
    ad: fromHex('50515253c0c1c2c3c4c5c6c7'),
  }
  const text = new TextEncoder().encode(
    "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the " +
      'future, sunscreen would be it.',
  )
  const [, sealed] = run(OURS + SEAL, box, withTag(text))
  assert.equal(sealed.subarray(0, 16), fromHex('d31a8d34648e60db7b86afbc53ef7ec2'))
  assert.equal(sealed.subarray(text.length), fromHex('1ae10b594f09e26a7e902ecbd0600691'))
  const [opened, plain] = run(OURS + OPEN, box, sealed)
  assert.ok(opened)
  assert.equal(plain.subarray(0, text.length), text)
})

test('Wycheproof', () => {
  const file = new URL('../vectors/chacha20_poly1305.json', import.meta.url)
  const { vectors } = JSON.parse(readFileSync(file, 'utf8')) as {
    vectors: [number, string, string, string, string, string, string, boolean][]
  }
  let valid = 0
  for (const [id, key, nonce, ad, text, ct, tag, isValid] of vectors) {
    const box = { key: fromHex(key), nonce: fromHex(nonce), ad: fromHex(ad) }
    const message = withTag(fromHex(ct), fromHex(tag))
    const [opened, after] = run(OURS + OPEN, box, message)
    assert.is(opened, isValid, String(id))
    assert.equal(after, isValid ? withTag(fromHex(text), fromHex(tag)) : message, String(id))
    if (!isValid) continue
    assert.equal(run(OURS + SEAL, box, withTag(fromHex(text)))[1], message, String(id))
    valid++
  }
  assert.is(vectors.length, 316)
  assert.is(valid, 256)
})

test('agrees with the crate at every length to 2,048, and with noble at some', () => {
  for (let length = 0; length <= 2048; length++) {
    const box = {
      key: bytesOf(length, 32),
      nonce: bytesOf(~length, 12),
      ad: bytesOf(3, length % 33),
    }
    const text = bytesOf(length + 7, length)
    const [, sealed] = run(OURS + SEAL, box, withTag(text))
    assert.equal(sealed, run(CRATE + SEAL, box, withTag(text))[1], String(length))
    if (length % 61 === 0) {
      const theirs = chacha20poly1305(box.key, box.nonce, box.ad).encrypt(text)
      assert.equal(sealed, theirs, String(length))
    }
    const [opened, plain] = run(OURS + OPEN, box, sealed)
    assert.ok(opened, String(length))
    assert.equal(plain.subarray(0, length), text)
  }
})

test('one wrong bit anywhere is refused, and the text stays as it was', () => {
  const box = { key: bytesOf(1, 32), nonce: bytesOf(2, 12), ad: bytesOf(3, 20) }
  for (const length of [0, 1, 63, 64, 65, 192, 448, 449, 960, 1420]) {
    const [, sealed] = run(OURS + SEAL, box, withTag(bytesOf(4, length)))
    for (let at = 0; at < sealed.length; at += 1 + (at * 7 + length) % 13) {
      const wrong = sealed.slice()
      wrong[at]! ^= 1 << at % 8
      const [opened, after] = run(OURS + OPEN, box, wrong)
      assert.not(opened, `${length} ${at}`)
      assert.equal(after, wrong)
    }
    for (const other of [{ ...box, ad: bytesOf(3, 19) }, { ...box, nonce: bytesOf(5, 12) }]) {
      assert.not(run(OURS + OPEN, other, sealed)[0])
    }
  }
})

test('what does not fit is not done', () => {
  const box = { key: bytesOf(1, 32), nonce: bytesOf(2, 12), ad: new Uint8Array(0) }
  run(OURS + SEAL, box, withTag(bytesOf(4, 64)))
  assert.is(call['wg_aead']!(0, POOL_BYTES, 1), 0)
  assert.is(call['wg_aead']!(0, 0xffff_ffff, 1), 0)
  assert.is(call['wg_aead']!(0, POOL_BYTES / 2 - TAG_BYTES, 9), 2)
  new DataView(memory.buffer).setUint32(scratch + 44, 0xffff_ffff, true)
  assert.is(call['wg_aead']!(0, 64, 1), 0)
})

test.run()
