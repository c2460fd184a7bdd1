/**
 * The Durable Object of names and scopes. One class in five parts, told apart by the name of the
 * object; each part has a store of its own, and what belongs together is in one object, so that one
 * commit decides every race:
 *
 *   name:NAME    who owns the name, who served it ever, who serves it now
 *   scope:SCOPE  its credentials, its names and their number, its links and their number
 *   logins       machines that wait for a person to let them in
 *   rooms        where agents that share a code find each other
 *   index        which scope a credential is of, all scopes, all blocks: for the operator's lists
 */
import { DurableObject } from 'cloudflare:workers'
import type { ObjectContext } from 'cloudflare:workers'
import { TunnelError } from '../../core/errors.ts'
import type { Labels } from '../../core/labels.ts'
import type { Block, BlockTarget } from '../blocks.ts'
import { Credentials } from '../credentials.ts'
import type { CredentialRecord, Grant, MadeCredential, NewCredential } from '../credentials.ts'
import { Logins } from '../device.ts'
import type { Decision, Entered, LoginRecord, NewLogin, Polled } from '../device.ts'
import type { ClaimOf, ScopeGrants } from '../directory.ts'
import type { EndpointKind, EndpointMode } from '../endpoints.ts'
import { showsName } from '../grants.ts'
import type { Shown, ShownRecord } from '../grants.ts'
import { awayPeer } from '../local_desk.ts'
import type { Peer } from '../peers.ts'
import { Quota } from '../quota.ts'
import { Registry } from '../registry.ts'
import type { NamePage, NameRecord } from '../registry.ts'
import type { AgentInfo } from '../relay.ts'
import type { Entered as EnteredRoom, Opened } from '../requests.ts'
import type { Maker } from '../rooms.ts'
import type { Json, Store } from '../store/store.ts'
import { webClock } from './edge.ts'
import type { Edge } from './edge.ts'
import { outcome, valueOf } from './outcome.ts'
import type { Outcome } from './outcome.ts'
import { edgeOf, fast, lazyStore, objects } from './objects.ts'
import type { WorkerEnv } from './objects.ts'
import { RoomsPart } from './rooms_part.ts'

/** Processes that may serve one name. */
const SERVING_MAX = 64
/** Stars of a scope that are asked at once, and in all, for a list of agents. */
const ASKED_AT_ONCE = 16
const ASKED_MAX = 256
/** Scopes of one page of the index. */
const PAGE_MAX = 1000

/** A process that serves a name now. */
export interface ServingRecord {
  agent: string
  group: string
  scope: string
  kind: EndpointKind
  mode: EndpointMode
  labels: Labels
}

/** What a name is, to whoever looks it up. */
export interface NameState {
  scope: string | undefined
  members: string[]
  /** Who served it last, to whomever. */
  latest: string | undefined
  serving: ServingRecord[]
  block: Block | undefined
}

/** A link of the scope: a visit link stands in another agent's star. */
interface LinkRecord {
  hub: string
  agent: string
  grant: string
}

export class DirectoryObject extends DurableObject<WorkerEnv> {
  readonly #kv: ObjectContext['storage']['kv']
  readonly #store: Store
  readonly #edge: Edge
  readonly #credentials: Credentials
  readonly #quota: Quota
  #registry!: Registry
  #rooms: RoomsPart | undefined
  #waiting: Logins | undefined

  constructor(ctx: ObjectContext, env: WorkerEnv) {
    super(ctx, env)
    this.#kv = ctx.storage.kv
    this.#store = lazyStore(ctx)
    this.#edge = edgeOf(env)
    const ports = { store: this.#store, crypto: fast(), clock: webClock }
    this.#credentials = new Credentials(ports)
    this.#quota = new Quota(webClock, { limits: this.#edge.settings.quotas })
    const namesMax = (scope: string): number => this.#quota.limit('names', { scope })
    void ctx.blockConcurrencyWhile(async () => {
      this.#registry = await Registry.open({ ...ports, store: this.#wideStore(), namesMax })
    })
  }

  /** Our own rows, and who owns other names: a suggestion must be free where that name lives. */
  #wideStore(): Store {
    const store = this.#store
    return {
      ...store,
      get: async (key) => {
        const found = await store.get(key)
        const other = /^names\/(.+)$/.exec(key)?.[1]
        const own = this.#kv.get<string>('name')
        if (found || other === undefined || own === undefined || other === own) return found
        const { scope } = await valueOf(objects(this.env).name(other).state(other))
        return scope === undefined ? undefined : { key, value: { scope, at: 0 }, version: 1 }
      },
    }
  }

  // name:NAME

  state(name: string): Promise<Outcome<NameState>> {
    return outcome(async () => {
      const scope = await this.#registry.owner(name)
      return {
        scope,
        members: await this.#registry.members(name),
        latest: await this.#registry.latest(name),
        serving: this.#serving(),
        block: this.#registry.isBlocked(name, scope ?? ''),
      }
    })
  }

  /** Reserves the name to the scope, in the scope's object too, and adds the process to it. */
  claim(claim: ClaimOf): Promise<Outcome<void>> {
    return outcome(async () => {
      const { name, scope, agent, group, kind, mode, labels } = claim
      this.#kv.put('name', name)
      const home = objects(this.env).scope(scope)
      const owner = await this.#registry.owner(name)
      if (owner === undefined) await valueOf(home.hold(name, scope))
      else if (owner === scope) await valueOf(home.admits(scope))
      try {
        await this.#registry.reserve({ name, scope, admin: scope === 'admin' })
      } catch (error) {
        if (owner === undefined) await valueOf(home.drop(name, scope))
        throw error
      }
      await this.#registry.memberJoined(name, agent, mode === 'session' ? 'agents' : 'visitors')
      await this.#join({ agent, group, scope, kind, mode, labels }, name)
    })
  }

  unclaim(claim: { agent: string; group: string }): Promise<Outcome<void>> {
    return outcome(() => void this.#kv.delete(servingKey(claim)))
  }

  /** Frees the name here; the scope's object is told by whoever asks. */
  release(name: string, scope: string): Promise<Outcome<boolean>> {
    return outcome(() => this.#registry.release(name, scope))
  }

  setNameBlock(name: string, reason: string | undefined): Promise<Outcome<void>> {
    return outcome(async () => {
      if (reason === undefined) await this.#registry.unblock({ name })
      else await this.#registry.block({ name, reason })
      const agents = new Set(this.#serving().map(({ agent }) => agent))
      await each([...agents], async (agent) => {
        await valueOf(objects(this.env).hub(agent).setBlocked(agent, name, reason !== undefined))
      })
    })
  }

  #serving(): ServingRecord[] {
    return [...this.#kv.list<ServingRecord>({ prefix: 'serving/' })].map(([, record]) => record)
  }

  async #join(record: ServingRecord, name: string): Promise<void> {
    const { mode, kind } = record
    const differs = (other: ServingRecord): boolean =>
      servingKey(other) !== servingKey(record) && (other.mode !== mode || other.kind !== kind)
    const full = (): boolean => this.#serving().length >= SERVING_MAX
    if (this.#serving().some(differs) || full()) await this.#forgetGone(name)
    const twin = this.#serving().find(differs)
    if (twin) {
      throw new TunnelError(
        'endpoints/mode',
        `Cannot claim "${name}" as ${mode} ${kind}: found it live as ${twin.mode} ${twin.kind}`,
        { hint: 'Stop the other tunnel first, or choose another name with --name.' },
      )
    }
    if (full() && !this.#kv.get(servingKey(record))) {
      throw new TunnelError(
        'endpoints/full',
        `Cannot claim "${name}": found ${SERVING_MAX} processes serving it, the most there may be`,
      )
    }
    this.#kv.put(servingKey(record), record)
  }

  /** A star that broke down gave nothing back: before anybody is refused, all are asked. */
  async #forgetGone(name: string): Promise<void> {
    await each(this.#serving(), async (record) => {
      const { agent, group } = record
      const there = await valueOf(objects(this.env).hub(agent).hasClaim(agent, { name, group }))
      if (!there) this.#kv.delete(servingKey(record))
    })
  }

  // scope:SCOPE

  /** Lets a link in and counts it, until `left`. */
  admit(
    link: { scope: string; secret?: string; hub: string; agent: string; token: string },
  ): Promise<Outcome<Grant>> {
    return outcome(async () => {
      const { scope, secret, hub, agent, token } = link
      this.#checkScope(scope)
      const grant: Grant = secret === undefined
        ? { id: `open/${agent}`, kind: 'key', scope, admin: false }
        : await this.#credentials.verify(secret)
      const limit = this.#quota.limit('links', { scope })
      if (this.#links().length >= limit || this.#isFull(grant, agent)) await this.#recount()
      if (this.#links().length >= limit) {
        throw new TunnelError(
          'quota/exceeded',
          `Cannot admit the link: the quota of ${limit} links is used up`,
          { hint: 'Close links that are not needed, or ask the operator for more.' },
        )
      }
      if (this.#isFull(grant, agent)) {
        throw new TunnelError(
          'quota/exceeded',
          `Cannot admit the link: found ${grant.maxAgents} agents on this fleet token, the most it allows`,
        )
      }
      const record: LinkRecord = { hub, agent, grant: grant.id }
      this.#kv.put(`links/${hub}/${token}`, record)
      return grant
    })
  }

  left({ hub, token }: { hub: string; token: string }): Promise<Outcome<void>> {
    return outcome(() => void this.#kv.delete(`links/${hub}/${token}`))
  }

  verify(secret: string): Promise<Outcome<Grant>> {
    return outcome(() => this.#credentials.verify(secret))
  }

  create(wanted: NewCredential): Promise<Outcome<MadeCredential>> {
    return outcome(() => this.#credentials.create(wanted))
  }

  records(
    scope: string,
    page: { limit: number; after?: string },
  ): Promise<Outcome<CredentialRecord[]>> {
    return outcome(() => this.#credentials.list({ scope, ...page }))
  }

  record(id: string): Promise<Outcome<CredentialRecord | undefined>> {
    return outcome(() => this.#credentials.get(id))
  }

  /** Answers when every star that has links of this credential has cut them. */
  revoke(id: string): Promise<Outcome<boolean>> {
    return outcome(async () => {
      if (!await this.#credentials.revoke(id)) return false
      await this.#cut((link) => link.grant === id, { grant: id })
      return true
    })
  }

  /** One more name of this scope. Throws as `Registry.reserve` does. */
  hold(name: string, scope: string): Promise<Outcome<void>> {
    return outcome(async () => {
      try {
        await this.#registry.reserve({ name, scope, admin: scope === 'admin' })
      } catch (error) {
        if (!(error instanceof TunnelError) || error.code !== 'registry/quota') throw error
        await this.#forgetLost(scope)
        await this.#registry.reserve({ name, scope, admin: scope === 'admin' })
      }
    })
  }

  drop(name: string, scope: string): Promise<Outcome<boolean>> {
    return outcome(() => this.#registry.release(name, scope))
  }

  names(scope: string, page: NamePage): Promise<Outcome<NameRecord[]>> {
    return outcome(() => this.#registry.list(scope, page))
  }

  /** Throws `relay/blocked` when the scope is. */
  admits(scope: string): Promise<Outcome<void>> {
    return outcome(() => this.#checkScope(scope))
  }

  scopeBlock(scope: string): Promise<Outcome<Block | undefined>> {
    return outcome(() => this.#registry.isBlocked(undefined, scope))
  }

  setScopeBlock(scope: string, reason: string | undefined): Promise<Outcome<void>> {
    return outcome(async () => {
      if (reason === undefined) return void await this.#registry.unblock({ scope })
      await this.#registry.block({ scope, reason })
      await this.#cut(() => true, { scope })
    })
  }

  agents(scope: string): Promise<Outcome<AgentInfo[]>> {
    return outcome(async () => {
      const keys = [...new Set(this.#links().map(([, { hub }]) => hub))].slice(0, ASKED_MAX)
      const lists = await each(
        keys,
        (key) => valueOf(objects(this.env).hub(key).agents(key, scope)),
      )
      return lists.flat()
    })
  }

  // What the scope shows to others, and what others show to it

  /** Answers when every star of the scope knows. */
  grant(shown: Shown): Promise<Outcome<ShownRecord>> {
    return outcome(async () => {
      const record = await this.#registry.grants.add(shown)
      await this.#tellGrants(shown.scope)
      return record
    })
  }

  ungrant(shown: Shown): Promise<Outcome<boolean>> {
    return outcome(async () => {
      const removed = await this.#registry.grants.remove(shown)
      if (removed) await this.#tellGrants(shown.scope)
      return removed
    })
  }

  /** Another scope shows us names, or did once. */
  noteGranter(scope: string): Promise<Outcome<void>> {
    return outcome(() => this.#kv.put(`granters/${scope}`, 1))
  }

  granters(): Promise<Outcome<string[]>> {
    return outcome(() => this.#granters())
  }

  shownBy(scope: string): Promise<Outcome<ShownRecord[]>> {
    return outcome(() => this.#registry.grants.from(scope))
  }

  shows(name: string, of: { scope: string; to: string }): Promise<Outcome<boolean>> {
    return outcome(() => this.#registry.grants.shows(name, of))
  }

  scopeGrants(scope: string): Promise<Outcome<ScopeGrants>> {
    return outcome(() => this.#grantsOf(scope))
  }

  /** Agents that those of this scope may see. */
  peers(scope: string): Promise<Outcome<Peer[]>> {
    return outcome(async () => {
      const others = await each(
        this.#granters(),
        (granter) => valueOf(objects(this.env).scope(granter).peersFor(granter, scope)),
      )
      return [...await this.#ownPeers(scope), ...others.flat()]
    })
  }

  /** Those of this scope that agents of another may see, with the names that they may see. */
  peersFor(scope: string, to: string): Promise<Outcome<Peer[]>> {
    return outcome(async () => {
      const { grants } = this.#grantsOf(scope)
      if (!grants.some((grant) => grant.to === to)) return []
      const peers = await this.#ownPeers(scope)
      return peers.map((peer) => ({
        ...peer,
        names: peer.names.filter(({ name }) => showsName(grants, { name, to })),
      })).filter(({ names }) => names.length > 0)
    })
  }

  #granters(): string[] {
    return [...this.#kv.list({ prefix: 'granters/', limit: ASKED_MAX })].map(([key]) =>
      key.slice('granters/'.length)
    )
  }

  #grantsOf(scope: string): ScopeGrants {
    const grants = this.#registry.grants.from(scope)
    return { scope, version: this.#kv.get<number>('grants-version') ?? 0, grants }
  }

  async #tellGrants(scope: string): Promise<void> {
    this.#kv.put('grants-version', (this.#kv.get<number>('grants-version') ?? 0) + 1)
    const grants = this.#grantsOf(scope)
    await each([...new Set(this.#links().map(([, { hub }]) => hub))], async (hub) => {
      await valueOf(objects(this.env).hub(hub).setGrants(hub, grants))
    })
  }

  async #ownPeers(scope: string): Promise<Peer[]> {
    const stars = [...new Set(this.#links().map(([, { hub }]) => hub))].slice(0, ASKED_MAX)
    const { hub, name: named } = objects(this.env)
    const here = (await each(stars, (key) => valueOf(hub(key).peers(key, scope)))).flat()
    const live = new Set(here.flatMap(({ names }) => names.map(({ name }) => name)))
    const away = (await this.#registry.list(scope, { limit: ASKED_MAX }))
      .filter(({ name }) => !live.has(name))
    const gone = await each(away, async ({ name }) => {
      const { latest: key } = await valueOf(named(name).state(name))
      return key === undefined ? [] : [awayPeer({ key, scope, name })]
    })
    return [...here, ...gone.flat()]
  }

  #links(): [key: string, link: LinkRecord][] {
    return [...this.#kv.list<LinkRecord>({ prefix: 'links/' })]
  }

  #isFull({ id, maxAgents }: Grant, agent: string): boolean {
    if (maxAgents === undefined) return false
    const links = this.#links().map(([, link]) => link).filter(({ grant }) => grant === id)
    return new Set([agent, ...links.map((link) => link.agent)]).size > maxAgents
  }

  #checkScope(scope: string): void {
    if (this.#registry.isBlocked(undefined, scope)) {
      throw new TunnelError('relay/blocked', 'Cannot admit the link: its scope is blocked here')
    }
  }

  async #cut(
    chosen: (link: LinkRecord) => boolean,
    what: { grant?: string; scope?: string },
  ): Promise<void> {
    const links = this.#links().map(([, link]) => link).filter(chosen)
    await each([...new Set(links.map(({ hub }) => hub))], async (hub) => {
      await valueOf(objects(this.env).hub(hub).cut(hub, what))
    })
  }

  /** A star that broke down told us of no end: before anybody is refused, all are asked. */
  async #recount(): Promise<void> {
    await each([...new Set(this.#links().map(([, { hub }]) => hub))], async (hub) => {
      const tokens = new Set(await valueOf(objects(this.env).hub(hub).tokens(hub)))
      for (const [key, link] of this.#links()) {
        if (link.hub === hub && !tokens.has(key.split('/')[2]!)) this.#kv.delete(key)
      }
    })
  }

  /** A claim that broke off between two objects left a name here that is not ours there. */
  async #forgetLost(scope: string): Promise<void> {
    await each(await this.#registry.list(scope), async ({ name }) => {
      const state = await valueOf(objects(this.env).name(name).state(name))
      if (state.scope !== scope) await this.#registry.release(name, scope)
    })
  }

  // rooms

  makeRoom(maker: Maker): Promise<Outcome<Opened>> {
    return outcome(() => this.#roomsPart().make(maker))
  }

  enterRoom(
    number: number,
    visitor: { key: string; address: string },
  ): Promise<Outcome<EnteredRoom>> {
    return outcome(() =>
      this.#roomsPart().enter(number, {
        visitor,
        told: (maker, entry) => valueOf(objects(this.env).hub(maker).expect(maker, entry)),
      })
    )
  }

  leaveRoom(number: number, key: string): Promise<Outcome<void>> {
    return outcome(() => this.#roomsPart().leave(number, key))
  }

  linkEnded(link: string): Promise<Outcome<void>> {
    return outcome(() => this.#roomsPart().ended(link))
  }

  #roomsPart(): RoomsPart {
    return this.#rooms ??= new RoomsPart(this.#kv)
  }

  // logins

  beginLogin(login: NewLogin): Promise<Outcome<boolean>> {
    return outcome(() => this.#logins().begin(login))
  }

  pollLogin(device: string): Promise<Outcome<Polled>> {
    return outcome(() => this.#logins().poll(device))
  }

  lookAtLogin(entered: Entered): Promise<Outcome<LoginRecord>> {
    return outcome(() => this.#logins().look(entered))
  }

  settleLogin(entered: Entered, decision: Decision): Promise<Outcome<LoginRecord>> {
    return outcome(() => this.#logins().settle(entered, decision))
  }

  #logins(): Logins {
    return this.#waiting ??= new Logins({ store: this.#store, clock: webClock })
  }

  // index

  note(scope: string, id: string): Promise<Outcome<void>> {
    return outcome(async () => {
      this.#kv.put(`scopes/${scope}`, 1)
      this.#kv.put(`ids/${id}`, scope)
    })
  }

  scopeOf(id: string): Promise<Outcome<string | undefined>> {
    return outcome(() => this.#kv.get<string>(`ids/${id}`))
  }

  scopes(): Promise<Outcome<string[]>> {
    return outcome(() =>
      [...this.#kv.list({ prefix: 'scopes/', limit: PAGE_MAX })].map(([key]) =>
        key.slice('scopes/'.length)
      )
    )
  }

  noteBlock(target: BlockTarget, reason: string | undefined): Promise<Outcome<boolean>> {
    return outcome(async () => {
      if (reason === undefined) return await this.#registry.unblock(target)
      await this.#registry.block({ ...target, reason })
      return true
    })
  }

  blocks(): Promise<Outcome<Block[]>> {
    return outcome(() => this.#registry.blocks())
  }

  probe(key: string, value: Json): Promise<Outcome<boolean>> {
    return outcome(() => this.#store.commit({ puts: [{ key, value }] }))
  }
}

function servingKey({ agent, group }: { agent: string; group: string }): string {
  return `serving/${agent}/${group}`
}

/** Asks many, a few at a time; one that fails does not keep the others from being asked. */
async function each<T, R>(items: readonly T[], ask: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = []
  let failed: unknown
  for (let i = 0; i < items.length; i += ASKED_AT_ONCE) {
    const asked = await Promise.allSettled(items.slice(i, i + ASKED_AT_ONCE).map(ask))
    for (const one of asked) {
      if (one.status === 'fulfilled') results.push(one.value)
      else failed = one.reason
    }
  }
  if (failed !== undefined) throw failed
  return results
}
