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
