/** A desk in front of a real HTTP server, for the suites of the gateway; each test says what it serves. */
import * as http from 'node:http'
import type { AddressInfo } from 'node:net'
import { HOST, openDesk } from './exchange.ts'
import type { Desk } from './exchange.ts'

export interface WebDesk {
  desk: Desk
  server: http.Server
  port: number
  /** What the server answers from now on. */
  serve: (request: http.IncomingMessage, response: http.ServerResponse) => void
  close(): Promise<void>
}

export async function openWebDesk(): Promise<WebDesk> {
  const server = http.createServer((request, response) => web.serve(request, response))
  server.on('checkContinue', (request, response) => web.serve(request, response))
  server.keepAliveTimeout = 1000
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  const desk = await openDesk({
    upstream: { kind: 'tcp', host: '127.0.0.1', port, text: 'upstream' },
  })
  const web: WebDesk = {
    desk,
    server,
    port,
    serve: (_, response) => void response.end(),
    async close() {
      await desk.close()
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
  return web
}

/** A request to the desk's host after which its connection ends. */
export function request(line: string, fields: string[] = [], body = ''): string {
  return [`${line} HTTP/1.1`, `Host: ${HOST}`, ...fields, 'Connection: close', '', body].join(
    '\r\n',
  )
}
