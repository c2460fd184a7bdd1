/**
 * The head of a visitor's request on the way to an agent: refused where two programs could read it
 * in two ways, stripped of what belongs to the visitor's connection or only a relay may say, and
 * given what the relay knows. The runtimes' parsers refuse most attacks on framing by themselves;
 * what some of them let pass (measured: equal lengths twice, codings before `chunked`, two hosts)
 * ends here, so that it ends the same everywhere. RFC 9112 §3, §6 and §11.2.
 */
import {
  endToEnd,
  type Fields,
  FIELDS_MAX,
  HEAD_BYTES_MAX,
  isAuthority,
  isFieldValue,
  isOriginForm,
  isToken,
  type RequestHead,
} from '../core/exchange.ts'
import { Problem } from './problem.ts'

/** Tunnels by path live under this, where a relay has no wildcard domain. */
export const PATH_PREFIX = '/t/'

/** One request as a backend read it; nothing is merged, renamed or left out. */
export interface VisitorRequest {
  method: string
  /** As on the request line. */
  target: string
  /** Of HTTP: `1.0`, `1.1`. */
  version: string
  scheme: 'http' | 'https'
  headers: Fields
  /** Who asks; the port is 0 when unknown. */
  address: string
  port: number
}

export interface RequestRules {
  /** Endpoints are one label under this domain; lower case. */
  domain: string
  /** Also by path: `/t/NAME/…` on any other host. */
  paths: boolean
}

const LABEL = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/
/** What other proxies tell about a visitor; as good as forged, wherever it comes from. */
const CLAIMS = new Set([
  'cf-connecting-ip',
  'client-ip',
  'fastly-client-ip',
  'forwarded',
  'true-client-ip',
  'x-client-ip',
  'x-cluster-client-ip',
  'x-forwarded',
  'x-original-forwarded-for',
  'x-original-host',
  'x-original-url',
  'x-real-ip',
  'x-rewrite-url',
])

/** Which endpoint is meant, and what its agent is told. Throws `Problem`. */
export function readRequest(
  request: VisitorRequest,
  rules: RequestRules,
): { name: string; head: RequestHead } {
  checkFields(request)
  const { chunked, length } = framingOf(request)
  const authority = authorityOf(request)
  checkTarget(request)
  const { name, target, prefix } = placeOf(request.target, authority, rules)
  const upgrade = upgradeOf(request)
  if (upgrade !== undefined && (chunked || (length ?? 0) > 0)) {
    throw bad('http/upgrade', 'an upgrade with a body, expected one without')
  }
  const kept = endToEnd(request.headers).filter(([field]) =>
    !isClaim(field) && !/^host$/i.test(field)
  )
  const head: RequestHead = {
    method: request.method,
    target,
    authority,
    scheme: request.scheme,
    headers: [...kept, ...forwarded(request, { authority, prefix })],
    ...(upgrade === undefined ? {} : { upgrade }),
    ...(chunked ? { chunked: true as const } : {}),
  }
  return { name, head }
}

/** True for fields that only a relay may set; CGI and its kin read `_` and others as `-`. */
export function isClaim(field: string): boolean {
  const plain = field.toLowerCase().replace(/[^a-z0-9]/g, '-')
  return plain.startsWith('x-forwarded-') || CLAIMS.has(plain)
}

function bad(code: `http/${string}`, found: string): Problem {
  return new Problem(400, { code, message: `Cannot read the request: found ${found}` })
}

function tooLarge(found: string): Problem {
  return new Problem(431, {
    code: 'http/head',
    message: `Cannot read the request: found ${found}`,
  })
}

function checkFields({ headers, target, version }: VisitorRequest): void {
  if (version !== '1.1' && version !== '1.0') {
    throw bad('http/version', 'another version of HTTP, expected 1.1')
  }
  if (headers.length > FIELDS_MAX) {
    throw tooLarge(`${headers.length} fields, expected at most ${FIELDS_MAX}`)
  }
  let bytes = target.length
  for (const [name, value] of headers) {
    bytes += name.length + value.length
    if (!isToken(name)) throw bad('http/field', 'a field whose name is no token')
    if (!isFieldValue(value)) throw bad('http/field', 'a field with controls in its value')
  }
  if (bytes > HEAD_BYTES_MAX) {
    throw tooLarge(`${bytes} bytes of head, expected at most ${HEAD_BYTES_MAX}`)
  }
}

function valuesOf(headers: Fields, name: string): string[] {
  return headers.filter(([field]) => field.toLowerCase() === name).map(([, value]) => value)
}

/** RFC 9112 §6.3 leaves a server a choice in several cases; this one always refuses. */
function framingOf({ headers, version }: VisitorRequest): { chunked: boolean; length?: number } {
  const lengths = valuesOf(headers, 'content-length')
  const codings = valuesOf(headers, 'transfer-encoding')
  if (lengths.length > 1) throw bad('http/framing', 'content-length more than once')
  if (lengths.length > 0 && !/^[0-9]{1,15}$/.test(lengths[0]!)) {
    throw bad('http/framing', 'a content-length that is no number')
  }
  if (codings.length === 0) {
    return lengths.length === 0
      ? { chunked: false }
      : { chunked: false, length: Number(lengths[0]) }
  }
  if (lengths.length > 0) throw bad('http/framing', 'content-length and transfer-encoding')
  if (codings.length > 1 || codings[0]!.toLowerCase() !== 'chunked') {
    throw bad('http/framing', 'a transfer-encoding other than "chunked"')
  }
  if (version === '1.0') throw bad('http/framing', 'transfer-encoding in HTTP/1.0')
  return { chunked: true }
}

function authorityOf({ headers }: VisitorRequest): string {
  const hosts = valuesOf(headers, 'host')
  if (hosts.length !== 1) throw bad('http/host', `${hosts.length} hosts, expected 1`)
  if (!isAuthority(hosts[0]!)) throw bad('http/host', 'a host that is none')
  return hosts[0]!
}

function checkTarget({ method, target }: VisitorRequest): void {
  if (method === 'CONNECT' || method === 'TRACE') {
    throw new Problem(405, {
      code: 'http/method',
      message: `Cannot answer ${method}: expected another method`,
      headers: { allow: 'GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS' },
    })
  }
  if (target === '*' && method === 'OPTIONS') return
  if (!isOriginForm(target)) {
    throw bad('http/target', 'a target that is not in origin form, expected a path')
  }
}

function placeOf(
  target: string,
  authority: string,
  { domain, paths }: RequestRules,
): { name: string; target: string; prefix: string } {
  const host = authority.replace(/:[0-9]*$/, '').replace(/\.$/, '').toLowerCase()
  if (host.endsWith(`.${domain}`)) {
    const name = host.slice(0, -domain.length - 1)
    if (LABEL.test(name)) return { name, target, prefix: '' }
  } else if (paths && target.startsWith(PATH_PREFIX)) {
    return pathPlace(target)
  }
  throw new Problem(421, {
    code: 'http/misdirected',
    message: 'Cannot answer the request: found a host that is not served here',
  })
}

function pathPlace(target: string): { name: string; target: string; prefix: string } {
  const rest = target.slice(PATH_PREFIX.length)
  const end = rest.search(/[/?]/)
  const name = end < 0 ? rest : rest.slice(0, end)
  if (!LABEL.test(name)) {
    throw new Problem(404, {
      code: 'http/unknown',
      message: 'Cannot find the tunnel: found a path without a name',
    })
  }
  const prefix = PATH_PREFIX + name
  const after = target.slice(prefix.length)
  if (!after.startsWith('/')) {
    // Relative links of the page would lead out of the tunnel.
    throw new Problem(308, {
      code: 'http/moved',
      message: 'The tunnel begins below this address',
      headers: { location: `${prefix}/${after}` },
    })
  }
  return { name, target: after, prefix }
}

/** The protocol to switch to, where the visitor asks for one that can be passed on. */
function upgradeOf({ headers, version }: VisitorRequest): string | undefined {
  const wanted = valuesOf(headers, 'upgrade')
  const options = valuesOf(headers, 'connection').flatMap((value) => value.toLowerCase().split(','))
  if (wanted.length === 0 || version === '1.0') return undefined
  if (!options.some((option) => option.trim() === 'upgrade')) return undefined
  const protocol = wanted[0]!.trim()
  // Within TLS, HTTP/2 is chosen by ALPN; an upgrade to it would pass requests by, unread.
  if (
    wanted.length > 1 || !/^[\w-]+(?:\/[\w.]+)?$/.test(protocol) || /^(h2|http|tls)/i.test(protocol)
  ) {
    return undefined
  }
  return protocol
}

/** RFC 7239, and the older fields that most programs read. */
function forwarded(
  { address, scheme }: VisitorRequest,
  { authority, prefix }: { authority: string; prefix: string },
): Fields {
  const port = /:([0-9]+)$/.exec(authority)?.[1] ?? (scheme === 'https' ? '443' : '80')
  const node = address === '' ? 'unknown' : address.includes(':') ? `"[${address}]"` : address
  const fields: Fields = [
    ['X-Forwarded-For', address === '' ? 'unknown' : address],
    ['X-Forwarded-Proto', scheme],
    ['X-Forwarded-Host', authority],
    ['X-Forwarded-Port', port],
    ['Forwarded', `for=${node};host="${authority}";proto=${scheme}`],
  ]
  if (prefix !== '') fields.push(['X-Forwarded-Prefix', prefix])
  return fields
}
