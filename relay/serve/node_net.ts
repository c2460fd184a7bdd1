/** Node's stream sockets behind the ports of core; Deno runs the same file. */
import { createSocket } from 'node:dgram'
import { connect as connectTcp, createServer } from 'node:net'
import type { AddressInfo, Socket as TcpSocket } from 'node:net'
import { createServer as createTlsServer } from 'node:tls'
import { DuplexConn } from '../../core/duplex_conn.ts'
import { TunnelError } from '../../core/errors.ts'
import type { Conn } from '../../core/socket.ts'
import type { Datagrams } from '../public_ports.ts'
import type { PublicListener } from './one_port.ts'

/** A peer that vanished without a word is found out by TCP keepalive. */
const KEEP_ALIVE = { keepAlive: true, keepAliveInitialDelay: 30_000 }
/** Connections that the system may hold before they are accepted. */
const BACKLOG = 511

export function listen(
  at: { host: string; port: number; tls?: { cert: string; key: string }; shared?: boolean },
  accepted: (conn: Conn) => void,
): Promise<PublicListener> {
  const open = new Set<TcpSocket>()
  const accept = (socket: TcpSocket): void => {
    open.add(socket)
    socket.once('close', () => void open.delete(socket))
    accepted(new DuplexConn(socket))
  }
  const server = at.tls
    ? createTlsServer({ ...at.tls, allowHalfOpen: true, ...KEEP_ALIVE }, accept)
    : createServer({ allowHalfOpen: true, noDelay: true, ...KEEP_ALIVE }, accept)
  return new Promise((resolve, reject) => {
    server.once('error', (cause) => reject(cannotListen(at, cause)))
    const { host, port, shared = false } = at
    server.listen({ host, port, backlog: BACKLOG, ...(shared ? { reusePort: true } : {}) }, () => {
      const { port } = server.address() as AddressInfo
      resolve({
        host: at.host,
        port,
        retire: () => void server.close(),
        close: () =>
          new Promise((done) => {
            server.close(() => done())
            for (const socket of open) socket.destroy()
          }),
      })
    })
  })
}

export function connect(
  to: { host: string; port: number },
): Promise<{ conn: Conn; localPort: number }> {
  return new Promise((resolve, reject) => {
    const socket = connectTcp({ ...to, allowHalfOpen: true, noDelay: true })
    socket.once('error', reject)
    socket.once('connect', () => {
      socket.removeListener('error', reject)
      resolve({ conn: new DuplexConn(socket), localPort: socket.localPort ?? 0 })
    })
  })
}

export function udp(
  at: { host: string; port: number },
  received: (bytes: Uint8Array, from: { address: string; port: number }) => void,
): Promise<Datagrams> {
  return new Promise((resolve, reject) => {
    const socket = createSocket(at.host.includes(':') ? 'udp6' : 'udp4')
    socket.once('error', (cause) => reject(cannotListen(at, cause)))
    socket.on('message', (bytes, from) => received(bytes, from))
    socket.bind({ address: at.host, port: at.port, exclusive: true }, () => {
      socket.on('error', () => {})
      resolve({
        port: socket.address().port,
        send: (bytes, to) => socket.send(bytes, to.port, to.address),
        close: () => new Promise((done) => socket.close(() => done())),
      })
    })
  })
}

function cannotListen(at: { host: string; port: number }, cause: Error): TunnelError {
  const { code } = cause as { code?: string }
  const why = code === 'EADDRINUSE'
    ? 'the port is in use'
    : code === 'EACCES'
    ? 'permission denied'
    : cause.message
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
