// The agent's end of readable HTTP, asked by a relay that the test plays: what it opens and sends by
// hand, and a real upstream behind. A relay that lies gets nothing past the framing.
import * as http from 'node:http'
import * as https from 'node:https'
import { mkdtempSync, rmSync } from 'node:fs'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { serveExchange } from '../../agent/exchange.ts'
import { parseUpstream, type Upstream } from '../../agent/forward.ts'
import { hostHttp } from '../../agent/host/http.ts'
import { connect } from '../../agent/host/tcp.ts'
import type { World } from '../../agent/world.ts'
import { EMPTY, text, utf8 } from '../../core/bytes.ts'
import type { TunnelError } from '../../core/errors.ts'
import {
  encodeBody,
  encodeHead,
  encodeRecord,
  encodeRequestHead,
  encodeTrailers,
  ExchangeReader,
  type Fields,
  RECORD,
  type RequestHead,
} from '../../core/exchange.ts'
import { RESET } from '../../core/frame.ts'
import type { Mux, Stream, StreamReset } from '../../core/mux.ts'
import { makeCertificate } from '../../relay/certificate.ts'
import { joinedMuxes } from '../support/exchange.ts'

const exchange = suite('agent/exchange')

const HEAD: RequestHead = {
  method: 'GET',
  target: '/',
  authority: 'web.apps.example.test',
  scheme: 'https',
  headers: [],
}
const POST: RequestHead = { ...HEAD, method: 'POST', headers: [['Content-Length', '5']] }

const world = { http: hostHttp, net: { connect } as unknown as World['net'] }

interface Answer {
  told: string[]
  headers: Fields
  trailers: Fields
  body: string
  error: StreamReset | undefined
}

let closers: (() => void)[] = []
let relay: Mux
let agent: Mux
let cut: () => void
let troubles: TunnelError[]
let done: number
let bytes: { forth: number; back: number }

/** The agent in front of `upstream`. */
function serve(upstream: Upstream): void {
  troubles = []
  done = 0
  bytes = { forth: 0, back: 0 }
  const muxes = joinedMuxes((stream) => {
    stream.accept()
    serveExchange(stream, {
      world,
      upstream,
      bytes,
      onTrouble: (error) => void troubles.push(error),
      done: () => void done++,
    })
  })
  relay = muxes.relay
  agent = muxes.agent
  cut = muxes.cut
  closers.push(cut)
}

async function listen(
  handler: http.RequestListener,
  place: { port: number; host: string } | { path: string } = { port: 0, host: '127.0.0.1' },
): Promise<http.Server> {
  const server = http.createServer(handler)
  await new Promise<void>((resolve) => server.listen(place, resolve))
  closers.push(() => {
    server.closeAllConnections()
    server.close()
  })
  return server
}

function at(server: http.Server): Upstream {
  const { port } = server.address() as AddressInfo
  return { kind: 'tcp', host: '127.0.0.1', port, text: `http://127.0.0.1:${port}` }
}

exchange.after.each(() => {
  for (const close of closers) close()
  closers = []
})

function open(tail: Uint8Array): Stream {
  return relay.open({ kind: 'http', address: '192.0.2.7', port: 1, endpoint: 'web', tail })
}

/** Reads the answer to `method` until the stream is closed. */
function read(
  stream: Stream,
  method = 'GET',
  each: (answer: Answer) => void = () => {},
): Promise<Answer> {
  const answer: Answer = { told: [], headers: [], trailers: [], body: '', error: undefined }
  const reader = ExchangeReader.ofResponse(method, {
    info: ({ status }) => void answer.told.push(`info ${status}`),
    head: ({ status, headers }) => {
      answer.told.push(`head ${status}`)
      answer.headers = headers
    },
    body: (part) => void (answer.body += text(part)),
    end: (trailers) => {
      answer.told.push('end')
      answer.trailers = trailers
    },
  })
  return new Promise((resolve) => {
    stream.handle({
      data: (part) => {
        reader.push(part)
        each(answer)
      },
      end: () => reader.end(),
      closed: (error) => resolve({ ...answer, error: error as StreamReset | undefined }),
    })
  })
}

async function ask(head: RequestHead, ...records: Uint8Array[]): Promise<Answer> {
  const stream = open(encodeRequestHead(head))
  const answer = read(stream, head.method)
  for (const record of records) stream.write(record)
  stream.end()
  return await answer
}

exchange(
  'one exchange: head, body and trailers both ways, counted, closed, told once',
  async () => {
    let seen: http.IncomingMessage | undefined
    const server = await listen((request, response) => {
      seen = request
      let body = ''
      request.on('data', (part) => body += part)
      request.on('end', () => {
        response.writeHead(200, ['X-A', 'b', 'Trailer', 'X-Sum'])
        response.write(`${body} ${request.rawTrailers}`)
        response.addTrailers({ 'X-Sum': '1' })
        response.end()
      })
    })
    serve(at(server))
    const head: RequestHead = {
      ...HEAD,
      method: 'POST',
      target: '/a?b',
      headers: [['X-One', '1'], ['te', 'trailers']],
      chunked: true,
    }
    const answer = await ask(head, ...encodeBody(utf8('hello')), encodeTrailers([['X-T', '2']]))
    assert.equal(answer.told, ['head 200', 'end'])
    assert.is(answer.body, 'hello X-T,2')
    assert.equal(answer.trailers.map(([name, value]) => [name.toLowerCase(), value]), [[
      'x-sum',
      '1',
    ]])
    assert.is(answer.error, undefined)
    assert.is(seen!.method, 'POST')
    assert.is(seen!.url, '/a?b')
    assert.is(seen!.headers.host, 'web.apps.example.test')
    assert.is(seen!.headers['x-one'], '1')
    assert.is(seen!.headers.te, 'trailers')
    assert.is(seen!.headers['transfer-encoding'], 'chunked')
    assert.is(done, 1)
    assert.is(bytes.forth, encodeRequestHead(head).length + 10 + 5 + '[["X-T","2"]]'.length)
    assert.ok(bytes.back > 20)
    assert.equal(troubles, [])
    assert.is(agent.size + relay.size, 0)
  },
)

for (
  const [name, tail] of [
    ['nothing', EMPTY],
    ['no JSON', utf8('GET / HTTP/1.1')],
    ['an absolute target', utf8(JSON.stringify({ ...HEAD, target: 'http://169.254.169.254/' }))],
    ['a line end in the target', utf8(JSON.stringify({ ...HEAD, target: '/ HTTP/1.1\r\nX: y' }))],
    ['a line end in a value', utf8(JSON.stringify({ ...HEAD, headers: [['a', 'b\r\nc: d']] }))],
    ['two framings', utf8(JSON.stringify({ ...POST, chunked: true }))],
    [
      'a framing of its own',
      utf8(JSON.stringify({ ...HEAD, headers: [['Transfer-Encoding', 'x']] })),
    ],
    ['CONNECT', utf8(JSON.stringify({ ...HEAD, method: 'CONNECT', target: 'a:1' }))],
  ] as const
) {
  exchange(`a relay whose head is ${name} is reset, and the upstream not asked`, async () => {
    let asked = 0
    serve(at(
      await listen((_, response) => {
        asked++
        response.end()
      }),
    ))
    const answer = await read(open(tail))
    assert.is(answer.error?.reset, RESET.protocol)
    assert.is(asked, 0)
    assert.is(done, 1)
  })
}

for (
  const [name, head, records] of [
    ['more than the length', POST, [...encodeBody(utf8('hello, and more'))]],
    ['less than the length', POST, [...encodeBody(utf8('hell'))]],
    ['a body to a request without one', HEAD, [...encodeBody(utf8('x'))]],
    ['an unknown record', POST, [encodeRecord(7, utf8('x'))]],
    ['a response head', POST, [encodeHead({ status: 200, headers: [] })]],
    ['trailers with a framing', { ...HEAD, chunked: true }, [
      encodeRecord(RECORD.trailers, utf8('[["Content-Length","3"]]')),
    ]],
    ['bytes before a switch', { ...HEAD, upgrade: 'websocket' }, [...encodeBody(utf8('x'))]],
  ] as [string, RequestHead, Uint8Array[]][]
) {
  exchange(
    `a relay that sends ${name} is reset, and the upstream's request is not ended as whole`,
    async () => {
      let whole = false
      serve(at(
        await listen((request, response) => {
          request.on('error', () => {})
          request.on('end', () => void (whole ||= request.headers['content-length'] !== undefined))
          response.on('error', () => {})
        }),
      ))
      const answer = await ask(head, ...records)
      assert.is(answer.error?.reset, RESET.protocol)
      assert.is(whole, false)
      assert.is(done, 1)
    },
  )
}

exchange(
  "a reset by the relay, and the loss of the link, end the upstream's request at once",
  async () => {
    for (const how of ['reset', 'gone']) {
      let closed = (): void => {}
      const left = new Promise<void>((resolve) => closed = resolve)
      serve(at(
        await listen((_, response) => {
          response.on('close', () => closed())
          response.write('some')
        }),
      ))
      const stream = open(encodeRequestHead(HEAD))
      const answer = read(stream, 'GET', ({ body }) => {
        if (body === 'some') how === 'reset' ? stream.reset(RESET.aborted) : cut()
      })
      stream.end()
      await left
      await answer
      assert.is(done, 1)
    }
  },
)

exchange('what is left of an upload after the answer is let go', async () => {
  serve(at(
    await listen((_, response) => {
      response.writeHead(403, { 'content-length': '2', connection: 'close' })
      response.end('no')
    }),
  ))
  const stream = open(encodeRequestHead({ ...POST, headers: [['Content-Length', '10000000']] }))
  let ended = (): void => {}
  const heard = new Promise<void>((resolve) => ended = resolve)
  const answer = read(stream, 'POST', ({ body }) => void (body === 'no' && ended()))
  for (const record of encodeBody(new Uint8Array(100_000))) stream.write(record)
  await heard
  for (let i = 0; i < 50; i++) {
    for (const record of encodeBody(new Uint8Array(60_000))) stream.write(record)
  }
  stream.reset(RESET.aborted)
  assert.equal((await answer).told, ['head 403', 'end'])
  assert.equal(troubles, [])
})

exchange(
  'an upstream that refuses, that is none, and that breaks off before an answer',
  async () => {
    serve({ kind: 'tcp', host: '127.0.0.1', port: 1, text: 'nowhere' })
    const down = await ask(HEAD)
    assert.is(down.error?.reset, RESET.unreachable)
    assert.match(down.error!.reason, /127\.0\.0\.1:1/)
    assert.is(troubles[0]?.code, 'net/refused')
    serve({ kind: 'unix', path: '/nonexistent/app.sock', text: 'unix' })
    assert.is((await ask(HEAD)).error?.reset, RESET.unreachable)
    serve(at(await listen((request) => request.socket.destroy())))
    assert.is((await ask(POST, ...encodeBody(utf8('hello')))).error?.reset, RESET.unreachable)
    assert.is(troubles.length, 1)
  },
)

exchange('an upstream on a unix socket', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'sotto-exchange-'))
  closers.push(() => rmSync(folder, { recursive: true }))
  const path = join(folder, 'app.sock')
  await listen((request, response) => void request.pipe(response), { path })
  serve(parseUpstream(`unix:${path}`))
  assert.is((await ask(POST, ...encodeBody(utf8('hello')))).body, 'hello')
})

exchange('an upstream that speaks TLS, with a certificate of its own', async () => {
  const { cert, key } = await makeCertificate(['localhost'], Date.now())
  const server = https.createServer(
    { cert, key },
    (request, response) => void request.pipe(response),
  )
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  closers.push(() => {
    server.closeAllConnections()
    server.close()
  })
  const { port } = server.address() as AddressInfo
  serve({ kind: 'tls', host: '127.0.0.1', port, verify: false, text: 'https' })
  assert.is((await ask(POST, ...encodeBody(utf8('hello')))).body, 'hello')
  serve({ kind: 'tls', host: '127.0.0.1', port, verify: true, text: 'https' })
  assert.is((await ask(POST, ...encodeBody(utf8('hello')))).error?.reset, RESET.unreachable)
})

exchange('localhost is found on the family that listens, with a body and without', async () => {
  for (const head of [HEAD, POST]) {
    const server = await listen((request, response) => void request.pipe(response), {
      port: 0,
      host: '::1',
    })
    const { port } = server.address() as AddressInfo
    serve(parseUpstream(String(port)))
    const answer = await ask(head, ...(head === POST ? encodeBody(utf8('hello')) : []))
    assert.is(answer.error, undefined)
    assert.is(answer.body, head === POST ? 'hello' : '')
  }
})

exchange('a response whose fields cannot be told is a bad gateway, not a crash', async () => {
  serve(at(
    await listen((_, response) => {
      for (let i = 0; i < 250; i++) response.setHeader(`x-${i}`, '1')
      response.end('many')
    }),
  ))
  assert.is((await ask(HEAD)).error?.reset, RESET.unreachable)
  assert.is(troubles.length, 1)
})

exchange('a thousand exchanges leave nothing behind', async () => {
  serve(at(await listen((request, response) => void request.pipe(response))))
  for (let round = 0; round < 20; round++) {
    const answers = await Promise.all(
      Array.from({ length: 50 }, () => ask(POST, ...encodeBody(utf8('hello')))),
    )
    assert.ok(answers.every(({ body }) => body === 'hello'))
  }
  assert.is(done, 1000)
  assert.is(agent.size + relay.size, 0)
  assert.is(agent.bufferedBytes + relay.bufferedBytes, 0)
})

exchange.run()
