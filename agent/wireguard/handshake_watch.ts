/**
 * A path that counts the handshakes which go out by it and are not answered: type 1 is an initiation, and any
 * datagram from the same place an answer. A device begins one anew every 5 s for 90 s, whatever its session was
 * before, so some in a row say that nobody is there, or no longer.
 */
import { ENDPOINT_BYTES } from '../wireguard-wasm/address.ts'
import type { Batch } from '../wireguard-wasm/batch.ts'
import { RUN_WORDS } from '../wireguard-wasm/batch.ts'
import type { Path } from '../wireguard-wasm/driver.ts'

const INITIATION = 1
/** Places that are counted for; those who do not initiate are not. */
const PLACES_MAX = 4_096

export class HandshakeWatch implements Path {
  readonly #path: Path
  readonly #limit: number
  readonly #failed: () => void
  /** Initiations since the last answer, by the bytes of the place. */
  readonly #open = new Map<string, number>()

  /** `failed` is told when as many as `limit` are open at one place; `unanswered` has which. */
  constructor(path: Path, { limit, failed }: { limit: number; failed: () => void }) {
    this.#path = path
    this.#limit = limit
    this.#failed = failed
  }

  get mtu(): number {
    return this.#path.mtu
  }

  get onReceive(): Path['onReceive'] {
    return this.#path.onReceive
  }

  set onReceive(take: Path['onReceive']) {
    this.#path.onReceive = take && ((batch) => {
      if (this.#open.size > 0) this.#heard(batch)
      take(batch)
    })
  }

  get onDrain(): Path['onDrain'] {
    return this.#path.onDrain
  }

  set onDrain(run: Path['onDrain']) {
    this.#path.onDrain = run
  }

  get inbox(): Path['inbox'] {
    return this.#path.inbox
  }

  set inbox(lend: Path['inbox']) {
    this.#path.inbox = lend
  }

  send(batch: Batch, from = 0, to: number = batch.count): boolean {
    for (let run = from; run < to; run++) {
      if (batch.bytes[batch.words[run * RUN_WORDS]!] === INITIATION) this.#count(batch, run)
    }
    return this.#path.send(batch, from, to)
  }

  /** Of the place in a record; counted from none again where there are as many as the limit. */
  takeFailed(record: Uint8Array): boolean {
    const key = keyOf(record, 0)
    if ((this.#open.get(key) ?? 0) < this.#limit) return false
    this.#open.delete(key)
    return true
  }

  #count(batch: Batch, run: number): void {
    const key = keyOf(batch.endpoints, run * ENDPOINT_BYTES)
    if (this.#open.size >= PLACES_MAX) this.#open.clear()
    const count = (this.#open.get(key) ?? 0) + 1
    this.#open.set(key, count)
    if (count === this.#limit) this.#failed()
  }

  #heard(batch: Batch): void {
    for (let run = 0; run < batch.count; run++) {
      this.#open.delete(keyOf(batch.endpoints, run * ENDPOINT_BYTES))
    }
  }
}

function keyOf(records: Uint8Array, at: number): string {
  return String.fromCharCode(...records.subarray(at, at + ENDPOINT_BYTES))
}
