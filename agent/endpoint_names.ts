/**
 * The host names of one endpoint: its own below the relay's domain, and those of the person. Asks the
 * relay to lead them here and a CA to vouch for them, and says which certificate a visitor gets.
 * "sotto http" has one of these, "sotto up" one for each tunnel that wants it.
 */
import { formatCertificateFingerprint } from '../core/key.ts'
import { AcmeSource } from './acme.ts'
import type { AcmeChoice, AcmeNews } from './acme.ts'
import { Challenges } from './acme_challenge.ts'
import type { Agent } from './agent.ts'
import type { Certificate, CertificateSource } from './certificate.ts'
import { DomainClaims } from './domains.ts'
import type { DomainNews } from './domains.ts'
import type { Profile } from './profile.ts'
import type { TunnelOptions } from './tunnel.ts'
import type { World } from './world.ts'

/** What a CA is asked for. */
export interface AcmePlan {
  readonly choice: AcmeChoice
  /** Host names besides the endpoint's own that lead here. */
  readonly domains: readonly string[]
}

export interface EndpointNamesOptions {
  /** The endpoint. */
  readonly name: string
  readonly acme: AcmePlan | undefined
  /** Domains of the person's own that lead to it, besides those of `acme`. */
  readonly domains: readonly string[]
  readonly profile: Profile
  agent(): Agent
  /** Serves while there is nothing better; asked for each name that a CA is to vouch for. */
  fallback(host: string): Promise<CertificateSource>
  news(news: NamesNews): void
}

/** A sentence for the person, and the same for programs. */
export interface NamesNews {
  readonly event: 'certificate' | 'domain'
  readonly words: string
  readonly hint?: string
  readonly fields: Readonly<Record<string, unknown>>
}

export class EndpointNames {
  /** Whether a CA is asked for the endpoint's own name as well, where the relay allows it. */
  own: boolean
  readonly #world: World
  readonly #options: EndpointNamesOptions
  readonly #challenges = new Challenges()
  /** By host name: those that a CA may vouch for. */
  readonly #sources = new Map<string, AcmeSource>()
  readonly #claims: DomainClaims
  #host = ''
  #isUp = false
  #closed = false

  constructor(world: World, options: EndpointNamesOptions & { own: boolean }) {
    const { name, acme, domains, agent } = options
    this.#world = world
    this.#options = options
    this.own = options.own
    this.#claims = new DomainClaims(world, {
      name,
      domains: [...new Set([...domains, ...acme?.domains ?? []])],
      request: (body) => agent().uplink.request(body),
      news: (news) => this.#domain(news),
    })
  }

  /** The names for which a CA is asked. */
  get count(): number {
    const { acme } = this.#options
    return acme ? acme.domains.length + (this.own ? 1 : 0) : 0
  }

  /** Before each claim, with a link: what the relay's domain makes of the names. */
  async open(): Promise<void> {
    const { acme, name, agent } = this.#options
    if (!acme) return
    const { secure, can } = agent().uplink.up!.welcome
    const host = `${name}.${secure}`
    if (host !== this.#host) this.#closeSources()
    this.#host = host
    const hosts = [...acme.domains, ...(this.own && can.includes('acme') ? [host] : [])]
    for (const one of hosts) if (!this.#sources.has(one)) await this.#openSource(one, acme)
  }

  /** What visitors get who ask for that name, where a CA may vouch for it. */
  source(serverName: string | undefined): AcmeSource | undefined {
    return this.#sources.get(serverName ?? '') ?? this.#sources.get(this.#host)
  }

  /** For the tunnel; `other` is the certificate of all that no CA may vouch for. */
  tunnelOptions(
    other: () => ReturnType<NonNullable<TunnelOptions['identity']>>,
  ): Required<Pick<TunnelOptions, 'identity' | 'challenge' | 'peeks'>> {
    return {
      identity: (serverName) => this.source(serverName)?.current ?? other(),
      challenge: (serverName) => this.#challenges.get(serverName),
      // Of one name and with nothing asked, no hello is read twice.
      peeks: () => this.#challenges.size > 0 || (this.#options.acme?.domains.length ?? 0) > 0,
    }
  }

  /** Of each name all that a peer may find there, what counts most first. */
  get fingerprints(): Uint8Array[][] {
    return [...this.#sources.values()].map((source) => source.fingerprints())
  }

  /** Where the endpoint's own name has a CA that may vouch for it. */
  get ca(): string | undefined {
    const { acme } = this.#options
    return acme && this.#sources.has(this.#host) ? new URL(acme.choice.directory).host : undefined
  }

  /** The endpoint is claimed, on a new link. */
  up(): void {
    this.#isUp = true
    this.#claims.up()
    for (const source of this.#sources.values()) source.wake()
  }

  down(): void {
    this.#isUp = false
    this.#claims.down()
  }

  close(): void {
    this.#closed = true
    this.down()
    this.#closeSources()
  }

  async #openSource(host: string, { choice, domains }: AcmePlan): Promise<void> {
    const { profile, agent, fallback, news } = this.#options
    const source = await AcmeSource.open(this.#world, profile, {
      host,
      choice,
      fallback: await fallback(host),
      challenges: this.#challenges,
      reachable: () =>
        this.#isUp && agent().uplink.up !== undefined &&
        (!domains.includes(host) || this.#claims.has(host)),
      publish: () => agent().republish(),
      news: (said) => news(acmeNews(said)),
    })
    if (this.#closed) return source.close()
    this.#sources.set(host, source)
    if (this.#isUp) source.wake()
  }

  #closeSources(): void {
    for (const source of this.#sources.values()) source.close()
    this.#sources.clear()
  }

  #domain(news: DomainNews): void {
    this.#options.news(domainNews(news))
    if (news.state === 'routed') this.#sources.get(news.domain)?.wake()
  }
}

/** One that others own: closing it closes nothing. */
export function lent(current: () => Certificate): CertificateSource {
  return {
    get current() {
      return current()
    },
    close() {},
  }
}

function domainNews(news: DomainNews): NamesNews {
  const { state, domain } = news
  if (state === 'routed') {
    return { event: 'domain', words: `https://${domain}/ leads here too`, fields: { ...news } }
  }
  const { message, hint } = news.error
  return {
    event: 'domain',
    words: message,
    fields: { state, domain, ...news.error.toJSON() },
    ...(hint === undefined ? {} : { hint }),
  }
}

function acmeNews(news: AcmeNews): NamesNews {
  const event = 'certificate'
  switch (news.state) {
    case 'waiting':
      return {
        event,
        words: `asking ${news.ca} for a certificate of ${news.host}; until then browsers warn of ` +
          'this one',
        fields: { ...news },
      }
    case 'account':
      return {
        event,
        words: `this agent has an account at ${news.ca} now` +
          (news.terms === undefined ? '' : `, by its terms: ${news.terms}`),
        fields: { ...news },
      }
    case 'issued': {
      const { host, certificate: { notAfterMs, fingerprint } } = news
      const until = new Date(notAfterMs).toISOString()
      const certificate = formatCertificateFingerprint(fingerprint)
      return {
        event,
        words: `${host} has a certificate that browsers trust, until ${until.slice(0, 10)}`,
        hint: `certificate ${certificate}`,
        fields: { state: 'issued', host, until, certificate },
      }
    }
    case 'failed': {
      const { host, error, nextMs } = news
      const next = new Date(nextMs).toISOString()
      return {
        event,
        words: `no new certificate for ${host}: ${error.message}; next try at ${
          next.slice(0, 16).replace('T', ' ')
        } UTC`,
        fields: { state: 'failed', host, error: error.toJSON(), next },
        ...(error.hint === undefined ? {} : { hint: error.hint }),
      }
    }
  }
}
