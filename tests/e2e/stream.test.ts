// seconds: 300
/**
 * One stream of 1 GiB between two programs, while its links are dropped in the midst of it at moments
 * of chance, and the relay is killed and comes back: all arrives, once, in order, and no process holds
 * more of it than the buffers that it says it has.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { CutProxy } from '../support/cut_proxy.ts'
import { freePort } from '../support/port.ts'
import { BUN, E2eWorld, ROOT } from '../support/world.ts'
import type { Program } from '../support/world.ts'

const NODE = join(ROOT, 'node_modules', '.bin', 'node')
const STREAM_BYTES = 1_073_741_824
const CUTS = 5
/** A runtime, its garbage, and buffers of two windows; the stream is many times that. */
const RESIDENT_BYTES_MAX = 400_000_000
const END_MS_MAX = 240_000

const test = suite('e2e/stream')

let world: E2eWorld
test.before.each(() => void (world = new E2eWorld()))
test.after.each(() => world.close())

async function keyOf(home: string): Promise<string> {
  return JSON.parse((await world.sottoRun(['identity', '--json'], { home })).stdout).key
}

async function sotto(home: string, args: string[]): Promise<void> {
  const { code, stderr } = await world.sottoRun(args, { home })
  assert.is(code, 0, stderr)
}

/** The most that a process ever had in memory. */
function residentMax({ child }: Program): number {
  const status = readFileSync(`/proc/${child.pid}/status`, 'latin1')
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)![1]) * 1024
}

/** Numbers of chance by a seed that is printed: xorshift32. */
function chances(seed: number): () => number {
  let state = seed >>> 0 || 1
  return () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) / 4_294_967_296
  }
}

for (
  const [name, from, to] of [['Bun to Node', BUN, NODE], ['Node to Bun', NODE, BUN]] as const
) {
  test(`1 GiB from ${name}: five cuts and a killed relay, and all arrives once`, async () => {
    const seed = Number(process.env['SOTTO_SEED'] ?? Date.now() % 1_000_000_007)
    console.log(`seed ${seed}`)
    const chance = chances(seed)
    const port = await freePort()
    const relays: Program[] = []
    const serve = async (): Promise<string> => {
      const args = ['relay', '--port', String(port), '--json']
      relays.push(world.sotto(args, { home: 'relay' }))
      return (await relays.at(-1)!.event('listening'))['apiKey']
    }
    const apiKey = await serve()
    const proxy = await CutProxy.start(port)
    world.defer(() => proxy.close())
    const env = { SOTTO_RELAY: `https://localhost:${proxy.port}`, SOTTO_API_KEY: apiKey }
    await sotto('taker', ['peers', 'trust', 'giver', await keyOf('giver')])
    await sotto('taker', ['access', 'allow', 'giver', 'a2a'])
    const talk = (command: string, words: string[]): Program =>
      world.start(command, [
        ...command === NODE ? ['--no-warnings'] : [],
        'tests/support/stream_talk.ts',
        ...words,
      ], { env })

    const taking = talk(to, ['receive', world.path('taker'), 'taker'])
    await taking.event('listening')
    const giving = talk(from, ['send', world.path('giver'), 'taker', String(STREAM_BYTES)])

    // Of all the bytes, those between the first and the last twentieth.
    const moments = Array.from({ length: CUTS + 1 }, () => (0.05 + 0.9 * chance()) * STREAM_BYTES)
      .sort((a, b) => a - b)
    const killed = Math.floor(chance() * moments.length)
    const memory: number[] = []
    for (const [index, moment] of moments.entries()) {
      await proxy.passed(moment)
      assert.is(taking.lines.some(({ event }) => event === 'done'), false, 'in the midst')
      if (index === killed) {
        memory.push(residentMax(relays.at(-1)!))
        await relays.at(-1)!.stop('SIGKILL')
        await serve()
      } else {
        // The sender's link, the receiver's, or both.
        const which = Math.floor(chance() * 3)
        const { carried } = proxy.cut((at) => which === 2 || at === which)
        assert.ok(carried.length > 0, 'a cut that cuts nothing')
      }
    }
    const done = async (program: Program) =>
      await program.until(
        () => program.lines.find(({ event }) => event === 'done'),
        'the end of the stream',
        END_MS_MAX,
      )
    const [sent, got] = await Promise.all([done(giving), done(taking)])
    assert.equal([got['bytes'], got['sum']], [STREAM_BYTES, sent['sum']])
    assert.equal([sent['answer'], got['streams']], [sent['sum'], 1])
    assert.is(proxy.cuts.length, CUTS)
    assert.is((await giving.ended).code, 0)
    memory.push(residentMax(relays.at(-1)!), sent['residentMax'], got['residentMax'])
    console.log(`at most ${memory.map((bytes) => `${Math.round(bytes / 1e6)} MB`).join(', ')}`)
    for (const bytes of memory) assert.ok(bytes < RESIDENT_BYTES_MAX, `${bytes} bytes in memory`)
    for (const { lines } of [giving, taking]) {
      assert.equal(lines.filter(({ event }) => event === 'broke'), [])
    }
  })
}

test.run()
