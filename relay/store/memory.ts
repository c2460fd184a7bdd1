/**
 * The store that forgets: for tests, and for relays that keep nothing. The plain twin that the
 * other stores are compared with, so it has no cleverness: a map, sorted when it is listed.
 */
import type { Entry, Store } from './store.ts'
import { checkCommit, checkKey, checkList, fromJsonText, storeClosed } from './store.ts'

export function memoryStore(): Store {
  const rows = new Map<string, { text: string; version: number }>()
  let clock = 0
  let closed = false
  const open = (): void => {
    if (closed) throw storeClosed()
  }
  const entry = (key: string): Entry | undefined => {
    const row = rows.get(key)
    return row && { key, value: fromJsonText(key, row.text), version: row.version }
  }
  return {
    async get(key) {
      open()
      return entry(checkKey(key))
    },
    async list(prefix, options) {
      open()
      checkList(prefix, options)
      const { limit, after = '' } = options
      return [...rows.keys()].filter((key) => key.startsWith(prefix) && key > after)
        .sort((a, b) => (a < b ? -1 : 1)).slice(0, limit).map((key) => entry(key)!)
    },
    async commit(commit) {
      open()
      const { checks, puts, deletes } = checkCommit(commit)
      if (checks.some(({ key, version }) => (rows.get(key)?.version ?? 0) !== version)) return false
      clock++
      for (const { key, text } of puts) rows.set(key, { text, version: clock })
      for (const key of deletes) rows.delete(key)
      return true
    },
    async close() {
      closed = true
      rows.clear()
    },
  }
}
