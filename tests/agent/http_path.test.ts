/**
 * The HTTP-aware path before a dev server that, like Vite's, answers only to its own name: pages, HMR's
 * WebSocket, events, uploads, and what visitors must not be able to say. curl is the browser.
 */
import { spawn } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { createHash } from 'node:crypto'
import { createServer } from 'node:http'
import type { IncomingMessage, Server } from 'node:http'
import { createServer as createSecure } from 'node:https'
import { createServer as createTcp } from 'node:net'
import type { AddressInfo, Socket } from 'node:net'
import { once } from 'node:events'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { utf8 } from '../../core/bytes.ts'
import type { TunnelError } from '../../core/errors.ts'
import { parseUpstream } from '../../agent/forward.ts'
import { HttpPath } from '../../agent/http_path.ts'
import type { HostHeader } from '../../agent/http_path.ts'
import type { TlsConn, TlsIdentity } from '../../agent/world.ts'
import { Collector, pattern, serverIdentity, testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'

const test = suite('agent/http_path')
const NAME = 'demo.secure.localhost'
const VISITOR = { address: '203.0.113.9', port: 40_000 }
const GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
let t: TestWorld
let identity: TlsIdentity

test.before(async () => {
  t = await testWorld()
  identity = await serverIdentity(t.world, NAME)
  await writeFile(join(t.dir, 'ca.pem'), identity.cert)
})
test.after(() => t.close())

interface Tunnel {
  port: number
  origin: string
  troubles: TunnelError[]
  close(): Promise<void>
}

/** A port whose TLS is ended here and whose HTTP goes through the path. */
async function tunnel(words: string, hostHeader: HostHeader = 'rewrite'): Promise<Tunnel> {
  const troubles: TunnelError[] = []
  const path = new HttpPath(t.world, {
    upstream: parseUpstream(words),
    hostHeader,
    onTrouble: (error) => void troubles.push(error),
  })
  const listener = await t.world.net.listen({ host: '127.0.0.1', port: 0 }, (conn) => {
    t.world.tls.serve(conn, new Uint8Array(0), { identity, alpn: ['http/1.1'] }).then(
      (ended) => path.serve(ended, VISITOR),
      () => {},
    )
  })
  return {
    port: listener.port,
    origin: `https://${NAME}:${listener.port}`,
    troubles,
    async close() {
      path.close()
      await listener.close()
    },
  }
}

interface Seen {
  method: string
  url: string
  headers: IncomingMessage['headers']
  raw: string[]
  body: string
}

/** A dev server: whatever does not call it by its own name gets 403, as Vite answers. */
async function devServer(): Promise<
  { server: Server; port: number; seen: Seen[]; upgraded: Socket[] }
> {
  const seen: Seen[] = []
  const upgraded: Socket[] = []
  const server = createServer((request, response) => {
    const { port } = server.address() as AddressInfo
    if (request.headers.host !== `localhost:${port}`) {
      response.writeHead(403)
      response.end(`Blocked request. This host ("${request.headers.host}") is not allowed.`)
      return
    }
    const hash = createHash('sha256')
    let length = 0
    request.on('data', (chunk) => {
      hash.update(chunk)
      length += chunk.length
    })
    request.on('end', () => {
      seen.push({
        method: request.method!,
        url: request.url!,
        headers: request.headers,
        raw: request.rawHeaders,
        body: `${length} ${hash.digest('hex')}`,
      })
      if (request.url === '/move') {
        response.writeHead(302, { location: `http://localhost:${port}/moved?a=b` })
        response.end()
      } else if (request.url === '/cookies') {
        response.writeHead(200, [['Set-Cookie', 'a=1'], ['Set-Cookie', 'b=2'], [
          'Connection',
          'x-secret, keep-alive',
        ], ['X-Secret', 'hop']] as never)
        response.end('ok')
      } else if (request.url === '/none') {
        response.writeHead(204)
        response.end()
      } else if (request.url === '/big') {
        response.writeHead(200, { 'content-length': '5000000' })
        response.end(Buffer.from(pattern(5_000_000, 3)))
      } else if (request.url === '/break') {
        response.writeHead(200, { 'content-length': '1000' })
        response.write('half', () => request.socket.destroy())
      } else response.end(`seen ${request.method} ${request.url}`)
    })
  })
  server.on('request', (request, response) => {
    if (request.url !== '/events' || !String(request.headers.host).startsWith('localhost:')) return
    response.writeHead(200, { 'content-type': 'text/event-stream' })
  })
  server.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
    const { port } = server.address() as AddressInfo
    socket.on('error', () => {})
    if (request.headers.origin !== `http://localhost:${port}`) {
      socket.end('HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!')
      return
    }
    upgraded.push(socket)
    const accept = createHash('sha1').update(request.headers['sec-websocket-key']! + GUID).digest(
      'base64',
    )
    socket.write(
      'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
        `Sec-WebSocket-Protocol: vite-hmr\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n` +
        '\x81\x02hi',
      'latin1',
    )
    if (head.length > 0) socket.write(head)
    // An echo that unmasks: a text frame of up to 125 bytes.
    socket.on('data', (frame: Buffer) => {
      if ((frame[0]! & 0xf) === 8) return socket.end(Buffer.from([0x88, 0x00]))
      const length = frame[1]! & 0x7f
      const out = Buffer.from(frame.subarray(6, 6 + length))
      for (let i = 0; i < length; i++) out[i]! ^= frame[2 + (i % 4)]!
      socket.write(Buffer.concat([Buffer.from([0x81, length]), out]))
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return { server, port: (server.address() as AddressInfo).port, seen, upgraded }
}

async function curl(
  to: Tunnel,
  path: string,
  ...args: string[]
): Promise<{ code: number; out: string; head: string }> {
  const child = spawn('curl', [
    '-sS',
    '-i',
    '--max-time',
    '20',
    '--http1.1',
    '--cacert',
    join(t.dir, 'ca.pem'),
    '--resolve',
    `${NAME}:${to.port}:127.0.0.1`,
    ...args,
    `${to.origin}${path}`,
  ])
  const parts: Buffer[] = []
  let said = ''
  child.stdout.on('data', (chunk) => void parts.push(chunk))
  child.stderr.on('data', (chunk) => (said += chunk))
  const [code] = await once(child, 'close')
  // Interim answers come first and are not the answer.
  const all = Buffer.concat(parts).toString('latin1').replace(/^(HTTP\/1\.1 1[^]*?\r\n\r\n)+/, '')
  const at = all.indexOf('\r\n\r\n')
  return {
    code: code as number,
    head: at < 0 ? all : all.slice(0, at),
    out: at < 0 ? said : all.slice(at + 4),
  }
}

/** A visitor that writes its own bytes. */
async function raw(to: Tunnel): Promise<Collector> {
  const conn: TlsConn = await t.world.tls.connect({
    target: { host: '127.0.0.1', port: to.port },
    servername: NAME,
    alpn: ['http/1.1'],
    verify: () => {},
  })
  return new Collector(conn)
}

test('a dev server that knows only its own name answers, and refuses without the path’s help', async () => {
  const { server, port, seen } = await devServer()
  const to = await tunnel(String(port))
  const page = await curl(to, '/index.html?x=%20y')
  assert.is(page.out, 'seen GET /index.html?x=%20y')
  assert.is(seen[0]!.headers.host, `localhost:${port}`)
  assert.is(seen[0]!.headers['x-forwarded-host'], `${NAME}:${to.port}`)
  assert.is(seen[0]!.headers['x-forwarded-proto'], 'https')
  assert.is(seen[0]!.headers['x-forwarded-for'], VISITOR.address)
  assert.is(
    seen[0]!.headers['forwarded'],
    `for=${VISITOR.address};host="${NAME}:${to.port}";proto=https`,
  )
  const as = await tunnel(String(port), 'app.example')
  const refused = await curl(as, '/')
  assert.match(refused.head, /403/)
  assert.match(refused.out, /"app\.example"/)
  await Promise.all([to.close(), as.close()])
  server.close()
})

test('what names the visitor cannot be forged, and hop-by-hop fields stay on their hop', async () => {
  const { server, port, seen } = await devServer()
  const to = await tunnel(String(port))
  await curl(
    to,
    '/',
    ...[
      'X-Forwarded-For: 6.6.6.6',
      'x-forwarded-host: evil',
      'X-FORWARDED-PROTO: http',
      'X-Forwarded-Port: 1',
      'Forwarded: for=6.6.6.6',
      'X-Real-IP: 6.6.6.6',
      'Connection: keep-alive, X-Hop',
      'X-Hop: mine',
      'Proxy-Authorization: Basic eDp5',
      'Keep-Alive: timeout=5',
      'TE: trailers',
      'X-Kept: yes',
    ].flatMap((line) => ['-H', line]),
  )
  const { headers, raw: lines } = seen[0]!
  assert.not.match(lines.join('\n'), /6\.6\.6\.6|evil|X-Hop|Proxy-Auth|timeout=5|trailers/i)
  assert.is(headers['x-kept'], 'yes')
  assert.is(headers['x-forwarded-proto'], 'https')
  assert.is(headers['x-forwarded-port'], undefined)
  const answer = await curl(to, '/cookies')
  assert.match(answer.head, /Set-Cookie: a=1\r\nSet-Cookie: b=2/i)
  assert.not.match(answer.head, /X-Secret/i)
  await to.close()
  server.close()
})

test('redirects to the upstream’s own name lead to the public one', async () => {
  const { server, port } = await devServer()
  const to = await tunnel(String(port))
  const moved = await curl(to, '/move')
  assert.match(moved.head.toLowerCase(), `location: ${to.origin}/moved?a=b`)
  await to.close()
  server.close()
})

test('uploads pass with a length and in chunks, downloads whole', async () => {
  const { server, port, seen } = await devServer()
  const to = await tunnel(String(port))
  const body = pattern(3_000_001, 5)
  const file = join(t.dir, 'body')
  await writeFile(file, body)
  const digest = `${body.length} ${createHash('sha256').update(body).digest('hex')}`
  const sized = await curl(to, '/up', '-T', file, '-X', 'POST')
  assert.match(sized.head, /200/)
  await curl(to, '/up', '-T', file, '-X', 'PUT', '-H', 'Transfer-Encoding: chunked')
  assert.is(seen[0]!.body, digest)
  assert.is(seen[0]!.headers['content-length'], String(body.length))
  assert.is(seen[1]!.body, digest)
  assert.is(seen[1]!.headers['transfer-encoding'], 'chunked')
  assert.is(seen[1]!.headers['content-length'], undefined)
  const big = await curl(to, '/big')
  assert.is(Buffer.compare(Buffer.from(big.out, 'latin1'), pattern(5_000_000, 3)), 0)
  const none = await curl(to, '/none')
  assert.match(none.head, /204/)
  const head = await curl(to, '/big', '--head')
  assert.match(head.head, /content-length: 5000000/i)
  await to.close()
  server.close()
})

test('one connection carries many requests, one after the other', async () => {
  const { server, port, seen } = await devServer()
  const to = await tunnel(String(port))
  const near = await raw(to)
  for (let i = 0; i < 20; i++) {
    near.conn.write(utf8(`GET /n${i} HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`))
    while (!near.text.includes(`seen GET /n${i}`)) await near.until(near.received + 1)
  }
  assert.is(seen.length, 20)
  near.conn.end()
  await near.closed
  await to.close()
  server.close()
})

test('HMR’s WebSocket opens through another name, and messages pass both ways', async () => {
  const { server, port, upgraded } = await devServer()
  const to = await tunnel(String(port))
  const Client = WebSocket as unknown as new (url: string, options: object) => WebSocket
  const ws = new Client(`wss://localhost:${to.port}/?token=x`, {
    protocols: ['vite-hmr'],
    headers: { host: `${NAME}:${to.port}`, origin: to.origin },
    tls: { rejectUnauthorized: false },
  })
  const messages: string[] = []
  const closed = once(ws as never, 'close').catch(() => {})
  await new Promise<void>((resolve, reject) => {
    ws.onmessage = ({ data }) => {
      messages.push(String(data))
      if (messages.length === 1) ws.send('ping through')
      else resolve()
    }
    ws.onerror = (event) => reject(new Error((event as ErrorEvent).message))
  })
  assert.equal(messages, ['hi', 'ping through'])
  assert.is(ws.protocol, 'vite-hmr')
  const gone = once(upgraded[0]!, 'close')
  ws.close()
  await gone
  void closed
  await to.close()
  server.close()
})

test('an upgrade that the upstream refuses is refused with its own answer', async () => {
  const { server, port } = await devServer()
  const to = await tunnel(String(port))
  const near = await raw(to)
  near.conn.write(
    utf8(
      `GET / HTTP/1.1\r\nHost: ${NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n` +
        'Origin: https://evil.example\r\nSec-WebSocket-Version: 13\r\n' +
        'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n',
    ),
  )
  await near.ended
  assert.match(near.text, /^HTTP\/1\.1 403 /)
  assert.match(near.text, /\r\n\r\nno!$/)
  near.conn.end()
  await to.close()
  server.close()
})

test('events arrive one by one, and the upstream hears when the visitor leaves', async () => {
  let push!: (text: string) => void
  let left!: () => void
  const gone = new Promise<void>((resolve) => (left = resolve))
  const server = createServer((_, response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    response.flushHeaders()
    push = (text) => void response.write(`data: ${text}\n\n`)
    response.on('close', left)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const to = await tunnel(String((server.address() as AddressInfo).port))
  const near = await raw(to)
  near.conn.write(
    utf8(`GET /events HTTP/1.1\r\nHost: ${NAME}\r\nAccept: text/event-stream\r\n\r\n`),
  )
  while (!near.text.includes('\r\n\r\n')) await near.until(near.received + 1)
  for (let i = 0; i < 5; i++) {
    push(`event ${i}`)
    while (!near.text.includes(`event ${i}`)) await near.until(near.received + 1)
  }
  near.conn.abort()
  await gone
  await to.close()
  server.close()
})

test('an upstream that is down gives the 502 page, one that breaks off an end', async () => {
  const { server, port } = await devServer()
  const to = await tunnel(String(port))
  const half = await curl(to, '/break')
  assert.not.equal(half.code, 0)
  server.close()
  server.closeAllConnections()
  const down = await curl(to, '/', '--data', 'x')
  assert.match(down.head, /^HTTP\/1\.1 502 /)
  assert.match(down.out, /The service does not answer/)
  assert.match(down.out, /nothing listens there/)
  assert.ok(to.troubles.length >= 1)
  assert.is(to.troubles.at(-1)!.code, 'net/refused')
  const near = await raw(to)
  near.conn.write(
    utf8(`GET / HTTP/1.1\r\nHost: ${NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n`),
  )
  await near.ended
  assert.match(near.text, /^HTTP\/1\.1 502 /)
  near.conn.end()
  // It works again as soon as the upstream does.
  const back = createServer((_, response) => void response.end('back'))
  back.listen(port, '127.0.0.1')
  await once(back, 'listening')
  assert.is((await curl(to, '/')).out, 'back')
  await to.close()
  back.close()
})

test('an upstream that answers nonsense gives the 502 page', async () => {
  const server = createTcp((socket) => {
    socket.on('error', () => {})
    socket.once('data', () => socket.end('220 mail.example ESMTP\r\n'))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const to = await tunnel(String((server.address() as AddressInfo).port))
  const answer = await curl(to, '/', '--data', 'x')
  assert.match(answer.head, /^HTTP\/1\.1 502 /)
  assert.match(to.troubles[0]!.code, /^http\//)
  await to.close()
  server.close()
})

for (
  const [what, head] of [
    ['two lengths', 'Content-Length: 1\r\nContent-Length: 2'],
    ['a length and chunks', 'Content-Length: 3\r\nTransfer-Encoding: chunked'],
    ['a folded field', 'X-A: 1\r\n  Transfer-Encoding: chunked'],
    ['a field without a name', ': x'],
    ['a blank before the colon', 'Content-Length : 3'],
  ] as const
) {
  test(`a request with ${what} does not reach the upstream as two`, async () => {
    const { server, port, seen } = await devServer()
    const to = await tunnel(String(port))
    const near = await raw(to)
    near.conn.write(
      utf8(
        `POST /smuggle HTTP/1.1\r\nHost: ${NAME}\r\n${head}\r\n\r\n` +
          `0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`,
      ),
    )
    near.conn.end()
    await near.ended
    assert.is(seen.some(({ url }) => url === '/hidden'), false, near.text)
    assert.match(near.text, /^HTTP\/1\.1 4\d\d /)
    await to.close()
    server.close()
  })
}

test('a visitor that never finishes its head, or never asks again, is let go', async () => {
  let served = 0
  const inner = t.world.http.server({
    request(_, response) {
      served++
      response.head(200, [['Content-Length', '2']])
      response.write(utf8('ok'))
      response.end()
    },
    upgrade(_, tunnel) {
      tunnel.respond(400, [])
    },
  }, { headMs: 150, idleMs: 150 })
  const done: Promise<void>[] = []
  const listener = await t.world.net.listen({ host: '127.0.0.1', port: 0 }, (conn) => {
    done.push(
      t.world.tls.serve(conn, new Uint8Array(0), { identity }).then((ended) =>
        inner.accept(ended, VISITOR)
      ),
    )
  })
  const to: Tunnel = {
    port: listener.port,
    origin: '',
    troubles: [],
    close: () => listener.close(),
  }
  for (const bytes of ['', `GET / HTTP/1.1\r\nHost: ${NAME}\r\nX: `]) {
    const slow = await raw(to)
    if (bytes !== '') slow.conn.write(utf8(bytes))
    await slow.ended
    slow.conn.end()
  }
  assert.is(served, 0)
  const idle = await raw(to)
  idle.conn.write(utf8(`GET / HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`))
  await idle.ended
  assert.match(idle.text, /^HTTP\/1\.1 200 [^]*ok$/)
  idle.conn.end()
  assert.is(served, 1)
  await Promise.all(done)
  inner.close()
  await listener.close()
})

test('an https upstream and a unix socket are asked as any other', async () => {
  const up = await serverIdentity(t.world, 'localhost')
  const secure = createSecure(up, (request, response) => {
    response.end(`tls ${request.headers.host}`)
  })
  secure.listen(0, '127.0.0.1')
  const plain = createServer((request, response) => void response.end(`unix ${request.url}`))
  plain.listen(join(t.dir, 'up.sock'))
  await Promise.all([once(secure, 'listening'), once(plain, 'listening')])
  const { port } = secure.address() as AddressInfo
  const over = await tunnel(`https://localhost:${port}`)
  assert.is((await curl(over, '/')).out, `tls localhost:${port}`)
  const file = await tunnel(`unix:${join(t.dir, 'up.sock')}`)
  assert.is((await curl(file, '/x')).out, 'unix /x')
  await Promise.all([over.close(), file.close()])
  secure.close()
  plain.close()
})

test('a visitor that reads nothing pauses the upstream', async () => {
  let written = 0
  const server = createServer((_, response) => {
    const chunk = Buffer.alloc(65_536)
    const pump = (): void => {
      while (written < 134_217_728) {
        written += chunk.length
        if (!response.write(chunk)) return void response.once('drain', pump)
      }
      response.end()
    }
    response.on('close', () => {})
    pump()
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const to = await tunnel(String((server.address() as AddressInfo).port))
  const near = await raw(to)
  near.conn.write(utf8(`GET / HTTP/1.1\r\nHost: ${NAME}\r\n\r\n`))
  while (!near.text.includes('\r\n\r\n')) await near.until(near.received + 1)
  near.conn.pause()
  // The upstream gets nowhere for a while: everything between is full.
  let last = -1
  while (written !== last) {
    last = written
    await new Promise((resolve) => setTimeout(resolve, 150))
  }
  assert.ok(written < 33_554_432, `${written} bytes were taken for a reader that read none`)
  near.conn.abort()
  await to.close()
  server.close()
  server.closeAllConnections()
})

test.run()
