// Commands in memory over a relay of their own: what they print, what they say when the relay or the
// upstream goes. Real sockets and real TLS; only the terminal is kept in memory.
// needs: openssl
// seconds: 240
import { spawn } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { readFile, stat, writeFile } from 'node:fs/promises'
import { connect as tlsConnect } from 'node:tls'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Running } from '../support/cli.ts'
import { event, Scene, talk, within } from '../support/scene.ts'
import type { RelayHome } from '../support/scene.ts'
import { makeKey, startDenoDeploy } from '../support/worker_relay.ts'

const test = suite('agent/commands')

let scene: Scene
test.before.each(async () => void (scene = await Scene.make()))
test.after.each(() => scene.close())

test('the first start of a relay makes keys, shows them once, and the next terminal just works', async () => {
  const { running, url } = await scene.relay()
  const [listening] = running.stdout.objects
  assert.match(listening!['adminKey'], /^ak_admin_/)
  assert.match(listening!['apiKey'], /^sk_host_/)
  const path = listening!['kept']
  assert.is((await stat(path)).mode & 0o777, 0o600)
  assert.is(JSON.parse(await readFile(path, 'utf8')).relay, url)
  const http = await scene.place.start('host', ['http', scene.echo, '--name', 'web', '--json'])
  assert.is((await event(http, 'up'))['url'], `https://web.secure.localhost:${new URL(url).port}/`)
  assert.is(http.stderr.text, '', 'our own relay is no stranger')
  assert.is(await running.stop({ name: 'terminate', exitCode: 143 }), 0)
  const again = await scene.relay()
  assert.is(again.running.stdout.objects[0]!['adminKey'], undefined)
})

test('keys and tokens are made, listed and revoked; a revoked one ends its tunnels with the reason', async () => {
  const relay = await scene.relay()
  const created = await scene.place.run('host', [
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
  const list = await scene.place.run('host', ['relay', 'keys', 'list'])
  assert.match(list.stdout.text, new RegExp(`^${id}  key +ana +good .* web-\\* +laptop$`, 'm'))
  const wrong = await scene.place.run('ana', ['http', scene.echo, '--name', 'api'], { env })
  assert.is(wrong.code, 1)
  assert.match(wrong.stderr.text, /does not allow that name/)
  const http = await scene.place.start('ana', ['http', scene.echo, '--name', 'web-1', '--json'], {
    env,
  })
  await event(http, 'up')
  assert.is((await scene.place.run('host', ['relay', 'keys', 'revoke', id])).code, 0)
  assert.is(await http.code, 1)
  assert.match(http.stderr.text, /revoked/)
  assert.match((await scene.place.run('host', ['relay', 'keys', 'list'])).stdout.text, /revoked/)
  const token = await scene.place.run('host', [
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
  const till = await scene.place.start('till', ['http', scene.echo, '--name', 'till-1', '--json'], {
    env: { SOTTO_RELAY: relay.url, SOTTO_API_KEY: token.stdout.text.trim() },
  })
  await event(till, 'up')
  // A limit may be free again in a moment, so it is waited for.
  const second = await scene.place.start('till2', ['http', scene.echo, '--name', 'till-2'], {
    env: { SOTTO_RELAY: relay.url, SOTTO_API_KEY: token.stdout.text.trim() },
  })
  await second.stderr.until(/the most it allows/)
})

test('a name of somebody else is refused with one that is free; release gives it up', async () => {
  const relay = await scene.relay()
  const ana = await scene.friend(relay, 'ana')
  const first = await scene.place.start('ana', ['http', scene.echo, '--name', 'web', '--json'], {
    env: ana,
  })
  await event(first, 'up')
  const bob = await scene.friend(relay, 'bob')
  const refused = await scene.place.run('bob', ['http', scene.echo, '--name', 'web'], { env: bob })
  assert.is(refused.code, 1)
  assert.match(refused.stderr.text, /belongs to another scope[^]*is free: use --name \S+/)
  const live = await scene.place.run('ana', ['relay', 'names', 'release', 'web'], { env: ana })
  assert.is(live.code, 1)
  assert.match(live.stderr.text, /serves it now/)
  await first.stop()
  assert.is(
    (await scene.place.run('ana', ['relay', 'names', 'release', 'web'], { env: ana })).code,
    0,
  )
  const names = await scene.place.run('host', ['relay', 'names', 'list'])
  assert.is(names.stderr.text, 'no name is reserved\n')
  const second = await scene.place.start('bob', ['http', scene.echo, '--name', 'web', '--json'], {
    env: bob,
  })
  await event(second, 'up')
})

test('block cuts visitors off, and unblock lets them in again', async () => {
  const relay = await scene.relay()
  const raw = await startRaw(relay)
  await raw.tunnel.stop()
  const tcp = await scene.place.start('host', [
    'tcp',
    scene.echo,
    '--name',
    'db',
    '--public',
    '--json',
  ])
  await event(tcp, 'up')
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
  const blocked = await scene.place.run('host', ['relay', 'block', 'db', '--reason', 'test'])
  assert.is(blocked.stderr.text, 'blocked the name db\n')
  await closed
  const open = await scene.place.run('host', ['relay', 'unblock', 'db', '--json'])
  assert.equal(open.stdout.objects, [{ unblocked: { name: 'db' } }])
})

test('raw TCP and UDP ports carry bytes and datagrams', async () => {
  const first = 20_000 + Math.floor(Math.random() * 10_000)
  await scene.relay(['--public-ports', `${first}-${first + 50}`])
  const tcp = await scene.place.start('host', ['tcp', scene.echo, '--e2ee=false', '--json'])
  const shown = await event(tcp, 'up')
  const port = Number(shown['address'].split(':')[1])
  assert.is(shown['url'], `tcp://localhost:${port}`)
  assert.is(await talk(port, 'raw'), 'echo:raw')
  const upstream = createSocket(
    'udp4',
    (bytes: Uint8Array, from) => upstream.send(`udp:${bytes}`, from.port),
  )
  await new Promise<void>((resolve) => upstream.bind(0, '127.0.0.1', resolve))
  const udp = await scene.place.start('host', [
    'udp',
    `127.0.0.1:${upstream.address().port}`,
    '--e2ee=false',
    '--json',
  ])
  const udpPort = Number((await event(udp, 'up'))['address'].split(':')[1])
  const client = createSocket('udp4')
  const answer = await new Promise<string>((resolve) => {
    client.on('message', (bytes) => resolve(String(bytes)))
    client.send('ping', udpPort, '127.0.0.1')
  })
  assert.is(answer, 'udp:ping')
  client.close()
  upstream.close()
})

test('the relay lost is said once, and so is its return, at the same address', async () => {
  const relay = await scene.relay()
  const http = await scene.place.start('host', ['http', scene.echo, '--name', 'web'], {
    columns: 100,
  })
  await http.stdout.until(/0 visitors now/)
  await relay.running.stop()
  await http.stderr.until(/relay lost \(.*\), reconnecting in [\d.]+ s\n/)
  await http.stdout.until(/reconnecting in|connecting/)
  // It stays away for several attempts; nothing more is said about them.
  await new Promise((resolve) => setTimeout(resolve, 1500))
  assert.is(http.stderr.lines.length, 1)
  const again = await scene.place.start('host', [
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
  const relay = await scene.relay()
  await relay.running.stop()
  const http = await scene.place.start('host', ['http', scene.echo, '--json'])
  await http.stderr.until(/cannot reach the relay localhost:\d+ yet/)
  await scene.place.start('host', [
    'relay',
    '--port',
    `${relay.port}`,
    '--json',
    '--log-level',
    'error',
  ])
  await event(http, 'up')
})

test('a relay with another identity at the same address is refused with both fingerprints', async () => {
  const relay = await scene.relay()
  await relay.running.stop()
  const impostor = await scene.place.start('mallory', [
    'relay',
    '--port',
    `${relay.port}`,
    '--json',
    '--open',
    'true',
  ])
  await event(impostor, 'listening')
  for (const argv of [['http', scene.echo], ['status'], ['relay', 'names', 'list']]) {
    const { code, stderr } = await scene.place.run('host', argv)
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
  const relay = await scene.relay(['--open', 'true'])
  const good = await scene.place.start('new', [
    'http',
    scene.echo,
    '--relay',
    relay.url,
    '--relay-fingerprint',
    relay.fingerprint,
    '--json',
  ])
  await event(good, 'up')
  assert.not.match(good.stderr.text, /first contact/)
  const wrong = `SHA256:${'A'.repeat(43)}`
  const bad = await scene.place.run('new2', [
    'http',
    scene.echo,
    '--relay',
    relay.url,
    '--relay-fingerprint',
    wrong,
  ])
  assert.is(bad.code, 1)
  assert.match(bad.stderr.text, new RegExp(`expected ${wrong}`))
})

test('the upstream down is one line, however many visitors find it so', async () => {
  const relay = await scene.relay()
  const http = await scene.place.start('host', ['http', '1', '--name', 'web', '--json'])
  await event(http, 'up')
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
  const relay = await scene.relay()
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
        `${scene.place.dir}/own.key`,
        '-out',
        `${scene.place.dir}/own.crt`,
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
  const http = await scene.place.start('host', [
    'http',
    scene.echo,
    '--name',
    'web',
    '--json',
    '--e2ee-cert',
    `${scene.place.dir}/own.crt`,
    '--e2ee-key',
    `${scene.place.dir}/own.key`,
  ])
  await event(http, 'up')
  assert.is(await subject(), 'first')
  await make('second')
  await within(async () => await subject() === 'second')
  await writeFile(`${scene.place.dir}/own.crt`, 'nonsense')
  await http.stderr.until(/were not taken, the old pair stays/)
  assert.is(await subject(), 'second')
})

test('status shows what is served, and says when the relay does not answer', async () => {
  const relay = await scene.relay()
  const tcp = await scene.place.start('host', ['tcp', scene.echo, '--name', 'db', '--json'])
  await event(tcp, 'up')
  const seen = await scene.place.run('host', ['status'])
  assert.is(seen.code, 0)
  assert.match(seen.stdout.text, new RegExp(`relay +https://localhost:${relay.port}`))
  assert.match(seen.stdout.text, /^db +this identity +127\.0\.0\.1 /m)
  const [status, endpoint] = (await scene.place.run('host', ['status', '--json'])).stdout.objects
  assert.is(status!['relayFingerprint'], relay.fingerprint)
  assert.equal([endpoint!['event'], endpoint!['endpoint'], endpoint!['own']], [
    'endpoint',
    'db',
    true,
  ])
  await tcp.stop()
  await relay.running.stop()
  const gone = await scene.place.run('host', ['status'])
  assert.is(gone.code, 1)
  assert.match(gone.stdout.text, /no answer/)
})

test('where the relay has no raw port, http is refused with the reason and both remedies', async () => {
  const edge = await startDenoDeploy()
  try {
    const { secret } = await makeKey(edge)
    const env = { SOTTO_RELAY: edge.url, SOTTO_API_KEY: secret }
    const refused = await scene.place.run('ana', ['http', scene.echo, '--name', 'web'], { env })
    assert.is(refused.code, 1)
    assert.match(refused.stderr.text, /this relay has no raw TCP port/)
    assert.match(refused.stderr.text, /--e2ee=false \(the relay can then read/)
    assert.match(refused.stderr.text, /"sotto connect" from the visitor's side/)
    const tcp = await scene.place.start('ana', ['tcp', scene.echo, '--name', 'db', '--json'], {
      env,
    })
    await event(tcp, 'up')
    const connect = await scene.place.start('ana', ['connect', 'db', '--json'], { env })
    const { address } = await event(connect, 'listening')
    assert.is(await talk(Number(address.split(':')[1]), 'over the link'), 'echo:over the link')
    const names = await scene.place.run('ana', ['relay', 'names', 'list'], { env })
    assert.match(names.stdout.text, /^db +alice /m)
  } finally {
    await edge.stop()
  }
})

async function startRaw(relay: RelayHome): Promise<{ tunnel: Running }> {
  assert.ok(relay.port > 0)
  const closed = await scene.place.run('host', ['tcp', scene.echo, '--e2ee=false'])
  assert.is(closed.code, 1)
  assert.match(closed.stderr.text, /public port/)
  const tunnel = await scene.place.start('host', ['http', scene.echo, '--e2ee=false', '--json'])
  const shown = await event(tunnel, 'up')
  assert.is(shown['mode'], 'inspectable')
  assert.match(shown['url'], /^https:\/\/\d+-[a-z2-7]{6}\.apps\.localhost:/)
  return { tunnel }
}

test.run()
