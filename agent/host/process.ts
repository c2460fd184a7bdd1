/**
 * The process itself: signals become one abort, the terminal becomes two outputs. The first Ctrl-C
 * asks politely, the second leaves at once.
 */
import { DuplexConn } from '../../core/duplex_conn.ts'
import type { Conn } from '../../core/socket.ts'
import type { Clock } from '../../core/clock.ts'
import type { StopReason, Terminal, TerminalOutput } from '../world.ts'
import { keys } from './keys.ts'
import { prompt } from './prompt.ts'
import { Duplex, Readable } from 'node:stream'

/** Longest delay that timers take; a longer wait is split. */
const TIMER_MS_MAX = 2_147_483_647

const SIGNALS = [
  ['SIGINT', { name: 'interrupt', exitCode: 130 }],
  ['SIGTERM', { name: 'terminate', exitCode: 143 }],
  ['SIGHUP', { name: 'hangup', exitCode: 129 }],
] as const satisfies [NodeJS.Signals, StopReason][]

/** An abort signal that fires at the first SIGINT, SIGTERM or SIGHUP; at the second, the process exits. */
export function stopSignal(): AbortSignal {
  const controller = new AbortController()
  for (const [signal, reason] of SIGNALS) {
    process.on(signal, () => {
      if (signal === 'SIGHUP' && hangups.size > 0 && !hasTerminal()) {
        for (const run of [...hangups]) run()
        return
      }
      if (controller.signal.aborted) process.exit(reason.exitCode)
      controller.abort(reason)
    })
  }
  return controller.signal
}

const hangups = new Set<() => void>()

/** `World.onHangup`. */
export function onHangup(run: () => void): () => void {
  hangups.add(run)
  return () => void hangups.delete(run)
}

function hasTerminal(): boolean {
  return [process.stdin, process.stdout, process.stderr].some(({ isTTY }) => isTTY)
}

export const hostClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
  after(ms, run) {
    let timer: ReturnType<typeof setTimeout>
    const wait = (leftMs: number): void => {
      const stepMs = Math.min(Math.max(0, leftMs), TIMER_MS_MAX)
      timer = setTimeout(() => leftMs > stepMs ? wait(leftMs - stepMs) : run(), stepMs)
      timer.unref()
    }
    wait(ms)
    return { cancel: () => clearTimeout(timer) }
  },
}

export function hostTerminal(): Terminal {
  return { stdout: output(process.stdout), stderr: output(process.stderr), stdio, prompt, keys }
}

function output(stream: NodeJS.WriteStream): TerminalOutput {
  // A reader that went away (`sotto … | head`) must not end the program with a stack trace.
  stream.on('error', () => {})
  return {
    write: (text) => void stream.write(text),
    taken: () => new Promise((resolve) => void stream.write('', () => resolve())),
    isTTY: stream.isTTY === true,
    get columns() {
      return stream.columns || 80
    },
    ...(stream.rows > 0 ? { rows: stream.rows } : {}),
  }
}

function stdio(): Conn {
  const { stdout } = process
  // By pulling: Bun's `process.stdin`, paused and resumed, now and then never says that its input has ended.
  const input = (globalThis.Bun ? Bun.stdin.stream() : Readable.toWeb(process.stdin)).getReader()
  const both = new Duplex({
    allowHalfOpen: true,
    read() {
      input.read().then(
        ({ done, value }) => void both.push(done ? null : value),
        (error) => void both.destroy(error as Error),
      )
    },
    write(chunk, _, done) {
      if (stdout.write(chunk)) done()
      else stdout.once('drain', () => done())
    },
    final: (done) => void stdout.end(() => done()),
    destroy(error, done) {
      input.cancel().catch(() => {})
      done(error)
    },
  })
  stdout.on('error', (error) => void both.destroy(error))
  return new DuplexConn(both)
}
