/**
 * Certificates: made, kept, renewed by the calendar (a clock of ours), agreed on by several processes;
 * a person's own reloaded when the files change. openssl reads what we make.
 */
import { spawnSync } from 'node:child_process'
import { readFile, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ManualClock } from '../../core/clock.ts'
import {
  certificateFiles,
  clientCertificate,
  endpointCertificate,
  makeCertificate,
} from '../../agent/certificate.ts'
import type { Certificate } from '../../agent/certificate.ts'
import { Profile } from '../../agent/profile.ts'
import type { World } from '../../agent/world.ts'
import { testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'
import { rejection } from '../support/rejection.ts'

const test = suite('agent/certificate')
const KEY = 'k'.repeat(52)
const HOST = 'demo.secure.localhost'
const DAY_MS = 86_400_000
let t: TestWorld
let clock: ManualClock
let world: World
let profile: Profile

test.before.each(async () => {
  t = await testWorld()
  clock = new ManualClock()
  world = { ...t.world, clock }
  profile = new Profile(world)
})
test.after.each(() => t.close())

function openssl(pem: string, ...args: string[]): string {
  const done = spawnSync('openssl', args, { input: pem, encoding: 'utf8' })
  assert.is(done.status, 0, done.stderr)
  return done.stdout
}

/** Lets pending promises and small file work run until `holds`. */
async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 5))
}

test('openssl finds what a server certificate should have, and nothing that a CA would', async () => {
  const pair = await makeCertificate(world, { name: HOST, use: 'server' })
  const text = openssl(pair.cert, 'x509', '-noout', '-text')
  assert.match(text, /Version: 3/)
  assert.match(text, /ASN1 OID: prime256v1/)
  assert.match(text, /Signature Algorithm: ecdsa-with-SHA256/)
  assert.match(text, `DNS:${HOST}`)
  assert.match(text, /Basic Constraints: critical\s+CA:FALSE/)
  assert.match(text, /Key Usage: critical\s+Digital Signature\n/)
  assert.match(text, /TLS Web Server Authentication/)
  const client = await makeCertificate(world, { name: 'client', use: 'client' })
  const clientText = openssl(client.cert, 'x509', '-noout', '-text')
  assert.match(clientText, /TLS Web Client Authentication/)
  assert.not.match(clientText, /Subject Alternative Name/)
  const serials = new Set([text, clientText].map((one) => /Serial Number:\s+(\S+)/.exec(one)![1]))
  assert.is(serials.size, 2)
  const facts = world.tls.inspect(pair)
  const fingerprint = openssl(pair.cert, 'x509', '-noout', '-fingerprint', '-sha256')
  assert.is(
    fingerprint.split('=')[1]!.trim().replaceAll(':', '').toLowerCase(),
    Buffer.from(facts.fingerprint).toString('hex'),
  )
  assert.is(facts.notAfterMs - clock.now(), 90 * DAY_MS)
  assert.is(clock.now() - facts.notBeforeMs, 3_600_000)
})

test('an endpoint has one certificate, run after run, in a file that nobody else can read', async () => {
  const source = await endpointCertificate(world, profile, { host: HOST })
  const again = await endpointCertificate(world, new Profile(world), { host: HOST })
  const other = await endpointCertificate(world, profile, { host: `other.${HOST}` })
  const client = await clientCertificate(world, profile, { key: KEY })
  assert.equal(again.current, source.current)
  assert.not.equal(other.current.fingerprint, source.current.fingerprint)
  assert.equal((await clientCertificate(world, profile, { key: KEY })).current, client.current)
  assert.is((await world.files.info(profile.certificatePath(HOST)))!.mode, 0o600)
  for (const one of [source, again, other, client]) one.close()
})

test('two starts at once agree on one certificate', async () => {
  const sources = await Promise.all(
    [1, 2, 3].map(() => endpointCertificate(world, new Profile(world), { host: HOST })),
  )
  assert.is(new Set(sources.map(({ current }) => current.cert)).size, 1)
  for (const source of sources) source.close()
})

test('a certificate is renewed when two thirds of its time are over, and said so', async () => {
  const changes: Certificate[] = []
  const source = await endpointCertificate(world, profile, {
    host: HOST,
    onChange: (certificate) => void changes.push(certificate),
  })
  const first = source.current
  for (let day = 1; day < 60; day++) clock.advance(DAY_MS)
  // The check reads the file, so it is over some turns after it began.
  await until(() => clock.pending > 0)
  assert.is(source.current, first)
  while (changes.length === 0) {
    clock.advance(DAY_MS / 4)
    await until(() => clock.pending > 0 || changes.length > 0)
    assert.ok(clock.now() < first.notAfterMs - 29 * DAY_MS)
  }
  assert.is(source.current, changes[0])
  assert.not.equal(source.current.fingerprint, first.fingerprint)
  assert.is(source.current.notAfterMs > first.notAfterMs, true)
  assert.equal(
    (await endpointCertificate(world, profile, { host: HOST })).current,
    source.current,
  )
  source.close()
})

test('a kept certificate that is damaged, ended or another host’s is made anew', async () => {
  const path = profile.certificatePath(HOST)
  const source = await endpointCertificate(world, profile, { host: HOST })
  source.close()
  const whole = await readFile(path, 'utf8')
  const elsewhere = await makeCertificate(world, { name: 'else.where', use: 'server' })
  for (
    const damaged of [
      '',
      whole.slice(0, 100),
      whole.replace(/-----BEGIN PRIVATE[^]*/, ''),
      whole.replace(/-----BEGIN PRIVATE[^]*/, elsewhere.key),
      `${elsewhere.cert}\n${elsewhere.key}`,
      '\xff\xfe',
    ]
  ) {
    await writeFile(path, damaged, 'latin1')
    const made = await endpointCertificate(world, profile, { host: HOST })
    assert.equal(world.tls.inspect(made.current).names, [HOST])
    made.close()
  }
  clock.jump(200 * DAY_MS)
  const late = await endpointCertificate(world, profile, { host: HOST })
  assert.ok(late.current.notAfterMs > clock.now())
  late.close()
  // A clock that was far ahead when it was made: it would not be valid yet.
  clock.jump(-200 * DAY_MS)
  const early = await endpointCertificate(world, profile, { host: HOST })
  assert.ok(world.tls.inspect(early.current).notBeforeMs <= clock.now())
  early.close()
})

test('own files are used, reloaded when they are replaced, and kept when they do not fit', async () => {
  const paths = { cert: join(t.dir, 'cert.pem'), key: join(t.dir, 'key.pem') }
  const [one, two, ended] = await Promise.all([
    makeCertificate(world, { name: HOST, use: 'server' }),
    makeCertificate(world, { name: HOST, use: 'server' }),
    makeCertificate({ ...world, clock: new ManualClock(clock.now() - 85 * DAY_MS) }, {
      name: HOST,
      use: 'server',
    }),
  ])
  await writeFile(paths.cert, one.cert)
  await writeFile(paths.key, one.key)
  const changes: Certificate[] = []
  const warnings: string[] = []
  const alive = setInterval(() => {}, 1000)
  const source = await certificateFiles(world, {
    ...paths,
    onChange: (certificate) => void changes.push(certificate),
    onWarning: (line) => void warnings.push(line),
  })
  assert.is(source.current.cert, one.cert)
  // Half of a renewal: the certificate is new, its key is not yet.
  await writeFile(paths.cert, two.cert)
  await until(() => warnings.length === 1)
  assert.match(warnings[0]!, /old pair stays/)
  assert.is(source.current.cert, one.cert)
  await writeFile(`${paths.key}.new`, two.key)
  await rename(`${paths.key}.new`, paths.key)
  await until(() => changes.length === 1)
  assert.is(source.current.cert, two.cert)
  assert.equal(source.current.fingerprint, world.tls.inspect(two).fingerprint)
  await writeFile(paths.cert, 'nonsense')
  await until(() => warnings.length === 2)
  assert.is(source.current.cert, two.cert)
  await writeFile(paths.key, ended.key)
  await writeFile(paths.cert, ended.cert)
  await until(() => changes.length === 2)
  await until(() => warnings.some((line) => /ends in 5 days/.test(line)))
  source.close()
  clearInterval(alive)
})

test('own files that are not there or do not belong together stop the start', async () => {
  const pair = await makeCertificate(world, { name: HOST, use: 'server' })
  const other = await makeCertificate(world, { name: HOST, use: 'server' })
  const paths = { cert: join(t.dir, 'c.pem'), key: join(t.dir, 'k.pem') }
  assert.is(await rejection(certificateFiles(world, paths)), 'tls/certificate')
  await writeFile(paths.cert, pair.cert)
  assert.is(await rejection(certificateFiles(world, paths)), 'tls/certificate')
  await writeFile(paths.key, other.key)
  assert.is(await rejection(certificateFiles(world, paths)), 'tls/certificate')
  await writeFile(paths.key, pair.key)
  const source = await certificateFiles(world, paths)
  source.close()
})

test.run()
