/**
 * What a relay remembers of names: who owns which, which identities serve it, what is blocked, and
 * the newest passport of each identity. A name is reserved to a scope on first use and stays so
 * until it is released; one commit decides a race, on every store.
 *
 *   names/NAME              {scope, at}
 *   scope-names/SCOPE/NAME  at
 *   name-counts/SCOPE       how many the scope owns
 *   members/NAME            identities that served it to visitors, latest first
 *   peers/NAME              identities that served it to other agents alone, latest first
 */
import type { Clock, Timer } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { TunnelError } from '../core/errors.ts'
import { isName, NAME_LENGTH_MAX, parseKey } from '../core/key.ts'
import type { Block, BlockTarget } from './blocks.ts'
import { Blocks } from './blocks.ts'
import { Grants } from './grants.ts'
import type { Publication, StoredPassport } from './passports.ts'
import { Passports } from './passports.ts'
import { Statements } from './statements.ts'
import { commitWhen, Turnstile } from './store/retry.ts'
import type { Entry, Store } from './store/store.ts'
import { LIST_MAX } from './store/store.ts'
import type { WatchOptions } from './store/watch.ts'
import { watch } from './store/watch.ts'

export type { Block, BlockTarget } from './blocks.ts'
export type { Publication, StoredPassport } from './passports.ts'

/** Names of one scope where nothing else is said. */
export const NAMES_PER_SCOPE_MAX = 100
/** Identities remembered for one name; the oldest is forgotten first. */
export const MEMBERS_MAX = 64
/** Suggestions tried before a random one. */
const SUGGESTIONS_MAX = 8

/** Labels that only an admin may claim: they would pass for the relay itself, or for its mail. */
export const RESERVED_NAMES: ReadonlySet<string> = new Set(
  ('abuse admin administrator api apps auth autoconfig autodiscover dns hostmaster imap install ' +
    'localhost login mail mta-sts mx noreply ns ns1 ns2 pop pop3 postmaster proof register relay ' +
    'root secure security signin signup smtp sotto ssl sso status support webmaster wpad www')
    .split(' '),
)

export interface NameRecord {
  name: string
  scope: string
  /** Milliseconds since 1970. */
  reservedAt: number
}

export interface RegistryPorts {
  store: Store
  crypto: Crypto
  clock: Clock
  /** Most names of a scope; default 100. */
  namesMax?(scope: string): number
}

export interface Reservation {
  name: string
  scope: string
  /** May take reserved names. */
  admin?: boolean
}

export interface NamePage {
  /** 1 to 1,000. */
  limit?: number
  /** Only names after this one. */
  after?: string
}

interface Owned {
  scope: string
  at: number
}

export class Registry {
  readonly #store: Store
  readonly #crypto: Crypto
  readonly #clock: Clock
  readonly #namesMax: (scope: string) => number
  readonly #turns = new Turnstile()
  readonly #blocks: Blocks
  readonly #passports: Passports
  /** Names that scopes show to each other. */
  readonly grants: Grants
  /** What identities said, signed. */
  readonly statements: Statements

  private constructor(
    ports: RegistryPorts,
    { blocks, grants }: { blocks: Blocks; grants: Grants },
  ) {
    this.#store = ports.store
    this.#crypto = ports.crypto
    this.#clock = ports.clock
    this.#namesMax = (scope) => ports.namesMax?.(scope) ?? NAMES_PER_SCOPE_MAX
    this.#blocks = blocks
    this.#passports = new Passports(ports.store, ports.clock)
    this.grants = grants
    this.statements = new Statements(ports)
  }

  /** Loads blocks and grants, so that `isBlocked` and `shows` can answer at once. */
  static async open(ports: RegistryPorts): Promise<Registry> {
    const { store, clock } = ports
    const [blocks, grants] = [await Blocks.open(store, clock), await Grants.open(store, clock)]
    return new Registry(ports, { blocks, grants })
  }

  /**
   * Reserves a free name; one that the scope owns already is left as it is. Throws
   * `registry/name` (malformed), `registry/reserved`, `registry/blocked`, `registry/taken` (the
   * hint names a free one), `registry/quota`.
   */
  async reserve({ name, scope, admin = false }: Reservation): Promise<void> {
    checkName(name, admin)
    checkScope(scope)
    const block = this.#blocks.find(name, scope)
    if (block) {
      throw new TunnelError(
        'registry/blocked',
        `Cannot reserve "${name}": its ${block.name ? 'name' : 'scope'} is blocked on this relay`,
      )
    }
    await this.#turns.run(() =>
      commitWhen(this.#store, async () => {
        const owner = await this.owner(name)
        if (owner === scope) return { result: undefined }
        if (owner !== undefined) throw await this.#taken(name)
        const count = await this.#store.get(`name-counts/${scope}`)
        const owned = Number(count?.value ?? 0)
        if (owned >= this.#namesMax(scope)) throw tooMany(name, owned)
        const at = this.#clock.now()
        return {
          commit: {
            checks: [
              { key: `names/${name}`, version: 0 },
              { key: `name-counts/${scope}`, version: count?.version ?? 0 },
            ],
            puts: [
              { key: `names/${name}`, value: { scope, at } },
              { key: `scope-names/${scope}/${name}`, value: at },
              { key: `name-counts/${scope}`, value: owned + 1 },
            ],
          },
          result: undefined,
        }
      })
    )
  }

  /** Frees the name and forgets its members; false where the scope does not own it. */
  async release(name: string, scope: string): Promise<boolean> {
    if (!isName(name) || !isName(scope)) return false
    return await this.#turns.run(() =>
      commitWhen(this.#store, async () => {
        const entry = await this.#store.get(`names/${name}`)
        if (!entry || (entry.value as unknown as Owned).scope !== scope) return { result: false }
        const count = await this.#store.get(`name-counts/${scope}`)
        return {
          commit: {
            checks: [
              { key: entry.key, version: entry.version },
              { key: `name-counts/${scope}`, version: count?.version ?? 0 },
            ],
            puts: [
              { key: `name-counts/${scope}`, value: Math.max(0, Number(count?.value ?? 0) - 1) },
            ],
            deletes: [
              entry.key,
              `scope-names/${scope}/${name}`,
              `members/${name}`,
              `peers/${name}`,
            ],
          },
          result: true,
        }
      })
    )
  }

  /** The scope that owns the name. */
  async owner(name: string): Promise<string | undefined> {
    if (!isName(name)) return undefined
    const entry = await this.#store.get(`names/${name}`)
    return (entry?.value as unknown as Owned | undefined)?.scope
  }

  /** Names of one scope, or of all, in their order. */
  async list(scope?: string, { limit = LIST_MAX, after }: NamePage = {}): Promise<NameRecord[]> {
    if (scope !== undefined) checkScope(scope)
    const prefix = scope === undefined ? 'names/' : `scope-names/${scope}/`
    const entries = await this.#store.list(prefix, {
      limit,
      ...(after === undefined ? {} : { after: prefix + after }),
    })
    return entries.map((entry) => nameRecord(entry, prefix, scope))
  }

  /** Cuts a name or a scope off, on every process of this store. Throws `registry/block`. */
  async block(what: BlockTarget & { reason: string }): Promise<void> {
    const { reason, ...target } = what
    await this.#blocks.add(target, reason)
  }

  /** False where there was no such block. */
  async unblock(what: BlockTarget): Promise<boolean> {
    return await this.#blocks.remove(what)
  }

  /** The block that holds, from memory, for every visitor; no name asks for the scope alone. */
  isBlocked(name: string | undefined, scope: string): Block | undefined {
    return this.#blocks.find(name, scope)
  }

  blocks(): Block[] {
    return this.#blocks.all()
  }

  /** Told once for each new block, of this process or (under `watch`) another. */
  onBlocked(listener: (block: Block) => void): () => void {
    return this.#blocks.onAdded(listener)
  }

  /** Sees what other processes on this store block, unblock and grant. */
  watch(options: WatchOptions = {}): Timer {
    const refresh = async (): Promise<void> => {
      await this.#blocks.refresh()
      await this.grants.refresh()
    }
    return watch(this.#clock, refresh, options)
  }

  /** Throws `registry/stale` unless the number stored is `expected` and below `sequence`. */
  async publishPassport(key: string, publication: Publication): Promise<void> {
    await this.#passports.publish(key, publication)
  }

  async passport(key: string): Promise<StoredPassport | undefined> {
    return await this.#passports.get(key)
  }

  /** Forgets passports published before `before` (ms since 1970); how many. */
  async prunePassports(before: number): Promise<number> {
    return await this.#passports.prune(before)
  }

  /**
   * An identity (52 characters) serves the name: from now on it is of the set that visitors
   * pin; to `agents` where it is no host name, so that no visitor hears of it. Throws
   * `registry/unowned` for a name that nobody reserved.
   */
  async memberJoined(
    name: string,
    key: string,
    to: 'visitors' | 'agents' = 'visitors',
  ): Promise<void> {
    checkName(name, true)
    parseKey(key)
    const row = `${to === 'visitors' ? 'members' : 'peers'}/${name}`
    await this.#turns.run(() =>
      commitWhen(this.#store, async () => {
        const reserved = await this.#store.get(`names/${name}`)
        if (!reserved) {
          throw new TunnelError(
            'registry/unowned',
            `Cannot join "${name}": it is not reserved, or was released meanwhile`,
          )
        }
        const entry = await this.#store.get(row)
        const members = (entry?.value ?? []) as string[]
        if (members.includes(key)) return { result: undefined }
        return {
          commit: {
            checks: [
              { key: reserved.key, version: reserved.version },
              { key: row, version: entry?.version ?? 0 },
            ],
            puts: [{
              key: row,
              value: [key, ...members].slice(0, MEMBERS_MAX),
            }],
          },
          result: undefined,
        }
      })
    )
  }

  /** Identities that serve or served the name since it was reserved, latest first, at most 64. */
  async members(name: string): Promise<string[]> {
    if (!isName(name)) return []
    return ((await this.#store.get(`members/${name}`))?.value ?? []) as string[]
  }

  /** The identity that served the name last, to whomever. */
  async latest(name: string): Promise<string | undefined> {
    for (const row of [`peers/${name}`, `members/${name}`]) {
      const [key] = ((await this.#store.get(row))?.value ?? []) as string[]
      if (key !== undefined) return key
    }
    return undefined
  }

  async #taken(name: string): Promise<TunnelError> {
    const free = await this.#suggest(name)
    return new TunnelError(
      'registry/taken',
      `Cannot reserve "${name}": it belongs to another scope on this relay`,
      { hint: `"${free}" is free: use --name ${free}` },
    )
  }

  async #suggest(name: string): Promise<string> {
    const [, stem, digits] = /^(.*?)(?:-([0-9]{1,6}))?$/.exec(name)!
    const numbered = (suffix: string): string =>
      `${stem!.slice(0, NAME_LENGTH_MAX - suffix.length - 1).replace(/-+$/, '')}-${suffix}`
    const first = digits === undefined ? 2 : Number(digits) + 1
    for (let number = first; number < first + SUGGESTIONS_MAX; number++) {
      const free = numbered(String(number))
      if (await this.owner(free) === undefined && !this.#blocks.find(free, '')) return free
    }
    const random = [...this.#crypto.randomBytes(8)].map((byte) => (byte % 36).toString(36))
    return numbered(random.join(''))
  }
}

function checkName(name: string, admin: boolean): void {
  // Names in Punycode look like others in a browser's address bar (RFC 5890 §2.3.2.1).
  if (!isName(name) || name.startsWith('xn--')) {
    throw new TunnelError(
      'registry/name',
      `Cannot reserve ${JSON.stringify(name.slice(0, 80))}: expected 1 to ${NAME_LENGTH_MAX} of ` +
        'a-z 0-9 -, no hyphen at either end, not beginning with xn--',
      { hint: 'Choose a name like "web" or "api-2".' },
    )
  }
  if (admin || !RESERVED_NAMES.has(name)) return
  throw new TunnelError(
    'registry/reserved',
    `Cannot reserve "${name}": it is kept for the relay's operator`,
    { hint: `"my-${name}" may be free, or ask the operator.` },
  )
}

function checkScope(scope: string): void {
  if (isName(scope)) return
  throw new TunnelError(
    'registry/scope',
    `Cannot use scope ${JSON.stringify(scope.slice(0, 80))}: expected 1 to ${NAME_LENGTH_MAX} of ` +
      'a-z 0-9 -',
  )
}

function tooMany(name: string, owned: number): TunnelError {
  return new TunnelError(
    'registry/quota',
    `Cannot reserve "${name}": found ${owned} names in this scope, the most it may own`,
    { hint: 'Release one that is not needed: sotto relay names release NAME' },
  )
}

function nameRecord({ key, value }: Entry, prefix: string, scope?: string): NameRecord {
  const name = key.slice(prefix.length)
  if (scope !== undefined) return { name, scope, reservedAt: Number(value) }
  const owned = value as unknown as Owned
  return { name, scope: owned.scope, reservedAt: owned.at }
}
