/**
 * Real processes for tests that break them: a relay, agents, upstreams, each with files of its own in
 * one folder that is removed at the end. Every program prints one JSON object a line on its standard
 * output; `event` waits for one of them. Nothing here outlives `close`.
 */
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { AgentPlan } from './fault_agent.ts'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const EVENT_MS_MAX = 20_000
const LOG_BYTES_MAX = 65_536

export type Event = Record<string, unknown> & { event: string }

/** One process and what it said. */
export class Program {
  readonly name: string
  readonly child: ChildProcess
  readonly events: Event[] = []
  readonly exited: Promise<number | string>
  log = ''
  #waiting: (() => void)[] = []

  constructor(name: string, command: string[], env: Record<string, string> = {}) {
    this.name = name
    this.child = spawn(command[0]!, command.slice(1), {
      cwd: ROOT,
      stdio: ['pipe', 'pipe', 'pipe'],
      env: { ...process.env, ...env },
    })
    let rest = ''
    this.child.stdout!.on('data', (bytes) => {
      const lines = (rest + String(bytes)).split('\n')
      rest = lines.pop()!
      for (const line of lines) this.#line(line)
    })
    this.child.stderr!.on('data', (bytes) => this.#keep(String(bytes)))
    this.child.stdin!.on('error', () => {})
    this.exited = new Promise((resolve) => {
      this.child.on('exit', (code, signal) => {
        resolve(code ?? signal ?? '')
        this.#wake()
      })
    })
  }

  get pid(): number {
    return this.child.pid!
  }

  get running(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null
  }

  #line(line: string): void {
    this.#keep(`${line}\n`)
    if (!line.startsWith('{')) return
    this.events.push(JSON.parse(line) as Event)
    this.#wake()
  }

  #keep(text: string): void {
    this.log = (this.log + text).slice(-LOG_BYTES_MAX)
  }

  #wake(): void {
    for (const wake of this.#waiting.splice(0)) wake()
  }

  /** The first event of that name at or after `from`, an index into `events`. */
  async event(name: string, { from = 0, ms = EVENT_MS_MAX } = {}): Promise<Event> {
    const deadline = performance.now() + ms
    for (;;) {
      const found = this.events.slice(from).find(({ event }) => event === name)
      if (found) return found
      const left = deadline - performance.now()
      if (left <= 0 || !this.running) {
        const why = this.running ? `in ${ms} ms` : 'before it ended'
        throw new Error(`${this.name} did not say "${name}" ${why}:\n${this.log.slice(-3000)}`)
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left)
        this.#waiting.push(() => {
          clearTimeout(timer)
          resolve()
        })
      })
    }
  }

  /** Tells the program something, by one JSON object on its standard input. */
  tell(body: object): void {
    this.child.stdin!.write(`${JSON.stringify(body)}\n`)
  }

  /** Tells and waits for the answer. */
  async ask(body: { do: string; url?: string }): Promise<Event> {
    const from = this.events.length
    this.tell(body)
    return await this.event(body.do, { from })
  }

  signal(signal: NodeJS.Signals): void {
    this.child.kill(signal)
  }

  /** Ends it at once, stopped or not. */
  async kill(): Promise<void> {
    if (this.running) this.child.kill('SIGKILL')
    await this.exited
  }

  /** Open descriptors. */
  get handles(): number {
    return readdirSync(`/proc/${this.pid}/fd`).length
  }

  /** Resident memory, bytes. */
  get residentBytes(): number {
    const status = readFileSync(`/proc/${this.pid}/status`, 'latin1')
    return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)![1]) * 1024
  }
}

export interface RelayOptions {
  port?: number
  data?: string
  flags?: string[]
  /** Put before the command, such as `ip netns exec NAME`. */
  within?: string[]
}

export class RelayProgram extends Program {
  port = 0
  readonly data: string

  constructor(name: string, command: string[], data: string) {
    super(name, command)
    this.data = data
  }
}

export class Fleet {
  readonly dir: string
  readonly #programs: Program[] = []

  private constructor(dir: string) {
    this.dir = dir
  }

  static async open(): Promise<Fleet> {
    return new Fleet(await mkdtemp(join(tmpdir(), 'sotto-fault-')))
  }

  #keep<T extends Program>(program: T): T {
    this.#programs.push(program)
    return program
  }

  /** Runs a file of the repository on Bun. */
  bun(name: string, args: string[], within: string[] = []): Program {
    return this.#keep(new Program(name, [...within, process.execPath, ...args], this.#env))
  }

  get #env(): Record<string, string> {
    return { SOTTO_HOME: join(this.dir, 'home') }
  }

  /** A relay that listens; it admits every identity. */
  async relay(options: RelayOptions = {}): Promise<RelayProgram> {
    const data = options.data ?? join(this.dir, `relay-${this.#programs.length}`)
    const flags = options.flags ?? []
    const relay = this.#keep(
      new RelayProgram('relay', [
        ...(options.within ?? []),
        ...[process.execPath, 'relay/serve/bun_main.ts', '--open', 'true', '--data', data],
        ...['--port', String(options.port ?? 0)],
        ...(flags.includes('--domain') ? [] : ['--domain', 'localhost', '--host', '127.0.0.1']),
        ...flags,
      ], data),
    )
    relay.port = (await relay.event('listening'))['port'] as number
    return relay
  }

  /** An agent by `fault_agent.ts`; waits until its tunnels are claimed. */
  async agent(
    plan: AgentPlan,
    { within = [], up = true }: { within?: string[]; up?: boolean } = {},
  ): Promise<Program> {
    const agent = this.bun(
      'agent',
      ['tests/support/fault_agent.ts', JSON.stringify(plan)],
      within,
    )
    if (up) await agent.event('up')
    return agent
  }

  /** An HTTP service by `fault_upstream.ts`. */
  async upstream(port = 0, within: string[] = []): Promise<{ program: Program; port: number }> {
    const program = this.bun('upstream', ['tests/support/fault_upstream.ts', String(port)], within)
    return { program, port: (await program.event('listening'))['port'] as number }
  }

  /** A way to a port of this machine that takes `delayMs` in each direction. */
  async delayed(port: number, delayMs: number): Promise<number> {
    const proxy = this.bun('proxy', [
      'tests/support/delay_proxy.ts',
      String(port),
      String(delayMs),
    ])
    return (await proxy.event('listening'))['port'] as number
  }

  /** What the programs logged, for the message of a failed test. */
  get logs(): string {
    return this.#programs.map(({ name, log }) => `--- ${name}\n${log.slice(-2000)}`).join('\n')
  }

  async close(): Promise<void> {
    await Promise.all(this.#programs.map((program) => program.kill()))
    await rm(this.dir, { recursive: true, force: true })
  }
}
