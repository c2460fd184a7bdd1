/**
 * `sotto wg serve`: a private network that leads to what this machine reaches. Members are let in by the
 * access table; what they send leaves through ordinary sockets, to the routes that are named and nowhere
 * else. No root, no TUN.
 */
import { isTunnelError, TunnelError } from '../../core/errors.ts'
import { fingerprint, formatKey } from '../../core/key.ts'
import { parseNetwork } from '../../core/address.ts'
import { MTU_MIN } from '../../core/agreement.ts'
import type { Network as Range } from '../../core/address.ts'
import { checkPeer } from '../access.ts'
import type { PeerView } from '../access.ts'
import { toBase64 } from '../base64.ts'
import { RelayWatch, stopped } from '../cli/network.ts'
import { command, isSet, JSON_FLAG, listOf, numberOf, RELAY_FLAGS, textOf } from '../cli/page.ts'
import type { Given, Page } from '../cli/page.ts'
import { checkName, LABEL_FLAG, readLabelled } from '../cli/plan.ts'
import { Screen } from '../cli/screen.ts'
import type { Fact } from '../cli/screen.ts'
import { checkChoice, join } from '../join.ts'
import type { RelayChoice } from '../join.ts'
import { Presence } from '../presence.ts'
import { placeText } from '../wireguard/network.ts'
import { parseRoute, routeText } from '../wireguard/exit_policy.ts'
import { MemberForwards } from '../wireguard/member_forward.ts'
import { readEndpoint } from '../wireguard/own_addresses.ts'
import { openServing } from '../wireguard/membership_control.ts'
import type { Line, MembershipControl } from '../wireguard/membership_control.ts'
import { parseForward } from '../wireguard/port_forward.ts'
import type { Forward } from '../wireguard/port_forward.ts'
import { NETWORK_NAME_LETTERS_MAX, PUBLIC_PATH } from '../wireguard/public_port.ts'
import { RELAY_PATH } from '../wireguard/relay_path.ts'
import { DIRECT_MTU, ServedNetwork } from '../wireguard/served_network.ts'
import type { ServedOptions } from '../wireguard/served_network.ts'
import { TUNNEL_SERVICE } from '../wireguard/tunnel_server.ts'
import type { Member } from '../wireguard/tunnel_server.ts'
import type { Endpoint } from '../wireguard-wasm/address.ts'
import type { World } from '../world.ts'

const page: Page = {
  name: 'sotto wg serve',
  summary: 'serve a private network that leads to what this machine reaches',
  examples: [
    [
      'sotto wg serve --name office --route 192.168.1.0/24 --dns',
      'A LAN, with its names, for those who may: sotto access allow alice wg',
    ],
    [
      'sotto wg serve --name office --route 192.168.1.0/24 --udp 51820',
      'Reached directly as well where UDP comes through, also by stock clients of WireGuard.',
    ],
    [
      'sotto wg serve --name office --route 192.168.1.0/24 --public-udp 0',
      'Stock clients come by a UDP port of the relay, which sees sealed packets.',
    ],
  ],
  flags: [
    { name: 'name', value: 'NET', help: 'What members call it; reserved to you on first use.' },
    {
      name: 'route',
      value: 'NETWORK',
      many: true,
      without: 'nothing is reached',
      help: 'What members may reach, such as 192.168.1.0/24 or 0.0.0.0/0.',
    },
    { name: 'dns', help: "Answer names for members, by this machine's resolver." },
    {
      name: 'peer',
      value: 'PEER',
      many: true,
      without: 'all whom the rules let in',
      help: 'Of those whom the rules let in, these alone.',
    },
    {
      name: 'udp',
      value: 'PORT',
      without: 'the relay carries all',
      help: 'Take WireGuard at this UDP port too; 0 takes a free one.',
    },
    {
      name: 'endpoint',
      value: 'HOST:PORT',
      many: true,
      without: "this machine's own addresses",
      help: 'Where that port is reached from outside, such as by a router that forwards it.',
    },
    {
      name: 'mtu',
      value: 'BYTES',
      without: '1420',
      help: 'Largest packet inside, 1280 to 1420, where UDP may carry it and its way is narrow.',
    },
    {
      name: 'public-udp',
      value: 'PORT',
      without: 'stock clients need --udp',
      help: "Open this UDP port of the relay, for stock clients; 0 is any of the relay's.",
    },
    {
      name: 'subnet',
      value: 'NETWORK',
      without: 'one of 100.64.0.0/10, by the identity',
      help: 'Where addresses of members are leased from.',
    },
    { name: 'allow-loopback', help: "Let members reach this machine's own 127.0.0.1 and ::1." },
    { name: 'allow-link-local', help: 'Let members reach 169.254.0.0/16 and fe80::/10.' },
    {
      name: 'allow-own',
      help: "Let members reach this machine's own addresses within the routes.",
    },
    {
      name: 'between',
      help: 'Let members reach the ports that others of them forward with -R.',
    },
    {
      name: 'local',
      short: 'L',
      value: '[ADDRESS:]PORT:PEER:PORT',
      many: true,
      without: 'nothing here leads to members',
      help: 'A TCP port of this machine onto one that a member forwards with -R; * is all its LAN.',
    },
    LABEL_FLAG,
    ...RELAY_FLAGS,
    JSON_FLAG,
  ],
  more: `Whom to let in: sotto peers trust PEER KEY && sotto access allow PEER wg
A right that is taken back, or a peer that is forgotten, ends what it has here at once.
What members serve is reached from here by -L alone; PEER is a pinned name, a stock client or an address.
Members use it by: sotto wg socks5 NET, sotto wg forward NET, sotto wg ping NET ADDRESS`,
}

interface ServeOptions extends ServedOptions {
  forwards: Forward[]
  choice: RelayChoice
  json: boolean
}

function read(given: Given): ServeOptions {
  return {
    name: textOf(given, 'name') ?? '',
    routes: listOf(given, 'route').map(parseRoute),
    dns: isSet(given, 'dns'),
    peers: listOf(given, 'peer'),
    udpPort: numberOf(given, 'udp', { min: 0, max: 65_535 }),
    endpoints: listOf(given, 'endpoint').map(readEndpoint),
    mtu: numberOf(given, 'mtu', { min: MTU_MIN, max: DIRECT_MTU }),
    publicPort: numberOf(given, 'public-udp', { min: 0, max: 65_535 }),
    subnet: textOf(given, 'subnet'),
    loopback: isSet(given, 'allow-loopback'),
    linkLocal: isSet(given, 'allow-link-local'),
    own: isSet(given, 'allow-own'),
    between: isSet(given, 'between'),
    forwards: listOf(given, 'local').map((words) => parseForward('tcp', words)),
    choice: readLabelled(given),
    json: isSet(given, 'json'),
  }
}

const PRIVATE = ['100.64.0.0/10', '10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16']
  .map((one) => parseNetwork(one)!)

function check(
  { name, subnet, peers, choice, publicPort, udpPort, endpoints }: ServeOptions,
): void {
  checkChoice(choice)
  if (name === '') {
    throw new TunnelError('cli/usage', 'Cannot serve a network without a name', {
      hint: 'Add --name, such as --name office.',
    })
  }
  checkName(name)
  if (publicPort !== undefined && name.length > NETWORK_NAME_LETTERS_MAX) {
    throw new TunnelError(
      'cli/name',
      `Cannot open a UDP port of the relay for "${name}": its name there would be too long`,
      { hint: `Choose a name of at most ${NETWORK_NAME_LETTERS_MAX} letters.` },
    )
  }
  if (endpoints?.length && udpPort === undefined) {
    throw new TunnelError('cli/usage', 'Cannot tell members an endpoint: no UDP port is taken', {
      hint: 'Add --udp PORT, the port that --endpoint leads to.',
    })
  }
  for (const peer of peers) checkPeer(peer)
  if (subnet !== undefined) checkSubnet(subnet, parseRoute(subnet))
}

function checkSubnet(words: string, { bytes, bits }: Range): void {
  const fits = PRIVATE.some((one) =>
    bytes.length === 4 && bits >= one.bits &&
    one.bytes.every((byte, i) =>
      (bytes[i]! & (0xff00 >> Math.min(8, Math.max(0, one.bits - 8 * i)))) === byte
    )
  )
  if (fits && bits >= 12 && bits <= 30) return
  throw new TunnelError(
    'lease/subnet',
    `Cannot use the subnet ${words}: expected a private one between /12 and /30`,
    { hint: 'Such as --subnet 100.64.7.0/24, or leave it out.' },
  )
}

async function run(options: ServeOptions, world: World): Promise<number> {
  return await new Serving(world, options).run()
}

class Serving {
  readonly #world: World
  readonly #options: ServeOptions
  readonly #screen: Screen
  #network: ServedNetwork | undefined
  #forwards: MemberForwards | undefined
  /** Where stock clients were told to look, and why the relay opens that port no more. */
  #place: string | undefined
  #refusal: TunnelError | undefined

  constructor(world: World, options: ServeOptions) {
    this.#world = world
    this.#options = options
    this.#screen = new Screen(world, options)
  }

  async run(): Promise<number> {
    const { name, choice } = this.#options
    const screen = this.#screen
    const joining = await join(this.#world, choice, (line) => screen.tell(line))
    const { profile } = joining
    const watch = new RelayWatch(screen)
    const failed = Promise.withResolvers<never>()
    failed.promise.catch(() => {})
    const control = await openServing(
      this.#world,
      { stateDir: profile.stateDir, name },
      () => this.#lines(),
    )
    let presence: Presence | undefined
    try {
      presence = await Presence.open(this.#world, {
        joining,
        tell: (sentence) => screen.tell(sentence),
        onState: (state) =>
          state.kind === 'refused' ? failed.reject(state.error) : watch.state(state),
        onNotice: ({ message }) => screen.tell(`the relay says: ${message}`),
        onClaimed: () => this.#claimed(),
        onRefused: (_, error) => this.#unclaimed(error),
        refused: ({ service, peer }) => {
          if (service === TUNNEL_SERVICE) this.#knocked(peer)
        },
      })
      const { peers } = presence
      const identity32 = joining.identity.public
      this.#network = await ServedNetwork.open(
        this.#world,
        { peers, profile, identity32 },
        this.#options,
        {
          joined: (member) => this.#joined(member),
          left: (member, why) => this.#left(member, why),
          refused: ({ client }, { address, port, error }) =>
            this.#refused(client, address, port, error),
          problem: (error) => screen.tell(`trouble in the network: ${(error as Error).message}`),
        },
      )
      this.#forwards = await MemberForwards.open(this.#world, this.#network, {
        forwards: this.#options.forwards,
        told: (error) => screen.trouble(error),
      })
      const up = async (): Promise<void> => {
        await presence!.ready()
        await presence!.agent.announce(name)
        const { publicPort } = this.#network!
        if (publicPort) {
          await presence!.agent.claim([publicPort])
          if (this.#refusal) throw this.#refusal
        }
        this.#show(presence!, identity32)
      }
      const stop = stopped(this.#world)
      await Promise.race([up(), stop, failed.promise])
      return await Promise.race([stop, failed.promise])
    } finally {
      await this.#close(presence, control)
    }
  }

  async #close(presence: Presence | undefined, control: MembershipControl): Promise<void> {
    await this.#forwards?.close()
    this.#network?.close()
    await control.close()
    await presence?.end()
    this.#screen.close()
  }

  /** Also on each later link; configurations that were printed hold the port that was there first. */
  #claimed(): void {
    const { place } = this.#network!.publicPort!
    const found = placeText(place!)
    this.#refusal = undefined
    if (this.#place !== undefined && this.#place !== found) {
      this.#screen.tell(`the relay's UDP port is another one now: ${found}, was ${this.#place}`, {
        hint: 'Stock clients need the new one as Endpoint; --public-udp PORT asks for a fixed one.',
        event: 'public-udp',
        fields: { publicUdp: found, was: this.#place },
        again: true,
      })
    }
    this.#place = found
  }

  /** The network goes on for its members. */
  #unclaimed({ code, message, hint }: TunnelError): void {
    // The relay has the flag of "sotto udp" in mind.
    const own = hint?.replaceAll('--public-port ', '--public-udp ')
    this.#refusal = new TunnelError(code, message, own === undefined ? {} : { hint: own })
    if (this.#place !== undefined) this.#screen.trouble(this.#refusal)
  }

  #show(presence: Presence, identity: Uint8Array): void {
    const { name, routes, dns } = this.#options
    const { scope } = presence.agent.uplink.up?.welcome ?? { scope: '' }
    const udp = this.#network!.udpPort
    const leads = routes.map(routeText)
    this.#screen.show('serving', [
      { name: 'name', value: name, line: `serving the network ${scope}.${name}` },
      { name: 'scope', value: scope },
      { name: 'key', value: formatKey(identity) },
      {
        name: 'fingerprint',
        value: fingerprint(this.#world.crypto, identity),
        line: `identity    ${fingerprint(this.#world.crypto, identity)}`,
      },
      { name: 'wireguardKey', value: toBase64(this.#network!.publicKey) },
      {
        name: 'routes',
        value: leads.join(' '),
        line: `leads to    ${leads.length === 0 ? 'nothing: add --route' : leads.join(', ')}`,
      },
      {
        name: 'dns',
        value: dns ? 'yes' : 'no',
        line: `names       ${dns ? 'answered' : 'not answered'}`,
      },
      ...(udp === undefined ? [] : [{ name: 'udp', value: udp, line: `UDP port    ${udp}` }]),
      ...this.#forwardFacts(),
      ...(this.#place === undefined ? [] : [{
        name: 'publicUdp',
        value: this.#place,
        line:
          `stock       ${this.#place}, a UDP port of the relay: sotto wg config ${name} --new NAME`,
      }]),
    ])
  }

  #forwardFacts(): Fact[] {
    const open = this.#forwards!.open.map(({ forward: { listen, to }, port }) => ({
      listen: placeText({ ...listen, port }),
      to: placeText(to),
    }))
    if (open.length === 0) return []
    const lines = open.map(({ listen, to }) => `TCP         ${listen} leads to ${to}`)
    return [{ name: 'forwards', value: open, line: lines.join('\n') }]
  }

  #joined({ peer, address4, number }: Member): void {
    const address = address4.bytes.join('.')
    this.#screen.tell(`${peer.name} is in, as ${address}`, {
      event: 'joined',
      fields: { peer: peer.name, key: peer.key, address, number },
      again: true,
    })
  }

  #left({ peer, address4 }: Member, why: string): void {
    this.#screen.tell(`${peer.name} is out: ${why}`, {
      event: 'left',
      fields: { peer: peer.name, key: peer.key, address: address4.bytes.join('.'), why },
      again: true,
    })
  }

  #refused(client: string, address: string, port: number, error: TunnelError): void {
    if (!isTunnelError(error, 'exit/denied')) return
    const who = client.length > 40 ? client.slice(0, 12) : client
    this.#screen.tell(`${who} asked for ${address} port ${port}, which no --route allows`, {
      event: 'denied',
      fields: { client, address, port },
    })
  }

  #knocked(peer: PeerView): void {
    const name = peer.names[0] ?? `friend-${peer.key.slice(0, 6)}`
    const trust = peer.names.length > 0 ? '' : `sotto peers trust ${name} ${peer.key} && `
    const remedy = `${trust}sotto access allow ${name} wg`
    this.#screen.tell(`${peer.fingerprint} knocked and may not join`, {
      hint: `To let it in: ${remedy}`,
      event: 'knock',
      fields: { key: peer.key, fingerprint: peer.fingerprint, remedy },
    })
  }

  /** For "sotto wg status". */
  #lines(): Line[] {
    const network = this.#network
    if (!network) return []
    const { name, routes, dns, subnet } = this.#options
    const member = (fields: Line, stats: ReturnType<Member['wireguard']['stats']>): Line => ({
      event: 'member',
      network: name,
      ...fields,
      path: stats.endpoint && pathWords(stats.endpoint),
      received: stats.receivedBytes,
      sent: stats.sentBytes,
      handshake: stats.lastHandshakeMs,
    })
    return [
      {
        event: 'serving',
        pid: this.#world.pid,
        name,
        routes: routes.map(routeText),
        udp: network.udpPort,
        publicUdp: this.#place,
        mtu: this.#options.mtu ?? DIRECT_MTU,
        dns,
        subnet,
        ...network.counts,
      },
      ...network.server.members.map(({ peer, address4, wireguard, sinceMs }) =>
        member(
          { peer: peer.name, key: peer.key, address: address4.bytes.join('.'), since: sinceMs },
          wireguard.stats(),
        )
      ),
      ...network.stockMembers.map(({ name: client, lease, wireguard }) =>
        member({ peer: client, stock: true, address: lease.four }, wireguard.stats())
      ),
    ]
  }
}

function pathWords({ path, host, port }: Endpoint): string {
  if (path === RELAY_PATH) return 'relay'
  return `${path === PUBLIC_PATH ? 'relay udp' : 'udp'} ${host} port ${port}`
}

export const serveWg = command({ page, read, check, run })
