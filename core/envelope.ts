/**
 * Envelopes: what passes on the carrier of a session, which is any reliable stream of bytes.
 *
 *   type     1   see ENVELOPE
 *   length   3   of the body, at most 65,532, so that an envelope fits one frame
 *   body
 *
 * Bodies from 0x10 on are sealed records: ciphertext, then a tag of 16, with the four bytes of the
 * header as associated data. All but `data` are padded before they are sealed, so that their
 * lengths tell little: length 2, content, zeros up to the next bucket. Integers are big-endian.
 * docs/protocol.md §10.
 */
import { EMPTY } from './bytes.ts'
import { TunnelError } from './errors.ts'
import { FRAME_HEADER_BYTES, REASON_BYTES_MAX } from './frame.ts'

// Specification constants.
export const ENVELOPE_HEADER_BYTES = 4
export const ENVELOPE_BODY_BYTES_MAX = 65_532
export const RECORD_TAG_BYTES = 16
/** Most that one record holds before it is sealed. */
export const RECORD_BYTES_MAX = ENVELOPE_BODY_BYTES_MAX - RECORD_TAG_BYTES
/** Most payload of a frame inside a session. */
export const SESSION_PAYLOAD_BYTES_MAX = RECORD_BYTES_MAX - FRAME_HEADER_BYTES
/** What padded records are filled up to; above the last of these come multiples of 4,096. */
const BUCKETS = [32, 128, 512, 2048]
const BUCKET_STEP_BYTES = 4096
const PADDED_HEADER_BYTES = 2
/** Most content of a padded record. */
export const PADDED_CONTENT_BYTES_MAX = RECORD_BYTES_MAX - PADDED_HEADER_BYTES

/** Every type with its body. Numbers are never reused. */
export const ENVELOPE = Object.freeze({
  opening: 0x01, // opening in clear, Noise message 1; initiator, first
  answer: 0x02, // Noise message 2; responder
  resume: 0x03, // session 16, nonce 32, received 8, tag 32; initiator, first on a new carrier
  resumed: 0x04, // nonce 32, received 8, tag 32; responder
  proceed: 0x05, // tag 32; initiator
  ready: 0x10, // nothing; initiator, its first record
  data: 0x11, // a data frame; the one record that is not padded
  control: 0x12, // any other frame of a stream
  ack: 0x13, // received 8: how many records its sender has opened
  rekey: 0x14, // nothing: its sender's key changes after it
  checkpoint: 0x15, // of the transcript, docs/protocol.md §12
  trace: 0x16, // of the transcript: a question or answer about a kept value
  channel: 0x17, // channel 16: a packet channel belongs to this session; initiator
  close: 0x18, // code 2, reason 0-255; the last record of either side
  commitment: 0x19, // m(i) 32: to a content of its sender, docs/protocol.md §12
})

export type EnvelopeName = keyof typeof ENVELOPE
/** Types that hold a sealed record. */
export type RecordName = Exclude<
  EnvelopeName,
  'opening' | 'answer' | 'resume' | 'resumed' | 'proceed'
>

/** Smallest and largest body of each type that may come; what is outside ends the carrier. */
export type EnvelopeSizes = ReadonlyMap<number, readonly [min: number, max: number]>

const sealed = (bytes: number): number => bytes + RECORD_TAG_BYTES
const padded = (content: number): number => sealed(paddedBytes(content))

/** Opening in clear, the keys and tags of message 1, a passport of 1 to 4,096. */
const OPENING_BYTES = [69 + 1280 + 3, 131 + 1280 + 4098] as const
/** The keys and tags of message 2, a passport, the group. */
const ANSWER_BYTES = [1168 + 3 + 16, 1168 + 4098 + 16] as const

export const SESSION_SIZES: EnvelopeSizes = new Map([
  [ENVELOPE.opening, OPENING_BYTES],
  [ENVELOPE.answer, ANSWER_BYTES],
  [ENVELOPE.resume, [88, 88]],
  [ENVELOPE.resumed, [72, 72]],
  [ENVELOPE.proceed, [32, 32]],
  [ENVELOPE.ready, [padded(0), padded(0)]],
  [ENVELOPE.data, [sealed(FRAME_HEADER_BYTES + 1), ENVELOPE_BODY_BYTES_MAX]],
  [ENVELOPE.control, [padded(FRAME_HEADER_BYTES), ENVELOPE_BODY_BYTES_MAX]],
  [ENVELOPE.ack, [padded(8), padded(8)]],
  [ENVELOPE.rekey, [padded(0), padded(0)]],
  [ENVELOPE.checkpoint, [padded(233), padded(233)]],
  [ENVELOPE.trace, [padded(42), padded(42)]],
  [ENVELOPE.channel, [padded(16), padded(16)]],
  [ENVELOPE.close, [padded(2), padded(2 + REASON_BYTES_MAX)]],
  [ENVELOPE.commitment, [padded(32), padded(32)]],
])

export interface Envelope {
  type: number
  /** Type and length as they came: the associated data of a record. */
  header: Uint8Array
  body: Uint8Array
}

/** The four bytes before a body of `length`, written at the start of `into`. */
export function writeHeader(into: Uint8Array, type: number, length: number): Uint8Array {
  into[0] = type
  into[1] = length >>> 16
  into[2] = length >>> 8
  into[3] = length
  return into
}

/** One whole envelope. Throws `session/envelope` when the body is longer than any may be. */
export function encodeEnvelope(type: number, body: Uint8Array): Uint8Array {
  if (body.length > ENVELOPE_BODY_BYTES_MAX) throw wrongLength(type, body.length)
  const out = new Uint8Array(ENVELOPE_HEADER_BYTES + body.length)
  out.set(body, ENVELOPE_HEADER_BYTES)
  return writeHeader(out, type, body.length)
}

/**
 * Reads envelopes out of bytes in whatever pieces they come. `push` takes a chunk, `next` gives
 * the next whole envelope: a view where one chunk holds it all, else a copy. What is pushed and
 * not yet read is the caller's to bound, by pausing its carrier.
 */
export class EnvelopeReader {
  readonly #sizes: EnvelopeSizes
  #chunks: Uint8Array[] = []
  #chunk: Uint8Array = EMPTY
  #at = 0
  #bytes = 0
  #header = new Uint8Array(ENVELOPE_HEADER_BYTES)
  #headerBytes = 0
  #length = 0
  /** A body that no chunk holds whole. */
  #body: Uint8Array | undefined
  #bodyBytes = 0

  constructor(sizes: EnvelopeSizes) {
    this.#sizes = sizes
  }

  /** Pushed and not yet part of an envelope that `next` gave. */
  get bytes(): number {
    return this.#bytes + this.#headerBytes + this.#bodyBytes
  }

  push(chunk: Uint8Array): void {
    if (chunk.length === 0) return
    this.#bytes += chunk.length
    if (this.#at < this.#chunk.length) this.#chunks.push(chunk)
    else {
      this.#chunk = chunk
      this.#at = 0
    }
  }

  /**
   * Undefined when more has to come first. Throws `session/envelope` on an unknown type or a
   * length outside its bounds, before anything is held for it; the reader is of no use after that.
   */
  next(): Envelope | undefined {
    if (this.#headerBytes < ENVELOPE_HEADER_BYTES && !this.#readHeader()) return undefined
    const body = this.#readBody()
    if (body === undefined) return undefined
    const header = this.#header
    this.#header = new Uint8Array(ENVELOPE_HEADER_BYTES)
    this.#headerBytes = 0
    return { type: header[0]!, header, body }
  }

  #readHeader(): boolean {
    while (this.#headerBytes < ENVELOPE_HEADER_BYTES) {
      if (!this.#more()) return false
      this.#header[this.#headerBytes++] = this.#chunk[this.#at++]!
      this.#bytes--
    }
    const type = this.#header[0]!
    const length = this.#header[1]! << 16 | this.#header[2]! << 8 | this.#header[3]!
    const bounds = this.#sizes.get(type)
    if (bounds === undefined) {
      throw new TunnelError(
        'session/envelope',
        `Cannot read an envelope: found type ${type}, expected one of the table`,
      )
    }
    if (length < bounds[0] || length > bounds[1]) throw wrongLength(type, length)
    this.#length = length
    return true
  }

  #readBody(): Uint8Array | undefined {
    if (this.#body === undefined) {
      if (!this.#more() && this.#length > 0) return undefined
      if (this.#chunk.length - this.#at >= this.#length) return this.#view(this.#length)
      this.#body = new Uint8Array(this.#length)
      this.#bodyBytes = 0
    }
    while (this.#bodyBytes < this.#length) {
      if (!this.#more()) return undefined
      const left = Math.min(this.#length - this.#bodyBytes, this.#chunk.length - this.#at)
      this.#body.set(this.#view(left), this.#bodyBytes)
      this.#bodyBytes += left
    }
    const body = this.#body
    this.#body = undefined
    this.#bodyBytes = 0
    return body
  }

  #view(length: number): Uint8Array {
    this.#at += length
    this.#bytes -= length
    return this.#chunk.subarray(this.#at - length, this.#at)
  }

  #more(): boolean {
    if (this.#at < this.#chunk.length) return true
    const chunk = this.#chunks.shift()
    if (chunk === undefined) return false
    this.#chunk = chunk
    this.#at = 0
    return true
  }
}

/** What `content` bytes are filled up to, their length before them included. */
export function paddedBytes(content: number): number {
  const needed = PADDED_HEADER_BYTES + content
  for (const bucket of BUCKETS) if (needed <= bucket) return bucket
  return Math.min(Math.ceil(needed / BUCKET_STEP_BYTES) * BUCKET_STEP_BYTES, RECORD_BYTES_MAX)
}

/** Throws `session/size` when the content fits no record. */
export function pad(content: Uint8Array): Uint8Array {
  if (content.length > PADDED_CONTENT_BYTES_MAX) {
    throw new TunnelError(
      'session/size',
      `Cannot send a record: found ${content.length} bytes, expected at most ${PADDED_CONTENT_BYTES_MAX}`,
    )
  }
  const out = new Uint8Array(paddedBytes(content.length))
  out[0] = content.length >>> 8
  out[1] = content.length
  out.set(content, PADDED_HEADER_BYTES)
  return out
}

/** The content, a view. Throws `session/padding` unless `pad` would give the very same bytes. */
export function unpad(plaintext: Uint8Array): Uint8Array {
  const length = (plaintext[0] ?? 0) << 8 | (plaintext[1] ?? 0)
  const end = PADDED_HEADER_BYTES + length
  if (end > plaintext.length || paddedBytes(length) !== plaintext.length) {
    throw wrongPadding(`${plaintext.length} bytes around a content of ${length}`)
  }
  for (let i = end; i < plaintext.length; i++) {
    if (plaintext[i] !== 0) throw wrongPadding('padding that is not zero')
  }
  return plaintext.subarray(PADDED_HEADER_BYTES, end)
}

function wrongPadding(found: string): TunnelError {
  return new TunnelError(
    'session/padding',
    `Cannot read a record: found ${found}, expected zeros up to the next bucket`,
  )
}

function wrongLength(type: number, length: number): TunnelError {
  return new TunnelError(
    'session/envelope',
    `Cannot use an envelope of type ${type}: found a body of ${length} bytes`,
  )
}
