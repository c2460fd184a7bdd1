/**
 * `npm run build [-- TARGET… --sign KEY --trust PUB --out DIR --offline]`: the program for each target
 * into dist/, with SHA256SUMS, a bill of materials and the licences. docs/build.md says more.
 */
import * as nodeCrypto from 'node:crypto'
import { mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join, relative, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { VERSION } from '../agent/version.ts'
import { releaseKeysOf } from './release_keys.ts'
import { fastCrypto } from '../core/crypto.ts'
import { decodeMinisignSecret, formatKeyId, signMinisign } from '../core/minisign.ts'
import { encodeSums, releaseComment } from '../core/release.ts'
import { buildBinary, fileName } from './binary.ts'
import type { Metafile } from './binary.ts'
import { billOfMaterials, bundledPackages, thirdPartyLicences } from './bundled.ts'
import { fileHash, ROOT, runtimeFor, RUNTIMES, TARGETS } from './runtimes.ts'
import type { TargetName } from './runtimes.ts'

export const SUMS = 'SHA256SUMS'
export const SIGNATURE = 'SHA256SUMS.minisig'
export const BILL = 'sotto.cdx.json'
export const LICENCES = 'THIRD_PARTY_LICENSES'

const USAGE = `usage: npm run build [-- TARGET…] [--sign KEY] [--trust PUB] [--out DIR] [--offline]
targets: ${TARGETS.join(', ')}; without any: all
  --sign KEY   sign ${SUMS} with minisign's secret key in the file KEY, without a password
  --trust PUB  the program believes releases of the public keys in the file PUB (compile/release.pub)
  --out DIR    where the files go (dist)
  --offline    use no runtime that is not in the cache`

export interface BuildOptions {
  targets: readonly TargetName[]
  out: string
  trust: string
  /** Path of the secret key; none: not signed. */
  sign?: string | undefined
  offline?: boolean
  root?: string
  say(line: string): void
}

export interface Built {
  built: TargetName[]
  /** Why each other one could not be built. */
  missing: Map<TargetName, string>
}

/** Builds what can be built; a target whose runtime cannot be had harms no other. */
export function build(options: BuildOptions): Built {
  const { targets, out, trust, say, offline = false, root = ROOT } = options
  mkdirSync(out, { recursive: true })
  // What an earlier build said must not be taken for what this one says.
  for (const name of [SUMS, SIGNATURE, BILL, LICENCES]) rmSync(join(out, name), { force: true })
  const releaseKeys = releaseKeysOf(readFileSync(trust, 'utf8'))
  const built: TargetName[] = []
  const missing = new Map<TargetName, string>()
  const files = new Map<string, string>()
  let metafile: Metafile | undefined
  for (const target of targets) {
    const outfile = join(out, fileName(target))
    try {
      const runtime = runtimeFor(target, { fetch: !offline })
      metafile = buildBinary({ root, bun: process.execPath, target, runtime, outfile, releaseKeys })
    } catch (error) {
      const why = (error as Error).message
      missing.set(target, why)
      rmSync(outfile, { force: true })
      say(`${fileName(target).padEnd(26)} not built: ${why}`)
      continue
    }
    built.push(target)
    files.set(fileName(target), fileHash(outfile))
    const mib = statSync(outfile).size / 2 ** 20
    say(`${fileName(target).padEnd(26)} ${mib.toFixed(1).padStart(6)} MiB`)
  }
  if (!metafile) return { built, missing }
  const packages = bundledPackages(metafile, root)
  const runtimes = built.map((target) => RUNTIMES[target])
  const documents: [string, string][] = [
    [BILL, billOfMaterials(packages, { version: VERSION, runtimes })],
    [LICENCES, thirdPartyLicences(packages)],
  ]
  for (const [name, content] of documents) {
    writeFileSync(join(out, name), content)
    files.set(name, fileHash(join(out, name)))
  }
  writeFileSync(join(out, SUMS), encodeSums(files))
  say(`${packages.length} packages in ${BILL} and ${LICENCES}`)
  if (options.sign === undefined) say(`${SUMS} is not signed: --sign KEY, or minisign -S`)
  else say(`${SUMS} signed by key ${sign(out, options.sign)}`)
  return { built, missing }
}

/** Writes the signature beside the sums; the key's id. */
function sign(out: string, keyFile: string): string {
  const crypto = fastCrypto(nodeCrypto)
  const secret = decodeMinisignSecret(readFileSync(keyFile, 'utf8'), crypto)
  const signature = signMinisign(readFileSync(join(out, SUMS)), {
    secret,
    trustedComment: releaseComment(VERSION, signedMs()),
    crypto,
  })
  writeFileSync(join(out, SIGNATURE), signature)
  return formatKeyId(secret)
}

/** Now, or when SOURCE_DATE_EPOCH says: whoever builds it again gets the same bytes. */
function signedMs(): number {
  const epoch = process.env['SOURCE_DATE_EPOCH']
  return epoch && /^\d{1,12}$/.test(epoch) ? Number(epoch) * 1000 : Date.now()
}

function main(): number {
  const { values, positionals } = parseArgs({
    args: process.argv.slice(2),
    allowPositionals: true,
    options: {
      sign: { type: 'string' },
      trust: { type: 'string', default: join(ROOT, 'compile', 'release.pub') },
      out: { type: 'string', default: join(ROOT, 'dist') },
      offline: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  })
  const unknown = positionals.find((name) => !(TARGETS as readonly string[]).includes(name))
  if (values.help || unknown !== undefined) {
    if (unknown !== undefined) console.error(`Cannot build "${unknown}": there is no such target`)
    console.error(USAGE)
    return values.help ? 0 : 2
  }
  const { built, missing } = build({
    targets: positionals.length > 0 ? positionals as TargetName[] : TARGETS,
    out: resolve(values.out),
    trust: values.trust,
    sign: values.sign,
    offline: values.offline,
    say: (line) => console.error(line),
  })
  for (const target of built) {
    console.log(relative(process.cwd(), join(values.out, fileName(target))))
  }
  // A target that was asked for by name must be there; of all, those that can be had.
  return built.length === 0 || (positionals.length > 0 && missing.size > 0) ? 1 : 0
}

if (import.meta.main) process.exitCode = main()
