// What is published: JavaScript with types beside the module, in dist/. Run by `npm pack` and `npm publish`.
import { execFileSync } from 'node:child_process'
import { copyFileSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = dirname(fileURLToPath(import.meta.url))
const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc')
rmSync(join(here, 'dist'), { recursive: true, force: true })
execFileSync(process.execPath, [
  tsc,
  ...['index.ts', 'load_file.ts', 'load_url.ts'],
  ...['--outDir', 'dist', '--declaration', '--rewriteRelativeImportExtensions'],
  ...['--target', 'es2022', '--module', 'nodenext', '--lib', 'esnext,dom', '--types', 'node'],
  ...['--strict', '--skipLibCheck'],
], { cwd: here, stdio: 'inherit' })
copyFileSync(join(here, 'wireguard.wasm'), join(here, 'dist', 'wireguard.wasm'))
