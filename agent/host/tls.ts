/**
 * TLS 1.2 and 1.3 over any `Conn`. As a server (`tls_server.ts`) it ends visitors' TLS in this process;
 * as a client it checks certificates by CA or by whatever the caller knows better (a passport's
 * fingerprints).
 */
import { createHash, createPrivateKey, sign, X509Certificate } from 'node:crypto'
import { isIP } from 'node:net'
import * as tls from 'node:tls'
import { DuplexConn } from '../../core/duplex_conn.ts'
import { TunnelError } from '../../core/errors.ts'
import type {
  CertificateFacts,
  CertificateSigner,
  Target,
  Tls,
  TlsConn,
  TlsConnectOptions,
  TlsIdentity,
} from '../world.ts'
import { carrierOf } from './carrier.ts'
import { clockHint } from './clock_hint.ts'
import { bareHost, connectDuplex, describeTarget } from './tcp.ts'
import { contextOf, leafAndKey } from './tls_context.ts'
import { serve } from './tls_server.ts'

const HANDSHAKE_MS = 10_000
const EMPTY = new Uint8Array(0)

export const hostTls: Tls = { serve, connect, inspect, signer, peerCertificate }

class ClientConn extends DuplexConn<tls.TLSSocket> implements TlsConn {
  readonly alpn: string | false
  readonly servername: string | undefined
  readonly version: string
  readonly peerCertificate: Uint8Array | undefined
  readonly resumed: boolean

  constructor(socket: tls.TLSSocket) {
    super(socket)
    this.alpn = socket.alpnProtocol || false
    const servername = (socket as { servername?: unknown }).servername
    this.servername = typeof servername === 'string' && servername !== '' ? servername : undefined
    this.version = socket.getProtocol() ?? ''
    this.peerCertificate = leafOf(socket)
    this.resumed = socket.isSessionReused()
  }

  exporter(label: string, bytes: number, context?: Uint8Array): Uint8Array {
    return this.raw.exportKeyingMaterial(bytes, label, Buffer.from(context ?? EMPTY))
  }
}

async function connect(options: TlsConnectOptions): Promise<TlsConn> {
  const timeoutMs = options.timeoutMs ?? HANDSHAKE_MS
  const startedMs = performance.now()
  const host = options.target && 'host' in options.target ? bareHost(options.target.host) : ''
  const name = options.servername ?? host
  const carrier = options.carrier ?? await connectDuplex({ ...targetOf(options), timeoutMs })
  const below = await carrierOf(carrier)
  let socket: tls.TLSSocket
  try {
    socket = tls.connect({
      socket: below,
      minVersion: 'TLSv1.2',
      rejectUnauthorized: false,
      // An address cannot be a server name (RFC 6066 §3).
      ...(isIP(name) === 0 && name !== '' ? { servername: name } : {}),
      ...(options.alpn ? { ALPNProtocols: [...options.alpn] } : {}),
      ...(options.identity ? { cert: options.identity.cert, key: options.identity.key } : {}),
      ...(options.ca ? { ca: [...options.ca] } : {}),
    })
  } catch (cause) {
    below.destroy()
    throw new TunnelError('tls/handshake', 'Cannot start TLS: the certificate is unusable', {
      cause,
    })
  }
  return handshake(socket, {
    timeoutMs: Math.max(1, timeoutMs - (performance.now() - startedMs)),
    subject: name || (options.target ? describeTarget(options.target) : 'peer'),
    check() {
      const leaf = leafOf(socket)
      if (options.verify) options.verify(leaf ?? EMPTY)
      else checkByAuthority(socket, name)
    },
  })
}

function targetOf(options: TlsConnectOptions): Target {
  if (options.target) return options.target
  throw new TunnelError('tls/target', 'Cannot connect: expected a target or a carrier')
}

function checkByAuthority(socket: tls.TLSSocket, name: string): void {
  const problem = socket.authorized
    ? tls.checkServerIdentity(name, socket.getPeerCertificate())
    : socket.authorizationError
  if (!problem) return
  const said = problem instanceof Error
    ? (problem as { code?: string }).code ?? problem.message
    : String(problem)
  const hint = clockHint(said)
  throw new TunnelError('tls/untrusted', `Cannot trust certificate of ${name}: ${said}`, {
    cause: problem,
    ...(hint === undefined ? {} : { hint }),
  })
}

async function peerCertificate(
  target: Target & { servername?: string; timeoutMs?: number },
): Promise<{ der: Uint8Array; fingerprint: Uint8Array }> {
  let der: Uint8Array = EMPTY
  const conn = await connect({
    target,
    ...(target.servername === undefined ? {} : { servername: target.servername }),
    ...(target.timeoutMs === undefined ? {} : { timeoutMs: target.timeoutMs }),
    verify: (leaf) => void (der = leaf),
  })
  conn.abort()
  return { der, fingerprint: sha256(der) }
}

function inspect(identity: TlsIdentity): CertificateFacts {
  const leaf = leafAndKey(identity)
  // The stack may still refuse what could be read, such as a chain out of order.
  contextOf(identity, false)
  const der = new Uint8Array(leaf.raw)
  return {
    der,
    fingerprint: sha256(der),
    notBeforeMs: Date.parse(leaf.validFrom),
    notAfterMs: Date.parse(leaf.validTo),
    names: (leaf.subjectAltName ?? '').split(', ').filter((name) => name !== '').map((name) =>
      name.replace(/^(DNS|IP Address):/, '').toLowerCase()
    ),
  }
}

function signer(identity: TlsIdentity): CertificateSigner {
  leafAndKey(identity)
  const key = createPrivateKey(identity.key)
  const curve = key.asymmetricKeyDetails?.namedCurve
  const isEd25519 = key.asymmetricKeyType === 'ed25519'
  if (!isEd25519 && !(key.asymmetricKeyType === 'ec' && curve === 'prime256v1')) {
    throw new TunnelError(
      'tls/certificate',
      `Cannot use client certificate: found a key of type ${key.asymmetricKeyType}, expected ECDSA P-256 or Ed25519`,
    )
  }
  const pems = identity.cert.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ??
    []
  return {
    chain: pems.map((pem) => new Uint8Array(new X509Certificate(pem).raw)),
    sign: (message) =>
      new Uint8Array(
        isEd25519
          ? sign(null, message, key)
          : sign('sha256', message, { key, dsaEncoding: 'ieee-p1363' }),
      ),
  }
}

interface Handshake {
  timeoutMs: number
  subject: string
  /** Throws to refuse. */
  check(): void
}

function handshake(socket: tls.TLSSocket, options: Handshake): Promise<TlsConn> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(
      () =>
        fail(
          new TunnelError(
            'tls/timeout',
            `Cannot finish TLS with ${options.subject}: no end within ${options.timeoutMs} ms`,
          ),
        ),
      options.timeoutMs,
    )
    function release(): void {
      clearTimeout(timer)
      socket.removeListener('secureConnect', done)
      socket.removeListener('close', closed)
    }
    function fail(error: TunnelError): void {
      release()
      reject(error)
      socket.destroy()
    }
    function broken(error: Error): void {
      fail(
        new TunnelError(
          'tls/handshake',
          `Cannot finish TLS with ${options.subject}: ${
            (error as { code?: string }).code ?? error.message
          }`,
          { cause: error },
        ),
      )
    }
    function closed(): void {
      broken(new Error('the connection was closed'))
    }
    function done(): void {
      try {
        options.check()
      } catch (error) {
        release()
        socket.destroy()
        reject(error)
        return
      }
      release()
      const conn = new ClientConn(socket)
      socket.removeListener('error', broken)
      resolve(conn)
    }
    // The listener stays after a failure: an error without one would end the process.
    socket.on('error', broken)
    socket.once('close', closed)
    socket.once('secureConnect', done)
  })
}

function leafOf(socket: tls.TLSSocket): Uint8Array | undefined {
  const raw = socket.getPeerCertificate(true)?.raw
  return raw && raw.length > 0 ? new Uint8Array(raw) : undefined
}

export function sha256(bytes: Uint8Array): Uint8Array {
  return new Uint8Array(createHash('sha256').update(bytes).digest())
}
