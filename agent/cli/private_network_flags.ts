/** Flags of the commands about private networks, and what is read out of them. */
import { TunnelError } from '../../core/errors.ts'
import type { Network as Range } from '../../core/address.ts'
import type { ExitRules } from '../wireguard/exit_policy.ts'
import { parseRoute } from '../wireguard/exit_policy.ts'
import { parseForward } from '../wireguard/port_forward.ts'
import type { Forward } from '../wireguard/port_forward.ts'
import { checkListen, parseListen } from '../wireguard/proxy_server.ts'
import type { ProxyOptions } from '../wireguard/proxy_server.ts'
import type { Login } from '../wireguard/socks.ts'
import type { Flag, Given } from './page.ts'

/** RFC 1929: one byte of length each. */
const LOGIN_WORD_BYTES_MAX = 255
/** Where the password of a proxy is, so that it is on no command line. */
export const PROXY_PASSWORD_VARIABLE = 'SOTTO_SOCKS_PASSWORD'

export const SERVE_FLAGS: readonly Flag[] = [
  {
    name: 'route',
    value: 'NETWORK',
    many: true,
    without: 'none',
    help: 'What members may reach through this machine, such as 192.168.1.0/24; repeat it.',
  },
  { name: 'dns', help: 'Answers names by the resolver of this machine.' },
  { name: 'allow-loopback', help: 'Lets members reach 127.0.0.1 and ::1 of this machine.' },
  {
    name: 'allow-link-local',
    help: 'Lets members reach 169.254.0.0/16 and fe80::/10, where clouds keep secrets.',
  },
  { name: 'allow-self', help: "Lets members reach this machine's own addresses." },
  {
    name: 'subnet',
    value: 'NETWORK',
    without: "one of 100.64.0.0/10, by this agent's identity",
    help: 'Addresses for members, IPv4, between /12 and /30.',
  },
]

export const SOCKS_FLAGS: readonly Flag[] = [
  {
    name: 'listen',
    value: 'ADDRESS',
    without: ':1080, on this machine alone',
    help: 'Where SOCKS5 is spoken: a port, or an address of this machine and a port.',
  },
  { name: 'http', help: 'The same port is an HTTP proxy as well.' },
  {
    name: 'user',
    value: 'NAME',
    without: 'none',
    help: `A user that clients must name; the password is in ${PROXY_PASSWORD_VARIABLE}.`,
  },
]

export const FORWARD_FLAGS: readonly Flag[] = [
  {
    name: 'tcp',
    short: 'L',
    value: 'FORWARD',
    many: true,
    help:
      'A local TCP port onto a place of the far side, such as 5432:db.internal:5432; repeat it.',
  },
  {
    name: 'udp',
    short: 'U',
    value: 'FORWARD',
    many: true,
    help: 'The same for UDP, such as 53:10.0.0.53:53.',
  },
  {
    name: 'reverse',
    short: 'R',
    value: 'FORWARD',
    many: true,
    help:
      'A TCP port of our address in the network onto a place here, such as 8080:localhost:3000.',
  },
]

/** Throws `exit/route`. */
export function readRules(given: Given): ExitRules & { routes: Range[] } {
  return {
    routes: listOf(given, 'route').map(parseRoute),
    loopback: given.flags['allow-loopback'] === true,
    linkLocal: given.flags['allow-link-local'] === true,
    own: given.flags['allow-self'] === true,
  }
}

/** Throws `socks/listen`, `socks/open`, `socks/login`. */
export function readProxy(
  given: Given,
  env: Readonly<Record<string, string | undefined>>,
): Pick<ProxyOptions, 'host' | 'port' | 'http' | 'login'> {
  const { listen, user } = given.flags
  const at = parseListen(typeof listen === 'string' ? listen : ':1080')
  const login = typeof user === 'string' ? readLogin(user, env) : undefined
  checkListen(at, login)
  return { ...at, http: given.flags['http'] === true, ...(login ? { login } : {}) }
}

function readLogin(user: string, env: Readonly<Record<string, string | undefined>>): Login {
  const password = env[PROXY_PASSWORD_VARIABLE] ?? ''
  const lengths = [user, password].map((one) => new TextEncoder().encode(one).length)
  if (lengths.every((one) => one >= 1 && one <= LOGIN_WORD_BYTES_MAX)) return { user, password }
  throw new TunnelError(
    'socks/login',
    `Cannot ask for a password: expected a user and ${PROXY_PASSWORD_VARIABLE}, each of 1 to ` +
      `${LOGIN_WORD_BYTES_MAX} bytes`,
    { hint: `Put the password into ${PROXY_PASSWORD_VARIABLE}` },
  )
}

/** In the order TCP, UDP, reverse. Throws `forward/format`. */
export function readForwards(given: Given): Forward[] {
  const kinds = [['tcp', 'tcp'], ['udp', 'udp'], ['reverse', 'reverse']] as const
  return kinds.flatMap(([flag, kind]) =>
    listOf(given, flag).map((words) => parseForward(kind, words))
  )
}

function listOf(given: Given, name: string): readonly string[] {
  const value = given.flags[name]
  return Array.isArray(value) ? value : typeof value === 'string' ? [value] : []
}
