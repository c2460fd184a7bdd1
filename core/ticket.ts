/**
 * The three small messages of a bulk link: a raw TCP connection that an agent keeps idle until the
 * relay splices a visitor onto it. The agent claims it with a ticket, the relay names the visitor
 * in a prelude, the agent answers with one byte; from then on bytes pass without frames.
 *
 *   ticket   49   magic 8 ‖ class 1 ‖ link id 16 ‖ counter 8 ‖ tag 16
 *   prelude  18+n length 2 ‖ visit n (frame.ts) ‖ tag 16
 *   answer   1    see ANSWER
 *
 * Both tags are the first 16 bytes of HMAC-SHA256 under the bulk key of the home link. Integers
 * are big-endian. docs/protocol.md §6.
 */
import { ByteReader, ByteWriter, concat, equal, utf8 } from './bytes.ts'
import type { Crypto } from './crypto.ts'
import { TunnelError } from './errors.ts'
import type { Visit } from './frame.ts'
import { decodeVisit, encodeVisit, VISIT_TAIL_BYTES_MAX } from './frame.ts'

// Specification constants.
export const TICKET_BYTES = 49
export const LINK_ID_BYTES = 16
export const TAG_BYTES = 16
/** Longest visit in a prelude: fixed fields, two texts of 255, the tail. */
export const PRELUDE_BODY_BYTES_MAX = 7 + 256 + 256 + VISIT_TAIL_BYTES_MAX
const PRELUDE_BODY_BYTES_MIN = 9
/** Counters that may arrive out of order; older ones are refused. */
export const TICKET_WINDOW_COUNTERS = 4096

/** NUL, "sottob", version 1: neither TLS (0x16) nor HTTP (a letter) can start so. */
const MAGIC = Uint8Array.of(0x00, 0x73, 0x6f, 0x74, 0x74, 0x6f, 0x62, 0x01)
const TICKET_LABEL = utf8('sotto bulk ticket v1\0')
const PRELUDE_LABEL = utf8('sotto bulk prelude v1\0')
const BODY_BYTES = TICKET_BYTES - TAG_BYTES

/** What visitors the link is for. Numbers are never reused. */
export const TICKET_CLASS = Object.freeze({
  verified: 1, // visitors that bring their own TLS
  clear: 2, // readable to the relay: raw ports
  shared: 3, // many visitors of raw ports at once, as streams: core/shared_link.ts
})
const CLASS_NAMES = new Map<number, TicketClass>(
  Object.entries(TICKET_CLASS).map(([name, number]) => [number, name as TicketClass]),
)
export type TicketClass = keyof typeof TICKET_CLASS

/** The agent's one byte after a prelude. Numbers are never reused. */
export const ANSWER = Object.freeze({
  refused: 0x00, // the relay tries another member, and closes this link
  taken: 0x01, // the visitor's bytes follow at once
})

export interface TicketFields {
  /** 16 bytes, from the welcome of the home link. */
  linkId: Uint8Array
  /** Counts up from 1 on a home link; each is good for one connection. */
  counter: number
  class: TicketClass
}

export interface Ticket extends TicketFields {
  tag: Uint8Array
  /** The 33 bytes that the tag is over. */
  body: Uint8Array
}

/** The 49 bytes that an agent sends first on a bulk link. Throws `ticket/length`, `ticket/range`. */
export function encodeTicket(
  crypto: Crypto,
  fields: TicketFields,
  bulkKey: Uint8Array,
): Uint8Array {
  needLinkId(fields.linkId)
  needCounter(fields.counter)
  const body = new ByteWriter(TICKET_BYTES)
    .bytes(MAGIC)
    .u8(TICKET_CLASS[fields.class])
    .bytes(fields.linkId)
    .u64(fields.counter)
    .done()
  return concat(body, ticketTag(crypto, body, bulkKey))
}

/**
 * The ticket at the start of `bytes`, with views into it, or 'more' while it is incomplete.
 * Throws `ticket/magic`, `ticket/class` or `ticket/range` as soon as that is certain. Not yet
 * authentic: look the link up and ask `checkTicket`.
 */
export function readTicket(bytes: Uint8Array): 'more' | Ticket {
  if (bytes.length > 0 && !looksLikeTicket(bytes)) {
    throw new TunnelError('ticket/magic', 'Cannot read ticket: found other bytes at its start')
  }
  if (bytes.length < TICKET_BYTES) return 'more'
  const reader = new ByteReader(bytes, 'ticket', 'ticket')
  reader.bytes(MAGIC.length)
  const number = reader.u8()
  const name = CLASS_NAMES.get(number)
  if (name === undefined) {
    throw new TunnelError(
      'ticket/class',
      `Cannot read ticket: found class ${number}, expected 1 to 3`,
    )
  }
  const linkId = reader.bytes(LINK_ID_BYTES)
  const counter = reader.u64()
  needCounter(counter)
  const tag = reader.bytes(TAG_BYTES)
  return { linkId, counter, class: name, tag, body: bytes.subarray(0, BODY_BYTES) }
}

/** True when the ticket was made with this key. Use its counter up only after that. */
export function checkTicket(crypto: Crypto, ticket: Ticket, bulkKey: Uint8Array): boolean {
  return equal(ticketTag(crypto, ticket.body, bulkKey), ticket.tag)
}

/** True while the first bytes of a connection can be a ticket; false on none. */
export function looksLikeTicket(bytes: Uint8Array): boolean {
  const length = Math.min(bytes.length, MAGIC.length)
  for (let i = 0; i < length; i++) if (bytes[i] !== MAGIC[i]) return false
  return length > 0
}

/** Where a prelude belongs: the ticket that opened the connection it is sent on. */
export interface PreludeContext {
  crypto: Crypto
  linkId: Uint8Array
  counter: number
  bulkKey: Uint8Array
}

/** What a relay sends on a bulk link when a visitor is joined. Throws as `encodeVisit` does. */
export function encodePrelude(visit: Visit, context: PreludeContext): Uint8Array {
  const body = encodeVisit(visit)
  return new ByteWriter(2 + body.length + TAG_BYTES)
    .bytes16(body)
    .bytes(preludeTag(body, context))
    .done()
}

/**
 * The prelude at the start of `bytes` and its length, or 'more' while it is incomplete. Nothing of
 * it is read before its tag holds. Throws `ticket/size`, `ticket/forged`, or as `decodeVisit` does.
 */
export function readPrelude(
  bytes: Uint8Array,
  context: PreludeContext,
): 'more' | { visit: Visit; bytes: number } {
  if (bytes.length < 2) return 'more'
  const length = bytes[0]! * 256 + bytes[1]!
  if (length < PRELUDE_BODY_BYTES_MIN || length > PRELUDE_BODY_BYTES_MAX) {
    throw new TunnelError(
      'ticket/size',
      `Cannot read prelude: found a visit of ${length} bytes, expected ${PRELUDE_BODY_BYTES_MIN} to ${PRELUDE_BODY_BYTES_MAX}`,
    )
  }
  const end = 2 + length + TAG_BYTES
  if (bytes.length < end) return 'more'
  const body = bytes.subarray(2, 2 + length)
  if (!equal(preludeTag(body, context), bytes.subarray(2 + length, end))) {
    throw new TunnelError(
      'ticket/forged',
      'Cannot read prelude: found a wrong tag, expected one under the key of the home link',
    )
  }
  return { visit: decodeVisit(body), bytes: end }
}

/**
 * Makes each counter good for one use: remembers which of the latest 4,096 were used and refuses
 * all that are older. Takes 512 bytes, from the first use on.
 */
export class TicketWindow {
  #top = 0
  #used: Uint32Array | undefined

  /** True the first time that `counter` is seen inside the window. Ask only about checked tickets. */
  use(counter: number): boolean {
    if (!Number.isSafeInteger(counter) || counter < 1) return false
    if (counter <= this.#top - TICKET_WINDOW_COUNTERS) return false
    const used = this.#used ??= new Uint32Array(TICKET_WINDOW_COUNTERS / 32)
    if (counter > this.#top) {
      if (counter - this.#top >= TICKET_WINDOW_COUNTERS) used.fill(0)
      else for (let i = this.#top + 1; i <= counter; i++) clear(used, i % TICKET_WINDOW_COUNTERS)
      this.#top = counter
    }
    const bit = counter % TICKET_WINDOW_COUNTERS
    const mask = 1 << (bit & 31)
    if ((used[bit >>> 5]! & mask) !== 0) return false
    used[bit >>> 5]! |= mask
    return true
  }
}

function clear(used: Uint32Array, bit: number): void {
  used[bit >>> 5]! &= ~(1 << (bit & 31))
}

function ticketTag(crypto: Crypto, body: Uint8Array, bulkKey: Uint8Array): Uint8Array {
  return crypto.hmacSha256(bulkKey, TICKET_LABEL, body).subarray(0, TAG_BYTES)
}

// Link id and counter are in the tag, so that a prelude holds on one connection alone: one that
// was recorded, or that was sent on another bulk link of the same agent, is refused.
function preludeTag(
  body: Uint8Array,
  { crypto, linkId, counter, bulkKey }: PreludeContext,
): Uint8Array {
  needLinkId(linkId)
  needCounter(counter)
  const bound = new ByteWriter(LINK_ID_BYTES + 8).bytes(linkId).u64(counter).done()
  return crypto.hmacSha256(bulkKey, PRELUDE_LABEL, bound, body).subarray(0, TAG_BYTES)
}

function needLinkId(linkId: Uint8Array): void {
  if (linkId.length === LINK_ID_BYTES) return
  throw new TunnelError(
    'ticket/length',
    `Cannot use link id: found ${linkId.length} bytes, expected ${LINK_ID_BYTES}`,
  )
}

function needCounter(counter: number): void {
  if (Number.isSafeInteger(counter) && counter >= 1) return
  throw new TunnelError('ticket/range', `Cannot use counter ${counter}: expected 1 to 2^53 - 1`)
}
