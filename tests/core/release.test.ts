// What a signed release says, and what is refused although it is signed.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { utf8 } from '../../core/bytes.ts'
import { nobleCrypto as crypto } from '../../core/crypto.ts'
import type { TunnelError } from '../../core/errors.ts'
import { makeMinisignSecret, signMinisign } from '../../core/minisign.ts'
import { compareVersions, encodeSums, openRelease, releaseComment } from '../../core/release.ts'

const secret = makeMinisignSecret(crypto)
const SUM = 'ab'.repeat(32)
const FILES = new Map([['sotto-linux-x64', SUM], ['sotto-darwin-arm64', 'cd'.repeat(32)]])

const test = suite('core/release')

function codeOf(run: () => unknown): string {
  try {
    run()
  } catch (error) {
    return (error as TunnelError).code
  }
  return 'none'
}

function open(sums: string, trustedComment = 'sotto 1.2.3', signed = sums) {
  const signature = signMinisign(utf8(signed), { secret, trustedComment, crypto })
  return openRelease(utf8(sums), { signature, keys: [secret], crypto })
}

test('a release tells its version and files', () => {
  const sums = encodeSums(FILES)
  assert.is(sums, `${'cd'.repeat(32)}  sotto-darwin-arm64\n${SUM}  sotto-linux-x64\n`)
  const release = open(sums, releaseComment('1.2.3'))
  assert.is(release.version, '1.2.3')
  assert.equal([...release.files].sort(), [...FILES].sort())
  assert.is(release.signedMs, undefined, 'lists of before the day was signed')
  const signedMs = Date.parse('2026-11-21T23:59:59Z')
  const dated = open(sums, releaseComment('1.2.3-rc.1', signedMs))
  assert.is(releaseComment('1.2.3-rc.1', signedMs), 'sotto 1.2.3-rc.1 2026-11-21')
  assert.is(dated.version, '1.2.3-rc.1')
  assert.is(dated.signedMs, Date.parse('2026-11-21'))
})

test('a day that is none, or words after it, are refused though they are signed', () => {
  for (const day of ['', '20261121', '2026-02-31', '2026-13-01', '2026-11-21 x', '2026-11-21 ']) {
    const sums = encodeSums(FILES)
    assert.is(codeOf(() => open(sums, `sotto 1.2.3 ${day}`)), 'release/malformed', day)
  }
})

test('sums that were changed after they were signed are forged', () => {
  const sums = encodeSums(FILES)
  assert.is(
    codeOf(() => open(sums.replace('ab', 'ba'), 'sotto 1.2.3', sums)),
    'minisign/forged',
  )
})

test('the signature of another program, or of no version, is refused', () => {
  for (const comment of ['other 1.2.3', 'sotto', 'sotto 1.2', 'sotto v1.2.3', 'sotto 1.2.3\t4']) {
    assert.is(codeOf(() => open(encodeSums(FILES), comment)), 'release/malformed', comment)
  }
})

test('lines that are no sum and name are refused, though they are signed', () => {
  for (
    const sums of [
      `${SUM}  sotto`,
      `${SUM} sotto\n`,
      `${SUM.toUpperCase()}  sotto\n`,
      `${SUM}  ../sotto\n`,
      `${SUM}  -rf\n`,
      `${SUM}  .bashrc\n`,
      `${SUM}  a/b\n`,
      `${SUM}  sotto\r\n`,
      `${SUM}  sotto\n\n`,
      `${SUM}  sotto\n${'cd'.repeat(32)}  sotto\n`,
      `${SUM}  ${'s'.repeat(200)}\n`,
    ]
  ) assert.is(codeOf(() => open(sums)), 'release/malformed', JSON.stringify(sums))
  assert.is(codeOf(() => open(`${SUM}  a\n`.repeat(2000))), 'release/malformed', 'too long')
  assert.is(codeOf(() => encodeSums(new Map([['a b', SUM]]))), 'release/malformed')
})

test('versions are in the order of Semantic Versioning §11', () => {
  const order = [
    '0.1.0',
    '0.2.0',
    '0.10.0',
    '1.0.0-alpha',
    '1.0.0-alpha.1',
    '1.0.0-alpha.beta',
    '1.0.0-beta',
    '1.0.0-beta.2',
    '1.0.0-beta.11',
    '1.0.0-rc.1',
    '1.0.0',
    '2.0.0',
  ]
  for (const [i, a] of order.entries()) {
    for (const [j, b] of order.entries()) {
      assert.is(Math.sign(compareVersions(a, b)), Math.sign(i - j), `${a} ${b}`)
    }
  }
  for (const version of ['', '1', '1.2', '01.2.3', '1.2.3 ', '1.2.3-', `1.2.${'9'.repeat(80)}`]) {
    assert.is(codeOf(() => compareVersions(version, '1.0.0')), 'release/malformed', version)
  }
})

test.run()
