// seconds: 300
// needs: root ip nft
/**
 * The ways of a private network: UDP goes away and comes back under a stream, packets fit the way that they
 * take, the relay, the server and the member's machine stop and go on.
 */
import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Namespace } from '../support/namespace.ts'
import { BUN, E2eWorld } from '../support/world.ts'
import type { Line, Program, RunOptions } from '../support/world.ts'

const HOST = 'relay.sotto.test'
const PRINTER = '192.168.1.100'

let world: E2eWorld
/** Of the member, and of the serving machine. */
let far: Namespace
let near: Namespace
let lan: string
let env: Record<string, string>
let relay: Program
let relayArgs: string[]
const running: Program[] = []

const test = suite('e2e/wg_paths')

function ip(...words: string[]): void {
  const { status, stderr } = spawnSync('ip', words, { encoding: 'utf8' })
  if (status !== 0) throw new Error(`ip ${words.join(' ')}: ${stderr}`)
}

function start(words: readonly string[], options: RunOptions = {}): Program {
  const program = world.start(words[0]!, words.slice(1), options)
  running.push(program)
  return program
}

/** `sotto` of one of the two machines. */
function sotto(space: Namespace, home: string, args: string[]): Program {
  return start([...space.within, ...world.sottoWords.split(' '), ...args], {
    home,
    env: { SOTTO_HOME: world.path(home), ...env },
  })
}

async function serve(flags: string[] = [], route = '192.168.1.0/24'): Promise<Program> {
  const program = sotto(near, 'office', [
    ...['wg', 'serve', '--name', 'office', '--route', route, '--json', ...flags],
  ])
  await program.event('serving')
  return program
}

async function forward(flags: string[] = []): Promise<Program> {
  const program = sotto(far, 'member', [
    ...['wg', 'forward', 'office', '-L', `7000:${PRINTER}:7000`, ...flags, '--json'],
  ])
  await program.event('listening')
  return program
}

/** The n-th line of an event. */
function nth(program: Program, event: string, n: number): Promise<Line> {
  return program.until(
    () => program.lines.filter((line) => line.event === event)[n - 1],
    `line ${n} of "${event}"`,
    90_000,
  )
}

/** One connection that says what nobody knows, over and over, and counts what comes back as it was said. */
const TALK = `
  let sent = [], blocks = 0, at = 0
  const make = () => { const block = crypto.getRandomValues(new Uint8Array(32768)); sent.push(block); return block }
  let rest
  const write = (s, block) => { const n = s.write(block); rest = n < block.length ? block.subarray(n) : undefined }
  const fill = (s) => { while (rest === undefined && sent.length < 8) write(s, make()) }
  const over = (why) => { console.log('over ' + why + ' at ' + blocks); process.exit(1) }
  await Bun.connect({ hostname: '127.0.0.1', port: 7000, socket: {
    open: fill,
    drain(s) { if (rest) write(s, rest); fill(s) },
    data(s, bytes) {
      for (const byte of bytes) {
        if (sent[0][at] !== byte) over('another byte')
        if (++at < sent[0].length) continue
        at = 0
        sent.shift()
        if (++blocks % 16 === 0) console.log('blocks ' + blocks)
      }
      setTimeout(() => fill(s), 5)
    },
    close() { over('closed') },
    error(_, e) { over(String(e)) },
    connectError(_, e) { over(String(e)) },
  } })`

class Talk {
  readonly program = start([...far.within, BUN, '-e', TALK])

  get blocks(): number {
    return Number(/blocks (\d+)\n(?!.*blocks)/s.exec(this.program.stdout)?.[1] ?? 0)
  }

  /** So many blocks more came back, each byte as it was. */
  async more(count = 64, msMax = 60_000): Promise<void> {
    const goal = this.blocks + count
    await this.program.until(() => this.blocks >= goal ? true : undefined, `${goal} blocks`, msMax)
  }
}

function startRelay(): Program {
  return world.sotto(relayArgs, { home: 'relay' })
}

test.before(async () => {
  world = new E2eWorld()
  far = new Namespace(HOST)
  near = new Namespace(HOST)
  lan = `sp${process.pid % 100_000}`
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
  const echo = `const flush = (s) => {
      for (; s.data.length > 0; s.data.shift()) {
        const taken = Math.max(0, s.write(s.data[0]))
        if (taken < s.data[0].length) return void (s.data[0] = s.data[0].subarray(taken))
      }
    }
    Bun.listen({ hostname: '${PRINTER}', port: 7000, socket: {
      open(s) { s.data = [] },
      data(s, bytes) { s.data.push(Uint8Array.from(bytes)); flush(s) },
      drain: flush,
    } })
    await Bun.udpSocket({ hostname: '${PRINTER}', port: 7001, socket: { data(s, d, p, a) { s.send(d, p, a) } } })
    console.log('ready')`
  const printer = world.start('ip', ['netns', 'exec', lan, BUN, '-e', echo])
  await printer.says(/ready/)
  relayArgs = ['relay', '--port', '0', '--host', '0.0.0.0', '--domain', HOST, '--json']
  relay = startRelay()
  const { port, fingerprint, apiKey } = await relay.event('listening')
  relayArgs[2] = String(port)
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
  spawnSync('ip', ['netns', 'delete', lan])
})

test('UDP that is cut under a stream: the relay carries it on, and UDP again once it is back', async () => {
  await serve(['--udp', '0'])
  const member = await forward()
  const talk = new Talk()
  await talk.more()
  assert.match((await nth(member, 'path', 1)).path, /^udp /)
  await talk.more()
  far.cutUdp()
  assert.is((await nth(member, 'path', 2)).path, 'relay')
  await talk.more()
  far.heal()
  assert.match((await nth(member, 'path', 3)).path, /^udp /)
  await talk.more()
  assert.is(talk.program.over, undefined, talk.program.stdout)
})

/** Packets that the systems of both machines broke up, or could not. */
async function fragments(): Promise<number> {
  let sum = 0
  for (const space of [far, near]) {
    const [command, ...rest] = [...space.within, 'cat', '/proc/net/snmp']
    const { stdout } = await world.run(command!, rest)
    const [names, values] = stdout.split('\n').filter((line) => line.startsWith('Ip: '))
      .map((line) => line.split(' '))
    for (const name of ['ReasmReqds', 'FragFails', 'FragCreates']) {
      sum += Number(values![names!.indexOf(name)])
    }
  }
  return sum
}

/** The wires of both machines. */
function narrow(mtu: number): void {
  for (const { name } of [far, near]) {
    const id = name.slice('sotto-'.length)
    ip('link', 'set', `so${id}`, 'mtu', String(mtu))
    ip('-n', name, 'link', 'set', `si${id}`, 'mtu', String(mtu))
  }
}

test('packets fit the way that they take: none is broken up over UDP, whatever its width', async () => {
  for (const mtu of [1280, 1341, 1420]) {
    // Of IPv4 and UDP, and WireGuard.
    narrow(mtu + 28 + 32)
    const server = await serve(['--udp', '0', '--mtu', String(mtu)])
    const member = await forward()
    const talk = new Talk()
    // What is on its way over the relay already is as small.
    assert.match((await nth(member, 'path', 1)).path, /^udp /)
    const before = await fragments()
    await talk.more(128)
    assert.is(await fragments(), before, `MTU ${mtu}`)
    assert.is(talk.program.over, undefined, talk.program.stdout)
    for (const program of [talk.program, member, server]) await program.stop()
  }
  narrow(1500)
})

/** Datagrams of these lengths, one after the other, and which came back. */
async function echoed(port: number, lengths: number[]): Promise<string> {
  const ask = `const heard = []
    const s = await Bun.udpSocket({ connect: { hostname: '127.0.0.1', port: ${port} }, socket: {
      data(_, d) {
        heard.push(d.length)
        if (d.length !== ${lengths.at(-1)}) return
        console.log(heard.join(' '))
        process.exit(0)
      } } })
    for (;;) {
      for (const length of [${lengths}]) {
        s.send(new Uint8Array(length))
        await new Promise((resolve) => setTimeout(resolve, 50))
      }
    }`
  const [command, ...rest] = [...far.within, BUN, '-e', ask]
  return (await world.run(command!, rest, { timeoutMs: 20_000 })).stdout.trim()
}

test('UDP that swallows large packets is left to the relay', async () => {
  await serve(['--udp', '0'])
  far.cutUdp(1_300)
  const member = await forward()
  const talk = new Talk()
  assert.match((await nth(member, 'path', 1)).path, /^udp /)
  assert.is((await nth(member, 'path', 2)).path, 'relay')
  await talk.more()
  assert.is(talk.program.over, undefined, talk.program.stdout)
  far.heal()
  assert.match((await nth(member, 'path', 3)).path, /^udp /)
  await talk.more()
})

test('a place that a router forwards is told to members, by its name, and used', async () => {
  const hosts = `/etc/netns/${near.name}/hosts`
  const before = readFileSync(hosts, 'utf8')
  writeFileSync(hosts, `${before}203.0.113.9 vpn.sotto.test\n`)
  const server = await serve(['--udp', '0', '--endpoint', 'vpn.sotto.test:4444'])
  const { udp } = await server.event('serving')
  const nft = async (words: string): Promise<void> => {
    const [command, ...rest] = [...far.within, 'nft', words]
    const { code, stderr } = await world.run(command!, rest)
    assert.is(code, 0, stderr)
  }
  try {
    await nft(
      `add table ip forwarding; add chain ip forwarding raw { type filter hook output priority -150; };
       add rule ip forwarding raw ip daddr ${near.inside} meta l4proto udp drop;
       add chain ip forwarding out { type nat hook output priority -100; };
       add rule ip forwarding out ip daddr 203.0.113.9 udp dport 4444 dnat to ${near.inside}:${udp}`,
    )
    const member = await forward()
    assert.is((await nth(member, 'path', 1)).path, 'udp 203.0.113.9 port 4444')
    const talk = new Talk()
    await talk.more()
    await talk.program.stop()
  } finally {
    await nft('delete table ip forwarding')
    writeFileSync(hosts, before)
  }
})

test('Ctrl-C at either end leaves nothing behind, and the other end knows at once', async () => {
  const places = (home: string): string[] => {
    const folder = world.path(home)
    return readdirSync(folder, { recursive: true }).map(String).filter((name) =>
      statSync(`${folder}/${name}`).isSocket()
    )
  }
  const sockets = async (space: Namespace): Promise<string> => {
    const [command, ...rest] = [...space.within, 'cat', '/proc/net/udp', '/proc/net/udp6']
    const { stdout } = await world.run(command!, rest)
    return stdout.split('\n').filter((line) => /^ *\d+:/.test(line)).join('\n')
  }
  const server = await serve(['--udp', '0'])
  const member = await forward(['-U', `7103:${PRINTER}:7001`])
  const talk = new Talk()
  await nth(member, 'path', 1)
  await talk.more(16)
  assert.ok(places('member').length > 0 && (await sockets(far)) !== '')
  assert.is((await member.stop('SIGINT')).code, 130)
  await server.event('left')
  assert.is((await talk.program.ended).code, 1)
  assert.equal([places('member'), await sockets(far)], [[], ''])
  const again = await forward()
  assert.is((await server.stop('SIGINT')).code, 130)
  await again.event('network-down')
  assert.equal([places('office'), await sockets(near)], [[], ''])
})

test('larger packets pass where the relay alone carries, at the same server', async () => {
  await serve(['--udp', '0'])
  const status = async (): Promise<string> => {
    const program = sotto(far, 'member', ['wg', 'status', '--json'])
    await program.ended
    return program.stdout
  }
  for (
    const [flags, port, comes] of [[['--relay-only'], 7101, '8000 1300'], [
      [],
      7102,
      '1300',
    ]] as const
  ) {
    const member = await forward(['-U', `${port}:${PRINTER}:7001`, ...flags])
    assert.is(await echoed(port, [8000, 1300]), comes)
    assert.match(await status(), flags.length > 0 ? /"mtu":16384/ : /"mtu":1420/)
    await member.stop()
  }
})

test('a relay that is started anew: streams inside go on, by UDP and without', async () => {
  const server = await serve(['--udp', '0'])
  const plain = await forward(['--relay-only'])
  const talk = new Talk()
  await talk.more()
  const before = plain.lines.find(({ event }) => event === 'listening')!.address
  assert.is((await relay.stop('SIGKILL')).signal, 'SIGKILL')
  relay = startRelay()
  await relay.event('listening')
  await talk.more(64, 90_000)
  assert.is(talk.program.over, undefined, talk.program.stdout)
  assert.not.ok(plain.lines.some(({ event }) => event === 'network-down'), plain.stderr)
  assert.not.ok(server.lines.some(({ event }) => event === 'left'), server.stderr)
  for (const program of [talk.program, plain]) await program.stop()
  const member = await forward()
  assert.is(member.lines.find(({ event }) => event === 'listening')!.address, before)
  const direct = new Talk()
  assert.match((await nth(member, 'path', 1)).path, /^udp /)
  await relay.stop('SIGKILL')
  // While there is none at all.
  await direct.more(128)
  relay = startRelay()
  await relay.event('listening')
  await nth(member, 'up', 1)
  await direct.more()
  assert.is(direct.program.over, undefined, direct.program.stdout)
})

test('a server that is started anew, killed or not: members are back by themselves, and led where it leads now', async () => {
  let server = await serve(['--udp', '0'])
  const member = await forward()
  const before = member.lines.find(({ event }) => event === 'listening')!.address
  const first = new Talk()
  await first.more()
  let times = 0
  for (
    const [signal, route] of [
      ['SIGTERM', '192.168.1.0/24'],
      ['SIGKILL', '192.168.1.100/32'],
      ['SIGTERM', '10.9.9.0/24'],
    ] as const
  ) {
    await server.stop(signal)
    server = await serve(['--udp', '0'], route)
    const up = await nth(member, 'network-up', ++times)
    assert.is(up.address, before)
    assert.match(up.routes, new RegExp(route.split('/')[0]!.replaceAll('.', '\\.')))
    const talk = new Talk()
    if (route !== '10.9.9.0/24') await talk.more()
    else assert.is((await talk.program.ended).code, 1)
    await talk.program.stop()
  }
  // What was open when the server died was closed, and not left to hang.
  assert.is((await first.program.ended).code, 1)
})

test('a machine that slept: its streams go on where the others still wait, else new ones do', async () => {
  await serve(['--udp', '0'])
  const member = await forward()
  const talk = new Talk()
  assert.match((await nth(member, 'path', 1)).path, /^udp /)
  await talk.more()
  for (const program of [talk.program, member]) program.signal('SIGSTOP')
  await new Promise((resolve) => setTimeout(resolve, 10_000))
  for (const program of [member, talk.program]) program.signal('SIGCONT')
  await talk.more()
  assert.is(talk.program.over, undefined, talk.program.stdout)
})

test.run()
