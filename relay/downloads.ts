/**
 * The files of a release as HTTP hands them out: `/download/NAME`. Only names that a release has, so
 * a folder that holds more gives away no more; so many at once, from all and from one address; none
 * that nobody reads. Where the relay has no files, it sends on to a release elsewhere.
 *
 * One range is served, so that what broke off can go on (RFC 9110 §14); more in one request are none.
 */
import type { Clock, Timer } from '../core/clock.ts'
import { Problem } from './problem.ts'

/** Files of a release; a path has no place in it. */
const NAME =
  /^(?:SHA256SUMS(?:\.minisig)?|THIRD_PARTY_LICENSES|sotto[.-][a-z0-9][a-z0-9._-]{0,63})$/
/** Larger than any program of ours; a larger file is not handed out. */
export const DOWNLOAD_BYTES_MAX = 2 ** 29
/** Running downloads of all visitors, and of one address. */
export const DOWNLOADS_MAX = 64
export const DOWNLOADS_PER_ADDRESS_MAX = 8
/** Who has read nothing for so long has gone. */
export const DOWNLOAD_STALL_MS = 60_000
const CHUNK_BYTES = 65_536

/** Files of a folder as a runtime gives them. */
export interface ReleaseFiles {
  /** Undefined where there is no regular file of that name; a link is none. */
  open(name: string): Promise<ReleaseFile | undefined>
}

/** An open file; whoever opened it closes it. */
export interface ReleaseFile {
  readonly bytes: number
  readonly modifiedMs: number
  /** At most `length` bytes from `offset` on, fewer at the end only. */
  read(offset: number, length: number): Promise<Uint8Array>
  close(): Promise<void>
}

export class Downloads {
  readonly #files: ReleaseFiles
  readonly #clock: Clock
  readonly #running = new Map<string, number>()
  #count = 0

  constructor(files: ReleaseFiles, clock: Clock) {
    this.#files = files
    this.#clock = clock
  }

  get running(): number {
    return this.#count
  }

  /** Throws a 404 on what is no file of a release, a 416 on a range outside, a 503 when too many run. */
  async answer(
    name: string,
    { request, address }: { request: Request; address: string },
  ): Promise<Response> {
    if (!NAME.test(name)) throw unknown()
    const leave = this.#enter(address)
    let file: ReleaseFile | undefined
    try {
      file = await this.#files.open(name)
      if (!file || file.bytes > DOWNLOAD_BYTES_MAX) throw unknown()
      const { status, headers, first, end } = plan(file, request)
      if (status === 304 || request.method === 'HEAD') {
        await file.close()
        leave()
        return new Response(null, { status, headers })
      }
      return new Response(this.#body(file, { first, end, leave }), { status, headers })
    } catch (error) {
      leave()
      await file?.close()
      throw error
    }
  }

  #enter(address: string): () => void {
    const mine = this.#running.get(address) ?? 0
    if (this.#count >= DOWNLOADS_MAX || mine >= DOWNLOADS_PER_ADDRESS_MAX) {
      throw new Problem(503, {
        code: 'download/busy',
        message: 'Cannot hand out the file: too many downloads run',
        headers: { 'retry-after': '10' },
      })
    }
    this.#running.set(address, mine + 1)
    this.#count++
    let left = false
    return () => {
      if (left) return
      left = true
      this.#count--
      const now = this.#running.get(address)! - 1
      if (now === 0) this.#running.delete(address)
      else this.#running.set(address, now)
    }
  }

  /** The bytes from `first` to before `end`, read when they are asked for. */
  #body(
    file: ReleaseFile,
    { first, end, leave }: { first: number; end: number; leave: () => void },
  ): ReadableStream<Uint8Array> {
    let at = first
    let stall: Timer | undefined
    let over = false
    const finish = async (): Promise<void> => {
      if (over) return
      over = true
      stall?.cancel()
      leave()
      await file.close()
    }
    const wait = (controller: ReadableStreamDefaultController<Uint8Array>): void => {
      stall = this.#clock.after(DOWNLOAD_STALL_MS, () => {
        controller.error(new Error('nobody reads the download'))
        void finish()
      })
    }
    return new ReadableStream<Uint8Array>({
      start: (controller) => wait(controller),
      pull: async (controller) => {
        stall?.cancel()
        try {
          const bytes = await file.read(at, Math.min(CHUNK_BYTES, end - at))
          // The visitor went while it was read.
          if (over) return
          // Cut while it was read: an end that looks whole would be a lie.
          if (bytes.length === 0 && at < end) throw new Error('the file has become shorter')
          at += bytes.length
          if (bytes.length > 0) controller.enqueue(bytes)
          if (at < end) return wait(controller)
          await finish()
          controller.close()
        } catch (error) {
          if (over) return
          await finish()
          controller.error(error)
        }
      },
      cancel: finish,
    }, { highWaterMark: 1 })
  }
}

/** Where a release elsewhere has the file. Throws a 404 on what is no file of a release. */
export function releaseLocation(releaseUrl: string, name: string): string {
  if (!NAME.test(name)) throw unknown()
  return `${releaseUrl.replace(/\/+$/, '')}/${name}`
}

function plan(
  { bytes, modifiedMs }: ReleaseFile,
  { headers: asked }: Request,
): { status: number; headers: Record<string, string>; first: number; end: number } {
  const etag = `"${bytes.toString(36)}-${Math.trunc(modifiedMs).toString(36)}"`
  const headers = {
    etag,
    'accept-ranges': 'bytes',
    // A name says no version, so a kept copy is good only while the relay says so.
    'cache-control': 'no-cache',
    'content-type': 'application/octet-stream',
  }
  const whole = { first: 0, end: bytes }
  if (asked.get('if-none-match') === etag) return { status: 304, headers, ...whole }
  const condition = asked.get('if-range')
  const range = condition === null || condition === etag
    ? rangeOf(asked.get('range'), bytes)
    : undefined
  if (!range) {
    return { status: 200, headers: { ...headers, 'content-length': String(bytes) }, ...whole }
  }
  const { first, end } = range
  return {
    status: 206,
    headers: {
      ...headers,
      'content-range': `bytes ${first}-${end - 1}/${bytes}`,
      'content-length': String(end - first),
    },
    first,
    end,
  }
}

/** Undefined where there is none that we serve; throws a 416 on one outside of the file. */
function rangeOf(
  header: string | null,
  bytes: number,
): { first: number; end: number } | undefined {
  const [, from, to] = /^bytes=(\d{0,15})-(\d{0,15})$/.exec(header ?? '') ?? []
  if (from === undefined || to === undefined || (from === '' && to === '')) return undefined
  const first = from === '' ? Math.max(0, bytes - Number(to)) : Number(from)
  const end = from === '' || to === '' ? bytes : Math.min(bytes, Number(to) + 1)
  if (from !== '' && to !== '' && Number(to) < first) return undefined
  if (first < end) return { first, end }
  throw new Problem(416, {
    code: 'download/range',
    message: `Cannot hand out that range: found bytes after the end, expected below ${bytes}`,
    headers: { 'content-range': `bytes */${bytes}` },
  })
}

function unknown(): Problem {
  return new Problem(404, {
    code: 'download/unknown',
    message: 'Cannot hand out the file: there is none of that name in this release',
    hint: 'SHA256SUMS lists those that there are.',
  })
}
