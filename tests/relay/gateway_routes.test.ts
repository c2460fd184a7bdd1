// runtimes: bun node deno
// Where a request goes and what becomes of its connection: hosts, paths, and switches of protocols.
import * as http from 'node:http'
import type { Duplex } from 'node:stream'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ask, type Desk, DOMAIN, HOST, openDesk, openRaw, type Raw } from '../support/exchange.ts'
import { openWebDesk, request } from '../support/web_desk.ts'
import type { WebDesk } from '../support/web_desk.ts'

const gateway = suite('relay/gateway routes')

let web: WebDesk
let desk: Desk
let port = 0

gateway.before(async () => {
  web = await openWebDesk()
  desk = web.desk
  port = web.port
})

gateway.after(() => web.close())

gateway('a switch of protocols carries bytes both ways until one end is done', async () => {
  let left = (): void => {}
  const leaving = new Promise<void>((resolve) => left = resolve)
  const echo = (request: http.IncomingMessage, socket: Duplex, head: Uint8Array): void => {
    assert.is(request.headers['upgrade'], 'websocket')
    assert.match(String(request.headers['connection']), /upgrade/i)
    assert.is(request.headers['sec-websocket-key'], 'abc')
    assert.is(request.headers['x-forwarded-for'], '192.0.2.7')
    socket.write(
      'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
        'Sec-WebSocket-Accept: xyz\r\n\r\nhello ',
    )
    if (head.length > 0) socket.write(head)
    socket.on('data', (bytes: Uint8Array) => {
      if (String(bytes).endsWith('enough')) socket.end('bye')
      else socket.write(bytes)
    })
    socket.on('error', () => {})
    socket.on('end', () => socket.end())
    socket.on('close', () => left())
  }
  web.server.on('upgrade', echo)
  const open = async (): Promise<Raw> => {
    const raw = await openRaw(desk.port)
    raw.socket.write(
      `GET /ws HTTP/1.1\r\nHost: ${HOST}\r\nConnection: keep-alive, Upgrade\r\n` +
        'Upgrade: websocket\r\nSec-WebSocket-Key: abc\r\n\r\nearly ',
    )
    return raw
  }
  const raw = await open()
  const head = await raw.until(/hello early /)
  assert.match(head, /^HTTP\/1\.1 101 [^]*Connection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello/i)
  assert.match(head, /Sec-WebSocket-Accept: xyz/)
  raw.socket.write('x'.repeat(300_000) + '!')
  const echoed = await raw.until(/!/)
  assert.is(echoed.slice(echoed.indexOf('early ') + 6), 'x'.repeat(300_000) + '!')
  // The visitor goes: so does the upstream's side.
  raw.socket.end()
  await leaving
  // The upstream goes: the visitor gets all, then the end.
  const other = await open()
  await other.until(/early /)
  other.socket.write('enough')
  assert.match(await other.closed, /early bye$/)
  web.server.off('upgrade', echo)
})

gateway('an upstream that will not switch is heard', async () => {
  web.server.once('upgrade', (_, socket) => {
    socket.end(
      'HTTP/1.1 401 Unauthorized\r\nContent-Length: 6\r\nWWW-Authenticate: Basic\r\n\r\nsecret',
    )
  })
  const answer = await ask(
    desk.port,
    request('GET /ws', ['Upgrade: websocket', 'Connection: Upgrade']),
  )
  assert.match(answer, /^HTTP\/1\.1 401 [^]*WWW-Authenticate: Basic[^]*\r\n\r\nsecret$/)
})

gateway(
  'an upgrade to HTTP/2 or TLS is not passed on: the request is served as it is',
  async () => {
    let raw: string[] = []
    web.serve = (request, response) => {
      raw = request.rawHeaders
      response.end('plain')
    }
    for (const protocol of ['h2c', 'HTTP/2.0', 'TLS/1.0', 'websocket, h2c']) {
      const fields = [
        `Upgrade: ${protocol}`,
        'HTTP2-Settings: AAA',
        'Connection: Upgrade, HTTP2-Settings',
      ]
      const answer = await ask(desk.port, request('GET /', fields))
      assert.match(answer, /^HTTP\/1\.1 200 [^]*plain/)
      assert.not.match(raw.join('\n'), /upgrade|http2/i)
    }
  },
)

gateway(
  'a path leads to a tunnel where the relay says so, and its prefix stays behind',
  async () => {
    const byPath = await openDesk({
      paths: true,
      upstream: { kind: 'tcp', host: '127.0.0.1', port, text: 'upstream' },
    })
    let raw: string[] = []
    web.serve = (request, response) => {
      raw = request.rawHeaders
      response.end(`at ${request.url}`)
    }
    const at = (target: string): Promise<string> =>
      ask(
        byPath.port,
        `GET ${target} HTTP/1.1\r\nHost: relay.test\r\nConnection: close\r\nX-Forwarded-Prefix: /evil\r\n\r\n`,
      )
    assert.match(await at('/t/web/a?b'), /at \/a\?b/)
    assert.is(raw[raw.indexOf('X-Forwarded-Prefix') + 1], '/t/web')
    assert.match(await at('/t/web/'), /at \/(?!t)/)
    assert.match(await at('/t/web?q=1'), /^HTTP\/1\.1 308 [^]*location: \/t\/web\/\?q=1/i)
    assert.match(await at('/t/other/'), /^HTTP\/1\.1 404 /)
    assert.match(await at('/t/We_b/'), /^HTTP\/1\.1 404 /)
    assert.match(await at('/t/'), /^HTTP\/1\.1 404 /)
    assert.match(await at('/elsewhere'), /^HTTP\/1\.1 421 /)
    await byPath.close()
  },
)

gateway(
  'a host that is none of ours is misdirected; letter case, a dot and a port do not matter',
  async () => {
    web.serve = (request, response) => response.end(`host ${request.headers.host}`)
    const at = (host: string): Promise<string> =>
      ask(desk.port, `GET / HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`)
    for (const host of ['example.org', DOMAIN, `a.b.${DOMAIN}`, `-x.${DOMAIN}`, '127.0.0.1']) {
      assert.match(await at(host), /^HTTP\/1\.1 421 /, host)
    }
    for (const host of [`WEB.${DOMAIN}`, `${HOST}.`, `${HOST}:8443`, `${HOST}.:8443`]) {
      assert.ok((await at(host)).includes(`host ${host}`), host)
    }
  },
)

gateway('nothing is left', () => {
  assert.is(desk.gateway.size, 0)
  assert.is(desk.relay.size, 0)
})

gateway.run()
