/**
 * The other end of sessions, one for each process: takes every carrier that may hold one, brings
 * new sessions to life and old ones back. Strangers speak first here, so that everything is
 * bounded, nothing is acted on before it is proven, and the owner hears of no session before its
 * initiator has proven that its first message was no replay. docs/protocol.md §10.
 */
import { equal, hex } from './bytes.ts'
import type { Clock, Timer } from './clock.ts'
import type { Crypto } from './crypto.ts'
import type { PacketCarrier } from './datagram.ts'
import {
  encodeEnvelope,
  ENVELOPE,
  type Envelope,
  EnvelopeReader,
  SESSION_SIZES,
} from './envelope.ts'
import { asTunnelError, isTunnelError, TunnelError } from './errors.ts'
import { RESET } from './frame.ts'
import type { Identity } from './key.ts'
import type { StaticKey } from './noise.ts'
import { decodeOpening, ResponderHello, type SessionPeer, suiteName } from './opening.ts'
import {
  checkProceed,
  checkResume,
  decodeResume,
  encodeResumed,
  RESUME_NONCE_BYTES,
  type ResumeFacts,
} from './resume.ts'
import { Session, type SessionEvents, type SessionLimits } from './session.ts'
import type { Conn } from './socket.ts'
import { keptEvent, type TranscriptEvent } from './transcript.ts'

// Specification constants.
/** From a carrier's start to its first envelope, from `answer` to `ready`, `resumed` to `proceed`. */
export const STEP_MS = 5000
/** Handshakes without `ready`, or not yet let in; of one initiator; others are dropped. */
export const PENDING_MAX = 64
export const PENDING_OF_ONE_MAX = 8
/** A packet channel that no session names in so long is dropped. */
export const CHANNEL_MS = 5000

// Our own choices.
/** Carriers that have said nothing yet. */
export const SILENT_MAX = 64
/** Resumptions that wait for `proceed`; of one session, where the oldest makes room. */
export const RESUMING_MAX = 64
export const RESUMING_OF_ONE_MAX = 4
export const SESSIONS_MAX = 1024
/** Channels that no session has named, and names that no channel has come for. */
export const CHANNELS_MAX = 64

/** Who asks for a session, proven. */
export interface SessionRequest extends SessionPeer {
  service: string
}

export interface ResponderOptions {
  crypto: Crypto
  clock: Clock
  identity: Identity
  staticKey: StaticKey
  /** The own passport, encoded: the newest, whenever it is asked for. */
  passport(): Uint8Array
  /** Suites that the own passport offers, by name. */
  ciphers: readonly string[]
  /** Where this process can be reached to resume, 16 bytes. */
  group: Uint8Array
  /**
   * Looks before an answer is given whether this initiator may get one; throws to drop it without
   * a word. It may be a replay: nothing else may follow from it.
   */
  screen?(request: SessionRequest): void
  /**
   * Lets a session in, or throws to refuse it. A TunnelError's message is told to the peer; a code
   * `session/NAME` with a NAME of RESET picks the code, else it is `refused`.
   */
  admit(request: SessionRequest): Promise<void> | void
  /** A session was let in: who hears of its streams and its end. */
  onSession(session: Session): SessionEvents
  /** For logs: a carrier was dropped and why. Strangers can cause it at will. */
  onDropped?(error: TunnelError): void
  limits?: SessionLimits | undefined
  /** Default 1024. */
  sessionsMax?: number | undefined
}

interface Resuming {
  conn: Conn
  facts: ResumeFacts
  timer: Timer
}

/** Who hears of a session, once it is let in. */
interface Listeners {
  to?: SessionEvents
  /** What a trail begins with: `ready`, since nothing more is read before. */
  early: TranscriptEvent[]
}

interface Known {
  session: Session
  /** Oldest first. */
  resuming: Resuming[]
  channel: string | undefined
}

/** A stream of kind `datagrams`. */
export type ChannelStream = PacketCarrier & { reset(code: number, reason?: string): void }

export class Responder {
  readonly #options: ResponderOptions
  readonly #silent = new Map<Conn, Timer>()
  /** Handshakes that are not let in yet, by initiator. */
  readonly #pending = new Map<Session, string>()
  readonly #known = new Map<string, Known>()
  readonly #channels = new Map<string, { stream: ChannelStream; timer: Timer }>()
  #resumingCount = 0
  #closed = false

  constructor(options: ResponderOptions) {
    this.#options = options
  }

  /** Sessions that were let in and have not ended. */
  get sessions(): Session[] {
    return Array.from(this.#known.values(), ({ session }) => session)
  }

  /** Handshakes and resumptions under way, and carriers that have said nothing. */
  get pending(): number {
    return this.#silent.size + this.#pending.size + this.#resumingCount
  }

  /** Takes a carrier that has just been opened; it is dropped unless it brings a session. */
  accept(conn: Conn): void {
    if (this.#closed || this.#silent.size >= SILENT_MAX) return conn.abort()
    const { clock } = this.#options
    const drop = (error: TunnelError): void => this.#drop(conn, error)
    this.#silent.set(conn, clock.after(STEP_MS, () => drop(late('the first envelope'))))
    const reader = new EnvelopeReader(SESSION_SIZES)
    this.#listen(conn, reader, {
      take: (envelope) => {
        this.#forgetSilent(conn)
        if (envelope.type === ENVELOPE.opening) this.#open(conn, reader, envelope)
        else if (envelope.type === ENVELOPE.resume) this.#resume(conn, reader, envelope)
        else throw outOfOrder(envelope.type)
      },
      gone: () => this.#forgetSilent(conn),
    })
  }

  /** Takes a stream of kind `datagrams`, whose tail names this 16-byte channel. */
  acceptChannel(stream: ChannelStream, channel: Uint8Array): void {
    const name = hex(channel)
    const known = this.#known.values().find((known) => known.channel === name)
    if (known) return known.session.datagrams.attach(stream)
    if (this.#closed || this.#channels.size >= CHANNELS_MAX || this.#channels.has(name)) {
      return stream.reset(RESET.refused)
    }
    const timer = this.#options.clock.after(CHANNEL_MS, () => {
      this.#channels.delete(name)
      stream.reset(RESET.refused, 'no session named it')
    })
    this.#channels.set(name, { stream, timer })
  }

  /** Ends all sessions with this code of RESET (0 for done), and takes no more. */
  close(code = 0, reason = ''): void {
    this.#closed = true
    for (const conn of this.#silent.keys()) this.#drop(conn)
    for (const session of this.#pending.keys()) session.close(RESET.refused, 'going down')
    for (const known of this.#known.values()) {
      for (const { conn } of known.resuming.slice()) this.#forgetResuming(known, conn, true)
      known.session.close(code, reason)
    }
    for (const { stream, timer } of this.#channels.values()) {
      timer.cancel()
      stream.reset(RESET.refused)
    }
    this.#channels.clear()
  }

  /** Reads one envelope of a stranger; whatever is wrong with it drops the carrier. */
  #listen(
    conn: Conn,
    reader: EnvelopeReader,
    on: { take(envelope: Envelope): void; gone(): void },
  ): void {
    let isDone = false
    function gone(): void {
      if (isDone) return
      isDone = true
      conn.abort()
      on.gone()
    }
    conn.handle({
      data: (bytes) => {
        if (isDone) return
        reader.push(bytes)
        try {
          const envelope = reader.next()
          if (!envelope) return
          isDone = true
          on.take(envelope)
        } catch (error) {
          isDone = true
          on.gone()
          this.#drop(conn, asTunnelError(error, 'session/opening'))
        }
      },
      end: gone,
      closed: gone,
    })
  }

  #drop(conn: Conn, error?: TunnelError): void {
    this.#forgetSilent(conn)
    conn.abort()
    if (error) this.#options.onDropped?.(error)
  }

  #forgetSilent(conn: Conn): void {
    this.#silent.get(conn)?.cancel()
    this.#silent.delete(conn)
  }

  // Handshakes.

  #open(conn: Conn, reader: EnvelopeReader, { body }: Envelope): void {
    const { crypto, clock, identity, staticKey, ciphers, group } = this.#options
    const { opening, bytes, message } = decodeOpening(body)
    if (!equal(opening.responder, identity.public)) {
      throw refusal('session/responder', 'a session for another identity')
    }
    if (!ciphers.includes(suiteName(opening.suite))) {
      throw refusal('session/suite', `${opening.suite}, which is not offered`)
    }
    const initiator = hex(opening.initiator)
    this.#needPlace(initiator)
    const now = clock.now()
    const hello = new ResponderHello({ crypto, opening, staticKey, bytes, message, now })
    const request: SessionRequest = { ...hello.peer, service: opening.service }
    this.#options.screen?.(request)
    const { body: answer, split } = hello.answer(this.#options.passport(), group)
    const events: Listeners = { early: [] }
    const timer = clock.after(STEP_MS, () => session.fail(late('ready')))
    const session: Session = new Session({
      crypto,
      clock,
      role: 'responder',
      suite: opening.suite,
      identity,
      service: opening.service,
      split,
      peer: hello.peer,
      group,
      limits: this.#options.limits,
      onOpen: (stream) => events.to?.onOpen(stream),
      onState: (state, error) => events.to?.onState?.(state, error),
      onTranscript: (event) => {
        if (events.to) events.to.onTranscript?.(event)
        else events.early.push(keptEvent(event))
      },
      closed: (end) => events.to?.closed(end),
      owner: {
        ready: () => {
          timer.cancel()
          void this.#admit(session, request, events)
        },
        channel: (channel) => this.#nameChannel(session, hex(channel)),
        gone: ({ error }) => {
          timer.cancel()
          if (this.#pending.delete(session) && error) this.#options.onDropped?.(error)
          this.#forget(session)
        },
      },
    })
    this.#pending.set(session, initiator)
    conn.write(encodeEnvelope(ENVELOPE.answer, answer))
    session.attach(conn, reader)
  }

  /** Counted by what the opening claims: the check of message 1 is what costs. */
  #needPlace(initiator: string): void {
    let own = 0
    for (const other of this.#pending.values()) if (other === initiator) own++
    if (own < PENDING_OF_ONE_MAX && this.#pending.size < PENDING_MAX) return
    throw refusal('session/overload', `${this.#pending.size} handshakes open, ${own} of this one`)
  }

  async #admit(
    session: Session,
    request: SessionRequest,
    events: Listeners,
  ): Promise<void> {
    try {
      if (this.#known.size >= (this.#options.sessionsMax ?? SESSIONS_MAX)) {
        throw refusal('session/overload', `${this.#known.size} sessions open`)
      }
      await this.#options.admit(request)
    } catch (error) {
      const name = isTunnelError(error) ? error.code.replace('session/', '') : ''
      const code = (RESET as Record<string, number>)[name] ?? RESET.refused
      return session.close(code, isTunnelError(error) ? error.message : '')
    }
    // It may have been lost, or closed, while the owner thought about it.
    if (!this.#pending.delete(session) || session.ended || this.#closed) return
    this.#known.set(hex(session.id), { session, resuming: [], channel: undefined })
    events.to = this.#options.onSession(session)
    for (const event of events.early.splice(0)) events.to.onTranscript?.(event)
    session.admit()
  }

  #forget(session: Session): void {
    const name = hex(session.id)
    const known = this.#known.get(name)
    if (known?.session !== session) return
    for (const { conn } of known.resuming.slice()) this.#forgetResuming(known, conn, true)
    this.#known.delete(name)
  }

  // Resumption.

  #resume(conn: Conn, reader: EnvelopeReader, { body }: Envelope): void {
    const { crypto, clock } = this.#options
    const { offer, tag } = decodeResume(body)
    const known = this.#known.get(hex(offer.session))
    if (!known || known.session.ended) throw refusal('session/unknown', 'no session of that name')
    const { session, resuming } = known
    checkResume(crypto, session.resumeKeys, { offer, tag })
    if (resuming.length >= RESUMING_OF_ONE_MAX) this.#forgetResuming(known, resuming[0]!.conn, true)
    if (this.#resumingCount >= RESUMING_MAX) {
      throw refusal('session/overload', `${this.#resumingCount} sessions that resume`)
    }
    const facts: ResumeFacts = {
      ...offer,
      responderNonce: crypto.randomBytes(RESUME_NONCE_BYTES),
      responderReceived: session.received,
    }
    const timer = clock.after(STEP_MS, () => {
      this.#forgetResuming(known, conn, true)
      this.#options.onDropped?.(late('proceed'))
    })
    resuming.push({ conn, facts, timer })
    this.#resumingCount++
    conn.write(encodeEnvelope(ENVELOPE.resumed, encodeResumed(crypto, session.resumeKeys, facts)))
    this.#listen(conn, reader, {
      take: (envelope) => this.#proceed(known, conn, { reader, envelope, facts }),
      gone: () => this.#forgetResuming(known, conn, false),
    })
  }

  #proceed(
    known: Known,
    conn: Conn,
    { reader, envelope, facts }: { reader: EnvelopeReader; envelope: Envelope; facts: ResumeFacts },
  ): void {
    if (envelope.type !== ENVELOPE.proceed) throw outOfOrder(envelope.type)
    const { session } = known
    const { body } = envelope
    checkProceed(this.#options.crypto, session.resumeKeys, { facts, body })
    // Attempts from before this one were given up by the initiator, and say what is no longer so.
    const own = known.resuming.findIndex((other) => other.conn === conn)
    for (const older of known.resuming.slice(0, Math.max(0, own))) {
      this.#forgetResuming(known, older.conn, true)
    }
    this.#forgetResuming(known, conn, false)
    session.attach(conn, reader, {
      sendFrom: facts.initiatorReceived,
      receiveFrom: facts.responderReceived,
    })
  }

  #forgetResuming(known: Known, conn: Conn, abort: boolean): void {
    const at = known.resuming.findIndex((other) => other.conn === conn)
    if (at < 0) return
    const [{ timer }] = known.resuming.splice(at, 1) as [Resuming]
    timer.cancel()
    this.#resumingCount--
    if (abort) conn.abort()
  }

  // Packet channels.

  #nameChannel(session: Session, name: string): void {
    const known = this.#known.get(hex(session.id))
    if (!known) return
    known.channel = name
    const waiting = this.#channels.get(name)
    if (!waiting) return
    waiting.timer.cancel()
    this.#channels.delete(name)
    session.datagrams.attach(waiting.stream)
  }
}

function refusal(code: `session/${string}`, found: string): TunnelError {
  return new TunnelError(code, `Cannot take a session: found ${found}`)
}

function late(subject: string): TunnelError {
  return refusal('session/timeout', `no ${subject} in ${STEP_MS} ms`)
}

function outOfOrder(type: number): TunnelError {
  return refusal('session/order', `an envelope of type ${type} first`)
}
