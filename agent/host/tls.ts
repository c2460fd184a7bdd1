/**
 * TLS 1.2 and 1.3 over any `Conn`. As a server it ends visitors' TLS in this process; as a client it
 * checks certificates by CA or by whatever the caller knows better (a passport's fingerprints).
 *
 * A server that asks for client certificates speaks TLS 1.3 alone (in 1.2 the certificate crosses the
 * relay in clear, and would tell it who visits) and gives out no session tickets (a resumed session
 * would outlive a withdrawn permission).
 */
import { constants, createHash, createPrivateKey, sign, X509Certificate } from 'node:crypto'
import { isIP } from 'node:net'
import type { Socket } from 'node:net'
import * as tls from 'node:tls'
import { DuplexConn } from '../../core/duplex_conn.ts'
import { TunnelError } from '../../core/errors.ts'
import type { Conn } from '../../core/socket.ts'
import type {
  CertificateFacts,
  CertificateSigner,
  Target,
  Tls,
  TlsConn,
  TlsConnectOptions,
  TlsIdentity,
  TlsServeOptions,
} from '../world.ts'
import { carrierOf } from './carrier.ts'
import { bareHost, connectDuplex, describeTarget } from './tcp.ts'
import { ALERT, sealAlert, serverSecret } from './tls_alert.ts'

const HANDSHAKE_MS = 10_000
/** A refused client may take so long to read its alert and go away. */
const REFUSED_LINGER_MS = 2_000
const EMPTY = new Uint8Array(0)

export const hostTls: Tls = { serve, connect, inspect, signer, peerCertificate }

class HostTlsConn extends DuplexConn<tls.TLSSocket> implements TlsConn {
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

/** One context for each certificate and use, so that tickets of one connection resume another. */
const contexts = new WeakMap<TlsIdentity, Map<boolean, tls.SecureContext>>()

function contextOf(identity: TlsIdentity, asks: boolean): tls.SecureContext {
  let uses = contexts.get(identity)
  if (!uses) contexts.set(identity, uses = new Map())
  let context = uses.get(asks)
  if (!context) {
    leafAndKey(identity)
    try {
      context = tls.createSecureContext({
        cert: identity.cert,
        key: identity.key,
        minVersion: asks ? 'TLSv1.3' : 'TLSv1.2',
        ...(asks ? { secureOptions: constants.SSL_OP_NO_TICKET } : {}),
      })
    } catch (cause) {
      throw new TunnelError(
        'tls/certificate',
        'Cannot use certificate: found a pair of certificate and key that do not work together',
        { cause },
      )
    }
    uses.set(asks, context)
  }
  return context
}

async function serve(
  carrier: Conn,
  first: Uint8Array,
  options: TlsServeOptions,
): Promise<TlsConn> {
  const { admit } = options
  const asks = admit !== undefined
  let secureContext: tls.SecureContext
  try {
    secureContext = contextOf(options.identity, asks)
  } catch (error) {
    carrier.abort()
    throw error
  }
  const reached = carrierOf(carrier, first)
  const below = reached instanceof Promise ? await reached : reached
  const choose = options.chooseAlpn
  const socket = new tls.TLSSocket(below, {
    isServer: true,
    secureContext,
    requestCert: asks,
    rejectUnauthorized: false,
    ...(choose
      ? { ALPNCallback: ({ protocols }: { protocols: string[] }) => choose(protocols) }
      : options.alpn
      ? { ALPNProtocols: [...options.alpn] }
      : {}),
  })
  let secret: Buffer | undefined
  if (asks) socket.on('keylog', (line: Buffer) => void (secret ??= serverSecret(line)))
  return handshake(socket, {
    event: 'secure',
    timeoutMs: options.timeoutMs ?? HANDSHAKE_MS,
    subject: 'visitor',
    // A promise only where there is somebody to ask: visitors of open endpoints wait for nothing.
    check: admit && (async () => {
      const leaf = leafOf(socket)
      if (await admit(leaf)) return
      const alert = leaf ? 'access_denied' : 'certificate_required'
      // Whoever left meanwhile cannot be told anything.
      if (!socket.destroyed) refuse(socket, { below, secret, alert })
      throw new TunnelError(
        'tls/refused',
        leaf
          ? 'Cannot admit visitor: its certificate is not among those allowed'
          : 'Cannot admit visitor: it showed no certificate',
      )
    }),
  })
}

/** Sends the alert below TLS, half-closes, and lets the other end read it before the socket goes. */
function refuse(
  socket: tls.TLSSocket,
  { below, secret, alert }: {
    below: Socket
    secret: Buffer | undefined
    alert: keyof typeof ALERT
  },
): void {
  const record = secret && sealAlert(socket.getCipher().name, secret, ALERT[alert])
  const timer = setTimeout(() => socket.destroy(), REFUSED_LINGER_MS)
  socket.on('error', () => {})
  socket.once('close', () => clearTimeout(timer))
  // What the client still sends is read and dropped: unread bytes would make the close a reset.
  socket.on('data', () => {})
  socket.once('end', () => socket.destroy())
  if (record) {
    below.write(record)
    below.end()
  } else socket.end()
}

async function connect(options: TlsConnectOptions): Promise<TlsConn> {
  const timeoutMs = options.timeoutMs ?? HANDSHAKE_MS
  const startedMs = performance.now()
  const host = options.target && 'host' in options.target ? bareHost(options.target.host) : ''
  const name = options.servername ?? host
  const carrier = options.carrier ?? await connectDuplex({ ...targetOf(options), timeoutMs })
  const below = await carrierOf(carrier, EMPTY)
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
    event: 'secureConnect',
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
  throw new TunnelError('tls/untrusted', `Cannot trust certificate of ${name}: ${said}`, {
    cause: problem,
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

/** The leaf, once it is sure that the key is its own: the stack itself finds out only in a handshake. */
function leafAndKey(identity: TlsIdentity): X509Certificate {
  try {
    const leaf = new X509Certificate(identity.cert)
    if (leaf.checkPrivateKey(createPrivateKey(identity.key))) return leaf
  } catch (cause) {
    throw new TunnelError('tls/certificate', 'Cannot use certificate: found no readable PEM pair', {
      cause,
      hint: 'Expected a certificate (chain) and its unencrypted private key, both in PEM',
    })
  }
  throw new TunnelError(
    'tls/certificate',
    'Cannot use certificate: found a key that is not the one it names',
  )
}

interface Handshake {
  event: 'secure' | 'secureConnect'
  timeoutMs: number
  subject: string
  /** Throws to refuse. It closes the socket itself or leaves that to the caller of it. */
  check: (() => void | Promise<void>) | undefined
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
    let over = false
    function release(): void {
      over = true
      clearTimeout(timer)
      socket.removeListener(options.event, done)
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
    async function done(): Promise<void> {
      try {
        const checked = options.check?.()
        if (checked) await checked
        if (over) return
      } catch (error) {
        if (over) return
        release()
        // A refusal that sent its own alert closes the socket when that is read.
        if (!(error instanceof TunnelError && error.code === 'tls/refused')) socket.destroy()
        reject(error)
        return
      }
      release()
      const conn = new HostTlsConn(socket)
      socket.removeListener('error', broken)
      resolve(conn)
    }
    // The listener stays after a failure: an error without one would end the process.
    socket.on('error', broken)
    socket.once('close', closed)
    socket.once(options.event, done)
  })
}

function leafOf(socket: tls.TLSSocket): Uint8Array | undefined {
  const raw = socket.getPeerCertificate(true)?.raw
  return raw && raw.length > 0 ? new Uint8Array(raw) : undefined
}

export function sha256(bytes: Uint8Array): Uint8Array {
  return new Uint8Array(createHash('sha256').update(bytes).digest())
}
