// What a person sees: lines that stay, one that lives, sentences that are not repeated; plain lines
// without a terminal; and nothing that a relay or a visitor says may move the cursor.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  bytesWords,
  columns,
  describeCounts,
  printable,
  Screen,
  waitWords,
} from '../../agent/cli/screen.ts'
import { ManualClock } from '../../core/clock.ts'
import { TunnelError } from '../../core/errors.ts'
import { memoryConns } from '../../core/socket.ts'
import { Output } from '../support/cli.ts'

const test = suite('agent/screen')

function screenOf(width: number, json = false) {
  const clock = new ManualClock()
  const stdout = new Output(width)
  const stderr = new Output(width)
  const terminal = {
    stdout,
    stderr,
    stdio: () => memoryConns()[0],
    prompt: () => Promise.resolve(undefined),
  }
  return { clock, stdout, stderr, screen: new Screen({ terminal, clock }, { json }) }
}

const FACTS = [
  { name: 'url', value: 'https://web.example/', line: 'https://web.example/' },
  { name: 'upstream', value: 'localhost:3000', line: 'leads to localhost:3000\n' },
  { name: 'key', value: 'abc' },
]

test('without a terminal the lines are plain, and there is no living line', () => {
  const { screen, stdout, clock } = screenOf(0)
  screen.show('up', FACTS)
  screen.follow(() => '1 visitor now')
  clock.advance(5000)
  screen.close()
  assert.is(stdout.text, 'https://web.example/\nleads to localhost:3000\n')
  assert.is(clock.pending, 0)
})

test('with --json each event is one object a line, for people nothing', () => {
  const { screen, stdout, stderr } = screenOf(80, true)
  screen.show('up', FACTS)
  screen.event('down', { reason: 'gone', retryInMs: 400 })
  screen.follow(() => '1 visitor now')
  screen.close()
  assert.equal(stdout.objects, [
    { event: 'up', url: 'https://web.example/', upstream: 'localhost:3000', key: 'abc' },
    { event: 'down', reason: 'gone', retryInMs: 400 },
  ])
  assert.is(stderr.text, '')
})

test('the living line is drawn when it changes, and stays the last line', () => {
  const { screen, stdout, stderr, clock } = screenOf(80)
  let status = 'one'
  screen.show('up', FACTS)
  screen.follow(() => status)
  const before = stdout.text.length
  clock.advance(10_000)
  assert.is(stdout.text.length, before, 'nothing changed, nothing was drawn')
  status = 'two'
  clock.advance(500)
  assert.is(stdout.text.slice(before), '\r\x1b[2K  two')
  screen.tell('relay lost')
  assert.is(stderr.text, 'relay lost\n')
  assert.ok(stdout.text.endsWith('\r\x1b[2K\r\x1b[2K  two'))
  screen.close()
  assert.ok(stdout.text.endsWith('two\n'))
  status = 'three'
  clock.advance(10_000)
  assert.not.match(stdout.text, /three/)
})

test('the living line never wraps, since a wrapped line could not be taken back', () => {
  const { screen, stdout } = screenOf(20)
  screen.follow(() => 'x'.repeat(100))
  assert.is(stdout.text.replace('\r\x1b[2K', '').length, 19)
  screen.close()
})

test('a fingerprint wider than the terminal is broken at a colon', () => {
  const { screen, stdout } = screenOf(80)
  const print = Array.from({ length: 32 }, () => 'AB').join(':')
  screen.show('up', [{ name: 'certificate', value: print, line: `certificate ${print}` }])
  const lines = stdout.lines
  assert.is(lines.length, 2)
  for (const line of lines) assert.ok(line.length < 80)
  assert.is(lines.join('').replace(/ +/g, ' ').trim().replace(': ', ':'), `certificate ${print}`)
})

test('a line that is there to be pasted is never broken', () => {
  const { screen, stdout } = screenOf(60)
  const line = `curl --cacert /a/${'long/'.repeat(10)}path https://web.example:8443/`
  screen.show('up', [{ name: 'curl', value: line, line, whole: true }])
  screen.close()
  assert.ok(stdout.text.includes(line))
})

test('on a terminal a sentence is broken between words, and an identity never', () => {
  const print = `SHA256:${'x'.repeat(43)}`
  for (const width of [80, 40, 24]) {
    const { screen, stderr, stdout } = screenOf(width)
    screen.tell(`first contact with localhost:8443: its identity ${print} is pinned now`, {
      hint: 'a hint that is much longer than the terminal, since it may be a command to be pasted',
    })
    screen.show('paired', [{ name: 'fingerprint', value: print, line: print }])
    assert.ok(stderr.lines.every((line) => line.length < width || /SHA256|hint/.test(line)))
    assert.ok(stderr.lines.some((line) => line.includes(print)), stderr.text)
    assert.ok(stderr.text.includes('longer than the terminal, since'))
    assert.is(stdout.text, `\n  ${print}\n\n`)
    assert.match(stderr.text.replaceAll('\n', ' '), /^first contact .* is pinned now a hint/)
  }
})

test('a sentence is said once a minute, a new one at once, and `again` always', () => {
  const { screen, stderr, clock } = screenOf(0)
  for (let i = 0; i < 10; i++) screen.tell('upstream is down')
  screen.tell('something else')
  assert.is(stderr.lines.length, 2)
  clock.advance(60_000)
  screen.tell('upstream is down')
  screen.tell('upstream is down', { again: true })
  assert.is(stderr.lines.length, 4)
})

test('trouble is a sentence with its hint, and one object with --json', () => {
  const error = new TunnelError('net/refused', 'Cannot connect', { hint: 'Start it' })
  const people = screenOf(0)
  people.screen.trouble(error)
  assert.is(people.stderr.text, 'Cannot connect\nStart it\n')
  const programs = screenOf(0, true)
  programs.screen.trouble(error)
  assert.equal(programs.stdout.objects, [{
    event: 'trouble',
    code: 'net/refused',
    message: 'Cannot connect',
    hint: 'Start it',
  }])
})

test('what a relay says cannot move the cursor, change colours or begin a line', () => {
  const { screen, stderr } = screenOf(80)
  screen.tell('the relay says: \x1b[2J\x1b[31mred\r\nfake line\x07\u202eevil\x9b1m', {
    hint: 'a\nb',
  })
  // deno-lint-ignore no-control-regex
  assert.not.match(stderr.text, /[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]/)
  assert.is(stderr.lines.length, 2)
  assert.is(printable('a\u2028b\u2066c'), 'a b c')
})

test('byte counts keep three digits and go over to the next unit in time', () => {
  const table: [number, string][] = [
    [0, '0 B'],
    [999, '999 B'],
    [1000, '1 kB'],
    [1234, '1.23 kB'],
    [9999, '10 kB'],
    [99_949, '99.9 kB'],
    [999_499, '999 kB'],
    [999_500, '1 MB'],
    [1_500_000_000, '1.5 GB'],
    [Number.MAX_SAFE_INTEGER, '9.01 PB'],
  ]
  for (const [bytes, words] of table) assert.is(bytesWords(bytes), words)
})

test('waits and counts are said as people say them', () => {
  assert.equal([0, 120, 949, 1000, 4000, 30_000, 120_000].map(waitWords), [
    '0.1 s',
    '0.1 s',
    '0.9 s',
    '1 s',
    '4 s',
    '30 s',
    '2 min',
  ])
  assert.is(
    describeCounts({ visitors: 1, total: 14, bytesIn: 12_000, bytesOut: 3_400_000 }),
    '1 visitor now · 14 so far · 12 kB in · 3.4 MB out',
  )
})

test('tables are as wide as their longest entry', () => {
  assert.is(columns(['A', 'BB'], [['long', '1'], ['x', '']]), 'A     BB\nlong  1\nx\n')
})

test('a table that is wider than the terminal is told row by row', () => {
  const told = (columnsOf: number, isTTY = true): string =>
    columns(['A', 'BB'], [['long', '1'], ['x', '-']], { isTTY, columns: columnsOf })
  assert.is(told(7), 'a   long\nbb  1\n\na   x\nbb  -\n')
  assert.is(told(8), 'A     BB\nlong  1\nx     -\n')
  assert.is(told(7, false), told(8), 'for programs it is a table')
})

test.run()
