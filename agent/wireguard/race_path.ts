/**
 * One handshake over several ways at once: the first copy that comes through is answered, and the others are replays, which WireGuard drops. The device moves to where the authentic answer comes from, and stays
 * where it is when none comes; its packets go on as before meanwhile.
 */
import type { Clock, Timer } from '../../core/clock.ts'
import { encodeEndpoint, ENDPOINT_BYTES, readWord } from '../wireguard-wasm/address.ts'
import type { Endpoint } from '../wireguard-wasm/address.ts'
import { Batch, RUN_WORDS } from '../wireguard-wasm/batch.ts'
import type { Notice } from '../wireguard-wasm/device.ts'
import type { Path } from '../wireguard-wasm/driver.ts'
import type { Races } from './path_choice.ts'
import type { TablePeer } from './peer_table.ts'
import { RELAY_PATH } from './relay_path.ts'

/** Number of this path of a device, beside those of `relay_path.ts` and `public_port.ts`. */
export const RACE_PATH = 3
/** What the far end offers, where it was last, and the relay. */
export const RACERS_MAX = 18
/** Races whose handshake has not been made yet; the oldest are forgotten. */
const RACES_MAX = 4_096
/** A relay may well be nearer than the peer: UDP that answers within this is taken all the same. */
export const HEAD_START_MS = 600
/** Any port: there is none. */
const PORT = 1

interface Race {
  /** Encoded endpoints. */
  racers: Uint8Array[]
  lateMs: number
}

const NOBODY: Race = { racers: [], lateMs: 0 }

export class RacePath implements Path, Races {
  readonly mtu: number = 1_280
  onReceive: Path['onReceive']
  onDrain: Path['onDrain']
  inbox: Path['inbox']
  readonly #ways: ReadonlyMap<number, Path>
  readonly #watches = new Map<TablePeer, () => void>()
  readonly #races = new Map<number, Race>()
  /** What waits for the head start of others to be over. */
  readonly #late = new Set<Timer>()
  readonly #clock: Pick<Clock, 'after'>
  #next = 0

  /** The paths that lead somewhere, by their numbers. */
  constructor(clock: Pick<Clock, 'after'>, ways: ReadonlyMap<number, Path>) {
    this.#clock = clock
    this.#ways = ways
  }

  close(): void {
    for (const timer of this.#late) timer.cancel()
    this.#late.clear()
  }

  /**
   * Starts a handshake with the peer at all of `endpoints`, in this order; nothing happens where the last one
   * is not 5 s ago. With a head start the relay's copy leaves `HEAD_START_MS` later. The peer's own endpoint stays. A turn of the device is to follow.
   */
  start(
    peer: Pick<TablePeer, 'stats' | 'update' | 'connect'>,
    endpoints: readonly Endpoint[],
    { headStart = false } = {},
  ): void {
    const number = this.#next = (this.#next + 1) % RACES_MAX
    this.#races.set(number, {
      racers: endpoints.slice(0, RACERS_MAX).map(encodeEndpoint),
      lateMs: headStart && endpoints.some(({ path }) => path !== RELAY_PATH) ? HEAD_START_MS : 0,
    })
    const { endpoint } = peer.stats()
    peer.update({
      endpoint: { host: `0.0.${number >>> 8}.${number & 255}`, port: PORT, path: RACE_PATH },
    })
    peer.connect()
    peer.update({ endpoint })
  }

  watch(peer: TablePeer, roamed: () => void): () => void {
    this.#watches.set(peer, roamed)
    return () => void this.#watches.delete(peer)
  }

  /** For the device's `onNotice`. */
  noticed(notice: Notice, peer: TablePeer): void {
    if (notice === 'roamed') this.#watches.get(peer)?.()
  }

  send(batch: Batch, from = 0, to: number = batch.count): boolean {
    for (let run = from; run < to; run++) {
      const at = batch.words[run * RUN_WORDS]!
      const bytes = batch.bytes.slice(at, at + batch.words[run * RUN_WORDS + 1]!)
      const record = run * ENDPOINT_BYTES
      const number = batch.endpoints[record + 10]! * 256 + batch.endpoints[record + 11]!
      const { racers, lateMs } = this.#races.get(number) ?? NOBODY
      for (const racer of racers) {
        if (lateMs > 0 && readWord(racer, 0) === RELAY_PATH) this.#sendLate(bytes, racer)
        else this.#send(bytes, racer)
      }
      this.#races.delete(number)
    }
    return true
  }

  #send(bytes: Uint8Array, racer: Uint8Array): void {
    const copy = Batch.make(bytes.length, 1)
    copy.push(bytes, racer)
    this.#ways.get(readWord(racer, 0))?.send(copy)
  }

  #sendLate(bytes: Uint8Array, racer: Uint8Array): void {
    if (this.#late.size >= RACES_MAX) return
    const timer = this.#clock.after(HEAD_START_MS, () => {
      this.#late.delete(timer)
      this.#send(bytes, racer)
    })
    this.#late.add(timer)
  }
}
