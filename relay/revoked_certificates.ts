/**
 * Client certificates that admit nobody any more, by serial number: there is no revocation list to
 * fetch, since the operator who signs them also runs the relay. A serial of an intermediate authority revokes
 * all that it signed. Held in memory, and in the store, where other processes see them.
 *
 *   revoked-certificates/SERIAL    {reason, since}
 *   revoked-certificates-changed   its version changes with every change
 */
import type { Clock, Timer } from '../core/clock.ts'
import { TunnelError } from '../core/errors.ts'
import type { Entry, Store } from './store/store.ts'
import type { WatchOptions } from './store/watch.ts'
import { WatchedList } from './store/watched_list.ts'

/** Serials at once: all are in memory. */
export const REVOKED_MAX = 10_000
/** Longest reason, in UTF-16 units; longer ones are cut. */
const REASON_LENGTH_MAX = 500
/** 20 bytes in hex, RFC 5280 §4.1.2.2. */
const SERIAL_DIGITS_MAX = 40
const PREFIX = 'revoked-certificates/'
const CHANGED = 'revoked-certificates-changed'

export interface RevokedCertificate {
  /** Hex, lower case, without leading zeros. */
  serial: string
  reason: string
  /** Milliseconds since 1970. */
  since: number
}

export class RevokedCertificates {
  readonly #list: WatchedList<RevokedCertificate>
  readonly #clock: Clock

  private constructor(list: WatchedList<RevokedCertificate>, clock: Clock) {
    this.#list = list
    this.#clock = clock
  }

  static async open(store: Store, clock: Clock): Promise<RevokedCertificates> {
    const of = { prefix: PREFIX, changed: CHANGED, max: REVOKED_MAX, read }
    return new RevokedCertificates(await WatchedList.open(store, clock, of), clock)
  }

  /** The first of `serials` that is revoked. */
  find(serials: readonly string[]): RevokedCertificate | undefined {
    for (const serial of serials) {
      const found = this.#list.get(PREFIX + serial)
      if (found) return found
    }
    return undefined
  }

  all(): RevokedCertificate[] {
    return this.#list.all()
  }

  /** Throws `certificate/serial`, `certificate/too-many`. Listeners are told before it resolves. */
  async revoke(words: string, reason: string): Promise<RevokedCertificate> {
    const serial = serialOf(words)
    if (this.#list.size >= REVOKED_MAX && !this.find([serial])) {
      throw new TunnelError(
        'certificate/too-many',
        `Cannot revoke the certificate: found ${REVOKED_MAX} revoked ones, the most that are held`,
        { hint: 'Restore those that have expired: they admit nobody anyway.' },
      )
    }
    const value = { reason: reason.slice(0, REASON_LENGTH_MAX), since: this.#clock.now() }
    await this.#list.add(PREFIX + serial, value)
    return { serial, ...value }
  }

  /** Lets it admit again. False where it was not revoked. Throws `certificate/serial`. */
  async restore(words: string): Promise<boolean> {
    return await this.#list.remove(PREFIX + serialOf(words))
  }

  onRevoked(listener: (revoked: RevokedCertificate) => void): () => void {
    return this.#list.onAdded(listener)
  }

  /** Sees what other processes on this store revoke. */
  watch(options: WatchOptions = {}): Timer {
    return this.#list.watch(options)
  }
}

/** A serial number in hex, as tools print it: either case, with colons or without. Throws `certificate/serial`. */
export function serialOf(words: string): string {
  const digits = words.slice(0, 2 * SERIAL_DIGITS_MAX).replaceAll(':', '').toLowerCase()
    .replace(/^0+(?=.)/, '')
  if (/^[0-9a-f]+$/.test(digits) && digits.length <= SERIAL_DIGITS_MAX) return digits
  throw new TunnelError(
    'certificate/serial',
    `Cannot read the serial number ${JSON.stringify(words.slice(0, 80))}: expected 1 to ` +
      `${SERIAL_DIGITS_MAX} hex digits`,
    { hint: 'See it with "openssl x509 -noout -serial -in FILE".' },
  )
}

function read({ key, value }: Entry): RevokedCertificate {
  const { reason, since } = value as { reason: string; since: number }
  return { serial: key.slice(PREFIX.length), reason, since }
}
