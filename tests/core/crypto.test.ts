/**
 * Both implementations against published vectors (RFC 8032 §7.1, RFC 7748 §5.2 and §6.1, RFC 5869
 * appendix A, RFC 4231, FIPS 180-4, McGrew and Viega's GCM cases 13 to 16, RFC 8439 §2.8.2),
 * against each other on generated input, and against keys and signatures that an attacker would
 * choose.
 */
import { ed25519 } from '@noble/curves/ed25519.js'
import { bytesToNumberLE, numberToBytesLE } from '@noble/curves/utils.js'
import { sha512 } from '@noble/hashes/sha2.js'
import fc from 'fast-check'
import * as nodeCrypto from 'node:crypto'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, fromHex, hex, utf8 } from '../../core/bytes.ts'
import type { Crypto, NodeCryptoShape } from '../../core/crypto.ts'
import { fastCrypto, nobleCrypto, PROBES } from '../../core/crypto.ts'
import { codeOf, CRYPTOS, fast, filled } from '../support/crypto.ts'

const test = suite('core/crypto')

// RFC 8032 §7.1, tests 1, 2, 3 and SHA(abc): seed, public key, message, signature.
const ED25519: [string, string, string, string][] = [
  [
    '9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60',
    'd75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a',
    '',
    'e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b',
  ],
  [
    '4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb',
    '3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c',
    '72',
    '92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00',
  ],
  [
    'c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7',
    'fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025',
    'af82',
    '6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a',
  ],
  [
    '833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42',
    'ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf',
    'ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f',
    'dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704',
  ],
]

// RFC 7748 §5.2: scalar, u, result.
const X25519: [string, string, string][] = [
  [
    'a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4',
    'e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c',
    'c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552',
  ],
  [
    '4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d',
    'e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493',
    '95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957',
  ],
]

// RFC 5869 appendix A.1 to A.3: key, salt, info, length, result.
const HKDF: [string, string, string, number, string][] = [
  [
    '0b'.repeat(22),
    '000102030405060708090a0b0c',
    'f0f1f2f3f4f5f6f7f8f9',
    42,
    '3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865',
  ],
  [
    hex(Uint8Array.from({ length: 80 }, (_, i) => i)),
    hex(Uint8Array.from({ length: 80 }, (_, i) => 0x60 + i)),
    hex(Uint8Array.from({ length: 80 }, (_, i) => 0xb0 + i)),
    82,
    'b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87',
  ],
  [
    '0b'.repeat(22),
    '',
    '',
    42,
    '8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8',
  ],
]

// RFC 4231 §4.2, §4.3, §4.4, §4.7: key, data, result.
const HMAC: [string, string, string][] = [
  [
    '0b'.repeat(20),
    hex(utf8('Hi There')),
    'b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7',
  ],
  [
    hex(utf8('Jefe')),
    hex(utf8('what do ya want for nothing?')),
    '5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843',
  ],
  [
    'aa'.repeat(20),
    'dd'.repeat(50),
    '773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe',
  ],
  [
    'aa'.repeat(131),
    hex(utf8('Test Using Larger Than Block-Size Key - Hash Key First')),
    '60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54',
  ],
]

// "The Galois/Counter Mode of Operation", appendix B: key, nonce, associated, plaintext, sealed.
const GCM_KEY = 'feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308'
const GCM_TEXT =
  'd9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39'
const GCM_CIPHERTEXT =
  '522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662'
const GCM: [string, string, string, string, string][] = [
  ['00'.repeat(32), '00'.repeat(12), '', '', '530f8afbc74536b9a963b4f1c4cb738b'],
  [
    '00'.repeat(32),
    '00'.repeat(12),
    '',
    '00'.repeat(16),
    'cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919',
  ],
  [
    GCM_KEY,
    'cafebabefacedbaddecaf888',
    '',
    GCM_TEXT + '1aafd255',
    GCM_CIPHERTEXT + '898015adb094dac5d93471bdec1a502270e3cc6c',
  ],
  [
    GCM_KEY,
    'cafebabefacedbaddecaf888',
    'feedfacedeadbeeffeedfacedeadbeefabaddad2',
    GCM_TEXT,
    GCM_CIPHERTEXT + '76fc6ece0f4e1768cddf8853bb2d551b',
  ],
]

// RFC 8439 §2.8.2.
const CHACHA = {
  key32: Uint8Array.from({ length: 32 }, (_, i) => 0x80 + i),
  nonce12: fromHex('070000004041424344454647'),
  associated: fromHex('50515253c0c1c2c3c4c5c6c7'),
}
const CHACHA_TEXT = utf8(
  "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.",
)
const CHACHA_SEALED =
  'd31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691'

for (const [name, crypto] of CRYPTOS) {
  test(`${name}: Ed25519 gives the vectors of RFC 8032`, () => {
    for (const [seed, key, message, signature] of ED25519) {
      assert.is(hex(crypto.ed25519Public(fromHex(seed))), key)
      assert.is(hex(crypto.ed25519Sign(fromHex(seed), fromHex(message))), signature)
      assert.ok(crypto.ed25519Verify(fromHex(key), fromHex(message), fromHex(signature)))
    }
  })

  test(`${name}: ed25519Verify() refuses each flipped bit of key, message and signature`, () => {
    const [, key, message, signature] = ED25519[2]!.map(fromHex) as Uint8Array[]
    for (const which of [0, 1, 2]) {
      const parts = [key!, message!, signature!]
      for (let bit = 0; bit < parts[which]!.length * 8; bit += which === 1 ? 1 : 5) {
        const changed = parts.map((part) => Uint8Array.from(part))
        changed[which]![bit >> 3]! ^= 1 << (bit & 7)
        assert.not(crypto.ed25519Verify(changed[0]!, changed[1]!, changed[2]!), `${which} ${bit}`)
      }
    }
  })

  test(`${name}: ed25519Verify() says false, and never throws, on wrong lengths`, () => {
    const [, key, message, signature] = ED25519[1]!.map(fromHex) as Uint8Array[]
    for (const length of [0, 1, 31, 33, 64]) {
      assert.not(crypto.ed25519Verify(filled(3, length), message!, signature!))
    }
    for (const length of [0, 32, 63, 65]) {
      assert.not(crypto.ed25519Verify(key!, message!, filled(3, length)))
    }
  })

  test(`${name}: ed25519Verify() refuses keys of small order`, () => {
    // With A = R = the neutral point and S = 0 the equation holds for every message.
    const forgery = concat(ed25519.Point.ZERO.toBytes(), filled(0))
    for (const point of smallOrderPoints()) {
      for (const sign of [0, 0x80]) {
        const key = point.toBytes()
        key[31]! ^= sign
        for (let i = 0; i < 16; i++) {
          assert.not(crypto.ed25519Verify(key, utf8(`message ${i}`), forgery), hex(key))
        }
      }
    }
    assert.ok(
      ed25519.verify(forgery, utf8('any'), ed25519.Point.ZERO.toBytes(), { zip215: true }),
      'the forgery holds where it is not refused',
    )
  })

  test(`${name}: ed25519Verify() refuses keys that are not canonical`, () => {
    const [, , message, signature] = ED25519[1]!.map(fromHex) as Uint8Array[]
    for (let low = 0xed; low <= 0xff; low++) {
      const key = filled(0xff)
      key[0] = low
      for (const top of [0x7f, 0xff]) {
        key[31] = top
        assert.not(crypto.ed25519Verify(key, message!, signature!))
      }
    }
  })

  test(`${name}: ed25519Verify() refuses S + L, which many accept as a second signature`, () => {
    const [, key, message, signature] = ED25519[1]!.map(fromHex) as Uint8Array[]
    const s = bytesToNumberLE(signature!.subarray(32)) + ed25519.Point.Fn.ORDER
    const second = concat(signature!.subarray(0, 32), numberToBytesLE(s, 32))
    assert.not(crypto.ed25519Verify(key!, message!, second))
  })

  test(`${name}: ed25519Verify() holds to the equation without cofactor on keys of mixed order`, () => {
    const seed = filled(7)
    const { head, scalar, point } = ed25519.utils.getExtendedPublicKey(seed)
    assert.is(head.length, 32)
    const torsion = smallOrderPoints().find((one) => !one.multiplyUnsafe(4n).is0())!
    const key = point.add(torsion).toBytes()
    let accepted = 0
    for (let i = 1; i <= 64; i++) {
      const message = utf8(`message ${i}`)
      const R = ed25519.Point.BASE.multiply(BigInt(i)).toBytes()
      const k = bytesToNumberLE(sha512(concat(R, key, message))) % ed25519.Point.Fn.ORDER
      const s = (BigInt(i) + k * scalar) % ed25519.Point.Fn.ORDER
      const signature = concat(R, numberToBytesLE(s, 32))
      const holds = k % 8n === 0n
      accepted += Number(holds)
      assert.is(crypto.ed25519Verify(key, message, signature), holds)
      assert.ok(ed25519.verify(signature, message, key, { zip215: false }), 'with the cofactor')
    }
    assert.ok(accepted > 0 && accepted < 64)
  })

  test(`${name}: X25519 gives the vectors of RFC 7748`, () => {
    for (const [scalar, u, result] of X25519) {
      assert.is(hex(crypto.x25519Shared(fromHex(scalar), fromHex(u))), result)
    }
    const alice = fromHex('77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a')
    const bob = fromHex('5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb')
    const alicePublic = crypto.x25519Public(alice)
    const bobPublic = crypto.x25519Public(bob)
    assert.is(hex(alicePublic), '8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a')
    assert.is(hex(bobPublic), 'de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f')
    const shared = '4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742'
    assert.is(hex(crypto.x25519Shared(alice, bobPublic)), shared)
    assert.is(hex(crypto.x25519Shared(bob, alicePublic)), shared)
  })

  test(`${name}: X25519 gives the iterated vectors of RFC 7748`, () => {
    let k = filled(0)
    k[0] = 9
    let u = k
    for (let i = 1; i <= 1000; i++) {
      const next = crypto.x25519Shared(k, u)
      u = k
      k = next
      if (i === 1) {
        assert.is(hex(k), '422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079')
      }
    }
    assert.is(hex(k), '684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51')
  })

  test(`${name}: x25519Shared() throws crypto/zero on every key of small order`, () => {
    // The u coordinates of order 1, 2, 4 and 8, on the curve and its twist, canonical and not.
    for (
      const u of [
        '0000000000000000000000000000000000000000000000000000000000000000',
        '0100000000000000000000000000000000000000000000000000000000000000',
        'e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800',
        '5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157',
        'ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
        'edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
        'eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
      ].map(fromHex)
    ) {
      assert.is(codeOf(() => crypto.x25519Shared(filled(0x42), u)), 'crypto/zero')
      u[31]! |= 0x80
      assert.is(codeOf(() => crypto.x25519Shared(filled(0x42), u)), 'crypto/zero')
    }
  })

  test(`${name}: hkdfSha256() gives the vectors of RFC 5869`, () => {
    for (const [key, salt, info, bytes, result] of HKDF) {
      const input = { key: fromHex(key), salt: fromHex(salt), info: fromHex(info), bytes }
      assert.is(hex(crypto.hkdfSha256(input)), result)
    }
  })

  test(`${name}: hmacSha256() gives the vectors of RFC 4231, in any number of parts`, () => {
    for (const [key, data, result] of HMAC) {
      assert.is(hex(crypto.hmacSha256(fromHex(key), fromHex(data))), result)
      const bytes = fromHex(data)
      const parts = [bytes.subarray(0, 3), new Uint8Array(0), bytes.subarray(3)]
      assert.is(hex(crypto.hmacSha256(fromHex(key), ...parts)), result)
    }
  })

  test(`${name}: sha256() gives the vectors of FIPS 180-4`, () => {
    const empty = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
    assert.is(hex(crypto.sha256()), empty)
    assert.is(
      hex(crypto.sha256(utf8('a'), utf8('bc'))),
      'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad',
    )
    assert.is(
      hex(crypto.sha256(utf8('abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq'))),
      '248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1',
    )
  })

  test(`${name}: sha256Stream() gives the same of any pieces, and takes none after its end`, () => {
    const bytes = utf8('abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq'.repeat(50))
    for (const size of [1, 55, 64, 65, bytes.length]) {
      const hash = crypto.sha256Stream()
      for (let at = 0; at < bytes.length; at += size) hash.update(bytes.subarray(at, at + size))
      assert.is(hex(hash.digest()), hex(crypto.sha256(bytes)))
      assert.throws(() => hash.update(bytes))
    }
    assert.is(hex(crypto.sha256Stream().digest()), hex(crypto.sha256()))
  })

  test(`${name}: AES-256-GCM gives the published vectors, and opens nothing else`, () => {
    for (const [key, nonce, aad, plaintext, sealed] of GCM) {
      const keys = { key32: fromHex(key), nonce12: fromHex(nonce), associated: fromHex(aad) }
      assert.is(hex(crypto.aesGcmSeal({ ...keys, plaintext: fromHex(plaintext) })), sealed)
      const bytes = fromHex(sealed)
      assert.is(hex(crypto.aesGcmOpen({ ...keys, sealed: bytes })), plaintext)
      for (let i = 0; i < bytes.length; i++) {
        const changed = Uint8Array.from(bytes)
        changed[i]! ^= 1
        assert.is(codeOf(() => crypto.aesGcmOpen({ ...keys, sealed: changed })), 'crypto/forged')
        const cut = bytes.subarray(0, i)
        assert.is(codeOf(() => crypto.aesGcmOpen({ ...keys, sealed: cut })), 'crypto/forged')
      }
      const other = { ...keys, associated: concat(keys.associated, filled(0, 1)) }
      assert.is(codeOf(() => crypto.aesGcmOpen({ ...other, sealed: bytes })), 'crypto/forged')
    }
  })

  test(`${name}: ChaCha20-Poly1305 gives the vector of RFC 8439, and opens nothing else`, () => {
    const bytes = crypto.chachaPolySeal({ ...CHACHA, plaintext: CHACHA_TEXT })
    assert.is(hex(bytes), CHACHA_SEALED)
    assert.is(bytes.constructor, Uint8Array)
    const opened = crypto.chachaPolyOpen({ ...CHACHA, sealed: bytes })
    assert.equal(opened, CHACHA_TEXT)
    assert.is(opened.constructor, Uint8Array)
    for (let i = 0; i < bytes.length; i++) {
      const changed = Uint8Array.from(bytes)
      changed[i]! ^= 1
      assert.is(
        codeOf(() => crypto.chachaPolyOpen({ ...CHACHA, sealed: changed })),
        'crypto/forged',
      )
      const cut = bytes.subarray(0, i)
      assert.is(codeOf(() => crypto.chachaPolyOpen({ ...CHACHA, sealed: cut })), 'crypto/forged')
    }
    const other = { ...CHACHA, associated: CHACHA_TEXT, sealed: bytes }
    assert.is(codeOf(() => crypto.chachaPolyOpen(other)), 'crypto/forged')
  })

  test(`${name}: sealed bytes go where they are wanted`, () => {
    for (const seal of [crypto.aesGcmSeal, crypto.chachaPolySeal]) {
      const room = filled(0xee, 80)
      const plaintext = filled(1, 40)
      const into = room.subarray(8, 64)
      assert.is(seal({ ...CHACHA, plaintext, into }), into)
      assert.is(hex(into), hex(seal({ ...CHACHA, plaintext })))
      assert.equal([...room.subarray(0, 8), ...room.subarray(64)], Array(24).fill(0xee))
    }
  })

  test(`${name}: wrong lengths throw crypto/length`, () => {
    const short = filled(1, 31)
    const gcm = { key32: short, nonce12: filled(1, 12), associated: short, plaintext: short }
    const hkdf = { key: short, salt: short, info: 'x', bytes: 1 }
    for (
      const run of [
        () => crypto.ed25519Public(short),
        () => crypto.ed25519Sign(short, short),
        () => crypto.x25519Public(short),
        () => crypto.x25519Shared(short, filled(1)),
        () => crypto.x25519Shared(filled(1), short),
        () => crypto.aesGcmSeal(gcm),
        () => crypto.aesGcmSeal({ ...gcm, key32: filled(1), nonce12: filled(1, 16) }),
        () => crypto.aesGcmOpen({ ...gcm, sealed: filled(1) }),
        () => crypto.chachaPolySeal(gcm),
        () => crypto.chachaPolyOpen({ ...gcm, sealed: filled(1) }),
        () => crypto.chachaPolySeal({ ...CHACHA, plaintext: short, into: filled(1, 46) }),
        () => crypto.aesGcmSeal({ ...CHACHA, plaintext: short, into: filled(1, 48) }),
        () => crypto.mlkemKey(filled(1, 63)),
        () => crypto.mlkemKey(filled(1, 64)).decapsulate(filled(1, 1087)),
        () => crypto.mlkemEncapsulate(filled(1, 1183), short),
        () => crypto.mlkemEncapsulate(filled(1, 1184), short),
        () => crypto.hkdfSha256({ ...hkdf, bytes: 0 }),
        () => crypto.hkdfSha256({ ...hkdf, bytes: 8161 }),
        () => crypto.hkdfSha256({ ...hkdf, bytes: 1.5 }),
        () => crypto.hkdfSha256({ ...hkdf, info: 'x'.repeat(1025) }),
      ]
    ) assert.is(codeOf(run), 'crypto/length', String(run))
  })

  test(`${name}: results are plain arrays, and input is left as it was`, () => {
    // A Buffer's slice() is a view of it, so careless code would write into the caller's key.
    const key = nodeCrypto.randomBytes(32)
    key[31]! |= 0x80
    const before = hex(key)
    crypto.ed25519Verify(key, key, nodeCrypto.randomBytes(64))
    const shared = crypto.x25519Shared(key, crypto.x25519Public(filled(2)))
    const results = [
      crypto.randomBytes(5),
      crypto.sha256(key),
      crypto.hmacSha256(key, key),
      crypto.ed25519Public(key),
      crypto.ed25519Sign(key, key),
      crypto.x25519Public(key),
      shared,
    ]
    for (const result of results) assert.is(result.constructor, Uint8Array)
    assert.is(hex(key), before)
  })

  test(`${name}: randomBytes() fills any length, and differs each time`, () => {
    for (const length of [0, 1, 32, 65_536, 65_537, 200_000]) {
      const bytes = crypto.randomBytes(length)
      assert.is(bytes.length, length)
      if (length >= 32) assert.is.not(hex(bytes.subarray(-32)), '00'.repeat(32))
    }
    assert.is.not(hex(crypto.randomBytes(32)), hex(crypto.randomBytes(32)))
  })
}

test('both implementations agree on generated input', () => {
  const key = fc.uint8Array({ minLength: 32, maxLength: 32 })
  const bytes = fc.uint8Array({ maxLength: 300 })
  fc.assert(
    fc.property(key, key, bytes, bytes, (a, b, message, extra) => {
      const [slow, quick] = [nobleCrypto, fast].map((crypto) =>
        everything(crypto, a, b, message, extra)
      )
      assert.equal(quick, slow)
    }),
    { numRuns: 40 },
  )
})

test('both implementations agree on signatures and keys that are noise', () => {
  const half = fc.uint8Array({ minLength: 32, maxLength: 32 })
  fc.assert(
    fc.property(half, half, half, (key, r, s) => {
      s[31]! &= 0x1f
      const signature = concat(r, s)
      assert.is(
        fast.ed25519Verify(key, r, signature),
        nobleCrypto.ed25519Verify(key, r, signature),
      )
    }),
    { numRuns: 100 },
  )
})

test("the known answers are noble's", () => {
  assert.equal(Object.keys(PROBES).sort(), Object.keys(nobleCrypto).sort().filter(isProbed))
  for (const [name, { ask, answer }] of Object.entries(PROBES)) {
    const found = ask(nobleCrypto)
    assert.is(typeof found === 'boolean' ? found : hex(found), answer, name)
  }
})

test('fastCrypto() falls back to noble, method by method', () => {
  assert.equal(fastCrypto({}), nobleCrypto)
  const refuses = () => {
    throw new Error('The method is not implemented')
  }
  const partly: NodeCryptoShape = { ...nodeCrypto, createHash: refuses, hkdfSync: () => 'nonsense' }
  const crypto = fastCrypto(partly)
  assert.is(crypto.sha256, nobleCrypto.sha256)
  assert.is(crypto.hkdfSha256, nobleCrypto.hkdfSha256)
  assert.is.not(crypto.ed25519Sign, nobleCrypto.ed25519Sign)
})

test('fastCrypto() takes nothing that answers wrongly', () => {
  const lying = { update: () => lying, digest: () => filled(0) }
  const crypto = fastCrypto({ ...nodeCrypto, createHmac: () => lying, verify: () => false })
  assert.is(crypto.hmacSha256, nobleCrypto.hmacSha256)
  assert.is(crypto.ed25519Verify, nobleCrypto.ed25519Verify)
})

test('fastCrypto() uses all of node:crypto here', () => {
  for (const name of Object.keys(nobleCrypto) as (keyof Crypto)[]) {
    if (!isProbed(name) || (name.startsWith('chachaPoly') && !HAS_CHACHA)) continue
    assert.is.not(fast[name], nobleCrypto[name], name)
  }
})

/** Bun's `node:crypto` is without this cipher. */
const HAS_CHACHA = nodeCrypto.getCiphers().includes('chacha20-poly1305')

function isProbed(name: string): boolean {
  return !['randomBytes', 'blake2b', 'mlkemKey', 'mlkemEncapsulate'].includes(name)
}

function everything(
  crypto: Crypto,
  a: Uint8Array,
  b: Uint8Array,
  message: Uint8Array,
  extra: Uint8Array,
): string[] {
  const signature = crypto.ed25519Sign(a, message)
  const gcm = { key32: a, nonce12: b.subarray(0, 12), associated: extra }
  const sealed = crypto.aesGcmSeal({ ...gcm, plaintext: message })
  const key = crypto.mlkemKey(concat(a, b))
  const made = crypto.mlkemEncapsulate(key.public1184, a)
  const poly = crypto.chachaPolySeal({ ...gcm, plaintext: message })
  const results = [
    poly,
    crypto.chachaPolyOpen({ ...gcm, sealed: poly }),
    key.public1184,
    made.ciphertext1088,
    made.shared32,
    key.decapsulate(made.ciphertext1088),
    crypto.sha256(a, message, extra),
    crypto.blake2b(message, 64),
    crypto.hmacSha256(extra, message, b),
    crypto.hkdfSha256({ key: message, salt: extra, info: 'label', bytes: 1 + message.length }),
    crypto.ed25519Public(b),
    signature,
    crypto.x25519Public(a),
    crypto.x25519Shared(a, crypto.x25519Public(b)),
    sealed,
    crypto.aesGcmOpen({ ...gcm, sealed }),
    Uint8Array.of(Number(crypto.ed25519Verify(crypto.ed25519Public(a), message, signature))),
    Uint8Array.of(Number(crypto.ed25519Verify(b, message, signature))),
  ]
  return results.map(hex)
}

/** The eight points whose order divides 8, made from one of order 8. */
function smallOrderPoints(): (typeof ed25519.Point.BASE)[] {
  const base = ed25519.Point.fromHex(
    'c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a',
  )
  return Array.from({ length: 8 }, (_, i) => base.multiplyUnsafe(BigInt(i)))
}

test.run()
