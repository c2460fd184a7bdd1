// seconds: 300
/**
 * A fleet under one authority: 200 machines enroll by one secret over a real relay, listen, and are
 * written to by selector. Each is sent one message and gets it once; machines that the authority has
 * called otherwise get none, whatever they call themselves. The relay, the authority and the sender are
 * processes of their own; the machines are command lines in this one.
 */
import { readFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Place } from '../support/cli.ts'
import type { Running } from '../support/cli.ts'
import { event } from '../support/scene.ts'
import { E2eWorld } from '../support/world.ts'
import type { Line } from '../support/world.ts'

const MACHINES = 200
const OTHERS = 8
/** Command lines that enroll at once in this process. */
const AT_ONCE = 24
const ENROLL_MS_MAX = 120_000
/** All come from one address, which is what these are about. */
const QUOTA = 'address.requests=20000,scope.requests=20000,address.links=1000,scope.links=1000,' +
  'scope.names=1000'

const test = suite('e2e/fleet')

let world: E2eWorld
let place: Place
test.before.each(async () => {
  world = new E2eWorld()
  place = await Place.make()
})
test.after.each(async () => {
  await place.close()
  await world.close()
})

async function eachOf(names: readonly string[], run: (name: string) => Promise<void>) {
  const queue = [...names]
  const work = async (): Promise<void> => {
    for (let name = queue.shift(); name !== undefined; name = queue.shift()) await run(name)
  }
  await Promise.all(Array.from({ length: AT_ONCE }, work))
}

const named = (prefix: string, count: number): string[] =>
  Array.from({ length: count }, (_, i) => `${prefix}-${i}`)

test('200 machines of one authority get what a selector sends, each once, and no other does', async () => {
  const relay = await world.relay(['--quota', QUOTA, '--log-level', 'error'])
  const env = world.joins(relay)
  const made = await world.sottoRun(['authority', 'init', 'fleet'], { home: 'ops' })
  assert.is(made.code, 0, made.stderr)

  /** Enrolls all of `homes` by one secret, under a label. */
  const enroll = async (homes: readonly string[], role: string): Promise<void> => {
    const path = world.path(`${role}.secret`)
    const ops = world.sotto([
      ...['authority', 'enroll-code', 'fleet', '--json', '--secret-file', path],
      ...['--count', String(homes.length), '--names', `${role}-*`, '--label', `role=${role}`],
    ], { home: 'ops', env })
    await ops.event('open')
    const SOTTO_CODE = readFileSync(path, 'utf8').trim()
    await eachOf(homes, async (home) => {
      const words = ['enroll', '--name', home, '--allow', 'a2a']
      const { code, stderr } = await place.start(home, words, { env: { ...env, SOTTO_CODE } })
      assert.is(await code, 0, `${home}: ${stderr.text}`)
    })
    assert.is((await ops.ended).code, 0, ops.stderr)
    const enrolled = ops.lines.filter((line) => line.event === 'enrolled')
    assert.is(new Set(enrolled.map((line) => line['key'])).size, homes.length)
  }
  const webs = named('web', MACHINES)
  const others = named('db', OTHERS)
  const startMs = performance.now()
  await enroll(webs, 'web')
  const enrolledMs = performance.now()
  await enroll(others, 'db')
  await enroll(['boss-0'], 'boss')

  const listening = new Map<string, Running>()
  await eachOf([...webs, ...others], async (home) => {
    // What a machine says of itself is no label: an authority has signed another.
    const own = home.startsWith('db') ? ['--label', 'role=web'] : []
    const words = ['a2a', 'listen', '--name', home, '--json', ...own]
    const running = await place.start(home, words, { env })
    await event(running, 'listening')
    listening.set(home, running)
  })
  const got = (home: string): Line[] =>
    (listening.get(home)!.stdout.objects as Line[]).filter((line) => line.event === 'message')

  const sentMs = performance.now()
  const words = ['a2a', 'send', '--to', 'role=web', 'reload', '--json']
  const sent = await world.run(process.execPath, ['agent/main.ts', ...words], {
    env: { ...env, SOTTO_HOME: place.home('boss-0') },
    timeoutMs: ENROLL_MS_MAX,
  })
  const overMs = performance.now()
  assert.is(sent.code, 0, sent.stderr)
  const lines: Line[] = sent.stdout.trim().split('\n').map((line) => JSON.parse(line))
  const results = lines.filter((line) => line.event === 'result')
  assert.equal(results.map((line) => line['peer']).sort(), [...webs].sort())
  assert.equal(new Set(results.map((line) => line['status'])), new Set(['delivered']))
  assert.is(lines.find((line) => line.event === 'summary')!['delivered'], MACHINES)
  for (const home of webs) {
    const messages = got(home)
    assert.equal(messages.map(({ text }) => text), ['reload'], home)
    const { id } = results.find((line) => line['peer'] === home)!
    assert.is(messages[0]!['id'], id)
  }
  for (const home of others) assert.equal(got(home), [], home)
  // They could have been reached: the selector is what kept it from them.
  const other = await world.run(process.execPath, ['agent/main.ts', 'a2a', 'send', 'db-0', 'hi'], {
    env: { ...env, SOTTO_HOME: place.home('boss-0') },
  })
  assert.is(other.code, 0, other.stderr)
  assert.is((await event(listening.get('db-0')!, 'message'))['text'], 'hi')
  const seconds = (from: number, to: number): string => `${((to - from) / 1000).toFixed(1)} s`
  console.log(
    `enrolled in ${seconds(startMs, enrolledMs)}, delivered in ${seconds(sentMs, overMs)}`,
  )
})

test.run()
