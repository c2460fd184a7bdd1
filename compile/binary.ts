/**
 * One program for one target: compile/entry.ts with all that it imports, bundled, minified and compiled to
 * bytecode by `bun build --compile`, behind a runtime of the pinned version. The same sources, packages
 * and Bun give the same bytes, in whatever folder, at whatever time.
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { signAdHoc, signatureHolds } from './mach_o.ts'
import type { TargetName } from './runtimes.ts'

const BUILD_MS_MAX = 180_000

/** What esbuild and Bun write of a bundle; the members that are read. */
export interface Metafile {
  outputs: Record<string, { inputs: Record<string, { bytesInOutput: number }> }>
}

export interface BinaryOptions {
  root: string
  /** The Bun that builds; a runtime of the same version goes into the result. */
  bun: string
  target: TargetName
  /** Path of the target's runtime. */
  runtime: string
  /** Where the program goes. */
  outfile: string
  /** Keys whose releases it will believe, in minisign's base64. */
  releaseKeys: readonly string[]
}

const FLAGS = [
  'build',
  '--compile',
  '--minify',
  '--bytecode',
  '--format=esm',
  // Commands are loaded when they are asked for, in the program as in the sources.
  '--splitting',
  // The folder in which a person runs it may be anybody's: nothing in it may configure the program.
  '--no-compile-autoload-dotenv',
  '--no-compile-autoload-bunfig',
  '--no-compile-autoload-tsconfig',
  '--no-compile-autoload-package-json',
]

export function fileName(target: TargetName): string {
  return `sotto-${target}${target.startsWith('windows') ? '.exe' : ''}`
}

/** Builds, and gives what went into it. Throws an `Error` with what Bun said. */
export function buildBinary(options: BinaryOptions): Metafile {
  const { root, bun, target, runtime, outfile, releaseKeys } = options
  // The name of the file is part of its bytes, so it is built under one name for all.
  const folder = mkdtempSync(`${outfile}.`)
  try {
    const metafile = join(folder, 'meta.json')
    const name = target.startsWith('windows') ? 'sotto.exe' : 'sotto'
    const result = spawnSync(bun, [
      ...FLAGS,
      `--target=bun-${target}`,
      `--compile-executable-path=${runtime}`,
      `--define=SOTTO_RELEASE_KEYS=${JSON.stringify(releaseKeys.join(' '))}`,
      `--define=SOTTO_TARGET=${JSON.stringify(target)}`,
      `--metafile=${metafile}`,
      `--outfile=${join(folder, name)}`,
      'compile/entry.ts',
    ], { cwd: root, encoding: 'utf8', timeout: BUILD_MS_MAX, killSignal: 'SIGKILL' })
    if (result.status !== 0) {
      throw new Error(`bun build: ${(result.error?.message ?? result.stderr).trim().slice(-2000)}`)
    }
    const made = join(folder, name)
    if (target.startsWith('darwin') && !signatureHolds(made)) signAdHoc(made)
    renameSync(made, outfile)
    return JSON.parse(readFileSync(metafile, 'utf8')) as Metafile
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
