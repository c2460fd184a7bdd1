/**
 * One process of this identity that peers can reach and that reaches peers: the uplink, the links to
 * other stars, trust and sessions, wired together for the commands that need them.
 */
import type { Agent, AgentOptions } from './agent.ts'
import { askStatements } from './enquiry.ts'
import type { Joining } from './join.ts'
import { isFinal, joinedAgent, linkPorts } from './joined_agent.ts'
import { Peers } from './peers.ts'
import type { PeerPorts } from './peers.ts'
import type { Trails } from './trails.ts'
import { followedWords, Trust } from './trust.ts'
import type { UplinkState } from './uplink.ts'
import { Visits } from './visits.ts'
import type { World } from './world.ts'
import { hex } from '../core/bytes.ts'
import { isTunnelError, TunnelError } from '../core/errors.ts'
import type { Stream } from '../core/mux.ts'

/** From the start until the relay has let us in, where a command waits for it. */
const READY_MS_MAX = 30_000
/** Names near one that is taken: each ends in two random bytes. */
const NEAR_ATTEMPTS_MAX = 4
const NEAR_BYTES = 2

export interface PresenceOptions {
  joining: Joining
  tell(sentence: string): void
  onState?(state: UplinkState): void
  onNotice?(notice: { code: string; message: string }): void
  refused?: PeerPorts['refused']
  dropped?: PeerPorts['dropped']
  /** Streams of kind `pair`. */
  onPair?(stream: Stream): void
  /** Endpoints of the agent that the relay took, or refused; with the latter, that ends no link. */
  onClaimed?: AgentOptions['onClaimed']
  onRefused?: AgentOptions['onRefused']
}

export class Presence {
  readonly agent: Agent
  readonly peers: Peers
  readonly trust: Trust
  readonly visits: Visits
  readonly trails: Trails
  readonly #ready: Promise<void>
  readonly #random: () => Uint8Array

  /** Starts joining at once; `ready` tells when the relay has let us in. */
  static async open(world: World, options: PresenceOptions): Promise<Presence> {
    const { profile } = options.joining
    return new Presence(world, { ...options, sessionKey: await profile.sessionKey() })
  }

  private constructor(
    world: World,
    options: PresenceOptions & Pick<PeerPorts, 'sessionKey'>,
  ) {
    const { joining, sessionKey, tell } = options
    const { clock, crypto } = world
    const { profile, identity, group16 } = joining
    this.#random = () => crypto.randomBytes(NEAR_BYTES)
    let up!: () => void
    let fail!: (error: unknown) => void
    this.#ready = new Promise<void>((resolve, reject) => {
      up = resolve
      fail = reject
    })
    this.#ready.catch(() => {})
    const state = (next: UplinkState): void => {
      if (next.kind === 'up') up()
      else if (next.kind === 'refused') fail(next.error)
      options.onState?.(next)
    }
    const unopened = (error: unknown): void => {
      // Coming back would not make the relay another one.
      if (isFinal(error)) fail(error)
    }
    this.agent = joinedAgent(world, joining, {
      unopened,
      bulkLinks: false,
      sessionPublic: sessionKey.public32,
      onPeer: (stream) => {
        if (stream.visit.kind !== 'pair') this.peers.accept(stream)
        else if (options.onPair) options.onPair(stream)
        else stream.reset(1, 'nobody waits with a code here')
      },
      onState: state,
      ...(options.onNotice ? { onNotice: options.onNotice } : {}),
      ...(options.onClaimed ? { onClaimed: options.onClaimed } : {}),
      ...(options.onRefused ? { onRefused: options.onRefused } : {}),
    })
    const { uplink } = this.agent
    this.visits = new Visits({
      clock,
      link: { ...linkPorts(joining, unopened), clock, crypto },
      relayKey: () => uplink.up?.relayKey,
    })
    this.trust = new Trust({
      crypto,
      clock,
      known: profile.knownAgents(),
      withdrawals: profile.knownWithdrawals(),
      statements: (key) => this.statements(key),
      followed: (pins) => tell(followedWords(crypto, pins)),
    })
    this.trails = profile.trails(({ message, hint }) => {
      const words = `${message}; sessions go on, and what passes in them is not kept`
      tell(hint === undefined ? words : `${words}. ${hint}`)
    })
    this.peers = new Peers({
      clock,
      crypto,
      identity,
      sessionKey,
      group16,
      agent: this.agent,
      visits: this.visits,
      trust: this.trust,
      passports: profile.knownPassports(),
      access: () => profile.access(),
      tell,
      ...(options.refused ? { refused: options.refused } : {}),
      ...(options.dropped ? { dropped: options.dropped } : {}),
      trails: this.trails,
    })
    this.agent.start()
    clock.after(READY_MS_MAX, () =>
      fail(
        new TunnelError('uplink/timeout', `Cannot reach the relay ${joining.relay.host} in 30 s`, {
          hint: 'Check the address and the network; "sotto status" shows what is set.',
        }),
      ))
  }

  /** When the relay has let us in. Throws what it refused with, `uplink/timeout`. */
  ready(): Promise<void> {
    return this.#ready
  }

  /**
   * Claims a name that nobody chose, or one near it where another scope has that: whoever looks for
   * it has to be told, or knows the KEY. Throws what the relay refuses with.
   */
  async announceNear(base: string): Promise<string> {
    for (let attempt = 1;; attempt++) {
      const name = attempt === 1 ? base : `${base}-${hex(this.#random())}`
      try {
        await this.agent.announce(name)
        return name
      } catch (error) {
        if (!isTunnelError(error, 'registry/taken') || attempt === NEAR_ATTEMPTS_MAX) throw error
      }
    }
  }

  /** What the relay keeps about a KEY, unverified; none where it does not answer. */
  async statements(key: string): Promise<Uint8Array[]> {
    return await askStatements(this.agent.uplink, key)
  }

  /** Ends the sessions in good order, which takes 5 s at most, and then all the rest. */
  async end(): Promise<void> {
    await this.peers.end()
    this.close()
    await this.trails.close()
  }

  close(): void {
    this.peers.close()
    this.visits.close()
    this.agent.close()
  }
}
