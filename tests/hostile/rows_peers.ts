/**
 * What only people, or signatures of peers, can find out: a relay that stands in the middle of a first
 * contact, and a peer that signs another transcript than the one that passed.
 */
import * as assert from 'uvu/assert'
import { Verification } from '../../agent/verification.ts'
import { text } from '../../core/bytes.ts'
import type { Crypto } from '../../core/crypto.ts'
import { ENVELOPE } from '../../core/envelope.ts'
import { decodeVisit, encodeFrame, encodeVisit, FRAME } from '../../core/frame.ts'
import type { Stream } from '../../core/mux.ts'
import type { Session } from '../../core/session.ts'
import { fast } from '../support/crypto.ts'
import { flipped } from './relay.ts'
import { PEOPLE_DIFFER } from './stage.ts'
import type { Stage } from './stage.ts'
import type { Row, Scene } from './table.ts'

const VERIFY = 'verify'
const CHECKPOINT_LABEL = 'sotto checkpoint v1'
const RECORD_LABEL = 'sotto record v1'
/** A checkpoint comes so long after the first record without one. */
const CHECKPOINT_MS = 31_000

const at = (stage: Stage) => ({ clock: stage.clock, crypto: fast })

/** What people see on both machines, and their answers. */
const verifications = new WeakMap<Stage, { bob?: Verification; alice?: Verification }>()

/** Alice and Bob meet for the first time and compare seven emoji by telephone. */
const FIRST: Scene = {
  async set(stage) {
    const both: { bob?: Verification; alice?: Verification } = {}
    verifications.set(stage, both)
    const bob = await stage.enter('bob')
    const alice = await stage.enter('alice')
    await stage.allow(bob, { peer: alice.key, services: ['a2a'] })
    bob.presence.peers.serve(VERIFY, {
      needs: 'a2a',
      session: (session, { key }) => ({
        ...stage.events('bob'),
        onOpen: (stream) => {
          stream.accept()
          both.bob = new Verification(at(stage), { session, stream, key })
        },
      }),
    })
  },
  async act(stage) {
    const both = verifications.get(stage)!
    const alice = stage.actor('alice')
    const { session, peer } = await alice.presence.peers.open('bob', VERIFY, stage.events('alice'))
    const stream = session.open()
    both.alice = new Verification(at(stage), { session, stream, key: peer.key })
    const seen = await both.alice.emoji
    while (!both.bob) await stage.turn()
    const same = JSON.stringify(seen) === JSON.stringify(await both.bob.emoji)
    if (!same) stage.hear('alice', 'telephone', PEOPLE_DIFFER)
    both.alice.answer(same)
    both.bob.answer(same)
    const said = [await both.alice.outcome(), await both.bob.outcome()]
    assert.equal(said, [same, same])
    if (same) await alice.joining.profile.knownAgents().verify('bob', peer.key)
  },
  went(stage) {
    assert.match(stage.actor('alice').told.join(), stage.actor('bob').print)
  },
}

/** The relay gives its own agent for Bob, and its own agent calls Bob. */
async function mallory(
  stage: Stage,
  between: (near: { session: Session; stream: Stream }, far: Session, stage: Stage) => void,
): Promise<void> {
  const [alice, bob] = [stage.actor('alice'), stage.actor('bob')]
  const own = await stage.enter('mallory')
  stage.liars.add('mallory')
  await stage.pin(own, 'bob', bob.key)
  // Bob was told the same of Alice.
  await stage.allow(bob, { peer: own.key, services: ['a2a'] })
  await stage.allow(own, { peer: alice.key, services: ['a2a'] })
  await stage.pin(own, 'alice', alice.key)
  own.presence.peers.serve(VERIFY, {
    needs: 'a2a',
    session: (session) => ({
      closed() {},
      onOpen: (stream) => {
        stream.accept()
        void own.presence.peers.open('bob', VERIFY).then((far) =>
          between({ session, stream }, far.session, stage)
        )
      },
    }),
  })
  const passport = Buffer.from(own.presence.agent.passport!.bytes).toString('base64')
  stage.relay.hooks = {
    reply: (reply, { request, link }) =>
      request['do'] === 'resolve' && link.agent === alice.key
        ? stage.relay.lied({ ...reply, agents: [{ key: own.key, passport, statements: [] }] })
        : undefined,
    frame: ({ type, id, payload }, { way, link }) =>
      way === 'up' && type === FRAME.open && link.agent === alice.key
        ? [encodeFrame('open', id, encodeVisit({ ...decodeVisit(payload), endpoint: 'mallory' }))]
        : undefined,
  }
}

function middle(
  name: string,
  between: Parameters<typeof mallory>[1],
  more: Partial<Row> = {},
): Row {
  return {
    name,
    layer: 'people',
    says: [PEOPLE_DIFFER],
    scene: FIRST,
    before: (stage) => mallory(stage, between),
    attack: () => {},
    async holds(stage) {
      const alice = stage.actor('alice')
      // She was told whom she met, and it was not verified.
      assert.match(alice.told.join(), stage.actor('mallory').print)
      const pins = await alice.joining.profile.knownAgents().find('bob')
      assert.equal(pins.map(({ verified }) => verified), [false])
    },
    ...more,
  }
}

/** Everything that comes on one stream goes on the other. */
function passOn(from: Stream, to: Stream, change = (bytes: Uint8Array): Uint8Array => bytes): void {
  from.handle({
    data: (bytes) => void to.write(change(bytes)),
    end: () => to.end(),
    closed() {},
  })
}

/** A crypto that does as `lie` says once somebody is a liar. */
function lyingCrypto(
  lie: (honest: Crypto, stage: Stage) => Partial<Crypto>,
): NonNullable<Row['bob']> {
  return {
    crypto: (honest, stage) => {
      const own = lie(honest, stage)
      const pick = <K extends keyof Crypto>(name: K): Crypto[K] =>
        (stage.liars.has('bob') ? own[name] ?? honest[name] : honest[name]) as Crypto[K]
      return {
        ...honest,
        ed25519Sign: (...args) => pick('ed25519Sign')(...args),
        sha256: (...args) => pick('sha256')(...args),
        hmacSha256: (...args) => pick('hmacSha256')(...args),
      }
    },
  }
}

const begins = (bytes: Uint8Array, label: string): boolean =>
  text(bytes.slice(0, label.length).map((byte) => byte & 0x7f)) === label

/** A session that lasts until a checkpoint has passed, and is closed in good order. */
const LONG: Scene = {
  async act(stage) {
    let ends = 0
    const { session } = await stage.actor('alice').presence.peers.open('bob', 'echo', {
      ...stage.events('alice'),
      closed: ({ error }) => {
        ends++
        stage.hear('alice', 'end', error)
      },
    })
    await stage.say(session)
    await stage.pass(CHECKPOINT_MS, () => session.state === 'closed')
    await stage.say(session)
    session.close()
    while (ends === 0) await stage.turn()
  },
}

function audit(name: string, says: string[], more: Partial<Row>): Row {
  return {
    name,
    layer: 'transcript',
    says,
    scene: LONG,
    attack: ({ liars }) => void liars.add('bob'),
    ...more,
  }
}

export const PEERS: Row[] = [
  middle('the relay stands in the middle of a first contact', ({ session, stream }, far, stage) => {
    for (const [one, on] of [[session, stream], [far, far.open()]] as const) {
      const own = new Verification(at(stage), {
        session: one,
        stream: on,
        key: '',
      })
      own.emoji.then(() => own.answer(true), () => {})
    }
  }),
  middle('and passes on every word of the comparison', ({ stream }, far) => {
    const other = far.open()
    passOn(stream, other)
    passOn(other, stream)
  }),
  middle('and shows another nonce than it committed to', ({ stream }, far) => {
    const other = far.open()
    let came = 0
    passOn(stream, other, (bytes) => came++ === 1 ? flipped(bytes, 0) : bytes)
    passOn(other, stream)
  }, { says: ['sas/commitment'] }),
  audit('a checkpoint is changed on its way', ['session/forged'], {
    attack: ({ relay }) => {
      let isDone = false
      relay.hooks.envelope = ({ type, bytes }) => {
        if (type !== ENVELOPE.checkpoint || isDone) return undefined
        isDone = true
        return relay.lied([flipped(bytes, 60)])
      }
    },
  }),
  audit('a checkpoint comes twice', ['session/forged'], {
    attack: ({ relay }) => {
      let isDone = false
      relay.hooks.envelope = ({ type, bytes }) => {
        if (type !== ENVELOPE.checkpoint || isDone) return undefined
        isDone = true
        return relay.lied([bytes, bytes])
      }
    },
  }),
  audit('checkpoints are dropped', ['session/forged'], {
    attack: ({ relay }) => {
      relay.hooks.envelope = ({ type }) => type === ENVELOPE.checkpoint ? relay.lied([]) : undefined
    },
  }),
  audit('a peer signs its checkpoints with another key', ['transcript/forged'], {
    bob: lyingCrypto((honest, { relay }) => ({
      ed25519Sign: (seed, message) =>
        begins(message, CHECKPOINT_LABEL)
          ? relay.lied(honest.ed25519Sign(fast.randomBytes(32), message))
          : honest.ed25519Sign(seed, message),
    })),
  }),
  audit('a peer signs another session than this', ['transcript/forged'], {
    bob: lyingCrypto((honest, { relay }) => ({
      ed25519Sign: (seed, message) =>
        begins(message, CHECKPOINT_LABEL)
          ? relay.lied(honest.ed25519Sign(seed, flipped(message, CHECKPOINT_LABEL.length + 1)))
          : honest.ed25519Sign(seed, message),
    })),
  }),
  audit('a peer signs chains of other records', ['transcript/mismatch'], {
    bob: lyingCrypto((honest, { relay }) => {
      let records = 0
      return {
        sha256: (...parts) => {
          const hash = honest.sha256(...parts)
          if (!begins(parts[0]!, RECORD_LABEL) || ++records !== 3) return hash
          return relay.lied(flipped(hash, 0))
        },
      }
    }),
  }),
]
