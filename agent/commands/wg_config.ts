/**
 * `sotto wg config`: a configuration for a stock client of WireGuard, on the machine that serves the
 * network. The private key is printed here and kept nowhere.
 */
import { parseAddress, parseNetwork } from '../../core/address.ts'
import type { Network as Range } from '../../core/address.ts'
import { TunnelError } from '../../core/errors.ts'
import { isName } from '../../core/key.ts'
import { toBase64 } from '../base64.ts'
import { looksOf } from '../cli/looks.ts'
import { command, isSet, JSON_FLAG, listOf, textOf } from '../cli/page.ts'
import type { Given, Page } from '../cli/page.ts'
import { checkName } from '../cli/plan.ts'
import { qrPicture } from '../cli/qr.ts'
import { Profile } from '../profile.ts'
import type { World } from '../world.ts'
import { parseRoute } from '../wireguard/exit_policy.ts'
import { askMemberships } from '../wireguard/membership_control.ts'
import type { Line } from '../wireguard/membership_control.ts'
import type { Place } from '../wireguard/network.ts'
import { placeText } from '../wireguard/network.ts'
import { printQuickConfig } from '../wireguard/quick_config.ts'
import { networkLeases, stockClient } from '../wireguard/served_network.ts'
import { StockClients } from '../wireguard/stock_clients.ts'

/** Keeps the way through a NAT open. */
const KEEPALIVE_SECONDS = 25
const MTU = 1_420

const page: Page = {
  name: 'sotto wg config',
  summary: 'make a configuration for a stock client of WireGuard',
  args: ['NET'],
  examples: [
    [
      'sotto wg config office --new phone --endpoint vpn.example.com:51820',
      'A file for wg-quick, and a QR code for a phone.',
    ],
    [
      'sotto wg config office --new router --route 192.168.1.0/24 > office.conf',
      'Into a file; only the networks that are named go through the tunnel.',
    ],
  ],
  flags: [
    { name: 'new', value: 'CLIENT', help: 'What the client is called; it gets a key of its own.' },
    {
      name: 'endpoint',
      value: 'HOST:PORT',
      without: 'an address of this machine, and the UDP port that is served',
      help: 'Where the client reaches this machine by UDP.',
    },
    {
      name: 'route',
      value: 'NETWORK',
      many: true,
      without: 'what the network leads to',
      help: 'What the client sends through the tunnel.',
    },
    JSON_FLAG,
  ],
  more:
    `The network has to be served with --udp, on this machine. The configuration holds the client's key and is shown
once: whoever has it is the client. To end it: sotto wg release NET CLIENT`,
}

interface ConfigOptions {
  network: string
  client: string
  endpoint: Place | undefined
  routes: Range[]
  json: boolean
}

function read(given: Given): ConfigOptions {
  const endpoint = textOf(given, 'endpoint')
  return {
    network: given.args[0]!,
    client: textOf(given, 'new') ?? '',
    endpoint: endpoint === undefined ? undefined : readEndpoint(endpoint),
    routes: listOf(given, 'route').map(parseRoute),
    json: isSet(given, 'json'),
  }
}

function readEndpoint(words: string): Place {
  const [, six, host, port] =
    /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]\s/]{1,253})):(\d{1,5})$/.exec(words) ?? []
  const good = Number(port) >= 1 && Number(port) <= 65_535 &&
    (six === undefined || parseAddress(six) !== undefined)
  if (good) return { host: (six ?? host)!, port: Number(port) }
  throw new TunnelError(
    'cli/endpoint',
    `Cannot use the endpoint "${
      words.slice(0, 80)
    }": expected HOST:PORT, such as vpn.example.com:51820`,
  )
}

function check({ network, client }: ConfigOptions): void {
  checkName(network)
  if (isName(client)) return
  throw new TunnelError(
    'cli/client',
    client === ''
      ? 'Cannot make a configuration for nobody: expected --new CLIENT'
      : `Cannot make a client "${client}": expected letters, digits and hyphens`,
    { hint: 'Such as --new laptop.' },
  )
}

async function run(options: ConfigOptions, world: World): Promise<number> {
  const { crypto, terminal, clock } = world
  const profile = new Profile(world)
  const serving = await servingOf(world, profile, options.network)
  const endpoint = options.endpoint ?? guessed(world, serving)
  const { public: identity32 } = await profile.identity()
  const server = await profile.wireguardKey(options.network)
  const leases = networkLeases(world, {
    profile,
    identity32,
    name: options.network,
    subnet: serving['subnet'] as string | undefined,
  })
  const lease = await leases.lease(stockClient(options.client))
  const privateKey = crypto.randomBytes(32)
  const presharedKey = crypto.randomBytes(32)
  await new StockClients(world, profile, options.network).add({
    name: options.client,
    key: toBase64(crypto.x25519Public(privateKey)),
    presharedKey: toBase64(presharedKey),
    sinceMs: clock.now(),
  })
  const routes = options.routes.length > 0
    ? options.routes
    : (serving['routes'] as string[]).map(parseRoute)
  const own = [`${lease.serverFour}/32`, `${lease.serverSix}/128`].map((one) => parseNetwork(one)!)
  const words = printQuickConfig({
    privateKey,
    addresses: [`${lease.four}/32`, `${lease.six}/128`].map((one) => parseNetwork(one)!),
    dns: serving['dns'] === true ? [lease.serverFour] : [],
    mtu: MTU,
    peers: [{
      publicKey: server.public32,
      presharedKey,
      allowed: [...own, ...routes],
      endpoint,
      keepaliveSeconds: KEEPALIVE_SECONDS,
    }],
  }, { note: `${options.client}, in the network ${options.network}` })
  if (options.json) {
    const line = {
      event: 'config',
      client: options.client,
      address: lease.four,
      endpoint: placeText(endpoint),
      config: words,
    }
    terminal.stdout.write(`${JSON.stringify(line)}\n`)
    return 0
  }
  terminal.stdout.write(words)
  if (terminal.stdout.isTTY) {
    const { lines } = await qrPicture(words, looksOf(world.env))
    terminal.stderr.write(`\n${lines.join('\n')}\n`)
  }
  if (options.endpoint === undefined) {
    terminal.stderr.write(
      `\nThe client looks for this machine at ${placeText(endpoint)}: from elsewhere another ` +
        'address may lead here; name it by --endpoint\n',
    )
  }
  return 0
}

async function servingOf(world: World, profile: Profile, network: string): Promise<Line> {
  const found = (await askMemberships(world, profile))
    .find((line) => line['event'] === 'serving' && line['name'] === network)
  if (found && typeof found['udp'] === 'number') return found
  throw new TunnelError(
    'network/udp',
    `Cannot make a configuration for "${network}": ${
      found ? 'it is served without UDP' : 'it is not served on this machine now'
    }`,
    { hint: `Start it by: sotto wg serve --name ${network} --udp 51820` },
  )
}

/** The first address of this machine that others may reach. */
function guessed({ probes }: World, serving: Line): Place {
  const found = probes.interfaces().find(({ internal, family, address }) =>
    !internal && family === 4 && !address.startsWith('169.254.')
  )
  return { host: found?.address ?? '127.0.0.1', port: Number(serving['udp']) }
}

export const configWg = command({ page, read, check, run })
