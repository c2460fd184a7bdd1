// seconds: 240
// needs: root ip nft wireguard-go wg curl
/**
 * Members that mean harm, against a network as it is served: a resolver of theirs that changes its mind, floods of
 * connections to a dead host and of datagrams, packets in parts. Real kernels, real sockets; a neighbour is served
 * through it all.
 */
import { spawnSync } from 'node:child_process'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Namespace } from '../support/namespace.ts'
import { StockClient } from '../support/stock_client.ts'
import { BUN, E2eWorld, ROOT } from '../support/world.ts'
import type { Program } from '../support/world.ts'

const HOST = 'relay.sotto.test'
const [PRINTER, DEAD, RESOLVER] = ['192.0.2.100', '192.0.2.66', '192.0.2.53']
/** The last two by mistake: of what is special the routes say nothing. */
const ROUTES = ['192.0.2.0/24', '127.0.0.0/8', '169.254.0.0/16']
const FLOOD = 3_000
/** Attempts to one place, and UDP ports, of one member; said here, since they are what is attacked. */
const [TO_ONE_MAX, PORTS_MAX] = [32, 1_024]
/** UDP ports of the serving machine beside those of the flood. */
const OTHERS_MAX = 40

let world: E2eWorld
let near: Namespace
let lan: string
let env: Record<string, string>
let udp: number
let secret: Program
const spaces: Namespace[] = []
const clients = new Map<string, StockClient>()

const test = suite('e2e/wg_hostile')

function ip(...words: string[]): void {
  const { status, stderr } = spawnSync('ip', words, { encoding: 'utf8' })
  if (status !== 0) throw new Error(`ip ${words.join(' ')}: ${stderr}`)
}

function start(space: readonly string[], script: string): Program {
  const [command, ...rest] = [...space, BUN, '-e', script]
  return world.start(command!, rest, { cwd: ROOT })
}

function sotto(space: Namespace, home: string, args: string[]): Program {
  const [command, ...rest] = [...space.within, ...world.sottoWords.split(' '), ...args]
  return world.start(command!, rest, { home, env: { SOTTO_HOME: world.path(home), ...env } })
}

/** The resolver of who attacks: a name leads to the printer first, and elsewhere after that. */
const RESOLVES = `
  const { DnsServer } = await import('./tests/support/dns.ts')
  const dns = await DnsServer.start({ host: '${RESOLVER}', port: 53 })
  const a = (data) => ({ type: 'A', data, ttl: 0 })
  dns.set('rebind.test', a('${PRINTER}'))
  dns.set('both.test', a('127.0.0.1'), a('${PRINTER}'))
  dns.set('meta.test', a('169.254.169.254'))
  dns.set('alias.test', { type: 'CNAME', data: 'localhost.test' })
  dns.set('localhost.test', a('127.0.0.1'))
  dns.set('six.test', { type: 'AAAA', data: '::ffff:127.0.0.1' })
  setInterval(() => {
    if (dns.asked.some((one) => one.endsWith(' A flip.test'))) dns.set('rebind.test', a('127.0.0.1'))
  }, 20)
  console.log('ready')`

test.before(async () => {
  world = new E2eWorld()
  near = new Namespace(HOST)
  lan = `sh${process.pid % 100_000}`
  await world.run('sysctl', ['-qw', 'net.ipv4.ip_forward=1'])
  ip('-n', near.name, 'route', 'replace', 'default', 'via', near.outside)
  ip('netns', 'add', lan)
  ip('-n', near.name, 'link', 'add', 'lan0', 'type', 'veth', 'peer', 'name', 'lan0', 'netns', lan)
  ip('-n', near.name, 'address', 'add', '192.0.2.1/24', 'dev', 'lan0')
  ip('-n', near.name, 'link', 'set', 'lan0', 'up')
  for (const host of [PRINTER, RESOLVER]) {
    ip('-n', lan, 'address', 'add', `${host}/24`, 'dev', 'lan0')
  }
  ip('-n', lan, 'link', 'set', 'lan0', 'up')
  // It takes every SYN and says nothing, as a host that is off behind a router that does not care.
  ip(
    '-n',
    near.name,
    'neigh',
    'add',
    DEAD,
    'lladdr',
    '02:00:00:00:00:66',
    'dev',
    'lan0',
    'nud',
    'permanent',
  )
  writeFileSync(`/etc/netns/${near.name}/resolv.conf`, `nameserver ${RESOLVER}\n`)
  mkdirSync(`/etc/netns/${lan}`, { recursive: true })
  const page =
    `Bun.serve({ port: 8080, hostname: '${PRINTER}', fetch: () => new Response('printer') })
    await Bun.udpSocket({ port: 5300, hostname: '${PRINTER}', socket: { data(s, d, p, a) { s.send(d, p, a) } } })
    console.log('ready')`
  const within = ['ip', 'netns', 'exec', lan]
  await start(within, page).says(/ready/)
  await start(within, RESOLVES).says(/ready/)
  secret = start(
    near.within,
    `Bun.serve({ port: 8080, hostname: '127.0.0.1', fetch: () => { console.log('reached'); return new Response('secret') } })
    console.log('ready')`,
  )
  await secret.says(/ready/)
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
  const identity = await world.sottoRun(['identity', '--json'], { home: 'member' })
  const { key } = JSON.parse(identity.stdout.split('\n')[0]!)
  await world.sottoRun(['access', 'allow', key, 'wg'], { home: 'office' })
  const served = sotto(near, 'office', [
    ...['wg', 'serve', '--name', 'office', '--udp', '0', '--dns', '--json'],
    ...ROUTES.flatMap((route) => ['--route', route]),
  ])
  udp = (await served.event('serving'))['udp']
  for (const name of ['mallory', 'alice']) clients.set(name, await client(name))
})

test.after(async () => {
  await world.close()
  for (const space of [near, ...spaces]) space?.close()
  spawnSync('ip', ['netns', 'delete', lan], { timeout: 10_000 })
  rmSync(`/etc/netns/${lan}`, { recursive: true, force: true })
})

async function client(name: string): Promise<StockClient> {
  const made = sotto(near, 'office', [
    ...['wg', 'config', 'office', '--new', name, '--endpoint', `${near.inside}:${udp}`],
  ])
  assert.is((await made.ended).code, 0, made.stderr)
  for (let tries = 0;; tries++) {
    const status = sotto(near, 'office', ['wg', 'status', '--json'])
    await status.ended
    if (status.stdout.includes(`"peer":"${name}"`)) break
    assert.ok(tries < 20, `the network does not know ${name}: ${status.stdout}${status.stderr}`)
  }
  const space = new Namespace(HOST)
  spaces.push(space)
  ip('-n', space.name, 'route', 'replace', 'default', 'via', space.outside)
  return await StockClient.start(world, made.stdout, { space })
}

async function isServed(name: string): Promise<void> {
  const { stdout, stderr } = await clients.get(name)!.run(
    ...['curl', '-sS', '-m', '15', `http://${PRINTER}:8080`],
  )
  assert.is(stdout, 'printer', `${name}: ${stderr}`)
}

/** Sockets of the serving machine. */
function sockets(...filter: string[]): number {
  const [command, ...rest] = [...near.within, 'ss', '-Hn', ...filter]
  return spawnSync(command!, rest, { encoding: 'utf8' }).stdout.split('\n').filter(Boolean).length
}

test('names that lead elsewhere the second time, or to several places, reach what was judged', async () => {
  const far = new Namespace(HOST)
  spaces.push(far)
  ip('-n', far.name, 'route', 'replace', 'default', 'via', far.outside)
  const member = sotto(far, 'member', ['wg', 'socks5', 'office', '--listen', ':0', '--json'])
  const { socks5 } = await member.event('listening')
  const get = async (host: string) => {
    const [command, ...rest] = [...far.within, 'curl', '-sS', '-m', '20']
    return await world.run(command!, [
      ...rest,
      ...['--proxy', `socks5h://${socks5}`, `http://${host}:8080`],
    ])
  }
  const first = await get('rebind.test')
  assert.is(first.stdout, 'printer', first.stderr)
  // Asked for this one, it changes its mind: the name is the serving machine itself.
  await get('flip.test')
  let again = first
  for (let tries = 0; again.stdout === 'printer' && tries < 20; tries++) {
    again = await get('rebind.test')
  }
  assert.is(again.code, 97, again.stdout + again.stderr)
  for (const host of ['meta.test', 'alias.test', 'six.test', '127.0.0.1', 'localhost']) {
    const { code, stdout, stderr } = await get(host)
    assert.is(code, 97, `${host}: ${stdout}${stderr}`)
  }
  assert.is((await get('both.test')).stdout, 'printer', 'the one that may be dialled')
  assert.not.match(secret.stdout, /reached/)
  await member.stop()
})

test('a flood of connections to a dead host: few are tried, and everything else goes on', async () => {
  const [command, ...rest] = [
    ...clients.get('mallory')!.space.within,
    BUN,
    '-e',
    `const { connect } = await import('node:net')
    for (let i = 0; i < ${FLOOD}; i++) connect({ host: '${DEAD}', port: 80 }).on('error', () => {})
    console.log('sent')
    setInterval(() => {}, 1000)`,
  ]
  const flood = world.start(command!, rest)
  await flood.says(/sent/)
  let most = 0
  for (let round = 0; round < 20; round++) {
    most = Math.max(most, sockets('-t', 'state', 'syn-sent', 'dst', DEAD))
    await isServed(round % 2 ? 'alice' : 'mallory')
  }
  assert.ok(most > 0, 'it is tried')
  assert.ok(most <= TO_ONE_MAX, `${most} are tried at a time`)
  await flood.stop()
})

test('datagrams from all ports, in parts as well: so many sockets and no more', async () => {
  const [command, ...rest] = [
    ...clients.get('mallory')!.space.within,
    BUN,
    '-e',
    `const { createSocket } = await import('node:dgram')
    const sockets = []
    for (let i = 0; i < ${FLOOD}; i++) {
      const socket = createSocket('udp4').on('error', () => {})
      await new Promise((resolve) => socket.bind(0, resolve))
      sockets.push(socket)
    }
    for (let round = 0; round < 10; round++) {
      for (const [i, socket] of sockets.entries()) {
        // Every third is larger than the tunnel, so that the system sends it in parts.
        socket.send(new Uint8Array(i % 3 ? 20 : 9000), 5300, '${PRINTER}', () => {})
        if (i % 100 === 0) await new Promise((resolve) => setTimeout(resolve, 1))
      }
    }
    console.log('sent')
    setInterval(() => {}, 1000)`,
  ]
  const flood = world.start(command!, rest)
  await flood.says(/sent/)
  const most = sockets('-u', '-a')
  assert.ok(most > 100 && most <= PORTS_MAX + OTHERS_MAX, `${most} sockets`)
  await isServed('alice')
  await isServed('mallory')
  const { stdout } = await clients.get('alice')!.run(
    BUN,
    '-e',
    `const socket = await Bun.udpSocket({ socket: { data(_, bytes) { console.log(String(bytes)); process.exit() } } })
    setInterval(() => socket.send('hello', 5300, '${PRINTER}'), 200)`,
  )
  assert.is(stdout.trim(), 'hello')
  await flood.stop()
})

test.run()
