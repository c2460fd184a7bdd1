/** What authorities took back, as it is remembered between runs: the highest number wins, nothing else. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { KnownWithdrawals } from '../../agent/withdrawals.ts'
import { text, utf8 } from '../../core/bytes.ts'
import { rejection } from '../support/rejection.ts'
import { keyOf, OPS, OTHER } from '../support/trust_bench.ts'

const test = suite('agent/withdrawals')

test('withdrawals are kept by number, in a file that says where it is broken', async () => {
  let file = utf8('')
  const known = new KnownWithdrawals({
    path: '/withdrawals',
    locked: (run) => run(),
    files: {
      read: () => Promise.resolve(file),
      write: (_path, next) => {
        file = Uint8Array.from(next)
        return Promise.resolve()
      },
    },
  })
  assert.is(await known.newest(keyOf(OPS)), undefined)
  await known.keep(keyOf(OPS), 3, [1, 9])
  await known.keep(keyOf(OPS), 2, [])
  await known.keep(keyOf(OTHER), 0, [])
  assert.equal(await known.newest(keyOf(OPS)), { sequence: 3, serials: [1, 9] })
  assert.equal(await known.newest(keyOf(OTHER)), { sequence: 0, serials: [] })
  await known.keep(keyOf(OPS), 4, [])
  assert.equal(await known.newest(keyOf(OPS)), { sequence: 4, serials: [] })
  assert.is(await rejection(known.keep('no key', 1, [])), 'key/format')
  const good = text(file)
  const key = keyOf(OPS)
  for (
    const line of [
      'x',
      `${key} 1`,
      `${key} -1 `,
      `${key} 1 2,`,
      `${key} 1 ,2`,
      `${key} 9999999999999999 1`,
      `${key} 1 99999999999999999999`,
      `${key.slice(1)} 1 2`,
    ]
  ) {
    file = utf8(`${good}${line}\n`)
    assert.is(await rejection(known.newest(key)), 'trust/corrupt', line)
    assert.is(await rejection(known.keep(key, 99, [])), 'trust/corrupt', line)
  }
})

test.run()
