/**
 * TCP and unix sockets. `connect` and `listen` use Bun's callback sockets, the fastest there are;
 * `connectDuplex` uses a stream socket, since only those can carry a `TLSSocket`.
 */
import { chmod, lstat, mkdir, rm } from 'node:fs/promises'
import * as dns from 'node:dns/promises'
import * as net from 'node:net'
import { dirname } from 'node:path'
import { DuplexConn } from '../../core/duplex_conn.ts'
import { asTunnelError, TunnelError } from '../../core/errors.ts'
import { nativeCallbacks, NativeConn } from '../../core/native_conn.ts'
import type { NativeShape } from '../../core/native_conn.ts'
import type { Conn, Listener } from '../../core/socket.ts'
import type { CarrierConn, Target } from '../world.ts'

const CONNECT_MS = 10_000
/** `sun_path` of the BSDs and macOS; Linux has four more. */
const LOCAL_PATH_BYTES_MAX = 103

type Callbacks = Bun.SocketHandler<NativeConn>

/** `Net.connect`. */
export function connect(target: Target & { timeoutMs?: number }): Promise<Conn> {
  return new Promise((resolve, reject) => {
    const conn = new NativeConn()
    const timeoutMs = target.timeoutMs ?? CONNECT_MS
    let waiting = true
    const timer = setTimeout(() => {
      waiting = false
      reject(connectError(target, { code: 'ETIMEDOUT' }, timeoutMs))
    }, timeoutMs)
    function fail(error: unknown): void {
      if (!waiting) return
      waiting = false
      clearTimeout(timer)
      reject(connectError(target, error, timeoutMs))
    }
    const table = nativeCallbacks()
    const socket: Callbacks = {
      ...(table as unknown as Callbacks),
      open(raw) {
        if (!waiting) {
          // It was given up: nobody would ever close it.
          raw.data = conn
          conn.opened(raw as unknown as NativeShape)
          raw.terminate()
          return
        }
        waiting = false
        clearTimeout(timer)
        table.open(raw as unknown as NativeShape)
        resolve(conn)
      },
      connectError: (_, error) => fail(error),
    }
    const rest = { allowHalfOpen: true, socket, data: conn }
    const opening = 'path' in target
      ? Bun.connect<NativeConn>({ unix: target.path, ...rest })
      : Bun.connect<NativeConn>({
        hostname: bareHost(target.host),
        port: target.port,
        ...rest,
      })
    opening.catch(fail)
  })
}

/** `Net.connectDuplex`. */
export function connectDuplex(target: Target & { timeoutMs?: number }): Promise<CarrierConn> {
  return openStream(target, (socket) => new DuplexConn(socket))
}

/**
 * A connected stream socket, as `made` of it the moment that it is open. One that is given up is closed, its
 * attempt with it. Throws as `Net.connect` does.
 */
export function openStream<T>(
  target: Target & { timeoutMs?: number },
  made: (socket: net.Socket) => T,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const timeoutMs = target.timeoutMs ?? CONNECT_MS
    const socket = net.connect({
      ...('path' in target
        ? { path: target.path }
        : { host: bareHost(target.host), port: target.port }),
      allowHalfOpen: true,
      noDelay: true,
    })
    const timer = setTimeout(() => fail({ code: 'ETIMEDOUT' }), timeoutMs)
    function fail(error: unknown): void {
      clearTimeout(timer)
      socket.removeListener('connect', opened)
      socket.destroy()
      reject(connectError(target, error, timeoutMs))
    }
    function opened(): void {
      clearTimeout(timer)
      const conn = made(socket)
      socket.removeListener('error', fail)
      resolve(conn)
    }
    socket.once('connect', opened)
    socket.on('error', fail)
  })
}

/** `Net.lookup`. */
export async function lookup(host: string): Promise<string[]> {
  try {
    return (await dns.lookup(bareHost(host), { all: true })).map(({ address }) => address)
  } catch (cause) {
    throw new TunnelError(
      'net/unknown-host',
      `Cannot find ${bareHost(host)}: there is no host of that name`,
      { cause },
    )
  }
}

/** `Net.listen`. */
export function listen(
  target: { host: string; port: number },
  accepted: (conn: Conn) => void,
): Promise<Listener> {
  const table = nativeCallbacks((conn) => accepted(conn))
  try {
    const server = Bun.listen<NativeConn>({
      hostname: bareHost(target.host),
      port: target.port,
      allowHalfOpen: true,
      data: undefined as unknown as NativeConn,
      socket: {
        ...(table as unknown as Callbacks),
        open(raw) {
          table.open(raw as unknown as NativeShape)
        },
      },
    })
    return Promise.resolve({
      host: target.host,
      port: server.port,
      close() {
        server.stop(false)
        return Promise.resolve()
      },
    })
  } catch (error) {
    return Promise.reject(listenError(target, error))
  }
}

/** `Net.listenLocal`. On stream sockets, which know Windows' named pipes as well. */
export async function listenLocal(
  path: string,
  accepted: (conn: Conn) => void,
): Promise<Listener> {
  const isPipe = path.startsWith('\\\\')
  if (!isPipe && Buffer.byteLength(path) > LOCAL_PATH_BYTES_MAX) {
    throw new TunnelError(
      'net/path',
      `Cannot listen on ${path}: found ${Buffer.byteLength(path)} bytes, expected at most ` +
        `${LOCAL_PATH_BYTES_MAX}, the length that systems have for a socket`,
    )
  }
  if (!isPipe) {
    await mkdir(dirname(path), { recursive: true, mode: 0o700 })
    const found = await lstat(path).catch(() => undefined)
    if (found?.isSocket()) await rm(path, { force: true })
  }
  const server = net.createServer({ allowHalfOpen: true }, (socket) => {
    accepted(new DuplexConn(socket))
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => reject(listenError({ path }, error)))
    server.listen(path, () => resolve())
  })
  // The folder keeps others out meanwhile.
  if (!isPipe) await chmod(path, 0o600)
  return {
    host: path,
    port: 0,
    close() {
      server.close()
      return Promise.resolve()
    },
  }
}

/** The words for a target in messages: `127.0.0.1:3000`, `[::1]:3000`, `unix:/run/app.sock`. */
export function describeTarget(target: Target): string {
  if ('path' in target) return `unix:${target.path}`
  const host = bareHost(target.host)
  return host.includes(':') ? `[${host}]:${target.port}` : `${host}:${target.port}`
}

/** Without the brackets that URLs put around IPv6 addresses. */
export function bareHost(host: string): string {
  return host.startsWith('[') && host.endsWith(']') ? host.slice(1, -1) : host
}

/** Brings what the system says about a connection attempt into the family. */
export function connectError(target: Target, error: unknown, timeoutMs = CONNECT_MS): TunnelError {
  if (error instanceof TunnelError) return error
  const place = describeTarget(target)
  const code = String((error as { code?: unknown } | null)?.code ?? '')
  const said = error instanceof Error ? error.message : code
  const make = (reason: string, text: string): TunnelError =>
    new TunnelError(`net/${reason}`, `Cannot connect to ${place}: ${text}`, { cause: error })
  if (code === 'ETIMEDOUT') return make('timeout', `no answer within ${timeoutMs / 1000} s`)
  if (/ENOTFOUND|EAI_|DNS_|ENODATA|ENONAME/.test(code)) {
    return make('unknown-host', 'there is no host of that name')
  }
  if (code === 'ECONNREFUSED') return make('refused', 'nothing listens there')
  if ('path' in target && (code === 'ENOENT' || code === 'ENOTSOCK')) {
    return make('refused', 'there is no such socket')
  }
  if (code === 'EACCES' || code === 'EPERM') return make('denied', 'the system forbids it')
  return make('unreachable', code || said || 'unknown reason')
}

export function listenError(target: Target, error: unknown): TunnelError {
  const place = describeTarget(target)
  const code = String((error as { code?: unknown } | null)?.code ?? '')
  if (code === 'EADDRINUSE') {
    return new TunnelError('net/in-use', `Cannot listen on ${place}: the port is taken`, {
      cause: error,
      hint: 'Choose another port, or port 0 for any free one',
    })
  }
  if (code === 'EACCES' || code === 'EPERM') {
    return new TunnelError('net/denied', `Cannot listen on ${place}: the system forbids it`, {
      cause: error,
      hint: 'Ports below 1024 need more rights; choose a higher one',
    })
  }
  if (code === 'EADDRNOTAVAIL') {
    return new TunnelError(
      'net/address',
      `Cannot listen on ${place}: this machine has no such address`,
      { cause: error, hint: 'Name one of its own, or * for all of them' },
    )
  }
  return asTunnelError(error, 'net/failed')
}
