/**
 * `Net.connect` for places that others name: an attempt that is given up is given up by the system as well, which
 * a callback socket's is not (it sends SYNs for two minutes more). So a stream socket connects, and where the runtime
 * lets it, the connection below it is taken over by callbacks, which carry bytes twice as fast.
 */
import * as net from 'node:net'
import { DuplexConn } from '../../core/duplex_conn.ts'
import { nativeCallbacks, NativeConn } from '../../core/native_conn.ts'
import type { NativeShape } from '../../core/native_conn.ts'
import type { Conn } from '../../core/socket.ts'
import type { Target } from '../world.ts'
import { bareHost, connectError } from './tcp.ts'

const CONNECT_MS = 10_000

interface Handle extends NativeShape {
  reload?(options: { socket: unknown }): void
}

/** Throws as `Net.connect` does. */
export function dialOut(target: Target & { timeoutMs?: number }): Promise<Conn> {
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
      socket.on('error', () => {})
      socket.destroy()
      reject(connectError(target, error, timeoutMs))
    }
    function opened(): void {
      clearTimeout(timer)
      const conn = takeOver(socket) ?? new DuplexConn(socket)
      socket.removeListener('error', fail)
      resolve(conn)
    }
    socket.once('connect', opened)
    socket.once('error', fail)
  })
}

/** Undefined: this runtime's stream sockets have nothing below that could be taken. */
function takeOver(socket: net.Socket): Conn | undefined {
  const handle = (socket as unknown as { _handle?: Handle })._handle
  if (typeof handle?.reload !== 'function' || typeof handle.terminate !== 'function') {
    return undefined
  }
  const conn = new NativeConn()
  const table = nativeCallbacks()
  try {
    handle.reload({ socket: table })
  } catch {
    return undefined
  }
  handle.data = conn
  table.open(handle)
  return conn
}
