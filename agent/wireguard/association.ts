/**
 * A SOCKS5 client's UDP (RFC 1928 §7): one local UDP port for as long as its TCP connection stands, one flow into
 * the network behind it. Takes datagrams from the client's own address alone, and once one came, from
 * that port alone; parts of datagrams are dropped, as the RFC lets us.
 */
import { parseAddress } from '../../core/address.ts'
import { equal } from '../../core/bytes.ts'
import type { Clock } from '../../core/clock.ts'
import type { Conn } from '../../core/socket.ts'
import type { BindUdp, DatagramFlow, FarEnd, Network, Place } from './network.ts'
import { decodeSocksDatagram, encodeSocksDatagram } from './socks.ts'

/** Names that the client sent to; the oldest is asked for again. */
const NAMES_MAX = 64
const NAME_MS = 60_000
/** Of them, those that are asked for at a time: each takes a port in the network. Datagrams to more are lost. */
const ASKED_MAX = 16
/** Datagrams that wait for the address of their name. */
const WAITING_MAX = 16
/** IPv4's own bound on what a datagram carries, less the IP and UDP heads. */
const DATAGRAM_BYTES_MAX = 65_507

export interface Association {
  /** Where the client sends. */
  readonly bound: FarEnd
  close(): void
}

interface KnownName {
  address: string | undefined
  untilMs: number
  waiting: { port: number; bytes: Uint8Array }[]
}

/** Throws what the network's `bindDatagrams` and `bindUdp` throw. */
export async function openAssociation(
  ports: { bindUdp: BindUdp; network: Network; clock: Clock },
  options: { conn: Conn; host: string; client: Place },
): Promise<Association> {
  const { conn, host, client } = options
  const local = await ports.bindUdp({ host, port: 0 })
  try {
    const flow = await ports.network.bindDatagrams()
    return new Relay(ports, { local, flow, host, from: parseAddress(conn.remoteAddress), client })
  } catch (error) {
    local.close()
    throw error
  }
}

class Relay implements Association {
  readonly bound: FarEnd
  readonly #network: Network
  readonly #clock: Clock
  readonly #local: DatagramFlow
  readonly #flow: DatagramFlow
  readonly #from: Uint8Array | undefined
  readonly #names = new Map<string, KnownName>()
  #asked = 0
  #clientPort: number
  #client: FarEnd | undefined
  #closed = false

  constructor(
    { network, clock }: { network: Network; clock: Clock },
    { local, flow, host, from, client }: {
      local: DatagramFlow
      flow: DatagramFlow
      host: string
      from: Uint8Array | undefined
      client: Place
    },
  ) {
    this.#network = network
    this.#clock = clock
    this.#local = local
    this.#flow = flow
    this.#from = from
    // A client that says where it sends from means it; zeros say nothing.
    this.#clientPort = client.port
    this.bound = { address: host, port: local.port }
    local.handle({ message: (sender, bytes) => this.#outward(sender, bytes) })
    flow.handle({
      message: (sender, bytes) => this.#inward(sender, bytes),
      closed: () => this.close(),
    })
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#local.close()
    this.#flow.close()
    this.#names.clear()
  }

  #outward(sender: FarEnd, bytes: Uint8Array): void {
    const address = parseAddress(sender.address)
    if (!address || !this.#from || !equal(address, this.#from)) return
    if (this.#clientPort !== 0 && sender.port !== this.#clientPort) return
    const datagram = decodeSocksDatagram(bytes)
    if (!datagram) return
    this.#clientPort = sender.port
    this.#client = sender
    const { host, port } = datagram.to
    if (parseAddress(host)) this.#flow.send({ address: host, port }, datagram.bytes)
    else this.#toName(host, port, datagram.bytes)
  }

  #toName(name: string, port: number, bytes: Uint8Array): void {
    const known = this.#names.get(name)
    const nowMs = this.#clock.monotonic()
    if (known && known.untilMs > nowMs) {
      if (known.address !== undefined) this.#flow.send({ address: known.address, port }, bytes)
      else if (known.waiting.length < WAITING_MAX) known.waiting.push({ port, bytes })
      return
    }
    if (this.#asked >= ASKED_MAX) return
    if (!known && this.#names.size >= NAMES_MAX) {
      this.#names.delete(this.#names.keys().next().value!)
    }
    const fresh: KnownName = {
      address: undefined,
      untilMs: nowMs + NAME_MS,
      waiting: [{ port, bytes }],
    }
    this.#names.set(name, fresh)
    this.#asked++
    this.#network.resolve(name).finally(() => void this.#asked--).then(([address]) => {
      if (this.#closed) return
      fresh.address = address
      for (const one of fresh.waiting) {
        if (address !== undefined) this.#flow.send({ address, port: one.port }, one.bytes)
      }
      fresh.waiting = []
    }, () => {
      // It may be asked for again; these are lost, as datagrams may be.
      if (this.#names.get(name) === fresh) this.#names.delete(name)
    })
  }

  #inward(sender: FarEnd, bytes: Uint8Array): void {
    if (!this.#client || this.#closed) return
    const framed = encodeSocksDatagram(sender, bytes)
    if (framed.length <= DATAGRAM_BYTES_MAX) this.#local.send(this.#client, framed)
  }
}
