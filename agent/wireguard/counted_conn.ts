/** A connection that tells once when it is over, and when it last carried bytes. */
import type { Clock } from '../../core/clock.ts'
import type { Conn, ConnHandler, Sent } from '../../core/socket.ts'

export class CountedConn implements Conn {
  /** On the clock's monotonic scale. */
  activeMs: number
  readonly #below: Conn
  readonly #clock: Clock
  #over: (() => void) | undefined
  #isHandled = false

  constructor(below: Conn, clock: Clock, over: () => void) {
    this.#below = below
    this.#clock = clock
    this.#over = over
    this.activeMs = clock.monotonic()
  }

  get remoteAddress(): string {
    return this.#below.remoteAddress
  }

  get remotePort(): number {
    return this.#below.remotePort
  }

  write(bytes: Uint8Array): Sent {
    this.activeMs = this.#clock.monotonic()
    return this.#below.write(bytes)
  }

  give(bytes: Uint8Array): Sent {
    this.activeMs = this.#clock.monotonic()
    return this.#below.give ? this.#below.give(bytes) : this.#below.write(bytes)
  }

  lend(bytes: Uint8Array): Sent {
    this.activeMs = this.#clock.monotonic()
    return this.#below.lend ? this.#below.lend(bytes) : this.give(bytes.slice())
  }

  end(): void {
    this.#below.end()
  }

  abort(): void {
    this.#below.abort()
    // Nobody may ever ask for its events.
    if (!this.#isHandled) this.#end()
  }

  pause(): void {
    this.#below.pause()
  }

  resume(): void {
    this.#below.resume()
  }

  hold(): void {
    this.#below.hold()
  }

  buffered(): number {
    return this.#below.buffered()
  }

  handle(handler: ConnHandler): void {
    this.#isHandled = true
    const { lent } = handler
    this.#below.handle({
      data: (bytes) => {
        this.activeMs = this.#clock.monotonic()
        handler.data(bytes)
      },
      ...(lent && {
        lent: (bytes: Uint8Array) => {
          this.activeMs = this.#clock.monotonic()
          lent.call(handler, bytes)
        },
      }),
      drain: () => handler.drain?.(),
      end: () => handler.end(),
      closed: (error) => {
        this.#end()
        handler.closed(error)
      },
    })
  }

  #end(): void {
    this.#over?.()
    this.#over = undefined
  }
}
