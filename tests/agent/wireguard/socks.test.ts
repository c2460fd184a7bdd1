// SOCKS5 as bytes: greetings and requests that real clients were seen to send, in every split; every
// truncation waits, every wrong byte is answered by the RFC's reply; datagrams both ways.
import * as fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  decodeSocksDatagram,
  encodeSocksDatagram,
  hostName,
  REPLY,
  socksReply,
  SocksServer,
} from '../../../agent/wireguard/socks.ts'
import type { SocksStep } from '../../../agent/wireguard/socks.ts'
import { concat, fromHex, hex, utf8 } from '../../../core/bytes.ts'
import { crypto } from '../../support/exit_bench.ts'

const SEED = Number(process.env['SOTTO_SEED'] ?? Date.now() % 2 ** 31)
const LOGIN = { user: 'ann', password: 'pässword' }
const bytes = (words: string): Uint8Array => fromHex(words.replaceAll(' ', ''))
const NAME = concat(bytes('05 01 00 03 0b'), utf8('db.internal'), bytes('1538'))

const test = suite('agent/wireguard/socks')

/** Feeds pieces of `sizes` bytes; what was answered, and the last step. */
function feed(all: Uint8Array, pieces: readonly number[], login?: typeof LOGIN) {
  const server = new SocksServer(crypto, login)
  const answers: Uint8Array[] = []
  let last: SocksStep = { answer: new Uint8Array(0) }
  let at = 0
  for (const size of [...pieces, all.length]) {
    if (at >= all.length) break
    last = server.push(all.subarray(at, at += size))
    answers.push(last.answer)
    if (last.over || last.request) break
  }
  return { answer: hex(concat(...answers)), last }
}

const CLIENTS: [string, Uint8Array, string, { host: string; port: number }][] = [
  ['curl --socks5', bytes('05 02 00 01  05 01 00 01 c0a80164 1f90'), '0500', {
    host: '192.168.1.100',
    port: 8080,
  }],
  ['curl socks5h', concat(bytes('05 02 00 01'), NAME), '0500', { host: 'db.internal', port: 5432 }],
  ['nc -X 5', concat(bytes('05 01 00'), NAME), '0500', { host: 'db.internal', port: 5432 }],
  [
    'an IPv6 literal',
    bytes('05 01 00  05 01 00 04 fd000000000000000000000000000001 01bb'),
    '0500',
    { host: 'fd00::1', port: 443 },
  ],
]

for (const [name, sent, answer, to] of CLIENTS) {
  test(`push() reads ${name}, whole and byte by byte`, () => {
    for (const pieces of [[], Array.from(sent, () => 1)]) {
      const got = feed(sent, pieces)
      assert.is(got.answer, answer)
      assert.equal(got.last.request, { command: 'connect', to })
    }
  })

  test(`push() waits at every truncation of ${name}`, () => {
    for (let cut = 0; cut < sent.length; cut++) {
      const { last } = feed(sent.subarray(0, cut), [])
      assert.is(last.request, undefined)
      assert.is(last.over, undefined)
    }
  })
}

test('push() keeps what came after the request, in any split', () => {
  const sent = concat(bytes('05 01 00'), NAME, utf8('early'))
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 9 }), { maxLength: 40 }), (pieces) => {
      const { last } = feed(sent, pieces)
      const rest = new TextDecoder().decode(last.rest)
      return last.request?.to.host === 'db.internal' && 'early'.startsWith(rest)
    }),
    { seed: SEED },
  )
})

const login = (user: string, password: string): Uint8Array =>
  concat(
    Uint8Array.of(1, utf8(user).length),
    utf8(user),
    Uint8Array.of(utf8(password).length),
    utf8(password),
  )

test('push() admits the right user and password, byte by byte', () => {
  const sent = concat(bytes('05 03 00 01 02'), login(LOGIN.user, LOGIN.password), NAME)
  const got = feed(sent, Array.from(sent, () => 1), LOGIN)
  assert.is(got.answer, '05020100')
  assert.is(got.last.request?.to.host, 'db.internal')
})

test('push() refuses wrong ones, a shifted border between the two, and who offers no password', () => {
  for (
    const [user, password] of [
      ['ann', 'wrong'],
      ['', ''],
      ['annp', 'ässword'],
      ['an', 'npässword'],
      ['x'.repeat(255), 'y'.repeat(255)],
    ]
  ) {
    const got = feed(concat(bytes('05 01 02'), login(user!, password!), NAME), [], LOGIN)
    assert.is(got.answer, '05020101', user)
    assert.is(got.last.over, 'login')
  }
  assert.is(feed(concat(bytes('05 01 00'), NAME), [], LOGIN).answer, '05ff')
})

const REFUSED: [string, string, string, string][] = [
  ['SOCKS4', '04 01 0050 7f000001 00', '', 'version'],
  ['GSSAPI alone', '05 01 01', '05ff', 'method'],
  ['no method at all', '05 00', '05ff', 'method'],
  ['BIND', '05 01 00 05 02 00 01 7f000001 0050', '0500 05070001000000000000', 'command'],
  ['an unknown kind of address', '05 01 00 05 01 00 02 00', '0500 05080001000000000000', 'address'],
  ['another version in the request', '05 01 00 04', '0500 05010001000000000000', 'malformed'],
  [
    'a reserved byte that is not 0',
    '05 01 00 05 01 01 01',
    '0500 05010001000000000000',
    'malformed',
  ],
  ['port 0', '05 01 00 05 01 00 01 7f000001 0000', '0500 05010001000000000000', 'malformed'],
  ['an empty name', '05 01 00 05 01 00 03 00 0050', '0500 05040001000000000000', 'malformed'],
]

for (const [name, sent, answer, over] of REFUSED) {
  test(`push() refuses ${name}`, () => {
    const got = feed(bytes(sent), [])
    assert.is(got.answer, answer.replaceAll(' ', ''))
    assert.is(got.last.over, over)
  })
}

test('hostName() takes what resolvers take, and nothing that some read as an address', () => {
  assert.is(hostName(utf8('DB.Internal.')), 'db.internal')
  assert.is(hostName(utf8('_srv.a-b.example')), '_srv.a-b.example')
  assert.is(hostName(utf8('::ffff:127.0.0.1')), '127.0.0.1')
  assert.is(hostName(utf8('FD00::0:1')), 'fd00::1')
  for (
    const bad of [
      '',
      '.',
      'a..b',
      '-a',
      'a-',
      'a b',
      'a\0b',
      'a\nb',
      '127.1',
      '2130706433',
      '0x7f.1',
      '0x7f000001',
      '0177.0.0.1',
      'fe80::1%eth0',
      'x'.repeat(64),
      Array(64).fill('abc').join('.'),
      'bücher.example',
      '/etc/passwd',
      '$(id)',
    ]
  ) assert.is(hostName(utf8(bad)), undefined, JSON.stringify(bad))
})

test('push() never throws, and ends in what it said, on any bytes', () => {
  const server = (): SocksServer => new SocksServer(crypto)
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 700 }), fc.boolean(), (tail, isGreeted) => {
      const { over, request } = server().push(
        isGreeted ? concat(bytes('05 01 00 05 01 00'), tail) : tail,
      )
      return over === undefined || request === undefined
    }),
    { seed: SEED, numRuns: 3_000 },
  )
})

test('datagrams: golden bytes, both families, a name; parts and truncations are none', () => {
  const four = bytes('0000 00 01 0a000035 0035 6869')
  assert.equal(decodeSocksDatagram(four)?.to, { host: '10.0.0.53', port: 53 })
  assert.is(hex(decodeSocksDatagram(four)!.bytes), '6869')
  assert.is(hex(encodeSocksDatagram({ address: '10.0.0.53', port: 53 }, utf8('hi'))), hex(four))
  const named = concat(bytes('0000 00 03 0b'), utf8('db.internal'), bytes('0035'))
  assert.equal(decodeSocksDatagram(named)?.to, { host: 'db.internal', port: 53 })
  assert.is(
    hex(encodeSocksDatagram({ address: 'fd00::1', port: 1 }, new Uint8Array(0))),
    '00000004fd0000000000000000000000000000010001',
  )
  for (let cut = 0; cut < 10; cut++) {
    assert.is(decodeSocksDatagram(four.subarray(0, cut)), undefined)
  }
  for (const at of [0, 1, 2]) {
    const changed = four.slice()
    changed[at] = 1
    assert.is(decodeSocksDatagram(changed), undefined)
  }
})

test('socksReply() always has an address of numbers', () => {
  assert.is(hex(socksReply(REPLY.succeeded)), '05000001000000000000')
  assert.is(
    hex(socksReply(REPLY.succeeded, { address: '::1', port: 1080 })),
    '05000004000000000000000000000000000000010438',
  )
})

test.run()
