/** A UDP port of this machine that sends to anybody: `BindUdp`. Datagrams may be lost; nothing is queued here. */
import type { BindUdp, DatagramFlow, DatagramHandler } from '../wireguard/network.ts'
import { bareHost, listenError } from './tcp.ts'

/** Throws `net/in-use`, `net/denied`, `net/failed`. */
export const bindUdp: BindUdp = async ({ host, port }): Promise<DatagramFlow> => {
  let handler: DatagramHandler | undefined
  let closed = false
  // A port that is taken is thrown at once, not by the promise.
  const opening = async () =>
    await Bun.udpSocket({
      hostname: bareHost(host),
      port,
      binaryType: 'uint8array',
      socket: {
        data(_, bytes, fromPort, address) {
          // Those that come before there is a handler are lost.
          if (!closed) handler?.message({ address, port: fromPort }, bytes)
        },
        // An ICMP message about one far end says nothing of the others.
        error() {},
      },
    })
  const socket = await opening().catch((error) => {
    throw listenError({ host, port }, error)
  })
  return {
    port: socket.port,
    send(to, bytes) {
      if (closed) return false
      try {
        return socket.send(bytes, to.port, to.address)
      } catch {
        // No route to there, or too large: as lost as on the way.
        return false
      }
    },
    handle(given) {
      handler = given
    },
    close() {
      if (closed) return
      closed = true
      socket.close()
    },
  }
}
