/**
 * The uplink: one home link to a relay that is there again by itself when it was lost. It admits,
 * pings, notices a dead relay within five seconds, comes back with jitter, and claims the same
 * endpoints again, so that a URL outlives its link.
 */
import { AgentAdmission } from '../core/admit.ts'
import type { Credential } from '../core/admit.ts'
import type { Clock, Timer } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
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
import { formatKey } from '../core/key.ts'
import type { Identity } from '../core/key.ts'
import { Mux } from '../core/mux.ts'
import type { Stream } from '../core/mux.ts'
import type { Socket } from '../core/socket.ts'

/** A ping goes out when nothing was heard for so long. */
const PING_MS = 2000
/** Nothing heard for so long: the relay is dead. With the check's own period this stays within 5 s. */
const DEAD_MS = 4300
const CHECK_MS = 500
/** From dialling to the welcome. */
const ADMIT_MS_MAX = 10_000
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

export interface Welcome {
  link: string
  scope: string
  secure: string
  apps: string
  port: number
  scheme: string
  window: number
  streams: number
  bulk: number
  can: string[]
  address: string
  version: string
}

/** One admitted link: what bulk links and tunnels need to know. */
export interface Up {
  welcome: Welcome
  bulkKey: Uint8Array
  relayKey: Uint8Array
  /** SHA-256 of the certificate that the relay served on this link, when it was TLS. */
  certificate: Uint8Array | undefined
  mux: Mux
}

export type UplinkState =
  | { kind: 'connecting'; attempt: number }
  | { kind: 'up'; up: Up }
  | { kind: 'down'; reason: string; retryInMs: number }
  | { kind: 'refused'; error: TunnelError }

export interface UplinkPorts {
  clock: Clock
  crypto: Crypto
  identity: Identity
  /** `wss://host:port`, the relay's origin. */
  relay: URL
  credential: Credential
  group16: Uint8Array
  version: string
  /** Opens a WebSocket; the certificate is that of this very connection. */
  open(url: string): Promise<{
    socket: Socket
    certificate: Uint8Array | undefined
    /** True when a CA that this machine trusts vouches for it. */
    trusted: boolean
  }>
  /** Checks the relay's identity against its pin; throws what the person should read. */
  pin(relayPublic: Uint8Array): boolean
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
      if (!this.#socket || !this.#linked) {
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

  #linked = false

  async #connect(): Promise<void> {
    const { relay, identity, onState } = this.#ports
    onState({ kind: 'connecting', attempt: this.#attempt })
    const key = formatKey(identity.public)
    try {
      const opened = await this.#ports.open(`${relay.origin.replace(/^http/, 'ws')}/v1/link/${key}`)
      if (this.#closed) return opened.socket.terminate()
      this.#socket = opened.socket
      this.#admit(opened)
    } catch (error) {
      this.#lost(asTunnelError(error, 'uplink/unreachable').message)
    }
  }

  #admit(opened: Awaited<ReturnType<UplinkPorts['open']>>): void {
    const ports = this.#ports
    const { socket } = opened
    const admission = new AgentAdmission({
      crypto: ports.crypto,
      identity: ports.identity,
      target: ports.identity.public,
      role: 'home',
      dialledName: ports.relay.hostname,
      certificate: opened.certificate,
      certificateTrusted: opened.trusted,
      pin: (relayPublic) => ports.pin(relayPublic),
      credential: ports.credential,
      group16: ports.group16,
      version: ports.version,
    })
    const late = ports.clock.after(ADMIT_MS_MAX, () => {
      socket.terminate()
      this.#lost('the relay did not finish admission in 10 s')
    })
    let step: 'challenge' | 'welcome' | 'up' = 'challenge'
    socket.handle({
      message: (message) => {
        this.#heardMs = ports.clock.monotonic()
        try {
          const frame = decodeFrame(message)
          if (step === 'up') return this.#receive(frame)
          if (frame.type === FRAME.notice) {
            this.#lastNotice = decodeNotice(frame.payload)
          } else if (step === 'challenge' && frame.type === FRAME.challenge) {
            step = 'welcome'
            socket.send(encodeFrame('admit', 0, admission.answer(frame.payload)))
          } else if (step === 'welcome' && frame.type === FRAME.welcome) {
            step = 'up'
            late.cancel()
            const finished = admission.finish(frame.payload)
            void this.#welcomed(finished, opened)
          } else {
            throw new TunnelError(
              'uplink/order',
              `Cannot accept frame type ${frame.type} during admission`,
            )
          }
        } catch (error) {
          late.cancel()
          socket.close(4400, 'protocol')
          this.#broken(asTunnelError(error, 'uplink/protocol'), step !== 'up')
        }
      },
      drain: () => this.#up?.mux.drain(),
      alive: () => this.#alive(),
      closed: (code, reason) => {
        late.cancel()
        if (socket === this.#socket) this.#ended(code, reason)
      },
    })
    socket.send(encodeFrame('hello', 0, admission.hello()))
  }

  async #welcomed(
    finished: ReturnType<AgentAdmission['finish']>,
    opened: Awaited<ReturnType<UplinkPorts['open']>>,
  ): Promise<void> {
    const ports = this.#ports
    const { socket } = opened
    const welcome = finished.welcome as unknown as Welcome
    const mux: Mux = new Mux({
      side: 'agent',
      clock: ports.clock,
      windowMaxBytes: welcome.window,
      send: (frame) => socket.send(frame),
      buffered: () => socket.buffered(),
      onOpen: (stream) => ports.onOpen(stream, up),
      onProtocolError: (error) => {
        socket.close(4400, error.code)
        this.#lost(error.message)
      },
    })
    const up: Up = {
      welcome,
      bulkKey: finished.bulkKey,
      relayKey: finished.relay,
      certificate: opened.certificate,
      mux,
    }
    this.#up = up
    this.#linked = true
    this.#heardMs = ports.clock.monotonic()
    try {
      await ports.admitted(up)
    } catch (error) {
      if (this.#up === up) this.#broken(asTunnelError(error, 'uplink/claim'), true)
      return
    }
    if (this.#up !== up) return
    this.#upSinceMs = ports.clock.monotonic()
    ports.onState({ kind: 'up', up })
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
      else if (this.#linked) {
        const quietMs = now - this.#heardMs
        if (quietMs > DEAD_MS) {
          this.#socket?.terminate()
          this.#lost('the relay does not answer')
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
    if (this.#linked || this.#socket) {
      this.#socket?.terminate()
      this.#lost('the machine slept', 0)
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
          notice?.message ?? `Cannot stay on the relay: it closed the link with ${code} ${reason}`,
        ),
        true,
      )
    } else this.#lost(reason || (code === 1006 ? 'the connection was lost' : `closed with ${code}`))
  }

  /** An error that coming back would repeat is told once and ends the uplink. */
  #broken(error: TunnelError, fatal: boolean): void {
    if (!fatal || /^(uplink\/(down|timeout|closed)|hub\/gone|relay\/fault)/.test(error.code)) {
      this.#socket?.terminate()
      return this.#lost(error.message)
    }
    this.#closed = true
    this.#check?.cancel()
    this.#retry?.cancel()
    this.#socket?.close(1000, 'done')
    this.#drop(error)
    this.#ports.onState({ kind: 'refused', error })
  }

  #lost(reason: string, retryMs?: number): void {
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
    this.#ports.onState({ kind: 'down', reason, retryInMs })
  }

  #drop(error: TunnelError): void {
    const up = this.#up
    this.#up = undefined
    this.#socket = undefined
    this.#linked = false
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
