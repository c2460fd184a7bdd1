// Commands in memory over a relay of their own: what they print, whom they let in, what they say when
// the relay or the upstream goes. Real sockets and real TLS; only the terminal is kept in memory.
// needs: openssl
// seconds: 240
import { spawn } from 'node:child_process'
import { createServer } from 'node:net'
import type { AddressInfo, Server, Socket } from 'node:net'
import { connect as tcpConnect } from 'node:net'
import { createSocket } from 'node:dgram'
import { readFile, stat, writeFile } from 'node:fs/promises'
import { connect as tlsConnect } from 'node:tls'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { utf8 } from '../../core/bytes.ts'
import { Collector } from '../support/agent_world.ts'
import { Place } from '../support/cli.ts'
import type { Running } from '../support/cli.ts'
import { makeKey, startDenoDeploy } from '../support/worker_relay.ts'

const test = suite('agent/commands')
let place: Place
let echo: Server
let echoPort: number
const sockets = new Set<Socket>()

test.before.each(async () => {
  place = await Place.make()
  echo = createServer((socket) => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket))
    socket.on('error', () => {})
    socket.on('data', (bytes) => socket.write(`echo:${bytes}`))
  })
  await new Promise<void>((resolve) => echo.listen(0, '127.0.0.1', resolve))
  echoPort = (echo.address() as AddressInfo).port
})
test.after.each(async () => {
  await place.close()
  for (const socket of sockets) socket.destroy()
  // Its callback does not come on Bun where a connection was aborted before it was accepted.
  echo.close()
  echo.unref()
})

interface RelayHome {
  running: Running
  port: number
  url: string
  fingerprint: string
}

async function startRelay(flags: string[] = [], home = 'host'): Promise<RelayHome> {
  const running = await place.start(home, [
    'relay',
    '--port',
    '0',
    '--json',
    '--log-level',
    'error',
    '--grace',
    '0',
    ...flags,
  ])
  await running.stdout.until(/"event":"listening".*\n/)
  const { port, url, fingerprint } = running.stdout.objects[0]!
  return { running, port, url, fingerprint }
}

/** The environment of somebody else, with a key of a scope of their own. */
async function friend(relay: RelayHome, scope: string): Promise<Record<string, string>> {
  const made = await place.run('host', ['relay', 'keys', 'create', '--scope', scope])
  assert.is(made.code, 0, made.stderr.text)
  return { SOTTO_RELAY: relay.url, SOTTO_API_KEY: made.stdout.text.trim() }
}

async function up(running: Running, event = 'up') {
  await running.stdout.until(new RegExp(`"event":"${event}".*\\n`))
  return running.stdout.objects.find((one) => one['event'] === event)!
}

/** Sends `words`, half-closes, and gives what came back until the end. */
function talk(port: number, words: string): Promise<string> {
  return new Promise((resolve) => {
    const socket = tcpConnect(port, '127.0.0.1', () => socket.write(words))
    let said = ''
    socket.on('data', (bytes) => {
      said += bytes
      socket.end()
    })
    socket.on('error', () => {})
    socket.on('close', () => resolve(said))
  })
}

test('the first start of a relay makes keys, shows them once, and the next terminal just works', async () => {
  const { running, url } = await startRelay()
  const [listening] = running.stdout.objects
  assert.match(listening!['adminKey'], /^ak_admin_/)
  assert.match(listening!['apiKey'], /^sk_host_/)
  const path = listening!['kept']
  assert.is((await stat(path)).mode & 0o777, 0o600)
  assert.is(JSON.parse(await readFile(path, 'utf8')).relay, url)
  const http = await place.start('host', ['http', `${echoPort}`, '--name', 'web', '--json'])
  assert.is((await up(http))['url'], `https://web.secure.localhost:${new URL(url).port}/`)
  assert.is(http.stderr.text, '', 'our own relay is no stranger')
  assert.is(await running.stop({ name: 'terminate', exitCode: 143 }), 0)
  const again = await startRelay()
  assert.is(again.running.stdout.objects[0]!['adminKey'], undefined)
})

test('keys and tokens are made, listed and revoked; a revoked one ends its tunnels with the reason', async () => {
  const relay = await startRelay()
  const created = await place.run('host', [
    'relay',
    'keys',
    'create',
    '--scope',
    'ana',
    '--name',
    'web-*',
    '--label',
    'laptop',
    '--expires',
    '30d',
    '--json',
  ])
  const { secret, id } = created.stdout.objects[0]!
  const env = { SOTTO_RELAY: relay.url, SOTTO_API_KEY: secret as string }
  const list = await place.run('host', ['relay', 'keys', 'list'])
  assert.match(list.stdout.text, new RegExp(`^${id}  key +ana +good .* web-\\* +laptop$`, 'm'))
  const wrong = await place.run('ana', ['http', `${echoPort}`, '--name', 'api'], { env })
  assert.is(wrong.code, 1)
  assert.match(wrong.stderr.text, /does not allow that name/)
  const http = await place.start('ana', ['http', `${echoPort}`, '--name', 'web-1', '--json'], {
    env,
  })
  await up(http)
  assert.is((await place.run('host', ['relay', 'keys', 'revoke', id])).code, 0)
  assert.is(await http.code, 1)
  assert.match(http.stderr.text, /revoked/)
  assert.match((await place.run('host', ['relay', 'keys', 'list'])).stdout.text, /revoked/)
  const token = await place.run('host', [
    'relay',
    'tokens',
    'create',
    '--scope',
    'fleet',
    '--max-agents',
    '1',
    '--name',
    'till-?',
  ])
  assert.match(token.stdout.text, /^ft_fleet_\S+\n$/)
  const till = await place.start('till', ['http', `${echoPort}`, '--name', 'till-1', '--json'], {
    env: { SOTTO_RELAY: relay.url, SOTTO_API_KEY: token.stdout.text.trim() },
  })
  await up(till)
  // A limit may be free again in a moment, so it is waited for.
  const second = await place.start('till2', ['http', `${echoPort}`, '--name', 'till-2'], {
    env: { SOTTO_RELAY: relay.url, SOTTO_API_KEY: token.stdout.text.trim() },
  })
  await second.stderr.until(/the most it allows/)
})

test('a name of somebody else is refused with one that is free; release gives it up', async () => {
  const relay = await startRelay()
  const ana = await friend(relay, 'ana')
  const first = await place.start('ana', ['http', `${echoPort}`, '--name', 'web', '--json'], {
    env: ana,
  })
  await up(first)
  const bob = await friend(relay, 'bob')
  const refused = await place.run('bob', ['http', `${echoPort}`, '--name', 'web'], { env: bob })
  assert.is(refused.code, 1)
  assert.match(refused.stderr.text, /belongs to another scope[^]*is free: use --name \S+/)
  const live = await place.run('ana', ['relay', 'names', 'release', 'web'], { env: ana })
  assert.is(live.code, 1)
  assert.match(live.stderr.text, /serves it now/)
  await first.stop()
  assert.is((await place.run('ana', ['relay', 'names', 'release', 'web'], { env: ana })).code, 0)
  const names = await place.run('host', ['relay', 'names', 'list'])
  assert.is(names.stderr.text, 'no name is reserved\n')
  const second = await place.start('bob', ['http', `${echoPort}`, '--name', 'web', '--json'], {
    env: bob,
  })
  await up(second)
})

test('block cuts visitors off, and unblock lets them in again', async () => {
  const relay = await startRelay()
  const raw = await startRaw(relay)
  await raw.tunnel.stop()
  const tcp = await place.start('host', [
    'tcp',
    `${echoPort}`,
    '--name',
    'db',
    '--public',
    '--json',
  ])
  await up(tcp)
  const visitor = tlsConnect({
    port: relay.port,
    servername: 'db.secure.localhost',
    rejectUnauthorized: false,
  })
  visitor.on('error', () => {})
  const closed = new Promise((resolve) => visitor.on('close', resolve))
  await new Promise<void>((resolve) => {
    visitor.once('data', () => resolve())
    visitor.write('hi')
  })
  const blocked = await place.run('host', ['relay', 'block', 'db', '--reason', 'test'])
  assert.is(blocked.stderr.text, 'blocked the name db\n')
  await closed
  const open = await place.run('host', ['relay', 'unblock', 'db', '--json'])
  assert.equal(open.stdout.objects, [{ unblocked: { name: 'db' } }])
})

async function startRaw(relay: RelayHome): Promise<{ tunnel: Running }> {
  assert.ok(relay.port > 0)
  const closed = await place.run('host', ['tcp', `${echoPort}`, '--e2ee=false'])
  assert.is(closed.code, 1)
  assert.match(closed.stderr.text, /public port/)
  const tunnel = await place.start('host', ['http', `${echoPort}`, '--e2ee=false', '--json'])
  const shown = await up(tunnel)
  assert.is(shown['mode'], 'inspectable')
  assert.match(shown['url'], /^https:\/\/\d+-[a-z2-7]{6}\.apps\.localhost:/)
  return { tunnel }
}

test('raw TCP and UDP ports carry bytes and datagrams', async () => {
  const first = 20_000 + Math.floor(Math.random() * 10_000)
  await startRelay(['--public-ports', `${first}-${first + 50}`])
  const tcp = await place.start('host', ['tcp', `${echoPort}`, '--e2ee=false', '--json'])
  const shown = await up(tcp)
  const port = Number(shown['address'].split(':')[1])
  assert.is(shown['url'], `tcp://localhost:${port}`)
  assert.is(await talk(port, 'raw'), 'echo:raw')
  const upstream = createSocket(
    'udp4',
    (bytes: Uint8Array, from) => upstream.send(`udp:${bytes}`, from.port),
  )
  await new Promise<void>((resolve) => upstream.bind(0, '127.0.0.1', resolve))
  const udp = await place.start('host', [
    'udp',
    `127.0.0.1:${upstream.address().port}`,
    '--e2ee=false',
    '--json',
  ])
  const udpPort = Number((await up(udp))['address'].split(':')[1])
  const client = createSocket('udp4')
  const answer = await new Promise<string>((resolve) => {
    client.on('message', (bytes) => resolve(String(bytes)))
    client.send('ping', udpPort, '127.0.0.1')
  })
  assert.is(answer, 'udp:ping')
  client.close()
  upstream.close()
})

test('a stranger is refused at a private endpoint, told what to ask for, and let in by the command shown', async () => {
  const relay = await startRelay()
  const tcp = await place.start('host', ['tcp', `${echoPort}`, '--name', 'db', '--json'])
  assert.is((await up(tcp))['admits'], 0)
  const env = await friend(relay, 'bob')
  const connect = await place.start('bob', ['connect', 'db', '--json'], { env })
  const { address, fingerprint } = await up(connect, 'listening')
  assert.match(
    connect.stderr.text,
    new RegExp(`first contact with "db": ${fingerprint.replace(/[+/]/g, '.')}`),
  )
  const port = Number(address.split(':')[1])
  assert.is(await talk(port, 'hi'), '')
  const ask = await connect.stderr.until(
    /Ask whoever runs it to type: (sotto peers trust bob [a-z2-7]{52})\n/,
  )
  const knock = await tcp.stderr.until(
    /To let them in: (sotto peers trust peer-\w+ ([a-z2-7]{52}))\n/,
  )
  assert.ok(ask[1]!.endsWith(knock[2]!), 'both sides name the same key')
  const identity = (await place.run('bob', ['identity', '--json'])).stdout.objects[0]!
  assert.match(
    tcp.stderr.text,
    new RegExp(`${identity['fingerprint'].replace(/[+/]/g, '.')} knocked from 127.0.0.1`),
  )
  assert.is((await place.run('host', knock[1]!.split(' ').slice(1))).code, 0)
  // The running tunnel sees the pin by itself.
  await within(async () => await talk(port, 'hi') === 'echo:hi')
  assert.is((await place.run('host', ['peers', 'forget', knock[1]!.split(' ')[3]!])).code, 0)
  await within(async () => await talk(port, 'hi') === '')
})

/** Tries until it holds: what is waited for is another process's look at a file. */
async function within(holds: () => Promise<boolean>): Promise<void> {
  for (let attempt = 0; attempt < 100; attempt++) {
    if (await holds()) return
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  throw new Error('it never came to hold')
}

test('a pin made by first use serves to find somebody, and lets nobody in', async () => {
  const relay = await startRelay()
  const env = await friend(relay, 'bob')
  const theirs = await place.start('bob', [
    'tcp',
    `${echoPort}`,
    '--name',
    'box',
    '--public',
    '--json',
  ], { env })
  await up(theirs)
  const there = await place.start('host', ['connect', 'box', '--json'])
  await up(there, 'listening')
  const [pin] = (await place.run('host', ['peers', 'list', '--json'])).stdout.objects
  assert.equal([pin!['name'], pin!['how']], ['box', 'first-use'])
  const mine = await place.start('host', ['tcp', `${echoPort}`, '--name', 'db', '--json'])
  await up(mine)
  const back = await place.start('bob', ['connect', 'db', '--json'], { env })
  const { address } = await up(back, 'listening')
  assert.is(await talk(Number(address.split(':')[1]), 'hi'), '')
  await mine.stderr.until(/knocked/)
})

test('--allow takes a KEY, a fingerprint, a certificate and a pinned name; an unknown name is refused', async () => {
  const relay = await startRelay()
  const env = await friend(relay, 'bob')
  const { key, fingerprint } = (await place.run('bob', ['identity', '--json'])).stdout.objects[0]!
  const unknown = await place.run('host', ['tcp', `${echoPort}`, '--allow', 'bob'])
  assert.is(unknown.code, 1)
  assert.match(
    unknown.stderr.text,
    /"bob": it is not pinned\nPin it first: sotto peers trust bob KEY/,
  )
  const knocked = await place.start('host', ['tcp', `${echoPort}`, '--name', 'db0', '--json'])
  await up(knocked)
  const probe = await place.start('bob', ['connect', 'db0', '--json'], { env })
  await talk(Number((await up(probe, 'listening'))['address'].split(':')[1]), 'hi')
  await knocked.stderr.until(/knocked/)
  const { certificate } = knocked.stdout.objects.find((one) => one['event'] === 'knock')!
  await place.run('host', ['peers', 'trust', 'alias', key])
  await place.run('host', ['peers', 'forget', 'alias'])
  for (const [i, who] of [key, fingerprint, certificate].entries()) {
    const name = `db${i + 1}`
    const tcp = await place.start('host', [
      'tcp',
      `${echoPort}`,
      '--name',
      name,
      '--allow',
      who,
      '--json',
    ])
    await up(tcp)
    const connect = await place.start('bob', ['connect', name, '--json'], { env })
    const port = Number((await up(connect, 'listening'))['address'].split(':')[1])
    // By an identity's fingerprint alone its KEY is known at the first knock, and let in at the second.
    await within(async () => await talk(port, 'hi') === 'echo:hi')
    assert.not.match(tcp.stderr.text, /knocked/, who)
  }
})

test('connect --stdio carries one connection both ways, with half-close', async () => {
  await startRelay()
  const tcp = await place.start('host', ['tcp', `${echoPort}`, '--name', 'box', '--json'])
  await up(tcp)
  const connect = await place.start('host', ['connect', 'box', '--stdio'])
  const far = new Collector(connect.stdio)
  connect.stdio.write(utf8('through'))
  await far.until('echo:through'.length)
  assert.is(far.text, 'echo:through')
  connect.stdio.end()
  assert.is(await connect.code, 0)
  assert.is(connect.stdout.text, '', 'standard output belongs to the connection')
})

test('connect to a name that nobody serves says so, and another identity behind a known name stops it', async () => {
  const relay = await startRelay()
  const nobody = await place.run('host', ['connect', 'ghost', '--stdio'])
  assert.is(nobody.code, 1)
  assert.match(nobody.stderr.text, /"ghost": nobody serves it now/)
  const env = await friend(relay, 'bob')
  const first = await place.start('host', [
    'tcp',
    `${echoPort}`,
    '--name',
    'box',
    '--public',
    '--json',
  ])
  await up(first)
  const connect = await place.start('bob', ['connect', 'box', '--json'], { env })
  await up(connect, 'listening')
  await connect.stop()
  await first.stop()
  await place.run('host', ['relay', 'names', 'release', 'box'])
  const other = await friend(relay, 'mallory')
  const swapped = await place.start('mallory', [
    'tcp',
    `${echoPort}`,
    '--name',
    'box',
    '--public',
    '--json',
  ], { env: other })
  await up(swapped)
  const again = await place.run('bob', ['connect', 'box', '--json'], { env })
  assert.is(again.code, 1)
  assert.match(again.stderr.text, /its identity has changed: found SHA256:\S+, expected SHA256:/)
  assert.match(again.stderr.text, /sotto peers trust box [a-z2-7]{52}/)
})

test('the relay lost is said once, and so is its return, at the same address', async () => {
  const relay = await startRelay()
  const http = await place.start('host', ['http', `${echoPort}`, '--name', 'web'], { columns: 100 })
  await http.stdout.until(/0 visitors now/)
  await relay.running.stop()
  await http.stderr.until(/relay lost \(.*\), reconnecting in [\d.]+ s\n/)
  await http.stdout.until(/reconnecting in|connecting/)
  // It stays away for several attempts; nothing more is said about them.
  await new Promise((resolve) => setTimeout(resolve, 1500))
  assert.is(http.stderr.lines.length, 1)
  const again = await place.start('host', [
    'relay',
    '--port',
    `${relay.port}`,
    '--json',
    '--log-level',
    'error',
  ])
  await http.stderr.until(/relay is back, same address\n/)
  assert.is(http.stderr.lines.length, 2)
  await http.stdout.until(/0 visitors now[^]*0 visitors now/)
  assert.is(http.stdout.text.match(/https:\/\//g)!.length, 1, 'the URL stays where it is')
  assert.is(await http.stop(), 130)
  await again.stop()
})

test('a relay that is not there yet is waited for', async () => {
  const relay = await startRelay()
  await relay.running.stop()
  const http = await place.start('host', ['http', `${echoPort}`, '--json'])
  await http.stderr.until(/cannot reach the relay localhost:\d+ yet/)
  await place.start('host', ['relay', '--port', `${relay.port}`, '--json', '--log-level', 'error'])
  await up(http)
})

test('a relay with another identity at the same address is refused with both fingerprints', async () => {
  const relay = await startRelay()
  await relay.running.stop()
  const impostor = await place.start('mallory', [
    'relay',
    '--port',
    `${relay.port}`,
    '--json',
    '--open',
    'true',
  ])
  await up(impostor, 'listening')
  for (const argv of [['http', `${echoPort}`], ['status'], ['relay', 'names', 'list']]) {
    const { code, stderr } = await place.run('host', argv)
    assert.is(code, 1, argv.join(' '))
    assert.match(
      stderr.text,
      /its identity has changed: found SHA256:\S+, expected SHA256:/,
      argv[0],
    )
  }
  assert.not.match(impostor.stderr.text, /sk_|ak_/)
})

test('--relay-fingerprint pins: the right one works, a wrong one tells nothing to the relay', async () => {
  const relay = await startRelay(['--open', 'true'])
  const good = await place.start('new', [
    'http',
    `${echoPort}`,
    '--relay',
    relay.url,
    '--relay-fingerprint',
    relay.fingerprint,
    '--json',
  ])
  await up(good)
  assert.not.match(good.stderr.text, /first contact/)
  const wrong = `SHA256:${'A'.repeat(43)}`
  const bad = await place.run('new2', [
    'http',
    `${echoPort}`,
    '--relay',
    relay.url,
    '--relay-fingerprint',
    wrong,
  ])
  assert.is(bad.code, 1)
  assert.match(bad.stderr.text, new RegExp(`expected ${wrong}`))
})

test('the upstream down is one line, however many visitors find it so', async () => {
  const relay = await startRelay()
  const http = await place.start('host', ['http', '1', '--name', 'web', '--json'])
  await up(http)
  const asked = (): Promise<string> =>
    new Promise((resolve) => {
      const visitor = tlsConnect({
        port: relay.port,
        servername: 'web.secure.localhost',
        rejectUnauthorized: false,
      }, () => visitor.write('GET / HTTP/1.1\r\nHost: web\r\n\r\n'))
      let said = ''
      visitor.on('data', (bytes: Uint8Array) => said += new TextDecoder().decode(bytes))
      visitor.on('close', () => resolve(said))
    })
  for (let i = 0; i < 5; i++) assert.match(await asked(), /^HTTP\/1\.1 502 /)
  assert.is(http.stderr.lines.length, 1)
  assert.match(http.stderr.text, /Cannot connect to 127\.0\.0\.1:1/)
})

test('a certificate of our own is the one that visitors get, and the one after it is changed', async () => {
  const relay = await startRelay()
  const make = (name: string): Promise<void> =>
    new Promise((resolve, reject) => {
      const child = spawn('openssl', [
        'req',
        '-x509',
        '-newkey',
        'ec',
        '-pkeyopt',
        'ec_paramgen_curve:P-256',
        '-nodes',
        '-days',
        '30',
        '-subj',
        `/CN=${name}`,
        '-keyout',
        `${place.dir}/own.key`,
        '-out',
        `${place.dir}/own.crt`,
      ], { stdio: 'ignore' })
      child.on('close', (code) => code === 0 ? resolve() : reject(new Error('openssl')))
    })
  const subject = (): Promise<string> =>
    new Promise((resolve) => {
      const visitor = tlsConnect({
        port: relay.port,
        servername: 'web.secure.localhost',
        rejectUnauthorized: false,
      }, () => {
        resolve(String(visitor.getPeerCertificate().subject.CN))
        visitor.destroy()
      })
    })
  await make('first')
  const http = await place.start('host', [
    'http',
    `${echoPort}`,
    '--name',
    'web',
    '--json',
    '--e2ee-cert',
    `${place.dir}/own.crt`,
    '--e2ee-key',
    `${place.dir}/own.key`,
  ])
  await up(http)
  assert.is(await subject(), 'first')
  await make('second')
  await within(async () => await subject() === 'second')
  await writeFile(`${place.dir}/own.crt`, 'nonsense')
  await http.stderr.until(/were not taken, the old pair stays/)
  assert.is(await subject(), 'second')
})

test('status shows what is served, and says when the relay does not answer', async () => {
  const relay = await startRelay()
  const tcp = await place.start('host', ['tcp', `${echoPort}`, '--name', 'db', '--json'])
  await up(tcp)
  const seen = await place.run('host', ['status'])
  assert.is(seen.code, 0)
  assert.match(seen.stdout.text, new RegExp(`relay +https://localhost:${relay.port}`))
  assert.match(seen.stdout.text, /^db +this identity +127\.0\.0\.1 /m)
  const [status, endpoint] = (await place.run('host', ['status', '--json'])).stdout.objects
  assert.is(status!['relayFingerprint'], relay.fingerprint)
  assert.equal([endpoint!['event'], endpoint!['endpoint'], endpoint!['own']], [
    'endpoint',
    'db',
    true,
  ])
  await tcp.stop()
  await relay.running.stop()
  const gone = await place.run('host', ['status'])
  assert.is(gone.code, 1)
  assert.match(gone.stdout.text, /no answer/)
})

test('where the relay has no raw port, http is refused with the reason and both remedies', async () => {
  const edge = await startDenoDeploy()
  try {
    const { secret } = await makeKey(edge)
    const env = { SOTTO_RELAY: edge.url, SOTTO_API_KEY: secret }
    const refused = await place.run('ana', ['http', `${echoPort}`, '--name', 'web'], { env })
    assert.is(refused.code, 1)
    assert.match(refused.stderr.text, /this relay has no raw TCP port/)
    assert.match(refused.stderr.text, /--e2ee=false \(the relay can then read/)
    assert.match(refused.stderr.text, /"sotto connect" from the visitor's side/)
    const tcp = await place.start('ana', ['tcp', `${echoPort}`, '--name', 'db', '--json'], { env })
    await up(tcp)
    const connect = await place.start('ana', ['connect', 'db', '--json'], { env })
    const { address } = await up(connect, 'listening')
    assert.is(await talk(Number(address.split(':')[1]), 'over the link'), 'echo:over the link')
    const names = await place.run('ana', ['relay', 'names', 'list'], { env })
    assert.match(names.stdout.text, /^db +alice /m)
  } finally {
    await edge.stop()
  }
})

test.run()
