/**
 * Readable HTTP at the relay, for endpoints that were claimed so: one exchange of a visitor becomes
 * one stream of a link. Backends in `serve/` bring the visitor's side (a server of the runtime), the
 * owner brings whoever serves a name; what passes between, and what can go wrong, is here. Bodies are
 * never collected: each side waits for the other. docs/protocol.md, "Readable HTTP".
 */
import type { Clock, Timer } from '../core/clock.ts'
import { isTunnelError } from '../core/errors.ts'
import {
  encodeBody,
  encodeRequestHead,
  encodeTrailers,
  endToEndTrailers,
  ExchangeReader,
  fieldOf,
  type Fields,
  type RequestHead,
  requestLength,
  type ResponseHead,
} from '../core/exchange.ts'
import { EMPTY } from '../core/bytes.ts'
import { RESET, type Visit } from '../core/frame.ts'
import type { Stream } from '../core/mux.ts'
import {
  badGateway,
  busy,
  openProblem,
  requestProblem,
  resetProblem,
  unknownName,
} from './outage.ts'
import { failure } from './pages/failure.ts'
import { Problem, problemOf } from './problem.ts'
import { readRequest, type VisitorRequest } from './request_head.ts'

export type { VisitorRequest } from './request_head.ts'

/** Members of a pool that are asked for one exchange. */
const ATTEMPTS_MAX = 3
/** Exchanges of this process at once; more are answered with 503. */
const EXCHANGES_MAX = 16_384

/** How long an exchange waits for whom. */
export interface GatewayLimits {
  /** For the next bytes of a request that has a body: 408. Default 60 s. */
  idleMs: number
  /** For the head of the response, once the request is whole: 504. Default 120 s. */
  answerMs: number
  /** For anything, either way, after that; event streams and WebSockets are quiet for long. Default 15 min. */
  quietMs: number
}

const LIMITS: GatewayLimits = { idleMs: 60_000, answerMs: 120_000, quietMs: 900_000 }

/** Somebody who serves a name. */
export interface Backend {
  /** As `Mux.open`; what it throws moves on to the next. */
  open(visit: Omit<Visit, 'windowBytes'>): Stream
  /** Told whether an open was taken, unless the visitor left before that. */
  settled?(result: 'taken' | 'refused' | 'timeout' | 'gone'): void
  /** Told once for each stream that `open` gave: it is closed. */
  closed?(): void
}

export interface GatewayPorts {
  clock: Clock
  /** Endpoints are one label under this domain; lower case. */
  domain: string
  /** Also by path: `/t/NAME/…` on any other host. Default false. */
  paths?: boolean
  /**
   * Who serves `name` for this visitor, best first; asked again, with `attempt` counting from 1,
   * when one did not take it. Undefined: nobody (more). May throw a `Problem` or a quota error.
   */
  pick(
    name: string,
    visitor: { address: string; attempt: number },
  ): Backend | undefined | Promise<Backend | undefined>
  limits?: Partial<GatewayLimits>
  /** Told once for each exchange; `status` is 0 when the visitor left before an answer. */
  outcome?(result: ExchangeResult): void
}

export interface ExchangeResult {
  /** Empty when the request was refused before a name was read. */
  name: string
  status: number
  /** False where one side ended it early. */
  whole: boolean
  address: string
  forth: number
  back: number
}

/** The visitor's side of one exchange, as a backend gives it. */
export interface VisitorAnswer {
  /** A 1xx other than 101; a backend that cannot send it drops it. */
  info(status: number, headers: Fields): void
  /**
   * With `upgrade`, status is 101 and both directions are bytes from here on. With `close`, the
   * connection ends after this response. Without a `content-length` the backend frames the body.
   */
  head(head: ResponseHead, options: { close: boolean }): void
  /** False: the exchange waits for `drained`. */
  write(bytes: Uint8Array): boolean
  end(trailers: Fields): void
  /** Breaks the connection, so that the visitor sees that the response is not whole. */
  abort(): void
  /** The request's body; nothing of it is given before the first `resume`. */
  pause(): void
  resume(): void
}

export class Gateway {
  readonly ports: GatewayPorts
  readonly limits: GatewayLimits
  readonly #live = new Set<GatewayExchange>()
  #idle: (() => void)[] = []

  constructor(ports: GatewayPorts) {
    this.ports = ports
    this.limits = { ...LIMITS, ...ports.limits }
  }

  /** Exchanges now. */
  get size(): number {
    return this.#live.size
  }

  /** Runs `done` when no exchange is left. */
  whenIdle(done: () => void): void {
    if (this.#live.size === 0) done()
    else this.#idle.push(done)
  }

  /** Ends every exchange with an endpoint that `chosen` names, at once. */
  cut(chosen: (exchange: { name: string; address: string }) => boolean): number {
    const cut = [...this.#live].filter((exchange) => chosen(exchange))
    for (const exchange of cut) exchange.cut()
    return cut.length
  }

  /** Begins one exchange; the backend tells it what the visitor does. */
  serve(request: VisitorRequest, answer: VisitorAnswer): GatewayExchange {
    const exchange = new GatewayExchange(this, { request, answer }, () => {
      this.#live.delete(exchange)
      if (this.#live.size > 0) return
      const idle = this.#idle
      this.#idle = []
      for (const done of idle) done()
    })
    const full = this.#live.size >= EXCHANGES_MAX
    this.#live.add(exchange)
    exchange.start(full)
    return exchange
  }
}

export class GatewayExchange {
  name = ''
  readonly #gateway: Gateway
  readonly #request: VisitorRequest
  readonly #answer: VisitorAnswer
  readonly #done: () => void
  #head: RequestHead | undefined
  #tail: Uint8Array = EMPTY
  #reader: ExchangeReader | undefined
  #stream: Stream | undefined
  #backend: Backend | undefined
  #accepted = false
  /** The request is whole, trailers and all. */
  #uploaded = false
  #upgraded = false
  /** The visitor's body is not read because the other side is slow. */
  #held = true
  #status = 0
  #over = false
  #attempt = 0
  #problem: Problem | undefined
  #timer: Timer | undefined
  #lastMs = 0

  constructor(
    gateway: Gateway,
    { request, answer }: { request: VisitorRequest; answer: VisitorAnswer },
    done: () => void,
  ) {
    this.#gateway = gateway
    this.#request = request
    this.#answer = answer
    this.#done = done
  }

  get address(): string {
    return this.#request.address
  }

  /** Called by the gateway alone. */
  start(full: boolean): void {
    this.#touch()
    try {
      if (full) throw busy('the relay has too many requests at once')
      const { name, head } = readRequest(this.#request, {
        domain: this.#gateway.ports.domain,
        paths: this.#gateway.ports.paths ?? false,
      })
      this.name = name
      this.#head = head
      this.#tail = encodeRequestHead(head)
    } catch (error) {
      return this.#fail(requestProblem(error))
    }
    this.#watch()
    this.#pick()
  }

  /** Bytes of the request's body, or of an upgraded connection. */
  body(bytes: Uint8Array): void {
    const stream = this.#stream
    if (this.#over || this.#uploaded || !stream) return
    this.#touch()
    let room = true
    for (const record of encodeBody(bytes)) room = stream.write(record) === 'ok' && room
    if (!room) this.#hold()
  }

  /** The request is whole; or the visitor has ended its direction of an upgraded connection. */
  end(trailers: Fields): void {
    if (this.#over || this.#uploaded) return
    this.#touch()
    this.#uploaded = true
    const stream = this.#stream
    if (!stream || !this.#accepted) return
    const fields = endToEndTrailers(trailers)
    if (fields.length > 0) stream.write(encodeTrailers(fields))
    stream.end()
  }

  /** The visitor's connection is gone. */
  left(): void {
    if (this.#over) return
    this.#settle(false)
    this.#stream?.reset(RESET.aborted, 'the visitor left')
  }

  /** The visitor's connection takes more. */
  drained(): void {
    this.#touch()
    this.#stream?.resume()
  }

  cut(): void {
    if (this.#over) return
    this.#stream?.reset(RESET.blocked)
    this.#fail(
      new Problem(403, { code: 'relay/blocked', message: 'This tunnel was blocked by its relay' }),
    )
  }

  get #hasBody(): boolean {
    return this.#head !== undefined && requestLength(this.#head) !== 0
  }

  /** Something of the request is still to come, or it is not known whether. */
  get #pending(): boolean {
    return !this.#head || !this.#uploaded && (this.#hasBody || this.#head.upgrade !== undefined)
  }

  #touch(): void {
    this.#lastMs = this.#gateway.ports.clock.monotonic()
  }

  #pick(): void {
    let picked
    try {
      const attempt = ++this.#attempt
      picked = this.#gateway.ports.pick(this.name, { address: this.address, attempt })
    } catch (error) {
      return this.#fail(problemOf(error))
    }
    if (!(picked instanceof Promise)) return this.#open(picked)
    picked.then((backend) => this.#open(backend), (error) => this.#fail(problemOf(error)))
  }

  #open(backend: Backend | undefined): void {
    if (this.#over) return
    if (!backend) return this.#fail(this.#problem ?? unknownName(this.name))
    let stream: Stream
    try {
      stream = backend.open({
        kind: 'http',
        address: this.#request.address,
        port: this.#request.port,
        endpoint: this.name,
        tail: this.#tail,
      })
    } catch (error) {
      backend.settled?.('gone')
      return this.#again(openProblem(error))
    }
    this.#stream = stream
    this.#backend = backend
    stream.onAccept = () => this.#taken(stream)
    this.#reader = ExchangeReader.ofResponse(this.#head!.method, {
      info: (head) => this.#info(head),
      head: (head) => this.#answered(head),
      body: (bytes) => {
        if (!this.#answer.write(bytes)) stream.pause()
      },
      end: (trailers) => this.#answeredWhole(trailers),
    })
    stream.handle({
      data: (bytes) => this.#read(() => this.#reader!.push(bytes)),
      drain: () => this.#release(),
      end: () => this.#read(() => this.#reader!.end()),
      closed: (error) => {
        backend.closed?.()
        this.#closed(stream, error)
      },
    })
    // Nothing of a body goes before somebody has taken the exchange, so it can still be asked of another.
    if (!this.#hasBody && this.#head!.upgrade === undefined) {
      this.#uploaded = true
      stream.end()
    }
  }

  #taken(stream: Stream): void {
    if (this.#over || this.#stream !== stream) return
    this.#accepted = true
    this.#backend?.settled?.('taken')
    this.#touch()
    if (this.#hasBody) this.#release()
  }

  #hold(): void {
    if (this.#held) return
    this.#held = true
    this.#answer.pause()
  }

  #release(): void {
    if (this.#over || !this.#held) return
    this.#held = false
    this.#touch()
    this.#answer.resume()
  }

  /** Reads what the agent sends; what has no place there ends the exchange. */
  #read(run: () => void): void {
    if (this.#over) return
    this.#touch()
    try {
      run()
    } catch {
      this.#stream?.reset(RESET.protocol)
      this.#fail(badGateway('the agent sent what is no response'))
    }
  }

  #info(head: ResponseHead): void {
    if (this.#request.version !== '1.0') this.#answer.info(head.status, head.headers)
  }

  #answered(head: ResponseHead): void {
    if (this.#over) return
    if (head.status === 101 && head.upgrade?.toLowerCase() !== this.#head!.upgrade?.toLowerCase()) {
      this.#stream?.reset(RESET.protocol)
      return this.#fail(badGateway('the service switched to a protocol that was not asked for'))
    }
    this.#status = head.status
    this.#upgraded = head.status === 101
    const asked = this.#head!.upgrade !== undefined
    if (asked && !this.#upgraded) {
      this.#uploaded = true
      this.#stream?.end()
    }
    this.#answer.head(head, { close: !this.#uploaded && !this.#upgraded })
    if (this.#upgraded) this.#release()
  }

  #answeredWhole(trailers: Fields): void {
    if (this.#over) return
    this.#answer.end(trailers)
    if (this.#upgraded && !this.#uploaded) return
    this.#settle(true)
    // What is left of the request is of no use to anybody.
    if (!this.#uploaded) this.#stream?.reset(RESET.aborted, 'answered')
  }

  #closed(stream: Stream, error: Error | undefined): void {
    if (this.#stream !== stream || this.#over) return
    if (!error) {
      return this.#upgraded ? this.#settle(true) : this.#fail(badGateway('it ended early'))
    }
    if (this.#accepted) return this.#fail(resetProblem(error))
    const code = isTunnelError(error) ? error.code : ''
    const gone = code === 'stream/gone' || code === 'stream/timeout'
    const result = !gone ? 'refused' : code === 'stream/gone' ? 'gone' : 'timeout'
    this.#backend?.settled?.(result)
    // One that went silent may have asked the upstream already; only what may be asked twice is.
    const safe = !gone || /^(GET|HEAD|OPTIONS|PUT|DELETE)$/.test(this.#head!.method)
    if (safe) this.#again(resetProblem(error))
    else this.#fail(resetProblem(error))
  }

  #again(problem: Problem): void {
    this.#problem = problem
    this.#stream = undefined
    if (this.#attempt >= ATTEMPTS_MAX) this.#fail(problem)
    else this.#pick()
  }

  /** Answers in the place of the service, or breaks off what it had begun. */
  #fail(problem: Problem): void {
    if (this.#over) return
    if (this.#status !== 0) {
      this.#settle(false)
      this.#answer.abort()
      return
    }
    const page = failure(problem, fieldOf(this.#request.headers, 'accept') ?? '')
    this.#status = page.status
    this.#answer.head(page, { close: this.#pending })
    if (this.#request.method !== 'HEAD') this.#answer.write(page.body)
    this.#answer.end([])
    this.#settle(true)
  }

  #settle(whole: boolean): void {
    this.#over = true
    this.#timer?.cancel()
    this.#done()
    this.#gateway.ports.outcome?.({
      name: this.name,
      status: this.#status,
      whole,
      address: this.address,
      forth: this.#stream?.sentBytes ?? 0,
      back: this.#stream?.receivedBytes ?? 0,
    })
  }

  #watch(): void {
    const { idleMs, answerMs, quietMs } = this.#gateway.limits
    const visitor = this.#status === 0 && !this.#uploaded && !this.#held
    const limitMs = this.#status !== 0 ? quietMs : visitor ? idleMs : answerMs
    const leftMs = limitMs - (this.#gateway.ports.clock.monotonic() - this.#lastMs)
    if (leftMs <= 0) {
      this.#stream?.reset(RESET.timeout)
      return this.#fail(
        visitor
          ? new Problem(408, {
            code: 'http/timeout',
            message: 'Cannot read the request: its body stopped coming',
          })
          : new Problem(504, {
            code: 'http/timeout',
            message: `Cannot wait for the service any longer: found no answer in ${
              Math.round(limitMs / 1000)
            } s`,
          }),
      )
    }
    // Limits change with the state, so the shortest says when to look again.
    const lookMs = Math.min(leftMs, idleMs, answerMs, quietMs)
    this.#timer = this.#gateway.ports.clock.after(lookMs, () => this.#watch())
  }
}
