/** A bench for trust: identities that sign for real, pins in memory, and a relay that is a map. */
import { Trust } from '../../agent/trust.ts'
import type { Candidate, FollowedPin } from '../../agent/trust.ts'
import { KnownAgents } from '../../agent/known_agents.ts'
import { KnownWithdrawals } from '../../agent/withdrawals.ts'
import { text } from '../../core/bytes.ts'
import { ManualClock } from '../../core/clock.ts'
import { fingerprint, formatKey } from '../../core/key.ts'
import { encodeStatement } from '../../core/statement.ts'
import type { Statement } from '../../core/statement.ts'
import { fast as crypto } from './crypto.ts'

export const HOUR_MS = 3_600_000
export const START_MS = Date.parse('2026-06-01T12:00:00Z')

const seedOf = (n: number): Uint8Array => new Uint8Array(32).fill(n)
const bytesOf = (n: number): Uint8Array => crypto.ed25519Public(seedOf(n))
export const keyOf = (n: number): string => formatKey(bytesOf(n))
export const printOf = (n: number): string => fingerprint(crypto, bytesOf(n))
export const [ONE, TWO, THREE, FOUR, OPS, OPS2, OTHER] = [1, 2, 3, 4, 20, 21, 22] as const
export const EVERYBODY = Array.from({ length: 60 }, (_, i) => i + 1)

function signed(statement: Statement): Uint8Array {
  return encodeStatement(statement, (message, signer) => {
    const n = EVERYBODY.find((one) => keyOf(one) === formatKey(signer))!
    return crypto.ed25519Sign(seedOf(n), message)
  })
}

export const rotation = (old: number, next: number, time = START_MS): Uint8Array =>
  signed({ kind: 'rotation', old: bytesOf(old), new: bytesOf(next), time })
export const revocation = (n: number): Uint8Array =>
  signed({ kind: 'revocation', identity: bytesOf(n), time: START_MS })
export const withdrawal = (authority: number, sequence: number, serials: number[]): Uint8Array =>
  signed({ kind: 'withdrawal', authority: bytesOf(authority), sequence, serials, time: START_MS })
export function vouch(
  authority: number,
  n: number,
  more: Record<string, unknown> = {},
): Uint8Array {
  return signed({
    kind: 'vouch',
    authority: bytesOf(authority),
    identity: bytesOf(n),
    serial: 1,
    notBefore: START_MS - HOUR_MS,
    notAfter: START_MS + 24 * HOUR_MS,
    scope: '',
    names: ['web'],
    labels: { role: 'web' },
    ...more,
  })
}

export interface Bench {
  trust: Trust
  known: KnownAgents
  clock: ManualClock
  /** KEY → what the relay hands out. */
  relay: Map<string, Uint8Array[]>
  told: FollowedPin[]
  file(): string
  /** Under every identity that it speaks of. */
  keep(...statements: [number[], Uint8Array][]): void
  candidates(...numbers: number[]): Candidate[]
}

/** Pins, a clock and a relay of their own. */
export function openBench(): Bench {
  const files = new Map<string, Uint8Array>()
  const ports = {
    read: (path: string) => Promise.resolve(files.get(path)),
    write: (path: string, next: Uint8Array) => {
      files.set(path, next)
      return Promise.resolve()
    },
  }
  const clock = new ManualClock(START_MS)
  const locked = <T>(run: () => Promise<T>): Promise<T> => run()
  const known = new KnownAgents({ path: '/known', clock, crypto, locked, files: ports })
  const relay = new Map<string, Uint8Array[]>()
  const told: FollowedPin[] = []
  const of = (key: string): Uint8Array[] => relay.get(key) ?? []
  return {
    known,
    clock,
    relay,
    told,
    trust: new Trust({
      crypto,
      clock,
      known,
      withdrawals: new KnownWithdrawals({ path: '/withdrawals', locked, files: ports }),
      statements: (key) => Promise.resolve(of(key)),
      followed: (pins) => told.push(pins),
    }),
    file: () => text(files.get('/known') ?? new Uint8Array(0)),
    keep(...statements) {
      for (const [numbers, bytes] of statements) {
        for (const n of numbers) relay.set(keyOf(n), [...of(keyOf(n)), bytes])
      }
    },
    candidates: (...numbers) =>
      numbers.map((n) => ({ key: keyOf(n), statements: of(keyOf(n)), scope: 'team' })),
  }
}
