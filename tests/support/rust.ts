/**
 * The Rust that can build `wireguard-wasm`: Debian's, with the sources of its library, and the crates that the
 * package names. Nobody else needs it, so where one of them is not to be had, suites say so and do not run.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ROOT } from './world.ts'

export const PACKAGE: string = join(ROOT, 'agent/wireguard-wasm')
export const RUSTC = '/usr/bin/rustc'
export const CARGO = '/usr/share/cargo/bin/cargo'
const FETCH_MS_MAX = 120_000

/** What is missing, in words; undefined where nothing is. Fetches the crates into cargo's own cache. */
export function missingRust(): string | undefined {
  for (const path of [RUSTC, CARGO, '/usr/bin/wasm-ld-19', '/usr/bin/patch']) {
    if (!existsSync(path)) return `there is no ${path}`
  }
  const manifest = readFileSync(join(PACKAGE, 'Cargo.toml'), 'utf8')
  const crates = [...manifest.matchAll(/^([\w-]+) = (?:\{ version = )?"(=[\d.]+)"/gm)]
  if (crates.length === 0) throw new Error('Cargo.toml names no crates')
  const folder = mkdtempSync(join(tmpdir(), 'sotto-crates-'))
  try {
    mkdirSync(join(folder, 'src'))
    writeFileSync(join(folder, 'src/lib.rs'), '')
    writeFileSync(
      join(folder, 'Cargo.toml'),
      '[package]\nname = "crates"\nversion = "0.0.0"\nedition = "2024"\n[dependencies]\n' +
        crates.map(([, name, version]) => `${name} = "${version}"\n`).join(''),
    )
    const { status, stderr } = spawnSync(CARGO, ['fetch'], {
      cwd: folder,
      encoding: 'utf8',
      timeout: FETCH_MS_MAX,
      killSignal: 'SIGKILL',
      env: { ...process.env, RUSTC },
    })
    if (status === 0) return undefined
    return `its crates cannot be fetched (${String(stderr).trim().split('\n').at(-1)})`
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
