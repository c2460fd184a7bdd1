/**
 * Lies about messages as people send them: to whoever has a label, and once. The sender sends again what
 * may not have arrived, and a relay can make that so; no message may be taken twice, or by somebody else.
 */
import * as assert from 'uvu/assert'
import { Courier } from '../../agent/courier.ts'
import { Directory } from '../../agent/directory.ts'
import { Inbox } from '../../agent/inbox.ts'
import { concat, EMPTY, utf8 } from '../../core/bytes.ts'
import { ENVELOPE } from '../../core/envelope.ts'
import { RESET } from '../../core/frame.ts'
import { fast } from '../support/crypto.ts'
import type { Stage } from './stage.ts'
import type { Row, Scene } from './table.ts'

/** A session that no carrier comes for is lost; docs/protocol.md §10. */
const LOST_MS = 61_000
const TIMEOUT_MS = 30_000

function directoryOf(stage: Stage): Directory {
  const { presence, joining, key } = stage.actor('alice')
  return new Directory({
    crypto: fast,
    uplink: presence.agent.uplink,
    known: joining.profile.knownAgents(),
    trust: presence.trust,
    own: key,
  })
}

function listen(stage: Stage, who: string): void {
  const { presence } = stage.actor(who)
  new Inbox({
    clock: stage.clock,
    peers: presence.peers,
    needs: 'a2a',
    async take(incoming) {
      let bytes: Uint8Array = EMPTY
      for await (const chunk of incoming.body()) bytes = concat(bytes, chunk)
      stage.arrived.push({ who, id: incoming.request.id, bytes, isEnded: true })
      await incoming.output(utf8(`${who} has read ${stage.marker}`))
      return { result: { status: 'delivered' }, taken: true }
    },
  })
}

/** Alice sends Bob one message. */
function sending(timeoutMs: number, to: (stage: Stage) => Promise<Parameters<Courier['send']>[0]>) {
  return {
    async set(stage: Stage): Promise<void> {
      const bob = await stage.enter('bob')
      const alice = await stage.enter('alice')
      await stage.introduce(alice, bob)
      await stage.enter('carol')
      listen(stage, 'bob')
      listen(stage, 'carol')
    },
    async act(stage: Stage): Promise<void> {
      const { presence, joining } = stage.actor('alice')
      const courier = new Courier({
        clock: stage.clock,
        crypto: fast,
        peers: presence.peers,
        directory: directoryOf(stage),
        known: joining.profile.knownAgents(),
      })
      const id = courier.newId()
      const message = utf8(`${stage.marker} is what Alice says`)
      stage.sent.set(id, message)
      const parcel = { id, bytes: message.length, body: () => [message], repeatable: true }
      const sink = { output() {}, errors() {} }
      const delivery = await courier.send(await to(stage), parcel, { sink, timeoutMs })
      assert.is(delivery.status, 'delivered')
      assert.is(delivery.peer.key, stage.actor('bob').key)
      if (delivery.again) stage.hear('alice', 'delivery', 'a2a/again')
    },
    went(stage: Stage): void {
      assert.ok(stage.complete)
    },
  } satisfies Scene
}

const ONCE = sending(200_000, () => Promise.resolve('bob'))
const IN_TIME = sending(TIMEOUT_MS, () => Promise.resolve('bob'))
/** To the one that the list calls Bob. */
const LISTED = sending(200_000, async (stage) => {
  const { agents } = (await directoryOf(stage).list())!
  return agents.find(({ names }) => names.some(({ name }) => name === 'bob'))!
})

function untold(who: string): Row['holds'] {
  return (stage) => assert.equal(stage.arrived.filter((one) => one.who === who), [])
}

export const MESSAGES: Row[] = [
  {
    name: 'a message is taken, and its sender kept from knowing: the second try is not taken again',
    layer: 'a2a',
    says: ['a2a/again'],
    passes: LOST_MS,
    scene: ONCE,
    attack: ({ relay }) => {
      // Everything that Bob answers in the first session is swallowed, and it is never resumed.
      let isOn = true
      relay.hooks.envelope = ({ type, way, carrier }) => {
        if (type === ENVELOPE.resume) return relay.lied([])
        if (!isOn || way !== 'back' || carrier > 0 || type !== ENVELOPE.data) return undefined
        isOn = false
        for (const each of relay.legs) each.reset(RESET.gone)
        return relay.lied([])
      }
    },
    holds: ({ arrived }) => assert.is(arrived.length, 1),
  },
  {
    name: 'the result of a message is held for ever',
    layer: 'a2a',
    // Which of the two depends on where the sender was in its tries when the time ran out.
    says: ['a2a/timeout', 'a2a/broken'],
    passes: TIMEOUT_MS + 1000,
    scene: IN_TIME,
    attack: ({ relay }) => {
      relay.hooks.envelope = ({ type, way }) =>
        way === 'back' && type === ENVELOPE.data ? relay.lied([]) : undefined
    },
  },
  {
    name: 'a list in which Carol has the name of Bob',
    layer: 'list',
    says: ['trust/unknown'],
    scene: LISTED,
    attack: (stage) => {
      stage.relay.hooks.reply = (reply, { request }) => {
        if (request['do'] !== 'agents') return undefined
        const rows = reply['agents'] as Record<string, unknown>[]
        const named = (key: string) => rows.find((row) => row['key'] === stage.actor(key).key)!
        const names = named('bob')['names']
        return stage.relay.lied({ ...reply, agents: [{ ...named('carol'), names }] })
      }
    },
    holds: untold('carol'),
  },
  {
    name: 'a list without end',
    layer: 'list',
    says: ['directory/answer'],
    scene: LISTED,
    attack: ({ relay }) => {
      let page = 0
      relay.hooks.reply = (reply, { request }) => {
        if (request['do'] !== 'agents') return undefined
        const [row] = reply['agents'] as Record<string, unknown>[]
        const agents = Array.from({ length: 200 }, () => row)
        return relay.lied({ ...reply, agents, next: `page-${++page}` })
      }
    },
  },
  {
    name: 'a list that is none',
    layer: 'list',
    says: ['directory/answer'],
    scene: LISTED,
    attack: ({ relay }) => {
      relay.hooks.reply = (reply, { request }) =>
        request['do'] === 'agents' ? relay.lied({ ...reply, agents: { bob: true } }) : undefined
    },
  },
]
