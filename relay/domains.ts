/**
 * Host names that people own elsewhere, and that lead to an endpoint here. Who may claim one is what its
 * DNS says, either way:
 *
 *   _sotto.app.example.com  TXT    "sotto-scope=SCOPE; relay=RELAY"   that scope, on that relay
 *   app.example.com         CNAME  LABEL.SECURE                       the scope that owns the label
 *
 * A TXT of this relay decides alone where there is one. The first scope that claims keeps the name while
 * DNS names it; it is looked at again for as long as the name is routed. The relay routes by it and no
 * more: whose certificate visitors get is between the owner of the name and a CA.
 *
 * A label that its scope gave back takes no domain along to whoever has it next: where it is the label
 * that changed hands, and not the CNAME, only a TXT says that the owner of the domain means the new scope.
 *
 *   domains/DOMAIN              {scope, at, seen, label}
 *   scope-domains/SCOPE/DOMAIN  at
 */
import type { Clock, Timer } from '../core/clock.ts'
import { readHostName } from '../core/dns.ts'
import { asTunnelError, isTunnelError, TunnelError } from '../core/errors.ts'
import type { Resolver } from '../core/resolver.ts'
import { under } from './ingress.ts'
import { commitWhen, Turnstile } from './store/retry.ts'
import type { Store } from './store/store.ts'

export const DOMAINS_PER_SCOPE_MAX = 20
/** Routed by this process. */
const ROUTES_MAX = 10_000
/** Claims whose DNS is being asked. */
const CHECKS_MAX = 256
/** Of them for one scope: name servers that answer slowly are its own, and hold up nobody else. */
const CHECKS_PER_SCOPE_MAX = 24
/** How often DNS is asked again, within what it says itself. */
const RECHECK_MS_MIN = 60_000
const RECHECK_MS_MAX = 3_600_000
/** A name stays where it is for so long while DNS gives no answer at all. */
export const SILENT_MS_MAX = 86_400_000
const TXT_BEGIN = 'sotto-scope='

export interface DomainsPorts {
  clock: Clock
  store: Store
  resolver: Pick<Resolver, 'lookup'>
  /** The relay's own names, and its two wildcard domains: nobody's to claim. */
  names: readonly string[]
  domain: string
  secureDomain: string
  appsDomain: string
  /** The scope that owns a label of this relay. */
  owner(label: string): Promise<string | undefined>
  log(event: string, fields: Record<string, string>): void
}

export interface Route {
  readonly domain: string
  readonly scope: string
  /** The endpoint's name. */
  readonly label: string
}

interface Live extends Route {
  timer: Timer | undefined
}

interface Owned {
  scope: string
  at: number
  /** When DNS last named the scope. */
  seen: number
  /** By which label, where it was a CNAME. */
  label?: string
}

export interface DomainClaim extends Route {
  /** Whether the credential may use the name; absent: it may use any. */
  allows?(name: string): boolean
}

/** What DNS says of a name. */
interface Named {
  scopes: ReadonlySet<string>
  by: 'txt' | 'cname'
  /** What a CNAME leads to. */
  label?: string | undefined
  ttlSeconds: number
}

export class Domains {
  readonly #ports: DomainsPorts
  readonly #routes = new Map<string, Live>()
  readonly #turns = new Turnstile()
  /** Claims whose DNS is being asked, by scope. */
  readonly #checks = new Map<string, number>()
  /** Whether anybody serves that label of that scope here. */
  serves: (route: Route) => boolean = () => true

  constructor(ports: DomainsPorts) {
    this.#ports = ports
  }

  get size(): number {
    return this.#routes.size
  }

  /** By the server name of a visitor, lower case. */
  find(domain: string): Route | undefined {
    return this.#routes.get(domain)
  }

  /**
   * Routes the name to the scope's endpoint. Throws `dns/name`, and `domains/own`, `domains/unproven`
   * (the hint has the records), `domains/taken`, `domains/handed`, `domains/restricted`,
   * `domains/limit`, `domains/busy`, `domains/dns`.
   */
  async claim(
    { domain: words, scope, label, allows }: DomainClaim,
  ): Promise<{ domain: string; by: string }> {
    const domain = readHostName(words)
    this.#refuseOwn(domain)
    let named: Named
    try {
      named = await this.#checked(scope, domain)
    } catch (error) {
      if (isTunnelError(error, 'domains/busy')) throw error
      const before = this.#routes.get(domain)
      const keeps = allows === undefined || (before?.scope === scope && before.label === label)
      if (!keeps || !await this.#keepsWhileSilent(domain, scope)) {
        throw new TunnelError(
          'domains/dns',
          `Cannot claim ${domain}: ${(error as Error).message}`,
          { cause: error },
        )
      }
      this.#route({ domain, scope, label }, RECHECK_MS_MIN)
      return { domain, by: 'kept' }
    }
    if (!named.scopes.has(scope)) {
      await this.#lose(domain, scope, named)
      throw this.#unproven(domain, { scope, label })
    }
    // A TXT names the scope as a whole, of which such a credential is a part.
    if (allows && !(allows(label) && named.label !== undefined && allows(named.label))) {
      throw new TunnelError(
        'domains/restricted',
        `Cannot claim ${domain}: your key may use some names of its scope alone`,
        { hint: `Have its DNS say: ${domain}. CNAME ${label}.${this.#ports.secureDomain}.` },
      )
    }
    await this.#keep(domain, { scope, named })
    this.#route({ domain, scope, label }, afterMs(named.ttlSeconds))
    return { domain, by: named.by }
  }

  close(): void {
    for (const { timer } of this.#routes.values()) timer?.cancel()
    this.#routes.clear()
  }

  #refuseOwn(domain: string): void {
    const { names, secureDomain, appsDomain, domain: own } = this.#ports
    const bases = [own, secureDomain, appsDomain, ...names]
    if (!bases.some((base) => domain === base || domain.endsWith(`.${base}`))) return
    throw new TunnelError('domains/own', `Cannot claim ${domain}: it is a name of this relay`, {
      hint: 'Choose a label with --name instead.',
    })
  }

  async #checked(scope: string, domain: string): Promise<Named> {
    const own = this.#checks.get(scope) ?? 0
    const all = [...this.#checks.values()].reduce((sum, count) => sum + count, 0)
    if (
      own >= CHECKS_PER_SCOPE_MAX || all >= CHECKS_MAX || this.#routes.size >= ROUTES_MAX
    ) {
      throw new TunnelError(
        'domains/busy',
        `Cannot claim ${domain}: too many names are being asked`,
      )
    }
    this.#checks.set(scope, own + 1)
    try {
      return await this.#ask(domain)
    } finally {
      const left = this.#checks.get(scope)! - 1
      if (left > 0) this.#checks.set(scope, left)
      else this.#checks.delete(scope)
    }
  }

  async #ask(domain: string): Promise<Named> {
    const { resolver, secureDomain, owner, domain: relay } = this.#ports
    const texts = await resolver.lookup(`_sotto.${domain}`, 'TXT')
    const scopes = texts.values.flatMap((words) => scopeOf(words, relay) ?? [])
    if (scopes.length > 0) {
      return { scopes: new Set(scopes), by: 'txt', ttlSeconds: texts.ttlSeconds }
    }
    const alias = await resolver.lookup(domain, 'CNAME')
    const label = alias.values.length === 1 ? under(alias.values[0]!, secureDomain) : undefined
    const scope = label === undefined ? undefined : await owner(label)
    return {
      scopes: new Set(scope === undefined ? [] : [scope]),
      by: 'cname',
      label,
      ttlSeconds: Math.min(texts.ttlSeconds, alias.ttlSeconds),
    }
  }

  /** Puts the name down as the scope's. Throws `domains/taken`, `domains/handed`, `domains/limit`. */
  async #keep(domain: string, { scope, named }: { scope: string; named: Named }): Promise<void> {
    const { store, clock } = this.#ports
    await this.#turns.run(() =>
      commitWhen(store, async () => {
        const key = `domains/${domain}`
        const entry = await store.get(key)
        const owned = entry?.value as unknown as Owned | undefined
        const now = clock.now()
        if (owned && owned.scope !== scope && named.scopes.has(owned.scope)) {
          throw new TunnelError(
            'domains/taken',
            `Cannot claim ${domain}: another scope has it, and its DNS names that one too`,
            { hint: `Take the other scope's record off _sotto.${domain}, then try again.` },
          )
        }
        const { label } = named
        if (owned && owned.scope !== scope && label !== undefined && owned.label === label) {
          throw this.#handed(domain, { scope, label })
        }
        if (owned?.scope !== scope) await this.#makeRoom(domain, scope)
        const isKnown = owned?.scope === scope && owned.label === label
        // Not each look at DNS is worth a write.
        if (isKnown && now - owned.seen < RECHECK_MS_MAX) return { result: undefined }
        const at = owned?.scope === scope ? owned.at : now
        return {
          commit: {
            checks: [{ key, version: entry?.version ?? 0 }],
            puts: [
              {
                key,
                value: { scope, at, seen: now, ...(label === undefined ? {} : { label }) },
              },
              { key: `scope-domains/${scope}/${domain}`, value: at },
            ],
            ...(owned && owned.scope !== scope
              ? { deletes: [`scope-domains/${owned.scope}/${domain}`] }
              : {}),
          },
          result: undefined,
        }
      })
    )
  }

  /** Names of the scope that nobody routes make room for one that somebody wants. */
  async #makeRoom(domain: string, scope: string): Promise<void> {
    const prefix = `scope-domains/${scope}/`
    const { store } = this.#ports
    const entries = await store.list(prefix, { limit: DOMAINS_PER_SCOPE_MAX })
    if (entries.length < DOMAINS_PER_SCOPE_MAX) return
    const idle = entries.map(({ key }) => key.slice(prefix.length))
      .find((one) => !this.#routes.has(one))
    if (idle !== undefined) return await this.#forget(idle, scope)
    throw new TunnelError(
      'domains/limit',
      `Cannot claim ${domain}: found ${DOMAINS_PER_SCOPE_MAX} names of this scope, the most there may be`,
    )
  }

  async #forget(domain: string, scope: string): Promise<void> {
    const { store } = this.#ports
    await commitWhen(store, async () => {
      const entry = await store.get(`domains/${domain}`)
      if ((entry?.value as unknown as Owned | undefined)?.scope !== scope) {
        return { result: undefined }
      }
      return {
        commit: {
          checks: [{ key: entry!.key, version: entry!.version }],
          deletes: [entry!.key, `scope-domains/${scope}/${domain}`],
        },
        result: undefined,
      }
    })
  }

  /**
   * DNS says that the name is not the scope's, or no more; no `named`: it says nothing. Where the same
   * CNAME is there as before, it is the label that was given back: whose it was is remembered.
   */
  async #lose(domain: string, scope: string, named?: Named): Promise<void> {
    const route = this.#routes.get(domain)
    if (route?.scope === scope) this.#drop(route)
    await this.#turns.run(async () => {
      const entry = await this.#ports.store.get(`domains/${domain}`)
      const owned = entry?.value as unknown as Owned | undefined
      if (owned?.label !== undefined && owned.label === named?.label) return
      await this.#forget(domain, scope)
    })
  }

  async #keepsWhileSilent(domain: string, scope: string): Promise<boolean> {
    const { store, clock } = this.#ports
    const entry = await store.get(`domains/${domain}`)
    const owned = entry?.value as unknown as Owned | undefined
    return owned?.scope === scope && clock.now() - owned.seen < SILENT_MS_MAX
  }

  #route(route: Route, ms: number): void {
    this.#routes.get(route.domain)?.timer?.cancel()
    const live: Live = { ...route, timer: undefined }
    this.#routes.set(route.domain, live)
    this.#again(live, ms)
  }

  #drop(live: Live): void {
    live.timer?.cancel()
    if (this.#routes.get(live.domain) === live) this.#routes.delete(live.domain)
  }

  #again(live: Live, ms: number): void {
    live.timer = this.#ports.clock.after(ms, () => {
      this.#look(live).catch((error) => {
        this.#ports.log('domain unchecked', {
          domain: live.domain,
          reason: (error as Error).message,
        })
        if (this.#routes.get(live.domain) === live) this.#again(live, RECHECK_MS_MIN)
      })
    })
  }

  /** Once more, while it is routed. */
  async #look(live: Live): Promise<void> {
    const { domain, scope } = live
    // Whoever serves it next claims it again.
    if (!this.serves(live)) return this.#drop(live)
    let named: Named
    try {
      named = await this.#ask(domain)
    } catch (error) {
      if (await this.#keepsWhileSilent(domain, scope)) throw asTunnelError(error, 'domains/dns')
      this.#ports.log('domain lost', { domain, scope, reason: 'no answer of DNS' })
      return await this.#lose(domain, scope)
    }
    // Claimed anew or taken meanwhile.
    if (this.#routes.get(domain) !== live) return
    if (!named.scopes.has(scope)) {
      this.#ports.log('domain lost', { domain, scope, reason: 'DNS names it no more' })
      return await this.#lose(domain, scope, named)
    }
    try {
      await this.#keep(domain, { scope, named })
    } catch (error) {
      if (!isTunnelError(error, 'domains/taken') && !isTunnelError(error, 'domains/handed')) {
        throw error
      }
      this.#ports.log('domain lost', { domain, scope, reason: 'another scope has it' })
      return this.#drop(live)
    }
    if (this.#routes.get(domain) === live) this.#again(live, afterMs(named.ttlSeconds))
  }

  #handed(domain: string, { scope, label }: { scope: string; label: string }): TunnelError {
    return new TunnelError(
      'domains/handed',
      `Cannot claim ${domain}: its CNAME leads to "${label}", which was another scope's before`,
      {
        hint: `Say that your scope is meant: _sotto.${domain}. TXT "${
          scopeText(scope, this.#ports.domain)
        }"`,
      },
    )
  }

  #unproven(domain: string, { scope, label }: { scope: string; label: string }): TunnelError {
    const { domain: relay, secureDomain } = this.#ports
    return new TunnelError(
      'domains/unproven',
      `Cannot claim ${domain}: its DNS does not name your scope "${scope}"`,
      {
        hint: `Set one of: ${domain}. CNAME ${label}.${secureDomain}.  or  ` +
          `_sotto.${domain}. TXT "${scopeText(scope, relay)}"`,
      },
    )
  }
}

/** What a TXT record says for that scope on that relay. */
export function scopeText(scope: string, relay: string): string {
  return `${TXT_BEGIN}${scope}; relay=${relay}`
}

/** The scope that a TXT record names, if it is of this relay. */
function scopeOf(words: string, relay: string): string | undefined {
  if (words.length > 400) return undefined
  const [, scope, of] = /^sotto-scope=([a-z0-9-]{1,63});? *relay=([a-z0-9.-]{1,253})$/i
    .exec(words.trim()) ?? []
  return of?.toLowerCase().replace(/\.$/, '') === relay ? scope?.toLowerCase() : undefined
}

function afterMs(ttlSeconds: number): number {
  return Math.min(RECHECK_MS_MAX, Math.max(RECHECK_MS_MIN, ttlSeconds * 1000))
}
