/**
 * Passports: what an identity says of itself, signed, so that a relay can keep and serve it and
 * cannot forge it. One set of facts has exactly one encoding.
 *
 *   version       2      1
 *   identity      32     Ed25519 public key, the signer
 *   sequence      8      counts up with each passport of the identity
 *   not before    8      ms since 1970
 *   not after     8      ms since 1970, above not before
 *   flags         1      1 static key given, 2 WireGuard key given; others are 0
 *   static key    0, 32  X25519, for sessions
 *   WireGuard     0, 32  X25519
 *   certificates  1+32n  count 0 to 16; SHA-256 of each in DER, ascending
 *   names         1+…    count 0 to 64; text8 each, endpoint names, ascending
 *   ciphers       1+…    count 0 to 16; text8 each, cipher suites, best first
 *   signature     64     Ed25519 over "sotto passport v1" 0 ‖ all before
 *
 * Integers are big-endian; the whole is at most 4,096 bytes. docs/protocol.md §8.
 */
import { ByteReader, ByteWriter, concat, equal, text, utf8 } from './bytes.ts'
import type { Crypto } from './crypto.ts'
import { HASH_BYTES, KEY_BYTES, SIGNATURE_BYTES } from './crypto.ts'
import { TunnelError } from './errors.ts'
import { isName } from './key.ts'

// Specification constants.
export const PASSPORT_VERSION = 1
export const PASSPORT_BYTES_MAX = 4096
export const PASSPORT_CERTIFICATES_MAX = 16
export const PASSPORT_NAMES_MAX = 64
export const PASSPORT_CIPHERS_MAX = 16
/** How far the clocks of signer and reader may differ. */
export const PASSPORT_SKEW_MS = 600_000

const LABEL = utf8('sotto passport v1\0')
const FLAG_STATIC = 1
const FLAG_WIREGUARD = 2
/** Version, identity, sequence, two times, flags, three counts, signature. */
const BYTES_MIN = 2 + KEY_BYTES + 3 * 8 + 1 + 3 + SIGNATURE_BYTES
/** As in the names of Noise protocols: no blanks, at most 64 characters. */
const CIPHER = /^[A-Za-z0-9_+/.-]{1,64}$/

export interface Passport {
  /** 32 bytes: whose passport it is. */
  identity: Uint8Array
  sequence: number
  /** Milliseconds since 1970. */
  notBefore: number
  notAfter: number
  /** X25519 public key for sessions, 32 bytes. */
  staticKey?: Uint8Array | undefined
  /** WireGuard public key, 32 bytes. */
  wireguardKey?: Uint8Array | undefined
  /** SHA-256 of each TLS certificate that the identity uses, as server or client. */
  certificates: Uint8Array[]
  /** Endpoint names that the identity serves. */
  names: string[]
  /** Cipher suites that it takes, best first. */
  ciphers: string[]
}

export interface PassportCheck {
  /** Milliseconds since 1970. */
  now: number
  /** Whose passport is expected; another's throws `passport/signer`. */
  identity?: Uint8Array | undefined
  /** The newest known sequence number; this and all below throw `passport/stale`. */
  afterSequence?: number | undefined
  /** True for its owner, who reads an old one to number the next. */
  anyTime?: boolean | undefined
}

/**
 * The canonical bytes. Certificates and names are put in order. `sign` gets the message and gives
 * the identity's signature. Throws `passport/length`, `passport/range`, `passport/name`,
 * `passport/cipher`, `passport/duplicate`, `passport/size`, `passport/validity`.
 */
export function encodePassport(
  fields: Passport,
  sign: (message: Uint8Array) => Uint8Array,
): Uint8Array {
  const certificates = fields.certificates.toSorted(compareBytes)
  // Names are ASCII, so the order of UTF-16 units is the order of bytes.
  const names = fields.names.toSorted()
  checkFields({ ...fields, certificates, names })
  const writer = new ByteWriter(512)
    .u16(PASSPORT_VERSION)
    .bytes(fields.identity)
    .u64(fields.sequence)
    .u64(fields.notBefore)
    .u64(fields.notAfter)
    .u8((fields.staticKey ? FLAG_STATIC : 0) | (fields.wireguardKey ? FLAG_WIREGUARD : 0))
  if (fields.staticKey) writer.bytes(fields.staticKey)
  if (fields.wireguardKey) writer.bytes(fields.wireguardKey)
  writer.u8(certificates.length)
  for (const certificate of certificates) writer.bytes(certificate)
  writer.u8(names.length)
  for (const name of names) writer.text8(name)
  writer.u8(fields.ciphers.length)
  for (const cipher of fields.ciphers) writer.text8(cipher)
  const body = writer.done()
  needSize(body.length + SIGNATURE_BYTES)
  const signature = sign(concat(LABEL, body))
  needLength('signature', signature, SIGNATURE_BYTES)
  return concat(body, signature)
}

/**
 * What the passport says, once its signature holds; nothing but version and identity is looked at
 * before. Arrays are copies. Throws `passport/size`, `passport/version`, `passport/signer`,
 * `passport/forged`; then `passport/truncated`, `passport/trailing`, `passport/flags`,
 * `passport/order`, `passport/duplicate`, `passport/name`, `passport/cipher`, `passport/range`,
 * `bytes/utf8`; then `passport/validity`, `passport/stale`, `passport/early`, `passport/expired`.
 */
export function openPassport(crypto: Crypto, bytes: Uint8Array, check: PassportCheck): Passport {
  needSize(bytes.length)
  const body = bytes.subarray(0, -SIGNATURE_BYTES)
  const reader = new ByteReader(Uint8Array.from(body), 'passport', 'passport')
  const version = reader.u16()
  if (version !== PASSPORT_VERSION) {
    throw new TunnelError(
      'passport/version',
      `Cannot open passport: found version ${version}, expected ${PASSPORT_VERSION}`,
      { hint: 'Update sotto on the older of the two machines.' },
    )
  }
  const identity = reader.bytes(KEY_BYTES)
  if (check.identity && !equal(identity, check.identity)) {
    throw new TunnelError(
      'passport/signer',
      'Cannot open passport: found that of another identity, expected the one asked for',
    )
  }
  const signature = bytes.subarray(-SIGNATURE_BYTES)
  if (!crypto.ed25519Verify(identity, concat(LABEL, body), signature)) {
    throw new TunnelError(
      'passport/forged',
      'Cannot open passport: found a signature that is not by its identity',
    )
  }
  const passport = readFields(reader, identity)
  checkFields(passport)
  if (!check.anyTime) checkTime(passport, check)
  return passport
}

function readFields(reader: ByteReader, identity: Uint8Array): Passport {
  const sequence = reader.u64()
  const notBefore = reader.u64()
  const notAfter = reader.u64()
  const flags = reader.u8()
  if ((flags & ~(FLAG_STATIC | FLAG_WIREGUARD)) !== 0) {
    throw new TunnelError('passport/flags', `Cannot open passport: found unknown flags ${flags}`)
  }
  const staticKey = flags & FLAG_STATIC ? reader.bytes(KEY_BYTES) : undefined
  const wireguardKey = flags & FLAG_WIREGUARD ? reader.bytes(KEY_BYTES) : undefined
  const certificates: Uint8Array[] = []
  for (let left = readCount(reader, PASSPORT_CERTIFICATES_MAX); left > 0; left--) {
    certificates.push(reader.bytes(HASH_BYTES))
  }
  const names: string[] = []
  for (let left = readCount(reader, PASSPORT_NAMES_MAX); left > 0; left--) {
    names.push(text(reader.bytes(reader.u8())))
  }
  const ciphers: string[] = []
  for (let left = readCount(reader, PASSPORT_CIPHERS_MAX); left > 0; left--) {
    ciphers.push(text(reader.bytes(reader.u8())))
  }
  reader.end()
  return {
    identity,
    sequence,
    notBefore,
    notAfter,
    ...(staticKey && { staticKey }),
    ...(wireguardKey && { wireguardKey }),
    certificates,
    names,
    ciphers,
  }
}

function readCount(reader: ByteReader, max: number): number {
  const count = reader.u8()
  needCount(count, max)
  return count
}

/** The rules that make the encoding canonical, the same for writer and reader. */
function checkFields(fields: Passport): void {
  needLength('identity', fields.identity, KEY_BYTES)
  for (const [subject, key] of [['static', fields.staticKey], ['WireGuard', fields.wireguardKey]]) {
    if (key instanceof Uint8Array) needLength(`${subject} key`, key, KEY_BYTES)
  }
  for (const number of [fields.sequence, fields.notBefore, fields.notAfter]) {
    if (!Number.isSafeInteger(number) || number < 0) {
      throw new TunnelError(
        'passport/range',
        `Cannot use passport: found the number ${number}, expected 0 to 2^53 - 1`,
      )
    }
  }
  if (fields.notAfter <= fields.notBefore) {
    throw new TunnelError(
      'passport/validity',
      'Cannot use passport: found an end that is not after its beginning',
    )
  }
  needCount(fields.certificates.length, PASSPORT_CERTIFICATES_MAX)
  for (const certificate of fields.certificates) needLength('certificate', certificate, HASH_BYTES)
  needAscending('certificates', fields.certificates, compareBytes)
  needCount(fields.names.length, PASSPORT_NAMES_MAX)
  for (const name of fields.names) {
    if (!isName(name)) throw wrongText('passport/name', name, 'a lower-case DNS label')
  }
  needAscending('names', fields.names, (a, b) => a < b ? -1 : Number(a !== b))
  needCount(fields.ciphers.length, PASSPORT_CIPHERS_MAX)
  for (const cipher of fields.ciphers) {
    if (!CIPHER.test(cipher)) throw wrongText('passport/cipher', cipher, 'a cipher suite')
  }
  if (new Set(fields.ciphers).size !== fields.ciphers.length) throw duplicate('ciphers')
}

function checkTime(passport: Passport, { now, afterSequence }: PassportCheck): void {
  if (afterSequence !== undefined && passport.sequence <= afterSequence) {
    throw new TunnelError(
      'passport/stale',
      `Cannot take passport: found sequence number ${passport.sequence}, expected one above ${afterSequence}`,
      { hint: 'An older passport was replayed, or the agent was restored from a backup.' },
    )
  }
  if (now < passport.notBefore - PASSPORT_SKEW_MS) {
    throw new TunnelError(
      'passport/early',
      `Cannot take passport: found one valid from ${isoTime(passport.notBefore)} on, and it is ${
        isoTime(now)
      }`,
      { hint: 'Check the clocks of both machines.' },
    )
  }
  if (now > passport.notAfter + PASSPORT_SKEW_MS) {
    throw new TunnelError(
      'passport/expired',
      `Cannot take passport: found one valid until ${isoTime(passport.notAfter)}, and it is ${
        isoTime(now)
      }`,
      { hint: 'Start the agent so that it signs a new one, or check the clocks of both machines.' },
    )
  }
}

/** Years beyond 275,760 have no ISO form. */
function isoTime(ms: number): string {
  return Math.abs(ms) <= 8.64e15 ? new Date(ms).toISOString() : `${ms} ms`
}

function compareBytes(a: Uint8Array, b: Uint8Array): number {
  const length = Math.min(a.length, b.length)
  for (let i = 0; i < length; i++) {
    if (a[i]! !== b[i]!) return a[i]! - b[i]!
  }
  return a.length - b.length
}

function needAscending<T>(
  subject: string,
  items: readonly T[],
  compare: (a: T, b: T) => number,
): void {
  for (let i = 1; i < items.length; i++) {
    const order = compare(items[i - 1]!, items[i]!)
    if (order === 0) throw duplicate(subject)
    if (order > 0) {
      throw new TunnelError('passport/order', `Cannot open passport: found ${subject} out of order`)
    }
  }
}

function duplicate(subject: string): TunnelError {
  return new TunnelError(
    'passport/duplicate',
    `Cannot use passport: found the same entry twice among its ${subject}`,
  )
}

function wrongText(code: 'passport/name' | 'passport/cipher', found: string, expected: string) {
  return new TunnelError(
    code,
    `Cannot use passport: found ${JSON.stringify(found.slice(0, 80))}, expected ${expected}`,
  )
}

function needCount(count: number, max: number): void {
  if (count <= max) return
  throw new TunnelError(
    'passport/size',
    `Cannot use passport: found a list of ${count}, expected at most ${max}`,
  )
}

function needSize(length: number): void {
  if (length >= BYTES_MIN && length <= PASSPORT_BYTES_MAX) return
  throw new TunnelError(
    'passport/size',
    `Cannot use passport: found ${length} bytes, expected ${BYTES_MIN} to ${PASSPORT_BYTES_MAX}`,
  )
}

function needLength(subject: string, bytes: Uint8Array, expected: number): void {
  if (bytes.length === expected) return
  throw new TunnelError(
    'passport/length',
    `Cannot use passport: found a ${subject} of ${bytes.length} bytes, expected ${expected}`,
  )
}
