/**
 * STUN, RFC 8489: what address a datagram of ours comes from, as its receiver sees it. And what of RFC 5780
 * shows how a NAT on the way behaves. Binding requests without credentials alone. Sent over UDP, by
 * whoever looks for a way to a peer.
 *
 *   type           2   two zero bits, then method and class interleaved (§5)
 *   length         2   of the attributes, a multiple of 4
 *   magic cookie   4   0x2112a442
 *   transaction   12   random; the answer repeats it
 *   attributes         type 2, length 2, value, zero to three bytes of padding
 *
 * Big-endian. Attributes that are not known are kept as they are: a reader decides. A message is
 * taken whole or not at all; bytes after its end are refused.
 */
import { formatAddress, parseAddress } from './address.ts'
import { concat, equal, text } from './bytes.ts'
import { TunnelError } from './errors.ts'

/** RFC 8489 §5. */
export const STUN_HEADER_BYTES = 20
export const STUN_TRANSACTION_BYTES = 12
const COOKIE = 0x2112a442
const FINGERPRINT_XOR = 0x5354554e

/** Of ours: more than any path carries in one piece. */
export const STUN_BYTES_MAX = 2048
const ATTRIBUTES_MAX = 64
/** RFC 8489 §14.8: text of an error. */
const REASON_BYTES_MAX = 763

/** RFC 8489 §18.2. */
export const STUN_METHOD = { binding: 1 } as const

/** RFC 8489 §5: two bits. */
export const STUN_CLASS = { request: 0, indication: 1, success: 2, error: 3 } as const
export type StunClass = keyof typeof STUN_CLASS

/** RFC 8489 §18.3 and RFC 5780 §9.1. */
export const STUN_ATTRIBUTE = {
  mappedAddress: 0x0001,
  changeRequest: 0x0003,
  errorCode: 0x0009,
  xorMappedAddress: 0x0020,
  padding: 0x0026,
  responsePort: 0x0027,
  software: 0x8022,
  fingerprint: 0x8028,
  responseOrigin: 0x802b,
  otherAddress: 0x802c,
} as const

const FAMILY = { ipv4: 1, ipv6: 2 } as const
/** RFC 5780 §7.2. */
const CHANGE_IP = 0x04
const CHANGE_PORT = 0x02

export interface StunAttribute {
  type: number
  value: Uint8Array
}

export interface StunMessage {
  class: StunClass
  method: number
  /** 12 bytes. */
  transaction: Uint8Array
  attributes: StunAttribute[]
}

export interface StunAddress {
  family: 4 | 6
  /** As RFC 5952 writes it. */
  address: string
  port: number
}

/** The bytes of a message; FINGERPRINT is added at the end. Throws `stun/size`. */
export function encodeStun(message: StunMessage): Uint8Array {
  const attributes = message.attributes.map(({ type, value }) => attribute(type, value))
  const length = attributes.reduce((sum, one) => sum + one.length, 0) + 8
  if (STUN_HEADER_BYTES + length > STUN_BYTES_MAX || message.attributes.length >= ATTRIBUTES_MAX) {
    throw new TunnelError(
      'stun/size',
      `Cannot encode STUN: found ${length} bytes of attributes, expected at most ${
        STUN_BYTES_MAX - STUN_HEADER_BYTES
      }`,
    )
  }
  const head = new Uint8Array(STUN_HEADER_BYTES)
  const view = new DataView(head.buffer)
  view.setUint16(0, typeOf(message.method, STUN_CLASS[message.class]))
  view.setUint16(2, length)
  view.setUint32(4, COOKIE)
  head.set(message.transaction.subarray(0, STUN_TRANSACTION_BYTES), 8)
  const signed = concat(head, ...attributes)
  const sum = new Uint8Array(4)
  new DataView(sum.buffer).setUint32(0, (crc32(signed) ^ FINGERPRINT_XOR) >>> 0)
  return concat(signed, attribute(STUN_ATTRIBUTE.fingerprint, sum))
}

/**
 * One whole message. Values are views into the input. Throws `stun/truncated`, `stun/malformed`,
 * and `stun/fingerprint` where there is one that does not fit.
 */
export function decodeStun(bytes: Uint8Array): StunMessage {
  if (bytes.length < STUN_HEADER_BYTES) throw truncated(bytes.length, STUN_HEADER_BYTES)
  if (bytes.length > STUN_BYTES_MAX) throw malformed(`${bytes.length} bytes`)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const type = view.getUint16(0)
  const length = view.getUint16(2)
  if ((type & 0xc000) !== 0) throw malformed(`the type 0x${type.toString(16)}`)
  if (view.getUint32(4) !== COOKIE) throw malformed('another magic cookie')
  if (length % 4 !== 0) throw malformed(`a length of ${length}, which is no multiple of 4`)
  const end = STUN_HEADER_BYTES + length
  if (bytes.length < end) throw truncated(bytes.length, end)
  if (bytes.length > end) throw malformed(`${bytes.length - end} bytes after its end`)
  const attributes: StunAttribute[] = []
  for (let at = STUN_HEADER_BYTES; at < end;) {
    const kind = view.getUint16(at)
    const size = view.getUint16(at + 2)
    const next = at + 4 + size + padding(size)
    if (next > end) throw malformed('an attribute that is longer than the message')
    if (attributes.length === ATTRIBUTES_MAX) throw malformed('too many attributes')
    if (kind === STUN_ATTRIBUTE.fingerprint) {
      // §14.7: the last one, over all before it.
      if (size !== 4 || next !== end) throw malformed('a fingerprint that is not the last')
      const sum = (crc32(bytes.subarray(0, at)) ^ FINGERPRINT_XOR) >>> 0
      if (view.getUint32(at + 4) !== sum) {
        throw new TunnelError('stun/fingerprint', 'Cannot decode STUN: its fingerprint is wrong')
      }
    }
    attributes.push({ type: kind, value: bytes.subarray(at + 4, at + 4 + size) })
    at = next
  }
  const method = (type & 0x000f) | ((type & 0x00e0) >> 1) | ((type & 0x3e00) >> 2)
  const number = ((type & 0x0010) >> 4) | ((type & 0x0100) >> 7)
  return {
    class: (Object.keys(STUN_CLASS) as StunClass[])[number]!,
    method,
    transaction: bytes.subarray(8, STUN_HEADER_BYTES),
    attributes,
  }
}

/**
 * Shares a port with others: the first two bits are zero and the cookie stands, which no frame of
 * WireGuard has (types 1 to 4, three zero bytes) and other protocols have once in 2³².
 */
export function looksLikeStun(bytes: Uint8Array): boolean {
  return bytes.length >= STUN_HEADER_BYTES && bytes[0]! < 0x40 && bytes[4] === 0x21 &&
    bytes[5] === 0x12 && bytes[6] === 0xa4 && bytes[7] === 0x42
}

export interface BindingOptions {
  /** Asks that the answer comes from the server's other address. */
  changeIp?: boolean
  changePort?: boolean
  /** Bytes that make the request larger; for the size of packets that a path carries. */
  paddingBytes?: number
}

/** "Where do you see this datagram come from?" The answer repeats `transaction`, 12 random bytes. */
export function bindingRequest(transaction: Uint8Array, options: BindingOptions = {}): Uint8Array {
  const { changeIp = false, changePort = false, paddingBytes = 0 } = options
  const change = (changeIp ? CHANGE_IP : 0) | (changePort ? CHANGE_PORT : 0)
  return encodeStun({
    class: 'request',
    method: STUN_METHOD.binding,
    transaction,
    attributes: [
      ...(change === 0
        ? []
        : [{ type: STUN_ATTRIBUTE.changeRequest, value: new Uint8Array([0, 0, 0, change]) }]),
      ...(paddingBytes === 0
        ? []
        : [{ type: STUN_ATTRIBUTE.padding, value: new Uint8Array(paddingBytes) }]),
    ],
  })
}

/** The answer of a server that saw the request come from `from`. */
export function bindingAnswer(
  transaction: Uint8Array,
  from: StunAddress,
  more: StunAttribute[] = [],
): Uint8Array {
  const value = encodeStunAddress(from, transaction)
  return encodeStun({
    class: 'success',
    method: STUN_METHOD.binding,
    transaction,
    attributes: [{ type: STUN_ATTRIBUTE.xorMappedAddress, value }, ...more],
  })
}

/** True when `message` answers the request that `transaction` named. */
export function answers(message: StunMessage, transaction: Uint8Array): boolean {
  return message.method === STUN_METHOD.binding && equal(message.transaction, transaction) &&
    (message.class === 'success' || message.class === 'error')
}

/** Where the server saw us; undefined when it did not say. Throws `stun/malformed`. */
export function mappedAddress(message: StunMessage): StunAddress | undefined {
  const xored = find(message, STUN_ATTRIBUTE.xorMappedAddress)
  if (xored) return decodeStunAddress(xored, message.transaction)
  const plain = find(message, STUN_ATTRIBUTE.mappedAddress)
  return plain && decodeStunAddress(plain)
}

/** The server's second address and port; undefined: it has none (RFC 5780 §7.4). */
export function otherAddress(message: StunMessage): StunAddress | undefined {
  const value = find(message, STUN_ATTRIBUTE.otherAddress)
  return value && decodeStunAddress(value)
}

/** Code and words of an error; undefined when there is none. */
export function errorOf(message: StunMessage): { code: number; reason: string } | undefined {
  const value = find(message, STUN_ATTRIBUTE.errorCode)
  if (!value) return undefined
  if (value.length < 4 || value.length > 4 + REASON_BYTES_MAX) {
    throw malformed('an error of no form')
  }
  let reason = ''
  try {
    reason = text(value.subarray(4))
  } catch {
    // The number says enough.
  }
  return { code: (value[2]! & 7) * 100 + value[3]!, reason }
}

/** The form of MAPPED-ADDRESS, or with `transaction` that of XOR-MAPPED-ADDRESS (§14.1, §14.2). */
export function encodeStunAddress(from: StunAddress, transaction?: Uint8Array): Uint8Array {
  const address = addressBytes(from)
  const value = new Uint8Array(4 + address.length)
  value[1] = from.family === 4 ? FAMILY.ipv4 : FAMILY.ipv6
  new DataView(value.buffer).setUint16(2, from.port)
  value.set(address, 4)
  return transaction ? xored(value, transaction) : value
}

export function decodeStunAddress(value: Uint8Array, transaction?: Uint8Array): StunAddress {
  const plain = transaction ? xored(value, transaction) : value
  const family = plain[1] === FAMILY.ipv4 ? 4 : plain[1] === FAMILY.ipv6 ? 6 : undefined
  if (family === undefined || plain.length !== (family === 4 ? 8 : 20)) {
    throw malformed('an address of no form')
  }
  const bytes = plain.subarray(4)
  return {
    family,
    address: formatAddress(bytes),
    port: (plain[2]! << 8) | plain[3]!,
  }
}

/** §14.2: port and address under the cookie, and for IPv6 under the transaction that follows it. */
function xored(value: Uint8Array, transaction: Uint8Array): Uint8Array {
  const mask = new Uint8Array(16)
  new DataView(mask.buffer).setUint32(0, COOKIE)
  mask.set(transaction.subarray(0, STUN_TRANSACTION_BYTES), 4)
  return value.map((byte, i) =>
    i < 2 || i >= 20 ? byte : i < 4 ? byte ^ mask[i - 2]! : byte ^ mask[i - 4]!
  )
}

function find({ attributes }: StunMessage, type: number): Uint8Array | undefined {
  // §14: where one is there twice, the first counts.
  return attributes.find((one) => one.type === type)?.value
}

function attribute(type: number, value: Uint8Array): Uint8Array {
  const out = new Uint8Array(4 + value.length + padding(value.length))
  const view = new DataView(out.buffer)
  view.setUint16(0, type)
  view.setUint16(2, value.length)
  out.set(value, 4)
  return out
}

function padding(length: number): number {
  return (4 - (length % 4)) % 4
}

function typeOf(method: number, kind: number): number {
  return (method & 0x0f) | ((method & 0x70) << 1) | ((method & 0xf80) << 2) | ((kind & 1) << 4) |
    ((kind & 2) << 7)
}

function addressBytes({ family, address }: StunAddress): Uint8Array {
  const bytes = parseAddress(address)
  if (bytes?.length === (family === 4 ? 4 : 16)) return bytes
  // IPv4 within IPv6, which a socket for both gives.
  if (bytes?.length === 4) return concat(new Uint8Array(10), new Uint8Array([255, 255]), bytes)
  throw malformed('an address of no form')
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1
  return value
})

/** ITU V.42, §14.7. */
function crc32(bytes: Uint8Array): number {
  let sum = 0xffffffff
  for (const byte of bytes) sum = CRC_TABLE[(sum ^ byte) & 0xff]! ^ (sum >>> 8)
  return ~sum >>> 0
}

function truncated(found: number, expected: number): TunnelError {
  return new TunnelError(
    'stun/truncated',
    `Cannot decode STUN: found ${found} bytes, expected at least ${expected}`,
  )
}

function malformed(found: string): TunnelError {
  return new TunnelError('stun/malformed', `Cannot decode STUN: found ${found}`)
}
