/** Bodies of messages on terminals, in pipes and in JSON: nothing moves a cursor, nothing is lost. */
import * as fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { bodyFields, BodyOutput, Characters } from '../../agent/cli/letter.ts'
import { concat, EMPTY, utf8 } from '../../core/bytes.ts'
import { Output } from '../support/cli.ts'

const test = suite('agent/letter')

test('a terminal gets no control characters, and the next message a line of its own', async () => {
  const terminal = new Output(80)
  const body = new BodyOutput(terminal)
  // Pieces that divide an escape sequence and a character.
  const bytes = utf8('a\x1b[2Jb\x07\r\nc\u009b1m\u202ed\tü')
  for (const byte of bytes) await body.write(Uint8Array.of(byte))
  body.end()
  assert.is(terminal.text, 'a [2Jb  \nc 1m d\tü\n')
  await body.write(utf8('whole line\n'))
  body.end()
  assert.ok(terminal.text.endsWith('whole line\n'))
})

test('a pipe gets the bytes as they were sent', async () => {
  const parts: Uint8Array[] = []
  const body = new BodyOutput({
    write: (part) => void parts.push(part as Uint8Array),
    isTTY: false,
    columns: 80,
  })
  const bytes = Uint8Array.of(0, 27, 91, 255, 10)
  await body.write(bytes)
  bytes.fill(7)
  body.end()
  assert.equal(concat(...parts), Uint8Array.of(0, 27, 91, 255, 10))
})

test('JSON has text where it is text, and base64 where not', () => {
  assert.equal(bodyFields(utf8('hé\n')), { text: 'hé\n' })
  assert.equal(bodyFields(EMPTY), { text: '' })
  const bytes = new Uint8Array(100_000).map((_, i) => i * 7)
  const { base64 } = bodyFields(bytes) as { base64: string }
  assert.equal(new Uint8Array(Buffer.from(base64, 'base64')), bytes)
})

test('pieces of a stream never divide a character, and together are all of it', () => {
  fc.assert(fc.property(
    fc.string({ unit: 'grapheme' }),
    fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 1 }),
    (words, steps) => {
      const bytes = utf8(words)
      const cut = new Characters()
      let got = ''
      for (let at = 0, i = 0; at < bytes.length; i++) {
        const step = steps[i % steps.length]!
        const piece = cut.push(bytes.subarray(at, at + step))
        got += new TextDecoder('utf-8', { fatal: true }).decode(piece)
        at += step
      }
      assert.is(got, words)
      assert.is(cut.end().length, 0)
    },
  ))
})

test('bytes that are no UTF-8 pass all the same', () => {
  fc.assert(fc.property(fc.array(fc.uint8Array({ maxLength: 9 })), (parts) => {
    const cut = new Characters()
    const got = [...parts.map((part) => cut.push(part).slice()), cut.end()]
    assert.equal(concat(...got), concat(...parts))
  }))
})

test.run()
