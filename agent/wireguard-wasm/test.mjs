// The crate's own tests, the same that `cargo test` runs, inside WebAssembly: each in an instance of its own.
// Usage: node test.mjs [PART OF A NAME]   (bun test.mjs is what the program itself runs on)
//
// Prints a line for each, "ok", "ignored" or "FAILED" with "FILE NAME", and ends with 1 where one failed.
import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { toolchain } from './toolchain.mjs'
import { vendor } from './vendor.mjs'

const here = dirname(fileURLToPath(import.meta.url))
const TARGET = 'wasm32-unknown-unknown'
const RUNNER = 'wireguard_wasm::test_runner::run'
const EXPORTS = ['count', 'name', 'name_bytes', 'is_ignored', 'run']
const { rustc, cargo, linker } = toolchain()

/** The module of one file of tests. */
function build(file) {
  const flags = ['-Ctarget-feature=+simd128,+bulk-memory', '-Cpanic=abort']
  const output = execFileSync(cargo, [
    'rustc',
    '--locked',
    '--quiet',
    '--profile=test',
    '--features=wasm-tests',
    `--test=${file}`,
    '-Zbuild-std=std,panic_abort,test',
    `--target=${TARGET}`,
    '--message-format=json-render-diagnostics',
    '--',
    '-Zcrate-attr=feature(custom_test_frameworks)',
    `-Zcrate-attr=test_runner(${RUNNER})`,
    `-Clink-args=${EXPORTS.map((name) => `--export=test_${name}`).join(' ')}`,
  ], {
    cwd: here,
    encoding: 'utf8',
    maxBuffer: 2 ** 26,
    stdio: ['ignore', 'pipe', 'inherit'],
    env: {
      ...process.env,
      RUSTC: rustc,
      RUSTC_BOOTSTRAP: '1',
      CARGO_TARGET_DIR: join(here, 'target'),
      CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER: linker,
      CARGO_ENCODED_RUSTFLAGS: flags.join('\x1f'),
    },
  })
  const lines = output.split('\n').filter((line) => line.startsWith('{')).map((line) =>
    JSON.parse(line)
  )
  const { executable } = lines.find((line) => line.executable && line.target.name === file)
  return new WebAssembly.Module(readFileSync(executable))
}

const text = new TextDecoder()

/** A new instance whose list of tests stands. `words` is filled where one panics. */
function start(module) {
  const words = []
  const instance = new WebAssembly.Instance(module, {
    host: {
      panicked: (at, length) => {
        words.push(text.decode(new Uint8Array(instance.exports.memory.buffer, at, length)))
      },
    },
  })
  const { exports } = instance
  exports.main(0, 0)
  const name = (number) => {
    const bytes = new Uint8Array(
      exports.memory.buffer,
      exports.test_name(number),
      exports.test_name_bytes(number),
    )
    return text.decode(bytes)
  }
  return { exports, words, name }
}

process.env.CARGO ??= cargo
vendor()
const only = process.argv[2] ?? ''
const counts = { ok: 0, ignored: 0, FAILED: 0 }
const files = readdirSync(join(here, 'tests')).filter((name) => name.endsWith('.rs')).sort()
for (const file of files.map((name) => name.slice(0, -3))) {
  const module = build(file)
  const count = start(module).exports.test_count()
  for (let number = 0; number < count; number++) {
    const { exports, words, name } = start(module)
    const title = `${file} ${name(number)}`
    if (!title.includes(only)) continue
    let outcome = exports.test_is_ignored(number) ? 'ignored' : 'ok'
    try {
      if (outcome === 'ok') exports.test_run(number)
    } catch (error) {
      outcome = 'FAILED'
      console.log(words.join('\n') || error)
    }
    counts[outcome]++
    console.log(`${outcome} ${title}`)
  }
}
console.log(`${counts.ok} passed, ${counts.FAILED} failed, ${counts.ignored} ignored`)
process.exitCode = counts.FAILED > 0 ? 1 : 0
