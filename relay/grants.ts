/**
 * Names that one scope shows to another: what the other may then look up, list and visit. Held in
 * memory, since every stream is checked, and in the store, where other processes see them.
 *
 *   grants/SCOPE/TO/PATTERN  ms since 1970; patterns are those of core/glob.ts over names of SCOPE
 *   grants-changed           its version changes with every grant
 */
import type { Clock } from '../core/clock.ts'
import { TunnelError } from '../core/errors.ts'
import { isName } from '../core/key.ts'
import { globMatches } from '../core/glob.ts'
import type { Entry, Store } from './store/store.ts'
import { WatchedList } from './store/watched_list.ts'

/** Of one scope. */
export const GRANTS_PER_SCOPE_MAX = 256
/** Of all scopes: all are in memory, and looked through when a stranger asks. */
export const GRANTS_MAX = 10_000
const PATTERN = /^[a-z0-9*?-]{1,63}$/

/** Names of `scope` that match `names` are shown to the agents of `to`. */
export interface Shown {
  scope: string
  to: string
  names: string
}

export interface ShownRecord extends Shown {
  /** Milliseconds since 1970. */
  since: number
}

export class Grants {
  readonly #list: WatchedList<ShownRecord>
  readonly #clock: Clock

  private constructor(list: WatchedList<ShownRecord>, clock: Clock) {
    this.#list = list
    this.#clock = clock
  }

  static async open(store: Store, clock: Clock): Promise<Grants> {
    const list = await WatchedList.open(store, clock, {
      prefix: 'grants/',
      changed: 'grants-changed',
      max: GRANTS_MAX,
      read: readGrant,
    })
    return new Grants(list, clock)
  }

  /** May agents of `to` see that name of `scope`? Their own, always. */
  shows(name: string, { scope, to }: { scope: string; to: string }): boolean {
    if (scope === to) return true
    return showsName(this.from(scope), { name, to })
  }

  /** Those that a scope made. */
  from(scope: string): ShownRecord[] {
    return this.#list.all().filter((one) => one.scope === scope)
  }

  /** Those that were made to a scope. */
  to(scope: string): ShownRecord[] {
    return this.#list.all().filter((one) => one.to === scope)
  }

  /** Both; without a scope, all. */
  async list(scope?: string): Promise<ShownRecord[]> {
    return scope === undefined ? this.#list.all() : [...this.from(scope), ...this.to(scope)]
  }

  /** One that is there already is left as it is. Throws `grants/scope`, `grants/names`, `grants/limit`. */
  async add(shown: Shown): Promise<ShownRecord> {
    const key = keyOf(shown)
    const kept = this.#list.get(key)
    if (kept) return kept
    const { scope, to, names } = shown
    const own = this.from(scope).length
    if (own >= GRANTS_PER_SCOPE_MAX) throw tooMany(`${own} grants of "${scope}"`)
    if (this.#list.size >= GRANTS_MAX) throw tooMany(`${GRANTS_MAX} grants on this relay`)
    const since = this.#clock.now()
    await this.#list.add(key, since)
    return { scope, to, names, since }
  }

  /** False where there was no such grant. Streams that are open go on. */
  async remove(shown: Shown): Promise<boolean> {
    return await this.#list.remove(keyOf(shown))
  }

  /** Sees what other processes on this store grant. */
  refresh(): Promise<void> {
    return this.#list.refresh()
  }
}

function readGrant({ key, value }: Entry): ShownRecord {
  const [, scope, to, names] = key.split('/') as [string, string, string, string]
  return { scope, to, names, since: Number(value) }
}

/** Whether one of the grants shows that name to agents of `to`. */
export function showsName(
  grants: readonly Pick<Shown, 'to' | 'names'>[],
  { name, to }: { name: string; to: string },
): boolean {
  return grants.some((grant) => grant.to === to && globMatches(grant.names, name))
}

function keyOf({ scope, to, names }: Shown): string {
  if (!isName(scope) || !isName(to) || scope === to) {
    throw new TunnelError(
      'grants/scope',
      `Cannot grant names of ${short(scope)} to ${short(to)}: expected two scopes that differ`,
    )
  }
  if (!PATTERN.test(names)) {
    throw new TunnelError(
      'grants/names',
      `Cannot grant ${short(names)}: expected a name, with * for any text and ? for one character`,
    )
  }
  return `grants/${scope}/${to}/${names}`
}

function tooMany(found: string): TunnelError {
  return new TunnelError(
    'grants/limit',
    `Cannot grant more names: found ${found}, the most there may be`,
    { hint: 'Use a pattern, or remove some: sotto relay grants remove NAME --to SCOPE' },
  )
}

function short(word: string): string {
  return JSON.stringify(String(word).slice(0, 80))
}
