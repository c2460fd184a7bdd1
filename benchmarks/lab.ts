/**
 * The place where a benchmark runs: one temporary folder, free ports, processes with their logs, their
 * memory and processor time. All of it is gone after `close()`, which also runs on Ctrl-C.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { homedir, tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'

/** Ports are taken from below the range that the system gives to outgoing connections. */
const PORT_FIRST = 20_000
const PORT_LAST = 31_999
const PORT_TRIES_MAX = 200
/** A process that does not listen after this long counts as failed. */
const READY_MS_MAX = 15_000
/** After SIGTERM a process gets this long, then SIGKILL. */
const STOP_MS_MAX = 3_000
const LOG_LINES = 12

/** The kernel's clock ticks a second in /proc/PID/stat; fixed at 100 on every Linux that Bun runs on. */
const TICKS_A_SECOND = 100

export interface Spawned {
  name: string
  pid: number
  /** What the process has written so far, stdout and stderr together. */
  log(): string
  /** Resolves once it ended. */
  ended: Promise<number | null>
  stop(): Promise<void>
}

/** Where `bench:setup` put the contenders that are built from source. */
export function rivalsFolder(): string {
  return process.env['SOTTO_RIVALS'] ??
    (existsSync('/opt/rivals/bin') ? '/opt/rivals' : join(homedir(), '.cache/sotto-rivals'))
}

/** The path of `program`, or undefined: first what `bench:setup` built, then PATH and the daemons' folders. */
export function which(program: string): string | undefined {
  const folders = [
    join(rivalsFolder(), 'bin'),
    ...(process.env['PATH'] ?? '').split(delimiter),
    '/usr/sbin',
  ]
  return folders.filter((folder) => folder !== '').map((folder) => join(folder, program))
    .find((file) => existsSync(file))
}

/** Runs a short command to its end. Throws with what it wrote to stderr. */
export function runShort(command: string, args: string[]): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: 'utf8' })
  if (error || status !== 0) {
    throw new Error(`Cannot run ${command} ${args.join(' ')}: ${error?.message ?? stderr}`)
  }
  return stdout
}

export class Lab {
  readonly folder = mkdtempSync(join(tmpdir(), 'sotto-bench-'))
  #running = new Set<Spawned>()
  #taken = new Set<number>()
  #closing: Promise<void> | undefined

  constructor() {
    for (const [signal, code] of [['SIGINT', 130], ['SIGTERM', 143]] as const) {
      process.once(signal, () => void this.close().finally(() => process.exit(code)))
    }
    // The last resort when the benchmark itself throws: nothing may be left running.
    process.once('exit', () => {
      for (const { pid } of this.#running) killGroup(pid, 'SIGKILL')
      rmSync(this.folder, { recursive: true, force: true })
    })
  }

  /** A path inside the temporary folder. */
  path(name: string): string {
    return join(this.folder, name)
  }

  /** A port on loopback that nobody listens on and that this lab has not given away before. */
  freePort(): Promise<number> {
    return this.freePorts(1)
  }

  /** The first of `count` free ports in a row. */
  async freePorts(count: number): Promise<number> {
    for (let i = 0; i < PORT_TRIES_MAX; i++) {
      const first = PORT_FIRST + Math.floor(Math.random() * (PORT_LAST - PORT_FIRST + 2 - count))
      const ports = Array.from({ length: count }, (_, at) => first + at)
      if (ports.some((port) => this.#taken.has(port))) continue
      if (!(await Promise.all(ports.map(canListen))).every((free) => free)) continue
      for (const port of ports) this.#taken.add(port)
      return first
    }
    throw new Error(`Cannot find ${count} free ports: ${PORT_TRIES_MAX} tries were taken`)
  }

  /** Starts a process in a group of its own, its output in the lab's folder. */
  spawn(
    name: string,
    command: string[],
    options: { env?: Record<string, string>; cwd?: string } = {},
  ): Spawned {
    this.goOn()
    const file = this.path(
      `${name.replaceAll(/[^a-z0-9]+/gi, '-')}-${this.#taken.size}-${Date.now()}.log`,
    )
    const log = openSync(file, 'a')
    const child: ChildProcess = spawn(command[0]!, command.slice(1), {
      env: { ...cleanEnvironment(), ...options.env },
      cwd: options.cwd ?? process.cwd(),
      stdio: ['ignore', log, log],
      detached: true,
    })
    const ended = new Promise<number | null>((done) => {
      child.once('error', () => done(null))
      child.once('exit', (code) => done(code))
    })
    const pid = child.pid
    if (pid === undefined) throw new Error(`Cannot start ${name}: ${command[0]} did not run`)
    const spawned: Spawned = {
      name,
      pid,
      log: () => (existsSync(file) ? readFileSync(file, 'utf8') : ''),
      ended,
      stop: async () => {
        killGroup(pid, 'SIGTERM')
        const timer = setTimeout(() => killGroup(pid, 'SIGKILL'), STOP_MS_MAX)
        await ended
        clearTimeout(timer)
        // A master that died first may leave a worker of its group behind.
        killGroup(pid, 'SIGKILL')
        this.#running.delete(spawned)
      },
    }
    this.#running.add(spawned)
    return spawned
  }

  /** Waits until `port` answers a connection; throws with the last lines of the log when it does not. */
  async listens(port: number, owner: Spawned): Promise<void> {
    await this.until(owner, `listen on ${port}`, () => canConnect(port))
  }

  /** Waits until `fact` holds while `owner` lives. */
  async until(
    owner: Spawned,
    what: string,
    fact: () => boolean | Promise<boolean>,
    { msMax = READY_MS_MAX }: { msMax?: number } = {},
  ): Promise<void> {
    let over = false
    void owner.ended.then(() => {
      over = true
    })
    const deadline = performance.now() + msMax
    while (!(await fact())) {
      if (over || performance.now() > deadline) {
        const tail = owner.log().split('\n').slice(-LOG_LINES).join('\n    ')
        throw new Error(`${owner.name} did not ${what}${over ? ' but ended' : ''}\n    ${tail}`)
      }
      await Bun.sleep(5)
    }
  }

  /** Throws when the lab is being closed, as on Ctrl-C: what fails from now on says nothing. */
  goOn(): void {
    if (this.#closing) throw new Error('the benchmark was stopped')
  }

  close(): Promise<void> {
    this.#closing ??= (async () => {
      await Promise.all([...this.#running].map((spawned) => spawned.stop()))
      rmSync(this.folder, { recursive: true, force: true })
    })()
    return this.#closing
  }
}

/** The person's own relay, keys and settings stay out of it. */
function cleanEnvironment(): NodeJS.ProcessEnv {
  return Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !name.startsWith('SOTTO_')),
  )
}

function killGroup(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(-pid, signal)
  } catch {
    // The group has gone.
  }
}

function canListen(port: number): Promise<boolean> {
  return new Promise((done) => {
    const server = createServer()
    server.once('error', () => done(false))
    server.listen(port, '127.0.0.1', () => server.close(() => done(true)))
  })
}

export function canConnect(port: number): Promise<boolean> {
  return new Promise((done) => {
    const socket = connect(port, '127.0.0.1')
    socket.once('error', () => done(false))
    socket.once('connect', () => {
      socket.destroy()
      done(true)
    })
  })
}

/** The processes in `pids` and all that they started, as long as they live. */
function family(pids: number[]): number[] {
  const children = new Map<number, number[]>()
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue
    const stat = procStat(Number(entry))
    if (stat) children.set(stat.parent, [...children.get(stat.parent) ?? [], Number(entry)])
  }
  const found = new Set<number>()
  const queue = [...pids]
  for (let pid = queue.pop(); pid !== undefined; pid = queue.pop()) {
    if (found.has(pid) || !existsSync(`/proc/${pid}`)) continue
    found.add(pid)
    queue.push(...children.get(pid) ?? [])
  }
  return [...found]
}

function procStat(pid: number): { parent: number; ticks: number } | undefined {
  try {
    // The second field is the program's name in parentheses and may hold spaces.
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
    return { parent: Number(fields[1]), ticks: Number(fields[11]) + Number(fields[12]) }
  } catch {
    return undefined
  }
}

/** Resident memory in bytes, summed over the processes and their children. */
export function residentBytes(pids: number[]): number {
  let kib = 0
  for (const pid of family(pids)) {
    try {
      const status = readFileSync(`/proc/${pid}/status`, 'utf8')
      kib += Number(/VmRSS:\s+(\d+)/.exec(status)?.[1] ?? 0)
    } catch {
      // It ended between the two looks.
    }
  }
  return kib * 1024
}

/** Processor time used so far, in seconds, user and system, summed over the processes and their children. */
export function cpuSeconds(pids: number[]): number {
  return family(pids).reduce((sum, pid) => sum + (procStat(pid)?.ticks ?? 0), 0) / TICKS_A_SECOND
}
