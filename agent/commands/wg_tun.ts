/** `sotto wg tun`: a private network as an interface of this machine, for all of its programs. Linux, as root. */
import { TunnelError } from '../../core/errors.ts'
import { parseNetwork } from '../../core/address.ts'
import { checkNetwork, inNetwork, RELAY_ONLY_FLAG, stopped } from '../cli/network.ts'
import { command, isSet, JSON_FLAG, listOf, RELAY_FLAGS, textOf } from '../cli/page.ts'
import type { Given, Page } from '../cli/page.ts'
import { readChoice } from '../cli/plan.ts'
import type { Fact, Screen } from '../cli/screen.ts'
import { checkChoice } from '../join.ts'
import type { RelayChoice } from '../join.ts'
import type { JoinedNetwork } from '../wireguard/joined_network.ts'
import { prefixText } from '../wireguard/peer_table.ts'
import type { RouteChoice, RoutePlan } from '../wireguard/route_plan.ts'
import { TunInterface } from '../wireguard/tun_interface.ts'
import type { InterfaceFacts } from '../wireguard/tun_interface.ts'
import { wayOut } from '../wireguard/way_out.ts'
import type { World } from '../world.ts'

const PORTS_MAX = 256
const ROUTES_MAX = 256

const page: Page = {
  name: 'sotto wg tun',
  summary: 'route this machine into a private network, by an interface of its own (Linux, root)',
  args: ['NET'],
  examples: [
    ['sotto wg tun office', 'All programs of this machine reach what the network leads to.'],
    ['sotto wg tun home --all --dns', 'Everything goes by way of that network, names too.'],
  ],
  flags: [
    { name: 'name', value: 'NAME', without: 'sotto0', help: 'What the interface is called.' },
    { name: 'all', help: 'All of this machine, where the network serves 0.0.0.0/0.' },
    {
      name: 'route',
      value: 'NETWORK',
      many: true,
      help: 'Only this one of those that the network serves.',
    },
    { name: 'dns', help: 'Ask the network for all names.' },
    {
      name: 'accept',
      value: 'PORT',
      many: true,
      help:
        'A port of this machine that others of the network may open; "all" for any, and echoes.',
    },
    RELAY_ONLY_FLAG,
    ...RELAY_FLAGS,
    JSON_FLAG,
  ],
  more:
    `NET is a name, or SCOPE.NAME. Without --route and --all private networks alone are routed. What this machine
has routes for itself stays as it is, and so does the way to the relay. Needs the program "ip" of iproute2.
From the network come answers alone. The interface ends with the command.`,
}

interface TunOptions {
  name: string
  device: string
  choice: RouteChoice
  dns: boolean
  accept: ReadonlySet<number> | 'all'
  direct: boolean
  relay: RelayChoice
  json: boolean
}

function read(given: Given): TunOptions {
  const routes = listOf(given, 'route')
  const isAll = isSet(given, 'all')
  if (isAll && routes.length > 0) {
    throw new TunnelError('cli/usage', 'Cannot route: found --all and --route', {
      hint: '--all is everything; --route names some of it.',
    })
  }
  return {
    name: given.args[0]!,
    device: textOf(given, 'name') ?? 'sotto0',
    choice: isAll ? 'all' : routes.length > 0 ? routes.map(readRoute) : undefined,
    dns: isSet(given, 'dns'),
    accept: readPorts(listOf(given, 'accept')),
    direct: !isSet(given, 'relay-only'),
    relay: readChoice(given),
    json: isSet(given, 'json'),
  }
}

function readRoute(words: string) {
  const network = parseNetwork(words)
  if (network) return network
  throw new TunnelError(
    'cli/usage',
    `Cannot read --route: found "${words.slice(0, 60)}", expected a network`,
    { hint: 'Such as --route 192.168.1.0/24; bits beyond the mask are zero.' },
  )
}

function readPorts(list: readonly string[]): ReadonlySet<number> | 'all' {
  if (list.includes('all')) return 'all'
  return new Set(list.map((words) => {
    const port = /^[1-9][0-9]{0,4}$/.test(words) ? Number(words) : 0
    if (port > 0 && port < 65_536) return port
    throw new TunnelError(
      'cli/usage',
      `Cannot read --accept: found "${words.slice(0, 60)}", expected a port or "all"`,
      { hint: 'Such as --accept 22.' },
    )
  }))
}

function check({ name, device, relay, choice, accept }: TunOptions): void {
  checkChoice(relay)
  checkNetwork(name)
  if (!/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$/.test(device)) {
    throw new TunnelError(
      'cli/usage',
      `Cannot read --name: found "${device.slice(0, 60)}", expected an interface's name`,
      { hint: 'Up to 15 letters, digits, dots, dashes, such as --name sotto1.' },
    )
  }
  const isMany = (Array.isArray(choice) && choice.length > ROUTES_MAX) ||
    (accept !== 'all' && accept.size > PORTS_MAX)
  if (isMany) throw new TunnelError('cli/usage', 'Cannot read so many --route or --accept')
}

async function run(options: TunOptions, world: World): Promise<number> {
  const { device: name, choice, dns, accept } = options
  const tun = await TunInterface.open(world, { name, choice, dns, accept })
  const own = wayOut(world, name, (address, protocol, port) => tun.bypass(address, protocol, port))
  try {
    return await inNetwork(
      own,
      { ...options, choice: options.relay, ends: tun },
      async (joined, screen) => {
        const broken = Promise.withResolvers<never>()
        broken.promise.catch(() => {})
        tun.problem = broken.reject
        tun.changed = () => show(screen, { joined, tun, options })
        tun.changed()
        screen.follow(() => living(joined))
        return await Promise.race([stopped(world), broken.promise])
      },
    )
  } finally {
    await tun.close()
  }
}

function show(
  screen: Screen,
  { joined, tun, options }: { joined: JoinedNetwork; tun: TunInterface; options: TunOptions },
): void {
  const facts = tun.facts!
  const { name, addresses, mtu, plan, names } = facts
  const routes = plan.routed.map(prefixText)
  const line = `in the network ${joined.name} as ${addresses.join(', ')}, by the interface ${name}`
  const shown: Fact[] = [
    { name: 'network', value: joined.name, line },
    { name: 'interface', value: name },
    { name: 'address', value: addresses[0]! },
    ...(addresses[1] ? [{ name: 'address6', value: addresses[1] }] : []),
    { name: 'mtu', value: mtu },
    { name: 'routes', value: routes.join(' '), line: `leads to ${routes.join(', ')}` },
    ...(names ? [{ name: 'names', value: names, line: `names are asked there, by ${names}` }] : []),
  ]
  screen.show('listening', shown)
  for (const { route, why } of plan.left) {
    const words = prefixText(route)
    screen.tell(`not routed: ${words}, ${LEFT[why](words)}`, {
      event: 'not-routed',
      fields: { route: words, why },
    })
  }
  for (const words of warnings(facts, options)) {
    screen.tell(words, { event: 'warning', fields: { words } })
  }
}

const LEFT: Record<RoutePlan['left'][number]['why'], (route: string) => string> = {
  public: (route) => `which is public: --route ${route} takes it`,
  all: () => 'which is everything: --all takes it',
  special: () => 'which no interface has',
  own: () => 'which this machine has a way to already',
}

function warnings(
  { names, withoutSix, plan }: InterfaceFacts,
  { dns, choice }: TunOptions,
): string[] {
  const isAll = choice === 'all'
  const leads = (size: number): boolean =>
    plan.routed.some(({ bytes, bits }) => bits === 0 && bytes.length === size)
  return [
    ...(dns && names === undefined
      ? [
        'names are asked as before: there is neither systemd-resolved nor resolvconf here; ' +
        'install one, or name the resolver in /etc/resolv.conf yourself',
      ]
      : []),
    ...(isAll && !dns ? ['names are asked as before: --dns asks the network'] : []),
    ...(withoutSix === undefined ? [] : [`no IPv6 here: ${withoutSix}`]),
    ...(isAll && !leads(16) && withoutSix === undefined
      ? ['IPv6 leads nowhere while this runs: the network serves no ::/0']
      : []),
    ...(isAll && !leads(4)
      ? ['IPv4 leads nowhere while this runs: the network serves no 0.0.0.0/0']
      : []),
  ]
}

function living(joined: JoinedNetwork): string {
  const { path, stats } = joined.facts
  return `${path ?? 'no way yet'} · ${stats?.receivedBytes ?? 0} bytes in · ` +
    `${stats?.sentBytes ?? 0} out`
}

export const tunWg = command({ page, read, check, run })
