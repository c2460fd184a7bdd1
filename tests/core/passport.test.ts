/**
 * Bytes are fixed by docs/protocol.md §8: the golden body is written by hand from that text, its
 * signature was made by `openssl pkeyutl -sign` with the seed of test 1 of RFC 8032 §7.1. Whatever
 * is signed and not canonical is made by the twin, a writer that checks nothing.
 */
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, fromHex, hex, utf8 } from '../../core/bytes.ts'
import type { Passport } from '../../core/passport.ts'
import { encodePassport, openPassport, PASSPORT_SKEW_MS } from '../../core/passport.ts'
import { codeOf, CRYPTOS, fast, filled } from '../support/crypto.ts'

const test = suite('core/passport')

const SEED = fromHex('9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60')
const PUBLIC = fast.ed25519Public(SEED)
const NOT_BEFORE = 1_700_000_000_000
const NOT_AFTER = 1_700_086_400_000
const NOW = { now: NOT_BEFORE + 1 }

const FULL: Passport = {
  identity: PUBLIC,
  sequence: 5,
  notBefore: NOT_BEFORE,
  notAfter: NOT_AFTER,
  staticKey: filled(0x11),
  wireguardKey: filled(0x22),
  certificates: [filled(0x33), filled(0x44)],
  names: ['db', 'web'],
  ciphers: ['Noise_IKhfs_25519+MLKEM768_AESGCM_SHA256', 'B'],
}
const LEAST: Passport = {
  identity: PUBLIC,
  sequence: 0,
  notBefore: 0,
  notAfter: 1,
  certificates: [],
  names: [],
  ciphers: [],
}
const HEAD = '0001' + 'd75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a'
const FULL_BODY = HEAD +
  '0000000000000005' + '0000018bcfe56800' + '0000018bd50bc400' + // sequence, times
  '03' + '11'.repeat(32) + '22'.repeat(32) + // flags, keys
  '02' + '33'.repeat(32) + '44'.repeat(32) + // certificates
  '02' + '026462' + '03776562' + // names
  '02' + '28' + hex(utf8('Noise_IKhfs_25519+MLKEM768_AESGCM_SHA256')) + '0142' // ciphers
const LEAST_BODY = HEAD + '00'.repeat(16) + '0000000000000001' + '00' + '000000'
const FULL_SIGNATURE =
  'a6e2562952152aceb7698586eecee147620acb9a9222d3b70c9a3baf79852fc10609f7fa265e7517de89fe18d6e37e6582e34ffa25846542f28b3810a696130c'
const LEAST_SIGNATURE =
  '5a1ff7cd393357f29e1798397f26674565ef0c7e15cc59e864062edd09c45e77b963272b1f647d8d05c02c3c30ce4a849f05dd8312c0e1f4434248a2dc755201'

const sign = (message: Uint8Array) => fast.ed25519Sign(SEED, message)

/** Signs any body, canonical or not. */
function signed(body: Uint8Array, seed = SEED): Uint8Array {
  return concat(body, fast.ed25519Sign(seed, concat(utf8('sotto passport v1\0'), body)))
}

/** The twin: writes fields as they are, in the order given, and checks nothing. */
function slowBody(fields: Passport, flags?: number): Uint8Array {
  const u64 = (value: number) => fromHex(BigInt(value).toString(16).padStart(16, '0'))
  const text = (value: string) => concat(Uint8Array.of(utf8(value).length), utf8(value))
  const none = new Uint8Array(0)
  return concat(
    Uint8Array.of(0, 1),
    fields.identity,
    u64(fields.sequence),
    u64(fields.notBefore),
    u64(fields.notAfter),
    Uint8Array.of(flags ?? (fields.staticKey ? 1 : 0) + (fields.wireguardKey ? 2 : 0)),
    fields.staticKey ?? none,
    fields.wireguardKey ?? none,
    Uint8Array.of(fields.certificates.length),
    ...fields.certificates,
    Uint8Array.of(fields.names.length),
    ...fields.names.map(text),
    Uint8Array.of(fields.ciphers.length),
    ...fields.ciphers.map(text),
  )
}

const label = fc.stringMatching(/^[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?$/)
const bytes32 = fc.uint8Array({ minLength: 32, maxLength: 32 })
const passports: fc.Arbitrary<Passport> = fc.record({
  identity: fc.constant(PUBLIC),
  sequence: fc.nat(2 ** 31).map((n) => n * 4_000_000 + 3),
  notBefore: fc.constant(NOT_BEFORE),
  notAfter: fc.integer({ min: NOT_BEFORE + 1, max: 2 ** 53 - 1 }),
  staticKey: fc.option(bytes32, { nil: undefined }),
  wireguardKey: fc.option(bytes32, { nil: undefined }),
  certificates: fc.uniqueArray(bytes32, { maxLength: 16, selector: hex }),
  names: fc.uniqueArray(label, { maxLength: 64 }),
  ciphers: fc.uniqueArray(fc.stringMatching(/^[A-Za-z0-9_+/.-]{1,30}$/), { maxLength: 16 }),
})

for (const [name, crypto] of CRYPTOS) {
  test(`${name}: encodePassport() writes the golden bytes, and openPassport() reads them`, () => {
    const seal = (message: Uint8Array) => crypto.ed25519Sign(SEED, message)
    assert.is(hex(encodePassport(FULL, seal)), FULL_BODY + FULL_SIGNATURE)
    assert.is(hex(encodePassport(LEAST, seal)), LEAST_BODY + LEAST_SIGNATURE)
    assert.equal(openPassport(crypto, fromHex(FULL_BODY + FULL_SIGNATURE), NOW), FULL)
    assert.equal(openPassport(crypto, fromHex(LEAST_BODY + LEAST_SIGNATURE), { now: 0 }), LEAST)
  })
}

test('one set of facts has one encoding, in whatever order it was given', () => {
  fc.assert(fc.property(passports, (fields) => {
    const bytes = encodePassport(fields, sign)
    const opened = openPassport(fast, bytes, NOW)
    assert.equal(encodePassport(opened, sign), bytes, 're-encoding gives the same bytes')
    const shuffled = {
      ...fields,
      names: fields.names.toReversed(),
      certificates: fields.certificates.toReversed(),
    }
    assert.equal(encodePassport(shuffled, sign), bytes)
    assert.equal(signed(slowBody(opened)), bytes, 'as the twin writes it')
    assert.equal(opened.ciphers, fields.ciphers, 'preference is kept')
  }))
})

test('openPassport() refuses every proper prefix, and a byte too many', () => {
  const bytes = encodePassport(FULL, sign)
  for (let length = 0; length < bytes.length; length++) {
    const code = codeOf(() => openPassport(fast, bytes.subarray(0, length), NOW))
    assert.is(code, length < 126 ? 'passport/size' : 'passport/forged', `${length}`)
  }
  assert.is(
    codeOf(() => openPassport(fast, concat(bytes, filled(0, 1)), NOW)),
    'passport/forged',
  )
})

test('openPassport() refuses a change of any byte', () => {
  const bytes = encodePassport(FULL, sign)
  for (let i = 0; i < bytes.length; i++) {
    const changed = Uint8Array.from(bytes)
    changed[i]! ^= 1
    const code = codeOf(() => openPassport(fast, changed, NOW))
    assert.is(code, i < 2 ? 'passport/version' : 'passport/forged', `byte ${i}`)
  }
})

test('openPassport() reads no field before the signature holds', () => {
  // Each of these is wrong inside as well; what is reported is the signature.
  for (const body of [slowBody(FULL, 0xff), slowBody({ ...FULL, names: ['b', 'a', 'a'] })]) {
    const bytes = concat(body, filled(1, 64))
    assert.is(codeOf(() => openPassport(fast, bytes, { now: 0 })), 'passport/forged')
  }
  let verified = 0
  const watching = {
    ...fast,
    ed25519Verify: () => {
      verified++
      return false
    },
  }
  codeOf(() => openPassport(watching, encodePassport(FULL, sign), NOW))
  assert.is(verified, 1)
})

test('openPassport() refuses another signer, under its own name and under a stolen one', () => {
  const mallory = filled(9)
  const theirs = { ...FULL, identity: fast.ed25519Public(mallory) }
  const honest = signed(slowBody(theirs), mallory)
  assert.equal(openPassport(fast, honest, NOW).identity, theirs.identity)
  const asked = { ...NOW, identity: PUBLIC }
  assert.is(codeOf(() => openPassport(fast, honest, asked)), 'passport/signer')
  const stolen = signed(slowBody(FULL), mallory)
  assert.is(codeOf(() => openPassport(fast, stolen, asked)), 'passport/forged')
  assert.ok(openPassport(fast, encodePassport(FULL, sign), asked))
})

test('openPassport() refuses a signature that was made for something else', () => {
  const body = slowBody(FULL)
  for (const label of ['', 'sotto passport v2\0', 'sotto agent admit v1\0', 'sotto passport v1']) {
    const bytes = concat(body, sign(concat(utf8(label), body)))
    assert.is(codeOf(() => openPassport(fast, bytes, NOW)), 'passport/forged', label)
  }
})

test('openPassport() refuses an identity of small order, for which anyone can sign', () => {
  const identity = filled(0)
  identity[0] = 1
  const bytes = concat(slowBody({ ...FULL, identity }), identity, filled(0))
  assert.is(codeOf(() => openPassport(fast, bytes, NOW)), 'passport/forged')
})

test('openPassport() refuses other versions, signed or not', () => {
  for (const version of [0, 2, 0x0100, 0xffff]) {
    const body = slowBody(FULL)
    body[0] = version >> 8
    body[1] = version & 255
    assert.is(codeOf(() => openPassport(fast, signed(body), NOW)), 'passport/version')
  }
})

test('openPassport() refuses what is signed and not canonical', () => {
  const cases: [string, Uint8Array][] = [
    ['passport/trailing', concat(slowBody(FULL), filled(0, 1))],
    ['passport/truncated', slowBody(FULL).slice(0, -1)],
    ['passport/flags', slowBody(FULL, 7)],
    ['passport/flags', slowBody(FULL, 0x80)],
    ['passport/order', slowBody({ ...FULL, names: ['web', 'db'] })],
    ['passport/duplicate', slowBody({ ...FULL, names: ['db', 'db'] })],
    ['passport/order', slowBody({ ...FULL, certificates: [filled(2), filled(1)] })],
    ['passport/duplicate', slowBody({ ...FULL, certificates: [filled(1), filled(1)] })],
    ['passport/duplicate', slowBody({ ...FULL, ciphers: ['A', 'B', 'A'] })],
    ['passport/name', slowBody({ ...FULL, names: ['Web'] })],
    ['passport/name', slowBody({ ...FULL, names: [''] })],
    ['passport/name', slowBody({ ...FULL, names: ['a.b'] })],
    ['passport/cipher', slowBody({ ...FULL, ciphers: [''] })],
    ['passport/cipher', slowBody({ ...FULL, ciphers: ['a b'] })],
    ['passport/cipher', slowBody({ ...FULL, ciphers: ['a'.repeat(65)] })],
    ['passport/validity', slowBody({ ...FULL, notAfter: NOT_BEFORE })],
    ['passport/range', slowBody({ ...FULL, sequence: 2 ** 53 })],
    ['passport/size', slowBody({ ...FULL, certificates: manyCertificates(17) })],
    ['passport/size', slowBody({ ...FULL, names: manyNames(65) })],
    ['passport/size', slowBody({ ...FULL, ciphers: manyNames(17) })],
  ]
  for (const [code, body] of cases) {
    assert.is(codeOf(() => openPassport(fast, signed(body), NOW)), code)
  }
  const text = slowBody({ ...FULL, names: ['db'] })
  const at = hex(text).indexOf('026462') / 2
  text[at + 1] = 0xff
  assert.is(codeOf(() => openPassport(fast, signed(text), NOW)), 'bytes/utf8')
})

test('encodePassport() refuses what openPassport() would', () => {
  const cases: [string, Partial<Passport>][] = [
    ['passport/length', { identity: filled(1, 31) }],
    ['passport/length', { staticKey: filled(1, 31) }],
    ['passport/length', { wireguardKey: filled(1, 33) }],
    ['passport/length', { certificates: [filled(1, 20)] }],
    ['passport/range', { sequence: -1 }],
    ['passport/range', { sequence: 1.5 }],
    ['passport/range', { notAfter: Infinity }],
    ['passport/validity', { notAfter: NOT_BEFORE }],
    ['passport/duplicate', { names: ['a', 'b', 'a'] }],
    ['passport/duplicate', { certificates: [filled(1), filled(2), filled(1)] }],
    ['passport/duplicate', { ciphers: ['A', 'A'] }],
    ['passport/name', { names: ['A'] }],
    ['passport/cipher', { ciphers: ['ä'] }],
    ['passport/size', { certificates: manyCertificates(17) }],
    ['passport/size', { names: manyNames(65) }],
    ['passport/size', { ciphers: manyNames(17) }],
  ]
  for (const [code, change] of cases) {
    assert.is(codeOf(() => encodePassport({ ...FULL, ...change }, sign)), code)
  }
  const short = () => encodePassport(FULL, () => filled(1, 63))
  assert.is(codeOf(short), 'passport/length')
})

test('a passport has at most 4,096 bytes', () => {
  const long = (count: number) => manyNames(count).map((name) => name.padStart(63, 'x'))
  const fields = { ...LEAST, names: long(61) }
  assert.ok(openPassport(fast, encodePassport(fields, sign), { now: 0 }))
  const longer = { ...fields, names: long(63) }
  assert.is(codeOf(() => encodePassport(longer, sign)), 'passport/size')
  assert.is(codeOf(() => openPassport(fast, signed(slowBody(longer)), { now: 0 })), 'passport/size')
})

test('openPassport() refuses the newest known sequence number and all below', () => {
  const bytes = encodePassport(FULL, sign)
  const open = (afterSequence: number) => openPassport(fast, bytes, { ...NOW, afterSequence })
  assert.is(open(4).sequence, 5)
  for (const known of [5, 6, 2 ** 53 - 1]) assert.is(codeOf(() => open(known)), 'passport/stale')
  const zero = { now: 0, afterSequence: 0 }
  assert.is(codeOf(() => openPassport(fast, encodePassport(LEAST, sign), zero)), 'passport/stale')
})

test('openPassport() holds to the validity, with ten minutes for the clocks', () => {
  const bytes = encodePassport(FULL, sign)
  const at = (now: number) => codeOf(() => openPassport(fast, bytes, { now }))
  assert.is(at(NOT_BEFORE - PASSPORT_SKEW_MS), undefined)
  assert.is(at(NOT_BEFORE - PASSPORT_SKEW_MS - 1), 'passport/early')
  assert.is(at(NOT_AFTER + PASSPORT_SKEW_MS), undefined)
  assert.is(at(NOT_AFTER + PASSPORT_SKEW_MS + 1), 'passport/expired')
  const endless = encodePassport({ ...LEAST, notBefore: 2 ** 53 - 2, notAfter: 2 ** 53 - 1 }, sign)
  assert.is(codeOf(() => openPassport(fast, endless, NOW)), 'passport/early')
})

test('what openPassport() returns does not change with the bytes it came from', () => {
  const bytes = Buffer.from(encodePassport(FULL, sign))
  const opened = openPassport(fast, bytes, NOW)
  bytes.fill(0)
  assert.equal(opened, FULL)
})

test('openPassport() never leaves the family of errors, on any signed body', () => {
  const noise = fc.uint8Array({ minLength: 28, maxLength: 400 })
  fc.assert(fc.property(noise, (rest) => {
    codeOf(() => openPassport(fast, signed(concat(fromHex(HEAD), rest)), NOW))
  }))
})

function manyNames(count: number): string[] {
  return Array.from({ length: count }, (_, i) => `n${String(i).padStart(3, '0')}`)
}

function manyCertificates(count: number): Uint8Array[] {
  return Array.from({ length: count }, (_, i) => filled(i))
}

test.run()
