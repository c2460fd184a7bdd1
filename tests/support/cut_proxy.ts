/**
 * A way that can be cut: a TCP proxy before a port of this machine that counts what passes toward it,
 * and drops connections in the midst of it when so many bytes have passed.
 */
import { connect, createServer } from 'node:net'
import type { AddressInfo, Server, Socket } from 'node:net'

/** What waits for a slow end before the fast one is paused. */
const WAITING_BYTES_MAX = 1_048_576

interface Pair {
  near: Socket
  far: Socket
  /** Both ways. */
  bytes: number
}

export interface Cut {
  /** Bytes that had passed in all. */
  atBytes: number
  /** Connections that were dropped, and what each had carried. */
  carried: number[]
}

export class CutProxy {
  readonly cuts: Cut[] = []
  /** Toward the port, over all connections. */
  bytes = 0
  readonly #server: Server
  readonly #port: number
  readonly #pairs = new Set<Pair>()
  #waits: { bytes: number; reached: () => void }[] = []

  static async start(port: number): Promise<CutProxy> {
    const proxy = new CutProxy(port)
    await new Promise<void>((resolve) => proxy.#server.listen(0, '127.0.0.1', resolve))
    return proxy
  }

  private constructor(port: number) {
    this.#port = port
    this.#server = createServer({ allowHalfOpen: true, noDelay: true }, (near) => this.#join(near))
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port
  }

  /** Resolves in the very event in which so many bytes have passed. */
  passed(bytes: number): Promise<void> {
    return new Promise((reached) => void this.#waits.push({ bytes, reached }))
  }

  /** Drops what `chosen` says, by default all that is open, without a word to either end. */
  cut(chosen: (index: number) => boolean = () => true): Cut {
    // The busiest first.
    const all = [...this.#pairs].sort((a, b) => b.bytes - a.bytes)
    const pairs = all.filter((_, index) => chosen(index))
    for (const { near, far } of pairs) {
      near.resetAndDestroy()
      far.resetAndDestroy()
    }
    const cut = { atBytes: this.bytes, carried: pairs.map(({ bytes }) => bytes) }
    this.cuts.push(cut)
    return cut
  }

  close(): void {
    for (const { near, far } of this.#pairs) {
      near.destroy()
      far.destroy()
    }
    this.#server.close()
  }

  #join(near: Socket): void {
    const far = connect({
      port: this.#port,
      host: '127.0.0.1',
      allowHalfOpen: true,
      noDelay: true,
    })
    const pair = { near, far, bytes: 0 }
    this.#pairs.add(pair)
    this.#hand(near, far, (length) => {
      pair.bytes += length
      this.#count(length)
    })
    this.#hand(far, near, (length) => void (pair.bytes += length))
    for (const one of [near, far]) one.on('close', () => this.#pairs.delete(pair))
  }

  #hand(from: Socket, to: Socket, passed: (length: number) => void): void {
    from.on('data', (bytes) => {
      passed(bytes.length)
      if (to.writable) to.write(bytes)
      if (to.writableLength > WAITING_BYTES_MAX) from.pause()
    })
    to.on('drain', () => from.resume())
    from.on('end', () => to.end())
    from.on('error', () => {})
    from.on('close', () => to.destroy())
  }

  #count(length: number): void {
    this.bytes += length
    const reached = this.#waits.filter(({ bytes }) => bytes <= this.bytes)
    if (reached.length === 0) return
    this.#waits = this.#waits.filter(({ bytes }) => bytes > this.bytes)
    for (const one of reached) one.reached()
  }
}
