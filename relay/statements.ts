/**
 * Statements that identities signed (docs/protocol.md §14), as the relay keeps them beside passports:
 * bytes that it cannot forge and that nobody believes without their signatures. Each is kept under the
 * identities that it speaks of, so that whoever looks one up finds what was said of it.
 *
 *   statements/KEY          what there is: [{id, kind, at, by?, order?, until?, scope?}], at most 16
 *   statement-bytes/KEY/ID  base64url; ID: the first 16 bytes of the SHA-256, in hex
 *   statement-counts/SCOPE  how many are kept for its agents
 */
import { equal, hex } from '../core/bytes.ts'
import type { Clock } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { TunnelError } from '../core/errors.ts'
import { formatKey, parseKey } from '../core/key.ts'
import { openStatement } from '../core/statement.ts'
import type { Statement, StatementKind } from '../core/statement.ts'
import { base64url, fromBase64url } from './base64url.ts'
import { commitWhen, Turnstile } from './store/retry.ts'
import type { Commit, Json, Store } from './store/store.ts'

/** Of one identity. */
export const STATEMENTS_MAX = 16
/** Kept for the agents of one scope: each costs the store up to 6 KiB. */
export const STATEMENTS_PER_SCOPE_MAX = 10_000
const ID_BYTES = 16

export interface StatementsPorts {
  store: Store
  crypto: Crypto
  clock: Clock
}

export interface Publisher {
  /** KEY of the agent that publishes. */
  key: string
  /** Whose quota it counts against. */
  scope: string
}

/** One kept statement, but for its bytes. */
interface Kept {
  id: string
  kind: StatementKind
  /** Milliseconds since 1970 when it came. */
  at: number
  /** KEY of the authority, of a vouch or a withdrawal. */
  by?: string
  /** Which of two by the same authority is the newer one. */
  order?: number
  /** Milliseconds since 1970 until which a vouch holds. */
  until?: number
  scope?: string
}

/** What is served first: what matters most, should not all be read. */
const RANK: Record<StatementKind, number> = { revocation: 0, rotation: 1, withdrawal: 2, vouch: 3 }

export class Statements {
  readonly #ports: StatementsPorts
  readonly #turns = new Turnstile()
  readonly #listeners = new Set<(key: string) => void>()

  constructor(ports: StatementsPorts) {
    this.#ports = ports
  }

  /** Told the KEY of each identity whose revocation is kept by this process. */
  onRevoked(listener: (key: string) => void): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  /**
   * The identities under which a statement belongs, its signatures checked. Throws what they are wrong
   * with, and `statements/publisher` when it is not for this agent to publish.
   */
  about(bytes: Uint8Array, publisher: string): string[] {
    const said = openStatement(this.#ports.crypto, bytes)
    const own = parseKey(publisher)
    // A revocation may come from any machine that has it: the identity itself may be lost or stolen.
    // Withdrawals replace each other, so that who brings one cannot fill anything up.
    switch (said.kind) {
      case 'revocation':
        return [formatKey(said.identity)]
      case 'withdrawal':
        return [formatKey(said.authority)]
      case 'vouch':
        if (!equal(said.identity, own)) throw notYours('the identity that it vouches for')
        return [publisher]
      case 'rotation':
        if (!equal(said.old, own) && !equal(said.new, own)) {
          throw notYours('one of its two identities')
        }
        return [formatKey(said.old), formatKey(said.new)]
    }
  }

  /** Keeps it under one identity of `about`. Throws `statements/stale`, `statements/limit`, `statements/quota`. */
  async keep(key: string, bytes: Uint8Array, { scope }: Publisher): Promise<void> {
    const { store, crypto, clock } = this.#ports
    const said = openStatement(this.#ports.crypto, bytes)
    const fresh: Kept = {
      id: hex(crypto.sha256(bytes).subarray(0, ID_BYTES)),
      kind: said.kind,
      at: clock.now(),
      ...orderOf(said),
      scope,
    }
    const kept = await this.#turns.run(() =>
      commitWhen(store, async () => {
        const entry = await store.get(`statements/${key}`)
        const all = (entry?.value ?? []) as unknown as Kept[]
        const next = withFresh(all, fresh, clock.now())
        if (!next) return { result: false }
        const commit: Required<Commit> = {
          checks: [{ key: `statements/${key}`, version: entry?.version ?? 0 }],
          puts: [
            { key: `statements/${key}`, value: next as unknown as Json },
            { key: `statement-bytes/${key}/${fresh.id}`, value: base64url(bytes) },
          ],
          deletes: all.filter((one) => !next.includes(one))
            .map(({ id }) => `statement-bytes/${key}/${id}`),
        }
        await this.#count(commit, { all, next })
        return { commit, result: true }
      })
    )
    if (!kept || fresh.kind !== 'revocation') return
    for (const listener of [...this.#listeners]) listener(key)
  }

  /** Those of one identity: revocations, rotations, withdrawals, vouches, each the latest first. */
  async of(key: string): Promise<Uint8Array[]> {
    const found: Uint8Array[] = []
    for (const { id } of await this.#kept(key)) {
      const entry = await this.#ports.store.get(`statement-bytes/${key}/${id}`)
      if (entry) found.push(fromBase64url(entry.value as string))
    }
    return found
  }

  /** The bytes were checked when they came, and a store is as trusted as the relay itself. */
  async isRevoked(key: string): Promise<boolean> {
    return (await this.#kept(key)).some(({ kind }) => kind === 'revocation')
  }

  async #kept(key: string): Promise<Kept[]> {
    const all =
      ((await this.#ports.store.get(`statements/${key}`))?.value ?? []) as unknown as Kept[]
    return all.sort((a, b) => RANK[a.kind] - RANK[b.kind] || b.at - a.at)
  }

  async #count(
    commit: Required<Commit>,
    { all, next }: { all: readonly Kept[]; next: readonly Kept[] },
  ): Promise<void> {
    const changes = new Map<string, number>()
    const change = ({ scope }: Kept, by: number): void => {
      if (scope !== undefined) changes.set(scope, (changes.get(scope) ?? 0) + by)
    }
    for (const one of all) if (!next.includes(one)) change(one, -1)
    for (const one of next) if (!all.includes(one)) change(one, 1)
    for (const [scope, by] of changes) {
      if (by === 0) continue
      const key = `statement-counts/${scope}`
      const entry = await this.#ports.store.get(key)
      const count = Number(entry?.value ?? 0) + by
      if (by > 0 && count > STATEMENTS_PER_SCOPE_MAX) {
        throw new TunnelError(
          'statements/quota',
          `Cannot keep statement: found ${STATEMENTS_PER_SCOPE_MAX} of scope "${scope}", the most that this relay keeps`,
        )
      }
      commit.checks.push({ key, version: entry?.version ?? 0 })
      commit.puts.push({ key, value: Math.max(0, count) })
    }
  }
}

function orderOf(said: Statement): Partial<Kept> {
  switch (said.kind) {
    case 'vouch':
      return { by: formatKey(said.authority), order: said.notBefore, until: said.notAfter }
    case 'withdrawal':
      return { by: formatKey(said.authority), order: said.sequence }
    default:
      return {}
  }
}

/** What is kept from now on; undefined: nothing changes. Throws `statements/stale`, `statements/limit`. */
function withFresh(all: readonly Kept[], fresh: Kept, now: number): Kept[] | undefined {
  const { id, kind, by, order = 0 } = fresh
  if (all.some((one) => one.id === id)) return undefined
  // One revocation says all; another could only take up room.
  if (kind === 'revocation' && all.some((one) => one.kind === kind)) return undefined
  const older = by === undefined ? undefined : all.find((one) => one.kind === kind && one.by === by)
  if (older && (older.order ?? 0) >= order) {
    throw new TunnelError(
      'statements/stale',
      `Cannot keep ${kind}: found number ${order}, expected one above ${older.order ?? 0}`,
      { hint: 'A newer one of that authority is kept already.' },
    )
  }
  let rest = all.filter((one) => one !== older)
  if (rest.length >= STATEMENTS_MAX) rest = rest.filter(({ until }) => !(until && until < now))
  if (rest.length >= STATEMENTS_MAX) {
    if (kind !== 'revocation') {
      throw new TunnelError(
        'statements/limit',
        `Cannot keep ${kind}: found ${STATEMENTS_MAX} statements of this identity, the most there may be`,
      )
    }
    // Nobody can fill an identity up against its own revocation.
    rest = rest.slice(1)
  }
  return [...rest, fresh]
}

function notYours(expected: string): TunnelError {
  return new TunnelError(
    'statements/publisher',
    `Cannot keep statement: found one of others, expected that its publisher is ${expected}`,
  )
}
