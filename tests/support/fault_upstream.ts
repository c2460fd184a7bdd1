/**
 * An HTTP service as a program of its own: `bun fault_upstream.ts PORT`. `/bytes/N` sends N bytes as
 * fast as they are taken, `/ticks` a line ten times a second for ever, anything else says hello.
 * `{"do":"sent","url":…}` on standard input tells what was sent under that URL so far.
 */
import { createServer } from 'node:http'
import type { ServerResponse } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { createInterface } from 'node:readline'

const CHUNK = Buffer.alloc(65_536, 'sotto ')
const TICK_MS = 100

function say(event: string, fields: object = {}): void {
  process.stdout.write(`${JSON.stringify({ event, atMs: Date.now(), ...fields })}\n`)
}

function sendBytes(
  response: ServerResponse,
  { total, sent }: { total: number; sent(bytes: number): void },
): void {
  let left = total
  response.writeHead(200, { 'content-length': total })
  const more = (): void => {
    while (left > 0 && !response.destroyed) {
      const length = Math.min(left, CHUNK.length)
      left -= length
      sent(length)
      if (!response.write(length === CHUNK.length ? CHUNK : CHUNK.subarray(0, length))) {
        if (left > 0) response.once('drain', more)
        else response.end()
        return
      }
    }
    if (left === 0) response.end()
  }
  more()
}

function main(): void {
  const sockets = new Set<Socket>()
  const sent = new Map<string, number>()
  const server = createServer((request, response) => {
    const url = request.url ?? ''
    if (url.startsWith('/bytes/')) {
      return sendBytes(response, {
        total: Number(/\d+/.exec(url)![0]),
        sent: (bytes) => sent.set(url, (sent.get(url) ?? 0) + bytes),
      })
    }
    if (url === '/ticks') {
      response.writeHead(200, { 'content-type': 'text/plain' })
      const timer = setInterval(() => response.write('tick\n'), TICK_MS)
      response.write('tick\n')
      return void response.on('close', () => clearInterval(timer))
    }
    response.writeHead(200, { 'content-type': 'text/plain' })
    response.end('hello')
  })
  server.on('connection', (socket: Socket) => {
    sockets.add(socket)
    socket.on('error', () => {})
    socket.on('close', () => sockets.delete(socket))
  })
  server.keepAliveTimeout = 60_000
  server.listen(Number(process.argv[2] ?? 0), '127.0.0.1', () => {
    say('listening', { port: (server.address() as AddressInfo).port })
  })
  createInterface({ input: process.stdin }).on('line', (line) => {
    const order = JSON.parse(line) as { do: string; url?: string }
    say(order.do, { sent: sent.get(order.url ?? '') ?? 0, open: sockets.size })
  }).on('close', () => process.exit(0))
}

main()
