/**
 * The records of a session, one object for each direction: sealing and opening in order under
 * counters that are never sent, a new key by bytes, records and time, and the sealed bytes that
 * the other side has not acknowledged, kept so that they can be sent again on another carrier and
 * are never sealed again. No carrier here. docs/protocol.md §10.
 */
import { EMPTY } from './bytes.ts'
import type { Clock, Timer } from './clock.ts'
import {
  ENVELOPE,
  type Envelope,
  ENVELOPE_HEADER_BYTES,
  pad,
  RECORD_BYTES_MAX,
  RECORD_TAG_BYTES,
  type RecordName,
  unpad,
  writeHeader,
} from './envelope.ts'
import { isTunnelError, TunnelError } from './errors.ts'

// Specification constants.
export const REKEY_BYTES = 2 ** 30
export const REKEY_RECORDS = 2 ** 20
export const REKEY_MS = 600_000
/** A receiver lets a sender be this many times late. */
const REKEY_LATE = 2
/** What is kept until it is acknowledged; `hasRoom` is false from here on. */
export const RESEND_BYTES_MAX = 16_777_216
/** Of records that are not acks, opened since the last ack; and how long the first may wait. */
export const ACK_BYTES = 262_144
export const ACK_MS = 50

// Our own choices.
/** Small records cost more than their bytes. */
export const RESEND_RECORDS_MAX = 65_536
/**
 * Acks, checkpoints and the end pass even then, or two sides that are both full would wait for
 * each other. A peer that lets so much pile up acknowledges nothing.
 */
export const RESERVE_BYTES_MAX = 1_048_576
export const RESERVE_RECORDS_MAX = 8192
/** Emptied slots at the head of the list before it is compacted. */
const SLACK_MAX = 1024

/** One direction's key and counter; core/noise.ts has it. */
export interface RecordCipher {
  /** Of the next record. */
  readonly counter: number
  seal(associated: Uint8Array, plaintext: Uint8Array, into?: Uint8Array): Uint8Array
  /** Throws, and then does not count. */
  open(associated: Uint8Array, sealed: Uint8Array): Uint8Array
  rekey(): void
  erase(): void
}

/** Told of each record once, in the order of its direction; the arrays are valid during the call. */
export type OnRecord = (
  record: { counter: number; type: number; length: number; tag: Uint8Array },
) => void

export interface RecordOptions {
  cipher: RecordCipher
  clock: Clock
  onRecord: OnRecord
}

/** How much one key has sealed or opened. */
class KeyUse {
  bytes = 0
  records = 0
  sinceMs: number

  constructor(nowMs: number) {
    this.sinceMs = nowMs
  }

  add(bytes: number): void {
    this.bytes += bytes
    this.records++
  }

  reaches(times: number): boolean {
    return this.bytes >= times * REKEY_BYTES || this.records >= times * REKEY_RECORDS
  }

  reset(nowMs: number): void {
    this.bytes = 0
    this.records = 0
    this.sinceMs = nowMs
  }
}

export class RecordSender {
  readonly #cipher: RecordCipher
  readonly #clock: Clock
  readonly #onRecord: OnRecord
  readonly #use: KeyUse
  /** Envelopes from `#acknowledged` on, sealed, in order; those before `#head` are gone. */
  #kept: (Uint8Array | undefined)[] = []
  #head = 0
  #keptBytes = 0
  #acknowledged = 0
  /** Of the peer's records; what it said when it resumed may be ahead of those still under way. */
  #lastAck = 0
  /** The number of the next record that goes to the carrier. */
  #next = 0
  #unwrittenBytes = 0
  #erased = false

  constructor({ cipher, clock, onRecord }: RecordOptions) {
    this.#cipher = cipher
    this.#clock = clock
    this.#onRecord = onRecord
    this.#use = new KeyUse(clock.monotonic())
  }

  /** Records sealed so far. */
  get sealed(): number {
    return this.#cipher.counter
  }

  get acknowledged(): number {
    return this.#acknowledged
  }

  /** Sealed bytes that wait for an acknowledgement. */
  get keptBytes(): number {
    return this.#keptBytes
  }

  /** Of these, what was not taken by `take` since the last `rewind`. */
  get unwrittenBytes(): number {
    return this.#unwrittenBytes
  }

  get hasRoom(): boolean {
    return this.#keptBytes < RESEND_BYTES_MAX &&
      this.#kept.length - this.#head < RESEND_RECORDS_MAX
  }

  /**
   * Seals `rekey` first where the key has served its time; before what must be the very next
   * record, such as a checkpoint.
   */
  refresh(): void {
    const old = this.#clock.monotonic() - this.#use.sinceMs >= REKEY_MS
    if (!this.#use.reaches(1) && !(old && this.#use.records > 0)) return
    this.#seal(ENVELOPE.rekey, pad(EMPTY))
    this.#cipher.rekey()
    this.#use.reset(this.#clock.monotonic())
  }

  /**
   * Seals one record; `take` gives it out. `content` is padded, but for `data`. Throws
   * `session/size` when it is too long, and `session/unacknowledged` when the peer lets more pile
   * up than `hasRoom` and the reserve allow.
   */
  seal(name: RecordName, content: Uint8Array): void {
    const plaintext = name === 'data' ? content : pad(content)
    if (plaintext.length > RECORD_BYTES_MAX) {
      throw new TunnelError(
        'session/size',
        `Cannot send ${name}: found ${plaintext.length} bytes, expected at most ${RECORD_BYTES_MAX}`,
      )
    }
    if (
      this.#keptBytes >= RESEND_BYTES_MAX + RESERVE_BYTES_MAX ||
      this.#kept.length - this.#head >= RESEND_RECORDS_MAX + RESERVE_RECORDS_MAX
    ) {
      throw new TunnelError(
        'session/unacknowledged',
        `Cannot send ${name}: found ${this.#keptBytes} bytes that the peer has not acknowledged`,
      )
    }
    this.refresh()
    this.#seal(ENVELOPE[name], plaintext)
  }

  #seal(type: number, plaintext: Uint8Array): void {
    if (this.#erased) {
      throw new TunnelError('session/closed', 'Cannot send a record: found the session closed')
    }
    const counter = this.#cipher.counter
    const length = plaintext.length + RECORD_TAG_BYTES
    const envelope = new Uint8Array(ENVELOPE_HEADER_BYTES + length)
    const header = writeHeader(envelope, type, length).subarray(0, ENVELOPE_HEADER_BYTES)
    this.#cipher.seal(header, plaintext, envelope.subarray(ENVELOPE_HEADER_BYTES))
    this.#use.add(length)
    this.#kept.push(envelope)
    this.#keptBytes += envelope.length
    this.#unwrittenBytes += envelope.length
    this.#onRecord({ counter, type, length, tag: envelope.subarray(-RECORD_TAG_BYTES) })
  }

  /** The next envelope for the carrier, undefined when all have gone. It must not be changed. */
  take(): Uint8Array | undefined {
    const envelope = this.#kept[this.#head + this.#next - this.#acknowledged]
    if (envelope === undefined) return undefined
    this.#next++
    this.#unwrittenBytes -= envelope.length
    return envelope
  }

  /** The peer has opened that many, a record of it says. Throws `session/ack` where it cannot. */
  acknowledge(received: number): void {
    this.#needRange(received, this.#lastAck)
    this.#lastAck = received
    this.#release(received)
  }

  /**
   * A new carrier: `take` goes on from record `received`, which the peer has said to expect.
   * Throws `session/ack` where that record is gone or was never sealed.
   */
  rewind(received: number): void {
    this.#needRange(received, this.#acknowledged)
    this.#release(received)
    this.#next = received
    this.#unwrittenBytes = this.#keptBytes
  }

  #needRange(received: number, least: number): void {
    if (received >= least && received <= this.#cipher.counter) return
    throw new TunnelError(
      'session/ack',
      `Cannot take ack: found ${received}, expected ${least} to ${this.#cipher.counter}`,
    )
  }

  #release(received: number): void {
    while (this.#acknowledged < received) {
      const envelope = this.#kept[this.#head]!
      this.#kept[this.#head++] = undefined
      this.#keptBytes -= envelope.length
      if (this.#next === this.#acknowledged) {
        this.#next++
        this.#unwrittenBytes -= envelope.length
      }
      this.#acknowledged++
    }
    if (this.#head === this.#kept.length) {
      this.#kept = []
      this.#head = 0
    } else if (this.#head > SLACK_MAX && this.#head * 2 > this.#kept.length) {
      this.#kept = this.#kept.slice(this.#head)
      this.#head = 0
    }
  }

  /** Forgets key and records. */
  erase(): void {
    this.#erased = true
    this.#cipher.erase()
    this.#kept = []
    this.#head = 0
    this.#next = this.#acknowledged
    this.#keptBytes = 0
    this.#unwrittenBytes = 0
  }
}

export class RecordReceiver {
  readonly #cipher: RecordCipher
  readonly #clock: Clock
  readonly #onRecord: OnRecord
  readonly #use: KeyUse

  constructor({ cipher, clock, onRecord }: RecordOptions) {
    this.#cipher = cipher
    this.#clock = clock
    this.#onRecord = onRecord
    this.#use = new KeyUse(clock.monotonic())
  }

  /** Records opened so far. */
  get opened(): number {
    return this.#cipher.counter
  }

  /**
   * The content of the next record. Throws `session/forged` on one that does not open, and has
   * then changed nothing: the true one may still come. Throws `session/rekey` when its sender used
   * one key far too long and `session/padding`; these end the session.
   */
  open({ type, header, body }: Envelope): Uint8Array {
    const counter = this.#cipher.counter
    let plaintext: Uint8Array
    try {
      plaintext = this.#cipher.open(header, body)
    } catch (cause) {
      throw new TunnelError(
        'session/forged',
        `Cannot open record ${counter}: found other bytes than the peer sealed`,
        { cause },
      )
    }
    this.#use.add(body.length)
    const tag = body.subarray(-RECORD_TAG_BYTES)
    this.#onRecord({ counter, type, length: body.length, tag })
    if (this.#use.reaches(REKEY_LATE) && type !== ENVELOPE.rekey) {
      throw new TunnelError(
        'session/rekey',
        `Cannot go on: found one key used for ${this.#use.records} records, ${this.#use.bytes} bytes`,
      )
    }
    const content = type === ENVELOPE.data ? plaintext : unpad(plaintext)
    if (type === ENVELOPE.rekey) {
      if (content.length > 0) throw unexpected('rekey', content.length)
      this.#cipher.rekey()
      this.#use.reset(this.#clock.monotonic())
    }
    return content
  }

  erase(): void {
    this.#cipher.erase()
  }
}

function unexpected(name: string, length: number): TunnelError {
  return new TunnelError(
    'session/size',
    `Cannot take ${name}: found a content of ${length} bytes, expected none`,
  )
}

/** When to acknowledge: by bytes and by time. */
export class AcksOwed {
  readonly #clock: Clock
  readonly #due: () => void
  #bytes = 0
  #timer: Timer | undefined

  /** `due` runs when one is owed; `paid` is called once it was sealed. */
  constructor(clock: Clock, due: () => void) {
    this.#clock = clock
    this.#due = due
  }

  /** A record that is not an ack was opened. */
  add(bytes: number): void {
    this.#bytes += bytes
    if (this.#bytes >= ACK_BYTES) this.#due()
    else this.#timer ??= this.#clock.after(ACK_MS, this.#due)
  }

  paid(): void {
    this.#timer?.cancel()
    this.#timer = undefined
    this.#bytes = 0
  }
}

/** True where only the carrier is to blame: the session goes on with another. */
export function isForged(error: unknown): boolean {
  return isTunnelError(error, 'session/forged')
}
