/**
 * A program that answers messages: the message on its standard input, its output back while it
 * runs, its exit code as the result. It gets a clean environment, so much time, so much output and
 * no more than so many at once; when the sender goes, it goes.
 */
import type { Incoming, MessageResult } from './a2a.ts'
import { failure } from './a2a.ts'
import type { Program, World } from './world.ts'

/** From a polite end to a hard one. */
const GRACE_MS = 2000

/** All that a program gets of our environment; the rest may hold secrets or change what runs. */
const ENVIRONMENT =
  /^(PATH|HOME|USER|LOGNAME|LANG|LC_[A-Z]+|TZ|TMPDIR|TERM|SYSTEMROOT|PATHEXT|TEMP)$/

export interface ExecOptions {
  argv: readonly string[]
  /** Whole run, in milliseconds. */
  timeMs: number
  /** Standard output and error together. */
  outputBytesMax: number
  /** Runs at once; more are refused. */
  runsMax: number
}

export const EXEC_DEFAULTS = Object.freeze({
  timeMs: 60_000,
  outputBytesMax: 16_777_216,
  runsMax: 4,
})

export class Runner {
  readonly #world: Pick<World, 'programs' | 'clock' | 'env'>
  readonly #options: ExecOptions
  readonly #running = new Set<Program>()
  #runs = 0

  constructor(world: Pick<World, 'programs' | 'clock' | 'env'>, options: ExecOptions) {
    this.#world = world
    this.#options = options
  }

  get size(): number {
    return this.#runs
  }

  /** Ends what runs. */
  close(): void {
    for (const program of this.#running) program.kill('kill')
  }

  /** Runs it for one message and gives the result; never throws. */
  async run(incoming: Incoming, peer: { name: string; key: string }): Promise<MessageResult> {
    const { runsMax } = this.#options
    if (this.#runs >= runsMax) {
      return {
        status: 'refused',
        code: 'a2a/busy',
        message: `${this.#runs} programs run already, at most ${runsMax} may; try again later`,
      }
    }
    this.#runs++
    try {
      return await this.#run(incoming, peer)
    } catch (error) {
      return failure(error)
    } finally {
      this.#runs--
    }
  }

  async #run(incoming: Incoming, peer: { name: string; key: string }): Promise<MessageResult> {
    const { programs, clock } = this.#world
    const { argv, timeMs, outputBytesMax } = this.#options
    let outBytes = 0
    let ended: MessageResult | undefined
    const end = (result: MessageResult): void => {
      ended ??= result
      program.kill('terminate')
      clock.after(GRACE_MS, () => program.kill('kill'))
    }
    const passing = (pass: (bytes: Uint8Array) => Promise<void>) => async (bytes: Uint8Array) => {
      outBytes += bytes.length
      if (outBytes <= outputBytesMax) return await pass(bytes)
      const message = `the program wrote more than ${outputBytesMax} bytes and was ended`
      end({ status: 'failed', code: 'a2a/output', message })
    }
    const program = await programs.start({ argv, env: this.#environment(incoming, peer) }, {
      output: passing((bytes) => incoming.output(bytes)),
      errors: passing((bytes) => incoming.errors(bytes)),
    })
    this.#running.add(program)
    const timer = clock.after(timeMs, () => {
      const message = `the program ran for more than ${timeMs / 1000} s and was ended`
      end({ status: 'timeout', code: 'a2a/time', message })
    })
    const gone = (): void => end({ status: 'failed', code: 'a2a/gone' })
    incoming.gone.addEventListener('abort', gone, { once: true })
    try {
      // A program that exits without reading all is no error; a message that breaks off is one.
      this.#feed(incoming, program).catch((error) => end(failure(error)))
      const exit = await program.done
      if (ended) return ended
      return {
        status: exit.code === 0 ? 'delivered' : 'failed',
        ...(exit.code === undefined ? {} : { exit: exit.code }),
        ...(exit.signal === undefined ? {} : { message: `ended by ${exit.signal}` }),
      }
    } finally {
      timer.cancel()
      incoming.gone.removeEventListener('abort', gone)
      this.#running.delete(program)
      // Whatever it left behind in its group.
      program.kill('kill')
    }
  }

  async #feed(incoming: Incoming, program: Program): Promise<void> {
    for await (const chunk of incoming.body()) await program.write(chunk)
    program.end()
  }

  #environment(
    incoming: Incoming,
    peer: { name: string; key: string },
  ): Record<string, string> {
    const env: Record<string, string> = {}
    for (const [name, value] of Object.entries(this.#world.env)) {
      if (value !== undefined && ENVIRONMENT.test(name)) env[name] = value
    }
    env['SOTTO_PEER'] = peer.name
    env['SOTTO_PEER_KEY'] = peer.key
    env['SOTTO_MESSAGE_ID'] = incoming.request.id
    return env
  }
}
