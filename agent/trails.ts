/**
 * What this agent keeps of its sessions, so that it can be shown later what passed: one trail for
 * each session, append-only, on the disk at each checkpoint. The oldest give way when all together
 * grow too large; one that is being written, by whatever process of the profile, never does.
 * core/trail.ts has the bytes.
 *
 *   DIR/WHEN-SESSION-ROLE-WRITER.trail    20261121080642-5e…5e-i-0badcafe.trail
 *   DIR/WRITER.lock                       held while the process that writes under this name lives
 */
import { EMPTY, hex } from '../core/bytes.ts'
import type { Clock } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { asTunnelError, TunnelError } from '../core/errors.ts'
import {
  encodeTrailEntry,
  encodeTrailHeader,
  readTrail,
  TRAIL_HEADER_BYTES_MAX,
} from '../core/trail.ts'
import type { TrailHeader } from '../core/trail.ts'
import type { TranscriptEvent } from '../core/transcript.ts'
import type { Appender, Files } from './world.ts'

/** All trails together; those that are being written may take more. */
export const TRAILS_BYTES_MAX = 268_435_456
export const TRAILS_MAX = 10_000
/** One trail ends here: 2 million records, and the session goes on. */
export const TRAIL_BYTES_MAX = 67_108_864
/** What waits for a file to be opened. */
const EARLY_BYTES_MAX = 8_388_608
/** What may come in until the oldest are looked for again. */
const PRUNE_BYTES = 16_777_216
const PRUNE_TRAILS = 100
const WRITER_BYTES = 4
/** A lock that nobody holds is left for so long, lest it be one that is just being taken. */
const LOCK_KEPT_MS = 86_400_000
const SUFFIX = '.trail'
const NAME = /^\d{14}-([0-9a-f]{32}-[ir])-([0-9a-f]{8})\.trail$/
const LOCK = /^([0-9a-f]{8})\.lock$/

export interface TrailPorts {
  /** Absolute. */
  dir: string
  files: Pick<Files, 'appender' | 'info' | 'list' | 'lock' | 'read' | 'remove'>
  clock: Pick<Clock, 'now'>
  crypto: Pick<Crypto, 'randomBytes'>
  /** A trail could not be written to its end; the session goes on. Told once while it lasts. */
  problem(error: TunnelError): void
  /** Of all; for tests. Below zero none is kept. */
  bytesMax?: number
  /** Of one; for tests. */
  trailBytesMax?: number
}

/** One session to be recorded. */
export type TrailSession = Omit<TrailHeader, 'start'>

/** What is kept of one session, while it goes on. */
export interface Recording {
  event(event: TranscriptEvent): void
  /** Nothing more comes. */
  closed(): void
}

export interface KeptTrail extends TrailHeader {
  path: string
  bytes: number
  /** The session goes on, in this process or another. */
  writing: boolean
}

export class Trails {
  readonly #ports: TrailPorts
  readonly #writer: string
  readonly #open = new Map<string, TrailWriter>()
  #lock: Promise<(() => Promise<void>) | undefined> | undefined
  #pruning: Promise<void> | undefined
  #bytesSince: number
  #trailsSince: number
  #told = false

  constructor(ports: TrailPorts) {
    this.#ports = ports
    this.#writer = hex(ports.crypto.randomBytes(WRITER_BYTES))
    // Most processes are short: one in so many looks, and so all together do.
    const part = ports.crypto.randomBytes(1)[0]! / 256
    this.#bytesSince = PRUNE_BYTES * part
    this.#trailsSince = PRUNE_TRAILS * part
  }

  /** Begins the trail of a session; what comes before its file is open waits. */
  begin(of: TrailSession): Recording {
    const { clock, dir, files, trailBytesMax = TRAIL_BYTES_MAX } = this.#ports
    const start = clock.now()
    const when = new Date(start).toISOString().replace(/\D/g, '').slice(0, 14)
    const name = `${when}-${hex(of.session)}-${of.role[0]}-${this.#writer}${SUFFIX}`
    const lock = this.#lock ??= files.lock(`${dir}/${this.#writer}.lock`)
    // A disk that was full may have room again for the next.
    lock.catch(() => void (this.#lock = undefined))
    const writer = new TrailWriter(encodeTrailHeader({ ...of, start }), {
      open: async () => {
        await lock
        return await files.appender(`${dir}/${name}`)
      },
      bytesMax: trailBytesMax,
      written: (bytes) => this.#grown(bytes),
      closed: (error) => {
        this.#open.delete(name)
        if (!error) this.#told = false
      },
      problem: (error) => {
        if (!this.#told) this.#ports.problem(error)
        this.#told = true
      },
    })
    this.#open.set(name, writer)
    this.#trailsSince++
    return writer
  }

  /** The newest trails whose beginning can be read, the newest first. */
  async list(most = TRAILS_MAX): Promise<KeptTrail[]> {
    const { files, dir } = this.#ports
    const kept: KeptTrail[] = []
    const living = new Map<string, boolean>()
    for (const name of (await this.#names()).toReversed()) {
      if (kept.length >= most) break
      const path = `${dir}/${name}`
      const bytes = (await files.info(path))?.bytes ?? 0
      try {
        const head = await files.read(path, { bytesMax: TRAIL_HEADER_BYTES_MAX, head: true })
        const writing = await this.#isWritten(name, living)
        kept.push({ ...headerOf(head ?? EMPTY), path, bytes, writing })
      } catch {
        // Cut before its header was written: there is nothing in it to show.
      }
    }
    return kept
  }

  /**
   * The one whose session begins with these hex digits; `-i` or `-r` behind all 32 tells the two
   * apart where this agent was at both ends. Throws `audit/unknown`, `audit/ambiguous`.
   */
  async find(session: string): Promise<{ path: string; bytes: Uint8Array; writing: boolean }> {
    const { files, dir } = this.#ports
    const names = /^[0-9a-f]+(-[ir])?$/i.test(session)
      ? (await this.#names()).filter((one) => NAME.exec(one)![1]!.startsWith(session.toLowerCase()))
      : []
    const [name, other] = names
    const path = `${dir}/${name}`
    const bytes = name && !other && await files.read(path, { bytesMax: TRAIL_BYTES_MAX })
    if (bytes) return { path, bytes, writing: await this.#isWritten(name, new Map()) }
    throw new TunnelError(
      other ? 'audit/ambiguous' : 'audit/unknown',
      `Cannot take the session "${session.slice(0, 40)}": found ${
        other ? `${names.length} trails` : 'no trail'
      }, expected one`,
      { hint: 'See "sotto audit list".' },
    )
  }

  /** Removes the oldest until the rest is small enough. */
  async prune(): Promise<void> {
    const { files, dir, bytesMax = TRAILS_BYTES_MAX } = this.#ports
    this.#bytesSince = 0
    this.#trailsSince = 0
    const names = await this.#names()
    const sizes: number[] = []
    for (const name of names) sizes.push((await files.info(`${dir}/${name}`))?.bytes ?? 0)
    let total = sizes.reduce((sum, bytes) => sum + bytes, 0)
    let count = names.length
    const living = new Map<string, boolean>()
    for (const [i, name] of names.entries()) {
      if (total <= bytesMax && count <= TRAILS_MAX) break
      if (await this.#isWritten(name, living)) continue
      await files.remove(`${dir}/${name}`)
      total -= sizes[i]!
      count--
    }
    await this.#sweepLocks(names)
  }

  /** When all that was told is on the disk; no session may be told of after. */
  async close(): Promise<void> {
    for (const writer of this.#open.values()) writer.closed()
    await Promise.all([...this.#open.values()].map(({ done }) => done))
    await this.#pruning
    if (!this.#lock) return
    const { files, dir } = this.#ports
    const release = await this.#lock.catch(() => undefined)
    await files.remove(`${dir}/${this.#writer}.lock`).catch(() => {})
    await release?.()
  }

  /** A trail of our own is written while it is open, another's as long as its process lives. */
  async #isWritten(name: string, living: Map<string, boolean>): Promise<boolean> {
    const writer = NAME.exec(name)![2]!
    if (writer === this.#writer) return this.#open.has(name)
    let lives = living.get(writer)
    if (lives === undefined) living.set(writer, lives = !await this.#isFree(writer))
    return lives
  }

  async #isFree(writer: string): Promise<boolean> {
    const { files, dir } = this.#ports
    const path = `${dir}/${writer}.lock`
    if (!await files.info(path)) return true
    const release = await files.lock(path)
    await release?.()
    return release !== undefined
  }

  /** What processes left that were killed. */
  async #sweepLocks(trails: readonly string[]): Promise<void> {
    const { files, dir, clock } = this.#ports
    const used = new Set(trails.map((name) => NAME.exec(name)![2]!))
    for (const name of await files.list(dir)) {
      const writer = LOCK.exec(name)?.[1]
      if (!writer || used.has(writer) || writer === this.#writer) continue
      const info = await files.info(`${dir}/${name}`)
      const old = info && clock.now() - info.modifiedMs > LOCK_KEPT_MS
      if (old && await this.#isFree(writer)) await files.remove(`${dir}/${name}`)
    }
  }

  #grown(bytes: number): void {
    this.#bytesSince += bytes
    if (this.#bytesSince < PRUNE_BYTES && this.#trailsSince < PRUNE_TRAILS) return
    // What cannot be removed now is looked for again.
    this.#pruning ??= this.prune().catch(() => {}).finally(() => void (this.#pruning = undefined))
  }

  async #names(): Promise<string[]> {
    const names = await this.#ports.files.list(this.#ports.dir)
    return names.filter((name) => NAME.test(name)).sort()
  }
}

/** What a trail says of itself before its entries. Throws what `readTrail` throws. */
function headerOf(head: Uint8Array): TrailHeader {
  // What is wrong behind it is for "verify" to say, and no reason not to be listed.
  const fixed = TRAIL_HEADER_BYTES_MAX - 255
  const { session, initiator, responder, role, start, service } = readTrail(
    head.subarray(0, fixed + (head[fixed - 1] ?? 0)),
  )
  return { session, initiator, responder, role, start, service }
}

interface WriterPorts {
  open(): Promise<Appender>
  bytesMax: number
  written(bytes: number): void
  problem(error: TunnelError): void
  closed(error: TunnelError | undefined): void
}

/** Writes one trail in the order in which events are told. */
class TrailWriter implements Recording {
  readonly #ports: WriterPorts
  #file: Appender | undefined
  #early: Uint8Array[] = []
  #bytes = 0
  #reported = 0
  #error: TunnelError | undefined
  #closed = false
  readonly #opened: Promise<void>
  readonly done: Promise<void>
  #settle!: () => void

  constructor(header: Uint8Array, ports: WriterPorts) {
    this.#ports = ports
    this.done = new Promise((resolve) => void (this.#settle = resolve))
    this.#opened = ports.open().then((file) => {
      this.#file = file
      for (const bytes of this.#early.splice(0)) file.write(bytes)
      ports.written(0)
    }).catch((error) => this.#fail(asTunnelError(error, 'audit/open')))
    this.#write(header)
  }

  event(event: TranscriptEvent): void {
    if (this.#error || this.#closed) return
    this.#write(encodeTrailEntry(event))
    if (event.kind === 'checkpoint') void this.#sync()
  }

  closed(): void {
    if (this.#closed) return
    this.#closed = true
    void this.#opened.then(async () => {
      await this.#file?.close()
      this.#look()
      this.#ports.closed(this.#error)
      this.#settle()
    })
  }

  #write(bytes: Uint8Array): void {
    const { bytesMax } = this.#ports
    const most = this.#file ? bytesMax : Math.min(bytesMax, EARLY_BYTES_MAX)
    if (this.#bytes + bytes.length > most) {
      return this.#fail(
        new TunnelError(
          'audit/size',
          `Cannot go on with the trail of a session: found ${this.#bytes} bytes, which is the most`,
          { hint: 'The session goes on; a new session has a new trail.' },
        ),
      )
    }
    this.#bytes += bytes.length
    if (this.#file) this.#file.write(bytes)
    else this.#early.push(bytes)
  }

  async #sync(): Promise<void> {
    await this.#opened
    await this.#file?.sync()
    this.#look()
    this.#ports.written(this.#bytes - this.#reported)
    this.#reported = this.#bytes
  }

  #look(): void {
    if (this.#file?.error) this.#fail(this.#file.error)
  }

  #fail(error: TunnelError): void {
    if (this.#error) return
    this.#error = error
    this.#ports.problem(error)
  }
}
