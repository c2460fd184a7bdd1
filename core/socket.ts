/**
 * The two ports through which all bytes pass, and their in-memory twins. `Socket` carries whole
 * binary messages (one WebSocket), `Conn` carries a byte stream (one TCP or TLS connection). Each
 * runtime backs them in one adapter; nothing else names a runtime.
 *
 * Rules of both: events start on the next turn after `handle()`; `send`/`write` never throw;
 * after `closed` nothing more is called. Received arrays belong to the receiver. Sent arrays may be
 * kept by the port until drained: the sender must not change them afterwards.
 */

/**
 * What became of a message or chunk: 'ok' went to the system, 'queued' is kept until a drain,
 * 'lost' was not and never will be sent: the owner must close.
 */
export type Sent = 'ok' | 'queued' | 'lost'

export interface SocketHandler {
  /** One binary message. */
  message(bytes: Uint8Array): void
  /** What was queued has gone; only after a 'queued'. */
  drain?(): void
  /** The other end showed life without a message (a WebSocket ping or pong). */
  alive?(): void
  /** Last event. `code` is the WebSocket close code, 1006 when there was none. */
  closed(code: number, reason: string): void
}

export interface Socket {
  send(message: Uint8Array): Sent
  /** Bytes accepted by `send` that have not reached the system. */
  buffered(): number
  handle(handler: SocketHandler): void
  /** Stops reading. Absent where the runtime cannot (Durable Objects, `Deno.serve`): credit does it there. */
  pause?(): void
  resume?(): void
  /** Sends a WebSocket ping; the other end answers by itself. Absent on the accepting side. */
  ping?(): void
  /** Close handshake with a code of 1000 or 4000-4999. */
  close(code: number, reason: string): void
  /** Drops the connection without a handshake. */
  terminate(): void
}

export interface ConnHandler {
  data(bytes: Uint8Array): void
  /** In place of `data`, from connections that would have to copy for it: the array holds during the call alone. */
  lent?(bytes: Uint8Array): void
  drain?(): void
  /** The peer has finished sending; our direction stays open until `end`. */
  end(): void
  /** Last event; `error` tells an abort from an orderly end. */
  closed(error?: Error): void
}

export interface Conn {
  readonly remoteAddress: string
  readonly remotePort: number
  write(bytes: Uint8Array): Sent
  /**
   * As `write`, of an array that is the connection's from now on, with the whole buffer below it: large ones
   * are freed once they have gone. Absent where nothing is gained by it.
   */
  give?(bytes: Uint8Array): Sent
  /** As `write`, of an array that holds during the call alone: what does not go at once is copied. */
  lend?(bytes: Uint8Array): Sent
  /** Half-closes after what is queued. */
  end(): void
  /** Drops the connection at once, with a reset where the runtime can send one. */
  abort(): void
  pause(): void
  resume(): void
  /**
   * Takes the handler off until the next `handle()`, for a connection that changes hands. What comes
   * meanwhile waits and is told to the next; reading pauses only once more has come than a first
   * flight, which costs nothing where mostly nothing does.
   */
  hold(): void
  /** Bytes accepted by `write` that have not reached the system. */
  buffered(): number
  handle(handler: ConnHandler): void
}

export interface Listener {
  readonly host: string
  readonly port: number
  close(): Promise<void>
}

/**
 * Joins two connections both ways with backpressure and half-close: a slow side pauses the other.
 * `done` runs once, after both have closed, with the bytes carried each way
 * and what broke each end, where it was not an orderly end; the returned counts are live. `pace` slows
 * both directions down.
 */
export function splice(
  a: Conn,
  b: Conn,
  done?: (bytes: { forth: number; back: number }, broke: { a?: Error; b?: Error }) => void,
  pace?: Pace,
): { forth: number; back: number } {
  const forth = new Side(a, b)
  const back = new Side(b, a)
  forth.other = back
  back.other = forth
  forth.done = back.done = done
  forth.pace = back.pace = pace
  forth.bytes = back.bytes = { forth: 0, back: 0 }
  back.isBack = true
  a.handle(forth)
  b.handle(back)
  return forth.bytes
}

/** Slows a splice down to what somebody may use. */
export interface Pace {
  /** Counts bytes that have passed: how many ms to wait before the next, 0 for none. */
  take(bytes: number): number
  after(ms: number, run: () => void): void
}

/** One direction of a splice; an object and no closures, since idle links are spliced by the thousand. */
class Side implements ConnHandler {
  readonly from: Conn
  readonly to: Conn
  other!: Side
  isBack = false
  bytes!: { forth: number; back: number }
  done: Parameters<typeof splice>[2]
  pace: Pace | undefined
  isWaiting = false
  isClosed = false
  error: Error | undefined

  constructor(from: Conn, to: Conn) {
    this.from = from
    this.to = to
  }

  data(chunk: Uint8Array): void {
    const { to } = this
    this.#passed(to.give ? to.give(chunk) : to.write(chunk), chunk.length)
  }

  lent(chunk: Uint8Array): void {
    const { length } = chunk
    const { to } = this
    if (to.lend) this.#passed(to.lend(chunk), length)
    else this.#passed(to.give ? to.give(chunk.slice()) : to.write(chunk.slice()), length)
  }

  #passed(sent: Sent, bytes: number): void {
    if (this.isBack) this.bytes.back += bytes
    else this.bytes.forth += bytes
    if (sent === 'queued') this.from.pause()
    else if (sent === 'lost') this.from.abort()
    if (this.pace) this.#wait(this.pace, bytes)
  }

  #wait(pace: Pace, bytes: number): void {
    const ms = pace.take(bytes)
    if (ms > 0 && !this.isClosed) {
      this.isWaiting = true
      this.from.pause()
      pace.after(ms, () => this.#wait(pace, bytes))
    } else if (this.isWaiting) {
      this.isWaiting = false
      if (this.to.buffered() === 0) this.from.resume()
    }
  }

  drain(): void {
    if (!this.other.isWaiting) this.to.resume()
  }

  end(): void {
    this.to.end()
  }

  closed(error?: Error): void {
    this.isClosed = true
    this.error = error
    if (error) this.to.abort()
    else this.to.end()
    const { done, other } = this
    // An abort may tell the other end at once, so that it is here before this one.
    if (!other.isClosed || !done) return
    this.done = other.done = undefined
    const [a, b] = this.isBack ? [other, this] : [this, other]
    done(this.bytes, {
      ...(a.error ? { a: a.error } : {}),
      ...(b.error ? { b: b.error } : {}),
    })
  }
}

/** One end of an in-memory message socket; see `memorySockets`. */
class MemorySocket implements Socket {
  peer!: MemorySocket
  #handler: SocketHandler | undefined
  #inbox: Uint8Array[] = []
  #scheduled = false
  #paused = false
  #closed = false
  #closing: { code: number; reason: string } | undefined
  #queuedBytes = 0
  #needDrain = false
  readonly #highWaterBytes: number

  constructor(highWaterBytes: number) {
    this.#highWaterBytes = highWaterBytes
  }

  send(message: Uint8Array): Sent {
    if (this.#closed || this.#closing) return 'lost'
    this.peer.#inbox.push(message.slice())
    this.#queuedBytes += message.length
    this.peer.#schedule()
    if (this.#queuedBytes <= this.#highWaterBytes) return 'ok'
    this.#needDrain = true
    return 'queued'
  }

  buffered(): number {
    return this.#queuedBytes
  }

  handle(handler: SocketHandler): void {
    this.#handler = handler
    this.#schedule()
  }

  pause(): void {
    this.#paused = true
  }

  resume(): void {
    this.#paused = false
    this.#schedule()
  }

  ping(): void {
    queueMicrotask(() => {
      if (!this.#closed && !this.peer.#closed) this.#handler?.alive?.()
    })
  }

  close(code: number, reason: string): void {
    if (this.#closed || this.#closing) return
    this.#closing = { code, reason }
    this.peer.#closing ??= { code, reason }
    this.peer.#schedule()
    this.#schedule()
  }

  terminate(): void {
    this.close(1006, '')
  }

  #schedule(): void {
    if (this.#scheduled || this.#closed || !this.#handler) return
    this.#scheduled = true
    queueMicrotask(() => {
      this.#scheduled = false
      this.#deliver()
    })
  }

  #deliver(): void {
    while (!this.#paused && this.#inbox.length > 0) {
      const message = this.#inbox.shift()!
      this.peer.#queuedBytes -= message.length
      if (this.peer.#needDrain && this.peer.#queuedBytes === 0) {
        this.peer.#needDrain = false
        const peer = this.peer
        queueMicrotask(() => peer.#closed || peer.#handler?.drain?.())
      }
      this.#handler!.message(message)
    }
    if (this.#closing && !this.#closed && (this.#inbox.length === 0 || this.#paused)) {
      this.#closed = true
      this.#handler!.closed(this.#closing.code, this.#closing.reason)
    }
  }
}

/** Two message sockets joined in memory; 'queued' is answered above `highWaterBytes`. */
export function memorySockets(highWaterBytes = 65_536): [Socket, Socket] {
  const a = new MemorySocket(highWaterBytes)
  const b = new MemorySocket(highWaterBytes)
  a.peer = b
  b.peer = a
  return [a, b]
}

/** One end of an in-memory byte stream; see `memoryConns`. */
class MemoryConn implements Conn {
  readonly remoteAddress = '192.0.2.1'
  readonly remotePort = 40_000
  peer!: MemoryConn
  #handler: ConnHandler | undefined
  #inbox: Uint8Array[] = []
  #endReceived = false
  #endDelivered = false
  #endSent = false
  #paused = false
  #scheduled = false
  #closed = false
  #queuedBytes = 0
  #needDrain = false
  #error: Error | undefined

  write(bytes: Uint8Array): Sent {
    if (this.#closed || this.#endSent) return 'lost'
    this.peer.#inbox.push(bytes.slice())
    this.#queuedBytes += bytes.length
    this.peer.#schedule()
    if (this.#queuedBytes <= 65_536) return 'ok'
    this.#needDrain = true
    return 'queued'
  }

  end(): void {
    if (this.#endSent || this.#closed) return
    this.#endSent = true
    this.peer.#endReceived = true
    this.peer.#schedule()
    this.#schedule()
  }

  abort(): void {
    if (this.#closed) return
    this.peer.#error ??= new Error('connection reset')
    this.peer.#inbox = []
    this.peer.#schedule()
    this.#error ??= new Error('aborted')
    this.#schedule()
  }

  pause(): void {
    this.#paused = true
  }

  resume(): void {
    this.#paused = false
    this.#schedule()
  }

  buffered(): number {
    return this.#queuedBytes
  }

  handle(handler: ConnHandler): void {
    this.#handler = handler
    this.#schedule()
  }

  hold(): void {
    this.#handler = undefined
  }

  #schedule(): void {
    if (this.#scheduled || this.#closed || !this.#handler) return
    this.#scheduled = true
    queueMicrotask(() => {
      this.#scheduled = false
      if (this.#handler) this.#deliver()
    })
  }

  #deliver(): void {
    while (this.#handler && !this.#paused && !this.#error && this.#inbox.length > 0) {
      const chunk = this.#inbox.shift()!
      this.peer.#queuedBytes -= chunk.length
      if (this.peer.#needDrain && this.peer.#queuedBytes === 0) {
        this.peer.#needDrain = false
        const peer = this.peer
        queueMicrotask(() => peer.#closed || peer.#handler?.drain?.())
      }
      this.#handler.data(chunk)
    }
    if (!this.#handler) return
    const drained = this.#inbox.length === 0 && !this.#paused
    if (this.#endReceived && !this.#endDelivered && drained && !this.#error) {
      this.#endDelivered = true
      this.#handler.end()
    }
    if (this.#handler && !this.#closed && (this.#error || (this.#endDelivered && this.#endSent))) {
      this.#closed = true
      this.#handler!.closed(this.#error)
    }
  }
}

/** Two byte streams joined in memory. */
export function memoryConns(): [Conn, Conn] {
  const a = new MemoryConn()
  const b = new MemoryConn()
  a.peer = b
  b.peer = a
  return [a, b]
}
