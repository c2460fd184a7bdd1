// seconds: 300
// needs: tmux
/**
 * The whole way of two agents on two profiles, at two terminals, over a relay on each runtime: they
 * pair, compare, let in, write to each other, and hold what each has kept of it side by side; and
 * somebody else does so offline, with the two fingerprints alone.
 */
import { randomBytes } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { makeKey } from '../support/client.ts'
import { atEdge, startBun, startDeno, startNode } from '../support/relays.ts'
import type { StartRelay } from '../support/relays.ts'
import { Terminal } from '../support/tmux.ts'
import { startWorker } from '../support/worker_relay.ts'
import { E2eWorld } from '../support/world.ts'

const PLACES: readonly (readonly [name: string, start: StartRelay, columns: number])[] = [
  ['Bun', startBun, 80],
  ['Node', startNode, 80],
  ['Deno', startDeno, 80],
  ['workerd', atEdge(startWorker), 80],
  ['Bun', startBun, 40],
]
const CODE = /^ +(\d+-[a-z]+-[a-z]+-[a-z]+)$/m
const PROMPT = /(shows:|^>)$/m
/** On a narrow terminal the answer has a line of its own. */
const QUESTION = /(yes or no:|^>)$/m
const MESSAGE_BYTES = 1_048_576

const test = suite('e2e/peers')

let world: E2eWorld
test.before.each(() => void (world = new E2eWorld()))
test.after.each(() => world.close())

/** Runs a command to its end on a clear screen, and gives what is there then. */
async function done(terminal: Terminal, words: string, code = 0): Promise<string> {
  terminal.clear()
  terminal.run(words)
  assert.is(await terminal.left(), code, terminal.screen)
  return terminal.screen
}

async function pairUp(alice: Terminal, bob: Terminal): Promise<void> {
  alice.run('sotto pair --as bob')
  const [, code] = await alice.until(CODE)
  bob.run('sotto pair --join --as alice --allow a2a')
  await bob.until(PROMPT)
  bob.run(code!)
  assert.equal([await alice.left(), await bob.left()], [0, 0])
}

async function compareEmoji(alice: Terminal, bob: Terminal): Promise<void> {
  for (const one of [alice, bob]) one.clear()
  alice.run('sotto peers verify bob')
  bob.run('sotto peers verify alice')
  await Promise.all([alice.until(QUESTION), bob.until(QUESTION)])
  const [hers, his] = [alice, bob].map(({ lines }) =>
    lines.filter((line) => /^ {2}\d {2}[A-Z]/.test(line))
  )
  assert.equal(hers, his)
  assert.is(hers!.length, 7)
  for (const one of [alice, bob]) one.run('yes')
  assert.equal([await alice.left(), await bob.left()], [0, 0])
}

/** A text that is seen, and a message of bytes that goes into a file. */
async function write(alice: Terminal, bob: Terminal): Promise<void> {
  bob.clear()
  bob.run('sotto a2a listen --name worker --once')
  await bob.until(/^listening as /m)
  await done(alice, 'sotto a2a send bob "hello bob, it is me"')
  assert.is(await bob.left(), 0)
  assert.match(bob.screen, /^from alice · \d\d:\d\d · 19 B\nhello bob, it is me$/m)
  writeFileSync(world.path('big'), randomBytes(MESSAGE_BYTES))
  bob.clear()
  bob.run('sotto a2a listen --name worker --once > got')
  await bob.until(/^listening as /m)
  await done(alice, 'sotto a2a send bob - < big')
  assert.is(await bob.left(), 0)
  assert.match(bob.screen, /^from alice · \d\d:\d\d · 1\.05 MB$/m)
  assert.ok(readFileSync(world.path('got')).equals(readFileSync(world.path('big'))))
}

/** Sessions of a terminal's agent for messages, the newest first. */
async function messageSessions(terminal: Terminal): Promise<string[]> {
  const file = `list-${Math.random()}`
  await done(terminal, `sotto audit list --json > ${file}`)
  return readFileSync(world.path(file), 'utf8').trim().split('\n').map((line) => JSON.parse(line))
    .filter(({ service }) => service === 'a2a')
    // Of one second they are listed in any order.
    .sort((a, b) => Date.parse(b.start) - Date.parse(a.start))
    .map(({ session }) => session.slice(0, 12))
}

async function fingerprintOf(terminal: Terminal): Promise<string> {
  return /SHA256:[A-Za-z0-9+/]{43}/.exec(
    (await done(terminal, 'sotto identity')).replaceAll(/\n */g, ''),
  )![0]
}

for (const [name, start, columns] of PLACES) {
  test(`over a relay on ${name}, on ${columns} columns: pair, verify, write, audit`, async () => {
    const relay = await start()
    world.defer(() => relay.stop())
    const { secret } = await makeKey(relay, { scope: 'team' })
    const joins = { SOTTO_RELAY: relay.url, SOTTO_API_KEY: secret }
    const [alice, bob, carol] = ['alice', 'bob', 'carol'].map((home) =>
      new Terminal(world, { home, columns, env: home === 'carol' ? {} : joins })
    ) as [Terminal, Terminal, Terminal]
    for (const one of [alice, bob, carol]) one.run(`cd ${world.dir}`)
    await pairUp(alice, bob)
    await compareEmoji(alice, bob)
    await write(alice, bob)

    for (const words of ['peers', 'agents', 'audit list']) {
      const lines = (await done(alice, `sotto ${words}`)).split('\n')
      assert.ok(lines.some((line) => line.includes('bob')))
      // As wide as the screen: the terminal has broken it, in the midst of a word.
      const broken = lines.filter((line) => !line.startsWith('$') && line.length >= columns)
      assert.ok(columns < 80 || broken.length === 0, broken.join('\n'))
    }

    const sessions = await messageSessions(alice)
    assert.is(sessions.length, 2)
    assert.equal(await messageSessions(bob), sessions, 'each has kept both')
    const identities = [await fingerprintOf(alice), await fingerprintOf(bob)]
    const said = identities.map((print) => `--identity ${print}`).join(' ')
    const listed = await done(alice, 'sotto audit list')
    for (const session of sessions) {
      assert.ok(listed.includes(session), listed)
      await done(alice, `sotto audit export ${session} -o a-${session} --open sent-0`)
      await done(bob, `sotto audit export ${session} -o b-${session}`)
      const same = await done(bob, `sotto audit compare b-${session} a-${session}`)
      assert.match(same, /^the same to the end: \d+ records/m)
      // She knows neither of them, and no relay.
      const files = `a-${session} b-${session}`
      assert.match(await done(carol, `sotto audit compare ${files} ${said}`), /^the same to/m)
      await done(carol, `sotto audit compare ${files}`, 1)
    }
    const opening = `sotto audit open a-${sessions[0]} sent-0 --content`
    assert.match(await done(bob, `${opening} big`), /^it is this content/m)
    await done(bob, `${opening} a-${sessions[0]}`, 1)
    const trail = readFileSync(world.path(`a-${sessions[1]}`))
    trail[trail.length >> 1]! ^= 1
    writeFileSync(world.path('changed'), trail)
    await done(carol, `sotto audit compare changed b-${sessions[1]} ${said}`, 1)
    assert.not.match(carol.screen, /the same/)
  })
}

test.run()
