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
import { unreachableSix } from './packet_guard.ts'
import type { PacketGuard } from './packet_guard.ts'

/** A path that is full says when it is not; one that never says so is tried again after this. */
const FULL_MS = 5
/** Then they are sealed and sent, while more come. */
const TURN_PACKETS = 256

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

  /**
   * A packet of the system, and what else there is now. Undefined where more may come at once, else it resolves
   * when it may.
   */
  give(packet: Uint8Array): Promise<void> | undefined {
    if (this.#passes(packet, 0, packet.length) && !this.device.send(packet)) {
      this.#driver.turn()
      this.device.send(packet)
    }
    this.#take()
    this.#driver.turn()
    if (!this.#isFull) return undefined
    return new Promise((resolve) => {
      this.#drained = resolve
      this.#after(FULL_MS, resolve)
    })
  }

  /** Straight into the module, until there is no more, or enough for one turn. */
  #take(): void {
    const { mtu } = this.device
    for (let count = 0; count < TURN_PACKETS; count++) {
      const slot = this.device.slot(mtu)
      if (!slot) return
      const length = this.#tun.take(slot)
      const passes = length > 0 && this.#passes(slot, 0, length)
      this.device.trim(passes ? length : 0)
      if (length === 0) return
    }
  }

  #passes(bytes: Uint8Array, at: number, length: number): boolean {
    const verdict = this.#guard.out(bytes, at, length)
    if (verdict === 'unroutable') {
      const answer = unreachableSix(bytes, at, length)
      if (answer) this.#tun.write(answer, 0, answer.length)
    }
    // Larger than was agreed: the interface's MTU was changed by hand.
    return verdict === 'pass' && length <= this.device.mtu
  }

  #engine(): Engine {
    const engine = packetEngine(this.device, (packets) => this.#open(packets))
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

  #open({ bytes, words, count }: Packets): void {
    for (let i = 0; i < count; i++) {
      const at = words[i * 4]!
      const length = words[i * 4 + 1]!
      if (this.#guard.in(bytes, at, length)) this.#tun.write(bytes, at, length)
    }
  }
}
