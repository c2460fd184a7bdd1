/**
 * Joins a device with the paths that carry its datagrams and with time: everything that comes is
 * received, everything that is to go out is sent, timers run when they are due.
 */
import { ENDPOINT_BYTES, readWord } from './address.ts'
import type { Batch, Packets } from './batch.ts'
import type { Device } from './device.ts'

/** Timers of a runtime hold no more than 2^31 - 1 ms. */
const TIMER_MS_MAX = 2 ** 31 - 1

/** A way for datagrams: a UDP socket, a channel through a relay. It may lose and reorder them. */
export interface Path {
  /** Largest datagram that it carries. */
  readonly mtu: number
  /**
   * Sends the runs `from` to `to` of a batch, which is not to be kept. False when it is full, and what
   * did not fit was dropped: `onDrain` tells when there is room again.
   */
  send(batch: Batch, from?: number, to?: number): boolean
  /** Datagrams that came, in a batch that is valid during the call alone. */
  onReceive?: ((batch: Batch) => void) | undefined
  onDrain?: (() => void) | undefined
  /** A batch to write to, where the path can fill one in place. */
  inbox?: (() => Batch) | undefined
}

export interface DriverOptions {
  /** Packets that came in, valid during the call alone. */
  onPackets?: (packets: Packets) => void
  /** setTimeout unless given. */
  after?: (ms: number, run: () => void) => { cancel(): void }
}

export class Driver {
  readonly #device: Device
  readonly #paths = new Map<number, Path>()
  readonly #onPackets: DriverOptions['onPackets']
  readonly #after: NonNullable<DriverOptions['after']>
  #timer: { cancel(): void } | undefined
  #timerMs = Infinity
  #isWoken = false
  #isClosed = false
  /** Datagrams for a path that there is not, or that was full. */
  lost = 0

  constructor(device: Device, options: DriverOptions = {}) {
    this.#device = device
    this.#onPackets = options.onPackets
    this.#after = options.after ?? afterTimeout
  }

  /** Datagrams whose endpoint has this path number go here, and those that come from here have it: 0 is UDP. */
  addPath(number: number, path: Path): void {
    this.#paths.set(number, path)
    path.inbox = () => this.#device.inbox
    path.onReceive = (batch) => {
      if (this.#isClosed) return
      this.#device.receive(batch, this.#onPackets)
      this.turn()
    }
  }

  removePath(number: number): void {
    const path = this.#paths.get(number)
    this.#paths.delete(number)
    if (path) path.onReceive = path.inbox = undefined
  }

  /** After `device.send` and other calls: a turn follows soon, one for all of them. */
  wake(): void {
    if (this.#isWoken || this.#isClosed) return
    this.#isWoken = true
    queueMicrotask(() => this.turn())
  }

  /** Sends all that is to go out, now. */
  turn(): void {
    this.#isWoken = false
    if (this.#isClosed) return
    let deadline = this.#device.nextDeadline
    if (deadline <= this.#device.now()) deadline = this.#device.tick()
    this.#device.flush((batch) => this.#send(batch))
    this.#schedule(Math.min(deadline, this.#device.nextDeadline))
  }

  close(): void {
    this.#isClosed = true
    this.#timer?.cancel()
    for (const number of [...this.#paths.keys()]) this.removePath(number)
  }

  /** Consecutive runs of one path go together. */
  #send(batch: Batch): void {
    for (let from = 0; from < batch.count;) {
      const number = readWord(batch.endpoints, from * ENDPOINT_BYTES)
      let to = from + 1
      while (
        to < batch.count &&
        readWord(batch.endpoints, to * ENDPOINT_BYTES) === number
      ) to++
      const path = this.#paths.get(number)
      if (!path || !path.send(batch, from, to)) this.lost += to - from
      from = to
    }
  }

  #schedule(deadline: number): void {
    if (deadline === this.#timerMs && this.#timer) return
    this.#timer?.cancel()
    this.#timer = undefined
    this.#timerMs = deadline
    if (deadline === Infinity) return
    const ms = Math.max(
      1,
      Math.min(TIMER_MS_MAX, Math.ceil(deadline - this.#device.now())),
    )
    this.#timer = this.#after(ms, () => {
      this.#timer = undefined
      this.turn()
    })
  }
}

function afterTimeout(ms: number, run: () => void): { cancel(): void } {
  const timer = setTimeout(run, ms)
  return { cancel: () => clearTimeout(timer) }
}
