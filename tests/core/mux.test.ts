/**
 * Bytes are fixed by docs/protocol.md, "Frames" and "Streams"; each event of a stream is shown by
 * the frames that it sends. One stream's life is in
 * stream.test.ts, attacks in mux_attacks.test.ts, whole networks in mux_network.test.ts.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { utf8 } from '../../core/bytes.ts'
import { isTunnelError } from '../../core/errors.ts'
import { RESET } from '../../core/frame.ts'
import { QUANTUM_BYTES, SOCKET_BYTES_MAX } from '../../core/mux.ts'
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

test.run()
