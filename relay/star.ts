/**
 * One agent's star on its own: what owns a hub where each hub lives in an object of its own, and
 * names, scopes and other stars are reached by messages. The rules are those of rules.ts, as for all
 * stars of one process (relay.ts). What it must remember through a sleep is `KeptLink`, one for each
 * link, and `KeptClaim`.
 */
import type { Admitted, RelayIdentity } from '../core/admit.ts'
import { hex } from '../core/bytes.ts'
import type { Clock } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { TunnelError } from '../core/errors.ts'
import type { Frame } from '../core/frame.ts'
import type { Labels } from '../core/labels.ts'
import type { Socket } from '../core/socket.ts'
import { readClaim } from './claim.ts'
import { allowsName, needLabels, REFUSED } from './credentials.ts'
import type { Grant } from './credentials.ts'
import type { Directory, ScopeGrants } from './directory.ts'
import { Endpoints } from './endpoints.ts'
import type { Claim } from './endpoints.ts'
import { Hub } from './hub.ts'
import type { Group } from './hub.ts'
import type { Log } from './log.ts'
import { CLOSE, Member } from './member.ts'
import type { Authorised, MemberOwner, MemberSnapshot } from './member.ts'
import type { Peer } from './peers.ts'
import type { Registry } from './registry.ts'
import type { AgentInfo } from './relay.ts'
import { answerRequest } from './requests.ts'
import type { Entry as RoomEntry } from './rooms.ts'
import { checkClaim, claimReply, revokedIdentity, welcomeBody } from './rules.ts'
import type { Place } from './rules.ts'
import { StarDesk } from './star_desk.ts'
import type { StarDeskKept } from './star_desk.ts'
import type { Statements } from './statements.ts'

/** Links of one star that are in admission; more are turned away. */
const ENTERING_MAX = 256
const TOKEN_BYTES = 12

export interface KeptLink extends MemberSnapshot {
  version: string
  labels: Labels
  since: number
  token: string
  admin: boolean
  /** Milliseconds since 1970; absent: never. */
  expiresAt?: number
  /** Streams were open: then nothing of it can be taken up again. */
  busy: boolean
}

export interface KeptClaim extends Claim {
  group: string
  blocked: boolean
}

export interface StarPorts {
  /** KEY of the agent. */
  key: string
  clock: Clock
  crypto: Crypto
  identity: RelayIdentity
  place: Place
  version: string
  windowBytes: number
  openRegistration: boolean
  log: Log
  directory: Directory
  passports: Pick<Registry, 'passport' | 'publishPassport'>
  statements: Pick<Statements, 'about' | 'keep' | 'of' | 'isRevoked'>
  /** What its desk kept. */
  desk: StarDeskKept
  keepDesk(kept: StarDeskKept): void
  claims: KeptClaim[]
  keepClaims(claims: KeptClaim[]): void
  keepLink(socket: Socket, link: KeptLink): void
  /** Work that goes on after the event which began it. */
  background(work: Promise<void>): void
}

interface Entry {
  token: string
  admin: boolean
  names: string[] | undefined
  expiresAt: number | undefined
  since: number
  /** What was kept last, to see what is new. */
  kept: { next: number; peer: number; busy: boolean } | undefined
}

export class Star implements MemberOwner {
  /** No file to read an authority from: keys and tokens admit agents here. */
  readonly takesCertificates = false
  readonly clock: Clock
  readonly crypto: Crypto
  readonly identity: RelayIdentity
  readonly windowBytesMax: number
  /** A timer would keep the object awake; the platform notices dead links. */
  readonly watchesSilence = false
  readonly hub: Hub
  readonly endpoints: Endpoints
  readonly #ports: StarPorts
  readonly #entries = new Map<Member, Entry>()
  readonly #byLink = new Map<string, Group>()
  readonly #busy = new Set<Member>()
  readonly #desk: StarDesk
  #entering = 0
  #claims: KeptClaim[]

  constructor(ports: StarPorts) {
    this.#ports = ports
    this.clock = ports.clock
    this.crypto = ports.crypto
    this.identity = ports.identity
    this.windowBytesMax = ports.windowBytes
    this.endpoints = new Endpoints(ports.clock)
    this.#claims = ports.claims
    this.hub = new Hub(ports.key, {
      mayVisit: (member, visit) => this.#desk.mayVisit(member, visit),
      paired: (member, visit) => this.#desk.paired(member, visit),
      // Other stars of the scope are elsewhere: nobody here knows how many streams it has.
      hold: () => () => {},
      bytes: () => {},
      packets: () => {},
      overdrawn: (member) => this.log('warn', 'stream overdrawn', { agent: member.agent }),
    })
    this.#desk = new StarDesk({
      ...ports,
      kept: ports.desk,
      keep: (kept) => ports.keepDesk(kept),
      hub: () => this.hub,
      endpoints: this.endpoints,
      isBlocked: (name) => this.isBlocked(name),
      claim: (member, body) => this.#claim(member, body),
      release: (member, name) => {
        const group = this.#group(member)
        if (group.endpoints.has(name)) this.#release(group, name)
      },
    })
  }

  /** Something is open that a sleep would lose. */
  get busy(): boolean {
    return this.#busy.size > 0 || this.#entering > 0
  }

  get links(): number {
    return this.hub.size + this.#entering
  }

  /** A new link, already upgraded. */
  attach(socket: Socket, address: string): Member | undefined {
    if (this.#entering >= ENTERING_MAX) {
      socket.close(CLOSE.tooMany, 'too many links')
      return undefined
    }
    const member = new Member(socket, { owner: this, target: this.#ports.key, address })
    this.#entering++
    const token = hex(this.crypto.randomBytes(TOKEN_BYTES))
    this.#entries.set(member, {
      token,
      admin: false,
      names: undefined,
      expiresAt: undefined,
      since: member.since,
      kept: undefined,
    })
    member.start()
    return member
  }

  /** A link of before the sleep. Home links have to come first. */
  wake(socket: Socket, kept: KeptLink): Member | undefined {
    if (kept.busy) {
      socket.close(CLOSE.fault, 'the relay lost its streams')
      this.#ports.background(this.#leave(kept))
      return undefined
    }
    const { key } = this.#ports
    const member = new Member(socket, { owner: this, target: key, address: kept.address })
    const { names, admin } = kept
    member.version = kept.version
    member.labels = kept.labels
    member.restore(kept, (name) => allowsName(names ? { admin, names } : { admin }, name))
    const group = this.hub.add(member)
    if (group) this.#byLink.set(member.link, group)
    this.#entries.set(member, {
      token: kept.token,
      admin,
      names,
      expiresAt: kept.expiresAt,
      since: kept.since,
      kept: { ...kept.ids, busy: false },
    })
    return member
  }

  /** Joins the claims to the links that woke; those whose process is gone are given back. */
  wakeClaims(): void {
    const claims = this.#claims
    this.#claims = claims.filter((claim) => this.hub.group(claim.group) !== undefined)
    for (const claim of this.#claims) {
      this.endpoints.join(this.hub.group(claim.group)!, claim)
    }
    if (this.#claims.length === claims.length) return
    for (const claim of claims) {
      if (!this.#claims.includes(claim)) this.#giveBack(claim.group, claim.name)
    }
    this.#ports.keepClaims(this.#claims)
  }

  async authorise({ credential, labels }: Admitted, member: Member): Promise<Authorised> {
    const entry = this.#entries.get(member)!
    const link = { agent: member.agent, token: entry.token }
    let grant: Grant
    if (credential.kind === 'key' || credential.kind === 'token') {
      const { secret } = credential
      grant = await this.#ports.directory.admit({ ...link, scope: scopeOfSecret(secret), secret })
    } else if (credential.kind === 'none' && this.#ports.openRegistration) {
      // A scope of its own for each key: what nobody vouched for shares nothing with anybody.
      const scope = `open-${member.agent.slice(0, 20)}`
      grant = await this.#ports.directory.admit({ ...link, scope })
    } else {
      throw new TunnelError('admit/credential', 'Cannot admit the link: found no credential', {
        hint: 'Log in first: sotto login RELAY. Or set SOTTO_API_KEY.',
      })
    }
    try {
      needLabels(grant, labels)
    } catch (error) {
      this.#ports.background(this.#leave({ scope: grant.scope, token: entry.token }))
      throw error
    }
    entry.admin = grant.admin
    entry.names = grant.names
    entry.expiresAt = grant.expiresAt
    // After the credential: nobody without one leaves a trace in the star of another.
    const { statements, directory, key } = this.#ports
    const revoked = member.agent === key
      ? await statements.isRevoked(key)
      : await directory.isRevoked(member.agent)
    if (revoked || !this.#entries.has(member)) {
      this.#ports.background(this.#leave({ scope: grant.scope, token: entry.token }))
      if (revoked) throw revokedIdentity()
    }
    return { scope: grant.scope, grant: grant.id, allows: (name) => allowsName(grant, name) }
  }

  joined(member: Member): object {
    const group = this.hub.add(member)
    this.#entering--
    if (group) this.#byLink.set(member.link, group)
    const { place, version, windowBytes } = this.#ports
    return welcomeBody({ scope: member.authorised!.scope, address: member.address }, place, {
      version,
      windowBytes,
    })
  }

  forward(member: Member, frame: Frame, message: Uint8Array): boolean {
    const before = this.hub.streams
    const forwarded = this.hub.forward(member, frame, message)
    if (this.hub.streams !== before) this.sweep()
    return forwarded
  }

  drained(member: Member): void {
    this.hub.drained(member)
  }

  left(member: Member, reason: string): void {
    const entry = this.#entries.get(member)
    if (!this.#entries.delete(member)) return
    this.#busy.delete(member)
    const { authorised } = member
    if (authorised) this.#ports.background(this.#leave({ ...entry!, scope: authorised.scope }))
    // Refused by the hub itself: it was counted as entering and never joined.
    if (!authorised || ![...this.hub.members()].includes(member)) {
      this.#entering--
      return
    }
    this.#byLink.delete(member.link)
    this.#desk.left(member)
    const group = this.hub.remove(member)
    for (const name of group ? [...group.endpoints] : []) this.#release(group!, name)
    this.sweep()
    this.log('info', 'link closed', { agent: member.agent, role: member.role, reason })
  }

  changed(member: Member): void {
    this.touch(member)
  }

  log(level: 'info' | 'warn', event: string, fields: Record<string, unknown>): void {
    this.#ports.log[level](event, fields as Record<string, string>)
  }

  async request(member: Member, body: Record<string, unknown>): Promise<object> {
    return await answerRequest(this.#desk, member, body)
  }

  isBlocked(name: string): boolean {
    return this.#claims.some((claim) => claim.name === name && claim.blocked)
  }

  /** A name is cut off, or let in again. */
  block(name: string, blocked: boolean): void {
    this.#claims = this.#claims.map((claim) => claim.name === name ? { ...claim, blocked } : claim)
    this.#ports.keepClaims(this.#claims)
    if (blocked) this.hub.cutEndpoint(name)
    this.sweep()
  }

  cut(chosen: (member: Member) => boolean, reason: string): number {
    return this.hub.cut(chosen, reason)
  }

  /** Somebody has entered a room of a link here; false where that is gone. */
  expect(entry: RoomEntry): boolean {
    return this.#desk.expect(entry)
  }

  /** What a scope shows to others has changed. */
  setGrants(grants: ScopeGrants): void {
    this.#desk.setGrants(grants)
  }

  /** Agents of the scope here, with all their names. */
  peers(scope: string): Peer[] {
    return this.hub.groups.filter((group) => group.scope === scope).map((group) => {
      const times = group.members.map((one) => this.#entries.get(one)?.since ?? one.since)
      return {
        key: this.#ports.key,
        scope,
        names: [...group.endpoints].map((name) => ({
          name,
          kind: this.endpoints.get(name)!.kind,
        })),
        labels: group.labels,
        online: true,
        since: new Date(Math.min(...times)).toISOString(),
      }
    })
  }

  /** When the next credential of a link expires, in milliseconds since 1970. */
  get expiresAt(): number | undefined {
    const times = [...this.#entries.values()].map((entry) => entry.expiresAt ?? Infinity)
    const first = Math.min(...times)
    return first === Infinity ? undefined : first
  }

  /** Links end with their credential. */
  expire(): void {
    const now = this.clock.now()
    for (const [member, { expiresAt }] of [...this.#entries]) {
      if (expiresAt === undefined || expiresAt > now) continue
      member.notice('credentials/expired', 'The credential of this link has expired')
      member.close(CLOSE.revoked, 'the credential has expired')
    }
  }

  /** Tokens of the links that are up, for a directory that lost count. */
  tokens(): string[] {
    return [...this.#entries.values()].map(({ token }) => token)
  }

  agents(scope?: string): AgentInfo[] {
    const agents: AgentInfo[] = []
    for (const group of this.hub.groups) {
      if (scope !== undefined && group.scope !== scope) continue
      const [member] = group.members
      const since = member ? this.#entries.get(member)?.since : undefined
      agents.push({
        key: this.#ports.key,
        scope: group.scope,
        group: group.id,
        version: member?.version ?? '',
        labels: member?.labels ?? {},
        address: member?.address ?? '',
        since: new Date(since ?? 0).toISOString(),
        endpoints: [...group.endpoints],
        streams: group.members.reduce((sum, one) => sum + one.streams, 0),
        bulkIdle: 0,
      })
    }
    return agents
  }

  /** Keeps what is new about a link, so that a sleep may come at any time. */
  touch(member: Member): void {
    const entry = this.#entries.get(member)
    if (!entry || !member.up || !member.mux) return
    const busy = member.mux.size + member.forwards.size > 0
    const { next, peer } = member.mux.ids
    const { kept } = entry
    if (busy) this.#busy.add(member)
    else this.#busy.delete(member)
    // While it is busy the numbers change all the time, and none of them would be of use.
    if (kept && kept.busy === busy && (busy || (kept.next === next && kept.peer === peer))) return
    entry.kept = { next, peer, busy }
    this.#ports.keepLink(member.socket, {
      ...member.snapshot(),
      version: member.version,
      labels: member.labels,
      since: entry.since,
      token: entry.token,
      admin: entry.admin,
      busy,
      ...(entry.names ? { names: entry.names } : {}),
      ...(entry.expiresAt === undefined ? {} : { expiresAt: entry.expiresAt }),
    })
  }

  /** Looks at every link that may have gained or lost its last stream. */
  sweep(): void {
    for (const member of [...this.#busy]) this.touch(member)
    for (const group of this.hub.groups) {
      for (const member of group.members) this.touch(member)
    }
  }

  #group(member: Member): Group {
    const group = this.#byLink.get(member.link)
    if (!group) throw new TunnelError('hub/gone', 'Cannot answer the request: the link is gone')
    return group
  }

  async #claim(member: Member, body: Record<string, unknown>): Promise<object> {
    const { directory, place } = this.#ports
    const claim = readClaim(body)
    const group = this.#group(member)
    checkClaim(claim, { place, allows: member.authorised!.allows })
    const { scope, agent, labels } = group
    if (claim.mode !== 'raw') await this.#desk.learn(scope)
    await directory.claim({ ...claim, scope, agent, group: group.id, labels })
    if (group.members.length === 0) {
      this.#giveBack(group.id, claim.name)
      throw new TunnelError('hub/gone', 'Cannot claim: the link is gone')
    }
    this.endpoints.join(group, claim)
    this.#claims = this.#claims.filter((kept) =>
      kept.name !== claim.name || kept.group !== group.id
    )
    this.#claims.push({ ...claim, group: group.id, blocked: false })
    this.#ports.keepClaims(this.#claims)
    return claimReply(claim, place)
  }

  #release(group: Group, name: string): void {
    this.endpoints.leave(group, name)
    this.#claims = this.#claims.filter((kept) => kept.name !== name || kept.group !== group.id)
    this.#ports.keepClaims(this.#claims)
    this.#giveBack(group.id, name)
  }

  #giveBack(group: string, name: string): void {
    const { directory, background, key } = this.#ports
    background(directory.unclaim({ name, agent: key, group }))
  }

  async #leave(link: { scope: string; token: string }): Promise<void> {
    await this.#ports.directory.left({ scope: link.scope, token: link.token })
  }
}

/** A secret names its scope, so the secret alone says where to ask. Throws `credentials/unknown`. */
export function scopeOfSecret(secret: string): string {
  const scope = /^(?:sk|ft|ak)_([a-z0-9-]{1,63})_/.exec(secret.slice(0, 80))?.[1]
  if (scope === undefined) {
    throw new TunnelError(
      'credentials/unknown',
      REFUSED,
      { hint: 'Ask the operator for a new one: sotto relay keys create' },
    )
  }
  return scope
}
