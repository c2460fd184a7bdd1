// The far side, with real sockets: names that change what they lead to between one look and the next, bounds of one
// client that leave others alone, datagrams in both directions and their end, echoes.
// needs: root ip nft ping
import { createSocket } from 'node:dgram'
import type { Socket as UdpSocket } from 'node:dgram'
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import type { AddressInfo, Server, Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { programPing, socketPing } from '../../../agent/host/ping.ts'
import { hostClock } from '../../../agent/host/process.ts'
import { hostPrograms } from '../../../agent/host/programs.ts'
import { openUdp } from '../../../agent/host/udp.ts'
import { connect } from '../../../agent/host/tcp.ts'
import { dnsExchange } from '../../../agent/dns.ts'
import type { FarEnd } from '../../../agent/wireguard/network.ts'
import { ManualClock } from '../../../core/clock.ts'
import { text, utf8 } from '../../../core/bytes.ts'
import { isTunnelError } from '../../../core/errors.ts'
import { Resolver } from '../../../core/resolver.ts'
import type { Conn } from '../../../core/socket.ts'
import { DnsServer } from '../../support/dns.ts'
import type { ZoneRecord } from '../../support/dns.ts'
import { bench, crypto, until } from '../../support/exit_bench.ts'
import { Namespace } from '../../support/namespace.ts'

const test = suite('agent/wireguard/exit')
let space: Namespace
const servers: Server[] = []

test.before(() => void (space = new Namespace('outside.test')))
test.after(() => {
  for (const server of servers) server.close()
  space.close()
})

function serve(host: string, port: number, accepted: (socket: Socket) => void): Promise<number> {
  const server = createServer((socket) => {
    socket.on('error', () => {})
    accepted(socket)
  })
  servers.push(server)
  return new Promise((resolve) =>
    server.listen(port, host, () => resolve((server.address() as AddressInfo).port))
  )
}

const refused = async (promise: Promise<unknown>, code: string): Promise<void> => {
  const error = await promise.then(() => undefined, (thrown) => thrown)
  assert.ok(isTunnelError(error, code as 'exit/denied'), `${code}: ${error}`)
}

const udp = (host: string): Promise<UdpSocket> =>
  new Promise((resolve) => {
    const socket = createSocket('udp4')
    socket.bind(0, host, () => resolve(socket))
  })

test('a name that changes its answer each time never leads past the policy', async () => {
  let [reached, secret] = [0, 0]
  const port = await serve(space.outside, 0, (socket) => {
    reached++
    socket.destroy()
  })
  await serve('127.0.0.1', port, (socket) => {
    secret++
    socket.destroy()
  })
  const dns = await DnsServer.start()
  const answers: ZoneRecord[][] = [
    [{ type: 'A', data: space.outside, ttl: 0 }],
    [{ type: 'A', data: '127.0.0.1', ttl: 0 }],
    [{ type: 'A', data: '127.0.0.1', ttl: 0 }, { type: 'A', data: space.outside, ttl: 0 }],
    [{ type: 'A', data: '0.0.0.0', ttl: 0 }],
  ]
  let asked = 0
  dns.zone.get = () => answers[asked++ % answers.length]
  dns.zone.set('evil.test', answers[0]!)
  const net = { udp: openUdp, connect } as Parameters<typeof dnsExchange>[0]['net']
  const files = { read: () => Promise.resolve(undefined) } as never
  const exchange = await dnsExchange({ net, clock: hostClock, files }, [dns.address])
  const resolver = new Resolver({ clock: hostClock, crypto, exchange }, { keeps: false })
  const dialled: string[] = []
  const made = bench({ loopback: false, own: true }, {
    ports: {
      net: {
        connect: (target) => {
          dialled.push((target as { host: string }).host)
          return connect(target)
        },
        lookup: async (name) => [...(await resolver.lookup(name, 'A')).values],
      },
    },
  })
  const client = made.exit.client('a')
  let denied = 0
  for (let i = 0; i < 40; i++) {
    try {
      const conn = await client.connect({ host: 'evil.test', port })
      conn.abort()
    } catch (error) {
      assert.ok(isTunnelError(error, 'exit/denied'), String(error))
      denied++
    }
  }
  assert.is(denied, 20)
  assert.equal([...new Set(dialled)], [space.outside], 'what was judged is what was dialled')
  assert.is(asked, 40, 'one look for each')
  await until(() => reached === 20)
  assert.is(secret, 0)
  assert.is(client.counts.denied, 20)
  await dns.close()
})

/** Sockets of the system that wait for an answer from the namespace. */
function synSent(): number {
  const [a, b, c, d] = space.inside.split('.').map((one) =>
    Number(one).toString(16).padStart(2, '0')
  )
  const far = `${d}${c}${b}${a}`.toUpperCase()
  return readFileSync('/proc/net/tcp', 'utf8').split('\n').filter((line) =>
    new RegExp(`^ *\\d+: \\S+ ${far}:\\S+ 02 `).test(line)
  ).length
}

test('a dead place takes its share of the dials and no more; another place and another client go on', async () => {
  const port = await serve(space.outside, 0, () => {})
  const limits = { dialsToOne: 4, dials: 6, dialsWaiting: 3 }
  const made = bench({ own: true }, { limits })
  // Nobody answers there, and nobody says so.
  const drop = 'add table inet d; add chain inet d i { type filter hook input priority 0; }'
  const nft = (rules: string): void =>
    void spawnSync('ip', ['netns', 'exec', space.name, 'nft', rules])
  nft(`${drop}; add rule inet d i drop`)
  const [one, two] = [made.exit.client('a'), made.exit.client('b')]
  const live = { host: space.outside, port }
  const dead = { host: space.inside, port: 9, timeoutMs: 600 }
  const waiting = Array.from({ length: 5 }, () => refused(one.connect(dead), 'net/timeout'))
  assert.is(one.counts.dials, 4, 'the fifth waits')
  await until(() => synSent() === 4)
  ;(await one.connect(live)).abort()
  const others = [10, 11].map((at) => refused(one.connect({ ...dead, port: at }), 'net/timeout'))
  assert.is(one.counts.dials, 6)
  // All turns are taken: the next ones wait until the dead have timed out, and then pass.
  const late = [one.connect(live), one.connect(live)]
  await refused(one.connect(live), 'exit/busy')
  ;(await two.connect(live)).abort()
  for (const conn of await Promise.all(late)) conn.abort()
  await Promise.all([...waiting, ...others])
  assert.is(one.counts.busy, 1)
  assert.is(one.counts.dials, 0)
  await until(() => synSent() === 0)
  nft('delete table inet d')
})

test('connections of one client are bounded, counted until they are over, and end with the client', async () => {
  let open = 0
  const port = await serve('127.0.0.1', 0, (socket) => {
    open++
    socket.on('close', () => open--)
  })
  const made = bench({}, { limits: { connections: 3 } })
  const client = made.exit.client('a')
  const conns: Conn[] = []
  for (let i = 0; i < 3; i++) conns.push(await client.connect({ host: '127.0.0.1', port }))
  await refused(client.connect({ host: '127.0.0.1', port }), 'exit/busy')
  conns[0]!.abort()
  assert.is(client.counts.connections, 2)
  const again = await client.connect({ host: '127.0.0.1', port })
  const ended = new Promise<void>((resolve) =>
    again.handle({ data() {}, end() {}, closed: () => resolve() })
  )
  client.close()
  await ended
  await until(() => open === 0)
  await refused(client.connect({ host: '127.0.0.1', port }), 'exit/busy')
  assert.is(made.exit.clients.has('a'), false)
})

test('the first address that answers is taken, dead and refused ones passed over', async () => {
  const port = await serve('127.0.0.1', 0, (socket) => socket.end('here'))
  const made = bench()
  made.names.set('many.test', ['::1', '127.0.0.9', '127.0.0.1'])
  const conn = await made.exit.client('a').connect({ host: 'many.test', port })
  const came: string[] = []
  await new Promise<void>((resolve) =>
    conn.handle({
      data: (bytes) => came.push(text(bytes)),
      end: () => conn.end(),
      closed: () => resolve(),
    })
  )
  assert.is(came.join(''), 'here')
})

test('datagrams: one port for all far ends, answers only from addresses that were sent to, and the policy', async () => {
  const made = bench({ own: true })
  const client = made.exit.client('a')
  const [first, second] = [await udp('127.0.0.1'), await udp('127.0.0.1')]
  const stranger = await udp(space.outside)
  const ports = new Set<number>()
  for (const socket of [first, second]) {
    socket.on('message', (bytes, from) => {
      ports.add(from.port)
      socket.send(`re ${bytes}`, from.port, from.address)
    })
  }
  const flow = await client.bindDatagrams()
  const came: [FarEnd, string][] = []
  let wake = (): void => {}
  flow.handle({
    message(from, bytes) {
      came.push([from, text(bytes)])
      wake()
    },
  })
  const ask = async (socket: UdpSocket, words: string): Promise<void> => {
    const coming = new Promise<void>((resolve) => wake = resolve)
    assert.ok(flow.send({ address: '127.0.0.1', port: socket.address().port }, utf8(words)))
    await coming
  }
  await ask(first, 'one')
  await ask(second, 'two')
  assert.is(ports.size, 1, 'one port for all (RFC 4787 REQ-1)')
  assert.equal(came.map(([, words]) => words), ['re one', 're two'])
  const [port] = ports
  // The system's port takes it; the flow does not.
  await new Promise((resolve) => stranger.send('stray', port!, space.outside, resolve))
  await ask(first, 'three')
  assert.equal(came.length, 3)
  assert.is(flow.send({ address: space.inside, port: 9 }, utf8('x')), true)
  assert.is(flow.send({ address: '192.0.2.1', port: 9 }, utf8('x')), false)
  assert.is(flow.send({ address: '224.0.0.251', port: 5353 }, utf8('x')), false)
  assert.is(flow.send({ address: 'localhost', port: 9 }, utf8('x')), false)
  assert.is(client.counts.denied, 2)
  flow.close()
  for (const socket of [first, second, stranger]) socket.close()
})

test('a flow lives while it sends, and is closed 5 minutes after it last did, however much comes in', async () => {
  const clock = new ManualClock()
  const made = bench({}, { ports: { clock }, limits: { flows: 2 } })
  const client = made.exit.client('a')
  const far = await udp('127.0.0.1')
  const to = { address: '127.0.0.1', port: far.address().port }
  const flow = await client.bindDatagrams()
  let closed = 0
  let inward = 0
  flow.handle({ message: () => inward++, closed: () => closed++ })
  await client.bindDatagrams()
  await refused(client.bindDatagrams(), 'exit/busy')
  for (let i = 0; i < 4; i++) {
    const coming = new Promise<{ port: number }>((resolve) =>
      far.once('message', (_, from) => resolve(from))
    )
    flow.send(to, utf8('x'))
    const { port } = await coming
    clock.advance(200_000)
    const before = inward
    far.send('y', port, '127.0.0.1')
    await until(() => inward > before)
  }
  assert.is(closed, 0)
  assert.is(client.counts.flows, 1, 'the silent one has gone')
  clock.advance(115_001)
  assert.is(closed, 1)
  assert.is(client.counts.flows, 0)
  assert.is(flow.send(to, utf8('x')), false)
  far.close()
})

test('a connection that carries nothing for 2 hours and 5 minutes is closed, another one is not', async () => {
  const clock = new ManualClock()
  const made = bench({}, { ports: { clock } })
  const client = made.exit.client('a')
  let echoed = 0
  const port = await serve('127.0.0.1', 0, (socket) => socket.pipe(socket))
  const [silent, busy] = [
    await client.connect({ host: '127.0.0.1', port }),
    await client.connect({ host: '127.0.0.1', port }),
  ]
  let closed = 0
  silent.handle({ data() {}, end() {}, closed: () => closed++ })
  busy.handle({ data: () => echoed++, end() {}, closed() {} })
  clock.advance(7_400_000)
  busy.write(utf8('x'))
  await until(() => echoed === 1)
  clock.advance(115_001)
  await until(() => closed === 1)
  assert.is(client.counts.connections, 1)
  client.close()
})

test('an echo: by a ping socket where it is granted, by the program elsewhere, and never past the policy', async () => {
  const root = fileURLToPath(new URL('../../..', import.meta.url))
  const script = `import { socketPing } from './agent/host/ping.ts'
    for (const to of ['127.0.0.1', '::1']) {
      const ms = await socketPing(to, { timeoutMs: 5000, bytes: 56 })
      if (!(ms >= 0 && ms < 5000)) throw new Error(to + ' ' + ms)
    }
    const none = await socketPing('127.0.0.1', { timeoutMs: 5000, bytes: 1400 })
    if (!(none >= 0)) throw new Error('large')
    console.log('echoed')`
  const run = (range: string): { out: string } => {
    spawnSync('ip', [
      'netns',
      'exec',
      space.name,
      'sysctl',
      '-qw',
      `net.ipv4.ping_group_range=${range}`,
    ])
    const { stdout, stderr } = spawnSync('ip', [
      'netns',
      'exec',
      space.name,
      process.execPath,
      '-e',
      script,
    ], {
      cwd: root,
      timeout: 30_000,
    })
    return { out: String(stdout) + String(stderr) }
  }
  assert.match(run('0 2147483647').out, /echoed/)
  assert.match(run('1 0').out, /undefined/)
  const ms = await programPing(hostPrograms, '127.0.0.1', { timeoutMs: 5_000, bytes: 56 })
  assert.ok(ms >= 0 && ms < 5_000)
  await refused(
    programPing(hostPrograms, space.inside + '%x', { timeoutMs: 1_000, bytes: 8 }),
    'net/unknown-host',
  )
  let sent = 0
  const made = bench({ loopback: false }, {
    ports: {
      ping: (address, options) => {
        sent++
        return socketPing(address, options).then((took) =>
          took ?? programPing(hostPrograms, address, options)
        )
      },
    },
  })
  await refused(made.exit.client('a').ping('127.0.0.1'), 'exit/denied')
  await refused(made.exit.client('a').ping('-f'), 'exit/denied')
  assert.is(sent, 0)
  assert.ok(await made.exit.client('a').ping(space.inside, { timeoutMs: 5_000 }) >= 0)
})

test('echoes of all clients have a bound, and a few clients leave room for others', async () => {
  let answer = (): void => {}
  const late = new Promise<number>((resolve) => answer = () => resolve(1))
  const made = bench({ loopback: true }, {
    ports: { ping: () => late },
    limits: { pings: 8, pingsOfAll: 16 },
  })
  const waits: Promise<number>[] = []
  for (const id of ['a', 'b', 'c']) {
    const client = made.exit.client(id)
    for (let i = 0; i < 16; i++) waits.push(client.ping('127.0.0.1'))
  }
  const turned = Promise.allSettled(waits).then((all) =>
    all.flatMap((one) => one.status === 'rejected' ? [one.reason.code] : [])
  )
  assert.ok(made.exit.pings < 16, 'there is room for one more')
  const another = made.exit.client('d').ping('127.0.0.1')
  answer()
  await another
  assert.equal([...new Set(await turned)], ['exit/busy'])
  assert.is(made.exit.pings, 0)
})

test.run()
