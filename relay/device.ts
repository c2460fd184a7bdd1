/**
 * Logins that wait for a person's approval (RFC 8628), and whoever guesses at their codes. What is
 * here knows codes by keyed hashes alone (relay/device_desk.ts makes them), so that neither the store
 * nor an object of the directory can be read for them.
 *
 *   device-codes/HASH      the login, by its device code
 *   device-users/HASH      {device}: by the first half of the user code
 *   device-tries/WHAT/WHO  {from, count}: tries of an address, or of all together, in a window
 *
 * The first half of a user code finds the login, the second half must then be right: whoever gets a
 * second half wrong a few times burns that code, and does not go on to the next guess at it.
 */
import { equal, utf8 } from '../core/bytes.ts'
import type { Clock } from '../core/clock.ts'
import { TunnelError } from '../core/errors.ts'
import { addressWho } from './quota.ts'
import { commitWhen } from './store/retry.ts'
import type { Commit, Entry, Json, Store } from './store/store.ts'

// Specification constants.
export const LOGIN_SECONDS = 600
/** RFC 8628 §3.5: before the first poll, and how much longer after one that came too early. */
export const INTERVAL_SECONDS = 5
export const SLOW_DOWN_SECONDS = 5

// Our own choices.
/** Logins that wait at once, and those that ended within the last while. */
export const WAITING_MAX = 500
/** A wrong second half beyond this burns the code. */
export const WRONG_MAX = 3
/** Of one login: a device that keeps to its interval asks at most 120 times. */
export const POLLS_MAX = 300
export const WINDOW_MS = 600_000
/** In a window, by one address: logins begun, codes entered. */
export const ADDRESS_BEGINS_MAX = 20
export const ADDRESS_ENTRIES_MAX = 20
/** In a window, by everybody who shows no key: so many rows of tries there are at most. */
export const BEGINS_MAX = 2000
export const ENTRIES_MAX = 2000
/** New scopes that an address may make for itself in a window, and all addresses together. */
export const ADDRESS_SIGNUPS_MAX = 5
export const SIGNUPS_MAX = 500
/** How long a login that is over is still told what became of it. */
const KEPT_MS = 600_000
/** Old rows that each new login sweeps away: more than it adds. */
const SWEPT_MAX = 20

/** What a login is; times in milliseconds since 1970. */
export interface LoginRecord {
  /** Hash of the first half of the user code, and of the whole. */
  user: string
  check: string
  /** KEY, and X25519 in base64url. */
  agent: string
  seal: string
  who: string
  address: string
  at: number
  expires: number
  /** Seconds between polls. */
  interval: number
  polled: number
  polls: number
  wrong: number
  state: 'waiting' | 'approved' | 'denied'
  grant?: LoginGrant
}

/** What was approved; the key itself is made when the device fetches it. */
export interface LoginGrant {
  scope: string
  /** Id of the credential that approved, or `self`. */
  by: string
  names?: string[]
  expiresAt?: number
}

export type NewLogin =
  & { device: string }
  & Pick<LoginRecord, 'user' | 'check' | 'agent' | 'seal' | 'who' | 'address'>

/** RFC 8628 §3.5; `invalid_grant`: never given out, or used. */
export type PollState =
  | 'authorization_pending'
  | 'slow_down'
  | 'access_denied'
  | 'expired_token'
  | 'invalid_grant'

export type Polled =
  | { state: PollState; interval: number }
  | { state: 'approved'; login: LoginRecord; grant: LoginGrant }

/** A user code as it is looked for. `address`: of one who showed no key, and is counted. */
export interface Entered {
  user: string
  check: string
  address?: string
}

export type Decision = { approve: LoginGrant; signup?: string } | { deny: true }

export class Logins {
  readonly #store: Store
  readonly #clock: Clock
  /** How far the sweep has come. */
  readonly #swept = new Map<string, string>()

  constructor({ store, clock }: { store: Store; clock: Clock }) {
    this.#store = store
    this.#clock = clock
  }

  /** Keeps a new login. Throws `login/limit`; false: another waits under the same half of a code. */
  async begin({ device, ...login }: NewLogin): Promise<boolean> {
    await this.#try('begin', login.address, { most: ADDRESS_BEGINS_MAX, ofAll: BEGINS_MAX })
    await this.#sweep()
    if (await this.#waiting() >= WAITING_MAX) throw limited(`${WAITING_MAX} logins that wait`)
    const now = this.#clock.now()
    const record: LoginRecord = {
      ...login,
      at: now,
      expires: now + LOGIN_SECONDS * 1000,
      interval: INTERVAL_SECONDS,
      polled: 0,
      polls: 0,
      wrong: 0,
      state: 'waiting',
    }
    return await commitWhen(this.#store, async () => {
      const taken = await this.#store.get(userKey(login.user))
      if (taken && await this.#find(taken)) return { result: false }
      return {
        commit: {
          checks: [
            { key: userKey(login.user), version: taken?.version ?? 0 },
            { key: deviceKey(device), version: 0 },
          ],
          puts: [
            { key: deviceKey(device), value: json(record) },
            { key: userKey(login.user), value: { device } },
          ],
        },
        result: true,
      }
    })
  }

  /** What the device hears. An approved login is gone with this answer, so that it is told once. */
  async poll(device: string): Promise<Polled> {
    return await commitWhen<Polled>(this.#store, async () => {
      const entry = await this.#store.get(deviceKey(device))
      if (!entry) return { result: { state: 'invalid_grant', interval: INTERVAL_SECONDS } }
      const login = recordOf(entry)
      const now = this.#clock.now()
      const { interval } = login
      const over = gone(entry)
      if (login.state === 'denied') {
        return { commit: over, result: { state: 'access_denied', interval } }
      }
      if (login.expires <= now) {
        return { commit: over, result: { state: 'expired_token', interval } }
      }
      if (login.state === 'approved' && login.grant) {
        return { commit: over, result: { state: 'approved', login, grant: login.grant } }
      }
      if (login.polls >= POLLS_MAX) {
        return { commit: over, result: { state: 'expired_token', interval } }
      }
      const early = login.polled > 0 && now - login.polled < interval * 1000
      const next = early ? interval + SLOW_DOWN_SECONDS : interval
      return {
        commit: change(entry, { interval: next, polled: now, polls: login.polls + 1 }),
        result: { state: early ? 'slow_down' : 'authorization_pending', interval: next },
      }
    })
  }

  /** Who asks, for one who entered this code. Throws `login/code`, `login/limit`. */
  async look(entered: Entered): Promise<LoginRecord> {
    return recordOf(await this.#enter(entered))
  }

  /** Approves or denies, once. Throws `login/code`, `login/limit`. */
  async settle(entered: Entered, decision: Decision): Promise<LoginRecord> {
    if ('approve' in decision && decision.signup !== undefined) {
      await this.#try('signup', decision.signup, { most: ADDRESS_SIGNUPS_MAX, ofAll: SIGNUPS_MAX })
    }
    const entry = await this.#enter(entered)
    const settled = 'approve' in decision
      ? { state: 'approved' as const, grant: decision.approve }
      : { state: 'denied' as const }
    const login = recordOf(entry)
    const commit = change(entry, settled)
    // The code has done its work: nobody finds the login by it again.
    if (await this.#store.commit({ ...commit, deletes: [userKey(login.user)] })) {
      return { ...login, ...settled }
    }
    throw unknownCode()
  }

  /** The login of a code that was entered; a wrong second half counts against it. */
  async #enter({ user, check, address }: Entered): Promise<Entry> {
    // Counted before it is looked up: walking through codes costs as much as finding one.
    if (address !== undefined) {
      await this.#try('enter', address, { most: ADDRESS_ENTRIES_MAX, ofAll: ENTRIES_MAX })
    }
    const index = await this.#store.get(userKey(user))
    const entry = index && await this.#find(index)
    if (!entry) throw unknownCode()
    if (equal(utf8(recordOf(entry).check), utf8(check))) return entry
    await this.#wrong(entry.key)
    throw unknownCode()
  }

  async #wrong(key: string): Promise<void> {
    await commitWhen(this.#store, async () => {
      const entry = await this.#store.get(key)
      const login = entry && recordOf(entry)
      if (!entry || login?.state !== 'waiting') return { result: undefined }
      const wrong = login.wrong + 1
      if (wrong < WRONG_MAX) return { commit: change(entry, { wrong }), result: undefined }
      const burned = change(entry, { wrong, state: 'denied' })
      return { commit: { ...burned, deletes: [userKey(login.user)] }, result: undefined }
    })
  }

  /** The login that waits and that an index row leads to. */
  async #find(index: Entry): Promise<Entry | undefined> {
    const { device } = index.value as { device: string }
    const entry = await this.#store.get(deviceKey(device))
    if (!entry) return undefined
    const { state, expires } = recordOf(entry)
    return state === 'waiting' && expires > this.#clock.now() ? entry : undefined
  }

  /** Counts one more try; throws `login/limit` beyond the most in a window. */
  async #try(
    what: string,
    address: string,
    { most, ofAll }: { most: number; ofAll: number },
  ): Promise<void> {
    // Looked at first: where nobody may try any more, no further address leaves a row. Counted last: one
    // address that tries on and on uses up its own tries alone.
    await this.#count(`${what}/all`, ofAll, 0)
    await this.#count(`${what}/${addressKey(address)}`, most)
    await this.#count(`${what}/all`, ofAll)
  }

  async #count(name: string, most: number, step = 1): Promise<void> {
    const key = `device-tries/${name}`
    await commitWhen(this.#store, async () => {
      const now = this.#clock.now()
      const entry = await this.#store.get(key)
      const before = entry?.value as { from: number; count: number } | undefined
      const running = before && now - before.from < WINDOW_MS ? before : { from: now, count: 0 }
      if (running.count >= most) throw limited(`${most} tries in 10 minutes`)
      if (step === 0) return { result: undefined }
      return {
        commit: {
          checks: [{ key, version: entry?.version ?? 0 }],
          puts: [{ key, value: { from: running.from, count: running.count + step } }],
        },
        result: undefined,
      }
    })
  }

  async #waiting(): Promise<number> {
    const entries = await this.#store.list('device-codes/', { limit: WAITING_MAX * 2 })
    const now = this.#clock.now()
    return entries.filter((entry) => recordOf(entry).expires > now).length
  }

  /** Forgets what is of long ago, a few at a time. */
  async #sweep(): Promise<void> {
    const now = this.#clock.now()
    for (const kind of ['codes', 'users', 'tries'] as const) {
      const prefix = `device-${kind}/`
      const after = this.#swept.get(kind)
      const entries = await this.#store.list(prefix, {
        limit: SWEPT_MAX,
        ...(after === undefined ? {} : { after }),
      })
      if (entries.length < SWEPT_MAX) this.#swept.delete(kind)
      else this.#swept.set(kind, entries.at(-1)!.key)
      for (const entry of entries) {
        const old = kind === 'codes'
          ? recordOf(entry).expires + KEPT_MS < now
          : kind === 'tries'
          ? (entry.value as { from: number }).from + WINDOW_MS < now
          : !await this.#find(entry)
        // Another may have begun anew under the same key.
        if (old) await this.#store.commit(gone(entry))
      }
    }
  }
}

function recordOf({ value }: Entry): LoginRecord {
  return value as unknown as LoginRecord
}

function change(entry: Entry, fields: Partial<LoginRecord>): Commit {
  return {
    checks: [{ key: entry.key, version: entry.version }],
    puts: [{ key: entry.key, value: json({ ...recordOf(entry), ...fields }) }],
  }
}

function gone(entry: Entry): Commit {
  return { checks: [{ key: entry.key, version: entry.version }], deletes: [entry.key] }
}

const deviceKey = (hash: string): string => `device-codes/${hash}`
const userKey = (hash: string): string => `device-users/${hash}`

/** As a part of a key. */
function addressKey(address: string): string {
  return addressWho(address).replace(/[^0-9a-z.]/g, '_').slice(0, 80)
}

/** An interface has no index signature; this says that it is JSON all the same. */
function json(value: object): Json {
  return value as Json
}

/** One sentence for every reason, so that it tells a guesser nothing. */
export function unknownCode(): TunnelError {
  return new TunnelError(
    'login/code',
    'Cannot find the login: found a code that is wrong, used or expired',
    { hint: 'Codes last 10 minutes. Run "sotto login" again for a new one.' },
  )
}

function limited(found: string): TunnelError {
  return new TunnelError('login/limit', `Cannot take the login now: found ${found}`, {
    hint: 'Wait ten minutes and try again.',
  })
}
