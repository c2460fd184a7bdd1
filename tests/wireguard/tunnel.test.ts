// Streams, datagrams and echoes between two tunnels, joined by paths in memory.
// runtimes: bun node deno
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Flow, memoryPaths, Tunnel, WireGuardError } from '../../agent/wireguard-wasm/index.ts'
import type {
  Incoming,
  MemoryPath,
  Message,
  TunnelOptions,
} from '../../agent/wireguard-wasm/index.ts'
import { memoryConns, splice } from '../../core/socket.ts'
import type { Conn } from '../../core/socket.ts'
import { module } from '../support/wireguard.ts'

const test = suite('wireguard/tunnel')

interface Bed {
  a: Tunnel
  b: Tunnel
  paths: [MemoryPath, MemoryPath]
  close(): void
}

function bed(forB: Partial<TunnelOptions> = {}, forA: Partial<TunnelOptions> = {}): Bed {
  const make = (number: number, options: Partial<TunnelOptions>): Tunnel =>
    new Tunnel({
      module,
      privateKey: crypto.getRandomValues(new Uint8Array(32)),
      addresses: [`10.0.0.${number}`, `fd00::${number}`],
      receivePoolBytes: 4 * 2 ** 20,
      sendPoolBytes: 2 * 2 ** 20,
      reserveBytes: 0,
      ...options,
    })
  const [a, b] = [make(1, forA), make(2, forB)]
  const paths = memoryPaths()
  a.device.addPeer({
    publicKey: b.device.publicKey,
    allowedIps: ['0.0.0.0/0', '::/0'],
    endpoint: '192.0.2.2:51820',
  })
  b.device.addPeer({
    publicKey: a.device.publicKey,
    allowedIps: ['10.0.0.1/32', 'fd00::1/128'],
    endpoint: '192.0.2.1:51820',
  })
  a.addPath(0, paths[0])
  b.addPath(0, paths[1])
  return { a, b, paths, close: () => [a, b].forEach((tunnel) => tunnel.close()) }
}

/** Everything that comes until the end; ends its own direction then. */
function readAll(conn: Conn | Flow): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    const parts: Uint8Array[] = []
    conn.handle({
      data: (bytes) => void parts.push(bytes),
      end: () => conn.end(),
      closed: (error) => error ? reject(error) : resolve(joined(parts)),
    })
  })
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0))
  let at = 0
  for (const part of parts) {
    all.set(part, at)
    at += part.length
  }
  return all
}

function pattern(length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 7 + (i >> 8)) & 255)
}

for (const address of ['10.0.0.2', '203.0.113.9', 'fd00::2', '2001:db8::7']) {
  test(`a connection to ${address} carries bytes both ways and ends in good order`, async () => {
    let asked: Incoming | undefined
    const { a, close } = bed({
      onIncoming: (incoming) => {
        asked = incoming
        const flow = incoming.accept()!
        flow.handle({
          data: (bytes) => void flow.write(bytes),
          end: () => flow.end(),
          closed: () => {},
        })
      },
    })
    const flow = await a.connect({ address, port: 8080 })
    assert.equal([asked?.localAddress, asked?.localPort], [address, 8080])
    assert.equal([flow.remoteAddress, flow.remotePort], [address, 8080])
    const all = readAll(flow)
    flow.write(new TextEncoder().encode('hello '))
    flow.write(new TextEncoder().encode('there'))
    flow.end()
    assert.is(new TextDecoder().decode(await all), 'hello there')
    close()
  })
}

test('8 MiB pass a slow reader byte for byte, and no more waits than the buffers hold', async () => {
  const bytes = pattern(8 * 2 ** 20)
  let got: Promise<Uint8Array> | undefined
  let incoming!: Flow
  const { a, b, close } = bed({
    onIncoming: (asked) => {
      incoming = asked.accept()!
    },
  })
  const flow = await a.connect({ address: '10.0.0.2', port: 1 })
  const drained: Promise<void>[] = []
  let drain = (): void => {}
  flow.handle({ data: () => {}, drain: () => drain(), end: () => {}, closed: () => {} })
  for (let at = 0; at < bytes.length; at += 65_536) {
    const sent = flow.write(bytes.slice(at, at + 65_536))
    assert.is.not(sent, 'lost')
    if (sent === 'ok') continue
    const wait = new Promise<void>((resolve) => drain = resolve)
    drained.push(wait)
    if (!got) {
      // Nobody has read yet: both buffers are full, and nothing beyond them.
      assert.ok(at <= 2 * 2 ** 20, `${at} bytes went nowhere`)
      assert.ok(b.stats().bufferBytes <= 2 ** 20)
      got = readAll(incoming)
    }
    await wait
  }
  flow.end()
  incoming.end()
  assert.ok(drained.length > 0)
  assert.equal(await got!, bytes)
  close()
})

test('splice() joins a flow with another connection', async () => {
  const [near, far] = memoryConns()
  const { a, close } = bed({ onIncoming: (incoming) => void splice(incoming.accept()!, far) })
  const flow = await a.connect({ address: '192.168.1.100', port: 80 })
  const request = readAll(near)
  const bytes = pattern(300_000)
  const back = readAll(flow)
  flow.write(bytes)
  near.write(pattern(200_000))
  flow.end()
  assert.equal(await request, bytes)
  assert.equal(await back, pattern(200_000))
  close()
})

test('what is lent holds during the call; what is given is freed once the stack has it', async () => {
  const bytes = pattern(3 * 2 ** 20 + 17)
  const got = new Uint8Array(bytes.length)
  let kept: Uint8Array = new Uint8Array()
  let [at, waits] = [0, 0]
  let over!: () => void
  const all = new Promise<void>((resolve) => over = resolve)
  const { a, close } = bed({
    onIncoming: (asked) => {
      const flow = asked.accept()!
      flow.handle({
        data: () => assert.unreachable('it was lent'),
        lent: (view) => {
          got.set(view, at)
          at += view.length
          kept = view
          // A reader that is slow now and then.
          if (++waits % 5 === 0) {
            flow.pause()
            setTimeout(() => flow.resume(), 0)
          }
        },
        end: () => over(),
        closed: () => {},
      })
    },
  })
  const flow = await a.connect({ address: '10.0.0.2', port: 1 })
  let drain = (): void => {}
  flow.handle({ data: () => {}, drain: () => drain(), end: () => {}, closed: () => {} })
  for (let from = 0; from < bytes.length;) {
    const chunk = bytes.slice(from, from + 100_000)
    from += chunk.length
    const small = bytes.slice(from, from + 100)
    from += small.length
    const drained = new Promise<void>((resolve) => drain = resolve)
    const [sent, also] = [flow.give(chunk), flow.give(small)]
    if (sent === 'queued' || also === 'queued') await drained
    if (chunk.buffer.byteLength > 0) assert.ok(chunk.length < 16_384, 'a great buffer is freed')
    assert.is(small.buffer.byteLength, small.length)
  }
  flow.end()
  await all
  assert.equal(got, bytes)
  assert.is.not(kept.buffer.byteLength, kept.length)
  close()
})

test('a part of a buffer that is given leaves the rest alone', async () => {
  let got: Promise<Uint8Array> | undefined
  const { a, close } = bed({ onIncoming: (asked) => void (got = readAll(asked.accept()!)) })
  const flow = await a.connect({ address: '10.0.0.2', port: 1 })
  flow.handle({ data: () => {}, end: () => {}, closed: () => {} })
  const whole = pattern(64_000)
  flow.give(whole.subarray(0, 32_000))
  assert.equal(whole, pattern(64_000))
  flow.end()
  assert.equal(await got!, pattern(64_000).subarray(0, 32_000))
  close()
})

test('a flow that is refused says so, by reset or by a reason', async () => {
  const { a, close } = bed({ onIncoming: (incoming) => incoming.reject('reset') })
  try {
    await a.connect({ address: '10.0.0.2', port: 9 })
    assert.unreachable()
  } catch (error) {
    assert.is((error as WireGuardError).code, 'wireguard/flow')
  }
  close()
})

test('without a listener every connection is refused', async () => {
  const { a, close } = bed()
  const error = await a.connect({ address: '10.0.0.2', port: 9 }).catch((error) => error)
  assert.match(String(error), /reset/)
  close()
})

test('connect() gives up in time when nobody answers', async () => {
  const { a, paths, close } = bed()
  paths[0].isCut = true
  const error = await a.connect({ address: '10.0.0.2', port: 9, timeoutMs: 30 }).catch((e) => e)
  assert.match(String(error), /timed out/)
  assert.is(error.code, 'wireguard/flow')
  close()
})

test('connect() to a family without an address of ours is refused at once', async () => {
  const { a, close } = bed({}, { addresses: ['10.0.0.1'] })
  const error = await a.connect({ address: 'fd00::2', port: 9 }).catch((error) => error)
  assert.is(error.code, 'wireguard/flow')
  close()
})

test('abort() is an error at the other end and at once an end here', async () => {
  let other!: Flow
  const { a, close } = bed({ onIncoming: (incoming) => void (other = incoming.accept()!) })
  const flow = await a.connect({ address: '10.0.0.2', port: 9 })
  flow.write(new Uint8Array(10))
  await new Promise<void>((resolve) => {
    other.handle({ data: () => resolve(), end: () => {}, closed: () => {} })
  })
  const ended = new Promise<Error | undefined>((resolve) => {
    other.handle({ data: () => {}, end: () => {}, closed: resolve })
  })
  flow.abort()
  assert.is(flow.write(new Uint8Array(1)), 'lost')
  assert.instance(await ended, Error)
  close()
})

test('echo requests are answered, and echoes and datagrams pass with their ends', async () => {
  const came: Message[] = []
  let next = (): void => {}
  const { a, b, close } = bed({}, {
    onMessage: (message) => {
      came.push(message)
      next()
    },
  })
  const arrive = (): Promise<void> => new Promise((resolve) => next = resolve)
  const payload = pattern(56)
  for (const [source, destination] of [['10.0.0.1', '10.0.0.2'], ['fd00::1', 'fd00::2']] as const) {
    const wait = arrive()
    const ends = { source, destination, sourcePort: 77, destinationPort: 3 }
    assert.ok(a.send({ kind: 'echo-request', ...ends, payload }))
    await wait
    const { kind, source: from, sourcePort, destinationPort, payload: back } = came.pop()!
    assert.equal([kind, from, sourcePort, destinationPort], ['echo-reply', destination, 77, 3])
    assert.equal(back, payload)
  }
  const wait = arrive()
  const ends = {
    source: '203.0.113.1',
    destination: '10.0.0.1',
    sourcePort: 53,
    destinationPort: 999,
  }
  // Sources that are not the peer's are dropped on the way in; a takes all of b's.
  assert.ok(b.send({ kind: 'datagram', ...ends, payload: pattern(1200) }))
  await wait
  assert.equal(came.pop(), {
    kind: 'datagram',
    ...ends,
    payload: pattern(1200),
    reason: undefined,
    mtu: undefined,
    peer: 0,
  })
  close()
})

test('one turn sends all that is at hand, and further ones what does not fit it', async () => {
  const waiting: (() => void)[] = []
  let got = 0
  let done!: () => void
  const all = new Promise<void>((resolve) => done = resolve)
  const count = 5_000
  const { a, paths: [path], close } = bed(
    { onMessage: () => void (++got === count + 1 && done()) },
    { soon: (run) => void waiting.push(run) },
  )
  const sends: number[] = []
  const send = path.send.bind(path)
  path.send = (batch, from = 0, to = batch.count) => {
    sends.push(to - from)
    return send(batch, from, to)
  }
  const message = {
    kind: 'datagram' as const,
    source: '10.0.0.1',
    destination: '10.0.0.2',
    sourcePort: 1,
    destinationPort: 2,
    payload: new Uint8Array(100),
  }
  const settle = async (isDone: () => boolean): Promise<void> => {
    while (!isDone()) {
      for (const run of waiting.splice(0)) run()
      await new Promise((resolve) => setTimeout(resolve, 1))
    }
  }
  a.send(message)
  await settle(() => got === 1)
  for (const run of waiting.splice(0)) run()
  sends.length = 0
  for (let i = 0; i < 3; i++) assert.ok(a.send(message))
  assert.equal([waiting.length, sends.length], [1, 0])
  waiting.pop()!()
  assert.is(sends.length, 1)
  // More than a turn takes: none is refused.
  for (let i = 3; i < count; i++) assert.ok(a.send(message), `the one numbered ${i}`)
  await settle(() => got === count + 1)
  await all
  close()
})

test('an error about a datagram comes to who sent it', async () => {
  let told: (message: Message) => void = () => {}
  const { a, b, close } = bed({
    onMessage: (message) => void b.send({ ...message, kind: 'unreachable', reason: 'port' }),
  }, { onMessage: (message) => told(message) })
  const answer = new Promise<Message>((resolve) => told = resolve)
  const ends = { source: '10.0.0.1', destination: '10.0.0.2', sourcePort: 5, destinationPort: 7 }
  a.send({ kind: 'datagram', ...ends, payload: pattern(100) })
  const { kind, reason, source, sourcePort, destinationPort } = await answer
  assert.equal([kind, reason, source, sourcePort, destinationPort], [
    'unreachable',
    'port',
    '10.0.0.1',
    5,
    7,
  ])
  close()
})

test('a lost instance ends its flows, and new ones follow', async () => {
  const flows: Flow[] = []
  const { a, close } = bed({ onIncoming: (incoming) => void flows.push(incoming.accept()!) })
  const flow = await a.connect({ address: '10.0.0.2', port: 9 })
  const ended = new Promise<Error | undefined>((resolve) => {
    flow.handle({ data: () => {}, end: () => {}, closed: resolve })
  })
  await new Promise((resolve) => setTimeout(resolve, 30))
  new Uint8Array(a.device.inbox.bytes.buffer).fill(0xff)
  a.wake()
  assert.is(((await ended) as WireGuardError).code, 'wireguard/trapped')
  const again = await a.connect({ address: '10.0.0.2', port: 10 })
  assert.is(again.remotePort, 10)
  assert.is(a.device.stats().restarts, 1)
  close()
})

test.run()
