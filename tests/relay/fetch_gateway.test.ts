// runtimes: bun node deno
// Readable HTTP where the runtime hands over a Request and takes a Response: the same exchange, less
// what fetch cannot carry.
import * as http from 'node:http'
import type { AddressInfo } from 'node:net'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { serveExchange } from '../../agent/exchange.ts'
import type { Upstream } from '../../agent/forward.ts'
import { encodeHead } from '../../core/exchange.ts'
import type { Mux, Stream } from '../../core/mux.ts'
import { Gateway, type GatewayPorts } from '../../relay/gateway.ts'
import { serveFetch } from '../../relay/serve/fetch_gateway.ts'
import { systemClock } from '../../relay/serve/host.ts'
import { DOMAIN, exchangeWorld, HOST, joinedMuxes } from '../support/exchange.ts'

const fetched = suite('relay/serve/fetch_gateway')

let serve: (request: http.IncomingMessage, response: http.ServerResponse) => void
let server: http.Server
let upstream: Upstream
let relay: Mux
let gateway: Gateway

function open(opened: (stream: Stream) => void, ports: Partial<GatewayPorts> = {}): void {
  const muxes = joinedMuxes(opened)
  relay = muxes.relay
  gateway = new Gateway({
    clock: systemClock,
    domain: DOMAIN,
    pick: (name) => name === 'web' ? { open: (visit) => muxes.relay.open(visit) } : undefined,
    ...ports,
  })
}

fetched.before(async () => {
  server = http.createServer((request, response) => serve(request, response))
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  upstream = { kind: 'tcp', host: '127.0.0.1', port, text: 'upstream' }
})

fetched.before.each(() => {
  open((stream) => {
    stream.accept()
    serveExchange(stream, {
      world: exchangeWorld,
      upstream,
      bytes: { forth: 0, back: 0 },
      done() {},
    })
  })
})

fetched.after(async () => {
  server.closeAllConnections()
  await new Promise((resolve) => server.close(resolve))
})

function ask(path: string, init: RequestInit & { duplex?: 'half' } = {}): Promise<Response> {
  const request = new Request(`https://${HOST}${path}`, init)
  return serveFetch(gateway, request, { address: '2001:db8::7', port: 4711 })
}

fetched(
  'a request and its response pass, and the visitor is named by the relay alone',
  async () => {
    let seen: http.IncomingMessage | undefined
    serve = (request, response) => {
      seen = request
      response.writeHead(207, [
        'X-A',
        '1',
        'Set-Cookie',
        'a=1',
        'Set-Cookie',
        'b=2',
        'Content-Length',
        '2',
      ])
      response.end('ok')
    }
    const response = await ask('/p?q=%20', {
      headers: {
        'X-Forwarded-For': '6.6.6.6',
        x_forwarded_for: '6.6.6.6',
        forwarded: 'for=6.6.6.6',
        'x-own': 'v',
      },
    })
    assert.is(response.status, 207)
    assert.is(response.headers.get('x-a'), '1')
    assert.equal(response.headers.getSetCookie(), ['a=1', 'b=2'])
    assert.is(await response.text(), 'ok')
    assert.is(seen!.url, '/p?q=%20')
    assert.is(seen!.headers.host, HOST)
    assert.is(seen!.headers['x-own'], 'v')
    assert.is(seen!.headers['x-forwarded-for'], '2001:db8::7')
    assert.is(seen!.headers['x-forwarded-port'], '443')
    assert.is(seen!.headers['forwarded'], `for="[2001:db8::7]";host="${HOST}";proto=https`)
    assert.not.match(seen!.rawHeaders.join(), /6\.6\.6\.6/)
    assert.is(relay.size, 0)
  },
)

fetched('bodies stream both ways at once', async () => {
  serve = (request, response) => void request.pipe(response)
  let say: ReadableStreamDefaultController<Uint8Array>
  const body = new ReadableStream<Uint8Array>({ start: (controller) => void (say = controller) })
  say!.enqueue(new TextEncoder().encode('one'))
  const response = await ask('/', { method: 'POST', body, duplex: 'half' })
  const reader = response.body!.getReader()
  const next = async (): Promise<string> => new TextDecoder().decode((await reader.read()).value)
  assert.is(await next(), 'one')
  say!.enqueue(new TextEncoder().encode('two'))
  assert.is(await next(), 'two')
  say!.close()
  assert.is((await reader.read()).done, true)
})

fetched(
  '8 MiB pass byte for byte, and a visitor that stops reading stops the upstream',
  async () => {
    let written = 0
    let full = (): void => {}
    const stopped = new Promise<void>((resolve) => full = resolve)
    const length = 64 * 1024 * 1024
    serve = (_, response) => {
      response.writeHead(200, { 'content-length': length })
      let quiet: ReturnType<typeof setTimeout> | undefined
      const pump = (): void => {
        clearTimeout(quiet)
        quiet = setTimeout(full, 300)
        while (written < length) {
          const chunk = new Uint8Array(65_536).fill(written >> 16)
          written += chunk.length
          if (!response.write(chunk)) return void response.once('drain', pump)
        }
        clearTimeout(quiet)
        response.end()
      }
      pump()
    }
    const response = await ask('/')
    await stopped
    assert.ok(written < 40 * 1024 * 1024, `${written} bytes were taken from the upstream`)
    let got = 0
    const reader = response.body!.getReader()
    for (;;) {
      const { done, value } = await reader.read()
      if (done) break
      for (const at of [0, value.length - 1]) assert.is(value[at], ((got + at) >> 16) & 255)
      got += value.length
    }
    assert.is(got, length)
  },
)

fetched('HEAD, 204 and 304 have no body', async () => {
  serve = (request, response) => {
    response.writeHead(Number(request.url!.slice(1)), { 'x-a': '1' })
    response.end()
  }
  for (const [method, status] of [['HEAD', 200], ['GET', 204], ['GET', 304]] as const) {
    const response = await ask(`/${status}`, { method })
    assert.is(response.status, status)
    assert.is(response.headers.get('x-a'), '1')
    assert.is(response.body, null)
  }
})

fetched("a visitor that cancels the response, or its request, ends the upstream's", async () => {
  for (const how of ['cancel', 'signal'] as const) {
    let closed = (): void => {}
    const left = new Promise<void>((resolve) => closed = resolve)
    serve = (_, response) => {
      response.on('close', () => closed())
      response.write('some')
    }
    const control = new AbortController()
    const response = await ask('/', { signal: control.signal })
    if (how === 'signal') control.abort()
    else await response.body!.cancel()
    await left
  }
  assert.is(gateway.size, 0)
})

fetched('a response that breaks off is an error for the visitor, not an end', async () => {
  serve = (_, response) => {
    response.write('some')
    setTimeout(() => response.destroy(), 30)
  }
  const response = await ask('/')
  let broken = false
  await response.text().catch(() => void (broken = true))
  assert.ok(broken)
})

fetched('failures are pages and JSON as behind any other server', async () => {
  const unknown = await serveFetch(
    gateway,
    new Request(`https://other.${DOMAIN}/`, { headers: { accept: 'text/html' } }),
    { address: '', port: 0 },
  )
  assert.is(unknown.status, 404)
  assert.match(await unknown.text(), /<h1>There is no such tunnel/)
  const elsewhere = await serveFetch(gateway, new Request('https://relay.test/x'), {
    address: '',
    port: 0,
  })
  assert.is(elsewhere.status, 421)
  assert.is(
    ((await elsewhere.json()) as { error: { code: string } }).error.code,
    'http/misdirected',
  )
})

fetched('a tunnel by path, with its redirect', async () => {
  open((stream) => {
    stream.accept()
    serveExchange(stream, {
      world: exchangeWorld,
      upstream,
      bytes: { forth: 0, back: 0 },
      done() {},
    })
  }, { paths: true })
  serve = (request, response) =>
    response.end(`${request.url} ${request.headers['x-forwarded-prefix']}`)
  const at = (path: string): Promise<Response> =>
    serveFetch(gateway, new Request(`https://relay.test${path}`), { address: '', port: 0 })
  assert.is(await (await at('/t/web/a?b')).text(), '/a?b /t/web')
  const moved = await at('/t/web')
  assert.is(moved.status, 308)
  assert.is(moved.headers.get('location'), '/t/web/')
})

fetched('trailers and interim responses are left out, and harm nothing', async () => {
  serve = (_, response) => {
    response.writeProcessing()
    response.writeHead(200, { Trailer: 'X-Sum' })
    response.write('body')
    response.addTrailers({ 'X-Sum': '1' })
    response.end()
  }
  const response = await ask('/')
  assert.is(await response.text(), 'body')
  assert.is(response.headers.get('trailer'), null)
})

fetched('a status that fetch does not know is a 502', async () => {
  open((stream) => {
    stream.accept()
    stream.handle({ data() {}, end() {}, closed() {} })
    stream.write(encodeHead({ status: 799, headers: [] }))
  })
  assert.is((await ask('/')).status, 502)
  assert.is(gateway.size, 0)
})

fetched.run()
