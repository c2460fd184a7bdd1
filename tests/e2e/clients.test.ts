// seconds: 150
// alone
// needs: chromium curl openssl
/**
 * A verified http tunnel to a real service, as the clients that people have see it: curl, openssl,
 * node, Chromium, WebSocket, server-sent events, and 1 GiB each way by SHA-256; over bulk links and
 * over the streams of the link alone.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { openBrowser, spkiOf } from '../support/browser.ts'
import { E2eWorld, ROOT } from '../support/world.ts'
import type { Program, Relay } from '../support/world.ts'

const NODE = join(ROOT, 'node_modules', '.bin', 'node')
const BIG_BYTES = 2 ** 30
/** The bytes of the service's /keystream, made by a program that has nothing to do with it. */
const KEYSTREAM = `head -c ${BIG_BYTES} /dev/zero | openssl enc -aes-128-ctr -nopad -K ${
  '01'.repeat(16)
} -iv ${'00'.repeat(16)}`
const BIG_MS_MAX = 60_000

let world: E2eWorld
let service: { port: number; h2Port: number }
let bulk: Side
let streams: Side
let h2: Side
let keystreamHash: string

interface Side {
  relay: Relay
  agent: Program
  host: string
  port: number
  url: string
  pemPath: string
  fingerprint: string
}

const test = suite('e2e/clients')

test.before(async () => {
  world = new E2eWorld()
  const made = await sh(
    `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
     -subj /CN=localhost -keyout ${world.path('up.key')} -out ${world.path('up.crt')} 2>&1`,
  )
  assert.is(made.code, 0, made.stdout)
  const program = world.start(NODE, [
    '--experimental-strip-types',
    '--no-warnings',
    join(ROOT, 'tests/support/web_service.ts'),
    world.path('up.crt'),
    world.path('up.key'),
  ])
  service = await program.event('listening') as unknown as typeof service
  const one = await world.relay()
  bulk = await open(one, { name: 'bulk', upstream: String(service.port) })
  h2 = await open(one, { name: 'h2', upstream: `https://localhost:${service.h2Port}` })
  streams = await open(await world.relay(['--bulk', '0', '--data', world.path('relay2')]), {
    name: 'streams',
    upstream: String(service.port),
  })
  keystreamHash = (await sh(`${KEYSTREAM} | sha256sum`)).stdout.split(' ')[0]!
  assert.match(keystreamHash, /^[0-9a-f]{64}$/)
})

test.after(() => world.close())

/** A shell's command line; pipes carry what is too big to hold. */
function sh(words: string) {
  return world.run('bash', ['-c', `set -o pipefail; ${words}`], { timeoutMs: BIG_MS_MAX })
}

async function open(relay: Relay, { name, upstream }: { name: string; upstream: string }) {
  const agent = await world.tunnel(relay, ['http', upstream, '--name', name], { home: name })
  const [host] = agent.up['address'].split(':')
  const pemPath = world.path(`${name}.pem`)
  const got = await sh(
    `openssl s_client -connect 127.0.0.1:${relay.port} -servername ${host} </dev/null \
     2>/dev/null | openssl x509 -out ${pemPath}`,
  )
  assert.is(got.code, 0, got.stderr)
  const { url, certificate } = agent.up
  return { relay, agent, host, port: relay.port, url, pemPath, fingerprint: certificate }
}

function curl({ url, pemPath }: Side, path: string, more = '') {
  const to = new URL(path, url).href
  return sh(`curl -sS --fail --noproxy '*' --max-time 55 --cacert ${pemPath} ${more} ${to}`)
}

async function gauge({ relay }: Side, name: string): Promise<number> {
  const got = await sh(`curl -sSk --noproxy '*' --max-time 10 ${relay.origin}/metrics`)
  const line = got.stdout.split('\n').find((one) => one.startsWith(`${name} `))
  assert.ok(line, `${name} in ${got.stdout.slice(0, 500)}${got.stderr}`)
  return Number(line!.split(' ')[1])
}

test('openssl receives the certificate that the agent printed', async () => {
  for (const side of [bulk, streams, h2]) {
    const shown = await sh(`openssl x509 -in ${side.pemPath} -noout -fingerprint -sha256`)
    assert.is(shown.stdout.trim().split('=')[1], side.fingerprint)
  }
})

for (const version of ['tls1_2', 'tls1_3']) {
  test(`openssl verifies the certificate and gets an answer by ${version}`, async () => {
    const { port, host, pemPath } = bulk
    const got = await sh(
      `(printf 'GET /hello HTTP/1.1\\r\\nHost: ${host}\\r\\nConnection: close\\r\\n\\r\\n'; sleep 2) |
       timeout 20 openssl s_client -connect 127.0.0.1:${port} -servername ${host} -${version} -quiet \
       -verify_return_error -CAfile ${pemPath} -verify_hostname ${host}`,
    )
    assert.match(got.stdout, /hello over HTTP\/1\.1\n/, got.stderr)
  })
}

test('curl: HTTP/1.1 by a name and a certificate that it verifies', async () => {
  for (const side of [bulk, streams]) {
    const got = await curl(side, '/hello', `-w '%{http_version} %{ssl_verify_result}'`)
    assert.is(got.stdout, 'hello over HTTP/1.1\n1.1 0', got.stderr)
  }
})

test('curl: HTTP/2 where the upstream speaks it, and HTTP/1.1 when asked', async () => {
  // The upstream is asked at the start; until it has answered, visitors get HTTP/1.1.
  let got = await curl(h2, '/hello', `-w '%{http_version}'`)
  for (let i = 0; i < 50 && !got.stdout.endsWith('\n2'); i++) {
    got = await curl(h2, '/hello', `-w '%{http_version}'`)
  }
  assert.is(got.stdout, 'hello over HTTP/2.0\n2', got.stderr)
  const old = await curl(h2, '/hello', `--http1.1 -w '%{http_version}'`)
  assert.is(old.stdout, 'hello over HTTP/1.1\n1.1', old.stderr)
  const echoed = await sh(
    `head -c 5000000 /dev/zero | curl -sS --fail --noproxy '*' --cacert ${h2.pemPath} --data-binary @- ` +
      `${new URL('/echo', h2.url).href} | sha256sum`,
  )
  const want = createHash('sha256').update(Buffer.alloc(5_000_000)).digest('hex')
  assert.is(echoed.stdout.split(' ')[0], want, echoed.stderr)
})

test('curl: HEAD has the length and no body, a range has just its bytes', async () => {
  for (const side of [bulk, streams]) {
    const head = await curl(side, '/keystream', '--head')
    assert.match(head.stdout, /content-length: 1073741824\r\n/i, head.stderr)
    const range = await sh(
      `curl -sS --fail --noproxy '*' --cacert ${side.pemPath} -r 1000000-1999999 ` +
        `${new URL('/keystream', side.url).href} | sha256sum; ` +
        `${KEYSTREAM} 2>/dev/null | tail -c +1000001 | head -c 1000000 | sha256sum`,
    )
    const [got, want] = range.stdout.split('\n')
    assert.is(got, want, range.stderr)
  }
})

test('node: fetch-like https client verifies by the same certificate', async () => {
  for (const { pemPath, host, port } of [bulk, streams]) {
    const script = `
      const https = require('node:https'), fs = require('node:fs')
      https.get({ host: '127.0.0.1', port: ${port}, path: '/hello', servername: '${host}',
        headers: { host: '${host}' }, ca: fs.readFileSync('${pemPath}') }, (response) => {
        response.setEncoding('utf8').on('data', (words) => process.stdout.write(words))
      })`
    const got = await world.run(NODE, ['-e', script])
    assert.is(got.stdout, 'hello over HTTP/1.1\n', got.stderr)
  }
})

test('a client that trusts no such certificate gets no answer', async () => {
  const got = await sh(`curl -sS --noproxy '*' --max-time 10 ${bulk.url}hello`)
  assert.is(got.code, 60)
  assert.is(got.stdout, '')
})

test('WebSocket: text and 1 MiB of bytes come back', async () => {
  for (const { pemPath, host, port } of [bulk, streams]) {
    const script = `
      const { WebSocket } = require('ws'), fs = require('node:fs'), crypto = require('node:crypto')
      const big = crypto.randomBytes(1 << 20)
      const socket = new WebSocket('wss://${host}:${port}/ws', { ca: fs.readFileSync('${pemPath}'),
        lookup: (host, options, done) => options.all
          ? done(null, [{ address: '127.0.0.1', family: 4 }]) : done(null, '127.0.0.1', 4) })
      socket.on('open', () => socket.send('one'))
      socket.on('message', (data, binary) => {
        if (!binary) { console.log(String(data)); return socket.send(big) }
        console.log(big.equals(data) ? 'same' : 'other')
        socket.close(1000, 'bye')
      })
      socket.on('close', (code) => console.log(code))
      socket.on('error', (error) => console.log(error.message))`
    const got = await world.run(NODE, ['-e', script])
    assert.is(got.stdout, 'one\nsame\n1000\n', got.stderr)
  }
})

test('server-sent events arrive one by one, over bulk links here and a stream there', async () => {
  for (const side of [bulk, streams]) {
    const reader = world.start('curl', [
      '-sSN',
      '--noproxy',
      '*',
      '--cacert',
      side.pemPath,
      new URL('/events', side.url).href,
    ])
    for (let event = 1; event <= 5; event++) {
      await reader.says(new RegExp(`id: ${event}\ndata: event ${event}\n\n`))
      assert.not.match(reader.stdout, `event ${event + 1}`)
      // While this one is being served: what it is carried over.
      assert.is(await gauge(side, 'sotto_streams{kind="tls"}') > 0, side === streams)
      assert.is(await gauge(side, 'sotto_bulk_links_idle') > 0, side === bulk)
      await curl(side, `/seen?${event}`)
    }
    assert.is((await reader.ended).code, 0)
    assert.match(reader.stdout, /data: done\n\n$/)
  }
})

test('Chromium: page, fetch and WebSocket, with the agent certificate alone excepted', async () => {
  const pem = await Bun.file(bulk.pemPath).text()
  const browser = await openBrowser([spkiOf(pem)])
  try {
    const page = await browser.newPage()
    await page.goto(new URL('/page', bulk.url).href, { timeout: 20_000 })
    assert.is(await page.textContent('h1'), 'It is up')
    const answer = await page.evaluate(async () => {
      const hello = await (await fetch('/hello')).text()
      const echoed = await fetch('/echo', { method: 'POST', body: new Uint8Array(3_000_000) })
      const socket = new WebSocket(`wss://${location.host}/ws`)
      const word = await new Promise((resolve, reject) => {
        socket.onopen = () => socket.send('from a browser')
        socket.onmessage = ({ data }) => resolve(data)
        socket.onerror = () => reject(new Error('no socket'))
      })
      socket.close()
      return [hello, (await echoed.arrayBuffer()).byteLength, word]
    })
    assert.equal(answer, ['hello over HTTP/1.1\n', 3_000_000, 'from a browser'])
    // The other endpoint's certificate is a stranger's to this browser.
    const refused = await page.goto(streams.url, { timeout: 20_000 }).then(() => '', String)
    assert.match(refused, /ERR_CERT_AUTHORITY_INVALID/)
  } finally {
    await browser.close()
  }
})

for (const way of ['bulk links', 'streams alone']) {
  const side = (): Side => way === 'bulk links' ? bulk : streams

  test(`1 GiB down over ${way}`, async () => {
    const { pemPath, url } = side()
    const got = await sh(
      `curl -sS --fail --noproxy '*' --max-time 55 --cacert ${pemPath} ${
        new URL('/keystream', url).href
      } | sha256sum`,
    )
    assert.is(got.stdout.split(' ')[0], keystreamHash, got.stderr)
  })

  test(`1 GiB up over ${way}`, async () => {
    const { pemPath, url } = side()
    const got = await sh(
      `${KEYSTREAM} | curl -sS --fail --noproxy '*' --max-time 55 --cacert ${pemPath} -X POST -T - ${
        new URL('/hash', url).href
      }`,
    )
    assert.is(got.stdout, `${keystreamHash} ${BIG_BYTES}\n`, got.stderr)
  })
}

test.run()
