/** Codes as people type them, and what is refused with the nearest word named. */
// runtimes: bun, node, deno
import { wordlist } from '@scure/bip39/wordlists/english.js'
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { completeCode, formatCode, makeWords, parseCode } from '../../core/code.ts'
import { codeOf, fast, filled, seededCrypto } from '../support/crypto.ts'

const test = suite('core/code')

const CODE = { room: 7, words: 'crop-lamp-vivid' }

test('parseCode() reads what formatCode() writes', () => {
  const room = fc.integer({ min: 1, max: 999_999_999 })
  const word = fc.constantFrom(...wordlist)
  fc.assert(fc.property(room, fc.array(word, { minLength: 3, maxLength: 3 }), (number, words) => {
    const code = { room: number, words: words.join('-') }
    assert.equal(parseCode(formatCode(code.room, code.words)), code)
    const short = words.map((one) => one.slice(0, 4).toUpperCase()).join('  ')
    assert.equal(parseCode(` ${number} ${short}\n`), code)
  }))
})

test('parseCode() takes any case, blanks, hyphens of all kinds and first letters', () => {
  for (
    const text of [
      '7-crop-lamp-vivid',
      '7 Crop Lamp Vivid',
      '  7-CROP-LAMP-VIVI ',
      '7–crop—lamp‑vivid',
      '7 - crop -\tlamp - vivi',
      '7-crop-lamp-vivid-',
      '７-crop-lamp-vivid',
    ]
  ) assert.equal(parseCode(text), CODE, text)
})

test('parseCode() refuses what is no code', () => {
  for (
    const text of [
      '',
      '7',
      'crop-lamp-vivid',
      '7-crop-lamp',
      '7-crop-lamp-vivid-zoo',
      '0-crop-lamp-vivid',
      '07-crop-lamp-vivid',
      '-7-7-crop-lamp-vivid',
      '1234567890-crop-lamp-vivid',
      '7-'.padEnd(200, 'x'),
    ]
  ) assert.is(codeOf(() => parseCode(text)), 'code/format', text)
})

function wrongWord(text: string): { message: string; hint?: string } {
  try {
    parseCode(text)
  } catch (error) {
    assert.is((error as { code: string }).code, 'code/word', text)
    return error as { message: string; hint?: string }
  }
  throw new Error(`${text} was read`)
}

test('parseCode() names the unknown word and the nearest one', () => {
  for (
    const [typed, near] of [
      ['crpo', 'crop'],
      ['vivd', 'vivid'],
      ['lapm', 'lamp'],
      ['abondon', 'abandon'],
      ['zooo', 'zoo'],
    ] as const
  ) {
    const error = wrongWord(`7-${typed}-lamp-vivid`)
    assert.match(error.message, JSON.stringify(typed))
    assert.match(error.hint!, JSON.stringify(near))
  }
  assert.is(wrongWord('7-xxxxxxxxxxxx-lamp-vivid').hint, undefined, 'nothing is near')
  wrongWord('7-cro-lamp-vivid')
  wrongWord('7-cropx-lamp-vivid')
})

test('first four letters lead to one word each, and no letters of another', () => {
  assert.is(new Set(wordlist.map((word) => word.slice(0, 4))).size, 2048)
  for (const word of wordlist) {
    assert.is(parseCode(`1-${word.slice(0, 4)}-zoo-zoo`).words, `${word}-zoo-zoo`)
  }
})

test('formatCode() refuses what parseCode() would read otherwise', () => {
  assert.is(formatCode(7, CODE.words), '7-crop-lamp-vivid')
  for (const words of ['crop-lamp-vivi', 'Crop-lamp-vivid', 'crop lamp vivid', 'crop-lamp']) {
    assert.is(codeOf(() => formatCode(7, words)), 'code/format', words)
  }
  for (const room of [0, -1, 1.5, 1e9, NaN]) {
    assert.is(codeOf(() => formatCode(room, CODE.words)), 'code/format', `${room}`)
  }
})

test('makeWords() uses 11 bits a word, all words alike', () => {
  const bytes = (value: number) => ({ ...fast, randomBytes: (n: number) => filled(value, n) })
  assert.is(makeWords(bytes(0)), 'abandon-abandon-abandon')
  assert.is(makeWords(bytes(0xff)), 'zoo-zoo-zoo')
  const crypto = seededCrypto('words')
  const seen = new Set<string>()
  for (let i = 0; i < 500; i++) {
    const words = makeWords(crypto)
    assert.is(parseCode(formatCode(1, words)).words, words)
    for (const word of words.split('-')) seen.add(word)
  }
  // 1,500 draws of 2,048 words leave about half of them out; a smaller list would show.
  assert.ok(seen.size > 950 && seen.size < 1250, `${seen.size} words`)
})

test('completeCode() goes on with the word that was begun, and with nothing else', () => {
  assert.equal(
    completeCode('7-cro'),
    [
      '7-crop-',
      '7-cross-',
      '7-crouch-',
      '7-crowd-',
      '7-crucial-',
    ].slice(0, 4),
  )
  assert.equal(completeCode('7 CROP lam'), ['7-crop-lamp-'])
  assert.equal(completeCode('7-crop-lamp-viv'), ['7-crop-lamp-vivid'])
  assert.equal(completeCode('7-crop-lamp-vivid'), ['7-crop-lamp-vivid'])
  for (
    const text of ['', '7', '7-', 'crop', '7-xyz', '7-xyzzy-l', '7-crop-lamp-vivid-z', 'x-cro']
  ) {
    assert.equal(completeCode(text), [], text)
  }
  assert.is(completeCode('7-s').length, 32)
})

test.run()
