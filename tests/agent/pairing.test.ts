// The room behind a code, under attack: strangers who come first, stay silent, leave, or look at the
// proof and go; time that runs out; a relay that is lost. Real links to a real relay.
// seconds: 120
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { join } from '../../agent/join.ts'
import { enterRoom, PairRoom } from '../../agent/pairing.ts'
import type { PairPorts } from '../../agent/pairing.ts'
import { Presence } from '../../agent/presence.ts'
import { fromHex } from '../../core/bytes.ts'
import type { Clock } from '../../core/clock.ts'
import { parseCode } from '../../core/code.ts'
import { TunnelError } from '../../core/errors.ts'
import { formatKey, parseKey } from '../../core/key.ts'
import type { Stream } from '../../core/mux.ts'
import { PairJoiner } from '../../core/pairing.ts'
import { testWorld } from '../support/agent_world.ts'
import { Scene } from '../support/scene.ts'

const test = suite('agent/pairing')

let scene: Scene
let env: Record<string, string>
const closers: (() => unknown)[] = []
test.before.each(async () => {
  scene = await Scene.make()
  env = await scene.friend(await scene.relay(), 'team')
})
test.after.each(async () => {
  for (const close of closers.splice(0).reverse()) await close()
  await scene.close()
})

interface Somebody {
  ports: PairPorts
  room: PairRoom | undefined
}

async function somebody(home: string): Promise<Somebody> {
  const base = await testWorld({ SOTTO_HOME: scene.place.home(home), ...env })
  const choice = { relay: undefined, fingerprint: undefined }
  const joining = await join(base.world, choice, () => {})
  const presence = await Presence.open(base.world, {
    joining,
    tell: () => {},
    onPair: (stream) => self.room?.accept(stream),
  })
  closers.push(() => base.close(), () => presence.close())
  await presence.ready()
  const { clock, crypto } = base.world
  const self: Somebody = {
    ports: { clock, crypto, presence, joining, name: home },
    room: undefined,
  }
  return self
}

async function maker(clock?: Clock): Promise<Somebody & { room: PairRoom }> {
  const self = await somebody('maker')
  self.room = await PairRoom.open(clock ? { ...self.ports, clock } : self.ports)
  return self as Somebody & { room: PairRoom }
}

/** Enters the room and opens the stream, and then does as it likes. */
async function intrude({ ports }: Somebody, code: string): Promise<Stream> {
  const { room } = parseCode(code)
  const { key, token } = await ports.presence.agent.uplink.request({ do: 'enter', room })
  const stream = await ports.presence.visits.open(parseKey(String(key)), {
    kind: 'pair',
    address: '',
    port: 0,
    endpoint: `${room}`,
    tail: fromHex(String(token)),
  })
  return stream
}

/** The first bytes that come. */
function firstBytes(stream: Stream): Promise<Uint8Array> {
  return new Promise((resolve, reject) =>
    stream.handle({ data: resolve, end: () => {}, closed: (error) => reject(error) })
  )
}

async function codeOf(outcome: Promise<unknown>): Promise<string> {
  try {
    await outcome
  } catch (error) {
    if (error instanceof TunnelError) return error.code
    throw error
  }
  throw new Error('nothing was refused')
}

test('a stranger who comes first and says nothing keeps nobody out', async () => {
  const { room } = await maker()
  const [stranger, friend] = [await somebody('stranger'), await somebody('friend')]
  const silent = await intrude(stranger, room.code)
  await firstBytes(silent)
  const peer = await enterRoom(friend.ports, parseCode(room.code))
  assert.is(peer.name, 'maker')
  const { identity, name } = await room.paired
  assert.is(formatKey(identity), formatKey(friend.ports.joining.identity.public))
  assert.is(name, 'friend')
})

test('a stranger who guesses first burns the code for the one who has it', async () => {
  const { room } = await maker()
  const [stranger, friend] = [await somebody('stranger'), await somebody('friend')]
  const { room: number } = parseCode(room.code)
  const guess = enterRoom(stranger.ports, { room: number, words: 'zoo-zoo-zoo' })
  assert.is(await codeOf(guess), 'pair/guessed')
  assert.is(await codeOf(room.paired), 'pair/guessed')
  await room.close()
  assert.is(await codeOf(enterRoom(friend.ports, parseCode(room.code))), 'pair/unknown-room')
})

test('who looks at the proof and leaves has guessed: no second look', async () => {
  const { room } = await maker()
  const stranger = await somebody('stranger')
  const stream = await intrude(stranger, room.code)
  const greeting = await firstBytes(stream)
  const { joining, presence, crypto, clock } = stranger.ports
  const pretender = new PairJoiner({
    crypto,
    room: parseCode(room.code).room,
    words: 'zoo-zoo-zoo',
    relay: presence.agent.uplink.up!.relayKey,
    identity: joining.identity.public,
    passport: presence.agent.passport!.bytes,
    name: 'stranger',
    now: clock.now(),
  })
  const proof = new Promise<Uint8Array>((resolve) =>
    stream.handle({ data: resolve, end: () => {}, closed: () => {} })
  )
  stream.write(pretender.receive(greeting).send)
  assert.ok((await proof).length > 64)
  stream.reset(1)
  assert.is(await codeOf(room.paired), 'pair/guessed')
})

test('while one has seen the proof nobody else is even heard', async () => {
  const { room } = await maker()
  const [one, two] = [await somebody('one'), await somebody('two')]
  const [first, second] = [await intrude(one, room.code), await intrude(two, room.code)]
  const greetings = await Promise.all([firstBytes(first), firstBytes(second)])
  const joiner = ({ ports }: Somebody): PairJoiner =>
    new PairJoiner({
      crypto: ports.crypto,
      ...parseCode(room.code),
      relay: ports.presence.agent.uplink.up!.relayKey,
      identity: ports.joining.identity.public,
      passport: ports.presence.agent.passport!.bytes,
      name: 'joiner',
      now: ports.clock.now(),
    })
  const gone = new Promise<Error | undefined>((resolve) =>
    second.handle({ data: () => {}, end: () => {}, closed: resolve })
  )
  const [a, b] = [joiner(one), joiner(two)]
  first.handle({
    data: (bytes) => void first.write(a.receive(bytes).send),
    end: () => {},
    closed: () => {},
  })
  first.write(a.receive(greetings[0]!).send)
  await gone
  second.write(b.receive(greetings[1]!).send)
  const { identity } = await room.paired
  assert.is(formatKey(identity), formatKey(one.ports.joining.identity.public))
})

test('three who come and leave are told to whoever waits', async () => {
  const { room } = await maker()
  for (const name of ['one', 'two', 'three']) {
    const stream = await intrude(await somebody(name), room.code)
    await firstBytes(stream)
    stream.reset(1)
  }
  assert.is(await codeOf(room.paired), 'pair/taken')
})

test('a code is worth nothing after ten minutes, nor after its room was given up', async () => {
  const timers: { ms: number; run: () => void }[] = []
  const { room } = await maker({
    now: Date.now,
    monotonic: () => performance.now(),
    after: (ms, run) => {
      timers.push({ ms, run })
      return { cancel: () => {} }
    },
  })
  assert.is(timers.length, 1)
  assert.ok(timers[0]!.ms > 590_000 && timers[0]!.ms <= 600_000)
  timers[0]!.run()
  assert.is(await codeOf(room.paired), 'pair/expired')
  await room.close()
  const friend = await somebody('friend')
  assert.is(await codeOf(enterRoom(friend.ports, parseCode(room.code))), 'pair/unknown-room')
})

test('with the link the code is lost, and it is said', async () => {
  const { room, ports } = await maker()
  ports.presence.agent.close()
  room.lost()
  assert.is(await codeOf(room.paired), 'pair/lost')
})

test('a room holds 33 bits that the relay never sees: number and words are of different making', async () => {
  const made = await maker()
  const rooms = [made.room]
  for (let i = 0; i < 3; i++) rooms.push(await PairRoom.open(made.ports))
  assert.is(new Set(rooms.map(({ code }) => code.replace(/^\d+-/, ''))).size, 4)
  // And a link has no more than four of them.
  assert.is(await codeOf(PairRoom.open(made.ports)), 'pair/limit')
})

test.run()
