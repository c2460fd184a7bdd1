/** One UDP socket connected to one far end. Datagrams may be lost; nothing is queued here. */
import { lookup } from 'node:dns/promises'
import { isIP } from 'node:net'
import type { Datagrams } from '../world.ts'
import { bareHost, connectError } from './tcp.ts'

/** `Net.udp`. Throws `net/unknown-host`, `net/unreachable`. */
export async function openUdp(target: { host: string; port: number }): Promise<Datagrams> {
  let handler: Parameters<Datagrams['handle']>[0] | undefined
  let closed = false
  // Datagrams that come before there is a handler are lost, as datagrams may be.
  function end(error?: Error): void {
    if (closed) return
    closed = true
    socket.close()
    handler?.closed?.(error)
  }
  const host = bareHost(target.host)
  let socket: Bun.udp.ConnectedSocket<'uint8array'>
  try {
    // `localhost` is IPv4 first, as it is for TCP upstreams.
    const address = isIP(host) === 0
      ? (await lookup(host, host === 'localhost' ? { order: 'ipv4first' } : {})).address
      : host
    socket = await Bun.udpSocket({
      connect: { hostname: address, port: target.port },
      binaryType: 'uint8array',
      socket: {
        data(_, datagram) {
          if (!closed) handler?.message(datagram)
        },
        error(...values: unknown[]) {
          // Declared with the socket first, called with the error alone.
          end(values.find((value) => value instanceof Error) ?? new Error('refused'))
        },
      },
    })
  } catch (error) {
    throw connectError(target, error)
  }
  return {
    port: socket.port,
    send(datagram) {
      if (closed) return false
      try {
        return socket.send(datagram)
      } catch (error) {
        // The answer to an earlier datagram: nobody listens there. The flow is over.
        end(error instanceof Error ? error : new Error(String(error)))
        return false
      }
    },
    handle(given) {
      handler = given
    },
    close: () => end(),
  }
}
