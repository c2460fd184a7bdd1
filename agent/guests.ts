/**
 * Who may come into a private endpoint. A guest shows a TLS client certificate; it is let in when the
 * passport of an identity that was allowed, or that a person pinned, names that certificate. A pin
 * made by first use says who serves a name, not whom a person lets in, so it does not count.
 *
 * The certificate of a guest carries its KEY as a name, which proves nothing: it only says whose
 * passport to look at, so that a stranger can be told from a guest whose passport is newer than ours.
 */
import { hex } from '../core/bytes.ts'
import type { Timer } from '../core/clock.ts'
import { TunnelError } from '../core/errors.ts'
import {
  fingerprint,
  formatCertificateFingerprint,
  formatKey,
  parseCertificateFingerprint,
  parseFingerprint,
  parseKey,
} from '../core/key.ts'
import { openPassport } from '../core/passport.ts'
import type { Joining } from './join.ts'
import { pinPrint } from './known_agents.ts'
import type { KnownPassports } from './known_agents.ts'
import type { RelayApi } from './relay_api.ts'
import type { World } from './world.ts'

/** Identities whose passports are kept in mind. */
const IDENTITIES_MAX = 256
/** Passports are asked for again so often, and after a knock. */
const REFRESH_MS = 60_000
/** Questions to the relay at once. */
const ASKING_MAX = 8
/** Certificates of refused guests that are remembered until it is known whose they are. */
const SEEN_MAX = 64
/** One knocker is looked up no more often than this. */
const KNOCK_MS = 2000
/** A passport that a visitor's certificate made us ask for is not asked for again so soon. */
const FRESH_MS = 500
/** KEYs that a certificate may claim before it is not looked at further. */
const CLAIMS_MAX = 3

export interface Knock {
  /** KEY, proven by its passport; undefined: nobody knows whose certificate it is. */
  key: string | undefined
  /** SHA-256 of the certificate; undefined: none was shown. */
  certificate: Uint8Array | undefined
  address: string
}

export interface GuestPorts {
  joining: Joining
  api: RelayApi
  /** KEY, fingerprint of an identity or of a certificate, or a pinned name. */
  allow: readonly string[]
  onKnock(knock: Knock): void
  onProblem(error: TunnelError): void
}

/** What `--allow` may be. Throws `guests/allow`. */
export function checkAllow(words: string): void {
  classify(words)
}

type Allowed =
  | { kind: 'key'; key: string }
  | { kind: 'identity'; fingerprint: string }
  | { kind: 'certificate'; hash: string }
  | { kind: 'name'; name: string }

function classify(words: string): Allowed {
  try {
    if (words.startsWith('SHA256:')) {
      parseFingerprint(words)
      return { kind: 'identity', fingerprint: words }
    }
    if (words.includes(':')) {
      return { kind: 'certificate', hash: hex(parseCertificateFingerprint(words)) }
    }
  } catch (cause) {
    throw new TunnelError('guests/allow', `Cannot allow "${words}": it is no whole fingerprint`, {
      cause,
    })
  }
  if (/^[a-z2-7]{52}$/.test(words)) {
    parseKey(words)
    return { kind: 'key', key: words }
  }
  if (/^[^\s#]\S{0,252}$/.test(words)) return { kind: 'name', name: words }
  throw new TunnelError(
    'guests/allow',
    `Cannot allow "${words}": expected a KEY, a fingerprint or a pinned name`,
  )
}

export class Guests {
  readonly #world: World
  readonly #ports: GuestPorts
  readonly #allow: Allowed[]
  readonly #passports: KnownPassports
  /** KEY → the name that it goes by. */
  #identities = new Map<string, string>()
  /** Certificate, in hex → the name of its owner. */
  #certificates = new Map<string, string>()
  /** Certificates of strangers, in hex → DER. */
  readonly #seen = new Map<string, Uint8Array>()
  readonly #knocks = new Map<string, number>()
  readonly #asked = new Map<string, { atMs: number; hashes: Promise<string[] | undefined> }>()
  #stopWatch: (() => void) | undefined
  #timer: Timer | undefined
  #running: Promise<void> | undefined
  #again = false
  #closed = false

  constructor(world: World, ports: GuestPorts) {
    this.#world = world
    this.#ports = ports
    this.#passports = ports.joining.profile.knownPassports()
    this.#allow = ports.allow.map(classify)
  }

  /** Reads the pins and asks for passports. Throws `guests/unknown` when `--allow` names nobody. */
  async start(): Promise<void> {
    const { profile, identity } = this.#ports.joining
    const known = await profile.knownAgents().list()
    // A file that cannot be read would let nobody in, without a word.
    await this.#passports.newest(formatKey(identity.public))
    for (const allowed of this.#allow) {
      if (allowed.kind === 'name' && !known.some(({ name }) => name === allowed.name)) {
        throw new TunnelError(
          'guests/unknown',
          `Cannot allow "${allowed.name}": it is not pinned`,
          {
            hint: `Pin it first: sotto peers trust ${allowed.name} KEY`,
          },
        )
      }
    }
    const { configDir } = this.#ports.joining.profile
    this.#stopWatch = this.#world.files.watch(`${configDir}/known_agents`, () => this.refresh())
    this.refresh()
    this.#schedule()
  }

  close(): void {
    this.#closed = true
    this.#stopWatch?.()
    this.#timer?.cancel()
  }

  /** The name that the owner of a certificate goes by; undefined: a stranger. */
  admits(certificate: Uint8Array): string | undefined {
    return this.#certificates.get(hex(certificate))
  }

  get size(): number {
    return this.#identities.size
  }

  /**
   * The world in which a tunnel serves these guests: the same, but certificates of strangers are
   * remembered, so that it can be said who knocked.
   */
  watching(): World {
    const { tls, crypto } = this.#world
    return {
      ...this.#world,
      tls: {
        ...tls,
        serve: (carrier, first, options) => {
          const { admit } = options
          if (!admit) return tls.serve(carrier, first, options)
          return tls.serve(carrier, first, {
            ...options,
            admit: async (der) => {
              if (await admit(der)) return true
              if (!der) return false
              const hash = hex(crypto.sha256(der))
              if (await this.#learned(der, hash)) return await admit(der)
              if (this.#seen.size >= SEEN_MAX) this.#seen.clear()
              this.#seen.set(hash, der)
              return false
            },
          })
        },
      },
    }
  }

  /**
   * Whether the certificate is one of somebody whom we let in, only newer than what we know of them:
   * on a first visit the passport that names it was published a moment ago. Strangers' names are not
   * asked about.
   */
  async #learned(der: Uint8Array, hash: string): Promise<boolean> {
    for (const key of claimedKeys(der)) {
      const name = this.#nameOf(key)
      if (name === undefined || !(await this.#fresh(key))?.includes(hash)) continue
      this.#identities.set(key, name)
      this.#certificates.set(hash, name)
      return true
    }
    return false
  }

  /** Certificates of one whom we let in, asked for at most every `FRESH_MS`, whoever pretends to be it. */
  #fresh(key: string): Promise<string[] | undefined> {
    const now = this.#world.clock.monotonic()
    const last = this.#asked.get(key)
    if (last && now - last.atMs < FRESH_MS) return last.hashes
    if (this.#asked.size >= IDENTITIES_MAX) this.#asked.clear()
    const hashes = this.#vouched(key)
    this.#asked.set(key, { atMs: now, hashes })
    return hashes
  }

  /** Somebody was refused: finds out who, and lets in next time whose passport is only newer. */
  async knocked(knock: { fingerprint: Uint8Array | undefined; address: string }): Promise<void> {
    const { fingerprint: certificate, address } = knock
    const { onKnock } = this.#ports
    if (!certificate) return onKnock({ key: undefined, certificate, address })
    const hash = hex(certificate)
    const now = this.#world.clock.monotonic()
    if (now - (this.#knocks.get(hash) ?? -Infinity) < KNOCK_MS) return
    if (this.#knocks.size >= SEEN_MAX) this.#knocks.clear()
    this.#knocks.set(hash, now)
    const der = this.#seen.get(hash)
    for (const key of der ? claimedKeys(der) : []) {
      if (!(await this.#vouched(key))?.includes(hash)) continue
      const name = this.#nameOf(key)
      if (name === undefined) return onKnock({ key, certificate, address })
      this.#identities.set(key, name)
      this.#certificates.set(hash, name)
      return
    }
    onKnock({ key: undefined, certificate, address })
  }

  /** Reads pins and passports anew, once more when it was asked for meanwhile. */
  refresh(): void {
    if (this.#running) {
      this.#again = true
      return
    }
    this.#running = this.#refresh()
      .catch((error) => this.#ports.onProblem(error as TunnelError))
      .finally(() => {
        this.#running = undefined
        if (!this.#again || this.#closed) return
        this.#again = false
        this.refresh()
      })
  }

  /** When what `refresh` began is done. */
  async settled(): Promise<void> {
    while (this.#running) await this.#running
  }

  #schedule(): void {
    this.#timer = this.#world.clock.after(REFRESH_MS, () => {
      this.refresh()
      this.#schedule()
    })
  }

  /** The name of an identity that is let in, were its passport known. */
  #nameOf(key: string): string | undefined {
    const known = this.#identities.get(key)
    if (known !== undefined) return known
    const print = fingerprint(this.#world.crypto, parseKey(key))
    const allowed = this.#allow.find((one) =>
      one.kind === 'identity' ? one.fingerprint === print : one.kind === 'key' && one.key === key
    )
    return allowed && print
  }

  async #refresh(): Promise<void> {
    const { joining } = this.#ports
    const { crypto } = this.#world
    const known = await joining.profile.knownAgents().list()
    const identities = new Map([[formatKey(joining.identity.public), 'this identity']])
    for (const pin of known) {
      const named = this.#allow.some((one) =>
        one.kind === 'name'
          ? one.name === pin.name
          : one.kind === 'identity' && one.fingerprint === pinPrint(crypto, pin)
      )
      if (named || pin.how !== 'first-use' || pin.verified) identities.set(pin.key, pin.name)
    }
    for (const one of this.#allow) {
      if (one.kind === 'key' && !identities.has(one.key)) {
        identities.set(one.key, fingerprint(crypto, parseKey(one.key)))
      }
    }
    const certificates = new Map<string, string>()
    for (const one of this.#allow) {
      if (one.kind === 'certificate') {
        certificates.set(one.hash, formatCertificateFingerprint(bytesOf(one.hash)))
      }
    }
    const queue = [...identities].slice(0, IDENTITIES_MAX)
    const worker = async (): Promise<void> => {
      for (let next = queue.shift(); next && !this.#closed; next = queue.shift()) {
        const [key, name] = next
        for (const hash of await this.#vouched(key, { keep: true }) ?? []) {
          certificates.set(hash, name)
        }
      }
    }
    await Promise.all(Array.from({ length: ASKING_MAX }, worker))
    if (this.#closed) return
    this.#identities = identities
    this.#certificates = certificates
  }

  /** Certificates, in hex, that the passport of a KEY names now; undefined: there is no good one. */
  async #vouched(key: string, { keep = false } = {}): Promise<string[] | undefined> {
    const { api } = this.#ports
    const { crypto, clock } = this.#world
    try {
      const bytes = await api.passport(key)
      if (!bytes) return undefined
      const passport = openPassport(crypto, bytes, {
        now: clock.now(),
        identity: parseKey(key),
        afterSequence: await this.#passports.newest(key) - 1,
      })
      // Of those that may come in alone, so that no stranger fills the file.
      if (keep) await this.#passports.keep(key, passport.sequence)
      return passport.certificates.map(hex)
    } catch {
      // A relay that does not answer, or a passport that does not hold: nobody is let in by it.
      return undefined
    }
  }
}

function bytesOf(hash: string): Uint8Array {
  return parseCertificateFingerprint(hash.replace(/(..)(?!$)/g, '$1:'))
}

/** KEYs that are names in a certificate: a DER string of 52 characters, RFC 5280 §4.1.2.4. */
export function claimedKeys(der: Uint8Array): string[] {
  const words = new TextDecoder('latin1').decode(der)
  // deno-lint-ignore no-control-regex
  const found = [...words.matchAll(/[\x0c\x13]\x34([a-z2-7]{52})/g)].map(([, key]) => key!)
  return [...new Set(found)].slice(0, CLAIMS_MAX)
}
