/**
 * Visit links: this agent's links to the stars of others, one for each, opened when a stream is
 * wanted and closed when none has been for a while. A dead one is noticed as a dead home link is, so
 * that what stands on it can go on elsewhere.
 */
import type { Clock, Timer } from '../core/clock.ts'
import { equal } from '../core/bytes.ts'
import { asTunnelError, TunnelError } from '../core/errors.ts'
import { decodeFrame, encodeFrame, FRAME } from '../core/frame.ts'
import type { Visit } from '../core/frame.ts'
import { formatKey } from '../core/key.ts'
import { Mux } from '../core/mux.ts'
import type { Stream } from '../core/mux.ts'
import type { Socket, SocketHandler } from '../core/socket.ts'
import { openLink } from './link.ts'
import type { Link, LinkPorts } from './link.ts'

/** A ping goes out when nothing was heard for so long; dead at the other, within 5 s with the check. */
const PING_MS = 2000
const DEAD_MS = 4300
const CHECK_MS = 500
/** Without a stream for so long a link is closed. */
const IDLE_MS = 60_000
const VISITS_MAX = 1024

export interface VisitPorts {
  clock: Clock
  link: Omit<LinkPorts, 'pin'>
  /** The identity that the relay of the home link proved: a visit link has to be to the same. */
  relayKey(): Uint8Array | undefined
}

export class Visits {
  readonly #ports: VisitPorts
  readonly #links = new Map<string, VisitLink>()
  #closed = false

  constructor(ports: VisitPorts) {
    this.#ports = ports
  }

  get size(): number {
    return this.#links.size
  }

  /** A stream to an identity. Throws `visit/…`, and what opening a link throws. */
  async open(target: Uint8Array, visit: Omit<Visit, 'windowBytes'>): Promise<Stream> {
    if (this.#closed) throw new TunnelError('visit/closed', 'Cannot visit: this agent is closing')
    const key = formatKey(target)
    let link = this.#links.get(key)
    if (!link) {
      if (this.#links.size >= VISITS_MAX) {
        const found = `found ${this.#links.size} links to others open, expected fewer`
        throw new TunnelError('visit/limit', `Cannot visit: ${found}`)
      }
      link = new VisitLink(this.#ports, target, () => {
        if (this.#links.get(key) === link) this.#links.delete(key)
      })
      this.#links.set(key, link)
    }
    return (await link.mux).open(visit)
  }

  close(): void {
    this.#closed = true
    for (const link of [...this.#links.values()]) link.close()
  }
}

class VisitLink {
  readonly mux: Promise<Mux>
  readonly #ports: VisitPorts
  readonly #gone: () => void
  #socket: Socket | undefined
  #opened: Mux | undefined
  #over = false
  #heardMs = 0
  #pingedMs = 0
  #idleSinceMs: number
  #check: Timer | undefined

  constructor(ports: VisitPorts, target: Uint8Array, gone: () => void) {
    this.#ports = ports
    this.#gone = gone
    this.#idleSinceMs = ports.clock.monotonic()
    this.mux = new Promise((resolve, reject) => {
      const failed = (error: TunnelError): void => {
        this.#end()
        reject(error)
      }
      openLink({ ...ports.link, pin: (key) => isSame(key, ports.relayKey()) }, {
        role: 'visit',
        target,
        admitted: (link) => this.#admitted(link, resolve),
        ended: ({ reason, error }) => failed(error ?? broken(reason)),
      }).then(
        (socket) => {
          if (this.#over) socket.terminate()
          else this.#socket = socket
        },
        (error) => failed(asTunnelError(error, 'visit/link')),
      )
    })
    // Whoever waits is told; nobody may.
    this.mux.catch(() => {})
  }

  close(): void {
    this.#socket?.close(1000, 'done')
    this.#end()
  }

  #admitted({ socket, welcome }: Link, resolve: (mux: Mux) => void): SocketHandler {
    const { clock } = this.#ports
    const mux = new Mux({
      side: 'agent',
      clock,
      windowMaxBytes: welcome.window,
      send: (frame) => socket.send(frame),
      buffered: () => socket.buffered(),
      onOpen: (stream) => stream.reset(1),
      onProtocolError: (error) => {
        socket.close(4400, error.code)
        this.#end()
      },
      onEmpty: () => void (this.#idleSinceMs = clock.monotonic()),
    })
    this.#socket = socket
    this.#opened = mux
    this.#heardMs = clock.monotonic()
    if (this.#over) socket.terminate()
    else this.#watch()
    resolve(mux)
    return {
      message: (message) => {
        this.#heardMs = clock.monotonic()
        try {
          const frame = decodeFrame(message)
          if (frame.type === FRAME.ping) socket.send(encodeFrame('pong', 0, frame.payload))
          else mux.receive(frame)
        } catch (error) {
          socket.close(4400, asTunnelError(error, 'visit/protocol').code)
          this.#end()
        }
      },
      drain: () => mux.drain(),
      alive: () => {
        this.#heardMs = clock.monotonic()
        if (this.#pingedMs > 0) mux.rtt(this.#heardMs - this.#pingedMs)
        this.#pingedMs = 0
      },
      closed: () => this.#end(),
    }
  }

  #watch(): void {
    const { clock } = this.#ports
    this.#check = clock.after(CHECK_MS, () => {
      if (this.#over) return
      const now = clock.monotonic()
      const quietMs = now - this.#heardMs
      const isIdle = this.#opened!.size === 0
      if (isIdle && now - this.#idleSinceMs > IDLE_MS) return this.close()
      if (quietMs > DEAD_MS) {
        this.#socket?.terminate()
        return this.#end()
      }
      if (quietMs >= PING_MS && this.#pingedMs === 0) {
        this.#pingedMs = now
        this.#socket?.ping?.()
      }
      this.#watch()
    })
  }

  #end(): void {
    if (this.#over) return
    this.#over = true
    this.#check?.cancel()
    this.#gone()
    this.#opened?.close()
  }
}

function isSame(key: Uint8Array, expected: Uint8Array | undefined): boolean {
  return expected !== undefined && equal(key, expected)
}

function broken(reason: string): TunnelError {
  return new TunnelError('visit/link', `Cannot open a visit link: ${reason || 'it was closed'}`)
}
