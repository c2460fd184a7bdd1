/** Lies about how a session comes back on another carrier: whose it is, how far it got, and when. */
import * as assert from 'uvu/assert'
import { concat } from '../../core/bytes.ts'
import { ENVELOPE } from '../../core/envelope.ts'
import { RESET } from '../../core/frame.ts'
import type { Session } from '../../core/session.ts'
import { flipped } from './relay.ts'
import type { CarrierEnvelope } from './relay.ts'
import type { Stage } from './stage.ts'
import type { Row, Scene } from './table.ts'

const STEP_MS = 5500
/** Where things stand in the envelopes. */
const RESUME = { session: 4, nonce: 20, received: 59, tag: 60 }
const RESUMED = { nonce: 4, received: 43, tag: 44 }
const PROCEED = { tag: 4 }

/** Both ends find their carriers reset. */
function cut({ relay }: Stage): void {
  for (const leg of relay.legs.filter(({ isCut }) => !isCut)) {
    leg.isCut = true
    leg.reset(RESET.gone)
  }
}

/** A session that loses its carrier between two messages, and amid a third. */
const CUT: Scene = {
  async act(stage) {
    const { session } = await stage.open()
    await stage.say(session)
    cut(stage)
    await stage.say(session)
    const third = stage.say(session, 1_000_000)
    await stage.turn()
    cut(stage)
    await third
  },
}

/** Two sessions that lose their carriers at once. */
const TWO: Scene = {
  async act(stage) {
    const sessions: Session[] = []
    for (let i = 0; i < 2; i++) sessions.push((await stage.open()).session)
    await Promise.all(sessions.map((one) => stage.say(one)))
    cut(stage)
    await Promise.all(sessions.map((one) => stage.say(one)))
  },
}

function first(type: number, lie: (bytes: Uint8Array) => Uint8Array[]): Row['attack'] {
  return ({ relay }) => {
    let isDone = false
    relay.hooks.envelope = (envelope) => {
      if (isDone || envelope.type !== type) return undefined
      isDone = true
      return relay.lied(lie(envelope.bytes))
    }
  }
}

function row(name: string, attack: Row['attack'], more: Partial<Row> = {}): Row {
  return { name, layer: 'resumption', says: ['session/resume'], scene: CUT, attack, ...more }
}

const turned = (name: string, type: number, at: number, more: Partial<Row> = {}): Row =>
  row(name, first(type, (bytes) => [flipped(bytes, at, 1)]), more)

/** What was said to resume is said again by somebody else. */
function replayed(types: number[]): Row['attack'] {
  return (stage) => {
    const { relay } = stage
    const kept: Uint8Array[] = []
    relay.hooks.envelope = ({ type, bytes }) => {
      if (types.includes(type) && kept.length < types.length) kept.push(bytes.slice())
      return undefined
    }
    return async () => {
      while (kept.length < types.length || !stage.complete || stage.sent.size < 6) {
        await stage.turn()
      }
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

export const RESUMPTION: Row[] = [
  turned('another session is named', ENVELOPE.resume, RESUME.session, {
    says: ['session/unknown'],
  }),
  turned('another nonce of the initiator', ENVELOPE.resume, RESUME.nonce),
  turned('another count of the initiator', ENVELOPE.resume, RESUME.received),
  turned('another tag of the initiator', ENVELOPE.resume, RESUME.tag),
  turned('another nonce of the responder', ENVELOPE.resumed, RESUMED.nonce),
  turned('another count of the responder', ENVELOPE.resumed, RESUMED.received),
  turned('another tag of the responder', ENVELOPE.resumed, RESUMED.tag),
  turned('another last word', ENVELOPE.proceed, PROCEED.tag),
  row('a resumption is begun again by somebody else', replayed([ENVELOPE.resume]), {
    says: ['session/timeout'],
    passes: STEP_MS,
    holds: ({ sessionsOfBob }) => assert.is(sessionsOfBob.length, 1),
  }),
  row(
    'a whole resumption is played again by somebody else',
    replayed([ENVELOPE.resume, ENVELOPE.proceed]),
    { holds: ({ sessionsOfBob }) => assert.is(sessionsOfBob.length, 1) },
  ),
  row(
    'one session is resumed as another',
    ({ relay }) => {
      const seen: Uint8Array[] = []
      relay.hooks.envelope = ({ type, bytes }) => {
        if (type !== ENVELOPE.resume) return undefined
        seen.push(bytes.slice())
        if (seen.length !== 2) return undefined
        // The second asks for the first one's session.
        return relay.lied([concat(
          bytes.subarray(0, 4),
          seen[0]!.subarray(4, 20),
          bytes.subarray(20),
        )])
      }
    },
    { scene: TWO },
  ),
  row(
    'the answers to two resumptions change places',
    ({ relay }) => {
      let held: CarrierEnvelope | undefined
      let isDone = false
      relay.hooks.envelope = (envelope) => {
        if (envelope.type !== ENVELOPE.resumed || isDone) return undefined
        if (!held) {
          held = { ...envelope, bytes: envelope.bytes.slice() }
          return []
        }
        isDone = true
        held.leg.inject(envelope.bytes)
        return relay.lied([held.bytes])
      }
    },
    { scene: TWO },
  ),
  row(
    'records of the old carrier come again on the new one',
    ({ relay }) => {
      let old: Uint8Array | undefined
      relay.hooks.envelope = ({ type, way, carrier, bytes }) => {
        if (way !== 'forth') return undefined
        if (type === ENVELOPE.data && carrier === 0) old ??= bytes.slice()
        if (type < ENVELOPE.ready || carrier === 0 || !old) return undefined
        const again = old
        old = undefined
        return relay.lied([again, bytes])
      }
    },
    { says: ['session/forged'] },
  ),
  row(
    'the answer to a resumption is held',
    first(ENVELOPE.resumed, () => []),
    { says: ['session/timeout'], passes: STEP_MS },
  ),
]
