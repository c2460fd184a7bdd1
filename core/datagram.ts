/**
 * Datagrams of a session: each is sealed by itself, may be lost, and is taken at most once.
 *
 *   counter     8   from 0 in each direction, never twice, whatever carries the datagrams
 *   ciphertext
 *   tag         16
 *
 * Every 2^24 counters are an epoch with a key of its own, each made from the one before, so that
 * what was received long ago cannot be read with today's keys. docs/protocol.md §11.
 */
import { EMPTY } from './bytes.ts'
import { TunnelError } from './errors.ts'
import type { CipherState } from './noise.ts'
import { ReplayWindow } from './replay.ts'
import type { Sent } from './socket.ts'

// Specification constants.
export const DATAGRAM_COUNTER_BYTES = 8
export const DATAGRAM_OVERHEAD_BYTES = DATAGRAM_COUNTER_BYTES + 16
/** Most that one sealed datagram is, and most that it holds. */
export const DATAGRAM_BYTES_MAX = 65_534
export const DATAGRAM_CONTENT_BYTES_MAX = DATAGRAM_BYTES_MAX - DATAGRAM_OVERHEAD_BYTES
export const EPOCH_COUNTERS = 2 ** 24
/** Keys that a receiver makes ahead of the newest datagram, at most. */
export const EPOCHS_AHEAD_MAX = 16

/** Seals the datagrams of one direction. */
export class DatagramSealer {
  #cipher: CipherState
  #counter = 0

  /** `cipher` is keyed for the first epoch and belongs to the sealer. */
  constructor(cipher: CipherState) {
    this.#cipher = cipher
  }

  /** The number of the next datagram. */
  get counter(): number {
    return this.#counter
  }

  /** Throws `datagram/size` when the content is longer than 65,510 bytes. */
  seal(content: Uint8Array): Uint8Array {
    if (content.length > DATAGRAM_CONTENT_BYTES_MAX) {
      throw new TunnelError(
        'datagram/size',
        `Cannot send a datagram: found ${content.length} bytes, expected at most ${DATAGRAM_CONTENT_BYTES_MAX}`,
      )
    }
    const counter = this.#counter++
    if (counter > 0 && counter % EPOCH_COUNTERS === 0) this.#cipher.rekey()
    const out = new Uint8Array(DATAGRAM_OVERHEAD_BYTES + content.length)
    writeCounter(out, counter)
    this.#cipher.sealAt(counter, EMPTY, content, out.subarray(DATAGRAM_COUNTER_BYTES))
    return out
  }

  erase(): void {
    this.#cipher.erase()
  }
}

/** Opens those of the other direction, in whatever order they come. */
export class DatagramOpener {
  readonly #window = new ReplayWindow()
  /** Keys by epoch; those before the epoch of the window's end are erased. */
  readonly #ciphers = new Map<number, CipherState>()
  #newest = 0
  #oldest = 0

  /** `cipher` is keyed for the first epoch and belongs to the opener. */
  constructor(cipher: CipherState) {
    this.#ciphers.set(0, cipher)
  }

  /** The highest counter that was opened, -1 before the first. */
  get highest(): number {
    return this.#window.highest
  }

  /**
   * The content. Throws `datagram/size`, `datagram/replayed` (taken before, or too old to tell),
   * `datagram/ahead` and `datagram/forged`; nothing but what opens moves the window.
   */
  open(datagram: Uint8Array): Uint8Array {
    if (datagram.length < DATAGRAM_OVERHEAD_BYTES || datagram.length > DATAGRAM_BYTES_MAX) {
      throw refused('size', `${datagram.length} bytes`)
    }
    const counter = readCounter(datagram)
    if (!Number.isSafeInteger(counter)) throw refused('ahead', 'a counter above 2^53 - 1')
    if (!this.#window.isFresh(counter)) throw refused('replayed', `counter ${counter} again`)
    const epoch = Math.floor(counter / EPOCH_COUNTERS)
    if (epoch > this.#epoch + EPOCHS_AHEAD_MAX) throw refused('ahead', `epoch ${epoch}`)
    const sealed = datagram.subarray(DATAGRAM_COUNTER_BYTES)
    let content: Uint8Array
    try {
      content = this.#cipherOf(epoch).openAt(counter, EMPTY, sealed)
    } catch (cause) {
      throw refused('forged', 'other bytes than the peer sealed', cause)
    }
    this.#window.take(counter)
    this.#forget()
    return content
  }

  erase(): void {
    for (const cipher of this.#ciphers.values()) cipher.erase()
  }

  get #epoch(): number {
    return Math.floor(Math.max(0, this.#window.highest) / EPOCH_COUNTERS)
  }

  /** Made once and kept, at most 16 ahead: forged counters cost no more than these. */
  #cipherOf(epoch: number): CipherState {
    for (; this.#newest < epoch; this.#newest++) {
      this.#ciphers.set(this.#newest + 1, this.#ciphers.get(this.#newest)!.rekeyed())
    }
    return this.#ciphers.get(epoch)!
  }

  #forget(): void {
    // The window reaches back into one earlier epoch at most.
    const needed = this.#epoch - 1
    for (; this.#oldest < needed; this.#oldest++) {
      this.#ciphers.get(this.#oldest)?.erase()
      this.#ciphers.delete(this.#oldest)
    }
  }
}

function writeCounter(into: Uint8Array, counter: number): void {
  const view = new DataView(into.buffer, into.byteOffset)
  view.setUint32(0, Math.floor(counter / 2 ** 32))
  view.setUint32(4, counter >>> 0)
}

function readCounter(datagram: Uint8Array): number {
  const view = new DataView(datagram.buffer, datagram.byteOffset)
  return view.getUint32(0) * 2 ** 32 + view.getUint32(4)
}

function refused(reason: string, found: string, cause?: unknown): TunnelError {
  return new TunnelError(`datagram/${reason}`, `Cannot open a datagram: found ${found}`, { cause })
}

/** What brings sealed datagrams to the peer: a stream of kind `datagrams`, or a UDP path. */
export interface PacketCarrier {
  sendPacket(datagram: Uint8Array): Sent
  onPacket?: (datagram: Uint8Array) => void
}

/** The datagrams of one session, over whichever carrier was attached last. */
export class Datagrams {
  readonly #sealer: DatagramSealer
  readonly #opener: DatagramOpener
  #carrier: PacketCarrier | undefined
  #closed = false
  #refused = 0
  /** One content, in whatever order they came. */
  onDatagram?: (content: Uint8Array) => void

  /** Both ciphers are keyed for the first epoch. */
  constructor(send: CipherState, receive: CipherState) {
    this.#sealer = new DatagramSealer(send)
    this.#opener = new DatagramOpener(receive)
  }

  get carrier(): PacketCarrier | undefined {
    return this.#carrier
  }

  /** Datagrams that came and were forged, replayed or too old. */
  get refused(): number {
    return this.#refused
  }

  /** The counters go on, whatever carries them. Both carriers are heard, the newer one is used. */
  attach(carrier: PacketCarrier): void {
    if (this.#closed) return
    this.#carrier = carrier
    carrier.onPacket = (datagram) => this.#receive(datagram)
  }

  /** 'lost' where no carrier takes it. Throws `datagram/size` above 65,510 bytes. */
  send(content: Uint8Array): Sent {
    if (this.#closed || !this.#carrier) return 'lost'
    return this.#carrier.sendPacket(this.#sealer.seal(content))
  }

  close(): void {
    this.#closed = true
    this.#carrier = undefined
    this.#sealer.erase()
    this.#opener.erase()
  }

  #receive(datagram: Uint8Array): void {
    if (this.#closed) return
    let content: Uint8Array
    try {
      content = this.#opener.open(datagram)
    } catch {
      this.#refused++
      return
    }
    this.onDatagram?.(content)
  }
}
