/**
 * `Conn` over anything shaped like a Node stream socket: `net.Socket`, `tls.TLSSocket`, a plain
 * Duplex. The shape is structural, so this file names no runtime; adapters hand the object in.
 */
import type { Conn, ConnHandler, Sent } from './socket.ts'

/** What is used of a Node Duplex. */
export interface DuplexShape {
  readonly remoteAddress?: string | undefined
  readonly remotePort?: number | undefined
  readonly writableLength: number
  readonly destroyed: boolean
  readonly writableEnded: boolean
  readonly readableEnded: boolean
  write(bytes: Uint8Array): boolean
  end(): unknown
  destroy(error?: Error): unknown
  resetAndDestroy?(): unknown
  pause(): unknown
  resume(): unknown
  // deno-lint-ignore no-explicit-any
  on(event: string, listener: (...values: any[]) => void): unknown
  // deno-lint-ignore no-explicit-any
  removeListener(event: string, listener: (...values: any[]) => void): unknown
}

export class DuplexConn<S extends DuplexShape = DuplexShape> implements Conn {
  readonly remoteAddress: string
  readonly remotePort: number
  readonly raw: S
  #handler: ConnHandler | undefined
  #error: Error | undefined
  #started = false
  #held = false
  /** The peer ended while nobody was there: Node says so of a paused socket too. */
  #endWaits = false
  #closedDelivered = false
  #detached = false
  #closed = false

  readonly #onData = (chunk: Uint8Array): void => this.#handler?.data(chunk)
  readonly #onDrain = (): void => this.#handler?.drain?.()
  readonly #onEnd = (): void => {
    if (this.#handler) this.#handler.end()
    else this.#endWaits = true
  }
  readonly #onError = (error: Error): void => void (this.#error = error)
  readonly #onClose = (): void => {
    if (this.#closed) return
    this.#closed = true
    // A close without an end is an abort, whether or not the runtime called it an error.
    const error = this.#error ??
      (this.raw.readableEnded ? undefined : new Error('connection aborted'))
    this.#error = error
    this.#deliverClosed()
  }

  #deliverEnd(): void {
    if (!this.#handler || !this.#endWaits) return
    this.#endWaits = false
    this.#handler.end()
  }

  #deliverClosed(): void {
    if (!this.#handler || this.#closedDelivered) return
    this.#closedDelivered = true
    this.#handler.closed(this.#error)
  }

  constructor(raw: S) {
    this.raw = raw
    this.remoteAddress = raw.remoteAddress ?? ''
    this.remotePort = raw.remotePort ?? 0
    // Without a listener an 'error' event would end the process, so it is there from the start.
    raw.on('error', this.#onError)
    raw.on('close', this.#onClose)
  }

  handle(handler: ConnHandler): void {
    this.#handler = handler
    const held = this.#held
    this.#held = false
    if (this.#endWaits) queueMicrotask(() => this.#deliverEnd())
    if (this.#closed) {
      queueMicrotask(() => this.#deliverClosed())
      return
    }
    if (held) this.raw.resume()
    if (this.#started) return
    this.#started = true
    this.raw.on('data', this.#onData)
    this.raw.on('drain', this.#onDrain)
    this.raw.on('end', this.#onEnd)
    // A peer that ends right behind its handshake is heard before there is anybody to tell.
    if (this.raw.readableEnded) {
      queueMicrotask(() => void (this.#detached || this.#handler?.end()))
    }
  }

  hold(): void {
    this.raw.pause()
    this.#held = true
    this.#handler = undefined
  }

  write(bytes: Uint8Array): Sent {
    const raw = this.raw
    if (raw.destroyed || raw.writableEnded) return 'lost'
    return raw.write(bytes) ? 'ok' : 'queued'
  }

  end(): void {
    if (!this.raw.writableEnded && !this.raw.destroyed) this.raw.end()
  }

  abort(): void {
    if (this.raw.destroyed) return
    this.#error ??= new Error('aborted')
    try {
      if (this.raw.resetAndDestroy) return void this.raw.resetAndDestroy()
    } catch {
      // A TLSSocket of Node has the method and throws: there is no TCP handle of its own to reset.
    }
    this.raw.destroy()
  }

  pause(): void {
    this.raw.pause()
  }

  resume(): void {
    this.raw.resume()
  }

  buffered(): number {
    return this.raw.writableLength
  }

  /** Gives the raw object up, with no listener of ours left on it; this Conn is dead afterwards. */
  detach(): S {
    this.#detached = true
    for (
      const [event, listener] of [
        ['data', this.#onData],
        ['drain', this.#onDrain],
        ['end', this.#onEnd],
        ['error', this.#onError],
        ['close', this.#onClose],
      ] as const
    ) this.raw.removeListener(event, listener as () => void)
    return this.raw
  }

  get detached(): boolean {
    return this.#detached
  }
}
