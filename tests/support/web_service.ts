/**
 * A web service as a program of its own, on Node, for end-to-end tests: it knows nothing of tunnels.
 * Prints one JSON line with its ports, HTTP/1.1 and (TLS with HTTP/2) `h2Port`, and runs until it is ended.
 *
 *   node web_service.ts CERT.pem KEY.pem
 *
 *   GET  /hello       a line that names the HTTP version
 *   GET  /keystream   BYTES_BIG of AES-128-CTR over zeros, as `openssl enc` makes them; ranges are served
 *   POST /hash        SHA-256 and length of the body
 *   POST /echo        the body again
 *   GET  /events      server-sent events; the next one is sent only after GET /seen?NUMBER
 *   GET  /page        a page for a browser
 *   WS   /ws          echo
 */
import { createCipheriv, createHash } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { createSecureServer } from 'node:http2'
import type { AddressInfo } from 'node:net'
import { WebSocketServer } from 'ws'

const BYTES_BIG = 2 ** 30
const CHUNK_BYTES = 262_144
const BLOCK_BYTES = 16
const KEY = Buffer.alloc(16, 1)
const EVENTS = 5

type Answer = (request: IncomingMessage, response: ServerResponse) => void | Promise<void>

const seen = new Map<number, () => void>()

const routes: Readonly<Record<string, Answer>> = {
  '/hello': (request, response) => {
    response.setHeader('x-host', request.headers.host ?? String(request.headers[':authority']))
    response.end(`hello over HTTP/${request.httpVersion}\n`)
  },
  '/keystream': keystream,
  '/hash': async (request, response) => {
    const hash = createHash('sha256')
    let bytes = 0
    for await (const part of request) {
      hash.update(part)
      bytes += part.length
    }
    response.end(`${hash.digest('hex')} ${bytes}\n`)
  },
  '/echo': (request, response) => void request.pipe(response),
  '/events': async (_, response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' })
    for (let event = 1; event <= EVENTS; event++) {
      // One that was held back on the way would never be seen, and nothing would follow it.
      const arrived = new Promise<void>((resolve) => seen.set(event, resolve))
      response.write(`id: ${event}\ndata: event ${event}\n\n`)
      await arrived
    }
    response.end('data: done\n\n')
  },
  '/seen': (request, response) => {
    seen.get(Number(request.url!.split('?')[1]))?.()
    response.writeHead(204).end()
  },
  '/page': (_, response) => {
    response.setHeader('content-type', 'text/html; charset=utf-8')
    response.end('<!doctype html><title>service</title><h1>It is up</h1>')
  },
}

async function keystream(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const range = /^bytes=(\d+)-(\d+)$/.exec(String(request.headers.range ?? ''))
  const from = range ? Number(range[1]) : 0
  const to = range ? Number(range[2]) + 1 : BYTES_BIG
  response.writeHead(range ? 206 : 200, {
    'content-type': 'application/octet-stream',
    'content-length': to - from,
    'accept-ranges': 'bytes',
    ...(range ? { 'content-range': `bytes ${from}-${to - 1}/${BYTES_BIG}` } : {}),
  })
  if (request.method === 'HEAD') return void response.end()
  const counter = Buffer.alloc(BLOCK_BYTES)
  counter.writeBigUInt64BE(BigInt(Math.floor(from / BLOCK_BYTES)), 8)
  const cipher = createCipheriv('aes-128-ctr', KEY, counter)
  cipher.update(Buffer.alloc(from % BLOCK_BYTES))
  const zeros = Buffer.alloc(CHUNK_BYTES)
  for (let at = from; at < to && !response.destroyed; at += CHUNK_BYTES) {
    const part = cipher.update(zeros.subarray(0, Math.min(CHUNK_BYTES, to - at)))
    if (!response.write(part)) {
      await Promise.race([once(response, 'drain'), once(response, 'close')])
    }
  }
  response.end()
}

function answer(request: IncomingMessage, response: ServerResponse): void {
  const route = routes[request.url!.split('?')[0]!]
  if (!route) return void response.writeHead(404).end('nothing here\n')
  Promise.resolve(route(request, response)).catch(() => response.destroy())
}

const plain = createServer(answer).listen(0, '127.0.0.1')
new WebSocketServer({ server: plain, path: '/ws' }).on('connection', (socket) => {
  socket.on('message', (data, binary) => socket.send(data, { binary }))
})
const [cert, key] = process.argv.slice(2).map((path) => readFileSync(path))
const secure = createSecureServer({ cert: cert!, key: key!, allowHTTP1: true }, (
  request,
  response,
) => answer(request as unknown as IncomingMessage, response as unknown as ServerResponse))
secure.listen(0, '127.0.0.1')
await Promise.all([once(plain, 'listening'), once(secure, 'listening')])
const port = (plain.address() as AddressInfo).port
const h2Port = (secure.address() as AddressInfo).port
console.log(JSON.stringify({ event: 'listening', port, h2Port }))
