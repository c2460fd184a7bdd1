// What `--help` prints, word for word, against tests/transcripts/. After a change that is meant:
// SOTTO_TRANSCRIPTS=write bun tests/agent/pages.test.ts, and read the difference.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { everyPage, readArguments } from '../../agent/cli/program.ts'
import { Place } from '../support/cli.ts'

const TRANSCRIPTS = fileURLToPath(new URL('../transcripts', import.meta.url))
const WIDTH = 100

const test = suite('agent/pages')
const pages = await everyPage()
let place: Place

test.before(async () => void (place = await Place.make()))
test.after(() => place.close())

const fileOf = (path: string): string => `${path.replaceAll(' ', '-')}.txt`

test('--help of each command prints its page, which is its transcript', async () => {
  if (process.env['SOTTO_TRANSCRIPTS'] === 'write') {
    mkdirSync(TRANSCRIPTS, { recursive: true })
    for (const { path, text } of pages) writeFileSync(join(TRANSCRIPTS, fileOf(path)), text)
  }
  for (const { path } of pages) {
    const file = join(TRANSCRIPTS, fileOf(path))
    assert.ok(existsSync(file), `${path} has no transcript`)
    const { code, stdout, stderr } = await place.run('help', [
      ...path.split(' ').slice(1),
      '--help',
    ])
    assert.is(code, 0, path)
    assert.is(stderr.text, '', path)
    assert.is(stdout.text, readFileSync(file, 'utf8'), path)
  }
})

test('there is no transcript of a command that is gone', () => {
  assert.equal(readdirSync(TRANSCRIPTS).sort(), pages.map(({ path }) => fileOf(path)).sort())
})

test('each page has two examples at least, and its own arguments read them', () => {
  for (const { path, page } of pages) {
    if (!page) continue
    assert.ok(page.examples.length >= 2, path)
    for (const [typed] of page.examples) {
      const inner = /'(sotto [^']*)'/.exec(typed)?.[1]
      const words = (inner ?? typed.replace(/ >.*$/, '')).split(' ')
        .map((word) => word.replace(/^'(.*)'$/, '$1'))
      assert.is(words.slice(0, path.split(' ').length).join(' '), path)
      const given = readArguments(page, words.slice(path.split(' ').length))
      assert.not.equal(given, 'help', typed)
    }
  }
})

test('no line is wider than a page', () => {
  for (const { path, text } of pages) {
    for (const line of text.split('\n')) assert.ok(line.length <= WIDTH + 1, `${path}: ${line}`)
  }
})

test('no flag takes a secret: a command line is read by everybody on the machine', () => {
  for (const { path, page } of pages) {
    for (const { name, value } of page?.flags ?? []) {
      // The public half of what signs releases.
      if (!/key|token|secret|password/.test(name) || name === 'release-key') continue
      // A switch holds nothing: it has the key asked for.
      if (value === undefined) continue
      assert.is(value, 'PATH', `${path} --${name}`)
    }
  }
})

test.run()
