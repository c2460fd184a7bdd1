/** A real world for tests of the agent: the host's own ports, with a home of its own that is removed. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { hostWorld } from '../../agent/host/world.ts'
import type { TlsIdentity, World } from '../../agent/world.ts'
import { makeCertificate } from '../../agent/certificate.ts'
import type { Conn } from '../../core/socket.ts'

export interface TestWorld {
  world: World
  dir: string
  stop: AbortController
  close(): Promise<void>
}

/** One for the process: the host listens to the process's own outputs. */
const shared = hostWorld({ signal: new AbortController().signal })

export async function testWorld(env: Record<string, string> = {}): Promise<TestWorld> {
  const dir = await mkdtemp(join(tmpdir(), 'sotto-test-'))
  const stop = new AbortController()
  const world: World = {
    ...shared,
    signal: stop.signal,
    env: { SOTTO_HOME: join(dir, 'home'), ...env },
    home: dir,
  }
  return {
    world,
    dir,
    stop,
    async close() {
      stop.abort()
      await rm(dir, { recursive: true, force: true })
    },
  }
}

export function serverIdentity(world: World, name = 'demo.secure.localhost'): Promise<TlsIdentity> {
  return makeCertificate(world, { name, use: 'server' })
}

/** Everything that a connection brings until its end; `closed` tells how it ended. */
export class Collector {
  readonly conn: Conn
  readonly ended: Promise<Uint8Array>
  readonly closed: Promise<Error | undefined>
  received = 0
  drains = 0
  readonly #parts: Uint8Array[] = []
  #waiting: { bytes: number; resolve: () => void }[] = []
  #drained: (() => void)[] = []

  constructor(conn: Conn) {
    this.conn = conn
    let end!: (bytes: Uint8Array) => void
    let close!: (error: Error | undefined) => void
    this.ended = new Promise((resolve) => (end = resolve))
    this.closed = new Promise((resolve) => (close = resolve))
    conn.handle({
      data: (bytes) => {
        this.received += bytes.length
        this.#parts.push(bytes)
        this.#waiting = this.#waiting.filter(({ bytes: want, resolve }) => {
          if (this.received < want) return true
          resolve()
          return false
        })
      },
      drain: () => {
        this.drains++
        for (const resolve of this.#drained.splice(0)) resolve()
      },
      end: () => end(this.bytes),
      closed: (error) => {
        end(this.bytes)
        close(error)
      },
    })
  }

  get bytes(): Uint8Array {
    return new Uint8Array(Buffer.concat(this.#parts))
  }

  get text(): string {
    return Buffer.concat(this.#parts).toString('latin1')
  }

  /** Resolves when so many bytes have come in all. */
  until(bytes: number): Promise<void> {
    if (this.received >= bytes) return Promise.resolve()
    return new Promise((resolve) => this.#waiting.push({ bytes, resolve }))
  }

  /** Writes all of it, waiting for a drain whenever the connection is full. */
  async write(bytes: Uint8Array, chunk = 65_536): Promise<void> {
    for (let at = 0; at < bytes.length; at += chunk) {
      const sent = this.conn.write(bytes.subarray(at, at + chunk))
      if (sent === 'lost') throw new Error('lost')
      if (sent === 'queued') await new Promise<void>((resolve) => this.#drained.push(resolve))
    }
  }
}

/** Bytes that differ all over, the same for the same seed. */
export function pattern(length: number, seed = 1): Uint8Array {
  const words = new Uint32Array(Math.ceil(length / 4))
  let state = seed >>> 0 || 1
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    words[i] = state
  }
  return new Uint8Array(words.buffer, 0, length)
}
