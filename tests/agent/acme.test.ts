// needs: openssl
/**
 * The agent's side of certificates of a CA: what answers a CA and what does not, byte for byte by openssl;
 * and when a CA is asked, by a clock of ours and a CA that is a few lines long. The real one is in
 * tests/e2e/acme.test.ts.
 */
import { spawnSync } from 'node:child_process'
import { createServer } from 'node:http'
import type { Server } from 'node:http'
import { connect as tcp } from 'node:net'
import type { AddressInfo } from 'node:net'
import { connect } from 'node:tls'
import { X509Certificate } from 'node:crypto'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  ACME_IDENTIFIER_OID,
  authorityAndSerial,
  certificateRequest,
  challengeCertificate,
  Challenges,
} from '../../agent/acme_challenge.ts'
import { AcmeSource } from '../../agent/acme.ts'
import type { AcmeNews } from '../../agent/acme.ts'
import type { AcmeOrder } from '../../agent/acme_port.ts'
import { endpointCertificate, makeCertificate } from '../../agent/certificate.ts'
import { parseUpstream } from '../../agent/forward.ts'
import { Profile } from '../../agent/profile.ts'
import { Tunnel } from '../../agent/tunnel.ts'
import type { TlsIdentity, World } from '../../agent/world.ts'
import { hex } from '../../core/bytes.ts'
import { ManualClock } from '../../core/clock.ts'
import { TunnelError } from '../../core/errors.ts'
import { certificateId, NO_ATTEMPTS } from '../../core/renewal.ts'
import { pattern, testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'

const HOST = 'demo.secure.localhost'
const OTHER = 'other.secure.localhost'
const DAY_MS = 86_400_000
const test = suite('agent/acme')
let t: TestWorld

test.before.each(async () => {
  t = await testWorld()
})
test.after.each(() => t.close())

function openssl(input: string, ...args: string[]): string {
  const done = spawnSync('openssl', args, { input, encoding: 'utf8' })
  assert.is(done.status, 0, done.stderr)
  return done.stdout
}

test('openssl reads the challenge certificate: one name, one critical extension, 34 bytes in it', async () => {
  const digest = pattern(32, 5)
  const { cert, key } = await challengeCertificate(t.world, { name: HOST, digest })
  const text = openssl(cert, 'x509', '-noout', '-text')
  assert.match(text, new RegExp(`Subject Alternative Name: *\\n *DNS:${HOST}\\n`))
  assert.match(text, `${ACME_IDENTIFIER_OID}: critical`)
  const parsed = openssl(cert, 'asn1parse')
  const after = parsed.split('\n').findIndex((line) =>
    /OBJECT.*1\.3\.6\.1\.5\.5\.7\.1\.31/.test(line) || /acmeIdentifier/i.test(line)
  )
  assert.match(parsed.split('\n')[after + 1]!, /BOOLEAN +:255/)
  assert.match(
    parsed.split('\n')[after + 2]!,
    `[HEX DUMP]:0420${hex(digest).toUpperCase()}`,
  )
  const leaf = new X509Certificate(cert)
  assert.ok(leaf.verify(leaf.publicKey))
  assert.is(openssl(key, 'pkey', '-pubout'), leaf.publicKey.export({ type: 'spki', format: 'pem' }))
})

test('openssl verifies the request: that name alone, under its own key', async () => {
  const { csr, key } = await certificateRequest(HOST)
  const text = openssl(csr, 'req', '-noout', '-text', '-verify')
  assert.match(text, new RegExp(`DNS:${HOST}\\n`))
  assert.match(text, /Subject: *\n/)
  assert.is(openssl(csr, 'req', '-noout', '-pubkey'), openssl(key, 'pkey', '-pubout'))
})

test('authorityAndSerial() keeps the zero that makes a serial number positive', async () => {
  const pem = (name: string): string => `${t.dir}/${name}`
  const made = spawnSync('sh', [
    '-ec',
    `
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=ca -days 3 \\
      -keyout ${pem('ca.key')} -out ${pem('ca.pem')}
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=leaf \\
      -keyout ${pem('leaf.key')} -out ${pem('leaf.csr')}
    printf 'authorityKeyIdentifier=keyid' > ${pem('ext')}
    openssl x509 -req -in ${pem('leaf.csr')} -CA ${pem('ca.pem')} -CAkey ${pem('ca.key')} -days 3 \\
      -set_serial 0x87654321 -extfile ${pem('ext')} -out ${pem('leaf.pem')}
  `,
  ])
  assert.is(made.status, 0, String(made.stderr))
  const leaf = new TextDecoder().decode(await t.world.files.read(pem('leaf.pem')))
  const found = (await authorityAndSerial(leaf))!
  assert.is(hex(found.serial), '0087654321')
  assert.match(certificateId(found.authorityKeyId, found.serial), /^[\w-]{27}\.AIdlQyE$/)
  const { cert } = await makeCertificate(t.world, { name: HOST, use: 'server' })
  assert.is(await authorityAndSerial(cert), undefined)
})

interface Place {
  port: number
  challenges: Challenges
  requests: string[]
  close(): Promise<void>
}

/** A tunnel whose visitors come as they would over a bulk link, with nothing read yet. */
async function place(): Promise<Place> {
  const requests: string[] = []
  const upstream: Server = createServer((request, response) => {
    requests.push(request.url!)
    response.end('served')
  })
  await new Promise<void>((resolve) => upstream.listen(0, '127.0.0.1', resolve))
  const identity = await makeCertificate(t.world, { name: HOST, use: 'server' })
  const challenges = new Challenges()
  const tunnel = new Tunnel(t.world, {
    name: 'demo',
    kind: 'http',
    mode: 'verified',
    port: 0,
    upstream: parseUpstream(String((upstream.address() as AddressInfo).port)),
    identity: () => identity,
    alpn: ['http/1.1'],
    challenge: (name) => challenges.get(name),
    peeks: () => challenges.size > 0,
  })
  const visit = { endpoint: 'demo', kind: 'tls', address: '203.0.113.9', port: 1 } as const
  const listener = await t.world.net.listen(
    { host: '127.0.0.1', port: 0 },
    (conn) =>
      tunnel.offered({
        conn,
        visit: visit as never,
        first: new Uint8Array(0),
        take() {},
        refuse: () => conn.abort(),
      }),
  )
  return {
    port: listener.port,
    challenges,
    requests,
    async close() {
      tunnel.close()
      await listener.close()
      await new Promise((resolve) => upstream.close(resolve))
    },
  }
}

interface Shaken {
  alpn: string | false | null
  leaf: X509Certificate
  /** All bytes until the end, after a request was sent. */
  said: string
}

function shake(port: number, name: string, alpn: string[]): Promise<Shaken> {
  return new Promise((resolve, reject) => {
    const socket = connect({
      host: '127.0.0.1',
      port,
      servername: name,
      ALPNProtocols: alpn,
      rejectUnauthorized: false,
    }, () => {
      const leaf = new X509Certificate(socket.getPeerCertificate().raw)
      const chosen = socket.alpnProtocol
      let said = ''
      socket.on('data', (bytes: Buffer) => said += bytes)
      socket.on('close', () => resolve({ alpn: chosen, leaf, said }))
      socket.write(`GET /x HTTP/1.1\r\nHost: ${name}\r\nConnection: close\r\n\r\n`)
    })
    socket.on('error', reject)
  })
}

const refused = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => assert.unreachable('the handshake went through') as never,
    (error) => String(error.code ?? error.message),
  )

test('a CA gets the challenge certificate, and no word of HTTP', async () => {
  const there = await place()
  const challenge = await challengeCertificate(t.world, { name: HOST, digest: pattern(32, 1) })
  const withdraw = there.challenges.answer(HOST, challenge)
  const { alpn, leaf, said } = await shake(there.port, HOST, ['acme-tls/1'])
  assert.is(alpn, 'acme-tls/1')
  assert.is(leaf.fingerprint256, new X509Certificate(challenge.cert).fingerprint256)
  assert.is(said, '')
  assert.equal(there.requests, [])
  // Meanwhile others are served as ever, and once it is over a CA finds nothing.
  const visitor = await shake(there.port, HOST, ['http/1.1'])
  assert.match(visitor.said, /served/)
  withdraw()
  assert.match(await refused(shake(there.port, HOST, ['acme-tls/1'])), /ALPN|ALERT|alert/i)
  await there.close()
})

test('a hello for another name, or one that offers more, gets no challenge certificate', async () => {
  const there = await place()
  const challenge = await challengeCertificate(t.world, { name: HOST, digest: pattern(32, 1) })
  there.challenges.answer(HOST, challenge)
  assert.match(await refused(shake(there.port, OTHER, ['acme-tls/1'])), /ALPN|ALERT|alert/i)
  const { alpn, leaf } = await shake(there.port, HOST, ['acme-tls/1', 'http/1.1'])
  assert.is(alpn, 'http/1.1')
  assert.is.not(leaf.fingerprint256, new X509Certificate(challenge.cert).fingerprint256)
  await there.close()
})

test('two challenges at once, each for its name; a later one takes the place of an earlier', async () => {
  const there = await place()
  const made = (name: string, seed: number): Promise<TlsIdentity> =>
    challengeCertificate(t.world, { name, digest: pattern(32, seed) })
  const [first, second, third] = [await made(HOST, 1), await made(OTHER, 2), await made(HOST, 3)]
  const withdrawFirst = there.challenges.answer(HOST, first)
  there.challenges.answer(OTHER, second)
  const print = (pair: TlsIdentity): string => new X509Certificate(pair.cert).fingerprint256
  const seen = async (name: string): Promise<string> =>
    (await shake(there.port, name, ['acme-tls/1'])).leaf.fingerprint256
  assert.equal(await Promise.all([seen(HOST), seen(OTHER)]), [print(first), print(second)])
  there.challenges.answer(HOST, third)
  withdrawFirst()
  assert.is(await seen(HOST), print(third), 'the end of the first leaves the later one')
  await there.close()
})

test('while a challenge is open, hellos that come byte by byte, and what is no TLS, end as ever', async () => {
  const there = await place()
  there.challenges.answer(
    HOST,
    await challengeCertificate(t.world, { name: HOST, digest: pattern(32, 1) }),
  )
  const { createServer: listen } = await import('node:net')
  const slow = listen((near) => {
    const far = tcp({ host: '127.0.0.1', port: there.port })
    far.setNoDelay(true)
    let turn = Promise.resolve()
    let first = true
    near.on('data', (bytes) => {
      const parts = first ? [...bytes].map((byte) => Buffer.of(byte)) : [bytes]
      first = false
      for (const part of parts) {
        turn = turn.then(() => new Promise((resolve) => far.write(part, () => resolve())))
      }
    })
    near.on('error', () => far.destroy())
    far.on('error', () => near.destroy())
    far.pipe(near)
    near.on('end', () => void turn.then(() => far.end()))
  })
  await new Promise<void>((resolve) => slow.listen(0, '127.0.0.1', resolve))
  const { port } = slow.address() as AddressInfo
  assert.is((await shake(port, HOST, ['acme-tls/1'])).alpn, 'acme-tls/1')
  assert.match((await shake(port, HOST, ['http/1.1'])).said, /served/)
  slow.close()
  const ended = await new Promise<string>((resolve) => {
    const socket = tcp({ host: '127.0.0.1', port: there.port }, () => {
      socket.write('GET / HTTP/1.1\r\n\r\n')
    })
    let said = ''
    socket.on('data', (bytes) => said += bytes.toString('latin1'))
    socket.on('error', () => {})
    socket.on('close', () => resolve(said))
  })
  assert.not.match(ended, /HTTP|served/)
  await there.close()
})

/** A CA in a few lines: issues what openssl signs, for as long as it is told. */
class SmallCa {
  readonly orders: AcmeOrder[] = []
  info: { info: unknown; retryAfter: string | undefined } | undefined
  infoAsked = 0
  trouble: TunnelError | undefined
  readonly #dir: string
  readonly #clock: ManualClock
  #serial = 1
  constructor(dir: string, clock: ManualClock) {
    this.#dir = dir
    this.#clock = clock
    const made = spawnSync('openssl', [
      ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'],
      ...['-subj', '/CN=small', '-keyout', `${dir}/k.pem`, '-out', `${dir}/c.pem`, '-days', '9'],
    ])
    assert.is(made.status, 0, String(made.stderr))
  }

  readonly port: World['acme'] = {
    obtain: async (order) => {
      this.orders.push(order)
      if (this.trouble) throw this.trouble
      if (order.accountUrl === undefined) await order.accountMade('https://ca.test/1', undefined)
      const withdraw = await order.challenge(pattern(32, 9))
      try {
        return await this.#sign(order.csr)
      } finally {
        withdraw()
      }
    },
    renewalInfo: () => {
      this.infoAsked++
      return Promise.resolve(this.info)
    },
  }

  async #sign(csr: string): Promise<string> {
    await import('reflect-metadata')
    const x509 = await import('@peculiar/x509')
    const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }
    const keys = await crypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
    const request = new x509.Pkcs10CertificateRequest(csr)
    const now = this.#clock.now()
    const leaf = await x509.X509CertificateGenerator.create({
      serialNumber: (this.#serial++).toString(16).padStart(2, '0'),
      subject: 'CN=leaf',
      issuer: 'CN=small',
      notBefore: new Date(now),
      notAfter: new Date(now + 90 * DAY_MS),
      publicKey: await request.publicKey.export(),
      signingKey: keys.privateKey,
      signingAlgorithm: algorithm,
      extensions: [
        new x509.SubjectAlternativeNameExtension([{ type: 'dns', value: HOST }]),
        await x509.AuthorityKeyIdentifierExtension.create(keys.publicKey),
      ],
    })
    return leaf.toString('pem')
  }
}

interface Scene {
  clock: ManualClock
  ca: SmallCa
  source: AcmeSource
  news: AcmeNews[]
  challenges: Challenges
  reach: { able: boolean }
  published: string[][]
  /** When the next piece of news of that state is there. */
  until(state: AcmeNews['state'], count?: number): Promise<void>
}

async function scene(clock = new ManualClock(), ca = new SmallCa(t.dir, clock)): Promise<Scene> {
  const world: World = { ...t.world, clock, acme: ca.port }
  const profile = new Profile(world)
  const news: AcmeNews[] = []
  const looks = new Set<() => void>()
  const challenges = new Challenges()
  const reach = { able: true }
  const published: string[][] = []
  const source: AcmeSource = await AcmeSource.open(world, profile, {
    host: HOST,
    choice: { directory: 'https://ca.test/dir', contact: undefined, eab: undefined, ca: undefined },
    fallback: await endpointCertificate(world, profile, { host: HOST }),
    challenges,
    reachable: () => reach.able,
    publish: () => {
      published.push(source.fingerprints().map(hex))
      // What is shown now is named already, and so is what is to come.
      assert.ok(published.at(-1)!.includes(hex(source.current.fingerprint)))
      return Promise.resolve()
    },
    news: (one) => {
      news.push(one)
      for (const look of looks) look()
    },
  })
  return {
    clock,
    ca,
    source,
    news,
    challenges,
    reach,
    published,
    until: (state, count = 1) =>
      new Promise((resolve) => {
        const look = (): void => {
          if (news.filter((one) => one.state === state).length < count) return
          looks.delete(look)
          resolve()
        }
        looks.add(look)
        look()
      }),
  }
}

/** Until its timer is set again: all that it wanted to do is done. */
async function settled({ clock }: Scene, before = 1): Promise<void> {
  while (clock.pending < before) await new Promise((resolve) => setTimeout(resolve, 5))
  await new Promise((resolve) => setTimeout(resolve, 20))
}

test('the self-signed one serves until the other is published and there', async () => {
  const s = await scene()
  const self = hex(s.source.current.fingerprint)
  assert.is(s.source.isTrusted, false)
  s.source.wake()
  await s.until('issued')
  assert.ok(s.source.isTrusted)
  const now = hex(s.source.current.fingerprint)
  assert.equal(s.published[0], [now, self])
  assert.is(s.challenges.size, 0)
  assert.equal(s.news.map(({ state }) => state), ['waiting', 'account', 'issued'])
  s.source.close()
})

test('an endpoint that nobody reaches asks no CA; its return does', async () => {
  const s = await scene()
  s.reach.able = false
  s.source.wake()
  await settled(s, 2)
  assert.is(s.ca.orders.length, 0)
  s.reach.able = true
  s.source.wake()
  await s.until('issued')
  s.source.close()
})

test('woken while it looks, it looks again', async () => {
  const s = await scene()
  s.reach.able = false
  s.source.wake()
  s.reach.able = true
  s.source.wake()
  await s.until('issued')
  assert.is(s.ca.orders.length, 1)
  s.source.close()
})

test('without renewal information it is renewed at two thirds, and the one before stays good', async () => {
  const s = await scene()
  s.source.wake()
  await s.until('issued')
  await settled(s, 2)
  const first = hex(s.source.current.fingerprint)
  for (let day = 0; day < 59; day += 0.25) {
    s.clock.advance(DAY_MS / 4)
    await settled(s, 2)
  }
  assert.is(s.ca.orders.length, 1)
  s.clock.advance(DAY_MS + 1000)
  await s.until('issued', 2)
  assert.is.not(hex(s.source.current.fingerprint), first)
  assert.ok(s.source.fingerprints().map(hex).includes(first))
  assert.match(s.ca.orders[1]!.replaces!, /^[\w-]+\.\w+$/)
  assert.is(s.ca.orders[1]!.accountUrl, 'https://ca.test/1')
  s.source.close()
})

test('a window of the CA goes before, and is asked for as often as Retry-After says', async () => {
  const s = await scene()
  const iso = (ms: number): string => new Date(ms).toISOString()
  const startMs = s.clock.now() + 3 * DAY_MS
  s.ca.info = {
    info: { suggestedWindow: { start: iso(startMs), end: iso(startMs + 1000) } },
    retryAfter: '7200',
  }
  s.source.wake()
  await s.until('issued')
  await settled(s, 2)
  s.clock.advance(1000)
  await settled(s, 2)
  assert.is(s.ca.infoAsked, 1)
  s.clock.advance(7_199_000)
  await settled(s, 2)
  assert.is(s.ca.infoAsked, 1)
  s.clock.advance(3000)
  await settled(s, 2)
  assert.is(s.ca.infoAsked, 2)
  for (let hour = 2; hour < 69; hour += 2) {
    s.clock.advance(7_201_000)
    await settled(s, 2)
  }
  assert.is(s.ca.orders.length, 1)
  s.clock.advance(4 * 3_600_000)
  await s.until('issued', 2)
  s.source.close()
})

test('a CA that refuses is asked a handful of times a day, however often the program starts', async () => {
  const clock = new ManualClock()
  const ca = new SmallCa(t.dir, clock)
  ca.trouble = new TunnelError('acme/refused', 'no')
  for (let minute = 0; minute < 24 * 60; minute += 30) {
    const s = await scene(clock, ca)
    s.source.wake()
    await s.until('failed')
    assert.is(s.source.isTrusted, false)
    s.source.close()
    clock.advance(30 * 60_000)
  }
  assert.ok(ca.orders.length >= 3 && ca.orders.length <= 6, String(ca.orders.length))
})

test('a certificate of a CA that has run out gives way to the self-signed one', async () => {
  const s = await scene()
  s.source.wake()
  await s.until('issued')
  const trusted = hex(s.source.current.fingerprint)
  s.ca.trouble = new TunnelError('acme/unreachable', 'gone')
  s.clock.advance(91 * DAY_MS)
  assert.is(s.source.isTrusted, false)
  assert.is.not(hex(s.source.current.fingerprint), trusted)
  s.source.close()
})

test('what is kept and cannot be used is told, and the CA is left alone', async () => {
  const s = await scene()
  const { accountPath } = await pathOf(s)
  await t.world.files.write(accountPath, new TextEncoder().encode('{"key":'))
  s.source.wake()
  await s.until('failed')
  const [first] = s.news.filter((one) => one.state === 'failed')
  assert.is(first!.state === 'failed' && first!.error.code, 'profile/corrupt')
  assert.is(s.ca.orders.length, 0)
  s.source.close()
})

test('attack: a name that is a path stays within the folder', async () => {
  const { AcmeStore } = await import('../../agent/acme_store.ts')
  const profile = new Profile(t.world)
  const store = new AcmeStore(t.world, { profile, directory: 'https://ca.test/dir' })
  const name = 'web./../../../escaped'
  await store.keepAttempts(name, { ...NO_ATTEMPTS, failures: 3 })
  assert.is((await store.attempts(name)).failures, 3)
  for (const folder of [profile.stateDir, `${profile.stateDir}/..`, `${profile.stateDir}/../..`]) {
    assert.not.ok((await t.world.files.list(folder)).some((one) => one.startsWith('escaped')))
  }
  assert.ok(
    (await t.world.files.list(`${profile.stateDir}/acme`)).some((one) =>
      /^attempts-[0-9a-f]+-web\._\.\._/.test(one)
    ),
  )
})

async function pathOf({ clock }: Scene): Promise<{ accountPath: string }> {
  const { AcmeStore } = await import('../../agent/acme_store.ts')
  const world = { ...t.world, clock }
  const profile = new Profile(world)
  return new AcmeStore(world, { profile, directory: 'https://ca.test/dir' })
}

test.run()
