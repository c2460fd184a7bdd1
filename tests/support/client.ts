/**
 * Everybody who talks to a relay that is a real process, by the book and against it: agents over a
 * WebSocket whose certificate is checked by admission, visitors and bulk links over TCP and TLS,
 * HTTP requests. Runs on Node, whose `ws` and `tls` show certificates, close codes and half-closes
 * as they are on the wire.
 */
import { createHash } from 'node:crypto'
import { request as httpRequest } from 'node:http'
import { request as httpsRequest } from 'node:https'
import { connect as connectTcp } from 'node:net'
import type { Socket as TcpSocket } from 'node:net'
import { connect as connectTls } from 'node:tls'
import type { TLSSocket } from 'node:tls'
import { WebSocket } from 'ws'
import { AgentAdmission } from '../../core/admit.ts'
import type { Credential } from '../../core/admit.ts'
import { fromHex } from '../../core/bytes.ts'
import { DuplexConn } from '../../core/duplex_conn.ts'
import {
  decodeFrame,
  decodeJson,
  decodeNotice,
  encodeFrame,
  encodeJson,
  FRAME,
  FRAME_BYTES_MAX,
} from '../../core/frame.ts'
import type { Frame, FrameName } from '../../core/frame.ts'
import { formatKey, generateIdentity } from '../../core/key.ts'
import type { Identity } from '../../core/key.ts'
import { Mux } from '../../core/mux.ts'
import type { Stream } from '../../core/mux.ts'
import type { Conn } from '../../core/socket.ts'
import { encodeTicket } from '../../core/ticket.ts'
import type { TicketClass } from '../../core/ticket.ts'
import { systemClock } from '../../relay/serve/host.ts'
import { WsSocket } from '../../relay/serve/ws_socket.ts'
import { fast } from './crypto.ts'
import type { RelayProcess } from './relays.ts'

const PING_MS = 2000
/** A relay that has said its close code need not end the connection first: workerd takes its time. */
const CLOSE_MS_MAX = 1000
/** Whatever a test waits for must have come by then: a hang is told by name, not by the runner. */
const PATIENCE_MS = 15_000

type Where = Pick<RelayProcess, 'url' | 'host' | 'port'>

/** `waited`, or an error that says what did not come. */
export function within<T>(waited: Promise<T>, what: string, ms = PATIENCE_MS): Promise<T> {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`${what} did not come in ${ms} ms`)), ms)
    waited.then(resolve, reject).finally(() => clearTimeout(late))
  })
}

/** The WebSocket of a link and its messages, with nothing said on it yet. */
export class RawLink {
  readonly ws: WebSocket
  readonly socket: WsSocket
  /** SHA-256 of the certificate that this very connection got; undefined without TLS. */
  certificate: Uint8Array | undefined
  readonly closed: Promise<{ code: number; reason: string }>
  onFrame: ((frame: Frame) => void) | undefined
  readonly #waiting: Frame[] = []
  readonly #askers: ((frame: Frame) => void)[] = []
  #pings: ReturnType<typeof setInterval> | undefined

  private constructor(ws: WebSocket) {
    this.ws = ws
    this.socket = new WsSocket(ws)
    this.socket.handle({
      message: (message) => this.#message(decodeFrame(message)),
      closed() {},
    })
    this.closed = new Promise((resolve) => {
      ws.once('close', (code, reason) => {
        clearInterval(this.#pings)
        resolve({ code, reason: reason.toString() })
      })
    })
  }

  /** Rejects with the status where the relay answers something else than 101. */
  static open(relay: Where, key: string, protocol = 'sotto.v1'): Promise<RawLink> {
    const url = `${relay.url.replace(/^http/, 'ws')}/v1/link/${key}`
    const options = {
      rejectUnauthorized: false,
      perMessageDeflate: false,
      maxPayload: FRAME_BYTES_MAX,
      closeTimeout: CLOSE_MS_MAX,
      // The tests' own relays listen on 127.0.0.1, whatever this machine makes of `localhost`.
      createConnection:
        ((options: object) =>
          relay.url.startsWith('https:')
            ? connectTls({ ...options, host: relay.host, servername: 'localhost' })
            : connectTcp({ host: relay.host, port: relay.port })) as typeof connectTcp,
    }
    const ws = new WebSocket(url, protocol, options)
    const link = new RawLink(ws)
    return within(
      new Promise((resolve, reject) => {
        ws.once('upgrade', ({ socket }) => {
          const raw = (socket as Partial<TLSSocket>).getPeerCertificate?.().raw
          if (raw) link.certificate = new Uint8Array(createHash('sha256').update(raw).digest())
        })
        ws.once('unexpected-response', (_request, response) => {
          response.resume()
          reject(new Error(`status ${response.statusCode}`))
          ws.terminate()
        })
        ws.once('error', reject)
        ws.once('open', () => {
          link.#pings = setInterval(() => ws.ping(), PING_MS)
          link.#pings.unref()
          resolve(link)
        })
      }),
      'the WebSocket',
    )
  }

  #message(frame: Frame): void {
    if (this.onFrame) return this.onFrame(frame)
    const asker = this.#askers.shift()
    if (asker) asker(frame)
    else this.#waiting.push(frame)
  }

  /** The next frame, in order; only while `onFrame` is unset. */
  next(): Promise<Frame> {
    const frame = this.#waiting.shift()
    if (frame) return Promise.resolve(frame)
    return within(new Promise((resolve) => void this.#askers.push(resolve)), 'a frame')
  }

  send(name: FrameName, id: number, payload?: Uint8Array): void {
    this.socket.send(encodeFrame(name, id, payload))
  }
}

export interface AgentOptions {
  secret?: string
  credential?: Credential
  identity?: Identity
  role?: 'home' | 'visit'
  /** The star's key; default the agent's own. */
  target?: Uint8Array
  /** 16 bytes. */
  group?: Uint8Array
  labels?: Record<string, string>
  /** The relay's key that is pinned. */
  pin?: string
  /** What the agent's mux grows windows to. */
  windowBytesMax?: number
}

/** An admission for `relay`, as agents make it. */
export function admissionFor(
  link: Pick<RawLink, 'certificate'>,
  { identity, ...options }: AgentOptions & { identity: Identity },
): AgentAdmission {
  const { secret = '' } = options
  return new AgentAdmission({
    crypto: fast,
    identity,
    target: options.target ?? identity.public,
    role: options.role ?? 'home',
    dialledName: 'localhost',
    certificate: link.certificate,
    certificateTrusted: false,
    pin: (relay) => options.pin === undefined || options.pin === formatKey(relay),
    credential: options.credential ??
      (secret === ''
        ? { kind: 'none' }
        : { kind: secret.startsWith('ft_') ? 'token' : 'key', secret }),
    group16: options.group ?? fast.randomBytes(16),
    version: 'test',
    labels: options.labels,
  })
}

/** How a link that was not admitted ended. */
export class Refused extends Error {
  readonly code: number
  readonly reason: string
  readonly notice: { code: string; message: string } | undefined

  constructor(end: { code: number; reason: string }, notice: Refused['notice']) {
    super(`refused with ${end.code} ${end.reason} ${notice?.message ?? ''}`)
    this.code = end.code
    this.reason = end.reason
    this.notice = notice
  }
}

/** An agent that is admitted: streams, requests, and its hands on every frame. */
export class WireAgent {
  readonly link: RawLink
  readonly identity: Identity
  readonly key: string
  readonly group: Uint8Array
  welcome: Record<string, unknown> = {}
  bulkKey: Uint8Array = new Uint8Array(32)
  mux!: Mux
  readonly notices: { code: string; message: string }[] = []
  /** Frames that are neither the mux's nor replies. */
  readonly frames: Frame[] = []
  /** Sees stream frames first; true takes them from the mux. */
  tap: ((frame: Frame) => boolean) | undefined
  onOpen: ((stream: Stream) => void) | undefined
  readonly #opened: Stream[] = []
  readonly #openAskers: ((stream: Stream) => void)[] = []
  readonly #frameAskers: { type: number; done(frame: Frame): void }[] = []
  readonly #replies = new Map<number, (reply: Record<string, unknown>) => void>()
  #next = 1
  #tickets = 0

  private constructor(link: RawLink, identity: Identity, group: Uint8Array) {
    this.link = link
    this.identity = identity
    this.key = formatKey(identity.public)
    this.group = group
  }

  /** Rejects with `Refused` when it is not admitted. */
  static async open(relay: Where, options: AgentOptions = {}): Promise<WireAgent> {
    const identity = options.identity ?? generateIdentity(fast)
    const group = options.group ?? fast.randomBytes(16)
    const link = await RawLink.open(relay, formatKey(options.target ?? identity.public))
    const agent = new WireAgent(link, identity, group)
    const admission = admissionFor(link, { ...options, identity, group })
    let notice: Refused['notice']
    await within(
      new Promise<void>((resolve, reject) => {
        link.onFrame = (frame) => {
          try {
            if (frame.type === FRAME.challenge) {
              link.send('admit', 0, admission.answer(frame.payload))
            } else if (frame.type === FRAME.notice) notice = decodeNotice(frame.payload)
            else if (frame.type === FRAME.welcome) {
              const { welcome, bulkKey } = admission.finish(frame.payload)
              agent.#up({ welcome, bulkKey, windowBytesMax: options.windowBytesMax })
              resolve()
            }
          } catch (error) {
            link.ws.terminate()
            reject(error)
          }
        }
        void link.closed.then((end) => reject(new Refused(end, notice)))
        link.send('hello', 0, admission.hello())
      }),
      'the welcome',
    )
    return agent
  }

  #up(admitted: {
    welcome: Record<string, unknown>
    bulkKey: Uint8Array
    windowBytesMax: number | undefined
  }): void {
    this.welcome = admitted.welcome
    this.bulkKey = admitted.bulkKey
    const { socket } = this.link
    this.mux = new Mux({
      side: 'agent',
      clock: systemClock,
      windowMaxBytes: admitted.windowBytesMax ?? Number(admitted.welcome['window']),
      send: (frame) => socket.send(frame),
      buffered: () => socket.buffered(),
      onOpen: (stream) => this.#open(stream),
      onProtocolError: (error) => socket.close(4400, error.code),
    })
    socket.handle({
      message: (message) => this.#receive(decodeFrame(message)),
      drain: () => this.mux.drain(),
      closed: () => {},
    })
    void this.link.closed.then(() => this.mux.close())
  }

  get closed(): Promise<{ code: number; reason: string }> {
    return within(this.link.closed, 'the end of the link')
  }

  #open(stream: Stream): void {
    if (this.onOpen) return this.onOpen(stream)
    const asker = this.#openAskers.shift()
    if (asker) asker(stream)
    else this.#opened.push(stream)
  }

  /** The next stream that came in, not accepted yet; only while `onOpen` is unset. */
  opened(): Promise<Stream> {
    const stream = this.#opened.shift()
    if (stream) return Promise.resolve(stream)
    return within(new Promise((resolve) => void this.#openAskers.push(resolve)), 'a stream')
  }

  #receive(frame: Frame): void {
    if (frame.type === FRAME.reply) {
      this.#replies.get(frame.id)?.(decodeJson(frame.payload))
      this.#replies.delete(frame.id)
    } else if (frame.type === FRAME.notice) this.notices.push(decodeNotice(frame.payload))
    else if (frame.type >= FRAME.open && frame.type <= FRAME.packet) {
      if (!this.tap?.(frame)) this.mux.receive(frame)
    } else {
      this.frames.push(frame)
      const at = this.#frameAskers.findIndex(({ type }) => type === frame.type)
      if (at >= 0) this.#frameAskers.splice(at, 1)[0]!.done(frame)
    }
  }

  /** A frame of this type that has come, or the next one. */
  frame(type: number): Promise<Frame> {
    const found = this.frames.find((frame) => frame.type === type)
    if (found) return Promise.resolve(found)
    return within(
      new Promise((done) => void this.#frameAskers.push({ type, done })),
      `a frame of type ${type}`,
    )
  }

  request(body: object): Promise<Record<string, unknown>> {
    const id = this.#next++
    return within(
      new Promise((resolve) => {
        this.#replies.set(id, resolve)
        this.link.send('request', id, encodeJson(body))
      }),
      'a reply',
    )
  }

  /** Asks for an endpoint and gives the reply, an error too. */
  ask(name: string, more: object = {}): Promise<Record<string, unknown>> {
    return this.request({ do: 'claim', name, kind: 'tcp', mode: 'verified', ...more })
  }

  /** The same where it must be granted. */
  async claim(name: string, more: object = {}): Promise<Record<string, unknown>> {
    const reply = await this.ask(name, more)
    if (reply['ok'] !== true) throw new Error(`claim of ${name}: ${JSON.stringify(reply['error'])}`)
    return reply
  }

  /** A stream of a visit link. */
  connect(endpoint: string): Stream {
    const nothing = new Uint8Array(0)
    return this.mux.open({ kind: 'connect', port: 1, address: 'a lie', endpoint, tail: nothing })
  }

  get linkId(): Uint8Array {
    return fromHex(String(this.welcome['link']))
  }

  /** The bytes that claim a bulk link, each call those of the next counter. */
  ticket(kind: TicketClass = 'verified', counter = ++this.#tickets): Uint8Array {
    return encodeTicket(fast, { linkId: this.linkId, counter, class: kind }, this.bulkKey)
  }

  get ticketsUsed(): number {
    return this.#tickets
  }

  async close(): Promise<void> {
    const { ws } = this.link
    if (ws.readyState === WebSocket.CLOSED) return
    ws.close(1000, 'done')
    await this.closed
  }
}

/** Why reading stopped. */
export type Ended = 'end' | 'closed' | 'error'

/** Reads a connection or stream in the order that a test asks for. */
export class Reader<C extends Conn = Conn> {
  readonly conn: C
  #parts: Uint8Array[] = []
  #bytes = 0
  #ended: Ended | undefined
  #wake: (() => void) | undefined
  error: Error | undefined
  readonly closed: Promise<Error | undefined>

  constructor(conn: C) {
    this.conn = conn
    this.closed = new Promise((resolve) => {
      conn.handle({
        data: (bytes) => {
          this.#parts.push(bytes)
          this.#bytes += bytes.length
          this.#wake?.()
        },
        end: () => {
          this.#ended ??= 'end'
          this.#wake?.()
        },
        closed: (error) => {
          this.error = error
          this.#ended ??= error ? 'error' : 'closed'
          this.#wake?.()
          resolve(error)
        },
      })
    })
  }

  get held(): number {
    return this.#bytes
  }

  /** Exactly `count` bytes. Rejects when the connection ends before. */
  async take(count: number): Promise<Buffer> {
    await this.#until(() => this.#bytes >= count)
    if (this.#bytes < count) {
      throw new Error(`${this.#ended} after ${this.#bytes} bytes: ${this.error?.message ?? ''}`)
    }
    const all = Buffer.concat(this.#parts)
    this.#parts = all.length > count ? [all.subarray(count)] : []
    this.#bytes -= count
    return all.subarray(0, count)
  }

  /** All up to the end of this direction, and which end that was. */
  async rest(): Promise<{ bytes: Buffer; end: Ended }> {
    await this.#until(() => false)
    const bytes = Buffer.concat(this.#parts)
    this.#parts = []
    this.#bytes = 0
    return { bytes, end: this.#ended! }
  }

  async #until(enough: () => boolean): Promise<void> {
    const wait = async (): Promise<void> => {
      while (!enough() && this.#ended === undefined) {
        await new Promise<void>((resolve) => void (this.#wake = resolve))
      }
    }
    await within(wait(), 'bytes')
  }
}

/** A TCP connection, half-closable. */
export function dial(
  relay: { host: string },
  port: number,
): Promise<Reader<DuplexConn<TcpSocket>>> {
  return within(
    new Promise((resolve, reject) => {
      const socket = connectTcp({ host: relay.host, port, allowHalfOpen: true, noDelay: true })
      socket.once('error', reject)
      socket.once('connect', () => {
        socket.removeListener('error', reject)
        resolve(new Reader(new DuplexConn(socket)))
      })
    }),
    'a TCP connection',
  )
}

/** A TLS connection to the public port. */
export function dialTls(
  relay: Where,
  { servername, alpn }: { servername: string; alpn?: string[] },
): Promise<Reader<DuplexConn<TLSSocket>>> {
  return within(
    new Promise((resolve, reject) => {
      const socket = connectTls({
        host: relay.host,
        port: relay.port,
        servername,
        rejectUnauthorized: false,
        ...(alpn ? { ALPNProtocols: alpn } : {}),
      })
      socket.once('error', reject)
      socket.once('secureConnect', () => {
        socket.removeListener('error', reject)
        resolve(new Reader(new DuplexConn(socket)))
      })
    }),
    'a TLS connection',
  )
}

export interface Answer {
  status: number
  headers: Record<string, string | string[] | undefined>
  text: string
  json(): Record<string, unknown>
}

/** One HTTP request to the relay; `host` is what the Host header and SNI say. */
export function ask(
  relay: Where,
  path: string,
  { method = 'GET', headers = {}, body, host = 'localhost' }: {
    method?: string
    headers?: Record<string, string>
    body?: string
    host?: string
  } = {},
): Promise<Answer> {
  const secure = relay.url.startsWith('https:')
  return within(
    new Promise((resolve, reject) => {
      const options = {
        host: relay.host,
        port: relay.port,
        path,
        method,
        agent: false,
        headers: { host: `${host}:${relay.port}`, ...headers },
      }
      const request = secure
        ? httpsRequest({ ...options, servername: host, rejectUnauthorized: false })
        : httpRequest(options)
      request.once('error', reject)
      request.once('response', (response) => {
        let text = ''
        response.setEncoding('utf8').on('data', (chunk) => text += chunk)
        response.once('error', reject)
        response.once('end', () => {
          const { statusCode = 0, headers } = response
          resolve({ status: statusCode, headers, text, json: () => JSON.parse(text) })
        })
      })
      request.end(body)
    }),
    `${method} ${path}`,
  )
}

/** One request of the API with the admin key; a body makes it a POST. */
export function api(
  relay: RelayProcess,
  path: string,
  { body, method = body === undefined ? 'GET' : 'POST', key = relay.adminKey }: {
    body?: object
    method?: string
    key?: string
  } = {},
): Promise<Answer> {
  return ask(relay, `/api/v1${path}`, {
    method,
    headers: {
      ...(key === '' ? {} : { authorization: `Bearer ${key}` }),
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
}

/** A new credential by the API. */
export async function makeKey(
  relay: RelayProcess,
  { path = 'keys', scope = 'alice', ...more }: Record<string, unknown> = {},
): Promise<{ id: string; secret: string }> {
  const answer = await api(relay, `/${path}`, { body: { scope, ...more } })
  if (answer.status !== 201) throw new Error(`/${path}: ${answer.status} ${answer.text}`)
  const made = answer.json() as { secret: string; credential: { id: string } }
  return { secret: made.secret, id: made.credential.id }
}
