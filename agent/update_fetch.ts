/**
 * Files of a release over HTTPS, as bytes that nobody is believed for: a bound on each length before
 * anything is kept, redirects to https alone and few of them, an end to a server that drips, and going
 * on where a connection broke off (RFC 9110 §14). Nothing of ours is sent but the path.
 */
import { concat, utf8 } from '../core/bytes.ts'
import type { Clock, Timer } from '../core/clock.ts'
import { asTunnelError, isTunnelError, TunnelError } from '../core/errors.ts'
import type { Conn } from '../core/socket.ts'
import { VERSION } from './version.ts'

const HEAD_BYTES_MAX = 16_384
const REDIRECTS_MAX = 5
const LOCATION_CHARS_MAX = 2048
/** Connections for one file. */
const TRIES_MAX = 5
const CHUNK_LINE_BYTES_MAX = 128

export interface FetchLimits {
  /** No byte for so long: broken off. */
  readonly stallMs: number
  /** At least `bytes` in each `ms`, so that a drip has an end. */
  readonly pace: { readonly bytes: number; readonly ms: number }
  /** Between two tries. */
  readonly pauseMs: number
}

export const FETCH_LIMITS: FetchLimits = {
  stallMs: 30_000,
  pace: { bytes: 65_536, ms: 60_000 },
  pauseMs: 1_000,
}

export interface Fetching {
  readonly clock: Clock
  readonly signal: AbortSignal
  readonly limits?: FetchLimits
  /** A connection on which the server of that URL has shown who it is. */
  connect(url: URL): Promise<Conn>
}

export interface Sink {
  /** So many bytes in all, where the server says it. */
  length?(bytes: number): void
  /** While the promise is open nothing more is read. */
  data(bytes: Uint8Array): Promise<void>
  /** What came so far is void: it begins again. */
  restart(): Promise<void>
}

interface Head {
  status: number
  fields: ReadonlyMap<string, string>
}

/** A small file as a whole. Throws `update/…`. */
export async function fetchSmall(
  url: URL,
  { bytesMax, ...fetching }: Fetching & { bytesMax: number },
): Promise<Uint8Array> {
  let parts: Uint8Array[] = []
  await fetchFile(url, {
    ...fetching,
    bytesMax,
    sink: {
      data: (bytes) => Promise.resolve(void parts.push(bytes)),
      restart: () => Promise.resolve(void (parts = [])),
    },
  })
  return concat(...parts)
}

/** Resolves with the bytes of the file when all have been taken. Throws `update/…`, what `sink` throws. */
export async function fetchFile(
  url: URL,
  options: Fetching & { bytesMax: number; sink: Sink },
): Promise<number> {
  const run = new Run(url, options)
  for (let attempt = 1;; attempt++) {
    try {
      return await run.once()
    } catch (error) {
      if (!isTunnelError(error, 'update/broken') || attempt >= TRIES_MAX) throw error
      await pause(options)
    }
  }
}

function pause({ clock, signal, limits = FETCH_LIMITS }: Fetching): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = (): void => {
      timer.cancel()
      reject(stopped())
    }
    const timer = clock.after(limits.pauseMs, () => {
      signal.removeEventListener('abort', stop)
      resolve()
    })
    signal.addEventListener('abort', stop, { once: true })
  })
}

/** One file over as many connections as it takes. */
class Run {
  readonly #options: Fetching & { bytesMax: number; sink: Sink }
  readonly #url: URL
  #have = 0
  #etag: string | undefined

  constructor(url: URL, options: Fetching & { bytesMax: number; sink: Sink }) {
    this.#url = url
    this.#options = options
  }

  async once(): Promise<number> {
    let url = this.#url
    for (let hop = 0; hop <= REDIRECTS_MAX; hop++) {
      const reader = await this.#ask(url)
      try {
        const { status, fields } = await reader.head()
        if ([301, 302, 303, 307, 308].includes(status)) {
          url = nextUrl(url, fields.get('location'))
          continue
        }
        await this.#begin(url, { status, fields })
        return await this.#body(reader, fields)
      } finally {
        reader.close()
      }
    }
    throw refused(this.#url, `more than ${REDIRECTS_MAX} redirects`)
  }

  async #ask(url: URL): Promise<Reader> {
    const { signal } = this.#options
    if (signal.aborted) throw stopped()
    // `If-Range` makes a file that has changed come as a whole.
    const range = this.#have > 0 && this.#etag !== undefined
      ? [`Range: bytes=${this.#have}-`, `If-Range: ${this.#etag}`]
      : []
    const lines = [
      `GET ${url.pathname}${url.search} HTTP/1.1`,
      `Host: ${url.host}`,
      'Accept: application/octet-stream, */*',
      'Accept-Encoding: identity',
      `User-Agent: sotto/${VERSION}`,
      'Connection: close',
      ...range,
    ]
    let conn: Conn
    try {
      conn = await this.#options.connect(url)
    } catch (error) {
      // Names and certificates do not get better by asking again.
      throw isTunnelError(error) ? error : asTunnelError(error, 'update/unreachable')
    }
    const reader = new Reader(conn, url, this.#options)
    conn.write(utf8(`${lines.join('\r\n')}\r\n\r\n`))
    return reader
  }

  async #begin(url: URL, { status, fields }: Head): Promise<void> {
    const { sink, bytesMax } = this.#options
    if (fields.has('content-encoding') && fields.get('content-encoding') !== 'identity') {
      throw refused(url, 'a file that is encoded')
    }
    if (status === 206) {
      const range = /^bytes (\d{1,15})-\d{1,15}\/(\d{1,15})$/.exec(
        fields.get('content-range') ?? '',
      )
      if (Number(range?.[1]) !== this.#have) throw refused(url, 'another range than was asked for')
    } else if (status === 200) {
      if (this.#have > 0) await sink.restart()
      this.#have = 0
    } else if (status === 503 || status === 429 || status === 408 || status >= 502) {
      throw new TunnelError(
        'update/broken',
        `Cannot fetch ${shown(url)}: found HTTP status ${status}`,
      )
    } else throw refused(url, `HTTP status ${status}`)
    const etag = fields.get('etag')
    this.#etag = etag !== undefined && /^"[\x21-\x7e]{1,200}"$/.test(etag) ? etag : undefined
    const length = fields.get('content-length')
    if (length === undefined) return
    const whole = this.#have + Number(length)
    if (!/^\d{1,15}$/.test(length) || whole > bytesMax) throw tooLarge(url, bytesMax)
    sink.length?.(whole)
  }

  async #body(reader: Reader, fields: Head['fields']): Promise<number> {
    const { sink, bytesMax } = this.#options
    const take = async (bytes: Uint8Array): Promise<void> => {
      if (this.#have + bytes.length > bytesMax) throw tooLarge(this.#url, bytesMax)
      this.#have += bytes.length
      await sink.data(bytes)
    }
    const length = fields.get('content-length')
    if (/^chunked$/i.test(fields.get('transfer-encoding') ?? '')) {
      for (;;) {
        const line = await reader.line(CHUNK_LINE_BYTES_MAX)
        const size = /^([0-9a-f]{1,8})(?:[ \t]*;.*)?$/i.exec(line)
        if (!size) throw refused(this.#url, 'chunks that are none')
        const bytes = parseInt(size[1]!, 16)
        if (bytes === 0) return this.#have
        await reader.exactly(bytes, take)
        if (await reader.line(2) !== '') throw refused(this.#url, 'chunks that are none')
      }
    }
    if (length === undefined) throw refused(this.#url, 'a file without a length')
    await reader.exactly(Number(length), take)
    return this.#have
  }
}

/** Pulls bytes out of a connection; what is not asked for is not read. */
class Reader {
  readonly #conn: Conn
  readonly #url: URL
  readonly #clock: Clock
  readonly #limits: FetchLimits
  readonly #signal: AbortSignal
  #parts: Uint8Array[] = []
  #over: TunnelError | undefined
  #wake: (() => void) | undefined
  #stall: Timer | undefined
  #pace: Timer
  #paced = 0
  /** Time in which we were the slow ones does not count against the server. */
  #waiting = false
  readonly #stop = (): void => this.#end(stopped())

  constructor(conn: Conn, url: URL, { clock, signal, limits = FETCH_LIMITS }: Fetching) {
    this.#conn = conn
    this.#url = url
    this.#clock = clock
    this.#limits = limits
    this.#signal = signal
    signal.addEventListener('abort', this.#stop, { once: true })
    this.#pace = clock.after(limits.pace.ms, () => this.#measure())
    conn.handle({
      data: (bytes) => {
        this.#parts.push(bytes)
        this.#paced += bytes.length
        conn.pause()
        this.#wake?.()
      },
      end: () => this.#end(this.#broken('it ended early')),
      closed: (error) => this.#end(this.#broken(error?.message ?? 'it ended early')),
    })
  }

  async head(): Promise<Head> {
    let bytes = 0
    const line = async (): Promise<string> => {
      const words = await this.line(HEAD_BYTES_MAX - bytes)
      bytes += words.length + 2
      return words
    }
    const first = await line()
    const status = Number(/^HTTP\/1\.[01] ([2-5]\d\d)(?: |$)/.exec(first)?.[1])
    if (!status) throw refused(this.#url, 'no HTTP/1.1')
    const fields = new Map<string, string>()
    for (;;) {
      const words = await line()
      if (words === '') return { status, fields }
      const colon = words.indexOf(':')
      fields.set(words.slice(0, colon).trim().toLowerCase(), words.slice(colon + 1).trim())
    }
  }

  /** Without its end. */
  async line(bytesMax: number): Promise<string> {
    const parts: Uint8Array[] = []
    let length = 0
    for (;;) {
      const bytes = await this.#next()
      const at = bytes.indexOf(10)
      const part = at < 0 ? bytes : bytes.subarray(0, at)
      length += part.length
      if (length > bytesMax + 1) throw refused(this.#url, 'a line that is too long')
      parts.push(part)
      if (at < 0) continue
      if (at + 1 < bytes.length) this.#parts.unshift(bytes.subarray(at + 1))
      return new TextDecoder('latin1').decode(concat(...parts)).replace(/\r$/, '')
    }
  }

  async exactly(length: number, take: (bytes: Uint8Array) => Promise<void>): Promise<void> {
    for (let left = length; left > 0;) {
      const bytes = await this.#next()
      if (bytes.length > left) this.#parts.unshift(bytes.subarray(left))
      const part = bytes.subarray(0, left)
      left -= part.length
      await take(part)
    }
  }

  close(): void {
    this.#end(stopped())
    this.#conn.abort()
  }

  async #next(): Promise<Uint8Array> {
    while (this.#parts.length === 0) {
      if (this.#over) throw this.#over
      this.#stall = this.#clock.after(
        this.#limits.stallMs,
        () => this.#end(this.#broken('nothing came any more')),
      )
      this.#waiting = true
      this.#conn.resume()
      await new Promise<void>((resolve) => (this.#wake = resolve))
      this.#waiting = false
      this.#stall.cancel()
    }
    return this.#parts.shift()!
  }

  #measure(): void {
    const { bytes, ms } = this.#limits.pace
    if (this.#waiting && this.#paced < bytes) {
      return this.#end(
        new TunnelError(
          'update/slow',
          `Cannot fetch ${shown(this.#url)}: found ${this.#paced} bytes in ${ms / 1000} s`,
        ),
      )
    }
    this.#paced = 0
    this.#pace = this.#clock.after(ms, () => this.#measure())
  }

  #end(error: TunnelError): void {
    if (this.#over) return
    this.#over = error
    this.#pace.cancel()
    this.#stall?.cancel()
    this.#signal.removeEventListener('abort', this.#stop)
    this.#wake?.()
  }

  #broken(why: string): TunnelError {
    return new TunnelError('update/broken', `Cannot fetch ${shown(this.#url)}: ${why}`)
  }
}

/** Where a redirect leads: to https alone, with no secret in it. */
function nextUrl(from: URL, location: string | undefined): URL {
  if (location === undefined || location.length > LOCATION_CHARS_MAX) {
    throw refused(from, 'a redirect to nowhere')
  }
  let next: URL
  try {
    next = new URL(location, from)
  } catch {
    throw refused(from, 'a redirect to what is no URL')
  }
  if (next.protocol !== 'https:') throw refused(from, `a redirect to ${next.protocol}`)
  if (next.username !== '' || next.password !== '') {
    throw refused(from, 'a redirect with a secret in it')
  }
  return next
}

function shown(url: URL): string {
  return `${url.host}${url.pathname}`.slice(0, 200)
}

function refused(url: URL, found: string): TunnelError {
  return new TunnelError('update/refused', `Cannot fetch ${shown(url)}: found ${found}`)
}

function tooLarge(url: URL, bytesMax: number): TunnelError {
  return new TunnelError(
    'update/size',
    `Cannot fetch ${shown(url)}: found more than ${bytesMax} bytes`,
  )
}

function stopped(): TunnelError {
  return new TunnelError('update/stopped', 'Cannot go on with the download: it was stopped')
}
