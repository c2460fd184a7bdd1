// seconds: 200
// needs: root ip nft
/** A private network whose relay, server and member stop, sleep, are killed, and go on. */
import { readdirSync, statSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Namespace } from '../support/namespace.ts'
import {
  close,
  far,
  forward,
  near,
  nth,
  open,
  PRINTER,
  relay,
  serve,
  startRelay,
  stopAll,
  Talk,
  world,
} from '../support/wg_office.ts'

const test = suite('e2e/wg_restarts')
test.before(open)
test.after.each(stopAll)
test.after(close)

test('a relay that is started anew: streams inside go on, by UDP and without', async () => {
  const server = await serve(['--udp', '0'])
  const plain = await forward(['--relay-only'])
  const talk = new Talk()
  await talk.more()
  const before = plain.lines.find(({ event }) => event === 'listening')!.address
  assert.is((await relay.stop('SIGKILL')).signal, 'SIGKILL')
  await startRelay()
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
  await startRelay()
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

test.run()
