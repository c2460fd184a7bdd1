/**
 * Messages on their way out: what is tried again and what is not, under which id, until when; and
 * that nobody is sent to who is not trusted. Peers in memory, and a clock of the test's own.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import * as nodeCrypto from 'node:crypto'
import { decodeRequest, Incoming } from '../../agent/a2a.ts'
import { Courier } from '../../agent/courier.ts'
import type { Parcel } from '../../agent/courier.ts'
import type { Directory, SeenAgent } from '../../agent/directory.ts'
import type { OpenedSession } from '../../agent/peers.ts'
import { Profile } from '../../agent/profile.ts'
import { utf8 } from '../../core/bytes.ts'
import { ManualClock } from '../../core/clock.ts'
import { fastCrypto } from '../../core/crypto.ts'
import { TunnelError } from '../../core/errors.ts'
import { formatKey, generateIdentity } from '../../core/key.ts'
import type { Stream } from '../../core/mux.ts'
import { testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'
import { joined, type MessageLink, Sink } from '../support/message_link.ts'
import { rejection } from '../support/rejection.ts'

const test = suite('agent/courier')
const crypto = fastCrypto(nodeCrypto)
const KEY = formatKey(generateIdentity(crypto).public)
const PEER = { key: KEY, name: 'bob', how: 'manual', verified: false } as const

let place: TestWorld
test.before(async () => void (place = await testWorld()))
test.after(() => place.close())

const seen = (standing: SeenAgent['standing'], name = 'bob'): SeenAgent => ({
  key: KEY,
  fingerprint: 'SHA256:x',
  scope: 'home',
  names: [{ name: 'web', kind: 'http' }, { name: 'agent-x', kind: 'agent' }],
  labels: {},
  online: true,
  since: undefined,
  standing,
  how: standing === 'pinned' ? 'manual' : undefined,
  name,
})

/** A courier whose peers do, one try after the other, what is said. */
function courier(tries: ((far: Promise<Stream>, link: MessageLink) => void | Error)[]) {
  const clock = new ManualClock()
  const link = joined()
  const opened: string[] = []
  const session = (): OpenedSession => {
    const open = (tail: Uint8Array): Stream => {
      const next = link.next()
      const stream = link.open(decodeRequest(tail))
      tries.shift()!(next, link)
      return stream
    }
    return {
      session: { ...link.near, open, close: () => {} },
      peer: PEER,
    } as unknown as OpenedSession
  }
  const reach = (to: string): Promise<OpenedSession> => {
    opened.push(to)
    const [first] = tries
    const error = first?.length === 0 ? (tries.shift() as () => Error)() : undefined
    return error ? Promise.reject(error) : Promise.resolve(session())
  }
  const list = [seen('pinned')]
  const one = new Courier({
    clock,
    crypto,
    peers: { open: (to) => reach(to), openTo: (_, { at }) => reach(at) },
    directory: {
      list: () => Promise.resolve({ agents: list, etag: '' }),
      find: () => Promise.resolve(list[0]!),
      similar: () => Promise.resolve(['home.bobby']),
    } as unknown as Directory,
    known: new Profile(place.world).knownAgents(),
  })
  /** Lets time pass, and what waits for it happen, until `promise` is settled. */
  const settle = async <T>(promise: Promise<T>): Promise<T> => {
    let over = false
    void promise.catch(() => {}).finally(() => void (over = true))
    while (!over) {
      await new Promise((resolve) => setTimeout(resolve, 1))
      clock.advance(100)
    }
    return await promise
  }
  return { one, clock, opened, settle }
}

const parcel = (id: string, repeatable = true): Parcel => ({
  id,
  body: () => [utf8('hi')],
  repeatable,
})

const taken = (ids: string[]) => async (far: Promise<Stream>, link: MessageLink): Promise<void> => {
  const stream = await far
  const incoming = new Incoming(stream, stream.visit.tail, link.far)
  for await (const _ of incoming.body());
  ids.push(incoming.request.id)
  await incoming.finish({ status: 'delivered' })
}
const cut = (far: Promise<Stream>): void => void far.then((stream) => stream.reset(4))
const away = (): Error => new TunnelError('dial/unknown', 'Cannot reach it')

test('a message whose way broke is sent again under the same id', async () => {
  const ids: string[] = []
  const { one, settle } = courier([cut, cut, (far, link) => void taken(ids)(far, link)])
  const id = one.newId()
  const { status, peer } = await settle(
    one.send('bob', parcel(id), { sink: new Sink(), timeoutMs: 60_000 }),
  )
  assert.equal([status, peer.key], ['delivered', KEY])
  assert.equal(ids, [id])
})

test('one that can be read once alone is not', async () => {
  const { one, settle } = courier([cut, () => assert.unreachable()])
  const sent = one.send('bob', parcel(one.newId(), false), { sink: new Sink(), timeoutMs: 60_000 })
  assert.is(await rejection(settle(sent)), 'a2a/broken')
})

test('one that was refused before it was taken is not', async () => {
  const refuse = (far: Promise<Stream>): void => void far.then((stream) => stream.reset(1))
  const { one, settle } = courier([refuse, () => assert.unreachable()])
  const sent = one.send('bob', parcel(one.newId()), { sink: new Sink(), timeoutMs: 60_000 })
  assert.is(await rejection(settle(sent)), 'stream/refused')
})

test('without an answer it is over when its time is, and the stream with it', async () => {
  let far!: Promise<Stream>
  const { one, settle } = courier([(stream) => void (far = stream)])
  const sent = one.send('bob', parcel(one.newId()), { sink: new Sink(), timeoutMs: 2000 })
  assert.is(await rejection(settle(sent)), 'a2a/timeout')
  const stream = await far
  await new Promise<void>((resolve) =>
    stream.handle({ data: () => {}, end: () => {}, closed: () => resolve() })
  )
})

test('a peer that is away is waited for as long as was said', async () => {
  const ids: string[] = []
  const back = courier([away, away, (far, link) => void taken(ids)(far, link)])
  const options = { sink: new Sink(), timeoutMs: 1000, waitMs: 60_000 }
  await back.settle(back.one.send('bob', parcel(back.one.newId()), options))
  assert.is(ids.length, 1)
  const gone = courier(Array.from({ length: 100 }, () => away))
  const sent = gone.one.send('bob', parcel(gone.one.newId()), { ...options, waitMs: 20_000 })
  assert.is(await rejection(gone.settle(sent)), 'a2a/away')
  assert.ok(gone.opened.length < 12, `${gone.opened.length} tries`)
  // And not at all where nothing was said.
  const never = courier([away, () => assert.unreachable()])
  const at = never.one.send('bob', parcel(never.one.newId()), { ...options, waitMs: 0 })
  assert.is(await rejection(never.settle(at)), 'dial/unknown')
  assert.is(never.opened.length, 1)
})

test('a refusal and a changed identity are not tried again, however long is waited', async () => {
  for (const code of ['session/refused', 'trust/changed', 'trust/revoked'] as const) {
    const { one, settle, opened } = courier([() => new TunnelError(code, 'Cannot')])
    const options = { sink: new Sink(), timeoutMs: 1000, waitMs: 60_000 }
    assert.is(await rejection(settle(one.send('bob', parcel(one.newId()), options))), code)
    assert.is(opened.length, 1)
  }
})

test('a name that is pinned here is found under whatever name it has there', async () => {
  await new Profile(place.world).knownAgents().trust('bobby', KEY)
  const ids: string[] = []
  const { one, settle, opened } = courier([away, (far, link) => void taken(ids)(far, link)])
  await settle(one.send('bobby', parcel(one.newId()), { sink: new Sink(), timeoutMs: 1000 }))
  assert.equal(opened, ['bobby', 'home.agent-x'])
})

test('nobody who was listed is sent to unless pinned or vouched for', async () => {
  for (const standing of ['unknown', 'revoked', 'self'] as const) {
    const { one, settle, opened } = courier([])
    const sent = one.send(seen(standing), parcel(one.newId()), {
      sink: new Sink(),
      timeoutMs: 1000,
    })
    assert.is(await rejection(settle(sent)), 'trust/unknown')
    assert.equal(opened, [])
  }
})

test('whoever stops it is told so at once', async () => {
  const stop = new AbortController()
  const { one, settle } = courier(Array.from({ length: 9 }, () => away))
  const options = { sink: new Sink(), timeoutMs: 1000, waitMs: 600_000, signal: stop.signal }
  const sent = one.send('bob', parcel(one.newId()), options)
  stop.abort()
  assert.is(await rejection(settle(sent)), 'a2a/stopped')
})

test.run()
