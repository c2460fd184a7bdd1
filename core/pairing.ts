/**
 * Pairing by a code: two agents that share a few words and a relay prove to each other that they do,
 * by CPace, and then hand over their passports sealed. The relay in between, or a stranger who found
 * the room, may guess once; then the code is burned and both sides know.
 *
 *   greet_b    0x20  B  version 2 (1), nonce 16, identity 32
 *   pake_a     0x21  A  nonce 16, identity 32, Ya 32
 *   pake_b     0x22  B  Yb 32, tag 64
 *   confirm_a  0x23  A  tag 64
 *   sealed     0x24  both, A first: passport bytes16, name text8; AES-256-GCM, tag 16
 *   failed     0x25  both, in place of its next: reason 1
 *
 * Each in an envelope (type 1, length 3). A is who joins, B who made the room. Integers are
 * big-endian. docs/protocol.md §13.
 */
import { ByteReader, ByteWriter, concat, EMPTY, equal, utf8 } from './bytes.ts'
import type { Crypto } from './crypto.ts'
import { AEAD_NONCE_BYTES, AEAD_TAG_BYTES, KEY_BYTES } from './crypto.ts'
import type { Envelope, EnvelopeSizes } from './envelope.ts'
import { encodeEnvelope, EnvelopeReader } from './envelope.ts'
import { asTunnelError, TunnelError } from './errors.ts'
import { isName } from './key.ts'
import type { PakeResult } from './pake.ts'
import { Pake, PAKE_TAG_BYTES } from './pake.ts'
import type { Passport } from './passport.ts'
import { openPassport, PASSPORT_BYTES_MAX } from './passport.ts'
import { ELEMENT_BYTES } from './ristretto.ts'

// Specification constants.
export const PAIR_VERSION = 1
export const PAIR_STEP_MS_MAX = 10_000
const NONCE_BYTES = 16
const NAME_BYTES_MAX = 255
const CHANNEL_LABEL = utf8('sotto pair v1\0')
const FROM_A = 'sotto pair v1 from a'
const FROM_B = 'sotto pair v1 from b'

/** Every message with its body. Numbers are never reused. */
export const PAIR = Object.freeze({
  greet_b: 0x20, // version 2, nonce 16, identity 32
  pake_a: 0x21, // nonce 16, identity 32, Ya 32
  pake_b: 0x22, // Yb 32, tag 64
  confirm_a: 0x23, // tag 64
  sealed: 0x24, // ciphertext of passport bytes16 and name text8, tag 16
  failed: 0x25, // reason 1, see PAIR_FAILURE; the last
})

/** Why a side gave up, for the other to tell its owner. Numbers are never reused. */
export const PAIR_FAILURE = Object.freeze({
  guessed: 1, // a wrong tag: somebody did not have the words
  version: 2, // no version in common
  reflected: 3, // both identities are the same
  refused: 4, // anything else
})

const SIZES: EnvelopeSizes = new Map([
  [PAIR.greet_b, [2 + NONCE_BYTES + KEY_BYTES, 2 + NONCE_BYTES + KEY_BYTES]],
  [PAIR.pake_a, [NONCE_BYTES + KEY_BYTES + ELEMENT_BYTES, NONCE_BYTES + KEY_BYTES + ELEMENT_BYTES]],
  [PAIR.pake_b, [ELEMENT_BYTES + PAKE_TAG_BYTES, ELEMENT_BYTES + PAKE_TAG_BYTES]],
  [PAIR.confirm_a, [PAKE_TAG_BYTES, PAKE_TAG_BYTES]],
  [PAIR.sealed, [
    2 + 1 + 1 + AEAD_TAG_BYTES,
    2 + PASSPORT_BYTES_MAX + 1 + NAME_BYTES_MAX + AEAD_TAG_BYTES,
  ]],
  [PAIR.failed, [1, 1]],
])

export interface PairingOptions {
  crypto: Crypto
  /** Of the code. */
  room: number
  words: string
  /** Identity of the relay where both meet, 32 bytes. */
  relay: Uint8Array
  /** The own identity, 32 bytes, and its passport as it was signed. */
  identity: Uint8Array
  passport: Uint8Array
  /** Under which the peer may keep it: labels joined by dots. */
  name: string
  /** Milliseconds since 1970: passports are judged by it. */
  now: number
}

/** Who the other one is; the words proved it. */
export interface PairedPeer {
  identity: Uint8Array
  /** Opened, of that identity and valid. */
  passport: Passport
  passportBytes: Uint8Array
  /** What the peer calls itself: a proposal. */
  name: string
}

export interface PairingStep {
  /** Bytes to send; empty for none. */
  send: Uint8Array
  /** Set once: send, then end the stream. */
  peer?: PairedPeer
}

/** An error that goes with what the other side must still be told; `send` before the stream ends. */
export class PairingError extends TunnelError {
  readonly send: Uint8Array

  constructor(error: TunnelError, send: Uint8Array) {
    super(error.code, error.message, {
      cause: error.cause,
      ...(error.hint !== undefined && { hint: error.hint }),
    })
    this.send = send
  }
}

type Expected = 'greet_b' | 'pake_a' | 'pake_b' | 'confirm_a' | 'sealed' | 'nothing'

/** What both sides do alike: framing, order, errors, the sealed boxes. */
class Pairing {
  readonly #options: PairingOptions
  readonly #role: 'a' | 'b'
  readonly #reader = new EnvelopeReader(SIZES)
  readonly #nonce: Uint8Array
  #expected: Expected
  #pake: Pake | undefined
  #result: PakeResult | undefined
  /** Of the other side. */
  #identity: Uint8Array = EMPTY
  #burned = false
  #failed = false

  constructor(options: PairingOptions, role: 'a' | 'b') {
    this.#options = options
    this.#role = role
    this.#expected = role === 'a' ? 'greet_b' : 'pake_a'
    this.#nonce = options.crypto.randomBytes(NONCE_BYTES)
    for (const [subject, key] of [['relay', options.relay], ['own', options.identity]] as const) {
      if (key.length !== KEY_BYTES) throw pairError('length', `found a ${subject} identity cut off`)
    }
    if (!isPeerName(options.name)) throw pairError('name', 'found an own name that is none')
  }

  /** True once the other side could have tested a guess: these words must not serve again. */
  get burned(): boolean {
    return this.#burned
  }

  get done(): boolean {
    return this.#expected === 'nothing' && !this.#failed
  }

  /** The nonce that B greets with. */
  get nonce(): Uint8Array {
    return this.#nonce
  }

  /**
   * Takes bytes of the stream in any pieces. Throws a `PairingError`: `pair/guessed` when the other
   * side did not have the words, or said that we did not; `pair/reflected`, `pair/version`,
   * `pair/refused`, `pair/envelope`, `pair/order`, `pair/forged`, `pair/name`, `pake/element`,
   * `pake/reflected`, and what `openPassport` throws. After one nothing more is taken.
   */
  receive(chunk: Uint8Array): PairingStep {
    if (this.#failed) throw new PairingError(pairError('order', 'found bytes after the end'), EMPTY)
    const send: Uint8Array[] = []
    try {
      this.#reader.push(chunk)
      let peer: PairedPeer | undefined
      for (let envelope = this.#next(); envelope; envelope = this.#next()) {
        const step = this.#take(envelope)
        send.push(step.send)
        peer ??= step.peer
      }
      return { send: concat(...send), ...(peer && { peer }) }
    } catch (cause) {
      this.#failed = true
      const error = this.#judge(asTunnelError(cause, 'pair/refused'))
      // The other side said so itself: it needs no answer.
      const told = error instanceof PairingError
        ? EMPTY
        : encodeEnvelope(PAIR.failed, Uint8Array.of(failureOf(error)))
      throw new PairingError(error, concat(...send, told))
    }
  }

  /**
   * The stream ended, or a step took too long: the error to tell, undefined after a good end.
   * `pair/guessed` where a stranger would just have left: after B showed its tag and before A did.
   */
  ended(): TunnelError | undefined {
    if (this.done) return undefined
    const left = this.#role === 'b' && this.#expected === 'confirm_a' && !this.#failed
    this.#failed = true
    return left ? guessed('found that the other side left when it saw the proof') : pairError(
      'truncated',
      `found the end of the stream, expected ${this.#expected}`,
      { hint: 'Try again with a new code.' },
    )
  }

  /** Whatever comes in place of A's proof may be a guess that failed: it must not pass for less. */
  #judge(error: TunnelError): TunnelError {
    if (this.#expected !== 'confirm_a' || error.code === 'pair/guessed') return error
    const told = error instanceof PairingError
    const judged = guessed('found no proof from the other side, which saw ours', error)
    return told ? new PairingError(judged, EMPTY) : judged
  }

  #next(): Envelope | undefined {
    try {
      return this.#reader.next()
    } catch (cause) {
      throw new TunnelError('pair/envelope', (cause as Error).message, { cause })
    }
  }

  #take({ type, body }: Envelope): PairingStep {
    if (type === PAIR.failed) throw new PairingError(toldFailure(body[0]!), EMPTY)
    const expected = this.#expected
    if (expected === 'nothing' || type !== PAIR[expected]) {
      throw pairError('order', `found message ${type}, expected ${expected}`)
    }
    // A view into what came: the carrier may use its buffer again.
    const reader = new ByteReader(Uint8Array.from(body), 'pair', expected)
    if (expected === 'greet_b') return this.#takeGreeting(reader)
    if (expected === 'pake_a') return this.#takeShareOfA(reader)
    if (expected === 'pake_b') return this.#takeShareOfB(reader)
    if (expected === 'confirm_a') return this.#takeTagOfA(reader)
    return this.#takeSealed(reader.rest())
  }

  #takeGreeting(reader: ByteReader): PairingStep {
    const version = reader.u16()
    if (version !== PAIR_VERSION) throw wrongVersion(`version ${version}`)
    const nonce = reader.bytes(NONCE_BYTES)
    const pake = this.#begin(nonce, this.#nonce, reader.bytes(KEY_BYTES))
    this.#expected = 'pake_b'
    const body = concat(this.#nonce, this.#options.identity, pake.share)
    return { send: encodeEnvelope(PAIR.pake_a, body) }
  }

  #takeShareOfA(reader: ByteReader): PairingStep {
    const pake = this.#begin(this.#nonce, reader.bytes(NONCE_BYTES), reader.bytes(KEY_BYTES))
    const result = pake.finish(reader.bytes(ELEMENT_BYTES), this.#identity)
    this.#result = result
    this.#expected = 'confirm_a'
    // From here on the other side can test one guess against the tag.
    this.#burned = true
    return { send: encodeEnvelope(PAIR.pake_b, concat(pake.share, result.tag)) }
  }

  #takeShareOfB(reader: ByteReader): PairingStep {
    const result = this.#pake!.finish(reader.bytes(ELEMENT_BYTES), this.#identity)
    this.#burned = true
    this.#needTag(reader.bytes(PAKE_TAG_BYTES), result)
    this.#result = result
    this.#expected = 'sealed'
    return { send: concat(encodeEnvelope(PAIR.confirm_a, result.tag), this.#sealed()) }
  }

  #takeTagOfA(reader: ByteReader): PairingStep {
    this.#needTag(reader.bytes(PAKE_TAG_BYTES), this.#result!)
    this.#expected = 'sealed'
    return { send: EMPTY }
  }

  #takeSealed(sealed: Uint8Array): PairingStep {
    const { crypto, now } = this.#options
    let opened: Uint8Array
    try {
      opened = crypto.aesGcmOpen({ ...this.#box(this.#role === 'a' ? FROM_B : FROM_A), sealed })
    } catch (cause) {
      throw pairError('forged', 'found a box that was not sealed with the key of the words', {
        cause,
      })
    }
    const reader = new ByteReader(opened, 'pair', 'sealed')
    const passportBytes = reader.bytes16()
    const name = reader.text8()
    reader.end()
    if (!isPeerName(name)) throw pairError('name', 'found a name of the peer that is none')
    const passport = openPassport(crypto, passportBytes, { now, identity: this.#identity })
    const send = this.#role === 'b' ? this.#sealed() : EMPTY
    this.#expected = 'nothing'
    this.#result!.key.fill(0)
    return { send, peer: { identity: this.#identity, passport, passportBytes, name } }
  }

  /** Both nonces and identities are there: the generator can be computed. */
  #begin(nonceB: Uint8Array, nonceA: Uint8Array, identity: Uint8Array): Pake {
    const { crypto, room, words, relay, identity: own } = this.#options
    if (equal(identity, own)) {
      throw pairError('reflected', 'found the own identity at the other end', {
        hint: 'Pair from another profile: an agent cannot pair with itself.',
      })
    }
    this.#identity = identity
    this.#pake = new Pake({
      crypto,
      role: this.#role,
      password: utf8(words),
      channel: new ByteWriter().bytes(CHANNEL_LABEL).text8(`${room}`).bytes(relay).done(),
      session: concat(nonceB, nonceA),
      associated: own,
    })
    return this.#pake
  }

  #needTag(tag: Uint8Array, { expected }: PakeResult): void {
    if (!equal(tag, expected)) throw guessed('found a wrong proof from the other side')
  }

  #sealed(): Uint8Array {
    const { crypto, passport, name } = this.#options
    const box = this.#box(this.#role === 'a' ? FROM_A : FROM_B)
    const plaintext = new ByteWriter().bytes16(passport).text8(name).done()
    return encodeEnvelope(PAIR.sealed, crypto.aesGcmSeal({ ...box, plaintext }))
  }

  /** Each key seals one box. */
  #box(info: string): { key32: Uint8Array; nonce12: Uint8Array; associated: Uint8Array } {
    const { crypto } = this.#options
    const key32 = crypto.hkdfSha256({ key: this.#result!.key, salt: EMPTY, info, bytes: KEY_BYTES })
    return { key32, nonce12: new Uint8Array(AEAD_NONCE_BYTES), associated: EMPTY }
  }
}

/** B, whose room it is. One for each stream that comes, until one of them has `burned` the words. */
export class PairMaker extends Pairing {
  readonly #identity: Uint8Array

  constructor(options: PairingOptions) {
    super(options, 'b')
    this.#identity = options.identity
  }

  /** What B sends at once. */
  start(): Uint8Array {
    const body = new ByteWriter().u16(PAIR_VERSION).bytes(this.nonce).bytes(this.#identity)
    return encodeEnvelope(PAIR.greet_b, body.done())
  }
}

/** A, who typed the code; B speaks first. */
export class PairJoiner extends Pairing {
  constructor(options: PairingOptions) {
    super(options, 'a')
  }
}

/** True for labels joined by dots, at most 127 characters. */
export function isPeerName(name: string): boolean {
  return name.length <= 127 && name.split('.').every(isName)
}

function failureOf(error: TunnelError): number {
  const reason = error.code.replace('pair/', '') as keyof typeof PAIR_FAILURE
  return PAIR_FAILURE[reason] ?? PAIR_FAILURE.refused
}

function toldFailure(reason: number): TunnelError {
  if (reason === PAIR_FAILURE.guessed) {
    return guessed('found that the other side could not check our proof')
  }
  if (reason === PAIR_FAILURE.version) return wrongVersion('that the other side knows another one')
  if (reason === PAIR_FAILURE.reflected) {
    return pairError('reflected', 'found that both ends have one identity')
  }
  return pairError('refused', 'found that the other side gave up')
}

/** Told on both sides in the same words: either may be the one who was attacked. */
function guessed(found: string, cause?: unknown): TunnelError {
  return pairError('guessed', `${found}: somebody guessed, or the code was mistyped`, {
    hint: 'The code is burned. Make a new one with: sotto pair',
    cause,
  })
}

function wrongVersion(found: string): TunnelError {
  return pairError('version', `found ${found}, expected ${PAIR_VERSION}`, {
    hint: 'Update sotto on the older of the two machines.',
  })
}

function pairError(
  reason: string,
  found: string,
  options: { hint?: string; cause?: unknown } = {},
): TunnelError {
  return new TunnelError(`pair/${reason}`, `Cannot pair: ${found}`, options)
}
