/**
 * What is kept between runs, on a real disk: permissions, several processes at once, corrupt files, and
 * the pins that a person may edit.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import fc from 'fast-check'
import { utf8 } from '../../core/bytes.ts'
import { fingerprint, formatKey, generateIdentity } from '../../core/key.ts'
import { TunnelError } from '../../core/errors.ts'
import { Profile } from '../../agent/profile.ts'
import { testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'
import { rejection } from '../support/rejection.ts'

const test = suite('agent/profile')
let t: TestWorld
let profile: Profile

test.before.each(async () => {
  t = await testWorld()
  profile = new Profile(t.world)
})
test.after.each(() => t.close())

function key(): string {
  return formatKey(generateIdentity(t.world.crypto).public)
}

async function thrown(run: Promise<unknown>): Promise<TunnelError> {
  try {
    await run
  } catch (error) {
    assert.instance(error, TunnelError)
    return error as TunnelError
  }
  throw new Error('nothing was thrown')
}

async function mode(path: string): Promise<string> {
  return ((await stat(path)).mode & 0o777).toString(8)
}

test('directories follow SOTTO_HOME, then XDG, then the home', () => {
  const at = (env: Record<string, string>): [string, string] => {
    const { configDir, stateDir } = new Profile({ ...t.world, env, home: '/home/ada' })
    return [configDir, stateDir]
  }
  assert.equal(at({}), ['/home/ada/.config/sotto', '/home/ada/.local/state/sotto'])
  assert.equal(at({ XDG_CONFIG_HOME: '/c', XDG_STATE_HOME: '/s' }), ['/c/sotto', '/s/sotto'])
  assert.equal(at({ XDG_CONFIG_HOME: 'relative' })[0], '/home/ada/.config/sotto')
  assert.equal(at({ SOTTO_HOME: '/box/', XDG_CONFIG_HOME: '/c' }), ['/box', '/box/state'])
  assert.throws(
    () => at({ SOTTO_HOME: 'box' }),
    (error: TunnelError) => error.code === 'profile/home',
  )
})

test('the identity is made once, stays, and nobody else can read it', async () => {
  const made = await profile.identity()
  assert.is(made.seed.length, 32)
  assert.equal(made.public, t.world.crypto.ed25519Public(made.seed))
  assert.equal(await new Profile(t.world).identity(), made)
  assert.is(await mode(profile.identityPath), '600')
  assert.is(await mode(profile.configDir), '700')
  assert.is(await mode(join(profile.stateDir, 'locks')), '700')
  assert.not.match(await readFile(profile.identityPath, 'utf8'), /undefined/)
})

test('the identity is refused when others can read it, and the remedy works', async () => {
  const made = await profile.identity()
  for (const wide of [0o644, 0o640, 0o604, 0o660]) {
    await chmod(profile.identityPath, wide)
    const error = await thrown(profile.identity())
    assert.is(error.code, 'profile/permissions')
    assert.match(error.message, wide.toString(8))
    assert.match(error.hint!, `chmod 600 ${profile.identityPath}`)
  }
  await chmod(profile.identityPath, 0o600)
  assert.equal(await profile.identity(), made)
})

test('a damaged identity is an error that says what to do, never a new identity', async () => {
  await profile.identity()
  const whole = await readFile(profile.identityPath, 'utf8')
  const seed = /seed: (\S+)/.exec(whole)![1]!
  for (
    const damaged of [
      '',
      whole.slice(0, whole.indexOf('seed')),
      whole.replace(seed, seed.slice(1)),
      whole.replace(seed, seed.slice(0, -1) + '7'),
      whole.replace(seed, seed.toUpperCase()),
      '\ufffd\0',
    ]
  ) {
    await writeFile(profile.identityPath, damaged)
    const error = await thrown(profile.identity())
    assert.is(error.code, 'profile/corrupt')
    assert.ok(error.message.includes(profile.identityPath))
    assert.ok(error.hint)
    assert.is(await readFile(profile.identityPath, 'utf8'), damaged)
  }
  await writeFile(profile.identityPath, new Uint8Array([0xff, 0xfe, 0]))
  assert.is(await rejection(profile.identity()), 'profile/corrupt')
})

const CHILD = `
import { hostWorld } from './agent/host/world.ts'
import { Profile } from './agent/profile.ts'
import { formatKey } from './core/key.ts'
const profile = new Profile(hostWorld())
const { public: key } = await profile.identity()
for (let i = 0; i < 10; i++) {
  await profile.change({ ['p' + process.argv.at(-1) + '_' + i]: i })
  await profile.knownAgents().trust('name' + process.argv.at(-1) + i, formatKey(key))
}
console.log(formatKey(key))
`

test('six processes at once agree on one identity, and lose no setting and no pin', async () => {
  const root = join(import.meta.dirname, '../..')
  const said = await Promise.all(Array.from({ length: 6 }, async (_, i) => {
    const child = spawn(process.execPath, ['-e', CHILD, String(i)], {
      cwd: root,
      env: { ...process.env, SOTTO_HOME: t.world.env['SOTTO_HOME']! },
    })
    let out = ''
    child.stdout.on('data', (chunk) => (out += chunk))
    child.stderr.on('data', (chunk) => (out += chunk))
    const [code] = await once(child, 'close')
    assert.is(code, 0, out)
    return out
  }))
  assert.is(new Set(said).size, 1, said.join())
  assert.is(Object.keys(await profile.settings()).length, 60)
  assert.is((await profile.knownAgents().list()).length, 60)
  const left = await readdir(profile.configDir)
  assert.equal(left.filter((name) => name.startsWith('.')), [])
})

test('a lock that another one holds is waited for, and given up in the end', async () => {
  const held = await t.world.files.lock(join(profile.stateDir, 'locks/settings'))
  assert.ok(held)
  assert.is(await t.world.files.lock(join(profile.stateDir, 'locks/settings')), undefined)
  const { files } = t.world
  let asked = 0
  const impatient = new Profile({
    ...t.world,
    files: {
      ...files,
      lock(path, options) {
        asked = options?.waitMs ?? 0
        return files.lock(path, { waitMs: 60 })
      },
    },
  })
  assert.is(await rejection(impatient.change({ relay: 'x' })), 'profile/busy')
  assert.is(asked, 5000)
  const waiting = profile.change({ relay: 'w' })
  await held()
  await waiting
  await impatient.change({ relay: 'x' })
  assert.is((await profile.settings()).relay, 'x')
})

test('the lock of a killed process is free', async () => {
  const path = join(t.dir, 'lock')
  const child = spawn(process.execPath, [
    '-e',
    `const { hostFiles } = await import('./agent/host/files.ts')
     await hostFiles.lock(${
      JSON.stringify(path)
    }); console.log('held'); setInterval(() => {}, 1e6)`,
  ], { cwd: join(import.meta.dirname, '../..') })
  await once(child.stdout, 'data')
  assert.is(await t.world.files.lock(path), undefined)
  child.kill('SIGKILL')
  await once(child, 'close')
  const release = await t.world.files.lock(path)
  assert.ok(release)
  await release()
  await release()
})

test('settings keep what they do not know, remove on undefined, and refuse what is no settings', async () => {
  assert.equal(await profile.settings(), {})
  await profile.change({ relay: 'https://r.example', apiKey: 'sk_1' })
  await profile.change({ later: { deep: [1] } })
  await profile.change({ apiKey: undefined })
  assert.equal(await profile.settings(), { relay: 'https://r.example', later: { deep: [1] } })
  assert.is(await mode(profile.settingsPath), '600')
  for (const damaged of ['{', '[]', '1', 'null', '{"relay": 1}', '{"apiKey": {}}']) {
    await writeFile(profile.settingsPath, damaged)
    const error = await thrown(profile.settings())
    assert.is(error.code, 'profile/corrupt')
    assert.is(await rejection(profile.change({ relay: 'y' })), 'profile/corrupt')
    assert.is(await readFile(profile.settingsPath, 'utf8'), damaged)
  }
  await chmod(profile.settingsPath, 0o644)
  assert.is(await rejection(profile.settings()), 'profile/permissions')
})

test('known_agents pins on first use, knows it afterwards, and stops on a change', async () => {
  const [first, second] = [key(), key()]
  const known = profile.knownAgents()
  assert.equal(await known.check('db', [first]), { trusted: [first], first: true })
  assert.equal(await known.check('db', [first]), { trusted: [first], first: false })
  // A pool may have more members; the one that is known is used, the other is not.
  assert.equal(await known.check('db', [second, first]), { trusted: [first], first: false })
  const error = await thrown(known.check('db', [second]))
  assert.is(error.code, 'trust/changed')
  const print = (text: string): string => fingerprint(t.world.crypto, generateFrom(text))
  assert.ok(error.message.includes(print(first)), error.message)
  assert.ok(error.message.includes(print(second)), error.message)
  assert.ok(error.hint!.includes(`sotto peers trust db ${second}`), error.hint)
  // What the hint says to do, does it.
  await known.trust('db', second, { verified: true })
  assert.equal(await known.check('db', [second]), { trusted: [second], first: false })
  assert.equal((await known.find('db')).map(({ how, verified }) => [how, verified]), [
    ['first-use', false],
    ['manual', true],
  ])
  assert.is(await known.forget('db'), 2)
  assert.is(await known.forget('db'), 0)
  assert.is((await known.check('db', [second])).first, true)
  assert.equal(await known.check('nobody', []), { trusted: [], first: false })
})

function generateFrom(text: string): Uint8Array {
  const alphabet = 'abcdefghijklmnopqrstuvwxyz234567'
  const bits = [...text].map((letter) => alphabet.indexOf(letter).toString(2).padStart(5, '0'))
    .join('')
  return new Uint8Array(
    Array.from({ length: 32 }, (_, i) => parseInt(bits.slice(8 * i, 8 * i + 8), 2)),
  )
}

test('known_agents: what a person wrote stays where it is', async () => {
  const [one, two, three] = [key(), key(), key()]
  const path = join(profile.configDir, 'known_agents')
  const written =
    `# my machines\n\n  office   ${one}  manual 2026-01-02   verified\n# the next is old\n` +
    `lab ${two} first-use 2026-01-02T03:04:05Z\r\n`
  await mkdir(dirname(path), { recursive: true })
  await writeFile(path, written)
  const known = profile.knownAgents()
  assert.equal((await known.list()).map(({ name, verified }) => [name, verified]), [
    ['office', true],
    ['lab', false],
  ])
  await known.check('office', [one])
  assert.is(await readFile(path, 'utf8'), written, 'nothing changed, so nothing was written')
  await known.trust('new', three)
  const after = await readFile(path, 'utf8')
  assert.ok(after.startsWith(written.replace('\r', '')))
  await known.forget('office')
  assert.match(await readFile(path, 'utf8'), /^# my machines\n\n# the next is old\nlab /)
  assert.is(await mode(path), '600')
})

test('known_agents names the line that it cannot read', async () => {
  const path = join(profile.configDir, 'known_agents')
  await mkdir(dirname(path), { recursive: true })
  const good = `a ${key()} manual 2026-01-02`
  for (
    const bad of [
      'x',
      `x ${key()}`,
      `x ${key().toUpperCase()} manual 2026-01-02`,
      `x ${key()} somehow 2026-01-02`,
      `x ${key()} manual yesterday`,
      `x ${key()} manual 2026-01-02 Verified`,
      `x ${key()} manual 2026-01-02 verified more`,
    ]
  ) {
    await writeFile(path, `${good}\n# c\n${bad}\n`)
    const error = await thrown(profile.knownAgents().list())
    assert.is(error.code, 'trust/corrupt')
    assert.match(error.message, /line 3/)
  }
  assert.is(await rejection(profile.knownAgents().trust('two words', key())), 'trust/name')
  assert.is(await rejection(profile.knownAgents().trust('#x', key())), 'trust/name')
  assert.is(await rejection(profile.knownAgents().trust('x', 'nokey')), 'key/format')
})

test('known_relays pins a relay, refuses another, and lets a fingerprint decide', async () => {
  const [one, two] = [generateIdentity(t.world.crypto), generateIdentity(t.world.crypto)]
  const known = profile.knownRelays()
  const firsts: string[] = []
  const pin = await known.pinOf('relay.example', { first: (found) => void firsts.push(found) })
  assert.is(pin(one.public), true)
  assert.is(pin(one.public), true)
  assert.equal(firsts, [formatKey(one.public)])
  // The same run already holds to it, before it is on disk.
  assert.throws(() => pin(two.public), (error: TunnelError) => error.code === 'trust/changed')
  await known.kept()
  const later = await profile.knownRelays().pinOf('relay.example')
  assert.is(later(one.public), true)
  assert.throws(
    () => later(two.public),
    (error: TunnelError) =>
      error.code === 'trust/changed' && error.hint!.includes('--relay-fingerprint'),
  )
  assert.is((await profile.knownRelays().pinOf('other.example'))(two.public), true)
  const demanded = await known.pinOf('relay.example', {
    fingerprint: fingerprint(t.world.crypto, two.public),
  })
  assert.throws(() => demanded(one.public), (error: TunnelError) => error.code === 'trust/changed')
  assert.is(demanded(two.public), true)
  await known.kept()
  assert.equal((await known.find('relay.example')).map((found) => found.key), [
    formatKey(two.public),
  ])
  assert.is(await rejection(known.pinOf('x', { fingerprint: 'SHA256:short' })), 'key/format')
})

test('files are replaced whole, bounded when read, and listed', async () => {
  const { files } = t.world
  const path = join(t.dir, 'deep/er/file')
  assert.is(await files.read(path), undefined)
  assert.equal(await files.list(dirname(path)), [])
  assert.is(await files.info(path), undefined)
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 10_000 }), async (content) => {
      await files.write(path, content)
      assert.equal(await files.read(path), content)
    }),
    { numRuns: 20 },
  )
  await files.write(path, new Uint8Array(100))
  assert.is((await files.read(path, { bytesMax: 100 }))!.length, 100)
  assert.is(await rejection(files.read(path, { bytesMax: 99 })), 'files/size')
  await files.append(path, utf8('more'))
  assert.is((await files.info(path))!.bytes, 104)
  assert.equal(await files.list(dirname(path)), ['file'])
  assert.is(await mode(path), '600')
  await files.remove(path)
  await files.remove(path)
  await mkdir(path)
  assert.is(await rejection(files.write(path, utf8('x'))), 'files/failed')
  assert.equal(await files.list(dirname(path)), ['file'], 'no half-made file is left')
})

test('watch() tells of a write, a replacement and a removal, and is silent once stopped', async () => {
  const { files } = t.world
  // A watch alone keeps no process alive.
  const alive = setInterval(() => {}, 1000)
  const path = join(t.dir, 'watched')
  let told!: () => void
  let next = new Promise<void>((resolve) => (told = resolve))
  const heard = async (): Promise<void> => {
    await next
    next = new Promise((resolve) => (told = resolve))
  }
  await writeFile(path, 'one')
  let count = 0
  const stop = files.watch(path, () => {
    count++
    told()
  })
  await writeFile(path, 'two')
  await heard()
  await files.write(path, utf8('three'))
  await heard()
  await files.remove(path)
  await heard()
  stop()
  const before = count
  await writeFile(path, 'four')
  await new Promise((resolve) => setTimeout(resolve, 150))
  assert.is(count, before)
  clearInterval(alive)
})

test.run()
