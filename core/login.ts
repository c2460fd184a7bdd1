/**
 * What is signed and sealed when a machine gets an API key by a person's approval (RFC 8628): the
 * agent signs for which relay it asks and with which fresh key; the relay signs which code it gave
 * out, and seals the key to that fresh key. So whoever ends TLS in between learns no key, puts no
 * code of its own on the screen, and cannot hand the question on to another relay.
 *
 *   request  relay 32 ‖ agent 32 ‖ seal 32 ‖ who 1+n           signed by the agent
 *   offer    SHA-256(request) 32 ‖ device code 1+n ‖ user code 1+n ‖ page 1+n ‖ seconds 2 ‖ interval 2
 *                                                                signed by the relay
 *   token    ephemeral 32 ‖ ciphertext ‖ tag 16 ‖ signature 64   by the relay
 *
 * Integers are big-endian. docs/protocol.md, "Login".
 */
import { ByteWriter, concat, EMPTY, text, utf8 } from './bytes.ts'
import type { Crypto } from './crypto.ts'
import { AEAD_NONCE_BYTES, AEAD_TAG_BYTES, KEY_BYTES, SIGNATURE_BYTES } from './crypto.ts'
import { TunnelError } from './errors.ts'
import type { Identity } from './key.ts'

// Specification constants.
/** RFC 8628 §6.1: letters that make no words and are not taken for each other. */
export const USER_CODE_ALPHABET = 'BCDFGHJKLMNPQRSTVWXZ'
export const USER_CODE_LETTERS = 8
export const WHO_LENGTH_MAX = 64
/** Of a sealed API key, with all around it. */
const TOKEN_BYTES_MAX = 512
const WHO = /^[\x20-\x7e]{1,64}$/

// One label for each use, so that no signature or key made for one holds for another.
const REQUEST_LABEL = utf8('sotto login request v1\0')
const OFFER_LABEL = utf8('sotto login offer v1\0')
const TOKEN_LABEL = utf8('sotto login token v1\0')
const TOKEN_INFO = 'sotto login v1 token'

/** One key seals one message, so the nonce never repeats under it. */
const ZERO_NONCE = new Uint8Array(AEAD_NONCE_BYTES)

export interface LoginRequest {
  /** The relay that is asked, 32 bytes. */
  relay: Uint8Array
  /** Who asks, 32 bytes. */
  agent: Uint8Array
  /** X25519, of this login alone, 32 bytes. */
  seal: Uint8Array
  /** Its own word for who approves, such as `ana@laptop`: 1 to 64 printable ASCII characters. */
  who: string
}

export interface LoginOffer {
  deviceCode: string
  userCode: string
  /** Where the code is approved. */
  page: string
  seconds: number
  interval: number
}

/** The bytes that are signed and hashed. Throws `login/request`. */
export function encodeLoginRequest({ relay, agent, seal, who }: LoginRequest): Uint8Array {
  const keys = [relay, agent, seal]
  if (keys.some((key) => key.length !== KEY_BYTES) || !WHO.test(who)) {
    throw new TunnelError(
      'login/request',
      'Cannot ask for a login: expected keys of 32 bytes and 1 to 64 printable characters',
    )
  }
  return new ByteWriter(192).bytes(relay).bytes(agent).bytes(seal).text8(who).done()
}

/** 64 bytes. Throws `login/request`. */
export function signLoginRequest(
  crypto: Crypto,
  { seed }: Pick<Identity, 'seed'>,
  request: LoginRequest,
): Uint8Array {
  return crypto.ed25519Sign(seed, concat(REQUEST_LABEL, encodeLoginRequest(request)))
}

/** Throws `login/request` where the form is wrong, or the agent did not sign it for this relay. */
export function checkLoginRequest(
  crypto: Crypto,
  request: LoginRequest,
  signature: Uint8Array,
): void {
  const message = concat(REQUEST_LABEL, encodeLoginRequest(request))
  if (crypto.ed25519Verify(request.agent, message, signature)) return
  throw new TunnelError(
    'login/request',
    'Cannot begin a login: found a request that the agent did not sign for this relay',
  )
}

function offerMessage(crypto: Crypto, request: LoginRequest, offer: LoginOffer): Uint8Array {
  const { deviceCode, userCode, page, seconds, interval } = offer
  const body = new ByteWriter(256)
    .bytes(crypto.sha256(encodeLoginRequest(request)))
    .text8(deviceCode)
    .text8(userCode)
    .text8(page)
    .u16(seconds)
    .u16(interval)
    .done()
  return concat(OFFER_LABEL, body)
}

/** 64 bytes, by the relay. */
export function signLoginOffer(
  crypto: Crypto,
  seed: Uint8Array,
  { request, offer }: { request: LoginRequest; offer: LoginOffer },
): Uint8Array {
  return crypto.ed25519Sign(seed, offerMessage(crypto, request, offer))
}

/** Throws `login/forged` unless the relay of the request signed this offer to it. */
export function checkLoginOffer(
  crypto: Crypto,
  { request, offer }: { request: LoginRequest; offer: LoginOffer },
  signature: Uint8Array,
): void {
  if (fitsOffer(offer)) {
    const message = offerMessage(crypto, request, offer)
    if (crypto.ed25519Verify(request.relay, message, signature)) return
  }
  throw forged('a code')
}

function fitsOffer({ deviceCode, userCode, page, seconds, interval }: LoginOffer): boolean {
  const small = (value: number): boolean => Number.isInteger(value) && value > 0 && value < 65_536
  return [deviceCode, userCode, page].every((words) => words.length > 0 && words.length <= 255) &&
    small(seconds) && small(interval)
}

export interface TokenBinding {
  request: LoginRequest
  deviceCode: string
}

/** The API key for whoever holds the private half of `request.seal`, and nobody else. */
export function sealToken(
  crypto: Crypto,
  seed: Uint8Array,
  { secret, ...bound }: TokenBinding & { secret: string },
): Uint8Array {
  const own = crypto.randomBytes(KEY_BYTES)
  const ephemeral = crypto.x25519Public(own)
  const transcript = tokenTranscript(crypto, bound, ephemeral)
  const sealed = crypto.aesGcmSeal({
    key32: tokenKey(crypto, { private32: own, public32: bound.request.seal, transcript }),
    nonce12: ZERO_NONCE,
    associated: EMPTY,
    plaintext: utf8(secret),
  })
  const body = concat(ephemeral, sealed)
  const signature = crypto.ed25519Sign(seed, concat(TOKEN_LABEL, transcript, sealed))
  return concat(body, signature)
}

/** The API key. Throws `login/forged` on what the relay of the request did not seal for it. */
export function openToken(
  crypto: Crypto,
  token: Uint8Array,
  { private32, ...bound }: TokenBinding & { private32: Uint8Array },
): string {
  const least = KEY_BYTES + AEAD_TAG_BYTES + SIGNATURE_BYTES
  if (token.length <= least || token.length > TOKEN_BYTES_MAX) throw forged('a key')
  const ephemeral = token.subarray(0, KEY_BYTES)
  const sealed = token.subarray(KEY_BYTES, -SIGNATURE_BYTES)
  const transcript = tokenTranscript(crypto, bound, ephemeral)
  const message = concat(TOKEN_LABEL, transcript, sealed)
  if (!crypto.ed25519Verify(bound.request.relay, message, token.subarray(-SIGNATURE_BYTES))) {
    throw forged('a key')
  }
  try {
    return text(crypto.aesGcmOpen({
      key32: tokenKey(crypto, { private32, public32: ephemeral, transcript }),
      nonce12: ZERO_NONCE,
      associated: EMPTY,
      sealed,
    }))
  } catch (cause) {
    throw forged('a key', cause)
  }
}

function tokenTranscript(
  crypto: Crypto,
  { request, deviceCode }: TokenBinding,
  ephemeral: Uint8Array,
): Uint8Array {
  return crypto.sha256(
    TOKEN_LABEL,
    crypto.sha256(encodeLoginRequest(request)),
    crypto.sha256(utf8(deviceCode)),
    ephemeral,
  )
}

function tokenKey(
  crypto: Crypto,
  { private32, public32, transcript }: {
    private32: Uint8Array
    public32: Uint8Array
    transcript: Uint8Array
  },
): Uint8Array {
  const key = crypto.x25519Shared(private32, public32)
  const derived = crypto.hkdfSha256({ key, salt: transcript, info: TOKEN_INFO, bytes: KEY_BYTES })
  key.fill(0)
  return derived
}

/** Eight letters of even chance, `WDJB-MJHT`: 34 bits. */
export function makeUserCode(crypto: Crypto): string {
  const letters: string[] = []
  // Bytes from 240 on would make some letters likelier than others.
  while (letters.length < USER_CODE_LETTERS) {
    const byte = crypto.randomBytes(1)[0]!
    if (byte < 240) letters.push(USER_CODE_ALPHABET[byte % USER_CODE_ALPHABET.length]!)
  }
  return `${letters.slice(0, 4).join('')}-${letters.slice(4).join('')}`
}

/** A code as people type it, in any case, with blanks or dashes; undefined: it is none. */
export function readUserCode(typed: string): string | undefined {
  if (typed.length > 64) return undefined
  const letters = typed.normalize('NFKC').toUpperCase().replace(
    /[\s\u002d\u2010-\u2015\u2212]/g,
    '',
  )
  const known = [...letters].every((letter) => USER_CODE_ALPHABET.includes(letter))
  if (letters.length !== USER_CODE_LETTERS || !known) return undefined
  return `${letters.slice(0, 4)}-${letters.slice(4)}`
}

function forged(what: string, cause?: unknown): TunnelError {
  return new TunnelError(
    'login/forged',
    `Cannot log in: found ${what} that the relay's identity did not give out for this login`,
    { cause, hint: 'Something between here and the relay changes what it says.' },
  )
}
