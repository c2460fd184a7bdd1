/**
 * `Socket` over a `Conn`: each message goes behind its length in four bytes, and those that are sent
 * in one turn leave in one write. Where turns hold one message each, as with a single visitor, they
 * are written at once: waiting for company that does not come would cost time.
 *
 * Nothing is unbounded: a length beyond `messageBytesMax` ends the connection before anything is
 * allocated, one message at a time is put together from its pieces, and a peer that does not read
 * is dropped when `WAITING_BYTES_MAX` wait for it.
 */
import { EMPTY } from './bytes.ts'
import type { Clock } from './clock.ts'
import { FRAME_BYTES_MAX, FRAME_HEADER_BYTES, putFrame } from './frame.ts'
import type { FrameName } from './frame.ts'
import type { Conn, ConnHandler, Sent, Socket, SocketHandler } from './socket.ts'

/** Length of a message, before it. */
export const LENGTH_BYTES = 4
/** Most that is gathered for one write, unless it is one message. */
export const BATCH_BYTES_MAX = 262_144
const BATCH_BYTES_MIN = 16_384
/** Most that waits for a peer that does not read; who sends on has not listened to 'queued'. */
export const WAITING_BYTES_MAX = 8_388_608
/** A buffer that held less than this fraction of itself is let go, not kept for the next rush. */
const SPARE_FRACTION = 16
/** After so many writes of one message each the next ones do not wait. */
const LONE_WRITES = 16
/** So many messages in a row, each within `NEAR_MS` of the last, and they wait for each other again. */
const NEAR_SENDS = 3
const NEAR_MS = 0.05
/** WebSocket's "no close frame was received", as there are none here. */
const CLOSED_WITHOUT_CODE = 1006

export interface BatchPorts {
  clock: Pick<Clock, 'monotonic'>
  /** Runs `run` when the events at hand have been handled, before more are waited for: `setImmediate`. */
  later(run: () => void): void
  /** Default: a frame. */
  messageBytesMax?: number
}

export class BatchSocket implements Socket, ConnHandler {
  readonly #conn: Conn
  readonly #ports: BatchPorts
  readonly #messageBytesMax: number
  #handler: SocketHandler | undefined
  #over = false
  #reason = ''

  /** Gathered and not yet written: from `#from` to `#to`. What is before it was handed to the `Conn`. */
  #batch: Uint8Array = EMPTY
  #from = 0
  #to = 0
  #count = 0
  /** The connection owes a drain: until then messages are only gathered. */
  #blocked = false
  #scheduled = false
  /** Messages are written as they come. */
  #direct = false
  #lone = 0
  #near = 0
  #sentMs = 0

  /** The length that is being read, and how many of its bytes have come. */
  #length = 0
  #lengthBytes = 0
  /** A message whose first `#partialBytes` have come. */
  #partial: Uint8Array | undefined
  #partialBytes = 0

  constructor(conn: Conn, ports: BatchPorts) {
    this.#conn = conn
    this.#ports = ports
    this.#messageBytesMax = ports.messageBytesMax ?? FRAME_BYTES_MAX
  }

  handle(handler: SocketHandler): void {
    const first = this.#handler === undefined
    this.#handler = handler
    if (first) this.#conn.handle(this)
  }

  /** The message is copied, so that the caller may change it. */
  send(message: Uint8Array): Sent {
    const at = this.#reserve(message.length)
    if (at < 0) return 'lost'
    this.#batch.set(message, at)
    return this.#added()
  }

  /** The same as to send the frame that header and payload make, which is spared. */
  sendFrame(name: FrameName, id: number, payload: Uint8Array): Sent {
    const at = this.#reserve(FRAME_HEADER_BYTES + payload.length)
    if (at < 0) return 'lost'
    putFrame(this.#batch, at, { name, id, payload })
    return this.#added()
  }

  buffered(): number {
    return this.#conn.buffered() + this.#to - this.#from
  }

  /** What has been read already is still told. */
  pause(): void {
    this.#conn.pause()
  }

  resume(): void {
    this.#conn.resume()
  }

  /** Sends what was gathered, then half-closes; nothing more is told but the end. There are no codes. */
  close(_code: number, reason: string): void {
    if (this.#over) return
    this.#flush()
    this.#over = true
    this.#reason = reason
    this.#conn.end()
  }

  terminate(): void {
    this.#fail('terminated')
  }

  // What follows is called by the connection alone.

  data(bytes: Uint8Array): void {
    let at = 0
    while (at < bytes.length && !this.#over) {
      if (this.#partial) at = this.#complete(this.#partial, bytes, at)
      else if (this.#lengthBytes < LENGTH_BYTES) at = this.#readLength(bytes, at)
      else {
        const end = at + this.#length
        this.#lengthBytes = 0
        if (end <= bytes.length) {
          this.#handler!.message(bytes.subarray(at, end))
          at = end
        } else this.#begin(this.#length)
      }
    }
  }

  drain(): void {
    this.#blocked = false
    this.#flush()
    if (!this.#blocked && !this.#over) this.#handler?.drain?.()
  }

  /** Half a link is none. */
  end(): void {
    this.close(CLOSED_WITHOUT_CODE, this.#reason)
  }

  closed(): void {
    this.#over = true
    this.#batch = EMPTY
    this.#from = this.#to = 0
    this.#partial = undefined
    this.#handler!.closed(CLOSED_WITHOUT_CODE, this.#reason)
  }

  #readLength(bytes: Uint8Array, at: number): number {
    while (at < bytes.length && this.#lengthBytes < LENGTH_BYTES) {
      this.#length = this.#lengthBytes === 0 ? bytes[at]! : this.#length * 256 + bytes[at]!
      this.#lengthBytes++
      at++
    }
    if (this.#lengthBytes < LENGTH_BYTES) return at
    if (this.#length > this.#messageBytesMax) {
      this.#fail(`a message of ${this.#length} bytes, expected at most ${this.#messageBytesMax}`)
    } else if (this.#length === 0) this.#fail('a message without bytes')
    return at
  }

  #begin(length: number): void {
    this.#partial = new Uint8Array(length)
    this.#partialBytes = 0
  }

  #complete(partial: Uint8Array, bytes: Uint8Array, at: number): number {
    const end = Math.min(bytes.length, at + partial.length - this.#partialBytes)
    partial.set(
      at === 0 && end === bytes.length ? bytes : bytes.subarray(at, end),
      this.#partialBytes,
    )
    this.#partialBytes += end - at
    if (this.#partialBytes === partial.length) {
      this.#partial = undefined
      this.#handler!.message(partial)
    }
    return end
  }

  /** Room for a message behind its length; where it goes, or -1 when it cannot be sent any more. */
  #reserve(length: number): number {
    if (this.#over || length === 0 || length > this.#messageBytesMax) return -1
    if (this.#blocked && this.buffered() > WAITING_BYTES_MAX) {
      this.#fail('the peer does not read')
      return -1
    }
    const needed = LENGTH_BYTES + length
    if (this.#to - this.#from + needed > BATCH_BYTES_MAX) {
      this.#flush()
      if (this.#over) return -1
    }
    if (this.#to + needed > this.#batch.length) this.#grow(this.#to - this.#from + needed)
    const batch = this.#batch
    const at = this.#to
    batch[at] = length >>> 24
    batch[at + 1] = length >>> 16
    batch[at + 2] = length >>> 8
    batch[at + 3] = length
    this.#to = at + needed
    return at + LENGTH_BYTES
  }

  /** Another buffer, for what waits and a message more; the old one may be the connection's now. */
  #grow(needed: number): void {
    const most = Math.max(needed, BATCH_BYTES_MAX)
    const grown = new Uint8Array(Math.min(most, Math.max(2 * needed, BATCH_BYTES_MIN)))
    grown.set(this.#batch.subarray(this.#from, this.#to))
    this.#batch = grown
    this.#to -= this.#from
    this.#from = 0
  }

  #added(): Sent {
    this.#count++
    if (this.#blocked) return 'queued'
    if (this.#direct) {
      this.#watchDirect()
      this.#flush()
    } else if (!this.#scheduled) {
      this.#scheduled = true
      this.#ports.later(this.#turnOver)
    }
    return this.#over ? 'lost' : this.#blocked ? 'queued' : 'ok'
  }

  readonly #turnOver = (): void => {
    this.#scheduled = false
    if (this.#blocked || this.#over) return
    if (this.#count === 1) {
      if (++this.#lone >= LONE_WRITES) this.#direct = true
    } else this.#lone = 0
    this.#flush()
  }

  #watchDirect(): void {
    const nowMs = this.#ports.clock.monotonic()
    const near = nowMs - this.#sentMs < NEAR_MS
    this.#sentMs = nowMs
    this.#near = near ? this.#near + 1 : 0
    if (this.#near < NEAR_SENDS) return
    this.#direct = false
    this.#near = this.#lone = 0
  }

  #flush(): void {
    const length = this.#to - this.#from
    if (length === 0 || this.#over) return
    const sent = this.#conn.write(this.#batch.subarray(this.#from, this.#to))
    this.#count = 0
    // The connection may keep what it was given, so that its bytes are written over only once they
    // have surely gone.
    this.#from = this.#to
    if (sent === 'queued') this.#blocked = true
    else if (sent === 'lost') this.#fail('the connection is lost')
    else if (this.#conn.buffered() === 0) {
      this.#from = this.#to = 0
      const { length: room } = this.#batch
      if (room > BATCH_BYTES_MIN && length * SPARE_FRACTION < room) this.#batch = EMPTY
    }
  }

  #fail(reason: string): void {
    if (!this.#over) this.#reason = reason
    this.#over = true
    this.#conn.abort()
  }
}
