/**
 * Bun's runtimes for other systems: npm packages at the pinned version, each known by the hash that npm
 * states of the package and by the hash of the program in it (compile/targets.json). A runtime comes
 * from the cache, from node_modules where it is this machine's own, or from npm; wherever it comes
 * from, its hash decides.
 */
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
} from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import table from './targets.json' with { type: 'json' }

export const ROOT: string = fileURLToPath(new URL('..', import.meta.url))
/** A package is about 50 MB; a registry that hangs must not hang the build. */
const FETCH_MS_MAX = 300_000
const UNPACK_MS_MAX = 60_000

export type TargetName = keyof typeof table.targets

export interface Runtime {
  /** npm package. */
  package: string
  /** Of the package's archive, as npm states it. */
  integrity: string
  /** The program's path in the package. */
  executable: string
  /** Of the program, hexadecimal. */
  sha256: string
}

export const BUN_VERSION: string = table.bun
export const RUNTIMES: Readonly<Record<TargetName, Runtime>> = table.targets
export const TARGETS: readonly TargetName[] = Object.keys(table.targets) as TargetName[]

export interface RuntimeOptions {
  /** Where runtimes are kept between builds. */
  cache?: string
  /** False: what is neither in the cache nor installed is missing. */
  fetch?: boolean
}

export function cacheFolder(): string {
  const base = process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache')
  return process.env['SOTTO_BUILD_CACHE'] || join(base, 'sotto-build')
}

/**
 * The path of a target's runtime, verified. Throws an `Error` that says why there is none; one of a
 * wrong hash is never used, and never kept.
 */
export function runtimeFor(name: TargetName, options: RuntimeOptions = {}): string {
  const { cache = cacheFolder(), fetch = true } = options
  const runtime = RUNTIMES[name]
  const kept = join(cache, `bun-${BUN_VERSION}-${name}`)
  for (const path of [kept, join(ROOT, 'node_modules', 'bun', 'bin', 'bun.exe')]) {
    if (existsSync(path) && fileHash(path) === runtime.sha256) return path
  }
  if (!fetch) throw new Error(`${runtime.package} is not in the cache`)
  mkdirSync(cache, { recursive: true })
  const folder = mkdtempSync(join(cache, 'fetch-'))
  try {
    const archive = download(runtime, folder)
    unpack(archive, folder)
    const program = join(folder, 'package', runtime.executable)
    const found = fileHash(program)
    if (found !== runtime.sha256) {
      throw new Error(`${runtime.package}: the program has SHA-256 ${found}, not what is pinned`)
    }
    chmodSync(program, 0o755)
    renameSync(program, kept)
    return kept
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** By npm itself, so that its settings (registry, proxy, certificates) hold here too. */
function download(runtime: Runtime, folder: string): string {
  const result = spawnSync(
    'npm',
    [
      'pack',
      '--silent',
      '--ignore-scripts',
      '--pack-destination',
      folder,
      `${runtime.package}@${BUN_VERSION}`,
    ],
    { cwd: folder, encoding: 'utf8', timeout: FETCH_MS_MAX, killSignal: 'SIGKILL' },
  )
  const archive = readdirSync(folder).find((name) => name.endsWith('.tgz'))
  if (result.status !== 0 || archive === undefined) {
    const why = (result.error?.message ?? result.stderr).trim().split('\n')[0]
    throw new Error(`npm has no ${runtime.package}@${BUN_VERSION} here: ${why}`)
  }
  const path = join(folder, archive)
  const found = integrityOf(readFileSync(path))
  if (found !== runtime.integrity) {
    throw new Error(`${runtime.package}: the archive has ${found}, not what is pinned`)
  }
  return path
}

function unpack(archive: string, folder: string): void {
  const result = spawnSync('tar', ['-xzf', archive, '-C', folder], {
    encoding: 'utf8',
    timeout: UNPACK_MS_MAX,
    killSignal: 'SIGKILL',
  })
  if (result.status !== 0) throw new Error(`Cannot unpack: ${result.stderr || result.error}`)
}

/** As package-lock.json writes it. */
export function integrityOf(bytes: Uint8Array): string {
  return `sha512-${createHash('sha512').update(bytes).digest('base64')}`
}

export function fileHash(path: string): string {
  return createHash('sha256').update(readFileSync(path)).digest('hex')
}
