/**
 * The shared bulk link of one home link, agent side: opened when the relay can carry visitors of raw
 * ports on one, opened again whenever it was lost, and gone with the home link.
 */
import { fromHex } from '../core/bytes.ts'
import type { Timer } from '../core/clock.ts'
import type { Stream } from '../core/mux.ts'
import { SharedLink } from '../core/shared_link.ts'
import type { Conn } from '../core/socket.ts'
import { encodeTicket } from '../core/ticket.ts'
import type { BulkPorts } from './bulk.ts'
import type { Up } from './uplink.ts'

/** A link that cannot be opened, or does not last, waits, doubling from here. */
const RETRY_MS_MIN = 200
const RETRY_MS_MAX = 10_000
/** Up for so long: the next loss starts from the short wait again. */
const SETTLED_MS = 30_000

export interface SharedBulkPorts extends Pick<BulkPorts, 'clock' | 'crypto' | 'connect'> {
  /** Runs `run` when the events at hand have been handled. */
  later(run: () => void): void
  /** A visitor: accept the stream or reset it. */
  opened(stream: Stream): void
}

export class SharedBulk {
  readonly #ports: SharedBulkPorts
  readonly #up: Up
  readonly #count: () => number
  #link: SharedLink | undefined
  #retry: Timer | undefined
  #retryMs = RETRY_MS_MIN
  #closed = false

  /** `count` numbers the tickets of the home link. */
  constructor(ports: SharedBulkPorts, of: { up: Up; count: () => number }) {
    this.#ports = ports
    this.#up = of.up
    this.#count = of.count
  }

  start(): void {
    this.#ports.connect('shared').then(
      (conn) => this.#opened(conn),
      () => this.#again(),
    )
  }

  close(): void {
    this.#closed = true
    this.#retry?.cancel()
    this.#link?.close()
  }

  #opened(conn: Conn): void {
    if (this.#closed) return conn.abort()
    const { clock, crypto, later } = this.#ports
    const { welcome, bulkKey } = this.#up
    const linkId = fromHex(welcome.link)
    const openedMs = clock.monotonic()
    conn.write(encodeTicket(crypto, { linkId, counter: this.#count(), class: 'shared' }, bulkKey))
    this.#link = new SharedLink(conn, {
      side: 'agent',
      clock,
      later,
      windowMaxBytes: welcome.window,
      onOpen: (stream) => this.#ports.opened(stream),
      onClosed: () => {
        if (clock.monotonic() - openedMs > SETTLED_MS) this.#retryMs = RETRY_MS_MIN
        this.#again()
      },
    })
  }

  #again(): void {
    if (this.#closed) return
    this.#retry = this.#ports.clock.after(this.#retryMs, () => this.start())
    this.#retryMs = Math.min(this.#retryMs * 2, RETRY_MS_MAX)
  }
}
