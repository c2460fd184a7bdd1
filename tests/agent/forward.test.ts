/**
 * Upstreams: the words for them, connections to real ones, the PROXY protocol byte by byte (the layouts
 * and lines of HAProxy's proxy-protocol.txt, §2.1 and §2.2), and the page for when there is none.
 */
import { createServer as createHttp2 } from 'node:http2'
import { createServer as createHttp } from 'node:http'
import { createServer, isIP } from 'node:net'
import type { AddressInfo } from 'node:net'
import { createServer as createTls } from 'node:tls'
import { once } from 'node:events'
import { join } from 'node:path'
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { fromHex, hex } from '../../core/bytes.ts'
import { TunnelError } from '../../core/errors.ts'
import {
  openUpstream,
  parseUpstream,
  speaksH2,
  unavailablePage,
  upstreamAuthority,
  upstreamTarget,
} from '../../agent/forward.ts'
import { parseAddress } from '../../core/address.ts'
import { proxyHeader } from '../../core/proxy_protocol.ts'
import { Collector, serverIdentity, testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'
import { rejection } from '../support/rejection.ts'

const test = suite('agent/forward')
let t: TestWorld

test.before(async () => {
  t = await testWorld()
})
test.after(() => t.close())

test('parseUpstream() reads every form', () => {
  for (
    const [words, expected] of [
      ['3000', { kind: 'tcp', host: 'localhost', port: 3000 }],
      [' 65535 ', { kind: 'tcp', host: 'localhost', port: 65535 }],
      ['db:5432', { kind: 'tcp', host: 'db', port: 5432 }],
      ['10.0.0.7:80', { kind: 'tcp', host: '10.0.0.7', port: 80 }],
      ['[::1]:8080', { kind: 'tcp', host: '[::1]', port: 8080 }],
      ['http://App.Local', { kind: 'tcp', host: 'app.local', port: 80 }],
      ['http://localhost:3000/', { kind: 'tcp', host: 'localhost', port: 3000 }],
      ['tcp://db:5432', { kind: 'tcp', host: 'db', port: 5432 }],
      ['https://example.com', { kind: 'tls', host: 'example.com', port: 443, verify: true }],
      ['https://localhost:8443', { kind: 'tls', host: 'localhost', port: 8443, verify: false }],
      ['https://127.0.0.1', { kind: 'tls', host: '127.0.0.1', port: 443, verify: false }],
      ['https+insecure://nas:8443', { kind: 'tls', host: 'nas', port: 8443, verify: false }],
      ['unix:/run/app.sock', { kind: 'unix', path: '/run/app.sock' }],
      ['unix:///run/app.sock', { kind: 'unix', path: '/run/app.sock' }],
    ] as const
  ) {
    const { text: _, ...upstream } = parseUpstream(words)
    assert.equal(upstream, expected, words)
  }
})

test('parseUpstream() refuses the rest with a sentence and a remedy', () => {
  for (
    const words of [
      '',
      ' ',
      '0',
      '65536',
      '123456',
      '-1',
      'localhost',
      'localhost:',
      'localhost:0',
      'localhost:65536',
      'a:b',
      'a:1:2',
      '::1:80',
      '[::1]',
      'http://',
      'http://a/b',
      'http://a?b',
      'http://u:p@a',
      'http://a#b',
      'ftp://a:21',
      'tcp://a',
      'unix:',
      'unix:run/app.sock',
      'unix:/a\0b',
      'host name:80',
      'javascript:alert(1)',
    ]
  ) {
    try {
      parseUpstream(words)
      assert.unreachable(`it took ${JSON.stringify(words)}`)
    } catch (error) {
      assert.is((error as TunnelError).code, 'upstream/format', words)
      assert.match((error as TunnelError).message, /^Cannot read upstream .*: found .*, expected /)
      assert.match((error as TunnelError).hint!, 'host:port')
    }
  }
  fc.assert(fc.property(fc.string(), (words) => {
    try {
      const upstream = parseUpstream(words)
      if (upstream.kind !== 'unix') {
        return upstream.port >= 1 && upstream.port <= 65535 && upstream.host !== ''
      }
      return upstream.path.startsWith('/')
    } catch (error) {
      return error instanceof TunnelError
    }
  }))
})

test('the Host of an upstream leaves out the port that goes without saying', () => {
  for (
    const [words, host] of [
      ['3000', 'localhost:3000'],
      ['http://app:80', 'app'],
      ['https://app', 'app'],
      ['https://app:80', 'app:80'],
      ['[::1]:3000', '[::1]:3000'],
      ['unix:/x', 'localhost'],
    ] as const
  ) assert.is(upstreamAuthority(parseUpstream(words)), host)
})

const FROM4 = { address: '192.168.0.1', port: 56324 }
const TO4 = { address: '192.168.0.11', port: 443 }

test('PROXY v1 writes the lines of its specification', () => {
  const line = (...args: Parameters<typeof proxyHeader>): string =>
    new TextDecoder().decode(proxyHeader(...args))
  // The example of §2.1.
  assert.is(line('v1', FROM4, TO4), 'PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n')
  assert.is(
    line('v1', { address: '2001:db8::1', port: 1 }, { address: '2001:db8::2', port: 65535 }),
    'PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n',
  )
  assert.is(line('v1', FROM4, 443), 'PROXY TCP4 192.168.0.1 0.0.0.0 56324 443\r\n')
  assert.is(line('v1', { address: '::1', port: 9 }, 443), 'PROXY TCP6 ::1 :: 9 443\r\n')
  assert.is(
    line('v1', { address: '::ffff:10.1.2.3', port: 9 }, 443),
    'PROXY TCP4 10.1.2.3 0.0.0.0 9 443\r\n',
  )
  assert.is(line('v1', { address: '', port: 0 }, 443), 'PROXY UNKNOWN\r\n')
  // Families do not mix: the destination gives way.
  assert.is(
    line('v1', { address: '::1', port: 9 }, TO4),
    'PROXY TCP6 ::1 :: 9 443\r\n',
  )
  // The longest line of §2.1 is 107 bytes.
  const longest = { address: 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff', port: 65535 }
  assert.is(line('v1', longest, longest).length, 104)
  // An address that tries to add a line is no address.
  assert.is(line('v1', { address: '1.2.3.4 5.6.7.8 1 2\r\nX', port: 1 }, 2), 'PROXY UNKNOWN\r\n')
})

test('PROXY v2 writes the bytes of its specification', () => {
  const signature = '0d0a0d0a000d0a515549540a'
  const bytes = (...args: Parameters<typeof proxyHeader>): string => hex(proxyHeader(...args))
  assert.is(
    bytes('v2', FROM4, TO4),
    `${signature} 21 11 000c c0a80001 c0a8000b dc04 01bb`.replaceAll(' ', ''),
  )
  assert.is(
    bytes('v2', { address: '2001:db8::1', port: 1 }, { address: '2001:db8::2', port: 65535 }),
    `${signature} 21 21 0024 20010db8000000000000000000000001 20010db8000000000000000000000002 0001 ffff`
      .replaceAll(' ', ''),
  )
  assert.is(
    bytes('v2', { address: 'nonsense', port: 1 }, 2),
    `${signature}21000000`.replace(/0{4}$/, '0000'),
  )
  assert.is(hex(proxyHeader('v2', FROM4, 443)).slice(-16, -8), '00000000')
})

test('parseAddress() reads what node:net calls an address, and nothing else', () => {
  for (
    const [text, digits] of [
      ['127.0.0.1', '7f000001'],
      ['::', '00'.repeat(16)],
      ['::1', '00'.repeat(15) + '01'],
      ['1::', '0001' + '00'.repeat(14)],
      ['fe80::1%eth0', 'fe80' + '00'.repeat(13) + '01'],
      ['[2001:DB8::8:800:200C:417A]', '20010db80000000000080800200c417a'],
      ['64:ff9b::192.0.2.33', '0064ff9b' + '00'.repeat(8) + 'c0000221'],
      ['::ffff:1.2.3.4', '01020304'],
    ] as const
  ) assert.equal(parseAddress(text), fromHex(digits), text)
  for (
    const text of [
      '',
      '1.2.3',
      '1.2.3.256',
      '1.2.3.4.5',
      ':::',
      '1::2::3',
      '1:2',
      '12345::',
      'g::',
      '1:2:3:4:5:6:7:8:9',
      '1:2:3:4:5:6:7::8',
    ]
  ) assert.is(parseAddress(text), undefined, text)
  fc.assert(
    fc.property(fc.oneof(fc.ipV4(), fc.ipV6(), fc.string()), (text) => {
      const bare = text.replace(/%.*$/, '').replace(/^\[(.*)\]$/, '$1')
      assert.is(parseAddress(text) !== undefined, isIP(bare) !== 0, text)
    }),
    { examples: [['::1.2.3.4'], ['1:2:3:4:5:6:1.2.3.4'], ['01.2.3.4']] },
  )
})

test('openUpstream() reaches localhost on either family, and remembers which', async () => {
  for (const [host, found] of [['127.0.0.1', '127.0.0.1'], ['::1', '[::1]']] as const) {
    const server = createServer((socket) => socket.end('here'))
    server.listen(0, host)
    const problem = await Promise.race([
      once(server, 'listening').then(() => undefined),
      once(server, 'error'),
    ])
    if (problem) continue
    const upstream = parseUpstream(String((server.address() as AddressInfo).port))
    for (let i = 0; i < 2; i++) {
      const conn = new Collector(await openUpstream(t.world, upstream))
      conn.conn.end()
      assert.is(new TextDecoder().decode(await conn.ended), 'here')
      assert.equal((upstreamTarget(upstream) as { host: string }).host, found)
    }
    server.close()
    await once(server, 'close')
    assert.is(await rejection(openUpstream(t.world, upstream)), 'net/refused')
  }
})

test('openUpstream() opens unix sockets and TLS', async () => {
  const path = join(t.dir, 'up.sock')
  const plain = createServer((socket) => socket.end('unix'))
  plain.listen(path)
  await once(plain, 'listening')
  const conn = new Collector(await openUpstream(t.world, parseUpstream(`unix:${path}`)))
  conn.conn.end()
  assert.is(new TextDecoder().decode(await conn.ended), 'unix')
  plain.close()
  const identity = await serverIdentity(t.world, 'localhost')
  const secure = createTls({ cert: identity.cert, key: identity.key }, (socket) => {
    socket.on('error', () => {})
    socket.end('tls')
  })
  secure.listen(0, '127.0.0.1')
  await once(secure, 'listening')
  const { port } = secure.address() as AddressInfo
  const local = parseUpstream(`https://localhost:${port}`)
  const over = new Collector(await openUpstream(t.world, local))
  over.conn.end()
  assert.is(new TextDecoder().decode(await over.ended), 'tls')
  // What leaves this machine is verified.
  const away = { ...local, verify: true } as typeof local
  assert.is(await rejection(openUpstream(t.world, away)), 'tls/untrusted')
  secure.close()
})

test('speaksH2() asks by preface and by ALPN', async () => {
  const identity = await serverIdentity(t.world, 'localhost')
  const h2 = createHttp2()
  const h1 = createHttp((_, response) => void response.end())
  const tls = createTls({ ...identity, ALPNProtocols: ['h2', 'http/1.1'] }, (socket) => {
    socket.on('error', () => {})
  })
  const old = createTls({ ...identity, ALPNProtocols: ['http/1.1'] }, (socket) => {
    socket.on('error', () => {})
  })
  const silent = createServer((socket) => {
    socket.on('error', () => {})
    socket.end()
  })
  for (const server of [h2, h1, tls, old, silent]) {
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
  }
  const port = (server: { address(): unknown }): number => (server.address() as AddressInfo).port
  const speaks = (words: string): Promise<boolean> => speaksH2(t.world, parseUpstream(words))
  assert.is(await speaks(`127.0.0.1:${port(h2)}`), true)
  assert.is(await speaks(`127.0.0.1:${port(h1)}`), false)
  assert.is(await speaks(`127.0.0.1:${port(silent)}`), false)
  assert.is(await speaks(`https://127.0.0.1:${port(tls)}`), true)
  assert.is(await speaks(`https://127.0.0.1:${port(old)}`), false)
  const gone = port(h1)
  for (const server of [h2, h1, tls, old, silent]) server.close()
  assert.is(await speaks(`127.0.0.1:${gone}`), false)
})

test('the 502 page is one whole response without scripts, and shows no markup of others', () => {
  const error = new TunnelError('net/refused', 'Cannot connect to <b onclick="x">&\'</b>: no')
  const page = new TextDecoder().decode(unavailablePage(error))
  const [head, body] = page.split('\r\n\r\n') as [string, string]
  assert.match(head, /^HTTP\/1\.1 502 Bad Gateway\r\n/)
  assert.match(head, /\r\nConnection: close$/)
  assert.is(Number(/Content-Length: (\d+)/.exec(head)![1]), new TextEncoder().encode(body).length)
  assert.not.match(body, /<script|<b |src=|href=/)
  assert.match(body, /&#60;b onclick=&#34;x&#34;&#62;&#38;&#39;/)
  assert.ok(page.length < 2048)
})

test.run()
