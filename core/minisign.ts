/**
 * Signatures in minisign's format, by which releases are signed: made here, checked here, and by the
 * `minisign` of any distribution. Only the prehashed kind ("ED"); keys rest unencrypted, as
 * `minisign -G -W` makes them.
 *
 *   public key   base64 of   "Ed" 2, key id 8, Ed25519 public key 32
 *   secret key   base64 of   "Ed" 2, no cipher 00 00 2, "B2" 2, zeros 48, key id 8, seed 32, public 32,
 *                            BLAKE2b-256 of "Ed", key id, seed, public, or zeros 32
 *   signature    base64 of   "ED" 2, key id 8, Ed25519 over BLAKE2b-512 of the message 64
 *   global       base64 of   Ed25519 over the 64 bytes above and the trusted comment 64
 *
 * Each file: a line "untrusted comment: …", then the base64; a signature's third and fourth line are
 * "trusted comment: …" and the global signature. A key id is shown as hexadecimal, last byte first.
 */
import { base64 } from '@scure/base'
import { concat, equal, hex, utf8 } from './bytes.ts'
import type { Crypto } from './crypto.ts'
import { KEY_BYTES, SIGNATURE_BYTES } from './crypto.ts'
import { TunnelError } from './errors.ts'

// Specification constants (minisign(1), "Signature format").
export const MINISIGN_ID_BYTES = 8
const KEY_KIND = utf8('Ed')
const SIGNATURE_KIND = utf8('ED')
const CHECKSUM_KIND = utf8('B2')
const NO_CIPHER = Uint8Array.of(0, 0)
/** Salt and two limits, of a key that is encrypted. */
const CIPHER_BYTES = 32 + 8 + 8
const CHECKSUM_BYTES = 32
const SECRET_BYTES = 6 + CIPHER_BYTES + MINISIGN_ID_BYTES + 2 * KEY_BYTES + CHECKSUM_BYTES
const UNTRUSTED = 'untrusted comment: '
const TRUSTED = 'trusted comment: '

// Our own limits.
/** Of a key or signature file as a whole; minisign itself allows about as much. */
export const MINISIGN_FILE_CHARS_MAX = 12_000
export const TRUSTED_COMMENT_CHARS_MAX = 1024

export interface MinisignKey {
  /** 8 bytes. */
  id: Uint8Array
  /** 32 bytes. */
  public32: Uint8Array
}

export interface MinisignSecret extends MinisignKey {
  /** 32 bytes. */
  seed32: Uint8Array
}

/** What is known once a signature holds. */
export interface Minisigned {
  key: MinisignKey
  /** Signed too; printable. */
  trustedComment: string
}

/** As minisign prints it: up to 16 hexadecimal digits, upper case. */
export function formatKeyId({ id }: Pick<MinisignKey, 'id'>): string {
  return hex(Uint8Array.from(id).reverse()).toUpperCase().replace(/^0+(?=.)/, '')
}

export function encodeMinisignKey(key: MinisignKey): string {
  const line = base64.encode(concat(KEY_KIND, key.id, key.public32))
  return `${UNTRUSTED}minisign public key ${formatKeyId(key)}\n${line}\n`
}

/** Of a whole file, or of its base64 alone. Throws `minisign/key`. */
export function decodeMinisignKey(text: string): MinisignKey {
  const bytes = keyBytes(text, 'public key')
  if (bytes.length !== 2 + MINISIGN_ID_BYTES + KEY_BYTES) {
    throw wrongKey('public key', 'another length')
  }
  return { id: bytes.slice(2, 2 + MINISIGN_ID_BYTES), public32: bytes.slice(-KEY_BYTES) }
}

export function encodeMinisignSecret(secret: MinisignSecret, crypto: Crypto): string {
  const body = concat(secret.id, secret.seed32, secret.public32)
  const line = base64.encode(concat(
    KEY_KIND,
    NO_CIPHER,
    CHECKSUM_KIND,
    new Uint8Array(CIPHER_BYTES),
    body,
    crypto.blake2b(concat(KEY_KIND, body), CHECKSUM_BYTES),
  ))
  return `${UNTRUSTED}minisign secret key ${formatKeyId(secret)}\n${line}\n`
}

/** Throws `minisign/key`, also on a key that is encrypted: `minisign` itself signs with those. */
export function decodeMinisignSecret(text: string, crypto: Crypto): MinisignSecret {
  const bytes = keyBytes(text, 'secret key')
  if (bytes.length !== SECRET_BYTES) throw wrongKey('secret key', 'another length')
  if (!equal(bytes.subarray(2, 4), NO_CIPHER)) {
    throw new TunnelError(
      'minisign/key',
      'Cannot read the secret key: found an encrypted one, expected one without a password',
      { hint: 'Sign with "minisign -S -s KEY -m FILE", or make a key by "minisign -G -W".' },
    )
  }
  if (!equal(bytes.subarray(4, 6), CHECKSUM_KIND)) throw wrongKey('secret key', 'another checksum')
  const body = bytes.subarray(6 + CIPHER_BYTES, -CHECKSUM_BYTES)
  const checksum = bytes.subarray(-CHECKSUM_BYTES)
  // Some versions of minisign leave it out of keys that are not encrypted.
  if (
    !equal(checksum, new Uint8Array(CHECKSUM_BYTES)) &&
    !equal(checksum, crypto.blake2b(concat(KEY_KIND, body), CHECKSUM_BYTES))
  ) throw wrongKey('secret key', 'a wrong checksum')
  const seed32 = body.slice(MINISIGN_ID_BYTES, MINISIGN_ID_BYTES + KEY_BYTES)
  const public32 = body.slice(-KEY_BYTES)
  // A public half of another key would make signatures that give the private one away.
  if (!equal(crypto.ed25519Public(seed32), public32)) {
    throw wrongKey('secret key', 'halves that do not belong together')
  }
  return { id: body.slice(0, MINISIGN_ID_BYTES), seed32, public32 }
}

/** A new key; its id is random. */
export function makeMinisignSecret(crypto: Crypto): MinisignSecret {
  const seed32 = crypto.randomBytes(KEY_BYTES)
  return {
    id: crypto.randomBytes(MINISIGN_ID_BYTES),
    seed32,
    public32: crypto.ed25519Public(seed32),
  }
}

/**
 * The text of a `.minisig` file. The same message, key and comment give the same bytes. Throws
 * `minisign/comment` on a trusted comment that is too long or not printable ASCII.
 */
export function signMinisign(
  message: Uint8Array,
  { secret, trustedComment, crypto }: {
    secret: MinisignSecret
    trustedComment: string
    crypto: Crypto
  },
): string {
  checkComment(trustedComment)
  const signature = crypto.ed25519Sign(secret.seed32, crypto.blake2b(message, 64))
  const global = crypto.ed25519Sign(secret.seed32, concat(signature, utf8(trustedComment)))
  return [
    `${UNTRUSTED}signature from minisign secret key`,
    base64.encode(concat(SIGNATURE_KIND, secret.id, signature)),
    `${TRUSTED}${trustedComment}`,
    base64.encode(global),
    '',
  ].join('\n')
}

/**
 * Checks a `.minisig` file of `message` against the keys that are trusted. Throws `minisign/signature`
 * where it is no signature, `minisign/unknown` where none of the keys made it, `minisign/forged`
 * where message or comment are not what was signed.
 */
export function verifyMinisign(
  message: Uint8Array,
  { signature: text, keys, crypto }: {
    signature: string
    keys: readonly MinisignKey[]
    crypto: Crypto
  },
): Minisigned {
  const { id, signature, trustedComment, global } = decodeSignature(text)
  const key = keys.find((one) => equal(one.id, id))
  if (!key) {
    throw new TunnelError(
      'minisign/unknown',
      `Cannot check the signature: found one by key ${formatKeyId({ id })}, expected one by ${
        keys.map(formatKeyId).join(' or ') || 'a key that is trusted'
      }`,
    )
  }
  const holds = crypto.ed25519Verify(key.public32, crypto.blake2b(message, 64), signature) &&
    crypto.ed25519Verify(key.public32, concat(signature, utf8(trustedComment)), global)
  if (!holds) {
    throw new TunnelError(
      'minisign/forged',
      `Cannot check the signature: found another content than key ${formatKeyId(key)} signed`,
    )
  }
  return { key, trustedComment }
}

interface Signature {
  id: Uint8Array
  signature: Uint8Array
  trustedComment: string
  global: Uint8Array
}

function decodeSignature(text: string): Signature {
  const [untrusted = '', first = '', trusted = '', second = '', ...rest] = linesOf(
    text,
    'signature',
  )
  const comment = trusted.slice(TRUSTED.length)
  if (!untrusted.startsWith(UNTRUSTED) || !trusted.startsWith(TRUSTED) || rest.length > 0) {
    throw wrongSignature('other lines')
  }
  checkComment(comment)
  const bytes = fromBase64(first)
  const global = fromBase64(second)
  if (
    bytes?.length !== 2 + MINISIGN_ID_BYTES + SIGNATURE_BYTES || global?.length !== SIGNATURE_BYTES
  ) throw wrongSignature('another length, or no base64')
  if (!equal(bytes.subarray(0, 2), SIGNATURE_KIND)) {
    throw wrongSignature('one of the old kind, which is not prehashed')
  }
  return {
    id: bytes.subarray(2, 2 + MINISIGN_ID_BYTES),
    signature: bytes.subarray(2 + MINISIGN_ID_BYTES),
    trustedComment: comment,
    global,
  }
}

/** A trusted comment is shown to people and read by programs: nothing in it may steer a terminal. */
function checkComment(comment: string): void {
  if (comment.length <= TRUSTED_COMMENT_CHARS_MAX && /^[\x20-\x7e\t]*$/.test(comment)) return
  throw new TunnelError(
    'minisign/comment',
    `Cannot take the trusted comment: expected printable ASCII, at most ${TRUSTED_COMMENT_CHARS_MAX} characters`,
  )
}

/** Lines without their ends; what an editor adds at the end of the file does no harm. */
function linesOf(text: string, subject: 'public key' | 'secret key' | 'signature'): string[] {
  if (text.length > MINISIGN_FILE_CHARS_MAX) {
    throw subject === 'signature' ? wrongSignature('more') : wrongKey(subject, 'more')
  }
  return text.replace(/\s+$/, '').split(/\r?\n/)
}

function keyBytes(text: string, subject: 'public key' | 'secret key'): Uint8Array {
  const lines = linesOf(text, subject)
  const bytes = fromBase64(lines.at(-1) ?? '')
  if (lines.length > 2 || (lines.length === 2 && !lines[0]!.startsWith(UNTRUSTED)) || !bytes) {
    throw wrongKey(subject, 'something else')
  }
  if (!equal(bytes.subarray(0, 2), KEY_KIND)) throw wrongKey(subject, 'another kind of key')
  return bytes
}

function fromBase64(line: string): Uint8Array | undefined {
  try {
    return base64.decode(line)
  } catch {
    return undefined
  }
}

function wrongKey(subject: string, found: string): TunnelError {
  return new TunnelError(
    'minisign/key',
    `Cannot read the ${subject}: found ${found}, expected one in minisign's format`,
  )
}

function wrongSignature(found: string): TunnelError {
  return new TunnelError(
    'minisign/signature',
    `Cannot read the signature: found ${found}, expected four lines in minisign's format`,
  )
}
