/**
 * Bytes are fixed by docs/protocol.md §10: the table, golden bytes of every type that is sealed,
 * padding, and a reader that gives the same whatever pieces the bytes come in.
 */
// runtimes: bun, node, deno
import * as fc from 'fast-check'
import { readFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, EMPTY, fromHex, hex, utf8 } from '../../core/bytes.ts'
import { ManualClock } from '../../core/clock.ts'
import {
  encodeEnvelope,
  ENVELOPE,
  type Envelope,
  EnvelopeReader,
  pad,
  paddedBytes,
  type RecordName,
  SESSION_SIZES,
  unpad,
} from '../../core/envelope.ts'
import { CipherState } from '../../core/noise.ts'
import {
  RecordReceiver,
  RecordSender,
  REKEY_BYTES,
  RESEND_BYTES_MAX,
  RESEND_RECORDS_MAX,
  RESERVE_BYTES_MAX,
} from '../../core/records.ts'
import { codeOf, fast, filled } from '../support/crypto.ts'

const test = suite('core/envelope')

function ends(): { sender: RecordSender; receiver: RecordReceiver } {
  const clock = new ManualClock()
  const cipher = () => new CipherState({ crypto: fast, suite: 'aesgcm', key32: filled(1) })
  return {
    sender: new RecordSender({ cipher: cipher(), clock, onRecord() {} }),
    receiver: new RecordReceiver({ cipher: cipher(), clock, onRecord() {} }),
  }
}

function readOne(bytes: Uint8Array): Envelope | undefined {
  const reader = new EnvelopeReader(SESSION_SIZES)
  reader.push(bytes)
  return reader.next()
}

test('the table of docs/protocol.md §10 is the table of the code', () => {
  const protocol = readFileSync(new URL('../../docs/protocol.md', import.meta.url), 'utf8')
  const section = protocol.slice(protocol.indexOf('## 10.'), protocol.indexOf('### Handshake'))
  const rows = [...section.matchAll(/^\| 0x([0-9a-f]{2}) \| `(\w+)` \| ([^|]+) \| ([^|]+) \|/gm)]
  assert.equal(
    Object.fromEntries(rows.map(([, number, name]) => [name, Number.parseInt(number!, 16)])),
    { ...ENVELOPE },
  )
  for (const [, number, name, , sealed] of rows) {
    assert.is(sealed!.startsWith('record'), Number.parseInt(number!, 16) >= ENVELOPE.ready, name)
    assert.is(sealed === 'record, padded', sealed!.startsWith('record') && name !== 'data', name)
  }
  assert.equal([...SESSION_SIZES.keys()], Object.values(ENVELOPE))
})

const GOLDEN: [RecordName, Uint8Array, string][] = [
  ['ready', EMPTY, '00'.repeat(32)],
  ['data', fromHex('110000000168656c6c6f'), '110000000168656c6c6f'],
  ['control', fromHex('1300000001'), '0005' + '1300000001' + '00'.repeat(25)],
  ['ack', fromHex('0000000000000102'), '0008' + '0000000000000102' + '00'.repeat(22)],
  ['rekey', EMPTY, '00'.repeat(32)],
  ['checkpoint', filled(7, 233), '00e9' + '07'.repeat(233) + '00'.repeat(277)],
  ['trace', filled(8, 42), '002a' + '08'.repeat(42) + '00'.repeat(84)],
  ['channel', filled(9, 16), '0010' + '09'.repeat(16) + '00'.repeat(14)],
  ['close', concat(fromHex('0001'), utf8('no')), '0004' + '0001' + '6e6f' + '00'.repeat(26)],
]

test('each record is its header and the padded content, sealed under the counter', () => {
  const { sender, receiver } = ends()
  for (const [counter, [name, content, plaintext]] of GOLDEN.entries()) {
    if (name === 'rekey') continue
    sender.seal(name, content)
    const found = sender.take()!
    // The slow twin: header, nonce and cipher spelled out.
    const number = counter - (counter > 4 ? 1 : 0)
    const length = plaintext.length / 2 + 16
    const header = fromHex(
      ENVELOPE[name].toString(16).padStart(2, '0') + length.toString(16).padStart(6, '0'),
    )
    const body = fast.aesGcmSeal({
      key32: filled(1),
      nonce12: fromHex('00000000' + number.toString(16).padStart(16, '0')),
      associated: header,
      plaintext: fromHex(plaintext),
    })
    assert.is(hex(found), hex(concat(header, body)), name)
    assert.is(hex(receiver.open(readOne(found)!)), hex(content), name)
  }
})

test('golden bytes', () => {
  const { sender } = ends()
  for (const [name, content] of [GOLDEN[0]!, GOLDEN[1]!, GOLDEN[3]!]) sender.seal(name, content)
  assert.equal([sender.take(), sender.take(), sender.take()].map((one) => hex(one!)), GOLDEN_HEX)
})

/** Made once by a program of OpenSSL's AES-256-GCM and the text of docs/protocol.md. */
const GOLDEN_HEX = [
  '10000030bf3598dc753b03bf937992457124c141b5c69fb0859f34facc240ed50ed66e1b1b755ef4493e297614fe0d9a92b76b94',
  '1100001aaada9087dd561c4e655ce0aedf188cfdc9ae5e9f6727a30597a4',
  '13000030adcdd97e25a6427f4c377b65ff8316fa9469148bbbd12acea8a5acf7d89c8c7014b9aa95ec031a529229b125aababeff',
]

test('every truncation waits, and every flipped bit is refused with a name and changes nothing', () => {
  for (const [name, content] of GOLDEN) {
    if (name === 'rekey') continue
    const { sender, receiver } = ends()
    sender.seal(name, content)
    const whole = sender.take()!
    for (let length = 0; length < whole.length; length++) {
      assert.is(readOne(whole.subarray(0, length)), undefined, `${name} ${length}`)
    }
    for (let bit = 0; bit < whole.length * 8; bit++) {
      const wrong = whole.slice()
      wrong[bit >> 3]! ^= 1 << (bit & 7)
      const code = codeOf(() => {
        const envelope = readOne(wrong)
        if (envelope) receiver.open(envelope)
        else throw Object.assign(new Error(), { name: 'TunnelError', code: 'waits' })
      })
      const expected = bit < 32
        ? ['session/envelope', 'session/forged', 'waits']
        : ['session/forged']
      assert.ok(expected.includes(code!), `${name}, bit ${bit}: ${code}`)
      assert.is(receiver.opened, 0)
    }
    assert.is(hex(receiver.open(readOne(whole)!)), hex(content))
    assert.is(codeOf(() => receiver.open(readOne(whole)!)), 'session/forged', 'a second time')
  }
})

test('records that are dropped, swapped or sent twice do not open', () => {
  const { sender, receiver } = ends()
  for (const letter of ['a', 'b', 'c']) sender.seal('data', utf8(`.....${letter}`))
  const [a, b, c] = [sender.take()!, sender.take()!, sender.take()!].map((one) => readOne(one)!)
  assert.is(codeOf(() => receiver.open(b!)), 'session/forged')
  receiver.open(a!)
  assert.is(codeOf(() => receiver.open(a!)), 'session/forged')
  assert.is(codeOf(() => receiver.open(c!)), 'session/forged')
  receiver.open(b!)
  receiver.open(c!)
})

test('padding goes to the buckets, and anything else is refused', () => {
  const table: [number, number][] = [
    [0, 32],
    [30, 32],
    [31, 128],
    [126, 128],
    [127, 512],
    [510, 512],
    [511, 2048],
    [2046, 2048],
    [2047, 4096],
    [4094, 4096],
    [4095, 8192],
    [61_438, 61_440],
    [61_439, 65_516],
    [65_514, 65_516],
  ]
  for (const [content, bucket] of table) {
    assert.is(paddedBytes(content), bucket, `${content}`)
    const padded = pad(filled(1, content))
    assert.is(padded.length, bucket)
    assert.is(unpad(padded).length, content)
    if (content + 2 < bucket) {
      const wrong = padded.slice()
      wrong[bucket - 1] = 1
      assert.is(codeOf(() => unpad(wrong)), 'session/padding')
    }
  }
  assert.is(codeOf(() => pad(new Uint8Array(65_515))), 'session/size')
  // Longer than needed, shorter than said, no room for a length.
  assert.is(codeOf(() => unpad(new Uint8Array(128))), 'session/padding')
  assert.is(codeOf(() => unpad(fromHex('001f' + '00'.repeat(30)))), 'session/padding')
  for (const length of [0, 1, 31, 33]) {
    assert.is(codeOf(() => unpad(new Uint8Array(length))), 'session/padding', `${length}`)
  }
})

test('lengths outside the bounds of a type are refused before anything is held for them', () => {
  for (const [type, [min, max]] of SESSION_SIZES) {
    for (const length of [min - 1, max + 1, 0xffffff]) {
      const header = new Uint8Array([type, length >> 16, length >> 8, length])
      assert.is(codeOf(() => readOne(header)), 'session/envelope', `${type} ${length}`)
    }
    for (const length of [min, max]) {
      assert.is(readOne(new Uint8Array([type, length >> 16, length >> 8, length])), undefined)
    }
  }
  for (let type = 0; type < 256; type++) {
    if (SESSION_SIZES.has(type)) continue
    assert.is(codeOf(() => readOne(new Uint8Array([type, 0, 0, 48]))), 'session/envelope')
  }
})

test('the reader gives the same envelopes in whatever pieces they come', () => {
  const sizes = new Map([[1, [0, 70_000] as const], [2, [0, 9] as const]])
  const envelopes = fc.array(fc.tuple(fc.constantFrom(1, 2), fc.uint8Array({ maxLength: 9 })))
  fc.assert(fc.property(envelopes, fc.array(fc.nat(12)), (list, cuts) => {
    const bytes = concat(...list.map(([type, body]) => encodeEnvelope(type, body)))
    const reader = new EnvelopeReader(sizes)
    const found: string[] = []
    let at = 0
    function drain(): void {
      for (let one = reader.next(); one; one = reader.next()) {
        found.push(`${one.type} ${hex(one.header)} ${hex(one.body)}`)
      }
    }
    for (const cut of cuts) {
      reader.push(bytes.slice(at, at + cut))
      at += cut
      if (cut % 3 > 0) drain()
    }
    reader.push(bytes.slice(at))
    drain()
    assert.equal(
      found,
      list.map(([type, body]) =>
        `${type} ${hex(encodeEnvelope(type, body).subarray(0, 4))} ${hex(body)}`
      ),
    )
    assert.is(reader.bytes, 0)
  }))
})

test('what is not acknowledged is kept up to 16 MiB and a reserve, then refused with a name', () => {
  const { sender } = ends()
  const frame = new Uint8Array(65_516)
  while (sender.hasRoom) sender.seal('data', frame)
  assert.ok(sender.keptBytes >= RESEND_BYTES_MAX)
  assert.ok(sender.keptBytes < RESEND_BYTES_MAX + 65_536)
  const code = codeOf(() => {
    for (let i = 0; i < 100; i++) sender.seal('data', frame)
  })
  assert.is(code, 'session/unacknowledged')
  assert.ok(sender.keptBytes < RESEND_BYTES_MAX + RESERVE_BYTES_MAX + 65_536)
  const { sealed } = sender
  for (const wrong of [sealed + 1, 2 ** 53 - 1]) {
    assert.is(codeOf(() => sender.acknowledge(wrong)), 'session/ack')
  }
  sender.acknowledge(sealed - 3)
  assert.ok(sender.hasRoom)
  assert.is(sender.keptBytes, 3 * 65_536)
  assert.is(codeOf(() => sender.acknowledge(sealed - 4)), 'session/ack')
  assert.is(codeOf(() => sender.rewind(sealed - 4)), 'session/ack')
  sender.rewind(sealed - 2)
  assert.ok(sender.take() && sender.take() && !sender.take())
  // An ack from before the resumption is sent again: no lie, and nothing new.
  sender.acknowledge(sealed - 3)
  assert.is(sender.keptBytes, 2 * 65_536)
  // Small records cost more than their bytes: they are counted too.
  const small = ends().sender
  while (small.hasRoom) small.seal('ack', new Uint8Array(8))
  assert.is(small.sealed, RESEND_RECORDS_MAX)
})

test('a key is changed by records and bytes, and a receiver does not wait for ever', () => {
  const { sender, receiver } = ends()
  const clock = new ManualClock()
  /** Counts and changes nothing else: so that 2 GiB need not be sealed. */
  let rekeys = 0
  const cipher = {
    counter: 0,
    seal(_header: Uint8Array, _plain: Uint8Array, into?: Uint8Array): Uint8Array {
      cipher.counter++
      return into!
    },
    open(_header: Uint8Array, sealed: Uint8Array): Uint8Array {
      cipher.counter++
      return sealed.subarray(0, -16)
    },
    rekey: () => void rekeys++,
    erase() {},
  }
  const types: number[] = []
  const counting = new RecordSender({
    cipher,
    clock,
    onRecord: ({ type }) => void types.push(type),
  })
  const frame = new Uint8Array(65_516)
  const records = Math.ceil(REKEY_BYTES / (frame.length + 16))
  for (let i = 0; i < records; i++) {
    counting.seal('data', frame)
    counting.acknowledge(counting.sealed)
  }
  assert.is(rekeys, 0)
  counting.seal('data', frame)
  assert.is(rekeys, 1)
  assert.equal(types.slice(-2), [ENVELOPE.rekey, ENVELOPE.data])
  cipher.counter = 0
  const reading = new RecordReceiver({ cipher, clock, onRecord() {} })
  const body = new Uint8Array(65_532)
  const header = new Uint8Array(4)
  const code = codeOf(() => {
    for (let i = 0; i < 3 * records; i++) reading.open({ type: ENVELOPE.data, header, body })
  })
  assert.is(code, 'session/rekey')
  assert.is(cipher.counter, Math.ceil(2 * REKEY_BYTES / body.length))
  assert.is(sender.sealed + receiver.opened, 0)
})

test.run()
