// A relay's answers, however they are cut and framed; and that an operator's key reaches the relay that
// was pinned and nobody who stands in between.
import { createServer } from 'node:tls'
import type { AddressInfo } from 'node:net'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import fc from 'fast-check'
import { parseResponse, RelayApi } from '../../agent/relay_api.ts'
import { checkAllow, claimedKeys } from '../../agent/guests.ts'
import { join } from '../../agent/join.ts'
import { makeCertificate } from '../../agent/certificate.ts'
import { TunnelError } from '../../core/errors.ts'
import { formatKey, generateIdentity } from '../../core/key.ts'
import { text, utf8 } from '../../core/bytes.ts'
import { serverIdentity, testWorld } from '../support/agent_world.ts'
import { Scene } from '../support/scene.ts'

const test = suite('agent/relay_api')
const read = (words: string) => parseResponse(utf8(words), 'relay.example')

test('parseResponse() reads bodies by length, by chunks and by the end', () => {
  const table: [string, number, string][] = [
    ['HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more', 200, 'hello'],
    ['HTTP/1.1 204 No Content\r\n\r\n', 204, ''],
    ['HTTP/1.0 404\r\n\r\nall of it', 404, 'all of it'],
    [
      'HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n',
      200,
      'hello!',
    ],
  ]
  for (const [words, status, body] of table) {
    const answer = read(words)
    assert.equal([answer.status, text(answer.body)], [status, body], words)
  }
})

test('parseResponse() refuses what breaks off or is something else', () => {
  for (
    const words of [
      '',
      'HTTP/1.1 200 OK\r\n',
      'SSH-2.0-OpenSSH\r\n\r\n',
      'HTTP/2 200\r\n\r\n',
      'HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello',
      'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel',
      'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n',
      'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\nx\r\n',
      'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n',
    ]
  ) {
    assert.throws(() => read(words), (error: TunnelError) => error.code === 'relay/answer', words)
  }
})

test('parseResponse() throws nothing outside the family, whatever comes', () => {
  const parts = ['HTTP/1.1 200 OK\r\n', 'Transfer-Encoding: chunked\r\n', '\r\n', '5\r\n', '0\r\n']
  fc.assert(
    fc.property(fc.array(fc.oneof(fc.constantFrom(...parts), fc.string())), (words) => {
      try {
        read(words.join(''))
      } catch (error) {
        assert.instance(error, TunnelError)
      }
    }),
    { numRuns: 2000 },
  )
})

test('an answer is whole or refused at every cut', () => {
  const whole =
    'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\n'
  assert.is(text(read(whole).body), 'hello0123456789abcdef')
  // The line feed of the last chunk's line is the last byte that is needed.
  for (let cut = 0; cut < whole.length; cut++) assert.throws(() => read(whole.slice(0, cut)))
})

test('a machine in the middle, even with the name right, gets no key', async () => {
  const scene = await Scene.make()
  const t = await testWorld({ SOTTO_HOME: scene.place.home('host') })
  const heard: string[] = []
  const relay = await scene.relay()
  // It answers the WebSocket with the true relay's challenge out of reach: all it has is TLS of its own.
  const { cert, key } = await serverIdentity(t.world, 'localhost')
  const middle = createServer({ cert, key }, (socket) => {
    socket.on('error', () => {})
    socket.on('data', (bytes) => {
      heard.push(bytes.toString('latin1'))
      socket.end('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}')
    })
  })
  await new Promise<void>((resolve) => middle.listen(0, '127.0.0.1', resolve))
  const { port } = middle.address() as AddressInfo
  try {
    for (const argv of [['relay', 'keys', 'list'], ['relay', 'names', 'list'], ['status']]) {
      const { code, stderr } = await scene.place.run('host', argv, {
        env: { SOTTO_RELAY: `https://localhost:${port}`, SOTTO_ADMIN_KEY: 'ak_admin_secret' },
      })
      assert.is(code, 1, argv.join(' '))
      assert.ok(stderr.text.length > 0)
    }
    assert.ok(heard.length > 0, 'it was asked')
    assert.not.match(heard.join('\n'), /secret|authorization/i)
    assert.is((await scene.place.run('host', ['relay', 'names', 'list'])).code, 0)
    assert.ok(relay.port > 0)
  } finally {
    middle.close()
    await t.close()
    await scene.close()
  }
})

test('a certificate that comes after the proof and is another one stops the request', async () => {
  const scene = await Scene.make()
  await scene.relay()
  const t = await testWorld({ SOTTO_HOME: scene.place.home('host') })
  try {
    const joining = await join(t.world, { relay: undefined, fingerprint: undefined }, () => {})
    const other = await serverIdentity(t.world, 'localhost')
    const der = t.world.tls.inspect(other).der
    // As if the second connection were led elsewhere: what it shows is not what was vouched for.
    const led = {
      ...t.world,
      tls: {
        ...t.world.tls,
        connect: (options: Parameters<typeof t.world.tls.connect>[0]) =>
          t.world.tls.connect({ ...options, verify: () => options.verify!(der) }),
      },
    }
    const api = new RelayApi(led, joining, 'ak_admin_secret')
    let code = ''
    try {
      await api.call('GET', '/relay')
    } catch (error) {
      code = (error as TunnelError).code
    }
    assert.is(code, 'relay/certificate')
  } finally {
    await t.close()
    await scene.close()
  }
})

test('a KEY is read out of a certificate that carries it, and out of no other', async () => {
  const t = await testWorld()
  try {
    const key = formatKey(generateIdentity(t.world.crypto).public)
    const guest = await makeCertificate(t.world, { name: key, use: 'client' })
    assert.equal(claimedKeys(t.world.tls.inspect(guest).der), [key])
    const other = await makeCertificate(t.world, { name: 'alice', use: 'client' })
    assert.equal(claimedKeys(t.world.tls.inspect(other).der), [])
  } finally {
    await t.close()
  }
})

test('--allow takes each form whole or not at all', () => {
  const certificate = Array.from({ length: 32 }, () => 'AB').join(':')
  for (const good of ['alice', 'a'.repeat(52), `SHA256:${'A'.repeat(43)}`, certificate]) {
    checkAllow(good)
  }
  for (const bad of ['', 'a b', '#x', 'SHA256:A', certificate.slice(0, -3), `${certificate}:AB`]) {
    assert.throws(() => checkAllow(bad), (error: TunnelError) => error instanceof TunnelError, bad)
  }
})

test.run()
