// Forwards as ssh spells them, carried by real sockets: TCP with half-close, UDP with many senders and their end, the
// reverse way; ports that are taken leave nothing open.
import { createSocket } from 'node:dgram'
import type { Socket as UdpSocket } from 'node:dgram'
import { connect as dial, createServer } from 'node:net'
import type { AddressInfo, Server } from 'node:net'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { connect, listen } from '../../../agent/host/tcp.ts'
import type { Network } from '../../../agent/wireguard/network.ts'
import { openForward, openForwards, parseForward } from '../../../agent/wireguard/port_forward.ts'
import type { ForwardKind, ForwardPorts } from '../../../agent/wireguard/port_forward.ts'
import { ManualClock } from '../../../core/clock.ts'
import { isTunnelError } from '../../../core/errors.ts'
import { bench, until } from '../../support/exit_bench.ts'
import type { Bench } from '../../support/exit_bench.ts'

const test = suite('agent/wireguard/port_forward')

for (
  const [kind, words, host, port, toHost, toPort] of [
    ['tcp', '5432:db.internal:5432', '127.0.0.1', 5432, 'db.internal', 5432],
    ['tcp', '0:10.0.0.1:80', '127.0.0.1', 0, '10.0.0.1', 80],
    ['tcp', 'localhost:1:a:2', '127.0.0.1', 1, 'a', 2],
    ['tcp', '0.0.0.0:1:a:2', '0.0.0.0', 1, 'a', 2],
    ['tcp', '*:1:a:2', '0.0.0.0', 1, 'a', 2],
    ['tcp', '[::1]:1:[fd00::1]:2', '::1', 1, 'fd00::1', 2],
    ['udp', '53:10.0.0.53:53', '127.0.0.1', 53, '10.0.0.53', 53],
    ['reverse', '8080:localhost:3000', '127.0.0.1', 8080, 'localhost', 3000],
  ] as const
) {
  test(`parseForward() reads ${words}`, () => {
    assert.equal(parseForward(kind, words), {
      kind,
      listen: { host, port },
      to: { host: toHost, port: toPort },
    })
  })
}

test('parseForward() refuses the rest', () => {
  const bad: [ForwardKind, string][] = [
    ['tcp', ''],
    ['tcp', '5432'],
    ['tcp', '5432:db'],
    ['tcp', '5432:db:0'],
    ['tcp', '5432:db:65536'],
    ['tcp', '65536:db:1'],
    ['tcp', '1:fd00::1:2'],
    ['tcp', '1:127.1:2'],
    ['tcp', 'host:1:a:2'],
    ['tcp', '1::2'],
    ['tcp', '1:a b:2'],
    ['tcp', `1:${'a'.repeat(300)}:2`],
    ['reverse', '0.0.0.0:1:a:2'],
  ]
  for (const [kind, words] of bad) {
    assert.throws(
      () => parseForward(kind, words),
      (error: unknown) => isTunnelError(error, 'forward/format'),
      words,
    )
  }
})

const portsOf = (made: Bench, more: Partial<ForwardPorts> = {}): ForwardPorts => ({
  ...made.ports,
  net: { listen, connect },
  ...more,
})

/** Answers each connection with how many bytes came, once they have ended. */
function counter(): Promise<{ server: Server; port: number }> {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    let came = 0
    socket.on('data', (bytes) => came += bytes.length)
    socket.on('end', () => socket.end(String(came)))
    socket.on('error', () => {})
  })
  return new Promise((resolve) =>
    server.listen(
      0,
      '127.0.0.1',
      () => resolve({ server, port: (server.address() as AddressInfo).port }),
    )
  )
}

function ask(port: number, bytes: number): Promise<string> {
  return new Promise((resolve) => {
    const socket = dial({ port, host: '127.0.0.1', allowHalfOpen: true })
    let answer = ''
    socket.on('data', (chunk) => answer += chunk)
    socket.on('error', () => {})
    socket.on('end', () => socket.destroy())
    socket.on('close', () => resolve(answer))
    socket.end(new Uint8Array(bytes))
  })
}

test('-L carries 4 MB and its answer to a name of the far side, 20 at once, and nothing is left open', async () => {
  const made = bench()
  const { server, port } = await counter()
  made.names.set('db.test', ['127.0.0.1'])
  const open = await openForward(portsOf(made), parseForward('tcp', `0:db.test:${port}`))
  const answers = await Promise.all(Array.from({ length: 20 }, () => ask(open.port, 4_000_000)))
  assert.equal(answers, Array(20).fill('4000000'))
  assert.is(made.asked.length, 20)
  await until(() => open.active === 0 && made.exit.client('one').counts.connections === 0)
  await open.close()
  server.close()
})

test('-L closes what it cannot carry, and says why', async () => {
  const made = bench()
  const problems: string[] = []
  const ports = portsOf(made, {
    told: (_, error) => problems.push((error as { code: string }).code),
  })
  const open = await openForwards(ports, [
    parseForward('tcp', '0:192.0.2.1:1'),
    parseForward('tcp', '0:none.test:1'),
  ])
  for (const one of open) assert.is(await ask(one.port, 1), '')
  assert.equal(problems, ['exit/denied', 'net/unknown-host'])
  for (const one of open) {
    assert.is(one.active, 0)
    await one.close()
  }
})

test('openForwards() opens all or none', async () => {
  const made = bench()
  const taken = await counter()
  const first = parseForward('tcp', '0:127.0.0.1:1')
  const ports = portsOf(made)
  let opened = 0
  const counting: ForwardPorts = {
    ...ports,
    net: {
      ...ports.net,
      listen: async (target, accepted) => {
        const listener = await listen(target, accepted)
        opened++
        return { ...listener, close: () => (opened--, listener.close()) }
      },
    },
  }
  const error = await openForwards(counting, [
    first,
    parseForward('tcp', `${taken.port}:127.0.0.1:1`),
  ])
    .catch((thrown) => thrown)
  assert.ok(isTunnelError(error, 'net/in-use'))
  assert.is(opened, 0)
  taken.server.close()
})

const udp = (): Promise<UdpSocket> =>
  new Promise((resolve) => {
    const socket = createSocket('udp4')
    socket.bind(0, '127.0.0.1', () => resolve(socket))
  })

const exchange = (socket: UdpSocket, port: number, words: string): Promise<string> =>
  new Promise((resolve) => {
    socket.once('message', (bytes) => resolve(String(bytes)))
    socket.send(words, port, '127.0.0.1')
  })

test('-U gives each sender a flow of its own, answers it alone, and forgets it after 5 idle minutes', async () => {
  const clock = new ManualClock()
  const made = bench()
  made.names.set('ns.test', ['127.0.0.1'])
  const far = await udp()
  const seen = new Set<number>()
  far.on('message', (bytes, from) => {
    seen.add(from.port)
    far.send(`re ${bytes}`, from.port, from.address)
  })
  const open = await openForward(
    portsOf(made, { clock }),
    parseForward('udp', `0:ns.test:${far.address().port}`),
  )
  const senders = await Promise.all(Array.from({ length: 5 }, udp))
  const answers = await Promise.all(senders.map((one, i) => exchange(one, open.port, `${i}`)))
  assert.equal(answers, ['re 0', 're 1', 're 2', 're 3', 're 4'])
  assert.is(seen.size, 5)
  assert.is(open.active, 5)
  clock.advance(299_000)
  assert.is(await exchange(senders[0]!, open.port, 'again'), 're again')
  assert.is(seen.size, 5)
  clock.advance(2_000 + 15_000)
  assert.is(open.active, 1)
  assert.is(made.exit.client('one').counts.flows, 1)
  await open.close()
  assert.is(made.exit.client('one').counts.flows, 0)
  for (const socket of [far, ...senders]) socket.close()
})

test('-R takes what the network opens to us, and refuses where nothing can', async () => {
  const made = bench()
  const { server, port } = await counter()
  const forward = parseForward('reverse', `0:127.0.0.1:${port}`)
  const error = await openForward(portsOf(made), forward).catch((thrown) => thrown)
  assert.ok(isTunnelError(error, 'forward/reverse'))
  const network: Network = Object.assign(Object.create(made.ports.network), {
    listen: (at: { port: number }, accepted: Parameters<typeof listen>[1]) =>
      listen({ host: '127.0.0.1', port: at.port }, accepted),
  })
  const open = await openForward(portsOf(made, { network }), forward)
  assert.is(await ask(open.port, 1_000), '1000')
  await open.close()
  server.close()
})

test.run()
