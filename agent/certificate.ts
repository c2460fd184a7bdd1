/**
 * The certificates that this agent shows: self-signed ones, made at once, kept in the profile and
 * renewed in time, or a person's own from files that are read again when they change. What vouches for
 * a self-signed one is the passport that names its fingerprint.
 */
import { hex, text } from '../core/bytes.ts'
import type { Timer } from '../core/clock.ts'
import { asTunnelError, TunnelError } from '../core/errors.ts'
import type { Profile } from './profile.ts'
import type { TlsIdentity, World } from './world.ts'

const DAY_MS = 86_400_000
/** Validity of a self-signed certificate; renewed when two thirds are over. */
const VALID_MS = 90 * DAY_MS
const RENEW_BEFORE_MS = VALID_MS / 3
/** Clocks differ: valid from a little before now. */
const SKEW_MS = 3_600_000
const CHECK_MS = 6 * 3_600_000
/** A person's certificate that ends sooner is worth a line. */
const WARN_BEFORE_MS = 7 * DAY_MS
const SERIAL_BYTES = 16
const PEM_BYTES_MAX = 1_048_576

type Surroundings = Pick<World, 'tls' | 'clock' | 'crypto' | 'files'>

/** A pair, with what the passport and people need to know of it. */
export interface Certificate extends TlsIdentity {
  /** SHA-256 of the leaf, 32 bytes. */
  readonly fingerprint: Uint8Array
  readonly notAfterMs: number
}

export interface CertificateSource {
  /** The pair to show now; another object after a renewal. */
  readonly current: Certificate
  close(): void
}

export interface SourceEvents {
  /** Another certificate is shown from now on; the passport must say so. */
  onChange?: (certificate: Certificate) => void
  /** One line for the person. */
  onWarning?: (line: string) => void
}

/** The certificate of an endpoint's host, kept in the profile and renewed while the source is open. */
export function endpointCertificate(
  world: Surroundings,
  profile: Profile,
  options: { host: string } & SourceEvents,
): Promise<CertificateSource> {
  return keptCertificate(world, profile, { ...options, name: options.host, use: 'server' })
}

/**
 * The certificate that `sotto connect` shows. It carries our KEY, so that the other end knows whose
 * passport to ask for.
 */
export function clientCertificate(
  world: Surroundings,
  profile: Profile,
  { key, ...events }: { key: string } & SourceEvents,
): Promise<CertificateSource> {
  return keptCertificate(world, profile, { ...events, name: key, use: 'client' })
}

interface Kept extends SourceEvents {
  name: string
  use: 'server' | 'client'
}

async function keptCertificate(
  world: Surroundings,
  profile: Profile,
  { name, use, onChange, onWarning }: Kept,
): Promise<CertificateSource> {
  let current = await fresh(world, profile, { name, use })
  let closed = false
  let timer: Timer
  const check = (): void => {
    fresh(world, profile, { name, use }).then((found) => {
      if (closed || found.cert === current.cert) return
      current = found
      onChange?.(found)
    }, (error) => {
      onWarning?.(
        `cannot renew the certificate of ${name}: ${
          asTunnelError(error, 'tls/certificate').message
        }`,
      )
    }).finally(() => {
      if (!closed) timer = world.clock.after(CHECK_MS, check)
    })
  }
  timer = world.clock.after(CHECK_MS, check)
  return {
    get current() {
      return current
    },
    close() {
      closed = true
      timer.cancel()
    },
  }
}

/** The kept pair while it is good, else a new one, made by one of several processes. */
async function fresh(
  world: Surroundings,
  profile: Profile,
  { name, use }: { name: string; use: 'server' | 'client' },
): Promise<Certificate> {
  const kept = async (): Promise<Certificate | undefined> => {
    const pair = await profile.certificate(name)
    const certificate = pair && usable(world, pair)
    if (!certificate) return undefined
    const { facts } = certificate
    const now = world.clock.now()
    const named = use === 'client' || facts.names.includes(name)
    return named && facts.notBeforeMs <= now && facts.notAfterMs - now > RENEW_BEFORE_MS
      ? certificate.certificate
      : undefined
  }
  return await kept() ?? await profile.locked(`certificate-${name}`, async () => {
    const already = await kept()
    if (already) return already
    const made = await makeCertificate(world, { name, use })
    await profile.keepCertificate(name, made)
    return usable(world, made)!.certificate
  })
}

function usable(
  world: Surroundings,
  pair: TlsIdentity,
): { certificate: Certificate; facts: ReturnType<World['tls']['inspect']> } | undefined {
  try {
    const facts = world.tls.inspect(pair)
    const { fingerprint, notAfterMs } = facts
    return { certificate: { ...pair, fingerprint, notAfterMs }, facts }
  } catch {
    return undefined
  }
}

/** A self-signed pair over P-256, valid for 90 days, serial number of 127 random bits. */
export async function makeCertificate(
  world: Pick<World, 'crypto' | 'clock'>,
  { name, use }: { name: string; use: 'server' | 'client' },
): Promise<TlsIdentity> {
  // Loaded only when a certificate is made: it would cost every start 60 ms.
  await import('reflect-metadata')
  const x509 = await import('@peculiar/x509')
  const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }
  const keys = await crypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
  const serial = world.crypto.randomBytes(SERIAL_BYTES)
  serial[0] = (serial[0]! & 0x7f) | 0x40 // positive and of one length, RFC 5280 §4.1.2.2
  const now = world.clock.now()
  const { ExtendedKeyUsage: purpose } = x509
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: hex(serial),
    name: [{ CN: [name.slice(0, 64)] }],
    notBefore: new Date(now - SKEW_MS),
    notAfter: new Date(now + VALID_MS),
    keys,
    signingAlgorithm: algorithm,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([
        use === 'server' ? purpose.serverAuth : purpose.clientAuth,
      ]),
      ...(use === 'server'
        ? [new x509.SubjectAlternativeNameExtension([{ type: 'dns', value: name }])]
        : []),
    ],
  })
  const pkcs8 = await crypto.subtle.exportKey('pkcs8', keys.privateKey)
  return {
    cert: certificate.toString('pem'),
    key: x509.PemConverter.encode(pkcs8, 'PRIVATE KEY'),
  }
}

/**
 * A person's own pair. Read again when either file changes; a pair that does not fit (the two files of
 * a renewal are never written at one moment) leaves the old one in place. Throws `tls/certificate`,
 * `files/…` when the first reading fails.
 */
export async function certificateFiles(
  world: Surroundings,
  options: { cert: string; key: string; host?: string } & SourceEvents,
): Promise<CertificateSource> {
  const { onChange, onWarning } = options
  const read = async (): Promise<Certificate> => {
    const pair = { cert: await pem(world, options.cert), key: await pem(world, options.key) }
    const facts = world.tls.inspect(pair)
    return { ...pair, fingerprint: facts.fingerprint, notAfterMs: facts.notAfterMs }
  }
  let current = await read()
  let closed = false
  let reading = false
  let again = false
  let warned = ''
  const warn = (line: string): void => {
    if (line !== warned) onWarning?.(line)
    warned = line
  }
  const tellAge = (): void => {
    const leftMs = current.notAfterMs - world.clock.now()
    if (leftMs > WARN_BEFORE_MS) return
    const days = Math.max(0, Math.floor(leftMs / DAY_MS))
    warn(
      leftMs <= 0
        ? `the certificate in ${options.cert} is out of date`
        : `the certificate in ${options.cert} ends in ${days} days`,
    )
  }
  const reload = async (): Promise<void> => {
    // One reading at a time; what changes meanwhile is read after it.
    if (reading) {
      again = true
      return
    }
    reading = true
    do {
      again = false
      try {
        const found = await read()
        if (closed) return
        warned = ''
        if (found.cert !== current.cert || found.key !== current.key) {
          current = found
          onChange?.(found)
        }
        tellAge()
      } catch (error) {
        if (closed) return
        const { message } = asTunnelError(error, 'tls/certificate')
        warn(`${options.cert} and its key were not taken, the old pair stays: ${message}`)
      }
    } while (again)
    reading = false
  }
  const stops = [options.cert, options.key].map((path) =>
    world.files.watch(path, () => void reload())
  )
  // A change between the first reading and the watch would be missed otherwise.
  void reload()
  return {
    get current() {
      return current
    },
    close() {
      closed = true
      for (const stop of stops) stop()
    },
  }
}

async function pem(world: Surroundings, path: string): Promise<string> {
  const content = await world.files.read(path, { bytesMax: PEM_BYTES_MAX })
  if (content === undefined) {
    throw new TunnelError('tls/certificate', `Cannot read ${path}: there is no such file`)
  }
  return text(content)
}
