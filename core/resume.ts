/**
 * How a session comes back on another carrier: both sides prove the keys of the session with fresh
 * nonces and say how many records they have opened.
 *
 *   resume    session 16, nonce 32, received 8, tag 32   initiator
 *   resumed   nonce 32, received 8, tag 32               responder
 *   proceed   tag 32                                     initiator
 *
 * A recorded `resume` is answered and moves nothing: only `proceed` does, whose tag covers both
 * nonces. Tags are HMAC-SHA256 under keys that the session exports, one for each side, so that
 * none can be reflected. docs/protocol.md §10, "Resumption".
 */
import { ByteReader, ByteWriter, concat, equal, utf8 } from './bytes.ts'
import type { Crypto } from './crypto.ts'
import { TunnelError } from './errors.ts'

// Specification constants.
export const SESSION_ID_BYTES = 16
export const RESUME_NONCE_BYTES = 32
const TAG_BYTES = 32
export const RESUME_KEY_LABELS = { initiator: 'resume initiator', responder: 'resume responder' }

const RESUME_LABEL = utf8('sotto resume v1\0')
const RESUMED_LABEL = utf8('sotto resumed v1\0')
const PROCEED_LABEL = utf8('sotto proceed v1\0')

/** What both sides have said once `resumed` is there. */
export interface ResumeFacts {
  /** 16 bytes. */
  session: Uint8Array
  initiatorNonce: Uint8Array
  responderNonce: Uint8Array
  /** How many records each has opened. */
  initiatorReceived: number
  responderReceived: number
}

/** The keys that prove each side. */
export interface ResumeKeys {
  initiator: Uint8Array
  responder: Uint8Array
}

export type ResumeOffer = Pick<ResumeFacts, 'session' | 'initiatorNonce' | 'initiatorReceived'>

export function encodeResume(crypto: Crypto, keys: ResumeKeys, offer: ResumeOffer): Uint8Array {
  const body = offerBytes(offer)
  return concat(body, crypto.hmacSha256(keys.initiator, RESUME_LABEL, body))
}

/** What a `resume` says, before anybody knows whether it is true; arrays are copies. */
export function decodeResume(body: Uint8Array): { offer: ResumeOffer; tag: Uint8Array } {
  const reader = new ByteReader(Uint8Array.from(body), 'session', 'resume')
  const offer = {
    session: reader.bytes(SESSION_ID_BYTES),
    initiatorNonce: reader.bytes(RESUME_NONCE_BYTES),
    initiatorReceived: reader.u64(),
  }
  const tag = reader.bytes(TAG_BYTES)
  reader.end()
  return { offer, tag }
}

/** Throws `session/resume` unless the initiator of that session made it, now or earlier. */
export function checkResume(
  crypto: Crypto,
  keys: ResumeKeys,
  { offer, tag }: { offer: ResumeOffer; tag: Uint8Array },
): void {
  needTag('resume', tag, crypto.hmacSha256(keys.initiator, RESUME_LABEL, offerBytes(offer)))
}

export function encodeResumed(crypto: Crypto, keys: ResumeKeys, facts: ResumeFacts): Uint8Array {
  return new ByteWriter(72)
    .bytes(facts.responderNonce)
    .u64(facts.responderReceived)
    .bytes(crypto.hmacSha256(keys.responder, RESUMED_LABEL, factBytes(facts)))
    .done()
}

/** Throws `session/resume` unless the responder made it in answer to `offer`; arrays are copies. */
export function openResumed(
  crypto: Crypto,
  keys: ResumeKeys,
  { offer, body }: { offer: ResumeOffer; body: Uint8Array },
): ResumeFacts {
  const reader = new ByteReader(Uint8Array.from(body), 'session', 'resumed')
  const responderNonce = reader.bytes(RESUME_NONCE_BYTES)
  const facts = { ...offer, responderNonce, responderReceived: reader.u64() }
  const tag = reader.bytes(TAG_BYTES)
  reader.end()
  needTag('resumed', tag, crypto.hmacSha256(keys.responder, RESUMED_LABEL, factBytes(facts)))
  return facts
}

export function encodeProceed(crypto: Crypto, keys: ResumeKeys, facts: ResumeFacts): Uint8Array {
  return crypto.hmacSha256(keys.initiator, PROCEED_LABEL, factBytes(facts))
}

/** Throws `session/resume` unless the initiator made it in answer to the same facts. */
export function checkProceed(
  crypto: Crypto,
  keys: ResumeKeys,
  { facts, body }: { facts: ResumeFacts; body: Uint8Array },
): void {
  needTag('proceed', body, encodeProceed(crypto, keys, facts))
}

function offerBytes(offer: ResumeOffer): Uint8Array {
  return new ByteWriter(56)
    .bytes(offer.session)
    .bytes(offer.initiatorNonce)
    .u64(offer.initiatorReceived)
    .done()
}

function factBytes(facts: ResumeFacts): Uint8Array {
  return new ByteWriter(96)
    .bytes(facts.session)
    .bytes(facts.initiatorNonce)
    .bytes(facts.responderNonce)
    .u64(facts.initiatorReceived)
    .u64(facts.responderReceived)
    .done()
}

function needTag(subject: string, found: Uint8Array, expected: Uint8Array): void {
  if (equal(found, expected)) return
  throw new TunnelError(
    'session/resume',
    `Cannot take ${subject}: found a tag that is not by the other side of this session`,
  )
}
