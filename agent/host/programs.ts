/**
 * Programs of this machine: started by argv without a shell, in a process group of their own, so
 * that all that they started ends with them. Output is read no faster than it is taken.
 */
import { spawn } from 'node:child_process'
import type { ChildProcessWithoutNullStreams } from 'node:child_process'
import type { Readable } from 'node:stream'
import { TunnelError } from '../../core/errors.ts'
import type { Program, ProgramExit, Programs, ProgramSink } from '../world.ts'

export const hostPrograms: Programs = {
  start({ argv, env, cwd }, sink) {
    return new Promise((resolve, reject) => {
      const [file, ...args] = argv
      const child = spawn(file!, args, {
        env: { ...env },
        ...(cwd === undefined ? {} : { cwd }),
        stdio: 'pipe',
        // A group of its own; there are none on Windows.
        detached: process.platform !== 'win32',
      })
      child.once('error', (cause) => reject(notStarted(file!, cause)))
      child.once('spawn', () => resolve(running(child, sink)))
    })
  },
}

function running(child: ChildProcessWithoutNullStreams, sink: ProgramSink): Program {
  let exited = false
  const { stdin, stdout, stderr } = child
  // A program that does not read its input is no error: it ends when it likes.
  stdin.on('error', () => {})
  const outputs = Promise.all([
    read(stdout, (bytes) => sink.output(bytes)),
    read(stderr, (bytes) => sink.errors(bytes)),
  ])
  const exit = new Promise<ProgramExit>((resolve) => {
    child.once('exit', (code, signal) => {
      exited = true
      resolve({ code: code ?? undefined, signal: signal ?? undefined })
    })
  })
  return {
    pid: child.pid!,
    done: (async () => {
      const [how] = await Promise.all([exit, outputs])
      return how
    })(),
    write: (bytes) =>
      new Promise((resolve) => {
        if (exited || stdin.destroyed || stdin.writableEnded) return resolve()
        stdin.write(bytes, () => resolve())
      }),
    end: () => void stdin.end(),
    kill(how) {
      const signal = how === 'kill' ? 'SIGKILL' : 'SIGTERM'
      try {
        if (process.platform === 'win32') child.kill(signal)
        else process.kill(-child.pid!, signal)
      } catch {
        // Nobody of the group is left.
      }
      if (how === 'kill') { for (const stream of [stdin, stdout, stderr]) stream.destroy() }
    },
  }
}

/** Resolves at the end; what the sink throws ends the reading. */
async function read(stream: Readable, take: (bytes: Uint8Array) => unknown): Promise<void> {
  try {
    for await (const chunk of stream) await take(new Uint8Array(chunk as Uint8Array))
  } catch {
    // Broken off by a kill, or nobody takes it any more.
    stream.destroy()
  }
}

function notStarted(file: string, cause: NodeJS.ErrnoException): TunnelError {
  const why = cause.code === 'ENOENT'
    ? 'there is no such program'
    : cause.code === 'EACCES'
    ? 'it is not executable'
    : cause.message
  return new TunnelError('program/start', `Cannot start "${file}": ${why}`, {
    hint: 'Say its whole path, or check PATH.',
    cause,
  })
}
