/**
 * Opening a session from this end, and bringing it another carrier whenever it lost one: at once,
 * then after waits that double. docs/protocol.md §10, "Handshake" and "Resumption".
 */
import type { Clock, Timer } from './clock.ts'
import type { Crypto } from './crypto.ts'
import { encodeEnvelope, ENVELOPE, EnvelopeReader, SESSION_SIZES } from './envelope.ts'
import { asTunnelError, isTunnelError, TunnelError } from './errors.ts'
import type { Identity } from './key.ts'
import type { StaticKey, Suite } from './noise.ts'
import { type Greeted, InitiatorHello, suiteName } from './opening.ts'
import type { Passport } from './passport.ts'
import {
  encodeProceed,
  encodeResume,
  openResumed,
  RESUME_NONCE_BYTES,
  type ResumeOffer,
} from './resume.ts'
import { Session, type SessionEvents, type SessionLimits } from './session.ts'
import type { Conn } from './socket.ts'

// Specification constants.
/** For the answer to `opening`, and to `resume`. */
export const ANSWER_MS = 5000
export const REDIAL_MS_MIN = 200
export const REDIAL_MS_MAX = 5000
/** A carrier that lived so long was a good one: the next attempt is made at once. */
const GOOD_CARRIER_MS = 5000

export interface InitiateOptions extends SessionEvents {
  crypto: Crypto
  clock: Clock
  identity: Identity
  staticKey: StaticKey
  /** The own passport, encoded. */
  passport: Uint8Array
  /** The responder's passport as it is known, trusted by the caller. */
  peer: Passport
  /** What is asked for: 1 to 63 of `a-z 0-9 -`. */
  service: string
  /** One that the peer offers; its first that is known here where absent. */
  suite?: Suite | undefined
  /** Belongs to the session from here on. */
  carrier: Conn
  /** Another carrier to the process that has the session: a stream that names this group. */
  redial(group: Uint8Array): Promise<Conn>
  limits?: SessionLimits | undefined
}

/**
 * Resolves once the responder has proven itself; whether its owner lets this session in is told by
 * `admitted()`. Rejects with `noise/*`, `passport/*`, `session/suite`, `session/passport`,
 * `session/service`, `session/reflected`, `session/envelope`, `session/timeout` and
 * `session/unanswered`; the carrier is then dropped and `closed` is not called.
 */
export async function initiate(options: InitiateOptions): Promise<Session> {
  const { carrier, crypto, clock, identity, peer, service, staticKey, passport } = options
  const suite = options.suite ?? suiteOf(peer)
  const opening = { suite, initiator: identity.public, responder: peer.identity, service }
  const reader = new EnvelopeReader(SESSION_SIZES)
  let greeted: Greeted
  try {
    const hello = new InitiatorHello({ crypto, opening, staticKey, passport, peer })
    const answer = await ask(carrier, encodeEnvelope(ENVELOPE.opening, hello.body), {
      clock,
      reader,
      type: ENVELOPE.answer,
    })
    greeted = hello.answer(answer, clock.now())
  } catch (error) {
    carrier.abort()
    throw asTunnelError(error, 'session/opening')
  }
  const redialer = new Redialer(options)
  const session: Session = new Session({
    crypto,
    clock,
    role: 'initiator',
    suite,
    identity,
    service,
    split: greeted.split,
    peer: greeted.peer,
    group: greeted.group,
    limits: options.limits,
    onOpen: options.onOpen,
    onState: options.onState,
    onTranscript: options.onTranscript,
    closed: options.closed,
    owner: { lost: () => redialer.lost(session), gone: () => redialer.stop() },
  })
  redialer.attached(0)
  session.attach(carrier, reader)
  session.sendReady()
  return session
}

function suiteOf(peer: Passport): Suite {
  const known: Suite[] = ['aesgcm', 'chachapoly']
  for (const cipher of peer.ciphers) {
    const suite = known.find((suite) => suiteName(suite) === cipher)
    if (suite) return suite
  }
  throw new TunnelError(
    'session/suite',
    'Cannot open a session: found no cipher suite in common with the peer',
    { hint: 'Update sotto on the other machine.' },
  )
}

/** Writes one envelope and waits for the one of `type` that answers it. */
function ask(
  conn: Conn,
  envelope: Uint8Array,
  options: { clock: Clock; reader: EnvelopeReader; type: number },
): Promise<Uint8Array> {
  const { clock, reader, type } = options
  return new Promise((resolve, reject) => {
    let isDone = false
    function settle(run: () => void): void {
      if (isDone) return
      isDone = true
      timer.cancel()
      // What comes from here on is for whoever listens next.
      conn.hold()
      run()
    }
    const fail = (code: `session/${string}`, found: string, cause?: unknown): void =>
      settle(() => reject(new TunnelError(code, `Cannot open a session: ${found}`, { cause })))
    const timer = clock.after(
      ANSWER_MS,
      () => fail('session/timeout', `found no answer in ${ANSWER_MS} ms`),
    )
    conn.handle({
      data(bytes) {
        reader.push(bytes)
        if (isDone) return
        try {
          const answer = reader.next()
          if (!answer) return
          if (answer.type !== type) {
            return fail('session/envelope', `found an envelope of type ${answer.type}`)
          }
          settle(() => resolve(answer.body))
        } catch (error) {
          settle(() => reject(asTunnelError(error, 'session/envelope')))
        }
      },
      end: () => fail('session/unanswered', 'found the carrier ended before an answer'),
      closed: (error) =>
        fail('session/unanswered', 'found the carrier closed before an answer', error),
    })
    if (conn.write(envelope) === 'lost') {
      fail('session/unanswered', 'found the carrier closed before an answer')
    }
  })
}

/** Brings one session another carrier, one attempt at a time, until it has ended. */
class Redialer {
  readonly #options: InitiateOptions
  #stopped = false
  #busy = false
  #waitMs = 0
  #attachedMs = 0
  #receivedThen = 0
  #timer: Timer | undefined
  /** Of the attempt that is under way. */
  #conn: Conn | undefined

  constructor(options: InitiateOptions) {
    this.#options = options
  }

  attached(received: number): void {
    this.#receivedThen = received
    this.#attachedMs = this.#options.clock.monotonic()
  }

  stop(): void {
    this.#stopped = true
    this.#timer?.cancel()
    this.#conn?.abort()
  }

  lost(session: Session): void {
    const { clock } = this.#options
    if (clock.monotonic() - this.#attachedMs >= GOOD_CARRIER_MS) this.#waitMs = 0
    else if (session.received > this.#receivedThen) {
      this.#waitMs = Math.min(this.#waitMs, REDIAL_MS_MIN)
    }
    this.#later(session)
  }

  #later(session: Session): void {
    if (this.#stopped || this.#busy || this.#timer) return
    this.#timer = this.#options.clock.after(this.#waitMs, () => {
      this.#timer = undefined
      this.#attempt(session).catch((error) => this.#failed(error)).finally(() => {
        this.#busy = false
        this.#conn = undefined
        if (session.needsCarrier) this.#later(session)
      })
    })
    this.#waitMs = Math.min(Math.max(REDIAL_MS_MIN, 2 * this.#waitMs), REDIAL_MS_MAX)
  }

  /** No link, no answer: another attempt may do better. A lie is told. */
  #failed(error: unknown): void {
    if (!this.#stopped && isTunnelError(error, 'session/resume')) {
      this.#options.onState?.('waiting', error)
    }
  }

  async #attempt(session: Session): Promise<void> {
    this.#busy = true
    const { crypto, clock, redial } = this.#options
    const conn = await redial(session.group)
    if (this.#stopped) return conn.abort()
    this.#conn = conn
    try {
      const offer: ResumeOffer = {
        session: session.id,
        initiatorNonce: crypto.randomBytes(RESUME_NONCE_BYTES),
        initiatorReceived: session.received,
      }
      const keys = session.resumeKeys
      const reader = new EnvelopeReader(SESSION_SIZES)
      const resume = encodeEnvelope(ENVELOPE.resume, encodeResume(crypto, keys, offer))
      const body = await ask(conn, resume, { clock, reader, type: ENVELOPE.resumed })
      if (this.#stopped) return
      const facts = openResumed(crypto, keys, { offer, body })
      const proceed = encodeProceed(crypto, keys, facts)
      if (conn.write(encodeEnvelope(ENVELOPE.proceed, proceed)) === 'lost') return conn.abort()
      this.attached(session.received)
      session.attach(conn, reader, {
        sendFrom: facts.responderReceived,
        receiveFrom: facts.initiatorReceived,
      })
    } catch (error) {
      conn.abort()
      throw error
    }
  }
}
