/**
 * The uplink: one home link to a relay that is there again by itself when it was lost. It admits,
 * pings, notices a dead relay within five seconds, comes back with jitter, and claims the same
 * endpoints again, so that a URL outlives its link.
 */
import type { Timer } from '../core/clock.ts'
import { asTunnelError, TunnelError } from '../core/errors.ts'
import {
  decodeFrame,
  decodeJson,
  decodeNotice,
  decodeRestarting,
  encodeFrame,
  encodeJson,
  FRAME,
} from '../core/frame.ts'
import type { Frame } from '../core/frame.ts'
import { Mux } from '../core/mux.ts'
import type { Stream } from '../core/mux.ts'
import type { Socket, SocketHandler } from '../core/socket.ts'
import { openLink } from './link.ts'
import type { Link, LinkPorts } from './link.ts'

/** A ping goes out when nothing was heard for so long. */
const PING_MS = 2000
/** Nothing heard for so long: the relay is dead. With the check's own period this stays within 5 s. */
const DEAD_MS = 4300
const CHECK_MS = 500
/** Full jitter between nothing and a bound that doubles (AWS Architecture Blog, 2015). */
const RETRY_MS_MIN = 200
const RETRY_MS_MAX = 30_000
/** Up for so long: the next loss starts from the short waits again. */
const SETTLED_MS = 30_000
/** Wall clock ahead of the monotonic one by so much: the machine slept. */
const JUMP_MS = 5000
const REQUEST_MS_MAX = 10_000
const REQUESTS_MAX = 64

/** Close codes after which coming back would not help; docs/protocol.md, "Links". */
const FATAL = new Set([4401, 4403])
/** Errors of a claim that the next link may not meet. */
const PASSING = /^(uplink|hub|quota|relay\/fault|store)/

/** One admitted link with its streams: what bulk links and tunnels need to know. */
export interface Up extends Link {
  mux: Mux
}

export type UplinkState =
  | { kind: 'connecting'; attempt: number }
  | { kind: 'up'; up: Up }
  /** `silent`: nobody closed the link, so what else leads to that relay is dead as well. */
  | { kind: 'down'; reason: string; retryInMs: number; silent: boolean }
  | { kind: 'refused'; error: TunnelError }

export interface UplinkPorts extends LinkPorts {
  /** Before each up: endpoints are claimed, the passport is published. */
  admitted(up: Up): Promise<void>
  onState(state: UplinkState): void
  onNotice(notice: { code: string; message: string }): void
  onOpen(stream: Stream, up: Up): void
}

interface Pending {
  resolve(reply: Record<string, unknown>): void
  reject(error: TunnelError): void
  timer: Timer
}

export class Uplink {
  readonly #ports: UplinkPorts
  readonly #pending = new Map<number, Pending>()
  #nextRequest = 1
  #socket: Socket | undefined
  #up: Up | undefined
  #closed = false
  #attempt = 0
  #upSinceMs = 0
  #heardMs = 0
  #pingedMs = 0
  #retry: Timer | undefined
  #check: Timer | undefined
  #skewMs: number
  #spreadMs: number | undefined
  #lastNotice: { code: string; message: string } | undefined

  constructor(ports: UplinkPorts) {
    this.#ports = ports
    this.#skewMs = ports.clock.now() - ports.clock.monotonic()
  }

  get up(): Up | undefined {
    return this.#up
  }

  start(): void {
    this.#watch()
    void this.#connect()
  }

  /** Ends the link and never comes back. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#retry?.cancel()
    this.#check?.cancel()
    this.#socket?.close(1000, 'done')
    this.#drop(new TunnelError('uplink/closed', 'Cannot go on: the uplink was closed'))
  }

  /** Asks the relay. Throws its error, `uplink/down` without a link, `uplink/timeout`. */
  request(body: object): Promise<Record<string, unknown>> {
    return new Promise((resolve, reject) => {
      if (!this.#socket || !this.#up) {
        reject(new TunnelError('uplink/down', 'Cannot ask the relay: there is no link to it'))
        return
      }
      if (this.#pending.size >= REQUESTS_MAX) {
        reject(
          new TunnelError('uplink/busy', `Cannot ask the relay: ${REQUESTS_MAX} questions wait`),
        )
        return
      }
      const id = this.#nextRequest
      this.#nextRequest = id === 0xffff_ffff ? 1 : id + 1
      const timer = this.#ports.clock.after(REQUEST_MS_MAX, () => {
        this.#pending.delete(id)
        reject(new TunnelError('uplink/timeout', 'Cannot get an answer from the relay in 10 s'))
      })
      this.#pending.set(id, { resolve, reject, timer })
      this.#socket.send(encodeFrame('request', id, encodeJson(body)))
    })
  }

  async #connect(): Promise<void> {
    const ports = this.#ports
    ports.onState({ kind: 'connecting', attempt: this.#attempt })
    try {
      const socket = await openLink(ports, {
        role: 'home',
        target: ports.identity.public,
        admitted: (link) => this.#admitted(link),
        ended: ({ code, reason, error }) => {
          this.#socket = undefined
          // A relay that refuses, or is not the one that was pinned, would do so again.
          if (error && (FATAL.has(code) || code === 4400)) this.#broken(error)
          else this.#lost(error?.message ?? (reason || `closed with ${code}`))
        },
      })
      if (this.#closed) socket.terminate()
      else this.#socket ??= socket
    } catch (error) {
      this.#lost(asTunnelError(error, 'uplink/unreachable').message)
    }
  }

  #admitted(link: Link): SocketHandler {
    const ports = this.#ports
    const { socket } = link
    const fail = (error: TunnelError): void => {
      socket.close(4400, error.code)
      if (this.#up === up) this.#lost(error.message)
    }
    const mux: Mux = new Mux({
      side: 'agent',
      clock: ports.clock,
      windowMaxBytes: link.welcome.window,
      send: (frame) => socket.send(frame),
      buffered: () => socket.buffered(),
      onOpen: (stream) => ports.onOpen(stream, up),
      onProtocolError: fail,
    })
    const up: Up = { ...link, mux }
    this.#socket = socket
    this.#up = up
    this.#heardMs = ports.clock.monotonic()
    ports.admitted(up).then(
      () => {
        if (this.#up !== up) return
        this.#upSinceMs = ports.clock.monotonic()
        ports.onState({ kind: 'up', up })
      },
      (error) => {
        if (this.#up !== up) return
        const family = asTunnelError(error, 'uplink/claim')
        if (PASSING.test(family.code)) fail(family)
        else this.#broken(family)
      },
    )
    return {
      message: (message) => {
        this.#heardMs = ports.clock.monotonic()
        try {
          this.#receive(decodeFrame(message))
        } catch (error) {
          fail(asTunnelError(error, 'uplink/protocol'))
        }
      },
      drain: () => mux.drain(),
      alive: () => this.#alive(),
      closed: (code, reason) => {
        if (this.#up === up) this.#ended(code, reason)
      },
    }
  }

  #receive(frame: Frame): void {
    const up = this.#up
    switch (frame.type) {
      case FRAME.reply: {
        const pending = this.#pending.get(frame.id)
        if (!pending) return
        this.#pending.delete(frame.id)
        pending.timer.cancel()
        const reply = decodeJson(frame.payload)
        if (reply['ok'] === true) pending.resolve(reply)
        else pending.reject(refusal(reply['error']))
        return
      }
      case FRAME.ping:
        this.#socket?.send(encodeFrame('pong', 0, frame.payload))
        return
      case FRAME.notice:
        this.#lastNotice = decodeNotice(frame.payload)
        this.#ports.onNotice(this.#lastNotice)
        return
      case FRAME.restarting:
        this.#spreadMs = Math.min(decodeRestarting(frame.payload).reconnectInMs, RETRY_MS_MAX)
        return
      case FRAME.pong:
        return
      default:
        up?.mux.receive(frame)
    }
  }

  #alive(): void {
    const now = this.#ports.clock.monotonic()
    this.#heardMs = now
    if (this.#pingedMs > 0) {
      this.#up?.mux.rtt(now - this.#pingedMs)
      this.#pingedMs = 0
    }
  }

  /** Looks twice a second for a silent relay and for a clock that jumped. */
  #watch(): void {
    const { clock } = this.#ports
    this.#check = clock.after(CHECK_MS, () => {
      if (this.#closed) return
      const now = clock.monotonic()
      const skewMs = clock.now() - now
      const slept = skewMs - this.#skewMs > JUMP_MS
      this.#skewMs = skewMs
      if (slept) this.#woke()
      else if (this.#up) {
        const quietMs = now - this.#heardMs
        if (quietMs > DEAD_MS) {
          this.#socket?.terminate()
          this.#lost('the relay does not answer', { silent: true })
        } else if (quietMs >= PING_MS && this.#pingedMs === 0) {
          this.#pingedMs = now
          this.#socket?.ping?.()
        }
      }
      this.#watch()
    })
  }

  #woke(): void {
    this.#attempt = 0
    if (this.#socket) {
      this.#socket?.terminate()
      this.#lost('the machine slept', { retryMs: 0, silent: true })
    } else if (this.#retry) {
      this.#retry.cancel()
      this.#retry = undefined
      void this.#connect()
    }
  }

  #ended(code: number, reason: string): void {
    if (this.#closed) return
    if (FATAL.has(code)) {
      const notice = this.#lastNotice
      this.#broken(
        new TunnelError(
          (notice?.code ?? 'uplink/refused') as `${string}/${string}`,
          `Cannot stay on the relay: ${
            notice?.message ?? `it closed the link with ${code} ${reason}`
          }`,
          notice?.code === 'relay/revoked' ? { hint: 'Log in again: sotto login RELAY' } : {},
        ),
      )
    } else this.#lost(reason || (code === 1006 ? 'the connection was lost' : `closed with ${code}`))
  }

  /** An error that coming back would repeat is told once and ends the uplink. */
  #broken(error: TunnelError): void {
    if (this.#closed) return
    this.#closed = true
    this.#check?.cancel()
    this.#retry?.cancel()
    this.#socket?.close(1000, 'done')
    this.#drop(error)
    this.#ports.onState({ kind: 'refused', error })
  }

  #lost(
    reason: string,
    { retryMs, silent = false }: { retryMs?: number; silent?: boolean } = {},
  ): void {
    if (this.#closed || this.#retry) return
    this.#drop(new TunnelError('uplink/down', `Cannot ask the relay: ${reason}`))
    const { clock, crypto } = this.#ports
    if (this.#upSinceMs > 0 && clock.monotonic() - this.#upSinceMs > SETTLED_MS) this.#attempt = 0
    this.#upSinceMs = 0
    const bound = Math.min(RETRY_MS_MAX, RETRY_MS_MIN * 2 ** Math.min(this.#attempt, 8))
    const [a, b] = crypto.randomBytes(2)
    const jitter = RETRY_MS_MIN / 2 + ((a! * 256 + b!) / 65_536) * bound
    const retryInMs = retryMs ?? this.#spreadMs ?? Math.round(Math.min(jitter, RETRY_MS_MAX))
    this.#spreadMs = undefined
    this.#attempt++
    this.#retry = clock.after(retryInMs, () => {
      this.#retry = undefined
      void this.#connect()
    })
    this.#ports.onState({ kind: 'down', reason, retryInMs, silent })
  }

  #drop(error: TunnelError): void {
    const up = this.#up
    this.#up = undefined
    this.#socket = undefined
    this.#pingedMs = 0
    up?.mux.close()
    for (const pending of this.#pending.values()) {
      pending.timer.cancel()
      pending.reject(error)
    }
    this.#pending.clear()
  }
}

function refusal(error: unknown): TunnelError {
  const { code, message, hint } = (error ?? {}) as Record<string, unknown>
  return new TunnelError(
    typeof code === 'string' && code.includes('/')
      ? (code as `${string}/${string}`)
      : 'relay/refused',
    typeof message === 'string' ? message.slice(0, 500) : 'The relay refused without a reason',
    typeof hint === 'string' ? { hint: hint.slice(0, 500) } : {},
  )
}
