/**
 * Identities and the text forms of keys and names. The 32-byte public key is the agent or the
 * relay itself; everything written here is a way for people and URLs to say it.
 * docs/protocol.md §1.
 */
import { base32nopad, base64nopad } from '@scure/base'
import { fromHex, hex } from './bytes.ts'
import type { Crypto } from './crypto.ts'
import { HASH_BYTES, KEY_BYTES } from './crypto.ts'
import { TunnelError } from './errors.ts'

// Specification constants.
/** 32 bytes in base32 without padding; the last character carries one bit and four zeros. */
export const KEY_TEXT_LENGTH = 52
export const NAME_LENGTH_MAX = 63

const KEY_TEXT = /^[a-z2-7]{52}$/
const FINGERPRINT_TEXT = /^SHA256:[A-Za-z0-9+/]{43}$/
const CERTIFICATE_TEXT = /^[0-9A-F]{2}(?::[0-9A-F]{2}){31}$/
const NAME = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/

export interface Identity {
  /** 32 bytes, secret: it never leaves the machine. */
  seed: Uint8Array
  /** 32 bytes, the Ed25519 public key. */
  public: Uint8Array
}

/** A new identity from random bytes. */
export function generateIdentity(crypto: Crypto): Identity {
  const seed = crypto.randomBytes(KEY_BYTES)
  return { seed, public: crypto.ed25519Public(seed) }
}

/** `KEY`: 52 characters of lower-case base32. Throws `key/length` unless given 32 bytes. */
export function formatKey(publicKey: Uint8Array): string {
  needBytes('key', publicKey, KEY_BYTES)
  return base32nopad.encode(publicKey).toLowerCase()
}

/** The 32 bytes of a `KEY`. Throws `key/format` on any text that `formatKey` does not write. */
export function parseKey(text: string): Uint8Array {
  // One key has one spelling: two would be two hubs, two rows, two pins.
  if (!KEY_TEXT.test(text)) {
    throw wrongFormat(
      'key',
      `${text.length} characters`,
      `${KEY_TEXT_LENGTH} of lower-case a-z and 2-7`,
    )
  }
  try {
    // The decoder refuses bits after the end that are not zero.
    return base32nopad.decode(text.toUpperCase())
  } catch (cause) {
    throw wrongFormat('key', 'bits after its end', 'zeros there', cause)
  }
}

/** `SHA256:` and 43 characters of base64: what people compare, as OpenSSH prints it. */
export function fingerprint(crypto: Crypto, publicKey: Uint8Array): string {
  needBytes('fingerprint', publicKey, KEY_BYTES)
  return `SHA256:${base64nopad.encode(crypto.sha256(publicKey))}`
}

/** The 32 hashed bytes of a fingerprint. Throws `key/format` on any other text. */
export function parseFingerprint(text: string): Uint8Array {
  if (!FINGERPRINT_TEXT.test(text)) {
    throw wrongFormat(
      'fingerprint',
      `${text.length} characters`,
      'SHA256: and 43 characters of base64',
    )
  }
  try {
    return base64nopad.decode(text.slice('SHA256:'.length))
  } catch (cause) {
    throw wrongFormat('fingerprint', 'bits after its end', 'zeros there', cause)
  }
}

/** `AA:BB:…` of a certificate's SHA-256, as browsers and openssl show it. Throws `key/length`. */
export function formatCertificateFingerprint(sha256: Uint8Array): string {
  needBytes('certificate fingerprint', sha256, HASH_BYTES)
  return hex(sha256).toUpperCase().replace(/(..)(?!$)/g, '$1:')
}

/** The 32 bytes of `AA:BB:…`; lower case is taken too. Throws `key/format`. */
export function parseCertificateFingerprint(text: string): Uint8Array {
  const upper = text.toUpperCase()
  if (!CERTIFICATE_TEXT.test(upper)) {
    throw wrongFormat(
      'certificate fingerprint',
      `${text.length} characters`,
      '32 pairs of hex digits with colons between',
    )
  }
  return fromHex(upper.replaceAll(':', ''))
}

/** True for one DNS label: 1 to 63 of `a-z 0-9 -`, lower case, no hyphen at either end. */
export function isName(label: string): boolean {
  return NAME.test(label)
}

function needBytes(subject: string, bytes: Uint8Array, expected: number): void {
  if (bytes.length === expected) return
  throw new TunnelError(
    'key/length',
    `Cannot write ${subject}: found ${bytes.length} bytes, expected ${expected}`,
  )
}

function wrongFormat(
  subject: string,
  found: string,
  expected: string,
  cause?: unknown,
): TunnelError {
  return new TunnelError(
    'key/format',
    `Cannot read ${subject}: found ${found}, expected ${expected}`,
    { cause },
  )
}
