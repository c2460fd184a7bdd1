/**
 * A visitor's WebSocket where the runtime ends it and hands over messages (`WebSocketPair` of
 * Workers, `Deno.upgradeWebSocket`): a handshake of our own with the service, then messages become
 * frames and frames messages. Pings are answered on each side by whoever ends it there. Neither
 * runtime can pause a WebSocket: what a slow service does not take is bounded by its stream.
 */
import { utf8 } from '../../core/bytes.ts'
import type { Fields, ResponseHead } from '../../core/exchange.ts'
import { fieldOf } from '../../core/exchange.ts'
import type { Gateway, GatewayExchange, VisitorAnswer, VisitorRequest } from '../gateway.ts'
import { encodeClientFrame, encodeClose, OPCODE, ServerFrames } from '../websocket_frames.ts'

/** RFC 6455 §1.3. */
const ACCEPT_SUFFIX = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
/** Bytes that may wait for a slow visitor before the service is held. */
const WAITING_BYTES = 1_048_576
/** How often a full socket is looked at: the API has no event for it. */
const LOOK_MS = 20
/** RFC 6455 §7.4.1. */
const CLOSE_NORMAL = 1000
const CLOSE_BROKEN = 1011

interface Switched {
  response: Response
  socket: WebSocket
}

/** The runtime's own way to end a WebSocket; undefined where there is none. */
function switchTo(request: Request, protocol: string | undefined): Switched | undefined {
  const { WebSocketPair, Deno } = globalThis as unknown as {
    WebSocketPair?: new () => [WebSocket, WebSocket & { accept(): void }]
    Deno?: { upgradeWebSocket(request: Request, options: object): Switched }
  }
  if (WebSocketPair) {
    const pair = new WebSocketPair()
    pair[1].binaryType = 'arraybuffer'
    pair[1].accept()
    const headers = new Headers()
    if (protocol !== undefined) headers.set('sec-websocket-protocol', protocol)
    const init = { status: 101, headers, webSocket: pair[0] }
    return { response: new Response(null, init), socket: pair[1] }
  }
  return Deno?.upgradeWebSocket(request, {
    idleTimeout: 0,
    ...(protocol === undefined ? {} : { protocol }),
  })
}

async function acceptOf(key: string): Promise<string> {
  const hash = await crypto.subtle.digest('SHA-1', utf8(key + ACCEPT_SUFFIX) as BufferSource)
  return base64(new Uint8Array(hash))
}

function base64(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes))
}

/** Serves a request for a WebSocket. `answer` makes what answers when the service does not switch. */
export async function serveSocket(
  gateway: Gateway,
  { request, asked, answer }: {
    request: Request
    asked: VisitorRequest
    answer(resolve: (response: Response) => void): PlainAnswer
  },
): Promise<Response> {
  const key = base64(crypto.getRandomValues(new Uint8Array(16)))
  const accept = await acceptOf(key)
  const headers: Fields = asked.headers.filter(([name]) =>
    !/^(upgrade|sec-websocket-(key|extensions|version))$/i.test(name)
  )
  headers.push(
    ['upgrade', 'websocket'],
    ['sec-websocket-version', '13'],
    ['sec-websocket-key', key],
  )
  return await new Promise((resolve) => {
    const bridge = new SocketBridge(answer(resolve), {
      accept,
      switchTo: (protocol) => {
        const switched = switchTo(request, protocol)
        if (switched) resolve(switched.response)
        return switched?.socket
      },
      refuse: () => resolve(new Response(null, { status: 502 })),
    })
    bridge.begin(gateway.serve({ ...asked, headers }, bridge))
  })
}

/** What answers a service that does not switch. */
export interface PlainAnswer extends VisitorAnswer {
  begin(exchange: GatewayExchange): void
  switched(): void
}

interface BridgeOptions {
  /** What the service has to answer to our key. */
  accept: string
  switchTo(protocol: string | undefined): WebSocket | undefined
  refuse(): void
}

class SocketBridge implements VisitorAnswer {
  readonly #plain: PlainAnswer
  readonly #options: BridgeOptions
  readonly #frames: ServerFrames
  #exchange: GatewayExchange | undefined
  #socket: WebSocket | undefined
  #open = false
  /** From before the visitor's side was open. */
  #early: Uint8Array[] = []
  #switched = false
  /** A close has passed from the service, or to it. */
  #closing = false

  constructor(
    plain: PlainAnswer,
    options: BridgeOptions,
  ) {
    this.#plain = plain
    this.#options = options
    this.#frames = new ServerFrames({
      message: (message) => this.#socket?.send(message as string | Uint8Array<ArrayBuffer>),
      ping: (payload) => this.#frame(OPCODE.pong, payload),
      close: (code, reason) => {
        if (!this.#closing) this.#frame(OPCODE.close, encodeClose(code, ''))
        this.#closing = true
        this.#close(code ?? CLOSE_NORMAL, reason)
      },
    })
  }

  begin(exchange: GatewayExchange): void {
    this.#exchange = exchange
    this.#plain.begin(exchange)
  }

  info(): void {
    // Fetch has no interim responses.
  }

  head(head: ResponseHead, options: { close: boolean }): void {
    if (head.upgrade === undefined) return this.#plain.head(head, options)
    if (fieldOf(head.headers, 'sec-websocket-accept') !== this.#options.accept) {
      return this.#refuse()
    }
    this.#switched = true
    this.#plain.switched()
    const socket = this.#options.switchTo(fieldOf(head.headers, 'sec-websocket-protocol'))
    if (!socket) return this.#refuse()
    this.#socket = socket
    socket.binaryType = 'arraybuffer'
    socket.addEventListener('message', ({ data }: MessageEvent<string | ArrayBuffer>) => {
      if (typeof data === 'string') this.#frame(OPCODE.text, utf8(data))
      else this.#frame(OPCODE.binary, new Uint8Array(data))
    })
    socket.addEventListener('close', ({ code, reason }) => {
      if (!this.#closing) {
        this.#closing = true
        this.#frame(OPCODE.close, encodeClose(sayable(code) ? code : undefined, reason))
      }
      this.#exchange?.end([])
      // Some runtimes leave the answer to a close to the program.
      this.#close(CLOSE_NORMAL, '')
    })
    socket.addEventListener('error', () => this.#exchange?.left())
    if (socket.readyState === WebSocket.OPEN) this.#opened()
    else socket.addEventListener('open', () => this.#opened())
  }

  #refuse(): void {
    // Not in the middle of the event that brought this head.
    queueMicrotask(() => this.#exchange?.left())
    this.#options.refuse()
  }

  #opened(): void {
    this.#open = true
    for (const bytes of this.#early.splice(0)) this.#read(bytes)
    this.#exchange?.drained()
  }

  write(bytes: Uint8Array): boolean {
    if (!this.#switched) return this.#plain.write(bytes)
    if (!this.#open) {
      this.#early.push(bytes.slice())
      return false
    }
    this.#read(bytes)
    if ((this.#socket?.bufferedAmount ?? 0) <= WAITING_BYTES) return true
    this.#look()
    return false
  }

  #read(bytes: Uint8Array): void {
    try {
      this.#frames.push(bytes)
    } catch {
      // The service broke the protocol: neither side can go on.
      this.#close(CLOSE_BROKEN, 'the service broke the protocol')
      this.#exchange?.left()
    }
  }

  #look(): void {
    setTimeout(() => {
      if ((this.#socket?.bufferedAmount ?? 0) > WAITING_BYTES / 2) this.#look()
      else this.#exchange?.drained()
    }, LOOK_MS)
  }

  end(trailers: Fields): void {
    if (!this.#switched) return this.#plain.end(trailers)
    if (!this.#closing) this.#close(CLOSE_BROKEN, 'the service went away')
  }

  abort(): void {
    if (!this.#switched) return this.#plain.abort()
    this.#close(CLOSE_BROKEN, 'the service went away')
  }

  pause(): void {
    if (!this.#switched) this.#plain.pause()
  }

  resume(): void {
    if (!this.#switched) this.#plain.resume()
  }

  #frame(opcode: number, payload: Uint8Array): void {
    const mask = crypto.getRandomValues(new Uint8Array(4))
    this.#exchange?.body(encodeClientFrame(opcode, payload, mask))
  }

  #close(code: number, reason: string): void {
    this.#closing = true
    try {
      this.#socket?.close(code, reason)
    } catch {
      // Some runtimes let a program say 1000 and 3000 to 4999 alone.
      this.#socket?.close(CLOSE_NORMAL, reason)
    }
  }
}

/** Codes that may be on the wire: 1005, 1006 and 1015 only say that there was none. */
function sayable(code: number): boolean {
  return code >= 1000 && code < 5000 && ![1004, 1005, 1006, 1015].includes(code)
}
