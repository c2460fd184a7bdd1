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
   * Sends the runs `from` to `to` of a batch, which is not to be kept. False when it is full: what was
   * given is still taken, or dropped where that is too much, and `onDrain` tells when there is room again.
   * Calls nothing back before it returns.
   */
  send(batch: Batch, from?: number, to?: number): boolean
  /** Datagrams that came, in a batch that is valid during the call alone. */
  onReceive?: ((batch: Batch) => void) | undefined
  onDrain?: (() => void) | undefined
  /** A batch to write to, where the path can fill one in place. */
  inbox?: (() => Batch) | undefined
}

/** What takes datagrams and gives others: a device with a host's own packets, or a tunnel. */
export interface Engine {
  /** A batch to write to in place. */
  readonly inbox: Batch
  /** Milliseconds of its clock. */
  now(): number
  /** `emit` is false when a path is full. */
  receive(batch: Batch, emit: (batch: Batch) => boolean): void
  /** Runs what is due and gives what is to go out; when to call again, Infinity for never. */
  turn(emit: (batch: Batch) => boolean): number
}

/** A device alone: packets that came in go to `onPackets`, others are given by `device.send`. */
export function packetEngine(device: Device, onPackets?: (packets: Packets) => void): Engine {
  return {
    get inbox() {
      return device.inbox
    },
    now: () => device.now(),
    receive: (batch) => void device.receive(batch, onPackets),
    turn(emit) {
      if (device.nextDeadline <= device.now()) device.tick()
      device.flush(emit)
      return device.nextDeadline
    },
  }
}

export interface DriverOptions {
  /** setTimeout unless given. */
  after?: (ms: number, run: () => void) => { cancel(): void }
  /**
   * Runs what follows all that is at hand, such as setImmediate: one turn for all of it. queueMicrotask unless
   * given, which has a turn for each event.
   */
  soon?: (run: () => void) => void
}

export class Driver {
  readonly #engine: Engine
  readonly #paths = new Map<number, Path>()
  readonly #after: NonNullable<DriverOptions['after']>
  readonly #soon: NonNullable<DriverOptions['soon']>
  readonly #woken = (): void => {
    if (this.#isWoken) this.turn()
  }
  readonly #emit = (batch: Batch): boolean => this.#send(batch)
  #timer: { cancel(): void } | undefined
  #timerMs = Infinity
  #isWoken = false
  #isClosed = false
  /** Runs for a path that there is not. */
  lost = 0

  constructor(
    engine: Engine,
    { after = afterTimeout, soon = (run) => queueMicrotask(run) }: DriverOptions = {},
  ) {
    this.#engine = engine
    this.#soon = soon
    this.#after = after
  }

  /** Datagrams whose endpoint has this path number go here, and those that come from here have it: 0 is UDP. */
  addPath(number: number, path: Path): void {
    this.#paths.set(number, path)
    path.inbox = () => this.#engine.inbox
    path.onDrain = () => this.turn()
    path.onReceive = (batch) => {
      if (this.#isClosed) return
      this.#engine.receive(batch, this.#emit)
      this.turn()
    }
  }

  removePath(number: number): void {
    const path = this.#paths.get(number)
    this.#paths.delete(number)
    if (path) path.onReceive = path.inbox = path.onDrain = undefined
  }

  /** After `device.send` and the like: a turn follows soon, one for all of them. */
  wake(): void {
    if (this.#isWoken || this.#isClosed) return
    this.#isWoken = true
    this.#soon(this.#woken)
  }

  /** Sends all that is to go out, now. */
  turn(): void {
    this.#isWoken = false
    if (this.#isClosed) return
    this.#schedule(this.#engine.turn(this.#emit))
  }

  close(): void {
    this.#isClosed = true
    this.#timer?.cancel()
    for (const number of [...this.#paths.keys()]) this.removePath(number)
  }

  /** Consecutive runs of one path go together. */
  #send(batch: Batch): boolean {
    let taken = true
    for (let from = 0; from < batch.count;) {
      const number = readWord(batch.endpoints, from * ENDPOINT_BYTES)
      let to = from + 1
      while (to < batch.count && readWord(batch.endpoints, to * ENDPOINT_BYTES) === number) to++
      const path = this.#paths.get(number)
      if (!path) this.lost += to - from
      else if (!path.send(batch, from, to)) taken = false
      from = to
    }
    return taken
  }

  #schedule(deadline: number): void {
    if (deadline === this.#timerMs && this.#timer) return
    this.#timer?.cancel()
    this.#timer = undefined
    this.#timerMs = deadline
    if (deadline === Infinity) return
    const ms = Math.max(
      1,
      Math.min(TIMER_MS_MAX, Math.ceil(deadline - this.#engine.now())),
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
