/**
 * The relay on Bun: native sockets for the public port, `Bun.serve` behind it for HTTPS and links,
 * SQLite in a file. `startRelay` is what `sotto relay` and `npm start` run.
 */
import * as nodeCrypto from 'node:crypto'
import { join } from 'node:path'
import { fastCrypto } from '../../core/crypto.ts'
import type { Listener } from '../../core/socket.ts'
import { BODY_BYTES_MAX, createApp, LINK_PROTOCOL } from '../app.ts'
import { relayGateway } from '../backends.ts'
import { Relay } from '../relay.ts'
import type { Settings } from '../settings.ts'
import { connect, listen, localPort, udp } from './bun_net.ts'
import { linkHandlers } from './bun_socket.ts'
import type { LinkData, LinkServer } from './bun_socket.ts'
import { bunSqliteStore } from './bun_sqlite.ts'
import { openHost } from './host.ts'
import type { Host, RunningRelay } from './host.ts'
import { serveGateway } from './node_gateway.ts'
import { awaitTicket, GOODBYE_MS_MAX, Inside, LOOPBACK } from './inside.ts'

export async function startRelay(
  settings: Settings,
  options: { version?: string; write?: (line: string) => void } = {},
): Promise<RunningRelay> {
  const store = await bunSqliteStore(join(settings.dataDirectory, 'relay.db'))
  const host = await openHost({
    settings,
    store,
    crypto: fastCrypto(nodeCrypto),
    runtime: `bun ${Bun.version}`,
    version: options.version ?? '0.1.0',
    write: options.write ?? ((line) => void process.stderr.write(`${line}\n`)),
  })
  const inside = new Inside(async (port) => {
    const conn = await connect({ host: LOOPBACK, port })
    return { conn, localPort: localPort(conn) }
  })
  const servers = { https: 0, bulk: 0, gateway: 0 }
  const relay = new Relay({
    ...host.ports,
    publicPort: () => host.publicPort(),
    net: { listen, udp },
    app: (conn, first, left) => inside.join(conn, { first, port: servers.https, left }),
    readable: (conn, first, left) => inside.join(conn, { first, port: servers.gateway, left }),
    bulkTls: (conn, first, left) =>
      inside.join(conn, { first, port: servers.bulk, left, clock: host.ports.clock }),
  })
  const https = serveHttps(host, { relay, inside })
  const { cert, key } = host.tls
  const bulk = await listen(
    { host: LOOPBACK, port: 0, tls: { cert, key } },
    (conn) =>
      awaitTicket(conn, {
        clock: relay.clock,
        inside,
        claim: (conn, ticket) => relay.claimBulk(conn, ticket),
      }),
  )
  const gateway = await serveGateway(
    relayGateway(relay, { ...host.ports, domain: settings.appsDomain }),
    { tls: host.tls, address: (port) => inside.address(port) },
  )
  servers.gateway = gateway.port
  servers.https = https.port!
  servers.bulk = bulk.port
  const stopInside = async (): Promise<void> => {
    await https.stop(true)
    await bulk.close()
    await gateway.close()
    await store.close()
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
      await inside.emptied(relay.clock, GOODBYE_MS_MAX)
      await listener.close()
      await stopInside()
    },
  })
}

/** The relay's own HTTPS: pages, API, and the upgrade that makes a link. */
function serveHttps(host: Host, { relay, inside }: { relay: Relay; inside: Inside }): LinkServer {
  const from = new WeakMap<Request, { server: LinkServer; address: string }>()
  const app = createApp(host.appPorts(relay, {
    remoteAddress: (request) => from.get(request)?.address ?? '',
    upgrade(request, { key, address }) {
      const upgraded = from.get(request)?.server.upgrade(request, {
        data: { key, address, link: undefined },
        headers: { 'sec-websocket-protocol': LINK_PROTOCOL },
      })
      // After an upgrade Bun ignores the response.
      return upgraded ? new Response(null) : new Response(null, { status: 400 })
    },
  }))
  const { cert, key } = host.tls
  return Bun.serve<LinkData>({
    hostname: LOOPBACK,
    port: 0,
    tls: { cert, key },
    maxRequestBodySize: BODY_BYTES_MAX,
    idleTimeout: 60,
    websocket: linkHandlers((socket, link) => relay.attach(socket, link)),
    fetch(request, server) {
      const address = inside.address(server.requestIP(request)?.port ?? 0)
      // Nothing but our own splices has business on this listener.
      if (address === undefined) return new Response(null, { status: 403 })
      from.set(request, { server, address })
      return app.fetch(request)
    },
  })
}
