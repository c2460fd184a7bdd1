/**
 * Reading the name out of a TLS ClientHello, so that a visitor can be led on without ending TLS.
 * Bytes in, verdict out: nothing is consumed, nothing is thrown, and nothing is guessed. A hello
 * that two parsers could read in two ways is refused with the alert that the RFC names.
 *
 *   record     type 1 (22)  version 2 (03 xx)  length 2 (1..16,384)  fragment      RFC 8446 §5.1
 *   handshake  type 1 (1)   length 3           body; may span records at any byte  RFC 8446 §4
 *   body       version 2, random 32, session id <0..32>, cipher suites <2..65,534>,
 *              compression <1..255>, extensions <0..65,535> or none at all         RFC 8446 §4.1.2
 *   extension  type 2, length 2, data; each type once                              RFC 8446 §4.2
 *     0        server_name: list 2, then type 1 (0), name <1..65,535>              RFC 6066 §3
 *     16       ALPN: list 2, then names <1..255>                                   RFC 7301 §3.1
 *     43       supported_versions: list 1, then versions 2 each                    RFC 8446 §4.2.1
 *     0xfe0d   encrypted_client_hello: noted, not read                             RFC 9849 §5
 *
 * Big-endian throughout. All else (GREASE, key shares, tickets) is stepped over: the TLS stack
 * behind the relay judges it. What follows the hello's last record is not looked at either, since
 * early data may follow and a verdict must not depend on how much of it has arrived.
 */

/** Wire bytes, record headers included, within which a hello must end. Our own limit. */
export const CLIENT_HELLO_BYTES_MAX = 65_536

const RECORD_HEADER_BYTES = 5
const FRAGMENT_BYTES_MAX = 16_384 // RFC 8446 §5.1
const HANDSHAKE_HEADER_BYTES = 4
const SESSION_ID_BYTES_MAX = 32 // RFC 8446 §4.1.2
const NAME_BYTES_MAX = 253 // RFC 1035 §2.3.4, as text without the root's dot
const LABEL_BYTES_MAX = 63 // RFC 1035 §2.3.4
const FIRST_BUFFER_BYTES = 512

const TYPE_HANDSHAKE = 22
const TYPE_CLIENT_HELLO = 1
const TYPE_HOST_NAME = 0
const EXTENSION_SERVER_NAME = 0
const EXTENSION_ALPN = 16
const EXTENSION_SUPPORTED_VERSIONS = 43
const EXTENSION_ECH = 0xfe0d
const SSL3 = 0x0300
const TLS12 = 0x0303
const TLS13 = 0x0304

/** Alert descriptions that a relay sends (RFC 8446 §6, RFC 6066 §3). */
export const TLS_ALERTS = {
  close_notify: 0,
  unexpected_message: 10,
  record_overflow: 22,
  handshake_failure: 40,
  illegal_parameter: 47,
  access_denied: 49,
  decode_error: 50,
  protocol_version: 70,
  internal_error: 80,
  unrecognized_name: 112,
} as const

/**
 * Every reason for a refusal, with its alert. `decode_error` is for lengths that do not add up or
 * are out of range, `illegal_parameter` for well-formed fields that say what they must not.
 */
export const HELLO_REFUSALS = {
  /** A first record of another type (an alert, say), or one amid the hello: RFC 8446 §5, §5.1. */
  'unexpected-record': TLS_ALERTS.unexpected_message,
  /** Handshake fragments are never empty: RFC 8446 §5.1, §5.4. */
  'empty-record': TLS_ALERTS.unexpected_message,
  /** The RFC names this alert, not decode_error, for a length past 2^14: RFC 8446 §5.1. */
  'record-overflow': TLS_ALERTS.record_overflow,
  'record-version': TLS_ALERTS.protocol_version,
  'not-client-hello': TLS_ALERTS.unexpected_message,
  /** The hello must end where its record ends: RFC 8446 §5.1. */
  'bytes-after-hello': TLS_ALERTS.unexpected_message,
  'too-long': TLS_ALERTS.decode_error,
  'truncated': TLS_ALERTS.decode_error,
  'session-id': TLS_ALERTS.decode_error,
  'cipher-suites': TLS_ALERTS.decode_error,
  'compression': TLS_ALERTS.decode_error,
  'no-null-compression': TLS_ALERTS.illegal_parameter,
  'extensions': TLS_ALERTS.decode_error,
  'trailing-bytes': TLS_ALERTS.decode_error,
  'duplicate-extension': TLS_ALERTS.illegal_parameter,
  'server-name-list': TLS_ALERTS.decode_error,
  'two-server-names': TLS_ALERTS.illegal_parameter,
  /** RFC 6066 §3: "Literal IPv4 and IPv6 addresses are not permitted". */
  'ip-literal': TLS_ALERTS.illegal_parameter,
  'bad-server-name': TLS_ALERTS.illegal_parameter,
  'no-server-name': TLS_ALERTS.unrecognized_name,
  'alpn': TLS_ALERTS.decode_error,
  'supported-versions': TLS_ALERTS.decode_error,
  'old-version': TLS_ALERTS.protocol_version,
  'sslv2': TLS_ALERTS.protocol_version,
} as const

export type HelloRefusal = keyof typeof HELLO_REFUSALS

export type HelloVerdict =
  /** So far so good: ask again with more bytes. */
  | { kind: 'more' }
  /**
   * A whole hello. `serverName` is lower case without a trailing dot; `alpn` holds one character
   * a byte; `versions` keeps the client's order without GREASE; `ech` is true for GREASE ECH too,
   * which is made to look the same; `bytes` is where its last record ends.
   */
  | {
    kind: 'hello'
    serverName: string
    alpn: string[]
    versions: number[]
    ech: boolean
    bytes: number
  }
  /** Send this fatal alert and half-close. `serverName` is there only when it was a sound one. */
  | { kind: 'refuse'; alert: number; reason: HelloRefusal; serverName?: string }
  /** No TLS: plain HTTP, a ticket, anything else. */
  | { kind: 'other' }

const MORE: HelloVerdict = Object.freeze({ kind: 'more' })
const OTHER: HelloVerdict = Object.freeze({ kind: 'other' })

/** The verdict on the first bytes of a connection. Work grows with the records, not the bytes. */
export function readClientHello(bytes: Uint8Array): HelloVerdict {
  return bytes[0] === TYPE_HANDSHAKE ? walkRecords(bytes, startCursor()) : readOther(bytes)
}

/**
 * The same for bytes that arrive in pieces, each looked at once however small. Copies what it is
 * given, at most `CLIENT_HELLO_BYTES_MAX` bytes and the last piece.
 */
export class HelloReader {
  #buffer: Uint8Array = new Uint8Array(0)
  #length = 0
  #cursor: Cursor = startCursor()
  #verdict: HelloVerdict = MORE

  /** All bytes pushed up to the verdict, exactly as they came: a view, valid until `push`. */
  get held(): Uint8Array {
    return this.#buffer.subarray(0, this.#length)
  }

  /** Adds `chunk`. Once a verdict other than 'more' is out it stays, and no more is held. */
  push(chunk: Uint8Array): HelloVerdict {
    if (this.#verdict.kind !== 'more') return this.#verdict
    this.#append(chunk)
    const bytes = this.held
    this.#verdict = bytes[0] === TYPE_HANDSHAKE
      ? walkRecords(bytes, this.#cursor)
      : readOther(bytes)
    return this.#verdict
  }

  #append(chunk: Uint8Array): void {
    const length = this.#length + chunk.length
    if (length > this.#buffer.length) {
      // Doubles from what has come, never from what a header promises: promises are free.
      const doubled = Math.min(2 * this.#buffer.length, CLIENT_HELLO_BYTES_MAX)
      const grown = new Uint8Array(Math.max(length, doubled, FIRST_BUFFER_BYTES))
      grown.set(this.held)
      this.#buffer = grown
    }
    this.#buffer.set(chunk, this.#length)
    this.#length = length
  }
}

/** One fatal alert in a record of its own, 7 bytes (RFC 8446 §6). */
export function encodeAlert(alert: number, version: number = TLS12): Uint8Array {
  return Uint8Array.of(21, version >>> 8, version & 0xff, 0, 2, 2, alert)
}

/**
 * A host name as names are compared here: lower case, one trailing dot gone, labels of letters,
 * digits and inner hyphens. Undefined for anything else, an IP address too. `text` holds one
 * character a byte. The Host header must go through this as well, or the two may disagree.
 */
export function normaliseHostName(text: string): string | undefined {
  const name = judgeName(text)
  return typeof name === 'string' ? name : undefined
}

/** Where reading stands between calls: all before `at` is whole records of a sound prefix. */
interface Cursor {
  /** Offset of the record header to read next. */
  at: number
  /** Handshake bytes before it. */
  gathered: number
  /** How many of them belong to the handshake header, 0..4, and these as one number. */
  headerBytes: number
  header: number
}

function startCursor(): Cursor {
  return { at: 0, gathered: 0, headerBytes: 0, header: 0 }
}

/**
 * Follows the records from `cursor`, which it moves on past each whole one. Each check is made as
 * soon as its own bytes are there and in their order, so the verdict is the same for every way of
 * cutting the bytes into pieces.
 */
function walkRecords(bytes: Uint8Array, cursor: Cursor): HelloVerdict {
  for (;;) {
    const { at } = cursor
    if (bytes.length > at && bytes[at] !== TYPE_HANDSHAKE) return refuse('unexpected-record')
    // The minor version is "ignored for all purposes" (RFC 8446 §5.1); another major is not TLS.
    if (bytes.length > at + 1 && bytes[at + 1] !== 3) return refuse('record-version')
    const start = at + RECORD_HEADER_BYTES
    if (bytes.length < start) return MORE
    const length = u16(bytes, at + 3)
    if (length === 0) return refuse('empty-record')
    if (length > FRAGMENT_BYTES_MAX) return refuse('record-overflow')
    const end = start + length

    let { headerBytes, header } = cursor
    const stop = Math.min(end, bytes.length)
    for (let i = start; i < stop && headerBytes < HANDSHAKE_HEADER_BYTES; i++) {
      header = (header << 8) | bytes[i]!
      if (++headerBytes === 1 && header !== TYPE_CLIENT_HELLO) return refuse('not-client-hello')
    }
    const gathered = cursor.gathered + length
    const known = headerBytes === HANDSHAKE_HEADER_BYTES
    const missing = HANDSHAKE_HEADER_BYTES + (header & 0xffffff) - gathered
    if (known && missing < 0) return refuse('bytes-after-hello')
    if (known && end + leastWireBytes(missing) > CLIENT_HELLO_BYTES_MAX) return refuse('too-long')
    if (bytes.length < end) return MORE

    cursor.at = end
    cursor.gathered = gathered
    cursor.headerBytes = headerBytes
    cursor.header = header
    if (known && missing === 0) return readMessage(bytes, end)
  }
}

/** What `missing` more handshake bytes take on the wire at best, in records as long as may be. */
function leastWireBytes(missing: number): number {
  return missing + RECORD_HEADER_BYTES * Math.ceil(missing / FRAGMENT_BYTES_MAX)
}

/** First bytes that are no handshake record. */
function readOther(bytes: Uint8Array): HelloVerdict {
  const first = bytes[0]
  if (first === undefined) return MORE
  // change_cipher_spec, alert, application_data, heartbeat: TLS, but not how a connection starts.
  if (first >= 20 && first <= 24) {
    if (bytes.length < 2) return MORE
    return bytes[1] === 3 ? refuse('unexpected-record') : OTHER
  }
  // SSLv2 (RFC 5246 §E.2): length 2 with the top bit set, type 1, version 00 02 or 03 xx.
  if (first < 0x80) return OTHER
  if (bytes.length < 3) return MORE
  if (bytes[2] !== TYPE_CLIENT_HELLO) return OTHER
  if (bytes.length < 5) return MORE
  const version = u16(bytes, 3)
  return version === 0x0002 || version >>> 8 === 3 ? refuse('sslv2') : OTHER
}

/** The records of `bytes` up to `end` hold exactly one whole ClientHello. */
function readMessage(bytes: Uint8Array, end: number): HelloVerdict {
  const first = RECORD_HEADER_BYTES + u16(bytes, 3)
  // Nearly every hello is one record and is read where it lies.
  if (first === end) {
    return readBody(bytes.subarray(RECORD_HEADER_BYTES + HANDSHAKE_HEADER_BYTES, end), end)
  }
  const message = new Uint8Array(end)
  let length = 0
  for (let at = 0; at < end;) {
    const next = at + RECORD_HEADER_BYTES + u16(bytes, at + 3)
    // Byte by byte below this: a view for each tiny record costs more than it moves.
    if (next - at < 64) {
      for (let i = at + RECORD_HEADER_BYTES; i < next; i++) message[length++] = bytes[i]!
    } else {
      message.set(bytes.subarray(at + RECORD_HEADER_BYTES, next), length)
      length += next - at - RECORD_HEADER_BYTES
    }
    at = next
  }
  return readBody(message.subarray(HANDSHAKE_HEADER_BYTES, length), end)
}

/** What the extensions say, filled in as they are met. */
interface Found {
  serverName: string | undefined
  alpn: string[]
  versions: number[] | undefined
  ech: boolean
}

/** Judges the ClientHello `body`; `wireBytes` only goes into the verdict. */
function readBody(body: Uint8Array, wireBytes: number): HelloVerdict {
  if (body.length < 35) return refuse('truncated')
  const legacyVersion = u16(body, 0)
  const sessionIdBytes = body[34]!
  if (sessionIdBytes > SESSION_ID_BYTES_MAX) return refuse('session-id')
  let at = 35 + sessionIdBytes
  if (at + 2 > body.length) return refuse('truncated')
  const suiteBytes = u16(body, at)
  if (suiteBytes === 0 || suiteBytes % 2 !== 0) return refuse('cipher-suites')
  at += 2 + suiteBytes
  if (at >= body.length) return refuse('truncated')
  const methods = body[at]!
  if (methods === 0) return refuse('compression')
  if (at + 1 + methods > body.length) return refuse('truncated')
  if (!body.subarray(at + 1, at + 1 + methods).includes(0)) return refuse('no-null-compression')
  at += 1 + methods

  const found: Found = { serverName: undefined, alpn: [], versions: undefined, ech: false }
  const reason = readExtensions(body, at, found)
  if (reason !== undefined) return refuse(reason)
  const { serverName, alpn, ech } = found
  // Without the extension a client means TLS 1.2 at most, whatever number it writes (§4.2.1).
  const versions = found.versions ?? [Math.min(legacyVersion, TLS12)]
  const spoken = versions.includes(TLS12) || versions.includes(TLS13)
  // SSL 3.0 in the old field is refused even beside the extension (RFC 8446 §D.5).
  if (!spoken || legacyVersion <= SSL3) return refuse('old-version', serverName)
  if (serverName === undefined) return refuse('no-server-name')
  return { kind: 'hello', serverName, alpn, versions, ech, bytes: wireBytes }
}

/** Reads the extension block at `at`, which ends with the body, into `found`. */
function readExtensions(body: Uint8Array, at: number, found: Found): HelloRefusal | undefined {
  if (at === body.length) return undefined
  if (at + 2 > body.length) return 'extensions'
  const end = at + 2 + u16(body, at)
  if (end > body.length) return 'extensions'
  if (end < body.length) return 'trailing-bytes'
  const seen = new Set<number>()
  for (at += 2; at < end;) {
    if (at + 4 > end) return 'extensions'
    const type = u16(body, at)
    const start = at + 4
    at = start + u16(body, at + 2)
    if (at > end) return 'extensions'
    if (seen.has(type)) return 'duplicate-extension'
    seen.add(type)
    let reason: HelloRefusal | undefined
    if (type === EXTENSION_SERVER_NAME) reason = readServerName(body.subarray(start, at), found)
    else if (type === EXTENSION_ALPN) reason = readAlpn(body.subarray(start, at), found)
    else if (type === EXTENSION_ECH) found.ech = true
    else if (type === EXTENSION_SUPPORTED_VERSIONS) {
      reason = readVersions(body.subarray(start, at), found)
    }
    if (reason !== undefined) return reason
  }
  return undefined
}

function readServerName(data: Uint8Array, found: Found): HelloRefusal | undefined {
  if (data.length < 5 || u16(data, 0) !== data.length - 2) return 'server-name-list'
  let entries = 0
  for (let at = 2; at < data.length; entries++) {
    if (at + 3 > data.length) return 'server-name-list'
    // Types yet to come have a 16-bit length first as well (RFC 6066 §3).
    const length = u16(data, at + 1)
    at += 3 + length
    if (length === 0 || at > data.length) return 'server-name-list'
  }
  // One type was ever defined and each may appear once. Servers differ on a second entry, so a
  // relay that picked one could lead a visitor where the agent reads another name.
  if (entries > 1) return 'two-server-names'
  if (data[2] !== TYPE_HOST_NAME) return undefined
  const end = data.length
  if (end - 5 > NAME_BYTES_MAX + 1) return 'bad-server-name'
  const name = judgeName(latin1(data, 5, end))
  if (typeof name !== 'string') return name.refusal
  found.serverName = name
  return undefined
}

function readAlpn(data: Uint8Array, found: Found): HelloRefusal | undefined {
  if (data.length < 4 || u16(data, 0) !== data.length - 2) return 'alpn'
  for (let at = 2; at < data.length;) {
    const end = at + 1 + data[at]!
    if (end === at + 1 || end > data.length) return 'alpn'
    found.alpn.push(latin1(data, at + 1, end))
    at = end
  }
  return undefined
}

function readVersions(data: Uint8Array, found: Found): HelloRefusal | undefined {
  if (data.length < 3 || data.length % 2 === 0 || data[0] !== data.length - 1) {
    return 'supported-versions'
  }
  const versions: number[] = []
  for (let at = 1; at < data.length; at += 2) {
    const version = u16(data, at)
    // GREASE: both bytes alike and ending in a (RFC 8701 §2).
    const grease = (version & 0x0f0f) === 0x0a0a && version >>> 8 === (version & 0xff)
    if (!grease) versions.push(version)
  }
  found.versions = versions
  return undefined
}

const IP_LITERAL: { refusal: HelloRefusal } = { refusal: 'ip-literal' }
const BAD_NAME: { refusal: HelloRefusal } = { refusal: 'bad-server-name' }
const LABEL = '[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?'
const NAME = new RegExp(`^${LABEL}(?:\\.${LABEL})*$`)
/** With or without brackets and zone; a port behind a name has no place here and is no address. */
const IPV6 = /^\[?[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%.*)?\]?$/
/** A last label that resolvers take for a number makes an IPv4 address of the whole name. */
const ENDS_IN_NUMBER = /(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)$/

function judgeName(text: string): string | { refusal: HelloRefusal } {
  const bare = text.endsWith('.') ? text.slice(0, -1) : text
  if (bare.length > NAME_BYTES_MAX) return BAD_NAME
  if (IPV6.test(bare)) return IP_LITERAL
  // Before lowering: the Kelvin sign, for one, lowers to a plain k.
  if (!NAME.test(bare)) return BAD_NAME
  const name = bare.toLowerCase()
  if (ENDS_IN_NUMBER.test(name)) return IP_LITERAL
  for (let at = 0; at < name.length;) {
    const dot = name.indexOf('.', at)
    const end = dot < 0 ? name.length : dot
    if (end - at > LABEL_BYTES_MAX) return BAD_NAME
    at = end + 1
  }
  return name
}

function refuse(reason: HelloRefusal, serverName?: string): HelloVerdict {
  const alert = HELLO_REFUSALS[reason]
  return serverName === undefined
    ? { kind: 'refuse', alert, reason }
    : { kind: 'refuse', alert, reason, serverName }
}

/** The caller has checked that two bytes are there. */
function u16(bytes: Uint8Array, at: number): number {
  return (bytes[at]! << 8) | bytes[at + 1]!
}

/** One character a byte, at most 255 of them: reversible, unlike a decoder for text. */
function latin1(bytes: Uint8Array, start: number, end: number): string {
  return String.fromCharCode(...bytes.subarray(start, end))
}
