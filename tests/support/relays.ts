/**
 * Relays as real processes, one starter for each runtime. Each gets a data directory of its own and
 * a free port, and is up when its one line of where it listens has come.
 */
import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { EdgeRelay } from './worker_relay.ts'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const BIN = join(ROOT, 'node_modules', '.bin')
const START_MS_MAX = 30_000
/** What a relay that was asked to go may take before it is killed. */
const STOP_MS_MAX = 5000
/** Of its output, for messages of tests that fail. */
const OUTPUT_LENGTH_MAX = 200_000

/** What a runtime can do beyond HTTP and WebSocket: what it cannot is asserted to be refused. */
export interface Abilities {
  /** Raw TCP: one public port with ingress, verified endpoints for browsers, public ports. */
  raw: boolean
  bulk: boolean
  /** Ends TLS itself, with a certificate that its challenge names. */
  tls: boolean
  /** One process that signals, files and /proc speak of. */
  process: boolean
  /** Takes flags, quotas among them. */
  flags: boolean
}

export interface RelayProcess {
  /** Its origin, `https://localhost:PORT`. */
  url: string
  host: string
  port: number
  adminKey: string
  /** KEY of its identity, empty where it was not told. */
  relayKey: string
  can: Abilities
  pid: number
  /** Where it keeps its files. */
  data: string
  /** Lines of its log so far. */
  output(): string
  /** How the process ended: its code, or the signal. */
  exited: Promise<number | string>
  /** Ends it; `keep` leaves its data for another start. */
  stop(options?: { keep?: boolean }): Promise<void>
  kill(signal: NodeJS.Signals): void
}

export interface RelayOptions {
  /** Long flags with their values. */
  flags?: Record<string, string>
  /** The directory of an earlier run. */
  data?: string
}

export type StartRelay = (options?: RelayOptions) => Promise<RelayProcess>

/** Of a runtime with sockets of its own. */
export const RAW: Abilities = {
  raw: true,
  bulk: true,
  tls: true,
  process: true,
  flags: true,
}

export function startBun(options: RelayOptions = {}): Promise<RelayProcess> {
  return start(options, {
    command: [join(BIN, 'bun'), 'relay/serve/bun_main.ts'],
    ports: '20100-20119',
  })
}

export function startNode(options: RelayOptions = {}): Promise<RelayProcess> {
  const node = [join(BIN, 'node'), '--no-warnings', '--experimental-strip-types']
  return start(options, { command: [...node, 'relay/serve/node_main.ts'], ports: '20200-20219' })
}

export function startDeno(options: RelayOptions = {}): Promise<RelayProcess> {
  const deno = [join(BIN, 'deno'), 'run', '-A', '--quiet', '--unstable-kv']
  return start(options, { command: [...deno, 'relay/serve/deno.ts'], ports: '20300-20319' })
}

async function start(
  { flags = {}, data = mkdtempSync(join(tmpdir(), 'sotto-relay-')) }: RelayOptions,
  { command: [program, ...args], ports }: { command: string[]; ports: string },
): Promise<RelayProcess> {
  const all = {
    domain: 'localhost',
    host: '127.0.0.1',
    port: '0',
    data,
    'public-ports': ports,
    ...flags,
  }
  const child = spawn(program!, [...args, ...Object.entries(all).map(([k, v]) => `--${k}=${v}`)], {
    cwd: ROOT,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  const exited = new Promise<number | string>((resolve) => {
    child.once('exit', (code, signal) => resolve(code ?? signal ?? 'unknown'))
  })
  const keep = (chunk: unknown): void => {
    output = (output + String(chunk)).slice(-OUTPUT_LENGTH_MAX)
  }
  child.stderr.on('data', keep)
  const line = await new Promise<{ port: number; key: string; adminKey?: string }>(
    (resolve, reject) => {
      const failed = (why: string): void => {
        child.kill('SIGKILL')
        reject(new Error(`${program} ${why}:\n${output}`))
      }
      const late = setTimeout(() => failed('did not listen in time'), START_MS_MAX)
      void exited.then((how) => {
        clearTimeout(late)
        failed(`ended with ${how}`)
      })
      let told = ''
      child.stdout.on('data', (chunk) => {
        keep(chunk)
        told += String(chunk)
        const found = /^\{"event":"listening".*\}$/m.exec(told)?.[0]
        if (!found) return
        clearTimeout(late)
        resolve(JSON.parse(found))
      })
    },
  )
  return {
    url: `https://localhost:${line.port}`,
    host: '127.0.0.1',
    port: line.port,
    adminKey: line.adminKey ?? '',
    relayKey: line.key,
    can: RAW,
    pid: child.pid!,
    data,
    output: () => output,
    exited,
    kill: (signal) => void child.kill(signal),
    async stop({ keep = false } = {}) {
      child.kill('SIGTERM')
      // A second signal ends a drain at once.
      const late = setTimeout(() => child.kill('SIGKILL'), STOP_MS_MAX)
      await exited
      clearTimeout(late)
      if (!keep) rmSync(data, { recursive: true, force: true })
    },
  }
}

/** Resident memory of a process, in bytes. */
export function residentBytes(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0) * 1024
}

/** Of a runtime that has HTTP and WebSocket alone. */
export const EDGE: Abilities = {
  raw: false,
  bulk: false,
  tls: false,
  process: false,
  flags: false,
}

/** A relay at the edge behind the same face; what it cannot do, it does not pretend. */
export function atEdge(
  start: () => Promise<EdgeRelay>,
): StartRelay {
  return async () => {
    const relay = await start()
    return {
      url: relay.url.replace('127.0.0.1', 'localhost'),
      host: '127.0.0.1',
      port: relay.port,
      adminKey: relay.adminKey,
      relayKey: '',
      can: EDGE,
      pid: 0,
      data: '',
      output: relay.output,
      exited: new Promise(() => {}),
      kill: () => {
        throw new Error('a relay at the edge is no process of ours')
      },
      stop: () => relay.stop(),
    }
  }
}
