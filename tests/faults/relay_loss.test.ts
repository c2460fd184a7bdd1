// seconds: 120
/**
 * A relay that dies, freezes or restarts under its agents and visitors, as real processes: the agent
 * notices, comes back to the same URL, and no visitor is left hanging. Both ways in: bulk links and
 * streams.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fleet } from '../support/fleet.ts'
import type { Program, RelayProgram } from '../support/fleet.ts'
import { served, visit, Visitor } from '../support/visitor.ts'

/** The promise is 5 s; a timer on a crowded machine comes late. */
const NOTICED_MS_MAX = 5500
const GRACE_SECONDS = 20

interface Scene {
  fleet: Fleet
  relay: RelayProgram
  agent: Program
  upstream: Program
  to: { port: number; name: string }
}

async function scene(bulk: boolean, run: (scene: Scene) => Promise<void>): Promise<void> {
  const fleet = await Fleet.open()
  try {
    const relay = await fleet.relay({ flags: ['--grace', String(GRACE_SECONDS)] })
    const upstream = await fleet.upstream()
    const agent = await fleet.agent({
      relay: `https://localhost:${relay.port}`,
      bulk,
      tunnels: [{ name: 'web', upstream: String(upstream.port) }],
    })
    const to = { port: relay.port, name: 'web' }
    await served(to)
    await run({ fleet, relay, agent, upstream: upstream.program, to })
  } catch (error) {
    console.error(fleet.logs)
    throw error
  } finally {
    await fleet.close()
  }
}

/** What the lost visitors had open at the upstream is let go. */
async function empty(agent: Program): Promise<void> {
  for (let i = 0;; i++) {
    const { visitors } = await agent.ask({ do: 'counts' })
    if (visitors === 0) return
    assert.ok(i < 100, `${visitors} visitors are left`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

const test = suite('faults/relay_loss')

for (const bulk of [true, false]) {
  const way = bulk ? 'bulk links' : 'streams'

  test(`a killed relay is noticed, its visitors end, and the same URL comes back (${way})`, async () => {
    await scene(bulk, async ({ fleet, relay, agent, to }) => {
      const place = (await agent.event('up'))['places']
      const visitors = await Promise.all(Array.from({ length: 4 }, () => Visitor.get(to, '/ticks')))
      await Promise.all(visitors.map((visitor) => visitor.until(100)))
      const from = agent.events.length
      const killedMs = Date.now()
      await relay.kill()
      for (const visitor of visitors) await visitor.end(5000)
      const down = await agent.event('down', { from })
      assert.ok((down['atMs'] as number) - killedMs < NOTICED_MS_MAX)
      await fleet.relay({ port: relay.port, data: relay.data })
      const up = await agent.event('up', { from })
      assert.equal(up['places'], place)
      await served(to)
      await empty(agent)
    })
  })

  test(`a frozen relay is noticed within 5 s and taken up again when it thaws (${way})`, async () => {
    await scene(bulk, async ({ relay, agent, to }) => {
      const visitor = await Visitor.get(to, '/ticks')
      await visitor.until(100)
      const from = agent.events.length
      const frozenMs = Date.now()
      relay.signal('SIGSTOP')
      const down = await agent.event('down', { from })
      assert.ok((down['atMs'] as number) - frozenMs < NOTICED_MS_MAX)
      relay.signal('SIGCONT')
      await agent.event('up', { from })
      await visitor.end()
      await served(to)
      await empty(agent)
      // Neither the links of before nor what was queued meanwhile gets in the way of anybody.
      for (let i = 0; i < 12; i++) assert.is((await visit(to)).status, 200)
    })
  })

  test(`a restart lets a running download finish and turns new visitors away at once (${way})`, async () => {
    await scene(bulk, async ({ fleet, relay, agent, to }) => {
      const total = 8 * 1_048_576
      const download = await Visitor.get(to, `/bytes/${total}`)
      await download.until(1000)
      download.socket.pause()
      const from = agent.events.length
      relay.signal('SIGTERM')
      let refused = ''
      for (let i = 0; i < 100 && refused === ''; i++) {
        refused = await visit(to, '/', 5000).then(() => '', (error) => String(error.message))
      }
      assert.not.equal(refused, '', 'a draining relay takes no visitors')
      assert.not.match(refused, /hang/)
      assert.ok(relay.running, 'it waits for the download')
      download.socket.resume()
      await download.end()
      assert.ok(download.received > total, `${download.received} of ${total} bytes`)
      assert.is(await relay.exited, 0)
      await fleet.relay({ port: relay.port, data: relay.data })
      await agent.event('up', { from })
      await served(to)
    })
  })
}

test('a restart does not wait longer than its grace', async () => {
  const fleet = await Fleet.open()
  try {
    const relay = await fleet.relay({ flags: ['--grace', '1'] })
    const upstream = await fleet.upstream()
    await fleet.agent({
      relay: `https://localhost:${relay.port}`,
      tunnels: [{ name: 'web', upstream: String(upstream.port) }],
    })
    const visitor = await Visitor.get({ port: relay.port, name: 'web' }, '/ticks')
    await visitor.until(100)
    relay.signal('SIGTERM')
    await visitor.end()
    assert.is(await relay.exited, 0)
  } finally {
    await fleet.close()
  }
})

test('the command line says that the relay went and that it is back', async () => {
  const fleet = await Fleet.open()
  try {
    const relay = await fleet.relay()
    const upstream = await fleet.upstream()
    const agent = fleet.bun('sotto', [
      ...['agent/main.ts', 'http', String(upstream.port), '--name', 'web', '--json'],
      ...['--relay', `https://localhost:${relay.port}`],
    ])
    const { url } = await agent.event('up')
    await served({ port: relay.port, name: 'web' })
    const from = agent.events.length
    await relay.kill()
    await agent.event('down', { from })
    await fleet.relay({ port: relay.port, data: relay.data })
    assert.is((await agent.event('up', { from })).url, url)
    await served({ port: relay.port, name: 'web' })
    agent.signal('SIGINT')
    assert.is(await agent.exited, 130)
  } finally {
    await fleet.close()
  }
})

test.run()
