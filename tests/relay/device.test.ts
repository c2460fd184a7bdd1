// Logins as RFC 8628 has them, and whoever attacks them: guesses at codes, replayed device codes, impatient
// polling, time, another relay's question, forms of other sites, two approvals at once.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ManualClock } from '../../core/clock.ts'
import { formatKey } from '../../core/key.ts'
import { readUserCode, USER_CODE_ALPHABET } from '../../core/login.ts'
import {
  ADDRESS_BEGINS_MAX,
  ADDRESS_ENTRIES_MAX,
  ADDRESS_SIGNUPS_MAX,
  ENTRIES_MAX,
  LOGIN_SECONDS,
  Logins,
  POLLS_MAX,
  WAITING_MAX,
  WINDOW_MS,
} from '../../relay/device.ts'
import { DeviceDesk } from '../../relay/device_desk.ts'
import { memoryStore } from '../../relay/store/memory.ts'
import { fast } from '../support/crypto.ts'
import { DevicePage, formBody, GRANT_TYPE, LoginDevice } from '../support/login.ts'
import { rejection } from '../support/rejection.ts'
import { testRelay } from '../support/relay_app.ts'
import type { TestRelay } from '../support/relay_app.ts'

const test = suite('relay/device')

interface Bench extends TestRelay {
  device(who?: string): LoginDevice
  page(from?: string): DevicePage
  admin: string
}

async function bench(options: Parameters<typeof testRelay>[0] = {}): Promise<Bench> {
  const relay = await testRelay({ limits: { 'address.requests': 1e6 }, ...options })
  const admin = (await relay.ports.credentials.ensureAdmin())!.secret
  const send = (path: string, init: RequestInit) => relay.request(path, init)
  return {
    ...relay,
    admin,
    device: (who) => new LoginDevice(fast, send, formatKey(relay.identity.public), who),
    page: (from) =>
      new DevicePage((path, init) =>
        relay.request(path, { ...init, ...(from === undefined ? {} : { from }) })
      ),
  }
}

/** Another code with the same first half. */
function nearly(code: string, step: number): string {
  const last = USER_CODE_ALPHABET.indexOf(code.at(-1)!)
  return code.slice(0, -1) + USER_CODE_ALPHABET[(last + step) % USER_CODE_ALPHABET.length]!
}

test('a login is approved by the admin key and gets an API key of a new scope, sealed', async () => {
  const t = await bench()
  const device = t.device()
  const offer = await device.begin()
  assert.match(device.userCode, /^[BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4}$/)
  assert.is(offer['verification_uri'], 'https://relay.example.com/device')
  assert.is(
    offer['verification_uri_complete'],
    `https://relay.example.com/device?user_code=${device.userCode}`,
  )
  assert.equal([offer['expires_in'], offer['interval']], [600, 5])
  assert.equal(await device.poll(), { status: 400, error: 'authorization_pending' })
  const approved = await t.request('/api/v1/logins/approve', {
    method: 'POST',
    key: t.admin,
    json: { code: device.userCode.toLowerCase().replace('-', ' ') },
  })
  assert.is(approved.status, 200)
  const { scope, who } = await approved.json() as { scope: string; who: string }
  assert.match(scope, /^ana-[a-z]{4}$/)
  assert.is(who, 'ana@laptop')
  t.clock.advance(5000)
  const answer = await device.poll()
  assert.is(answer.status, 200)
  assert.is(answer['token_type'], 'sotto-sealed')
  assert.is(answer['scope'], scope)
  const secret = device.open(answer)
  assert.match(secret, /^sk_ana-[a-z]{4}_/)
  const grant = await t.ports.credentials.verify(secret)
  assert.equal([grant.scope, grant.admin], [scope, false])
  // Used: nobody gets another by the same device code.
  t.clock.advance(5000)
  assert.is((await device.poll())['error'], 'invalid_grant')
  assert.is((await t.ports.credentials.list({ scope })).length, 1)
})

test('neither store nor log holds a code or the key', async () => {
  const t = await bench()
  const device = t.device()
  await device.begin()
  const rows = JSON.stringify(await t.store.list('device-', { limit: 100 }))
  await t.request('/api/v1/logins/approve', {
    method: 'POST',
    key: t.admin,
    json: { code: device.userCode, scope: 'home' },
  })
  const secret = device.open(await device.poll())
  const all = rows + t.lines.join('\n') +
    JSON.stringify(await t.store.list('credential', { limit: 100 }))
  for (
    const kept of [device.userCode, device.userCode.replace('-', ''), device.deviceCode, secret]
  ) {
    assert.not.ok(all.includes(kept))
  }
  assert.not.ok(all.includes(device.userCode.slice(0, 4)), 'nor half of it')
})

test('polls that come early are slowed down by 5 s each, and late ones are not', async () => {
  const t = await bench()
  const device = t.device()
  await device.begin()
  const poll = async (afterMs: number): Promise<unknown> => {
    t.clock.advance(afterMs)
    return (await device.poll())['error']
  }
  assert.is(await poll(0), 'authorization_pending')
  assert.is(await poll(4999), 'slow_down')
  assert.is(await poll(9999), 'slow_down', 'the interval is 10 s now')
  assert.is(await poll(15_000), 'authorization_pending')
  assert.is(await poll(15_000), 'authorization_pending')
})

test('a code expires to the millisecond, for the device and for who approves', async () => {
  const t = await bench()
  const [device, other] = [t.device(), t.device()]
  await device.begin()
  await other.begin()
  t.clock.advance(LOGIN_SECONDS * 1000 - 1)
  assert.is((await device.poll())['error'], 'authorization_pending')
  const approve = async (code: string): Promise<number> =>
    (await t.request('/api/v1/logins/approve', { method: 'POST', key: t.admin, json: { code } }))
      .status
  t.clock.advance(1)
  assert.is((await device.poll())['error'], 'expired_token')
  assert.is(await approve(other.userCode), 404)
  assert.is((await other.poll())['error'], 'expired_token')
})

test('an approval that nobody fetches in time makes no key', async () => {
  const t = await bench()
  const device = t.device()
  await device.begin()
  await t.request('/api/v1/logins/approve', {
    method: 'POST',
    key: t.admin,
    json: { code: device.userCode, scope: 'home' },
  })
  t.clock.advance(LOGIN_SECONDS * 1000)
  assert.is((await device.poll())['error'], 'expired_token')
  assert.is((await t.ports.credentials.list({ scope: 'home' })).length, 0)
})

test('one that is turned away hears access_denied', async () => {
  const t = await bench()
  const device = t.device()
  await device.begin()
  const denied = await t.request('/api/v1/logins/deny', {
    method: 'POST',
    key: t.admin,
    json: { code: device.userCode },
  })
  assert.is(denied.status, 204)
  assert.is((await device.poll())['error'], 'access_denied')
})

test('of two approvals at once one holds, and a replayed device code gets nothing', async () => {
  const t = await bench()
  const device = t.device()
  await device.begin()
  const codes = await Promise.all(
    ['one', 'two', 'three'].map(async (scope) =>
      (await t.request('/api/v1/logins/approve', {
        method: 'POST',
        key: t.admin,
        json: { code: device.userCode, scope },
      })).status
    ),
  )
  assert.equal(codes.sort(), [200, 404, 404])
  const answers = await Promise.all([device.poll(), device.poll(), device.poll()])
  assert.equal(answers.map(({ status }) => status).sort(), [200, 400, 400])
  const made = await t.ports.credentials.list({ limit: 100 })
  assert.is(made.filter(({ label }) => label.startsWith('login of')).length, 1)
})

test('the key opens for the machine that asked alone', async () => {
  const t = await bench()
  const [device, thief] = [t.device(), t.device('thief@else')]
  await device.begin()
  await t.request('/api/v1/logins/approve', {
    method: 'POST',
    key: t.admin,
    json: { code: device.userCode, scope: 'home' },
  })
  // One that ends TLS in between has the device code, and all that the relay answers.
  const answer = await thief.poll(device.deviceCode)
  assert.is(answer.status, 200)
  thief.deviceCode = device.deviceCode
  assert.throws(
    () => thief.open(answer),
    (error: { code: string }) => error.code === 'login/forged',
  )
  assert.match(device.open(answer), /^sk_home_/)
  const token = String(answer['access_token'])
  for (let at = 0; at < token.length - 1; at += 7) {
    const other = token[at] === 'A' ? 'B' : 'A'
    const changed = token.slice(0, at) + other + token.slice(at + 1)
    assert.throws(() => device.open({ access_token: changed }), /Cannot log in/)
  }
})

test('a question that was signed for another relay is not taken, nor one with a changed part', async () => {
  const [t, other] = [await bench(), await bench()]
  const device = other.device()
  const ask = async (fields: Record<string, string>): Promise<unknown[]> => {
    const response = await t.request('/v1/device/code', formBody(fields))
    return [response.status, (await response.json() as Record<string, unknown>)['error']]
  }
  // What a hostile relay would hand on, to have its visitor approve it elsewhere.
  assert.equal(await ask(device.fields()), [400, 'invalid_request'])
  const good = t.device().fields()
  for (const [name, value] of Object.entries(t.device('eve@else').fields())) {
    if (name === 'client_id') continue
    assert.equal(await ask({ ...good, [name]: value }), [400, 'invalid_request'], name)
    assert.equal(await ask({ ...good, [name]: '' }), [400, 'invalid_request'], name)
    assert.equal(await ask({ ...good, [name]: '\u00fc~' }), [400, 'invalid_request'], name)
  }
  assert.equal(await ask({ ...good, client_id: 'other' }), [400, 'invalid_client'])
  // A code of one relay is none at another.
  const elsewhere = other.device()
  await elsewhere.begin()
  const approve = await t.request('/api/v1/logins/approve', {
    method: 'POST',
    key: t.admin,
    json: { code: elsewhere.userCode },
  })
  assert.is(approve.status, 404)
  assert.is((await t.device().poll(elsewhere.deviceCode))['error'], 'invalid_grant')
})

test('three wrong second halves burn a code, and one sentence tells of all that is wrong', async () => {
  const t = await bench()
  const device = t.device()
  await device.begin()
  const sentences = new Set<string>()
  for (let step = 1; step <= 3; step++) {
    const response = await t.request('/api/v1/logins/look', {
      method: 'POST',
      key: t.admin,
      json: { code: nearly(device.userCode, step) },
    })
    assert.is(response.status, 404)
    sentences.add(JSON.stringify(await response.json()))
  }
  const right = await t.request('/api/v1/logins/look', {
    method: 'POST',
    key: t.admin,
    json: { code: device.userCode },
  })
  assert.is(right.status, 404)
  sentences.add(JSON.stringify(await right.json()))
  assert.is(sentences.size, 1)
  assert.is((await device.poll())['error'], 'access_denied')
})

test('two wrong ones do not, and a wrong first half burns nothing', async () => {
  const t = await bench()
  const device = t.device()
  await device.begin()
  const look = async (code: string): Promise<number> =>
    (await t.request('/api/v1/logins/look', { method: 'POST', key: t.admin, json: { code } }))
      .status
  for (const step of [1, 2]) assert.is(await look(nearly(device.userCode, step)), 404)
  for (let i = 0; i < 10; i++) assert.is(await look(`ZZZZ-${device.userCode.slice(5)}`), 404)
  assert.is(await look(device.userCode), 200)
})

test('one address may enter so many codes on the page in ten minutes, right ones too', async () => {
  const t = await bench()
  const page = t.page('203.0.113.9')
  await page.open()
  for (let i = 0; i < ADDRESS_ENTRIES_MAX; i++) {
    await page.submit({ step: 'look', code: 'BBBB-BBBB' })
    assert.is(page.status, 404, String(i))
  }
  const device = t.device()
  await device.begin()
  await page.submit({ step: 'look', code: device.userCode })
  assert.is(page.status, 429)
  assert.not.match(page.html, /ana@laptop/)
  const other = t.page('203.0.113.10')
  await other.open()
  await other.submit({ step: 'look', code: device.userCode })
  assert.is(other.status, 200, 'nobody else is kept out')
  // Who has the admin key is not kept out by what others at the address did.
  await page.submit({ step: 'approve', code: device.userCode, key: t.admin, scope: 'home' })
  assert.is(page.status, 200)
  t.clock.advance(WINDOW_MS)
  const next = t.device()
  await next.begin()
  await page.submit({ step: 'look', code: next.userCode })
  assert.is(page.status, 200)
})

test('one address begins so many logins, all together so many wait, and all are forgotten', async () => {
  const t = await bench()
  const begin = async (from: string): Promise<number> =>
    (await t.request('/v1/device/code', { ...formBody(t.device().fields()), from })).status
  for (let i = 0; i < ADDRESS_BEGINS_MAX; i++) assert.is(await begin('203.0.113.1'), 200)
  assert.is(await begin('203.0.113.1'), 429)
  // A host of IPv6 has a whole network to ask from.
  for (let i = 0; i < ADDRESS_BEGINS_MAX; i++) assert.is(await begin(`2001:db8::${i + 1}`), 200)
  assert.is(await begin('2001:db8::ffff'), 429)
  for (let i = ADDRESS_BEGINS_MAX * 2; i < WAITING_MAX; i++) {
    const status = await begin(`10.1.${i >> 4}.1`)
    // Two that wait may share a half; then another code is drawn.
    assert.is(status, 200, String(i))
  }
  assert.is(await begin('10.2.0.1'), 429)
  t.clock.advance(LOGIN_SECONDS * 1000)
  assert.is(await begin('10.2.0.1'), 200)
  t.clock.advance(WINDOW_MS * 2)
  for (let i = 0; i < 60; i++) {
    t.clock.advance(WINDOW_MS)
    assert.is(await begin('10.2.0.1'), 200)
  }
  const left = await t.store.list('device-', { limit: 1000 })
  assert.ok(left.length < 60, `${left.length} rows are left`)
})

test('attack: codes from ever more addresses leave no more rows than tries are allowed', async () => {
  const store = memoryStore()
  const logins = new Logins({ store, clock: new ManualClock() })
  for (let i = 0; i < ENTRIES_MAX + 100; i++) {
    const address = `2001:db8:${(i >> 8).toString(16)}:${(i & 255).toString(16)}::1`
    const found = await rejection(logins.look({ user: 'none', check: 'none', address }))
    assert.is(found, i < ENTRIES_MAX ? 'login/code' : 'login/limit', String(i))
  }
  let count = 0
  let after: string | undefined
  for (;;) {
    const page = await store.list('device-tries/', {
      limit: 1000,
      ...(after === undefined ? {} : { after }),
    })
    count += page.length
    after = page.at(-1)?.key
    if (after === undefined) break
  }
  assert.is(count, ENTRIES_MAX + 1)
})

test('a device that never stops asking is told that its code is over', async () => {
  const t = await bench()
  const device = t.device()
  await device.begin()
  let last: unknown
  for (let i = 0; i <= POLLS_MAX; i++) last = (await device.poll())['error']
  assert.is(last, 'expired_token')
  assert.is((await device.poll())['error'], 'invalid_grant')
})

test('the endpoints read their forms strictly', async () => {
  const t = await bench()
  const ask = async (path: string, init: RequestInit): Promise<unknown[]> => {
    const response = await t.request(path, init)
    return [response.status, (await response.json() as Record<string, unknown>)['error']]
  }
  const token = { client_id: 'sotto', grant_type: GRANT_TYPE, device_code: 'x'.repeat(43) }
  assert.equal(await ask('/v1/device/token', formBody(token)), [400, 'invalid_grant'])
  assert.equal(
    await ask('/v1/device/token', formBody({ ...token, grant_type: 'password' })),
    [400, 'unsupported_grant_type'],
  )
  assert.equal(
    await ask('/v1/device/token', formBody({ client_id: 'sotto' })),
    [400, 'invalid_request'],
  )
  const twice = `${new URLSearchParams(token)}&client_id=sotto`
  assert.equal(
    await ask('/v1/device/token', { ...formBody(token), body: twice }),
    [400, 'invalid_request'],
  )
  const response = await t.request('/v1/device/token', { method: 'POST', body: '{}' })
  assert.is(response.status, 400)
  assert.is(response.headers.get('cache-control'), 'no-store')
  assert.is((await t.request('/v1/device/token')).status, 405)
})

test('the page: a code, who asks, a key; no script, no frame, nothing kept', async () => {
  const t = await bench()
  const device = t.device('<b>eve</b>@host')
  await device.begin()
  const page = t.page()
  const opened = await page.open(device.userCode)
  assert.ok(page.html.includes(`value="${device.userCode}"`))
  const policy = opened.headers.get('content-security-policy')!
  assert.match(policy, /default-src 'none'/)
  assert.match(policy, /form-action 'self'/)
  assert.match(policy, /frame-ancestors 'none'/)
  assert.is(opened.headers.get('cache-control'), 'no-store')
  const cookie = opened.headers.get('set-cookie')!
  for (const part of ['__Host-', 'HttpOnly', 'Secure', 'SameSite=Strict', 'Path=/']) {
    assert.ok(cookie.includes(part), part)
  }
  assert.not.match(page.html, /eve/, 'a code in a URL alone shows nobody who asks')
  await page.submit({ step: 'look', code: device.userCode })
  assert.match(page.html, /&lt;b&gt;eve/)
  assert.not.match(page.html, /<b>eve/)
  assert.match(page.html, /SHA256:/)
  await page.submit({ step: 'approve', code: device.userCode, key: 'ak_admin_wrong', scope: 'x' })
  assert.is(page.status, 401)
  assert.is((await device.poll())['error'], 'authorization_pending')
  await page.submit({ step: 'approve', code: device.userCode, key: t.admin, scope: 'admin' })
  assert.is(page.status, 400)
  await page.submit({ step: 'approve', code: device.userCode, key: t.admin, scope: 'Not A Scope' })
  assert.is(page.status, 400)
  await page.submit({ step: 'approve', code: device.userCode, key: t.admin, scope: 'home' })
  assert.is(page.status, 200)
  assert.not.ok(page.html.includes(t.admin))
  t.clock.advance(5000)
  assert.match(device.open(await device.poll()), /^sk_home_/)
})

test('forms of other sites, and of other browsers, change nothing', async () => {
  const t = await bench({ flags: { 'open-signup': 'true' } })
  const device = t.device()
  await device.begin()
  const page = t.page()
  await page.open()
  const fields = { step: 'signup', code: device.userCode }
  const { form } = page
  for (
    const headers of [
      { 'sec-fetch-site': 'cross-site' },
      { 'sec-fetch-site': 'same-site' },
      { 'sec-fetch-site': 'none' },
      { origin: 'https://evil.example' },
      { origin: 'null' },
      {},
    ]
  ) {
    await page.submit(fields, headers as Record<string, string>)
    assert.is(page.status, 403, JSON.stringify(headers))
  }
  await page.submit({ ...fields, form: 'x'.repeat(32) })
  assert.is(page.status, 403)
  const stranger = t.page()
  await stranger.open()
  await stranger.submit({ ...fields, form })
  assert.is(stranger.status, 403, 'a form of another browser')
  stranger.cookie = ''
  await stranger.submit(fields)
  assert.is(stranger.status, 403)
  assert.is((await device.poll())['error'], 'authorization_pending')
  await page.submit({ ...fields, form }, { origin: 'https://relay.example.com' })
  assert.is(page.status, 200, 'a browser that says its origin alone')
})

test('attack: where pages of agents share the origin of the relay, its page takes nothing', async () => {
  const t = await bench({ ports: { paths: true } })
  const device = t.device()
  await device.begin()
  const page = t.page()
  await page.open(device.userCode)
  assert.is(page.status, 200)
  assert.not.match(page.html, /<form|<input/)
  assert.match(page.html, /sotto relay approve CODE/)
  assert.is(page.cookie, '')
  // The form's token of another relay of the same identity, even.
  const { ports } = t
  page.cookie = `__Host-sotto-device=${'a'.repeat(22)}`
  page.form = new DeviceDesk(ports).formToken('a'.repeat(22))
  for (const step of ['look', 'approve', 'signup', 'deny']) {
    await page.submit({ step, code: device.userCode, key: t.admin })
    assert.is(page.status, 403, step)
  }
  assert.is((await device.poll())['error'], 'authorization_pending')
})

test('--open-signup lets a person in for a scope of their own, a few times; else nobody', async () => {
  const closed = await bench()
  const shut = closed.device()
  await shut.begin()
  const shutPage = closed.page()
  await shutPage.open()
  await shutPage.submit({ step: 'look', code: shut.userCode })
  assert.not.match(shutPage.html, /signup/)
  await shutPage.submit({ step: 'signup', code: shut.userCode })
  assert.is((await shut.poll())['error'], 'authorization_pending')

  const t = await bench({ flags: { 'open-signup': 'true' } })
  const scopes = new Set<string>()
  for (let i = 0; i <= ADDRESS_SIGNUPS_MAX; i++) {
    const device = t.device()
    await device.begin()
    const page = t.page()
    await page.open()
    await page.submit({ step: 'signup', code: device.userCode })
    if (i === ADDRESS_SIGNUPS_MAX) {
      assert.is(page.status, 429)
      break
    }
    assert.is(page.status, 200)
    const secret = device.open(await device.poll())
    const grant = await t.ports.credentials.verify(secret)
    assert.not.ok(grant.admin)
    scopes.add(grant.scope)
  }
  assert.is(scopes.size, ADDRESS_SIGNUPS_MAX)
})

test('an API key lets in to its own scope and no further; a fleet token nobody', async () => {
  const t = await bench()
  const own = await t.key('home', { expiresAt: t.clock.now() + 86_400_000 })
  const narrow = await t.key('home', { names: ['web'] })
  const token = await t.ports.credentials.create({ kind: 'token', scope: 'home' })
  const device = t.device()
  await device.begin()
  const approve = async (key: string, more: Record<string, unknown> = {}): Promise<number> =>
    (await t.request('/api/v1/logins/approve', {
      method: 'POST',
      key,
      json: { code: device.userCode, ...more },
    })).status
  assert.is(await approve(token.secret), 403)
  assert.is(await approve(narrow.secret), 403)
  assert.is(await approve(own.secret, { scope: 'else' }), 403)
  assert.is(await approve(own.secret), 403, 'it would outlive the key')
  const expiresAt = new Date(t.clock.now() + 3_600_000).toISOString()
  assert.is(await approve(own.secret, { expiresAt }), 200)
  const answer = await device.poll()
  assert.is(answer['expires_in'], 3600)
  assert.is((await t.ports.credentials.verify(device.open(answer))).scope, 'home')
})

test('an API key that guesses is counted by its address, the admin key is not', async () => {
  const t = await bench()
  const own = await t.key('home')
  const look = async (key: string): Promise<number> =>
    (await t.request('/api/v1/logins/look', { method: 'POST', key, json: { code: 'BBBB-BBBB' } }))
      .status
  for (let i = 0; i < ADDRESS_ENTRIES_MAX; i++) assert.is(await look(own.secret), 404)
  assert.is(await look(own.secret), 429)
  assert.is(await look(t.admin), 404)
})

test('a scope that a login gets by itself is one that nobody has', async () => {
  const t = await bench()
  const desk = new DeviceDesk(t.ports)
  for (const who of ['admin@x', '@', '---@x', 'Ana Maria@x', 'x'.repeat(64)]) {
    const scope = await desk.newScope(who)
    assert.match(scope, /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/)
    assert.match(scope, /-[a-z]{4}$/)
  }
})

test('readUserCode() reads what people type and nothing else', () => {
  for (const typed of ['WDJB-MJHT', 'wdjbmjht', ' wdjb mjht ', 'w d j b\u2013m j h t']) {
    assert.is(readUserCode(typed), 'WDJB-MJHT', typed)
  }
  for (const typed of ['', 'WDJB-MJH', 'WDJB-MJHTT', 'ADJB-MJHT', 'WDJB_MJHT', '0'.repeat(8)]) {
    assert.is(readUserCode(typed), undefined, typed)
  }
  assert.is(readUserCode(`WDJB-MJHT${' '.repeat(1e6)}`), undefined)
})

test.run()
