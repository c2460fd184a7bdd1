/**
 * Two network namespaces with a wire between them: `near`, where visitors and clients are, and `far`, where
 * upstreams and the other ends of tunnels are. A benchmark starts itself again within `near`, so that all
 * that it starts is there; what is to run in `far` gets `inFar` before it. Needs root, `ip`, and `nft` for weather.
 */
import { spawn, spawnSync } from 'node:child_process'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import process from 'node:process'

/** 198.18.0.0/15 is for tests of networks (RFC 2544) and routed nowhere. */
export const NEAR_ADDRESS = '198.18.200.1'
export const FAR_ADDRESS = '198.18.200.2'
/** A network behind the far end that only tunnels lead to, and the far end's own address in it. */
export const LAN_NETWORK = '192.168.77.0/24'
export const LAN_ADDRESS = '192.168.77.100'
/** A name of that address, which the far end alone knows. */
export const PRINTER_NAME = 'printer.office.test'
/** The far end's name, within both. */
export const FAR_NAME = 'far.test'

/** Tells the process within of its namespaces; not one of sotto's own settings. */
const VARIABLE = 'BENCH_SPACES'
const COMMAND_MS_MAX = 10_000

export function isWithin(): boolean {
  return process.env[VARIABLE] !== undefined
}

/** Before a command that is to run at the far end. */
export function inFar(): string[] {
  return ['ip', 'netns', 'exec', `${process.env[VARIABLE]}f`]
}

export function command(line: string[], options: { input?: string } = {}): string {
  const { status, stdout, stderr, error } = spawnSync(line[0]!, line.slice(1), {
    encoding: 'utf8',
    timeout: COMMAND_MS_MAX,
    killSignal: 'SIGKILL',
    ...options,
  })
  if (status === 0) return stdout
  throw new Error(`${line.join(' ')}: ${error?.message ?? stderr}`)
}

/** Runs this program again within `near`; resolves to its exit code once the namespaces are gone. */
export async function runWithin(args: string[]): Promise<number> {
  const id = `sb${process.pid}`
  const [near, far] = [`${id}n`, `${id}f`]
  try {
    open(near, far)
    const child = spawn('ip', ['netns', 'exec', near, process.execPath, ...args], {
      stdio: 'inherit',
      env: { ...process.env, [VARIABLE]: id },
    })
    const pass = (signal: NodeJS.Signals) => void child.kill(signal)
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, pass)
    return await new Promise((done) => child.once('exit', (code) => done(code ?? 1)))
  } finally {
    for (const name of [near, far]) {
      spawnSync('ip', ['netns', 'delete', name])
      rmSync(`/etc/netns/${name}`, { recursive: true, force: true })
    }
  }
}

function open(near: string, far: string): void {
  for (const name of [near, far]) {
    command(['ip', 'netns', 'add', name])
    command(['ip', '-n', name, 'link', 'set', 'lo', 'up'])
    mkdirSync(`/etc/netns/${name}`, { recursive: true })
    writeFileSync(
      `/etc/netns/${name}/hosts`,
      `127.0.0.1 localhost\n${FAR_ADDRESS} ${FAR_NAME}\n${
        name === far ? `${LAN_ADDRESS} ${PRINTER_NAME}\n` : ''
      }`,
    )
  }
  const wire = ['type', 'veth', 'peer', 'name', 'wire', 'netns', far]
  command(['ip', '-n', near, 'link', 'add', 'wire', ...wire])
  for (const [name, address] of [[near, NEAR_ADDRESS], [far, FAR_ADDRESS]] as const) {
    command(['ip', '-n', name, 'address', 'add', `${address}/24`, 'dev', 'wire'])
    command(['ip', '-n', name, 'link', 'set', 'wire', 'up'])
  }
  command(['ip', '-n', far, 'address', 'add', `${LAN_ADDRESS}/32`, 'dev', 'lo'])
}
