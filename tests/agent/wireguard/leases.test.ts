// Addresses of clients: by the identity alone, beside what machines have, stable over restarts, released by command,
// never one twice.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import * as fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { hostFiles } from '../../../agent/host/files.ts'
import { overlaps, parseRoute, routeText } from '../../../agent/wireguard/exit_policy.ts'
import { Leases, namedSubnet, subnetOf } from '../../../agent/wireguard/leases.ts'
import type { Subnet } from '../../../agent/wireguard/leases.ts'
import type { Network as Range } from '../../../core/address.ts'
import { isWithin } from '../../../core/address.ts'
import { ManualClock } from '../../../core/clock.ts'
import { isTunnelError } from '../../../core/errors.ts'
import { crypto } from '../../support/exit_bench.ts'

const SEED = Number(process.env['SOTTO_SEED'] ?? Date.now() % 2 ** 31)
const identity32 = new Uint8Array(32).fill(7)
const folder = mkdtempSync(join(tmpdir(), 'sotto-leases-'))
const test = suite('agent/wireguard/leases')
test.after(() => rmSync(folder, { recursive: true, force: true }))

let made = 0
const path = (): string => join(folder, `${made++}`, 'leases.json')
const open = (at: string, options: { taken?: Range[]; named?: Subnet } = {}): Leases =>
  new Leases({ files: hostFiles, clock: new ManualClock(), crypto }, at, {
    identity32,
    taken: () => options.taken ?? [],
    ...(options.named ? { named: options.named } : {}),
  })
const fails = async (promise: Promise<unknown>, code: 'lease/full'): Promise<void> => {
  const error = await promise.then(() => undefined, (thrown) => thrown)
  assert.ok(isTunnelError(error, code), `${code}: ${error}`)
}

test('subnetOf() is of the identity, in 100.64.0.0/10 and fd00::/8, and the same each time', () => {
  const one = subnetOf(crypto, identity32)
  assert.is(routeText(one.four), routeText(subnetOf(crypto, identity32).four))
  assert.ok(isWithin(routeText(one.four).split('/')[0]!, [parseRoute('100.64.0.0/10')]))
  assert.is(one.four.bits, 24)
  assert.ok(overlaps(one.six, parseRoute('fd00::/8')))
  assert.is(one.six.bits, 64)
  // Pinned: clients keep what they were given.
  assert.is(`${routeText(one.four)} ${routeText(one.six)}`, PINNED)
})
const PINNED = '100.116.122.0/24 fdd9:1eaf:6406:eb06::/64'

test('subnetOf() shares nothing with what is taken, and leaves 100.64.0.0/10 where somebody is in it', () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 32, maxLength: 32 }),
      fc.array(
        fc.tuple(
          fc.constantFrom('100.64', '100.100', '10.0', '192.168', '100.127'),
          fc.nat(255),
          fc.integer({ min: 12, max: 32 }),
        ),
        { maxLength: 6 },
      ),
      (identity, words) => {
        const taken = words.map(([two, three, bits]) => parseRoute(`${two}.${three}.1/${bits}`))
        if (taken.some((one) => overlaps(one, parseRoute('10.0.0.0/8')) && one.bits < 10)) return
        const { four, six } = subnetOf(crypto, identity, { taken })
        const shared = taken.some((one) => overlaps(one, parseRoute('100.64.0.0/10')))
        for (const one of [...taken, parseRoute('100.100.100.100')]) {
          assert.not(overlaps(one, four), `${routeText(one)} ${routeText(four)}`)
          assert.not(overlaps(one, six))
        }
        assert.is(overlaps(four, parseRoute(shared ? '10.0.0.0/8' : '100.64.0.0/10')), true)
      },
    ),
    { seed: SEED, numRuns: 500 },
  )
})

test('a default route is not taken for a network of this machine', () => {
  assert.is(
    routeText(subnetOf(crypto, identity32, { taken: [parseRoute('0.0.0.0/0')] }).four),
    routeText(subnetOf(crypto, identity32).four),
  )
})

test('lease() gives each client one address, and the same after a restart', async () => {
  const at = path()
  const leases = open(at)
  const first = await leases.lease('ann')
  assert.equal(await leases.lease('ann'), first)
  const all = new Set([first.four, first.six])
  for (let i = 0; i < 60; i++) {
    const { four, six, serverFour, serverSix, subnet } = await leases.lease(`client ${i}`)
    for (const address of [four, six]) {
      assert.not(all.has(address), address)
      all.add(address)
    }
    assert.ok(isWithin(four, [subnet.four]) && isWithin(six, [subnet.six]))
    assert.ok(isWithin(serverFour, [subnet.four]) && isWithin(serverSix, [subnet.six]))
    assert.not.match(four, /\.(0|1|255)$/)
  }
  assert.equal(await open(at).lease('ann'), first)
  assert.is((await open(at).list()).length, 61)
})

test('release() frees an address; it goes back to who asks first', async () => {
  const leases = open(path(), { named: namedSubnet(crypto, identity32, '100.64.7.0/29') })
  const held = new Map<string, string>()
  for (let i = 0; i < 5; i++) held.set(`c${i}`, (await leases.lease(`c${i}`)).four)
  assert.is(new Set(held.values()).size, 5)
  await fails(leases.lease('late'), 'lease/full')
  assert.is(await leases.release('c3'), true)
  assert.is(await leases.release('c3'), false)
  assert.is((await leases.lease('late')).four, held.get('c3'))
  await fails(leases.lease('c3'), 'lease/full')
})

test('a lease moves for a client that has such a network already, and for that client alone', async () => {
  const leases = open(path())
  const [one, two] = [await leases.lease('one'), await leases.lease('two')]
  const moved = await leases.lease('two', [one.subnet.four])
  assert.not(overlaps(moved.subnet.four, one.subnet.four))
  assert.not(overlaps(moved.subnet.six, one.subnet.six))
  assert.not.equal(moved.four, two.four)
  assert.equal(await leases.lease('one'), one)
  assert.equal(await leases.lease('two', [one.subnet.four]), moved)
  assert.is((await leases.list()).length, 2)
})

test('this machine’s own Tailscale moves all', async () => {
  const at = path()
  const before = await open(at).lease('one')
  const after = await open(at, { taken: [parseRoute('100.101.102.103/32')] }).lease('one')
  assert.ok(isWithin(before.four, [parseRoute('100.64.0.0/10')]))
  // A lease stands until something is where it is.
  assert.is(after.four, before.four)
  const clash = await open(at, { taken: [before.subnet.four] }).lease('one')
  assert.ok(isWithin(clash.four, [parseRoute('10.0.0.0/8')]))
  const fresh = await open(path(), { taken: [parseRoute('100.101.102.103/32')] }).lease('one')
  assert.ok(isWithin(fresh.four, [parseRoute('10.0.0.0/8')]))
})

test('32 at once from two processes’ worth of leases: none twice', async () => {
  const at = path()
  const [a, b] = [open(at), open(at)]
  const all = await Promise.all(
    Array.from({ length: 32 }, (_, i) => (i % 2 ? a : b).lease(`c${i >> 1 << 1}`)),
  )
  assert.is(new Set(all.map(({ four }) => four)).size, 16)
  assert.is((await a.list()).length, 16)
})

test('namedSubnet() takes IPv4 networks with room, and the file is checked when it is read', async () => {
  assert.is(routeText(namedSubnet(crypto, identity32, '10.9.0.0/16').four), '10.9.0.0/16')
  for (const bad of ['10.0.0.0/8', '10.0.0.0/31', 'fd00::/64']) {
    assert.throws(
      () => namedSubnet(crypto, identity32, bad),
      (error: unknown) => isTunnelError(error, 'lease/subnet'),
      bad,
    )
  }
  const at = path()
  await open(at).lease('one')
  const good = readFileSync(at, 'utf8')
  for (
    const bad of [
      'x',
      '{}',
      '{"leases":[1]}',
      good.replace(/"four": "[^"]+"/, '"four": "8.8.8.8"'),
      good.replace(/"subnet": "[^"]+"/, '"subnet": "0.0.0.0/0"'),
      good.slice(0, -20),
    ]
  ) {
    writeFileSync(at, bad)
    await fails(open(at).lease('two'), 'lease/corrupt' as 'lease/full')
  }
})

test.run()
