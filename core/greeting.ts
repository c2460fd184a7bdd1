/**
 * The two messages that open a link: the agent's hello and the relay's signed challenge. Who may
 * follow whom, and when, is in admit.ts.
 *
 *   hello      version 2 ‖ role 1 ‖ agent 32 ‖ target 32 ‖ nonce 32 ‖ ephemeral 32
 *   challenge  version 2 ‖ relay 32 ‖ nonce 32 ‖ ephemeral 32 ‖ names 1+(1+n)… ‖ certificates 1+32n
 *              ‖ signature 64
 *
 * Integers are big-endian; both are read exactly. docs/protocol.md §3.
 */
import { ByteReader, ByteWriter, concat, equal, utf8 } from './bytes.ts'
import type { Crypto } from './crypto.ts'
import { HASH_BYTES, KEY_BYTES, SIGNATURE_BYTES } from './crypto.ts'
import { TunnelError } from './errors.ts'
import type { Identity } from './key.ts'

// Specification constants.
export const ADMIT_VERSION = 1
export const NONCE_BYTES = 32
export const HELLO_BYTES = 2 + 1 + 4 * 32
/** Bound of frame.ts. */
export const CHALLENGE_BYTES_MAX = 4096
const CHALLENGE_BYTES_MIN = 2 + 3 * 32 + 2 + SIGNATURE_BYTES
export const RELAY_NAMES_MAX = 64
export const RELAY_CERTIFICATES_MAX = 16
/** Longest host name (RFC 1035 §2.3.4). */
const NAME_BYTES_MAX = 253

const CHALLENGE_LABEL = utf8('sotto relay challenge v1\0')

/** Who the link leads to. Numbers are never reused. */
export const ROLE = Object.freeze({
  home: 1, // the agent itself: its visitors come in here
  visit: 2, // any agent: streams go out from here
})
export type Role = keyof typeof ROLE

export interface RelayIdentity extends Identity {
  /** Every host name that the relay answers to, 1 to 64; addresses too. */
  names: string[]
  /** SHA-256 of the TLS certificates that it serves itself; none where TLS ends in front of it. */
  certificates: Uint8Array[]
}

/** What a relay learns from a hello; none of it is proven yet. */
export interface Hello {
  role: Role
  agent: Uint8Array
  target: Uint8Array
  ephemeral: Uint8Array
}

export interface HelloInput {
  role: Role
  agent: Uint8Array
  target: Uint8Array
  nonce: Uint8Array
  ephemeral: Uint8Array
}

/** The 131 bytes that an agent sends first; keys and nonce have 32 each. */
export function encodeHello(input: HelloInput): Uint8Array {
  return new ByteWriter(HELLO_BYTES)
    .u16(ADMIT_VERSION)
    .u8(ROLE[input.role])
    .bytes(input.agent)
    .bytes(input.target)
    .bytes(input.nonce)
    .bytes(input.ephemeral)
    .done()
}

/** Arrays are copies. Throws `admit/truncated`, `admit/trailing`, `admit/version`, `admit/role`. */
export function decodeHello(payload: Uint8Array): Hello {
  const reader = new ByteReader(Uint8Array.from(payload), 'admit', 'hello')
  needVersion('hello', reader.u16())
  const number = reader.u8()
  const role = number === ROLE.home ? 'home' : number === ROLE.visit ? 'visit' : undefined
  if (role === undefined) {
    throw new TunnelError('admit/role', `Cannot admit agent: found role ${number}, expected 1 or 2`)
  }
  const agent = reader.bytes(KEY_BYTES)
  const target = reader.bytes(KEY_BYTES)
  reader.bytes(NONCE_BYTES)
  const ephemeral = reader.bytes(KEY_BYTES)
  reader.end()
  return { role, agent, target, ephemeral }
}

/** Whether this relay takes such a link: throws `admit/target`, `admit/reflected`. */
export function checkHello(
  hello: Hello,
  expected: { relay: Uint8Array; target: Uint8Array },
): void {
  if (!equal(hello.target, expected.target)) {
    throw new TunnelError(
      'admit/target',
      'Cannot admit agent: found a hello for another key than that of its URL',
    )
  }
  if (hello.role === 'home' && !equal(hello.agent, hello.target)) {
    throw new TunnelError(
      'admit/target',
      "Cannot admit agent: found a home link to another agent's key, expected its own",
    )
  }
  // Otherwise a relay's own signatures and those of an agent would be by one key.
  if (equal(hello.agent, expected.relay)) {
    throw new TunnelError(
      'admit/reflected',
      'Cannot admit agent: found the identity of this relay, expected one of its own',
    )
  }
}

export interface ChallengeInput {
  nonce: Uint8Array
  ephemeral: Uint8Array
  /** The payload that is answered. */
  hello: Uint8Array
}

/** The signed answer to a hello. Throws `admit/size` when names and certificates do not fit. */
export function encodeChallenge(
  crypto: Crypto,
  identity: RelayIdentity,
  { nonce, ephemeral, hello }: ChallengeInput,
): Uint8Array {
  const writer = new ByteWriter(512)
    .u16(ADMIT_VERSION)
    .bytes(identity.public)
    .bytes(nonce)
    .bytes(ephemeral)
    .u8(identity.names.length)
  for (const name of identity.names) writer.text8(hostName(name))
  writer.u8(identity.certificates.length)
  for (const certificate of identity.certificates) writer.bytes(certificate)
  const body = writer.done()
  needSize('challenge', body.length + SIGNATURE_BYTES, CHALLENGE_BYTES_MAX)
  const signature = crypto.ed25519Sign(identity.seed, challengeMessage(crypto, hello, body))
  return concat(body, signature)
}

/** What a relay says of itself, once its signature holds. */
export interface Challenge {
  relay: Uint8Array
  ephemeral: Uint8Array
  names: string[]
  certificates: Uint8Array[]
}

/**
 * A challenge to `hello`, in copies; nothing but version and identity is looked at before the
 * signature holds. Throws `admit/size`, `admit/version`, `admit/reflected`, `admit/relay-forged`,
 * `admit/truncated`, `admit/trailing`, `bytes/utf8`.
 */
export function openChallenge(crypto: Crypto, payload: Uint8Array, hello: Uint8Array): Challenge {
  if (payload.length < CHALLENGE_BYTES_MIN || payload.length > CHALLENGE_BYTES_MAX) {
    throw wrongSize('challenge', payload.length, CHALLENGE_BYTES_MAX)
  }
  const body = Uint8Array.from(payload.subarray(0, -SIGNATURE_BYTES))
  const reader = new ByteReader(body, 'admit', 'challenge')
  needVersion('challenge', reader.u16())
  const relay = reader.bytes(KEY_BYTES)
  // An agent whose own signature came back to it would be talking to itself.
  if (equal(relay, hello.subarray(3, 3 + KEY_BYTES))) {
    throw new TunnelError(
      'admit/reflected',
      "Cannot accept relay: found this agent's own identity, expected the relay's",
    )
  }
  const signature = payload.subarray(-SIGNATURE_BYTES)
  if (!crypto.ed25519Verify(relay, challengeMessage(crypto, hello, body), signature)) {
    throw new TunnelError(
      'admit/relay-forged',
      'Cannot accept relay: found a challenge that its identity did not sign for this link',
      { hint: 'Something between here and the relay changes or replays what it says.' },
    )
  }
  reader.bytes(NONCE_BYTES)
  const ephemeral = reader.bytes(KEY_BYTES)
  const names: string[] = []
  for (let left = reader.u8(); left > 0; left--) names.push(reader.text8())
  const certificates: Uint8Array[] = []
  for (let left = reader.u8(); left > 0; left--) certificates.push(reader.bytes(HASH_BYTES))
  reader.end()
  return { relay, ephemeral, names, certificates }
}

/** The hash of the hello is signed too: a challenge recorded on another link does not hold. */
function challengeMessage(crypto: Crypto, hello: Uint8Array, body: Uint8Array): Uint8Array {
  return concat(CHALLENGE_LABEL, crypto.sha256(hello), body)
}

/** Throws `admit/relay` when keys, names or certificates have the wrong count or length. */
export function checkRelayIdentity(identity: RelayIdentity): void {
  if (identity.seed.length !== KEY_BYTES || identity.public.length !== KEY_BYTES) {
    throw wrongRelay('key', '32 bytes')
  }
  const { names, certificates } = identity
  if (names.length === 0 || names.length > RELAY_NAMES_MAX) {
    throw wrongRelay('list of names', `1 to ${RELAY_NAMES_MAX}`)
  }
  if (names.some((name) => name.length === 0 || utf8(name).length > NAME_BYTES_MAX)) {
    throw wrongRelay('name', `1 to ${NAME_BYTES_MAX} bytes`)
  }
  if (
    certificates.length > RELAY_CERTIFICATES_MAX ||
    certificates.some((one) => one.length !== HASH_BYTES)
  ) {
    throw wrongRelay('list of certificates', `at most ${RELAY_CERTIFICATES_MAX}, of 32 bytes`)
  }
}

function wrongRelay(subject: string, expected: string): TunnelError {
  return new TunnelError('admit/relay', `Cannot use ${subject} of relay: expected ${expected}`)
}

/** As names are compared: lower case, no trailing dot, no brackets around an IPv6 address. */
export function hostName(name: string): string {
  return name.toLowerCase().replace(/\.$/, '').replace(/^\[(.*)\]$/, '$1')
}

function needVersion(subject: string, version: number): void {
  if (version === ADMIT_VERSION) return
  throw new TunnelError(
    'admit/version',
    `Cannot read ${subject}: found version ${version}, expected ${ADMIT_VERSION}`,
    { hint: 'Update the older of agent and relay; the relay first.' },
  )
}

/** Throws `admit/size`. */
export function needSize(subject: string, length: number, max: number): void {
  if (length > max) throw wrongSize(subject, length, max)
}

function wrongSize(subject: string, length: number, max: number): TunnelError {
  return new TunnelError(
    'admit/size',
    `Cannot use ${subject}: found ${length} bytes, expected at most ${max}`,
  )
}
