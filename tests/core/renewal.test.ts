/**
 * When certificates are renewed and how often a CA is asked. The identifier is the example of RFC 9773
 * §4.1, byte for byte.
 */
import * as fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { fromHex } from '../../core/bytes.ts'
import {
  certificateId,
  fractionOf,
  INFO_AFTER_MS,
  INFO_AFTER_MS_MAX,
  INFO_AFTER_MS_MIN,
  infoAfterMs,
  ISSUED_PER_WEEK_MAX,
  NO_ATTEMPTS,
  orderBegun,
  orderFailed,
  orderInstant,
  orderIssued,
  ORDERS_PER_DAY_MAX,
  readAttempts,
  readRenewalInfo,
  renewalInstant,
  retryAfterOf,
} from '../../core/renewal.ts'
import type { Attempts } from '../../core/renewal.ts'
import { thrown } from '../support/rejection.ts'

const DAY_MS = 86_400_000
const NOW_MS = Date.UTC(2026, 0, 31, 12)
const test = suite('core/renewal')

test('certificateId() writes the example of the RFC', () => {
  const id = certificateId(
    fromHex('69885b6b87464041e1b37b847bd0ae2cde01c8d4'),
    fromHex('0087654321'),
  )
  assert.is(id, 'aYhba4dGQEHhs3uEe9CuLN4ByNQ.AIdlQyE')
})

test('readRenewalInfo() takes a window and refuses what is none', () => {
  const read = (start: unknown, end: unknown) =>
    readRenewalInfo({ suggestedWindow: { start, end } })
  assert.equal(read('2026-01-02T04:00:00Z', '2026-01-03T04:00:00Z'), {
    startMs: Date.UTC(2026, 0, 2, 4),
    endMs: Date.UTC(2026, 0, 3, 4),
  })
  for (
    const [start, end] of [
      ['2026-01-03T04:00:00Z', '2026-01-02T04:00:00Z'],
      ['2026-01-03T04:00:00Z', '2026-01-03T04:00:00Z'],
      ['soon', '2026-01-03T04:00:00Z'],
      [1, 2],
      [undefined, undefined],
      ['2026-01-02T04:00:00Z'.padEnd(80), '2026-01-03T04:00:00Z'],
    ]
  ) {
    assert.is(thrown(() => read(start, end)), 'renewal/info')
  }
  for (const answer of [undefined, null, 'text', {}, { suggestedWindow: null }]) {
    assert.is(thrown(() => readRenewalInfo(answer)), 'renewal/info')
  }
})

test('renewalInstant() lies in the window, and without one at two thirds', () => {
  const life = { notBeforeMs: NOW_MS, notAfterMs: NOW_MS + 90 * DAY_MS }
  assert.is(renewalInstant(life, { fraction: 0.5 }), NOW_MS + 60 * DAY_MS)
  const window = { startMs: NOW_MS + DAY_MS, endMs: NOW_MS + 3 * DAY_MS }
  assert.is(renewalInstant(life, { window, fraction: 0 }), window.startMs)
  assert.is(renewalInstant(life, { window, fraction: 0.5 }), NOW_MS + 2 * DAY_MS)
  // A window that lies in the past (a revocation, say) is now.
  const past = { startMs: 0, endMs: 1 }
  assert.ok(renewalInstant(life, { window: past, fraction: 0.9 }) < NOW_MS)
  // One behind the end of the certificate is the CA's mistake.
  const late = { startMs: life.notAfterMs, endMs: life.notAfterMs + DAY_MS }
  assert.is(renewalInstant(life, { window: late, fraction: 0.5 }), NOW_MS + 60 * DAY_MS)
  const long = { startMs: NOW_MS, endMs: NOW_MS + 9000 * DAY_MS }
  assert.is(renewalInstant(life, { window: long, fraction: 1 }), life.notAfterMs)
})

test('fractionOf() is the same for one certificate, and between 0 and 1', () => {
  assert.is(fractionOf(new Uint8Array(32)), 0)
  assert.ok(fractionOf(new Uint8Array(32).fill(0xff)) < 1)
  assert.is(fractionOf(new Uint8Array([0, 0, 0, 0, 0x80, 0, 0, 0]).subarray(4)), 0.5)
})

test('retryAfterOf() reads seconds and dates, and nothing else', () => {
  const of = (words: string | undefined) => retryAfterOf(words, NOW_MS)
  assert.is(of('120'), 120_000)
  assert.is(of(' 0 '), 0)
  assert.is(of(new Date(NOW_MS + 60_000).toUTCString()), 60_000)
  assert.is(of(new Date(NOW_MS - 60_000).toUTCString()), 0)
  assert.is(of('999999999'), 14 * DAY_MS)
  for (const words of [undefined, '', 'soon', '1e999999']) assert.is(of(words), undefined)
})

test('infoAfterMs() holds Retry-After within a minute and a day', () => {
  assert.is(infoAfterMs(undefined), INFO_AFTER_MS)
  assert.is(infoAfterMs(0), INFO_AFTER_MS_MIN)
  assert.is(infoAfterMs(3_600_000), 3_600_000)
  assert.is(infoAfterMs(9e12), INFO_AFTER_MS_MAX)
})

test('after failures the wait grows, and is never shorter than the CA said', () => {
  let attempts: Attempts = NO_ATTEMPTS
  const waits: number[] = []
  for (let i = 0; i < 8; i++) {
    attempts = orderFailed(attempts, { nowMs: NOW_MS, random: 0, reason: 'no' })
    waits.push((attempts.notBeforeMs - NOW_MS) / 60_000)
  }
  assert.equal(waits, [2, 8, 32, 128, 512, 1440, 1440, 1440])
  const told = orderFailed(NO_ATTEMPTS, {
    nowMs: NOW_MS,
    random: 0,
    retryAfterMs: 3_600_000,
    reason: 'no',
  })
  assert.is(told.notBeforeMs, NOW_MS + 3_600_000)
  assert.is(orderInstant(told, { nowMs: NOW_MS }), NOW_MS + 3_600_000)
  assert.is(orderIssued(told, NOW_MS).notBeforeMs, 0)
})

test('a loop of orders is stopped, whatever the outcome of each', () => {
  const seed = Date.now() & 0xffff
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat(4 * 3_600_000), fc.boolean(), fc.boolean()), { maxLength: 200 }),
      (steps) => {
        let attempts: Attempts = NO_ATTEMPTS
        let nowMs = NOW_MS
        const orders: number[] = []
        const issued: number[] = []
        for (const [laterMs, good, restart] of steps) {
          nowMs += laterMs
          if (restart) attempts = readAttempts(JSON.parse(JSON.stringify(attempts)))
          if (orderInstant(attempts, { nowMs }) > nowMs) continue
          attempts = orderBegun(attempts, nowMs)
          orders.push(nowMs)
          if (good) issued.push(nowMs)
          attempts = good
            ? orderIssued(attempts, nowMs)
            : orderFailed(attempts, { nowMs, random: 0.5, reason: 'no' })
        }
        const most = (instants: number[], ms: number): number =>
          Math.max(
            0,
            ...instants.map((at) =>
              instants.filter((other) => other > at - ms && other <= at).length
            ),
          )
        assert.ok(most(orders, DAY_MS) <= ORDERS_PER_DAY_MAX)
        assert.ok(most(issued, 7 * DAY_MS) <= ISSUED_PER_WEEK_MAX)
      },
    ),
    { seed, numRuns: 200 },
  )
})

test('an order that crashed counts; a clock that was wrong blocks nothing', () => {
  let attempts: Attempts = NO_ATTEMPTS
  for (let i = 0; i < ORDERS_PER_DAY_MAX; i++) attempts = orderBegun(attempts, NOW_MS + i)
  assert.is(orderInstant(attempts, { nowMs: NOW_MS + 100 }), NOW_MS + DAY_MS)
  // Kept with a clock that was years ahead.
  assert.is(orderInstant(attempts, { nowMs: NOW_MS - 9000 * DAY_MS }), NOW_MS - 9000 * DAY_MS)
  const far = { ...NO_ATTEMPTS, notBeforeMs: NOW_MS + 9000 * DAY_MS }
  assert.is(orderInstant(far, { nowMs: NOW_MS }), NOW_MS)
})

test('a window of the CA is not refused for the certificates of the week', () => {
  let attempts: Attempts = NO_ATTEMPTS
  for (let i = 0; i < ISSUED_PER_WEEK_MAX; i++) attempts = orderIssued(attempts, NOW_MS + i)
  const nowMs = NOW_MS + 100
  assert.is(orderInstant(attempts, { nowMs }), NOW_MS + 7 * DAY_MS)
  assert.is(orderInstant(attempts, { nowMs, asked: true }), nowMs)
})

test('readAttempts() reads what was kept, and nothing out of anything else', () => {
  const kept = orderFailed(orderBegun(NO_ATTEMPTS, NOW_MS), {
    nowMs: NOW_MS,
    random: 1,
    reason: 'it said no',
  })
  assert.equal(readAttempts(JSON.parse(JSON.stringify(kept))), kept)
  for (
    const odd of [undefined, null, 7, 'x', [], { orders: 'x', failures: -1, notBeforeMs: 1.5 }]
  ) {
    assert.equal(readAttempts(odd), NO_ATTEMPTS)
  }
  const many = { orders: Array(1000).fill(NOW_MS), failures: 1e9, reason: 'x'.repeat(5000) }
  const read = readAttempts(many)
  assert.is(read.orders.length, ORDERS_PER_DAY_MAX)
  assert.is(read.failures, 32)
  assert.is(read.reason!.length, 1000)
})

test.run()
