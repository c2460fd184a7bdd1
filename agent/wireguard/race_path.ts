/**
 * One handshake over several ways at once: the first copy that comes through is answered, and the others
 * are replays, which WireGuard drops. The device moves to where the authentic answer comes from, and stays
 * where it is when none comes; its packets go on as before meanwhile.
 */
import { encodeEndpoint, ENDPOINT_BYTES, readWord } from '../wireguard-wasm/address.ts'
import type { Endpoint } from '../wireguard-wasm/address.ts'
import { Batch, RUN_WORDS } from '../wireguard-wasm/batch.ts'
import type { Notice } from '../wireguard-wasm/device.ts'
import type { Path } from '../wireguard-wasm/driver.ts'
import type { Races } from './path_choice.ts'
import type { TablePeer } from './peer_table.ts'

/** Number of this path of a device, beside those of `relay_path.ts` and `public_port.ts`. */
export const RACE_PATH = 3
/** What the far end offers, where it was last, and the relay. */
export const RACERS_MAX = 18
/** Races whose handshake has not been made yet; the oldest are forgotten. */
const RACES_MAX = 4_096
/** Any port: there is none. */
const PORT = 1

export class RacePath implements Path, Races {
  readonly mtu: number = 1_280
  onReceive: Path['onReceive']
  onDrain: Path['onDrain']
  inbox: Path['inbox']
  readonly #ways: ReadonlyMap<number, Path>
  readonly #watches = new Map<TablePeer, () => void>()
  readonly #races = new Map<number, Uint8Array[]>()
  #next = 0

  /** The paths that lead somewhere, by their numbers. */
  constructor(ways: ReadonlyMap<number, Path>) {
    this.#ways = ways
  }

  /**
   * Starts a handshake with the peer at all of `endpoints`, in this order; nothing happens where the last one
   * is not 5 s ago. The peer's own endpoint stays. A turn of the device is to follow.
   */
  start(
    peer: Pick<TablePeer, 'stats' | 'update' | 'connect'>,
    endpoints: readonly Endpoint[],
  ): void {
    const number = this.#next = (this.#next + 1) % RACES_MAX
    this.#races.set(number, endpoints.slice(0, RACERS_MAX).map(encodeEndpoint))
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
      for (const racer of this.#races.get(number) ?? []) {
        const copy = Batch.make(bytes.length, 1)
        copy.push(bytes, racer)
        this.#ways.get(readWord(racer, 0))?.send(copy)
      }
      this.#races.delete(number)
    }
    return true
  }
}
