/**
 * Reaching a private endpoint from the visitor's side: ask the relay who serves the name, pin that
 * identity, connect through the ingress or a visit link, and check the certificate against the
 * *passport*, not a CA: the relay hands out both, and can forge neither.
 */
import { EMPTY, equal } from '../core/bytes.ts'
import { asTunnelError, TunnelError } from '../core/errors.ts'
import { formatCertificateFingerprint, parseKey } from '../core/key.ts'
import { openPassport } from '../core/passport.ts'
import type { Conn } from '../core/socket.ts'
import { fromBase64 } from './agent.ts'
import type { KnownPassports } from './known_agents.ts'
import type { LinkPorts } from './link.ts'
import { connectDuplexOut } from './outward.ts'
import { readStatements } from './peers.ts'
import type { Candidate } from './trust.ts'
import type { Up, Uplink } from './uplink.ts'
import { Visits } from './visits.ts'
import type { TlsConn, TlsIdentity, World } from './world.ts'

/** Agents that may serve one name. */
const AGENTS_MAX = 64

/** An identity that serves the name, with the certificates that its passport vouches for. */
export interface Served {
  /** KEY. */
  key: string
  certificates: Uint8Array[]
}

export interface DialPorts {
  world: World
  uplink: Uplink
  link: Omit<LinkPorts, 'pin'>
  /** Our certificate, which our own passport names; asked for at each connection. */
  identity(): TlsIdentity
  /** What was seen in earlier runs: an older passport is a replay. */
  passports: Pick<KnownPassports, 'newest' | 'keep'>
  /**
   * Judges those who serve a name by pins and statements: gives back the KEYs that are trusted. Throws
   * `trust/…` when none is.
   */
  trust(name: string, candidates: Candidate[]): Promise<string[]>
}

/** Dials one name again and again: for each connection that `sotto connect` accepts. */
export class Dialler {
  readonly #ports: DialPorts
  readonly #name: string
  readonly #visits: Visits

  constructor(ports: DialPorts, name: string) {
    this.#ports = ports
    this.#name = name
    this.#visits = new Visits({
      clock: ports.world.clock,
      link: ports.link,
      relayKey: () => ports.uplink.up?.relayKey,
    })
  }

  close(): void {
    this.#visits.close()
  }

  /** Who serves the name now and is trusted. Throws `dial/unknown`, `trust/…`, `passport/…`. */
  async resolve(): Promise<Served[]> {
    const { uplink, world, trust, passports } = this.#ports
    const reply = await uplink.request({ do: 'resolve', name: this.#name })
    const agents = reply['agents']
    if (!Array.isArray(agents) || agents.length === 0 || agents.length > AGENTS_MAX) {
      throw new TunnelError('dial/unknown', `Cannot reach "${this.#name}": nobody serves it now`, {
        hint: 'Check the name, and that its agent runs ("sotto status" there).',
      })
    }
    const served: Served[] = []
    const candidates: Candidate[] = []
    const seen = new Map<string, number>()
    let problem: TunnelError | undefined
    const { scope } = reply
    for (const { key, passport, statements, more } of agents as Record<string, unknown>[]) {
      if (typeof key !== 'string' || typeof passport !== 'string') continue
      try {
        const newest = await passports.newest(key)
        const { certificates, names, sequence } = openPassport(
          world.crypto,
          fromBase64(passport),
          {
            now: world.clock.now(),
            identity: parseKey(key),
            afterSequence: newest - 1,
          },
        )
        seen.set(key, sequence)
        if (!names.includes(this.#name)) continue
        served.push({ key, certificates })
        candidates.push({
          key,
          statements: readStatements(statements),
          more: more === true,
          ...(typeof scope === 'string' ? { scope } : {}),
        })
      } catch (error) {
        problem = asTunnelError(error, 'dial/passport')
      }
    }
    if (served.length === 0) {
      throw problem ??
        new TunnelError('dial/passport', `Cannot reach "${this.#name}": no passport names it`)
    }
    const trusted = new Set(await trust(this.#name, candidates))
    // Of those that are trusted alone, so that no stranger fills the file.
    for (const key of trusted) await passports.keep(key, seen.get(key)!)
    return served.filter(({ key }) => trusted.has(key))
  }

  /**
   * One connection, TLS done and the other end proven. A certificate that came into use between the
   * passport and the handshake is looked up once more: a newer passport may name it.
   */
  async dial(): Promise<TlsConn> {
    const unknown: { certificate?: Uint8Array } = {}
    try {
      return await this.#dialOnce(await this.resolve(), unknown)
    } catch (error) {
      const { certificate } = unknown
      if (!certificate) throw error
      const served = await this.resolve().catch(() => [])
      const isNamedNow = served.some((one) =>
        one.certificates.some((known) => equal(known, certificate))
      )
      if (!isNamedNow) throw error
      return await this.#dialOnce(served, {})
    }
  }

  /** Leaves in `unknown` what the other end showed, SHA-256, where `served` does not name it. */
  async #dialOnce(served: Served[], unknown: { certificate?: Uint8Array }): Promise<TlsConn> {
    const { uplink, world, identity } = this.#ports
    const up = uplink.up
    if (!up) throw new TunnelError('uplink/down', 'Cannot connect: there is no link to the relay')
    const carrier = await this.#carrier(up, served)
    const certificates = served.flatMap((one) => one.certificates)
    return await world.tls.connect({
      carrier,
      servername: `${this.#name}.${up.welcome.secure}`,
      identity: identity(),
      verify: (der) => {
        const found = world.crypto.sha256(der)
        if (certificates.some((known) => equal(known, found))) return
        unknown.certificate = found
        throw new TunnelError(
          'trust/certificate',
          `Cannot trust the certificate of "${this.#name}": found ${
            formatCertificateFingerprint(found)
          }, ` +
            `expected ${certificates.map(formatCertificateFingerprint).join(' or ')}`,
          {
            hint:
              'Somebody stands in between, or the agent has not published its new passport yet.',
          },
        )
      },
    })
  }

  async #carrier(up: Up, served: Served[]): Promise<Conn> {
    const { world, link } = this.#ports
    if (up.welcome.can.includes('passthrough')) {
      const host = link.relay.hostname.replace(/^\[|\]$/g, '')
      return await connectDuplexOut(world, { host, port: Number(link.relay.port) || 443 })
    }
    return await this.#visits.open(parseKey(served[0]!.key), {
      kind: 'connect',
      port: 0,
      address: '',
      endpoint: this.#name,
      tail: EMPTY,
    })
  }
}
