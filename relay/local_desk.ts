/**
 * What agents ask of a relay that is one process: names, other agents, rooms and statements are all at
 * hand. The twin for a star on its own is in star.ts.
 */
import { hex } from '../core/bytes.ts'
import type { Clock } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { TunnelError } from '../core/errors.ts'
import type { Visit } from '../core/frame.ts'
import type { Domains } from './domains.ts'
import type { Endpoint, Endpoints } from './endpoints.ts'
import { showsName } from './grants.ts'
import type { Group, Hub } from './hub.ts'
import type { Member } from './member.ts'
import type { Peer } from './peers.ts'
import type { Registry, StoredPassport } from './registry.ts'
import { Entries, Rooms } from './rooms.ts'
import { noDomains } from './rules.ts'
import type { Desk, Entered, Opened, Served } from './requests.ts'
import type { Publisher } from './statements.ts'

/** Reserved names that are looked at for agents that are away. */
const NAMES_MAX = 1000
export const TOKEN_BYTES = 16

export interface LocalDeskPorts {
  crypto: Crypto
  clock: Clock
  registry: Registry
  endpoints: Endpoints
  hubs: ReadonlyMap<string, Hub>
  /** Absent where no visitor brings TLS of his own. */
  domains?: Domains
  claim: Desk['claim']
  release: Desk['release']
}

export class LocalDesk implements Desk {
  readonly crypto: Crypto
  readonly clock: Clock
  readonly claim: Desk['claim']
  readonly release: Desk['release']
  readonly #registry: Registry
  readonly #endpoints: Endpoints
  readonly #hubs: ReadonlyMap<string, Hub>
  readonly #domains: Domains | undefined
  readonly #rooms: Rooms
  readonly #entries: Entries

  constructor(ports: LocalDeskPorts) {
    this.crypto = ports.crypto
    this.clock = ports.clock
    this.claim = ports.claim
    this.release = ports.release
    this.#registry = ports.registry
    this.#endpoints = ports.endpoints
    this.#hubs = ports.hubs
    this.#rooms = new Rooms(ports)
    this.#domains = ports.domains
    if (ports.domains) {
      ports.domains.serves = ({ label, scope }) => this.#endpoints.get(label)?.scope === scope
    }
    this.#entries = new Entries(ports.clock)
  }

  get passports(): Registry {
    return this.#registry
  }

  passport(key: string): Promise<StoredPassport | undefined> {
    return this.#registry.passport(key)
  }

  async serving(name: string): Promise<Served | undefined> {
    const endpoint = this.#endpoints.get(name)
    if (!endpoint || this.#registry.isBlocked(name, endpoint.scope)) return undefined
    const { scope, mode, serving } = endpoint
    const agents = new Map<string, Served['agents'][number]>()
    for (const { agent, labels } of serving.keys()) agents.set(agent, { key: agent, labels })
    return { scope, mode, agents: [...agents.values()] }
  }

  shows(name: string, of: { scope: string; to: string }): boolean {
    return this.#registry.grants.shows(name, of)
  }

  async peers(to: string): Promise<Peer[]> {
    const granted = this.#registry.grants.to(to)
    const rows: Peer[] = []
    for (const hub of this.#hubs.values()) {
      for (const group of hub.groups) {
        const grants = granted.filter(({ scope }) => scope === group.scope)
        const own = group.scope === to
        if (!own && grants.length === 0) continue
        const names = [...group.endpoints].filter((name) => own || showsName(grants, { name, to }))
        if (own || names.length > 0) rows.push(this.#row(group, names))
      }
    }
    for (const scope of new Set([to, ...granted.map((grant) => grant.scope)])) {
      for (const { name } of await this.#registry.list(scope, { limit: NAMES_MAX })) {
        if (this.#endpoints.get(name) || !this.shows(name, { scope, to })) continue
        const key = await this.#registry.latest(name)
        if (key !== undefined) rows.push(awayPeer({ key, scope, name }))
      }
    }
    return rows
  }

  #row(group: Group, names: readonly string[]): Peer {
    const { agent, scope, labels, members } = group
    const since = Math.min(...members.map((member) => member.since))
    return {
      key: agent,
      scope,
      names: names.map((name) => ({ name, kind: this.#endpoints.get(name)!.kind })),
      labels,
      online: true,
      ...(members.length === 0 ? {} : { since: new Date(since).toISOString() }),
    }
  }

  async publish(bytes: Uint8Array, publisher: Publisher): Promise<void> {
    const { statements } = this.#registry
    for (const key of statements.about(bytes, publisher.key)) {
      await statements.keep(key, bytes, publisher)
    }
  }

  statements(key: string): Promise<Uint8Array[]> {
    return this.#registry.statements.of(key)
  }

  async domain(member: Member, domain: string, name: string): Promise<object> {
    const { scope, isRestricted, allows } = member.authorised!
    if (!this.#domains) throw noDomains()
    const endpoint = this.#endpoints.get(name)
    if (endpoint?.scope !== scope || endpoint.mode !== 'verified') {
      throw new TunnelError(
        'domains/endpoint',
        `Cannot claim ${domain.slice(0, 80)}: your scope serves no verified endpoint "${
          name.slice(0, 80)
        }" now`,
      )
    }
    const restriction = isRestricted ? { allows } : {}
    return await this.#domains.claim({ domain, scope, label: name, ...restriction })
  }

  async makeRoom({ agent, group, link, address }: Member): Promise<Opened> {
    return this.#rooms.make({ key: agent, group, link, address })
  }

  async enterRoom(number: number, { agent, address }: Member): Promise<Entered> {
    const room = this.#rooms.enter(number, { key: agent, address })
    const token = hex(this.crypto.randomBytes(TOKEN_BYTES))
    const { key, group, link, expires } = room
    this.#entries.add({ token, room: number, visitor: agent, link, expires })
    return { key, group, token }
  }

  async leaveRoom(number: number, { agent }: Member): Promise<void> {
    if (this.#rooms.leave(number, agent)) this.#entries.drop([number])
  }

  /** A link is gone. */
  left({ link }: Member): void {
    this.#entries.drop(this.#rooms.ended(link))
  }

  /** The link that a visit of kind `pair` leads to. */
  paired({ agent }: Member, { endpoint, tail }: Visit): string | undefined {
    return this.#entries.use(hex(tail), { room: roomOf(endpoint), visitor: agent })
  }

  /** May this visit link open that, by what is shown to its scope? */
  mayVisit(member: Member, visit: Visit): boolean {
    const endpoint = this.#endpoints.get(visit.endpoint)
    if (!endpoint || this.#registry.isBlocked(endpoint.name, endpoint.scope)) return false
    const { name, scope } = endpoint
    return visitable(
      endpoint,
      visit,
      () => this.shows(name, { scope, to: member.authorised!.scope }),
    )
  }
}

/**
 * A `connect` is TLS, and whom the agent lets in is its own affair: verified names are public. A session
 * begins with a handshake that costs the agent something, so it takes being shown the name.
 */
export function visitable(
  { mode }: Pick<Endpoint, 'mode'>,
  { kind }: Visit,
  shown: () => boolean,
): boolean {
  if (kind === 'connect') return mode === 'verified'
  return (mode === 'verified' || mode === 'session') && shown()
}

/** A number as `room` wrote it; 0, which no room has, for anything else. */
export function roomOf(endpoint: string): number {
  return /^[1-9][0-9]{0,8}$/.test(endpoint) ? Number(endpoint) : 0
}

/** Of a name that is reserved and that nobody serves now. */
export function awayPeer(of: { key: string; scope: string; name: string }): Peer {
  const { key, scope, name } = of
  return { key, scope, names: [{ name }], labels: {}, online: false }
}
