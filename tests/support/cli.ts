/**
 * Command lines run in memory: the host's own ports, a home of its own, and a terminal that keeps what
 * is written to it.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { runProgram } from '../../agent/cli/program.ts'
import type { PromptOptions, StopReason, TerminalOutput, World } from '../../agent/world.ts'
import { memoryConns } from '../../core/socket.ts'
import type { Conn } from '../../core/socket.ts'
import { testWorld } from './agent_world.ts'

/** What does not come within this time never will. */
const PATIENCE_MS = 15_000
const INTERRUPT: StopReason = { name: 'interrupt', exitCode: 130 }

export interface CliOptions {
  env?: Record<string, string>
  /** Columns of a terminal; 0: there is none. */
  columns?: number
  /** Lines of standard input, which ends after them; `type` gives more where it is left out. */
  input?: readonly string[]
}

/** An output that can be waited for. */
export class Output implements TerminalOutput {
  text = ''
  readonly isTTY: boolean
  readonly columns: number
  #looks = new Set<() => void>()

  constructor(columns: number) {
    this.isTTY = columns > 0
    this.columns = columns || 80
  }

  write(words: string | Uint8Array): void {
    this.text += typeof words === 'string' ? words : new TextDecoder().decode(words)
    for (const look of [...this.#looks]) look()
  }

  get lines(): string[] {
    return this.text.split('\n').filter(Boolean)
  }

  // deno-lint-ignore no-explicit-any
  get objects(): Record<string, any>[] {
    return this.lines.map((line) => JSON.parse(line))
  }

  /** The first match of `pattern` after the first `from` characters. */
  until(pattern: RegExp, from = 0): Promise<RegExpExecArray> {
    return new Promise((resolve, reject) => {
      const look = (): void => {
        const found = pattern.exec(this.text.slice(from))
        if (!found) return
        clearTimeout(late)
        this.#looks.delete(look)
        resolve(found)
      }
      const late = setTimeout(() => {
        this.#looks.delete(look)
        reject(new Error(`${pattern} did not come; what came: ${this.text.slice(from)}`))
      }, PATIENCE_MS)
      this.#looks.add(look)
      look()
    })
  }
}

export interface Running {
  stdout: Output
  stderr: Output
  /** The far end of `--stdio`. */
  stdio: Conn
  code: Promise<number>
  /** One more line of standard input. */
  type(line: string): void
  /** As Ctrl-C, or as another signal. */
  stop(reason?: StopReason): Promise<number>
}

/** Whoever sits before the terminal. */
class Typist {
  readonly #stderr: Output
  readonly #lines: string[]
  readonly #ended: boolean
  #wake: (() => void) | undefined

  constructor(stderr: Output, lines: readonly string[] | undefined) {
    this.#stderr = stderr
    this.#lines = [...lines ?? []]
    this.#ended = lines !== undefined
  }

  type(line: string): void {
    this.#lines.push(line)
    this.#wake?.()
  }

  readonly prompt = async ({ question, signal }: PromptOptions): Promise<string | undefined> => {
    this.#stderr.write(question)
    while (this.#lines.length === 0 && !this.#ended && !signal?.aborted) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve
        signal?.addEventListener('abort', () => resolve(), { once: true })
      })
    }
    this.#stderr.write('\n')
    return signal?.aborted ? undefined : this.#lines.shift()
  }
}

/** A place where command lines run: each home is a folder of it. */
export class Place {
  readonly dir: string
  readonly #running = new Set<Running>()
  /** Timers of the world keep nothing alive; a test that waits for one must. */
  readonly #alive = setInterval(() => {}, 60_000)

  private constructor(dir: string) {
    this.dir = dir
  }

  static async make(): Promise<Place> {
    return new Place(await mkdtemp(join(tmpdir(), 'sotto-cli-')))
  }

  home(name: string): string {
    return join(this.dir, name)
  }

  /** Starts a command line in the home `home`. */
  async start(home: string, argv: string[], options: CliOptions = {}): Promise<Running> {
    const { env = {}, columns = 0 } = options
    const base = await testWorld({ SOTTO_HOME: this.home(home), ...env })
    const [near, far] = memoryConns()
    const stdout = new Output(columns)
    const stderr = new Output(columns)
    const typist = new Typist(stderr, options.input)
    const world: World = {
      ...base.world,
      username: home,
      terminal: { stdout, stderr, stdio: () => near, prompt: typist.prompt },
    }
    const code = runProgram(argv, world)
    const running: Running = {
      stdout,
      stderr,
      stdio: far,
      code,
      type: (line) => typist.type(line),
      stop(reason = INTERRUPT) {
        base.stop.abort(reason)
        return code
      },
    }
    this.#running.add(running)
    void code.finally(async () => {
      this.#running.delete(running)
      await base.close()
    })
    return running
  }

  /** Runs a command line to its end. */
  async run(
    home: string,
    argv: string[],
    options: CliOptions = {},
  ): Promise<{ code: number; stdout: Output; stderr: Output }> {
    const { code, stdout, stderr } = await this.start(home, argv, options)
    let late: ReturnType<typeof setTimeout>
    const never = new Promise<never>((_, reject) => {
      late = setTimeout(() => {
        reject(new Error(`sotto ${argv.join(' ')} goes on: ${stdout.text}${stderr.text}`))
      }, PATIENCE_MS)
    })
    try {
      return { code: await Promise.race([code, never]), stdout, stderr }
    } finally {
      clearTimeout(late!)
    }
  }

  async close(): Promise<void> {
    clearInterval(this.#alive)
    await Promise.all([...this.#running].map((running) => running.stop()))
    await rm(this.dir, { recursive: true, force: true })
  }
}
