// seconds: 120
/**
 * `sotto doctor` before servers that are broken in one way each, beside a real relay; and its bundle,
 * into which secrets are planted wherever they can be, and which is then searched for each of them.
 * NATs, coturn and lost packets: tests/e2e/doctor.test.ts.
 */
import { chmodSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { createServer as createHttp } from 'node:http'
import { createServer as createTcp } from 'node:net'
import type { AddressInfo, Server } from 'node:net'
import { networkInterfaces } from 'node:os'
import { dirname, join } from 'node:path'
import { createServer as createTls } from 'node:tls'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { makeCertificate } from '../../agent/certificate.ts'
import { runChecks } from '../../agent/doctor.ts'
import { redact, REMOVED } from '../../agent/doctor_bundle.ts'
import { parseStunServer } from '../../agent/doctor_nat.ts'
import { testWorld } from '../support/agent_world.ts'
import { Scene } from '../support/scene.ts'

const test = suite('agent/doctor')
let scene: Scene
const servers: Server[] = []

test.before.each(async () => void (scene = await Scene.make()))
test.after.each(async () => {
  for (const server of servers.splice(0)) server.close().unref()
  await scene.close()
})

async function listen(server: Server, host = '127.0.0.1'): Promise<number> {
  servers.push(server)
  await new Promise<void>((resolve) => server.listen(0, host, resolve))
  return (server.address() as AddressInfo).port
}

async function doctor(home: string, flags: string[], env: Record<string, string> = {}) {
  const { code, stdout, stderr } = await scene.place.run(home, ['doctor', '--json', ...flags], {
    env,
  })
  // deno-lint-ignore no-explicit-any
  const found: Record<string, any> = Object.fromEntries(
    stdout.objects.filter(({ event }) => event === 'check').map((one) => [one['check'], one]),
  )
  return { code, found, stdout: stdout.text, stderr: stderr.text }
}

/** Levels that are no ok. */
// deno-lint-ignore no-explicit-any
function wrong(found: Record<string, any>): string[] {
  return Object.values(found).filter(({ level }) => level === 'fail').map(({ check }) => check)
}

test('without a relay it looks at what there is, and says how one is named', async () => {
  const { code, found } = await doctor('new', [])
  assert.is(code, 0)
  assert.is(found['relay'].level, 'skipped')
  assert.ok(found['relay'].remedy)
  assert.is(found['disk'].level, 'ok')
})

test('before a relay that is well all is ok, admission too', async () => {
  await scene.relay()
  await scene.place.run('host', ['identity'])
  const { code, found } = await doctor('host', [])
  assert.equal(wrong(found), [])
  assert.is(code, 0)
  for (const check of ['dns', 'tcp', 'tls', 'http', 'websocket', 'clock', 'mtu', 'version']) {
    assert.is(found[check].level, 'ok', `${check}: ${found[check].words}`)
  }
  assert.is(found['admission'].level, 'ok', found['admission'].words)
})

test('a credential that is refused is told, with what to do', async () => {
  const relay = await scene.relay()
  await scene.place.run('host', ['identity'])
  const { code, found } = await doctor('host', [], {
    SOTTO_RELAY: relay.url,
    SOTTO_API_KEY: `sk_${'a'.repeat(43)}`,
  })
  assert.is(code, 1)
  assert.equal(wrong(found), ['admission'])
  assert.ok(found['admission'].remedy)
})

test('a name that nobody has, and a port where nobody listens, are one failure each', async () => {
  const dead = await doctor('a', ['--relay', 'https://relay.invalid'])
  assert.is(dead.code, 1)
  assert.equal(wrong(dead.found), ['dns'])
  assert.match(dead.found['dns'].remedy, /nslookup relay\.invalid/)
  const closed = await doctor('a', ['--relay', 'https://localhost:1'])
  assert.equal(wrong(closed.found), ['tcp'])
  assert.is(closed.found['tcp'].facts.code, 'net/refused')
})

test('a server that speaks no TLS is told once', async () => {
  const port = await listen(
    createTcp((socket) => socket.end('SSH-2.0-x\r\n').on('error', () => {})),
  )
  const { found } = await doctor('a', ['--relay', `https://localhost:${port}`])
  assert.equal(wrong(found), ['tls'])
  assert.is(found['http'].level, 'skipped')
})

/** An address of this machine that is not loopback, where strangers' certificates are refused. */
function ownAddress(): string {
  return Object.values(networkInterfaces()).flatMap((all) => all ?? [])
    .find(({ family, internal }) => family === 'IPv4' && !internal)?.address ?? '127.0.0.1'
}

test('a certificate that nobody vouches for, or of the past, is a failure away from this machine', async () => {
  const { world, close } = await testWorld()
  const address = ownAddress()
  const tell = (date: Date) => (socket: { end(text: string): unknown }) =>
    void socket.end(`HTTP/1.1 404 x\r\nDate: ${date.toUTCString()}\r\nContent-Length: 0\r\n\r\n`)
  const fresh = await makeCertificate(world, { name: 'other.example', use: 'server' })
  const port = await listen(createTls(fresh, tell(new Date())), address)
  const { found, code } = await doctor('a', ['--relay', `https://${address}:${port}`])
  assert.is(code, 1)
  assert.is(found['tls'].level, 'fail')
  assert.match(found['tls'].words, /other\.example/)
  assert.match(found['tls'].remedy, /--relay-fingerprint/)
  assert.is(found['http'].level, 'fail')
  assert.match(found['http'].words, /is no relay/)
  const past = { ...world, clock: { ...world.clock, now: () => Date.UTC(2020, 0, 1) } }
  const old = await makeCertificate(past, { name: 'other.example', use: 'server' })
  const second = await listen(createTls(old, tell(new Date())), address)
  const expired = (await doctor('a', ['--relay', `https://${address}:${second}`])).found['tls']
  assert.is(expired.level, 'fail')
  assert.match(expired.words, /holds from .* until 2020-/)
  await close()
})

for (
  const [seconds, level] of [[0, 'ok'], [-60, 'warning'], [60, 'warning'], [3600, 'fail']] as const
) {
  test(`a relay whose clock is ${seconds} s off: ${level}`, async () => {
    const port = await listen(
      createHttp({}, (_, response) => {
        response.sendDate = false
        response.setHeader('Date', new Date(Date.now() + seconds * 1000).toUTCString())
        response.end('ok\n')
      }) as unknown as Server,
    )
    const { found } = await doctor('a', ['--relay', `http://127.0.0.1:${port}`])
    assert.is(found['clock'].level, level, found['clock'].words)
    if (seconds === 3600) {
      assert.match(found['clock'].words, /^3600 s behind the relay|^3599 s behind/)
    }
  })
}

test('a proxy that is not there is named, without its password', async () => {
  const { found, code, stdout } = await doctor('a', ['--relay', 'https://relay.example'], {
    HTTPS_PROXY: 'http://me:hunter22@127.0.0.1:1',
  })
  assert.is(code, 1)
  assert.equal(wrong(found), ['tcp'])
  assert.match(found['tcp'].words, /proxy/)
  assert.not.match(stdout, /hunter22/)
})

test('files that others can read are found', async () => {
  await scene.place.run('host', ['identity'])
  assert.is((await doctor('host', [])).found['permissions'].level, 'ok')
  const path = join(scene.place.home('host'), 'identity')
  chmodSync(path, 0o644)
  const { found, code } = await doctor('host', [])
  assert.is(code, 1)
  assert.is(found['permissions'].level, 'fail')
  assert.match(found['permissions'].words, /identity can be read by others/)
  assert.match(found['permissions'].remedy, /^chmod -R go= /)
})

test('Ctrl-C ends it, and a check that never ends has an end', async () => {
  const silent = await listen(createTcp((socket) => socket.on('error', () => {}).resume()))
  const running = await scene.place.start('a', ['doctor', '--relay', `https://localhost:${silent}`])
  await running.stdout.until(/TCP/)
  assert.is(await running.stop(), 130)
  const { world, close } = await testWorld()
  const clock = { ...world.clock, after: (_: number, run: () => void) => world.clock.after(1, run) }
  const alive = setInterval(() => {}, 1000)
  const [result] = await runChecks({ ...world, clock }, [
    { name: 'x', title: 'x', run: () => new Promise(() => {}) },
  ])
  clearInterval(alive)
  assert.is(result!.level, 'fail')
  assert.match(result!.words, /no end within/)
  await close()
})

test('the bundle holds none of the secrets that were planted', async () => {
  const home = scene.place.home('host')
  await scene.place.run('host', ['identity'])
  const planted: string[] = []
  const plant = (secret: string): string => {
    planted.push(secret)
    return secret
  }
  const seed = /^seed: (\S+)$/m.exec(readFileSync(join(home, 'identity'), 'utf8'))![1]!
  planted.push(seed)
  const write = (name: string, content: string): void => {
    const path = join(home, name)
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
    writeFileSync(path, content, { mode: 0o600 })
  }
  write('session_key', `private: ${plant('b'.repeat(51) + 'a')}\n`)
  write('authorities/fleet/key', `seed: ${plant('c'.repeat(51) + 'a')}\n`)
  write(
    'settings.json',
    JSON.stringify({
      relay: 'https://localhost:1',
      apiKey: plant(`sk_${'x1Y2'.repeat(10)}`),
      adminKey: plant(`ak_${'z9W8'.repeat(10)}`),
      labels: { note: plant('label-with-a-word') },
      nested: { deep: [{ secretToken: plant('deep-secret-token') }] },
    }),
  )
  write(
    'sotto.yaml',
    [
      'version: 1',
      `# ${plant('password-in-a-comment')}`,
      `apiKey: ${plant(`ft_${'q'.repeat(30)}`)}`,
      'tunnels:',
      '  web:',
      '    upstream: 3000',
      `    password: "${plant('correct horse battery')}"`,
      `    basic_auth: [alice, ${plant('wonderland-99')}]`,
      '    script: |',
      `      export X=${plant('in-a-block-scalar')}`,
      `    upstream: http://bob:${plant('sp3cial%2Fpass')}@host:80`,
    ].join('\n'),
  )
  write('extra.pem', `-----BEGIN PRIVATE KEY-----\n${plant('MIGHAgEAMBMGByqGSM49AgEGCCqGSM49')}\n`)
  const env = {
    SOTTO_API_KEY: plant(`sk_${'e5F6'.repeat(10)}`),
    SOTTO_ADMIN_KEY: plant('an admin key of no form'),
    HTTPS_PROXY: `http://carol:${plant('pr0xy-pass')}@127.0.0.1:1`,
    ALL_PROXY: `socks5://dave:${plant('socks-pass%21')}@127.0.0.1:1`,
    // As curl takes them: without a scheme; and as people get them wrong.
    http_proxy: `erin:${plant('bare-pass')}@127.0.0.1:1`,
    HTTP_PROXY: `http://fay:${plant('sla/sh@at-pass')}@127.0.0.1:1`,
    all_proxy: `socks5://gil:${plant('2@x')}@127.0.0.1:1`,
    AWS_SECRET_ACCESS_KEY: plant('aws/secret/value+1'),
    DATABASE_URL: `postgres://u:${plant('db-password')}@h/d`,
    MY_PASSWORD: plant('something else'),
    SOTTO_RELAY: 'https://relay.example',
  }
  const file = join(scene.place.dir, 'bundle.json')
  const { stdout, stderr } = await doctor('host', ['--bundle', file], env)
  const bundle = readFileSync(file, 'utf8')
  assert.is(statSync(file).mode & 0o777, 0o600)
  for (const secret of planted) {
    for (const where of [bundle, stdout, stderr]) {
      assert.not.ok(where.includes(secret), `${secret} is in ${where}`)
      assert.not.ok(where.includes(decodeURIComponent(secret)), secret)
    }
  }
  const read = JSON.parse(bundle)
  assert.is(read.settings.apiKey, REMOVED)
  assert.is(read.settings.relay, 'https://localhost:1')
  assert.is(read.environment.SOTTO_API_KEY, REMOVED)
  assert.is(read.environment.MY_PASSWORD, undefined)
  assert.is(read.environment.http_proxy, `${REMOVED}@127.0.0.1:1`)
  assert.match(read.environment.HTTPS_PROXY, /^http:\/\/\[removed\]@127\.0\.0\.1:1$/)
  assert.ok(read.config.includes('    upstream: 3000'))
  assert.ok(read.checks.length > 10)
})

test('redact() takes out what looks like a secret, and leaves the rest', () => {
  for (
    const [text, clean] of [
      ['key sk_abcdefgh1234 end', `key ${REMOVED} end`],
      ['Authorization: Bearer abcdef123456', `Authorization: Bearer ${REMOVED}`],
      ['"password":"xyzzy1"', `"password":"${REMOVED}"`],
      ['https://u:p@host/x', `https://${REMOVED}@host/x`],
      ['https://u:p@ss@host/x', `https://${REMOVED}@host/x`],
      ['seed: aaaa', `seed: ${REMOVED}`],
      ['SHA256:abcd https://relay.example 10 s', 'SHA256:abcd https://relay.example 10 s'],
    ] as const
  ) assert.is(redact(text), clean)
  assert.is(redact('a "quo\\"ted" b', ['quo"ted']), `a "${REMOVED}" b`)
})

test('STUN servers are read in the forms that people write', () => {
  for (
    const [words, host, port] of [
      ['stun.example', 'stun.example', 3478],
      ['stun:stun.example:19302', 'stun.example', 19302],
      ['[2001:db8::1]:3479', '2001:db8::1', 3479],
      ['192.0.2.1', '192.0.2.1', 3478],
    ] as const
  ) assert.equal(parseStunServer(words), { host, port })
  for (const words of ['', 'a b', 'x:0', 'x:99999', 'http://x', 'u@x', '2001:db8::1']) {
    assert.throws(() => parseStunServer(words), /expected host:port/)
  }
})

test.run()
