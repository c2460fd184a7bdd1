// Bytes that no peer would send, through the module: cut, changed, random; nothing passes, nothing
// traps. WIREGUARD_FUZZ_RUNS=2000000 for the long run, WIREGUARD_FUZZ_SEED to repeat one.
// runtimes: bun node
// seconds: 240
import { blake2s } from '@noble/hashes/blake2.js'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Batch } from '../../agent/wireguard-wasm/index.ts'
import { ipv4, Node, nodes, settle, Time } from '../support/wireguard.ts'

const RUNS = Number(process.env['WIREGUARD_FUZZ_RUNS'] ?? 30_000)
const SEED = Number(process.env['WIREGUARD_FUZZ_SEED'] ?? Date.now() % 2 ** 31)
const IN_A_BATCH = 64
const test = suite('wireguard/malformed')

/** A message, and the node that would take it. */
interface Case {
  name: string
  message: Uint8Array
  to: Node
  from: Node
}

function cases(time: Time): Case[] {
  const all: Case[] = []
  const add = (name: string, message: Uint8Array, from: Node, to: Node): void => {
    all.push({ name, message, from, to })
  }
  let [a, b] = nodes(time)
  a.peer.connect()
  add('initiation', a.flush()[0]!, a, b)
  ;[a, b] = nodes(time)
  a.peer.connect()
  b.take(a.flush(), a)
  add('response', b.flush()[0]!, b, a)
  ;[a, b] = nodes(time)
  b.device.setLoadLimit(0)
  a.peer.connect()
  b.take(a.flush(), a)
  add('cookie', b.flush()[0]!, b, a)
  ;[a, b] = nodes(time)
  a.peer.connect()
  settle(a, b)
  a.device.send(ipv4(1, 2, 100))
  add('data', a.flush()[0]!, a, b)
  ;[a, b] = nodes(time)
  a.peer.connect()
  settle(a, b)
  a.peer.update({ keepaliveSeconds: 25 })
  add('keepalive', a.flush()[0]!, a, b)
  return all
}

const dropsOf = ({ device }: Node): number =>
  Object.values(device.stats().drops).reduce((sum, count) => sum + count, 0)

test('every truncation and extension of every message is dropped, and the message then works', () => {
  for (const { name, message, from, to } of cases(new Time())) {
    const before = dropsOf(to)
    let sent = 0
    for (let length = 1; length < message.length + 40; length++) {
      if (length === message.length) continue
      const bytes = new Uint8Array(length)
      bytes.set(message.subarray(0, length))
      assert.is(to.take([bytes], from), 0, name)
      sent++
    }
    assert.is(dropsOf(to) - before, sent, `${name}: each is dropped`)
    assert.is(to.take([message], from), name === 'data' ? 1 : 0, name)
    assert.is(dropsOf(to) - before, sent, `${name}: the message itself is not`)
    assert.is(to.device.stats().restarts, 0)
  }
})

test('a batch whose words lie is refused without a trap', () => {
  const [a, b] = nodes(new Time())
  a.peer.connect()
  settle(a, b)
  const batch = Batch.make(4096)
  for (
    const words of [[0xffffffff, 1, 0, 1], [0, 0xffffffff, 0, 5], [4090, 100, 0, 0], [0, 0, 0, 0]]
  ) {
    batch.words.set(words)
    batch.count = 1
    try {
      b.device.receive(batch)
    } catch (error) {
      // A view beyond its buffer is refused before the module is asked.
      assert.instance(error, RangeError)
    }
  }
  a.device.send(ipv4(1, 2, 9))
  settle(a, b)
  assert.is(b.packets.length, 1)
})

test(`${RUNS} changed datagrams: none passes, none traps (seed ${SEED})`, () => {
  let state = SEED || 1
  const roll = (below: number): number => {
    // xorshift32
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) % below
  }
  const time = new Time()
  const all = cases(time)
  const mac1Keys = all.map(({ to }) =>
    blake2s(new Uint8Array([...new TextEncoder().encode('mac1----'), ...to.device.publicKey]))
  )
  const dropped = (): number => all.reduce((sum, { to }) => sum + dropsOf(to), 0)
  const before = dropped()
  let sent = 0
  for (let done = 0; done < RUNS; done += IN_A_BATCH) {
    const place = roll(all.length)
    const { message, from, to, name } = all[place]!
    const batch = Batch.make(IN_A_BATCH * 2048)
    for (let i = 0; i < IN_A_BATCH; i++) {
      const bytes = changed(message, roll)
      const isHandshake = (bytes[0] === 1 && bytes.length === 148) ||
        (bytes[0] === 2 && bytes.length === 92)
      // Some get a right mac1, and so reach what is behind it.
      if (isHandshake && roll(8) === 0) {
        const at = bytes.length - 32
        bytes.set(blake2s(bytes.subarray(0, at), { key: mac1Keys[place]!, dkLen: 16 }), at)
      }
      // Their sender's index and mac2 are not what authenticates a handshake.
      const isSame = bytes.length === message.length && bytes[0] === message[0] &&
        bytes.every((byte, at) =>
          byte === message[at] ||
          (isHandshake && ((at >= 1 && at < 8) || at >= message.length - 32))
        )
      if (!isSame && batch.push(bytes, from.record)) sent++
    }
    const got = to.device.receive(batch)
    assert.is(got, 0, `${name} in batch ${done}`)
    if (roll(16) === 0) {
      time.ms += 25
      to.device.tick()
      to.flush()
    }
  }
  assert.is(dropped() - before, sent, 'each is counted as dropped')
  assert.ok(sent > RUNS * 0.9)
  for (const { to, name } of all) {
    assert.is(to.device.stats().restarts, 0, name)
    assert.ok(dropsOf(to) > 0, name)
  }
  const { message, from, to } = all.find(({ name }) => name === 'data')!
  assert.is(to.take([message], from), 1, 'the message itself still passes')
})

function changed(message: Uint8Array, roll: (below: number) => number): Uint8Array {
  let bytes = message.slice()
  const kind = roll(6)
  if (kind === 0) bytes = bytes.slice(0, 1 + roll(bytes.length))
  else if (kind === 1) {
    const longer = new Uint8Array(bytes.length + roll(200))
    longer.set(bytes)
    bytes = longer
  } else if (kind === 2) {
    for (let i = 4; i < bytes.length; i++) bytes[i] = roll(256)
    bytes[0] = 1 + roll(5)
  }
  for (let flips = 1 + roll(4); flips > 0; flips--) {
    const at = roll(bytes.length)
    bytes[at] = bytes[at]! ^ (1 + roll(255))
  }
  return bytes
}

test.run()
