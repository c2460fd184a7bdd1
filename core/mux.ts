/**
 * Many streams over one link: ids, limits, and whose turn it is. Used by both ends, on every kind
 * of link; a relay that forwards streams between two links keeps those in its own table and shares
 * the ids through `nextId` and `seen`. Reacts to one frame at a time and awaits nothing.
 *
 * Deficit round robin (Shreedhar and Varghese 1995): where several streams have data, each gets
 * 16 KiB a round; a stream alone sends frames of 64 KiB. Credit, fin, reset and open pass ahead.
 * What a peer makes this end send is bounded: see `CONTROL_BYTES_MAX`. docs/protocol.md, "Streams".
 *
 * Handlers (`onOpen`, those of streams) must not throw.
 */
import type { Clock, Timer } from './clock.ts'
import { asTunnelError, TunnelError } from './errors.ts'
import {
  decodeCredit,
  decodePackets,
  decodeReset,
  decodeVisit,
  encodeFrame,
  encodeReset,
  encodeVisit,
  FRAME,
  type Frame,
  FRAME_PAYLOAD_BYTES_MAX,
  RESET,
  type Visit,
  WINDOW_BYTES_MAX,
  WINDOW_INITIAL_BYTES,
} from './frame.ts'
import type { Sent } from './socket.ts'
import { Stream, type StreamPort } from './stream.ts'

export { Stream, StreamReset } from './stream.ts'

/** What one stream of several may send in a round. */
export const QUANTUM_BYTES = 16_384
/** Data waits in the streams, where it can be ordered, while the socket holds this much. */
export const SOCKET_BYTES_MAX = 524_288
/** Opening on a socket that holds this much is refused: the visitor does better elsewhere. */
export const BACKLOG_BYTES_MAX = 8_388_608
/** Answers (credit, fin, reset) on a socket that takes nothing; beyond it the peer is flooding. */
export const CONTROL_BYTES_MAX = 1_048_576
export const STREAMS_MAX = 1024
export const WINDOW_SUM_BYTES_MAX = 268_435_456
export const OPEN_TIMEOUT_MS = 5000
/** Looks again where a socket is full but owes no drain. */
const RETRY_MS = 5
const ID_MAX = 0xffff_ffff
/** Weight of a new measure of the round trip, as TCP has it (RFC 6298 §2). */
const ROUND_TRIP_WEIGHT = 1 / 8

export interface MuxOptions {
  /** The agent opens odd ids, the relay even ones. */
  side: 'agent' | 'relay'
  /** Sends one frame to the link's socket. */
  send(frame: Uint8Array): Sent
  /** The same for `data`, where the socket can do without a frame of its own. */
  sendData?(id: number, payload: Uint8Array): Sent
  /** Bytes queued in that socket. */
  buffered(): number
  clock: Clock
  /** The most that a stream's receive window grows to; default and ceiling 16 MiB. */
  windowMaxBytes?: number
  /** Sum of all receive windows beyond their initial size; default 256 MiB. */
  windowSumBytesMax?: number
  /** Both directions together; an open beyond is reset with `overload`. Default 1024. */
  streamsMax?: number
  /** Most payload of a `data` or `packet` frame, where less than 65,536 fits what carries it. */
  payloadBytesMax?: number
  /** How long an opened stream may stay unanswered; default 5000. */
  openTimeoutMs?: number
  /** Where an earlier mux of the same link left off: see `ids`. */
  ids?: MuxIds
  /** The peer opened a stream: accept it or reset it, within `openTimeoutMs`; else it is refused. */
  onOpen(stream: Stream): void
  /** Once, after all streams have ended with `gone`: the owner must close the link. */
  onProtocolError(error: TunnelError): void
  /** The last stream closed. */
  onEmpty?(): void
}

/** All that a link which sleeps with no stream open has to remember. */
export interface MuxIds {
  /** The id that this end opens next. */
  next: number
  /** The highest id that the peer opened, 0 for none. */
  peer: number
}

export class Mux {
  readonly #options: MuxOptions
  readonly #clock: Clock
  readonly #port: StreamPort
  readonly #streams = new Map<number, Stream>()
  /** Streams that have something to send, first in turn first, with their deficit in bytes. */
  readonly #ring = new Map<Stream, number>()
  readonly #streamsMax: number
  readonly #windowMaxBytes: number
  readonly #windowSumBytesMax: number
  readonly #openTimeoutMs: number
  readonly #payloadBytesMax: number
  #nextId: number
  #peerId: number
  /** Ids were given away: what is not a stream here may be one in the relay's table. */
  #forwards = false
  #grownBytes = 0
  /** The socket answered 'queued': nothing but control goes before `drain`. */
  #blocked = false
  #controlBytes = 0
  #pumping = false
  #retry: Timer | undefined
  #closed = false
  #roundTripMs: number | undefined
  #answerMinMs: number | undefined
  /** Opens that the peer took back before an answer, leaking away at `streamsMax` a second. */
  #churn = 0
  #churnMs = 0

  constructor(options: MuxOptions) {
    this.#options = options
    this.#clock = options.clock
    this.#streamsMax = options.streamsMax ?? STREAMS_MAX
    this.#windowMaxBytes = Math.min(options.windowMaxBytes ?? WINDOW_BYTES_MAX, WINDOW_BYTES_MAX)
    this.#windowSumBytesMax = options.windowSumBytesMax ?? WINDOW_SUM_BYTES_MAX
    this.#openTimeoutMs = options.openTimeoutMs ?? OPEN_TIMEOUT_MS
    const { payloadBytesMax = FRAME_PAYLOAD_BYTES_MAX } = options
    this.#payloadBytesMax = Math.min(payloadBytesMax, FRAME_PAYLOAD_BYTES_MAX)
    this.#nextId = options.ids?.next ?? (options.side === 'agent' ? 1 : 2)
    this.#peerId = options.ids?.peer ?? 0
    this.#port = {
      clock: options.clock,
      payloadBytesMax: this.#payloadBytesMax,
      control: (frame) => this.#sendControl(frame),
      data: (frame) => void this.#send(frame),
      payload: (id, bytes) => this.#sendData(id, bytes),
      clear: () => this.#ring.size === 0 && !this.#pumping && this.#open(),
      activate: (stream) => this.#activate(stream),
      grow: (bytes) => this.#grow(bytes),
      remove: (stream, grownBytes) => this.#remove(stream, grownBytes),
      roundTripMs: () => this.#roundTripMs ?? this.#answerMinMs,
      answeredIn: (ms) => void (this.#answerMinMs = Math.min(this.#answerMinMs ?? ms, ms)),
    }
  }

  get size(): number {
    return this.#streams.size
  }

  /** How many of them carry that. */
  count(kind: Visit['kind']): number {
    let count = 0
    for (const { visit } of this.#streams.values()) if (visit.kind === kind) count++
    return count
  }

  /** Payload bytes that wait in the streams, to be sent or to be read. */
  get bufferedBytes(): number {
    let bytes = 0
    for (const stream of this.#streams.values()) bytes += stream.buffered() + stream.heldBytes
    return bytes
  }

  /** Where the ids stand; hand it to the next mux of the same link. */
  get ids(): MuxIds {
    return { next: this.#nextId, peer: this.#peerId }
  }

  /**
   * Opens a stream; writing may start at once. Throws `mux/closed`, `mux/limit` (streams, or the
   * socket's backlog), `mux/exhausted` (the link must be replaced), `frame/size`.
   */
  open(visit: Omit<Visit, 'windowBytes'>): Stream {
    if (this.#closed) {
      throw new TunnelError('mux/closed', 'Cannot open a stream: found the link closed')
    }
    if (this.#streams.size >= this.#streamsMax) {
      const found = `${this.#streams.size} streams open, expected fewer than ${this.#streamsMax}`
      throw new TunnelError('mux/limit', `Cannot open a stream: found ${found}`)
    }
    const backlog = this.#options.buffered()
    if (backlog > BACKLOG_BYTES_MAX) {
      const found = `${backlog} bytes waiting, expected at most ${BACKLOG_BYTES_MAX}`
      throw new TunnelError('mux/limit', `Cannot open a stream: found ${found}`)
    }
    const windowBytes = Math.min(WINDOW_INITIAL_BYTES, this.#windowMaxBytes)
    const whole: Visit = { ...visit, windowBytes }
    const payload = encodeVisit(whole)
    const id = this.#takeId()
    const stream = this.#add(id, whole, true)
    this.#send(encodeFrame('open', id, payload))
    return stream
  }

  /**
   * Takes one frame. False when it is not for a stream of this mux: another type, or an id that a
   * relay may have in its table of forwarded streams; what is not there either is dropped. A relay
   * that forwards an `open` does not hand it in: it calls `seen`.
   */
  receive(frame: Frame): boolean {
    if (this.#closed) return true
    const { type, id, payload } = frame
    if (type === FRAME.open) {
      this.#receiveOpen(id, payload)
      return true
    }
    if (
      type !== FRAME.data && type !== FRAME.credit && type !== FRAME.fin &&
      type !== FRAME.reset && type !== FRAME.packet
    ) return false
    if (type === FRAME.data) return this.receiveData(id, payload)
    const stream = this.#streams.get(id)
    if (!stream) return this.#receiveStray(id)
    if (type === FRAME.fin) stream.receiveFin()
    else if (type === FRAME.credit) {
      this.#decoded(decodeCredit, payload, (n) => stream.receiveCredit(n))
    } else if (type === FRAME.packet) {
      this.#decoded(decodePackets, payload, (datagrams) => stream.receivePackets(datagrams))
    } else this.#decoded(decodeReset, payload, (reset) => this.#receiveReset(stream, reset))
    return true
  }

  /** `receive` of a `data` frame of 1 to 65,536 bytes that nobody had to decode. */
  receiveData(id: number, payload: Uint8Array): boolean {
    if (this.#closed) return true
    const stream = this.#streams.get(id)
    if (!stream) return this.#receiveStray(id)
    stream.receiveData(payload)
    return true
  }

  /** Relay: an id for a stream that it forwards to this link. Throws `mux/exhausted`, `mux/closed`. */
  nextId(): number {
    if (this.#closed) {
      throw new TunnelError('mux/closed', 'Cannot forward a stream: found the link closed')
    }
    this.#forwards = true
    return this.#takeId()
  }

  /**
   * Relay: the peer opened `id` and it is forwarded, or refused, outside this mux. False when the
   * id is out of order; the link has then failed.
   */
  seen(id: number): boolean {
    if (this.#closed) return false
    this.#forwards = true
    return this.#checkPeerId(id)
  }

  /** The socket takes more: what waited gets its turns. */
  drain(): void {
    this.#blocked = false
    this.#controlBytes = 0
    this.#pump()
  }

  /** A measured round trip of the link, in milliseconds. */
  rtt(ms: number): void {
    const before = this.#roundTripMs ?? ms
    this.#roundTripMs = before + (ms - before) * ROUND_TRIP_WEIGHT
  }

  /** Ends all streams, on this side alone; nothing is sent any more. */
  close(reset: number = RESET.gone): void {
    if (this.#closed) return
    this.#closed = true
    this.#retry?.cancel()
    this.#retry = undefined
    for (const stream of [...this.#streams.values()]) {
      stream.drop(reset, { reason: 'the link is closed', remote: false })
    }
    this.#ring.clear()
  }

  #takeId(): number {
    if (this.#nextId > ID_MAX) {
      throw new TunnelError(
        'mux/exhausted',
        'Cannot open a stream: found all ids of the link used',
        {
          hint: 'Open another link and close this one when it is empty.',
        },
      )
    }
    const id = this.#nextId
    this.#nextId += 2
    return id
  }

  #add(id: number, visit: Visit, opener: boolean): Stream {
    const stream = new Stream(id, this.#port, {
      visit,
      opener,
      windowMaxBytes: this.#windowMaxBytes,
      openTimeoutMs: this.#openTimeoutMs,
    })
    this.#streams.set(id, stream)
    return stream
  }

  #isPeers(id: number): boolean {
    return (id % 2 === 1) === (this.#options.side === 'relay')
  }

  #checkPeerId(id: number): boolean {
    if (!this.#isPeers(id)) {
      this.#fail(
        new TunnelError('mux/parity', `Cannot accept stream ${id}: found an id of this side`),
      )
      return false
    }
    if (id <= this.#peerId) {
      const found = `found an id that is not above ${this.#peerId}`
      this.#fail(new TunnelError('mux/order', `Cannot accept stream ${id}: ${found}`))
      return false
    }
    this.#peerId = id
    return true
  }

  #receiveOpen(id: number, payload: Uint8Array): void {
    this.#decoded(decodeVisit, payload, (visit) => {
      if (!this.#checkPeerId(id)) return
      if (this.#streams.size >= this.#streamsMax || this.#churning() >= this.#streamsMax) {
        this.#sendControl(encodeFrame('reset', id, encodeReset(RESET.overload)))
        return
      }
      this.#options.onOpen(this.#add(id, visit, false))
    })
  }

  /** A frame on an id that has no stream: late when it once had one, else the peer is confused. */
  #receiveStray(id: number): boolean {
    const known = this.#isPeers(id) ? id <= this.#peerId : id < this.#nextId
    if (known) return !this.#forwards
    this.#fail(
      new TunnelError('mux/unknown', `Cannot accept a frame on stream ${id}: never opened`),
    )
    return true
  }

  #receiveReset(stream: Stream, reset: { code: number; reason: string }): void {
    if (!stream.opener && !stream.answered) {
      this.#churn = this.#churning() + 1
      this.#churnMs = this.#clock.monotonic()
    }
    stream.drop(reset.code, { reason: reset.reason, remote: true })
  }

  /**
   * Opening and taking back costs the peer little and the owner, who starts to dial, much (known
   * as rapid reset): above `streamsMax` of them a second opens are answered with `overload`.
   */
  #churning(): number {
    const elapsedMs = this.#clock.monotonic() - this.#churnMs
    return Math.max(0, this.#churn - (elapsedMs * this.#streamsMax) / 1000)
  }

  /** Decodes and acts; what cannot be decoded ends the link. Errors of `act` are its own. */
  #decoded<T>(
    decode: (payload: Uint8Array) => T,
    payload: Uint8Array,
    act: (value: T) => void,
  ): void {
    let value: T
    try {
      value = decode(payload)
    } catch (error) {
      this.#fail(asTunnelError(error, 'mux/frame'))
      return
    }
    act(value)
  }

  #grow(bytes: number): boolean {
    if (this.#grownBytes + bytes > this.#windowSumBytesMax) return false
    this.#grownBytes += bytes
    return true
  }

  #remove(stream: Stream, grownBytes: number): void {
    this.#grownBytes -= grownBytes
    this.#ring.delete(stream)
    this.#streams.delete(stream.id)
    if (this.#streams.size === 0 && !this.#closed) this.#options.onEmpty?.()
  }

  #activate(stream: Stream): void {
    if (!this.#ring.has(stream)) this.#ring.set(stream, 0)
    this.#pump()
  }

  /** The socket takes data now. */
  #open(): boolean {
    return !this.#blocked && !this.#closed && this.#options.buffered() < SOCKET_BYTES_MAX
  }

  #pump(): void {
    // A turn may run a drain handler that writes: its stream joins the ring that is going round.
    if (this.#pumping) return
    this.#pumping = true
    while (this.#ring.size > 0 && this.#open()) {
      const [stream, deficit] = this.#ring.entries().next().value!
      const quantum = this.#ring.size === 1 ? this.#payloadBytesMax : QUANTUM_BYTES
      const limitBytes = Math.min(deficit + quantum, this.#payloadBytesMax)
      const sentBytes = stream.turn(limitBytes)
      this.#ring.delete(stream)
      if (stream.ready) this.#ring.set(stream, limitBytes - sentBytes)
      stream.settle()
    }
    this.#pumping = false
    if (this.#ring.size > 0 && !this.#blocked && !this.#closed) this.#retryLater()
  }

  /** Full without owing a drain (others fill the same socket): nobody will call, so look again. */
  #retryLater(): void {
    this.#retry ??= this.#clock.after(RETRY_MS, () => {
      this.#retry = undefined
      this.#pump()
    })
  }

  #sendControl(frame: Uint8Array): void {
    const sent = this.#send(frame)
    if (sent !== 'queued') return
    this.#controlBytes += frame.length
    if (this.#controlBytes <= CONTROL_BYTES_MAX) return
    const found = `${this.#controlBytes} bytes that the peer does not read`
    this.#fail(new TunnelError('mux/flooded', `Cannot answer the peer: found ${found}`))
  }

  #sendData(id: number, payload: Uint8Array): void {
    if (this.#closed) return
    const { sendData } = this.#options
    if (sendData) this.#sent(sendData(id, payload))
    else this.#send(encodeFrame('data', id, payload))
  }

  #send(frame: Uint8Array): Sent {
    return this.#closed ? 'lost' : this.#sent(this.#options.send(frame))
  }

  #sent(sent: Sent): Sent {
    if (sent === 'queued') this.#blocked = true
    else if (sent === 'lost') {
      this.#fail(new TunnelError('mux/lost', 'Cannot send a frame: found the link gone'))
    }
    return sent
  }

  #fail(error: TunnelError): void {
    if (this.#closed) return
    this.close(RESET.gone)
    this.#options.onProtocolError(error)
  }
}
