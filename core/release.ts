/**
 * What a release says of itself: `SHA256SUMS`, one line for each file, and `SHA256SUMS.minisig`, whose
 * trusted comment names program and version. Both are believed only when a key signed them that was
 * known before, so whoever serves the files cannot change them, and cannot pass an old release off
 * as a newer one: the version is signed with the hashes. The day of signing is too, so that a list that has
 * been the newest for very long is noticed; lists of before have none.
 *
 *   0123…cdef  sotto-linux-x64          hexadecimal SHA-256, two spaces, name
 *   trusted comment: sotto 1.2.3 2026-11-21     version, UTC day of signing
 */
import { text } from './bytes.ts'
import type { Crypto } from './crypto.ts'
import { TunnelError } from './errors.ts'
import type { MinisignKey } from './minisign.ts'
import { verifyMinisign } from './minisign.ts'

const COMMENT_BEGIN = 'sotto '
export const SUMS_BYTES_MAX = 65_536
const VERSION_CHARS_MAX = 64
/** A file of a release: no folder, no leading dot or dash. */
const LINE = /^([0-9a-f]{64}) {2}([A-Za-z0-9_][A-Za-z0-9._-]{0,127})$/
const VERSION = /^(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})(?:-([0-9A-Za-z.-]+))?$/

export interface Release {
  version: string
  /** SHA-256 in hexadecimal by file name. */
  files: ReadonlyMap<string, string>
  key: MinisignKey
  /** The UTC day on which it was signed, from its beginning; undefined where the comment names none. */
  signedMs: number | undefined
}

/** `signedMs` is any instant of the day of signing. Throws `release/malformed`. */
export function releaseComment(version: string, signedMs?: number): string {
  checkVersion(version)
  const day = signedMs === undefined ? '' : ` ${new Date(signedMs).toISOString().slice(0, 10)}`
  return `${COMMENT_BEGIN}${version}${day}`
}

/** The bytes of SHA256SUMS, in order of names. */
export function encodeSums(files: ReadonlyMap<string, string>): string {
  return [...files].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, sum]) => {
    const line = `${sum}  ${name}`
    if (!LINE.test(line)) throw wrong(`the file name ${JSON.stringify(name)}`)
    return `${line}\n`
  }).join('')
}

/** Throws what verifyMinisign() throws, and `release/malformed` on what was signed but says nothing. */
export function openRelease(
  sums: Uint8Array,
  { signature, keys, crypto }: {
    signature: string
    keys: readonly MinisignKey[]
    crypto: Crypto
  },
): Release {
  if (sums.length > SUMS_BYTES_MAX) throw wrong(`${sums.length} bytes of sums`)
  const { key, trustedComment } = verifyMinisign(sums, { signature, keys, crypto })
  if (!trustedComment.startsWith(COMMENT_BEGIN)) throw wrong('the signature of another program')
  const [version = '', day, ...more] = trustedComment.slice(COMMENT_BEGIN.length).split(' ')
  checkVersion(version)
  const signedMs = day === undefined ? undefined : readDay(day)
  if (more.length > 0) throw wrong('more words after the day')
  const files = new Map<string, string>()
  const lines = text(sums).split('\n')
  if (lines.pop() !== '') throw wrong('a last line that does not end')
  for (const line of lines) {
    const [, sum, name] = LINE.exec(line) ?? []
    if (sum === undefined || name === undefined) throw wrong('a line that is no sum and name')
    if (files.has(name)) throw wrong(`the file ${name} twice`)
    files.set(name, sum)
  }
  return { version, files, key, signedMs }
}

/** Negative where `a` is older than `b` (Semantic Versioning 2.0.0 §11). Throws `release/malformed`. */
export function compareVersions(a: string, b: string): number {
  const [left, right] = [checkVersion(a), checkVersion(b)]
  for (let i = 0; i < 3; i++) {
    if (left.numbers[i] !== right.numbers[i]) return left.numbers[i]! - right.numbers[i]!
  }
  if (left.before.length === 0 || right.before.length === 0) {
    return right.before.length - left.before.length
  }
  for (let i = 0; i < Math.max(left.before.length, right.before.length); i++) {
    const order = comparePart(left.before[i], right.before[i])
    if (order !== 0) return order
  }
  return 0
}

function comparePart(a: string | undefined, b: string | undefined): number {
  if (a === b) return 0
  if (a === undefined) return -1
  if (b === undefined) return 1
  const [x, y] = [/^\d+$/.test(a), /^\d+$/.test(b)]
  if (x && y) return Number(a) - Number(b)
  if (x !== y) return x ? -1 : 1
  return a < b ? -1 : 1
}

function checkVersion(version: string): { numbers: number[]; before: string[] } {
  const found = version.length <= VERSION_CHARS_MAX ? VERSION.exec(version) : null
  if (!found) throw wrong(`the version ${JSON.stringify(version.slice(0, VERSION_CHARS_MAX))}`)
  return {
    numbers: found.slice(1, 4).map(Number),
    before: found[4] === undefined ? [] : found[4].split('.'),
  }
}

function readDay(day: string): number {
  const ms = /^\d{4}-\d\d-\d\d$/.test(day) ? Date.parse(`${day}T00:00:00Z`) : NaN
  // Of 2026-02-31 some engines make the third of March.
  const same = !Number.isNaN(ms) && new Date(ms).toISOString().startsWith(day)
  if (!same) throw wrong(`the day ${JSON.stringify(day.slice(0, 32))}`)
  return ms
}

function wrong(found: string): TunnelError {
  return new TunnelError(
    'release/malformed',
    `Cannot read the release: found ${found}, expected SHA256SUMS of a version of sotto`,
  )
}
