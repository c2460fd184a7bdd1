/**
 * What this agent keeps of its sessions, so that it can be shown later what passed: one trail for
 * each session, append-only, on the disk at each checkpoint. The oldest give way when all together
 * grow too large; one that is being written never does. core/trail.ts has the bytes.
 */
import { EMPTY, hex } from '../core/bytes.ts'
import type { Clock } from '../core/clock.ts'
import { TunnelError } from '../core/errors.ts'
import type { Role } from '../core/chain.ts'
import { encodeTrailEntry, encodeTrailHeader, TRAIL_HEADER_BYTES_MAX } from '../core/trail.ts'
import { readTrail } from '../core/trail.ts'
import type { TrailHeader } from '../core/trail.ts'
import type { TranscriptEvent } from '../core/transcript.ts'
import type { Trail } from './peers.ts'
import type { Appender, Files } from './world.ts'

/** All trails together. */
export const TRAILS_BYTES_MAX = 268_435_456
/** One trail, when it is read. */
export const TRAIL_BYTES_MAX = 134_217_728
const TRAILS_MAX = 10_000
const SUFFIX = '.trail'

export interface TrailPorts {
  /** Absolute. */
  dir: string
  files: Pick<Files, 'appender' | 'info' | 'list' | 'read' | 'remove'>
  clock: Pick<Clock, 'now'>
  /** A trail could not be written; the session goes on. */
  problem(error: TunnelError): void
  bytesMax?: number
}

/** One session to be recorded. */
export interface TrailSession {
  /** 16 bytes. */
  session: Uint8Array
  initiator: Uint8Array
  responder: Uint8Array
  role: Role
  service: string
}

export interface KeptTrail extends TrailHeader {
  path: string
  bytes: number
}

export class Trails {
  readonly #ports: TrailPorts
  readonly #open = new Set<string>()

  constructor(ports: TrailPorts) {
    this.#ports = ports
  }

  /** Begins the trail of a session; what comes before the file is open waits. */
  begin(of: TrailSession): Trail {
    const { clock, dir } = this.#ports
    const start = clock.now()
    const when = new Date(start).toISOString().replace(/\D/g, '').slice(0, 14)
    const name = `${when}-${hex(of.session)}${SUFFIX}`
    const path = `${dir}/${name}`
    this.#open.add(name)
    const writer = new TrailWriter(encodeTrailHeader({ ...of, start }), {
      open: async () => {
        await this.prune()
        return await this.#ports.files.appender(path)
      },
      problem: (error) => this.#ports.problem(error),
      closed: () => this.#open.delete(name),
    })
    return writer
  }

  /** Every trail whose beginning can be read, the newest first. */
  async list(): Promise<KeptTrail[]> {
    const { files, dir } = this.#ports
    const kept: KeptTrail[] = []
    for (const name of (await this.#names()).toReversed()) {
      const path = `${dir}/${name}`
      const bytes = (await files.info(path))?.bytes ?? 0
      try {
        const head = await files.read(path, { bytesMax: TRAIL_HEADER_BYTES_MAX, head: true })
        kept.push({ ...readHeader(head ?? EMPTY), path, bytes })
      } catch {
        // Cut before its header was written: there is nothing in it to show.
      }
    }
    return kept
  }

  /** The one whose session begins with these hex digits. Throws `audit/unknown`, `audit/ambiguous`. */
  async find(session: string): Promise<{ path: string; bytes: Uint8Array }> {
    const { files, dir } = this.#ports
    const names = (await this.#names()).filter((name) =>
      name.split('-')[1]?.startsWith(session.toLowerCase())
    )
    if (names.length !== 1 || !/^[0-9a-f]+$/i.test(session)) {
      const found = names.length === 0 ? 'no trail' : `${names.length} trails`
      throw new TunnelError(
        names.length === 0 ? 'audit/unknown' : 'audit/ambiguous',
        `Cannot take the session "${session}": found ${found}, expected one`,
        { hint: 'See "sotto audit list".' },
      )
    }
    const path = `${dir}/${names[0]}`
    const bytes = await files.read(path, { bytesMax: TRAIL_BYTES_MAX })
    if (bytes) return { path, bytes }
    throw new TunnelError('audit/unknown', `Cannot read ${path}: it is gone`)
  }

  /** Removes the oldest until the rest is small enough. */
  async prune(): Promise<void> {
    const { files, dir, bytesMax = TRAILS_BYTES_MAX } = this.#ports
    const names = await this.#names()
    const sizes = await Promise.all(
      names.map(async (name) => (await files.info(`${dir}/${name}`))?.bytes ?? 0),
    )
    let total = sizes.reduce((sum, bytes) => sum + bytes, 0)
    let count = names.length
    for (const [i, name] of names.entries()) {
      if (total <= bytesMax && count < TRAILS_MAX) return
      if (this.#open.has(name)) continue
      await files.remove(`${dir}/${name}`)
      total -= sizes[i]!
      count--
    }
  }

  async #names(): Promise<string[]> {
    const names = await this.#ports.files.list(this.#ports.dir)
    return names.filter((name) => name.endsWith(SUFFIX)).sort()
  }
}

/** What a trail says of itself before its entries. Throws what `readTrail` throws. */
function readHeader(head: Uint8Array): TrailHeader {
  const { session, initiator, responder, role, start, service } = readTrail(head)
  return { session, initiator, responder, role, start, service }
}

/** Writes one trail in the order in which events are told. */
class TrailWriter implements Trail {
  readonly #problem: (error: TunnelError) => void
  readonly #closed: () => void
  #file: Appender | undefined
  #early: Uint8Array[] = []
  #told = false
  readonly #opened: Promise<void>

  constructor(
    header: Uint8Array,
    ports: { open(): Promise<Appender>; problem(error: TunnelError): void; closed(): void },
  ) {
    this.#problem = ports.problem
    this.#closed = ports.closed
    this.#early.push(header)
    this.#opened = ports.open().then(
      (file) => {
        this.#file = file
        for (const bytes of this.#early.splice(0)) file.write(bytes)
      },
      (error) => this.#tell(error as TunnelError),
    )
  }

  event(event: TranscriptEvent): void {
    if (this.#told) return
    const entry = encodeTrailEntry(event)
    if (this.#file) this.#file.write(entry)
    else this.#early.push(entry)
    if (event.kind === 'checkpoint') void this.#sync()
  }

  closed(): void {
    void this.#opened.then(async () => {
      await this.#file?.close()
      if (this.#file?.error) this.#tell(this.#file.error)
      this.#closed()
    })
  }

  async #sync(): Promise<void> {
    await this.#opened
    await this.#file?.sync()
    if (this.#file?.error) this.#tell(this.#file.error)
  }

  #tell(error: TunnelError): void {
    if (this.#told) return
    this.#told = true
    this.#early = []
    this.#problem(error)
  }
}
