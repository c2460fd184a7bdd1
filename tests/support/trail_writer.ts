/**
 * Keeps the trails of sessions, one after the other and two at once, until it is killed; a line on
 * stdout for each session begun.
 *
 *   bun tests/support/trail_writer.ts DIR [RECORDS]
 */
import process from 'node:process'
import { hostFiles } from '../../agent/host/files.ts'
import { Trails } from '../../agent/trails.ts'
import type { Recording } from '../../agent/trails.ts'
import { utf8 } from '../../core/bytes.ts'
import { fast } from './crypto.ts'
import { ALICE, BOB, Pair, SESSION, START } from './transcripts.ts'
import type { Side } from './transcripts.ts'

const [dir, records = '300'] = process.argv.slice(2) as [string, string?]
let now = START
const trails = new Trails({
  dir,
  files: hostFiles,
  // A name has the second in it, and every session here the same id.
  clock: { now: () => now += 1000 },
  crypto: fast,
  problem: (error) => {
    process.stdout.write(`problem ${error.code} ${error.message}\n`)
  },
})

for (let session = 0;; session++) {
  const ids = { session: SESSION, initiator: ALICE.public, responder: BOB.public, service: 'a2a' }
  const kept: Record<Side, Recording> = {
    alice: trails.begin({ ...ids, role: 'initiator' }),
    bob: trails.begin({ ...ids, role: 'responder' }),
  }
  const pair = new Pair(undefined, (event, side) => kept[side].event(event))
  process.stdout.write(`begun ${session}\n`)
  for (let i = 0; i < Number(records); i++) {
    pair.pass('alice')
    pair.pass('bob')
    if (i % 7 === 0) {
      const content = fast.sha256(utf8(`content ${i}`))
      const { index, value } = pair.alice.transcript.commit(content)
      pair.bob.transcript.commitReceived(value)
      pair.bob.transcript.openReceived(index, content)
    }
    if (i % 10 === 9) {
      pair.check('alice')
      pair.check('bob')
    }
    if (i % 3 === 0) await new Promise((resolve) => setImmediate(resolve))
  }
  pair.close()
  for (const one of Object.values(kept)) one.closed()
}
