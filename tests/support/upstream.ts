/** A local service behind a readable endpoint, and the agent's end that leads to it. */
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { WebSocketServer } from 'ws'
import type { WebSocket } from 'ws'
import { serveExchange } from '../../agent/exchange.ts'
import { parseUpstream } from '../../agent/forward.ts'
import { hostWorld } from '../../agent/host/world.ts'
import type { Stream } from '../../core/mux.ts'

const world = hostWorld()
/** Between two events of `/ticks`. */
const TICK_MS = 100

/**
 * `/echo` sends the body back, `/ticks` never ends, `/ws` is a WebSocket, anything else tells what it
 * was asked. `left` is told when a reader of `/ticks` has gone, or a WebSocket closed.
 */
export async function startUpstream(
  { left }: { left?(code?: number): void } = {},
): Promise<{ port: number; close(): Promise<void> }> {
  const server = createServer((request, response) => {
    if (request.url === '/echo') return void request.pipe(response)
    if (request.url === '/ticks') {
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      let count = 0
      const tick = (): void => void response.write(`data: ${++count}\n\n`)
      tick()
      const timer = setInterval(tick, TICK_MS)
      return void response.on('close', () => {
        clearInterval(timer)
        left?.()
      })
    }
    const body = JSON.stringify({ url: request.url, method: request.method, ...request.headers })
    response.writeHead(200, { 'content-type': 'application/json' })
    response.end(request.method === 'HEAD' ? undefined : body)
  })
  const sockets = new WebSocketServer({
    server,
    path: '/ws',
    handleProtocols: (offered) => (offered.has('two') ? 'two' : false),
  })
  sockets.on('connection', (socket: WebSocket) => {
    socket.on('message', (data: Buffer, isBinary: boolean) => {
      if (!isBinary && String(data) === 'bye') socket.close(4321, 'as you wish')
      else socket.send(isBinary ? data : `you said ${data}`)
    })
    socket.on('close', (code: number) => left?.(code))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((done) => {
        server.close(() => done())
        server.closeAllConnections()
      }),
  }
}

/** Leads one stream of kind `http` to that service. */
export function serveReadable(stream: Stream, port: number): void {
  stream.accept()
  serveExchange(stream, {
    world,
    upstream: parseUpstream(String(port)),
    bytes: { forth: 0, back: 0 },
    done() {},
  })
}
