// seconds: 300
// needs: unshare root
/**
 * `sotto update` as it is: two compiled programs of two versions, a relay that hands out the newer one, and
 * whatever may come in between. After each of it there is a program that runs, and says which it is.
 */
import {
  cpSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  watch,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { buildBinary, fileName } from '../../compile/binary.ts'
import { fileHash, runtimeFor } from '../../compile/runtimes.ts'
import type { TargetName } from '../../compile/runtimes.ts'
import { encodeMinisignKey, makeMinisignSecret, signMinisign } from '../../core/minisign.ts'
import { encodeSums, releaseComment } from '../../core/release.ts'
import { fast } from '../support/crypto.ts'
import { startBun } from '../support/relays.ts'
import type { RelayProcess } from '../support/relays.ts'
import { BUN, E2eWorld, ROOT } from '../support/world.ts'
import type { CommandResult } from '../support/world.ts'

const HERE: TargetName = process.arch === 'arm64' ? 'linux-arm64' : 'linux-x64'
const [OLD, NEW] = ['1.0.0', '1.1.0']
const SECRET = makeMinisignSecret(fast)

let world: E2eWorld
let relay: RelayProcess
let release: string
let counter = 0

const test = suite('e2e/update')

test.before(async () => {
  world = new E2eWorld()
  const copy = world.path('sources')
  for (const part of ['agent', 'core', 'relay', 'compile', 'package.json', 'tsconfig.json']) {
    cpSync(join(ROOT, part), join(copy, part), { recursive: true })
  }
  symlinkSync(join(ROOT, 'node_modules'), join(copy, 'node_modules'))
  for (const version of [OLD, NEW]) {
    writeFileSync(join(copy, 'agent/version.ts'), `export const VERSION = '${version}'\n`)
    buildBinary({
      root: copy,
      bun: BUN,
      target: HERE,
      runtime: runtimeFor(HERE, { fetch: false }),
      outfile: world.path(version),
      releaseKeys: [encodeMinisignKey(SECRET).split('\n')[1]!],
    })
  }
  release = world.path('release')
  mkdirSync(release)
  publish(NEW)
  relay = await startBun({
    flags: {
      downloads: release,
      quota: 'address.requestsBurst=100000,address.requests=100000',
    },
  })
})

test.after(async () => {
  await relay?.stop()
  await world.close()
})

function publish(version: string, sum = fileHash(world.path(version))): void {
  rmSync(join(release, fileName(HERE)), { force: true })
  linkSync(world.path(version), join(release, fileName(HERE)))
  const sums = encodeSums(new Map([[fileName(HERE), sum]]))
  writeFileSync(join(release, 'SHA256SUMS'), sums)
  writeFileSync(
    join(release, 'SHA256SUMS.minisig'),
    signMinisign(new TextEncoder().encode(sums), {
      secret: SECRET,
      trustedComment: releaseComment(version, Date.now()),
      crypto: fast,
    }),
  )
}

/** A folder with the old program in it. */
function installed(): { folder: string; program: string } {
  const folder = world.path(`bin-${counter++}`)
  mkdirSync(folder)
  linkSync(world.path(OLD), join(folder, 'sotto'))
  return { folder, program: join(folder, 'sotto') }
}

function environment(): { SOTTO_RELAY: string; SOTTO_HOME: string } {
  return { SOTTO_RELAY: relay.url, SOTTO_HOME: world.path(`home-${counter++}`) }
}

function update(program: string, args: string[] = [], env = environment()): Promise<CommandResult> {
  return world.run(program, ['update', ...args], { env, timeoutMs: 60_000 })
}

async function versionOf(program: string): Promise<string> {
  return (await world.run(program, ['--version'])).stdout.trim()
}

test('looks, updates, says what goes on as it was, goes back, and forward again', async () => {
  const { folder, program } = installed()
  const env = environment()
  const running = world.start(program, ['relay', '--port', '0', '--json'], {
    env: { SOTTO_HOME: world.path('old-relay') },
  })
  await running.event('listening')
  const looked = await update(program, ['--check', '--json'], env)
  assert.is(looked.code, 0, looked.stderr)
  const [found] = looked.stdout.trim().split('\n').map((line) => JSON.parse(line))
  assert.is(found.state, 'available')
  assert.is(found.version, NEW)
  assert.is(await versionOf(program), OLD)
  const done = await update(program, [], env)
  assert.is(done.code, 0, done.stderr)
  assert.match(done.stdout, new RegExp(`^sotto ${NEW} in place of ${OLD}: ${program}$`, 'm'))
  assert.match(
    done.stdout,
    /^One program goes on with 1\.0\.0 until started again: process \d+\.$/m,
  )
  assert.is(await versionOf(program), NEW)
  assert.equal(readdirSync(folder).sort(), ['.sotto.previous', 'sotto'])
  const again = await update(program, [], env)
  assert.match(again.stdout, /is the newest that is handed out/)
  for (const [version, other] of [[OLD, NEW], [NEW, OLD]]) {
    const back = await update(program, ['--rollback'], env)
    assert.is(back.code, 0, back.stderr)
    assert.is(await versionOf(program), version)
    assert.is(await versionOf(join(folder, '.sotto.previous')), other)
  }
  await running.stop()
})

test('an old release is refused, and taken only by name', async () => {
  const { program } = installed()
  const env = environment()
  assert.is((await update(program, [], env)).code, 0)
  publish(OLD)
  const refused = await update(program, [], env)
  assert.is(refused.code, 1)
  assert.match(refused.stderr, /found version 1\.0\.0, which is older than 1\.1\.0/)
  assert.is(await versionOf(program), NEW)
  const named = await update(program, ['--version', OLD, '--allow-downgrade'], env)
  assert.is(named.code, 0, named.stderr)
  assert.is(await versionOf(program), OLD)
  // The old one has forgotten nothing: what was newest once is still known.
  const hidden = await update(program, ['--check'], env)
  assert.match(hidden.stderr, /found version 1\.0\.0, and 1\.1\.0 has been handed out before/)
  publish(NEW, '0'.repeat(64))
  const wrong = await update(program, [], env)
  assert.match(wrong.stderr, /found SHA-256 [0-9a-f]{64}, expected 0{64}/)
  assert.is(await versionOf(program), OLD)
  publish(NEW)
})

test('a full disk, a folder that cannot be written to: said, and the program runs on', async () => {
  const bytes = statSync(world.path(OLD)).size
  const wrapped = (options: string, after: string) => {
    const folder = world.path(`mount-${counter++}`)
    mkdirSync(folder)
    return world.run('unshare', [
      '-m',
      'sh',
      '-c',
      `mount -t tmpfs -o ${options} t "$1" && cp "$2" "$1/sotto" && ${after}; "$1/sotto" update; ` +
      'c=$?; echo "left: $(ls -A "$1") $("$1/sotto" --version)"; exit $c',
      'sh',
      folder,
      world.path(OLD),
    ], { env: environment(), timeoutMs: 60_000 })
  }
  const full = await wrapped(`size=${Math.round(bytes * 1.5)}`, ':')
  assert.is(full.code, 1, full.stderr)
  assert.match(full.stderr, /Cannot write \S+: ENOSPC/)
  assert.match(full.stdout, /^left: sotto 1\.0\.0$/m)
  const only = await wrapped(`size=${bytes * 3}`, 'mount -o remount,ro "$1"')
  assert.is(only.code, 1, only.stderr)
  assert.match(
    only.stderr,
    /its folder cannot be written to\nRun this as the user who installed it/,
  )
  assert.match(only.stdout, /^left: sotto 1\.0\.0$/m)
})

test('killed at any step: a program that runs is there, and the next update works', async () => {
  const { folder, program } = installed()
  const moments: [what: string, now: (names: string[]) => boolean][] = [
    ['begun', (names) => names.some((name) => name.startsWith('.sotto.update'))],
    ['half', (names) => sizeOf(names) > statSync(world.path(NEW)).size / 2],
    ['whole', (names) => sizeOf(names) === statSync(world.path(NEW)).size],
    ['kept', (names) => names.includes('.sotto.previous')],
  ]
  const sizeOf = (names: string[]): number => {
    const name = names.find((one) => one.startsWith('.sotto.update'))
    try {
      return name === undefined ? 0 : statSync(join(folder, name)).size
    } catch {
      return 0
    }
  }
  for (const [what, now] of moments) {
    const updating = world.start(program, ['update'], { env: environment() })
    await new Promise<void>((resolve) => {
      const watcher = watch(folder, () => {
        if (!now(readdirSync(folder))) return
        watcher.close()
        resolve()
      })
      void updating.ended.then(() => {
        watcher.close()
        resolve()
      })
    })
    updating.signal('SIGKILL')
    await updating.ended
    assert.match(await versionOf(program), /^1\.[01]\.0$/, what)
    assert.ok((statSync(program).mode & 0o111) !== 0)
  }
  const last = await update(program)
  assert.is(last.code, 0, last.stderr)
  assert.is(await versionOf(program), NEW)
  assert.not.ok(readdirSync(folder).some((name) => name.startsWith('.sotto.update')))
})

test('from sources, or without a key: said', async () => {
  const sources = await world.run(BUN, [join(ROOT, 'agent/main.ts'), 'update'], {
    env: environment(),
  })
  assert.is(sources.code, 1)
  assert.match(sources.stderr, /this sotto runs from its sources/)
  const dist = join(ROOT, 'dist', fileName(HERE))
  if (!existsSync(dist) || !readFileSync(dist).includes('this program was built without')) return
  const without = await update(dist, ['--check'])
  assert.match(without.stderr, /was built without the key of any release/)
})

test.run()
