// Builds wireguard.wasm from this folder, the same bytes on every machine that has the same tools.
// Usage: node build.mjs [--check]   (--check compares with the committed module and writes nothing)
//
// Needs a Rust with the sources of its core library and a linker for WebAssembly. On Debian:
// apt-get install rustc-web rust-web-src cargo-web lld-19
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { toolchain } from './toolchain.mjs'
import { vendor } from './vendor.mjs'

const here = dirname(fileURLToPath(import.meta.url))
const target = join(here, 'target')

const { rustc, cargo, linker } = toolchain()
const say = (command, ...flags) => execFileSync(command, flags, { encoding: 'utf8' }).trim()
const sysroot = say(rustc, '--print', 'sysroot')
const cargoHome = process.env.CARGO_HOME ?? join(homedir(), '.cargo')

process.env.CARGO ??= cargo
vendor()
const flags = [
  '-Ctarget-feature=+simd128,+bulk-memory',
  // Through the table a host lends functions (wg_lend_aead).
  '-Clink-arg=--export-table',
  '-Clink-arg=--growable-table',
  `--remap-path-prefix=${here}=/c`,
  `--remap-path-prefix=${cargoHome}=/cargo`,
  `--remap-path-prefix=${sysroot}/lib/rustlib/src/rust=/rust`,
]
execFileSync(cargo, [
  'rustc',
  '--locked',
  '--release',
  '--lib',
  '--crate-type',
  'cdylib',
  '-Zbuild-std=core,alloc,compiler_builtins',
  '--target',
  'wasm32-unknown-unknown',
], {
  cwd: here,
  stdio: 'inherit',
  env: {
    ...process.env,
    RUSTC: rustc,
    RUSTC_BOOTSTRAP: '1',
    CARGO_TARGET_DIR: target,
    CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER: linker,
    CARGO_ENCODED_RUSTFLAGS: flags.join('\x1f'),
  },
})

const built = readFileSync(join(target, 'wasm32-unknown-unknown/release/wireguard_wasm.wasm'))
const sum = createHash('sha256').update(built).digest('hex')
const versions = {
  sha256: sum,
  bytes: built.length,
  rustc: say(rustc, '--version'),
  cargo: say(cargo, '--version'),
  linker: say(linker, '--version'),
}
if (process.argv.includes('--check')) {
  const committed = JSON.parse(readFileSync(join(here, 'wireguard.wasm.json'), 'utf8'))
  const bytes = createHash('sha256').update(readFileSync(join(here, 'wireguard.wasm'))).digest(
    'hex',
  )
  if (committed.sha256 !== sum || bytes !== sum) {
    console.error(`Cannot confirm wireguard.wasm: found ${bytes}, expected ${sum}`)
    console.error(`committed with ${committed.rustc}, built with ${versions.rustc}`)
    process.exit(1)
  }
  console.log(`wireguard.wasm is what its source makes: ${sum}, ${built.length} bytes`)
} else {
  writeFileSync(join(here, 'wireguard.wasm'), built)
  writeFileSync(join(here, 'wireguard.wasm.json'), JSON.stringify(versions, null, 2) + '\n')
  writeFileSync(join(here, 'wireguard.wasm.sha256'), `${sum}  wireguard.wasm\n`)
  console.log(`wireguard.wasm ${built.length} bytes, sha256 ${sum}`)
}
