/**
 * The life of one stream on a desk: acceptance, delivery, pauses, half-close, credit, queues, resets.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { EMPTY, utf8 } from '../../core/bytes.ts'
import { decodeFrame, decodePackets, encodePackets, RESET } from '../../core/frame.ts'
import { memoryConns, splice } from '../../core/socket.ts'
import { PACKET_IDLE_MS, QUEUE_BYTES_MAX, QUEUE_HIGH_BYTES } from '../../core/stream.ts'
import { turn } from '../support/network.ts'
import { DeskMux, Recorder, VISIT_TO_WEB } from '../support/streams.ts'

const test = suite('core/stream')

test('the first credit accepts, with 0 bytes too, and once', () => {
  const desk = new DeskMux()
  const stream = desk.mux.open(VISIT_TO_WEB)
  let accepted = 0
  stream.onAccept = () => void accepted++
  assert.not(stream.answered)
  desk.feedCredit(1, 0)
  desk.feedCredit(1, 9)
  assert.is(accepted, 1)
  assert.ok(stream.answered)
  desk.clock.advance(60_000)
  assert.not(stream.isClosed, 'the timer of the open is gone')
  assert.is(desk.clock.pending, 0)
  desk.mux.close()
})

test('writing, ending and sending a packet accept', () => {
  const desk = new DeskMux()
  desk.onOpen = (stream) => {
    if (stream.id === 2) stream.write(utf8('x'))
    if (stream.id === 4) stream.end()
    if (stream.id === 6) stream.sendPacket(utf8('x'))
  }
  desk.feedOpen(2)
  desk.feedOpen(4)
  desk.feedOpen(6, { kind: 'udp' })
  assert.equal(desk.taken(), [
    'credit 2 4',
    'data 2 1',
    'credit 4 4',
    'fin 4 0',
    'credit 6 4',
    'packet 6 3',
  ])
  desk.mux.close()
})

test('data that came before the handler waits, and costs no credit before accept()', async () => {
  const desk = new DeskMux()
  desk.feedOpen(2)
  const stream = desk.opened[0]!
  desk.feed('data', 2, new Uint8Array(65_536))
  desk.feed('fin', 2)
  assert.is(desk.mux.bufferedBytes, 65_536)
  const recorder = new Recorder(stream)
  assert.equal(recorder.events, [])
  await turn()
  assert.equal(recorder.events, ['data 65536', 'end'])
  assert.equal(desk.taken(), [])
  stream.end()
  await turn()
  assert.equal(desk.taken(), ['credit 2 4', 'fin 2 0'])
  assert.is(recorder.events.at(-1), 'closed')
  assert.is(desk.mux.size, 0)
})

test('received chunks are views into the message', async () => {
  const desk = new DeskMux()
  desk.feedOpen(2)
  const recorder = new Recorder(desk.opened[0]!)
  await turn()
  const message = new Uint8Array(5 + 10_000)
  const payload = message.subarray(5)
  desk.mux.receive({ type: 0x11, id: 2, payload })
  assert.is(recorder.last, payload)
  desk.opened[0]!.pause()
  desk.mux.receive({ type: 0x11, id: 2, payload })
  recorder.last = EMPTY
  desk.opened[0]!.resume()
  await turn()
  assert.is(recorder.last.buffer, message.buffer, 'large ones after waiting, too')
  desk.mux.close()
})

test('a second handle() takes the stream over in the middle', async () => {
  const desk = new DeskMux()
  desk.feedOpen(2)
  const stream = desk.opened[0]!
  let second: Recorder | undefined
  stream.handle({
    data: () => void (second = new Recorder(stream)),
    end: () => assert.unreachable(),
    closed: () => assert.unreachable(),
  })
  desk.feed('data', 2, new Uint8Array(5000))
  desk.feed('data', 2, new Uint8Array(6000))
  desk.feed('fin', 2)
  await turn()
  assert.equal(second!.events, ['data 6000', 'end'])
  stream.abort()
  await turn()
  assert.is(second!.error!.code, 'stream/aborted')
})

test('half-close works in both directions, and then the stream is gone', async () => {
  const desk = new DeskMux()
  const stream = desk.mux.open(VISIT_TO_WEB)
  const recorder = new Recorder(stream)
  await turn()
  desk.feedCredit(1, 0)
  stream.end()
  stream.end()
  assert.is(stream.write(utf8('late')), 'lost')
  desk.feed('data', 1, utf8('answer'))
  assert.is(desk.mux.size, 1)
  desk.feed('fin', 1)
  await turn()
  assert.equal(desk.taken(), ['open 1 21', 'fin 1 0'])
  assert.equal(recorder.events, ['data 6', 'end', 'closed'])
  assert.is(desk.mux.size, 0)
  assert.is(desk.clock.pending, 0)
  assert.is(stream.write(utf8('late')), 'lost')
})

test('fin waits for the data before it', () => {
  const desk = new DeskMux()
  const stream = desk.mux.open(VISIT_TO_WEB)
  stream.write(new Uint8Array(262_144))
  assert.is(stream.write(utf8('more')), 'ok')
  stream.end()
  assert.is(stream.buffered(), 4)
  assert.equal(desk.taken().slice(-1), ['data 1 65536'])
  desk.feedCredit(1, 100)
  assert.equal(desk.taken(), ['data 1 4', 'fin 1 0'])
  desk.mux.close()
})

test('credit: nothing goes beyond it, and what goes is exact', () => {
  const desk = new DeskMux()
  const stream = desk.mux.open(VISIT_TO_WEB)
  for (let i = 0; i < 5; i++) stream.write(new Uint8Array(65_536))
  assert.is(stream.sentBytes, 262_144)
  assert.is(stream.creditBytes, 0)
  desk.taken()
  desk.feedCredit(1, 1)
  desk.feedCredit(1, 70_000)
  assert.equal(desk.taken(), ['data 1 1', 'data 1 65535'])
  desk.mux.close()
})

test('a paused stream returns no credit, and holds no more than its window', async () => {
  const desk = new DeskMux({ side: 'relay' })
  desk.feedOpen(1)
  const stream = desk.opened[0]!
  stream.accept()
  const recorder = new Recorder(stream)
  await turn()
  stream.pause()
  desk.taken()
  for (let i = 0; i < 4; i++) desk.feed('data', 1, new Uint8Array(65_536))
  assert.equal(desk.taken(), [])
  assert.is(stream.heldBytes, stream.windowBytes)
  stream.resume()
  assert.is(recorder.bytes, 0, 'events start on the next turn')
  await turn()
  assert.is(recorder.bytes, 262_144)
  assert.ok(desk.taken().every((name) => name === 'credit 1 4'))
  assert.is(desk.mux.bufferedBytes, 0)
  desk.mux.close()
})

test('after fin no credit is returned', async () => {
  const desk = new DeskMux()
  desk.feedOpen(2)
  const recorder = new Recorder(desk.opened[0]!)
  recorder.stream.accept()
  await turn()
  recorder.stream.pause()
  for (let i = 0; i < 4; i++) desk.feed('data', 2, new Uint8Array(65_536))
  desk.feed('fin', 2)
  desk.taken()
  recorder.stream.resume()
  await turn()
  assert.is(recorder.events.at(-1), 'end')
  assert.equal(desk.taken(), [])
  desk.mux.close()
})

test('pausing inside data() stops the next chunk', async () => {
  const desk = new DeskMux()
  desk.feedOpen(2)
  const stream = desk.opened[0]!
  const sizes: number[] = []
  stream.handle({
    data(bytes) {
      sizes.push(bytes.length)
      stream.pause()
    },
    end: () => void sizes.push(0),
    closed: () => {},
  })
  for (const size of [5000, 6000, 7000]) desk.feed('data', 2, new Uint8Array(size))
  desk.feed('fin', 2)
  await turn()
  assert.equal(sizes, [5000])
  for (let i = 0; i < 3; i++) {
    stream.resume()
    await turn()
  }
  assert.equal(sizes, [5000, 6000, 7000, 0])
  desk.mux.close()
})

test('write() answers queued above 128 KiB and drains at 32 KiB', async () => {
  const desk = new DeskMux()
  const stream = desk.mux.open(VISIT_TO_WEB)
  const recorder = new Recorder(stream)
  await turn()
  desk.sent = 'queued'
  assert.is(stream.write(new Uint8Array(1)), 'ok')
  assert.is(stream.write(new Uint8Array(QUEUE_HIGH_BYTES)), 'ok')
  assert.is(stream.write(new Uint8Array(1)), 'queued')
  desk.mux.drain() // one frame of 64 KiB
  assert.equal(recorder.events, [])
  desk.mux.drain()
  assert.equal(recorder.events, ['drain'])
  assert.is(stream.buffered(), 1)
  desk.mux.close()
})

test('a drain that came before the handler is told', async () => {
  const desk = new DeskMux()
  const stream = desk.mux.open(VISIT_TO_WEB)
  desk.sent = 'queued'
  stream.write(new Uint8Array(1))
  assert.is(stream.write(new Uint8Array(QUEUE_HIGH_BYTES + 1)), 'queued')
  desk.sent = 'ok'
  desk.mux.drain()
  const recorder = new Recorder(stream)
  await turn()
  assert.equal(recorder.events, ['drain'])
  desk.mux.close()
})

test('a writer that never waits is reset with overload at 8 MiB', async () => {
  const desk = new DeskMux()
  const stream = desk.mux.open(VISIT_TO_WEB)
  const recorder = new Recorder(stream)
  const chunk = new Uint8Array(262_144)
  let sent = stream.write(chunk)
  let written = chunk.length
  while (sent !== 'lost') {
    assert.ok(stream.buffered() <= QUEUE_BYTES_MAX)
    sent = stream.write(chunk)
    written += chunk.length
  }
  assert.is(written, QUEUE_BYTES_MAX + 262_144 + chunk.length)
  assert.is(desk.mux.bufferedBytes, 0)
  await turn()
  assert.is(recorder.error!.code, 'stream/overload')
})

test('packets: oldest dropped and counted; unread ones counted; silence of 60 s ends the flow', () => {
  const desk = new DeskMux()
  const stream = desk.mux.open({ ...VISIT_TO_WEB, kind: 'udp' })
  desk.feedCredit(1, 0)
  desk.sent = 'queued'
  stream.sendPacket(new Uint8Array(1))
  for (let i = 0; i < 300; i++) stream.sendPacket(new Uint8Array(1000))
  assert.is(stream.packetsDropped, 300 - Math.floor(262_144 / 1002))
  assert.ok(stream.buffered() <= 262_144)
  assert.is(stream.sendPacket(new Uint8Array(65_535)), 'lost')
  const before = stream.packetsDropped
  desk.feed('packet', 1, encodePackets([utf8('a'), utf8('b')]))
  assert.is(stream.packetsDropped, before + 2)
  const got: number[] = []
  stream.onPacket = (datagram) => void got.push(datagram.length)
  desk.clock.advance(PACKET_IDLE_MS - 1)
  desk.feed('packet', 1, encodePackets([utf8('abc'), utf8('b')]))
  assert.equal(got, [3, 1])
  desk.clock.advance(PACKET_IDLE_MS - 1)
  assert.not(stream.isClosed)
  desk.clock.advance(1)
  assert.ok(stream.isClosed)
  assert.is(desk.clock.pending, 0)
})

test('packets side by side share frames, as many as fit one', () => {
  const desk = new DeskMux()
  const stream = desk.mux.open({ ...VISIT_TO_WEB, kind: 'datagrams' })
  desk.feedCredit(1, 0)
  desk.taken()
  const bytes = Uint8Array.from({ length: 100 * 1_452 + 7 }, (_, i) => i)
  assert.is(stream.sendPackets(bytes, 1_452), 'ok')
  // 45 of 1,454 bytes are 65,430.
  assert.equal(desk.taken(), ['packet 1 65430', 'packet 1 65430', `packet 1 ${10 * 1_454 + 9}`])
  assert.is(stream.sendPackets(bytes, 65_535), 'lost')
  assert.is(stream.sendPackets(bytes, 0), 'lost')
  assert.equal(desk.taken(), [])
  assert.is(stream.sendPackets(new Uint8Array(65_534), 65_534), 'ok')
  assert.equal(desk.taken(), ['packet 1 65536'])
})

test('packets side by side wait in order where the socket is full, in an array of their own', () => {
  const desk = new DeskMux()
  const stream = desk.mux.open({ ...VISIT_TO_WEB, kind: 'datagrams' })
  desk.feedCredit(1, 0)
  desk.taken()
  desk.sent = 'queued'
  const bytes = Uint8Array.from({ length: 120 * 1_000 }, (_, i) => Math.floor(i / 1_000))
  assert.is(stream.sendPackets(bytes, 1_000), 'queued')
  bytes.fill(255)
  assert.is(stream.sendPackets(Uint8Array.of(120), 1_000), 'queued')
  desk.sent = 'ok'
  desk.mux.drain()
  const got: number[] = []
  for (const frame of desk.frames) {
    for (const datagram of decodePackets(decodeFrame(frame).payload)) got.push(datagram[0]!)
  }
  assert.equal(got, Array.from({ length: 121 }, (_, i) => i))
  assert.equal(desk.frames.length, 2)
  stream.end()
  assert.is(stream.sendPackets(Uint8Array.of(1), 1), 'lost')
  assert.is(desk.mux.open(VISIT_TO_WEB).sendPackets(Uint8Array.of(1), 1), 'lost')
})

test('a reset lets go of everything at once and closes once, on the next turn', async () => {
  for (const remote of [true, false]) {
    const desk = new DeskMux()
    const stream = desk.mux.open(VISIT_TO_WEB)
    const recorder = new Recorder(stream)
    await turn()
    desk.feedCredit(1, 0)
    stream.pause()
    stream.write(new Uint8Array(400_000))
    desk.feed('data', 1, new Uint8Array(50_000))
    assert.is(desk.mux.bufferedBytes, 400_000 - 262_144 + 50_000)
    desk.taken()
    if (remote) desk.feedReset(1, RESET.quota, 'used up')
    else stream.reset(RESET.quota, 'used up')
    assert.is(desk.mux.bufferedBytes, 0)
    assert.is(stream.heldBytes + stream.buffered(), 0)
    assert.is(desk.mux.size, 0)
    assert.is(recorder.closedCount, 0)
    stream.reset(RESET.aborted)
    await turn()
    assert.is(recorder.closedCount, 1)
    assert.is(recorder.error!.code, 'stream/quota')
    assert.is(recorder.error!.reason, 'used up')
    assert.is(recorder.error!.remote, remote)
    assert.equal(desk.taken(), remote ? [] : ['reset 1 9'])
  }
})

test('an unknown reset code is told with its number', async () => {
  const desk = new DeskMux()
  const recorder = new Recorder(desk.mux.open(VISIT_TO_WEB))
  desk.feedReset(1, 999)
  await turn()
  assert.is(recorder.error!.code, 'stream/unknown')
  assert.is(recorder.error!.reset, 999)
})

test('splice() joins a stream to a connection, with half-close', async () => {
  const desk = new DeskMux()
  desk.feedOpen(2)
  const [near, far] = memoryConns()
  splice(desk.opened[0]!, near)
  const got: string[] = []
  far.handle({
    data: (bytes) => void got.push(`data ${bytes.length}`),
    end: () => void got.push('end'),
    closed: () => void got.push('closed'),
  })
  desk.feed('data', 2, utf8('question'))
  desk.feed('fin', 2)
  await turn()
  await turn()
  far.write(utf8('answer'))
  far.end()
  await turn()
  await turn()
  assert.equal(got, ['data 8', 'end', 'closed'])
  assert.equal(desk.taken(), ['credit 2 4', 'data 2 6', 'fin 2 0'])
  assert.is(desk.mux.size, 0)
})

test.run()
