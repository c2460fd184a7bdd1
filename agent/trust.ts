/**
 * Whom this agent believes: pins, the successors that pinned identities signed, and what pinned
 * authorities vouch for. The relay hands out keys, passports and statements; here is decided what they
 * are worth. What is not certain stops, with the old and the new fingerprint and what accepts it.
 */
import { equal } from '../core/bytes.ts'
import type { Clock } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { TunnelError } from '../core/errors.ts'
import { fingerprint, formatKey, parseKey } from '../core/key.ts'
import {
  checkVouch,
  follow,
  openStatement,
  ROTATIONS_MAX,
  STATEMENT_SKEW_MS,
} from '../core/statement.ts'
import type { Rotation, Statement, Vouch } from '../core/statement.ts'
import type { PeerView } from './access.ts'
import { isPinOf, pinPrint } from './known_agents.ts'
import type { KnownAgent, KnownAgents, PinHow } from './known_agents.ts'

/** Statements that are looked at, of one identity. */
const STATEMENTS_MAX = 64
/** Identities along one chain of successors whose statements are asked for. */
const CHAIN_MAX = ROTATIONS_MAX + 2

/** An identity that the relay says serves a name, with the statements that it keeps about it. */
export interface Candidate {
  /** KEY. */
  key: string
  statements: readonly Uint8Array[]
  /** There are more than these. */
  more?: boolean
  /** In which the relay says that the name is; a vouch may be for one scope alone. */
  scope?: string
}

/** Pins that moved to the successor that their identity signed. */
export interface FollowedPin {
  /** KEYs. */
  from: string
  to: string
  /** Under which it was pinned. */
  names: string[]
}

/** An identity that is trusted to serve a name, and why. */
export interface Trusted {
  /** KEY. */
  key: string
  how: PinHow | 'authority'
  verified: boolean
}

export interface Judgement {
  trusted: Trusted[]
  /** Nobody was pinned to the name before: these are now. */
  first: boolean
  /** Pins that moved to a successor; `TrustPorts.followed` was told of each. */
  followed: FollowedPin[]
}

/** What is known already. */
interface Heard {
  said: readonly Statement[]
  /** KEYs whose statements these are. */
  asked: ReadonlyMap<string, readonly Statement[]>
}

const NOTHING: Heard = { said: [], asked: new Map() }

export interface TrustPorts {
  crypto: Crypto
  clock: Pick<Clock, 'now'>
  known: KnownAgents
  /** The newest withdrawal list seen of each authority, kept between runs; see `Withdrawals`. */
  withdrawals: Withdrawals
  /** What the relay keeps about a KEY; none where it has none or does not answer. */
  statements(key: string): Promise<readonly Uint8Array[]>
  /** Pins moved: the person is told. */
  followed?(pins: FollowedPin): void
}

/** Serial numbers that an authority took back: the highest sequence number seen wins. */
export interface Withdrawals {
  newest(authority: string): Promise<{ sequence: number; serials: readonly number[] } | undefined>
  keep(authority: string, sequence: number, serials: readonly number[]): Promise<void>
}

export class Trust {
  readonly #ports: TrustPorts

  constructor(ports: TrustPorts) {
    this.#ports = ports
  }

  /** The fingerprint of a KEY. */
  print(key: string): string {
    return fingerprint(this.#ports.crypto, parseKey(key))
  }

  /**
   * Which of the candidates may be taken for `name`. Throws `trust/changed` when others are pinned,
   * `trust/revoked` when the pinned identity or all that serve revoked themselves, `trust/split` when
   * one signed two successors, `trust/circle`, `trust/steps`, `trust/none` when there is nobody.
   */
  async judge(name: string, candidates: readonly Candidate[]): Promise<Judgement> {
    const { known } = this.#ports
    const opened = candidates.map((one) => ({ ...one, said: this.#open(one.statements) }))
    // What came with the answer needs no second question.
    const asked = new Map(opened.flatMap(({ key, said, more }) => more ? [] : [[key, said]]))
    const followed = await this.#followPins(await known.find(name), {
      said: opened.flatMap((one) => one.said),
      asked,
    })
    const pins = await known.find(name)
    await this.#refuseRevokedPins(name, pins)
    const live = await this.#unrevoked(opened, pins)
    if (live.length === 0) throw nobody(name)
    if (pins.length === 0) {
      const vouched = await this.#vouchedFor(name, live)
      if (vouched.length > 0) return { trusted: vouched, first: false, followed }
    }
    // Pins or first use; throws when others are pinned.
    const { trusted, first } = await known.check(name, live.map(({ key }) => key))
    return {
      trusted: trusted.map((key) => {
        const pin = pins.find((one) => isPinOf(this.#ports.crypto, one, key))
        return { key, how: pin?.how ?? 'first-use', verified: pin?.verified ?? false }
      }),
      first,
      followed,
    }
  }

  /**
   * What is known of an identity that came to us. Throws `trust/revoked`, `trust/split`,
   * `trust/circle`, `trust/steps`. Statements are asked of the relay; what it keeps back is missing
   * and lets nobody in.
   */
  async view(key: string): Promise<PeerView> {
    const { crypto, known } = this.#ports
    const identity = parseKey(key)
    const statements = this.#open(await this.#ports.statements(key))
    const gone = await known.revoked()
    const vouches = await this.#validVouches(identity, statements)
    if (gone.includes(key) || isRevoked(identity, statements)) {
      if (vouches.length > 0 || await this.#isPinned(key)) await known.revoke(key)
      throw revoked(fingerprint(crypto, identity))
    }
    await this.#followTo(identity, statements)
    return {
      key,
      fingerprint: fingerprint(crypto, identity),
      names: await this.#friendNames(key),
      vouched: vouches.map(({ authority, vouch }) => ({
        authority,
        names: vouch.names,
        labels: vouch.labels,
      })),
    }
  }

  /** A view with the pins as they are now; none of the relay's statements are asked for again. */
  async refresh(view: PeerView): Promise<PeerView> {
    const { known } = this.#ports
    if ((await known.revoked()).includes(view.key)) return { ...view, names: [], vouched: [] }
    const authorities = (await known.authorities()).map(({ name }) => name)
    return {
      ...view,
      names: await this.#friendNames(view.key),
      vouched: view.vouched.filter(({ authority }) => authorities.includes(authority)),
    }
  }

  async #friendNames(key: string): Promise<string[]> {
    const { crypto, known } = this.#ports
    const names = (await known.list())
      .filter((pin) => isPinOf(crypto, pin, key) && (pin.how !== 'first-use' || pin.verified))
      .map(({ name }) => name)
    return [...new Set(names)]
  }

  async #isPinned(key: string): Promise<boolean> {
    const { known, crypto } = this.#ports
    const pins = [...await known.list(), ...await known.authorities()]
    return pins.some((pin) => isPinOf(crypto, pin, key))
  }

  /**
   * Those that have not revoked themselves. What pinned or vouched ones revoked is remembered: a
   * relay could make up any number of strangers that did. Throws `trust/revoked` when none is left.
   */
  async #unrevoked<C extends Candidate & { said: Statement[] }>(
    candidates: readonly C[],
    pins: readonly KnownAgent[],
  ): Promise<C[]> {
    const { known, crypto } = this.#ports
    const gone = await known.revoked()
    const live: C[] = []
    for (const candidate of candidates) {
      const { key, said } = candidate
      if (gone.includes(key)) continue
      const identity = parseKey(key)
      if (!isRevoked(identity, said)) {
        live.push(candidate)
        continue
      }
      const matters = pins.some((pin) => isPinOf(crypto, pin, key)) ||
        (await this.#validVouches(identity, said)).length > 0
      if (matters) await known.revoke(key)
    }
    if (live.length > 0 || candidates.length === 0) return live
    throw revoked(candidates.map(({ key }) => this.print(key)).join(' and '))
  }

  async #refuseRevokedPins(name: string, pins: readonly KnownAgent[]): Promise<void> {
    const { known, crypto } = this.#ports
    const gone = await known.revoked()
    const dead = pins.filter((pin) => gone.some((key) => isPinOf(crypto, pin, key)))
    if (dead.length === 0 || dead.length < pins.length) return
    throw revoked(dead.map((pin) => pinPrint(crypto, pin)).join(' and '), name)
  }

  /** Moves pins of these to the successors that they signed. */
  async #followPins(pins: readonly KnownAgent[], { said, asked }: Heard): Promise<FollowedPin[]> {
    const { known, crypto } = this.#ports
    const followed: FollowedPin[] = []
    for (const pin of pins) {
      const key = this.#keyOf(pin, said)
      if (key === undefined) continue
      const statements = [...said, ...await this.#chain(key, asked)]
      const led = follow(crypto, parseKey(key), since(statements, pin))
      if (led.kind === 'revoked') {
        // Whatever led there is worth nothing any more.
        await known.revoke(key)
        await known.revoke(formatKey(led.identity))
        continue
      }
      if (led.steps.length === 0) continue
      const to = formatKey(led.identity)
      const moved = { from: key, to, names: await known.succeed(key, to) }
      if (moved.names.length === 0) continue
      followed.push(moved)
      this.#ports.followed?.(moved)
    }
    return followed
  }

  /** The KEY of a pin; of a fingerprint alone, that of a statement which it signed. */
  #keyOf(pin: KnownAgent, said: readonly Statement[]): string | undefined {
    if (!pin.key.startsWith('SHA256:')) return pin.key
    const old = said.find((one): one is Rotation =>
      one.kind === 'rotation' && isPinOf(this.#ports.crypto, pin, formatKey(one.old))
    )
    return old && formatKey(old.old)
  }

  /**
   * Whoever comes may be the successor of somebody pinned, or somebody pinned that has a successor:
   * back along the rotations to whoever is pinned, and forth from there.
   */
  async #followTo(identity: Uint8Array, statements: readonly Statement[]): Promise<void> {
    const { known, crypto } = this.#ports
    const pins = await known.list()
    const said = [...statements]
    const seen = new Set<string>()
    const queue = [identity]
    while (queue.length > 0 && seen.size < CHAIN_MAX) {
      const at = queue.shift()!
      const key = formatKey(at)
      if (seen.has(key)) continue
      seen.add(key)
      const own = pins.filter((pin) => isPinOf(crypto, pin, key))
      if (own.length > 0) {
        await this.#followPins(own, { said, asked: new Map([[formatKey(identity), statements]]) })
        return
      }
      if (at !== identity) said.push(...this.#open(await this.#ports.statements(key)))
      for (const one of said) {
        if (one.kind === 'rotation' && equal(one.new, at)) queue.push(one.old)
      }
    }
  }

  /** The statements of an identity and of the successors that they name, as far as they lead. */
  async #chain(key: string, asked: Heard['asked']): Promise<Statement[]> {
    const all: Statement[] = []
    const seen = new Set<string>()
    const queue = [key]
    while (queue.length > 0 && seen.size < CHAIN_MAX) {
      const next = queue.shift()!
      if (seen.has(next)) continue
      seen.add(next)
      const found = asked.get(next) ?? this.#open(await this.#ports.statements(next))
      all.push(...found)
      for (const one of found) {
        if (one.kind === 'rotation' && formatKey(one.old) === next) queue.push(formatKey(one.new))
      }
    }
    return all
  }

  async #vouchedFor(
    name: string,
    candidates: readonly (Candidate & { said: Statement[] })[],
  ): Promise<Trusted[]> {
    const trusted: Trusted[] = []
    for (const { key, said, scope } of candidates) {
      const vouches = await this.#validVouches(parseKey(key), said)
      const isNamed = ({ vouch }: { vouch: Vouch }): boolean =>
        vouch.names.includes(name) && (vouch.scope === '' || vouch.scope === scope)
      if (!vouches.some(isNamed)) continue
      trusted.push({ key, how: 'authority', verified: false })
    }
    return trusted
  }

  /** What pinned authorities say of an identity now. Throws `trust/split` and what following throws. */
  async #validVouches(
    identity: Uint8Array,
    statements: readonly Statement[],
  ): Promise<{ authority: string; vouch: Vouch }[]> {
    const { known, crypto, clock } = this.#ports
    const vouches = statements.filter((one): one is Vouch =>
      one.kind === 'vouch' && equal(one.identity, identity)
    )
    if (vouches.length === 0) return []
    // An authority may have rotated or revoked itself too.
    await this.#followPins(await known.authorities(), NOTHING)
    const authorities = await known.authorities()
    const gone = await known.revoked()
    const withdrawn = new Map<string, readonly number[]>()
    const valid: { authority: string; vouch: Vouch }[] = []
    for (const vouch of vouches) {
      const key = formatKey(vouch.authority)
      const pin = authorities.find((each) => isPinOf(crypto, each, key))
      if (!pin || gone.includes(key)) continue
      try {
        checkVouch(vouch, { now: clock.now() })
      } catch {
        // Early or run out: as if it were not there.
        continue
      }
      const serials = withdrawn.get(key) ?? await this.#withdrawn(key)
      withdrawn.set(key, serials)
      if (!serials.includes(vouch.serial)) valid.push({ authority: pin.name, vouch })
    }
    return valid
  }

  /** Serials of a pinned authority that are worth nothing, by the newest list seen in any run. */
  async #withdrawn(authority: string): Promise<readonly number[]> {
    const { withdrawals, statements } = this.#ports
    let newest = await withdrawals.newest(authority)
    for (const one of this.#open(await statements(authority))) {
      if (one.kind !== 'withdrawal' || formatKey(one.authority) !== authority) continue
      // An older one is a replay.
      if (newest && one.sequence < newest.sequence) continue
      if (newest?.sequence === one.sequence) {
        if (newest.serials.join() !== one.serials.join()) throw this.#twoLists(authority, one)
        continue
      }
      newest = { sequence: one.sequence, serials: one.serials }
      await withdrawals.keep(authority, one.sequence, one.serials)
    }
    return newest?.serials ?? []
  }

  #twoLists(authority: string, { sequence }: { sequence: number }): TunnelError {
    return new TunnelError(
      'trust/split',
      `Cannot trust the authority ${
        this.print(authority)
      }: found two lists of withdrawals that differ under number ${sequence}`,
      { hint: 'It was restored from a backup, or somebody else has its key. Ask whoever runs it.' },
    )
  }

  /** Those that hold; a relay may hand out anything. */
  #open(statements: readonly Uint8Array[]): Statement[] {
    return statements.slice(0, STATEMENTS_MAX).flatMap((bytes) => {
      try {
        return [openStatement(this.#ports.crypto, bytes)]
      } catch {
        return []
      }
    })
  }
}

/**
 * Without rotations that were signed before a person, or a first contact, pinned this very identity:
 * that decision is the newer one, and an old rotation may be a replay. Two clocks may differ.
 */
function since(statements: readonly Statement[], { how, when }: KnownAgent): readonly Statement[] {
  if (how === 'rotation') return statements
  const pinnedMs = Date.parse(when) - STATEMENT_SKEW_MS
  return statements.filter((one) => one.kind !== 'rotation' || one.time >= pinnedMs)
}

/** What a person is told of pins that moved. */
export function followedWords(crypto: Crypto, { to, names }: FollowedPin): string {
  return `${names.join(', ')} has a new identity, signed by the old one: ${
    fingerprint(crypto, parseKey(to))
  }`
}

function isRevoked(identity: Uint8Array, statements: readonly Statement[]): boolean {
  return statements.some((one) => one.kind === 'revocation' && equal(one.identity, identity))
}

function nobody(name: string): TunnelError {
  return new TunnelError('trust/none', `Cannot trust "${name}": nobody serves it now`, {
    hint: 'Check the name, and that its agent runs ("sotto status" there).',
  })
}

function revoked(print: string, name?: string): TunnelError {
  return new TunnelError(
    'trust/revoked',
    `Cannot trust ${name === undefined ? print : `"${name}" (${print})`}: it has revoked itself`,
    {
      hint: 'Its owner said that this identity must not be used any more: the key may be stolen. ' +
        'Ask by another way for the new one, then: sotto peers forget, sotto peers trust.',
    },
  )
}
