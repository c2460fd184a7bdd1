// An HTTP proxy's requests as bytes: whole, byte by byte, with what follows them; nothing of ours goes on, and what two
// programs could read in two ways is refused.
import * as fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { HttpConnect, httpRefusal } from '../../../agent/wireguard/http_connect.ts'
import type { HttpStep } from '../../../agent/wireguard/http_connect.ts'
import { concat, text, utf8 } from '../../../core/bytes.ts'
import { crypto } from '../../support/exit_bench.ts'

const SEED = Number(process.env['SOTTO_SEED'] ?? Date.now() % 2 ** 31)
console.log(`seed ${SEED}`)
const LOGIN = { user: 'ann', password: 'a:b' }
const test = suite('agent/wireguard/http_connect')

function feed(all: Uint8Array, size: number, login?: typeof LOGIN): HttpStep & { left: number } {
  const parser = new HttpConnect(crypto, login)
  for (let at = 0; at < all.length; at += size) {
    const step = parser.push(all.subarray(at, at + size))
    if (step.request || step.refusal) return { ...step, left: Math.max(0, all.length - at - size) }
  }
  return { left: 0 }
}

test('CONNECT to a name, IPv4 and IPv6, in any split; what came after it goes on', () => {
  for (
    const [target, to] of [
      ['db.Internal:5432', { host: 'db.internal', port: 5432 }],
      ['10.0.0.1:80', { host: '10.0.0.1', port: 80 }],
      ['[fd00::1]:443', { host: 'fd00::1', port: 443 }],
    ] as const
  ) {
    const sent = utf8(`CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\n\r\nhello`)
    for (const size of [1, 2, 3, 7, sent.length]) {
      const { request, left } = feed(sent, size)
      assert.equal(request?.to, to)
      assert.is(text(request!.first), 'hello'.slice(0, 5 - left))
      assert.match(text(request!.answer), /^HTTP\/1\.1 200 [^\r]*\r\n\r\n$/)
    }
  }
})

test('a plain request goes on in origin form, as the only one, without what was for the proxy', () => {
  const sent = utf8(
    'POST http://printer.test:81/a?b=http://c HTTP/1.1\r\nhost: evil.test\r\nProxy-Connection: x\r\n' +
      'Connection: keep-alive\r\nX-Own: a: b\r\nContent-Length: 2\r\nproxy-authorization: Basic x\r\n\r\nhi',
  )
  const { request } = feed(sent, sent.length)
  assert.equal(request!.to, { host: 'printer.test', port: 81 })
  assert.is(request!.answer.length, 0)
  assert.is(
    text(request!.first),
    'POST /a?b=http://c HTTP/1.1\r\nHost: printer.test:81\r\nX-Own: a: b\r\nContent-Length: 2\r\n' +
      'Connection: close\r\n\r\nhi',
  )
  const bare = feed(utf8('GET http://a.test HTTP/1.0\r\n\r\n'), 99)
  assert.match(text(bare.request!.first), /^GET \/ HTTP\/1\.0\r\nHost: a\.test\r\n/)
  assert.equal(bare.request!.to, { host: 'a.test', port: 80 })
})

test('Basic credentials are compared whole; a password may have colons', () => {
  const ask = (given: string | undefined): HttpStep =>
    feed(
      utf8(
        `CONNECT a:1 HTTP/1.1\r\n${
          given === undefined ? '' : `Proxy-Authorization: ${given}\r\n`
        }\r\n`,
      ),
      999,
      LOGIN,
    )
  assert.ok(ask(`Basic ${btoa('ann:a:b')}`).request)
  assert.ok(ask(`bAsIc  ${btoa('ann:a:b')}`).request)
  for (
    const bad of [
      undefined,
      '',
      'Basic',
      'Basic ====',
      `Bearer ${btoa('ann:a:b')}`,
      `Basic ${btoa('ann')}`,
      `Basic ${btoa('ann:a:c')}`,
      `Basic ${btoa(':')}`,
      `Basic ${btoa('anna::b')}`,
    ]
  ) {
    const { refusal } = ask(bad)
    assert.match(text(refusal!), /^HTTP\/1\.1 407 [^]*Proxy-Authenticate: Basic /, String(bad))
  }
})

test('no bytes make it throw, and a head is never longer than its bound', () => {
  const start = fc.constantFrom(
    '',
    'CONNECT a:1 HTTP/1.1\r\n',
    'GET http://a/ HTTP/1.1\r\n',
    'GET http://a',
  )
  fc.assert(
    fc.property(start, fc.uint8Array({ maxLength: 200 }), fc.boolean(), (head, noise, ends) => {
      const sent = concat(utf8(head), noise, utf8(ends ? '\r\n\r\n' : ''))
      const whole = feed(sent, sent.length)
      const pieces = feed(sent, 3)
      // The same verdict however it was cut.
      assert.is(whole.request === undefined, pieces.request === undefined)
      assert.is(whole.refusal === undefined, pieces.refusal === undefined)
      const first = whole.request ? text(whole.request.first.subarray(0, 9)) : ''
      if (whole.request?.answer.length === 0) assert.match(first, /^[A-Z]+ \//)
    }),
    { seed: SEED, numRuns: 2_000 },
  )
  const long = new HttpConnect(crypto)
  let step: HttpStep = {}
  let sent = 0
  while (!step.refusal && sent < 100_000) {
    step = long.push(utf8('a'.repeat(1_000)))
    sent += 1_000
  }
  assert.match(text(step.refusal!), /^HTTP\/1\.1 431 /)
  assert.ok(sent <= 17_000)
})

test('httpRefusal() has a body as long as it says', () => {
  const [head, body] = text(httpRefusal(502, 'Cannot find ümlaut')).split('\r\n\r\n')
  assert.is(Number(/Content-Length: (\d+)/.exec(head!)![1]), utf8(body!).length)
})

test.run()
