/**
 * A short list in the store that is held in memory as well, since it is asked all the time, and in
 * which a process sees what others add and remove.
 *
 *   PREFIX KEY   one item's value
 *   CHANGED      its version changes with every change of the list
 */
import type { Clock, Timer } from '../../core/clock.ts'
import { commitWhen, Turnstile } from './retry.ts'
import type { Entry, Json, Store } from './store.ts'
import { walk } from './walk.ts'
import type { WatchOptions } from './watch.ts'
import { watch } from './watch.ts'

export interface ListOf<T> {
  /** With its slash at the end. */
  prefix: string
  changed: string
  /** Items that are read; whoever adds counts as well. */
  max: number
  read(entry: Entry): T
}

export class WatchedList<T> {
  readonly #store: Store
  readonly #clock: Clock
  readonly #of: ListOf<T>
  readonly #turns = new Turnstile()
  readonly #listeners = new Set<(item: T) => void>()
  #byKey = new Map<string, T>()
  #version = 0

  private constructor(store: Store, clock: Clock, of: ListOf<T>) {
    this.#store = store
    this.#clock = clock
    this.#of = of
  }

  static async open<T>(store: Store, clock: Clock, of: ListOf<T>): Promise<WatchedList<T>> {
    const list = new WatchedList(store, clock, of)
    await list.refresh()
    return list
  }

  get size(): number {
    return this.#byKey.size
  }

  get(key: string): T | undefined {
    return this.#byKey.get(key)
  }

  all(): T[] {
    return [...this.#byKey.values()]
  }

  /** Listeners are told before it resolves. */
  async add(key: string, value: Json): Promise<void> {
    const puts = [{ key, value }, { key: this.#of.changed, value: this.#clock.now() }]
    await this.#change(() => Promise.resolve({ commit: { puts }, result: true }))
  }

  /** False where there was no such item. */
  async remove(key: string): Promise<boolean> {
    return await this.#change(async () => {
      if (await this.#store.get(key) === undefined) return { result: false }
      const puts = [{ key: this.#of.changed, value: this.#clock.now() }]
      return { commit: { deletes: [key], puts }, result: true }
    })
  }

  /** Told of every new item, of this process or (under `watch`) another. Returns how to stop. */
  onAdded(listener: (item: T) => void): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  watch(options: WatchOptions = {}): Timer {
    return watch(this.#clock, () => this.refresh(), options)
  }

  /** Reads what other processes changed and tells of new items. */
  async refresh(): Promise<void> {
    await this.#turns.run(() => this.#refreshNow())
  }

  #change(decide: Parameters<typeof commitWhen<boolean>>[1]): Promise<boolean> {
    return this.#turns.run(async () => {
      const changed = await commitWhen(this.#store, decide)
      if (changed) await this.#refreshNow()
      return changed
    })
  }

  async #refreshNow(): Promise<void> {
    const { prefix, changed, max, read } = this.#of
    const version = (await this.#store.get(changed))?.version ?? 0
    if (version === this.#version) return
    const found = new Map<string, T>()
    for await (const entry of walk(this.#store, prefix)) {
      found.set(entry.key, read(entry))
      if (found.size >= max) break
    }
    const before = this.#byKey
    this.#byKey = found
    // The number read before the list: a change in between is seen again next time, never missed.
    this.#version = version
    for (const [key, item] of found) {
      if (before.has(key)) continue
      for (const listener of [...this.#listeners]) listener(item)
    }
  }
}
