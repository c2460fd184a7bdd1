/**
 * What agents ask of a star on its own: names, scopes, rooms and other stars are messages away. The
 * twin for all stars of one process is in local_desk.ts. Streams cannot wait for messages, so what a
 * scope shows to others, and who has entered a room of an agent here, is told to the star beforehand.
 */
import { hex } from '../core/bytes.ts'
import type { Clock } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import type { Visit } from '../core/frame.ts'
import type { Directory, ScopeGrants } from './directory.ts'
import type { Endpoints } from './endpoints.ts'
import { showsName } from './grants.ts'
import type { Hub } from './hub.ts'
import { roomOf, visitable } from './local_desk.ts'
import type { Member } from './member.ts'
import type { Peer } from './peers.ts'
import type { Registry, StoredPassport } from './registry.ts'
import { Entries } from './rooms.ts'
import { noDomains } from './rules.ts'
import type { Entry } from './rooms.ts'
import type { Desk, Entered, Opened, Served } from './requests.ts'
import type { Publisher, Statements } from './statements.ts'

/** What is kept through a sleep. */
export interface StarDeskKept {
  entries: Entry[]
  grants: ScopeGrants[]
  /** Links that have made rooms. */
  makers: string[]
}

export interface StarDeskPorts {
  /** KEY of the agent. */
  key: string
  crypto: Crypto
  clock: Clock
  directory: Directory
  passports: Pick<Registry, 'passport' | 'publishPassport'>
  statements: Pick<Statements, 'about' | 'keep' | 'of'>
  kept: StarDeskKept
  keep(kept: StarDeskKept): void
  hub(): Hub
  endpoints: Endpoints
  isBlocked(name: string): boolean
  claim: Desk['claim']
  release: Desk['release']
  /** Work that goes on after the event which began it. */
  background(work: Promise<void>): void
}

export class StarDesk implements Desk {
  readonly crypto: Crypto
  readonly clock: Clock
  readonly passports: StarDeskPorts['passports']
  readonly claim: Desk['claim']
  readonly release: Desk['release']
  readonly #ports: StarDeskPorts
  readonly #entries: Entries
  #kept: StarDeskKept

  constructor(ports: StarDeskPorts) {
    this.#ports = ports
    this.crypto = ports.crypto
    this.clock = ports.clock
    this.passports = ports.passports
    this.claim = ports.claim
    this.release = ports.release
    this.#kept = ports.kept
    this.#entries = new Entries(ports.clock, ports.kept.entries, (entries) => {
      this.#keep({ ...this.#kept, entries })
    })
  }

  #keep(kept: StarDeskKept): void {
    this.#kept = kept
    this.#ports.keep(kept)
  }

  async passport(key: string): Promise<StoredPassport | undefined> {
    const { passports, directory } = this.#ports
    return await (key === this.#ports.key ? passports : directory).passport(key)
  }

  serving(name: string): Promise<Served | undefined> {
    return this.#ports.directory.serving(name)
  }

  async shows(name: string, of: { scope: string; to: string }): Promise<boolean> {
    return of.scope === of.to || await this.#ports.directory.shows(name, of)
  }

  peers(scope: string): Promise<Peer[]> {
    return this.#ports.directory.peers(scope)
  }

  async publish(bytes: Uint8Array, publisher: Publisher): Promise<void> {
    const { key, statements, directory } = this.#ports
    for (const about of statements.about(bytes, publisher.key)) {
      if (about === key) await statements.keep(about, bytes, publisher)
      else await directory.keepStatement(about, bytes, publisher)
    }
  }

  async statements(key: string): Promise<Uint8Array[]> {
    const { statements, directory } = this.#ports
    return await (key === this.#ports.key ? statements.of(key) : directory.statements(key))
  }

  domain(): Promise<object> {
    return Promise.reject(noDomains())
  }

  async makeRoom({ agent, group, link, address }: Member): Promise<Opened> {
    this.#keep({ ...this.#kept, makers: [...new Set([...this.#kept.makers, link])] })
    return await this.#ports.directory.makeRoom({ key: agent, group, link, address })
  }

  async enterRoom(room: number, { agent, address }: Member): Promise<Entered> {
    return await this.#ports.directory.enterRoom(room, { key: agent, address })
  }

  async leaveRoom(room: number, { agent }: Member): Promise<void> {
    this.#entries.drop([room])
    await this.#ports.directory.leaveRoom(room, agent)
  }

  /** Somebody has entered a room of an agent here. False where its link is gone. */
  expect(entry: Entry): boolean {
    const there = this.#ports.hub().groups.some(({ members }) =>
      members.some(({ link }) => link === entry.link)
    )
    if (there) this.#entries.add(entry)
    return there
  }

  /** A link is gone, and the rooms that it made. */
  left({ link }: Member): void {
    if (!this.#kept.makers.includes(link)) return
    this.#keep({ ...this.#kept, makers: this.#kept.makers.filter((maker) => maker !== link) })
    this.#entries.dropOf(link)
    this.#ports.background(this.#ports.directory.linkEnded(link))
  }

  /** The link that a visit of kind `pair` leads to. */
  paired({ agent }: Member, { endpoint, tail }: Visit): string | undefined {
    return this.#entries.use(hex(tail), { room: roomOf(endpoint), visitor: agent })
  }

  /** May this visit link open that, by what is shown to its scope? */
  mayVisit(member: Member, visit: Visit): boolean {
    const endpoint = this.#ports.endpoints.get(visit.endpoint)
    if (!endpoint || this.#ports.isBlocked(endpoint.name)) return false
    const { name, scope } = endpoint
    const to = member.authorised!.scope
    return visitable(endpoint, visit, () => {
      if (scope === to) return true
      const known = this.#kept.grants.find((one) => one.scope === scope)
      return showsName(known?.grants ?? [], { name, to })
    })
  }

  /** Before a name is claimed: what its scope shows to others. */
  async learn(scope: string): Promise<void> {
    this.setGrants(await this.#ports.directory.grants(scope))
  }

  /** Told by the scope, now or before a claim; the older of two that cross is dropped. */
  setGrants(fresh: ScopeGrants): void {
    const known = this.#kept.grants.find(({ scope }) => scope === fresh.scope)
    if (known && known.version >= fresh.version) return
    if (!known && fresh.grants.length === 0) return
    const others = this.#kept.grants.filter((one) => one !== known)
    this.#keep({ ...this.#kept, grants: [...others, fresh] })
  }
}
