/**
 * The one door to cryptography: every primitive that sotto uses comes through the interface here,
 * and no other file imports one. Two implementations that agree on every input:
 *
 *   nobleCrypto        runs anywhere, and is the slow twin in tests
 *   fastCrypto(node)   the same over `node:crypto`, handed in, since core names no runtime
 *
 * All of it is synchronous, so that protocols stay bytes in, bytes out. Returned arrays are plain
 * `Uint8Array`s that the caller owns.
 */
import { gcm } from '@noble/ciphers/aes.js'
import { ed25519, x25519 } from '@noble/curves/ed25519.js'
import { bytesToNumberLE } from '@noble/curves/utils.js'
import { hkdf } from '@noble/hashes/hkdf.js'
import { hmac } from '@noble/hashes/hmac.js'
import { sha256, sha512 } from '@noble/hashes/sha2.js'
import { concat, equal, fromHex, hex, utf8 } from './bytes.ts'
import { TunnelError } from './errors.ts'

// Specification constants.
export const KEY_BYTES = 32
export const SIGNATURE_BYTES = 64
export const HASH_BYTES = 32
export const GCM_NONCE_BYTES = 12
export const GCM_TAG_BYTES = 16
/** Most that HKDF-SHA256 gives from one salt and info (RFC 5869 §2.3). */
export const HKDF_BYTES_MAX = 255 * HASH_BYTES
/** Longest HKDF info that `node:crypto` takes. */
export const HKDF_INFO_BYTES_MAX = 1024
/** Most that one call of getRandomValues gives (Web Cryptography API §10.1.1). */
const RANDOM_CALL_BYTES_MAX = 65_536

export interface HkdfInput {
  /** Input key material. */
  key: Uint8Array
  salt: Uint8Array
  /** A spelled label, at most 1,024 bytes: what the derived key is for. */
  info: string | Uint8Array
  /** Length of the result, 1 to 8,160. */
  bytes: number
}

export interface SealInput {
  /** 32 bytes. */
  key32: Uint8Array
  /** 12 bytes, never used twice under one key. */
  nonce12: Uint8Array
  associated: Uint8Array
  plaintext: Uint8Array
}

export interface OpenInput {
  key32: Uint8Array
  nonce12: Uint8Array
  associated: Uint8Array
  /** Ciphertext and the 16-byte tag after it. */
  sealed: Uint8Array
}

/** Every method throws `crypto/length` on a key, nonce or size of the wrong length. */
export interface Crypto {
  /** Unpredictable bytes. */
  randomBytes(count: number): Uint8Array
  /** 32 bytes over all parts in order (FIPS 180-4). */
  sha256(...parts: Uint8Array[]): Uint8Array
  /** 32 bytes over all parts in order (RFC 2104). */
  hmacSha256(key: Uint8Array, ...parts: Uint8Array[]): Uint8Array
  /** RFC 5869. */
  hkdfSha256(input: HkdfInput): Uint8Array
  /** The 32-byte public key of a 32-byte seed (RFC 8032 §5.1.5). */
  ed25519Public(seed32: Uint8Array): Uint8Array
  /** 64 bytes (RFC 8032 §5.1.6). */
  ed25519Sign(seed32: Uint8Array, message: Uint8Array): Uint8Array
  /**
   * RFC 8032 §5.1.7 without the cofactor. Never throws: false on wrong lengths, on a key that is
   * not canonical or of small order (one signature would hold for any message), on S not below L.
   */
  ed25519Verify(public32: Uint8Array, message: Uint8Array, signature64: Uint8Array): boolean
  /** The 32-byte public key of a 32-byte private key (RFC 7748 §6.1). */
  x25519Public(private32: Uint8Array): Uint8Array
  /** 32 bytes. Throws `crypto/zero` when the result is all zero: the other key is of small order. */
  x25519Shared(private32: Uint8Array, public32: Uint8Array): Uint8Array
  /** AES-256-GCM (SP 800-38D): ciphertext and the 16-byte tag after it. */
  aesGcmSeal(input: SealInput): Uint8Array
  /** The plaintext. Throws `crypto/forged` on anything that was not sealed so. */
  aesGcmOpen(input: OpenInput): Uint8Array
}

/**
 * The members of `node:crypto` that are used where they exist. Loosely typed on purpose: the
 * declarations of Node, Bun and Deno differ, and each use is proven by a known answer.
 */
export interface NodeCryptoShape {
  createHash?: unknown
  createHmac?: unknown
  hkdfSync?: unknown
  createPrivateKey?: unknown
  createPublicKey?: unknown
  sign?: unknown
  verify?: unknown
  diffieHellman?: unknown
  createCipheriv?: unknown
  createDecipheriv?: unknown
}

/** The slow, portable implementation. Random bytes come from `globalThis.crypto`. */
export const nobleCrypto: Crypto = Object.freeze({
  randomBytes: randomFromGlobal,

  sha256(...parts: Uint8Array[]): Uint8Array {
    const hash = sha256.create()
    for (const part of parts) hash.update(part)
    return hash.digest()
  },

  hmacSha256(key: Uint8Array, ...parts: Uint8Array[]): Uint8Array {
    const mac = hmac.create(sha256, key)
    for (const part of parts) mac.update(part)
    return mac.digest()
  },

  hkdfSha256({ key, salt, info, bytes }: HkdfInput): Uint8Array {
    return hkdf(sha256, key, salt, hkdfInfo(info, bytes), bytes)
  },

  ed25519Public(seed32: Uint8Array): Uint8Array {
    needLength('Ed25519 seed', seed32, KEY_BYTES)
    return ed25519.getPublicKey(seed32)
  },

  ed25519Sign(seed32: Uint8Array, message: Uint8Array): Uint8Array {
    needLength('Ed25519 seed', seed32, KEY_BYTES)
    return ed25519.sign(message, seed32)
  },

  ed25519Verify(public32: Uint8Array, message: Uint8Array, signature64: Uint8Array): boolean {
    if (!plausibleSignature(public32, signature64)) return false
    try {
      return ed25519.verify(signature64, message, public32, { zip215: false }) &&
        exactSignature(public32, message, signature64)
    } catch {
      return false
    }
  },

  x25519Public(private32: Uint8Array): Uint8Array {
    needLength('X25519 private key', private32, KEY_BYTES)
    return x25519.getPublicKey(private32)
  },

  x25519Shared(private32: Uint8Array, public32: Uint8Array): Uint8Array {
    needLength('X25519 private key', private32, KEY_BYTES)
    needLength('X25519 public key', public32, KEY_BYTES)
    try {
      return x25519.getSharedSecret(private32, public32)
    } catch (cause) {
      throw zeroShared(cause)
    }
  },

  aesGcmSeal({ key32, nonce12, associated, plaintext }: SealInput): Uint8Array {
    needGcm(key32, nonce12)
    return gcm(key32, nonce12, associated).encrypt(plaintext)
  },

  aesGcmOpen({ key32, nonce12, associated, sealed }: OpenInput): Uint8Array {
    needGcm(key32, nonce12)
    if (sealed.length < GCM_TAG_BYTES) throw forged()
    try {
      return gcm(key32, nonce12, associated).decrypt(sealed)
    } catch (cause) {
      throw forged(cause)
    }
  },
})

/** What the loosely typed members are taken for. */
interface NodeCrypto {
  createHash(algorithm: string): NodeHash
  createHmac(algorithm: string, key: Uint8Array): NodeHash
  hkdfSync(
    digest: string,
    key: Uint8Array,
    salt: Uint8Array,
    info: Uint8Array,
    bytes: number,
  ): ArrayBuffer
  createPrivateKey(input: NodeKeyInput): NodeKey
  createPublicKey(input: NodeKeyInput | NodeKey): NodeKey
  sign(algorithm: null, message: Uint8Array, key: NodeKey): Uint8Array
  verify(algorithm: null, message: Uint8Array, key: NodeKey, signature: Uint8Array): boolean
  diffieHellman(keys: { privateKey: NodeKey; publicKey: NodeKey }): Uint8Array
  createCipheriv(name: string, key: Uint8Array, nonce: Uint8Array, options: NodeGcm): NodeCipher
  createDecipheriv(name: string, key: Uint8Array, nonce: Uint8Array, options: NodeGcm): NodeCipher
}
interface NodeHash {
  update(part: Uint8Array): NodeHash
  digest(): Uint8Array
}
interface NodeKeyInput {
  key: Uint8Array
  format: 'der'
  type: 'pkcs8' | 'spki'
}
interface NodeKey {
  export(options: { format: 'der'; type: 'spki' }): Uint8Array
}
interface NodeGcm {
  authTagLength: number
}
interface NodeCipher {
  setAAD(bytes: Uint8Array): unknown
  setAuthTag(bytes: Uint8Array): unknown
  getAuthTag(): Uint8Array
  update(bytes: Uint8Array): Uint8Array
  final(): Uint8Array
}

// What DER (RFC 8410 §7) puts before the 32 bytes of a key.
const ED25519_PRIVATE_DER = fromHex('302e020100300506032b657004220420')
const ED25519_PUBLIC_DER = fromHex('302a300506032b6570032100')
const X25519_PRIVATE_DER = fromHex('302e020100300506032b656e04220420')
const X25519_PUBLIC_DER = fromHex('302a300506032b656e032100')

/**
 * The implementation over the `node:crypto` module of Node, Bun, Deno or workerd. Each method is
 * tried once against a known answer; where the runtime lacks it, or differs, noble's serves.
 */
export function fastCrypto(node: NodeCryptoShape): Crypto {
  const over = overNode(node as NodeCrypto)
  const chosen: Crypto = { ...nobleCrypto }
  for (const [name, probe] of Object.entries(PROBES)) {
    if (answers(() => probe.ask(over), probe.answer)) {
      Object.assign(chosen, { [name]: over[name as keyof typeof over] })
    }
  }
  return Object.freeze(chosen)
}

function overNode(node: NodeCrypto): Probed {
  const privateKey = (der: Uint8Array, key: Uint8Array): NodeKey =>
    node.createPrivateKey({ key: concat(der, key), format: 'der', type: 'pkcs8' })
  const publicKey = (der: Uint8Array, key: Uint8Array): NodeKey =>
    node.createPublicKey({ key: concat(der, key), format: 'der', type: 'spki' })
  const publicOf = (key: NodeKey): Uint8Array =>
    plain(node.createPublicKey(key).export({ format: 'der', type: 'spki' })).slice(-KEY_BYTES)
  return {
    sha256(...parts) {
      const hash = node.createHash('sha256')
      for (const part of parts) hash.update(part)
      return plain(hash.digest())
    },
    hmacSha256(key, ...parts) {
      const mac = node.createHmac('sha256', key)
      for (const part of parts) mac.update(part)
      return plain(mac.digest())
    },
    hkdfSha256({ key, salt, info, bytes }) {
      return new Uint8Array(node.hkdfSync('sha256', key, salt, hkdfInfo(info, bytes), bytes))
    },
    ed25519Public(seed32) {
      needLength('Ed25519 seed', seed32, KEY_BYTES)
      return publicOf(privateKey(ED25519_PRIVATE_DER, seed32))
    },
    ed25519Sign(seed32, message) {
      needLength('Ed25519 seed', seed32, KEY_BYTES)
      return plain(node.sign(null, message, privateKey(ED25519_PRIVATE_DER, seed32)))
    },
    ed25519Verify(public32, message, signature64) {
      if (!plausibleSignature(public32, signature64)) return false
      try {
        return node.verify(null, message, publicKey(ED25519_PUBLIC_DER, public32), signature64)
      } catch {
        return false
      }
    },
    x25519Public(private32) {
      needLength('X25519 private key', private32, KEY_BYTES)
      return publicOf(privateKey(X25519_PRIVATE_DER, private32))
    },
    x25519Shared(private32, public32) {
      needLength('X25519 private key', private32, KEY_BYTES)
      needLength('X25519 public key', public32, KEY_BYTES)
      let shared: Uint8Array
      try {
        shared = plain(node.diffieHellman({
          privateKey: privateKey(X25519_PRIVATE_DER, private32),
          publicKey: publicKey(X25519_PUBLIC_DER, public32),
        }))
      } catch (cause) {
        throw zeroShared(cause)
      }
      // Not every runtime refuses by itself.
      if (equal(shared, new Uint8Array(KEY_BYTES))) throw zeroShared()
      return shared
    },
    ...gcmOverNode(node),
  }
}

function gcmOverNode(node: NodeCrypto): Pick<Crypto, 'aesGcmSeal' | 'aesGcmOpen'> {
  return {
    aesGcmSeal({ key32, nonce12, associated, plaintext }) {
      needGcm(key32, nonce12)
      const cipher = node.createCipheriv('aes-256-gcm', key32, nonce12, GCM_OPTIONS)
      cipher.setAAD(associated)
      return concat(cipher.update(plaintext), cipher.final(), cipher.getAuthTag())
    },
    aesGcmOpen({ key32, nonce12, associated, sealed }) {
      needGcm(key32, nonce12)
      const length = sealed.length - GCM_TAG_BYTES
      if (length < 0) throw forged()
      try {
        const cipher = node.createDecipheriv('aes-256-gcm', key32, nonce12, GCM_OPTIONS)
        cipher.setAAD(associated)
        cipher.setAuthTag(sealed.subarray(length))
        const opened = cipher.update(sealed.subarray(0, length))
        return concat(opened, cipher.final())
      } catch (cause) {
        throw forged(cause)
      }
    },
  }
}

const GCM_OPTIONS: NodeGcm = { authTagLength: GCM_TAG_BYTES }

const PROBE_KEY = Uint8Array.from({ length: KEY_BYTES }, (_, i) => i)
const PROBE_GCM = {
  key32: PROBE_KEY,
  nonce12: PROBE_KEY.subarray(0, GCM_NONCE_BYTES),
  associated: PROBE_KEY,
}
const PROBE_PUBLIC = '03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8'
const PROBE_SIGNATURE =
  'b335dc5eae70b48764f11207bbaa62757cbb94e820ceba376aeb62a5815dfabe784217758836ca28504a36a2160abbdc9e7874fe1d6524a58665ef2c426da30e'
const PROBE_X25519 = '8f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f'
const PROBE_SEALED =
  '4703d418c1e0c41c85489d80bde4766293c79527e46e496b207eff9e01741eadc82a51441dda6d82fc0232acb4e2d3ae'

type Probed = Omit<Crypto, 'randomBytes'>

/**
 * One call of each method, and noble's answer in hex. Written down, since to ask noble would take
 * tens of milliseconds at each start; a test compares.
 */
export const PROBES: Readonly<
  Record<keyof Probed, { ask(crypto: Probed): Uint8Array | boolean; answer: string | boolean }>
> = Object.freeze({
  sha256: {
    ask: (crypto) => crypto.sha256(PROBE_KEY, PROBE_KEY),
    answer: '7c26fdd1387b71ca2b32c7778087933352bceddf1b767f4f9230aa543df6153a',
  },
  hmacSha256: {
    ask: (crypto) => crypto.hmacSha256(PROBE_KEY, PROBE_KEY, PROBE_KEY),
    answer: 'eeedd358709aecb6a0bdf304f35df50657ecd563ee1bca4758560477c0af04cf',
  },
  hkdfSha256: {
    ask: (crypto) =>
      crypto.hkdfSha256({ key: PROBE_KEY, salt: PROBE_KEY, info: 'probe', bytes: 42 }),
    answer: 'fdef916fe8ed5d82f158e64ad792ba61f371ddd7a0eb5dbf3306f37cbeed350df97110808a6fb82aa27d',
  },
  ed25519Public: { ask: (crypto) => crypto.ed25519Public(PROBE_KEY), answer: PROBE_PUBLIC },
  ed25519Sign: {
    ask: (crypto) => crypto.ed25519Sign(PROBE_KEY, PROBE_KEY),
    answer: PROBE_SIGNATURE,
  },
  ed25519Verify: {
    ask: (crypto) =>
      crypto.ed25519Verify(fromHex(PROBE_PUBLIC), PROBE_KEY, fromHex(PROBE_SIGNATURE)),
    answer: true,
  },
  x25519Public: { ask: (crypto) => crypto.x25519Public(PROBE_KEY), answer: PROBE_X25519 },
  x25519Shared: {
    ask: (crypto) => crypto.x25519Shared(PROBE_KEY, fromHex(PROBE_X25519)),
    answer: 'df6baf6f6a43b9744fc5ef9dea1122782f9f696dc4a0d15c03c1787ee6d15e64',
  },
  aesGcmSeal: {
    ask: (crypto) => crypto.aesGcmSeal({ ...PROBE_GCM, plaintext: PROBE_KEY }),
    answer: PROBE_SEALED,
  },
  aesGcmOpen: {
    ask: (crypto) => crypto.aesGcmOpen({ ...PROBE_GCM, sealed: fromHex(PROBE_SEALED) }),
    answer: '000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f',
  },
})

function answers(ask: () => Uint8Array | boolean, answer: string | boolean): boolean {
  try {
    const found = ask()
    return (typeof found === 'boolean' ? found : hex(found)) === answer
  } catch {
    return false
  }
}

function randomFromGlobal(count: number): Uint8Array {
  const source = (globalThis as unknown as {
    crypto: { getRandomValues(into: Uint8Array): Uint8Array }
  }).crypto
  const out = new Uint8Array(count)
  for (let at = 0; at < count; at += RANDOM_CALL_BYTES_MAX) {
    source.getRandomValues(out.subarray(at, at + RANDOM_CALL_BYTES_MAX))
  }
  return out
}

// Ed25519: what both implementations refuse before the arithmetic, so that they cannot differ.
/** p = 2^255 - 19 and L = 2^252 + 277…493, little-endian. */
const FIELD_ORDER = fromHex('edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f')
const GROUP_ORDER = fromHex('edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010')
/** The y coordinates of the eight points whose order divides 8; the sign bit does not matter. */
const SMALL_ORDER_Y = [
  '0000000000000000000000000000000000000000000000000000000000000000',
  '0100000000000000000000000000000000000000000000000000000000000000',
  'ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
  'c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a',
  '26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05',
].map(fromHex)

function plausibleSignature(public32: Uint8Array, signature64: Uint8Array): boolean {
  if (public32.length !== KEY_BYTES || signature64.length !== SIGNATURE_BYTES) return false
  // Not slice(): of a Buffer that is a view, and the sign bit of the caller's key would be lost.
  const y = Uint8Array.from(public32)
  y[31]! &= 0x7f
  if (!below(y, FIELD_ORDER)) return false
  if (SMALL_ORDER_Y.some((small) => equal(small, y))) return false
  return below(signature64.subarray(32), GROUP_ORDER)
}

/** True when little-endian `a` is less than `b`, of the same length; both are public. */
function below(a: Uint8Array, b: Uint8Array): boolean {
  for (let i = a.length - 1; i >= 0; i--) {
    if (a[i]! !== b[i]!) return a[i]! < b[i]!
  }
  return false
}

/**
 * R equals S·B - k·A exactly. Noble multiplies both sides by 8, OpenSSL and BoringSSL do not, and
 * the owner of an odd key could make a signature that only some parties accept.
 */
function exactSignature(public32: Uint8Array, message: Uint8Array, signature64: Uint8Array) {
  const { Point } = ed25519
  const r = signature64.subarray(0, 32)
  const s = bytesToNumberLE(signature64.subarray(32))
  const k = bytesToNumberLE(sha512(concat(r, public32, message))) % Point.Fn.ORDER
  const expected = Point.BASE.multiplyUnsafe(s).subtract(
    Point.fromBytes(public32).multiplyUnsafe(k),
  )
  return equal(expected.toBytes(), r)
}

function hkdfInfo(info: string | Uint8Array, bytes: number): Uint8Array {
  const encoded = typeof info === 'string' ? utf8(info) : info
  if (
    encoded.length > HKDF_INFO_BYTES_MAX || !Number.isInteger(bytes) || bytes < 1 ||
    bytes > HKDF_BYTES_MAX
  ) {
    throw new TunnelError(
      'crypto/length',
      `Cannot derive ${bytes} bytes: expected 1 to ${HKDF_BYTES_MAX}, and a label of at most ${HKDF_INFO_BYTES_MAX} bytes`,
    )
  }
  return encoded
}

function needLength(subject: string, bytes: Uint8Array, expected: number): void {
  if (bytes.length === expected) return
  throw new TunnelError(
    'crypto/length',
    `Cannot use ${subject}: found ${bytes.length} bytes, expected ${expected}`,
  )
}

function needGcm(key32: Uint8Array, nonce12: Uint8Array): void {
  needLength('AES-256-GCM key', key32, KEY_BYTES)
  needLength('AES-256-GCM nonce', nonce12, GCM_NONCE_BYTES)
}

function zeroShared(cause?: unknown): TunnelError {
  return new TunnelError(
    'crypto/zero',
    'Cannot agree on a key: found a public key of small order, expected one of full order',
    { cause },
  )
}

function forged(cause?: unknown): TunnelError {
  return new TunnelError(
    'crypto/forged',
    'Cannot open sealed bytes: found a wrong tag, expected what was sealed under this key',
    { cause },
  )
}

/** The same bytes without the runtime's own subclass, which compares and slices differently. */
function plain(bytes: Uint8Array): Uint8Array {
  return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length)
}
