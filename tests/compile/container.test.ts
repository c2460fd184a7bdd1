// seconds: 300
// needs: root buildah busybox apt-get unshare curl
/**
 * The container as docs/deploy.md says it is made, by `buildah`, on a base of Debian's own packages: the
 * relay in it runs as nobody in particular, keeps its identity in the volume, and drains when it is stopped.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { copyFileSync, mkdirSync, readFileSync, statSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import { buildBinary } from '../../compile/binary.ts'
import { runtimeFor } from '../../compile/runtimes.ts'
import { must, unpackDebian } from '../support/roots.ts'
import { BUN, E2eWorld, ROOT } from '../support/world.ts'

const BUILD_MS_MAX = 120_000
const USER = 65_532
const IMAGE = 'localhost/sotto-relay'

interface ImageConfig {
  OCIv1: { config: { Entrypoint: string[]; User: string; Volumes: object; StopSignal: string } }
}

let world: E2eWorld

const test = suite('compile/container')

test.before(() => void (world = new E2eWorld()))
test.after(() => world.close())

function buildah(...args: string[]): string {
  const store = ['--storage-driver', 'vfs', '--root', world.path('images')]
  return must('buildah', [...store, '--runroot', world.path('run'), ...args], '/', BUILD_MS_MAX)
    .trim()
}

/** glibc and a shell, as an image. */
function makeBase(): string {
  const root = world.path('base')
  const scratch = world.path('apt')
  unpackDebian(root, ['libc6', 'libgcc-s1', 'libstdc++6', 'busybox-static'], {
    architecture: 'amd64',
    scratch,
  })
  for (const name of ['bin', 'lib', 'lib64']) {
    mkdirSync(join(root, 'usr', name), { recursive: true })
    symlinkSync(`usr/${name}`, join(root, name))
  }
  for (const name of ['sh', 'mkdir', 'chown', 'chmod']) {
    symlinkSync('busybox', join(root, 'usr/bin', name))
  }
  for (const name of ['proc', 'dev', 'tmp']) mkdirSync(join(root, name), { recursive: true })
  const container = buildah('from', 'scratch')
  buildah('copy', '--quiet', container, root, '/')
  buildah('commit', '--quiet', '--rm', container, 'localhost/base')
  return 'localhost/base'
}

test('a relay in a container: built, run, stopped, and the same one again', async () => {
  const dist = world.path('dist')
  mkdirSync(dist)
  const outfile = join(dist, 'sotto-linux-x64')
  const runtime = runtimeFor('linux-x64', { fetch: true })
  buildBinary({ root: ROOT, bun: BUN, target: 'linux-x64', runtime, outfile, releaseKeys: [] })
  copyFileSync(join(ROOT, 'compile/Containerfile'), world.path('Containerfile'))
  buildah(
    ...['bud', '--quiet', '--isolation', 'chroot', '--build-arg', `BASE=${makeBase()}`],
    ...['-t', IMAGE, '-f', world.path('Containerfile'), dist],
  )
  const { config } = (JSON.parse(buildah('inspect', '--type', 'image', IMAGE)) as ImageConfig).OCIv1
  assert.equal([config.User, config.StopSignal], [`${USER}:${USER}`, 'SIGTERM'])
  assert.equal(Object.keys(config.Volumes), ['/var/lib/sotto'])

  const root = buildah('mount', buildah('from', IMAGE))
  // What a volume becomes when it is new: the folder of the image.
  const volume = join(root, 'var/lib/sotto')
  assert.equal([statSync(volume).uid, statSync(volume).mode & 0o777], [USER, 0o700])
  // Outside a runtime of containers: the same program by the same words, as that user, in that root.
  const script = 'root="$1"; shift; mount -t proc proc "$root/proc" && ' +
    'mount --rbind /dev "$root/dev" && exec chroot --userspec=65532:65532 "$root" "$@"'
  const identities: unknown[] = []
  for (const round of [1, 2]) {
    const relay = world.start('unshare', [
      ...['--mount', '--pid', '--fork', '--kill-child', 'sh', '-c', script, 'sh', root],
      ...config.Entrypoint,
      ...['--domain', 'relay.example.com', '--port', '0', '--json', '--grace', '2'],
    ], { env: { SOTTO_HOME: '/var/lib/sotto', PATH: '/usr/sbin:/usr/bin:/sbin:/bin' } })
    const listening = await relay.event('listening')
    const { port } = listening
    const curl = ['-sk', '--resolve', `relay.example.com:${port}:127.0.0.1`]
    const answer = must('curl', [...curl, `https://relay.example.com:${port}/healthz`])
    assert.is(answer, 'ok\n', `round ${round}`)
    identities.push(listening['fingerprint'])
    const { pid } = relay.child
    // To the process itself: unshare does not pass signals on.
    const [child] = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ')
    process.kill(Number(child), 'SIGTERM')
    await relay.ended
  }
  assert.match(identities[0] as string, /^SHA256:/)
  assert.is(identities[1], identities[0])
  buildah('rm', '--all')
  buildah('rmi', '--all', '--force')
})

test.run()
