/**
 * One conformance suite for every runtime that a relay runs on. What a runtime cannot do is
 * declared, and asserted to be refused.
 */
import { suite } from 'uvu'
import type { Abilities, StartRelay } from '../support/relays.ts'
import { Bed } from './bed.ts'
import type { Cases } from './bed.ts'
import { admissionCases } from './cases/admission.ts'
import { domainCases } from './cases/domains.ts'
import { ingressCases } from './cases/ingress.ts'
import { lifeCases } from './cases/life.ts'
import { linkCases } from './cases/links.ts'
import { loginCases } from './cases/logins.ts'
import { poolCases } from './cases/pools.ts'
import { portCases } from './cases/ports.ts'
import { sharedCases } from './cases/shared.ts'
import { streamCases } from './cases/streams.ts'
import { visitCases } from './cases/visits.ts'

const ALL: readonly Cases[] = [
  admissionCases,
  linkCases,
  streamCases,
  visitCases,
  ingressCases,
  domainCases,
  poolCases,
  sharedCases,
  portCases,
  loginCases,
  lifeCases,
]

export function conformance(name: string, start: StartRelay, can: Abilities): void {
  const test = suite(`runtimes/${name}`)
  const bed = new Bed(start, can)
  test.before(() => bed.open())
  test.after.each(() => bed.clear())
  test.after(() => bed.close())
  for (const cases of ALL) cases(test, bed)
  test.run()
}
