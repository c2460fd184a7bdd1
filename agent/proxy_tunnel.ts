/**
 * Asking a proxy for a tunnel, over a connection to it: HTTP CONNECT (RFC 9110 §9.3.6) or SOCKS 5
 * (RFC 1928, with user and password by RFC 1929). Nothing is said to the proxy but where to; every
 * answer is bounded in bytes and the whole in time. In what is carried later the client always speaks
 * first, so bytes behind the answer are refused: nobody honest sent them.
 */
import { parseAddress } from '../core/address.ts'
import { concat, EMPTY, utf8 } from '../core/bytes.ts'
import type { Clock } from '../core/clock.ts'
import { TunnelError } from '../core/errors.ts'
import type { Conn } from '../core/socket.ts'
import { toBase64 } from './base64.ts'
import { describeProxy } from './proxy.ts'
import type { Proxy } from './proxy.ts'

/** Of the answer to CONNECT, blank line included. */
const HEAD_BYTES_MAX = 16_384
/** RFC 1928 §5: one byte of length. */
const NAME_BYTES_MAX = 255

export interface TunnelTarget {
  readonly host: string
  readonly port: number
}

interface Ports {
  readonly clock: Clock
  readonly timeoutMs: number
  readonly version: string
}

/**
 * Leads to `to` when it resolves; `conn` then belongs to the caller alone, held and unread. It is closed
 * when this throws: `proxy/authentication`, `proxy/denied`, `proxy/target`, `proxy/protocol`,
 * `proxy/timeout`.
 */
export async function openTunnel(
  conn: Conn,
  { proxy, to, ports }: { proxy: Proxy; to: TunnelTarget; ports: Ports },
): Promise<void> {
  const reader = new Reader(conn, { proxy, ports })
  try {
    if (proxy.kind === 'http' || proxy.kind === 'https') await connect(reader, { proxy, to, ports })
    else await socks(reader, { proxy, to })
    reader.release()
  } catch (error) {
    reader.stop()
    conn.abort()
    throw error
  }
}

interface Request {
  proxy: Proxy
  to: TunnelTarget
}

async function connect(
  reader: Reader,
  { proxy, to, ports }: Request & { ports: Ports },
): Promise<void> {
  const place = placeOf(to)
  const { login } = proxy
  const lines = [
    `CONNECT ${place} HTTP/1.1`,
    `Host: ${place}`,
    `User-Agent: sotto/${ports.version}`,
    ...(login
      ? [`Proxy-Authorization: Basic ${toBase64(utf8(`${login.user}:${login.password}`))}`]
      : []),
  ]
  reader.write(utf8(`${lines.join('\r\n')}\r\n\r\n`))
  const status = readStatus(await reader.head(), proxy)
  if (status >= 200 && status < 300) return
  throw refusalOf(status, { proxy, to })
}

/** The status of a whole head; RFC 9112 §4. */
function readStatus(head: Uint8Array, proxy: Proxy): number {
  const line = latin1(head.subarray(0, head.indexOf(13)))
  const status = Number(/^HTTP\/1\.[01] (\d{3})(?: |$)/.exec(line)?.[1])
  if (status >= 200) return status
  throw notOne(proxy, status ? `HTTP status ${status}` : 'another protocol')
}

function refusalOf(status: number, { proxy, to }: Request): TunnelError {
  if (status === 407) return unauthenticated(proxy, 'HTTP status 407')
  const found = `found HTTP status ${status}, expected 200`
  if (status === 502 || status === 503 || status === 504) return unreached({ proxy, to }, found)
  return denied({ proxy, to }, found)
}

function unauthenticated(proxy: Proxy, found: string): TunnelError {
  const asked = proxy.login
    ? 'it does not take the user and password that it got'
    : 'it asks for a user and a password, and none is set'
  return new TunnelError(
    'proxy/authentication',
    `Cannot use the proxy ${describeProxy(proxy)}: ${asked} (${found})`,
    {
      hint:
        `Put them into ${proxy.from}, as ${proxy.kind}://USER:PASSWORD@HOST:PORT, each character ` +
        'that is no letter or digit as % and two hexadecimal digits.',
    },
  )
}

function denied({ proxy, to }: Request, found: string): TunnelError {
  return new TunnelError(
    'proxy/denied',
    `Cannot reach ${placeOf(to)}: the proxy ${describeProxy(proxy)} does not allow it (${found})`,
    {
      hint:
        `Many proxies allow port 443 alone. Ask who runs it to allow ${placeOf(to)}, or run the ` +
        'relay at port 443.',
    },
  )
}

function unreached({ proxy, to }: Request, found: string): TunnelError {
  return new TunnelError(
    'proxy/target',
    `Cannot reach ${placeOf(to)}: the proxy ${describeProxy(proxy)} does not get there (${found})`,
    { hint: 'Check the name of the relay and that it runs, as seen from the proxy.' },
  )
}

function notOne(proxy: Proxy, found: string): TunnelError {
  const expected = proxy.kind.startsWith('socks') ? 'SOCKS 5' : 'HTTP'
  return new TunnelError(
    'proxy/protocol',
    `Cannot use the proxy ${describeProxy(proxy)}: found ${found}, expected ${expected}`,
    { hint: `Compare scheme and port in ${proxy.from} with what the proxy's operator says.` },
  )
}

function placeOf({ host, port }: TunnelTarget): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
}

/** RFC 1928 §6. */
const REPLIES: Readonly<Record<number, string>> = {
  1: 'it failed',
  2: 'its rules forbid it',
  3: 'no way to the network',
  4: 'no way to the host, or no such name',
  5: 'nothing listens there',
  6: 'its time to live ran out',
  7: 'it knows no CONNECT',
  8: 'it knows no such kind of address',
}

async function socks(reader: Reader, { proxy, to }: Request): Promise<void> {
  const { login } = proxy
  // No authentication, and with a login also user and password: the proxy chooses.
  reader.write(Uint8Array.from(login ? [5, 2, 0, 2] : [5, 1, 0]))
  const [version, method] = await reader.exactly(2)
  if (version !== 5) throw notOne(proxy, `version ${version} of something`)
  if (method === 2 && login) {
    const [user, password] = [utf8(login.user), utf8(login.password)]
    reader.write(concat(
      Uint8Array.from([1, user.length]),
      user,
      Uint8Array.from([password.length]),
      password,
    ))
    const [version, status] = await reader.exactly(2)
    if (version !== 1) throw notOne(proxy, `version ${version} of RFC 1929`)
    if (status !== 0) throw unauthenticated(proxy, `status ${status}`)
  } else if (method === 0xff) throw unauthenticated(proxy, 'no method of ours')
  else if (method !== 0) throw notOne(proxy, `method ${method}, which was not offered`)
  reader.write(concat(
    Uint8Array.from([5, 1, 0]),
    socksAddress(to.host),
    Uint8Array.from([to.port >> 8, to.port & 255]),
  ))
  const [again, reply, reserved, kind] = await reader.exactly(4)
  if (again !== 5 || reserved !== 0) throw notOne(proxy, 'a reply of another protocol')
  if (reply !== 0) {
    const found = `${REPLIES[reply!] ?? 'a reply unknown to us'}, reply ${reply}`
    throw reply === 2 ? denied({ proxy, to }, found) : unreached({ proxy, to }, found)
  }
  // Where it connected from: of no use, but to be taken off.
  if (kind === 1) await reader.exactly(4 + 2)
  else if (kind === 4) await reader.exactly(16 + 2)
  else if (kind === 3) await reader.exactly((await reader.exactly(1))[0]! + 2)
  else throw notOne(proxy, `an address of kind ${kind}`)
}

function socksAddress(host: string): Uint8Array {
  const address = parseAddress(host)
  if (address) return concat(Uint8Array.from([address.length === 4 ? 1 : 4]), address)
  const name = utf8(host)
  if (name.length > NAME_BYTES_MAX) {
    throw new TunnelError('proxy/target', 'Cannot reach the relay: its name is too long for SOCKS')
  }
  return concat(Uint8Array.from([3, name.length]), name)
}

/** Reads a connection by pieces of known ends until the tunnel stands. */
class Reader {
  readonly #conn: Conn
  readonly #proxy: Proxy
  readonly #cancel: () => void
  #held: Uint8Array = EMPTY
  #problem: TunnelError | undefined
  #look: (() => void) | undefined

  constructor(conn: Conn, { proxy, ports }: { proxy: Proxy; ports: Ports }) {
    this.#conn = conn
    this.#proxy = proxy
    const late = ports.clock.after(ports.timeoutMs, () =>
      this.#fail(
        new TunnelError(
          'proxy/timeout',
          `Cannot use the proxy ${describeProxy(proxy)}: no whole answer within ` +
            `${Math.ceil(ports.timeoutMs / 1000)} s`,
          { hint: `Check that ${proxy.from} names a proxy, and that it can reach the relay.` },
        ),
      ))
    this.#cancel = () => late.cancel()
    const ended = (): void => this.#fail(notOne(proxy, 'the end of the connection'))
    conn.handle({
      data: (bytes) => {
        if (this.#problem) return
        if (this.#held.length + bytes.length > HEAD_BYTES_MAX) {
          return this.#fail(notOne(proxy, `more than ${HEAD_BYTES_MAX} bytes of an answer`))
        }
        this.#held = concat(this.#held, bytes)
        this.#look?.()
      },
      end: ended,
      closed: ended,
    })
  }

  write(bytes: Uint8Array): void {
    this.#conn.write(bytes)
  }

  async exactly(count: number): Promise<Uint8Array> {
    await this.#until(() => this.#held.length >= count)
    return this.#take(count)
  }

  /** Through the blank line. */
  async head(): Promise<Uint8Array> {
    let length = 0
    await this.#until(() => {
      // What cannot become an answer need not be waited for.
      const start = latin1(this.#held.subarray(0, 5))
      if (!'HTTP/'.startsWith(start)) throw notOne(this.#proxy, 'another protocol')
      length = headLength(this.#held)
      return length > 0
    })
    return this.#take(length)
  }

  /** Gives the connection on, unread. */
  release(): void {
    if (this.#held.length > 0) {
      throw notOne(this.#proxy, `${this.#held.length} bytes that nobody asked for`)
    }
    this.stop()
    this.#conn.hold()
  }

  stop(): void {
    this.#cancel()
    this.#look = undefined
  }

  #take(count: number): Uint8Array {
    const taken = this.#held.slice(0, count)
    this.#held = this.#held.slice(count)
    return taken
  }

  #until(ready: () => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#look = () => {
        try {
          if (!ready()) {
            if (this.#problem) throw this.#problem
            return
          }
          this.#look = undefined
          resolve()
        } catch (error) {
          this.#look = undefined
          reject(error)
        }
      }
      this.#look()
    })
  }

  #fail(problem: TunnelError): void {
    this.#problem ??= problem
    this.#look?.()
  }
}

/** With its blank line; 0 when that has not come. */
function headLength(bytes: Uint8Array): number {
  for (let at = bytes.indexOf(13); at >= 0; at = bytes.indexOf(13, at + 1)) {
    if (bytes[at + 1] === 10 && bytes[at + 2] === 13 && bytes[at + 3] === 10) return at + 4
  }
  return 0
}

/** What a stranger sent is any bytes. */
function latin1(bytes: Uint8Array): string {
  return new TextDecoder('latin1').decode(bytes)
}
