/**
 * A relay on a machine with raw sockets: everything behind the one public port, wired once for every
 * runtime. What differs is handed in: the sockets, and the HTTPS server that makes links.
 */
import type { Conn, Listener } from '../../core/socket.ts'
import { relayGateway } from '../backends.ts'
import type { PublicPortsNet } from '../public_ports.ts'
import { Relay } from '../relay.ts'
import type { Host, RunningRelay } from './host.ts'
import { awaitTicket, GOODBYE_MS_MAX, Inside, LOOPBACK } from './inside.ts'
import { serveGateway } from './node_gateway.ts'

export interface Sockets extends PublicPortsNet {
  listen(
    at: { host: string; port: number; tls?: { cert: string; key: string } },
    accepted: (conn: Conn) => void,
  ): Promise<Listener>
  connect(to: { host: string; port: number }): Promise<{ conn: Conn; localPort: number }>
}

/** Listens on loopback behind the port: pages, API, and the upgrade that makes a link. */
export type ServeHttps = (
  host: Host,
  behind: { relay: Relay; inside: Inside },
) => Promise<{ port: number; close(): Promise<void> }>

/** Opens the public port of `host`. Throws `listen/taken` and the like, with all else closed again. */
export async function openPort(
  host: Host,
  { sockets, serveHttps }: { sockets: Sockets; serveHttps: ServeHttps },
): Promise<RunningRelay> {
  const { listen, udp } = sockets
  const { settings, clock } = host.ports
  const inside = new Inside((port) => sockets.connect({ host: LOOPBACK, port }))
  const servers = { https: 0, bulk: 0, gateway: 0 }
  const relay = new Relay({
    ...host.ports,
    publicPort: () => host.publicPort(),
    net: { listen, udp },
    app: (conn, first, left) => inside.join(conn, { first, port: servers.https, left }),
    readable: (conn, first, left) => inside.join(conn, { first, port: servers.gateway, left }),
    bulkTls: (conn, first, left) => inside.join(conn, { first, port: servers.bulk, left, clock }),
  })
  const https = await serveHttps(host, { relay, inside })
  const claim = relay.claimBulk.bind(relay)
  const bulk = await listen(
    { host: LOOPBACK, port: 0, tls: host.tls },
    (conn) => awaitTicket(conn, { clock, inside, claim }),
  )
  const gateway = await serveGateway(
    relayGateway(relay, { ...host.ports, domain: settings.appsDomain }),
    { tls: host.tls, address: (port) => inside.address(port) },
  )
  Object.assign(servers, { https: https.port, bulk: bulk.port, gateway: gateway.port })
  const stopInside = async (): Promise<void> => {
    await https.close()
    await bulk.close()
    await gateway.close()
    await host.store.close()
  }
  let listener: Listener
  try {
    listener = await listen(settings, (conn) => relay.ingress.accept(conn))
  } catch (error) {
    await stopInside()
    throw error
  }
  host.listening(listener.port)
  return host.running(relay, {
    port: listener.port,
    stop: async () => {
      await relay.close()
      await inside.emptied(clock, GOODBYE_MS_MAX)
      await listener.close()
      await stopInside()
    },
  })
}
