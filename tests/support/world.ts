/**
 * A world for end-to-end tests: programs as a person would run them, each with a home of its own in a
 * temporary folder and free ports. Whatever was started is ended with its process group at the end.
 */
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

export const ROOT = fileURLToPath(new URL('../..', import.meta.url))
export const BUN = join(ROOT, 'node_modules', '.bin', 'bun')
/** `sotto` from the sources, or the built program that SOTTO_BINARY names. */
const BINARY = process.env['SOTTO_BINARY']
const SOTTO: readonly [string, ...string[]] = BINARY
  ? [resolve(ROOT, BINARY)]
  : [BUN, join(ROOT, 'agent', 'main.ts')]
/** For whatever should take a moment: late is an error, and never a hang. */
const WAIT_MS_MAX = 20_000
const OUTPUT_LENGTH_MAX = 4_000_000
/** `sotto` itself leaves by this where it found a fault of its own. */
const EXIT_FAULT = 70
const CRASHES: readonly unknown[] = ['SIGSEGV', 'SIGILL', 'SIGABRT', 'SIGBUS', 'SIGFPE', 'SIGTRAP']

export interface Line {
  event: string
  // deno-lint-ignore no-explicit-any
  [field: string]: any
}

export interface RunOptions {
  /** Name of the profile's folder in the world. */
  home?: string
  env?: Readonly<Record<string, string | undefined>>
  cwd?: string
  input?: string | Uint8Array
}

export interface Ended {
  code: number | null
  signal: NodeJS.Signals | null
}

/** One program that runs; its output is kept and can be waited for. */
export class Program {
  readonly child: ChildProcess
  readonly ended: Promise<Ended>
  stdout = ''
  stderr = ''
  over: Ended | undefined
  readonly #words: string
  readonly #looks = new Set<() => void>()

  constructor(command: string, args: readonly string[], options: RunOptions) {
    this.#words = [command.split('/').at(-1), ...args].join(' ').slice(0, 200)
    this.child = spawn(command, args, {
      cwd: options.cwd ?? ROOT,
      env: options.env as NodeJS.ProcessEnv,
      stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
      // A group of its own, so that all that it starts can be ended with it.
      detached: true,
    })
    if (options.input !== undefined && options.input !== '') this.child.stdin!.write(options.input)
    for (const name of ['stdout', 'stderr'] as const) {
      this.child[name]!.setEncoding('utf8').on('data', (words: string) => {
        this[name] = (this[name] + words).slice(-OUTPUT_LENGTH_MAX)
        this.#look()
      })
    }
    this.ended = new Promise((resolve) => {
      const end = (over: Ended): void => {
        this.over = over
        this.#look()
        resolve(over)
      }
      this.child.on('error', (error) => {
        this.stderr += error.message
        end({ code: 127, signal: null })
      })
      this.child.on('close', (code, signal) => end({ code, signal }))
    })
  }

  /** Resolves with what `find` finds once it finds something in what has been printed. */
  async until<T>(
    find: () => T | undefined | null,
    what: string,
    msMax: number = WAIT_MS_MAX,
  ): Promise<T> {
    const found = find()
    if (found !== undefined && found !== null) return found
    return await new Promise<T>((resolve, reject) => {
      const finish = (settle: () => void): void => {
        clearTimeout(timer)
        this.#looks.delete(look)
        settle()
      }
      const look = (): void => {
        const now = find()
        if (now !== undefined && now !== null) finish(() => resolve(now))
        else if (this.over) finish(() => reject(this.#problem(`ended before ${what}`)))
      }
      const timer = setTimeout(
        () => finish(() => reject(this.#problem(`gave no ${what} in ${msMax} ms`))),
        msMax,
      )
      this.#looks.add(look)
      look()
    })
  }

  get lines(): Line[] {
    return this.stdout.split('\n').slice(0, -1).filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line))
  }

  /** The first JSON line of that event, or the first that `fits`. */
  event(name: string, fits: (line: Line) => boolean = () => true): Promise<Line> {
    return this.until(
      () => this.lines.find((line) => line.event === name && fits(line)),
      `line "${name}"`,
    )
  }

  /** Matched against standard output and then standard error. */
  says(pattern: RegExp): Promise<RegExpExecArray> {
    return this.until(() => pattern.exec(this.stdout) ?? pattern.exec(this.stderr), `${pattern}`)
  }

  signal(name: NodeJS.Signals): void {
    try {
      process.kill(-this.child.pid!, name)
    } catch {
      // The group is gone already.
    }
  }

  async stop(name: NodeJS.Signals = 'SIGTERM'): Promise<Ended> {
    this.signal(name)
    const late = setTimeout(() => this.signal('SIGKILL'), WAIT_MS_MAX)
    const over = await this.ended
    clearTimeout(late)
    this.signal('SIGKILL')
    return over
  }

  /** What went wrong in it that no test may pass over; undefined when nothing did. */
  get fault(): Error | undefined {
    const { code, signal } = this.over ?? { code: null, signal: null }
    const crashed = code === EXIT_FAULT || CRASHES.includes(signal)
    return crashed ? this.#problem('broke down') : undefined
  }

  #look(): void {
    for (const look of [...this.#looks]) look()
  }

  #problem(what: string): Error {
    const tail = (words: string): string => words.slice(-3000)
    return new Error(
      `"${this.#words}" ${what} (${JSON.stringify(this.over ?? 'running')})\n` +
        `stdout: ${tail(this.stdout)}\nstderr: ${tail(this.stderr)}`,
    )
  }
}

export interface CommandOptions extends RunOptions {
  timeoutMs?: number
}

export interface CommandResult extends Ended {
  stdout: string
  stderr: string
}

export interface Relay {
  program: Program
  port: number
  origin: string
  apiKey: string
  adminKey: string
}

export class E2eWorld {
  readonly dir = mkdtempSync(join(tmpdir(), 'sotto-e2e-'))
  readonly #programs = new Set<Program>()
  readonly #closes: (() => unknown)[] = []
  readonly #faults: Error[] = []
  readonly #onExit = (): void => {
    for (const program of this.#programs) program.signal('SIGKILL')
    rmSync(this.dir, { recursive: true, force: true })
  }

  constructor() {
    process.on('exit', this.#onExit)
  }

  path(name: string): string {
    return join(this.dir, name)
  }

  /** Closed at the end, the last one first. */
  defer(close: () => unknown): void {
    this.#closes.push(close)
  }

  env(home: string, more: Readonly<Record<string, string | undefined>> = {}) {
    const { PATH, LANG } = process.env
    return { PATH: `${PATH}:/usr/sbin:/sbin`, LANG, HOME: this.path(home), ...more }
  }

  /** Any program, in the background. */
  start(command: string, args: readonly string[], options: RunOptions = {}): Program {
    const program = new Program(command, args, {
      ...options,
      env: this.env(options.home ?? 'home', options.env),
    })
    this.#programs.add(program)
    void program.ended.then(() => {
      program.signal('SIGKILL')
      if (!program.fault) return
      this.#faults.push(program.fault)
      // At once: what waits for it will only say that nothing came.
      console.error(program.fault.message)
    })
    return program
  }

  /** Any program, to its end. */
  async run(
    command: string,
    args: readonly string[],
    options: CommandOptions = {},
  ): Promise<CommandResult> {
    const program = this.start(command, args, options)
    if (options.input !== undefined) program.child.stdin!.end()
    const late = setTimeout(() => program.signal('SIGKILL'), options.timeoutMs ?? 30_000)
    const over = await program.ended
    clearTimeout(late)
    this.#programs.delete(program)
    return { ...over, stdout: program.stdout, stderr: program.stderr }
  }

  /** `sotto …` in the background. */
  sotto(args: readonly string[], options: RunOptions = {}): Program {
    const [command, ...first] = SOTTO
    return this.start(command, [...first, ...args], this.#sottoOptions(options))
  }

  /** `sotto …` to its end. */
  sottoRun(args: readonly string[], options: CommandOptions = {}): Promise<CommandResult> {
    const [command, ...first] = SOTTO
    return this.run(command, [...first, ...args], this.#sottoOptions(options))
  }

  /** The words of a shell, as a person would type them, for programs that run `sotto` themselves. */
  get sottoWords(): string {
    return SOTTO.join(' ')
  }

  #sottoOptions<O extends RunOptions>(options: O): O {
    const home = options.home ?? 'agent'
    return { ...options, home, env: { SOTTO_HOME: this.path(home), ...options.env } }
  }

  /** A relay at localhost; its keys are made on its first start. */
  async relay(flags: readonly string[] = []): Promise<Relay> {
    const program = this.sotto(['relay', '--port', '0', '--json', ...flags], {
      home: 'relay',
      // Its first scope is called after the person.
      env: { USER: 'home' },
    })
    const { port, url, apiKey, adminKey } = await program.event('listening')
    return { program, port, origin: url, apiKey, adminKey }
  }

  /** What an agent's environment says of a relay. */
  joins(relay: Relay): Record<string, string> {
    return { SOTTO_RELAY: relay.origin, SOTTO_API_KEY: relay.apiKey }
  }

  /** `sotto http|tcp|udp …` until it is up. */
  async tunnel(
    relay: Relay,
    args: readonly string[],
    options: RunOptions = {},
  ): Promise<Program & { up: Line }> {
    const program = this.sotto([...args, '--json'], {
      ...options,
      env: { ...this.joins(relay), ...options.env },
    })
    return Object.assign(program, { up: await program.event('up') })
  }

  async close(): Promise<void> {
    await Promise.all([...this.#programs].reverse().map((program) => program.stop()))
    for (const close of this.#closes.reverse()) await close()
    process.off('exit', this.#onExit)
    rmSync(this.dir, { recursive: true, force: true })
    if (this.#faults.length > 0) throw new AggregateError(this.#faults, String(this.#faults[0]))
  }
}
