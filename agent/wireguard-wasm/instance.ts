/**
 * One instance of the module: its exports, and views of its areas (ABI.md). Views are made anew when
 * memory has grown, since growth detaches them.
 */
import { ENDPOINT_BYTES } from './address.ts'
import type { Batch } from './batch.ts'
import { RUN_WORDS, RUNS_MAX } from './batch.ts'
import { borrowAead } from './lent_aead.ts'
import { WireGuardError } from './problem.ts'

export const ABI_VERSION = 1
const ENTROPY_BYTES = 8192

export type Exports = Record<string, (...numbers: number[]) => number> & {
  memory: WebAssembly.Memory
  __indirect_function_table: WebAssembly.Table
}

export interface InstanceOptions {
  rxBytes: number
  txBytes: number
  reserveBytes: number
}

/** The areas by number. */
export const AREA = {
  receive: 0,
  send: 1,
  poll: 2,
  input: 3,
  inputEndpoints: 4,
  packets: 5,
  runs: 6,
  runEndpoints: 7,
  scratch: 8,
  entropy: 9,
} as const

export class Instance {
  readonly call: Exports
  /** Whose code seals and opens long texts. */
  readonly aead: string
  receivePool!: Uint8Array
  sendPool!: Uint8Array
  pollPool!: Uint8Array
  input!: Uint32Array
  inputEndpoints!: Uint8Array
  packets!: Uint32Array
  runs!: Uint32Array
  runEndpoints!: Uint8Array
  scratch!: Uint8Array
  scratchView!: DataView
  #entropy!: Uint8Array<ArrayBuffer>
  #buffer: ArrayBufferLike
  #addresses: number[]

  /** Throws `wireguard/module` for a module of another kind. */
  constructor(
    module: WebAssembly.Module,
    { rxBytes, txBytes, reserveBytes }: InstanceOptions,
  ) {
    this.call = new WebAssembly.Instance(module, {})
      .exports as unknown as Exports
    const version = this.call['wg_abi']?.()
    if (version !== ABI_VERSION) {
      throw new WireGuardError(
        'wireguard/module',
        `Cannot use the module: found ABI ${
          version ?? 'of something else'
        }, expected ${ABI_VERSION}`,
      )
    }
    this.call['wg_init']!(rxBytes, txBytes, reserveBytes)
    this.aead = borrowAead(module, this.call)
    this.#addresses = Array.from(
      { length: 10 },
      (_, area) => this.call['wg_area']!(area) >>> 0,
    )
    this.#buffer = this.call.memory.buffer
    this.#view()
  }

  get buffer(): ArrayBufferLike {
    return this.#buffer
  }

  /** To be called before any view is used. */
  refresh(): void {
    if (this.call.memory.buffer === this.#buffer) return
    this.#buffer = this.call.memory.buffer
    this.#view()
  }

  /** Lays runs of a batch in, those of another memory behind the half that is for the own inbox. */
  load(
    batch: Batch,
    { first, last, isOwn }: { first: number; last: number; isOwn: boolean },
  ): boolean {
    const { words } = batch
    const { input } = this
    const half = this.receivePool.length >>> 1
    const start = words[first * RUN_WORDS]!
    const tail = (last - 1) * RUN_WORDS
    const end = words[tail]! + words[tail + 1]!
    if (!isOwn) {
      if (end - start > half) return false
      this.receivePool.set(batch.bytes.subarray(start, end), half)
    }
    input.set(words.subarray(first * RUN_WORDS, last * RUN_WORDS))
    for (let i = 0; i < last - first; i++) {
      if (!isOwn) input[i * RUN_WORDS] = input[i * RUN_WORDS]! - start + half
      input[i * RUN_WORDS + 2] = i
    }
    this.inputEndpoints.set(
      batch.endpoints.subarray(first * ENDPOINT_BYTES, last * ENDPOINT_BYTES),
    )
    return true
  }

  /** What a call gives as numbers of 8 bytes in the scratch area. */
  counts(name: 'wg_counts' | 'tn_counts'): number[] {
    const count = this.call[name]!()
    this.refresh()
    return Array.from(
      { length: count },
      (_, i) => Number(this.scratchView.getBigUint64(i * 8, true)),
    )
  }

  /** Fills the entropy pool up where the module asks for it. */
  feed(random: (into: Uint8Array<ArrayBuffer>) => void): void {
    // A pool that is always given too little must not hold us here.
    for (
      let tries = 0;
      tries < 4 && this.call['wg_wants_entropy']!() === 1;
      tries++
    ) {
      this.refresh()
      random(this.#entropy)
      this.call['wg_feed_entropy']!(this.#entropy.length)
    }
  }

  #view(): void {
    const buffer = this.#buffer as ArrayBuffer
    const bytes = (area: number): Uint8Array<ArrayBuffer> =>
      new Uint8Array(
        buffer,
        this.#addresses[area]!,
        this.call['wg_area_bytes']!(area) >>> 0,
      )
    const words = (area: number): Uint32Array =>
      new Uint32Array(buffer, this.#addresses[area]!, RUNS_MAX * RUN_WORDS)
    this.receivePool = bytes(AREA.receive)
    this.sendPool = bytes(AREA.send)
    this.pollPool = bytes(AREA.poll)
    this.input = words(AREA.input)
    this.inputEndpoints = bytes(AREA.inputEndpoints)
    this.packets = words(AREA.packets)
    this.runs = words(AREA.runs)
    this.runEndpoints = bytes(AREA.runEndpoints).subarray(
      0,
      RUNS_MAX * ENDPOINT_BYTES,
    )
    this.scratch = bytes(AREA.scratch)
    this.scratchView = new DataView(
      buffer,
      this.#addresses[AREA.scratch]!,
      this.scratch.length,
    )
    this.#entropy = bytes(AREA.entropy).subarray(0, ENTROPY_BYTES)
  }
}

/** Errors that mean that the instance is lost, and not that the caller did something wrong. */
export function isTrap(error: unknown): boolean {
  return error instanceof WebAssembly.RuntimeError ||
    error instanceof RangeError
}
