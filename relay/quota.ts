import type { Clock } from '../core/clock.ts'
import type { TunnelError } from '../core/errors.ts'

/** A scope or an address (IPv6: its /64); made once for each link, by the two functions below. */
export type Who = `scope:${string}` | `address:${string}`
export declare function scopeWho(scope: string): Who
export declare function addressWho(address: string): Who

/** Counted each second (token buckets). */
export type RateKind = 'visitors' | 'bytes' | 'requests' | 'failures'
/** Counted while held (gauges). `names` is kept by the registry, which asks `limit`. */
export type GaugeKind = 'links' | 'streams' | 'connections' | 'names'

export interface Refusal {
  ok: false
  kind: RateKind | GaugeKind
  who: Who
  limit: number
  /** Whole milliseconds, at least 1: what Retry-After says, rounded up to seconds. */
  retryAfterMs: number
}
export type Taken = { ok: true } | Refusal
export type Held = { ok: true; release(): void } | Refusal

export interface RateLimit {
  perSecond: number
  burst: number
}
export interface Limits {
  scope: Record<RateKind, RateLimit> & Record<GaugeKind, number>
  address: Record<RateKind, RateLimit> & Record<GaugeKind, number>
}
export interface QuotaSettings {
  scope?: Partial<Limits['scope']>
  address?: Partial<Limits['address']>
  /** For single scopes, by name. */
  scopes?: Record<string, Partial<Limits['scope']>>
  trackedMax?: number
}

export declare class Quota {
  constructor(clock: Clock, settings?: QuotaSettings)
  take(kind: RateKind, who: Who, amount?: number): Taken
  hold(kind: GaugeKind, who: Who): Held
  limit(kind: GaugeKind, who: Who): number
  rate(kind: RateKind, who: Who): RateLimit
  held(kind: GaugeKind, who: Who): number
  readonly tracked: number
}
/** A `quota/KIND` error with the sentence and the wait as hint. */
export declare function quotaError(refusal: Refusal): TunnelError
