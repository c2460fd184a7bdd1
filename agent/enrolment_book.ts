/**
 * How many machines may still enroll by a secret: a file with the terms in its first line and a line
 * for each machine that came, so that a restart counts on where the last run ended.
 *
 *   {"authority": KEY, "count": N, "expires": ISO 8601}
 *   KEY ISO 8601
 */
import { text, utf8 } from '../core/bytes.ts'
import type { Clock } from '../core/clock.ts'
import { TunnelError } from '../core/errors.ts'
import { parseKey } from '../core/key.ts'
import type { Files } from './world.ts'

/** Of one secret. */
export const ENROLMENTS_MAX = 10_000
/** A machine that lost the answer asks again. */
const TRIES_MAX = 3
const FILE_BYTES_MAX = 4_194_304

export interface BookTerms {
  /** KEY of the authority. */
  authority: string
  count: number
  /** Milliseconds since 1970. */
  expires: number
}

export interface BookPorts {
  path: string
  files: Pick<Files, 'read' | 'write' | 'append'>
  clock: Pick<Clock, 'now'>
  /** Runs alone among all writers of the file. */
  locked<T>(run: () => Promise<T>): Promise<T>
}

export class EnrolmentBook {
  readonly terms: BookTerms
  readonly #ports: BookPorts
  #came: number

  private constructor(ports: BookPorts, parts: { terms: BookTerms; came: number }) {
    this.#ports = ports
    this.terms = parts.terms
    this.#came = parts.came
  }

  /**
   * The book of a secret, begun with `terms` or, where it was begun before, with those of then. Throws
   * `enroll/begun` when both are there and differ, `enroll/terms` when there are none, `enroll/book`.
   */
  static async open(
    ports: BookPorts,
    { authority, count, expires }: {
      authority: string
      count: number | undefined
      expires: number | undefined
    },
  ): Promise<EnrolmentBook> {
    return await ports.locked(async () => {
      const kept = await readBook(ports)
      if (kept) {
        const again = count !== undefined || expires !== undefined
        if (kept.terms.authority !== authority || again) throw begun(ports.path, kept.terms)
        return new EnrolmentBook(ports, { terms: kept.terms, came: kept.keys.size })
      }
      if (count === undefined || expires === undefined) throw noTerms()
      const terms = { authority, count, expires }
      const first = { authority, count, expires: new Date(expires).toISOString() }
      await ports.files.write(ports.path, utf8(`${JSON.stringify(first)}\n`))
      return new EnrolmentBook(ports, { terms, came: 0 })
    })
  }

  /** Machines that may still come. */
  get left(): number {
    return Math.max(0, this.terms.count - this.#came)
  }

  /**
   * Counts a machine, on disk; one that came before is let in again, three times in all. Throws
   * `enroll/expired`, `enroll/count`.
   */
  async enter(key: string): Promise<void> {
    const { files, path, clock, locked } = this.#ports
    await locked(async () => {
      const kept = await readBook(this.#ports)
      if (!kept) throw noBook(path)
      const now = clock.now()
      if (now >= kept.terms.expires) throw over('expired', 'it has expired')
      const tries = kept.keys.get(key) ?? 0
      if (tries >= TRIES_MAX || (tries === 0 && kept.keys.size >= kept.terms.count)) {
        throw over('count', 'as many as may have come')
      }
      await files.append(path, utf8(`${key} ${new Date(now).toISOString()}\n`))
      this.#came = kept.keys.size + (tries === 0 ? 1 : 0)
    })
  }
}

async function readBook(
  { files, path }: BookPorts,
): Promise<{ terms: BookTerms; keys: Map<string, number> } | undefined> {
  const content = await files.read(path, { bytesMax: FILE_BYTES_MAX })
  if (content === undefined) return undefined
  try {
    const [head, ...lines] = text(content).split('\n')
    const { authority, count, expires } = JSON.parse(head!) as Record<string, unknown>
    const untilMs = Date.parse(String(expires))
    parseKey(String(authority))
    if (!Number.isSafeInteger(count) || !(untilMs > 0)) throw new Error('no terms')
    const keys = new Map<string, number>()
    for (const line of lines) {
      // One that broke off counts too, as whoever it was: never one too many.
      const key = line.split(' ')[0]!
      if (key !== '') keys.set(key, (keys.get(key) ?? 0) + 1)
    }
    const terms = { authority: String(authority), count: count as number, expires: untilMs }
    return { terms, keys }
  } catch (cause) {
    throw new TunnelError('enroll/book', `Cannot read ${path}: found no list of enrolments`, {
      hint: 'Restore it, or begin with another --secret-file.',
      cause,
    })
  }
}

function over(reason: string, found: string): TunnelError {
  return new TunnelError(`enroll/${reason}`, `Cannot enroll that machine: ${found}`)
}

function begun(path: string, { count, expires }: BookTerms): TunnelError {
  const until = new Date(expires).toISOString()
  return new TunnelError(
    'enroll/begun',
    `Cannot begin anew with that secret: it is good for ${count} machines until ${until}`,
    { hint: `Leave out --count and --expires, or take another --secret-file. (${path})` },
  )
}

function noTerms(): TunnelError {
  return new TunnelError(
    'enroll/terms',
    'Cannot begin with a new secret: expected --count and --expires',
    { hint: 'For example: --count 200 --expires 1h' },
  )
}

function noBook(path: string): TunnelError {
  return new TunnelError('enroll/book', `Cannot count: ${path} is gone`)
}
