/**
 * WireGuard datagrams over packet channels of a relay, as they are: one path of the device, on which
 * each channel is an endpoint. The relay can drop, repeat, reorder and invent datagrams, as any network
 * can; the device takes what is authentic, and answers over the channel that brought it last.
 */
import type { Stream } from '../../core/mux.ts'
import { ENDPOINT_BYTES, writeEndpoint } from '../wireguard-wasm/address.ts'
import type { Endpoint } from '../wireguard-wasm/address.ts'
import { Batch, RUN_WORDS } from '../wireguard-wasm/batch.ts'
import type { Path } from '../wireguard-wasm/driver.ts'

/** Numbers of the paths of a device. */
export const UDP_PATH = 0
export const RELAY_PATH = 1
/** Largest datagram that fits a frame with its length. */
const DATAGRAM_BYTES_MAX = 65_500
/** Datagrams of one turn; more are handed on before. */
const INBOX_BYTES = 1_048_576
const CHANNELS_MAX = 4_096
/** Any port: there is none. */
const PORT = 1

export class RelayPath implements Path {
  readonly mtu: number = DATAGRAM_BYTES_MAX
  onReceive?: ((batch: Batch) => void) | undefined
  onDrain?: (() => void) | undefined
  inbox?: (() => Batch) | undefined
  readonly #channels = new Map<number, { stream: Stream; record: Uint8Array }>()
  readonly #own = Batch.make(INBOX_BYTES)
  #next = 1
  #isWoken = false

  get size(): number {
    return this.#channels.size
  }

  /**
   * Takes a stream of kind `datagrams`; its endpoint for the device. Undefined, and the stream reset,
   * where there are too many. The stream's end is the caller's to watch, and to `remove`.
   */
  add(stream: Stream): Endpoint | undefined {
    if (this.#channels.size >= CHANNELS_MAX) {
      stream.abort()
      return undefined
    }
    const number = this.#next++
    const host = [24, 16, 8, 0].map((shift) => (number >>> shift) & 255).join('.')
    const record = new Uint8Array(ENDPOINT_BYTES)
    const ip = Uint8Array.from(host.split('.').map(Number))
    writeEndpoint(record, { at: 0, ip, port: PORT, path: RELAY_PATH })
    this.#channels.set(number, { stream, record })
    stream.onPacket = (datagram) => this.#take(datagram, record)
    return { host, port: PORT, path: RELAY_PATH }
  }

  /** Resets the stream of an endpoint that `add` gave. */
  remove({ host }: Endpoint): void {
    const number = numberOf(Uint8Array.from(host.split('.').map(Number)), 0)
    const stream = this.#channels.get(number)?.stream
    this.#channels.delete(number)
    if (!stream) return
    delete stream.onPacket
    stream.abort()
  }

  send(batch: Batch, from = 0, to: number = batch.count): boolean {
    let isTaken = true
    for (let run = from; run < to; run++) {
      const word = run * RUN_WORDS
      const [at = 0, length = 0, , size = 0] = batch.words.subarray(word, word + RUN_WORDS)
      const number = numberOf(batch.endpoints, run * ENDPOINT_BYTES + 8)
      const stream = this.#channels.get(number)?.stream
      if (!stream) {
        isTaken = false
        continue
      }
      if (stream.sendPackets(batch.bytes.subarray(at, at + length), size) === 'lost') {
        isTaken = false
      }
    }
    return isTaken
  }

  close(): void {
    for (const { stream } of this.#channels.values()) {
      delete stream.onPacket
      stream.abort()
    }
    this.#channels.clear()
  }

  #take(datagram: Uint8Array, record: Uint8Array): void {
    if (!this.#into().push(datagram, record)) {
      this.#give()
      this.#into().push(datagram, record)
    }
    if (this.#isWoken) return
    this.#isWoken = true
    // One turn for all that a frame brought.
    queueMicrotask(() => {
      this.#isWoken = false
      this.#give()
    })
  }

  /** The device's own memory, where it lends that: then nothing is copied again. */
  #into(): Batch {
    return this.inbox?.() ?? this.#own
  }

  #give(): void {
    const batch = this.#into()
    if (batch.count > 0) this.onReceive?.(batch)
    batch.clear()
  }
}

function numberOf(bytes: Uint8Array, at: number): number {
  return ((bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!) >>>
    0
}
