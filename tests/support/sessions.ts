/**
 * Two agents and whatever is between them: identities with passports, one responder, carriers that
 * pass through a relay which a test may turn against them. No sockets; time stands still.
 */
import { concat, EMPTY } from '../../core/bytes.ts'
import { ManualClock } from '../../core/clock.ts'
import type { Crypto } from '../../core/crypto.ts'
import type { TunnelError } from '../../core/errors.ts'
import { initiate, type InitiateOptions } from '../../core/initiate.ts'
import { generateIdentity, type Identity } from '../../core/key.ts'
import type { Stream } from '../../core/mux.ts'
import type { StaticKey } from '../../core/noise.ts'
import { suiteName } from '../../core/opening.ts'
import { encodePassport, openPassport, type Passport } from '../../core/passport.ts'
import { Responder, type ResponderOptions } from '../../core/responder.ts'
import type { Session, SessionEnd, SessionState } from '../../core/session.ts'
import { type Conn, memoryConns } from '../../core/socket.ts'
import { fast } from './crypto.ts'
import { turn } from './network.ts'

export interface Party {
  identity: Identity
  staticKey: StaticKey
  /** Encoded. */
  passport: Uint8Array
  opened: Passport
}

export function makeParty(
  clock: ManualClock,
  fields: Partial<Passport> = {},
  crypto: Crypto = fast,
): Party {
  const identity = generateIdentity(crypto)
  const private32 = crypto.randomBytes(32)
  const staticKey = { private32, public32: crypto.x25519Public(private32) }
  const now = clock.now()
  const passport = encodePassport({
    identity: identity.public,
    sequence: 5,
    notBefore: now - 1000,
    notAfter: now + 86_400_000,
    staticKey: staticKey.public32,
    certificates: [],
    names: [],
    ciphers: [suiteName('aesgcm'), suiteName('chachapoly')],
    ...fields,
  }, (message) => crypto.ed25519Sign(identity.seed, message))
  return { identity, staticKey, passport, opened: openPassport(crypto, passport, { now }) }
}

export type Way = 'forth' | 'back'
/** What a relay does with bytes of one way; `pass` sends on, as often as it likes. */
export type Tamper = (chunk: Uint8Array, pass: (bytes: Uint8Array) => void) => void
export type Tampers = Partial<Record<Way, Tamper>> & {
  /** Passes the end of a way on, once what was held back before it has gone. */
  end?: (way: Way, pass: () => void) => void
}

/** A carrier through a relay: `a` is the initiator's end, `b` the responder's. */
export class RelayedCarrier {
  readonly a: Conn
  readonly b: Conn
  /** Everything that was sent, before anybody tampered with it. */
  readonly sent: Record<Way, Uint8Array[]> = { forth: [], back: [] }
  readonly #inner: [Conn, Conn]
  isCut = false

  constructor(tamper: Tampers = {}) {
    const [a, inA] = memoryConns()
    const [inB, b] = memoryConns()
    this.a = a
    this.b = b
    this.#inner = [inA, inB]
    this.#join('forth', inA, inB, tamper)
    this.#join('back', inB, inA, tamper)
  }

  #join(way: Way, from: Conn, to: Conn, tampers: Tampers): void {
    const tamper = tampers[way]
    const end = tampers.end ?? ((_way, pass) => pass())
    const pass = (bytes: Uint8Array): void => void to.write(bytes)
    from.handle({
      data: (chunk) => {
        this.sent[way].push(chunk)
        if (tamper) tamper(chunk, pass)
        else pass(chunk)
      },
      end: () => end(way, () => to.end()),
      closed: (error) => error ? to.abort() : end(way, () => to.end()),
    })
  }

  bytes(way: Way): Uint8Array {
    return concat(...this.sent[way])
  }

  /** The relay puts these bytes in. */
  inject(way: Way, bytes: Uint8Array): void {
    this.#inner[way === 'forth' ? 1 : 0].write(bytes)
  }

  /** Both ends find it reset; what was under way is lost. */
  cut(): void {
    this.isCut = true
    for (const conn of this.#inner) conn.abort()
  }
}

export interface Said {
  states: SessionState[]
  stateErrors: (string | undefined)[]
  ends: SessionEnd[]
  streams: Stream[]
}

function newSaid(): Said {
  return { states: [], stateErrors: [], ends: [], streams: [] }
}

function eventsOf(said: Said, onOpen: (stream: Stream) => void) {
  return {
    onOpen(stream: Stream): void {
      said.streams.push(stream)
      onOpen(stream)
    },
    onState(state: SessionState, error?: TunnelError): void {
      said.states.push(state)
      said.stateErrors.push(error?.code)
    },
    closed: (end: SessionEnd) => void said.ends.push(end),
  }
}

/** One responder, one initiator, and every carrier between them. */
export class Pair {
  readonly clock = new ManualClock()
  readonly crypto: Crypto
  readonly a: Party
  readonly b: Party
  readonly responder: Responder
  readonly carriers: RelayedCarrier[] = []
  readonly dropped: string[] = []
  readonly atA: Said = newSaid()
  readonly atB: Said = newSaid()
  readonly sessionsOfB: Session[] = []
  /** What the relay does on the next carriers. */
  tamper: Tampers = {}
  /** Redials fail while it is set. */
  isAway = false
  onOpenA: (stream: Stream) => void = (stream) => stream.accept()
  onOpenB: (stream: Stream) => void = (stream) => stream.accept()

  constructor(
    options: Partial<ResponderOptions> & { crypto?: Crypto; passport?: () => Uint8Array } = {},
  ) {
    const crypto = this.crypto = options.crypto ?? fast
    this.a = makeParty(this.clock, {}, crypto)
    this.b = makeParty(this.clock, {}, crypto)
    this.responder = new Responder({
      crypto,
      clock: this.clock,
      identity: this.b.identity,
      staticKey: this.b.staticKey,
      passport: () => this.b.passport,
      ciphers: this.b.opened.ciphers,
      group: new Uint8Array(16).fill(7),
      admit: () => {},
      onSession: (session) => {
        this.sessionsOfB.push(session)
        return eventsOf(this.atB, (stream) => this.onOpenB(stream))
      },
      onDropped: (error) => void this.dropped.push(error.code),
      ...options,
    })
  }

  /** A new carrier that reaches the responder; gives the initiator's end. */
  dial(): RelayedCarrier {
    const carrier = new RelayedCarrier(this.tamper)
    this.carriers.push(carrier)
    this.responder.accept(carrier.b)
    return carrier
  }

  get carrier(): RelayedCarrier {
    return this.carriers.at(-1)!
  }

  initiate(options: Partial<InitiateOptions> = {}): Promise<Session> {
    return initiate({
      crypto: this.crypto,
      clock: this.clock,
      identity: this.a.identity,
      staticKey: this.a.staticKey,
      passport: this.a.passport,
      peer: this.b.opened,
      service: 'a2a',
      carrier: options.carrier ?? this.dial().a,
      redial: () =>
        this.isAway ? Promise.reject(new Error('away')) : Promise.resolve(this.dial().a),
      ...eventsOf(this.atA, (stream) => this.onOpenA(stream)),
      ...options,
    })
  }

  /** A session that the responder let in. */
  async open(options: Partial<InitiateOptions> = {}): Promise<{ a: Session; b: Session }> {
    const a = await this.initiate(options)
    await a.admitted()
    return { a, b: this.sessionsOfB.at(-1)! }
  }

  /** Lets time pass in steps of 10 ms, and everything run that is due. */
  async pass(ms: number): Promise<void> {
    for (let i = 0; i <= ms; i += 10) {
      await turn()
      this.clock.advance(Math.min(10, ms - i))
    }
    await turn()
  }
}

/** Everything that a stream brings, until it ends. */
export class Collector {
  readonly #parts: Uint8Array[] = []
  bytes = 0
  isEnded = false
  isClosed = false
  error: Error | undefined

  /** Without a stream, whoever listens calls `take`. */
  constructor(stream?: Stream) {
    stream?.handle({
      data: (chunk) => this.take(chunk),
      end: () => {
        this.isEnded = true
      },
      closed: (error) => {
        this.isClosed = true
        this.error = error
      },
    })
  }

  take(chunk: Uint8Array): void {
    this.#parts.push(chunk)
    this.bytes += chunk.length
  }

  get content(): Uint8Array {
    return this.#parts.length === 0 ? EMPTY : concat(...this.#parts)
  }
}
