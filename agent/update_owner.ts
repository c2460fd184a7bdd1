/** Programs that something else keeps up to date: what to run there, in place of changing the file. */
import type { World } from './world.ts'

const ASK_MS_MAX = 10_000
const ANSWER_BYTES_MAX = 4_096

/** Folders that a manager keeps, and what it is told. */
const FOLDERS: readonly (readonly [pattern: RegExp, manager: string, remedy: string])[] = [
  [/^\/nix\/store\//, 'Nix', 'nix profile upgrade sotto'],
  [/^\/gnu\/store\//, 'Guix', 'guix upgrade sotto'],
  [/\/(Cellar|homebrew|linuxbrew)\//, 'Homebrew', 'brew upgrade sotto'],
  [/[/\\]node_modules[/\\]/, 'npm', 'npm update sotto'],
  [/^\/snap\//, 'snap', 'snap refresh sotto'],
  [/[/\\]scoop[/\\]apps[/\\]/i, 'Scoop', 'scoop update sotto'],
]

/** Managers that are asked whose a file is; they exit with 0 where it is theirs. */
const MANAGERS: readonly (readonly [ask: readonly string[], manager: string, remedy: string])[] = [
  [['dpkg-query', '-S'], 'dpkg', 'apt install --only-upgrade sotto'],
  [['rpm', '-qf'], 'rpm', 'dnf upgrade sotto'],
  [['pacman', '-Qo'], 'pacman', 'pacman -Syu sotto'],
  [['apk', 'info', '--who-owns'], 'apk', 'apk upgrade sotto'],
]

/** Undefined where the file is nobody's but the person's. */
export async function ownerOf(
  world: Pick<World, 'programs' | 'clock'>,
  path: string,
): Promise<{ manager: string; remedy: string } | undefined> {
  for (const [pattern, manager, remedy] of FOLDERS) {
    if (pattern.test(path)) return { manager, remedy }
  }
  // No manager of packages has a file on Windows.
  if (!path.startsWith('/')) return undefined
  for (const [ask, manager, remedy] of MANAGERS) {
    if (await owns(world, [...ask, path])) return { manager, remedy }
  }
  return undefined
}

async function owns(
  { programs, clock }: Pick<World, 'programs' | 'clock'>,
  argv: readonly string[],
): Promise<boolean> {
  const env = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C' }
  try {
    let bytes = 0
    const program = await programs.start({ argv, env }, {
      output: (part) => {
        bytes += part.length
        if (bytes > ANSWER_BYTES_MAX) program.kill('kill')
      },
      errors: () => {},
    })
    program.end()
    const late = clock.after(ASK_MS_MAX, () => program.kill('kill'))
    const { code } = await program.done
    late.cancel()
    return code === 0
  } catch {
    // There is no such manager here.
    return false
  }
}
