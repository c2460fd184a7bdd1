/**
 * A stub resolver: asks the resolvers that the machine names, each question under a number that nobody can
 * guess, over TCP where an answer does not fit, and keeps answers for as long as they say, within bounds.
 * "There is none" and "nobody knows" are told apart, since only the first is an answer.
 */
import type { Clock } from './clock.ts'
import type { Crypto } from './crypto.ts'
import { decodeDnsAnswer, encodeDnsQuery } from './dns.ts'
import type { DnsAnswer, DnsType } from './dns.ts'
import { isTunnelError, TunnelError } from './errors.ts'

/** Aliases followed from one name. */
const ALIASES_MAX = 8
/** Questions for one step: each resolver of the machine once, and the first again. */
const TRIES_MAX = 4
const KEPT_MAX = 2_000
const KEPT_SECONDS_MIN = 5
const KEPT_SECONDS_MAX = 3_600
const NONE_SECONDS_MAX = 300
const RCODE_NO_NAME = 3

/** One question to one resolver, its answer within a few seconds. Throws `dns/…`. */
export type DnsExchange = (
  query: Uint8Array,
  how: { readonly over: 'udp' | 'tcp'; readonly attempt: number },
) => Promise<Uint8Array>

export interface Lookup {
  /** Values of that type, of the last alias; none: there is none. */
  readonly values: readonly string[]
  /** Names that the name is an alias of, in order. */
  readonly aliases: readonly string[]
  readonly ttlSeconds: number
}

interface Kept {
  answer: DnsAnswer
  untilMs: number
}

export class Resolver {
  readonly #clock: Clock
  readonly #crypto: Crypto
  readonly #exchange: DnsExchange
  readonly #keeps: boolean
  readonly #kept = new Map<string, Kept>()
  /** Many questions for one answer would give a forger many numbers to hit (RFC 5452 §5). */
  readonly #asking = new Map<string, Promise<DnsAnswer>>()

  /** `keeps: false` asks anew each time, for who wants to see what a change has done. */
  constructor(
    ports: { clock: Clock; crypto: Crypto; exchange: DnsExchange },
    { keeps = true }: { keeps?: boolean } = {},
  ) {
    this.#clock = ports.clock
    this.#crypto = ports.crypto
    this.#exchange = ports.exchange
    this.#keeps = keeps
  }

  /** Throws `dns/failed` where nobody knows, `dns/loop` where aliases have no end. */
  async lookup(name: string, type: DnsType): Promise<Lookup> {
    const aliases: string[] = []
    let at = name
    let ttlSeconds = KEPT_SECONDS_MAX
    for (;;) {
      const begin = at
      const { answer, leftSeconds } = await this.#ask(begin, type)
      ttlSeconds = Math.min(ttlSeconds, leftSeconds)
      // Aliases of an answer come in any order.
      for (;;) {
        const alias = answer.records.find((one) => one.type === 'CNAME' && one.name === at)
        if (!alias || type === 'CNAME') break
        if (
          aliases.length >= ALIASES_MAX || alias.value === name || aliases.includes(alias.value)
        ) {
          throw new TunnelError('dns/loop', `Cannot resolve ${name}: found aliases without an end`)
        }
        at = alias.value
        aliases.push(at)
      }
      const values = answer.records.filter((one) => one.type === type && one.name === at)
        .map(({ value }) => value)
      // An answer may end in an alias of which it says nothing: then that one is asked for.
      if (values.length > 0 || at === begin || answer.rcode === RCODE_NO_NAME) {
        return { values, aliases, ttlSeconds }
      }
    }
  }

  async #ask(name: string, type: DnsType): Promise<{ answer: DnsAnswer; leftSeconds: number }> {
    const key = `${type} ${name}`
    const nowMs = this.#clock.monotonic()
    const kept = this.#kept.get(key)
    if (kept && kept.untilMs > nowMs) {
      return { answer: kept.answer, leftSeconds: (kept.untilMs - nowMs) / 1000 }
    }
    this.#kept.delete(key)
    let asking = this.#asking.get(key)
    if (!asking) {
      asking = this.#fresh(name, type).finally(() => void this.#asking.delete(key))
      this.#asking.set(key, asking)
    }
    const answer = await asking
    const seconds = secondsOf(answer)
    if (this.#keeps) {
      if (this.#kept.size >= KEPT_MAX) this.#kept.delete(this.#kept.keys().next().value!)
      this.#kept.set(key, { answer, untilMs: nowMs + seconds * 1000 })
    }
    return { answer, leftSeconds: seconds }
  }

  async #fresh(name: string, type: DnsType): Promise<DnsAnswer> {
    let why = 'no answer'
    for (let attempt = 0; attempt < TRIES_MAX; attempt++) {
      try {
        let answer = await this.#once(name, { type, over: 'udp', attempt })
        if (answer.truncated) answer = await this.#once(name, { type, over: 'tcp', attempt })
        if (!answer.truncated && (answer.rcode === 0 || answer.rcode === RCODE_NO_NAME)) {
          return answer
        }
        why = `error ${answer.rcode} of the resolver`
      } catch (error) {
        if (!isTunnelError(error)) throw error
        why = error.message
      }
    }
    throw new TunnelError('dns/failed', `Cannot resolve ${name}: ${why}`)
  }

  async #once(
    name: string,
    { type, over, attempt }: { type: DnsType; over: 'udp' | 'tcp'; attempt: number },
  ): Promise<DnsAnswer> {
    const [high = 0, low = 0] = this.#crypto.randomBytes(2)
    const question = { id: high * 256 + low, name, type }
    const bytes = await this.#exchange(encodeDnsQuery(question), { over, attempt })
    return decodeDnsAnswer(bytes, question)
  }
}

function secondsOf({ records, noneSeconds = NONE_SECONDS_MAX }: DnsAnswer): number {
  const said = records.length === 0
    ? Math.min(noneSeconds, NONE_SECONDS_MAX)
    : Math.min(...records.map(({ ttlSeconds }) => ttlSeconds))
  return Math.min(KEPT_SECONDS_MAX, Math.max(KEPT_SECONDS_MIN, said))
}
