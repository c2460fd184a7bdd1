/**
 * Bun's native sockets behind the ports of core: TCP listeners and connections by callbacks, UDP.
 * Nothing but this adapter and `bun.ts` knows that it is Bun.
 */
import { nativeCallbacks, NativeConn } from '../../core/native_conn.ts'
import type { NativeShape } from '../../core/native_conn.ts'
import { TunnelError } from '../../core/errors.ts'
import type { Conn } from '../../core/socket.ts'
import type { Datagrams } from '../public_ports.ts'
import { steerHere } from './bun_steer.ts'
import type { PublicListener } from './one_port.ts'

/** A peer that vanished without a word is found out by TCP keepalive, from so much silence on. */
const KEEP_ALIVE_MS = 30_000
/** Most bytes of datagrams that wait for a full socket; later ones are dropped. */
const DATAGRAMS_MAX = 256

/** Listens on `at`; port 0 takes a free one. Throws `listen/taken` and the like with the port named. */
export function listen(
  at: { host: string; port: number; tls?: Bun.TLSOptions; shared?: boolean },
  accepted: (conn: Conn) => void,
): Promise<PublicListener> {
  const callbacks = nativeCallbacks((conn) => {
    const socket = conn.socket as unknown as { setKeepAlive(on: boolean, idleMs: number): void }
    socket.setKeepAlive(true, KEEP_ALIVE_MS)
    accepted(conn)
  })
  try {
    const server = Bun.listen<NativeConn>({
      hostname: at.host,
      port: at.port,
      allowHalfOpen: true,
      ...(at.tls ? { tls: at.tls } : {}),
      ...(at.shared ? { reusePort: true } : {}),
      // The callbacks are written against the shape that core knows.
      socket: callbacks as unknown as Bun.SocketHandler<NativeConn>,
    })
    return Promise.resolve({
      host: at.host,
      port: server.port,
      retire: () => server.stop(false),
      steer: () => steerHere((server as unknown as { fd: number }).fd),
      close: () => {
        server.stop(true)
        return Promise.resolve()
      },
    })
  } catch (cause) {
    return Promise.reject(cannotListen(at, cause))
  }
}

/** One table for all that `connect` opens. */
const CONNECTED = nativeCallbacks() as unknown as Bun.SocketHandler<NativeConn>

/** Connects within the caller's patience; the Conn may be written to at once. */
export async function connect(to: { host: string; port: number }): Promise<NativeConn> {
  const conn = new NativeConn()
  await Bun.connect<NativeConn>({
    hostname: to.host,
    port: to.port,
    allowHalfOpen: true,
    data: conn,
    socket: CONNECTED,
  })
  return conn
}

/** The local port of a connection that `connect` made, by which the other side can know it. */
export function localPort(conn: NativeConn): number {
  return (conn.socket as (NativeShape & { localPort: number }) | undefined)?.localPort ?? 0
}

export async function udp(
  at: { host: string; port: number },
  received: (bytes: Uint8Array, from: { address: string; port: number }) => void,
): Promise<Datagrams> {
  try {
    const waiting: { bytes: Uint8Array; to: { address: string; port: number } }[] = []
    const socket = await Bun.udpSocket({
      hostname: at.host,
      port: at.port,
      socket: {
        data(_socket, bytes, port, address) {
          received(bytes, { address, port })
        },
        drain(socket) {
          while (waiting.length > 0) {
            const { bytes, to } = waiting[0]!
            if (!socket.send(bytes, to.port, to.address)) return
            waiting.shift()
          }
        },
      },
    })
    return {
      port: socket.port,
      send(bytes, to) {
        if (waiting.length === 0 && socket.send(bytes, to.port, to.address)) return
        // Freshness first: the oldest waits no longer.
        if (waiting.length >= DATAGRAMS_MAX) waiting.shift()
        waiting.push({ bytes, to })
      },
      close: () => {
        socket.close()
        return Promise.resolve()
      },
    }
  } catch (cause) {
    throw cannotListen(at, cause)
  }
}

function cannotListen(at: { host: string; port: number }, cause: unknown): TunnelError {
  const code = (cause as { code?: string }).code
  const why = code === 'EADDRINUSE'
    ? 'the port is in use'
    : code === 'EACCES'
    ? 'permission denied'
    : String((cause as Error).message)
  const hint = code === 'EADDRINUSE'
    ? 'Choose another port with --port, or stop the program that has it.'
    : code === 'EACCES'
    ? 'A port below 1024 is for root, or for "sotto service install relay". Or choose another with --port.'
    : 'Choose another address with --host, or another port with --port.'
  return new TunnelError(
    code === 'EADDRINUSE' ? 'listen/taken' : 'listen/failed',
    `Cannot listen on ${at.host}:${at.port}: ${why}`,
    { hint, cause },
  )
}
