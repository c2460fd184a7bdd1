/**
 * Messages come out as they went in, wherever the bytes are split; a turn's messages leave in one
 * write; lengths that lie and peers that do not read end the connection with nothing kept.
 */
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { BATCH_BYTES_MAX, BatchSocket, WAITING_BYTES_MAX } from '../../core/batch_socket.ts'
import { concat, fromHex, hex, utf8 } from '../../core/bytes.ts'
import { ManualClock } from '../../core/clock.ts'
import { encodeFrame, FRAME_BYTES_MAX } from '../../core/frame.ts'
import type { Conn, ConnHandler, Sent } from '../../core/socket.ts'

const test = suite('core/batch_socket')

/** A connection on a desk: what is written is kept, and it takes as much as it is told to. */
class DeskConn implements Conn {
  readonly remoteAddress = '192.0.2.1'
  readonly remotePort = 1
  handler!: ConnHandler
  /** What each write brought; views, as a port that keeps them has. */
  writes: Uint8Array[] = []
  /** Bytes of `writes` that have not gone: they must not change. */
  waiting = 0
  /** Whether a write goes out at once, waits without a drain, or waits with one. */
  mode: 'gone' | 'waits' | 'queued' | 'lost' = 'gone'
  ended = 0
  aborted = 0
  paused = false

  write(bytes: Uint8Array): Sent {
    if (this.mode === 'lost') return 'lost'
    // What has gone may be written over.
    this.writes.push(this.mode === 'gone' ? bytes.slice() : bytes)
    if (this.mode === 'gone') return 'ok'
    this.waiting += bytes.length
    return this.mode === 'queued' ? 'queued' : 'ok'
  }

  drain(): void {
    this.mode = 'gone'
    this.waiting = 0
    this.handler.drain!()
  }

  end(): void {
    this.ended++
  }

  abort(): void {
    if (this.aborted++ === 0) this.handler.closed(new Error('aborted'))
  }

  pause(): void {
    this.paused = true
  }

  resume(): void {
    this.paused = false
  }

  hold(): void {}

  buffered(): number {
    return this.waiting
  }

  handle(handler: ConnHandler): void {
    this.handler = handler
  }

  get bytes(): Uint8Array {
    return concat(...this.writes)
  }
}

class Desk {
  readonly conn = new DeskConn()
  readonly clock = new ManualClock()
  readonly got: Uint8Array[] = []
  drains = 0
  ends: [number, string][] = []
  readonly #turns: (() => void)[] = []
  readonly socket: BatchSocket

  constructor(messageBytesMax?: number) {
    this.socket = new BatchSocket(this.conn, {
      clock: this.clock,
      later: (run) => void this.#turns.push(run),
      ...(messageBytesMax === undefined ? {} : { messageBytesMax }),
    })
    this.socket.handle({
      message: (bytes) => void this.got.push(bytes),
      drain: () => void this.drains++,
      closed: (code, reason) => void this.ends.push([code, reason]),
    })
  }

  /** The events at hand are handled. */
  turn(): void {
    for (const run of this.#turns.splice(0)) run()
  }

  get scheduled(): number {
    return this.#turns.length
  }
}

/** A message behind its length. */
function wire(message: Uint8Array): Uint8Array {
  const { length } = message
  return concat(Uint8Array.of(length >>> 24, length >>> 16, length >>> 8, length), message)
}

function numbered(count: number, length = 10): Uint8Array[] {
  return Array.from({ length: count }, (_, i) => new Uint8Array(length).fill(i))
}

test('a message is its length in four bytes and itself; those of a turn leave in one write', () => {
  const desk = new Desk()
  assert.is(desk.socket.send(utf8('one')), 'ok')
  assert.is(desk.socket.send(utf8('four')), 'ok')
  assert.is(desk.socket.sendFrame('data', 0x01020304, utf8('!')), 'ok')
  assert.is(desk.conn.writes.length, 0)
  assert.is(desk.scheduled, 1)
  assert.is(desk.socket.buffered(), 7 + 8 + 10)
  desk.turn()
  assert.equal(desk.conn.writes.map(hex), [
    '00000003' + '6f6e65' + '00000004' + '666f7572' + '00000006' + '11' + '01020304' + '21',
  ])
  assert.is(desk.socket.buffered(), 0)
  desk.turn()
  assert.is(desk.conn.writes.length, 1, 'nothing more')
})

test('sendFrame() writes what send() of the frame does', () => {
  const [one, two] = [new Desk(), new Desk()]
  for (const length of [1, 300, 65_536]) {
    const payload = new Uint8Array(length).fill(7)
    one.socket.send(encodeFrame('data', length, payload))
    two.socket.sendFrame('data', length, payload)
  }
  one.turn()
  two.turn()
  assert.equal(one.conn.bytes, two.conn.bytes)
})

test('what was sent may be changed by its sender at once', () => {
  const desk = new Desk()
  const message = utf8('before')
  desk.socket.send(message)
  message.fill(0)
  desk.turn()
  assert.is(hex(desk.conn.bytes), '00000006' + hex(utf8('before')))
})

test('a batch ends at 256 KiB, and a buffer that has gone is used again', () => {
  const desk = new Desk()
  const message = new Uint8Array(60_000)
  for (let i = 0; i < 13; i++) desk.socket.send(message)
  assert.equal(desk.conn.writes.map(({ length }) => length), [240_016, 240_016, 240_016])
  desk.turn()
  assert.is(desk.conn.writes[3]!.length, 60_004)
  for (const { length } of desk.conn.writes) assert.ok(length <= BATCH_BYTES_MAX)
})

test('turns of one message each are not waited for, until messages come close to each other', () => {
  const desk = new Desk()
  for (let i = 0; i < 16; i++) {
    desk.socket.send(utf8('x'))
    assert.is(desk.conn.writes.length, i)
    desk.clock.advance(1)
    desk.turn()
  }
  desk.socket.send(utf8('alone'))
  assert.is(desk.conn.writes.length, 17, 'at once')
  assert.is(desk.scheduled, 0)
  desk.clock.advance(1)
  for (let i = 0; i < 4; i++) desk.socket.send(utf8('near'))
  assert.is(desk.conn.writes.length, 21)
  desk.socket.send(utf8('near'))
  assert.is(desk.conn.writes.length, 21, 'gathered again')
  desk.turn()
  assert.is(desk.conn.writes.length, 22)
})

test('one turn of many messages starts the count of lone ones anew', () => {
  const desk = new Desk()
  for (let i = 0; i < 40; i++) {
    desk.socket.send(utf8('x'))
    if (i % 10 === 9) desk.socket.send(utf8('y'))
    desk.clock.advance(1)
    assert.is(desk.scheduled, 1)
    desk.turn()
  }
})

test('bytes that the connection keeps are never written over', () => {
  for (const mode of ['waits', 'queued'] as const) {
    const desk = new Desk()
    const sent = numbered(60, 1000)
    sent.forEach((message, i) => {
      if (i === 5) desk.conn.mode = mode
      desk.socket.send(message)
      desk.turn()
    })
    if (mode === 'queued') desk.conn.drain()
    assert.equal(desk.conn.bytes, concat(...sent.map(wire)), mode)
  }
})

test("a full connection is told as 'queued', gathers what comes, and drains once it is empty", () => {
  const desk = new Desk()
  desk.conn.mode = 'queued'
  assert.is(desk.socket.send(utf8('a')), 'ok')
  desk.turn()
  assert.is(desk.socket.send(utf8('b')), 'queued')
  assert.is(desk.socket.send(utf8('c')), 'queued')
  desk.turn()
  assert.is(desk.conn.writes.length, 1, 'one write waits, the rest is gathered')
  assert.is(desk.socket.buffered(), 15)
  desk.conn.drain()
  assert.is(desk.drains, 1)
  assert.is(desk.conn.writes.length, 2)
  assert.is(desk.socket.buffered(), 0)
  assert.is(desk.socket.send(utf8('d')), 'ok')
})

test('a drain that fills the connection again is not told', () => {
  const desk = new Desk()
  desk.conn.mode = 'queued'
  desk.socket.send(utf8('a'))
  desk.turn()
  desk.socket.send(utf8('b'))
  desk.conn.handler.drain!()
  assert.is(desk.drains, 0)
  desk.conn.drain()
  assert.is(desk.drains, 1)
})

test('a peer that does not read is dropped at the bound', () => {
  const desk = new Desk()
  desk.conn.mode = 'queued'
  const message = new Uint8Array(65_000)
  let sent = 0
  while (desk.socket.send(message) !== 'lost') {
    sent += message.length
    assert.ok(sent < 2 * WAITING_BYTES_MAX)
    desk.turn()
  }
  assert.ok(sent >= WAITING_BYTES_MAX - 70_000, `${sent}`)
  assert.equal(desk.ends, [[1006, 'the peer does not read']])
  assert.is(desk.socket.send(utf8('late')), 'lost')
  assert.is(desk.socket.buffered(), desk.conn.waiting, 'nothing is kept')
})

test('messages are read at every split of their bytes', () => {
  const messages = [utf8('a'), utf8('three'), encodeFrame('data', 5, utf8('payload'))]
  const bytes = concat(...messages.map(wire))
  for (let first = 0; first <= bytes.length; first++) {
    for (let second = first; second <= bytes.length; second++) {
      const desk = new Desk()
      for (const part of [[0, first], [first, second], [second, bytes.length]]) {
        desk.conn.handler.data(bytes.subarray(part[0], part[1]))
      }
      assert.equal(desk.got.map(hex), messages.map(hex), `${first} ${second}`)
    }
  }
})

test('messages of any lengths arrive over any chunks, written in any turns', () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 1, max: 70_000 }), { minLength: 1, maxLength: 12 }),
      fc.array(fc.integer({ min: 1, max: 40_000 }), { minLength: 1, maxLength: 20 }),
      fc.array(fc.boolean(), { minLength: 12, maxLength: 12 }),
      (lengths, chunks, turns) => {
        const [sender, receiver] = [new Desk(70_000), new Desk(70_000)]
        lengths.forEach((length, i) => {
          sender.socket.send(new Uint8Array(length).fill(i + 1))
          if (turns[i]) sender.turn()
        })
        sender.turn()
        const { bytes } = sender.conn
        for (let at = 0, i = 0; at < bytes.length; i++) {
          const length = chunks[i % chunks.length]!
          receiver.conn.handler.data(bytes.slice(at, at + length))
          at += length
        }
        assert.equal(receiver.got.map(({ length }) => length), lengths)
        receiver.got.forEach((message, i) => assert.ok(message.every((byte) => byte === i + 1)))
      },
    ),
    { numRuns: 60 },
  )
})

test('a length beyond a frame, or none, ends the link; what came before it is told', () => {
  for (const length of ['00010006', 'ffffffff', '00000000']) {
    for (const split of [false, true]) {
      const desk = new Desk()
      const bytes = concat(wire(utf8('good')), fromHex(length), utf8('rest'))
      if (split) { for (const byte of bytes) desk.conn.handler.data(Uint8Array.of(byte)) }
      else desk.conn.handler.data(bytes)
      assert.equal(desk.got.map(hex), [hex(utf8('good'))])
      assert.is(desk.ends.length, 1)
      assert.match(desk.ends[0]![1], /bytes/)
      assert.is(desk.socket.send(utf8('x')), 'lost')
    }
  }
  const desk = new Desk()
  desk.conn.handler.data(wire(new Uint8Array(FRAME_BYTES_MAX)))
  assert.is(desk.got[0]!.length, FRAME_BYTES_MAX)
})

test('a message that is too long, or empty, is not sent, and the link goes on', () => {
  const desk = new Desk()
  assert.is(desk.socket.send(new Uint8Array(FRAME_BYTES_MAX + 1)), 'lost')
  assert.is(desk.socket.send(new Uint8Array(0)), 'lost')
  assert.is(desk.socket.send(utf8('x')), 'ok')
  desk.turn()
  assert.is(desk.conn.bytes.length, 5)
})

test('close() sends what was gathered and tells nothing more but the end', () => {
  const desk = new Desk()
  desk.socket.send(utf8('last'))
  desk.socket.close(1000, 'done')
  assert.equal([desk.conn.writes.length, desk.conn.ended], [1, 1])
  desk.conn.handler.data(wire(utf8('late')))
  assert.is(desk.got.length, 0)
  desk.conn.handler.closed()
  assert.equal(desk.ends, [[1006, 'done']])
  assert.is(desk.socket.send(utf8('x')), 'lost')
  desk.turn()
})

test('terminate() drops the connection, also from within a message', () => {
  const desk = new Desk()
  desk.socket.handle({
    message: (bytes) => {
      desk.got.push(bytes)
      desk.socket.terminate()
    },
    closed: (code, reason) => void desk.ends.push([code, reason]),
  })
  desk.conn.handler.data(concat(wire(utf8('a')), wire(utf8('b'))))
  assert.is(desk.got.length, 1)
  assert.equal(desk.ends, [[1006, 'terminated']])
})

test('a connection that is lost, or half-closed by the peer, is the end', () => {
  const lost = new Desk()
  lost.conn.mode = 'lost'
  lost.socket.send(utf8('x'))
  lost.turn()
  assert.equal(lost.ends, [[1006, 'the connection is lost']])
  const half = new Desk()
  half.conn.handler.end()
  assert.is(half.conn.ended, 1)
  assert.is(half.socket.send(utf8('x')), 'lost')
})

test('pause() and resume() are those of the connection', () => {
  const desk = new Desk()
  desk.socket.pause()
  assert.ok(desk.conn.paused)
  desk.socket.resume()
  assert.not(desk.conn.paused)
})

test.run()
