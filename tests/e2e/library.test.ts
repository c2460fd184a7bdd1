// seconds: 120
/**
 * The library, as a program imports it: the example runs on Bun and on Node, and says the same; two
 * runtimes share one profile; and what the library does not carry says so.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { BUN, E2eWorld, ROOT } from '../support/world.ts'
import type { Relay } from '../support/world.ts'

const NODE = join(ROOT, 'node_modules', '.bin', 'node')
const SAYS = `delivered counted: 100000 true
HELLO
pinned true
session/refused
`

let world: E2eWorld
let relay: Relay

const test = suite('e2e/library')

test.before(async () => {
  world = new E2eWorld()
  relay = await world.relay()
})

test.after(() => world.close())

for (
  const [name, command, flags] of [['bun', BUN, []], ['node', NODE, ['--no-warnings']]] as const
) {
  test(`the example does on ${name} what it says`, async () => {
    const folder = world.path(`example-${name}`)
    const ran = await world.run(command, [...flags, 'examples/a2a.ts', folder], {
      env: world.joins(relay),
    })
    assert.is(ran.code, 0, ran.stderr)
    assert.is(ran.stdout, SAYS)
    assert.is(ran.stderr, '')
    // And again: the pins that it made hold.
    const again = await world.run(command, [...flags, 'examples/a2a.ts', folder], {
      env: world.joins(relay),
    })
    assert.is(again.stdout, SAYS, again.stderr)
  })
}

test('both runtimes use one profile at once', async () => {
  const folder = world.path('shared')
  const runs = await Promise.all(
    [BUN, NODE, BUN, NODE].map((command) =>
      world.run(command, ['examples/keys.ts', folder], { env: world.joins(relay) })
    ),
  )
  for (const { code, stderr } of runs) assert.is(code, 0, stderr)
  assert.is(new Set(runs.map(({ stdout }) => stdout)).size, 1)
  assert.ok(readdirSync(folder).includes('identity'))
})

test('a message to a library that fails says no word of its insides', async () => {
  const script = `
    import { connect } from 'sotto'
    const profile = process.argv[2]
    const client = await connect({ profile: profile + '/client', name: false })
    const server = await connect({
      profile: profile + '/server',
      access: [{ peer: client.key, services: ['a2a'] }],
    })
    server.listen(() => { throw new Error('secret words') })
    const reply = await client.send(server.name, 'x')
    console.log(JSON.stringify([reply.status, reply.code, reply.message]))
    try { server.listen(() => {}) } catch (error) { console.log(error.code) }
    try { await client.send(server.name, new Uint8Array(16_777_217)) } catch (error) { console.log(error.code) }
    await client.close()
    try { await client.send(server.name, 'x') } catch (error) { console.log(error.code) }
    await server.close()
  `
  const ran = await world.run(NODE, [
    '--no-warnings',
    '--input-type=module',
    '-e',
    script,
    'x',
    world.path('fails'),
  ], {
    env: world.joins(relay),
  })
  const lines = ran.stdout.trim().split('\n')
  assert.equal(
    JSON.parse(lines[0]!),
    ['failed', 'a2a/handler', 'the program there failed'],
    ran.stderr,
  )
  assert.equal(lines.slice(1, 3), ['library/listening', 'a2a/size'])
  assert.match(lines[3]!, /^(uplink|visit|session)\//)
})

test('package.json leads to it', () => {
  const { exports } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'))
  assert.equal(exports, { '.': './agent/library.ts' })
})

test.run()
