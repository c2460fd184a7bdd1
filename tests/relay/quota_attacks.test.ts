/**
 * Each quota that a scope or an address may use up, used up by somebody who wants more: what comes
 * beyond is refused with a word for it, what is let go is free again, and nobody else notices.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { TLS_ALERTS } from '../../core/client_hello.ts'
import { RESET } from '../../core/frame.ts'
import type { Stream } from '../../core/mux.ts'
import { pickBackend } from '../../relay/backends.ts'
import type { Problem } from '../../relay/problem.ts'
import { hello, serverNames } from '../support/hello.ts'
import { testRelay } from '../support/relay_app.ts'
import { collect, makeStar } from '../support/star.ts'
import type { Star, TestAgent } from '../support/star.ts'

const test = suite('relay/quota_attacks')

const helloFor = (name: string): Uint8Array =>
  hello({ extensions: [serverNames(`${name}.secure.relay.test`)] } as Parameters<typeof hello>[0])

/** A visitor, and whether it was carried or turned away with an alert. */
async function visit(star: Star, agent: TestAgent, name: string) {
  const taken = new Promise<Stream>((resolve) => {
    agent.onOpen = (stream) => {
      stream.accept()
      resolve(stream)
    }
  })
  const visitor = star.visitor()
  visitor.write(helloFor(name))
  const told = collect(visitor, 7)
  return { visitor, outcome: await Promise.race([taken, told]) }
}

test('streams: a scope holds as many visitors as it may, and one more when one has left', async () => {
  const star = await makeStar({}, { 'scope.streams': 2 })
  try {
    const agent = await star.agent()
    await agent.claim('web')
    const first = await visit(star, agent, 'web')
    await visit(star, agent, 'web')
    const third = await visit(star, agent, 'web')
    assert.ok('bytes' in third.outcome, 'the third is turned away')
    if (!('bytes' in third.outcome)) return
    assert.equal([...third.outcome.bytes], [21, 3, 3, 0, 2, 2, TLS_ALERTS.internal_error])
    const other = await star.agent({ scope: 'bob' })
    await other.claim('free')
    assert.not(
      'bytes' in (await visit(star, other, 'free')).outcome,
      'another scope is not held up',
    )
    const gone = new Promise<void>((resolve) => {
      ;(first.outcome as Stream).handle({ data() {}, end() {}, closed: () => resolve() })
    })
    first.visitor.abort()
    await gone
    assert.not('bytes' in (await visit(star, agent, 'web')).outcome, 'room again')
  } finally {
    await star.close()
  }
})

test('streams: visits of other agents count as well, and are reset with `quota`', async () => {
  const star = await makeStar({}, { 'scope.streams': 1 })
  try {
    const home = await star.agent()
    await home.claim('db', { kind: 'tcp' })
    const guest = await star.agent({ role: 'visit', target: home.identity.public, scope: 'bob' })
    const open = (): Promise<string> => {
      const stream = guest.mux.open({
        kind: 'connect',
        port: 0,
        address: '',
        endpoint: 'db',
        tail: new Uint8Array(0),
      })
      return new Promise((resolve) => {
        stream.onAccept = () => resolve('taken')
        stream.handle({ data() {}, end() {}, closed: (error) => resolve((error as Problem).code) })
      })
    }
    home.onOpen = (stream) => stream.accept()
    assert.is(await open(), 'taken')
    assert.is(await open(), 'stream/quota')
    assert.is(star.quota.held('streams', { scope: 'alice' }), 1)
    home.opened[0]!.reset(RESET.aborted)
    // A link's frames are in order: once the next stream is answered, the reset was read.
    assert.is(
      await new Promise<string>((resolve) => {
        const later = (): void =>
          void open().then((word) => word === 'taken' ? resolve(word) : later())
        later()
      }),
      'taken',
    )
    guest.socket.terminate()
    await guest.closed
    assert.is(star.quota.held('streams', { scope: 'alice' }), 0, 'a lost link gives back')
  } finally {
    await star.close()
  }
})

test('streams: a readable exchange beyond them is a 429 with Retry-After', async () => {
  const star = await makeStar({}, { 'scope.streams': 1 })
  try {
    const agent = await star.agent()
    await agent.claim('app', { mode: 'inspectable' })
    const { endpoints } = star.relay
    const pick = () =>
      pickBackend(endpoints, 'app', {
        attempt: 1,
        blocked: false,
        quota: star.quota,
        address: '203.0.113.5',
      })!
    const backend = pick()
    const visit = { kind: 'http', port: 0, address: '', endpoint: 'app', tail: new Uint8Array(2) }
    backend.open(visit as Parameters<typeof backend.open>[0])
    let refused: Problem | undefined
    try {
      pick()
    } catch (error) {
      refused = error as Problem
    }
    assert.equal([refused?.status, refused?.code, refused?.headers['retry-after']], [
      429,
      'quota/exceeded',
      '1',
    ])
    backend.closed?.()
    assert.ok(pick())
  } finally {
    await star.close()
  }
})

test('requests: a link that asks more than its scope may is told so, and stays', async () => {
  const star = await makeStar({}, { 'scope.requests': 1, 'scope.requestsBurst': 3 })
  try {
    const agent = await star.agent()
    const replies = []
    for (let i = 0; i < 5; i++) replies.push(await agent.request({ do: 'passport' }))
    const codes = replies.map(({ ok, error }) => ok ? 'ok' : (error as { code: string }).code)
    assert.equal(codes, ['ok', 'ok', 'ok', 'quota/exceeded', 'quota/exceeded'])
    assert.match((replies[4]!['error'] as { hint: string }).hint, /^Try again in 1 s/)
    const other = await star.agent({ scope: 'bob' })
    assert.is((await other.request({ do: 'passport' }))['ok'], true)
  } finally {
    await star.close()
  }
})

test('requests: the API counts them by scope, from whatever address they come', async () => {
  const relay = await testRelay({ limits: { 'scope.requests': 1, 'scope.requestsBurst': 2 } })
  const [home, shop] = [await relay.key('home'), await relay.key('shop')]
  const ask = (key: string, from: string) => relay.request('/api/v1/grant', { key, from })
  assert.is((await ask(home.secret, '203.0.113.1')).status, 200)
  assert.is((await ask(home.secret, '203.0.113.2')).status, 200)
  const refused = await ask(home.secret, '203.0.113.3')
  assert.is(refused.status, 429)
  assert.is(refused.headers.get('retry-after'), '1')
  assert.is(((await refused.json()) as { error: { code: string } }).error.code, 'quota/exceeded')
  assert.is((await ask(shop.secret, '203.0.113.3')).status, 200)
  relay.clock.advance(1000)
  assert.is((await ask(home.secret, '203.0.113.3')).status, 200)
})

test('failures: wrong secrets of one scope are slowed down from many addresses', async () => {
  const relay = await testRelay({ limits: { 'scope.failures': 1, 'scope.failuresBurst': 3 } })
  const home = await relay.key('home')
  const statuses: number[] = []
  for (let i = 0; i < 5; i++) {
    const key = `sk_home_${String(i).padEnd(43, 'x')}`
    statuses.push((await relay.request('/api/v1/grant', { key, from: `203.0.113.${i}` })).status)
  }
  assert.equal(statuses, [401, 401, 401, 429, 429])
  const right = await relay.request('/api/v1/grant', { key: home.secret, from: '203.0.113.9' })
  assert.is(right.status, 200, 'nobody can lock a scope out by failing in its name')
})

test('failures: a link with a wrong secret is closed with 4429 once there were too many', async () => {
  const star = await makeStar({}, { 'address.failures': 1, 'address.failuresBurst': 2 })
  try {
    const codes: number[] = []
    for (let i = 0; i < 4; i++) {
      const credential = { kind: 'key', secret: `sk_alice_${'x'.repeat(43)}` } as const
      const message = await star.agent({ credential }).then(() => '', (error) => String(error))
      codes.push(Number(/closed (\d+)/.exec(message)?.[1]))
    }
    assert.equal(codes, [4401, 4401, 4429, 4429])
    assert.ok(await star.agent(), 'a good key from the same address is let in')
  } finally {
    await star.close()
  }
})

test.run()
