/**
 * The `Socket` port over a server's web-standard WebSocket: Deno's own, and workerd's in a Durable
 * Object. Neither can pause reading, so credit alone slows a sender down. Neither says when it
 * drained: what is buffered is looked at, and only while it is above the mark, since a timer keeps
 * a Durable Object awake.
 */
import type { Clock, Timer } from '../../core/clock.ts'
import { FRAME_BYTES_MAX } from '../../core/frame.ts'
import type { Sent, Socket, SocketHandler } from '../../core/socket.ts'

/** Above so many bytes a send answers 'queued'. */
const HIGH_WATER_BYTES = 524_288
/** 'drain' is told when no more than this waits. */
const LOW_WATER_BYTES = 131_072
/** A socket that holds so much for a peer that does not read is lost: an object has 128 MB in all. */
const BUFFERED_BYTES_MAX = 33_554_432
/** Between two looks at what is buffered. */
const LOOK_MS = 10
const OPEN = 1
const CLOSE_PROTOCOL = 4400
/** The members of a WebSocket that are used; Deno and workerd both have them. */
export interface RawWebSocket {
  readonly readyState: number
  /** Missing in workerd of before 2026-05: then nothing is known, and credit alone bounds it. */
  readonly bufferedAmount?: number
  send(message: Uint8Array): void
  close(code?: number, reason?: string): void
}

export class WebSocketLink implements Socket {
  readonly raw: RawWebSocket
  readonly #clock: Clock
  #handler: SocketHandler | undefined
  #look: Timer | undefined
  #closed = false

  constructor(raw: RawWebSocket, clock: Clock) {
    this.raw = raw
    this.#clock = clock
  }

  send(message: Uint8Array): Sent {
    const { raw } = this
    if (this.#closed || raw.readyState !== OPEN || this.buffered() > BUFFERED_BYTES_MAX) {
      return 'lost'
    }
    try {
      raw.send(message)
    } catch {
      return 'lost'
    }
    if (this.buffered() <= HIGH_WATER_BYTES) return 'ok'
    this.#lookLater()
    return 'queued'
  }

  buffered(): number {
    return this.raw.bufferedAmount ?? 0
  }

  handle(handler: SocketHandler): void {
    this.#handler = handler
  }

  close(code: number, reason: string): void {
    if (this.#closed) return
    // A browser's rule, which Deno keeps: codes of the protocol itself, but for 1000, are refused.
    this.#quietly(() => this.raw.close(code, reason)) ||
      this.#quietly(() => this.raw.close(1000, reason))
    this.#end()
  }

  terminate(): void {
    if (this.#closed) return
    this.#quietly(() => this.raw.close())
    this.#end()
  }

  /** One message came in. */
  receive(data: unknown): void {
    if (this.#closed) return
    if (typeof data === 'string') return this.#refuse(CLOSE_PROTOCOL, 'frame/text')
    if (!(data instanceof ArrayBuffer)) return this.#refuse(CLOSE_PROTOCOL, 'frame/text')
    if (data.byteLength > FRAME_BYTES_MAX) return this.#refuse(CLOSE_PROTOCOL, 'frame/size')
    this.#handler?.message(new Uint8Array(data))
  }

  /** The other end closed, or the connection broke. */
  closed(code: number, reason: string): void {
    if (this.#closed) return
    this.#end()
    this.#handler?.closed(code, reason)
  }

  #refuse(code: number, reason: string): void {
    this.close(code, reason)
    this.#handler?.closed(code, reason)
  }

  #end(): void {
    this.#closed = true
    this.#look?.cancel()
    this.#look = undefined
  }

  /** A socket that is gone already throws; there is nothing left to do for it. */
  #quietly(close: () => void): boolean {
    try {
      close()
      return true
    } catch {
      return false
    }
  }

  #lookLater(): void {
    this.#look ??= this.#clock.after(LOOK_MS, () => {
      this.#look = undefined
      if (this.#closed) return
      if (this.raw.readyState !== OPEN) return this.closed(1006, 'lost')
      if (this.buffered() > LOW_WATER_BYTES) this.#lookLater()
      else this.#handler?.drain?.()
    })
  }
}
