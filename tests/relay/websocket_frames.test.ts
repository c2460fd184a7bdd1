// Frames are fixed by RFC 6455 §5.2; the golden ones are those of §5.7.
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, fromHex, hex, utf8 } from '../../core/bytes.ts'
import { isTunnelError } from '../../core/errors.ts'
import {
  encodeClientFrame,
  encodeClose,
  MESSAGE_BYTES_MAX,
  OPCODE,
  ServerFrames,
} from '../../relay/websocket_frames.ts'

const frames = suite('relay/websocket_frames')

const MASK = fromHex('37fa213d')

function recorder(): { told: string[]; reader: ServerFrames } {
  const told: string[] = []
  const reader = new ServerFrames({
    message: (message) =>
      void told.push(typeof message === 'string' ? `text ${message}` : `binary ${hex(message)}`),
    ping: (payload) => void told.push(`ping ${hex(payload)}`),
    close: (code, reason) => void told.push(`close ${code} ${reason}`),
  })
  return { told, reader }
}

function codeOf(run: () => void): string {
  try {
    run()
    return 'none'
  } catch (error) {
    if (isTunnelError(error)) return error.code
    throw error
  }
}

/** A frame as a server sends it. */
function served(first: number, payload: Uint8Array): Uint8Array {
  const { length } = payload
  const head = length < 126
    ? [first, length]
    : length < 65_536
    ? [first, 126, length >> 8, length & 255]
    : [
      first,
      127,
      0,
      0,
      0,
      0,
      length >>> 24,
      (length >> 16) & 255,
      (length >> 8) & 255,
      length & 255,
    ]
  return concat(new Uint8Array(head), payload)
}

frames('encodeClientFrame() writes the golden bytes', () => {
  assert.is(hex(encodeClientFrame(OPCODE.text, utf8('Hello'), MASK)), '818537fa213d7f9f4d5158')
})

frames('lengths take 1, 3 or 9 bytes', () => {
  for (
    const [length, head] of [
      [0, '8280'],
      [125, '82fd'],
      [126, '82fe007e'],
      [65_535, '82feffff'],
      [65_536, '82ff0000000000010000'],
    ] as const
  ) {
    const frame = encodeClientFrame(OPCODE.binary, new Uint8Array(length), MASK)
    assert.is(hex(frame.subarray(0, head.length / 2)), head)
    assert.is(frame.length, head.length / 2 + 4 + length)
  }
})

frames('encodeClose() cuts the reason, and has none without a code', () => {
  assert.is(hex(encodeClose(undefined, 'x')), '')
  assert.is(hex(encodeClose(1000, 'ok')), '03e86f6b')
  assert.is(encodeClose(1000, 'x'.repeat(500)).length, 125)
})

frames('ServerFrames reads the golden bytes, however they are cut', () => {
  const bytes = concat(
    fromHex('8105 48656c6c6f'),
    fromHex('0103 48656c'),
    fromHex('8905 48656c6c6f'),
    fromHex('8002 6c6f'),
    served(0x82, new Uint8Array(200).fill(7)),
    fromHex('8a00'),
    fromHex('8804 03e8 6f6b'),
  )
  const expected = [
    'text Hello',
    'ping 48656c6c6f',
    'text Hello',
    `binary ${'07'.repeat(200)}`,
    'close 1000 ok',
  ]
  for (let size = 1; size <= bytes.length; size++) {
    const { told, reader } = recorder()
    for (let at = 0; at < bytes.length; at += size) reader.push(bytes.subarray(at, at + size))
    assert.equal(told, expected)
  }
})

frames('nothing is read after a close', () => {
  const { told, reader } = recorder()
  reader.push(concat(fromHex('8800'), fromHex('810161')))
  reader.push(fromHex('f1ff'))
  assert.equal(told, ['close undefined '])
})

for (
  const [name, bytes] of [
    ['a mask', '8180 00000000'],
    ['a reserved bit', 'c100'],
    ['an unknown opcode', '8300'],
    ['an unknown control opcode', '8b00'],
    ['a long control frame', '897e0080'],
    ['a control frame in parts', '0900'],
    ['a rest without a beginning', '8000'],
    ['a beginning inside a message', '0100 8100'],
    ['a close of 1 byte', '880103'],
    ['a length of 16 bits that fits 7', '827e0010'],
    ['a length of 64 bits that fits 16', '827f0000000000000100'],
  ] as const
) {
  frames(`ServerFrames refuses ${name}`, () => {
    assert.is(codeOf(() => recorder().reader.push(fromHex(bytes))), 'websocket/frame')
  })
}

frames('ServerFrames refuses text that is not UTF-8', () => {
  assert.is(codeOf(() => recorder().reader.push(fromHex('8101ff'))), 'bytes/utf8')
  assert.is(codeOf(() => recorder().reader.push(fromHex('880303e8ff'))), 'bytes/utf8')
})

frames('a message that is too long is refused at its head, or at the part that makes it so', () => {
  const { reader } = recorder()
  assert.is(codeOf(() => reader.push(fromHex('827f0000000001000001'))), 'websocket/size')
  const parts = recorder()
  const part = served(0x02, new Uint8Array(1_048_576))
  const found = codeOf(() => {
    parts.reader.push(part)
    part[0] = 0x00
    for (let i = 0; i < MESSAGE_BYTES_MAX / 1_048_576; i++) parts.reader.push(part)
  })
  assert.is(found, 'websocket/size')
  // Empty parts cost as well.
  const empty = recorder()
  empty.reader.push(fromHex('0200'))
  const flood = codeOf(() => {
    const many = new Uint8Array(65_536)
    for (let i = 0; i < 40; i++) empty.reader.push(many)
  })
  assert.is(flood, 'websocket/size')
})

const seed = Date.now() & 0x7fffffff

frames(`what one end sends the other reads, in any pieces (seed ${seed})`, () => {
  fc.assert(
    fc.property(
      fc.array(fc.uint8Array({ maxLength: 400 }), { minLength: 1, maxLength: 12 }),
      fc.integer({ min: 1, max: 90 }),
      (payloads, size) => {
        const { told, reader } = recorder()
        const bytes = concat(...payloads.map((payload) => served(0x82, payload)))
        for (let at = 0; at < bytes.length; at += size) reader.push(bytes.subarray(at, at + size))
        assert.equal(told, payloads.map((payload) => `binary ${hex(payload)}`))
      },
    ),
    { seed, numRuns: 300 },
  )
})

frames(`any bytes are read or refused in the family (seed ${seed})`, () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 60 }), { maxLength: 6 }), (pieces) => {
      const { reader } = recorder()
      codeOf(() => {
        for (const piece of pieces) reader.push(piece)
      })
    }),
    { seed, numRuns: 3000 },
  )
})

frames.run()
