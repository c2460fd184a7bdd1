/**
 * An agent: one process of an identity with its uplink, its tunnels and its bulk pools. It claims
 * every tunnel again on each new link, publishes the passport that vouches for its certificates, and
 * hands each visitor to the tunnel that it came for.
 */
import { equal } from '../core/bytes.ts'
import { isTunnelError, TunnelError } from '../core/errors.ts'
import { RESET } from '../core/frame.ts'
import type { Stream } from '../core/mux.ts'
import {
  encodePassport,
  openPassport,
  PASSPORT_CERTIFICATES_MAX,
  PASSPORT_NAMES_MAX,
} from '../core/passport.ts'
import type { Passport } from '../core/passport.ts'
import type { Conn } from '../core/socket.ts'
import type { TicketClass } from '../core/ticket.ts'
import { fromBase64, toBase64 } from './base64.ts'
import { BulkPool } from './bulk.ts'
import type { Offer } from './bulk.ts'
import { SharedBulk } from './shared_bulk.ts'
import type { LinkPorts } from './link.ts'
import { isLoopback } from './loopback.ts'
import { connectOut, connectTlsOut, openLinkOut } from './outward.ts'
import { proxyFor } from './proxy.ts'
import type { Tunnel } from './tunnel.ts'
import { Uplink } from './uplink.ts'
import type { Up, UplinkState } from './uplink.ts'
import type { World } from './world.ts'

export { fromBase64, toBase64 }

/** How long a passport is good for; published anew when less than half is left. */
const PASSPORT_MS = 30 * 86_400_000
/** Two processes of one identity may publish at the same moment; one of them tries again. */
const PUBLISH_ATTEMPTS_MAX = 5
/** Names claimed before the answers of others are there; a relay takes 64 requests at once. */
const CLAIMS_MAX = 16
/** Suites of sessions, best first; docs/protocol.md §10. */
export const SESSION_SUITES = [
  'Noise_IKhfs_25519+MLKEM768_AESGCM_SHA256',
  'Noise_IKhfs_25519+MLKEM768_ChaChaPoly_SHA256',
] as const

/** A name of this agent on the relay, and whoever takes its visitors: a `Tunnel`, most of the time. */
export interface Endpoint {
  readonly options: Pick<Tunnel['options'], 'name' | 'kind' | 'mode'>
  /** What is asked of the relay; docs/protocol.md, "Welcome and requests". */
  claim(): object
  claimed(reply: Record<string, unknown>): void
  offered(offer: Offer): void
  opened(stream: Stream): void
  /** The way to the relay is dead: visitors on bulk links end here. */
  cutBulk(): void
  close(): void
}

export interface AgentOptions extends Omit<LinkPorts, 'open' | 'clock' | 'crypto'> {
  /** `ca`: the relay's certificate must verify; `admission`: its identity vouches for it. */
  trust?: 'ca' | 'admission'
  /** In place of `trust`: opens the link's socket and judges its certificate. */
  open?: LinkPorts['open']
  /** False keeps every visitor on the link's streams. */
  bulkLinks?: boolean
  /** The passport names it, so that peers can open sessions: 32 bytes, X25519. */
  sessionPublic?: Uint8Array
  /** Streams of other agents; refused where there is nobody to take them. */
  onPeer?(stream: Stream): void
  /** SHA-256 of certificates besides those of the tunnels, such as the one `connect` shows. */
  certificates?: () => Promise<Uint8Array[]>
  /** What this identity has every relay know of it: whom it follows, who vouches for it. */
  statements?: () => Promise<Uint8Array[]>
  onState?(state: UplinkState): void
  onNotice?(notice: { code: string; message: string }): void
  /** The relay took a tunnel's name. */
  onClaimed?(tunnel: Endpoint): void
  /** It refused one; with this, what it refuses ends no link. */
  onRefused?(tunnel: Endpoint, error: TunnelError): void
}

export class Agent {
  readonly uplink: Uplink
  readonly #world: World
  readonly #options: AgentOptions
  readonly #tunnels = new Map<string, Endpoint>()
  /** Without a name any more: those who came still are there. */
  readonly #leaving = new Set<Endpoint>()
  /** Names of this agent that are no tunnels: peers open sessions to them. */
  readonly #announced = new Set<string>()
  #pools: BulkPool[] = []
  /** Tickets of one link are numbered, whichever pool they are of. */
  #counter: { up: Up; count: () => number } | undefined
  #shared: SharedBulk | undefined
  #passport: { fields: Passport; bytes: Uint8Array } | undefined
  #publishing: Promise<void> = Promise.resolve()
  #loopback = '127.0.0.1'
  #fingerprints: () => Promise<Uint8Array[]>

  constructor(world: World, options: AgentOptions) {
    this.#world = world
    this.#options = options
    this.#fingerprints = options.certificates ?? (() => Promise.resolve([]))
    this.uplink = new Uplink({
      ...options,
      clock: world.clock,
      crypto: world.crypto,
      open: options.open ?? (async (url) => {
        const { trust = 'ca' } = options
        const { socket, certificate } = await openLinkOut(world, url, { trust })
        return { socket, certificate, trusted: trust === 'ca' }
      }),
      admitted: (up) => this.#admitted(up),
      onState: (state) => {
        if (state.kind !== 'up' && state.kind !== 'connecting') this.#closePools()
        if (state.kind === 'down' && state.silent) {
          for (const tunnel of [...this.#tunnels.values(), ...this.#leaving]) tunnel.cutBulk()
        }
        options.onState?.(state)
      },
      onNotice: (notice) => options.onNotice?.(notice),
      onOpen: (stream) => this.#opened(stream),
    })
  }

  get bulkIdle(): number {
    return this.#pools.reduce((sum, pool) => sum + pool.idle, 0)
  }

  /**
   * New visitors of its name come to this tunnel, from the next claim on. One that had the name keeps
   * the visitors that it has, until `forget`.
   */
  add(tunnel: Endpoint): void {
    const before = this.#tunnels.get(tunnel.options.name)
    if (before && before !== tunnel) this.#leaving.add(before)
    this.#tunnels.set(tunnel.options.name, tunnel)
  }

  /** While the agent runs: adds them and claims their names, on this link if there is one, else on the next. */
  async claim(tunnels: readonly Endpoint[]): Promise<void> {
    for (const tunnel of tunnels) this.add(tunnel)
    const { up } = this.uplink
    if (!up) return
    await this.#publish()
    await this.#claimAll(tunnels)
    if (this.uplink.up === up) this.#openPools(up)
  }

  /** Gives the name back. Whoever came before stays, until `forget`. */
  async release(tunnel: Endpoint): Promise<void> {
    const { name } = tunnel.options
    if (this.#tunnels.get(name) !== tunnel) return
    this.#tunnels.delete(name)
    this.#leaving.add(tunnel)
    if (this.uplink.up) await this.uplink.request({ do: 'release', name })
  }

  /** Ends a tunnel that has no name any more, and the visitors that it still has. */
  forget(tunnel: Endpoint): void {
    this.#leaving.delete(tunnel)
    tunnel.close()
  }

  /** Claims a name for sessions, now and on each new link. Throws what the relay refuses with. */
  async announce(name: string): Promise<void> {
    this.#announced.add(name)
    if (!this.uplink.up) return
    await this.#publish()
    try {
      await this.uplink.request({ do: 'claim', name, kind: 'agent' })
    } catch (error) {
      // Another scope's, for good: the next link need not ask for it.
      if (isTunnelError(error, 'registry/taken')) this.#announced.delete(name)
      throw error
    }
  }

  /** The own passport as it was published last; present once a link is up and there is one. */
  get passport(): { fields: Passport; bytes: Uint8Array } | undefined {
    return this.#passport
  }

  start(): void {
    this.uplink.start()
  }

  close(): void {
    this.#closePools()
    this.uplink.close()
    for (const tunnel of [...this.#tunnels.values(), ...this.#leaving]) tunnel.close()
  }

  /** Certificates changed: the passport must say so. */
  async republish(): Promise<void> {
    if (this.uplink.up) await this.#publish()
  }

  async #admitted(up: Up): Promise<void> {
    // The passport first: who may connect is asked of it as soon as the name leads here.
    await this.#publish()
    await this.#state()
    await this.#claimAll([...this.#tunnels.values()])
    for (const name of this.#announced) {
      await this.uplink.request({ do: 'claim', name, kind: 'agent' })
    }
    this.#closePools()
    this.#openPools(up)
  }

  async #claimAll(tunnels: readonly Endpoint[]): Promise<void> {
    for (let at = 0; at < tunnels.length; at += CLAIMS_MAX) {
      const some = tunnels.slice(at, at + CLAIMS_MAX)
      await Promise.all(some.map((tunnel) => this.#claim(tunnel)))
    }
  }

  async #claim(tunnel: Endpoint): Promise<void> {
    const { onClaimed, onRefused } = this.#options
    try {
      tunnel.claimed(await this.uplink.request(tunnel.claim()))
    } catch (error) {
      // Without a link nothing was refused: all are claimed again on the next one.
      if (!onRefused || !isTunnelError(error) || error.code.startsWith('uplink/')) throw error
      return onRefused(tunnel, error)
    }
    onClaimed?.(tunnel)
  }

  /** Before any name leads here: whoever pinned a predecessor finds why it may follow. */
  async #state(): Promise<void> {
    for (const statement of await this.#options.statements?.() ?? []) {
      try {
        await this.uplink.request({ do: 'publish', statement: toBase64(statement) })
      } catch (error) {
        // What a relay will not keep is no reason not to be there.
        if (!isTunnelError(error) || error.code.startsWith('uplink/')) throw error
      }
    }
  }

  /** What there is no pool for yet, on this link. */
  #openPools(up: Up): void {
    if (up.welcome.bulk === 0 || this.#options.bulkLinks === false) return
    if (this.#counter?.up !== up) {
      let counter = 0
      this.#counter = { up, count: () => ++counter }
    }
    const { count } = this.#counter
    const classes = new Set<TicketClass>()
    for (const { options } of this.#tunnels.values()) {
      if (options.mode === 'verified') classes.add('verified')
      else if (options.mode === 'raw' && options.kind === 'tcp') classes.add('clear')
    }
    const ports = {
      clock: this.#world.clock,
      crypto: this.#world.crypto,
      connect: (kind: TicketClass) => this.#connect(up, kind),
      offered: (offer: Offer) => this.#offered(offer),
    }
    const shares = classes.has('clear') && up.welcome.can.includes('shared')
    for (const kind of classes) {
      if (this.#pools.some((pool) => pool.kind === kind)) continue
      const grows = kind === 'verified' || !shares
      const pool = new BulkPool(ports, { up, kind, count, grows })
      this.#pools.push(pool)
      pool.start()
    }
    if (!shares || this.#shared) return
    const { later } = this.#world
    const opened = (stream: Stream): void => this.#openedShared(stream)
    this.#shared = new SharedBulk({ ...ports, later, opened }, { up, count })
    this.#shared.start()
  }

  /** Verified traffic is TLS already; what is clear gets TLS to the relay, unless it is this machine. */
  async #connect(up: Up, kind: TicketClass): Promise<Conn> {
    const { crypto } = this.#world
    const { relay } = this.#options
    const host = relay.hostname.replace(/^\[|\]$/g, '')
    const port = Number(relay.port) || 443
    const target = { host, port }
    if (isLoopback(host)) {
      const isProxied = proxyFor(this.#world.env, { ...target, secure: true }) !== undefined
      return await (isProxied ? connectOut(this.#world, target) : this.#connectNear(target))
    }
    if (kind === 'verified') return await connectOut(this.#world, target)
    const { certificate } = up
    return await connectTlsOut(this.#world, target, {
      servername: host,
      alpn: ['sotto-bulk/1'],
      ...(certificate
        ? {
          // The same certificate as the link's, which admission has checked.
          verify: (der: Uint8Array) => {
            if (equal(crypto.sha256(der), certificate)) return
            throw new TunnelError(
              'bulk/certificate',
              'Cannot open a bulk link: found another certificate',
            )
          },
        }
        : {}),
    })
  }

  /** On this machine: `localhost` is one of two addresses, and asking for it each time costs a dial. */
  async #connectNear(to: { host: string; port: number }): Promise<Conn> {
    const { net } = this.#world
    const named = !/^[0-9.]+$|:/.test(to.host)
    const dial = (host: string): Promise<Conn> => net.connect({ host, port: to.port })
    if (!named) return await dial(to.host)
    try {
      return await dial(this.#loopback)
    } catch {
      const other = this.#loopback === '::1' ? '127.0.0.1' : '::1'
      const conn = await dial(other)
      this.#loopback = other
      return conn
    }
  }

  #closePools(): void {
    for (const pool of this.#pools) pool.close()
    this.#pools = []
    this.#shared?.close()
    this.#shared = undefined
  }

  #offered(offer: Offer): void {
    const tunnel = this.#tunnels.get(offer.visit.endpoint)
    if (tunnel) tunnel.offered(offer)
    else offer.refuse()
  }

  /** Over a shared link come visitors of raw ports, and nobody else. */
  #openedShared(stream: Stream): void {
    const { endpoint, kind } = stream.visit
    const tunnel = this.#tunnels.get(endpoint)
    if (kind === 'raw' && tunnel) tunnel.opened(stream)
    else stream.reset(RESET.refused, 'no such endpoint')
  }

  #opened(stream: Stream): void {
    const { endpoint, kind } = stream.visit
    if (kind === 'session' || kind === 'datagrams' || kind === 'pair') {
      const { onPeer } = this.#options
      if (onPeer) onPeer(stream)
      else stream.reset(RESET.refused, 'this agent takes no sessions')
      return
    }
    const tunnel = this.#tunnels.get(endpoint)
    const missed = kind === 'tls' ? 'verified' : kind === 'raw' ? 'clear' : undefined
    for (const pool of this.#pools) if (pool.kind === missed) pool.overflowed()
    if (tunnel) tunnel.opened(stream)
    else stream.reset(RESET.refused, 'no such endpoint')
  }

  /** One at a time: two would compare with the same passport, and one of them publish in vain. */
  #publish(): Promise<void> {
    const next = this.#publishing.then(() => this.#publishNow())
    this.#publishing = next.catch(() => {})
    return next
  }

  /** Publishes what this process adds to the identity's passport, by compare-and-set. */
  async #publishNow(): Promise<void> {
    const own = await this.#fingerprints()
    const verified = [...this.#tunnels.values()].filter(({ options }) =>
      options.mode === 'verified'
    )
    const names = [...verified.map(({ options }) => options.name), ...this.#announced]
    const { sessionPublic } = this.#options
    if (own.length === 0 && names.length === 0 && !sessionPublic) return
    const { clock, crypto } = this.#world
    const { identity } = this.#options
    for (let attempt = 1;; attempt++) {
      const current = await this.#current()
      if (current && covers(current.fields, { own, names, sessionPublic, now: clock.now() })) {
        this.#passport = current
        return
      }
      const before = current?.fields
      const passport: Passport = {
        identity: identity.public,
        // The time at least: others remember the newest that they saw, and another relay, or one
        // that lost its store, would have us begin anew below it.
        sequence: Math.max((before?.sequence ?? 0) + 1, clock.now()),
        notBefore: clock.now(),
        notAfter: clock.now() + PASSPORT_MS,
        // Other processes of this identity have put theirs in; the oldest give way.
        certificates: unique([...own, ...(before?.certificates ?? [])]).slice(
          0,
          PASSPORT_CERTIFICATES_MAX,
        ),
        names: [...new Set([...names, ...(before?.names ?? [])])].slice(0, PASSPORT_NAMES_MAX),
        staticKey: sessionPublic ?? before?.staticKey,
        wireguardKey: before?.wireguardKey,
        ciphers: sessionPublic ? [...SESSION_SUITES] : before?.ciphers ?? [],
      }
      const bytes = encodePassport(
        passport,
        (message) => crypto.ed25519Sign(identity.seed, message),
      )
      try {
        await this.uplink.request({
          do: 'publish',
          passport: toBase64(bytes),
          after: before?.sequence ?? 0,
        })
        this.#passport = { fields: passport, bytes }
        return
      } catch (error) {
        if (!isTunnelError(error, 'registry/stale') || attempt >= PUBLISH_ATTEMPTS_MAX) throw error
      }
    }
  }

  async #current(): Promise<{ fields: Passport; bytes: Uint8Array } | undefined> {
    const { crypto, clock } = this.#world
    const { passport } = await this.uplink.request({ do: 'passport' })
    if (typeof passport !== 'string') return undefined
    const bytes = fromBase64(passport)
    const fields = openPassport(crypto, bytes, {
      now: clock.now(),
      identity: this.#options.identity.public,
      // One that has run out still tells the sequence number; a forged one stops us.
      anyTime: true,
    })
    return { fields, bytes }
  }
}

function covers(
  passport: Passport,
  want: { own: Uint8Array[]; names: string[]; sessionPublic: Uint8Array | undefined; now: number },
): boolean {
  const { sessionPublic: key } = want
  return (key === undefined ||
    (passport.staticKey !== undefined && equal(passport.staticKey, key) &&
      SESSION_SUITES.every((suite, i) => passport.ciphers[i] === suite))) &&
    passport.notAfter - want.now > PASSPORT_MS / 2 &&
    want.names.every((name) => passport.names.includes(name)) &&
    want.own.every((mine) => passport.certificates.some((other) => equal(mine, other)))
}

function unique(list: Uint8Array[]): Uint8Array[] {
  return list.filter((one, i) => list.findIndex((other) => equal(one, other)) === i)
}
