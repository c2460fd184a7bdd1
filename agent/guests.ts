/**
 * Who may come into a private endpoint: those whom the access table allows `connect`, and nobody else.
 * A guest shows a TLS client certificate; it is let in when the passport of an allowed identity names
 * that certificate.
 *
 * The certificate of a guest carries its KEY as a name, which proves nothing: it only says whose
 * passport and statements to look at, so that one may come whom an authority vouches for, who has a
 * new identity, or whose passport is newer than ours, and a stranger can be told by name.
 */
import { hex } from '../core/bytes.ts'
import type { Timer } from '../core/clock.ts'
import { isTunnelError, TunnelError } from '../core/errors.ts'
import {
  formatCertificateFingerprint,
  formatKey,
  parseCertificateFingerprint,
  parseFingerprint,
  parseKey,
} from '../core/key.ts'
import { openPassport } from '../core/passport.ts'
import { allowing } from './access.ts'
import type { AccessRule } from './access.ts'
import type { Joining } from './join.ts'
import { pinPrint } from './known_agents.ts'
import type { KnownPassports } from './known_agents.ts'
import type { RelayApi } from './relay_api.ts'
import type { Trust } from './trust.ts'
import type { World } from './world.ts'

/** Identities whose passports are kept in mind. */
const IDENTITIES_MAX = 256
/** Passports are asked for again so often, and after a knock. */
const REFRESH_MS = 60_000
/** Identities about which the relay is asked at once, and of those that strangers claim to be. */
const ASKING_MAX = 8
/** Certificates of refused guests that are remembered until it is known whose they are. */
const SEEN_MAX = 64
/** One knocker is looked up no more often than this. */
const KNOCK_MS = 2000
/** An identity that a visitor's certificate made us ask about is not asked about again so soon. */
const FRESH_MS = 500
/** What this identity itself goes by. */
const OWN = 'this identity'
const NOBODY = { admitted: undefined, pinned: undefined } as const
/** KEYs that a certificate may claim before it is not looked at further. */
const CLAIMS_MAX = 3

export interface Knock {
  /** KEY, proven by its passport; undefined: nobody knows whose certificate it is. */
  key: string | undefined
  /** The name to which a person pinned it, without a rule that lets it in. */
  name?: string
  /** SHA-256 of the certificate; undefined: none was shown. */
  certificate: Uint8Array | undefined
  address: string
}

export interface GuestPorts {
  joining: Joining
  api: Pick<RelayApi, 'passport'>
  trust: Pick<Trust, 'view'>
  /**
   * KEY, fingerprint of an identity or of a certificate, or a pinned name: each but a certificate is
   * a rule of this process for the service `connect`.
   */
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

/** What is known of a KEY that a certificate claims. */
interface Claimant {
  /** Certificates, in hex, that its passport names. */
  hashes: readonly string[]
  /** The name it goes by where it may come in. */
  admitted: string | undefined
  /** The name to which a person pinned it. */
  pinned: string | undefined
}

export class Guests {
  readonly #world: World
  readonly #ports: GuestPorts
  readonly #allow: Allowed[]
  readonly #passports: KnownPassports
  #rules: readonly AccessRule[] = []
  /** KEY → the name that it goes by. */
  #identities = new Map<string, string>()
  /** Certificate, in hex → the name of its owner. */
  #certificates = new Map<string, string>()
  /** Certificates of strangers, in hex → DER. */
  readonly #seen = new Map<string, Uint8Array>()
  readonly #knocks = new Map<string, number>()
  readonly #asked = new Map<string, { atMs: number; claimant: Promise<Claimant | undefined> }>()
  #asking = 0
  #stops: (() => void)[] = []
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
    // Files that cannot be read would let nobody in, without a word.
    await this.#passports.newest(formatKey(identity.public))
    await profile.access()
    for (const allowed of this.#allow) {
      if (allowed.kind !== 'name') continue
      const pins = known.filter(({ name }) => name === allowed.name)
      if (pins.some(({ how, verified }) => how !== 'first-use' || verified)) continue
      const key = pins[0]?.key ?? 'KEY'
      const found = pins.length === 0 ? 'it is not pinned' : 'first use alone has pinned it'
      throw new TunnelError('guests/unknown', `Cannot allow "${allowed.name}": ${found}`, {
        hint: `Pin it first: sotto peers trust ${allowed.name} ${key}`,
      })
    }
    const { configDir, settingsPath } = profile
    this.#stops = [`${configDir}/known_agents`, settingsPath].map((path) =>
      this.#world.files.watch(path, () => this.refresh())
    )
    this.refresh()
    this.#schedule()
  }

  close(): void {
    this.#closed = true
    for (const stop of this.#stops) stop()
    this.#timer?.cancel()
  }

  /** The name that the owner of a certificate goes by; undefined: a stranger. */
  admits(certificate: Uint8Array): string | undefined {
    return this.#certificates.get(hex(certificate))
  }

  /** Identities that may come in, this one among them, as far as they are known by KEY. */
  get size(): number {
    return this.#identities.size
  }

  /** Names of the authorities of which some may come in. */
  get authorities(): string[] {
    const names = this.#rules.flatMap(({ authority, services }) =>
      authority !== undefined && services.includes('connect') ? [authority] : []
    )
    return [...new Set(names)]
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
   * Whether the certificate is one of somebody who may come in and of whom we have not heard yet: on a
   * first visit the passport that names it was published a moment ago.
   */
  async #learned(der: Uint8Array, hash: string): Promise<boolean> {
    for (const key of claimedKeys(der)) {
      const claimant = await this.#ask(key)
      if (claimant?.admitted === undefined || !claimant.hashes.includes(hash)) continue
      this.#identities.set(key, claimant.admitted)
      this.#certificates.set(hash, claimant.admitted)
      return true
    }
    return false
  }

  /** Asked at most every `FRESH_MS`, whoever pretends to be it, and about few strangers at once. */
  #ask(key: string): Promise<Claimant | undefined> {
    const now = this.#world.clock.monotonic()
    const last = this.#asked.get(key)
    if (last && now - last.atMs < FRESH_MS) return last.claimant
    if (this.#asking >= ASKING_MAX && !this.#identities.has(key)) return Promise.resolve(undefined)
    if (this.#asked.size >= IDENTITIES_MAX) this.#asked.clear()
    this.#asking++
    const claimant = this.#claimant(key).finally(() => void this.#asking--)
    this.#asked.set(key, { atMs: now, claimant })
    return claimant
  }

  async #claimant(key: string): Promise<Claimant | undefined> {
    // A KEY whose passport nobody published costs no more than this question.
    const hashes = await this.#vouched(key)
    if (!hashes) return undefined
    const standing = await this.#standing(key).catch((error) => {
      if (!isTunnelError(error)) throw error
      return NOBODY
    })
    return { hashes, ...standing }
  }

  /** Throws `trust/…` where it is revoked, or its successors are not certain. */
  async #standing(key: string): Promise<Pick<Claimant, 'admitted' | 'pinned'>> {
    const { joining, trust } = this.#ports
    if (key === formatKey(joining.identity.public)) return { admitted: OWN, pinned: OWN }
    const view = await trust.view(key)
    const pinned = view.names[0]
    const rule = allowing(this.#rules, view, 'connect')
    if (!rule) return { admitted: undefined, pinned }
    return { admitted: pinned ?? view.vouched[0]?.names[0] ?? view.fingerprint, pinned }
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
      const claimant = await this.#ask(key)
      if (!claimant?.hashes.includes(hash)) continue
      const { admitted, pinned } = claimant
      if (admitted === undefined) {
        return onKnock({
          key,
          certificate,
          address,
          ...(pinned === undefined ? {} : { name: pinned }),
        })
      }
      this.#identities.set(key, admitted)
      this.#certificates.set(hash, admitted)
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

  async #refresh(): Promise<void> {
    const { joining, onProblem } = this.#ports
    const own: AccessRule[] = this.#allow.flatMap((one) =>
      one.kind === 'certificate' ? [] : [{ peer: peerOf(one), services: ['connect'] }]
    )
    const rules = [...own, ...await joining.profile.access()]
    const keys = await this.#candidates(rules)
    this.#rules = rules
    this.#asked.clear()
    const identities = new Map<string, string>()
    const certificates = new Map<string, string>()
    for (const one of this.#allow) {
      if (one.kind === 'certificate') {
        certificates.set(one.hash, formatCertificateFingerprint(bytesOf(one.hash)))
      }
    }
    const queue = [...keys].slice(0, IDENTITIES_MAX)
    const worker = async (): Promise<void> => {
      for (let key = queue.shift(); key && !this.#closed; key = queue.shift()) {
        try {
          const { admitted } = await this.#standing(key)
          if (admitted === undefined) continue
          identities.set(key, admitted)
          const hashes = await this.#vouched(key, { keep: true }) ?? []
          for (const hash of hashes) certificates.set(hash, admitted)
        } catch (error) {
          if (!isTunnelError(error)) throw error
          onProblem(error)
        }
      }
    }
    await Promise.all(Array.from({ length: ASKING_MAX }, worker))
    if (this.#closed) return
    this.#identities = identities
    this.#certificates = certificates
  }

  /** KEYs of those whom rules may let in; whom an authority lets in is known when they come. */
  async #candidates(rules: readonly AccessRule[]): Promise<Set<string>> {
    const { joining } = this.#ports
    const { crypto } = this.#world
    const peers = new Set(
      rules.flatMap(({ peer, services }) =>
        peer !== undefined && services.includes('connect') ? [peer] : []
      ),
    )
    const keys = new Set([formatKey(joining.identity.public)])
    for (const pin of await joining.profile.knownAgents().list()) {
      // The key behind a fingerprint shows when it comes.
      if (pin.key.startsWith('SHA256:')) continue
      if (peers.has(pin.name) || peers.has(pinPrint(crypto, pin))) keys.add(pin.key)
    }
    for (const peer of peers) if (/^[a-z2-7]{52}$/.test(peer)) keys.add(peer)
    return keys
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

function peerOf(allowed: Exclude<Allowed, { kind: 'certificate' }>): string {
  switch (allowed.kind) {
    case 'key':
      return allowed.key
    case 'identity':
      return allowed.fingerprint
    case 'name':
      return allowed.name
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
