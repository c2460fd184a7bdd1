/**
 * What a relay remembers, as keys and JSON values with versions: little enough that SQLite, a
 * Durable Object and Deno KV all hold it, and strong enough (compare-and-set over several keys)
 * that two relays on one store cannot both win a name.
 *
 *   key      1 to 512 characters of printable ASCII without blanks; slash paths: `names/web`
 *   value    JSON, at most 24 KiB as UTF-8 text
 *   version  a positive whole number that changes with each write of the key; 0 means absent
 *
 * Versions only grow: a key that was deleted and written again never gets an old one back.
 */
import { TunnelError } from '../../core/errors.ts'

/** Longest key, in characters. */
export const KEY_LENGTH_MAX = 512
/** Longest value as JSON text in UTF-8: Deno KV holds 64 KiB, and two bytes a character there. */
export const VALUE_BYTES_MAX = 24 * 1024
/** Most checks, puts and deletes in one commit, together: Deno KV takes 100 checks. */
export const CHANGES_MAX = 100
/** Most entries of one `list`. */
export const LIST_MAX = 1000

const KEY = /^[\x21-\x7e]+$/

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json }

export interface Entry {
  key: string
  value: Json
  version: number
}

export interface Check {
  key: string
  /** The version that the caller saw; 0: absent. */
  version: number
}

export interface Put {
  key: string
  value: Json
}

export interface Commit {
  checks?: Check[]
  puts?: Put[]
  deletes?: string[]
}

export interface ListOptions {
  /** Most entries wanted, 1 to 1,000. */
  limit: number
  /** Only keys after this one. */
  after?: string
}

/**
 * Every method rejects with `store/closed` after `close`, `store/full` when the disk is,
 * `store/busy` when another process held it too long, `store/failed` on anything else below, and
 * `store/key`, `store/value`, `store/limit` on what no store here would take.
 */
export interface Store {
  get(key: string): Promise<Entry | undefined>
  /** Entries whose keys begin with `prefix`, in the order of their bytes. */
  list(prefix: string, options: ListOptions): Promise<Entry[]>
  /** All or nothing. False: a check failed and nothing was written. */
  commit(commit: Commit): Promise<boolean>
  close(): Promise<void>
}

/** A commit whose every part was checked, values as JSON text. */
export interface CheckedCommit {
  checks: Check[]
  puts: { key: string; text: string }[]
  deletes: string[]
}

/** Throws `store/key` unless `key` is one. */
export function checkKey(key: string): string {
  if (KEY.test(key) && key.length <= KEY_LENGTH_MAX) return key
  throw new TunnelError(
    'store/key',
    `Cannot use store key ${JSON.stringify(key.slice(0, 80))}: expected 1 to ${KEY_LENGTH_MAX} ` +
      'printable ASCII characters without blanks',
  )
}

/** Throws `store/key` or `store/limit` unless `list` may be asked so. */
export function checkList(prefix: string, { limit, after }: ListOptions): void {
  checkKey(prefix)
  if (after !== undefined) checkKey(after)
  if (Number.isInteger(limit) && limit >= 1 && limit <= LIST_MAX) return
  throw new TunnelError(
    'store/limit',
    `Cannot list "${prefix}": found a limit of ${limit}, expected 1 to ${LIST_MAX}`,
  )
}

/** Throws `store/key`, `store/value`, `store/limit` on a commit that some store would not take. */
export function checkCommit({ checks = [], puts = [], deletes = [] }: Commit): CheckedCommit {
  const changes = checks.length + puts.length + deletes.length
  if (changes > CHANGES_MAX) {
    throw new TunnelError(
      'store/limit',
      `Cannot commit: found ${changes} changes, expected at most ${CHANGES_MAX}`,
    )
  }
  const seen = new Set<string>()
  const once = (key: string): string => {
    if (seen.has(checkKey(key))) {
      throw new TunnelError('store/key', `Cannot commit: found "${key}" written twice`)
    }
    seen.add(key)
    return key
  }
  return {
    checks: checks.map(({ key, version }) => ({ key: checkKey(key), version })),
    puts: puts.map(({ key, value }) => ({ key: once(key), text: jsonText(key, value) })),
    deletes: deletes.map(once),
  }
}

/** Throws `store/value` on what JSON would lose or a store would not hold. */
function jsonText(key: string, value: Json): string {
  const text: string | undefined = JSON.stringify(value)
  if (text === undefined) {
    throw new TunnelError('store/value', `Cannot store "${key}": found no JSON value`)
  }
  // A UTF-16 unit is at most three bytes, so that most values need no measuring.
  const bytes = text.length * 3 <= VALUE_BYTES_MAX ? 0 : new TextEncoder().encode(text).length
  if (bytes <= VALUE_BYTES_MAX) return text
  throw new TunnelError(
    'store/value',
    `Cannot store "${key}": found ${bytes} bytes, expected at most ${VALUE_BYTES_MAX}`,
  )
}

/** Throws `store/corrupt` on text that no store here wrote. */
export function fromJsonText(key: string, text: unknown): Json {
  try {
    return JSON.parse(text as string) as Json
  } catch (cause) {
    throw new TunnelError(
      'store/corrupt',
      `Cannot read "${key}": found a value that is not JSON`,
      { cause, hint: 'The database was changed by another program or damaged: restore a backup.' },
    )
  }
}

/** What `close` leaves behind: every method rejects with it. */
export function storeClosed(): TunnelError {
  return new TunnelError('store/closed', 'Cannot use the store: it is closed')
}

/** Brings an error of any database below into the family, told apart by SQLite's own names. */
export function storeError(error: unknown, action: string): TunnelError {
  if (error instanceof TunnelError) return error
  const { message, code, errcode, errno } = error as Record<string, unknown>
  const text = `${code ?? ''} ${message ?? error}`
  // Node gives SQLite's number as `errcode`, Bun as `errno`; the low byte is the primary code.
  const number = Number(errcode ?? errno ?? 0) & 0xff
  if (number === 13 || /SQLITE_FULL|database or disk is full|ENOSPC/i.test(text)) {
    return new TunnelError('store/full', `Cannot ${action}: the disk or the database is full`, {
      cause: error,
      hint: 'Free space where the data directory is; what is stored can still be read.',
    })
  }
  if (number === 5 || number === 6 || /SQLITE_BUSY|database (table )?is locked/i.test(text)) {
    return new TunnelError('store/busy', `Cannot ${action}: another process held the database`, {
      cause: error,
      hint: 'Try again; only one relay should run on a data directory.',
    })
  }
  if (number === 11 || number === 26 || /malformed|not a database/i.test(text)) {
    return new TunnelError('store/corrupt', `Cannot ${action}: the database file is damaged`, {
      cause: error,
      hint: 'Restore the data directory from a backup.',
    })
  }
  return new TunnelError('store/failed', `Cannot ${action}: ${message ?? error}`, { cause: error })
}
