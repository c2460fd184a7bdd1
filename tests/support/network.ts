/**
 * A network that stands still: two message sockets joined by a simulated way of stated delay,
 * jitter, bandwidth and stalls, on a `ManualClock`. What happens follows from the seed alone.
 * Messages arrive whole and in order, as on a WebSocket.
 */
import type { ManualClock, Timer } from '../../core/clock.ts'
import type { Sent, Socket, SocketHandler } from '../../core/socket.ts'

export interface NetworkOptions {
  clock: ManualClock
  seed: number
  /** One way. */
  delayMs?: number
  /** Added to the delay of each message, from 0 to this. */
  jitterMs?: number
  /** In each direction; default without limit. */
  bytesPerMs?: number
  /** Chance that a direction stalls before a message, for 1 to `stallMsMax`. */
  stallChance?: number
  stallMsMax?: number
  /** `send` answers 'queued' above this. */
  highWaterBytes?: number
}

/** Uniform numbers from 0 to below 1 (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed | 0
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

export class NetworkSocket implements Socket {
  peer!: NetworkSocket
  readonly #options: Required<NetworkOptions>
  readonly #random: () => number
  #handler: SocketHandler | undefined
  /** Sent and still on this machine. */
  #outgoing: Uint8Array[] = []
  #outgoingBytes = 0
  #leaving: Timer | undefined
  /** On the way to the peer. */
  #flying: { atMs: number; message: Uint8Array }[] = []
  #arriving: Timer | undefined
  #needDrain = false
  #held = false
  #closed = false
  sentMessages = 0

  constructor(options: Required<NetworkOptions>, random: () => number) {
    this.#options = options
    this.#random = random
  }

  send(message: Uint8Array): Sent {
    if (this.#closed) return 'lost'
    this.sentMessages++
    this.#outgoing.push(message.slice())
    this.#outgoingBytes += message.length
    this.#leave()
    if (this.#outgoingBytes <= this.#options.highWaterBytes) return 'ok'
    this.#needDrain = true
    return 'queued'
  }

  buffered(): number {
    return this.#outgoingBytes
  }

  handle(handler: SocketHandler): void {
    this.#handler = handler
  }

  /** Nothing leaves from here until `release`: the other end has stopped reading. */
  hold(): void {
    this.#held = true
    this.#leaving?.cancel()
    this.#leaving = undefined
  }

  release(): void {
    this.#held = false
    this.#leave()
  }

  close(code: number, reason: string): void {
    if (this.#closed) return
    for (const end of [this, this.peer]) {
      end.#closed = true
      end.#leaving?.cancel()
      end.#arriving?.cancel()
      end.#outgoing = []
      end.#flying = []
      end.#outgoingBytes = 0
      queueMicrotask(() => end.#handler?.closed(code, reason))
    }
  }

  terminate(): void {
    this.close(1006, '')
  }

  #leave(): void {
    if (this.#leaving || this.#held || this.#outgoing.length === 0 || this.#closed) return
    const { clock, bytesPerMs, stallChance, stallMsMax } = this.#options
    const stalls = this.#random() < stallChance
    const stallMs = stalls ? 1 + this.#random() * (stallMsMax - 1) : 0
    this.#leaving = clock.after(stallMs + this.#outgoing[0]!.length / bytesPerMs, () => {
      this.#leaving = undefined
      const message = this.#outgoing.shift()!
      this.#outgoingBytes -= message.length
      this.#fly(message)
      this.#leave()
      if (!this.#needDrain || this.#outgoingBytes > 0) return
      this.#needDrain = false
      this.#handler?.drain?.()
    })
  }

  #fly(message: Uint8Array): void {
    const { clock, delayMs, jitterMs } = this.#options
    const before = this.#flying.at(-1)?.atMs ?? 0
    const atMs = Math.max(before, clock.monotonic() + delayMs + this.#random() * jitterMs)
    this.#flying.push({ atMs, message })
    this.#arrive()
  }

  #arrive(): void {
    if (this.#arriving || this.#flying.length === 0 || this.#closed) return
    const { clock } = this.#options
    this.#arriving = clock.after(this.#flying[0]!.atMs - clock.monotonic(), () => {
      this.#arriving = undefined
      const { message } = this.#flying.shift()!
      this.peer.#handler?.message(message)
      this.#arrive()
    })
  }
}

export function networkSockets(options: NetworkOptions): [NetworkSocket, NetworkSocket] {
  const whole: Required<NetworkOptions> = {
    delayMs: 10,
    jitterMs: 0,
    bytesPerMs: Number.POSITIVE_INFINITY,
    stallChance: 0,
    stallMsMax: 1,
    highWaterBytes: 65_536,
    ...options,
  }
  const random = seeded(options.seed)
  const a = new NetworkSocket(whole, random)
  const b = new NetworkSocket(whole, random)
  a.peer = b
  b.peer = a
  return [a, b]
}

/** Lets everything run that waits for the next turn. */
export async function turn(): Promise<void> {
  for (let i = 0; i < 8; i++) await undefined
}

/** Moves time on by `stepMs` until `done`, and no further than `limitMs`. True when done. */
export async function runUntil(
  clock: ManualClock,
  done: () => boolean,
  options: { limitMs: number; stepMs?: number },
): Promise<boolean> {
  const until = clock.monotonic() + options.limitMs
  await turn()
  while (!done()) {
    if (clock.monotonic() >= until) return false
    clock.advance(options.stepMs ?? 1)
    await turn()
  }
  return true
}
