/** WireGuard datagrams over a UDP port of this machine, on any socket: one call of the system for each. */
import { ENDPOINT_BYTES, parseIp, writeEndpoint } from '../wireguard-wasm/address.ts'
import { Batch } from '../wireguard-wasm/batch.ts'
import type { Path } from '../wireguard-wasm/driver.ts'
import type { DatagramFlow } from './network.ts'

/** Number of this path among those of a device. */
export const UDP_PATH = 0
/** IPv4's own bound, less the IP and UDP heads. */
const DATAGRAM_BYTES_MAX = 65_507
const INBOX_BYTES = 1_048_576

export class UdpPath implements Path {
  readonly mtu: number = DATAGRAM_BYTES_MAX
  onReceive?: ((batch: Batch) => void) | undefined
  onDrain?: (() => void) | undefined
  inbox?: (() => Batch) | undefined
  readonly #sockets: readonly DatagramFlow[]
  readonly #batch = Batch.make(INBOX_BYTES)
  readonly #record = new Uint8Array(ENDPOINT_BYTES)
  #isWoken = false

  /** One socket of a family, or one of each: `four`, `six`. */
  constructor(sockets: readonly DatagramFlow[]) {
    this.#sockets = sockets
    for (const socket of sockets) {
      socket.handle({ message: ({ address, port }, bytes) => this.#take(address, port, bytes) })
    }
  }

  get port(): number {
    return this.#sockets[0]!.port
  }

  send(batch: Batch, from = 0, to: number = batch.count): boolean {
    let isTaken = true
    const part = new Batch(
      batch.bytes,
      batch.words.subarray(from * 4, to * 4),
      batch.endpoints.subarray(from * ENDPOINT_BYTES, to * ENDPOINT_BYTES),
    )
    part.count = to - from
    part.each((datagram, endpoint) => {
      if (!endpoint) return
      const socket = endpoint.host.includes(':') ? this.#sockets[1] : this.#sockets[0]
      const far = { address: endpoint.host, port: endpoint.port }
      if (!socket?.send(far, datagram)) isTaken = false
    })
    return isTaken
  }

  close(): void {
    for (const socket of this.#sockets) socket.close()
  }

  #take(address: string, port: number, bytes: Uint8Array): void {
    const [host = ''] = address.replace(/^::ffff:(?=[0-9.]+$)/, '').split('%')
    writeEndpoint(this.#record, { at: 0, ip: parseIp(host), port, path: UDP_PATH })
    if (!this.#batch.push(bytes, this.#record)) {
      this.#give()
      this.#batch.push(bytes, this.#record)
    }
    if (this.#isWoken) return
    this.#isWoken = true
    queueMicrotask(() => {
      this.#isWoken = false
      this.#give()
    })
  }

  #give(): void {
    if (this.#batch.count > 0) this.onReceive?.(this.#batch)
    this.#batch.clear()
  }
}
