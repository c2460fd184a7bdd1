// seconds: 500
// needs: wasm-ld-19
/**
 * Where a Rust is that can build it, the committed module is built again from a copy of its source and must
 * come out byte for byte, and the crate's own tests run. Nobody else needs Rust: without it this suite
 * is named as skipped.
 */
import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ROOT } from '../support/world.ts'

const PACKAGE = join(ROOT, 'agent/wireguard-wasm')
const RUN_MS_MAX = 400_000
/** Debian's, with the sources of its core library. */
const RUSTC = '/usr/bin/rustc'

const test = suite('compile/wireguard')

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
  if (!existsSync(RUSTC)) return console.log(`  not tried: no ${RUSTC}`)
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
