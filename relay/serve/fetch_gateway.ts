/**
 * The visitor's side of readable HTTP where the runtime hands over a `Request` and takes a
 * `Response`: Workers and `Deno.serve`. Bodies stream both ways. What fetch cannot carry is left out:
 * trailers, interim responses (the runtime answers `Expect` by itself), the case of names, the order
 * among different fields, dots in paths. Framing is the runtime's, attacks on it too.
 */
import { fieldOf, type Fields, lengthOf, type ResponseHead } from '../../core/exchange.ts'
import type { Gateway, GatewayExchange, VisitorAnswer, VisitorRequest } from '../gateway.ts'
import { serveSocket } from './fetch_socket.ts'

/** Bytes of a response that wait in the runtime before the agent is held. */
const RESPONSE_BYTES = 262_144
const EMPTY = new Uint8Array(0)

/** Who asks, as the runtime knows it; the port is 0 when unknown. */
export interface FetchVisitor {
  address: string
  port: number
}

/** Carries one exchange; never rejects. */
export async function serveFetch(
  gateway: Gateway,
  request: Request,
  visitor: FetchVisitor,
): Promise<Response> {
  const asked = visitorRequest(request, visitor)
  if (request.headers.get('upgrade')?.toLowerCase() === 'websocket') {
    return await serveSocket(gateway, { request, asked, answer: answerOf(request) })
  }
  return await new Promise((resolve) => {
    const answer = new FetchAnswer(request, resolve)
    answer.begin(gateway.serve(asked, answer))
  })
}

/** How an exchange that was to switch protocols is answered when the service does not. */
function answerOf(request: Request): (resolve: (response: Response) => void) => FetchAnswer {
  return (resolve) => new FetchAnswer(request, resolve)
}

/** The request as a parser of HTTP/1.1 would have told it. */
function visitorRequest(request: Request, visitor: FetchVisitor): VisitorRequest {
  const url = new URL(request.url)
  const headers: Fields = [['host', request.headers.get('host') ?? url.host]]
  for (const [name, value] of request.headers) {
    if (!/^(host|expect|connection|transfer-encoding|content-length)$/.test(name)) {
      headers.push([name, value])
    }
  }
  if (request.headers.get('upgrade') !== null) headers.push(['connection', 'Upgrade'])
  const length = request.headers.get('content-length')
  if (length !== null) headers.push(['content-length', length])
  else if (request.body) headers.push(['transfer-encoding', 'chunked'])
  return {
    method: request.method,
    target: url.pathname + url.search,
    version: '1.1',
    scheme: url.protocol === 'http:' ? 'http' : 'https',
    headers,
    ...visitor,
  }
}

export class FetchAnswer implements VisitorAnswer {
  readonly #request: Request
  readonly #resolve: (response: Response) => void
  #exchange: GatewayExchange | undefined
  #reader: ReadableStreamDefaultReader<Uint8Array> | undefined
  #reading = false
  #wanted = false
  #read = false
  #controller: ReadableStreamDefaultController<Uint8Array> | undefined
  #answered = false
  readonly #left = (): void => this.#exchange?.left()

  constructor(request: Request, resolve: (response: Response) => void) {
    this.#request = request
    this.#resolve = resolve
  }

  /** What was served with this answer. It may be over already. */
  begin(exchange: GatewayExchange): void {
    this.#exchange = exchange
    // Runtimes abort the signal after a good end too; the exchange is over by then.
    this.#request.signal.addEventListener('abort', this.#left)
    if (this.#wanted) this.#pump()
  }

  /** The exchange goes on without the request: its connection is a WebSocket now. */
  switched(): void {
    this.#request.signal.removeEventListener('abort', this.#left)
  }

  info(): void {
    // Fetch has no interim responses.
  }

  head(head: ResponseHead): void {
    this.#answered = true
    const { status } = head
    const headers = new Headers()
    for (const [name, value] of head.headers) {
      if (!/^trailer$/i.test(name)) headers.append(name, value)
    }
    const bodyless = this.#request.method === 'HEAD' || [204, 205, 304].includes(status)
    // Bytes are passed on as the service encoded them; only Workers needs to be told.
    const init = { status, headers, encodeBody: 'manual' }
    try {
      this.#resolve(new Response(bodyless ? null : this.#body(head), init))
    } catch {
      // Statuses above 599, which fetch does not know.
      this.#exchange?.left()
      this.#resolve(new Response(null, { status: 502 }))
    }
  }

  #body(head: ResponseHead): ReadableStream<Uint8Array> {
    const stream = new ReadableStream<Uint8Array>({
      start: (controller) => void (this.#controller = controller),
      pull: () => this.#exchange?.drained(),
      cancel: () => {
        this.#controller = undefined
        this.#exchange?.left()
      },
    }, { highWaterMark: RESPONSE_BYTES, size: (chunk) => chunk?.length ?? 0 })
    const length = lengthOf(head.headers)
    const Fixed = (globalThis as { FixedLengthStream?: FixedLength }).FixedLengthStream
    if (length === undefined || !Fixed || fieldOf(head.headers, 'content-encoding')) return stream
    // Workers states a length only for a body that promises it.
    const fixed = new Fixed(length)
    stream.pipeTo(fixed.writable).catch(() => this.#exchange?.left())
    return fixed.readable
  }

  write(bytes: Uint8Array): boolean {
    const controller = this.#controller
    if (!controller) return true
    controller.enqueue(bytes.slice())
    return (controller.desiredSize ?? 1) > 0
  }

  end(): void {
    this.#controller?.close()
    this.#controller = undefined
    this.#finish()
  }

  abort(): void {
    this.#controller?.error(new Error('the response broke off'))
    this.#controller = undefined
    if (!this.#answered) this.#resolve(new Response(null, { status: 502 }))
    this.#finish()
  }

  pause(): void {
    this.#wanted = false
  }

  resume(): void {
    this.#wanted = true
    this.#pump()
  }

  /** Reads the request's body for as long as it is wanted. */
  #pump(): void {
    const exchange = this.#exchange
    if (!exchange || this.#reading || this.#read) return
    if (!this.#request.body) {
      this.#read = true
      return exchange.end([])
    }
    this.#reader ??= this.#request.body.getReader()
    const reader = this.#reader
    this.#reading = true
    const next = (): void => {
      if (!this.#wanted || this.#read) return void (this.#reading = false)
      reader.read().then(({ done, value }) => {
        if (done) {
          this.#read = true
          return exchange.end([])
        }
        exchange.body(value ?? EMPTY)
        next()
      }, () => exchange.left())
    }
    next()
  }

  /** What is left of the request is of no use. */
  #finish(): void {
    if (this.#read) return
    this.#read = true
    if (this.#reader) this.#reader.cancel().catch(() => {})
    else if (this.#request.body) this.#request.body.cancel().catch(() => {})
  }
}

type FixedLength = new (length: number) => {
  readable: ReadableStream<Uint8Array>
  writable: WritableStream<Uint8Array>
}
