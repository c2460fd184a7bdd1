/**
 * The kill switch: names and scopes that this relay serves no more. Held in memory, since every
 * visitor is checked, and in the store, where other processes see them.
 *
 *   blocks/names/NAME     {reason, since}
 *   blocks/scopes/SCOPE   {reason, since}
 *   blocks-changed        its version changes with every block
 */
import type { Clock, Timer } from '../core/clock.ts'
import { TunnelError } from '../core/errors.ts'
import { isName } from '../core/key.ts'
import { commitWhen, Turnstile } from './store/retry.ts'
import type { Entry, Store } from './store/store.ts'
import { walk } from './store/walk.ts'
import type { WatchOptions } from './store/watch.ts'
import { watch } from './store/watch.ts'

/** Blocks at once: all are in memory. */
export const BLOCKS_MAX = 100_000
/** Longest reason, in UTF-16 units; longer ones are cut. */
const REASON_LENGTH_MAX = 500
const CHANGED = 'blocks-changed'

/** One of `name` and `scope` is set. */
export interface Block {
  name?: string
  scope?: string
  reason: string
  /** Milliseconds since 1970. */
  since: number
}

/** What to block: exactly one of the two. */
export interface BlockTarget {
  name?: string
  scope?: string
}

export class Blocks {
  readonly #store: Store
  readonly #clock: Clock
  readonly #turns = new Turnstile()
  readonly #listeners = new Set<(block: Block) => void>()
  #byKey = new Map<string, Block>()
  #version = 0

  private constructor(store: Store, clock: Clock) {
    this.#store = store
    this.#clock = clock
  }

  static async open(store: Store, clock: Clock): Promise<Blocks> {
    const blocks = new Blocks(store, clock)
    await blocks.refresh()
    return blocks
  }

  /** The block that holds for an endpoint of `scope`; `name` is empty for a link. */
  find(name: string | undefined, scope: string): Block | undefined {
    return this.#byKey.get(`blocks/scopes/${scope}`) ??
      (name ? this.#byKey.get(`blocks/names/${name}`) : undefined)
  }

  all(): Block[] {
    return [...this.#byKey.values()]
  }

  /** Throws `registry/block`, `registry/too-many`. Listeners are told before it resolves. */
  async add(target: BlockTarget, reason: string): Promise<void> {
    const key = blockKey(target)
    if (this.#byKey.size >= BLOCKS_MAX && !this.#byKey.has(key)) {
      throw new TunnelError(
        'registry/too-many',
        `Cannot block: found ${BLOCKS_MAX} blocks, the most that a relay holds`,
        { hint: 'Block a whole scope, or remove blocks that are no longer needed.' },
      )
    }
    const value = { reason: reason.slice(0, REASON_LENGTH_MAX), since: this.#clock.now() }
    await this.#change(async () => ({
      commit: { puts: [{ key, value }, { key: CHANGED, value: value.since }] },
      result: true,
    }))
  }

  /** False where there was no such block. */
  async remove(target: BlockTarget): Promise<boolean> {
    const key = blockKey(target)
    return await this.#change(async () => {
      if (await this.#store.get(key) === undefined) return { result: false }
      const now = this.#clock.now()
      return {
        commit: { deletes: [key], puts: [{ key: CHANGED, value: now }] },
        result: true,
      }
    })
  }

  onAdded(listener: (block: Block) => void): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  watch(options: WatchOptions): Timer {
    return watch(this.#clock, () => this.#turns.run(() => this.#refreshNow()), options)
  }

  /** Reads what other processes changed and tells of new blocks. */
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
    const version = (await this.#store.get(CHANGED))?.version ?? 0
    if (version === this.#version) return
    const found = new Map<string, Block>()
    for await (const entry of walk(this.#store, 'blocks/')) {
      found.set(entry.key, readBlock(entry))
      if (found.size >= BLOCKS_MAX) break
    }
    const before = this.#byKey
    this.#byKey = found
    // The number read before the list: a change in between is seen again next time, never missed.
    this.#version = version
    for (const [key, block] of found) {
      if (before.has(key)) continue
      for (const listener of [...this.#listeners]) listener(block)
    }
  }
}

function blockKey({ name, scope }: BlockTarget): string {
  if (name !== undefined && scope === undefined && isName(name)) return `blocks/names/${name}`
  if (scope !== undefined && name === undefined && isName(scope)) return `blocks/scopes/${scope}`
  throw new TunnelError(
    'registry/block',
    `Cannot block name ${JSON.stringify(name)}, scope ${JSON.stringify(scope)}: expected one ` +
      'name or one scope, in lower case',
  )
}

function readBlock({ key, value }: Entry): Block {
  const [, kind, label] = key.split('/') as [string, string, string]
  const { reason, since } = value as { reason: string; since: number }
  return kind === 'names' ? { name: label, reason, since } : { scope: label, reason, since }
}
