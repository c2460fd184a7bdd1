// The in-memory twins behave as the ports promise, and `splice` joins two connections with
// backpressure, half-close and aborts. tests/agent/net.test.ts says the same of real sockets.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { utf8 } from '../../core/bytes.ts'
import { ManualClock } from '../../core/clock.ts'
import { memoryConns, memorySockets, splice } from '../../core/socket.ts'
import type { Conn, ConnHandler } from '../../core/socket.ts'

const socket = suite('core/socket')

/** All microtasks of now, and of what they start. */
const settle = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 0))

function record(conn: Conn): string[] {
  const events: string[] = []
  conn.handle({
    data: (bytes) => void events.push(new TextDecoder().decode(bytes)),
    drain: () => void events.push('drain'),
    end: () => void events.push('end'),
    closed: (error) => void events.push(error ? 'broken' : 'closed'),
  })
  return events
}

socket('a connection half-closes each way and closes when both have', async () => {
  const [a, b] = memoryConns()
  const [atA, atB] = [record(a), record(b)]
  a.write(utf8('one'))
  a.end()
  await settle()
  assert.equal(atB, ['one', 'end'])
  b.write(utf8('two'))
  b.end()
  await settle()
  assert.equal(atA, ['two', 'end', 'closed'])
  assert.equal(atB, ['one', 'end', 'closed'])
  assert.is(a.write(utf8('late')), 'lost')
})

socket('an abort is told to both ends as broken', async () => {
  const [a, b] = memoryConns()
  const [atA, atB] = [record(a), record(b)]
  a.abort()
  await settle()
  assert.equal([atA, atB], [['broken'], ['broken']])
})

socket(
  'a splice is told as over once, also where an abort tells the other end at once',
  async () => {
    const handlers: ConnHandler[] = []
    const conn = (): Conn => {
      let over = false
      const end = (error?: Error): void => {
        if (over) return
        over = true
        handler!.closed(error)
      }
      let handler: ConnHandler | undefined
      return {
        ...memoryConns()[0],
        remoteAddress: '',
        remotePort: 0,
        write: () => 'ok',
        end() {},
        pause() {},
        resume() {},
        hold() {},
        buffered: () => 0,
        abort: () => end(new Error('aborted')),
        handle(given) {
          handler = given
          handlers.push({ ...given, closed: end } as ConnHandler)
        },
      }
    }
    let told = 0
    splice(conn(), conn(), () => void told++)
    handlers[0]!.closed(new Error('broken'))
    await settle()
    assert.is(told, 1)
  },
)

socket('hold() keeps what comes for the next handler', async () => {
  const [a, b] = memoryConns()
  const first = record(b)
  a.write(utf8('one'))
  await settle()
  b.hold()
  a.write(utf8('two'))
  a.end()
  await settle()
  assert.equal(first, ['one'])
  const second = record(b)
  await settle()
  assert.equal(second, ['two', 'end'])
})

socket('splice() carries both ways, counts, and tells once how it ended', async () => {
  const [visitor, near] = memoryConns()
  const [far, upstream] = memoryConns()
  const told: unknown[] = []
  splice(near, far, (bytes, broke) => told.push(bytes, broke))
  const [atVisitor, atUpstream] = [record(visitor), record(upstream)]
  visitor.write(utf8('ask'))
  visitor.end()
  await settle()
  assert.equal(atUpstream, ['ask', 'end'])
  upstream.write(utf8('answer'))
  upstream.end()
  await settle()
  assert.equal(atVisitor, ['answer', 'end', 'closed'])
  assert.equal(told, [{ forth: 3, back: 6 }, {}])
})

socket('splice() passes an abort on, with the end that broke', async () => {
  const [visitor, near] = memoryConns()
  const [far, upstream] = memoryConns()
  let broken: { a?: Error; b?: Error } = {}
  splice(near, far, (_, broke) => void (broken = broke))
  record(visitor)
  const atUpstream = record(upstream)
  visitor.abort()
  await settle()
  assert.equal(atUpstream, ['broken'])
  assert.ok(broken.a)
})

socket('splice() pauses the source while the sink is full', async () => {
  const [visitor, near] = memoryConns()
  const [far, upstream] = memoryConns()
  splice(near, far)
  let got = 0
  upstream.pause()
  upstream.handle({ data: (bytes) => void (got += bytes.length), end() {}, closed() {} })
  let wrote = 0
  visitor.handle({ data() {}, end() {}, closed() {} })
  for (let i = 0; i < 100 && visitor.buffered() <= 65_536; i++) {
    visitor.write(new Uint8Array(16_384))
    wrote += 16_384
    await settle()
  }
  assert.ok(wrote < 400_000, `${wrote} bytes went in while nothing was read`)
  upstream.resume()
  await settle()
  await settle()
  assert.is(got, wrote)
})

socket(
  'a message socket says queued above its mark, then drains, and delivers before its close',
  async () => {
    const [a, b] = memorySockets(10)
    let drained = 0
    const got: number[] = []
    a.handle({ message() {}, drain: () => void drained++, closed() {} })
    b.handle({
      message: (bytes) => void got.push(bytes.length),
      closed: (code) => void got.push(code),
    })
    assert.is(a.send(new Uint8Array(8)), 'ok')
    assert.is(a.send(new Uint8Array(8)), 'queued')
    a.close(4400, 'over')
    assert.is(a.send(new Uint8Array(1)), 'lost')
    await settle()
    assert.equal(got, [8, 8, 4400])
  },
)

socket('a manual clock runs what falls due, in order, and nothing that was cancelled', () => {
  const clock = new ManualClock(1000)
  const ran: string[] = []
  clock.after(20, () => ran.push('b'))
  clock.after(10, () => ran.push('a'))
  clock.after(15, () => ran.push('never')).cancel()
  clock.advance(15)
  assert.equal(ran, ['a'])
  clock.advance(5)
  assert.equal(ran, ['a', 'b'])
  assert.is(clock.now(), 1020)
  clock.jump(1_000_000)
  assert.is(clock.monotonic(), 20)
})

socket.run()
