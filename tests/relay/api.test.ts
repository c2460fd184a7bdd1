/**
 * The REST API, through real credentials and registry. Every answer is checked against the schema
 * that the OpenAPI document gives for it, and the document against the rules of OpenAPI 3.1.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { formatKey, generateIdentity } from '../../core/key.ts'
import type { AgentInfo } from '../../relay/relay.ts'
import { fast } from '../support/crypto.ts'
import { documentProblems, schemaProblems } from '../support/openapi.ts'
import type { ApiDocument } from '../support/openapi.ts'
import { problemCode, testRelay } from '../support/relay_app.ts'
import type { TestRelay } from '../support/relay_app.ts'

const test = suite('relay/api')

interface Credential {
  id: string
  kind: string
  scope: string
  label: string
  expiresAt?: string
  revokedAt?: string
}

/** A relay with an admin key, two scopes with a key each, and a client that checks answers. */
async function made(limits: Record<string, number> = {}) {
  const relay = await testRelay({
    limits: { 'address.requests': 1e6, 'address.requestsBurst': 1e6, ...limits },
  })
  const document = await (await relay.request('/api/v1/openapi.json')).json() as ApiDocument
  const admin = (await relay.ports.credentials.ensureAdmin())!.secret
  const home = await relay.key('home')
  const other = await relay.key('other')
  async function call(
    method: string,
    path: string,
    options: { key?: string; json?: unknown; status: number },
  ): Promise<{ body: Record<string, unknown>; response: Response }> {
    const { status, ...rest } = options
    const response = await relay.request(`/api/v1${path}`, { method, ...rest })
    const text = await response.clone().text()
    assert.is(response.status, status, `${method} ${path}: ${response.status} ${text}`)
    const body = text === '' ? undefined : JSON.parse(text)
    assert.equal(schemaProblems(document, { method, path, status, body }), [])
    return { body: body ?? {}, response }
  }
  async function ids(path: string, key: string): Promise<string[]> {
    const { body } = await call('GET', path, { key, status: 200 })
    return (body['items'] as Credential[]).map(({ id }) => id)
  }
  return { relay, document, admin, home, other, call, ids }
}

function live(scope: string, endpoints: string[]): AgentInfo {
  return {
    key: formatKey(generateIdentity(fast).public),
    scope,
    group: '00'.repeat(16),
    version: '0.1.0',
    address: '203.0.113.9',
    since: new Date(0).toISOString(),
    endpoints,
    streams: 0,
    labels: {},
    bulkIdle: 8,
  }
}

test('the document keeps the rules of OpenAPI 3.1', async () => {
  const { document } = await made()
  assert.equal(documentProblems(document), [])
  assert.equal(Object.keys(document.paths).sort(), [
    '/agents',
    '/blocks',
    '/certificates',
    '/certificates/{serial}',
    '/grant',
    '/grants',
    '/keys',
    '/keys/{id}',
    '/logins/approve',
    '/logins/deny',
    '/logins/look',
    '/names',
    '/names/{name}',
    '/peers',
    '/relay',
    '/tokens',
    '/tokens/{id}',
  ])
})

test('the checker of documents finds what breaks the rules', async () => {
  const { document } = await made()
  type Broken = Record<string, Record<string, Record<string, Record<string, unknown>>>>
  const breaks: [string, (d: ApiDocument & { paths: Broken }) => void][] = [
    ['version', (d) => void (d.openapi = '3.0.3')],
    ['a path without its parameter', (d) => void (d.paths['/x/{y}'] = d.paths['/relay']!)],
    ['no description', (d) => void delete d.paths['/relay']!['get']!['responses']!['200']],
    ['a dangling $ref', (d) => void delete (d.components!.schemas! as Broken)['Agent']],
    ['an operation twice', (d) => void (d.paths['/relay2'] = d.paths['/relay']!)],
    ['a scheme that is not there', (d) => void (d.components!.securitySchemes = {})],
    [
      'nullable',
      (d) => void ((d.components!.schemas! as Broken)['Agent']!['nullable'] = true as never),
    ],
  ]
  for (const [why, broken] of breaks) {
    const copy = JSON.parse(JSON.stringify(document))
    broken(copy)
    assert.ok(documentProblems(copy).length > 0, why)
  }
})

test('document and page need no credential, all else does', async () => {
  const { relay, document } = await made()
  assert.is((await relay.request('/api/v1/docs')).status, 200)
  for (const [path, item] of Object.entries(document.paths)) {
    for (const method of Object.keys(item)) {
      const response = await relay.request(`/api/v1${path}`, { method: method.toUpperCase() })
      assert.is(response.status, 401, `${method} ${path}`)
      assert.is(response.headers.get('www-authenticate'), 'Bearer')
      assert.is(await problemCode(response), 'credentials/missing')
    }
  }
})

test('the page shows every operation and loads nothing from elsewhere', async () => {
  const { relay, document } = await made()
  const page = await (await relay.request('/api/v1/docs')).text()
  for (const [path, item] of Object.entries(document.paths)) {
    assert.ok(page.includes(`/api/v1${path}`), path)
    for (const operation of Object.values(item) as { operationId: string }[]) {
      assert.ok(page.includes(`id="${operation.operationId}"`), operation.operationId)
    }
  }
  for (const [, name] of page.matchAll(/href="#([^"]*)"/g)) {
    assert.ok(page.includes(`id="${name}"`), `#${name}`)
  }
  assert.not.match(page, /<script|javascript:|style=|<img|<iframe/i)
  for (const [, url] of page.matchAll(/(?:src|href)="([^"]*)"/g)) {
    assert.match(url!, /^(#|\/(?!\/))/)
  }
})

test('an API key is made, shown once, listed without its secret, and revoked', async () => {
  const { relay, call, admin, ids } = await made()
  const wanted = {
    scope: 'shop',
    label: 'laptop',
    names: ['web-*'],
    expiresAt: '2030-01-31T00:00:00Z',
  }
  const { body } = await call('POST', '/keys', { key: admin, json: wanted, status: 201 })
  const secret = body['secret'] as string
  const credential = body['credential'] as Credential
  assert.match(secret, /^sk_shop_[A-Za-z0-9_-]{43}$/)
  assert.is(credential.expiresAt, '2030-01-31T00:00:00.000Z')
  const grant = await call('GET', '/grant', { key: secret, status: 200 })
  assert.is(grant.body['scope'], 'shop')
  assert.is(grant.body['admin'], false)
  const list = await call('GET', '/keys?scope=shop', { key: admin, status: 200 })
  assert.not.match(JSON.stringify(list.body), /sk_shop|hash/)
  assert.equal(await ids('/keys', secret), [credential.id])
  const revoked: string[] = []
  relay.ports.credentials.onRevoked((id) => void revoked.push(id))
  await call('DELETE', `/keys/${credential.id}`, { key: admin, status: 204 })
  assert.equal(revoked, [credential.id])
  const refused = await call('GET', '/grant', { key: secret, status: 401 })
  assert.is(await problemCode(refused.response), 'credentials/revoked')
  for (const line of relay.lines) assert.not.match(line, /sk_|ak_/)
})

test('a fleet token keeps its limits and reads only', async () => {
  const { call, home, ids } = await made()
  const json = { names: ['edge-?'], labels: { site: 'berlin-*' }, maxAgents: 3 }
  const { body } = await call('POST', '/tokens', { key: home.secret, json, status: 201 })
  const token = body['secret'] as string
  assert.match(token, /^ft_home_/)
  const { body: grant } = await call('GET', '/grant', { key: token, status: 200 })
  assert.is(grant['kind'], 'token')
  assert.is(grant['maxAgents'], 3)
  assert.equal(await ids('/tokens', token), [(body['credential'] as Credential).id])
  assert.equal(await ids('/keys', token), [home.id])
  await call('POST', '/keys', { key: token, json: {}, status: 403 })
  await call('POST', '/tokens', { key: token, json: {}, status: 403 })
  await call('DELETE', `/keys/${home.id}`, { key: token, status: 403 })
})

test('keys and tokens are apart: neither is found in the other list', async () => {
  const { call, home, ids } = await made()
  const { body } = await call('POST', '/tokens', { key: home.secret, json: {}, status: 201 })
  const { id } = body['credential'] as Credential
  assert.equal(await ids('/keys', home.secret), [home.id])
  assert.equal(await ids('/tokens', home.secret), [id])
  await call('DELETE', `/keys/${id}`, { key: home.secret, status: 404 })
  await call('DELETE', `/tokens/${home.id}`, { key: home.secret, status: 404 })
})

test('attack: a scope key sees and changes nothing of another scope', async () => {
  const { relay, call, home, other, ids } = await made()
  await relay.ports.registry.reserve({ name: 'web', scope: 'other' })
  relay.agents.push(live('other', ['web']), live('home', []))
  const key = home.secret
  assert.equal(await ids('/keys', key), [home.id])
  for (const path of ['/keys', '/tokens', '/names', '/agents']) {
    await call('GET', `${path}?scope=other`, { key, status: 403 })
  }
  const { body: names } = await call('GET', '/names', { key, status: 200 })
  assert.equal(names['items'], [])
  const { body: agents } = await call('GET', '/agents', { key, status: 200 })
  assert.equal((agents['items'] as AgentInfo[]).map(({ scope }) => scope), ['home'])
  // What is there and what is not give one and the same answer.
  const there = await call('DELETE', `/keys/${other.id}`, { key, status: 404 })
  const not = await call('DELETE', `/keys/${'0'.repeat(20)}`, { key, status: 404 })
  assert.equal(there.body, not.body)
  const taken = await call('DELETE', '/names/web', { key, status: 404 })
  const free = await call('DELETE', '/names/free', { key, status: 404 })
  assert.equal(taken.body, free.body)
  await call('POST', '/keys', { key, json: { scope: 'other' }, status: 403 })
  await call('GET', '/grant', { key: other.secret, status: 200 })
})

test('attack: nobody makes a credential that allows more than their own', async () => {
  const { relay, call, home, admin } = await made()
  await call('POST', '/keys', { key: home.secret, json: { admin: true }, status: 403 })
  await call('POST', '/keys', { key: home.secret, json: { scope: 'admin' }, status: 403 })
  await call('POST', '/keys', { key: admin, json: { scope: 'admin' }, status: 400 })
  await call('POST', '/keys', { key: admin, json: {}, status: 400 })
  const narrow = await relay.key('home', { names: ['a-*'] })
  await call('POST', '/keys', { key: narrow.secret, json: {}, status: 403 })
  const few = await relay.key('home', { maxAgents: 1 })
  await call('POST', '/tokens', { key: few.secret, json: {}, status: 403 })
  const brief = await relay.key('home', { expiresAt: relay.clock.now() + 3_600_000 })
  const key = brief.secret
  await call('POST', '/keys', { key, json: {}, status: 403 })
  const long = new Date(relay.clock.now() + 3_600_001).toISOString()
  await call('POST', '/keys', { key, json: { expiresAt: long }, status: 403 })
  const short = new Date(relay.clock.now() + 3_600_000).toISOString()
  await call('POST', '/keys', { key, json: { expiresAt: short }, status: 201 })
})

test('admin keys: more of them by one of them, and none cuts itself off', async () => {
  const { call, admin, ids } = await made()
  const { body } = await call('POST', '/keys', { key: admin, json: { admin: true }, status: 201 })
  const second = body['secret'] as string
  assert.match(second, /^ak_admin_/)
  const { id } = body['credential'] as Credential
  await call('DELETE', `/keys/${id}`, { key: second, status: 409 })
  await call('DELETE', `/keys/${id}`, { key: admin, status: 204 })
  await call('GET', '/relay', { key: second, status: 401 })
  assert.ok((await ids('/keys', admin)).includes(id))
})

test('attack: wrong secrets are all told alike, counted, and slowed down by address', async () => {
  const { relay, home } = await made({ 'address.failures': 1, 'address.failuresBurst': 5 })
  const { credentials } = relay.ports
  const gone = await relay.key('home')
  await credentials.revoke(gone.id)
  const old = await relay.key('home', { expiresAt: relay.clock.now() + 1 })
  relay.clock.advance(10)
  const bodies = new Set<string>()
  const wrong = [gone.secret, old.secret, `${home.secret.slice(0, -1)}-`, 'sk_home_x', 'x']
  for (const key of wrong) {
    const response = await relay.request('/api/v1/grant', { key, from: '203.0.113.1' })
    assert.is(response.status, 401)
    const { error } = await response.json() as { error: { message: string } }
    bodies.add(error.message)
  }
  assert.is(bodies.size, 1)
  const refused = await relay.request('/api/v1/grant', { key: 'x', from: '203.0.113.1' })
  assert.is(refused.status, 429)
  assert.is(refused.headers.get('retry-after'), '1')
  const elsewhere = await relay.request('/api/v1/grant', { key: 'x', from: '203.0.113.2' })
  assert.is(elsewhere.status, 401)
  // Who shares the address and has a key is not locked out.
  const right = await relay.request('/api/v1/grant', { key: home.secret, from: '203.0.113.1' })
  assert.is(right.status, 200)
  assert.is(relay.ports.metrics.refused.cell({ reason: 'credential' }).value, 7)
})

test('attack: odd Authorization headers are refused', async () => {
  const { relay, home } = await made()
  const { secret } = home
  for (
    const authorization of [
      'Bearer',
      'Bearer ',
      `Basic ${btoa(`x:${secret}`)}`,
      `Bearer ${secret}, Bearer ${secret}`,
      `Bearer ${secret} x`,
      `Bearer ${'a'.repeat(100_000)}`,
      secret,
    ]
  ) {
    const response = await relay.request('/api/v1/grant', { headers: { authorization } })
    assert.is(response.status, 401, authorization.slice(0, 40))
  }
  for (const authorization of [`bearer ${secret}`, `BEARER   ${secret}`]) {
    const response = await relay.request('/api/v1/grant', { headers: { authorization } })
    assert.is(response.status, 200)
  }
  const inQuery = await relay.request(`/api/v1/grant?key=${secret}&access_token=${secret}`)
  assert.is(inQuery.status, 401)
})

test('attack: bodies that are not what they should be', async () => {
  const { relay, call, home } = await made()
  const key = home.secret
  for (
    const json of [
      [],
      'x',
      null,
      1,
      { lable: 'x' },
      { names: [] },
      { names: ['UPPER'] },
      { names: ['a'.repeat(64)] },
      { names: Array.from({ length: 51 }, () => 'a') },
      { expiresAt: 'soon' },
      { expiresAt: 1 },
      { expiresAt: '2030-02-30T00:00:00Z' },
      { expiresAt: '2000-01-01T00:00:00Z' },
      { label: 'x'.repeat(201) },
      { scope: 'Home' },
    ]
  ) await call('POST', '/keys', { key, json, status: 400 })
  for (const json of [{ maxAgents: 0 }, { maxAgents: 1.5 }, { labels: { 'A B': 'x' } }]) {
    await call('POST', '/tokens', { key, json, status: 400 })
  }
  const raw = { method: 'POST', key, body: '{}' }
  // A form of another site can send these without asking first.
  for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'application/jsonx']) {
    const headers = { 'content-type': type }
    assert.is((await relay.request('/api/v1/keys', { ...raw, headers })).status, 415, type)
  }
  const headers = { 'content-type': 'application/json' }
  const broken = await relay.request('/api/v1/keys', { ...raw, headers, body: '{"label":' })
  assert.is(broken.status, 400)
  await problemCode(broken)
  const polluting = '{"__proto__":{"admin":true},"label":"x"}'
  const polluted = await relay.request('/api/v1/keys', { ...raw, headers, body: polluting })
  assert.is.not(polluted.status, 500)
  assert.is(({} as { admin?: boolean }).admin, undefined)
  await call('GET', '/keys?scope=home&scope=other', { key, status: 400 })
  await call('GET', '/keys?nonsense=1', { key, status: 400 })
  for (const path of ['/keys', '/tokens', '/names']) {
    await call('GET', `${path}?after=../..`, { key, status: 400 })
  }
})

test('names: listed by scope, released when nobody serves them', async () => {
  const { relay, call, home, admin } = await made()
  const { registry } = relay.ports
  await registry.reserve({ name: 'web', scope: 'home' })
  await registry.reserve({ name: 'db', scope: 'other' })
  async function names(key: string): Promise<string[]> {
    const { body } = await call('GET', '/names', { key, status: 200 })
    return (body['items'] as { name: string }[]).map(({ name }) => name)
  }
  assert.equal(await names(home.secret), ['web'])
  assert.equal(await names(admin), ['db', 'web'])
  relay.agents.push(live('home', ['web']))
  const refused = await call('DELETE', '/names/web', { key: home.secret, status: 409 })
  assert.is(await problemCode(refused.response), 'api/live')
  relay.agents.length = 0
  await call('DELETE', '/names/web', { key: home.secret, status: 204 })
  assert.is(await registry.owner('web'), undefined)
  await call('DELETE', '/names/db', { key: admin, status: 204 })
})

test('lists come in pages that meet without gap or overlap', async () => {
  const { relay, call, home, admin } = await made()
  const { registry } = relay.ports
  for (let i = 0; i < 450; i++) {
    await registry.reserve({ name: `n-${i}`, scope: `s-${i % 5}` })
  }
  for (let i = 0; i < 230; i++) {
    await relay.key('home', { kind: i % 2 === 0 ? 'key' : 'token' })
    await relay.key('other', { kind: 'token' })
  }
  async function all(path: string, key: string): Promise<string[]> {
    const found: string[] = []
    let next: string | undefined
    let pages = 0
    do {
      const query = next === undefined ? '' : `?after=${encodeURIComponent(next)}`
      const { body } = await call('GET', path + query, { key, status: 200 })
      const items = body['items'] as { id?: string; name?: string }[]
      assert.ok(items.length <= 200)
      for (const { id, name } of items) found.push((id ?? name)!)
      next = body['next'] as string | undefined
    } while (next !== undefined && ++pages < 20)
    assert.is(new Set(found).size, found.length)
    return found
  }
  assert.is((await all('/names', admin)).length, 450)
  assert.is((await all('/keys', home.secret)).length, 116)
  assert.is((await all('/tokens', home.secret)).length, 115)
  assert.is((await all('/tokens', admin)).length, 345)
  // The two of made(), the admin key, and 115.
  assert.is((await all('/keys', admin)).length, 118)
})

test('blocks: by the admin key alone, exactly one of name and scope', async () => {
  const { relay, call, home, admin } = await made()
  const told: string[] = []
  relay.ports.registry.onBlocked(({ name, scope }) => void told.push(name ?? `scope ${scope}`))
  const reason = 'abuse report 7'
  for (
    const [method, path, json] of [
      ['GET', '/blocks', undefined],
      ['POST', '/blocks', { name: 'web', reason }],
      ['DELETE', '/blocks?name=web', undefined],
    ] as const
  ) await call(method, path, { key: home.secret, json, status: 403 })
  const { body } = await call('POST', '/blocks', {
    key: admin,
    json: { name: 'web', reason },
    status: 201,
  })
  assert.is(body['reason'], reason)
  await call('POST', '/blocks', { key: admin, json: { scope: 'bad', reason }, status: 201 })
  assert.equal(told, ['web', 'scope bad'])
  const list = await call('GET', '/blocks', { key: admin, status: 200 })
  assert.is((list.body['items'] as unknown[]).length, 2)
  for (
    const json of [{ reason }, { name: 'a', scope: 'b', reason }, { name: 'a' }, {
      name: 'a',
      reason: '',
    }]
  ) {
    await call('POST', '/blocks', { key: admin, json, status: 400 })
  }
  await call('DELETE', '/blocks', { key: admin, status: 400 })
  await call('DELETE', '/blocks?name=web', { key: admin, status: 204 })
  await call('DELETE', '/blocks?name=web', { key: admin, status: 404 })
  assert.not(relay.ports.registry.isBlocked('web', 'home'))
  assert.ok(relay.ports.registry.isBlocked('x', 'bad'))
})

test('certificates are revoked by serial number, by the admin alone', async () => {
  const { relay, call, home, admin } = await made()
  const told: string[] = []
  relay.ports.revoked!.onRevoked(({ serial }) => void told.push(serial))
  const json = { serial: '00:1F:2E', reason: 'laptop stolen' }
  for (
    const [method, path, json] of [
      ['GET', '/certificates', undefined],
      ['POST', '/certificates', { serial: '1f', reason: 'mine' }],
      ['DELETE', '/certificates/1f', undefined],
    ] as const
  ) await call(method, path, { key: home.secret, json, status: 403 })
  const { body } = await call('POST', '/certificates', { key: admin, json, status: 201 })
  assert.is(body['serial'], '1f2e')
  assert.equal(told, ['1f2e'])
  const list = await call('GET', '/certificates', { key: admin, status: 200 })
  assert.equal((list.body['items'] as { reason: string }[]).map(({ reason }) => reason), [
    'laptop stolen',
  ])
  for (const serial of ['', 'zz', ':', '1'.repeat(41)]) {
    await call('POST', '/certificates', { key: admin, json: { serial, reason: 'x' }, status: 400 })
  }
  await call('DELETE', '/certificates/001F2E', { key: admin, status: 204 })
  await call('DELETE', '/certificates/1f2e', { key: admin, status: 404 })
})

test('relay and agents', async () => {
  const { relay, call, home, admin } = await made()
  relay.agents.push(live('home', ['web']), live('other', []))
  await call('GET', '/relay', { key: home.secret, status: 200 })
  const every = await call('GET', '/agents', { key: admin, status: 200 })
  assert.is((every.body['items'] as unknown[]).length, 2)
  const one = await call('GET', '/agents?scope=other', { key: admin, status: 200 })
  assert.is((one.body['items'] as unknown[]).length, 1)
})

test('methods that a path has not give 405 with those that it has', async () => {
  const { relay, admin } = await made()
  const wrong = await relay.request('/api/v1/keys', { method: 'PUT', key: admin })
  assert.is(wrong.status, 405)
  assert.is(wrong.headers.get('allow'), 'GET, POST, HEAD')
  assert.is((await relay.request('/api/v1/nothing', { key: admin })).status, 404)
})

test('attack: a store that is full or down says so, and reads go on', async () => {
  const { TunnelError } = await import('../../core/errors.ts')
  const { memoryStore } = await import('../../relay/store/memory.ts')
  const memory = memoryStore()
  let fault: 'store/full' | 'store/busy' | undefined
  const relay: TestRelay = await testRelay({
    store: {
      get: (key) => memory.get(key),
      list: (prefix, options) => memory.list(prefix, options),
      commit: (what) =>
        fault
          ? Promise.reject(new TunnelError(fault, 'Cannot write: found no room on the disk'))
          : memory.commit(what),
      close: () => memory.close(),
    },
  })
  const { secret: key } = await relay.key('home')
  for (const [code, status] of [['store/full', 507], ['store/busy', 503]] as const) {
    fault = code
    const refused = await relay.request('/api/v1/keys', { method: 'POST', key, json: {} })
    assert.is(refused.status, status)
    assert.is(await problemCode(refused), code)
    assert.is((await relay.request('/api/v1/keys', { key })).status, 200)
  }
})

test.run()
