/**
 * How a session begins: what its initiator says in clear, and the two Noise messages with the
 * passports inside. docs/protocol.md §10, "Handshake".
 *
 *   opening    version 2, suite 1, initiator 32, responder 32, service text8
 *   message 1  payload: passport bytes16 of the initiator
 *   message 2  payload: passport bytes16 of the responder, group 16
 *
 * All of the opening is in the prologue, so that whoever changes a byte of it, or of the suite's
 * name, stops the handshake.
 */
import { ByteReader, ByteWriter, concat, EMPTY, equal, utf8 } from './bytes.ts'
import type { Crypto } from './crypto.ts'
import { KEY_BYTES } from './crypto.ts'
import { TunnelError } from './errors.ts'
import { isName } from './key.ts'
import { Handshake, protocolName, type Split, type StaticKey, type Suite } from './noise.ts'
import { openPassport, type Passport } from './passport.ts'

// Specification constants.
export const SESSION_VERSION = 1
export const GROUP_BYTES = 16
export const SESSION_PATTERN = 'IKhfs'
/** Numbers are never reused. */
export const SUITE: Readonly<Record<Suite, number>> = Object.freeze({ aesgcm: 1, chachapoly: 2 })

const PROLOGUE_LABEL = utf8('sotto session v1\0')

export interface Opening {
  suite: Suite
  /** Identities, 32 bytes. */
  initiator: Uint8Array
  responder: Uint8Array
  /** What is asked for: 1 to 63 of `a-z 0-9 -`. */
  service: string
}

/** Who is at the other end, as it proved itself. */
export interface SessionPeer {
  /** Ed25519 public key, 32 bytes. */
  identity: Uint8Array
  /** Its passport, signed by that identity and holding the static key that it proved. */
  passport: Passport
  /** The same as it came. */
  encoded: Uint8Array
}

/** A handshake that is over: keys, and who has them. */
export interface Greeted {
  split: Split
  peer: SessionPeer
  /** 16 bytes: where the responder can be reached to resume. */
  group: Uint8Array
}

/** A name for the ciphers of a passport: `Noise_IKhfs_25519+MLKEM768_AESGCM_SHA256` and its twin. */
export function suiteName(suite: Suite): string {
  return protocolName(SESSION_PATTERN, suite)
}

/** Throws `session/service`, and `session/reflected` when both identities are the same. */
export function encodeOpening(opening: Opening): Uint8Array {
  checkOpening(opening)
  return new ByteWriter(131)
    .u16(SESSION_VERSION)
    .u8(SUITE[opening.suite])
    .bytes(opening.initiator)
    .bytes(opening.responder)
    .text8(opening.service)
    .done()
}

/**
 * The opening at the start of a body, its bytes, and message 1 after it. Throws `session/version`,
 * `session/suite`, `session/service`, `session/reflected`, `session/truncated`, `bytes/utf8`.
 */
export function decodeOpening(
  body: Uint8Array,
): { opening: Opening; bytes: Uint8Array; message: Uint8Array } {
  const copy = Uint8Array.from(body)
  const reader = new ByteReader(copy, 'session', 'opening')
  const version = reader.u16()
  if (version !== SESSION_VERSION) {
    throw new TunnelError(
      'session/version',
      `Cannot take a session: found version ${version}, expected ${SESSION_VERSION}`,
      { hint: 'Update sotto on the older of the two machines.' },
    )
  }
  const number = reader.u8()
  const suite = (Object.keys(SUITE) as Suite[]).find((name) => SUITE[name] === number)
  if (suite === undefined) {
    throw new TunnelError('session/suite', `Cannot take a session: found suite ${number}`)
  }
  const initiator = reader.bytes(KEY_BYTES)
  const responder = reader.bytes(KEY_BYTES)
  const opening = { suite, initiator, responder, service: reader.text8() }
  checkOpening(opening)
  const bytes = copy.subarray(0, copy.length - reader.remaining)
  return { opening, bytes, message: reader.rest() }
}

function checkOpening({ initiator, responder, service }: Opening): void {
  if (!isName(service)) {
    throw new TunnelError(
      'session/service',
      `Cannot open a session: found the service ${JSON.stringify(service.slice(0, 80))}`,
    )
  }
  if (equal(initiator, responder)) {
    throw new TunnelError(
      'session/reflected',
      'Cannot open a session: found the same identity at both ends',
    )
  }
}

/** What both sides hash before the first message. */
export function prologueOf(suite: Suite, opening: Uint8Array): Uint8Array {
  const name = new ByteWriter(64).text8(suiteName(suite)).done()
  return concat(PROLOGUE_LABEL, name, opening)
}

export interface HelloOptions {
  crypto: Crypto
  opening: Opening
  staticKey: StaticKey
  /** The own passport, encoded. */
  passport: Uint8Array
}

/** The initiator's half. */
export class InitiatorHello {
  readonly #options: HelloOptions & { peer: Passport }
  readonly #handshake: Handshake
  /** The body of `opening`. */
  readonly body: Uint8Array

  /** Throws `session/suite` when the peer does not offer it, and `session/passport` without a key. */
  constructor(options: HelloOptions & { peer: Passport }) {
    const { crypto, opening, staticKey, passport, peer } = options
    this.#options = options
    if (!peer.ciphers.includes(suiteName(opening.suite))) {
      throw new TunnelError(
        'session/suite',
        `Cannot open a session: found a peer that does not offer ${suiteName(opening.suite)}`,
        { hint: 'Update sotto on the other machine.' },
      )
    }
    if (!peer.staticKey) {
      throw new TunnelError(
        'session/passport',
        'Cannot open a session: found a passport without a key for sessions',
        { hint: 'Update sotto on the other machine.' },
      )
    }
    const bytes = encodeOpening(opening)
    this.#handshake = new Handshake({
      crypto,
      pattern: SESSION_PATTERN,
      suite: opening.suite,
      role: 'initiator',
      prologue: prologueOf(opening.suite, bytes),
      local: staticKey,
      remoteStatic: peer.staticKey,
    })
    const payload = new ByteWriter(passport.length + 2).bytes16(passport).done()
    this.body = concat(bytes, this.#handshake.write(payload))
  }

  /**
   * Reads `answer`. Throws `noise/*` when another made it, `passport/*` and `session/passport`
   * when the passport inside is not of the peer, or older than the one that was known.
   */
  answer(body: Uint8Array, now: number): Greeted {
    const { crypto, opening, peer } = this.#options
    const reader = new ByteReader(this.#handshake.read(body), 'session', 'answer')
    const encoded = reader.bytes16()
    const group = reader.bytes(GROUP_BYTES)
    reader.end()
    const passport = openPassport(crypto, encoded, {
      now,
      identity: opening.responder,
      afterSequence: peer.sequence - 1,
    })
    needStatic(passport, peer.staticKey!)
    const split = this.#handshake.split()
    return { split, peer: { identity: opening.responder, passport, encoded }, group }
  }
}

/** The responder's half: message 1 is read when it is made. */
export class ResponderHello {
  readonly #handshake: Handshake
  /** Who is asking, if this is no replay. */
  readonly peer: SessionPeer

  /**
   * Throws `noise/*` when message 1 was not made for this opening and static key, `passport/*` and
   * `session/passport` when its passport is not of the initiator.
   */
  constructor(
    options: Omit<HelloOptions, 'passport'> & {
      bytes: Uint8Array
      message: Uint8Array
      now: number
    },
  ) {
    const { crypto, opening, staticKey, bytes, message, now } = options
    this.#handshake = new Handshake({
      crypto,
      pattern: SESSION_PATTERN,
      suite: opening.suite,
      role: 'responder',
      prologue: prologueOf(opening.suite, bytes),
      local: staticKey,
    })
    const reader = new ByteReader(this.#handshake.read(message), 'session', 'opening')
    const encoded = reader.bytes16()
    reader.end()
    const passport = openPassport(crypto, encoded, { now, identity: opening.initiator })
    needStatic(passport, this.#handshake.remoteStatic ?? EMPTY)
    this.peer = { identity: opening.initiator, passport, encoded }
  }

  /** The body of `answer`, and the keys. */
  answer(passport: Uint8Array, group: Uint8Array): { body: Uint8Array; split: Split } {
    const payload = new ByteWriter(passport.length + 18).bytes16(passport).bytes(group).done()
    const body = this.#handshake.write(payload)
    return { body, split: this.#handshake.split() }
  }
}

function needStatic(passport: Passport, staticKey: Uint8Array): void {
  if (passport.staticKey && equal(passport.staticKey, staticKey)) return
  throw new TunnelError(
    'session/passport',
    'Cannot open a session: found a passport that does not hold the key which the peer proved',
  )
}
