// The far end of an interface as an attacker: a real device with the right keys, which seals what it likes. Then the
// order and number of packets, and an interface that gives more than a path takes. The system's side is in memory.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { parseAddress, parseNetwork } from '../../../core/address.ts'
import { PacketGuard } from '../../../agent/wireguard/packet_guard.ts'
import { TunEnd } from '../../../agent/wireguard/tun_end.ts'
import { Device } from '../../../agent/wireguard-wasm/device.ts'
import { Driver, packetEngine } from '../../../agent/wireguard-wasm/driver.ts'
import type { Path } from '../../../agent/wireguard-wasm/driver.ts'
import { memoryPaths } from '../../../agent/wireguard-wasm/memory_path.ts'
import { compileModule } from '../../../agent/host/wireguard_module.ts'
import type { TunDevice } from '../../../agent/world.ts'

const OWN = '100.64.9.2'
const FAR = '192.168.1.100'

const test = suite('agent/wireguard/tun_end')
const closes: (() => void)[] = []

/** A system's interface: what it sends is put into `sent`, what it gets is in `got`. */
class MemoryTun implements TunDevice {
  readonly name = 'sotto0'
  readonly dropped = 0
  readonly got: Uint8Array[] = []
  readonly sent: Uint8Array[] = []
  onGot: (() => void) | undefined

  read(): Promise<Uint8Array | undefined> {
    return Promise.resolve(this.sent.shift())
  }

  take(into: Uint8Array): number {
    const packet = this.sent.shift()
    if (packet) into.set(packet)
    return packet?.length ?? 0
  }

  write(bytes: Uint8Array, from: number, length: number): boolean {
    this.got.push(bytes.slice(from, from + length))
    this.onGot?.()
    return true
  }

  close(): Promise<void> {
    return Promise.resolve()
  }
}

function udp(from: string, to: string, number = 0): Uint8Array {
  const packet = new Uint8Array(40)
  const view = new DataView(packet.buffer)
  packet.set([0x45, 0, 0, 40])
  packet.set([64, 17], 8)
  packet.set(parseAddress(from)!, 12)
  packet.set(parseAddress(to)!, 16)
  view.setUint16(20, 53)
  view.setUint16(22, 53)
  view.setUint16(24, 20)
  view.setUint32(28, number)
  return packet
}

const numberOf = (packet: Uint8Array): number => new DataView(packet.buffer).getUint32(28)
const after = (ms: number, run: () => void) => {
  const timer = setTimeout(run, ms)
  return { cancel: () => clearTimeout(timer) }
}

async function pair(wrap: (path: Path) => Path = (path) => path) {
  const module = await compileModule()
  const key = () => crypto.getRandomValues(new Uint8Array(32))
  const tun = new MemoryTun()
  const connected = Promise.withResolvers<void>()
  const guard = new PacketGuard({
    own: [parseAddress(OWN)!],
    routes: [parseNetwork('192.168.1.0/24')!, parseNetwork('100.64.9.0/24')!],
    accept: 'all',
    now: () => performance.now(),
    seed: 1,
  })
  const end = new TunEnd({
    ...{ module, privateKey: key(), addresses: [OWN], mtu: 1420, after, tun, guard },
    onRestart: (cause) => {
      throw cause
    },
    onNotice: () => connected.resolve(),
    roamed() {},
  })
  const got: Uint8Array[] = []
  let heard: (() => void) | undefined
  const far = new Device({ module, privateKey: key() })
  const driver = new Driver(
    packetEngine(far, (packets) => {
      packets.each((packet) => got.push(packet.slice()))
      heard?.()
    }),
  )
  const [here, there] = memoryPaths()
  // It names whom it likes: what may come from it is for our end to say.
  const toUs = far.addPeer({ publicKey: end.device.publicKey, allowedIps: ['0.0.0.0/0'] })
  const peer = end.device.addPeer({
    publicKey: far.publicKey,
    allowedIps: ['192.168.1.0/24', '100.64.9.0/24'],
    endpoint: here.endpoint,
  })
  end.addPath(0, wrap(here))
  driver.addPath(0, there)
  closes.push(() => {
    end.close()
    driver.close()
  })
  peer.connect()
  end.wake()
  await connected.promise
  const count = (list: Uint8Array[], least: number): Promise<void> =>
    new Promise((resolve) => {
      const look = (): void => list.length >= least ? resolve() : undefined
      heard = tun.onGot = look
      look()
    })
  const send = (...packets: Uint8Array[]): void => {
    for (const packet of packets) assert.ok(far.send(packet))
    driver.turn()
  }
  return { tun, guard, end, got, far, toUs, send, count }
}

test.after.each(() => {
  for (const close of closes.splice(0)) close()
})

test("packets whose source is not the network's, or whose destination is not ours, never reach the interface", async () => {
  const { tun, got, send, count, end, guard } = await pair()
  tun.sent.push(udp(OWN, FAR))
  end.give((await tun.read())!)
  await count(got, 1)
  const cut = udp(FAR, OWN)
  cut[3] = 41
  send(
    udp('8.8.8.8', OWN),
    udp('127.0.0.1', OWN),
    udp('10.0.0.1', OWN),
    udp(OWN, OWN),
    udp(FAR, '127.0.0.1'),
    udp(FAR, '100.64.9.3'),
    udp(FAR, '192.168.1.5'),
    udp(FAR, '255.255.255.255'),
    cut,
    udp(FAR, OWN, 77),
  )
  await count(tun.got, 1)
  assert.equal(tun.got.map(numberOf), [77])
  // Of the first three the device knows that they are not the network's; the length, too, is read by it.
  const dropped = guard.counts.source + guard.counts.destination + guard.counts.malformed
  assert.ok(dropped >= 5, JSON.stringify(guard.counts))
})

test('packets keep their order and their number in both directions, many at once', async () => {
  const { tun, got, send, count, end } = await pair()
  const numbers = Array.from({ length: 1_500 }, (_, i) => i)
  tun.sent.push(...numbers.map((number) => udp(OWN, FAR, number)))
  for (let packet = await tun.read(); packet; packet = await tun.read()) {
    const full = end.give(packet)
    if (full) await full
  }
  await count(got, numbers.length)
  assert.equal(got.map(numberOf), numbers)
  for (let at = 0; at < numbers.length; at += 500) {
    send(...numbers.slice(at, at + 500).map((number) => udp(FAR, OWN, number)))
  }
  await count(tun.got, numbers.length)
  assert.equal(tun.got.map(numberOf), numbers)
})

test('what is larger than was agreed is not sent, and is no error', async () => {
  const { tun, got, count, end } = await pair()
  const large = new Uint8Array(1_421)
  large.set(udp(OWN, FAR))
  new DataView(large.buffer).setUint16(2, large.length)
  tun.sent.push(large, udp(OWN, FAR, 5))
  end.give((await tun.read())!)
  await count(got, 1)
  assert.equal(got.map(numberOf), [5])
})

test('a path that is full holds reading up until it drains', async () => {
  let isFull = true
  let drain: (() => void) | undefined
  const { tun, end, got, count } = await pair((path) => ({
    mtu: path.mtu,
    send: (batch, from, to) => {
      path.send(batch, from, to)
      return !isFull
    },
    set onReceive(run: Path['onReceive']) {
      path.onReceive = run
    },
    set onDrain(run: Path['onDrain']) {
      drain = run
    },
    set inbox(run: Path['inbox']) {
      path.inbox = run
    },
  }))
  tun.sent.push(udp(OWN, FAR, 1))
  end.give((await tun.read())!)
  await count(got, 1)
  tun.sent.push(udp(OWN, FAR, 2))
  const held = end.give((await tun.read())!)
  assert.ok(held, 'it was to wait')
  isFull = false
  drain!()
  await held
})

test.run()
