// seconds: 60
// needs: root mount
/**
 * A disk that is full where the relay keeps its store: a small tmpfs, filled to the last byte. What
 * needs the store fails with a sentence that says so; what does not need it goes on, and when there
 * is room again the store works as before, without a restart.
 */
import { spawnSync } from 'node:child_process'
import { closeSync, mkdirSync, openSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fleet } from '../support/fleet.ts'
import { served, visit, Visitor } from '../support/visitor.ts'

const test = suite('faults/disk_full')
let fleet: Fleet
let disk: string

test.before(async () => {
  fleet = await Fleet.open()
  disk = join(fleet.dir, 'disk')
  mkdirSync(disk)
  const { status, stderr } = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', disk])
  assert.is(status, 0, String(stderr))
})
test.after(async () => {
  spawnSync('umount', ['-l', disk])
  await fleet.close()
})

/** Takes all that is left of the disk, to the last byte. */
function fill(): void {
  const file = openSync(join(disk, 'filler'), 'w')
  try {
    for (const chunk of [65_536, 4096, 1]) {
      for (;;) {
        try {
          if (writeSync(file, new Uint8Array(chunk)) < chunk) break
        } catch (error) {
          assert.is((error as { code?: string }).code, 'ENOSPC')
          break
        }
      }
    }
  } finally {
    closeSync(file)
  }
}

test('a full disk refuses new names with the reason, and everything else goes on', async () => {
  const relay = await fleet.relay({ data: join(disk, 'relay') })
  const upstream = await fleet.upstream()
  const url = `https://localhost:${relay.port}`
  const seed = '05'.repeat(32)
  const tunnel = (name: string) => ({ name, upstream: String(upstream.port) })
  const agent = await fleet.agent({ relay: url, seed, tunnels: [tunnel('web')] })
  const to = { port: relay.port, name: 'web' }
  const visitor = await Visitor.get(to, '/ticks')
  await visitor.until(100)
  fill()
  // New names, until the pages that the store had to spare are used up too.
  let words = ''
  for (let i = 0; words === ''; i++) {
    assert.ok(i < 60, 'the store takes more than the disk holds')
    const late = await fleet.agent({ relay: url, tunnels: [tunnel(`full-${i}`)] }, { up: false })
    words = await Promise.race([
      late.event('down').then(({ reason }) => String(reason)),
      late.event('up').then(() => ''),
    ])
    await late.kill()
  }
  assert.is(words, 'Cannot write to the store: the disk or the database is full')
  // Who was there is served, old and new visitors; a link that is lost comes back to its own name.
  assert.is((await visit(to)).status, 200)
  const received = visitor.received
  await visitor.until(received + 50)
  const from = agent.events.length
  agent.tell({ do: 'jump', ms: 3_600_000 })
  await agent.event('up', { from })
  await served(to)
  assert.is(await statusOf(relay.port, '/healthz'), 200)
  // Room again: no restart is needed.
  rmSync(join(disk, 'filler'))
  await fleet.agent({ relay: url, tunnels: [tunnel('fresh')] })
  await served({ port: relay.port, name: 'fresh' })
  assert.ok(relay.running)
})

async function statusOf(port: number, path: string): Promise<number> {
  const response = await fetch(`https://localhost:${port}${path}`, {
    tls: { rejectUnauthorized: false },
  } as RequestInit)
  await response.body?.cancel()
  return response.status
}

test.run()
