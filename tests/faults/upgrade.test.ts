// seconds: 120
// alone
/**
 * A relay that is replaced by another while visitors come and downloads run, as real processes: nobody
 * who comes is turned away, what runs goes on, and the agent is at the new one at once. What a plain
 * restart costs the same visitors is printed beside it.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fleet } from '../support/fleet.ts'
import type { RelayProgram } from '../support/fleet.ts'
import { served, visit, Visitor } from '../support/visitor.ts'

const AGENTS = 4
const AT_ONCE = 8
const DOWNLOADS = 8

const test = suite('faults/upgrade')

interface Figures {
  visits: number
  failed: string[]
  downloadsCut: number
  slowestMs: number
}

/** Visits without a pause while `replace` runs, and downloads that are open before and after. */
async function measured(
  fleet: Fleet,
  relay: RelayProgram,
  replace: () => Promise<void>,
): Promise<Figures> {
  const names = Array.from({ length: AGENTS }, (_, i) => `web${i}`)
  const { port } = relay
  const upstream = await fleet.upstream()
  await Promise.all(names.map((name) =>
    fleet.agent({
      relay: `https://localhost:${port}`,
      tunnels: [{ name, upstream: String(upstream.port) }],
    })
  ))
  await Promise.all(names.map((name) => served({ port, name })))
  const downloads = await Promise.all(Array.from({ length: DOWNLOADS }, async (_, i) => {
    const visitor = await Visitor.get({ port, name: names[i % AGENTS]! }, '/ticks')
    await visitor.until(100)
    return visitor
  }))
  const figures: Figures = { visits: 0, failed: [], downloadsCut: 0, slowestMs: 0 }
  let over = false
  const walkers = Array.from({ length: AT_ONCE }, async (_, i) => {
    for (let n = i; !over; n++) {
      const startMs = performance.now()
      try {
        const { status } = await visit({ port, name: names[n % AGENTS]! }, '/', 15_000)
        if (status !== 200) figures.failed.push(`status ${status}`)
      } catch (error) {
        figures.failed.push(String((error as Error).message))
      }
      figures.visits++
      figures.slowestMs = Math.max(figures.slowestMs, performance.now() - startMs)
    }
  })
  const before = figures.visits
  while (figures.visits < before + 100) await new Promise((resolve) => setTimeout(resolve, 10))
  await replace()
  const after = figures.visits
  while (figures.visits < after + 200) await new Promise((resolve) => setTimeout(resolve, 10))
  for (const download of downloads) {
    const { received } = download
    await download.until(received + 1, 5000).catch(() => figures.downloadsCut++)
  }
  over = true
  await Promise.all(walkers)
  for (const download of downloads) download.close()
  return figures
}

function print(what: string, { visits, failed, downloadsCut, slowestMs }: Figures): void {
  console.log(
    `${what}: ${visits} visits, ${failed.length} failed, ${downloadsCut} of ${DOWNLOADS} downloads cut, ` +
      `the slowest visit ${Math.round(slowestMs)} ms`,
  )
}

test('--take-over: nobody is turned away, and downloads go on', async () => {
  const fleet = await Fleet.open()
  try {
    const first = await fleet.relay({ flags: ['--grace', '60'] })
    const figures = await measured(fleet, first, async () => {
      await fleet.relay({ port: first.port, data: first.data, flags: ['--take-over'] })
    })
    print('take over', figures)
    assert.equal(figures.failed, [])
    assert.is(figures.downloadsCut, 0)
    // Its last visitors have gone: the old one ends by itself.
    assert.is(await first.exited, 0)
  } catch (error) {
    console.error(fleet.logs)
    throw error
  } finally {
    await fleet.close()
  }
})

test('one after another: each finds the one before it, and it ends', async () => {
  const fleet = await Fleet.open()
  try {
    let relay = await fleet.relay({ flags: ['--grace', '1'] })
    const { port, data } = relay
    for (let i = 0; i < 3; i++) {
      const next = await fleet.relay({ port, data, flags: ['--take-over', '--grace', '1'] })
      assert.is(await relay.exited, 0)
      relay = next
    }
  } finally {
    await fleet.close()
  }
})

test('a plain restart, for comparison', async () => {
  const fleet = await Fleet.open()
  try {
    const first = await fleet.relay({ flags: ['--grace', '1'] })
    const figures = await measured(fleet, first, async () => {
      first.signal('SIGTERM')
      await first.exited
      await fleet.relay({ port: first.port, data: first.data })
    })
    print('restart', figures)
    assert.ok(figures.failed.length > 0, 'there is something to be better than')
  } finally {
    await fleet.close()
  }
})

test('a second relay on the port is refused unless it takes over; nobody to take over from is no error', async () => {
  const fleet = await Fleet.open()
  try {
    const first = await fleet.relay({ flags: ['--take-over'] })
    const second = fleet.bun('second', [
      ...['relay/serve/bun_main.ts', '--data', `${first.data}-2`, '--domain', 'localhost'],
      ...['--host', '127.0.0.1', '--port', String(first.port)],
    ])
    assert.is(await second.exited, 1)
    assert.match(second.log, /the port is in use/)
    assert.ok(first.running)
  } finally {
    await fleet.close()
  }
})

test.run()
