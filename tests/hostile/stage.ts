/**
 * Alice and Bob, two whole agents with profiles of their own, on a relay that lies. They write down
 * every error that they are told, everything that they send, and everything that reaches them.
 */
import type { AccessRule } from '../../agent/access.ts'
import { join } from '../../agent/join.ts'
import type { Joining } from '../../agent/join.ts'
import type { OpenedSession } from '../../agent/peers.ts'
import { Presence } from '../../agent/presence.ts'
import type { PresenceOptions } from '../../agent/presence.ts'
import { concat, EMPTY, text, utf8 } from '../../core/bytes.ts'
import type { Crypto } from '../../core/crypto.ts'
import { isTunnelError } from '../../core/errors.ts'
import { fingerprint, formatKey } from '../../core/key.ts'
import type { Stream } from '../../core/mux.ts'
import type { Session, SessionEvents } from '../../core/session.ts'
import { pattern, testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'
import { WarpClock } from '../support/warp_clock.ts'
import { HostileRelay } from './relay.ts'

export const SERVICE = 'echo'
/** Where a person's own eyes are the last defence: what they say when two strings differ. */
export const PEOPLE_DIFFER = 'people/differ'
const TURN_MS = 5
const SKIP_MS = 500

export interface Actor {
  name: string
  key: string
  print: string
  joining: Joining
  presence: Presence
  /** Sentences that the person was told. */
  told: string[]
  test: TestWorld
}

export interface Heard {
  who: string
  where: string
  code: string
}

interface Arrived {
  who: string
  id: string
  bytes: Uint8Array
  isEnded: boolean
}

export interface ActorOptions {
  scope?: string
  crypto?: (honest: Crypto, stage: Stage) => Crypto
  onPair?: PresenceOptions['onPair']
  /** A name to be there under; its own by default, none where empty. */
  announce?: string
}

export class Stage {
  readonly relay: HostileRelay
  readonly clock = new WarpClock()
  readonly heard: Heard[] = []
  /** What was said under each id, and by whom. */
  readonly sent = new Map<string, Uint8Array>()
  readonly arrived: Arrived[] = []
  readonly sessionsOfBob: Session[] = []
  readonly actors: Actor[] = []
  /** Those in `heard` whose word counts for nothing. */
  readonly liars = new Set<string>()
  /** Of what a scene has opened beside the people. */
  readonly closers: (() => void)[] = []
  readonly marker: string
  #wake: (() => void)[] = []
  #said = 0

  static async open(): Promise<Stage> {
    return new Stage(await HostileRelay.open())
  }

  private constructor(relay: HostileRelay) {
    this.relay = relay
    this.marker = `eagle-${relay.star.relay.crypto.randomBytes(12).toHex()}`
    relay.onClosed = (link, code, reason) => {
      if (code === 4400) this.hear(this.nameOf(link.agent), 'link', reason)
    }
  }

  nameOf(key: string): string {
    return this.actors.find((one) => one.key === key)?.name ?? 'stranger'
  }

  isHonest(who: string): boolean {
    // Alice may be on her way in still.
    return !this.liars.has(who) && who !== 'relay' && who !== 'stranger'
  }

  actor(name: string): Actor {
    return this.actors.find((one) => one.name === name)!
  }

  hear(who: string, where: string, error: unknown): void {
    if (error === undefined) return
    const code = typeof error === 'string' ? error : isTunnelError(error) ? error.code : `${error}`
    this.heard.push({ who, where, code })
    for (const wake of this.#wake.splice(0)) wake()
  }

  /** Until something new was heard, or a few milliseconds are over. */
  turn(ms = TURN_MS): Promise<void> {
    return new Promise((resolve) => {
      this.#wake.push(resolve)
      setTimeout(resolve, ms)
    })
  }

  async enter(name: string, options: ActorOptions = {}): Promise<Actor> {
    const { scope = 'alice', crypto, onPair, announce = name } = options
    const { secret } = await this.relay.star.credentials.create({ kind: 'key', scope })
    const test = await testWorld({ SOTTO_API_KEY: secret })
    const world = {
      ...test.world,
      clock: this.clock,
      ...(crypto ? { crypto: crypto(test.world.crypto, this) } : {}),
    }
    const told: string[] = []
    const identity = this.relay.star.relay.identity.public
    const choice = { relay: this.relay.url, fingerprint: fingerprint(world.crypto, identity) }
    const joining = await join(world, choice, (line) => told.push(line))
    const presence = await Presence.open(world, {
      joining,
      tell: (sentence) => void told.push(sentence),
      refused: (_, error) => this.hear(name, 'refused', error),
      dropped: (error) => this.hear(name, 'dropped', error),
      ...(onPair ? { onPair } : {}),
    })
    const key = formatKey(joining.identity.public)
    const print = fingerprint(world.crypto, joining.identity.public)
    const actor = { name, key, print, joining, presence, told, test }
    this.actors.push(actor)
    await presence.ready()
    if (announce !== '') await presence.agent.announce(announce)
    return actor
  }

  /** Alice has pinned Bob, and Bob lets Alice in. */
  async introduce(alice: Actor, bob: Actor): Promise<void> {
    await this.pin(alice, bob.name, bob.key)
    await this.allow(bob, { peer: alice.key, services: ['a2a'] })
  }

  async pin(who: Actor, name: string, key: string, authority = false): Promise<void> {
    await who.joining.profile.knownAgents().trust(name, key, { how: 'code', authority })
  }

  async allow(who: Actor, rule: AccessRule): Promise<void> {
    await who.joining.profile.changeAccess((rules) => ({ rules: [...rules, rule], answer: true }))
  }

  /** Takes sessions and says back whatever it is told. */
  serveEcho(who: Actor): void {
    who.presence.peers.serve(SERVICE, {
      needs: 'a2a',
      session: (session) => {
        if (who.name === 'bob') this.sessionsOfBob.push(session)
        return { ...this.events(who.name), onOpen: (stream) => this.#echo(who.name, stream) }
      },
    })
  }

  events(who: string): Omit<SessionEvents, 'onTranscript' | 'onOpen'> {
    return {
      onState: (_, error) => this.hear(who, 'state', error),
      closed: ({ error }) => this.hear(who, 'end', error),
    }
  }

  #echo(who: string, stream: Stream): void {
    stream.accept()
    const id = text(stream.visit.tail)
    void this.#collect(stream, { who, id }).then((bytes) => {
      const answer = concat(utf8('echo of '), bytes)
      this.sent.set(`${id}>`, answer)
      stream.write(answer)
      stream.end()
    }, () => {})
  }

  /** What a stream brings until its end; rejects where it is broken off. */
  #collect(stream: Stream, { who, id }: { who: string; id: string }): Promise<Uint8Array> {
    const got: Arrived = { who, id, bytes: EMPTY, isEnded: false }
    this.arrived.push(got)
    return new Promise((resolve, reject) => {
      stream.handle({
        data: (bytes) => void (got.bytes = concat(got.bytes, bytes)),
        end: () => {
          got.isEnded = true
          resolve(got.bytes)
        },
        closed: (error) => {
          this.hear(who, 'stream', error)
          reject(error ?? new Error('closed'))
        },
      })
    })
  }

  /** One message and its echo. Rejects with what stopped it. */
  async say(session: Session, bytes = 150_000): Promise<void> {
    const id = `message ${++this.#said}`
    const message = concat(utf8(`${this.marker} `), pattern(bytes, this.#said), utf8(this.marker))
    this.sent.set(id, message)
    const stream = session.open(utf8(id))
    const answer = this.#collect(stream, { who: 'alice', id: `${id}>` })
    stream.write(message)
    stream.end()
    await answer
  }

  open(name = 'bob'): Promise<OpenedSession> {
    return this.actor('alice').presence.peers.open(name, SERVICE, this.events('alice'))
  }

  /** Time passes until `done` says so, at most `ms` of the agents' own. */
  async pass(ms: number, done: () => boolean): Promise<void> {
    for (let left = ms; left > 0 && !done(); left -= SKIP_MS) {
      this.clock.skip(Math.min(SKIP_MS, left))
      // Links must stay alive meanwhile: pings are answered in real time.
      await Promise.all(
        this.actors.map(({ presence }) =>
          presence.agent.uplink.request({ do: 'passport' }).catch(() => {})
        ),
      )
      await this.turn()
    }
  }

  /** What reached somebody and was not said to them so; undefined where all is well. */
  untrue(): string | undefined {
    const seen = new Set<string>()
    for (const { who, id, bytes, isEnded } of this.arrived) {
      if (seen.has(id)) return `${who} got ${id} twice`
      seen.add(id)
      const sent = this.sent.get(id)
      if (!sent && bytes.length === 0 && !isEnded) continue
      if (!sent) return `${who} got ${bytes.length} bytes of ${id}, which nobody sent`
      const whole = Buffer.from(sent)
      if (!whole.subarray(0, bytes.length).equals(bytes)) return `${who} got other bytes in ${id}`
      if (isEnded && bytes.length !== sent.length) return `${who} took a cut ${id} for a whole one`
    }
    return undefined
  }

  /** Everything that was said has arrived, and its end. */
  get complete(): boolean {
    return this.sent.size > 0 &&
      [...this.sent.keys()].every((id) => this.arrived.some((one) => one.id === id && one.isEnded))
  }

  /** Words of anybody that crossed the relay in clear. */
  leaked(): string | undefined {
    const words = [this.marker, `echo of ${this.marker}`, Buffer.from(this.marker).toString('hex')]
    for (const word of [...words, Buffer.from(this.marker).toString('base64').slice(0, -4)]) {
      if (this.relay.saw(utf8(word))) return word
    }
    for (const content of this.sent.values()) {
      const at = content.length >> 1
      if (content.length > 1000 && this.relay.saw(content.slice(at, at + 16))) return 'content'
    }
    return undefined
  }

  async close(): Promise<void> {
    for (const close of this.closers) close()
    for (const { presence } of this.actors) presence.close()
    await this.relay.close()
    for (const { test } of this.actors) await test.close()
  }
}
