/**
 * A visitor's WebSocket to a readable endpoint where the runtime ends it itself (Workers,
 * `Deno.serve`) and shows messages, while the exchange carries the bytes of the protocol: here they
 * become frames again (RFC 6455 §5), as a client would send them. Extensions are not offered to the
 * service, since the runtime has its own with the visitor; fragments are joined, pings answered.
 */
import { concat, utf8 } from '../../core/bytes.ts'
import { fieldOf, type Fields, type ResponseHead } from '../../core/exchange.ts'
import type { Gateway, GatewayExchange, VisitorAnswer } from '../gateway.ts'
import type { FetchVisitor } from './fetch_gateway.ts'

/** One message of the service, joined; more ends the connection with 1009. */
export const MESSAGE_BYTES_MAX = 16_777_216
/** What waits for a visitor that reads slowly, before the service is held. */
const BUFFERED_BYTES_MAX = 1_048_576
/** Between two looks at a visitor that reads slowly. */
const LOOK_MS = 20

/** Fields that belong to one connection, of which there are two here. */
const OURS = /^(host|connection|upgrade|content-length|sec-websocket-(extensions|key|version))$/

const OPCODE = Object.freeze({ more: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 })

/** The runtime's end of the visitor's WebSocket. */
export interface VisitorSocket {
  readonly bufferedAmount?: number
  send(message: string | Uint8Array): void
  close(code?: number, reason?: string): void
  addEventListener(
    type: 'open' | 'message' | 'close' | 'error',
    run: (event: { data?: unknown; code?: number; reason?: string }) => void,
  ): void
}

/** Answers the visitor's request with a WebSocket; undefined protocol: the service chose none. */
export type AcceptSocket = (
  protocol: string | undefined,
) => { socket: VisitorSocket; response: Response }

/** True for a request that `serveWebSocket` is for. */
export function isWebSocket(request: Request): boolean {
  return request.method === 'GET' && request.headers.get('upgrade')?.toLowerCase() === 'websocket'
}

/** Carries one exchange; never rejects. */
export function serveWebSocket(
  gateway: Gateway,
  { request, visitor }: { request: Request; visitor: FetchVisitor },
  accept: AcceptSocket,
): Promise<Response> {
  return new Promise((resolve) => {
    new BridgeAnswer(accept, resolve).serve(gateway, request, visitor)
  })
}

class BridgeAnswer implements VisitorAnswer {
  readonly #accept: AcceptSocket
  readonly #resolve: (response: Response) => void
  readonly #reader: FrameReader
  #exchange: GatewayExchange | undefined
  #socket: VisitorSocket | undefined
  /** The service's own answer, where it did not switch. */
  #refusal: { head: ResponseHead; body: Uint8Array[]; bytes: number } | undefined
  #switched = false
  #closed = false
  #looking = false

  constructor(accept: AcceptSocket, resolve: (response: Response) => void) {
    this.#accept = accept
    this.#resolve = resolve
    this.#reader = new FrameReader({
      message: (message) => this.#socket?.send(message),
      ping: (payload) => this.#exchange?.body(encodeFrame(OPCODE.pong, payload)),
      close: (code, reason) => this.#close(code, reason),
    })
  }

  serve(gateway: Gateway, request: Request, visitor: FetchVisitor): void {
    const url = new URL(request.url)
    const headers: Fields = [['host', request.headers.get('host') ?? url.host]]
    for (const [name, value] of request.headers) {
      if (!OURS.test(name)) headers.push([name, value])
    }
    // The runtime proves its own end to the visitor; this one is ours.
    const key = btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(16))))
    headers.push(
      ['connection', 'Upgrade'],
      ['upgrade', 'websocket'],
      ['sec-websocket-version', '13'],
      ['sec-websocket-key', key],
    )
    this.#exchange = gateway.serve({
      method: 'GET',
      target: url.pathname + url.search,
      version: '1.1',
      scheme: url.protocol === 'http:' ? 'http' : 'https',
      headers,
      ...visitor,
    }, this)
    request.signal.addEventListener('abort', () => {
      if (!this.#switched) this.#exchange?.left()
    })
  }

  info(): void {
    // Fetch has no interim responses.
  }

  head(head: ResponseHead): void {
    if (head.status !== 101) return void (this.#refusal = { head, body: [], bytes: 0 })
    // The upgrade may end the request, and with it abort its signal.
    this.#switched = true
    try {
      const { socket, response } = this.#accept(fieldOf(head.headers, 'sec-websocket-protocol'))
      this.#socket = socket
      this.#listen(socket)
      this.#resolve(response)
    } catch {
      this.abort()
    }
  }

  #listen(socket: VisitorSocket): void {
    socket.addEventListener('message', ({ data }) => {
      if (this.#closed) return
      const bytes = typeof data === 'string' ? utf8(data) : new Uint8Array(data as ArrayBuffer)
      const opcode = typeof data === 'string' ? OPCODE.text : OPCODE.binary
      this.#exchange!.body(encodeFrame(opcode, bytes))
    })
    socket.addEventListener('close', ({ code, reason }) => {
      if (this.#closed) return
      this.#closed = true
      this.#exchange!.body(encodeFrame(OPCODE.close, closePayload(code, reason)))
      this.#exchange!.end([])
    })
    socket.addEventListener('error', () => {
      if (this.#closed) return
      this.#closed = true
      this.#exchange!.left()
    })
  }

  write(bytes: Uint8Array): boolean {
    if (this.#refusal) {
      this.#refusal.bytes += bytes.length
      if (this.#refusal.bytes > BUFFERED_BYTES_MAX) this.#exchange!.left()
      else this.#refusal.body.push(bytes.slice())
      return true
    }
    const problem = this.#reader.push(bytes)
    if (problem !== undefined) {
      this.#close(problem, '')
      this.#exchange!.left()
      return true
    }
    if ((this.#socket?.bufferedAmount ?? 0) < BUFFERED_BYTES_MAX) return true
    this.#look()
    return false
  }

  end(): void {
    if (this.#refusal) return this.#refuse(this.#refusal)
    // It ended without a close frame: the visitor is told that this was not orderly.
    this.#close(1011, 'the service ended the connection')
  }

  abort(): void {
    if (!this.#socket) return this.#resolve(new Response(null, { status: 502 }))
    this.#close(1011, 'the connection to the service broke')
  }

  pause(): void {
    // A runtime that shows messages cannot stop reading; the stream's queue is bounded, and ends it.
  }

  resume(): void {
    // Nothing of a WebSocket comes before it was accepted.
  }

  #look(): void {
    if (this.#looking) return
    this.#looking = true
    setTimeout(() => {
      this.#looking = false
      if (this.#closed || (this.#socket?.bufferedAmount ?? 0) < BUFFERED_BYTES_MAX / 4) {
        this.#exchange!.drained()
      } else this.#look()
    }, LOOK_MS)
  }

  #refuse({ head, body }: { head: ResponseHead; body: Uint8Array[] }): void {
    const bodyless = [204, 205, 304].includes(head.status)
    const headers = new Headers(head.headers)
    const bytes = concat(...body) as Uint8Array<ArrayBuffer>
    this.#resolve(new Response(bodyless ? null : bytes, { status: head.status, headers }))
  }

  #close(code: number, reason: string): void {
    if (this.#closed) return
    this.#closed = true
    try {
      if (code === 1005) this.#socket?.close()
      else this.#socket?.close(code, reason)
    } catch {
      // A code that the runtime does not let anybody send.
      this.#socket?.close(1000)
    }
    this.#exchange?.end([])
  }
}

/** One whole frame, masked as a client's has to be. */
export function encodeFrame(opcode: number, payload: Uint8Array): Uint8Array {
  const { length } = payload
  const extended = length < 126 ? 0 : length < 65_536 ? 2 : 8
  const frame = new Uint8Array(2 + extended + 4 + length)
  const view = new DataView(frame.buffer)
  frame[0] = 0x80 | opcode
  frame[1] = 0x80 | (extended === 0 ? length : extended === 2 ? 126 : 127)
  if (extended === 2) view.setUint16(2, length)
  if (extended === 8) view.setBigUint64(2, BigInt(length))
  const mask = frame.subarray(2 + extended, 6 + extended)
  crypto.getRandomValues(mask)
  const start = 6 + extended
  for (let i = 0; i < length; i++) frame[start + i] = payload[i]! ^ mask[i & 3]!
  return frame
}

function closePayload(code: number | undefined, reason = ''): Uint8Array {
  // 1005 and 1006 stand for no code at all and are never sent (§7.4.1).
  if (code === undefined || code === 1005 || code === 1006) return new Uint8Array(0)
  return concat(Uint8Array.of(code >> 8, code & 0xff), utf8(reason).subarray(0, 123))
}

export interface FrameEvents {
  message(message: string | Uint8Array): void
  ping(payload: Uint8Array): void
  close(code: number, reason: string): void
}

/** Reads a server's frames from pieces of any size. */
export class FrameReader {
  readonly #events: FrameEvents
  #held: Uint8Array[] = []
  #bytes = 0
  #parts: Uint8Array[] = []
  #partBytes = 0
  #opcode = 0

  constructor(events: FrameEvents) {
    this.#events = events
  }

  /** The code to close with where the service broke the protocol; then nothing more is read. */
  push(bytes: Uint8Array): number | undefined {
    this.#held.push(bytes.slice())
    this.#bytes += bytes.length
    for (;;) {
      const step = this.#frame()
      if (step !== 'next') return step === 'more' ? undefined : step
    }
  }

  #frame(): 'next' | 'more' | number {
    if (this.#bytes < 2) return 'more'
    const start = this.#peek(Math.min(this.#bytes, 10))
    const short = start[1]! & 0x7f
    const headBytes = short === 126 ? 4 : short === 127 ? 10 : 2
    // Reserved bits belong to extensions, of which there are none; a server never masks (§5.1).
    if ((start[0]! & 0x70) !== 0 || start[1]! >= 0x80) return 1002
    if (start.length < headBytes) return 'more'
    const view = new DataView(start.buffer, start.byteOffset)
    const length = headBytes === 2
      ? short
      : headBytes === 4
      ? view.getUint16(2)
      : Number(view.getBigUint64(2))
    const opcode = start[0]! & 0x0f
    const last = (start[0]! & 0x80) !== 0
    if (opcode >= 8 && (!last || length > 125)) return 1002
    if (length + (opcode < 8 ? this.#partBytes : 0) > MESSAGE_BYTES_MAX) return 1009
    if (this.#bytes < headBytes + length) return 'more'
    const payload = this.#peek(headBytes + length).slice(headBytes)
    this.#drop(headBytes + length)
    return opcode >= 8 ? this.#control(opcode, payload) : this.#data(opcode, payload, last)
  }

  #control(opcode: number, payload: Uint8Array): 'next' | number {
    if (opcode === OPCODE.ping) this.#events.ping(payload)
    else if (opcode === OPCODE.close) {
      const code = payload.length < 2 ? 1005 : payload[0]! * 256 + payload[1]!
      this.#events.close(code, lax.decode(payload.subarray(2)))
    } else if (opcode !== OPCODE.pong) return 1002
    return 'next'
  }

  #data(opcode: number, payload: Uint8Array, last: boolean): 'next' | number {
    if (opcode > OPCODE.binary || (opcode === OPCODE.more) !== (this.#opcode !== 0)) return 1002
    if (opcode !== OPCODE.more) this.#opcode = opcode
    this.#parts.push(payload)
    this.#partBytes += payload.length
    if (!last) return 'next'
    const whole = this.#parts.length === 1 ? payload : concat(...this.#parts)
    const isText = this.#opcode === OPCODE.text
    this.#parts = []
    this.#partBytes = 0
    this.#opcode = 0
    try {
      this.#events.message(isText ? strict.decode(whole) : whole)
    } catch {
      return 1007
    }
    return 'next'
  }

  /** The first `count` bytes, joined once and kept so. */
  #peek(count: number): Uint8Array {
    let bytes = 0
    let pieces = 0
    while (bytes < count) bytes += this.#held[pieces++]!.length
    if (pieces > 1) this.#held.splice(0, pieces, concat(...this.#held.slice(0, pieces)))
    return this.#held[0]!.subarray(0, count)
  }

  #drop(count: number): void {
    this.#bytes -= count
    const rest = this.#held[0]!.subarray(count)
    if (rest.length > 0) this.#held[0] = rest
    else this.#held.shift()
  }
}

const strict = new TextDecoder('utf-8', { fatal: true })
/** For the reason of a close, which people read. */
const lax = new TextDecoder()
