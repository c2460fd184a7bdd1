/**
 * How much one scope and one address may use at once and each second, so that none takes the relay
 * from the others. Rates are token buckets, gauges count what is held. An IPv6 host owns its /64
 * and is counted by it. Memory is bounded: buckets that are full again are forgotten, and at the
 * cap the one unused for longest is; held gauges are never forgotten, and each costs its holder an
 * open connection.
 */
import type { Clock } from '../core/clock.ts'
import type { Pace } from '../core/socket.ts'
import { TunnelError } from '../core/errors.ts'

/** Buckets kept at once; each takes about 150 bytes. */
export const TRACKED_MAX = 50_000
/** Gauges held by distinct holders at once; a new holder is refused beyond it. */
export const HOLDERS_MAX = 200_000
/** How long a refused gauge should wait: nobody knows when another lets go. */
const GAUGE_RETRY_MS = 1000
/** Where a rate of 0 would say for ever. */
const RETRY_MS_MAX = 86_400_000

/** Counted each second. `failures`: credentials that were refused. */
export type RateKind = 'visitors' | 'bytes' | 'requests' | 'failures'
/**
 * Counted while held. `connections`: of visitors on the public port and on public ports. `streams`:
 * whatever agents carry, so those visitors, readable exchanges, UDP flows and visits of other
 * agents. `names` is kept by the registry, which asks `limit`.
 */
export type GaugeKind = 'links' | 'streams' | 'connections' | 'names'

/** Whom it counts against, in one string: for callers that ask often, by the two functions below. */
export type Holder = `scope ${string}` | `address ${string}`
/** Whom it counts against. */
export type Who = Holder | { scope: string } | { address: string }

/**
 * Defaults. A rate is a number a second, with `Burst` the most at once after a pause; a gauge is a
 * number at once. Bytes are unlimited unless set: the links' credit bounds them already.
 */
export const QUOTA_DEFAULTS = {
  'scope.visitors': 5000, // a second
  'scope.visitorsBurst': 20_000,
  'scope.bytes': Infinity, // a second, both directions
  'scope.bytesBurst': Infinity,
  'scope.requests': 100, // of the API and of links, a second
  'scope.requestsBurst': 5000, // every agent of a scope comes back at once after a restart
  'scope.failures': 20, // a second
  'scope.failuresBurst': 200,
  'scope.links': 1000, // at once
  'scope.streams': 50_000, // at once
  'scope.connections': 50_000, // visitors at once
  'scope.names': 100, // owned
  'address.visitors': 1000,
  'address.visitorsBurst': 5000,
  'address.bytes': Infinity,
  'address.bytesBurst': Infinity,
  'address.requests': 50,
  'address.requestsBurst': 500,
  'address.failures': 5,
  'address.failuresBurst': 50,
  'address.links': 256,
  'address.streams': 20_000,
  'address.connections': 4096,
  'address.names': 100,
} as const satisfies Record<string, number>

export type QuotaName = keyof typeof QUOTA_DEFAULTS

export interface QuotaSettings {
  /** Overrides, by the names above. */
  limits?: Readonly<Record<string, number>>
  /** Overrides for single scopes: scope → the names above without `scope.`. */
  scopes?: Readonly<Record<string, Readonly<Record<string, number>>>>
  trackedMax?: number
  holdersMax?: number
}

export interface Refusal {
  ok: false
  kind: RateKind | GaugeKind
  limit: number
  /** Whole milliseconds, at least 1; Retry-After is this in seconds, rounded up. */
  retryAfterMs: number
}

export type Taken = { ok: true } | Refusal
export type Held = { ok: true; release(): void } | Refusal

interface Bucket {
  /** Thousandths of a token, so that whole rates over whole milliseconds stay whole. */
  milli: number
  atMs: number
  /** When it is full again and worth forgetting. */
  fullAtMs: number
}

const TAKEN: Taken = Object.freeze({ ok: true })

export class Quota {
  readonly #clock: Clock
  readonly #limits: Record<string, number>
  readonly #scopes: ReadonlyMap<string, Readonly<Record<string, number>>>
  readonly #trackedMax: number
  readonly #holdersMax: number
  /** In the order of last use: a map keeps the order in which keys were set. */
  readonly #buckets = new Map<string, Bucket>()
  readonly #held = new Map<string, number>()

  /** Throws `quota/setting` on a name that is none, or a number below zero. */
  constructor(clock: Clock, settings: QuotaSettings = {}) {
    const { limits = {}, scopes = {}, trackedMax, holdersMax } = settings
    this.#clock = clock
    this.#limits = { ...QUOTA_DEFAULTS, ...overrides(limits, '') }
    this.#scopes = new Map(
      Object.entries(scopes).map(([scope, own]) => [scope, overrides(own, 'scope.')]),
    )
    this.#trackedMax = trackedMax ?? TRACKED_MAX
    this.#holdersMax = holdersMax ?? HOLDERS_MAX
  }

  /** Buckets and holders remembered now. */
  get tracked(): number {
    return this.#buckets.size + this.#held.size
  }

  /**
   * Takes `amount` from the bucket when it holds that much. More than a whole bucket is let through
   * a full one and paid for afterwards, so that one large chunk never waits for ever.
   */
  take(kind: RateKind, who: Who, amount = 1): Taken {
    const { perSecond, burst } = this.rate(kind, who)
    if (perSecond === Infinity) return TAKEN
    const now = this.#clock.monotonic()
    const key = `${kind} ${holder(who)}`
    const bucket = this.#buckets.get(key)
    const full = burst * 1000
    const milli = bucket ? Math.min(full, bucket.milli + (now - bucket.atMs) * perSecond) : full
    const needed = Math.min(amount * 1000, full)
    const ok = burst > 0 && milli >= needed
    const left = ok ? milli - amount * 1000 : milli
    if (bucket) this.#buckets.delete(key)
    else this.#makeRoom(now)
    this.#buckets.set(key, {
      milli: left,
      atMs: now,
      fullAtMs: perSecond > 0 ? now + (full - left) / perSecond : Infinity,
    })
    if (ok) return TAKEN
    const waitMs = perSecond > 0 ? (needed - milli) / perSecond : Infinity
    const retryAfterMs = Math.max(1, Math.ceil(Math.min(waitMs, RETRY_MS_MAX)))
    return { ok: false, kind, limit: perSecond, retryAfterMs }
  }

  /** Counts one more until `release`, which may be called twice and counts once. */
  hold(kind: GaugeKind, who: Who): Held {
    return this.holdAll([kind], [holder(who)])
  }

  /** One fewer: for holders that are kept by the thousand, to which `release` would be a closure each. */
  letGo(kind: GaugeKind, who: Who): void {
    this.#letGo(`${kind} ${holder(who)}`)
  }

  #letGo(key: string): void {
    const left = (this.#held.get(key) ?? 0) - 1
    if (left > 0) this.#held.set(key, left)
    else this.#held.delete(key)
  }

  /** One more of every kind for every holder, or of none for anybody: the first full one refuses. */
  holdAll(kinds: readonly GaugeKind[], holders: readonly Holder[]): Held {
    const keys: string[] = []
    const release = (): void => {
      for (const key of keys.splice(0)) this.#letGo(key)
    }
    for (const who of holders) {
      for (const kind of kinds) {
        const key = `${kind} ${who}`
        const held = this.#held.get(key) ?? 0
        if (held >= this.limit(kind, who) || (held === 0 && this.#held.size >= this.#holdersMax)) {
          release()
          return { ok: false, kind, limit: this.limit(kind, who), retryAfterMs: GAUGE_RETRY_MS }
        }
        this.#held.set(key, held + 1)
        keys.push(key)
      }
    }
    return { ok: true, release }
  }

  held(kind: GaugeKind, who: Who): number {
    return this.#held.get(`${kind} ${holder(who)}`) ?? 0
  }

  limit(kind: GaugeKind, who: Who): number {
    return this.#limit(kind, who)
  }

  rate(kind: RateKind, who: Who): { perSecond: number; burst: number } {
    return { perSecond: this.#limit(kind, who), burst: this.#limit(`${kind}Burst`, who) }
  }

  #limit(name: string, who: Who): number {
    const key = holder(who)
    if (key.startsWith('address ')) return this.#limits[`address.${name}`]!
    return this.#scopes.get(key.slice('scope '.length))?.[name] ?? this.#limits[`scope.${name}`]!
  }

  /** Forgets buckets that are full again, and at the cap the one unused for longest. */
  #makeRoom(now: number): void {
    // Two for each new one, so that the idle go faster than others come.
    let looked = 0
    for (const [key, bucket] of this.#buckets) {
      const crowded = this.#buckets.size >= this.#trackedMax
      if (looked++ >= 2 && !crowded) break
      if (bucket.fullAtMs > now && !crowded) break
      this.#buckets.delete(key)
    }
  }
}

export function scopeWho(scope: string): Holder {
  return `scope ${scope}`
}

/** All addresses of one holder are one: IPv4 whole, IPv6 by its /64, IPv4 mapped into IPv6 as IPv4. */
export function addressWho(address: string): Holder {
  if (!address.includes(':')) return `address ${address.slice(0, 64)}`
  const mapped = /^::ffff:([0-9.]+)$/i.exec(address)
  if (mapped) return `address ${mapped[1]!}`
  const [plain] = address.toLowerCase().split('%') as [string]
  const [front, back] = plain.split('::') as [string, string?]
  const head = front === '' ? [] : front.split(':')
  const tail = back === undefined || back === '' ? [] : back.split(':')
  const fill = back === undefined ? 0 : Math.max(0, 8 - head.length - tail.length)
  const groups = [...head, ...Array<string>(fill).fill('0'), ...tail].slice(0, 4)
  const network = groups.map((group) => group.slice(0, 4).replace(/^0+(?=.)/, '')).join(':')
  return `address ${network}::/64`
}

/** Counts a visitor's bytes against all of `holders`; undefined where none of them is limited. */
export function paceOf(
  quota: Quota,
  { clock, holders }: { clock: Clock; holders: readonly Who[] },
): Pace | undefined {
  const limited = holders.filter((who) => quota.rate('bytes', who).perSecond !== Infinity)
  if (limited.length === 0) return undefined
  return {
    take(bytes) {
      let waitMs = 0
      for (const who of limited) {
        const taken = quota.take('bytes', who, bytes)
        if (!taken.ok) waitMs = Math.max(waitMs, taken.retryAfterMs)
      }
      return waitMs
    },
    after: (ms, run) => void clock.after(ms, run),
  }
}

/** A `quota/exceeded` that says which limit, and when to come back. */
export function quotaError(
  { kind, limit, retryAfterMs }: Refusal,
  subject = 'the request',
): TunnelError {
  return new TunnelError(
    'quota/exceeded',
    `Cannot admit ${subject}: the quota of ${limit} ${kind} is used up`,
    { hint: `Try again in ${Math.ceil(retryAfterMs / 1000)} s, or ask the operator for more.` },
  )
}

function holder(who: Who): Holder {
  if (typeof who === 'string') return who
  return 'address' in who ? addressWho(who.address) : scopeWho(who.scope)
}

/** Throws `quota/setting`. A rate that is set without its burst gets a second's worth of burst. */
function overrides(
  given: Readonly<Record<string, number>>,
  prefix: string,
): Record<string, number> {
  const limits: Record<string, number> = {}
  for (const [name, value] of Object.entries(given)) {
    if (!Object.hasOwn(QUOTA_DEFAULTS, prefix + name) || !(value >= 0)) {
      throw new TunnelError(
        'quota/setting',
        `Cannot set quota "${name}": found ${value}, expected one of ` +
          `${Object.keys(QUOTA_DEFAULTS).filter((known) => known.startsWith(prefix)).join(' ')} ` +
          'and a number from 0',
      )
    }
    limits[name] = value
    const burst = `${name}Burst`
    if (Object.hasOwn(QUOTA_DEFAULTS, prefix + burst) && given[burst] === undefined) {
      limits[burst] = Math.ceil(value)
    }
  }
  return limits
}
