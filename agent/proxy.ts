/**
 * Which proxy stands between this machine and a relay, by the variables that curl reads: lower case
 * before upper case, the scheme's own before `ALL_PROXY`, exceptions by `NO_PROXY`. `SOTTO_PROXY` is for
 * sotto alone and goes before all of them. Loopback is reached directly unless `SOTTO_PROXY` names a proxy.
 */
import { parseAddress, sharesBits } from '../core/address.ts'
import { TunnelError } from '../core/errors.ts'
import { isLoopback } from './loopback.ts'

/** Longest value that is read; longer ones are a mistake. */
const VALUE_LENGTH_MAX = 4096
/** Entries of NO_PROXY that are looked at. */
const EXCEPTIONS_MAX = 1024
/** RFC 1929: one byte of length each. */
const SOCKS_WORD_BYTES_MAX = 255
/** curl's own. */
const PORTS = { http: 1080, https: 443, socks5: 1080, socks5h: 1080 } as const

export type ProxyKind = keyof typeof PORTS

export interface Proxy {
  readonly kind: ProxyKind
  readonly host: string
  readonly port: number
  /** Decoded. */
  readonly login?: { readonly user: string; readonly password: string }
  /** The variable that names it. */
  readonly from: string
}

export interface Destination {
  readonly host: string
  readonly port: number
  /** TLS inside: `HTTPS_PROXY` decides, not `HTTP_PROXY`. */
  readonly secure: boolean
}

type Env = Readonly<Record<string, string | undefined>>

/** The proxy for a destination; undefined: directly. Throws `proxy/address`. */
export function proxyFor(env: Env, to: Destination): Proxy | undefined {
  const named = env['SOTTO_PROXY'] ? 'SOTTO_PROXY' : undefined
  if (named === undefined && isLoopback(to.host)) return undefined
  const from = named ??
    [...(to.secure ? SECURE : clearNames(env)), ...ALL].find((name) => env[name])
  if (from === undefined || isExcepted(env['no_proxy'] || env['NO_PROXY'] || '', to)) {
    return undefined
  }
  return parseProxy(env[from]!, from)
}

const SECURE = ['https_proxy', 'HTTPS_PROXY']
const ALL = ['all_proxy', 'ALL_PROXY']

/** In a CGI program HTTP_PROXY is a header that a stranger sent. */
function clearNames(env: Env): string[] {
  return env['REQUEST_METHOD'] === undefined ? ['http_proxy', 'HTTP_PROXY'] : ['http_proxy']
}

/** `[scheme://][user:password@]host[:port]`. Errors never repeat the value: it may hold a password. */
export function parseProxy(value: string, from: string): Proxy {
  const wrong = (found: string): TunnelError =>
    new TunnelError(
      'proxy/address',
      `Cannot read the proxy from ${from}: found ${found}, expected http://, https://, socks5:// ` +
        'or socks5h://, with host:port',
      { hint: `Correct ${from}, such as ${from}=http://proxy.example:3128, or unset it.` },
    )
  if (value.length > VALUE_LENGTH_MAX) throw wrong('more than 4096 characters')
  const words = value.trim()
  const scheme = /^([a-z][a-z0-9+.-]*):\/\//i.exec(words)?.[1]?.toLowerCase() ?? 'http'
  if (!Object.hasOwn(PORTS, scheme)) throw wrong(`the scheme ${JSON.stringify(scheme)}`)
  const kind = scheme as ProxyKind
  let url: URL
  try {
    // Read as http, so that host and port are checked alike whatever the scheme.
    url = new URL(`http://${words.replace(/^[a-z][a-z0-9+.-]*:\/\//i, '')}`)
  } catch {
    throw wrong('no address')
  }
  if (url.pathname !== '/' || url.search !== '' || url.hash !== '') throw wrong('a path')
  // The parser takes ":80" for granted and away.
  const port = Number(url.port) || (/:80\/?$/.test(words) ? 80 : PORTS[kind])
  const host = url.hostname.replace(/^\[|\]$/g, '')
  const base = { kind, host, port, from }
  if (url.username === '' && url.password === '') return base
  try {
    const login = {
      user: decodeURIComponent(url.username),
      password: decodeURIComponent(url.password),
    }
    checkLogin(kind, login)
    return { ...base, login }
  } catch {
    throw wrong('a user or password that cannot be sent')
  }
}

function checkLogin(kind: ProxyKind, { user, password }: { user: string; password: string }): void {
  // deno-lint-ignore no-control-regex
  if (/[\x00-\x1f\x7f]/.test(user + password)) throw new Error('control characters')
  if (kind === 'http' || kind === 'https') {
    // RFC 7617 §2: the first colon ends the user.
    if (user.includes(':')) throw new Error('a colon')
    return
  }
  for (const word of [user, password]) {
    const { length } = new TextEncoder().encode(word)
    if (length < 1 || length > SOCKS_WORD_BYTES_MAX) throw new Error('length')
  }
}

/** `http://proxy.example:3128 (HTTPS_PROXY)`: never the login. */
export function describeProxy({ kind, host, port, from }: Proxy): string {
  return `${kind}://${host.includes(':') ? `[${host}]` : host}:${port} (${from})`
}

/** Whether `NO_PROXY` excepts a destination: names with all below them, addresses, CIDR, ports, `*`. */
export function isExcepted(list: string, { host, port }: Destination): boolean {
  const name = host.replace(/\.$/, '').toLowerCase()
  const address = parseAddress(name)
  for (const word of list.split(/[\s,]+/, EXCEPTIONS_MAX)) {
    if (word === '') continue
    if (word === '*') return true
    const { place, port: only } = splitPort(word.toLowerCase())
    if (only !== undefined && only !== port) continue
    if (address) {
      const [base, bits] = place.split('/', 2)
      const network = parseAddress(base!)
      if (network && isWithin(address, network, bits)) return true
      continue
    }
    const suffix = place.replace(/^\*?\./, '').replace(/\.$/, '')
    if (suffix !== '' && (name === suffix || name.endsWith(`.${suffix}`))) return true
  }
  return false
}

function splitPort(word: string): { place: string; port: number | undefined } {
  const parts = /^(\[[0-9a-f:.]+\]|[^:]*):(\d{1,5})$/.exec(word)
  return parts ? { place: parts[1]!, port: Number(parts[2]) } : { place: word, port: undefined }
}

/** As curl does it, bits beyond the mask may be set. */
function isWithin(address: Uint8Array, network: Uint8Array, bits: string | undefined): boolean {
  const whole = address.length * 8
  const count = bits === undefined ? whole : /^\d{1,3}$/.test(bits) ? Number(bits) : NaN
  return count <= whole && sharesBits(address, network, count)
}
