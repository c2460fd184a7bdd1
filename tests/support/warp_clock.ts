/** Time that runs by itself and can be made to run faster: waits of minutes pass in a few turns. */
import type { Clock, Timer } from '../../core/clock.ts'

export class WarpClock implements Clock {
  #aheadMs = 0
  #due = new Set<{ at: number; run: () => void; timer: ReturnType<typeof setTimeout> }>()

  now(): number {
    return Math.floor(Date.now() + this.#aheadMs)
  }

  monotonic(): number {
    return performance.now() + this.#aheadMs
  }

  after(ms: number, run: () => void): Timer {
    const due = { at: this.monotonic() + ms, run, timer: setTimeout(() => this.#fire(due), ms) }
    due.timer.unref?.()
    this.#due.add(due)
    return {
      cancel: () => {
        clearTimeout(due.timer)
        this.#due.delete(due)
      },
    }
  }

  /** Everything that is due within `ms` runs now, the earliest first. */
  skip(ms: number): void {
    const end = this.monotonic() + ms
    for (;;) {
      const next = [...this.#due].sort((a, b) => a.at - b.at)[0]
      if (!next || next.at > end) break
      this.#aheadMs += Math.max(0, next.at - this.monotonic())
      clearTimeout(next.timer)
      this.#fire(next)
    }
    this.#aheadMs += Math.max(0, end - this.monotonic())
    // What is left comes sooner by as much.
    for (const one of this.#due) {
      clearTimeout(one.timer)
      one.timer = setTimeout(() => this.#fire(one), Math.max(0, one.at - this.monotonic()))
      one.timer.unref?.()
    }
  }

  #fire(due: { at: number; run: () => void; timer: ReturnType<typeof setTimeout> }): void {
    if (this.#due.delete(due)) due.run()
  }
}
