// seconds: 90
/**
 * Agents and upstreams that die, and a wall clock that jumps, as real processes. Visitors get an end
 * or a page that says why, names are free for the next process, and pools go on without the lost.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fleet } from '../support/fleet.ts'
import { served, visit, Visitor } from '../support/visitor.ts'

const SEED = '07'.repeat(32)

const test = suite('faults/agent_loss')
let fleet: Fleet

test.before.each(async () => {
  fleet = await Fleet.open()
})
test.after.each(async () => {
  await fleet.close()
})

for (const bulk of [true, false]) {
  const way = bulk ? 'bulk links' : 'streams'

  test(`the visitors of a killed agent end, and its name is free at once (${way})`, async () => {
    const relay = await fleet.relay()
    const upstream = await fleet.upstream()
    const plan = {
      relay: `https://localhost:${relay.port}`,
      seed: SEED,
      bulk,
      tunnels: [{ name: 'web', upstream: String(upstream.port) }],
    }
    const to = { port: relay.port, name: 'web' }
    const agent = await fleet.agent(plan)
    const visitors = await Promise.all([1, 2, 3].map(() => Visitor.get(to, '/ticks')))
    await Promise.all(visitors.map((visitor) => visitor.until(100)))
    await agent.kill()
    for (const visitor of visitors) await visitor.end(5000)
    // Nobody serves the name: said at once, never a wait.
    const gone = await visit(to, '/', 3000).then(() => '', (error) => String(error.message))
    assert.match(gone, /UNRECOGNIZED_NAME|alert/i)
    // Another kind of endpoint under the same name: nothing of the old claim is left.
    const next = await fleet.agent({ ...plan, tunnels: [{ ...plan.tunnels[0]!, kind: 'tcp' }] })
    await served(to, 3000)
    assert.is((await next.event('up')).event, 'up')
  })

  test(`a pool goes on without a member that was killed (${way})`, async () => {
    const relay = await fleet.relay()
    const upstream = await fleet.upstream()
    const plan = {
      relay: `https://localhost:${relay.port}`,
      seed: SEED,
      bulk,
      tunnels: [{ name: 'web', upstream: String(upstream.port) }],
    }
    const to = { port: relay.port, name: 'web' }
    const [first, second] = await Promise.all([fleet.agent(plan), fleet.agent(plan)])
    const visitors = await Promise.all([1, 2, 3, 4].map(() => Visitor.get(to, '/ticks')))
    await Promise.all(visitors.map((visitor) => visitor.until(100)))
    assert.is((await first.ask({ do: 'counts' }))['visitors'], 2, 'shared evenly')
    await first.kill()
    const kept = (await Promise.all(visitors.map(async (visitor) => {
      const before = visitor.received
      return await visitor.until(before + 20, 3000).then(() => true, () => false)
    }))).filter(Boolean).length
    assert.is(kept, 2, 'the others did not notice')
    for (let i = 0; i < 10; i++) assert.is((await visit(to, '/', 3000)).status, 200)
    assert.ok(((await second.ask({ do: 'counts' }))['visitors'] as number) >= 2)
  })

  test(`a frozen pool member is passed over (${way})`, async () => {
    const relay = await fleet.relay()
    const upstream = await fleet.upstream()
    const plan = {
      relay: `https://localhost:${relay.port}`,
      seed: SEED,
      bulk,
      tunnels: [{ name: 'web', upstream: String(upstream.port) }],
    }
    const to = { port: relay.port, name: 'web' }
    const [first] = await Promise.all([fleet.agent(plan), fleet.agent(plan)])
    first.signal('SIGSTOP')
    // Its first visitor waits for an answer that does not come, then goes to the other.
    const started = performance.now()
    const answers = await Promise.all(Array.from({ length: 4 }, () => visit(to, '/', 9000)))
    assert.ok(answers.every(({ status }) => status === 200))
    assert.ok(performance.now() - started < 9000)
    // From then on it is last in line.
    for (let i = 0; i < 10; i++) assert.is((await visit(to, '/', 3000)).status, 200)
  })
}

test('an upstream that is gone is told by a page, and is used again when it is back', async () => {
  const relay = await fleet.relay()
  const upstream = await fleet.upstream()
  const agent = await fleet.agent({
    relay: `https://localhost:${relay.port}`,
    tunnels: [
      { name: 'web', upstream: String(upstream.port) },
      { name: 'bytes', upstream: String(upstream.port), kind: 'tcp' },
    ],
  })
  const web = { port: relay.port, name: 'web' }
  await served(web)
  const visitors = await Promise.all([
    Visitor.get(web, '/ticks'),
    Visitor.get({ ...web, name: 'bytes' }, '/ticks'),
  ])
  await Promise.all(visitors.map((visitor) => visitor.until(100)))
  await upstream.program.kill()
  for (const visitor of visitors) await visitor.end(5000)
  const page = await visit(web, '/', 5000)
  assert.is(page.status, 502)
  assert.match(page.text, /nothing listens/)
  assert.is((await agent.event('trouble'))['code'], 'net/refused')
  // Not HTTP: there is no page to be sent, but an end.
  const bytes = await Visitor.get({ ...web, name: 'bytes' }, '/', 5000).catch(() => undefined)
  await bytes?.end(5000)
  await fleet.upstream(upstream.port)
  await served(web, 3000)
  for (let i = 0;; i++) {
    const { visitors } = await agent.ask({ do: 'counts' })
    if (visitors === 0) break
    assert.ok(i < 100, `${visitors} visitors are left`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
})

test('a wall clock that jumps ahead, as after sleep, reconnects at once', async () => {
  const relay = await fleet.relay()
  const upstream = await fleet.upstream()
  const agent = await fleet.agent({
    relay: `https://localhost:${relay.port}`,
    tunnels: [{ name: 'web', upstream: String(upstream.port) }],
  })
  const to = { port: relay.port, name: 'web' }
  await served(to)
  const from = agent.events.length
  agent.tell({ do: 'jump', ms: 7_200_000 })
  const down = await agent.event('down', { from, ms: 3000 })
  assert.is(down['retryInMs'], 0)
  assert.match(String(down['reason']), /slept/)
  await agent.event('up', { from, ms: 5000 })
  await served(to, 3000)
  // A clock set back is no sleep.
  const calm = agent.events.length
  agent.tell({ do: 'jump', ms: -7_200_000 })
  const visitor = await Visitor.get(to, '/ticks')
  await visitor.until(200)
  assert.ok(!agent.events.slice(calm).some(({ event }) => event === 'down'))
})

test('a machine that wakes does not wait out a long retry', async () => {
  const relay = await fleet.relay()
  const upstream = await fleet.upstream()
  const agent = await fleet.agent({
    relay: `https://localhost:${relay.port}`,
    tunnels: [{ name: 'web', upstream: String(upstream.port) }],
  })
  await relay.kill()
  // Waits grow; one of some length is awaited, then broken.
  let from = agent.events.length
  for (;;) {
    const down = await agent.event('down', { from })
    if ((down['retryInMs'] as number) > 1500) break
    from = agent.events.indexOf(down) + 1
  }
  await fleet.relay({ port: relay.port, data: relay.data })
  from = agent.events.length
  agent.tell({ do: 'jump', ms: 3_600_000 })
  await agent.event('up', { from, ms: 5000 })
})

test.run()
