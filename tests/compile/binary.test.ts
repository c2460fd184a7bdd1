// seconds: 400
// needs: root debootstrap apt-get unshare qemu-aarch64-static pip3 unzip
/**
 * The built programs where there is next to nothing: the one for glibc in Debian's minimal root, the one
 * for musl in a root of busybox, and those for arm64 under qemu. In each it makes an identity, and a relay
 * that it starts answers. Their runtimes come from the cache that `npm run build` fills, or are fetched.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { chmodSync, copyFileSync, mkdirSync, readdirSync, rmSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import { VERSION } from '../../agent/version.ts'
import { buildBinary, fileName } from '../../compile/binary.ts'
import { runtimeFor } from '../../compile/runtimes.ts'
import type { TargetName } from '../../compile/runtimes.ts'
import { MIRROR, must, startInside, SUITE, unpackDebian } from '../support/roots.ts'
import { BUN, E2eWorld, ROOT } from '../support/world.ts'
import type { Program } from '../support/world.ts'

const DEBOOTSTRAP_MS_MAX = 300_000
/** Any wheel for musl brings the C++ library along that programs for musl ask for. */
const WHEEL = 'greenlet==3.5.6'

let world: E2eWorld

const test = suite('compile/binary')

test.before(() => void (world = new E2eWorld()))
test.after(() => world.close())

/** The program for a target; undefined, and named, where its runtime cannot be had. */
function binary(target: TargetName): string | undefined {
  let runtime: string
  try {
    runtime = runtimeFor(target, { fetch: true })
  } catch (error) {
    if (process.env['CI']) throw error
    console.log(`  not tried: ${target}: ${(error as Error).message}`)
    return undefined
  }
  const outfile = world.path(fileName(target))
  buildBinary({ root: ROOT, bun: BUN, target, runtime, outfile, releaseKeys: [] })
  return outfile
}

/** Its version, an identity, and a relay that answers from inside. */
async function works(start: (args: string[]) => Program): Promise<void> {
  const version = start(['--version'])
  assert.is((await version.ended).code, 0, version.stderr)
  assert.is(version.stdout, `${VERSION}\n`)
  const identity = start(['identity', '--json'])
  assert.is((await identity.ended).code, 0, identity.stderr)
  assert.match(identity.lines[0]!['fingerprint'], /^SHA256:/)
  const relay = start(['relay', '--port', '0', '--host', '127.0.0.1', '--json'])
  const { port } = await relay.event('listening')
  const response = await fetch(`https://localhost:${port}/healthz`, {
    tls: { rejectUnauthorized: false },
  } as RequestInit)
  assert.is(await response.text(), 'ok\n')
  relay.signal('SIGKILL')
  await relay.ended
}

function put(program: string, root: string): void {
  mkdirSync(join(root, 'usr/bin'), { recursive: true })
  copyFileSync(program, join(root, 'usr/bin/sotto'))
  chmodSync(join(root, 'usr/bin/sotto'), 0o755)
}

/** libstdc++ and libgcc for musl, out of a wheel. */
function musl(root: string, machine: 'x86_64' | 'aarch64'): void {
  const folder = world.path(`wheel-${machine}`)
  mkdirSync(folder, { recursive: true })
  must('pip3', [
    'download',
    '--quiet',
    '--disable-pip-version-check',
    '--no-deps',
    '--only-binary=:all:',
    `--platform=musllinux_1_2_${machine}`,
    '--python-version=3.12',
    '--implementation=cp',
    '--abi=cp312',
    `--dest=${folder}`,
    WHEEL,
  ])
  must(
    'unzip',
    ['-qo', join(folder, readdirSync(folder).find((name) => name.endsWith('.whl'))!)],
    folder,
  )
  // Debian's musl lives beside another C library; here it is the only one.
  rmSync(join(root, `etc/ld-musl-${machine}.path`), { force: true })
  const libraries = join(folder, 'greenlet.libs')
  for (const name of readdirSync(libraries)) {
    const to = name.startsWith('libstdc++') ? 'libstdc++.so.6' : name
    copyFileSync(join(libraries, name), join(root, 'usr/lib', to))
  }
}

test('linux-x64 in a root of debootstrap', async () => {
  const program = binary('linux-x64')
  if (!program || process.arch !== 'x64') return
  const root = world.path('debian')
  must(
    'debootstrap',
    ['--variant=minbase', SUITE, root, MIRROR],
    '/',
    DEBOOTSTRAP_MS_MAX,
  )
  put(program, root)
  await works((args) => startInside(world, { root, command: ['/usr/bin/sotto', ...args] }))
})

test('linux-x64-musl in a root of busybox, beside musl and its C++ library', async () => {
  const program = binary('linux-x64-musl')
  if (!program || process.arch !== 'x64') return
  const root = world.path('busybox')
  unpackDebian(root, ['musl', 'busybox-static'], {
    architecture: 'amd64',
    scratch: world.path('apt-amd64'),
  })
  musl(root, 'x86_64')
  for (const name of ['lib', 'bin']) symlinkSync(`usr/${name}`, join(root, name))
  for (const name of ['proc', 'root', 'tmp', 'etc/x']) {
    mkdirSync(join(root, name), { recursive: true })
  }
  symlinkSync('busybox', join(root, 'usr/bin/sh'))
  put(program, root)
  // By a shell of busybox, as a person would.
  await works((args) =>
    startInside(world, { root, command: ['/bin/sh', '-c', 'exec sotto "$@"', 'sh', ...args] })
  )
})

for (
  const [target, packages] of [
    ['linux-arm64', ['libc6']],
    ['linux-arm64-musl', ['musl']],
  ] as const
) {
  test(`${target} under qemu`, async () => {
    const program = binary(target)
    if (!program) return
    const root = world.path(target)
    unpackDebian(root, packages, { architecture: 'arm64', scratch: world.path(`apt-${target}`) })
    symlinkSync('usr/lib', join(root, 'lib'))
    if (target === 'linux-arm64-musl') musl(root, 'aarch64')
    // qemu looks beneath the root for what a program names, and Debian's musl looks elsewhere.
    const env = { LD_LIBRARY_PATH: join(root, 'usr/lib') }
    await works((args) =>
      world.start('qemu-aarch64-static', ['-L', root, program, ...args], { env })
    )
  })
}

test.run()
