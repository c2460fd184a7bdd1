/** Lies about how a session begins: every field of both messages, whose they are, and when they come. */
import * as assert from 'uvu/assert'
import { concat } from '../../core/bytes.ts'
import { encodeEnvelope, ENVELOPE } from '../../core/envelope.ts'
import { RESET } from '../../core/frame.ts'
import { InitiatorHello, SUITE } from '../../core/opening.ts'
import { fast } from '../support/crypto.ts'
import { flipped } from './relay.ts'
import type { CarrierEnvelope } from './relay.ts'
import { SERVICE } from './stage.ts'
import type { Stage } from './stage.ts'
import { MESSAGE } from './table.ts'
import type { Row, Scene } from './table.ts'

/** From `opening` to its answer, and from the answer to `ready`; docs/protocol.md §10. */
const STEP_MS = 5500
/** Where things stand in the envelope of an opening for `echo`. */
const OPENING = {
  version: 5,
  suite: 6,
  initiator: 7,
  responder: 39,
  service: 72,
  ephemeral: 76,
  kem: 108,
  static: 1308,
  payload: 1356,
}
const ANSWER = { ephemeral: 4, kem: 36, payload: 1140 }

type Lie = (bytes: Uint8Array, envelope: CarrierEnvelope, stage: Stage) => Uint8Array[]

/** The first envelope of a type is another. */
function first(type: number, lie: Lie): Row['attack'] {
  return (stage) => {
    let isDone = false
    stage.relay.hooks.envelope = (envelope) => {
      if (isDone || envelope.type !== type) return undefined
      isDone = true
      return stage.relay.lied(lie(envelope.bytes, envelope, stage))
    }
  }
}

/** In place of what stood there. */
function put(bytes: Uint8Array, at: number, other: Uint8Array): Uint8Array {
  const copy = bytes.slice()
  copy.set(other, at)
  return copy
}

const stranger = (): Uint8Array => fast.x25519Public(fast.randomBytes(32))

function opening(name: string, says: string[], lie: Lie, more: Partial<Row> = {}): Row {
  const attack = first(ENVELOPE.opening, lie)
  const holds = ({ sessionsOfBob }: Stage): void => assert.is(sessionsOfBob.length, 0)
  return { name, layer: 'handshake', says, attack, holds, ...more }
}

function answer(name: string, says: string[], lie: Lie, more: Partial<Row> = {}): Row {
  const attack = first(ENVELOPE.answer, lie)
  return { name, layer: 'handshake', says, attack, ...more }
}

const FORGED = ['noise/forged']

/** The relay's own message 1 in Alice's name. */
function inHerName(passportOf: 'alice' | 'carol'): Lie {
  return (_bytes, _envelope, stage) => {
    const bob = stage.actor('bob').presence.agent.passport!.fields
    const alice = stage.actor('alice').joining.identity.public
    const private32 = fast.randomBytes(32)
    const hello = new InitiatorHello({
      crypto: fast,
      opening: {
        suite: 'aesgcm',
        initiator: alice,
        responder: bob.identity,
        service: SERVICE,
      },
      staticKey: { private32, public32: fast.x25519Public(private32) },
      passport: stage.actor(passportOf).presence.agent.passport!.bytes,
      peer: bob,
    })
    return [encodeEnvelope(ENVELOPE.opening, hello.body)]
  }
}

/** Two sessions at once, with one message each. */
const TWO: Scene = {
  async act(stage) {
    const [a, b] = await Promise.all([stage.open(), stage.open()])
    await Promise.all([stage.say(a.session), stage.say(b.session)])
  },
}

const WITH_CAROL: Scene = {
  ...MESSAGE,
  async set(stage) {
    const bob = await stage.enter('bob')
    const alice = await stage.enter('alice')
    await stage.introduce(alice, bob)
    stage.serveEcho(bob)
    await stage.enter('carol')
  },
}

/** The first envelope of that type on each of two carriers goes to the other. */
function crossed(type: number): Row['attack'] {
  return ({ relay }) => {
    let held: CarrierEnvelope | undefined
    let isDone = false
    relay.hooks.envelope = (envelope) => {
      if (envelope.type !== type || isDone) return undefined
      if (!held) {
        held = { ...envelope, bytes: envelope.bytes.slice() }
        return []
      }
      if (held.leg === envelope.leg) return []
      isDone = true
      held.leg.inject(envelope.bytes)
      return relay.lied([held.bytes])
    }
  }
}

/** What Alice sent is played to Bob again by somebody else. */
function replayed(words: 'opening' | 'all'): Row['attack'] {
  return (stage) => {
    const { relay } = stage
    const kept: Uint8Array[] = []
    relay.hooks.envelope = ({ way, carrier, type, bytes }) => {
      if (way !== 'forth' || carrier > 0) return undefined
      if (words === 'all' || type === ENVELOPE.opening) kept.push(bytes.slice())
      return undefined
    }
    return async () => {
      while (!stage.complete || stage.sent.size < 4) await stage.turn()
      const target = stage.actor('bob').joining.identity.public
      const other = await relay.stranger({ role: 'visit', target })
      const stream = other.mux.open({
        kind: 'session',
        address: '',
        port: 0,
        endpoint: 'bob',
        tail: new Uint8Array(0),
      })
      stream.write(relay.lied(concat(...kept)))
    }
  }
}

const once = ({ sessionsOfBob, arrived }: Stage): void => {
  assert.is(sessionsOfBob.length, 1)
  assert.is(arrived.filter(({ who }) => who === 'bob').length, 2)
}

export const HANDSHAKE: Row[] = [
  opening('another version', ['session/version'], (b) => [flipped(b, OPENING.version, 2)]),
  opening('the other suite', FORGED, (b) => [
    put(b, OPENING.suite, Uint8Array.of(SUITE.chachapoly)),
  ]),
  opening('a suite that is none', ['session/suite'], (b) => [
    put(b, OPENING.suite, Uint8Array.of(7)),
  ]),
  opening('the pattern without its second key exchange', ['session/envelope'], (b) => [
    encodeEnvelope(
      ENVELOPE.opening,
      concat(b.subarray(4, OPENING.kem), b.subarray(OPENING.static)),
    ),
  ]),
  opening('another initiator', FORGED, (b) => [
    put(b, OPENING.initiator, fast.ed25519Public(fast.randomBytes(32))),
  ]),
  opening('another responder', ['session/responder'], (b) => [flipped(b, OPENING.responder)]),
  opening('another service', FORGED, (b) => [flipped(b, OPENING.service, 1)]),
  opening("the relay's ephemeral key in message 1", FORGED, (b) => [
    put(b, OPENING.ephemeral, stranger()),
  ]),
  opening('an ephemeral key of zeros in message 1', ['noise/point'], (b) => [
    put(b, OPENING.ephemeral, new Uint8Array(32)),
  ]),
  opening('a bit of the encapsulation key turned', FORGED, (b) => [flipped(b, OPENING.kem + 500)]),
  opening('a bit of the static key turned', FORGED, (b) => [flipped(b, OPENING.static)]),
  opening('a bit of the passport in message 1 turned', FORGED, (b) => [
    flipped(b, OPENING.payload),
  ]),
  opening(
    "the relay's own message 1 with Alice's passport",
    ['session/passport'],
    inHerName('alice'),
  ),
  opening(
    "the relay's own message 1 with another's passport",
    ['passport/signer'],
    inHerName('carol'),
    {
      scene: WITH_CAROL,
    },
  ),
  opening('message 1 is sent back to its sender', ['session/envelope'], (b, { leg }, stage) => {
    const back = stage.relay.legs.find(({ way }) => way !== leg.way)!
    back.accept()
    back.inject(b)
    return []
  }),
  opening('message 1 is held', ['session/timeout'], () => [], { passes: STEP_MS }),
  answer("the relay's ephemeral key in message 2", FORGED, (b) => [
    put(b, ANSWER.ephemeral, stranger()),
  ]),
  answer('an ephemeral key of zeros in message 2', ['noise/point'], (b) => [
    put(b, ANSWER.ephemeral, new Uint8Array(32)),
  ]),
  answer('a bit of the encapsulated key turned', FORGED, (b) => [flipped(b, ANSWER.kem + 500)]),
  answer('a bit of the passport in message 2 turned', FORGED, (b) => [flipped(b, ANSWER.payload)]),
  answer('a bit of the group turned', FORGED, (b) => [flipped(b, -17)]),
  answer('the relay answers as the peer', FORGED, (b) => [
    concat(b.subarray(0, 4), stranger(), fast.randomBytes(b.length - 36)),
  ]),
  answer('message 2 is held', ['session/timeout'], () => [], { passes: STEP_MS }),
  answer('message 2 is cut, and the carrier ends', ['session/unanswered'], (b, { leg }) => {
    leg.inject(b.subarray(0, 700))
    leg.end()
    return []
  }),
  answer('the carrier is reset in place of message 2', ['session/unanswered'], (_, { leg }) => {
    leg.reset(RESET.refused)
    return []
  }),
  {
    name: 'the answers of two sessions change places',
    layer: 'handshake',
    says: FORGED,
    scene: TWO,
    attack: crossed(ENVELOPE.answer),
  },
  {
    name: 'the records of two sessions change places',
    layer: 'record',
    says: ['session/forged'],
    scene: TWO,
    attack: crossed(ENVELOPE.data),
  },
  {
    name: 'the answer of an earlier session',
    layer: 'handshake',
    says: FORGED,
    scene: {
      async act(stage) {
        const one = await stage.open()
        await stage.say(one.session)
        const two = await stage.open()
        await stage.say(two.session)
      },
    },
    attack: ({ relay }) => {
      let old: Uint8Array | undefined
      relay.hooks.envelope = ({ type, bytes }) => {
        if (type !== ENVELOPE.answer) return undefined
        if (old) return relay.lied([old])
        old = bytes.slice()
        return undefined
      }
    },
  },
  {
    name: 'the first record of Alice is held',
    layer: 'handshake',
    says: ['session/timeout'],
    passes: STEP_MS,
    attack: (stage) => {
      stage.relay.hooks.envelope = ({ type, way }) =>
        type === ENVELOPE.ready && way === 'forth' ? stage.relay.lied([]) : undefined
    },
    holds: ({ sessionsOfBob }) => assert.is(sessionsOfBob.length, 0),
  },
  {
    name: 'message 1 is played again by somebody else',
    layer: 'handshake',
    says: ['session/timeout'],
    passes: STEP_MS,
    attack: replayed('opening'),
    holds: once,
  },
  {
    name: 'all that Alice said is played again by somebody else',
    layer: 'handshake',
    says: ['session/lost', 'session/forged'],
    attack: replayed('all'),
    holds: once,
  },
]
