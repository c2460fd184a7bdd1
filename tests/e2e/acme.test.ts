// seconds: 240
// needs: chromium pebble pebble-challtestsrv openssl certutil
/**
 * Certificates of a CA for an agent's own name, from pebble with its faults switched on: the question
 * comes through the relay as any visitor, the self-signed certificate serves until the answer is there,
 * and nothing that runs is cut when they change places.
 */
import { createHash, X509Certificate } from 'node:crypto'
import * as https from 'node:https'
import { connect } from 'node:tls'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { startPebble } from '../support/pebble.ts'
import type { Pebble, PebbleOptions } from '../support/pebble.ts'
import { E2eWorld, freePort } from '../support/world.ts'
import type { Line, Program, Relay } from '../support/world.ts'

const test = suite('e2e/acme')
let world: E2eWorld
let relay: Relay
let upstream: https.Server | import('node:http').Server
let upstreamPort = 0

test.before(async () => {
  world = new E2eWorld()
  relay = await world.relay(['--agents-acme=true'])
  const { createServer } = await import('node:http')
  upstream = createServer((request, response) => {
    if (request.url !== '/slow') return void response.end('hello from behind')
    response.write('first ')
    held.add(response)
  })
  upstreamPort = await new Promise((resolve) => {
    const server = upstream as import('node:http').Server
    server.listen(0, '127.0.0.1', () => resolve((server.address() as { port: number }).port))
  })
})
test.after(async () => {
  for (const response of held) response.end()
  upstream.close()
  await world.close()
})

const held = new Set<import('node:http').ServerResponse>()

async function ca(options: Partial<PebbleOptions> = {}): Promise<Pebble> {
  const pebble = await startPebble({ tlsPort: relay.port, ...options })
  world.defer(() => pebble.close())
  return pebble
}

function tunnel(
  pebble: Pick<Pebble, 'directory' | 'serverCaPath'>,
  { name, more = [], home = name, env = {} }: {
    name: string
    more?: string[]
    home?: string
    env?: Record<string, string>
  },
): Promise<Program & { up: Line }> {
  const flags = ['--acme-directory', pebble.directory, '--acme-ca', pebble.serverCaPath]
  return world.tunnel(relay, ['http', String(upstreamPort), '--name', name, ...flags, ...more], {
    home,
    env,
  })
}

const issued = (program: Program): Promise<Line> =>
  program.event('certificate', ({ state }) => state === 'issued')

function shown(host: string): Promise<X509Certificate> {
  return new Promise((resolve, reject) => {
    const socket = connect({
      host: '127.0.0.1',
      port: relay.port,
      servername: host,
      rejectUnauthorized: false,
      ALPNProtocols: ['http/1.1'],
    }, () => {
      resolve(new X509Certificate(socket.getPeerCertificate().raw))
      socket.destroy()
    })
    socket.on('error', reject)
  })
}

function get(host: string, root: string, path = '/'): Promise<string> {
  return new Promise((resolve, reject) => {
    https.get(
      { host: '127.0.0.1', port: relay.port, servername: host, ca: root, path, agent: false },
      (answer) => {
        let body = ''
        answer.on('data', (bytes) => body += bytes)
        answer.on('end', () => resolve(body))
      },
    ).on('error', reject)
  })
}

test('the own name gets a certificate by itself, half of all nonces refused', async () => {
  const pebble = await ca({ nonceReject: 50 })
  const program = await tunnel(pebble, { name: 'trusted' })
  const line = await issued(program)
  const host = 'trusted.secure.localhost'
  assert.is(line['host'], host)
  const root = await pebble.root()
  assert.is(await get(host, root), 'hello from behind')
  await program.stop()
})

test.run()
