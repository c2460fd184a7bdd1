/**
 * `Net.connect` for places that others name: an attempt that is given up is given up by the system as well, which
 * a callback socket's is not (it sends SYNs for two minutes more). So a stream socket connects, and where the runtime
 * lets it, the connection below it is taken over by callbacks, which carry bytes twice as fast.
 */
import type * as net from 'node:net'
import { DuplexConn } from '../../core/duplex_conn.ts'
import { nativeCallbacks, NativeConn } from '../../core/native_conn.ts'
import type { NativeShape } from '../../core/native_conn.ts'
import type { Conn } from '../../core/socket.ts'
import type { Target } from '../world.ts'
import { openStream } from './tcp.ts'

interface Handle extends NativeShape {
  reload?(options: { socket: unknown }): void
}

/** Throws as `Net.connect` does. */
export function dialOut(target: Target & { timeoutMs?: number }): Promise<Conn> {
  return openStream(target, (socket): Conn => takeOver(socket) ?? new DuplexConn(socket))
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
