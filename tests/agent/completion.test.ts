// seconds: 180
// What Tab offers: asked of the program in memory, and in the real shells, of which each that is not
// installed is named and left out: zsh gets Tab at a terminal of its own, fish is asked by its
// `complete -C`, bash by calling the function as it calls it.
import { spawnSync } from 'node:child_process'
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { everyPage } from '../../agent/cli/program.ts'
import { SCRIPTS, SHELLS } from '../../agent/cli/completion_scripts.ts'
import { Place } from '../support/cli.ts'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const SHELL_MS_MAX = 60_000
const KEY = 'a'.repeat(52)

const test = suite('agent/completion')
const bin = mkdtempSync(join(tmpdir(), 'sotto-complete-'))
const env = {
  PATH: `${bin}:${process.env['PATH']}`,
  HOME: bin,
  ZDOTDIR: bin,
  SOTTO_HOME: join(bin, 'home'),
  TERM: 'dumb',
  LC_ALL: 'C.UTF-8',
}
let place: Place

test.before(async () => {
  place = await Place.make()
  const path = join(bin, 'sotto')
  const bun = join(ROOT, 'node_modules', '.bin', 'bun')
  writeFileSync(path, `#!/bin/sh\nexec '${bun}' '${join(ROOT, 'agent', 'main.ts')}' "$@"\n`)
  chmodSync(path, 0o755)
  for (const name of ['alice', 'db.prod']) {
    spawnSync(path, ['peers', 'trust', name, KEY], { env, timeout: SHELL_MS_MAX })
    await place.run('me', ['peers', 'trust', name, KEY])
  }
})
test.after(async () => {
  rmSync(bin, { recursive: true, force: true })
  await place.close()
})

async function offered(...words: string[]): Promise<string[]> {
  const { code, stdout, stderr } = await place.run('me', ['complete', '--', ...words])
  assert.is(code, 0)
  assert.is(stderr.text, '')
  return stdout.lines.map((line) => line.split('\t')[0]!)
}

function shell(name: string, args: string[]): string | undefined {
  if (spawnSync('sh', ['-c', `command -v ${name}`]).status !== 0) {
    console.log(`    ${name} is not installed: not tried in it`)
    return undefined
  }
  const { stdout, stderr, error } = spawnSync(name, args, { env, timeout: SHELL_MS_MAX, cwd: bin })
  assert.not(error, String(error))
  return `${stdout}${stderr}`
}

test('commands are offered on each level, and each that there is', async () => {
  for (const { path } of await everyPage()) {
    const words = path.split(' ').slice(1)
    if (words.length > 0) assert.ok((await offered(...words)).includes(words.at(-1)!), path)
  }
  assert.equal(await offered('peers', 'tr'), ['trust'])
  const { stdout } = await place.run('me', ['complete', '--new', '--', 'completions'])
  assert.match(stdout.text, /^bash\t/)
})

test('every flag of every page is offered, and one that was given is not offered again', async () => {
  for (const { path, page } of await everyPage()) {
    if (!page) continue
    const found = await offered(...path.split(' ').slice(1), '--')
    for (const { name } of page.flags) assert.ok(found.includes(`--${name}`), `${path} --${name}`)
  }
  assert.not((await offered('http', '3000', '--json', '--j')).includes('--json'))
  assert.ok((await offered('http', '3000', '--label', 'a=b', '--lab')).includes('--label'))
})

test('values that are known are offered, in both ways to write them', async () => {
  assert.equal(await offered('http', '3000', '--e2ee', ''), ['true', 'false'])
  assert.equal(await offered('http', '3000', '--e2ee=f'), ['--e2ee=false'])
  assert.equal(await offered('tcp', '22', '--proxy-protocol', 'v'), ['v1', 'v2'])
  assert.equal(await offered('completions', 'z'), ['zsh'])
  assert.equal(await offered('explain', 'trust/chan'), ['trust/changed'])
})

test('pinned peers and services are offered where a page asks for them', async () => {
  assert.equal(await offered('peers', 'forget', ''), ['alice', 'db.prod'])
  assert.equal(await offered('a2a', 'send', 'al'), ['alice'])
  assert.ok((await offered('access', 'allow', 'alice', '')).includes('connect'))
  assert.ok((await offered('connect', '')).includes('alice'))
  assert.ok((await offered('access', 'allow', 'alice', 'connect', '')).includes('a2a'))
})

test('nothing is offered, and nothing said, where nothing is known', async () => {
  for (
    const words of [
      ['http', '3000', '--name', ''],
      ['no-such', ''],
      ['pair', '7-crop-'],
      ['a2a', 'listen', '--exec', 'ls', '--'],
      ['__proto__', ''],
      Array.from({ length: 500 }, () => 'x'),
    ]
  ) assert.equal(await offered(...words), [], words.join(' ').slice(0, 80))
})

test('a profile that cannot be read offers nothing and breaks no line', async () => {
  const lost = await Place.make()
  try {
    const { stdout, stderr, code } = await lost.start(
      'lost',
      ['complete', '--', 'a2a', 'send', ''],
      {
        env: { SOTTO_HOME: 'relative' },
      },
    ).then(async (run) => ({ ...run, code: await run.code }))
    assert.equal([code, stdout.text, stderr.text], [0, '', ''])
  } finally {
    await lost.close()
  }
})

test('sotto completions prints the script of each shell, and refuses others', async () => {
  for (const name of SHELLS) {
    const { code, stdout } = await place.run('me', ['completions', name])
    assert.is(code, 0)
    assert.is(stdout.text, SCRIPTS[name])
  }
  const { code, stderr } = await place.run('me', ['completions', 'csh'])
  assert.is(code, 2)
  assert.match(stderr.text, /expected bash, zsh, fish, powershell/)
})

test('bash: the real completion function answers', () => {
  const ask = (line: string, ...words: string[]): string[] | undefined =>
    shell('bash', [
      '--norc',
      '-c',
      `source <(sotto completions bash); COMP_LINE=$1; COMP_POINT=\${#1}; shift; COMP_WORDS=("$@")
       COMP_CWORD=$(($# - 1)); _sotto; [ \${#COMPREPLY[@]} -eq 0 ] || printf '%s\\n' "\${COMPREPLY[@]}"`,
      'bash',
      line,
      ...words,
    ])?.split('\n').filter(Boolean)
  const verbs = ask('sotto pe', 'sotto', 'pe')
  if (!verbs) return
  assert.equal(verbs, ['peers'])
  assert.equal(ask('sotto peers forget ', 'sotto', 'peers', 'forget', ''), ['alice', 'db.prod'])
  assert.equal(ask('sotto http 1 --e2ee=f', 'sotto', 'http', '1', '--e2ee', '=', 'f'), ['false'])
  assert.equal(ask('sotto http 1 --e2ee=', 'sotto', 'http', '1', '--e2ee', '='), ['true', 'false'])
})

test('bash: nothing of what was typed is run', () => {
  const out = shell('bash', [
    '--norc',
    '-c',
    'source <(sotto completions bash); COMP_WORDS=(sotto "$@"); COMP_CWORD=2; _sotto; ls',
    'bash',
    '$(touch ran)',
    '`touch ran`',
  ])
  if (out !== undefined) assert.not.match(out, /ran/)
})

test('zsh: Tab at a terminal completes', () => {
  writeFileSync(
    join(bin, '.zshrc'),
    'autoload -Uz compinit; compinit -u\nPS1="> "\nsource <(sotto completions zsh)\n',
  )
  const out = shell('zsh', [
    '-f',
    '-c',
    `zmodload zsh/zpty; zpty z zsh -i
     wait_for() { local all= part=; while zpty -r z part "*$1*"; do all+=$part; [[ $all == *$1* ]] && break; done; print -r -- $all }
     wait_for '> '
     zpty -w -n z $'sotto peers for\\t'; wait_for 'forget'
     zpty -w -n z $'al\\t'; wait_for 'alice'
     zpty -d z`,
  ])
  if (out === undefined) return
  assert.match(out, /forget/)
  assert.match(out, /alice/)
})

test('fish: its own completion answers', () => {
  const ask = (line: string): string[] | undefined =>
    shell('fish', ['--no-config', '-c', `sotto completions fish | source; complete -C "${line}"`])
      ?.split('\n').filter(Boolean).map((one) => one.split('\t')[0]!)
  const verbs = ask('sotto pe')
  if (!verbs) return
  assert.equal(verbs, ['peers'])
  assert.equal(ask('sotto peers forget '), ['alice', 'db.prod'])
  assert.equal(ask('sotto http 1 --e2ee=f'), ['--e2ee=false'])
  assert.equal(ask('sotto http 1 --e2ee '), ['false', 'true'])
})

test('PowerShell: the script parses', () => {
  writeFileSync(join(bin, 'sotto.ps1'), SCRIPTS.powershell)
  const check =
    '$e = $null; [void][System.Management.Automation.Language.Parser]::ParseFile("$PWD/sotto.ps1", [ref]$null, [ref]$e); $e.Count'
  const out = shell('pwsh', ['-NoProfile', '-Command', check])
  if (out !== undefined) assert.is(out.trim(), '0')
})

test.run()
