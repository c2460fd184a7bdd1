/**
 * Whether a domain is ready to lead to an endpoint of this agent: what its DNS says of the way here, of the
 * scope that may claim it, and of the CAs that may vouch for it (CAA, RFC 8659 and RFC 8657).
 */
import { formatAddress, parseAddress } from '../core/address.ts'
import { asTunnelError } from '../core/errors.ts'
import type { Lookup, Resolver } from '../core/resolver.ts'

export interface DomainQuestion {
  domain: string
  /** The relay's host name, and the domain of its verified endpoints. */
  relay: string
  secure: string
  /** The endpoint's name; the scope, where the relay has told it. */
  label: string
  scope: string | undefined
  /** The CA's own name for CAA, such as `letsencrypt.org`. */
  ca: string
  /** The URL of the account there, once there is one. */
  account: string | undefined
}

export interface Finding {
  what: 'way' | 'claim' | 'caa'
  state: 'ok' | 'warning' | 'fail'
  /** What was found, as a sentence without its full stop. */
  found: string
  /** Records to set, each a line of a zone file. */
  set: string[]
}

type Asks = Pick<Resolver, 'lookup'>

export async function checkDomain(resolver: Asks, asked: DomainQuestion): Promise<Finding[]> {
  const checks = [way, claim, authorities]
  return await Promise.all(checks.map(async (check) => {
    try {
      return await check(resolver, asked)
    } catch (error) {
      const { message } = asTunnelError(error, 'dns/failed')
      const what = check === way ? 'way' : check === claim ? 'claim' : 'caa'
      return { what, state: 'fail', found: message, set: [] } as const
    }
  }))
}

/** Do visitors come to the relay? */
async function way(resolver: Asks, asked: DomainQuestion): Promise<Finding> {
  const { domain, relay, secure, label } = asked
  const set = [`${domain}. CNAME ${label}.${secure}.`]
  const alias = await resolver.lookup(domain, 'CNAME')
  const target = alias.values[0]
  if (target !== undefined && (target === relay || target.endsWith(`.${secure}`))) {
    return { what: 'way', state: 'ok', found: `it is an alias of ${target}`, set: [] }
  }
  const [own, theirs] = [await addresses(resolver, domain), await addresses(resolver, relay)]
  if (own.length === 0) {
    return { what: 'way', state: 'fail', found: 'it has no address and is no alias', set }
  }
  const astray = own.filter((one) => !theirs.includes(one))
  if (theirs.length > 0 && astray.length === 0) {
    return {
      what: 'way',
      state: 'ok',
      found: `it leads to ${own.join(', ')}, as the relay does`,
      set: [],
    }
  }
  return {
    what: 'way',
    state: 'fail',
    found: `it leads to ${astray.join(', ')}, and ${relay} to ${theirs.join(', ') || 'nowhere'}`,
    set,
  }
}

async function addresses(resolver: Asks, name: string): Promise<string[]> {
  const all = [await resolver.lookup(name, 'A'), await resolver.lookup(name, 'AAAA')]
  return all.flatMap(({ values }) => values)
    .map((one) => formatAddress(parseAddress(one) ?? new Uint8Array(4))).sort()
}

/** Will the relay give it to this scope? */
async function claim(resolver: Asks, asked: DomainQuestion): Promise<Finding> {
  const { domain, relay, secure, label, scope } = asked
  const text = `_sotto.${domain}. TXT "sotto-scope=${scope ?? 'SCOPE'}; relay=${relay}"`
  const { values } = await resolver.lookup(`_sotto.${domain}`, 'TXT')
  const named = values.flatMap((words) =>
    /^sotto-scope=([a-z0-9-]{1,63});? *relay=([a-z0-9.-]{1,253})$/i.exec(words.trim()) ?? []
  )
  const scopes = values.flatMap((words) => {
    const [, of, at] = /^sotto-scope=([a-z0-9-]{1,63});? *relay=([a-z0-9.-]{1,253})$/i
      .exec(words.trim()) ?? []
    return at?.toLowerCase().replace(/\.$/, '') === relay ? [of!.toLowerCase()] : []
  })
  if (scopes.length > 0) {
    const words = scopes.join(', ')
    if (scope === undefined) {
      return {
        what: 'claim',
        state: 'warning',
        found: `a TXT names the scope ${words}; whether that is yours, only a key tells`,
        set: [],
      }
    }
    const ok = scopes.includes(scope)
    return {
      what: 'claim',
      state: ok ? 'ok' : 'fail',
      found: `a TXT names the scope ${words}${ok ? '' : `, and yours is ${scope}`}`,
      set: ok ? [] : [text],
    }
  }
  const alias = (await resolver.lookup(domain, 'CNAME')).values[0]
  if (alias?.endsWith(`.${secure}`)) {
    const of = alias.slice(0, -secure.length - 1)
    return {
      what: 'claim',
      state: 'ok',
      found: `it is an alias of the name "${of}" of the relay, whose scope may claim it`,
      set: [],
    }
  }
  return {
    what: 'claim',
    state: 'fail',
    found: named.length > 0 ? 'a TXT names another relay' : 'nothing says whose scope may claim it',
    set: [`${domain}. CNAME ${label}.${secure}.`, text],
  }
}

/** Which CAs may vouch for it, and for whose account. */
async function authorities(resolver: Asks, asked: DomainQuestion): Promise<Finding> {
  const { domain, ca, account } = asked
  const strict = (uri: string): string =>
    `${domain}. CAA 0 issue "${ca}; validationmethods=tls-alpn-01; accounturi=${uri}"`
  const set = [strict(account ?? 'ACCOUNT')]
  const found = await climb(resolver, domain)
  const issues = found.values.flatMap((value) => /^\d+ issue (.*)$/s.exec(value)?.[1] ?? [])
  const critical = found.values.find((value) => {
    const [, flags, tag] = /^(\d+) (\S+)/.exec(value) ?? []
    return (Number(flags) & 128) !== 0 &&
      !['issue', 'issuewild', 'iodef', 'issuemail'].includes(tag!)
  })
  if (critical !== undefined) {
    return { what: 'caa', state: 'fail', found: `a CAA that no CA understands: ${critical}`, set }
  }
  if (issues.length === 0) {
    return {
      what: 'caa',
      state: 'warning',
      found:
        'no CAA: any CA may vouch for it, to whoever shows that visitors come to them, the relay too',
      set,
    }
  }
  const parsed = issues.map(readIssue)
  const ours = parsed.filter(({ name }) => name === ca)
  const words = `a CAA at ${found.at} allows ${
    parsed.map(({ name }) => name || 'no CA').join(', ')
  }`
  if (ours.length === 0) {
    return { what: 'caa', state: 'fail', found: `${words}, and not ${ca}`, set }
  }
  const open = ours.filter(({ parameters: { validationmethods } }) =>
    validationmethods === undefined || validationmethods.split(',').includes('tls-alpn-01')
  )
  if (open.length === 0) {
    return { what: 'caa', state: 'fail', found: `${words}, and not by tls-alpn-01`, set }
  }
  const uris = open.map(({ parameters }) => parameters['accounturi'])
  if (uris.includes(undefined)) {
    return { what: 'caa', state: 'warning', found: `${words}, for any account there`, set }
  }
  if (account === undefined) {
    return {
      what: 'caa',
      state: 'warning',
      found: `${words}, for accounts that are not known here`,
      set,
    }
  }
  const ok = uris.includes(account)
  const others = parsed.length > open.length || uris.some((uri) => uri !== account)
  return {
    what: 'caa',
    state: ok ? (others ? 'warning' : 'ok') : 'fail',
    found: ok
      ? `${words}, for your account${others ? ' and for others' : ' alone'}`
      : `${words}, for another account than ${account}`,
    set: ok && !others ? [] : set,
  }
}

/** The records nearest to the name (RFC 8659 §3). */
async function climb(resolver: Asks, domain: string): Promise<Lookup & { at: string }> {
  for (let at = domain;; at = at.slice(at.indexOf('.') + 1)) {
    const found = await resolver.lookup(at, 'CAA')
    if (found.values.length > 0 || !at.includes('.')) return { ...found, at }
  }
}

interface Issue {
  name: string
  parameters: Record<string, string>
}

/** RFC 8659 §4.2: a name, then parameters after semicolons. */
function readIssue(value: string): Issue {
  const [name = '', ...rest] = value.split(';').map((part) => part.trim())
  const parameters: Record<string, string> = {}
  for (const part of rest) {
    const at = part.indexOf('=')
    if (at > 0) parameters[part.slice(0, at).trim().toLowerCase()] = part.slice(at + 1).trim()
  }
  return { name: name.toLowerCase(), parameters }
}

/** Of a directory, what CAA calls the CA; undefined: only its documentation tells. */
export function caaNameOf(directory: string): string | undefined {
  const { hostname } = new URL(directory)
  const known: readonly (readonly [domain: string, name: string])[] = [
    ['api.letsencrypt.org', 'letsencrypt.org'],
    ['pki.goog', 'pki.goog'],
    ['zerossl.com', 'sectigo.com'],
    ['buypass.com', 'buypass.com'],
    ['ssl.com', 'ssl.com'],
    ['actalis.com', 'actalis.it'],
  ]
  return known.find(([domain]) => hostname === domain || hostname.endsWith(`.${domain}`))?.[1]
}
