/**
 * WireGuard datagrams over UDP: the runtime's own socket everywhere, and on Linux, where it can be,
 * trains of them in one call (udp_offload.ts), from and to the memory that they are in.
 */
import { listenError } from './tcp.ts'
import { UdpOffload } from './udp_offload.ts'
import {
  decodeEndpoint,
  ENDPOINT_BYTES,
  formatIp,
  parseIp,
  writeEndpoint,
} from '../wireguard-wasm/address.ts'
import { Batch, RUN_WORDS } from '../wireguard-wasm/batch.ts'
import type { Path } from '../wireguard-wasm/driver.ts'

const DATAGRAM_BYTES_MAX = 65_507
/** Datagrams that came and were not yet handed on, where nobody lends memory. */
const INBOX_BYTES = 4 * 2 ** 20
/** What the system had no room for; more is dropped. */
const WAITING_BYTES = 4 * 2 ** 20
const RETRY_MS = 1
/** Addresses whose text or record is kept. */
const ADDRESSES_MAX = 1024
/** Of them, those that one look goes through: whoever is answered may choose them. */
const ROW_MAX = 16
/** Datagrams for one call of the runtime. */
const SEND_MANY = 512
/** Type of a data message. */
const DATA = 4
const MESSAGE_BYTES = { 1: 148, 2: 92, 3: 64 } as Record<number, number>

export interface UdpPathOptions {
  /** `::` takes both families and is the default. */
  host?: string
  port?: number
  /** False: the runtime's socket alone. */
  offload?: boolean
}

export class UdpPath implements Path {
  readonly mtu: number = DATAGRAM_BYTES_MAX
  onReceive: Path['onReceive']
  onDrain: Path['onDrain']
  inbox: Path['inbox']
  /** Datagrams that the system had no room for. */
  dropped = 0
  readonly #socket: Bun.udp.Socket<'uint8array'>
  readonly #offload: UdpOffload | undefined
  readonly #own = Batch.make(INBOX_BYTES)
  readonly #waiting = Batch.make(WAITING_BYTES)
  readonly #isV6: boolean
  #records = new Map<string, Uint8Array>()
  #texts = new Map<number, { text: string; record: Uint8Array }[]>()
  #textsKept = 0
  #list: (Uint8Array | number | string)[] = []
  #trainBytes = 0
  #isScheduled = false
  #isRetrying = false
  #isClosed = false

  private constructor(
    socket: Bun.udp.Socket<'uint8array'>,
    offload: UdpOffload | undefined,
    isV6: boolean,
  ) {
    this.#socket = socket
    this.#offload = offload
    this.#isV6 = isV6
  }

  /** Throws `net/in-use`, `net/denied`, `net/failed`. */
  static async open(
    { host = '::', port = 0, offload = true }: UdpPathOptions = {},
  ): Promise<UdpPath> {
    let path: UdpPath | undefined
    const opening = async () =>
      await Bun.udpSocket({
        hostname: host,
        port,
        binaryType: 'uint8array',
        socket: {
          data(_, bytes, fromPort, address) {
            path?.take(bytes, address, fromPort)
          },
          drain() {
            path?.retry()
          },
          // An ICMP message about one far end says nothing of the others.
          error() {},
        },
      })
    const socket = await opening().catch((error) => {
      throw listenError({ host, port }, error)
    })
    const isV6 = host.includes(':')
    // The descriptor is there, though not in the runtime's types.
    const { fd } = socket as unknown as { fd?: number }
    const fast = offload && fd !== undefined ? await UdpOffload.open(fd, isV6) : undefined
    return path = new UdpPath(socket, fast, isV6)
  }

  get port(): number {
    return this.#socket.port
  }

  /** What the system does for many datagrams at once. */
  get offload(): { segments: boolean; coalesces: boolean; receiveBufferBytes: number } | undefined {
    if (!this.#offload) return undefined
    const { segments, coalesces, receiveBufferBytes } = this.#offload
    return { segments, coalesces, receiveBufferBytes }
  }

  /** Of far ends, as text and as records. */
  get addressesKept(): number {
    return this.#records.size + this.#textsKept
  }

  send(batch: Batch, from = 0, to: number = batch.count): boolean {
    if (this.#isClosed) return true
    if (this.#waiting.count === 0) {
      const sent = this.#put(batch, from, to)
      if (sent === to) return true
      return this.#keep(batch, sent, to)
    }
    return this.#keep(batch, from, to)
  }

  close(): void {
    if (this.#isClosed) return
    this.#isClosed = true
    this.#socket.close()
  }

  /** Of the socket: one datagram, or a train of them. */
  take(bytes: Uint8Array, address: string, port: number): void {
    if (this.#isClosed) return
    const record = this.#recordOf(address, port)
    const size = this.#offload?.coalesces ? this.#sizeOf(bytes) : bytes.length
    let batch = this.inbox?.() ?? this.#own
    if (!batch.fits(bytes.length)) {
      this.#deliver()
      batch = this.inbox?.() ?? this.#own
    }
    batch.push(bytes, record, size)
    if (this.#isScheduled) return
    this.#isScheduled = true
    // One turn for all that the loop brings.
    setImmediate(() => this.#turn())
  }

  /** Of the socket: it takes more. */
  retry(): void {
    if (this.#isClosed || this.#waiting.count === 0) return
    const batch = this.#waiting
    const sent = this.#put(batch, 0, batch.count)
    if (sent < batch.count) {
      batch.words.copyWithin(0, sent * RUN_WORDS, batch.count * RUN_WORDS)
      batch.endpoints.copyWithin(0, sent * ENDPOINT_BYTES, batch.count * ENDPOINT_BYTES)
      batch.count -= sent
      return this.#retryLater()
    }
    batch.clear()
    this.onDrain?.()
  }

  #turn(): void {
    this.#isScheduled = false
    if (this.#isClosed) return
    this.#deliver()
    if (!this.#offload) return
    const batch = this.inbox?.() ?? this.#own
    this.#offload.receive(batch)
    if (batch.count === 0) return
    this.#deliver()
    // While it goes on the system is asked first, and the runtime's socket finds little.
    this.#isScheduled = true
    setImmediate(() => this.#turn())
  }

  #deliver(): void {
    const batch = this.inbox?.() ?? this.#own
    if (batch.count > 0) this.onReceive?.(batch)
    batch.clear()
  }

  #put(batch: Batch, from: number, to: number): number {
    if (this.#offload) return this.#offload.send(batch, from, to)
    for (let run = from; run < to;) {
      const first = run
      this.#list.length = 0
      for (; run < to && this.#list.length < SEND_MANY * 3; run++) this.#gather(batch, run)
      const count = this.#list.length / 3
      try {
        const sent = this.#socket.sendMany(this.#list as never)
        // What was half sent is lost in its other half: it would come twice otherwise.
        if (sent < count) return sent === 0 ? first : Math.min(to, run)
      } catch {
        // No route to one of them: as lost as on the way.
        this.dropped += count
      }
    }
    return to
  }

  #gather(batch: Batch, run: number): void {
    const word = run * RUN_WORDS
    const at = batch.words[word]!
    const end = at + batch.words[word + 1]!
    const size = batch.words[word + 3]!
    const { text, record } = this.#textOf(batch.endpoints, run * ENDPOINT_BYTES)
    const port = record[24]! + record[25]! * 256
    for (let from = at; from < end; from += size) {
      this.#list.push(batch.bytes.subarray(from, Math.min(from + size, end)), port, text)
    }
  }

  /** False: full. */
  #keep(batch: Batch, from: number, to: number): boolean {
    for (let run = from; run < to; run++) {
      const word = run * RUN_WORDS
      const at = batch.words[word]!
      const train = batch.bytes.subarray(at, at + batch.words[word + 1]!)
      const place = run * ENDPOINT_BYTES
      const record = batch.endpoints.subarray(place, place + ENDPOINT_BYTES)
      const size = batch.words[word + 3]!
      if (!this.#waiting.push(train, record, size)) this.dropped += Math.ceil(train.length / size)
    }
    this.#retryLater()
    return false
  }

  #retryLater(): void {
    if (this.#isRetrying) return
    this.#isRetrying = true
    setTimeout(() => {
      this.#isRetrying = false
      this.retry()
    }, RETRY_MS)
  }

  /**
   * The datagrams of a train that the system has joined are of one size, which the runtime does not
   * tell: each begins with the same type and receiver. A wrong guess loses the train, and no more.
   */
  #sizeOf(bytes: Uint8Array): number {
    const { length } = bytes
    const fixed = MESSAGE_BYTES[bytes[0]!]
    if (fixed !== undefined) return length % fixed === 0 ? fixed : length
    if (length > 64 && isTrain(bytes, this.#trainBytes)) return this.#trainBytes
    // Any length: padding to 16 ends at the sender's MTU.
    for (let size = bytes.indexOf(DATA, 32); size > 0; size = bytes.indexOf(DATA, size + 1)) {
      if (size > length - 32) break
      if (isTrain(bytes, size)) return this.#trainBytes = size
    }
    return length
  }

  #recordOf(address: string, port: number): Uint8Array {
    const key = `${address} ${port}`
    let record = this.#records.get(key)
    if (!record) {
      if (this.#records.size >= ADDRESSES_MAX) this.#records.clear()
      const [text = '', scope = '0'] = address.split('%')
      record = new Uint8Array(ENDPOINT_BYTES)
      const ip = parseIp(text.startsWith('::ffff:') && text.includes('.') ? text.slice(7) : text)
      writeEndpoint(record, { at: 0, ip, port, scope: Number(scope) || 0 })
      this.#records.set(key, record)
    }
    return record
  }

  /** The address of a record as text, found by its last bytes. */
  #textOf(records: Uint8Array, at: number): { text: string; record: Uint8Array } {
    const key = (records[at + 11]! << 16 | records[at + 24]! << 8 | records[at + 25]!) >>> 0
    let row = this.#texts.get(key) ?? []
    const known = row.find(({ record }) => record.every((byte, i) => byte === records[at + i]))
    if (known) return known
    if (this.#textsKept >= ADDRESSES_MAX || row.length > ROW_MAX) {
      this.#texts.clear()
      this.#textsKept = 0
      row = []
    }
    this.#textsKept++
    const record = records.slice(at, at + ENDPOINT_BYTES)
    const endpoint = decodeEndpoint(record)
    const host = endpoint?.host ?? formatIp(new Uint8Array(16))
    const scope = endpoint?.scope ? `%${endpoint.scope}` : ''
    const made = {
      text: this.#isV6 && !host.includes(':') ? `::ffff:${host}` : `${host}${scope}`,
      record,
    }
    this.#texts.set(key, [...row, made])
    return made
  }
}

function isTrain(bytes: Uint8Array, size: number): boolean {
  if (size < 32 || size >= bytes.length) return false
  for (let i = 0; i < 8; i++) if (bytes[size + i] !== bytes[i]) return false
  for (let at = size; at + 4 <= bytes.length; at += size) {
    if (bytes[at] !== DATA || bytes[at + 1] !== bytes[1] || bytes[at + 2] !== bytes[2]) return false
  }
  return true
}
