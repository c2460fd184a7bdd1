// runtimes: bun node deno
// Readable HTTP from a visitor's real TLS connection, through gateway, streams and the agent's end, to
// a real upstream and back: what must pass unchanged, what must not pass, and that nothing is collected.
import { type ChildProcess, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ask, type Desk, HOST, openDesk, openRaw, rawUpstream } from '../support/exchange.ts'
import { openWebDesk, request } from '../support/web_desk.ts'
import type { WebDesk } from '../support/web_desk.ts'

const gateway = suite('relay/gateway')

let web: WebDesk
let desk: Desk

gateway.before(async () => {
  web = await openWebDesk()
  desk = web.desk
})

gateway.after(() => web.close())

function bodyOf(response: string): string {
  return response.slice(response.indexOf('\r\n\r\n') + 4)
}

/** A program that sends `bytes` and reads nothing; Deno's TLS client would read in spite of a pause. */
function deafVisitor(port: number, bytes: string): ChildProcess {
  const program = `const socket = require('node:tls').connect({
    host: '127.0.0.1', port: ${port}, servername: '${HOST}', rejectUnauthorized: false })
    socket.pause()
    socket.write(${JSON.stringify(bytes)})`
  const node = fileURLToPath(new URL('../../node_modules/.bin/node', import.meta.url))
  return spawn(node, ['-e', program], { stdio: 'ignore' })
}

/** Body of a response in chunks. */
function unchunk(body: string): string {
  let out = ''
  for (let at = 0;;) {
    const end = body.indexOf('\r\n', at)
    const size = Number.parseInt(body.slice(at, end), 16)
    if (!(size > 0)) return out
    out += body.slice(end + 2, end + 2 + size)
    at = end + 2 + size + 2
  }
}

gateway(
  'a request and its response keep names, case, order and repeats of their fields',
  async () => {
    let raw: string[] = []
    web.serve = (request, response) => {
      raw = request.rawHeaders
      response.writeHead(201, [
        'Set-Cookie',
        'a=1',
        'X-CaSe',
        'v',
        'set-cookie',
        'b=2',
        'Content-Length',
        '2',
      ])
      response.end('ok')
    }
    const answer = await ask(
      desk.port,
      request('GET /p%20q?x=1&y=%2F', ['X-OnE: 1', 'x-two: 2', 'X-OnE: 3', 'X-Latin: caf\xe9']),
    )
    const sent = raw.slice(0, raw.indexOf('X-Forwarded-For'))
    assert.equal(sent, [
      'Host',
      HOST,
      'X-OnE',
      '1',
      'x-two',
      '2',
      'X-OnE',
      '3',
      'X-Latin',
      'caf\xe9',
    ])
    assert.match(answer, /^HTTP\/1\.1 201 /)
    const fields = answer.slice(0, answer.indexOf('\r\n\r\n'))
    // Bun's own server groups fields of one name.
    assert.match(fields, /X-CaSe: v\r\n/)
    assert.match(fields, /Set-Cookie: a=1\r\n(?:X-CaSe: v\r\n)?set-cookie: b=2\r\n/i)
    assert.is(bodyOf(answer), 'ok')
  },
)

gateway('the target goes on as it was written', async () => {
  web.serve = (request, response) => response.end(request.url)
  for (
    const target of [
      '/',
      '//double',
      '/a/../b',
      '/%2e%2e/',
      '/?',
      '/a?b?c=/',
      '/a;b=c',
      '/~"<>\\^`{|}',
    ]
  ) {
    const answer = await ask(desk.port, request(`GET ${target}`))
    assert.is(answer.includes('chunked') ? unchunk(bodyOf(answer)) : bodyOf(answer), target)
  }
})

gateway('fields of the connection stay behind, both ways', async () => {
  let raw: string[] = []
  web.serve = (request, response) => {
    raw = request.rawHeaders
    response.writeHead(200, {
      Connection: 'close, X-Secret',
      'X-Secret': '1',
      'Keep-Alive': 'timeout=77',
      'Proxy-Authenticate': 'Basic',
      'X-Kept': '1',
    })
    response.end('ok')
  }
  const answer = await ask(
    desk.port,
    `GET / HTTP/1.1\r\nHost: ${HOST}\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n` +
      'Proxy-Connection: y-hop\r\nY-Hop: 2\r\nProxy-Authorization: Basic x\r\nKeep-Alive: 9\r\nTE: gzip\r\nX-Kept: 1\r\n\r\n',
  )
  assert.not.match(raw.join('\n'), /x-hop|y-hop|proxy-|gzip|keep-alive\n9/i)
  assert.ok(raw.includes('X-Kept'))
  assert.not.match(answer, /X-Secret: |timeout=77|Proxy-Auth/i)
  assert.match(answer, /X-Kept: 1/)
})

gateway('the visitor is named by the relay alone, whatever the visitor claims', async () => {
  let raw: string[] = []
  web.serve = (request, response) => {
    raw = request.rawHeaders
    response.end()
  }
  const claims = [
    'X-Forwarded-For: 6.6.6.6',
    'X_Forwarded_For: 6.6.6.6',
    'x-FORWARDED_for: 6.6.6.6',
    'X.Forwarded.For: 6.6.6.6',
    'X-Forwarded-Proto: 6.6.6.6',
    'X_FORWARDED_PROTO: 6.6.6.6',
    'X-Forwarded-Host: 6.6.6.6',
    'X-Forwarded-Port: 6.6.6.6',
    'X-Forwarded-Prefix: 6.6.6.6',
    'X-Forwarded-Server: 6.6.6.6',
    'Forwarded: for=6.6.6.6',
    'X-Real-IP: 6.6.6.6',
    'X_Real_IP: 6.6.6.6',
    'True-Client-IP: 6.6.6.6',
    'CF-Connecting-IP: 6.6.6.6',
  ]
  await ask(desk.port, request('GET /', claims))
  assert.not.match(raw.join('\n'), /6\.6\.6\.6/)
  const at = (name: string): string[] => raw.filter((_, i) => i % 2 === 1 && raw[i - 1] === name)
  assert.equal(at('X-Forwarded-For'), ['192.0.2.7'])
  assert.equal(at('X-Forwarded-Proto'), ['https'])
  assert.equal(at('X-Forwarded-Host'), [HOST])
  assert.equal(at('X-Forwarded-Port'), ['443'])
  assert.equal(at('Forwarded'), [`for=192.0.2.7;host="${HOST}";proto=https`])
  assert.equal(at('Host'), [HOST])
})

gateway("naming the relay's own fields in Connection does not remove them", async () => {
  let raw: string[] = []
  web.serve = (request, response) => {
    raw = request.rawHeaders
    response.end()
  }
  await ask(
    desk.port,
    `POST / HTTP/1.1\r\nHost: ${HOST}\r\nContent-Length: 2\r\n` +
      'Connection: close, X-Forwarded-For, Forwarded, Content-Length, Host\r\n\r\nok',
  )
  for (const name of ['Host', 'X-Forwarded-For', 'Forwarded', 'Content-Length']) {
    assert.ok(raw.includes(name), name)
  }
})

gateway('20 MiB pass both ways at once, byte for byte', async () => {
  web.serve = (request, response) => {
    response.writeHead(200, { 'content-length': request.headers['content-length'] })
    request.pipe(response)
  }
  const length = 20 * 1024 * 1024
  const chunk = new Uint8Array(65_536).map((_, i) => i * 31)
  const sent = createHash('sha256')
  const raw = await openRaw(desk.port)
  const got = createHash('sha256')
  let head = ''
  let gotBytes = 0
  raw.socket.removeAllListeners('data')
  const done = new Promise<void>((resolve) => {
    raw.socket.on('data', (bytes: Buffer) => {
      let rest = bytes
      if (!head.includes('\r\n\r\n')) {
        const before = head.length
        head += bytes.toString('latin1')
        const end = head.indexOf('\r\n\r\n')
        if (end < 0) return
        rest = bytes.subarray(end + 4 - before)
      }
      got.update(rest)
      gotBytes += rest.length
      if (gotBytes >= length) resolve()
    })
  })
  raw.socket.write(`PUT / HTTP/1.1\r\nHost: ${HOST}\r\nContent-Length: ${length}\r\n\r\n`)
  for (let at = 0; at < length; at += chunk.length) {
    sent.update(chunk)
    if (!raw.socket.write(chunk)) await new Promise((resolve) => raw.socket.once('drain', resolve))
  }
  await done
  assert.is(gotBytes, length)
  assert.is(got.digest('hex'), sent.digest('hex'))
  raw.socket.destroy()
})

gateway('a response is told piece by piece: server-sent events', async () => {
  let more = (): void => {}
  web.serve = (_, response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    response.write('data: 1\n\n')
    more = () => {
      response.write('data: 2\n\n')
      more = () => void response.end('data: 3\n\n')
    }
  }
  const raw = await openRaw(desk.port)
  raw.socket.write(request('GET /events'))
  assert.not.match(await raw.until(/data: 1/), /data: 2/)
  more()
  assert.not.match(await raw.until(/data: 2/), /data: 3/)
  more()
  assert.match(await raw.closed, /data: 3\n\n\r\n0\r\n\r\n$/)
})

gateway('the head of a response goes out before its body', async () => {
  let more = (): void => {}
  web.serve = (_, response) => {
    response.writeHead(200, { 'x-early': '1' })
    response.flushHeaders()
    more = () => void response.end('done')
  }
  const raw = await openRaw(desk.port)
  raw.socket.write(request('GET /'))
  assert.not.match(await raw.until(/\r\n\r\n/), /done/)
  more()
  assert.match(await raw.closed, /done/)
})

gateway('a request is told piece by piece, and answered while it lasts', async () => {
  web.serve = (request, response) => {
    response.writeHead(200)
    request.on('data', (bytes) => response.write(`got ${bytes};`))
    request.on('end', () => response.end('end'))
  }
  const raw = await openRaw(desk.port)
  raw.socket.write(
    `POST / HTTP/1.1\r\nHost: ${HOST}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n`,
  )
  await raw.until(/got one;/)
  raw.socket.write('3\r\ntwo\r\n')
  await raw.until(/got two;/)
  raw.socket.write('0\r\n\r\n')
  assert.match(await raw.until(/end\r\n0\r\n\r\n/), /end/)
  raw.socket.destroy()
})

gateway('trailers pass both ways', async () => {
  web.serve = (request, response) => {
    request.resume()
    request.on('end', () => {
      response.writeHead(200, { Trailer: 'X-Sum' })
      response.write(JSON.stringify(request.rawTrailers))
      response.addTrailers([['X-Sum', 'abc'], ['X-More', 'd']])
      response.end()
    })
  }
  const answer = await ask(
    desk.port,
    request(
      'POST /',
      ['TE: trailers', 'Trailer: X-Check', 'Transfer-Encoding: chunked'],
      '2\r\nhi\r\n0\r\nX-Check: 9\r\nSet-Cookie: a\r\n\r\n',
    ),
  )
  assert.is(unchunk(bodyOf(answer)), '["X-Check","9"]')
  assert.match(answer, /\r\n0\r\nX-Sum: abc\r\nX-More: d\r\n\r\n$/i)
})

gateway('Expect: 100-continue asks the upstream, and the body waits for its word', async () => {
  const seen: string[] = []
  web.serve = (request, response) => {
    seen.push(String(request.headers.expect))
    request.on('data', (bytes) => seen.push(String(bytes)))
    request.on('end', () => response.end('thanks'))
    response.writeContinue()
  }
  const raw = await openRaw(desk.port)
  raw.socket.write(request('POST /', ['Expect: 100-continue', 'Content-Length: 4']))
  assert.match(await raw.until(/100 Continue\r\n\r\n/), /^HTTP\/1\.1 100 Continue\r\n\r\n$/)
  assert.equal(seen, ['100-continue'])
  raw.socket.write('body')
  assert.match(await raw.closed, /HTTP\/1\.1 200 OK[^]*thanks/)
  assert.equal(seen, ['100-continue', 'body'])
})

gateway('an upstream that refuses an expectation is heard, and no 100 is made up', async () => {
  web.serve = (_, response) => {
    response.writeHead(413, { 'content-length': '3', connection: 'close' })
    response.end('big')
  }
  const raw = await openRaw(desk.port)
  raw.socket.write(
    `POST / HTTP/1.1\r\nHost: ${HOST}\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\n\r\n`,
  )
  const answer = await raw.closed
  assert.match(answer, /^HTTP\/1\.1 413 [^]*connection: close[^]*\r\n\r\nbig$/i)
  assert.not.match(answer, /100 Continue/)
})

gateway('an expectation other than 100-continue is refused with 417', async () => {
  let asked = 0
  web.serve = (_, response) => {
    asked++
    response.end()
  }
  assert.match(await ask(desk.port, request('GET /', ['Expect: tea'])), /^HTTP\/1\.1 417 /)
  assert.is(asked, 0)
})

gateway(
  'an answer that comes before the request is whole is heard, then the connection ends',
  async () => {
    web.serve = (_, response) => {
      response.writeHead(403, { 'content-length': '2' })
      response.end('no')
    }
    const raw = await openRaw(desk.port)
    raw.socket.write(`POST / HTTP/1.1\r\nHost: ${HOST}\r\nContent-Length: 50000000\r\n\r\n`)
    raw.socket.write(new Uint8Array(200_000))
    assert.match(await raw.closed, /^HTTP\/1\.1 403 [^]*\r\n\r\nno$/)
  },
)

gateway('HEAD, 204 and 304 have no body and keep their heads', async () => {
  web.serve = (request, response) => {
    if (request.url === '/204') response.writeHead(204, { 'x-a': '1' })
    else if (request.url === '/304') response.writeHead(304, { etag: '"1"', 'x-a': '1' })
    else response.writeHead(200, { 'content-length': '1234', 'x-a': '1' })
    response.end()
  }
  const head = await ask(desk.port, request('HEAD /'))
  assert.match(head, /^HTTP\/1\.1 200 [^]*content-length: 1234[^]*\r\n\r\n$/i)
  for (const status of [204, 304]) {
    const answer = await ask(desk.port, request(`GET /${status}`))
    assert.match(answer, new RegExp(`^HTTP/1\\.1 ${status} [^]*x-a: 1[^]*\\r\\n\\r\\n$`, 'i'))
    assert.not.match(answer, /transfer-encoding/i)
  }
  assert.not.match(await ask(desk.port, request('GET /204')), /content-length/i)
})

gateway('HEAD answered without a length stays without a body', async () => {
  web.serve = (_, response) => response.end()
  assert.match(await ask(desk.port, request('HEAD /')), /^HTTP\/1\.1 200 [^]*\r\n\r\n$/)
})

gateway('interim responses come before the response: 102, 103', async () => {
  web.serve = (_, response) => {
    response.writeProcessing()
    response.writeEarlyHints({ link: '</a.css>; rel=preload; as=style' })
    response.end('page')
  }
  const answer = await ask(desk.port, request('GET /'))
  assert.match(
    answer,
    /^HTTP\/1\.1 102 Processing\r\n\r\nHTTP\/1\.1 103 Early Hints\r\nLink: <\/a\.css>/i,
  )
  assert.match(answer, /HTTP\/1\.1 200 OK/)
})

gateway('HTTP/1.0 visitors get no interim responses, no chunks, and a close', async () => {
  web.serve = (_, response) => {
    response.writeProcessing()
    response.write('one')
    response.end('two')
  }
  const answer = await ask(desk.port, `GET / HTTP/1.0\r\nHost: ${HOST}\r\n\r\n`)
  assert.match(answer, /^HTTP\/1\.1 200 OK[^]*\r\n\r\nonetwo$/)
  assert.not.match(answer, /chunked|102/i)
})

gateway('one connection serves request after request, pipelined ones in order', async () => {
  web.serve = (request, response) => {
    // The first is the slowest.
    const wait = request.url === '/0' ? 30 : 0
    request.resume()
    request.on('end', () => setTimeout(() => response.end(`<${request.url}>`), wait))
  }
  const raw = await openRaw(desk.port)
  let wire = ''
  for (let i = 0; i < 10; i++) {
    wire += i % 2 === 0
      ? `GET /${i} HTTP/1.1\r\nHost: ${HOST}\r\n\r\n`
      : `POST /${i} HTTP/1.1\r\nHost: ${HOST}\r\nContent-Length: 3\r\n\r\nabc`
  }
  raw.socket.write(wire)
  const answer = await raw.until(/<\/9>/)
  assert.equal([...answer.matchAll(/<\/(\d)>/g)].map((m) => m[1]).join(''), '0123456789')
  assert.is(answer.match(/HTTP\/1\.1 200 OK/g)?.length, 10)
  raw.socket.destroy()
})

gateway('a visitor that stops reading stops the upstream, and nobody else', async () => {
  let written = 0
  let full = (): void => {}
  const stopped = new Promise<void>((resolve) => full = resolve)
  let closed = (): void => {}
  const ended = new Promise<void>((resolve) => closed = resolve)
  web.serve = (request, response) => {
    if (request.url === '/small') return void response.end('small')
    response.on('close', () => closed())
    const chunk = new Uint8Array(65_536)
    let quiet: ReturnType<typeof setTimeout> | undefined
    const pump = (): void => {
      clearTimeout(quiet)
      // No drain for so long: the upstream is held.
      quiet = setTimeout(full, 400)
      while (written < 256 * 1024 * 1024) {
        written += chunk.length
        if (!response.write(chunk)) return void response.once('drain', pump)
      }
    }
    pump()
  }
  const visitor = deafVisitor(desk.port, request('GET /big'))
  await stopped
  assert.ok(written < 48 * 1024 * 1024, `${written} bytes were taken from the upstream`)
  assert.ok(desk.relay.bufferedBytes <= 16 * 1024 * 1024)
  for (let i = 0; i < 3; i++) assert.match(await ask(desk.port, request('GET /small')), /small/)
  visitor.kill('SIGKILL')
  await ended
})

gateway('an upstream that speaks HTTP/1.0 ends its body by closing', async () => {
  const old = await rawUpstream((socket) => {
    socket.once('data', () => socket.end('HTTP/1.0 200 OK\r\nX-Old: 1\r\n\r\nold body'))
  })
  const other = await openDesk({ upstream: old.upstream })
  const answer = await ask(other.port, request('GET /'))
  assert.match(answer, /X-Old: 1/)
  assert.is(unchunk(bodyOf(answer)), 'old body')
  await other.close()
  await old.close()
})

gateway('everything is let go: no stream is left, each exchange was told once', () => {
  assert.is(desk.relay.size, 0)
  assert.is(desk.agent.size, 0)
  assert.is(desk.gateway.size, 0)
  assert.is(desk.relay.bufferedBytes + desk.agent.bufferedBytes, 0)
  assert.equal(desk.troubles, [])
})

gateway.run()
