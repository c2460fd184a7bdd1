/**
 * How fast packets of 1,420 bytes are sealed and opened by the module, as it is used: two instances, batches
 * laid so that nothing is moved, the protocol's own work (routes, counters, replay window) included.
 */
import { readFileSync } from 'node:fs'

const PACKET_BYTES = 1_420
const SEALED_BYTES = PACKET_BYTES + 32
const SLOT_HEAD_BYTES = 16
const BATCH = 64
/** Of `wg_aead`: seals, and one more opens. */
const PORTABLE = 2
/** JSC compiles its hot loops anew after some time. */
const WARM_UP_MS = 300

interface End {
  x: Record<string, (...args: number[]) => number>
  bytes(address: number, length: number): Uint8Array
  words(address: number, count: number): Uint32Array
  number: number
  key: Uint8Array
}

function open(module: WebAssembly.Module, number: number): End {
  const { exports } = new WebAssembly.Instance(module, {})
  const x = exports as unknown as End['x']
  const memory = exports['memory'] as WebAssembly.Memory
  const end: End = {
    x,
    bytes: (address, length) => new Uint8Array(memory.buffer, address, length),
    words: (address, count) => new Uint32Array(memory.buffer, address, count),
    number,
    key: new Uint8Array(32),
  }
  x['wg_init']!(4 << 20, 4 << 20, 4 << 20)
  const scratch = x['wg_area']!(8)
  const key = crypto.getRandomValues(new Uint8Array(32))
  end.bytes(scratch, 32).set(key)
  x['wg_derive_public']!()
  end.key = end.bytes(scratch, 32).slice()
  end.bytes(scratch, 32).set(key)
  x['wg_set_private_key']!()
  x['wg_set_mtu']!(PACKET_BYTES)
  return end
}

function feed({ x, bytes }: End): void {
  while (x['wg_wants_entropy']!()) {
    crypto.getRandomValues(bytes(x['wg_area']!(9), 8192))
    x['wg_feed_entropy']!(8192)
  }
}

function place(end: End, address: number, number: number): void {
  const record = end.bytes(address, 32).fill(0)
  record.set([192, 0, 0, number], 8)
  record.set([0x6c, 0xca, 4], 24)
}

function introduce(one: End, other: End): number {
  const scratch = one.x['wg_area']!(8)
  one.bytes(scratch, 32).set(other.key)
  const peer = one.x['wg_add_peer']!()
  one.bytes(scratch, 4).fill(0)
  one.x['wg_allow']!(peer, 4, 0)
  place(one, scratch, other.number)
  one.x['wg_set_endpoint']!(peer, performance.now(), Date.now())
  place(one, one.x['wg_area']!(4), other.number)
  return peer
}

/** Takes `runs` of `from`, whose bytes are in pool `pool`, to `to`; returns how many packets came out. */
function carry(from: End, to: End, { runs, pool }: { runs: number; pool: number }): () => number {
  const run = from.words(from.x['wg_area']!(6), runs * 4)
  const input = to.words(to.x['wg_area']!(3), runs * 4)
  let filled = 0
  for (let at = 0; at < runs * 4; at += 4) {
    const [offset, length, , size] = run.subarray(at, at + 4) as unknown as number[]
    to.bytes(to.x['wg_area']!(0) + filled, length!)
      .set(from.bytes(from.x['wg_area']!(pool) + offset!, length!))
    input.set([filled, length!, 0, size!], at)
    filled += length!
  }
  return () => to.x['wg_receive']!(runs, performance.now(), Date.now())
}

function laySlots(end: End): void {
  const slots = end.words(end.x['wg_area']!(3), BATCH * 4)
  const pool = end.x['wg_area']!(1)
  for (let i = 0; i < BATCH; i++) {
    const offset = i * SEALED_BYTES
    const packet = end.bytes(pool + offset + SLOT_HEAD_BYTES, PACKET_BYTES).fill(0x5a)
    // IPv4 of this length, from and to anywhere.
    packet.set([0x45, 0, PACKET_BYTES >> 8, PACKET_BYTES & 255, 0, 0, 0, 0, 64, 17, 0, 0])
    packet.set([10, 0, 0, 1, 10, 0, 0, 2], 12)
    slots.set([offset, PACKET_BYTES, SEALED_BYTES, 0], i * 4)
  }
}

/** GB/s of plaintext (10⁹ bytes), sealed and opened on one thread: of the batch in the middle, as others use the machine. */
export function aeadSpeed(ms: number): { seal: number; open: number } {
  const module = compiled()
  const [near, far] = [open(module, 1), open(module, 2)]
  for (const end of [near, far]) {
    feed(end)
    if (end.x['wg_self_test']!() !== 1) throw new Error('the self test of the module fails')
  }
  const peer = introduce(near, far)
  introduce(far, near)
  const now = () => [performance.now(), Date.now()] as const
  near.x['wg_connect']!(peer, ...now())
  for (let turns = 0; turns < 4; turns++) {
    for (const [from, to] of [[near, far], [far, near]] as const) {
      feed(from)
      feed(to)
      for (let runs; (runs = from.x['wg_poll']!(...now())) > 0;) {
        carry(from, to, { runs, pool: 2 })()
      }
    }
  }
  const spent: Record<'seal' | 'open', number[]> = { seal: [], open: [] }
  const began = performance.now()
  while (performance.now() - began < ms + WARM_UP_MS) {
    const isWarm = performance.now() - began > WARM_UP_MS
    laySlots(near)
    const start = performance.now()
    const runs = near.x['wg_send']!(BATCH, ...now())
    const sealed = performance.now()
    const receive = carry(near, far, { runs, pool: 1 })
    const middle = performance.now()
    const came = receive()
    const opened = performance.now()
    if (came !== BATCH) throw new Error(`${came} of ${BATCH} packets came out`)
    if (!isWarm) continue
    spent.seal.push(sealed - start)
    spent.open.push(opened - middle)
  }
  return { seal: speed(spent.seal), open: speed(spent.open) }
}

function speed(batches: number[]): number {
  const median = batches.sort((one, other) => one - other)[batches.length >> 1]!
  return BATCH * PACKET_BYTES / median / 1e6
}

/** The same of the portable code alone, that of RustCrypto: says how fast the machine is meanwhile. */
export function portableSpeed(ms: number): { seal: number; open: number } {
  const { x } = open(compiled(), 1)
  const spent: [number[], number[]] = [[], []]
  const began = performance.now()
  while (performance.now() - began < ms + WARM_UP_MS) {
    for (const [i, batches] of spent.entries()) {
      const start = performance.now()
      const done = x['wg_aead']!(PORTABLE + i, PACKET_BYTES, BATCH)
      batches.push(performance.now() - start)
      if (done !== BATCH) throw new Error(`${done} of ${BATCH} packets were done`)
    }
  }
  return { seal: speed(spent[0]), open: speed(spent[1]) }
}

function compiled(): WebAssembly.Module {
  const file = new URL('../agent/wireguard-wasm/wireguard.wasm', import.meta.url)
  return new WebAssembly.Module(readFileSync(file))
}
