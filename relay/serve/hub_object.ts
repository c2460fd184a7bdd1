/**
 * The Durable Object of one agent: its star (relay/star.ts), both ends of every tunnel in one place.
 * It sleeps when nothing is open: sockets stay with the platform, which also answers their pings; the
 * next message wakes a new object, which takes everything up from attachments and storage.
 */
import { DurableObject } from 'cloudflare:workers'
import type { ObjectContext, ServerWebSocket } from 'cloudflare:workers'
import type { Timer } from '../../core/clock.ts'
import { LINK_PROTOCOL } from '../app.ts'
import { pickBackend } from '../backends.ts'
import { Gateway } from '../gateway.ts'
import { createLog } from '../log.ts'
import type { ScopeGrants } from '../directory.ts'
import { Passports } from '../passports.ts'
import type { Peer } from '../peers.ts'
import type { StoredPassport } from '../registry.ts'
import type { AgentInfo } from '../relay.ts'
import type { Entry } from '../rooms.ts'
import { Star } from '../star.ts'
import type { KeptClaim, KeptLink } from '../star.ts'
import type { StarDeskKept } from '../star_desk.ts'
import { Statements } from '../statements.ts'
import type { Publisher } from '../statements.ts'
import { EDGE_WINDOW_BYTES_MAX, readIdentity, VERSION, webClock } from './edge.ts'
import { serveFetch } from './fetch_gateway.ts'
import { edgeOf, fast, lazyStore, objects } from './objects.ts'
import type { WorkerEnv } from './objects.ts'
import { outcome, valueOf } from './outcome.ts'
import type { Outcome } from './outcome.ts'
import { RemoteDirectory } from './remote.ts'
import { WebSocketLink } from './web_socket.ts'

/** While something is open a timer of this length is always running: it keeps the object awake. */
const AWAKE_MS = 5000
/** Stars of others where this agent has visit links, remembered to cut them. */
const VISITED_MAX = 1024

/** What the worker in front says of a request; it overwrites whatever a visitor sent. */
export const ORDER_HEADER = 'sotto-order'
export interface Order {
  do: 'link' | 'exchange'
  key: string
  address: string
}

/** What this object did so far, for whoever pays for it. */
export interface HubReport {
  /** How often it was made: each is a wake-up. */
  wakes: number
  links: number
  streams: number
}

declare const WebSocketPair: new () => { 0: ServerWebSocket; 1: ServerWebSocket }

export class HubObject extends DurableObject<WorkerEnv> {
  readonly #kv: ObjectContext['storage']['kv']
  readonly #links = new Map<ServerWebSocket, WebSocketLink>()
  readonly #passports: Passports
  readonly #statements: Statements
  #star: Star | undefined
  #gateway: Gateway | undefined
  #awake: Timer | undefined

  constructor(ctx: ObjectContext, env: WorkerEnv) {
    super(ctx, env)
    this.#kv = ctx.storage.kv
    const store = lazyStore(ctx)
    this.#passports = new Passports(store, webClock)
    this.#statements = new Statements({ store, crypto: fast(), clock: webClock })
    this.#statements.onRevoked((key) => ctx.waitUntil(this.#revoked(key)))
    const key = this.#kv.get<string>('key')
    // A stranger's visit leaves nothing behind: what is written begins with the first link that is up.
    if (key === undefined) return
    this.#kv.put('wakes', this.#wakes + 1)
    this.#wake(this.#starOf(key))
  }

  get #wakes(): number {
    return this.#kv.get<number>('wakes') ?? 0
  }

  async fetch(request: Request): Promise<Response> {
    const order = JSON.parse(request.headers.get(ORDER_HEADER) ?? '') as Order
    const star = this.#starOf(order.key)
    if (order.do === 'exchange') return await this.#exchange(request, order)
    const { 0: client, 1: server } = new WebSocketPair()
    this.ctx.acceptWebSocket(server)
    const link = this.#linkOf(server)
    star.attach(link, order.address)
    this.#settle()
    return switching(client, LINK_PROTOCOL)
  }

  webSocketMessage(socket: ServerWebSocket, message: ArrayBuffer | string): void {
    const link = this.#links.get(socket)
    // Its admission was cut short when the object was moved: the agent begins anew.
    if (!link) return socket.close(4408, 'not admitted')
    link.receive(message)
    this.#settle()
  }

  webSocketClose(socket: ServerWebSocket, code: number, reason: string): void {
    this.#end(socket, code, reason)
    try {
      socket.close(1000)
    } catch {
      // The platform answered by itself.
    }
  }

  webSocketError(socket: ServerWebSocket): void {
    this.#end(socket, 1006, 'lost')
  }

  /** The platform's own timer, which does not keep the object awake: a credential expired. */
  alarm(): void {
    this.#star?.expire()
    this.#setAlarm()
  }

  passport(key: string): Promise<Outcome<StoredPassport | undefined>> {
    return outcome(() => this.#passports.get(key))
  }

  /** Closes the links of a credential or of a scope. */
  cut(
    key: string,
    what: { grant?: string; scope?: string; agent?: string },
  ): Promise<Outcome<number>> {
    return outcome(() =>
      this.#starOf(key).cut(
        ({ authorised, agent }) =>
          authorised !== undefined &&
          (authorised.grant === what.grant || authorised.scope === what.scope ||
            agent === what.agent),
        what.grant !== undefined
          ? 'its credential was revoked'
          : what.agent !== undefined
          ? 'its identity was revoked'
          : 'its scope was blocked',
      )
    )
  }

  statements(key: string): Promise<Outcome<Uint8Array[]>> {
    return outcome(() => this.#statements.of(key))
  }

  keepStatement(
    key: string,
    { bytes, publisher }: { bytes: Uint8Array; publisher: Publisher },
  ): Promise<Outcome<void>> {
    return outcome(() => this.#statements.keep(key, bytes, publisher))
  }

  /** This agent has a visit link at that star, unless it was revoked: then true. */
  visits(key: string, star: string): Promise<Outcome<boolean>> {
    return outcome(async () => {
      if (await this.#statements.isRevoked(key)) return true
      if (this.#kv.get(`visited/${star}`) !== undefined) return false
      const visited = [...this.#kv.list({ prefix: 'visited/', limit: VISITED_MAX })]
      if (visited.length >= VISITED_MAX) this.#kv.delete(visited[0]![0])
      this.#kv.put(`visited/${star}`, 1)
      return false
    })
  }

  setGrants(key: string, grants: ScopeGrants): Promise<Outcome<void>> {
    return outcome(() => this.#starOf(key).setGrants(grants))
  }

  peers(key: string, scope: string): Promise<Outcome<Peer[]>> {
    return outcome(() => this.#starOf(key).peers(scope))
  }

  /** Somebody has entered a room of this agent. */
  expect(key: string, entry: Entry): Promise<Outcome<boolean>> {
    return outcome(() => this.#starOf(key).expect(entry))
  }

  setBlocked(key: string, name: string, blocked: boolean): Promise<Outcome<void>> {
    return outcome(() => {
      this.#starOf(key).block(name, blocked)
      if (blocked) this.#gateway?.cut((exchange) => exchange.name === name)
    })
  }

  hasClaim(
    key: string,
    { name, group }: { name: string; group: string },
  ): Promise<Outcome<boolean>> {
    return outcome(() => this.#starOf(key).hub.group(group)?.endpoints.has(name) ?? false)
  }

  tokens(key: string): Promise<Outcome<string[]>> {
    return outcome(() => this.#starOf(key).tokens())
  }

  agents(key: string, scope?: string): Promise<Outcome<AgentInfo[]>> {
    return outcome(() => this.#starOf(key).agents(scope))
  }

  report(key: string): Promise<Outcome<HubReport>> {
    return outcome(() => {
      const star = this.#starOf(key)
      return { wakes: this.#wakes, links: star.links, streams: star.hub.streams }
    })
  }

  /** Ends all links of this identity, wherever they are. */
  async #revoked(key: string): Promise<void> {
    await this.cut(key, { agent: key })
    for (const [row] of [...this.#kv.list({ prefix: 'visited/' })]) {
      const star = row.slice('visited/'.length)
      await valueOf(objects(this.env).hub(star).cut(star, { agent: key })).catch((error) =>
        console.error(error)
      )
      this.#kv.delete(row)
    }
  }

  #starOf(key: string): Star {
    if (this.#star) return this.#star
    const edge = edgeOf(this.env)
    const crypto = fast()
    const passports = this.#passports
    return this.#star = new Star({
      key,
      clock: webClock,
      crypto,
      identity: readIdentity(this.env['SOTTO_RELAY_IDENTITY'], {
        crypto,
        names: edge.settings.names,
      }),
      place: edge.place,
      version: VERSION,
      windowBytes: EDGE_WINDOW_BYTES_MAX,
      openRegistration: edge.settings.openRegistration,
      log: createLog({
        write: (line) => console.log(line),
        clock: webClock,
        level: edge.settings.logLevel,
        json: true,
      }),
      directory: new RemoteDirectory(this.env, key),
      passports: {
        passport: (of) => passports.get(of),
        publishPassport: (of, publication) => passports.publish(of, publication),
      },
      statements: this.#statements,
      desk: this.#kv.get<StarDeskKept>('desk') ?? { entries: [], grants: [], makers: [] },
      keepDesk: (kept) => this.#kv.put('desk', kept),
      claims: this.#kv.get<KeptClaim[]>('claims') ?? [],
      keepClaims: (claims) => this.#kv.put('claims', claims),
      keepLink: (socket, link) => this.#keep(socket as WebSocketLink, link),
      background: (work) => this.ctx.waitUntil(work.catch((error) => console.error(error))),
    })
  }

  #keep({ raw }: WebSocketLink, link: KeptLink): void {
    if (this.#kv.get<string>('key') === undefined) {
      this.#kv.put('key', this.#star!.hub.key)
      this.#kv.put('wakes', 1)
    }
    const socket = raw as ServerWebSocket
    socket.serializeAttachment(link)
    if (link.expiresAt !== undefined) this.#setAlarm()
  }

  #setAlarm(): void {
    const expiresAt = this.#star?.expiresAt
    if (expiresAt !== undefined) this.ctx.waitUntil(this.ctx.storage.setAlarm(expiresAt))
  }

  #wake(star: Star): void {
    const sockets = this.ctx.getWebSockets().map((socket) => ({
      socket,
      kept: socket.deserializeAttachment() as KeptLink | null,
    })).filter(({ kept }) => kept !== null)
    // Home links first, so that no visit link is told that nobody is at home.
    for (const role of ['home', 'visit']) {
      for (const { socket, kept } of sockets) {
        if (kept!.role === role) star.wake(this.#linkOf(socket), kept!)
      }
    }
    star.wakeClaims()
  }

  #linkOf(socket: ServerWebSocket): WebSocketLink {
    const link = new WebSocketLink(socket, webClock)
    this.#links.set(socket, link)
    return link
  }

  #end(socket: ServerWebSocket, code: number, reason: string): void {
    const link = this.#links.get(socket)
    this.#links.delete(socket)
    link?.closed(code, reason)
    this.#settle()
  }

  async #exchange(request: Request, { key, address }: Order): Promise<Response> {
    const edge = edgeOf(this.env)
    const star = this.#starOf(key)
    this.#gateway ??= new Gateway({
      clock: webClock,
      domain: edge.settings.appsDomain,
      paths: edge.place.paths,
      pick: (name, { attempt }) =>
        pickBackend(star.endpoints, name, {
          attempt,
          blocked: star.isBlocked(name),
          opened: () => star.sweep(),
        }),
    })
    const headers = new Headers(request.headers)
    headers.delete(ORDER_HEADER)
    const visitor = new Request(request, { headers })
    const response = await serveFetch(this.#gateway, visitor, { address, port: 0 })
    this.#settle()
    return response
  }

  /** Keeps the object awake as long as something is open, and not a moment longer. */
  #settle(): void {
    const star = this.#star
    if (!star || this.#awake) return
    star.sweep()
    if (!star.busy && !this.#gateway?.size) return
    this.#awake = webClock.after(AWAKE_MS, () => {
      this.#awake = undefined
      this.#settle()
    })
  }
}

function switching(client: ServerWebSocket, protocol: string | undefined): Response {
  const headers = new Headers()
  if (protocol !== undefined) headers.set('sec-websocket-protocol', protocol)
  return new Response(null, { status: 101, headers, webSocket: client } as ResponseInit)
}
