/** `sotto identity` at a terminal and for programs: what is printed, what is kept, what is refused. */
import { chmod, readFile, stat } from 'node:fs/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { formatKey } from '../../core/key.ts'
import { openStatement } from '../../core/statement.ts'
import { Place } from '../support/cli.ts'
import { fast } from '../support/crypto.ts'

const test = suite('agent/identity')
let place: Place
test.before.each(async () => void (place = await Place.make()))
test.after.each(() => place.close())

const identity = async (...argv: string[]) => await place.run('own', ['identity', ...argv])
const said = (words: string) =>
  openStatement(fast, Uint8Array.from(atob(words), (letter) => letter.charCodeAt(0)))

/** Without colours. */
function bare(words: string): string {
  // deno-lint-ignore no-control-regex
  return words.replace(/\x1b\[[0-9;]*m/g, '')
}

test('a revocation certificate is text for programs, and a QR code besides at a terminal', async () => {
  const { key, fingerprint } = (await identity('--json')).stdout.objects[0]!
  const plain = await identity('revoke-certificate')
  const statement = said(plain.stdout.text.trim())
  assert.is(statement.kind, 'revocation')
  assert.is(statement.kind === 'revocation' && formatKey(statement.identity), key)
  assert.match(plain.stderr.text, fingerprint)
  const json = (await identity('revoke-certificate', '--json')).stdout.objects[0]!
  assert.is(said(json['statement']).kind, 'revocation')
  const shown = await place.run('own', ['identity', 'revoke-certificate'], { columns: 80 })
  const [text, ...code] = shown.stdout.text.trimEnd().split('\n')
  assert.is(said(text!).kind, 'revocation')
  const lines = code.map(bare)
  assert.ok(lines.length > 20 && lines.every((line) => line.length <= 80), `${lines.length} lines`)
  assert.match(lines.join(''), /[█▀▄]/)
  // Nothing of it is kept here, or it would be stolen with the key.
  const path = (await identity('--json')).stdout.objects[0]!['path']
  assert.not.match(await readFile(path, 'utf8'), text!.slice(0, 40))
})

const LOOKS: [env: Record<string, string>, columns: number, code: RegExp | undefined][] = [
  [{ LANG: 'C' }, 160, /^[ #\n]+$/],
  [{ LANG: 'C', NO_COLOR: '1' }, 160, /^[ #\n]+$/],
  [{ LANG: 'C.UTF-8', NO_COLOR: '1' }, 80, /^[ █▀▄\n]+$/],
  [{ LANG: 'C' }, 80, undefined],
  [{ SOTTO_PLAIN: '1' }, 160, undefined],
]
for (const [env, columns, code] of LOOKS) {
  test(`${JSON.stringify(env)}, ${columns} columns: ${code ?? 'no picture'}`, async () => {
    const shown = await place.run('own', ['identity', 'revoke-certificate'], { columns, env })
    const [text, ...rest] = shown.stdout.text.trimEnd().split('\n')
    assert.is(said(text!).kind, 'revocation')
    if (code) assert.match(bare(rest.join('\n')), code)
    else assert.equal(rest, [])
  })
}

test('-o makes a file for its owner alone, and writes over none', async () => {
  const file = `${place.dir}/end`
  assert.is((await identity('revoke-certificate', '-o', file)).code, 0)
  assert.is((await stat(file)).mode & 0o777, 0o600)
  const before = await readFile(file, 'utf8')
  const again = await identity('revoke-certificate', '--out', file)
  assert.is(again.code, 1)
  assert.match(again.stderr.text, /it is there already/)
  assert.is(await readFile(file, 'utf8'), before)
})

test('an authority has a paper too; a key that others may read is refused', async () => {
  const made = await place.run('own', ['authority', 'init', 'ops', '--json'])
  const { key } = made.stdout.objects[0]!
  const file = `${place.home('own')}/authorities/ops`
  const paper = await identity('revoke-certificate', '--key-file', file)
  const statement = said(paper.stdout.text.trim())
  assert.is(statement.kind === 'revocation' && formatKey(statement.identity), key)
  await chmod(file, 0o644)
  const wide = await place.run('own', ['authority', 'sign', key])
  assert.is(wide.code, 1)
  assert.match(wide.stderr.text, /found mode 0644, expected 0600/)
  const gone = await identity('revoke-certificate', '--key-file', `${file}-2`)
  assert.match(gone.stderr.text, /it is not there/)
})

test('what is no revocation certificate is refused before a relay is asked', async () => {
  const file = `${place.dir}/words`
  const { key } = (await identity('--json')).stdout.objects[0]!
  await place.run('own', ['authority', 'init', 'ops'])
  await place.run('own', ['authority', 'sign', key, '-o', file])
  for (
    const [argv, code, words] of [
      [['revoke'], 2, /expected --certificate FILE/],
      [['revoke', '--certificate', `${file}-2`], 1, /it is not there/],
      [['revoke', '--certificate', file], 1, /found a vouch in it/],
    ] as const
  ) {
    const got = await identity(...argv)
    assert.is(got.code, code, got.stderr.text)
    assert.match(got.stderr.text, words)
  }
})

test('rotate without a relay keeps its word for later, and changes the key at once', async () => {
  const before = (await identity('--json')).stdout.objects[0]!
  const rotated = await identity('rotate', '--json')
  assert.is(rotated.code, 0)
  const [line] = rotated.stdout.objects
  assert.equal([line!['event'], line!['before']], ['rotated', before['fingerprint']])
  assert.match(rotated.stderr.text, /no relay was told yet[^]*Start again whatever runs here/)
  const after = (await identity('--json')).stdout.objects[0]!
  assert.equal([after['key'], after['fingerprint']], [line!['key'], line!['fingerprint']])
  assert.is.not(after['key'], before['key'])
})

test.run()
