// seconds: 120
/**
 * The library, as a program imports it: the example runs on Bun and on Node, and says the same; two
 * runtimes share one profile; and what the library does not carry says so.
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import type { Server } from 'node:net'
import type { Duplex } from 'node:stream'
import { createServer as createTlsServer, rootCertificates } from 'node:tls'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { freePort } from '../support/port.ts'
import { BUN, E2eWorld, ROOT } from '../support/world.ts'
import type { Relay } from '../support/world.ts'

const NODE = join(ROOT, 'node_modules', '.bin', 'node')
const SAYS = `delivered counted: 100000 true
HELLO
pinned true
session/refused
`

let world: E2eWorld
let relay: Relay

const test = suite('e2e/library')

test.before(async () => {
  world = new E2eWorld()
  relay = await world.relay()
})

test.after(() => world.close())

for (
  const [name, command, flags] of [['bun', BUN, []], ['node', NODE, ['--no-warnings']]] as const
) {
  test(`the example does on ${name} what it says`, async () => {
    const folder = world.path(`example-${name}`)
    const ran = await world.run(command, [...flags, 'examples/a2a.ts', folder], {
      env: world.joins(relay),
    })
    assert.is(ran.code, 0, ran.stderr)
    assert.is(ran.stdout, SAYS)
    assert.is(ran.stderr, '')
    // And again: the pins that it made hold.
    const again = await world.run(command, [...flags, 'examples/a2a.ts', folder], {
      env: world.joins(relay),
    })
    assert.is(again.stdout, SAYS, again.stderr)
  })
}

for (
  const [name, command, flags] of [['bun', BUN, []], ['node', NODE, ['--no-warnings']]] as const
) {
  test(`the example does on ${name} the same through a proxy`, async () => {
    const port = await freePort()
    const ways = [
      `http://127.0.0.1:${port}`,
      `https://localhost:${port}`,
      `socks5://ann:secret@127.0.0.1:${port}`,
    ]
    for (const way of ways) {
      const proxy = await loopbackProxy(port, way.split(':')[0]!)
      try {
        const ran = await world.run(command, [
          ...[...flags, 'examples/a2a.ts', world.path(`${name}-${way.slice(0, 5)}`)],
        ], {
          env: {
            ...world.joins(relay),
            SOTTO_PROXY: way,
            SSL_CERT_FILE: world.path('proxy.crt'),
          },
        })
        assert.is(ran.stdout, SAYS, `${way}\n${ran.stderr}`)
        assert.ok(proxy.tunnels > 0, `${way} carried it`)
      } finally {
        await proxy.close()
      }
    }
  })
}

/** A proxy at loopback, which only SOTTO_PROXY leads to. */
async function loopbackProxy(port: number, kind: string) {
  let tunnels = 0
  const live = new Set<Duplex>()
  const lead = (near: Duplex, to: { host: string; port: number }, answer: Uint8Array): void => {
    tunnels++
    const far = connect(to)
    live.add(far)
    far.on('error', () => near.destroy()).on('close', () => near.destroy())
    near.on('error', () => far.destroy()).on('close', () => far.destroy())
    far.once('connect', () => {
      near.write(answer)
      near.pipe(far)
      far.pipe(near)
    })
  }
  const talk = (near: Duplex): void => {
    live.add(near)
    let step = 0
    const read = (bytes: Buffer): void => {
      if (kind !== 'socks5') {
        near.off('data', read)
        const [, host, to] = /^CONNECT ([^ ]+):(\d+) /.exec(bytes.toString('latin1'))!
        lead(near, { host: host!, port: Number(to) }, Buffer.from('HTTP/1.1 200 yes\r\n\r\n'))
      } else if (step++ === 0) near.write(Uint8Array.from([5, 2]))
      else if (step === 2) near.write(Uint8Array.from([1, 0]))
      else {
        near.off('data', read)
        const to = { host: 'localhost', port: bytes.readUInt16BE(bytes.length - 2) }
        lead(near, to, Uint8Array.from([5, 0, 0, 1, 0, 0, 0, 0, 0, 0]))
      }
    }
    near.on('data', read).on('error', () => {})
  }
  let server: Server
  if (kind === 'https') {
    const made = await world.run('bash', [
      '-c',
      'openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost ' +
      `-addext subjectAltName=DNS:localhost -keyout ${world.path('proxy.key')} -out ${
        world.path('proxy.crt')
      }`,
    ])
    assert.is(made.code, 0, made.stderr)
    const [key, cert] = ['proxy.key', 'proxy.crt'].map((name) => readFileSync(world.path(name)))
    server = createTlsServer({ key: key!, cert: cert! }, talk)
  } else {
    server = createServer(talk)
    // The variable names a file in any case.
    if (kind === 'http') {
      writeFileSync(world.path('proxy.crt'), rootCertificates.slice(0, 1).join('\n'))
    }
  }
  await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve))
  return {
    get tunnels() {
      return tunnels
    },
    close: () => {
      for (const one of live) one.destroy()
      return new Promise<void>((resolve) => void server.close(() => resolve()))
    },
  }
}

test('both runtimes use one profile at once', async () => {
  const folder = world.path('shared')
  const runs = await Promise.all(
    [BUN, NODE, BUN, NODE].map((command) =>
      world.run(command, ['examples/keys.ts', folder], { env: world.joins(relay) })
    ),
  )
  for (const { code, stderr } of runs) assert.is(code, 0, stderr)
  assert.is(new Set(runs.map(({ stdout }) => stdout)).size, 1)
  assert.ok(readdirSync(folder).includes('identity'))
})

test('a message to a library that fails says no word of its insides', async () => {
  const script = `
    import { connect } from 'sotto'
    const profile = process.argv[2]
    const client = await connect({ profile: profile + '/client', name: false })
    const server = await connect({
      profile: profile + '/server',
      access: [{ peer: client.key, services: ['a2a'] }],
    })
    server.listen(() => { throw new Error('secret words') })
    const reply = await client.send(server.name, 'x')
    console.log(JSON.stringify([reply.status, reply.code, reply.message]))
    try { server.listen(() => {}) } catch (error) { console.log(error.code) }
    try { await client.send(server.name, new Uint8Array(16_777_217)) } catch (error) { console.log(error.code) }
    await client.close()
    try { await client.send(server.name, 'x') } catch (error) { console.log(error.code) }
    await server.close()
  `
  const ran = await world.run(NODE, [
    '--no-warnings',
    '--input-type=module',
    '-e',
    script,
    'x',
    world.path('fails'),
  ], {
    env: world.joins(relay),
  })
  const lines = ran.stdout.trim().split('\n')
  assert.equal(
    JSON.parse(lines[0]!),
    ['failed', 'a2a/handler', 'the program there failed'],
    ran.stderr,
  )
  assert.equal(lines.slice(1, 3), ['library/listening', 'a2a/size'])
  assert.match(lines[3]!, /^(uplink|visit|session)\//)
})

test('package.json leads to it', () => {
  const { exports } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'))
  assert.equal(exports, { '.': './agent/library.ts' })
})

test.run()
