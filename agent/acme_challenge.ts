/**
 * TLS-ALPN-01 (RFC 8737) at an agent: a CA opens TLS to the name, asks for `acme-tls/1` alone and wants to
 * see a certificate that carries what it told the account. The relay passes that hello on as any other,
 * so the question reaches the one who holds the key. Nothing is served on such a connection.
 */
import { hex } from '../core/bytes.ts'
import { HelloReader } from '../core/client_hello.ts'
import type { HelloVerdict } from '../core/client_hello.ts'
import type { Clock } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import type { Conn } from '../core/socket.ts'
import type { TlsIdentity } from './world.ts'

export const CHALLENGE_ALPN = 'acme-tls/1'
/** id-pe-acmeIdentifier: RFC 8737 §3. */
export const ACME_IDENTIFIER_OID = '1.3.6.1.5.5.7.1.31'
const DIGEST_BYTES = 32
const HOUR_MS = 3_600_000
/** A visitor's whole hello; as long as a handshake may take. */
const PEEK_MS_MAX = 10_000
/** A CA that has seen the certificate goes away. */
const LINGER_MS_MAX = 2_000

/** The certificates for questions that are open now, by name. */
export class Challenges {
  readonly #open = new Map<string, TlsIdentity>()

  get size(): number {
    return this.#open.size
  }

  get(name: string): TlsIdentity | undefined {
    return this.#open.get(name)
  }

  /** Answers until the returned call; a later one for the same name takes the place of an earlier one. */
  answer(name: string, identity: TlsIdentity): () => void {
    this.#open.set(name, identity)
    return () => void (this.#open.get(name) === identity && this.#open.delete(name))
  }
}

/** Self-signed for `name`, with the SHA-256 of the key authorization in a critical extension. */
export async function challengeCertificate(
  world: { clock: Pick<Clock, 'now'>; crypto: Pick<Crypto, 'randomBytes'> },
  { name, digest }: { name: string; digest: Uint8Array },
): Promise<TlsIdentity> {
  await import('reflect-metadata')
  const x509 = await import('@peculiar/x509')
  const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }
  const keys = await crypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
  const serial = world.crypto.randomBytes(16)
  serial[0] = (serial[0]! & 0x7f) | 0x40
  const now = world.clock.now()
  // An OCTET STRING within that of the extension: RFC 8737 §3.
  const authorization = new Uint8Array([0x04, DIGEST_BYTES, ...digest.subarray(0, DIGEST_BYTES)])
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: hex(serial),
    name: [{ CN: [name.slice(0, 64)] }],
    notBefore: new Date(now - HOUR_MS),
    notAfter: new Date(now + 24 * HOUR_MS),
    keys,
    signingAlgorithm: algorithm,
    extensions: [
      new x509.SubjectAlternativeNameExtension([{ type: 'dns', value: name }]),
      new x509.Extension(ACME_IDENTIFIER_OID, true, authorization),
    ],
  })
  const pkcs8 = await crypto.subtle.exportKey('pkcs8', keys.privateKey)
  return {
    cert: certificate.toString('pem'),
    key: x509.PemConverter.encode(pkcs8, 'PRIVATE KEY'),
  }
}

/** A key of its own and a request for `name` alone; PEM both. */
export async function certificateRequest(name: string): Promise<{ key: string; csr: string }> {
  await import('reflect-metadata')
  const x509 = await import('@peculiar/x509')
  const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }
  const keys = await crypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
  const request = await x509.Pkcs10CertificateRequestGenerator.create({
    // No common name: it may hold 64 characters, and is not looked at (RFC 8555 §7.4, CA/B forum).
    keys,
    signingAlgorithm: algorithm,
    extensions: [new x509.SubjectAlternativeNameExtension([{ type: 'dns', value: name }])],
  })
  const pkcs8 = await crypto.subtle.exportKey('pkcs8', keys.privateKey)
  return { key: x509.PemConverter.encode(pkcs8, 'PRIVATE KEY'), csr: request.toString('pem') }
}

/** A key for an account, PEM. */
export async function accountKey(): Promise<string> {
  await import('reflect-metadata')
  const x509 = await import('@peculiar/x509')
  const algorithm = { name: 'ECDSA', namedCurve: 'P-256' }
  const keys = await crypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
  return x509.PemConverter.encode(
    await crypto.subtle.exportKey('pkcs8', keys.privateKey),
    'PRIVATE KEY',
  )
}

/** What identifies a certificate towards its CA: key identifier of the authority, and serial number. */
export async function authorityAndSerial(
  pem: string,
): Promise<{ authorityKeyId: Uint8Array; serial: Uint8Array } | undefined> {
  await import('reflect-metadata')
  const x509 = await import('@peculiar/x509')
  const leaf = new x509.X509Certificate(pem)
  const authority = leaf.getExtension(x509.AuthorityKeyIdentifierExtension)?.keyId
  if (authority === undefined) return undefined
  const bytes = (digits: string): Uint8Array =>
    new Uint8Array((digits.match(/../g) ?? []).map((pair) => Number.parseInt(pair, 16)))
  const serial = bytes(leaf.serialNumber)
  // The library leaves out the zero that keeps a number positive; the identifier has it (RFC 9773 §4.1).
  const positive = serial.length > 0 && serial[0]! >= 0x80 ? [0, ...serial] : [...serial]
  return { authorityKeyId: bytes(authority), serial: new Uint8Array(positive) }
}

/**
 * Reads the hello of a connection whose first bytes may be there already, and takes nothing away: the
 * bytes go on to whoever ends TLS. `verdict` is undefined where the visitor went away or took too long.
 */
export function peekHello(
  conn: Conn,
  { first, clock }: { first: Uint8Array; clock: Pick<Clock, 'after'> },
): Promise<{ verdict: Exclude<HelloVerdict, { kind: 'more' }>; bytes: Uint8Array } | undefined> {
  const reader = new HelloReader()
  const now = reader.push(first)
  if (now.kind !== 'more') return Promise.resolve({ verdict: now, bytes: first })
  return new Promise((resolve) => {
    const finish = (verdict: HelloVerdict | undefined): void => {
      late.cancel()
      if (verdict && verdict.kind !== 'more') {
        conn.hold()
        resolve({ verdict, bytes: reader.held })
      } else {
        conn.abort()
        resolve(undefined)
      }
    }
    const late = clock.after(PEEK_MS_MAX, () => finish(undefined))
    let over = false
    conn.handle({
      data(bytes) {
        if (over) return
        const verdict = reader.push(bytes)
        if (verdict.kind === 'more') return
        over = true
        finish(verdict)
      },
      end: () => void (over || (over = true, finish(undefined))),
      closed: () => void (over || (over = true, finish(undefined))),
    })
  })
}

/** Ends a connection on which nothing is served; what still comes is dropped. */
export function lastWords(conn: Conn, clock: Pick<Clock, 'after'>): Promise<void> {
  return new Promise((resolve) => {
    const late = clock.after(LINGER_MS_MAX, () => conn.abort())
    conn.handle({
      data() {},
      end() {},
      closed: () => {
        late.cancel()
        resolve()
      },
    })
    conn.end()
  })
}

/** The name that a CA asks for; undefined for every other hello. */
export function challengedName(verdict: HelloVerdict): string | undefined {
  return verdict.kind === 'hello' && verdict.alpn.length === 1 &&
      verdict.alpn[0] === CHALLENGE_ALPN
    ? verdict.serverName
    : undefined
}
