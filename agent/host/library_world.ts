/**
 * The `World` of a program that uses sotto as a library, on Bun and on Node 22 or later. Signals and
 * the terminal are that program's own; ports for tunnels are not there on Node.
 */
import * as nodeCrypto from 'node:crypto'
import * as os from 'node:os'
import { fastCrypto } from '../../core/crypto.ts'
import { TunnelError } from '../../core/errors.ts'
import type { AcmePort } from '../acme_port.ts'
import type {
  HttpPort,
  LinkPort,
  Net,
  Probes,
  Terminal,
  Tls,
  WireGuardHost,
  World,
} from '../world.ts'
import { hostFiles } from './files.ts'
import { hostClock } from './process.ts'
import { hostSystem } from './notify.ts'
import { ownProgram } from './own_program.ts'
import { hostPrograms } from './programs.ts'

/** `env` stands in for the process's own variables where a name is in it. */
export async function libraryWorld(
  env: Readonly<Record<string, string | undefined>>,
): Promise<World> {
  const isBun = process.versions['bun'] !== undefined
  const link: LinkPort = isBun
    ? (await import('./websocket.ts')).hostLink
    : (await import('./node_websocket.ts')).nodeLink
  const { hostTls } = await import('./tls.ts')
  // To a proxy, where the environment names one: stream sockets are the same on both runtimes.
  const { connectDuplex, lookup } = await import('./tcp.ts')
  return {
    env: { ...process.env, ...env },
    clock: hostClock,
    later: (run) => void setImmediate(run),
    crypto: fastCrypto(nodeCrypto),
    files: hostFiles,
    net: { ...NO_NET, connectDuplex, lookup },
    // Certificates in place of API keys are read, proxies may speak TLS; nothing else is wanted here.
    tls: { ...NO_TLS, connect: hostTls.connect, inspect: hostTls.inspect, signer: hostTls.signer },
    link,
    http: NO_HTTP,
    programs: hostPrograms,
    acme: NO_ACME,
    own: ownProgram({ path: undefined, target: undefined, releaseKeys: [] }),
    system: { ...hostSystem, notify: () => Promise.resolve(false) },
    probes: NO_PROBES,
    wireguard: NO_WIREGUARD,
    signal: new AbortController().signal,
    onHangup: () => () => {},
    terminal: SILENT,
    hostname: os.hostname(),
    username: '',
    home: os.homedir(),
    directory: process.cwd(),
    pid: process.pid,
  }
}

function unsupported(): never {
  throw new TunnelError('host/unsupported', 'Cannot do that: the library carries sessions alone', {
    hint: 'Tunnels are run by the command "sotto".',
  })
}

const NO_WIREGUARD: WireGuardHost = {
  module: unsupported,
  dial: unsupported,
  lookup: unsupported,
  bindUdp: unsupported,
  ping: unsupported,
  udpPath: unsupported,
  openTun: unsupported,
}
const NO_NET: Net = {
  connect: unsupported,
  connectDuplex: unsupported,
  listen: unsupported,
  listenLocal: unsupported,
  lookup: unsupported,
  udp: unsupported,
}

const NO_PROBES: Probes = {
  resolve: unsupported,
  interfaces: unsupported,
  space: unsupported,
  tlsChain: unsupported,
  datagrams: unsupported,
  pathMtu: unsupported,
}

const NO_TLS: Tls = {
  serve: unsupported,
  connect: unsupported,
  inspect: unsupported,
  signer: unsupported,
  peerCertificate: unsupported,
}

const NO_ACME: AcmePort = { obtain: unsupported, renewalInfo: unsupported }

const NO_HTTP: HttpPort = { server: unsupported, request: unsupported }

const SILENT: Terminal = {
  stdout: { write: () => {}, isTTY: false, columns: 80 },
  stderr: { write: () => {}, isTTY: false, columns: 80 },
  stdio: unsupported,
  prompt: unsupported,
}
