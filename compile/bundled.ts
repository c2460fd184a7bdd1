/**
 * Which npm packages are in a bundle, with version, licence and the hash that package-lock.json pins;
 * and the two documents that say so: a CycloneDX bill of materials, and the licences' own texts.
 */
import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Metafile } from './binary.ts'
import { BUN_VERSION } from './runtimes.ts'
import type { Runtime } from './runtimes.ts'

const LICENCE_FILE = /^(licen[cs]e|notice|copying|copyrightnotice)([.-].*)?$/i

export interface BundledPackage {
  name: string
  version: string
  /** SPDX expression. */
  licence: string
  /** `sha512-…`, as npm states it of the package's archive. */
  integrity: string
  /** Names of packages that it imports. */
  needs: string[]
  author: string
  /** File name and text. */
  texts: [name: string, text: string][]
}

interface Manifest {
  name: string
  version: string
  license?: string
  author?: string | { name?: string }
  dependencies?: Record<string, string>
  peerDependencies?: Record<string, string>
}

/** Packages of which a byte is in the bundle, by name; two versions of one are two. */
export function bundledPackages(metafile: Metafile, root: string): BundledPackage[] {
  const folders = new Set<string>()
  for (const { inputs } of Object.values(metafile.outputs)) {
    for (const [path, { bytesInOutput }] of Object.entries(inputs)) {
      const folder = /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(path)?.[0]
      if (folder !== undefined && bytesInOutput > 0) folders.add(folder)
    }
  }
  const { packages } = readJson<{ packages: Record<string, { integrity?: string }> }>(
    join(root, 'package-lock.json'),
  )
  return [...folders].sort().map((folder) => {
    const manifest = readJson<Manifest>(join(root, folder, 'package.json'))
    const integrity = packages[folder]?.integrity
    if (!integrity || !manifest.license) {
      throw new Error(`${folder}: package-lock.json pins no hash of it, or it has no licence`)
    }
    const { author = '' } = manifest
    return {
      name: manifest.name,
      version: manifest.version,
      licence: manifest.license,
      integrity,
      needs: Object.keys({ ...manifest.dependencies, ...manifest.peerDependencies }),
      author: typeof author === 'string' ? author : author.name ?? '',
      texts: readdirSync(join(root, folder)).filter((name) => LICENCE_FILE.test(name)).sort()
        .map((name) => [name, readFileSync(join(root, folder, name), 'utf8')]),
    }
  })
}

/**
 * CycloneDX 1.6, JSON. Of the same packages the same bytes: no time, and a serial number that is made
 * of what it describes.
 */
export function billOfMaterials(
  packages: readonly BundledPackage[],
  { version, runtimes }: { version: string; runtimes: readonly Runtime[] },
): string {
  const own = `sotto@${version}`
  const libraries = packages.map((one) => ({
    type: 'library',
    'bom-ref': reference(one.name, one.version),
    ...naming(one.name),
    version: one.version,
    scope: 'required',
    hashes: [sha512(one.integrity)],
    licenses: licences(one.licence),
    purl: reference(one.name, one.version),
  }))
  // One file tells of all targets: which runtime is in which program is told by its name.
  const platforms = runtimes.map(({ package: name, integrity }) => ({
    type: 'platform',
    'bom-ref': reference(name, BUN_VERSION),
    ...naming(name),
    version: BUN_VERSION,
    scope: 'required',
    hashes: [sha512(integrity)],
    // Bun is MIT; what it links has licences of its own, see THIRD_PARTY_LICENSES.
    licenses: [{ expression: 'MIT AND LGPL-2.0-only' }],
    purl: reference(name, BUN_VERSION),
  }))
  const references = (names: readonly string[]): string[] =>
    libraries.filter((_, i) => names.includes(packages[i]!.name)).map((one) => one['bom-ref'])
  const body = {
    metadata: {
      lifecycles: [{ phase: 'build' }],
      component: {
        type: 'application',
        'bom-ref': own,
        name: 'sotto',
        version,
        licenses: licences('MIT'),
      },
    },
    components: [...libraries, ...platforms],
    dependencies: [
      {
        ref: own,
        dependsOn: [...libraries, ...platforms].map((one) => one['bom-ref']),
      },
      ...packages.map((one) => ({
        ref: reference(one.name, one.version),
        dependsOn: references(one.needs),
      })),
      ...platforms.map((one) => ({ ref: one['bom-ref'], dependsOn: [] })),
    ],
  }
  return `${
    JSON.stringify(
      {
        $schema: 'http://cyclonedx.org/schema/bom-1.6.schema.json',
        bomFormat: 'CycloneDX',
        specVersion: '1.6',
        serialNumber: `urn:uuid:${contentUuid(JSON.stringify(body))}`,
        version: 1,
        ...body,
      },
      null,
      2,
    )
  }\n`
}

/** Every licence in full, packages with the same text together. */
export function thirdPartyLicences(packages: readonly BundledPackage[]): string {
  const byText = new Map<string, BundledPackage[]>()
  for (const one of packages) {
    const body = one.texts.length > 0
      ? one.texts.map(([, text]) => text.replace(/\r\n/g, '\n').trim()).join('\n\n')
      : statedLicence(one)
    byText.set(body, [...byText.get(body) ?? [], one])
  }
  const line = '='.repeat(80)
  const parts = [...byText].map(([body, those]) => {
    const names = those.map(({ name, version, licence }) => `${name} ${version} (${licence})`)
    return `${line}\n${names.join('\n')}\n${line}\n\n${body}\n`
  })
  return `${INTRODUCTION}\n${parts.join('\n')}`
}

const INTRODUCTION = `What the program "sotto" contains besides its own code.

The runtime is Bun ${BUN_VERSION}, under the MIT licence. It links other libraries, among them JavaScriptCore of
WebKit under the LGPL, version 2; all of them, and how to link Bun anew with a changed JavaScriptCore, are
named at https://github.com/oven-sh/bun/blob/bun-v${BUN_VERSION}/LICENSE.md. The sources of sotto, with which the program
can be built again on such a Bun, come with the same release.

The packages, with their licences:
`

/** Of a package that names its licence and holds no text of it. */
function statedLicence({ name, licence, author }: BundledPackage): string {
  if (licence !== 'MIT') throw new Error(`${name} holds no text of its licence, ${licence}`)
  return `MIT License

Copyright (c) ${author || `the authors of ${name}`}

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the
"Software"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish,
distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to
the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY
CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE
SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.`
}

/** A package URL (purl) of npm. */
function reference(name: string, version: string): string {
  return `pkg:npm/${name.replace('@', '%40')}@${version}`
}

function naming(name: string): { group?: string; name: string } {
  const [group, rest] = name.split('/')
  return rest === undefined ? { name } : { group: group!, name: rest }
}

/** An identifier of SPDX, or an expression of several. */
function licences(licence: string): object[] {
  return /[ (]/.test(licence) ? [{ expression: licence }] : [{ license: { id: licence } }]
}

function sha512(integrity: string): { alg: string; content: string } {
  return {
    alg: 'SHA-512',
    content: Buffer.from(integrity.slice('sha512-'.length), 'base64').toString('hex'),
  }
}

/** A UUID of version 8 (RFC 9562 §5.8), made of a SHA-256. */
function contentUuid(content: string): string {
  const bytes = createHash('sha256').update(content).digest().subarray(0, 16)
  bytes[6] = (bytes[6]! & 0x0f) | 0x80
  bytes[8] = (bytes[8]! & 0x3f) | 0x80
  return bytes.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
}

function readJson<T>(path: string): T {
  return JSON.parse(readFileSync(path, 'utf8')) as T
}
