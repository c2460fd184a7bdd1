/**
 * Locks between processes: SQLite's own, on an empty database, by whichever SQLite the runtime has.
 * The system drops such a lock with the process, whatever ends that, and Bun and Node see each other's.
 */

/** The members that `Database` of `bun:sqlite` and `DatabaseSync` of `node:sqlite` share. */
interface Database {
  exec(sql: string): unknown
  close(): void
}

type Engine = new (path: string) => Database

let engine: Promise<Engine> | undefined

/** Databases that are locked; a forgotten release must not let the collector close them. */
const held = new Set<Database>()

/** What gives the lock back; undefined when somebody else has it. Throws what SQLite throws. */
export async function tryLock(path: string): Promise<(() => Promise<void>) | undefined> {
  const Engine = await (engine ??= load())
  let opened: Database | undefined
  try {
    opened = new Engine(path)
    opened.exec('PRAGMA busy_timeout = 0')
    opened.exec('BEGIN EXCLUSIVE')
  } catch (error) {
    opened?.close()
    if (isBusy(error)) return undefined
    throw error
  }
  const database = opened
  held.add(database)
  let released = false
  return () => {
    if (!released) {
      released = true
      held.delete(database)
      database.exec('ROLLBACK')
      database.close()
    }
    return Promise.resolve()
  }
}

async function load(): Promise<Engine> {
  if (process.versions['bun'] !== undefined) return (await import('bun:sqlite')).Database
  return (await import('node:sqlite')).DatabaseSync
}

function isBusy(error: unknown): boolean {
  const { code, message } = (error ?? {}) as { code?: unknown; message?: unknown }
  return String(code).startsWith('SQLITE_BUSY') || /database is locked/.test(String(message))
}
