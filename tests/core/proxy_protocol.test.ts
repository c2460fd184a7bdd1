/**
 * Headers of the PROXY protocol, read from a proxy that may be anybody's: bytes are fixed by HAProxy's
 * proxy-protocol.txt; each prefix of a good one asks for more, each bad one is refused, and nothing
 * that comes makes the reader throw or take more than a header.
 */
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { isWithin, parseNetwork } from '../../core/address.ts'
import { concat, fromHex, utf8 } from '../../core/bytes.ts'
import { proxyHeader, readProxyHeader, V2_REST_BYTES_MAX } from '../../core/proxy_protocol.ts'
import type { ProxyVerdict } from '../../core/proxy_protocol.ts'

const test = suite('core/proxy_protocol')
const SIGNATURE = '0d0a0d0a000d0a515549540a'
const v2 = (digits: string): Uint8Array => fromHex((SIGNATURE + digits).replaceAll(' ', ''))
const four = { kind: 'visitor', address: '192.168.0.1', port: 56324 }
const UNIX = '21 31 00d8' + '00'.repeat(216)

const GOOD: [name: string, header: Uint8Array, verdict: Record<string, unknown>][] = [
  ['v1 four', utf8('PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n'), four],
  ['v1 six', utf8('PROXY TCP6 2001:DB8::1 ::1 1 2\r\n'), {
    kind: 'visitor',
    address: '2001:db8::1',
    port: 1,
  }],
  ['v1 mapped', utf8('PROXY TCP6 ::ffff:10.1.2.3 ::1 1 2\r\n'), {
    kind: 'visitor',
    address: '10.1.2.3',
    port: 1,
  }],
  ['v1 unknown', utf8('PROXY UNKNOWN\r\n'), { kind: 'unknown' }],
  ['v1 unknown with more', utf8(`PROXY UNKNOWN ${'f'.repeat(90)}\r\n`), { kind: 'unknown' }],
  ['v2 four', v2('21 11 000c c0a80001 c0a8000b dc04 01bb'), four],
  ['v2 four, TLVs', v2('21 11 0013 c0a80001 c0a8000b dc04 01bb 04 0004 00000000'), four],
  ['v2 six', v2(`21 21 0024 20010db8${'00'.repeat(11)}01 ${'00'.repeat(16)} 0001 01bb`), {
    kind: 'visitor',
    address: '2001:db8::1',
    port: 1,
  }],
  ['v2 mapped', v2(`21 21 0024 ${'00'.repeat(10)}ffff0a010203 ${'00'.repeat(16)} 0001 01bb`), {
    kind: 'visitor',
    address: '10.1.2.3',
    port: 1,
  }],
  ['v2 local', v2('20 00 0000'), { kind: 'proxy' }],
  ['v2 local with addresses', v2('20 11 000c c0a80001 c0a8000b dc04 01bb'), { kind: 'proxy' }],
  ['v2 local of another family', v2('20 ff 0003 abcdef'), { kind: 'proxy' }],
  ['v2 unspecified', v2('21 00 0000'), { kind: 'unknown' }],
  ['v2 unix', v2(UNIX), { kind: 'unknown' }],
]

for (const [name, header, verdict] of GOOD) {
  test(`${name}: whole, with a visitor's bytes behind it, and every proper prefix`, () => {
    const whole = { ...verdict, bytes: header.length }
    assert.equal(readProxyHeader(header), whole)
    assert.equal(readProxyHeader(concat(header, utf8('PROXY TCP4 1.1.1.1 2.2.2.2 3 4\r\n'))), whole)
    for (let length = 0; length < header.length; length++) {
      assert.equal(readProxyHeader(header.subarray(0, length)), { kind: 'more' }, `${length}`)
    }
  })
}

test('what is no header, or not a whole one, is refused', () => {
  const refused = (bytes: Uint8Array, reason: string): void =>
    assert.equal(readProxyHeader(bytes), { kind: 'refuse', reason }, String(bytes))
  for (
    const other of ['GET / HTTP/1.1\r\n', '\x16\x03\x01', 'PROXYTCP4', 'proxy tcp4', '\0', ' ']
  ) {
    refused(utf8(other), 'no-header')
  }
  for (
    const line of [
      'TCP4 1.2.3.4 5.6.7.8 1 2',
      'TCP4  1.2.3.4 5.6.7.8 1 2',
      'TCP4 1.2.3.4 5.6.7.8 1',
      'TCP4 1.2.3.4 5.6.7.8 1 65536',
      'TCP4 1.2.3.4 5.6.7.8 01 2',
      'TCP4 01.2.3.4 5.6.7.8 1 2',
      'TCP4 1.2.3.256 5.6.7.8 1 2',
      'TCP4 1.2.3.4 5.6.7.8 -1 2',
      'TCP4 ::1 ::1 1 2',
      'TCP6 1.2.3.4 5.6.7.8 1 2',
      'TCP6 ::1%eth0 ::1 1 2',
      'TCP6 [::1] ::1 1 2',
      'TCP6 ::1 :: 1 2 ',
      'TCP4 1.2.3.4 5.6.7.8 1 2\tx',
      'TCP5 1.2.3.4 5.6.7.8 1 2',
      'UNKNOWNS',
      '',
    ].slice(1)
  ) refused(utf8(`PROXY ${line}\r\n`), 'bad-header')
  // A lone LF ends no line: what a lenient reader takes for one could hide a second header.
  refused(utf8('PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n'), 'bad-header')
  refused(utf8(`PROXY UNKNOWN ${'f'.repeat(100)}\r\n`), 'too-long')
  refused(utf8('PROXY '.padEnd(107, 'x')), 'too-long')
  for (
    const digits of [
      '11 11 000c', // version 1
      '22 11 000c', // an unknown command
      '21 12 000c', // UDP over TCP
      '21 22 0024',
      '21 41 0000', // no such family
      '21 11 000b', // shorter than its addresses
      '21 21 0023',
      '21 31 00d7',
    ]
  ) refused(v2(digits), 'bad-header')
  // Refused by its own word, before so much has come.
  refused(v2(`21 11 ${(V2_REST_BYTES_MAX + 1).toString(16).padStart(4, '0')}`), 'too-long')
  refused(v2('20 00 ffff'), 'too-long')
})

test('what one side writes the other reads', () => {
  fc.assert(
    fc.property(
      fc.constantFrom('v1' as const, 'v2' as const),
      fc.oneof(fc.ipV4(), fc.ipV6()),
      fc.integer({ min: 0, max: 65_535 }),
      fc.uint8Array({ maxLength: 64 }),
      (version, address, port, rest) => {
        const header = proxyHeader(version, { address, port }, 443)
        const verdict = readProxyHeader(concat(header, rest))
        if (verdict.kind !== 'visitor') throw new Error(verdict.kind)
        assert.is(verdict.bytes, header.length)
        assert.is(verdict.port, port)
        assert.equal(proxyHeader(version, verdict, 443), header)
      },
    ),
  )
})

test('changed and random bytes: a verdict always, and the same however they are cut', () => {
  const changed = fc.tuple(
    fc.constantFrom(...GOOD.map(([, header]) => header)),
    fc.array(fc.tuple(fc.nat(255), fc.nat(255)), { maxLength: 4 }),
    fc.uint8Array({ maxLength: 32 }),
  ).map(([header, changes, rest]) => {
    const bytes = concat(header, rest)
    for (const [at, value] of changes) bytes[at % bytes.length] = value
    return bytes
  })
  fc.assert(
    fc.property(fc.oneof(changed, fc.uint8Array({ maxLength: 300 })), (bytes) => {
      const whole = readProxyHeader(bytes)
      if ('bytes' in whole) assert.ok(whole.bytes <= bytes.length)
      let stepped: ProxyVerdict = { kind: 'more' }
      for (let n = 0; n <= bytes.length && stepped.kind === 'more'; n++) {
        stepped = readProxyHeader(bytes.subarray(0, n))
      }
      // A refusal may come earlier, and then for a reason that shows earlier.
      assert.is(stepped.kind, whole.kind)
      if (whole.kind !== 'refuse') assert.equal(stepped, whole)
    }),
    { numRuns: 3000 },
  )
})

test('isWithin() compares networks bit by bit', () => {
  const within = (address: string, ...networks: string[]): boolean =>
    isWithin(address, networks.map((text) => parseNetwork(text)!))
  assert.ok(within('10.255.0.1', '10.0.0.0/8'))
  assert.not(within('11.0.0.1', '10.0.0.0/8'))
  assert.ok(within('192.168.1.130', '192.168.1.128/25'))
  assert.not(within('192.168.1.127', '192.168.1.128/25'))
  assert.ok(within('::ffff:10.0.0.1', '10.0.0.0/8'))
  assert.not(within('::1', '0.0.0.0/0'))
  assert.ok(within('1.2.3.4', '0.0.0.0/0'))
  assert.ok(within('2001:db8:7::1', '2001:db8::/32'))
  assert.not(within('2001:db9::1', '2001:db8::/32'))
  assert.ok(within('fe80::1%eth0', 'fe80::/10'))
  assert.not(within('', '0.0.0.0/0', '::/0'))
  assert.not(within('unix', '0.0.0.0/0', '::/0'))
})

test.run()
