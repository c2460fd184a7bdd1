/**
 * Who may use this relay: API keys, fleet tokens and the admin key. A secret is 256 random bits,
 * shown once; the store holds its SHA-256 alone, which is enough for bits that nobody can guess.
 *
 *   sk_SCOPE_<43>   API key       ft_SCOPE_<43>   fleet token       ak_admin_<43>   admin key
 *
 *   credentials/SCOPE/ID    the record with its hash
 *   credential-hashes/HEX   {scope, id}
 *   credential-ids/ID       scope
 *   credentials-admin       id of the admin key of the first start
 *   credentials-revoked     {serial, recent: [[id, scope], …]}: news for other processes
 */
import { base64url } from './base64url.ts'
import { equal, hex, utf8 } from '../core/bytes.ts'
import type { Clock, Timer } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { TunnelError } from '../core/errors.ts'
import { isName } from '../core/key.ts'
import { globMatches, PATTERN_LENGTH_MAX } from '../core/glob.ts'
import { commitWhen, Turnstile } from './store/retry.ts'
import type { Entry, Json, Put, Store } from './store/store.ts'
import { LIST_MAX } from './store/store.ts'
import { walk } from './store/walk.ts'
import type { WatchOptions } from './store/watch.ts'
import { watch } from './store/watch.ts'

/** Credentials of one scope, revoked and expired ones of the last 30 days included. */
export const CREDENTIALS_PER_SCOPE_MAX = 500
/** How long a revoked or expired one stays listed. */
export const KEPT_MS = 30 * 86_400_000
export const LABEL_LENGTH_MAX = 200
export const PATTERNS_MAX = 50
/** Revocations that other processes can still catch up with one by one. */
const RECENT_MAX = 200
const SECRET_BYTES = 32
const ID_BYTES = 10
const ADMIN_SCOPE = 'admin'
const REVOKED = 'credentials-revoked'
const FIRST_ADMIN = 'credentials-admin'
const PREFIXES = { key: 'sk', token: 'ft', admin: 'ak' } as const
const SECRET = /^(sk|ft|ak)_([a-z0-9-]{1,63})_[A-Za-z0-9_-]{43}$/

/** The one sentence for every refusal, so that it tells a stranger nothing. */
export const REFUSED = 'Cannot admit this credential: found one that is unknown, expired or revoked'

export type CredentialKind = 'key' | 'token' | 'admin'

/** What is kept and listed: everything but the secret. Times in milliseconds since 1970. */
export interface CredentialRecord {
  id: string
  kind: CredentialKind
  scope: string
  label: string
  createdAt: number
  expiresAt?: number
  revokedAt?: number
  /** Patterns (`*`, `?`) of which an endpoint's name must match one. */
  names?: string[]
  /** Label → pattern that the agent's label must match. */
  labels?: Record<string, string>
  /** Most agents at once on this credential. */
  maxAgents?: number
}

/** What a credential allows; made at verification and kept with the link. */
export interface Grant {
  id: string
  kind: CredentialKind | 'certificate'
  scope: string
  admin: boolean
  names?: string[]
  labels?: Record<string, string>
  maxAgents?: number
  /** The link must end then. */
  expiresAt?: number
  /** Of a certificate and those above it: when one of them is revoked, the link must end. */
  serials?: string[]
}

export interface NewCredential {
  kind: CredentialKind
  scope: string
  label?: string | undefined
  expiresAt?: number | undefined
  names?: string[] | undefined
  labels?: Record<string, string> | undefined
  maxAgents?: number | undefined
}

export interface MadeCredential {
  id: string
  /** To be shown once; it is kept nowhere. */
  secret: string
  record: CredentialRecord
}

export interface CredentialPorts {
  store: Store
  crypto: Crypto
  clock: Clock
}

export interface CredentialPage {
  scope?: string
  /** 1 to 1,000. */
  limit?: number
  /** The id of the last record of the page before. */
  after?: string
}

/** As stored: the hash in hex beside the record. */
type Kept = CredentialRecord & { hash: string }

interface Revocations {
  serial: number
  recent: [id: string, scope: string][]
}

type Listener = (id: string, scope: string) => void

export class Credentials {
  readonly #store: Store
  readonly #crypto: Crypto
  readonly #clock: Clock
  readonly #turns = new Turnstile()
  readonly #listeners = new Set<Listener>()
  /** Revoked here and told already, so that the watch does not tell it twice. */
  readonly #told = new Set<string>()
  #serial: number | undefined

  constructor({ store, crypto, clock }: CredentialPorts) {
    this.#store = store
    this.#crypto = crypto
    this.#clock = clock
  }

  /** Throws `credentials/wanted` on what no credential can be, `credentials/too-many`. */
  async create(wanted: NewCredential): Promise<MadeCredential> {
    checkWanted(wanted, this.#clock.now())
    return await this.#turns.run(async () => {
      await this.#makeRoom(wanted.scope)
      const { made, puts } = this.#make(wanted)
      await this.#store.commit({ puts })
      return made
    })
  }

  /**
   * What the secret allows. Throws `credentials/unknown`, `credentials/expired` or
   * `credentials/revoked`, for the log; the sentence is the same for all three.
   */
  async verify(secret: string): Promise<Grant> {
    if (secret.length > 128 || !SECRET.test(secret)) throw refused('unknown')
    const hash = this.#crypto.sha256(utf8(secret))
    const found = await this.#store.get(`credential-hashes/${hex(hash)}`)
    if (!found) throw refused('unknown')
    const { scope, id } = found.value as { scope: string; id: string }
    const kept = await this.#kept(scope, id)
    // Compared again in constant time: the index alone is not what lets somebody in.
    if (!kept || !equal(utf8(kept.hash), utf8(hex(hash)))) throw refused('unknown')
    if (kept.revokedAt !== undefined) throw refused('revoked')
    if (kept.expiresAt !== undefined && kept.expiresAt <= this.#clock.now()) {
      throw refused('expired')
    }
    return {
      id,
      kind: kept.kind,
      scope,
      admin: kept.kind === 'admin',
      ...(kept.names && { names: kept.names }),
      ...(kept.labels && { labels: kept.labels }),
      ...(kept.maxAgents !== undefined && { maxAgents: kept.maxAgents }),
      ...(kept.expiresAt !== undefined && { expiresAt: kept.expiresAt }),
    }
  }

  /** Records of one scope, or of all, a page at a time, by scope and id. */
  async list({ scope, limit = LIST_MAX, after }: CredentialPage = {}): Promise<CredentialRecord[]> {
    if (scope !== undefined && !isName(scope)) return []
    const last = after === undefined ? undefined : await this.#scopeOf(after)
    // A page that began after an id which is forgotten meanwhile would begin anew: it ends.
    if (after !== undefined && last === undefined) return []
    const entries = await this.#store.list(scope ? `credentials/${scope}/` : 'credentials/', {
      limit,
      ...(last !== undefined && { after: `credentials/${last}/${after}` }),
    })
    return entries.map(({ value }) => withoutHash(value as unknown as Kept))
  }

  async get(id: string): Promise<CredentialRecord | undefined> {
    const scope = await this.#scopeOf(id)
    const kept = scope === undefined ? undefined : await this.#kept(scope, id)
    return kept && withoutHash(kept)
  }

  /** From now on nobody is let in with it; listeners are told. False: unknown, or revoked before. */
  async revoke(id: string): Promise<boolean> {
    const scope = await this.#scopeOf(id)
    if (scope === undefined) return false
    const revoked = await this.#turns.run(() =>
      commitWhen(this.#store, async () => {
        const entry = await this.#store.get(`credentials/${scope}/${id}`)
        const kept = entry?.value as unknown as Kept | undefined
        if (!entry || !kept || kept.revokedAt !== undefined) return { result: false }
        const news = await this.#store.get(REVOKED)
        const { serial, recent } = revocations(news)
        return {
          commit: {
            checks: [
              { key: entry.key, version: entry.version },
              { key: REVOKED, version: news?.version ?? 0 },
            ],
            puts: [
              { key: entry.key, value: json({ ...kept, revokedAt: this.#clock.now() }) },
              {
                key: REVOKED,
                value: { serial: serial + 1, recent: [...recent, [id, scope]].slice(-RECENT_MAX) },
              },
            ],
          },
          result: true,
        }
      })
    )
    if (revoked) {
      if (this.#serial !== undefined) this.#told.add(id)
      this.#tell(id, scope)
    }
    return revoked
  }

  /** Told of every revocation, of this process or (under `watch`) another. Returns how to stop. */
  onRevoked(listener: Listener): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  /** Sees what other processes on this store revoke, from this call on. */
  watch(options: WatchOptions = {}): Timer {
    const begun = this.#store.get(REVOKED).then((entry) => {
      this.#serial ??= revocations(entry).serial
    }, (error) => options.failed?.(error))
    return watch(this.#clock, () => begun.then(() => this.#poll()), options)
  }

  /**
   * First start on this store: an admin key, to be shown once. Undefined ever after, and for all
   * but one of several processes that start at once.
   */
  async ensureAdmin(): Promise<MadeCredential | undefined> {
    if (await this.#store.get(FIRST_ADMIN)) return undefined
    const { made, puts } = this.#make({ kind: 'admin', scope: ADMIN_SCOPE, label: 'first start' })
    const first = await this.#store.commit({
      checks: [{ key: FIRST_ADMIN, version: 0 }],
      puts: [...puts, { key: FIRST_ADMIN, value: made.id }],
    })
    return first ? made : undefined
  }

  #make(wanted: NewCredential): { made: MadeCredential; puts: Put[] } {
    const { kind, scope, label = '', expiresAt, names, labels, maxAgents } = wanted
    const secret = `${PREFIXES[kind]}_${scope}_${base64url(this.#crypto.randomBytes(SECRET_BYTES))}`
    const hash = hex(this.#crypto.sha256(utf8(secret)))
    const id = hex(this.#crypto.randomBytes(ID_BYTES))
    const record: CredentialRecord = {
      id,
      kind,
      scope,
      label,
      createdAt: this.#clock.now(),
      ...(expiresAt !== undefined && { expiresAt }),
      ...(names && { names }),
      ...(labels && { labels }),
      ...(maxAgents !== undefined && { maxAgents }),
    }
    return {
      made: { id, secret, record },
      puts: [
        { key: `credentials/${scope}/${id}`, value: json({ ...record, hash }) },
        { key: `credential-hashes/${hash}`, value: { scope, id } },
        { key: `credential-ids/${id}`, value: scope },
      ],
    }
  }

  /** Forgets those long dead; throws when the scope is still full. */
  async #makeRoom(scope: string): Promise<void> {
    const entries = await this.#store.list(`credentials/${scope}/`, { limit: LIST_MAX })
    if (entries.length < CREDENTIALS_PER_SCOPE_MAX) return
    const before = this.#clock.now() - KEPT_MS
    const dead = entries.filter(({ value }) => {
      const { revokedAt, expiresAt } = value as unknown as Kept
      return Math.min(revokedAt ?? Infinity, expiresAt ?? Infinity) < before
    }).slice(0, 30)
    if (dead.length === 0) {
      throw new TunnelError(
        'credentials/too-many',
        `Cannot create a credential: found ${entries.length} of scope "${scope}", expected fewer ` +
          `than ${CREDENTIALS_PER_SCOPE_MAX}`,
        { hint: 'Revoke those not in use; revoked ones are forgotten after 30 days.' },
      )
    }
    await this.#store.commit({
      deletes: dead.flatMap(({ key, value }) => {
        const { id, hash } = value as unknown as Kept
        return [key, `credential-ids/${id}`, `credential-hashes/${hash}`]
      }),
    })
  }

  async #kept(scope: string, id: string): Promise<Kept | undefined> {
    return (await this.#store.get(`credentials/${scope}/${id}`))?.value as unknown as
      | Kept
      | undefined
  }

  async #scopeOf(id: string): Promise<string | undefined> {
    if (!/^[0-9a-f]{20}$/.test(id)) return undefined
    return (await this.#store.get(`credential-ids/${id}`))?.value as string | undefined
  }

  async #poll(): Promise<void> {
    const { serial, recent } = revocations(await this.#store.get(REVOKED))
    // Where the first read failed, what came since is unknown: then all are told.
    const fresh = serial - (this.#serial ?? -1)
    if (fresh === 0) return
    const news = fresh > 0 && fresh <= recent.length
      ? recent.slice(recent.length - fresh)
      : await this.#allRevoked()
    // Only now: a read that failed is tried again by the next poll.
    this.#serial = serial
    for (const [id, scope] of news) if (!this.#told.delete(id)) this.#tell(id, scope)
    // What another process revoked again cannot be, so nothing in it is awaited any longer.
    this.#told.clear()
  }

  /** After more revocations than `recent` holds: all of them, since being told twice does no harm. */
  async #allRevoked(): Promise<[string, string][]> {
    const revoked: [string, string][] = []
    for await (const { value } of walk(this.#store, 'credentials/')) {
      const { id, scope, revokedAt } = value as unknown as Kept
      if (revokedAt !== undefined) revoked.push([id, scope])
    }
    return revoked
  }

  #tell(id: string, scope: string): void {
    for (const listener of [...this.#listeners]) listener(id, scope)
  }
}

/** Whether an endpoint of this name may be claimed under the grant. */
export function allowsName(grant: Pick<Grant, 'admin' | 'names'>, name: string): boolean {
  return grant.admin || !grant.names || grant.names.some((pattern) => globMatches(pattern, name))
}

/** Whether an agent with these labels may use the grant: where it names labels, those and no others. */
export function allowsLabels(
  grant: Pick<Grant, 'admin' | 'labels'>,
  labels: Readonly<Record<string, string>>,
): boolean {
  if (grant.admin || !grant.labels) return true
  const wanted = grant.labels
  return Object.keys(labels).every((label) => Object.hasOwn(wanted, label)) &&
    Object.entries(wanted).every(([label, pattern]) =>
      Object.hasOwn(labels, label) && globMatches(pattern, labels[label]!)
    )
}

/** Throws `credentials/labels` unless the grant allows them. */
export function needLabels(
  grant: Pick<Grant, 'admin' | 'labels'>,
  labels: Readonly<Record<string, string>>,
): void {
  if (allowsLabels(grant, labels)) return
  const words = (all: Readonly<Record<string, string>>): string =>
    Object.entries(all).map(([name, value]) => `${name}=${value}`).join(', ') || 'none'
  throw new TunnelError(
    'credentials/labels',
    `Cannot admit the link: found the labels ${words(labels)}, expected ${words(grant.labels!)}`,
    { hint: 'Say what this agent is: --label NAME=VALUE, or "labels" in its settings.json.' },
  )
}

function checkWanted(wanted: NewCredential, now: number): void {
  const { kind, scope, label = '', expiresAt, names, labels, maxAgents } = wanted
  const fail = (what: string, found: unknown, expected: string): never => {
    throw new TunnelError(
      'credentials/wanted',
      `Cannot create a credential: found ${what} ${JSON.stringify(found)}, expected ${expected}`,
    )
  }
  if (!Object.hasOwn(PREFIXES, kind)) fail('kind', kind, 'key, token or admin')
  if (!isName(scope)) fail('scope', scope, '1 to 63 of a-z 0-9 -')
  if (kind === 'admin' && scope !== ADMIN_SCOPE) fail('scope', scope, '"admin" for an admin key')
  if (kind !== 'admin' && scope === ADMIN_SCOPE) fail('scope', scope, 'one that is not "admin"')
  if (label.length > LABEL_LENGTH_MAX) {
    fail('a label of length', label.length, `at most ${LABEL_LENGTH_MAX}`)
  }
  if (expiresAt !== undefined && !(Number.isSafeInteger(expiresAt) && expiresAt > now)) {
    fail('expiry', expiresAt, 'a time to come, in milliseconds since 1970')
  }
  if (names && (names.length === 0 || names.length > PATTERNS_MAX)) {
    fail('a number of name patterns', names.length, `1 to ${PATTERNS_MAX}`)
  }
  for (const pattern of names ?? []) {
    if (!/^[a-z0-9*?-]{1,63}$/.test(pattern)) fail('name pattern', pattern, 'a-z 0-9 - * ?')
  }
  const labelled = Object.entries(labels ?? {})
  if (labelled.length > PATTERNS_MAX) fail('labels', labelled.length, `at most ${PATTERNS_MAX}`)
  for (const [name, pattern] of labelled) {
    if (!isName(name)) fail('label', name, '1 to 63 of a-z 0-9 -')
    if (typeof pattern !== 'string' || pattern.length > PATTERN_LENGTH_MAX) {
      fail('label pattern', pattern, `at most ${PATTERN_LENGTH_MAX} characters`)
    }
  }
  if (maxAgents !== undefined && !(Number.isSafeInteger(maxAgents) && maxAgents > 0)) {
    fail('a limit of agents', maxAgents, 'a whole number from 1')
  }
}

function refused(reason: 'unknown' | 'expired' | 'revoked'): TunnelError {
  return new TunnelError(`credentials/${reason}`, REFUSED, {
    hint: 'Log in again: sotto login RELAY. An operator makes keys by: sotto relay keys create',
  })
}

function revocations(entry: Entry | undefined): Revocations {
  return (entry?.value ?? { serial: 0, recent: [] }) as unknown as Revocations
}

function withoutHash({ hash: _, ...record }: Kept): CredentialRecord {
  return record
}

/** An interface has no index signature; this says that it is JSON all the same. */
function json(value: object): Json {
  return value as Json
}
