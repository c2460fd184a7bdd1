/** Between an agent and a CA: answers in the CA's place where a test wants it, and counts what is asked. */
import { readFileSync } from 'node:fs'
import * as https from 'node:https'
import type { AddressInfo } from 'node:net'
import { dirname, join } from 'node:path'
import type { Pebble } from './pebble.ts'

export interface ProxyAnswer {
  status: number
  headers?: Record<string, string>
  body: unknown
}

export interface AcmeProxy {
  readonly directory: string
  readonly serverCaPath: string
  /** `METHOD /path` of all that was asked. */
  readonly asked: string[]
  /** Payloads of the orders that were made. */
  readonly orders: Record<string, unknown>[]
  /** Undefined: the CA itself answers. */
  answer: (
    path: string,
    method: string,
  ) => ProxyAnswer | undefined | Promise<ProxyAnswer | undefined>
  close(): Promise<void>
}

/** `renewalInfo`: the directory says that there is some, at `/ari/ID`. */
export async function startAcmeProxy(
  pebble: Pebble,
  options: { renewalInfo?: boolean } = {},
): Promise<AcmeProxy> {
  const key = readFileSync(join(dirname(pebble.serverCaPath), 'key.pem'))
  const target = new URL(pebble.directory)
  const server = https.createServer({ key, cert: pebble.serverCa }, async (request, response) => {
    const path = request.url!
    proxy.asked.push(`${request.method} ${path}`)
    const own = await proxy.answer(path, request.method!)
    if (own) {
      const json = { 'content-type': 'application/problem+json', ...own.headers }
      response.writeHead(own.status, json).end(JSON.stringify(own.body))
      return request.resume()
    }
    const chunks: Buffer[] = []
    request.on('data', (bytes) => chunks.push(bytes))
    request.on('end', () => {
      const body = Buffer.concat(chunks)
      note(path, body)
      const onward = https.request({
        host: '127.0.0.1',
        servername: 'localhost',
        port: target.port,
        path,
        method: request.method,
        // The Host stays: what is signed names this address.
        headers: { ...request.headers, 'accept-encoding': 'identity' },
        ca: pebble.serverCa,
        agent: false,
      }, (answer) => {
        const parts: Buffer[] = []
        answer.on('data', (bytes) => parts.push(bytes))
        answer.on('end', () => {
          let words = Buffer.concat(parts)
          const headers = { ...answer.headers }
          if (path === '/dir' && options.renewalInfo) {
            const found = JSON.parse(words.toString())
            words = Buffer.from(JSON.stringify({ ...found, renewalInfo: `${origin()}/ari` }))
            delete headers['content-length']
          }
          response.writeHead(answer.statusCode!, headers).end(words)
        })
      })
      onward.on('error', () => response.destroy())
      onward.end(body)
    })
  })
  const note = (path: string, body: Buffer): void => {
    if (path !== '/order-plz') return
    const { payload } = JSON.parse(body.toString())
    proxy.orders.push(JSON.parse(Buffer.from(payload, 'base64url').toString()))
  }
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const origin = (): string => `https://localhost:${(server.address() as AddressInfo).port}`
  const proxy: AcmeProxy = {
    directory: `${origin()}/dir`,
    serverCaPath: pebble.serverCaPath,
    asked: [],
    orders: [],
    answer: () => undefined,
    close() {
      server.closeAllConnections()
      return new Promise((resolve) => server.close(() => resolve()))
    },
  }
  return proxy
}
