/**
 * One tunnel of one command, from joining the relay to the signal that ends it: claims the endpoint,
 * shows where it is, tells when the relay or the upstream goes and comes, and gives the exit code.
 */
import { asTunnelError, TunnelError } from '../../core/errors.ts'
import { fingerprint, formatCertificateFingerprint, formatKey } from '../../core/key.ts'
import type { Agent } from '../agent.ts'
import { certificateFiles, endpointCertificate } from '../certificate.ts'
import type { CertificateSource } from '../certificate.ts'
import { EndpointNames, lent } from '../endpoint_names.ts'
import type { AcmePlan } from '../endpoint_names.ts'
import { speaksH2 } from '../forward.ts'
import type { Upstream } from '../forward.ts'
import type { Joining } from '../join.ts'
import { isFinal, joinedAgent } from '../joined_agent.ts'
import type { Welcome } from '../link.ts'
import { Tunnel } from '../tunnel.ts'
import type { Place, TunnelKind, TunnelMode, TunnelOptions } from '../tunnel.ts'
import type { UplinkState } from '../uplink.ts'
import type { StopReason, World } from '../world.ts'
import { describeCounts, waitWords } from './screen.ts'
import type { Fact, Screen } from './screen.ts'
import { urlKeys } from './url_keys.ts'
import type { UrlKeys } from './url_keys.ts'

/** What a tunnel command wants. */
export interface Plan {
  name: string
  kind: TunnelKind
  mode: TunnelMode
  /** Raw: the public port asked for, 0 for any. */
  port: number
  upstream: Upstream
  /** In place of the upstream's own words. */
  upstreamWords?: string
  proxyProtocol?: 'v1' | 'v2'
  hostHeader?: string
  /** PEM files in place of a certificate of our own. */
  certificate?: { cert: string; key: string }
  /** Certificates of a CA: for the endpoint's own name where the relay allows it, and for others. */
  acme?: AcmePlan
  /** Domains of the person's own that lead to it, besides those of `acme`. */
  domains?: readonly string[]
  admits?: TunnelOptions['admits']
  onKnock?: TunnelOptions['onKnock']
  /** Shows the QR code of the URL once it is up. */
  qr?: boolean
  /** The agent that will serve it, before it joins. */
  onAgent?(agent: Agent): void
  /** More to show, after the endpoint itself. */
  facts?(up: Shown): Fact[]
  /** The endpoint is claimed: called at each link, before it is shown. */
  onUp?(up: Shown): Promise<void> | void
}

/** What is known once the endpoint is claimed. */
export interface Shown {
  place: Place
  welcome: Welcome
  /** SHA-256 of the certificate that visitors get, and the certificate; absent in other modes. */
  certificate: { fingerprint: Uint8Array; pem: string } | undefined
}

export interface PublishPorts {
  joining: Joining
  screen: Screen
}

/** Runs until the world's signal; throws what the relay refuses for good. */
export function publish(world: World, plan: Plan, ports: PublishPorts): Promise<number> {
  return new Publication(world, plan, ports).run()
}

class Publication {
  readonly #world: World
  readonly #plan: Plan
  readonly #ports: PublishPorts
  readonly #tunnel: Tunnel
  readonly #agent: Agent
  #source: { host: string; certificate: CertificateSource } | undefined
  readonly #names: EndpointNames
  #keys: UrlKeys | undefined
  #wasUp = false
  #told = false
  #waitsUntilMs: number | undefined
  #end!: (error?: TunnelError) => void

  constructor(world: World, plan: Plan, ports: PublishPorts) {
    this.#world = world
    this.#plan = plan
    this.#ports = ports
    const { joining, screen } = ports
    this.#names = new EndpointNames(world, {
      name: plan.name,
      // Files of the person's own serve it, where they are given.
      own: plan.certificate === undefined,
      acme: plan.acme,
      domains: plan.domains ?? [],
      profile: joining.profile,
      agent: () => this.#agent,
      fallback: (host) => this.#openFallback(host),
      news: ({ words, ...more }) => screen.tell(words, more),
    })
    this.#tunnel = new Tunnel(world, this.#tunnelOptions())
    this.#agent = joinedAgent(world, joining, {
      unopened: (error) => {
        if (isFinal(error, this.#wasUp)) this.#end(error)
      },
      certificates: () => this.#certificates(),
      onState: (state) => this.#state(state),
      onNotice: ({ code, message }) =>
        screen.tell(`the relay says: ${message}`, { event: 'notice', fields: { code, message } }),
    })
    this.#agent.add(this.#tunnel)
    plan.onAgent?.(this.#agent)
  }

  async run(): Promise<number> {
    const { signal } = this.#world
    const { screen } = this.#ports
    let stopped = (): void => {}
    try {
      await new Promise<void>((resolve, reject) => {
        this.#end = (error) => error ? reject(error) : resolve()
        stopped = () => resolve()
        if (signal.aborted) return resolve()
        signal.addEventListener('abort', stopped, { once: true })
        this.#agent.start()
      })
    } finally {
      signal.removeEventListener('abort', stopped)
      this.#keys?.stop()
      screen.close()
      this.#names.close()
      this.#agent.close()
      this.#source?.certificate.close()
    }
    const { total, bytesIn, bytesOut } = this.#tunnel.counts
    screen.event('stopped', { total, bytesIn, bytesOut })
    return (signal.reason as StopReason | undefined)?.exitCode ?? 0
  }

  #tunnelOptions(): TunnelOptions {
    const { name, kind, mode, port, upstream, proxyProtocol, hostHeader, admits, onKnock } =
      this.#plan
    const { screen } = this.#ports
    const alpn = ['http/1.1']
    if (kind === 'http' && mode === 'verified' && !hostHeader && !proxyProtocol) {
      // Visitors before the answer get HTTP/1.1, which is never wrong.
      void speaksH2(this.#world, upstream).then((speaks) => void (speaks && alpn.unshift('h2')))
    }
    return {
      name,
      kind,
      mode,
      port,
      upstream,
      ...this.#names.tunnelOptions(() => this.#source!.certificate.current),
      ...(kind === 'http' ? { alpn } : {}),
      ...(proxyProtocol ? { proxyProtocol } : {}),
      ...(hostHeader ? { hostHeader } : {}),
      ...(admits ? { admits } : {}),
      ...(onKnock ? { onKnock } : {}),
      onTrouble: (error) => screen.trouble(error),
    }
  }

  /** Before each claim: what the passport must vouch for. */
  async #certificates(): Promise<Uint8Array[]> {
    const { name, kind, mode } = this.#plan
    if (mode !== 'verified') return []
    const { welcome } = this.#agent.uplink.up!
    if (kind === 'http' && !welcome.can.includes('passthrough')) {
      throw new TunnelError(
        'claim/passthrough',
        'Cannot serve a verified endpoint here: this relay has no raw TCP port',
        {
          hint: 'Use --e2ee=false (the relay can then read the traffic), or "sotto tcp" here and ' +
            '"sotto connect" from the visitor\'s side.',
        },
      )
    }
    const host = `${name}.${welcome.secure}`
    if (this.#source?.host !== host) {
      this.#source?.certificate.close()
      this.#source = { host, certificate: await this.#openCertificate(host) }
    }
    await this.#names.open()
    return [this.#source.certificate.current.fingerprint, ...this.#names.fingerprints.flat()]
  }

  /** The own name's certificate serves in more than one place; others are their source's. */
  #openFallback(host: string): Promise<CertificateSource> {
    return host === this.#source?.host
      ? Promise.resolve(lent(() => this.#source!.certificate.current))
      : this.#openCertificate(host)
  }

  #openCertificate(host: string): Promise<CertificateSource> {
    const { joining, screen } = this.#ports
    const events = {
      onChange: (): void => {
        this.#agent.republish().catch((error) => screen.tell(String(error.message)))
      },
      onWarning: (line: string): void => screen.tell(line, { event: 'warning', fields: { line } }),
    }
    const files = host.endsWith(this.#agent.uplink.up!.welcome.secure)
      ? this.#plan.certificate
      : undefined
    return files
      ? certificateFiles(this.#world, { ...files, host, ...events })
      : endpointCertificate(this.#world, joining.profile, { host, ...events })
  }

  #state(state: UplinkState): void {
    const { screen, joining } = this.#ports
    switch (state.kind) {
      case 'connecting':
        return
      case 'up':
        this.#up(state.up.welcome).catch((error) => this.#end(asTunnelError(error, 'cli/fault')))
        return
      case 'refused':
        return this.#end(state.error)
      case 'down': {
        this.#names.down()
        this.#waitsUntilMs = this.#world.clock.monotonic() + state.retryInMs
        const { reason, retryInMs } = state
        screen.event('down', { reason, retryInMs })
        // Said once for each time that it is lost, not for each attempt to come back.
        if (this.#told) return
        this.#told = true
        screen.tell(
          this.#wasUp
            ? `relay lost (${reason}), reconnecting in ${waitWords(retryInMs)}`
            : `cannot reach the relay ${joining.relay.host} yet (${reason}); trying again`,
          { again: true },
        )
      }
    }
  }

  async #up(welcome: Welcome): Promise<void> {
    const { screen } = this.#ports
    const place = this.#tunnel.place!
    const current = this.#names.source(undefined)?.current ?? this.#source?.certificate.current
    const shown: Shown = {
      place,
      welcome,
      certificate: current && { fingerprint: current.fingerprint, pem: current.cert },
    }
    this.#waitsUntilMs = undefined
    await this.#plan.onUp?.(shown)
    const facts = [...this.#facts(shown), ...(this.#plan.facts?.(shown) ?? [])]
    if (!this.#wasUp) {
      screen.show('up', facts)
      const url = facts.find(({ name }) => name === 'url')?.value
      if (this.#plan.kind === 'http' && typeof url === 'string') {
        this.#keys = urlKeys(this.#world, screen, url)
      }
      if (this.#plan.qr) await this.#keys?.showQr()
      screen.follow(() => this.#status())
    } else {
      screen.event('up', Object.fromEntries(facts.map(({ name, value }) => [name, value])))
      if (this.#told) screen.tell('relay is back, same address', { again: true })
    }
    this.#wasUp = true
    this.#told = false
    this.#names.up()
  }

  #facts({ place, certificate }: Shown): Fact[] {
    const { mode, kind, upstream, upstreamWords } = this.#plan
    const { joining } = this.#ports
    const address = `${place.host}:${place.port}`
    // A browser would make nothing of a TCP service.
    const url = kind === 'http' ? place.url : mode === 'raw' ? `${kind}://${address}` : undefined
    const leads = kind === 'http' ? upstream.text : upstream.text.replace(/^http:\/\//, '')
    return [
      { name: 'name', value: place.name },
      ...(url === undefined ? [] : [{ name: 'url', value: url, line: url, whole: true }]),
      { name: 'address', value: address, ...(url === undefined ? { line: address } : {}) },
      { name: 'upstream', value: leads, line: `leads to ${upstreamWords ?? leads}\n` },
      { name: 'mode', value: mode, line: MODE_WORDS[mode] },
      ...(certificate
        ? [{
          name: 'certificate',
          value: formatCertificateFingerprint(certificate.fingerprint),
          line: `certificate ${formatCertificateFingerprint(certificate.fingerprint)}`,
        }]
        : []),
      ...this.#warningFacts(certificate !== undefined),
      ...this.#trustFacts(),
      { name: 'key', value: formatKey(joining.identity.public) },
      { name: 'fingerprint', value: fingerprint(this.#world.crypto, joining.identity.public) },
    ]
  }

  /** A browser's page of warnings should surprise nobody. */
  #warningFacts(isShown: boolean): Fact[] {
    const { kind, certificate } = this.#plan
    if (!isShown || kind !== 'http' || certificate || this.#names.ca !== undefined) return []
    return [{
      name: 'trust',
      value: 'self-signed',
      line: 'self-signed: browsers warn of it; compare the fingerprint, or bring one (--e2ee-cert)',
    }]
  }

  /** Where a CA vouches, what that is worth. */
  #trustFacts(): Fact[] {
    const { ca } = this.#names
    if (ca === undefined) return []
    return [{
      name: 'acme',
      value: ca,
      line:
        'the name is in public logs of certificates; the owner of the relay, who holds its DNS, ' +
        'could get one for it too: its fingerprint would be another',
    }]
  }

  #status(): string {
    if (this.#waitsUntilMs === undefined) return describeCounts(this.#tunnel.counts)
    const leftMs = this.#waitsUntilMs - this.#world.clock.monotonic()
    return leftMs > 0
      ? `reconnecting in ${waitWords(Math.ceil(leftMs / 1000) * 1000)}`
      : 'connecting'
  }
}

const MODE_WORDS: Readonly<Record<TunnelMode, string>> = {
  verified: 'verified: TLS ends in this agent',
  inspectable: 'inspectable: TLS ends at the relay, which can read everything',
  raw: 'raw: the relay passes bytes on as they are, and can read what is not encrypted',
}
