/**
 * Frames: what passes between an agent and a relay. One WebSocket message is one frame.
 *
 *   type     1   see FRAME
 *   id       4   stream, channel or request number; 0 where there is none
 *   payload  0 to 65,536, as the table says
 *
 * Integers are big-endian. A frame that is longer, shorter or of an unknown type ends the link.
 * Byte fields that decode returns are views into the message. docs/protocol.md, "Frames".
 */
import { ByteReader, ByteWriter, EMPTY, text, utf8 } from './bytes.ts'
import { TunnelError } from './errors.ts'

// Specification constants.
export const FRAME_HEADER_BYTES = 5
/** Most payload in one frame, header not counted. */
export const FRAME_PAYLOAD_BYTES_MAX = 65_536
export const FRAME_BYTES_MAX = FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES_MAX
/** Bytes that either end of a stream may send before the first credit. */
export const WINDOW_INITIAL_BYTES = 262_144
export const WINDOW_BYTES_MAX = 16_777_216
/** Longest explanation in a reset or notice. */
export const REASON_BYTES_MAX = 255
/** Most of a visit's tail: the head of a readable HTTP exchange, a request in a session. */
export const VISIT_TAIL_BYTES_MAX = 61_440

/** Every frame type with its payload. Numbers are never reused. */
export const FRAME = Object.freeze({
  hello: 0x01, // agent to relay, first: see core/admit.ts
  challenge: 0x02, // relay to agent: its identity, signed
  admit: 0x03, // agent to relay: sealed identity proof and credential
  welcome: 0x04, // relay to agent: sealed link id and limits
  open: 0x10, // a visit: kind 1, window 4, port 2, address 1+n, endpoint 1+n, tail
  data: 0x11, // 1 to 65,536 bytes of the stream
  credit: 0x12, // bytes 4: that many more may be sent; the first one accepts the stream
  fin: 0x13, // nothing: no more data in this direction
  reset: 0x14, // code 2, reason 0-255: both directions end now
  packet: 0x20, // length 2 + datagram, repeated: lossy
  peer_gone: 0x21, // nothing: the agent that this visit link leads to has no home link
  ping: 0x30, // 8 bytes, echoed: for ends that cannot send a WebSocket ping
  pong: 0x31, // the 8 bytes of the ping
  restarting: 0x32, // reconnect in 4 (ms), try for 4 (ms): come back spread out
  notice: 0x33, // code 1+n, text: something that a person should read
  request: 0x40, // JSON: what an agent asks of the relay; the id numbers it
  reply: 0x41, // JSON: the answer, with the id of its request
})

export type FrameName = keyof typeof FRAME

/** Why a stream was reset. Numbers are never reused. */
export const RESET = Object.freeze({
  refused: 1, // there is no such endpoint, or it is not for this visitor
  unreachable: 2, // the upstream cannot be reached
  overdrawn: 3, // more was sent than credit allowed
  gone: 4, // the link that carried it is lost
  timeout: 5, // it was not answered in time
  aborted: 6, // an end gave up
  overload: 7, // a limit of streams or memory was reached
  blocked: 8, // the relay's operator cut it off
  protocol: 9, // a frame that has no place here
  quota: 10, // a quota of the scope or the address is used up
  draining: 11, // the relay is going down
})

export type ResetName = keyof typeof RESET

/** What kind of traffic a stream carries. Numbers are never reused. */
export const VISIT = Object.freeze({
  tls: 1, // a visitor's TLS, from its ClientHello on, untouched
  raw: 2, // a visitor of a raw public port
  http: 3, // one HTTP exchange, readable; its head is the tail
  connect: 4, // another agent's TLS, over its visit link
  udp: 5, // one visitor of a UDP port: packets, no data
  session: 6, // sealed bytes between two agents
  datagrams: 7, // a packet channel of a session: packets, no data
  pair: 8, // two agents that share a code
  service: 9, // a stream inside a session; the tail is its request; never on a link
})

export type VisitName = keyof typeof VISIT

/** Carries datagrams in `packet` frames, and no data. */
export function carriesPackets(kind: VisitName): boolean {
  return kind === 'udp' || kind === 'datagrams'
}

/** What opens a stream, and what a bulk link's prelude says: who comes, and for which endpoint. */
export interface Visit {
  kind: VisitName
  /** Bytes that the opener lets the acceptor send before more credit. */
  windowBytes: number
  /** The visitor's address as the relay saw it; empty when unknown. */
  address: string
  /** The visitor's port, 0 when unknown. */
  port: number
  /** The endpoint's name, as it was claimed. */
  endpoint: string
  /** By kind: an HTTP head, a group, a channel, a token or a request; docs/protocol.md §2. */
  tail: Uint8Array
}

export interface Frame {
  type: number
  id: number
  payload: Uint8Array
}

const NAMES = new Map<number, FrameName>()
for (const [name, number] of Object.entries(FRAME)) NAMES.set(number, name as FrameName)
const VISIT_NAMES = new Map<number, VisitName>()
for (const [name, number] of Object.entries(VISIT)) VISIT_NAMES.set(number, name as VisitName)
const RESET_NAMES = new Map<number, ResetName>()
for (const [name, number] of Object.entries(RESET)) RESET_NAMES.set(number, name as ResetName)

/** Smallest and largest payload by type; what is outside ends the link. */
const SIZES: Record<FrameName, [min: number, max: number]> = {
  hello: [1, 1024],
  challenge: [1, 4096],
  admit: [1, 32_768],
  welcome: [1, 4096],
  open: [9, FRAME_PAYLOAD_BYTES_MAX],
  data: [1, FRAME_PAYLOAD_BYTES_MAX],
  credit: [4, 4],
  fin: [0, 0],
  reset: [2, 2 + REASON_BYTES_MAX],
  packet: [3, FRAME_PAYLOAD_BYTES_MAX],
  peer_gone: [0, 0],
  ping: [8, 8],
  pong: [8, 8],
  restarting: [8, 8],
  notice: [2, 1024],
  request: [2, FRAME_PAYLOAD_BYTES_MAX],
  reply: [2, FRAME_PAYLOAD_BYTES_MAX],
}

/** The frame types whose id is a stream or channel. */
const ON_STREAM: ReadonlySet<number> = new Set([
  FRAME.open,
  FRAME.data,
  FRAME.credit,
  FRAME.fin,
  FRAME.reset,
  FRAME.packet,
])

export function frameName(type: number): FrameName | undefined {
  return NAMES.get(type)
}

export function resetName(code: number): ResetName | undefined {
  return RESET_NAMES.get(code)
}

/** One message holding header and payload. Throws `frame/size` when the payload does not fit its type. */
export function encodeFrame(name: FrameName, id: number, payload: Uint8Array = EMPTY): Uint8Array {
  const [min, max] = SIZES[name]
  if (payload.length < min || payload.length > max) throw wrongSize(name, payload.length)
  const out = new Uint8Array(FRAME_HEADER_BYTES + payload.length)
  putFrame(out, 0, { name, id, payload })
  return out
}

/** Writes a frame into `target` at `at`, where there must be room; the payload's length is not checked. */
export function putFrame(
  target: Uint8Array,
  at: number,
  frame: { name: FrameName; id: number; payload: Uint8Array },
): void {
  const { id } = frame
  target[at] = FRAME[frame.name]
  target[at + 1] = id >>> 24
  target[at + 2] = id >>> 16
  target[at + 3] = id >>> 8
  target[at + 4] = id
  target.set(frame.payload, at + FRAME_HEADER_BYTES)
}

/**
 * The frame in one message; `payload` is a view into it. Throws `frame/truncated`, `frame/unknown`,
 * `frame/size` or `frame/id`, and nothing else on any input.
 */
export function decodeFrame(message: Uint8Array): Frame {
  if (message.length < FRAME_HEADER_BYTES) {
    throw new TunnelError(
      'frame/truncated',
      `Cannot decode frame: found ${message.length} bytes, expected at least ${FRAME_HEADER_BYTES}`,
    )
  }
  const type = message[0]!
  const name = NAMES.get(type)
  if (name === undefined) {
    throw new TunnelError(
      'frame/unknown',
      `Cannot decode frame: found type ${type}, expected one of the table`,
    )
  }
  const id = frameId(message)
  const payload = message.subarray(FRAME_HEADER_BYTES)
  const [min, max] = SIZES[name]
  if (payload.length < min || payload.length > max) throw wrongSize(name, payload.length)
  const numbered = ON_STREAM.has(type) || type === FRAME.request || type === FRAME.reply
  if (numbered ? id === 0 : id !== 0) {
    throw new TunnelError(
      'frame/id',
      `Cannot decode ${name}: found id ${id}, expected ${numbered ? 'any but 0' : '0'}`,
    )
  }
  return { type, id, payload }
}

function wrongSize(name: FrameName, length: number): TunnelError {
  const [min, max] = SIZES[name]
  return new TunnelError(
    'frame/size',
    `Cannot accept ${name}: found ${length} bytes of payload, expected ${min} to ${max}`,
  )
}

/** The id of a whole frame without decoding it. */
export function frameId(message: Uint8Array): number {
  return ((message[1]! << 24) | (message[2]! << 16) | (message[3]! << 8) | message[4]!) >>> 0
}

/** Writes another id into a whole frame, in place: how a relay forwards without copying. */
export function readdress(message: Uint8Array, id: number): Uint8Array {
  message[1] = id >>> 24
  message[2] = id >>> 16
  message[3] = id >>> 8
  message[4] = id
  return message
}

/** Payload of `open`. Throws `frame/size` when the tail or a name is too long. */
export function encodeVisit(visit: Visit): Uint8Array {
  if (visit.tail.length > VISIT_TAIL_BYTES_MAX) {
    throw new TunnelError(
      'frame/size',
      `Cannot encode visit: found a tail of ${visit.tail.length} bytes, expected at most ${VISIT_TAIL_BYTES_MAX}`,
    )
  }
  return new ByteWriter(32 + visit.address.length + visit.endpoint.length + visit.tail.length)
    .u8(VISIT[visit.kind])
    .u32(visit.windowBytes)
    .u16(visit.port)
    .text8(visit.address)
    .text8(visit.endpoint)
    .bytes(visit.tail)
    .done()
}

/** Throws `frame/truncated`, `frame/visit`, `bytes/utf8`. The tail is a view into the input. */
export function decodeVisit(payload: Uint8Array): Visit {
  const reader = new ByteReader(payload, 'frame', 'visit')
  const kindNumber = reader.u8()
  const kind = VISIT_NAMES.get(kindNumber)
  if (kind === undefined) {
    throw new TunnelError(
      'frame/visit',
      `Cannot decode visit: found kind ${kindNumber}, expected 1 to 9`,
    )
  }
  const windowBytes = reader.u32()
  if (windowBytes > WINDOW_BYTES_MAX) {
    throw new TunnelError(
      'frame/visit',
      `Cannot decode visit: found a window of ${windowBytes} bytes, expected at most ${WINDOW_BYTES_MAX}`,
    )
  }
  const port = reader.u16()
  const address = reader.text8()
  const endpoint = reader.text8()
  const tail = reader.rest()
  if (tail.length > VISIT_TAIL_BYTES_MAX) {
    throw new TunnelError(
      'frame/visit',
      `Cannot decode visit: found a tail of ${tail.length} bytes`,
    )
  }
  return { kind, windowBytes, address, port, endpoint, tail }
}

export function encodeCredit(bytes: number): Uint8Array {
  return new ByteWriter(4).u32(bytes).done()
}

/** Bytes granted. Throws `frame/credit` when it is more than any window may be. */
export function decodeCredit(payload: Uint8Array): number {
  const bytes = new ByteReader(payload, 'frame', 'credit').u32()
  if (bytes > WINDOW_BYTES_MAX) {
    throw new TunnelError(
      'frame/credit',
      `Cannot decode credit: found ${bytes} bytes, expected at most ${WINDOW_BYTES_MAX}`,
    )
  }
  return bytes
}

/** Payload of `reset`; the reason is cut to 255 bytes. */
export function encodeReset(code: number, reason = ''): Uint8Array {
  let encoded = utf8(reason)
  while (encoded.length > REASON_BYTES_MAX) {
    reason = reason.slice(0, -1)
    encoded = utf8(reason)
  }
  return new ByteWriter(2 + encoded.length).u16(code).bytes(encoded).done()
}

export function decodeReset(payload: Uint8Array): { code: number; reason: string } {
  const reader = new ByteReader(payload, 'frame', 'reset')
  return { code: reader.u16(), reason: text(reader.rest()) }
}

export function encodeRestarting(reconnectInMs: number, tryForMs: number): Uint8Array {
  return new ByteWriter(8).u32(reconnectInMs).u32(tryForMs).done()
}

export function decodeRestarting(payload: Uint8Array): { reconnectInMs: number; tryForMs: number } {
  const reader = new ByteReader(payload, 'frame', 'restarting')
  const message = { reconnectInMs: reader.u32(), tryForMs: reader.u32() }
  reader.end()
  return message
}

export function encodeNotice(code: string, message: string): Uint8Array {
  return new ByteWriter(256).text8(code).bytes(utf8(message.slice(0, 250))).done()
}

export function decodeNotice(payload: Uint8Array): { code: string; message: string } {
  const reader = new ByteReader(payload, 'frame', 'notice')
  return { code: reader.text8(), message: text(reader.rest()) }
}

/** Bundles datagrams of 1 to 65,534 bytes into one payload; the caller keeps the sum within a frame. */
export function encodePackets(datagrams: readonly Uint8Array[]): Uint8Array {
  let length = 0
  for (const datagram of datagrams) length += 2 + datagram.length
  const writer = new ByteWriter(length)
  for (const datagram of datagrams) writer.bytes16(datagram)
  return writer.done()
}

/**
 * A whole `packet` frame of datagrams that lie side by side, each of `size` bytes but the last, which may be
 * shorter; the caller keeps the sum, with two bytes for each, within a frame.
 */
export function encodePacketRun(id: number, bytes: Uint8Array, size: number): Uint8Array {
  const count = Math.ceil(bytes.length / size)
  const frame = new Uint8Array(FRAME_HEADER_BYTES + bytes.length + 2 * count)
  frame[0] = FRAME.packet
  readdress(frame, id)
  let at = FRAME_HEADER_BYTES
  for (let from = 0; from < bytes.length; from += size) {
    const datagram = bytes.subarray(from, from + size)
    frame[at] = datagram.length >>> 8
    frame[at + 1] = datagram.length
    frame.set(datagram, at + 2)
    at += 2 + datagram.length
  }
  return frame
}

/** Datagrams in order, each a view. Throws `frame/truncated`, and `frame/packet` on an empty one. */
export function decodePackets(payload: Uint8Array): Uint8Array[] {
  const reader = new ByteReader(payload, 'frame', 'packet')
  const datagrams: Uint8Array[] = []
  while (reader.remaining > 0) {
    const datagram = reader.bytes16()
    if (datagram.length === 0) {
      throw new TunnelError('frame/packet', 'Cannot decode packet: found an empty datagram')
    }
    datagrams.push(datagram)
  }
  return datagrams
}

/** JSON payload of request and reply. Throws `frame/json` unless it is one object. */
export function decodeJson(payload: Uint8Array): Record<string, unknown> {
  let value: unknown
  try {
    value = JSON.parse(text(payload))
  } catch (cause) {
    throw new TunnelError('frame/json', 'Cannot decode request: expected JSON', { cause })
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new TunnelError('frame/json', 'Cannot decode request: expected one JSON object')
  }
  return value as Record<string, unknown>
}

export function encodeJson(value: object): Uint8Array {
  return utf8(JSON.stringify(value))
}
