/**
 * Messages as they come in: once each, however they are sent again; nobody whose right was taken
 * back meanwhile; and no more of them than one machine can hold. Two muxes joined in memory.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { MESSAGE_BYTES_MAX, sendMessage } from '../../agent/a2a.ts'
import type { MessageRequest, MessageResult } from '../../agent/a2a.ts'
import { Holding, Inbox, joinChunks } from '../../agent/inbox.ts'
import type { InboxPorts, Outcome } from '../../agent/inbox.ts'
import type { ServedService } from '../../agent/peers.ts'
import { text, utf8 } from '../../core/bytes.ts'
import { ManualClock } from '../../core/clock.ts'
import type { Stream } from '../../core/mux.ts'
import type { Session } from '../../core/session.ts'
import { joined, Sink } from '../support/message_link.ts'
import { rejection } from '../support/rejection.ts'

const test = suite('agent/inbox')
const VIEW = { key: 'k', fingerprint: 'SHA256:x', names: ['alice'], vouched: [] }
const PEER = { key: 'k', name: 'alice' }

let ids = 0
const nextId = (): string => String(++ids).padStart(32, '0')

/** An inbox with one session of one peer on it. */
function opened(take: InboxPorts['take'], needs: InboxPorts['needs'] = 'a2a') {
  let served: ServedService
  const link = joined()
  const state = { allowed: true }
  const inbox = new Inbox({
    clock: new ManualClock(),
    peers: {
      serve: (_, given) => void (served = given),
      mayStill: () => Promise.resolve(state.allowed),
    },
    needs,
    take,
  })
  const events = served!.session(link.far as Session, PEER, VIEW)
  const send = (
    request: Partial<MessageRequest>,
    body: Iterable<Uint8Array> | AsyncIterable<Uint8Array> = [utf8('hi')],
  ): { stream: Stream; result: Promise<MessageResult>; sink: Sink } => {
    const sink = new Sink()
    const next = link.next()
    const stream = link.open({ id: nextId(), ...request })
    void next.then((far) => events.onOpen(far))
    return { stream, result: sendMessage(stream, body, sink, link.near), sink }
  }
  return { inbox, send, state }
}

const holding = new Holding()
const keepIn = (got: string[]): InboxPorts['take'] => (incoming) =>
  holding.whole(incoming, (chunks) => void got.push(text(joinChunks(chunks))))

test('a message that is sent again was taken once, and the sender is told', async () => {
  const got: string[] = []
  const { send } = opened(keepIn(got))
  const id = nextId()
  assert.equal(await send({ id }).result, { status: 'delivered' })
  assert.equal(await send({ id }).result, { status: 'delivered', again: true })
  assert.equal(await send({}).result, { status: 'delivered' })
  assert.equal(got, ['hi', 'hi'])
})

test('the second try of a message waits for what becomes of the first', async () => {
  let release!: () => void
  const held = new Promise<void>((resolve) => void (release = resolve))
  let runs = 0
  const { send } = opened(async (): Promise<Outcome> => {
    runs++
    await held
    return { result: { status: 'failed', exit: 7 }, taken: true }
  })
  const id = nextId()
  const first = send({ id })
  const second = send({ id })
  await new Promise((resolve) => setTimeout(resolve, 20))
  assert.is(runs, 1)
  release()
  assert.equal(await first.result, { status: 'failed', exit: 7 })
  assert.equal(await second.result, { status: 'failed', exit: 7, again: true })
})

test('a first try that broke off was not taken, and the second is', async () => {
  const got: string[] = []
  const { send } = opened(keepIn(got))
  const id = nextId()
  const never = (async function* () {
    yield utf8('half')
    await new Promise(() => {})
  })()
  const first = send({ id }, never)
  const broken = rejection(first.result)
  const second = send({ id }, [utf8('whole')])
  await new Promise((resolve) => setTimeout(resolve, 20))
  assert.equal(got, [])
  first.stream.reset(4)
  assert.is(await broken, 'a2a/broken')
  assert.equal(await second.result, { status: 'delivered' })
  assert.equal(got, ['whole'])
})

test('a right that was taken back counts in a session that is open', async () => {
  const got: string[] = []
  const { send, state } = opened(keepIn(got))
  assert.is((await send({}).result).status, 'delivered')
  state.allowed = false
  const { status, code } = await send({}).result
  assert.equal({ status, code }, { status: 'refused', code: 'a2a/refused' })
  assert.is(got.length, 1)
})

test('who asks for a program is refused where none answers', async () => {
  const got: string[] = []
  assert.is((await opened(keepIn(got)).send({ exec: true }).result).code, 'a2a/exec')
  assert.equal(got, [])
  const answers = opened(keepIn(got), 'a2a exec')
  assert.is((await answers.send({ exec: true }).result).status, 'delivered')
})

test('what the owner throws is told, and leaves the message untaken', async () => {
  let runs = 0
  const { send } = opened(() => {
    runs++
    throw new Error('secret words')
  })
  const id = nextId()
  const result = await send({ id }).result
  assert.is(result.status, 'failed')
  assert.is(result.code, 'a2a/fault')
  assert.is((await send({ id }).result).status, 'failed')
  assert.is(runs, 2)
})

test('one peer has so many messages under way, and no more', async () => {
  const { send, inbox } = opened(() => new Promise(() => {}))
  const sent = Array.from({ length: 129 }, () => send({}))
  const all = sent.map(({ result }) => rejection(result))
  assert.is(await all[128], 'stream/overload')
  assert.is(inbox.size, 128)
  for (const { stream } of sent) stream.reset(6)
  await Promise.all(all)
})

test('nothing is taken after the end', async () => {
  const { send, inbox } = opened(keepIn([]))
  inbox.close()
  assert.is(await rejection(send({}).result), 'stream/refused')
})

test('messages are held up to a sum, beyond which they are refused and nothing is kept', async () => {
  const small = new Holding(1000)
  let release!: () => void
  const held = new Promise<void>((resolve) => void (release = resolve))
  const { send } = opened((incoming) => small.whole(incoming, () => held))
  const first = send({}, [new Uint8Array(800)])
  await new Promise((resolve) => setTimeout(resolve, 20))
  assert.is(small.bytes, 800)
  const { status, code } = await send({}, [new Uint8Array(201)]).result
  assert.equal({ status, code }, { status: 'refused', code: 'a2a/busy' })
  assert.is(small.bytes, 800)
  release()
  assert.is((await first.result).status, 'delivered')
  assert.is(small.bytes, 0)
})

test('one that is longer than it said, or than any may be, gives its room back', async () => {
  const { send } = opened((incoming) => holding.whole(incoming, () => {}))
  assert.is((await send({ bytes: 1 }, [utf8('hi')]).result).code, 'a2a/length')
  const much = (function* () {
    for (let at = 0; at <= MESSAGE_BYTES_MAX; at += 65_536) yield new Uint8Array(65_536)
  })()
  assert.is(await rejection(send({}, much).result), 'a2a/size')
  await new Promise((resolve) => setTimeout(resolve, 20))
  assert.is(holding.bytes, 0)
})

test.run()
