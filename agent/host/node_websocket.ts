/**
 * The link's WebSocket as a client on Node, by `ws`. Here the certificate of this very connection can
 * be read as soon as it stands, so that nothing has to be fetched first; see websocket.ts for Bun.
 */
import type { IncomingMessage } from 'node:http'
import { TLSSocket } from 'node:tls'
import { WebSocket } from 'ws'
import { TunnelError } from '../../core/errors.ts'
import { FRAME_BYTES_MAX } from '../../core/frame.ts'
import type { Sent, Socket, SocketHandler } from '../../core/socket.ts'
import type { LinkOptions, LinkPort, OpenLink } from '../world.ts'
import { clockHint } from './clock_hint.ts'
import { openOver } from './conn_websocket.ts'
import { bareHost, connectError, describeTarget } from './tcp.ts'
import { sha256 } from './tls.ts'

const SUBPROTOCOL = 'sotto.v1'
const OPEN_MS = 10_000
/** `send` answers 'queued' above this. */
const QUEUED_BYTES = 524_288
/** 'drain' is told when no more than this waits. */
const DRAINED_BYTES = 131_072
/** A sender that goes on in spite of 'queued' loses the link here. */
const QUEUE_BYTES_MAX = 16_777_216
const CLOSE_MS = 2_000
const CLOSE_PROTOCOL = 4400

export const nodeLink: LinkPort = { open }

function open(url: string, options: LinkOptions): Promise<OpenLink> {
  if (options.carrier) return openOver(url, options)
  const { protocol, hostname, port } = new URL(url)
  const secure = protocol === 'wss:'
  const target = { host: bareHost(hostname), port: Number(port) || (secure ? 443 : 80) }
  return new Promise((resolve, reject) => {
    let certificate: Uint8Array | undefined
    const ws = new WebSocket(url, [SUBPROTOCOL], {
      perMessageDeflate: false,
      maxPayload: FRAME_BYTES_MAX,
      handshakeTimeout: options.timeoutMs ?? OPEN_MS,
      headers: { ...options.headers },
      ...(options.ca ? { ca: [...options.ca] } : {}),
      // Where admission decides, it compares the certificate before anything is told.
      rejectUnauthorized: options.trust === 'ca',
    })
    ws.binaryType = 'nodebuffer'
    ws.on('upgrade', ({ socket }: IncomingMessage) => {
      if (!(socket instanceof TLSSocket)) return
      const { raw } = socket.getPeerCertificate()
      if (raw) certificate = sha256(raw)
    })
    let status: number | undefined
    ws.on('unexpected-response', (request, response) => {
      status = response.statusCode
      response.resume()
      request.destroy(new Error('refused'))
    })
    ws.once('error', (error) => {
      ws.terminate()
      reject(openError(target, { error, status }))
    })
    ws.once('open', () => resolve({ socket: new NodeSocket(ws), certificate }))
  })
}

function openError(
  target: { host: string; port: number },
  { error, status }: { error: Error & { code?: string }; status: number | undefined },
): TunnelError {
  const place = describeTarget(target)
  if (status !== undefined) {
    return new TunnelError(
      'link/refused',
      `Cannot open link to ${place}: found HTTP status ${status}, expected 101`,
    )
  }
  const { message, code = '' } = error
  if (/timed out/.test(message)) {
    return new TunnelError('link/timeout', `Cannot open link to ${place}: no answer in time`)
  }
  if (/certificate|altname|issuer|self.signed/i.test(message) || /CERT|ALTNAME/.test(code)) {
    return new TunnelError(
      'link/untrusted',
      `Cannot open link to ${place}: its certificate cannot be trusted (${message})`,
      {
        hint: clockHint(`${message} ${code}`) ??
          'Pin the relay by its fingerprint, then a self-signed certificate will do',
        cause: error,
      },
    )
  }
  if (/TLS|SSL|EPROTO/.test(`${message} ${code}`)) {
    return new TunnelError('link/tls', `Cannot open link to ${place}: ${message}`, {
      hint: 'Is this an https address? A relay without TLS is reached by http://',
      cause: error,
    })
  }
  return connectError(target, error)
}

/** `Socket` over `ws`. */
class NodeSocket implements Socket {
  readonly #ws: WebSocket
  #handler: SocketHandler | undefined
  #closed = false
  #owed = false

  constructor(ws: WebSocket) {
    this.#ws = ws
    ws.on('message', (data, isBinary) => this.#received(data, isBinary))
    ws.on('close', (code, reason) => this.#gone(code, reason.toString()))
    ws.on('error', () => ws.terminate())
    ws.on('pong', () => this.#handler?.alive?.())
    ws.on('ping', () => this.#handler?.alive?.())
    ws.pause()
  }

  handle(handler: SocketHandler): void {
    const first = this.#handler === undefined
    this.#handler = handler
    if (!first) return
    if (this.#closed) queueMicrotask(() => handler.closed(1006, ''))
    else this.#ws.resume()
  }

  #received(data: unknown, isBinary: boolean): void {
    if (this.#closed) return
    if (!isBinary || !(data instanceof Uint8Array)) {
      return this.close(CLOSE_PROTOCOL, 'frame/text')
    }
    // A plain array, which nothing else will write to: `ws` may hand out parts of a shared one.
    this.#handler!.message(new Uint8Array(data))
  }

  send(message: Uint8Array): Sent {
    const ws = this.#ws
    if (this.#closed || ws.readyState !== WebSocket.OPEN) return 'lost'
    if (ws.bufferedAmount > QUEUE_BYTES_MAX) {
      this.terminate()
      return 'lost'
    }
    ws.send(message, { binary: true }, () => this.#sent())
    if (ws.bufferedAmount <= QUEUED_BYTES) return 'ok'
    this.#owed = true
    return 'queued'
  }

  #sent(): void {
    if (!this.#owed || this.#closed || this.#ws.bufferedAmount > DRAINED_BYTES) return
    this.#owed = false
    this.#handler?.drain?.()
  }

  buffered(): number {
    return this.#closed ? 0 : this.#ws.bufferedAmount
  }

  pause(): void {
    if (!this.#closed) this.#ws.pause()
  }

  resume(): void {
    if (!this.#closed) this.#ws.resume()
  }

  ping(): void {
    if (!this.#closed && this.#ws.readyState === WebSocket.OPEN) this.#ws.ping()
  }

  close(code: number, reason: string): void {
    if (this.#closed || this.#ws.readyState >= WebSocket.CLOSING) return
    // A paused socket would never read the answer.
    this.#ws.resume()
    this.#ws.close(code, reason)
    setTimeout(() => this.terminate(), CLOSE_MS).unref()
  }

  terminate(): void {
    if (this.#closed) return
    this.#ws.terminate()
    // The event is not waited for: a far end that is gone must not keep this one in doubt.
    queueMicrotask(() => this.#gone(1006, ''))
  }

  #gone(code: number, reason: string): void {
    if (this.#closed) return
    this.#closed = true
    this.#handler?.closed(code === 1005 ? 1006 : code, reason)
  }
}
