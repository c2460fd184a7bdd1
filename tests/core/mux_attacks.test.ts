/**
 * A peer that means harm, frame by frame: each attack ends its own stream, or the link, and holds
 * no more than the limit that it attacks.
 */
import * as fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { fromHex, utf8 } from '../../core/bytes.ts'
import {
  decodeFrame,
  encodeFrame,
  encodeVisit,
  FRAME,
  type FrameName,
  RESET,
  WINDOW_BYTES_MAX,
} from '../../core/frame.ts'
import { CONTROL_BYTES_MAX } from '../../core/mux.ts'
import { isTunnelError } from '../../core/errors.ts'
import { turn } from '../support/network.ts'
import { DeskMux, Recorder, VISIT_TO_WEB } from '../support/streams.ts'

const test = suite('core/mux attacks')

const OVERDRAWN = '0003'
const OVERLOAD = '0007'
const PROTOCOL = '0009'

/** A desk with stream 1 opened by us, answered, and stream 2 opened by the peer, accepted. */
function two(): { desk: DeskMux; first: Recorder; second: Recorder } {
  const desk = new DeskMux()
  const first = new Recorder(desk.mux.open(VISIT_TO_WEB))
  desk.feedCredit(1, 0)
  desk.feedOpen(2)
  desk.opened[0]!.accept()
  const second = new Recorder(desk.opened[0]!)
  desk.taken()
  return { desk, first, second }
}

/** The stream ended with `code` in its reset; the other stream and the link go on. */
function endsOnlyStream(desk: DeskMux, id: number, code: string): void {
  const start = '14' + id.toString(16).padStart(8, '0') + code
  assert.ok(desk.takenHex().some((frame) => frame.startsWith(start)), `no reset ${start}`)
  assert.is(desk.mux.size, 1)
  assert.equal(desk.errors, [])
  desk.mux.close()
}

function endsLink(desk: DeskMux, code: string): void {
  assert.equal(desk.errors.map((error) => error.code), [code])
  assert.is(desk.mux.size, 0)
  assert.is(desk.mux.bufferedBytes, 0)
  assert.is(desk.clock.pending, 0)
}

test('overdraw of the first window, by one byte, is reset', async () => {
  for (const id of [1, 2]) {
    const { desk, first, second } = two()
    await turn()
    const recorder = id === 1 ? first : second
    recorder.stream.pause()
    for (let i = 0; i < 4; i++) desk.feed('data', id, new Uint8Array(65_536))
    assert.is(recorder.stream.heldBytes, 262_144)
    desk.feed('data', id, new Uint8Array(1))
    assert.is(desk.mux.bufferedBytes, 0)
    endsOnlyStream(desk, id, OVERDRAWN)
  }
})

test('overdraw after credit was returned is measured against what was returned', async () => {
  const { desk, second } = two()
  await turn()
  desk.feed('data', 2, new Uint8Array(65_536)) // returned: 262,144 again
  second.stream.pause()
  for (let i = 0; i < 4; i++) desk.feed('data', 2, new Uint8Array(65_536))
  assert.not(second.stream.isClosed)
  desk.feed('data', 2, new Uint8Array(1))
  endsOnlyStream(desk, 2, OVERDRAWN)
})

test('an opener that announces a window of 0 is sent nothing, and cannot be made to spin', () => {
  const desk = new DeskMux()
  desk.feedOpen(2, { windowBytes: 0 })
  const stream = desk.opened[0]!
  stream.write(new Uint8Array(100))
  for (let i = 0; i < 1000; i++) desk.feedCredit(2, 0)
  assert.equal(desk.taken(), ['credit 2 4'])
  assert.is(desk.clock.pending, 0, 'no timer turns over a stalled stream')
  stream.end()
  assert.equal(desk.taken(), [])
  desk.feedCredit(2, 100)
  assert.equal(desk.taken(), ['data 2 100', 'fin 2 0'])
  desk.mux.close()
})

test('data, packets or fin after fin are reset with protocol', () => {
  for (const name of ['data', 'fin', 'packet'] as FrameName[]) {
    const { desk } = two()
    desk.feed('fin', 2)
    desk.feed(name, 2, name === 'fin' ? new Uint8Array(0) : new Uint8Array([0, 1, 7]))
    endsOnlyStream(desk, 2, PROTOCOL)
  }
})

test('an acceptor that sends before its first credit is reset with protocol', () => {
  for (const name of ['data', 'fin', 'packet'] as FrameName[]) {
    const { desk } = two()
    desk.mux.open({ ...VISIT_TO_WEB, kind: name === 'packet' ? 'udp' : 'tls' })
    desk.feedReset(1, RESET.aborted)
    desk.feed(name, 3, name === 'fin' ? new Uint8Array(0) : new Uint8Array([0, 1, 7]))
    endsOnlyStream(desk, 3, PROTOCOL)
  }
})

test('packets on a stream of bytes, and data on one of packets, are reset with protocol', () => {
  const { desk } = two()
  desk.feed('packet', 2, fromHex('0001 61'))
  endsOnlyStream(desk, 2, PROTOCOL)
  const other = two().desk
  other.feedReset(1, RESET.aborted)
  other.feedOpen(4, { kind: 'udp' })
  other.feed('data', 4, utf8('x'))
  endsOnlyStream(other, 4, PROTOCOL)
})

test('credit that sums to more than any window is reset, not added up', () => {
  const { desk, first } = two()
  desk.feedCredit(1, WINDOW_BYTES_MAX - 262_144)
  assert.is(first.stream.creditBytes, WINDOW_BYTES_MAX)
  desk.feedCredit(1, 1)
  endsOnlyStream(desk, 1, PROTOCOL)
  const slow = two().desk
  for (let i = 0; i < 2 ** 12; i++) slow.feedCredit(1, WINDOW_BYTES_MAX)
  endsOnlyStream(slow, 1, PROTOCOL)
})

test('one grant above any window ends the link', () => {
  const { desk } = two()
  desk.feedCredit(1, WINDOW_BYTES_MAX + 1)
  endsLink(desk, 'frame/credit')
})

test('frames that cannot be decoded end the link', () => {
  const bad: [FrameName, string, string][] = [
    ['open', '01 ffffffff 0000 00 00', 'frame/visit'],
    ['open', '0a 00000000 0000 00 00', 'frame/visit'],
    ['open', '01 00000000 0000 05 61 00', 'frame/truncated'],
    ['packet', '0000 00', 'frame/packet'],
    ['packet', '0005 61', 'frame/truncated'],
    ['reset', '0006 ff', 'bytes/utf8'],
  ]
  for (const [name, payload, code] of bad) {
    const { desk } = two()
    desk.feed(name, name === 'open' ? 4 : 2, fromHex(payload))
    endsLink(desk, code)
  }
})

test('an open with a low, equal or foreign id ends the link', () => {
  for (const id of [2, 4, 6]) {
    const { desk } = two()
    desk.feedOpen(6)
    desk.feedOpen(id)
    endsLink(desk, 'mux/order')
  }
  const { desk } = two()
  desk.feedOpen(7)
  endsLink(desk, 'mux/parity')
})

test('late frames for a closed stream are dropped; for one never opened they end the link', () => {
  const late: [FrameName, string][] = [
    ['data', '61'],
    ['credit', '00000001'],
    ['fin', ''],
    ['reset', '0006'],
    ['packet', '0001 61'],
  ]
  for (const [name, payload] of late) {
    const { desk } = two()
    desk.feedReset(1, RESET.aborted)
    desk.mux.open(VISIT_TO_WEB)
    desk.feedOpen(8)
    desk.feedReset(8, RESET.aborted)
    for (const id of [1, 4, 6, 8]) assert.ok(desk.feed(name, id, fromHex(payload)))
    assert.equal(desk.errors, [])
    assert.is(desk.mux.size, 2)
    desk.mux.close()
    for (const id of [3, 10]) {
      const other = two().desk
      other.feed(name, id, fromHex(payload))
      endsLink(other, 'mux/unknown')
    }
  }
})

test('a flood of opens is answered with overload, and holds no stream beyond the limit', () => {
  const desk = new DeskMux({ streamsMax: 64 })
  for (let id = 2; id <= 20_000; id += 2) desk.feedOpen(id)
  assert.is(desk.mux.size, 64)
  assert.is(desk.opened.length, 64)
  assert.is(desk.clock.pending, 64)
  const frames = desk.takenHex()
  assert.is(frames.length, 10_000 - 64)
  assert.ok(frames.every((frame) => frame.startsWith(OVERLOAD, 10)))
  desk.mux.close()
})

test('a peer that floods and reads none of the answers loses the link', () => {
  const desk = new DeskMux({ streamsMax: 1 })
  desk.sent = 'queued'
  let id = 2
  for (; desk.errors.length === 0 && id < 2_000_000; id += 2) desk.feedOpen(id)
  endsLink(desk, 'mux/flooded')
  const bytes = desk.frames.reduce((sum, frame) => sum + frame.length, 0)
  assert.ok(bytes <= CONTROL_BYTES_MAX + 300, `${bytes} bytes went into the socket`)
})

test('answers are counted anew once the socket has drained', () => {
  const desk = new DeskMux({ streamsMax: 1 })
  desk.sent = 'queued'
  for (let id = 2; id < 400_000; id += 2) {
    desk.feedOpen(id)
    if (id % 10_000 === 0) desk.mux.drain()
  }
  assert.equal(desk.errors, [])
  desk.mux.close()
})

test('rapid reset: opening and taking back reaches the owner at a bounded rate', () => {
  const desk = new DeskMux({ streamsMax: 100 })
  let id = 2
  function attack(count: number): number {
    const before = desk.opened.length
    for (let i = 0; i < count; i++, id += 2) {
      desk.feedOpen(id)
      desk.feedReset(id, RESET.aborted)
    }
    return desk.opened.length - before
  }
  assert.is(attack(10_000), 100)
  assert.is(desk.mux.size, 0)
  desk.clock.advance(500)
  assert.is(attack(10_000), 50)
  desk.clock.advance(60_000)
  assert.is(attack(10_000), 100)
  assert.equal(desk.errors, [])
  assert.is(desk.clock.pending, 0)
})

test('streams that were answered may be reset at any rate', () => {
  const desk = new DeskMux({ streamsMax: 10 })
  desk.onOpen = (stream) => stream.accept()
  for (let id = 2; id < 4000; id += 2) {
    desk.feedOpen(id)
    desk.feedReset(id, RESET.aborted)
  }
  assert.is(desk.opened.length, 1999)
})

test('a window sent byte by byte to a paused reader costs about a window', async () => {
  const desk = new DeskMux()
  desk.feedOpen(2)
  const recorder = new Recorder(desk.opened[0]!)
  recorder.stream.accept()
  await turn()
  recorder.stream.pause()
  const one = decodeFrame(encodeFrame('data', 2, new Uint8Array([7])))
  for (let i = 0; i < 262_144; i++) desk.mux.receive(one)
  assert.is(recorder.stream.heldBytes, 262_144)
  recorder.stream.resume()
  await turn()
  assert.is(recorder.bytes, 262_144)
  assert.ok(recorder.events.length <= 40, `${recorder.events.length} chunks were held`)
  desk.mux.close()
})

test('windows stop growing where their sum is used up, and closing gives it back', async () => {
  const desk = new DeskMux({ windowSumBytesMax: 300_000 })
  desk.mux.rtt(100)
  const sizes: number[] = []
  async function use(id: number): Promise<Recorder> {
    desk.feedOpen(id)
    const recorder = new Recorder(desk.opened.at(-1)!)
    recorder.stream.accept()
    await turn()
    for (let i = 0; i < 16; i++) desk.feed('data', id, new Uint8Array(65_536))
    sizes.push(recorder.stream.windowBytes)
    return recorder
  }
  const first = await use(2)
  await use(4)
  first.stream.abort()
  await use(6)
  assert.equal(sizes, [524_288, 262_144, 524_288])
  desk.mux.close()
})

test('any frames in any order: no error but of the family, nothing held at the end', () => {
  const names = ['open', 'data', 'credit', 'fin', 'reset', 'packet'] as const
  const visit = encodeVisit({ ...VISIT_TO_WEB, windowBytes: 1000 })
  const frame = fc.record({
    name: fc.constantFrom(...names),
    id: fc.integer({ min: 1, max: 12 }),
    payload: fc.oneof(
      fc.uint8Array({ maxLength: 40 }),
      fc.constantFrom(visit, fromHex('00000400'), fromHex('0006'), fromHex('0001 61')),
    ),
    act: fc.constantFrom('none', 'accept', 'write', 'end', 'abort', 'open', 'pause'),
  })
  fc.assert(
    fc.property(fc.array(frame, { maxLength: 60 }), (frames) => {
      const desk = new DeskMux({ streamsMax: 4 })
      desk.onOpen = (stream) => void new Recorder(stream)
      for (const { name, id, payload, act } of frames) {
        const length = payload.length
        desk.mux.receive({ type: FRAME[name], id, payload })
        const stream = desk.opened.at(-1)
        if (act === 'accept') stream?.accept()
        else if (act === 'write') stream?.write(new Uint8Array(100 + length))
        else if (act === 'end') stream?.end()
        else if (act === 'abort') stream?.abort()
        else if (act === 'pause') stream?.pause()
        else if (act === 'open' && desk.errors.length === 0 && desk.mux.size < 4) {
          desk.mux.open(VISIT_TO_WEB)
        }
        assert.ok(desk.mux.size <= 4)
        assert.ok(desk.errors.length <= 1 && desk.errors.every((error) => isTunnelError(error)))
      }
      desk.mux.close()
      assert.is(desk.mux.bufferedBytes, 0)
      assert.is(desk.clock.pending, 0)
    }),
    { numRuns: 2000 },
  )
})

test.run()
