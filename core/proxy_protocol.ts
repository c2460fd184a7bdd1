/**
 * The PROXY protocol (HAProxy's proxy-protocol.txt, 2020/03/05): a header before the bytes of a TCP
 * connection that says for whom a proxy opened it. An agent writes it to upstreams; a relay behind a
 * proxy reads it. Big-endian.
 *
 *   v1, §2.1    "PROXY" SP ("TCP4" | "TCP6") SP source SP destination SP port SP port CRLF
 *               "PROXY UNKNOWN" anything CRLF; at most 107 bytes with the CRLF
 *   v2, §2.2    signature 12   version and command 1 (0x20 LOCAL, 0x21 PROXY)   family 1   length 2
 *               addresses: 4 + 4 or 16 + 16 or 108 + 108, ports 2 + 2; then TLVs, stepped over
 */
import { formatAddress, parseAddress } from './address.ts'
import { ByteWriter, equal, utf8 } from './bytes.ts'

/** With the CRLF, §2.1. */
const V1_BYTES_MAX = 107
/** What follows the fixed part of v2. Our own limit: the largest TLVs are certificates' names. */
export const V2_REST_BYTES_MAX = 4096
const V2_HEADER_BYTES = 16
const V1_START = utf8('PROXY ')
/** "\r\n\r\n\0\r\nQUIT\n". */
const V2_SIGNATURE = new Uint8Array([13, 10, 13, 10, 0, 13, 10, 0x51, 0x55, 0x49, 0x54, 10])
const V2_LOCAL = 0x20
const V2_PROXY = 0x21
const V2_UNSPEC = 0x00
const V2_TCP4 = 0x11
const V2_TCP6 = 0x21
const V2_UNIX = 0x31
/** What the addresses and ports of a family take, §2.2. */
const V2_FAMILY_BYTES: Readonly<Record<number, number>> = {
  [V2_UNSPEC]: 0,
  [V2_TCP4]: 12,
  [V2_TCP6]: 36,
  [V2_UNIX]: 216,
}

export type ProxyVersion = 'v1' | 'v2'

/** An end of a TCP connection; the address may be empty. */
export interface Endpoint {
  readonly address: string
  readonly port: number
}

/**
 * The header that goes before the visitor's bytes (HAProxy's proxy-protocol.txt, §2.1 and §2.2). `to`
 * is the public port, or the whole address where it is known; the address is else the unspecified one.
 * A visitor without a known address is UNKNOWN or UNSPEC: the upstream then takes the connection's own.
 */
export function proxyHeader(
  version: ProxyVersion,
  from: Endpoint,
  to: number | Endpoint,
): Uint8Array {
  const source = parseAddress(from.address)
  const sink = typeof to === 'number' ? { address: '', port: to } : to
  const known = parseAddress(sink.address)
  const destination = known && known.length === source?.length
    ? known
    : new Uint8Array(source?.length ?? 4)
  if (version === 'v1') {
    if (!source) return utf8('PROXY UNKNOWN\r\n')
    const family = source.length === 4 ? 'TCP4' : 'TCP6'
    return utf8(
      `PROXY ${family} ${formatAddress(source)} ${
        formatAddress(destination)
      } ${from.port} ${sink.port}\r\n`,
    )
  }
  const writer = new ByteWriter(64).bytes(V2_SIGNATURE).u8(V2_PROXY)
  if (!source) return writer.u8(V2_UNSPEC).u16(0).done()
  return writer
    .u8(source.length === 4 ? V2_TCP4 : V2_TCP6)
    .u16(2 * source.length + 4)
    .bytes(source)
    .bytes(destination)
    .u16(from.port)
    .u16(sink.port)
    .done()
}

/** What a header says; `bytes` is its length, and what follows is the visitor's. */
export type ProxyVerdict =
  /** So far so good: ask again with more bytes. */
  | { kind: 'more' }
  | { kind: 'visitor'; address: string; port: number; bytes: number }
  /** The proxy itself: a health check of v2. */
  | { kind: 'proxy'; bytes: number }
  /** Somebody whose address the proxy does not know, or who has none (a local socket). */
  | { kind: 'unknown'; bytes: number }
  | { kind: 'refuse'; reason: 'no-header' | 'bad-header' | 'too-long' }

const MORE: ProxyVerdict = Object.freeze({ kind: 'more' })
const NO_HEADER: ProxyVerdict = Object.freeze({ kind: 'refuse', reason: 'no-header' })
const BAD_HEADER: ProxyVerdict = Object.freeze({ kind: 'refuse', reason: 'bad-header' })
const TOO_LONG: ProxyVerdict = Object.freeze({ kind: 'refuse', reason: 'too-long' })

/** The verdict on the first bytes of a connection. Throws nothing, takes nothing. */
export function readProxyHeader(bytes: Uint8Array): ProxyVerdict {
  if (startsLike(bytes, V2_SIGNATURE)) {
    return bytes.length < V2_HEADER_BYTES ? early(bytes) : readV2(bytes)
  }
  if (!startsLike(bytes, V1_START)) return NO_HEADER
  const end = bytes.subarray(0, V1_BYTES_MAX).indexOf(10)
  if (end >= 0) return readV1(bytes.subarray(0, end + 1))
  return bytes.length >= V1_BYTES_MAX ? TOO_LONG : MORE
}

/** Before the fixed part is there, only its version and family can be wrong. */
function early(bytes: Uint8Array): ProxyVerdict {
  const command = bytes[12]
  if (command === undefined || command === V2_LOCAL) return MORE
  if (command !== V2_PROXY) return BAD_HEADER
  return bytes.length < 14 || V2_FAMILY_BYTES[bytes[13]!] !== undefined ? MORE : BAD_HEADER
}

function readV1(line: Uint8Array): ProxyVerdict {
  const words = String.fromCharCode(...line)
  if (!words.endsWith('\r\n')) return BAD_HEADER
  // §2.1: what stands behind UNKNOWN must be ignored.
  if (/^PROXY UNKNOWN[ \r]/.test(words)) return { kind: 'unknown', bytes: line.length }
  const port = '(0|[1-9][0-9]{0,4})'
  const found = new RegExp(
    `^PROXY TCP(?:4 ([0-9.]+) ([0-9.]+)|6 ([0-9a-fA-F:.]+) ([0-9a-fA-F:.]+)) ${port} ${port}\r\n$`,
  ).exec(words)
  if (!found) return BAD_HEADER
  const [from, to, ports] = [found[1] ?? found[3]!, found[2] ?? found[4]!, found.slice(5)]
  const source = parseAddress(from)
  // A family of six has a colon; what it maps to (::ffff:1.2.3.4) is of four all the same.
  const fits = found[1] !== undefined || (from.includes(':') && to.includes(':'))
  if (!source || !parseAddress(to) || !fits) return BAD_HEADER
  if (ports.some((text) => Number(text) > 65_535)) return BAD_HEADER
  const address = formatAddress(source)
  return { kind: 'visitor', address, port: Number(ports[0]), bytes: line.length }
}

function readV2(bytes: Uint8Array): ProxyVerdict {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const [command, family, rest] = [bytes[12]!, bytes[13]!, view.getUint16(14)]
  if (command !== V2_LOCAL && command !== V2_PROXY) return BAD_HEADER
  if (rest > V2_REST_BYTES_MAX) return TOO_LONG
  const needed = command === V2_LOCAL ? 0 : V2_FAMILY_BYTES[family]
  if (needed === undefined || rest < needed) return BAD_HEADER
  const length = V2_HEADER_BYTES + rest
  if (bytes.length < length) return MORE
  if (command === V2_LOCAL) return { kind: 'proxy', bytes: length }
  if (family === V2_UNSPEC || family === V2_UNIX) return { kind: 'unknown', bytes: length }
  const size = family === V2_TCP4 ? 4 : 16
  const source = bytes.slice(V2_HEADER_BYTES, V2_HEADER_BYTES + size)
  const port = view.getUint16(V2_HEADER_BYTES + 2 * size)
  // Mapped addresses get their short form, so that one visitor has one name.
  const plain = size === 16 ? parseAddress(formatAddress(source)) ?? source : source
  return { kind: 'visitor', address: formatAddress(plain), port, bytes: length }
}

function startsLike(bytes: Uint8Array, start: Uint8Array): boolean {
  const length = Math.min(bytes.length, start.length)
  return equal(bytes.subarray(0, length), start.subarray(0, length))
}
