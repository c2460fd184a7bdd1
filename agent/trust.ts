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
import { checkVouch, follow, openStatement } from '../core/statement.ts'
import type { Statement, Vouch } from '../core/statement.ts'
import type { PeerView } from './access.ts'
import { isPinOf } from './known_agents.ts'
import type { KnownAgent, KnownAgents, PinHow } from './known_agents.ts'

/** Statements that are looked at, of one identity and along one chain of successors. */
const STATEMENTS_MAX = 64

/** An identity that the relay says serves a name, with the statements that it keeps about it. */
export interface Candidate {
  /** KEY. */
  key: string
  statements: readonly Uint8Array[]
  /** In which the relay says that the name is; a vouch may be for one scope alone. */
  scope?: string
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
  /** Pins that moved to a successor: the person is told. */
  followed: { from: string; to: string; names: string[] }[]
}

export interface TrustPorts {
  crypto: Crypto
  clock: Pick<Clock, 'now'>
  known: KnownAgents
  /** The newest withdrawal list seen of each authority, kept between runs; see `Withdrawals`. */
  withdrawals: Withdrawals
  /** What the relay keeps about a KEY; none where it has none or does not answer. */
  statements(key: string): Promise<readonly Uint8Array[]>
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
   * `trust/revoked` when the pinned identity revoked itself, `trust/split` when it signed two
   * successors, `trust/none` when there is nobody.
   */
  async judge(name: string, candidates: readonly Candidate[]): Promise<Judgement> {
    const { known } = this.#ports
    const live = await this.#unrevoked(candidates)
    const followed = await this.#followPins(await known.find(name))
    const pins = await known.find(name)
    await this.#refuseRevokedPins(name, pins)
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
   * What is known of an identity that came to us. Throws `trust/revoked`, `trust/split`. Statements
   * are asked of the relay; what it keeps back is missing and lets nobody in.
   */
  async view(key: string): Promise<PeerView> {
    const { crypto, known } = this.#ports
    const identity = parseKey(key)
    const statements = this.#open(await this.#ports.statements(key))
    await this.#refuseRevoked(key, statements)
    await this.#followTo(key)
    const names = await this.#friendNames(key)
    const vouches = await this.#validVouches(identity, statements)
    return {
      key,
      fingerprint: fingerprint(crypto, identity),
      names,
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

  /** Those that have not revoked themselves; what they revoked is remembered. */
  async #unrevoked(candidates: readonly Candidate[]): Promise<Candidate[]> {
    const gone = await this.#ports.known.revoked()
    const live: Candidate[] = []
    for (const candidate of candidates) {
      const statements = this.#open(candidate.statements)
      if (gone.includes(candidate.key)) continue
      if (isRevoked(parseKey(candidate.key), statements)) {
        await this.#ports.known.revoke(candidate.key)
      } else live.push(candidate)
    }
    return live
  }

  async #refuseRevoked(key: string, statements: readonly Statement[]): Promise<void> {
    const { crypto, known } = this.#ports
    if (isRevoked(parseKey(key), statements)) await known.revoke(key)
    else if (!(await known.revoked()).includes(key)) return
    throw revoked(fingerprint(crypto, parseKey(key)))
  }

  async #refuseRevokedPins(name: string, pins: readonly KnownAgent[]): Promise<void> {
    const gone = await this.#ports.known.revoked()
    const pinned = pins.filter(({ key }) => gone.includes(key))
    if (pinned.length === 0 || pinned.length < pins.length) return
    throw revoked(fingerprint(this.#ports.crypto, parseKey(pinned[0]!.key)), name)
  }

  /** Moves pins of these to the successors that they signed. */
  async #followPins(pins: readonly KnownAgent[]): Promise<Judgement['followed']> {
    const followed: Judgement['followed'] = []
    for (const { key } of pins) {
      if (key.startsWith('SHA256:')) continue
      const led = follow(this.#ports.crypto, parseKey(key), await this.#chain(key))
      if (led.kind === 'revoked') {
        // Whatever led there is worth nothing any more.
        await this.#ports.known.revoke(key)
        await this.#ports.known.revoke(formatKey(led.identity))
        continue
      }
      const to = formatKey(led.identity)
      if (led.steps.length === 0) continue
      followed.push({ from: key, to, names: await this.#ports.known.succeed(key, to) })
    }
    return followed
  }

  /** A stranger may be the successor of somebody pinned, who signed that it is. */
  async #followTo(key: string): Promise<void> {
    const { known, crypto } = this.#ports
    const pins = await known.list()
    if (pins.some((pin) => isPinOf(crypto, pin, key))) return
    const own = this.#open(await this.#ports.statements(key))
    const identity = parseKey(key)
    for (const one of own) {
      if (one.kind !== 'rotation' || !equal(one.new, identity)) continue
      const old = formatKey(one.old)
      if (pins.some((pin) => pin.key === old)) {
        await this.#followPins(pins.filter((pin) => pin.key === old))
      }
    }
  }

  /** The statements of an identity and of the successors that they name, as far as they lead. */
  async #chain(key: string): Promise<Statement[]> {
    const all: Statement[] = []
    const seen = new Set<string>()
    const queue = [key]
    while (queue.length > 0 && seen.size < STATEMENTS_MAX) {
      const next = queue.shift()!
      if (seen.has(next)) continue
      seen.add(next)
      const found = this.#open(await this.#ports.statements(next))
      all.push(...found)
      for (const one of found) {
        if (one.kind === 'rotation' && formatKey(one.old) === next) queue.push(formatKey(one.new))
      }
    }
    return all
  }

  async #vouchedFor(name: string, candidates: readonly Candidate[]): Promise<Trusted[]> {
    const trusted: Trusted[] = []
    for (const { key, statements, scope } of candidates) {
      const vouches = await this.#validVouches(parseKey(key), this.#open(statements))
      const isNamed = ({ vouch }: { vouch: Vouch }): boolean =>
        vouch.names.includes(name) && (vouch.scope === '' || vouch.scope === scope)
      if (!vouches.some(isNamed)) continue
      trusted.push({ key, how: 'authority', verified: false })
    }
    return trusted
  }

  async #validVouches(
    identity: Uint8Array,
    statements: readonly Statement[],
  ): Promise<{ authority: string; vouch: Vouch }[]> {
    const { known, crypto, clock } = this.#ports
    const valid: { authority: string; vouch: Vouch }[] = []
    const authorities = await known.authorities()
    const gone = await known.revoked()
    for (const one of statements) {
      if (one.kind !== 'vouch' || !equal(one.identity, identity)) continue
      const key = formatKey(one.authority)
      const pin = authorities.find((each) => isPinOf(crypto, each, key))
      if (!pin || gone.includes(key)) continue
      try {
        checkVouch(one, { now: clock.now() })
      } catch {
        // Early or run out: as if it were not there.
        continue
      }
      if (await this.#isWithdrawn(key, one.serial)) continue
      valid.push({ authority: pin.name, vouch: one })
    }
    return valid
  }

  async #isWithdrawn(authority: string, serial: number): Promise<boolean> {
    const { withdrawals } = this.#ports
    let newest = await withdrawals.newest(authority)
    for (const one of this.#open(await this.#ports.statements(authority))) {
      if (one.kind !== 'withdrawal' || formatKey(one.authority) !== authority) continue
      if (newest && one.sequence <= newest.sequence) continue
      newest = { sequence: one.sequence, serials: one.serials }
      await withdrawals.keep(authority, one.sequence, one.serials)
    }
    return newest?.serials.includes(serial) ?? false
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
