/**
 * Hash chains over the records of a session, and the two messages that compare them. A chain fixes
 * every byte of every record by the records' own tags and reveals none of them.
 *
 *   c(0)   = SHA-256("sotto transcript v1" 0 ‖ session 16 ‖ direction 1)
 *   c(n+1) = SHA-256("sotto record v1" 0 ‖ c(n) ‖ counter 8 ‖ type 1 ‖ length 3 ‖ tag 16)
 *
 *   checkpoint, 233 bytes               trace, 42 bytes
 *     sent                  8             kind       1   1 question, 2 answer
 *     sent chain            32            direction  1   1 from the initiator, 2 from the responder
 *     received              8             number     8
 *     received chain        32            chain      32  of its sender, at that number
 *     sent commitments      8, 32
 *     received commitments  8, 32
 *     time                  8  ms since 1970
 *     flags                 1  1: the last
 *     signature             64 Ed25519
 *
 * Integers are big-endian. docs/protocol.md §12.
 */
import { ByteReader, ByteWriter, concat, utf8 } from './bytes.ts'
import type { Crypto } from './crypto.ts'
import { HASH_BYTES, SIGNATURE_BYTES } from './crypto.ts'
import { TunnelError } from './errors.ts'

// Specification constants.
export const SESSION_ID_BYTES = 16
export const RECORD_TAG_BYTES = 16
export const CHECKPOINT_BYTES = 4 * (8 + HASH_BYTES) + 8 + 1 + SIGNATURE_BYTES
export const TRACE_BYTES = 1 + 1 + 8 + HASH_BYTES

// Our own choices.
/** Values that are allocated together. */
const BLOCK_VALUES = 128

const CHECKPOINT_LABEL = utf8('sotto checkpoint v1\0')
const TRANSCRIPT_LABEL = utf8('sotto transcript v1\0')
const RECORD_LABEL = utf8('sotto record v1\0')
const COMMITMENTS_LABEL = utf8('sotto commitments v1\0')
const COMMITMENT_LABEL = utf8('sotto commitment v1\0')
const FLAG_FINAL = 1
export const QUESTION = 1
export const ANSWER = 2

export type Role = 'initiator' | 'responder'
/** As seen from the side that keeps the transcript. */
export type Direction = 'sent' | 'received'

/** One sealed record, by what its seal fixes. */
export interface ChainRecord {
  /** From 0 in each direction, without a gap. */
  counter: number
  /** The envelope's type. */
  type: number
  /** The envelope's length: that of the sealed body. */
  length: number
  /** Last 16 bytes of the sealed body. */
  tag: Uint8Array
}

export interface Checkpoint {
  sent: number
  sentChain: Uint8Array
  received: number
  receivedChain: Uint8Array
  sentCommitments: number
  sentCommitmentsChain: Uint8Array
  receivedCommitments: number
  receivedCommitmentsChain: Uint8Array
  /** Milliseconds since 1970, by its signer's clock. */
  time: number
  final: boolean
}

/** Who the two are, and whose signature it is. */
export interface TranscriptContext {
  /** 16 bytes. */
  session: Uint8Array
  /** Both identities, 32 bytes. */
  initiator: Uint8Array
  responder: Uint8Array
}

/** The 233 bytes; `sign` gets all before the signature. */
export function encodeCheckpoint(
  checkpoint: Checkpoint,
  sign: (body: Uint8Array) => Uint8Array,
): Uint8Array {
  const body = new ByteWriter(CHECKPOINT_BYTES)
    .u64(checkpoint.sent)
    .bytes(checkpoint.sentChain)
    .u64(checkpoint.received)
    .bytes(checkpoint.receivedChain)
    .u64(checkpoint.sentCommitments)
    .bytes(checkpoint.sentCommitmentsChain)
    .u64(checkpoint.receivedCommitments)
    .bytes(checkpoint.receivedCommitmentsChain)
    .u64(checkpoint.time)
    .u8(checkpoint.final ? FLAG_FINAL : 0)
    .done()
  return concat(body, sign(body))
}

/**
 * What a checkpoint of the side `role` says, once its signature holds; arrays are copies. Throws
 * `transcript/length`, `transcript/forged`, `transcript/flags`, `transcript/range`.
 */
export function openCheckpoint(
  crypto: Crypto,
  bytes: Uint8Array,
  { context, role }: { context: TranscriptContext; role: Role },
): Checkpoint {
  needLength('checkpoint', bytes, CHECKPOINT_BYTES)
  const copy = Uint8Array.from(bytes)
  const body = copy.subarray(0, -SIGNATURE_BYTES)
  const message = checkpointMessage(context, role, body)
  if (!crypto.ed25519Verify(context[role], message, copy.subarray(-SIGNATURE_BYTES))) {
    throw new TunnelError(
      'transcript/forged',
      `Cannot take checkpoint: found a signature that is not by the ${role} for this session`,
    )
  }
  const reader = new ByteReader(body, 'transcript', 'checkpoint')
  const checkpoint = {
    sent: reader.u64(),
    sentChain: reader.bytes(HASH_BYTES),
    received: reader.u64(),
    receivedChain: reader.bytes(HASH_BYTES),
    sentCommitments: reader.u64(),
    sentCommitmentsChain: reader.bytes(HASH_BYTES),
    receivedCommitments: reader.u64(),
    receivedCommitmentsChain: reader.bytes(HASH_BYTES),
    time: reader.u64(),
  }
  const flags = reader.u8()
  if (flags > FLAG_FINAL) {
    throw new TunnelError(
      'transcript/flags',
      `Cannot take checkpoint: found unknown flags ${flags}`,
    )
  }
  return { ...checkpoint, final: flags === FLAG_FINAL }
}

/** `c(0)` of wire direction 1 or 2. */
export function chainStart(crypto: Crypto, session: Uint8Array, direction: number): Uint8Array {
  return crypto.sha256(TRANSCRIPT_LABEL, session, Uint8Array.of(direction))
}

/** `d(0)` of wire direction 1 or 2. */
export function commitmentsStart(
  crypto: Crypto,
  session: Uint8Array,
  direction: number,
): Uint8Array {
  return crypto.sha256(COMMITMENTS_LABEL, session, Uint8Array.of(direction))
}

/** `d(i+1)`. */
export function nextCommitment(crypto: Crypto, chain: Uint8Array, value: Uint8Array): Uint8Array {
  return crypto.sha256(COMMITMENT_LABEL, chain, value)
}

/** Computes `c(n+1)` without an allocation of its own: this runs for every record. */
export class ChainInput {
  readonly #crypto: Crypto
  readonly #bytes = new Uint8Array(
    RECORD_LABEL.length + HASH_BYTES + 8 + 1 + 3 + RECORD_TAG_BYTES,
  )
  readonly #view = new DataView(this.#bytes.buffer)

  constructor(crypto: Crypto) {
    this.#crypto = crypto
    this.#bytes.set(RECORD_LABEL)
  }

  next(chain: Uint8Array, { counter, type, length, tag }: ChainRecord): Uint8Array {
    let at = RECORD_LABEL.length
    this.#bytes.set(chain, at)
    at += HASH_BYTES
    this.#view.setUint32(at, Math.floor(counter / 2 ** 32))
    this.#view.setUint32(at + 4, counter >>> 0)
    // Type and length are one word of 1 and 3 bytes.
    this.#view.setUint32(at + 8, (type << 24 | length & 0xffffff) >>> 0)
    this.#bytes.set(tag, at + 12)
    return this.#crypto.sha256(this.#bytes)
  }
}

/** The values of one chain from the last that both agreed on, in blocks that are freed in turn. */
export class Chain {
  #blocks: Uint8Array[] = []
  /** The number of the first value in the first block. */
  #base = 0
  #first = 0
  #count = 0
  #head: Uint8Array

  constructor(start: Uint8Array) {
    this.#head = start
    this.#store(0, start)
  }

  /** Number of the newest value: how many were pushed. */
  get count(): number {
    return this.#count
  }

  /** Number of the oldest value that is kept. */
  get first(): number {
    return this.#first
  }

  get kept(): number {
    return this.#count - this.#first
  }

  get head(): Uint8Array {
    return this.#head
  }

  push(value: Uint8Array): void {
    this.#count++
    this.#head = value
    this.#store(this.#count, value)
  }

  /** A view; `number` lies between `first` and `count`. */
  at(number: number): Uint8Array {
    const place = number - this.#base
    const block = this.#blocks[Math.floor(place / BLOCK_VALUES)]!
    const at = (place % BLOCK_VALUES) * HASH_BYTES
    return block.subarray(at, at + HASH_BYTES)
  }

  /** Drops what comes before `number`. */
  forget(number: number): void {
    this.#first = number
    const blocks = Math.floor((number - this.#base) / BLOCK_VALUES)
    this.#blocks.splice(0, blocks)
    this.#base += blocks * BLOCK_VALUES
  }

  #store(number: number, value: Uint8Array): void {
    const place = number - this.#base
    if (place >= this.#blocks.length * BLOCK_VALUES) {
      this.#blocks.push(new Uint8Array(BLOCK_VALUES * HASH_BYTES))
    }
    this.at(number).set(value)
  }
}

export interface Trace {
  kind: number
  /** 1 or 2, as on the wire. */
  direction: number
  number: number
  chain: Uint8Array
}

export function encodeTrace({ kind, direction, number, chain }: Trace): Uint8Array {
  return new ByteWriter(TRACE_BYTES).u8(kind).u8(direction).u64(number).bytes(chain).done()
}

/** Throws `transcript/length`, `transcript/trace`, `transcript/range`. */
export function decodeTrace(bytes: Uint8Array): Trace {
  needLength('trace', bytes, TRACE_BYTES)
  const reader = new ByteReader(bytes, 'transcript', 'trace')
  const kind = reader.u8()
  const direction = reader.u8()
  if ((kind !== QUESTION && kind !== ANSWER) || (direction !== 1 && direction !== 2)) {
    throw wrongTrace(`kind ${kind} of direction ${direction}`)
  }
  return { kind, direction, number: reader.u64(), chain: reader.bytes(HASH_BYTES) }
}

/** Session, identities and role are in it: a checkpoint holds nowhere else and is not reflected. */
export function checkpointMessage(
  { session, initiator, responder }: TranscriptContext,
  role: Role,
  body: Uint8Array,
): Uint8Array {
  const signer = Uint8Array.of(role === 'initiator' ? 1 : 2)
  return concat(CHECKPOINT_LABEL, session, initiator, responder, signer, body)
}

export function needLength(subject: string, bytes: Uint8Array, expected: number): void {
  if (bytes.length === expected) return
  throw new TunnelError(
    'transcript/length',
    `Cannot use ${subject}: found ${bytes.length} bytes, expected ${expected}`,
  )
}

export function wrongTrace(found: string): TunnelError {
  return new TunnelError('transcript/trace', `Cannot search transcript: found ${found}`)
}
