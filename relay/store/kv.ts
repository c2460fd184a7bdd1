/**
 * The store of a relay on Deno Deploy: Deno KV. A key is one part after our own prefix, so that the
 * order is that of its bytes, and the value is JSON text.
 *
 * A version is the first 8 of a versionstamp's 10 bytes, the number of the commit; the last two
 * tell transactions of one commit apart, of which a reader only ever sees the last.
 */
import { TunnelError } from '../../core/errors.ts'
import type { Entry, Store } from './store.ts'
import { checkCommit, checkKey, checkList, fromJsonText, storeClosed, storeError } from './store.ts'

const PREFIX = 'sotto'
/** Larger than any key: keys are of the characters before it (store.ts). */
const AFTER_ALL = '\x7f'
/** The least character that could follow a key: makes a range begin just after it. */
const JUST_AFTER = '\0'

type KvKey = readonly (string | number | bigint | boolean | Uint8Array | symbol)[]

export interface KvEntry {
  key: KvKey
  value: unknown
  versionstamp: string | null
}

export interface KvAtomic {
  check(...checks: { key: string[]; versionstamp: string | null }[]): KvAtomic
  set(key: string[], value: unknown): KvAtomic
  delete(key: string[]): KvAtomic
  commit(): Promise<{ ok: boolean }>
}

/** The members of `Deno.Kv` that are used. */
export interface KvPort {
  get(key: string[]): Promise<KvEntry>
  list(
    selector: { start: string[]; end: string[] },
    options: { limit: number },
  ): AsyncIterable<KvEntry>
  atomic(): KvAtomic
  close(): void
}

/** Takes `kv` over: `close` closes it. */
export function kvStore(kv: KvPort): Store {
  let closed = false
  const step = async <Result>(action: string, run: () => Promise<Result>): Promise<Result> => {
    if (closed) throw storeClosed()
    try {
      return await run()
    } catch (error) {
      throw storeError(error, action)
    }
  }
  return {
    async get(key) {
      checkKey(key)
      return await step(`read "${key}"`, async () => entryOf(key, await kv.get([PREFIX, key])))
    },
    async list(prefix, options) {
      checkList(prefix, options)
      const { limit, after = '' } = options
      const start = after >= prefix ? after + JUST_AFTER : prefix
      const end = prefix + AFTER_ALL
      if (start >= end) return step(`list "${prefix}"`, async () => [])
      return await step(`list "${prefix}"`, async () => {
        const entries: Entry[] = []
        const range = { start: [PREFIX, start], end: [PREFIX, end] }
        for await (const found of kv.list(range, { limit })) {
          entries.push(entryOf(String(found.key[1]), found)!)
        }
        return entries
      })
    },
    async commit(commit) {
      const { checks, puts, deletes } = checkCommit(commit)
      return await step('write to the store', async () => {
        const atomic = kv.atomic()
        for (const { key, version } of checks) {
          const { versionstamp } = version === 0
            ? { versionstamp: null }
            : await kv.get([PREFIX, key])
          if (version !== 0 && versionOf(versionstamp) !== version) return false
          atomic.check({ key: [PREFIX, key], versionstamp })
        }
        for (const { key, text } of puts) atomic.set([PREFIX, key], text)
        for (const key of deletes) atomic.delete([PREFIX, key])
        return (await atomic.commit()).ok
      })
    },
    async close() {
      if (closed) return
      closed = true
      kv.close()
    },
  }
}

function entryOf(key: string, { value, versionstamp }: KvEntry): Entry | undefined {
  const version = versionOf(versionstamp)
  return version === 0 ? undefined : { key, value: fromJsonText(key, value), version }
}

/** 0 where there is none. Throws `store/failed` above 2^53 - 1. */
function versionOf(versionstamp: string | null): number {
  if (versionstamp === null) return 0
  const version = Number.parseInt(versionstamp.slice(0, 16), 16)
  if (Number.isSafeInteger(version) && version > 0) return version
  throw new TunnelError(
    'store/failed',
    `Cannot read a version: found versionstamp ${
      versionstamp.slice(0, 40)
    }, expected 20 hex digits`,
  )
}
