/**
 * A device with a TCP/IP stack behind it, in one instance: datagrams in and out on one side, streams,
 * datagrams and echoes on the other. Packets stay in the module's memory.
 */
import { parseIp } from './address.ts'
import type { Batch } from './batch.ts'
import { Device } from './device.ts'
import type { DeviceOptions } from './device.ts'
import { Driver } from './driver.ts'
import type { DriverOptions, Engine, Path } from './driver.ts'
import { CHANGE, Flow } from './flow.ts'
import type { Ends, FlowStack } from './flow.ts'
import type { Instance } from './instance.ts'
import { MESSAGE_BYTES, readMessage, reasonCode, writeMessage } from './message.ts'
import type { Message, Unreachable } from './message.ts'
import { WireGuardError } from './problem.ts'

const FLOWS_MAX = 16_384
/** They grow to it by need: 8 MiB in a round trip of 50 ms is 1.3 Gbit/s. */
const BUFFER_BYTES = 8 * 2 ** 20
const MEMORY_BYTES = 256 * 2 ** 20
const CONNECT_MS = 15_000
const OUTGOING_MAX = 2048
/** RFC 6335 §6. */
const DYNAMIC_PORT = 49_152
const DYNAMIC_PORTS = 65_536 - DYNAMIC_PORT
const PORT_TRIES = 64
/** Turns in a row before others have theirs. */
const SPINS_MAX = 16
/**
 * What one turn seals and takes: the first datagrams are on their way, and the first
 * acknowledgements, while the next turn works, so that both ends of a transfer are busy at once.
 */
const SEND_POOL_BYTES = 384 * 1024
const TURN_DATAGRAMS = 256
const SECRET_BYTES = 16

/** Of the stack, by number (ABI.md). */
const TN = { messages: 0, changes: 1, outgoing: 2, payload: 3, result: 4 } as const

export interface TunnelOptions extends Omit<DeviceOptions, 'onInstance'>, DriverOptions {
  /** Our own addresses in the tunnel, at most one of each family is used. */
  addresses: readonly string[]
  /** Somebody opens a connection, to whatever address; without it all are refused. */
  onIncoming?: (incoming: Incoming) => void
  /** A datagram, an echo, or an error about a datagram of ours. Echo requests to us are answered unless this is given. */
  onMessage?: (message: Message) => void
  /** Connections at once (16,384). */
  flowsMax?: number
  /** Largest buffer of one direction of a connection, which grows by need (8 MiB). */
  bufferBytes?: number
  /** Most that all buffers hold (256 MiB). */
  memoryBytes?: number
}

export interface TunnelStats {
  received: number
  dropped: number
  resetsSent: number
  flowsOpened: number
  flows: number
  bufferBytes: number
}

/** A connection that somebody wants to open; a third of a second later they ask again. */
export class Incoming implements Ends {
  readonly localAddress: string
  readonly localPort: number
  readonly remoteAddress: string
  readonly remotePort: number
  readonly #accept: () => Flow | undefined
  readonly #reject: (reason: Unreachable | 'reset') => void

  constructor(
    ends: Ends,
    { accept, reject }: {
      accept: () => Flow | undefined
      reject: (reason: Unreachable | 'reset') => void
    },
  ) {
    this.localAddress = ends.localAddress
    this.localPort = ends.localPort
    this.remoteAddress = ends.remoteAddress
    this.remotePort = ends.remotePort
    this.#accept = accept
    this.#reject = reject
  }

  /** Undefined when it is gone. */
  accept(): Flow | undefined {
    return this.#accept()
  }

  reject(reason: Unreachable | 'reset' = 'reset'): void {
    this.#reject(reason)
  }
}

export class Tunnel {
  readonly device: Device
  readonly addresses: readonly string[]
  readonly #driver: Driver
  readonly #options: TunnelOptions
  readonly #flows = new Map<number, Flow>()
  readonly #after: NonNullable<DriverOptions['after']>
  readonly #stack: FlowStack
  #areas: number[] = []
  #buffer: ArrayBufferLike | undefined
  #view!: DataView
  #outgoing = 0
  #payloadEnd = 0
  #isClosed = false
  #isTurning = false

  /** Throws as `Device` does, and `wireguard/address`. */
  constructor(options: TunnelOptions) {
    this.#options = options
    this.addresses = options.addresses
    for (const address of options.addresses) parseIp(address)
    this.#after = options.after ?? afterTimeout
    this.device = new Device({
      sendPoolBytes: SEND_POOL_BYTES,
      ...options,
      onInstance: (instance) => this.#init(instance),
      onRestart: (cause) => {
        options.onRestart?.(cause)
        this.wake()
      },
    })
    this.#stack = this.#port()
    this.#driver = new Driver(this.#engine(), {
      after: this.#after,
      ...(options.soon && { soon: options.soon }),
    })
  }

  addPath(number: number, path: Path): void {
    this.#driver.addPath(number, path)
    this.wake()
  }

  removePath(number: number): void {
    this.#driver.removePath(number)
  }

  /** A turn follows soon: after changes of peers. */
  wake(): void {
    this.#driver.wake()
  }

  /**
   * Opens a connection. Throws `wireguard/address`, `wireguard/flow` (no address of that family, too
   * many flows, refused, timed out).
   */
  async connect(
    { address, port, timeoutMs = CONNECT_MS, from }: {
      address: string
      port: number
      timeoutMs?: number
      from?: { address?: string; port?: number }
    },
  ): Promise<Flow> {
    const flow = this.#open({ address, port }, from ?? {})
    const opened = flow.opened()
    this.wake()
    const late = this.#after(timeoutMs, () => flow.abort(new Error('timed out')))
    try {
      return await opened
    } catch (cause) {
      const why = cause instanceof Error ? cause.message : String(cause)
      throw flowProblem(`Cannot connect to ${address} port ${port}: ${why}`, cause)
    } finally {
      late.cancel()
    }
  }

  /** Sends a datagram, an echo, or an error about a datagram that came; false when there is no room. */
  send(message: Message): boolean {
    if (this.#isClosed) return false
    const { payload } = message
    if (!this.#hasRoom(payload.length)) {
      // Of what is at hand there may be more than fits one turn; inside a turn nothing can go.
      if (this.#isTurning) return false
      this.#driver.turn()
      if (!this.#hasRoom(payload.length)) return false
    }
    const at = this.#areas[TN.outgoing]! + this.#outgoing * MESSAGE_BYTES
    writeMessage(this.#view, at, message)
    this.#view.setUint32(at + 8, this.#payloadEnd, true)
    this.#view.setUint32(at + 12, payload.length, true)
    new Uint8Array(this.#view.buffer as ArrayBuffer).set(
      payload,
      this.#areas[TN.payload]! + this.#payloadEnd,
    )
    this.#payloadEnd += payload.length
    this.#outgoing++
    this.wake()
    return true
  }

  #hasRoom(bytes: number): boolean {
    return this.#outgoing < OUTGOING_MAX &&
      this.#payloadEnd + bytes <= (this.device.run(() => this.#room()) ?? 0)
  }

  /** Our own address of the family of another. */
  addressFor(address: string): string | undefined {
    return this.addresses.find((own) => own.includes(':') === address.includes(':'))
  }

  stats(): TunnelStats {
    const counts = this.device.run((instance) => instance.counts('tn_counts')) ?? []
    const [received = 0, dropped = 0, resetsSent = 0, flowsOpened = 0, flows = 0, bufferBytes = 0] =
      counts
    return { received, dropped, resetsSent, flowsOpened, flows, bufferBytes }
  }

  /** Ends every connection by a reset; its handler is told why. */
  reset(why?: Error): void {
    for (const flow of [...this.#flows.values()]) flow.abort(why)
  }

  /** Ends every connection by a reset and hears nothing more. */
  close(): void {
    if (this.#isClosed) return
    this.reset()
    this.#driver.turn()
    this.#isClosed = true
    this.#driver.close()
  }

  // Turns.

  #engine(): Engine {
    const { device } = this
    return {
      get inbox() {
        return device.inbox
      },
      now: () => device.now(),
      receive: (batch, emit) => {
        this.#isTurning = true
        try {
          device.take(batch, ({ call }, count) => this.#enter(call, count), {
            done: (runs) => void this.#left(runs, emit),
            datagramsMax: TURN_DATAGRAMS,
          })
        } finally {
          this.#isTurning = false
        }
      },
      turn: (emit) => {
        this.#isTurning = true
        try {
          return this.#spin(emit)
        } finally {
          this.#isTurning = false
        }
      },
    }
  }

  /** Turns until there is nothing more to do, or a path is full; when to come again. */
  #spin(emit: (batch: Batch) => boolean): number {
    const { device } = this
    let deadline = Infinity
    device.feed()
    for (let spins = 0; spins < SPINS_MAX; spins++) {
      const runs = device.run(({ call }) => this.#enter(call, 0))
      const left = this.#left(runs, emit)
      deadline = left.deadline
      if (left.isFull) break
      if (!left.more) break
      if (spins === SPINS_MAX - 1) deadline = device.now()
    }
    device.tell()
    return deadline
  }

  #enter(call: Instance['call'], count: number): number {
    const outgoing = this.#outgoing
    this.#outgoing = this.#payloadEnd = 0
    return call['tn_turn']!(count, outgoing, this.device.now(), this.device.wallClock())
  }

  /** What a turn has left: runs to be sent, messages, changes. */
  #left(
    runs: number | undefined,
    emit: (batch: Batch) => boolean,
  ): { deadline: number; more: boolean; isFull: boolean } {
    // The instance was lost on the way.
    if (runs === undefined) return { deadline: this.device.now(), more: false, isFull: false }
    const batch = this.device.sealed(runs)
    this.#look()
    const result = this.#areas[TN.result]!
    const view = this.#view
    const messages = view.getUint32(result, true)
    const changes = view.getUint32(result + 4, true)
    const more = view.getUint32(result + 8, true) === 1
    const deadline = view.getFloat64(result + 16, true)
    const isFull = runs > 0 && !emit(batch)
    for (let i = 0; i < messages; i++) this.#message(i)
    for (let i = 0; i < changes; i++) {
      this.#look()
      const at = this.#areas[TN.changes]! + i * 8
      this.#change(this.#view.getUint32(at, true), this.#view.getUint32(at + 4, true))
    }
    return { deadline, more, isFull }
  }

  #message(place: number): void {
    this.#look()
    const read = readMessage(this.#view, this.#areas[TN.messages]! + place * MESSAGE_BYTES)
    const { offset, length, ...message } = read
    const { onMessage } = this.#options
    if (!onMessage) {
      if (message.kind !== 'echo-request' || !this.addresses.includes(message.destination)) return
      const payload = this.device.payload(offset, length)
      const { source, destination } = message
      this.send({
        ...message,
        kind: 'echo-reply',
        source: destination,
        destination: source,
        payload,
      })
    } else onMessage({ ...message, payload: this.device.payload(offset, length) })
  }

  #change(id: number, bits: number): void {
    if (bits & CHANGE.incoming) return this.#incoming(id)
    this.#flows.get(id)?.notice(bits)
  }

  #incoming(id: number): void {
    const ends = this.#endsOf(id)
    if (!ends) return
    const reject = (reason: Unreachable | 'reset'): void => {
      this.device.run(({ call }) => call['tn_reject']!(id, reasonCode(reason)))
      this.wake()
    }
    const accept = (): Flow | undefined => {
      // Its number may be another's by now.
      const now = this.#endsOf(id)
      if (!now || now.remotePort !== ends.remotePort || now.remoteAddress !== ends.remoteAddress) {
        return undefined
      }
      const done = this.device.run(({ call }) => call['tn_accept']!(id, this.device.now()))
      if (done !== 1) return undefined
      this.wake()
      return this.#keep(id, ends)
    }
    const { onIncoming } = this.#options
    if (!onIncoming) reject('reset')
    else onIncoming(new Incoming(ends, { accept, reject }))
  }

  // Flows.

  #open(to: { address: string; port: number }, from: { address?: string; port?: number }): Flow {
    if (this.#isClosed) throw new WireGuardError('wireguard/closed', 'Cannot connect: it is closed')
    const source = from.address ?? this.addressFor(to.address)
    if (source === undefined) {
      throw flowProblem(`Cannot connect to ${to.address}: there is no address of that family`)
    }
    for (let tries = 0; tries < PORT_TRIES; tries++) {
      const port = from.port ?? DYNAMIC_PORT + this.#random16() % DYNAMIC_PORTS
      const id = this.device.run(({ call, scratchView }) => {
        writeMessage(scratchView, 0, {
          kind: 'datagram',
          source,
          destination: to.address,
          sourcePort: port,
          destinationPort: to.port,
        })
        return call['tn_connect']!(this.device.now())
      })
      if (id !== undefined && id >= 0) {
        const [remoteAddress, remotePort] = [to.address, to.port]
        return this.#keep(id, { localAddress: source, localPort: port, remoteAddress, remotePort })
      }
      if (from.port !== undefined) break
    }
    throw flowProblem(`Cannot connect to ${to.address} port ${to.port}: there are too many flows`)
  }

  #keep(id: number, ends: Ends): Flow {
    const flow = new Flow(id, ends, this.#stack)
    this.#flows.set(id, flow)
    return flow
  }

  /** What flows use; each use is followed by a turn. */
  #port(): FlowStack {
    const { device } = this
    const empty = new Uint8Array(0)
    const piece = (bytes: number | undefined): Uint8Array => {
      if (!bytes) return empty
      this.#look()
      const address = this.#view.getUint32(this.#areas[TN.result]! + 24, true)
      return new Uint8Array(this.#view.buffer as ArrayBuffer, address, bytes)
    }
    return {
      peek: (id) => piece(device.run(({ call }) => call['tn_peek']!(id))),
      consume: (id, bytes) => {
        device.run(({ call }) => call['tn_consume']!(id, bytes))
        this.wake()
      },
      room: (id) => piece(device.run(({ call }) => call['tn_room']!(id))),
      commit: (id, bytes) => {
        this.wake()
        return device.run(({ call }) => call['tn_commit']!(id, bytes)) ?? 0
      },
      finish: (id) => {
        device.run(({ call }) => call['tn_finish']!(id))
        this.wake()
      },
      abort: (id) => {
        device.run(({ call }) => call['tn_abort']!(id))
        this.wake()
      },
      forget: (flow) => {
        if (this.#flows.get(flow.id) === flow) this.#flows.delete(flow.id)
      },
    }
  }

  #endsOf(id: number): Ends | undefined {
    return this.device.run(({ call, scratchView }) => {
      if (call['tn_ends']!(id) !== 1) return undefined
      const { source, sourcePort, destination, destinationPort } = readMessage(scratchView, 0)
      return {
        localAddress: source,
        localPort: sourcePort,
        remoteAddress: destination,
        remotePort: destinationPort,
      }
    })
  }

  // The instance.

  #init(instance: Instance): void {
    const { flowsMax = FLOWS_MAX, bufferBytes = BUFFER_BYTES, memoryBytes = MEMORY_BYTES } =
      this.#options
    const secret = new Uint8Array(SECRET_BYTES)
    this.#randomInto(secret)
    instance.scratch.set(secret)
    const { mtu = 1420, onIncoming } = this.#options
    const accepts = onIncoming ? 1 : 0
    instance.call['tn_init']!(mtu, flowsMax, bufferBytes, memoryBytes, accepts)
    this.#areas = Object.values(TN).map((area) => instance.call['tn_area']!(area) >>> 0)
    instance.refresh()
    this.#buffer = undefined
    this.#look(instance)
    this.#outgoing = this.#payloadEnd = 0
    // Those of the instance before are lost.
    const lost = new WireGuardError('wireguard/trapped', 'The tunnel was made anew')
    for (const flow of [...this.#flows.values()]) flow.lose(lost)
    this.#flows.clear()
  }

  /** Views of the memory that there is now. */
  #look({ buffer }: Instance = this.device.instance): void {
    if (buffer === this.#buffer) return
    this.#buffer = buffer
    this.#view = new DataView(buffer as ArrayBuffer)
  }

  #room(): number {
    this.#look()
    return this.device.instance.call['tn_area_bytes']!(TN.payload)
  }

  #random16(): number {
    const bytes = new Uint8Array(2)
    this.#randomInto(bytes)
    return bytes[0]! * 256 + bytes[1]!
  }

  #randomInto(bytes: Uint8Array<ArrayBuffer>): void {
    const { random } = this.#options
    if (random) random(bytes)
    else crypto.getRandomValues(bytes)
  }
}

function afterTimeout(ms: number, run: () => void): { cancel(): void } {
  const timer = setTimeout(run, ms)
  return { cancel: () => clearTimeout(timer) }
}

function flowProblem(message: string, cause?: unknown): WireGuardError {
  return new WireGuardError('wireguard/flow', message, { cause })
}
