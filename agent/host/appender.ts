/**
 * A file that grows at its end: what is written waits in memory until a turn is over, and `sync`
 * brings it to the disk. Bounded: a disk that does not keep up, or is full, ends the writing behind
 * the last whole piece and is told; it never stops what is being recorded.
 */
import * as fs from 'node:fs/promises'
import { dirname } from 'node:path'
import { TunnelError } from '../../core/errors.ts'
import type { Appender } from '../world.ts'

/** Waiting to be written; beyond it the disk is too slow. */
const WAITING_BYTES_MAX = 8_388_608

export async function openAppender(path: string): Promise<Appender> {
  try {
    await fs.mkdir(dirname(path), { recursive: true, mode: 0o700 })
    // Never one that is there already: what it holds is not ours to go on with.
    return new FileAppender(path, await fs.open(path, 'ax', 0o600))
  } catch (error) {
    throw failure(path, error)
  }
}

class FileAppender implements Appender {
  readonly #path: string
  readonly #file: fs.FileHandle
  #waiting: Uint8Array[] = []
  #waitingBytes = 0
  #writtenBytes = 0
  #running: Promise<void> = Promise.resolve()
  #scheduled = false
  #error: TunnelError | undefined
  #closed = false

  constructor(path: string, file: fs.FileHandle) {
    this.#path = path
    this.#file = file
  }

  get error(): TunnelError | undefined {
    return this.#error
  }

  write(bytes: Uint8Array): void {
    if (this.#error || this.#closed) return
    if (this.#waitingBytes + bytes.length > WAITING_BYTES_MAX) {
      this.#error = failure(this.#path, new Error('the disk does not keep up'))
      this.#waiting = []
      this.#waitingBytes = 0
      return
    }
    this.#waiting.push(bytes)
    this.#waitingBytes += bytes.length
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(() => {
      this.#scheduled = false
      void this.#flush(false)
    })
  }

  sync(): Promise<void> {
    return this.#flush(true)
  }

  async close(): Promise<void> {
    if (this.#closed) return
    await this.#flush(true)
    this.#closed = true
    await this.#file.close().catch(() => {})
  }

  #flush(durable: boolean): Promise<void> {
    return this.#running = this.#running.then(async () => {
      if (this.#error || this.#closed) return
      const pieces = this.#waiting
      const bytes = joined(pieces, this.#waitingBytes)
      this.#waiting = []
      this.#waitingBytes = 0
      try {
        if (bytes.length > 0) await this.#file.appendFile(bytes)
        this.#writtenBytes += bytes.length
        if (durable) await this.#file.datasync()
      } catch (error) {
        this.#error = failure(this.#path, error)
        await this.#cut(pieces)
      }
    })
  }

  /** A full disk took a part: leaves what is whole of it. */
  async #cut(pieces: readonly Uint8Array[]): Promise<void> {
    try {
      const { size } = await this.#file.stat()
      let end = this.#writtenBytes
      for (const { length } of pieces) {
        if (end + length > size) break
        end += length
      }
      if (end < size) await this.#file.truncate(end)
    } catch {
      // Nothing more can be done on this disk; readers take a torn end for what it is.
    }
  }
}

/** `concat` of more pieces than one call takes. */
function joined(pieces: readonly Uint8Array[], length: number): Uint8Array {
  const bytes = new Uint8Array(length)
  let at = 0
  for (const piece of pieces) {
    bytes.set(piece, at)
    at += piece.length
  }
  return bytes
}

function failure(path: string, error: unknown): TunnelError {
  const { code, message } = error as { code?: string; message?: string }
  const full = code === 'ENOSPC' || code === 'EDQUOT'
  return new TunnelError(
    'files/append',
    `Cannot append to ${path}: ${full ? 'the disk is full' : message}`,
    {
      cause: error,
      ...(full && { hint: 'Make room, or move the state folder (XDG_STATE_HOME).' }),
    },
  )
}
