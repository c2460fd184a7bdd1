/**
 * CPace against the vectors of its draft (tests/vectors/cpace.json names the source), then what an
 * attacker in the middle can send: elements that are none, its own share back, a second share.
 */
// runtimes: bun, node, deno
import fc from 'fast-check'
import { readFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, fromHex, hex, utf8 } from '../../core/bytes.ts'
import { generatorString, lvCat, Pake, pakeGenerator, prependLength } from '../../core/pake.ts'
import { hmacSha512, multiplyElement, randomScalar, sha512 } from '../../core/ristretto.ts'
import { codeOf, fast, filled } from '../support/crypto.ts'

const test = suite('core/pake')

const VECTORS = JSON.parse(
  readFileSync(new URL('../vectors/cpace.json', import.meta.url), 'utf8'),
)
const INPUTS = {
  password: fromHex(VECTORS.generator.PRS),
  channel: fromHex(VECTORS.generator.CI),
  session: fromHex(VECTORS.generator.sid),
}
const RUN = VECTORS.run

function side(role: 'a' | 'b', inputs = INPUTS): Pake {
  const own = role === 'a' ? [RUN.ya, RUN.ADa] : [RUN.yb, RUN.ADb]
  return new Pake({
    ...inputs,
    crypto: fast,
    role,
    scalar: fromHex(own[0]),
    associated: fromHex(own[1]),
  })
}

function fresh(role: 'a' | 'b', changes: Partial<typeof INPUTS> = {}, associated = utf8(role)) {
  return new Pake({ ...INPUTS, ...changes, crypto: fast, role, associated })
}

test('prependLength() and lvCat() write the vectors of the draft', () => {
  for (const [bytes, expected] of VECTORS.prepend_len) {
    assert.is(hex(prependLength(fromHex(bytes))), expected)
  }
  const [parts, expected] = VECTORS.lv_cat
  assert.is(hex(lvCat(...parts.map(fromHex))), expected)
  for (const [ya, ada, yb, adb, transcript] of VECTORS.transcript_ir) {
    const found = concat(lvCat(fromHex(ya), fromHex(ada)), lvCat(fromHex(yb), fromHex(adb)))
    assert.is(hex(found), transcript)
  }
})

test('generatorString() and pakeGenerator() give the vectors of the draft', () => {
  assert.is(hex(generatorString(INPUTS)), VECTORS.generator.generator_string)
  assert.is(hex(sha512(generatorString(INPUTS))), VECTORS.generator.hash)
  assert.is(hex(pakeGenerator(INPUTS)), VECTORS.generator.g)
})

test('a password that fills the block needs no zeros', () => {
  const long = generatorString({ ...INPUTS, password: filled(1, 200) })
  assert.is(hex(long.subarray(18 + 2 + 200, 18 + 2 + 200 + 1)), '00', 'an empty padding field')
})

test("both sides of the draft's run agree on its ISK", () => {
  const a = side('a')
  const b = side('b')
  assert.is(hex(a.share), RUN.Ya)
  assert.is(hex(b.share), RUN.Yb)
  assert.is(hex(multiplyElement(fromHex(RUN.ya), b.share)), RUN.K)
  assert.is(hex(multiplyElement(fromHex(RUN.yb), a.share)), RUN.K)
  const ofA = a.finish(b.share, fromHex(RUN.ADb))
  const ofB = b.finish(a.share, fromHex(RUN.ADa))
  assert.is(hex(ofA.key), RUN.ISK_IR)
  assert.is(hex(ofB.key), RUN.ISK_IR)
  assert.equal(ofA.tag, ofB.expected)
  assert.equal(ofB.tag, ofA.expected)
  assert.is.not(hex(ofA.tag), hex(ofB.tag))
})

test('the tags are those of §10.4, written out', () => {
  const a = side('a')
  const b = side('b')
  const { tag, key } = a.finish(b.share, fromHex(RUN.ADb))
  const macKey = sha512(utf8('CPaceMac'), INPUTS.session, key)
  const message = concat(Uint8Array.of(32), fromHex(RUN.Ya), Uint8Array.of(3), fromHex(RUN.ADa))
  assert.equal(tag, hmacSha512(macKey, message))
})

test('multiplyElement() gives the product of the draft and refuses its invalid inputs', () => {
  const { s, X, product, invalid } = VECTORS.scalar_mult
  assert.is(hex(multiplyElement(fromHex(s), fromHex(X))), product)
  for (const bytes of invalid) {
    assert.is(codeOf(() => multiplyElement(fromHex(s), fromHex(bytes))), 'pake/element')
  }
})

/** What RFC 9496 §A.2 refuses: not canonical, negative, no square, and ends of ranges. */
const BAD_ELEMENTS = [
  '00ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff',
  'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
  'f3ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
  'edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
  '0100000000000000000000000000000000000000000000000000000000000000',
  '01ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f',
  'ed57ffd8c914fb201471d1c3d245ce3c746fcbe63a3679d51b6a516ebebe0e20',
  'c34c4e1826e5d403b78e246e88aa051c36ccf0aafebffe137d148a2bf9104562',
  '26948d35ca62e643e26a83177332e6b6afeb9d08e4268b650f1f5bbd8d81d371',
  '4eac077a713c57b4f4397629a4145982c661f48044dd3f96427d40b147d9742f',
  '0000000000000000000000000000000000000000000000000000000000000000',
]

test('finish() refuses every element that is none, and the identity, on both sides', () => {
  for (const bad of BAD_ELEMENTS) {
    for (const role of ['a', 'b'] as const) {
      assert.is(codeOf(() => fresh(role).finish(fromHex(bad), utf8('x'))), 'pake/element', bad)
    }
  }
  for (const length of [0, 31, 33]) {
    assert.is(codeOf(() => fresh('a').finish(filled(1, length), utf8('x'))), 'pake/length')
  }
})

test('finish() refuses the own share, and a second one of any kind', () => {
  const a = fresh('a')
  assert.is(codeOf(() => a.finish(a.share, utf8('a'))), 'pake/reflected')
  const b = fresh('b')
  assert.is(codeOf(() => a.finish(b.share, utf8('b'))), 'pake/used', 'also after a failure')
  b.finish(fresh('a').share, utf8('a'))
  assert.is(codeOf(() => b.finish(fresh('a').share, utf8('a'))), 'pake/used')
})

test('another password, channel, session or associated data is another key and other tags', () => {
  const changes: [string, Partial<typeof INPUTS>, Uint8Array][] = [
    ['password', { password: utf8('password') }, utf8('b')],
    ['channel', { channel: utf8('elsewhere') }, utf8('b')],
    ['session', { session: filled(9, 16) }, utf8('b')],
    ['associated', {}, utf8('c')],
  ]
  for (const [name, change, associated] of changes) {
    const a = fresh('a')
    const b = fresh('b', change, associated)
    const ofA = a.finish(b.share, utf8('b'))
    const ofB = b.finish(a.share, utf8('a'))
    assert.is.not(hex(ofA.key), hex(ofB.key), name)
    assert.is.not(hex(ofA.tag), hex(ofB.expected), name)
    assert.is.not(hex(ofB.tag), hex(ofA.expected), name)
  }
})

test('two who both play A do not agree: roles are in the key', () => {
  const one = fresh('a', {}, utf8('one'))
  const two = fresh('a', {}, utf8('two'))
  const first = one.finish(two.share, utf8('two'))
  const second = two.finish(one.share, utf8('one'))
  assert.is.not(hex(first.key), hex(second.key))
})

test('whoever swaps a share for one of its own shares a key with nobody', () => {
  const a = fresh('a')
  const b = fresh('b')
  const middle = fresh('b', { password: utf8('guess') })
  const ofA = a.finish(middle.share, utf8('b'))
  const ofB = b.finish(a.share, utf8('a'))
  const ofMiddle = middle.finish(a.share, utf8('a'))
  const keys = new Set([ofA, ofB, ofMiddle].map(({ key }) => hex(key)))
  assert.is(keys.size, 3)
})

test('randomScalar() has 252 bits', () => {
  for (let i = 0; i < 64; i++) assert.ok(randomScalar(fast)[31]! < 16)
  const ones = { ...fast, randomBytes: (count: number) => filled(0xff, count) }
  assert.is(hex(randomScalar(ones)), 'ff'.repeat(31) + '0f')
})

test('lvCat() of two lists is the same only when the lists are', () => {
  const lists = fc.array(fc.uint8Array({ maxLength: 200 }), { maxLength: 4 })
  fc.assert(fc.property(lists, lists, (one, two) => {
    const same = one.length === two.length && one.every((part, i) => hex(part) === hex(two[i]!))
    assert.is(hex(lvCat(...one)) === hex(lvCat(...two)), same)
  }))
})

test.run()
