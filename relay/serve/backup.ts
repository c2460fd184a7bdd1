/**
 * The whole of a relay's data in one file, taken while it runs, and back into an empty folder: the
 * store as SQLite's own copy of one moment (VACUUM INTO), with the relay's identity and certificates in
 * a table beside. The file is as secret as the folder: 0600, and whoever has it can be this relay.
 */
import {
  chmod,
  link,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  writeFile,
} from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { TunnelError } from '../../core/errors.ts'
import type { SqlPort } from '../store/sqlite.ts'

const STORE = 'relay.db'
const TABLE = 'backup_files'
/** What a relay keeps beside its store; a folder ends in a slash. */
const KEPT = ['identity', 'certificate.json', 'acme/']
const FILE_BYTES_MAX = 1_048_576
const FILES_MAX = 10_000

export type OpenSql = (path: string) => SqlPort | Promise<SqlPort>

export interface BackupResult {
  path: string
  bytes: number
  /** Files beside the store. */
  files: number
}

/** Throws `backup/exists`, `backup/data`, and what SQLite or the disk says as `backup/failed`. */
export async function backUp(
  folder: string,
  file: string,
  openSql: OpenSql,
): Promise<BackupResult> {
  const path = resolve(file)
  if (await exists(path)) throw there(path)
  if (!await exists(join(folder, STORE))) throw noData(folder)
  let work: string | undefined
  try {
    // A folder of our own, 0700: in one that others may write to, nobody else has put a file or a link
    // where the keys go.
    work = await mkdtemp(`${path}.`)
    const half = join(work, STORE)
    // First of all with its rights: SQLite fills an empty file that is there.
    await writeFile(half, '', { mode: 0o600, flag: 'wx' })
    const source = await openSql(join(folder, STORE))
    try {
      run(source, 'PRAGMA busy_timeout = 10000')
      run(source, 'VACUUM INTO ?', half)
    } finally {
      source.close()
    }
    const files = await keptFiles(folder)
    const copy = await openSql(half)
    try {
      run(copy, `CREATE TABLE ${TABLE} (path TEXT PRIMARY KEY, bytes BLOB NOT NULL)`)
      for (const name of files) {
        run(copy, `INSERT INTO ${TABLE} VALUES (?, ?)`, name, await readFile(join(folder, name)))
      }
      checkIntegrity(copy, half)
    } finally {
      copy.close()
    }
    await place(half, path)
    return { path, bytes: (await stat(path)).size, files: files.length }
  } catch (error) {
    throw failed('write the backup', error)
  } finally {
    if (work !== undefined) await rm(work, { recursive: true, force: true })
  }
}

/** Into a folder that is empty or not there. Throws `backup/exists`, `backup/file`, `backup/failed`. */
export async function restore(
  file: string,
  folder: string,
  openSql: OpenSql,
): Promise<BackupResult> {
  const path = resolve(folder)
  const found = await readdir(path).catch((error) => {
    if (error.code === 'ENOENT') return []
    // What is no folder, or cannot be looked into, is not ours to clear away afterwards.
    throw failed(`restore into ${path}`, error)
  })
  if (found.length > 0) {
    throw new TunnelError(
      'backup/exists',
      `Cannot restore into ${path}: found ${found.length} files, expected an empty folder`,
      { hint: 'Choose another folder by --data, or move this one away.' },
    )
  }
  try {
    await mkdir(path, { recursive: true, mode: 0o700 })
    await chmod(path, 0o700)
    const half = join(path, `${STORE}.half`)
    await writeFile(half, await readFile(file), { mode: 0o600 })
    const copy = await openSql(half)
    let files: { path: string; bytes: Uint8Array }[]
    try {
      checkIntegrity(copy, file)
      files = run(copy, `SELECT path, bytes FROM ${TABLE}`) as typeof files
      run(copy, `DROP TABLE ${TABLE}`)
    } finally {
      copy.close()
    }
    for (const { path: name, bytes } of files) {
      // A backup that somebody made up writes nowhere but here.
      if (!/^(acme\/)?[A-Za-z0-9-][A-Za-z0-9.-]*$/.test(name) || !isKept(name)) throw notOurs(file)
      await mkdir(dirname(join(path, name)), { recursive: true, mode: 0o700 })
      await writeFile(join(path, name), bytes, { mode: 0o600 })
    }
    // Last of all: without it the folder is no relay's.
    await rename(half, join(path, STORE))
    return { path, bytes: (await stat(join(path, STORE))).size, files: files.length }
  } catch (error) {
    await rm(path, { recursive: true, force: true })
    throw /no such table|not a database/.test(String((error as Error).message))
      ? notOurs(file)
      : failed(`restore ${file}`, error)
  }
}

/** Never in the place of another file, also of one that came meanwhile. */
async function place(half: string, path: string): Promise<void> {
  try {
    await link(half, path)
  } catch (error) {
    if ((error as { code?: string }).code === 'EEXIST') throw there(path)
    // A file system without links, such as FAT.
    await rename(half, path)
  }
}

function there(path: string): TunnelError {
  return new TunnelError('backup/exists', `Cannot write the backup: found ${path} already`, {
    hint: 'Choose another name; a backup never takes the place of one.',
  })
}

async function keptFiles(folder: string): Promise<string[]> {
  const files: string[] = []
  for (const name of KEPT) {
    if (!name.endsWith('/')) {
      if (await exists(join(folder, name))) files.push(name)
      continue
    }
    for (const inner of await readdir(join(folder, name)).catch(() => [] as string[])) {
      if (!inner.endsWith('.new')) files.push(name + inner)
    }
  }
  if (files.length > FILES_MAX) throw new Error(`found more than ${FILES_MAX} files`)
  for (const name of files) {
    if ((await stat(join(folder, name))).size > FILE_BYTES_MAX) {
      throw new Error(`found ${name} of more than ${FILE_BYTES_MAX} bytes`)
    }
  }
  return files
}

function isKept(name: string): boolean {
  return KEPT.some((kept) => kept.endsWith('/') ? name.startsWith(kept) : kept === name)
}

function run(database: SqlPort, sql: string, ...values: unknown[]): unknown[] {
  const statement = database.prepare(sql)
  try {
    return statement.all(...values)
  } finally {
    statement.finalize?.()
  }
}

function checkIntegrity(database: SqlPort, path: string): void {
  const [row] = run(database, 'PRAGMA integrity_check') as Record<string, unknown>[]
  if (row?.['integrity_check'] !== 'ok') throw new Error(`${path} is damaged`)
}

async function exists(path: string): Promise<boolean> {
  return await lstat(path).then(() => true, () => false)
}

function noData(folder: string): TunnelError {
  return new TunnelError('backup/data', `Cannot back up ${folder}: found no relay's data`, {
    hint: 'Name the folder of the relay by --data.',
  })
}

function notOurs(file: string): TunnelError {
  return new TunnelError('backup/file', `Cannot restore ${file}: it is no backup of a relay`)
}

function failed(action: string, cause: unknown): TunnelError {
  if (cause instanceof TunnelError) return cause
  return new TunnelError('backup/failed', `Cannot ${action}: ${(cause as Error).message}`, {
    cause,
  })
}
