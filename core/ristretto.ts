/**
 * The door's second wing: the group ristretto255 (RFC 9496) and SHA-512, which pairing by a code
 * alone uses. They stay out of core/crypto.ts so that a relay is built without them.
 *
 * Elements are 32 bytes in the one canonical encoding, scalars 32 bytes, little-endian.
 */
import { ristretto255, ristretto255_hasher } from '@noble/curves/ed25519.js'
import { bytesToNumberLE } from '@noble/curves/utils.js'
import { hmac } from '@noble/hashes/hmac.js'
import { sha512 as nobleSha512 } from '@noble/hashes/sha2.js'
import type { Crypto } from './crypto.ts'
import { TunnelError } from './errors.ts'

// Specification constants.
export const ELEMENT_BYTES = 32
export const SCALAR_BYTES = 32
export const SHA512_BYTES = 64
/** Bytes that SHA-512 takes at once (FIPS 180-4). */
export const SHA512_BLOCK_BYTES = 128
/** Bits of the group's order, less one: every number of so many is below it. */
const GROUP_BITS = 252

/** 64 bytes over all parts in order (FIPS 180-4). */
export function sha512(...parts: Uint8Array[]): Uint8Array {
  const hash = nobleSha512.create()
  for (const part of parts) hash.update(part)
  return hash.digest()
}

/** 64 bytes over all parts in order (RFC 2104). */
export function hmacSha512(key: Uint8Array, ...parts: Uint8Array[]): Uint8Array {
  const mac = hmac.create(nobleSha512, key)
  for (const part of parts) mac.update(part)
  return mac.digest()
}

/** The element that 64 uniform bytes lead to (RFC 9496 §4.3.4); nobody knows its logarithm. */
export function deriveElement(uniform64: Uint8Array): Uint8Array {
  if (uniform64.length !== SHA512_BYTES) throw wrongLength('hash', uniform64, SHA512_BYTES)
  return ristretto255_hasher.deriveToCurve!(uniform64).toBytes()
}

/** 252 random bits, as draft-irtf-cfrg-cpace §8.3 recommends. */
export function randomScalar(crypto: Crypto): Uint8Array {
  const scalar = Uint8Array.from(crypto.randomBytes(SCALAR_BYTES))
  scalar[SCALAR_BYTES - 1]! &= 2 ** (GROUP_BITS % 8) - 1
  return scalar
}

/**
 * The element times the scalar. Throws `pake/element` when the bytes are not the canonical encoding
 * of an element, and when they or the result are the identity: it would fix the shared secret.
 */
export function multiplyElement(scalar32: Uint8Array, element32: Uint8Array): Uint8Array {
  if (scalar32.length !== SCALAR_BYTES) throw wrongLength('scalar', scalar32, SCALAR_BYTES)
  if (element32.length !== ELEMENT_BYTES) throw wrongLength('element', element32, ELEMENT_BYTES)
  const { Point } = ristretto255
  let product: InstanceType<typeof Point>
  try {
    product = Point.fromBytes(element32).multiply(bytesToNumberLE(scalar32) % Point.Fn.ORDER)
  } catch (cause) {
    throw wrongElement(cause)
  }
  if (product.is0()) throw wrongElement()
  return product.toBytes()
}

function wrongElement(cause?: unknown): TunnelError {
  return new TunnelError(
    'pake/element',
    'Cannot agree on a key: found bytes that are no element of the group but its identity or none, expected one that was made from the code',
    { cause },
  )
}

function wrongLength(subject: string, bytes: Uint8Array, expected: number): TunnelError {
  return new TunnelError(
    'pake/length',
    `Cannot use ${subject}: found ${bytes.length} bytes, expected ${expected}`,
  )
}
