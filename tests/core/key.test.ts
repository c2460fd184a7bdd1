/**
 * Text forms are fixed by docs/protocol.md §1. The golden key is test 1 of RFC 8032 §7.1, its
 * base32 and base64 made by coreutils. Keys have one spelling; the twin is a big number.
 */
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { fromHex, hex } from '../../core/bytes.ts'
import {
  fingerprint,
  formatCertificateFingerprint,
  formatKey,
  generateIdentity,
  isName,
  parseCertificateFingerprint,
  parseFingerprint,
  parseKey,
} from '../../core/key.ts'
import { codeOf, fast, filled, seededCrypto } from '../support/crypto.ts'

const test = suite('core/key')

const PUBLIC = fromHex('d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a')
const KEY = '25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkena'
const FINGERPRINT = 'SHA256:If4x36FUomFia/hUBG/SJxt77UtqvkWqWId+9H+XIbk'
const CERTIFICATE = 'D7:5A:98:01:82:B1:0A:B7:D5:4B:FE:D3:C9:64:07:3A:' +
  '0E:E1:72:F3:DA:A6:23:25:AF:02:1A:68:F7:07:51:1A'

const bytes32 = fc.uint8Array({ minLength: 32, maxLength: 32 })

test('formatKey() writes the golden text, and parseKey() reads it back', () => {
  assert.is(formatKey(PUBLIC), KEY)
  assert.equal(parseKey(KEY), PUBLIC)
  assert.is(formatKey(filled(0)), 'a'.repeat(52))
  assert.is(formatKey(filled(0xff)), '7'.repeat(51) + 'q')
})

test('formatKey() agrees with its twin, and parseKey() reads what it writes', () => {
  fc.assert(fc.property(bytes32, (bytes) => {
    const key = formatKey(bytes)
    assert.is(key, slowBase32(bytes))
    assert.equal(parseKey(key), bytes)
  }))
})

test('parseKey() refuses every other spelling of a key', () => {
  for (
    const text of [
      '',
      KEY.toUpperCase(),
      KEY.replace('n', 'N'),
      KEY.slice(1),
      KEY + 'a',
      KEY + '====',
      ' ' + KEY.slice(1),
      KEY + '\n',
      KEY.slice(0, -1) + '=',
      'ß' + KEY.slice(1),
      '0' + KEY.slice(1),
      '1' + KEY.slice(1),
      '8' + KEY.slice(1),
      KEY.slice(0, 26) + '-' + KEY.slice(27),
    ]
  ) assert.is(codeOf(() => parseKey(text)), 'key/format', JSON.stringify(text))
})

test('parseKey() refuses bits after the end: 30 of 32 last characters', () => {
  const taken = [...'abcdefghijklmnopqrstuvwxyz234567'].filter((last) =>
    codeOf(() => parseKey('a'.repeat(51) + last)) === undefined
  )
  assert.equal(taken, ['a', 'q'])
})

test('parseKey() takes text only where formatKey() gives it back', () => {
  const alphabet = fc.constantFrom(...'abqr27AZ01=')
  fc.assert(fc.property(fc.string({ unit: alphabet, minLength: 50, maxLength: 54 }), (text) => {
    const code = codeOf(() => parseKey(text))
    if (code === undefined) assert.is(formatKey(parseKey(text)), text)
    else assert.is(code, 'key/format')
  }))
})

test('formatKey() and fingerprint() refuse all but 32 bytes', () => {
  for (const length of [0, 31, 33]) {
    assert.is(codeOf(() => formatKey(filled(1, length))), 'key/length')
    assert.is(codeOf(() => fingerprint(fast, filled(1, length))), 'key/length')
    assert.is(codeOf(() => formatCertificateFingerprint(filled(1, length))), 'key/length')
  }
})

test('fingerprint() writes the golden text, and parseFingerprint() gives the hash', () => {
  assert.is(fingerprint(fast, PUBLIC), FINGERPRINT)
  assert.equal(parseFingerprint(FINGERPRINT), fast.sha256(PUBLIC))
  for (
    const text of [
      '',
      FINGERPRINT.slice(7),
      FINGERPRINT.toLowerCase(),
      FINGERPRINT.slice(0, -1),
      FINGERPRINT + '=',
      FINGERPRINT.slice(0, -1) + '/',
      FINGERPRINT.replace('SHA256', 'MD5'),
    ]
  ) assert.is(codeOf(() => parseFingerprint(text)), 'key/format', text)
})

test('certificate fingerprints go both ways', () => {
  assert.is(formatCertificateFingerprint(PUBLIC), CERTIFICATE)
  assert.equal(parseCertificateFingerprint(CERTIFICATE), PUBLIC)
  assert.equal(parseCertificateFingerprint(CERTIFICATE.toLowerCase()), PUBLIC)
  for (
    const text of [
      '',
      hex(PUBLIC),
      CERTIFICATE + ':',
      CERTIFICATE.slice(3),
      CERTIFICATE + ':00',
      CERTIFICATE.replace('D7', 'G7'),
      CERTIFICATE.replaceAll(':', '-'),
    ]
  ) assert.is(codeOf(() => parseCertificateFingerprint(text)), 'key/format', text)
})

test('generateIdentity() makes a key pair that signs', () => {
  const identity = generateIdentity(seededCrypto('identity'))
  assert.is(identity.seed.length, 32)
  const signature = fast.ed25519Sign(identity.seed, PUBLIC)
  assert.ok(fast.ed25519Verify(identity.public, PUBLIC, signature))
  assert.is.not(hex(generateIdentity(fast).seed), hex(generateIdentity(fast).seed))
})

test('isName() takes one lower-case DNS label of 1 to 63', () => {
  for (const name of ['a', '0', 'web', 'my-app-2', 'a--b', 'xn--bcher-kva', 'a'.repeat(63)]) {
    assert.ok(isName(name), name)
  }
  for (
    const name of [
      '',
      '-',
      '-a',
      'a-',
      'A',
      'wEb',
      'a.b',
      'a_b',
      'a b',
      'ä',
      'a\n',
      '\u212a',
      '*',
      'a'.repeat(64),
    ]
  ) assert.not(isName(name), JSON.stringify(name))
})

/** Base32 by one big number. */
function slowBase32(bytes: Uint8Array): string {
  let number = BigInt('0x' + hex(bytes)) << 4n
  let out = ''
  for (let i = 0; i < 52; i++) {
    out = 'abcdefghijklmnopqrstuvwxyz234567'[Number(number & 31n)] + out
    number >>= 5n
  }
  return out
}

test.run()
