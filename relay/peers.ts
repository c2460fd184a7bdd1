/**
 * Agents as other agents see them: the rows of `agents`, which of them a selector chooses, and pages
 * of them that fit a frame. The relay says who is there and what they call themselves; who they are,
 * passports and pins say.
 */
import { hex, utf8 } from '../core/bytes.ts'
import type { Crypto } from '../core/crypto.ts'
import { parseSelector, selects } from '../core/selector.ts'
import type { EndpointKind } from './endpoints.ts'

/** JSON of one page: a reply fits a frame of 65,536 bytes. */
const PAGE_BYTES_MAX = 49_152
/** Agents of one list, beyond which nothing is shown. */
export const PEERS_MAX = 10_000
const ETAG_BYTES = 16

export interface Peer {
  /** KEY. */
  key: string
  scope: string
  /** Those that whoever asks may see, in their order. */
  names: { name: string; kind?: EndpointKind }[]
  /** What the agent says of itself: worth something only where an authority has signed it. */
  labels: Readonly<Record<string, string>>
  online: boolean
  /** ISO 8601: the oldest link of now. */
  since?: string
}

export interface PeerQuery {
  /** core/selector.ts; empty: all. */
  selector?: string | undefined
  /** `next` of the page before. */
  after?: string | undefined
  /** What the caller has seen: when it is still so, nothing is sent. */
  etag?: string | undefined
}

export interface PeerPage {
  etag: string
  unchanged?: true
  agents?: Peer[]
  next?: string
}

/** One row for each identity and scope, by key: processes of one identity are one agent. */
export function mergePeers(rows: readonly Peer[]): Peer[] {
  const byKey = new Map<string, Peer>()
  for (const row of rows) {
    const id = `${row.key} ${row.scope}`
    const known = byKey.get(id)
    byKey.set(id, known ? merged(known, row) : row)
  }
  return [...byKey.values()].sort((a, b) => order(rowId(a), rowId(b))).slice(0, PEERS_MAX)
    .map((peer) => ({ ...peer, names: [...peer.names].sort((a, b) => order(a.name, b.name)) }))
}

function merged(a: Peer, b: Peer): Peer {
  const [first, second] = a.online || !b.online ? [a, b] : [b, a]
  const names = new Map([...second.names, ...first.names].map((one) => [one.name, one]))
  const times = [a.since, b.since].filter((time) => time !== undefined).sort()
  return {
    ...first,
    names: [...names.values()],
    labels: { ...second.labels, ...first.labels },
    online: a.online || b.online,
    ...(times[0] === undefined ? {} : { since: times[0] }),
  }
}

/** One page of a merged list. Throws `selector/…`. */
export function peerPage(crypto: Crypto, peers: readonly Peer[], query: PeerQuery): PeerPage {
  const selector = parseSelector(query.selector ?? '')
  const chosen = peers.filter(({ labels }) => selects(selector, labels))
  const etag = hex(crypto.sha256(utf8(JSON.stringify(chosen))).subarray(0, ETAG_BYTES))
  if (query.etag === etag) return { etag, unchanged: true }
  const agents: Peer[] = []
  let bytes = 0
  for (const peer of chosen) {
    if (query.after !== undefined && order(rowId(peer), query.after) <= 0) continue
    bytes += utf8(JSON.stringify(peer)).length + 1
    if (bytes > PAGE_BYTES_MAX && agents.length > 0) {
      return { etag, agents, next: rowId(agents.at(-1)!) }
    }
    agents.push(peer)
  }
  return { etag, agents }
}

function rowId({ key, scope }: Peer): string {
  return `${key} ${scope}`
}

function order(a: string, b: string): number {
  return a < b ? -1 : Number(a !== b)
}
