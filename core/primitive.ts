/**
 * What a cryptographic implementation must do, and the portable one over noble. Only core/crypto.ts
 * imports this: all else takes the door.
 */
import { gcm } from '@noble/ciphers/aes.js'
import { chacha20poly1305 } from '@noble/ciphers/chacha.js'
import { ed25519, x25519 } from '@noble/curves/ed25519.js'
import { bytesToNumberLE } from '@noble/curves/utils.js'
import { blake2b } from '@noble/hashes/blake2.js'
import { hkdf } from '@noble/hashes/hkdf.js'
import { hmac } from '@noble/hashes/hmac.js'
import { sha256, sha512 } from '@noble/hashes/sha2.js'
import { ml_kem768 } from '@noble/post-quantum/ml-kem.js'
import { concat, equal, fromHex, utf8 } from './bytes.ts'
import { TunnelError } from './errors.ts'

// Specification constants.
export const KEY_BYTES = 32
export const SIGNATURE_BYTES = 64
export const HASH_BYTES = 32
/** Of both ciphers: AES-256-GCM and ChaCha20-Poly1305. */
export const AEAD_NONCE_BYTES = 12
export const AEAD_TAG_BYTES = 16
/** ML-KEM-768 (FIPS 203, tables 2 and 3). */
export const MLKEM_SEED_BYTES = 64
export const MLKEM_PUBLIC_BYTES = 1184
export const MLKEM_CIPHERTEXT_BYTES = 1088
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
  /**
   * Where the sealed bytes go: exactly 16 more than the plaintext, which it must not overlap. Without
   * it they come in an array of their own.
   */
  into?: Uint8Array | undefined
}

export interface OpenInput {
  key32: Uint8Array
  nonce12: Uint8Array
  associated: Uint8Array
  /** Ciphertext and the 16-byte tag after it. */
  sealed: Uint8Array
}

/** A private key of ML-KEM-768. */
export interface MlkemKey {
  /** 1,184 bytes. */
  readonly public1184: Uint8Array
  /**
   * The 32 bytes that a ciphertext of 1,088 bytes carries. One that was made for another key, or
   * changed, gives 32 bytes that nobody else knows (implicit rejection), and never throws.
   */
  decapsulate(ciphertext1088: Uint8Array): Uint8Array
  /** Overwrites the private part; decapsulate() must not be called again. */
  erase(): void
}

/** Every method throws `crypto/length` on a key, nonce or size of the wrong length. */
export interface Crypto {
  /** Unpredictable bytes. */
  randomBytes(count: number): Uint8Array
  /** 32 bytes over all parts in order (FIPS 180-4). */
  sha256(...parts: Uint8Array[]): Uint8Array
  /** The same of what comes in pieces, such as a message that is nowhere held as a whole. */
  sha256Stream(): HashStream
  /** BLAKE2b without a key (RFC 7693), of 32 or 64 bytes: what minisign hashes with. */
  blake2b(message: Uint8Array, bytes: 32 | 64): Uint8Array
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
  /** ChaCha20-Poly1305 (RFC 8439 §2.8): ciphertext and the 16-byte tag after it. */
  chachaPolySeal(input: SealInput): Uint8Array
  /** The plaintext. Throws `crypto/forged` on anything that was not sealed so. */
  chachaPolyOpen(input: OpenInput): Uint8Array
  /** The key of a seed of 64 bytes, d and z of FIPS 203, algorithm 16. */
  mlkemKey(seed64: Uint8Array): MlkemKey
  /**
   * A secret of 32 bytes for who has the key, from 32 random ones (m of FIPS 203, algorithm 17).
   * Throws `crypto/kem` when the public key is not encoded as §7.2 demands.
   */
  mlkemEncapsulate(public1184: Uint8Array, random32: Uint8Array): Encapsulated
}

export interface HashStream {
  update(part: Uint8Array): void
  /** 32 bytes; nothing may be added after. */
  digest(): Uint8Array
}

export interface Encapsulated {
  /** 1,088 bytes, to be sent. */
  ciphertext1088: Uint8Array
  /** 32 bytes. */
  shared32: Uint8Array
}

/** The slow, portable implementation. Random bytes come from `globalThis.crypto`. */
export const nobleCrypto: Crypto = Object.freeze({
  randomBytes: randomFromGlobal,

  sha256(...parts: Uint8Array[]): Uint8Array {
    const hash = sha256.create()
    for (const part of parts) hash.update(part)
    return hash.digest()
  },

  sha256Stream(): HashStream {
    const hash = sha256.create()
    return { update: (part) => void hash.update(part), digest: () => hash.digest() }
  },

  blake2b(message: Uint8Array, bytes: 32 | 64): Uint8Array {
    return blake2b(message, { dkLen: bytes })
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

  aesGcmSeal({ key32, nonce12, associated, plaintext, into }: SealInput): Uint8Array {
    needAead(key32, nonce12)
    needRoom(plaintext, into)
    const sealed = gcm(key32, nonce12, associated).encrypt(plaintext)
    if (into === undefined) return sealed
    into.set(sealed)
    return into
  },

  aesGcmOpen({ key32, nonce12, associated, sealed }: OpenInput): Uint8Array {
    needAead(key32, nonce12)
    return opened(sealed, () => gcm(key32, nonce12, associated).decrypt(sealed))
  },

  chachaPolySeal({ key32, nonce12, associated, plaintext, into }: SealInput): Uint8Array {
    needAead(key32, nonce12)
    needRoom(plaintext, into)
    return chacha20poly1305(key32, nonce12, associated).encrypt(plaintext, into)
  },

  chachaPolyOpen({ key32, nonce12, associated, sealed }: OpenInput): Uint8Array {
    needAead(key32, nonce12)
    return opened(sealed, () => chacha20poly1305(key32, nonce12, associated).decrypt(sealed))
  },

  mlkemKey(seed64: Uint8Array): MlkemKey {
    needLength('ML-KEM seed', seed64, MLKEM_SEED_BYTES)
    const { publicKey, secretKey } = ml_kem768.keygen(seed64)
    return {
      public1184: publicKey,
      decapsulate(ciphertext1088) {
        needLength('ML-KEM ciphertext', ciphertext1088, MLKEM_CIPHERTEXT_BYTES)
        return ml_kem768.decapsulate(ciphertext1088, secretKey)
      },
      erase: () => void secretKey.fill(0),
    }
  },

  mlkemEncapsulate(public1184: Uint8Array, random32: Uint8Array): Encapsulated {
    needLength('ML-KEM public key', public1184, MLKEM_PUBLIC_BYTES)
    needLength('ML-KEM random bytes', random32, KEY_BYTES)
    try {
      const { cipherText, sharedSecret } = ml_kem768.encapsulate(public1184, random32)
      return { ciphertext1088: cipherText, shared32: Uint8Array.from(sharedSecret) }
    } catch (cause) {
      throw new TunnelError(
        'crypto/kem',
        'Cannot encapsulate: found an ML-KEM public key with a coefficient that is not reduced',
        { cause },
      )
    }
  },
})

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

export function plausibleSignature(public32: Uint8Array, signature64: Uint8Array): boolean {
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

export function hkdfInfo(info: string | Uint8Array, bytes: number): Uint8Array {
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

export function needLength(subject: string, bytes: Uint8Array, expected: number): void {
  if (bytes.length === expected) return
  throw new TunnelError(
    'crypto/length',
    `Cannot use ${subject}: found ${bytes.length} bytes, expected ${expected}`,
  )
}

function opened(sealed: Uint8Array, open: () => Uint8Array): Uint8Array {
  if (sealed.length < AEAD_TAG_BYTES) throw forged()
  try {
    return open()
  } catch (cause) {
    throw forged(cause)
  }
}

export function needAead(key32: Uint8Array, nonce12: Uint8Array): void {
  needLength('AEAD key', key32, KEY_BYTES)
  needLength('AEAD nonce', nonce12, AEAD_NONCE_BYTES)
}

export function needRoom(plaintext: Uint8Array, into: Uint8Array | undefined): void {
  if (into !== undefined) {
    needLength('room for sealed bytes', into, plaintext.length + AEAD_TAG_BYTES)
  }
}

export function zeroShared(cause?: unknown): TunnelError {
  return new TunnelError(
    'crypto/zero',
    'Cannot agree on a key: found a public key of small order, expected one of full order',
    { cause },
  )
}

export function forged(cause?: unknown): TunnelError {
  return new TunnelError(
    'crypto/forged',
    'Cannot open sealed bytes: found a wrong tag, expected what was sealed under this key',
    { cause },
  )
}
