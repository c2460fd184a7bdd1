/** Gathers the one `World` of this process. Called once, by `main.ts`. */
import * as nodeCrypto from 'node:crypto'
import { readFileSync } from 'node:fs'
import * as os from 'node:os'
import { fastCrypto } from '../../core/crypto.ts'
import type { World } from '../world.ts'
import { hostAcme } from './acme.ts'
import { hostFiles } from './files.ts'
import { hostHttp } from './http.ts'
import { hostOwnProgram } from './own_program.ts'
import { hostClock, hostTerminal, onHangup, stopSignal } from './process.ts'
import { hostProbes } from './probes.ts'
import { hostPrograms } from './programs.ts'
import { hostSystem } from './notify.ts'
import { connect, connectDuplex, listen, listenLocal, lookup } from './tcp.ts'
import { hostTls } from './tls.ts'
import { openUdp } from './udp.ts'
import { hostLink } from './websocket.ts'
import { hostWireGuard } from './wireguard.ts'

/** `signal` stands in for the process's own signals, in tests. */
export function hostWorld(options: { signal?: AbortSignal } = {}): World {
  return {
    env: process.env,
    clock: hostClock,
    later: (run) => void setImmediate(run),
    crypto: fastCrypto(nodeCrypto),
    files: hostFiles,
    net: { connect, connectDuplex, listen, listenLocal, lookup, udp: openUdp },
    tls: hostTls,
    link: hostLink,
    http: hostHttp,
    programs: hostPrograms,
    acme: hostAcme,
    own: hostOwnProgram(),
    system: hostSystem,
    probes: hostProbes,
    wireguard: hostWireGuard,
    signal: options.signal ?? stopSignal(),
    onHangup,
    terminal: hostTerminal(),
    hostname: os.hostname(),
    username: userName(),
    home: os.homedir(),
    directory: process.cwd(),
    pid: process.pid,
  }
}

function userName(): string {
  const named = process.env['USER'] || process.env['LOGNAME']
  if (named) return named
  try {
    // Bun's userInfo() knows the variables alone, which a bare shell or a service does not set.
    const row = `:${process.getuid?.()}:`
    const line = readFileSync('/etc/passwd', 'utf8').split('\n')
      .find((one) => one.replace(/^[^:]*:[^:]*/, '').startsWith(row))
    return line?.split(':')[0] || 'user'
  } catch {
    return process.env['USERNAME'] || 'user'
  }
}
