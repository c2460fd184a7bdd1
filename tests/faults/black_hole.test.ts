// seconds: 120
// needs: root nft ip
/**
 * A network that swallows every packet and says nothing, by nftables in a namespace of its own: no
 * reset and no end tells anybody. The agent notices within five seconds, the relay ends whoever was
 * on their way, and after the wire is whole the same URL works at once: what is left of the dead link
 * gets in nobody's way.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fleet } from '../support/fleet.ts'
import type { Program } from '../support/fleet.ts'
import { Namespace } from '../support/namespace.ts'
import { served, visit, Visitor } from '../support/visitor.ts'

const HOST = 'relay.sotto.test'
const NOTICED_MS_MAX = 5500
/** The relay hears nothing for 15 s, then gives the link up. */
const RELAY_NOTICED_MS_MAX = 17_000

interface Scene {
  wire: Namespace
  agent: Program
  upstream: Program
  to: { port: number; host: string; name: string; secure: string }
}

async function scene(bulk: boolean, run: (scene: Scene) => Promise<void>): Promise<void> {
  const wire = new Namespace(HOST)
  const fleet = await Fleet.open()
  try {
    const relay = await fleet.relay({ flags: ['--domain', HOST, '--host', wire.outside] })
    const upstream = await fleet.upstream(0, wire.within)
    const agent = await fleet.agent({
      relay: `https://${HOST}:${relay.port}`,
      bulk,
      tunnels: [{ name: 'web', upstream: String(upstream.port) }],
    }, { within: wire.within })
    const to = { port: relay.port, host: wire.outside, name: 'web', secure: `secure.${HOST}` }
    await served(to)
    await run({ wire, agent, upstream: upstream.program, to })
  } catch (error) {
    console.error(fleet.logs)
    throw error
  } finally {
    await fleet.close()
    wire.close()
  }
}

/** Over bulk links and over streams, beside each other: most of it is waiting. */
async function both(run: (scene: Scene) => Promise<void>): Promise<void> {
  await Promise.all([scene(true, run), scene(false, run)])
}

const test = suite('faults/black_hole')

test('a black hole is noticed within 5 s, and everybody in it gets an end', async () => {
  await both(async ({ wire, agent, upstream, to }) => {
    const visitors = await Promise.all([1, 2, 3].map(() => Visitor.get(to, '/ticks')))
    await Promise.all(visitors.map((visitor) => visitor.until(100)))
    const from = agent.events.length
    const cutMs = Date.now()
    wire.cut()
    const down = await agent.event('down', { from })
    assert.ok((down['atMs'] as number) - cutMs < NOTICED_MS_MAX)
    // Nothing told the upstream but the agent.
    for (let i = 0;; i++) {
      const { open } = await upstream.ask({ do: 'sent' })
      if (open === 0) break
      assert.ok(i < 100, `${open} connections are open at the upstream`)
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
    for (const visitor of visitors) await visitor.end(RELAY_NOTICED_MS_MAX)
    wire.heal()
    await agent.event('up', { from })
    await served(to)
  })
})

test('a wire that heals before the relay noticed serves every visitor at once', async () => {
  await both(async ({ wire, agent, to }) => {
    const from = agent.events.length
    wire.cut()
    await agent.event('down', { from })
    wire.heal()
    await agent.event('up', { from })
    const started = performance.now()
    for (let i = 0; i < 24; i++) assert.is((await visit(to, '/', 4000)).status, 200)
    const tookMs = performance.now() - started
    assert.ok(tookMs < 4000, `24 visitors took ${tookMs} ms: some waited for a dead link`)
  })
})

test('a wire that is dead one way is noticed as well', async () => {
  await scene(true, async ({ wire, agent, to }) => {
    const from = agent.events.length
    const cutMs = Date.now()
    wire.cut('in')
    const down = await agent.event('down', { from })
    assert.ok((down['atMs'] as number) - cutMs < NOTICED_MS_MAX)
    wire.heal()
    await agent.event('up', { from })
    for (let i = 0; i < 24; i++) assert.is((await visit(to, '/', 4000)).status, 200)
  })
})

test.run()
