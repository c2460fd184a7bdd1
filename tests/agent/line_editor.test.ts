// One line at a terminal: what each key does, and that what is drawn never needs a second line.
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { LineEditor } from '../../agent/line_editor.ts'
import { completeCode } from '../../core/code.ts'

const test = suite('agent/line_editor')

function editor(columns = 80, question = 'Q: '): LineEditor {
  return new LineEditor({ question, columns, complete: completeCode })
}

/** What a terminal shows of the last line after these bytes. */
function shown(drawn: string): string {
  // deno-lint-ignore no-control-regex
  return drawn.split('\r').at(-1)!.replace(/\x1b\[[0-9]*[A-Z]/g, '').replace('\n', '')
}

for (
  const [what, keys, expected] of [
    ['letters', 'abc', 'abc'],
    ['Backspace, both codes', 'abc\x7f\x08', 'a'],
    ['Backspace on nothing', '\x7f\x7fx', 'x'],
    ['Left and a letter', 'ac\x1b[Db', 'abc'],
    ['Right at the end stays', 'a\x1b[Cb', 'ab'],
    ['Home, End in three dialects', 'b\x1b[Ha\x05c\x1bOH>\x1b[F<', '>abc<'],
    ['Delete', 'abc\x01\x1b[3~', 'bc'],
    ['Ctrl-D in the line deletes', 'abc\x01\x04', 'bc'],
    ['Ctrl-U takes what is before', 'abc\x1b[D\x15', 'c'],
    ['Ctrl-W takes a word', '7-crop-lamp\x17', '7-crop-'],
    ['Ctrl-W takes the separator with it', '7-crop-\x17', '7-'],
    ['keys that mean nothing', 'a\x1b[A\x1b[5~\x1bOP\x1bx\x00\x07b', 'ab'],
    ['no C1 control character', 'a\x9bb', 'ab'],
    ['letters beyond ASCII', 'é𝄞x\x7f', 'é𝄞'],
  ] as const
) {
  test(what, () => {
    const line = editor()
    line.feed(keys)
    assert.is(line.text, expected)
    // The same, a key at a time, with escape sequences cut anywhere.
    const slow = editor()
    for (const unit of keys.length === [...keys].length ? keys : [...keys]) slow.feed(unit)
    assert.is(slow.text, expected)
  })
}

test('Enter ends the line, and what came with it stays for the next', () => {
  for (const enter of ['\r', '\n']) {
    const line = editor()
    assert.equal(line.feed(`yes${enter}no`).outcome, 'line')
    assert.is(line.text, 'yes')
  }
  assert.is(editor().feed('a\rb\r').rest, 'b\r')
})

test('Ctrl-C interrupts anywhere, Ctrl-D ends an empty line alone', () => {
  assert.is(editor().feed('abc\x03').outcome, 'interrupt')
  assert.is(editor().feed('\x04').outcome, 'end')
  assert.is(editor().feed('a\x01\x04\x04').outcome, 'end')
})

test('Tab completes one way, goes as far as several agree, and then lists them', () => {
  const one = editor()
  one.feed('7-aban\t')
  assert.is(one.text, '7-abandon-')
  const several = editor()
  several.feed('7-aba\t')
  assert.is(several.text, '7-abandon-')
  const listed = editor(40)
  const { write } = listed.feed('7-ab\t')
  assert.is(listed.text, '7-ab')
  assert.match(write, /\r\nabandon {2}ability {2}able[a-z ]* …\r\n/)
  for (const line of write.split('\r\n')) assert.ok(shown(line).length < 40)
  const none = editor()
  none.feed('7-qq\t')
  assert.is(none.text, '7-qq')
})

test('a long question gets lines of its own, so that there is room to type', () => {
  const narrow = editor(40, 'The code that the other machine shows, please: ')
  assert.match(narrow.start(), /^The code that the other machine shows,\r\nplease:\r\n\r/)
  assert.is(shown(narrow.draw()), '> ')
  assert.is(shown(editor(120, 'The code: ').start()), 'The code: ')
})

test('whatever is typed, what is drawn fits one line and nothing in it moves the cursor elsewhere', () => {
  const key = fc.constantFrom('a', '-', '7', ' ', '\t', '\x1b[D', '\x1b[C', '\x7f', '\x01', '\x05')
  fc.assert(
    fc.property(
      fc.array(key, { maxLength: 300 }),
      fc.integer({ min: 20, max: 100 }),
      (keys, columns) => {
        const line = editor(columns)
        for (const one of keys) {
          const last = line.feed(one).write.split('\r\n').at(-1)!
          assert.ok(shown(last).length < columns, JSON.stringify(last))
          assert.ok([...shown(last)].every((letter) => letter >= ' '), JSON.stringify(last))
          assert.is(last.split('\r').length, 2)
        }
        assert.ok(line.text.length <= 256)
      },
    ),
    { verbose: true },
  )
})

test.run()
