/**
 * A relay's HTTP, as its agents and operators ask it: REST under `/api/v1`, passports. Before a
 * secret is sent the relay proves its identity by the challenge of a link, which names the
 * certificate that this connection must then show; so a self-signed one will do here as well.
 */
import { AgentAdmission } from '../core/admit.ts'
import { concat, EMPTY, equal, text, utf8 } from '../core/bytes.ts'
import type { Clock } from '../core/clock.ts'
import { asTunnelError, TunnelError } from '../core/errors.ts'
import type { ErrorCode } from '../core/errors.ts'
import { decodeFrame, decodeNotice, encodeFrame, FRAME } from '../core/frame.ts'
import { formatKey } from '../core/key.ts'
import type { Conn } from '../core/socket.ts'
import { hostOf } from './join.ts'
import type { Joining } from './join.ts'
import { connectClearOut, connectTlsOut } from './outward.ts'
import type { World } from './world.ts'

/** One exchange, from the connection to its end. */
const EXCHANGE_MS_MAX = 15_000
const ANSWER_BYTES_MAX = 4_194_304
/** Pages of one list. */
const PAGES_MAX = 500
const FORM_TYPE = 'application/x-www-form-urlencoded'

export interface Answer {
  status: number
  /** By name in lower case. */
  fields: ReadonlyMap<string, string>
  body: Uint8Array
}

/** A request's body. */
interface Content {
  type: string
  bytes: Uint8Array
}

export type Method = 'GET' | 'POST' | 'DELETE'

export class RelayApi {
  readonly #world: World
  readonly #joining: Joining
  readonly #secret: string | undefined
  #proof: Promise<(der: Uint8Array) => void> | undefined

  /** `secret` is what the relay's API is asked with; without it only what is public can be. */
  constructor(world: World, joining: Joining, secret?: string) {
    this.#world = world
    this.#joining = joining
    this.#secret = secret
  }

  /** Asks `/api/v1/…`. Throws the relay's own error; `undefined` where it answers nothing. */
  async call(method: Method, path: string, body?: unknown): Promise<unknown> {
    if (this.#secret === undefined) {
      throw new TunnelError('relay/credential', 'Cannot ask the relay: no API key is set', {
        hint:
          'Log in: sotto login RELAY. An operator: sotto login RELAY --prompt-key, with the admin key.',
      })
    }
    const content = body === undefined
      ? undefined
      : { type: 'application/json', bytes: utf8(JSON.stringify(body)) }
    const answer = await this.#exchange(method, `/api/v1${path}`, { content })
    return readAnswer(answer)
  }

  /** All items of a list, page by page. */
  async list(path: string, query: Record<string, string> = {}): Promise<Record<string, unknown>[]> {
    const items: Record<string, unknown>[] = []
    let after: string | undefined
    for (let page = 0; page < PAGES_MAX; page++) {
      const asked = new URLSearchParams({ ...query, ...(after === undefined ? {} : { after }) })
      const words = asked.toString()
      const answer = await this.call('GET', words === '' ? path : `${path}?${words}`) as {
        items?: Record<string, unknown>[]
        next?: string
      }
      items.push(...(answer?.items ?? []))
      after = answer?.next
      if (after === undefined) break
    }
    return items
  }

  /**
   * Sends a form as OAuth has it, to a relay that has proven its identity first. A JSON answer of
   * whatever status is the answer; throws `relay/…` on anything else, and what proving throws.
   */
  async form(
    path: string,
    fields: Readonly<Record<string, string>>,
  ): Promise<{ status: number; value: Record<string, unknown> }> {
    const body = utf8(new URLSearchParams(fields).toString())
    const content = { type: FORM_TYPE, bytes: body }
    const answer = await this.#exchange('POST', path, { content, proven: true })
    let value: unknown
    try {
      value = JSON.parse(text(answer.body))
    } catch {
      value = undefined
    }
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
      return { status: answer.status, value: value as Record<string, unknown> }
    }
    throw new TunnelError(
      'relay/answer',
      `Cannot read the answer of ${this.#joining.relay.host}: found status ${answer.status} and no JSON object`,
      { hint: 'The relay may be too old to let machines log in: have it updated.' },
    )
  }

  /** The relay proves its identity, once, and to the pin of the joining. */
  async prove(): Promise<void> {
    await (this.#proof ??= this.#prove())
  }

  /** The passport that an identity published; undefined: none. It is signed, so no proof is needed. */
  async passport(key: string): Promise<Uint8Array | undefined> {
    const answer = await this.#exchange('GET', `/v1/passports/${key}`)
    if (answer.status === 404) return undefined
    if (answer.status !== 200) readAnswer(answer)
    return answer.body
  }

  /** A connection on which the relay has shown by its identity who it is; nothing is sent yet. */
  async openProven(): Promise<Conn> {
    return await this.#connect(true)
  }

  async #exchange(
    method: Method,
    path: string,
    { content, proven }: { content?: Content | undefined; proven?: boolean } = {},
  ): Promise<Answer> {
    const { relay } = this.#joining
    const lines = [
      `${method} ${path} HTTP/1.1`,
      `Host: ${relay.host}`,
      'Accept: application/json',
      'Connection: close',
      ...(this.#secret === undefined ? [] : [`Authorization: Bearer ${this.#secret}`]),
      ...(content === undefined
        ? []
        : [`Content-Type: ${content.type}`, `Content-Length: ${content.bytes.length}`]),
    ]
    const conn = await this.#connect(proven)
    const request = concat(utf8(`${lines.join('\r\n')}\r\n\r\n`), content?.bytes ?? EMPTY)
    const { clock } = this.#world
    const { received, error } = await exchangeOnce(conn, request, {
      clock,
      ms: EXCHANGE_MS_MAX,
      bytesMax: ANSWER_BYTES_MAX,
    })
    if (error && received.length === 0) {
      throw new TunnelError('relay/unreachable', `Cannot ask ${relay.host}: ${error.message}`)
    }
    return parseResponse(received, relay.host)
  }

  async #connect(proven = this.#secret !== undefined): Promise<Conn> {
    const { relay } = this.#joining
    const host = hostOf(relay)
    const secure = relay.protocol === 'https:'
    const target = { host, port: Number(relay.port) || (secure ? 443 : 80) }
    if (!secure) return await connectClearOut(this.#world, target)
    const verify = proven ? await (this.#proof ??= this.#prove()) : (): void => {}
    return await connectTlsOut(this.#world, target, {
      servername: host,
      alpn: ['http/1.1'],
      verify,
    })
  }

  /** Has the relay sign a challenge, checks it as for a link, and sends nothing of ours. */
  #prove(): Promise<(der: Uint8Array) => void> {
    const { identity, relay, open, pin, group16, version } = this.#joining
    const { crypto, clock } = this.#world
    const origin = relay.origin.replace(/^http/, 'ws')
    return open(`${origin}/v1/link/${formatKey(identity.public)}`).then((opened) =>
      new Promise((resolve, reject) => {
        const { socket, certificate, trusted } = opened
        const admission = new AgentAdmission({
          crypto,
          identity,
          target: identity.public,
          role: 'home',
          dialledName: hostOf(relay),
          certificate,
          certificateTrusted: trusted,
          pin,
          credential: { kind: 'none' },
          group16,
          version,
        })
        const fail = (error: unknown): void => {
          late.cancel()
          socket.terminate()
          reject(asTunnelError(error, 'relay/proof'))
        }
        const late = clock.after(
          EXCHANGE_MS_MAX,
          () => fail(new TunnelError('relay/proof', 'Cannot ask the relay: it proves no identity')),
        )
        socket.handle({
          message(message) {
            try {
              const frame = decodeFrame(message)
              if (frame.type === FRAME.notice) {
                const { message: words } = decodeNotice(frame.payload)
                return fail(new TunnelError('relay/notice', words))
              }
              admission.answer(frame.payload)
              late.cancel()
              socket.close(1000, 'done')
              resolve((der) => {
                if (certificate && equal(crypto.sha256(der), certificate)) return
                throw new TunnelError(
                  'relay/certificate',
                  'Cannot ask the relay: found another certificate than the one it vouched for',
                  { hint: 'Something between here and the relay is ending TLS.' },
                )
              })
            } catch (error) {
              fail(error)
            }
          },
          closed: (code) => fail(new TunnelError('relay/proof', `The relay closed with ${code}`)),
        })
        socket.send(encodeFrame('hello', 0, admission.hello()))
      })
    )
  }
}

/** The JSON of a good answer; throws what the relay says of a bad one. */
function readAnswer({ status, body }: Answer): unknown {
  let value: unknown
  try {
    value = body.length === 0 ? undefined : JSON.parse(text(body))
  } catch {
    value = undefined
  }
  if (status >= 200 && status < 300) return value
  const { code, message, hint } = (value as { error?: Record<string, unknown> })?.error ?? {}
  throw new TunnelError(
    typeof code === 'string' && code.includes('/') ? code as ErrorCode : 'relay/refused',
    typeof message === 'string' ? message : `Cannot ask the relay: found HTTP status ${status}`,
    typeof hint === 'string' ? { hint } : {},
  )
}

/** Writes the request, and all that comes until the connection ends or a bound is reached. */
export function exchangeOnce(
  conn: Conn,
  request: Uint8Array,
  { clock, ms, bytesMax }: { clock: Pick<Clock, 'after'>; ms: number; bytesMax: number },
): Promise<{ received: Uint8Array; error?: Error }> {
  return new Promise((resolve) => {
    const parts: Uint8Array[] = []
    let length = 0
    const late = clock.after(ms, () => conn.abort())
    conn.handle({
      data(bytes) {
        parts.push(bytes)
        length += bytes.length
        if (length > bytesMax) conn.abort()
      },
      end: () => conn.end(),
      closed(error) {
        late.cancel()
        resolve({ received: concat(...parts), ...(error ? { error } : {}) })
      },
    })
    conn.write(request)
  })
}

/** A whole HTTP/1.1 response of a connection that has ended. Throws `relay/answer`. */
export function parseResponse(bytes: Uint8Array, host: string): Answer {
  const wrong = (found: string): TunnelError =>
    new TunnelError(
      'relay/answer',
      `Cannot read the answer of ${host}: found ${found}, expected HTTP/1.1`,
    )
  const end = findEnd(bytes)
  if (end < 0) throw wrong(bytes.length === 0 ? 'nothing' : 'no whole head')
  const lines = new TextDecoder('latin1').decode(bytes.subarray(0, end)).split('\r\n')
  const status = Number(/^HTTP\/1\.[01] (\d{3})(?: |$)/.exec(lines[0]!)?.[1])
  if (!status) throw wrong('something else')
  const fields = new Map(
    lines.slice(1).map((line) => {
      const colon = line.indexOf(':')
      return [line.slice(0, colon).trim().toLowerCase(), line.slice(colon + 1).trim()] as const
    }),
  )
  const rest = bytes.subarray(end + 4)
  if (/chunked/i.test(fields.get('transfer-encoding') ?? '')) {
    const body = unchunk(rest)
    if (!body) throw wrong('a body that breaks off')
    return { status, fields, body }
  }
  const length = fields.get('content-length')
  if (length === undefined) return { status, fields, body: rest }
  if (rest.length < Number(length)) throw wrong('a body that breaks off')
  return { status, fields, body: rest.subarray(0, Number(length)) }
}

function findEnd(bytes: Uint8Array): number {
  for (let i = 0; i + 3 < bytes.length; i++) {
    if (bytes[i] === 13 && bytes[i + 1] === 10 && bytes[i + 2] === 13 && bytes[i + 3] === 10) {
      return i
    }
  }
  return -1
}

/** RFC 9112 §7.1; undefined when it breaks off. */
function unchunk(bytes: Uint8Array): Uint8Array | undefined {
  const parts: Uint8Array[] = []
  let at = 0
  for (;;) {
    const line = bytes.indexOf(10, at)
    if (line < 0) return undefined
    const size = /^([0-9a-f]{1,7})[ \t]*(?:;.*)?\r$/i.exec(
      new TextDecoder('latin1').decode(bytes.subarray(at, line)),
    )
    if (!size) return undefined
    const length = parseInt(size[1]!, 16)
    if (length === 0) return concat(...parts)
    if (line + 1 + length + 2 > bytes.length) return undefined
    parts.push(bytes.subarray(line + 1, line + 1 + length))
    at = line + 1 + length + 2
  }
}
