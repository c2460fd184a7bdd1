/**
 * Which release takes the place of this program. A relay is believed nothing: the manifest is signed by a
 * key that was compiled in, the file has the hash that the manifest says, and no version goes back unless
 * the person names it. What a relay can still do is to hand out nothing newer, for a while: a list that was
 * signed long ago is told (docs/threat-model.md).
 */
import { text } from '../core/bytes.ts'
import type { Crypto } from '../core/crypto.ts'
import { TunnelError } from '../core/errors.ts'
import { decodeMinisignKey, formatKeyId, MINISIGN_FILE_CHARS_MAX } from '../core/minisign.ts'
import { compareVersions, openRelease, SUMS_BYTES_MAX } from '../core/release.ts'
import type { Release } from '../core/release.ts'
import type { OwnProgram, StagedProgram } from './own_program.ts'
import { fetchFile, fetchSmall } from './update_fetch.ts'
import type { Fetching } from './update_fetch.ts'
import type { World } from './world.ts'

/** Larger than any program of ours; a relay hands out none that is larger. */
export const PROGRAM_BYTES_MAX = 2 ** 29
const TRIAL_MS_MAX = 30_000
const DAY_MS = 86_400_000
/** What is handed out as the newest may have been signed so long ago before that is worth a line. */
const STALE_DAYS = 180
const TRIAL_BYTES_MAX = 65_536

/** The manifest below `base`, which ends in a slash. Throws `minisign/…`, `release/…`, `update/…`. */
export async function fetchRelease(
  base: URL,
  { own, crypto, ...fetching }: Fetching & { own: Pick<OwnProgram, 'releaseKeys'>; crypto: Crypto },
): Promise<Release> {
  const keys = own.releaseKeys.map(decodeMinisignKey)
  if (keys.length === 0) {
    throw new TunnelError(
      'update/no-keys',
      'Cannot update: this program was built without the key of any release',
      { hint: 'Install a release in its place, as the page of your relay says.' },
    )
  }
  const sums = await fetchSmall(new URL('SHA256SUMS', base), {
    ...fetching,
    bytesMax: SUMS_BYTES_MAX,
  })
  const signature = await fetchSmall(new URL('SHA256SUMS.minisig', base), {
    ...fetching,
    bytesMax: MINISIGN_FILE_CHARS_MAX,
  })
  return openRelease(sums, { signature: text(signature), keys, crypto })
}

export interface Judged {
  /** What is installed. */
  installed: string
  /** SHA-256 of it, hexadecimal. */
  hash: string
  /** The newest version that a good manifest ever named here. */
  newest: string | undefined
  /** What the person asks for. */
  wanted: string | undefined
  allowDowngrade: boolean
}

export interface Choice {
  /** Name of the file in the release. */
  name: string
  sha256: string
  /** False: it is this very program. */
  differs: boolean
}

/** Throws `update/…` on a release that must not take this program's place. */
export function judge(release: Release, target: string, given: Judged): Choice {
  const { installed, hash, newest, wanted, allowDowngrade } = given
  const name = `sotto-${target}${target.startsWith('windows') ? '.exe' : ''}`
  const { version, files } = release
  if (wanted !== undefined && wanted !== version) {
    throw new TunnelError(
      'update/version',
      `Cannot update to ${wanted}: found ${version}, which is all that is handed out there`,
      { hint: 'Name where that version is with --from URL.' },
    )
  }
  const asked = wanted !== undefined && allowDowngrade
  if (compareVersions(version, installed) < 0 && !asked) {
    throw new TunnelError(
      'update/downgrade',
      `Cannot update: found version ${version}, which is older than ${installed} here`,
      { hint: `If you mean it: sotto update --version ${version} --allow-downgrade` },
    )
  }
  if (newest !== undefined && compareVersions(version, newest) < 0 && !asked) {
    throw new TunnelError(
      'update/rolled-back',
      `Cannot update: found version ${version}, and ${newest} has been handed out before`,
      {
        hint: 'Ask the host of the relay why. If you mean it: ' +
          `sotto update --version ${version} --allow-downgrade`,
      },
    )
  }
  const sha256 = files.get(name)
  if (sha256 === undefined) {
    throw new TunnelError('update/no-file', `Cannot update: version ${version} has no ${name}`)
  }
  if (version === installed && sha256 !== hash && !asked) {
    throw new TunnelError(
      'update/different',
      `Cannot update: found version ${version} with another content than the ${installed} here`,
      {
        hint: 'One of them was changed or built by hand. To have the signed one: ' +
          `sotto update --version ${version} --allow-downgrade`,
      },
    )
  }
  return { name, sha256, differs: sha256 !== hash }
}

/**
 * A line where the newest that is handed out is from long ago, or from a day that has not come. Of a clock
 * that is wrong, of makers that rest, or of a relay that holds something back: which one nobody here knows.
 */
export function ageWarning({ signedMs, version }: Release, nowMs: number): string | undefined {
  if (signedMs === undefined) return undefined
  const day = new Date(signedMs).toISOString().slice(0, 10)
  // Days begin at different hours around the world.
  if (signedMs > nowMs + DAY_MS) {
    const today = new Date(nowMs).toISOString().slice(0, 10)
    return `sotto ${version} was signed on ${day}, and this machine's clock says ${today}: set the clock`
  }
  const days = Math.floor((nowMs - signedMs) / DAY_MS)
  return days <= STALE_DAYS
    ? undefined
    : `sotto ${version}, the newest that is handed out there, was signed ${days} days ago (${day}): ` +
      'see whether its makers publish a newer one elsewhere'
}

/** The file, whole, of the right hash, and not yet to be run. Throws `update/…`, `files/…`. */
export async function fetchProgram(
  base: URL,
  { name, sha256 }: Choice,
  { own, progress, ...fetching }: Fetching & {
    own: OwnProgram
    progress(have: number, whole: number | undefined): void
  },
): Promise<StagedProgram> {
  const staged = await own.stage()
  try {
    let have = 0
    let whole: number | undefined
    await fetchFile(new URL(name, base), {
      ...fetching,
      bytesMax: PROGRAM_BYTES_MAX,
      sink: {
        length: (bytes) => void (whole = bytes),
        async data(bytes) {
          await staged.write(bytes)
          progress(have += bytes.length, whole)
        },
        async restart() {
          have = 0
          await staged.restart()
        },
      },
    })
    const found = await staged.finish()
    if (found !== sha256) {
      throw new TunnelError(
        'update/hash',
        `Cannot trust the download: found SHA-256 ${found}, expected ${sha256}`,
      )
    }
    return staged
  } catch (error) {
    await staged.discard()
    throw error
  }
}

/** Has the program at `path` try itself, and gives the version that it says. Throws `update/self-test`. */
export async function tryProgram(world: Pick<World, 'programs' | 'clock' | 'env'>, path: string) {
  const version = (await runProgram(world, [path, '--version'])).trim()
  const words = await runProgram(world, [path, 'self-test'])
  if (words.trim() !== `sotto ${version}: ok`) {
    throw badProgram(`it said ${JSON.stringify(words.slice(0, 200))}`)
  }
  return version
}

/** What it prints. */
async function runProgram(
  { programs, clock, env }: Pick<World, 'programs' | 'clock' | 'env'>,
  argv: readonly string[],
): Promise<string> {
  let out = ''
  let errors = ''
  const add = (before: string, bytes: Uint8Array): string =>
    (before + new TextDecoder().decode(bytes)).slice(0, TRIAL_BYTES_MAX)
  // Nothing of ours but what systems need to start a program at all.
  const names = ['PATH', 'HOME', 'TMPDIR', 'TEMP', 'SYSTEMROOT', 'USERPROFILE', 'LD_LIBRARY_PATH']
  const kept = names.flatMap((name) => env[name] === undefined ? [] : [[name, env[name]!] as const])
  const program = await programs.start({ argv, env: Object.fromEntries(kept) }, {
    output: (bytes) => void (out = add(out, bytes)),
    errors: (bytes) => void (errors = add(errors, bytes)),
  }).catch((error) => {
    throw badProgram((error as Error).message)
  })
  program.end()
  const late = clock.after(TRIAL_MS_MAX, () => program.kill('kill'))
  const { code, signal } = await program.done
  late.cancel()
  if (code !== 0) throw badProgram(`${code ?? signal}: ${errors.trim().slice(-300)}`)
  return out
}

function badProgram(found: string): TunnelError {
  return new TunnelError(
    'update/self-test',
    `Cannot use that program: its own test failed on this machine (${found})`,
  )
}

/** The id of the key that signed, for people. */
export function signerOf({ key }: Release): string {
  return formatKeyId(key)
}
