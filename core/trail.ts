/**
 * Trails: what one side of one session keeps of it, to be verified later, offline, by somebody who
 * knows nothing but the two identities. A trail is written append-only; a torn last entry is what a
 * crash leaves and does no harm. Bodies of records are not in it, only what their seals fix.
 *
 *   magic      8   00 73 6f 74 74 6f 61 01
 *   session    16
 *   initiator  32
 *   responder  32
 *   role       1   whose trail it is: 1 initiator, 2 responder
 *   start      8   ms since 1970
 *   service    text8
 *   entries:   kind 1, then
 *     1, 2     record sent, received       counter 8, type 1, length 3, tag 16
 *     3, 4     checkpoint sent, received   233 (core/chain.ts)
 *     5, 6     commitment sent, received   index 8, value 32
 *     7, 8     opening sent, received      index 8, salt 32, SHA-256 of the content 32
 *
 * A checkpoint sent comes before the record that carries it, one received behind. Integers are
 * big-endian. docs/protocol.md §12.
 */
import { ByteReader, ByteWriter, concat, equal } from './bytes.ts'
import type { ChainRecord, Direction, Role } from './chain.ts'
import { CHECKPOINT_BYTES, RECORD_TAG_BYTES, SESSION_ID_BYTES } from './chain.ts'
import { HASH_BYTES, KEY_BYTES } from './crypto.ts'
import { TunnelError } from './errors.ts'
import type { Commitment, Opening, TranscriptEvent } from './transcript.ts'

// Specification constants.
export const TRAIL_MAGIC: Uint8Array = Uint8Array.of(0, 0x73, 0x6f, 0x74, 0x74, 0x6f, 0x61, 1)
export const TRAIL_HEADER_BYTES_MAX = 8 + SESSION_ID_BYTES + 2 * KEY_BYTES + 1 + 8 + 1 + 255
export const TRAIL_ENTRY_BYTES_MAX = 1 + CHECKPOINT_BYTES

/** Every kind of entry with its body as sent; received is one more. Numbers are never reused. */
export const TRAIL_ENTRY = Object.freeze({
  record: 1, // counter 8, type 1, length 3, tag 16
  checkpoint: 3, // 233 bytes as they were sent
  commitment: 5, // index 8, value 32
  opening: 7, // index 8, salt 32, SHA-256 of the content 32
})
type EntryKind = keyof typeof TRAIL_ENTRY
const BODY_BYTES: Readonly<Record<EntryKind, number>> = {
  record: 8 + 1 + 3 + RECORD_TAG_BYTES,
  checkpoint: CHECKPOINT_BYTES,
  commitment: 8 + HASH_BYTES,
  opening: 8 + 2 * HASH_BYTES,
}
const KINDS = Object.keys(TRAIL_ENTRY) as EntryKind[]

export interface TrailHeader {
  /** 16 bytes. */
  session: Uint8Array
  /** Both identities, 32 bytes. */
  initiator: Uint8Array
  responder: Uint8Array
  /** Whose trail it is. */
  role: Role
  /** Milliseconds since 1970. */
  start: number
  service: string
}

/** What was read; arrays are views into the trail. */
export interface Trail extends TrailHeader {
  /** Both in the order in which they were written. */
  records: Readonly<Record<Direction, TrailRecord[]>>
  checkpoints: TrailCheckpoint[]
  commitments: Readonly<Record<Direction, Commitment[]>>
  openings: Readonly<Record<Direction, Opening[]>>
  /** Bytes of a last entry that was not written to its end. */
  tornBytes: number
}

export type TrailRecord = ChainRecord

export interface TrailCheckpoint {
  direction: Direction
  bytes: Uint8Array
  /** Records of each direction that the trail holds before it. */
  after: Readonly<Record<Direction, number>>
}

/** The first bytes of a trail. Throws `trail/length`, `bytes/range`. */
export function encodeTrailHeader(header: TrailHeader): Uint8Array {
  const { session, initiator, responder, role, start, service } = header
  if (
    session.length !== SESSION_ID_BYTES || initiator.length !== KEY_BYTES ||
    responder.length !== KEY_BYTES
  ) {
    throw new TunnelError('trail/length', 'Cannot write trail: found ids of the wrong length')
  }
  return new ByteWriter(256).bytes(TRAIL_MAGIC).bytes(session).bytes(initiator).bytes(responder)
    .u8(role === 'initiator' ? 1 : 2).u64(start).text8(service).done()
}

/** One entry to append. An opening shows a content's hash: leave it out, or see `redactTrail`. */
export function encodeTrailEntry(event: TranscriptEvent): Uint8Array {
  const kind = TRAIL_ENTRY[event.kind] + (event.direction === 'sent' ? 0 : 1)
  const writer = new ByteWriter(1 + BODY_BYTES[event.kind]).u8(kind)
  if (event.kind === 'record') {
    return writer.u64(event.counter).u32((event.type << 24 | event.length & 0xffffff) >>> 0)
      .bytes(event.tag).done()
  }
  if (event.kind === 'checkpoint') return writer.bytes(event.bytes).done()
  writer.u64(event.index)
  if (event.kind === 'commitment') return writer.bytes(event.value).done()
  return writer.bytes(event.salt).bytes(event.content).done()
}

/**
 * Reads a trail; nothing is verified. Throws `trail/magic`, `trail/truncated` when not even the
 * header is whole, `trail/role`, `trail/entry` on an unknown kind, `trail/range`, `bytes/utf8`.
 */
export function readTrail(bytes: Uint8Array): Trail {
  const reader = new ByteReader(bytes, 'trail', 'trail')
  if (!equal(reader.bytes(TRAIL_MAGIC.length), TRAIL_MAGIC)) {
    throw new TunnelError('trail/magic', 'Cannot read trail: found a file of another kind', {
      hint: 'Give a file that sotto audit export wrote.',
    })
  }
  const session = reader.bytes(SESSION_ID_BYTES)
  const initiator = reader.bytes(KEY_BYTES)
  const responder = reader.bytes(KEY_BYTES)
  const role = reader.u8()
  if (role !== 1 && role !== 2) {
    throw new TunnelError('trail/role', `Cannot read trail: found role ${role}, expected 1 or 2`)
  }
  const trail: Trail = {
    session,
    initiator,
    responder,
    role: role === 1 ? 'initiator' : 'responder',
    start: reader.u64(),
    service: reader.text8(),
    records: { sent: [], received: [] },
    checkpoints: [],
    commitments: { sent: [], received: [] },
    openings: { sent: [], received: [] },
    tornBytes: 0,
  }
  while (reader.remaining > 0) {
    const left = reader.remaining
    const { kind, direction } = kindOf(reader.u8())
    if (reader.remaining < BODY_BYTES[kind]) {
      trail.tornBytes = left
      break
    }
    readEntry(trail, reader, { kind, direction })
  }
  return trail
}

function readEntry(
  trail: Trail,
  reader: ByteReader,
  { kind, direction }: { kind: EntryKind; direction: Direction },
): void {
  if (kind === 'record') {
    const counter = reader.u64()
    const word = reader.u32()
    const tag = reader.bytes(RECORD_TAG_BYTES)
    trail.records[direction].push({ counter, type: word >>> 24, length: word & 0xffffff, tag })
  } else if (kind === 'checkpoint') {
    const after = { sent: trail.records.sent.length, received: trail.records.received.length }
    trail.checkpoints.push({ direction, bytes: reader.bytes(CHECKPOINT_BYTES), after })
  } else if (kind === 'commitment') {
    trail.commitments[direction].push({ index: reader.u64(), value: reader.bytes(HASH_BYTES) })
  } else {
    const index = reader.u64()
    const salt = reader.bytes(HASH_BYTES)
    trail.openings[direction].push({ index, salt, content: reader.bytes(HASH_BYTES) })
  }
}

/**
 * The trail without its openings but those in `keep`, and without a torn end: what one shows to
 * others. Throws what `readTrail` throws.
 */
export function redactTrail(
  bytes: Uint8Array,
  keep: (direction: Direction, index: number) => boolean = () => false,
): Uint8Array {
  const parts: Uint8Array[] = []
  for (const { kind, direction, entry } of entriesOf(bytes, parts)) {
    const index = kind === 'opening' ? new ByteReader(entry.subarray(1), 'trail', kind).u64() : 0
    if (kind !== 'opening' || keep(direction, index)) parts.push(entry)
  }
  return concat(...parts)
}

/** Gives the header to `head`, then each whole entry with its kind byte. */
function* entriesOf(
  bytes: Uint8Array,
  head: Uint8Array[],
): Generator<{ kind: EntryKind; direction: Direction; entry: Uint8Array }> {
  let at = TRAIL_MAGIC.length + SESSION_ID_BYTES + 2 * KEY_BYTES + 1 + 8
  // Everything that could be wrong with the header is.
  readTrail(bytes.subarray(0, at + 1 + (bytes[at] ?? 0)))
  at += 1 + bytes[at]!
  head.push(bytes.subarray(0, at))
  while (at < bytes.length) {
    const { kind, direction } = kindOf(bytes[at]!)
    const end = at + 1 + BODY_BYTES[kind]
    if (end > bytes.length) return
    yield { kind, direction, entry: bytes.subarray(at, end) }
    at = end
  }
}

function kindOf(number: number): { kind: EntryKind; direction: Direction } {
  const kind = KINDS.find((one) => number === TRAIL_ENTRY[one] || number === TRAIL_ENTRY[one] + 1)
  if (!kind) {
    throw new TunnelError(
      'trail/entry',
      `Cannot read trail: found an entry of kind ${number}, expected one of the table`,
    )
  }
  return { kind, direction: number === TRAIL_ENTRY[kind] ? 'sent' : 'received' }
}

/** Who signed what passed in a direction, seen from the trail's own side. */
export function signerOf(trail: TrailHeader, direction: Direction): Role {
  if (direction === 'sent') return trail.role
  return trail.role === 'initiator' ? 'responder' : 'initiator'
}

/** A trail's direction as on the wire: 1 from the initiator, 2 from the responder. */
export function wireDirection(trail: TrailHeader, direction: Direction): 1 | 2 {
  return signerOf(trail, direction) === 'initiator' ? 1 : 2
}
