/**
 * Time as an argument. Wall time is for validity and logs, monotonic time for waits; a test hands
 * in `ManualClock` and moves both by hand.
 */

export interface Timer {
  cancel(): void
}

export interface Clock {
  /** Milliseconds since 1970, as people count. May jump. */
  now(): number
  /** Milliseconds that only grow; the origin means nothing. */
  monotonic(): number
  /** Runs `run` once after `ms` milliseconds. The timer never keeps a process alive by itself. */
  after(ms: number, run: () => void): Timer
}

interface Due {
  at: number
  order: number
  run: () => void
}

/** The in-memory twin: time stands still until `advance`. */
export class ManualClock implements Clock {
  #wallMs: number
  #monotonicMs = 0
  #order = 0
  #due: Due[] = []

  constructor(wallMs = 1_700_000_000_000) {
    this.#wallMs = wallMs
  }

  now(): number {
    return this.#wallMs
  }

  monotonic(): number {
    return this.#monotonicMs
  }

  get pending(): number {
    return this.#due.length
  }

  after(ms: number, run: () => void): Timer {
    const due: Due = { at: this.#monotonicMs + Math.max(0, ms), order: this.#order++, run }
    this.#due.push(due)
    return { cancel: () => void (this.#due = this.#due.filter((other) => other !== due)) }
  }

  /** Moves both clocks on by `ms`, running what falls due, in order. */
  advance(ms: number): void {
    const until = this.#monotonicMs + ms
    for (;;) {
      let next: Due | undefined
      for (const due of this.#due) {
        if (due.at > until) continue
        if (!next || due.at < next.at || (due.at === next.at && due.order < next.order)) next = due
      }
      if (!next) break
      this.#wallMs += next.at - this.#monotonicMs
      this.#monotonicMs = next.at
      this.#due = this.#due.filter((due) => due !== next)
      next.run()
    }
    this.#wallMs += until - this.#monotonicMs
    this.#monotonicMs = until
  }

  /** Moves the wall clock alone, as an operator or a sleeping laptop does. */
  jump(ms: number): void {
    this.#wallMs += ms
  }
}
