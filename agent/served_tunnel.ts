/**
 * One tunnel of "sotto up": what the file says of it, the tunnel that serves it now, whom it lets in,
 * the certificate that it shows, and how it stands. Many of them share one agent (tunnel_set.ts).
 */
import { asTunnelError } from '../core/errors.ts'
import type { TunnelError } from '../core/errors.ts'
import type { Agent } from './agent.ts'
import type { AcmeChoice } from './acme.ts'
import { certificateFiles } from './certificate.ts'
import type { Certificate, CertificateSource } from './certificate.ts'
import type { TunnelConfig } from './config.ts'
import { EndpointNames, lent } from './endpoint_names.ts'
import type { NamesNews } from './endpoint_names.ts'
import { askStatements } from './enquiry.ts'
import type { EventLog } from './event_log.ts'
import { speaksH2 } from './forward.ts'
import { Guests } from './guests.ts'
import type { Joining } from './join.ts'
import { RelayApi } from './relay_api.ts'
import { followedWords, Trust } from './trust.ts'
import { Tunnel } from './tunnel.ts'
import type { TunnelOptions } from './tunnel.ts'
import type { World } from './world.ts'

/** The same trouble is not logged again within this time: an upstream that is down meets every visitor. */
const TROUBLE_MS = 5_000
const TROUBLES_MAX = 64

export type TunnelStanding = 'starting' | 'up' | 'refused' | 'draining'

/** As "sotto status" tells it. */
export interface TunnelState {
  tunnel: string
  name: string
  kind: TunnelConfig['kind']
  mode: TunnelConfig['mode']
  upstream: string
  state: TunnelStanding
  url?: string
  address?: string
  visitors: number
  total: number
  bytesIn: number
  bytesOut: number
  error?: { code: string; message: string; hint?: string }
}

export interface ServedPorts {
  joining: Joining
  log: EventLog
  agent(): Agent
  /** What a verified tunnel shows that the file gives no certificate. */
  shown(name: string): Certificate
  /** Which CA is asked. */
  ca: AcmeChoice
  /** Whether a CA is asked for the tunnel's own name. */
  own(key: string): boolean
  /** Word of certificates and domains. */
  news(tunnel: string, news: NamesNews): void
  /** A certificate changed: the passport must say so. */
  changed(): void
}

export class ServedTunnel {
  readonly config: TunnelConfig
  readonly tunnel: Tunnel
  /** Of HTTP whose TLS ends here; shared with the one before, where that had the same. */
  readonly names: EndpointNames | undefined
  standing: TunnelStanding = 'starting'
  error: TunnelError | undefined
  /** Times that its name was refused in a row. */
  refusals = 0
  readonly #ports: ServedPorts
  readonly #guests: Guests | undefined
  readonly #troubles = new Map<string, number>()
  readonly #clock: World['clock']
  readonly #alpn = ['http/1.1']
  #shares = false
  #source: CertificateSource | undefined

  constructor(world: World, config: TunnelConfig, ports: ServedPorts & { before?: ServedTunnel }) {
    this.config = config
    this.#ports = ports
    this.#clock = world.clock
    if (config.allow) this.#guests = this.#guestsOf(world, config.allow)
    this.names = this.#namesOf(world, ports.before)
    this.tunnel = new Tunnel(this.#guests?.watching() ?? world, this.#options(world))
  }

  /** What must be there before the name is claimed. Throws `guests/…`, `tls/certificate`, `files/…`. */
  async prepare(world: World): Promise<void> {
    await this.#guests?.start()
    const { certificate, key } = this.config
    if (certificate) {
      this.#source = await certificateFiles(world, {
        ...certificate,
        onChange: () => this.#ports.changed(),
        onWarning: (line) => this.#ports.log.add('warning', line, { tunnel: key }),
      })
    }
    // What was got before is shown from the first visitor on.
    if (this.#ports.agent().uplink.up) await this.names?.open()
  }

  /** SHA-256 of a certificate that the file names; others are `shown`'s. */
  get fingerprint(): Uint8Array | undefined {
    return this.#source?.current.fingerprint
  }

  /**
   * Its certificate names other tunnels as well. A browser may then send requests for them over one
   * HTTP/2 connection (RFC 9113 §9.1.1), which leads to one upstream; so HTTP/2 is not offered.
   */
  shareCertificate(): void {
    this.#shares = true
    if (this.#alpn[0] === 'h2') this.#alpn.shift()
  }

  /** The relay has the name: whom it lets in is asked of it. */
  claimed(): void {
    this.standing = 'up'
    this.error = undefined
    this.refusals = 0
    this.#guests?.refresh()
    this.names?.up()
  }

  refused(error: TunnelError): void {
    this.standing = 'refused'
    this.error = error
    this.refusals++
  }

  get state(): TunnelState {
    const { key, name, kind, mode, upstream } = this.config
    const { place, counts } = this.tunnel
    const { error } = this
    const address = place && `${place.host}:${place.port}`
    const url = kind === 'http' ? place?.url : mode === 'raw' ? `${kind}://${address}` : undefined
    return {
      tunnel: key,
      name,
      kind,
      mode,
      // What is no HTTP is not named as if it were.
      upstream: kind === 'http' ? upstream.text : upstream.text.replace(/^http:\/\//, ''),
      state: this.standing,
      ...(place && url !== undefined ? { url } : {}),
      ...(address === undefined ? {} : { address }),
      ...counts,
      ...(error ? { error: error.toJSON() } : {}),
    }
  }

  /** Ends what watches; the tunnel itself is the agent's to end. */
  close(): void {
    this.#guests?.close()
    this.#source?.close()
  }

  #namesOf(world: World, before: ServedTunnel | undefined): EndpointNames | undefined {
    const { name, acme, acmeDomains = [], domains = [] } = this.config
    if (acme === undefined) return undefined
    if (before?.names && sameNames(before.config, this.config)) return before.names
    const { joining, agent, ca, news } = this.#ports
    const { key } = this.config
    return new EndpointNames(world, {
      name,
      domains,
      own: this.#ports.own(key),
      acme: acme ? { choice: ca, domains: acmeDomains } : undefined,
      profile: joining.profile,
      agent,
      fallback: () => Promise.resolve(lent(() => this.#plain)),
      news: (said) => news(key, said),
    })
  }

  /** What visitors get whose name no CA vouches for. */
  get #plain(): Certificate {
    return this.#source?.current ?? this.#ports.shown(this.config.name)
  }

  #options(world: World): TunnelOptions {
    const { key, name, kind, mode, port, upstream, proxyProtocol, hostHeader } = this.config
    const { log } = this.#ports
    const guests = this.#guests
    const alpn = this.#alpn
    if (kind === 'http' && mode === 'verified' && !hostHeader && !proxyProtocol) {
      void speaksH2(world, upstream).then((speaks) => {
        if (speaks && !this.#shares) alpn.unshift('h2')
      })
    }
    return {
      name,
      kind,
      mode,
      port,
      upstream,
      identity: () => this.#plain,
      ...this.names?.tunnelOptions(() => this.#plain),
      ...(kind === 'http' ? { alpn } : {}),
      ...(proxyProtocol ? { proxyProtocol } : {}),
      ...(hostHeader ? { hostHeader } : {}),
      ...(guests
        ? {
          admits: (certificate: Uint8Array) => guests.admits(certificate),
          onKnock: (knock: Parameters<Guests['knocked']>[0]) => void guests.knocked(knock),
        }
        : {}),
      onTrouble: (error) => this.#trouble(error),
      onVisitor: ({ address, port }) =>
        log.add('visitor', `a visitor from ${address === '' ? 'a relay' : address}`, {
          tunnel: key,
          address,
          port,
        }),
    }
  }

  #trouble(error: TunnelError): void {
    const now = this.#clock.monotonic()
    if (now - (this.#troubles.get(error.message) ?? -Infinity) < TROUBLE_MS) return
    if (this.#troubles.size >= TROUBLES_MAX) this.#troubles.clear()
    this.#troubles.set(error.message, now)
    const { message, ...fields } = error.toJSON()
    this.#ports.log.add('trouble', message, { tunnel: this.config.key, ...fields })
  }

  #guestsOf(world: World, allow: readonly string[]): Guests {
    const { joining, log } = this.#ports
    const { profile } = joining
    const { key: tunnel, name } = this.config
    return new Guests(world, {
      joining,
      api: new RelayApi(world, joining),
      trust: new Trust({
        crypto: world.crypto,
        clock: world.clock,
        known: profile.knownAgents(),
        withdrawals: profile.knownWithdrawals(),
        statements: (key) => {
          const { uplink } = this.#ports.agent()
          return uplink.up ? askStatements(uplink, key) : Promise.resolve([])
        },
        followed: (pins) => log.add('followed', followedWords(world.crypto, pins), { tunnel }),
      }),
      allow,
      onKnock: ({ key, name: pinned, address }) =>
        log.add(
          'knock',
          `${pinned ?? (key === undefined ? 'a stranger' : key.slice(0, 12))} knocked` +
            `${address === '' ? '' : ` from ${address}`} and was not let in`,
          { tunnel, name, address, ...(key === undefined ? {} : { key }) },
        ),
      onProblem: (error) => this.#trouble(asTunnelError(error, 'cli/fault')),
    })
  }
}

/** What is asked of the relay and of a CA for its names is the same, and serves until there is an answer. */
function sameNames(a: TunnelConfig, b: TunnelConfig): boolean {
  const words = ({ name, acme, acmeDomains, domains }: TunnelConfig): string =>
    JSON.stringify([name, acme, acmeDomains, domains])
  // Files are watched by the tunnel that they were given to.
  return words(a) === words(b) && !a.certificate && !b.certificate
}
