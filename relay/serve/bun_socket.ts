/**
 * The `Socket` port over the server side of Bun's WebSockets, which alone tell what became of a
 * message, what is buffered, and when it drained.
 */
import type { Server, ServerWebSocket } from 'bun'
import type { Sent, Socket, SocketHandler } from '../../core/socket.ts'
import { FRAME_BYTES_MAX } from '../../core/frame.ts'

/** Bytes that `Bun.serve` may keep for one link before it drops a message; we close first. */
const BACKPRESSURE_BYTES_MAX = 67_108_864
/** Above so many bytes a send answers 'queued'. */
const HIGH_WATER_BYTES = 1_048_576

/** What travels with each WebSocket of `Bun.serve`. */
interface LinkData {
  key: string
  address: string
  link: BunSocket | undefined
}

/** `Socket` over Bun's server side. */
class BunSocket implements Socket {
  readonly raw: ServerWebSocket<LinkData>
  handler: SocketHandler | undefined
  waiting = false

  constructor(raw: ServerWebSocket<LinkData>) {
    this.raw = raw
  }

  send(message: Uint8Array): Sent {
    // 0: dropped, nothing of it was sent. -1: queued. Above: bytes sent.
    const sent = this.raw.sendBinary(message)
    if (sent === 0) return 'lost'
    if (sent > 0 && this.raw.getBufferedAmount() < HIGH_WATER_BYTES) return 'ok'
    this.waiting = true
    return 'queued'
  }

  buffered(): number {
    return this.raw.getBufferedAmount()
  }

  handle(handler: SocketHandler): void {
    this.handler = handler
  }

  pause(): void {
    this.raw.pause()
  }

  resume(): void {
    this.raw.resume()
  }

  close(code: number, reason: string): void {
    this.raw.close(code, reason)
  }

  terminate(): void {
    this.raw.terminate()
  }
}

/** The WebSocket half of `Bun.serve`: hands each link to `attach`. */
export function linkHandlers(
  attach: (socket: Socket, link: { key: string; address: string }) => void,
): Bun.WebSocketHandler<LinkData> {
  return {
    perMessageDeflate: false,
    maxPayloadLength: FRAME_BYTES_MAX,
    backpressureLimit: BACKPRESSURE_BYTES_MAX,
    closeOnBackpressureLimit: true,
    idleTimeout: 30,
    sendPings: false,
    open(ws) {
      const { key, address } = ws.data
      ws.data.link = new BunSocket(ws)
      attach(ws.data.link, { key, address })
    },
    message(ws, message) {
      // Binary only: a text message has no place in the protocol.
      if (typeof message === 'string') ws.close(4400, 'frame/text')
      else ws.data.link?.handler?.message(message)
    },
    drain(ws) {
      const link = ws.data.link
      if (!link?.waiting) return
      link.waiting = false
      link.handler?.drain?.()
    },
    ping: (ws) => ws.data.link?.handler?.alive?.(),
    pong: (ws) => ws.data.link?.handler?.alive?.(),
    close(ws, code, reason) {
      ws.data.link?.handler?.closed(code, reason)
    },
  }
}

export type LinkServer = Server<LinkData>
export type { LinkData }
