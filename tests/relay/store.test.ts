// runtimes: bun node deno
/**
 * One suite for every store that this runtime has: memory and node:sqlite everywhere, bun:sqlite
 * and the Durable Object's shape over it on Bun, Deno KV on Deno.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { DatabaseSync } from 'node:sqlite'
import { durableStore } from '../../relay/store/durable.ts'
import type { KvPort } from '../../relay/store/kv.ts'
import { kvStore } from '../../relay/store/kv.ts'
import { memoryStore } from '../../relay/store/memory.ts'
import type { SqlPort } from '../../relay/store/sqlite.ts'
import { sqliteStore } from '../../relay/store/sqlite.ts'
import { storeClaims } from './store_suite.ts'

interface Runtimes {
  Bun?: unknown
  Deno?: { openKv?(path: string): Promise<KvPort> }
}
const { Bun, Deno } = globalThis as Runtimes

const test = suite('relay/store')

storeClaims(test, 'memory', memoryStore)
storeClaims(test, 'node:sqlite', () => sqliteStore(new DatabaseSync(':memory:')))

if (Bun) {
  const { Database } = await import('bun:sqlite')
  storeClaims(test, 'bun:sqlite', () => sqliteStore(new Database(':memory:')))
}

storeClaims(test, 'durable shape', () => durableStore(durableShape(new DatabaseSync(':memory:'))))

if (Deno) {
  test('Deno KV is there (--unstable-kv)', () => assert.type(Deno.openKv, 'function'))
  storeClaims(test, 'Deno KV', async () => kvStore(await Deno.openKv!(':memory:')))
}

/** `ctx.storage` of a Durable Object, as far as it is used, over a real SQLite. */
function durableShape(database: SqlPort): Parameters<typeof durableStore>[0] {
  const run = (sql: string, ...bindings: unknown[]): Record<string, unknown>[] =>
    database.prepare(sql).all(...bindings) as Record<string, unknown>[]
  return {
    sql: {
      exec(sql, ...bindings) {
        if (/^\s*(BEGIN|COMMIT|ROLLBACK|PRAGMA)/i.test(sql)) {
          throw new Error(`not authorized: SQLITE_AUTH: ${sql}`)
        }
        const rows = run(sql, ...bindings)
        return { toArray: () => rows }
      },
    },
    transactionSync(inside) {
      run('BEGIN')
      try {
        const result = inside()
        run('COMMIT')
        return result
      } catch (error) {
        run('ROLLBACK')
        throw error
      }
    },
  }
}

test.run()
