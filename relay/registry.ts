import type { Clock, Timer } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import type { Store } from './store/store.ts'

export interface NameRecord {
  name: string
  scope: string
  reservedAt: number
}
export interface Block {
  name?: string
  scope?: string
  reason: string
  since: number
}
export interface StoredPassport {
  bytes: Uint8Array
  sequence: number
}
export interface RegistryPorts {
  store: Store
  crypto: Crypto
  clock: Clock
  /** Most names of a scope; `(scope) => quota.limit('names', scopeWho(scope))`. */
  namesMax?: (scope: string) => number
}

export declare class Registry {
  /** Loads the blocks, so that `isBlocked` can answer at once. */
  static open(ports: RegistryPorts): Promise<Registry>
  /** Throws registry/name, /reserved, /taken (hint: a free name), /quota. */
  reserve(wanted: { name: string; scope: string; admin?: boolean }): Promise<void>
  /** False where the scope does not own it. */
  release(name: string, scope: string): Promise<boolean>
  owner(name: string): Promise<string | undefined>
  list(scope?: string, options?: { limit?: number; after?: string }): Promise<NameRecord[]>
  block(what: { name?: string; scope?: string; reason: string }): Promise<void>
  unblock(what: { name?: string; scope?: string }): Promise<boolean>
  isBlocked(name: string | undefined, scope: string): Block | undefined
  blocks(): Block[]
  onBlocked(listener: (block: Block) => void): () => void
  /** Sees what other processes on this store blocked; every 500 ms unless told. */
  watch(intervalMs?: number): Timer
  /** `key`: 52 characters. Throws registry/stale unless the one stored has number `expected` (0: none). */
  publishPassport(
    key: string,
    bytes: Uint8Array,
    options: { sequence: number; expected: number },
  ): Promise<void>
  passport(key: string): Promise<StoredPassport | undefined>
  memberJoined(name: string, key: string): Promise<void>
  /** Identities that serve or served the name, latest first, at most 64. */
  members(name: string): Promise<string[]>
}
