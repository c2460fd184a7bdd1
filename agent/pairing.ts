/**
 * Pairing by a code over a relay: one side makes a room and shows its number with three words, the
 * other enters it by them. What passes in between is core/pairing.ts; here are the room, the streams
 * and the time that each step may take. docs/protocol.md §13.
 */
import { fromHex } from '../core/bytes.ts'
import type { Clock, Timer } from '../core/clock.ts'
import { formatCode, makeWords } from '../core/code.ts'
import type { Code } from '../core/code.ts'
import type { Crypto } from '../core/crypto.ts'
import { asTunnelError, TunnelError } from '../core/errors.ts'
import { RESET } from '../core/frame.ts'
import { parseKey } from '../core/key.ts'
import type { Stream } from '../core/mux.ts'
import { PAIR_STEP_MS_MAX, PairingError, PairJoiner, PairMaker } from '../core/pairing.ts'
import type { PairedPeer, PairingOptions } from '../core/pairing.ts'
import type { Conn } from '../core/socket.ts'
import type { Presence } from './presence.ts'
import type { Joining } from './join.ts'

/** Streams that may come to one room; the relay lets no more in. */
const ENTRIES_MAX = 3
/** What the last bytes may take to arrive before the link is closed. */
const LAST_MS_MAX = 2000
const TOKEN_BYTES = 16

export interface PairPorts {
  clock: Clock
  crypto: Crypto
  presence: Pick<Presence, 'agent' | 'visits'>
  joining: Pick<Joining, 'identity'>
  /** Under which the other side may keep us. */
  name: string
}

/** A code that is shown, and the room behind it. */
export class PairRoom {
  readonly code: string
  /** Milliseconds since 1970. */
  readonly expires: number
  /** Who typed the code. Rejects with `pair/guessed`, `pair/taken`, `pair/expired`, `pair/lost`. */
  readonly paired: Promise<PairedPeer>
  readonly #ports: PairPorts
  readonly #room: number
  readonly #words: string
  readonly #late: Timer
  readonly #streams = new Set<Stream>()
  /** The one that saw our proof: from then on nobody else may. */
  #chosen: Stream | undefined
  #came = 0
  #over = false
  #settle!: { resolve(peer: PairedPeer): void; reject(error: TunnelError): void }

  /** Throws `pair/limit`, `uplink/…`. */
  static async open(ports: PairPorts): Promise<PairRoom> {
    const { room, expires } = await ports.presence.agent.uplink.request({ do: 'room' })
    if (!Number.isSafeInteger(room) || !Number.isSafeInteger(expires)) throw wrongAnswer()
    return new PairRoom(ports, { room: room as number, expires: expires as number })
  }

  private constructor(ports: PairPorts, { room, expires }: { room: number; expires: number }) {
    this.#ports = ports
    this.#room = room
    this.#words = makeWords(ports.crypto)
    this.code = formatCode(room, this.#words)
    this.expires = expires
    this.paired = new Promise((resolve, reject) => void (this.#settle = { resolve, reject }))
    this.paired.catch(() => {})
    this.#late = ports.clock.after(expires - ports.clock.now(), () => this.#fail(expired()))
  }

  /** A stream of kind `pair` came. */
  accept(stream: Stream): void {
    if (this.#over || this.#chosen || stream.visit.endpoint !== `${this.#room}`) {
      return stream.reset(RESET.refused, 'nobody waits here')
    }
    this.#came++
    stream.accept()
    this.#streams.add(stream)
    const { clock } = this.#ports
    let maker: PairMaker
    try {
      maker = new PairMaker(pairingOptions(this.#ports, { room: this.#room, words: this.#words }))
    } catch (error) {
      return this.#fail(asTunnelError(error, 'pair/refused'))
    }
    carry(stream, maker, {
      clock,
      // Only one may see our proof, which each could test one guess by.
      mayTake: () => this.#chosen === undefined || this.#chosen === stream,
      took: () => {
        if (maker.burned) this.#choose(stream)
      },
    }).then(
      (peer) => this.#finish(() => this.#settle.resolve(peer)),
      (error: TunnelError) => {
        this.#streams.delete(stream)
        if (maker.burned) this.#fail(error)
        else if (this.#came >= ENTRIES_MAX && this.#streams.size === 0) this.#fail(taken())
      },
    )
  }

  /** The link on which the room was made is gone, and the room with it. */
  lost(): void {
    if (!this.#chosen) this.#fail(lost())
  }

  /** Gives the room up; the words are worth nothing any more. */
  async close(): Promise<void> {
    this.#finish(() => this.#settle.reject(lost()))
    try {
      await this.#ports.presence.agent.uplink.request({ do: 'leave', room: this.#room })
    } catch {
      // Without a link it is gone already.
    }
  }

  #choose(stream: Stream): void {
    if (this.#chosen) return
    this.#chosen = stream
    for (const other of this.#streams) {
      if (other !== stream) other.reset(RESET.refused, 'somebody else was faster')
    }
  }

  #fail(error: TunnelError): void {
    this.#finish(() => this.#settle.reject(error))
  }

  #finish(settle: () => void): void {
    if (this.#over) return
    this.#over = true
    this.#late.cancel()
    for (const stream of this.#streams) if (!stream.isClosed) stream.end()
    settle()
  }
}

/**
 * Enters the room of a code. Throws `pair/guessed`, `pair/unknown-room`, `pair/taken`, `pair/limit`,
 * `pair/own-room`, and what core/pairing.ts throws.
 */
export async function enterRoom(ports: PairPorts, code: Code): Promise<PairedPeer> {
  const { clock, presence } = ports
  const joiner = new PairJoiner(pairingOptions(ports, code))
  const reply = await presence.agent.uplink.request({ do: 'enter', room: code.room })
  const { key, token } = reply
  if (typeof key !== 'string' || typeof token !== 'string') throw wrongAnswer()
  const target = parseKey(key)
  const tail = fromHex(token)
  if (tail.length !== TOKEN_BYTES) throw wrongAnswer()
  const endpoint = `${code.room}`
  const visit = { kind: 'pair' as const, address: '', port: 0, endpoint, tail }
  const stream = await presence.visits.open(target, visit)
  return await carry(stream, joiner, { clock, mayTake: () => true, took: () => {} })
}

function pairingOptions(ports: PairPorts, code: Code): PairingOptions {
  const { crypto, clock, presence, joining, name } = ports
  const { uplink, passport } = presence.agent
  if (!uplink.up || !passport) throw lost()
  return {
    ...code,
    crypto,
    relay: uplink.up.relayKey,
    identity: joining.identity.public,
    passport: passport.bytes,
    name,
    now: clock.now(),
  }
}

interface CarryPorts {
  clock: Clock
  /** False: what came is not even looked at. */
  mayTake(): boolean
  /** After each message was looked at, before anything is sent. */
  took(): void
}

/** Runs one side over one stream, to its end, with 10 s for each step. Throws what went wrong. */
async function carry(
  conn: Conn,
  pairing: PairMaker | PairJoiner,
  { clock, mayTake, took }: CarryPorts,
): Promise<PairedPeer> {
  let closed!: () => void
  const whenClosed = new Promise<void>((resolve) => void (closed = resolve))
  let timer: Timer | undefined
  try {
    return await new Promise<PairedPeer>((resolve, reject) => {
      const late = (): void => {
        timer?.cancel()
        timer = clock.after(PAIR_STEP_MS_MAX, () => reject(pairing.ended() ?? tooLate()))
      }
      late()
      conn.handle({
        data(chunk) {
          if (!mayTake() || pairing.done) return
          late()
          try {
            const { send, peer } = pairing.receive(chunk)
            took()
            if (send.length > 0) conn.write(send)
            if (peer) resolve(peer)
          } catch (error) {
            took()
            if (error instanceof PairingError && error.send.length > 0) conn.write(error.send)
            reject(error)
          }
        },
        end: () => reject(pairing.ended() ?? tooLate()),
        closed: () => {
          reject(pairing.ended() ?? tooLate())
          closed()
        },
      })
      if (pairing instanceof PairMaker) conn.write(pairing.start())
    })
  } finally {
    timer?.cancel()
    // The last word must have left before whoever called closes the link.
    conn.end()
    await Promise.race([
      whenClosed,
      new Promise<void>((resolve) => void clock.after(LAST_MS_MAX, resolve)),
    ])
  }
}

function wrongAnswer(): TunnelError {
  return new TunnelError('pair/answer', 'Cannot pair: the relay gave an answer that is none')
}

function expired(): TunnelError {
  return new TunnelError('pair/expired', 'Cannot pair: nobody typed the code in time', {
    hint: 'Make a new one with: sotto pair',
  })
}

function taken(): TunnelError {
  return new TunnelError(
    'pair/taken',
    'Cannot pair: three came into the room and left without trying the code',
    { hint: 'Somebody may be in your way. Make a new code with: sotto pair' },
  )
}

function lost(): TunnelError {
  return new TunnelError(
    'pair/lost',
    'Cannot pair: the link to the relay, and the code, are gone',
    {
      hint: 'Make a new one with: sotto pair',
    },
  )
}

function tooLate(): TunnelError {
  return new TunnelError('pair/timeout', 'Cannot pair: the other side did not answer in time', {
    hint: 'Try again with a new code.',
  })
}
