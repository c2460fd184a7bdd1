/** The relay's database on Bun: `bun:sqlite` behind the port of relay/store/sqlite.ts. */
import { Database } from 'bun:sqlite'
import { chmodSync, closeSync, mkdirSync, openSync } from 'node:fs'
import { dirname } from 'node:path'
import type { Store } from '../store/store.ts'
import { storeError } from '../store/store.ts'
import { sqliteStore } from '../store/sqlite.ts'
import type { SqlPort } from '../store/sqlite.ts'

/** A database as it is, for backups. */
export function openBunSql(path: string): SqlPort {
  return new Database(path)
}

/**
 * Opens `path`, or makes it: the file 0600, its directory 0700. SQLite gives the files beside it
 * (`-wal`, `-shm`) the rights of the file itself. Throws as `sqliteStore` does.
 */
export function bunSqliteStore(path: string): Store {
  try {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
    closeSync(openSync(path, 'a', 0o600))
    chmodSync(path, 0o600)
    return sqliteStore(new Database(path))
  } catch (error) {
    throw storeError(error, `open the store ${path}`)
  }
}
