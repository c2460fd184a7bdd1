/**
 * Lies while two agents pair by a code: guesses, strangers in the room, and every field of every message.
 * docs/protocol.md §13.
 */
import * as assert from 'uvu/assert'
import { enterRoom, PairRoom } from '../../agent/pairing.ts'
import { concat, fromHex, utf8 } from '../../core/bytes.ts'
import { makeWords, parseCode } from '../../core/code.ts'
import {
  decodeJson,
  decodeVisit,
  encodeFrame,
  encodeJson,
  encodeVisit,
  FRAME,
} from '../../core/frame.ts'
import { formatKey, generateIdentity, parseKey } from '../../core/key.ts'
import { PAIR, PairingError, PairJoiner, PairMaker } from '../../core/pairing.ts'
import type { PairedPeer, PairingOptions } from '../../core/pairing.ts'
import type { Stream } from '../../core/mux.ts'
import { encodePassport } from '../../core/passport.ts'
import { fast } from '../support/crypto.ts'
import { flipped } from './relay.ts'
import type { CarrierEnvelope } from './relay.ts'
import type { Actor, Stage } from './stage.ts'
import type { Row, Scene } from './table.ts'

/** Each step may take 10 s, and the last bytes 2 s more; agent/pairing.ts. */
const STEP_MS = 13_000
/** Where things stand in the envelopes. */
const GREETING = { version: 5, nonce: 6, identity: 22 }
const SHARE_A = { nonce: 4, identity: 20, element: 52 }
const SHARE_B = { element: 4, tag: 36 }
const TAG_A = 4
/** Another element of the group: the generator. RFC 9496 §A.1. */
const ELEMENT = fromHex('e2f2ae0a6abc4e71a884a961c500515f58e30b6aa582dd8db6a65945e08d2d76')

interface Outcome {
  room?: PairRoom
  words?: string
  alice?: PairedPeer
  bob?: PairedPeer
}

const outcomes = new WeakMap<Stage, Outcome>()

function ports({ presence, joining, test, name }: Actor, { clock }: Stage) {
  return { clock, crypto: test.world.crypto, presence, joining, name }
}

const CODE: Scene = {
  async set(stage) {
    const outcome: Outcome = {}
    outcomes.set(stage, outcome)
    await stage.enter('bob', { onPair: (stream) => outcome.room?.accept(stream) })
    await stage.enter('alice')
  },
  async act(stage) {
    const outcome = outcomes.get(stage)!
    const room = outcome.room = await PairRoom.open(ports(stage.actor('bob'), stage))
    const code = parseCode(room.code)
    outcome.words = code.words
    const made = room.paired.then((peer) => void (outcome.bob = peer), (error) => {
      stage.hear('bob', 'pair', error)
    })
    const entered = enterRoom(ports(stage.actor('alice'), stage), code).then(
      (peer) => void (outcome.alice = peer),
      (error) => stage.hear('alice', 'pair', error),
    )
    await Promise.all([made, entered])
  },
  went(stage) {
    const { alice, bob } = outcomes.get(stage)!
    assert.is(formatKey(alice!.identity), stage.actor('bob').key)
    assert.is(formatKey(bob!.identity), stage.actor('alice').key)
    secret(stage)
  },
}

/** Whoever paired did so with the true one, and the words did not cross the relay. */
function secret(stage: Stage): void {
  const { words, alice, bob } = outcomes.get(stage)!
  for (const word of [words!, words!.replaceAll('-', ' ')]) assert.not(stage.relay.saw(utf8(word)))
  if (alice) assert.is(formatKey(alice.identity), stage.actor('bob').key)
  if (bob) assert.is(formatKey(bob.identity), stage.actor('alice').key)
}

function nobody(stage: Stage): void {
  secret(stage)
  const { alice, bob } = outcomes.get(stage)!
  assert.equal([alice, bob], [undefined, undefined], 'nobody has paired')
}

type Lie = (bytes: Uint8Array, of: CarrierEnvelope, stage: Stage) => Uint8Array[]

function lying(
  name: string,
  type: number,
  { says = ['pair/guessed'], lie, way, ...more }:
    & { says?: string[]; lie: Lie; way?: CarrierEnvelope['way'] }
    & Partial<Row>,
): Row {
  return {
    name,
    layer: 'pairing',
    says,
    scene: CODE,
    holds: nobody,
    attack: (stage) => {
      let isDone = false
      stage.relay.hooks.envelope = (envelope) => {
        const other = envelope.type !== type || (way !== undefined && envelope.way !== way)
        if (isDone || other) return undefined
        isDone = true
        return stage.relay.lied(lie(envelope.bytes, envelope, stage))
      }
    },
    ...more,
  }
}

function put(bytes: Uint8Array, at: number, other: Uint8Array): Uint8Array {
  const copy = bytes.slice()
  copy.set(other, at)
  return copy
}

/** Ports of one side of a pairing that the relay runs itself. */
function ownSide(stage: Stage, room: number, words = makeWords(fast)): PairingOptions {
  const identity = generateIdentity(fast)
  const now = stage.clock.now()
  const passport = encodePassport({
    identity: identity.public,
    sequence: 1,
    notBefore: now - 1000,
    notAfter: now + 1_000_000,
    certificates: [],
    names: [],
    ciphers: [],
  }, (message) => fast.ed25519Sign(identity.seed, message))
  const relay = stage.relay.star.relay.identity.public
  return {
    crypto: fast,
    room,
    words,
    relay,
    identity: identity.public,
    passport,
    name: 'mallory',
    now,
  }
}

/** Somebody else goes into Bob's room; Alice is kept out of it meanwhile. */
function entering(into: (stage: Stage, stream: Stream, room: number) => void, times = 1) {
  return (stage: Stage) => {
    const { relay } = stage
    let room = 0
    relay.hooks.reply = (reply, { request }) => {
      if (request['do'] === 'room') room = reply['room'] as number
      return undefined
    }
    relay.hooks.frame = ({ type, payload }, { way }) =>
      way === 'up' && type === FRAME.request && decodeJson(payload)['do'] === 'enter'
        ? []
        : undefined
    return async () => {
      while (room === 0) await stage.turn()
      for (let i = 0; i < times; i++) {
        const home = await relay.stranger({})
        const { key, token } = await home.request({ do: 'enter', room })
        const target = parseKey(String(key))
        const visit = await relay.stranger({ role: 'visit', target, identity: home.identity })
        const stream = visit.mux.open({
          kind: 'pair',
          address: '',
          port: 0,
          endpoint: `${room}`,
          tail: fromHex(String(token)),
        })
        relay.lied(undefined)
        into(stage, stream, room)
      }
    }
  }
}

/** Runs one side over a stream for the relay; what it throws is its own business. */
function drive(stream: Stream, side: PairJoiner | PairMaker): void {
  stream.handle({
    data: (chunk) => {
      try {
        stream.write(side.receive(chunk).send)
      } catch (error) {
        if (error instanceof PairingError && error.send.length > 0) stream.write(error.send)
      }
    },
    end() {},
    closed() {},
  })
  if (side instanceof PairMaker) stream.write(side.start())
}

/** Alice is led into a room of the relay's own, where it plays Bob. */
async function ownRoom(stage: Stage): Promise<void> {
  const { relay } = stage
  const agent = await relay.stranger({})
  const room = (await agent.request({ do: 'room' }))['room'] as number
  agent.onOpen = (stream) => {
    stream.accept()
    const asked = parseCode(outcomes.get(stage)!.room!.code).room
    drive(stream, new PairMaker(ownSide(stage, asked)))
  }
  relay.hooks.frame = ({ type, id, payload }, { way, link }) => {
    if (way !== 'up' || stage.nameOf(link.agent) !== 'alice') return undefined
    if (type === FRAME.request && decodeJson(payload)['do'] === 'enter') {
      return relay.lied([encodeFrame('request', id, encodeJson({ do: 'enter', room }))])
    }
    if (type !== FRAME.open) return undefined
    return [encodeFrame('open', id, encodeVisit({ ...decodeVisit(payload), endpoint: `${room}` }))]
  }
}

export const PAIRING: Row[] = [
  {
    name: 'the relay comes in itself and guesses',
    layer: 'pairing',
    says: ['pair/guessed'],
    scene: CODE,
    holds: nobody,
    attack: entering((stage, stream, room) => drive(stream, new PairJoiner(ownSide(stage, room)))),
  },
  {
    name: 'the relay comes in, looks at the proof and leaves',
    layer: 'pairing',
    says: ['pair/guessed'],
    scene: CODE,
    holds: nobody,
    attack: entering((stage, stream, room) => {
      const joiner = new PairJoiner(ownSide(stage, room))
      let came = 0
      stream.handle({
        data: (chunk) => {
          if (came++ === 0) stream.write(joiner.receive(chunk).send)
          else stream.reset(6)
        },
        end() {},
        closed() {},
      })
    }),
  },
  {
    name: 'three strangers come into the room and leave',
    layer: 'pairing',
    says: ['pair/taken'],
    lies: 3,
    scene: CODE,
    holds: nobody,
    attack: entering((_, stream) => {
      stream.handle({ data: () => stream.reset(6), end() {}, closed() {} })
    }, 3),
  },
  {
    name: "Alice is led into the relay's own room",
    layer: 'pairing',
    says: ['pair/guessed'],
    scene: CODE,
    before: ownRoom,
    attack: () => {},
    holds: nobody,
  },
  {
    name: 'an answer that leads nowhere',
    layer: 'pairing',
    says: ['pair/answer'],
    scene: CODE,
    holds: nobody,
    attack: ({ relay }) => {
      relay.hooks.reply = (reply, { request }) =>
        request['do'] === 'enter' ? relay.lied({ ...reply, token: 'abcd' }) : undefined
    },
  },
  lying('another version', PAIR.greet_b, {
    says: ['pair/version'],
    lie: (b) => [flipped(b, GREETING.version, 8)],
  }),
  lying("another nonce of Bob's", PAIR.greet_b, { lie: (b) => [flipped(b, GREETING.nonce)] }),
  lying("the relay's identity in place of Bob's", PAIR.greet_b, {
    lie: (b) => [put(b, GREETING.identity, generateIdentity(fast).public)],
  }),
  lying("Alice's own identity in place of Bob's", PAIR.greet_b, {
    says: ['pair/reflected'],
    lie: (b, _, stage) => [put(b, GREETING.identity, parseKey(stage.actor('alice').key))],
  }),
  lying("another nonce of Alice's", PAIR.pake_a, { lie: (b) => [flipped(b, SHARE_A.nonce)] }),
  lying("the relay's identity in place of Alice's", PAIR.pake_a, {
    lie: (b) => [put(b, SHARE_A.identity, generateIdentity(fast).public)],
  }),
  lying("the relay's share in place of Alice's", PAIR.pake_a, {
    lie: (b) => [put(b, SHARE_A.element, ELEMENT)],
  }),
  lying('a share that is no element', PAIR.pake_a, {
    says: ['pair/refused'],
    lie: (b) => [put(b, SHARE_A.element, new Uint8Array(32).fill(0xff))],
  }),
  lying('a share that is the neutral element', PAIR.pake_a, {
    says: ['pair/refused'],
    lie: (b) => [put(b, SHARE_A.element, new Uint8Array(32))],
  }),
  (() => {
    let share: Uint8Array | undefined
    return lying("Alice's share sent back to her", PAIR.pake_b, {
      says: ['pake/reflected'],
      attack: ({ relay }) => {
        relay.hooks.envelope = ({ type, bytes }) => {
          if (type === PAIR.pake_a) share = bytes.slice(SHARE_A.element)
          return type === PAIR.pake_b
            ? relay.lied([put(bytes, SHARE_B.element, share!)])
            : undefined
        }
      },
      lie: () => [],
    })
  })(),
  lying("the relay's share in place of Bob's", PAIR.pake_b, {
    lie: (b) => [put(b, SHARE_B.element, ELEMENT)],
  }),
  lying("a bit of Bob's proof turned", PAIR.pake_b, { lie: (b) => [flipped(b, SHARE_B.tag)] }),
  lying("a bit of Alice's proof turned", PAIR.confirm_a, { lie: (b) => [flipped(b, TAG_A)] }),
  lying("Alice's proof dropped", PAIR.confirm_a, { lie: () => [] }),
  lying('the stream cut after the proofs', PAIR.sealed, {
    way: 'forth',
    says: ['pair/truncated'],
    lie: (_, { leg }) => {
      leg.end()
      return []
    },
  }),
  lying("a bit of Alice's sealed passport turned", PAIR.sealed, {
    way: 'forth',
    says: ['pair/forged'],
    lie: (b) => [flipped(b, 40)],
  }),
  lying("a bit of Bob's sealed passport turned", PAIR.sealed, {
    way: 'back',
    says: ['pair/forged'],
    lie: (b) => [flipped(b, 40)],
    // Bob was told the truth and has it.
    holds: secret,
  }),
  (() => {
    let sealed: Uint8Array | undefined
    return lying("Alice's own sealed passport in place of Bob's", PAIR.sealed, {
      says: ['pair/forged'],
      attack: ({ relay }) => {
        relay.hooks.envelope = ({ type, way, bytes }) => {
          if (type !== PAIR.sealed) return undefined
          if (way === 'forth') sealed = bytes.slice()
          return way === 'back' ? relay.lied([sealed!]) : undefined
        }
      },
      lie: () => [],
      holds: secret,
    })
  })(),
  lying('a message of 16 MiB', PAIR.pake_a, {
    says: ['pair/refused'],
    lie: (b) => [concat(Uint8Array.of(PAIR.pake_a, 0xff, 0xff, 0xff), b.subarray(4))],
  }),
  lying('a word of failure that nobody said', PAIR.greet_b, {
    says: ['pair/refused'],
    lie: () => [Uint8Array.of(PAIR.failed, 0, 0, 1, 4)],
  }),
  lying('everything held', PAIR.greet_b, {
    says: ['pair/truncated', 'pair/timeout'],
    passes: STEP_MS,
    lie: () => [],
  }),
]
