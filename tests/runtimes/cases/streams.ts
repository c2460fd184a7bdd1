/** Streams of visit links through the hub: bytes, ends, resets, credit and its policing. */
import * as assert from 'uvu/assert'
import { utf8 } from '../../../core/bytes.ts'
import {
  decodeReset,
  encodeCredit,
  encodeFrame,
  encodePackets,
  encodeVisit,
  FRAME,
  RESET,
  WINDOW_INITIAL_BYTES,
} from '../../../core/frame.ts'
import type { Frame } from '../../../core/frame.ts'
import { StreamReset } from '../../../core/mux.ts'
import type { Stream } from '../../../core/mux.ts'
import { Reader, within } from '../../support/client.ts'
import type { WireAgent } from '../../support/client.ts'
import { fast } from '../../support/crypto.ts'
import type { Bed, Cases } from '../bed.ts'
import { echo, writeAll } from '../bed.ts'

interface Pair {
  home: WireAgent
  visiting: WireAgent
  name: string
}

/** An agent that serves a name, and another agent on a visit link to it. */
async function pair(bed: Bed): Promise<Pair> {
  const name = bed.name()
  const home = await bed.agent({ scope: 'alice' })
  await home.claim(name)
  const visiting = await bed.agent({
    scope: 'bob',
    role: 'visit',
    target: home.identity.public,
  })
  return { home, visiting, name }
}

/** Both ends of one stream, accepted. */
async function joined(bed: Bed): Promise<Pair & { near: Stream; far: Stream }> {
  const both = await pair(bed)
  const near = both.visiting.connect(both.name)
  const far = await both.home.opened()
  far.accept()
  return { ...both, near, far }
}

/** Takes every stream frame of `agent` from its mux; gives the next one that `wanted` says yes to. */
function hands(agent: WireAgent): (wanted: (frame: Frame) => boolean) => Promise<Frame> {
  const seen: Frame[] = []
  let look = (): void => {}
  agent.tap = (frame) => {
    seen.push(frame)
    look()
    return true
  }
  return (wanted) =>
    within(
      new Promise((resolve) => {
        look = () => {
          const frame = seen.find(wanted)
          if (frame) resolve(frame)
        }
        look()
      }),
      'a frame',
    )
}

/** The next reset of any stream that `agent` is sent; its mux sees it too where it is `by` that. */
async function nextReset(agent: WireAgent, by: 'hand' | 'mux'): Promise<number> {
  if (by === 'hand') {
    const frame = await hands(agent)(({ type }) => type === FRAME.reset)
    return decodeReset(frame.payload).code
  }
  return await within(
    new Promise((resolve) => {
      agent.tap = (frame) => {
        if (frame.type === FRAME.reset) resolve(decodeReset(frame.payload).code)
        return false
      }
    }),
    'a reset',
  )
}

function openFrame(name: string, id: number, windowBytes = WINDOW_INITIAL_BYTES): Uint8Array {
  const tail = new Uint8Array(0)
  const visit = encodeVisit({
    kind: 'connect',
    windowBytes,
    address: '',
    port: 0,
    endpoint: name,
    tail,
  })
  return encodeFrame('open', id, visit)
}

export const streamCases: Cases = (test, bed) => {
  test('a stream carries bytes both ways, and the relay says who comes', async () => {
    const { home, visiting, name } = await pair(bed)
    const stream = visiting.connect(name)
    const reader = new Reader(stream)
    const far = await home.opened()
    assert.is(far.visit.kind, 'connect')
    assert.is(far.visit.endpoint, name)
    assert.is(far.visit.port, 0)
    assert.not.match(far.visit.address, 'lie')
    if (bed.can.process) assert.is(far.visit.address, '127.0.0.1')
    echo(far)
    const sent = fast.randomBytes(3_000_000)
    const [, got] = await Promise.all([
      writeAll(stream, sent).then(() => stream.end()),
      reader.take(sent.length),
    ])
    assert.ok(got.equals(sent))
    assert.is((await reader.rest()).end, 'end')
    assert.is(await reader.closed, undefined)
  })

  test('each direction ends by itself: the visitor first, or the agent first', async () => {
    const one = await joined(bed)
    const [near, far] = [new Reader(one.near), new Reader(one.far)]
    one.near.write(utf8('question'))
    one.near.end()
    assert.is((await far.rest()).bytes.toString(), 'question')
    one.far.write(utf8('answer after the end'))
    one.far.end()
    assert.is((await near.rest()).bytes.toString(), 'answer after the end')
    assert.equal(await Promise.all([near.closed, far.closed]), [undefined, undefined])

    const two = await joined(bed)
    const [visitor, agent] = [new Reader(two.near), new Reader(two.far)]
    two.far.write(utf8('greeting'))
    two.far.end()
    assert.is((await visitor.rest()).bytes.toString(), 'greeting')
    two.near.write(utf8('reply'))
    two.near.end()
    assert.is((await agent.rest()).bytes.toString(), 'reply')
  })

  test('a reset arrives with its code and reason, from either end', async () => {
    for (const code of [RESET.unreachable, RESET.aborted, RESET.overload]) {
      const one = await joined(bed)
      const near = new Reader(one.near)
      one.far.reset(code, 'the upstream is down')
      const error = await within(near.closed, 'the reset')
      assert.instance(error, StreamReset)
      assert.is((error as StreamReset).reset, code)
      assert.is((error as StreamReset).reason, 'the upstream is down')
      const two = await joined(bed)
      const far = new Reader(two.far)
      two.near.reset(code, 'left')
      assert.is((await within(far.closed, 'the reset') as StreamReset).reset, code)
    }
  })

  test('a stream to what is not served, or not verified, is refused', async () => {
    const { home, visiting, name } = await pair(bed)
    const code = async (endpoint: string): Promise<number> =>
      (await within(new Reader(visiting.connect(endpoint)).closed, 'a reset') as StreamReset).reset
    assert.is(await code('nothing-here'), RESET.refused)
    const other = await bed.agent({ scope: 'alice' })
    const elsewhere = bed.name()
    await other.claim(elsewhere)
    assert.is(await code(elsewhere), RESET.refused, 'the name of another agent')
    const readable = bed.name()
    await home.claim(readable, { kind: 'http', mode: 'inspectable' })
    assert.is(await code(readable), RESET.refused, 'a readable endpoint')
    await home.request({ do: 'release', name })
    assert.is(await code(name), RESET.refused, 'a released one')
  })

  test('losing a link resets its streams with gone on the other side', async () => {
    const one = await joined(bed)
    const near = new Reader(one.near)
    one.home.link.ws.terminate()
    assert.is((await within(near.closed, 'the reset') as StreamReset).reset, RESET.gone)
    const two = await joined(bed)
    const far = new Reader(two.far)
    two.visiting.link.ws.terminate()
    assert.is((await within(far.closed, 'the reset') as StreamReset).reset, RESET.gone)
  })

  test('credit is end to end: a reader that stops leaves no more than its window', async () => {
    const { near, far } = await joined(bed)
    far.pause()
    const reader = new Reader(far)
    const chunk = new Uint8Array(65_536).fill(3)
    let sent = 0
    while (near.write(chunk) !== 'queued') sent += chunk.length
    sent += chunk.length
    await within(
      new Promise<void>((resolve) => {
        const look = (): void => {
          if (near.creditBytes === 0 && far.heldBytes === WINDOW_INITIAL_BYTES) resolve()
          else setTimeout(look, 5)
        }
        look()
      }),
      'the end of the credit',
    )
    assert.is(near.sentBytes, WINDOW_INITIAL_BYTES)
    far.resume()
    assert.is((await reader.take(sent)).length, sent)
  })

  test('who sends more than its credit is reset on both sides, visitor and agent alike', async () => {
    const chunk = new Uint8Array(65_536)
    const one = await pair(bed)
    const resets = Promise.all([nextReset(one.visiting, 'hand'), nextReset(one.home, 'mux')])
    one.visiting.link.socket.send(openFrame(one.name, 1))
    const far = await one.home.opened()
    far.accept()
    far.pause()
    for (let bytes = 0; bytes <= WINDOW_INITIAL_BYTES; bytes += chunk.length) {
      one.visiting.link.send('data', 1, chunk)
    }
    assert.equal(await resets, [RESET.overdrawn, RESET.overdrawn])

    const two = await pair(bed)
    const others = Promise.all([nextReset(two.visiting, 'hand'), nextReset(two.home, 'mux')])
    two.visiting.link.socket.send(openFrame(two.name, 1, 1000))
    const agent = await two.home.opened()
    agent.accept()
    two.home.link.send('data', agent.id, new Uint8Array(1001))
    assert.equal(await others, [RESET.overdrawn, RESET.overdrawn])
    assert.is((await two.home.request({ do: 'passport' }))['ok'], true, 'the link goes on')
  })

  test('credit beyond any window, and data after the own end, are protocol errors', async () => {
    const wrongs: [string, (agent: WireAgent) => void][] = [
      ['credit beyond any window', ({ link }) => {
        for (let i = 0; i < 2; i++) link.send('credit', 1, encodeCredit(16_777_216))
      }],
      ['data after fin', ({ link }) => {
        link.send('fin', 1)
        link.send('data', 1, utf8('too late'))
      }],
      ['fin after fin', ({ link }) => {
        for (let i = 0; i < 2; i++) link.send('fin', 1)
      }],
      ['a packet on a stream of bytes', ({ link }) => {
        link.send('packet', 1, encodePackets([utf8('not udp')]))
      }],
    ]
    for (const [what, wrong] of wrongs) {
      const { visiting, home, name } = await pair(bed)
      const resets = Promise.all([nextReset(visiting, 'hand'), nextReset(home, 'mux')])
      visiting.link.socket.send(openFrame(name, 1))
      ;(await home.opened()).accept()
      wrong(visiting)
      assert.equal(await resets, [RESET.protocol, RESET.protocol], what)
    }
  })

  test('ids count up and have a side; what breaks that ends the link', async () => {
    const cases: [string, number[]][] = [
      ['an id of the relay', [2]],
      ['the same id again', [1, 1]],
      ['an id below', [5, 3]],
    ]
    for (const [what, ids] of cases) {
      const { visiting, name } = await pair(bed)
      // Its own mux knows nothing of these ids, and would end the link itself.
      hands(visiting)
      for (const id of ids) visiting.link.socket.send(openFrame(name, id))
      assert.is((await visiting.closed).code, 4400, what)
    }
  })

  test('frames that cross a reset are dropped, and the link goes on', async () => {
    const { home, visiting, name } = await pair(bed)
    const next = hands(visiting)
    visiting.link.socket.send(openFrame(name, 1))
    const far = await home.opened()
    far.reset(RESET.unreachable)
    const { payload } = await next(({ type }) => type === FRAME.reset)
    assert.is(decodeReset(payload).code, RESET.unreachable)
    for (const frame of ['data', 'fin', 'reset', 'credit'] as const) {
      const payload = frame === 'data'
        ? utf8('x')
        : frame === 'credit'
        ? encodeCredit(1)
        : frame === 'reset'
        ? Uint8Array.of(0, 6)
        : undefined
      visiting.link.send(frame, 1, payload)
      home.link.send(frame, far.id, payload)
    }
    home.onOpen = echo
    visiting.link.socket.send(openFrame(name, 3))
    await next(({ type, id }) => type === FRAME.credit && id === 3)
  })

  test('one stream that is not read does not hold up another on the same links', async () => {
    const { home, visiting, name } = await pair(bed)
    const stalled = visiting.connect(name)
    const held = await home.opened()
    held.accept()
    held.pause()
    while (stalled.write(new Uint8Array(65_536)) !== 'queued');
    home.onOpen = echo
    const stream = visiting.connect(name)
    const reader = new Reader(stream)
    const sent = fast.randomBytes(4_000_000)
    const [, got] = await Promise.all([writeAll(stream, sent), reader.take(sent.length)])
    assert.ok(got.equals(sent))
    assert.ok(held.heldBytes <= WINDOW_INITIAL_BYTES)
    assert.ok(stalled.sentBytes <= WINDOW_INITIAL_BYTES)
  })
}
