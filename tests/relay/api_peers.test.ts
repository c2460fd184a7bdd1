// Who may grant what to whom by the API, and what `/peers` tells: of one's own scope, and with an etag.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { formatKey, generateIdentity } from '../../core/key.ts'
import type { Peer } from '../../relay/peers.ts'
import { GRANTS_PER_SCOPE_MAX } from '../../relay/grants.ts'
import { fast } from '../support/crypto.ts'
import { problemCode, testRelay } from '../support/relay_app.ts'
import type { TestRelay } from '../support/relay_app.ts'

const test = suite('relay/api_peers')

async function made(): Promise<TestRelay & { home: string; other: string; admin: string }> {
  const relay = await testRelay()
  return {
    ...relay,
    home: (await relay.key('home')).secret,
    other: (await relay.key('other')).secret,
    admin: (await relay.key('admin', { kind: 'admin' })).secret,
  }
}

function peer(scope: string, labels: Record<string, string> = {}): Peer {
  const key = formatKey(generateIdentity(fast).public)
  return { key, scope, names: [{ name: 'box', kind: 'agent' }], labels, online: true }
}

const post = (json: object, key: string) => ({ method: 'POST', json, key })

test('a key grants names of its scope, sees both sides, and takes them back', async () => {
  const { request, home, other, ports } = await made()
  const body = { names: 'web-*', to: 'other' }
  const added = await request('/api/v1/grants', post(body, home))
  assert.is(added.status, 201)
  const { since, ...shown } = await added.json() as Record<string, string>
  assert.equal(shown, { ...body, scope: 'home' })
  assert.match(since!, /Z$/)
  assert.is((await request('/api/v1/grants', post(body, home))).status, 201, 'twice is once')
  assert.ok(ports.registry.grants.shows('web-1', { scope: 'home', to: 'other' }))
  assert.not.ok(ports.registry.grants.shows('db', { scope: 'home', to: 'other' }))
  assert.not.ok(ports.registry.grants.shows('web-1', { scope: 'other', to: 'home' }))
  for (const key of [home, other]) {
    const list = await (await request('/api/v1/grants', { key })).json() as { items: unknown[] }
    assert.is(list.items.length, 1)
  }
  const path = '/api/v1/grants?names=web-*&to=other'
  const theirs = await request(path, { method: 'DELETE', key: other })
  assert.is(theirs.status, 400, 'to themselves: theirs are other grants')
  assert.is((await request(path, { method: 'DELETE', key: home })).status, 204)
  assert.is((await request(path, { method: 'DELETE', key: home })).status, 404)
  assert.not.ok(ports.registry.grants.shows('web-1', { scope: 'home', to: 'other' }))
})

test("nobody grants another's names, nor more than it may use itself", async () => {
  const relay = await made()
  const { request, home, admin } = relay
  const restricted = (await relay.key('home', { names: ['web'] })).secret
  const token = (await relay.key('home', { kind: 'token' })).secret
  const body = { names: 'web', to: 'other' }
  const cases: [string, object, string, number][] = [
    ['of another scope', { ...body, scope: 'other', to: 'home' }, home, 403],
    ['a restricted key', body, restricted, 403],
    ['a fleet token', body, token, 403],
    ['the admin key without a scope', body, admin, 400],
    ['to itself', { names: 'web', to: 'home' }, home, 400],
    ['no pattern', { names: 'a/b', to: 'other' }, home, 400],
    ['no scope', { names: 'web', to: 'Not One' }, home, 400],
    ['a misspelt field', { ...body, name: 'web' }, home, 400],
  ]
  for (const [what, json, key, status] of cases) {
    assert.is((await request('/api/v1/grants', post(json, key))).status, status, what)
  }
  const any = await request('/api/v1/grants', post({ ...body, scope: 'home' }, admin))
  assert.is(any.status, 201)
})

test('a scope has a bounded number of grants', async () => {
  const { request, home, ports } = await made()
  for (let i = 0; i < GRANTS_PER_SCOPE_MAX; i++) {
    await ports.registry.grants.add({ scope: 'home', to: 'other', names: `n${i}` })
  }
  const refused = await request('/api/v1/grants', post({ names: 'more', to: 'other' }, home))
  assert.is(refused.status, 409)
  assert.is(await problemCode(refused), 'grants/limit')
})

test('peers: the own scope, chosen by labels, unchanged by etag', async () => {
  const { request, home, admin, peers } = await made()
  peers.push(peer('home', { env: 'prod' }), peer('home', { env: 'test' }), peer('other'))
  const all = await request('/api/v1/peers', { key: home })
  const { items } = await all.json() as { items: Peer[] }
  assert.is(items.length, 2)
  const prod = await request('/api/v1/peers?selector=env%3Dprod', { key: home })
  assert.equal((await prod.json() as { items: Peer[] }).items, [peers[0]])
  const etag = all.headers.get('etag')!
  const again = await request('/api/v1/peers', { key: home, headers: { 'if-none-match': etag } })
  assert.is(again.status, 304)
  peers.pop()
  peers[0]!.online = false
  const changed = await request('/api/v1/peers', { key: home, headers: { 'if-none-match': etag } })
  assert.is(changed.status, 200)
  const wrong = await request('/api/v1/peers?selector=what', { key: home })
  assert.equal([wrong.status, await problemCode(wrong)], [400, 'selector/term'])
  assert.is((await request('/api/v1/peers?scope=other', { key: home })).status, 403)
  assert.is((await request('/api/v1/peers', { key: admin })).status, 400, 'of which scope?')
  assert.is((await request('/api/v1/peers?scope=home', { key: admin })).status, 200)
})

test('grants of one process are seen by another on the same store', async () => {
  const one = await testRelay()
  const two = await testRelay({ store: one.store })
  const of = { scope: 'home', to: 'other' }
  await one.ports.registry.grants.add({ ...of, names: 'web' })
  assert.not.ok(two.ports.registry.grants.shows('web', of))
  await two.ports.registry.grants.refresh()
  assert.ok(two.ports.registry.grants.shows('web', of))
})

test.run()
