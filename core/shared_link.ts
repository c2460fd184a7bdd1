/**
 * A shared bulk link: one raw connection that carries many visitors of raw ports as streams of
 * core/mux.ts, with the frames of a home link and writes in batches (core/batch_socket.ts). A request of
 * many visitors at once costs both ends half of what a connection for each does: the writes and reads of
 * a turn become one. It belongs to the home link whose ticket opened it. docs/protocol.md §6.
 *
 * The relay speaks first, with a ping; until then the agent is silent. Each end pings when nothing was
 * heard for `LOOK_MS` and ends the link when nothing is heard for as long again.
 */
import { BatchSocket } from './batch_socket.ts'
import type { BatchPorts } from './batch_socket.ts'
import type { Clock, Timer } from './clock.ts'
import { asTunnelError, TunnelError } from './errors.ts'
import { decodeFrame, encodeFrame, FRAME, FRAME_HEADER_BYTES, frameId } from './frame.ts'
import type { Visit } from './frame.ts'
import { Mux } from './mux.ts'
import type { MuxOptions, Stream } from './mux.ts'
import type { Conn, SocketHandler } from './socket.ts'

/** How often life is looked for. */
export const LOOK_MS = 10_000
const PING_BYTES = 8

export interface SharedLinkPorts extends Pick<MuxOptions, 'side'> {
  /** The most that a stream's receive window grows to. */
  windowMaxBytes: number
  clock: Clock
  later: BatchPorts['later']
  onOpen(stream: Stream): void
  /** Once: the connection is gone, and every stream with it. `error` where the peer broke the protocol. */
  onClosed(error: TunnelError | undefined): void
}

export class SharedLink implements SocketHandler {
  readonly #ports: SharedLinkPorts
  readonly #socket: BatchSocket
  readonly #mux: Mux
  #look: Timer | undefined
  #messages = 0
  /** How many messages had come at the last look, and when somebody doubted. */
  #looked = 0
  #doubted = 0
  #pingedMs: number | undefined
  #error: TunnelError | undefined
  #over = false

  /** Behind the ticket, which the agent has written and the relay has read. */
  constructor(conn: Conn, ports: SharedLinkPorts) {
    this.#ports = ports
    const socket = new BatchSocket(conn, ports)
    this.#socket = socket
    this.#mux = new Mux({
      side: ports.side,
      clock: ports.clock,
      windowMaxBytes: ports.windowMaxBytes,
      send: (frame) => socket.send(frame),
      sendData: (id, payload) => socket.sendFrame('data', id, payload),
      buffered: () => socket.buffered(),
      onOpen: (stream) => ports.onOpen(stream),
      onProtocolError: (error) => this.#end(error),
    })
    socket.handle(this)
    if (ports.side === 'relay') this.#ping()
    this.#lookLater()
  }

  /** Streams on it. */
  get size(): number {
    return this.#mux.size
  }

  /** Messages that have come. */
  get heard(): number {
    return this.#messages
  }

  /** True while the other end is known to listen: it has spoken, since somebody doubted it. */
  get ready(): boolean {
    return !this.#over && this.#messages > this.#doubted
  }

  /** Throws as `Mux.open` does. */
  open(visit: Omit<Visit, 'windowBytes'>): Stream {
    return this.#mux.open(visit)
  }

  /** A stream was not answered in time: nothing more is opened until something is heard. */
  doubt(): void {
    this.#doubted = this.#messages
  }

  /** Drops the connection; every stream ends with `gone`. */
  close(): void {
    this.#end(undefined)
  }

  message(message: Uint8Array): void {
    if (this.#over) return
    // The agent asks back with its own ping, for the round trip.
    if (this.#messages++ === 0 && this.#ports.side === 'agent') this.#ping()
    if (message[0] === FRAME.data && message.length > FRAME_HEADER_BYTES) {
      const id = frameId(message)
      if (id !== 0) {
        this.#mux.receiveData(id, message.subarray(FRAME_HEADER_BYTES))
        return
      }
    }
    try {
      this.#receive(message)
    } catch (error) {
      this.#end(asTunnelError(error, 'shared/fault'))
    }
  }

  drain(): void {
    this.#mux.drain()
  }

  closed(_code: number, reason: string): void {
    this.#end(reason === '' ? undefined : new TunnelError('shared/lost', `Cannot go on: ${reason}`))
    this.#ports.onClosed(this.#error)
  }

  #receive(message: Uint8Array): void {
    const frame = decodeFrame(message)
    if (frame.type === FRAME.ping) {
      this.#socket.send(encodeFrame('pong', 0, frame.payload))
    } else if (frame.type === FRAME.pong) {
      if (this.#pingedMs !== undefined) {
        this.#mux.rtt(this.#ports.clock.monotonic() - this.#pingedMs)
      }
      this.#pingedMs = undefined
    } else if (!this.#mux.receive(frame)) {
      throw new TunnelError('shared/order', `Cannot accept frame type ${frame.type} here`)
    }
  }

  #ping(): void {
    this.#pingedMs = this.#ports.clock.monotonic()
    this.#socket.send(encodeFrame('ping', 0, new Uint8Array(PING_BYTES)))
  }

  #lookLater(): void {
    this.#look = this.#ports.clock.after(LOOK_MS, () => {
      const silent = this.#messages === this.#looked
      this.#looked = this.#messages
      // Of an agent that never heard its relay, the ticket went astray.
      if (silent && (this.#pingedMs !== undefined || this.#messages === 0)) {
        return this.#end(new TunnelError('shared/silent', 'Cannot go on: the peer does not answer'))
      }
      if (silent) this.#ping()
      this.#lookLater()
    })
  }

  #end(error: TunnelError | undefined): void {
    if (this.#over) return
    this.#over = true
    this.#error = error
    this.#look?.cancel()
    this.#mux.close()
    this.#socket.terminate()
  }
}
