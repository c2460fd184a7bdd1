/**
 * What a session does when all goes well, and how it ends: docs/protocol.md §10. Attacks are in
 * session_attacks.test.ts, carriers that are lost in session_resume.test.ts.
 */
// runtimes: bun, node, deno
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { EMPTY, hex, text, utf8 } from '../../core/bytes.ts'
import { nobleCrypto } from '../../core/crypto.ts'
import { isTunnelError, TunnelError } from '../../core/errors.ts'
import { decodeFrame, FRAME, RESET } from '../../core/frame.ts'
import { Mux, type Stream } from '../../core/mux.ts'
import { REKEY_MS } from '../../core/records.ts'
import { CLOSE_MS } from '../../core/session.ts'
import { memorySockets, type Socket } from '../../core/socket.ts'
import { turn } from '../support/network.ts'
import { Collector, Pair } from '../support/sessions.ts'

const test = suite('core/session')

/** Sends back what comes, and ends when the other side does. */
function echo(stream: Stream): void {
  stream.accept()
  stream.handle({
    data: (bytes) => void stream.write(bytes),
    end: () => stream.end(),
    closed() {},
  })
}

for (const suite of ['aesgcm', 'chachapoly'] as const) {
  test(`two agents agree, and a stream carries a request and bytes both ways, ${suite}`, async () => {
    const pair = new Pair()
    pair.onOpenB = echo
    const { a, b } = await pair.open({ suite })
    assert.is(hex(a.id), hex(b.id))
    assert.is(a.id.length, 16)
    assert.is(hex(a.peer.identity), hex(pair.b.identity.public))
    assert.is(hex(b.peer.identity), hex(pair.a.identity.public))
    assert.is(hex(b.peer.encoded), hex(pair.a.passport))
    assert.is(b.service, 'a2a')
    assert.is(hex(a.group), '07'.repeat(16))
    const stream = a.open(utf8('a request'))
    const got = new Collector(stream)
    stream.write(utf8('hello'))
    stream.end()
    await pair.pass(20)
    assert.is(text(got.content), 'hello')
    assert.ok(got.isEnded && got.isClosed)
    assert.is(text(pair.atB.streams[0]!.visit.tail), 'a request')
    assert.is(pair.atB.streams[0]!.visit.kind, 'service')
    a.close()
    await pair.pass(20)
    assert.equal(pair.atA.ends, [{ code: 0, reason: '', remote: false }])
    assert.equal(pair.atB.ends, [{ code: 0, reason: '', remote: true }])
    assert.is(pair.clock.pending, 0)
    assert.is(pair.responder.sessions.length, 0)
  })
}

test('both implementations of cryptography understand each other', async () => {
  const pair = new Pair({ crypto: nobleCrypto })
  pair.onOpenB = echo
  const { a } = await pair.open({ crypto: (await import('../support/crypto.ts')).fast })
  const stream = a.open()
  const got = new Collector(stream)
  stream.write(new Uint8Array(100_000).fill(3))
  await pair.pass(100)
  assert.is(got.bytes, 100_000)
  a.close()
  await pair.pass(20)
})

test('the responder opens streams too, and each side exports the same keys', async () => {
  const pair = new Pair()
  pair.onOpenA = echo
  const { a, b } = await pair.open()
  const stream = b.open(utf8('back'))
  const got = new Collector(stream)
  stream.write(utf8('x'))
  await pair.pass(20)
  assert.is(text(got.content), 'x')
  assert.is(stream.id, 2)
  const context = utf8('context')
  assert.is(hex(a.exporter('test', context, 40)), hex(b.exporter('test', context, 40)))
  assert.is.not(hex(a.exporter('test', EMPTY, 32)), hex(a.exporter('tess', utf8('t'), 32)))
  b.close(RESET.draining, 'bye')
  await pair.pass(20)
  assert.is(pair.atA.ends[0]!.code, RESET.draining)
  assert.is(pair.atA.ends[0]!.error!.code, 'session/draining')
  assert.is(pair.atA.ends[0]!.reason, 'bye')
  assert.throws(
    () => a.exporter('test', context, 40),
    (e: unknown) => isTunnelError(e, 'session/closed'),
  )
  assert.throws(() => a.open(), (e: unknown) => isTunnelError(e, 'session/closed'))
})

test('16 MiB pass each way at once, in order, and little stays kept', async () => {
  const pair = new Pair()
  pair.onOpenB = echo
  const { a, b } = await pair.open()
  const stream = a.open()
  const got = new Collector(stream)
  const chunk = pair.crypto.randomBytes(1 << 20)
  let left = 16
  function gush(): void {
    while (left > 0) {
      left--
      if (stream.write(chunk) === 'queued') return
    }
    stream.end()
  }
  stream.handle({
    data: (bytes) => void (got.bytes += bytes.length),
    drain: gush,
    end: () => void (got.isEnded = true),
    closed() {},
  })
  gush()
  await pair.pass(2000)
  assert.is(got.bytes, 16 << 20)
  assert.ok(got.isEnded)
  assert.ok(a.keptBytes < 1000 && b.keptBytes < 1000, `${a.keptBytes} ${b.keptBytes}`)
  a.close()
  await pair.pass(20)
})

test('the owner of the responder may refuse, and the initiator is told why, authenticated', async () => {
  const pair = new Pair({
    admit: () => Promise.reject(new TunnelError('session/blocked', 'not you')),
  })
  const session = await pair.initiate()
  session.open(utf8('early')).write(utf8('early'))
  let code = ''
  await session.admitted().catch((error: TunnelError) => void (code = error.code))
  assert.is(code, 'session/blocked')
  await pair.pass(20)
  assert.is(pair.atA.ends.length, 1)
  assert.equal([pair.atA.ends[0]!.code, pair.atA.ends[0]!.reason], [RESET.blocked, 'not you'])
  assert.equal([pair.atB.ends, pair.atB.streams, pair.sessionsOfB], [[], [], []])
  assert.is(pair.responder.pending, 0)
  assert.is(pair.clock.pending, 0)
})

test('a stranger whom the responder screens out gets no answer', async () => {
  const pair = new Pair({
    screen: () => {
      throw new TunnelError('session/refused', 'unknown')
    },
  })
  let code = ''
  await pair.initiate().catch((error: TunnelError) => void (code = error.code))
  assert.is(code, 'session/unanswered')
  assert.is(pair.carrier.bytes('back').length, 0)
  assert.equal(pair.dropped, ['session/refused'])
})

test('nothing is read from the initiator while the owner thinks, and all of it after', async () => {
  let admit = (): void => {}
  const pair = new Pair({ admit: () => new Promise<void>((resolve) => void (admit = resolve)) })
  pair.onOpenB = echo
  const a = await pair.initiate()
  const stream = a.open()
  const got = new Collector(stream)
  stream.write(utf8('early'))
  await pair.pass(2000)
  assert.is(pair.atB.streams.length, 0)
  assert.is(got.bytes, 0)
  admit()
  await pair.pass(20)
  assert.is(text(got.content), 'early')
  a.close()
  await pair.pass(20)
})

test('a key serves 10 minutes, then the next record brings another', async () => {
  const pair = new Pair()
  pair.onOpenB = echo
  const { a } = await pair.open()
  const stream = a.open()
  const got = new Collector(stream)
  stream.write(utf8('one'))
  await pair.pass(100)
  pair.clock.advance(REKEY_MS)
  await turn()
  const before = pair.carrier.bytes('forth').length
  stream.write(utf8('two'))
  await pair.pass(20)
  assert.is(text(got.content), 'onetwo')
  const after = pair.carrier.bytes('forth').subarray(before)
  const types: number[] = []
  for (let at = 0; at < after.length; at += 4 + (after[at + 2]! << 8 | after[at + 3]!)) {
    types.push(after[at]!)
  }
  assert.ok(types.includes(0x14), types.join())
  a.close()
  await pair.pass(20)
})

test('a commitment is there before what is written after it, and holds its maker to a content', async () => {
  const pair = new Pair()
  const found: string[] = []
  const content = pair.crypto.sha256(utf8('said'))
  const other = pair.crypto.sha256(utf8('never said'))
  pair.onOpenB = (stream) => {
    stream.accept()
    stream.handle({
      data: ([index]) => {
        const session = pair.sessionsOfB[0]!
        session.check(index!, content)
        found.push('held')
        try {
          session.check(index! + 1, content)
        } catch (error) {
          found.push((error as TunnelError).code)
        }
      },
      end() {},
      closed() {},
    })
  }
  const { a } = await pair.open()
  const stream = a.open()
  const index = a.commit(content)
  stream.write(Uint8Array.of(index))
  assert.is(a.commit(other), index + 1)
  await pair.pass(20)
  assert.equal(found, ['held', 'transcript/commitment'])
  assert.is(pair.atB.ends[0]!.error!.code, 'transcript/commitment')
  assert.is(pair.atA.ends[0]!.error!.message.includes('transcript/commitment'), true)
})

test('an end that the peer does not answer is told after 5 s', async () => {
  const pair = new Pair()
  const { a } = await pair.open()
  pair.isAway = true
  pair.carrier.cut()
  await pair.pass(20)
  assert.equal(pair.atA.states, ['waiting'])
  a.close()
  await pair.pass(CLOSE_MS - 100)
  assert.is(pair.atA.ends.length, 0)
  await pair.pass(200)
  assert.is(pair.atA.ends[0]!.error!.code, 'session/unconfirmed')
  await pair.pass(60_000)
  assert.is(pair.atB.ends[0]!.error!.code, 'session/lost')
  assert.is(pair.clock.pending, 0)
})

test('a stream of a link is a carrier, one envelope one frame; a link that ends is a loss', async () => {
  const pair = new Pair()
  pair.onOpenB = echo
  const frames: number[] = []
  const errors: string[] = []
  /** One visit link, without the relay between. */
  function link(): { stream: Stream; close(): void } {
    const [socketA, socketB] = memorySockets()
    const join = (side: 'agent' | 'relay', socket: Socket): Mux => {
      const mux: Mux = new Mux({
        side,
        clock: pair.clock,
        send: (frame) => {
          if (side === 'agent' && frame[0] === FRAME.data) frames.push(frame.length)
          return socket.send(frame)
        },
        buffered: () => socket.buffered(),
        onOpen: (stream) => pair.responder.accept(stream),
        onProtocolError: (error) => void errors.push(error.code),
      })
      socket.handle({
        message: (bytes) => void mux.receive(decodeFrame(bytes)),
        drain: () => mux.drain(),
        closed: () => mux.close(),
      })
      return mux
    }
    const mux = join('agent', socketA)
    join('relay', socketB)
    const visit = { kind: 'session', address: '', port: 0, endpoint: 'b', tail: EMPTY } as const
    return { stream: mux.open(visit), close: () => socketA.close(1000, '') }
  }
  const first = link()
  const { a } = await pair.open({
    carrier: first.stream,
    redial: () => Promise.resolve(link().stream),
  })
  const stream = a.open()
  const got = new Collector(stream)
  const content = pair.crypto.randomBytes(3_000_000)
  for (let at = 0; at < content.length; at += 100_000) {
    stream.write(content.subarray(at, at + 100_000))
    if (at === 1_500_000) {
      await pair.pass(50)
      first.close()
    }
  }
  await pair.pass(1000)
  assert.equal(pair.atA.states, ['waiting', 'open'])
  assert.is(hex(got.content), hex(content))
  assert.ok(errors.every((code) => code === 'mux/lost'), errors.join())
  assert.ok(frames.includes(5 + 65_536), 'a full record fills a full frame')
  a.close()
  await pair.pass(100)
  assert.equal(pair.atA.ends, [{ code: 0, reason: '', remote: false }])
})

test('datagrams pass over a channel that a record named, whichever of the two comes first', async () => {
  for (const early of [true, false]) {
    const pair = new Pair()
    const { a, b } = await pair.open()
    const channel = new Uint8Array(16).fill(9)
    const ends = [{}, {}] as { onPacket?: (bytes: Uint8Array) => void }[]
    const end = (to: number) =>
      Object.assign(ends[1 - to]!, {
        sendPacket(bytes: Uint8Array) {
          ends[to]!.onPacket?.(bytes)
          return 'ok' as const
        },
        reset() {},
      })
    if (early) pair.responder.acceptChannel(end(0), channel)
    a.attachChannel(end(1), channel)
    await pair.pass(20)
    if (!early) pair.responder.acceptChannel(end(0), channel)
    const got: string[] = []
    a.datagrams.onDatagram = (bytes) => void got.push(`a ${text(bytes)}`)
    b.datagrams.onDatagram = (bytes) => void got.push(`b ${text(bytes)}`)
    assert.is(a.datagrams.send(utf8('1')), 'ok')
    assert.is(b.datagrams.send(utf8('2')), 'ok')
    assert.equal(got, ['b 1', 'a 2'])
    a.close()
    await pair.pass(20)
    assert.is(a.datagrams.send(utf8('3')), 'lost')
  }
})

test.run()
