// runtimes: deno
// Behind `Deno.serve`, with its own HTTP and WebSocket server in front and a real one (`ws`) behind:
// what a visitor's WebSocket says arrives at the service, and how it ends is told both ways.
import * as http from 'node:http'
import type { AddressInfo } from 'node:net'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { WebSocket as ServiceSocket, WebSocketServer } from 'ws'
import { serveExchange } from '../../agent/exchange.ts'
import { encodeHead } from '../../core/exchange.ts'
import type { Stream } from '../../core/mux.ts'
import { Gateway } from '../../relay/gateway.ts'
import { serveFetch } from '../../relay/serve/fetch_gateway.ts'
import { systemClock } from '../../relay/serve/host.ts'
import { DOMAIN, exchangeWorld, joinedMuxes } from '../support/exchange.ts'

declare const Deno: {
  serve(
    options: { port: number; hostname: string; onListen(address: { port: number }): void },
    handler: (request: Request) => Promise<Response>,
  ): { shutdown(): Promise<void> }
}

const sockets = suite('relay/serve/fetch_socket')

let service: WebSocketServer
let server: http.Server
let gateway: Gateway
let front: ReturnType<typeof Deno.serve>
let port = 0
let opened: (stream: Stream) => void
let exchange: (stream: Stream) => void

sockets.before(async () => {
  server = http.createServer((_, response) => void response.writeHead(200).end('page'))
  service = new WebSocketServer({
    server,
    handleProtocols: (offered) => offered.has('chat') ? 'chat' : false,
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const upstreamPort = (server.address() as AddressInfo).port
  exchange = (stream) => {
    stream.accept()
    serveExchange(stream, {
      world: exchangeWorld,
      upstream: { kind: 'tcp', host: '127.0.0.1', port: upstreamPort, text: 'upstream' },
      bytes: { forth: 0, back: 0 },
      done() {},
    })
  }
  const muxes = joinedMuxes((stream) => opened(stream))
  gateway = new Gateway({
    clock: systemClock,
    domain: DOMAIN,
    paths: true,
    pick: () => ({ open: (visit) => muxes.relay.open(visit) }),
  })
  await new Promise<void>((resolve) => {
    front = Deno.serve({
      port: 0,
      hostname: '127.0.0.1',
      onListen: (address) => {
        port = address.port
        resolve()
      },
    }, (request) => serveFetch(gateway, request, { address: '192.0.2.7', port: 0 }))
  })
})

sockets.before.each(() => {
  opened = exchange
})

sockets.after(async () => {
  for (const client of service.clients) client.terminate()
  service.close()
  server.closeAllConnections()
  await new Promise((resolve) => server.close(resolve))
  await front.shutdown()
})

interface Visitor {
  socket: WebSocket
  closed: Promise<{ code: number; reason: string }>
  next(): Promise<string | ArrayBuffer>
}

function visit(protocols: string[] = []): Visitor {
  const socket = new WebSocket(`ws://127.0.0.1:${port}/t/web/ws?x=1`, protocols)
  socket.binaryType = 'arraybuffer'
  const queue: (string | ArrayBuffer)[] = []
  let wake = (): void => {}
  socket.addEventListener('message', ({ data }: MessageEvent<string | ArrayBuffer>) => {
    queue.push(data)
    wake()
  })
  const closed = new Promise<{ code: number; reason: string }>((resolve) =>
    socket.addEventListener('close', ({ code, reason }) => resolve({ code, reason }))
  )
  return {
    socket,
    closed,
    async next() {
      while (queue.length === 0) await new Promise<void>((resolve) => wake = resolve)
      return queue.shift()!
    },
  }
}

function served(): Promise<{ socket: ServiceSocket; request: http.IncomingMessage }> {
  return new Promise((resolve) =>
    service.once('connection', (socket, request) => resolve({ socket, request }))
  )
}

sockets('messages pass both ways, text as text and bytes as bytes, of every size', async () => {
  const serving = served()
  const visitor = visit(['other', 'chat'])
  const { socket, request } = await serving
  assert.is(request.url, '/ws?x=1')
  assert.is(request.headers['x-forwarded-for'], '192.0.2.7')
  assert.is(request.headers['sec-websocket-extensions'], undefined)
  socket.on('message', (data, binary) => socket.send(data, { binary }))
  socket.send('welcome')
  assert.is(await visitor.next(), 'welcome')
  assert.is(visitor.socket.protocol, 'chat')
  for (const length of [0, 1, 125, 126, 65_535, 65_536, 1_000_000]) {
    const bytes = new Uint8Array(length).map((_, i) => i * 7)
    visitor.socket.send(bytes)
    assert.equal(new Uint8Array(await visitor.next() as ArrayBuffer), bytes)
    visitor.socket.send('é'.repeat(length >> 1))
    assert.is(await visitor.next(), 'é'.repeat(length >> 1))
  }
  visitor.socket.close()
})

sockets('a close by the visitor reaches the service, with code and reason', async () => {
  const serving = served()
  const visitor = visit()
  const { socket } = await serving
  const left = new Promise<string>((resolve) =>
    socket.on('close', (code, reason) => resolve(`${code} ${reason}`))
  )
  visitor.socket.addEventListener('open', () => visitor.socket.close(4001, 'enough'))
  assert.is(await left, '4001 enough')
  assert.equal(await visitor.closed, { code: 4001, reason: 'enough' })
})

sockets('a close by the service reaches the visitor, with code and reason', async () => {
  const serving = served()
  const visitor = visit()
  const { socket } = await serving
  const left = new Promise<number>((resolve) => socket.on('close', resolve))
  socket.close(4002, 'over')
  assert.equal(await visitor.closed, { code: 4002, reason: 'over' })
  assert.is(await left, 4002)
})

sockets('a service that breaks off, or breaks the protocol, ends the visitor', async () => {
  for (const bytes of ['', '\xf1\xff\xff']) {
    const serving = served()
    const visitor = visit()
    const { socket } = await serving
    const raw =
      (socket as unknown as { _socket: { write(b: Uint8Array): void; destroy(): void } })._socket
    visitor.socket.addEventListener('open', () => {
      if (bytes === '') raw.destroy()
      else raw.write(Uint8Array.from(bytes, (letter) => letter.charCodeAt(0)))
    })
    assert.is.not((await visitor.closed).code, 0)
  }
})

sockets('a ping of the service is answered', async () => {
  const serving = served()
  const visitor = visit()
  const { socket } = await serving
  const pong = new Promise<string>((resolve) =>
    socket.once('pong', (data) => resolve(String(data)))
  )
  socket.ping('are you there')
  assert.is(await pong, 'are you there')
  visitor.socket.close()
  await visitor.closed
})

sockets('a service that does not switch, or not to our key, is no WebSocket', async () => {
  for (
    const headers of [
      [['sec-websocket-accept', 'bogus']] as [string, string][],
      [] as [string, string][],
    ]
  ) {
    opened = (stream) => {
      stream.accept()
      stream.handle({ data() {}, end() {}, closed() {} })
      stream.write(encodeHead({ status: 101, headers, upgrade: 'websocket' }))
    }
    const visitor = visit()
    visitor.socket.addEventListener('error', () => {})
    await visitor.closed
  }
  opened = (stream) => {
    stream.accept()
    stream.handle({ data() {}, end() {}, closed() {} })
    stream.write(encodeHead({ status: 403, headers: [] }))
    stream.end()
  }
  const visitor = visit()
  visitor.socket.addEventListener('error', () => {})
  await visitor.closed
})

sockets('nothing is left', async () => {
  await new Promise<void>((resolve) => gateway.whenIdle(resolve))
  assert.is(gateway.size, 0)
})

sockets.run()
