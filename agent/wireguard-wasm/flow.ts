/**
 * One TCP connection through a tunnel, as a stream of bytes with backpressure: what is not read closes
 * the window, what cannot be sent yet waits here. Events start on the turn after `handle`; `write`
 * never throws; after `closed` nothing more is called. Arrays that are given are the receiver's;
 * arrays that are written are kept until drained and are not to be changed.
 */

/** 'ok' went to the stack, 'queued' waits until a drain, 'lost' never will be sent. */
export type Sent = 'ok' | 'queued' | 'lost'

export interface FlowHandler {
  data(bytes: Uint8Array): void
  /** In place of `data`: a view of the module's memory, which holds during the call alone, and until the module is called. */
  lent?(bytes: Uint8Array): void
  /** What was queued has gone. */
  drain?(): void
  /** The other side has finished sending; our direction stays open until `end`. */
  end(): void
  /** Last event; `error` tells a reset or a timeout from an orderly end. */
  closed(error?: Error): void
}

/**
 * Buffers that were given are freed at once from this size on: the collector would let each come from new
 * pages of the system.
 */
const FREED_BYTES_MIN = 16_384
/** Of one piece that is lent: who can send a part of it alone copies the rest. */
const LENT_BYTES_MAX = 256 * 1024

/** Bits of a change (ABI.md). */
export const CHANGE = {
  connected: 1,
  readable: 2,
  writable: 4,
  finished: 8,
  closed: 16,
  broken: 32,
  incoming: 64,
} as const

/** What a flow needs of its tunnel. */
export interface FlowStack {
  /** What has come and lies in one piece, a view that holds until the next call. */
  peek(id: number): Uint8Array
  consume(id: number, bytes: number): void
  /** Room in one piece. */
  room(id: number): Uint8Array
  commit(id: number, bytes: number): number
  finish(id: number): void
  abort(id: number): void
  forget(flow: Flow): void
}

export interface Ends {
  localAddress: string
  localPort: number
  remoteAddress: string
  remotePort: number
}

export class Flow {
  readonly id: number
  readonly localAddress: string
  readonly localPort: number
  readonly remoteAddress: string
  readonly remotePort: number
  readonly #stack: FlowStack
  #handler: FlowHandler | undefined
  #queue: Uint8Array[] = []
  #queueBytes = 0
  /** Buffers of the queue that are ours to free. */
  #given: Set<ArrayBufferLike> | undefined
  #isPaused = false
  #isScheduled = false
  #isPumping = false
  #isEnding = false
  #hasFinished = false
  #toldEnd = false
  /** The stack has forgotten it. */
  #isOver = false
  #isClosed = false
  #wantsDrain = false
  #error: Error | undefined
  #opening: { done(): void; failed(error: Error): void } | undefined

  constructor(id: number, ends: Ends, stack: FlowStack) {
    this.id = id
    this.localAddress = ends.localAddress
    this.localPort = ends.localPort
    this.remoteAddress = ends.remoteAddress
    this.remotePort = ends.remotePort
    this.#stack = stack
  }

  /** Of the tunnel: resolves when the connection stands. */
  opened(): Promise<this> {
    return new Promise((resolve, reject) => {
      this.#opening = { done: () => resolve(this), failed: reject }
    })
  }

  write(bytes: Uint8Array): Sent {
    if (this.#isOver || this.#isEnding) return 'lost'
    if (this.#queueBytes > 0) return this.#keep(bytes)
    const taken = this.#put(bytes)
    return taken === bytes.length ? 'ok' : this.#keep(bytes.subarray(taken))
  }

  /** As `write`, of an array that is the flow's from now on, with the whole buffer below it. */
  give(bytes: Uint8Array): Sent {
    const sent = this.write(bytes)
    const { buffer, length } = bytes
    if (sent === 'lost' || length < FREED_BYTES_MIN || length !== buffer.byteLength) return sent
    if (sent === 'ok') free(buffer)
    else (this.#given ??= new Set()).add(buffer)
    return sent
  }

  /** Half-closes after what is queued. */
  end(): void {
    if (this.#isEnding || this.#isOver) return
    this.#isEnding = true
    if (this.#queueBytes === 0) this.#stack.finish(this.id)
  }

  /** Drops the connection at once, with a reset. */
  abort(error: Error = new Error('aborted')): void {
    if (this.#isOver) return
    this.#error ??= error
    this.#stack.abort(this.id)
    // Whoever gave it up waits for no network.
    this.#over()
  }

  pause(): void {
    this.#isPaused = true
  }

  resume(): void {
    this.#isPaused = false
    this.#schedule()
  }

  /** Takes the handler off until the next `handle`; what comes meanwhile waits in the stack. */
  hold(): void {
    this.#handler = undefined
  }

  handle(handler: FlowHandler): void {
    this.#handler = handler
    this.#schedule()
  }

  /** Bytes that wait here. */
  buffered(): number {
    return this.#queueBytes
  }

  /** Of the tunnel: what has changed. */
  notice(bits: number): void {
    if (this.#isOver) return
    if (bits & CHANGE.connected) {
      this.#opening?.done()
      this.#opening = undefined
    }
    if (bits & CHANGE.writable) this.#flush()
    if (bits & CHANGE.finished) this.#hasFinished = true
    if (bits & CHANGE.closed) {
      if (bits & CHANGE.broken) this.#error ??= new Error('connection reset')
      this.#over()
    } else if (bits & (CHANGE.readable | CHANGE.finished)) this.#pump()
  }

  /** Of the tunnel: its stack is lost. */
  lose(error: Error): void {
    if (this.#isOver) return
    this.#error ??= error
    this.#over()
  }

  #over(): void {
    this.#isOver = true
    this.#queue = []
    this.#given = undefined
    this.#queueBytes = 0
    this.#stack.forget(this)
    this.#opening?.failed(this.#error ?? new Error('connection closed'))
    this.#opening = undefined
    this.#schedule()
  }

  #keep(bytes: Uint8Array): Sent {
    this.#queue.push(bytes)
    this.#queueBytes += bytes.length
    this.#wantsDrain = true
    return 'queued'
  }

  /** Bytes that the stack has taken. */
  #put(bytes: Uint8Array): number {
    let taken = 0
    while (taken < bytes.length) {
      const room = this.#stack.room(this.id)
      if (room.length === 0) break
      const piece = bytes.subarray(taken, taken + room.length)
      room.set(piece)
      const committed = this.#stack.commit(this.id, piece.length)
      if (committed === 0) break
      taken += committed
    }
    return taken
  }

  #flush(): void {
    while (this.#queue.length > 0) {
      const first = this.#queue[0]!
      const taken = this.#put(first)
      this.#queueBytes -= taken
      if (taken < first.length) {
        this.#queue[0] = first.subarray(taken)
        return
      }
      this.#queue.shift()
      if (this.#given?.delete(first.buffer)) free(first.buffer)
    }
    if (!this.#wantsDrain) return
    this.#wantsDrain = false
    if (this.#isEnding) this.#stack.finish(this.id)
    else this.#handler?.drain?.()
  }

  #schedule(): void {
    if (this.#isScheduled) return
    this.#isScheduled = true
    queueMicrotask(() => {
      this.#isScheduled = false
      this.#pump()
    })
  }

  /** Gives what has come, in order, as far as somebody wants it. */
  #pump(): void {
    if (this.#isPumping || this.#isClosed) return
    this.#isPumping = true
    try {
      while (this.#handler && !this.#isPaused && !this.#isOver) {
        const piece = this.#stack.peek(this.id)
        if (piece.length === 0) break
        if (this.#handler.lent) {
          const part = piece.subarray(0, LENT_BYTES_MAX)
          const { length } = part
          this.#handler.lent(part)
          if (!this.#isOver) this.#stack.consume(this.id, length)
          continue
        }
        const bytes = piece.slice()
        this.#stack.consume(this.id, bytes.length)
        this.#handler.data(bytes)
      }
      if (this.#handler && !this.#isPaused && this.#hasFinished && !this.#toldEnd && !this.#error) {
        this.#toldEnd = true
        this.#handler.end()
      }
      if (this.#handler && this.#isOver && !this.#isClosed) {
        this.#isClosed = true
        this.#handler.closed(this.#error)
      }
    } finally {
      this.#isPumping = false
    }
  }
}

function free(buffer: ArrayBufferLike): void {
  if (buffer instanceof ArrayBuffer) buffer.transfer(0)
}
