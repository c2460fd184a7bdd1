// The frames of a service's WebSocket as a bridge reads them: cut anywhere, joined, refused where
// RFC 6455 §5 says so; and the frames that it writes, unmasked by hand.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, utf8 } from '../../core/bytes.ts'
import { encodeFrame, FrameReader, MESSAGE_BYTES_MAX } from '../../relay/serve/web_socket_bridge.ts'

const bridge = suite('relay/web_socket_bridge')

interface Seen {
  messages: (string | Uint8Array)[]
  pings: Uint8Array[]
  closes: { code: number; reason: string }[]
  problem: number | undefined
}

/** What a reader tells of `bytes` that come `step` at a time. */
function read(bytes: Uint8Array, step = bytes.length): Seen {
  const seen: Seen = { messages: [], pings: [], closes: [], problem: undefined }
  const reader = new FrameReader({
    message: (message) => void seen.messages.push(message),
    ping: (payload) => void seen.pings.push(payload),
    close: (code, reason) => void seen.closes.push({ code, reason }),
  })
  for (let at = 0; at < bytes.length && seen.problem === undefined; at += step) {
    seen.problem = reader.push(bytes.subarray(at, at + step))
  }
  return seen
}

/** A frame as a server sends it. */
function frame(first: number, payload: Uint8Array): Uint8Array {
  const { length } = payload
  const head = length < 126
    ? [first, length]
    : length < 65_536
    ? [first, 126, length >> 8, length & 0xff]
    : [first, 127, 0, 0, 0, 0, 0, length >> 16, (length >> 8) & 0xff, length & 0xff]
  return concat(Uint8Array.from(head), payload)
}

bridge('messages come whole, however they are cut', () => {
  const big = new Uint8Array(70_000).fill(7)
  const all = concat(
    frame(0x81, utf8('ciao, però')),
    frame(0x02, utf8('one ')),
    frame(0x89, utf8('ping between')),
    frame(0x00, utf8('two ')),
    frame(0x80, utf8('three')),
    frame(0x82, new Uint8Array(0)),
    frame(0x82, big.subarray(0, 300)),
    frame(0x82, big),
    frame(0x88, concat(Uint8Array.of(0x10, 0xe1), utf8('bye'))),
  )
  for (const step of [1, 2, 3, 7, 1000, all.length]) {
    const { messages, pings, closes, problem } = read(all, step)
    assert.is(problem, undefined)
    assert.is(messages[0], 'ciao, però')
    assert.equal(messages[1], utf8('one two three'))
    assert.equal(messages.slice(2).map((message) => message.length), [0, 300, 70_000])
    assert.equal(pings, [utf8('ping between')])
    assert.equal(closes, [{ code: 4321, reason: 'bye' }])
  }
})

bridge('a close without a code is 1005', () => {
  assert.equal(read(frame(0x88, new Uint8Array(0))).closes, [{ code: 1005, reason: '' }])
})

bridge('what the protocol forbids is refused with its code', () => {
  const large = new DataView(new ArrayBuffer(10))
  large.setUint16(0, 0x827f)
  large.setBigUint64(2, BigInt(MESSAGE_BYTES_MAX + 1))
  const cases: [name: string, bytes: Uint8Array, code: number][] = [
    ['a reserved bit', frame(0xc1, utf8('x')), 1002],
    ['a masked frame of a server', Uint8Array.of(0x81, 0x81, 1, 2, 3, 4, 5), 1002],
    ['an unknown opcode', frame(0x83, utf8('x')), 1002],
    ['an unknown control opcode', frame(0x8b, utf8('x')), 1002],
    ['a control frame in pieces', frame(0x09, utf8('x')), 1002],
    ['a long control frame', frame(0x89, new Uint8Array(126)), 1002],
    ['a continuation of nothing', frame(0x80, utf8('x')), 1002],
    ['a message inside a message', concat(frame(0x01, utf8('a')), frame(0x81, utf8('b'))), 1002],
    ['text that is not UTF-8', frame(0x81, Uint8Array.of(0xff)), 1007],
    ['a message that is too long, before it has come', new Uint8Array(large.buffer), 1009],
  ]
  for (const [name, bytes, code] of cases) {
    assert.is(read(bytes).problem, code, name)
    assert.is(read(bytes, 1).problem, code, `${name}, byte by byte`)
  }
})

bridge('encodeFrame() masks, and writes each kind of length', () => {
  for (const length of [0, 1, 125, 126, 65_535, 65_536]) {
    const payload = Uint8Array.from({ length }, (_, i) => i & 0xff)
    const bytes = encodeFrame(2, payload)
    const extended = length < 126 ? 0 : length < 65_536 ? 2 : 8
    assert.is(bytes[0], 0x82)
    assert.is(bytes[1], 0x80 | (extended === 0 ? length : extended === 2 ? 126 : 127))
    const mask = bytes.subarray(2 + extended, 6 + extended)
    const plain = bytes.subarray(6 + extended).map((byte, i) => byte ^ mask[i % 4]!)
    assert.is(Buffer.compare(plain, payload), 0)
  }
})

bridge.run()
