// The AEAD of this machine's libcrypto in the place of the module's own: it agrees, it is left where it is
// missing, wrong or breaks, keeps no key, and packets of both kinds of devices are the same.
// runtimes: bun
// seconds: 20
import { closeSync, openSync, readFileSync, readSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Libcrypto } from '../../agent/host/libcrypto.ts'
import { hostWireGuard } from '../../agent/host/wireguard.ts'
import { lendAead } from '../../agent/wireguard-wasm/index.ts'
import type { AeadLender } from '../../agent/wireguard-wasm/index.ts'
import { loadModule } from '../../agent/wireguard-wasm/load_file.ts'
import { ipv4, Node, settle, Time } from '../support/wireguard.ts'

const test = suite('wireguard/libcrypto')
const NAME = 'libcrypto.so.3'
/** With a head of 20 bytes and padding around 512, from where on libcrypto is asked. */
const LENGTHS = [0, 1, 300, 476, 477, 492, 493, 700, 1380]
const libcrypto = await Libcrypto.open()

/** One device of a module that is lent what `lender` gives, and one with its own; they have met. */
async function pair(lender: AeadLender | undefined): Promise<[Node, Node, Time]> {
  const module = await loadModule()
  lendAead(module, lender)
  const time = new Time()
  const [a, b] = [new Node(1, time, { module }), new Node(2, time)]
  a.know(b)
  b.know(a)
  a.device.send(ipv4(1, 2, 1))
  settle(a, b)
  assert.is(b.packets.length, 1)
  b.packets.length = 0
  return [a, b, time]
}

function exchange(a: Node, b: Node): void {
  for (const [from, to] of [[a, b], [b, a]] as const) {
    to.packets.length = 0
    const packets = LENGTHS.map((length) => ipv4(from.number, to.number, length))
    for (const packet of packets) from.device.send(packet)
    settle(a, b)
    assert.equal(to.packets, packets)
  }
}

test('it is found, passes its tests, and devices of the module use it', async () => {
  assert.ok(libcrypto, `${NAME} is on this machine`)
  const module = await loadModule()
  assert.ok(libcrypto.lendTo(module))
  assert.is(new Node(1, new Time(), { module }).device.aead, NAME)
  assert.is(new Node(1, new Time()).device.aead, 'wasm', 'each module for itself')
  const compiled = await hostWireGuard.module()
  assert.is(new Node(1, new Time(), { module: compiled }).device.aead, NAME)
})

test('packets are the same, whoever seals and opens them', async () => {
  const [a, b] = await pair(libcrypto!.lend)
  assert.is(a.device.aead, NAME)
  for (let round = 0; round < 20; round++) {
    exchange(a, b)
    await Promise.resolve()
  }
  assert.ok(a.device.selfTest())
})

test('what is forged is refused, by its count, and the next packet passes', async () => {
  const [a, b] = await pair(libcrypto!.lend)
  b.device.send(ipv4(2, 1, 1200))
  const [message] = b.flush()
  for (let at = 16; at < message!.length; at += 97) {
    const forged = message!.slice()
    forged[at]! ^= 0x20
    assert.is(a.take([forged], b), 0)
  }
  assert.is(a.take([message!], b), 1, 'its number was not used up')
  assert.is(a.take([message!], b), 0, 'now it was')
  assert.equal(a.packets.at(-1), ipv4(2, 1, 1200))
  const { drops } = a.device.stats()
  assert.is(drops.forged, Math.ceil((message!.length - 16) / 97))
  assert.is(drops.replayed, 1)
})

test('memory that grows is followed', async () => {
  const module = await loadModule()
  lendAead(module, libcrypto!.lend)
  let grow = (): unknown => 0
  const time = new Time()
  const a = new Node(1, time, {
    module,
    onInstance: ({ call }) => grow = () => call.memory.grow(16),
  })
  const b = new Node(2, time)
  a.know(b)
  b.know(a)
  for (let round = 0; round < 3; round++) {
    exchange(a, b)
    grow()
  }
})

test('a library that is missing or another is none', async () => {
  assert.is(await Libcrypto.open('libcrypto-that-is-not.so.3'), undefined)
  assert.is(await Libcrypto.open('libc.so.6'), undefined)
})

test('one that seals otherwise, accepts all, or spoils what it refuses fails the test', async () => {
  const right: AeadLender = (memory) => libcrypto!.lend(memory)
  const wrong: AeadLender[] = [
    (memory) => ({
      ...right(memory)!,
      seal: (key, nonce, tag, text, bytes) => {
        const done = right(memory)!.seal(key, nonce, tag, text, bytes)
        new Uint8Array(memory.buffer)[text]! ^= 1
        return done
      },
    }),
    (memory) => ({
      ...right(memory)!,
      open: (...places) => right(memory)!.open(...places) | 1,
    }),
    (memory) => ({
      ...right(memory)!,
      open: (key, nonce, tag, text, bytes) => {
        const done = right(memory)!.open(key, nonce, tag, text, bytes)
        if (done === 0) new Uint8Array(memory.buffer)[text + 5]! ^= 1
        return done
      },
    }),
  ]
  for (const lender of [...wrong, right]) {
    const module = await loadModule()
    lendAead(module, lender)
    assert.is(new Node(1, new Time(), { module }).device.selfTest(), lender === right)
  }
})

test('one that declines leaves the text to the module, one that breaks is replaced with the instance', async () => {
  const [a, b] = await pair((memory) => ({ ...libcrypto!.lend(memory)!, seal: () => 0 }))
  exchange(a, b)

  let lent = 0
  const [c, d, time] = await pair((memory) => {
    if (lent++ > 0) return undefined
    let calls = 0
    const aead = libcrypto!.lend(memory)!
    return {
      ...aead,
      seal: (...places) => {
        if (calls++ > 2) throw new WebAssembly.RuntimeError('it broke')
        return aead.seal(...places)
      },
    }
  })
  assert.is(c.device.aead, NAME)
  for (let i = 0; i < 4; i++) c.device.send(ipv4(1, 2, 1300))
  c.flush()
  assert.is(c.device.aead, 'wasm')
  // A new instance makes a new handshake, with a stamp that has to be later.
  time.ms += 10_000
  c.device.tick()
  settle(c, d)
  exchange(c, d)
})

/** How often these bytes are where the C library puts what it is asked for. */
function copiesOf(bytes: Uint8Array): number {
  const maps = readFileSync('/proc/self/maps', 'utf8')
  const range = /^([0-9a-f]+)-([0-9a-f]+) .*\[heap\]$/m.exec(maps)
  const [from, to] = [Number.parseInt(range![1]!, 16), Number.parseInt(range![2]!, 16)]
  const heap = Buffer.alloc(to - from)
  const file = openSync('/proc/self/mem', 'r')
  for (let at = 0; at < heap.length;) {
    const count = readSync(file, heap, at, Math.min(2 ** 20, heap.length - at), from + at)
    assert.ok(count > 0)
    at += count
  }
  closeSync(file)
  let count = 0
  for (let at = heap.indexOf(bytes); at >= 0; at = heap.indexOf(bytes, at + 1)) count++
  return count
}

test('no key stays in the library after the turn', async () => {
  const memory = new WebAssembly.Memory({ initial: 1 })
  const key = new Uint8Array(memory.buffer, 0, 32)
  crypto.getRandomValues(key)
  const aead = libcrypto!.lend(memory)!
  assert.is(copiesOf(key), 0)
  assert.is(aead.seal(0, 64, 128, 256, 1000), 1)
  assert.is(aead.open(0, 64, 128, 256, 1000), 1)
  assert.is(copiesOf(key), 2, 'one to seal with, one to open')
  await Promise.resolve()
  assert.is(copiesOf(key), 0)
})

test.run()
