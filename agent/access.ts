/**
 * Who may do what here: the `access` table of the profile. Nobody may do anything that no rule allows.
 * It is asked in this agent and nowhere else, and it knows people by the identities that are pinned
 * here, never by what a relay calls them.
 *
 *   "access": [
 *     { "peer": "alice", "services": ["connect", "a2a"] },
 *     { "authority": "ops", "labels": "role=web,env!=prod", "services": ["a2a exec"] }
 *   ]
 */
import { TunnelError } from '../core/errors.ts'
import { parseFingerprint, parseKey } from '../core/key.ts'
import { parseSelector, selects } from '../core/selector.ts'

const RULES_MAX = 1000
const PEER = /^[^\s#@]\S{0,252}$/

/** What can be allowed; docs/commands.md says what each opens. */
export const SERVICES = ['connect', 'a2a', 'a2a exec', 'p2p', 'wg', 'shell'] as const

export type Service = (typeof SERVICES)[number]

export interface AccessRule {
  /** A pinned name, a KEY, or the fingerprint of an identity. */
  peer?: string
  /** A pinned authority's name: whoever it vouches for. */
  authority?: string
  /** A selector over the labels that the authority signed; goes with `authority` alone. */
  labels?: string
  services: Service[]
}

/** An identity as this agent knows it; see trust.ts. */
export interface PeerView {
  /** KEY. */
  key: string
  /** SHA256:…. */
  fingerprint: string
  /** Names to which it is pinned here. First use makes no friend: such pins are not among them. */
  names: string[]
  /** What pinned authorities say of it now. */
  vouched: { authority: string; names: string[]; labels: Readonly<Record<string, string>> }[]
}

/** Throws `access/rule`, with the number of the rule. */
export function readAccess(value: unknown): AccessRule[] {
  if (value === undefined) return []
  if (!Array.isArray(value) || value.length > RULES_MAX) {
    throw wrong(0, `expected a list of at most ${RULES_MAX} rules`)
  }
  return value.map((rule, i) => readRule(rule, i + 1))
}

function readRule(value: unknown, number: number): AccessRule {
  if (typeof value !== 'object' || value === null) throw wrong(number, 'expected an object')
  const { peer, authority, labels, services, ...more } = value as Record<string, unknown>
  const unknown = Object.keys(more)[0]
  if (unknown !== undefined) throw wrong(number, `found "${unknown}", which is no part of a rule`)
  if ((peer === undefined) === (authority === undefined)) {
    throw wrong(number, 'expected either "peer" or "authority"')
  }
  if (typeof (peer ?? authority) !== 'string' || !PEER.test((peer ?? authority) as string)) {
    throw wrong(number, 'expected a name without blanks')
  }
  if (labels !== undefined && (authority === undefined || typeof labels !== 'string')) {
    throw wrong(number, '"labels" goes with "authority": only an authority\'s labels count')
  }
  if (typeof labels === 'string') parseSelector(labels)
  if (!Array.isArray(services) || services.length === 0) {
    throw wrong(number, 'expected "services", a list')
  }
  return {
    ...(peer === undefined ? {} : { peer: checkPeer(peer as string) }),
    ...(authority === undefined ? {} : { authority: authority as string }),
    ...(labels === undefined ? {} : { labels: labels as string }),
    services: services.map((service) => readService(service, number)),
  }
}

/** A name, a KEY or a fingerprint; what looks like one of the latter has to be one. */
export function checkPeer(words: string): string {
  if (words.startsWith('SHA256:')) parseFingerprint(words)
  else if (/^[a-z2-7]{52}$/.test(words)) parseKey(words)
  else if (!PEER.test(words)) throw wrong(0, `found "${words}", expected a name without blanks`)
  return words
}

/** Throws `access/service`. */
export function readService(value: unknown, number = 0): Service {
  if (SERVICES.includes(value as Service)) return value as Service
  throw new TunnelError(
    'access/service',
    `Cannot read ${number === 0 ? 'the service' : `access rule ${number}`}: found ${
      JSON.stringify(value)?.slice(0, 60)
    }, expected one of ${SERVICES.map((one) => `"${one}"`).join(', ')}`,
  )
}

function wrong(number: number, found: string): TunnelError {
  return new TunnelError(
    'access/rule',
    `Cannot read ${number === 0 ? 'the access table' : `access rule ${number}`}: ${found}`,
    { hint: 'It is "access" in settings.json; "sotto access list" shows where that is.' },
  )
}

/** The first rule by which a peer may use a service; undefined: it may not. */
export function allowing(
  rules: readonly AccessRule[],
  peer: PeerView,
  service: Service,
): AccessRule | undefined {
  return rules.find((rule) => rule.services.includes(service) && covers(rule, peer))
}

function covers(rule: AccessRule, peer: PeerView): boolean {
  if (rule.peer !== undefined) {
    return rule.peer === peer.key || rule.peer === peer.fingerprint ||
      peer.names.includes(rule.peer)
  }
  const selector = parseSelector(rule.labels ?? '')
  return peer.vouched.some(({ authority, labels }) =>
    authority === rule.authority && selects(selector, labels)
  )
}

/** Adds services for a peer, in the rule that it has or a new one. */
export function allow(
  rules: readonly AccessRule[],
  who: Omit<AccessRule, 'services'>,
  services: readonly Service[],
): AccessRule[] {
  const at = rules.findIndex((rule) => sameWho(rule, who))
  if (at < 0) return [...rules, { ...who, services: [...services] }]
  return rules.map((rule, i) =>
    i === at ? { ...rule, services: [...new Set([...rule.services, ...services])] } : rule
  )
}

/** Takes services from a peer; none named: all. Gives what is left and how many were taken. */
export function deny(
  rules: readonly AccessRule[],
  who: Omit<AccessRule, 'services'>,
  services: readonly Service[],
): { rules: AccessRule[]; taken: number } {
  let taken = 0
  const left = rules.flatMap((rule) => {
    if (!sameWho(rule, who)) return [rule]
    const kept = rule.services.filter((one) => services.length > 0 && !services.includes(one))
    taken += rule.services.length - kept.length
    return kept.length === 0 ? [] : [{ ...rule, services: kept }]
  })
  return { rules: left, taken }
}

function sameWho(a: Omit<AccessRule, 'services'>, b: Omit<AccessRule, 'services'>): boolean {
  return a.peer === b.peer && a.authority === b.authority &&
    (a.labels ?? '') === (b.labels ?? '')
}
