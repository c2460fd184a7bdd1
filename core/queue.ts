/**
 * The two queues of a stream: bytes that wait for credit, for the link or for a paused reader, and
 * datagrams that may be dropped. Both count what they hold, so that their owner can bound it.
 *
 * Large chunks are kept as they came, without a copy. Small ones are gathered into a buffer of
 * their own: a peer that sends its window byte by byte must not cost a hundred times that window
 * in array headers, and a small view must not keep a large buffer alive.
 */
import { FRAME_PAYLOAD_BYTES_MAX } from './frame.ts'

/** Chunks below this are gathered while they wait. */
const SMALL_BYTES = 4096
const TAIL_BYTES_MIN = 512
const TAIL_BYTES_MAX = 16_384
/** Emptied slots at the head of the list before it is compacted. */
const SLACK_MAX = 64

/** Most that one channel's datagrams may wait; the oldest goes first. */
export const PACKET_QUEUE_BYTES_MAX = 262_144
export const PACKET_QUEUE_MAX = 512
/** Each datagram has its length in two bytes before it. */
export const PACKET_HEADER_BYTES = 2
export const PACKET_BYTES_MAX = FRAME_PAYLOAD_BYTES_MAX - PACKET_HEADER_BYTES

/** Bytes in order. Pushed arrays must not change until they have been taken. */
export class ByteQueue {
  #chunks: (Uint8Array | undefined)[] = []
  #head = 0
  /** Bytes already taken of the first chunk. */
  #offset = 0
  #bytes = 0
  /** The buffer behind the last chunk when that one is gathered, and how much of it is used. */
  #tail: Uint8Array | undefined
  #tailBytes = 0

  get bytes(): number {
    return this.#bytes
  }

  push(bytes: Uint8Array): void {
    this.#bytes += bytes.length
    if (bytes.length >= SMALL_BYTES) {
      this.#tail = undefined
      this.#chunks.push(bytes)
      return
    }
    const used = this.#tail ? this.#tailBytes : 0
    const needed = used + bytes.length
    if (this.#tail && needed <= TAIL_BYTES_MAX) {
      if (needed > this.#tail.length) this.#growTail(needed)
      this.#chunks.pop()
    } else {
      this.#tail = new Uint8Array(Math.max(TAIL_BYTES_MIN, bytes.length))
      this.#tailBytes = 0
    }
    this.#tail.set(bytes, this.#tailBytes)
    this.#tailBytes += bytes.length
    this.#chunks.push(this.#tail.subarray(0, this.#tailBytes))
  }

  #growTail(needed: number): void {
    const grown = new Uint8Array(Math.min(TAIL_BYTES_MAX, Math.max(needed, this.#tail!.length * 2)))
    grown.set(this.#tail!.subarray(0, this.#tailBytes))
    this.#tail = grown
  }

  /** The first chunk, whole and without a copy; undefined when empty. */
  shift(): Uint8Array | undefined {
    const chunk = this.#chunks[this.#head]
    if (chunk === undefined) return undefined
    const rest = this.#offset === 0 ? chunk : chunk.subarray(this.#offset)
    this.#bytes -= rest.length
    this.#drop()
    return rest
  }

  /** Copies the first `count` bytes, of which there must be as many, into `target` at `at`. */
  take(count: number, target: Uint8Array, at: number): void {
    let left = count
    while (left > 0) {
      const chunk = this.#chunks[this.#head]!
      const length = Math.min(left, chunk.length - this.#offset)
      const whole = this.#offset === 0 && length === chunk.length
      target.set(whole ? chunk : chunk.subarray(this.#offset, this.#offset + length), at)
      at += length
      left -= length
      this.#offset += length
      if (this.#offset === chunk.length) this.#drop()
    }
    this.#bytes -= count
  }

  clear(): void {
    this.#chunks = []
    this.#head = 0
    this.#offset = 0
    this.#bytes = 0
    this.#tail = undefined
  }

  #drop(): void {
    this.#chunks[this.#head++] = undefined
    this.#offset = 0
    if (this.#head === this.#chunks.length) {
      this.#chunks.length = 0
      this.#head = 0
      this.#tail = undefined
    } else if (this.#head >= SLACK_MAX && this.#head * 2 >= this.#chunks.length) {
      this.#chunks.splice(0, this.#head)
      this.#head = 0
    }
  }
}

/** Datagrams in order; the oldest is dropped, and counted, when there is no room. */
export class PacketQueue {
  #datagrams: Uint8Array[] = []
  #bytes = 0
  #dropped = 0

  get length(): number {
    return this.#datagrams.length
  }

  /** Bytes with their length fields. */
  get bytes(): number {
    return this.#bytes
  }

  get dropped(): number {
    return this.#dropped
  }

  /** False when the datagram itself was dropped: it is empty or longer than a frame can carry. */
  push(datagram: Uint8Array): boolean {
    if (datagram.length === 0 || datagram.length > PACKET_BYTES_MAX) {
      this.#dropped++
      return false
    }
    this.#datagrams.push(datagram)
    this.#bytes += PACKET_HEADER_BYTES + datagram.length
    while (this.#bytes > PACKET_QUEUE_BYTES_MAX || this.#datagrams.length > PACKET_QUEUE_MAX) {
      this.#bytes -= PACKET_HEADER_BYTES + this.#datagrams.shift()!.length
      this.#dropped++
    }
    return true
  }

  /** As many of the first datagrams as fit `limitBytes` with their length fields. */
  take(limitBytes: number): { datagrams: Uint8Array[]; bytes: number } {
    let bytes = 0
    let count = 0
    for (const datagram of this.#datagrams) {
      const length = PACKET_HEADER_BYTES + datagram.length
      if (bytes + length > limitBytes) break
      bytes += length
      count++
    }
    this.#bytes -= bytes
    return { datagrams: this.#datagrams.splice(0, count), bytes }
  }

  clear(): void {
    this.#datagrams = []
    this.#bytes = 0
  }
}
