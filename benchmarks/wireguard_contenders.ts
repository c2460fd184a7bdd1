/**
 * Clients of private networks that race: each has a near end where programs connect and a far end that leads
 * to the upstreams. The rivals are clients of Debian's wireguard-go with a TUN, as they are where people use
 * them; ours has its own other end, `sotto wg serve`.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type Lab, runShort, type Spawned, which } from './lab.ts'
import type { Address } from './load.ts'
import { describeCommit } from './report.ts'
import { command, FAR_ADDRESS, FAR_NAME, inFar, LAN_ADDRESS, LAN_NETWORK } from './spaces.ts'

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const MAIN = `${ROOT}agent/main.ts`
const NETSTACK = `${ROOT}benchmarks/netstack`
const MTU = 1_420
/** WireGuard's ports at the far end, one a contender, from here on: weather stands before these. */
export const FAR_PORTS = { first: 51_820, count: 8 }
const RELAY_PORT = 7_443
/** A first build fetches modules. */
const BUILD_MS_MAX = 300_000

/** What listens in the far namespace, on all of its addresses. */
export interface FarUpstreams {
  http: number
  bytes: number
  datagrams: number
}

export interface NetworkRacer {
  http: Address
  bytes: Address
  datagrams: Address | undefined
  /** Processes at the near end. */
  near: number[]
  /** Processes between and at the far end. */
  far: number[]
}

export interface NetworkContender {
  name: string
  /** WireGuard passes the wire as UDP: weather applies. */
  isDatagrams: boolean
  /** Why it cannot race here, or undefined. */
  missing(): string | undefined
  version(): string
  /** `number` tells contenders apart. */
  start(lab: Lab, upstreams: FarUpstreams, number: number): Promise<NetworkRacer>
}

interface KeyPair {
  private: string
  public: string
}

function keyPair(): KeyPair {
  const secret = command(['wg', 'genkey']).trim()
  return { private: secret, public: command(['wg', 'pubkey'], { input: secret }).trim() }
}

/** wireguard-go with a TUN, in `within`. */
async function openTun(
  lab: Lab,
  { name, within, key, address, settings }: {
    name: string
    within: string[]
    key: KeyPair
    address: string
    settings: string[]
  },
): Promise<Spawned> {
  const daemon = lab.spawn(name, [...within, 'wireguard-go', '-f', name], {
    env: { WG_PROCESS_FOREGROUND: '1', LOG_LEVEL: 'error' },
  })
  const socket = `/var/run/wireguard/${name}.sock`
  await lab.until(daemon, 'open its TUN', () => existsSync(socket))
  command([...within, 'wg', 'set', name, 'private-key', '/dev/stdin', ...settings], {
    input: key.private,
  })
  command([...within, 'ip', 'address', 'add', `${address}/24`, 'dev', name])
  command([...within, 'ip', 'link', 'set', name, 'mtu', `${MTU}`, 'up'])
  return daemon
}

/** The other end of rival `number`: its addresses, keys and port. */
async function openFarTun(lab: Lab, number: number) {
  const [near, far] = [keyPair(), keyPair()]
  const [own, theirs] = [`10.9.${number}.2`, `10.9.${number}.1`]
  const port = FAR_PORTS.first + number
  const daemon = await openTun(lab, {
    name: `bf${process.pid % 100_000}n${number}`,
    within: inFar(),
    key: far,
    address: own,
    settings: [
      ...['listen-port', `${port}`, 'peer', near.public, 'allowed-ips', `${theirs}/32`],
    ],
  })
  return { near, far, own, theirs, endpoint: `${FAR_ADDRESS}:${port}`, daemon }
}

const plain: NetworkContender = {
  name: 'plain path',
  isDatagrams: false,
  missing: () => undefined,
  version: () => 'TCP and UDP over the veth, no tunnel',
  start: (_lab, { http, bytes, datagrams }) => {
    const to = (port: number): Address => ({ host: FAR_ADDRESS, port })
    return Promise.resolve({
      http: to(http),
      bytes: to(bytes),
      datagrams: to(datagrams),
      near: [],
      far: [],
    })
  },
}

const tun: NetworkContender = {
  name: 'wireguard-go TUN',
  isDatagrams: true,
  missing: () => ['wireguard-go', 'wg'].every(which) ? undefined : 'no wireguard-go, wg here',
  version: () => runShort('wireguard-go', ['--version']).split('\n')[0]!,
  async start(lab, { http, bytes, datagrams }, number) {
    const { near, far, own, theirs, endpoint, daemon } = await openFarTun(lab, number)
    const client = await openTun(lab, {
      name: `bn${process.pid % 100_000}n${number}`,
      within: [],
      key: near,
      address: theirs,
      settings: ['peer', far.public, 'allowed-ips', `${own}/32`, 'endpoint', endpoint],
    })
    const to = (port: number): Address => ({ host: own, port })
    return {
      http: to(http),
      bytes: to(bytes),
      datagrams: to(datagrams),
      near: [client.pid],
      far: [daemon.pid],
    }
  },
}

/** Near ports of a forwarder, as addresses. */
async function nearPorts(lab: Lab, upstreams: FarUpstreams) {
  const [http, bytes, datagrams] = [
    await lab.freePort(),
    await lab.freePort(),
    await lab.freePort(),
  ]
  return {
    addresses: { http: { port: http }, bytes: { port: bytes }, datagrams: { port: datagrams } },
    pairs: [
      { port: http, to: upstreams.http },
      { port: bytes, to: upstreams.bytes },
    ],
    datagramPair: { port: datagrams, to: upstreams.datagrams },
  }
}

/** Built before the namespaces are made, which lead to no module proxy; the process within finds it by this. */
const NETSTACK_VARIABLE = 'BENCH_NETSTACK'
const NETSTACK_FAILED = 'BENCH_NETSTACK_FAILED'

/** Builds the forwarder where Go is, for the process within; returns how to remove it. */
export function buildNetstack(): () => void {
  const go = which('go') ?? '/usr/local/go/bin/go'
  const folder = mkdtempSync(join(tmpdir(), 'sotto-netstack-'))
  const file = join(folder, 'netstack')
  const remove = () => rmSync(folder, { recursive: true, force: true })
  if (!existsSync(go)) {
    process.env[NETSTACK_FAILED] = 'no go here (https://go.dev/dl)'
    return remove
  }
  const { status, stderr, error } = spawnSync(go, ['build', '-trimpath', '-o', file, '.'], {
    cwd: NETSTACK,
    encoding: 'utf8',
    timeout: BUILD_MS_MAX,
    killSignal: 'SIGKILL',
  })
  if (status === 0) process.env[NETSTACK_VARIABLE] = file
  else process.env[NETSTACK_FAILED] = `go build: ${error?.message ?? stderr.slice(-300)}`
  return remove
}

const netstack: NetworkContender = {
  name: 'netstack forwarder',
  isDatagrams: true,
  missing: () => process.env[NETSTACK_FAILED],
  version: () =>
    /golang\.zx2c4\.com\/wireguard (\S+)/.exec(runShort('cat', [`${NETSTACK}/go.mod`]))![0],
  async start(lab, upstreams, number) {
    const { near, far, own, theirs, endpoint, daemon } = await openFarTun(lab, number)
    const hex = (key: string) => Buffer.from(key, 'base64').toString('hex')
    const file = lab.path('netstack.uapi')
    writeFileSync(
      file,
      `private_key=${hex(near.private)}
public_key=${hex(far.public)}
endpoint=${endpoint}
allowed_ip=${own}/32
`,
    )
    const { addresses, pairs, datagramPair } = await nearPorts(lab, upstreams)
    const client = lab.spawn('netstack', [
      ...[process.env[NETSTACK_VARIABLE]!, file, theirs, `${MTU}`],
      ...pairs.map(({ port, to }) => `127.0.0.1:${port}=${own}:${to}`),
      `udp:127.0.0.1:${datagramPair.port}=${own}:${datagramPair.to}`,
    ])
    await lab.listens(addresses.bytes.port, client)
    return { ...addresses, near: [client.pid], far: [daemon.pid] }
  },
}

const wireproxy: NetworkContender = {
  name: 'wireproxy',
  isDatagrams: true,
  missing: () =>
    which('wireproxy')
      ? undefined
      : 'not on PATH; recorded with its version of 2026, in such namespaces, ' +
        'on another day: 1.3 Gbit/s up, 3.6 down, 14.5k requests/s at c=1 (p50 0.059, p99 0.173 ms), 36k at c=64, ' +
        '8 and 4 CPU s/GB',
  version: () => runShort('wireproxy', ['--version']).trim(),
  async start(lab, upstreams, number) {
    const { near, far, own, theirs, endpoint, daemon } = await openFarTun(lab, number)
    const { addresses, pairs } = await nearPorts(lab, upstreams)
    const file = lab.path('wireproxy.conf')
    writeFileSync(
      file,
      `[Interface]
Address = ${theirs}/32
PrivateKey = ${near.private}
MTU = ${MTU}
[Peer]
PublicKey = ${far.public}
Endpoint = ${endpoint}
AllowedIPs = ${own}/32
${
        pairs.map(({ port, to }) =>
          `[TCPClientTunnel]\nBindAddress = 127.0.0.1:${port}\nTarget = ${own}:${to}\n`
        ).join('')
      }`,
    )
    const client = lab.spawn('wireproxy', ['wireproxy', '-s', '-c', file])
    await lab.listens(addresses.bytes.port, client)
    return { ...addresses, datagrams: undefined, near: [client.pid], far: [daemon.pid] }
  },
}

const onetun: NetworkContender = {
  name: 'onetun',
  isDatagrams: true,
  missing: () =>
    which('onetun')
      ? undefined
      : 'not here (cargo install onetun); recorded: 0.006 Gbit/s up, 0.044 down',
  version: () => runShort(which('onetun')!, ['--version']).trim(),
  async start(lab, upstreams, number) {
    const { near, far, own, theirs, endpoint, daemon } = await openFarTun(lab, number)
    const { addresses, pairs, datagramPair } = await nearPorts(lab, upstreams)
    const client = lab.spawn('onetun', [
      which('onetun')!,
      ...pairs.map(({ port, to }) => `127.0.0.1:${port}:${own}:${to}`),
      `127.0.0.1:${datagramPair.port}:${own}:${datagramPair.to}:UDP`,
      ...['--endpoint-addr', endpoint, '--endpoint-public-key', far.public],
      ...['--private-key', near.private, '--source-peer-ip', theirs, '--log', 'error'],
      ...['--max-transmission-unit', `${MTU}`],
    ])
    await lab.listens(addresses.bytes.port, client)
    return { ...addresses, near: [client.pid], far: [daemon.pid] }
  },
}

/** One JSON line of a command of ours that ends by itself. */
function tell(args: string[], home: string): string {
  return command(['env', `SOTTO_HOME=${home}`, process.execPath, MAIN, ...args, '--json'])
}

function keyOf(home: string): string {
  const key = /"key":"([^"]+)"/.exec(tell(['identity'], home))?.[1]
  if (!key) throw new Error('Cannot read the key of an identity')
  return key
}

/** A relay in the far namespace, and how an agent is told of it. */
export async function openRelay(
  lab: Lab,
  { name, port }: { name: string; port: number },
): Promise<{ relay: Spawned; flags: string[]; env: Record<string, string> }> {
  const relay = lab.spawn(`${name} relay`, [
    ...[...inFar(), process.execPath, MAIN, 'relay', '--json', '--domain', FAR_NAME],
    ...['--host', '0.0.0.0', '--port', `${port}`, '--data', lab.path(`${name} relay`)],
    ...['--log-level', 'error'],
  ], { env: { SOTTO_HOME: lab.path(`${name} relay home`) } })
  const said = (field: string) => new RegExp(`"${field}":"([^"]+)"`).exec(relay.log())?.[1]
  await lab.until(relay, 'say its fingerprint', () => said('apiKey') !== undefined)
  return {
    relay,
    flags: ['--relay', `https://${FAR_NAME}:${port}`, '--relay-fingerprint', said('fingerprint')!],
    env: { SOTTO_API_KEY: said('apiKey')! },
  }
}

/** A served network that lets `near` in, behind a relay; resolves once it is served. */
export async function openServed(
  lab: Lab,
  { name, port, udpPort }: { name: string; port: number; udpPort: number | undefined },
) {
  const { relay, flags, env } = await openRelay(lab, { name, port })
  const [near, far] = [lab.path(`${name} near home`), lab.path(`${name} far home`)]
  tell(['peers', 'trust', 'visitor', keyOf(near), '--allow', 'wg'], far)
  tell(['peers', 'trust', 'office', keyOf(far)], near)
  const server = lab.spawn(`${name} serve`, [
    ...[...inFar(), process.execPath, MAIN, 'wg', 'serve', '--name', 'office', '--json'],
    ...['--route', LAN_NETWORK, '--dns', '--allow-own', ...flags],
    ...(udpPort === undefined ? [] : ['--udp', `${udpPort}`]),
  ], { env: { SOTTO_HOME: far, ...env } })
  await lab.until(server, 'serve', () => server.log().includes('"event":"serving"'))
  return { relay, server, flags, env: { SOTTO_HOME: near, ...env } }
}

function sotto(name: string, options: { direct: boolean; relayPort: number }): NetworkContender {
  return {
    name,
    isDatagrams: options.direct,
    missing: () => undefined,
    version: () => `${describeCommit()}, Bun ${Bun.version}`,
    async start(lab, upstreams, number) {
      const { relay, server, flags, env } = await openServed(lab, {
        name,
        port: options.relayPort,
        udpPort: options.direct ? FAR_PORTS.first + number : undefined,
      })
      const { addresses, pairs, datagramPair } = await nearPorts(lab, upstreams)
      const client = lab.spawn(`${name} forward`, [
        ...[process.execPath, MAIN, 'wg', 'forward', 'office', '--json', ...flags],
        ...pairs.flatMap(({ port, to }) => ['-L', `${port}:${LAN_ADDRESS}:${to}`]),
        ...['-U', `${datagramPair.port}:${LAN_ADDRESS}:${datagramPair.to}`],
      ], { env })
      await lab.until(client, 'listen', () => client.log().includes('"event":"listening"'))
      const status = () => tell(['wg', 'status'], env['SOTTO_HOME']!)
      const wanted = options.direct ? '"path":"udp' : '"path":"relay'
      await lab.until(client, `go by ${wanted}`, () => status().includes(wanted))
      return {
        ...addresses,
        near: [client.pid],
        // What the relay takes to carry it is the price of that way.
        far: options.direct ? [server.pid] : [relay.pid, server.pid],
      }
    },
  }
}

export const OURS = 'sotto direct'
export const OURS_RELAYED = 'sotto over the relay'

export const networkContenders: NetworkContender[] = [
  plain,
  tun,
  netstack,
  wireproxy,
  onetun,
  sotto(OURS, { direct: true, relayPort: RELAY_PORT }),
  sotto(OURS_RELAYED, { direct: false, relayPort: RELAY_PORT + 1 }),
]
