/**
 * Errors as the relay's HTTP side tells them: a status and `{"error": {code, message, hint?}}`.
 * Nothing that is not of the error family is shown: its text may hold what only the log may see.
 */
import type { Context } from 'hono'
import { HTTPException } from 'hono/http-exception'
import type { ContentfulStatusCode } from 'hono/utils/http-status'
import type { ErrorCode } from '../core/errors.ts'
import { isTunnelError, TunnelError } from '../core/errors.ts'
import type { Refusal } from './quota.ts'
import { quotaError } from './quota.ts'

/** An error with the status that tells it, and headers that the status asks for. */
export class Problem extends TunnelError {
  readonly status: ContentfulStatusCode
  readonly headers: Readonly<Record<string, string>>

  constructor(status: ContentfulStatusCode, error: ProblemOptions) {
    super(error.code, error.message, error.hint === undefined ? {} : { hint: error.hint })
    this.status = status
    this.headers = error.headers ?? {}
  }
}

export interface ProblemOptions {
  code: ErrorCode
  message: string
  hint?: string
  headers?: Readonly<Record<string, string>>
}

/** Statuses of errors that come from below; the first code or module that fits. */
const STATUSES: readonly (readonly [code: string, status: ContentfulStatusCode])[] = [
  ['quota/', 429],
  ['registry/quota', 409],
  ['registry/taken', 409],
  ['registry/reserved', 403],
  ['registry/stale', 409],
  ['registry/', 400],
  ['credentials/unknown', 401],
  ['credentials/expired', 401],
  ['credentials/revoked', 401],
  ['credentials/', 400],
  ['certificate/serial', 400],
  ['certificate/too-many', 409],
  ['grants/limit', 409],
  ['grants/', 400],
  ['selector/', 400],
  ['key/', 400],
  ['login/code', 404],
  ['login/limit', 429],
  ['login/', 400],
  ['store/full', 507],
  ['store/key', 400],
  ['store/value', 400],
  ['store/', 503],
]

/** What `error` is told as. */
export function problemOf(error: unknown): Problem {
  if (error instanceof Problem) return error
  if (error instanceof HTTPException && error.status >= 400 && error.status < 500) {
    return new Problem(error.status as ContentfulStatusCode, {
      code: 'http/request',
      message: `Cannot read the request: ${error.message || 'it is malformed'}`,
    })
  }
  if (isTunnelError(error)) {
    const known = STATUSES.find(([code]) => error.code.startsWith(code))
    if (known) {
      return new Problem(known[1], {
        code: error.code,
        message: error.message,
        ...(error.hint === undefined ? {} : { hint: error.hint }),
        ...(known[1] === 401 ? { headers: { 'www-authenticate': 'Bearer' } } : {}),
      })
    }
  }
  return new Problem(500, {
    code: 'relay/fault',
    message: 'Cannot answer the request: the relay failed, its log says why',
  })
}

/** A quota that is used up, with the wait in whole seconds in `Retry-After`. */
export function overQuota(refusal: Refusal): Problem {
  const { code, message, hint } = quotaError(refusal)
  const seconds = Math.max(1, Math.ceil(refusal.retryAfterMs / 1000))
  return new Problem(429, {
    code,
    message,
    ...(hint === undefined ? {} : { hint }),
    headers: { 'retry-after': String(seconds) },
  })
}

/** The response that tells `problem`. */
export function tell(c: Context, problem: Problem): Response {
  return c.json({ error: problem.toJSON() }, problem.status, { ...problem.headers })
}

/** The handler of every method that a path does not have. */
export function wrongMethod(...allowed: string[]): (c: Context) => never {
  const list = allowed.includes('GET') ? [...allowed, 'HEAD'] : allowed
  return (c) => {
    throw new Problem(405, {
      code: 'http/method',
      message: `Cannot answer ${c.req.method.slice(0, 16)}: expected ${list.join(' or ')}`,
      headers: { allow: list.join(', ') },
    })
  }
}
