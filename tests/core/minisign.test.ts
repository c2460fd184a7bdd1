// Signatures of releases. The vector was made by minisign 0.11 ("minisign -G -W", "minisign -S -t"):
// tests/compile/release.test.ts has the program itself check ours. Each defence is attacked.
import { base64 } from '@scure/base'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { hex, utf8 } from '../../core/bytes.ts'
import { TunnelError } from '../../core/errors.ts'
import { nobleCrypto as crypto } from '../../core/crypto.ts'
import {
  decodeMinisignKey,
  decodeMinisignSecret,
  encodeMinisignKey,
  encodeMinisignSecret,
  formatKeyId,
  makeMinisignSecret,
  signMinisign,
  verifyMinisign,
} from '../../core/minisign.ts'

const MESSAGE = utf8('sotto')
const COMMENT = 'sotto 1.2.3'
const PUBLIC = `untrusted comment: minisign public key 52A8D9E11A52787
RWSHJ6URno0qBdWr5mnftHioiw+DjUF0u9IWNBJKuBVWmzb+DnT3IFLR
`
/** A key for tests alone: it signs nothing that anybody trusts. */
const SECRET = `untrusted comment: minisign encrypted secret key
RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAhyelEZ6NKgWzMenW7kfOtmc9fnWJfrUS91RmhKTD2jAUnhGSnQ94QdWr5mnftHioiw+DjUF0u9IWNBJKuBVWmzb+DnT3IFLRAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
`
const SIGNED = `untrusted comment: signature from minisign secret key
RUSHJ6URno0qBQA4Y5swhZVta/qNN82wfOIYUebLB/zjouZx9zK7YouuMnbx/Ep9KhNUCy/kODx6RttuynhnLnS9hvbvbEIpeAc=
trusted comment: sotto 1.2.3
K/oJ0EKFPkmlN16GttZ9G11IF3vrOxkRrOP2BtGxBQZNAiVLKelpVQxD4sd1SHnLPLbyBiQMRDbPwpD0LyLgCA==
`
/** The same key's signature over the message itself, as minisign made them before 2019. */
const OLD_KIND = `untrusted comment: signature from minisign secret key
RWSHJ6URno0qBZU5vnijti4Qac4ddyU37A7H/hYJrJDvu+WG8pZpLObDVhvYtzU7RG8L5o3f6miJLYtaIcNSoG/p6FhontM68ww=
trusted comment: old kind
Yuf/rb+B1e47E6KRo+6pWyE2DRupho3QYgX2x+CfnHa9Pq5o+XM9YZr5wVqATqbm2/iuPESSuPt7c5CFGnCjBQ==
`
const KEY = decodeMinisignKey(PUBLIC)

const test = suite('core/minisign')

function codeOf(run: () => unknown): string {
  try {
    run()
  } catch (error) {
    return (error as TunnelError).code
  }
  return 'none'
}

const check = (signature: string, message = MESSAGE, keys = [KEY]) =>
  codeOf(() => verifyMinisign(message, { signature, keys, crypto }))

/** The vector with other bytes in one of its two base64 lines. */
function altered(line: 1 | 3, change: (bytes: Uint8Array) => void): string {
  const lines = SIGNED.split('\n')
  const bytes = base64.decode(lines[line]!)
  change(bytes)
  lines[line] = base64.encode(bytes)
  return lines.join('\n')
}

test('BLAKE2b-512 gives the example of RFC 7693, appendix A', () => {
  assert.is(
    hex(crypto.blake2b(utf8('abc'), 64)),
    'ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d1' +
      '7d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923',
  )
})

test('the keys of minisign are read, and written as it writes them', () => {
  const secret = decodeMinisignSecret(SECRET, crypto)
  assert.equal(secret.public32, KEY.public32)
  assert.equal(secret.id, KEY.id)
  assert.is(formatKeyId(KEY), '52A8D9E11A52787')
  assert.is(encodeMinisignKey(KEY), PUBLIC)
  assert.equal(decodeMinisignKey(PUBLIC.split('\n')[1]!), KEY, 'the base64 alone')
  assert.equal(decodeMinisignSecret(encodeMinisignSecret(secret, crypto), crypto), secret)
})

test('the signature of minisign holds, and ours over the same is the same', () => {
  const found = verifyMinisign(MESSAGE, { signature: SIGNED, keys: [KEY], crypto })
  assert.is(found.trustedComment, COMMENT)
  const secret = decodeMinisignSecret(SECRET, crypto)
  assert.is(signMinisign(MESSAGE, { secret, trustedComment: COMMENT, crypto }), SIGNED)
})

test('of several keys the one whose id it names decides', () => {
  const other = makeMinisignSecret(crypto)
  assert.is(check(SIGNED, MESSAGE, [other, KEY]), 'none')
  assert.is(check(SIGNED, MESSAGE, [other]), 'minisign/unknown')
  assert.is(check(SIGNED, MESSAGE, []), 'minisign/unknown')
  // Another key under the same id is not that key.
  assert.is(check(SIGNED, MESSAGE, [{ ...other, id: KEY.id }]), 'minisign/forged')
})

test('another message, comment, signature or global signature is forged', () => {
  assert.is(check(SIGNED, utf8('sottp')), 'minisign/forged')
  assert.is(check(SIGNED.replace('1.2.3', '1.2.4')), 'minisign/forged')
  for (const at of [10, 41, 42, 73]) {
    assert.is(check(altered(1, (bytes) => void (bytes[at]! ^= 1))), 'minisign/forged', `${at}`)
  }
  for (const at of [0, 31, 32]) {
    assert.is(check(altered(3, (bytes) => void (bytes[at]! ^= 1))), 'minisign/forged', `${at}`)
  }
})

test('the untrusted comment is nobody’s word and may be anything', () => {
  assert.is(check(SIGNED.replace('signature from', 'whatever')), 'none')
})

test('an id that is not signed cannot bring in another key', () => {
  assert.is(check(altered(1, (bytes) => void (bytes[2]! ^= 1))), 'minisign/unknown')
})

test('the old kind, whose message is not hashed first, is refused', () => {
  assert.is(check(OLD_KIND), 'minisign/signature')
})

test('the relabelled old kind does not hold', () => {
  const bytes = base64.decode(OLD_KIND.split('\n')[1]!)
  bytes.set(utf8('ED'))
  assert.is(check(OLD_KIND.replace(/RWS.*/, base64.encode(bytes))), 'minisign/forged')
})

test('what is no signature file is refused: every prefix, more lines, other words', () => {
  const whole = SIGNED.trimEnd()
  for (let length = 0; length < whole.length; length++) {
    const code = check(whole.slice(0, length))
    assert.ok(['minisign/signature', 'minisign/forged'].includes(code), `${length}: ${code}`)
  }
  assert.is(check(`${SIGNED}one more\n`), 'minisign/signature')
  assert.is(check(SIGNED.replace('trusted comment: sotto', 'comment: sotto')), 'minisign/signature')
  assert.is(check(SIGNED.replace('untrusted', 'trusted')), 'minisign/signature')
  assert.is(check(`${SIGNED}${' '.repeat(20_000)}`), 'minisign/signature')
  assert.is(check(SIGNED.replaceAll('\n', '\r\n')), 'none', 'an editor’s line ends')
})

test('a trusted comment that could steer a terminal is refused, signed or not', () => {
  const secret = decodeMinisignSecret(SECRET, crypto)
  for (const trustedComment of ['a\u001b[2Jb', 'a\nb', 'é', 'x'.repeat(1025)]) {
    assert.is(
      codeOf(() => signMinisign(MESSAGE, { secret, trustedComment, crypto })),
      'minisign/comment',
    )
  }
  assert.is(check(SIGNED.replace('sotto 1', 'sotto\u001b[2J 1')), 'minisign/comment')
})

test('keys that are cut, longer, of another kind, encrypted or of two halves are refused', () => {
  const secret = (change: (bytes: Uint8Array) => Uint8Array | void): string => {
    const bytes = base64.decode(SECRET.split('\n')[1]!)
    const line = base64.encode(change(bytes) ?? bytes)
    return codeOf(() => decodeMinisignSecret(line, crypto))
  }
  assert.is(secret(() => {}), 'none')
  assert.is(secret((bytes) => bytes.subarray(0, -1)), 'minisign/key')
  assert.is(secret((bytes) => void bytes.set(utf8('EE'))), 'minisign/key')
  assert.is(secret((bytes) => void bytes.set(utf8('Sc'), 2)), 'minisign/key')
  assert.is(secret((bytes) => void bytes.set(utf8('XX'), 4)), 'minisign/key')
  assert.is(secret((bytes) => void (bytes[70]! ^= 1)), 'minisign/key')
  assert.is(secret((bytes) => void (bytes[100]! ^= 1)), 'minisign/key')
  assert.is(secret((bytes) => void (bytes[157]! ^= 1)), 'minisign/key')
  for (const text of ['', 'RWSH', `${PUBLIC}x`, 'comment\nRWSH', SECRET, 'x'.repeat(20_000)]) {
    assert.is(codeOf(() => decodeMinisignKey(text)), 'minisign/key', text.slice(0, 20))
  }
})

test.run()
