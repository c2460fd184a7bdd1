// seconds: 240
// needs: root ip nft wireguard-go wg curl
/**
 * A private network from end to end: an agent on a machine with a LAN behind it that nobody outside
 * reaches, a member elsewhere, a relay between them. Then a stock client of WireGuard with a printed
 * configuration.
 */
import { spawnSync } from 'node:child_process'
import { rmSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Namespace } from '../support/namespace.ts'
import { BUN, E2eWorld } from '../support/world.ts'
import type { Program, RunOptions } from '../support/world.ts'

const HOST = 'relay.sotto.test'
const PRINTER = '192.168.1.100'
const BODY_BYTES = 3_000_000

let world: E2eWorld
/** Of the member, and of the serving machine. */
let far: Namespace
let near: Namespace
let lan: string
let env: Record<string, string>
let key: string
let printer: Program
/** Ended after each test. */
const running: Program[] = []

const test = suite('e2e/wg')

function ip(...words: string[]): void {
  const { status, stderr } = spawnSync('ip', words, { encoding: 'utf8' })
  if (status !== 0) throw new Error(`ip ${words.join(' ')}: ${stderr}`)
}

/** `sotto` of one of the two machines. */
function sotto(space: Namespace, home: string, args: string[], options: RunOptions = {}): Program {
  const [command, ...rest] = [...space.within, ...world.sottoWords.split(' '), ...args]
  const program = world.start(command!, rest, {
    home,
    env: { SOTTO_HOME: world.path(home), ...env, ...options.env },
  })
  running.push(program)
  return program
}

async function done(program: Program): Promise<string> {
  const over = await program.ended
  assert.is(over.code, 0, program.stdout + program.stderr)
  return program.stdout
}

async function curl(args: string[]) {
  const [command, ...rest] = [...far.within, 'curl', '-sS', '-m', '20', ...args]
  return await world.run(command!, rest)
}

async function serve(flags: string[] = []): Promise<Program> {
  const program = sotto(near, 'office', [
    ...['wg', 'serve', '--name', 'office', '--route', '192.168.1.0/24', '--json', ...flags],
  ])
  await program.event('serving')
  return program
}

test.before(async () => {
  world = new E2eWorld()
  far = new Namespace(HOST)
  near = new Namespace(HOST)
  lan = `sl${process.pid % 100_000}`
  // The two machines are on wires of their own: the outside leads from one to the other.
  await world.run('sysctl', ['-qw', 'net.ipv4.ip_forward=1'])
  for (const space of [far, near]) {
    ip('-n', space.name, 'route', 'replace', 'default', 'via', space.outside)
  }
  ip('netns', 'add', lan)
  ip('-n', near.name, 'link', 'add', 'lan0', 'type', 'veth', 'peer', 'name', 'lan0', 'netns', lan)
  ip('-n', near.name, 'address', 'add', '192.168.1.1/24', 'dev', 'lan0')
  ip('-n', near.name, 'link', 'set', 'lan0', 'up')
  ip('-n', lan, 'address', 'add', `${PRINTER}/24`, 'dev', 'lan0')
  ip('-n', lan, 'link', 'set', 'lan0', 'up')
  ip('-n', lan, 'link', 'set', 'lo', 'up')
  writeFileSync(
    `/etc/netns/${near.name}/hosts`,
    `127.0.0.1 localhost\n${near.outside} ${HOST}\n` +
      `${PRINTER} printer.lan\n127.0.0.1 evil.lan\n`,
  )
  const page =
    `Bun.serve({ port: 8080, hostname: '${PRINTER}', fetch: (r) => new URL(r.url).pathname === '/big'
    ? new Response(new Uint8Array(${BODY_BYTES})) : new Response('the printer, to ' + r.headers.get('host')) })
    const echo = await Bun.udpSocket({ port: 5300, hostname: '${PRINTER}', socket: { data(s, d, p, a) { s.send('udp:' + d, p, a) } } })
    console.log('ready')`
  printer = world.start('ip', ['netns', 'exec', lan, BUN, '-e', page])
  await printer.says(/ready/)
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
  key = JSON.parse(identity.stdout.split('\n')[0]!).key
  await world.sottoRun(['access', 'allow', key, 'wg'], { home: 'office' })
})

test.after.each(async () => {
  for (const program of running.splice(0).reverse()) await program.stop()
})

test.after(async () => {
  await world.close()
  far.close()
  near.close()
  spawnSync('ip', ['netns', 'delete', lan])
  rmSync(`/etc/netns/${lan}`, { recursive: true, force: true })
})

test('curl through SOCKS5 opens a page of the LAN, by address and by name; bytes are whole', async () => {
  await serve(['--dns'])
  const member = sotto(far, 'member', [
    'wg',
    'socks5',
    'office',
    '--listen',
    ':0',
    '--http',
    ':0',
    '--json',
  ])
  const { socks5, http } = await member.event('listening')
  const bare = await curl([`http://${PRINTER}:8080`])
  assert.is.not(bare.code, 0, 'the LAN is reached without the network')
  for (const host of [PRINTER, 'printer.lan']) {
    const page = await curl(['--proxy', `socks5h://${socks5}`, `http://${host}:8080`])
    assert.is(page.stdout, `the printer, to ${host}:8080`, page.stderr)
  }
  const web = await curl(['--proxytunnel', '--proxy', `http://${http}`, `http://${PRINTER}:8080`])
  assert.is(web.stdout, `the printer, to ${PRINTER}:8080`, web.stderr)
  const big = await curl([
    ...['--proxy', `socks5h://${socks5}`, '-o', '/dev/null', '-w', '%{size_download}'],
    `http://${PRINTER}:8080/big`,
  ])
  assert.is(big.stdout, `${BODY_BYTES}`, big.stderr)
  // Beyond the route, this machine itself, and a name that leads to it.
  for (const place of [`${near.outside}:80`, '127.0.0.1:8080', 'evil.lan:8080', '192.168.1.1:80']) {
    const refused = await curl(['--proxy', `socks5h://${socks5}`, `http://${place}`])
    assert.is(refused.code, 97, `${place}: ${refused.stdout}${refused.stderr}`)
  }
})

test('echoes, forwards of TCP and UDP, and what status says on both sides', async () => {
  await serve()
  const echo = await done(
    sotto(far, 'member', ['wg', 'ping', 'office', PRINTER, '--count', '1', '--json']),
  )
  assert.match(echo, /"event":"echo"/)
  const member = sotto(far, 'member', [
    ...[
      'wg',
      'forward',
      'office',
      '-L',
      `8080:${PRINTER}:8080`,
      '-U',
      `5300:${PRINTER}:5300`,
      '--json',
    ],
  ])
  await member.event('listening')
  const page = await curl(['http://127.0.0.1:8080'])
  assert.is(page.stdout, 'the printer, to 127.0.0.1:8080', page.stderr)
  const ask =
    `const s = await Bun.udpSocket({ connect: { hostname: '127.0.0.1', port: 5300 }, socket: {
    data(_, d) { console.log(String(d)); process.exit(0) } } }); s.send('hello')`
  const [command, ...rest] = [...far.within, BUN, '-e', ask]
  assert.is((await world.run(command!, rest, { timeoutMs: 10_000 })).stdout, 'udp:hello\n')
  const here = await done(sotto(far, 'member', ['wg', 'status', '--json']))
  const there = await done(sotto(near, 'office', ['wg', 'status', '--json']))
  assert.match(here, /"event":"joined".*"path":"relay"/)
  assert.match(there, /"event":"member".*"path":"relay"/)
  for (const line of [here, there]) assert.match(line, /"aead":"(libcrypto\.so\.3|wasm)"/)
})

test('a port that one member forwards is reached by another with --between, and not without', async () => {
  for (const flags of [['--between'], []]) {
    const server = await serve(flags)
    const giving = sotto(far, 'member', [
      ...['wg', 'forward', 'office', '-R', '9000:127.0.0.1:9100', '--json'],
    ])
    const { address } = await giving.event('listening')
    const page =
      `Bun.serve({ port: 9100, hostname: '127.0.0.1', fetch: () => new Response('mine') })
      console.log('ready')`
    const [command, ...rest] = [...far.within, BUN, '-e', page]
    const web = world.start(command!, rest)
    running.push(web)
    await web.says(/ready/)
    const taking = sotto(far, 'member', ['wg', 'socks5', 'office', '--listen', ':0', '--json'])
    const { socks5 } = await taking.event('listening')
    const got = await curl(['--proxy', `socks5h://${socks5}`, `http://${address}:9000`])
    if (flags.length > 0) assert.is(got.stdout, 'mine', got.stderr)
    else assert.is(got.code, 97, got.stdout + got.stderr)
    for (const program of [web, taking, giving, server]) await program.stop()
  }
})

test('a right that is taken back ends the network at the member', async () => {
  const server = await serve()
  const member = sotto(far, 'member', ['wg', 'socks5', 'office', '--listen', ':0', '--json'])
  await member.event('listening')
  await world.sottoRun(['access', 'deny', key, 'wg'], { home: 'office' })
  const over = await member.ended
  await world.sottoRun(['access', 'allow', key, 'wg'], { home: 'office' })
  assert.is(over.code, 1)
  assert.match(member.stderr, /the right to be in this network was taken back/)
  await server.event('left')
})

test('wg up is a stock client itself; with --udp members move to the direct way', async () => {
  const server = await serve(['--udp', '0', '--dns'])
  const { udp } = await server.event('serving')
  const config = await done(sotto(near, 'office', [
    ...[
      'wg',
      'config',
      'office',
      '--new',
      'tablet',
      '--endpoint',
      `${near.inside}:${udp}`,
      '--json',
    ],
  ]))
  writeFileSync(world.path('tablet.conf'), JSON.parse(config).config)
  const up = sotto(far, 'nobody', [
    'wg',
    'up',
    '--config',
    world.path('tablet.conf'),
    '--listen',
    ':0',
    '--json',
  ])
  const { proxies } = await up.event('listening')
  for (const host of [PRINTER, 'printer.lan']) {
    const page = await curl(['--proxy', `socks5h://${proxies[0].listen}`, `http://${host}:8080`])
    assert.is(page.stdout, `the printer, to ${host}:8080`, page.stderr)
  }
  const member = sotto(far, 'member', ['wg', 'socks5', 'office', '--listen', ':0', '--json'])
  const { socks5 } = await member.event('listening')
  const page = await curl(['--proxy', `socks5h://${socks5}`, `http://${PRINTER}:8080`])
  assert.is(page.stdout, `the printer, to ${PRINTER}:8080`, page.stderr)
  await member.event('path', ({ path }) => String(path).startsWith('udp '))
  const again = await curl(['--proxy', `socks5h://${socks5}`, `http://${PRINTER}:8080`])
  assert.is(again.stdout, `the printer, to ${PRINTER}:8080`, again.stderr)
  const status = await done(sotto(far, 'member', ['wg', 'status', '--json']))
  assert.ok(status.includes('"path":"udp '), status)
})

test('a stock client of WireGuard reaches the LAN with a printed configuration, until it is released', async () => {
  const server = await serve(['--udp', '0'])
  const { udp } = await server.event('serving')
  const config = await done(sotto(near, 'office', [
    ...[
      'wg',
      'config',
      'office',
      '--new',
      'phone',
      '--endpoint',
      `${near.inside}:${udp}`,
      '--json',
    ],
  ]))
  const { config: words, address } = JSON.parse(config)
  const name = `wg${process.pid % 100_000}`
  running.push(world.start('ip', ['netns', 'exec', far.name, 'wireguard-go', '-f', name]))
  const inside = (...args: string[]) => world.run('ip', ['netns', 'exec', far.name, ...args])
  const bare = words.split('\n').filter((line: string) => !/^(Address|DNS|MTU|#)/.test(line)).join(
    '\n',
  )
  writeFileSync(world.path('stock.conf'), bare)
  for (let i = 0; i < 100; i++) {
    if ((await inside('ip', 'link', 'show', name)).code === 0) break
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  for (
    const args of [
      ['wg', 'setconf', name, world.path('stock.conf')],
      ['ip', 'address', 'add', `${address}/32`, 'dev', name],
      ['ip', 'link', 'set', name, 'mtu', '1420', 'up'],
      ['ip', 'route', 'add', '192.168.1.0/24', 'dev', name],
    ]
  ) {
    const set = await inside(...args)
    assert.is(set.code, 0, `${args.join(' ')}: ${set.stderr}`)
  }
  const page = await curl([`http://${PRINTER}:8080`])
  assert.is(page.stdout, `the printer, to ${PRINTER}:8080`, page.stderr)
  const big = await curl([
    '-o',
    '/dev/null',
    '-w',
    '%{size_download}',
    `http://${PRINTER}:8080/big`,
  ])
  assert.is(big.stdout, `${BODY_BYTES}`, big.stderr)
  await done(sotto(near, 'office', ['wg', 'release', 'office', 'phone']))
  for (let i = 0; i < 50; i++) {
    const status = await done(sotto(near, 'office', ['wg', 'status', '--json']))
    if (!status.includes('"peer":"phone"')) break
    assert.ok(i < 49, 'the client stayed')
  }
  const after = await world.run('ip', [
    'netns',
    'exec',
    far.name,
    'curl',
    '-sS',
    '-m',
    '2',
    `http://${PRINTER}:8080`,
  ])
  assert.is.not(after.code, 0)
})

test.run()
