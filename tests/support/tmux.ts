/**
 * A terminal that a person could sit at: a shell inside tmux, whose keys are pressed and whose screen
 * is read, as wide as the test wants it.
 */
import { spawnSync } from 'node:child_process'
import { setTimeout as pause } from 'node:timers/promises'
import { ROOT } from './world.ts'
import type { E2eWorld } from './world.ts'

const WAIT_MS_MAX = 20_000
/** A screen tells nobody that it has changed. */
const LOOK_MS = 50
let last = 0

export interface TerminalOptions {
  home: string
  env: Readonly<Record<string, string>>
  columns?: number
  rows?: number
}

export class Terminal {
  readonly #socket = `sotto-test-${process.pid}-${++last}`

  constructor(world: E2eWorld, { home, env, columns = 80, rows = 40 }: TerminalOptions) {
    const all = { SOTTO_HOME: world.path(home), ...env }
    this.#tmux([
      ...['-f', '/dev/null', 'new-session', '-d', '-x', `${columns}`, '-y', `${rows}`, '-c', ROOT],
      ...Object.entries(all).flatMap(([name, value]) => ['-e', `${name}=${value}`]),
      'bash --norc --noprofile',
    ])
    this.type(
      `PS1='$ '; HISTFILE=; sotto() { ${world.sottoWords} "$@"; echo "left with $?" > /dev/tty; }`,
    )
    this.press('Enter')
    this.run('clear')
    world.defer(() => this.close())
  }

  /** Letters as they are. */
  type(words: string): void {
    this.#tmux(['send-keys', '-l', words])
  }

  /** Keys by name, such as `Enter`, `Tab`, `C-c`. */
  press(...keys: string[]): void {
    this.#tmux(['send-keys', ...keys])
  }

  run(words: string): void {
    this.type(words)
    this.press('Enter')
  }

  /** Empties the screen, at once and without the shell: nothing old can be taken for what comes. */
  clear(): void {
    this.press('-R')
  }

  /** What is to be seen, without blanks at the ends of lines and empty lines at the end. */
  get screen(): string {
    return this.#tmux(['capture-pane', '-p']).split('\n').map((line) => line.trimEnd()).join('\n')
      .trimEnd()
  }

  get lines(): string[] {
    return this.screen.split('\n')
  }

  /** Of tmux itself. */
  setOption(name: string, value: string): void {
    this.#tmux(['set-option', '-s', name, value])
  }

  /** What a program gave to copy (OSC 52) last. */
  get clipboard(): string {
    return this.#tmux(['show-buffer'])
  }

  /** The first match on the screen. */
  async until(pattern: RegExp): Promise<RegExpExecArray> {
    const deadlineMs = performance.now() + WAIT_MS_MAX
    for (;;) {
      const { screen } = this
      const found = pattern.exec(screen)
      if (found) return found
      if (performance.now() > deadlineMs) throw new Error(`${pattern} did not come:\n${screen}`)
      await pause(LOOK_MS)
    }
  }

  /** The exit code of the command that runs. */
  async left(): Promise<number> {
    return Number((await this.until(/^(?:\^C)?left with (\d+)$/m))[1])
  }

  close(): void {
    spawnSync('tmux', ['-L', this.#socket, 'kill-server'])
  }

  #tmux(args: string[]): string {
    const done = spawnSync('tmux', ['-L', this.#socket, ...args], {
      encoding: 'utf8',
      env: { ...process.env, LC_ALL: 'C.UTF-8' },
    })
    if (done.status === 0) return done.stdout
    throw new Error(`tmux ${args[0]}: ${done.stderr || done.error}`)
  }
}
