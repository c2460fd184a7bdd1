/** A served network whose files change while it reads them. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { toBase64 } from '../../../agent/base64.ts'
import { Profile } from '../../../agent/profile.ts'
import { ServedNetwork } from '../../../agent/wireguard/served_network.ts'
import { StockClients } from '../../../agent/wireguard/stock_clients.ts'
import { testWorld } from '../../support/agent_world.ts'

const test = suite('agent/wireguard/served_network')

test('changes that come at once are taken up one after the other, each once', async () => {
  const { world, close } = await testWorld()
  const profile = new Profile(world)
  const { public: identity32 } = await profile.identity()
  const problems: unknown[] = []
  const served = await ServedNetwork.open(
    world,
    {
      // There are no agents here.
      peers: {
        serve() {},
        expectChannel: () => false,
        mayStill: () => Promise.resolve(false),
      },
      profile,
      identity32,
    },
    {
      name: 'office',
      routes: [],
      dns: false,
      peers: [],
      udpPort: undefined,
      subnet: undefined,
      loopback: false,
      linkLocal: false,
      own: false,
      between: false,
    },
    {
      joined() {},
      left() {},
      refused() {},
      problem: (error) => void problems.push(error),
    },
  )
  const stock = new StockClients(world, profile, 'office')
  const { crypto } = world
  for (let i = 0; i < 3; i++) {
    const key = toBase64(crypto.x25519Public(crypto.randomBytes(32)))
    const presharedKey = toBase64(crypto.randomBytes(32))
    await stock.add(
      { name: `phone-${i}`, key, presharedKey, sinceMs: 1 },
      () => Promise.resolve(),
    )
    const many = Array.from({ length: 20 }, () => served.refresh())
    // Those that have not begun are one.
    assert.is(new Set(many).size, 1)
    await Promise.all([...many, Promise.resolve().then(() => served.refresh())])
    assert.is(served.stockMembers.length, i + 1)
    assert.is(served.tunnel.device.peers.length, i + 1)
  }
  const late = served.refresh()
  await stock.remove('phone-1')
  await Promise.all([late, served.refresh()])
  assert.equal(served.stockMembers.map(({ name }) => name), ['phone-0', 'phone-2'])
  assert.equal(problems, [])
  served.close()
  await close()
})

test.run()
