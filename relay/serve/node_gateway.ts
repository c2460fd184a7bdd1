/**
 * The visitor's side of readable HTTP where the runtime has `node:https`: Node, self-hosted Deno and
 * Bun. It listens on loopback behind the ingress; who is at the other end of a connection is asked of
 * the owner, by its port. The parser is the runtime's; what some of them let pass is refused by
 * `relay/request_head.ts`.
 */
import type { IncomingMessage, ServerResponse } from 'node:http'
import * as https from 'node:https'
import type { AddressInfo } from 'node:net'
import type { Duplex } from 'node:stream'
import {
  type Fields,
  FIELDS_MAX,
  HEAD_BYTES_MAX,
  type ResponseHead,
  responseLength,
} from '../../core/exchange.ts'
import type { Gateway, GatewayExchange, VisitorAnswer } from '../gateway.ts'
import { failure } from '../pages/failure.ts'
import { Problem } from '../problem.ts'

const HEAD_MS = 15_000
const KEEP_ALIVE_MS = 60_000
/** A visitor whose request was answered before it was whole gets so long to read the answer. */
const LINGER_MS = 2_000
/** Unanswered requests on one connection; one that sends more is cut off. */
const PIPELINED_MAX = 64
/** For TLS with a visitor. */
const HANDSHAKE_MS = 10_000
/** How often the runtime looks for heads that are late. */
const LOOK_MS = 5_000
const LOOPBACK = '127.0.0.1'

export interface ServeGatewayOptions {
  /** PEM. */
  tls: { cert: string; key: string }
  /** Who is behind the connection that came from this loopback port; undefined: none of ours. */
  address(port: number): string | undefined
  /** For the whole head of a request to arrive. Default 15 s. */
  headMs?: number
  /** An idle connection is kept so long for the next request. Default 60 s. */
  keepAliveMs?: number
}

/** Listens on a free loopback port. */
export async function serveGateway(
  gateway: Gateway,
  options: ServeGatewayOptions,
): Promise<{ port: number; close(): Promise<void> }> {
  const { headMs = HEAD_MS, keepAliveMs = KEEP_ALIVE_MS } = options
  const server = https.createServer({
    cert: options.tls.cert,
    key: options.tls.key,
    minVersion: 'TLSv1.2',
    ALPNProtocols: ['http/1.1'],
    maxHeaderSize: HEAD_BYTES_MAX,
    headersTimeout: headMs,
    requestTimeout: 0,
    keepAliveTimeout: keepAliveMs,
    handshakeTimeout: HANDSHAKE_MS,
    connectionsCheckingInterval: Math.min(headMs, LOOK_MS),
    noDelay: true,
  })
  // One more than is allowed, so that too many are seen and refused instead of cut off.
  server.maxHeadersCount = FIELDS_MAX + 1
  server.timeout = 0
  const serve = (request: IncomingMessage, response: ServerResponse): void => {
    const address = options.address(request.socket.remotePort ?? 0)
    if (address === undefined) return void request.socket.destroy()
    const connection = connectionOf(request.socket)
    // The parser runs ahead: what it found behind a request that ends the connection is none.
    if (connection.closing) return
    if (connection.answers.size >= PIPELINED_MAX) return void request.socket.destroy()
    new NodeAnswer(request, response, connection).serve(gateway, address)
  }
  server.on('request', serve)
  // Whether to go on is the upstream's to say; its 100 comes as an interim response.
  server.on('checkContinue', serve)
  server.on('upgrade', (request: IncomingMessage, socket: Duplex, first: Buffer) => {
    socket.on('error', () => {})
    const address = options.address(request.socket.remotePort ?? 0)
    if (address === undefined) return void socket.destroy()
    // Its body would come unframed: the runtime has stopped parsing.
    if (hasBody(request)) return sayAndClose(socket, plain(400, 'Bad Request'))
    new UpgradeAnswer(request, socket, first).serve(gateway, address)
  })
  refuseTheRest(server)
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(0, LOOPBACK, () => resolve())
  })
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve())
        server.closeAllConnections()
      }),
  }
}

/** What no exchange can be made of, each with its answer. */
function refuseTheRest(server: https.Server): void {
  server.on('checkExpectation', (request: IncomingMessage, response: ServerResponse) => {
    refuse(request, response, {
      status: 417,
      found: 'an expectation other than 100-continue',
    })
  })
  server.on('connect', (_: IncomingMessage, socket: Duplex) => {
    socket.on('error', () => {})
    const allow = 'Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n'
    sayAndClose(socket, plain(405, 'Method Not Allowed', allow))
  })
  server.on('clientError', (error: Error & { code?: string }, socket: Duplex) => {
    // Bytes behind a request that ends the connection; its response still goes out.
    if (error.code === 'HPE_CLOSED_CONNECTION') return
    const connection = connectionOf(socket)
    const answer = connection.last
    if (answer?.torn) return void socket.destroy()
    if (connection.closing) return
    if (!socket.writable || error.code === 'ECONNRESET') return void socket.destroy()
    if (answer?.outlives()) return
    answer?.leave()
    const [status, words] = clientError(error.code ?? '')
    sayAndClose(socket, plain(status, words))
  })
}

function clientError(code: string): [status: number, words: string] {
  if (code === 'HPE_HEADER_OVERFLOW') return [431, 'Request Header Fields Too Large']
  if (code === 'ERR_HTTP_REQUEST_TIMEOUT') return [408, 'Request Timeout']
  return [400, 'Bad Request']
}

/** A response without a body, for what never became a request. */
function plain(status: number, words: string, fields = ''): string {
  return `HTTP/1.1 ${status} ${words}\r\n${fields}Content-Length: 0\r\nConnection: close\r\n\r\n`
}

function refuse(
  request: IncomingMessage,
  response: ServerResponse,
  { status, found }: { status: 417; found: string },
): void {
  const problem = new Problem(status, {
    code: 'http/expectation',
    message: `Cannot read the request: found ${found}`,
  })
  const page = failure(problem, request.headers.accept ?? '')
  response.writeHead(page.status, [...page.headers, ['Connection', 'close']].flat())
  response.end(page.body)
}

function pairs(flat: readonly string[]): Fields {
  const fields: Fields = []
  for (let i = 0; i + 1 < flat.length; i += 2) fields.push([flat[i]!, flat[i + 1]!])
  return fields
}

function visitorRequest(
  request: IncomingMessage,
  address: string,
): Parameters<Gateway['serve']>[0] {
  return {
    method: request.method ?? '',
    target: request.url ?? '',
    version: request.httpVersion,
    scheme: 'https',
    headers: pairs(request.rawHeaders),
    address,
    port: 0,
  }
}

function hasBody(request: IncomingMessage): boolean {
  const { 'content-length': length, 'transfer-encoding': coding } = request.headers
  return coding !== undefined || (length !== undefined && length !== '0')
}

/** The last words on a connection; what still comes is dropped, unparsed. */
function sayAndClose(socket: Duplex, words: string): void {
  connectionOf(socket).closing = true
  socket.end(words)
  socket.removeAllListeners('data')
  socket.resume()
  closeSoon(socket)
}

/** The other end reads on for a while: closing on unread bytes is a reset, which can overtake an answer. */
function closeSoon(socket: Duplex): void {
  const timer = setTimeout(() => socket.destroy(), LINGER_MS)
  timer.unref()
  socket.once('close', () => clearTimeout(timer))
}

/** What is known of one visitor's connection. */
interface Connection {
  /** It ends with the response that was begun last: no request follows. */
  closing: boolean
  /** What was read last. */
  last: NodeAnswer | undefined
  /** Not answered yet. */
  answers: Set<NodeAnswer>
}

const connections = new WeakMap<Duplex, Connection>()

function connectionOf(socket: Duplex): Connection {
  let connection = connections.get(socket)
  if (!connection) {
    const made: Connection = { closing: false, last: undefined, answers: new Set() }
    connections.set(socket, connection = made)
    // A response that waits for its turn is not told by every runtime that nobody will read it.
    socket.once('close', () => {
      for (const answer of made.answers) answer.leave()
    })
  }
  return connection
}

/** One request and its response. */
class NodeAnswer implements VisitorAnswer {
  readonly #request: IncomingMessage
  readonly #response: ServerResponse
  readonly #connection: Connection
  #closes = false
  #exchange: GatewayExchange | undefined

  constructor(request: IncomingMessage, response: ServerResponse, connection: Connection) {
    this.#request = request
    this.#response = response
    this.#connection = connection
  }

  serve(gateway: Gateway, address: string): void {
    const request = this.#request
    const response = this.#response
    this.#connection.last = this
    this.#connection.answers.add(this)
    const exchange = gateway.serve(visitorRequest(request, address), this)
    this.#exchange = exchange
    request.on('data', (bytes: Uint8Array) => exchange.body(bytes))
    request.on('end', () => exchange.end(pairs(request.rawTrailers)))
    request.on('error', () => exchange.left())
    request.on('aborted', () => exchange.left())
    // Without a body there is nothing to hold back, and the connection waits for the end of it.
    if (hasBody(request)) request.pause()
    else request.resume()
    response.on('drain', () => exchange.drained())
    response.on('error', () => exchange.left())
    response.on('close', () => {
      this.#connection.answers.delete(this)
      exchange.left()
    })
  }

  info(status: number, headers: Fields): void {
    const response = this.#response
    try {
      if (status === 100) response.writeContinue()
      else if (status === 102) response.writeProcessing()
      else if (status === 103) {
        const hints: Record<string, string[]> = {}
        for (const [name, value] of headers) (hints[name.toLowerCase()] ??= []).push(value)
        if (hints['link']) response.writeEarlyHints(hints)
      }
    } catch {
      // The runtime is choosy about hints; one that it will not send is no loss.
    }
  }

  head({ status, headers }: ResponseHead, { close }: { close: boolean }): void {
    const response = this.#response
    const announces = response.req.method !== 'HEAD' && this.#request.httpVersion !== '1.0' &&
      !headers.some(([name]) => name.toLowerCase() === 'content-length')
    const fields = announces ? headers : headers.filter(([name]) => !/^trailer$/i.test(name))
    this.#connection.closing ||= close
    this.#closes = this.#connection.closing
    const flat = (this.#closes ? [...fields, ['Connection', 'close']] : fields).flat()
    response.writeHead(status, flat)
    // Deno 2.9 never closes after a flushed head of a response without a body.
    if (responseLength({ status, headers }, this.#request.method ?? '') !== 0) {
      response.flushHeaders()
    }
  }

  leave(): void {
    this.#exchange?.left()
  }

  /** A response was begun to a request that will not be whole any more. */
  get torn(): boolean {
    const { headersSent, writableEnded } = this.#response
    return headersSent && !writableEnded && !this.#request.complete
  }

  /** The parser failed behind this request: true when it is whole, so that its response may go out as the last. */
  outlives(): boolean {
    if (!this.#request.complete || this.#response.writableEnded) return false
    this.#connection.closing = true
    return true
  }

  write(bytes: Uint8Array): boolean {
    return this.#response.write(bytes)
  }

  end(trailers: Fields): void {
    if (trailers.length > 0) this.#response.addTrailers(trailers)
    this.#response.end()
    if (this.#closes) this.#linger()
    else this.#request.resume()
  }

  abort(): void {
    this.#request.socket.destroy()
  }

  pause(): void {
    this.#request.pause()
  }

  resume(): void {
    this.#request.resume()
  }

  #linger(): void {
    closeSoon(this.#request.socket)
    this.#request.resume()
  }
}

/** A request for another protocol: the runtime hands its connection over, and the answer is ours to write. */
class UpgradeAnswer implements VisitorAnswer {
  readonly #request: IncomingMessage
  readonly #socket: Duplex
  readonly #first: Buffer
  #exchange: GatewayExchange | undefined
  #upgraded = false
  #chunked = false

  constructor(request: IncomingMessage, socket: Duplex, first: Buffer) {
    this.#request = request
    this.#socket = socket
    this.#first = first
  }

  serve(gateway: Gateway, address: string): void {
    const socket = this.#socket
    socket.pause()
    const exchange = gateway.serve(visitorRequest(this.#request, address), this)
    this.#exchange = exchange
    socket.on('data', (bytes: Uint8Array) => exchange.body(bytes))
    socket.pause()
    socket.on('end', () => {
      // Before the switch this is a visitor that left.
      if (this.#upgraded) exchange.end([])
      else exchange.left()
    })
    socket.on('drain', () => exchange.drained())
    socket.on('close', () => exchange.left())
  }

  info(): void {
    // Nobody hints before a switch of protocols.
  }

  head({ status, headers, upgrade }: ResponseHead): void {
    this.#upgraded = upgrade !== undefined
    const fields = headers.filter(([name]) => !/^trailer$/i.test(name))
    const bodyless = this.#request.method === 'HEAD' || status === 204 || status === 304
    this.#chunked = !this.#upgraded && !bodyless && this.#request.httpVersion !== '1.0' &&
      !fields.some(([name]) => name.toLowerCase() === 'content-length')
    if (upgrade !== undefined) fields.push(['Connection', 'Upgrade'], ['Upgrade', upgrade])
    else fields.push(['Connection', 'close'])
    if (this.#chunked) fields.push(['Transfer-Encoding', 'chunked'])
    const lines = fields.map(([name, value]) => `${name}: ${value}\r\n`)
    this.#socket.write(Buffer.from(`HTTP/1.1 ${status} \r\n${lines.join('')}\r\n`, 'latin1'))
    if (this.#upgraded && this.#first.length > 0) this.#exchange?.body(this.#first)
  }

  write(bytes: Uint8Array): boolean {
    if (!this.#chunked) return this.#socket.write(bytes)
    this.#socket.write(`${bytes.length.toString(16)}\r\n`)
    this.#socket.write(bytes)
    return this.#socket.write('\r\n')
  }

  end(): void {
    if (this.#chunked) this.#socket.write('0\r\n\r\n')
    this.#socket.end()
    if (this.#upgraded) return
    closeSoon(this.#socket)
    this.#socket.resume()
  }

  abort(): void {
    this.#socket.destroy()
  }

  pause(): void {
    this.#socket.pause()
  }

  resume(): void {
    this.#socket.resume()
  }
}
