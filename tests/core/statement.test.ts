/**
 * Bytes are fixed by docs/protocol.md §14: bodies are written by hand from that text, signatures were
 * made by `openssl pkeyutl -sign -rawin`. Then canonical encodings, wrong signers, and where chains
 * of rotations lead when a thief, or a circle, has a hand in them.
 */
// runtimes: bun, node, deno
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, fromHex, hex, utf8 } from '../../core/bytes.ts'
import { fingerprint } from '../../core/key.ts'
import type { Revocation, Rotation, Statement, Vouch, Withdrawal } from '../../core/statement.ts'
import {
  checkVouch,
  encodeStatement,
  follow,
  newestWithdrawal,
  openStatement,
  STATEMENT,
  STATEMENT_SKEW_MS,
} from '../../core/statement.ts'
import { codeOf, CRYPTOS, fast, filled } from '../support/crypto.ts'

const test = suite('core/statement')

const TIME = 1_700_000_000_000
const seedOf = (byte: number) => filled(byte)
const idOf = (byte: number) => fast.ed25519Public(seedOf(byte))
const seeds = new Map(Array.from({ length: 60 }, (_, i) => [hex(idOf(i)), seedOf(i)]))
const sign = (message: Uint8Array, signer: Uint8Array) =>
  fast.ed25519Sign(seeds.get(hex(signer))!, message)
const encode = (statement: Statement) => encodeStatement(statement, sign)
/** Signs any body as `kind`, canonical or not. */
const signed = (kind: string, body: Uint8Array, ...by: number[]) => {
  let bytes = body
  for (const one of by) {
    const message = concat(utf8(`sotto ${kind} v1\0`), bytes)
    bytes = concat(bytes, fast.ed25519Sign(seedOf(one), message))
  }
  return bytes
}

const rotation = (old: number, to: number, time = TIME): Rotation => ({
  kind: 'rotation',
  old: idOf(old),
  new: idOf(to),
  time,
})
const revocation = (of: number): Revocation => ({
  kind: 'revocation',
  identity: idOf(of),
  time: TIME,
})
const VOUCH: Vouch = {
  kind: 'vouch',
  authority: idOf(3),
  identity: idOf(4),
  serial: 258,
  notBefore: TIME,
  notAfter: TIME + 86_400_000,
  scope: 'acme',
  names: ['db', 'web'],
  labels: { env: 'prod', role: 'web' },
}
const WITHDRAWAL: Withdrawal = {
  kind: 'withdrawal',
  authority: idOf(3),
  sequence: 9,
  time: TIME,
  serials: [1, 258, 4096],
}
const OPENSSL_REVOCATION =
  '5cc41d99d3a785ccf6704a6b61d446582401b40ccdc5935c428c8f0aecf70cf6314baa26d90cda9efff23a3519952301ce28b5ca6d747bd9bc37ae88794a3a01'
const OPENSSL_ROTATION =
  '9d03c5ac64367a063b66a46ff72a70a7c2063c6c70bc4986caaca423d59776f9b15131314473fcfcb5d304f847ef15f442087fbabd6e4d781a645fd4ffe40508' +
  'bb3efd230197b6e7bfb2c98fed8f1c9a44feadf7225cd6fe7978ea3b290dac8bda64644292319a43a0d6714d0a77fa016c1ff3514e1d3e1a2da5ec9a99628507'
const TIME_HEX = '0000018bcfe56800'
const GOLDEN: [Statement, string, number[]][] = [
  [rotation(1, 2), '000101' + hex(idOf(1)) + hex(idOf(2)) + TIME_HEX, [1, 2]],
  [revocation(1), '000102' + hex(idOf(1)) + TIME_HEX, [1]],
  [
    VOUCH,
    '000103' + hex(idOf(3)) + hex(idOf(4)) + '0000000000000102' + TIME_HEX + '0000018bd50bc400' +
    '0461636d65' + '02' + '026462' + '03776562' +
    '02' + '03656e76' + '0470726f64' + '04726f6c65' + '03776562',
    [3],
  ],
  [
    WITHDRAWAL,
    '000104' + hex(idOf(3)) + '0000000000000009' + TIME_HEX + '0003' +
    '0000000000000001' + '0000000000000102' + '0000000000001000',
    [3],
  ],
]

for (const [name, crypto] of CRYPTOS) {
  test(`${name}: encodeStatement() writes the golden bytes, and openStatement() reads them`, () => {
    for (const [statement, body, by] of GOLDEN) {
      const expected = signed(statement.kind, fromHex(body), ...by)
      const by2 = (message: Uint8Array, signer: Uint8Array) =>
        crypto.ed25519Sign(seeds.get(hex(signer))!, message)
      assert.is(hex(encodeStatement(statement, by2)), hex(expected), statement.kind)
      assert.equal(openStatement(crypto, expected), statement)
    }
  })
}

test('signatures are those that another implementation makes', () => {
  assert.is(hex(encode(revocation(1))).slice(-128), OPENSSL_REVOCATION)
  assert.is(hex(encode(rotation(1, 2))).slice(-256), OPENSSL_ROTATION)
})

test('openStatement() refuses every proper prefix, and a byte too many', () => {
  for (const [statement] of GOLDEN) {
    const bytes = encode(statement)
    for (let length = 0; length < bytes.length; length++) {
      const code = codeOf(() => openStatement(fast, bytes.subarray(0, length)))
      assert.ok(['statement/size', 'statement/forged'].includes(code!), `${length}: ${code}`)
    }
    const longer = concat(bytes, filled(0, 1))
    assert.is(codeOf(() => openStatement(fast, longer)), 'statement/forged')
  }
})

test('openStatement() refuses a change of any byte', () => {
  for (const [statement] of GOLDEN) {
    const bytes = encode(statement)
    for (let i = 0; i < bytes.length; i++) {
      const changed = Uint8Array.from(bytes)
      changed[i]! ^= 1
      const code = codeOf(() => openStatement(fast, changed))
      if (i < 2) assert.is(code, 'statement/version')
      else assert.ok(['statement/forged', 'statement/kind'].includes(code!), `byte ${i}: ${code}`)
    }
  }
})

test('a signature of one kind does not hold for another', () => {
  const body = fromHex('000102' + hex(idOf(1)) + TIME_HEX)
  for (const kind of ['rotation', 'vouch', 'withdrawal', 'passport']) {
    assert.is(codeOf(() => openStatement(fast, signed(kind, body, 1))), 'statement/forged')
  }
})

test('a rotation needs both signatures, of both and in order', () => {
  const body = fromHex('000101' + hex(idOf(1)) + hex(idOf(2)) + TIME_HEX)
  for (const by of [[1], [2], [2, 1], [1, 1], [2, 2], [1, 3], [3, 2], [1, 2, 2]]) {
    const bytes = signed('rotation', body, ...by)
    assert.is(codeOf(() => openStatement(fast, bytes)), 'statement/forged', `${by}`)
  }
  assert.is(openStatement(fast, signed('rotation', body, 1, 2)).kind, 'rotation')
})

test('others cannot revoke, vouch or withdraw', () => {
  for (const [statement, body] of GOLDEN) {
    if (statement.kind === 'rotation') continue
    const bytes = signed(statement.kind, fromHex(body), 5)
    assert.is(codeOf(() => openStatement(fast, bytes)), 'statement/forged', statement.kind)
  }
})

test('what is signed and not canonical is refused by its name', () => {
  const vouch = (names: string, labels: string, rest = '') =>
    '000103' + hex(idOf(3)) + hex(idOf(4)) + '00'.repeat(8) + TIME_HEX + '0000018bd50bc400' +
    '0461636d65' + names + labels + rest
  const list = (serials: string, count: string) =>
    '000104' + hex(idOf(3)) + '00'.repeat(8) + TIME_HEX + count + serials
  for (
    const [kind, body, code] of [
      ['vouch', vouch('02' + '03776562' + '026462', '00'), 'statement/order'],
      ['vouch', vouch('02' + '026462' + '026462', '00'), 'statement/duplicate'],
      ['vouch', vouch('01' + '025742', '00'), 'statement/name'],
      ['vouch', vouch('01' + '00', '00'), 'statement/name'],
      ['vouch', vouch('11', '00'), 'statement/size'],
      ['vouch', vouch('00', '02' + '04726f6c65' + '0161' + '03656e76' + '0161'), 'labels/order'],
      ['vouch', vouch('00', '01' + '0456' + '0161'), 'statement/truncated'],
      ['vouch', vouch('00', '01' + '0156' + '0161'), 'labels/form'],
      ['vouch', vouch('00', '00', '00'), 'statement/trailing'],
      ['vouch', vouch('01' + '01ff', '00'), 'bytes/utf8'],
      [
        'vouch',
        '000103' + hex(idOf(3)) + hex(idOf(4)) + '00'.repeat(8) + TIME_HEX + TIME_HEX + '00' +
        '00' +
        '00',
        'statement/validity',
      ],
      [
        'vouch',
        '000103' + hex(idOf(3)) + hex(idOf(3)) + '00'.repeat(8) + TIME_HEX + '0000018bd50bc400' +
        '000000',
        'statement/self',
      ],
      ['withdrawal', list('00'.repeat(16), '0002'), 'statement/duplicate'],
      [
        'withdrawal',
        list('00'.repeat(7) + '02' + '00'.repeat(7) + '01', '0002'),
        'statement/order',
      ],
      ['withdrawal', list('00'.repeat(7), '0001'), 'statement/truncated'],
      ['withdrawal', list('00'.repeat(9), '0001'), 'statement/trailing'],
      ['withdrawal', list('ff'.repeat(8), '0001'), 'statement/range'],
      ['withdrawal', list('', '0101'), 'statement/size'],
      ['revocation', '000102' + hex(idOf(3)) + 'ff'.repeat(8), 'statement/range'],
      ['revocation', '000105' + hex(idOf(3)) + TIME_HEX, 'statement/kind'],
    ] as const
  ) {
    const bytes = signed(kind, fromHex(body), 3)
    const found = codeOf(() => openStatement(fast, bytes))
    assert.is(found, code, `${kind} ${body.slice(134)}`)
  }
  const self = fromHex('000101' + hex(idOf(1)) + hex(idOf(1)) + TIME_HEX)
  assert.is(codeOf(() => openStatement(fast, signed('rotation', self, 1, 1))), 'statement/self')
})

test('encodeStatement() refuses what openStatement() would', () => {
  for (
    const [statement, code] of [
      [{ ...VOUCH, names: ['a', 'a'] }, 'statement/duplicate'],
      [{ ...VOUCH, names: ['A'] }, 'statement/name'],
      [{ ...VOUCH, scope: '-' }, 'statement/name'],
      [{ ...VOUCH, names: Array.from({ length: 17 }, (_, i) => `n${i}`) }, 'statement/size'],
      [{ ...VOUCH, labels: { A: 'x' } }, 'labels/form'],
      [{ ...VOUCH, notAfter: VOUCH.notBefore }, 'statement/validity'],
      [{ ...VOUCH, identity: VOUCH.authority }, 'statement/self'],
      [{ ...VOUCH, serial: -1 }, 'statement/range'],
      [{ ...VOUCH, identity: filled(1, 31) }, 'statement/length'],
      [{ ...WITHDRAWAL, serials: [1, 1] }, 'statement/duplicate'],
      [
        { ...WITHDRAWAL, serials: Array.from({ length: 257 }, (_, i) => i) },
        'statement/size',
      ],
      [{ ...revocation(1), time: 0.5 }, 'statement/range'],
      [rotation(1, 1), 'statement/self'],
    ] as [Statement, string][]
  ) assert.is(codeOf(() => encode(statement)), code, `${statement.kind} ${code}`)
})

const label = fc.stringMatching(/^[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?$/)
const number = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER })
const who = fc.integer({ min: 1, max: 20 })
const vouches: fc.Arbitrary<Vouch> = fc.record({
  kind: fc.constant('vouch' as const),
  authority: fc.constant(idOf(30)),
  identity: who.map(idOf),
  serial: number,
  notBefore: fc.nat(),
  notAfter: fc.integer({ min: 2 ** 32, max: Number.MAX_SAFE_INTEGER }),
  scope: fc.oneof(fc.constant(''), label),
  names: fc.uniqueArray(label, { maxLength: 16 }),
  labels: fc.dictionary(label, label, { maxKeys: 16, noNullPrototype: true }),
})
const withdrawals: fc.Arbitrary<Withdrawal> = fc.record({
  kind: fc.constant('withdrawal' as const),
  authority: who.map(idOf),
  sequence: number,
  time: number,
  serials: fc.uniqueArray(number, { maxLength: 256 }),
})

test('one set of facts has one encoding, in whatever order it was given', () => {
  fc.assert(
    fc.property(fc.oneof(vouches, withdrawals), (statement) => {
      const bytes = encode(statement)
      const opened = openStatement(fast, bytes)
      assert.equal(encode(opened), bytes)
      const mixed = statement.kind === 'vouch'
        ? { ...statement, names: statement.names.toReversed() }
        : { ...statement, serials: statement.serials.toReversed() }
      assert.equal(encode(mixed), bytes)
    }),
    { numRuns: 60 },
  )
})

test('openStatement() throws nothing but its own errors on any bytes', () => {
  const any = fc.oneof(
    fc.uint8Array({ maxLength: 400 }),
    fc.tuple(fc.constantFrom(...GOLDEN), fc.nat(400), fc.nat(255)).map(([[statement], at, to]) => {
      const bytes = encode(statement)
      bytes[at % bytes.length] = to
      return bytes
    }),
  )
  fc.assert(
    fc.property(any, (bytes) => {
      codeOf(() => openStatement(fast, bytes))
    }),
    { numRuns: 200 },
  )
})

const nameOf = (byte: number) => fingerprint(fast, idOf(byte))
const successor = (byte: number, statements: Statement[]) => {
  const found = follow(fast, idOf(byte), statements)
  return found.kind === 'successor' ? found.identity : undefined
}

test('follow() goes to the newest successor, past statements on others', () => {
  const chain = [rotation(3, 4), rotation(1, 2), VOUCH, rotation(8, 9), rotation(2, 3)]
  assert.equal(successor(1, chain), idOf(4))
  assert.equal(successor(2, chain), idOf(4))
  assert.equal(successor(4, chain), idOf(4))
  assert.equal(follow(fast, idOf(5), chain), { kind: 'successor', identity: idOf(5), steps: [] })
  const found = follow(fast, idOf(1), chain)
  assert.ok(found.kind === 'successor')
  assert.equal(found.steps.map((step) => step.new), [idOf(2), idOf(3), idOf(4)])
})

test('follow() lets a revocation beat every rotation, wherever on the way and whatever its time', () => {
  const chain = [rotation(1, 2, TIME + 5), rotation(2, 3, TIME + 9)]
  for (const gone of [1, 2, 3]) {
    for (const statements of [[...chain, revocation(gone)], [revocation(gone), ...chain]]) {
      const found = follow(fast, idOf(1), statements)
      assert.equal(found, { kind: 'revoked', identity: idOf(gone), time: TIME })
    }
  }
  assert.equal(successor(2, [...chain, revocation(1)]), idOf(3), 'the past of a pin is past')
  const split = [rotation(1, 2), rotation(1, 3), revocation(1)]
  assert.is(follow(fast, idOf(1), split).kind, 'revoked', 'nor is a split asked about')
})

test('follow() stops at two successors and names both, whichever comes first', () => {
  for (const statements of [[rotation(1, 2), rotation(1, 3)], [rotation(1, 3), rotation(1, 2)]]) {
    try {
      follow(fast, idOf(1), statements)
      assert.unreachable()
    } catch (error) {
      assert.is((error as { code: string }).code, 'trust/split')
      for (const byte of [1, 2, 3]) assert.match((error as Error).message, nameOf(byte))
    }
  }
  const later = [rotation(1, 2), rotation(2, 3), rotation(2, 4)]
  assert.is(codeOf(() => follow(fast, idOf(1), later)), 'trust/split', 'further on as well')
  const same = [rotation(1, 2, TIME), rotation(1, 2, TIME + 1)]
  assert.equal(successor(1, same), idOf(2), 'the same successor twice is one')
})

test('follow() ends on circles and on chains of more than 16', () => {
  assert.is(codeOf(() => follow(fast, idOf(1), [rotation(1, 2), rotation(2, 1)])), 'trust/circle')
  const long = Array.from({ length: 17 }, (_, i) => rotation(i + 1, i + 2))
  assert.equal(successor(1, long.slice(0, 16)), idOf(17))
  assert.is(codeOf(() => follow(fast, idOf(1), long)), 'trust/steps')
  const ring = Array.from({ length: 16 }, (_, i) => rotation(i + 1, (i + 1) % 16 + 1))
  assert.is(codeOf(() => follow(fast, idOf(1), ring)), 'trust/circle')
})

test('follow() gives the same whatever the order of the statements', () => {
  const all = [
    ...Array.from({ length: 8 }, (_, i) => rotation(i + 1, i + 2)),
    revocation(20),
    VOUCH,
  ]
  fc.assert(fc.property(fc.shuffledSubarray(all, { minLength: all.length }), (statements) => {
    assert.equal(successor(1, statements), idOf(9))
  }))
})

test('checkVouch() counts a vouch from its beginning to its end, with 10 minutes for clocks', () => {
  const at = (now: number, withdrawal?: Withdrawal) =>
    codeOf(() => checkVouch(VOUCH, { now, withdrawal }))
  assert.is(at(VOUCH.notBefore - STATEMENT_SKEW_MS - 1), 'statement/early')
  assert.is(at(VOUCH.notBefore - STATEMENT_SKEW_MS), undefined)
  assert.is(at(VOUCH.notAfter + STATEMENT_SKEW_MS), undefined)
  assert.is(at(VOUCH.notAfter + STATEMENT_SKEW_MS + 1), 'statement/expired')
  assert.is(at(TIME, WITHDRAWAL), 'statement/withdrawn')
  assert.is(at(TIME, { ...WITHDRAWAL, serials: [257, 259] }), undefined)
  assert.is(at(TIME, { ...WITHDRAWAL, authority: idOf(5) }), 'statement/authority')
})

test('newestWithdrawal() never goes back, and finds an authority that says two things', () => {
  const newer = { ...WITHDRAWAL, sequence: 10, serials: [] }
  assert.is(newestWithdrawal(undefined, WITHDRAWAL), WITHDRAWAL)
  assert.is(newestWithdrawal(WITHDRAWAL, newer), newer)
  assert.is(newestWithdrawal(WITHDRAWAL, { ...WITHDRAWAL }).sequence, 9)
  assert.is(codeOf(() => newestWithdrawal(newer, WITHDRAWAL)), 'statement/stale')
  const other = { ...WITHDRAWAL, serials: [1] }
  assert.is(codeOf(() => newestWithdrawal(WITHDRAWAL, other)), 'trust/split')
  const foreign = { ...WITHDRAWAL, authority: idOf(5) }
  assert.is(codeOf(() => newestWithdrawal(WITHDRAWAL, foreign)), 'statement/authority')
})

test('the table of kinds is unchanged', () => {
  assert.equal({ ...STATEMENT }, { rotation: 1, revocation: 2, vouch: 3, withdrawal: 4 })
})

test.run()
