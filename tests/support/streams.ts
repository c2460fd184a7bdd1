/**
 * A mux on a desk: what it sends is kept as frames, what it receives is given by hand, and a
 * recorder notes what its streams tell. No network; time stands still.
 */
import { EMPTY, hex } from '../../core/bytes.ts'
import { ManualClock } from '../../core/clock.ts'
import type { TunnelError } from '../../core/errors.ts'
import {
  decodeFrame,
  encodeCredit,
  encodeFrame,
  encodeReset,
  encodeVisit,
  type FrameName,
  frameName,
  type Visit,
} from '../../core/frame.ts'
import { Mux, type MuxOptions, type Stream, type StreamReset } from '../../core/mux.ts'
import type { ConnHandler, Sent } from '../../core/socket.ts'

export const VISIT_TO_WEB: Omit<Visit, 'windowBytes'> = {
  kind: 'tls',
  address: '192.0.2.7',
  port: 4660,
  endpoint: 'web',
  tail: EMPTY,
}

export class Recorder implements ConnHandler {
  readonly stream: Stream
  events: string[] = []
  bytes = 0
  last: Uint8Array = EMPTY
  error: StreamReset | undefined
  closedCount = 0

  constructor(stream: Stream) {
    this.stream = stream
    stream.handle(this)
  }

  data(bytes: Uint8Array): void {
    this.bytes += bytes.length
    this.last = bytes
    this.events.push(`data ${bytes.length}`)
  }

  drain(): void {
    this.events.push('drain')
  }

  end(): void {
    this.events.push('end')
  }

  closed(error?: Error): void {
    this.error = error as StreamReset | undefined
    this.closedCount++
    this.events.push(error ? `closed ${this.error!.code}` : 'closed')
  }
}

export class DeskMux {
  readonly clock = new ManualClock()
  readonly mux: Mux
  /** Every frame that was sent since the last `taken`. */
  frames: Uint8Array[] = []
  opened: Stream[] = []
  errors: TunnelError[] = []
  empties = 0
  /** What the socket answers, and how full it says it is. */
  sent: Sent = 'ok'
  bufferedBytes = 0
  onOpen: (stream: Stream) => void = () => {}

  constructor(options: Partial<MuxOptions> = {}) {
    this.mux = new Mux({
      side: 'agent',
      clock: this.clock,
      send: (frame) => {
        this.frames.push(frame)
        return this.sent
      },
      buffered: () => this.bufferedBytes,
      onOpen: (stream) => {
        this.opened.push(stream)
        this.onOpen(stream)
      },
      onProtocolError: (error) => void this.errors.push(error),
      onEmpty: () => void this.empties++,
      ...options,
    })
  }

  /** The peer sends one frame, encoded and decoded as on the wire. */
  feed(name: FrameName, id: number, payload: Uint8Array = EMPTY): boolean {
    return this.mux.receive(decodeFrame(encodeFrame(name, id, payload)))
  }

  feedOpen(id: number, visit: Partial<Visit> = {}): boolean {
    return this.feed('open', id, encodeVisit({ ...VISIT_TO_WEB, windowBytes: 262_144, ...visit }))
  }

  feedCredit(id: number, bytes: number): boolean {
    return this.feed('credit', id, encodeCredit(bytes))
  }

  feedReset(id: number, code: number, reason = ''): boolean {
    return this.feed('reset', id, encodeReset(code, reason))
  }

  /** `NAME ID LENGTH` of each frame sent since the last call. */
  taken(): string[] {
    const names = this.frames.map((frame) => {
      const { type, id, payload } = decodeFrame(frame)
      return `${frameName(type)} ${id} ${payload.length}`
    })
    this.frames = []
    return names
  }

  /** The same in hexadecimal. */
  takenHex(): string[] {
    const frames = this.frames.map(hex)
    this.frames = []
    return frames
  }
}
