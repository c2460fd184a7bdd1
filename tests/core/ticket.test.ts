/**
 * Bytes are fixed by docs/protocol.md §6; the golden tags were made with `openssl dgst -mac HMAC`
 * over bytes written by hand from that text. Then the attacks: forged, replayed and transplanted
 * tickets and preludes.
 */
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, fromHex, hex, utf8 } from '../../core/bytes.ts'
import type { Visit } from '../../core/frame.ts'
import { encodeVisit } from '../../core/frame.ts'
import {
  checkTicket,
  encodePrelude,
  encodeTicket,
  looksLikeTicket,
  readPrelude,
  readTicket,
  TICKET_BYTES,
  TICKET_CLASS,
  TicketWindow,
} from '../../core/ticket.ts'
import type { TicketClass } from '../../core/ticket.ts'
import { codeOf, CRYPTOS, fast, filled } from '../support/crypto.ts'

const test = suite('core/ticket')

const BULK_KEY = Uint8Array.from({ length: 32 }, (_, i) => i)
const LINK_ID = Uint8Array.from({ length: 16 }, (_, i) => 0xa0 + i)
const TICKET_BODY = '00736f74746f6201' + // magic
  '01' + // class
  'a0a1a2a3a4a5a6a7a8a9aaabacadaeaf' + // link id
  '0000000000000007' // counter
const TICKET_TAG = 'befd394c03a8851a90aa5c0f557b9f36'
const VISIT: Visit = {
  kind: 'tls',
  windowBytes: 0,
  port: 443,
  address: '192.0.2.1',
  endpoint: 'web',
  tail: new Uint8Array(0),
}
const PRELUDE_BODY = '01' + '00000000' + '01bb' + '093139322e302e322e31' + '03776562'
const PRELUDE_TAG = 'f878aa265bab0fe7ffc2417bbe5c19b8'
const CONTEXT = { crypto: fast, linkId: LINK_ID, counter: 7, bulkKey: BULK_KEY }
const FIELDS = { linkId: LINK_ID, counter: 7, class: 'verified' } as const

for (const [name, crypto] of CRYPTOS) {
  test(`${name}: encodeTicket() and encodePrelude() write the golden bytes`, () => {
    assert.is(hex(encodeTicket(crypto, FIELDS, BULK_KEY)), TICKET_BODY + TICKET_TAG)
    const prelude = encodePrelude(VISIT, { ...CONTEXT, crypto })
    assert.is(hex(prelude), '0015' + PRELUDE_BODY + PRELUDE_TAG)
  })
}

test('a ticket of each class has its golden tag', () => {
  const tags = {
    verified: TICKET_TAG,
    clear: 'ca51ae4122122665d076a22745d322ce',
    shared: '6717b28a0cefb297c389e779b56b6f96',
  } as const
  for (const [name, number] of Object.entries(TICKET_CLASS) as [TicketClass, number][]) {
    const bytes = encodeTicket(fast, { ...FIELDS, class: name }, BULK_KEY)
    assert.is(
      hex(bytes),
      TICKET_BODY.replace('6f6201' + '01', '6f6201' + `0${number}`) + tags[name],
    )
    const ticket = readTicket(bytes)
    assert.ok(ticket !== 'more' && ticket.class === name)
  }
  for (const unknown of [0, 4, 255]) {
    const bytes = encodeTicket(fast, FIELDS, BULK_KEY)
    bytes[8] = unknown
    assert.is(codeOf(() => readTicket(bytes)), 'ticket/class')
  }
})

test('readTicket() reads the golden bytes back, and what follows them is not its own', () => {
  const bytes = fromHex(TICKET_BODY + TICKET_TAG + 'ffff')
  const ticket = readTicket(bytes)
  if (ticket === 'more') throw new Error('more')
  assert.equal([ticket.class, ticket.counter], ['verified', 7])
  assert.is(hex(ticket.linkId), hex(LINK_ID))
  assert.is(hex(ticket.body), TICKET_BODY)
  assert.is(hex(ticket.tag), TICKET_TAG)
  assert.ok(checkTicket(fast, ticket, BULK_KEY))
  assert.not(checkTicket(fast, ticket, filled(1)))
})

test('readTicket() asks for more at every proper prefix', () => {
  const bytes = encodeTicket(fast, FIELDS, BULK_KEY)
  assert.is(bytes.length, TICKET_BYTES)
  for (let length = 0; length < bytes.length; length++) {
    assert.is(readTicket(bytes.subarray(0, length)), 'more')
  }
})

test('a ticket with any byte changed does not hold', () => {
  const bytes = encodeTicket(fast, FIELDS, BULK_KEY)
  for (let i = 0; i < bytes.length; i++) {
    const changed = Uint8Array.from(bytes)
    changed[i]! ^= 1
    const code = codeOf(() => {
      const ticket = readTicket(changed)
      assert.ok(ticket !== 'more' && !checkTicket(fast, ticket, BULK_KEY), `byte ${i}`)
    })
    if (i < 8) assert.is(code, 'ticket/magic')
    else if (i === 8) assert.is(code, 'ticket/class')
    else assert.is(code, i === 25 ? 'ticket/range' : undefined, 'byte 25 makes it 2^56')
  }
})

test('the class cannot be changed from verified to clear', () => {
  const bytes = encodeTicket(fast, FIELDS, BULK_KEY)
  bytes[8] = 2
  const ticket = readTicket(bytes)
  if (ticket === 'more') throw new Error('more')
  assert.is(ticket.class, 'clear')
  assert.not(checkTicket(fast, ticket, BULK_KEY))
})

test('counters are 1 to 2^53 - 1', () => {
  for (const counter of [0, -1, 1.5, 2 ** 53, Number.NaN]) {
    assert.is(codeOf(() => encodeTicket(fast, { ...FIELDS, counter }, BULK_KEY)), 'ticket/range')
  }
  const largest = encodeTicket(fast, { ...FIELDS, counter: 2 ** 53 - 1 }, BULK_KEY)
  assert.ok(readTicket(largest) !== 'more')
  for (const counter of ['0000000000000000', '0020000000000000', 'ffffffffffffffff']) {
    const bytes = Uint8Array.from(largest)
    bytes.set(fromHex(counter), 25)
    assert.is(codeOf(() => readTicket(bytes)), 'ticket/range')
  }
  assert.is(
    codeOf(() => encodeTicket(fast, { ...FIELDS, linkId: filled(1, 15) }, BULK_KEY)),
    'ticket/length',
  )
})

test('looksLikeTicket() says no to TLS, HTTP, SSH, nothing and noise, and yes to any prefix', () => {
  const magic = fromHex('00736f74746f6201')
  for (let length = 1; length <= 8; length++) assert.ok(looksLikeTicket(magic.subarray(0, length)))
  for (
    const bytes of [
      new Uint8Array(0),
      fromHex('1603010200'),
      fromHex('802e0100'),
      utf8('GET / HTTP/1.1'),
      utf8('SSH-2.0'),
      fromHex('00'.repeat(8)),
      fromHex('00736f74746f6202'),
    ]
  ) assert.not(looksLikeTicket(bytes))
  fc.assert(fc.property(fc.uint8Array({ minLength: 8, maxLength: 80 }), (bytes) => {
    assert.is(looksLikeTicket(bytes), hex(bytes.subarray(0, 8)) === hex(magic))
  }))
})

test('readTicket() never leaves the family of errors', () => {
  const start = fc.constantFrom(fromHex('00736f74746f6201'), fromHex('00736f74746f620102'))
  fc.assert(fc.property(start, fc.uint8Array({ maxLength: 60 }), (head, rest) => {
    codeOf(() => readTicket(concat(head, rest)))
    codeOf(() => readPrelude(rest, CONTEXT))
  }))
})

test('readPrelude() reads the golden bytes back, asks for more before, and leaves what follows', () => {
  const bytes = fromHex('0015' + PRELUDE_BODY + PRELUDE_TAG)
  for (let length = 0; length < bytes.length; length++) {
    assert.is(readPrelude(bytes.subarray(0, length), CONTEXT), 'more')
  }
  assert.equal(readPrelude(bytes, CONTEXT), { visit: VISIT, bytes: bytes.length })
  const longer = concat(bytes, utf8('visitor'))
  assert.equal(readPrelude(longer, CONTEXT), { visit: VISIT, bytes: bytes.length })
})

test('a prelude with any byte changed is refused', () => {
  const bytes = encodePrelude(VISIT, CONTEXT)
  for (let i = 2; i < bytes.length; i++) {
    const changed = Uint8Array.from(bytes)
    changed[i]! ^= 0x80
    assert.is(codeOf(() => readPrelude(changed, CONTEXT)), 'ticket/forged', `byte ${i}`)
  }
})

test('a prelude of another connection, link or key is refused', () => {
  const bytes = encodePrelude(VISIT, CONTEXT)
  for (
    const other of [
      { ...CONTEXT, counter: 8 },
      { ...CONTEXT, linkId: filled(1, 16) },
      { ...CONTEXT, bulkKey: filled(1) },
    ]
  ) assert.is(codeOf(() => readPrelude(bytes, other)), 'ticket/forged')
})

test('a ticket tag is no prelude tag over the same bytes', () => {
  const body = encodeVisit(VISIT)
  const bound = concat(LINK_ID, fromHex('0000000000000007'), body)
  const tag = fast.hmacSha256(BULK_KEY, utf8('sotto bulk ticket v1\0'), bound).subarray(0, 16)
  const bytes = concat(Uint8Array.of(0, body.length), body, tag)
  assert.is(codeOf(() => readPrelude(bytes, CONTEXT)), 'ticket/forged')
})

test('a prelude whose length lies is refused at once, without waiting for it', () => {
  for (const length of [0, 8, 61_960, 65_535]) {
    const bytes = Uint8Array.of(length >> 8, length & 255)
    assert.is(codeOf(() => readPrelude(bytes, CONTEXT)), 'ticket/size', `${length}`)
  }
  assert.is(readPrelude(Uint8Array.of(0, 9), CONTEXT), 'more')
  assert.is(readPrelude(Uint8Array.of(61_959 >> 8, 61_959 & 255), CONTEXT), 'more')
})

test('the longest visit fits a prelude', () => {
  const visit: Visit = {
    ...VISIT,
    kind: 'http',
    address: 'a'.repeat(255),
    endpoint: 'e'.repeat(255),
    tail: filled(7, 61_440),
  }
  const bytes = encodePrelude(visit, CONTEXT)
  assert.is(bytes.length, 2 + 61_959 + 16)
  assert.equal(readPrelude(bytes, CONTEXT), { visit, bytes: bytes.length })
})

test('TicketWindow takes each counter once', () => {
  const window = new TicketWindow()
  assert.ok(window.use(1))
  assert.not(window.use(1), 'a replay')
  assert.ok(window.use(3))
  assert.ok(window.use(2), 'out of order')
  assert.not(window.use(3))
  for (const counter of [0, -1, 0.5, 2 ** 53, Number.NaN, Infinity]) {
    assert.not(window.use(counter), `${counter}`)
  }
})

test('TicketWindow refuses what is 4,096 or more below the highest', () => {
  const window = new TicketWindow()
  assert.ok(window.use(10_000))
  assert.ok(window.use(10_000 - 4095))
  assert.not(window.use(10_000 - 4096))
  assert.not(window.use(1))
  assert.ok(window.use(10_001))
  assert.not(window.use(10_000 - 4095))
  assert.ok(window.use(2 ** 53 - 1), 'a jump clears the window')
  assert.not(window.use(2 ** 53 - 1))
  assert.ok(window.use(2 ** 53 - 2))
  assert.not(window.use(10_001))
})

test('TicketWindow agrees with a set of all counters', () => {
  const step = fc.oneof(
    fc.integer({ min: -5000, max: 5000 }),
    fc.integer({ min: -40, max: 40 }),
    fc.constantFrom(-4097, -4096, -4095, -1, 0, 1, 31, 32, 4095, 4096, 4097),
  )
  fc.assert(fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
    const window = new TicketWindow()
    const used = new Set<number>()
    let top = 0
    for (const delta of steps) {
      const counter = Math.max(1, top + delta)
      const fresh = !used.has(counter) && counter > top - 4096
      assert.is(window.use(counter), fresh, `${counter} after ${top}`)
      used.add(counter)
      top = Math.max(top, counter)
    }
  }))
})

test.run()
