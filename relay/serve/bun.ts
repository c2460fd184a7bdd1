/**
 * The relay on Bun: native sockets for the public port, `Bun.serve` behind it for HTTPS and links,
 * SQLite in a file. `startRelay` is what `sotto relay` and `npm start` run.
 */
import * as nodeCrypto from 'node:crypto'
import { join } from 'node:path'
import { fastCrypto } from '../../core/crypto.ts'
import { BODY_BYTES_MAX, createApp, LINK_PROTOCOL } from '../app.ts'
import type { Relay } from '../relay.ts'
import type { Settings } from '../settings.ts'
import { LinkCollector } from './bun_memory.ts'
import { connect, listen, localPort, udp } from './bun_net.ts'
import { linkHandlers } from './bun_socket.ts'
import type { LinkData, LinkServer } from './bun_socket.ts'
import { bunSqliteStore } from './bun_sqlite.ts'
import { openHost } from './host.ts'
import type { Host, RunningRelay } from './host.ts'
import { LOOPBACK } from './inside.ts'
import type { Inside } from './inside.ts'
import { openPort } from './one_port.ts'
import type { ServeHttps, Sockets } from './one_port.ts'

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
  return await openPort(host, { sockets: SOCKETS, serveHttps })
}

const SOCKETS: Sockets = {
  listen,
  udp,
  later: setImmediate,
  connect: async (to) => {
    const conn = await connect(to)
    return { conn, localPort: localPort(conn) }
  },
}

/** The relay's own HTTPS: pages, API, and the upgrade that makes a link. */
function serveHttps(
  host: Host,
  { relay, inside }: { relay: Relay; inside: Inside },
): ReturnType<ServeHttps> {
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
  const collector = new LinkCollector()
  const server = Bun.serve<LinkData>({
    hostname: LOOPBACK,
    port: 0,
    tls: { cert, key },
    maxRequestBodySize: BODY_BYTES_MAX,
    idleTimeout: 60,
    websocket: linkHandlers((socket, link) => {
      relay.attach(socket, link)
      collector.came(relay.links)
    }),
    fetch(request, server) {
      const address = inside.address(server.requestIP(request)?.port ?? 0)
      // Nothing but our own splices has business on this listener.
      if (address === undefined) return new Response(null, { status: 403 })
      from.set(request, { server, address })
      return app.fetch(request)
    },
  })
  return Promise.resolve({ port: server.port!, close: () => server.stop(true) })
}
