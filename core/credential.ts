/**
 * What an agent shows beside its identity, so that the relay knows whose it is. It travels inside
 * the sealed `admit` alone, never in a URL.
 *
 *   none         0 bytes
 *   key, token   the secret, UTF-8, 1 to 1,024 bytes
 *   certificate  count 1 ‖ DER 2+n each, leaf first ‖ signature 2+n
 *
 * Integers are big-endian. docs/protocol.md §3.
 */
import { ByteReader, ByteWriter, concat, EMPTY, text, utf8 } from './bytes.ts'
import { TunnelError } from './errors.ts'

// Specification constants.
/** Longest API key or fleet token. */
export const SECRET_BYTES_MAX = 1024
export const CHAIN_CERTIFICATES_MAX = 8
/** Longest signature by a certificate's key: RSA of 4,096 bits. */
export const CHAIN_SIGNATURE_BYTES_MAX = 512

const CERTIFICATE_LABEL = utf8('sotto agent certificate v1\0')

/** What the agent shows beside its identity. Numbers are never reused. */
export const CREDENTIAL = Object.freeze({
  none: 0, // nothing: 0 bytes
  key: 1, // an API key, UTF-8
  token: 2, // a fleet token, UTF-8
  certificate: 3, // chain (count 1, bytes16 DER each, leaf first), signature bytes16
})
export type CredentialKind = keyof typeof CREDENTIAL

export type Credential =
  | { kind: 'none' }
  | { kind: 'key' | 'token'; secret: string }
  | {
    kind: 'certificate'
    /** DER, leaf first, 1 to 8. */
    chain: Uint8Array[]
    /** By the leaf's key: ECDSA P-256 with SHA-256 as r ‖ s, or Ed25519. */
    sign(message: Uint8Array): Uint8Array
  }

/** What the agent's credential is. Secrets are still to be looked up, certificates to be checked. */
export type AdmittedCredential =
  | { kind: 'none' }
  | { kind: 'key' | 'token'; secret: string }
  | ShownCertificate

/** A chain with its proof, which the relay checks next: that takes WebCrypto, and so a turn. */
export interface ShownCertificate {
  kind: 'certificate'
  /** DER, leaf first. */
  chain: Uint8Array[]
  /** What the leaf's key must have signed: it holds the transcript of this link alone. */
  message: Uint8Array
  signature: Uint8Array
}

/** The bytes to seal; a certificate's key signs `transcript`, which is of this link alone. */
export function encodeCredential(credential: Credential, transcript: Uint8Array): Uint8Array {
  if (credential.kind === 'none') return EMPTY
  if (credential.kind !== 'certificate') return utf8(credential.secret)
  const writer = new ByteWriter(2048).u8(credential.chain.length)
  for (const certificate of credential.chain) writer.bytes16(certificate)
  return writer.bytes16(credential.sign(concat(CERTIFICATE_LABEL, transcript))).done()
}

export interface CredentialContext {
  transcript: Uint8Array
  /** False refuses every certificate. */
  takesCertificates: boolean
}

/**
 * What was shown; secrets are still to be looked up and certificates to be checked. Throws
 * `admit/credential`, `admit/certificate`, `admit/truncated`, `admit/trailing`, `bytes/utf8`.
 */
export function openCredential(
  kind: number,
  bytes: Uint8Array,
  context: CredentialContext,
): AdmittedCredential {
  if (kind === CREDENTIAL.none) {
    if (bytes.length > 0) throw wrongCredential(`${bytes.length} bytes where none belong`)
    return { kind: 'none' }
  }
  if (kind === CREDENTIAL.key || kind === CREDENTIAL.token) {
    if (bytes.length === 0 || bytes.length > SECRET_BYTES_MAX) {
      throw wrongCredential(`a secret of ${bytes.length} bytes`)
    }
    return { kind: kind === CREDENTIAL.key ? 'key' : 'token', secret: text(bytes) }
  }
  if (kind === CREDENTIAL.certificate) return openCertificate(bytes, context)
  throw wrongCredential(`the unknown kind ${kind}`)
}

function openCertificate(
  bytes: Uint8Array,
  { transcript, takesCertificates }: CredentialContext,
): AdmittedCredential {
  const reader = new ByteReader(bytes, 'admit', 'certificate')
  const count = reader.u8()
  if (count === 0 || count > CHAIN_CERTIFICATES_MAX) {
    throw wrongCredential(`a chain of ${count} certificates`)
  }
  const chain: Uint8Array[] = []
  for (let left = count; left > 0; left--) chain.push(reader.bytes16())
  const signature = reader.bytes16()
  reader.end()
  if (chain.some((one) => one.length === 0) || signature.length > CHAIN_SIGNATURE_BYTES_MAX) {
    throw wrongCredential('a certificate or signature of the wrong length')
  }
  if (!takesCertificates) {
    throw new TunnelError(
      'admit/certificate',
      'Cannot admit agent: found a client certificate, and this relay has no authority for them',
      { hint: 'Use an API key, or ask the operator to start the relay with --client-ca.' },
    )
  }
  // The message holds the transcript: a proof that was made for another link does not hold here.
  return { kind: 'certificate', chain, message: concat(CERTIFICATE_LABEL, transcript), signature }
}

/** Throws `admit/credential` when a secret or chain does not fit its bounds. */
export function checkCredential(credential: Credential): void {
  if (credential.kind === 'none') return
  if (credential.kind === 'certificate') {
    const count = credential.chain.length
    if (count === 0 || count > CHAIN_CERTIFICATES_MAX) {
      throw wrongCredential(`a chain of ${count} certificates`)
    }
    return
  }
  const length = utf8(credential.secret).length
  if (length === 0 || length > SECRET_BYTES_MAX) {
    throw wrongCredential(`a secret of ${length} bytes`)
  }
}

function wrongCredential(found: string): TunnelError {
  return new TunnelError('admit/credential', `Cannot use credential: found ${found}`)
}
