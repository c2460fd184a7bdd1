/** The one public port: whose hello goes where, in whatever pieces, and what the others are told. */
import * as assert from 'uvu/assert'
import { concat, utf8 } from '../../../core/bytes.ts'
import { HELLO_REFUSALS, TLS_ALERTS } from '../../../core/client_hello.ts'
import type { HelloRefusal } from '../../../core/client_hello.ts'
import type { Stream } from '../../../core/mux.ts'
import { dialTls, Reader, within } from '../../support/client.ts'
import type { WireAgent } from '../../support/client.ts'
import { fast } from '../../support/crypto.ts'
import {
  encryptedHello,
  hello,
  helloMessage,
  keyShares,
  protocols,
  records,
  serverNames,
  supportedVersions,
} from '../../support/hello.ts'
import type { Extension, HelloParts } from '../../support/hello.ts'
import type { Bed, Cases } from '../bed.ts'
import { echo, helloFor, writeAll } from '../bed.ts'

const VERSIONS = supportedVersions(0x0304, 0x0303)

/** The 7 bytes of a fatal alert. */
function alert(number: number): number[] {
  return [21, 3, 3, 0, 2, 2, number]
}

/** What a visitor that says `first` is told; it must be an orderly half-close, never a reset. */
async function told(bed: Bed, first: Uint8Array): Promise<number[]> {
  const reader = await bed.dial()
  reader.conn.write(first)
  const { bytes, end } = await reader.rest()
  assert.is(end, 'end', `${[...bytes]}`)
  return [...bytes]
}

/** The agent sees exactly `sent` on a stream of its own; then it answers. */
async function arrives(agent: WireAgent, sent: Uint8Array): Promise<Reader<Stream>> {
  const stream = await agent.opened()
  stream.accept()
  const reader = new Reader(stream)
  assert.ok((await reader.take(sent.length)).equals(sent))
  return reader
}

function padding(length: number): Extension {
  return [21, new Uint8Array(length)]
}

export const ingressCases: Cases = (test, bed) => {
  if (!bed.can.raw) {
    test('what needs raw TCP is refused by name, with a remedy', async () => {
      const agent = await bed.agent()
      const wants: [string, object][] = [
        ['claim/passthrough', { kind: 'http', mode: 'verified' }],
        ['ports/closed', { kind: 'tcp', mode: 'raw', port: 0 }],
        ['ports/closed', { kind: 'udp', mode: 'raw', port: 0 }],
      ]
      for (const [code, more] of wants) {
        const { error } = await agent.ask(bed.name(), more) as {
          error: { code: string; hint?: string }
        }
        assert.is(error.code, code)
        assert.match(error.hint ?? '', 'sotto')
      }
    })
    return
  }

  test('a visitor reaches the agent untouched, and both directions end by themselves', async () => {
    const name = bed.name()
    const agent = await bed.agent()
    await agent.claim(name, { kind: 'http' })
    const { reader, first } = await bed.visitor(name)
    const far = await arrives(agent, first)
    const { visit } = far.conn
    assert.is(visit.kind, 'tls')
    assert.is(visit.address, '127.0.0.1')
    assert.is(visit.port, reader.conn.raw.localPort)
    assert.is(visit.endpoint, name)
    far.conn.write(utf8('answer'))
    assert.is((await reader.take(6)).toString(), 'answer')
    reader.conn.end()
    assert.is((await far.rest()).end, 'end')
    far.conn.write(utf8('after the end'))
    far.conn.end()
    assert.is((await reader.rest()).bytes.toString(), 'after the end')

    const other = await bed.visitor(name)
    const agentFirst = await arrives(agent, other.first)
    agentFirst.conn.end()
    assert.is((await other.reader.rest()).end, 'end')
    other.reader.conn.write(utf8('still speaking'))
    other.reader.conn.end()
    assert.is((await agentFirst.rest()).bytes.toString(), 'still speaking')
  })

  test('an agent that resets, and a visitor that leaves, end the other side', async () => {
    const name = bed.name()
    const agent = await bed.agent()
    await agent.claim(name)
    const one = await bed.visitor(name)
    const far = await arrives(agent, one.first)
    far.conn.reset(6)
    assert.is.not((await one.reader.rest()).end, 'end')
    const two = await bed.visitor(name)
    const left = await arrives(agent, two.first)
    two.reader.conn.abort()
    assert.ok(await left.closed)
  })

  test('much passes both ways through a visitor, byte for byte', async () => {
    const name = bed.name()
    const agent = await bed.agent()
    await agent.claim(name)
    agent.onOpen = echo
    const { reader, first } = await bed.visitor(name)
    const sent = fast.randomBytes(8_000_000)
    const [, got] = await Promise.all([
      writeAll(reader.conn, sent).then(() => reader.conn.end()),
      reader.take(first.length + sent.length),
    ])
    assert.ok(got.subarray(first.length).equals(sent))
    assert.is((await reader.rest()).end, 'end')
  })

  test('a hello arrives whole when it comes byte by byte', async () => {
    const name = bed.name()
    const agent = await bed.agent()
    await agent.claim(name)
    const reader = await bed.dial()
    const first = helloFor(name)
    for (const byte of first) {
      reader.conn.write(Uint8Array.of(byte))
      await new Promise((resolve) => setImmediate(resolve))
    }
    await arrives(agent, first)
  })

  test('a hello arrives whole when its records are split at any offset', async () => {
    const name = bed.name()
    const agent = await bed.agent()
    await agent.claim(name)
    const message = helloMessage({
      extensions: [serverNames(`${name}.secure.localhost`), VERSIONS],
    })
    const lengths: number[] = []
    const seen = new Map<number, number>()
    let all = (): void => {}
    const done = new Promise<void>((resolve) => void (all = resolve))
    agent.onOpen = (stream) => {
      stream.accept()
      let length = 0
      stream.handle({
        data: (bytes) => void (length += bytes.length),
        end() {
          seen.set(length, (seen.get(length) ?? 0) + 1)
          stream.end()
          if ([...seen.values()].reduce((a, b) => a + b, 0) === message.length) all()
        },
        closed() {},
      })
    }
    for (let at = 1; at <= message.length; at++) {
      const first = records(message, at === message.length ? [at] : [at, message.length - at])
      lengths.push(first.length)
      const reader = await bed.dial()
      reader.conn.write(first.subarray(0, 3 + at))
      reader.conn.write(first.subarray(3 + at))
      reader.conn.end()
    }
    await within(done, 'every hello')
    assert.is(seen.get(message.length + 5), 1)
    assert.is(seen.get(message.length + 10), message.length - 1)
  })

  test('a hello arrives whole whatever is in it, up to 64 KiB', async () => {
    const name = bed.name()
    const agent = await bed.agent()
    await agent.claim(name)
    const host = `${name}.secure.localhost`
    const names = serverNames(host)
    const small = hello({ extensions: [names, VERSIONS, padding(0)] }, [16_384]).length
    const biggest = 65_536 - small - 3 * 5
    const cases: [string, Uint8Array][] = [
      ['a post-quantum key share', hello({ extensions: [names, VERSIONS, keyShares()] })],
      [
        'GREASE everywhere',
        hello({
          extensions: [[0x1a1a, new Uint8Array(1)], names, supportedVersions(0x2a2a, 0x0304), [
            0x3a3a,
            new Uint8Array(0),
          ]],
          suites: Uint8Array.of(0x4a, 0x4a, 0x13, 1),
        }),
      ],
      ['an encrypted hello of GREASE', hello({ extensions: [names, VERSIONS, encryptedHello()] })],
      ['upper case', hello({ extensions: [serverNames(host.toUpperCase()), VERSIONS] })],
      ['a trailing dot', hello({ extensions: [serverNames(`${host}.`), VERSIONS] })],
      ['TLS 1.2 without the extension of versions', hello({ extensions: [names] })],
      ['records of one byte', hello({ extensions: [names, VERSIONS] }, [1])],
      ['64 KiB', hello({ extensions: [names, VERSIONS, padding(biggest)] }, [16_384])],
      [
        'early data behind it',
        concat(hello({ extensions: [names, VERSIONS] }), Uint8Array.of(23, 3, 3, 0, 1, 9)),
      ],
    ]
    for (const [what, first] of cases) {
      const reader = await bed.dial()
      reader.conn.write(first)
      const far = await arrives(agent, first).catch((error: Error) => {
        throw new Error(`${what}: ${error.message}`)
      })
      far.conn.reset(6)
    }
  })

  test('what cannot be routed gets its alert, readable, and a half-close', async () => {
    const name = bed.name()
    await (await bed.agent()).claim(name)
    const names = serverNames(`${name}.secure.localhost`)
    const good: Extension[] = [names, VERSIONS]
    const wrong = (parts: HelloParts): Uint8Array => hello(parts)
    const cases: [HelloRefusal | 'unknown', Uint8Array][] = [
      ['unknown', helloFor('nobody-is-here')],
      ['unknown', hello({ extensions: [serverNames('elsewhere.example'), VERSIONS] })],
      ['unknown', hello({ extensions: [serverNames('a.b.secure.localhost'), VERSIONS] })],
      ['no-server-name', wrong({ extensions: [VERSIONS] })],
      ['old-version', wrong({ extensions: null, legacyVersion: 0x0301 })],
      ['ip-literal', wrong({ extensions: [serverNames('127.0.0.1'), VERSIONS] })],
      ['two-server-names', wrong({ extensions: [serverNames('a.x', 'b.x'), VERSIONS] })],
      ['server-name-list', wrong({ extensions: [[0, Uint8Array.of(0, 0)], VERSIONS] })],
      ['duplicate-extension', wrong({ extensions: [names, names, VERSIONS] })],
      ['trailing-bytes', wrong({ extensions: good, trailing: Uint8Array.of(1) })],
      ['extensions', wrong({ extensions: good, lies: { extensions: 1 } })],
      ['extensions', wrong({ extensions: good, lies: { extensions: 1 } })],
      ['bytes-after-hello', wrong({ extensions: good, lies: { message: -1 } })],
      ['compression', wrong({ extensions: good, compression: new Uint8Array(0) })],
      ['no-null-compression', wrong({ extensions: good, compression: Uint8Array.of(1) })],
      ['cipher-suites', wrong({ extensions: good, suites: Uint8Array.of(0x13) })],
      ['session-id', wrong({ extensions: good, sessionId: new Uint8Array(33) })],
      ['old-version', wrong({ extensions: [names, supportedVersions(0x0302)] })],
      ['alpn', wrong({ extensions: [names, VERSIONS, [16, Uint8Array.of(0, 0)]] })],
      ['sslv2', Uint8Array.of(0x80, 0x2e, 1, 0, 2, 0, 0, 0, 0)],
      ['unexpected-record', Uint8Array.of(23, 3, 3, 0, 1, 0)],
      ['not-client-hello', records(Uint8Array.of(2, 0, 0, 1, 0))],
      ['empty-record', Uint8Array.of(22, 3, 1, 0, 0)],
      ['record-overflow', Uint8Array.of(22, 3, 1, 0x40, 1)],
      ['record-version', Uint8Array.of(22, 2, 1, 0, 5)],
      ['too-long', Uint8Array.of(22, 3, 1, 0, 4, 1, 1, 0, 0)],
    ]
    for (const [reason, first] of cases) {
      const number = reason === 'unknown' ? TLS_ALERTS.unrecognized_name : HELLO_REFUSALS[reason]
      assert.equal(await told(bed, first), alert(number), reason)
    }
  })

  test('an alert is read even by a visitor that has sent more than was looked at', async () => {
    const first = helloFor('nobody-is-here')
    const more = new Uint8Array(40_000)
    assert.equal(await told(bed, concat(first, more)), alert(TLS_ALERTS.unrecognized_name))
  })

  test('a hello that does not come to its end within 3 s gets its alert, trickled or not', async () => {
    const startedMs = performance.now()
    const first = helloFor('slow')
    const [silent, half, trickling] = await Promise.all([bed.dial(), bed.dial(), bed.dial()])
    half.conn.write(first.subarray(0, 40))
    let at = 0
    const trickle = setInterval(() => trickling.conn.write(first.subarray(at, ++at)), 100)
    try {
      const ends = await Promise.all([silent.rest(), half.rest(), trickling.rest()])
      assert.is(ends[0].bytes.length, 0)
      for (const { bytes } of ends.slice(1)) {
        assert.equal([...bytes], alert(TLS_ALERTS.decode_error))
      }
    } finally {
      clearInterval(trickle)
    }
    const tookMs = performance.now() - startedMs
    assert.ok(tookMs > 2500 && tookMs < 8000, `${tookMs} ms`)
  })

  test('plain HTTP is sent to https for names of ours, and told 400 else', async () => {
    const { port } = bed.relay
    const say = async (text: string): Promise<string> => {
      const reader = await bed.dial()
      reader.conn.write(utf8(text))
      return (await reader.rest()).bytes.toString()
    }
    for (const host of ['localhost', 'web.secure.localhost', 'web.apps.localhost']) {
      const answer = await say(`GET /a?b=c HTTP/1.1\r\nHost: ${host}:1\r\n\r\n`)
      assert.match(answer, /^HTTP\/1\.1 308 /)
      assert.match(answer, `\r\nLocation: https://${host}:${port}/a?b=c\r\n`)
    }
    for (
      const request of [
        'GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n',
        'GET / HTTP/1.1\r\n\r\n',
        'GET //evil.example HTTP/2\r\nHost: localhost\r\n\r\n',
      ]
    ) assert.match(await say(request), /^HTTP\/1\.1 400 /)
  })

  test('bytes of no protocol, and a head without an end, are dropped', async () => {
    for (const first of [utf8('\x05\x01\x00'), utf8(`GET /${'a'.repeat(9000)}`)]) {
      const reader = await bed.dial()
      reader.conn.write(first)
      assert.is((await reader.rest()).bytes.length, 0)
    }
  })

  test('the own name leads to the HTTPS app, with the certificate of the challenge', async () => {
    const agent = await bed.agent()
    const reader = await dialTls(bed.relay, { servername: 'localhost', alpn: ['http/1.1'] })
    bed.after(() => reader.conn.raw.destroy())
    const { raw } = reader.conn.raw.getPeerCertificate()
    assert.ok(agent.link.certificate)
    assert.equal(Buffer.from(fast.sha256(raw)), Buffer.from(agent.link.certificate!))
    reader.conn.write(utf8('GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'))
    assert.match((await reader.rest()).bytes.toString(), /^HTTP\/1\.1 200 [^]*\r\n\r\nok\n$/)
  })

  test('a verified name has no readable twin, at no door', async () => {
    const name = bed.name()
    const agent = await bed.agent()
    await agent.claim(name, { kind: 'http' })
    const other = await bed.agent()
    const { error } = await other.ask(name, { kind: 'http', mode: 'inspectable' }) as {
      error: { code: string }
    }
    assert.is(error.code, 'endpoints/mode')
    const first = hello({
      extensions: [serverNames(`${name}.localhost`), VERSIONS, protocols('h2')],
    })
    assert.equal(await told(bed, first), alert(TLS_ALERTS.unrecognized_name))
  })
}
