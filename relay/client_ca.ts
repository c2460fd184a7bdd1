/**
 * Client certificates as credentials: a chain that leads to the relay's own authority, whose leaf
 * names a scope as its common name (RFC 5280 §6, the part of it that a private authority needs).
 * What is not understood is refused: unknown critical extensions, name constraints, old hashes.
 */
import 'reflect-metadata'
import * as x509 from '@peculiar/x509'
import type { ShownCertificate } from '../core/admit.ts'
import type { Clock } from '../core/clock.ts'
import { hex } from '../core/bytes.ts'
import { isTunnelError, TunnelError } from '../core/errors.ts'
import type { ErrorCode } from '../core/errors.ts'
import { isName } from '../core/key.ts'
import type { Grant } from './credentials.ts'
import { serialOf } from './revoked_certificates.ts'
import type { RevokedCertificates } from './revoked_certificates.ts'

/** Certificates of one chain, the leaf among them. */
export const CHAIN_LENGTH_MAX = 4
export const CERTIFICATE_BYTES_MAX = 8192
/** Authorities in one file. */
export const AUTHORITIES_MAX = 16
const RSA_BITS_MIN = 2048
/** Extensions that are checked here, or that may safely be left unread (RFC 5280 §4.2). */
const KNOWN_EXTENSIONS: ReadonlySet<string> = new Set([
  '2.5.29.14', // subject key identifier
  '2.5.29.15', // key usage
  '2.5.29.17', // subject alternative name: the scope is the common name alone
  '2.5.29.19', // basic constraints
  '2.5.29.35', // authority key identifier
  '2.5.29.37', // extended key usage
])
/** Hashes of the chain's signatures: SHA-1 can be made to collide. */
const HASHES: ReadonlySet<string> = new Set(['SHA-256', 'SHA-384', 'SHA-512'])

export interface CertifiedScope {
  scope: string
  /** SHA-256 of the leaf, in hex. */
  fingerprint: string
  /** When the first certificate of the path expires, in milliseconds since 1970. */
  expiresAt: number
  /** Of the leaf and the authorities between it and the anchor, as `serialOf` writes them. */
  serials: string[]
}

/**
 * Checks `chain` (DER, leaf first) against the authority, and `signature` over `message` by the
 * leaf's key: ECDSA P-256 with SHA-256 as r and s (IEEE P1363), or Ed25519; 64 bytes both. Rejects
 * with `certificate/size`, `/format`, `/chain`, `/validity`, `/purpose`, `/scope`, `/signature`.
 */
export type CertificateVerifier = (
  chain: readonly Uint8Array[],
  message: Uint8Array,
  signature: Uint8Array,
) => Promise<CertifiedScope>

/** Throws `certificate/authority` unless `caPem` holds 1 to 16 certificates of authorities. */
export function certificateVerifier(caPem: string, clock: Clock): CertificateVerifier {
  const anchors = readAuthorities(caPem)
  return async (chain, message, signature) => {
    const certificates = readChain(chain)
    const leaf = certificates[0]!
    const path = await findPath(certificates, anchors)
    for (const certificate of path) {
      checkExtensions(certificate)
      checkValidity(certificate, clock.now())
    }
    checkLeaf(leaf)
    for (const [depth, authority] of path.slice(1).entries()) checkAuthority(authority, depth)
    await checkSignature(leaf, message, signature)
    const digest = await crypto.subtle.digest('SHA-256', leaf.rawData)
    return {
      scope: scopeOf(leaf),
      fingerprint: hex(new Uint8Array(digest)),
      expiresAt: Math.min(...path.map(({ notAfter }) => notAfter.getTime())),
      serials: path.slice(0, -1).map(({ serialNumber }) => serialOf(serialNumber)),
    }
  }
}

/** What a checked certificate allows: every name of its scope, until it expires. */
export function certificateGrant(certified: CertifiedScope): Grant {
  const { scope, fingerprint, expiresAt, serials } = certified
  return { id: fingerprint, kind: 'certificate', scope, admin: false, expiresAt, serials }
}

/** The grant of a certificate that was shown. Throws what is wrong with it, and `certificate/revoked`. */
export async function certified(
  ports: { verifyCertificate?: CertificateVerifier; revoked?: RevokedCertificates },
  { chain, message, signature }: ShownCertificate,
): Promise<Grant> {
  const certified = await ports.verifyCertificate!(chain, message, signature)
  const revoked = ports.revoked?.find(certified.serials)
  if (!revoked) return certificateGrant(certified)
  throw new TunnelError(
    'certificate/revoked',
    `Cannot admit the certificate: serial number ${revoked.serial} was revoked`,
    { hint: 'Ask the operator for a new one.' },
  )
}

function readAuthorities(pem: string): x509.X509Certificate[] {
  let authorities: x509.X509Certificate[]
  try {
    authorities = x509.PemConverter.decodeWithHeaders(pem)
      .filter(({ type }) => type === 'CERTIFICATE')
      .map(({ rawData }) => new x509.X509Certificate(rawData))
    for (const authority of authorities) {
      checkExtensions(authority)
      checkAuthority(authority, Infinity)
    }
  } catch (cause) {
    throw new TunnelError(
      'certificate/authority',
      `Cannot read the client authority: ${(cause as Error).message}`,
      { cause, hint: 'Give PEM certificates whose basic constraints say CA:TRUE.' },
    )
  }
  if (authorities.length >= 1 && authorities.length <= AUTHORITIES_MAX) return authorities
  throw new TunnelError(
    'certificate/authority',
    `Cannot read the client authority: found ${authorities.length} certificates, expected 1 to ` +
      `${AUTHORITIES_MAX}`,
  )
}

function readChain(chain: readonly Uint8Array[]): x509.X509Certificate[] {
  if (chain.length < 1 || chain.length > CHAIN_LENGTH_MAX) {
    throw wrong('size', `${chain.length} certificates`, `1 to ${CHAIN_LENGTH_MAX}`)
  }
  return chain.map((der) => {
    if (der.length > CERTIFICATE_BYTES_MAX) {
      throw wrong('size', `${der.length} bytes`, `at most ${CERTIFICATE_BYTES_MAX}`)
    }
    try {
      // Sliced, so that nothing of the message around it is kept or read.
      const certificate = new x509.X509Certificate(der.slice())
      void [certificate.extensions, certificate.publicKey.algorithm, certificate.subjectName]
      return certificate
    } catch (cause) {
      throw wrong('format', 'bytes that are none', 'DER certificates', cause)
    }
  })
}

/** Leaf first, an anchor last; every signature on the way holds. */
async function findPath(
  chain: readonly x509.X509Certificate[],
  anchors: readonly x509.X509Certificate[],
): Promise<x509.X509Certificate[]> {
  const path: x509.X509Certificate[] = []
  for (const certificate of chain) {
    const child = path.at(-1)
    if (child && !(await isIssuedBy(child, certificate))) break
    path.push(certificate)
    for (const anchor of anchors) {
      if (await isIssuedBy(certificate, anchor)) return [...path, anchor]
    }
  }
  throw wrong('chain', 'a chain that does not lead there', "one that this relay's authority signed")
}

async function isIssuedBy(
  child: x509.X509Certificate,
  issuer: x509.X509Certificate,
): Promise<boolean> {
  if (!sameBytes(child.issuerName.toArrayBuffer(), issuer.subjectName.toArrayBuffer())) return false
  const { hash, name } = child.signatureAlgorithm as { name: string; hash?: { name: string } }
  if (name !== 'Ed25519' && !HASHES.has(hash?.name ?? '')) return false
  const { modulusLength } = issuer.publicKey.algorithm as { modulusLength?: number }
  if (modulusLength !== undefined && modulusLength < RSA_BITS_MIN) return false
  try {
    return await child.verify({ publicKey: issuer.publicKey, signatureOnly: true })
  } catch {
    // A key that does not fit the algorithm, or one that this runtime cannot read.
    return false
  }
}

function checkExtensions(certificate: x509.X509Certificate): void {
  const seen = new Set<string>()
  for (const { type, critical } of certificate.extensions) {
    if (seen.has(type)) throw wrong('format', `extension ${type} twice`, 'once')
    seen.add(type)
    if (critical && !KNOWN_EXTENSIONS.has(type)) {
      throw wrong('purpose', `critical extension ${type}`, 'none that is unknown here')
    }
  }
}

function checkValidity({ notBefore, notAfter }: x509.X509Certificate, now: number): void {
  if (notBefore.getTime() <= now && now <= notAfter.getTime()) return
  throw wrong(
    'validity',
    `one valid from ${notBefore.toISOString()} to ${notAfter.toISOString()}`,
    `one valid at ${new Date(now).toISOString()}`,
  )
}

function checkLeaf(leaf: x509.X509Certificate): void {
  if (leaf.getExtension(x509.BasicConstraintsExtension)?.ca) {
    throw wrong('purpose', "an authority's certificate", "an agent's")
  }
  const usages = leaf.getExtension(x509.KeyUsagesExtension)?.usages
  if (usages !== undefined && !(usages & x509.KeyUsageFlags.digitalSignature)) {
    throw wrong('purpose', 'a key usage without digitalSignature', 'one with it')
  }
  checkClientUse(leaf)
}

/** `below`: how many authorities stand between this one and the leaf. */
function checkAuthority(authority: x509.X509Certificate, below: number): void {
  const constraints = authority.getExtension(x509.BasicConstraintsExtension)
  if (!constraints?.ca) throw wrong('chain', 'an issuer that is no authority', 'CA:TRUE')
  if (
    constraints.pathLength !== undefined && below !== Infinity && below > constraints.pathLength
  ) {
    throw wrong('chain', `${below} authorities below one`, `at most ${constraints.pathLength}`)
  }
  const usages = authority.getExtension(x509.KeyUsagesExtension)?.usages
  if (usages !== undefined && !(usages & x509.KeyUsageFlags.keyCertSign)) {
    throw wrong('chain', 'an issuer that may not sign certificates', 'keyCertSign')
  }
  checkClientUse(authority)
}

function checkClientUse(certificate: x509.X509Certificate): void {
  const uses = certificate.getExtension(x509.ExtendedKeyUsageExtension)?.usages
  if (!uses || uses.includes(x509.ExtendedKeyUsage.clientAuth)) return
  throw wrong('purpose', `extended key usage ${uses.join(' ')}`, 'clientAuth among it')
}

function scopeOf(leaf: x509.X509Certificate): string {
  const names = leaf.subjectName.getField('CN')
  const [scope] = names
  // "admin" is the operator's own; no certificate makes one.
  if (names.length === 1 && isName(scope!) && scope !== 'admin') return scope!
  throw wrong(
    'scope',
    `common name ${JSON.stringify(names.join(', ').slice(0, 80))}`,
    'one scope, 1 to 63 of a-z 0-9 -',
  )
}

async function checkSignature(
  leaf: x509.X509Certificate,
  message: Uint8Array,
  signature: Uint8Array,
): Promise<void> {
  const { name, namedCurve } = leaf.publicKey.algorithm as { name: string; namedCurve?: string }
  const curve = namedCurve ?? name
  if (!(name === 'Ed25519' || namedCurve === 'P-256')) {
    throw wrong('signature', `a ${curve} key`, 'ECDSA P-256 or Ed25519')
  }
  const algorithm = name === 'Ed25519' ? { name } : { name: 'ECDSA', namedCurve: 'P-256' }
  let holds = false
  try {
    const key = await crypto.subtle.importKey('spki', leaf.publicKey.rawData, algorithm, false, [
      'verify',
    ])
    const how = name === 'Ed25519' ? { name } : { name: 'ECDSA', hash: 'SHA-256' }
    holds = signature.length === 64 &&
      await crypto.subtle.verify(how, key, signature.slice(), message.slice())
  } catch (cause) {
    throw wrong('signature', 'a key that cannot be read', 'ECDSA P-256 or Ed25519', cause)
  }
  if (!holds) throw wrong('signature', 'a signature by another key', "one by the certificate's key")
}

function sameBytes(a: ArrayBuffer, b: ArrayBuffer): boolean {
  const [left, right] = [new Uint8Array(a), new Uint8Array(b)]
  return left.length === right.length && left.every((byte, at) => byte === right[at])
}

function wrong(reason: string, found: string, expected: string, cause?: unknown): TunnelError {
  const code: ErrorCode = `certificate/${reason}`
  if (isTunnelError(cause)) return cause
  return new TunnelError(
    code,
    `Cannot admit the certificate: found ${found}, expected ${expected}`,
    cause === undefined ? {} : { cause },
  )
}
