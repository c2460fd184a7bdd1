// seconds: 500
// wants: wasm-ld-19
/**
 * Where a Rust is that can build it, the committed module is built again from a copy of its source and must
 * come out byte for byte. Nobody else needs Rust: without it this suite is named as not run.
 */
import { spawnSync } from 'node:child_process'
import { cpSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { missingRust, PACKAGE } from '../support/rust.ts'

const RUN_MS_MAX = 400_000

const test = suite('compile/wireguard')

const missing = missingRust()
if (missing !== undefined) {
  console.log(`not run: ${missing}`)
  process.exit(0)
}

function run(command: string, args: readonly string[], cwd: string): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd,
    encoding: 'utf8',
    timeout: RUN_MS_MAX,
    killSignal: 'SIGKILL',
  })
  assert.is(status, 0, `${command}: ${error ?? ''}${stdout}${stderr}`.slice(-4000))
  return stdout
}

test('the committed module is what its source makes, in another folder', () => {
  const folder = mkdtempSync(join(tmpdir(), 'sotto-wireguard-'))
  try {
    cpSync(PACKAGE, folder, { recursive: true, filter: (path) => !/\/target$/.test(path) })
    assert.match(
      run(process.execPath, ['build.mjs', '--check'], folder),
      /is what its source makes/,
    )
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})

test.run()
