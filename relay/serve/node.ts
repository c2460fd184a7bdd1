/**
 * The relay on Node 22 and self-hosted Deno 2: stream sockets for the public port, `node:https` with
 * `ws` behind it, `node:sqlite` in a file.
 *
 *   node relay/serve/node.ts [FLAGS]      deno run -A relay/serve/deno.ts [FLAGS]
 */
import { getRequestListener } from '@hono/node-server'
import * as nodeCrypto from 'node:crypto'
import { createServer } from 'node:https'
import type { IncomingMessage } from 'node:http'
import type { AddressInfo, Socket as TcpSocket } from 'node:net'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import { WebSocketServer } from 'ws'
import { fastCrypto } from '../../core/crypto.ts'
import { FRAME_BYTES_MAX } from '../../core/frame.ts'
import { createApp, LINK_PROTOCOL } from '../app.ts'
import type { Relay } from '../relay.ts'
import type { Settings } from '../settings.ts'
import { openHost } from './host.ts'
import type { Host, RunningRelay } from './host.ts'
import { LOOPBACK } from './inside.ts'
import type { Inside } from './inside.ts'
import { openPort } from './one_port.ts'
import { connect, listen, udp } from './node_net.ts'
import { nodeSqliteStore } from './node_sqlite.ts'
import { WsSocket } from './ws_socket.ts'

/** A request's head must be in by then; links and bodies have their own limits. */
const HEAD_MS_MAX = 10_000

export async function startRelay(
  settings: Settings,
  options: { version?: string; runtime?: string; write?: (line: string) => void } = {},
): Promise<RunningRelay> {
  const store = await nodeSqliteStore(join(settings.dataDirectory, 'relay.db'))
  const host = await openHost({
    settings,
    store,
    crypto: fastCrypto(nodeCrypto),
    runtime: options.runtime ?? `node ${process.versions.node}`,
    version: options.version ?? '0.1.0',
    write: options.write ?? ((line) => void process.stderr.write(`${line}\n`)),
  })
  return await openPort(host, {
    sockets: { listen, udp, connect, later: setImmediate },
    serveHttps,
  })
}

/** The relay's own HTTPS: pages, API, and the upgrade that makes a link. */
async function serveHttps(
  host: Host,
  { relay, inside }: { relay: Relay; inside: Inside },
): Promise<{ port: number; close(): Promise<void> }> {
  const from = new WeakMap<Request, { address: string; accept?: (key: string) => void }>()
  const app = createApp(host.appPorts(relay, {
    remoteAddress: (request) => from.get(request)?.address ?? '',
    upgrade(request, { key }) {
      const accept = from.get(request)?.accept
      if (!accept) return new Response(null, { status: 426 })
      accept(key)
      return new Response(null)
    },
  }))
  const links = new WebSocketServer({
    noServer: true,
    perMessageDeflate: false,
    maxPayload: FRAME_BYTES_MAX,
    handleProtocols: (offered) => (offered.has(LINK_PROTOCOL) ? LINK_PROTOCOL : false),
  })
  const server = createServer(
    { cert: host.tls.cert, key: host.tls.key, requestTimeout: 60_000, headersTimeout: HEAD_MS_MAX },
    getRequestListener((request, env) => {
      const { incoming } = env as { incoming: IncomingMessage }
      const address = inside.address(incoming.socket.remotePort ?? 0)
      // Nothing but our own splices has business on this listener.
      if (address === undefined) return new Response(null, { status: 403 })
      const plain = plainRequest(request)
      from.set(plain, { address })
      return app.fetch(plain)
    }, { overrideGlobalObjects: false }),
  )
  const open = new Set<Duplex>()
  server.on('connection', (socket: TcpSocket) => {
    open.add(socket)
    socket.once('close', () => void open.delete(socket))
  })
  server.on('upgrade', (incoming: IncomingMessage, socket: Duplex, head: Buffer) => {
    socket.on('error', () => {})
    const address = inside.address(incoming.socket.remotePort ?? 0)
    if (address === undefined) return void socket.destroy()
    let key: string | undefined
    const request = new Request(`https://${incoming.headers.host ?? 'relay'}${incoming.url}`, {
      headers: flatten(incoming),
    })
    from.set(request, { address, accept: (accepted) => void (key = accepted) })
    Promise.resolve(app.fetch(request)).then(async (response) => {
      if (key === undefined) return await refuse(socket, response)
      const accepted = key
      links.handleUpgrade(incoming, socket, head, (raw) => {
        relay.attach(new WsSocket(raw), { key: accepted, address })
      })
    }).catch(() => socket.destroy())
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen({ host: LOOPBACK, port: 0 }, resolve)
  })
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((done) => {
        server.close(() => done())
        for (const socket of open) socket.destroy()
      }),
  }
}

/**
 * A request with a body as the runtime's own class: the adapter's lazy one only looks like it, and
 * `new Request(request)`, by which bodies are limited, throws on it.
 */
function plainRequest(request: Request): Request {
  const { method, url, headers } = request
  if (method === 'GET' || method === 'HEAD') return request
  return new Request(url, { method, headers, body: request.body, duplex: 'half' } as RequestInit)
}

function flatten(incoming: IncomingMessage): [string, string][] {
  const headers: [string, string][] = []
  for (let i = 0; i + 1 < incoming.rawHeaders.length; i += 2) {
    headers.push([incoming.rawHeaders[i]!, incoming.rawHeaders[i + 1]!])
  }
  return headers
}

/** Answers an upgrade that the app refused: its status, its error in JSON, then the end. */
async function refuse(socket: Duplex, response: Response): Promise<void> {
  const body = new Uint8Array(await response.arrayBuffer())
  const lines = [`HTTP/1.1 ${response.status} Refused`]
  for (const [name, value] of response.headers) {
    if (!/^(content-length|connection|transfer-encoding)$/.test(name)) {
      lines.push(`${name}: ${value}`)
    }
  }
  lines.push(`content-length: ${body.length}`, 'connection: close', '', '')
  socket.write(lines.join('\r\n'))
  socket.end(body)
}
