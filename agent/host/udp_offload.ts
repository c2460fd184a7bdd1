/**
 * Many datagrams in one call of Linux, straight from and to the memory that they are in: a train of
 * equal ones is sent as one buffer (UDP_SEGMENT) and received as one (UDP_GRO). Whatever the kernel or a
 * network card cannot do is found by trying, and not tried again. udp(7), linux/udp.h.
 */
import { openLibc } from './libc.ts'
import { ENDPOINT_BYTES } from '../wireguard-wasm/address.ts'
import { Batch, RUN_WORDS } from '../wireguard-wasm/batch.ts'

const SOL_SOCKET = 1
const SO_SNDBUF = 7
const SO_RCVBUF = 8
const SO_SNDBUFFORCE = 32
const SO_RCVBUFFORCE = 33
const SOL_UDP = 17
const UDP_SEGMENT = 103
const UDP_GRO = 104
const MSG_DONTWAIT = 0x40
const AF_INET = 2
const AF_INET6 = 10
const EIO = 5
const EAGAIN = 11
const ENOPROTOOPT = 92
const EOPNOTSUPP = 95

/** The default of 212,992 bytes overflows in a millisecond. */
const BUFFER_BYTES = 8 * 2 ** 20
/** Messages of one call. */
const CALL_MESSAGES = 64
const RECEIVE_MESSAGES = 16
const DATAGRAM_BYTES_MAX = 65_536
/** struct mmsghdr, iovec, sockaddr_in6 and room for a control message, on 64-bit machines. */
const HEADER_BYTES = 64
const VECTOR_BYTES = 16
const NAME_BYTES = 28
const CONTROL_BYTES = 32

type Libc = Awaited<ReturnType<typeof openLibc>>

/** Arrays of what the calls take, made once. */
class Table {
  readonly headers: DataView
  readonly vectors: DataView
  readonly names: Uint8Array
  readonly namesView: DataView
  readonly control: DataView
  readonly address: number
  readonly #libc: Libc

  constructor(libc: Libc, messages: number) {
    this.#libc = libc
    const view = (bytes: number): DataView => new DataView(new ArrayBuffer(messages * bytes))
    this.headers = view(HEADER_BYTES)
    this.vectors = view(VECTOR_BYTES)
    this.namesView = view(NAME_BYTES)
    this.names = new Uint8Array(this.namesView.buffer)
    this.control = view(CONTROL_BYTES)
    this.address = this.#at(this.headers)
    const [vectors, names, control] = [
      this.#at(this.vectors),
      this.#at(this.namesView),
      this.#at(this.control),
    ]
    for (let i = 0; i < messages; i++) {
      const header = i * HEADER_BYTES
      writeAddress(this.headers, header, names + i * NAME_BYTES)
      writeAddress(this.headers, header + 16, vectors + i * VECTOR_BYTES)
      this.headers.setUint32(header + 24, 1, true)
      writeAddress(this.headers, header + 32, control + i * CONTROL_BYTES)
    }
  }

  #at(view: DataView): number {
    return Number(this.#libc.ptr(view))
  }
}

export class UdpOffload {
  /** What works here; a refusal of the system turns one off for good. */
  segments: boolean
  readonly coalesces: boolean
  readonly #libc: Libc
  readonly #fd: number
  readonly #isV6: boolean
  readonly #out: Table
  readonly #in: Table
  #base = 0
  #buffer: ArrayBufferLike | undefined

  private constructor(libc: Libc, fd: number, isV6: boolean) {
    this.#libc = libc
    this.#fd = fd
    this.#isV6 = isV6
    this.#out = new Table(libc, CALL_MESSAGES)
    this.#in = new Table(libc, RECEIVE_MESSAGES)
    for (
      const [forced, plain] of [[SO_RCVBUFFORCE, SO_RCVBUF], [SO_SNDBUFFORCE, SO_SNDBUF]] as const
    ) {
      // Beyond the system's limit with the right to do so, up to it without.
      if (!this.#set(SOL_SOCKET, forced, BUFFER_BYTES)) this.#set(SOL_SOCKET, plain, BUFFER_BYTES)
    }
    // A size of 0 is no segmentation: the option is there.
    this.segments = this.#set(SOL_UDP, UDP_SEGMENT, 0)
    this.coalesces = this.#set(SOL_UDP, UDP_GRO, 1)
  }

  /** Undefined where there is no Linux on a 64-bit machine, or no C library. */
  static async open(fd: number, isV6: boolean): Promise<UdpOffload | undefined> {
    if (process.platform !== 'linux' || !['x64', 'arm64'].includes(process.arch)) return undefined
    try {
      return new UdpOffload(await openLibc(), fd, isV6)
    } catch {
      return undefined
    }
  }

  /** Bytes that the system keeps for us until we read. */
  get receiveBufferBytes(): number {
    const value = new Int32Array(1)
    const length = new Uint32Array([4])
    const { libc, ptr } = this.#libc
    libc.getsockopt(this.#fd, SOL_SOCKET, SO_RCVBUF, ptr(value), ptr(length))
    return value[0]!
  }

  /**
   * Sends runs; the first that was not sent, since the system has no room: `to` when all were sent. What
   * cannot be sent at all is lost, as datagrams may be.
   */
  send(batch: Batch, from: number, to: number): number {
    const base = this.#addressOf(batch.bytes)
    let first = from
    while (first < to) {
      const count = Math.min(CALL_MESSAGES, to - first)
      let isSegmented = false
      for (let i = 0; i < count; i++) {
        const train = this.#lay(batch, { run: first + i, place: i, base })
        if (train && !this.segments) {
          // Sent before it, the others of this call.
          if (i > 0) {
            const sent = this.#call(i)
            if (sent < i) return sent < 0 ? first : first + sent
            first += i
          }
          if (!this.#sendSingly(batch, first, base)) return first
          first++
          isSegmented = true
          break
        }
      }
      if (isSegmented) continue
      const sent = this.#call(count)
      if (sent > 0) first += sent
      else if (sent === 0 || this.#isBusy()) return first
      else if (this.#refused(batch, first)) continue
      else if (this.#isTrain(batch, first) && !this.#sendSingly(batch, first, base)) return first
      else first++
    }
    return to
  }

  /** Reads what there is, and fits, behind the runs of a batch. */
  receive(batch: Batch): void {
    const { headers, vectors, address } = this.#in
    const base = this.#addressOf(batch.bytes)
    const { end } = batch
    const room = Math.floor((batch.bytes.length - end) / DATAGRAM_BYTES_MAX)
    const runs = batch.words.length / RUN_WORDS - batch.count
    const count = Math.min(RECEIVE_MESSAGES, room, runs)
    if (count <= 0) return
    for (let i = 0; i < count; i++) {
      const header = i * HEADER_BYTES
      headers.setUint32(header + 8, NAME_BYTES, true)
      headers.setUint32(header + 40, CONTROL_BYTES, true)
      headers.setUint32(header + 48, 0, true)
      writeAddress(vectors, i * VECTOR_BYTES, base + end + i * DATAGRAM_BYTES_MAX)
      vectors.setUint32(i * VECTOR_BYTES + 8, DATAGRAM_BYTES_MAX, true)
    }
    const { libc } = this.#libc
    const got = libc.recvmmsg(this.#fd, address as never, count, MSG_DONTWAIT, null)
    for (let i = 0; i < got; i++) {
      const length = headers.getUint32(i * HEADER_BYTES + 56, true)
      if (length === 0) continue
      if (!readName(this.#in, i, batch.endpoints, batch.count * ENDPOINT_BYTES)) continue
      batch.describe(end + i * DATAGRAM_BYTES_MAX, length, this.#sizeOf(i) || length)
    }
  }

  /** Of the datagrams of a train that came, 0 for one alone. */
  #sizeOf(place: number): number {
    const { headers, control } = this.#in
    const length = headers.getUint32(place * HEADER_BYTES + 40, true)
    const at = place * CONTROL_BYTES
    if (length < 20 || control.getInt32(at + 8, true) !== SOL_UDP) return 0
    return control.getInt32(at + 12, true) === UDP_GRO ? control.getInt32(at + 16, true) : 0
  }

  /** True when it is a train. */
  #lay(batch: Batch, { run, place, base }: { run: number; place: number; base: number }): boolean {
    const { headers, vectors, control } = this.#out
    const word = run * RUN_WORDS
    const at = batch.words[word]!
    const length = batch.words[word + 1]!
    const size = batch.words[word + 3]!
    const header = place * HEADER_BYTES
    writeAddress(vectors, place * VECTOR_BYTES, base + at)
    vectors.setUint32(place * VECTOR_BYTES + 8, length, true)
    const name = writeName(this.#out, place, {
      records: batch.endpoints,
      from: run * ENDPOINT_BYTES,
      isV6: this.#isV6,
    })
    headers.setUint32(header + 8, name, true)
    const isTrain = length > size
    headers.setUint32(header + 40, isTrain ? 24 : 0, true)
    if (isTrain) {
      const message = place * CONTROL_BYTES
      control.setUint32(message, 18, true)
      control.setUint32(message + 4, 0, true)
      control.setInt32(message + 8, SOL_UDP, true)
      control.setInt32(message + 12, UDP_SEGMENT, true)
      control.setUint16(message + 16, size, true)
    }
    return isTrain
  }

  /** A run datagram by datagram; false where the system has no room before the first. */
  #sendSingly(batch: Batch, run: number, base: number): boolean {
    const word = run * RUN_WORDS
    const [at = 0, length = 0, , size = 0] = batch.words.subarray(word, word + RUN_WORDS)
    const { headers, vectors } = this.#out
    for (let done = 0; done < length;) {
      let count = 0
      for (let from = done; from < length && count < CALL_MESSAGES; from += size, count++) {
        this.#lay(batch, { run, place: count, base })
        writeAddress(vectors, count * VECTOR_BYTES, base + at + from)
        vectors.setUint32(count * VECTOR_BYTES + 8, Math.min(size, length - from), true)
        headers.setUint32(count * HEADER_BYTES + 40, 0, true)
      }
      const sent = this.#call(count)
      // In the midst of a train the rest is lost: it would come twice otherwise.
      if (sent <= 0) return done > 0 || !this.#isBusy()
      done += sent * size
    }
    return true
  }

  /** True when segmentation is off from now on, and the run is to be tried again. */
  #refused(batch: Batch, run: number): boolean {
    if (!this.segments || !this.#isTrain(batch, run)) return false
    if (![EIO, ENOPROTOOPT, EOPNOTSUPP].includes(this.#errno())) return false
    this.segments = false
    return true
  }

  #isTrain({ words }: Batch, run: number): boolean {
    return words[run * RUN_WORDS + 1]! > words[run * RUN_WORDS + 3]!
  }

  #call(count: number): number {
    return this.#libc.libc.sendmmsg(this.#fd, this.#out.address as never, count, MSG_DONTWAIT)
  }

  #isBusy(): boolean {
    return this.#errno() === EAGAIN
  }

  #errno(): number {
    const { libc, read } = this.#libc
    return read.i32(libc.__errno_location()!, 0)
  }

  #set(level: number, option: number, value: number): boolean {
    const { libc, ptr } = this.#libc
    return libc.setsockopt(this.#fd, level, option, ptr(new Int32Array([value])), 4) === 0
  }

  /** Memory moves when it grows, and is another buffer then. */
  #addressOf(bytes: Uint8Array): number {
    if (bytes.buffer !== this.#buffer) {
      this.#buffer = bytes.buffer
      this.#base = Number(this.#libc.ptr(bytes)) - bytes.byteOffset
    }
    return this.#base + bytes.byteOffset
  }
}

/** The address of a message from a record; its length. */
function writeName(
  { names, namesView }: Table,
  place: number,
  { records, from, isV6 }: { records: Uint8Array; from: number; isV6: boolean },
): number {
  const at = place * NAME_BYTES
  const isFour = records[from + 26] === 4
  names.fill(0, at, at + NAME_BYTES)
  namesView.setUint16(at, isV6 ? AF_INET6 : AF_INET, true)
  names[at + 2] = records[from + 25]!
  names[at + 3] = records[from + 24]!
  if (!isV6) {
    names.set(records.subarray(from + 8, from + 12), at + 4)
    return 16
  }
  if (isFour) {
    names[at + 18] = names[at + 19] = 255
    names.set(records.subarray(from + 8, from + 12), at + 20)
  } else {
    names.set(records.subarray(from + 8, from + 24), at + 8)
    names.set(records.subarray(from + 4, from + 8), at + 24)
  }
  return NAME_BYTES
}

/** The record of whoever sent a message; false for a family that is not IP. */
function readName(
  { names, namesView }: Table,
  place: number,
  records: Uint8Array,
  to: number,
): boolean {
  const at = place * NAME_BYTES
  const family = namesView.getUint16(at, true)
  if (family !== AF_INET && family !== AF_INET6) return false
  records.fill(0, to, to + ENDPOINT_BYTES)
  records[to + 24] = names[at + 3]!
  records[to + 25] = names[at + 2]!
  const isMapped = family === AF_INET6 && namesView.getUint32(at + 8) === 0 &&
    namesView.getUint32(at + 12) === 0 && namesView.getUint32(at + 16) === 0xffff
  if (family === AF_INET || isMapped) {
    const from = family === AF_INET ? at + 4 : at + 20
    records.set(names.subarray(from, from + 4), to + 8)
    records[to + 26] = 4
  } else {
    records.set(names.subarray(at + 8, at + 24), to + 8)
    records.set(names.subarray(at + 24, at + 28), to + 4)
    records[to + 26] = 6
  }
  return true
}

function writeAddress(view: DataView, at: number, address: number): void {
  view.setUint32(at, address % 2 ** 32, true)
  view.setUint32(at + 4, Math.floor(address / 2 ** 32), true)
}
