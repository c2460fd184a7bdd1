/**
 * Messages of DNS as a stub resolver sends and reads them (RFC 1035 §4; EDNS of RFC 6891; CAA of RFC 8659
 * §4). Whoever answers is not trusted to know the format: every length is checked, a pointer leads
 * backwards alone, and an answer to another question is none.
 */
import { parseAddress } from './address.ts'
import { concat, text, utf8 } from './bytes.ts'
import { TunnelError } from './errors.ts'

// Specification constants.
const TYPES = { A: 1, CNAME: 5, SOA: 6, TXT: 16, AAAA: 28, CAA: 257 } as const
const CLASS_IN = 1
const TYPE_OPT = 41
const NAME_BYTES_MAX = 255
const LABEL_BYTES_MAX = 63
const FLAG_RESPONSE = 0x8000
const FLAG_TRUNCATED = 0x0200
const FLAG_RECURSE = 0x0100

// Our own limits.
/** What an answer over UDP may have (DNS flag day 2020). */
export const DNS_UDP_BYTES_MAX = 1232
/** Of an answer over TCP. */
export const DNS_BYTES_MAX = 16_384
/** Records of one answer; what follows is not looked at. */
const RECORDS_MAX = 100

export type DnsType = Exclude<keyof typeof TYPES, 'SOA'>

export interface DnsRecord {
  /** Lower case, without the dot at its end. */
  readonly name: string
  readonly type: DnsType
  readonly ttlSeconds: number
  /** An address, a name, the strings of a TXT joined, or `FLAGS TAG VALUE` of a CAA. */
  readonly value: string
}

export interface DnsAnswer {
  /** 0 no error, 2 failed, 3 no such name, 5 refused (RFC 1035 §4.1.1). */
  readonly rcode: number
  /** There is more over TCP. */
  readonly truncated: boolean
  readonly records: readonly DnsRecord[]
  /** How long "there is none" holds (RFC 2308 §5); absent where nobody says. */
  readonly noneSeconds?: number
}

export interface DnsQuestion {
  /** 16 bits. */
  readonly id: number
  readonly name: string
  readonly type: DnsType
}

/**
 * A host name as certificates and records hold it: lower case, no dot at its end, two labels or more,
 * letters, digits and hyphens; others as Punycode. Throws `dns/name`.
 */
export function readHostName(words: string): string {
  const name = words.toLowerCase().replace(/\.$/, '')
  const labels = name.split('.')
  const good = name.length <= 253 && labels.length >= 2 &&
    labels.every((label) => /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/.test(label)) &&
    // Nothing but digits last is an address.
    !/^[0-9]+$/.test(labels.at(-1)!)
  if (good) return name
  const international = /[^\x20-\x7e]/.test(words)
  throw new TunnelError(
    'dns/name',
    `Cannot use the host name ${JSON.stringify(words.slice(0, 80))}: expected one such as ` +
      'app.example.com, of letters, digits and hyphens, without a star',
    international
      ? { hint: 'Write letters outside ASCII as Punycode, such as xn--bcher-kva.example.' }
      : {},
  )
}

export interface DnsServer {
  readonly host: string
  readonly port: number
}

/** `192.0.2.1`, `192.0.2.1:53`, `[2001:db8::1]:53`; undefined when it is none. */
export function dnsServer(words: string): DnsServer | undefined {
  const [, six, four, port = '53'] =
    /^(?:\[([^\]]{2,64})\]|([^[\]]{2,64}?))(?::(\d{1,5}))?$/.exec(words) ?? []
  const bare = parseAddress(words) ? words : six ?? four
  if (bare === undefined || !parseAddress(bare) || Number(port) > 65_535) return undefined
  return { host: bare, port: bare === words ? 53 : Number(port) }
}

export function encodeDnsQuery({ id, name, type }: DnsQuestion): Uint8Array {
  const head = Uint8Array.of(id >> 8, id & 255, FLAG_RECURSE >> 8, 0, 0, 1, 0, 0, 0, 0, 0, 1)
  const labels = name.split('.').map((label) => {
    const bytes = utf8(label)
    if (bytes.length === 0 || bytes.length > LABEL_BYTES_MAX) throw malformed('a label')
    return concat(Uint8Array.of(bytes.length), bytes)
  })
  const question = concat(...labels, Uint8Array.of(0, ...u16(TYPES[type]), ...u16(CLASS_IN)))
  if (question.length - 4 > NAME_BYTES_MAX) throw malformed('a name that is too long')
  // The root, OPT, what we take over UDP, no flags, no options.
  const opt = Uint8Array.of(0, ...u16(TYPE_OPT), ...u16(DNS_UDP_BYTES_MAX), 0, 0, 0, 0, 0, 0)
  return concat(head, question, opt)
}

/** Throws `dns/malformed`, also on the answer to another question. */
export function decodeDnsAnswer(bytes: Uint8Array, question: DnsQuestion): DnsAnswer {
  const message = new Message(bytes)
  const [id, flags, questions, answers, authorities] = [0, 0, 0, 0, 0, 0].map(() => message.u16())
  if (id !== question.id || (flags! & FLAG_RESPONSE) === 0 || questions !== 1) {
    throw malformed('the answer to another question')
  }
  const [name, type, klass] = [message.name(), message.u16(), message.u16()]
  if (name !== question.name || type !== TYPES[question.type] || klass !== CLASS_IN) {
    throw malformed('the answer to another question')
  }
  const rcode = flags! & 15
  const truncated = (flags! & FLAG_TRUNCATED) !== 0
  if (truncated) return { rcode, truncated, records: [] }
  const records: DnsRecord[] = []
  for (let i = 0; i < Math.min(answers!, RECORDS_MAX); i++) {
    const record = message.record()
    if (record && record.type !== 'SOA') records.push(record as DnsRecord)
  }
  let noneSeconds: number | undefined
  if (answers! <= RECORDS_MAX) {
    for (let i = 0; i < Math.min(authorities!, RECORDS_MAX); i++) {
      const record = message.record()
      if (record?.type === 'SOA') noneSeconds = Math.min(record.ttlSeconds, Number(record.value))
    }
  }
  return { rcode, truncated, records, ...(noneSeconds === undefined ? {} : { noneSeconds }) }
}

interface AnyRecord {
  name: string
  type: keyof typeof TYPES
  ttlSeconds: number
  value: string
}

class Message {
  readonly #bytes: Uint8Array
  #at = 0

  constructor(bytes: Uint8Array) {
    if (bytes.length > DNS_BYTES_MAX) throw malformed(`${bytes.length} bytes`)
    this.#bytes = bytes
  }

  u8(): number {
    if (this.#at >= this.#bytes.length) throw malformed('an end in the middle')
    return this.#bytes[this.#at++]!
  }

  u16(): number {
    return this.u8() * 256 + this.u8()
  }

  u32(): number {
    return this.u16() * 65_536 + this.u16()
  }

  /** Pointers lead backwards alone, so that there is an end. */
  name(): string {
    const labels: string[] = []
    let length = 0
    let back = -1
    let limit = this.#at
    for (;;) {
      const size = this.u8()
      if (size === 0) break
      if (size >= 0xc0) {
        const to = (size & 0x3f) * 256 + this.u8()
        if (back < 0) back = this.#at
        if (to >= limit) throw malformed('a pointer that leads nowhere')
        this.#at = limit = to
        continue
      }
      if (size > LABEL_BYTES_MAX) throw malformed('a label of another kind')
      length += size + 1
      if (length >= NAME_BYTES_MAX) throw malformed('a name that is too long')
      // A dot within a label would read as two of them.
      labels.push(latin(this.#take(size)).replaceAll('.', '?'))
    }
    if (back >= 0) this.#at = back
    return labels.join('.').toLowerCase()
  }

  /** Undefined: of a type that nobody asks for. */
  record(): AnyRecord | undefined {
    const name = this.name()
    const [number, klass] = [this.u16(), this.u16()]
    const ttl = this.u32()
    const size = this.u16()
    const end = this.#at + size
    if (end > this.#bytes.length) throw malformed('a record that breaks off')
    const found = Object.entries(TYPES).find(([, value]) => value === number)
    const type = found?.[0] as AnyRecord['type'] | undefined
    const value = type !== undefined && klass === CLASS_IN ? this.#value(type, size) : undefined
    if (value !== undefined && this.#at !== end) throw malformed('a record of another length')
    this.#at = end
    if (value === undefined) return undefined
    // RFC 2181 §8: the first bit set means zero.
    return { name, type: type!, ttlSeconds: ttl >= 2 ** 31 ? 0 : ttl, value }
  }

  #value(type: AnyRecord['type'], size: number): string {
    switch (type) {
      case 'A':
        if (size !== 4) throw malformed('an address of another length')
        return [...this.#take(4)].join('.')
      case 'AAAA': {
        if (size !== 16) throw malformed('an address of another length')
        return Array.from({ length: 8 }, () => this.u16().toString(16)).join(':')
      }
      case 'CNAME':
        return this.name()
      case 'TXT': {
        const end = this.#at + size
        let words = ''
        while (this.#at < end) {
          const length = this.u8()
          if (this.#at + length > end) throw malformed('a text that breaks off')
          words += latin(this.#take(length))
        }
        return words
      }
      case 'CAA': {
        if (size < 2) throw malformed('a CAA that breaks off')
        const [flags, length] = [this.u8(), this.u8()]
        if (length === 0 || length > size - 2) throw malformed('a CAA that breaks off')
        const tag = latin(this.#take(length)).toLowerCase()
        return `${flags} ${tag} ${latin(this.#take(size - 2 - length))}`
      }
      case 'SOA': {
        this.name()
        this.name()
        for (let i = 0; i < 4; i++) this.u32()
        return String(this.u32())
      }
    }
  }

  #take(size: number): Uint8Array {
    if (this.#at + size > this.#bytes.length) throw malformed('an end in the middle')
    this.#at += size
    return this.#bytes.subarray(this.#at - size, this.#at)
  }
}

/** Printable ASCII as it is; whatever else as a question mark, since people will read it. */
function latin(bytes: Uint8Array): string {
  return text(bytes.map((byte) => (byte >= 0x20 && byte < 0x7f ? byte : 0x3f)))
}

function u16(value: number): [number, number] {
  return [value >> 8, value & 255]
}

function malformed(found: string): TunnelError {
  return new TunnelError('dns/malformed', `Cannot read the answer of DNS: found ${found}`)
}
