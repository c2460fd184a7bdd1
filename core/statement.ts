/**
 * Statements: what identities sign about each other and themselves, kept and served by relays and
 * believed by nobody without the signatures. One set of facts has exactly one encoding.
 *
 *   version  2  1
 *   kind     1  see STATEMENT
 *   rotation:    old 32, new 32, time 8, signature 64 by the old, signature 64 by the new
 *   revocation:  identity 32, time 8, signature 64
 *   vouch:       authority 32, identity 32, serial 8, not before 8, not after 8, scope text8,
 *                names (count 1, text8 each, ascending), labels (§3), signature 64 by the authority
 *   withdrawal:  authority 32, sequence 8, time 8, count 2, serial 8 each, ascending, signature 64
 *
 * A signature is over "sotto KIND v1" 0 ‖ all before it. Integers are big-endian, times are ms since
 * 1970, the whole is at most 4,096 bytes. docs/protocol.md §14.
 */
import { ByteReader, ByteWriter, concat, equal, hex, utf8 } from './bytes.ts'
import type { Crypto } from './crypto.ts'
import { KEY_BYTES, SIGNATURE_BYTES } from './crypto.ts'
import { TunnelError } from './errors.ts'
import { fingerprint, isName } from './key.ts'
import type { Labels } from './labels.ts'
import { readLabels, writeLabels } from './labels.ts'

// Specification constants.
export const STATEMENT_VERSION = 1
export const STATEMENT_BYTES_MAX = 4096
/** Most of one identity that a relay keeps. */
export const STATEMENTS_MAX = 16
export const VOUCH_NAMES_MAX = 16
export const WITHDRAWAL_SERIALS_MAX = 256
/** Longest chain of rotations that is followed. */
export const ROTATIONS_MAX = 16
/** How far the clocks of signer and reader may differ. */
export const STATEMENT_SKEW_MS = 600_000

const HEAD_BYTES = 2 + 1 + KEY_BYTES

/** Every kind. Numbers are never reused. */
export const STATEMENT = Object.freeze({
  rotation: 1, // an identity names its successor, and the successor agrees
  revocation: 2, // an identity is not to be trusted any more
  vouch: 3, // an authority answers for an identity
  withdrawal: 4, // an authority takes vouches back, all that it ever took back
})
export type StatementKind = keyof typeof STATEMENT

/** Made when an agent moves to a new key; peers that pinned the old one follow it. */
export interface Rotation {
  kind: 'rotation'
  old: Uint8Array
  new: Uint8Array
  /** Milliseconds since 1970. */
  time: number
}

/** Made beforehand and kept offline, for the day when the key is stolen or lost. */
export interface Revocation {
  kind: 'revocation'
  identity: Uint8Array
  time: number
}

/** What an authority says of an identity: as good as a pin where the authority is pinned. */
export interface Vouch {
  kind: 'vouch'
  authority: Uint8Array
  identity: Uint8Array
  serial: number
  notBefore: number
  notAfter: number
  /** A name, or empty for any. */
  scope: string
  /** Endpoint or agent names, 0 to 16. */
  names: string[]
  labels: Labels
}

/** The newest replaces all earlier ones. */
export interface Withdrawal {
  kind: 'withdrawal'
  authority: Uint8Array
  sequence: number
  time: number
  /** 0 to 256 serials of vouches. */
  serials: number[]
}

export type Statement = Rotation | Revocation | Vouch | Withdrawal

/**
 * The canonical bytes; names and serials are put in order. `sign` gets each message and the identity
 * whose signature is wanted: a rotation is signed by the old, then by the new. Throws
 * `statement/length`, `/range`, `/name`, `/duplicate`, `/size`, `/validity`, `/self`, `labels/…`.
 */
export function encodeStatement(
  fields: Statement,
  sign: (message: Uint8Array, signer: Uint8Array) => Uint8Array,
): Uint8Array {
  const statement = inOrder(fields)
  checkFields(statement)
  let bytes = writeFields(statement)
  for (const signer of signersOf(statement)) {
    const signature = sign(concat(labelOf(statement.kind), bytes), signer)
    needLength('signature', signature, SIGNATURE_BYTES)
    bytes = concat(bytes, signature)
  }
  needSize(bytes.length)
  return bytes
}

/**
 * What the statement says, once its signatures hold. Arrays are copies. Throws `statement/size`,
 * `/version`, `/kind`, `/forged`; then `/truncated`, `/trailing`, `/order`, `/duplicate`, `/name`,
 * `/range`, `/validity`, `/self`, `labels/…`, `bytes/utf8`. Whether it counts now is for `follow`
 * and `checkVouch` to say.
 */
export function openStatement(crypto: Crypto, bytes: Uint8Array): Statement {
  needSize(bytes.length)
  const copy = Uint8Array.from(bytes)
  const reader = new ByteReader(copy, 'statement', 'statement')
  const version = reader.u16()
  if (version !== STATEMENT_VERSION) {
    throw new TunnelError(
      'statement/version',
      `Cannot open statement: found version ${version}, expected ${STATEMENT_VERSION}`,
      { hint: 'Update sotto on the older of the two machines.' },
    )
  }
  const number = reader.u8()
  const kind = KINDS.find((one) => STATEMENT[one] === number)
  if (!kind) throw new TunnelError('statement/kind', `Cannot open statement: found kind ${number}`)
  const signer = reader.bytes(KEY_BYTES)
  if (kind === 'rotation') {
    const successor = reader.bytes(KEY_BYTES)
    verify(crypto, copy.subarray(0, -SIGNATURE_BYTES), { kind, signer })
    verify(crypto, copy, { kind, signer: successor })
  } else verify(crypto, copy, { kind, signer })
  const statement = readFields(kind, copy)
  checkFields(statement)
  return statement
}

/** Where the statements on an identity lead. */
export type Followed =
  /** The identity to trust in its place, with each step; the same and no steps where none rotated. */
  | { kind: 'successor'; identity: Uint8Array; steps: Rotation[] }
  /** The identity, or one that it led to, was revoked: nothing takes its place. */
  | { kind: 'revoked'; identity: Uint8Array; time: number }

/**
 * Follows the rotations from `identity` on; statements on others are stepped over. Any revocation
 * on the way beats every rotation. Throws `trust/split` where one identity has two successors,
 * `trust/circle`, and `trust/steps` after 16: each stops everything.
 */
export function follow(
  crypto: Crypto,
  identity: Uint8Array,
  statements: readonly Statement[],
): Followed {
  const steps: Rotation[] = []
  const seen = new Set<string>()
  for (let at = identity;; at = steps.at(-1)!.new) {
    const revocation = statements.find((one): one is Revocation =>
      one.kind === 'revocation' && equal(one.identity, at)
    )
    if (revocation) return { kind: 'revoked', identity: at, time: revocation.time }
    if (seen.has(hex(at))) {
      throw new TunnelError(
        'trust/circle',
        `Cannot follow identity: found that ${fingerprint(crypto, at)} leads back to itself`,
      )
    }
    seen.add(hex(at))
    const rotations = statements.filter((one): one is Rotation =>
      one.kind === 'rotation' && equal(one.old, at)
    )
    const next = rotations[0]
    if (!next) return { kind: 'successor', identity: at, steps }
    const other = rotations.find((one) => !equal(one.new, next.new))
    if (other) throw split(crypto, at, [next, other])
    if (steps.length === ROTATIONS_MAX) {
      throw new TunnelError(
        'trust/steps',
        `Cannot follow identity: found more than ${ROTATIONS_MAX} rotations, expected fewer`,
      )
    }
    steps.push(next)
  }
}

export interface VouchCheck {
  /** Milliseconds since 1970. */
  now: number
  /** The newest of that authority that is known. */
  withdrawal?: Withdrawal | undefined
}

/**
 * Throws unless the vouch counts now; that its authority is pinned as one is the caller's to know.
 * `statement/early`, `statement/expired`, `statement/withdrawn`, `statement/authority`.
 */
export function checkVouch(vouch: Vouch, { now, withdrawal }: VouchCheck): void {
  if (now < vouch.notBefore - STATEMENT_SKEW_MS) {
    throw noVouch('early', 'one that is not valid yet', 'Check the clocks of both machines.')
  }
  if (now > vouch.notAfter + STATEMENT_SKEW_MS) {
    throw noVouch('expired', 'one that expired', 'Ask the authority to sign it again.')
  }
  if (!withdrawal) return
  if (!equal(withdrawal.authority, vouch.authority)) {
    throw noVouch('authority', 'the withdrawal of another authority')
  }
  if (withdrawal.serials.includes(vouch.serial)) {
    throw noVouch('withdrawn', `serial ${vouch.serial}, which its authority took back`)
  }
}

/**
 * The withdrawal to keep of the one that is known and one that came. Throws `statement/stale` on an
 * older one, `statement/authority` on another authority's, and `trust/split` on two that differ
 * under one number: their authority signs different things to different people.
 */
export function newestWithdrawal(known: Withdrawal | undefined, found: Withdrawal): Withdrawal {
  if (!known) return found
  if (!equal(known.authority, found.authority)) {
    throw noVouch('authority', 'the withdrawal of another authority')
  }
  if (found.sequence < known.sequence) {
    throw new TunnelError(
      'statement/stale',
      `Cannot take withdrawal: found number ${found.sequence}, expected ${known.sequence} or above`,
      { hint: 'An older one was replayed, or the authority was restored from a backup.' },
    )
  }
  if (found.sequence === known.sequence && !equal(writeFields(found), writeFields(known))) {
    throw new TunnelError(
      'trust/split',
      `Cannot take withdrawal: found two that differ under number ${found.sequence}`,
    )
  }
  return found
}

const KINDS = Object.keys(STATEMENT) as StatementKind[]

/** All but the signatures. */
function writeFields(statement: Statement): Uint8Array {
  const writer = new ByteWriter(512).u16(STATEMENT_VERSION).u8(STATEMENT[statement.kind])
  if (statement.kind === 'rotation') {
    return writer.bytes(statement.old).bytes(statement.new).u64(statement.time).done()
  }
  if (statement.kind === 'revocation') {
    return writer.bytes(statement.identity).u64(statement.time).done()
  }
  writer.bytes(statement.authority)
  if (statement.kind === 'vouch') {
    writer.bytes(statement.identity).u64(statement.serial).u64(statement.notBefore)
    writer.u64(statement.notAfter).text8(statement.scope).u8(statement.names.length)
    for (const name of statement.names) writer.text8(name)
    return writeLabels(writer, statement.labels).done()
  }
  writer.u64(statement.sequence).u64(statement.time).u16(statement.serials.length)
  for (const serial of statement.serials) writer.u64(serial)
  return writer.done()
}

/** The same from bytes whose signatures hold. */
function readFields(kind: StatementKind, bytes: Uint8Array): Statement {
  const signatures = (kind === 'rotation' ? 2 : 1) * SIGNATURE_BYTES
  const reader = new ByteReader(bytes.subarray(0, -signatures), 'statement', kind)
  reader.bytes(2 + 1)
  const first = reader.bytes(KEY_BYTES)
  let statement: Statement
  if (kind === 'rotation') {
    statement = { kind, old: first, new: reader.bytes(KEY_BYTES), time: reader.u64() }
  } else if (kind === 'revocation') {
    statement = { kind, identity: first, time: reader.u64() }
  } else if (kind === 'vouch') {
    statement = {
      kind,
      authority: first,
      identity: reader.bytes(KEY_BYTES),
      serial: reader.u64(),
      notBefore: reader.u64(),
      notAfter: reader.u64(),
      scope: reader.text8(),
      names: readNames(reader),
      labels: readLabels(reader),
    }
  } else {
    const [sequence, time] = [reader.u64(), reader.u64()]
    const serials: number[] = []
    const count = reader.u16()
    needCount(count, WITHDRAWAL_SERIALS_MAX)
    for (let left = count; left > 0; left--) serials.push(reader.u64())
    statement = { kind, authority: first, sequence, time, serials }
  }
  reader.end()
  return statement
}

function readNames(reader: ByteReader): string[] {
  const count = reader.u8()
  needCount(count, VOUCH_NAMES_MAX)
  return Array.from({ length: count }, () => reader.text8())
}

function inOrder(statement: Statement): Statement {
  if (statement.kind === 'vouch') return { ...statement, names: statement.names.toSorted() }
  if (statement.kind !== 'withdrawal') return statement
  return { ...statement, serials: statement.serials.toSorted((a, b) => a - b) }
}

/** The rules that make the encoding canonical, the same for writer and reader. */
function checkFields(statement: Statement): void {
  if (statement.kind === 'rotation') {
    needLength('identity', statement.new, KEY_BYTES)
    if (equal(statement.old, statement.new)) throw selfMade('its own successor')
    needNumbers(statement.time)
  } else if (statement.kind === 'vouch') {
    needLength('identity', statement.identity, KEY_BYTES)
    if (equal(statement.authority, statement.identity)) throw selfMade('its own authority')
    const { serial, notBefore, notAfter } = statement
    needNumbers(serial, notBefore, notAfter)
    if (notAfter <= notBefore) {
      throw new TunnelError(
        'statement/validity',
        'Cannot use statement: found an end that is not after its beginning',
      )
    }
    if (statement.scope !== '') needName(statement.scope)
    needCount(statement.names.length, VOUCH_NAMES_MAX)
    statement.names.forEach(needName)
    needAscending(statement.names)
  } else if (statement.kind === 'withdrawal') {
    needCount(statement.serials.length, WITHDRAWAL_SERIALS_MAX)
    needNumbers(statement.sequence, statement.time, ...statement.serials)
    needAscending(statement.serials)
  } else needNumbers(statement.time)
  for (const signer of signersOf(statement)) needLength('identity', signer, KEY_BYTES)
}

function signersOf(statement: Statement): Uint8Array[] {
  if (statement.kind === 'rotation') return [statement.old, statement.new]
  return [statement.kind === 'revocation' ? statement.identity : statement.authority]
}

function labelOf(kind: StatementKind): Uint8Array {
  return utf8(`sotto ${kind} v1\0`)
}

function verify(
  crypto: Crypto,
  signed: Uint8Array,
  { kind, signer }: { kind: StatementKind; signer: Uint8Array },
): void {
  const message = concat(labelOf(kind), signed.subarray(0, -SIGNATURE_BYTES))
  if (crypto.ed25519Verify(signer, message, signed.subarray(-SIGNATURE_BYTES))) return
  throw new TunnelError(
    'statement/forged',
    `Cannot open statement: found a ${kind} that is not signed by whom it names`,
  )
}

function split(crypto: Crypto, identity: Uint8Array, rotations: Rotation[]): TunnelError {
  const [one, other] = rotations.map((rotation) => fingerprint(crypto, rotation.new))
  const old = fingerprint(crypto, identity)
  return new TunnelError(
    'trust/split',
    `Cannot follow identity ${old}: found two successors, ${one} and ${other}, expected one`,
    { hint: "One of them may be a thief's. Ask the owner in person, then: sotto peers trust" },
  )
}

function needName(name: string): void {
  if (isName(name)) return
  throw new TunnelError(
    'statement/name',
    `Cannot use statement: found ${JSON.stringify(name.slice(0, 80))}, expected a lower-case label`,
  )
}

function needAscending(items: readonly (string | number)[]): void {
  for (let i = 1; i < items.length; i++) {
    if (items[i - 1]! < items[i]!) continue
    const reason = items[i - 1] === items[i] ? 'duplicate' : 'order'
    throw new TunnelError(
      `statement/${reason}`,
      'Cannot use statement: found a list that does not ascend',
    )
  }
}

function needNumbers(...numbers: number[]): void {
  for (const number of numbers) {
    if (Number.isSafeInteger(number) && number >= 0) continue
    throw new TunnelError(
      'statement/range',
      `Cannot use statement: found the number ${number}, expected 0 to 2^53 - 1`,
    )
  }
}

function needCount(count: number, max: number): void {
  if (count <= max) return
  throw new TunnelError(
    'statement/size',
    `Cannot use statement: found a list of ${count}, expected at most ${max}`,
  )
}

function needSize(length: number): void {
  if (length >= HEAD_BYTES + 8 + SIGNATURE_BYTES && length <= STATEMENT_BYTES_MAX) return
  throw new TunnelError(
    'statement/size',
    `Cannot use statement: found ${length} bytes, expected at most ${STATEMENT_BYTES_MAX}`,
  )
}

function needLength(subject: string, bytes: Uint8Array, expected: number): void {
  if (bytes.length === expected) return
  throw new TunnelError(
    'statement/length',
    `Cannot use statement: found a ${subject} of ${bytes.length} bytes, expected ${expected}`,
  )
}

function selfMade(found: string): TunnelError {
  return new TunnelError('statement/self', `Cannot use statement: found an identity as ${found}`)
}

function noVouch(reason: string, found: string, hint?: string): TunnelError {
  return new TunnelError(
    `statement/${reason}`,
    `Cannot take vouch: found ${found}`,
    hint === undefined ? {} : { hint },
  )
}
