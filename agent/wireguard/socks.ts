/**
 * SOCKS5 as a server speaks it (RFC 1928; user and password of RFC 1929): bytes in, bytes out, in any pieces.
 *
 *   greeting   05 · count 1 · methods           →  05 · method, or 05 FF
 *   login      01 · length 1 · user · length 1 · password   →  01 · 00 or 01
 *   request    05 · command 1 · 00 · address · port 2       →  05 · reply 1 · 00 · address · port 2
 *   address    01 IPv4 4 | 03 length 1, name | 04 IPv6 16
 *   datagram   00 00 · fragment 1 · address · port 2 · bytes
 *
 * Big endian. What clients do was watched on the wire: all take an IPv4 address of zeros in the reply to
 * CONNECT, not all take a name there; some offer GSSAPI, which is never chosen.
 */
import { formatAddress, parseAddress } from '../../core/address.ts'
import { concat, EMPTY, equal, utf8 } from '../../core/bytes.ts'
import type { Crypto } from '../../core/crypto.ts'
import type { FarEnd, Place } from './network.ts'

// Specification constants.
const VERSION = 5
const LOGIN_VERSION = 1
const METHOD = { none: 0, password: 2, refused: 0xff } as const
const COMMAND = { connect: 1, associate: 3 } as const
const KIND = { four: 1, name: 3, six: 4 } as const

/** Replies of RFC 1928 §6. */
export const REPLY = {
  succeeded: 0,
  failed: 1,
  notAllowed: 2,
  networkUnreachable: 3,
  hostUnreachable: 4,
  refused: 5,
  timedOut: 6,
  unknownCommand: 7,
  unknownAddress: 8,
} as const

export interface Login {
  readonly user: string
  readonly password: string
}

export interface SocksRequest {
  readonly command: 'connect' | 'associate'
  /** Where to; for an association where its datagrams will come from, zeros when the client does not know. */
  readonly to: Place
}

/** What to answer, and what follows from it. */
export interface SocksStep {
  /** To send, in this order, before anything else; may be empty. */
  readonly answer: Uint8Array
  /** The whole request, once. `rest` came after it. */
  readonly request?: SocksRequest
  readonly rest?: Uint8Array
  /** It cannot go on: send `answer` and close. The word says why. */
  readonly over?: 'version' | 'method' | 'login' | 'command' | 'address' | 'malformed'
}

/** One client's way to its request. */
export class SocksServer {
  readonly #login: Login | undefined
  readonly #crypto: Pick<Crypto, 'sha256'>
  #state: 'greeting' | 'login' | 'request' | 'done' = 'greeting'
  /** At most one message of the handshake (513 bytes), and what was read with it. */
  #bytes: Uint8Array = EMPTY

  constructor(crypto: Pick<Crypto, 'sha256'>, login?: Login) {
    this.#crypto = crypto
    this.#login = login
  }

  push(chunk: Uint8Array): SocksStep {
    this.#bytes = this.#bytes.length === 0 ? chunk : concat(this.#bytes, chunk)
    const answers: Uint8Array[] = []
    for (;;) {
      const step = this.#state === 'greeting'
        ? this.#greeting()
        : this.#state === 'login'
        ? this.#checkLogin()
        : this.#state === 'request'
        ? this.#request()
        : undefined
      if (!step) return { answer: concat(...answers) }
      answers.push(step.answer)
      if (step.over || step.request) {
        this.#state = 'done'
        return { ...step, answer: concat(...answers) }
      }
    }
  }

  #greeting(): SocksStep | undefined {
    const bytes = this.#bytes
    if (bytes.length > 0 && bytes[0] !== VERSION) return { answer: EMPTY, over: 'version' }
    if (bytes.length < 2 || bytes.length < 2 + bytes[1]!) return undefined
    const methods = bytes.subarray(2, 2 + bytes[1]!)
    const wanted = this.#login ? METHOD.password : METHOD.none
    if (!methods.includes(wanted)) {
      return { answer: Uint8Array.of(VERSION, METHOD.refused), over: 'method' }
    }
    this.#bytes = bytes.subarray(2 + methods.length)
    this.#state = this.#login ? 'login' : 'request'
    return { answer: Uint8Array.of(VERSION, wanted) }
  }

  #checkLogin(): SocksStep | undefined {
    const bytes = this.#bytes
    if (bytes.length > 0 && bytes[0] !== LOGIN_VERSION) return { answer: EMPTY, over: 'malformed' }
    const userEnd = 2 + (bytes[1] ?? 0)
    const end = userEnd + 1 + (bytes[userEnd] ?? 0)
    if (bytes.length < 2 || bytes.length <= userEnd || bytes.length < end) return undefined
    const good = isLogin(
      this.#crypto,
      this.#login!,
      bytes.subarray(2, userEnd),
      bytes.subarray(userEnd + 1, end),
    )
    if (!good) return { answer: Uint8Array.of(LOGIN_VERSION, 1), over: 'login' }
    this.#bytes = bytes.subarray(end)
    this.#state = 'request'
    return { answer: Uint8Array.of(LOGIN_VERSION, 0) }
  }

  #request(): SocksStep | undefined {
    const bytes = this.#bytes
    if (bytes.length > 0 && bytes[0] !== VERSION) return refused(REPLY.failed, 'malformed')
    if (bytes.length < 4) return undefined
    if (bytes[2] !== 0) return refused(REPLY.failed, 'malformed')
    const found = readAddress(bytes, 3)
    if (found === 'more') return undefined
    if (found === 'unknown') return refused(REPLY.unknownAddress, 'address')
    if (found === 'malformed') return refused(REPLY.hostUnreachable, 'malformed')
    const command = bytes[1] === COMMAND.connect
      ? 'connect'
      : bytes[1] === COMMAND.associate
      ? 'associate'
      : undefined
    if (!command) return refused(REPLY.unknownCommand, 'command')
    if (command === 'connect' && found.to.port === 0) return refused(REPLY.failed, 'malformed')
    return { answer: EMPTY, request: { command, to: found.to }, rest: bytes.subarray(found.end) }
  }
}

/**
 * Compares digests, in constant time, so that neither length nor content of the right ones shows. The
 * lengths go into the digest: two words are not one.
 */
export function isLogin(
  crypto: Pick<Crypto, 'sha256'>,
  login: Login,
  user: Uint8Array,
  password: Uint8Array,
): boolean {
  const digest = (a: Uint8Array, b: Uint8Array): Uint8Array =>
    crypto.sha256(Uint8Array.of(a.length >> 8, a.length & 255), a, b)
  return equal(digest(user, password), digest(utf8(login.user), utf8(login.password)))
}

/** The answer to a request; zeros where an address would say nothing. */
export function socksReply(
  reply: number,
  bound: FarEnd = { address: '0.0.0.0', port: 0 },
): Uint8Array {
  return concat(Uint8Array.of(VERSION, reply, 0), encodeAddress(bound))
}

export interface SocksDatagram {
  readonly to: Place
  /** A view into what was read. */
  readonly bytes: Uint8Array
}

/** Undefined for what is none, and for a part of a datagram: those are not put together (RFC 1928 §7). */
export function decodeSocksDatagram(bytes: Uint8Array): SocksDatagram | undefined {
  if (bytes.length < 4 || bytes[0] !== 0 || bytes[1] !== 0 || bytes[2] !== 0) return undefined
  const found = readAddress(bytes, 3)
  if (typeof found === 'string' || found.to.port === 0) return undefined
  return { to: found.to, bytes: bytes.subarray(found.end) }
}

export function encodeSocksDatagram(from: FarEnd, bytes: Uint8Array): Uint8Array {
  return concat(new Uint8Array(3), encodeAddress(from), bytes)
}

function refused(reply: number, over: NonNullable<SocksStep['over']>): SocksStep {
  return { answer: socksReply(reply), over }
}

/** Kind, address and port. */
function encodeAddress({ address, port }: FarEnd): Uint8Array {
  const bytes = parseAddress(address)!
  return concat(
    Uint8Array.of(bytes.length === 4 ? KIND.four : KIND.six),
    bytes,
    Uint8Array.of(port >> 8, port & 255),
  )
}

function readAddress(
  bytes: Uint8Array,
  at: number,
): { to: Place; end: number } | 'more' | 'unknown' | 'malformed' {
  const kind = bytes[at]
  const isName = kind === KIND.name
  if (!isName && kind !== KIND.four && kind !== KIND.six) return 'unknown'
  if (isName && bytes.length <= at + 1) return 'more'
  const length = isName ? bytes[at + 1]! : kind === KIND.four ? 4 : 16
  const start = at + (isName ? 2 : 1)
  const end = start + length + 2
  if (bytes.length < end) return 'more'
  const host = isName
    ? hostName(bytes.subarray(start, end - 2))
    : formatAddress(bytes.subarray(start, end - 2))
  if (host === undefined) return 'malformed'
  return { to: { host, port: bytes[end - 2]! * 256 + bytes[end - 1]! }, end }
}

/** A name as resolvers take it; an address that came as a name is the address. */
export function hostName(bytes: Uint8Array): string | undefined {
  let name = ''
  for (const byte of bytes) name += String.fromCharCode(byte)
  const address = parseAddress(name)
  if (address && !name.includes('%')) return formatAddress(address)
  const bare = name.replace(/\.$/, '')
  if (bare.length > 253) return undefined
  // Nothing but digits last would be an address to some resolvers: 127.1 is 127.0.0.1 to them.
  return /^([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*(?!\d+$)(?!0x[0-9a-f]*$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$/i
      .test(bare)
    ? bare.toLowerCase()
    : undefined
}
