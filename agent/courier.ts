/**
 * Messages on their way out: finds whoever is meant, keeps one session with each, and sends again
 * under the same id what may not have arrived. Nobody is sent to who is not trusted.
 */
import { encodeRequest, sendMessage } from './a2a.ts'
import type { AnswerSink, MessageResult } from './a2a.ts'
import { trustedBy } from './directory.ts'
import type { Directory, SeenAgent } from './directory.ts'
import { MESSAGE_SERVICE } from './inbox.ts'
import { isPinOf } from './known_agents.ts'
import type { KnownAgents } from './known_agents.ts'
import { isPassing } from './peers.ts'
import type { OpenedSession, Peers } from './peers.ts'
import { hex } from '../core/bytes.ts'
import type { Clock, Timer } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { asTunnelError, isTunnelError, TunnelError } from '../core/errors.ts'
import { RESET } from '../core/frame.ts'
import type { Stream } from '../core/mux.ts'

/** Between two tries. */
const RETRY_MS_MIN = 500
const RETRY_MS_MAX = 10_000
/** A session over which nothing goes is closed. */
const IDLE_MS = 60_000
const ID_BYTES = 16

export interface Parcel {
  /** 16 bytes in hex. */
  id: string
  bytes?: number | undefined
  exec?: boolean
  /** The message, once for each try. */
  body(): AsyncIterable<Uint8Array> | Iterable<Uint8Array>
  /** False where `body` can be asked for once alone. */
  repeatable: boolean
}

export interface SendOptions {
  sink: AnswerSink
  /** How long to wait for a peer that is away; default 0. */
  waitMs?: number
  /** From the first try that reached the peer to the result. */
  timeoutMs: number
  signal?: AbortSignal | undefined
}

export interface Delivery extends MessageResult {
  peer: OpenedSession['peer']
}

export interface CourierPorts {
  clock: Clock
  crypto: Crypto
  peers: Pick<Peers, 'open' | 'openTo'>
  directory: Directory
  known: KnownAgents
}

interface Held {
  opened: Promise<OpenedSession>
  sending: number
  idle: Timer | undefined
}

export class Courier {
  readonly #ports: CourierPorts
  readonly #sessions = new Map<string, Held>()

  constructor(ports: CourierPorts) {
    this.#ports = ports
  }

  /** An id that no other message has. */
  newId(): string {
    return hex(this.#ports.crypto.randomBytes(ID_BYTES))
  }

  /**
   * Sends to a name, `scope.name`, a pin's name, a KEY or a fingerprint, or to a trusted agent that
   * was listed. Throws `trust/…`, `session/refused`, `a2a/timeout` (nothing is known then of what
   * has been sent), `a2a/away`, `a2a/broken`, `a2a/stopped`, and what opening throws.
   */
  async send(to: string | SeenAgent, parcel: Parcel, options: SendOptions): Promise<Delivery> {
    const { clock } = this.#ports
    const { waitMs = 0, timeoutMs, signal } = options
    const start = clock.monotonic()
    let reachedMs: number | undefined
    for (let attempt = 0;; attempt++) {
      const lateMs = (): number => reachedMs === undefined ? start + waitMs : reachedMs + timeoutMs
      try {
        return await this.#try(to, parcel, {
          ...options,
          reached: () => (reachedMs ??= clock.monotonic()) + timeoutMs - clock.monotonic(),
        })
      } catch (error) {
        const family = asTunnelError(error, 'a2a/fault')
        if (signal?.aborted) throw stopped()
        const again = isCut(family) || (isPassing(family) && !family.code.startsWith('stream/'))
        if (!again || (reachedMs !== undefined && !parcel.repeatable)) throw family
        const pauseMs = Math.min(RETRY_MS_MAX, RETRY_MS_MIN * 1.6 ** attempt)
        if (clock.monotonic() + pauseMs > lateMs()) {
          if (reachedMs !== undefined || waitMs === 0) throw family
          throw new TunnelError('a2a/away', `Cannot deliver in time: ${family.message}`, {
            cause: family,
          })
        }
        await this.#pause(pauseMs, signal)
      }
    }
  }

  close(): void {
    for (const { opened, idle } of this.#sessions.values()) {
      idle?.cancel()
      opened.then(({ session }) => session.close(), () => {})
    }
    this.#sessions.clear()
  }

  async #try(
    to: string | SeenAgent,
    parcel: Parcel,
    { sink, signal, reached }: SendOptions & { reached(): number },
  ): Promise<Delivery> {
    const { clock } = this.#ports
    const held = this.#hold(to)
    held.sending++
    held.idle?.cancel()
    let stream: Stream | undefined
    const stop = (): void => stream?.reset(RESET.aborted)
    let timer: Timer | undefined
    let isLate = false
    try {
      const { session, peer } = await held.opened
      if (signal?.aborted) throw stopped()
      const { id, bytes, exec } = parcel
      const request = { id, ...(bytes === undefined ? {} : { bytes }), ...(exec ? { exec } : {}) }
      stream = session.open(encodeRequest(request))
      signal?.addEventListener('abort', stop, { once: true })
      timer = clock.after(Math.max(0, reached()), () => {
        isLate = true
        stream!.reset(RESET.timeout)
      })
      return { ...await sendMessage(stream, parcel.body(), sink, session), peer }
    } catch (error) {
      if (!isLate) throw error
      throw new TunnelError('a2a/timeout', 'Cannot tell what became of the message: no result', {
        hint: 'It may have been taken. --timeout allows more.',
        cause: error,
      })
    } finally {
      timer?.cancel()
      signal?.removeEventListener('abort', stop)
      held.sending--
      if (held.sending === 0) this.#idle(to, held)
    }
  }

  #hold(to: string | SeenAgent): Held {
    const name = typeof to === 'string' ? to : to.key
    const before = this.#sessions.get(name)
    if (before) return before
    const forget = (): void => {
      if (this.#sessions.get(name) !== held) return
      held.idle?.cancel()
      this.#sessions.delete(name)
    }
    const held: Held = { opened: this.#open(to, forget), sending: 0, idle: undefined }
    this.#sessions.set(name, held)
    held.opened.catch(forget)
    return held
  }

  #idle(to: string | SeenAgent, held: Held): void {
    const name = typeof to === 'string' ? to : to.key
    if (this.#sessions.get(name) !== held) return
    held.idle = this.#ports.clock.after(IDLE_MS, () => {
      if (held.sending > 0) return
      this.#sessions.delete(name)
      held.opened.then(({ session }) => session.close(), () => {})
    })
  }

  async #open(to: string | SeenAgent, closed: () => void): Promise<OpenedSession> {
    const { peers } = this.#ports
    if (typeof to !== 'string') return await this.#openSeen(to, to.name, closed)
    if (/^SHA256:|^[a-z2-7]{52}$/.test(to)) return await this.#openKey(to, closed)
    try {
      return await peers.open(to, MESSAGE_SERVICE, { closed })
    } catch (error) {
      // A name of the relay goes before one that only this agent knows.
      if (!isTunnelError(error, 'dial/unknown') && !isTunnelError(error, 'dial/name')) throw error
      const seen = await this.#pinned(to)
      if (seen) return await this.#openSeen(seen, to, closed)
      throw await this.#helped(to, error as TunnelError)
    }
  }

  /** Whoever typed a whole KEY or fingerprint has said whom they trust. */
  async #openKey(identity: string, closed: () => void): Promise<OpenedSession> {
    const seen = await this.#ports.directory.find(identity)
    const how = { key: seen.key, how: 'manual', verified: seen.standing === 'verified' } as const
    return await this.#ports.peers.openTo(how, {
      at: `${seen.scope}.${seen.names[0]!.name}`,
      name: seen.name,
      service: MESSAGE_SERVICE,
      events: { closed },
    })
  }

  async #openSeen(seen: SeenAgent, name: string, closed: () => void): Promise<OpenedSession> {
    const trusted = trustedBy(seen)
    const endpoint = seen.names.find(({ kind }) => kind === 'agent') ?? seen.names[0]
    if (!trusted) {
      throw new TunnelError('trust/unknown', `Cannot trust "${name}": nobody here has pinned it`, {
        hint: `To trust it: sotto peers trust ${name} ${seen.key}`,
      })
    }
    if (!endpoint) {
      throw new TunnelError('dial/unknown', `Cannot reach "${name}": it shows no name`)
    }
    const at = `${seen.scope}.${endpoint.name}`
    const service = MESSAGE_SERVICE
    return await this.#ports.peers.openTo(trusted, { at, name, service, events: { closed } })
  }

  /** The agent of a pin, which may be called otherwise on the relay. */
  async #pinned(name: string): Promise<SeenAgent | undefined> {
    const { known, directory, crypto } = this.#ports
    const pins = await known.find(name)
    if (pins.length === 0) return undefined
    const { agents } = (await directory.list())!
    return agents.find((agent) =>
      agent.online && agent.names.length > 0 && pins.some((pin) => isPinOf(crypto, pin, agent.key))
    )
  }

  async #helped(words: string, error: TunnelError): Promise<TunnelError> {
    const similar = await this.#ports.directory.similar(words)
    if (similar.length === 0) return error
    return new TunnelError(error.code, error.message, {
      hint: `Did you mean ${similar.join(', ')}?`,
      cause: error,
    })
  }

  #pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve) => {
      const end = (): void => {
        timer.cancel()
        signal?.removeEventListener('abort', end)
        resolve()
      }
      const timer = this.#ports.clock.after(ms, end)
      signal?.addEventListener('abort', end, { once: true })
    })
  }
}

/** The way broke; the message may or may not have been taken, which its id decides. */
function isCut({ code }: TunnelError): boolean {
  return /^(a2a\/broken|stream\/(gone|overload)|session\/(gone|closed|unconfirmed))$/.test(code)
}

function stopped(): TunnelError {
  return new TunnelError('a2a/stopped', 'Cannot go on: it was stopped')
}
