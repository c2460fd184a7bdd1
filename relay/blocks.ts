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
import type { Entry, Store } from './store/store.ts'
import type { WatchOptions } from './store/watch.ts'
import { WatchedList } from './store/watched_list.ts'

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
  readonly #list: WatchedList<Block>
  readonly #clock: Clock

  private constructor(list: WatchedList<Block>, clock: Clock) {
    this.#list = list
    this.#clock = clock
  }

  static async open(store: Store, clock: Clock): Promise<Blocks> {
    const of = { prefix: 'blocks/', changed: CHANGED, max: BLOCKS_MAX, read: readBlock }
    return new Blocks(await WatchedList.open(store, clock, of), clock)
  }

  /** The block that holds for an endpoint of `scope`; `name` is empty for a link. */
  find(name: string | undefined, scope: string): Block | undefined {
    return this.#list.get(`blocks/scopes/${scope}`) ??
      (name ? this.#list.get(`blocks/names/${name}`) : undefined)
  }

  all(): Block[] {
    return this.#list.all()
  }

  /** Throws `registry/block`, `registry/too-many`. Listeners are told before it resolves. */
  async add(target: BlockTarget, reason: string): Promise<void> {
    const key = blockKey(target)
    if (this.#list.size >= BLOCKS_MAX && !this.#list.get(key)) {
      throw new TunnelError(
        'registry/too-many',
        `Cannot block: found ${BLOCKS_MAX} blocks, the most that a relay holds`,
        { hint: 'Block a whole scope, or remove blocks that are no longer needed.' },
      )
    }
    const value = { reason: reason.slice(0, REASON_LENGTH_MAX), since: this.#clock.now() }
    await this.#list.add(key, value)
  }

  /** False where there was no such block. */
  async remove(target: BlockTarget): Promise<boolean> {
    return await this.#list.remove(blockKey(target))
  }

  onAdded(listener: (block: Block) => void): () => void {
    return this.#list.onAdded(listener)
  }

  watch(options: WatchOptions): Timer {
    return this.#list.watch(options)
  }

  /** Reads what other processes changed and tells of new blocks. */
  async refresh(): Promise<void> {
    await this.#list.refresh()
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
