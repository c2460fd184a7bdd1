// Bytes are fixed by docs/protocol.md, "Readable HTTP". Golden heads and records, every truncation,
// every cut of a stream of records, heads that lie, and any bytes at all.
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, fromHex, hex, text, utf8 } from '../../core/bytes.ts'
import { isTunnelError } from '../../core/errors.ts'
import {
  decodeRequestHead,
  encodeBody,
  encodeHead,
  encodeInfo,
  encodeRecord,
  encodeRequestHead,
  encodeTrailers,
  endToEnd,
  endToEndTrailers,
  type ExchangeEvents,
  ExchangeReader,
  type Fields,
  FIELDS_MAX,
  HEAD_BYTES_MAX,
  INFOS_MAX,
  RECORD,
  RECORD_PAYLOAD_BYTES_MAX,
  type RequestHead,
  requestLength,
  responseLength,
} from '../../core/exchange.ts'
import { FRAME_PAYLOAD_BYTES_MAX } from '../../core/frame.ts'

const exchange = suite('core/exchange')

const GET: RequestHead = {
  method: 'GET',
  target: '/a?b=c',
  authority: 'web.apps.example.test:8443',
  scheme: 'https',
  headers: [['Accept', '*/*'], ['X-Latin', 'caf\xe9']],
}

const GOLDEN = [
  {
    name: 'head',
    record: encodeHead({ status: 200, headers: [['content-length', '2']] }),
    hex: '01 00000031' + hex(utf8('{"status":200,"headers":[["content-length","2"]]}')),
  },
  {
    name: 'head of a switch',
    record: encodeHead({ status: 101, headers: [], upgrade: 'websocket' }),
    hex: '01 00000031' + hex(utf8('{"status":101,"headers":[],"upgrade":"websocket"}')),
  },
  { name: 'body', record: [...encodeBody(utf8('hello'))][0]!, hex: '02 00000005 68656c6c6f' },
  {
    name: 'trailers',
    record: encodeTrailers([['X-Sum', '1']]),
    hex: '03 0000000f' + hex(utf8('[["X-Sum","1"]]')),
  },
  {
    name: 'info',
    record: encodeInfo({ status: 103, headers: [['Link', '</a.css>']] }),
    hex: '04 0000002e' + hex(utf8('{"status":103,"headers":[["Link","</a.css>"]]}')),
  },
]

/** What a reader tells, one word an event; bodies are joined. */
function recorder(): { told: string[]; bytes(): Uint8Array; events: ExchangeEvents } {
  const told: string[] = []
  const parts: Uint8Array[] = []
  return {
    told,
    bytes: () => concat(...parts),
    events: {
      info: ({ status }) => void told.push(`info ${status}`),
      head: ({ status }) => void told.push(`head ${status}`),
      body: (bytes) => {
        parts.push(bytes.slice())
        if (told.at(-1) !== 'body') told.push('body')
      },
      end: (trailers) => void told.push(`end ${trailers.length}`),
    },
  }
}

function codeOf(run: () => unknown): string {
  try {
    run()
  } catch (error) {
    if (isTunnelError(error)) return error.code
    throw error
  }
  return 'none'
}

exchange('the table of records is unchanged', () => {
  assert.equal(RECORD, { head: 1, body: 2, trailers: 3, info: 4 })
  assert.is(RECORD_PAYLOAD_BYTES_MAX, 65_536)
  assert.is(HEAD_BYTES_MAX, 61_440)
})

for (const { name, record, hex: expected } of GOLDEN) {
  exchange(`encode writes the golden bytes: ${name}`, () => {
    assert.is(hex(record), hex(fromHex(expected)))
  })
}

exchange('encodeRequestHead() writes the golden text, decodeRequestHead() reads it back', () => {
  const tail = encodeRequestHead(GET)
  assert.is(
    text(tail),
    '{"method":"GET","target":"/a?b=c","authority":"web.apps.example.test:8443",' +
      '"scheme":"https","headers":[["Accept","*/*"],["X-Latin","caf\xe9"]]}',
  )
  assert.equal(decodeRequestHead(tail), GET)
  const more: RequestHead = { ...GET, method: 'POST', chunked: true }
  assert.equal(decodeRequestHead(encodeRequestHead(more)), more)
  const upgrade: RequestHead = { ...GET, upgrade: 'websocket' }
  assert.equal(decodeRequestHead(encodeRequestHead(upgrade)), upgrade)
})

exchange('decodeRequestHead() refuses every proper prefix', () => {
  const tail = encodeRequestHead(GET)
  for (let length = 0; length < tail.length; length++) {
    assert.is(codeOf(() => decodeRequestHead(tail.subarray(0, length))), 'exchange/head')
  }
})

exchange('decodeRequestHead() skips members that it does not know', () => {
  assert.equal(decodeRequestHead(utf8(JSON.stringify({ ...GET, later: 1 }))), GET)
})

const LIES: [name: string, change: Record<string, unknown>][] = [
  ['no method', { method: '' }],
  ['a method with a blank', { method: 'GET /' }],
  ['a method with a line end', { method: 'GET\r\nX: y' }],
  ['a method that is a number', { method: 1 }],
  ['a long method', { method: 'G'.repeat(33) }],
  ['an absolute target', { target: 'http://other/' }],
  ['a target with a blank', { target: '/a b' }],
  ['a target with a line end', { target: '/a\r\nX: y' }],
  ['a target with a fragment', { target: '/a#b' }],
  ['a target beyond latin1', { target: '/\u0100' }],
  ['a star without OPTIONS', { target: '*' }],
  ['an empty target', { target: '' }],
  ['an authority with a path', { authority: 'a/b' }],
  ['an authority with a user', { authority: 'a@b' }],
  ['an authority with a line end', { authority: 'a\r\nX: y' }],
  ['an authority with a quote', { authority: 'a"b' }],
  ['no authority', { authority: '' }],
  ['another scheme', { scheme: 'ftp' }],
  ['no headers', { headers: undefined }],
  ['headers that are an object', { headers: { a: 'b' } }],
  ['a header that is a triple', { headers: [['a', 'b', 'c']] }],
  ['a header name with a blank', { headers: [['a ', 'b']] }],
  ['a header name with a colon', { headers: [['a:b', 'b']] }],
  ['an empty header name', { headers: [['', 'b']] }],
  ['a header value with CR', { headers: [['a', 'b\r']] }],
  ['a header value with LF', { headers: [['a', 'b\nc: d']] }],
  ['a header value with NUL', { headers: [['a', '\0']] }],
  ['a header value beyond latin1', { headers: [['a', '\u010a']] }],
  ['a header value that is a number', { headers: [['a', 1]] }],
  ['a transfer-encoding', { headers: [['Transfer-Encoding', 'chunked']] }],
  ['a connection', { headers: [['connection', 'close']] }],
  ['an upgrade field', { headers: [['Upgrade', 'websocket']] }],
  ['a TE of more than trailers', { headers: [['TE', 'gzip, trailers']] }],
  ['a host among the headers', { headers: [['Host', 'other']] }],
  ['two lengths', { headers: [['Content-Length', '1'], ['content-length', '1']] }],
  ['a signed length', { headers: [['Content-Length', '+1']] }],
  ['a long length', { headers: [['Content-Length', '1'.repeat(16)]] }],
  ['a list of lengths', { headers: [['Content-Length', '1, 1']] }],
  ['a length and chunked', { headers: [['Content-Length', '1']], chunked: true }],
  ['chunked that is no flag', { chunked: 1 }],
  ['an upgrade with a body', { upgrade: 'websocket', chunked: true }],
  ['an upgrade with a length', { upgrade: 'websocket', headers: [['content-length', '1']] }],
  ['an upgrade to two', { upgrade: 'a, b' }],
  ['too many headers', { headers: Array.from({ length: FIELDS_MAX + 1 }, () => ['a', 'b']) }],
]

for (const [name, change] of LIES) {
  exchange(`a request head with ${name} is refused by both ends`, () => {
    const head = { ...GET, ...change } as unknown as RequestHead
    assert.is(codeOf(() => decodeRequestHead(utf8(JSON.stringify(head)))), 'exchange/head')
    assert.is(codeOf(() => encodeRequestHead(head)), 'exchange/head')
  })
}

exchange('a request head may be as long as the tail of a visit, and no longer', () => {
  const bare = encodeRequestHead({ ...GET, headers: [['a', '']] }).length
  const most = { ...GET, headers: [['a', 'x'.repeat(HEAD_BYTES_MAX - bare)]] as Fields }
  const tail = encodeRequestHead(most)
  assert.is(tail.length, HEAD_BYTES_MAX)
  assert.equal(decodeRequestHead(tail), most)
  most.headers[0]![1] += 'x'
  assert.is(codeOf(() => encodeRequestHead(most)), 'exchange/size')
  assert.is(codeOf(() => decodeRequestHead(utf8(JSON.stringify(most)))), 'exchange/head')
})

const RESPONSE_LIES: [name: string, value: unknown][] = [
  ['no object', []],
  ['a status as text', { status: '200', headers: [] }],
  ['a status of 100', { status: 100, headers: [] }],
  ['a status of 1000', { status: 1000, headers: [] }],
  ['a broken status', { status: 200.5, headers: [] }],
  ['101 without a protocol', { status: 101, headers: [] }],
  ['a protocol without 101', { status: 200, headers: [], upgrade: 'websocket' }],
  ['a split header', { status: 200, headers: [['a', 'b\r\n\r\n<script>']] }],
  ['a framing of its own', { status: 200, headers: [['transfer-encoding', 'chunked']] }],
  ['two lengths', { status: 200, headers: [['content-length', '1'], ['content-length', '2']] }],
]

for (const [name, value] of RESPONSE_LIES) {
  exchange(`a response head with ${name} is refused by both ends`, () => {
    const reader = ExchangeReader.ofResponse('GET', recorder().events)
    const record = encodeRecord(RECORD.head, utf8(JSON.stringify(value)))
    assert.is(codeOf(() => reader.push(record)), 'exchange/head')
    assert.is(codeOf(() => encodeHead(value as never)), 'exchange/head')
  })
}

exchange('interim responses have a status of 1xx other than 101', () => {
  for (const status of [99, 101, 200]) {
    assert.is(codeOf(() => encodeInfo({ status, headers: [] })), 'exchange/head')
  }
})

exchange('trailers hold no field that has to come before', () => {
  for (const name of ['Content-Length', 'host', 'Set-Cookie', 'trailer', 'Authorization']) {
    assert.is(codeOf(() => encodeTrailers([[name, '1']])), 'exchange/head')
    const reader = ExchangeReader.ofRequest({ ...GET, chunked: true }, recorder().events)
    const record = encodeRecord(RECORD.trailers, utf8(JSON.stringify([[name, '1']])))
    assert.is(codeOf(() => reader.push(record)), 'exchange/head')
  }
})

function responseBytes(): Uint8Array {
  return concat(
    encodeInfo({ status: 103, headers: [] }),
    encodeHead({ status: 200, headers: [] }),
    ...encodeBody(utf8('hello, ')),
    ...encodeBody(utf8('world')),
    encodeTrailers([['x-sum', '1']]),
  )
}

exchange('a response is read the same however it is cut', () => {
  const bytes = responseBytes()
  for (let size = 1; size <= bytes.length; size++) {
    const { told, bytes: body, events } = recorder()
    const reader = ExchangeReader.ofResponse('GET', events)
    for (let at = 0; at < bytes.length; at += size) reader.push(bytes.subarray(at, at + size))
    reader.end()
    assert.equal(told, ['info 103', 'head 200', 'body', 'end 1'])
    assert.is(text(body()), 'hello, world')
  }
})

exchange('a response that ends anywhere else is truncated', () => {
  const bytes = responseBytes()
  const whole = new Set<number>()
  // Between records after the head: what a body of unknown length may do.
  let at = 0
  while (at < bytes.length) {
    at += 5 + new DataView(bytes.buffer).getUint32(at + 1)
    whole.add(at)
  }
  whole.delete(5 + new DataView(bytes.buffer).getUint32(1))
  for (let length = 0; length <= bytes.length; length++) {
    const reader = ExchangeReader.ofResponse('GET', recorder().events)
    reader.push(bytes.subarray(0, length))
    const expected = whole.has(length) ? 'none' : 'exchange/truncated'
    assert.is(codeOf(() => reader.end()), expected, `${length}`)
  }
})

const HEAD = encodeHead({ status: 200, headers: [] })
const BODY = encodeRecord(RECORD.body, utf8('x'))
const TRAILERS = encodeTrailers([])
const INFO = encodeInfo({ status: 102, headers: [] })

const DISORDER: [name: string, side: 'request' | 'response', records: Uint8Array[]][] = [
  ['a body before the head', 'response', [BODY]],
  ['trailers before the head', 'response', [TRAILERS]],
  ['two heads', 'response', [HEAD, HEAD]],
  ['an info after the head', 'response', [HEAD, INFO]],
  ['a body after the trailers', 'response', [HEAD, TRAILERS, BODY]],
  ['two trailers', 'response', [HEAD, TRAILERS, TRAILERS]],
  ['a head in a request', 'request', [HEAD]],
  ['an info in a request', 'request', [INFO]],
  ['two trailers in a request', 'request', [TRAILERS, TRAILERS]],
  ['a kind of 0', 'request', [encodeRecord(0, utf8('x'))]],
  ['a kind of 5', 'response', [encodeRecord(5, utf8('x'))]],
  ['an empty body', 'request', [encodeRecord(RECORD.body, utf8(''))]],
  ['too many infos', 'response', Array.from({ length: INFOS_MAX + 1 }, () => INFO)],
]

for (const [name, side, records] of DISORDER) {
  exchange(`the reader refuses ${name}`, () => {
    const { events } = recorder()
    const reader = side === 'request'
      ? ExchangeReader.ofRequest({ ...GET, chunked: true }, events)
      : ExchangeReader.ofResponse('GET', events)
    assert.is(codeOf(() => reader.push(concat(...records))), 'exchange/record')
  })
}

exchange('a length beyond the limit is refused at its last byte, before anything is held', () => {
  for (
    const [kind, length] of [[RECORD.body, 65_537], [RECORD.trailers, 61_441], [2, 2 ** 32 - 1]]
  ) {
    const header = new Uint8Array(5)
    header[0] = kind!
    new DataView(header.buffer).setUint32(1, length!)
    const reader = ExchangeReader.ofRequest({ ...GET, chunked: true }, recorder().events)
    reader.push(header.subarray(0, 4))
    assert.is(codeOf(() => reader.push(header.subarray(4))), 'exchange/record')
  }
})

exchange('bodies are as long as their heads say, no byte more, no byte less', () => {
  const request: RequestHead = { ...GET, method: 'PUT', headers: [['Content-Length', '5']] }
  for (
    const [bytes, code] of [['hell', 'exchange/length'], ['hello', 'none'], [
      'hello!',
      'exchange/length',
    ]]
  ) {
    const reader = ExchangeReader.ofRequest(request, recorder().events)
    const found = codeOf(() => {
      for (const record of encodeBody(utf8(bytes!))) reader.push(record)
      reader.end()
    })
    assert.is(found, code, bytes)
  }
})

exchange('a body that is too long is refused before a byte of the excess is told', () => {
  const { bytes, events } = recorder()
  const reader = ExchangeReader.ofResponse('GET', events)
  reader.push(encodeHead({ status: 200, headers: [['content-length', '3']] }))
  assert.is(codeOf(() => reader.push(concat(...encodeBody(utf8('four'))))), 'exchange/length')
  assert.is(bytes().length, 0)
})

exchange('a request without a body, and an answer to HEAD, 204 and 304, has none', () => {
  assert.is(requestLength(GET), 0)
  const headers: Fields = [['content-length', '7']]
  assert.is(responseLength({ status: 200, headers }, 'GET'), 7)
  assert.is(responseLength({ status: 200, headers: [] }, 'GET'), 'open')
  for (const [method, status] of [['HEAD', 200], ['GET', 204], ['GET', 304]] as const) {
    assert.is(responseLength({ status, headers }, method), 0)
    const reader = ExchangeReader.ofResponse(method, recorder().events)
    reader.push(encodeHead({ status, headers }))
    assert.is(codeOf(() => reader.push(BODY)), 'exchange/length')
  }
})

exchange('encodeBody() fills frames and makes no empty record', () => {
  assert.equal([...encodeBody(new Uint8Array(0))], [])
  for (const length of [1, 65_531, 65_532, 65_536, 131_062, 200_000]) {
    const bytes = new Uint8Array(length).map((_, i) => i)
    const records = [...encodeBody(bytes)]
    assert.is(records.length, Math.ceil(length / 65_531))
    for (const record of records) assert.ok(record.length <= FRAME_PAYLOAD_BYTES_MAX)
    const { bytes: body, events } = recorder()
    const reader = ExchangeReader.ofRequest({ ...GET, chunked: true }, events)
    for (const record of records) reader.push(record)
    assert.equal(body(), bytes)
  }
})

exchange('endToEnd() keeps back what belongs to the connection, and what Connection names', () => {
  assert.equal(
    endToEnd([
      ['Accept', 'a'],
      ['Connection', 'close, X-Hop , content-length,HOST'],
      ['x-hop', '1'],
      ['X-Hop', '2'],
      ['Keep-Alive', '5'],
      ['Proxy-Connection', 'y-hop'],
      ['Y-Hop', '1'],
      ['Proxy-Authorization', 'secret'],
      ['Transfer-Encoding', 'chunked'],
      ['Upgrade', 'websocket'],
      ['TE', 'gzip;q=0.5, Trailers'],
      ['HTTP2-Settings', 'x'],
      ['Content-Length', '3'],
      ['Host', 'h'],
    ]),
    [['Accept', 'a'], ['Content-Length', '3'], ['Host', 'h'], ['te', 'trailers']],
  )
  assert.equal(endToEnd([['TE', 'gzip']]), [])
})

exchange('endToEndTrailers() drops what has no place after a body', () => {
  const fields: Fields = [['X-Sum', '1'], ['Content-Length', '5'], ['Set-Cookie', 'a'], [
    'b ad',
    '1',
  ]]
  assert.equal(endToEndTrailers(fields), [['X-Sum', '1']])
})

const seed = Date.now() & 0x7fffffff

exchange(`random bytes and mutated records never throw outside the family (seed ${seed})`, () => {
  const golden = responseBytes()
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 200 }),
      fc.array(fc.tuple(fc.nat(golden.length - 1), fc.nat(255)), { maxLength: 4 }),
      fc.integer({ min: 1, max: 64 }),
      (noise, changes, size) => {
        const mutated = golden.slice()
        for (const [at, value] of changes) mutated[at] = value
        for (const bytes of [noise, mutated, concat(golden, noise)]) {
          const { events } = recorder()
          const reader = ExchangeReader.ofResponse('GET', events)
          codeOf(() => {
            for (let at = 0; at < bytes.length; at += size) {
              reader.push(bytes.subarray(at, at + size))
            }
            reader.end()
          })
          codeOf(() => decodeRequestHead(bytes))
        }
      },
    ),
    { seed, numRuns: 2000 },
  )
})

exchange(`any head that one end takes the other takes too (seed ${seed})`, () => {
  const octets = fc.string({
    unit: fc.integer({ min: 0x20, max: 0x7e }).map((n) => String.fromCharCode(n)),
    maxLength: 20,
  })
  const name = fc.stringMatching(/^x-[a-z0-9-]{1,12}$/)
  fc.assert(
    fc.property(fc.array(fc.tuple(name, octets), { maxLength: 20 }), (headers) => {
      const head: RequestHead = { ...GET, headers }
      assert.equal(decodeRequestHead(encodeRequestHead(head)), head)
    }),
    { seed, numRuns: 500 },
  )
})

exchange('deeply nested JSON is a bad head, not a crash', () => {
  const nest = utf8('['.repeat(HEAD_BYTES_MAX))
  assert.is(codeOf(() => decodeRequestHead(nest)), 'exchange/head')
  const closed = utf8('['.repeat(30_000) + ']'.repeat(30_000))
  assert.is(codeOf(() => decodeRequestHead(closed)), 'exchange/head')
})

exchange.run()
