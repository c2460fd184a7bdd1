// seconds: 240
// needs: root ip nft curl ping setpriv unshare
/**
 * A private network as an interface of a machine: `sotto wg tun` in one namespace, `sotto wg serve` in another
 * with a LAN behind it, a relay outside. What programs of the machine see is the system's own TCP, UDP and ICMP.
 */
import { spawnSync } from 'node:child_process'
import { chmodSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Namespace } from '../support/namespace.ts'
import { BUN, E2eWorld } from '../support/world.ts'
import type { Line, Program, RunOptions } from '../support/world.ts'

const HOST = 'relay.sotto.test'
const PRINTER = '192.168.1.100'
const PRINTER6 = 'fd00:77::100'
/** Behind the serving machine as well, where the rest of the world would be. */
const WORLD = '203.0.113.5'
const BODY_BYTES = 3_000_000

let world: E2eWorld
let far: Namespace
let near: Namespace
let lan: string
let env: Record<string, string>
let relay: Program
let relayPort: number
const running: Program[] = []

const test = suite('e2e/wg_tun')

function ip(...words: string[]): void {
  const { status, stderr } = spawnSync('ip', words, { encoding: 'utf8', timeout: 10_000 })
  if (status !== 0) throw new Error(`ip ${words.join(' ')}: ${stderr}`)
}

function sotto(space: Namespace, home: string, args: string[], options: RunOptions = {}): Program {
  const [command, ...rest] = [...space.within, ...world.sottoWords.split(' '), ...args]
  const program = world.start(command!, rest, {
    home,
    env: { SOTTO_HOME: world.path(home), ...env, ...options.env },
  })
  running.push(program)
  return program
}

/** On the member's machine. */
const inside = (...args: string[]) =>
  world.run('ip', ['netns', 'exec', far.name, ...args], { timeoutMs: 20_000 })

const page = (place: string, ...more: string[]) =>
  inside('curl', '-sS', '-m', '15', ...more, `http://${place}:8080`)

async function ok(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await inside(...args)
  assert.is(code, 0, `${args.join(' ')}: ${stdout}${stderr}`)
  return stdout
}

const startRelay = (port: string): Program =>
  world.sotto(
    ['relay', '--port', port, '--host', '0.0.0.0', '--domain', HOST, '--json'],
    { home: 'relay' },
  )

async function refusal(program: Program): Promise<string> {
  const over = await program.ended
  assert.is(over.code, 1, program.stdout + program.stderr)
  const error = program.lines.find(({ event }) => event === 'error')
  assert.ok(error?.['hint'], 'a refusal without a remedy')
  return error?.['code']
}

/** Tries again while a way is being built. */
async function until(what: string, done: () => Promise<boolean>): Promise<void> {
  for (let tries = 0; tries < 40; tries++) {
    if (await done()) return
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  throw new Error(`it never came to be: ${what}`)
}

/** Bun in the member's machine. */
const script = (words: string) => ok(BUN, '-e', words)

async function serve(flags: string[] = []): Promise<Program> {
  const routes = flags.includes('--route')
    ? []
    : ['--route', '192.168.1.0/24', '--route', 'fd00:77::/64']
  const program = sotto(near, 'office', [
    ...['wg', 'serve', '--name', 'office', ...routes, '--json', ...flags],
  ])
  await program.event('serving')
  return program
}

async function tun(flags: string[] = []): Promise<Program & { up: Line }> {
  const program = sotto(far, 'member', ['wg', 'tun', 'office', '--json', ...flags])
  return Object.assign(program, { up: await program.event('listening') })
}

/** What is left of interfaces, routes and rules of ours. */
async function traces(): Promise<string> {
  const found: string[] = []
  for (const family of ['-4', '-6']) {
    const rules = JSON.parse(await ok('ip', '-N', '-j', family, 'rule', 'show')) as {
      priority: number
      protocol?: string
    }[]
    for (const { priority, protocol } of rules) {
      if (protocol === '83') found.push(`rule ${family} ${priority}`)
    }
    const routes = await ok('ip', family, 'route', 'show', 'table', 'all')
    found.push(...routes.split('\n').filter((line) => /sotto\d/.test(line)))
  }
  const links = await ok('ip', '-o', 'link', 'show')
  found.push(...links.split('\n').filter((line) => /sotto\d/.test(line)))
  return found.join('\n')
}

test.before(async () => {
  world = new E2eWorld()
  far = new Namespace(HOST)
  near = new Namespace(HOST)
  lan = `st${process.pid % 100_000}`
  await world.run('sysctl', ['-qw', 'net.ipv4.ip_forward=1'])
  for (const space of [far, near]) {
    ip('-n', space.name, 'route', 'replace', 'default', 'via', space.outside)
    // The strictest that a system may have: what comes has to come from where it would be sent to.
    await world.run('ip', [
      ...['netns', 'exec', space.name, 'sysctl', '-qw', 'net.ipv4.conf.all.rp_filter=1'],
    ])
  }
  ip('netns', 'add', lan)
  ip('-n', near.name, 'link', 'add', 'lan0', 'type', 'veth', 'peer', 'name', 'lan0', 'netns', lan)
  ip('-n', near.name, 'address', 'add', '192.168.1.1/24', 'dev', 'lan0')
  ip('-n', near.name, 'address', 'add', 'fd00:77::1/64', 'dev', 'lan0', 'nodad')
  ip('-n', near.name, 'link', 'set', 'lan0', 'up')
  ip('-n', near.name, 'route', 'add', WORLD, 'via', PRINTER)
  for (const place of [`${PRINTER}/24`, `${WORLD}/32`]) {
    ip('-n', lan, 'address', 'add', place, 'dev', 'lan0')
  }
  ip('-n', lan, 'address', 'add', `${PRINTER6}/64`, 'dev', 'lan0', 'nodad')
  ip('-n', lan, 'link', 'set', 'lan0', 'up')
  ip('-n', lan, 'link', 'set', 'lo', 'up')
  ip('-n', lan, 'route', 'add', 'default', 'via', '192.168.1.1')
  writeFileSync(
    `/etc/netns/${near.name}/hosts`,
    `127.0.0.1 localhost\n${near.outside} ${HOST}\n${PRINTER} printer.lan\n`,
  )
  const web = `const fetch = async (r) => {
      const { pathname } = new URL(r.url)
      if (pathname === '/big') return new Response(new Uint8Array(${BODY_BYTES}))
      if (r.method === 'POST') return new Response(String((await r.arrayBuffer()).byteLength))
      return new Response('the printer')
    }
    Bun.serve({ port: 8080, hostname: '0.0.0.0', fetch })
    Bun.serve({ port: 8080, hostname: '${PRINTER6}', fetch })
    Bun.listen({ port: 7000, hostname: '0.0.0.0', socket: { data(s, d) { s.write(d) } } })
    await Bun.udpSocket({ port: 5300, hostname: '0.0.0.0', socket: { data(s, d, p, a) { s.send(d, p, a) } } })
    console.log('ready')`
  await world.start('ip', ['netns', 'exec', lan, BUN, '-e', web]).says(/ready/)
  relay = startRelay('0')
  const { port, fingerprint, apiKey } = await relay.event('listening')
  relayPort = port
  env = {
    SOTTO_RELAY: `https://${HOST}:${port}`,
    SOTTO_API_KEY: apiKey,
    SOTTO_RELAY_FINGERPRINT: fingerprint,
  }
  const identity = await world.sottoRun(['identity', '--json'], { home: 'member' })
  const { key } = JSON.parse(identity.stdout.split('\n')[0]!)
  await world.sottoRun(['access', 'allow', key, 'wg'], { home: 'office' })
  const other = await world.sottoRun(['identity', '--json'], { home: 'other' })
  const { key: otherKey } = JSON.parse(other.stdout.split('\n')[0]!)
  await world.sottoRun(['access', 'allow', otherKey, 'wg'], { home: 'office' })
})

test.after.each(async () => {
  for (const program of running.splice(0).reverse()) await program.stop()
})

test.after(async () => {
  await world.close()
  far.close()
  near.close()
  spawnSync('ip', ['netns', 'delete', lan], { timeout: 10_000 })
  rmSync(`/etc/netns/${lan}`, { recursive: true, force: true })
})

test('pings, pages, datagrams and names of the LAN by the system, IPv4 and IPv6; it leaves nothing', async () => {
  await serve(['--dns'])
  assert.is.not((await page(PRINTER)).code, 0, 'the LAN is reached without the network')
  const member = await tun()
  const { interface: name, address } = member.up
  assert.is(name, 'sotto0')
  for (const place of [PRINTER, PRINTER6]) {
    await ok('ping', '-c', '2', '-i', '0.2', '-W', '5', place)
  }
  for (const place of [PRINTER, `[${PRINTER6}]`]) {
    const { stdout, stderr } = await page(place)
    assert.is(stdout, 'the printer', stderr)
  }
  const size = ['-o', '/dev/null', '-w', '%{size_download}']
  assert.is(
    (await inside('curl', '-sS', '-m', '15', ...size, `http://${PRINTER}:8080/big`)).stdout,
    `${BODY_BYTES}`,
  )
  writeFileSync(world.path('upload'), new Uint8Array(BODY_BYTES))
  const up = await page(PRINTER, '--data-binary', `@${world.path('upload')}`)
  assert.is(up.stdout, `${BODY_BYTES}`, up.stderr)
  // As a shell is: one connection, a few bytes at a time, each answered.
  const typed = await script(`let n = 0
    const s = await Bun.connect({ hostname: '${PRINTER}', port: 7000, socket: { data(s, d) {
      if (++n === 500) { console.log('typed'); process.exit(0) } s.write('x' + n) } } }); s.write('x')`)
  assert.is(typed.trim(), 'typed')
  const echo = await script(
    `const s = await Bun.udpSocket({ connect: { hostname: '${PRINTER}', port: 5300 }, socket: {
    data(_, d) { console.log(d.length); process.exit(0) } } })
    setInterval(() => s.send(new Uint8Array(1000)), 1000); s.send(new Uint8Array(1000))`,
  )
  assert.is(echo.trim(), '1000')
  // The system's own resolver, which is told where to ask.
  const resolver = serverOf(member.up)
  writeFileSync(`/etc/netns/${far.name}/resolv.conf`, `nameserver ${resolver}\n`)
  assert.is((await page('printer.lan')).stdout, 'the printer')
  rmSync(`/etc/netns/${far.name}/resolv.conf`)
  const status = sotto(far, 'member', ['wg', 'status', '--json'])
  await status.ended
  assert.match(status.stdout, /"event":"joined".*"interface":"sotto0"/)
  assert.ok(status.stdout.includes(address), status.stdout)
  const over = await member.stop('SIGTERM')
  assert.is(over.code, 143, member.stderr)
  assert.is(await traces(), '')
})

test('sizes: what fits is carried whole and not in pieces, what does not is said at once', async () => {
  for (const flags of [['--udp', '0'], []]) {
    const server = await serve(flags)
    const member = await tun(flags.length > 0 ? [] : ['--relay-only'])
    const mtu: number = member.up['mtu']
    assert.is(mtu, flags.length > 0 ? 1_420 : 16_384)
    const far4 = serverOf(member.up)
    for (const at of [mtu, 1_280]) {
      await ok('ip', 'link', 'set', 'sotto0', 'mtu', String(at))
      const ping = (bytes: number) =>
        inside('ping', '-M', 'do', '-c', '1', '-W', '5', '-s', String(bytes - 28), far4)
      const fits = await ping(at)
      assert.is(fits.code, 0, `${at} bytes: ${fits.stdout}${fits.stderr}`)
      assert.match((await ping(at + 1)).stderr, /too long/)
      const { stdout } = await inside(
        ...['curl', '-sS', '-m', '15', '-o', '/dev/null', '-w', '%{size_download}'],
        `http://${PRINTER}:8080/big`,
      )
      assert.is(stdout, `${BODY_BYTES}`)
    }
    await member.stop()
    await server.stop()
  }
})

test('killed, it leaves no interface and no route; the next start removes its rules', async () => {
  await serve()
  const member = await tun()
  assert.is((await page(PRINTER)).stdout, 'the printer')
  const second = await tun(['--name', 'sotto1'])
  assert.is(second.up['interface'], 'sotto1')
  member.signal('SIGKILL')
  await member.ended
  second.signal('SIGKILL')
  await second.ended
  await until('both are gone', async () => !/sotto|route|table/.test(await traces()))
  // The rules lead nowhere: the machine's own network goes on.
  await ok('ping', '-c', '1', '-W', '5', near.inside)
  assert.is.not((await page(PRINTER)).code, 0)
  const again = await tun()
  assert.is((await page(PRINTER)).stdout, 'the printer')
  await again.stop('SIGINT')
  assert.is(await traces(), '')
})

test('refusals name a remedy: no right, no device, a name that is taken, what is not served', async () => {
  const words = [...world.sottoWords.split(' '), 'wg', 'tun', 'office', '--json']
  const run = (...before: string[]): Program => {
    const [command, ...rest] = [...far.within, ...before, ...words]
    const program = world.start(command!, rest, {
      home: 'member',
      env: { SOTTO_HOME: world.path('member'), ...env },
    })
    running.push(program)
    return program
  }
  assert.is(
    await refusal(run('setpriv', '--bounding-set', '-net_admin', '--inh-caps', '-net_admin')),
    'tun/denied',
  )
  const hidden = 'mount -t tmpfs none /dev/net && exec "$@"'
  assert.is(await refusal(run('unshare', '-m', 'sh', '-c', hidden, 'sh')), 'tun/missing')
  await ok('ip', 'tuntap', 'add', 'dev', 'sotto7', 'mode', 'tun')
  const taken = sotto(far, 'member', ['wg', 'tun', 'office', '--json', '--name', 'sotto7'])
  assert.is(await refusal(taken), 'tun/taken')
  await ok('ip', 'tuntap', 'delete', 'dev', 'sotto7', 'mode', 'tun')
  await serve()
  for (
    const [flags, code] of [
      [['--all'], 'tun/all'],
      [['--route', '10.0.0.0/8'], 'tun/route'],
      [['--dns'], 'tun/names'],
    ] as const
  ) {
    assert.is(
      await refusal(sotto(far, 'member', ['wg', 'tun', 'office', '--json', ...flags])),
      code,
    )
  }
  assert.is(await traces(), '')
})

test('--all: everything goes there, names too, but not the way to the relay and to the server', async () => {
  const served = ['--route', '0.0.0.0/0', '--dns']
  let server = await serve([...served, '--udp', '0'])
  assert.is.not((await page(WORLD)).code, 0, 'the rest of the world is reached without the network')
  // Without --all what is public stays where it is.
  const careful = await tun()
  assert.is((await careful.event('not-routed'))['why'], 'all')
  assert.is.not((await page(WORLD)).code, 0)
  await careful.stop()
  // A stand-in for resolvconf, which writes down what it is told.
  const told = world.path('resolvconf.told')
  const bin = world.path('bin')
  mkdirSync(bin, { recursive: true })
  writeFileSync(
    `${bin}/resolvconf`,
    `#!/bin/sh\necho "$@" >>${told}\n[ "$1" = -a ] && cat >>${told}\nexit 0\n`,
  )
  chmodSync(`${bin}/resolvconf`, 0o755)
  const { PATH } = world.env('member')
  const program = sotto(far, 'member', ['wg', 'tun', 'office', '--json', '--all', '--dns'], {
    env: { PATH: `${bin}:${PATH}` },
  })
  const up = await program.event('listening')
  assert.is(up['names'], 'resolvconf')
  assert.match(
    readFileSync(told, 'utf8'),
    new RegExp(`-a tun.sotto0 -m 0 -x\nnameserver ${serverOf(up)}\n`),
  )
  const reached = async (): Promise<boolean> =>
    (await page(WORLD, '-m', '3')).stdout === 'the printer'
  assert.ok(await reached(), program.stderr)
  // What carries the tunnel does not go through it.
  const direct = await ok(
    'ip',
    'route',
    'get',
    far.outside,
    'ipproto',
    'tcp',
    'dport',
    String(relayPort),
  )
  assert.not.match(direct, /sotto0/)
  assert.match(await ok('ip', 'route', 'get', WORLD), /sotto0/)
  await until('UDP carries', async () => {
    await reached()
    const status = sotto(far, 'member', ['wg', 'status', '--json'])
    await status.ended
    return status.stdout.includes('"path":"udp ')
  })
  assert.ok(await reached())
  // The family that is not served leads nowhere, and says so at once.
  const six = await inside('curl', '-sS', '-m', '5', 'http://[2001:db8::5]:80')
  assert.is(six.code, 7, six.stderr)
  // The relay is lost and comes back, and so does whoever serves.
  await relay.stop()
  relay = startRelay(String(relayPort))
  await relay.event('listening')
  await server.stop()
  server = await serve(served)
  await until('the network is back', reached)
  await program.stop()
  assert.match(readFileSync(told, 'utf8'), /-d tun.sotto0\n$/)
  assert.is(await traces(), '')
  assert.is.not((await page(WORLD)).code, 0)
})

test('others of the network open nothing on this machine, but the ports that it accepts', async () => {
  await serve(['--between'])
  const web = `Bun.serve({ port: 9200, hostname: '0.0.0.0', fetch: () => new Response('mine') })
    Bun.serve({ port: 9300, hostname: '0.0.0.0', fetch: () => new Response('mine') }); console.log('ready')`
  const [command, ...rest] = [...far.within, BUN, '-e', web]
  const service = world.start(command!, rest)
  running.push(service)
  await service.says(/ready/)
  const other = sotto(near, 'other', ['wg', 'socks5', 'office', '--listen', ':0', '--json'])
  const { socks5 } = await other.event('listening')
  const ask = (address: string, port: number) => {
    const [program, ...args] = [...near.within, 'curl', '-sS', '-m', '4']
    return world.run(program!, [
      ...args,
      '--proxy',
      `socks5h://${socks5}`,
      `http://${address}:${port}`,
    ])
  }
  const closed = await tun()
  assert.is((await page(PRINTER)).stdout, 'the printer')
  assert.is((await ask(closed.up['address'], 9200)).stdout, '')
  await closed.stop()
  const open = await tun(['--accept', '9200'])
  assert.is((await ask(open.up['address'], 9200)).stdout, 'mine')
  assert.is((await ask(open.up['address'], 9300)).stdout, '')
})

/** The serving agent's own address, which is the first of the subnet. */
function serverOf({ routes }: Line): string {
  return String(routes).split(' ')[0]!.replace(/\.0\/\d+$/, '.1')
}

test.run()
