/**
 * A WireGuard device: datagrams and packets go in and come out in batches, nothing is opened or waited
 * for here. A turn of its host is: `receive` what came, `send` what is to go, `tick` when the deadline
 * has passed, then `flush`, which gives everything that is to go out (Driver does all of it).
 *
 * A module that traps is replaced by a new instance with the same peers; each makes a new handshake.
 */
import { decodeEndpoint, ENDPOINT_BYTES, parseIp } from './address.ts'
import { Batch, Packets, RUN_WORDS, RUNS_MAX } from './batch.ts'
import { readDeviceCounts } from './counts.ts'
import type { DeviceStats } from './counts.ts'
import { Instance, isTrap } from './instance.ts'
import { bring, changed, checkKey, EMPTY_STATE, NO_STATS, Peer } from './peer.ts'
import type { PeerChanges, PeerDevice, PeerOptions, PeerState, PeerStats } from './peer.ts'
import { WireGuardError } from './problem.ts'

const MTU_BYTES = 1420
const MTU_BYTES_MAX = 65_475
/** Half for what a path writes in place, half for what is copied in. */
const RECEIVE_POOL_BYTES = 8 * 2 ** 20
const SEND_POOL_BYTES = 4 * 2 ** 20
const RESERVE_BYTES = 8 * 2 ** 20
/** Head of a data message, and its tag. */
const HEAD_BYTES = 16
const TAIL_BYTES = 16
/** A module that traps more often in a minute is broken. */
const RESTARTS_MAX = 8
const RESTARTS_MS = 60_000

export type Notice = 'connected' | 'gave-up' | 'roamed' | 'expired'
const NOTICES: readonly Notice[] = ['connected', 'gave-up', 'roamed', 'expired']

export interface DeviceOptions {
  /** Of `loadModule()`. */
  module: WebAssembly.Module
  /** 32 bytes. */
  privateKey: Uint8Array
  /** Milliseconds of a steady clock, any origin (performance.now). */
  now?: () => number
  /** Milliseconds since 1970 (Date.now), for the stamps of handshakes alone. */
  wallClock?: () => number
  /** Fills with what nobody can guess (crypto.getRandomValues). */
  random?: (into: Uint8Array<ArrayBuffer>) => void
  /** Largest packet that is sent, 576 to 65,475 bytes: 1,420 unless set. */
  mtu?: number
  /** Memory for datagrams on their way in and out. */
  receivePoolBytes?: number
  sendPoolBytes?: number
  reserveBytes?: number
  onNotice?: (notice: Notice, peer: Peer) => void
  /** The instance was lost, and replaced. */
  onRestart?: (cause: unknown) => void
  /** Of this package: an instance was made, the first or another. */
  onInstance?: (instance: Instance) => void
}

export class Device implements PeerDevice {
  /** Of `Packets.words`: a peer by its number. */
  readonly #byId: (Peer | undefined)[] = []
  readonly #byKey = new Map<string, Peer>()
  readonly #module: WebAssembly.Module
  readonly #sizes: { rxBytes: number; txBytes: number; reserveBytes: number }
  readonly #now: () => number
  readonly #wallClock: () => number
  readonly #random: (into: Uint8Array<ArrayBuffer>) => void
  readonly #onNotice: DeviceOptions['onNotice']
  readonly #onRestart: DeviceOptions['onRestart']
  readonly #onInstance: DeviceOptions['onInstance']
  #privateKey: Uint8Array
  #publicKey: Uint8Array
  #mtu: number
  #loadLimit: number | undefined
  #instance!: Instance
  readonly #inbox: Batch
  readonly #sealed: Batch
  readonly #polled: Batch
  readonly #packets: Packets
  /** Packets that wait for `flush`, as descriptors. */
  readonly #queue = new Uint32Array(RUNS_MAX * RUN_WORDS)
  #queued = 0
  #queueEnd = 0
  #isFlushing = false
  /** The memory that batches look into. */
  #pointed: ArrayBufferLike | undefined
  #restarts: number[] = []
  #restartCount = 0

  /** Throws `wireguard/key`, `wireguard/module`. */
  constructor(options: DeviceOptions) {
    this.#module = options.module
    this.#now = options.now ?? (() => performance.now())
    this.#wallClock = options.wallClock ?? (() => Date.now())
    this.#random = options.random ??
      ((into) => void crypto.getRandomValues(into))
    this.#onNotice = options.onNotice
    this.#onRestart = options.onRestart
    this.#onInstance = options.onInstance
    this.#mtu = checkMtu(options.mtu ?? MTU_BYTES)
    this.#sizes = {
      rxBytes: options.receivePoolBytes ?? RECEIVE_POOL_BYTES,
      txBytes: options.sendPoolBytes ?? SEND_POOL_BYTES,
      reserveBytes: options.reserveBytes ?? RESERVE_BYTES,
    }
    this.#privateKey = checkKey(options.privateKey, 'private').slice()
    const none = new Uint8Array(0)
    this.#inbox = Batch.make(0)
    this.#sealed = new Batch(none, new Uint32Array(0), none)
    this.#polled = new Batch(none, new Uint32Array(0), none)
    this.#packets = new Packets(none, new Uint32Array(0))
    this.#open()
    this.#publicKey = this.#derive()
  }

  get publicKey(): Uint8Array {
    return this.#publicKey.slice()
  }

  get mtu(): number {
    return this.#mtu
  }

  get peers(): Peer[] {
    return [...this.#byKey.values()]
  }

  /** Milliseconds of this device's clock. */
  now(): number {
    return this.#now()
  }

  /** Every session is made anew with the new key. Throws `wireguard/key`. */
  setPrivateKey(privateKey: Uint8Array): void {
    const key = checkKey(privateKey, 'private').slice()
    this.#privateKey.fill(0)
    this.#privateKey = key
    this.run(() => this.#writeKey())
    this.#publicKey = this.#derive()
  }

  setMtu(bytes: number): void {
    this.#mtu = checkMtu(bytes)
    this.run(({ call }) => call['wg_set_mtu']!(bytes))
  }

  /** Handshake messages in a second (128) beyond which a cookie is asked for. */
  setLoadLimit(messages: number): void {
    this.#loadLimit = messages
    this.run(({ call }) => call['wg_set_load_limit']!(messages))
  }

  // Peers.

  /** Throws `wireguard/peer` for one that is there or too many, `wireguard/key`, `wireguard/address`. */
  addPeer({ publicKey, ...changes }: PeerOptions): Peer {
    const key = keyText(checkKey(publicKey, 'public'))
    if (this.#byKey.has(key)) throw peerProblem('it is there already')
    const peer = new Peer(publicKey, this)
    const state = changed(peer.state, changes)
    this.run((instance) => this.#add(instance, peer))
    this.#byKey.set(key, peer)
    this.#set(peer, state)
    return peer
  }

  findPeer(publicKey: Uint8Array): Peer | undefined {
    return this.#byKey.get(keyText(publicKey))
  }

  /** The peer that `Packets` speaks of. */
  peerOf(id: number): Peer | undefined {
    return this.#byId[id]
  }

  /** The peer to which packets for an address go. Throws `wireguard/address`. */
  route(address: string): Peer | undefined {
    const ip = parseIp(address)
    const id = this.run(({ call, scratch }) => {
      scratch.set(ip)
      return call['wg_route']!(ip.length === 4 ? 4 : 6)
    })
    return id === undefined ? undefined : this.#byId[id]
  }

  apply(peer: Peer, changes: PeerChanges): void {
    if (peer.id < 0) throw peerProblem('it was removed')
    this.#set(peer, changed(peer.state, changes))
  }

  remove(peer: Peer): void {
    if (peer.id < 0) return
    const { id } = peer
    this.#byKey.delete(keyText(peer.publicKey))
    this.#byId[id] = undefined
    peer.id = -1
    peer.state.presharedKey?.fill(0)
    peer.state.presharedKey = undefined
    this.run(({ call }) => call['wg_remove_peer']!(id))
  }

  connect(peer: Peer): void {
    if (peer.id < 0) throw peerProblem('it was removed')
    this.run(({ call }) => call['wg_connect']!(peer.id, this.#now(), this.#wallClock()))
  }

  statsOf(peer: Peer): PeerStats {
    return this.run(({ call, scratchView, scratch }) => {
      if (peer.id < 0 || call['wg_peer_stats']!(peer.id) === 0) return NO_STATS
      const number = (at: number): number => Number(scratchView.getBigUint64(at, true))
      return {
        receivedBytes: number(0),
        sentBytes: number(8),
        lastHandshakeMs: number(16) || undefined,
        waiting: scratchView.getUint32(24, true),
        endpoint: scratch[28] === 1 ? decodeEndpoint(scratch, 64) : undefined,
      }
    }) ?? NO_STATS
  }

  stats(): DeviceStats {
    const counts = this.run((instance) => instance.counts('wg_counts')) ?? []
    return {
      ...readDeviceCounts(counts),
      peers: this.#byKey.size,
      restarts: this.#restartCount,
      memoryBytes: this.#instance.buffer.byteLength,
    }
  }

  // Traffic.

  /**
   * A batch in the module's own memory: what a path writes there is received without a copy. Ask
   * for it each time, since its bytes move when the instance is replaced; `receive` empties it.
   */
  get inbox(): Batch {
    this.#follow()
    return this.#inbox
  }

  /**
   * Takes datagrams, and gives the packets in them to `each`, in one or more calls; how many there
   * were. Then `flush`.
   */
  receive(batch: Batch, each?: (packets: Packets) => void): number {
    let total = 0
    this.take(
      batch,
      ({ call }, count) => call['wg_receive']!(count, this.#now(), this.#wallClock()),
      {
        done: (count = 0) => {
          total += count
          this.#packets.count = count
          if (count > 0) each?.(this.#packets)
        },
      },
    )
    return total
  }

  /**
   * Queues an IP packet, which is copied, for `flush`. False when nothing fits until then. Throws
   * `wireguard/packet` above the MTU.
   */
  send(packet: Uint8Array): boolean {
    const slot = this.slot(packet.length)
    if (!slot) return false
    slot.set(packet)
    return true
  }

  /** Where a packet of so many bytes is to be written, now, to be sent by the next `flush`. */
  slot(length: number): Uint8Array | undefined {
    if (length > this.#mtu || length < 1) throw tooLong(length, this.#mtu)
    const room = HEAD_BYTES + Math.min((length + 15) & ~15, this.#mtu) +
      TAIL_BYTES
    const at = this.#queueEnd
    this.#follow()
    const { sendPool } = this.#instance
    if (
      this.#isFlushing || this.#queued === RUNS_MAX ||
      at + room > sendPool.length
    ) return
    const word = this.#queued++ * RUN_WORDS
    this.#queue[word] = at
    this.#queue[word + 1] = length
    this.#queue[word + 2] = room
    this.#queueEnd = at + room
    return sendPool.subarray(at + HEAD_BYTES, at + HEAD_BYTES + length)
  }

  /** Of the last slot: so many bytes were written, at most what was asked for; 0 gives it back. */
  trim(length: number): void {
    const word = --this.#queued * RUN_WORDS
    this.#queueEnd = this.#queue[word]!
    if (length > 0) this.slot(length)
  }

  /** Gives all that is to go out, in batches, and then tells notices. `emit` sends nothing itself. */
  flush(emit: (batch: Batch) => unknown): void {
    if (this.#isFlushing) return
    this.#isFlushing = true
    try {
      this.run((instance) => instance.feed(this.#random))
      const queued = this.#queued
      this.#queued = this.#queueEnd = 0
      if (queued > 0) {
        this.#give(this.#sealed, emit, ({ call, input }) => {
          input.set(this.#queue.subarray(0, queued * RUN_WORDS))
          return call['wg_send']!(queued, this.#now(), this.#wallClock())
        })
      }
      const poll = ({ call }: Instance): number => call['wg_poll']!(this.#now(), this.#wallClock())
      while (this.#give(this.#polled, emit, poll) > 0);
    } finally {
      this.#isFlushing = false
    }
    this.tell()
  }

  /** Runs timers that are due; when to call again, by `now`, Infinity for never. Then `flush`. */
  tick(): number {
    return this.run((instance) => {
      instance.feed(this.#random)
      return instance.call['wg_tick']!(this.#now(), this.#wallClock())
    }) ?? this.#now()
  }

  get nextDeadline(): number {
    return this.run(({ call }) => call['wg_next_deadline']!()) ?? this.#now()
  }

  /** Whose code seals and opens long packets: `wasm`, or the name of what was lent (`lendAead`). */
  get aead(): string {
    return this.#instance.aead
  }

  /** Compares the vector code with the portable one in this engine, which also warms it up: some 50 ms. */
  selfTest(): boolean {
    return this.run(({ call }) => call['wg_self_test']!()) === 1
  }

  #give(
    batch: Batch,
    emit: (batch: Batch) => unknown,
    make: (instance: Instance) => number,
  ): number {
    batch.count = this.run(make) ?? 0
    this.#follow()
    if (batch.count > 0) emit(batch)
    return batch.count
  }

  /** Tells notices. */
  tell(): void {
    for (;;) {
      const kind = this.run(({ call }) => call['wg_next_notice']!()) ?? 0
      if (kind === 0) return
      const notice = NOTICES[kind - 1]
      const peer = this.#byId[this.#instance.scratchView.getUint32(0, true)]
      if (!notice || !peer) continue
      if (notice === 'connected' || notice === 'roamed') {
        // Where it is now is where a new instance looks for it.
        this.run(({ call, scratch }) => {
          if (call['wg_peer_stats']!(peer.id) === 0 || scratch[28] !== 1) {
            return
          }
          peer.state.endpoint = scratch.slice(64, 64 + ENDPOINT_BYTES)
          peer.state.endpoint.fill(0, 27)
        })
      }
      this.#onNotice?.(notice, peer)
    }
  }

  // Of this package: what the tunnel does with the same instance.

  /**
   * Lays a batch into the module in pieces that it takes at once: `enter` is called for each, and
   * `done` with what that gave, undefined where the instance was lost.
   */
  take<T>(
    batch: Batch,
    enter: (instance: Instance, count: number) => T,
    { done, datagramsMax = RUNS_MAX }: {
      done: (result: T | undefined) => void
      datagramsMax?: number
    },
  ): void {
    const isOwn = batch === this.#inbox
    try {
      for (let first = 0; first < batch.count;) {
        const bytesMax = isOwn ? Infinity : this.#instance.receivePool.length >>> 1
        const last = pieceOf(batch, first, { bytesMax, datagramsMax })
        const result = this.run((instance) => {
          instance.feed(this.#random)
          this.#follow()
          return instance.load(batch, { first, last, isOwn })
            ? enter(instance, last - first)
            : undefined
        })
        this.#follow()
        first = last
        done(result)
      }
    } finally {
      // Whatever `done` threw: it is not received twice.
      if (isOwn) batch.clear()
    }
  }

  get instance(): Instance {
    this.#follow()
    return this.#instance
  }

  /** A copy of what lies in the receive pool. */
  payload(offset: number, length: number): Uint8Array {
    return this.instance.receivePool.slice(offset, offset + length)
  }

  feed(): void {
    this.run((instance) => instance.feed(this.#random))
  }

  wallClock(): number {
    return this.#wallClock()
  }

  /** What `run` has left in the send pool. */
  sealed(runs: number): Batch {
    this.#follow()
    this.#sealed.count = runs
    return this.#sealed
  }

  // The instance.

  /** Undefined where the instance was lost on the way. Throws `wireguard/trapped`. */
  run<T>(act: (instance: Instance) => T): T | undefined {
    this.#follow()
    try {
      return act(this.#instance)
    } catch (error) {
      if (!isTrap(error)) throw error
      this.#restart(error)
      return undefined
    }
  }

  #restart(cause: unknown): void {
    const now = this.#now()
    this.#restarts = this.#restarts.filter((ms) => now - ms < RESTARTS_MS)
    if (this.#restarts.length >= RESTARTS_MAX) {
      const found = `${RESTARTS_MAX} traps in a minute`
      throw new WireGuardError(
        'wireguard/trapped',
        `Cannot go on: found ${found}`,
        { cause },
      )
    }
    this.#restarts.push(now)
    this.#restartCount++
    this.#queued = this.#queueEnd = 0
    this.#byId.length = 0
    this.#inbox.clear()
    this.#open()
    for (const peer of this.#byKey.values()) {
      const state = { ...peer.state }
      this.#add(this.#instance, peer)
      Object.assign(peer.state, EMPTY_STATE, { allowed: new Set() })
      this.#set(peer, state)
      if (state.endpoint) this.connect(peer)
    }
    this.#onRestart?.(cause)
  }

  #open(): void {
    this.#instance = new Instance(this.#module, this.#sizes)
    this.#point()
    this.#instance.feed(this.#random)
    this.#writeKey()
    this.#instance.call['wg_set_mtu']!(this.#mtu)
    if (this.#loadLimit !== undefined) {
      this.#instance.call['wg_set_load_limit']!(this.#loadLimit)
    }
    this.#onInstance?.(this.#instance)
  }

  /** Batches look into the memory that there is now. */
  #follow(): void {
    this.#instance.refresh()
    if (this.#pointed !== this.#instance.buffer) this.#point()
  }

  #point(): void {
    this.#pointed = this.#instance.buffer
    const { receivePool, sendPool, pollPool, runs, runEndpoints, packets } = this.#instance
    this.#inbox.bytes = receivePool.subarray(0, receivePool.length >>> 1)
    this.#sealed.bytes = sendPool
    this.#polled.bytes = pollPool
    this.#sealed.words = this.#polled.words = runs
    this.#sealed.endpoints = this.#polled.endpoints = runEndpoints
    this.#packets.bytes = receivePool
    this.#packets.words = packets
  }

  #writeKey(): void {
    this.#instance.scratch.set(this.#privateKey)
    this.#instance.call['wg_set_private_key']!()
  }

  #derive(): Uint8Array {
    const { scratch, call } = this.#instance
    scratch.set(this.#privateKey)
    call['wg_derive_public']!()
    return scratch.slice(0, 32)
  }

  #add(instance: Instance, peer: Peer): void {
    instance.scratch.set(peer.publicKey)
    const id = instance.call['wg_add_peer']!()
    if (id < 0) {
      const code = instance.call['wg_last_error']!()
      if (code === 5) {
        throw new WireGuardError(
          'wireguard/key',
          'Cannot add a peer: bad public key',
        )
      }
      throw peerProblem(
        code === 6 ? 'there are 16,384 already' : `error ${code}`,
      )
    }
    peer.id = id
    this.#byId[id] = peer
  }

  /** Brings the module from what was set to what is to be. */
  #set(peer: Peer, next: PeerState): void {
    const before = { ...peer.state }
    Object.assign(peer.state, next)
    for (const text of next.allowed) {
      if (before.allowed.has(text)) continue
      // A prefix is one peer's: it moves here.
      for (const other of this.#byKey.values()) {
        if (other !== peer) other.state.allowed.delete(text)
      }
    }
    const times = [this.#now(), this.#wallClock()] as const
    this.run((instance) => bring(instance, { id: peer.id, before, next, times }))
    if (before.presharedKey !== next.presharedKey) before.presharedKey?.fill(0)
  }
}

/** Where the piece that begins at `first` ends: what the module takes at once. */
function pieceOf(
  { words, count }: Batch,
  first: number,
  { bytesMax, datagramsMax }: { bytesMax: number; datagramsMax: number },
): number {
  const start = words[first * RUN_WORDS]!
  let last = first
  for (let datagrams = 0; last < count; last++) {
    const word = last * RUN_WORDS
    datagrams += Math.ceil(
      words[word + 1]! / (words[word + 3]! || words[word + 1]!),
    )
    const bytes = words[word]! + words[word + 1]! - start
    if (last > first && (datagrams > datagramsMax || bytes > bytesMax)) break
  }
  return last
}

function keyText(key: Uint8Array): string {
  return String.fromCharCode(...key)
}

function checkMtu(bytes: number): number {
  if (Number.isInteger(bytes) && bytes >= 576 && bytes <= MTU_BYTES_MAX) {
    return bytes
  }
  const expected = `576 to ${MTU_BYTES_MAX} bytes`
  throw new WireGuardError(
    'wireguard/packet',
    `Cannot set the MTU: found ${bytes}, expected ${expected}`,
  )
}

function tooLong(length: number, mtu: number): WireGuardError {
  return new WireGuardError(
    'wireguard/packet',
    `Cannot send a packet: found ${length} bytes, expected 1 to ${mtu}`,
  )
}

function peerProblem(why: string): WireGuardError {
  return new WireGuardError('wireguard/peer', `Cannot set up the peer: ${why}`)
}
