/**
 * Credit: how much one end of a stream may still send, counted in payload bytes of `data`. The
 * receiver's side decides when to give some back and when a larger window pays. A relay that
 * forwards a stream keeps one `Allowance` for each direction and polices both. No clock and no
 * socket here. docs/protocol.md, "Streams".
 */
import { WINDOW_BYTES_MAX } from './frame.ts'

/** Credit goes back when this fraction of the window has been consumed: few frames, no pauses. */
const RETURN_FRACTION = 4
/** A whole window used within this many round trips means that the window is the limit. */
const GROW_WITHIN_ROUND_TRIPS = 2

/** What a sender may still send. Also a relay's view of a stream that it forwards. */
export class Allowance {
  #bytes: number

  constructor(initialBytes: number) {
    this.#bytes = initialBytes
  }

  get bytes(): number {
    return this.#bytes
  }

  /** False, and nothing granted, when the sum would pass what any window may be. */
  grant(bytes: number): boolean {
    if (this.#bytes + bytes > WINDOW_BYTES_MAX) return false
    this.#bytes += bytes
    return true
  }

  /** False, and nothing spent, when there is less: the sender overdraws. */
  spend(bytes: number): boolean {
    if (bytes > this.#bytes) return false
    this.#bytes -= bytes
    return true
  }
}

/**
 * What a receiver has granted. Always: open (granted, not yet received) + held (received, not yet
 * consumed) + owed (consumed, credit not yet returned) = size; so what is held never passes size.
 */
export class ReceiveWindow {
  #sizeBytes: number
  #openBytes: number
  #heldBytes = 0
  /** Consumed since `#measuredFromMs`, to tell how fast a whole window is used. */
  #usedBytes = 0
  #measuredFromMs: number
  readonly initialBytes: number
  readonly #maxBytes: number

  constructor(initialBytes: number, maxBytes: number, options: { nowMs: number }) {
    this.initialBytes = initialBytes
    this.#sizeBytes = initialBytes
    this.#openBytes = initialBytes
    this.#maxBytes = Math.min(maxBytes, WINDOW_BYTES_MAX)
    this.#measuredFromMs = options.nowMs
  }

  get sizeBytes(): number {
    return this.#sizeBytes
  }

  get heldBytes(): number {
    return this.#heldBytes
  }

  /** False when the peer sends more than it was granted. */
  receive(bytes: number): boolean {
    if (bytes > this.#openBytes) return false
    this.#openBytes -= bytes
    this.#heldBytes += bytes
    return true
  }

  /** `bytes` were delivered. True when a whole window has been since the last `measure`. */
  consume(bytes: number): boolean {
    this.#heldBytes -= bytes
    this.#usedBytes += bytes
    return this.#usedBytes >= this.#sizeBytes
  }

  /**
   * Starts the next measure. Gives the bytes by which a larger window would pay, 0 for none: a
   * reader that is slower than two round trips a window is its own limit, and more would only lie
   * in memory.
   */
  measure(nowMs: number, roundTripMs: number): number {
    const elapsedMs = nowMs - this.#measuredFromMs
    const full = this.#usedBytes >= this.#sizeBytes
    this.#usedBytes = 0
    this.#measuredFromMs = nowMs
    if (!full || elapsedMs > GROW_WITHIN_ROUND_TRIPS * roundTripMs) return 0
    return Math.max(0, Math.min(this.#sizeBytes, this.#maxBytes - this.#sizeBytes))
  }

  grow(bytes: number): void {
    this.#sizeBytes += bytes
  }

  /** Credit to return now, 0 while it is not worth a frame; `all` gives whatever is owed. */
  refund(all: boolean): number {
    const owed = this.#sizeBytes - this.#openBytes - this.#heldBytes
    if (!all && owed < Math.max(1, this.#sizeBytes / RETURN_FRACTION)) return 0
    this.#openBytes += owed
    return owed
  }
}
