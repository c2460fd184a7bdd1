/**
 * Many datagrams in one buffer, without an object for each. A run is datagrams side by side, all of
 * `size` bytes but the last, which may be shorter: one buffer for segmentation offload, one body of a
 * bundled frame. Four words describe it, and a 32-byte record (address.ts) says where it goes or came from.
 */
import { decodeEndpoint, ENDPOINT_BYTES } from './address.ts'
import type { Endpoint } from './address.ts'

export const RUN_WORDS = 4
/** Third word of a run that belongs to no peer. */
export const NO_PEER = 0xffffffff
/** Runs of one batch, and datagrams that the module takes or gives at once. */
export const RUNS_MAX = 2048

/** Valid during the call that is given it, and no longer. */
export class Batch {
  bytes: Uint8Array
  /** Of run i at i × 4: first byte, bytes, peer, bytes of each datagram. */
  words: Uint32Array
  /** Of run i at i × 32. */
  endpoints: Uint8Array
  count = 0

  constructor(bytes: Uint8Array, words: Uint32Array, endpoints: Uint8Array) {
    this.bytes = bytes
    this.words = words
    this.endpoints = endpoints
  }

  /** An empty one with room for so much. */
  static make(bytes: number, runs = RUNS_MAX): Batch {
    return new Batch(
      new Uint8Array(bytes),
      new Uint32Array(runs * RUN_WORDS),
      new Uint8Array(runs * ENDPOINT_BYTES),
    )
  }

  /** The first byte after the last run. */
  get end(): number {
    if (this.count === 0) return 0
    const at = (this.count - 1) * RUN_WORDS
    return this.words[at]! + this.words[at + 1]!
  }

  /** Whether a run of so many bytes still fits. */
  fits(bytes: number): boolean {
    return (this.count + 1) * RUN_WORDS <= this.words.length &&
      this.end + bytes <= this.bytes.length
  }

  /** Copies datagrams of `size` bytes behind the others; false, and nothing taken, where they do not fit. */
  push(
    datagrams: Uint8Array,
    endpoint: Uint8Array,
    size = datagrams.length,
  ): boolean {
    const { end } = this
    if (datagrams.length === 0 || !this.fits(datagrams.length)) return false
    this.bytes.set(datagrams, end)
    this.endpoints.set(endpoint, this.count * ENDPOINT_BYTES)
    this.describe(end, datagrams.length, size)
    return true
  }

  /** Adds a run that lies in `bytes` already; its record is the caller's to write. */
  describe(at: number, length: number, size: number): void {
    const { words } = this
    const word = this.count * RUN_WORDS
    words[word] = at
    words[word + 1] = length
    words[word + 2] = NO_PEER
    words[word + 3] = size
    this.count++
  }

  clear(): void {
    this.count = 0
  }

  /** For hosts that are in no hurry: a view of each datagram, and where it goes or came from. */
  each(
    run: (datagram: Uint8Array, endpoint: Endpoint | undefined) => void,
  ): void {
    for (let i = 0; i < this.count; i++) {
      const [at = 0, length = 0, , size = 0] = this.words.subarray(
        i * RUN_WORDS,
        (i + 1) * RUN_WORDS,
      )
      const endpoint = decodeEndpoint(this.endpoints, i * ENDPOINT_BYTES)
      for (let from = at; from < at + length; from += size) {
        run(
          this.bytes.subarray(from, Math.min(from + size, at + length)),
          endpoint,
        )
      }
    }
  }
}

/** IP packets that were opened. Valid during the call that is given them, and no longer. */
export class Packets {
  bytes: Uint8Array
  /** Of packet i at i × 4: first byte, bytes, number of the peer. */
  words: Uint32Array
  count = 0

  constructor(bytes: Uint8Array, words: Uint32Array) {
    this.bytes = bytes
    this.words = words
  }

  /** For hosts that are in no hurry: a view of each packet. */
  each(run: (packet: Uint8Array, peer: number) => void): void {
    for (let i = 0; i < this.count; i++) {
      const word = i * RUN_WORDS
      const at = this.words[word]!
      run(
        this.bytes.subarray(at, at + this.words[word + 1]!),
        this.words[word + 2]!,
      )
    }
  }
}
