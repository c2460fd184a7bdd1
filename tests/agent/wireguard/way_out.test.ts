// The way to a relay beside the tunnel that it carries: told of before it is used, known when its name is not any more.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { TunnelError } from '../../../core/errors.ts'
import { wayOut } from '../../../agent/wireguard/way_out.ts'
import type { LinkOptions, World } from '../../../agent/world.ts'

const test = suite('agent/wireguard/way_out')

/** A world that writes down what is asked of it; names are known while `names` has them. */
function worldOf(names: Map<string, string[]>) {
  const said: string[] = []
  const say = (words: string): Promise<never> => {
    said.push(words)
    return Promise.resolve(undefined as never)
  }
  const target = (one: object): string => JSON.stringify(one)
  const world = {
    net: {
      lookup: (host: string) => {
        const found = names.get(host)
        return found
          ? Promise.resolve(found)
          : Promise.reject(new TunnelError('net/unknown-host', `Cannot find ${host}`))
      },
      connect: (one: object) => say(`connect ${target(one)}`),
      connectDuplex: (one: object) => say(`duplex ${target(one)}`),
    },
    tls: { connect: (one: object) => say(`tls ${target(one)}`) },
    link: {
      open: async (url: string, options: LinkOptions) => {
        said.push(`link ${url}`)
        await options.carrier?.(1_000)
      },
    },
    probes: {
      interfaces: () => [
        { name: 'eth0', address: '192.0.2.7', family: 4, internal: false },
        { name: 'sotto0', address: '100.64.9.2', family: 4, internal: false },
      ],
    },
  } as unknown as World
  const out = wayOut(world, 'sotto0', (address, protocol, port) => {
    said.push(`bypass ${address} ${protocol} ${port}`)
    return Promise.resolve()
  })
  return { out, said }
}

test('every address of a name is told of before it is connected to', async () => {
  const { out, said } = worldOf(new Map([['relay.example', ['203.0.113.1', '2001:db8::1']]]))
  await out.net.connect({ host: 'relay.example', port: 443 })
  await out.link.open('wss://relay.example:8443/link', { trust: 'ca' })
  assert.equal(said, [
    'bypass 203.0.113.1 tcp 443',
    'bypass 2001:db8::1 tcp 443',
    'connect {"host":"relay.example","port":443}',
    'bypass 203.0.113.1 tcp 8443',
    'bypass 2001:db8::1 tcp 8443',
    'link wss://relay.example:8443/link',
  ])
})

test('an address needs no name; a socket of this machine no way', async () => {
  const { out, said } = worldOf(new Map())
  await out.net.connectDuplex({ host: '2001:db8::1', port: 443 })
  await out.net.connect({ path: '/run/x' })
  await out.link.open('wss://[2001:db8::1]/link', { trust: 'ca' })
  assert.equal(said, [
    'bypass 2001:db8::1 tcp 443',
    'duplex {"host":"2001:db8::1","port":443}',
    'connect {"path":"/run/x"}',
    'bypass 2001:db8::1 tcp 443',
    'link wss://[2001:db8::1]/link',
  ])
})

test('a name whose resolver is behind the tunnel is where it was the last time, under its own name in TLS', async () => {
  const names = new Map([['relay.example', ['203.0.113.1']]])
  const { out, said } = worldOf(names)
  await out.net.connect({ host: 'relay.example', port: 443 })
  names.clear()
  said.length = 0
  await out.net.connect({ host: 'relay.example', port: 443 })
  await out.tls.connect({ target: { host: 'relay.example', port: 443 } })
  await out.link.open('wss://relay.example/link', { trust: 'ca' })
  assert.equal(said.filter((words) => !words.startsWith('bypass')), [
    'connect {"host":"203.0.113.1","port":443}',
    'tls {"servername":"relay.example","target":{"host":"203.0.113.1","port":443}}',
    'link wss://relay.example/link',
    'duplex {"host":"203.0.113.1","port":443,"timeoutMs":1000}',
  ])
  // One that was never known is for whoever connects to fail with.
  await out.net.connect({ host: 'other.example', port: 443 })
  assert.is(said.at(-1), 'connect {"host":"other.example","port":443}')
})

test('the interface itself is no address of this machine', () => {
  const { out } = worldOf(new Map())
  assert.equal(out.probes.interfaces().map(({ name }) => name), ['eth0'])
})

test.run()
