/**
 * An HTTP/1.1 proxy's request as a client sends it (RFC 9110 §9.3.6 CONNECT; RFC 9112 §3.2.2 absolute form for plain
 * HTTP): read whole within a bound, credentials in `Proxy-Authorization: Basic` (RFC 7617). A plain request is
 * passed on with its target in origin form, without what was meant for the proxy, and is the only one of
 * its connection, so that none that follows can go to the host of the one before.
 */
import { concat, EMPTY, utf8 } from '../../core/bytes.ts'
import type { Crypto } from '../../core/crypto.ts'
import type { Place } from './network.ts'
import { hostName, isLogin } from './socks.ts'
import type { Login } from './socks.ts'

const HEAD_BYTES_MAX = 16_384

export interface HttpStep {
  /** To send and close. */
  readonly refusal?: Uint8Array
  readonly request?: HttpRequest
}

export interface HttpRequest {
  readonly to: Place
  /** What is sent to the client when the connection stands: nothing for a plain request. */
  readonly answer: Uint8Array
  /** What goes to the far side first. */
  readonly first: Uint8Array
}

export class HttpConnect {
  readonly #login: Login | undefined
  readonly #crypto: Pick<Crypto, 'sha256'>
  #bytes: Uint8Array = EMPTY
  #done = false

  constructor(crypto: Pick<Crypto, 'sha256'>, login?: Login) {
    this.#crypto = crypto
    this.#login = login
  }

  /** Neither a refusal nor a request: more is needed. */
  push(chunk: Uint8Array): HttpStep {
    if (this.#done) return {}
    const from = Math.max(0, this.#bytes.length - 3)
    this.#bytes = this.#bytes.length === 0 ? chunk : concat(this.#bytes, chunk)
    const end = headEnd(this.#bytes, from)
    if (end > HEAD_BYTES_MAX || (end < 0 && this.#bytes.length > HEAD_BYTES_MAX)) {
      return this.#over(431)
    }
    if (end < 0) return {}
    this.#done = true
    return this.#read(latin(this.#bytes.subarray(0, end - 4)), this.#bytes.subarray(end))
  }

  #over(status: HttpStatus): HttpStep {
    this.#done = true
    return { refusal: httpRefusal(status) }
  }

  #read(head: string, rest: Uint8Array): HttpStep {
    const [line = '', ...fields] = head.split('\r\n')
    const [, method, target, minor] = /^([A-Z]{1,20}) (\S{1,8192}) HTTP\/1\.([01])$/.exec(line) ??
      []
    if (!method || !target || head.includes('\0')) {
      return this.#over(400)
    }
    // A bare line feed or a folded line is read in two ways by two programs: neither matches.
    const parts = fields.map((field) =>
      /^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*$/.exec(field)
    )
    if (parts.includes(null)) return this.#over(400)
    const given = parts.find((one) => one![1]!.toLowerCase() === 'proxy-authorization')?.[2]
    if (this.#login && !this.#admits(given ?? '')) return this.#over(407)
    return method === 'CONNECT'
      ? this.#connect(target, rest)
      : this.#plain({ method, target, minor: minor! }, parts as RegExpExecArray[], rest)
  }

  #admits(given: string): boolean {
    const [, encoded] = /^basic +([A-Za-z0-9+/]+=*)$/i.exec(given) ?? []
    let words = ''
    try {
      words = atob(encoded ?? '')
    } catch {
      // It is compared all the same.
    }
    const bytes = Uint8Array.from(words, (letter) => letter.charCodeAt(0))
    const colon = bytes.indexOf(58)
    return isLogin(
      this.#crypto,
      this.#login!,
      bytes.subarray(0, Math.max(0, colon)),
      bytes.subarray(colon + 1),
    )
  }

  #connect(target: string, rest: Uint8Array): HttpStep {
    const to = readAuthority(target)
    if (!to) return this.#over(400)
    return {
      request: { to, answer: utf8('HTTP/1.1 200 Connection established\r\n\r\n'), first: rest },
    }
  }

  #plain(
    line: { method: string; target: string; minor: string },
    fields: RegExpExecArray[],
    rest: Uint8Array,
  ): HttpStep {
    const [, authority = '', path = ''] = /^http:\/\/([^/?#]+)([^#]*)$/i.exec(line.target) ?? []
    const to = readAuthority(authority, 80)
    if (!to) return this.#over(/^\//.test(line.target) ? 421 : 400)
    const kept = fields.filter(([, name]) =>
      !/^(proxy-.*|connection|keep-alive|host)$/i.test(name!)
    ).map(([, name, value]) => `${name}: ${value}\r\n`)
    const head =
      `${line.method} ${path.startsWith('/') ? path : `/${path}`} HTTP/1.${line.minor}\r\n` +
      `Host: ${authority}\r\n${kept.join('')}Connection: close\r\n\r\n`
    return {
      request: {
        to,
        answer: EMPTY,
        first: concat(Uint8Array.from(head, (letter) => letter.charCodeAt(0)), rest),
      },
    }
  }
}

const REASONS = {
  400: 'Bad Request',
  403: 'Forbidden',
  407: 'Proxy Authentication Required',
  421: 'Misdirected Request',
  431: 'Request Header Fields Too Large',
  502: 'Bad Gateway',
  503: 'Service Unavailable',
  504: 'Gateway Timeout',
} as const

export type HttpStatus = keyof typeof REASONS

export function httpRefusal(status: HttpStatus, words: string = REASONS[status]): Uint8Array {
  const body = utf8(`${words}\n`)
  const asks = status === 407 ? 'Proxy-Authenticate: Basic realm="sotto", charset="UTF-8"\r\n' : ''
  const head =
    `HTTP/1.1 ${status} ${REASONS[status]}\r\n${asks}Content-Type: text/plain; charset=utf-8\r\n` +
    `Content-Length: ${body.length}\r\nConnection: close\r\n\r\n`
  return concat(utf8(head), body)
}

/** `db.internal:5432`, `[fd00::1]:443`; without a port only where there is one to be meant. */
function readAuthority(words: string, portMeant?: number): Place | undefined {
  const [, six, name, digits] = /^(?:\[([0-9a-fA-F:.]{2,45})\]|([^:[\]@/]{1,255}))(?::(\d{1,5}))?$/
    .exec(words) ?? []
  const port = digits === undefined ? portMeant : Number(digits)
  const host = hostName(utf8(six ?? name ?? ''))
  if (host === undefined || port === undefined || port < 1 || port > 65_535) return undefined
  return { host, port }
}

/** Where what follows the empty line begins; -1: it has not come. */
function headEnd(bytes: Uint8Array, from: number): number {
  for (let i = from; i + 3 < bytes.length; i++) {
    if (bytes[i] === 13 && bytes[i + 1] === 10 && bytes[i + 2] === 13 && bytes[i + 3] === 10) {
      return i + 4
    }
  }
  return -1
}

/** One letter a byte, as fields pass through (RFC 9110 §5.5). */
function latin(bytes: Uint8Array): string {
  let words = ''
  for (const byte of bytes) words += String.fromCharCode(byte)
  return words
}
