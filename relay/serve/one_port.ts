/**
 * A relay on a machine with raw sockets: everything behind the one public port, wired once for every
 * runtime. What differs is handed in: the sockets, and the HTTPS server that makes links.
 */
import type { Timer } from '../../core/clock.ts'
import type { Conn, Listener } from '../../core/socket.ts'
import { relayGateway } from '../backends.ts'
import { BehindProxy } from '../behind_proxy.ts'
import { errorFields } from '../log.ts'
import type { PublicPortsNet } from '../public_ports.ts'
import { Relay } from '../relay.ts'
import { watch } from '../store/watch.ts'
import type { Host, RunningRelay } from './host.ts'
import { awaitTicket, GOODBYE_MS_MAX, Inside, LOOPBACK } from './inside.ts'
import { serveGateway } from './node_gateway.ts'

/** How often the files of certificates are looked at. */
const RENEW_MS = 30_000
/** Servers with certificates of before, kept for the links that they carry. */
const GENERATIONS_MAX = 4

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
  const { listen, udp, later } = sockets
  const { settings, clock } = host.ports
  const inside = new Inside((port) => sockets.connect({ host: LOOPBACK, port }))
  const servers = { https: 0, bulk: 0, gateway: 0 }
  const relay = new Relay({
    ...host.ports,
    publicPort: () => host.publicPort(),
    net: { listen, udp, later },
    app: (conn, first, left) => inside.join(conn, { first, port: servers.https, left }),
    readable: (conn, first, left) => inside.join(conn, { first, port: servers.gateway, left }),
    bulkTls: (conn, first, left) => inside.join(conn, { first, port: servers.bulk, left, clock }),
  })
  const claim = relay.claimBulk.bind(relay)
  const readable = relayGateway(relay, { ...host.ports, domain: settings.appsDomain })
  /** Servers with the certificate of now; connections from now on go to them. */
  const openInside = async (): Promise<() => Promise<void>> => {
    const https = await serveHttps(host, { relay, inside })
    const bulk = await listen(
      { host: LOOPBACK, port: 0, tls: host.tls },
      (conn) => awaitTicket(conn, { clock, inside, claim }),
    )
    const gateway = await serveGateway(readable, {
      tls: host.tls,
      address: (port) => inside.address(port),
    })
    Object.assign(servers, { https: https.port, bulk: bulk.port, gateway: gateway.port })
    return async () => {
      await https.close()
      await bulk.close()
      await gateway.close()
    }
  }
  const generations = [await openInside()]
  const stopInside = async (): Promise<void> => {
    for (const close of generations.splice(0)) await close()
    await host.store.close()
  }
  const renew = async (): Promise<boolean> => {
    if (generations.length === 0 || !await host.renew()) return false
    generations.push(await openInside())
    host.ports.log.info('certificate renewed', {})
    // Links last for weeks: those of a server that is many certificates old come back by themselves.
    if (generations.length > GENERATIONS_MAX) await generations.shift()!()
    return true
  }
  const { behindProxy } = settings
  const proxied = behindProxy && new BehindProxy({
    clock,
    trusted: behindProxy,
    accept: (conn) => relay.ingress.accept(conn),
    refused: (reason, fields) => relay.turnedAway(reason, fields),
  })
  const accept = (conn: Conn): void => (proxied ?? relay.ingress).accept(conn)
  let listener: Listener
  try {
    listener = await listen(settings, accept)
  } catch (error) {
    await stopInside()
    throw error
  }
  host.listening(listener.port)
  const renewal = watchCertificate(host, renew)
  return host.running(relay, {
    port: listener.port,
    renew,
    stop: async () => {
      renewal.cancel()
      proxied?.close()
      await relay.close()
      await inside.emptied(clock, GOODBYE_MS_MAX)
      await listener.close()
      await stopInside()
    },
  })
}

/** A pair that cannot be taken is told once, and looked at again. */
function watchCertificate({ ports }: Host, renew: () => Promise<boolean>): Timer {
  let told = ''
  return watch(ports.clock, async () => {
    await renew()
    told = ''
  }, {
    everyMs: RENEW_MS,
    failed(error) {
      const { message } = error as Error
      if (message !== told) ports.log.error('certificate not taken', errorFields(error))
      told = message
    },
  })
}
