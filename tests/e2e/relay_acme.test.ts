// seconds: 240
// needs: pebble pebble-challtestsrv openssl
/**
 * A relay that gets its certificates from a CA, pebble with its faults switched on: its own name on the
 * one port, endpoints that it can read when somebody visits them, and nothing else. What was issued is
 * kept, and a CA that refuses is left alone.
 */
import { readdirSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import * as tls from 'node:tls'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { startPebble } from '../support/pebble.ts'
import type { Pebble, PebbleOptions } from '../support/pebble.ts'
import { freePort } from '../support/port.ts'
import { E2eWorld } from '../support/world.ts'
import type { Program, Relay } from '../support/world.ts'

const test = suite('e2e/relay_acme')
const DOMAIN = 'relay.test'
let world: E2eWorld
let upstream: string

test.before(async () => {
  world = new E2eWorld()
  const server = createServer((_, response) => response.end('hello from behind'))
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  world.defer(() => server.close())
  upstream = String((server.address() as AddressInfo).port)
})
test.after(() => world.close())

interface Stage {
  pebble: Pebble
  port: number
  /** The relay's home. */
  home: string
  program: Program
  relay: Relay
}

async function relay(
  { pebble, port, home }: Pick<Stage, 'pebble' | 'port' | 'home'>,
  more: readonly string[] = [],
): Promise<{ program: Program; relay: Relay }> {
  const program = world.sotto([
    ...['relay', '--port', String(port), '--host', '127.0.0.1', '--domain', DOMAIN, '--json'],
    ...['--acme', '--acme-directory', pebble.directory, '--acme-ca', pebble.serverCaPath],
    ...['--grace', '0', '--data', join(world.path(home), 'data'), ...more],
  ], { home })
  const { apiKey, adminKey } = await program.event('listening')
  return {
    program,
    relay: { program, port, origin: `https://localhost:${port}`, apiKey, adminKey },
  }
}

async function stage(
  home: string,
  options: Partial<PebbleOptions> = {},
  more: readonly string[] = [],
): Promise<Stage> {
  const port = await freePort()
  const pebble = await startPebble({ tlsPort: port, ...options })
  world.defer(() => pebble.close())
  return { pebble, port, home, ...await relay({ pebble, port, home }, more) }
}

/** Waits for a line of the log. */
function logged(program: Program, ...parts: string[]): Promise<unknown> {
  return program.until(
    () => program.stderr.split('\n').find((line) => parts.every((part) => line.includes(part))),
    `line with ${parts.join(', ')}`,
  )
}

interface Seen {
  trusted: boolean
  names: string
  text: string
}

/** One request under `name`, as a browser that trusts the CA's root makes it. */
async function ask({ pebble, port }: Stage, name: string): Promise<Seen> {
  const ca = await pebble.root()
  return await new Promise((resolve, reject) => {
    const socket = tls.connect({
      host: '127.0.0.1',
      port,
      servername: name,
      ca,
      rejectUnauthorized: false,
    })
    let text = ''
    let seen = { trusted: false, names: '' }
    socket.on('secureConnect', () => {
      seen = { trusted: socket.authorized, names: socket.getPeerCertificate().subjectaltname ?? '' }
      socket.write(`GET / HTTP/1.1\r\nHost: ${name}\r\nConnection: close\r\n\r\n`)
    })
    socket.on('data', (bytes: Uint8Array) => text += bytes)
    socket.on('error', reject)
    socket.on('close', () => resolve({ ...seen, text }))
  })
}

const ordered = (pebble: Pebble): number => pebble.output().split('There are now').length - 1

test('its own name, by TLS-ALPN-01 on its one port, from a CA that loses half of the nonces', async () => {
  const at = await stage('own', { nonceReject: 50, validationSeconds: 1 })
  // Before and while it waits, the relay's own certificate serves.
  assert.not((await ask(at, DOMAIN)).trusted)
  await logged(at.program, 'certificate issued', `"name":"${DOMAIN}"`)
  await logged(at.program, 'certificate renewed')
  const seen = await ask(at, DOMAIN)
  assert.ok(seen.trusted)
  assert.is(seen.names, `DNS:${DOMAIN}`)
  assert.match(seen.text, /^HTTP\/1\.1 200/)

  // A name that nobody serves asks for nothing; one that an agent serves does, once.
  const nobody = await ask(at, `nobody.apps.${DOMAIN}`)
  assert.not(nobody.trusted)
  await world.tunnel(at.relay, ['http', upstream, '--name', 'web', '--e2ee=false'], {
    home: 'own-agent',
  })
  const host = `web.apps.${DOMAIN}`
  const visitors = await Promise.all([1, 2, 3].map(() => ask(at, host)))
  for (const { trusted, names, text } of visitors) {
    assert.ok(trusted, 'the handshake waits for its first certificate')
    assert.is(names, `DNS:${host}`)
    assert.match(text, /hello from behind/)
  }
  assert.is(at.program.stderr.split('certificate issued').length - 1, 2)
  assert.not.match(at.program.stderr, /"name":"nobody/)

  // Nothing on the way of an open challenge, and only for names that were asked for.
  const socket = tls.connect({
    host: '127.0.0.1',
    port: at.port,
    servername: DOMAIN,
    ALPNProtocols: ['acme-tls/1'],
    rejectUnauthorized: false,
  })
  const end = await new Promise<string>((resolve) => {
    socket.on('secureConnect', () => resolve('TLS'))
    socket.on('error', () => resolve('refused'))
    socket.on('close', () => resolve('refused'))
  })
  assert.is(end, 'refused')

  // What was issued is kept: another start asks for nothing.
  const folder = join(world.path('own'), 'data', 'acme')
  const files = readdirSync(folder)
  assert.equal(files.sort(), [
    'account.json',
    `name-${DOMAIN}.json`,
    `name-${host}.json`,
    'spent.json',
  ])
  for (const file of files) assert.is(statSync(join(folder, file)).mode & 0o777, 0o600, file)
  assert.is((await at.program.stop()).code, 0)
  const orders = ordered(at.pebble)
  const again = { ...at, ...await relay(at) }
  assert.ok((await ask(again, DOMAIN)).trusted)
  assert.is(ordered(at.pebble), orders)
  await again.program.stop()
})

test('a CA that cannot validate is left alone for a while, and the endpoint serves without', async () => {
  // The CA knocks at a port where nobody listens.
  const at = await stage('refused', { tlsPort: await freePort() })
  await logged(at.program, 'certificate not issued', `"name":"${DOMAIN}"`, '"until"')
  const orders = at.pebble.output().split('Added order').length
  await world.tunnel(at.relay, ['http', upstream, '--name', 'web', '--e2ee=false'], {
    home: 'refused-agent',
  })
  const first = await ask(at, `web.apps.${DOMAIN}`)
  assert.not(first.trusted)
  assert.match(first.text, /hello from behind/, at.program.stderr)
  await logged(at.program, 'certificate not issued', `"name":"web.apps.${DOMAIN}"`)
  const then = at.pebble.output().split('Added order').length
  for (let i = 0; i < 5; i++) await ask(at, `web.apps.${DOMAIN}`)
  assert.is(at.pebble.output().split('Added order').length, then)
  assert.ok(then >= orders)
  // Nor does another start ask again.
  await at.program.stop()
  const again = { ...at, ...await relay(at) }
  await ask(again, DOMAIN)
  assert.is(at.pebble.output().split('Added order').length, then)
  await again.program.stop()
})

test('a CA that is not there: said with when it is asked again', async () => {
  const port = await freePort()
  const dead = `https://localhost:${await freePort()}/dir`
  const program = world.sotto([
    ...['relay', '--port', String(port), '--host', '127.0.0.1', '--domain', DOMAIN, '--json'],
    ...['--acme', '--acme-directory', dead, '--grace', '0'],
  ], { home: 'dead' })
  await program.event('listening')
  await logged(program, 'certificate not issued', '"until"')
  await program.stop()
})

test('external account binding, by a key in a file', async () => {
  const key = 'zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W'
  const path = world.path('eab.key')
  writeFileSync(path, `${key}\n`, { mode: 0o600 })
  const at = await stage('eab', { eab: { 'kid-1': key } }, [
    ...[
      '--acme-eab-kid',
      'kid-1',
      '--acme-eab-key-file',
      path,
      '--acme-contact',
      'ana@example.com',
    ],
  ])
  await logged(at.program, 'certificate renewed')
  assert.ok((await ask(at, DOMAIN)).trusted)
  assert.not.match(at.program.stderr, new RegExp(key))
})

test.run()
