// Makes vendor/smoltcp: the crate as published, found by its checksum, with the patches of this folder.
// Usage: node vendor.mjs   (does nothing when the folder is there and made of the same parts)
//
// Only who builds the module or runs `cargo test` needs it.
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = dirname(fileURLToPath(import.meta.url))
const name = 'smoltcp'
const version = '0.14.0'
const sha256 = 'b6f8b28ad56c6e35524a37dd492af5d1a47e31e1a4d175cd12f89c075f01980f'

const hash = (bytes) => createHash('sha256').update(bytes).digest('hex')

/** The published archive: of cargo's cache, where `cargo fetch` puts it. */
function archive() {
  const find = () => {
    const cache = join(process.env.CARGO_HOME ?? join(homedir(), '.cargo'), 'registry', 'cache')
    const registries = existsSync(cache) ? readdirSync(cache) : []
    const paths = registries.map((registry) => join(cache, registry, `${name}-${version}.crate`))
    return paths.find((path) => existsSync(path) && hash(readFileSync(path)) === sha256)
  }
  const found = find()
  if (found) return found
  // Cargo fetches for a package alone, so there is one that needs nothing else.
  const folder = join(here, 'vendor', 'fetch')
  mkdirSync(join(folder, 'src'), { recursive: true })
  writeFileSync(join(folder, 'src', 'lib.rs'), '')
  writeFileSync(
    join(folder, 'Cargo.toml'),
    `[package]\nname = "fetch"\nversion = "0.0.0"\nedition = "2021"\n[workspace]\n` +
      `[dependencies]\n${name} = "=${version}"\n`,
  )
  execFileSync(process.env.CARGO ?? 'cargo', ['fetch'], { cwd: folder, stdio: 'inherit' })
  const fetched = find()
  if (!fetched) {
    console.error(`Cannot find ${name} ${version}: no archive has the checksum ${sha256}`)
    process.exit(1)
  }
  return fetched
}

/** Makes the folder unless it is made of the same archive and patches. */
export function vendor() {
  const folder = join(here, 'vendor', name)
  const patches = readdirSync(join(here, 'patches')).filter((file) => file.endsWith('.patch'))
    .sort()
  const parts = patches.map((file) => hash(readFileSync(join(here, 'patches', file))))
  const made = [sha256, ...parts].join('\n') + '\n'
  const mark = join(folder, '.made-of')
  if (existsSync(mark) && readFileSync(mark, 'utf8') === made) return
  const fresh = join(here, 'vendor', 'fresh')
  rmSync(fresh, { recursive: true, force: true })
  mkdirSync(fresh, { recursive: true })
  execFileSync('tar', ['xzf', archive(), '-C', fresh])
  const source = join(fresh, `${name}-${version}`)
  for (const file of patches) {
    execFileSync('patch', ['-p1', '--quiet', '--fuzz=0', '-i', join(here, 'patches', file)], {
      cwd: source,
      stdio: 'inherit',
    })
  }
  writeFileSync(join(source, '.made-of'), made)
  rmSync(folder, { recursive: true, force: true })
  renameSync(source, folder)
  rmSync(fresh, { recursive: true, force: true })
}

if (process.argv[1] === fileURLToPath(import.meta.url)) vendor()
