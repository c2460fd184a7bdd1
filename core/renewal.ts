/**
 * When a certificate is renewed, and how often a CA is asked: by the window that the CA suggests (ACME
 * Renewal Information, RFC 9773), else when two thirds of its life are over. After a failure the next
 * attempt waits, longer each time, as long as the CA says at least; and what was asked is kept, so that
 * a program that is started again and again does not meet the CA's limits either.
 *
 * No clock, no network: instants and random numbers come as arguments. Milliseconds since 1970 throughout.
 */
import { base64urlnopad } from '@scure/base'
import { TunnelError } from './errors.ts'

const MINUTE_MS = 60_000
const HOUR_MS = 3_600_000
const DAY_MS = 86_400_000

/** How often renewal information is asked for again, whatever `Retry-After` says: RFC 9773 §4.3.2. */
export const INFO_AFTER_MS_MIN = MINUTE_MS
export const INFO_AFTER_MS_MAX = DAY_MS
/** Without a `Retry-After`, and after an error that lasts: RFC 9773 §4.3.3. */
export const INFO_AFTER_MS = 6 * HOUR_MS

// Our own limits, below those of the CAs that publish theirs (five failures an hour for a name, five
// certificates a week for the same names).
/** Orders for one name in 24 hours, good or bad. */
export const ORDERS_PER_DAY_MAX = 6
/** Certificates for one name in seven days; a renewal that the CA's own window asks for is not refused. */
export const ISSUED_PER_WEEK_MAX = 4
const FAILED_FIRST_MS = 2 * MINUTE_MS
const FAILED_FACTOR = 4
const FAILED_MS_MAX = DAY_MS
/** A CA may say "in a week"; a year would be as good as never. */
const RETRY_AFTER_MS_MAX = 14 * DAY_MS
/** Added to each wait, so that many that failed together do not come back together. */
const JITTER = 0.25

export interface Validity {
  readonly notBeforeMs: number
  readonly notAfterMs: number
}

/** When the CA would like a certificate to be replaced. */
export interface RenewalWindow {
  readonly startMs: number
  readonly endMs: number
}

/**
 * The name of a certificate in renewal information (RFC 9773 §4.1): the key identifier of its authority
 * and its serial number, each as the content of its DER value, with a leading zero where there is one.
 */
export function certificateId(authorityKeyId: Uint8Array, serial: Uint8Array): string {
  return `${base64urlnopad.encode(authorityKeyId)}.${base64urlnopad.encode(serial)}`
}

/** The window in an answer of the CA. Throws `renewal/info`. */
export function readRenewalInfo(answer: unknown): RenewalWindow {
  const { suggestedWindow } = (answer ?? {}) as { suggestedWindow?: Record<string, unknown> }
  const startMs = instant(suggestedWindow?.['start'])
  const endMs = instant(suggestedWindow?.['end'])
  if (startMs === undefined || endMs === undefined || endMs <= startMs) {
    throw new TunnelError(
      'renewal/info',
      'Cannot read renewal information: found no window that begins before it ends',
    )
  }
  return { startMs, endMs }
}

function instant(words: unknown): number | undefined {
  const ms = typeof words === 'string' && words.length <= 64 ? Date.parse(words) : NaN
  return Number.isFinite(ms) ? ms : undefined
}

/**
 * The instant of renewal: at `fraction` (0 to 1, drawn once for a certificate) of the CA's window, else
 * at two thirds of the certificate's life. A window beyond the certificate's end is none.
 */
export function renewalInstant(
  { notBeforeMs, notAfterMs }: Validity,
  { window, fraction }: { window?: RenewalWindow | undefined; fraction: number },
): number {
  if (window && window.startMs < notAfterMs) {
    const at = window.startMs + fraction * (window.endMs - window.startMs)
    return Math.min(at, notAfterMs)
  }
  return notBeforeMs + (notAfterMs - notBeforeMs) * 2 / 3
}

/** The fraction of a certificate, 0 to 1: the same whenever it is asked for, and of each its own. */
export function fractionOf(fingerprint: Uint8Array): number {
  const view = new DataView(fingerprint.buffer, fingerprint.byteOffset, 4)
  return view.getUint32(0) / 2 ** 32
}

/** When renewal information is asked for again: by `Retry-After`, within bounds. */
export function infoAfterMs(retryAfterMs: number | undefined): number {
  if (retryAfterMs === undefined) return INFO_AFTER_MS
  return Math.min(Math.max(retryAfterMs, INFO_AFTER_MS_MIN), INFO_AFTER_MS_MAX)
}

/** `Retry-After` in seconds or as a date (RFC 9110 §10.2.3), as milliseconds from `nowMs`; undefined: none. */
export function retryAfterOf(words: string | null | undefined, nowMs: number): number | undefined {
  const text = words?.trim() ?? ''
  if (/^\d{1,9}$/.test(text)) return Math.min(Number(text) * 1000, RETRY_AFTER_MS_MAX)
  const at = text === '' || text.length > 64 ? NaN : Date.parse(text)
  return Number.isFinite(at) ? Math.min(Math.max(at - nowMs, 0), RETRY_AFTER_MS_MAX) : undefined
}

/** What was asked of a CA for one name; plain values, to be kept between runs. */
export interface Attempts {
  /** Instants of the orders of the last day. */
  readonly orders: readonly number[]
  /** Instants of the certificates of the last week. */
  readonly issued: readonly number[]
  /** Failures since the last certificate. */
  readonly failures: number
  /** No order before. */
  readonly notBeforeMs: number
  /** Why the last one failed, in words. */
  readonly reason?: string
}

export const NO_ATTEMPTS: Attempts = { orders: [], issued: [], failures: 0, notBeforeMs: 0 }

/** The first instant at which an order may be made: now, or later. `asked`: the CA's window has come. */
export function orderInstant(
  attempts: Attempts,
  { nowMs, asked = false }: { nowMs: number; asked?: boolean },
): number {
  const within = (instants: readonly number[], ms: number, most: number): number => {
    const recent = instants.filter((at) => at > nowMs - ms && at <= nowMs).sort((a, b) => a - b)
    return recent.length < most ? nowMs : recent[recent.length - most]! + ms
  }
  // What lies further ahead than we ever wait was written by a clock that was wrong.
  const notBeforeMs = attempts.notBeforeMs > nowMs + 2 * RETRY_AFTER_MS_MAX
    ? nowMs
    : attempts.notBeforeMs
  return Math.max(
    nowMs,
    notBeforeMs,
    within(attempts.orders, DAY_MS, ORDERS_PER_DAY_MAX),
    asked ? nowMs : within(attempts.issued, 7 * DAY_MS, ISSUED_PER_WEEK_MAX),
  )
}

/** An order begins: keep this before anything is sent, so that a crash counts as well. */
export function orderBegun(attempts: Attempts, nowMs: number): Attempts {
  const orders = [...attempts.orders.filter((at) => at > nowMs - DAY_MS && at <= nowMs), nowMs]
  return { ...attempts, orders: orders.slice(-ORDERS_PER_DAY_MAX) }
}

export function orderIssued(attempts: Attempts, nowMs: number): Attempts {
  const issued = [...attempts.issued.filter((at) => at > nowMs - 7 * DAY_MS && at <= nowMs), nowMs]
  return {
    orders: attempts.orders,
    issued: issued.slice(-ISSUED_PER_WEEK_MAX),
    failures: 0,
    notBeforeMs: 0,
  }
}

export interface Failure {
  nowMs: number
  /** 0 to 1. */
  random: number
  /** What the CA said. */
  retryAfterMs?: number | undefined
  reason: string
}

/** Waits 2, 8, 32, 128 min … a day, and a quarter more by chance; never less than the CA said. */
export function orderFailed(attempts: Attempts, failure: Failure): Attempts {
  const { nowMs, random, retryAfterMs = 0, reason } = failure
  const failures = Math.min(attempts.failures + 1, 32)
  const own = Math.min(FAILED_FIRST_MS * FAILED_FACTOR ** (failures - 1), FAILED_MS_MAX)
  const waitMs = Math.max(own, Math.min(retryAfterMs, RETRY_AFTER_MS_MAX)) * (1 + JITTER * random)
  return { ...attempts, failures, notBeforeMs: Math.ceil(nowMs + waitMs), reason }
}

/** Attempts as they were kept; anything else is none. */
export function readAttempts(value: unknown): Attempts {
  const kept = (value ?? {}) as Record<string, unknown>
  const instants = (list: unknown, most: number): number[] =>
    (Array.isArray(list) ? list : []).filter((at) => Number.isSafeInteger(at)).slice(-most)
  const count = (number: unknown): number =>
    Number.isSafeInteger(number) && (number as number) > 0 ? number as number : 0
  return {
    orders: instants(kept['orders'], ORDERS_PER_DAY_MAX),
    issued: instants(kept['issued'], ISSUED_PER_WEEK_MAX),
    failures: Math.min(count(kept['failures']), 32),
    notBeforeMs: count(kept['notBeforeMs']),
    ...(typeof kept['reason'] === 'string' ? { reason: kept['reason'].slice(0, 1000) } : {}),
  }
}
