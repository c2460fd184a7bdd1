/**
 * `sotto wg config`: a configuration for a stock client of WireGuard, on the machine that serves the
 * network. The private key is printed here and kept nowhere.
 */
import { parseNetwork } from '../../core/address.ts'
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
import { readEndpoint } from '../wireguard/own_addresses.ts'
import { placeText } from '../wireguard/network.ts'
import { printQuickConfig } from '../wireguard/quick_config.ts'
import { networkLeases, stockClient } from '../wireguard/served_network.ts'
import { StockClients } from '../wireguard/stock_clients.ts'

/** Keeps the way through a NAT open. */
const KEEPALIVE_SECONDS = 25

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
      without: "the relay's UDP port, else one of this machine",
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
    `The network has to be served on this machine, with --udp or --public-udp. The configuration holds the client's
key and is shown once: whoever has it is the client. To end it: sotto wg release NET CLIENT`,
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
  const { endpoint, isGuessed } = endpointOf(world, serving, options)
  const { public: identity32 } = await profile.identity()
  const server = await profile.wireguardKey(options.network)
  const leases = networkLeases(world, {
    profile,
    identity32,
    name: options.network,
    subnet: serving['subnet'] as string | undefined,
  })
  const privateKey = crypto.randomBytes(32)
  const presharedKey = crypto.randomBytes(32)
  const lease = await new StockClients(world, profile, options.network).add({
    name: options.client,
    key: toBase64(crypto.x25519Public(privateKey)),
    presharedKey: toBase64(presharedKey),
    sinceMs: clock.now(),
  }, () => leases.lease(stockClient(options.client)))
  const routes = options.routes.length > 0
    ? options.routes
    : (serving['routes'] as string[]).map(parseRoute)
  const own = [`${lease.serverFour}/32`, `${lease.serverSix}/128`].map((one) => parseNetwork(one)!)
  const words = printQuickConfig({
    privateKey,
    addresses: [`${lease.four}/32`, `${lease.six}/128`].map((one) => parseNetwork(one)!),
    dns: serving['dns'] === true ? [lease.serverFour] : [],
    mtu: Number(serving['mtu']),
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
  if (isGuessed) {
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
  if (found && (typeof found['udp'] === 'number' || found['publicUdp'] !== undefined)) return found
  throw new TunnelError(
    'network/udp',
    `Cannot make a configuration for "${network}": ${
      found ? 'it is served without UDP' : 'it is not served on this machine now'
    }`,
    {
      hint:
        `Start it with --udp 51820 where clients reach this machine, or with --public-udp 0 for ` +
        `a UDP port of the relay: sotto wg serve --name ${network} ...`,
    },
  )
}

/** What was asked for, the relay's port, or the first address of this machine that others may reach. */
function endpointOf(
  { probes }: World,
  serving: Line,
  { endpoint }: ConfigOptions,
): { endpoint: Place; isGuessed: boolean } {
  const open = serving['publicUdp'] as string | undefined
  const known = endpoint ?? (open === undefined ? undefined : readEndpoint(open))
  if (known) return { endpoint: known, isGuessed: false }
  const found = probes.interfaces().find(({ internal, family, address }) =>
    !internal && family === 4 && !address.startsWith('169.254.')
  )
  const host = found?.address ?? '127.0.0.1'
  return { endpoint: { host, port: Number(serving['udp']) }, isGuessed: true }
}

export const configWg = command({ page, read, check, run })
