/**
 * The agent's end of readable HTTP: one stream of a link is one exchange, asked of the upstream by
 * the runtime's own HTTP/1.1. Bodies pass both ways as they come, a slow side pauses the other, and
 * what ends one side ends the other. The relay tells the visitor what went wrong; this end only says
 * so with the stream's reset. docs/protocol.md, "Readable HTTP".
 */
import { EMPTY } from '../core/bytes.ts'
import { asTunnelError, isTunnelError, TunnelError } from '../core/errors.ts'
import {
  decodeRequestHead,
  encodeBody,
  encodeHead,
  encodeInfo,
  encodeTrailers,
  endToEnd,
  endToEndTrailers,
  ExchangeReader,
  fieldOf,
  INFOS_MAX,
  requestLength,
} from '../core/exchange.ts'
import type { Fields, RequestHead, ResponseHead } from '../core/exchange.ts'
import { REASON_BYTES_MAX, RESET } from '../core/frame.ts'
import type { Stream } from '../core/mux.ts'
import type { Conn } from '../core/socket.ts'
import { reachUpstream, serverName, upstreamTarget } from './forward.ts'
import type { Upstream } from './forward.ts'
import type { HttpBody, HttpSending, World } from './world.ts'

export interface ExchangeOptions {
  world: Pick<World, 'http' | 'net'>
  upstream: Upstream
  /** Live counts of bytes from and to the visitor, heads included; added to. */
  bytes: { forth: number; back: number }
  /** The upstream could not be reached or answered nonsense. */
  onTrouble?: (error: TunnelError) => void
  /** Once, when the stream is closed. */
  done(): void
}

/** Upstreams that answered at the address that `upstreamTarget` gives now. */
const reached = new WeakSet<Upstream>()

/** Serves a stream of kind `http` that has just been opened. */
export function serveExchange(stream: Stream, options: ExchangeOptions): void {
  new ServedExchange(stream, options).start()
}

class ServedExchange {
  readonly #stream: Stream
  readonly #options: ExchangeOptions
  #head: RequestHead | undefined
  #reader: ExchangeReader | undefined
  #sending: HttpSending | undefined
  #response: HttpBody | undefined
  /** The upstream's side after a switch of protocols. */
  #conn: Conn | undefined
  #infos = 0
  #answered = false
  /** The response is whole; what the visitor still sends is of no use. */
  #finished = false
  #closed = false

  constructor(stream: Stream, options: ExchangeOptions) {
    this.#stream = stream
    this.#options = options
  }

  start(): void {
    const stream = this.#stream
    stream.handle({
      data: (bytes) => {
        this.#options.bytes.forth += bytes.length
        this.#read(() => this.#reader?.push(bytes))
      },
      drain: () => {
        this.#response?.resume()
        this.#conn?.resume()
      },
      end: () => this.#read(() => this.#reader?.end()),
      closed: () => {
        this.#closed = true
        if (!this.#finished) this.#sending?.abort()
        this.#conn?.abort()
        this.#options.done()
      },
    })
    this.#options.bytes.forth += stream.visit.tail.length
    try {
      this.#head = decodeRequestHead(stream.visit.tail)
    } catch (error) {
      return stream.reset(RESET.protocol, asTunnelError(error, 'exchange/head').message)
    }
    this.#reader = ExchangeReader.ofRequest(this.#head, {
      body: (bytes) => this.#upload(bytes),
      end: (trailers) => this.#uploaded(trailers),
    })
    this.#begin(this.#head)
  }

  /** A body is sent once, so where `localhost` may be either family that is found out before. */
  #begin(head: RequestHead): void {
    const { upstream } = this.#options
    const sure = reached.has(upstream) || upstream.kind === 'unix' || upstream.host !== 'localhost'
    if (sure || requestLength(head) === 0) return this.#tryAsk(head)
    this.#stream.pause()
    this.#probe().then(() => {
      this.#stream.resume()
      this.#tryAsk(head)
    }, (error) => this.#failed(error))
  }

  #tryAsk(head: RequestHead, again = true): void {
    try {
      this.#ask(head, again)
    } catch (error) {
      this.#failed(error)
    }
  }

  async #probe(): Promise<void> {
    await reachUpstream(this.#options.upstream, async (target) => {
      const conn = await this.#options.world.net.connect(target)
      conn.handle({ data() {}, end() {}, closed() {} })
      conn.abort()
    })
  }

  #ask(head: RequestHead, again: boolean): void {
    if (this.#closed) return
    const { upstream, world } = this.#options
    const sending = world.http.request({
      target: upstreamTarget(upstream),
      method: head.method,
      path: head.target,
      headers: requestHeaders(head),
      ...(upstream.kind === 'tls'
        ? { tls: { servername: serverName(upstream.host), verify: upstream.verify } }
        : {}),
    }, {
      info: (status, headers) => this.#info(status, headers),
      response: (status, headers, body) => this.#answer(status, { headers, body }),
      upgraded: (headers, conn) => this.#switch(headers, conn),
      drain: () => this.#stream.resume(),
      failed: (error) => {
        const refused = isTunnelError(error, 'net/refused')
        if (refused) reached.delete(upstream)
        if (!refused || !again || this.#answered || requestLength(head) !== 0) {
          return this.#failed(error)
        }
        this.#probe().then(() => this.#tryAsk(head, false), () => this.#failed(error))
      },
    })
    this.#sending = sending
    // The head goes out now: an upstream may have to be asked whether it wants the body at all.
    if (head.upgrade !== undefined || requestLength(head) === 0) sending.end()
    else sending.write(EMPTY)
  }

  /** Runs what reads the visitor's records; what has no place there ends the exchange. */
  #read(run: () => void): void {
    try {
      run()
    } catch (error) {
      this.#stream.reset(RESET.protocol, asTunnelError(error, 'exchange/record').message)
    }
  }

  #upload(bytes: Uint8Array): void {
    if (this.#finished) return
    if (this.#conn) {
      if (this.#conn.write(bytes) === 'queued') this.#stream.pause()
    } else if (this.#head!.upgrade !== undefined) {
      this.#stream.reset(RESET.protocol, 'bytes before the switch of protocols')
    } else if (this.#sending?.write(bytes) === false) this.#stream.pause()
  }

  #uploaded(trailers: Fields): void {
    if (this.#conn) this.#conn.end()
    else if (this.#head!.upgrade === undefined && requestLength(this.#head!) !== 0) {
      this.#sending?.end(trailers)
    }
  }

  #info(status: number, headers: Fields): void {
    if (this.#answered || this.#closed || status === 101 || ++this.#infos > INFOS_MAX) return
    try {
      this.#write(encodeInfo({ status, headers: responseFields(headers) }))
    } catch {
      // An interim response that cannot be told is no loss.
    }
  }

  #answer(status: number, { headers, body }: { headers: Fields; body: HttpBody }): void {
    if (this.#closed) return
    reached.add(this.#options.upstream)
    const fields = responseFields(headers)
    const head = {
      status,
      headers: status === 204 || status === 304 ? withoutBody(fields, status) : fields,
    }
    if (!this.#sendHead(head)) return
    this.#response = body
    body.handle({
      data: (bytes) => {
        if (!this.#writeBody(bytes)) body.pause()
      },
      end: (trailers) => {
        const fields = endToEndTrailers(trailers)
        if (fields.length > 0) this.#tell(() => encodeTrailers(fields))
        this.#finished = true
        this.#stream.end()
      },
      aborted: () => {
        if (!this.#finished) this.#stream.reset(RESET.aborted, 'the upstream broke off')
      },
    })
    body.resume()
  }

  #switch(headers: Fields, conn: Conn): void {
    const upgrade = this.#head?.upgrade
    const chosen = fieldOf(headers, 'upgrade') ?? upgrade
    if (this.#closed || upgrade === undefined || chosen === undefined) {
      conn.abort()
      return this.#failed(new TunnelError('http/upgrade', 'Cannot read response: found a 101'))
    }
    reached.add(this.#options.upstream)
    conn.handle({
      data: (bytes) => {
        if (!this.#writeBody(bytes)) conn.pause()
      },
      drain: () => this.#stream.resume(),
      end: () => this.#stream.end(),
      closed: (error) => {
        this.#conn = undefined
        if (error) this.#stream.reset(RESET.aborted, 'the upstream broke off')
        else this.#stream.end()
      },
    })
    const head = { status: 101, headers: responseFields(headers), upgrade: chosen }
    if (this.#sendHead(head)) this.#conn = conn
    else conn.abort()
  }

  #sendHead(head: ResponseHead): boolean {
    this.#answered = true
    return this.#tell(() => encodeHead(head))
  }

  /** Writes a record that may turn out not to be one; then the exchange fails. */
  #tell(make: () => Uint8Array): boolean {
    try {
      this.#write(make())
      return true
    } catch (error) {
      this.#failed(asTunnelError(error, 'exchange/head'))
      return false
    }
  }

  #write(record: Uint8Array): boolean {
    this.#options.bytes.back += record.length
    return this.#stream.write(record) === 'ok'
  }

  /** False when the side that these bytes come from must wait. */
  #writeBody(bytes: Uint8Array): boolean {
    let room = true
    for (const record of encodeBody(bytes)) room = this.#write(record) && room
    return room
  }

  #failed(error: unknown): void {
    if (this.#closed || this.#finished) return
    const trouble = asTunnelError(error, 'upstream/unreachable')
    this.#options.onTrouble?.(trouble)
    const code = trouble.code === 'net/timeout' ? RESET.timeout : RESET.unreachable
    this.#stream.reset(code, trouble.message.slice(0, REASON_BYTES_MAX))
    this.#sending?.abort()
  }
}

function requestHeaders(head: RequestHead): Fields {
  const headers: Fields = [['Host', head.authority], ...head.headers]
  if (head.upgrade !== undefined) {
    headers.push(['Connection', 'Upgrade'], ['Upgrade', head.upgrade])
  } else if (fieldOf(head.headers, 'te') !== undefined) headers.push(['Connection', 'TE'])
  if (head.chunked) headers.push(['Transfer-Encoding', 'chunked'])
  return headers
}

/** What of an upstream's fields goes on; one that says its length twice means it once. */
function responseFields(headers: Fields): Fields {
  let length = false
  return endToEnd(headers).filter(([name]) => {
    const lower = name.toLowerCase()
    if (lower !== 'content-length') return lower !== 'host' && lower !== 'te'
    const first = !length
    length = true
    return first
  })
}

/** RFC 9110 §8.6: no length in a 204. */
function withoutBody(headers: Fields, status: number): Fields {
  return status === 304
    ? headers
    : headers.filter(([name]) => name.toLowerCase() !== 'content-length')
}
