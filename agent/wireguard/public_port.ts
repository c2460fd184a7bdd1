/**
 * A UDP port of the relay that leads to a device of this process: what `sotto udp` is for other programs,
 * without a socket in between. Each visitor is a packet channel, and an endpoint of the device at the address
 * that the relay says; so cookies are bound to it, and a client that moves is followed. The relay has no key:
 * what it invents, or sends under another address, is what anybody can send to a UDP port.
 */
import { parseAddress } from '../../core/address.ts'
import { RESET } from '../../core/frame.ts'
import type { Stream } from '../../core/mux.ts'
import type { Endpoint } from '../agent.ts'
import type { Offer } from '../bulk.ts'
import type { Place } from '../tunnel.ts'
import { ENDPOINT_BYTES, writeEndpoint } from '../wireguard-wasm/address.ts'
import { Batch, RUN_WORDS } from '../wireguard-wasm/batch.ts'
import type { Path } from '../wireguard-wasm/driver.ts'

/** Among the paths of a device; see `relay_path.ts`. */
export const PUBLIC_PATH = 2
/** What the relay's port is called there, after the network. */
const NAME_END = '-udp'
export const NETWORK_NAME_LETTERS_MAX = 63 - NAME_END.length
const DATAGRAM_BYTES_MAX = 65_500
/** Datagrams of one turn; more are handed on before. */
const INBOX_BYTES = 1_048_576
/**
 * Visitors at once: half of the streams that a link has, so that members have the others. Those that are quiet for
 * 60 s end. Where there are as many, the first that was never answered makes room: WireGuard answers nobody who does
 * not know the network's key, so that strangers, who can come from any address, shut out no client.
 */
const FLOWS_MAX = 512

interface Flow {
  readonly stream: Stream
  isAnswered: boolean
}

export class PublicPort implements Path, Endpoint {
  readonly mtu: number = DATAGRAM_BYTES_MAX
  onReceive?: ((batch: Batch) => void) | undefined
  onDrain?: (() => void) | undefined
  readonly options: { readonly name: string; readonly kind: 'udp'; readonly mode: 'raw' }
  /** Where clients find it; known once the relay has opened it. */
  place: Place | undefined
  readonly #port: number
  readonly #flows = new Map<string, Flow>()
  readonly #batch = Batch.make(INBOX_BYTES)
  #isWoken = false
  #isClosed = false

  /** Port 0 is any of the relay's, the same each time while that is free. */
  constructor(network: string, port: number) {
    this.options = { name: `${network}${NAME_END}`, kind: 'udp', mode: 'raw' }
    this.#port = port
  }

  get size(): number {
    return this.#flows.size
  }

  claim(): object {
    return { do: 'claim', ...this.options, port: this.#port }
  }

  claimed(reply: Record<string, unknown>): void {
    const place = { name: String(reply['name']), host: String(reply['host']), url: undefined }
    this.place = { ...place, port: Number(reply['port']) }
  }

  /** Bulk links are for bytes. */
  offered(offer: Offer): void {
    offer.refuse()
  }

  cutBulk(): void {}

  opened(stream: Stream): void {
    const { kind, address, port } = stream.visit
    const ip = plain(parseAddress(address))
    if (kind !== 'udp' || !ip || port < 1 || port > 65_535) {
      return stream.reset(RESET.protocol, 'no visitor of a UDP port')
    }
    if (this.#isClosed) return stream.reset(RESET.refused, 'not served any more')
    const record = new Uint8Array(ENDPOINT_BYTES)
    writeEndpoint(record, { at: 0, ip, port, path: PUBLIC_PATH })
    const key = keyOf(record, 0)
    const before = this.#flows.get(key)
    if (!before && this.#flows.size >= FLOWS_MAX && !this.#makeRoom()) {
      return stream.reset(RESET.overload, 'too many visitors')
    }
    // The same again: the relay has forgotten the flow before.
    if (before) this.#end(key, before)
    const flow: Flow = { stream, isAnswered: false }
    this.#flows.set(key, flow)
    stream.accept()
    stream.onPacket = (datagram) => this.#take(datagram, record)
    stream.handle({
      data: () => stream.reset(RESET.protocol),
      end() {},
      closed: () => {
        if (this.#flows.get(key) === flow) this.#flows.delete(key)
      },
    })
  }

  send(batch: Batch, from = 0, to: number = batch.count): boolean {
    let isTaken = true
    for (let run = from; run < to; run++) {
      const word = run * RUN_WORDS
      const [at = 0, length = 0, , size = 0] = batch.words.subarray(word, word + RUN_WORDS)
      const flow = this.#flows.get(keyOf(batch.endpoints, run * ENDPOINT_BYTES))
      // A flow that has ended: the client's next packet makes another.
      if (!flow) continue
      flow.isAnswered = true
      const datagrams = batch.bytes.subarray(at, at + length)
      if (flow.stream.sendPackets(datagrams, size) === 'lost') isTaken = false
    }
    return isTaken
  }

  close(): void {
    this.#isClosed = true
    for (const [key, flow] of this.#flows) this.#end(key, flow)
  }

  #makeRoom(): boolean {
    for (const [key, flow] of this.#flows) {
      if (flow.isAnswered) continue
      this.#end(key, flow)
      return true
    }
    return false
  }

  #end(key: string, { stream }: Flow): void {
    this.#flows.delete(key)
    delete stream.onPacket
    stream.abort()
  }

  #take(datagram: Uint8Array, record: Uint8Array): void {
    if (!this.#batch.push(datagram, record)) {
      this.#give()
      this.#batch.push(datagram, record)
    }
    if (this.#isWoken) return
    this.#isWoken = true
    // One turn for all that a frame brought.
    queueMicrotask(() => {
      this.#isWoken = false
      this.#give()
    })
  }

  #give(): void {
    if (this.#batch.count > 0 && !this.#isClosed) this.onReceive?.(this.#batch)
    this.#batch.clear()
  }
}

/** IPv4 within IPv6, as sockets of both families tell it, is IPv4. */
function plain(ip: Uint8Array | undefined): Uint8Array | undefined {
  const isMapped = ip?.length === 16 && ip.subarray(0, 10).every((byte) => byte === 0) &&
    ip[10] === 255 && ip[11] === 255
  return isMapped ? ip.slice(12) : ip
}

/** Address, port and family of a record. */
function keyOf(records: Uint8Array, at: number): string {
  return String.fromCharCode(...records.subarray(at + 8, at + 27))
}
