/**
 * What TLS sits on: always a real socket. A `Conn` that has none of the right kind (a stream of a link)
 * gets a local connection of this process to itself: over a plain Duplex the runtime's TLS never says
 * that it is full (measured: 127 MB queued) and shuts both directions at the peer's close_notify; over a
 * socket it does both right, as fast.
 *
 * The local connection is a unix socket (an abstract one on Linux), a loopback port on Windows. An end
 * proves itself with a token, so another program that finds it gets nothing.
 */
import { randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import * as net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { TLSSocket } from 'node:tls'
import { EMPTY } from '../../core/bytes.ts'
import { DuplexConn } from '../../core/duplex_conn.ts'
import { asTunnelError } from '../../core/errors.ts'
import { nativeCallbacks } from '../../core/native_conn.ts'
import type { NativeConn } from '../../core/native_conn.ts'
import { splice } from '../../core/socket.ts'
import type { Conn } from '../../core/socket.ts'
import type { Target } from '../world.ts'
import { connect } from './tcp.ts'

const IS_BUN = process.versions['bun'] !== undefined
const TOKEN_BYTES = 16
/** An end that has not proven itself by then is dropped. */
const TOKEN_MS = 2_000
/** Ends that wait to prove themselves at once; more are dropped. */
const UNPROVEN_MAX = 256

/** A stream socket that carries the bytes of `conn` and has not been read yet; the `Conn` belongs to it. */
export function carrierOf(conn: Conn): net.Socket | Promise<net.Socket> {
  if (conn instanceof DuplexConn) {
    const raw: unknown = conn.raw
    // TLS within TLS works on Node alone.
    if (raw instanceof net.Socket && (!IS_BUN || !(raw instanceof TLSSocket))) {
      raw.pause()
      conn.detach()
      return raw
    }
  }
  return joined(conn, EMPTY, {
    open: (target) =>
      new Promise<net.Socket>((resolve, reject) => {
        const socket = net.connect({ ...target, allowHalfOpen: true, noDelay: true })
        // Until TLS is there to hear of it, an error must not end the process.
        socket.on('error', reject)
        socket.once('connect', () => resolve(socket))
      }),
    drop: (socket) => socket.destroy(),
  })
}

/** The same as a callback socket; `first`, bytes that were read already, come first. */
export function nativeCarrierOf(conn: Conn, first: Uint8Array): Promise<NativeConn> {
  return joined(conn, first, {
    open: (target) => connect(target) as Promise<NativeConn>,
    drop: (near) => near.abort(),
  })
}

interface Meeting {
  target: Target
  expected: Map<string, (conn: NativeConn) => void>
}

let meeting: Meeting | undefined

/** A local connection whose other end is spliced to `conn`. */
async function joined<S extends { write(bytes: Uint8Array): unknown }>(
  conn: Conn,
  first: Uint8Array,
  { open, drop }: { open(target: Target): Promise<S>; drop(near: S): void },
): Promise<S> {
  let near: S | undefined
  let timer: ReturnType<typeof setTimeout> | undefined
  const token = randomBytes(TOKEN_BYTES)
  const name = token.toString('hex')
  const { target, expected } = meeting ??= meet()
  try {
    const opened = await open(target)
    near = opened
    const other = await new Promise<NativeConn>((resolve, reject) => {
      timer = setTimeout(() => reject(new Error('no local connection')), TOKEN_MS)
      expected.set(name, resolve)
      opened.write(token)
    })
    if (first.length > 0) other.write(first)
    splice(conn, other)
    conn.resume()
    return opened
  } catch (error) {
    conn.abort()
    if (near) drop(near)
    throw asTunnelError(error, 'tls/carrier')
  } finally {
    clearTimeout(timer)
    expected.delete(name)
  }
}

/** The place where both ends meet; opened once, never keeps the process alive. */
function meet(): Meeting {
  const expected: Meeting['expected'] = new Map()
  let unproven = 0
  const accepted = (conn: NativeConn): void => {
    if (unproven >= UNPROVEN_MAX) return conn.abort()
    unproven++
    const timer = setTimeout(() => conn.abort(), TOKEN_MS)
    let over = false
    const settle = (): void => {
      if (!over) unproven--
      over = true
      clearTimeout(timer)
    }
    let said = Buffer.alloc(0)
    conn.handle({
      data(bytes) {
        said = Buffer.concat([said, bytes])
        if (said.length < TOKEN_BYTES) return
        const name = said.toString('hex')
        const met = expected.get(name)
        expected.delete(name)
        settle()
        if (met) met(conn)
        else conn.abort()
      },
      end: () => conn.abort(),
      closed: settle,
    })
  }
  const socket = nativeCallbacks(accepted) as unknown as Bun.SocketHandler<NativeConn>
  const data = undefined as unknown as NativeConn
  const common = { allowHalfOpen: true, socket, data }
  if (process.platform === 'win32') {
    const server = Bun.listen<NativeConn>({ hostname: '127.0.0.1', port: 0, ...common })
    server.unref()
    return { target: { host: '127.0.0.1', port: server.port }, expected }
  }
  let path = `\0sotto-${randomBytes(TOKEN_BYTES).toString('hex')}`
  if (process.platform !== 'linux') {
    const directory = mkdtempSync(join(tmpdir(), 'sotto-'))
    path = join(directory, 'tls')
    process.once('exit', () => rmSync(directory, { recursive: true, force: true }))
  }
  Bun.listen<NativeConn>({ unix: path, ...common }).unref()
  return { target: { path }, expected }
}
