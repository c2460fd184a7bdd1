/**
 * The one table that every SQL store here uses, and its migrations by number.
 *
 *   entries (key TEXT PRIMARY KEY, value TEXT, version INTEGER)
 *
 * The row with the empty key, which no caller can name, holds the number of the last migration as
 * its value and the number of the last commit as its version.
 */
import { TunnelError } from '../../core/errors.ts'
import type { Entry, Store } from './store.ts'
import { checkCommit, checkKey, checkList, fromJsonText, storeClosed, storeError } from './store.ts'

/** Larger than any key: keys are of the characters before it (store.ts). */
const AFTER_ALL = '\x7f'

/** What a migration does; its number is its place, from 1. Old ones are never changed. */
const MIGRATIONS: readonly (readonly string[])[] = [
  // 1 was the table itself, which has to be there before its number can be.
  [],
]

/** One database, synchronous, as SQLite is everywhere here. */
export interface Table {
  /** Rows of one statement; `?` are its parameters. */
  rows(sql: string, ...parameters: (string | number)[]): Record<string, unknown>[]
  /** All or nothing: what `run` throws undoes what it wrote. */
  transaction<Result>(run: () => Result): Result
  close(): void
}

/** Makes the table, or brings it up to date, and serves it. Throws `store/newer` and `storeError`s. */
export function tableStore(table: Table): Store {
  let closed = false
  try {
    table.transaction(() => migrate(table))
  } catch (error) {
    throw storeError(error, 'open the store')
  }
  /** Every method is one synchronous step, so that no other comes between. */
  const step = <Result>(action: string, run: () => Result): Result => {
    if (closed) throw storeClosed()
    try {
      return run()
    } catch (error) {
      throw storeError(error, action)
    }
  }
  return {
    async get(key) {
      checkKey(key)
      return step(`read "${key}"`, () => {
        const [row] = table.rows('SELECT key, value, version FROM entries WHERE key = ?', key)
        return row && entryOf(row)
      })
    },
    async list(prefix, options) {
      checkList(prefix, options)
      const { limit, after = '' } = options
      return step(`list "${prefix}"`, () =>
        table.rows(
          'SELECT key, value, version FROM entries WHERE key >= ? AND key > ? AND key < ? ' +
            'ORDER BY key LIMIT ?',
          prefix,
          after,
          prefix + AFTER_ALL,
          limit,
        ).map(entryOf))
    },
    async commit(commit) {
      const { checks, puts, deletes } = checkCommit(commit)
      return step('write to the store', () =>
        table.transaction(() => {
          for (const { key, version } of checks) {
            const [row] = table.rows('SELECT version FROM entries WHERE key = ?', key)
            if (Number(row?.['version'] ?? 0) !== version) return false
          }
          const [head] = table.rows(
            "UPDATE entries SET version = version + 1 WHERE key = '' RETURNING version",
          )
          const version = Number(head!['version'])
          for (const { key, text } of puts) {
            table.rows(
              'INSERT INTO entries (key, value, version) VALUES (?, ?, ?) ' +
                'ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = excluded.version',
              key,
              text,
              version,
            )
          }
          for (const key of deletes) table.rows('DELETE FROM entries WHERE key = ?', key)
          return true
        }))
    },
    async close() {
      if (closed) return
      closed = true
      table.close()
    },
  }
}

function migrate(table: Table): void {
  table.rows(
    'CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL, ' +
      'version INTEGER NOT NULL) STRICT, WITHOUT ROWID',
  )
  const [head] = table.rows("SELECT value FROM entries WHERE key = ''")
  const done = Number(head?.['value'] ?? 0)
  if (done > MIGRATIONS.length) {
    throw new TunnelError(
      'store/newer',
      `Cannot open the store: found migration ${done}, expected at most ${MIGRATIONS.length}`,
      { hint: 'A newer sotto wrote it: upgrade this one, or give another data directory.' },
    )
  }
  if (done === MIGRATIONS.length) return
  for (const statements of MIGRATIONS.slice(done)) {
    for (const statement of statements) table.rows(statement)
  }
  table.rows(
    "INSERT INTO entries (key, value, version) VALUES ('', ?, 0) " +
      'ON CONFLICT (key) DO UPDATE SET value = excluded.value',
    String(MIGRATIONS.length),
  )
}

function entryOf(row: Record<string, unknown>): Entry {
  const key = String(row['key'])
  return { key, value: fromJsonText(key, row['value']), version: Number(row['version']) }
}
