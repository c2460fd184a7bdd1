// seconds: 120
/**
 * Two hundred visitors that come and end in every way there is, round after round: descriptors and
 * visitors of relay and agent return to where they were, and memory does not grow from round to round.
 */
import { connect } from 'node:net'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fleet } from '../support/fleet.ts'
import type { Program } from '../support/fleet.ts'
import { visit, Visitor } from '../support/visitor.ts'

const VISITORS = 200
const AT_ONCE = 20
const ROUNDS = 10
/** Until then heaps and pools grow into their shape. */
const WARM = 5
/** Rounds whose lowest figure is taken. */
const LOWS_OF = 3
const MIB = 1_048_576
/** What a heap may breathe between two rounds that leak nothing. */
const BREATH_BYTES = 16 * MIB

type To = { port: number; name: string }

/** Each way in which a visit can end. */
const ENDS: ((to: To) => Promise<void>)[] = [
  // In order, by the upstream.
  async (to) => assert.is((await visit(to)).status, 200),
  // By the visitor, in the middle of a download.
  async (to) => {
    const visitor = await Visitor.get(to, `/bytes/${8 * MIB}`)
    await visitor.until(100_000)
    visitor.close()
  },
  // By a reset in the middle of it.
  async (to) => {
    const visitor = await Visitor.get(to, `/bytes/${8 * MIB}`)
    await visitor.until(1000)
    visitor.socket.pause()
    visitor.socket.resetAndDestroy()
    visitor.close()
  },
  // By the visitor's FIN right behind the handshake.
  async (to) => {
    const visitor = await Visitor.open(to)
    visitor.socket.end()
    await visitor.end(5000)
    visitor.close()
  },
  // By the visitor's FIN, in the middle of an answer that has no end.
  async (to) => {
    const visitor = await Visitor.get(to, '/ticks')
    await visitor.until(100)
    visitor.socket.end()
    await visitor.end()
    visitor.close()
  },
  // In the middle of the first flight.
  (to) =>
    new Promise((resolve) => {
      const socket = connect({ port: to.port, host: '127.0.0.1' }, () => {
        socket.write(Uint8Array.of(0x16, 0x03, 0x01, 0x02, 0x00, 0x01))
        socket.destroy()
        resolve()
      })
    }),
  // While it asks for a name that nobody serves.
  async (to) => {
    const error = await Visitor.open({ ...to, name: 'nobody' }).then(
      () => undefined,
      (error) => error as Error,
    )
    assert.ok(error)
  },
  // At an upstream that is not there, with a page.
  async (to) => assert.is((await visit({ ...to, name: 'broken' })).status, 502),
  // With half an upload sent.
  async (to) => {
    const visitor = await Visitor.open(to)
    visitor.socket.write('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nhalf')
    await visitor.until(10).catch(() => {})
    visitor.close()
  },
]

async function round(to: To): Promise<void> {
  let left = VISITORS
  const one = async (): Promise<void> => {
    while (left-- > 0) await ENDS[left % ENDS.length]!(to)
  }
  await Promise.all(Array.from({ length: AT_ONCE }, one))
}

async function settled(program: Program, count: () => number, most: number): Promise<void> {
  for (let i = 0; count() > most; i++) {
    assert.ok(i < 150, `${program.name} has ${count()} open, expected at most ${most}`)
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}

const test = suite('faults/leaks')

for (const bulk of [true, false]) {
  test(`nothing is left of visitors that went, whatever way they took (${bulk ? 'bulk links' : 'streams'})`, async () => {
    const fleet = await Fleet.open()
    try {
      const relay = await fleet.relay({ flags: ['--log-level', 'error'] })
      const upstream = await fleet.upstream()
      const closed = await fleet.upstream()
      await closed.program.kill()
      const agent = await fleet.agent({
        relay: `https://localhost:${relay.port}`,
        bulk,
        tunnels: [
          { name: 'web', upstream: String(upstream.port) },
          { name: 'broken', upstream: String(closed.port) },
        ],
      })
      const to = { port: relay.port, name: 'web' }
      await round(to)
      const idle = (await agent.ask({ do: 'counts' }))['bulkIdle'] as number
      // The pool that grew under the rush stays for a while: one descriptor each, at both ends.
      const pool = bulk ? 128 - idle : 0
      const handles = { relay: relay.handles, agent: agent.handles }
      const memory: { relay: number; agent: number }[] = []
      for (let i = 0; i < ROUNDS; i++) {
        await round(to)
        await settled(relay, () => relay.handles, handles.relay + pool)
        await settled(agent, () => agent.handles, handles.agent + pool)
        // It collects its garbage before it answers.
        await agent.ask({ do: 'counts' })
        memory.push({ relay: relay.residentBytes, agent: agent.residentBytes })
      }
      for (let i = 0;; i++) {
        const { visitors } = await agent.ask({ do: 'counts' })
        if (visitors === 0) break
        assert.ok(i < 100, `${visitors} visitors are left at the agent`)
        await new Promise((resolve) => setTimeout(resolve, 100))
      }
      // Of visitors nothing stays but the pool, whose size both ends tell.
      const { bulkIdle } = await agent.ask({ do: 'counts' })
      const open = 40 + 2 * (bulkIdle as number)
      await settled(agent, () => agent.handles, open)
      await settled(relay, () => relay.handles, open)
      for (const side of ['relay', 'agent'] as const) {
        // Between two collections a heap swings; its lows tell what stays.
        const low = (from: number): number =>
          Math.min(...memory.slice(from, from + LOWS_OF).map((sizes) => sizes[side]))
        const grown = low(ROUNDS - LOWS_OF) - low(WARM - LOWS_OF + 1)
        const words = memory.map((sizes) => (sizes[side] / MIB).toFixed(0)).join(', ')
        assert.ok(grown < BREATH_BYTES, `${side} grew round by round: ${words} MiB`)
      }
    } finally {
      await fleet.close()
    }
  })
}

test.run()
