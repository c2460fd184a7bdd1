/**
 * What happened in a running "sotto up", the last of it: visitors, troubles, names that were refused.
 * Kept in memory and bounded; "sotto logs" reads it. No log of requests: a visitor is a connection.
 */
import type { Clock } from '../core/clock.ts'

/** The oldest give way. */
export const EVENTS_MAX = 1000

export interface LoggedEvent {
  /** Counts up from 1, so that a reader sees what it missed. */
  readonly number: number
  /** ISO 8601, UTC. */
  readonly time: string
  readonly event: string
  /** What the file calls the tunnel; absent where it is the process as a whole. */
  readonly tunnel?: string
  /** For people. */
  readonly message: string
  readonly [field: string]: unknown
}

export class EventLog {
  readonly #clock: Clock
  readonly #events: LoggedEvent[] = []
  readonly #readers = new Set<(event: LoggedEvent) => void>()
  #number = 0

  constructor(clock: Clock) {
    this.#clock = clock
  }

  add(
    event: string,
    message: string,
    fields: Readonly<Record<string, unknown>> & { tunnel?: string } = {},
  ): void {
    const time = new Date(this.#clock.now()).toISOString()
    const logged = { number: ++this.#number, time, event, ...fields, message }
    this.#events.push(logged)
    if (this.#events.length > EVENTS_MAX) this.#events.shift()
    for (const reader of [...this.#readers]) reader(logged)
  }

  /** The last ones, oldest first. */
  last(count: number, tunnel?: string): LoggedEvent[] {
    const all = tunnel === undefined
      ? this.#events
      : this.#events.filter((event) => event.tunnel === tunnel)
    return all.slice(Math.max(0, all.length - count))
  }

  /** Each new one, until the returned call. */
  follow(reader: (event: LoggedEvent) => void): () => void {
    this.#readers.add(reader)
    return () => void this.#readers.delete(reader)
  }
}
