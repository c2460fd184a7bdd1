/**
 * Readable HTTP: how one exchange with an inspectable endpoint travels on one stream. The request
 * head is the tail of the `open`; both directions then carry records.
 *
 *   kind     1   see RECORD
 *   length   4   big-endian, 0 to 65,536
 *   payload  as the kind says
 *
 * `fin` ends a body. Names of fields are tokens, values one character an octet (RFC 9110 §5.5), and
 * nothing that belongs to one connection (RFC 9110 §7.6.1) is ever inside: both ends check on both
 * sides, so that neither can break the framing of the other's HTTP/1.1. docs/protocol.md,
 * "Readable HTTP".
 */
import { EMPTY, text, utf8 } from './bytes.ts'
import { TunnelError } from './errors.ts'
import { VISIT_TAIL_BYTES_MAX } from './frame.ts'

// Specification constants.
export const RECORD_HEADER_BYTES = 5
/** Most payload of one record. */
export const RECORD_PAYLOAD_BYTES_MAX = 65_536
/** A head or trailers as JSON; that of a request has to fit the tail of a visit. */
export const HEAD_BYTES_MAX: number = VISIT_TAIL_BYTES_MAX
/** Fields of one head, or of the trailers. */
export const FIELDS_MAX = 200
/** Interim responses before the head. */
export const INFOS_MAX = 32
/** A body record of this size makes one full frame. */
const BODY_BYTES_BEST = 65_531
/** What is held for a record that is not a body, before more of it has come. */
const GATHER_BYTES_MIN = 1024

/** Every record kind with its payload. Numbers are never reused. */
export const RECORD = Object.freeze({
  head: 1, // upstream, once: JSON {status, headers, upgrade?}
  body: 2, // both: 1 to 65,536 bytes
  trailers: 3, // both, last: JSON [[name, value], ...]
  info: 4, // upstream, before the head: JSON {status, headers}, 100 to 199 but not 101
})

/** `[name, value]` in order; names repeat. */
export type Fields = [name: string, value: string][]

export interface RequestHead {
  method: string
  /** Origin form, or `*` with OPTIONS. */
  target: string
  /** Host and, where it was named, port; what `Host` said. Never among the headers. */
  authority: string
  scheme: 'http' | 'https'
  headers: Fields
  /** The protocol that the visitor wants to switch to. */
  upgrade?: string
  /** A body of unknown length follows. With neither this nor `content-length` there is none. */
  chunked?: true
}

export interface ResponseHead {
  status: number
  headers: Fields
  /** With 101: the protocol that was switched to. */
  upgrade?: string
}

/** Fields of one connection (RFC 9110 §7.6.1, RFC 9113 §8.2.2); `te` is handled apart. */
const HOP_FIELDS = new Set([
  'connection',
  'http2-settings',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authentication-info',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'transfer-encoding',
  'upgrade',
])
/** Never dropped because `Connection` names them: dropping one would change what the message is. */
const KEPT_FIELDS = new Set(['content-length', 'host'])
/** Fields that mean nothing good after a body (RFC 9110 §6.5.1): framing, routing, rights, format. */
const NOT_TRAILERS = new Set([
  ...HOP_FIELDS,
  'authorization',
  'content-encoding',
  'content-length',
  'content-range',
  'content-type',
  'cookie',
  'expect',
  'host',
  'set-cookie',
  'trailer',
])

const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/
const VALUE = /^[\t\x20-\x7e\x80-\xff]*$/
const TARGET = /^\/[\x21\x22\x24-\x7e\x80-\xff]*$/
const AUTHORITY = /^(?:[0-9A-Za-z._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?$/
const DIGITS = /^[0-9]{1,15}$/

export function isToken(name: string): boolean {
  return TOKEN.test(name)
}

export function isFieldValue(value: string): boolean {
  return VALUE.test(value)
}

/** Origin form: begins with `/`; no blank, control or `#`. */
export function isOriginForm(target: string): boolean {
  return TARGET.test(target)
}

export function isAuthority(authority: string): boolean {
  return AUTHORITY.test(authority)
}

/**
 * What of a message goes on to the other end: fields of the connection, and those that `Connection`
 * names, stay behind. `te: trailers` alone is kept of TE, as HTTP/2 has it.
 */
export function endToEnd(fields: Fields): Fields {
  const named = new Set<string>()
  let trailers = false
  for (const [name, value] of fields) {
    const lower = name.toLowerCase()
    if (lower === 'connection' || lower === 'proxy-connection') {
      for (const part of value.split(',')) named.add(part.trim().toLowerCase())
    } else if (lower === 'te') {
      trailers ||= value.split(',').some((part) => part.trim().toLowerCase() === 'trailers')
    }
  }
  const kept = fields.filter(([name]) => {
    const lower = name.toLowerCase()
    return !HOP_FIELDS.has(lower) && (!named.has(lower) || KEPT_FIELDS.has(lower))
  })
  if (trailers) kept.push(['te', 'trailers'])
  return kept
}

/** What of trailers goes on. */
export function endToEndTrailers(fields: Fields): Fields {
  return fields
    .filter(([name, value]) =>
      !NOT_TRAILERS.has(name.toLowerCase()) && isToken(name) && isFieldValue(value)
    )
    .slice(0, FIELDS_MAX)
}

/** The first value of a field; `name` in lower case. */
export function fieldOf(fields: Fields, name: string): string | undefined {
  return fields.find(([other]) => other.toLowerCase() === name)?.[1]
}

/** The length that `content-length` states; undefined without one. */
export function lengthOf(fields: Fields): number | undefined {
  const value = fieldOf(fields, 'content-length')
  return value === undefined ? undefined : Number(value)
}

/** Bytes that the body of a request has: a number, or 'open' where only its end tells. */
export function requestLength(head: RequestHead): number | 'open' {
  return head.chunked ? 'open' : lengthOf(head.headers) ?? 0
}

/** The same of a response to `method`; RFC 9112 §6.3. */
export function responseLength(head: ResponseHead, method: string): number | 'open' {
  const { status } = head
  if (method === 'HEAD' || status === 204 || status === 304) return 0
  if (status === 101) return 'open'
  return lengthOf(head.headers) ?? 'open'
}

function refuse(subject: string, found: string, expected: string): TunnelError {
  return new TunnelError(
    'exchange/head',
    `Cannot use ${subject}: found ${found}, expected ${expected}`,
  )
}

function checkFields(fields: unknown, subject: string): Fields {
  if (!Array.isArray(fields)) throw refuse(subject, 'no list of fields', 'one')
  if (fields.length > FIELDS_MAX) {
    throw refuse(subject, `${fields.length} fields`, `at most ${FIELDS_MAX}`)
  }
  let lengths = 0
  for (const field of fields as unknown[]) {
    const [name, value] = Array.isArray(field) && field.length === 2 ? field as unknown[] : []
    if (typeof name !== 'string' || !isToken(name)) {
      throw refuse(subject, 'a field without a proper name', 'tokens')
    }
    if (typeof value !== 'string' || !isFieldValue(value)) {
      throw refuse(subject, 'a value with controls', 'visible characters and blanks')
    }
    const lower = name.toLowerCase()
    if (lower === 'te' ? value !== 'trailers' : HOP_FIELDS.has(lower) || lower === 'host') {
      throw refuse(subject, `the field ${lower}`, 'none that belongs to the connection')
    }
    if (lower === 'content-length' && (++lengths > 1 || !DIGITS.test(value))) {
      throw refuse(subject, 'a bad content-length', 'one decimal number')
    }
  }
  return fields as Fields
}

function checkUpgrade(upgrade: unknown, subject: string): string | undefined {
  if (upgrade === undefined) return undefined
  if (
    typeof upgrade !== 'string' || upgrade.length > 64 || !/^[\w!#$%&'*+.^`|~/-]+$/.test(upgrade)
  ) {
    throw refuse(subject, 'an unknown kind of upgrade', 'the name of one protocol')
  }
  return upgrade
}

function checkRequest(value: unknown): RequestHead {
  const subject = 'request head'
  const { method, target, authority, scheme, headers, upgrade, chunked } = objectOf(value, subject)
  if (typeof method !== 'string' || method.length > 32 || !isToken(method)) {
    throw refuse(subject, 'no proper method', 'a token')
  }
  if (
    typeof target !== 'string' || !(isOriginForm(target) || target === '*' && method === 'OPTIONS')
  ) {
    throw refuse(subject, 'another form of target', 'origin form')
  }
  if (typeof authority !== 'string' || authority.length > 261 || !isAuthority(authority)) {
    throw refuse(subject, 'no proper authority', 'host or host:port')
  }
  if (scheme !== 'http' && scheme !== 'https') throw refuse(subject, 'no scheme', 'http or https')
  const fields = checkFields(headers, subject)
  if (chunked !== undefined && (chunked !== true || lengthOf(fields) !== undefined)) {
    throw refuse(subject, 'two framings', 'content-length or chunked')
  }
  const protocol = checkUpgrade(upgrade, subject)
  if (protocol !== undefined && (chunked || (lengthOf(fields) ?? 0) !== 0)) {
    throw refuse(subject, 'an upgrade with a body', 'one without')
  }
  return {
    method,
    target,
    authority,
    scheme,
    headers: fields,
    ...(protocol === undefined ? {} : { upgrade: protocol }),
    ...(chunked ? { chunked: true as const } : {}),
  }
}

function checkResponse(value: unknown, kind: 'head' | 'info'): ResponseHead {
  const subject = kind === 'head' ? 'response head' : 'interim response'
  const { status, headers, upgrade } = objectOf(value, subject)
  const proper = typeof status === 'number' && Number.isInteger(status) &&
    (kind === 'head'
      ? status === 101 || status >= 200 && status <= 999
      : status >= 100 && status <= 199 && status !== 101)
  if (!proper) throw refuse(subject, 'no proper status', kind === 'head' ? '101, 200-999' : '1xx')
  const protocol = checkUpgrade(upgrade, subject)
  if ((status === 101) !== (protocol !== undefined)) {
    throw refuse(subject, 'an upgrade and its status apart', 'both or neither')
  }
  const fields = checkFields(headers, subject)
  return { status, headers: fields, ...(protocol === undefined ? {} : { upgrade: protocol }) }
}

function objectOf(value: unknown, subject: string): Record<string, unknown> {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
    return value as Record<string, unknown>
  }
  throw refuse(subject, 'no JSON object', 'one')
}

function toJson(value: unknown, subject: string): Uint8Array {
  const bytes = utf8(JSON.stringify(value))
  if (bytes.length <= HEAD_BYTES_MAX) return bytes
  throw new TunnelError(
    'exchange/size',
    `Cannot encode ${subject}: found ${bytes.length} bytes, expected at most ${HEAD_BYTES_MAX}`,
  )
}

function fromJson(bytes: Uint8Array, subject: string): unknown {
  if (bytes.length > HEAD_BYTES_MAX) {
    throw refuse(subject, `${bytes.length} bytes`, `at most ${HEAD_BYTES_MAX}`)
  }
  try {
    return JSON.parse(text(bytes)) as unknown
  } catch {
    throw refuse(subject, 'malformed JSON', 'JSON in UTF-8')
  }
}

/** The tail of an `open`. Throws `exchange/head`, and `exchange/size` when it is too long. */
export function encodeRequestHead(head: RequestHead): Uint8Array {
  return toJson(checkRequest(head), 'request head')
}

/** Throws `exchange/head`. Members that it does not know are skipped. */
export function decodeRequestHead(tail: Uint8Array): RequestHead {
  return checkRequest(fromJson(tail, 'request head'))
}

/** One whole record; `payload` is copied. */
export function encodeRecord(kind: number, payload: Uint8Array): Uint8Array {
  const record = new Uint8Array(RECORD_HEADER_BYTES + payload.length)
  record[0] = kind
  new DataView(record.buffer).setUint32(1, payload.length)
  record.set(payload, RECORD_HEADER_BYTES)
  return record
}

export function encodeHead(head: ResponseHead): Uint8Array {
  return encodeRecord(RECORD.head, toJson(checkResponse(head, 'head'), 'response head'))
}

export function encodeInfo(head: ResponseHead): Uint8Array {
  return encodeRecord(RECORD.info, toJson(checkResponse(head, 'info'), 'interim response'))
}

export function encodeTrailers(fields: Fields): Uint8Array {
  return encodeRecord(RECORD.trailers, toJson(checkTrailers(fields), 'trailers'))
}

function checkTrailers(value: unknown): Fields {
  const fields = checkFields(value, 'trailers')
  for (const [name] of fields) {
    if (NOT_TRAILERS.has(name.toLowerCase())) {
      throw refuse('trailers', `the field ${name.toLowerCase()}`, 'none that has to come before')
    }
  }
  return fields
}

/** Body records of `bytes`, each of which fills at most one frame. */
export function* encodeBody(bytes: Uint8Array): Generator<Uint8Array> {
  const count = Math.ceil(bytes.length / BODY_BYTES_BEST)
  const size = Math.ceil(bytes.length / Math.max(1, count))
  for (let at = 0; at < bytes.length; at += size) {
    yield encodeRecord(RECORD.body, bytes.subarray(at, at + size))
  }
}

export interface ExchangeEvents {
  info?(head: ResponseHead): void
  head?(head: ResponseHead): void
  /** A view into what was pushed. */
  body(bytes: Uint8Array): void
  /** The direction has ended as it should. */
  end(trailers: Fields): void
}

/**
 * Reads the records of one direction, in whatever pieces they come. Bodies are handed on as they
 * arrive; what is held of other records is at most twice what came of them. Throws
 * `exchange/record` (unknown, too long, out of order), `exchange/length` (a body that is not as long
 * as its head said), `exchange/truncated` and `exchange/head`; it is of no use after that.
 */
export class ExchangeReader {
  readonly #events: ExchangeEvents
  /** Set on the direction that begins with a response head: the method that it answers. */
  readonly #method: string | undefined
  /** 'head' awaits a response head, 'body' body or trailers, 'done' the end alone. */
  #state: 'head' | 'body' | 'done'
  #length: number | 'open'
  #seenBytes = 0
  #infos = 0
  #trailers: Fields = []
  readonly #header = new Uint8Array(RECORD_HEADER_BYTES)
  #headerBytes = 0
  #kind = 0
  #leftBytes = 0
  #held: Uint8Array = EMPTY
  #heldBytes = 0

  private constructor(
    events: ExchangeEvents,
    options: { method?: string; length?: number | 'open' },
  ) {
    this.#events = events
    this.#method = options.method
    this.#state = options.method === undefined ? 'body' : 'head'
    this.#length = options.length ?? 0
  }

  /** The direction that follows a request head. */
  static ofRequest(head: RequestHead, events: ExchangeEvents): ExchangeReader {
    // What a visitor says after a switch of protocols has no length.
    const length = head.upgrade === undefined ? requestLength(head) : 'open'
    return new ExchangeReader(events, { length })
  }

  /** The direction that answers `method`. */
  static ofResponse(method: string, events: ExchangeEvents): ExchangeReader {
    return new ExchangeReader(events, { method })
  }

  push(bytes: Uint8Array): void {
    let at = 0
    while (at < bytes.length) {
      if (this.#headerBytes < RECORD_HEADER_BYTES) {
        this.#header[this.#headerBytes++] = bytes[at++]!
        if (this.#headerBytes === RECORD_HEADER_BYTES) this.#begin()
        continue
      }
      const part = bytes.subarray(at, at + this.#leftBytes)
      at += part.length
      this.#leftBytes -= part.length
      if (this.#kind === RECORD.body) this.#events.body(part)
      else this.#gather(part)
      if (this.#leftBytes === 0) this.#headerBytes = 0
    }
  }

  /** `fin` came. */
  end(): void {
    if (this.#headerBytes !== 0 || this.#state === 'head') {
      throw new TunnelError(
        'exchange/truncated',
        'Cannot read the exchange: found its end inside a record, or before the head',
      )
    }
    if (this.#length !== 'open' && this.#seenBytes !== this.#length) {
      throw wrongLength(this.#seenBytes, this.#length)
    }
    this.#events.end(this.#trailers)
  }

  #begin(): void {
    const kind = this.#header[0]!
    const length = new DataView(this.#header.buffer).getUint32(1)
    const bytesMax = kind === RECORD.body ? RECORD_PAYLOAD_BYTES_MAX : HEAD_BYTES_MAX
    const expected = this.#state === 'head'
      ? kind === RECORD.head || kind === RECORD.info && ++this.#infos <= INFOS_MAX
      : this.#state === 'body' && (kind === RECORD.body || kind === RECORD.trailers)
    if (!expected || length === 0 || length > bytesMax) {
      throw new TunnelError(
        'exchange/record',
        `Cannot read the exchange: found a record of kind ${kind} and ${length} bytes, expected another`,
      )
    }
    if (kind === RECORD.body) {
      this.#seenBytes += length
      if (this.#length !== 'open' && this.#seenBytes > this.#length) {
        throw wrongLength(this.#seenBytes, this.#length)
      }
    }
    this.#kind = kind
    this.#leftBytes = length
  }

  #gather(part: Uint8Array): void {
    if (this.#heldBytes === 0 && this.#leftBytes === 0) return this.#record(part)
    const bytes = this.#heldBytes + part.length
    if (bytes > this.#held.length) {
      const most = bytes + this.#leftBytes
      const grown = new Uint8Array(Math.min(most, Math.max(GATHER_BYTES_MIN, 2 * bytes)))
      grown.set(this.#held.subarray(0, this.#heldBytes))
      this.#held = grown
    }
    this.#held.set(part, this.#heldBytes)
    this.#heldBytes = bytes
    if (this.#leftBytes > 0) return
    const whole = this.#held.subarray(0, bytes)
    this.#held = EMPTY
    this.#heldBytes = 0
    this.#record(whole)
  }

  #record(payload: Uint8Array): void {
    if (this.#kind === RECORD.trailers) {
      this.#state = 'done'
      this.#trailers = checkTrailers(fromJson(payload, 'trailers'))
      return
    }
    if (this.#kind === RECORD.info) {
      this.#events.info?.(checkResponse(fromJson(payload, 'interim response'), 'info'))
      return
    }
    const head = checkResponse(fromJson(payload, 'response head'), 'head')
    this.#length = responseLength(head, this.#method!)
    this.#state = 'body'
    this.#events.head?.(head)
  }
}

function wrongLength(found: number, expected: number): TunnelError {
  return new TunnelError(
    'exchange/length',
    `Cannot read the body: found ${found} bytes, expected ${expected}`,
  )
}
