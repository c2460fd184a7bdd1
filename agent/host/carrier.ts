/**
 * What a `TLSSocket` can sit on. A stream socket is taken out of its `Conn` and carries TLS inside the
 * runtime; any other `Conn` (a stream of a link, a callback socket) is dressed up as a Duplex.
 */
import { Socket } from 'node:net'
import { Duplex } from 'node:stream'
import { TLSSocket } from 'node:tls'
import { DuplexConn } from '../../core/duplex_conn.ts'
import type { Conn } from '../../core/socket.ts'

/** Bytes that wait in the Duplex before the `Conn` below is paused. */
const READ_BYTES = 262_144
/** Bytes that wait to be written before TLS stops making more. */
const WRITE_BYTES = 262_144

/**
 * The carrier as a stream that has not been read yet. `first`, bytes that were read from it already,
 * come first. The `Conn` is dead afterwards.
 */
export function carrierOf(conn: Conn, first: Uint8Array): Duplex {
  if (conn instanceof DuplexConn) {
    const raw: unknown = conn.raw
    if (raw instanceof Socket && !(raw instanceof TLSSocket)) {
      raw.pause()
      conn.detach()
      if (first.length > 0) raw.unshift(buffer(first))
      return raw
    }
  }
  return new ConnDuplex(conn, first)
}

function buffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

/** A `Conn` in the shape of a Node stream. */
export class ConnDuplex extends Duplex {
  readonly remoteAddress: string
  readonly remotePort: number
  readonly #conn: Conn
  /** Set while the Conn has more queued than it likes; called at its drain. */
  #written: ((error?: Error | null) => void) | undefined
  #closed = false

  constructor(conn: Conn, first: Uint8Array) {
    super({
      allowHalfOpen: true,
      readableHighWaterMark: READ_BYTES,
      writableHighWaterMark: WRITE_BYTES,
    })
    this.#conn = conn
    this.remoteAddress = conn.remoteAddress
    this.remotePort = conn.remotePort
    if (first.length > 0) this.push(buffer(first))
    conn.handle({
      data: (bytes) => {
        if (!this.push(buffer(bytes))) conn.pause()
      },
      drain: () => this.#drained(),
      end: () => void this.push(null),
      closed: (error) => {
        this.#closed = true
        this.#drained(error ?? new Error('connection closed'))
        if (error) this.destroy(error)
        else if (!this.readableEnded) this.push(null)
        // Nothing more can be written, whatever this end still meant to say.
        if (!this.writableFinished) this.destroy(error)
      },
    })
  }

  #drained(error?: Error): void {
    const written = this.#written
    this.#written = undefined
    written?.(error)
  }

  override _read(): void {
    if (!this.#closed) this.#conn.resume()
  }

  override _write(chunk: Buffer, _: string, done: (error?: Error | null) => void): void {
    this.#sent(this.#conn.write(chunk), done)
  }

  override _writev(
    chunks: { chunk: Buffer; encoding: string }[],
    done: (error?: Error | null) => void,
  ): void {
    this.#sent(
      this.#conn.write(
        chunks.length === 1 ? chunks[0]!.chunk : Buffer.concat(chunks.map(({ chunk }) => chunk)),
      ),
      done,
    )
  }

  #sent(sent: ReturnType<Conn['write']>, done: (error?: Error | null) => void): void {
    if (sent === 'ok') done()
    else if (sent === 'queued') this.#written = done
    else done(new Error('connection lost'))
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#conn.end()
    done()
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    if (!this.#closed) {
      // Both directions ended in order: the Conn closes by itself. Otherwise it is cut.
      if (this.writableFinished && this.readableEnded) this.#conn.end()
      else this.#conn.abort()
    }
    this.#drained(error ?? new Error('connection closed'))
    done(error)
  }
}
