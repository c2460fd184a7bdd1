/**
 * The WebSocket that a link has inside a proxy's tunnel: every length passes whole in both directions
 * against the runtime's own server, and a server that breaks RFC 6455 gets nothing but an end.
 */
import { createHash } from 'node:crypto'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { encodeMasked, openOver } from '../../agent/host/conn_websocket.ts'
import { connectDuplex } from '../../agent/host/tcp.ts'
import { concat, EMPTY, utf8 } from '../../core/bytes.ts'
import type { TunnelError } from '../../core/errors.ts'
import { FRAME_BYTES_MAX } from '../../core/frame.ts'
import { memoryConns } from '../../core/socket.ts'
import type { Conn, Socket } from '../../core/socket.ts'
import { Collector, pattern } from '../support/agent_world.ts'

const test = suite('agent/conn_websocket')

interface Heard {
  messages: Uint8Array[]
  closed: Promise<{ code: number; reason: string }>
  /** Resolves when so many have come. */
  until(count: number): Promise<void>
}

function hear(socket: Socket): Heard {
  const messages: Uint8Array[] = []
  let look = (): void => {}
  return {
    messages,
    closed: new Promise((resolve) => {
      socket.handle({
        message(bytes) {
          messages.push(bytes)
          look()
        },
        closed: (code, reason) => resolve({ code, reason }),
      })
    }),
    until: (count) =>
      new Promise((resolve) => {
        look = () => messages.length >= count && resolve()
        look()
      }),
  }
}

test('messages of every length class pass both ways, and a drain follows what was queued', async () => {
  const server = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    fetch(request, server) {
      const headers = { 'Sec-WebSocket-Protocol': 'sotto.v1' }
      if (server.upgrade(request, { headers })) return
      return new Response('no', { status: 400 })
    },
    websocket: {
      maxPayloadLength: FRAME_BYTES_MAX,
      backpressureLimit: 1 << 30,
      message: (ws, message) => void ws.send(message),
    },
  })
  try {
    const target = { host: '127.0.0.1', port: server.port! }
    const { socket, certificate } = await openOver(`ws://127.0.0.1:${server.port}/v1/link/x`, {
      trust: 'admission',
      carrier: () => connectDuplex(target),
    })
    assert.is(certificate, undefined)
    const heard = hear(socket)
    const sizes = [0, 1, 3, 4, 5, 124, 125, 126, 127, 65_534, 65_535, FRAME_BYTES_MAX]
    const sent = sizes.map((size, i) => pattern(size, i + 1))
    for (const bytes of sent) assert.is.not(socket.send(bytes), 'lost')
    socket.ping!()
    await heard.until(sent.length)
    assert.equal(heard.messages.map((one) => Buffer.from(one)), sent.map((one) => Buffer.from(one)))
    socket.close(1000, 'done')
    assert.equal(await heard.closed, { code: 1000, reason: 'done' })
    assert.is(socket.send(EMPTY), 'lost')
  } finally {
    server.stop(true)
  }
})

/** The far end of an open that answers so; undefined: rightly. */
async function open(answer?: (key: string) => string): Promise<{ socket: Socket; far: Conn }> {
  const [near, far] = memoryConns()
  const seen = new Collector(far)
  const opening = openOver('ws://relay.example/v1/link/x', {
    trust: 'admission',
    carrier: () => Promise.resolve(near),
  })
  opening.catch(() => {})
  await seen.until(1)
  const key = /Sec-WebSocket-Key: (\S+)/.exec(seen.text)![1]!
  far.write(utf8(answer ? answer(key) : accept(key)))
  const { socket } = await opening
  return { socket, far }
}

function accept(key: string): string {
  const hash = createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`)
  return [
    'HTTP/1.1 101 Switching Protocols',
    'Upgrade: WebSocket',
    'Connection: keep-alive, Upgrade',
    `Sec-WebSocket-Accept: ${hash.digest('base64')}`,
    'Sec-WebSocket-Protocol: sotto.v1',
    '\r\n',
  ].join('\r\n')
}

async function refusal(answer: (key: string) => string): Promise<string> {
  try {
    await open(answer)
    return 'none'
  } catch (error) {
    return (error as TunnelError).code
  }
}

test('an answer that is no right upgrade opens nothing', async () => {
  const wrong: ((key: string) => string)[] = [
    () => 'HTTP/1.1 403 Forbidden\r\n\r\n',
    () => 'HTTP/1.1 200 OK\r\n\r\n',
    () => 'garbage\r\n\r\n',
    (key) => accept(key).replace(/Accept: ./, 'Accept: _'),
    (key) => accept(key).replace('Upgrade: WebSocket', 'Upgrade: h2c'),
    (key) => accept(key).replace('keep-alive, Upgrade', 'keep-alive'),
    (key) => accept(key).replace('sotto.v1', 'other'),
    (key) => accept(key).replace('Sec-WebSocket-Protocol: sotto.v1\r\n', ''),
    (key) => accept(key).replace('\r\n\r\n', '\r\nSec-WebSocket-Extensions: x\r\n\r\n'),
    () => `HTTP/1.1 101 x\r\nX: ${'y'.repeat(20_000)}`,
  ]
  for (const answer of wrong) assert.is(await refusal(answer), 'link/refused', `${answer}`)
})

const frame = (first: number, payload: Uint8Array): Uint8Array =>
  concat(Uint8Array.from([first, payload.length]), payload)

test('frames in pieces and messages in fragments become whole messages', async () => {
  const { socket, far } = await open()
  const heard = hear(socket)
  const big = pattern(40_000)
  const head = Uint8Array.from([0x82, 126, big.length >> 8, big.length & 255])
  const all = concat(
    frame(0x02, utf8('he')),
    frame(0x89, utf8('alive')),
    frame(0x00, EMPTY),
    frame(0x80, utf8('llo')),
    head,
    big,
    frame(0x82, EMPTY),
  )
  for (let at = 0; at < all.length; at += at < 64 ? 1 : 997) {
    far.write(all.slice(at, at < 64 ? at + 1 : at + 997))
  }
  await heard.until(3)
  assert.is(Buffer.from(heard.messages[0]!).toString(), 'hello')
  assert.equal(Buffer.from(heard.messages[1]!), Buffer.from(big))
  assert.is(heard.messages[2]!.length, 0)
  socket.terminate()
  assert.is((await heard.closed).code, 1006)
})

test('what breaks the protocol is closed, and nothing behind it is taken', async () => {
  const wrong: Uint8Array[] = [
    frame(0x81, utf8('text')),
    frame(0xc2, utf8('x')),
    Uint8Array.from([0x82, 0x81, 1, 2, 3, 4, 5]),
    frame(0x80, utf8('continues nothing')),
    concat(frame(0x02, utf8('a')), frame(0x82, utf8('b'))),
    frame(0x09, utf8('a ping in pieces')),
    Uint8Array.from([0x89, 126, 0, 126]),
    frame(0x83, utf8('no such opcode')),
    frame(0x8b, utf8('no such control')),
    Uint8Array.from([0x82, 127, 0, 0, 0, 1, 0, 0, 0, 0]),
    Uint8Array.from([0x82, 127, 255, 255, 255, 255, 255, 255, 255, 255]),
  ]
  for (const bytes of wrong) {
    const { socket, far } = await open()
    const heard = hear(socket)
    far.write(concat(bytes, frame(0x82, utf8('behind it'))))
    const seen = new Collector(far)
    // The close frame of RFC 6455 §5.5.1.
    await seen.until(1)
    far.end()
    assert.is((await heard.closed).code, 1006)
    assert.equal(heard.messages, [], Buffer.from(bytes).toString('hex'))
  }
})

test('encodeMasked() masks by a key of its own, and what it was given stays as it was', () => {
  const payload = pattern(1000)
  const before = payload.slice()
  const one = encodeMasked(2, payload)
  const two = encodeMasked(2, payload)
  assert.equal(Buffer.from(payload), Buffer.from(before))
  assert.not.equal(Buffer.from(one), Buffer.from(two))
  assert.is(one[0], 0x82)
  assert.is(one[1], 0x80 | 126)
  const mask = one.subarray(4, 8)
  const plain = one.subarray(8).map((byte, i) => byte ^ mask[i & 3]!)
  assert.equal(Buffer.from(plain), Buffer.from(before))
})

test.run()
