/**
 * How other commands of the same person talk to a running "sotto up": a socket of this machine, mode
 * 0600 in a folder of mode 0700, so that nobody else can open it; on Windows a named pipe.
 *
 *   request   one line of JSON, `{"do": "status" | "logs" | "reload" | "down", …}`
 *   answer    lines of JSON, the last one `{"event": "end"}` or `{"event": "error", "code", "message"}`
 *
 *   state folder/run/ID.sock   the socket; ID is of the configuration's path
 *   state folder/run/ID.lock   held while that configuration runs
 */
import { hex, text, utf8 } from '../core/bytes.ts'
import { asTunnelError, isTunnelError, TunnelError } from '../core/errors.ts'
import type { Conn, Listener } from '../core/socket.ts'
import type { World } from './world.ts'

/** Programs that are connected at once; further ones are closed. */
const CLIENTS_MAX = 16
const REQUEST_BYTES_MAX = 4096
const REQUEST_MS_MAX = 5_000
/** Waiting for a reader that does not read; then it is left. */
const BACKLOG_BYTES_MAX = 1_048_576
/** One line of an answer. */
const LINE_LENGTH_MAX = 262_144
const CONNECT_MS = 2_000
const ID_LENGTH = 12
const ID = /^([0-9a-f]{12})\.lock$/

/** What a request is answered through. */
export interface Answer {
  line(value: object): void
  end(): void
  /** The program that asked went away. */
  readonly left: Promise<void>
}

export type ControlHandler = (request: Record<string, unknown>, answer: Answer) => Promise<void>

/** Stays until `close`. Throws `config/running` when another process has this configuration. */
export async function openControl(
  world: World,
  { stateDir, path, handler }: { stateDir: string; path: string; handler: ControlHandler },
): Promise<{ close(): Promise<void> }> {
  const id = controlId(world, path)
  const release = await world.files.lock(`${stateDir}/run/${id}.lock`)
  if (!release) {
    throw new TunnelError(
      'config/running',
      `Cannot run ${path}: another "sotto up" runs it already`,
      {
        hint:
          'See "sotto status"; "sotto down" ends it. A change of the file is taken up as it is.',
      },
    )
  }
  try {
    const folder = await world.files.info(`${stateDir}/run`)
    // Whoever owns the folder can put a socket of their own in the place of ours.
    if (folder && !folder.own) {
      throw new TunnelError(
        'profile/permissions',
        `Cannot use ${stateDir}/run: it belongs to another user`,
        { hint: 'Run as that user, or choose another folder with SOTTO_HOME' },
      )
    }
    const server = new ControlServer(world, handler)
    const listener = await world.net.listenLocal(
      socketPath(stateDir, id),
      (conn) => server.accepted(conn),
    )
    return { close: () => server.close(listener, release) }
  } catch (error) {
    await release()
    throw error
  }
}

class ControlServer {
  readonly #world: World
  readonly #handler: ControlHandler
  readonly #clients = new Set<Conn>()

  constructor(world: World, handler: ControlHandler) {
    this.#world = world
    this.#handler = handler
  }

  async close(listener: Listener, release: () => Promise<void>): Promise<void> {
    await listener.close()
    for (const conn of this.#clients) conn.end()
    await release()
  }

  accepted(conn: Conn): void {
    if (this.#clients.size >= CLIENTS_MAX) return conn.abort()
    this.#clients.add(conn)
    const late = this.#world.clock.after(REQUEST_MS_MAX, () => conn.abort())
    let leave!: () => void
    const left = new Promise<void>((resolve) => void (leave = resolve))
    const parts: Uint8Array[] = []
    let bytesIn = 0
    let asked = false
    conn.handle({
      data: (bytes) => {
        if (asked) return
        parts.push(bytes)
        bytesIn += bytes.length
        const at = bytes.indexOf(0x0a)
        const length = at < 0 ? bytesIn : bytesIn - bytes.length + at
        if (at < 0 && length <= REQUEST_BYTES_MAX) return
        late.cancel()
        asked = true
        void this.#answer(conn, { parts, isWhole: length <= REQUEST_BYTES_MAX, left })
      },
      // Whoever followed went away; whoever asks and half-closes still gets an answer.
      end: () => asked ? leave() : conn.abort(),
      closed: () => {
        late.cancel()
        this.#clients.delete(conn)
        leave()
      },
    })
  }

  async #answer(
    conn: Conn,
    { parts, isWhole, left }: { parts: Uint8Array[]; isWhole: boolean; left: Promise<void> },
  ): Promise<void> {
    const line = (value: object): void => {
      // Whoever does not read is left, before it costs the process its memory.
      if (conn.buffered() > BACKLOG_BYTES_MAX) return conn.abort()
      conn.write(utf8(`${JSON.stringify(value)}\n`))
    }
    try {
      const request = isWhole ? readRequest(parts) : undefined
      if (!request) {
        throw new TunnelError('control/request', 'Cannot answer: found no request of one line')
      }
      await this.#handler(request, { line, end: () => line({ event: 'end' }), left })
    } catch (error) {
      line({ event: 'error', ...asTunnelError(error, 'cli/fault').toJSON() })
    }
    conn.end()
  }
}

function readRequest(parts: readonly Uint8Array[]): Record<string, unknown> | undefined {
  try {
    const words = parts.map((part) => text(part)).join('').split('\n')[0]!
    const request: unknown = JSON.parse(words)
    return typeof request === 'object' && request !== null && !Array.isArray(request)
      ? request as Record<string, unknown>
      : undefined
  } catch {
    return undefined
  }
}

/** Ids of configurations that this profile has run; those that answer run now. */
export async function controlIds(
  world: Pick<World, 'files'>,
  stateDir: string,
): Promise<string[]> {
  const names = await world.files.list(`${stateDir}/run`)
  return names.flatMap((name) => ID.exec(name)?.[1] ?? [])
}

/** The id under which a configuration runs. */
export function controlId({ crypto }: Pick<World, 'crypto'>, path: string): string {
  return hex(crypto.sha256(utf8(path))).slice(0, ID_LENGTH)
}

/**
 * Asks one running process; each line of the answer is given to `each` as it comes. False where nobody
 * answers there. Throws what it answered, and `control/broken` when it went away in the middle.
 */
export async function askControl(
  world: Pick<World, 'net' | 'signal'>,
  { stateDir, id, request }: { stateDir: string; id: string; request: object },
  each: (line: Record<string, unknown>) => void,
): Promise<boolean> {
  let conn: Conn
  try {
    conn = await world.net.connectDuplex({ path: socketPath(stateDir, id), timeoutMs: CONNECT_MS })
  } catch (error) {
    if (isTunnelError(error) && error.code.startsWith('net/')) return false
    throw error
  }
  const stop = (): void => conn.abort()
  world.signal.addEventListener('abort', stop, { once: true })
  try {
    await read(conn, { request, each })
  } finally {
    world.signal.removeEventListener('abort', stop)
  }
  return true
}

function read(
  conn: Conn,
  { request, each }: { request: object; each: (line: Record<string, unknown>) => void },
): Promise<void> {
  return new Promise((resolve, reject) => {
    const decoder = new TextDecoder()
    let rest = ''
    const fail = (error: TunnelError): void => {
      reject(error)
      conn.abort()
    }
    conn.handle({
      data: (bytes) => {
        const lines = (rest + decoder.decode(bytes, { stream: true })).split('\n')
        rest = lines.pop()!
        if (rest.length > LINE_LENGTH_MAX) return fail(broken('a line without an end'))
        for (const words of lines) {
          let line: Record<string, unknown>
          try {
            line = JSON.parse(words)
          } catch {
            return fail(broken('a line that is no JSON'))
          }
          if (line['event'] === 'error') return fail(errorOf(line))
          if (line['event'] === 'end') {
            resolve()
            return conn.end()
          }
          each(line)
        }
      },
      end: () => conn.end(),
      closed: () => reject(broken("its end before the answer's")),
    })
    conn.write(utf8(`${JSON.stringify(request)}\n`))
  })
}

function broken(found: string): TunnelError {
  return new TunnelError('control/broken', `Cannot hear the running process: found ${found}`)
}

function errorOf({ code, message, hint }: Record<string, unknown>): TunnelError {
  return new TunnelError(
    String(code).includes('/') ? String(code) as `${string}/${string}` : 'control/broken',
    String(message),
    typeof hint === 'string' ? { hint } : {},
  )
}

/** A drive letter is Windows, which has pipes in a room of their own. */
function socketPath(stateDir: string, id: string): string {
  if (!/^[A-Za-z]:/.test(stateDir)) return `${stateDir}/run/${id}.sock`
  return `\\\\.\\pipe\\sotto-${stateDir.replace(/[^A-Za-z0-9]+/g, '-')}-${id}`
}
