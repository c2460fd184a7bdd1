/**
 * The hub of one agent: a star. Its home links stand in the middle; streams of visit links and of
 * visitors all become streams on a home link of the process group that claimed the endpoint. The
 * agent's key alone decides which hub a link belongs to, so the same code is the one hub in a
 * process and a Durable Object of that name.
 */
import {
  decodeCredit,
  decodeVisit,
  encodeFrame,
  encodeReset,
  encodeVisit,
  FRAME,
  readdress,
  RESET,
  WINDOW_INITIAL_BYTES,
} from '../core/frame.ts'
import type { Frame, Visit, VisitName } from '../core/frame.ts'
import { hex } from '../core/bytes.ts'
import type { Clock } from '../core/clock.ts'
import { TunnelError } from '../core/errors.ts'
import type { Labels } from '../core/labels.ts'
import type { Stream } from '../core/mux.ts'
import { Allowance } from '../core/window.ts'
import { BulkPool } from './bulk.ts'
import { CLOSE } from './member.ts'
import type { Member } from './member.ts'

/** Home links of one process group. */
const HOME_LINKS_MAX = 4
/** Process groups of one identity. */
const GROUPS_MAX = 16
/** Visit links to one agent. */
const VISIT_LINKS_MAX = 1024
/** Streams of one visit link. */
const VISIT_STREAMS_MAX = 256
/** A link that was silent for so long when its process opens another is what that one replaces. */
const REPLACED_MS_MIN = 3500
/** Streams on one home link, forwarded and own. */
const HOME_STREAMS_MAX = 1024
/** Above so many bytes in a socket, who feeds it is paused where the runtime can. */
const SOCKET_HIGH_BYTES = 1_048_576
const SOCKET_LOW_BYTES = 262_144
/** Of a group and of a channel, in a visit's tail (docs/protocol.md §2). */
const ID_BYTES = 16

/** What visit links may open. */
export type ForwardedKind = 'connect' | 'session' | 'datagrams' | 'pair'
const FORWARDED: Partial<Record<VisitName, readonly number[]>> = {
  // The lengths that the tail may have.
  connect: [0],
  session: [0, ID_BYTES],
  datagrams: [2 * ID_BYTES],
  pair: [ID_BYTES],
} satisfies Record<ForwardedKind, readonly number[]>

/** A process of an agent: its home links, its endpoints, its idle bulk links. */
export class Group {
  readonly agent: string
  readonly id: string
  readonly scope: string
  readonly grant: string
  /** In the order in which they came. */
  readonly members: Member[] = []
  readonly endpoints = new Set<string>()
  #bulk: BulkPool | undefined

  constructor(member: Member) {
    this.agent = member.agent
    this.id = member.group
    this.scope = member.authorised!.scope
    this.grant = member.authorised!.grant
  }

  /** What the process says of itself, by its oldest link. */
  get labels(): Labels {
    return this.members[0]?.labels ?? {}
  }

  /** Made with the first link for it: most agents are idle, and have none. */
  get bulk(): BulkPool {
    return this.#bulk ??= new BulkPool()
  }

  get bulkIdle(): number {
    return this.#bulk?.size ?? 0
  }

  /** Visitors on its shared links. */
  get sharedStreams(): number {
    return this.#bulk?.sharedStreams ?? 0
  }

  /** The home link with the fewest streams. */
  lightest(): Member | undefined {
    let best: Member | undefined
    let fewest = HOME_STREAMS_MAX
    for (const member of this.members) {
      const { streams } = member
      if (member.up && streams < fewest) {
        best = member
        fewest = streams
      }
    }
    return best
  }

  /** A stream to this process. Throws `hub/gone` without a link, `hub/full` when all are loaded. */
  open(visit: Omit<Visit, 'windowBytes'>): Stream {
    const member = this.lightest()
    if (!member) {
      throw this.members.length === 0
        ? new TunnelError('hub/gone', 'Cannot reach the agent: found no link')
        : new TunnelError(
          'hub/full',
          `Cannot open a stream: found ${HOME_STREAMS_MAX} on each link`,
        )
    }
    return member.mux.open(visit)
  }
}

/** Two stream ends that the hub joins; the ends are told apart by index. */
interface Join {
  readonly members: [visit: Member, home: Member]
  readonly ids: [visit: number, home: number]
  /** What each end may still send. */
  readonly allowance: [visit: Allowance, home: Allowance]
  readonly ended: [boolean, boolean]
  readonly kind: ForwardedKind
  endpoint: string
  /** Ends what `HubEvents.hold` counts. */
  readonly release: () => void
}

export interface HubEvents {
  /** May this visit link's agent reach the endpoint? Authorised for each stream, not once at the door. */
  mayVisit(member: Member, visit: Visit): boolean
  /** The link that made the room which a visit of kind `pair` has entered; its token is good once. */
  paired(member: Member, visit: Visit): string | undefined
  /** Counts one more stream until it is called; undefined: there are as many as may be. */
  hold(member: Member, visit: Visit): (() => void) | undefined
  bytes(count: number, of: { kind: ForwardedKind; direction: 'in' | 'out' }): void
  /** A bundle of datagrams passed, or was dropped since the socket that it was for is full. */
  packets(result: 'in' | 'out' | 'dropped', payload: Uint8Array): void
  overdrawn(member: Member): void
}

export class Hub {
  readonly key: string
  /** At most `GROUPS_MAX`, mostly one: a map of one takes six times as much as an array. */
  readonly groups: Group[] = []
  readonly #visits = new Set<Member>()
  readonly #events: HubEvents
  /** Visit links that wait for a home link's socket, by that home link. */
  readonly #paused = new Map<Member, Set<Member>>()

  constructor(key: string, events: HubEvents) {
    this.key = key
    this.#events = events
  }

  group(id: string): Group | undefined {
    return this.groups.find((group) => group.id === id)
  }

  get size(): number {
    let size = this.#visits.size
    for (const group of this.groups) size += group.members.length
    return size
  }

  get streams(): number {
    let streams = 0
    for (const { members } of this.groups) {
      for (const member of members) streams += member.streams
    }
    return streams
  }

  *members(): Iterable<Member> {
    for (const { members } of this.groups) yield* members
    yield* this.#visits
  }

  /** Adds an admitted link. Throws `hub/links` when there are too many. */
  add(member: Member): Group | undefined {
    if (member.role === 'visit') {
      if (this.#visits.size >= VISIT_LINKS_MAX) {
        throw tooMany('visit links to this agent', VISIT_LINKS_MAX)
      }
      this.#visits.add(member)
      // After the welcome, which goes out in this turn: an agent takes nothing else before it.
      if (this.groups.length === 0) queueMicrotask(() => this.#tellGone(member))
      return undefined
    }
    let group = this.group(member.group)
    if (!group) {
      if (this.groups.length >= GROUPS_MAX) throw tooMany('processes of one identity', GROUPS_MAX)
      group = new Group(member)
      this.groups.push(group)
    }
    if (group.scope !== member.authorised!.scope) {
      throw new TunnelError('hub/scope', 'Cannot join links of two scopes in one process group')
    }
    const dead = group.members.filter(({ quietMs }) => quietMs >= REPLACED_MS_MIN)
    if (group.members.length - dead.length >= HOME_LINKS_MAX) {
      throw tooMany('home links of one process', HOME_LINKS_MAX)
    }
    group.members.push(member)
    // Visitors must not be sent down a link that its own process has given up.
    for (const other of dead) other.terminate('replaced')
    return group
  }

  #tellGone(member: Member): void {
    if (this.groups.length === 0 && this.#visits.has(member)) member.send('peer_gone', 0)
  }

  /** Takes a link off. Returns its group when that was the group's last link. */
  remove(member: Member): Group | undefined {
    for (const join of new Set(member.forwards.values() as Iterable<Join>)) {
      const side = join.members[0] === member ? 1 : 0
      this.#drop(join)
      this.#reset(join, side, { code: RESET.gone, reason: 'link lost' })
    }
    this.#unpause(member)
    this.#visits.delete(member)
    const group = this.group(member.group)
    if (!group || !takeOut(group.members, member)) return undefined
    group.bulk.drop(member.link)
    if (group.members.length > 0) return undefined
    takeOut(this.groups, group)
    group.bulk.close()
    if (this.groups.length === 0) { for (const visit of this.#visits) visit.send('peer_gone', 0) }
    return group
  }

  /** Which process serves the name, the one with the lightest link first. */
  serving(name: string): Group | undefined {
    let best: Group | undefined
    let fewest = Infinity
    for (const group of this.groups) {
      if (!group.endpoints.has(name)) continue
      const member = group.lightest()
      const streams = member?.streams ?? Infinity
      if (!best || streams < fewest) {
        best = group
        fewest = streams
      }
    }
    return best
  }

  /** A stream frame that is not the mux's own. False when its id means nothing here. */
  forward(member: Member, frame: Frame, message: Uint8Array): boolean {
    const join = member.forwards.get(frame.id) as Join | undefined
    if (join) {
      this.#pass(join, join.members[0] === member ? 0 : 1, { frame, message })
      return true
    }
    if (member.role === 'home') return false
    if (frame.type === FRAME.open) {
      this.#join(member, frame)
      return true
    }
    // Crossed with a reset of ours: dropped. An id that was never opened has no business here.
    if (frame.id % 2 === 1 && frame.id <= member.mux.ids.peer) return true
    throw new TunnelError(
      'hub/stream',
      `Cannot accept a frame on stream ${frame.id}: it was never opened`,
    )
  }

  #join(member: Member, frame: Frame): void {
    if (!member.mux.seen(frame.id)) return
    const visit = decodeVisit(frame.payload)
    const refuse = (code: number, reason: string): void =>
      member.send('reset', frame.id, encodeReset(code, reason))
    if (member.forwards.size >= VISIT_STREAMS_MAX) return refuse(RESET.overload, 'too many streams')
    const kind = forwardedKind(visit)
    if (!kind || (kind !== 'pair' && !this.#events.mayVisit(member, visit))) {
      return refuse(RESET.refused, 'no such endpoint')
    }
    const home = this.#homeOf(member, visit)
    if (!home) {
      return refuse(this.groups.length === 0 ? RESET.gone : RESET.refused, 'not served now')
    }
    const release = this.#events.hold(member, visit)
    if (!release) return refuse(RESET.quota, 'quota')
    const id = home.mux.nextId()
    const join: Join = {
      members: [member, home],
      ids: [frame.id, id],
      allowance: [new Allowance(WINDOW_INITIAL_BYTES), new Allowance(visit.windowBytes)],
      ended: [false, false],
      kind,
      endpoint: visit.endpoint,
      release,
    }
    member.forwards.set(frame.id, join)
    home.forwards.set(id, join)
    // The agent must not believe a visitor's own word about where it comes from.
    home.send('open', id, encodeVisit({ ...visit, address: member.address, port: 0 }))
  }

  /** The home link that a visit leads to. */
  #homeOf(member: Member, visit: Visit): Member | undefined {
    if (visit.kind === 'pair') {
      const link = this.#events.paired(member, visit)
      if (link === undefined) return undefined
      return this.groups.flatMap(({ members }) => members).find((home) =>
        home.link === link && home.up && home.streams < HOME_STREAMS_MAX
      )
    }
    if (visit.tail.length === 0) return this.serving(visit.endpoint)?.lightest()
    // A session lives in one process: no other of the same identity could take it up.
    const id = hex(visit.tail.subarray(0, ID_BYTES))
    const group = this.groups.find((one) => one.id === id)
    return group?.endpoints.has(visit.endpoint) ? group.lightest() : undefined
  }

  #pass(join: Join, side: 0 | 1, { frame, message }: { frame: Frame; message: Uint8Array }): void {
    const other = side === 0 ? 1 : 0
    switch (frame.type) {
      case FRAME.data: {
        if (join.kind === 'datagrams') return this.#end(join, RESET.protocol)
        const length = frame.payload.length
        if (join.ended[side] || !join.allowance[side].spend(length)) {
          const overdrawn = !join.ended[side]
          if (overdrawn) this.#events.overdrawn(join.members[side])
          return this.#end(join, overdrawn ? RESET.overdrawn : RESET.protocol)
        }
        this.#events.bytes(length, { kind: join.kind, direction: side === 0 ? 'in' : 'out' })
        break
      }
      case FRAME.credit:
        if (!join.allowance[other].grant(decodeCredit(frame.payload))) {
          return this.#end(join, RESET.protocol)
        }
        break
      case FRAME.fin:
        if (join.ended[side]) return this.#end(join, RESET.protocol)
        join.ended[side] = true
        if (join.ended[other]) this.#drop(join)
        break
      case FRAME.reset:
        this.#drop(join)
        break
      case FRAME.packet:
        // Datagrams need no credit, so on a stream of bytes they would pass its police.
        if (join.kind !== 'datagrams' || join.ended[side]) return this.#end(join, RESET.protocol)
        return this.#packets(join, side, { frame, message })
      case FRAME.open:
        throw new TunnelError(
          'hub/order',
          `Cannot accept stream ${frame.id}: found an id that is in use`,
        )
    }
    this.#relay(join.members[side], join.members[other], readdress(message, join.ids[other]))
  }

  /** Datagrams may be lost: a socket that is full pauses nobody for them, and takes none. */
  #packets(join: Join, side: 0 | 1, { frame, message }: { frame: Frame; message: Uint8Array }) {
    const other = side === 0 ? 1 : 0
    const to = join.members[other]
    if (to.socket.buffered() >= SOCKET_HIGH_BYTES) {
      return this.#events.packets('dropped', frame.payload)
    }
    const direction = side === 0 ? 'in' : 'out'
    this.#events.packets(direction, frame.payload)
    this.#events.bytes(frame.payload.length, { kind: 'datagrams', direction })
    const sent = to.socket.send(readdress(message, join.ids[other]))
    if (sent === 'lost') to.terminate('lost')
  }

  #relay(from: Member, to: Member, message: Uint8Array): void {
    const sent = to.socket.send(message)
    if (sent === 'lost') return to.terminate('lost')
    if (sent === 'ok' || to.socket.buffered() < SOCKET_HIGH_BYTES || !from.socket.pause) return
    // Only visit links are paused: a home link carries other people's streams as well.
    if (from.role !== 'visit') return
    from.socket.pause()
    let waiting = this.#paused.get(to)
    if (!waiting) this.#paused.set(to, waiting = new Set())
    waiting.add(from)
  }

  /** The socket of `member` can take more. */
  drained(member: Member): void {
    if (member.socket.buffered() <= SOCKET_LOW_BYTES) this.#unpause(member)
  }

  #unpause(member: Member): void {
    const waiting = this.#paused.get(member)
    if (!waiting) return
    this.#paused.delete(member)
    for (const visit of waiting) visit.socket.resume?.()
  }

  #drop(join: Join): void {
    join.members[0].forwards.delete(join.ids[0])
    join.members[1].forwards.delete(join.ids[1])
    join.release()
  }

  #reset(join: Join, side: 0 | 1, { code, reason }: { code: number; reason: string }): void {
    const frame = encodeFrame('reset', join.ids[side], encodeReset(code, reason))
    if (join.members[side].up) join.members[side].socket.send(frame)
  }

  #end(join: Join, code: number): void {
    this.#drop(join)
    this.#reset(join, 0, { code, reason: '' })
    this.#reset(join, 1, { code, reason: '' })
  }

  /** Ends every forwarded stream of an endpoint. */
  cutEndpoint(name: string): void {
    for (const visit of this.#visits) {
      for (const join of new Set(visit.forwards.values() as Iterable<Join>)) {
        if (join.endpoint === name) this.#end(join, RESET.blocked)
      }
    }
  }

  /** Closes every link for which `chosen` says so: revocation, a blocked scope. */
  cut(chosen: (member: Member) => boolean, reason: string): number {
    let count = 0
    for (const member of [...this.members()]) {
      if (!chosen(member)) continue
      count++
      member.notice('relay/revoked', reason)
      member.close(CLOSE.revoked, reason)
    }
    return count
  }
}

/** Undefined for what no visit link opens, or not with such a tail. */
function forwardedKind({ kind, tail }: Visit): ForwardedKind | undefined {
  return FORWARDED[kind]?.includes(tail.length) ? kind as ForwardedKind : undefined
}

/** How many datagrams a bundle holds, by its lengths alone. */
export function countPackets(payload: Uint8Array): number {
  let count = 0
  for (let at = 0; at + 1 < payload.length; count++) {
    at += 2 + payload[at]! * 256 + payload[at + 1]!
  }
  return count
}

/** False when it is not in there. */
function takeOut<T>(all: T[], one: T): boolean {
  const at = all.indexOf(one)
  if (at >= 0) all.splice(at, 1)
  return at >= 0
}

function tooMany(what: string, most: number): TunnelError {
  return new TunnelError(
    'hub/links',
    `Cannot admit the link: found ${most} ${what}, the most there may be`,
  )
}

/** What agents have open on their links may take so long; then they leave for the next relay. */
const LEAVE_MS_MAX = 5000
const LEAVE_LOOK_MS = 50

/** Ends each link as soon as nothing is open on it: its agent is back at once, at another process. */
export function sendOver(
  hubs: Iterable<Hub>,
  { clock }: { clock: Clock },
): void {
  const all = [...hubs]
  const untilMs = clock.monotonic() + LEAVE_MS_MAX
  const look = (): void => {
    const late = clock.monotonic() >= untilMs
    let left = 0
    for (const hub of all) {
      for (const member of [...hub.members()]) {
        if (late || member.streams === 0) member.close(CLOSE.restarting, 'going down')
        else left++
      }
    }
    if (left > 0) clock.after(LEAVE_LOOK_MS, look)
  }
  // The word of when to come back goes first.
  clock.after(0, look)
}
