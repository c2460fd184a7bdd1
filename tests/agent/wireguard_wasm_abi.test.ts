// The committed module against ABI.md, by its raw exports: two devices in two instances meet, move
// a batch as one run, never grow their memory, and refuse nonsense without a trap.
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'

const folder = new URL('../../agent/wireguard-wasm/', import.meta.url)
const bytes = readFileSync(new URL('wireguard.wasm', folder))
const module = new WebAssembly.Module(bytes)
const test = suite('agent/wireguard-wasm ABI')

type Exports = Record<string, (...numbers: number[]) => number>

class Side {
  readonly call: Exports
  readonly memory: WebAssembly.Memory
  readonly bytes: Uint8Array
  readonly view: DataView
  readonly areas: number[]
  readonly ip: number[]
  readonly port: number
  publicKey: Uint8Array = new Uint8Array(32)

  constructor(number: number) {
    const exports = new WebAssembly.Instance(module, {}).exports
    this.call = exports as unknown as Exports
    this.memory = exports['memory'] as WebAssembly.Memory
    assert.is(this.f('wg_init', 1 << 20, 1 << 20, 4 << 20), 1)
    this.areas = Array.from({ length: 10 }, (_, area) => this.f('wg_area', area))
    this.bytes = new Uint8Array(this.memory.buffer)
    this.view = new DataView(this.memory.buffer)
    this.ip = [10, 0, 0, number]
    this.port = number
    this.put(9, 0, crypto.getRandomValues(new Uint8Array(8192)))
    assert.is(this.f('wg_feed_entropy', 8192), 8192)
    const key = crypto.getRandomValues(new Uint8Array(32))
    this.put(8, 0, key)
    this.f('wg_derive_public')
    this.publicKey = this.take(8, 0, 32)
    this.put(8, 0, key)
    this.f('wg_set_private_key')
    assert.equal(this.take(8, 0, 32), new Uint8Array(32), 'the key is wiped from scratch')
  }

  f(name: string, ...numbers: number[]): number {
    return this.call[name]!(...numbers)
  }

  put(area: number, at: number, data: Uint8Array | number[]): void {
    this.bytes.set(data, this.areas[area]! + at)
  }

  take(area: number, at: number, length: number): Uint8Array {
    const from = this.areas[area]! + at
    return this.bytes.slice(from, from + length)
  }

  words(area: number, place: number, ...words: number[]): void {
    words.forEach((word, i) =>
      this.view.setUint32(this.areas[area]! + place * 16 + i * 4, word, true)
    )
  }

  read(area: number, place: number): number[] {
    return [0, 4, 8, 12].map((at) => this.view.getUint32(this.areas[area]! + place * 16 + at, true))
  }

  know(other: Side): void {
    this.put(8, 0, other.publicKey)
    assert.is(this.f('wg_add_peer'), 0)
    this.put(8, 0, other.ip)
    assert.is(this.f('wg_allow', 0, 4, 32), 1)
    this.put(8, 0, endpoint(other.port))
    assert.is(this.f('wg_set_endpoint', 0, 1000, 1.7e12), 1)
  }

  packets(to: Side, count: number, length: number, stride: number): number {
    for (let i = 0; i < count; i++) {
      const packet = new Uint8Array(length).fill(i)
      packet.set([0x45, 0, length >> 8, length & 255])
      packet.set([...this.ip, ...to.ip], 12)
      this.put(1, i * stride + 16, packet)
      this.words(3, i, i * stride, length, stride, 0)
    }
    return this.f('wg_send', count, 1000, 1.7e12)
  }
}

function endpoint(port: number): Uint8Array {
  const record = new Uint8Array(32)
  record.set([127, 0, 0, 1], 8)
  record.set([port, 0, 4], 24)
  return record
}

/** Carries runs of the pool to the other side; the number of packets that came out. */
function carry(from: Side, to: Side, pool: number, runs: number): number {
  let at = 0
  to.put(4, 0, endpoint(from.port))
  for (let i = 0; i < runs; i++) {
    const [offset, length, , size] = from.read(6, i) as [number, number, number, number]
    to.put(0, at, from.take(pool, offset, length))
    to.words(3, i, at, length, 0, size)
    at += length
  }
  return to.f('wg_receive', runs, 1000, 1.7e12)
}

function settle(left: Side, right: Side): number {
  let packets = 0
  for (let turn = 0; turn < 4; turn++) {
    for (const [from, to] of [[left, right], [right, left]] as const) {
      for (let runs; (runs = from.f('wg_poll', 1000, 1.7e12)) > 0;) {
        packets += carry(from, to, 2, runs)
      }
    }
  }
  return packets
}

test('the module has the hash and size that its versions file states, imports nothing, and is at most 400 KiB', () => {
  const versions = JSON.parse(readFileSync(new URL('wireguard.wasm.json', folder), 'utf8'))
  assert.is(createHash('sha256').update(bytes).digest('hex'), versions.sha256)
  assert.is(bytes.length, versions.bytes)
  assert.equal(WebAssembly.Module.imports(module), [])
  assert.ok(bytes.length <= 400 * 1024)
})

test('every export is in ABI.md', () => {
  const page = readFileSync(new URL('ABI.md', folder), 'utf8')
  for (const { name, kind } of WebAssembly.Module.exports(module)) {
    if (kind === 'function') assert.ok(page.includes(name), name)
  }
})

test('wg_self_test() finds the AEAD over vectors equal to its twin', () => {
  assert.is(new Side(9).f('wg_self_test'), 1)
})

test('two devices meet, a batch is one run of equal stride, and memory never grows', () => {
  const [left, right] = [new Side(1), new Side(2)]
  left.know(right)
  right.know(left)
  const before = left.memory.buffer
  assert.is(left.packets(right, 1, 100, 256), 0, 'staged')
  assert.is(settle(left, right), 1, 'and delivered when the session stands')
  for (let round = 0; round < 50; round++) {
    assert.is(left.packets(right, 44, 1420, 1452), 1)
    assert.equal(left.read(6, 0), [0, 44 * 1452, 0, 1452])
    assert.is(carry(left, right, 1, 1), 44)
    const [offset, length, peer] = right.read(5, 43) as [number, number, number]
    assert.equal([length, peer], [1420, 0])
    assert.is(right.take(0, offset, length)[1419], 43)
  }
  assert.is(left.memory.buffer, before)
  left.f('wg_peer_stats', 0)
  const scratch = left.areas[8]!
  assert.is(left.view.getBigUint64(scratch + 8, true) > BigInt(50 * 44 * 1452), true)
  assert.equal(left.take(8, 32, 32), right.publicKey)
})

test('nonsense is refused with an error word and without a trap', () => {
  const side = new Side(3)
  const huge = 0xffffffff
  for (const name of ['wg_remove_peer', 'wg_set_psk', 'wg_peer_stats']) {
    assert.is(side.f(name, huge), 0)
    assert.is(side.f('wg_last_error'), 3, name)
  }
  side.put(8, 0, new Uint8Array(32))
  assert.is(side.f('wg_add_peer'), -1)
  assert.is(side.f('wg_last_error'), 5)
  assert.is(side.f('wg_allow', 0, 4, 99), 0)
  assert.is(side.f('wg_last_error'), 7)
  side.words(3, 0, huge, huge, huge, huge)
  assert.is(side.f('wg_receive', 1, Number.NaN, -1), 0)
  assert.is(side.f('wg_last_error'), 8)
  assert.is(side.f('wg_send', huge, Infinity, Infinity), 0)
  assert.is(side.f('wg_area', 99), 0)
  assert.is(side.f('wg_init', 1, 1, 1), 0)
  assert.is(side.f('wg_last_error'), 9)
  assert.is(side.f('wg_next_deadline'), Infinity)
})

test.run()
