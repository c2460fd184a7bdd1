/**
 * CPace (draft-irtf-cfrg-cpace-21, suite CPACE-RISTR255-SHA512, initiator and responder): two who
 * share a few words agree on a strong key, and whoever sits between them, or plays one of them,
 * may test one guess in each run and none afterwards. With the explicit key confirmation of
 * §10.4, so that both know at once whether the other had the same words.
 *
 *   generator  = derive(SHA-512(lv_cat(DSI, PRS, zeros, CI, sid)))
 *   Ya, Yb     = ya · generator, yb · generator
 *   ISK        = SHA-512(lv_cat(DSI "_ISK", sid, ya · Yb) ‖ lv_cat(Ya, ADa) ‖ lv_cat(Yb, ADb))
 *   tags       = HMAC-SHA512(SHA-512("CPaceMac" ‖ sid ‖ ISK), lv_cat(Y, AD) of the sender)
 *
 * docs/protocol.md §13.
 */
import { concat, equal, utf8 } from './bytes.ts'
import type { Crypto } from './crypto.ts'
import { TunnelError } from './errors.ts'
import {
  deriveElement,
  hmacSha512,
  multiplyElement,
  randomScalar,
  sha512,
  SHA512_BLOCK_BYTES,
} from './ristretto.ts'

// Specification constants.
export const PAKE_TAG_BYTES = 64
const DSI = utf8('CPaceRistretto255')
const DSI_ISK = utf8('CPaceRistretto255_ISK')
const MAC_LABEL = utf8('CPaceMac')

/** What both must hold alike, or their keys differ. */
export interface PakeInputs {
  /** PRS: the secret of few bits. */
  password: Uint8Array
  /** CI: where the two meet. */
  channel: Uint8Array
  /** sid: of this run alone, from random bytes of both. */
  session: Uint8Array
}

export interface PakeOptions extends PakeInputs {
  crypto: Crypto
  /** A speaks first. */
  role: 'a' | 'b'
  /** ADa or ADb: what the own side says of itself in clear. */
  associated: Uint8Array
  /** For test vectors: 32 bytes, else random. Never used twice. */
  scalar?: Uint8Array
}

export interface PakeResult {
  /** ISK, 64 bytes: feed it to a key derivation, then forget it. */
  key: Uint8Array
  /** The own tag, 64 bytes, that proves the key to the other side. */
  tag: Uint8Array
  /** What the other side's tag must equal; compare in constant time. */
  expected: Uint8Array
}

/** One side of one run. */
export class Pake {
  readonly #options: PakeOptions
  readonly #share: Uint8Array
  #scalar: Uint8Array | undefined

  constructor(options: PakeOptions) {
    this.#options = options
    const scalar = Uint8Array.from(options.scalar ?? randomScalar(options.crypto))
    this.#share = multiplyElement(scalar, pakeGenerator(options))
    this.#scalar = scalar
  }

  /** Ya or Yb, 32 bytes, to send. */
  get share(): Uint8Array {
    return this.#share
  }

  /**
   * Takes the other side's share and associated data. Throws `pake/element` on bytes that are no
   * element or the identity, `pake/reflected` on the own share, `pake/used` the second time.
   */
  finish(share: Uint8Array, associated: Uint8Array): PakeResult {
    const { role, session } = this.#options
    const scalar = this.#scalar
    // A scalar that served twice would let the other side test a second guess.
    this.#scalar = undefined
    if (!scalar) {
      throw new TunnelError('pake/used', 'Cannot agree on a key: found a second share for one run')
    }
    if (equal(share, this.#share)) {
      throw new TunnelError(
        'pake/reflected',
        'Cannot agree on a key: found the own share come back',
      )
    }
    const shared = multiplyElement(scalar, share)
    scalar.fill(0)
    const own = lvCat(this.#share, this.#options.associated)
    const other = lvCat(share, associated)
    const transcript = role === 'a' ? concat(own, other) : concat(other, own)
    const key = sha512(lvCat(DSI_ISK, session, shared), transcript)
    shared.fill(0)
    const macKey = sha512(MAC_LABEL, session, key)
    return { key, tag: hmacSha512(macKey, own), expected: hmacSha512(macKey, other) }
  }
}

/** The element that the password leads to. */
export function pakeGenerator(inputs: PakeInputs): Uint8Array {
  return deriveElement(sha512(generatorString(inputs)))
}

/** What is hashed for it: the password fills one block, so that its length takes no time of its own. */
export function generatorString({ password, channel, session }: PakeInputs): Uint8Array {
  const head = prependLength(DSI).length + prependLength(password).length
  const zeros = new Uint8Array(Math.max(0, SHA512_BLOCK_BYTES - 1 - head))
  return lvCat(DSI, password, zeros, channel, session)
}

/** Each part with its length before it, so that no two lists of parts read the same. */
export function lvCat(...parts: Uint8Array[]): Uint8Array {
  return concat(...parts.map(prependLength))
}

/** The length in LEB128, then the bytes. */
export function prependLength(bytes: Uint8Array): Uint8Array {
  const length: number[] = []
  let left = bytes.length
  do {
    length.push(left > 0x7f ? left & 0x7f | 0x80 : left)
    left >>>= 7
  } while (left > 0)
  return concat(Uint8Array.from(length), bytes)
}
