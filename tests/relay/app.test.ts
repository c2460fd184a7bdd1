/** The relay's own HTTP, driven through real credentials, registry and quotas. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { fingerprint, formatKey, generateIdentity } from '../../core/key.ts'
import { encodePassport, openPassport } from '../../core/passport.ts'
import { BODY_BYTES_MAX, LINK_PROTOCOL } from '../../relay/app.ts'
import { METRICS_TYPE } from '../../relay/metrics.ts'
import { memoryStore } from '../../relay/store/memory.ts'
import { TunnelError } from '../../core/errors.ts'
import { fast } from '../support/crypto.ts'
import { problemCode, testRelay } from '../support/relay_app.ts'

const test = suite('relay/app')
const WEBSOCKET = { upgrade: 'websocket', 'sec-websocket-protocol': LINK_PROTOCOL }
const PATHS = [
  '/',
  '/healthz',
  '/readyz',
  '/metrics',
  '/style.css',
  '/v1/relay',
  '/v1/passports/x',
  '/v1/names/web',
  '/v1/link/x',
  '/api/v1/docs',
  '/api/v1/openapi.json',
  '/api/v1/keys',
  '/nowhere',
]

function agent(sequence = 1, names = ['web']) {
  const identity = generateIdentity(fast)
  const key = formatKey(identity.public)
  const now = 1_700_000_000_000
  const bytes = encodePassport(
    {
      identity: identity.public,
      sequence,
      notBefore: now - 1000,
      notAfter: now + 86_400_000,
      certificates: [fast.sha256(identity.public)],
      names,
      ciphers: [],
    },
    (message) => fast.ed25519Sign(identity.seed, message),
  )
  return { identity, key, bytes, sequence }
}

test('every response, errors too, carries the security headers and is not cached', async () => {
  const { request } = await testRelay()
  for (const path of PATHS) {
    for (const method of ['GET', 'HEAD', 'POST', 'OPTIONS']) {
      const { status, headers } = await request(path, { method })
      const where = `${method} ${path} ${status}`
      assert.match(headers.get('content-security-policy')!, /^default-src 'none'/, where)
      assert.is(headers.get('x-content-type-options'), 'nosniff', where)
      assert.is(headers.get('x-frame-options'), 'DENY', where)
      assert.is(headers.get('access-control-allow-origin'), null, where)
      assert.ok(headers.get('cache-control'), where)
    }
  }
})

test('a path that is not there, and a method that a path has not, are told as JSON', async () => {
  const { request } = await testRelay()
  const lost = await request('/nowhere?secret=1')
  assert.is(lost.status, 404)
  assert.is(await problemCode(lost), 'http/path')
  for (const path of PATHS.slice(0, 11)) {
    const wrong = await request(path, { method: 'DELETE' })
    assert.is(wrong.status, 405, path)
    assert.is(wrong.headers.get('allow'), 'GET, HEAD')
    assert.is(await problemCode(wrong), 'http/method')
  }
})

test('/healthz lives on while draining and over quota; /readyz says 503 while draining', async () => {
  const { request, state } = await testRelay({
    limits: { 'address.requests': 1, 'address.requestsBurst': 1 },
  })
  await request('/')
  assert.is((await request('/')).status, 429)
  assert.is((await request('/readyz')).status, 200)
  state.draining = true
  assert.is((await request('/healthz')).status, 200)
  const unready = await request('/readyz')
  assert.is(unready.status, 503)
  assert.is(unready.headers.get('retry-after'), '5')
  assert.is(await problemCode(unready), 'relay/draining')
})

test('/readyz says 503 while the store fails or hangs, and 200 again after it', async () => {
  const memory = memoryStore()
  let fault: 'none' | 'full' | 'hang' = 'none'
  let commits = 0
  const { request, clock, ports, lines } = await testRelay({
    ports: {
      store: {
        commit(what) {
          commits++
          if (fault === 'full') return Promise.reject(new TunnelError('store/full', 'disk is full'))
          return fault === 'hang' ? new Promise(() => {}) : memory.commit(what)
        },
      },
    },
  })
  assert.is((await request('/readyz')).status, 200)
  fault = 'full'
  clock.advance(1000)
  const full = await request('/readyz')
  assert.is(full.status, 503)
  assert.is(await problemCode(full), 'relay/store')
  assert.is(ports.metrics.storeErrors.cell({ operation: 'commit' }).value, 1)
  assert.ok(lines.some((line) => line.includes('store/full')))
  fault = 'hang'
  clock.advance(1000)
  const hanging = request('/readyz')
  // The probe's own deadline is what must end it, so time moves once it is set.
  while (clock.pending === 0) await Promise.resolve()
  clock.advance(2000)
  assert.is((await hanging).status, 503)
  fault = 'none'
  clock.advance(1000)
  assert.is((await request('/readyz')).status, 200)
  assert.is(clock.pending, 0)
  // Attack: whoever asks often writes no more often.
  const before = commits
  for (let i = 0; i < 100; i++) await request('/readyz')
  assert.is(commits, before)
})

test('/metrics: for loopback, or the admin key from anywhere', async () => {
  const { request, key, ports } = await testRelay()
  const admin = (await ports.credentials.ensureAdmin())!
  const scoped = await key('home')
  for (const from of ['127.0.0.1', '127.9.9.9', '::1', '::ffff:127.0.0.1']) {
    const response = await request('/metrics', { from })
    assert.is(response.status, 200, from)
    assert.is(response.headers.get('content-type'), METRICS_TYPE)
    assert.match(await response.text(), /^# HELP sotto_links /)
  }
  for (const from of ['', '198.51.100.7', '1.127.0.0.1', '::2', '127.0.0.1.example.com']) {
    assert.is((await request('/metrics', { from })).status, 401, from)
  }
  assert.is((await request('/metrics', { key: admin.secret })).status, 200)
  const refused = await request('/metrics', { key: scoped.secret })
  assert.is(refused.status, 403)
  assert.is(await problemCode(refused), 'api/forbidden')
})

test('attack: /metrics is not for what a loopback proxy forwards, nor for DNS rebinding', async () => {
  const { request } = await testRelay()
  const from = '127.0.0.1'
  for (const name of ['forwarded', 'x-forwarded-for', 'x-real-ip']) {
    const headers = { [name]: '203.0.113.9' }
    assert.is((await request('/metrics', { from, headers })).status, 401, name)
  }
  assert.is((await request('https://evil.example/metrics', { from })).status, 401)
  for (const host of ['localhost:8443', '127.0.0.1:8443', '[::1]:8443', 'relay.example.com']) {
    assert.is((await request(`https://${host}/metrics`, { from })).status, 200, host)
  }
})

test('/metrics as the setting says', async () => {
  const from = '127.0.0.1'
  const open = await testRelay({ flags: { metrics: 'open' } })
  assert.is((await open.request('/metrics')).status, 200)
  const admin = await testRelay({ flags: { metrics: 'admin' } })
  assert.is((await admin.request('/metrics', { from })).status, 401)
  const off = await testRelay({ flags: { metrics: 'off' } })
  const { secret } = (await off.ports.credentials.ensureAdmin())!
  assert.is((await off.request('/metrics', { from, key: secret })).status, 404)
})

test('the page names the relay, holds no script and loads nothing from elsewhere', async () => {
  const { request, identity } = await testRelay({ flags: { port: 8443 } })
  const response = await request('/')
  const page = await response.text()
  assert.match(response.headers.get('content-type')!, /^text\/html/)
  assert.match(page, /^\s*<!doctype html>/)
  assert.ok(page.includes(fingerprint(fast, identity.public)))
  assert.ok(page.includes('sotto login relay.example.com:8443\nsotto http 3000'))
  assert.ok(page.includes('NAME.secure.relay.example.com'))
  assert.not.match(page, /<script|javascript:|\son[a-z]+=|style=|<img|<iframe/i)
  for (const [, url] of page.matchAll(/(?:src|href)="([^"]*)"/g)) assert.match(url!, /^\/(?!\/)/)
  const style = await request('/style.css')
  assert.match(style.headers.get('content-type')!, /^text\/css/)
  assert.not.match(await style.text(), /url\(|@import/)
})

test('the page claims blindness only where the runtime allows it', async () => {
  const { request } = await testRelay({
    ports: { abilities: { rawTcp: false, rawUdp: false, bulkLinks: false, inspectable: true } },
  })
  const page = await (await request('/')).text()
  assert.not.match(page, /NAME\.secure/)
  assert.match(page, /no raw TCP port/)
})

test('/v1/relay says who this is and what it can', async () => {
  const { request, identity } = await testRelay({ flags: { names: 'r2.example.com' } })
  assert.equal(await (await request('/v1/relay')).json(), {
    key: formatKey(identity.public),
    fingerprint: fingerprint(fast, identity.public),
    names: ['relay.example.com', 'r2.example.com'],
    domain: 'relay.example.com',
    secure: 'secure.relay.example.com',
    apps: 'apps.relay.example.com',
    port: 443,
    version: '0.1.0',
    runtime: 'bun',
    can: { rawTcp: true, rawUdp: true, bulkLinks: true, inspectable: true },
  })
})

test('/v1/passports/KEY gives the bytes as they were published', async () => {
  const { request, ports } = await testRelay()
  const { key, bytes, identity } = agent(7)
  const none = await request(`/v1/passports/${key}`)
  assert.is(none.status, 404)
  assert.is(await problemCode(none), 'registry/unknown')
  await ports.registry.publishPassport(key, { bytes, sequence: 7, expected: 0 })
  const found = await request(`/v1/passports/${key}`)
  assert.is(found.headers.get('content-type'), 'application/octet-stream')
  assert.is(found.headers.get('etag'), '"7"')
  const got = new Uint8Array(await found.arrayBuffer())
  assert.equal(got, bytes)
  openPassport(fast, got, { now: 1_700_000_000_000, identity: identity.public })
  const same = await request(`/v1/passports/${key}`, { headers: { 'if-none-match': '"7"' } })
  assert.is(same.status, 304)
  for (const wrong of ['x', key.toUpperCase(), `${key}a`, '..%2f..%2fetc', '%00', '%ff']) {
    const refused = await request(`/v1/passports/${wrong}`)
    assert.is(refused.status, 400, wrong)
    assert.is(await problemCode(refused), 'key/format')
  }
})

test('/v1/names/NAME says who serves it, with passports that can be checked', async () => {
  const { request, ports } = await testRelay()
  const [one, two] = [agent(), agent()]
  await ports.registry.reserve({ name: 'web', scope: 'home' })
  await ports.registry.memberJoined('web', one.key)
  await ports.registry.memberJoined('web', two.key)
  await ports.registry.publishPassport(one.key, { bytes: one.bytes, sequence: 1, expected: 0 })
  const answer = await (await request('/v1/names/web')).json() as {
    name: string
    scope: string
    agents: { key: string; fingerprint: string; passport: string | null }[]
  }
  assert.is(answer.name, 'web')
  assert.is(answer.scope, 'home')
  assert.equal(answer.agents.map(({ key }) => key).sort(), [one.key, two.key].sort())
  const first = answer.agents.find(({ key }) => key === one.key)!
  assert.is(first.fingerprint, fingerprint(fast, one.identity.public))
  const bytes = Uint8Array.from(atob(first.passport!), (letter) => letter.charCodeAt(0))
  assert.equal(bytes, one.bytes)
  assert.is(answer.agents.find(({ key }) => key === two.key)!.passport, null)
})

test('/v1/names/NAME: unknown, malformed and blocked names', async () => {
  const { request, ports } = await testRelay()
  const cases: [string, number, string][] = [
    ['nobody', 404, 'registry/unknown'],
    ['Web', 400, 'registry/name'],
    ['a.b', 400, 'registry/name'],
    ['-a', 400, 'registry/name'],
    ['%F0%9F%98%80', 400, 'registry/name'],
    ['a'.repeat(64), 400, 'registry/name'],
  ]
  for (const [name, status, code] of cases) {
    const response = await request(`/v1/names/${name}`)
    assert.is(response.status, status, name)
    assert.is(await problemCode(response), code)
  }
  await ports.registry.reserve({ name: 'web', scope: 'home' })
  const { key } = agent()
  await ports.registry.memberJoined('web', key, 'agents')
  assert.is((await request('/v1/names/web')).status, 404, 'a name between agents is told to nobody')
  await ports.registry.memberJoined('web', key)
  assert.is((await request('/v1/names/web')).status, 200)
  await ports.registry.block({ scope: 'home', reason: 'abuse' })
  const blocked = await request('/v1/names/web')
  assert.is(blocked.status, 403)
  assert.not.match(JSON.stringify(await blocked.json()), /abuse/)
})

test('/v1/link/KEY hands key and address to upgrade, and its response back as it is', async () => {
  const upgraded = new Response(null, { headers: { 'x-mark': '1' } })
  const { request, upgrades, ports } = await testRelay({ upgraded })
  const { key } = agent()
  const response = await request(`/v1/link/${key}`, { headers: WEBSOCKET, from: '203.0.113.5' })
  // Deno and Workers tie the WebSocket to this very object.
  assert.is(response, upgraded)
  assert.equal([...response.headers.keys()], ['x-mark'])
  assert.is(upgrades.length, 1)
  assert.is(upgrades[0]!.key, key)
  assert.is(upgrades[0]!.address, '203.0.113.5')
  assert.is(upgrades[0]!.request.headers.get('upgrade'), 'websocket')
  assert.is(ports.metrics.requests.cell({ status: '1xx' }).value, 1)
})

test('/v1/link/KEY refuses what cannot become a link', async () => {
  const { request, upgrades, state } = await testRelay()
  const { key } = agent()
  const plain = await request(`/v1/link/${key}`)
  assert.is(plain.status, 426)
  assert.is(plain.headers.get('upgrade'), 'websocket')
  assert.is(await problemCode(plain), 'link/upgrade')
  const cases: [string, Record<string, string>, number, string][] = [
    [key, { upgrade: 'h2c' }, 426, 'link/upgrade'],
    [key, { upgrade: 'websocket' }, 400, 'link/protocol'],
    [key, { ...WEBSOCKET, 'sec-websocket-protocol': 'sotto.v2' }, 400, 'link/protocol'],
    [key, { ...WEBSOCKET, 'sec-websocket-protocol': 'xsotto.v1' }, 400, 'link/protocol'],
    [key.toUpperCase(), WEBSOCKET, 400, 'key/format'],
    [key.slice(1), WEBSOCKET, 400, 'key/format'],
    [`${key.slice(0, 51)}b`, WEBSOCKET, 400, 'key/format'],
  ]
  for (const [path, headers, status, code] of cases) {
    const response = await request(`/v1/link/${path}`, { headers })
    assert.is(response.status, status, code)
    assert.is(await problemCode(response), code)
  }
  const head = await request(`/v1/link/${key}`, { method: 'HEAD', headers: WEBSOCKET })
  assert.is(head.status, 405)
  state.draining = true
  const late = await request(`/v1/link/${key}`, { headers: WEBSOCKET })
  assert.is(late.status, 503)
  assert.is(late.headers.get('retry-after'), '5')
  assert.is(upgrades.length, 0)
  state.draining = false
  const offers = { ...WEBSOCKET, upgrade: 'WebSocket', 'sec-websocket-protocol': 'a, sotto.v1' }
  await request(`/v1/link/${key}`, { headers: offers })
  assert.is(upgrades.length, 1)
})

test('attack: one address that asks too often waits, says for how long, and nobody else does', async () => {
  const { request, clock, upgrades, ports } = await testRelay({
    limits: { 'address.requests': 2, 'address.requestsBurst': 10 },
  })
  const { key } = agent()
  const path = `/v1/link/${key}`
  for (let i = 0; i < 50; i++) await request(path, { headers: WEBSOCKET, from: '2001:db8::1' })
  assert.is(upgrades.length, 10)
  // The same /64 is the same host.
  const refused = await request(path, { headers: WEBSOCKET, from: '2001:db8::2' })
  assert.is(refused.status, 429)
  assert.is(refused.headers.get('retry-after'), '1')
  assert.match(await problemCode(refused), /^quota\//)
  await request(path, { headers: WEBSOCKET, from: '2001:db8:0:1::1' })
  assert.is(upgrades.length, 11)
  assert.ok(ports.metrics.refused.cell({ reason: 'quota' }).value >= 40)
  clock.advance(1000)
  for (let i = 0; i < 5; i++) await request(path, { headers: WEBSOCKET, from: '2001:db8::1' })
  assert.is(upgrades.length, 13)
})

test('attack: a large body is refused, with its length and without', async () => {
  const { request, ports } = await testRelay()
  const { secret } = (await ports.credentials.ensureAdmin())!
  const headers = { 'content-type': 'application/json' }
  const body = JSON.stringify({ scope: 'home', label: 'x'.repeat(BODY_BYTES_MAX) })
  const whole = await request('/api/v1/keys', { method: 'POST', key: secret, headers, body })
  assert.is(whole.status, 413)
  assert.is(await problemCode(whole), 'http/body')
  let pulled = 0
  const endless = new ReadableStream<Uint8Array>({
    pull(controller) {
      pulled++
      controller.enqueue(new Uint8Array(16_384))
    },
  })
  const init = { method: 'POST', key: secret, headers, body: endless, duplex: 'half' }
  const streamed = await request('/api/v1/keys', init as RequestInit)
  assert.is(streamed.status, 413)
  assert.ok(pulled < 10, `${pulled} chunks were read`)
})

test('attack: an error from below shows nothing of itself, and is in the log', async () => {
  const relay = await testRelay({
    ports: {
      upgrade() {
        throw new Error('secret path /srv/relay/x.ts')
      },
    },
  })
  const response = await relay.request(`/v1/link/${agent().key}`, { headers: WEBSOCKET })
  assert.is(response.status, 500)
  assert.not.match(await response.clone().text(), /srv/)
  assert.is(await problemCode(response), 'relay/fault')
  assert.ok(relay.lines.some((line) => line.includes('secret path')))
})

test('attack: a request line cannot write its own log lines, and queries are not logged', async () => {
  const { request, lines } = await testRelay()
  await request('/x%0a%7b%22level%22%3a%22info%22%7d?api_key=sk_home_zzz')
  await request('/%E2%80%AE%1b[2J')
  for (const line of lines) {
    assert.match(line, /^[ -~]*$/)
    JSON.parse(line)
    assert.not.match(line, /api_key|zzz/)
  }
  assert.is(lines.length, 2)
})

test('requests are counted by class of status', async () => {
  const { request, ports } = await testRelay()
  await request('/healthz')
  await request('/nowhere')
  assert.is(ports.metrics.requests.cell({ status: '2xx' }).value, 1)
  assert.is(ports.metrics.requests.cell({ status: '4xx' }).value, 1)
})

test.run()
