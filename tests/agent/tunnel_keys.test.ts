/**
 * Tunnels that are held for long, on a real relay: keys that are due, a way that is lost again and again, a
 * process that died, endpoints of others.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { parseAddress } from '../../core/address.ts'
import { encodeAgreement } from '../../core/agreement.ts'
import { hex } from '../../core/bytes.ts'
import { join } from '../../agent/join.ts'
import { Presence } from '../../agent/presence.ts'
import { WarpClock } from '../support/warp_clock.ts'
import {
  allow,
  ask,
  begin,
  changed,
  end,
  enter,
  HOST,
  packetOf,
  pass,
  serve,
} from '../support/tunnel_bench.ts'

// seconds: 60
const test = suite('agent/tunnel_keys')
test.before.each(begin)
test.after.each(end)

test('a tunnel that is held for long has a new pre-shared key every half hour, and its sessions use it', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const clock = new WarpClock()
  const served = serve(server, { clock })
  const asking = ask(client, 'office', { clock })
  const agreed = await asking.client.open()
  const [there] = served.engine.device.peers
  const [here] = asking.engine().device.peers
  const keys = [hex(there!.state.presharedKey!)]
  const first = here!.state.presharedKey!
  for (let i = 0; i < 3; i++) {
    pass(clock, 1_790_000)
    assert.is(hex(here!.state.presharedKey!), keys.at(-1))
    pass(clock, 11_000)
    keys.push(await changed(here!, keys.at(-1)!))
    assert.is(hex(there!.state.presharedKey!), keys.at(-1))
  }
  assert.is(new Set(keys).size, 4)
  assert.equal([...first], [...new Uint8Array(32)])
  // Packets pass by keys that hold the newest: the first handshake is some seconds old by then.
  here!.connect()
  const packet = packetOf(agreed.address4.bytes, HOST)
  asking.engine().send(packet)
  await served.engine.until(packet)
  assert.equal(asking.states.map(({ kind }) => kind), ['up'])
})

test('a server that renews no keys is left, and agreed with anew', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  serve(server)
  const clock = new WarpClock()
  const asking = ask(client, 'office', { clock })
  await asking.client.open()
  // No answer can come in between.
  pass(clock, 1_800_500)
  pass(clock, 1_800_500)
  const down = await asking.until('down')
  assert.match(`${down.kind === 'down' && down.error?.message}`, /keys were not renewed/)
  pass(clock, 1_000)
  await asking.until('up')
})

test('a way that is lost again and again in a moment renews no faster than the server allows', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const served = serve(server)
  const asking = ask(client)
  await asking.client.open()
  const [there] = served.engine.device.peers
  const [here] = asking.engine().device.peers
  let key = hex(here!.state.presharedKey!)
  for (let i = 0; i < 3; i++) {
    client.cut(server.key)
    key = await changed(here!, key)
    assert.is(hex(there!.state.presharedKey!), key)
  }
  assert.equal(asking.states.map(({ kind }) => kind), ['up'])
})

test('a process that died leaves its address to the one that comes after it', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const served = serve(server)
  const agreed = await ask(client).client.open()
  client.strand()
  while (server.presence.peers.sessions[0]!.state !== 'waiting') {
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  const { world } = client.test
  const joining = await join(world, client.choice, () => {})
  const presence = await Presence.open(world, { joining, tell() {} })
  await presence.ready()
  try {
    const asking = ask(client, 'office', { peers: presence.peers })
    const again = await asking.client.open()
    assert.equal([...again.address4.bytes], [...agreed.address4.bytes])
    assert.is(served.server.members.length, 1)
    const packet = packetOf(agreed.address4.bytes, HOST)
    asking.engine().send(packet)
    await served.engine.until(packet)
    asking.client.close()
  } finally {
    presence.close()
  }
})

test('a member that names endpoints of others makes the server knock at few of them, and seldom', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const clock = new WarpClock()
  const knocked: string[] = []
  const races = {
    start: (_: unknown, endpoints: readonly { host: string; port: number }[]) =>
      void knocked.push(...endpoints.map(({ host, port }) => `${host} ${port}`)),
    watch: () => () => {},
  }
  const served = serve(server, { clock, races })
  const said = [
    ['127.0.0.1', 5000],
    ['0.0.0.0', 5000],
    ['169.254.169.254', 8080],
    ['224.0.0.251', 5353],
    ['255.255.255.255', 5000],
    ['192.168.1.1', 53],
    ['::1', 5000],
    ['fe80::1', 5000],
    ['ff02::1', 5000],
    ['192.0.2.7', 1023],
    ['192.0.2.7', 1024],
    ['2001:db8::7', 5000],
  ] as const
  const { session } = await client.presence.peers.open('office', 'wg')
  const stream = session.open()
  const heard: Uint8Array[] = []
  stream.handle({ data: (bytes) => void heard.push(bytes), end() {}, closed() {} })
  stream.write(
    encodeAgreement({
      kind: 'propose',
      key: client.test.world.crypto.randomBytes(32),
      nonce: new Uint8Array(32),
      channel: client.test.world.crypto.randomBytes(16),
      taken: [],
      endpoints: [
        // ::ffff:127.0.0.1
        { address: Uint8Array.of(...new Uint8Array(10), 255, 255, 127, 0, 0, 1), port: 5000 },
        ...said.map(([host, port]) => ({ address: parseAddress(host)!, port })),
      ],
    }),
  )
  while (served.joined.length === 0) await new Promise((resolve) => setTimeout(resolve, 5))
  pass(clock, 8_000)
  assert.equal(knocked, [])
  pass(clock, 3_592_000)
  assert.equal([...new Set(knocked)], ['192.0.2.7 1024', '2001:db8::7 5000'])
  assert.ok(knocked.length > 2 && knocked.length <= 2 * 20, `${knocked.length} in an hour`)
  session.close()
})

test.run()
