/**
 * A stream of the runtime over a callback connection, for HTTP, which reads streams alone. Backpressure
 * and both half-closes pass.
 */
import { Duplex } from 'node:stream'
import type { NativeConn } from '../../core/native_conn.ts'

type Done = (error?: Error | null) => void

export class ConnDuplex extends Duplex {
  readonly #conn: NativeConn
  #written: Done | undefined

  constructor(conn: NativeConn) {
    super({ allowHalfOpen: true })
    this.#conn = conn
    conn.handle({
      data: (bytes) => {
        if (!this.push(bytes)) conn.pause()
      },
      drain: () => this.#drained(),
      end: () => void this.push(null),
      closed: (error) => {
        this.#drained(error ?? new Error('the connection was closed'))
        // What was read before an orderly end is still to be told.
        if (error || !this.readable) this.destroy(error)
        else this.once('end', () => this.destroy())
      },
    })
  }

  #drained(error?: Error): void {
    const written = this.#written
    this.#written = undefined
    written?.(error)
  }

  override _read(): void {
    this.#conn.resume()
  }

  override _write(bytes: Uint8Array, _encoding: string, done: Done): void {
    const sent = this.#conn.write(bytes)
    if (sent === 'ok') done()
    else if (sent === 'queued') this.#written = done
    else done(new Error('the connection was closed'))
  }

  override _final(done: Done): void {
    this.#conn.end()
    done()
  }

  override _destroy(error: Error | null, done: Done): void {
    // Closed, not reset: the last bytes may still be on their way.
    if (!error && this.#conn.buffered() === 0) this.#conn.socket?.end()
    else this.#conn.abort()
    done(error)
  }
}
