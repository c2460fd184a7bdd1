/**
 * Two people compare seven emoji: both run this at once, meet under a name that says whom it is for,
 * and hold one session whose secret the emoji show. core/sas.ts, docs/protocol.md §15.
 *
 * Whose fingerprint comes first in order opens the session; the other waits.
 */
import { isPinOf, pinPrint } from './known_agents.ts'
import type { KnownAgent } from './known_agents.ts'
import { isPassing } from './peers.ts'
import type { Presence } from './presence.ts'
import { EMPTY, hex } from '../core/bytes.ts'
import type { Clock, Timer } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { asTunnelError, TunnelError } from '../core/errors.ts'
import { RESET } from '../core/frame.ts'
import { fingerprint, isName, parseFingerprint } from '../core/key.ts'
import type { Identity } from '../core/key.ts'
import type { Stream } from '../core/mux.ts'
import { Sas } from '../core/sas.ts'
import type { Emoji, SasStep } from '../core/sas.ts'
import type { Session } from '../core/session.ts'

export const VERIFY_SERVICE = 'verify'
/** For the other person to start the same. */
export const MEET_MS_MAX = 120_000
/** For both to answer. */
export const ANSWER_MS_MAX = 300_000
const TRY_MS = 500
/** So many tries by name to one look through the list of agents. */
const LOOK_AROUND = 8
const PAGES_MAX = 200
const STEP_MS_MAX = 10_000
/** What the last byte may take to arrive. */
const LAST_MS_MAX = 2000
const SECRET_BYTES = 32
const NAME_BYTES = 8
const KEY_TEXT = /^[a-z2-7]{52}$/

export interface VerificationPorts {
  clock: Clock
  crypto: Crypto
  presence: Pick<Presence, 'agent' | 'peers' | 'announceNear'>
  identity: Identity
}

/** Under which an identity waits for whoever compares with it, where no other scope has that name. */
export function meetingName(print: string): string {
  return `${VERIFY_SERVICE}-${hex(parseFingerprint(print).subarray(0, NAME_BYTES))}`
}

/** One comparison, once both ends hold the session. */
export class Verification {
  /** Seven. */
  readonly emoji: Promise<readonly Emoji[]>
  /** What the other person said; rejects where there is no answer. */
  readonly peerSaid: Promise<boolean>
  /** KEY of the other end, which the session proves. */
  readonly key: string
  readonly #clock: Clock
  readonly #stream: Stream
  readonly #sas: Sas
  readonly #closed: Promise<void>
  #timer: Timer | undefined
  #shown!: { resolve(emoji: readonly Emoji[]): void; reject(error: TunnelError): void }
  #said!: { resolve(yes: boolean): void; reject(error: TunnelError): void }

  constructor(
    { clock, crypto }: Pick<VerificationPorts, 'clock' | 'crypto'>,
    { session, stream, key }: { session: Session; stream: Stream; key: string },
  ) {
    this.key = key
    this.#clock = clock
    this.#stream = stream
    const secret = session.exporter('sas', EMPTY, SECRET_BYTES)
    this.#sas = new Sas({ crypto, role: session.role, secret })
    this.emoji = new Promise((resolve, reject) => void (this.#shown = { resolve, reject }))
    this.peerSaid = new Promise((resolve, reject) => void (this.#said = { resolve, reject }))
    // Whoever waits is told; nobody may.
    this.emoji.catch(() => {})
    this.peerSaid.catch(() => {})
    this.#limit(STEP_MS_MAX)
    let closed!: () => void
    this.#closed = new Promise((resolve) => void (closed = resolve))
    stream.handle({
      data: (chunk) => this.#take(chunk),
      end: () => this.#ended(),
      closed: () => {
        this.#ended()
        closed()
      },
    })
    const first = this.#sas.start()
    if (first.length > 0) stream.write(first)
  }

  /** What the own person says, after `emoji`. */
  answer(yes: boolean): void {
    this.#stream.write(this.#sas.answer(yes))
    this.#stream.end()
  }

  /** True only when both said yes. Throws where the other end gave no answer. */
  async outcome(): Promise<boolean> {
    await this.peerSaid
    await this.sent()
    return this.#sas.verified === true
  }

  /** When the own answer has arrived, or will not: before that nobody may close the link. */
  async sent(): Promise<void> {
    await Promise.race([
      this.#closed,
      new Promise<void>((resolve) => void this.#clock.after(LAST_MS_MAX, resolve)),
    ])
  }

  /** Leaves without an answer, which the other end takes for a no. */
  close(): void {
    this.#timer?.cancel()
    if (!this.#stream.isClosed) this.#stream.reset(RESET.aborted)
  }

  #take(chunk: Uint8Array): void {
    let step: SasStep
    try {
      step = this.#sas.receive(chunk)
    } catch (error) {
      this.#fail(asTunnelError(error, 'sas/fault'))
      this.#stream.reset(RESET.protocol)
      return
    }
    if (step.send.length > 0) this.#stream.write(step.send)
    if (step.emoji) {
      this.#limit(ANSWER_MS_MAX)
      this.#shown.resolve(step.emoji)
    }
    if (step.peerAnswer !== undefined) {
      this.#timer?.cancel()
      this.#said.resolve(step.peerAnswer)
    }
  }

  #ended(): void {
    const error = this.#sas.ended()
    if (error) this.#fail(error)
  }

  #limit(ms: number): void {
    this.#timer?.cancel()
    this.#timer = this.#clock.after(ms, () => {
      this.#fail(late())
      this.close()
    })
  }

  #fail(error: TunnelError): void {
    this.#timer?.cancel()
    this.#shown.reject(error)
    this.#said.reject(error)
  }
}

/**
 * Meets whoever is behind a pin and holds one session with it. Throws `verify/away` when it does not
 * come within two minutes, and what opening a session throws.
 */
export async function meet(
  ports: VerificationPorts,
  pin: KnownAgent,
  signal: AbortSignal,
): Promise<Verification> {
  const { clock, crypto, presence, identity } = ports
  const own = fingerprint(crypto, identity.public)
  const theirs = pinPrint(crypto, pin)
  if (own < theirs) return await call(ports, { pin, at: meetingName(theirs), signal })
  let late: Timer | undefined
  try {
    return await new Promise<Verification>((resolve, reject) => {
      late = clock.after(MEET_MS_MAX, () => reject(away(pin.name)))
      signal.addEventListener('abort', () => reject(away(pin.name)), { once: true })
      presence.peers.serve(VERIFY_SERVICE, {
        // A pin is all that it takes, also one of first use: that is what comparing is for.
        needs: ({ key }) => isPinOf(crypto, pin, key),
        session: (session, { key }) => ({
          onOpen: (stream) => resolve(new Verification(ports, { session, stream, key })),
          closed: () => {},
        }),
      })
      presence.announceNear(meetingName(own)).catch(reject)
    })
  } finally {
    late?.cancel()
  }
}

async function call(
  { clock, crypto, presence }: VerificationPorts & { clock: Clock; crypto: Crypto },
  { pin, at, signal }: { pin: KnownAgent; at: string; signal: AbortSignal },
): Promise<Verification> {
  const deadlineMs = clock.monotonic() + MEET_MS_MAX
  const { how, verified } = pin
  for (let attempt = 1;; attempt++) {
    try {
      // Mostly it waits under this very name; another scope may have had it first.
      const name = attempt % LOOK_AROUND === 0
        ? await findMeeting(presence, { pin, crypto, at })
        : at
      const key = await presence.peers.find(name, (key) => isPinOf(crypto, pin, key))
      const events = { onOpen: (stream: Stream) => stream.reset(RESET.refused) }
      const trusted = { key, how, verified }
      const opened = await presence.peers.openTo(trusted, {
        at: name,
        name: pin.name,
        service: VERIFY_SERVICE,
        events,
      })
      const { session } = opened
      return new Verification({ clock, crypto }, { session, stream: session.open(), key })
    } catch (error) {
      // Refused: they are comparing with somebody else, or have pinned somebody else.
      const again = isPassing(error) ||
        asTunnelError(error, 'verify/fault').code === 'session/refused'
      if (!again || signal.aborted) throw error
      if (clock.monotonic() + TRY_MS > deadlineMs) throw away(pin.name, error)
    }
    await new Promise<void>((resolve) => {
      clock.after(TRY_MS, resolve)
      signal.addEventListener('abort', () => resolve(), { once: true })
    })
  }
}

/** A name near the usual one that an identity serves now; the usual one where it serves none. */
async function findMeeting(
  { agent }: Pick<Presence, 'agent'>,
  { pin, crypto, at }: { pin: KnownAgent; crypto: Crypto; at: string },
): Promise<string> {
  let after: string | undefined
  for (let page = 0; page < PAGES_MAX; page++) {
    const reply = await agent.uplink.request({
      do: 'agents',
      ...(after !== undefined && { after }),
    })
    for (const row of Array.isArray(reply['agents']) ? reply['agents'] : []) {
      const { key, names } = row as { key?: unknown; names?: unknown }
      if (typeof key !== 'string' || !KEY_TEXT.test(key) || !isPinOf(crypto, pin, key)) continue
      for (const { name } of Array.isArray(names) ? names as { name?: unknown }[] : []) {
        if (typeof name === 'string' && isName(name) && name.startsWith(`${at}-`)) return name
      }
    }
    if (typeof reply['next'] !== 'string' || reply['next'] === after) return at
    after = reply['next']
  }
  return at
}

function away(name: string, cause?: unknown): TunnelError {
  const why = cause === undefined ? '' : ` (${asTunnelError(cause, 'verify/away').message})`
  return new TunnelError(
    'verify/away',
    `Cannot compare with "${name}": it did not come within two minutes${why}`,
    {
      hint:
        'Both type "sotto peers verify" at the same time, each with its own name for the other. ' +
        'In different scopes names have to be shown: sotto relay grants add.',
      cause,
    },
  )
}

function late(): TunnelError {
  return new TunnelError(
    'verify/late',
    'Cannot verify: found no answer of the other side in time',
    {
      hint: 'Nothing was changed. Both may start again.',
    },
  )
}
