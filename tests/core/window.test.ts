/** Credit, counted: what is open, held and owed always adds up to the window. */
import * as fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { WINDOW_BYTES_MAX } from '../../core/frame.ts'
import { Allowance, ReceiveWindow } from '../../core/window.ts'

const test = suite('core/window')

test('Allowance refuses to overdraw and to pass the largest window, changing nothing', () => {
  const allowance = new Allowance(100)
  assert.not(allowance.spend(101))
  assert.ok(allowance.spend(100))
  assert.not(allowance.spend(1))
  assert.ok(allowance.grant(WINDOW_BYTES_MAX))
  assert.not(allowance.grant(1))
  assert.is(allowance.bytes, WINDOW_BYTES_MAX)
})

test('ReceiveWindow returns credit from a quarter of the window on', () => {
  const window = new ReceiveWindow(1000, 1000, { nowMs: 0 })
  assert.ok(window.receive(1000))
  assert.not(window.receive(1))
  window.consume(249)
  assert.is(window.refund(false), 0)
  window.consume(1)
  assert.is(window.refund(false), 250)
  window.consume(3)
  assert.is(window.refund(false), 0)
  assert.is(window.refund(true), 3)
})

test('ReceiveWindow doubles when a whole one is used within two round trips, up to its limit', () => {
  const window = new ReceiveWindow(1000, 3000, { nowMs: 0 })
  assert.not(window.consume(999))
  assert.ok(window.consume(1))
  assert.is(window.measure(21, 10), 0, 'too slow')
  assert.ok(window.consume(1000))
  assert.is(window.measure(41, 10), 1000)
  window.grow(1000)
  assert.not(window.consume(1999))
  assert.ok(window.consume(1))
  assert.is(window.measure(41, 10), 1000, 'up to the limit')
  window.grow(1000)
  assert.ok(window.consume(3000))
  assert.is(window.measure(41, 10), 0)
})

test('a tiny window never deadlocks', () => {
  for (const size of [1, 2, 3, 5]) {
    const window = new ReceiveWindow(size, size, { nowMs: 0 })
    let open = size
    for (let i = 0; i < 20; i++) {
      assert.ok(open > 0)
      assert.ok(window.receive(1))
      open--
      window.consume(1)
      open += window.refund(false)
    }
  }
})

test('a sender that keeps to its credit is never refused, and held never passes the window', () => {
  const step = fc.record({
    act: fc.constantFrom('send', 'read', 'grow'),
    bytes: fc.integer({ min: 1, max: 700 }),
  })
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 2000 }), fc.array(step), (size, steps) => {
      const window = new ReceiveWindow(size, 1_000_000, { nowMs: 0 })
      const allowance = new Allowance(size)
      for (const { act, bytes } of steps) {
        if (act === 'send') {
          const sent = Math.min(bytes, allowance.bytes)
          assert.ok(allowance.spend(sent) && window.receive(sent))
        } else if (act === 'read') {
          window.consume(Math.min(bytes, window.heldBytes))
          assert.ok(allowance.grant(window.refund(false)))
        } else window.grow(bytes)
        assert.ok(window.heldBytes + allowance.bytes <= window.sizeBytes)
      }
      window.consume(window.heldBytes)
      allowance.grant(window.refund(true))
      assert.is(allowance.bytes, window.sizeBytes)
    }),
  )
})

test.run()
