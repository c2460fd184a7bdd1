// seconds: 120
// needs: openssl ssh ssh-keygen sshd redis-server redis-cli
/**
 * `sotto tcp` is private: strangers are refused with an alert and the person is told who knocked and
 * what would let them in; `sotto connect` gets in once it is allowed, believes the passport and no
 * certificate that somebody swapped, and stops when the identity behind a name has changed. Real
 * ssh and redis go through it.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { chmodSync, copyFileSync, mkdirSync, writeFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { createServer as createTlsServer } from 'node:tls'
import { freePort } from '../support/port.ts'
import { E2eWorld } from '../support/world.ts'
import type { CommandResult, Line, Program, Relay } from '../support/world.ts'

/** The agent looks at its pins at least every 2 s, and then asks the relay. */
const PIN_MS_MAX = 10_000

let world: E2eWorld
let relay: Relay
let upstreamPort: number
let guest: Line

const test = suite('e2e/private')

test.before(async () => {
  world = new E2eWorld()
  relay = await world.relay()
  guest = JSON.parse((await world.sottoRun(['identity', '--json'], { home: 'guest' })).stdout)
  // Sends back what comes, and ends when the other side does.
  const upstream = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => {})
    socket.pipe(socket)
  })
  await new Promise<void>((resolve) => upstream.listen(0, '127.0.0.1', resolve))
  upstreamPort = (upstream.address() as AddressInfo).port
  world.defer(() => upstream.close())
})

test.after(() => world.close())

/** `sotto tcp` with a profile of its own. */
function serve(name: string, more: readonly string[] = [], port: number = upstreamPort) {
  return world.tunnel(relay, ['tcp', String(port), '--name', name, ...more], { home: name })
}

function joins(home: string): { home: string; env: Record<string, string> } {
  return { home, env: world.joins(relay) }
}

function trust(home: string, name: string, key: string) {
  return world.sottoRun(['peers', 'trust', name, key], { home })
}

/** `sotto connect NAME --stdio` with some bytes. */
function carry(name: string, words: string, options = joins('guest')) {
  return world.sottoRun(['connect', name, '--stdio'], { ...options, input: words })
}

/** Pins are files: the agent sees a change soon, at the latest by its next look at them. */
async function carryUntil(
  name: string,
  words: string,
  good: (got: CommandResult) => boolean,
): Promise<CommandResult> {
  const late = Date.now() + PIN_MS_MAX
  for (;;) {
    const got = await carry(name, words)
    if (good(got) || Date.now() > late) return got
  }
}

/** What openssl gets at a name. It keeps its input open until it has seen the answer, or the alert. */
function openssl(name: string, more: readonly string[] = []) {
  return world.run('bash', [
    '-c',
    `(echo hello; sleep 2) | timeout 15 openssl s_client -connect 127.0.0.1:${relay.port} ` +
    `-servername ${name}.secure.localhost ${more.join(' ')}`,
  ])
}

async function listening(name: string, options = joins('guest')) {
  const program = world.sotto(['connect', name, '--listen', '127.0.0.1:0', '--json'], options)
  const { address } = await program.event('listening')
  return { program, port: Number(address.split(':')[1]) }
}

test('openssl without a certificate is refused with an alert, and the knock is told', async () => {
  const agent = await serve('plain')
  const got = await openssl('plain')
  assert.match(got.stderr, /alert certificate required/)
  assert.not.match(got.stdout, /^hello$/m)
  const knock = await agent.event('knock')
  assert.is(knock['name'], 'plain')
  assert.is(knock['key'], undefined)
  await agent.says(/A client without a certificate knocked/)
  await agent.says(/sotto connect plain.*--public lets in any TLS client/)
  // TLS 1.2 would show client certificates to everybody on the way.
  const old = await openssl('plain', ['-tls1_2'])
  assert.match(old.stderr, /alert protocol version/)
  assert.not.match(old.stdout, /^hello$/m)
  await agent.stop()
})

test('openssl with a certificate of its own making is refused, and its fingerprint shown', async () => {
  const agent = await serve('stranger')
  const made = await world.run('openssl', [
    ...'req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=me'.split(
      ' ',
    ),
    ...['-keyout', world.path('me.key'), '-out', world.path('me.crt')],
  ])
  assert.is(made.code, 0, made.stderr)
  const shown = await world.run('openssl', [
    ...['x509', '-in', world.path('me.crt'), '-noout', '-fingerprint', '-sha256'],
  ])
  const fingerprint = shown.stdout.trim().split('=')[1]!
  const mine = ['-cert', world.path('me.crt'), '-key', world.path('me.key')]
  const got = await openssl('stranger', mine)
  assert.match(got.stderr, /alert/)
  assert.not.match(got.stdout, /^hello$/m)
  const knock = await agent.event('knock')
  assert.is(knock['certificate'], fingerprint)
  // The command that it names does let it in.
  const [, allow] = await agent.says(/run this again with (--allow \S+)/)
  await agent.stop()
  const again = await serve('stranger', allow!.split(' '))
  assert.match((await openssl('stranger', mine)).stdout, /^hello$/m)
  await again.stop()
})

test('connect is refused, the agent names the command, and after it connect gets in', async () => {
  const agent = await serve('db')
  const refused = await carry('db', 'hello')
  assert.is(refused.code, 1)
  assert.is(refused.stdout, '')
  assert.match(refused.stderr, /does not let this identity in/)
  assert.match(refused.stderr, new RegExp(`sotto peers trust \\S+ ${guest['key']}`))
  const knock = await agent.event('knock', ({ key }) => key !== undefined)
  assert.is(knock['key'], guest['key'])
  const [, pin, rule] = await agent.says(/To let them in: sotto (peers trust .+) && sotto (.+)\n/)
  for (const words of [pin!, rule!]) {
    const typed = await world.sottoRun(words.split(' '), { home: 'db' })
    assert.is(typed.code, 0, typed.stderr)
  }
  const through = await carryUntil('db', 'hello through it', ({ code }) => code === 0)
  assert.is(through.stdout, 'hello through it', through.stderr)
  // Sent away again, without a restart.
  const [, , name] = pin!.split(' ')
  assert.is((await world.sottoRun(['peers', 'forget', name!], { home: 'db' })).code, 0)
  const gone = await carryUntil('db', 'hello', ({ code }) => code !== 0)
  assert.is(gone.stdout, '')
  assert.match(gone.stderr, /does not let this identity in/)
  await agent.stop()
})

test('--allow KEY lets one identity in, and no other; --listen carries many at once', async () => {
  const newcomer = await world.sottoRun(['identity', '--json'], { home: 'newcomer' })
  const { key } = JSON.parse(newcomer.stdout)
  const agent = await serve('listed', ['--allow', guest['key'], '--allow', key])
  // Its passport is published by this very visit: nobody can have known of it.
  const visit = await carry('listed', 'first of all', joins('newcomer'))
  assert.is(visit.stdout, 'first of all', visit.stderr)
  const { program, port } = await listening('listed')
  const answers = await Promise.all(
    Array.from({ length: 20 }, (_, i) => exchange(port, `number ${i}`)),
  )
  assert.equal(answers, Array.from({ length: 20 }, (_, i) => `number ${i}`))
  const other = await carry('listed', 'hello', joins('other'))
  assert.is(other.code, 1)
  assert.is(other.stdout, '')
  await program.stop()
  await agent.stop()
})

/** Sends words to a local port, half-closes, and gives what came back. */
function exchange(port: number, words: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host: '127.0.0.1', port, allowHalfOpen: true })
    let got = ''
    socket.setEncoding('utf8').on('data', (part) => got += part)
    socket.on('end', () => resolve(got)).on('error', reject)
    socket.end(words)
  })
}

test('a swapped certificate is refused, with both fingerprints', async () => {
  const agent = await serve('safe', ['--allow', guest['key']])
  const middle = await startMiddle('safe.secure.localhost')
  const env = { ...world.joins(relay), SOTTO_RELAY: `https://localhost:${middle.port}` }
  const got = await carry('safe', 'secret words', { home: 'guest', env })
  assert.is(got.code, 1)
  assert.is(got.stdout, '')
  assert.match(got.stderr, /Cannot trust the certificate of "safe"/)
  assert.ok(got.stderr.includes(middle.fingerprint), got.stderr)
  assert.ok(got.stderr.includes(agent.up['certificate']), got.stderr)
  assert.is(middle.heard(), '')
  await agent.stop()
})

/** A port that is the relay's, but answers for one name by itself. */
async function startMiddle(host: string) {
  const [keyPath, certPath] = [world.path('middle.key'), world.path('middle.crt')]
  await world.run('openssl', [
    ...'req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2'.split(' '),
    ...['-subj', `/CN=${host}`, '-keyout', keyPath, '-out', certPath],
  ])
  const shown = await world.run('openssl', [
    ...['x509', '-in', certPath, '-noout', '-fingerprint', '-sha256'],
  ])
  let heard = ''
  const [key, cert] = await Promise.all([keyPath, certPath].map((path) => Bun.file(path).text()))
  const false_ = createTlsServer({ key: key!, cert: cert! }, (socket) => {
    socket.on('data', (part) => heard += part).on('error', () => {})
  })
  false_.on('tlsClientError', () => {})
  const port = await open(false_)
  const front = createServer((socket) => {
    socket.once('data', (first) => {
      const to = connect({
        host: '127.0.0.1',
        port: first.includes(host) ? port : relay.port,
      })
      to.write(first)
      socket.pipe(to).on('error', () => socket.destroy())
      to.pipe(socket).on('error', () => to.destroy())
    })
  })
  return {
    port: await open(front),
    fingerprint: shown.stdout.trim().split('=')[1]!,
    heard: () => heard,
  }
}

async function open(server: ReturnType<typeof createServer>): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  world.defer(() => server.close())
  return (server.address() as AddressInfo).port
}

test('another identity behind a pinned name stops connect, and a person may accept it', async () => {
  const first = await serve('moved', ['--allow', guest['key']])
  assert.is((await carry('moved', 'one')).stdout, 'one')
  await first.stop()
  const second = await world.tunnel(
    relay,
    ['tcp', String(upstreamPort), '--name', 'moved', '--allow', guest['key']],
    { home: 'moved-2' },
  )
  for (const args of [['--stdio'], ['--listen', '127.0.0.1:0']]) {
    const stopped = await world.sottoRun(['connect', 'moved', ...args], {
      ...joins('guest'),
      input: 'two',
      timeoutMs: 20_000,
    })
    assert.is(stopped.code, 1, stopped.stderr)
    assert.not.match(stopped.stdout, /two/)
    assert.match(stopped.stderr, /Cannot trust "moved": its identity has changed/)
    for (const { up } of [first, second]) assert.ok(stopped.stderr.includes(up['fingerprint']))
  }
  const accepted = await trust('guest', 'moved', second.up['key'])
  assert.is(accepted.code, 0, accepted.stderr)
  assert.is((await carry('moved', 'three')).stdout, 'three')
  await second.stop()
})

test('--public opens it to openssl', async () => {
  const agent = await serve('open', ['--public'])
  const got = await openssl('open')
  assert.match(got.stdout, /^hello$/m, got.stderr)
  await agent.stop()
})

test('ssh runs a command through connect --stdio', async () => {
  const sshd = await startSshd()
  const agent = await serve('box', ['--allow', guest['key']], sshd.port)
  const got = await world.run('ssh', [
    ...['-F', '/dev/null', '-i', sshd.keyPath, '-o', 'BatchMode=yes'],
    ...['-o', `UserKnownHostsFile=${world.path('known_hosts')}`],
    ...['-o', 'StrictHostKeyChecking=accept-new'],
    ...['-o', `ProxyCommand=${world.sottoWords} connect box --stdio`],
    `${(await world.run('id', ['-un'])).stdout.trim()}@box`,
    'echo "on the other side $((6 * 7))"; head -c 3000000 /dev/zero | sha256sum',
  ], { env: { ...world.joins(relay), SOTTO_HOME: world.path('guest') } })
  assert.match(got.stdout, /^on the other side 42\n/, `${got.stderr}\n${sshd.program.stderr}`)
  const zeros = new Bun.CryptoHasher('sha256').update(new Uint8Array(3_000_000)).digest('hex')
  assert.ok(got.stdout.includes(zeros), got.stdout)
  assert.is(got.code, 0)
  await agent.stop()
})

/** An SSH server of this user's own on loopback. */
async function startSshd(): Promise<{ program: Program; port: number; keyPath: string }> {
  const [hostKey, keyPath] = [world.path('host_key'), world.path('user_key')]
  for (const path of [hostKey, keyPath]) {
    const made = await world.run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', path])
    assert.is(made.code, 0, made.stderr)
  }
  copyFileSync(`${keyPath}.pub`, world.path('authorized_keys'))
  // Root's server separates privileges in a folder that a package's service would make.
  if (process.getuid?.() === 0) mkdirSync('/run/sshd', { recursive: true, mode: 0o755 })
  const port = await freePort()
  writeFileSync(
    world.path('sshd_config'),
    [
      `Port ${port}`,
      'ListenAddress 127.0.0.1',
      `HostKey ${hostKey}`,
      `AuthorizedKeysFile ${world.path('authorized_keys')}`,
      'PidFile none',
      'StrictModes no',
      'PasswordAuthentication no',
      '',
    ].join('\n'),
  )
  chmodSync(world.path('authorized_keys'), 0o600)
  const program = world.start('/usr/sbin/sshd', ['-D', '-e', '-f', world.path('sshd_config')])
  await program.says(/Server listening on/)
  return { program, port, keyPath }
}

test('redis through connect', async () => {
  const port = await freePort()
  const redis = world.start('redis-server', [
    ...['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no'],
    ...['--dir', world.dir],
  ])
  await redis.says(/[Rr]eady to accept connections/)
  const agent = await serve('redis', ['--allow', guest['key']], port)
  const near = await listening('redis')
  const cli = (...words: string[]) =>
    world.run('redis-cli', ['-h', '127.0.0.1', '-p', String(near.port), ...words])
  assert.is((await cli('SET', 'greeting', 'hello from afar')).stdout, 'OK\n')
  assert.is((await cli('GET', 'greeting')).stdout, 'hello from afar\n')
  const big = 'x'.repeat(100_000)
  assert.is((await cli('SET', 'big', big)).stdout, 'OK\n')
  assert.is((await cli('GET', 'big')).stdout, `${big}\n`)
  await near.program.stop()
  await agent.stop()
})

test.run()
