/**
 * Credentials that were refused, counted against the address that brought them and the scope that
 * they name. Beyond the quota the answer is to come back later. Good credentials are let in whatever
 * others try from their address or in their scope's name: nobody can lock anybody out, and a secret
 * of 256 bits is not found by trying.
 */
import type { AdmittedCredential } from '../core/admit.ts'
import { isTunnelError } from '../core/errors.ts'
import type { AppPorts } from './app.ts'
import type { Grant } from './credentials.ts'
import { overQuota, problemOf } from './problem.ts'
import { addressWho, scopeWho } from './quota.ts'
import type { Quota } from './quota.ts'

const SCOPE_OF_SECRET = /^(?:sk|ft|ak)_([a-z0-9-]{1,63})_/
/** What a wrong credential is told as; anything else is the relay's own trouble. */
const WRONG = /^(credentials\/(unknown|expired|revoked)|certificate\/)/

export interface Shown {
  credential: Pick<Exclude<AdmittedCredential, { kind: 'none' }>, 'kind'> & { secret?: string }
  /** Who shows it; empty where the runtime does not say. */
  address: string
}

/**
 * What `check` grants. Throws what it throws, or `quota/exceeded` with the time to wait where the
 * address or the scope has used up its failures.
 */
export async function checkedGrant(
  quota: Quota,
  { credential, address }: Shown,
  check: () => Promise<Grant>,
): Promise<Grant> {
  try {
    return await check()
  } catch (error) {
    if (!isTunnelError(error) || !WRONG.test(error.code)) throw error
    const scope = SCOPE_OF_SECRET.exec(credential.secret?.slice(0, 80) ?? '')?.[1]
    const own = quota.take('failures', addressWho(address))
    const shared = scope === undefined ? own : quota.take('failures', scopeWho(scope))
    if (!own.ok) throw overQuota(own)
    if (!shared.ok) throw overQuota(shared)
    throw error
  }
}

/** What a secret that came by HTTP grants; a wrong one is counted, and told in the log. */
export async function grantOfSecret(
  { credentials, quota, metrics, log }: Pick<AppPorts, 'credentials' | 'quota' | 'metrics' | 'log'>,
  { secret, address, path }: { secret: string; address: string; path: string },
): Promise<Grant> {
  try {
    return await checkedGrant(
      quota,
      { credential: { kind: 'key', secret }, address },
      () => credentials.verify(secret),
    )
  } catch (error) {
    const { status } = problemOf(error)
    if (status !== 401 && status !== 429) throw error
    metrics.refused.add({ reason: 'credential' })
    log.warn('credential refused', { address, path })
    throw error
  }
}
