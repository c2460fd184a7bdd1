/**
 * One direction of sealed records: a key and a counter that is never sent (The Noise Protocol
 * Framework, revision 34, §5.1). Under each key, no counter is used twice.
 */
import { EMPTY } from './bytes.ts'
import type { Crypto } from './crypto.ts'
import { AEAD_NONCE_BYTES, AEAD_TAG_BYTES, KEY_BYTES } from './crypto.ts'
import { isTunnelError, TunnelError } from './errors.ts'

// Specification constants.
/** Longest handshake message, and longest record with its tag (Noise §3). */
export const MESSAGE_BYTES_MAX = 65_535
/** Above the last counter that a record may have; Noise allows 2^64 - 2, a number holds this. */
export const COUNTER_LIMIT = Number.MAX_SAFE_INTEGER

export type Suite = 'aesgcm' | 'chachapoly'

/** One direction's key and counter (Noise §5.1). */
export class CipherState {
  readonly #crypto: Crypto
  readonly #suite: Suite
  #key: Uint8Array
  #counter = 0

  /** Keeps a copy of `key32`. Throws `noise/keys` when it is not 32 bytes. */
  constructor(options: { crypto: Crypto; suite: Suite; key32: Uint8Array; counter?: number }) {
    needKey('a cipher key', options.key32)
    this.#crypto = options.crypto
    this.#suite = options.suite
    this.#key = Uint8Array.from(options.key32)
    this.#counter = options.counter ?? 0
  }

  /** The number of the next record. */
  get counter(): number {
    return this.#counter
  }

  /**
   * Ciphertext, then the tag of 16, of the next record: in `into` where that is given, exactly
   * so long, and else in a new array. Throws `noise/size` above 65,535 bytes and
   * `noise/exhausted` once the counter has run out.
   */
  seal(associated: Uint8Array, plaintext: Uint8Array, into?: Uint8Array): Uint8Array {
    const sealed = this.sealAt(this.#counter, associated, plaintext, into)
    this.#counter++
    return sealed
  }

  /** The plaintext of the next record. Throws `noise/forged`, and then does not count it. */
  open(associated: Uint8Array, sealed: Uint8Array): Uint8Array {
    const plaintext = this.openAt(this.#counter, associated, sealed)
    this.#counter++
    return plaintext
  }

  /** As `seal`, under a counter of the caller's, who never names one twice. */
  sealAt(
    counter: number,
    associated: Uint8Array,
    plaintext: Uint8Array,
    into?: Uint8Array,
  ): Uint8Array {
    if (plaintext.length + AEAD_TAG_BYTES > MESSAGE_BYTES_MAX) {
      throw wrongSize('seal a record', plaintext.length, MESSAGE_BYTES_MAX - AEAD_TAG_BYTES)
    }
    const input = { key32: this.#key, nonce12: this.#nonce(counter), associated, plaintext, into }
    return this.#suite === 'aesgcm'
      ? this.#crypto.aesGcmSeal(input)
      : this.#crypto.chachaPolySeal(input)
  }

  /** As `open`, of the record that was sealed under `counter`. */
  openAt(counter: number, associated: Uint8Array, sealed: Uint8Array): Uint8Array {
    if (sealed.length > MESSAGE_BYTES_MAX) {
      throw wrongSize('open a record', sealed.length, MESSAGE_BYTES_MAX)
    }
    const input = { key32: this.#key, nonce12: this.#nonce(counter), associated, sealed }
    try {
      return this.#suite === 'aesgcm'
        ? this.#crypto.aesGcmOpen(input)
        : this.#crypto.chachaPolyOpen(input)
    } catch (cause) {
      throw isTunnelError(cause, 'crypto/forged') ? forged(cause) : cause
    }
  }

  /** The key becomes REKEY(key) (Noise §4.2, §11.3); the counter goes on. */
  rekey(): void {
    const next = this.#nextKey()
    this.erase()
    this.#key = next
  }

  /** Another cipher from counter 0 on, under REKEY(key); this one stays as it is. */
  rekeyed(): CipherState {
    const next = this.#nextKey()
    const state = new CipherState({ crypto: this.#crypto, suite: this.#suite, key32: next })
    next.fill(0)
    return state
  }

  /** Overwrites the key. What is sealed afterwards is sealed for nobody. */
  erase(): void {
    this.#key.fill(0)
  }

  #nextKey(): Uint8Array {
    const nonce12 = new Uint8Array(AEAD_NONCE_BYTES).fill(0xff, 4)
    const plaintext = new Uint8Array(KEY_BYTES)
    const input = { key32: this.#key, nonce12, associated: EMPTY, plaintext }
    const sealed = this.#suite === 'aesgcm'
      ? this.#crypto.aesGcmSeal(input)
      : this.#crypto.chachaPolySeal(input)
    return sealed.slice(0, KEY_BYTES)
  }

  /** Noise §12.3, §12.4: 32 zero bits, then the counter; big-endian for AESGCM, else little. */
  #nonce(counter: number): Uint8Array {
    if (!Number.isSafeInteger(counter) || counter < 0 || counter >= COUNTER_LIMIT) {
      throw new TunnelError(
        'noise/exhausted',
        `Cannot use counter ${counter}: expected 0 to ${COUNTER_LIMIT - 1}`,
        { hint: 'Open a new session' },
      )
    }
    const nonce = new Uint8Array(AEAD_NONCE_BYTES)
    const view = new DataView(nonce.buffer)
    const high = Math.floor(counter / 2 ** 32)
    if (this.#suite === 'aesgcm') {
      view.setUint32(4, high)
      view.setUint32(8, counter >>> 0)
    } else {
      view.setUint32(4, counter >>> 0, true)
      view.setUint32(8, high, true)
    }
    return nonce
  }
}

export function needKey(subject: string, key: Uint8Array | undefined): void {
  if (key?.length !== KEY_BYTES) {
    throw wrongKeys(subject, key === undefined ? 'none' : `${key.length} bytes, expected 32`)
  }
}

export function wrongKeys(subject: string, found: string): TunnelError {
  return new TunnelError('noise/keys', `Cannot use ${subject}: found ${found}`)
}

export function wrongSize(action: string, found: number, most: number): TunnelError {
  return new TunnelError(
    'noise/size',
    `Cannot ${action}: found ${found} bytes, expected at most ${most}`,
  )
}

function forged(cause: unknown): TunnelError {
  return new TunnelError(
    'noise/forged',
    'Cannot open sealed bytes: found a wrong tag, expected what was sealed under this key',
    { cause },
  )
}
