// `sotto wg up` as a client of wireguard-go: a server's name that moves, files of wg-quick and of wireproxy, several
// peers, a pre-shared key, IPv6 outside.
// seconds: 180
// needs: root ip nft wireguard-go wg curl
import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { DnsServer } from '../support/dns.ts'
import { Namespace } from '../support/namespace.ts'
import { WireGuardGo } from '../support/wireguard_go.ts'
import { BUN, E2eWorld } from '../support/world.ts'
import type { Program, RunOptions } from '../support/world.ts'

const NAME = 'vpn.sotto.test'
/** Routed nowhere (RFC 5737). */
const DEAD = '198.51.100.9'

const test = suite('e2e/wg_up')
let world: E2eWorld
let near: Namespace
let dns: DnsServer
let first: WireGuardGo
let second: WireGuardGo
const own = randomBytes(32)
const psk = randomBytes(32)

function ip(...words: string[]): void {
  const { status, stderr } = spawnSync('ip', words, { encoding: 'utf8', timeout: 10_000 })
  if (status !== 0) throw new Error(`ip ${words.join(' ')}: ${stderr}`)
}

async function server(words: string): Promise<WireGuardGo> {
  const go = await WireGuardGo.start()
  world.defer(() => go.close())
  ip('-n', go.space.name, 'route', 'replace', 'default', 'via', go.space.outside)
  const page = `for (const hostname of ['10.9.0.2', '10.8.0.2']) try {
      Bun.serve({ port: 8080, hostname, fetch: () => new Response('${words}') })
      await Bun.udpSocket({ port: 53, hostname, socket: { data(s, d, p, a) { s.send('${words} ' + d, p, a) } } })
    } catch {}
    console.log('ready')`
  const [command, ...rest] = [...go.space.within, BUN, '-e', page]
  await world.start(command!, rest).says(/ready/)
  return go
}

test.before(async () => {
  world = new E2eWorld()
  await world.run('sysctl', ['-qw', 'net.ipv4.ip_forward=1'])
  near = new Namespace('outside')
  ip('-n', near.name, 'route', 'replace', 'default', 'via', near.outside)
  dns = await DnsServer.start({ host: near.outside, port: 53 })
  writeFileSync(`/etc/netns/${near.name}/resolv.conf`, `nameserver ${near.outside}\n`)
  first = await server('first')
  // The same server at another place.
  second = await server('second')
  const key = first.run(['wg', 'show', first.name, 'private-key'])
  second.run(['wg', 'set', second.name, 'private-key', '/dev/stdin'], { input: key })
  second.publicKey = first.publicKey
  const publicKey = Buffer.from(
    first.run(['wg', 'pubkey'], { input: own.toString('base64') }),
    'base64',
  )
  for (const go of [first, second]) go.setPeer({ publicKey, presharedKey: psk })
})

test.after(async () => {
  await world.close()
  await dns?.close()
  near?.close()
})

const INTERFACE = `[Interface]\nPrivateKey = ${own.toString('base64')}\nAddress = 10.9.0.1/32\n`

function peer(go: WireGuardGo, more: string): string {
  const [key, shared] = [Buffer.from(go.publicKey), psk].map((one) => one.toString('base64'))
  return `[Peer]\nPublicKey = ${key}\nPresharedKey = ${shared}\n${more}\n`
}

let made = 0

function up(words: string, flags: string[] = ['--json'], options: RunOptions = {}): Program {
  const path = world.path(`up${++made}.conf`)
  writeFileSync(path, words)
  const args = [...world.sottoWords.split(' '), 'wg', 'up', '--config', path, ...flags]
  const [command, ...rest] = [...near.within, ...args]
  return world.start(command!, rest, {
    ...options,
    env: { SOTTO_HOME: world.path('up'), ...options.env },
  })
}

async function curl(...args: string[]): Promise<string> {
  const [command, ...rest] = [...near.within, 'curl', '-sS', '-m', '10', ...args]
  const { stdout, stderr } = await world.run(command!, rest, { timeoutMs: 40_000 })
  return stdout || stderr
}

test('a server whose name moves is found again after failed handshakes', async () => {
  dns.set(NAME, { type: 'A', data: first.space.inside, ttl: 1 })
  const program = up(
    INTERFACE + peer(first, `Endpoint = ${NAME}:51820\nAllowedIPs = 10.9.0.2/32`),
    [
      ...['--listen', ':0', '--json'],
    ],
  )
  const { proxies: [proxy] } = await program.event('listening')
  const page = ['--proxy', `socks5h://${proxy.listen}`, 'http://10.9.0.2:8080']
  assert.is(await curl(...page), 'first')
  const asked = dns.asked.length
  dns.set(NAME, { type: 'A', data: second.space.inside, ttl: 1 })
  first.space.cut()
  for (let tries = 0;; tries++) {
    const got = await curl(...page)
    if (got === 'second') break
    assert.ok(tries < 8, `it does not find the server again: ${got}\n${program.stderr}`)
  }
  assert.ok(dns.asked.length > asked)
  assert.match(program.stderr, /no answer; trying on/)
  await program.stop()
  first.space.heal()
})

test('a name that leads to two places is tried at the other, and one that is not known is asked for again', async () => {
  dns.set(NAME, { type: 'A', data: DEAD, ttl: 1 }, { type: 'A', data: second.space.inside, ttl: 1 })
  // The system may sort them: one of the two is tried first, and the other after it.
  const program = up(
    INTERFACE + peer(second, `Endpoint = ${NAME}:51820\nPersistentKeepalive = 5`),
  )
  await program.until(() => /"connected"/.exec(program.stdout), 'connection', 40_000)
  await program.stop()
  dns.zone.delete(NAME)
  dns.set(NAME, { type: 'TXT', data: 'no address' })
  const none = up(INTERFACE + peer(second, `Endpoint = ${NAME}:51820`))
  assert.is((await none.ended).code, 1)
  assert.match(none.stderr, /Cannot find vpn\.sotto\.test/)
})

test('a file of wireproxy: an import, tunnels of TCP and UDP both ways, one peer for all', async () => {
  const quick = world.path('quick.conf')
  writeFileSync(
    quick,
    `${INTERFACE}Table = off\nPostUp = touch ${world.path('ran')}\n${
      peer(second, `Endpoint = ${second.space.inside}:51820\nPersistentKeepalive = 25`)
    }`,
  )
  const page = `Bun.serve({ port: 3000, hostname: '127.0.0.1', fetch: () => new Response('mine') })
    console.log('ready')`
  const [command, ...rest] = [...near.within, BUN, '-e', page]
  await world.start(command!, rest).says(/ready/)
  const program = up(`WGConfig = ${quick}

[TCPClientTunnel]
BindAddress = 127.0.0.1:25565
Target = 10.9.0.2:8080

[UDPProxyTunnel]
BindAddress = 127.0.0.1:5300
Target = 10.9.0.2:53
InactivityTimeout = 30

[TCPServerTunnel]
ListenPort = 3422
Target = localhost:3000

[http]
BindAddress = 127.0.0.1:25345
`)
  await program.event('listening')
  assert.match(program.stderr, /Table is not used/)
  assert.match(program.stderr, /PostUp is not used/)
  assert.is(await curl('http://127.0.0.1:25565'), 'second')
  assert.is(
    await curl('--proxytunnel', '--proxy', 'http://127.0.0.1:25345', 'http://10.9.0.2:8080'),
    'second',
  )
  const ask =
    `const s = await Bun.udpSocket({ connect: { hostname: '127.0.0.1', port: 5300 }, socket: {
    data(_, d) { console.log(String(d)); process.exit(0) } } }); s.send('hello')`
  const [bun, ...words] = [...near.within, BUN, '-e', ask]
  assert.is((await world.run(bun!, words, { timeoutMs: 10_000 })).stdout, 'second hello\n')
  assert.is(second.run(['curl', '-sS', '-m', '10', 'http://10.9.0.1:3422']), 'mine')
  assert.is((await world.run('ls', [world.path('ran')])).code, 2, 'PostUp was run')
  await program.stop()
})

test('[STDIOTunnel] is the connection itself, as a ProxyCommand of ssh needs it', async () => {
  const words = INTERFACE +
    peer(second, `Endpoint = ${second.space.inside}:51820`) +
    '[STDIOTunnel]\nTarget = 10.9.0.2:8080\n'
  const json = up(words)
  assert.is((await json.ended).code, 1)
  assert.match(json.stderr, /Cannot use --json with this file/)
  const program = up(words, [], { input: 'GET / HTTP/1.0\r\n\r\n' })
  await program.says(/second$/)
  program.child.stdin!.end()
  assert.is((await program.ended).code, 0, program.stderr)
  assert.match(program.stdout, /^HTTP\/1\.[01] 200 OK\r\n[^]*\r\n\r\nsecond$/)
})

test('two peers, one of them by IPv6: each has what is its', async () => {
  ip(
    ...['-n', near.name, 'link', 'add', 'six', 'type', 'veth', 'peer', 'name', 'six', 'netns'],
    first.space.name,
  )
  for (const [space, address] of [[near.name, 'fd77::1'], [first.space.name, 'fd77::2']]) {
    ip('-n', space!, 'address', 'add', `${address}/64`, 'dev', 'six', 'nodad')
    ip('-n', space!, 'link', 'set', 'six', 'up')
  }
  const other = await server('other')
  const publicKey = Buffer.from(
    other.run(['wg', 'pubkey'], { input: own.toString('base64') }),
    'base64',
  )
  other.setPeer({ publicKey, presharedKey: psk })
  other.run(['ip', 'address', 'add', '10.8.0.2/24', 'dev', other.name])
  const page = `Bun.serve({ port: 8081, hostname: '10.8.0.2', fetch: () => new Response('other') })
    console.log('ready')`
  const [command, ...rest] = [...other.space.within, BUN, '-e', page]
  await world.start(command!, rest).says(/ready/)
  const program = up(
    INTERFACE + peer(first, `Endpoint = [fd77::2]:51820\nAllowedIPs = 10.9.0.2/32`) +
      peer(other, `Endpoint = ${other.space.inside}:51820\nAllowedIPs = 10.8.0.0/24`),
    ['--listen', ':0', '--json'],
  )
  const { proxies: [proxy] } = await program.event('listening')
  const through = (place: string): Promise<string> =>
    curl('--proxy', `socks5h://${proxy.listen}`, `http://${place}`)
  assert.is(await through('10.9.0.2:8080'), 'first')
  assert.is(await through('10.8.0.2:8081'), 'other')
  assert.match(first.show().endpoint, /^\[fd77::1\]:/)
  assert.match(await through('10.7.0.2:8080'), /curl: \(97\)/)
  await program.stop()
})

test('a mistake is told with its file and line', async () => {
  const broken = up(`${INTERFACE}[Peer]\nPublicKey = short\n`)
  assert.is((await broken.ended).code, 1)
  assert.match(broken.stderr, /Cannot read line 5 of \S+up\d+\.conf: found no PublicKey/)
  const quick = world.path('broken.conf')
  writeFileSync(quick, `${INTERFACE}MTU = 3\n`)
  const imported = up(`WGConfig = ${quick}\n[Socks5]\nBindAddress = :0\n`)
  await imported.ended
  assert.match(imported.stderr, /Cannot read line 4 of \S+broken\.conf: found MTU = 3/)
  writeFileSync(quick, INTERFACE)
  const behind = up(`WGConfig = ${quick}\n[Socks5]\nBindAddress = nowhere\n`)
  await behind.ended
  assert.match(behind.stderr, /Cannot read line 3 of \S+up\d+\.conf: found BindAddress/)
  const missing = up(`WGConfig = ${world.path('none.conf')}\n`)
  await missing.ended
  assert.match(missing.stderr, /Cannot read \S+none\.conf: there is no such file/)
})

test.run()
