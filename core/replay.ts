/**
 * Which counters of a stream of datagrams have been seen, so that each is taken once (RFC 6479): a
 * ring of bits behind the highest counter. A counter is looked up before its datagram is opened
 * and taken after, so that a forged one moves nothing. docs/protocol.md §11.
 */

/** Counters up to the highest, that one included, of which it is known whether they were taken. */
export const REPLAY_WINDOW = 8192
const WORD_BITS = 32
/**
 * Twice what the window needs: the ring moves by whole words, and a counter that is older than the
 * window never shares a word with one inside it. A power of two, so that places wrap by a mask.
 */
const WORDS = 2 * REPLAY_WINDOW / WORD_BITS

export class ReplayWindow {
  readonly #bits = new Uint32Array(WORDS)
  #highest = -1

  /** The highest counter that was taken, -1 before the first. */
  get highest(): number {
    return this.#highest
  }

  /** Neither taken nor older than the window. `counter` is an integer of 0 to 2^53 - 1. */
  isFresh(counter: number): boolean {
    if (counter > this.#highest) return true
    if (this.#highest - counter >= REPLAY_WINDOW) return false
    return (this.#bits[wordOf(counter)]! & bitOf(counter)) === 0
  }

  /** Takes a counter whose datagram was authentic. False, and nothing changed, unless it is fresh. */
  take(counter: number): boolean {
    if (!this.isFresh(counter)) return false
    if (counter > this.#highest) {
      const from = Math.floor(Math.max(this.#highest, 0) / WORD_BITS)
      const words = Math.min(Math.floor(counter / WORD_BITS) - from, WORDS)
      for (let i = 1; i <= words; i++) this.#bits[(from + i) % WORDS] = 0
      this.#highest = counter
    }
    this.#bits[wordOf(counter)]! |= bitOf(counter)
    return true
  }
}

function wordOf(counter: number): number {
  return Math.floor(counter / WORD_BITS) % WORDS
}

function bitOf(counter: number): number {
  return 1 << (counter % WORD_BITS)
}
