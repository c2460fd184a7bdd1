/**
 * How many attempts to connect are under way at a time, all told and to one place. What is beyond that waits
 * its turn, so a burst to a live place passes, and a dead one holds up itself alone.
 */
import type { Clock, Timer } from '../../core/clock.ts'
import { TunnelError } from '../../core/errors.ts'

export interface DialLimits {
  readonly dials: number
  readonly dialsToOne: number
  /** Those that wait for their turn; more are turned away. */
  readonly dialsWaiting: number
}

interface Waiter {
  readonly place: string
  readonly start: () => void
  readonly timer: Timer
  readonly fail: (error: TunnelError) => void
}

export class DialQueue {
  readonly #limits: DialLimits
  readonly #clock: Clock
  readonly #running = new Map<string, number>()
  readonly #waiting = new Set<Waiter>()
  #count = 0

  constructor(limits: DialLimits, clock: Clock) {
    this.#limits = limits
    this.#clock = clock
  }

  /** Under way now. */
  get running(): number {
    return this.#count
  }

  /** With those that wait. */
  get size(): number {
    return this.#count + this.#waiting.size
  }

  /** A turn; what it gives back ends it, once. Throws `exit/busy`, `net/timeout`. */
  async take(place: string, timeoutMs: number): Promise<() => void> {
    if (this.#fits(place)) return this.#begin(place)
    if (this.#waiting.size >= this.#limits.dialsWaiting) {
      const found = `${this.#waiting.size} attempts that wait for their turn`
      throw new TunnelError('exit/busy', `Cannot reach ${place}: there are ${found} already`)
    }
    return await new Promise((resolve, reject) => {
      const waiter: Waiter = {
        place,
        start: () => resolve(this.#begin(place)),
        fail: reject,
        timer: this.#clock.after(timeoutMs, () => {
          this.#waiting.delete(waiter)
          const words = 'others wait for an answer of it'
          reject(new TunnelError('net/timeout', `Cannot connect to ${place}: ${words}`))
        }),
      }
      this.#waiting.add(waiter)
    })
  }

  /** Nobody waits any more. */
  close(): void {
    for (const { timer, fail, place } of this.#waiting) {
      timer.cancel()
      fail(new TunnelError('net/unreachable', `Cannot connect to ${place}: the client has left`))
    }
    this.#waiting.clear()
  }

  #fits(place: string): boolean {
    return this.#count < this.#limits.dials &&
      (this.#running.get(place) ?? 0) < this.#limits.dialsToOne
  }

  #begin(place: string): () => void {
    this.#count++
    this.#running.set(place, (this.#running.get(place) ?? 0) + 1)
    let isOver = false
    return () => {
      if (isOver) return
      isOver = true
      this.#count--
      const left = this.#running.get(place)! - 1
      if (left === 0) this.#running.delete(place)
      else this.#running.set(place, left)
      this.#next()
    }
  }

  /** One turn has become free: at most one begins. */
  #next(): void {
    for (const waiter of this.#waiting) {
      if (!this.#fits(waiter.place)) continue
      this.#waiting.delete(waiter)
      waiter.timer.cancel()
      return waiter.start()
    }
  }
}
