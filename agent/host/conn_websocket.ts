/**
 * A link's WebSocket (RFC 6455, client) over a connection that stands already, such as a proxy's
 * tunnel: TLS, the upgrade, frames. The runtimes' own clients dial by themselves, know no SOCKS and do
 * not show the certificate of what they reached through a proxy. Only what a link needs: binary messages
 * of at most one frame of ours, no extensions.
 */
import { createHash, randomBytes, randomFillSync } from 'node:crypto'
import { concat, EMPTY, utf8 } from '../../core/bytes.ts'
import { isTunnelError, TunnelError } from '../../core/errors.ts'
import { FRAME_BYTES_MAX } from '../../core/frame.ts'
import type { Conn, Sent, Socket, SocketHandler } from '../../core/socket.ts'
import type { LinkOptions, OpenLink, TlsConn } from '../world.ts'
import { bareHost, describeTarget } from './tcp.ts'
import { hostTls, sha256 } from './tls.ts'

const SUBPROTOCOL = 'sotto.v1'
const OPEN_MS = 10_000
const HEAD_BYTES_MAX = 16_384
/** `send` answers 'queued' above this. */
const QUEUED_BYTES = 524_288
/** A sender that goes on in spite of 'queued' loses the link here. */
const QUEUE_BYTES_MAX = 16_777_216
const CLOSE_MS = 2_000
const CLOSE_PROTOCOL = 4400
const CLOSE_WRONG = 1002
/** RFC 6455 §5.5. */
const CONTROL_BYTES_MAX = 125
const ACCEPT_GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
const MASK_POOL_BYTES = 4096
const OP = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 } as const

/** `LinkPort.open` where the options bring a carrier. */
export async function openOver(url: string, options: LinkOptions): Promise<OpenLink> {
  const { protocol, hostname, port, pathname, host } = new URL(url)
  const secure = protocol === 'wss:'
  const name = bareHost(hostname)
  const place = describeTarget({ host: name, port: Number(port) || (secure ? 443 : 80) })
  const deadlineMs = performance.now() + (options.timeoutMs ?? OPEN_MS)
  const leftMs = (): number => Math.max(1, deadlineMs - performance.now())
  const carrier = await options.carrier!(leftMs())
  let conn: Conn = carrier
  let certificate: Uint8Array | undefined
  if (secure) {
    const tls = await connectTls(carrier, { name, place, options, timeoutMs: leftMs() })
    if (tls.peerCertificate) certificate = sha256(tls.peerCertificate)
    conn = tls
  }
  const key = randomBytes(16).toString('base64')
  const head = [
    `GET ${pathname} HTTP/1.1`,
    `Host: ${host}`,
    'Upgrade: websocket',
    'Connection: Upgrade',
    `Sec-WebSocket-Key: ${key}`,
    'Sec-WebSocket-Version: 13',
    `Sec-WebSocket-Protocol: ${SUBPROTOCOL}`,
    ...Object.entries(options.headers ?? {}).map(([name, value]) => `${name}: ${value}`),
  ]
  conn.write(utf8(`${head.join('\r\n')}\r\n\r\n`))
  const rest = await upgraded(conn, { key, place, timeoutMs: leftMs() })
  return { socket: new ConnSocket(conn, rest), certificate }
}

async function connectTls(
  carrier: Conn,
  { name, place, options, timeoutMs }: {
    name: string
    place: string
    options: LinkOptions
    timeoutMs: number
  },
): Promise<TlsConn> {
  try {
    return await hostTls.connect({
      carrier,
      servername: name,
      alpn: ['http/1.1'],
      timeoutMs,
      // Where admission decides, it compares the certificate before anything is told.
      ...(options.trust === 'admission' ? { verify: () => {} } : {}),
      ...(options.ca ? { ca: options.ca } : {}),
    })
  } catch (cause) {
    const said = cause instanceof Error ? cause.message : String(cause)
    const reason = said.slice(said.lastIndexOf(': ') + 2)
    if (isTunnelError(cause, 'tls/untrusted')) {
      throw new TunnelError(
        'link/untrusted',
        `Cannot open link to ${place}: its certificate cannot be trusted (${reason})`,
        {
          hint: 'Pin the relay with --relay-fingerprint, then a self-signed certificate will do; ' +
            'a proxy that reads TLS must except the relay',
          cause,
        },
      )
    }
    if (isTunnelError(cause, 'tls/timeout')) {
      throw new TunnelError('link/timeout', `Cannot open link to ${place}: no answer in time`)
    }
    throw new TunnelError('link/tls', `Cannot open link to ${place}: ${reason}`, {
      hint: 'Is this an https address? A relay without TLS is reached by http://',
      cause,
    })
  }
}

/** Waits for the answer to the upgrade; what came behind it are frames already. */
function upgraded(
  conn: Conn,
  { key, place, timeoutMs }: { key: string; place: string; timeoutMs: number },
): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    let held: Uint8Array = EMPTY
    let over = false
    const fail = (code: 'link/refused' | 'link/timeout', found: string): void => {
      if (over) return
      over = true
      clearTimeout(timer)
      conn.abort()
      reject(new TunnelError(code, `Cannot open link to ${place}: ${found}`))
    }
    const timer = setTimeout(() => fail('link/timeout', 'no answer in time'), timeoutMs)
    const ended = (): void => fail('link/refused', 'the connection was closed')
    conn.handle({
      data(bytes) {
        if (over) return
        held = concat(held, bytes)
        const end = Buffer.from(held.buffer, held.byteOffset, held.length).indexOf('\r\n\r\n')
        if (end < 0) {
          if (held.length > HEAD_BYTES_MAX) fail('link/refused', 'found an answer without an end')
          return
        }
        const wrong = problemOf(Buffer.from(held.subarray(0, end)).toString('latin1'), key)
        if (wrong !== undefined) return fail('link/refused', wrong)
        over = true
        clearTimeout(timer)
        conn.hold()
        resolve(held.slice(end + 4))
      },
      end: ended,
      closed: ended,
    })
  })
}

/** RFC 6455 §4.1: what is wrong with an answer; undefined when nothing is. */
function problemOf(head: string, key: string): string | undefined {
  const [first, ...lines] = head.split('\r\n')
  const status = /^HTTP\/1\.1 (\d{3})(?: |$)/.exec(first!)?.[1]
  if (status !== '101') {
    return status === undefined
      ? 'found something else than HTTP'
      : `found HTTP status ${status}, expected 101`
  }
  const fields = new Map(
    lines.map((line) => {
      const colon = line.indexOf(':')
      return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()] as const
    }),
  )
  const accept = createHash('sha1').update(key + ACCEPT_GUID).digest('base64')
  const isUpgrade = fields.get('upgrade')?.toLowerCase() === 'websocket' &&
    /(^|[\s,])upgrade($|[\s,])/i.test(fields.get('connection') ?? '')
  if (!isUpgrade || fields.get('sec-websocket-accept') !== accept) return 'found no WebSocket'
  if (fields.get('sec-websocket-protocol') !== SUBPROTOCOL) return 'found another sub-protocol'
  if (fields.has('sec-websocket-extensions')) return 'found extensions, which nobody asked for'
  return undefined
}

const masks = Buffer.alloc(MASK_POOL_BYTES)
let maskAt = MASK_POOL_BYTES

/** One frame, masked (RFC 6455 §5.2, §5.3). */
export function encodeMasked(opcode: number, payload: Uint8Array): Uint8Array {
  const { length } = payload
  const extended = length < 126 ? 0 : length < 65_536 ? 2 : 8
  const headBytes = 2 + extended + 4
  // The payload begins at a multiple of four, to be masked by words.
  const at = headBytes + 3 & ~3
  const buffer = Buffer.from(new ArrayBuffer(at + (length + 3 & ~3)))
  const start = at - headBytes
  buffer[start] = 0x80 | opcode
  if (extended === 0) buffer[start + 1] = 0x80 | length
  else if (extended === 2) {
    buffer[start + 1] = 0x80 | 126
    buffer.writeUInt16BE(length, start + 2)
  } else {
    buffer[start + 1] = 0x80 | 127
    buffer.writeBigUInt64BE(BigInt(length), start + 2)
  }
  if (maskAt === MASK_POOL_BYTES) {
    randomFillSync(masks)
    maskAt = 0
  }
  buffer.set(masks.subarray(maskAt, maskAt += 4), at - 4)
  buffer.set(payload, at)
  const words = new Uint32Array(buffer.buffer, 0)
  const mask = words[at / 4 - 1]!
  for (let i = at / 4; i < words.length; i++) words[i]! ^= mask
  return new Uint8Array(buffer.buffer, start, headBytes + length)
}

interface Incoming {
  opcode: number
  final: boolean
  payload: Uint8Array
  filled: number
}

/** `Socket` over a `Conn` whose upgrade was answered. */
export class ConnSocket implements Socket {
  readonly #conn: Conn
  #handler: SocketHandler | undefined
  #first: Uint8Array
  #closed = false
  #closing: { code: number; reason: string } | undefined
  #timer: ReturnType<typeof setTimeout> | undefined
  #refused = false
  #owed = false
  #head: Uint8Array = EMPTY
  #frame: Incoming | undefined
  /** Of a message in several frames. */
  #parts: Uint8Array[] = []
  #partsBytes = 0

  constructor(conn: Conn, first: Uint8Array) {
    this.#conn = conn
    this.#first = first
  }

  handle(handler: SocketHandler): void {
    const isFirst = this.#handler === undefined
    this.#handler = handler
    if (!isFirst) return
    if (this.#closed) return queueMicrotask(() => handler.closed(1006, ''))
    this.#conn.handle({
      data: (bytes) => this.#take(bytes),
      drain: () => this.#drained(),
      end: () => this.terminate(),
      closed: () => this.#gone(1006, ''),
    })
    const first = this.#first
    this.#first = EMPTY
    if (first.length > 0) queueMicrotask(() => this.#take(first))
  }

  send(message: Uint8Array): Sent {
    if (this.#closed || this.#closing) return 'lost'
    if (this.#conn.buffered() > QUEUE_BYTES_MAX) {
      this.terminate()
      return 'lost'
    }
    const sent = this.#conn.write(encodeMasked(OP.binary, message))
    if (sent === 'lost') return 'lost'
    if (sent === 'ok' || this.#conn.buffered() <= QUEUED_BYTES) return 'ok'
    this.#owed = true
    return 'queued'
  }

  #drained(): void {
    if (!this.#owed || this.#closed) return
    this.#owed = false
    this.#handler?.drain?.()
  }

  buffered(): number {
    return this.#closed ? 0 : this.#conn.buffered()
  }

  pause(): void {
    if (!this.#closed) this.#conn.pause()
  }

  resume(): void {
    if (!this.#closed) this.#conn.resume()
  }

  ping(): void {
    if (!this.#closed && !this.#closing) this.#conn.write(encodeMasked(OP.ping, EMPTY))
  }

  close(code: number, reason: string): void {
    if (this.#closed || this.#closing) return
    this.#closing = { code, reason }
    const words = utf8(reason).subarray(0, CONTROL_BYTES_MAX - 2)
    this.#conn.write(
      encodeMasked(OP.close, concat(Uint8Array.from([code >> 8, code & 255]), words)),
    )
    // A paused connection would never read the answer.
    this.#conn.resume()
    this.#timer = setTimeout(() => this.terminate(), CLOSE_MS)
    this.#timer.unref?.()
  }

  terminate(): void {
    if (this.#closed) return
    this.#conn.abort()
    queueMicrotask(() => this.#gone(1006, ''))
  }

  #gone(code: number, reason: string): void {
    if (this.#closed) return
    this.#closed = true
    clearTimeout(this.#timer)
    this.#frame = undefined
    this.#parts = []
    this.#handler?.closed(code, reason)
  }

  #take(bytes: Uint8Array): void {
    let at = 0
    while (at < bytes.length && !this.#closed && !this.#refused) {
      if (!this.#frame) {
        const more = bytes.subarray(at, at + 10 - this.#head.length)
        const head = this.#head.length === 0 ? more : concat(this.#head, more)
        const size = this.#begin(head)
        if (size === undefined) return
        if (size > head.length) {
          this.#head = head.slice()
          return
        }
        at += size - this.#head.length
        this.#head = EMPTY
      }
      const frame: Incoming = this.#frame!
      const part = bytes.subarray(at, at + frame.payload.length - frame.filled)
      frame.payload.set(part, frame.filled)
      frame.filled += part.length
      at += part.length
      if (frame.filled < frame.payload.length) return
      this.#frame = undefined
      this.#whole(frame)
    }
  }

  /** Reads a head: its size, more than there is when it is not whole, undefined when it is refused. */
  #begin(head: Uint8Array): number | undefined {
    if (head.length < 2) return 2
    const opcode = head[0]! & 15
    const final = head[0]! >= 0x80
    const small = head[1]!
    const isControl = opcode >= 8
    const isRight = (head[0]! & 0x70) === 0 && small < 0x80 &&
      (isControl
        ? final && small <= CONTROL_BYTES_MAX && opcode <= OP.pong
        : opcode <= OP.binary && (opcode === OP.continuation) === this.#parts.length > 0)
    if (!isRight) return this.#refuse(CLOSE_WRONG, 'frame')
    if (opcode === OP.text) return this.#refuse(CLOSE_PROTOCOL, 'frame/text')
    const size = small < 126 ? 2 : small === 126 ? 4 : 10
    if (head.length < size) return size
    const view = new DataView(head.buffer, head.byteOffset, head.length)
    const length = size === 2
      ? small
      : size === 4
      ? view.getUint16(2)
      : Number(view.getBigUint64(2))
    if (!isControl && this.#partsBytes + length > FRAME_BYTES_MAX) {
      return this.#refuse(CLOSE_PROTOCOL, 'frame/size')
    }
    this.#frame = { opcode, final, payload: new Uint8Array(length), filled: 0 }
    return size
  }

  /** What comes after it is not read any more. */
  #refuse(code: number, reason: string): undefined {
    this.#refused = true
    this.close(code, reason)
    return undefined
  }

  #whole({ opcode, final, payload }: Incoming): void {
    switch (opcode) {
      case OP.ping:
        // Who pings and does not read gets no more of them.
        if (this.#conn.buffered() <= QUEUED_BYTES) {
          this.#conn.write(encodeMasked(OP.pong, payload))
        }
        this.#handler?.alive?.()
        return
      case OP.pong:
        this.#handler?.alive?.()
        return
      case OP.close:
        return this.#closedByPeer(payload)
    }
    if (this.#closing) return
    if (final && this.#parts.length === 0) return this.#handler?.message(payload)
    this.#parts.push(payload)
    this.#partsBytes += payload.length
    if (!final) {
      if (this.#parts.length > FRAME_BYTES_MAX) this.#refuse(CLOSE_WRONG, 'frame')
      return
    }
    const message = concat(...this.#parts)
    this.#parts = []
    this.#partsBytes = 0
    this.#handler?.message(message)
  }

  #closedByPeer(payload: Uint8Array): void {
    const code = payload.length >= 2 ? payload[0]! << 8 | payload[1]! : 1006
    const reason = Buffer.from(payload.subarray(2)).toString()
    if (!this.#closing) this.#conn.write(encodeMasked(OP.close, payload))
    this.#conn.end()
    this.#gone(this.#closing?.code ?? code, this.#closing?.reason ?? reason)
    // A peer that never closes its side does not keep ours open.
    setTimeout(() => this.#conn.abort(), CLOSE_MS).unref?.()
  }
}
