// seconds: 240
// Logging in and out as command lines: by a code, by keys from wherever they come, into several profiles; what is
// kept and what is not; and that nothing is sent to, or believed of, a relay that is not the one that is meant.
import { readFile, writeFile } from 'node:fs/promises'
import { createServer } from 'node:tls'
import type { AddressInfo } from 'node:net'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { profileNames } from '../../agent/profiles.ts'
import { whoAmI } from '../../agent/login.ts'
import { generateIdentity } from '../../core/key.ts'
import { checkLoginOffer, signLoginOffer } from '../../core/login.ts'
import { serverIdentity, testWorld } from '../support/agent_world.ts'
import { fast } from '../support/crypto.ts'
import { event, Scene } from '../support/scene.ts'
import type { RelayHome } from '../support/scene.ts'

const test = suite('agent/login')

let scene: Scene
let relay: RelayHome
test.before.each(async () => {
  scene = await Scene.make()
  relay = await scene.relay()
})
test.after.each(() => scene.close())

const settings = async (home: string): Promise<Record<string, unknown>> => {
  try {
    return JSON.parse(await readFile(`${scene.place.home(home)}/settings.json`, 'utf8'))
  } catch (error) {
    if ((error as { code?: string }).code === 'ENOENT') return {}
    throw error
  }
}

async function codeOf(home: string, argv: string[] = []) {
  const running = await scene.place.start(home, ['login', relay.url, '--json', ...argv])
  return { running, ...await event(running, 'code') as { code: string; page: string } }
}

/** A key of a scope, as an operator hands it out. */
async function keyOf(scope: string): Promise<string> {
  return (await scene.friend(relay, scope))['SOTTO_API_KEY']!
}

test('by a code: first contact is told, the key is kept, works, and is revoked by logout', async () => {
  const { running, code, page } = await codeOf('ana')
  assert.is(page, `${relay.url}/device`)
  const approved = await scene.place.run('host', ['relay', 'approve', code.toLowerCase()])
  assert.is(approved.code, 0, approved.stderr.text)
  assert.match(approved.stdout.text, /^let in ana@\S+ at 127\.0\.0\.1, as scope ana-[a-z]{4}\n$/)
  assert.is(await running.code, 0, running.stderr.text)
  assert.match(running.stderr.text, /first contact with localhost:\d+: its identity SHA256:\S+ is/)
  const { scope, id } = running.stdout.objects.at(-1)!
  const kept = await settings('ana')
  assert.match(String(kept['apiKey']), new RegExp(`^sk_${scope}_`))
  assert.is(kept['relay'], relay.url)
  assert.is((await scene.place.run('ana', ['status', '--json'])).stdout.objects[0]!['scope'], scope)
  const out = await scene.place.run('ana', ['logout', '--json'])
  assert.equal(out.stdout.objects[0], {
    event: 'logout',
    relay: relay.url,
    revoked: 'yes',
    profile: 'default',
  })
  assert.equal(await settings('ana'), { relay: relay.url })
  const keys = await scene.place.run('host', ['relay', 'keys', 'list', '--json'])
  assert.ok(keys.stdout.objects.find((one) => one['id'] === id)!['revokedAt'])
  const again = await scene.place.run('ana', ['status'], {
    env: { SOTTO_API_KEY: String(kept['apiKey']) },
  })
  assert.is(again.code, 1)
  assert.is((await scene.place.run('ana', ['logout'])).code, 1)
})

test('one that is turned away, or gives up, keeps nothing', async () => {
  const { running, code } = await codeOf('eve')
  const denied = await scene.place.run('host', ['relay', 'approve', code, '--deny', '--json'])
  assert.is(denied.stdout.objects[0]!['event'], 'denied')
  assert.is(await running.code, 1)
  assert.match(running.stdout.text, /login\/denied/)
  const stopped = await codeOf('eve')
  assert.is(await stopped.running.stop(), 130)
  assert.equal(await settings('eve'), {})
})

test('an approver at a terminal is asked, and nobody is let in without a yes', async () => {
  const { running, code } = await codeOf('eve')
  for (const input of [['n'], [''], []]) {
    const asked = await scene.place.run('host', ['relay', 'approve', code], { columns: 80, input })
    assert.is(asked.code, 1)
    assert.match(asked.stderr.text, /eve@\S+ at 127\.0\.0\.1 asks\nidentity SHA256:/)
  }
  const yes = await scene.place.run('host', ['relay', 'approve', code, '--scope', 'eves'], {
    columns: 80,
    input: ['y'],
  })
  assert.is(yes.code, 0)
  assert.is(await running.code, 0)
  assert.is(running.stdout.objects.at(-1)!['scope'], 'eves')
})

test('a key from a file, a prompt or a variable is kept once the relay has admitted it', async () => {
  const secret = await keyOf('team')
  const path = `${scene.place.dir}/team.key`
  await writeFile(path, `${secret}\n`)
  const ways: [string, string[], Parameters<Scene['place']['run']>[2]][] = [
    ['file', ['--key-file', path], {}],
    ['prompt', ['--prompt-key'], { input: [secret] }],
    ['variable', [], { env: { SOTTO_API_KEY: secret } }],
  ]
  for (const [home, argv, options] of ways) {
    const done = await scene.place.run(home, ['login', relay.url, ...argv], options)
    assert.is(done.code, 0, done.stderr.text)
    assert.match(done.stdout.text, /logged in to \S+, scope team/)
    assert.not.ok((done.stdout.text + done.stderr.text).includes(secret))
    assert.is((await settings(home))['apiKey'], secret)
  }
})

test('a wrong key is kept nowhere, and no words are either', async () => {
  const wrong = 'sk_team_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'
  for (const input of [[wrong], ['nonsense'], ['']]) {
    const done = await scene.place.run('eve', ['login', relay.url, '--prompt-key'], { input })
    assert.is(done.code, 1)
    assert.not.match(done.stdout.text + done.stderr.text, /AAAA/)
    assert.equal(await settings('eve'), {})
  }
  const both = ['login', relay.url, '--prompt-key', '--key-file', '/x']
  assert.is((await scene.place.run('eve', both)).code, 2)
})

test('an admin key is kept apart, and lets others in', async () => {
  const { adminKey } = await settings('host')
  const done = await scene.place.run('boss', ['login', relay.url, '--prompt-key'], {
    input: [String(adminKey)],
  })
  assert.match(done.stdout.text, /as its operator/)
  const kept = await settings('boss')
  assert.equal([kept['adminKey'], kept['apiKey']], [adminKey, undefined])
  assert.is((await scene.place.run('boss', ['relay', 'names', 'list'])).code, 0)
})

test('profiles are apart: relay, key, pins, identity; used by flag, variable and "use"', async () => {
  const [one, two] = [await keyOf('one'), await keyOf('two')]
  const login = (argv: string[], input: string[]) =>
    scene.place.run('ana', [...argv, 'login', relay.url, '--prompt-key'], { input })
  assert.is((await login([], [one])).code, 0)
  assert.is((await login(['--profile', 'work'], [two])).code, 0)
  const list = async (env: Record<string, string> = {}, argv: string[] = []) => {
    const { stdout } = await scene.place.run('ana', [...argv, 'profiles', '--json'], { env })
    return stdout.objects
  }
  const scopes = (rows: Record<string, unknown>[]) =>
    rows.map((row) => `${row['profile']} ${row['scope']} ${row['used']}`)
  const rows = await list()
  assert.equal(scopes(rows), ['default one true', 'work two false'])
  assert.is.not(rows[0]!['identity'], rows[1]!['identity'])
  assert.equal(scopes(await list({ SOTTO_PROFILE: 'work' })), [
    'default one false',
    'work two true',
  ])
  assert.equal(
    scopes(await list({ SOTTO_PROFILE: 'work' }, ['--profile=default'])),
    ['default one true', 'work two false'],
  )
  const status = await scene.place.run('ana', ['status', '--profile', 'work', '--json'])
  assert.is(status.stdout.objects[0]!['scope'], 'two')
  assert.is((await scene.place.run('ana', ['profiles', 'use', 'work'])).code, 0)
  assert.equal(scopes(await list()), ['default one false', 'work two true'])
  const identity = await scene.place.run('ana', ['identity', '--json'])
  assert.is(identity.stdout.objects[0]!['fingerprint'], rows[1]!['identity'])
  assert.is((await scene.place.run('ana', ['profiles', 'remove', 'work'])).code, 1, 'holds a key')
  assert.is((await scene.place.run('ana', ['logout', '--profile', 'work'])).code, 0)
  assert.is((await scene.place.run('ana', ['profiles', 'remove', 'work'])).code, 0)
  assert.equal(scopes(await list()), ['default one true'])
  for (const argv of [['profiles', 'use', 'gone'], ['profiles', 'remove', 'default']]) {
    assert.is((await scene.place.run('ana', argv)).code, 1, argv.join(' '))
  }
  for (const name of ['../x', 'A', '']) {
    const { code } = await scene.place.run('ana', ['profiles', '--profile', `${name}`])
    assert.is(code, name === '' ? 0 : 2, name)
  }
  const t = await testWorld({ SOTTO_HOME: scene.place.home('ana') })
  assert.equal(await profileNames(t.world), ['default'])
  await t.close()
})

test('a profile with a key for one relay is not given one for another', async () => {
  const secret = await keyOf('team')
  const login = ['login', relay.url, '--prompt-key']
  assert.is((await scene.place.run('ana', login, { input: [secret] })).code, 0)
  const other = await scene.place.run('ana', ['login', 'https://localhost:1'])
  assert.is(other.code, 1)
  assert.match(other.stderr.text, /has a key for/)
  assert.match(other.stderr.text, /--profile NAME/)
  assert.is((await settings('ana'))['apiKey'], secret)
})

test('logout from a relay that is away changes nothing but with --local', async () => {
  const secret = await keyOf('team')
  await scene.place.run('ana', ['login', relay.url, '--prompt-key'], { input: [secret] })
  await relay.running.stop()
  const away = await scene.place.run('ana', ['logout'])
  assert.is(away.code, 1)
  assert.match(away.stderr.text, /--local/)
  assert.is((await settings('ana'))['apiKey'], secret)
  const local = await scene.place.run('ana', ['logout', '--local'])
  assert.is(local.code, 0)
  assert.match(local.stdout.text, /stays good there/)
  assert.equal(await settings('ana'), { relay: relay.url })
})

test('another identity than the one that is demanded, or pinned, is told nothing', async () => {
  const heard: string[] = []
  const t = await testWorld({ SOTTO_HOME: scene.place.home('x') })
  const { cert, key } = await serverIdentity(t.world, 'localhost')
  const middle = createServer({ cert, key }, (socket) => {
    socket.on('error', () => {})
    socket.on('data', (bytes) => {
      heard.push(bytes.toString('latin1'))
      socket.end('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}')
    })
  })
  await new Promise<void>((resolve) => middle.listen(0, '127.0.0.1', resolve))
  const { port } = middle.address() as AddressInfo
  try {
    const demanded = ['--relay-fingerprint', `SHA256:${'A'.repeat(43)}`]
    const secret = await keyOf('team')
    const wrong = await scene.place.run('ana', ['login', relay.url, ...demanded])
    assert.is(wrong.code, 1)
    assert.match(wrong.stderr.text, /Cannot trust relay/)
    for (const argv of [[], ['--prompt-key']]) {
      const url = `https://localhost:${port}`
      const done = await scene.place.run('ana', ['login', url, ...argv], { input: [secret] })
      assert.is(done.code, 1)
    }
    assert.ok(heard.length > 0, 'it was asked')
    assert.not.match(heard.join('\n'), /device|authorization:|sk_|who=/i)
    assert.equal(await settings('ana'), {})
  } finally {
    middle.close()
    await t.close()
  }
})

test('a code that the relay did not sign for this very login is not shown', () => {
  const [own, other] = [generateIdentity(fast), generateIdentity(fast)]
  const request = {
    relay: own.public,
    agent: other.public,
    seal: fast.x25519Public(fast.randomBytes(32)),
    who: 'ana@laptop',
  }
  const offer = {
    deviceCode: 'd'.repeat(43),
    userCode: 'WDJB-MJHT',
    page: 'https://relay.example/device',
    seconds: 600,
    interval: 5,
  }
  const signature = signLoginOffer(fast, own.seed, { request, offer })
  checkLoginOffer(fast, { request, offer }, signature)
  const table: [typeof request, typeof offer][] = [
    [request, { ...offer, userCode: 'BBBB-BBBB' }],
    [request, { ...offer, deviceCode: 'e'.repeat(43) }],
    [request, { ...offer, page: 'https://evil.example/device' }],
    [request, { ...offer, seconds: 601 }],
    [request, { ...offer, interval: 6 }],
    [request, { ...offer, interval: NaN }],
    [{ ...request, who: 'eve@laptop' }, offer],
    [{ ...request, seal: fast.randomBytes(32) }, offer],
    [{ ...request, relay: other.public }, offer],
  ]
  for (const [asked, told] of table) {
    assert.throws(
      () => checkLoginOffer(fast, { request: asked, offer: told }, signature),
      /Cannot log in/,
    )
  }
})

test('whoAmI() is always what a request may hold', () => {
  for (const username of ['', 'ana', 'Ána Müller', 'x'.repeat(200), '\n\x1b[2J']) {
    assert.match(whoAmI({ username, hostname: '\u{1f600}' }), /^[\x20-\x7e]{1,64}$/)
  }
})

test.run()
