/**
 * The store inside a Durable Object: its own SQLite, which the platform replicates and commits.
 * Each object has one store to itself.
 */
import type { Store } from './store.ts'
import { tableStore } from './table.ts'

/** The members of a Durable Object's `ctx.storage` that are used. */
export interface DurableStorage {
  sql: {
    // deno-lint-ignore no-explicit-any
    exec(query: string, ...bindings: any[]): { toArray(): Record<string, unknown>[] }
  }
  transactionSync<Result>(run: () => Result): Result
}

/** Throws `store/newer`, `store/full`, `store/failed`. */
export function durableStore(storage: DurableStorage): Store {
  return tableStore({
    rows: (sql, ...parameters) => storage.sql.exec(sql, ...parameters).toArray(),
    transaction: (run) => storage.transactionSync(run),
    // The object's storage lives as long as the object.
    close: () => {},
  })
}
