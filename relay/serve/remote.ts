/**
 * Registry and credentials of a relay whose names and scopes live in Durable Objects: the same
 * questions, each asked of the one object that knows. A secret names its scope, so the secret alone
 * decides which that is.
 *
 * `isBlocked` and `blocks` cannot wait for an answer: they say what the question before them learnt
 * (`owner`, `refreshBlocks`), in the same request.
 */
import { isName } from '../../core/key.ts'
import type { Block, BlockTarget } from '../blocks.ts'
import type {
  CredentialPage,
  CredentialRecord,
  Credentials,
  Grant,
  MadeCredential,
  NewCredential,
} from '../credentials.ts'
import type { LoginsPort } from '../device_desk.ts'
import type { ClaimOf, Directory, ScopeGrants } from '../directory.ts'
import type { Grants, Shown, ShownRecord } from '../grants.ts'
import type { Peer } from '../peers.ts'
import type { NamePage, NameRecord, Registry, StoredPassport } from '../registry.ts'
import type { AgentInfo } from '../relay.ts'
import type { Entered, Opened, Served } from '../requests.ts'
import type { Maker } from '../rooms.ts'
import { scopeOfSecret } from '../star.ts'
import type { Publisher } from '../statements.ts'
import { LIST_MAX } from '../store/store.ts'
import { ADMIN_GRANT } from './edge.ts'
import { edgeOf, objects } from './objects.ts'
import type { WorkerEnv } from './objects.ts'
import { valueOf } from './outcome.ts'

/** Blocks that were learnt of and not yet asked for. */
const LEARNT_MAX = 1000

type RegistryPort = Pick<
  Registry,
  | 'owner'
  | 'members'
  | 'passport'
  | 'list'
  | 'release'
  | 'block'
  | 'unblock'
  | 'isBlocked'
  | 'blocks'
>
type CredentialsPort = Pick<Credentials, 'verify' | 'create' | 'list' | 'get' | 'revoke'>

/** What scopes show to each other: each scope knows its own, and who shows it something. */
export class RemoteGrants implements Pick<Grants, 'add' | 'remove' | 'list'> {
  readonly #env: WorkerEnv

  constructor(env: WorkerEnv) {
    this.#env = env
  }

  async add(shown: Shown): Promise<ShownRecord> {
    const { scope } = objects(this.#env)
    const record = await valueOf(scope(shown.scope).grant(shown))
    await valueOf(scope(shown.to).noteGranter(shown.scope))
    return record
  }

  async remove(shown: Shown): Promise<boolean> {
    return await valueOf(objects(this.#env).scope(shown.scope).ungrant(shown))
  }

  async list(scope?: string): Promise<ShownRecord[]> {
    const { scope: scoped, index } = objects(this.#env)
    const from = scope === undefined
      ? await valueOf(index().scopes())
      : [scope, ...await valueOf(scoped(scope).granters())]
    const records: ShownRecord[] = []
    for (const each of from) records.push(...await valueOf(scoped(each).shownBy(each)))
    return scope === undefined
      ? records
      : records.filter((one) => one.scope === scope || one.to === scope)
  }
}

/** Logins that wait are in one object, since a code must lead to one of them. */
export function remoteLogins(env: WorkerEnv): LoginsPort {
  const logins = () => objects(env).logins()
  return {
    begin: (login) => valueOf(logins().beginLogin(login)),
    poll: (device) => valueOf(logins().pollLogin(device)),
    look: (entered) => valueOf(logins().lookAtLogin(entered)),
    settle: (entered, decision) => valueOf(logins().settleLogin(entered, decision)),
  }
}

export class RemoteRegistry implements RegistryPort {
  readonly #env: WorkerEnv
  readonly #learnt = new Map<string, Block | undefined>()
  #blocks: Block[] = []

  constructor(env: WorkerEnv) {
    this.#env = env
  }

  async owner(name: string): Promise<string | undefined> {
    if (!isName(name)) return undefined
    const { name: named, scope: scoped } = objects(this.#env)
    const { scope, block } = await valueOf(named(name).state(name))
    if (scope === undefined) return undefined
    if (this.#learnt.size >= LEARNT_MAX) this.#learnt.clear()
    this.#learnt.set(`${name} ${scope}`, block ?? await valueOf(scoped(scope).scopeBlock(scope)))
    return scope
  }

  async members(name: string): Promise<string[]> {
    if (!isName(name)) return []
    return (await valueOf(objects(this.#env).name(name).state(name))).members
  }

  async passport(key: string): Promise<StoredPassport | undefined> {
    return await valueOf(objects(this.#env).hub(key).passport(key))
  }

  async list(scope?: string, { limit = LIST_MAX, after }: NamePage = {}): Promise<NameRecord[]> {
    const page = { limit, ...(after === undefined ? {} : { after }) }
    if (scope !== undefined) {
      return await valueOf(objects(this.#env).scope(scope).names(scope, page))
    }
    const records: NameRecord[] = []
    for (const each of await valueOf(objects(this.#env).index().scopes())) {
      records.push(...await valueOf(objects(this.#env).scope(each).names(each, page)))
    }
    return records.sort((a, b) => (a.name < b.name ? -1 : 1)).slice(0, limit)
  }

  async release(name: string, scope: string): Promise<boolean> {
    const { name: named, scope: scoped } = objects(this.#env)
    const released = await valueOf(named(name).release(name, scope))
    if (released) await valueOf(scoped(scope).drop(name, scope))
    return released
  }

  /** The object that acts comes first: should the index fail, the block holds and can be repeated. */
  async block({ reason, ...target }: BlockTarget & { reason: string }): Promise<void> {
    await this.#set(target, reason)
    await valueOf(objects(this.#env).index().noteBlock(target, reason))
    await this.refreshBlocks()
  }

  async unblock(target: BlockTarget): Promise<boolean> {
    await this.#set(target, undefined)
    return await valueOf(objects(this.#env).index().noteBlock(target, undefined))
  }

  async #set({ name, scope }: BlockTarget, reason: string | undefined): Promise<void> {
    const { name: named, scope: scoped } = objects(this.#env)
    if (name !== undefined) await valueOf(named(name).setNameBlock(name, reason))
    if (scope !== undefined) await valueOf(scoped(scope).setScopeBlock(scope, reason))
  }

  isBlocked(name: string | undefined, scope: string): Block | undefined {
    return this.#learnt.get(`${name ?? ''} ${scope}`)
  }

  blocks(): Block[] {
    return this.#blocks
  }

  async refreshBlocks(): Promise<void> {
    this.#blocks = await valueOf(objects(this.#env).index().blocks())
  }
}

export class RemoteCredentials implements CredentialsPort {
  readonly #env: WorkerEnv

  constructor(env: WorkerEnv) {
    this.#env = env
  }

  async verify(secret: string): Promise<Grant> {
    if (edgeOf(this.#env).isAdmin(secret)) return ADMIN_GRANT
    return await valueOf(objects(this.#env).scope(scopeOfSecret(secret)).verify(secret))
  }

  async create(wanted: NewCredential): Promise<MadeCredential> {
    const { scope, index } = objects(this.#env)
    const made = await valueOf(scope(wanted.scope).create(wanted))
    await valueOf(index().note(wanted.scope, made.id))
    return made
  }

  async list({ scope, limit = LIST_MAX, after }: CredentialPage = {}): Promise<CredentialRecord[]> {
    const { scope: scoped, index } = objects(this.#env)
    const page = { limit, ...(after === undefined ? {} : { after }) }
    if (scope !== undefined) return await valueOf(scoped(scope).records(scope, page))
    const last = after === undefined ? undefined : await valueOf(index().scopeOf(after))
    const records: CredentialRecord[] = []
    for (const each of await valueOf(index().scopes())) {
      if (last !== undefined && each < last) continue
      const rest = { limit: limit - records.length, ...(each === last && { after: after! }) }
      records.push(...await valueOf(scoped(each).records(each, rest)))
      if (records.length >= limit) break
    }
    return records
  }

  async get(id: string): Promise<CredentialRecord | undefined> {
    const scope = await valueOf(objects(this.#env).index().scopeOf(id))
    if (scope === undefined) return undefined
    return await valueOf(objects(this.#env).scope(scope).record(id))
  }

  async revoke(id: string): Promise<boolean> {
    const scope = await valueOf(objects(this.#env).index().scopeOf(id))
    if (scope === undefined) return false
    return await valueOf(objects(this.#env).scope(scope).revoke(id))
  }
}

/** Live agents of one scope, or of all. */
export async function remoteAgents(env: WorkerEnv, scope?: string): Promise<AgentInfo[]> {
  const { scope: scoped, index } = objects(env)
  const scopes = scope === undefined ? await valueOf(index().scopes()) : [scope]
  const agents: AgentInfo[] = []
  for (const each of scopes) agents.push(...await valueOf(scoped(each).agents(each)))
  return agents
}

/** Agents that those of a scope may see. */
export async function remotePeers(env: WorkerEnv, scope: string): Promise<Peer[]> {
  return await valueOf(objects(env).scope(scope).peers(scope))
}

/** What the star of the agent `hub` asks of names and scopes. */
export class RemoteDirectory implements Directory {
  readonly #env: WorkerEnv
  readonly #hub: string

  constructor(env: WorkerEnv, hub: string) {
    this.#env = env
    this.#hub = hub
  }

  async admit(
    link: { scope: string; secret?: string; agent: string; token: string },
  ): Promise<Grant> {
    if (link.secret !== undefined && edgeOf(this.#env).isAdmin(link.secret)) return ADMIN_GRANT
    const hub = this.#hub
    return await valueOf(objects(this.#env).scope(link.scope).admit({ ...link, hub }))
  }

  async left({ scope, token }: { scope: string; token: string }): Promise<void> {
    await valueOf(objects(this.#env).scope(scope).left({ hub: this.#hub, token }))
  }

  async claim(claim: ClaimOf): Promise<void> {
    await valueOf(objects(this.#env).name(claim.name).claim(claim))
  }

  async unclaim({ name, ...claim }: { name: string; agent: string; group: string }): Promise<void> {
    await valueOf(objects(this.#env).name(name).unclaim(claim))
  }

  async serving(name: string): Promise<Served | undefined> {
    if (!isName(name)) return undefined
    const { serving, block } = await valueOf(objects(this.#env).name(name).state(name))
    const [first] = serving
    if (!first || block) return undefined
    const agents = new Map(serving.map(({ agent, labels }) => [agent, { key: agent, labels }]))
    return { scope: first.scope, mode: first.mode, agents: [...agents.values()] }
  }

  async passport(key: string): Promise<StoredPassport | undefined> {
    return await valueOf(objects(this.#env).hub(key).passport(key))
  }

  async isRevoked(agent: string): Promise<boolean> {
    return await valueOf(objects(this.#env).hub(agent).visits(agent, this.#hub))
  }

  async grants(scope: string): Promise<ScopeGrants> {
    return await valueOf(objects(this.#env).scope(scope).scopeGrants(scope))
  }

  async shows(name: string, of: { scope: string; to: string }): Promise<boolean> {
    return await valueOf(objects(this.#env).scope(of.scope).shows(name, of))
  }

  async peers(scope: string): Promise<Peer[]> {
    return await remotePeers(this.#env, scope)
  }

  async statements(key: string): Promise<Uint8Array[]> {
    return await valueOf(objects(this.#env).hub(key).statements(key))
  }

  async keepStatement(key: string, bytes: Uint8Array, publisher: Publisher): Promise<void> {
    await valueOf(objects(this.#env).hub(key).keepStatement(key, { bytes, publisher }))
  }

  async makeRoom(maker: Maker): Promise<Opened> {
    return await valueOf(objects(this.#env).rooms().makeRoom(maker))
  }

  async enterRoom(room: number, visitor: { key: string; address: string }): Promise<Entered> {
    return await valueOf(objects(this.#env).rooms().enterRoom(room, visitor))
  }

  async leaveRoom(room: number, key: string): Promise<void> {
    await valueOf(objects(this.#env).rooms().leaveRoom(room, key))
  }

  async linkEnded(link: string): Promise<void> {
    await valueOf(objects(this.#env).rooms().linkEnded(link))
  }
}
