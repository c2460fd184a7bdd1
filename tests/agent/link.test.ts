/**
 * The link's WebSocket against a real server over TLS. The certificate told is the one that this
 * connection got; a swap between looking and connecting fails; messages, pings, backpressure, closing.
 */
import { createServer } from 'node:https'
import type { Server } from 'node:https'
import { createServer as createPlain } from 'node:http'
import { connect as connectTcp, createServer as createTcp } from 'node:net'
import type { AddressInfo, Socket as NetSocket } from 'node:net'
import { once } from 'node:events'
import { WebSocketServer } from 'ws'
import type { WebSocket as PeerSocket } from 'ws'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { FRAME_BYTES_MAX } from '../../core/frame.ts'
import type { Socket } from '../../core/socket.ts'
import { makeCertificate } from '../../agent/certificate.ts'
import { readWelcome } from '../../agent/link.ts'
import type { TlsIdentity } from '../../agent/world.ts'
import { pattern, testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'
import { rejection } from '../support/rejection.ts'

const test = suite('agent/link')
let t: TestWorld
let identity: TlsIdentity
let other: TlsIdentity

test.before(async () => {
  t = await testWorld()
  identity = await makeCertificate(t.world, { name: 'localhost', use: 'server' })
  other = await makeCertificate(t.world, { name: 'localhost', use: 'server' })
})
test.after(() => t.close())

interface Relay {
  url: string
  server: Server
  peers: PeerSocket[]
  sockets: NetSocket[]
  seen: { path: string; protocol: string; headers: Record<string, unknown> }[]
  peer(): Promise<PeerSocket>
  close(): Promise<void>
}

async function relay(pair: TlsIdentity = identity, protocol = 'sotto.v1'): Promise<Relay> {
  const server = createServer({ cert: pair.cert, key: pair.key })
  const web = new WebSocketServer({
    server,
    handleProtocols: (offered) => offered.has(protocol) ? protocol : false,
    perMessageDeflate: true,
    maxPayload: 1 << 24,
  })
  const r: Relay = {
    url: '',
    server,
    peers: [],
    sockets: [],
    seen: [],
    async peer() {
      while (r.peers.length === 0) await once(web, 'connection')
      return r.peers[0]!
    },
    async close() {
      for (const peer of r.peers) peer.terminate()
      web.close()
      server.close()
      server.closeAllConnections()
    },
  }
  server.on('secureConnection', (socket) => void r.sockets.push(socket))
  web.on('connection', (peer, request) => {
    r.peers.push(peer)
    r.seen.push({
      path: request.url ?? '',
      protocol: peer.protocol + ' ' + peer.extensions,
      headers: request.headers,
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  r.url = `wss://localhost:${(server.address() as AddressInfo).port}/v1/link/key`
  return r
}

/** A socket with everything that it said. */
class Heard {
  readonly socket: Socket
  readonly messages: Uint8Array[] = []
  bytes = 0
  drains = 0
  alive = 0
  readonly closed: Promise<{ code: number; reason: string }>
  #changed: (() => void)[] = []

  constructor(socket: Socket) {
    this.socket = socket
    this.closed = new Promise((resolve) =>
      socket.handle({
        message: (bytes) => {
          this.messages.push(bytes)
          this.bytes += bytes.length
          this.#tell()
        },
        drain: () => {
          this.drains++
          this.#tell()
        },
        alive: () => {
          this.alive++
          this.#tell()
        },
        closed: (code, reason) => resolve({ code, reason }),
      })
    )
  }

  #tell(): void {
    for (const resolve of this.#changed.splice(0)) resolve()
  }

  async until(holds: () => boolean): Promise<void> {
    while (!holds()) await new Promise<void>((resolve) => this.#changed.push(resolve))
  }
}

test('open() tells the certificate of this connection, self-signed, and speaks sotto.v1 without compression', async () => {
  const r = await relay()
  const { socket, certificate } = await t.world.link.open(r.url, {
    trust: 'admission',
    headers: { 'x-test': 'yes' },
  })
  assert.equal(certificate, t.world.tls.inspect(identity).fingerprint)
  await r.peer()
  assert.is(r.seen[0]!.path, '/v1/link/key')
  assert.is(r.seen[0]!.protocol, 'sotto.v1 ')
  assert.is(r.seen[0]!.headers['x-test'], 'yes')
  socket.terminate()
  await r.close()
})

/** A port in front of two relays: connections up to `switchAfter` reach the first, later ones the second. */
async function between(first: Relay, second: Relay, switchAfter: number): Promise<{
  url: string
  close(): void
}> {
  let count = 0
  const server = createTcp((socket) => {
    const to = ++count <= switchAfter ? first : second
    const target = connectTcp(Number(new URL(to.url).port), '127.0.0.1')
    for (const [from, into] of [[socket, target], [target, socket]] as const) {
      from.on('error', () => into.destroy())
      from.pipe(into)
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  return { url: `wss://localhost:${port}/v1/link/key`, close: () => void server.close() }
}

test('open() follows a relay that has a new certificate, and tells that one', async () => {
  const [old, renewed] = [await relay(), await relay(other)]
  // One connection looks, one is the link, and from then on the new certificate is shown.
  const front = await between(old, renewed, 2)
  const before = await t.world.link.open(front.url, { trust: 'admission' })
  assert.equal(before.certificate, t.world.tls.inspect(identity).fingerprint)
  const after = await t.world.link.open(front.url, { trust: 'admission' })
  assert.equal(after.certificate, t.world.tls.inspect(other).fingerprint)
  before.socket.terminate()
  after.socket.terminate()
  front.close()
  await Promise.all([old.close(), renewed.close()])
})

test('open() refuses a certificate that is swapped between the look and the connection', async () => {
  const [honest, swapped] = [await relay(), await relay(other)]
  const front = await between(honest, swapped, 1)
  assert.is(await rejection(t.world.link.open(front.url, { trust: 'admission' })), 'link/untrusted')
  assert.is(honest.peers.length + swapped.peers.length, 0)
  front.close()
  await Promise.all([honest.close(), swapped.close()])
})

test('open() by CA refuses a self-signed certificate, unless it is the one that is trusted', async () => {
  const r = await relay()
  assert.is(await rejection(t.world.link.open(r.url, { trust: 'ca' })), 'link/untrusted')
  const { socket, certificate } = await t.world.link.open(r.url, {
    trust: 'ca',
    ca: [identity.cert],
  })
  assert.equal(certificate, t.world.tls.inspect(identity).fingerprint)
  socket.terminate()
  const elsewhere = r.url.replace('localhost', '127.0.0.1')
  assert.is(
    await rejection(t.world.link.open(elsewhere, { trust: 'ca', ca: [identity.cert] })),
    'link/untrusted',
  )
  await r.close()
})

test('open() names every other failure', async () => {
  const plain = createPlain((_, response) => {
    response.writeHead(429)
    response.end()
  })
  plain.on('upgrade', (request, socket) => {
    if (request.url === '/silent') return
    socket.end('HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n')
  })
  plain.listen(0, '127.0.0.1')
  await once(plain, 'listening')
  const { port } = plain.address() as AddressInfo
  const open = (url: string, timeoutMs = 5000): Promise<string | undefined> =>
    rejection(t.world.link.open(url, { trust: 'ca', timeoutMs }))
  try {
    await t.world.link.open(`ws://127.0.0.1:${port}/`, { trust: 'ca' })
    assert.unreachable('it was opened')
  } catch (error) {
    assert.match((error as Error).message, /status 503/)
  }
  assert.is(await open(`ws://127.0.0.1:${port}/silent`, 100), 'link/timeout')
  assert.is(await open(`wss://127.0.0.1:${port}/`), 'link/tls')
  plain.close()
  plain.closeAllConnections()
  assert.is(await open(`ws://127.0.0.1:${port}/`), 'net/refused')
  assert.is(await open('ws://no-such-host.invalid/'), 'net/unknown-host')
  const r = await relay(identity, 'another.protocol')
  const refused = t.world.link.open(r.url, { trust: 'admission' })
  assert.is(await rejection(refused), 'link/refused')
  await r.close()
})

test('messages of 1 byte and of a whole frame pass unchanged both ways', async () => {
  const r = await relay()
  const { socket } = await t.world.link.open(r.url, { trust: 'admission' })
  const heard = new Heard(socket)
  const peer = await r.peer()
  peer.on('message', (bytes) => peer.send(bytes))
  for (const length of [1, 5, 65_541]) {
    const message = pattern(length, length)
    assert.is(socket.send(message), 'ok')
    const count = heard.messages.length + 1
    await heard.until(() => heard.messages.length === count)
    assert.equal(new Uint8Array(heard.messages.at(-1)!), message)
  }
  socket.close(1000, 'done')
  assert.equal(await heard.closed, { code: 1000, reason: 'done' })
  await r.close()
})

test('nothing that came before handle() is lost', async () => {
  const r = await relay()
  const { socket } = await t.world.link.open(r.url, { trust: 'admission' })
  const peer = await r.peer()
  await new Promise((resolve) => peer.send(pattern(9), resolve))
  const heard = new Heard(socket)
  await heard.until(() => heard.messages.length === 1)
  assert.equal(new Uint8Array(heard.messages[0]!), pattern(9))
  socket.terminate()
  await r.close()
})

test('a ping is answered, and the answer is a sign of life', async () => {
  const r = await relay()
  const { socket } = await t.world.link.open(r.url, { trust: 'admission' })
  const heard = new Heard(socket)
  socket.ping!()
  await heard.until(() => heard.alive === 1)
  assert.is(heard.messages.length, 0)
  socket.terminate()
  await r.close()
})

for (
  const [what, message] of [
    ['a text message', 'text'],
    ['a message longer than a frame', new Uint8Array(FRAME_BYTES_MAX + 1)],
  ] as const
) {
  test(`${what} ends the link with 4400`, async () => {
    const r = await relay()
    const { socket } = await t.world.link.open(r.url, { trust: 'admission' })
    const heard = new Heard(socket)
    const peer = await r.peer()
    const closed = once(peer, 'close')
    peer.send(message)
    assert.is((await closed)[0], 4400)
    assert.is((await heard.closed).code, 4400)
    assert.is(heard.messages.length, 0)
    await r.close()
  })
}

test("send() says 'queued' to a sender whose peer stalls, drains when it goes on, and keeps every byte", async () => {
  const r = await relay()
  const { socket } = await t.world.link.open(r.url, { trust: 'admission' })
  const heard = new Heard(socket)
  const peer = await r.peer()
  let received = 0
  peer.on('message', (bytes: Uint8Array) => {
    received += bytes.length
    peer.send(new Uint8Array(1))
  })
  peer.pause()
  const message = pattern(65_536)
  let sent = 0
  for (;;) {
    sent++
    if (socket.send(message) === 'queued') break
    assert.ok(sent < 1024, 'a stalled peer took 64 MiB')
  }
  assert.ok(socket.buffered() > 0 && socket.buffered() <= 1_048_576, `${socket.buffered()}`)
  assert.is(heard.drains, 0)
  peer.resume()
  await heard.until(() => heard.drains === 1 && heard.messages.length === sent)
  assert.is(received, sent * message.length)
  assert.is(socket.buffered(), 0)
  socket.terminate()
  await r.close()
})

test('send() that ignores a stall loses the link before 32 MiB wait', async () => {
  const r = await relay()
  const { socket } = await t.world.link.open(r.url, { trust: 'admission' })
  const heard = new Heard(socket)
  const peer = await r.peer()
  peer.pause()
  const message = pattern(65_536)
  let sent = 0
  while (socket.send(message) !== 'lost') assert.ok(++sent < 512)
  assert.is((await heard.closed).code, 1006)
  assert.is(socket.buffered(), 0)
  await r.close()
})

test('pause() stops a flood at its sender', async () => {
  const r = await relay()
  const { socket } = await t.world.link.open(r.url, { trust: 'admission' })
  const heard = new Heard(socket)
  socket.pause!()
  const peer = await r.peer()
  const flood = 32_768_000
  for (let i = 0; i < 500; i++) peer.send(new Uint8Array(65_536))
  while (peer.bufferedAmount === 0) await new Promise((resolve) => setImmediate(resolve))
  assert.ok(heard.bytes < flood / 2, `${heard.bytes} bytes came in spite of the pause`)
  socket.resume!()
  await heard.until(() => heard.bytes === flood)
  socket.terminate()
  await r.close()
})

test('terminate() is heard at once, also when the peer hangs', async () => {
  const r = await relay()
  const { socket } = await t.world.link.open(r.url, { trust: 'admission' })
  const heard = new Heard(socket)
  const peer = await r.peer()
  peer.pause()
  socket.terminate()
  assert.is((await heard.closed).code, 1006)
  assert.is(socket.send(new Uint8Array(1)), 'lost')
  await r.close()
})

test('a close by the relay is heard with its code and reason', async () => {
  const r = await relay()
  const { socket } = await t.world.link.open(r.url, { trust: 'admission' })
  const heard = new Heard(socket)
  const peer = await r.peer()
  peer.close(4403, 'revoked')
  assert.equal(await heard.closed, { code: 4403, reason: 'revoked' })
  await r.close()
})

test('attack: a welcome whose domains are paths is none', () => {
  const good = {
    ...{
      link: 'a'.repeat(32),
      scope: 'ana',
      secure: 'secure.relay.example',
      apps: 'apps.localhost',
    },
    ...{
      port: 443,
      scheme: 'https',
      window: 1,
      streams: 1,
      bulk: 1,
      can: [],
      address: '',
      version: '',
    },
  }
  assert.is(readWelcome(good).secure, 'secure.relay.example')
  for (
    const secure of [
      '/../../../.config/sotto/settings',
      'a..b',
      '..',
      '',
      'a.b/',
      'a\\b',
      'A.example',
      'a\n.b',
      7,
    ]
  ) {
    for (const field of ['secure', 'apps']) {
      assert.throws(
        () => readWelcome({ ...good, [field]: secure }),
        /found no good "(secure|apps)"/,
      )
    }
  }
})

test('a relay that vanishes is heard', async () => {
  const r = await relay()
  const { socket } = await t.world.link.open(r.url, { trust: 'admission' })
  const heard = new Heard(socket)
  await r.peer()
  for (const raw of r.sockets) raw.destroy()
  assert.is((await heard.closed).code, 1006)
  await r.close()
})

test.run()
