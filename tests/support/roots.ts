/**
 * Small file systems to run built programs in: packages of Debian unpacked without being installed, for
 * this machine's architecture or another, and programs run in them with a /proc and /dev, as
 * every system has.
 */
import { spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Program, RunOptions } from './world.ts'
import type { E2eWorld } from './world.ts'

export const MIRROR = 'http://deb.debian.org/debian'
/** Its musl knows the relocations that programs of today carry (DT_RELR). */
export const SUITE = 'trixie'
const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg'
const APT_MS_MAX = 90_000

export type DebianArchitecture = 'amd64' | 'arm64'

/** Runs a program to its end; throws with what it said. */
export function must(command: string, args: readonly string[], cwd = '/', ms = APT_MS_MAX): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd,
    encoding: 'utf8',
    timeout: ms,
    killSignal: 'SIGKILL',
  })
  if (status === 0) return stdout
  throw new Error(
    `${command} ${args.slice(-3).join(' ')}: ${error?.message ?? stderr.slice(-1000)}`,
  )
}

/** Unpacks packages of Debian into `root`, by apt with lists of its own; nothing is installed. */
export function unpackDebian(
  root: string,
  packages: readonly string[],
  { architecture, scratch }: { architecture: DebianArchitecture; scratch: string },
): void {
  for (const folder of ['lists/partial', 'archives/partial', 'debs']) {
    mkdirSync(join(scratch, folder), { recursive: true })
  }
  mkdirSync(join(root, 'usr/lib'), { recursive: true })
  const sources = join(scratch, 'sources.list')
  writeFileSync(sources, `deb [signed-by=${KEYRING}] ${MIRROR} ${SUITE} main\n`)
  const options = [
    `APT::Architecture=${architecture}`,
    `APT::Architectures::=${architecture}`,
    `Dir::Etc::sourcelist=${sources}`,
    'Dir::Etc::sourceparts=-',
    `Dir::State::lists=${join(scratch, 'lists')}`,
    'Dir::State::status=/dev/null',
    `Dir::Cache=${scratch}`,
    'APT::Sandbox::User=root',
    'Acquire::Languages=none',
  ].flatMap((option) => ['-o', option])
  const debs = join(scratch, 'debs')
  must('apt-get', [...options, '-qq', 'update'])
  must('apt-get', [...options, '-qq', 'download', ...packages], debs)
  for (const deb of readdirSync(debs)) must('dpkg-deb', ['-x', join(debs, deb), root])
}

/** A program inside `root`, in a mount and process space of its own. */
export function startInside(
  world: E2eWorld,
  { root, command, env = {} }: { root: string; command: string[]; env?: RunOptions['env'] },
): Program {
  // Both are gone with the process: the mounts are of its own space.
  const script = 'root="$1"; shift; mkdir -p "$root/proc" "$root/dev" && ' +
    'mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev" && exec chroot "$root" "$@"'
  return world.start('unshare', [
    '--mount',
    '--pid',
    '--fork',
    '--kill-child',
    'sh',
    '-c',
    script,
    'sh',
    root,
    ...command,
  ], { env: { HOME: '/root', PATH: '/usr/sbin:/usr/bin:/sbin:/bin', ...env } })
}
