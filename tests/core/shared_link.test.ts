/** Both ends over connections in memory: who speaks first, life and silence, and what ends the link. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, EMPTY, hex, utf8 } from '../../core/bytes.ts'
import { ManualClock } from '../../core/clock.ts'
import type { TunnelError } from '../../core/errors.ts'
import { encodeFrame } from '../../core/frame.ts'
import type { Stream } from '../../core/mux.ts'
import { LOOK_MS, SharedLink } from '../../core/shared_link.ts'
import { memoryConns } from '../../core/socket.ts'
import type { Conn } from '../../core/socket.ts'

const test = suite('core/shared_link')

const VISIT = { kind: 'raw', address: '192.0.2.7', port: 1, endpoint: 'ssh', tail: EMPTY } as const
const PING = '0000000d' + '30' + '00000000' + '0000000000000000'

/** All that happens without time going on. */
async function settle(): Promise<void> {
  for (let i = 0; i < 10; i++) await new Promise((resolve) => setTimeout(resolve, 0))
}

class End {
  readonly link: SharedLink
  readonly opened: Stream[] = []
  readonly closed: (TunnelError | undefined)[] = []

  constructor(conn: Conn, side: 'agent' | 'relay', clock: ManualClock) {
    this.link = new SharedLink(conn, {
      side,
      clock,
      later: (run) => void setTimeout(run, 0),
      windowMaxBytes: 1_048_576,
      onOpen: (stream) => void this.opened.push(stream),
      onClosed: (error) => void this.closed.push(error),
    })
  }
}

function pair(): { relay: End; agent: End; clock: ManualClock } {
  const [a, b] = memoryConns()
  const clock = new ManualClock()
  return { relay: new End(a, 'relay', clock), agent: new End(b, 'agent', clock), clock }
}

/** One end, and what it sends; the other end is this test. */
function half(side: 'agent' | 'relay') {
  const [a, conn] = memoryConns()
  const clock = new ManualClock()
  const end = new End(a, side, clock)
  const parts: Uint8Array[] = []
  let ended = false
  conn.handle({
    data: (bytes) => void parts.push(bytes),
    end() {},
    closed: () => void (ended = true),
  })
  const send = (frame: Uint8Array): void => {
    conn.write(
      concat(Uint8Array.of(0, frame.length >>> 16, frame.length >>> 8, frame.length), frame),
    )
  }
  return {
    end,
    clock,
    conn,
    send,
    taken: (): string => hex(concat(...parts.splice(0))),
    get over(): boolean {
      return ended
    },
  }
}

test('the relay speaks first, the agent asks back, and then both are ready', async () => {
  const relay = half('relay')
  const agent = half('agent')
  await settle()
  assert.equal([relay.taken(), agent.taken()], [PING, ''])
  assert.equal([relay.end.link.ready, agent.end.link.ready], [false, false])
  agent.send(encodeFrame('ping', 0, new Uint8Array(8).fill(7)))
  await settle()
  assert.is(agent.taken(), PING + '0000000d' + '31' + '00000000' + '0707070707070707')
  assert.ok(agent.end.link.ready)
  const { relay: one, agent: two } = pair()
  await settle()
  assert.equal([one.link.ready, two.link.ready], [true, true])
})

test('a visitor is a stream: its bytes both ways, each direction ended by itself', async () => {
  const { relay, agent } = pair()
  await settle()
  const visitor = relay.link.open(VISIT)
  await settle()
  const stream = agent.opened[0]!
  assert.equal([stream.visit.endpoint, stream.visit.kind, stream.id], ['ssh', 'raw', 2])
  const events: string[] = []
  const record = (name: string, conn: Conn): void =>
    conn.handle({
      data: (bytes) => void events.push(`${name} ${bytes.length}`),
      end: () => void events.push(`${name} end`),
      closed: (error) => void events.push(`${name} ${error ? 'broken' : 'closed'}`),
    })
  record('agent', stream)
  record('relay', visitor)
  stream.accept()
  visitor.write(new Uint8Array(100))
  visitor.end()
  await settle()
  stream.write(new Uint8Array(70_000))
  stream.end()
  await settle()
  const of = (name: string): string[] => events.filter((event) => event.startsWith(name))
  assert.equal(of('agent'), ['agent 100', 'agent end', 'agent closed'])
  assert.equal(of('relay'), ['relay 65536', 'relay 4464', 'relay end', 'relay closed'])
  assert.equal([relay.link.size, agent.link.size], [0, 0])
})

test('closing it ends every stream at both ends, and tells each owner once', async () => {
  const { relay, agent } = pair()
  await settle()
  const visitor = relay.link.open(VISIT)
  let broken: Error | undefined
  visitor.handle({ data() {}, end() {}, closed: (error) => void (broken = error) })
  await settle()
  agent.opened[0]!.accept()
  agent.link.close()
  agent.link.close()
  await settle()
  assert.equal([relay.closed.length, agent.closed.length], [1, 1])
  assert.match(String(broken), /gone/)
  assert.equal([relay.link.ready, agent.link.ready], [false, false])
  assert.throws(() => relay.link.open(VISIT))
})

test('a link that is idle is asked for life, and lives', async () => {
  const { relay, agent, clock } = pair()
  for (let i = 0; i < 10; i++) {
    await settle()
    clock.advance(LOOK_MS)
  }
  await settle()
  assert.equal([relay.link.ready, agent.link.ready], [true, true])
  assert.equal([relay.closed.length, agent.closed.length], [0, 0])
})

test('a peer that goes silent ends it, at either end; so does a relay that never spoke', async () => {
  for (const side of ['relay', 'agent'] as const) {
    for (const spoke of [false, true]) {
      const one = half(side)
      await settle()
      if (spoke) one.send(encodeFrame('pong', 0, new Uint8Array(8)))
      await settle()
      for (let i = 0; i < 3; i++) {
        one.clock.advance(LOOK_MS)
        await settle()
      }
      assert.ok(one.over, `${side} ${spoke}`)
      assert.is(one.end.closed[0]?.code, 'shared/silent')
      assert.is(one.clock.pending, 0, 'no timer is left')
    }
  }
})

test('who doubts it opens nothing more until something is heard', async () => {
  const { relay, agent } = pair()
  await settle()
  relay.link.doubt()
  assert.not(relay.link.ready)
  agent.link.open({ ...VISIT })
  await settle()
  assert.ok(relay.link.ready)
})

test('what is no frame of a stream ends it with its reason, and nothing is told twice', async () => {
  const attacks: [string, Uint8Array][] = [
    ['shared/order', encodeFrame('request', 1, utf8('{}'))],
    ['shared/order', encodeFrame('restarting', 0, new Uint8Array(8))],
    ['frame/unknown', Uint8Array.of(0x7f, 0, 0, 0, 1)],
    ['frame/truncated', Uint8Array.of(0x11, 0, 0)],
    ['frame/size', Uint8Array.of(0x11, 0, 0, 0, 2)],
    ['frame/id', Uint8Array.of(0x11, 0, 0, 0, 0, 1)],
    ['mux/unknown', encodeFrame('data', 2, utf8('x'))],
    ['mux/unknown', encodeFrame('credit', 3, new Uint8Array(4))],
  ]
  for (const [code, frame] of attacks) {
    const relay = half('relay')
    await settle()
    relay.send(encodeFrame('pong', 0, new Uint8Array(8)))
    relay.send(frame)
    relay.send(encodeFrame('ping', 0, new Uint8Array(8)))
    await settle()
    assert.is(relay.end.closed.length, 1)
    assert.is(relay.end.closed[0]?.code, code)
    assert.is(relay.taken(), PING, 'no answer')
  }
  const relay = half('relay')
  relay.conn.write(new Uint8Array(4).fill(255))
  await settle()
  assert.is(relay.end.closed[0]?.code, 'shared/lost')
})

test('one great stream does not starve small ones: they share by turns', async () => {
  const { relay, agent } = pair()
  await settle()
  const elephant = relay.link.open(VISIT)
  await settle()
  const order: string[] = []
  agent.opened[0]!.accept()
  agent.opened[0]!.handle({ data: () => void order.push('e'), end() {}, closed() {} })
  await settle()
  const chunk = new Uint8Array(65_536)
  for (let i = 0; i < 100; i++) elephant.write(chunk)
  const mouse = relay.link.open(VISIT)
  mouse.write(utf8('squeak'))
  for (let i = 0; i < 50 && !order.includes('m'); i++) {
    await new Promise((resolve) => setTimeout(resolve, 0))
    const stream = agent.opened[1]
    if (!stream || stream.answered) continue
    stream.accept()
    stream.handle({ data: () => void order.push('m'), end() {}, closed() {} })
  }
  assert.ok(order.includes('m'))
  await settle()
  assert.ok(order.indexOf('m') < 40, `after ${order.indexOf('m')} of the great one`)
})

test.run()
