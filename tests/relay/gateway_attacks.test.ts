// runtimes: bun node deno
// Requests that two programs could read in two ways, from raw bytes over real TLS: each is refused
// before the agent hears of it, and what was hidden behind it never becomes a request.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { FIELDS_MAX } from '../../core/exchange.ts'
import { ask, type Desk, HOST, openDesk, openRaw, rawUpstream } from '../support/exchange.ts'

const attacks = suite('relay/gateway attacks')

const SMUGGLED = `GET /smuggled HTTP/1.1\r\nHost: ${HOST}\r\n\r\n`

let desk: Desk
let heard = ''
let closeUpstream: () => Promise<void>

attacks.before(async () => {
  const up = await rawUpstream((socket) => {
    socket.on('data', (bytes) => {
      heard += bytes.toString('latin1')
      socket.end('HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok')
    })
  })
  closeUpstream = up.close
  desk = await openDesk({ upstream: up.upstream })
})

attacks.before.each(() => {
  heard = ''
})

attacks.after(async () => {
  await desk.close()
  await closeUpstream()
})

function post(fields: string, body = '', version = '1.1'): string {
  return `POST / HTTP/${version}\r\nHost: ${HOST}\r\n${fields}\r\n${body}`
}

function get(lines: string): string {
  return `${lines}\r\n\r\n`
}

const host = `Host: ${HOST}`
const chunked = 'Transfer-Encoding: chunked\r\n'
const hidden = `0\r\n\r\n${SMUGGLED}`

/** Framing: where does this request end? */
const FRAMING: [name: string, bytes: string][] = [
  ['CL and TE', post(`Content-Length: 5\r\n${chunked}`, hidden)],
  ['TE and CL', post(`${chunked}Content-Length: 5\r\n`, hidden)],
  ['CL of 0 and TE', post(`Content-Length: 0\r\n${chunked}`, hidden)],
  ['two lengths that differ', post('Content-Length: 0\r\nContent-Length: 5\r\n', SMUGGLED)],
  ['two lengths that agree', post('Content-Length: 5\r\nContent-Length: 5\r\n', 'hello')],
  ['two lengths in one field', post('Content-Length: 5, 5\r\n', 'hello')],
  ['a length with a sign', post('Content-Length: +5\r\n', 'hello')],
  ['a negative length', post('Content-Length: -5\r\n', 'hello')],
  ['a length in hex', post('Content-Length: 0x5\r\n', 'hello')],
  ['a length with a blank inside', post('Content-Length: 1 0\r\n', 'hello')],
  ['a length with a fraction', post('Content-Length: 5.0\r\n', 'hello')],
  ['a length beyond 2^64', post('Content-Length: 18446744073709551621\r\n', 'hello')],
  ['an empty length', post('Content-Length:\r\n', SMUGGLED)],
  ['gzip before chunked', post('Transfer-Encoding: gzip, chunked\r\n', hidden)],
  ['chunked before gzip', post('Transfer-Encoding: chunked, gzip\r\n', hidden)],
  ['chunked twice', post('Transfer-Encoding: chunked, chunked\r\n', hidden)],
  ['two codings in two fields', post(`${chunked}${chunked}`, hidden)],
  ['two fields, the second unknown', post(`${chunked}Transfer-Encoding: x\r\n`, hidden)],
  ['a coding that is none', post('Transfer-Encoding: xchunked\r\n', hidden)],
  ['identity', post('Transfer-Encoding: identity\r\n', SMUGGLED)],
  ['a coding in quotes', post('Transfer-Encoding: "chunked"\r\n', hidden)],
  ['a coding with a parameter', post('Transfer-Encoding: chunked;q=1\r\n', hidden)],
  ['an empty coding', post('Transfer-Encoding:\r\n', hidden)],
  ['a blank before the colon', post('Transfer-Encoding : chunked\r\n', hidden)],
  ['a blank before the colon of a length', post('Content-Length : 5\r\n', 'hello')],
  ['a tab before the colon', post('Transfer-Encoding\t: chunked\r\n', hidden)],
  ['a vertical tab before chunked', post('Transfer-Encoding: \x0bchunked\r\n', hidden)],
  ['TE in HTTP/1.0', post(chunked, hidden, '1.0')],
  ['a folded coding', post('Transfer-Encoding:\r\n chunked\r\n', hidden)],
  ['a folded field', post('X-A: b\r\n c\r\nContent-Length: 5\r\n', 'hello')],
  ['a fold at the first field', `POST / HTTP/1.1\r\n X: y\r\n${host}\r\n\r\n`],
  ['a bare LF after a field', post('X-A: b\nContent-Length: 5\r\n', 'hello')],
  ['a bare LF after the request line', get(`GET / HTTP/1.1\n${host}`)],
  ['bare LFs alone', `GET / HTTP/1.1\n${host}\n\n`],
  ['a bare CR in a value', post('X-A: b\rContent-Length: 5\r\n', 'hello')],
  ['NUL in a value', post('X-A: b\0c\r\n')],
  ['NUL in a name', post('X-\0A: b\r\n')],
  ['another control in a value', post('X-A: b\x01c\r\n')],
  ['DEL in a value', post('X-A: b\x7fc\r\n')],
  ['a name with a blank', post('X A: b\r\n')],
  ['a name beyond ASCII', post('X-\xe9: b\r\n')],
  ['an empty name', post(': b\r\n')],
  ['a line without a colon', post('nonsense\r\n')],
  ['a length named in octal escapes', post('Content\x2dLength\xa0: 5\r\n', 'hello')],
]

/** The body itself: the head is fine, so the agent may have heard of the request, but not of its end. */
const CHUNKS: [name: string, body: string][] = [
  ['a size that is no number', `xyz\r\nhello\r\n${hidden}`],
  ['a size with a sign', `+5\r\nhello\r\n${hidden}`],
  ['a size in 0x', `0x5\r\nhello\r\n${hidden}`],
  ['a size beyond 2^64', `10000000000000005\r\nhello\r\n${hidden}`],
  ['a size after a blank', ` 5\r\nhello\r\n${hidden}`],
  ['an empty size', `\r\nhello\r\n${hidden}`],
  ['a chunk longer than its size', `3\r\nhello\r\n${hidden}`],
  ['a bare LF after the size', `5\nhello\r\n${hidden}`],
  ['a bare CR in an extension', `5;a=\rb\r\nhello\r\n${hidden}`],
  ['NUL in an extension', `5;a=\0\r\nhello\r\n${hidden}`],
  ['a trailer with a blank in its name', '0\r\nX Y: 1\r\n\r\n'],
  ['a length in the trailers', '0\r\nContent-Length: 5\r\n\r\n'],
]

/** Which resource is meant, and whose? */
const TARGETS: [name: string, bytes: string, status?: number][] = [
  ['no host', get('GET / HTTP/1.1\r\nX-A: b')],
  ['no host in HTTP/1.0', get('GET / HTTP/1.0')],
  ['two hosts', get(`GET / HTTP/1.1\r\n${host}\r\n${host}`)],
  ['two hosts that differ', get(`GET / HTTP/1.1\r\n${host}\r\nhost: other.test`)],
  ['an empty host', get('GET / HTTP/1.1\r\nHost:')],
  ['a host with a path', get(`GET / HTTP/1.1\r\n${host}/x`)],
  ['a host with a user', get(`GET / HTTP/1.1\r\nHost: a@${HOST}`)],
  ['a host with a blank', get('GET / HTTP/1.1\r\nHost: a b')],
  ['a host with a port that is none', get(`GET / HTTP/1.1\r\n${host}:x`)],
  ['a list of hosts', get(`GET / HTTP/1.1\r\n${host}, other.test`)],
  ['an absolute target', get(`GET https://${HOST}/ HTTP/1.1\r\n${host}`)],
  ['an absolute target elsewhere', get(`GET http://127.0.0.1/ HTTP/1.1\r\n${host}`)],
  ['a target without a slash', get(`GET x HTTP/1.1\r\n${host}`)],
  ['a target with a fragment', get(`GET /#a HTTP/1.1\r\n${host}`)],
  ['a star with GET', get(`GET * HTTP/1.1\r\n${host}`)],
  ['a blank in the target', get(`GET /a b HTTP/1.1\r\n${host}`)],
  ['a tab in the target', get(`GET /a\tb HTTP/1.1\r\n${host}`)],
  ['NUL in the target', get(`GET /\0 HTTP/1.1\r\n${host}`)],
  ['CONNECT', get(`CONNECT other.test:443 HTTP/1.1\r\n${host}`), 405],
  ['TRACE', get(`TRACE / HTTP/1.1\r\n${host}`), 405],
  ['HTTP/2.0 on the line', get(`GET / HTTP/2.0\r\n${host}`)],
  ['HTTP/0.9', 'GET /\r\n\r\n'],
  ['HTTP/1.1 with junk', get(`GET / HTTP/1.1x\r\n${host}`)],
  ['a lower-case version', get(`GET / http/1.1\r\n${host}`)],
  ['a method with a colon', get(`GE:T / HTTP/1.1\r\n${host}`)],
  ['the preface of HTTP/2', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'],
  [
    'an upgrade with a body',
    post('Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n', 'hello'),
  ],
  ['an upgrade in chunks', post(`Connection: Upgrade\r\nUpgrade: websocket\r\n${chunked}`, hidden)],
]

for (const [name, bytes] of FRAMING) {
  attacks(`framing: ${name}`, async () => {
    const answer = await ask(desk.port, bytes)
    assert.match(answer, /^HTTP\/1\.1 400 /)
    assert.is(answer.match(/HTTP\/1\.1 /g)?.length, 1, 'something was answered after the refusal')
    assert.is(heard, '')
  })
}

for (const [name, bytes, status = 400] of TARGETS) {
  attacks(`target: ${name}`, async () => {
    const answer = await ask(desk.port, bytes)
    assert.match(answer, new RegExp(`^HTTP/1\\.1 ${status} `))
    assert.is(answer.match(/HTTP\/1\.1 /g)?.length, 1, 'something was answered after the refusal')
    assert.is(heard, '')
  })
}

for (const [name, body] of CHUNKS) {
  attacks(`chunks: ${name}`, async () => {
    const answer = await ask(desk.port, post(chunked, body))
    // The agent may have been faster: then the answer is whole, and the connection ends after it.
    assert.match(answer, /^(?:HTTP\/1\.1 (?:400|200) |$)/)
    assert.not.match(heard, /smuggled/)
    assert.not.match(heard, /\r\n0\r\n\r\n$/, 'the body was ended as if it were whole')
  })
}

attacks('a visitor cannot end the head of the response early with what it sends', async () => {
  const answer = await ask(
    desk.port,
    get(`GET /a%0d%0aX-Injected:%201 HTTP/1.1\r\n${host}\r\nConnection: close`),
  )
  assert.match(answer, /^HTTP\/1\.1 200 /)
  assert.match(heard, /^GET \/a%0d%0aX-Injected:%201 HTTP\/1\.1\r\n/m)
})

attacks('200 fields are taken, 201 are refused with 431', async () => {
  const fields = (count: number): string =>
    get(`GET / HTTP/1.1\r\n${host}\r\nConnection: close${'\r\nX-A: b'.repeat(count - 2)}`)
  // The relay adds five of its own and keeps one of these two back.
  assert.match(await ask(desk.port, fields(FIELDS_MAX - 5)), /^HTTP\/1\.1 200 /)
  assert.match(await ask(desk.port, fields(FIELDS_MAX + 1)), /^HTTP\/1\.1 431 /)
  assert.match(await ask(desk.port, fields(1500)), /^HTTP\/1\.1 (?:431|400) /)
})

attacks(
  'a head of 56 KiB is taken, one of 64 KiB and one without an end are refused with 431',
  async () => {
    const head = (bytes: number): string =>
      get(`GET / HTTP/1.1\r\n${host}\r\nConnection: close\r\nX-A: ${'x'.repeat(bytes)}`)
    assert.match(await ask(desk.port, head(57_000)), /^HTTP\/1\.1 200 /)
    assert.match(await ask(desk.port, head(65_536)), /^HTTP\/1\.1 431 /)
    assert.match(await ask(desk.port, head(65_536).slice(0, -4)), /^HTTP\/1\.1 431 /)
  },
)

attacks('a target of 64 KiB is refused', async () => {
  const answer = await ask(desk.port, get(`GET /${'x'.repeat(65_536)} HTTP/1.1\r\n${host}`))
  assert.match(answer, /^HTTP\/1\.1 (?:414|431) /)
})

attacks(
  'empty lines before a request are let go, bytes after one that closes are not read',
  async () => {
    const answer = await ask(
      desk.port,
      `\r\n\r\nGET / HTTP/1.1\r\n${host}\r\nConnection: close\r\n\r\n${SMUGGLED}`,
    )
    assert.match(answer, /^HTTP\/1\.1 200 /)
    assert.not.match(heard, /smuggled/)
  },
)

attacks('a visitor that pipelines without end is cut off, and takes few streams', async () => {
  const slow = await rawUpstream(() => {})
  let asked = 0
  const other = await openDesk({
    upstream: slow.upstream,
    pick: () => {
      asked++
      return undefined
    },
  })
  // Nobody serves: each is answered at once, and many in a row are nothing to refuse.
  const raw = await openRaw(other.port)
  raw.socket.write(SMUGGLED.repeat(50))
  raw.socket.write(get(`GET / HTTP/1.1\r\n${host}\r\nConnection: close`))
  assert.is((await raw.closed).match(/HTTP\/1\.1 404/g)?.length, 51)
  assert.is(asked, 51)
  await other.close()
  const held = await openDesk({ upstream: slow.upstream })
  const flood = await openRaw(held.port)
  flood.socket.write(SMUGGLED.repeat(500))
  await flood.closed
  await held.ended(64)
  assert.is(held.results.length, 64)
  assert.is(held.relay.size, 0)
  await held.close()
  await slow.close()
})

attacks('one refused request spoils nothing for the next connection', async () => {
  const bad = await openRaw(desk.port)
  bad.socket.write(post(`Content-Length: 5\r\n${chunked}`, hidden))
  await bad.closed
  const answer = await ask(desk.port, get(`GET / HTTP/1.1\r\n${host}\r\nConnection: close`))
  assert.match(answer, /^HTTP\/1\.1 200 /)
  assert.is(desk.gateway.size, 0)
  assert.is(desk.relay.size, 0)
})

attacks.run()
