// seconds: 180
/**
 * `npm run build:relay`: each of the four files starts on its runtime from an empty folder, with nothing
 * beside it, and answers; the one for Workers is small, and is what Cloudflare's own tool would deploy;
 * Deno's checker takes the sources; what goes in is named.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { buildRelay } from '../../compile/relay.ts'
import type { RelayBundle } from '../../compile/relay.ts'
import { freePort } from '../support/port.ts'
import { E2eWorld, ROOT } from '../support/world.ts'
import type { Program } from '../support/world.ts'

const BIN = join(ROOT, 'node_modules', '.bin')
const NODE = join(BIN, 'node')
const DENO = join(BIN, 'deno')
/** What Workers takes on its free plan is 3 MiB; ours is to stay far below. */
const WORKER_GZIP_BYTES_MAX = 2 ** 20
const TOOL_MS_MAX = 100_000

let world: E2eWorld
let bundles: Record<string, RelayBundle>
let out: string

const test = suite('compile/relay')

test.before(async () => {
  world = new E2eWorld()
  out = world.path('relay')
  mkdirSync(world.path('empty'))
  bundles = await buildRelay(out)
})

test.after(() => world.close())

/** Starts it far from the sources, waits until it listens, and asks how it is. */
async function answers(
  command: string,
  args: string[],
  { scheme, env = {} }: { scheme: 'http' | 'https'; env?: Record<string, string> },
): Promise<void> {
  const program: Program = world.start(command, args, { cwd: world.path('empty'), env })
  const { port } = await program.event('listening')
  const response = await fetch(`${scheme}://localhost:${port}/healthz`, {
    tls: { rejectUnauthorized: false },
  } as RequestInit)
  assert.is(response.status, 200)
  assert.is(await response.text(), 'ok\n')
  await program.stop()
}

function flags(name: string): string[] {
  return ['--domain=localhost', '--host=127.0.0.1', '--port=0', `--data=${world.path(name)}`]
}

test('on Node', async () => {
  const args = ['--no-warnings', bundles['node']!.path, ...flags('node')]
  await answers(NODE, args, { scheme: 'https' })
})

test('on Deno', async () => {
  const args = ['run', '-A', '--quiet', '--no-config', bundles['deno']!.path, ...flags('deno')]
  await answers(DENO, args, { scheme: 'https' })
})

test('on Deno Deploy', async () => {
  const { path } = bundles['deno_deploy']!
  await answers(DENO, ['run', '-A', '--quiet', '--no-config', '--unstable-kv', path], {
    scheme: 'http',
    env: {
      SOTTO_RELAY_DOMAIN: 'localhost',
      SOTTO_RELAY_SCHEME: 'http',
      SOTTO_RELAY_HOST: '127.0.0.1',
      SOTTO_RELAY_PORT: `${await freePort()}`,
      SOTTO_RELAY_DATA: world.path('deploy.kv'),
    },
  })
})

test('on workerd', async () => {
  const worker = join(ROOT, 'compile', 'worker.mjs')
  const { path } = bundles['worker']!
  const args = [worker, '--port', '0', '--data', world.path('worker'), '--bundle', path]
  await answers(NODE, args, { scheme: 'http' })
})

test('the file for Workers is under 1 MiB, compressed', () => {
  const { gzipBytes } = bundles['worker']!
  assert.ok(gzipBytes < WORKER_GZIP_BYTES_MAX, `${gzipBytes} bytes`)
})

test('wrangler would deploy it as it is', () => {
  const { status, stdout, stderr } = spawnSync(NODE, [
    join(BIN, 'wrangler'),
    'deploy',
    '--dry-run',
    `--config=${join(out, 'wrangler.json')}`,
    `--outdir=${world.path('deployed')}`,
  ], {
    cwd: out,
    encoding: 'utf8',
    timeout: TOOL_MS_MAX,
    killSignal: 'SIGKILL',
    env: { ...world.env('wrangler'), CI: '1', WRANGLER_SEND_METRICS: 'false' },
  })
  assert.is(status, 0, `${stdout}${stderr}`)
  assert.match(stdout, /HUBS \(HubObject\)/)
  assert.match(stdout, /DIRECTORY \(DirectoryObject\)/)
  const deployed = readFileSync(join(world.path('deployed'), 'worker.js'))
  assert.ok(deployed.equals(readFileSync(bundles['worker']!.path)), 'no byte of it is changed')
})

test('"deno check" takes the sources of both relays on Deno', () => {
  const { status, stderr } = spawnSync(DENO, [
    'check',
    'relay/serve/deno.ts',
    'relay/serve/deno_deploy.ts',
  ], { cwd: ROOT, encoding: 'utf8', timeout: TOOL_MS_MAX, killSignal: 'SIGKILL' })
  assert.is(status, 0, stderr)
})

test('no file speaks of the folder that it was built in', () => {
  for (const [place, { path }] of Object.entries(bundles)) {
    assert.not.ok(readFileSync(path, 'utf8').includes(ROOT), place)
  }
})

test('two builds are the same bytes', async () => {
  const again = await buildRelay(world.path('again'))
  for (const [place, { path }] of Object.entries(bundles)) {
    assert.ok(readFileSync(path).equals(readFileSync(again[place]!.path)), place)
  }
})

test('what is in them is named with its licence', () => {
  const bill = JSON.parse(readFileSync(join(out, 'sotto-relay.cdx.json'), 'utf8'))
  const names = bill.components.map((one: { name: string }) => one.name)
  const licences = readFileSync(join(out, 'THIRD_PARTY_LICENSES'), 'utf8')
  for (const name of ['hono', 'zod', 'ws', 'reflect-metadata']) {
    assert.ok(names.includes(name), name)
    assert.match(licences, new RegExp(`^${name} \\d`, 'm'))
  }
})

test.run()
