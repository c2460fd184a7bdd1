/**
 * All tunnels of one configuration, on one agent and one link. A new configuration is applied by what
 * differs: what is the same is not touched, what leads elsewhere is handed over, so that only new
 * visitors notice; what is gone is drained. A name that is refused stops nobody else.
 */
import { asTunnelError, isTunnelError } from '../core/errors.ts'
import type { TunnelError } from '../core/errors.ts'
import type { Timer } from '../core/clock.ts'
import { equal } from '../core/bytes.ts'
import { PASSPORT_CERTIFICATES_MAX } from '../core/passport.ts'
import type { AcmeChoice } from './acme.ts'
import type { Agent, Endpoint } from './agent.ts'
import { endpointCertificate } from './certificate.ts'
import type { Certificate, CertificateSource } from './certificate.ts'
import type { TunnelConfig } from './config.ts'
import { ACME_NAMES_MAX } from './config_table.ts'
import type { NamesNews } from './endpoint_names.ts'
import type { EventLog } from './event_log.ts'
import type { Joining } from './join.ts'
import { joinedAgent } from './joined_agent.ts'
import { ServedTunnel } from './served_tunnel.ts'
import type { TunnelState } from './served_tunnel.ts'
import type { UplinkState } from './uplink.ts'
import type { World } from './world.ts'

/**
 * Self-signed certificates of one name each. A passport names 16 certificates of an identity, so
 * further tunnels share one for all names of the relay's domain.
 */
const OWN_CERTIFICATES_MAX = 8
/** A name that was refused is asked for again after a wait that doubles. */
const RETRY_MS_MIN = 2_000
const RETRY_MS_MAX = 300_000
/** What no later attempt would change, until the file or the relay does. */
const FINAL = /^(claim|ports\/(closed|range)|registry\/name)/
const DRAIN_CHECK_MS = 1_000
/** Visitors of a tunnel that was removed may stay so long. */
const DRAIN_MS_MAX = 600_000

export interface Applied {
  added: string[]
  changed: string[]
  removed: string[]
  kept: number
}

export interface TunnelSetPorts {
  joining: Joining
  log: EventLog
  /** Which CA is asked for certificates. */
  ca: AcmeChoice
  onState(state: UplinkState): void
  /** Another standing of a tunnel. */
  onTunnel(state: TunnelState): void
  /** Word of a tunnel's certificates and domains. */
  onNews(tunnel: string, news: NamesNews): void
  unopened(error: unknown): void
}

interface Leaving {
  served: ServedTunnel
  /** Undefined: until its visitors go. */
  untilMs: number | undefined
}

export class TunnelSet {
  readonly agent: Agent
  readonly #world: World
  readonly #ports: TunnelSetPorts
  /** By what the file calls them. */
  readonly #served = new Map<string, ServedTunnel>()
  readonly #byTunnel = new Map<Endpoint, ServedTunnel>()
  readonly #retries = new Map<ServedTunnel, Timer>()
  readonly #leaving = new Set<Leaving>()
  readonly #certificates = new Map<string, CertificateSource>()
  /** Tunnels for whose own name a CA is asked, by what the file calls them. */
  #owners = new Set<string>()
  #domain = ''
  #drain: Timer | undefined
  #started = false
  #closed = false

  constructor(world: World, ports: TunnelSetPorts) {
    this.#world = world
    this.#ports = ports
    const { log } = ports
    this.agent = joinedAgent(world, ports.joining, {
      unopened: ports.unopened,
      certificates: () => this.#fingerprints(),
      onState: (state) => {
        if (state.kind === 'down') { for (const { names } of this.#served.values()) names?.down() }
        ports.onState(state)
      },
      onNotice: ({ code, message }) => log.add('notice', `the relay says: ${message}`, { code }),
      onClaimed: (tunnel) => this.#claimed(tunnel),
      onRefused: (tunnel, error) => this.#refused(this.#byTunnel.get(tunnel), error),
    })
  }

  /** Begins with what was applied before. */
  start(): void {
    this.#started = true
    this.agent.start()
  }

  /** In the order of the file; those that are drained come last. */
  get states(): TunnelState[] {
    const leaving = [...this.#leaving].filter(({ served }) => served.tunnel.counts.visitors > 0)
    return [...this.#served.values(), ...leaving.map(({ served }) => served)]
      .map(({ state }) => state)
  }

  /** Makes the tunnels what the file says. One call at a time. */
  async apply(tunnels: readonly TunnelConfig[]): Promise<Applied> {
    const wanted = new Map(tunnels.map((one) => [one.key, one]))
    const result: Applied = { added: [], changed: [], removed: [], kept: 0 }
    const handed = new Map<string, ServedTunnel>()
    this.#chooseOwners(tunnels)
    for (const [key, served] of [...this.#served]) {
      const next = wanted.get(key)
      if (next && same(next, served.config)) result.kept++
      else if (next && sameClaim(next, served.config)) handed.set(key, served)
      else {
        if (next === undefined) result.removed.push(key)
        // Names first go, then come: two tunnels may have exchanged theirs.
        await this.#remove(served)
      }
    }
    const opened = await Promise.all(tunnels.map(async (config) => {
      const before = handed.get(config.key)
      if (!before && this.#served.has(config.key)) return undefined
      const list = before ? result.changed : result.added
      list.push(config.key)
      return await this.#open(config, before)
    }))
    this.#inOrder(tunnels)
    await this.#claim(opened.filter((one) => one !== undefined))
    if (result.changed.length > 0) this.#republish()
    return result
  }

  close(): void {
    this.#closed = true
    for (const timer of this.#retries.values()) timer.cancel()
    this.#drain?.cancel()
    this.agent.close()
    for (const served of this.#served.values()) {
      served.names?.close()
      served.close()
    }
    for (const { served } of this.#leaving) served.close()
    this.#closeCertificates()
  }

  /** Gives back the tunnel whose name is to be claimed; undefined where it is already, or nothing can be. */
  async #open(
    config: TunnelConfig,
    before: ServedTunnel | undefined,
  ): Promise<ServedTunnel | undefined> {
    const { joining, log } = this.#ports
    const served = new ServedTunnel(this.#world, config, {
      joining,
      log,
      agent: () => this.agent,
      shown: (name) => this.#shown(name),
      changed: () => this.#republish(),
      ca: this.#ports.ca,
      own: (key) => this.#owners.has(key),
      news: (tunnel, news) => {
        log.add(news.event, news.words, { tunnel, ...news.fields })
        this.#ports.onNews(tunnel, news)
      },
      ...(before ? { before } : {}),
    })
    try {
      await served.prepare(this.#world)
    } catch (error) {
      if (served.names !== before?.names) served.names?.close()
      served.close()
      if (before) {
        // Better what it was than nothing; the file says something else, and that is told.
        this.#tell(before, asTunnelError(error, 'cli/fault'), 'stays as it was')
        return undefined
      }
      this.#served.set(config.key, served)
      this.#refused(served, asTunnelError(error, 'cli/fault'))
      return undefined
    }
    if (this.#closed) {
      if (served.names !== before?.names) served.names?.close()
      served.close()
      return undefined
    }
    this.#served.set(config.key, served)
    this.#byTunnel.set(served.tunnel, served)
    return before && this.#handOver(before, served) ? undefined : served
  }

  /**
   * The name stays claimed as it is; visitors that come from now on meet the new one. False where
   * there was no name yet.
   */
  #handOver(before: ServedTunnel, next: ServedTunnel): boolean {
    this.#retries.get(before)?.cancel()
    this.#retries.delete(before)
    next.tunnel.place = before.tunnel.place
    const isUp = before.standing === 'up'
    if (isUp) {
      this.agent.add(next.tunnel)
      next.claimed()
    }
    this.#leave(before, undefined, next)
    return isUp
  }

  async #claim(served: readonly ServedTunnel[]): Promise<void> {
    const tunnels = served.map(({ tunnel }) => tunnel)
    try {
      if (this.#started) return await this.agent.claim(tunnels)
      for (const tunnel of tunnels) this.agent.add(tunnel)
    } catch (error) {
      // Without a link all are claimed again on the next one.
      if (!isTunnelError(error) || !error.code.startsWith('uplink/')) throw error
    }
  }

  async #remove(served: ServedTunnel): Promise<void> {
    this.#served.delete(served.config.key)
    this.#retries.get(served)?.cancel()
    this.#retries.delete(served)
    this.#leave(served, this.#world.clock.monotonic() + DRAIN_MS_MAX)
    try {
      await this.agent.release(served.tunnel)
    } catch (error) {
      if (!isTunnelError(error)) throw error
    }
  }

  #leave(served: ServedTunnel, untilMs: number | undefined, next?: ServedTunnel): void {
    served.standing = 'draining'
    if (served.names !== next?.names) served.names?.close()
    this.#leaving.add({ served, untilMs })
    this.#drain ??= this.#world.clock.after(DRAIN_CHECK_MS, () => this.#drained())
  }

  #drained(): void {
    this.#drain = undefined
    const now = this.#world.clock.monotonic()
    for (const one of this.#leaving) {
      const { served, untilMs } = one
      if (served.tunnel.counts.visitors > 0 && now < (untilMs ?? Infinity)) continue
      this.#leaving.delete(one)
      this.#byTunnel.delete(served.tunnel)
      this.agent.forget(served.tunnel)
      served.close()
    }
    if (this.#leaving.size > 0) {
      this.#drain = this.#world.clock.after(DRAIN_CHECK_MS, () => this.#drained())
    }
  }

  #claimed(tunnel: Endpoint): void {
    const served = this.#byTunnel.get(tunnel)
    if (!served) return
    this.#retries.get(served)?.cancel()
    this.#retries.delete(served)
    const before = served.standing
    served.claimed()
    const { state } = served
    if (before === 'up') return
    this.#ports.log.add('up', `up at ${state.url ?? state.address ?? state.name}`, {
      tunnel: state.tunnel,
    })
    this.#ports.onTunnel(state)
  }

  #refused(served: ServedTunnel | undefined, error: TunnelError): void {
    if (!served || this.#closed) return
    const again = served.error?.message === error.message
    served.refused(error)
    if (!again) this.#tell(served, error, 'is refused')
    if (FINAL.test(error.code) || this.#served.get(served.config.key) !== served) return
    const waitMs = Math.min(RETRY_MS_MAX, RETRY_MS_MIN * 2 ** Math.min(served.refusals - 1, 10))
    this.#retries.get(served)?.cancel()
    this.#retries.set(served, this.#world.clock.after(waitMs, () => void this.#retry(served)))
  }

  async #retry(served: ServedTunnel): Promise<void> {
    if (this.#served.get(served.config.key) !== served) return
    if (this.#byTunnel.has(served.tunnel)) return await this.#claim([served])
    // It was never ready: a file was missing, or somebody whom it names.
    this.#served.delete(served.config.key)
    const { refusals, error } = served
    const opened = await this.#open(served.config, undefined)
    if (opened) return await this.#claim([opened])
    const next = this.#served.get(served.config.key)
    if (next && next.standing === 'refused' && next.error?.message === error?.message) {
      next.refusals = refusals + 1
    }
  }

  #tell(served: ServedTunnel, error: TunnelError, what: string): void {
    const { message, ...fields } = error.toJSON()
    const { key } = served.config
    this.#ports.log.add('refused', `${key} ${what}: ${message}`, { tunnel: key, ...fields })
    this.#ports.onTunnel(served.state)
  }

  /** Before claims: what the passport must vouch for, opened for the domain of this link. */
  async #fingerprints(): Promise<Uint8Array[]> {
    const { secure } = this.agent.uplink.up!.welcome
    if (secure !== this.#domain) this.#closeCertificates()
    this.#domain = secure
    const named: Uint8Array[] = []
    for (const served of this.#served.values()) {
      const { config, fingerprint } = served
      if (config.mode !== 'verified') continue
      if (!config.certificate) await this.#openCertificate(served)
      else if (fingerprint) named.push(fingerprint)
    }
    const shown = [...this.#certificates.values()].map(({ current }) => current.fingerprint)
    const trusted: Uint8Array[][] = []
    for (const { names } of this.#served.values()) {
      await names?.open()
      trusted.push(...names?.fingerprints ?? [])
    }
    const first = trusted.map((of) => of.slice(0, 1)).flat()
    const rest = trusted.map((of) => of.slice(1)).flat()
    // Of what is too much, that goes which is shown no more.
    return unique([...first, ...shown, ...named, ...rest]).slice(0, PASSPORT_CERTIFICATES_MAX)
  }

  /** Those that have a CA keep it; others follow in the order of the file, after names of the person's own. */
  #chooseOwners(tunnels: readonly TunnelConfig[]): void {
    const domains = tunnels.reduce((sum, { acmeDomains = [] }) => sum + acmeDomains.length, 0)
    const wanting = tunnels.filter(({ acme, certificate }) => acme && !certificate)
      .map(({ key }) => key)
    const before = wanting.filter((key) => this.#owners.has(key))
    const owners = [...new Set([...before, ...wanting])].slice(0, ACME_NAMES_MAX - domains)
    this.#owners = new Set(owners)
    if (owners.length === wanting.length) return
    this.#ports.log.add(
      'warning',
      `${
        wanting.length - owners.length
      } tunnels stay with certificates of their own: a CA is asked ` +
        `for ${ACME_NAMES_MAX} names`,
    )
  }

  async #openCertificate(served: ServedTunnel): Promise<void> {
    const own = `${served.config.name}.${this.#domain}`
    if (this.#certificates.has(own)) return
    const isShared = this.#certificates.size >= OWN_CERTIFICATES_MAX
    if (isShared) served.shareCertificate()
    const host = isShared ? `*.${this.#domain}` : own
    if (this.#certificates.has(host)) return
    const { joining, log } = this.#ports
    const source = await endpointCertificate(this.#world, joining.profile, {
      host,
      onChange: () => this.#republish(),
      onWarning: (line) => log.add('warning', line),
    })
    this.#certificates.set(host, source)
  }

  #shown(name: string): Certificate {
    const own = this.#certificates.get(`${name}.${this.#domain}`)
    return (own ?? this.#certificates.get(`*.${this.#domain}`))!.current
  }

  #closeCertificates(): void {
    for (const source of this.#certificates.values()) source.close()
    this.#certificates.clear()
  }

  #republish(): void {
    this.agent.republish().catch((error) => {
      const { message, code } = asTunnelError(error, 'cli/fault')
      this.#ports.log.add('trouble', message, { code })
    })
  }

  #inOrder(tunnels: readonly TunnelConfig[]): void {
    const found = tunnels.map(({ key }) => [key, this.#served.get(key)] as const)
    this.#served.clear()
    for (const [key, served] of found) if (served) this.#served.set(key, served)
  }
}

function unique(list: readonly Uint8Array[]): Uint8Array[] {
  return list.filter((one, i) => list.findIndex((other) => equal(one, other)) === i)
}

/** Nothing of it changed. */
function same(a: TunnelConfig, b: TunnelConfig): boolean {
  return JSON.stringify(a) === JSON.stringify(b)
}

/** What the relay knows of it is the same. */
function sameClaim(a: TunnelConfig, b: TunnelConfig): boolean {
  return a.name === b.name && a.kind === b.kind && a.mode === b.mode && a.port === b.port
}
