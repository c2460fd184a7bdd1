/**
 * TLS as the agent ends and starts it: over a stream socket (a bulk link) and over any other `Conn` (a
 * stream), against openssl and against itself. Attacks: certificates that are not allowed, swapped
 * ones, silence in the handshake, readers that stall.
 */
import { spawn } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import type { AddressInfo, Server } from 'node:net'
import { once } from 'node:events'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { equal, utf8 } from '../../core/bytes.ts'
import { DuplexConn } from '../../core/duplex_conn.ts'
import { TunnelError } from '../../core/errors.ts'
import { memoryConns } from '../../core/socket.ts'
import type { Conn } from '../../core/socket.ts'
import type { TlsConn, TlsIdentity, TlsServeOptions } from '../../agent/world.ts'
import { Collector, pattern, serverIdentity, testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'
import { makeCertificate } from '../../agent/certificate.ts'
import { rejection } from '../support/rejection.ts'

const test = suite('agent/tls')
const NAME = 'demo.secure.localhost'
const NONE = new Uint8Array(0)
let t: TestWorld
let identity: TlsIdentity
let client: TlsIdentity
let stranger: TlsIdentity

test.before(async () => {
  t = await testWorld()
  identity = await serverIdentity(t.world, NAME)
  client = await makeCertificate(t.world, { name: 'client', use: 'client' })
  stranger = await makeCertificate(t.world, { name: 'stranger', use: 'client' })
  for (const [name, pair] of Object.entries({ server: identity, client, stranger })) {
    await writeFile(join(t.dir, `${name}.pem`), pair.cert + '\n' + pair.key)
  }
})
test.after(() => t.close())

/** `socket`: a node:net socket, whose first bytes are peeked at; `conn`: a callback socket, unread. */
type Carrier = 'socket' | 'conn'
const CARRIERS: Carrier[] = ['socket', 'conn']

interface Front {
  port: number
  served: Promise<TlsConn>[]
  close(): Promise<void>
}

/** A port behind which TLS is ended, as a tunnel does. */
async function front(carrier: Carrier, options: Partial<TlsServeOptions> = {}): Promise<Front> {
  const served: Promise<TlsConn>[] = []
  const serve = (conn: Conn, first: Uint8Array): void => {
    const done = t.world.tls.serve(conn, first, { identity, ...options })
    done.catch(() => {})
    served.push(done)
  }
  if (carrier === 'conn') {
    const listener = await t.world.net.listen({ host: '127.0.0.1', port: 0 }, (conn) => {
      serve(conn, NONE)
    })
    return { port: listener.port, served, close: () => listener.close() }
  }
  const server: Server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
    const conn = new DuplexConn(socket)
    conn.handle({
      // The first bytes are read before it is known whose they are, as behind a bulk link's prelude.
      data(first) {
        conn.hold()
        queueMicrotask(() => serve(conn, first))
      },
      end() {},
      closed() {},
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    served,
    close: () => new Promise((resolve) => server.close(() => resolve())),
  }
}

function dial(port: number, options: object = {}): Promise<TlsConn> {
  return t.world.tls.connect({
    target: { host: '127.0.0.1', port },
    servername: NAME,
    verify: () => {},
    ...options,
  })
}

/** What openssl says, with its input kept open until `until` shows up in that (or it exits). */
async function openssl(args: string[], until: RegExp): Promise<string> {
  const child = spawn('openssl', ['s_client', ...args], { stdio: ['pipe', 'pipe', 'pipe'] })
  let said = ''
  const hear = (chunk: Buffer): void => {
    said += chunk.toString()
    if (until.test(said)) child.stdin.end()
  }
  child.stdout.on('data', hear)
  child.stderr.on('data', hear)
  child.stdin.on('error', () => {})
  await once(child, 'close')
  return said
}

for (const carrier of CARRIERS) {
  test(`serve() over a ${carrier} carries 4 MiB each way and both half-closes`, async () => {
    const f = await front(carrier, { alpn: ['http/1.1'] })
    const near = new Collector(await dial(f.port, { alpn: ['h2', 'http/1.1'] }))
    const conn = await f.served[0]!
    assert.is(conn.alpn, 'http/1.1')
    assert.is(conn.servername, NAME)
    assert.is(conn.version, 'TLSv1.3')
    assert.is((near.conn as TlsConn).alpn, 'http/1.1')
    const far = new Collector(conn)
    const forth = pattern(4_194_304, 7)
    const back = pattern(4_194_304, 11)
    await Promise.all([near.write(forth), far.write(back, 100_003)])
    near.conn.end()
    assert.is(Buffer.compare(await far.ended, forth), 0)
    await far.write(utf8('afterwards'))
    far.conn.end()
    const heard = await near.ended
    assert.is(Buffer.compare(heard.subarray(0, back.length), back), 0)
    assert.is(new TextDecoder().decode(heard.subarray(back.length)), 'afterwards')
    await Promise.all([near.closed, far.closed])
    await f.close()
  })

  test(`serve() over a ${carrier} gives both ends the same exporter, and no other session it`, async () => {
    const f = await front(carrier)
    const one = await dial(f.port)
    const two = await dial(f.port)
    const far = await f.served[0]!
    const value = far.exporter('EXPORTER-sotto-test', 32, utf8('context'))
    assert.is(value.length, 32)
    assert.equal(one.exporter('EXPORTER-sotto-test', 32, utf8('context')), value)
    assert.not(equal(two.exporter('EXPORTER-sotto-test', 32, utf8('context')), value))
    assert.not(equal(one.exporter('EXPORTER-sotto-test', 32, utf8('contexT')), value))
    for (const conn of [one, two, far, await f.served[1]!]) conn.abort()
    await f.close()
  })

  for (const version of ['-tls1_3', '-tls1_2']) {
    test(`serve() over a ${carrier} resumes sessions, openssl ${version}`, async () => {
      const f = await front(carrier)
      const ticket = join(t.dir, `ticket${version}${carrier}`)
      const args = ['-connect', `127.0.0.1:${f.port}`, '-servername', NAME, version]
      const greet = (index: number): void => {
        f.served[index]!.then((conn) => {
          const far = new Collector(conn)
          conn.write(utf8('greeting\n'))
          far.ended.then(() => conn.end())
        })
      }
      const watch = setInterval(() => {
        while (greeted < f.served.length) greet(greeted++)
      }, 5)
      let greeted = 0
      const first = await openssl([...args, '-sess_out', ticket], /greeting/)
      assert.match(first, /New, TLSv1\.[23]/)
      const second = await openssl([...args, '-sess_in', ticket], /greeting/)
      clearInterval(watch)
      assert.match(second, /Reused, TLSv1\.[23]/)
      assert.is((await f.served[0]!).resumed, false)
      assert.is((await f.served[1]!).resumed, true)
      await f.close()
    })
  }

  test(`serve() over a ${carrier} refuses a protocol that it was not given, with the alert`, async () => {
    const f = await front(carrier, { alpn: ['http/1.1'] })
    const said = await openssl(
      ['-connect', `127.0.0.1:${f.port}`, '-servername', NAME, '-alpn', 'h2'],
      /alert/,
    )
    assert.match(said, /no application protocol/)
    assert.is(await rejection(f.served[0]!), 'tls/handshake')
    await f.close()
  })

  test(`serve() over a ${carrier} refuses TLS 1.1, with the alert`, async () => {
    const f = await front(carrier)
    const said = await openssl(
      ['-connect', `127.0.0.1:${f.port}`, '-tls1_1', '-cipher', 'DEFAULT:@SECLEVEL=0'],
      /alert|error/,
    )
    assert.match(said, /alert protocol version/)
    assert.is(await rejection(f.served[0]!), 'tls/handshake')
    await f.close()
  })

  test(`serve() over a ${carrier} admits the certificate it knows, and sees its very bytes`, async () => {
    const known = t.world.tls.inspect(client).der
    const f = await front(carrier, {
      admit: (der) => der !== undefined && equal(der, known),
    })
    const near = new Collector(await dial(f.port, { identity: client }))
    const conn = await f.served[0]!
    assert.equal(conn.peerCertificate, known)
    conn.write(utf8('welcome'))
    await near.until(7)
    near.conn.abort()
    conn.abort()
    await f.close()
  })

  test(`serve() over a ${carrier} keeps what a visitor says, and its end, while it is thought about`, async () => {
    let think!: () => void
    const thought = new Promise<void>((resolve) => (think = resolve))
    let asked = 0
    const f = await front(carrier, {
      admit: async () => {
        if (++asked === 1) await thought
        return true
      },
    })
    const near = new Collector(await dial(f.port, { identity: client }))
    near.conn.write(utf8('first of all'))
    near.conn.end()
    // A whole conversation later both have long arrived.
    const second = new Collector(await dial(f.port, { identity: client }))
    const other = new Collector(await f.served[1]!)
    second.conn.write(utf8('hello'))
    await other.until(5)
    think()
    const conn = await f.served[0]!
    const far = new Collector(conn)
    assert.is(Buffer.from(await far.ended).toString(), 'first of all')
    conn.write(utf8('heard'))
    conn.end()
    assert.is(Buffer.from(await near.ended).toString(), 'heard')
    second.conn.abort()
    other.conn.abort()
    await f.close()
  })

  for (
    const [who, args, alert] of [
      ['a stranger', ['-cert', 'stranger.pem'], /alert access denied/],
      ['nobody', [], /alert certificate required/],
    ] as const
  ) {
    test(`serve() over a ${carrier} refuses ${who} with an alert that openssl reads`, async () => {
      const known = t.world.tls.inspect(client).der
      let asked = 0
      const f = await front(carrier, {
        admit: (der) => {
          asked++
          return der !== undefined && equal(der, known)
        },
      })
      const files = args.map((word) => word.endsWith('.pem') ? join(t.dir, word) : word)
      const said = await openssl(
        ['-connect', `127.0.0.1:${f.port}`, '-servername', NAME, ...files],
        /alert/,
      )
      assert.match(said, alert)
      assert.is(await rejection(f.served[0]!), 'tls/refused')
      assert.is(asked, 1)
      await f.close()
    })
  }

  test(`serve() over a ${carrier} keeps client certificates out of TLS 1.2`, async () => {
    const f = await front(carrier, { admit: () => true })
    const said = await openssl(
      ['-connect', `127.0.0.1:${f.port}`, '-tls1_2', '-cert', join(t.dir, 'client.pem')],
      /alert/,
    )
    assert.match(said, /alert protocol version/)
    await f.close()
  })

  test(`serve() over a ${carrier} gives a private endpoint's client nothing to resume by`, async () => {
    const f = await front(carrier, { admit: () => true })
    const ticket = join(t.dir, `private${carrier}`)
    const args = ['-connect', `127.0.0.1:${f.port}`, '-cert', join(t.dir, 'client.pem')]
    const pending = openssl([...args, '-sess_out', ticket], /greeting/)
    while (f.served.length === 0) await new Promise((resolve) => setImmediate(resolve))
    const conn = await f.served[0]!
    const far = new Collector(conn)
    conn.write(utf8('greeting\n'))
    far.ended.then(() => conn.end())
    assert.not.match(await pending, /New Session Ticket arrived/)
    await f.close()
  })

  test(`serve() over a ${carrier} gives up on a handshake that stands still`, async () => {
    const f = await front(carrier, { timeoutMs: 150 })
    const quiet = new Collector(
      await t.world.net.connect({ host: '127.0.0.1', port: f.port }),
    )
    // A record header that promises a ClientHello which never comes.
    quiet.conn.write(new Uint8Array([22, 3, 1, 2, 0, 1]))
    await quiet.ended
    quiet.conn.end()
    assert.is(await rejection(f.served[0]!), 'tls/timeout')
    await f.close()
  })

  test(`serve() over a ${carrier} ends quietly when the client leaves in the handshake`, async () => {
    const f = await front(carrier)
    const rude = new Collector(
      await t.world.net.connect({ host: '127.0.0.1', port: f.port }),
    )
    rude.conn.write(new Uint8Array([22, 3, 1, 2, 0, 1]))
    while (f.served.length === 0) await new Promise((resolve) => setImmediate(resolve))
    rude.conn.abort()
    assert.is(await rejection(f.served[0]!), 'tls/handshake')
    await f.close()
  })

  test(`serve() over a ${carrier} refuses what is no TLS`, async () => {
    const f = await front(carrier)
    const near = new Collector(await t.world.net.connect({ host: '127.0.0.1', port: f.port }))
    near.conn.write(utf8('GET / HTTP/1.1\r\n\r\n'))
    await near.ended
    assert.is(await rejection(f.served[0]!), 'tls/handshake')
    near.conn.end()
    await f.close()
  })

  test(`a reader that stalls over a ${carrier} stops the writer within 16 MiB, and loses nothing`, async () => {
    const f = await front(carrier)
    const conn = await dial(f.port)
    conn.pause()
    const near = new Collector(conn)
    conn.pause()
    const far = new Collector(await f.served[0]!)
    const bytes = pattern(33_554_432, 13)
    let sent = 0
    let stalled: (() => void) | undefined
    const full = new Promise<void>((resolve) => (stalled = resolve))
    const writing = (async () => {
      while (sent < bytes.length) {
        const before = sent
        await far.write(bytes.subarray(sent, sent + 65_536))
        sent = before + 65_536
      }
      far.conn.end()
    })()
    // Full when the writer gets nowhere for a while; on a slow machine that only takes longer.
    let last = -1
    const watch = setInterval(() => {
      if (sent > 0 && sent === last) stalled!()
      last = sent
    }, 100)
    await full
    clearInterval(watch)
    assert.ok(sent < 16_777_216, `${sent} bytes were taken for a reader that read none`)
    assert.ok(far.conn.buffered() < 1_048_576, `${far.conn.buffered()} bytes wait`)
    conn.resume()
    await writing
    assert.is(Buffer.compare(await near.ended, bytes), 0)
    near.conn.end()
    await Promise.all([near.closed, far.closed])
    await f.close()
  })
}

test('a carrier that is aborted takes the TLS on it along', async () => {
  const carriers: Conn[] = []
  const served: Promise<TlsConn>[] = []
  const listener = await t.world.net.listen({ host: '127.0.0.1', port: 0 }, (conn) => {
    carriers.push(conn)
    served.push(t.world.tls.serve(conn, NONE, { identity }))
  })
  const near = new Collector(await dial(listener.port))
  const far = new Collector(await served[0]!)
  carriers[0]!.abort()
  await far.closed
  await near.closed
  await listener.close()
})

test('serve() works over a carrier that is no socket at all', async () => {
  const [a, b] = memoryConns()
  const serving = t.world.tls.serve(a, NONE, { identity })
  const near = new Collector(
    await t.world.tls.connect({ carrier: b, servername: NAME, verify: () => {} }),
  )
  const far = new Collector(await serving)
  const bytes = pattern(1_000_003, 17)
  await Promise.all([near.write(bytes), far.write(bytes)])
  near.conn.end()
  assert.is(Buffer.compare(await far.ended, bytes), 0)
  far.conn.end()
  assert.is(Buffer.compare(await near.ended, bytes), 0)
})

test('connect() shows the received certificate to verify, which may refuse it', async () => {
  const f = await front('socket')
  let shown: Uint8Array | undefined
  const conn = await dial(f.port, { verify: (der: Uint8Array) => void (shown = der) })
  assert.equal(shown, t.world.tls.inspect(identity).der)
  assert.equal(conn.peerCertificate, shown)
  conn.abort()
  const refused = dial(f.port, {
    verify: () => {
      throw new TunnelError('trust/certificate', 'Cannot trust it')
    },
  })
  assert.is(await rejection(refused), 'trust/certificate')
  await f.close()
})

test('connect() without verify asks the CAs: a self-signed certificate is refused, unless it is given', async () => {
  const f = await front('socket')
  assert.is(await rejection(dial(f.port, { verify: undefined })), 'tls/untrusted')
  const conn = await dial(f.port, { verify: undefined, ca: [identity.cert] })
  conn.abort()
  const otherName = dial(f.port, {
    verify: undefined,
    ca: [identity.cert],
    servername: 'other.localhost',
  })
  assert.is(await rejection(otherName), 'tls/untrusted')
  await f.close()
})

test('a certificate that is over, of a CA that is trusted: a word about the clock', async () => {
  const clock = { now: () => t.world.clock.now() - 400 * 86_400_000 }
  const over = await makeCertificate({ ...t.world, clock: { ...t.world.clock, ...clock } }, {
    name: NAME,
    use: 'server',
  })
  const f = await front('socket', { identity: over })
  const target = { host: '127.0.0.1', port: f.port }
  let thrown: unknown
  try {
    await t.world.tls.connect({ target, servername: NAME, ca: [over.cert] })
  } catch (error) {
    thrown = error
  }
  assert.ok(thrown instanceof TunnelError)
  assert.is(thrown.code, 'tls/untrusted')
  assert.match(thrown.message, /EXPIRED/)
  assert.match(thrown.hint!, /^Is this machine's clock right\? It says 2\d{3}-/)
  await f.close()
})

test('peerCertificate() fetches what a server shows', async () => {
  const f = await front('socket')
  const { der, fingerprint } = await t.world.tls.peerCertificate({
    host: '127.0.0.1',
    port: f.port,
    servername: NAME,
  })
  const facts = t.world.tls.inspect(identity)
  assert.equal(der, facts.der)
  assert.equal(fingerprint, facts.fingerprint)
  await f.close()
})

test('inspect() reads names and dates, and refuses a key of another certificate', async () => {
  const facts = t.world.tls.inspect(identity)
  assert.equal(facts.names, [NAME])
  assert.equal(facts.fingerprint, t.world.crypto.sha256(facts.der))
  assert.ok(facts.notAfterMs > Date.now() + 80 * 86_400_000)
  for (
    const pair of [
      { cert: identity.cert, key: client.key },
      { cert: identity.cert, key: 'no key' },
      { cert: '', key: identity.key },
    ]
  ) {
    try {
      t.world.tls.inspect(pair)
      assert.unreachable('it was taken')
    } catch (error) {
      assert.is((error as TunnelError).code, 'tls/certificate')
    }
    const [a, b] = memoryConns()
    const closed = new Collector(b).closed
    assert.is(await rejection(t.world.tls.serve(a, NONE, { identity: pair })), 'tls/certificate')
    await closed
  }
})

test.run()
