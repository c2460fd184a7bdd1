// seconds: 240
// Every code that a source can give has a page, and every page is of such a code. The codes are found
// by types (tests/support/error_codes.ts), so that neither side is a list somebody keeps.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { everyPage } from '../../agent/cli/program.ts'
import { everyError, nearestCodes } from '../../agent/errors/table.ts'
import { renderErrors } from '../../compile/errors.ts'
import { Place } from '../support/cli.ts'
import { scanCodes } from '../support/error_codes.ts'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))

const test = suite('agent/explain')
const modules = await everyError()
const pages = Object.entries(modules).flatMap(([name, { codes }]) =>
  Object.entries(codes).map(([reason, text]) => ({ code: `${name}/${reason}`, text }))
)
const codes = pages.map(({ code }) => code)
const scan = scanCodes(ROOT, ['core', 'agent', 'relay'])
let place: Place

test.before(async () => void (place = await Place.make()))
test.after(() => place.close())

test('every code that a source gives has a page', () => {
  const known = new Set(codes)
  const without = [...scan.codes].filter(([code]) => !known.has(code))
    .map(([code, [use]]) => `${code} (${use!.file}:${use!.line})`)
  assert.equal(without, [], 'write their pages in agent/errors/')
})

test('no page is left of a code that no source gives any more', () => {
  assert.equal(codes.filter((code) => !scan.codes.has(code)), [])
})

test('no code is put together in a way that the scan cannot follow', () => {
  assert.equal(scan.open, [])
})

test('the scan sees literals, tables, templates, and the modules of readers', () => {
  for (
    const code of [
      'cli/unknown',
      'stream/draining',
      'pair/forged',
      'passport/truncated',
      'files/denied',
      'certificate/purpose',
      'a2a/busy',
      'quota/exceeded',
    ]
  ) assert.ok(scan.codes.has(code), code)
})

test('each page says what, why and what to do, in whole sentences', () => {
  for (const { code, text } of pages) {
    assert.match(code, /^[a-z0-9]+\/[a-z0-9-]+$/)
    const [what, causes, remedy, command] = text
    for (const words of [what, causes, remedy]) {
      assert.match(words, /^["A-Z-].{4,}/, code)
      assert.not.match(words, / {2}|\bTODO\b/, code)
    }
    assert.match(what, /\.$/, code)
    if (command !== undefined) assert.match(command, /^sotto( |$)/, code)
  }
})

test('each command of a page is one that there is', async () => {
  const paths = new Set((await everyPage()).map(({ path }) => path))
  for (const { code, text: [, , , command] } of pages) {
    if (command === undefined) continue
    const words = command.split(' ').slice(1).filter((word) => /^[a-z][a-z0-9-]*$/.test(word))
    assert.ok(
      words.length === 0 ||
        words.some((_, i) => paths.has(`sotto ${words.slice(0, i + 1).join(' ')}`)),
      `${code}: ${command}`,
    )
  }
})

test('docs/errors.md is current; else: node_modules/.bin/bun compile/errors.ts > docs/errors.md', async () => {
  assert.is(readFileSync(join(ROOT, 'docs', 'errors.md'), 'utf8'), await renderErrors())
})

test('sotto explain CODE prints its page', async () => {
  const { code, stdout } = await place.run('explain', ['explain', 'trust/changed'])
  assert.is(code, 0)
  for (const title of ['what happened', 'likely causes', 'what to do', 'command']) {
    assert.match(stdout.text, new RegExp(`^${title}$`, 'm'))
  }
  assert.match(stdout.text, /sotto peers forget NAME/)
  for (const line of stdout.text.split('\n')) assert.ok(line.length <= 100, line)
})

test('sotto explain lists the modules, with a module its codes', async () => {
  const all = await place.run('explain', ['explain'])
  for (const name of Object.keys(modules)) {
    assert.match(all.stdout.text, new RegExp(`^  ${name} `, 'm'))
  }
  const one = await place.run('explain', ['explain', 'pair'])
  assert.is(one.code, 0)
  assert.match(one.stdout.text, /^ {2}pair\/guessed/m)
  assert.not.match(one.stdout.text, /trust\//)
})

test('sotto explain --json gives the parts', async () => {
  const { stdout } = await place.run('explain', ['explain', 'pair/guessed', '--json'])
  const { code, what, remedy, command } = JSON.parse(stdout.text) as Record<string, string>
  assert.is(code, 'pair/guessed')
  assert.ok(what && remedy)
  assert.is(command, 'sotto pair')
})

test('sotto explain offers the nearest of a code that is none', async () => {
  for (
    const [typed, meant] of [
      ['trust/chnaged', 'trust/changed'],
      ['pair/gessed', 'pair/guessed'],
      ['trsut', 'trust'],
      ['net/refuse', 'net/refused'],
    ]
  ) {
    const { code, stderr, stdout } = await place.run('explain', ['explain', typed!])
    assert.is(code, 1, typed)
    assert.is(stdout.text, '')
    assert.ok(stderr.text.includes(`Did you mean ${meant}`), stderr.text)
  }
})

test('sotto explain takes anything typed at it', async () => {
  for (const typed of ['__proto__', 'constructor/name', 'trust/__proto__', '/', 'a/b/c', 'ü', '']) {
    const { code, stderr } = await place.run('explain', ['explain', typed])
    assert.is(code, 1, typed)
    assert.match(stderr.text, /Cannot explain/)
  }
  const long = await place.run('explain', ['explain', 'x'.repeat(100_000)])
  assert.ok(long.stderr.text.length < 400)
})

test('nearestCodes() offers nothing that is far', () => {
  assert.equal(nearestCodes('qqqqqqqqqqqq', codes), [])
})

test.run()
