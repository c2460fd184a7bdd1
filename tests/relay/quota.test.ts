// runtimes: bun node deno
/**
 * Buckets and gauges by a clock that stands still, against a slow twin, and against floods.
 */
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ManualClock } from '../../core/clock.ts'
import type { Held, RateKind, Who } from '../../relay/quota.ts'
import { addressWho, Quota, QUOTA_DEFAULTS, quotaError, scopeWho } from '../../relay/quota.ts'
import { codeOf } from '../support/crypto.ts'

const test = suite('relay/quota')
const ALICE = scopeWho('alice')
const HOST: Who = { address: '192.0.2.1' }

function quota(limits: Record<string, number>, more: object = {}): [Quota, ManualClock] {
  const clock = new ManualClock()
  return [new Quota(clock, { limits, ...more }), clock]
}

test('a bucket gives its burst, then its rate, and says when to come back', () => {
  const [quotas, clock] = quota({ 'scope.visitors': 10, 'scope.visitorsBurst': 3 })
  for (let at = 0; at < 3; at++) assert.ok(quotas.take('visitors', ALICE).ok)
  const refused = quotas.take('visitors', ALICE)
  assert.equal(refused, { ok: false, kind: 'visitors', limit: 10, retryAfterMs: 100 })
  clock.advance(99)
  assert.equal(quotas.take('visitors', ALICE), { ...refused, retryAfterMs: 1 })
  clock.advance(1)
  assert.ok(quotas.take('visitors', ALICE).ok)
  clock.advance(3_600_000)
  for (let at = 0; at < 3; at++) assert.ok(quotas.take('visitors', ALICE).ok)
  assert.not(quotas.take('visitors', ALICE).ok, 'an hour saves no more than the burst')
})

test('waiting as long as told is always enough', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 5000 }),
      fc.integer({ min: 1, max: 50 }),
      fc.array(fc.nat(200), { maxLength: 30 }),
      (perSecond, burst, amounts) => {
        const [quotas, clock] = quota({ 'scope.bytes': perSecond, 'scope.bytesBurst': burst })
        for (const amount of amounts) {
          const taken = quotas.take('bytes', ALICE, amount)
          if (taken.ok) continue
          clock.advance(taken.retryAfterMs)
          assert.ok(quotas.take('bytes', ALICE, amount).ok)
        }
      },
    ),
    { numRuns: 200 },
  )
})

test('never gives more than burst + rate × time, whatever the order', () => {
  const moves = fc.array(
    fc.record({ waitMs: fc.nat(500), amount: fc.integer({ min: 1, max: 9 }) }),
    {
      maxLength: 60,
    },
  )
  fc.assert(
    fc.property(moves, (moves) => {
      const [quotas, clock] = quota({ 'address.requests': 20, 'address.requestsBurst': 10 })
      let taken = 0
      const begin = clock.monotonic()
      for (const { waitMs, amount } of moves) {
        clock.advance(waitMs)
        if (quotas.take('requests', HOST, amount).ok) taken += amount
        const allowed = 10 + (clock.monotonic() - begin) * 20 / 1000
        assert.ok(taken <= allowed + 1e-6, `${taken} of ${allowed}`)
      }
    }),
    { numRuns: 300 },
  )
})

test('more than a whole bucket passes a full one and is paid for afterwards', () => {
  const [quotas, clock] = quota({ 'scope.bytes': 1000, 'scope.bytesBurst': 1000 })
  assert.ok(quotas.take('bytes', ALICE, 5000).ok)
  const refused = quotas.take('bytes', ALICE, 1)
  assert.is(refused.ok || refused.retryAfterMs, 4001)
  clock.advance(4001)
  assert.ok(quotas.take('bytes', ALICE, 1).ok)
  assert.not(quotas.take('bytes', ALICE, 5000).ok, 'only a full one')
})

test('kinds, scopes and addresses do not share', () => {
  const [quotas] = quota({ 'scope.visitors': 1, 'scope.failures': 1, 'address.visitors': 1 })
  const takes: [RateKind, Who][] = [
    ['visitors', ALICE],
    ['visitors', { scope: 'bob' }],
    ['failures', ALICE],
    ['visitors', { address: 'alice' }],
    ['visitors', HOST],
  ]
  for (const [kind, who] of takes) assert.ok(quotas.take(kind, who).ok)
  for (const [kind, who] of takes) assert.not(quotas.take(kind, who).ok)
})

test('a scope can have limits of its own', () => {
  const [quotas] = quota({ 'scope.links': 1 }, {
    scopes: { alice: { links: 3, names: 7, visitors: 2 } },
  })
  assert.is(quotas.limit('links', ALICE), 3)
  assert.is(quotas.limit('names', ALICE), 7)
  assert.is(quotas.limit('links', scopeWho('bob')), 1)
  assert.is(quotas.limit('names', scopeWho('bob')), QUOTA_DEFAULTS['scope.names'])
  assert.equal(quotas.rate('visitors', ALICE), { perSecond: 2, burst: 2 })
})

test('a limit of 0 lets nothing through; unlimited is not even counted', () => {
  const [quotas] = quota({ 'scope.visitors': 0, 'scope.links': 0 })
  const refused = quotas.take('visitors', ALICE)
  assert.ok(!refused.ok && Number.isSafeInteger(refused.retryAfterMs))
  assert.not(quotas.hold('links', ALICE).ok)
  const before = quotas.tracked
  for (let at = 0; at < 100; at++) assert.ok(quotas.take('bytes', { scope: `s${at}` }, 1e12).ok)
  assert.is(quotas.tracked, before)
})

test('settings that mean nothing are refused by name', () => {
  const wrong: object[] = [
    { limits: { 'scope.vistors': 1 } },
    { limits: { visitors: 1 } },
    { limits: { 'scope.links': -1 } },
    { limits: { 'scope.links': NaN } },
    { limits: { constructor: 1 } },
    { scopes: { alice: { 'scope.links': 1 } } },
  ]
  for (const settings of wrong) {
    const code = codeOf(() => new Quota(new ManualClock(), settings))
    assert.is(code, 'quota/setting', JSON.stringify(settings))
  }
})

test('a gauge counts what is held, and a second release does nothing', () => {
  const [quotas] = quota({ 'address.links': 2 })
  const holds = [1, 2, 3].map(() => quotas.hold('links', HOST))
  assert.equal(holds.map(({ ok }) => ok), [true, true, false])
  assert.is(quotas.held('links', HOST), 2)
  const first = holds[0] as Held & { ok: true }
  first.release()
  first.release()
  assert.is(quotas.held('links', HOST), 1)
  assert.ok(quotas.hold('links', HOST).ok)
  assert.not(quotas.hold('links', HOST).ok)
})

test('all that is released leaves nothing behind', () => {
  const [quotas] = quota({})
  const holds = Array.from(
    { length: 500 },
    (_, at) => quotas.hold('streams', { scope: `s${at % 50}` }),
  )
  assert.is(quotas.tracked, 50)
  for (const held of holds) if (held.ok) held.release()
  assert.is(quotas.tracked, 0)
})

test('letGo() gives back what hold() took, and nothing of anybody else', () => {
  const [quotas] = quota({ 'address.links': 2 })
  assert.ok(quotas.hold('links', HOST).ok)
  assert.ok(quotas.hold('links', HOST).ok)
  quotas.letGo('connections', HOST)
  quotas.letGo('links', { address: '192.0.2.2' })
  assert.not(quotas.hold('links', HOST).ok)
  quotas.letGo('links', HOST)
  assert.is(quotas.held('links', HOST), 1)
  quotas.letGo('links', HOST)
  quotas.letGo('links', HOST)
  assert.is(quotas.held('links', HOST), 0, 'never below none')
  assert.is(quotas.tracked, 0, 'and forgotten then')
})

test('addresses of one IPv6 network are one holder, others are not', () => {
  const same = [
    ['2001:db8::1', '2001:db8::2'],
    ['2001:db8:0:0:1:2:3:4', '2001:0db8:0000:0000:ffff::'],
    ['2001:DB8::1', '2001:db8::1'],
    ['fe80::1%eth0', 'fe80::2%wlan0'],
    ['::ffff:192.0.2.1', '192.0.2.1'],
    ['::1', '::1'],
  ]
  for (const [a, b] of same) assert.is(addressWho(a!), addressWho(b!), `${a} ${b}`)
  const different = [
    ['2001:db8::1', '2001:db8:0:1::1'],
    ['192.0.2.1', '192.0.2.2'],
    ['::ffff:192.0.2.1', '::ffff:192.0.2.2'],
    ['2001:db8:1:2::', '2001:db8:1::2'],
    ['1:2:3:4:5:6:7:8', '1:2:3:5:5:6:7:8'],
  ]
  for (const [a, b] of different) assert.is.not(addressWho(a!), addressWho(b!), `${a} ${b}`)
  for (const odd of ['', ':', ':::::::::', 'x'.repeat(10_000), `:${'f'.repeat(10_000)}`]) {
    assert.ok(addressWho(odd).length < 100)
  }
})

test('a million addresses cost no more memory than the cap', () => {
  const [quotas, clock] = quota({ 'address.failures': 1, 'address.failuresBurst': 5 }, {
    trackedMax: 1000,
  })
  for (let at = 0; at < 1_000_000; at++) {
    quotas.take(
      'failures',
      addressWho(`10.${at >> 16 & 255}.${at >> 8 & 255}.${at & 255}.${at >> 24}`),
    )
    if (at % 1000 === 0) {
      assert.ok(quotas.tracked <= 1000)
      clock.advance(1)
    }
  }
  assert.ok(quotas.tracked <= 1000)
})

test('a flood of strangers does not free one who keeps on knocking', () => {
  const [quotas] = quota({ 'address.failures': 1, 'address.failuresBurst': 5 }, { trackedMax: 100 })
  for (let at = 0; at < 5; at++) quotas.take('failures', HOST)
  for (let at = 0; at < 5000; at++) {
    quotas.take('failures', addressWho(`203.0.${at >> 8}.${at & 255}`))
    if (at % 50 === 0) assert.not(quotas.take('failures', HOST).ok, `free again after ${at}`)
  }
})

test('the idle are forgotten as others come, long before the cap', () => {
  const [quotas, clock] = quota({ 'address.requests': 10, 'address.requestsBurst': 10 })
  for (let at = 0; at < 1000; at++) {
    quotas.take('requests', { address: `198.51.${at >> 8}.${at & 255}` })
  }
  assert.is(quotas.tracked, 1000)
  clock.advance(1000)
  for (let at = 0; at < 600; at++) {
    quotas.take('requests', { address: `203.0.${at >> 8}.${at & 255}` })
  }
  assert.is(quotas.tracked, 600)
})

test('holders are bounded, and those who hold already are not pushed out', () => {
  const [quotas] = quota({}, { holdersMax: 100 })
  const first = quotas.hold('links', HOST)
  for (let at = 0; at < 1000; at++) {
    quotas.hold('connections', { address: `203.0.${at >> 8}.${at & 255}` })
  }
  assert.is(quotas.tracked, 100)
  assert.ok(quotas.hold('links', HOST).ok, 'a holder may hold more')
  assert.is(quotas.held('links', HOST), 2)
  if (first.ok) first.release()
  assert.not(quotas.hold('links', { address: '198.51.100.1' }).ok)
})

test('a jump of the wall clock changes nothing', () => {
  const [quotas, clock] = quota({ 'scope.visitors': 1 })
  quotas.take('visitors', ALICE)
  clock.jump(86_400_000)
  assert.not(quotas.take('visitors', ALICE).ok)
  clock.jump(-2 * 86_400_000)
  clock.advance(1000)
  assert.ok(quotas.take('visitors', ALICE).ok)
})

test('quotaError() says what is used up and when to come back', () => {
  const [quotas] = quota({ 'scope.visitors': 2 })
  quotas.take('visitors', ALICE, 2)
  const refused = quotas.take('visitors', ALICE)
  const error = quotaError(refused.ok ? assert.unreachable() as never : refused, 'the visitor')
  assert.is(error.code, 'quota/exceeded')
  assert.is(error.message, 'Cannot admit the visitor: the quota of 2 visitors is used up')
  assert.match(error.hint!, 'in 1 s')
})

test('every default is named for a scope and for an address', () => {
  const names = Object.keys(QUOTA_DEFAULTS)
  const of = (prefix: string): string[] =>
    names.filter((name) => name.startsWith(prefix)).map((name) => name.slice(prefix.length))
  assert.equal(of('scope.'), of('address.'))
  assert.is(of('scope.').length * 2, names.length)
})

test.run()
