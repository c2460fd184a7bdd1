/**
 * Certificates of a relay from a CA: which names are asked for, when, and how often at most. One order
 * at a time; the relay's own names first, then inspectable endpoints that somebody visits and an agent
 * serves right now. What was asked is kept before anything is sent, so that a relay which is started
 * again and again does not meet the CA's limits either. While a name waits, the relay's own
 * certificate serves it.
 *
 * How a CA is talked to, and where things are kept, are ports.
 */
import type { Clock, Timer } from '../core/clock.ts'
import {
  infoAfterMs,
  NO_ATTEMPTS,
  orderBegun,
  orderFailed,
  orderInstant,
  orderIssued,
  readAttempts,
  renewalInstant,
} from '../core/renewal.ts'
import type { Attempts, RenewalWindow } from '../core/renewal.ts'
import type { CertificatePair } from './certificate.ts'

// Below what CAs publish: Let's Encrypt gives a registered domain 50 certificates in seven days.
/** New names of endpoints in 24 hours, and in seven days, on the whole relay. */
export const NEW_PER_DAY_MAX = 20
export const NEW_PER_WEEK_MAX = 40
/** Of them for one scope in 24 hours, so that no scope takes all. */
export const NEW_PER_SCOPE_MAX = 8
/** Names that wait for their order; more are turned away until there is room. */
export const QUEUE_MAX = 100
/** Endpoints whose certificates are kept. */
const KEPT_MAX = 2000
/** How long a visitor's handshake waits for the first certificate of a name. */
export const HOLD_MS_MAX = 10_000
/** How often what is due is looked for. */
const LOOK_MS = 30_000
const DAY_MS = 86_400_000

/** One certificate and what was asked for it, as it is kept. */
export interface Kept {
  /** The names it is for, the first one names it. */
  names: string[]
  pair?: CertificatePair
  attempts: Attempts
  /** What the CA suggested, and when to ask again. */
  window?: RenewalWindow
  askAgainMs?: number
}

export interface AcmePorts {
  clock: Clock
  /** 0 to 1. */
  random(): number
  /** The relay's own names. */
  ownNames: readonly string[]
  /** Whose the endpoint of an apps name is, if it may have a certificate now. */
  scopeOf(name: string): string | undefined
  order(names: readonly string[], replaces: CertificatePair | undefined): Promise<CertificatePair>
  /** What the CA suggests for a certificate; undefined where it suggests nothing. */
  ask(pair: CertificatePair): Promise<{ window?: RenewalWindow; retryAfterMs?: number } | undefined>
  read(pair: CertificatePair): { notBeforeMs: number; notAfterMs: number; fraction: number }
  keep(name: string, kept: Kept): Promise<void>
  /** Instants at which endpoints got their first certificate, and for whom. */
  keepBudget(spent: readonly Spent[]): Promise<void>
  forget(name: string): Promise<void>
  /** There is another certificate for a name. */
  changed(name: string, pair: CertificatePair): Promise<void>
  log(
    level: 'info' | 'warn',
    event: string,
    fields: { name: string; error?: string; until?: string },
  ): void
}

export interface Spent {
  atMs: number
  scope: string
}

export class AcmeDesk {
  readonly #ports: AcmePorts
  readonly #kept = new Map<string, Kept>()
  readonly #queue: string[] = []
  readonly #waiting = new Map<string, Set<() => void>>()
  #spent: Spent[] = []
  #working = false
  #timer: Timer | undefined
  #closed = false

  constructor(
    ports: AcmePorts,
    { kept, spent }: { kept: Iterable<Kept>; spent: readonly Spent[] },
  ) {
    this.#ports = ports
    for (const one of kept) {
      const name = one.names[0]
      if (name !== undefined) {
        this.#kept.set(name, { ...one, attempts: readAttempts(one.attempts) })
      }
    }
    this.#spent = [...spent]
  }

  /** The current pair of a name, if there is one that has not ended. */
  pair(name: string): CertificatePair | undefined {
    const kept = this.#kept.get(this.#key(name))
    if (!kept?.pair) return undefined
    return this.#ports.read(kept.pair).notAfterMs > this.#ports.clock.now() ? kept.pair : undefined
  }

  /** The first look at what is due, and then one every so often. */
  start(): void {
    if (this.#closed) return
    this.look()
    this.#timer = this.#ports.clock.after(LOOK_MS, () => this.start())
  }

  async close(): Promise<void> {
    this.#closed = true
    this.#timer?.cancel()
    for (const name of [...this.#waiting.keys()]) this.#release(name)
    // An order that runs is left to itself: its connection ends with the process.
  }

  /** Puts everything that is due into the queue. */
  look(): void {
    const now = this.#ports.clock.now()
    const [own] = this.#ports.ownNames
    if (own !== undefined) this.#due(own, now)
    for (const [name, kept] of this.#kept) {
      if (name === own) continue
      if (this.#ports.scopeOf(name) !== undefined) this.#due(name, now)
      else if (kept.pair && this.#ports.read(kept.pair).notAfterMs < now) void this.#drop(name)
    }
  }

  async #drop(name: string): Promise<void> {
    this.#kept.delete(name)
    await this.#ports.forget(name).catch(() => {})
  }

  /** A visitor has come for an endpoint: at once, or when there is a certificate, or after a while. */
  ready(name: string): Promise<void> {
    const key = this.#key(name)
    if (this.pair(key) || !this.#due(key, this.#ports.clock.now())) return Promise.resolve()
    return new Promise((resolve) => {
      const waiters = this.#waiting.get(key) ?? new Set()
      this.#waiting.set(key, waiters)
      const done = (): void => {
        timer.cancel()
        waiters.delete(done)
        resolve()
      }
      const timer = this.#ports.clock.after(HOLD_MS_MAX, done)
      waiters.add(done)
    })
  }

  #release(name: string): void {
    for (const done of [...this.#waiting.get(name) ?? []]) done()
    this.#waiting.delete(name)
  }

  #key(name: string): string {
    return this.#ports.ownNames.includes(name) ? this.#ports.ownNames[0]! : name
  }

  /** Queues the name if its certificate is due and may be asked for now; true: it is in the queue. */
  #due(name: string, now: number): boolean {
    if (this.#queue.includes(name)) return true
    const kept = this.#kept.get(name)
    if (kept?.pair) {
      this.#askWhenDue(name, kept, now)
      const { fraction, ...validity } = this.#ports.read(kept.pair)
      if (renewalInstant(validity, { window: kept.window, fraction }) > now) return false
    }
    const asked = kept?.window !== undefined && kept.window.startMs <= now
    if (orderInstant(kept?.attempts ?? NO_ATTEMPTS, { nowMs: now, asked }) > now) return false
    if (!kept?.pair && !this.#affords(name, now)) return false
    if (this.#queue.length >= QUEUE_MAX) return false
    if (this.#ports.ownNames.includes(name)) this.#queue.unshift(name)
    else this.#queue.push(name)
    if (!this.#working) void this.#work()
    return true
  }

  /** A name that never had a certificate costs of what the CA gives to the whole domain. */
  #affords(name: string, now: number): boolean {
    if (this.#ports.ownNames.includes(name)) return true
    const scope = this.#ports.scopeOf(name)
    if (scope === undefined || this.#kept.size >= KEPT_MAX) return false
    this.#spent = this.#spent.filter(({ atMs }) => atMs > now - 7 * DAY_MS && atMs <= now)
    const today = this.#spent.filter(({ atMs }) => atMs > now - DAY_MS)
    return this.#spent.length < NEW_PER_WEEK_MAX && today.length < NEW_PER_DAY_MAX &&
      today.filter((one) => one.scope === scope).length < NEW_PER_SCOPE_MAX
  }

  async #work(): Promise<void> {
    this.#working = true
    // Not within whoever asked: an order is nobody's turn.
    await Promise.resolve()
    while (!this.#closed) {
      const name = this.#queue[0]
      if (name === undefined) break
      try {
        await this.#order(name)
      } catch (error) {
        this.#ports.log('warn', 'certificate not kept', { name, error: (error as Error).message })
      }
      this.#queue.shift()
      this.#release(name)
    }
    this.#working = false
  }

  async #order(name: string): Promise<void> {
    const { ports, own } = { ports: this.#ports, own: this.#ports.ownNames.includes(name) }
    const before = this.#kept.get(name)
    const now = ports.clock.now()
    // While it waited its agent may have gone, or others may have taken what was left.
    if (!own && ports.scopeOf(name) === undefined) return
    if (!before?.pair && !own) {
      if (!this.#affords(name, now)) return
      this.#spent.push({ atMs: now, scope: ports.scopeOf(name)! })
      await ports.keepBudget(this.#spent)
    }
    const names = own ? [...ports.ownNames] : [name]
    const kept: Kept = {
      ...before,
      names,
      attempts: orderBegun(before?.attempts ?? NO_ATTEMPTS, now),
    }
    this.#kept.set(name, kept)
    await ports.keep(name, kept)
    try {
      const pair = await ports.order(names, before?.pair)
      const attempts = orderIssued(kept.attempts, ports.clock.now())
      const issued: Kept = { names, pair, attempts }
      this.#kept.set(name, issued)
      await ports.keep(name, issued)
      ports.log('info', 'certificate issued', {
        name,
        until: new Date(ports.read(pair).notAfterMs).toISOString(),
      })
      await ports.changed(name, pair)
    } catch (error) {
      const { message, retryAfterMs } = error as Error & { retryAfterMs?: number }
      const attempts = orderFailed(kept.attempts, {
        nowMs: ports.clock.now(),
        random: ports.random(),
        retryAfterMs,
        reason: message,
      })
      this.#kept.set(name, { ...kept, attempts })
      await ports.keep(name, { ...kept, attempts })
      ports.log('warn', 'certificate not issued', {
        name,
        error: message,
        until: new Date(attempts.notBeforeMs).toISOString(),
      })
    }
  }

  /** Renewal information, by the pace that the CA asks for. */
  #askWhenDue(name: string, kept: Kept, now: number): void {
    if ((kept.askAgainMs ?? 0) > now || !kept.pair) return
    const { pair } = kept
    kept.askAgainMs = now + infoAfterMs(undefined)
    this.#ports.ask(pair).then(async (answer) => {
      const current = this.#kept.get(name)
      if (!answer || current?.pair !== pair) return
      const { window, retryAfterMs } = answer
      current.askAgainMs = now + infoAfterMs(retryAfterMs)
      if (window) current.window = window
      await this.#ports.keep(name, current)
      this.look()
    }).catch((error) => {
      this.#ports.log('warn', 'no renewal information', { name, error: (error as Error).message })
    })
  }
}
