// seconds: 60
/**
 * What a start loads, since each library costs it milliseconds: the version nothing but itself, a tunnel
 * what it needs. Counted in a running program, by what its loader holds when it ends, and in what imports
 * say.
 */
import { writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { BUN, E2eWorld, ROOT } from '../support/world.ts'
import type { Program, Relay } from '../support/world.ts'

/** Told at the end, on standard error. */
const TELL = `process.on('exit', () => console.error('LOADED ' + JSON.stringify(
  Object.keys(require.cache).filter((path) => path.startsWith(${JSON.stringify(ROOT)})))))\n`
/** What every command line may take: the parser of it, and ciphers beside the runtime's own. */
const LIGHT = [
  '@noble/ciphers',
  '@noble/curves',
  '@noble/hashes',
  '@noble/post-quantum',
  '@scure/base',
  'commander',
]

let world: E2eWorld
let relay: Relay

const test = suite('agent/start')

test.before(async () => {
  world = new E2eWorld()
  writeFileSync(world.path('tell.ts'), TELL)
  relay = await world.relay()
})

test.after(() => world.close())

function start(...args: string[]): Program {
  const env = { SOTTO_HOME: world.path('agent'), ...world.joins(relay) }
  return world.start(BUN, ['--preload', world.path('tell.ts'), 'agent/main.ts', ...args], { env })
}

/** Own files, and packages, that it had loaded when it ended. */
async function loaded(program: Program): Promise<{ own: string[]; packages: string[] }> {
  await program.ended
  const [, json] = /^LOADED (.*)$/m.exec(program.stderr)!
  const paths = (JSON.parse(json!) as string[]).map((path) => path.slice(ROOT.length))
  const packages = paths.flatMap((path) => {
    const name = /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1]
    return name === undefined ? [] : [name]
  })
  return {
    own: paths.filter((path) => !path.includes('node_modules/')).sort(),
    packages: [...new Set(packages)].sort(),
  }
}

test('the version loads two files and no package', async () => {
  const program = start('--version')
  assert.equal(await loaded(program), {
    own: ['agent/main.ts', 'agent/version.ts'],
    packages: [],
  })
  assert.match(program.stdout, /^\d+\.\d+\.\d+\n$/)
})

test('a page loads the command line and no more', async () => {
  const { own, packages } = await loaded(start('http', '--help'))
  assert.equal(packages, LIGHT)
  assert.not.ok(own.some((path) => path.startsWith('relay/')))
})

test('a tunnel loads what makes certificates once, and later no package but the light ones', async () => {
  for (const round of ['first', 'second']) {
    const program = start('http', '3000', '--name', 'web', '--json')
    await program.event('up')
    program.signal('SIGTERM')
    const { own, packages } = await loaded(program)
    assert.is(packages.includes('@peculiar/x509'), round === 'first')
    if (round === 'second') assert.equal(packages, LIGHT)
    for (const heavy of ['acme-client', 'yaml', 'zod', 'uqr', 'hono', 'ws']) {
      assert.not.ok(packages.includes(heavy), heavy)
    }
    assert.not.ok(own.some((path) => path.startsWith('relay/')))
  }
})

test.run()
