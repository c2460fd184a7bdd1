// Reading never runs past the end, numbers keep their width, comparison does not tell where two differ.
import * as fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  ByteReader,
  ByteWriter,
  concat,
  equal,
  fromHex,
  hex,
  text,
  utf8,
} from '../../core/bytes.ts'
import { asTunnelError, isTunnelError, TunnelError } from '../../core/errors.ts'
import { codeOf } from '../support/crypto.ts'

const bytes = suite('core/bytes')

bytes('a writer and a reader agree on every field', () => {
  fc.assert(
    fc.property(
      fc.nat(255),
      fc.nat(65_535),
      fc.nat(0xffffffff),
      fc.nat(Number.MAX_SAFE_INTEGER),
      fc.string({ maxLength: 60 }),
      fc.uint8Array({ maxLength: 300 }),
      (a, b, c, d, name, blob) => {
        const written = new ByteWriter(1).u8(a).u16(b).u32(c).u64(d).text8(name).bytes16(blob)
          .bytes(blob).done()
        const reader = new ByteReader(written, 'test', 'fields')
        assert.equal([reader.u8(), reader.u16(), reader.u32(), reader.u64(), reader.text8()], [
          a,
          b,
          c,
          d,
          name,
        ])
        assert.is(hex(reader.bytes16()), hex(blob))
        assert.is(hex(reader.rest()), hex(blob))
        reader.end()
        for (let length = 0; length < 15; length++) {
          const cut = new ByteReader(written.subarray(0, length), 'test', 'fields')
          assert.is(codeOf(() => [cut.u8(), cut.u16(), cut.u32(), cut.u64()]), 'test/truncated')
        }
      },
    ),
  )
})

bytes('numbers are big-endian', () => {
  assert.is(
    hex(new ByteWriter().u16(0x1234).u32(0x56789abc).u64(2 ** 40 + 1).done()),
    '123456789abc0000010000000001',
  )
  assert.is(
    codeOf(() => new ByteReader(fromHex('0020000000000000'), 'test', 'number').u64()),
    'test/range',
  )
})

bytes('end() refuses bytes that are left', () => {
  assert.is(codeOf(() => new ByteReader(fromHex('00'), 'test', 'nothing').end()), 'test/trailing')
})

bytes('equal() compares whole arrays', () => {
  assert.ok(equal(fromHex('0102'), fromHex('0102')))
  for (const other of ['', '01', '0103', '0202', '010200']) {
    assert.not.ok(equal(fromHex('0102'), fromHex(other)))
  }
})

bytes('text() and fromHex() refuse what is malformed', () => {
  assert.is(codeOf(() => text(fromHex('ff'))), 'bytes/utf8')
  assert.is(codeOf(() => fromHex('abc')), 'bytes/hex')
  assert.is(codeOf(() => fromHex('zz')), 'bytes/hex')
  assert.is(codeOf(() => new ByteWriter().text8('x'.repeat(256))), 'bytes/range')
  assert.is(text(utf8('\ufeffä')), '\ufeffä', 'a byte order mark is kept')
  assert.is(hex(concat(fromHex('01'), fromHex(''), fromHex('02'))), '0102')
})

bytes('an error tells its code, its sentence and its remedy', () => {
  const error = new TunnelError('test/code', 'Cannot do it: found x, expected y', { hint: 'Do z' })
  assert.equal(error.toJSON(), {
    code: 'test/code',
    message: 'Cannot do it: found x, expected y',
    hint: 'Do z',
  })
  assert.ok(isTunnelError(error, 'test/code'))
  assert.not.ok(isTunnelError(error, 'test/other'))
  assert.is(asTunnelError(error, 'test/other'), error)
  assert.is(asTunnelError(new RangeError('deep'), 'test/other').message, 'deep')
})

bytes.run()
