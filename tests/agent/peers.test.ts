/**
 * Two agents on a real relay, in one process: who is let in, who is refused and told why, what stops
 * when the relay says something else than before, and that a session outlives the link below it.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { join } from '../../agent/join.ts'
import type { Joining } from '../../agent/join.ts'
import { Presence } from '../../agent/presence.ts'
import type { World } from '../../agent/world.ts'
import { text, utf8 } from '../../core/bytes.ts'
import { isTunnelError, TunnelError } from '../../core/errors.ts'
import { formatKey, parseKey } from '../../core/key.ts'
import type { Stream } from '../../core/mux.ts'
import { encodeStatement } from '../../core/statement.ts'
import { testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'
import { rejection } from '../support/rejection.ts'
import { Scene } from '../support/scene.ts'
import type { RelayHome } from '../support/scene.ts'

// seconds: 120
const test = suite('agent/peers')
const SERVICE = 'echo'

interface Actor {
  presence: Presence
  joining: Joining
  key: string
  told: string[]
  refusals: TunnelError[]
  /** Ends every link to this KEY as a lost network does. */
  cut(key: string): void
  test: TestWorld
}

let scene: Scene
let relay: RelayHome
let env: Record<string, string>
let actors: Actor[]

test.before.each(async () => {
  scene = await Scene.make()
  relay = await scene.relay()
  env = await scene.friend(relay, 'team')
  actors = []
})
test.after.each(async () => {
  for (const { presence, test } of actors) {
    presence.close()
    await test.close()
  }
  await scene.close()
})

async function enter(name: string): Promise<Actor> {
  const t = await testWorld(env)
  const links: { url: string; end(): void }[] = []
  const world: World = {
    ...t.world,
    link: {
      open: async (url, options) => {
        const opened = await t.world.link.open(url, options)
        links.push({ url, end: () => opened.socket.terminate() })
        return opened
      },
    },
  }
  const told: string[] = []
  const refusals: TunnelError[] = []
  const joining = await join(
    world,
    { relay: undefined, fingerprint: relay.fingerprint },
    (line) => told.push(line),
  )
  const presence = await Presence.open(world, {
    joining,
    tell: (sentence) => void told.push(sentence),
    refused: (_, error) => void refusals.push(error),
  })
  const actor: Actor = {
    presence,
    joining,
    key: formatKey(joining.identity.public),
    told,
    refusals,
    cut: (key) => links.filter(({ url }) => url.endsWith(key)).forEach((link) => link.end()),
    test: t,
  }
  actors.push(actor)
  await presence.ready()
  await presence.agent.announce(name)
  return actor
}

/** Says back what comes over each stream. */
function echo(who: Actor): void {
  who.presence.peers.serve(SERVICE, {
    needs: 'a2a',
    session: () => ({
      onOpen(stream) {
        stream.accept()
        stream.handle({
          data: (bytes) => {
            stream.write(bytes)
          },
          end: () => stream.end(),
          closed() {},
        })
      },
      onState() {},
      closed() {},
    }),
  })
}

/** A stream with all that has come back over it. */
function talk(stream: Stream): { stream: Stream; until(length: number): Promise<string> } {
  let got = ''
  let wake = (): void => {}
  stream.handle({
    data: (bytes) => {
      got += text(bytes)
      wake()
    },
    end: () => wake(),
    closed: () => wake(),
  })
  return {
    stream,
    async until(length) {
      while (got.length < length) await new Promise<void>((resolve) => wake = resolve)
      return got
    },
  }
}

async function caught(run: Promise<unknown>): Promise<TunnelError> {
  try {
    await run
  } catch (error) {
    if (isTunnelError(error)) return error
    throw error
  }
  throw new Error('nothing was refused')
}

async function pair(): Promise<{ alice: Actor; bob: Actor }> {
  const [alice, bob] = [await enter('alice'), await enter('bob')]
  echo(bob)
  await bob.joining.profile.knownAgents().trust('ally', alice.key)
  await bob.joining.profile.changeAccess((rules) => ({
    rules: [...rules, { peer: 'ally', services: ['a2a'] }],
    answer: undefined,
  }))
  return { alice, bob }
}

test('a session opens to whoever is trusted behind a name, and says whom it reached', async () => {
  const { alice, bob } = await pair()
  const { session, peer } = await alice.presence.peers.open('bob', SERVICE)
  assert.equal([peer.key, peer.name, peer.how], [bob.key, 'bob', 'first-use'])
  assert.ok(alice.told.some((line) => line.startsWith('first contact with "bob": SHA256:')))
  const line = talk(session.open())
  line.stream.write(utf8('hello'))
  assert.is(await line.until(5), 'hello')
  const again = await alice.presence.peers.open('team.bob', SERVICE)
  assert.is(again.peer.key, bob.key)
  assert.is(alice.told.filter((one) => one.startsWith('first contact with "bob"')).length, 1)
  assert.is(await rejection(alice.presence.peers.open('other.bob', SERVICE)), 'dial/unknown')
  assert.is(await rejection(alice.presence.peers.open('ghost', SERVICE)), 'dial/unknown')
})

test('whom no rule allows is refused by name, and both ends are told', async () => {
  const { alice, bob } = await pair()
  await bob.joining.profile.changeAccess(() => ({
    rules: [{ peer: 'ally', services: ['connect'] }],
    answer: undefined,
  }))
  const error = await caught(alice.presence.peers.open('bob', SERVICE))
  assert.is(error.code, 'session/refused')
  assert.match(error.message, /Cannot reach "bob"/)
  assert.equal(bob.refusals.map(({ code }) => code), ['session/refused'])
  assert.equal(bob.presence.peers.sessions.length, 0)
  // A pin of first use is no friend.
  const known = bob.joining.profile.knownAgents()
  await known.forget('ally')
  await known.trust('ally', alice.key, { how: 'first-use' })
  await bob.joining.profile.changeAccess(() => ({
    rules: [{ peer: 'ally', services: ['a2a'] }],
    answer: undefined,
  }))
  assert.is(await rejection(alice.presence.peers.open('bob', SERVICE)), 'session/refused')
})

test('a service that an agent does not serve is refused before anything is asked', async () => {
  const { alice, bob } = await pair()
  const error = await caught(alice.presence.peers.open('bob', 'files'))
  assert.match(error.code, /^session\//)
  assert.equal(bob.refusals, [])
})

test('another identity under a pinned name stops, and nothing is sent to it', async () => {
  const { alice, bob } = await pair()
  await alice.presence.peers.open('bob', SERVICE)
  bob.presence.close()
  const mallory = await enter('bob')
  echo(mallory)
  await mallory.joining.profile.changeAccess(() => ({
    rules: [{ peer: alice.key, services: ['a2a'] }],
    answer: undefined,
  }))
  const error = await caught(alice.presence.peers.open('bob', SERVICE))
  assert.is(error.code, 'trust/changed')
  for (const who of [bob, mallory]) {
    assert.ok(error.message.includes(alice.presence.trust.print(who.key)), error.message)
  }
  assert.equal(mallory.presence.peers.sessions.length, 0)
})

test('an old passport of a trusted identity is a replay, in the next run too', async () => {
  const { alice, bob } = await pair()
  const { uplink } = alice.presence.agent
  const honest = uplink.request.bind(uplink)
  const old = await honest({ do: 'resolve', name: 'bob' })
  await bob.presence.agent.announce('bob-2')
  await alice.presence.peers.open('bob', SERVICE)
  uplink.request = async (body) =>
    (body as { do: string }).do === 'resolve' ? old : await honest(body)
  assert.is(await rejection(alice.presence.peers.open('bob', SERVICE)), 'passport/stale')
  // Another run of the same profile has only the file.
  const next = await Presence.open(alice.test.world, { joining: alice.joining, tell() {} })
  try {
    await next.ready()
    const ask = next.agent.uplink.request.bind(next.agent.uplink)
    next.agent.uplink.request = async (body) =>
      (body as { do: string }).do === 'resolve' ? old : await ask(body)
    assert.is(await rejection(next.peers.open('bob', SERVICE)), 'passport/stale')
  } finally {
    next.close()
  }
})

test('passports of strangers are not remembered, however many a relay shows', async () => {
  const { alice, bob } = await pair()
  await alice.joining.profile.knownAgents().trust('bob', alice.key)
  assert.is(await rejection(alice.presence.peers.open('bob', SERVICE)), 'trust/changed')
  assert.is(await alice.joining.profile.knownPassports().newest(bob.key), 0)
})

test('a session goes on after the visit link below it is cut, and nothing is lost or said twice', async () => {
  const { alice, bob } = await pair()
  const states: string[] = []
  const { session } = await alice.presence.peers.open('bob', SERVICE, {
    onState: (state) => void states.push(state),
  })
  const line = talk(session.open())
  let expected = ''
  for (let round = 0; round < 3; round++) {
    for (let i = 0; i < 50; i++) {
      const words = `${round}.${i} `
      expected += words
      line.stream.write(utf8(words))
      if (i === 25) alice.cut(bob.key)
    }
    assert.is(await line.until(expected.length), expected)
  }
  assert.ok(states.length >= 2, states.join())
  assert.is(alice.presence.peers.sessions.length, 0)
  assert.is(bob.presence.peers.sessions.length, 1)
})

test('whoever revoked itself is refused at the door, though a rule names it', async () => {
  const { alice, bob } = await pair()
  await alice.presence.peers.open('bob', SERVICE)
  const { crypto, clock } = alice.test.world
  const { identity } = alice.joining
  const statement = encodeStatement(
    { kind: 'revocation', identity: identity.public, time: clock.now() },
    (message) => crypto.ed25519Sign(identity.seed, message),
  )
  // The relay would put Alice out; a lying one tells Bob alone, and Alice goes on.
  const { uplink } = bob.presence.agent
  const honest = uplink.request.bind(uplink)
  uplink.request = async (body) => {
    const { do: verb, key } = body as { do: string; key?: string }
    if (verb !== 'statements' || key !== alice.key) return await honest(body)
    return { ok: true, statements: [btoa(String.fromCharCode(...statement))] }
  }
  assert.match(
    await rejection(alice.presence.peers.open('bob', SERVICE)) ?? '',
    /^(session|trust)\//,
  )
  uplink.request = honest
  assert.is(await rejection(bob.presence.trust.view(alice.key)), 'trust/revoked', 'remembered')
  assert.equal(parseKey(alice.key), identity.public)
})

test.run()
