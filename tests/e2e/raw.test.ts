// seconds: 60
/**
 * Raw public ports: `sotto tcp` and `sotto udp` with `--e2ee=false`. The relay opens a port of its own
 * and passes bytes and datagrams on as they are, to protocols that bring their own encryption.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { createHash, randomBytes } from 'node:crypto'
import { createSocket } from 'node:dgram'
import type { Socket as UdpSocket } from 'node:dgram'
import { once } from 'node:events'
import { connect, createServer } from 'node:net'
import type { AddressInfo, Server } from 'node:net'
import { freePort } from '../support/port.ts'
import { E2eWorld } from '../support/world.ts'
import type { Relay } from '../support/world.ts'

const BULK_BYTES = 32 * 2 ** 20
const RUSH_VISITORS = 100
const PACKET_WAIT_MS = 10_000

let world: E2eWorld
let relay: Relay
let first: number
let last: number

const test = suite('e2e/raw')

test.before(async () => {
  world = new E2eWorld()
  first = await freePort()
  last = Math.min(first + 9, 65_535)
  relay = await world.relay(['--public-ports', `${first}-${last}`])
})

test.after(() => world.close())

async function listen(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  world.defer(() => server.close())
  return (server.address() as AddressInfo).port
}

function echo(): Promise<number> {
  return listen(createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => {})
    socket.pipe(socket)
  }))
}

/** Sends bytes to a port, half-closes, and gives what came back. */
function exchange(port: number, bytes: Uint8Array): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host: '127.0.0.1', port, allowHalfOpen: true })
    const parts: Buffer[] = []
    socket.on('data', (part: Buffer) => parts.push(part))
    socket.on('end', () => resolve(Buffer.concat(parts))).on('error', reject)
    socket.end(bytes)
  })
}

function refused(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host: '127.0.0.1', port })
    socket.on('connect', () => {
      socket.destroy()
      resolve(false)
    }).on('error', () => resolve(true))
  })
}

test('tcp: the port that was asked for carries bytes both ways and half-closes', async () => {
  const agent = await world.tunnel(relay, [
    ...['tcp', String(await echo()), '--name', 'raw', '--e2ee=false'],
    ...['--public-port', String(first)],
  ])
  assert.is(agent.up['mode'], 'raw')
  assert.is(agent.up['url'], `tcp://localhost:${first}`)
  assert.is(agent.up['certificate'], undefined)
  const words = Buffer.from('no TLS here\n')
  assert.equal(await exchange(first, words), words)
  const sent = randomBytes(BULK_BYTES)
  const got = await Promise.all([0, 1, 2, 3].map(() => exchange(first, sent)))
  const hash = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')
  assert.equal(got.map(hash), got.map(() => hash(sent)))
  const over = await agent.stop()
  assert.is(over.code, 143)
  // Nobody serves it: the port is closed again.
  assert.ok(await refused(first))
})

test('tcp: many visitors at once, each with its own bytes back', async () => {
  const agent = await world.tunnel(relay, [
    ...['tcp', String(await echo()), '--name', 'rush', '--e2ee=false'],
  ])
  const port = Number(agent.up['address'].split(':')[1])
  for (let round = 0; round < 3; round++) {
    await Promise.all(Array.from({ length: RUSH_VISITORS }, async (_, i) => {
      const sent = randomBytes(1 + i * 3000)
      assert.ok((await exchange(port, sent)).equals(sent), `visitor ${i}`)
    }))
  }
  assert.is((await agent.stop()).code, 143)
})

test('tcp: a server that speaks first, and a port that the relay chooses', async () => {
  const upstream = await listen(createServer((socket) => {
    socket.on('error', () => {})
    socket.write('220 welcome\r\n')
    socket.once('data', (part) => socket.end(`heard ${part}`))
  }))
  const agent = await world.tunnel(relay, [
    'tcp',
    String(upstream),
    '--name',
    'greeter',
    '--e2ee=false',
  ])
  const port = Number(agent.up['address'].split(':')[1])
  assert.ok(port >= first && port <= last, `${port}`)
  const socket = connect({ host: '127.0.0.1', port })
  let got = ''
  socket.setEncoding('utf8').on('data', (part) => {
    got += part
    if (got === '220 welcome\r\n') socket.write('HELO')
  })
  await once(socket, 'close')
  assert.is(got, '220 welcome\r\nheard HELO')
  await agent.stop()
})

test('tcp: ports outside of the range, and of somebody else, are refused with the reason', async () => {
  const outside = last < 65_000 ? last + 1 : first - 1
  const wrong = await world.sottoRun(
    ['tcp', '9', '--name', 'far', '--e2ee=false', '--public-port', String(outside)],
    { env: world.joins(relay) },
  )
  assert.is(wrong.code, 1)
  assert.match(wrong.stderr, new RegExp(`${outside}.*${first}|${first}.*${outside}`, 's'))
  const flags = ['--e2ee=false', '--public-port', String(first)]
  const agent = await world.tunnel(relay, ['tcp', '9', '--name', 'mine', ...flags])
  const second = await world.sottoRun(['tcp', '9', '--name', 'yours', ...flags], {
    home: 'other',
    env: world.joins(relay),
  })
  assert.is(second.code, 1, second.stdout)
  assert.match(second.stderr, /port/)
  await agent.stop()
})

test('tcp: an upstream that is down closes the visitor, and is told once', async () => {
  const agent = await world.tunnel(relay, [
    ...['tcp', String(await freePort()), '--name', 'down', '--e2ee=false'],
  ])
  const port = Number(agent.up['address'].split(':')[1])
  for (let i = 0; i < 3; i++) await exchange(port, Buffer.from('anybody?')).catch(() => {})
  await agent.event('trouble')
  assert.is(agent.stderr.match(/refused|Cannot connect|Cannot reach/gi)?.length, 1, agent.stderr)
  await agent.stop()
})

/** Sends until one answer fits: datagrams may be lost, also on one machine. */
async function ask(socket: UdpSocket, port: number, words: string): Promise<string> {
  const late = Date.now() + PACKET_WAIT_MS
  while (Date.now() < late) {
    socket.send(words, port, '127.0.0.1')
    const answer = await Promise.race([
      once(socket, 'message').then(([message]) => String(message)),
      Bun.sleep(500),
    ])
    if (answer?.endsWith(` ${words}`)) return answer
  }
  throw new Error(`no answer to ${words}`)
}

test('udp: datagrams both ways, each visitor a flow of its own', async () => {
  const upstream = createSocket('udp4')
  upstream.on(
    'message',
    (message, { port }) => upstream.send(`${port} ${message}`, port, '127.0.0.1'),
  )
  upstream.bind(0, '127.0.0.1')
  await once(upstream, 'listening')
  world.defer(() => upstream.close())
  const agent = await world.tunnel(relay, [
    ...['udp', String(upstream.address().port), '--name', 'wg', '--e2ee=false'],
    ...['--public-port', String(first + 1)],
  ])
  assert.is(agent.up['url'], `udp://localhost:${first + 1}`)
  const visitors = [createSocket('udp4'), createSocket('udp4')]
  try {
    const flows = new Set<string>()
    for (const [i, visitor] of visitors.entries()) {
      const one = await ask(visitor, first + 1, `packet ${i}`)
      const two = await ask(visitor, first + 1, `again ${i}`)
      assert.is(one.split(' ')[0], two.split(' ')[0])
      flows.add(one.split(' ')[0]!)
    }
    // The upstream tells them apart by the port that they come from.
    assert.is(flows.size, 2)
    const long = 'x'.repeat(1400)
    assert.match(await ask(visitors[0]!, first + 1, long), / x{1400}$/)
  } finally {
    for (const visitor of visitors) visitor.close()
  }
  assert.is((await agent.stop()).code, 143)
})

test('udp needs --e2ee=false, and says why', async () => {
  const got = await world.sottoRun(['udp', '51820'], { env: world.joins(relay) })
  assert.is(got.code, 2)
  assert.match(got.stderr, /--e2ee=false/)
})

test.run()
