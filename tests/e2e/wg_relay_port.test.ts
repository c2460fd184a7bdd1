// Stock clients of WireGuard that reach nothing but the relay: its UDP port leads to the serving agent.
// seconds: 180
// needs: root ip nft wireguard-go wg curl ping
import { spawnSync } from 'node:child_process'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Namespace } from '../support/namespace.ts'
import { StockClient } from '../support/stock_client.ts'
import { freePort } from '../support/port.ts'
import { BUN, E2eWorld } from '../support/world.ts'
import type { Program } from '../support/world.ts'

const HOST = 'relay.sotto.test'
/** In a namespace that only the serving machine reaches. */
const PRINTER = '192.0.2.100'
const BODY_BYTES = 2_000_000

const test = suite('e2e/wg_relay_port')
let world: E2eWorld
let near: Namespace
let lan: string
let relay: Program
let served: Program
let relayPort: number
let range: [number, number]
let env: Record<string, string>
const spaces: Namespace[] = []
const clients: StockClient[] = []

function ip(...words: string[]): void {
  const { status, stderr } = spawnSync('ip', words, { encoding: 'utf8', timeout: 10_000 })
  if (status !== 0) throw new Error(`ip ${words.join(' ')}: ${stderr}`)
}

function sotto(args: string[]): Program {
  const [command, ...rest] = [...near.within, ...world.sottoWords.split(' '), ...args]
  return world.start(command!, rest, {
    home: 'office',
    env: { SOTTO_HOME: world.path('office'), ...env },
  })
}

async function startRelay(): Promise<void> {
  relay = world.sotto([
    ...['relay', '--port', `${relayPort}`, '--host', '0.0.0.0', '--domain', HOST, '--json'],
    ...['--public-ports', range.join('-')],
  ], { home: 'relay' })
  const { fingerprint, apiKey } = await relay.event('listening')
  env = {
    SOTTO_RELAY: `https://${HOST}:${relayPort}`,
    SOTTO_API_KEY: apiKey ?? env['SOTTO_API_KEY'],
    SOTTO_RELAY_FINGERPRINT: fingerprint,
  }
}

test.before(async () => {
  world = new E2eWorld()
  near = new Namespace(HOST)
  lan = `sk${process.pid % 100_000}`
  ip('netns', 'add', lan)
  ip('-n', near.name, 'link', 'add', 'lan0', 'type', 'veth', 'peer', 'name', 'lan0', 'netns', lan)
  ip('-n', near.name, 'address', 'add', '192.0.2.1/24', 'dev', 'lan0')
  ip('-n', near.name, 'link', 'set', 'lan0', 'up')
  ip('-n', lan, 'address', 'add', `${PRINTER}/24`, 'dev', 'lan0')
  ip('-n', lan, 'link', 'set', 'lan0', 'up')
  const page = `Bun.serve({ port: 8080, hostname: '${PRINTER}', fetch: (r) =>
    new URL(r.url).pathname === '/big' ? new Response(new Uint8Array(${BODY_BYTES})) : new Response('printer') })
    console.log('ready')`
  await world.start('ip', ['netns', 'exec', lan, BUN, '-e', page]).says(/ready/)
  relayPort = await freePort()
  const first = await freePort()
  range = [first, Math.min(first + 9, 65_535)]
  await startRelay()
  served = sotto([
    ...['wg', 'serve', '--name', 'office', '--route', '192.0.2.0/24', '--public-udp', '0'],
    '--json',
  ])
  await served.event('serving')
})

test.after(async () => {
  await world.close()
  for (const space of [near, ...spaces]) space?.close()
  spawnSync('ip', ['netns', 'delete', lan], { timeout: 10_000 })
})

/** Without a default route: there is the relay's machine, and nothing behind it. */
async function client(name: string): Promise<StockClient> {
  const made = sotto(['wg', 'config', 'office', '--new', name])
  assert.is((await made.ended).code, 0, made.stderr)
  assert.is(made.stderr, '', 'it guessed where the clients find it')
  await status((words) => words.includes(`"peer":"${name}"`))
  const space = new Namespace(HOST)
  spaces.push(space)
  const one = await StockClient.start(world, made.stdout, { space })
  clients.push(one)
  return one
}

async function status(isDone: (words: string) => boolean): Promise<string> {
  for (let tries = 0;; tries++) {
    const program = sotto(['wg', 'status', '--json'])
    await program.ended
    if (isDone(program.stdout)) return program.stdout
    assert.ok(tries < 30, program.stdout + program.stderr)
  }
}

const page = (one: StockClient, path = '') =>
  one.run('curl', '-sS', '-m', '15', `http://${PRINTER}:8080${path}`)

test('two at once reach the LAN by the relay, which is all that they reach', async () => {
  const place = (await served.event('serving'))['publicUdp'] as string
  assert.match(place, new RegExp(`^${HOST.replaceAll('.', '\\.')}:\\d+$`))
  const [laptop, phone] = [await client('laptop'), await client('phone')]
  for (const one of [laptop, phone]) {
    assert.is(one.endpoint, place)
    const bare = await one.run('ping', '-c', '1', '-W', '1', near.inside)
    assert.is.not(bare.code, 0, 'it reaches the serving machine')
  }
  await Promise.all([laptop, phone].map(async (one) => {
    for (const to of [one.server, PRINTER]) {
      await one.must('ping', '-c', '2', '-i', '0.2', '-W', '5', to)
    }
    const { stdout, stderr } = await page(one)
    assert.is(stdout, 'printer', stderr)
    const big = await one.run(
      ...['curl', '-sS', '-m', '15', '-o', '/dev/null', '-w', '%{size_download}'],
      `http://${PRINTER}:8080/big`,
    )
    assert.is(big.stdout, `${BODY_BYTES}`, big.stderr)
  }))
  const words = await status(() => true)
  for (const one of [laptop, phone]) {
    assert.ok(words.includes(`"relay udp ${one.space.inside} port `))
  }
})

test('a client that moves to another port is followed', async () => {
  const [one] = clients
  await one!.must('wg', 'set', one!.device, 'listen-port', '40404')
  assert.is((await page(one!)).stdout, 'printer')
  await status((words) => words.includes(`"relay udp ${one!.space.inside} port 40404"`))
})

test('the relay goes and comes back: the same port, and clients go on', async () => {
  const [one] = clients
  await relay.stop()
  await served.event('down')
  await startRelay()
  await served.event('up')
  for (let tries = 0;; tries++) {
    const { stdout, stderr } = await page(one!)
    if (stdout === 'printer') break
    assert.ok(tries < 5, stderr)
  }
})

test('whoever is released is out at once, and the others are not', async () => {
  const [laptop, phone] = clients
  const release = sotto(['wg', 'release', 'office', 'laptop'])
  assert.is((await release.ended).code, 0, release.stderr)
  await status((words) => !words.includes('"peer":"laptop"'))
  const out = await laptop!.run('curl', '-sS', '-m', '2', `http://${PRINTER}:8080`)
  assert.is.not(out.code, 0, out.stdout)
  assert.is((await page(phone!)).stdout, 'printer')
})

test('a port that the relay does not give ends the command with the reason', async () => {
  const other = sotto(['wg', 'serve', '--name', 'home', '--public-udp', `${range[0] - 1}`])
  assert.is((await other.ended).code, 1)
  assert.match(other.stderr, /Cannot open public port \d+: expected/)
  assert.match(other.stderr, /--public-udp between/)
})

test.run()
