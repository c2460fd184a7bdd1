/** `sotto wg socks5`: a private network of another agent as a SOCKS5 and HTTP proxy of this machine. */
import { TunnelError } from '../../core/errors.ts'
import { checkNetwork, inNetwork, RELAY_ONLY_FLAG, stopped } from '../cli/network.ts'
import { command, isSet, JSON_FLAG, RELAY_FLAGS, textOf } from '../cli/page.ts'
import type { Given, Page } from '../cli/page.ts'
import { readChoice } from '../cli/plan.ts'
import type { Screen } from '../cli/screen.ts'
import { checkChoice } from '../join.ts'
import type { RelayChoice } from '../join.ts'
import type { JoinedNetwork } from '../wireguard/joined_network.ts'
import { checkListen, parseListen, ProxyServer } from '../wireguard/proxy_server.ts'
import type { ProxyEvent } from '../wireguard/proxy_server.ts'
import type { Login } from '../wireguard/socks.ts'
import type { World } from '../world.ts'

const page: Page = {
  name: 'sotto wg socks5',
  summary: 'use a private network by a SOCKS5 proxy of this machine',
  args: ['NET'],
  examples: [
    [
      'sotto wg socks5 office --listen :1080',
      'curl --proxy socks5h://localhost:1080 http://192.168.1.100:8080',
    ],
    ['sotto wg socks5 office --http :8080', 'The same, and a proxy for programs that speak HTTP.'],
  ],
  flags: [
    {
      name: 'listen',
      value: 'ADDRESS',
      without: '127.0.0.1:1080',
      help: 'Where to take SOCKS5, a port or host:port.',
    },
    { name: 'http', value: 'ADDRESS', help: 'Where to take HTTP CONNECT; may be the same port.' },
    {
      name: 'user',
      value: 'NAME',
      help: 'Ask for this user, and the password of SOTTO_PROXY_PASSWORD.',
    },
    RELAY_ONLY_FLAG,
    ...RELAY_FLAGS,
    JSON_FLAG,
  ],
  more: `NET is a name, or SCOPE.NAME. Names of hosts are resolved in the network, never here.`,
}

interface Socks5Options {
  name: string
  listen: Place
  http: Place | undefined
  user: string | undefined
  direct: boolean
  choice: RelayChoice
  json: boolean
}

type Place = ReturnType<typeof parseListen>

function read(given: Given): Socks5Options {
  const http = textOf(given, 'http')
  return {
    name: given.args[0]!,
    listen: parseListen(textOf(given, 'listen') ?? '127.0.0.1:1080'),
    http: http === undefined ? undefined : parseListen(http),
    user: textOf(given, 'user'),
    direct: !isSet(given, 'relay-only'),
    choice: readChoice(given),
    json: isSet(given, 'json'),
  }
}

function check({ name, choice }: Socks5Options): void {
  checkChoice(choice)
  checkNetwork(name)
}

function loginOf({ user }: Socks5Options, { env }: World): Login | undefined {
  if (user === undefined) return undefined
  const password = env['SOTTO_PROXY_PASSWORD']
  if (password !== undefined && password !== '') return { user, password }
  throw new TunnelError('cli/password', 'Cannot ask for a user without a password', {
    hint: 'Set SOTTO_PROXY_PASSWORD: what is typed on a command line can be seen by others.',
  })
}

async function run(options: Socks5Options, world: World): Promise<number> {
  const login = loginOf(options, world)
  const { listen, http } = options
  for (const place of http ? [listen, http] : [listen]) checkListen(place, login)
  return await inNetwork(world, options, async (joined, screen) => {
    const servers: ProxyServer[] = []
    try {
      const isOne = http && http.host === listen.host && http.port === listen.port
      servers.push(await open({ ...listen, socks: true, http: isOne === true }))
      if (http && !isOne) servers.push(await open({ ...http, socks: false, http: true }))
      show(screen, { joined, servers, http: http !== undefined })
      return await stopped(world)
    } finally {
      for (const server of servers) await server.close()
    }

    function open(place: Place & { socks: boolean; http: boolean }): Promise<ProxyServer> {
      const { net, clock, crypto, wireguard } = world
      return ProxyServer.open(
        { net, clock, crypto, bindUdp: wireguard.bindUdp, network: joined.network },
        { ...place, ...(login ? { login } : {}), told: (event) => told(screen, event) },
      )
    }
  })
}

function show(
  screen: Screen,
  { joined, servers, http }: { joined: JoinedNetwork; servers: ProxyServer[]; http: boolean },
): void {
  const [socks, web] = servers
  const place = ({ host, port }: ProxyServer): string =>
    `${host.includes(':') ? `[${host}]` : host}:${port}`
  const own = joined.network.localAddresses[0] ?? ''
  screen.show('listening', [
    { name: 'network', value: joined.name, line: `in the network ${joined.name} as ${own}` },
    { name: 'address', value: own },
    { name: 'socks5', value: place(socks!), line: `SOCKS5  ${place(socks!)}` },
    ...(http
      ? [{ name: 'http', value: place(web ?? socks!), line: `HTTP    ${place(web ?? socks!)}` }]
      : []),
  ])
  screen.follow(() => {
    const { connections, served, refused } = sum(servers)
    return `${connections} open · ${served} so far · ${refused} refused`
  })
}

function sum(
  servers: readonly ProxyServer[],
): { connections: number; served: number; refused: number } {
  const counts = { connections: 0, served: 0, refused: 0 }
  for (const { counts: one } of servers) {
    counts.connections += one.connections
    counts.served += one.served
    counts.refused += one.refused
  }
  return counts
}

function told(screen: Screen, { kind, to, problem }: ProxyEvent): void {
  if (kind !== 'refused' || problem === undefined) return
  const where = to === undefined ? '' : ` to ${to.host} port ${to.port}`
  screen.tell(`refused${where}: ${problem}`, { event: 'refused', fields: { to, problem } })
}

export const socks5Wg = command({ page, read, check, run })
