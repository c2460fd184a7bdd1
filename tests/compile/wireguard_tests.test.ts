// seconds: 1200
// wants: wasm-ld-19
/**
 * The crate's tests, natively and inside WebAssembly, where users have it: all of them pass in both, and they
 * are the same ones. Where the Rust is missing that can build them this suite is named as not run.
 */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { CARGO, missingRust, PACKAGE, RUSTC } from '../support/rust.ts'

const RUN_MS_MAX = 580_000
const test = suite('compile/wireguard_tests')

const missing = missingRust()
if (missing !== undefined) {
  console.log(`not run: ${missing}`)
  process.exit(0)
}

function run(command: string, args: readonly string[]): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd: PACKAGE,
    encoding: 'utf8',
    timeout: RUN_MS_MAX,
    killSignal: 'SIGKILL',
    env: { ...process.env, RUSTC, CARGO, CARGO_TARGET_DIR: join(PACKAGE, 'target') },
  })
  assert.is(status, 0, `${command}: ${error ?? ''}${stdout}${stderr}`.slice(-4000))
  // Where cargo says which file it runs.
  return stdout + (command === CARGO ? '' : stderr)
}

/** "ok FILE NAME" and "ignored FILE NAME", in order. */
function native(files: readonly string[]): string[] {
  return files.flatMap((file) => {
    const output = run(CARGO, [
      'test',
      '--locked',
      '--quiet',
      `--test=${file}`,
      '--',
      '--format=pretty',
    ])
    return [...output.matchAll(/^test (\S+) \.\.\. (ok|ignored)/gm)]
      .map(([, name, outcome]) => `${outcome} ${file} ${name}`)
  }).sort()
}

test('each test of the crate passes natively and in WebAssembly', () => {
  const output = run(process.execPath, ['test.mjs'])
  const inside = [...output.matchAll(/^(?:ok|ignored) (\S+) \S+$/gm)]
  const files = [...new Set(inside.map(([, file]) => file!))]
  const outside = native(files)
  assert.equal(inside.map(([line]) => line).sort(), outside)
  assert.ok(outside.length >= 120, `${outside.length} tests`)
  // What is left to people is left to them in both: figures of a machine.
  assert.equal(outside.filter((line) => line.startsWith('ignored')), [
    'ignored idle idle_flows_cost_the_active_one_little',
  ])
})

test.run()
