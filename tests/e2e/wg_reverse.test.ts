// What members serve, reached from the serving side: by -L of `sotto wg serve` alone, from its machine and its LAN, for as
// long as the member is there.
// seconds: 180
// needs: root ip nft wireguard-go wg curl
import { spawnSync } from 'node:child_process'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Namespace } from '../support/namespace.ts'
import { StockClient } from '../support/stock_client.ts'
import { BUN, E2eWorld } from '../support/world.ts'
import type { Program } from '../support/world.ts'

const HOST = 'relay.sotto.test'
const OFFICE = '192.0.2.1'
const DESK = '192.0.2.100'

const test = suite('e2e/wg_reverse')
let world: E2eWorld
let near: Namespace
let far: Namespace
let lan: string
let env: Record<string, string>
let served: Program

function ip(...words: string[]): void {
  const { status, stderr } = spawnSync('ip', words, { encoding: 'utf8', timeout: 10_000 })
  if (status !== 0) throw new Error(`ip ${words.join(' ')}: ${stderr}`)
}

function sotto(space: Namespace, home: string, args: string[]): Program {
  const [command, ...rest] = [...space.within, ...world.sottoWords.split(' '), ...args]
  return world.start(command!, rest, { home, env: { SOTTO_HOME: world.path(home), ...env } })
}

async function within(words: readonly string[], args: string[]) {
  const [command, ...rest] = [...words, ...args]
  return await world.run(command!, rest, { timeoutMs: 20_000 })
}

/** From the machine that serves, or another of its LAN. */
const curl = (from: readonly string[], place: string) =>
  within(from, ['curl', '-sS', '-m', '10', `http://${place}`])

async function web(space: Namespace, at: string, body: string): Promise<Program> {
  const [hostname, port] = at.split(':')
  const page = `Bun.serve({ port: ${port}, hostname: '${hostname}', fetch: (r) =>
      new URL(r.url).pathname === '/slow' ? new Response(new ReadableStream({ start(c) { c.enqueue('begun') } }))
      : new Response('${body}') })
    console.log('ready')`
  const [command, ...rest] = [...space.within, BUN, '-e', page]
  const program = world.start(command!, rest)
  await program.says(/ready/)
  return program
}

test.before(async () => {
  world = new E2eWorld()
  near = new Namespace(HOST)
  far = new Namespace(HOST)
  lan = `sl${process.pid % 100_000}`
  await world.run('sysctl', ['-qw', 'net.ipv4.ip_forward=1'])
  for (const space of [near, far]) {
    ip('-n', space.name, 'route', 'replace', 'default', 'via', space.outside)
  }
  ip('netns', 'add', lan)
  ip('-n', near.name, 'link', 'add', 'lan0', 'type', 'veth', 'peer', 'name', 'lan0', 'netns', lan)
  ip('-n', near.name, 'address', 'add', `${OFFICE}/24`, 'dev', 'lan0')
  ip('-n', near.name, 'link', 'set', 'lan0', 'up')
  ip('-n', lan, 'address', 'add', `${DESK}/24`, 'dev', 'lan0')
  ip('-n', lan, 'link', 'set', 'lan0', 'up')
  const relay = world.sotto(
    ['relay', '--port', '0', '--host', '0.0.0.0', '--domain', HOST, '--json'],
    { home: 'relay' },
  )
  const { port, fingerprint, apiKey } = await relay.event('listening')
  env = {
    SOTTO_RELAY: `https://${HOST}:${port}`,
    SOTTO_API_KEY: apiKey,
    SOTTO_RELAY_FINGERPRINT: fingerprint,
  }
  const { stdout } = await world.sottoRun(['identity', '--json'], { home: 'member' })
  const { key } = JSON.parse(stdout.split('\n')[0]!)
  await world.sottoRun(['peers', 'trust', 'alice', key], { home: 'office' })
  await world.sottoRun(['access', 'allow', 'alice', 'wg'], { home: 'office' })
  served = sotto(near, 'office', [
    ...['wg', 'serve', '--name', 'office', '--udp', '0', '--json'],
    ...['-L', '8080:alice:9000', '-L', `${OFFICE}:8080:alice:9000`],
    ...['-L', '8081:phone:7000', '-L', '8082:alice:9001'],
  ])
  await served.event('serving')
})

test.after(async () => {
  await world.close()
  for (const space of [near, far]) space?.close()
  spawnSync('ip', ['netns', 'delete', lan], { timeout: 10_000 })
})

test('whoever is not there is named, and nothing hangs', async () => {
  const { code } = await curl(near.within, '127.0.0.1:8080')
  assert.is.not(code, 0)
  await served.says(/Cannot reach "alice": it is not in the network now/)
})

test('a port that a member forwards is one of the serving machine, and of its LAN where that is asked for', async () => {
  await web(far, '127.0.0.1:9100', 'mine')
  const giving = sotto(far, 'member', [
    ...['wg', 'forward', 'office', '-R', '9000:127.0.0.1:9100', '--json'],
  ])
  const { address } = await giving.event('listening')
  assert.is((await curl(near.within, '127.0.0.1:8080')).stdout, 'mine')
  const desk = ['ip', 'netns', 'exec', lan]
  assert.is((await curl(desk, `${OFFICE}:8080`)).stdout, 'mine')
  // What was not asked for: other ports of the LAN, of the member, and its address itself.
  assert.is((await curl(desk, `${OFFICE}:8082`)).code, 7)
  const other = await curl(near.within, '127.0.0.1:8082')
  assert.is.not(other.code, 0)
  assert.match(served.stderr, /Cannot connect to alice port 9001: it is refused there/)
  assert.is.not((await curl(near.within, `${address}:9000`)).code, 0)
  // Another member, by the same serving agent, is not let through without --between.
  const ping = sotto(far, 'member', ['wg', 'socks5', 'office', '--listen', ':0', '--json'])
  const { socks5 } = await ping.event('listening')
  const across = await within(far.within, [
    ...['curl', '-sS', '-m', '10', '--proxy', `socks5h://${socks5}`, `http://${address}:9000`],
  ])
  assert.is(across.code, 97, across.stdout)
  await ping.stop()
})

test('when the right is taken back its connections end here at once', async () => {
  const [command, ...rest] = [...near.within, 'curl', '-sSN', '-m', '20']
  const slow = world.start(command!, [...rest, 'http://127.0.0.1:8080/slow'])
  await slow.says(/begun/)
  await world.sottoRun(['access', 'deny', 'alice', 'wg'], { home: 'office' })
  const { code } = await slow.ended
  assert.ok(code === 18 || code === 56, `curl ended by ${code}: ${slow.stderr}`)
  assert.is.not((await curl(near.within, '127.0.0.1:8080')).code, 0)
})

test('what a stock client serves is reached so too', async () => {
  const { udp } = await served.event('serving')
  const made = sotto(near, 'office', [
    ...['wg', 'config', 'office', '--new', 'phone', '--endpoint', `${near.inside}:${udp}`],
  ])
  assert.is((await made.ended).code, 0, made.stderr)
  const phone = await StockClient.start(world, made.stdout, { space: far })
  await web(far, `${phone.address}:7000`, 'by phone')
  await phone.must('ping', '-c', '1', '-W', '10', phone.server)
  assert.is((await curl(near.within, '127.0.0.1:8081')).stdout, 'by phone')
})

test('a port that is taken ends the command, and names it', async () => {
  const other = sotto(near, 'office', ['wg', 'serve', '--name', 'home', '-L', '8080:alice:1'])
  assert.is((await other.ended).code, 1)
  assert.match(other.stderr, /8080/)
  const nowhere = ['wg', 'serve', '--name', 'home', '-L', '203.0.113.1:8080:alice:1']
  const foreign = sotto(near, 'office', nowhere)
  assert.is((await foreign.ended).code, 1)
  assert.match(foreign.stderr, /Cannot listen on 203\.0\.113\.1:8080: this machine has no such/)
  const wrong = sotto(near, 'office', ['wg', 'serve', '--name', 'home', '-L', '8080:alice'])
  assert.is((await wrong.ended).code, 2)
  assert.match(wrong.stderr, /Cannot read -L "8080:alice"/)
})

test.run()
