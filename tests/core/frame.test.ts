// Frames are fixed by docs/protocol.md §2; the bytes here are written by hand, once, from that text.
import * as fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { fromHex, hex, utf8 } from '../../core/bytes.ts'
import * as frames from '../../core/frame.ts'
import type { FrameName, Visit } from '../../core/frame.ts'
import { codeOf, filled } from './../support/crypto.ts'

const frame = suite('core/frame')

const VISIT: Visit = {
  kind: 'tls',
  windowBytes: 262_144,
  address: '192.0.2.7',
  port: 4660,
  endpoint: 'web',
  tail: new Uint8Array(0),
}

/** Name, id, payload, and the whole message in groups that match the fields. */
const GOLDEN: [FrameName, number, Uint8Array, string][] = [
  [
    'open',
    2,
    frames.encodeVisit(VISIT),
    '10 00000002 01 00040000 1234 09 3139322e302e322e37 03 776562',
  ],
  ['data', 7, utf8('hi'), '11 00000007 6869'],
  ['credit', 0xfffffffe, frames.encodeCredit(65_536), '12 fffffffe 00010000'],
  ['fin', 3, new Uint8Array(0), '13 00000003'],
  ['reset', 3, frames.encodeReset(3, 'no'), '14 00000003 0003 6e6f'],
  ['packet', 4, frames.encodePackets([utf8('a'), utf8('bc')]), '20 00000004 0001 61 0002 6263'],
  ['peer_gone', 0, new Uint8Array(0), '21 00000000'],
  ['ping', 0, filled(1, 8), '30 00000000 0101010101010101'],
  ['pong', 0, filled(1, 8), '31 00000000 0101010101010101'],
  ['restarting', 0, frames.encodeRestarting(500, 60_000), '32 00000000 000001f4 0000ea60'],
  ['notice', 0, frames.encodeNotice('a/b', 'c'), '33 00000000 03 612f62 63'],
  ['request', 1, frames.encodeJson({ do: 'x' }), '40 00000001 7b22646f223a2278227d'],
  ['reply', 1, frames.encodeJson({ ok: true }), '41 00000001 7b226f6b223a747275657d'],
]

frame('the tables are unchanged', () => {
  assert.equal({ ...frames.FRAME }, {
    hello: 1,
    challenge: 2,
    admit: 3,
    welcome: 4,
    open: 16,
    data: 17,
    credit: 18,
    fin: 19,
    reset: 20,
    packet: 32,
    peer_gone: 33,
    ping: 48,
    pong: 49,
    restarting: 50,
    notice: 51,
    request: 64,
    reply: 65,
  })
  assert.equal({ ...frames.RESET }, {
    refused: 1,
    unreachable: 2,
    overdrawn: 3,
    gone: 4,
    timeout: 5,
    aborted: 6,
    overload: 7,
    blocked: 8,
    protocol: 9,
    quota: 10,
    draining: 11,
  })
  assert.equal({ ...frames.VISIT }, {
    tls: 1,
    raw: 2,
    http: 3,
    connect: 4,
    udp: 5,
    session: 6,
    datagrams: 7,
    pair: 8,
    service: 9,
  })
})

frame('encodeFrame() writes the golden bytes and decodeFrame() reads them back', () => {
  for (const [name, id, payload, golden] of GOLDEN) {
    const message = frames.encodeFrame(name, id, payload)
    assert.is(hex(message), golden.replaceAll(' ', ''), name)
    const decoded = frames.decodeFrame(fromHex(golden))
    assert.is(decoded.type, frames.FRAME[name])
    assert.is(decoded.id, id)
    assert.equal(hex(decoded.payload), hex(payload))
  }
})

frame('decodeFrame() refuses every proper prefix of a frame whose length is fixed', () => {
  for (const [name, , payload, golden] of GOLDEN) {
    const whole = fromHex(golden)
    for (let length = 0; length < whole.length; length++) {
      const cut = whole.subarray(0, length)
      if (length < frames.FRAME_HEADER_BYTES) {
        assert.is(codeOf(() => frames.decodeFrame(cut)), 'frame/truncated', name)
      } else if (payload.length === 8 || name === 'credit') {
        assert.is(codeOf(() => frames.decodeFrame(cut)), 'frame/size', name)
      }
    }
  }
})

frame('payload readers refuse every proper prefix', () => {
  const readers: [string, Uint8Array, (bytes: Uint8Array) => unknown, number][] = [
    ['visit', frames.encodeVisit(VISIT), frames.decodeVisit, 0],
    ['credit', frames.encodeCredit(1), frames.decodeCredit, 0],
    ['restarting', frames.encodeRestarting(1, 2), frames.decodeRestarting, 0],
    // What follows the code is text of any length.
    ['reset', frames.encodeReset(1, 'why'), frames.decodeReset, 3],
  ]
  for (const [name, bytes, read, free] of readers) {
    for (let length = 0; length < bytes.length - free; length++) {
      assert.is(
        codeOf(() => read(bytes.subarray(0, length))),
        'frame/truncated',
        `${name} at ${length}`,
      )
    }
    assert.is(codeOf(() => read(bytes)), undefined, name)
  }
})

frame('decodeFrame() names an unknown type, a wrong size and a wrong id', () => {
  assert.is(codeOf(() => frames.decodeFrame(fromHex('7f00000000'))), 'frame/unknown')
  assert.is(codeOf(() => frames.decodeFrame(fromHex('1100000001'))), 'frame/size')
  assert.is(
    codeOf(() => frames.decodeFrame(new Uint8Array(frames.FRAME_BYTES_MAX + 1).fill(0x11))),
    'frame/size',
  )
  assert.is(codeOf(() => frames.decodeFrame(fromHex('1100000000 61'))), 'frame/id')
  assert.is(codeOf(() => frames.decodeFrame(fromHex('2100000001'))), 'frame/id')
  assert.is(codeOf(() => frames.encodeFrame('data', 1)), 'frame/size')
})

frame('visits, credit and packets refuse what no honest end says', () => {
  const visit = frames.encodeVisit(VISIT)
  assert.is(
    codeOf(() => frames.decodeVisit(Uint8Array.from([10, ...visit.subarray(1)]))),
    'frame/visit',
  )
  assert.is(
    codeOf(() => frames.decodeVisit(Uint8Array.from([1, 1, 0, 0, 1, ...visit.subarray(5)]))),
    'frame/visit',
  )
  assert.is(codeOf(() => frames.decodeCredit(fromHex('01000001'))), 'frame/credit')
  assert.is(codeOf(() => frames.decodePackets(fromHex('0000'))), 'frame/packet')
  assert.is(codeOf(() => frames.decodePackets(fromHex('000561'))), 'frame/truncated')
  assert.is(codeOf(() => frames.decodeJson(utf8('[]'))), 'frame/json')
  assert.is(codeOf(() => frames.decodeJson(utf8('{'))), 'frame/json')
})

frame('encodePacketRun() writes what encodePackets() does of each datagram by itself', () => {
  const run = frames.encodePacketRun(4, utf8('abcdefg'), 3)
  assert.equal(run, fromHex('20 00000004 0003 616263 0003 646566 0001 67'))
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 1, maxLength: 2_000 }),
      fc.integer({ min: 1, max: 2_100 }),
      fc.integer({ min: 1, max: 0xffffffff }),
      (bytes, size, id) => {
        const each: Uint8Array[] = []
        for (let at = 0; at < bytes.length; at += size) each.push(bytes.subarray(at, at + size))
        const expected = frames.encodeFrame('packet', id, frames.encodePackets(each))
        assert.equal(frames.encodePacketRun(id, bytes, size), expected)
        const read = frames.decodePackets(frames.decodeFrame(expected).payload)
        assert.equal(read.map(({ length }) => length), each.map(({ length }) => length))
      },
    ),
  )
})

frame('a bundle of packets that is cut, or has a length beyond its end, is refused whole', () => {
  const { payload } = frames.decodeFrame(frames.encodePacketRun(4, new Uint8Array(3_000), 1_400))
  const ends = new Set([1_402, 2_804, 3_006])
  for (let length = 1; length <= payload.length; length++) {
    const cut = payload.subarray(0, length)
    if (ends.has(length)) frames.decodePackets(cut)
    else assert.is(codeOf(() => frames.decodePackets(cut)), 'frame/truncated')
  }
  for (const at of [0, 1_402, 2_804]) {
    const longer = payload.slice()
    longer.set([255, 255], at)
    assert.is(codeOf(() => frames.decodePackets(longer)), 'frame/truncated')
    longer.set([0, 0], at)
    assert.is(codeOf(() => frames.decodePackets(longer)), 'frame/packet')
  }
})

frame('readdress() changes the id and nothing else', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 0xffffffff }),
      fc.uint8Array({ minLength: 1, maxLength: 64 }),
      (id, payload) => {
        const message = frames.encodeFrame('data', 5, payload)
        frames.readdress(message, id)
        assert.is(frames.frameId(message), id)
        assert.is(hex(message), hex(frames.encodeFrame('data', id, payload)))
      },
    ),
  )
})

frame('a slow twin by DataView agrees on generated visits', () => {
  const text8 = fc.string({ unit: 'grapheme', maxLength: 20 }).filter((text) =>
    utf8(text).length < 256
  )
  fc.assert(
    fc.property(
      text8,
      text8,
      fc.integer({ min: 0, max: 65_535 }),
      fc.integer({ min: 0, max: frames.WINDOW_BYTES_MAX }),
      fc.uint8Array({ maxLength: 50 }),
      (address, endpoint, port, windowBytes, tail) => {
        const bytes = frames.encodeVisit({
          kind: 'http',
          windowBytes,
          address,
          port,
          endpoint,
          tail,
        })
        const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
        let at = 7
        const read = (): string => {
          const length = view.getUint8(at)
          at += 1 + length
          return new TextDecoder().decode(bytes.subarray(at - length, at))
        }
        assert.is(view.getUint8(0), 3)
        assert.is(view.getUint32(1), windowBytes)
        assert.is(view.getUint16(5), port)
        assert.is(read(), address)
        assert.is(read(), endpoint)
        assert.is(hex(bytes.subarray(at)), hex(tail))
        assert.equal(frames.decodeVisit(bytes), {
          kind: 'http',
          windowBytes,
          address,
          port,
          endpoint,
          tail,
        })
      },
    ),
  )
})

frame('a reason is cut to 255 bytes at a whole letter', () => {
  const { reason } = frames.decodeReset(frames.encodeReset(6, 'ä'.repeat(300)))
  assert.is(reason, 'ä'.repeat(127))
})

frame.run()
