// What a terminal takes, by the variables that programs agree on, and QR codes that say what they should
// in each way of drawing them: read back module by module.
import { encode } from 'uqr'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { asciiWords, looksOf } from '../../agent/cli/looks.ts'
import { qrPicture } from '../../agent/cli/qr.ts'

const test = suite('agent/looks')

test('looksOf(): locales in the order of POSIX, NO_COLOR, TERM=dumb, plain', () => {
  const unicode = (env: Record<string, string>) => looksOf(env).unicode
  assert.is(unicode({}), true)
  assert.is(unicode({ LANG: 'de_DE.UTF-8' }), true)
  assert.is(unicode({ LANG: 'C.utf8' }), true)
  assert.is(unicode({ LANG: 'de_DE.UTF-8', LC_CTYPE: 'de_DE.ISO-8859-1' }), false)
  assert.is(unicode({ LANG: 'C', LC_ALL: 'C.UTF-8' }), true)
  assert.is(unicode({ LANG: 'C.UTF-8', LC_ALL: 'POSIX' }), false)
  assert.is(unicode({ LANG: 'C.UTF-8', LC_ALL: '' }), true)
  assert.is(looksOf({ NO_COLOR: '1' }).colours, false)
  assert.is(looksOf({ NO_COLOR: '' }).colours, true)
  assert.equal(looksOf({ TERM: 'dumb' }), {
    plain: false,
    moves: false,
    unicode: true,
    colours: false,
  })
  for (const value of ['1', 'yes', 'true']) assert.is(looksOf({ SOTTO_PLAIN: value }).plain, true)
  for (const value of ['', '0', 'no', 'OFF', 'false']) {
    assert.is(looksOf({ SOTTO_PLAIN: value }).plain, false)
  }
  assert.equal(looksOf({}, { plain: true }).moves, false)
})

test('asciiWords() leaves ASCII alone, and nothing else is left', () => {
  assert.is(asciiWords('2 visitors · 1 kB … “x” 🦊 é\n'), '2 visitors - 1 kB ... "x" ? ?\n')
  assert.is(asciiWords('\x1b[2K\r ~'), '\x1b[2K\r ~')
})

for (const unicode of [true, false]) {
  for (const colours of [true, false]) {
    test(`qrPicture() draws each module: unicode ${unicode}, colours ${colours}`, async () => {
      for (const words of ['https://web.example/', `https://x.example/${'y'.repeat(90)}`]) {
        const { data, size } = encode(words, { ecc: 'L', border: 2 })
        const { lines, width } = await qrPicture(words, { unicode, colours })
        assert.is(width, unicode ? size : size * 2)
        // deno-lint-ignore no-control-regex
        const bare = lines.map((line) => line.replace(/\x1b\[[0-9;]*m/g, ''))
        assert.ok(bare.every((line) => [...line].length === width))
        const isDrawn = (x: number, y: number): boolean => {
          if (!unicode) return bare[y]!.slice(x * 2, x * 2 + 2) === '##'
          const letter = [...bare[y >> 1]!][x]!
          return letter === '█' || letter === (y & 1 ? '▄' : '▀')
        }
        for (let y = 0; y < size; y++) {
          for (let x = 0; x < size; x++) assert.is(isDrawn(x, y), data[y]![x] === colours)
        }
      }
    })
  }
}

test.run()
