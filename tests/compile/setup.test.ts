// When a clone installs anew: compared is what is pinned with what npm says it installed.
// runtimes: bun node
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { spawn, spawnSync } from 'node:child_process'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
// deno-lint-ignore no-explicit-any
const setup: any = await import(new URL('../../compile/setup.mjs', import.meta.url).href)
const NODE = join(ROOT, 'node_modules', '.bin', 'node')

const test = suite('compile/setup')
let root: string

test.before.each(async () => void (root = await mkdtemp(join(tmpdir(), 'sotto-setup-'))))
test.after.each(() => rm(root, { recursive: true, force: true }))

interface Package {
  version: string
  integrity?: string
  optional?: boolean
}

async function clone(
  pinned: Record<string, Package>,
  installed?: Record<string, Package>,
): Promise<void> {
  const lock = (packages: Record<string, Package>) => JSON.stringify({ packages })
  await writeFile(join(root, 'package-lock.json'), lock({ '': { version: '1.0.0' }, ...pinned }))
  if (!installed) return
  await mkdir(join(root, 'node_modules'), { recursive: true })
  await writeFile(join(root, 'node_modules', '.package-lock.json'), lock(installed))
  for (const path of Object.keys(installed)) await mkdir(join(root, path), { recursive: true })
}

const A = { version: '1.2.3', integrity: 'sha512-a' }

test('nothing installed is stale', async () => {
  await clone({ 'node_modules/a': A })
  assert.is(setup.staleness(root), 'nothing is installed yet')
})

test('what is pinned and there is fresh', async () => {
  await clone({ 'node_modules/a': A }, { 'node_modules/a': A })
  assert.is(setup.staleness(root), undefined)
})

test('another version, other bytes and a missing package are stale, each by name', async () => {
  const a = 'node_modules/a'
  await clone({ [a]: A }, { [a]: { ...A, version: '1.2.2' } })
  assert.is(setup.staleness(root), 'a is 1.2.2 and not 1.2.3')
  await clone({ [a]: A }, { [a]: { ...A, integrity: 'sha512-b' } })
  assert.match(setup.staleness(root), /^a is /)
  await clone({ [a]: A, 'node_modules/@b/c': A }, { [a]: A })
  assert.is(setup.staleness(root), '@b/c is missing')
})

test('a package whose folder was removed by hand is missing', async () => {
  await clone({ 'node_modules/a': A }, { 'node_modules/a': A })
  await rm(join(root, 'node_modules/a'), { recursive: true })
  assert.is(setup.staleness(root), 'a is missing')
})

test('packages of other platforms are rightly absent, but not at another version', async () => {
  const optional = { ...A, optional: true }
  await clone({ 'node_modules/a': A, 'node_modules/b': optional }, { 'node_modules/a': A })
  assert.is(setup.staleness(root), undefined)
  await clone({ 'node_modules/b': optional }, {
    'node_modules/b': { ...optional, version: '0.1.0' },
  })
  assert.match(setup.staleness(root), /^b is 0\.1\.0/)
})

test('this very clone is fresh, and its program runs from anywhere', () => {
  assert.is(setup.staleness(), undefined)
  const { stdout, status } = spawnSync(NODE, [join(ROOT, 'compile/sotto.mjs'), '--version'], {
    cwd: root,
    encoding: 'utf8',
  })
  assert.is(status, 0)
  assert.match(stdout, /^\d+\.\d+\.\d+\n$/)
})

test('the exit code and the signals pass through', async () => {
  const sotto = join(ROOT, 'compile/sotto.mjs')
  assert.is(spawnSync(NODE, [sotto, 'bogus'], { encoding: 'utf8' }).status, 2)
  for (const [signal, expected] of [['SIGINT', 130], ['SIGTERM', 143], ['SIGHUP', 129]] as const) {
    const child = spawn(NODE, [sotto, 'demo', '--json', '--state', root], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const ended = new Promise<number | null>((resolve) =>
      child.on('close', (code) => resolve(code))
    )
    let said = ''
    await new Promise<void>((resolve) =>
      child.stdout.on('data', (bytes) => {
        said += bytes
        if (said.includes('"event":"up"')) resolve()
      })
    )
    child.kill(signal)
    // npm passes a signal on that the terminal has sent already: the second one must not hurt.
    child.kill(signal)
    assert.is(await ended, expected, signal)
    assert.match(said, /"event":"stopped"/, 'it ended in order')
  }
})

test.run()
