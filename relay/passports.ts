/**
 * Passports as the relay keeps them: bytes under the identity that signed them, newest only. The
 * relay cannot forge one; compare-and-set on the sequence number keeps two processes of one
 * identity from undoing each other's.
 *
 *   passports/KEY          {sequence, bytes (base64url), at, scope?}
 *   passport-counts/SCOPE  how many identities of the scope have one
 */
import type { Clock } from '../core/clock.ts'
import { TunnelError } from '../core/errors.ts'
import { parseKey } from '../core/key.ts'
import { PASSPORT_BYTES_MAX } from '../core/passport.ts'
import { base64url, fromBase64url } from './base64url.ts'
import { commitWhen } from './store/retry.ts'
import type { Commit, Store } from './store/store.ts'
import { walk } from './store/walk.ts'

/** Identities of one scope with a passport: each costs the store up to 6 KiB. */
export const PASSPORTS_PER_SCOPE_MAX = 10_000

export interface StoredPassport {
  bytes: Uint8Array
  sequence: number
}

export interface Publication {
  /** At most 4,096. */
  bytes: Uint8Array
  sequence: number
  /** The sequence number that it replaces; 0: none. */
  expected: number
  /** Whose quota it counts against when it is the identity's first. */
  scope?: string
}

interface Kept {
  sequence: number
  bytes: string
  at: number
  scope?: string
}

export class Passports {
  readonly #store: Store
  readonly #clock: Clock

  constructor(store: Store, clock: Clock) {
    this.#store = store
    this.#clock = clock
  }

  /** Throws `registry/stale`, `registry/quota`, `registry/passport`, `key/format`. */
  async publish(key: string, publication: Publication): Promise<void> {
    parseKey(key)
    const { bytes, sequence, expected, scope } = publication
    if (bytes.length === 0 || bytes.length > PASSPORT_BYTES_MAX) {
      throw new TunnelError(
        'registry/passport',
        `Cannot publish a passport: found ${bytes.length} bytes, expected 1 to ${PASSPORT_BYTES_MAX}`,
      )
    }
    await commitWhen(this.#store, async () => {
      const entry = await this.#store.get(`passports/${key}`)
      const kept = entry?.value as unknown as Kept | undefined
      const current = kept?.sequence ?? 0
      if (current !== expected || !Number.isSafeInteger(sequence) || sequence <= current) {
        throw stale(current, publication)
      }
      const owner = kept ? kept.scope : scope
      const commit: Commit & Required<Pick<Commit, 'checks' | 'puts'>> = {
        checks: [{ key: `passports/${key}`, version: entry?.version ?? 0 }],
        puts: [{
          key: `passports/${key}`,
          value: {
            sequence,
            bytes: base64url(bytes),
            at: this.#clock.now(),
            ...(owner === undefined ? {} : { scope: owner }),
          },
        }],
      }
      if (!kept && owner !== undefined) await this.#count(commit, owner, 1)
      return { commit, result: undefined }
    })
  }

  async get(key: string): Promise<StoredPassport | undefined> {
    parseKey(key)
    const kept = (await this.#store.get(`passports/${key}`))?.value as unknown as Kept | undefined
    return kept && { sequence: kept.sequence, bytes: fromBase64url(kept.bytes) }
  }

  /** Forgets those published before `before` (ms since 1970); the number of them. */
  async prune(before: number): Promise<number> {
    let gone = 0
    for await (const { key } of walk(this.#store, 'passports/')) {
      if (await this.#forget(key, before)) gone++
    }
    return gone
  }

  #forget(key: string, before: number): Promise<boolean> {
    return commitWhen(this.#store, async () => {
      const entry = await this.#store.get(key)
      const kept = entry?.value as unknown as Kept | undefined
      if (!entry || !kept || kept.at >= before) return { result: false }
      const commit = { checks: [{ key, version: entry.version }], puts: [], deletes: [key] }
      if (kept.scope !== undefined) await this.#count(commit, kept.scope, -1)
      return { commit, result: true }
    })
  }

  async #count(
    commit: Required<Pick<Commit, 'checks' | 'puts'>>,
    scope: string,
    change: 1 | -1,
  ): Promise<void> {
    const key = `passport-counts/${scope}`
    const entry = await this.#store.get(key)
    const count = Number(entry?.value ?? 0) + change
    if (count > PASSPORTS_PER_SCOPE_MAX) {
      throw new TunnelError(
        'registry/quota',
        `Cannot publish a passport: found ${PASSPORTS_PER_SCOPE_MAX} identities of scope ` +
          `"${scope}", the most that this relay keeps`,
      )
    }
    commit.checks.push({ key, version: entry?.version ?? 0 })
    commit.puts.push({ key, value: Math.max(0, count) })
  }
}

function stale(current: number, { sequence, expected }: Publication): TunnelError {
  return new TunnelError(
    'registry/stale',
    `Cannot publish passport ${sequence}: found number ${current} stored, expected ${expected}`,
    { hint: `Sign it anew with a number above ${current}.` },
  )
}
