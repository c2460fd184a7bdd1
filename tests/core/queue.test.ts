/** Queues against twins that join and cut plain arrays; sizes around the edges of gathering. */
import * as fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, EMPTY, hex } from '../../core/bytes.ts'
import {
  ByteQueue,
  PACKET_BYTES_MAX,
  PACKET_QUEUE_BYTES_MAX,
  PACKET_QUEUE_MAX,
  PacketQueue,
} from '../../core/queue.ts'

const test = suite('core/queue')

let next = 0
function numbered(length: number): Uint8Array {
  return Uint8Array.from({ length }, () => next++ % 251)
}

test('ByteQueue gives back what was pushed, by chunk and by count, in any mixture', () => {
  const size = fc.oneof(
    fc.integer({ min: 1, max: 40 }),
    fc.constantFrom(511, 512, 513, 4095, 4096, 4097, 16_383, 16_384),
  )
  const step = fc.record({ act: fc.constantFrom('push', 'push', 'shift', 'take', 'clear'), size })
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
      const queue = new ByteQueue()
      let twin: Uint8Array = EMPTY
      for (const { act, size } of steps) {
        if (act === 'push') {
          const bytes = numbered(size)
          queue.push(bytes)
          twin = concat(twin, bytes)
        } else if (act === 'shift') {
          const chunk = queue.shift() ?? EMPTY
          assert.ok(chunk.length > 0 || twin.length === 0)
          assert.ok(hex(chunk) === hex(twin.subarray(0, chunk.length)))
          twin = twin.subarray(chunk.length)
        } else if (act === 'take') {
          const count = Math.min(size, twin.length)
          const target = new Uint8Array(count + 5)
          queue.take(count, target, 5)
          assert.ok(hex(target.subarray(5)) === hex(twin.subarray(0, count)))
          twin = twin.subarray(count)
        } else if (size === 1) {
          queue.clear()
          twin = EMPTY
        }
        assert.is(queue.bytes, twin.length)
      }
    }),
    { numRuns: 300 },
  )
})

test('ByteQueue keeps large chunks as they are and gathers small ones', () => {
  const queue = new ByteQueue()
  const large = numbered(4096)
  queue.push(large)
  for (let i = 0; i < 1000; i++) queue.push(numbered(10))
  assert.is(queue.shift(), large)
  assert.is(queue.shift()!.length, 10_000)
  assert.is(queue.shift(), undefined)
})

test('ByteQueue: a chunk that was given away is not written to again', () => {
  const queue = new ByteQueue()
  queue.push(numbered(10))
  const chunk = queue.shift()!
  const before = hex(chunk)
  queue.push(numbered(100))
  assert.is(hex(chunk), before)
  assert.is(chunk.buffer === queue.shift()!.buffer, false)
})

test('PacketQueue drops the oldest, by bytes and by number, and counts them', () => {
  const small = new PacketQueue()
  for (let i = 0; i < PACKET_QUEUE_MAX + 3; i++) small.push(new Uint8Array([i & 255]))
  assert.is(small.length, PACKET_QUEUE_MAX)
  assert.is(small.dropped, 3)
  assert.is(small.take(3).datagrams[0]![0], 3)
  const large = new PacketQueue()
  for (let i = 0; i < 10; i++) large.push(new Uint8Array(PACKET_BYTES_MAX))
  assert.is(large.bytes, PACKET_QUEUE_BYTES_MAX)
  assert.is(large.dropped, 6)
  assert.not(large.push(new Uint8Array(PACKET_BYTES_MAX + 1)))
  assert.not(large.push(EMPTY))
  assert.is(large.dropped, 8)
  large.clear()
  assert.is(large.bytes + large.length, 0)
})

test('PacketQueue.take() gives whole datagrams that fit, in order', () => {
  const queue = new PacketQueue()
  for (const length of [10, 20, 30]) queue.push(new Uint8Array(length))
  assert.is(queue.take(11).bytes, 0)
  const { datagrams, bytes } = queue.take(34)
  assert.equal(datagrams.map((datagram) => datagram.length), [10, 20])
  assert.is(bytes, 34)
  assert.is(queue.bytes, 32)
})

test.run()
