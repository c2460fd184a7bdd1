/**
 * The relay's own certificate where the operator gave none: self-signed ECDSA P-256 over its names
 * and the apps wildcard. Agents need no CA for it, because the relay's identity signs its
 * fingerprint in the challenge; browsers will warn, and are told so by the docs.
 */
// The library finds its classes by decorators, and wants this polyfill before it.
import 'reflect-metadata'
import * as x509 from '@peculiar/x509'
import { fromHex } from '../core/bytes.ts'
import { certificateId } from '../core/renewal.ts'

/** Validity; made anew when less than a third is left. */
const VALID_MS = 90 * 86_400_000
/** Clocks differ: valid from a little before now. */
const SKEW_MS = 3_600_000

export interface CertificatePair {
  /** PEM, leaf first. */
  cert: string
  /** PEM, PKCS #8. */
  key: string
}

/** id-pe-acmeIdentifier, RFC 8737 §3. */
const ACME_IDENTIFIER = '1.3.6.1.5.5.7.1.31'
const P256 = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }

/**
 * A new pair for host names, wildcards and IP addresses alike. `authorization` is what a CA is shown by
 * `acme-tls/1`: the SHA-256, 32 bytes, of the words that it asked for (RFC 8737 §3).
 */
export async function makeCertificate(
  names: readonly string[],
  nowMs: number,
  { authorization }: { authorization?: Uint8Array } = {},
): Promise<CertificatePair> {
  const keys = await crypto.subtle.generateKey(P256, true, ['sign', 'verify'])
  const serial = crypto.getRandomValues(new Uint8Array(16))
  serial[0] = (serial[0]! & 0x7f) | 0x40 // positive and of constant length, RFC 5280 §4.1.2.2
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: Array.from(serial, (byte) => byte.toString(16).padStart(2, '0')).join(''),
    name: `CN=${names[0]!.replace(/[^a-zA-Z0-9.*-]/g, '-').slice(0, 64)}`,
    notBefore: new Date(nowMs - SKEW_MS),
    notAfter: new Date(nowMs + VALID_MS),
    keys,
    signingAlgorithm: P256,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth]),
      new x509.SubjectAlternativeNameExtension(
        names.map((value) => ({ type: isAddress(value) ? 'ip' : 'dns', value }) as const),
      ),
      // An OCTET STRING of 32 bytes within the extension's own.
      ...(authorization
        ? [new x509.Extension(ACME_IDENTIFIER, true, Uint8Array.of(4, 32, ...authorization))]
        : []),
    ],
  })
  const pkcs8 = await crypto.subtle.exportKey('pkcs8', keys.privateKey)
  return { cert: certificate.toString('pem'), key: x509.PemConverter.encode(pkcs8, 'PRIVATE KEY') }
}

/** SHA-256 over the leaf's DER. */
export async function certificateHash(pem: string): Promise<Uint8Array> {
  const leaf = new x509.X509Certificate(pem)
  return new Uint8Array(await crypto.subtle.digest('SHA-256', leaf.rawData))
}

/** True when the pair names all of `names` and has more than a third of its time left. */
export function isCurrent(pem: string, names: readonly string[], nowMs: number): boolean {
  try {
    const leaf = new x509.X509Certificate(pem)
    const alternative = leaf.getExtension(x509.SubjectAlternativeNameExtension)
    const has = new Set(alternative?.names.toJSON().map((name) => name.value))
    return leaf.notAfter.getTime() - nowMs > VALID_MS / 3 && names.every((name) => has.has(name))
  } catch {
    return false
  }
}

/**
 * What identifies a certificate towards its CA (RFC 9773 §4.1): the content of its authority's key
 * identifier and of its serial number; undefined where it has no such identifier.
 */
export function certificateIdOf(pem: string): string | undefined {
  const leaf = new x509.X509Certificate(pem)
  const authority = leaf.getExtension(x509.AuthorityKeyIdentifierExtension)?.keyId
  if (authority === undefined) return undefined
  const serial = leaf.serialNumber
  // The library leaves out the zero that keeps a number positive; the identifier has it.
  const sign = Number.parseInt(serial.slice(0, 2), 16) >= 0x80 ? '00' : ''
  return certificateId(fromHex(authority), fromHex(sign + serial))
}

function isAddress(name: string): boolean {
  return name.includes(':') || /^\d{1,3}(\.\d{1,3}){3}$/.test(name)
}
