/**
 * One relay in one process: a hub for each agent, the live endpoints, the ingress, the public ports,
 * and the rules of who may do what. Everything that names a runtime reaches it as a port.
 */
import type { Admitted, RelayIdentity } from '../core/admit.ts'
import { hex } from '../core/bytes.ts'
import type { Clock, Timer } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { TunnelError } from '../core/errors.ts'
import type { Frame } from '../core/frame.ts'
import type { Labels } from '../core/labels.ts'
import type { Conn, Socket } from '../core/socket.ts'
import { checkTicket } from '../core/ticket.ts'
import type { Ticket } from '../core/ticket.ts'
import { BulkLink } from './bulk.ts'
import { certified } from './client_ca.ts'
import type { CertificateVerifier } from './client_ca.ts'
import { readClaim } from './claim.ts'
import type { Credentials, Grant } from './credentials.ts'
import { allowsName, needLabels } from './credentials.ts'
import type { Domains } from './domains.ts'
import { Endpoints } from './endpoints.ts'
import { checkedGrant } from './failures.ts'
import { countPackets, Hub, sendOver } from './hub.ts'
import type { Group, HubEvents } from './hub.ts'
import { Ingress } from './ingress.ts'
import { LocalDesk } from './local_desk.ts'
import type { Log } from './log.ts'
import { CLOSE, Member } from './member.ts'
import type { Authorised, MemberOwner } from './member.ts'
import type { Metrics } from './metrics.ts'
import { mergePeers } from './peers.ts'
import type { Peer } from './peers.ts'
import { PublicPorts } from './public_ports.ts'
import type { PublicPortsNet } from './public_ports.ts'
import { addressWho, paceOf, quotaError, scopeWho } from './quota.ts'
import type { GaugeKind, Quota } from './quota.ts'
import type { Registry } from './registry.ts'
import type { RevokedCertificates } from './revoked_certificates.ts'
import { answerRequest } from './requests.ts'
import { checkClaim, claimReply, portsClosed, revokedIdentity, welcomeBody } from './rules.ts'
import type { Place } from './rules.ts'
import type { Settings } from './settings.ts'
import { countForwarded, countVisitor, readGauges, refusal } from './tally.ts'
import { Visitors } from './visitors.ts'

/** What a stalled visitor of the ingress may cost: its stream's receive window. */
const INGRESS_WINDOW_BYTES_MAX = 2_097_152
/** What an agent's receive windows may grow to. */
const LINK_WINDOW_BYTES_MAX = 16_777_216
/** Links of one process that are in admission or up; more are turned away. */
const LINKS_MAX = 65_536

const CONNECTION: readonly GaugeKind[] = ['connections']
const STREAM: readonly GaugeKind[] = ['streams']
const VISITOR: readonly GaugeKind[] = ['connections', 'streams']
/** Agents of a relay that goes come back spread over so long at most. */
const SPREAD_MS_MAX = 10_000
/** How often silent links are looked for: so much later than `SILENCE_MS_MAX` they may be found. */
const WATCH_MS = 1000

/** Takes a connection in, with what was read of it; `left` is called once, when it counts no more. */
export type Inward = (conn: Conn, first: Uint8Array, left: (conn: Conn) => void) => void

export interface RelayPorts {
  clock: Clock
  crypto: Crypto
  identity: RelayIdentity
  credentials: Credentials
  registry: Registry
  quota: Quota
  metrics: Metrics
  log: Log
  settings: Settings
  version: string
  /** Absent where the runtime has no raw sockets: then no ingress, bulk links or public ports. */
  net?: PublicPortsNet
  app?: Inward
  readable?(name: string): Inward
  /** Undefined: no CA has been asked for that name. */
  challenge?(name: string): Inward | undefined
  bulkTls?: Inward
  /** Checks client certificates; absent where the relay has no authority for them. */
  verifyCertificate?: CertificateVerifier
  /** Certificates that admit nobody any more. */
  revoked?: RevokedCertificates
  domains?: Domains
  /** The public port as URLs name it, known when the listener is up. */
  publicPort(): number
  /** How its URLs begin, and whether inspectable endpoints are paths; default https, by name. */
  web?: { scheme: 'http' | 'https'; paths: boolean }
  /** The most that windows grow to where the runtime cannot slow a sender down. */
  windowBytesMax?: number
  /** False where the runtime hides pings; then it has to notice dead links by itself. */
  watchesSilence?: boolean
}

/** One live member as the API shows it. */
export interface AgentInfo {
  key: string
  scope: string
  group: string
  version: string
  labels: Labels
  address: string
  since: string
  endpoints: string[]
  streams: number
  bulkIdle: number
}

export class Relay implements MemberOwner {
  readonly crypto: Crypto
  readonly clock: Clock
  readonly identity: RelayIdentity
  readonly windowBytesMax: number
  readonly watchesSilence: boolean
  readonly takesCertificates: boolean
  readonly endpoints: Endpoints
  readonly visitors: Visitors
  readonly ingress: Ingress
  readonly publicPorts: PublicPorts | undefined
  readonly #ports: RelayPorts
  readonly #hubs = new Map<string, Hub>()
  /** All that were admitted. */
  readonly #byLink = new Map<string, Member>()
  readonly #entering = new Set<Member>()
  /** One for all hubs: each agent has a hub, and most are idle. */
  readonly #hubEvents: HubEvents = {
    mayVisit: (member, visit) => this.#desk.mayVisit(member, visit),
    paired: (member, visit) => this.#desk.paired(member, visit),
    // A room's number is nobody's name.
    hold: ({ address }, { kind, endpoint }) =>
      this.holdStream(address, kind === 'pair' ? undefined : this.endpoints.get(endpoint)?.scope),
    bytes: (count, { kind, direction }) =>
      this.#ports.metrics.bytes.add({ direction, route: kind }, count),
    packets: (result, payload) =>
      countForwarded(this.#ports.metrics, result, countPackets(payload)),
    overdrawn: () => this.#ports.metrics.refused.add({ reason: 'overload' }),
  }
  /** One for all: a closure for each connection that is kept is memory of an idle agent. */
  readonly #left = (conn: Conn): void =>
    this.#ports.quota.letGo('connections', { address: conn.remoteAddress })
  #watch: Timer | undefined
  readonly #desk: LocalDesk
  #draining = false
  /** Another process has the port by now, and agents need not wait for this one's end. */
  succeeded = false

  constructor(ports: RelayPorts) {
    this.#ports = ports
    this.crypto = ports.crypto
    this.clock = ports.clock
    this.identity = ports.identity
    this.windowBytesMax = ports.windowBytesMax ?? INGRESS_WINDOW_BYTES_MAX
    this.watchesSilence = ports.watchesSilence ?? true
    this.takesCertificates = ports.verifyCertificate !== undefined
    const { clock, crypto, settings, quota } = ports
    this.endpoints = new Endpoints(clock)
    this.#desk = new LocalDesk({
      ...ports,
      endpoints: this.endpoints,
      hubs: this.#hubs,
      claim: (member, body) => this.#claim(member, body),
      release: (member, name) => {
        const group = this.#group(member)
        if (group.endpoints.has(name)) this.#release(group, name)
      },
    })
    this.visitors = new Visitors({
      clock,
      crypto,
      endpoints: this.endpoints,
      hold: (address, scope) => this.#hold(address, scope),
      pace: (address, scope) => paceOf(quota, { clock, holders: [{ address }, { scope }] }),
      outcome: (result) => countVisitor(ports.metrics, result),
    })
    const admits = (address: string, scope: string): boolean =>
      quota.take('visitors', { address }).ok && quota.take('visitors', { scope }).ok
    const refused = this.turnedAway.bind(this)
    this.ingress = new Ingress({
      clock,
      endpoints: this.endpoints,
      visitors: this.visitors,
      ownNames: new Set(settings.names),
      secureDomain: settings.secureDomain,
      appsDomain: settings.appsDomain,
      domain: (name) => ports.domains?.find(name),
      publicPort: () => ports.publicPort(),
      app: (conn, first) => this.#inside(conn, { first, to: ports.app }),
      readable: (conn, first, name) => this.#inside(conn, { first, to: ports.readable?.(name) }),
      challenge: (conn, first, name) => this.#inside(conn, { first, to: ports.challenge?.(name) }),
      bulkTls: (conn, first) => this.#inside(conn, { first, to: ports.bulkTls }),
      claim: (conn, ticket) => this.claimBulk(conn, ticket),
      admits,
      blocked: (name, scope) => ports.registry.isBlocked(name, scope) !== undefined,
      refused,
    })
    this.publicPorts = ports.net && new PublicPorts({
      net: ports.net,
      endpoints: this.endpoints,
      visitors: this.visitors,
      host: settings.host,
      range: settings.publicPorts,
      admits,
      hold: (address, scope) => this.holdStream(address, scope),
      refused,
      packets: (count, result) => countForwarded(ports.metrics, result, count),
    })
    readGauges(ports.metrics, {
      hubs: this.#hubs,
      visitors: this.visitors,
      draining: () => this.#draining,
    })
    ports.credentials.onRevoked((grant) => {
      this.cut((member) => member.authorised?.grant === grant, 'its credential was revoked')
    })
    ports.revoked?.onRevoked(({ serial }) => {
      this.cut(
        ({ authorised }) => authorised?.serials?.includes(serial) ?? false,
        'its certificate was revoked',
      )
    })
    ports.registry.statements.onRevoked((key) => {
      for (const member of [...this.#entering]) {
        if (member.agent === key) member.refuse(revokedIdentity())
      }
      this.cut(({ agent }) => agent === key, 'its identity was revoked')
    })
    ports.registry.onBlocked((block) => {
      this.visitors.cut(({ endpoint }) =>
        endpoint.name === block.name || endpoint.scope === block.scope
      )
      if (block.name !== undefined) {
        for (const hub of this.#hubs.values()) hub.cutEndpoint(block.name)
      }
      if (block.scope !== undefined) {
        this.cut((member) => member.authorised?.scope === block.scope, 'its scope was blocked')
      }
    })
  }

  turnedAway(reason: string, fields: { address: string; serverName?: string }): void {
    this.#ports.metrics.refused.add({ reason: refusal(reason) })
    this.#ports.log.info('visitor refused', { reason, ...fields })
  }

  /** Counts a connection against its address, and a visitor's against its scope as well. */
  #hold(address: string, scope?: string): (() => void) | undefined {
    return this.#holdOf(scope === undefined ? CONNECTION : VISITOR, { address, scope })
  }

  /** Counts what an agent carries without a connection of its own here; undefined: as many as may. */
  holdStream(address: string, scope: string | undefined): (() => void) | undefined {
    return this.#holdOf(STREAM, { address, scope })
  }

  #holdOf(
    kinds: readonly GaugeKind[],
    { address, scope }: { address: string; scope: string | undefined },
  ): (() => void) | undefined {
    const who = addressWho(address)
    const held = this.#ports.quota.holdAll(
      kinds,
      scope === undefined ? [who] : [who, scopeWho(scope)],
    )
    return held.ok ? held.release : undefined
  }

  /** A connection for the relay's own servers. */
  #inside(conn: Conn, { first, to }: { first: Uint8Array; to: Inward | undefined }): void {
    if (to && this.#hold(conn.remoteAddress)) return to(conn, first, this.#left)
    if (to) this.#ports.metrics.refused.add({ reason: 'quota' })
    conn.abort()
  }

  get draining(): boolean {
    return this.#draining
  }

  get links(): number {
    return this.#entering.size + this.#byLink.size
  }

  agents(scope?: string): AgentInfo[] {
    const agents: AgentInfo[] = []
    for (const hub of this.#hubs.values()) {
      for (const group of hub.groups) {
        if (scope !== undefined && group.scope !== scope) continue
        const [member] = group.members
        agents.push({
          key: hub.key,
          scope: group.scope,
          group: group.id,
          version: member?.version ?? '',
          labels: member?.labels ?? {},
          address: member?.address ?? '',
          since: new Date(member?.since ?? 0).toISOString(),
          endpoints: [...group.endpoints],
          streams: group.members.reduce((sum, { streams }) => sum + streams, group.sharedStreams),
          bulkIdle: group.bulkIdle,
        })
      }
    }
    return agents
  }

  /** Agents that those of a scope may see. */
  async peers(scope: string): Promise<Peer[]> {
    return mergePeers(await this.#desk.peers(scope))
  }

  /** A new link on `/v1/link/KEY`, already upgraded. */
  attach(socket: Socket, link: { key: string; address: string }): void {
    const hold = this.#ports.quota.hold('links', { address: link.address })
    if (!hold.ok || this.links >= LINKS_MAX || this.#draining) {
      if (hold.ok) hold.release()
      socket.handle({ message() {}, closed() {} })
      socket.close(this.#draining ? CLOSE.restarting : CLOSE.tooMany, 'too many links')
      return
    }
    const member = new Member(socket, {
      owner: this,
      target: link.key,
      address: link.address,
    })
    this.#entering.add(member)
    member.start()
  }

  /** One timer for all links; what their pings say is only looked at. */
  #watchAll(): void {
    this.#watch ??= this.clock.after(WATCH_MS, () => {
      this.#watch = undefined
      for (const member of this.#byLink.values()) member.look()
      if (this.#byLink.size > 0) this.#watchAll()
    })
  }

  async authorise(admitted: Admitted, member: Member): Promise<Authorised> {
    const { credentials, registry, quota } = this.#ports
    const { credential } = admitted
    let authorised: Authorised
    if (await registry.statements.isRevoked(member.agent)) throw revokedIdentity()
    if (credential.kind !== 'none') {
      const grant = await checkedGrant(
        quota,
        { credential, address: member.address },
        () =>
          credential.kind === 'certificate'
            ? certified(this.#ports, credential)
            : credentials.verify(credential.secret),
      )
      needLabels(grant, admitted.labels)
      authorised = {
        scope: grant.scope,
        grant: grant.id,
        expiresAt: grant.expiresAt,
        serials: grant.serials,
        allows: allowedBy(grant),
        isRestricted: !grant.admin && grant.names !== undefined && !grant.names.includes('*'),
      }
      this.#limitAgents(grant, member)
    } else if (this.#ports.settings.openRegistration) {
      // A scope of its own for each key: what nobody vouched for shares nothing with anybody.
      const scope = `open-${member.agent.slice(0, 20)}`
      authorised = { scope, grant: `open/${member.agent}`, allows: ANY_NAME }
    } else {
      throw new TunnelError('admit/credential', 'Cannot admit the link: found no credential', {
        hint: 'Log in first: sotto login RELAY. Or set SOTTO_API_KEY.',
      })
    }
    if (registry.isBlocked(undefined, authorised.scope)) {
      throw new TunnelError('relay/blocked', 'Cannot admit the link: its scope is blocked here')
    }
    const hold = quota.hold('links', { scope: authorised.scope })
    if (!hold.ok) throw quotaError(hold, 'the link')
    if (this.#entering.has(member)) member.countedIn = authorised.scope
    else hold.release()
    return authorised
  }

  #limitAgents(grant: Grant, member: Member): void {
    if (grant.maxAgents === undefined) return
    const agents = new Set([member.agent])
    for (const hub of this.#hubs.values()) {
      for (const other of hub.members()) {
        if (other.authorised?.grant === grant.id) agents.add(other.agent)
      }
    }
    if (agents.size > grant.maxAgents) {
      throw new TunnelError(
        'quota/exceeded',
        `Cannot admit the link: found ${grant.maxAgents} agents on this fleet token, the most it allows`,
      )
    }
  }

  joined(member: Member): object {
    const key = member.target
    let hub = this.#hubs.get(key)
    if (!hub) {
      hub = new Hub(key, this.#hubEvents)
      this.#hubs.set(key, hub)
    }
    hub.add(member)
    this.#entering.delete(member)
    this.#byLink.set(member.link, member)
    if (this.watchesSilence) this.#watchAll()
    this.#ports.metrics.handshakes.add({ result: 'admitted' })
    return welcomeBody({ scope: member.authorised!.scope, address: member.address }, this.#place, {
      version: this.#ports.version,
      windowBytes: this.#ports.windowBytesMax ?? LINK_WINDOW_BYTES_MAX,
    })
  }

  get #place(): Place {
    const { settings, net, web, publicPort } = this.#ports
    return {
      settings,
      raw: net !== undefined,
      port: publicPort(),
      scheme: web?.scheme ?? 'https',
      paths: web?.paths ?? false,
    }
  }

  forward(member: Member, frame: Frame, message: Uint8Array): boolean {
    return this.#hubs.get(member.target)?.forward(member, frame, message) ?? false
  }

  drained(member: Member): void {
    this.#hubs.get(member.target)?.drained(member)
  }

  left(member: Member, reason: string): void {
    const { quota } = this.#ports
    quota.letGo('links', { address: member.address })
    if (member.countedIn !== undefined) quota.letGo('links', { scope: member.countedIn })
    if (this.#entering.delete(member)) return
    if (!member.authorised) return
    this.#byLink.delete(member.link)
    this.#desk.left(member)
    // Nobody closed that link, so nobody will close what its process had beside it.
    if (reason === 'silent' || reason === 'replaced') {
      this.visitors.cut(({ link }) => link === member.link)
    }
    const key = member.target
    const hub = this.#hubs.get(key)
    const group = hub?.remove(member)
    if (group) {
      for (const name of [...group.endpoints]) this.#release(group, name)
    }
    if (hub?.size === 0) this.#hubs.delete(key)
    this.log('info', 'link closed', { agent: member.agent, role: member.role, reason })
  }

  log(level: 'info' | 'warn', event: string, fields: Record<string, unknown>): void {
    this.#ports.log[level](event, fields as Record<string, string>)
  }

  async request(member: Member, body: Record<string, unknown>): Promise<object> {
    const taken = this.#ports.quota.take('requests', scopeWho(member.authorised!.scope))
    if (!taken.ok) throw quotaError(taken)
    return await answerRequest(this.#desk, member, body)
  }

  #group(member: Member): Group {
    const group = this.#groupOf(member)
    if (!group) throw new TunnelError('hub/gone', 'Cannot answer the request: the link is gone')
    return group
  }

  #groupOf(member: Member): Group | undefined {
    return this.#hubs.get(member.target)?.group(member.group)
  }

  async #claim(member: Member, body: Record<string, unknown>): Promise<object> {
    const { registry, settings } = this.#ports
    const claim = readClaim(body)
    const group = this.#group(member)
    checkClaim(claim, { place: this.#place, allows: member.authorised!.allows })
    if (registry.isBlocked(claim.name, group.scope)) {
      throw new TunnelError(
        'relay/blocked',
        `Cannot claim "${claim.name}": it is blocked on this relay`,
      )
    }
    await registry.reserve({ name: claim.name, scope: group.scope })
    await registry.memberJoined(
      claim.name,
      group.agent,
      claim.mode === 'session' ? 'agents' : 'visitors',
    )
    if (group.members.length === 0) {
      throw new TunnelError('hub/gone', 'Cannot claim: the link is gone')
    }
    const endpoint = this.endpoints.join(group, claim)
    if (claim.mode === 'raw') {
      try {
        endpoint.port = await this.#openPort(claim.name, { kind: claim.kind, port: claim.port })
      } catch (error) {
        this.#release(group, claim.name)
        throw error
      }
      return { name: claim.name, host: settings.domain, port: endpoint.port }
    }
    return claimReply(claim, this.#place)
  }

  async #openPort(name: string, want: { kind: string; port: number }): Promise<number> {
    if (!this.publicPorts) throw portsClosed()
    return await this.publicPorts.open(name, want.kind === 'udp' ? 'udp' : 'tcp', want.port)
  }

  #release(group: Group, name: string): void {
    const gone = this.endpoints.leave(group, name)
    if (gone?.mode === 'raw') void this.publicPorts?.close(name)
  }

  /** A connection that began with a ticket, in clear or inside TLS. */
  claimBulk(conn: Conn, ticket: Ticket): boolean {
    const member = this.#byLink.get(hex(ticket.linkId))
    const group = member?.role === 'home' ? this.#groupOf(member) : undefined
    const key = member?.bulkKey
    if (!group || !key || !checkTicket(this.crypto, ticket, key)) return false
    if (!member!.tickets.use(ticket.counter)) return false
    if (ticket.class === 'shared') return this.#share(conn, group, member!)
    group.bulk.add(new BulkLink(conn, { ticket, key }), ticket.class)
    return true
  }

  #share(conn: Conn, group: Group, member: Member): boolean {
    const { net } = this.#ports
    if (!net) return false
    group.bulk.share(conn, {
      clock: this.clock,
      later: net.later,
      windowMaxBytes: this.windowBytesMax,
      home: member.link,
      failed: (code, reason) =>
        this.log('warn', 'shared link ended', { code, reason, agent: member.agent }),
    })
    return true
  }

  cut(chosen: (member: Member) => boolean, reason: string): number {
    let count = 0
    for (const hub of [...this.#hubs.values()]) count += hub.cut(chosen, reason)
    return count
  }

  /**
   * Going down: no new visitors, agents told to come back spread over half the grace, running
   * visitors finish within `graceMs`, then everything is closed.
   */
  async drain(graceMs: number): Promise<void> {
    this.#draining = true
    this.ingress.drain()
    if (this.succeeded) sendOver(this.#hubs.values(), this)
    const [leastMs, spreadMs] = this.succeeded
      ? [0, Math.min(2 * this.links, SPREAD_MS_MAX / 2)]
      : [200, Math.min(graceMs / 2, SPREAD_MS_MAX)]
    for (const hub of this.#hubs.values()) {
      for (const member of hub.members()) {
        const [a, b] = this.crypto.randomBytes(2)
        const spread = (a! * 256 + b!) / 65_536
        member.restarting(Math.round(leastMs + spread * spreadMs), graceMs + 60_000)
      }
    }
    await new Promise<void>((resolve) => {
      const timer = this.clock.after(graceMs, resolve)
      this.visitors.whenIdle(() => {
        timer.cancel()
        resolve()
      })
    })
  }

  async close(): Promise<void> {
    this.#draining = true
    this.#watch?.cancel()
    this.ingress.close()
    this.visitors.cut(() => true)
    for (const member of [...this.#entering]) member.close(CLOSE.restarting, 'going down')
    for (const hub of [...this.#hubs.values()]) {
      for (const member of [...hub.members()]) member.close(CLOSE.restarting, 'going down')
    }
    await this.publicPorts?.closeAll()
  }
}

/** Outside of any function: what a closure sees is kept for as long as the link. */
const ANY_NAME = (): boolean => true

function allowedBy(grant: Grant): (name: string) => boolean {
  return (name) => allowsName(grant, name)
}
