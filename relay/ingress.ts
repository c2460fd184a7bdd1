/**
 * The one public port. The first bytes of each connection decide, under a deadline and a cap, and
 * none of them is consumed: a name under the secure domain is spliced to its agent untouched; the
 * relay's own name and the apps domain go to its HTTPS server; a ticket joins a bulk pool; plain
 * HTTP is sent to https. What cannot be routed gets the proper TLS alert, then a half-close so that
 * it is read, never a guess and never a default tenant.
 */
import { concat, text } from '../core/bytes.ts'
import { encodeAlert, HelloReader, TLS_ALERTS } from '../core/client_hello.ts'
import type { HelloVerdict } from '../core/client_hello.ts'
import type { Clock, Timer } from '../core/clock.ts'
import type { Conn } from '../core/socket.ts'
import { looksLikeTicket, readTicket, TICKET_BYTES } from '../core/ticket.ts'
import type { Ticket } from '../core/ticket.ts'
import type { Endpoints } from './endpoints.ts'
import type { Visitors } from './visitors.ts'

/** From accept to a routable first flight, absolute, not for each read. */
export const PEEK_MS_MAX = 3000
/** Bytes held for one connection that is not routed yet. */
export const PEEK_BYTES_MAX = 65_536
/** Connections that may be in the peek at once; the oldest is dropped for a newer one. */
const PEEKING_MAX = 8192
/** Bytes held for all of them together; above, the oldest is dropped. */
const PEEKING_BYTES_MAX = 67_108_864
/** A plain HTTP request's head, for the redirect. */
const HEAD_BYTES_MAX = 8192
/** How long a refused visitor may take to read its alert and close. */
const GOODBYE_MS_MAX = 2000
/** How often deadlines are looked at. */
const SWEEP_MS = 250
/** After a relay has taken over from another, agents are on their way: visitors wait for them, */
const EXPECT_MS = 15_000
/** each so long at most, */
const EXPECTED_MS_MAX = 8000
/** and so many of them. */
const EXPECTING_MAX = 1024
const EXPECT_LOOK_MS = 25

/** ALPN by which an agent asks for a bulk link inside TLS to the relay. */
export const BULK_ALPN = 'sotto-bulk/1'

/** RFC 8737 §6.2; a hello of a CA offers nothing else. */
const CHALLENGE_ALPN = 'acme-tls/1'

export interface IngressPorts {
  clock: Clock
  endpoints: Endpoints
  visitors: Visitors
  /** Host names of the relay itself, lower case. */
  ownNames: ReadonlySet<string>
  /** The two wildcard domains, without the star. */
  secureDomain: string
  appsDomain: string
  /** Names that people own elsewhere: the endpoint that they lead to. */
  domain(name: string): { label: string; scope: string } | undefined
  /** The port that URLs name. */
  publicPort(): number
  /** The relay's own HTTPS: its pages, its API, links. */
  app(conn: Conn, first: Uint8Array): void
  /** Endpoints that the relay reads: TLS ends here. */
  readable(conn: Conn, first: Uint8Array, name: string): void
  /** A CA asks for the relay's own name or one under the apps domain (RFC 8737). */
  challenge(conn: Conn, first: Uint8Array, name: string): void
  /** TLS to the relay around a bulk link: ended by the runtime, which calls `ticket` with the inside. */
  bulkTls(conn: Conn, first: Uint8Array): void
  /** A bulk link says whose it is. False: it is nobody's, and is dropped. */
  claim(conn: Conn, ticket: Ticket): boolean
  /** May this address have another visitor now? */
  admits(address: string, scope: string): boolean
  /** Is the name or its scope cut off? */
  blocked(name: string, scope: string): boolean
  refused(reason: string, fields: { address: string; serverName?: string }): void
}

class Peek {
  readonly conn: Conn
  deadlineMs: number
  /** The first byte, which decides what this is. */
  first: number | undefined
  length = 0
  /** Of a ticket or a plain request: at most a head's worth; TLS is kept by the reader. */
  bytes: Uint8Array | undefined
  reader: HelloReader | undefined

  constructor(conn: Conn, deadlineMs: number) {
    this.conn = conn
    this.deadlineMs = deadlineMs
  }
}

export class Ingress {
  readonly #ports: IngressPorts
  readonly #peeking = new Set<Peek>()
  #peekingBytes = 0
  #sweep: Timer | undefined
  #draining = false
  #expectUntilMs = 0
  readonly #expecting = new Set<Peek>()

  constructor(ports: IngressPorts) {
    this.#ports = ports
  }

  /** Agents were sent here by another relay: for a while a name that is not there may be yet to come. */
  expect(): void {
    this.#expectUntilMs = this.#ports.clock.monotonic() + EXPECT_MS
  }

  /** Whether a visitor of a name that nobody serves is kept for its agent. */
  #awaits(peek: Peek, run: () => void): boolean {
    const { clock } = this.#ports
    const now = clock.monotonic()
    if (now >= this.#expectUntilMs || this.#expecting.size >= EXPECTING_MAX) return false
    const first = !this.#expecting.has(peek)
    if (first) peek.deadlineMs = now + EXPECTED_MS_MAX
    else if (now >= peek.deadlineMs) return false
    this.#expecting.add(peek)
    // The reader holds no more than the hello: what might follow stays with the system.
    peek.conn.pause()
    clock.after(EXPECT_LOOK_MS, () => {
      if (!this.#peeking.has(peek)) return void this.#expecting.delete(peek)
      peek.conn.resume()
      run()
    })
    return true
  }

  /** Connections whose first bytes are still awaited, and what is held for them. */
  get peeking(): { count: number; bytes: number } {
    return { count: this.#peeking.size, bytes: this.#peekingBytes }
  }

  /** From now on visitors are turned away; the relay's own HTTPS goes on. */
  drain(): void {
    this.#draining = true
  }

  close(): void {
    this.#sweep?.cancel()
    for (const peek of this.#peeking) peek.conn.abort()
    this.#peeking.clear()
    this.#peekingBytes = 0
  }

  /** One new connection on the public port. */
  accept(conn: Conn): void {
    const peek = new Peek(conn, this.#ports.clock.monotonic() + PEEK_MS_MAX)
    if (this.#peeking.size >= PEEKING_MAX) this.#dropOldest()
    this.#peeking.add(peek)
    conn.handle({
      data: (bytes) => this.#received(peek, bytes),
      end: () => this.#refuse(peek, 'ended-early'),
      closed: () => this.#forget(peek),
    })
    this.#schedule()
  }

  #schedule(): void {
    this.#sweep ??= this.#ports.clock.after(SWEEP_MS, () => {
      this.#sweep = undefined
      const now = this.#ports.clock.monotonic()
      // In order of arrival, so the first that is in time ends the walk.
      for (const peek of this.#peeking) {
        if (this.#expecting.has(peek)) continue
        if (peek.deadlineMs > now) break
        this.#refuse(peek, 'too-slow')
      }
      if (this.#peeking.size > 0) this.#schedule()
    })
  }

  #dropOldest(): void {
    for (const peek of this.#peeking) {
      this.#ports.refused('crowded', { address: peek.conn.remoteAddress })
      this.#forget(peek)
      peek.conn.abort()
      return
    }
  }

  #forget(peek: Peek): void {
    this.#expecting.delete(peek)
    if (!this.#peeking.delete(peek)) return
    this.#peekingBytes -= peek.length
  }

  #received(peek: Peek, bytes: Uint8Array): void {
    if (bytes.length === 0) return
    if (this.#expecting.has(peek)) return this.#refuse(peek, 'too-early')
    this.#peekingBytes += bytes.length
    peek.length += bytes.length
    const first = (peek.first ??= bytes[0]!)
    // A handshake record, an SSLv2 hello, or another TLS record that gets its alert.
    if ((first >= 0x14 && first <= 0x18) || first >= 0x80) {
      peek.reader ??= new HelloReader()
      this.#hello(peek, peek.reader.push(bytes))
    } else if (first === 0x00 || (first >= 0x41 && first <= 0x5a)) {
      peek.bytes = peek.bytes ? concat(peek.bytes, bytes) : bytes
      if (first === 0x00) this.#ticket(peek)
      else this.#plain(peek)
    } else this.#refuse(peek, 'not-tls')
    if (!this.#peeking.has(peek)) return
    if (peek.length > PEEK_BYTES_MAX) this.#refuse(peek, 'too-long', TLS_ALERTS.decode_error)
    else if (this.#peekingBytes > PEEKING_BYTES_MAX) this.#dropOldest()
  }

  #hello(peek: Peek, verdict: HelloVerdict): void {
    switch (verdict.kind) {
      case 'more':
        return
      case 'other':
        return this.#refuse(peek, 'not-tls')
      case 'refuse':
        return this.#refuse(peek, verdict.reason, verdict.alert, verdict.serverName)
      case 'hello':
        return this.#route(peek, verdict)
    }
  }

  #route(peek: Peek, hello: Extract<HelloVerdict, { kind: 'hello' }>): void {
    const ports = this.#ports
    const name = hello.serverName
    const isOwn = ports.ownNames.has(name)
    const isChallenge = hello.alpn.length === 1 && hello.alpn[0] === CHALLENGE_ALPN
    // Of names under the secure domain their agents are asked, as by any visitor.
    if (isChallenge && (isOwn || under(name, ports.appsDomain) !== undefined)) {
      const { conn, bytes } = this.#take(peek)
      ports.challenge(conn, bytes, name)
      return
    }
    if (isOwn) {
      const { conn, bytes } = this.#take(peek)
      if (hello.alpn.includes(BULK_ALPN)) ports.bulkTls(conn, bytes)
      else ports.app(conn, bytes)
      return
    }
    const label = under(name, ports.secureDomain)
    if (label !== undefined) return this.#visit(peek, { label, name })
    const readable = under(name, ports.appsDomain)
    if (readable !== undefined) {
      const absent = !ports.endpoints.get(readable)
      if (absent && this.#awaits(peek, () => this.#route(peek, hello))) return
      if (this.#draining) return this.#refuse(peek, 'draining', TLS_ALERTS.internal_error, name)
      const { conn, bytes } = this.#take(peek)
      ports.readable(conn, bytes, name)
      return
    }
    const custom = ports.domain(name)
    if (custom) return this.#visit(peek, { ...custom, name })
    this.#refuse(peek, 'unknown-name', TLS_ALERTS.unrecognized_name, name)
  }

  /** `scope`: only where that scope has the label. */
  #visit(
    peek: Peek,
    { label, name, scope }: { label: string; name: string; scope?: string | undefined },
  ): void {
    const ports = this.#ports
    const endpoint = ports.endpoints.get(label)
    const unknown = (reason: string): void =>
      this.#refuse(peek, reason, TLS_ALERTS.unrecognized_name, name)
    if (!endpoint && this.#awaits(peek, () => this.#visit(peek, { label, name, scope }))) return
    if (endpoint?.mode !== 'verified') return unknown('unknown-endpoint')
    if (scope !== undefined && endpoint.scope !== scope) return unknown('unknown-endpoint')
    if (ports.blocked(label, endpoint.scope)) return unknown('blocked')
    if (this.#draining) return this.#refuse(peek, 'draining', TLS_ALERTS.internal_error, name)
    if (!ports.admits(peek.conn.remoteAddress, endpoint.scope)) {
      return this.#refuse(peek, 'quota', TLS_ALERTS.internal_error, name)
    }
    const { conn, bytes } = this.#take(peek)
    ports.visitors.carry(conn, { endpoint, kind: 'tls', first: bytes }, (why) => {
      const reason = why === 'quota' ? why : `agent-${why}`
      ports.refused(reason, { address: conn.remoteAddress, serverName: name })
      this.#goodbye(conn, encodeAlert(TLS_ALERTS.internal_error))
    })
  }

  #ticket(peek: Peek): void {
    if (!looksLikeTicket(peek.bytes!)) return this.#refuse(peek, 'bad-ticket')
    let ticket: 'more' | Ticket
    try {
      ticket = readTicket(peek.bytes!)
    } catch {
      return this.#refuse(peek, 'bad-ticket')
    }
    if (ticket === 'more') return
    const { conn, bytes } = this.#take(peek)
    if (bytes.length > TICKET_BYTES || !this.#ports.claim(conn, ticket)) {
      this.#ports.refused('bad-ticket', { address: conn.remoteAddress })
      conn.abort()
    }
  }

  #plain(peek: Peek): void {
    const bytes = peek.bytes!
    let head: string
    try {
      head = text(bytes.subarray(0, HEAD_BYTES_MAX))
    } catch {
      return this.#refuse(peek, 'not-http')
    }
    const end = head.indexOf('\r\n\r\n')
    if (end < 0) {
      if (bytes.length >= HEAD_BYTES_MAX) this.#refuse(peek, 'head-too-long')
      return
    }
    const { conn } = this.#take(peek)
    this.#goodbye(conn, redirect(head.slice(0, end), this.#ports))
  }

  /** Ends the peek: from here another handler owns the connection. */
  #take(peek: Peek): { conn: Conn; bytes: Uint8Array } {
    const bytes = peek.reader?.held ?? peek.bytes!
    this.#forget(peek)
    return { conn: peek.conn, bytes }
  }

  #refuse(peek: Peek, reason: string, alert?: number, serverName?: string): void {
    if (!this.#peeking.has(peek)) return
    const spokeTls = peek.reader !== undefined
    this.#forget(peek)
    this.#ports.refused(reason, {
      address: peek.conn.remoteAddress,
      ...(serverName === undefined ? {} : { serverName }),
    })
    if (alert === undefined && !spokeTls) peek.conn.abort()
    else this.#goodbye(peek.conn, encodeAlert(alert ?? TLS_ALERTS.decode_error))
  }

  /**
   * Last words, then a half-close, and reading on for a while: closing with unread data in the
   * buffer makes the system send a reset that destroys the alert on its way.
   */
  #goodbye(conn: Conn, words: Uint8Array): void {
    const timer = this.#ports.clock.after(GOODBYE_MS_MAX, () => conn.abort())
    let drained = 0
    conn.handle({
      data: (bytes) => {
        drained += bytes.length
        if (drained > PEEK_BYTES_MAX) conn.abort()
      },
      end: () => {},
      closed: () => timer.cancel(),
    })
    conn.write(words)
    conn.end()
  }
}

/** The label of `name` directly under `domain`, or undefined. */
export function under(name: string, domain: string): string | undefined {
  if (!name.endsWith(domain) || name[name.length - domain.length - 1] !== '.') return undefined
  const label = name.slice(0, name.length - domain.length - 1)
  return label.length > 0 && !label.includes('.') ? label : undefined
}

/** 308 to https for a host of ours, 400 for anything else: never an open redirect. */
function redirect(
  head: string,
  ports: Pick<IngressPorts, 'ownNames' | 'secureDomain' | 'appsDomain' | 'publicPort' | 'domain'>,
): Uint8Array {
  const lines = head.split('\r\n')
  const request = /^[A-Z]{1,20} (\/[\x21-\x7e]*) HTTP\/1\.[01]$/.exec(lines[0] ?? '')
  const host = lines.map((line) => /^host:[ \t]*([a-z0-9.-]{1,253})(:\d{1,5})?[ \t]*$/i.exec(line))
    .find((match) => match)?.[1]?.toLowerCase()
  const ours = host !== undefined &&
    (ports.ownNames.has(host) || under(host, ports.secureDomain) !== undefined ||
      under(host, ports.appsDomain) !== undefined || ports.domain(host) !== undefined)
  if (!request || !ours) {
    const body = 'This port speaks https.\n'
    return new TextEncoder().encode(
      `HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`,
    )
  }
  const port = ports.publicPort()
  const authority = port === 443 ? host : `${host}:${port}`
  return new TextEncoder().encode(
    `HTTP/1.1 308 Permanent Redirect\r\nLocation: https://${authority}${
      request[1]
    }\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`,
  )
}
