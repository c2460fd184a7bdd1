/**
 * Which proxy is asked, in the way of curl, and what a proxy may answer: everything that is not one
 * right answer is refused with a code and a remedy, within a bound of bytes and of time, and nowhere
 * does a password come out.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, utf8 } from '../../core/bytes.ts'
import { ManualClock } from '../../core/clock.ts'
import { TunnelError } from '../../core/errors.ts'
import { memoryConns } from '../../core/socket.ts'
import type { Conn } from '../../core/socket.ts'
import { describeProxy, isExcepted, parseProxy, proxyFor } from '../../agent/proxy.ts'
import { openTunnel } from '../../agent/proxy_tunnel.ts'
import { Collector } from '../support/agent_world.ts'

const test = suite('agent/proxy')
const RELAY = { host: 'relay.example', port: 443, secure: true }
const SECRET = 'hunter2'

function codeOf(run: () => unknown): string {
  try {
    run()
  } catch (error) {
    assert.instance(error, TunnelError)
    assert.not.match(JSON.stringify((error as TunnelError).toJSON()), SECRET)
    return (error as TunnelError).code
  }
  return 'none'
}

test('proxyFor(): lower case before upper case, the scheme before all, SOTTO_PROXY before those', () => {
  const env: Record<string, string> = { ALL_PROXY: 'socks5://a:1' }
  const from = (secure = true) => proxyFor(env, { ...RELAY, secure })?.from
  assert.is(from(), 'ALL_PROXY')
  env['all_proxy'] = 'socks5://b:1'
  assert.is(from(), 'all_proxy')
  env['HTTP_PROXY'] = 'http://h:1'
  assert.is(from(), 'all_proxy')
  assert.is(from(false), 'HTTP_PROXY')
  env['HTTPS_PROXY'] = 'http://c:1'
  assert.is(from(), 'HTTPS_PROXY')
  env['https_proxy'] = 'http://d:1'
  assert.is(from(), 'https_proxy')
  env['https_proxy'] = ''
  assert.is(from(), 'HTTPS_PROXY')
  env['SOTTO_PROXY'] = 'http://e:1'
  assert.is(from(), 'SOTTO_PROXY')
  env['no_proxy'] = 'example'
  assert.is(from(), undefined)
})

test('proxyFor(): in a CGI program HTTP_PROXY is a header of a stranger', () => {
  const env = { HTTP_PROXY: 'http://evil:1', REQUEST_METHOD: 'GET' }
  assert.is(proxyFor(env, { ...RELAY, secure: false }), undefined)
})

test('proxyFor(): loopback is reached directly, unless SOTTO_PROXY names a proxy', () => {
  for (const host of ['localhost', 'relay.localhost', '127.0.0.1', '127.9.9.9', '::1']) {
    const to = { host, port: 443, secure: true }
    assert.is(proxyFor({ HTTPS_PROXY: 'http://p:1', ALL_PROXY: 'socks5://p:1' }, to), undefined)
    assert.is(proxyFor({ SOTTO_PROXY: 'http://p:1' }, to)?.host, 'p')
  }
})

test('parseProxy(): kinds, ports, logins', () => {
  const cases: [string, string, string, number][] = [
    ['proxy', 'http', 'proxy', 1080],
    ['proxy:3128', 'http', 'proxy', 3128],
    ['http://proxy:80', 'http', 'proxy', 80],
    ['http://proxy:80/', 'http', 'proxy', 80],
    ['HTTPS://proxy', 'https', 'proxy', 443],
    ['https://proxy:80/', 'https', 'proxy', 80],
    ['socks5://proxy/', 'socks5', 'proxy', 1080],
    ['socks5h://[2001:db8::1]:9050', 'socks5h', '2001:db8::1', 9050],
    ['http://10.0.0.1:8080', 'http', '10.0.0.1', 8080],
  ]
  for (const [value, kind, host, port] of cases) {
    assert.equal(parseProxy(value, 'X'), { kind, host, port, from: 'X' } as unknown, value)
  }
  const { login } = parseProxy('http://ann:p%40ss%3A%2F@proxy:1', 'X')
  assert.equal(login, { user: 'ann', password: 'p@ss:/' })
  assert.equal(parseProxy('ann:x@proxy', 'X').login, { user: 'ann', password: 'x' })
})

test('parseProxy(): refuses what it cannot use, and says no password', () => {
  for (
    const value of [
      'ftp://proxy',
      'socks4://proxy',
      'socks4a://proxy',
      'socks://proxy',
      `http://ann:${SECRET}@`,
      `http://ann:${SECRET}@proxy:99999`,
      `http://ann:${SECRET}@proxy/path`,
      `http://ann:${SECRET}@proxy:1?x`,
      `http://an%3An:${SECRET}@proxy`,
      `http://ann:${SECRET}%0d%0a@proxy`,
      `http://ann:${SECRET}%zz@proxy`,
      `socks5://ann:@proxy`,
      `socks5://:${SECRET}@proxy`,
      `socks5://ann:${'x'.repeat(256)}@proxy`,
      `http://${'x'.repeat(5000)}`,
      'http://',
    ]
  ) assert.is(codeOf(() => parseProxy(value, 'X')), 'proxy/address', value)
  const proxy = parseProxy(`http://ann:${SECRET}@proxy:1`, 'HTTPS_PROXY')
  assert.is(describeProxy(proxy), 'http://proxy:1 (HTTPS_PROXY)')
})

test('isExcepted(): names, addresses, networks, ports', () => {
  const cases: [string, string, boolean][] = [
    ['*', 'relay.example', true],
    ['', 'relay.example', false],
    ['example', 'relay.example', true],
    ['.example', 'relay.example', true],
    ['*.example', 'relay.example', true],
    ['relay.example.', 'relay.example', true],
    ['RELAY.example', 'relay.EXAMPLE.', true],
    ['xample', 'relay.example', false],
    ['y.example', 'relay.example', false],
    ['other, relay.example', 'relay.example', true],
    ['other relay.example', 'relay.example', true],
    ['relay.example:443', 'relay.example', true],
    ['relay.example:444', 'relay.example', false],
    ['10.1.2.3', '10.1.2.3', true],
    ['10.1.2.3', '10.1.2.33', false],
    ['10.0.0.0/8', '10.1.2.3', true],
    ['10.9.9.9/8', '10.1.2.3', true],
    ['10.0.0.0/8', '11.1.2.3', false],
    ['10.0.0.0/33', '10.0.0.0', false],
    ['10.0.0.0/x', '10.0.0.0', false],
    ['0.0.0.0/0', '10.1.2.3', true],
    ['0.0.0.0/0', '2001:db8::1', false],
    ['10.1.2.3:443', '10.1.2.3', true],
    ['10.1.2.3:80', '10.1.2.3', false],
    ['3', '10.1.2.3', false],
    ['.2.3', '10.1.2.3', false],
    ['2001:db8::/32', '2001:db8:1::1', true],
    ['2001:db8::/32', '2001:db9::1', false],
    ['2001:db8:0:0::1', '2001:db8::1', true],
    ['[2001:db8::1]:443', '2001:db8::1', true],
    ['[2001:db8::1]:80', '2001:db8::1', false],
    ['192.0.2.0/25', '192.0.2.127', true],
    ['192.0.2.0/25', '192.0.2.128', false],
  ]
  for (const [list, host, expected] of cases) {
    assert.is(isExcepted(list, { ...RELAY, host }), expected, `${list} and ${host}`)
  }
})

interface Asked {
  value?: string
  answers: (said: () => Promise<Uint8Array>, far: Conn) => Promise<void> | void
}

/** Asks a proxy that answers so; the code, or 'none', and the sentence. */
async function ask({ value = `http://ann:${SECRET}@proxy:1`, answers }: Asked): Promise<string> {
  const [near, far] = memoryConns()
  const clock = new ManualClock()
  const seen = new Collector(far)
  let at = 0
  const said = async (): Promise<Uint8Array> => {
    await seen.until(at + 1)
    const bytes = seen.bytes.slice(at)
    at = seen.bytes.length
    return bytes
  }
  const opening = openTunnel(near, {
    proxy: parseProxy(value, 'HTTPS_PROXY'),
    to: RELAY,
    ports: { clock, timeoutMs: 10_000, version: '0' },
  }).then(() => 'none', (error: TunnelError) => {
    assert.instance(error, TunnelError)
    assert.not.match(JSON.stringify(error.toJSON()), SECRET)
    assert.ok(error.hint, `${error.code} has a remedy`)
    return error.code as string
  })
  await answers(said, far)
  clock.advance(9_999)
  // Bytes in memory arrive in turns of the loop.
  for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve))
  clock.advance(1)
  const code = await opening
  if (code !== 'none') {
    // Nothing more is said on a connection that was refused.
    assert.is(near.write(utf8('x')), 'lost')
  }
  return code
}

const say = (words: string | Uint8Array) => async (said: () => Promise<Uint8Array>, far: Conn) => {
  await said()
  far.write(typeof words === 'string' ? utf8(words) : words)
}

test('CONNECT: asks for host and port with the login, and gives the connection on', async () => {
  const [near, far] = memoryConns()
  const seen = new Collector(far)
  const opening = openTunnel(near, {
    proxy: parseProxy('http://ann:p%C3%A4ss@proxy:1', 'X'),
    to: { host: '2001:db8::1', port: 8443 },
    ports: { clock: new ManualClock(), timeoutMs: 1000, version: '9' },
  })
  await seen.until(1)
  assert.is(
    seen.text,
    'CONNECT [2001:db8::1]:8443 HTTP/1.1\r\nHost: [2001:db8::1]:8443\r\nUser-Agent: sotto/9\r\n' +
      `Proxy-Authorization: Basic ${Buffer.from('ann:päss').toString('base64')}\r\n\r\n`,
  )
  for (const letter of 'HTTP/1.1 200 fine\r\nVia: 1.1 x\r\n\r\n') far.write(utf8(letter))
  await opening
  const back = new Collector(near)
  far.write(utf8('hello'))
  await back.until(5)
  assert.is(back.text, 'hello')
})

test('CONNECT: each wrong answer has its code', async () => {
  const cases: [string, string][] = [
    ['HTTP/1.1 200 OK\r\n\r\n', 'none'],
    ['HTTP/1.0 200\r\n\r\n', 'none'],
    ['HTTP/1.1 407 Proxy Authentication Required\r\n\r\n', 'proxy/authentication'],
    ['HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno!', 'proxy/denied'],
    ['HTTP/1.1 405 No\r\n\r\n', 'proxy/denied'],
    ['HTTP/1.1 302 Found\r\nLocation: http://portal/\r\n\r\n', 'proxy/denied'],
    ['HTTP/1.1 503 Later\r\n\r\n', 'proxy/target'],
    ['HTTP/1.1 100 Continue\r\n\r\n', 'proxy/protocol'],
    ['HTTP/1.1 2000 x\r\n\r\n', 'proxy/protocol'],
    ['HTTP/2 200 x\r\n\r\n', 'proxy/protocol'],
    ['SSH-2.0-OpenSSH_9.2\r\n', 'proxy/protocol'],
    ['HTTP/1.1 200 OK\r\n\r\nearly', 'proxy/protocol'],
    ['\x05\x00', 'proxy/protocol'],
  ]
  for (const [answer, code] of cases) assert.is(await ask({ answers: say(answer) }), code, answer)
  assert.is(
    await ask({ value: 'http://proxy', answers: say('HTTP/1.1 407 x\r\n\r\n') }),
    'proxy/authentication',
  )
})

test('CONNECT: a head without end is refused by its size', async () => {
  assert.is(
    await ask({ answers: say(`HTTP/1.1 200 OK\r\nX: ${'y'.repeat(20_000)}`) }),
    'proxy/protocol',
  )
  const lines = `HTTP/1.1 200 OK\r\n${'X: y\r\n'.repeat(4000)}`
  assert.is(await ask({ answers: say(lines) }), 'proxy/protocol')
})

test('CONNECT and SOCKS: silence, a drip and an early end have an end', async () => {
  for (const value of ['http://proxy', 'socks5h://proxy']) {
    assert.is(await ask({ value, answers: () => {} }), 'proxy/timeout')
    assert.is(await ask({ value, answers: (_, far) => far.end() }), 'proxy/protocol')
    assert.is(await ask({ value, answers: (_, far) => far.abort() }), 'proxy/protocol')
  }
  assert.is(await ask({ answers: say('HTTP/1.1 200 OK\r\nX: y') }), 'proxy/timeout')
  assert.is(await ask({ value: 'socks5h://proxy', answers: say('\x05') }), 'proxy/timeout')
})

const OK_REPLY = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0]

test('SOCKS: names, addresses and logins as RFC 1928 and 1929 have them', async () => {
  const asked: string[] = []
  const code = await ask({
    value: `socks5h://ann:${SECRET}@proxy`,
    answers: async (said, far) => {
      asked.push(Buffer.from(await said()).toString('hex'))
      far.write(Uint8Array.from([5, 2]))
      asked.push(Buffer.from(await said()).toString('latin1'))
      far.write(Uint8Array.from([1, 0]))
      asked.push(Buffer.from(await said()).toString('latin1'))
      far.write(Uint8Array.from([5, 0, 0, 3, 2, 65, 66, 1, 2]))
    },
  })
  assert.is(code, 'none')
  assert.equal(asked, [
    '05020002',
    `\x01\x03ann\x07${SECRET}`,
    '\x05\x01\x00\x03\x0drelay.example\x01\xbb',
  ])
})

test('SOCKS: each wrong reply has its code', async () => {
  const socks = (...replies: number[][]): Asked => ({
    value: `socks5h://ann:${SECRET}@proxy`,
    answers: async (said, far) => {
      for (const reply of replies) {
        await said()
        far.write(Uint8Array.from(reply))
      }
    },
  })
  const cases: [number[][], string][] = [
    [[[5, 0], OK_REPLY], 'none'],
    [[[5, 0], [5, 0, 0, 4, ...Array<number>(18).fill(7)]], 'none'],
    [[[5, 0xff]], 'proxy/authentication'],
    [[[5, 2], [1, 1]], 'proxy/authentication'],
    [[[5, 2], [5, 0]], 'proxy/protocol'],
    [[[5, 1]], 'proxy/protocol'],
    [[[4, 0]], 'proxy/protocol'],
    [[[72, 84]], 'proxy/protocol'],
    [[[5, 0], [5, 2, 0, 1]], 'proxy/denied'],
    [[[5, 0], [5, 5, 0, 1]], 'proxy/target'],
    [[[5, 0], [5, 99, 0, 1]], 'proxy/target'],
    [[[5, 0], [4, 0, 0, 1]], 'proxy/protocol'],
    [[[5, 0], [5, 0, 9, 1]], 'proxy/protocol'],
    [[[5, 0], [5, 0, 0, 9]], 'proxy/protocol'],
    [[[5, 0], [5, 0, 0, 3, 255, 1]], 'proxy/timeout'],
    [[[5, 0], [...OK_REPLY, 1]], 'proxy/protocol'],
  ]
  for (const [replies, code] of cases) {
    assert.is(await ask(socks(...replies)), code, JSON.stringify(replies))
  }
  const unasked = await ask({ value: 'socks5h://proxy', answers: say(Uint8Array.from([5, 2])) })
  assert.is(unasked, 'proxy/protocol', 'a method that was not offered')
  const flood = concat(Uint8Array.from([5]), new Uint8Array(20_000))
  assert.is(await ask({ value: 'socks5h://proxy', answers: say(flood) }), 'proxy/protocol')
})

test.run()
