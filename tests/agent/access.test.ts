/** The access table: nobody may do what no rule allows, and only what was pinned or signed counts. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { allow, allowing, deny, readAccess } from '../../agent/access.ts'
import type { PeerView } from '../../agent/access.ts'
import { thrown } from '../support/rejection.ts'

const test = suite('agent/access')
const KEY = 'cbi4thcgdpxj3nxkahjxwzowoylykvd2z2swdcwcdpmw6qhjjrma'
const PRINT = `SHA256:${'A'.repeat(43)}`

const ALICE: PeerView = { key: KEY, fingerprint: PRINT, names: ['alice'], vouched: [] }
const WORKER: PeerView = {
  key: 'other',
  fingerprint: 'SHA256:other',
  names: [],
  vouched: [{ authority: 'ops', names: ['w1'], labels: { role: 'web', env: 'prod' } }],
}

test('no rule, no right', () => {
  assert.is(allowing([], ALICE, 'connect'), undefined)
  const rules = readAccess([{ peer: 'bob', services: ['connect'] }])
  assert.is(allowing(rules, ALICE, 'connect'), undefined)
})

test('a peer is known by its pinned name, its KEY or its fingerprint, and has the services named', () => {
  for (const peer of ['alice', KEY, PRINT]) {
    const rules = readAccess([{ peer, services: ['a2a'] }])
    assert.ok(allowing(rules, ALICE, 'a2a'))
    assert.is(allowing(rules, ALICE, 'a2a exec'), undefined)
    assert.is(allowing(rules, WORKER, 'a2a'), undefined)
  }
})

test('labels count only where the authority that is named signed them', () => {
  const by = (rule: object): boolean =>
    allowing(readAccess([{ services: ['a2a'], ...rule }]), WORKER, 'a2a') !== undefined
  assert.ok(by({ authority: 'ops' }))
  assert.ok(by({ authority: 'ops', labels: 'role=web,env!=test' }))
  assert.not(by({ authority: 'ops', labels: 'role=web,env!=prod' }))
  assert.not(by({ authority: 'ops', labels: 'constructor=x' }))
  assert.not(by({ authority: 'others' }))
  // The name in a vouch is the authority's word for it, not a pin of ours.
  assert.not(by({ peer: 'w1' }))
})

test('rules are read strictly', () => {
  for (
    const rule of [
      null,
      'alice',
      {},
      { peer: 'alice' },
      { peer: 'alice', services: [] },
      { peer: 'a b', services: ['a2a'] },
      { peer: '@ops', services: ['a2a'] },
      { peer: 'alice', authority: 'ops', services: ['a2a'] },
      { peer: 'alice', labels: 'a=b', services: ['a2a'] },
      { peer: 'alice', services: ['a2a'], until: 'tomorrow' },
      { authority: 'ops', labels: 7, services: ['a2a'] },
    ]
  ) assert.is(thrown(() => readAccess([rule])), 'access/rule', JSON.stringify(rule))
  assert.is(thrown(() => readAccess({})), 'access/rule')
  assert.is(thrown(() => readAccess([{ peer: 'a', services: ['root'] }])), 'access/service')
  assert.is(
    thrown(() => readAccess([{ authority: 'ops', labels: 'x', services: ['a2a'] }])),
    'selector/term',
  )
  assert.is(
    thrown(() => readAccess([{ peer: 'SHA256:short', services: ['a2a'] }])),
    'key/format',
  )
  assert.equal(readAccess(undefined), [])
})

test('allowing twice is one rule, and denying the last service removes it', () => {
  let rules = allow([], { peer: 'alice' }, ['a2a'])
  rules = allow(rules, { peer: 'alice' }, ['a2a', 'connect'])
  rules = allow(rules, { authority: 'ops', labels: 'role=web' }, ['a2a'])
  assert.equal(rules, [
    { peer: 'alice', services: ['a2a', 'connect'] },
    { authority: 'ops', labels: 'role=web', services: ['a2a'] },
  ])
  let denied = deny(rules, { peer: 'alice' }, ['a2a'])
  assert.is(denied.taken, 1)
  denied = deny(denied.rules, { peer: 'alice' }, ['a2a'])
  assert.is(denied.taken, 0)
  denied = deny(denied.rules, { peer: 'alice' }, [])
  assert.is(denied.taken, 1)
  assert.equal(denied.rules.map(({ authority }) => authority), ['ops'])
  assert.is(deny(denied.rules, { authority: 'ops' }, []).taken, 0)
})

test.run()
