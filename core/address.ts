/**
 * IP addresses as bytes and as text, and sets of networks. Text is read strictly: what one program
 * takes for an address and another for something else is none here.
 */
import { equal } from './bytes.ts'

/** 4 or 16 bytes of an IP address as text; undefined when it is none. IPv4 in IPv6 becomes IPv4. */
export function parseAddress(text: string): Uint8Array | undefined {
  const four = parseFour(text)
  if (four) return four
  const bare = text.replace(/%.*$/, '').replace(/^\[(.*)\]$/, '$1')
  if (!/^[0-9a-fA-F:.]+$/.test(bare) || !bare.includes(':')) return undefined
  const halves = bare.split('::')
  if (halves.length > 2) return undefined
  const groups = halves.map((half) => half === '' ? [] : half.split(':').flatMap(groupBytes))
  const before = groups[0]!
  const after = groups[1] ?? []
  const missing = 16 - before.length - after.length
  if (halves.length === 2 ? missing < 2 : missing !== 0) return undefined
  if (before.includes(-1) || after.includes(-1)) return undefined
  const bytes = new Uint8Array([...before, ...new Array<number>(missing).fill(0), ...after])
  const mapped = bytes.subarray(0, 10).every((byte) => byte === 0) && bytes[10] === 0xff &&
    bytes[11] === 0xff
  return mapped ? bytes.slice(12) : bytes
}

/** No leading zeros: some programs read them as octal. */
const OCTET = '(0|[1-9]\\d{0,2})'
const FOUR = new RegExp(`^${OCTET}\\.${OCTET}\\.${OCTET}\\.${OCTET}$`)

function parseFour(text: string): Uint8Array | undefined {
  const parts = FOUR.exec(text)?.slice(1).map(Number)
  return parts?.every((part) => part <= 255) ? new Uint8Array(parts) : undefined
}

/** The bytes of one group between colons; -1 marks what is none. */
function groupBytes(group: string): number[] {
  if (group.includes('.')) return [...(parseFour(group) ?? [-1])]
  if (!/^[0-9a-fA-F]{1,4}$/.test(group)) return [-1]
  const value = Number.parseInt(group, 16)
  return [value >> 8, value & 0xff]
}

/** RFC 5952 text of 4 or 16 bytes. */
export function formatAddress(bytes: Uint8Array): string {
  if (bytes.length === 4) return bytes.join('.')
  const groups: string[] = []
  for (let i = 0; i < 16; i += 2) groups.push(((bytes[i]! << 8) | bytes[i + 1]!).toString(16))
  let best = { at: -1, length: 1 }
  for (let at = 0; at < 8; at++) {
    let length = 0
    while (at + length < 8 && groups[at + length] === '0') length++
    if (length > best.length) best = { at, length }
  }
  if (best.at < 0) return groups.join(':')
  return `${groups.slice(0, best.at).join(':')}::${groups.slice(best.at + best.length).join(':')}`
}

/** One network: the first `bits` of an address of 4 or 16 bytes. */
export interface Network {
  readonly bytes: Uint8Array
  readonly bits: number
}

/** `10.0.0.0/8`, `2001:db8::/32`, or one address; undefined when it is none. Bits beyond the mask must be 0. */
export function parseNetwork(text: string): Network | undefined {
  const found = /^([0-9a-fA-F:.]+)(?:\/(0|[1-9][0-9]{0,2}))?$/.exec(text)
  const bytes = found ? parseAddress(found[1]!) : undefined
  // `::ffff:10.0.0.0/104` would count its bits from another start.
  if (!bytes || (bytes.length === 4 && found![1]!.includes(':'))) return undefined
  const bits = found![2] === undefined ? bytes.length * 8 : Number(found![2])
  if (bits > bytes.length * 8) return undefined
  return equal(bytes, masked(bytes, bits)) ? { bytes, bits } : undefined
}

/** Whether `address`, as a socket names it, is in one of `networks`. */
export function isWithin(address: string, networks: readonly Network[]): boolean {
  const bytes = parseAddress(address)
  return bytes !== undefined &&
    networks.some((network) => sharesBits(bytes, network.bytes, network.bits))
}

/** Whether two addresses of one family begin with the same `bits`. */
export function sharesBits(one: Uint8Array, other: Uint8Array, bits: number): boolean {
  return one.length === other.length && equal(masked(one, bits), masked(other, bits))
}

function masked(bytes: Uint8Array, bits: number): Uint8Array {
  return bytes.map((byte, i) => byte & (0xff00 >> Math.min(8, Math.max(0, bits - 8 * i))))
}
