/**
 * One stream of a link: ordered bytes both ways under credit, or the datagrams of one UDP visitor.
 * It is a `Conn`, so `splice` joins it to a socket. `core/mux.ts` makes streams, hands them the
 * frames that come in, and says when they may send. docs/protocol.md, "Streams".
 *
 *   opener    open ──▶ (first credit = accepted) ──▶ data, credit ... fin ──▶ closed
 *   acceptor  onOpen ──▶ accept() or reset()     ──▶ data, credit ... fin ──▶ closed
 *
 * Sending: a chunk is copied once, into its frame; small ones that have to wait are gathered, which
 * is one copy more. Receiving: chunks are views into the messages that came. After a reset
 * everything held is let go at once; `closed` follows on the next turn.
 */
import type { Clock, Timer } from './clock.ts'
import { type ErrorCode, TunnelError } from './errors.ts'
import {
  carriesPackets,
  encodeCredit,
  encodeFrame,
  encodePacketRun,
  encodePackets,
  encodeReset,
  FRAME,
  FRAME_HEADER_BYTES,
  FRAME_PAYLOAD_BYTES_MAX,
  readdress,
  REASON_BYTES_MAX,
  RESET,
  resetName,
  type Visit,
  WINDOW_INITIAL_BYTES,
} from './frame.ts'
import { ByteQueue, PACKET_BYTES_MAX, PACKET_HEADER_BYTES, PacketQueue } from './queue.ts'
import type { Conn, ConnHandler, Sent } from './socket.ts'
import { Allowance, ReceiveWindow } from './window.ts'

/** `write` answers 'queued' above the first; `drain` comes at or below the second. */
export const QUEUE_HIGH_BYTES = 131_072
export const QUEUE_LOW_BYTES = 32_768
/** A write that would pass this answers 'lost', and the stream is reset with `overload`. */
export const QUEUE_BYTES_MAX = 8_388_608
/** A UDP flow without a packet for so long is reset with `timeout`. */
export const PACKET_IDLE_MS = 60_000
/** Assumed where nothing was measured, or where the other half of the way cannot be. */
export const ROUND_TRIP_ASSUMED_MS = 200
/** The answer to an open waits for the upstream too: it counts for so many round trips at most. */
const ANSWER_ROUND_TRIPS_MAX = 4

/** Why a stream ended early; `code` is `stream/NAME` of the table of resets. */
export class StreamReset extends TunnelError {
  /** The number in the reset frame. */
  readonly reset: number
  /** What the end that reset it gave as explanation; may be empty. */
  readonly reason: string
  /** True when the peer did it. */
  readonly remote: boolean

  constructor(id: number, reset: number, options: { reason: string; remote: boolean }) {
    const name = resetName(reset) ?? 'unknown'
    const who = options.remote ? 'by the peer' : 'by this end'
    const why = options.reason === '' ? '' : `: ${options.reason}`
    const code: ErrorCode = `stream/${name}`
    super(code, `Cannot go on with stream ${id}: found it reset ${who}, ${name} (${reset})${why}`)
    this.reset = reset
    this.reason = options.reason
    this.remote = options.remote
  }
}

/** What a stream needs of the mux that carries it. */
export interface StreamPort {
  readonly clock: Clock
  /** Most payload of one frame. */
  readonly payloadBytesMax: number
  /** Sends one frame past the queues: never more than a few for each that came in. */
  control(frame: Uint8Array): void
  /** Sends one frame on the stream's turn, or when `clear`. */
  data(frame: Uint8Array): void
  /** The same for the payload of one `data` frame. */
  payload(id: number, bytes: Uint8Array): void
  /** Nothing else waits and the link takes more. */
  clear(): boolean
  /** The stream has something that may go: it gets its turns. */
  activate(stream: Stream): void
  /** Room among all windows for one to grow; what was granted is given back by `remove`. */
  grow(bytes: number): boolean
  remove(stream: Stream, grownBytes: number): void
  /** The link's round trip; undefined before the first measure. */
  roundTripMs(): number | undefined
  /** How long an opener took to see its stream accepted. */
  answeredIn(ms: number): void
}

export interface StreamOptions {
  visit: Visit
  /** True when this end opened it. */
  opener: boolean
  windowMaxBytes: number
  openTimeoutMs: number
}

export class Stream implements Conn {
  readonly id: number
  readonly visit: Visit
  /** True when this end opened it. */
  readonly opener: boolean
  /** Opener: runs when the first credit comes, once. */
  onAccept?: () => void
  /** Kind `udp`: one datagram, a view. Datagrams that come while it is unset or paused are dropped. */
  onPacket?: (datagram: Uint8Array) => void

  readonly #port: StreamPort
  readonly #window: ReceiveWindow
  readonly #allowance: Allowance
  readonly #outbox = new ByteQueue()
  readonly #inbox = new ByteQueue()
  readonly #packets = new PacketQueue()
  readonly #bornMs: number
  #answerMs: number | undefined
  #packetMs = 0
  #timer: Timer | undefined
  #handler: ConnHandler | undefined
  #answered = false
  #started = false
  #paused = false
  #delivering = false
  #drainOwed = false
  /** `end` was called; `fin` goes out when the queue is empty. */
  #ending = false
  #finSent = false
  #finReceived = false
  #endDelivered = false
  #closed = false
  #error: StreamReset | undefined
  #sentBytes = 0
  #receivedBytes = 0
  #packetsIgnored = 0

  constructor(id: number, port: StreamPort, options: StreamOptions) {
    const { visit, opener } = options
    this.id = id
    this.visit = visit
    this.opener = opener
    this.#port = port
    this.#bornMs = port.clock.monotonic()
    this.#packetMs = this.#bornMs
    this.#allowance = new Allowance(opener ? WINDOW_INITIAL_BYTES : visit.windowBytes)
    const granted = opener ? visit.windowBytes : WINDOW_INITIAL_BYTES
    this.#window = new ReceiveWindow(granted, options.windowMaxBytes, { nowMs: this.#bornMs })
    // An opener waits for credit; an acceptor's owner that never answers must not hold the stream.
    this.#timer = port.clock.after(
      options.openTimeoutMs,
      () => opener ? this.reset(RESET.timeout) : this.reset(RESET.refused, 'not answered in time'),
    )
  }

  get remoteAddress(): string {
    return this.visit.address
  }

  get remotePort(): number {
    return this.visit.port
  }

  /** Opener: the first credit has come. Acceptor: it has been sent. */
  get answered(): boolean {
    return this.#answered
  }

  get isClosed(): boolean {
    return this.#closed
  }

  /** Payload bytes of `data` that went out and came in. */
  get sentBytes(): number {
    return this.#sentBytes
  }

  get receivedBytes(): number {
    return this.#receivedBytes
  }

  /** What the peer may have in flight and waiting here together. */
  get windowBytes(): number {
    return this.#window.sizeBytes
  }

  /** Received and not yet delivered; never above `windowBytes`. */
  get heldBytes(): number {
    return this.#inbox.bytes
  }

  /** What the peer lets this end send now. */
  get creditBytes(): number {
    return this.#allowance.bytes
  }

  /** Datagrams that were dropped here, either way. */
  get packetsDropped(): number {
    return this.#packets.dropped + this.#packetsIgnored
  }

  buffered(): number {
    return this.#outbox.bytes + this.#packets.bytes
  }

  /** Acceptor: takes the stream. Writing, ending or sending a packet does it too. */
  accept(): void {
    if (this.opener || this.#answered || this.#closed) return
    this.#answered = true
    this.#timer?.cancel()
    this.#watchPackets()
    this.#port.control(encodeFrame('credit', this.id, encodeCredit(this.#window.refund(true))))
  }

  write(bytes: Uint8Array): Sent {
    if (this.#closed || this.#ending || carriesPackets(this.visit.kind)) return 'lost'
    this.accept()
    const waiting = this.#outbox.bytes
    if (bytes.length === 0) return waiting > QUEUE_HIGH_BYTES ? 'queued' : 'ok'
    if (
      waiting === 0 && bytes.length <= this.#port.payloadBytesMax && this.#port.clear() &&
      this.#allowance.spend(bytes.length)
    ) {
      this.#sentBytes += bytes.length
      this.#port.payload(this.id, bytes)
      return this.#closed ? 'lost' : 'ok'
    }
    if (waiting + bytes.length > QUEUE_BYTES_MAX) {
      this.reset(RESET.overload, 'too much was written without waiting')
      return 'lost'
    }
    this.#outbox.push(bytes)
    if (this.ready) this.#port.activate(this)
    if (this.#closed) return 'lost'
    if (this.#outbox.bytes <= QUEUE_HIGH_BYTES) return 'ok'
    this.#drainOwed = true
    return 'queued'
  }

  /**
   * Kind `udp`. 'lost' when this datagram was dropped; older ones are dropped to make room, so
   * there is no `drain` to wait for.
   */
  sendPacket(datagram: Uint8Array): Sent {
    if (this.#closed || this.#ending || !carriesPackets(this.visit.kind)) return 'lost'
    this.accept()
    if (!this.#packets.push(datagram)) return 'lost'
    this.#packetMs = this.#port.clock.monotonic()
    this.#port.activate(this)
    if (this.#closed) return 'lost'
    return this.#packets.length > 0 ? 'queued' : 'ok'
  }

  /**
   * As `sendPacket`, of datagrams that lie side by side, each of `size` bytes but the last, which may be shorter:
   * they share frames. The array holds during the call alone.
   */
  sendPackets(bytes: Uint8Array, size: number): Sent {
    if (this.#closed || this.#ending || !carriesPackets(this.visit.kind)) return 'lost'
    if (size < 1 || size > PACKET_BYTES_MAX) return 'lost'
    this.accept()
    this.#packetMs = this.#port.clock.monotonic()
    const each = PACKET_HEADER_BYTES + size
    const runBytes = Math.floor(this.#port.payloadBytesMax / each) * size
    let at = 0
    while (runBytes > 0 && at < bytes.length && this.#packets.length === 0 && this.#port.clear()) {
      const run = bytes.subarray(at, at + runBytes)
      at += run.length
      this.#port.data(encodePacketRun(this.id, run, size))
      if (this.#closed) return 'lost'
    }
    if (at === bytes.length) return 'ok'
    const rest = bytes.slice(at)
    for (let from = 0; from < rest.length; from += size) {
      this.#packets.push(rest.subarray(from, from + size))
    }
    this.#port.activate(this)
    if (this.#closed) return 'lost'
    return this.#packets.length > 0 ? 'queued' : 'ok'
  }

  end(): void {
    if (this.#closed || this.#ending) return
    this.accept()
    this.#ending = true
    this.#finish()
  }

  abort(): void {
    this.reset(RESET.aborted)
  }

  /** Ends both directions at once; `code` is one of RESET, `reason` is for people and is cut to fit. */
  reset(code: number, reason = ''): void {
    if (this.#closed) return
    if (!(this.#finSent && this.#finReceived)) {
      const payload = encodeReset(code, reason.slice(0, REASON_BYTES_MAX))
      this.#port.control(encodeFrame('reset', this.id, payload))
    }
    this.drop(code, { reason, remote: false })
  }

  pause(): void {
    this.#paused = true
  }

  resume(): void {
    if (!this.#paused) return
    this.#paused = false
    if (this.#inbox.bytes > 0 || this.#finReceived) queueMicrotask(() => this.#deliver())
  }

  /** Until the next `handle()` what comes waits, within the window. */
  hold(): void {
    this.#handler = undefined
    this.#started = false
  }

  /** Events go to `handler` from the next turn on; a second call hands the stream over. */
  handle(handler: ConnHandler): void {
    this.#handler = handler
    this.#started = false
    queueMicrotask(() => {
      if (this.#handler !== handler) return
      this.#started = true
      if (this.#closed) return this.#notify()
      this.#deliver()
      this.#drained()
    })
  }

  // What follows is called by the mux alone.

  /** Something waits that may be sent now. */
  get ready(): boolean {
    if (this.#closed) return false
    return this.#packets.length > 0 || (this.#outbox.bytes > 0 && this.#allowance.bytes > 0)
  }

  /** Sends one frame of at most `limitBytes` of payload; gives what it sent, 0 when nothing fits. */
  turn(limitBytes: number): number {
    if (this.#packets.length > 0) {
      const { datagrams, bytes } = this.#packets.take(
        Math.min(limitBytes, this.#port.payloadBytesMax),
      )
      if (bytes > 0) this.#port.data(encodeFrame('packet', this.id, encodePackets(datagrams)))
      return bytes
    }
    const length = Math.min(
      limitBytes,
      FRAME_PAYLOAD_BYTES_MAX,
      this.#outbox.bytes,
      this.#allowance.bytes,
    )
    if (length === 0) return 0
    const frame = new Uint8Array(FRAME_HEADER_BYTES + length)
    frame[0] = FRAME.data
    this.#outbox.take(length, readdress(frame, this.id), FRAME_HEADER_BYTES)
    this.#allowance.spend(length)
    this.#sentBytes += length
    this.#port.data(frame)
    return length
  }

  /** After a turn: what waited for the queue to empty. */
  settle(): void {
    this.#finish()
    this.#drained()
  }

  receiveData(payload: Uint8Array): void {
    if (this.#closed) return
    if (!this.#mayReceive() || carriesPackets(this.visit.kind)) return this.reset(RESET.protocol)
    if (!this.#window.receive(payload.length)) return this.reset(RESET.overdrawn)
    this.#receivedBytes += payload.length
    if (!this.#flowing || this.#delivering || this.#inbox.bytes > 0) {
      this.#inbox.push(payload)
      return this.#deliver()
    }
    this.#delivering = true
    this.#hand(payload)
    this.#delivering = false
    this.#deliver()
  }

  receiveCredit(bytes: number): void {
    if (this.#closed) return
    if (!this.#allowance.grant(bytes)) return this.reset(RESET.protocol, 'too much credit')
    if (this.opener && !this.#answered) {
      this.#answered = true
      this.#timer?.cancel()
      this.#watchPackets()
      this.#answerMs = this.#port.clock.monotonic() - this.#bornMs
      this.#port.answeredIn(this.#answerMs)
      this.onAccept?.()
    }
    if (this.ready) this.#port.activate(this)
  }

  receiveFin(): void {
    if (this.#closed) return
    if (!this.#mayReceive()) return this.reset(RESET.protocol)
    this.#finReceived = true
    this.#deliver()
  }

  receivePackets(datagrams: Uint8Array[]): void {
    if (this.#closed) return
    if (!this.#mayReceive() || !carriesPackets(this.visit.kind)) return this.reset(RESET.protocol)
    this.#packetMs = this.#port.clock.monotonic()
    for (const datagram of datagrams) {
      if (this.onPacket && !this.#paused && !this.#closed) this.onPacket(datagram)
      else this.#packetsIgnored++
    }
  }

  /** Ends the stream without a frame: the peer reset it, or the link is gone. */
  drop(code: number, options: { reason: string; remote: boolean }): void {
    this.#close(new StreamReset(this.id, code, options))
  }

  /** Nothing may follow `fin`, and an acceptor accepts before anything else. */
  #mayReceive(): boolean {
    return !this.#finReceived && (this.#answered || !this.opener)
  }

  get #flowing(): boolean {
    return this.#started && !this.#paused && !this.#closed
  }

  #deliver(): void {
    if (this.#delivering || !this.#flowing) return
    this.#delivering = true
    while (this.#flowing) {
      const chunk = this.#inbox.shift()
      if (chunk === undefined) break
      this.#hand(chunk)
    }
    this.#delivering = false
    if (!this.#flowing || this.#inbox.bytes > 0) return
    if (!this.#finReceived || this.#endDelivered) return
    this.#endDelivered = true
    this.#handler!.end()
    this.#complete()
  }

  /** Delivers one chunk and returns the credit for it when that is worth a frame. */
  #hand(chunk: Uint8Array): void {
    this.#handler!.data(chunk)
    // After `fin` credit is of no use; after a close there is nobody to give it to.
    const full = this.#window.consume(chunk.length)
    if (this.#closed || this.#finReceived) return
    if (full) {
      const more = this.#window.measure(this.#port.clock.monotonic(), this.#roundTripMs())
      if (more > 0 && this.#port.grow(more)) this.#window.grow(more)
    }
    if (!this.#answered) return
    const credit = this.#window.refund(false)
    if (credit > 0) {
      this.#port.control(encodeFrame('credit', this.id, encodeCredit(credit)))
    }
  }

  /** The way from end to end as well as this end can tell; a window that fits it never stalls. */
  #roundTripMs(): number {
    const linkMs = this.#port.roundTripMs()
    if (this.opener && this.#answerMs !== undefined) {
      if (linkMs === undefined) return this.#answerMs
      const most = Math.max(ANSWER_ROUND_TRIPS_MAX * linkMs, ROUND_TRIP_ASSUMED_MS)
      return Math.min(Math.max(this.#answerMs, linkMs), most)
    }
    if (linkMs === undefined) return ROUND_TRIP_ASSUMED_MS
    // It crosses a second link, to the other agent, that cannot be measured from here.
    return this.visit.kind === 'connect' ? Math.max(2 * linkMs, ROUND_TRIP_ASSUMED_MS) : linkMs
  }

  #finish(): void {
    if (!this.#ending || this.#finSent || this.#closed) return
    if (this.buffered() > 0) return
    this.#finSent = true
    this.#port.control(encodeFrame('fin', this.id))
    this.#complete()
  }

  #drained(): void {
    if (!this.#drainOwed || !this.#started || this.#closed) return
    if (this.#outbox.bytes > QUEUE_LOW_BYTES) return
    this.#drainOwed = false
    this.#handler!.drain?.()
  }

  #complete(): void {
    if (this.#finSent && this.#endDelivered) this.#close(undefined)
  }

  /** A UDP flow has no end of its own: silence is its end. */
  #watchPackets(): void {
    if (!carriesPackets(this.visit.kind)) return
    const idleMs = this.#port.clock.monotonic() - this.#packetMs
    if (idleMs >= PACKET_IDLE_MS) return this.reset(RESET.timeout)
    this.#timer = this.#port.clock.after(PACKET_IDLE_MS - idleMs, () => this.#watchPackets())
  }

  #close(error: StreamReset | undefined): void {
    if (this.#closed) return
    this.#closed = true
    this.#error = error
    this.#timer?.cancel()
    this.#timer = undefined
    this.#outbox.clear()
    this.#inbox.clear()
    this.#packets.clear()
    this.#port.remove(this, this.#window.sizeBytes - this.#window.initialBytes)
    // Always on a turn of its own: the caller may be in the middle of an event of this stream.
    if (this.#handler) queueMicrotask(() => this.#notify())
  }

  #notify(): void {
    if (!this.#started) return
    const handler = this.#handler
    this.#handler = undefined
    handler?.closed(this.#error)
  }
}
