/**
 * Addresses as text and as bytes, and the 32-byte record in which an endpoint crosses into the module:
 *
 *   path     4   0 is UDP, others are the host's; little endian, as all here
 *   scope    4   of an IPv6 address, 0 for none
 *   address  16  IPv4 in the first four
 *   port     2
 *   family   1   4, 6, or 0 for none
 *   zeros    5
 *
 * Two records are one endpoint when all their bytes are equal.
 */
import { WireGuardError } from './problem.ts'

export const ENDPOINT_BYTES = 32

/** Where a peer is. `host` is an IP address: names are resolved by whoever knows how. */
export interface Endpoint {
  host: string
  port: number
  /** The path that leads there, 0 for UDP. */
  path?: number
  scope?: number
}

export interface Prefix {
  /** 4 or 16 bytes. */
  ip: Uint8Array
  bits: number
}

/** 4 or 16 bytes. Throws `wireguard/address`; a scope (`%eth0`) is not part of an address. */
export function parseIp(text: string): Uint8Array {
  const bytes = text.includes(':') ? parseV6(text) : parseV4(text)
  if (!bytes) throw problem(text, 'an IPv4 or IPv6 address')
  return bytes
}

/** The text of 4 or 16 bytes, IPv6 as RFC 5952 §4 writes it. */
export function formatIp(ip: Uint8Array): string {
  if (ip.length === 4) return ip.join('.')
  const groups = Array.from(
    { length: 8 },
    (_, i) => ip[i * 2]! * 256 + ip[i * 2 + 1]!,
  )
  let best = { at: -1, length: 1 }
  for (let at = 0; at < 8; at++) {
    let length = 0
    while (groups[at + length] === 0) length++
    if (length > best.length) best = { at, length }
  }
  const hex = (part: number[]): string => part.map((group) => group.toString(16)).join(':')
  if (best.at < 0) return hex(groups)
  return `${hex(groups.slice(0, best.at))}::${hex(groups.slice(best.at + best.length))}`
}

/** `10.0.0.0/8`, or an address alone for the whole of it. Throws `wireguard/address`. */
export function parsePrefix(text: string): Prefix {
  const [address, length, more] = text.split('/')
  const ip = parseIp(address!)
  const bits = length === undefined ? ip.length * 8 : Number(length)
  const isLength = length === undefined || /^\d{1,3}$/.test(length)
  if (more !== undefined || !isLength || bits > ip.length * 8) {
    throw problem(text, 'a prefix such as 10.0.0.0/8')
  }
  return { ip, bits }
}

/** `192.0.2.1:51820` or `[2001:db8::1]:51820`. Throws `wireguard/address`. */
export function parseEndpoint(text: string): Endpoint {
  const found = /^(?:\[([^\]%]+)(?:%(\d+))?\]|([^:[\]]+)):(\d{1,5})$/.exec(
    text,
  )
  const port = Number(found?.[4])
  if (!found || port < 1 || port > 65_535) throw problem(text, 'ADDRESS:PORT')
  const host = found[1] ?? found[3]!
  parseIp(host)
  return {
    host,
    port,
    ...(found[2] === undefined ? {} : { scope: Number(found[2]) }),
  }
}

export function formatEndpoint({ host, port }: Endpoint): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
}

/** The record of an endpoint. Throws `wireguard/address`. */
export function encodeEndpoint(
  { host, port, path = 0, scope = 0 }: Endpoint,
): Uint8Array {
  const record = new Uint8Array(ENDPOINT_BYTES)
  const ip = parseIp(host)
  writeEndpoint(record, { at: 0, ip, port, path, scope })
  return record
}

export function writeEndpoint(
  into: Uint8Array,
  { at, ip, port, path = 0, scope = 0 }: {
    at: number
    ip: Uint8Array
    port: number
    path?: number
    scope?: number
  },
): void {
  into.fill(0, at, at + ENDPOINT_BYTES)
  writeWord(into, at, path)
  writeWord(into, at + 4, scope)
  into.set(ip, at + 8)
  into[at + 24] = port & 255
  into[at + 25] = port >> 8
  into[at + 26] = ip.length === 4 ? 4 : 6
}

/** Undefined for a record of no family. */
export function decodeEndpoint(
  record: Uint8Array,
  at = 0,
): Endpoint | undefined {
  const family = record[at + 26]
  if (family !== 4 && family !== 6) return undefined
  return {
    host: formatIp(record.subarray(at + 8, at + (family === 4 ? 12 : 24))),
    port: record[at + 24]! + record[at + 25]! * 256,
    path: readWord(record, at),
    scope: readWord(record, at + 4),
  }
}

export function readWord(bytes: Uint8Array, at: number): number {
  const low = bytes[at]! | bytes[at + 1]! << 8 | bytes[at + 2]! << 16
  return low + bytes[at + 3]! * 0x1000000
}

function writeWord(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value
  bytes[at + 1] = value >>> 8
  bytes[at + 2] = value >>> 16
  bytes[at + 3] = value >>> 24
}

function parseV4(text: string): Uint8Array | undefined {
  const parts = text.split('.')
  if (
    parts.length !== 4 ||
    !parts.every((part) => /^(0|[1-9]\d{0,2})$/.test(part))
  ) return
  const bytes = parts.map(Number)
  return bytes.every((byte) => byte < 256) ? Uint8Array.from(bytes) : undefined
}

function parseV6(text: string): Uint8Array | undefined {
  const dot = text.lastIndexOf(':')
  let whole = text
  if (text.includes('.')) {
    const v4 = parseV4(text.slice(dot + 1))
    if (!v4) return
    const word = (at: number): string => (v4[at]! * 256 + v4[at + 1]!).toString(16)
    whole = `${text.slice(0, dot + 1)}${word(0)}:${word(2)}`
  }
  const [head, tail, more] = whole.split('::')
  if (more !== undefined) return
  const groups = (part: string | undefined): string[] => part ? part.split(':') : []
  const [left, right] = [groups(head), groups(tail)]
  const missing = 8 - left.length - right.length
  if (tail === undefined ? missing !== 0 : missing < 1) return
  const all = [...left, ...Array<string>(missing).fill('0'), ...right]
  if (!all.every((group) => /^[0-9a-fA-F]{1,4}$/.test(group))) return
  const values = all.map((group) => parseInt(group, 16))
  return Uint8Array.from(values.flatMap((value) => [value >> 8, value & 255]))
}

function problem(text: string, expected: string): WireGuardError {
  const found = JSON.stringify(text.slice(0, 80))
  return new WireGuardError(
    'wireguard/address',
    `Cannot read an address: found ${found}, expected ${expected}`,
  )
}
