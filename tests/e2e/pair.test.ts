// seconds: 300
// needs: tmux
/**
 * Two people at two terminals pair and compare, over a relay on each runtime: what they type and what
 * they see is looked at as they would. Then what goes wrong: a wrong code, Ctrl-C, narrow terminals.
 */
import { writeFile } from 'node:fs/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { makeKey } from '../support/client.ts'
import { atEdge, startBun, startDeno, startNode } from '../support/relays.ts'
import type { RelayProcess, StartRelay } from '../support/relays.ts'
import { Terminal } from '../support/tmux.ts'
import { startWorker } from '../support/worker_relay.ts'
import { E2eWorld } from '../support/world.ts'

const RELAYS: readonly (readonly [name: string, start: StartRelay])[] = [
  ['Bun', startBun],
  ['Node', startNode],
  ['Deno', startDeno],
  ['workerd', atEdge(startWorker)],
]
const CODE = /^ +(\d+)-([a-z]+)-([a-z]+)-([a-z]+)$/m
const QUESTION = /in the same order\? yes or no:$/m

const test = suite('e2e/pair')

let world: E2eWorld
test.before.each(() => void (world = new E2eWorld()))
test.after.each(() => world.close())

/** The environment of agents of one scope. */
async function join(
  start: StartRelay,
): Promise<{ relay: RelayProcess; env: Record<string, string> }> {
  const relay = await start()
  world.defer(() => relay.stop())
  const { secret } = await makeKey(relay, { scope: 'team' })
  return { relay, env: { SOTTO_RELAY: relay.url, SOTTO_API_KEY: secret } }
}

function sit(env: Record<string, string>, columns = 80): [Terminal, Terminal] {
  return [
    new Terminal(world, { home: 'alice', env, columns }),
    new Terminal(world, { home: 'bob', env, columns }),
  ]
}

/** Shows a code at one and types it at the other, each word by its beginning and Tab. */
async function pairUp(alice: Terminal, bob: Terminal): Promise<void> {
  alice.run('sotto pair --as bob')
  const [, room, ...words] = await alice.until(CODE)
  bob.run('sotto pair --join --as alice')
  await bob.until(/The code that the other machine shows:$/m)
  bob.type(`${room}-`)
  for (const [i, word] of words.entries()) {
    bob.type(word.slice(0, 4))
    // Four letters are of one word alone; three may be a word and the beginning of another.
    if (word.length > 3) bob.press('Tab')
    else if (i < 2) bob.type('-')
  }
  await bob.until(new RegExp(`shows: ${[room, ...words].join('-')}$`, 'm'))
  bob.press('Enter')
  assert.equal([await alice.left(), await bob.left()], [0, 0])
  assert.match(alice.screen, /paired with bob\n {2}SHA256:/)
  assert.match(bob.screen, /To let it in: sotto access allow alice a2a connect/)
}

/** The seven lines of emoji. */
function emojiOf({ lines }: Terminal): string[] {
  return lines.filter((line) => /^ {2}\d {2}[A-Z]/.test(line))
}

for (const [name, start] of RELAYS) {
  test(`over a relay on ${name}, two people pair and compare`, async () => {
    const { env } = await join(start)
    const [alice, bob] = sit(env)
    await pairUp(alice, bob)
    for (const one of [alice, bob]) one.clear()
    alice.run('sotto peers verify bob')
    bob.run('sotto peers verify alice')
    await Promise.all([alice.until(QUESTION), bob.until(QUESTION)])
    const seen = emojiOf(alice)
    assert.is(seen.length, 7)
    assert.equal(emojiOf(bob), seen)
    // The second column begins at the same place in each line, whatever the emoji's width.
    const starts = seen.map((line) => line.search(/\P{ASCII}/u))
    assert.equal(new Set(starts).size, 1, seen.join('\n'))
    alice.run('yes')
    await alice.until(/waiting for what "bob" says/)
    bob.run('y')
    assert.equal([await alice.left(), await bob.left()], [0, 0])
    alice.clear()
    alice.run('sotto peers list --json | grep -c \'"verified":true\'')
    await alice.until(/^1$/m)
  })
}

test('a wrong code is told at both terminals; the right one comes too late', async () => {
  const { env } = await join(startBun)
  const [alice, bob] = sit(env)
  alice.run('sotto pair')
  const [, room, ...words] = await alice.until(CODE)
  bob.run('sotto pair --join')
  await bob.until(/shows:$/m)
  const wrong = words[0] === 'zoo' ? 'able' : 'zoo'
  bob.run(`${room}-${wrong}-${words[1]}-${words[2]}`)
  assert.equal([await alice.left(), await bob.left()], [5, 5])
  for (const { screen } of [alice, bob]) {
    assert.match(screen.replaceAll(/\s+/g, ' '), /somebody guessed, or the code was mistyped/)
    assert.match(screen, /Make a new one with: sotto pair$/m)
  }
  bob.clear()
  bob.run('sotto pair --join')
  await bob.until(/shows:$/m)
  bob.run([room, ...words].join('-'))
  assert.is(await bob.left(), 1)
})

test('Ctrl-C at the prompt and before a shown code leave the terminal as it was', async () => {
  const { env } = await join(startBun)
  const [alice, bob] = sit(env)
  alice.run('sotto pair')
  await alice.until(CODE)
  alice.press('C-c')
  assert.is(await alice.left(), 130)
  bob.run('sotto pair --join')
  await bob.until(/shows:$/m)
  bob.type('7-')
  bob.press('C-c')
  assert.is(await bob.left(), 130)
  // Raw mode is over: the shell echoes what is typed, and Enter ends its line.
  bob.run('echo "as $((40 + 2)) before"')
  await bob.until(/^as 42 before$/m)
})

test('what was typed before the emoji are there is no answer', async () => {
  const { env } = await join(startBun)
  const [alice, bob] = sit(env)
  await pairUp(alice, bob)
  for (const one of [alice, bob]) one.clear()
  alice.run('sotto peers verify bob')
  await alice.until(/who has to type/)
  alice.run('yes')
  bob.run('sotto peers verify alice')
  await Promise.all([alice.until(QUESTION), bob.until(QUESTION)])
  bob.run('no')
  assert.equal([await alice.left(), await bob.left()], [5, 5])
  assert.not.match(alice.screen, /waiting for what/)
  assert.match(alice.screen, /^SOMEBODY MAY SIT BETWEEN THE TWO OF YOU/m)
})

test('on 40 columns the code and the emoji stay whole', async () => {
  const { env } = await join(startBun)
  const [alice, bob] = sit(env, 40)
  alice.run('sotto pair --as bob')
  const [line, ...code] = await alice.until(CODE)
  assert.ok(line.length <= 40)
  bob.run('sotto pair --join --as alice')
  await bob.until(/^The code that the other machine shows:\n>$/m)
  bob.type(`${code.join('-')}             !`)
  // Longer than the line: its end stays in sight, and it is one line still.
  await bob.until(/^> .*!$/m)
  assert.is(bob.lines.filter((one) => one.startsWith('>')).length, 1)
  for (let i = 0; i < 14; i++) bob.press('BSpace')
  await bob.until(new RegExp(`^> ${code.join('-').slice(-30)}$`, 'm'))
  bob.press('Enter')
  assert.equal([await alice.left(), await bob.left()], [0, 0])
  for (const one of [alice, bob]) one.clear()
  alice.run('sotto peers verify bob')
  bob.run('sotto peers verify alice')
  await Promise.all([alice.until(/no:\n>$/m), bob.until(/no:\n>$/m)])
  assert.is(emojiOf(alice).length, 7)
  assert.equal(emojiOf(alice), emojiOf(bob))
})

test('a program gives the code by a descriptor, a pipe or the environment', async () => {
  const { env } = await join(startBun)
  const [alice, bob] = sit(env)
  for (
    const words of [
      'sotto pair --code-fd 3 3< CODE --as alice',
      'sotto pair --join --as alice < CODE',
      'SOTTO_CODE=$(cat CODE) sotto pair --as alice',
    ]
  ) {
    for (const one of [alice, bob]) one.clear()
    alice.run('sotto pair --as bob')
    const [, ...code] = await alice.until(CODE)
    const path = world.path('code')
    await writeFile(path, `${code.join('-')}\n`)
    bob.run(words.replace('CODE)', `${path})`).replace('< CODE', `< ${path}`))
    assert.equal([await alice.left(), await bob.left()], [0, 0], words)
    assert.not(bob.screen.includes(code.slice(1).join('-')), words)
  }
})

test('a machine joins a fleet by the code that its authority shows', async () => {
  const { env } = await join(startBun)
  const [ops, web] = sit(env)
  ops.run('sotto authority init ops')
  await ops.left()
  ops.clear()
  ops.run("sotto authority enroll-code ops --names 'web-*' --label role=web")
  const [, ...code] = await ops.until(CODE)
  web.run('sotto enroll --name web-1')
  await web.until(/The code that the authority shows:$/m)
  web.run(code.join('-'))
  assert.equal([await ops.left(), await web.left()], [0, 0])
  assert.match(ops.screen, /enrolled web-1 \(SHA256:/)
  assert.match(web.screen, /enrolled by ops, until \d{4}-\d\d-\d\d\n/)
  assert.match(web.screen, /names {3}web-1\n {2}labels {2}role=web\n/)
})

test.run()
