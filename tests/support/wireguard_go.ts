/**
 * A wireguard-go with a real TUN in a namespace: the other end of what we speak. Debian's, or the newest from its
 * module where `SOTTO_WIREGUARD_GO` names it. Needs root.
 */
import { spawn, spawnSync } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { Namespace } from './namespace.ts'

const MODULE = 'golang.zx2c4.com/wireguard'
/** The benchmarks race against the same version. */
const GO_MOD = new URL('../../benchmarks/netstack/go.mod', import.meta.url)
const BUILD_MS_MAX = 300_000

let made = 0

/** Builds the newest one with Go, once, into the user's cache; its path. Throws with what Go said. */
export function buildNewest(): { path: string; version: string } {
  const [, version = ''] = new RegExp(`${MODULE} (v\\S+)`).exec(readFileSync(GO_MOD, 'utf8')) ?? []
  const cache = process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache')
  const folder = join(cache, 'sotto-tests')
  const path = join(folder, `wireguard-go-${version}`)
  if (existsSync(path)) return { path, version }
  mkdirSync(folder, { recursive: true })
  const bin = mkdtempSync(join(folder, 'build-'))
  try {
    const { status, stderr, error } = spawnSync('go', ['install', `${MODULE}@${version}`], {
      encoding: 'utf8',
      timeout: BUILD_MS_MAX,
      killSignal: 'SIGKILL',
      env: { ...process.env, GOBIN: bin },
    })
    if (status !== 0) throw new Error((error?.message ?? stderr).trim().split('\n').at(-1))
    renameSync(join(bin, 'wireguard'), path)
    return { path, version }
  } finally {
    rmSync(bin, { recursive: true, force: true })
  }
}

export interface PeerSettings {
  publicKey: Uint8Array
  endpoint?: string
  presharedKey?: Uint8Array
  keepaliveSeconds?: number
}

/** Ours are 10.9.0.1 and fd09::1, its own 10.9.0.2 and fd09::2. */
export class WireGuardGo {
  readonly space: Namespace
  readonly name: string
  publicKey: Uint8Array = new Uint8Array(32)
  port = 0
  #child: ChildProcess | undefined
  readonly #spawned: ChildProcess[] = []

  private constructor() {
    this.space = new Namespace('outside')
    this.name = `wt${process.pid % 100_000}n${made++}`
  }

  static async start(mtu = 1420): Promise<WireGuardGo> {
    const one = new WireGuardGo()
    try {
      await one.#start(mtu)
      return one
    } catch (error) {
      one.close()
      throw error
    }
  }

  /** A command inside; what it printed. Throws with what went wrong. */
  run(
    command: string[],
    { input = '', seconds = 20 }: { input?: string; seconds?: number } = {},
  ): string {
    const [program, ...args] = [...this.space.within, ...command]
    const { status, stdout, stderr } = spawnSync(program!, args, {
      input,
      encoding: 'utf8',
      timeout: seconds * 1000,
      killSignal: 'SIGKILL',
    })
    if (status === 0) return stdout
    throw new Error(`${command.join(' ')}: ${stderr}${stdout}`)
  }

  /** The same while our own loop goes on. */
  spawn(
    command: string[],
  ): { child: ChildProcess; done: Promise<{ status: number | null; text: string }> } {
    const [program, ...args] = [...this.space.within, ...command]
    const child = spawn(program!, args, { stdio: ['ignore', 'pipe', 'pipe'] })
    this.#spawned.push(child)
    let text = ''
    child.stdout.on('data', (bytes) => text += bytes)
    child.stderr.on('data', (bytes) => text += bytes)
    const done = new Promise<{ status: number | null; text: string }>((resolve) => {
      child.on('close', (status) => resolve({ status, text }))
    })
    return { child, done }
  }

  setPeer({ publicKey, endpoint, presharedKey, keepaliveSeconds }: PeerSettings): void {
    const base64 = (key: Uint8Array): string => Buffer.from(key).toString('base64')
    this.run([
      ...['wg', 'set', this.name, 'peer', base64(publicKey)],
      ...['allowed-ips', '10.9.0.1/32,fd09::1/128'],
      ...(endpoint ? ['endpoint', endpoint] : []),
      ...(presharedKey ? ['preshared-key', '/dev/stdin'] : []),
      ...(keepaliveSeconds === undefined ? [] : ['persistent-keepalive', `${keepaliveSeconds}`]),
    ], { input: presharedKey ? base64(presharedKey) : '' })
  }

  /** The peer, and its sessions. */
  forget(publicKey: Uint8Array): void {
    const key = Buffer.from(publicKey).toString('base64')
    this.run(['wg', 'set', this.name, 'peer', key, 'remove'])
  }

  /** `wg show`: last handshake in seconds, received and sent bytes, endpoint of the only peer. */
  show(): { handshake: number; received: number; sent: number; endpoint: string } {
    const line = this.run(['wg', 'show', this.name, 'dump']).trim().split('\n')[1] ?? ''
    const fields = line.split('\t')
    return {
      endpoint: fields[2] ?? '',
      handshake: Number(fields[4]),
      received: Number(fields[5]),
      sent: Number(fields[6]),
    }
  }

  close(): void {
    for (const child of [...this.#spawned, this.#child]) child?.kill('SIGKILL')
    this.space.close()
  }

  async #start(mtu: number): Promise<void> {
    const one = process.env['SOTTO_WIREGUARD_GO'] || 'wireguard-go'
    const [program, ...args] = [...this.space.within, one, '-f', this.name]
    this.#child = spawn(program!, args, {
      stdio: 'ignore',
      env: { ...process.env, WG_PROCESS_FOREGROUND: '1', LOG_LEVEL: 'silent' },
    })
    const socket = `/var/run/wireguard/${this.name}.sock`
    for (let tries = 0; !existsSync(socket); tries++) {
      if (tries === 200) throw new Error('wireguard-go did not start')
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    const key = this.run(['wg', 'genkey'])
    this.publicKey = Uint8Array.from(
      Buffer.from(this.run(['wg', 'pubkey'], { input: key }), 'base64'),
    )
    this.port = 51820
    this.run(['wg', 'set', this.name, 'listen-port', `${this.port}`, 'private-key', '/dev/stdin'], {
      input: key,
    })
    this.run(['ip', 'address', 'add', '10.9.0.2/24', 'dev', this.name])
    this.run(['ip', 'address', 'add', 'fd09::2/64', 'dev', this.name, 'nodad'])
    this.run(['ip', 'link', 'set', this.name, 'mtu', `${mtu}`, 'up'])
  }
}
