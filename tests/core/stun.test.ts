// STUN: the published vectors of RFC 5769 (sections 2.2 and 2.3: answers over IPv4 and IPv6, whose
// fingerprints are checked), round trips, every truncation, every flipped bit, and noise.
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, fromHex, hex } from '../../core/bytes.ts'
import { isTunnelError } from '../../core/errors.ts'
import {
  answers,
  bindingAnswer,
  bindingRequest,
  decodeStun,
  decodeStunAddress,
  encodeStun,
  encodeStunAddress,
  errorOf,
  looksLikeStun,
  mappedAddress,
  otherAddress,
  STUN_ATTRIBUTE,
  STUN_BYTES_MAX,
  STUN_CLASS,
} from '../../core/stun.ts'
import type { StunClass } from '../../core/stun.ts'

const test = suite('core/stun')
const TRANSACTION = fromHex('b7e7a701bc34d686fa87dfae')

/** RFC 5769 §2.2. */
const IPV4 = fromHex(`
  0101003c 2112a442 b7e7a701 bc34d686 fa87dfae
  8022000b 74657374 20766563 746f7220
  00200008 0001a147 e112a643
  00080014 2b91f599 fd9e90c3 8c7489f9 2af9ba53 f06be7d7
  80280004 c07d4c96`)
/** RFC 5769 §2.3. */
const IPV6 = fromHex(`
  01010048 2112a442 b7e7a701 bc34d686 fa87dfae
  8022000b 74657374 20766563 746f7220
  00200014 0002a147 0113a9fa a5d3f179 bc25f4b5 bed2b9d9
  00080014 a382954e 4be67bf1 1784c97c 8292c275 bfe3ed41
  80280004 c8fb0b4c`)

test('decodeStun() reads the answers that RFC 5769 prints, their fingerprints included', () => {
  const four = decodeStun(IPV4)
  assert.is(four.class, 'success')
  assert.equal(mappedAddress(four), { family: 4, address: '192.0.2.1', port: 32853 })
  assert.ok(answers(four, TRANSACTION))
  assert.not.ok(answers(four, new Uint8Array(12)))
  assert.equal(mappedAddress(decodeStun(IPV6)), {
    family: 6,
    address: '2001:db8:1234:5678:11:2233:4455:6677',
    port: 32853,
  })
})

test('bindingRequest() writes the golden bytes', () => {
  assert.is(
    hex(bindingRequest(TRANSACTION, { changeIp: true, changePort: true })),
    '000100102112a442b7e7a701bc34d686fa87dfae000300040000000680280004ece90f05',
  )
  assert.is(bindingRequest(TRANSACTION, { paddingBytes: 1201 }).length, 20 + 4 + 1204 + 8)
})

for (
  const [form, from] of [
    ['IPv4', { family: 4, address: '203.0.113.255', port: 65_535 }],
    ['IPv6', { family: 6, address: '2001:db8::1', port: 0 }],
    ['all zeros', { family: 6, address: '::', port: 1 }],
    ['no zeros', { family: 6, address: '1:2:3:4:5:6:7:8', port: 1 }],
    ['one zero', { family: 6, address: '1:0:3:4:5:6:7:8', port: 1 }],
  ] as const
) {
  test(`an address comes back as it was: ${form}`, () => {
    assert.equal(mappedAddress(decodeStun(bindingAnswer(TRANSACTION, from))), from)
    assert.equal(decodeStunAddress(encodeStunAddress(from)), from)
    const other = { type: STUN_ATTRIBUTE.otherAddress, value: encodeStunAddress(from) }
    assert.equal(otherAddress(decodeStun(bindingAnswer(TRANSACTION, from, [other]))), from)
  })
}

test('decodeStun() refuses every proper prefix, and what comes after the end', () => {
  for (const whole of [IPV4, IPV6, bindingRequest(TRANSACTION)]) {
    for (let cut = 0; cut < whole.length; cut++) {
      assert.throws(
        () => decodeStun(whole.subarray(0, cut)),
        (error: unknown) => isTunnelError(error, 'stun/truncated'),
      )
    }
    assert.throws(() => decodeStun(concat(whole, new Uint8Array(4))), /after its end/)
  }
})

test('decodeStun() notices every flipped bit of a message whose fingerprint it sees', () => {
  for (let bit = 0; bit < IPV4.length * 8; bit++) {
    const wrong = new Uint8Array(IPV4)
    wrong[bit >> 3] = wrong[bit >> 3]! ^ (1 << (bit & 7))
    let read
    try {
      read = decodeStun(wrong)
    } catch (error) {
      assert.ok(isTunnelError(error))
      continue
    }
    // Only one that hid the fingerprint itself, which a reader may then miss.
    assert.not.ok(read.attributes.some(({ type }) => type === STUN_ATTRIBUTE.fingerprint))
  }
})

test('decodeStun() refuses lengths, types, cookies and attributes that lie', () => {
  const lies: [string, (bytes: Uint8Array) => void][] = [
    ['first bits', (bytes) => void (bytes[0] = 0x80)],
    ['cookie', (bytes) => void (bytes[4] = 0)],
    ['length no multiple of 4', (bytes) => void (bytes[3] = bytes[3]! + 1)],
    ['attribute beyond the end', (bytes) => void (bytes[22] = 0xff)],
    ['fingerprint before the end', (bytes) => bytes.set([0x80, 0x28, 0, 4], 20)],
  ]
  for (const [what, lie] of lies) {
    const bytes = new Uint8Array(IPV4)
    lie(bytes)
    assert.throws(() => decodeStun(bytes), (error: unknown) => isTunnelError(error), what)
  }
  assert.throws(() => decodeStun(new Uint8Array(STUN_BYTES_MAX + 4)), /bytes/)
  for (const value of ['', '0001', '000100000000', '00030000 7f000001', '0002 0000 7f000001']) {
    assert.throws(() => decodeStunAddress(fromHex(value)), /no form/)
  }
})

test('encodeStun() refuses what is too large', () => {
  assert.throws(() => bindingRequest(TRANSACTION, { paddingBytes: STUN_BYTES_MAX }), /at most/)
})

test('an error is read, with its words or without', () => {
  const made = (value: string) =>
    decodeStun(encodeStun({
      class: 'error',
      method: 1,
      transaction: TRANSACTION,
      attributes: [{ type: STUN_ATTRIBUTE.errorCode, value: fromHex(value) }],
    }))
  assert.equal(errorOf(made('00000414 556e6b6e6f776e')), { code: 420, reason: 'Unknown' })
  assert.equal(errorOf(made('00000400 ff')), { code: 400, reason: '' })
  assert.throws(() => errorOf(made('0000')), /no form/)
})

test('methods and classes keep their interleaved bits', () => {
  fc.assert(fc.property(
    fc.nat({ max: 0xfff }),
    fc.constantFrom(...Object.keys(STUN_CLASS) as StunClass[]),
    (method, kind) => {
      const made = encodeStun({
        class: kind,
        method,
        transaction: TRANSACTION,
        attributes: [],
      })
      assert.ok(looksLikeStun(made))
      const read = decodeStun(made)
      assert.is(read.method, method)
      assert.is(read.class, kind)
    },
  ))
})

test('decodeStun() answers noise with an error of its own, never another', () => {
  const head = fc.constantFrom(new Uint8Array(0), IPV4.subarray(0, 20), IPV4.subarray(0, 30))
  fc.assert(
    fc.property(head, fc.uint8Array({ maxLength: 200 }), (begin, rest) => {
      const bytes = concat(begin, rest)
      if (bytes.length >= 20) new DataView(bytes.buffer).setUint16(2, bytes.length - 20)
      try {
        const message = decodeStun(bytes)
        mappedAddress(message)
        otherAddress(message)
        errorOf(message)
      } catch (error) {
        assert.ok(isTunnelError(error), String(error))
      }
    }),
    { numRuns: 20_000 },
  )
})

test.run()
