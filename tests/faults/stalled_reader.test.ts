// seconds: 150
// alone
/**
 * One visitor that stops reading must cost the others nothing, the relay no more than its window, and
 * stop the upstream: over bulk links, over streams of one link, and over a way of 100 ms, where
 * windows are large. Speeds are compared with each other, never with a clock.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fleet } from '../support/fleet.ts'
import type { Program, RelayProgram } from '../support/fleet.ts'
import { Visitor } from '../support/visitor.ts'

const MIB = 1_048_576
const READERS = 7
const STALLED = 16
/** What the relay may hold for one: `INGRESS_WINDOW_BYTES_MAX`. */
const WINDOW_BYTES = 2 * MIB
/** Allocators round up, and garbage is collected later. */
const SLACK_BYTES = 24 * MIB
/** Everything between upstream and visitor that may fill up: socket buffers of up to five hops, the long way. */
const WAY_BYTES_MAX = 128 * MIB
const WINDOW_MS = 1200
const KEPT = 0.9
const ATTEMPTS = 4
const ENDLESS = `/bytes/${1e13}`

interface Scene {
  fleet: Fleet
  relay: RelayProgram
  upstream: Program
  to: { port: number; name: string }
}

async function scene(
  { bulk, delayMs }: { bulk: boolean; delayMs: number },
  run: (scene: Scene) => Promise<void>,
): Promise<void> {
  const fleet = await Fleet.open()
  try {
    const relay = await fleet.relay({
      flags: ['--log-level', 'error', ...(bulk ? [] : ['--bulk', '0'])],
    })
    const upstream = await fleet.upstream()
    const port = delayMs > 0 ? await fleet.delayed(relay.port, delayMs) : relay.port
    await fleet.agent({
      relay: `https://localhost:${port}`,
      tunnels: [{ name: 'web', upstream: String(upstream.port) }],
    })
    const to = { port: relay.port, name: 'web' }
    await run({ fleet, relay, upstream: upstream.program, to })
  } finally {
    await fleet.close()
  }
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

/** A visitor that reads its first bytes and no more; resolves when its upstream has stopped. */
async function stall({ to, upstream }: Scene, id: string): Promise<Visitor> {
  const url = `${ENDLESS}/${id}`
  const visitor = await Visitor.get(to, url)
  await visitor.until(1000)
  visitor.socket.pause()
  let last = -1
  for (let calm = 0, i = 0; calm < 3; i++) {
    assert.ok(i < 150, `the upstream goes on: ${last} bytes sent to a visitor that does not read`)
    const sent = (await upstream.ask({ do: 'sent', url }))['sent'] as number
    calm = sent === last ? calm + 1 : 0
    last = sent
    await pause(100)
  }
  assert.ok(last < WAY_BYTES_MAX, `${last} bytes were taken from the upstream`)
  return visitor
}

/** Bytes that the readers got in equal times. */
async function measure(readers: Visitor[]): Promise<number> {
  const before = readers.reduce((sum, { received }) => sum + received, 0)
  const started = performance.now()
  await pause(WINDOW_MS)
  const bytes = readers.reduce((sum, { received }) => sum + received, 0) - before
  return bytes / (performance.now() - started)
}

async function unharmed(at: Scene, id: string): Promise<void> {
  const readers = await Promise.all(
    Array.from({ length: READERS }, () => Visitor.get(at.to, ENDLESS)),
  )
  await Promise.all(readers.map((reader) => reader.until(4 * MIB)))
  const ratios: number[] = []
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const before = await measure(readers)
    const stalled = await stall(at, `${id}-${attempt}`)
    const beside = await measure(readers)
    stalled.close()
    const after = await measure(readers)
    ratios.push(beside / ((before + after) / 2))
    if (ratios.at(-1)! >= KEPT) break
  }
  for (const reader of readers) reader.close()
  const words = ratios.map((ratio) => ratio.toFixed(2)).join(', ')
  assert.ok(ratios.some((ratio) => ratio >= KEPT), `seven kept ${words} of their speed`)
}

async function bounded(at: Scene): Promise<void> {
  const before = at.relay.residentBytes
  const stalled = await Promise.all(
    Array.from({ length: STALLED }, (_, i) => stall(at, `bounded-${i}`)),
  )
  const grown = at.relay.residentBytes - before
  assert.ok(
    grown <= STALLED * WINDOW_BYTES + SLACK_BYTES,
    `${STALLED} stalled visitors cost ${(grown / MIB).toFixed(1)} MiB`,
  )
  // Each goes on where it was when it reads again.
  await Promise.all(stalled.map(async (visitor) => {
    const before = visitor.received
    visitor.socket.resume()
    await visitor.until(before + 2 * MIB)
    visitor.close()
  }))
}

const test = suite('faults/stalled_reader')

for (const bulk of [true, false]) {
  for (const delayMs of [0, 100]) {
    const way = `${bulk ? 'bulk links' : 'streams'}${delayMs > 0 ? `, ${delayMs} ms away` : ''}`

    test(`a stalled reader stops its upstream, and costs the others and the relay little (${way})`, async () => {
      await scene({ bulk, delayMs }, async (at) => {
        await unharmed(at, 'stalled')
        await bounded(at)
      })
    })
  }
}

test.run()
