// Where an exit may dial: tables around each border, and the whole judgement against a slow twin that works on
// strings of bits.
import * as fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  ExitPolicy,
  overlaps,
  parseRoute,
  routeText,
} from '../../../agent/wireguard/exit_policy.ts'
import type { ExitRules } from '../../../agent/wireguard/exit_policy.ts'
import { formatAddress, isWithin } from '../../../core/address.ts'
import { isTunnelError } from '../../../core/errors.ts'

const SEED = Number(process.env['SOTTO_SEED'] ?? Date.now() % 2 ** 31)
console.log(`seed ${SEED}`)
const test = suite('agent/wireguard/exit_policy')
const policy = (rules: Partial<ExitRules> & { route?: string[] }, own: string[] = []): ExitPolicy =>
  new ExitPolicy({ routes: (rules.route ?? []).map(parseRoute), ...rules }, () => own)
const ALL = ['0.0.0.0/0', '::/0']

test('judge() denies everything where there is no route', () => {
  const none = policy({})
  for (const address of ['10.0.0.1', '8.8.8.8', 'fd00::1', '2606:4700::1']) {
    assert.is(none.judge(address), 'route', address)
  }
})

test('judge() holds each border of a route', () => {
  const one = policy({ route: ['192.168.1.64/26', 'fd00:1::/64'] })
  for (
    const [address, refusal] of [
      ['192.168.1.63', 'route'],
      ['192.168.1.64', undefined],
      ['192.168.1.127', undefined],
      ['192.168.1.128', 'route'],
      ['::ffff:192.168.1.64', undefined],
      ['::ffff:c0a8:0180', 'route'],
      ['fd00:1::', undefined],
      ['fd00:1::ffff:ffff:ffff:ffff', undefined],
      ['fd00:1:0:1::', 'route'],
      ['fd00::ffff:ffff:ffff:ffff', 'route'],
    ] as const
  ) assert.is(one.judge(address), refusal, address)
})

test('judge() refuses what is special even where every address is routed', () => {
  const open = policy({ route: ALL }, ['203.0.113.5', '2001:db8::5'])
  for (
    const [address, refusal] of [
      ['0.0.0.0', 'unspecified'],
      ['0.1.2.3', 'unspecified'],
      ['::', 'unspecified'],
      ['127.0.0.1', 'loopback'],
      ['127.255.255.255', 'loopback'],
      ['::1', 'loopback'],
      ['0:0:0:0:0:0:0:1', 'loopback'],
      ['::ffff:127.0.0.1', 'loopback'],
      ['::ffff:7f00:1', 'loopback'],
      ['[::1]', 'loopback'],
      ['169.254.169.254', 'link-local'],
      ['fe80::1', 'link-local'],
      ['fe80::1%eth0', 'link-local'],
      ['fd00:ec2::254', 'link-local'],
      ['168.63.129.16', 'link-local'],
      ['100.100.100.200', 'link-local'],
      ['192.0.0.192', 'link-local'],
      ['64:ff9b::168.63.129.16', 'link-local'],
      ['64:ff9b::169.254.169.254', 'link-local'],
      ['64:ff9b::7f00:1', 'loopback'],
      ['224.0.0.1', 'multicast'],
      ['239.255.255.255', 'multicast'],
      ['ff02::1', 'multicast'],
      ['240.0.0.1', 'reserved'],
      ['255.255.255.255', 'reserved'],
      ['::7f00:1', 'reserved'],
      ['::127.0.0.1', 'reserved'],
      ['2002:7f00:1::', 'reserved'],
      ['2001:0:7f00:1::', 'reserved'],
      ['fec0::1', 'reserved'],
      ['203.0.113.5', 'own'],
      ['2001:db8:0::5', 'own'],
      ['203.0.113.6', undefined],
      ['2001:db8::6', undefined],
      ['64:ff9b::8.8.8.8', undefined],
      ['1.1.1.1', undefined],
      ['', 'malformed'],
      ['127.1', 'malformed'],
      ['0177.0.0.1', 'malformed'],
      ['2130706433', 'malformed'],
      ['localhost', 'malformed'],
      ['10.0.0.1%eth0', 'malformed'],
    ] as const
  ) assert.is(open.judge(address), refusal, address)
})

test('judge() opens each special kind alone, when it was asked for', () => {
  const own = ['203.0.113.5']
  assert.is(policy({ loopback: true }).judge('127.0.0.1'), undefined)
  assert.is(policy({ loopback: true, route: ALL }).judge('169.254.1.1'), 'link-local')
  assert.is(policy({ loopback: true, route: ALL }).judge('0.0.0.0'), 'unspecified')
  assert.is(policy({ linkLocal: true }).judge('169.254.1.1'), 'route')
  assert.is(policy({ linkLocal: true, route: ALL }).judge('fe80::1%eth0'), undefined)
  assert.is(policy({ own: true, route: ALL }, own).judge('203.0.113.5'), undefined)
  assert.is(policy({ own: true }, own).judge('203.0.113.5'), 'route')
})

const v4 = fc.uint8Array({ minLength: 4, maxLength: 4 })
/** Few different bits, so that random networks and addresses meet. */
const near = fc.array(fc.constantFrom(0, 1, 128, 192, 255, 10), { minLength: 4, maxLength: 4 })
  .map((bytes) => new Uint8Array(bytes))
const six = fc.uint8Array({ minLength: 16, maxLength: 16 }).map((bytes) => {
  // Away from the special kinds, which the table above holds.
  bytes[0] = 0xfd
  bytes[1] = 7
  bytes.fill(0, 3, 15)
  return bytes
})
/** Single addresses of metadata, which shrinking finds: 192.0.0.192 is near. */
const CLOUDS = ['168.63.129.16', '100.100.100.200', '192.0.0.192']
const bitsOf = (bytes: Uint8Array): string =>
  [...bytes].map((byte) => byte.toString(2).padStart(8, '0')).join('')

test('judge() agrees with a twin that compares bits as text', () => {
  fc.assert(
    fc.property(
      fc.array(
        fc.oneof(near, v4, six).chain((bytes) =>
          fc.integer({ min: 0, max: bytes.length * 8 }).map((bits) => ({ bytes, bits }))
        ),
        { maxLength: 6 },
      ),
      fc.oneof(near, v4, six),
      (networks, address) => {
        const routes = networks.map(({ bytes, bits }) =>
          parseRoute(`${formatAddress(bytes)}/${bits}`)
        )
        const twin = networks.some(({ bytes, bits }) =>
          bytes.length === address.length &&
          bitsOf(bytes).slice(0, bits) === bitsOf(address).slice(0, bits)
        )
        const words = formatAddress(address)
        const verdict = new ExitPolicy({ routes, loopback: false }).judge(words)
        const first = address[0]!
        const special = address.length === 4 &&
          (first === 0 || first === 127 || first >= 224 || (first === 169 && address[1] === 254) ||
            CLOUDS.includes(words))
        assert.is(verdict === undefined, twin && !special, `${words} in ${routes.map(routeText)}`)
      },
    ),
    { seed: SEED, numRuns: 3_000 },
  )
})

test('overlaps() agrees with the twin, and is symmetrical', () => {
  const network = fc.tuple(near, fc.integer({ min: 0, max: 32 }))
  fc.assert(
    fc.property(network, network, ([a, aBits], [b, bBits]) => {
      const [one, two] = [
        parseRoute(`${a.join('.')}/${aBits}`),
        parseRoute(`${b.join('.')}/${bBits}`),
      ]
      const bits = Math.min(aBits, bBits)
      const twin = bitsOf(a).slice(0, bits) === bitsOf(b).slice(0, bits)
      return overlaps(one, two) === twin && overlaps(two, one) === twin &&
        isWithin(formatAddress(one.bytes), [one])
    }),
    { seed: SEED, numRuns: 3_000 },
  )
})

test('parseRoute() reads what people type, and says what it does not read', () => {
  assert.is(routeText(parseRoute('192.168.1.77/24')), '192.168.1.0/24')
  assert.is(routeText(parseRoute('10.0.0.7')), '10.0.0.7/32')
  assert.is(routeText(parseRoute('FD00:1::5/64')), 'fd00:1::/64')
  assert.is(routeText(parseRoute('0.0.0.0/0')), '0.0.0.0/0')
  for (
    const bad of [
      '',
      'x',
      '10.0.0.0/33',
      'fd00::/129',
      '10.0.0/8',
      '10.0.0.0/',
      '10.0.0.0/-1',
      '[fd00::1]',
      'fe80::1%e/64',
      '10.0.0.0/08x',
    ]
  ) {
    assert.throws(
      () => parseRoute(bad),
      (error: unknown) => isTunnelError(error, 'exit/route'),
      bad,
    )
  }
  assert.throws(
    () => new ExitPolicy({ routes: Array(257).fill(parseRoute('10.0.0.0/8')) }),
    (error: unknown) => isTunnelError(error, 'exit/routes'),
  )
})

test.run()
