/**
 * What agents ask on their home links (docs/protocol.md §5, §13, §14), answered the same wherever a star
 * lives: for all stars of one process (relay.ts) or for one on its own (star.ts). What differs between
 * the two is `Desk`.
 *
 * Who may know of whom: names that have a host name are public by nature, since their visitors come
 * from anywhere; a name of kind `agent` is answered to its own scope and to those that it was granted
 * to, and is for all others a name that does not exist.
 */
import type { Clock } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { TunnelError } from '../core/errors.ts'
import { parseKey } from '../core/key.ts'
import type { EndpointMode } from './endpoints.ts'
import type { Member } from './member.ts'
import { mergePeers, peerPage } from './peers.ts'
import type { Peer } from './peers.ts'
import type { Registry, StoredPassport } from './registry.ts'
import { roomNumber } from './rooms.ts'
import { fromBase64, publishPassport, toBase64 } from './rules.ts'
import type { Publisher } from './statements.ts'

/** JSON of one reply, and of the statements in it: a frame has 65,536 bytes. */
const REPLY_BYTES_MAX = 57_344
const STATEMENTS_BYTES_MAX = 40_960
/** Longest base64 of a statement. */
const STATEMENT_TEXT_LENGTH_MAX = 8192

/** Who serves a name now. */
export interface Served {
  scope: string
  mode: EndpointMode
  agents: { key: string; labels: Readonly<Record<string, string>> }[]
}

export interface Opened {
  room: number
  /** Milliseconds since 1970. */
  expires: number
}

export interface Entered {
  /** KEY of the maker. */
  key: string
  group: string
  /** 16 bytes in hex. */
  token: string
}

export interface Desk {
  readonly crypto: Crypto
  readonly clock: Clock
  claim(member: Member, body: Record<string, unknown>): Promise<object>
  release(member: Member, name: string): void
  /** Routes a name that somebody owns elsewhere to the endpoint `name`. */
  domain(member: Member, domain: string, name: string): Promise<object>
  /** Our own agents'. */
  readonly passports: Pick<Registry, 'passport' | 'publishPassport'>
  /** Anybody's. */
  passport(key: string): Promise<StoredPassport | undefined>
  serving(name: string): Promise<Served | undefined>
  /** May agents of `to` see that name of `scope`? */
  shows(name: string, of: { scope: string; to: string }): boolean | Promise<boolean>
  /** What agents of this scope may see, in any order. */
  peers(scope: string): Promise<Peer[]>
  publish(statement: Uint8Array, publisher: Publisher): Promise<void>
  statements(key: string): Promise<Uint8Array[]>
  makeRoom(member: Member): Promise<Opened>
  enterRoom(room: number, member: Member): Promise<Entered>
  leaveRoom(room: number, member: Member): Promise<void>
}

/** Throws `request/…` on what cannot be read, and whatever the desk refuses with. */
export async function answerRequest(
  desk: Desk,
  member: Member,
  body: Record<string, unknown>,
): Promise<object> {
  const { scope } = member.authorised!
  switch (body['do']) {
    case 'claim':
      return await desk.claim(member, body)
    case 'release':
      desk.release(member, String(body['name'] ?? ''))
      return {}
    case 'domain':
      return await desk.domain(member, String(body['domain'] ?? ''), String(body['name'] ?? ''))
    case 'publish':
      return await publish(desk, member, body)
    case 'passport': {
      const stored = await desk.passports.passport(member.agent)
      return stored ? { passport: toBase64(stored.bytes) } : {}
    }
    case 'resolve':
      return await resolve(desk, String(body['name'] ?? ''), scope)
    case 'statements':
      return await statements(desk, body)
    case 'agents':
      return peerPage(desk.crypto, mergePeers(await desk.peers(scope)), {
        selector: textOf(body, 'selector'),
        after: textOf(body, 'after'),
        etag: textOf(body, 'etag'),
      })
    case 'room': {
      const { room, expires } = await desk.makeRoom(member)
      return { room, expires }
    }
    case 'enter':
      return await desk.enterRoom(roomNumber(body['room']), member)
    case 'leave':
      await desk.leaveRoom(roomNumber(body['room']), member)
      return {}
    default:
      throw new TunnelError('request/unknown', 'Cannot answer the request: found an unknown "do"')
  }
}

async function publish(
  desk: Desk,
  member: Member,
  body: Record<string, unknown>,
): Promise<object> {
  if (body['statement'] === undefined) {
    return await publishPassport({ ...desk, registry: desk.passports }, member.agent, body)
  }
  const bytes = fromBase64(body['statement'], {
    subject: 'statement',
    lengthMax: STATEMENT_TEXT_LENGTH_MAX,
  })
  await desk.publish(bytes, { key: member.agent, scope: member.authorised!.scope })
  return {}
}

/** Who serves a name, each with the passport that it published and what was said of it. */
async function resolve(desk: Desk, name: string, to: string): Promise<object> {
  const served = await desk.serving(name)
  const seen = served !== undefined && await desk.shows(name, { scope: served.scope, to })
  const answered = served?.mode === 'verified' || (served?.mode === 'session' && seen)
  if (!answered) return { agents: [] }
  const agents: object[] = []
  let bytes = 0
  let room = STATEMENTS_BYTES_MAX
  for (const { key, labels } of served.agents) {
    const stored = await desk.passport(key)
    if (!stored) continue
    const all = (await desk.statements(key)).map(toBase64)
    const { fit, left } = fitting(all, room)
    room = left
    const agent = {
      key,
      passport: toBase64(stored.bytes),
      ...(seen ? { labels } : {}),
      statements: fit,
      ...(fit.length < all.length ? { more: true } : {}),
    }
    bytes += JSON.stringify(agent).length
    if (bytes > REPLY_BYTES_MAX) return { name, scope: served.scope, agents, more: true }
    agents.push(agent)
  }
  return { name, scope: served.scope, agents }
}

async function statements(desk: Desk, body: Record<string, unknown>): Promise<object> {
  const key = textOf(body, 'key') ?? ''
  parseKey(key)
  const after = body['after'] ?? 0
  if (!Number.isSafeInteger(after) || (after as number) < 0) throw unreadable('after')
  const all = (await desk.statements(key)).slice(after as number).map(toBase64)
  const { fit } = fitting(all, STATEMENTS_BYTES_MAX)
  const next = fit.length < all.length ? { next: (after as number) + fit.length } : {}
  return { statements: fit, ...next }
}

/** The first of `all` that fit in `room` bytes of JSON. */
function fitting(all: readonly string[], room: number): { fit: string[]; left: number } {
  const fit: string[] = []
  for (const text of all) {
    if (text.length + 3 > room) break
    room -= text.length + 3
    fit.push(text)
  }
  return { fit, left: room }
}

function textOf(body: Record<string, unknown>, field: string): string | undefined {
  const value = body[field]
  if (value === undefined || typeof value === 'string') return value
  throw unreadable(field)
}

function unreadable(field: string): TunnelError {
  return new TunnelError(
    'request/field',
    `Cannot answer the request: found a "${field}" that cannot be read`,
  )
}
