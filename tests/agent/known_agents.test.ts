/**
 * Pins beyond names: authorities, revocations, successors, fingerprints whose key is not known yet.
 * The file is held in memory; that it is replaced in one step on a disk is in profile.test.ts.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { KnownAgents } from '../../agent/known_agents.ts'
import { text, utf8 } from '../../core/bytes.ts'
import { ManualClock } from '../../core/clock.ts'
import { nobleCrypto as crypto } from '../../core/crypto.ts'
import { fingerprint, formatKey } from '../../core/key.ts'
import { rejection } from '../support/rejection.ts'

const test = suite('agent/known_agents')
const bytesOf = (n: number): Uint8Array => crypto.ed25519Public(new Uint8Array(32).fill(n))
const [A, B, C] = [1, 2, 3].map((n) => formatKey(bytesOf(n))) as [string, string, string]
const PRINT_A = fingerprint(crypto, bytesOf(1))

function opened(content = ''): { known: KnownAgents; file(): string } {
  let bytes: Uint8Array | undefined = content === '' ? undefined : utf8(content)
  const known = new KnownAgents({
    path: '/known_agents',
    clock: new ManualClock(),
    crypto,
    locked: (run) => run(),
    files: {
      read: () => Promise.resolve(bytes),
      write: (_path, next) => {
        bytes = next
        return Promise.resolve()
      },
    },
  })
  return { known, file: () => text(bytes ?? new Uint8Array(0)) }
}

test('a fingerprint pins, and its line gets the key when that key comes', async () => {
  const { known, file } = opened('# by phone\n')
  await known.trust('alice', PRINT_A)
  assert.match(file(), `alice ${PRINT_A} manual`)
  assert.is(await rejection(known.check('alice', [B])), 'trust/changed')
  assert.equal(await known.check('alice', [B, A]), { trusted: [A], first: false })
  assert.match(file(), `alice ${A} manual`)
  assert.match(file(), '# by phone\n')
  assert.not.match(file(), 'SHA256')
})

test('trusting a KEY whose fingerprint was pinned makes no second line', async () => {
  const { known, file } = opened()
  await known.trust('alice', PRINT_A)
  await known.trust('alice', A, { how: 'code' })
  assert.is(file().trim().split('\n').length, 1)
  assert.match(file(), `alice ${A} code`)
})

test('an authority is a line of its own kind, and no agent', async () => {
  const { known, file } = opened()
  await known.trust('ops', A, { authority: true })
  await known.trust('ops', B)
  assert.equal((await known.authorities()).map(({ name, key }) => [name, key]), [['ops', A]])
  assert.equal((await known.list()).map(({ name, key }) => [name, key]), [['ops', B]])
  assert.match(file(), `@authority ops ${A} manual`)
  assert.is(await known.forget('ops'), 1)
  assert.is((await known.authorities()).length, 1)
  assert.is(await known.forget('ops', { authority: true }), 1)
  assert.is(file(), '')
})

test('a revocation is remembered once, and is no pin', async () => {
  const { known, file } = opened(`alice ${A} manual 2026-01-01\n`)
  await known.revoke(A)
  await known.revoke(A)
  assert.equal(await known.revoked(), [A])
  assert.is(file().trim().split('\n').length, 2)
  assert.is((await known.list()).length, 1)
})

test('a successor takes every place of the old identity, and verified stays verified', async () => {
  const { known, file } = opened(
    [
      '# mine',
      `alice ${A} first-use 2026-01-01`,
      `box ${A} code 2026-01-01 verified`,
      `@authority ops ${PRINT_A} manual 2026-01-01`,
      `bob ${C} manual 2026-01-01`,
      '',
    ].join('\n'),
  )
  assert.equal(await known.succeed(A, B), ['alice', 'box', 'ops'])
  const lines = file().trim().split('\n')
  assert.is(lines[0], '# mine')
  assert.match(lines[1]!, new RegExp(`^alice ${B} rotation \\S+$`))
  assert.match(lines[2]!, new RegExp(`^box ${B} rotation \\S+ verified$`))
  assert.match(lines[3]!, new RegExp(`^@authority ops ${B} rotation \\S+$`))
  assert.is(lines[4], `bob ${C} manual 2026-01-01`)
})

test('verifying marks one pin alone, and none that is not there', async () => {
  const { known, file } = opened(`pool ${A} code 2026-01-01\npool ${B} code 2026-01-01\n`)
  assert.is(await known.verify('pool', C), false)
  assert.is(await known.verify('pool', B), true)
  const [first, second] = file().split('\n')
  assert.is(first, `pool ${A} code 2026-01-01`)
  assert.match(second!, / verified$/)
})

test('lines that are none are named by number', async () => {
  for (
    const line of [
      `@authority ${A} manual 2026-01-01`,
      `@revoked alice ${A} 2026-01-01`,
      `@unknown alice ${A} manual 2026-01-01`,
      `alice ${A} guessed 2026-01-01`,
      `alice SHA256:short manual 2026-01-01`,
    ]
  ) {
    const { known } = opened(`# one\n${line}\n`)
    assert.is(await rejection(known.list()), 'trust/corrupt', line)
  }
})

test('a name that could be taken for a mark is refused', async () => {
  const { known } = opened()
  assert.is(await rejection(known.trust('@authority', A)), 'trust/name')
  assert.is(await rejection(known.trust('a b', A)), 'trust/name')
})

test.run()
