// How fast the AEAD is, the crate's beside ours, and how fast the joined path is: two instances of
// the module in one process, one flow between them.
// Usage: bun bench.mjs [seconds]   (node bench.mjs works as well; 0 seconds: the AEAD alone)
import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const seconds = Number(process.argv[2] ?? 2)
const here = dirname(fileURLToPath(import.meta.url))
const module = new WebAssembly.Module(readFileSync(join(here, 'wireguard.wasm')))
const MTU = 1420
const CONNECTED = 1
const CLOSED = 16
const INCOMING = 64
const IDLE = 1000
const ROUNDS = 5

function open(number, accepts) {
  const x = new WebAssembly.Instance(module, {}).exports
  x.wg_init(4 << 20, 4 << 20, 64 << 20)
  const bytes = (address, length) => new Uint8Array(x.memory.buffer, address, length)
  const words = (address, count) => new Uint32Array(x.memory.buffer, address, count)
  const end = { x, bytes, words, number, filled: 0, count: 0, deadline: 0 }
  end.scratch = x.wg_area(8)
  end.feed = () => {
    while (x.wg_wants_entropy()) {
      crypto.getRandomValues(bytes(x.wg_area(9), 8192))
      x.wg_feed_entropy(8192)
    }
  }
  end.feed()
  const key = crypto.getRandomValues(new Uint8Array(32))
  bytes(end.scratch, 32).set(key)
  x.wg_derive_public()
  end.key = bytes(end.scratch, 32).slice()
  bytes(end.scratch, 32).set(key)
  x.wg_set_private_key()
  x.wg_set_mtu(MTU)
  crypto.getRandomValues(bytes(end.scratch, 16))
  if (!x.tn_init(MTU, 20_000, 8 << 20, 1 << 30, accepts)) throw new Error('tn_init')
  end.pool = [x.wg_area(0), x.wg_area(1)]
  end.areas = { input: x.wg_area(3), from: x.wg_area(4), runs: x.wg_area(6) }
  end.changes = x.tn_area(1)
  end.result = x.tn_area(4)
  return end
}

function record(end, address) {
  const view = new DataView(end.x.memory.buffer, address, 32)
  view.setUint8(8, 192)
  view.setUint8(11, end.number)
  view.setUint16(24, 51820, true)
  view.setUint8(26, 4)
}

function introduce(one, other) {
  one.bytes(one.scratch, 32).set(other.key)
  const peer = one.x.wg_add_peer()
  one.bytes(one.scratch, 4).fill(0)
  one.x.wg_allow(peer, 4, 0)
  one.bytes(one.scratch, 32).fill(0)
  one.bytes(one.scratch, 12).set([192, 0, 0, other.number], 8)
  const view = new DataView(one.x.memory.buffer, one.scratch, 32)
  view.setUint16(24, 51820, true)
  view.setUint8(26, 4)
  one.x.wg_set_endpoint(peer, performance.now(), Date.now())
  record({ ...other, x: one.x }, one.areas.from)
}

/** One turn of `end`; what it sends is laid into the pool of `other`. */
function turn(end, other, plain, onChange) {
  const { x } = end
  const ms = performance.now()
  if (!plain) end.feed()
  const runs = plain ? x.tn_plain_turn(end.count, 0, ms) : x.tn_turn(end.count, 0, ms, Date.now())
  end.count = 0
  end.filled = 0
  const run = end.words(end.areas.runs, runs * 4)
  const input = other.words(other.areas.input, 2048 * 4)
  const sent = end.bytes(end.pool[1], 4 << 20)
  const got = other.bytes(other.pool[0], 4 << 20)
  for (let at = 0; at < run.length; at += 4) {
    const length = run[at + 1]
    if (other.count === 2048 || other.filled + length > got.length) break
    got.set(sent.subarray(run[at], run[at] + length), other.filled)
    input[other.count * 4] = other.filled
    input[other.count * 4 + 1] = length
    input[other.count * 4 + 2] = 0
    input[other.count * 4 + 3] = run[at + 3]
    other.filled += length
    other.count++
  }
  const result = end.words(end.result, 8)
  const changes = end.words(end.changes, result[1] * 2).slice()
  for (let at = 0; at < changes.length; at += 2) onChange(changes[at], changes[at + 1])
  return runs > 0 || result[2] === 1
}

function connect(end, port) {
  const at = end.scratch
  end.bytes(at, 64).fill(0)
  end.bytes(at, 64)[1] = 4
  end.bytes(at, 64).set([100, 64, 0, 2], 16)
  end.bytes(at, 64).set([10, 0, 0, 1], 32)
  const view = new DataView(end.x.memory.buffer, at, 64)
  view.setUint16(48, port, true)
  view.setUint16(50, 80, true)
  return end.x.tn_connect(performance.now())
}

function measure(idle, plain) {
  const near = open(1, 0)
  const far = open(2, 1)
  introduce(near, far)
  introduce(far, near)
  let connected = 0
  let accepted = 0
  const onNear = (_, bits) => {
    if (bits & CLOSED) throw new Error('closed')
    if (bits & CONNECTED) connected++
  }
  const onFar = (flow, bits) => {
    if (bits & INCOMING) accepted += far.x.tn_accept(flow, performance.now())
  }
  const flows = []
  while (connected <= idle) {
    // As many at once as may wait for one destination.
    while (flows.length <= idle && flows.length - connected < 100) {
      flows.push(connect(near, 10_000 + flows.length))
    }
    turn(near, far, plain, onNear)
    turn(far, near, plain, onFar)
  }
  const flow = flows.at(-1)
  const active = new Set()
  let got = 0
  const data = new Uint8Array(65_536).fill(0x5a)
  const read = (id) => {
    for (;;) {
      const count = far.x.tn_peek(id)
      if (count === 0) return
      far.x.tn_consume(id, count)
      got += count
    }
  }
  const begin = performance.now()
  let warm
  while (performance.now() - begin < seconds * 1000) {
    if (warm === undefined && performance.now() - begin > seconds * 300) {
      warm = process.cpuUsage()
      got = 0
    }
    for (;;) {
      const room = near.x.tn_room(flow)
      if (room === 0) break
      const address = near.words(near.result, 8)[6]
      const count = Math.min(room, data.length)
      near.bytes(address, count).set(count === data.length ? data : data.subarray(0, count))
      near.x.tn_commit(flow, count)
    }
    turn(near, far, plain, onNear)
    turn(far, near, plain, (id, bits) => {
      onFar(id, bits)
      active.add(id)
    })
    for (const id of active) read(id)
  }
  // Of the processor's time: others may share it.
  const { user, system } = process.cpuUsage(warm)
  const rate = (got * 8) / (user + system) / 1e3
  return { rate, memory: near.x.memory.buffer.byteLength + far.x.memory.buffer.byteLength }
}

/**
 * Windows of 64 packets, ours and the crate's by turns. Others may use the machine meanwhile: the
 * fastest twentieth of the windows is what it does undisturbed, the median what came of it now.
 */
function aead() {
  const { x } = open(1, 0)
  const count = 64
  const names = ['seal', 'open', "crate's seal", "crate's open"]
  for (const length of [64, 128, 512, 1420]) {
    const windows = names.map(() => [])
    for (let round = 0; round < 2_200; round++) {
      names.forEach((name, what) => {
        const begin = performance.now()
        if (x.wg_aead(what, length, count) !== count) throw new Error(name)
        if (round >= 200) windows[what].push((performance.now() - begin) * 1e6 / count)
      })
    }
    const rates = windows.map((ns) => {
      ns.sort((a, b) => a - b)
      const [quiet, median] = [ns[ns.length / 20], ns[ns.length / 2]]
      return `${(length / quiet).toFixed(2)} (${(length / median).toFixed(2)}; ${quiet | 0} ns)`
    })
    console.log(
      `${length} bytes, GB/s undisturbed (median; a packet): ` +
        rates.map((rate, what) => `${names[what]} ${rate}`).join(', '),
    )
  }
}

aead()
const middle = (values) => values.toSorted((a, b) => a - b)[values.length >> 1]

// In turns, so that what else the machine does meets both alike.
for (const plain of seconds > 0 ? [true, false] : []) {
  const rates = [[], []]
  const shares = []
  let memory = 0
  for (let round = 0; round < ROUNDS; round++) {
    const pair = [0, IDLE].map((idle) => measure(idle, plain))
    pair.forEach(({ rate }, i) => rates[i].push(rate))
    shares.push(pair[1].rate / pair[0].rate)
    memory = Math.max(memory, pair[1].memory)
  }
  const [alone, beside] = rates.map(middle)
  console.log(
    `${plain ? 'stack alone' : 'sealed'}: ${alone.toFixed(2)} Gbit a second of processor time, ` +
      `${beside.toFixed(2)} beside ${IDLE} idle flows, ${Math.round(middle(shares) * 100)} % ` +
      `(${shares.map((share) => Math.round(share * 100)).join(' ')}); memory of both ${
        memory >> 20
      } MiB`,
  )
}
