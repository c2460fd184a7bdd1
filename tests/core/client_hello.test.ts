/**
 * The vectors are fixed bytes: first flights captured from twelve real clients, and one hand-built
 * hello for each claim. Behind them every prefix, every cut into records and pieces, thousands of
 * generated and damaged hellos against the slow twin, and clients that knock while the test runs.
 */
import fc from 'fast-check'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import type { AddressInfo, Socket } from 'node:net'
import { createServer } from 'node:net'
import { connect as connectTls } from 'node:tls'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, fromHex, hex, utf8 } from '../../core/bytes.ts'
import type { HelloVerdict } from '../../core/client_hello.ts'
import {
  CLIENT_HELLO_BYTES_MAX,
  encodeAlert,
  HELLO_REFUSALS,
  HelloReader,
  normaliseHostName,
  readClientHello,
  TLS_ALERTS,
} from '../../core/client_hello.ts'
import type { Extension, HelloParts } from '../support/hello.ts'
import {
  encryptedHello,
  hello,
  helloMessage,
  keyShares,
  number,
  protocols,
  records,
  serverNames,
  slowReadClientHello,
  supportedVersions,
  vector,
} from '../support/hello.ts'

interface Vector {
  name: string
  verdict: HelloVerdict
  hex: string
}

const VECTORS: { real: Vector[]; built: Vector[] } = JSON.parse(
  readFileSync(new URL('../vectors/client_hello.json', import.meta.url), 'utf8'),
)
const SEED = Number(process.env['FC_SEED'] ?? Math.floor(Math.random() * 2 ** 31))
console.log(`fast-check seed ${SEED} (set FC_SEED to repeat)`)

const test = suite('core/client_hello')

/** The verdict of a reader that is fed `bytes` in pieces of the given sizes, the last repeated. */
function readPieces(bytes: Uint8Array, sizes: number[]): HelloVerdict {
  const reader = new HelloReader()
  let verdict: HelloVerdict = { kind: 'more' }
  for (let at = 0, i = 0; at < bytes.length && verdict.kind === 'more'; i++) {
    const size = sizes[Math.min(i, sizes.length - 1)]!
    verdict = reader.push(bytes.subarray(at, at + size))
    at += size
  }
  return verdict
}

/** The fast reader and the slow twin say the same of `bytes`. */
function agree(bytes: Uint8Array): HelloVerdict {
  const verdict = readClientHello(bytes)
  const said = slowReadClientHello(bytes)
  const { alert, ...rest } = verdict as Record<string, unknown>
  assert.equal(rest, said)
  if (verdict.kind === 'refuse') assert.is(alert, HELLO_REFUSALS[verdict.reason])
  return verdict
}

function reasonOf(bytes: Uint8Array): string {
  const verdict = agree(bytes)
  return verdict.kind === 'refuse' ? verdict.reason : verdict.kind
}

for (const { name, verdict, hex: digits } of [...VECTORS.real, ...VECTORS.built]) {
  test(`vector: ${name}`, () => {
    const bytes = fromHex(digits)
    assert.equal(readClientHello(bytes), verdict)
    assert.equal(readPieces(bytes, [1]), verdict)
    agree(bytes)
  })
}

test('the vectors give every reason, and each reason its alert', () => {
  const refused = new Map<string, number>()
  for (const { verdict } of VECTORS.built) {
    if (verdict.kind === 'refuse') refused.set(verdict.reason, verdict.alert)
  }
  assert.equal(Object.fromEntries(refused), { ...HELLO_REFUSALS })
})

test('a browser hello of the vectors holds ML-KEM, GREASE and ECH', () => {
  const { hex: digits, verdict } = VECTORS.real.find(({ name }) => name.startsWith('Chromium'))!
  assert.ok(digits.length / 2 > 1700)
  assert.match(digits, /11ec04c0/) // X25519MLKEM768, 1,216 bytes
  assert.match(digits, /fe0d/)
  assert.match(digits, /([0-9a-f]a)\1/)
  assert.ok(verdict.kind === 'hello' && verdict.ech)
})

test("every prefix of a real hello is 'more', in one shot and in pieces", () => {
  for (const { verdict, hex: digits } of VECTORS.real) {
    const bytes = fromHex(digits)
    const reader = new HelloReader()
    for (let length = 1; length < bytes.length; length++) {
      assert.is(readClientHello(bytes.subarray(0, length)).kind, 'more')
      assert.is(reader.push(bytes.subarray(length - 1, length)).kind, 'more')
    }
    assert.equal(reader.push(bytes.subarray(-1)), verdict)
    assert.equal(reader.held, bytes)
  }
})

test('a hello cut into two records at each byte is read', () => {
  const message = helloMessage({
    extensions: [encryptedHello(), keyShares(), serverNames('web.example'), supportedVersions(772)],
  })
  assert.ok(message.length > 1500)
  for (let cut = 1; cut < message.length; cut++) {
    const bytes = records(message, [cut, message.length])
    const verdict = readClientHello(bytes)
    assert.ok(verdict.kind === 'hello' && verdict.serverName === 'web.example')
    assert.is(verdict.bytes, message.length + 10)
    assert.is(readClientHello(bytes.subarray(0, cut + 5)).kind, 'more')
  }
})

test('a hello in records of each size and pieces of each size is read', () => {
  const message = helloMessage({ extensions: [keyShares(), serverNames('web.example')] })
  for (const size of [1, 2, 3, 4, 5, 63, 64, 65, 517, message.length]) {
    const bytes = records(message, [size])
    for (const piece of [1, 2, 3, 5, 6, 7, 536, 1460, bytes.length]) {
      const verdict = readPieces(bytes, [piece])
      assert.ok(verdict.kind === 'hello' && verdict.bytes === bytes.length, `${size}/${piece}`)
    }
  }
})

/** A hello of exactly `wireBytes`, in records of `size` (the last may be shorter). */
function padded(wireBytes: number, size: number): Uint8Array {
  const parts = (length: number): HelloParts => ({
    extensions: [[21, new Uint8Array(length)], serverNames('web.example')],
  })
  const empty = helloMessage(parts(0)).length
  const count = Math.ceil(wireBytes / (size + 5))
  return hello(parts(wireBytes - 5 * count - empty), [size])
}

test('a hello of exactly the cap is read, one byte more is refused before it has come', () => {
  for (const size of [16_384, 1000]) {
    const whole = padded(CLIENT_HELLO_BYTES_MAX, size)
    assert.is(whole.length, CLIENT_HELLO_BYTES_MAX)
    const verdict = agree(whole)
    assert.ok(verdict.kind === 'hello' && verdict.bytes === CLIENT_HELLO_BYTES_MAX)
    assert.equal(readPieces(whole, [1448]), verdict)
    const over = padded(CLIENT_HELLO_BYTES_MAX + 1, size)
    assert.is(over.length, CLIENT_HELLO_BYTES_MAX + 1)
    assert.is(reasonOf(over), 'too-long')
    assert.is(reasonOf(over.subarray(0, CLIENT_HELLO_BYTES_MAX)), 'too-long')
  }
  assert.is(reasonOf(padded(CLIENT_HELLO_BYTES_MAX + 1, 16_384).subarray(0, 9)), 'too-long')
})

test('a hello of 64 KiB in one-byte records, one byte at a time, is read', () => {
  const message = helloMessage({
    extensions: [[21, new Uint8Array(10_780)], serverNames('web.example')],
  })
  const bytes = records(message, [1])
  assert.ok(bytes.length > 65_000 && bytes.length <= CLIENT_HELLO_BYTES_MAX)
  const verdict = readPieces(bytes, [1])
  assert.ok(verdict.kind === 'hello' && verdict.bytes === bytes.length)
})

test('a reader never holds more than the cap and the last piece, and stops at the verdict', () => {
  const reader = new HelloReader()
  const whole = padded(CLIENT_HELLO_BYTES_MAX, 16_384)
  assert.is(reader.push(whole.subarray(0, 65_535)).kind, 'more')
  const last = concat(whole.subarray(65_535), new Uint8Array(100_000))
  const verdict = reader.push(last)
  assert.is(verdict.kind, 'hello')
  assert.equal(reader.held, concat(whole.subarray(0, 65_535), last))
  assert.is(reader.push(new Uint8Array(1000)), verdict)
  assert.is(reader.held.length, 65_535 + last.length)

  const refused = new HelloReader()
  const no = refused.push(fromHex('160301ffff'))
  assert.is(no.kind, 'refuse')
  for (let i = 0; i < 10; i++) assert.is(refused.push(new Uint8Array(1000)), no)
  assert.is(refused.held.length, 5)
})

test('a reader moves what it holds a few times, not once a byte', () => {
  const reader = new HelloReader()
  const buffers = new Set<ArrayBufferLike>()
  const bytes = padded(CLIENT_HELLO_BYTES_MAX, 16_384)
  for (let at = 0; at < bytes.length; at++) {
    reader.push(bytes.subarray(at, at + 1))
    buffers.add(reader.held.buffer)
  }
  assert.equal(reader.held, bytes)
  assert.is(reader.held.buffer.byteLength, CLIENT_HELLO_BYTES_MAX)
  assert.ok(buffers.size <= 8, `${buffers.size} buffers`)

  const odd = new HelloReader()
  for (let at = 0; at < bytes.length; at += 1448) odd.push(bytes.subarray(at, at + 1448))
  assert.equal(odd.held, bytes)
  assert.is(odd.held.buffer.byteLength, CLIENT_HELLO_BYTES_MAX)
})

test('a reader keeps its own copy and takes empty pieces', () => {
  const bytes = hello()
  const reader = new HelloReader()
  assert.is(reader.push(new Uint8Array(0)).kind, 'more')
  const piece = bytes.slice(0, 100)
  reader.push(piece)
  piece.fill(0)
  assert.is(reader.push(new Uint8Array(0)).kind, 'more')
  assert.is(reader.push(bytes.subarray(100)).kind, 'hello')
  assert.equal(reader.held, bytes)
})

test('bytes in the middle of a larger buffer are read in their own bounds', () => {
  const bytes = hello()
  const around = concat(new Uint8Array(7).fill(0x16), bytes, new Uint8Array(9).fill(0x16))
  assert.equal(readClientHello(around.subarray(7, 7 + bytes.length)), readClientHello(bytes))
  assert.is(readClientHello(around.subarray(7, 6 + bytes.length)).kind, 'more')
})

test('each length in a hello may lie by any amount, and the twin agrees', () => {
  const bytes = hello({
    extensions: [
      serverNames('web.example'),
      protocols('h2'),
      supportedVersions(0x0304),
      keyShares(),
    ],
  })
  // Offsets and widths of all lengths: record, message, session id, suites, compression, block,
  // then for server_name: extension, list, name; ALPN: extension, list, protocol; versions.
  const lengths = [[3, 2], [6, 3], [43, 1], [76, 2], [82, 1], [84, 2]]
  lengths.push([88, 2], [90, 2], [93, 2], [108, 2], [110, 2], [112, 1], [117, 2], [119, 1])
  for (const [at, width] of lengths as [number, number][]) {
    const told = bytes.subarray(at, at + width).reduce((sum, byte) => sum * 256 + byte, 0)
    const far = [0, 1, 255, 256, 16_384, 16_385, 65_535, 0xffffff]
    for (const lie of [told - 2, told - 1, told + 1, told + 2, ...far]) {
      if (lie < 0 || lie >= 256 ** width || lie === told) continue
      const damaged = bytes.slice()
      damaged.set(number(lie, width), at)
      const reason = reasonOf(damaged)
      assert.is.not(reason, 'hello', `length at ${at}: ${lie} for ${told}`)
    }
  }
})

test('a flipped bit or any other byte anywhere in a hello throws nothing', () => {
  for (const { name, hex: digits } of VECTORS.real) {
    const bytes = fromHex(digits)
    const browser = name.startsWith('Chromium')
    for (let at = 0; at < bytes.length; at++) {
      const was = bytes[at]!
      for (let bit = 1; bit < 256; bit <<= 1) {
        bytes[at] = was ^ bit
        const verdict = browser ? agree(bytes) : readClientHello(bytes)
        assert.ok(verdict)
      }
      bytes[at] = was
    }
  }
  const bytes = hello()
  for (let at = 0; at < bytes.length; at++) {
    const was = bytes[at]!
    for (let byte = 0; byte < 256; byte++) {
      bytes[at] = byte
      agree(bytes)
    }
    bytes[at] = was
  }
})

const bytesOf = (max: number): fc.Arbitrary<Uint8Array> => fc.uint8Array({ maxLength: max })
const label = fc.stringMatching(/^[a-zA-Z0-9_.-]{0,66}$/)
const anyName = fc.oneof(
  { weight: 4, arbitrary: fc.domain() },
  fc.domain().map((name) => `${name}.`),
  fc.domain().map((name) => name.toUpperCase()),
  fc.array(label, { maxLength: 6 }).map((labels) => labels.join('.')),
  fc.ipV4(),
  fc.ipV6(),
  fc.string({ maxLength: 40, unit: 'binary' }),
)
const grease = fc.integer({ min: 0, max: 15 }).map((high) => (high * 16 + 10) * 257)
const version = fc.oneof(fc.integer({ min: 0x02ff, max: 0x0305 }), grease)
const extension: fc.Arbitrary<Extension> = fc.oneof(
  { weight: 6, arbitrary: anyName.map((name) => serverNames(name)) },
  fc.array(anyName, { maxLength: 3 }).map((names) => serverNames(...names)),
  fc.array(version, { maxLength: 6 }).map((versions) => supportedVersions(...versions)),
  fc.array(fc.string({ maxLength: 12 }), { maxLength: 4 }).map((names) => protocols(...names)),
  fc.integer({ min: 0, max: 400 }).map((length) => encryptedHello(length)),
  fc.constant(keyShares()),
  fc.tuple(grease, bytesOf(1)),
  fc.tuple(fc.integer({ min: 0, max: 65_535 }), bytesOf(300)),
  fc.tuple(fc.constantFrom(0, 16, 43), bytesOf(20)),
)
const anyParts = fc.record({
  legacyVersion: fc.oneof({ weight: 5, arbitrary: fc.constant(0x0303) }, version),
  sessionId: bytesOf(34),
  suites: fc.oneof(fc.constant(Uint8Array.of(0x13, 1)), bytesOf(60)),
  compression: fc.oneof({ weight: 5, arbitrary: fc.constant(Uint8Array.of(0)) }, bytesOf(3)),
  extensions: fc.option(fc.array(extension, { maxLength: 8 }), { freq: 20 }),
  trailing: fc.oneof({ weight: 9, arbitrary: fc.constant(new Uint8Array(0)) }, bytesOf(3)),
}) as fc.Arbitrary<HelloParts>
/** What a browser might send: sound, so that its prefixes must all be 'more'. */
const soundParts: fc.Arbitrary<HelloParts> = fc.record({
  sessionId: bytesOf(32),
  extensions: fc.uniqueArray(
    fc.tuple(fc.integer({ min: 44, max: 65_535 }), bytesOf(900)) as fc.Arbitrary<Extension>,
    { maxLength: 6, selector: ([type]) => type },
  ).chain((others) =>
    fc.shuffledSubarray([serverNames('web.example'), supportedVersions(0x0304), ...others], {
      minLength: others.length + 2,
    })
  ),
})
const sizes = fc.array(
  fc.oneof(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 3000 })),
  { minLength: 1, maxLength: 12 },
)

test('a generated hello is read alike by the twin, whole, cut and in part', () => {
  const kinds = new Map<string, number>()
  fc.assert(
    fc.property(anyParts, sizes, sizes, fc.double({ min: 0, max: 1, noNaN: true }), (...drawn) => {
      const [parts, recordSizes, pieces, share] = drawn
      const bytes = hello(parts, recordSizes)
      const verdict = agree(bytes)
      const kind = verdict.kind === 'refuse' ? verdict.reason : verdict.kind
      kinds.set(kind, (kinds.get(kind) ?? 0) + 1)
      assert.equal(readPieces(bytes, pieces), verdict)
      const part = agree(bytes.subarray(0, Math.floor(share * bytes.length)))
      if (part.kind !== 'more') assert.equal(part, verdict)
    }),
    { seed: SEED, numRuns: 4000 },
  )
  // The generator is worth something only while it reaches both sides.
  assert.ok((kinds.get('hello') ?? 0) > 100, JSON.stringify([...kinds]))
  assert.ok(kinds.size > 8, JSON.stringify([...kinds]))
})

test("a sound generated hello is read, and each of its prefixes is 'more'", () => {
  fc.assert(
    fc.property(soundParts, sizes, fc.uint8Array({ maxLength: 40 }), (parts, cuts, after) => {
      const bytes = hello(parts, cuts)
      const verdict = agree(bytes)
      assert.ok(verdict.kind === 'hello' && verdict.bytes === bytes.length)
      assert.equal(readClientHello(concat(bytes, after)), verdict)
      const reader = new HelloReader()
      for (let at = 0; at + 1 < bytes.length; at++) {
        assert.is(reader.push(bytes.subarray(at, at + 1)).kind, 'more')
      }
      assert.equal(reader.push(bytes.subarray(-1)), verdict)
    }),
    { seed: SEED, numRuns: 500 },
  )
})

test('a damaged hello is judged alike by the twin', () => {
  const damage = fc.record({
    at: fc.nat(),
    drop: fc.integer({ min: 0, max: 4 }),
    put: fc.uint8Array({ maxLength: 4 }),
  })
  const real = VECTORS.real.map(({ hex: digits }) => fromHex(digits))
  const sound = fc.oneof(
    fc.constantFrom(...real),
    fc.tuple(soundParts, sizes).map(([parts, cuts]) => hello(parts, cuts)),
  )
  fc.assert(
    fc.property(sound, fc.array(damage, { maxLength: 4 }), sizes, (bytes, wounds, pieces) => {
      for (const { at, drop, put } of wounds) {
        const where = at % (bytes.length + 1)
        bytes = concat(bytes.subarray(0, where), put, bytes.subarray(where + drop))
      }
      assert.equal(readPieces(bytes, pieces), agree(bytes))
    }),
    { seed: SEED, numRuns: 3000 },
  )
})

test('any bytes at all get a verdict that more bytes do not change', () => {
  const first = fc.constantFrom('', '16', '1603', '160301', '15', '80', '1603010005010000')
  fc.assert(
    fc.property(first, bytesOf(80), bytesOf(20), (start, rest, after) => {
      const bytes = concat(fromHex(start), rest)
      const verdict = agree(bytes)
      if (verdict.kind !== 'more') assert.equal(readClientHello(concat(bytes, after)), verdict)
    }),
    { seed: SEED, numRuns: 5000 },
  )
})

test('sixteen thousand extensions, or protocols, are read once each', () => {
  const many = Array.from({ length: 16_000 }, (_, i): Extension => [i + 100, new Uint8Array(0)])
  const twice = hello({ extensions: [serverNames('web.example'), ...many, many[0]!] })
  assert.is(reasonOf(twice), 'duplicate-extension')
  const list: Extension = [16, vector(2, Array(30_000).fill(Uint8Array.of(1, 0x61)))]
  const verdict = readClientHello(hello({ extensions: [serverNames('web.example'), list] }))
  assert.ok(verdict.kind === 'hello' && verdict.alpn.length === 30_000)
})

test('a host name from elsewhere is normalised by the same rule', () => {
  assert.is(normaliseHostName('WEB.Example.'), 'web.example')
  for (const bad of ['', '.', 'a..b', '127.0.0.1', '[::1]', 'a_b', 'bücher.example', '\u212a.b']) {
    assert.is(normaliseHostName(bad), undefined, bad)
  }
  assert.is(normaliseHostName('a'.repeat(1_000_000)), undefined)
})

test('an alert is a record of seven bytes', () => {
  assert.is(hex(encodeAlert(TLS_ALERTS.unrecognized_name)), '15030300020270')
  assert.is(hex(encodeAlert(TLS_ALERTS.decode_error, 0x0301)), '15030100020232')
})

/** What a live test opened, closed after it whether it held or not. */
const opened: (() => Promise<unknown>)[] = []
test.after.each(async () => {
  for (const close of opened.splice(0).reverse()) await close()
})

/** A port that reads each visitor's hello, then sends `reply` (or nothing) and half-closes. */
async function listen(reply: Uint8Array): Promise<{
  port: number
  heard: Promise<{ verdict: HelloVerdict; bytes: Uint8Array }>
}> {
  const sockets = new Set<Socket>()
  const server = createServer()
  const heard = new Promise<{ verdict: HelloVerdict; bytes: Uint8Array }>((resolve) => {
    server.on('connection', (socket) => {
      sockets.add(socket)
      const reader = new HelloReader()
      socket.on('error', () => {})
      socket.on('data', (chunk) => {
        const verdict = reader.push(chunk)
        if (verdict.kind === 'more') return
        resolve({ verdict, bytes: reader.held })
        socket.end(reply)
      })
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  opened.push(() => {
    for (const socket of sockets) socket.destroy()
    const closed = once(server, 'close')
    server.close()
    return closed
  })
  return { port: (server.address() as AddressInfo).port, heard }
}

test('the TLS client of this runtime is understood, and understands the alert', async () => {
  const door = await listen(encodeAlert(TLS_ALERTS.unrecognized_name))
  const client = connectTls({
    host: '127.0.0.1',
    port: door.port,
    servername: 'Web.Example',
    ALPNProtocols: ['h2', 'http/1.1'],
    rejectUnauthorized: false,
  })
  opened.push(async () => client.destroy())
  const failed = new Promise<Error>((resolve) => client.once('error', resolve))
  const { verdict, bytes } = await door.heard
  assert.ok(verdict.kind === 'hello', JSON.stringify(verdict))
  assert.is(verdict.serverName, 'web.example')
  assert.equal(verdict.alpn, ['h2', 'http/1.1'])
  assert.ok(verdict.versions.includes(0x0304))
  assert.is(verdict.bytes, bytes.length)
  agree(bytes)
  const error = await failed as Error & { code?: string }
  // OpenSSL and BoringSSL name the alert in the code, rustls in the message.
  assert.match(`${error.code} ${error.message}`, /unrecogni[sz]ed.?name/i)
})

const CLIENTS: [name: string, args: (port: number) => string[], told: RegExp][] = [
  [
    'openssl',
    (port) => ['s_client', '-connect', `127.0.0.1:${port}`, '-servername', 'Web.Example.'],
    /unrecognized name/,
  ],
  [
    'curl',
    (port) => ['-skS', '--connect-to', `::127.0.0.1:${port}`, 'https://web.example/'],
    /unrecognized name/,
  ],
]

for (const [client, args, told] of CLIENTS) {
  const found = spawnSync(client, [client === 'curl' ? '--version' : 'version']).error === undefined
  if (!found) console.log(`skipped: ${client} is not installed; its captured hello is tested`)
  else {
    test(`${client} is understood, and understands the alert`, async () => {
      const door = await listen(encodeAlert(TLS_ALERTS.unrecognized_name))
      const child = spawn(client, args(door.port), { stdio: ['ignore', 'pipe', 'pipe'] })
      opened.push(async () => child.kill('SIGKILL'))
      let output = ''
      child.stdout.on('data', (text) => output += text)
      child.stderr.on('data', (text) => output += text)
      const ended = once(child, 'close')
      const { verdict, bytes } = await door.heard
      assert.ok(verdict.kind === 'hello', JSON.stringify(verdict))
      assert.is(verdict.serverName, 'web.example')
      agree(bytes)
      await ended
      assert.match(output, told)
    })
  }
}

test('a plain HTTP client is told apart at its first byte', () => {
  assert.is(readClientHello(utf8('G')).kind, 'other')
  assert.is(readClientHello(Uint8Array.of(0)).kind, 'other')
})

test.run()
