/**
 * The agent's TCP, unix and UDP sockets on the real system: bytes, half-close, backpressure, and the
 * words for each way in which a connection fails.
 */
import { createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { once } from 'node:events'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { utf8 } from '../../core/bytes.ts'
import type { Conn, Listener } from '../../core/socket.ts'
import { Collector, pattern, testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'
import { rejection } from '../support/rejection.ts'

const test = suite('agent/net')
let t: TestWorld

test.before(async () => {
  t = await testWorld()
})
test.after(() => t.close())

/** A listener with the connections that it got, in order. */
async function accepting(): Promise<{ listener: Listener; next(): Promise<Conn> }> {
  const ready: Conn[] = []
  const waiting: ((conn: Conn) => void)[] = []
  const listener = await t.world.net.listen({ host: '127.0.0.1', port: 0 }, (conn) => {
    const take = waiting.shift()
    if (take) take(conn)
    else ready.push(conn)
  })
  return {
    listener,
    next: () => {
      const conn = ready.shift()
      return conn ? Promise.resolve(conn) : new Promise((resolve) => waiting.push(resolve))
    },
  }
}

for (const way of ['connect', 'connectDuplex'] as const) {
  test(`${way}() carries 8 MiB each way, and both half-closes`, async () => {
    const { listener, next } = await accepting()
    const near = new Collector(
      await t.world.net[way]({ host: '127.0.0.1', port: listener.port }),
    )
    const far = new Collector(await next())
    const forth = pattern(8_388_608, 3)
    const back = pattern(8_388_608, 5)
    await Promise.all([near.write(forth), far.write(back)])
    near.conn.end()
    assert.is(Buffer.compare(await far.ended, forth), 0)
    // The other direction goes on after the first one has ended.
    await far.write(utf8('and one thing more'))
    far.conn.end()
    assert.is((await near.ended).length, back.length + 18)
    assert.is(Buffer.compare((await near.ended).subarray(0, back.length), back), 0)
    assert.is(await near.closed, undefined)
    assert.is(await far.closed, undefined)
    await listener.close()
  })

  test(`${way}() says 'queued' to a sender whose peer does not read, and drains once it does`, async () => {
    const { listener, next } = await accepting()
    const near = new Collector(
      await t.world.net[way]({ host: '127.0.0.1', port: listener.port }),
    )
    const conn = await next()
    const far = new Collector(conn)
    conn.pause()
    const chunk = new Uint8Array(65_536)
    let sent = 0
    while (near.conn.write(chunk) === 'ok') sent += chunk.length
    sent += chunk.length
    assert.ok(near.conn.buffered() > 0 && near.conn.buffered() <= 2 * chunk.length)
    conn.resume()
    await far.until(sent)
    assert.ok(near.drains >= 1)
    near.conn.end()
    far.conn.end()
    await Promise.all([near.closed, far.closed])
    await listener.close()
  })

  test(`${way}() tells an abort from an end`, async () => {
    const { listener, next } = await accepting()
    const near = new Collector(
      await t.world.net[way]({ host: '127.0.0.1', port: listener.port }),
    )
    const far = new Collector(await next())
    far.conn.abort()
    assert.instance(await near.closed, Error)
    assert.is(near.conn.write(utf8('x')), 'lost')
    await listener.close()
  })

  test(`${way}() names what went wrong`, async () => {
    const { listener } = await accepting()
    const { port } = listener
    await listener.close()
    const connect = t.world.net[way]
    assert.is(await rejection(connect({ host: '127.0.0.1', port })), 'net/refused')
    assert.is(
      await rejection(connect({ host: 'no-such-host.invalid', port: 80 })),
      'net/unknown-host',
    )
    assert.is(await rejection(connect({ path: join(t.dir, 'no.sock') })), 'net/refused')
    // TEST-NET-1 (RFC 5737): no answer, no way there, or a gateway that refuses.
    assert.match(
      (await rejection(connect({ host: '192.0.2.1', port: 80, timeoutMs: 100 })))!,
      /^net\/(timeout|unreachable|denied|refused)$/,
    )
  })

  test(`${way}() speaks to unix sockets`, async () => {
    const path = join(t.dir, `${way}.sock`)
    const server = createServer((socket) => socket.pipe(socket))
    server.listen(path)
    await once(server, 'listening')
    const near = new Collector(await t.world.net[way]({ path }))
    near.conn.write(utf8('over a file'))
    await near.until(11)
    near.conn.end()
    assert.is(new TextDecoder().decode(await near.ended), 'over a file')
    server.close()
  })
}

test('connect() to localhost finds a server that listens on IPv6 alone', async () => {
  const server = createServer((socket) => socket.end('six'))
  server.listen(0, '::1')
  const [problem] = await Promise.race([
    once(server, 'listening').then(() => [undefined]),
    once(server, 'error'),
  ])
  // A machine without IPv6 has nothing to show here.
  if (problem) return
  const { port } = server.address() as AddressInfo
  const near = new Collector(await t.world.net.connect({ host: '[::1]', port }))
  near.conn.end()
  assert.is(new TextDecoder().decode(await near.ended), 'six')
  server.close()
})

test('listen() says that a port is taken, or an address is not here', async () => {
  const { listener } = await accepting()
  assert.is(
    await rejection(t.world.net.listen({ host: '127.0.0.1', port: listener.port }, () => {})),
    'net/in-use',
  )
  // For documentation (RFC 5737): no machine has it.
  const foreign = t.world.net.listen({ host: '192.0.2.1', port: 0 }, () => {})
  assert.is(await rejection(foreign), 'net/address')
  await listener.close()
})

test('lend() copies what does not go at once, and nothing is lost or changed', async () => {
  const { listener, next } = await accepting()
  const near = new Collector(await t.world.net.connect({ host: '127.0.0.1', port: listener.port }))
  const far = await next()
  const bytes = pattern(12_000_000, 7)
  const memory = new Uint8Array(200_000)
  let queued = 0
  const drained = (): Promise<void> => new Promise((resolve) => drain = resolve)
  let drain = (): void => {}
  far.handle({ data() {}, drain: () => drain(), end() {}, closed() {} })
  for (let at = 0; at < bytes.length;) {
    const piece = memory.subarray(0, Math.min(memory.length, bytes.length - at))
    piece.set(bytes.subarray(at, at + piece.length))
    at += piece.length
    const wait = drained()
    const sent = far.lend!(piece)
    memory.fill(255)
    assert.is.not(sent, 'lost')
    if (sent === 'ok') continue
    queued++
    // One more behind what waits.
    if (at < bytes.length) {
      piece.set(bytes.subarray(at, at + 10))
      at += 10
      assert.is(far.lend!(piece.subarray(0, 10)), 'queued')
      memory.fill(254)
    }
    await wait
  }
  far.end()
  assert.is(Buffer.compare(await near.ended, bytes), 0)
  assert.ok(queued > 0, 'the system took all at once')
  assert.is(far.lend!(memory), 'lost')
  near.conn.end()
  await listener.close()
})

test('give() frees a large buffer once it has gone, and only one that is whole', async () => {
  const { listener, next } = await accepting()
  const near = new Collector(await t.world.net.connect({ host: '127.0.0.1', port: listener.port }))
  const conn = await next()
  const far = new Collector(conn)
  const give = (bytes: Uint8Array): string => near.conn.give!(bytes)
  const small = pattern(1024)
  const part = pattern(100_000).subarray(10)
  const whole = pattern(65_536)
  const expected = Buffer.concat([small, part, whole])
  assert.equal([give(small), give(part), give(whole)], ['ok', 'ok', 'ok'])
  assert.equal([small.length, part.length, whole.length], [1024, 99_990, 0])
  await far.until(expected.length)
  assert.is(Buffer.compare(far.bytes, expected), 0)
  // One that is kept for a peer that does not read stays whole until it has gone.
  conn.pause()
  const parts: Uint8Array[] = [expected]
  let last: Uint8Array
  do {
    last = pattern(262_144, parts.length)
    parts.push(last.slice())
  } while (give(last) === 'ok')
  assert.is(last.length, 262_144)
  near.conn.end()
  conn.resume()
  assert.is(Buffer.compare(await far.ended, Buffer.concat(parts)), 0)
  assert.is(last.length, 0)
  far.conn.end()
  await Promise.all([near.closed, far.closed])
  await listener.close()
})

test('udp() carries datagrams both ways and hears that nobody listens', async () => {
  const far: Bun.udp.Socket<'uint8array'> = await Bun.udpSocket({
    hostname: '127.0.0.1',
    binaryType: 'uint8array',
    socket: { data: (_, bytes, port, address) => void far.send(bytes, port, address) },
  })
  const near = await t.world.net.udp({ host: '127.0.0.1', port: far.port })
  const got = await new Promise<Uint8Array>((resolve) => {
    near.handle({ message: resolve })
    near.send(pattern(1400))
  })
  assert.equal(new Uint8Array(got), pattern(1400))
  far.close()
  const refused = new Promise<Error | undefined>((resolve) =>
    near.handle({ message() {}, closed: resolve })
  )
  let open = true
  refused.then(() => (open = false))
  // The refusal comes as an answer to a datagram, so more than one may be needed.
  while (open) {
    near.send(utf8('anyone?'))
    await new Promise((resolve) => setImmediate(resolve))
  }
  assert.instance(await refused, Error)
  assert.is(near.send(utf8('x')), false)
  near.close()
})

test.run()
