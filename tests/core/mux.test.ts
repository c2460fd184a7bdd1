/**
 * Bytes are fixed by docs/protocol.md, "Frames" and "Streams"; each event of a stream is shown by
 * the frames that it sends. Attacks are in mux_attacks.test.ts, whole networks in
 * mux_network.test.ts.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { EMPTY, utf8 } from '../../core/bytes.ts'
import { isTunnelError } from '../../core/errors.ts'
import { encodePackets, RESET } from '../../core/frame.ts'
import { QUANTUM_BYTES, SOCKET_BYTES_MAX } from '../../core/mux.ts'
import { memoryConns, splice } from '../../core/socket.ts'
import { PACKET_IDLE_MS, QUEUE_BYTES_MAX, QUEUE_HIGH_BYTES } from '../../core/stream.ts'
import { turn } from '../support/network.ts'
import { DeskMux, Recorder, VISIT_TO_WEB } from '../support/streams.ts'

const test = suite('core/mux')

function throwsCode(run: () => unknown, code: `${string}/${string}`): void {
  assert.throws(run, (error: unknown) => isTunnelError(error, code))
}

test('an opener writes the golden frames', () => {
  const desk = new DeskMux()
  const stream = desk.mux.open(VISIT_TO_WEB)
  assert.equal(desk.takenHex(), [
    '10' + '00000001' + // open, stream 1
    '01' + '00040000' + '1234' + '09' + '3139322e302e322e37' + '03' + '776562',
  ])
  stream.write(utf8('hello'))
  stream.end()
  assert.equal(desk.takenHex(), ['11' + '00000001' + '68656c6c6f', '13' + '00000001'])
  const other = desk.mux.open({ ...VISIT_TO_WEB, address: '', port: 0 })
  other.reset(RESET.blocked, 'no')
  assert.equal(desk.takenHex(), [
    '10' + '00000003' + '01' + '00040000' + '0000' + '00' + '03' + '776562',
    '14' + '00000003' + '0008' + '6e6f',
  ])
  desk.mux.close()
})

test('an acceptor writes the golden frames', async () => {
  const desk = new DeskMux({ side: 'relay' })
  desk.feedOpen(1)
  const stream = desk.opened[0]!
  assert.is(stream.visit.endpoint, 'web')
  assert.equal(desk.takenHex(), [])
  stream.accept()
  assert.equal(desk.takenHex(), ['12' + '00000001' + '00000000'])
  new Recorder(stream)
  await turn()
  desk.feed('data', 1, new Uint8Array(65_536))
  assert.equal(desk.takenHex(), ['12' + '00000001' + '00010000'], 'a quarter of 256 KiB')
  desk.mux.close()
})

test('packets of a udp visit are bundled in golden frames', () => {
  const desk = new DeskMux()
  const stream = desk.mux.open({ ...VISIT_TO_WEB, kind: 'udp' })
  desk.taken()
  stream.sendPacket(utf8('ab'))
  assert.equal(desk.takenHex(), ['20' + '00000001' + '0002' + '6162'])
  desk.sent = 'queued'
  stream.sendPacket(utf8('c'))
  stream.sendPacket(utf8('de'))
  stream.sendPacket(utf8('f'))
  desk.taken()
  desk.sent = 'ok'
  desk.mux.drain()
  assert.equal(desk.takenHex(), ['20' + '00000001' + '0002' + '6465' + '0001' + '66'])
  desk.mux.close()
})

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

test('an open without an answer is reset with timeout after 5 s', async () => {
  const desk = new DeskMux()
  const recorder = new Recorder(desk.mux.open(VISIT_TO_WEB))
  await turn()
  desk.clock.advance(4999)
  assert.is(desk.mux.size, 1)
  desk.clock.advance(1)
  assert.equal(desk.taken(), ['open 1 21', 'reset 1 2'])
  await turn()
  assert.is(recorder.error!.code, 'stream/timeout')
  assert.is(recorder.error!.reset, RESET.timeout)
  assert.is(desk.empties, 1)
})

test('an open that the owner leaves alone is refused', () => {
  const desk = new DeskMux()
  desk.feedOpen(2)
  desk.clock.advance(5000)
  assert.ok(desk.takenHex()[0]!.startsWith('14' + '00000002' + '0001'))
  assert.is(desk.mux.size, 0)
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

test('data waits in its stream while the socket holds 512 KiB, and goes when it owes no drain', () => {
  const desk = new DeskMux()
  const stream = desk.mux.open(VISIT_TO_WEB)
  desk.taken()
  desk.bufferedBytes = SOCKET_BYTES_MAX
  stream.write(new Uint8Array(10))
  assert.equal(desk.taken(), [])
  desk.clock.advance(20)
  assert.equal(desk.taken(), [])
  desk.bufferedBytes = SOCKET_BYTES_MAX - 1
  desk.clock.advance(5)
  assert.equal(desk.taken(), ['data 1 10'])
  desk.mux.close()
  assert.is(desk.clock.pending, 0)
})

test('several streams get 16 KiB a turn, one alone 64 KiB; small writes share a frame', () => {
  const desk = new DeskMux()
  const a = desk.mux.open(VISIT_TO_WEB)
  const b = desk.mux.open(VISIT_TO_WEB)
  const c = desk.mux.open(VISIT_TO_WEB)
  desk.sent = 'queued'
  a.write(new Uint8Array(1))
  a.write(new Uint8Array(130_000))
  for (let i = 0; i < 100; i++) b.write(new Uint8Array(200))
  c.write(new Uint8Array(10))
  desk.taken()
  desk.sent = 'ok'
  desk.mux.drain()
  assert.equal(desk.taken(), [
    `data 1 ${QUANTUM_BYTES}`,
    `data 3 ${QUANTUM_BYTES}`,
    'data 5 10',
    `data 1 ${QUANTUM_BYTES}`,
    `data 3 ${20_000 - QUANTUM_BYTES}`,
    'data 1 65536',
    `data 1 ${130_000 - 2 * QUANTUM_BYTES - 65_536}`,
  ])
  desk.mux.close()
})

test('a datagram larger than a quantum saves up for its turn', () => {
  const desk = new DeskMux()
  const packets = desk.mux.open({ ...VISIT_TO_WEB, kind: 'udp' })
  const bulk = desk.mux.open(VISIT_TO_WEB)
  desk.sent = 'queued'
  bulk.write(new Uint8Array(1))
  packets.sendPacket(new Uint8Array(40_000))
  bulk.write(new Uint8Array(100_000))
  desk.taken()
  desk.sent = 'ok'
  desk.mux.drain()
  assert.equal(desk.taken().slice(0, 4), [
    'data 3 16384',
    'data 3 16384',
    'packet 1 40002',
    'data 3 65536',
  ])
  desk.mux.close()
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

test('close() ends all with gone, sends nothing, and refuses what comes later', async () => {
  const desk = new DeskMux()
  const first = new Recorder(desk.mux.open(VISIT_TO_WEB))
  desk.feedOpen(2)
  const second = new Recorder(desk.opened[0]!)
  desk.taken()
  desk.mux.close()
  await turn()
  assert.is(first.error!.code, 'stream/gone')
  assert.is(second.error!.code, 'stream/gone')
  assert.equal(desk.taken(), [])
  assert.ok(desk.feedOpen(4))
  throwsCode(() => desk.mux.open(VISIT_TO_WEB), 'mux/closed')
  throwsCode(() => desk.mux.nextId(), 'mux/closed')
  assert.is(desk.mux.size, 0)
  assert.is(desk.clock.pending, 0)
})

test('ids: shared with forwarded streams, kept over sleep, never reused', () => {
  const desk = new DeskMux({ side: 'relay' })
  assert.is(desk.mux.open(VISIT_TO_WEB).id, 2)
  assert.is(desk.mux.nextId(), 4)
  assert.is(desk.mux.open(VISIT_TO_WEB).id, 6)
  assert.ok(desk.mux.seen(5))
  assert.not(desk.feed('data', 4, utf8('x')), 'forwarded: the table knows')
  assert.not(desk.feed('data', 5, utf8('x')))
  assert.equal(desk.mux.ids, { next: 8, peer: 5 })
  const woken = new DeskMux({ side: 'relay', ids: desk.mux.ids })
  assert.is(woken.mux.open(VISIT_TO_WEB).id, 8)
  assert.not(woken.mux.seen(5))
  assert.is(woken.errors[0]!.code, 'mux/order')
  desk.mux.close()
})

test('the last id is used, and then open() says exhausted', () => {
  const desk = new DeskMux({ ids: { next: 0xffff_fffd, peer: 0 } })
  assert.is(desk.mux.open(VISIT_TO_WEB).id, 0xffff_fffd)
  assert.is(desk.mux.open(VISIT_TO_WEB).id, 0xffff_ffff)
  throwsCode(() => desk.mux.open(VISIT_TO_WEB), 'mux/exhausted')
  desk.feedCredit(0xffff_ffff, 0)
  assert.equal(desk.errors, [])
  desk.mux.close()
})

test('limits: streams, a backed-up socket, a tail that is too long', () => {
  const desk = new DeskMux({ streamsMax: 2 })
  throwsCode(() => desk.mux.open({ ...VISIT_TO_WEB, tail: new Uint8Array(61_441) }), 'frame/size')
  desk.mux.open(VISIT_TO_WEB)
  desk.feedOpen(2)
  throwsCode(() => desk.mux.open(VISIT_TO_WEB), 'mux/limit')
  desk.mux.close()
  const full = new DeskMux()
  full.bufferedBytes = 8_388_609
  throwsCode(() => full.mux.open(VISIT_TO_WEB), 'mux/limit')
})

test('a lost frame ends the link once', async () => {
  const desk = new DeskMux()
  const recorder = new Recorder(desk.mux.open(VISIT_TO_WEB))
  await turn()
  desk.sent = 'lost'
  assert.is(recorder.stream.write(new Uint8Array(10)), 'lost')
  await turn()
  assert.equal(desk.errors.map((error) => error.code), ['mux/lost'])
  assert.is(recorder.error!.code, 'stream/gone')
})

test('frames of other types are not for the mux', () => {
  const desk = new DeskMux()
  assert.not(desk.feed('ping', 0, new Uint8Array(8)))
  assert.not(desk.feed('request', 1, utf8('{}')))
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
