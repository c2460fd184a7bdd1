/** The `Socket` port over the `ws` package, for Node and self-hosted Deno. */
import type { RawData, WebSocket } from 'ws'
import type { Sent, Socket, SocketHandler } from '../../core/socket.ts'

/** Above so many bytes a send answers 'queued'. */
const HIGH_WATER_BYTES = 1_048_576
/** A socket that holds so much for a peer that does not read is lost. */
const BUFFERED_BYTES_MAX = 67_108_864

export class WsSocket implements Socket {
  readonly #raw: WebSocket
  #handler: SocketHandler | undefined
  #waiting = false

  constructor(raw: WebSocket) {
    this.#raw = raw
    raw.binaryType = 'nodebuffer'
    raw.on('message', (data: RawData, isBinary: boolean) => {
      // Binary only: a text message has no place in the protocol.
      if (!isBinary) raw.close(4400, 'frame/text')
      else this.#handler?.message(data as Uint8Array)
    })
    raw.on('ping', () => this.#handler?.alive?.())
    raw.on('pong', () => this.#handler?.alive?.())
    raw.on('close', (code, reason) => this.#handler?.closed(code, reason.toString()))
    // Oversize and malformed messages: `ws` answers with a close code, and must not end the process.
    raw.on('error', () => {})
  }

  send(message: Uint8Array): Sent {
    const raw = this.#raw
    if (raw.readyState !== 1 || raw.bufferedAmount > BUFFERED_BYTES_MAX) return 'lost'
    const waits = raw.bufferedAmount > HIGH_WATER_BYTES
    raw.send(message, { binary: true, compress: false }, waits ? () => this.#sent() : undefined)
    if (!waits) return 'ok'
    this.#waiting = true
    return 'queued'
  }

  #sent(): void {
    if (!this.#waiting || this.#raw.bufferedAmount > HIGH_WATER_BYTES / 4) return
    this.#waiting = false
    this.#handler?.drain?.()
  }

  buffered(): number {
    return this.#raw.bufferedAmount
  }

  handle(handler: SocketHandler): void {
    this.#handler = handler
  }

  pause(): void {
    this.#raw.pause()
  }

  resume(): void {
    this.#raw.resume()
  }

  ping(): void {
    this.#raw.ping()
  }

  close(code: number, reason: string): void {
    this.#raw.close(code, reason)
  }

  terminate(): void {
    this.#raw.terminate()
  }
}
