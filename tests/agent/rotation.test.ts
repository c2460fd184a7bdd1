/**
 * A new identity, what is kept of the old one, and what ends it: the file on a disk, with the process
 * gone at each of its steps, and the relay of the next joining told by itself.
 */
import { mkdir, readFile, stat } from 'node:fs/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Authority, withdrawn } from '../../agent/authority.ts'
import { Profile } from '../../agent/profile.ts'
import type { Files } from '../../agent/world.ts'
import { text } from '../../core/bytes.ts'
import { formatKey, generateIdentity } from '../../core/key.ts'
import { checkVouch, follow, openStatement } from '../../core/statement.ts'
import type { Vouch, Withdrawal } from '../../core/statement.ts'
import { testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'
import { rejection } from '../support/rejection.ts'

const test = suite('agent/rotation')
const DAY_MS = 86_400_000
let t: TestWorld

test.before.each(async () => void (t = await testWorld()))
test.after.each(() => t.close())

/** Files of a process that is gone at its `steps`-th change: it happens or not, and nothing after it. */
function mortal(files: Files, { steps, done }: { steps: number; done: boolean }) {
  let left = steps
  let dead = false
  const die = async (run: () => Promise<void>): Promise<void> => {
    if (!dead && left-- > 0) return await run()
    if (!dead && done) await run()
    dead = true
    throw new Error('gone')
  }
  return {
    get dead() {
      return dead
    },
    files: {
      ...files,
      write: (path: string, content: Uint8Array) => die(() => files.write(path, content)),
      remove: (path: string) => die(() => files.remove(path)),
    },
  }
}

test('rotate moves to an identity that both keys signed, in one 0600 file, with a new session key', async () => {
  const profile = new Profile(t.world)
  const before = await profile.identity()
  const session = await profile.sessionKey()
  const { old, next, statement } = await profile.rotateIdentity()
  assert.equal(old, before)
  assert.equal(await new Profile(t.world).identity(), next)
  assert.is.not(formatKey((await profile.sessionKey()).public32), formatKey(session.public32))
  const led = follow(t.world.crypto, old.public, [openStatement(t.world.crypto, statement)])
  assert.is(led.kind, 'successor')
  assert.equal(led.identity, next.public)
  assert.is((await stat(profile.identityPath)).mode & 0o777, 0o600)
  const file = await readFile(profile.identityPath, 'utf8')
  const { base32nopad } = await import('@scure/base')
  assert.not.match(file, base32nopad.encode(old.seed).toLowerCase(), 'the old key is gone')
  assert.equal(await profile.ownStatements(), [statement])
  await profile.rotateIdentity()
  const said = (await profile.rotations()).map((one) => openStatement(t.world.crypto, one))
  assert.equal(follow(t.world.crypto, old.public, said), {
    kind: 'successor',
    identity: (await profile.identity()).public,
    steps: said,
  })
})

test('whoever is gone at any step of it leaves the old identity or the new one, never neither', async () => {
  let rotated = 0
  let kept = 0
  for (const done of [false, true]) {
    for (let steps = 0;; steps++) {
      const own = await testWorld()
      try {
        const before = await new Profile(own.world).identity()
        await new Profile(own.world).sessionKey()
        const life = mortal(own.world.files, { steps, done })
        const outcome = await new Profile({ ...own.world, files: life.files }).rotateIdentity()
          .catch(() => undefined)
        const after = new Profile(own.world)
        const now = await after.identity()
        await after.sessionKey()
        const said = (await after.rotations()).map((one) => openStatement(own.world.crypto, one))
        // What the next process tells the relays leads to the identity that it has, or nowhere.
        const led = follow(own.world.crypto, before.public, said)
        assert.equal(led.identity, now.public)
        if (formatKey(now.public) === formatKey(before.public)) kept++
        else rotated++
        await after.rotateIdentity()
        if (!life.dead) {
          assert.ok(outcome)
          break
        }
      } finally {
        await own.close()
      }
    }
  }
  assert.ok(kept >= 2 && rotated >= 2, `${kept} kept, ${rotated} rotated`)
})

test('two that rotate at once follow one another', async () => {
  const first = await new Profile(t.world).identity()
  await Promise.all([0, 1, 2].map(() => new Profile(t.world).rotateIdentity()))
  const profile = new Profile(t.world)
  const said = (await profile.rotations()).map((one) => openStatement(t.world.crypto, one))
  assert.is(said.length, 3)
  const led = follow(t.world.crypto, first.public, said)
  assert.equal(led.identity, (await profile.identity()).public)
})

const grant = (key: string, more: object = {}) => ({
  key,
  names: ['web'],
  scope: '',
  labels: { role: 'web' },
  days: 30,
  ...more,
})

function someKey(): string {
  return formatKey(generateIdentity(t.world.crypto).public)
}

test('an authority signs under numbers that it never uses twice, whoever asks at once', async () => {
  const profile = new Profile(t.world)
  const made = await Authority.init(t.world, profile, { name: 'ops' })
  assert.is((await stat(profile.authorityPath('ops'))).mode & 0o777, 0o600)
  const opened = await Promise.all(
    Array.from({ length: 8 }, () => Authority.open(t.world, new Profile(t.world), {})),
  )
  const signed =
    (await Promise.all(opened.map((one) => one.sign([grant(someKey()), grant(someKey())]))))
      .flat()
  assert.equal(
    signed.map(({ serial }) => serial).sort((a, b) => a - b),
    Array.from({ length: 16 }, (_, i) => i + 1),
  )
  for (const { serial, key, statement } of signed) {
    const vouch = openStatement(t.world.crypto, statement) as Vouch
    assert.equal([vouch.kind, vouch.serial, formatKey(vouch.identity), vouch.labels], [
      'vouch',
      serial,
      key,
      { role: 'web' },
    ])
    assert.equal(vouch.authority, made.identity.public)
    checkVouch(vouch, { now: t.world.clock.now() + 29 * DAY_MS })
  }
})

test('an authority that is gone while it signs has registered every number that is out', async () => {
  const profile = new Profile(t.world)
  await Authority.init(t.world, profile, { name: 'ops' })
  for (const done of [false, true]) {
    const life = mortal(t.world.files, { steps: 0, done })
    const dying = await Authority.open({ ...t.world, files: life.files }, profile, {})
    let out: unknown
    await dying.sign([grant(someKey())]).then((signed) => out = signed, () => {})
    assert.is(out, undefined, 'nothing is out that is not on disk')
  }
  const [next] = await (await Authority.open(t.world, profile, {})).sign([grant(someKey())])
  assert.is(next!.serial, 2, 'the number that got to the disk is used up')
})

test('a list of withdrawals has all that was ever taken back, and a higher number each time', async () => {
  const profile = new Profile(t.world)
  const authority = await Authority.init(t.world, profile, { name: 'ops' })
  await authority.sign([grant(someKey()), grant(someKey(), { days: 1 }), grant(someKey())])
  const lists = []
  for (const serial of [3, 2]) {
    const { statement } = await authority.revoke([serial])
    lists.push(openStatement(t.world.crypto, statement) as Withdrawal)
  }
  assert.equal(lists.map(({ sequence, serials }) => [sequence, serials]), [[1, [3]], [2, [2, 3]]])
  assert.equal([...withdrawn(await authority.register())], [3, 2])
  assert.is(await rejection(authority.revoke([4])), 'authority/serial')
  // What has run out by itself needs no place in the list.
  const later = { ...t.world, clock: { ...t.world.clock, now: () => Date.now() + 3 * DAY_MS } }
  const { statement } = await (await Authority.open(later, profile, {})).revoke([1])
  assert.equal((openStatement(t.world.crypto, statement) as Withdrawal).serials, [1, 3])
  await authority.sign(Array.from({ length: 260 }, () => grant(someKey())))
  const all = Array.from({ length: 253 }, (_, i) => i + 4)
  await authority.revoke(all)
  assert.is(await rejection(authority.revoke([257, 258])), 'authority/full')
})

test('what cannot be signed is not registered; a register that is gone or broken stops', async () => {
  const profile = new Profile(t.world)
  const authority = await Authority.init(t.world, profile, { name: 'ops' })
  for (
    const wrong of [
      grant('nokey'),
      grant(someKey(), { names: ['NO'] }),
      grant(someKey(), { names: Array.from({ length: 17 }, (_, i) => `n${i}`) }),
      grant(someKey(), { days: 0 }),
      grant(authority.key),
    ]
  ) {
    assert.ok(await rejection(authority.sign([grant(someKey()), wrong])), JSON.stringify(wrong))
  }
  assert.equal(await authority.register(), [])
  const path = `${profile.authorityPath('ops')}.register`
  await authority.sign([grant(someKey())])
  const good = text((await t.world.files.read(path))!)
  for (
    const line of [
      'x',
      '{}',
      good.trim().slice(0, -9),
      good.trim().replace('"serial":1', '"serial":0'),
    ]
  ) {
    await t.world.files.write(path, new TextEncoder().encode(`${good}${line}\n`))
    assert.is(await rejection(authority.sign([grant(someKey())])), 'authority/register', line)
    assert.is(await rejection(authority.revoke([1])), 'authority/register', line)
  }
  await t.world.files.remove(path)
  assert.is(await rejection(Authority.open(t.world, profile, {})), 'authority/register')
})

test('which authority is meant, and where its key lies', async () => {
  const profile = new Profile(t.world)
  assert.is(await rejection(Authority.open(t.world, profile, {})), 'authority/which')
  await Authority.init(t.world, profile, { name: 'ops' })
  assert.is(await rejection(Authority.init(t.world, profile, { name: 'ops' })), 'authority/exists')
  assert.is(await rejection(Authority.init(t.world, profile, { name: '../x' })), 'authority/name')
  await mkdir(`${t.dir}/stick`)
  const keyFile = `${t.dir}/stick/far.key`
  const far = await Authority.init(t.world, profile, { name: 'far', keyFile })
  assert.is((await Authority.open(t.world, profile, {})).name, 'ops', 'the only one in the profile')
  const opened = await Authority.open(t.world, profile, { keyFile })
  assert.equal([opened.name, opened.key], ['far', far.key])
  assert.is(await rejection(Authority.open(t.world, profile, { name: 'far' })), 'authority/unknown')
  assert.is((await stat(keyFile)).mode & 0o777, 0o600)
})

test.run()
