/**
 * The link's WebSocket, as a client. Admission wants to know the certificate that this very connection
 * got, and the runtime shows it only once it has verified: so where no CA is asked, the certificate is
 * fetched first and then made the one that is trusted. A swap between the two steps fails.
 */
import { checkServerIdentity } from 'node:tls'
import { TunnelError } from '../../core/errors.ts'
import { FRAME_BYTES_MAX } from '../../core/frame.ts'
import type { Sent, Socket, SocketHandler } from '../../core/socket.ts'
import type { LinkOptions, LinkPort, OpenLink, Target } from '../world.ts'
import { clockHint } from './clock_hint.ts'
import { openOver } from './conn_websocket.ts'
import { bareHost, connectError, describeTarget } from './tcp.ts'
import { hostTls, sha256 } from './tls.ts'

const SUBPROTOCOL = 'sotto.v1'
const OPEN_MS = 10_000
/** `send` answers 'queued' above this. */
const QUEUED_BYTES = 524_288
/** 'drain' is told when no more than this waits. */
const DRAINED_BYTES = 131_072
/** A sender that goes on in spite of 'queued' loses the link here. */
const QUEUE_BYTES_MAX = 16_777_216
/** The runtime has no drain event, so the queue is looked at: at once a few times, then at this pace. */
const LOOKS_AT_ONCE = 4
const LOOK_MS_MAX = 8
/** How long the other end may take to answer a close before the socket is dropped. */
const CLOSE_MS = 2_000
const CLOSE_PROTOCOL = 4400

export const hostLink: LinkPort = { open }

/** What the runtime's WebSocket has beyond the browsers'. */
interface ClientSocket extends Omit<WebSocket, 'binaryType'> {
  binaryType: string
  ping(): void
  pause(): void
  resume(): void
  terminate(): void
}
const ClientSocket = WebSocket as unknown as new (url: string, options: object) => ClientSocket

/** Leaf certificates last seen, PEM by place: saves the first step when a link is opened again. */
const seen = new Map<string, string>()
const SEEN_MAX = 64

async function open(url: string, options: LinkOptions): Promise<OpenLink> {
  if (options.carrier) return await openOver(url, options)
  const { protocol, hostname, port } = new URL(url)
  const secure = protocol === 'wss:'
  const target = { host: bareHost(hostname), port: Number(port) || (secure ? 443 : 80) }
  const deadlineMs = performance.now() + (options.timeoutMs ?? OPEN_MS)
  if (!secure) return attempt(url, { target, deadlineMs, options, ca: undefined })
  if (options.trust === 'ca') return attempt(url, { target, deadlineMs, options, ca: options.ca })
  const place = describeTarget(target)
  const known = seen.get(place)
  if (known !== undefined) {
    try {
      return await attempt(url, { target, deadlineMs, options, ca: [known] })
    } catch (error) {
      if (!(error instanceof TunnelError && error.code === 'link/untrusted')) throw error
      seen.delete(place)
    }
  }
  const { der } = await hostTls.peerCertificate({
    ...target,
    timeoutMs: Math.max(1, deadlineMs - performance.now()),
  })
  const leaf = pem(der)
  const link = await attempt(url, { target, deadlineMs, options, ca: [leaf] })
  if (seen.size >= SEEN_MAX) seen.clear()
  seen.set(place, leaf)
  return link
}

function pem(der: Uint8Array): string {
  const lines = Buffer.from(der).toString('base64').match(/.{1,64}/g) ?? []
  return `-----BEGIN CERTIFICATE-----\n${lines.join('\n')}\n-----END CERTIFICATE-----\n`
}

interface Attempt {
  target: { host: string; port: number }
  deadlineMs: number
  options: LinkOptions
  ca: readonly string[] | undefined
}

function attempt(url: string, { target, deadlineMs, options, ca }: Attempt): Promise<OpenLink> {
  return new Promise((resolve, reject) => {
    let certificate: Uint8Array | undefined
    const tls = {
      rejectUnauthorized: true,
      ...(ca ? { ca: [...ca] } : {}),
      // The leaf itself is what is trusted, whoever signed it.
      ...(options.trust === 'admission' ? { allowPartialTrustChain: true } : {}),
      checkServerIdentity(host: string, found: { raw: Uint8Array }) {
        certificate = sha256(found.raw)
        // Names are compared at admission, by the relay's own signature.
        return options.trust === 'admission' ? undefined : checkServerIdentity(host, found as never)
      },
    }
    const ws = new ClientSocket(url, {
      protocols: [SUBPROTOCOL],
      perMessageDeflate: false,
      headers: { ...options.headers },
      tls,
    })
    ws.binaryType = 'nodebuffer'
    const timer = setTimeout(() => fail('late'), Math.max(1, deadlineMs - performance.now()))
    function release(): void {
      clearTimeout(timer)
      ws.onopen = ws.onerror = ws.onclose = null
    }
    function fail(reason: 'late' | { message: string; code: string }): void {
      release()
      ws.terminate()
      reject(openError(target, reason))
    }
    let said: { message: string; code: string } | undefined
    ws.onerror = (event) => {
      const { message, error } = event as ErrorEvent
      said = { message: String(message), code: String(error?.code ?? '') }
    }
    ws.onclose = () => fail(said ?? { message: 'closed', code: '' })
    ws.onopen = () => {
      release()
      resolve({ socket: new HostSocket(ws), certificate })
    }
  })
}

function openError(
  target: Target,
  reason: 'late' | { message: string; code: string },
): TunnelError {
  const place = describeTarget(target)
  if (reason === 'late') {
    return new TunnelError('link/timeout', `Cannot open link to ${place}: no answer in time`)
  }
  const status = /Expected 101 status code: (\d+)/.exec(reason.message)?.[1]
  if (status !== undefined) {
    return new TunnelError(
      'link/refused',
      `Cannot open link to ${place}: found HTTP status ${status}, expected 101`,
    )
  }
  if (/certificate|CERT|identity|altname|issuer/i.test(`${reason.message} ${reason.code}`)) {
    return new TunnelError(
      'link/untrusted',
      `Cannot open link to ${place}: its certificate cannot be trusted (${lastWords(reason)})`,
      {
        hint: clockHint(`${reason.message} ${reason.code}`) ??
          'Pin the relay with --relay-fingerprint, then a self-signed certificate will do',
      },
    )
  }
  if (/TLS|SSL|EPROTO/.test(`${reason.message} ${reason.code}`)) {
    return new TunnelError('link/tls', `Cannot open link to ${place}: ${lastWords(reason)}`, {
      hint: 'Is this an https address? A relay without TLS is reached by http://',
    })
  }
  if (reason.code !== '') return connectError(target, reason)
  return new TunnelError('link/refused', `Cannot open link to ${place}: ${lastWords(reason)}`)
}

function lastWords(reason: { message: string }): string {
  return reason.message.split(' failed: ').at(-1)!
}

/** `Socket` over the runtime's WebSocket. */
class HostSocket implements Socket {
  readonly #ws: ClientSocket
  #handler: SocketHandler | undefined
  #closed = false
  #looking = false
  #looks = 0

  constructor(ws: ClientSocket) {
    this.#ws = ws
    ws.onmessage = (event) => this.#received(event.data)
    ws.onclose = ({ code, reason }) => this.#gone(code, reason)
    ws.onerror = () => {}
    ws.addEventListener('pong', () => this.#handler?.alive?.())
    ws.addEventListener('ping', () => this.#handler?.alive?.())
    ws.pause()
  }

  handle(handler: SocketHandler): void {
    const first = this.#handler === undefined
    this.#handler = handler
    if (!first) return
    if (this.#closed) queueMicrotask(() => handler.closed(1006, ''))
    else this.#ws.resume()
  }

  #received(data: unknown): void {
    if (this.#closed) return
    if (!(data instanceof Uint8Array) || data.length > FRAME_BYTES_MAX) {
      this.close(CLOSE_PROTOCOL, typeof data === 'string' ? 'frame/text' : 'frame/size')
      return
    }
    this.#handler!.message(data)
  }

  send(message: Uint8Array): Sent {
    const ws = this.#ws
    if (this.#closed || ws.readyState !== WebSocket.OPEN) return 'lost'
    if (ws.bufferedAmount > QUEUE_BYTES_MAX) {
      this.terminate()
      return 'lost'
    }
    ws.send(message as Uint8Array<ArrayBuffer>)
    if (ws.bufferedAmount <= QUEUED_BYTES) return 'ok'
    if (!this.#looking) {
      this.#looking = true
      this.#looks = 0
      this.#lookSoon()
    }
    return 'queued'
  }

  #lookSoon(): void {
    const look = (): void => {
      if (this.#closed) return
      if (this.#ws.bufferedAmount > DRAINED_BYTES) return this.#lookSoon()
      this.#looking = false
      this.#handler?.drain?.()
    }
    const looks = this.#looks++
    if (looks < LOOKS_AT_ONCE) setImmediate(look)
    else setTimeout(look, Math.min(LOOK_MS_MAX, 1 + (looks >> 4)))
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
