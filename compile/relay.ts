/**
 * `npm run build:relay [-- --out DIR]`: the relay as one file for Workers, for Deno Deploy, and for
 * self-hosted Node and Deno, into dist/relay/, with the licences of what is in them.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { gzipSync } from 'node:zlib'
import { VERSION } from '../agent/version.ts'
import type { Metafile } from './binary.ts'
import { billOfMaterials, bundledPackages, thirdPartyLicences } from './bundled.ts'
import { bundleRelay, PLACES, writeWranglerConfig } from './relay_bundles.mjs'
import { ROOT } from './runtimes.ts'

export interface RelayBundle {
  path: string
  bytes: number
  /** As Workers counts against its limit: by gzip. */
  gzipBytes: number
}

export async function buildRelay(out: string): Promise<Record<string, RelayBundle>> {
  mkdirSync(out, { recursive: true })
  const bundles: Record<string, RelayBundle> = {}
  const outputs: Metafile['outputs'] = {}
  for (const place of Object.keys(PLACES) as (keyof typeof PLACES)[]) {
    const { path, metafile } = await bundleRelay(place, out)
    Object.assign(outputs, metafile.outputs)
    const content = readFileSync(path)
    bundles[place] = { path, bytes: content.length, gzipBytes: gzipSync(content).length }
  }
  writeWranglerConfig(join(out, 'wrangler.json'))
  const packages = bundledPackages({ outputs }, ROOT)
  writeFileSync(
    join(out, 'sotto-relay.cdx.json'),
    billOfMaterials(packages, { version: VERSION, runtimes: [] }),
  )
  writeFileSync(join(out, 'THIRD_PARTY_LICENSES'), thirdPartyLicences(packages))
  return bundles
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    args: process.argv.slice(2),
    options: { out: { type: 'string', default: join(ROOT, 'dist', 'relay') } },
  })
  const bundles = await buildRelay(resolve(values.out))
  for (const [place, { path, bytes, gzipBytes }] of Object.entries(bundles)) {
    const [plain, packed] = [bytes, gzipBytes].map((count) => `${(count / 1024).toFixed(0)} KiB`)
    console.log(
      `${place.padEnd(12)} ${plain!.padStart(8)}, ${packed!.padStart(8)} by gzip  ${path}`,
    )
  }
  return 0
}

if (import.meta.main) process.exitCode = await main()
