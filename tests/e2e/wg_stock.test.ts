// Stock clients of WireGuard with printed configurations, as they are: Debian's wireguard-go and `wg setconf`, each in a
// namespace of its own, at one `sotto wg serve --udp`.
// seconds: 120
// needs: root ip wireguard-go wg curl ping
import { spawnSync } from 'node:child_process'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Namespace } from '../support/namespace.ts'
import { StockClient } from '../support/stock_client.ts'
import { BUN, E2eWorld } from '../support/world.ts'
import type { Program } from '../support/world.ts'

const HOST = 'relay.sotto.test'
/** In a namespace that only the serving machine reaches. */
const PRINTER = '192.0.2.100'
const ROUTE = '192.0.2.0/24'
const BODY_BYTES = 2_000_000

const test = suite('e2e/wg_stock')
let world: E2eWorld
let near: Namespace
let lan: string
let udp: number
const spaces: Namespace[] = []

function ip(...words: string[]): void {
  const { status, stderr } = spawnSync('ip', words, { encoding: 'utf8', timeout: 10_000 })
  if (status !== 0) throw new Error(`ip ${words.join(' ')}: ${stderr}`)
}

test.before(async () => {
  world = new E2eWorld()
  near = new Namespace(HOST)
  lan = `sk${process.pid % 100_000}`
  await world.run('sysctl', ['-qw', 'net.ipv4.ip_forward=1'])
  ip('-n', near.name, 'route', 'replace', 'default', 'via', near.outside)
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
  const relay = world.sotto(
    ['relay', '--port', '0', '--host', '0.0.0.0', '--domain', HOST, '--json'],
    { home: 'relay' },
  )
  const { port, fingerprint, apiKey } = await relay.event('listening')
  const served = sotto(
    ['wg', 'serve', '--name', 'office', '--route', ROUTE, '--udp', '0', '--dns', '--json'],
    {
      SOTTO_RELAY: `https://${HOST}:${port}`,
      SOTTO_API_KEY: apiKey,
      SOTTO_RELAY_FINGERPRINT: fingerprint,
    },
  )
  udp = (await served.event('serving'))['udp']
})

test.after(async () => {
  await world.close()
  for (const space of [near, ...spaces]) space?.close()
  spawnSync('ip', ['netns', 'delete', lan], { timeout: 10_000 })
})

function sotto(args: string[], env: Record<string, string> = {}): Program {
  const [command, ...rest] = [...near.within, ...world.sottoWords.split(' '), ...args]
  return world.start(command!, rest, {
    home: 'office',
    env: { SOTTO_HOME: world.path('office'), ...env },
  })
}

async function client(name: string): Promise<StockClient> {
  const made = sotto([
    ...['wg', 'config', 'office', '--new', name, '--endpoint', `${near.inside}:${udp}`],
  ])
  assert.is((await made.ended).code, 0, made.stderr)
  // A handshake that comes before the running network has taken it up would be tried again 5 s later.
  for (let tries = 0;; tries++) {
    const status = sotto(['wg', 'status', '--json'])
    await status.ended
    if (status.stdout.includes(`"peer":"${name}"`)) break
    assert.ok(tries < 20, `the network does not know ${name}: ${status.stdout}${status.stderr}`)
  }
  const space = new Namespace(HOST)
  spaces.push(space)
  ip('-n', space.name, 'route', 'replace', 'default', 'via', space.outside)
  return await StockClient.start(world, made.stdout, { space })
}

const page = (one: StockClient, path = '') =>
  one.run('curl', '-sS', '-m', '10', `http://${PRINTER}:8080${path}`)

test('two at once ping the LAN and the serving machine, and open a page; not each other', async () => {
  const [laptop, phone] = [await client('laptop'), await client('phone')]
  assert.is.not(laptop.address, phone.address)
  await Promise.all([laptop, phone].map(async (one) => {
    for (const place of [one.server, PRINTER]) {
      const { code, stdout, stderr } = await one.run(
        ...['ping', '-c', '2', '-i', '0.2', '-W', '5', place],
      )
      assert.is(code, 0, `ping ${place}: ${stdout}${stderr}`)
    }
    const { stdout, stderr } = await page(one)
    assert.is(stdout, 'printer', stderr)
    const big = await one.run(
      ...['curl', '-sS', '-m', '10', '-o', '/dev/null', '-w', '%{size_download}'],
      `http://${PRINTER}:8080/big`,
    )
    assert.is(big.stdout, `${BODY_BYTES}`, big.stderr)
  }))
  // The packets of one that names the other's address go nowhere.
  const { device } = laptop
  const key = (await laptop.run('wg', 'show', device, 'peers')).stdout.trim()
  const set = await laptop.run(
    ...['wg', 'set', device, 'peer', key, 'allowed-ips', '0.0.0.0/0,::/0'],
  )
  assert.is(set.code, 0, set.stderr)
  assert.is((await laptop.run('ip', 'route', 'add', phone.address, 'dev', device)).code, 0)
  const across = await laptop.run('ping', '-c', '1', '-W', '1', phone.address)
  assert.is.not(across.code, 0, across.stdout)
  // Nor do those that say they come from it, while its own go on.
  assert.is((await laptop.run('ip', 'address', 'add', phone.address, 'dev', device)).code, 0)
  const spoofed = await laptop.run(
    ...['curl', '-sS', '-m', '2', '--interface', phone.address, `http://${PRINTER}:8080`],
  )
  assert.is.not(spoofed.code, 0, spoofed.stdout)
  assert.is((await page(phone)).stdout, 'printer')
  assert.is((await page(laptop)).stdout, 'printer')
})

test('what no route names is refused at once, by ICMP', async () => {
  const one = await client('tablet')
  const { device } = one
  const key = (await one.run('wg', 'show', device, 'peers')).stdout.trim()
  await one.run('wg', 'set', device, 'peer', key, 'allowed-ips', '0.0.0.0/0,::/0')
  for (const place of ['198.51.100.1', '169.254.169.254', near.outside]) {
    assert.is((await one.run('ip', 'route', 'replace', place, 'dev', device)).code, 0)
    const { code, stderr } = await one.run('curl', '-sS', '-m', '5', `http://${place}:80`)
    assert.is(code, 7, `${place}: ${stderr}`)
  }
})

test.run()
