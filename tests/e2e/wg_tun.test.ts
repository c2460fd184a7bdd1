// seconds: 150
// needs: root ip nft curl ping
/**
 * A private network as an interface of a machine: `sotto wg tun` in one namespace, `sotto wg serve` in another
 * with a LAN behind it, a relay outside. What programs of the machine see is the system's own TCP, UDP and ICMP.
 */
import { spawnSync } from 'node:child_process'
import { rmSync, writeFileSync } from 'node:fs'
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

test('pings, pages and datagrams of the LAN by the system, IPv4 and IPv6; status says so; it leaves nothing', async () => {
  await serve()
  const { code } = await page(PRINTER)
  assert.is.not(code, 0, 'the LAN is reached without the network')
  const member = await tun()
  assert.is(member.up['interface'], 'sotto0')
  for (const place of [PRINTER, PRINTER6]) {
    await ok('ping', '-c', '2', '-i', '0.2', '-W', '5', place)
  }
  for (const place of [PRINTER, `[${PRINTER6}]`]) {
    const { stdout, stderr } = await page(place)
    assert.is(stdout, 'the printer', stderr)
  }
  const big = await inside(
    ...['curl', '-sS', '-m', '15', '-o', '/dev/null', '-w', '%{size_download}'],
    `http://${PRINTER}:8080/big`,
  )
  assert.is(big.stdout, `${BODY_BYTES}`, big.stderr)
  const status = sotto(far, 'member', ['wg', 'status', '--json'])
  await status.ended
  assert.match(status.stdout, /"event":"joined".*"interface":"sotto0"/)
  const over = await member.stop('SIGTERM')
  assert.is(over.code, 143, member.stderr)
  assert.is(await traces(), '')
})

test.run()
