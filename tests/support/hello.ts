/**
 * ClientHellos for tests: a builder that can lie at every level, a cutter into records, and the
 * slow twin of core/client_hello.ts, which reads one byte after the other and throws.
 */
import { concat, utf8 } from '../../core/bytes.ts'

/** Big-endian `value` in `width` bytes. */
export function number(value: number, width: number): Uint8Array {
  return Uint8Array.from({ length: width }, (_, i) => Math.floor(value / 256 ** (width - 1 - i)))
}

/** `parts` behind their length in `width` bytes; `lie` is added to that length. */
export function vector(width: number, parts: Uint8Array[], lie = 0): Uint8Array {
  const data = concat(...parts)
  return concat(number(data.length + lie, width), data)
}

export type Extension = [type: number, data: Uint8Array]

export function serverNames(...names: (string | Uint8Array)[]): Extension {
  const entries = names.map((name) =>
    concat(Uint8Array.of(0), vector(2, [typeof name === 'string' ? utf8(name) : name]))
  )
  return [0, vector(2, entries)]
}

export function protocols(...names: string[]): Extension {
  return [16, vector(2, names.map((name) => vector(1, [utf8(name)])))]
}

export function supportedVersions(...versions: number[]): Extension {
  return [43, vector(1, versions.map((version) => number(version, 2)))]
}

/** A key share of X25519MLKEM768 (1,216 bytes) beside one of X25519, GREASE in front. */
export function keyShares(): Extension {
  const share = (group: number, length: number): Uint8Array =>
    concat(number(group, 2), vector(2, [new Uint8Array(length).fill(group & 0xff)]))
  return [51, vector(2, [share(0x2a2a, 1), share(0x11ec, 1216), share(0x001d, 32)])]
}

/** Encrypted ClientHello of the outer type: config 7, `enc` 32, a payload of `length`. */
export function encryptedHello(length = 144): Extension {
  const suite = Uint8Array.of(0, 0, 1, 0, 1, 7)
  return [
    0xfe0d,
    concat(suite, vector(2, [new Uint8Array(32)]), vector(2, [new Uint8Array(length)])),
  ]
}

export interface HelloParts {
  legacyVersion?: number
  sessionId?: Uint8Array
  suites?: Uint8Array
  compression?: Uint8Array
  /** `null`: the body ends before the extension block. */
  extensions?: Extension[] | null
  /** Added to the length of the extension block and of the handshake message. */
  lies?: { extensions?: number; message?: number }
  /** After the extension block, counted by the handshake length. */
  trailing?: Uint8Array
}

const USUAL: Extension[] = [serverNames('web.example'), supportedVersions(0x0304, 0x0303)]

/** A handshake message of type ClientHello, without records. */
export function helloMessage(parts: HelloParts = {}): Uint8Array {
  const { extensions = USUAL, lies = {} } = parts
  const body = concat(
    number(parts.legacyVersion ?? 0x0303, 2),
    Uint8Array.from({ length: 32 }, (_, i) => i),
    vector(1, [parts.sessionId ?? new Uint8Array(32).fill(0x5e)]),
    vector(2, [parts.suites ?? Uint8Array.of(0x13, 0x01, 0xc0, 0x2b)]),
    vector(1, [parts.compression ?? Uint8Array.of(0)]),
    extensions === null ? new Uint8Array(0) : vector(
      2,
      extensions.map(([type, data]) => concat(number(type, 2), vector(2, [data]))),
      lies.extensions,
    ),
    parts.trailing ?? new Uint8Array(0),
  )
  return concat(Uint8Array.of(1), vector(3, [body], lies.message))
}

/** `message` in handshake records of the given sizes, the last of them again and again. */
export function records(message: Uint8Array, sizes: number[] = [16_384]): Uint8Array {
  const out: Uint8Array[] = []
  for (let at = 0, i = 0; at < message.length; i++) {
    const size = sizes[Math.min(i, sizes.length - 1)]!
    out.push(Uint8Array.of(22, 3, 1), vector(2, [message.subarray(at, at + size)]))
    at += size
  }
  return concat(...out)
}

/** A hello in its records, ready to send. */
export function hello(parts: HelloParts = {}, sizes?: number[]): Uint8Array {
  return records(helloMessage(parts), sizes)
}

/** What the twin says: kind, and for refusals the reason. */
export type Said = { kind: string; reason?: string; [field: string]: unknown }

/** Thrown by the twin to be done. */
class Halt {
  readonly said: Said
  constructor(said: Said) {
    this.said = said
  }
}

function no(reason: string): never {
  throw new Halt({ kind: 'refuse', reason })
}

/** The slow twin of readClientHello. */
export function slowReadClientHello(bytes: Uint8Array): Said {
  try {
    return slowBody(...slowRecords([...bytes]))
  } catch (halt) {
    if (halt instanceof Halt) return halt.said
    throw halt
  }
}

function slowRecords(bytes: number[]): [body: number[], wireBytes: number] {
  let read = 0
  const next = (): number => {
    if (read === bytes.length) throw new Halt({ kind: 'more' })
    return bytes[read++]!
  }
  const message: number[] = []
  let total = Infinity
  for (;;) {
    const type = next()
    if (type !== 22) {
      if (message.length > 0) no('unexpected-record')
      slowOther(type, next)
    }
    if (next() !== 3) no('record-version')
    next()
    const length = next() * 256 + next()
    if (length === 0) no('empty-record')
    if (length > 16_384) no('record-overflow')
    const recordEnd = read + length
    const judgeLength = (): void => {
      let rest = total - message.length - (recordEnd - read)
      if (rest < 0) no('bytes-after-hello')
      let wire = recordEnd
      for (; rest > 0; rest -= 16_384) wire += 5 + Math.min(rest, 16_384)
      if (wire > 65_536) no('too-long')
    }
    if (total !== Infinity) judgeLength()
    while (read < recordEnd) {
      message.push(next())
      if (message[0] !== 1) no('not-client-hello')
      if (message.length === 4) {
        total = 4 + message[1]! * 65_536 + message[2]! * 256 + message[3]!
        judgeLength()
      }
    }
    if (message.length === total) return [message.slice(4), read]
  }
}

function slowOther(type: number, next: () => number): never {
  if ([20, 21, 23, 24].includes(type) && next() === 3) no('unexpected-record')
  if (type < 128) throw new Halt({ kind: 'other' })
  next()
  if (next() !== 1) throw new Halt({ kind: 'other' })
  const version = [next(), next()]
  if (version[0] === 3 || (version[0] === 0 && version[1] === 2)) no('sslv2')
  throw new Halt({ kind: 'other' })
}

/** Takes from the front of a list of bytes; running out is `reason`. */
class Taker {
  readonly rest: number[]
  readonly #reason: string

  constructor(bytes: number[], reason: string) {
    this.rest = bytes
    this.#reason = reason
  }

  bytes(count: number): number[] {
    if (count > this.rest.length) no(this.#reason)
    return this.rest.splice(0, count)
  }

  number(width: number): number {
    return this.bytes(width).reduce((sum, byte) => sum * 256 + byte, 0)
  }

  vector(width: number): number[] {
    return this.bytes(this.number(width))
  }
}

function slowBody(body: number[], wireBytes: number): Said {
  const taker = new Taker(body, 'truncated')
  const legacy = taker.number(2)
  taker.bytes(32)
  const idBytes = taker.number(1)
  if (idBytes > 32) no('session-id')
  taker.bytes(idBytes)
  const suiteBytes = taker.number(2)
  if (suiteBytes < 1 || suiteBytes % 2 === 1) no('cipher-suites')
  taker.bytes(suiteBytes)
  const methodBytes = taker.number(1)
  if (methodBytes < 1) no('compression')
  if (taker.bytes(methodBytes).every((method) => method !== 0)) no('no-null-compression')

  const found = slowExtensions(taker.rest)
  const all = found.versions ?? [Math.min(legacy, 0x0303)]
  const versions = all.filter((version) => !/^(.a)\1$/.test(version.toString(16).padStart(4, '0')))
  const { serverName, alpn, ech } = found
  if (legacy <= 0x0300 || !versions.some((version) => version === 0x0303 || version === 0x0304)) {
    const named = serverName === undefined ? {} : { serverName }
    throw new Halt({ kind: 'refuse', reason: 'old-version', ...named })
  }
  if (serverName === undefined) no('no-server-name')
  return { kind: 'hello', serverName, alpn, versions, ech, bytes: wireBytes }
}

interface SlowFound {
  serverName?: string
  alpn: string[]
  versions?: number[]
  ech: boolean
}

function slowExtensions(rest: number[]): SlowFound {
  const found: SlowFound = { alpn: [], ech: false }
  if (rest.length === 0) return found
  const outer = new Taker(rest, 'extensions')
  const block = new Taker(outer.vector(2), 'extensions')
  if (outer.rest.length > 0) no('trailing-bytes')
  const types: number[] = []
  while (block.rest.length > 0) {
    const type = block.number(2)
    const data = block.vector(2)
    if (types.includes(type)) no('duplicate-extension')
    types.push(type)
    if (type === 0) {
      const name = slowName(data)
      if (name !== undefined) found.serverName = name
    }
    if (type === 16) found.alpn = slowList(data, { width: 2, reason: 'alpn' }).map(latin1)
    if (type === 43) found.versions = slowVersions(data)
    if (type === 0xfe0d) found.ech = true
  }
  return found
}

function slowList(data: number[], options: { width: number; reason: string }): number[][] {
  const outer = new Taker(data, options.reason)
  const list = new Taker(outer.vector(options.width), options.reason)
  if (outer.rest.length > 0 || list.rest.length === 0) no(options.reason)
  const out: number[][] = []
  while (list.rest.length > 0) {
    const entry = list.vector(1)
    if (entry.length === 0) no(options.reason)
    out.push(entry)
  }
  return out
}

function slowVersions(data: number[]): number[] {
  const outer = new Taker(data, 'supported-versions')
  const list = outer.vector(1)
  if (outer.rest.length > 0 || list.length === 0 || list.length % 2 === 1) no('supported-versions')
  const out: number[] = []
  while (list.length > 0) out.push(list.shift()! * 256 + list.shift()!)
  return out
}

function slowName(data: number[]): string | undefined {
  const outer = new Taker(data, 'server-name-list')
  const list = new Taker(outer.vector(2), 'server-name-list')
  if (outer.rest.length > 0 || list.rest.length === 0) no('server-name-list')
  const entries: [type: number, name: number[]][] = []
  while (list.rest.length > 0) entries.push([list.number(1), list.vector(2)])
  if (entries.some(([, name]) => name.length === 0)) no('server-name-list')
  if (entries.length > 1) no('two-server-names')
  const [type, bytes] = entries[0]!
  if (type !== 0) return undefined
  const name = latin1(bytes).replace(/\.$/, '')
  if (name.length > 253) no('bad-server-name')
  if (/^\[?[0-9a-f:.]*:[0-9a-f:.]*(%.*)?\]?$/i.test(name)) no('ip-literal')
  const labels = name.split('.')
  const sound = labels.every((label) => /^[a-z0-9-]+$/i.test(label) && !/^-|-$/.test(label))
  if (!sound) no('bad-server-name')
  if (/^(\d+|0x[0-9a-f]*)$/i.test(labels[labels.length - 1]!)) no('ip-literal')
  if (labels.some((label) => label.length > 63)) no('bad-server-name')
  return name.toLowerCase()
}

function latin1(bytes: number[]): string {
  return bytes.map((byte) => String.fromCharCode(byte)).join('')
}
