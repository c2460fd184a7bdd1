// The agreement on a tunnel: bytes as docs/protocol.md §17 has them, written by hand once from that
// text; every truncation, every hostile field refused by name, and what both ends derive.
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  AGREEMENT,
  type AgreementMessage,
  agreementPsk,
  AgreementReader,
  decodeAgreement,
  encodeAgreement,
  REFUSAL,
} from '../../core/agreement.ts'
import { parseNetwork } from '../../core/address.ts'
import { concat, fromHex, hex } from '../../core/bytes.ts'
import { isTunnelError } from '../../core/errors.ts'

const test = suite('core/agreement')
const key = new Uint8Array(32).fill(0xaa)
const nonce = new Uint8Array(32).fill(0xbb)
const channel = new Uint8Array(16).fill(0xcc)
const network = (text: string) => parseNetwork(text)!
const agreed = (fields: object = {}): AgreementMessage => ({
  kind: 'agreed',
  key,
  nonce,
  address4: { bytes: Uint8Array.of(100, 80, 1, 2), bits: 24 },
  address6: { bytes: fromHex('fd00 1122 3344 0000 0000 0000 0000 0002'), bits: 64 },
  relayMtu: 16_384,
  directMtu: 1420,
  dns: [Uint8Array.of(100, 80, 1, 1)],
  routes: [network('192.168.1.0/24'), network('10.0.0.0/8')],
  endpoints: [],
  ...fields,
})

const GOLDEN: readonly [name: string, message: AgreementMessage, bytes: string][] = [
  [
    'propose',
    {
      kind: 'propose',
      key,
      nonce,
      channel,
      taken: [network('100.100.0.0/16')],
      endpoints: [{ address: Uint8Array.of(192, 168, 1, 9), port: 51820 }],
    },
    `30 000061 0001 ${'aa'.repeat(32)} ${'bb'.repeat(32)} ${'cc'.repeat(16)}
     01 04 10 64640000  01 04 c0a80109 ca6c`,
  ],
  [
    'agreed',
    agreed(),
    `31 00006f ${'aa'.repeat(32)} ${'bb'.repeat(32)} 64500102 18
     fd001122334400000000000000000002 40 4000 058c  01 04 64500101
     0002 04 08 0a000000 04 18 c0a80100  00`,
  ],
  ['refused', { kind: 'refused', reason: 'full', words: 'no' }, '32 000004 02 02 6e6f'],
  ['renew', { kind: 'renew', nonce }, `33 000020 ${'bb'.repeat(32)}`],
  ['renewed', { kind: 'renewed', nonce }, `34 000020 ${'bb'.repeat(32)}`],
]

function code(run: () => unknown): string {
  try {
    run()
  } catch (error) {
    if (isTunnelError(error)) return error.code
    throw error
  }
  return 'nothing'
}

for (const [name, message, bytes] of GOLDEN) {
  test(`${name}: the golden bytes, both ways`, () => {
    assert.is(hex(encodeAgreement(message)), bytes.replace(/\s/g, ''))
    const [read, ...more] = new AgreementReader().push(fromHex(bytes))
    assert.is(more.length, 0)
    assert.is(hex(encodeAgreement(read!)), bytes.replace(/\s/g, ''))
  })

  test(`${name}: every proper prefix of the body is refused by name, and so is a longer one`, () => {
    const body = fromHex(bytes).subarray(4)
    for (let length = 0; length < body.length; length++) {
      const found = code(() => decodeAgreement(AGREEMENT[message.kind], body.subarray(0, length)))
      assert.is(found, 'agreement/truncated', `${length} bytes`)
    }
    const longer = code(() => decodeAgreement(AGREEMENT[message.kind], concat(body, channel)))
    assert.ok(/^agreement\/(trailing|envelope)$/.test(longer), longer)
  })
}

test('in any pieces the same messages come', () => {
  const all = concat(...GOLDEN.map(([, message]) => encodeAgreement(message)))
  for (const size of [1, 2, 3, 7, 64, all.length]) {
    const reader = new AgreementReader()
    const found: AgreementMessage[] = []
    for (let at = 0; at < all.length; at += size) {
      found.push(...reader.push(all.slice(at, at + size)))
    }
    assert.equal(found.map(({ kind }) => kind), GOLDEN.map(([name]) => name))
  }
})

const BAD: readonly [claim: string, fields: object, code: string][] = [
  ['an address of the world', { address4: network('8.8.8.8') }, 'agreement/address'],
  ['an address beside 100.64/10', {
    address4: { bytes: Uint8Array.of(100, 128, 0, 1), bits: 24 },
  }, 'agreement/address'],
  ['an IPv6 address of the world', {
    address6: { bytes: fromHex(`20010db8${'00'.repeat(12)}`), bits: 64 },
  }, 'agreement/address'],
  ['a subnet that is all', {
    address4: { bytes: Uint8Array.of(100, 64, 0, 1), bits: 0 },
  }, 'agreement/address'],
  ['a key of zeros', { key: new Uint8Array(32) }, 'agreement/key'],
  ['an MTU below 1280', { directMtu: 1279 }, 'agreement/mtu'],
  ['an MTU above a datagram', { relayMtu: 65_401 }, 'agreement/mtu'],
  ['five resolvers', { dns: new Array(5).fill(Uint8Array.of(1, 1, 1, 1)) }, 'agreement/address'],
  ['a resolver of three bytes', { dns: [Uint8Array.of(1, 2, 3)] }, 'agreement/address'],
  ['one route twice', {
    routes: [network('10.0.0.0/8'), network('10.0.0.0/8')],
  }, 'agreement/network'],
  ['a route with bits beyond its prefix', {
    routes: [{ bytes: Uint8Array.of(10, 0, 0, 1), bits: 8 }],
  }, 'agreement/network'],
  ['a prefix of 33', {
    routes: [{ bytes: Uint8Array.of(10, 0, 0, 1), bits: 33 }],
  }, 'agreement/network'],
  ['257 routes', {
    routes: Array.from({ length: 257 }, (_, i) => network(`10.${i >> 8}.${i & 255}.0/24`)),
  }, 'agreement/network'],
  [
    'port 0',
    { endpoints: [{ address: Uint8Array.of(10, 0, 0, 1), port: 0 }] },
    'agreement/endpoint',
  ],
  ['an endpoint twice', {
    endpoints: new Array(2).fill({ address: Uint8Array.of(10, 0, 0, 1), port: 1 }),
  }, 'agreement/endpoint'],
  ['17 endpoints', {
    endpoints: Array.from({ length: 17 }, (_, i) => ({
      address: Uint8Array.of(10, 0, 0, 1),
      port: i + 1,
    })),
  }, 'agreement/endpoint'],
]
for (const [claim, fields, expected] of BAD) {
  test(`refused: ${claim}`, () => assert.is(code(() => encodeAgreement(agreed(fields))), expected))
}

test('refused: networks out of order, a family that there is not, an unknown reason, version 2', () => {
  const [propose] = GOLDEN[0]!.slice(2) as string[]
  const body = (bytes: string) => fromHex(bytes).subarray(4)
  const decode = (bytes: string) => code(() => decodeAgreement(AGREEMENT.propose, body(bytes)))
  const two = propose!.replace('01 04 10 64640000', '02 04 10 64650000 04 10 64640000')
  assert.is(decode(two), 'agreement/network')
  assert.is(decode(propose!.replace('01 04 10', '01 05 10')), 'agreement/network')
  assert.is(decode(propose!.replace('0001 aa', '0002 aa')), 'agreement/version')
  assert.is(code(() => decodeAgreement(AGREEMENT.refused, fromHex('09 00'))), 'agreement/reason')
  assert.is(code(() => decodeAgreement(0x35, key)), 'agreement/envelope')
  assert.is(code(() => new AgreementReader().push(fromHex('35 000000'))), 'agreement/envelope')
  assert.is(code(() => new AgreementReader().push(fromHex('33 ffffff'))), 'agreement/envelope')
})

test('whatever decodes encodes to the same bytes again', () => {
  fc.assert(
    fc.property(fc.nat(4), fc.nat(400), fc.nat(255), (which, at, value) => {
      const [, message] = GOLDEN[which]!
      const body = encodeAgreement(message).slice(4)
      body[at % body.length] = value
      let read: AgreementMessage
      try {
        read = decodeAgreement(AGREEMENT[message.kind], body)
      } catch (error) {
        if (isTunnelError(error)) return true
        throw error
      }
      return hex(encodeAgreement(read).subarray(4)) === hex(body)
    }),
    { numRuns: 3000 },
  )
})

test('the key of both is one, and another with each nonce, key and role', () => {
  const asked: string[] = []
  const session = {
    exporter: (label: string, context: Uint8Array, bytes: number) => {
      asked.push(`${label} ${hex(context)} ${bytes}`)
      return context
    },
  }
  const of = { client: key, server: nonce, clientNonce: nonce, serverNonce: key }
  agreementPsk(session, of)
  const order = [key, nonce, nonce, key].map(hex).join('')
  assert.equal(asked, [`wireguard psk ${order} 32`])
})

test('the tables are unchanged', () => {
  assert.equal(AGREEMENT, {
    propose: 0x30,
    agreed: 0x31,
    refused: 0x32,
    renew: 0x33,
    renewed: 0x34,
  })
  assert.equal(REFUSAL, { version: 1, full: 2, subnet: 3, order: 4, revoked: 5, fault: 6 })
})

test.run()
