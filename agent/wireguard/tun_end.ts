/**
 * The near end of a tunnel that is an interface of this machine: a device alone, without a stack. What the
 * system sends is sealed, what is opened is given to it, and a guard stands between.
 *
 * The system's packets are read no faster than they leave: what waits, waits with the system, whose own TCP
 * slows down by it.
 */
import { Device } from '../wireguard-wasm/device.ts'
import type { Packets } from '../wireguard-wasm/batch.ts'
import { Driver, packetEngine } from '../wireguard-wasm/driver.ts'
import type { Engine, Path } from '../wireguard-wasm/driver.ts'
import type { Endpoint } from '../wireguard-wasm/address.ts'
import type { TunDevice } from '../world.ts'
import type { NearEnd, NearEndOptions } from './near_end.ts'
import { packetLength, unreachableSix } from './packet_guard.ts'
import type { PacketGuard } from './packet_guard.ts'

/** A path that is full says when it is not; one that never says so is tried again after this. */
const FULL_MS = 5

export interface TunEndOptions extends NearEndOptions {
  tun: TunDevice
  guard: PacketGuard
  /** The far end sends from somewhere else now. */
  roamed(endpoint: Endpoint): void
}

export class TunEnd implements NearEnd {
  readonly device: Device
  readonly flows = 0
  readonly #tun: TunDevice
  readonly #guard: PacketGuard
  readonly #driver: Driver
  readonly #after: NearEndOptions['after']
  #isFull = false
  #drained: (() => void) | undefined

  constructor({ tun, guard, roamed, ...options }: TunEndOptions) {
    this.#tun = tun
    this.#guard = guard
    this.#after = options.after
    this.device = new Device({
      ...options,
      onRestart: (cause) => {
        options.onRestart(cause)
        this.wake()
      },
      onNotice: (notice, peer) => {
        options.onNotice(notice, peer)
        const { endpoint } = peer.stats()
        if (endpoint) roamed(endpoint)
      },
    })
    this.#driver = new Driver(this.#engine(), { after: options.after })
  }

  addPath(number: number, path: Path): void {
    this.#driver.addPath(number, path)
    this.wake()
  }

  wake(): void {
    this.#driver.wake()
  }

  close(): void {
    this.#driver.close()
    this.#drained?.()
  }

  /** Packets of the system, side by side. Resolves when more may come. */
  async give(chunk: Uint8Array): Promise<void> {
    for (let at = 0; at < chunk.length;) {
      const length = packetLength(chunk, at)
      // Not whole: there is no telling where the next begins.
      if (length === 0) break
      this.#send(chunk, at, length)
      at += length
    }
    this.#driver.turn()
    if (!this.#isFull) return
    await new Promise<void>((resolve) => {
      this.#drained = resolve
      this.#after(FULL_MS, resolve)
    })
  }

  #send(chunk: Uint8Array, at: number, length: number): void {
    const verdict = this.#guard.out(chunk, at, length)
    if (verdict === 'unroutable') {
      const answer = unreachableSix(chunk, at, length)
      if (answer) this.#tun.write(answer, 0, answer.length)
    }
    // Larger than was agreed: the interface's MTU was changed by hand.
    if (verdict !== 'pass' || length > this.device.mtu) return
    const packet = chunk.subarray(at, at + length)
    if (this.device.send(packet)) return
    this.#driver.turn()
    this.device.send(packet)
  }

  #engine(): Engine {
    const engine = packetEngine(this.device, (packets) => this.#take(packets))
    return {
      get inbox() {
        return engine.inbox
      },
      now: () => engine.now(),
      receive: (batch, emit) => engine.receive(batch, emit),
      turn: (emit) => {
        this.#isFull = false
        const deadline = engine.turn((batch) => {
          const taken = emit(batch)
          if (!taken) this.#isFull = true
          return taken
        })
        if (!this.#isFull) this.#drained?.()
        return deadline
      },
    }
  }

  #take({ bytes, words, count }: Packets): void {
    for (let i = 0; i < count; i++) {
      const at = words[i * 4]!
      const length = words[i * 4 + 1]!
      if (this.#guard.in(bytes, at, length)) this.#tun.write(bytes, at, length)
    }
  }
}
