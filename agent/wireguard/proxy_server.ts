/**
 * The local door into a private network: a TCP port that speaks SOCKS5, HTTP proxy, or both, told apart
 * by the first byte. Names are handed on unresolved, so that no question leaves this machine. Whoever has
 * not said within the deadline where to, whole, is turned away, however slowly it comes.
 */
import { EMPTY } from '../../core/bytes.ts'
import type { Clock, Timer } from '../../core/clock.ts'
import type { Crypto } from '../../core/crypto.ts'
import { asTunnelError, TunnelError } from '../../core/errors.ts'
import { splice } from '../../core/socket.ts'
import type { Conn, ConnHandler, Listener } from '../../core/socket.ts'
import type { Net } from '../world.ts'
import { openAssociation } from './association.ts'
import type { Association } from './association.ts'
import { HttpConnect, httpRefusal } from './http_connect.ts'
import type { HttpStatus } from './http_connect.ts'
import type { BindUdp, Network, Place } from './network.ts'
import { REPLY, socksReply, SocksServer } from './socks.ts'
import type { Login, SocksRequest } from './socks.ts'

/** From the connection to the whole request. */
const HANDSHAKE_MS_MAX = 10_000
/** Longer than a TCP handshake over a bad path, shorter than what browsers wait. */
const CONNECT_MS_MAX = 30_000
const CONNECTIONS_MAX = 2_048
/** A client that was refused reads the answer and closes; one that does not is closed. */
const REFUSED_MS_MAX = 2_000
const SOCKS_FIRST = 5

export interface ProxyPorts {
  readonly net: Pick<Net, 'listen'>
  readonly bindUdp: BindUdp
  readonly clock: Clock
  readonly crypto: Pick<Crypto, 'sha256'>
  readonly network: Network
}

export interface ProxyOptions {
  /** An address of this machine. */
  readonly host: string
  /** 0 takes a free one. */
  readonly port: number
  readonly socks?: boolean
  readonly http?: boolean
  readonly login?: Login
  readonly handshakeMs?: number
  readonly connectMs?: number
  readonly connectionsMax?: number
  /** Each thing that was asked for, once it is settled. */
  readonly told?: (event: ProxyEvent) => void
}

export interface ProxyEvent {
  readonly kind: 'connect' | 'associate' | 'refused'
  readonly from: string
  readonly to?: Place
  /** Why not. */
  readonly problem?: string
}

export interface ProxyCounts {
  /** Open now, associations too. */
  connections: number
  associations: number
  /** Since the start. */
  served: number
  refused: number
}

export class ProxyServer {
  readonly #ports: ProxyPorts
  readonly #options: ProxyOptions
  readonly #open = new Set<Conn>()
  readonly #associations = new Set<Association>()
  readonly #counts = { served: 0, refused: 0 }
  #listener!: Listener
  #closed = false

  private constructor(ports: ProxyPorts, options: ProxyOptions) {
    this.#ports = ports
    this.#options = options
  }

  /** Throws `net/in-use`, `net/denied`. */
  static async open(ports: ProxyPorts, options: ProxyOptions): Promise<ProxyServer> {
    const server = new ProxyServer(ports, options)
    const { host, port } = options
    server.#listener = await ports.net.listen({ host, port }, (conn) => server.#accept(conn))
    return server
  }

  get host(): string {
    return this.#options.host
  }

  get port(): number {
    return this.#listener.port
  }

  get counts(): ProxyCounts {
    return {
      connections: this.#open.size,
      associations: this.#associations.size,
      ...this.#counts,
    }
  }

  async close(): Promise<void> {
    this.#closed = true
    await this.#listener.close()
    for (const association of this.#associations) association.close()
    for (const conn of this.#open) conn.abort()
  }

  #accept(conn: Conn): void {
    if (this.#closed || this.#open.size >= (this.#options.connectionsMax ?? CONNECTIONS_MAX)) {
      this.#counts.refused++
      conn.abort()
      return
    }
    this.#open.add(conn)
    const visit = new Visit(conn, this.#ports, this.#options, {
      refused: (problem, to) => {
        this.#counts.refused++
        this.#tell(conn, 'refused', to, problem)
      },
      served: (kind, to) => {
        this.#counts.served++
        this.#tell(conn, kind, to)
      },
      associated: (association) => {
        this.#associations.add(association)
        return () => void this.#associations.delete(association)
      },
      over: () => void this.#open.delete(conn),
    })
    visit.start()
  }

  #tell(conn: Conn, kind: ProxyEvent['kind'], to?: Place, problem?: string): void {
    this.#options.told?.({
      kind,
      from: conn.remoteAddress,
      ...(to ? { to } : {}),
      ...(problem === undefined ? {} : { problem }),
    })
  }
}

interface VisitSink {
  refused(problem: string, to?: Place): void
  served(kind: 'connect' | 'associate', to: Place): void
  associated(association: Association): () => void
  over(): void
}

/** One connection, from its first byte to the splice. */
class Visit implements ConnHandler {
  readonly #conn: Conn
  readonly #ports: ProxyPorts
  readonly #options: ProxyOptions
  readonly #sink: VisitSink
  #deadline: Timer | undefined
  #socks: SocksServer | undefined
  #http: HttpConnect | undefined
  /** Nothing more is read as a handshake. */
  #settled = false

  constructor(conn: Conn, ports: ProxyPorts, options: ProxyOptions, sink: VisitSink) {
    this.#conn = conn
    this.#ports = ports
    this.#options = options
    this.#sink = sink
  }

  start(): void {
    const ms = this.#options.handshakeMs ?? HANDSHAKE_MS_MAX
    this.#deadline = this.#ports.clock.after(ms, () => {
      this.#sink.refused('no whole request in time')
      this.#conn.abort()
    })
    this.#conn.handle(this)
  }

  data(bytes: Uint8Array): void {
    // After an answer of refusal, whatever comes is dropped.
    if (this.#settled) return
    const { login, socks = true, http = false } = this.#options
    if (!this.#socks && !this.#http) {
      const speaksSocks = bytes[0] === SOCKS_FIRST
      const speaksHttp = /^[A-Za-z]$/.test(String.fromCharCode(bytes[0]!))
      if (speaksSocks && socks) this.#socks = new SocksServer(this.#ports.crypto, login)
      else if (speaksHttp && http) this.#http = new HttpConnect(this.#ports.crypto, login)
      else {
        // A browser that was given the wrong kind of proxy shows this.
        const words = 'This is a SOCKS5 proxy, not one for HTTP'
        return this.#refuse(speaksHttp ? httpRefusal(400, words) : EMPTY, 'another protocol')
      }
    }
    if (this.#socks) this.#readSocks(this.#socks, bytes)
    else this.#readHttp(this.#http!, bytes)
  }

  end(): void {
    if (this.#settled) return this.#conn.end()
    this.#settled = true
    this.#sink.refused('closed before its request')
    this.#conn.abort()
  }

  closed(): void {
    this.#deadline?.cancel()
    this.#sink.over()
  }

  #readSocks(socks: SocksServer, bytes: Uint8Array): void {
    const { answer, request, rest, over } = socks.push(bytes)
    if (over) return this.#refuse(answer, over)
    if (answer.length > 0) this.#conn.write(answer)
    if (request?.command === 'connect') {
      void this.#connect(request.to, { first: rest!, answer: socksReply(REPLY.succeeded) })
    } else if (request) void this.#associate(request)
  }

  #readHttp(http: HttpConnect, bytes: Uint8Array): void {
    const { refusal, request } = http.push(bytes)
    if (refusal) this.#refuse(refusal, 'refused as HTTP')
    else if (request) void this.#connect(request.to, request)
  }

  #refuse(answer: Uint8Array, problem: string, to?: Place): void {
    this.#settled = true
    this.#sink.refused(problem, to)
    this.#deadline?.cancel()
    this.#deadline = this.#ports.clock.after(REFUSED_MS_MAX, () => this.#conn.abort())
    if (answer.length > 0) this.#conn.write(answer)
    this.#conn.end()
  }

  async #connect(
    to: Place,
    { first, answer }: { first: Uint8Array; answer: Uint8Array },
  ): Promise<void> {
    this.#settled = true
    this.#deadline?.cancel()
    // What the client sends meanwhile waits in its connection.
    this.#conn.hold()
    let far: Conn
    try {
      const timeoutMs = this.#options.connectMs ?? CONNECT_MS_MAX
      far = await this.#ports.network.connect({ ...to, timeoutMs })
    } catch (thrown) {
      const error = asTunnelError(thrown, 'net/failed')
      this.#conn.handle(this)
      const refusal = this.#socks
        ? socksReply(replyFor(error))
        : httpRefusal(statusFor(error), error.message)
      return this.#refuse(refusal, error.message, to)
    }
    this.#sink.served('connect', to)
    if (answer.length > 0) this.#conn.write(answer)
    if (first.length > 0) far.write(first)
    splice(this.#conn, far, () => this.#sink.over())
  }

  async #associate(request: SocksRequest): Promise<void> {
    this.#settled = true
    this.#deadline?.cancel()
    this.#conn.hold()
    let association: Association
    try {
      association = await openAssociation(this.#ports, {
        conn: this.#conn,
        host: this.#options.host,
        client: request.to,
      })
    } catch (thrown) {
      const error = asTunnelError(thrown, 'net/failed')
      this.#conn.handle(this)
      return this.#refuse(socksReply(replyFor(error)), error.message)
    }
    const forget = this.#sink.associated(association)
    this.#sink.served('associate', request.to)
    this.#conn.handle({
      // There is nothing to say any more.
      data() {},
      end: () => this.#conn.end(),
      closed: () => {
        association.close()
        forget()
        this.#sink.over()
      },
    })
    this.#conn.write(socksReply(REPLY.succeeded, association.bound))
  }
}

/** RFC 1928 §6, as clients turn them into words. */
export function replyFor({ code, message }: TunnelError): number {
  if (code === 'net/refused') return REPLY.refused
  if (code === 'exit/denied' || code === 'net/denied') return REPLY.notAllowed
  if (code === 'net/unknown-host' || code === 'net/timeout') return REPLY.hostUnreachable
  if (code !== 'net/unreachable') return REPLY.failed
  return message.includes('ENETUNREACH') ? REPLY.networkUnreachable : REPLY.hostUnreachable
}

export function statusFor({ code }: TunnelError): HttpStatus {
  if (code === 'exit/denied' || code === 'net/denied') return 403
  if (code === 'net/timeout') return 504
  return code === 'exit/busy' ? 503 : 502
}

/** `:1080` and `1080` are of this machine alone, `0.0.0.0:1080` of all. Throws `socks/listen`. */
export function parseListen(words: string): { host: string; port: number } {
  const [, six, four, digits] = /^(?:(?:\[([0-9a-fA-F:.]{2,45})\]|([^:[\]]{1,45}))?:)?(\d{1,5})$/
    .exec(words) ?? []
  const port = Number(digits)
  const named = six ?? four
  const host = named === undefined || named === 'localhost'
    ? '127.0.0.1'
    : named === '*'
    ? '0.0.0.0'
    : named
  if (digits !== undefined && port <= 65_535 && /^[0-9.]{7,15}$|:/.test(host)) return { host, port }
  throw new TunnelError(
    'socks/listen',
    `Cannot listen on ${
      JSON.stringify(words.slice(0, 80))
    }: expected a port such as :1080, or an ` +
      'address of this machine such as 192.168.1.5:1080',
  )
}

/** Who reaches the port is in the network behind it. Throws `socks/open`. */
export function checkListen({ host }: { host: string }, login: Login | undefined): void {
  if (login || /^127\.|^::1$/.test(host)) return
  throw new TunnelError(
    'socks/open',
    `Cannot listen on ${host} without a password: everybody who reaches it would be in the network`,
    {
      hint:
        'Add --user NAME with a password, or listen on this machine alone, such as --listen :1080',
    },
  )
}
