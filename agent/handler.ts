/**
 * A local HTTP service that answers messages: each is one POST, its body the message as it comes,
 * and the response's body goes back to the sender as the reply.
 */
import { failure } from './a2a.ts'
import type { Incoming, MessageResult } from './a2a.ts'
import { isLoopback } from './loopback.ts'
import type { Outcome } from './inbox.ts'
import type { Peer } from './peers.ts'
import type { HeaderList, HttpBody, HttpPort, HttpSending, Target } from './world.ts'
import type { Clock } from '../core/clock.ts'
import { asTunnelError, TunnelError } from '../core/errors.ts'

export interface HandlerOptions {
  url: URL
  /** Whole exchange, in milliseconds. */
  timeMs: number
  /** Of the response. */
  outputBytesMax: number
}

/** Throws `cli/handler`. */
export function parseHandler(words: string): URL {
  let url: URL | undefined
  try {
    url = new URL(words)
  } catch {
    // Said below.
  }
  const secure = url?.protocol === 'https:'
  const near = url?.protocol === 'http:' && isLoopback(url.hostname.replace(/^\[|\]$/g, ''))
  if (url && (secure || near) && url.username === '' && url.password === '') return url
  throw new TunnelError(
    'cli/handler',
    `Cannot read --handler: found "${
      words.slice(0, 200)
    }", expected http:// on this machine or https://`,
    { hint: 'One like http://127.0.0.1:3000/messages.' },
  )
}

/** Gives one message to the service. Never throws. */
export async function postMessage(
  world: { http: Pick<HttpPort, 'request'>; clock: Clock },
  { incoming, peer }: { incoming: Incoming; peer: Peer },
  options: HandlerOptions,
): Promise<Outcome> {
  const post = new Post(world, incoming, { peer, options })
  const result = await post.run()
  // What never reached the service may be sent again.
  return { result, taken: result.code === undefined || !result.code.startsWith('net/') }
}

class Post {
  readonly #incoming: Incoming
  readonly #options: HandlerOptions
  readonly #clock: Clock
  readonly #sending: HttpSending
  readonly #done: Promise<MessageResult>
  #end!: (result: MessageResult) => void
  #drained: (() => void) | undefined
  #over = false

  constructor(
    world: { http: Pick<HttpPort, 'request'>; clock: Clock },
    incoming: Incoming,
    { peer, options }: { peer: Peer; options: HandlerOptions },
  ) {
    this.#incoming = incoming
    this.#options = options
    this.#clock = world.clock
    this.#done = new Promise((resolve) => {
      this.#end = (result) => {
        this.#over = true
        this.#drained?.()
        resolve(result)
      }
    })
    const { url } = options
    const host = url.hostname.replace(/^\[|\]$/g, '')
    const secure = url.protocol === 'https:'
    const target: Target = { host, port: Number(url.port) || (secure ? 443 : 80) }
    this.#sending = world.http.request({
      target,
      ...(secure ? { tls: { servername: host, verify: true } } : {}),
      method: 'POST',
      path: `${url.pathname}${url.search}`,
      headers: headersFor(url, { incoming, peer }),
    }, {
      response: (status, _, body) => this.#answered(status, body),
      drain: () => this.#drained?.(),
      failed: (error) => this.#end(failure(asTunnelError(error, 'a2a/handler'))),
    })
  }

  async run(): Promise<MessageResult> {
    const { timeMs } = this.#options
    const late = this.#clock.after(timeMs, () => {
      const message = `the service took more than ${timeMs / 1000} s`
      this.#end({ status: 'timeout', code: 'a2a/time', message })
    })
    const gone = (): void => this.#end({ status: 'failed', code: 'a2a/gone' })
    this.#incoming.gone.addEventListener('abort', gone, { once: true })
    this.#feed().catch((error) => this.#end(failure(error)))
    try {
      return await this.#done
    } finally {
      late.cancel()
      this.#incoming.gone.removeEventListener('abort', gone)
      this.#sending.abort()
    }
  }

  async #feed(): Promise<void> {
    for await (const chunk of this.#incoming.body()) {
      if (this.#over) return
      if (!this.#sending.write(chunk)) {
        await new Promise<void>((resolve) => void (this.#drained = resolve))
      }
    }
    if (!this.#over) this.#sending.end()
  }

  #answered(status: number, body: HttpBody): void {
    const fine = status >= 200 && status < 300
    const { outputBytesMax } = this.#options
    let bytes = 0
    let passing = Promise.resolve()
    const pass = async (chunk: Uint8Array): Promise<void> => {
      // A service's complaint is no reply.
      await (fine ? this.#incoming.output(chunk) : this.#incoming.errors(chunk))
      body.resume()
    }
    const cut = (): void => {
      const message = 'the service broke off its answer'
      this.#end({ status: 'failed', code: 'a2a/handler', message })
    }
    body.handle({
      data: (chunk) => {
        bytes += chunk.length
        if (bytes > outputBytesMax) {
          const message = `the service answered more than ${outputBytesMax} bytes`
          return this.#end({ status: 'failed', code: 'a2a/output', message })
        }
        body.pause()
        passing = passing.then(() => pass(chunk)).catch(cut)
      },
      end: () => {
        void passing.then(() =>
          this.#end(
            fine ? { status: 'delivered' } : {
              status: 'failed',
              code: 'a2a/handler',
              message: `the service answered ${status}`,
            },
          )
        )
      },
      aborted: cut,
    })
    body.resume()
  }
}

function headersFor(
  url: URL,
  { incoming, peer }: { incoming: Incoming; peer: Peer },
): HeaderList {
  const { id, bytes } = incoming.request
  return [
    ['Host', url.host],
    ['Content-Type', 'application/octet-stream'],
    bytes === undefined ? ['Transfer-Encoding', 'chunked'] : ['Content-Length', String(bytes)],
    ['X-Sotto-Peer', peer.name.replace(/[^\x21-\x7e]/gu, encodeURIComponent)],
    ['X-Sotto-Peer-Key', peer.key],
    ['X-Sotto-Message-Id', id],
    ['Connection', 'close'],
  ]
}
