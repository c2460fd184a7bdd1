/**
 * The list of agents: what a relay may say is read strictly, what authorities signed decides, and
 * who is trusted is never the relay's word. A relay in memory that says what it is told to.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { PeerView } from '../../agent/access.ts'
import { Directory, trustedBy } from '../../agent/directory.ts'
import { Profile } from '../../agent/profile.ts'
import { fastCrypto } from '../../core/crypto.ts'
import { TunnelError } from '../../core/errors.ts'
import { fingerprint, formatKey, generateIdentity, parseKey } from '../../core/key.ts'
import * as nodeCrypto from 'node:crypto'
import { testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'
import { rejection } from '../support/rejection.ts'

const test = suite('agent/directory')
const crypto = fastCrypto(nodeCrypto)
const [ALICE, BOB, CAROL, OWN, OPS] = Array.from(
  { length: 5 },
  () => generateIdentity(crypto).public,
).map(formatKey) as [string, string, string, string, string]

let place: TestWorld
test.before(async () => void (place = await testWorld()))
test.after(() => place.close())

const row = (key: string, name: string, labels = {}) => ({
  key,
  scope: 'home',
  names: [{ name, kind: 'agent' }],
  labels,
  online: true,
  since: '2026-01-01T00:00:00.000Z',
})

const known = () => new Profile(place.world).knownAgents()

function directory(
  answers: Record<string, unknown>[],
  view: (key: string) => PeerView = (key) => ({ key, fingerprint: '', names: [], vouched: [] }),
) {
  const asked: Record<string, unknown>[] = []
  const one = new Directory({
    crypto,
    uplink: {
      request: (body) => {
        asked.push(body as Record<string, unknown>)
        return Promise.resolve(answers.shift() ?? {})
      },
    },
    known: known(),
    trust: { view: (key) => Promise.resolve().then(() => view(key)) },
    own: OWN,
  })
  return { one, asked }
}

test('where agents meet to compare or to enroll is no name of theirs', async () => {
  const hex = '0123456789abcdef'
  const names = [`enroll-${hex}`, `verify-${hex}`, `verify-${hex}-00ff`, 'worker', 'verify-that']
    .map((name) => ({ name, kind: 'agent' }))
  const { one } = directory([{ agents: [{ ...row(CAROL, 'x'), names }], etag: 'e' }])
  const { agents: [carol] } = (await one.list())!
  assert.equal(carol!.names.map(({ name }) => name), ['worker', 'verify-that'])
  assert.is(carol!.name, 'worker')
})

test('pins say who is trusted, and nobody else is', async () => {
  await known().trust('al', ALICE)
  await known().trust('bob', BOB, { how: 'first-use' })
  const rows = [row(ALICE, 'alice'), row(BOB, 'bob'), row(CAROL, 'al'), row(OWN, 'me')]
  const { one } = directory([{ agents: rows, etag: 'e' }])
  const { agents, etag } = (await one.list())!
  assert.is(etag, 'e')
  const seen = Object.fromEntries(agents.map((agent) => [agent.key, agent]))
  assert.equal(seen[ALICE]!.name, 'al')
  assert.equal([ALICE, BOB, CAROL, OWN].map((key) => seen[key]!.standing), [
    'pinned',
    'pinned',
    'unknown',
    'self',
  ])
  assert.equal(seen[BOB]!.how, 'first-use')
  // Called as a friend is, and no friend.
  assert.is(trustedBy(seen[CAROL]!), undefined)
  assert.is(trustedBy(seen[OWN]!), undefined)
  assert.equal(trustedBy(seen[ALICE]!), { key: ALICE, how: 'manual', verified: false })
})

test('labels that an authority signed decide, whatever the relay says', async () => {
  await known().trust('ops', OPS, { authority: true })
  const rows = [
    row(ALICE, 'alice', { role: 'web' }),
    row(CAROL, 'carol', { role: 'idle' }),
    row(BOB, 'bob', { role: 'web' }),
  ]
  const { one, asked } = directory([{ agents: rows, etag: '' }], (key) => ({
    key,
    fingerprint: '',
    names: [],
    vouched: key === BOB ? [] : [{
      authority: 'ops',
      names: [],
      labels: { role: key === CAROL ? 'web' : 'db' },
    }],
  }))
  const { agents } = (await one.list('role=web'))!
  assert.equal(
    agents.map(({ key, standing }) => [key, standing]).sort(),
    [
      [BOB, 'pinned'],
      [CAROL, 'vouched'],
    ].sort(),
  )
  // The relay cannot know, and is not asked to choose.
  assert.is(asked[0]!['selector'], undefined)
  await known().forget('ops', { authority: true })
})

test('one that has revoked itself is not trusted, pinned or not', async () => {
  await known().trust('ops', OPS, { authority: true })
  const { one } = directory([{ agents: [row(ALICE, 'alice')], etag: '' }], () => {
    throw new TunnelError('trust/revoked', 'Cannot trust it')
  })
  const [alice] = (await one.list())!.agents
  assert.is(alice!.standing, 'revoked')
  assert.is(trustedBy(alice!), undefined)
  await known().forget('ops', { authority: true })
})

test('pages follow each other, and an answer that is unchanged is none', async () => {
  const pages = [
    { agents: [row(ALICE, 'alice')], etag: 'e', next: 'n' },
    { agents: [row(BOB, 'bob')], etag: 'f' },
    { unchanged: true, etag: 'e' },
  ]
  const { one, asked } = directory(pages)
  assert.is((await one.list('role!=x'))!.agents.length, 2)
  assert.equal(asked, [{ do: 'agents', selector: 'role!=x' }, {
    do: 'agents',
    selector: 'role!=x',
    after: 'n',
  }])
  assert.is(await one.list('', { etag: 'e' }), undefined)
})

test('a key or a fingerprint is found, online before away', async () => {
  const away = { ...row(ALICE, 'old'), scope: 'away', online: false }
  const answers = () => [{ agents: [away, row(ALICE, 'alice')], etag: '' }]
  assert.is((await directory(answers()).one.find(ALICE)).scope, 'home')
  const print = fingerprint(crypto, parseKey(ALICE))
  assert.is((await directory(answers()).one.find(print)).key, ALICE)
  assert.is(await rejection(directory(answers()).one.find(BOB)), 'dial/unknown')
})

test('what a relay may not say is refused', async () => {
  const good = row(ALICE, 'alice')
  const wrong: unknown[] = [
    null,
    {},
    { ...good, key: 'x' },
    { ...good, scope: '../x' },
    { ...good, names: 'x' },
    { ...good, names: [{ name: 'a\x1b[2J' }] },
    { ...good, labels: { 'A B': 'x' } },
    { ...good, labels: null },
  ]
  for (const one of wrong) {
    const { one: list } = directory([{ agents: [one], etag: '' }])
    assert.is(await rejection(list.list()), 'directory/answer', JSON.stringify(one))
  }
  assert.is(await rejection(directory([{ agents: 'x' }]).one.list()), 'directory/answer')
  // One that never ends.
  const { one: endless } = directory(
    Array.from({ length: 20 }, () => ({ agents: [good], next: 'same' })),
  )
  assert.is(await rejection(endless.list()), 'directory/answer')
})

test.run()
