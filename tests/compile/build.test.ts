// seconds: 300
/**
 * The built program: the same bytes from two places, one that needs nothing beside it, sums and
 * signature that Debian's minisign and our own verifier take, a bill of materials that the schema of
 * CycloneDX takes, runtimes that are refused unless their hash is the pinned one.
 */
// needs: minisign
import Ajv from 'ajv'
import addFormats from 'ajv-formats'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import * as nodeCrypto from 'node:crypto'
import { appendFileSync, cpSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { BILL, build, LICENCES, SIGNATURE, SUMS } from '../../compile/agent.ts'
import type { Built } from '../../compile/agent.ts'
import { buildBinary, fileName } from '../../compile/binary.ts'
import { signAdHoc, signatureHolds } from '../../compile/mach_o.ts'
import { releaseKeysOf } from '../../compile/release_keys.ts'
import { BUN_VERSION, fileHash, runtimeFor, RUNTIMES } from '../../compile/runtimes.ts'
import type { TargetName } from '../../compile/runtimes.ts'
import { VERSION } from '../../agent/version.ts'
import { fastCrypto } from '../../core/crypto.ts'
import { encodeMinisignKey, encodeMinisignSecret, makeMinisignSecret } from '../../core/minisign.ts'
import { openRelease } from '../../core/release.ts'
import { BUN, E2eWorld, ROOT } from '../support/world.ts'

const crypto = fastCrypto(nodeCrypto)
/** Of the machine that the tests run on; its runtime is installed already. */
const HERE: TargetName = process.arch === 'arm64' ? 'linux-arm64' : 'linux-x64'
const DARWIN: readonly TargetName[] = ['darwin-x64', 'darwin-arm64']

let world: E2eWorld
let out: string
let built: Built
const secret = makeMinisignSecret(crypto)

const test = suite('compile/build')

test.before(() => {
  world = new E2eWorld()
  out = world.path('dist')
  writeFileSync(world.path('test.key'), encodeMinisignSecret(secret, crypto), { mode: 0o600 })
  writeFileSync(world.path('test.pub'), encodeMinisignKey(secret))
  built = build({
    targets: [HERE],
    out,
    trust: world.path('test.pub'),
    sign: world.path('test.key'),
    offline: true,
    say: () => {},
  })
})

test.after(() => world.close())

const binary = (): string => join(out, fileName(HERE))

test('it runs from an empty folder and needs nothing beside it', async () => {
  assert.equal(built.built, [HERE])
  mkdirSync(world.path('empty'))
  const { code, stdout } = await world.run(binary(), ['--version'], { cwd: world.path('empty') })
  assert.is(code, 0)
  assert.is(stdout, `${VERSION}\n`)
})

test('nothing in the folder where it runs configures it', async () => {
  const cwd = world.path('hostile')
  mkdirSync(cwd)
  writeFileSync(join(cwd, 'evil.ts'), "console.log('evil')\n")
  writeFileSync(join(cwd, 'bunfig.toml'), 'preload = ["./evil.ts"]\n')
  writeFileSync(join(cwd, '.env'), 'SOTTO_HOME=/nowhere/at/all\nNODE_OPTIONS=--require=./evil.ts\n')
  writeFileSync(join(cwd, 'tsconfig.json'), '{"compilerOptions":{"paths":{"*":["./evil.ts"]}}}')
  writeFileSync(join(cwd, 'package.json'), '{"imports":{"#x":"./evil.ts"}}')
  const { code, stdout, stderr } = await world.run(binary(), ['identity', '--json'], {
    cwd,
    home: 'clean',
  })
  assert.is(code, 0, stderr)
  assert.not.match(`${stdout}${stderr}`, /evil|nowhere/)
  assert.ok(existsSync(world.path('clean')), 'the home is the one of the environment')
})

test('it is no Bun: neither a script nor an option of Bun is run by it', async () => {
  writeFileSync(world.path('script.ts'), "console.log('ran')\n")
  for (const args of [['run', world.path('script.ts')], [world.path('script.ts')], ['-e', '1']]) {
    const { code, stdout } = await world.run(binary(), args)
    assert.is(code, 2, args.join(' '))
    assert.not.match(stdout, /ran/)
  }
})

test('two builds, of two copies of the sources, are the same bytes', async () => {
  const copy = world.path('another/place')
  for (
    const part of [
      'agent',
      'compile/entry.ts',
      'core',
      'relay',
      'package.json',
      'tsconfig.json',
      'package-lock.json',
    ]
  ) {
    cpSync(join(ROOT, part), join(copy, part), { recursive: true })
  }
  const packages = join(ROOT, 'node_modules')
  const linked = await world.run('cp', ['-al', packages, join(copy, 'node_modules')])
  // Hard links end at the borders of a file system.
  if (linked.code !== 0) cpSync(packages, join(copy, 'node_modules'), { recursive: true })
  const outfile = world.path('again')
  buildBinary({
    root: copy,
    bun: process.execPath,
    target: HERE,
    runtime: runtimeFor(HERE, { fetch: false }),
    outfile,
    releaseKeys: releaseKeysOf(readFileSync(world.path('test.pub'), 'utf8')),
  })
  assert.is(fileHash(outfile), fileHash(binary()))
})

test('Debian’s minisign takes the signature, and tells the version', async () => {
  const check = () =>
    world.run('minisign', ['-V', '-p', world.path('test.pub'), '-m', join(out, SUMS)])
  const { code, stdout, stderr } = await check()
  assert.is(code, 0, stderr)
  const said = `Trusted comment: sotto ${VERSION.replaceAll('.', '\\.')} \\d{4}-\\d\\d-\\d\\d$`
  assert.match(stdout, new RegExp(said, 'm'))
  const sums = readFileSync(join(out, SUMS))
  appendFileSync(join(out, SUMS), '\n')
  assert.is.not((await check()).code, 0, 'and refuses other sums')
  writeFileSync(join(out, SUMS), sums)
  const summed = await world.run('sha256sum', ['--check', '--strict', SUMS], { cwd: out })
  assert.is(summed.code, 0, summed.stdout)
})

test('a key of minisign signs here, and what minisign signs is a release', async () => {
  const [pub, key] = [world.path('their.pub'), world.path('their.key')]
  assert.is((await world.run('minisign', ['-G', '-W', '-p', pub, '-s', key])).code, 0)
  const [theirs] = releaseKeysOf(readFileSync(pub, 'utf8'))
  assert.ok(theirs)
  const file = world.path('theirs')
  cpSync(join(out, SUMS), file)
  const args = ['-S', '-s', key, '-m', file, '-t', 'sotto 9.9.9']
  assert.is((await world.run('minisign', args)).code, 0)
  const { decodeMinisignKey } = await import('../../core/minisign.ts')
  const release = openRelease(readFileSync(file), {
    signature: readFileSync(`${file}.minisig`, 'utf8'),
    keys: [decodeMinisignKey(theirs)],
    crypto,
  })
  assert.is(release.version, '9.9.9')
})

test('our own verifier takes it: every file of the release by its hash', () => {
  const release = openRelease(readFileSync(join(out, SUMS)), {
    signature: readFileSync(join(out, SIGNATURE), 'utf8'),
    keys: [secret],
    crypto,
  })
  assert.is(release.version, VERSION)
  assert.equal([...release.files.keys()].sort(), [LICENCES, fileName(HERE), BILL].sort())
  for (const [name, sum] of release.files) assert.is(fileHash(join(out, name)), sum)
})

test('a key file that holds no key stops the build', () => {
  assert.throws(() => releaseKeysOf('no key\n'), /Cannot read the public key/)
  assert.equal(releaseKeysOf(readFileSync(join(ROOT, 'compile/release.pub'), 'utf8')), [])
})

test('the bill of materials is CycloneDX 1.6, of what package-lock.json pins', () => {
  // deno-lint-ignore no-explicit-any
  const bill: any = JSON.parse(readFileSync(join(out, BILL), 'utf8'))
  const folder = join(ROOT, 'node_modules/@cyclonedx/cyclonedx-library/res/schema')
  const schema = (name: string) =>
    JSON.parse(readFileSync(join(folder, `${name}.SNAPSHOT.schema.json`), 'utf8'))
  const ajv = new Ajv.default({ strict: false, allErrors: true })
  addFormats.default(ajv)
  // Of the drafts behind 7, and on no member that is used here.
  for (const format of ['iri-reference', 'idn-email']) ajv.addFormat(format, true)
  for (const name of ['spdx', 'jsf-0.82', 'cryptography-defs']) {
    ajv.addSchema(schema(name), `http://cyclonedx.org/schema/${name}.SNAPSHOT.schema.json`)
  }
  const validate = ajv.compile(schema('bom-1.6'))
  const valid: boolean = validate(bill)
  assert.ok(valid, JSON.stringify(validate.errors?.slice(0, 3)))
  assert.not.ok(validate({ ...bill, components: [{ type: 'library' }] }), 'and it is strict')

  const { packages } = JSON.parse(readFileSync(join(ROOT, 'package-lock.json'), 'utf8'))
  const names = new Set<string>()
  for (const one of bill.components) {
    const name = one.group ? `${one.group}/${one.name}` : one.name
    names.add(name)
    if (one.type === 'platform') continue
    const pinned = Object.entries<{ version: string; integrity: string }>(packages)
      .filter(([path]) => path.endsWith(`node_modules/${name}`))
      .find(([, { version }]) => version === one.version)?.[1]
    const hash = Buffer.from(one.hashes[0].content, 'hex').toString('base64')
    assert.is(`sha512-${hash}`, pinned?.integrity, name)
  }
  for (const name of ['zod', 'hono', '@noble/curves', RUNTIMES[HERE].package]) {
    assert.ok(names.has(name), name)
  }
  for (const name of ['typescript', 'esbuild', 'uvu']) assert.not.ok(names.has(name), name)
})

test('every package that is in it is there with its licence', () => {
  const text = readFileSync(join(out, LICENCES), 'utf8')
  const bill = JSON.parse(readFileSync(join(out, BILL), 'utf8'))
  for (const { group, name, version, type } of bill.components) {
    if (type === 'platform') continue
    const full = group ? `${group}/${name}` : name
    assert.ok(text.includes(`\n${full} ${version} (`), full)
  }
  assert.match(text, /Apache License/, 'of reflect-metadata')
  assert.match(text, /JavaScriptCore/)
})

test('a runtime of another hash is not used, from the cache or from anywhere', () => {
  const cache = world.path('cache')
  mkdirSync(cache)
  const target: TargetName = HERE === 'linux-x64' ? 'linux-arm64' : 'linux-x64'
  writeFileSync(join(cache, `bun-${BUN_VERSION}-${target}`), 'no such program')
  assert.throws(() => runtimeFor(target, { cache, fetch: false }), /is not in the cache/)
})

test('a target whose runtime cannot be had is named, and the others are built', () => {
  const said: string[] = []
  const earlier = process.env['SOTTO_BUILD_CACHE']
  process.env['SOTTO_BUILD_CACHE'] = world.path('no cache')
  try {
    const { built, missing } = build({
      targets: ['windows-x64', HERE],
      out: world.path('partly'),
      trust: join(ROOT, 'compile/release.pub'),
      offline: true,
      say: (line) => said.push(line),
    })
    assert.equal(built, [HERE])
    assert.equal([...missing.keys()], ['windows-x64'])
    assert.match(said.join('\n'), /sotto-windows-x64\.exe +not built: .*not in the cache/)
    assert.match(said.join('\n'), /not signed/)
    assert.not.ok(existsSync(join(world.path('partly'), SIGNATURE)))
  } finally {
    if (earlier === undefined) delete process.env['SOTTO_BUILD_CACHE']
    else process.env['SOTTO_BUILD_CACHE'] = earlier
  }
})

test('programs for macOS carry a signature that fits every page of them', () => {
  for (const target of DARWIN) {
    let runtime: string
    try {
      runtime = runtimeFor(target, { fetch: false })
    } catch {
      console.log(`  not tried: ${target}, whose runtime is not in the cache`)
      continue
    }
    const outfile = world.path(fileName(target))
    buildBinary({ root: ROOT, bun: BUN, target, runtime, outfile, releaseKeys: [] })
    assert.ok(signatureHolds(outfile), target)
    const bytes = readFileSync(outfile)
    bytes[100_000]! ^= 1
    writeFileSync(outfile, bytes)
    assert.not.ok(signatureHolds(outfile), 'one changed bit is seen')
    signAdHoc(outfile)
    assert.ok(signatureHolds(outfile), 'and what is signed anew holds')
  }
})

test.run()
