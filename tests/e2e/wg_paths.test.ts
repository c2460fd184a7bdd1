// seconds: 260
// needs: root ip nft
/**
 * The ways of a private network: UDP goes away and comes back under a stream, swallows what is large, is
 * reached by a router's port; packets fit the way that they take.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  close,
  far,
  forward,
  ip,
  near,
  nth,
  open,
  PRINTER,
  serve,
  sotto,
  stopAll,
  Talk,
  world,
} from '../support/wg_office.ts'
import { BUN } from '../support/world.ts'

const test = suite('e2e/wg_paths')
test.before(open)
test.after.each(stopAll)
test.after(close)

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
test.run()
