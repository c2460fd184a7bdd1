/**
 * Who may do what by the API. The admin key may do everything. An API key may do what concerns its
 * own scope, and make credentials that allow no more than itself. A fleet token reads.
 */
import type { Grant, NewCredential } from './credentials.ts'
import { Problem } from './problem.ts'

/** The scope that a list is of: undefined for all of them. */
export function seenScope(grant: Grant, asked: string | undefined): string | undefined {
  if (grant.admin) return asked
  if (asked !== undefined && asked !== grant.scope) {
    throw forbidden(`it is of scope "${grant.scope}"`)
  }
  return grant.scope
}

export function sees(grant: Grant, scope: string): boolean {
  return grant.admin || grant.scope === scope
}

export function needAdmin(grant: Grant): void {
  if (!grant.admin) throw forbidden('it takes the admin key')
}

/** Fleet tokens lie on many machines, so they change nothing. */
export function needNoToken(grant: Grant): void {
  if (grant.kind === 'token') throw forbidden('a fleet token reads and changes nothing')
}

/** A credential as the API is asked for it. */
export interface Wanted {
  scope?: string | undefined
  label?: string | undefined
  expiresAt?: string | undefined
  names?: string[] | undefined
  labels?: Record<string, string> | undefined
  maxAgents?: number | undefined
  admin?: boolean | undefined
}

/** What may be made under `grant`: nothing that allows more than the grant itself. */
export function wantedCredential(
  grant: Grant,
  kind: 'key' | 'token',
  wanted: Wanted,
): NewCredential {
  const { admin = false, expiresAt, scope, ...rest } = wanted
  if (admin && (!grant.admin || (scope !== undefined && scope !== grant.scope))) {
    throw forbidden('an admin key is made by one, without a scope')
  }
  needNoToken(grant)
  if (!grant.admin && (grant.names || grant.labels || grant.maxAgents !== undefined)) {
    throw forbidden('a restricted key makes no credentials')
  }
  if (grant.admin && !admin && scope === undefined) {
    throw new Problem(400, {
      code: 'api/scope',
      message: 'Cannot make the credential: found no scope, expected whose it is to be',
    })
  }
  const expiry = expiresAt === undefined ? undefined : Date.parse(expiresAt)
  if (grant.expiresAt !== undefined && (expiry === undefined || expiry > grant.expiresAt)) {
    throw forbidden('it may not outlive the key that makes it')
  }
  return {
    ...rest,
    kind: admin ? 'admin' : kind,
    scope: seenScope(grant, scope) ?? grant.scope,
    ...(expiry === undefined ? {} : { expiresAt: expiry }),
  }
}

export function forbidden(why: string): Problem {
  return new Problem(403, {
    code: 'api/forbidden',
    message: `Cannot do this with the credential of this request: ${why}`,
  })
}
