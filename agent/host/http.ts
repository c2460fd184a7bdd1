/**
 * HTTP/1.1 by the runtime's own implementation: a server that listens nowhere and is fed with
 * connections, and exchanges with an upstream. Parsing, framing and their attacks stay in one place
 * that is not ours.
 */
import * as http from 'node:http'
import * as https from 'node:https'
import type { Duplex } from 'node:stream'
import { DuplexConn } from '../../core/duplex_conn.ts'
import { TunnelError } from '../../core/errors.ts'
import type { Conn } from '../../core/socket.ts'
import type {
  HeaderList,
  HttpBody,
  HttpHandler,
  HttpIncoming,
  HttpLimits,
  HttpOutgoing,
  HttpPort,
  HttpRequestOptions,
  HttpResponseHandler,
  HttpSending,
  HttpServer,
  TlsConn,
} from '../world.ts'
import { bareHost, connectError } from './tcp.ts'

/** Time for a request's head to arrive whole. */
const HEAD_MS = 20_000
/** An idle connection is kept so long for the next request. */
const KEEP_ALIVE_MS = 75_000
/** After the end a visitor may take so long to close its side. */
const LINGER_MS = 2_000
const HEAD_BYTES_MAX = 65_536
const CONNECT_MS = 10_000
/** Idle connections kept to upstreams, and how long. */
const IDLE_MAX = 256
const IDLE_MS = 4_000
const SOCKETS_MAX = 1_024
const EMPTY = new Uint8Array(0)

type Visitor = HttpIncoming['visitor']
const NOBODY: Visitor = { address: '', port: 0 }

export const hostHttp: HttpPort = { server, request }

const agentOptions = {
  keepAlive: true,
  maxSockets: SOCKETS_MAX,
  maxFreeSockets: IDLE_MAX,
  timeout: IDLE_MS,
}
const agents = { http: new http.Agent(agentOptions), https: new https.Agent(agentOptions) }

function server(handler: HttpHandler, limits: HttpLimits = {}): HttpServer {
  // A server that does not listen never checks its own timeouts, so `Served` keeps them.
  const inner = http.createServer({
    maxHeaderSize: HEAD_BYTES_MAX,
    requestTimeout: 0,
    keepAliveTimeout: 0,
    noDelay: true,
  })
  const open = new Map<Duplex, Served>()
  function visitorOf(request: http.IncomingMessage): Visitor {
    return open.get(request.socket)?.visitor ?? NOBODY
  }
  inner.on('request', (request, response) => {
    open.get(request.socket)?.began(response)
    handler.request(incoming(request, visitorOf(request)), new Outgoing(response))
  })
  inner.on('upgrade', (request: http.IncomingMessage, socket: Duplex, head: Buffer) => {
    // Without a listener an abort here would end the process.
    socket.on('error', () => {})
    open.get(socket)?.upgraded()
    let answered = false
    handler.upgrade(incoming(request, visitorOf(request)), {
      onClose(run) {
        socket.once('close', () => {
          if (!answered) run()
        })
      },
      respond(status, headers, body) {
        answered = true
        socket.write(headBytes(status, headers))
        if (status !== 101) {
          socket.end(body ?? EMPTY)
          return undefined
        }
        if (head.length > 0) socket.unshift(head)
        return new DuplexConn(socket)
      },
    })
  })
  inner.on('clientError', (_, socket) => {
    if (socket.writable) socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n')
    else socket.destroy()
  })
  return {
    accept(conn: TlsConn, visitor: Visitor) {
      const socket = conn.detach() as Duplex
      socket.on('error', () => {})
      const served = new Served(socket, { visitor, limits })
      open.set(socket, served)
      return new Promise((resolve) => {
        socket.once('close', () => {
          open.delete(socket)
          served.upgraded()
          resolve()
        })
        inner.emit('connection', socket)
      })
    },
    close() {
      inner.close()
      inner.closeIdleConnections()
      for (const socket of open.keys()) socket.destroy()
    },
  }
}

/** One connection of a server: whose it is, and how long it may stand still. */
class Served {
  readonly visitor: Visitor
  readonly #socket: Duplex
  readonly #idleMs: number
  #running = 0
  #timer: ReturnType<typeof setTimeout> | undefined

  constructor(
    socket: Duplex,
    { visitor, limits }: { visitor: Visitor; limits: HttpLimits },
  ) {
    this.#socket = socket
    this.visitor = visitor
    this.#idleMs = limits.idleMs ?? KEEP_ALIVE_MS
    this.#wait(limits.headMs ?? HEAD_MS)
  }

  began(response: http.ServerResponse): void {
    this.#running++
    clearTimeout(this.#timer)
    response.once('close', () => {
      if (--this.#running === 0) this.#wait(this.#idleMs)
    })
  }

  /** Not HTTP any more, or closed: time does not matter now. */
  upgraded(): void {
    this.#running = Number.POSITIVE_INFINITY
    clearTimeout(this.#timer)
  }

  #wait(ms: number): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => {
      this.#socket.end()
      this.#timer = setTimeout(() => this.#socket.destroy(), LINGER_MS)
    }, ms)
    this.#timer.unref()
  }
}

function incoming(request: http.IncomingMessage, visitor: Visitor): HttpIncoming {
  return Object.assign(body(request), {
    method: request.method ?? 'GET',
    target: request.url ?? '/',
    headers: pairs(request.rawHeaders),
    visitor,
  })
}

function body(message: http.IncomingMessage): HttpBody {
  return {
    handle(handler) {
      let over = false
      message.on('data', (bytes: Buffer) => handler.data(bytes))
      message.once('end', () => {
        if (over) return
        over = true
        handler.end(pairs(message.rawTrailers))
      })
      const aborted = (): void => {
        if (over) return
        over = true
        handler.aborted()
      }
      message.on('error', aborted)
      message.once('aborted', aborted)
      message.once('close', aborted)
    },
    pause: () => void message.pause(),
    resume: () => void message.resume(),
  }
}

class Outgoing implements HttpOutgoing {
  readonly #response: http.ServerResponse

  constructor(response: http.ServerResponse) {
    this.#response = response
    response.sendDate = false
    response.on('error', () => {})
  }

  info(status: number, headers: HeaderList): void {
    if (status === 100) this.#response.writeContinue()
    else if (status === 102) this.#response.writeProcessing()
    else if (status === 103) {
      const link = headers.filter(([name]) => name.toLowerCase() === 'link').map(([, v]) => v)
      if (link.length > 0) this.#response.writeEarlyHints({ link })
    }
  }

  head(status: number, headers: HeaderList, reason?: string): void {
    const flat = headers.flat()
    if (reason) this.#response.writeHead(status, reason, flat)
    else this.#response.writeHead(status, flat)
    this.#response.flushHeaders()
  }

  write(bytes: Uint8Array): boolean {
    return this.#response.write(bytes)
  }

  end(trailers: HeaderList = []): void {
    if (trailers.length > 0) this.#response.addTrailers(trailers)
    this.#response.end()
  }

  abort(): void {
    if (this.#response.socket) this.#response.socket.destroy()
    else this.#response.destroy()
  }

  onDrain(run: () => void): void {
    this.#response.on('drain', run)
  }

  onClose(run: () => void): void {
    this.#response.once('close', () => {
      if (!this.#response.writableFinished) run()
    })
  }
}

function request(options: HttpRequestOptions, handler: HttpResponseHandler): HttpSending {
  // An idle connection may be closed by the upstream just as it is used again; only what can be asked
  // twice goes over one.
  const again = /^(GET|HEAD|OPTIONS)$/.test(options.method) && !hasBody(options.headers) &&
    !options.headers.some(([name]) => name.toLowerCase() === 'upgrade')
  const exchange = new Exchange(options, handler, { again })
  return exchange
}

function hasBody(headers: HeaderList): boolean {
  return headers.some(([name, value]) => {
    const lower = name.toLowerCase()
    return lower === 'transfer-encoding' || (lower === 'content-length' && value !== '0')
  })
}

/** One exchange; started over once on a fresh connection when an idle one turned out dead. */
class Exchange implements HttpSending {
  readonly #options: HttpRequestOptions
  readonly #handler: HttpResponseHandler
  #request: http.ClientRequest
  #again: boolean
  #ended = false
  #over = false

  constructor(
    options: HttpRequestOptions,
    handler: HttpResponseHandler,
    { again }: { again: boolean },
  ) {
    this.#options = options
    this.#handler = handler
    this.#again = again
    this.#request = this.#start(again)
  }

  #start(reuse: boolean): http.ClientRequest {
    const { target, tls, method, path, headers } = this.#options
    const place = 'path' in target
      ? { socketPath: target.path }
      : { host: bareHost(target.host), port: target.port }
    const common = { ...place, method, path, headers: headers.flat(), setHost: false }
    const made = tls
      ? https.request({
        ...common,
        agent: reuse ? agents.https : false,
        servername: tls.servername,
        rejectUnauthorized: tls.verify,
      })
      : http.request({ ...common, agent: reuse ? agents.http : false })
    this.#listen(made)
    return made
  }

  #listen(made: http.ClientRequest): void {
    const handler = this.#handler
    const timeoutMs = this.#options.timeoutMs ?? CONNECT_MS
    const timer = setTimeout(() => made.destroy(timedOut()), timeoutMs)
    made.on('socket', (socket) => {
      if (!socket.connecting) clearTimeout(timer)
      else socket.once('connect', () => clearTimeout(timer))
    })
    made.on('information', (info) => handler.info?.(info.statusCode, pairs(info.rawHeaders)))
    made.on('drain', () => handler.drain?.())
    made.on('response', (response) => {
      clearTimeout(timer)
      this.#over = true
      response.pause()
      handler.response(
        response.statusCode ?? 502,
        pairs(response.rawHeaders),
        body(response),
        response.statusMessage ?? '',
      )
    })
    made.on('upgrade', (response: http.IncomingMessage, socket: Duplex, head: Buffer) => {
      clearTimeout(timer)
      this.#over = true
      if (head.length > 0) socket.unshift(head)
      const conn: Conn = new DuplexConn(socket)
      if (handler.upgraded) handler.upgraded(pairs(response.rawHeaders), conn)
      else conn.abort()
    })
    made.on('error', (error) => {
      clearTimeout(timer)
      this.#failed(error)
    })
    made.on('close', () => clearTimeout(timer))
  }

  #failed(error: Error): void {
    if (this.#over) return
    if (this.#again && (error as { code?: string }).code === 'ECONNRESET') {
      this.#again = false
      this.#request = this.#start(false)
      if (this.#ended) this.#request.end()
      return
    }
    this.#over = true
    const code = (error as { code?: string }).code ?? ''
    if (code === 'ECONNRESET' || code.startsWith('HPE_') || /socket hang up/.test(error.message)) {
      this.#handler.failed(
        new TunnelError('http/broken', `Cannot read response: ${code || error.message}`, {
          cause: error,
        }),
      )
    } else this.#handler.failed(connectError(this.#options.target, error, this.#options.timeoutMs))
  }

  write(bytes: Uint8Array): boolean {
    this.#again = false
    return this.#request.write(bytes)
  }

  end(trailers: HeaderList = []): void {
    this.#ended = true
    if (trailers.length > 0) this.#request.addTrailers(trailers)
    this.#request.end()
  }

  abort(): void {
    this.#over = true
    this.#request.destroy()
  }
}

function timedOut(): Error {
  return Object.assign(new Error('connect timed out'), { code: 'ETIMEDOUT' })
}

function pairs(flat: readonly string[]): HeaderList {
  const out: HeaderList = []
  for (let i = 0; i + 1 < flat.length; i += 2) out.push([flat[i]!, flat[i + 1]!])
  return out
}

/** A response head as bytes; for answers to upgrades, which the runtime leaves to its user. */
function headBytes(status: number, headers: HeaderList): string {
  const lines = [`HTTP/1.1 ${status} ${http.STATUS_CODES[status] ?? 'Unknown'}`]
  for (const [name, value] of headers) lines.push(`${name}: ${value.replace(/[\r\n]/g, ' ')}`)
  return `${lines.join('\r\n')}\r\n\r\n`
}
