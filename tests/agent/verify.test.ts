// Comparing by eye, from both sides: what yes and no do to the pins, and what somebody in between changes.
// seconds: 240
import { readFile, writeFile } from 'node:fs/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Running } from '../support/cli.ts'
import { meetingName } from '../../agent/verification.ts'
import type { RelayHome } from '../support/scene.ts'
import { event, Scene } from '../support/scene.ts'

const test = suite('agent/verify')

let scene: Scene
let relay: RelayHome
let env: Record<string, string>
test.before.each(async () => {
  scene = await Scene.make()
  relay = await scene.relay()
  // Of one scope: that is who sees each other.
  env = await scene.friend(relay, 'team')
})
test.after.each(() => scene.close())

async function identityOf(home: string): Promise<Record<string, string>> {
  return (await scene.place.run(home, ['identity', '--json'])).stdout.objects[0]!
}

async function trust(home: string, name: string, other: string): Promise<void> {
  const { key } = await identityOf(other)
  assert.is((await scene.place.run(home, ['peers', 'trust', name, key!])).code, 0)
}

function verify(home: string, name: string, more: string[] = ['--json']): Promise<Running> {
  return scene.place.start(home, ['peers', 'verify', name, ...more], { env })
}

async function isVerified(home: string, name: string): Promise<boolean> {
  const pins = (await scene.place.run(home, ['peers', 'list', '--json'])).stdout.objects
  return pins.find((pin) => pin['name'] === name)!['verified']
}

async function pinned(): Promise<void> {
  await trust('alice', 'bob', 'bob')
  await trust('bob', 'ally', 'alice')
}

test('the same seven emoji on both, and yes on both verifies both pins, whoever began', async () => {
  await pinned()
  for (const first of ['alice', 'bob']) {
    const names = { alice: 'bob', bob: 'ally' } as Record<string, string>
    const second = first === 'alice' ? 'bob' : 'alice'
    const one = await verify(first, names[first]!)
    await event(one, 'waiting')
    const two = await verify(second, names[second]!)
    const shown = await event(one, 'compare')
    assert.is(shown['emoji'], (await event(two, 'compare'))['emoji'])
    assert.is(shown['emoji'].split(', ').length, 7)
    one.type('perhaps')
    one.type('yes')
    two.type('Y')
    assert.equal([await one.code, await two.code], [0, 0], one.stderr.text + two.stderr.text)
    assert.equal([await isVerified('alice', 'bob'), await isVerified('bob', 'ally')], [true, true])
  }
})

test('a pin of first use may be compared, since that is what comparing is for', async () => {
  await pinned()
  const home = scene.place.home('alice')
  const path = `${home}/known_agents`
  await writeFile(path, (await readFile(path, 'utf8')).replace('manual', 'first-use'))
  const [one, two] = [await verify('alice', 'bob'), await verify('bob', 'ally')]
  one.type('yes')
  two.type('yes')
  assert.equal([await one.code, await two.code], [0, 0], one.stderr.text + two.stderr.text)
  assert.ok(await isVerified('alice', 'bob'))
})

test('no on either is told to both at once, with exit code 5, and takes "verified" away', async () => {
  await pinned()
  for (const sayer of [0, 1]) {
    const both = [await verify('alice', 'bob'), await verify('bob', 'ally')]
    for (const one of both) one.type('yes')
    assert.equal(await Promise.all(both.map(({ code }) => code)), [0, 0])
    const again = [await verify('alice', 'bob'), await verify('bob', 'ally')]
    await Promise.all(again.map((one) => event(one, 'compare')))
    again[sayer]!.type('no')
    assert.equal(await Promise.all(again.map(({ code }) => code)), [5, 5])
    for (const { stderr } of again) {
      assert.match(stderr.text, /SOMEBODY MAY SIT BETWEEN THE TWO OF YOU/)
      assert.match(stderr.text, /sotto peers forget/)
    }
    assert.equal([await isVerified('alice', 'bob'), await isVerified('bob', 'ally')], [
      false,
      false,
    ])
  }
})

test('who leaves without an answer verifies nothing', async () => {
  await pinned()
  const [one, two] = [await verify('alice', 'bob'), await verify('bob', 'ally')]
  await event(one, 'compare')
  await event(two, 'compare')
  one.type('yes')
  assert.is(await two.stop(), 130)
  assert.is(await one.code, 1)
  assert.match(one.stderr.text, /expected the peer's answer/)
  assert.equal([await isVerified('alice', 'bob'), await isVerified('bob', 'ally')], [false, false])
})

test('somebody in between, pinned by both, is seen: the two see other emoji', async () => {
  await trust('alice', 'bob', 'mallory')
  await trust('bob', 'ally', 'mallory')
  await trust('mallory', 'alice', 'alice')
  await trust('mallory', 'bob', 'bob')
  const [one, front] = [await verify('alice', 'bob'), await verify('mallory', 'alice')]
  const seen = await event(one, 'compare')
  assert.is(seen['emoji'], (await event(front, 'compare'))['emoji'])
  const [two, back] = [await verify('bob', 'ally'), await verify('mallory', 'bob')]
  assert.is.not(seen['emoji'], (await event(two, 'compare'))['emoji'])
  for (const running of [one, two, front, back]) await running.stop()
})

test('whom the other side has not pinned waits in vain, and is told why', async () => {
  await trust('alice', 'bob', 'bob')
  await trust('bob', 'carol', 'carol')
  const [one, two] = [await verify('alice', 'bob'), await verify('bob', 'carol')]
  await event(one, 'waiting')
  await event(two, 'waiting')
  assert.equal([await one.stop(), await two.stop()], [130, 130])
  assert.not.match(one.stdout.text + two.stdout.text, /compare/)
})

test("a stranger who took the names where they would wait is in nobody's way", async () => {
  await pinned()
  const other = await scene.friend(relay, 'mallory')
  for (const home of ['alice', 'bob']) {
    const { fingerprint } = await identityOf(home)
    const name = meetingName(fingerprint!)
    const squatter = await scene.place.start('mallory', [
      ...['a2a', 'listen', '--name', name, '--json'],
    ], { env: other })
    await event(squatter, 'listening')
  }
  const [one, two] = [await verify('alice', 'bob'), await verify('bob', 'ally')]
  one.type('yes')
  two.type('yes')
  assert.equal([await one.code, await two.code], [0, 0], one.stderr.text + two.stderr.text)
})

test('a name that is not pinned, and one of several identities, are refused', async () => {
  const nobody = await scene.place.run('alice', ['peers', 'verify', 'bob'], { env })
  assert.is(nobody.code, 1)
  assert.match(nobody.stderr.text, /it is not pinned/)
  await trust('alice', 'pool', 'bob')
  await trust('alice', 'pool', 'carol')
  const several = await scene.place.run('alice', ['peers', 'verify', 'pool'], { env })
  assert.match(several.stderr.text, /found 2 identities.*\n.*SHA256:.* or SHA256:/)
})

test('a person without --json sees seven lines, and is asked', async () => {
  await pinned()
  const one = await scene.place.start('alice', ['peers', 'verify', 'bob'], { env, columns: 60 })
  const two = await verify('bob', 'ally')
  await one.stderr.until(/in the same order\? yes or no: $/)
  const lines = one.stdout.lines.filter((line) => /^ {2}\d {2}/.test(line))
  assert.is(lines.length, 7)
  const starts = lines.map((line) => [...line.slice(0, 17)].length)
  assert.equal(new Set(starts).size, 1)
  one.type('yes')
  two.type('yes')
  assert.equal([await one.code, await two.code], [0, 0])
  assert.match(one.stdout.text, /verified bob/)
})

test.run()
