/** Reads all entries under a prefix, a page at a time. */
import type { Entry, Store } from './store.ts'
import { LIST_MAX } from './store.ts'

/**
 * Entries in the order of their keys. Those written meanwhile are seen where their key comes after
 * the page being read; a deleted one is not seen when its page comes later.
 */
export async function* walk(store: Store, prefix: string): AsyncGenerator<Entry> {
  let page = await store.list(prefix, { limit: LIST_MAX })
  for (;;) {
    yield* page
    const last = page.at(-1)
    if (!last || page.length < LIST_MAX) return
    page = await store.list(prefix, { limit: LIST_MAX, after: last.key })
  }
}
