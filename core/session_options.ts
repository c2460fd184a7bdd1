/**
 * What a session is made with, what it tells, and how it ends. core/session.ts.
 */
import type { Clock } from './clock.ts'
import type { Crypto } from './crypto.ts'
import type { EnvelopeReader } from './envelope.ts'
import { TunnelError } from './errors.ts'
import { RESET, resetName } from './frame.ts'
import type { Identity } from './key.ts'
import type { Stream } from './mux.ts'
import type { Role, Split, Suite } from './noise.ts'
import type { SessionPeer } from './opening.ts'
import type { Conn } from './socket.ts'
import type { TranscriptEvent } from './transcript.ts'

// Specification constants.
/** A session without a carrier ends after so long. */
export const LOST_MS = 60_000
/** Carriers in a row, each within `LOST_MS` of the one before, on which something was forged. */
export const SPOILED_CARRIERS_MAX = 4
/** A stream may be opened while there is no carrier, and waits for its answer so much longer. */
export const OPEN_TIMEOUT_MS = LOST_MS + 5000

/** How long an end is waited for, and how long the last bytes may take to leave. */
export const CLOSE_MS = 5000

// Our own choice.
/** On a carrier that is held: more than any port has on its way when paused. */
export const HELD_BYTES_MAX = 1_048_576

export type SessionState = 'opening' | 'open' | 'waiting' | 'closing' | 'closed'

/** How a session ended; all went well where `error` is absent. */
export interface SessionEnd {
  /** A code of RESET, 0 for done. */
  code: number
  reason: string
  /** True when the peer ended it. */
  remote: boolean
  /** `session/lost`, `session/forged`, `session/refused` and so on, `transcript/*`, `mux/*`. */
  error?: TunnelError
}

export interface SessionEvents {
  /** The peer opened a stream of this service: accept it or reset it within 5 s. */
  onOpen(stream: Stream): void
  /** The session lost its carrier ('waiting', and what was wrong with it) or has another ('open'). */
  onState?: ((state: SessionState, error?: TunnelError) => void) | undefined
  /** What a trail keeps (§12). */
  onTranscript?: ((event: TranscriptEvent) => void) | undefined
  /** Last event. */
  closed(end: SessionEnd): void
}

export interface SessionLimits {
  /** As in MuxOptions. */
  windowMaxBytes?: number
  windowSumBytesMax?: number
  streamsMax?: number
}

export interface SessionOptions extends SessionEvents {
  crypto: Crypto
  clock: Clock
  role: Role
  suite: Suite
  identity: Identity
  service: string
  split: Split
  peer: SessionPeer
  /** Where the responder can be reached again, 16 bytes. */
  group: Uint8Array
  limits?: SessionLimits | undefined
  owner: SessionOwner
}

/** What a session asks of the file that made it. */
export interface SessionOwner {
  /** Responder: `ready` came; nothing else is read before `admit` or `close`. */
  ready?(): void
  /** The carrier is gone. */
  lost?(): void
  /** Responder: the peer named a packet channel. */
  channel?(channel: Uint8Array): void
  /** Before the owner of the session is told: it ended. */
  gone(end: SessionEnd): void
}

/** What a session goes over now. */
export interface Carrier {
  conn: Conn
  reader: EnvelopeReader
  /** The number of the next record that it brings. */
  number: number
  /** It answered 'queued' and owes a drain. */
  blocked: boolean
}

/** No carrier came in time. */
export function lostEnd(cause?: TunnelError): SessionEnd {
  const found = 'found no other carrier for it in time'
  const error = new TunnelError('session/lost', `Cannot keep the session: ${found}`, {
    hint: 'Open a new one.',
    ...(cause && { cause }),
  })
  return { code: RESET.gone, reason: 'lost', remote: false, error }
}

/** Why it ended, for whoever waited for something else. */
export function endError({ code, reason, error }: SessionEnd): TunnelError {
  const name = code === 0 ? 'closed' : resetName(code) ?? 'closed'
  const why = reason === '' ? '' : `: ${reason}`
  return error ??
    new TunnelError(`session/${name}`, `Cannot use the session: found it ended, ${name}${why}`)
}

/** A record that has no place where it came. */
export function outOfOrder(type: number): TunnelError {
  return new TunnelError('session/order', `Cannot take a record of type ${type}: found it here`)
}

/** Nobody forges on an honest way: a few carriers in a row, and it will not stop. */
export class SpoiledCarriers {
  #count = 0
  #lastMs = -Infinity

  isOneTooMany(nowMs: number): boolean {
    this.#count = nowMs - this.#lastMs < LOST_MS ? this.#count + 1 : 1
    this.#lastMs = nowMs
    return this.#count >= SPOILED_CARRIERS_MAX
  }
}

/** Those who wait to hear whether a session was let in. */
export class Admission {
  #agreed = false
  #waiting: { resolve(): void; reject(error: TunnelError): void }[] = []

  get agreed(): boolean {
    return this.#agreed
  }

  wait(ended: SessionEnd | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#agreed) resolve()
      else if (ended) reject(endError(ended))
      else this.#waiting.push({ resolve, reject })
    })
  }

  agree(): void {
    this.#agreed = true
    for (const { resolve } of this.#waiting.splice(0)) resolve()
  }

  refuse(end: SessionEnd): void {
    for (const { reject } of this.#waiting.splice(0)) reject(endError(end))
  }
}

type WaitingName = 'data' | 'control' | 'commitment'

/** What is to be sealed in its turn: frames, and hashes of contents to commit to. */
export class Waiting {
  #list: { name: WaitingName; content: Uint8Array }[] = []
  #bytes = 0

  get length(): number {
    return this.#list.length
  }

  get bytes(): number {
    return this.#bytes
  }

  push(name: WaitingName, content: Uint8Array): void {
    this.#list.push({ name, content })
    this.#bytes += content.length
  }

  shift(): { name: WaitingName; content: Uint8Array } | undefined {
    const first = this.#list.shift()
    this.#bytes -= first?.content.length ?? 0
    return first
  }

  clear(): void {
    this.#list = []
    this.#bytes = 0
  }
}
