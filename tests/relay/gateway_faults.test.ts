// runtimes: bun node deno
// What goes wrong between a visitor and an upstream: whoever leaves, the other side hears of it; what
// cannot be answered is told as a page; what was begun and cannot be finished is broken off, never
// ended as if it were whole. Nobody waits for ever.
import * as http from 'node:http'
import type { AddressInfo } from 'node:net'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { utf8 } from '../../core/bytes.ts'
import { encodeBody, encodeHead, encodeRecord, RECORD } from '../../core/exchange.ts'
import { RESET } from '../../core/frame.ts'
import { Mux, type Stream } from '../../core/mux.ts'
import { Problem } from '../../relay/problem.ts'
import { serveExchange } from '../../agent/exchange.ts'
import type { Upstream } from '../../agent/forward.ts'
import {
  ask,
  type Desk,
  type DeskOptions,
  exchangeWorld,
  HOST,
  joinedMuxes,
  openDesk,
  openRaw,
  rawUpstream,
} from '../support/exchange.ts'

const faults = suite('relay/gateway faults')

const GET = `GET / HTTP/1.1\r\nHost: ${HOST}\r\nConnection: close\r\n\r\n`
const NOWHERE: Upstream = { kind: 'tcp', host: '127.0.0.1', port: 1, text: 'http://127.0.0.1:1' }

const closers: (() => Promise<void>)[] = []

faults.after.each(async () => {
  for (const close of closers.splice(0).reverse()) await close()
})

async function desk(options: DeskOptions): Promise<Desk> {
  const opened = await openDesk(options)
  closers.push(() => opened.close())
  return opened
}

async function upstream(
  serve: (request: http.IncomingMessage, response: http.ServerResponse) => void,
): Promise<Upstream> {
  const server = http.createServer(serve)
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  closers.push(() => {
    server.closeAllConnections()
    return new Promise((resolve) => void server.close(() => resolve()))
  })
  const { port } = server.address() as AddressInfo
  return { kind: 'tcp', host: '127.0.0.1', port, text: 'upstream' }
}

function event(): { fire: () => void; fired: Promise<void> } {
  let fire = (): void => {}
  const fired = new Promise<void>((resolve) => fire = resolve)
  return { fire: () => fire(), fired }
}

/** A desk whose agent is told what to send. */
function scripted(
  opened: (stream: Stream) => void,
  more: Partial<DeskOptions> = {},
): Promise<Desk> {
  return desk({ upstream: NOWHERE, opened, ...more })
}

function taking(stream: Stream, ...records: Uint8Array[]): void {
  stream.accept()
  stream.handle({ data() {}, end() {}, closed() {} })
  for (const record of records) stream.write(record)
}

const HEAD = encodeHead({ status: 200, headers: [] })

// Whoever leaves.

faults("a visitor that leaves before the answer ends the upstream's request", async () => {
  const asked = event()
  const left = event()
  const { port, ended, results, relay } = await desk({
    upstream: await upstream((_, response) => {
      response.on('close', left.fire)
      asked.fire()
    }),
  })
  const raw = await openRaw(port)
  raw.socket.write(GET)
  await asked.fired
  raw.socket.destroy()
  await left.fired
  await ended(1)
  assert.is(results[0]!.status, 0)
  assert.is(results[0]!.whole, false)
  assert.is(relay.size, 0)
})

faults(
  "a visitor that leaves in the middle of a response ends the upstream's request",
  async () => {
    const left = event()
    const { port } = await desk({
      upstream: await upstream((_, response) => {
        response.on('close', left.fire)
        response.write('some')
      }),
    })
    const raw = await openRaw(port)
    raw.socket.write(GET)
    await raw.until(/some/)
    raw.socket.destroy()
    await left.fired
  },
)

faults(
  'a visitor that leaves in the middle of its upload breaks it off, and does not end it',
  async () => {
    const begun = event()
    const broken = event()
    let whole = false
    const { port } = await desk({
      upstream: await upstream((request) => {
        request.on('data', () => begun.fire())
        request.on('end', () => void (whole = true))
        request.on('error', () => {})
        request.on('close', broken.fire)
      }),
    })
    for (const framing of ['Content-Length: 100', 'Transfer-Encoding: chunked']) {
      const raw = await openRaw(port)
      raw.socket.write(`POST / HTTP/1.1\r\nHost: ${HOST}\r\n${framing}\r\n\r\n5\r\nhello\r\n`)
      await begun.fired
      raw.socket.destroy()
      await broken.fired
      assert.is(whole, false)
    }
  },
)

faults("a visitor that leaves a switched connection ends the upstream's side", async () => {
  const left = event()
  const up = await rawUpstream((socket) => {
    socket.once('data', () => {
      socket.write('HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi')
    })
    socket.on('end', () => socket.end())
    socket.on('close', left.fire)
  })
  closers.push(up.close)
  const { port, relay, ended } = await desk({ upstream: up.upstream })
  const raw = await openRaw(port)
  raw.socket.write(
    `GET / HTTP/1.1\r\nHost: ${HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n`,
  )
  await raw.until(/hi/)
  raw.socket.destroy()
  await left.fired
  await ended(1)
  assert.is(relay.size, 0)
})

for (
  const [name, head] of [
    ['with a length', 'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n'],
    ['in chunks', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n'],
  ] as const
) {
  faults(
    `a response ${name} that breaks off at the upstream is not ended for the visitor`,
    async () => {
      const up = await rawUpstream((socket) => {
        socket.once('data', () => {
          socket.write(`${head}some`)
          setTimeout(() => socket.destroy(), 50)
        })
      })
      closers.push(up.close)
      const { port, results, ended } = await desk({ upstream: up.upstream })
      const answer = await ask(port, GET)
      assert.match(answer, /^HTTP\/1\.1 200 [^]*some/)
      assert.not.match(answer, /\r\n0\r\n\r\n$/)
      await ended(1)
      assert.is(results[0]!.whole, false)
    },
  )
}

faults('an agent that is lost in the middle of a response breaks it off', async () => {
  const opened = await desk({
    upstream: await upstream((_, response) => void response.write('some')),
  })
  const raw = await openRaw(opened.port)
  raw.socket.write(GET)
  await raw.until(/some/)
  opened.cut()
  assert.not.match(await raw.closed, /\r\n0\r\n\r\n$/)
})

faults('an agent that is lost before the answer is a 502', async () => {
  const asked = event()
  const opened = await desk({ upstream: await upstream(() => asked.fire()) })
  const raw = await openRaw(opened.port)
  raw.socket.write(GET)
  await asked.fired
  opened.cut()
  assert.match(await raw.closed, /^HTTP\/1\.1 502 [^]*agent is gone/)
})

// What the upstream does.

faults(
  'an upstream that is down is a 502 that names the reason, in the form that was asked for',
  async () => {
    const { port, troubles } = await desk({ upstream: NOWHERE })
    const json = await ask(port, GET)
    assert.match(json, /^HTTP\/1\.1 502 Bad Gateway\r\nContent-Type: application\/json/)
    const body = JSON.parse(json.slice(json.indexOf('\r\n\r\n') + 4)) as {
      error: { message: string }
    }
    assert.match(body.error.message, /127\.0\.0\.1:1.*nothing listens there/)
    const page = await ask(port, GET.replace('\r\n\r\n', '\r\nAccept: text/html,*/*;q=0.8\r\n\r\n'))
    assert.match(page, /Content-Type: text\/html[^]*nothing listens there/)
    assert.match(page, /Content-Security-Policy: default-src 'none'/)
    assert.match(page, /X-Content-Type-Options: nosniff/)
    assert.match(page, /Cache-Control: no-store/)
    assert.not.match(page, /<script/i)
    const head = await ask(port, GET.replace('GET', 'HEAD'))
    assert.match(head, /^HTTP\/1\.1 502 [^]*Content-Length: [1-9][^]*\r\n\r\n$/)
    assert.is(troubles.length, 3)
    assert.is(troubles[0]!.code, 'net/refused')
  },
)

for (
  const [name, bytes] of [
    ['no HTTP', 'SSH-2.0-OpenSSH_9.2\r\n'],
    ['nothing at all', ''],
    [
      'two framings',
      'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    ],
    ['two lengths', 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc'],
    ['a huge head', `HTTP/1.1 200 OK\r\nX: ${'x'.repeat(200_000)}\r\n\r\n`],
    [
      'a switch that nobody asked for',
      'HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhi',
    ],
  ] as const
) {
  faults(`an upstream that answers ${name} is a 502`, async () => {
    const up = await rawUpstream((socket) => {
      socket.once('data', () => socket.end(bytes))
    })
    closers.push(up.close)
    const { port, troubles } = await desk({ upstream: up.upstream })
    assert.match(await ask(port, GET), /^HTTP\/1\.1 502 /)
    assert.ok(troubles.length >= 1)
  })
}

// What the agent does. Nothing that it sends can break the visitor's framing.

for (
  const [name, records] of [
    ['a body before the head', [...encodeBody(utf8('x'))]],
    ['an unknown record', [encodeRecord(9, utf8('x'))]],
    ['a head that is no JSON', [encodeRecord(RECORD.head, utf8('{'))]],
    [
      'a head with a line end in a value',
      [encodeRecord(RECORD.head, utf8('{"status":200,"headers":[["a","b\\r\\nc: d"]]}'))],
    ],
    [
      'a head with a framing of its own',
      [encodeRecord(
        RECORD.head,
        utf8('{"status":200,"headers":[["Transfer-Encoding","chunked"]]}'),
      )],
    ],
    [
      'a switch to a protocol that nobody asked for',
      [encodeHead({ status: 101, headers: [], upgrade: 'websocket' })],
    ],
  ] as const
) {
  faults(`an agent that sends ${name} is a 502`, async () => {
    const { port, relay } = await scripted((stream) => taking(stream, ...records))
    assert.match(await ask(port, GET), /^HTTP\/1\.1 502 [^]*no response|not asked for/)
    assert.is(relay.size, 0)
  })
}

for (
  const [name, records] of [
    ['more than the length', [...encodeBody(utf8('four and more'))]],
    ['a second head', [HEAD]],
    ['an unknown record', [encodeRecord(9, utf8('x'))]],
  ] as const
) {
  faults(
    `after a head, an agent that sends ${name} is cut off, and none of it is told`,
    async () => {
      const head = encodeHead({ status: 200, headers: [['content-length', '4']] })
      const { port } = await scripted((stream) => taking(stream, head, ...records))
      const answer = await ask(port, GET)
      assert.match(answer, /^HTTP\/1\.1 200 [^]*\r\n\r\n$/)
    },
  )
}

faults('an agent that ends a body too early breaks it off', async () => {
  const head = encodeHead({ status: 200, headers: [['content-length', '4']] })
  const { port, ended, results } = await scripted((stream) => {
    taking(stream, head, ...encodeBody(utf8('two')))
    stream.end()
  })
  assert.not.match(await ask(port, GET), /\r\n\r\n.{4}/)
  await ended(1)
  assert.is(results[0]!.whole, false)
})

faults('an agent that ends before a head is a 502', async () => {
  const { port } = await scripted((stream) => {
    taking(stream)
    stream.end()
  })
  assert.match(await ask(port, GET), /^HTTP\/1\.1 502 /)
})

for (
  const [code, status] of [
    ['refused', 502],
    ['unreachable', 502],
    ['timeout', 504],
    ['aborted', 502],
    ['overload', 503],
    ['quota', 503],
    ['draining', 503],
    ['blocked', 403],
    ['protocol', 502],
  ] as const
) {
  faults(`a stream that the agent resets with ${code} is a ${status}`, async () => {
    const reason = '<b>why</b>'
    for (const accepts of [true, false]) {
      const { port } = await scripted((stream) => {
        if (accepts) stream.accept()
        stream.reset(RESET[code], reason)
      })
      const answer = await ask(port, GET.replace('\r\n\r\n', '\r\nAccept: text/html\r\n\r\n'))
      assert.match(answer, new RegExp(`^HTTP/1\\.1 ${status} `))
      assert.not.match(answer, /<b>/, 'what an agent says is escaped')
      if (status === 503) assert.match(answer, /\r\nretry-after: [1-9]/i)
    }
  })
}

// Who serves.

faults('a name that nobody serves is a 404; what pick throws is told', async () => {
  const { port } = await desk({
    upstream: NOWHERE,
    pick: (_, { attempt, address }) => {
      assert.is(attempt, 1)
      assert.is(address, '192.0.2.7')
      return undefined
    },
  })
  assert.match(await ask(port, GET), /^HTTP\/1\.1 404 [^]*nobody serves it/)
  const limited = await desk({
    upstream: NOWHERE,
    pick: () =>
      Promise.reject(
        new Problem(429, { code: 'quota/visitors', message: 'x', headers: { 'retry-after': '7' } }),
      ),
  })
  assert.match(await ask(limited.port, GET), /^HTTP\/1\.1 429 [^]*retry-after: 7/i)
  const broken = await desk({
    upstream: NOWHERE,
    pick: () => {
      throw new Error('secret')
    },
  })
  const answer = await ask(broken.port, GET)
  assert.match(answer, /^HTTP\/1\.1 500 /)
  assert.not.match(answer, /secret/)
})

faults('a link with no stream left is a 503 that says when to come again', async () => {
  const full = new Mux({
    side: 'relay',
    send: () => 'ok',
    buffered: () => 0,
    clock: { now: () => 0, monotonic: () => 0, after: () => ({ cancel() {} }) },
    streamsMax: 0,
    onOpen() {},
    onProtocolError() {},
  })
  const { port } = await desk({
    upstream: NOWHERE,
    pick: () => ({ open: (visit) => full.open(visit) }),
  })
  assert.match(await ask(port, GET), /^HTTP\/1\.1 503 [^]*retry-after: 5/i)
})

faults(
  'one that refuses is followed by the next, body and all; three are asked at most',
  async () => {
    const up = await upstream((request, response) => void request.pipe(response))
    const well = joinedMuxes((stream) => {
      stream.accept()
      serveExchange(stream, {
        world: exchangeWorld,
        upstream: up,
        bytes: { forth: 0, back: 0 },
        done() {},
      })
    })
    closers.push(() => Promise.resolve(well.cut()))
    const told: string[] = []
    const sick = joinedMuxes((stream) => stream.reset(RESET.refused))
    closers.push(() => Promise.resolve(sick.cut()))
    let wellFrom = 3
    const { port, results } = await desk({
      upstream: NOWHERE,
      pick: (_, { attempt }) => ({
        open: (visit) => (attempt >= wellFrom ? well : sick).relay.open(visit),
        settled: (result) => void told.push(`${attempt} ${result}`),
        closed: () => void told.push(`${attempt} closed`),
      }),
    })
    const post =
      `POST / HTTP/1.1\r\nHost: ${HOST}\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello`
    assert.match(await ask(port, post), /^HTTP\/1\.1 200 [^]*hello/)
    assert.equal(told, ['1 closed', '1 refused', '2 closed', '2 refused', '3 taken', '3 closed'])
    wellFrom = 4
    assert.match(await ask(port, post), /^HTTP\/1\.1 502 /)
    assert.is(told.length, 12)
    assert.is(results.length, 2)
  },
)

faults(
  'one that went silent is followed by the next only where asking twice does no harm',
  async () => {
    for (
      const [method, status] of [['GET', 200], ['PUT', 200], ['DELETE', 200], ['POST', 502], [
        'PATCH',
        502,
      ]] as const
    ) {
      const well = joinedMuxes((stream) => {
        taking(stream, HEAD)
        stream.end()
      })
      const dead = joinedMuxes(() => dead.cut())
      const { port } = await desk({
        upstream: NOWHERE,
        pick: (_, { attempt }) => ({
          open: (visit) => (attempt > 1 ? well : dead).relay.open(visit),
        }),
      })
      const answer = await ask(port, GET.replace('GET', method))
      assert.match(answer, new RegExp(`^HTTP/1\\.1 ${status} `), method)
      well.cut()
    }
  },
)

faults('the kill switch ends what runs and answers what waits', async () => {
  const opened = await desk({
    upstream: await upstream((request, response) => {
      if (request.url === '/run') response.write('some')
    }),
  })
  const running = await openRaw(opened.port)
  running.socket.write(GET.replace('/', '/run'))
  await running.until(/some/)
  const waiting = await openRaw(opened.port)
  waiting.socket.write(GET)
  while (opened.gateway.size < 2) await new Promise((resolve) => setTimeout(resolve, 1))
  assert.is(opened.gateway.cut(({ name }) => name === 'other'), 0)
  assert.is(opened.gateway.cut(({ name }) => name === 'web'), 2)
  assert.match(await waiting.closed, /^HTTP\/1\.1 403 [^]*blocked/)
  assert.not.match(await running.closed, /\r\n0\r\n\r\n$/)
  await new Promise<void>((resolve) => opened.gateway.whenIdle(resolve))
})

// Who is slow.

faults('an upstream that does not answer is a 504, and is let go', async () => {
  const left = event()
  const { port } = await desk({
    upstream: await upstream((_, response) => void response.on('close', left.fire)),
    limits: { answerMs: 60 },
  })
  assert.match(await ask(port, GET), /^HTTP\/1\.1 504 /)
  await left.fired
})

faults('an upload that stops coming is a 408, one that goes on is not', async () => {
  const { port } = await desk({
    upstream: await upstream((request) => void request.resume()),
    limits: { idleMs: 200 },
  })
  const raw = await openRaw(port)
  raw.socket.write(`POST / HTTP/1.1\r\nHost: ${HOST}\r\nContent-Length: 1000\r\n\r\n`)
  for (let i = 0; i < 8; i++) {
    await new Promise((resolve) => setTimeout(resolve, 50))
    raw.socket.write('x')
  }
  assert.is(raw.text(), '')
  assert.match(await raw.closed, /^HTTP\/1\.1 408 [^]*connection: close/i)
})

faults('a connection that is quiet both ways for long is broken off', async () => {
  const { port } = await desk({
    upstream: await upstream((_, response) => void response.write('some')),
    limits: { quietMs: 80 },
  })
  const answer = await ask(port, GET)
  assert.match(answer, /some/)
  assert.not.match(answer, /\r\n0\r\n\r\n$/)
})

faults('an agent that never takes the exchange is a 504', async () => {
  const { port } = await scripted(() => {}, { limits: { answerMs: 60 } })
  assert.match(await ask(port, GET), /^HTTP\/1\.1 504 /)
})

faults('a head that comes too slowly ends the connection', async () => {
  const { port } = await scripted(() => {}, { headMs: 150 })
  const raw = await openRaw(port)
  const drip = setInterval(() => raw.socket.write('X'), 30)
  raw.socket.write('GET / HTTP/1.1\r\n')
  const answer = await raw.closed
  clearInterval(drip)
  assert.match(answer, /^(?:HTTP\/1\.1 408 |$)/)
})

faults('an idle connection is closed after its time, one in use is not', async () => {
  const { port } = await desk({
    upstream: await upstream((request, response) => {
      if (request.url === '/slow') setTimeout(() => response.end('slow'), 400)
      else response.end('ok')
    }),
    keepAliveMs: 100,
  })
  const raw = await openRaw(port)
  raw.socket.write(`GET /slow HTTP/1.1\r\nHost: ${HOST}\r\n\r\n`)
  assert.match(await raw.closed, /slow/)
})

faults.run()
