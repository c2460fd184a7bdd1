/** Lies about the relay itself, before it has let anybody in. docs/protocol.md §3. */
import { encodeFrame, FRAME } from '../../core/frame.ts'
import { makeStar } from '../support/star.ts'
import type { Star } from '../support/star.ts'
import { flipped } from './relay.ts'
import { MESSAGE } from './table.ts'
import type { Row, Scene } from './table.ts'

/** How long an agent tries to reach a relay that lets it wait. */
const READY_MS = 31_000

/** Bob is there; Alice comes and speaks with him. */
const COMES: Scene = {
  async set(stage) {
    await stage.enter('bob')
  },
  async act(stage) {
    const bob = stage.actor('bob')
    const alice = await stage.enter('alice')
    await stage.introduce(alice, bob)
    stage.serveEcho(bob)
    await MESSAGE.act(stage)
  },
}

/** Links to the star of an agent lead to another relay. */
function elsewhere(
  name: string,
  says: string,
  { flags, to, scene }: { flags: Record<string, string>; to: 'alice' | 'bob'; scene?: Scene },
): Row {
  let other: Star
  return {
    name,
    layer: 'admission',
    says: [says],
    ...(scene ? { scene } : {}),
    before: async () => void (other = await makeStar(flags)),
    attack: (stage) => {
      const bob = stage.actor('bob').key
      // A link of Alice to Bob's star is a visit.
      stage.relay.hooks.star = ({ target }) =>
        (target === bob) === (to === 'bob') ? stage.relay.lied(other) : undefined
    },
    holds: () => other.close(),
  }
}

/** Something else in place of what the relay says to Alice during admission. */
function saying(
  name: string,
  { says, type, lie, ...more }:
    & {
      says: string
      type: 'challenge' | 'welcome'
      lie: (payload: Uint8Array) => Uint8Array | undefined
    }
    & Omit<Partial<Row>, 'says'>,
): Row {
  return {
    name,
    layer: 'admission',
    says: [says],
    scene: COMES,
    attack: ({ relay }) => {
      relay.hooks.frame = (frame, { way }) => {
        if (way !== 'down' || frame.type !== FRAME[type]) return undefined
        const other = lie(frame.payload.slice())
        return relay.lied(other ? [encodeFrame(type, 0, other)] : [])
      }
    },
    ...more,
  }
}

const SAME = { domain: 'relay.test', names: 'localhost' }

export const ADMISSION: Row[] = [
  elsewhere('a visit link to a relay of another identity', 'admit/relay-changed', {
    flags: SAME,
    to: 'bob',
  }),
  elsewhere('a visit link to a relay of another name', 'admit/name', {
    flags: { domain: 'relay.other' },
    to: 'bob',
  }),
  elsewhere('a relay of another identity than the one that is pinned', 'trust/changed', {
    flags: SAME,
    to: 'alice',
    scene: COMES,
  }),
  saying('a challenge with a bit of its nonce turned', {
    says: 'admit/relay-forged',
    type: 'challenge',
    lie: (payload) => flipped(payload, 40),
  }),
  saying('a challenge with another certificate in it', {
    says: 'admit/relay-forged',
    type: 'challenge',
    lie: (payload) => flipped(payload, -65, 1),
  }),
  {
    name: 'a challenge that was made for another link',
    layer: 'admission',
    says: ['admit/relay-forged'],
    attack: ({ relay }) => {
      // Alice's links to Bob: she comes back after the first is lost, and gets the old challenge.
      let old: Uint8Array | undefined
      relay.hooks.frame = ({ type, payload }, { way, link }) => {
        if (way !== 'down' || type !== FRAME.challenge || link.role !== 'visit') return undefined
        if (old) return relay.lied([encodeFrame('challenge', 0, old)])
        old = payload.slice()
        return undefined
      }
    },
    scene: {
      async act(stage) {
        const carol = await stage.enter('carol')
        stage.serveEcho(carol)
        await stage.allow(carol, { peer: stage.actor('alice').key, services: ['a2a'] })
        for (const name of ['bob', 'carol']) {
          const { session } = await stage.open(name)
          await stage.say(session)
        }
      },
    },
  },
  saying('a welcome with a bit turned', {
    says: 'admit/forged',
    type: 'welcome',
    lie: (payload) => flipped(payload, 3),
  }),
  saying('no challenge at all', {
    says: 'uplink/timeout',
    type: 'challenge',
    lie: () => undefined,
    passes: READY_MS,
  }),
]
