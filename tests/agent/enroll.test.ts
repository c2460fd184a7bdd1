// Enrolment, from both sides: one machine by a code, many by a secret, and everybody who is to stay out.
// seconds: 240
import { chmod, readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Running } from '../support/cli.ts'
import { event, Scene } from '../support/scene.ts'

const test = suite('agent/enroll')

let scene: Scene
let env: Record<string, string>
test.before.each(async () => {
  scene = await Scene.make()
  env = await scene.friend(await scene.relay(), 'fleet')
  const made = await scene.place.run('ops', ['authority', 'init', 'ops'])
  assert.is(made.code, 0, made.stderr.text)
})
test.after.each(() => scene.close())

const secretPath = () => join(scene.place.dir, 'fleet.secret')

async function offer(argv: string[] = []): Promise<Running> {
  return await scene.place.start('ops', ['authority', 'enroll-code', 'ops', '--json', ...argv], {
    env,
  })
}

async function offerSecret(argv: string[]): Promise<{ running: Running; secret: string }> {
  const running = await offer(['--secret-file', secretPath(), ...argv])
  await event(running, 'open')
  return { running, secret: (await readFile(secretPath(), 'utf8')).trim() }
}

function enroll(home: string, code: string, argv: string[] = []) {
  return scene.place.run(home, ['enroll', '--json', ...argv], {
    env: { ...env, SOTTO_CODE: code },
  })
}

async function authorityOf(): Promise<string> {
  const content = await readFile(join(scene.place.home('ops'), 'authorities', 'ops'), 'utf8')
  return /# public: (\S+)/.exec(content)![1]!
}

async function pinFile(home: string): Promise<string> {
  return await readFile(join(scene.place.home(home), 'known_agents'), 'utf8').catch(() => '')
}

async function keyOf(home: string): Promise<string> {
  return (await scene.place.run(home, ['identity', '--json'])).stdout.objects[0]!['key']
}

/** A secret of the right form that nobody made. */
function another(secret: string): string {
  return secret.endsWith('a') ? `${secret.slice(0, -1)}b` : `${secret.slice(0, -1)}a`
}

test('by a code: the machine gets its vouch, pins the authority, and others that pin it trust the name', async () => {
  const flags = ['--names', 'web-*', '--label', 'role=web', '--days', '30']
  const running = await offer(flags)
  const { code } = await event(running, 'code')
  const machine = await enroll('web', code, ['--name', 'web-1', '--allow', 'a2a'])
  assert.is(machine.code, 0, machine.stderr.text)
  assert.is(await running.code, 0, running.stderr.text)
  const { names, labels, until, authority } = await machine.stdout.objects.find((one) =>
    one['event'] === 'enrolled'
  )!
  assert.equal([names, labels, authority], ['web-1', 'role=web', 'ops'])
  const days = (Date.parse(until) - Date.now()) / 86_400_000
  assert.ok(days > 29.9 && days < 30.1)
  assert.match(
    await pinFile('web'),
    new RegExp(`^@authority ops ${await authorityOf()} code `, 'm'),
  )
  assert.equal((await event(running, 'enrolled'))['names'], ['web-1'])
  assert.not(machine.stdout.text.includes(code.split('-')[1]), 'the code is said nowhere')
  const rules = (await scene.place.run('web', ['access', 'list', '--json'])).stdout.objects
  assert.equal([rules[0]!['authority'], rules[0]!['services']], ['ops', ['a2a']])
  // Nobody is pinned by it: the code was for the authority.
  assert.not.match(await pinFile('web'), /^[^@#]/m)
  assert.is(await pinFile('ops'), '')
})

test('by a code once: a wrong one burns it, and both are told with exit code 5', async () => {
  const running = await offer()
  const { code } = await event(running, 'code')
  const room = code.split('-')[0]
  const guess = await enroll('thief', `${room}-zoo-zoo-zoo`)
  assert.is(guess.code, 5)
  assert.is(await running.code, 5)
  assert.is((await enroll('web', code)).code, 1)
  assert.is(await pinFile('thief'), '')
})

test('a code of "sotto pair" enrolls nobody', async () => {
  const running = await scene.place.start('ops', ['pair', '--json'], { env })
  const { code } = await event(running, 'code')
  const machine = await enroll('web', code)
  assert.is(machine.code, 1)
  assert.match(machine.stderr.text, /waits for no machine/)
  assert.not.match(await pinFile('web'), /@authority/)
  await running.code
})

test('by a secret: as many as were said, and not one more; the count outlives a restart', async () => {
  const { running, secret } = await offerSecret(['--count', '3', '--names', '*'])
  assert.match(secret, /^en_[a-z2-7]{32}$/)
  for (const home of ['one', 'two']) {
    assert.is((await enroll(home, secret, ['--name', home])).code, 0)
  }
  assert.is(await running.stop(), 130)
  const { running: again } = await offerSecret(['--names', '*'])
  assert.is((await event(again, 'open'))['left'], 1)
  // One that came before does not count again.
  assert.is((await enroll('one', secret, ['--name', 'one'])).code, 0)
  assert.is((await enroll('three', secret, ['--name', 'three'])).code, 0)
  assert.is(await again.code, 0)
  const over = await scene.place.run('ops', [
    ...['authority', 'enroll-code', 'ops', '--secret-file', secretPath()],
  ], { env })
  assert.is(over.code, 1)
  assert.match(over.stderr.text, /as many machines as it takes have enrolled/)
})

test('a machine too many is refused while others may come again', async () => {
  const { running, secret } = await offerSecret(['--count', '2'])
  assert.is((await enroll('one', secret)).code, 0)
  const path = join(scene.place.home('ops'), 'state', 'enrolments')
  const book = join(path, (await readdir(path))[0]!)
  // As another process of this authority would have written it.
  await writeFile(book, `${await readFile(book, 'utf8')}${await keyOf('other')} 2026-01-01\n`)
  const late = await enroll('two', secret)
  assert.is(late.code, 1)
  assert.match(late.stderr.text, /as many machines as it takes have enrolled/)
  assert.not.match(await pinFile('two'), /@authority/)
  await running.stop()
})

test('a new secret needs a count, and one that was begun keeps its terms', async () => {
  const bare = await scene.place.run('ops', [
    ...['authority', 'enroll-code', 'ops', '--secret-file', secretPath()],
  ], { env })
  assert.is(bare.code, 1)
  assert.match(bare.stderr.text, /expected --count and --expires/)
  const { running } = await offerSecret(['--count', '3'])
  await running.stop()
  const more = await scene.place.run('ops', [
    ...['authority', 'enroll-code', 'ops', '--secret-file', secretPath(), '--count', '999'],
  ], { env })
  assert.is(more.code, 1)
  assert.match(more.stderr.text, /it is good for 3 machines until/)
})

test('a secret that ran out enrolls nobody, and the command ends by itself', async () => {
  const { running, secret } = await offerSecret(['--count', '3', '--expires', '1s'])
  assert.is(await running.code, 0)
  assert.match(running.stderr.text, /0 of 3 machines have enrolled/)
  const over = await scene.place.run('ops', [
    ...['authority', 'enroll-code', 'ops', '--secret-file', secretPath()],
  ], { env })
  assert.match(over.stderr.text, /it has expired/)
  assert.ok(secret)
})

test('names outside the patterns, and names of another machine, are refused', async () => {
  const { running, secret } = await offerSecret(['--count', '9', '--names', 'web-*'])
  const wrong = await enroll('one', secret, ['--name', 'db'])
  assert.is(wrong.code, 1)
  assert.match(wrong.stderr.text, /it does not give those names/)
  assert.is((await enroll('one', secret, ['--name', 'web-1'])).code, 0)
  const thief = await enroll('two', secret, ['--name', 'web-1'])
  assert.is(thief.code, 1)
  assert.match(thief.stderr.text, /another machine has one of those names/)
  await running.stop()
})

test('another secret finds nobody, and in the arguments it is refused', async () => {
  const { running, secret } = await offerSecret(['--count', '9'])
  const argument = await scene.place.run('one', ['enroll', secret], { env })
  assert.is(argument.code, 2)
  assert.not(argument.stderr.text.includes(secret))
  const bad = await enroll('one', 'en_short')
  assert.match(bad.stderr.text, /expected "en_" and 32/)
  const stranger = await scene.place.start('one', ['enroll', '--json'], {
    env: { ...env, SOTTO_CODE: another(secret) },
  })
  await stranger.stderr.until(/first contact/)
  assert.is(await stranger.stop(), 130)
  await running.stop()
})

test('the file of the secret is private, and one that is not is refused', async () => {
  const { running } = await offerSecret(['--count', '9'])
  await running.stop()
  assert.is((await stat(secretPath())).mode & 0o777, 0o600)
  await chmod(secretPath(), 0o644)
  const open = await scene.place.run('ops', [
    ...['authority', 'enroll-code', 'ops', '--secret-file', secretPath()],
  ], { env })
  assert.is(open.code, 1)
  assert.match(open.stderr.text, /expected 0600/)
})

test.run()
