/** `sotto wg up`: this end of any WireGuard server, by its file, as a proxy and forwards. No root, no TUN. */
import { text } from '../../core/bytes.ts'
import { asTunnelError, isTunnelError, TunnelError } from '../../core/errors.ts'
import { splice } from '../../core/socket.ts'
import type { Conn } from '../../core/socket.ts'
import { FORWARD_FLAGS, readForwards, stopped } from '../cli/network.ts'
import { command, isSet, JSON_FLAG, textOf } from '../cli/page.ts'
import type { Given, Page } from '../cli/page.ts'
import { Screen } from '../cli/screen.ts'
import { placeText } from '../wireguard/network.ts'
import type { Place } from '../wireguard/network.ts'
import { openForwards } from '../wireguard/port_forward.ts'
import type { Forward, OpenForward } from '../wireguard/port_forward.ts'
import { checkListen, parseListen, ProxyServer } from '../wireguard/proxy_server.ts'
import { importedFile, parseQuickConfig, withImported } from '../wireguard/quick_config.ts'
import type { QuickConfig, QuickPeer, QuickProxy } from '../wireguard/quick_config.ts'
import { StockNetwork } from '../wireguard/stock_network.ts'
import type { World } from '../world.ts'

const FILE_BYTES_MAX = 1_048_576

const page: Page = {
  name: 'sotto wg up',
  summary: 'use any WireGuard server by its file, as a proxy and forwards of this machine',
  examples: [
    ['sotto wg up --config wg0.conf --listen :1080', 'A SOCKS5 proxy into what the file leads to.'],
    ['sotto wg up --config wireproxy.conf', 'The proxies and tunnels that the file itself names.'],
  ],
  flags: [
    { name: 'config', value: 'FILE', help: 'As wg-quick and wireproxy have it.' },
    {
      name: 'listen',
      value: 'ADDRESS',
      without: 'what the file names, else 127.0.0.1:1080',
      help: 'Where to take SOCKS5.',
    },
    { name: 'http', value: 'ADDRESS', help: 'Where to take HTTP CONNECT.' },
    ...FORWARD_FLAGS,
    JSON_FLAG,
  ],
  more:
    `Commands in the file, such as PostUp, are not run. Names are asked of the file's DNS, through the tunnel.
A server's name is looked up again after handshakes that nobody answered.`,
}

interface UpOptions {
  path: string
  listen: Place | undefined
  http: Place | undefined
  forwards: Forward[]
  json: boolean
}

function read(given: Given): UpOptions {
  const place = (name: string): Place | undefined => {
    const words = textOf(given, name)
    return words === undefined ? undefined : parseListen(words)
  }
  return {
    path: textOf(given, 'config') ?? '',
    listen: place('listen'),
    http: place('http'),
    forwards: readForwards(given),
    json: isSet(given, 'json'),
  }
}

function check({ path, listen, http }: UpOptions): void {
  if (path === '') {
    throw new TunnelError('cli/usage', 'Cannot use a server without its file: expected --config', {
      hint: 'Such as --config wg0.conf.',
    })
  }
  for (const place of [listen, http]) if (place) checkListen(place, undefined)
}

async function run(options: UpOptions, world: World): Promise<number> {
  const config = await readConfig(world, options.path)
  const target = config.stdioTarget
  if (target && options.json) {
    throw new TunnelError(
      'cli/conflict',
      'Cannot use --json with this file: standard output carries the connection of its [STDIOTunnel]',
    )
  }
  // Nothing else may be written to it then.
  const { terminal } = world
  const screen = new Screen(
    target ? { ...world, terminal: { ...terminal, stdout: terminal.stderr } } : world,
    options,
  )
  for (const { key, line } of config.ignored) {
    screen.tell(`line ${line}: ${key} is not used`, { event: 'ignored', fields: { key, line } })
  }
  const up = await StockNetwork.open(world, config, {
    connected: (peer) => screen.tell(`connected to ${peerText(peer)}`, { event: 'connected' }),
    silent: (peer, error) => {
      const why = error ? error.message : 'no answer'
      screen.tell(`${peerText(peer)}: ${why}; trying on`, {
        event: 'silent',
        fields: { why },
        ...(error ? {} : { hint: 'It is away, or does not know this key: then it stays silent' }),
      })
    },
  })
  const servers: ProxyServer[] = []
  let forwards: OpenForward[] = []
  try {
    for (const one of proxiesOf(config, options)) servers.push(await openProxy(world, up, one))
    const { net, clock, wireguard } = world
    forwards = await openForwards({
      net,
      clock,
      bindUdp: wireguard.bindUdp,
      network: up.network,
      told: (_, error) => screen.trouble(asTunnelError(error, 'net/failed')),
    }, [...options.forwards, ...forwardsOf(config)])
    show(screen, {
      up,
      servers,
      forwards,
      isHttp: proxiesOf(config, options).map(({ http }) => http),
    })
    if (!target) return await stopped(world)
    return await Promise.race([
      carry(terminal.stdio(), await up.network.connect(target)),
      stopped(world),
    ])
  } finally {
    for (const one of forwards) await one.close()
    for (const server of servers) await server.close()
    up.close()
    screen.close()
  }
}

/** Until both directions have ended. */
function carry(near: Conn, far: Conn): Promise<number> {
  return new Promise((resolve) =>
    splice(near, far, (_, broke) => resolve(broke.a || broke.b ? 1 : 0))
  )
}

async function readConfig(world: World, path: string): Promise<QuickConfig> {
  const own = await readWords(world, path)
  const imported = importedFile(own)
  const { words, lines } = imported === undefined
    ? { words: own, lines: 0 }
    : withImported(own, await readWords(world, imported))
  try {
    return parseQuickConfig(words, world)
  } catch (error) {
    if (!isTunnelError(error)) throw error
    const { code, message, hint } = error
    const placed = message.replace(
      /^Cannot read line (\d+)/,
      (_, line) =>
        Number(line) > lines
          ? `Cannot read line ${Number(line) - lines} of ${path}`
          : `Cannot read line ${line} of ${imported}`,
    )
    throw new TunnelError(code, placed, hint === undefined ? {} : { hint })
  }
}

async function readWords({ files }: World, path: string): Promise<string> {
  const content = await files.read(path, { bytesMax: FILE_BYTES_MAX })
  if (content) return text(content)
  throw new TunnelError('cli/file', `Cannot read ${path}: there is no such file`)
}

interface ProxyChoice extends Place {
  http: boolean
  login: { user: string; password: string } | undefined
}

function proxiesOf(config: QuickConfig, { listen, http, forwards }: UpOptions): ProxyChoice[] {
  const named = (http: boolean) => ({ bind, user, password }: QuickProxy): ProxyChoice => ({
    ...bind,
    http,
    login: user === undefined ? undefined : { user, password: password ?? '' },
  })
  const typed = [
    ...(listen ? [{ ...listen, http: false, login: undefined }] : []),
    ...(http ? [{ ...http, http: true, login: undefined }] : []),
  ]
  const all = [...typed, ...config.socks.map(named(false)), ...config.http.map(named(true))]
  if (
    all.length > 0 || config.stdioTarget || forwards.length > 0 || forwardsOf(config).length > 0
  ) return all
  return [{ host: '127.0.0.1', port: 1080, http: false, login: undefined }]
}

function forwardsOf({ clientTunnels, serverTunnels, udpTunnels }: QuickConfig): Forward[] {
  return [
    ...udpTunnels.map(({ bind, target }) => ({ kind: 'udp', listen: bind, to: target }) as const),
    ...clientTunnels.map((
      { bind, target },
    ) => ({ kind: 'tcp', listen: bind, to: target } as const)),
    ...serverTunnels.map(({ port, target }) =>
      ({ kind: 'reverse', listen: { host: '127.0.0.1', port }, to: target }) as const
    ),
  ]
}

function openProxy(
  { net, clock, crypto, wireguard }: World,
  { network }: StockNetwork,
  { host, port, http, login }: ProxyChoice,
): Promise<ProxyServer> {
  checkListen({ host }, login)
  return ProxyServer.open(
    { net, clock, crypto, bindUdp: wireguard.bindUdp, network },
    { host, port, socks: !http, http, ...(login ? { login } : {}) },
  )
}

function show(
  screen: Screen,
  { up, servers, forwards, isHttp }: {
    up: StockNetwork
    servers: ProxyServer[]
    forwards: OpenForward[]
    isHttp: boolean[]
  },
): void {
  const own = up.network.localAddresses[0] ?? ''
  const lines = [
    ...servers.map((one, i) => `${isHttp[i] ? 'HTTP  ' : 'SOCKS5'}  ${placeText(one)}`),
    ...forwards.map(({ forward: { kind, listen, to }, port }) => {
      const place = placeText({ host: kind === 'reverse' ? own : listen.host, port })
      return `${kind === 'udp' ? 'UDP   ' : 'TCP   '}  ${place}  leads to ${placeText(to)}`
    }),
  ]
  screen.tell(`in the network as ${own}`, {
    event: 'listening',
    fields: {
      address: own,
      proxies: servers.map((one, i) => ({
        kind: isHttp[i] ? 'http' : 'socks5',
        listen: placeText(one),
      })),
      forwards: forwards.map(({ forward, port }) => ({
        kind: forward.kind,
        listen: placeText({ ...forward.listen, port }),
        to: placeText(forward.to),
      })),
    },
  })
  screen.print(lines)
}

function peerText({ endpoint }: QuickPeer): string {
  return endpoint ? placeText(endpoint) : 'a peer'
}

export const upWg = command({ page, read, check, run })
