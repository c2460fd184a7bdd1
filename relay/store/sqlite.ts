/**
 * The store of a relay with a disk: one SQLite file, written ahead (WAL), so that a killed process
 * or a power cut leaves all of a commit or nothing. `bun:sqlite` and `node:sqlite` both fit the
 * port as they are; relay/serve opens them.
 */
import type { Store } from './store.ts'
import type { Table } from './table.ts'
import { tableStore } from './table.ts'

/** How long a commit waits for another process, blocking; commits here take milliseconds. */
const BUSY_TIMEOUT_MS = 2000
/** The log is cut back to this when it was folded into the file. */
const LOG_BYTES_MAX = 4 * 1024 * 1024

export interface SqlStatement {
  // Bun, Node and Deno declare parameters and rows each in their own way.
  // deno-lint-ignore no-explicit-any
  all(...parameters: any[]): unknown[]
  /** Bun keeps the file open until every statement was finalized; Node does it by itself. */
  finalize?(): void
}

/** The members that `Database` of `bun:sqlite` and `DatabaseSync` of `node:sqlite` share. */
export interface SqlPort {
  prepare(sql: string): SqlStatement
  close(): void
}

/**
 * Takes the database over: `close` closes it, and so does a failure here. Throws `store/newer`,
 * `store/corrupt`, `store/full`, `store/busy`, `store/failed`.
 */
export function sqliteStore(database: SqlPort): Store {
  const statements = new Map<string, SqlStatement>()
  const rows: Table['rows'] = (sql, ...parameters) => {
    let statement = statements.get(sql)
    if (!statement) statements.set(sql, statement = database.prepare(sql))
    return statement.all(...parameters) as Record<string, unknown>[]
  }
  // Not remembered: a PRAGMA is said once, and a statement of a schema that changes must not be.
  const pragma = (text: string): void => {
    const statement = database.prepare(`PRAGMA ${text}`)
    try {
      statement.all()
    } finally {
      statement.finalize?.()
    }
  }
  const close = (): void => {
    for (const statement of statements.values()) statement.finalize?.()
    statements.clear()
    database.close()
  }
  const transaction = <Result>(run: () => Result): Result => {
    rows('BEGIN IMMEDIATE')
    let result: Result
    try {
      result = run()
      rows('COMMIT')
    } catch (error) {
      try {
        rows('ROLLBACK')
      } catch {
        // A full disk ends the transaction by itself; then there is nothing to roll back.
      }
      throw error
    }
    return result
  }
  try {
    pragma(`busy_timeout = ${BUSY_TIMEOUT_MS}`)
    pragma('journal_mode = WAL')
    // A revocation that was reported done has to survive a power cut.
    pragma('synchronous = FULL')
    pragma(`journal_size_limit = ${LOG_BYTES_MAX}`)
    return tableStore({ rows, transaction, close })
  } catch (error) {
    close()
    throw error
  }
}
