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
import { concat, equal, fromHex, hex } from './bytes.ts'
import type { Crypto, OpenInput, SealInput } from './primitive.ts'
import {
  AEAD_NONCE_BYTES,
  AEAD_TAG_BYTES,
  forged,
  hkdfInfo,
  KEY_BYTES,
  needAead,
  needLength,
  needRoom,
  nobleCrypto,
  plausibleSignature,
  zeroShared,
} from './primitive.ts'

export type {
  Crypto,
  Encapsulated,
  HashStream,
  HkdfInput,
  MlkemKey,
  OpenInput,
  SealInput,
} from './primitive.ts'
export {
  AEAD_NONCE_BYTES,
  AEAD_TAG_BYTES,
  HASH_BYTES,
  HKDF_BYTES_MAX,
  HKDF_INFO_BYTES_MAX,
  KEY_BYTES,
  MLKEM_CIPHERTEXT_BYTES,
  MLKEM_PUBLIC_BYTES,
  MLKEM_SEED_BYTES,
  nobleCrypto,
  SIGNATURE_BYTES,
} from './primitive.ts'

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
  createCipheriv(name: string, key: Uint8Array, nonce: Uint8Array, options: NodeAead): NodeCipher
  createDecipheriv(name: string, key: Uint8Array, nonce: Uint8Array, options: NodeAead): NodeCipher
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
interface NodeAead {
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
    sha256Stream() {
      const hash = node.createHash('sha256')
      return { update: (part) => void hash.update(part), digest: () => plain(hash.digest()) }
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
    aesGcmSeal: (input) => sealOverNode(node, 'aes-256-gcm', input),
    aesGcmOpen: (input) => openOverNode(node, 'aes-256-gcm', input),
    chachaPolySeal: (input) => sealOverNode(node, 'chacha20-poly1305', input),
    chachaPolyOpen: (input) => openOverNode(node, 'chacha20-poly1305', input),
  }
}

const AEAD_OPTIONS: NodeAead = { authTagLength: AEAD_TAG_BYTES }

function sealOverNode(node: NodeCrypto, name: string, input: SealInput): Uint8Array {
  const { key32, nonce12, associated, plaintext, into } = input
  needAead(key32, nonce12)
  needRoom(plaintext, into)
  const cipher = node.createCipheriv(name, key32, nonce12, AEAD_OPTIONS)
  cipher.setAAD(associated)
  const out = into ?? new Uint8Array(plaintext.length + AEAD_TAG_BYTES)
  // Neither cipher holds bytes back, so that final() gives none.
  out.set(cipher.update(plaintext))
  cipher.final()
  out.set(cipher.getAuthTag(), plaintext.length)
  return out
}

function openOverNode(node: NodeCrypto, name: string, input: OpenInput): Uint8Array {
  const { key32, nonce12, associated, sealed } = input
  needAead(key32, nonce12)
  const length = sealed.length - AEAD_TAG_BYTES
  if (length < 0) throw forged()
  try {
    const cipher = node.createDecipheriv(name, key32, nonce12, AEAD_OPTIONS)
    cipher.setAAD(associated)
    cipher.setAuthTag(sealed.subarray(length))
    const opened = cipher.update(sealed.subarray(0, length))
    cipher.final()
    return plain(opened)
  } catch (cause) {
    throw forged(cause)
  }
}

const PROBE_KEY = Uint8Array.from({ length: KEY_BYTES }, (_, i) => i)
const PROBE_AEAD = {
  key32: PROBE_KEY,
  nonce12: PROBE_KEY.subarray(0, AEAD_NONCE_BYTES),
  associated: PROBE_KEY,
}
const PROBE_PUBLIC = '03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8'
const PROBE_SIGNATURE =
  'b335dc5eae70b48764f11207bbaa62757cbb94e820ceba376aeb62a5815dfabe784217758836ca28504a36a2160abbdc9e7874fe1d6524a58665ef2c426da30e'
const PROBE_X25519 = '8f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f'
const PROBE_SEALED =
  '4703d418c1e0c41c85489d80bde4766293c79527e46e496b207eff9e01741eadc82a51441dda6d82fc0232acb4e2d3ae'
const PROBE_CHACHA =
  '89fa0a032d12a347bf8a35f89410006cd961a0f44561bbaefe8e35de69ddb823ecd965c916d3c8b0deb68b7fa8f1d682'

/**
 * ML-KEM is noble's: no runtime here has one that answers at once. So is BLAKE2b, which is asked once a
 * release, and not by every runtime.
 */
type Probed = Omit<Crypto, 'randomBytes' | 'blake2b' | 'mlkemKey' | 'mlkemEncapsulate'>

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
  sha256Stream: {
    ask: (crypto) => {
      const hash = crypto.sha256Stream()
      hash.update(PROBE_KEY)
      hash.update(PROBE_KEY)
      return hash.digest()
    },
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
    ask: (crypto) => crypto.aesGcmSeal({ ...PROBE_AEAD, plaintext: PROBE_KEY }),
    answer: PROBE_SEALED,
  },
  aesGcmOpen: {
    ask: (crypto) => crypto.aesGcmOpen({ ...PROBE_AEAD, sealed: fromHex(PROBE_SEALED) }),
    answer: '000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f',
  },
  chachaPolySeal: {
    ask: (crypto) => crypto.chachaPolySeal({ ...PROBE_AEAD, plaintext: PROBE_KEY }),
    answer: PROBE_CHACHA,
  },
  chachaPolyOpen: {
    ask: (crypto) => crypto.chachaPolyOpen({ ...PROBE_AEAD, sealed: fromHex(PROBE_CHACHA) }),
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

/** The same bytes without the runtime's own subclass, which compares and slices differently. */
function plain(bytes: Uint8Array): Uint8Array {
  return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length)
}
