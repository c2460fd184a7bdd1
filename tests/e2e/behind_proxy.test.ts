// seconds: 180
// needs: nginx haproxy openssl
/**
 * A relay behind real proxies that forward TCP: nginx (PROXY protocol v1) and HAProxy (v1 and v2). The
 * agent, its upstream, the log and the limits know the visitor by the visitor's own address, and who
 * comes past the proxy, or brings no header, is turned away.
 */
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { createServer as createHttp } from 'node:http'
import { connect, createServer } from 'node:net'
import type { AddressInfo, Server } from 'node:net'
import * as tls from 'node:tls'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { fingerprint, parseKey } from '../../core/key.ts'
import { proxyHeader } from '../../core/proxy_protocol.ts'
import { fast } from '../support/crypto.ts'
import { blockOf } from '../support/document.ts'
import { startNode } from '../support/relays.ts'
import type { RelayProcess } from '../support/relays.ts'
import { freePort } from '../support/port.ts'
import { E2eWorld } from '../support/world.ts'
import type { Program, Relay } from '../support/world.ts'

const BURST = 5

const test = suite('e2e/behind_proxy')
let world: E2eWorld

test.before(() => void (world = new E2eWorld()))
test.after(() => world.close())

/** An upstream for `--proxy-protocol v1`: answers with the line that it got. */
async function teller(): Promise<number> {
  const server: Server = createServer((socket) => {
    let text = ''
    socket.on('error', () => {})
    socket.on('data', (bytes) => {
      text += bytes
      const [line] = text.split('\r\n')
      if (text.includes('\r\n')) socket.end(`${line}\n`)
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  world.defer(() => server.close())
  return (server.address() as AddressInfo).port
}

/** An upstream for readable HTTP: answers with what it was told of the visitor. */
async function headers(): Promise<number> {
  const server = createHttp((request, response) => {
    response.end(JSON.stringify(request.headers))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  world.defer(() => server.close())
  return (server.address() as AddressInfo).port
}

const ON_PAGE = { port: 443, relay: 8443, site: 4443 }

/** A configuration as docs/deploy.md has it, with ports of this machine in place of those on the page. */
function fromPage(
  name: string,
  { port, relay, site = 1 }: { port: number; relay: number; site?: number },
) {
  const text = blockOf('docs/deploy.md', name)
  assert.ok(text.includes(`127.0.0.1:${ON_PAGE.relay}`))
  return text.replaceAll(`127.0.0.1:${ON_PAGE.relay}`, `127.0.0.1:${relay}`)
    .replaceAll(`127.0.0.1:${ON_PAGE.site}`, `127.0.0.1:${site}`)
    .replace(/(listen |bind ):?443\b/, `$1127.0.0.1:${port}`)
}

/** What Debian's nginx.conf says around it. */
function nginx(port: number, text: string): Program {
  const path = world.path(`nginx-${port}.conf`)
  writeFileSync(
    path,
    `daemon off; master_process off; pid ${world.path(`nginx-${port}.pid`)}; error_log stderr;
include /etc/nginx/modules-enabled/*.conf;
events { worker_connections 512; }
${text}`,
  )
  return world.start('nginx', ['-c', path, '-e', 'stderr'])
}

function haproxy(port: number, text: string): Program {
  const path = world.path(`haproxy-${port}.cfg`)
  writeFileSync(path, text)
  return world.start('haproxy', ['-f', path, '-db'])
}

async function open(port: number): Promise<void> {
  for (let i = 0;; i++) {
    const socket = connect({ host: '127.0.0.1', port })
    const up = await once(socket, 'connect').then(() => true, () => false)
    socket.destroy()
    if (up) return
    assert.ok(i < 200, `nothing listens on ${port}`)
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
}

/** What a visitor from `address`, one of this machine's own, is answered. */
function visit(
  port: number,
  { name, from, say = 'hello\r\n' }: { name: string; from: string; say?: string },
): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect({ host: '127.0.0.1', port, localAddress: from })
    const inner = tls.connect({ socket, servername: name, rejectUnauthorized: false })
    let text = ''
    inner.on('secureConnect', () => inner.write(say))
    inner.on('data', (bytes: Uint8Array) => text += bytes)
    inner.on('end', () => resolve(text))
    inner.on(
      'error',
      (error: Error) => resolve(`${(error as { code?: string }).code}: ${error.message}`),
    )
    socket.on('error', (error) => resolve(String(error)))
    inner.on('close', () => resolve(text || 'closed'))
  })
}

const GET = (host: string): string =>
  `GET / HTTP/1.1\r\nHost: ${host}\r\nX-Forwarded-For: 6.6.6.6\r\nConnection: close\r\n\r\n`

interface Front {
  name: string
  start(port: number, relayPort: number): Program
}

const FRONTS: Front[] = [
  { name: 'nginx, v1', start: (port, relay) => nginx(port, fromPage('nginx', { port, relay })) },
  {
    name: 'HAProxy, v1',
    start: (port, relay) =>
      haproxy(
        port,
        fromPage('haproxy', { port, relay }).replace('send-proxy-v2 check', 'send-proxy'),
      ),
  },
  {
    name: 'HAProxy, v2',
    start: (port, relay) => haproxy(port, fromPage('haproxy', { port, relay })),
  },
]

interface Behind {
  relay: Relay
  /** The port of the relay itself, past the proxy. */
  inner: number
  log(): string
}

async function onBun(front: Front, port: number): Promise<Behind> {
  const inner = await freePort()
  const home = `relay-${port}`
  const program = world.sotto([
    ...['relay', '--port', String(inner), '--public-port', String(port), '--json'],
    ...[
      // Fewer than all of loopback, so that there is somebody here who is not trusted.
      '--behind-proxy',
      '127.0.0.0/29',
      '--quota',
      `address.visitors=0,address.visitorsBurst=${BURST}`,
    ],
  ], { home })
  const { apiKey, adminKey } = await program.event('listening')
  const origin = `https://localhost:${port}`
  front.start(port, inner)
  return {
    relay: { program, port, origin, apiKey, adminKey },
    inner,
    log: () => program.stderr,
  }
}

async function onNode(front: Front, port: number): Promise<Behind> {
  const inner = await freePort()
  const relay: RelayProcess = await startNode({
    flags: {
      port: String(inner),
      'public-port': String(port),
      'behind-proxy': '127.0.0.0/29',
      quota: `address.visitors=0,address.visitorsBurst=${BURST}`,
    },
  })
  world.defer(() => relay.stop())
  const origin = `https://localhost:${port}`
  front.start(port, inner)
  await open(port)
  const made = await world.sottoRun([
    ...['relay', 'keys', 'create', '--scope', 'ana', '--relay', origin],
    ...['--relay-fingerprint', fingerprint(fast, parseKey(relay.relayKey))],
  ], { env: { SOTTO_ADMIN_KEY: relay.adminKey }, home: `agent-${port}` })
  assert.is(made.code, 0, made.stderr)
  return {
    relay: {
      program: undefined as unknown as Program,
      port,
      origin,
      apiKey: made.stdout.trim(),
      adminKey: relay.adminKey,
    },
    inner,
    log: () => relay.output(),
  }
}

/** The line may still be on its way. */
async function logged(behind: Behind, pattern: RegExp): Promise<void> {
  for (let i = 0; !pattern.test(behind.log()); i++) {
    assert.ok(i < 200, `no ${pattern} in ${behind.log()}`)
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
}

async function shows(behind: Behind, port: number): Promise<void> {
  await open(port)
  const { relay, inner } = behind
  const home = `agent-${port}`
  await world.tunnel(relay, [
    ...['tcp', String(await teller()), '--name', 'told', '--proxy-protocol', 'v1', '--public'],
  ], { home })
  const name = 'told.secure.localhost'
  assert.match(await visit(port, { name, from: '127.0.0.7' }), /^PROXY TCP4 127\.0\.0\.7 /)
  assert.match(await visit(port, { name, from: '127.0.0.9' }), /^PROXY TCP4 127\.0\.0\.9 /)
  // Limits are each visitor's own.
  for (let i = 1; i < BURST; i++) {
    assert.match(await visit(port, { name, from: '127.0.0.9' }), /^PROXY TCP4 127\.0\.0\.9 /)
  }
  assert.not.match(await visit(port, { name, from: '127.0.0.9' }), /PROXY/)
  await logged(behind, /"reason":"quota","address":"127\.0\.0\.9"/)
  assert.match(await visit(port, { name, from: '127.0.0.7' }), /^PROXY TCP4 127\.0\.0\.7 /)
  // The gateway's words are about the same visitor, whatever the visitor says.
  await world.tunnel(relay, ['http', String(await headers()), '--name', 'read', '--e2ee=false'], {
    home,
  })
  const host = 'read.apps.localhost'
  const answer = await visit(port, { name: host, from: '127.0.0.10', say: GET(host) })
  assert.match(answer, /"x-forwarded-for":"127\.0\.0\.10"/)
  // The log.
  await visit(port, { name: 'nobody.secure.localhost', from: '127.0.0.11' })
  await logged(behind, /"address":"127\.0\.0\.11"/)
  // Past the proxy: an address that is not trusted, and a trusted one without a header.
  assert.not.match(await visit(inner, { name, from: '127.0.0.12' }), /PROXY/)
  await logged(behind, /untrusted-proxy/)
  assert.not.match(await visit(inner, { name, from: '127.0.0.1' }), /PROXY/)
  await logged(behind, /proxy-no-header/)
}

for (const front of FRONTS) {
  test(`${front.name}, before a relay on Bun: everybody is known by their own address`, async () => {
    const port = await freePort()
    await shows(await onBun(front, port), port)
  })
}

for (const front of FRONTS.slice(1)) {
  test(`${front.name}, before a relay on Node: everybody is known by their own address`, async () => {
    const port = await freePort()
    await shows(await onNode(front, port), port)
  })
}

test('nginx shares the port: the relay by its names, web sites by all others', async () => {
  const sites = createServer((socket) => socket.end('web site\n'))
  await new Promise<void>((resolve) => sites.listen(0, '127.0.0.1', resolve))
  world.defer(() => sites.close())
  const site = (sites.address() as AddressInfo).port
  const port = await freePort()
  const inner = port === 65_535 ? port - 1 : port + 1
  const page = blockOf('docs/deploy.md', 'behind-relay').trim()
  const [, ...words] = page.replace('8443', `${inner}`).replace('443', `${port}`).split(' ')
  assert.is(words.shift(), 'relay')
  const program = world.sotto([...['relay', ...words], '--host', '127.0.0.1', '--json'], {
    home: 'shared',
  })
  await program.event('listening')
  nginx(port, fromPage('nginx-shared', { port, relay: inner, site }))
  await open(port)
  const ask = (name: string) =>
    visit(port, {
      name,
      from: '127.0.0.1',
      say: `GET /healthz HTTP/1.1\r\nHost: ${name}\r\nConnection: close\r\n\r\n`,
    })
  assert.match(await ask('relay.example.com'), /^HTTP\/1\.1 200[\s\S]*ok/)
  await ask('web.secure.relay.example.com')
  await program.says(/"serverName":"web\.secure\.relay\.example\.com"/)
  // The web site speaks no TLS here: its bytes are no handshake.
  assert.match(await ask('www.example.com'), /SSL|wrong version|packet/i)
  assert.match(await ask('notrelay.example.com'), /SSL|wrong version|packet/i)
})

test('headers that come in pieces, come late, lie about their length, or never come', async () => {
  const port = await freePort()
  const program = world.sotto([
    'relay',
    '--port',
    String(port),
    '--json',
    '--behind-proxy',
  ], { home: 'pieces' })
  await program.event('listening')
  const header = proxyHeader('v2', { address: '203.0.113.9', port: 9 }, 443)
  /** Byte by byte, each in a segment of its own, then TLS. */
  const socket = connect({ host: '127.0.0.1', port, noDelay: true })
  await once(socket, 'connect')
  for (const byte of header) {
    socket.write(Uint8Array.of(byte))
    await new Promise((resolve) => setImmediate(resolve))
  }
  const inner = tls.connect({ socket, servername: 'localhost', rejectUnauthorized: false })
  await once(inner, 'secureConnect')
  inner.write('GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
  // A visitor behind a proxy on loopback is not on loopback.
  assert.match(String((await once(inner, 'data'))[0]), /^HTTP\/1\.1 40[13]/)
  inner.destroy()
  const end = async (bytes: Uint8Array): Promise<void> => {
    const refused = connect({ host: '127.0.0.1', port })
    refused.on('error', () => {})
    refused.write(bytes)
    await new Promise<void>((resolve) => refused.once('close', () => resolve()))
  }
  await end(new TextEncoder().encode('PROXY TCP4 1.2.3.4\r\n'))
  const huge = header.slice()
  huge[14] = 0xff
  await end(huge)
  // Half a header: the deadline ends it.
  await end(header.subarray(0, 20))
  await program.says(/too-slow/)
})

test.run()
