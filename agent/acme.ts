/**
 * Certificates that browsers trust, for names that lead to this agent. Until there is one, and whenever
 * there is none, the self-signed certificate serves. Renewed by what the CA suggests, or at two thirds;
 * a CA that refuses or is away is asked again later, never in a loop (`core/renewal.ts`).
 */
import type { Timer } from '../core/clock.ts'
import { asTunnelError } from '../core/errors.ts'
import type { TunnelError } from '../core/errors.ts'
import {
  certificateId,
  fractionOf,
  INFO_AFTER_MS,
  infoAfterMs,
  orderBegun,
  orderFailed,
  orderInstant,
  orderIssued,
  readRenewalInfo,
  renewalInstant,
  retryAfterOf,
} from '../core/renewal.ts'
import type { RenewalWindow } from '../core/renewal.ts'
import { authorityAndSerial, certificateRequest, challengeCertificate } from './acme_challenge.ts'
import type { Challenges } from './acme_challenge.ts'
import { askCa } from './acme_ask.ts'
import type { CaWorld } from './acme_ask.ts'
import { retryAfterMs } from './acme_port.ts'
import type { AcmePlace } from './acme_port.ts'
import { AcmeStore } from './acme_store.ts'
import type { Certificate, CertificateSource } from './certificate.ts'
import type { Profile } from './profile.ts'
import type { TlsIdentity, World } from './world.ts'

export const LETS_ENCRYPT = 'https://acme-v02.api.letsencrypt.org/directory'

/** Another process of this profile is at the same name: look again for what it got. */
const BUSY_MS = 15_000
/** Clocks and sleeping machines: nothing is planned further ahead than this. */
const LOOK_MS_MAX = 6 * 3_600_000

/** Which CA, and who asks. */
export interface AcmeChoice {
  readonly directory: string
  readonly contact: string | undefined
  readonly eab: { readonly id: string; readonly key: string } | undefined
  /** PEM, for the CA's own API; absent: the system's. */
  readonly ca: readonly string[] | undefined
}

export type AcmeNews =
  | { readonly state: 'waiting'; readonly host: string; readonly ca: string }
  | { readonly state: 'account'; readonly ca: string; readonly terms: string | undefined }
  | { readonly state: 'issued'; readonly host: string; readonly certificate: Certificate }
  | {
    readonly state: 'failed'
    readonly host: string
    readonly error: TunnelError
    readonly nextMs: number
  }

export interface AcmeSourceOptions {
  readonly host: string
  readonly choice: AcmeChoice
  /** Serves while there is nothing better; closed with this. */
  readonly fallback: CertificateSource
  readonly challenges: Challenges
  /** Whether visitors, and so the CA, can reach us now. */
  reachable(): boolean
  /** The passport must name `fingerprints()` from now on, before the new one is shown. */
  publish(): Promise<void>
  news(news: AcmeNews): void
}

type Surroundings = CaWorld & Pick<World, 'crypto' | 'acme'>

/** A source that becomes better by itself. */
export class AcmeSource implements CertificateSource {
  readonly #world: Surroundings
  readonly #options: AcmeSourceOptions
  readonly #store: AcmeStore
  readonly #stop = new AbortController()
  #trusted: Certificate | undefined
  #next: Certificate | undefined
  #previous: Certificate | undefined
  #window: RenewalWindow | undefined
  #infoAtMs = 0
  #timer: Timer | undefined
  #looking = false
  /** Woken while looking: what was seen may be over. */
  #woken = false
  #told = ''

  private constructor(world: Surroundings, profile: Profile, options: AcmeSourceOptions) {
    this.#world = world
    this.#options = options
    this.#store = new AcmeStore(world, { profile, directory: options.choice.directory })
  }

  /** With the certificate of an earlier run, where it is still good. */
  static async open(
    world: Surroundings,
    profile: Profile,
    options: AcmeSourceOptions,
  ): Promise<AcmeSource> {
    const source = new AcmeSource(world, profile, options)
    source.#trusted = await source.#kept()
    return source
  }

  get current(): Certificate {
    const { fallback } = this.#options
    const trusted = this.#trusted
    return trusted && trusted.notAfterMs > this.#world.clock.now() ? trusted : fallback.current
  }

  /** True while a CA vouches for what is shown. */
  get isTrusted(): boolean {
    return this.current === this.#trusted
  }

  /** All that a peer may find here: the one shown, the one before, the one to come. */
  fingerprints(): Uint8Array[] {
    const all = [this.#next, this.#trusted, this.#previous, this.#options.fallback.current]
    return all.flatMap((one) => one ? [one.fingerprint] : [])
  }

  /** The name leads here (again): gets on with it. */
  wake(): void {
    if (this.#looking) this.#woken = true
    else void this.#look()
  }

  close(): void {
    this.#stop.abort()
    this.#timer?.cancel()
    this.#options.fallback.close()
  }

  async #look(): Promise<void> {
    this.#looking = true
    this.#woken = false
    this.#timer?.cancel()
    let nextMs = this.#world.clock.now() + LOOK_MS_MAX
    try {
      nextMs = await this.#step()
    } catch (error) {
      // What is wrong with our own files; the CA was not asked.
      this.#failed(asTunnelError(error, 'acme/fault'), nextMs)
    }
    this.#looking = false
    if (this.#stop.signal.aborted) return
    if (this.#woken) return void this.#look()
    const waitMs = Math.min(Math.max(nextMs - this.#world.clock.now(), 1000), LOOK_MS_MAX)
    this.#timer = this.#world.clock.after(waitMs, () => void this.#look())
  }

  /** One look at where we stand; the instant of the next. */
  async #step(): Promise<number> {
    const { clock } = this.#world
    const { host, reachable } = this.#options
    await this.#take(await this.#kept())
    await this.#ask()
    const dueMs = this.#dueMs()
    const soonMs = clock.now() + LOOK_MS_MAX
    if (dueMs > clock.now()) return Math.min(dueMs, this.#infoAtMs || soonMs)
    // The link's return wakes us.
    if (!reachable()) return soonMs
    const attempts = await this.#store.attempts(host)
    const asked = this.#window !== undefined && this.#window.startMs <= clock.now()
    const mayMs = orderInstant(attempts, { nowMs: clock.now(), asked })
    if (mayMs > clock.now()) {
      this.#failed(asTunnelError(attempts.reason ?? 'asked often enough', 'acme/waiting'), mayMs)
      return mayMs
    }
    const unlock = await this.#store.lock(host)
    if (!unlock) return clock.now() + BUSY_MS
    try {
      return await this.#order()
    } finally {
      await unlock()
    }
  }

  #dueMs(): number {
    const trusted = this.#trusted
    if (!trusted) return 0
    const { notBeforeMs } = this.#world.tls.inspect(trusted)
    return renewalInstant({ notBeforeMs, notAfterMs: trusted.notAfterMs }, {
      window: this.#window,
      fraction: fractionOf(trusted.fingerprint),
    })
  }

  /** Renewal information, when it is time for it. A CA that has none, or is away, leaves two thirds. */
  async #ask(): Promise<void> {
    const { clock, acme } = this.#world
    if (!this.#trusted || clock.now() < this.#infoAtMs) return
    this.#infoAtMs = clock.now() + INFO_AFTER_MS
    try {
      const id = await this.#id(this.#trusted)
      const answer = id === undefined ? undefined : await acme.renewalInfo({
        ...this.#place(),
        certificateId: id,
      })
      if (!answer) return
      this.#infoAtMs = clock.now() + infoAfterMs(retryAfterOf(answer.retryAfter, clock.now()))
      this.#window = readRenewalInfo(answer.info)
    } catch {
      // RFC 9773 §4.3.3: whatever goes wrong here, the certificate's own dates are enough.
    }
  }

  async #id(pair: TlsIdentity): Promise<string | undefined> {
    const found = await authorityAndSerial(pair.cert)
    return found && certificateId(found.authorityKeyId, found.serial)
  }

  async #order(): Promise<number> {
    const { clock, acme, crypto } = this.#world
    const { host, choice, news } = this.#options
    const store = this.#store
    // Another process may have got one while we waited for the lock.
    const before = this.#trusted
    await this.#take(await this.#kept())
    if (this.#trusted !== before) return clock.now()
    const ca = new URL(choice.directory).host
    if (!before) news({ state: 'waiting', host, ca })
    const account = await store.account()
    await store.keepAttempts(host, orderBegun(await store.attempts(host), clock.now()))
    try {
      const { key, csr } = await certificateRequest(host)
      const cert = await acme.obtain({
        ...this.#place(),
        accountKey: account.key,
        accountUrl: account.url,
        eab: choice.eab,
        contact: choice.contact,
        accountMade: async (url, terms) => {
          const isNew = (await store.account()).url !== url
          await store.keepAccount({ key: account.key, url })
          if (isNew) news({ state: 'account', ca, terms })
        },
        name: host,
        csr,
        replaces: before && await this.#id(before),
        challenge: (digest) => this.#challenge(digest),
      })
      const taken = this.#usable({ cert, key })
      if (!taken) throw new Error('the CA gave a certificate that is not for this name and key')
      await store.keepCertificate(host, { cert, key })
      await store.keepAttempts(host, orderIssued(await store.attempts(host), clock.now()))
      await this.#take(await this.#kept())
      return clock.now()
    } catch (error) {
      if (this.#stop.signal.aborted) return clock.now()
      const failure = asTunnelError(error, 'acme/refused')
      const random = crypto.randomBytes(1)[0]! / 256
      const failed = orderFailed(await store.attempts(host), {
        nowMs: clock.now(),
        random,
        retryAfterMs: retryAfterMs(error),
        reason: failure.message,
      })
      await store.keepAttempts(host, failed)
      const nextMs = orderInstant(failed, { nowMs: clock.now() })
      this.#failed(failure, nextMs)
      return nextMs
    }
  }

  #place(): AcmePlace {
    const { choice: { directory, ca } } = this.#options
    const { signal } = this.#stop
    const ask: AcmePlace['ask'] = (url, body) =>
      askCa(this.#world, { url, ca, signal, ...(body === undefined ? {} : { body }) })
    return { directory, signal, ask }
  }

  async #challenge(digest: Uint8Array): Promise<() => void> {
    const { host, challenges } = this.#options
    return challenges.answer(host, await challengeCertificate(this.#world, { name: host, digest }))
  }

  /** Shows another certificate, once the passport names it: peers find the old one or the new one good. */
  async #take(found: Certificate | undefined): Promise<void> {
    const { host, publish, news } = this.#options
    if (!found || found.cert.trim() === this.#trusted?.cert.trim()) return
    this.#next = found
    try {
      await publish()
    } catch {
      // No link: the next one publishes what there is then.
    }
    this.#previous = this.#trusted
    this.#trusted = found
    this.#next = undefined
    this.#window = undefined
    this.#infoAtMs = 0
    this.#told = ''
    news({ state: 'issued', host, certificate: found })
  }

  async #kept(): Promise<Certificate | undefined> {
    const pair = await this.#store.certificate(this.#options.host)
    return pair && this.#usable(pair)
  }

  #usable(pair: TlsIdentity): Certificate | undefined {
    try {
      const { fingerprint, notAfterMs, names } = this.#world.tls.inspect(pair)
      const good = names.includes(this.#options.host) && notAfterMs > this.#world.clock.now()
      return good ? { ...pair, fingerprint, notAfterMs } : undefined
    } catch {
      return undefined
    }
  }

  #failed(error: TunnelError, nextMs: number): void {
    const { host, news } = this.#options
    const told = `${error.message} ${nextMs}`
    if (told === this.#told) return
    this.#told = told
    news({ state: 'failed', host, error, nextMs })
  }
}
