/** Two devices through the package's TypeScript face, joined in memory, in virtual time. */
import { Batch, Device, encodeEndpoint } from '../../agent/wireguard-wasm/index.ts'
import type { DeviceOptions, Packets, Peer } from '../../agent/wireguard-wasm/index.ts'
import { loadModule } from '../../agent/wireguard-wasm/load_file.ts'

export const module = await loadModule()

export class Time {
  ms = 1_000_000
  readonly now = (): number => this.ms
  readonly wallClock = (): number => 1.7e12 + this.ms
}

/** A device with a number: 10.0.0.N and fd00::N, at 192.0.2.N:51820. */
export class Node {
  readonly device: Device
  readonly record: Uint8Array
  readonly packets: Uint8Array[] = []
  readonly sent: Uint8Array[] = []
  peer!: Peer

  constructor(number: number, time: Time, options: Partial<DeviceOptions> = {}) {
    this.number = number
    this.device = new Device({
      module,
      privateKey: crypto.getRandomValues(new Uint8Array(32)),
      now: time.now,
      wallClock: time.wallClock,
      receivePoolBytes: 2 ** 20,
      sendPoolBytes: 2 ** 20,
      reserveBytes: 2 ** 20,
      ...options,
    })
    this.record = encodeEndpoint({ host: `192.0.2.${number}`, port: 51820 })
  }

  readonly number: number

  know(other: Node, withEndpoint = true): void {
    this.peer = this.device.addPeer({
      publicKey: other.device.publicKey,
      allowedIps: [`10.0.0.${other.number}/32`, `fd00::${other.number}/128`],
      ...(withEndpoint ? { endpoint: `192.0.2.${other.number}:51820` } : {}),
    })
  }

  /** All that goes out now, datagram by datagram. */
  flush(): Uint8Array[] {
    const out: Uint8Array[] = []
    this.device.flush((batch) => batch.each((datagram) => out.push(datagram.slice())))
    this.sent.push(...out)
    return out
  }

  take(datagrams: readonly Uint8Array[], from: Node): number {
    const batch = Batch.make(datagrams.reduce((sum, { length }) => sum + length, 0))
    for (const datagram of datagrams) batch.push(datagram, from.record)
    return this.device.receive(batch, (packets) => this.keep(packets))
  }

  keep(packets: Packets): void {
    packets.each((packet) => this.packets.push(packet.slice()))
  }
}

export function nodes(time: Time, options: Partial<DeviceOptions> = {}): [Node, Node] {
  const pair: [Node, Node] = [new Node(1, time, options), new Node(2, time, options)]
  pair[0].know(pair[1])
  pair[1].know(pair[0])
  return pair
}

/** Carries all there is until both are silent. */
export function settle(a: Node, b: Node): void {
  for (let turns = 0; turns < 100; turns++) {
    const forth = a.flush()
    if (forth.length > 0) b.take(forth, a)
    const back = b.flush()
    if (back.length > 0) a.take(back, b)
    if (forth.length + back.length === 0) return
  }
  throw new Error('the devices never fall silent')
}

/** An IPv4 packet from one to the other. */
export function ipv4(from: number, to: number, payload: Uint8Array | number): Uint8Array {
  const body = typeof payload === 'number' ? new Uint8Array(payload).fill(7) : payload
  const packet = new Uint8Array(20 + body.length)
  packet.set([0x45, 0, packet.length >> 8, packet.length & 255, 0, 0, 0, 0, 64, 17])
  packet.set([10, 0, 0, from, 10, 0, 0, to], 12)
  packet.set(body, 20)
  return packet
}
