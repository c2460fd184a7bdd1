/**
 * Sessions with peers over a relay: asked for by name and sealed to the identity that is trusted
 * behind it, and taken from others where the access table lets them in. The relay says who serves a
 * name and carries sealed bytes; who that is and what they may do is decided here.
 */
import { fromBase64, SESSION_SUITES } from './agent.ts'
import type { Agent } from './agent.ts'
import { allowing } from './access.ts'
import type { AccessRule, PeerView, Service } from './access.ts'
import type { KnownPassports } from './known_agents.ts'
import type { SessionKey } from './profile.ts'
import type { Recording, Trails } from './trails.ts'
import type { Candidate, Trust, Trusted } from './trust.ts'
import type { Visits } from './visits.ts'
import { EMPTY, hex } from '../core/bytes.ts'
import type { Clock } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { asTunnelError, isTunnelError, TunnelError } from '../core/errors.ts'
import { RESET } from '../core/frame.ts'
import { initiate } from '../core/initiate.ts'
import { formatKey, isName, parseKey } from '../core/key.ts'
import type { Identity } from '../core/key.ts'
import type { Stream } from '../core/mux.ts'
import { openPassport } from '../core/passport.ts'
import type { Passport } from '../core/passport.ts'
import { Responder } from '../core/responder.ts'
import type { SessionRequest } from '../core/responder.ts'
import type { Session, SessionEvents } from '../core/session.ts'
import { keptEvent } from '../core/transcript.ts'
import type { TranscriptEvent } from '../core/transcript.ts'

/** Agents that may serve one name. */
const AGENTS_MAX = 64
/** From the proven handshake until the other end has let us in: a person may be asked there. */
const ADMITTED_MS_MAX = 10_000
const CHANNEL_BYTES = 16
const GROUP_BYTES = 16

/** Whoever is at the other end, as this agent knows it. */
export interface Peer {
  /** KEY. */
  key: string
  /** The name under which it was asked for, or by which it is pinned; else its fingerprint. */
  name: string
}

export interface PeerPorts {
  clock: Clock
  crypto: Crypto
  identity: Identity
  sessionKey: SessionKey
  /** 16 bytes of this process, as its links say. */
  group16: Uint8Array
  agent: Pick<Agent, 'uplink' | 'passport'>
  visits: Visits
  trust: Trust
  passports: Pick<KnownPassports, 'newest' | 'keep'>
  /** The access table as it is now. */
  access(): Promise<readonly AccessRule[]>
  /** First contacts, for the person. */
  tell(sentence: string): void
  /** Somebody was refused: who it is, as far as that is known, and what their passport calls them. */
  refused?(
    request: { service: string; peer: PeerView; calledSelf: readonly string[] },
    error: TunnelError,
  ): void
  /** A carrier was dropped, and why: nobody is told who may have been a stranger. For logs. */
  dropped?(error: TunnelError): void
  /** Keeps what passes in sessions. */
  trails: Pick<Trails, 'begin'>
}

/** What a process does with the sessions of one service that others open. */
export interface ServedService {
  /** The right that it needs; or a judge of its own, for what no rule is about. */
  needs: Service | ((view: PeerView) => boolean)
  /** Of those whom the rules let in, these alone. */
  narrows?(view: PeerView): boolean
  /** A session was let in; what comes back hears its streams. */
  session(session: Session, peer: Peer, view: PeerView): Omit<SessionEvents, 'onTranscript'>
}

/** A session of ours that was let in. */
export interface OpenedSession {
  session: Session
  peer: Peer & Pick<Trusted, 'how' | 'verified'>
}

export class Peers {
  readonly #ports: PeerPorts
  readonly #services = new Map<string, ServedService>()
  readonly #views = new WeakMap<SessionRequest['encoded'], PeerView>()
  readonly #own = new Set<Session>()
  readonly #taking = new Set<Session>()
  /** Packet channels that a service has agreed on by itself, by their names in hex. */
  readonly #expected = new Map<string, (stream: Stream) => void>()
  #emptied: (() => void)[] = []
  readonly #responder: Responder

  constructor(ports: PeerPorts) {
    this.#ports = ports
    const { crypto, clock, identity, sessionKey, group16, agent } = ports
    this.#responder = new Responder({
      crypto,
      clock,
      identity,
      staticKey: sessionKey,
      passport: () => agent.passport?.bytes ?? EMPTY,
      ciphers: SESSION_SUITES,
      group: group16,
      screen: ({ service }) => {
        if (this.#services.has(service) && agent.passport) return
        throw new TunnelError('session/refused', 'This agent does not serve that')
      },
      admit: (request) => this.#admit(request),
      onSession: (session) => this.#taken(session),
      onDropped: (error) => this.#ports.dropped?.(error),
    })
  }

  /** Sessions of others that are open. */
  get sessions(): Session[] {
    return this.#responder.sessions
  }

  /** From now on sessions of `service` are taken. */
  serve(service: string, served: ServedService): void {
    this.#services.set(service, served)
  }

  /** A stream that a peer opened to this agent: give it every one of kind session and datagrams. */
  accept(stream: Stream): void {
    const { kind, tail } = stream.visit
    if (kind === 'session') {
      stream.accept()
      this.#responder.accept(stream)
    } else if (kind === 'datagrams' && tail.length === GROUP_BYTES + CHANNEL_BYTES) {
      stream.accept()
      const channel = tail.slice(GROUP_BYTES)
      const expected = this.#expected.get(hex(channel))
      if (expected) expected(stream)
      else this.#responder.acceptChannel(stream, channel)
    } else stream.reset(RESET.refused)
  }

  /**
   * Packet channels of this name, 16 bytes, go to `take` until what comes back is called: for
   * datagrams that are sealed by themselves. False: the name is taken.
   */
  expectChannel(channel: Uint8Array, take: (stream: Stream) => void): false | (() => void) {
    const name = hex(channel)
    if (this.#expected.has(name)) return false
    this.#expected.set(name, take)
    return () => void this.#expected.delete(name)
  }

  /** Ends all sessions in good order: resolves when the others have agreed, or after 5 s. */
  async end(): Promise<void> {
    for (const session of [...this.#own, ...this.#taking]) session.close()
    if (this.#own.size + this.#taking.size === 0) return
    await new Promise<void>((resolve) => void this.#emptied.push(resolve))
  }

  #gone(session: Session): void {
    this.#own.delete(session)
    this.#taking.delete(session)
    if (this.#own.size + this.#taking.size > 0) return
    for (const resolve of this.#emptied.splice(0)) resolve()
  }

  /** Ends all sessions; those who are in them are told. */
  close(): void {
    for (const session of [...this.#own]) session.close()
    this.#responder.close()
  }

  /**
   * A session for `service` with whoever is trusted behind `words`, a name or `scope.name`. Throws
   * `trust/…`, `dial/…`, `session/…` (`session/refused`: that agent does not let us), `visit/…`,
   * `uplink/…`.
   */
  async open(
    words: string,
    service: string,
    events: Partial<Omit<SessionEvents, 'onTranscript'>> = {},
  ): Promise<OpenedSession> {
    const { tell, trust } = this.#ports
    const { name } = parseAddress(words)
    const candidates = await this.#resolve(words)
    const { trusted, first } = await trust.judge(name, candidates)
    if (first) {
      const prints = trusted.map(({ key }) => this.#print(key)).join(', ')
      tell(`first contact with "${name}": ${prints} is pinned now`)
    }
    let problem: TunnelError | undefined
    for (const one of trusted) {
      const { passport } = candidates.find(({ key }) => key === one.key)!
      try {
        return await this.#open(passport, { name, at: name, service, trusted: one, events })
      } catch (error) {
        problem = asTunnelError(error, 'session/opening')
        // Another agent of the name may be alive, but would not answer otherwise.
        if (/^session\/(refused|suite|service)/.test(problem.code)) break
      }
    }
    throw problem!
  }

  /**
   * A session with one identity that is trusted already, wherever the relay says that it is. Nobody
   * else is taken in its place, and nothing is pinned. Throws as `open` does.
   */
  async openTo(
    trusted: Trusted,
    { at, name, service, events = {} }: {
      /** The endpoint, a name or `scope.name`. */
      at: string
      /** What it is called here. */
      name: string
      service: string
      events?: Partial<Omit<SessionEvents, 'onTranscript'>>
    },
  ): Promise<OpenedSession> {
    const found = (await this.#resolve(at)).find(({ key }) => key === trusted.key)
    if (!found) throw away(name)
    // Throws where it has revoked itself.
    await this.#ports.trust.view(trusted.key)
    const endpoint = parseAddress(at).name
    return await this.#open(found.passport, { name, at: endpoint, service, trusted, events })
  }

  /** The KEY among those that serve an endpoint that fits; nothing is pinned. Throws `dial/unknown`. */
  async find(at: string, fits: (key: string) => boolean): Promise<string> {
    const found = (await this.#resolve(at)).find(({ key }) => fits(key))
    if (found) return found.key
    throw away(at)
  }

  /**
   * Whether somebody who is in a session would still be let in: rules and pins may have changed
   * since. What the relay knows is not asked again.
   */
  async mayStill(view: PeerView, service: Service): Promise<boolean> {
    const { access, trust } = this.#ports
    return allowing(await access(), await trust.refresh(view), service) !== undefined
  }

  /** Datagrams of this session get a channel over the relay. Throws `visit/…`. */
  async openChannel(opened: OpenedSession): Promise<void> {
    const channel = this.#ports.crypto.randomBytes(CHANNEL_BYTES)
    opened.session.attachChannel(await this.openPackets(opened, channel), channel)
  }

  /** A packet channel beside a session, by a name of 16 bytes that was agreed in it. Throws `visit/…`. */
  openPackets(
    { session, peer }: Pick<OpenedSession, 'session'> & { peer: Peer },
    channel: Uint8Array,
  ): Promise<Stream> {
    const tail = new Uint8Array(GROUP_BYTES + CHANNEL_BYTES)
    tail.set(session.group)
    tail.set(channel, GROUP_BYTES)
    return this.#ports.visits.open(parseKey(peer.key), {
      kind: 'datagrams',
      address: '',
      port: 0,
      endpoint: peer.name,
      tail,
    })
  }

  async #open(
    passport: Passport,
    { name, at, service, trusted, events }: {
      name: string
      /** The endpoint. */
      at: string
      service: string
      trusted: Trusted
      events: Partial<Omit<SessionEvents, 'onTranscript'>>
    },
  ): Promise<OpenedSession> {
    const { visits, crypto, clock, identity, sessionKey, agent, passports } = this.#ports
    const own = agent.passport
    if (!own) throw new TunnelError('uplink/down', 'Cannot open a session: there is no link')
    // Of those that are trusted alone, so that no stranger fills the file.
    await passports.keep(trusted.key, passport.sequence)
    const peer = { key: trusted.key, name }
    const carrier = (tail: Uint8Array): Promise<Stream> =>
      visits.open(passport.identity, {
        kind: 'session',
        address: '',
        port: 0,
        endpoint: at,
        tail,
      })
    const kept: { trail?: Recording } = {}
    const early: TranscriptEvent[] = []
    let begun: Session | undefined
    const session = begun = await initiate({
      crypto,
      clock,
      identity,
      staticKey: sessionKey,
      passport: own.bytes,
      peer: passport,
      service,
      carrier: await carrier(EMPTY),
      redial: (group) => carrier(group),
      onOpen: (stream) => {
        if (events.onOpen) events.onOpen(stream)
        else stream.reset(RESET.refused)
      },
      onState: events.onState,
      // The first record is sealed before it is known here which session it is of.
      onTranscript: (event) => kept.trail ? kept.trail.event(event) : early.push(keptEvent(event)),
      closed: (end) => {
        if (begun) this.#gone(begun)
        kept.trail?.closed()
        events.closed?.(end)
      },
    })
    const trail = kept.trail = this.#record(session)
    for (const event of early.splice(0)) trail.event(event)
    if (session.ended) trail.closed()
    else this.#own.add(session)
    await this.#letIn(session, name)
    return { session, peer: { ...peer, how: trusted.how, verified: trusted.verified } }
  }

  async #letIn(session: Session, name: string): Promise<void> {
    const late = this.#ports.clock.after(ADMITTED_MS_MAX, () => session.close(RESET.timeout))
    try {
      await session.admitted()
    } catch (error) {
      const { code, message, hint } = asTunnelError(error, 'session/refused')
      throw new TunnelError(code, `Cannot reach "${name}": ${message}`, {
        hint: hint ?? 'Whoever runs it lets you in by: sotto peers trust, sotto access allow',
        cause: error,
      })
    } finally {
      late.cancel()
    }
  }

  /** Who serves a name now, each with a passport that holds. Throws `dial/unknown`, `passport/…`. */
  async #resolve(
    words: string,
  ): Promise<(Candidate & { passport: Passport })[]> {
    const { agent, crypto, clock, passports } = this.#ports
    const wanted = parseAddress(words)
    const { name } = wanted
    const reply = await agent.uplink.request({ do: 'resolve', name })
    const { scope } = reply
    const isOther = wanted.scope !== undefined && wanted.scope !== scope
    const agents = isOther ? [] : reply['agents']
    const found: (Candidate & { passport: Passport })[] = []
    let problem: TunnelError | undefined
    for (const one of Array.isArray(agents) ? agents.slice(0, AGENTS_MAX) : []) {
      const { key, passport, statements, more } = one as Record<string, unknown>
      if (typeof key !== 'string' || typeof passport !== 'string') continue
      try {
        const opened = openPassport(crypto, fromBase64(passport), {
          now: clock.now(),
          identity: parseKey(key),
          afterSequence: await passports.newest(key) - 1,
        })
        if (!opened.staticKey) throw oldAgent(name)
        found.push({
          key,
          passport: opened,
          statements: readStatements(statements),
          more: more === true,
          ...(typeof scope === 'string' ? { scope } : {}),
        })
      } catch (error) {
        problem = asTunnelError(error, 'dial/passport')
      }
    }
    if (found.length === 0) throw problem ?? away(words)
    return found
  }

  async #admit(request: SessionRequest): Promise<void> {
    const { trust, access } = this.#ports
    const key = formatKey(request.identity)
    const view = await trust.view(key)
    const served = this.#services.get(request.service)
    const needs = served?.needs
    const may = typeof needs === 'function'
      ? needs(view)
      : needs !== undefined && allowing(await access(), view, needs) !== undefined
    if (may && (served?.narrows?.(view) ?? true)) {
      this.#views.set(request.encoded, view)
      return
    }
    const error = new TunnelError(
      'session/refused',
      `${view.fingerprint} may not use "${request.service}" here`,
    )
    const calledSelf = request.passport.names
    this.#ports.refused?.({ service: request.service, peer: view, calledSelf }, error)
    throw error
  }

  #taken(session: Session): SessionEvents {
    const view = this.#views.get(session.peer.encoded)!
    this.#views.delete(session.peer.encoded)
    const name = view.names[0] ?? view.vouched[0]?.names[0] ?? view.fingerprint
    const peer = { key: view.key, name }
    const trail = this.#record(session)
    const events = this.#services.get(session.service)!.session(session, peer, view)
    this.#taking.add(session)
    return {
      ...events,
      onTranscript: (event) => trail.event(event),
      closed: (end) => {
        this.#gone(session)
        trail.closed()
        events.closed(end)
      },
    }
  }

  #record({ id, role, service, peer }: Session): Recording {
    const own = this.#ports.identity.public
    const [initiator, responder] = role === 'initiator'
      ? [own, peer.identity]
      : [peer.identity, own]
    return this.#ports.trails.begin({ session: id, initiator, responder, role, service })
  }

  #print(key: string): string {
    return this.#ports.trust.print(key)
  }
}

/**
 * `name` or `scope.name`: a name is unique on its relay, so that the scope is there to be compared.
 * Throws `dial/name`.
 */
export function parseAddress(words: string): { scope: string | undefined; name: string } {
  const parts = words.split('.')
  if (parts.length <= 2 && parts.every((part) => isName(part))) {
    return parts.length === 2
      ? { scope: parts[0]!, name: parts[1]! }
      : { scope: undefined, name: words }
  }
  throw new TunnelError(
    'dial/name',
    `Cannot reach "${words}": expected a name such as "db", or SCOPE.NAME`,
    { hint: 'See "sotto agents".' },
  )
}

function away(name: string): TunnelError {
  return new TunnelError('dial/unknown', `Cannot reach "${name}": nobody is there`, {
    hint: 'It may be away, or not be shown to your scope: see "sotto agents".',
  })
}

/** The relay's statements about an identity, as it gave them; nothing is believed yet. */
export function readStatements(value: unknown): Uint8Array[] {
  if (!Array.isArray(value)) return []
  return value.slice(0, 64).flatMap((one) => {
    try {
      return typeof one === 'string' ? [fromBase64(one)] : []
    } catch {
      return []
    }
  })
}

/** True for errors after which another try may do better. */
export function isPassing(error: unknown): boolean {
  return isTunnelError(error) &&
    /^(uplink|visit|dial\/unknown|session\/(unanswered|timeout|lost|opening)|stream)/.test(
      error.code,
    )
}

function oldAgent(name: string): TunnelError {
  return new TunnelError(
    'dial/passport',
    `Cannot open a session with "${name}": its passport has no key for sessions`,
    { hint: 'Update sotto on that machine.' },
  )
}
