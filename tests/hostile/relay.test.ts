/**
 * A relay that lies, driven by tables of attacks. Each row is played without its attack too, and the
 * play itself is tried with rows that must not pass.
 */
// seconds: 300
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { EMPTY, utf8 } from '../../core/bytes.ts'
import { ADMISSION } from './rows_admission.ts'
import { HANDSHAKE } from './rows_handshake.ts'
import { MESSAGES } from './rows_messages.ts'
import { NAMES, PASSPORTS } from './rows_names.ts'
import { PAIRING } from './rows_pairing.ts'
import { PEERS } from './rows_peers.ts'
import { RECORDS } from './rows_records.ts'
import { RESUMPTION } from './rows_resume.ts'
import { SIZES } from './rows_sizes.ts'
import { NETWORK } from './rows_network.ts'
import { TUNNEL } from './rows_tunnel.ts'
import { Stage } from './stage.ts'
import { MESSAGE, play } from './table.ts'
import type { Row } from './table.ts'

const ROWS_MIN = 30
const TABLES = {
  ADMISSION,
  PASSPORTS,
  NAMES,
  HANDSHAKE,
  RECORDS,
  RESUMPTION,
  PAIRING,
  PEERS,
  MESSAGES,
  SIZES,
  TUNNEL,
  NETWORK,
}

/** Part of a group's name and a row's, to play those alone. */
const only = process.env['ROW'] ?? ''

for (const [group, rows] of Object.entries(TABLES)) {
  const test = suite(`hostile relay, ${group.toLowerCase()}`)
  for (const row of rows) {
    if (`${group} ${row.name}`.includes(only)) test(row.name, () => play(row))
  }
  test.run()
}

const harness = suite('hostile relay, the play itself')

async function failure(row: Partial<Row>): Promise<string> {
  const whole = { name: 'a try', layer: 'none', says: ['dial/unknown'], attack() {}, ...row }
  try {
    await play(whole)
  } catch (error) {
    return (error as Error).message
  }
  return 'passed'
}

/** Nobody for a name, as a lie that is not counted. */
const uncounted: Row['attack'] = ({ relay }) => {
  relay.hooks.reply = (reply, { request }) =>
    request['do'] === 'resolve' ? { ...reply, agents: [] } : undefined
}

harness('there are enough rows, each with a name of its own', () => {
  const rows = Object.values(TABLES).flat()
  assert.ok(rows.length >= ROWS_MIN)
  assert.is(new Set(rows.map(({ layer, name }) => `${layer} ${name}`)).size, rows.length)
})

harness('an attack that is not carried out fails', async () => {
  assert.match(await failure({}), /was not said/)
  assert.match(await failure({ attack: uncounted }), /0 lies were told/)
})

harness('a row that fails without its attack fails', async () => {
  const act = (): Promise<void> => Promise.reject(new Error('it never worked'))
  assert.match(await failure({ scene: { act }, attack: uncounted }), /it never worked/)
})

harness('words in clear are found', async () => {
  const act = async (stage: Stage): Promise<void> => {
    await MESSAGE.act(stage)
    await stage.actor('alice').presence.agent.uplink.request({ do: 'resolve', name: stage.marker })
      .catch(() => {})
  }
  assert.match(await failure({ scene: { act }, attack: uncounted }), /eagle/)
})

harness('what was not sent, not so, or twice, is found', async () => {
  const stage = await Stage.open()
  try {
    const got = (id: string, words: string, isEnded: boolean): void =>
      void stage.arrived.push({ who: 'bob', id, bytes: utf8(words), isEnded })
    const untrue = (): string => {
      const found = stage.untrue() ?? 'all true'
      stage.arrived.splice(0)
      return found
    }
    stage.sent.set('1', utf8('a message'))
    got('1', 'a mess', false)
    assert.is(untrue(), 'all true')
    got('1', 'a mess', true)
    assert.match(untrue(), /for a whole one/)
    got('1', 'a mass', false)
    assert.match(untrue(), /other bytes/)
    got('2', 'a message', true)
    assert.match(untrue(), /nobody sent/)
    got('1', 'a message', true)
    got('1', 'a message', true)
    assert.match(untrue(), /twice/)
    stage.arrived.push({ who: 'bob', id: '2', bytes: EMPTY, isEnded: false })
    assert.is(untrue(), 'all true')
  } finally {
    await stage.close()
  }
})

harness.run()
