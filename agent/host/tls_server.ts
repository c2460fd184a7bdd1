/**
 * TLS 1.2 and 1.3 as a server, on the callback socket itself: no stream objects between the runtime's
 * TLS and a splice. The first bytes may have been read already, since whose they are is known only then.
 *
 * A server that asks for client certificates speaks TLS 1.3 alone (in 1.2 the certificate crosses the
 * relay in clear, and would tell it who visits) and gives out no session tickets (a resumed session
 * would outlive a withdrawn permission).
 */
import type { SecureContext } from 'node:tls'
import { concat, EMPTY } from '../../core/bytes.ts'
import type { DuplexShape } from '../../core/duplex_conn.ts'
import { TunnelError } from '../../core/errors.ts'
import { NativeConn } from '../../core/native_conn.ts'
import type { NativeShape } from '../../core/native_conn.ts'
import type { Conn } from '../../core/socket.ts'
import type { TlsConn, TlsServeOptions } from '../world.ts'
import { nativeCarrierOf } from './carrier.ts'
import { ConnDuplex } from './conn_duplex.ts'
import { ALERT, sealAlert, serverSecret } from './tls_alert.ts'
import { contextOf } from './tls_context.ts'

const HANDSHAKE_MS = 10_000
/** A refused client may take so long to read its alert and go away. */
const REFUSED_LINGER_MS = 2_000

/** What is used of the runtime's TLS socket. */
interface TlsShape extends NativeShape {
  readonly alpnProtocol: string | null | false
  getServername(): string | undefined
  getTLSVersion(): string
  getCipher(): { name: string }
  getPeerCertificate(abbreviated: boolean): { raw?: Uint8Array } | undefined
  isSessionReused(): boolean
  exportKeyingMaterial(bytes: number, label: string, context: Uint8Array): Uint8Array
}

/** What is used of a callback socket to put TLS on it. */
interface UpgradableShape extends NativeShape {
  upgradeTLS(options: {
    isServer: true
    data: ServedConn
    socket: object
    tls: object
    initialData: Uint8Array | undefined
  }): [raw: NativeShape, secure: TlsShape] | undefined
}

/** Ends TLS on a carrier; see `Tls.serve`. */
export async function serve(
  carrier: Conn,
  first: Uint8Array,
  options: TlsServeOptions,
): Promise<TlsConn> {
  let context: SecureContext
  try {
    context = contextOf(options.identity, options.admit !== undefined)
  } catch (error) {
    carrier.abort()
    throw error
  }
  const isDirect = carrier instanceof NativeConn && !(carrier instanceof ServedConn)
  const conn = isDirect ? carrier : await nativeCarrierOf(carrier, first)
  const held = new Held(isDirect ? first : EMPTY)
  conn.handle(held)
  conn.resume()
  // What came while nobody was there is told on the next turn.
  await undefined
  return await new Promise((resolve, reject) => {
    const served = new ServedConn(options, { resolve, reject })
    try {
      if (held.over) throw new Error('the connection was closed')
      served.start(conn, { context, first: held.bytes })
    } catch (error) {
      served.fail(error as Error)
      conn.abort()
    }
  })
}

/** Bytes that came before TLS was there to take them. */
class Held {
  bytes: Uint8Array
  over = false

  constructor(bytes: Uint8Array) {
    this.bytes = bytes
  }

  data(bytes: Uint8Array): void {
    this.bytes = this.bytes.length === 0 ? bytes : concat(this.bytes, bytes)
  }

  end(): void {
    this.over = true
  }

  closed(): void {
    this.over = true
  }
}

/** Below TLS the runtime goes on telling what arrives, sealed; only an end in the handshake matters. */
class Below {
  readonly #above: ServedConn

  constructor(above: ServedConn) {
    this.#above = above
  }

  received(): void {}
  writable(): void {}
  readEnded(): void {
    this.#above.cut()
  }
  gone(): void {
    this.#above.cut()
  }
}

interface Outcome {
  resolve(conn: TlsConn): void
  reject(error: TunnelError): void
}

class ServedConn extends NativeConn implements TlsConn {
  alpn: string | false = false
  servername: string | undefined
  version = ''
  peerCertificate: Uint8Array | undefined
  resumed = false
  readonly options: TlsServeOptions
  #outcome: Outcome | undefined
  #shaken = false
  #timer: ReturnType<typeof setTimeout> | undefined
  #carrier: NativeConn | undefined
  #below: NativeShape | undefined
  #secret: Uint8Array | undefined

  constructor(options: TlsServeOptions, outcome: Outcome) {
    super()
    this.options = options
    this.#outcome = outcome
  }

  start(
    carrier: NativeConn,
    { context, first }: { context: SecureContext; first: Uint8Array },
  ): void {
    this.#carrier = carrier
    const { alpn, chooseAlpn, admit } = this.options
    const timeoutMs = this.options.timeoutMs ?? HANDSHAKE_MS
    this.#timer = setTimeout(() => {
      this.fail(
        new TunnelError(
          'tls/timeout',
          `Cannot finish TLS with visitor: no end within ${timeoutMs} ms`,
        ),
      )
      this.abort()
    }, timeoutMs)
    const pair = (carrier.socket as UpgradableShape).upgradeTLS({
      isServer: true,
      data: this,
      socket: chooseAlpn ? (admit ? CHOOSES_AND_ASKS : CHOOSES) : admit ? ASKS : PLAIN,
      initialData: first.length > 0
        ? Buffer.from(first.buffer, first.byteOffset, first.byteLength)
        : undefined,
      tls: {
        secureContext: context.context,
        requestCert: admit !== undefined,
        rejectUnauthorized: false,
        ...(alpn && !chooseAlpn ? { ALPNProtocols: protocolsOf(alpn) } : {}),
      },
    })
    if (!pair) throw new Error('the connection was closed')
    this.#below = pair[0]
    this.#below.data = new Below(this) as unknown as NativeConn
  }

  override opened(secure: NativeShape): void {
    super.opened(secure)
    // The socket that it had is no more, and whoever kept the carrier may yet want to abort it.
    this.#carrier?.opened(secure)
  }

  /** The runtime's `handshake` callback. */
  shaken(secure: TlsShape, success: boolean, error: Error | null): void {
    if (!this.#outcome) return
    if (!success) return this.fail(error ?? new Error('the handshake failed'))
    this.#shaken = true
    const { admit } = this.options
    this.alpn = secure.alpnProtocol || false
    this.servername = secure.getServername() || undefined
    this.version = secure.getTLSVersion()
    this.resumed = secure.isSessionReused()
    // A promise only where there is somebody to ask: visitors of open endpoints wait for nothing.
    if (!admit) return this.#done()
    const raw = secure.getPeerCertificate(false)?.raw
    const leaf = raw && raw.length > 0 ? new Uint8Array(raw) : undefined
    this.peerCertificate = leaf
    Promise.resolve(leaf).then(admit).then((admitted) => {
      if (admitted) this.#done()
      else if (this.#outcome) this.#refuse(secure, leaf)
    }, (cause) => this.fail(cause))
  }

  #done(): void {
    this.#settle()?.resolve(this)
  }

  #settle(): Outcome | undefined {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#secret = undefined
    const outcome = this.#outcome
    this.#outcome = undefined
    return outcome
  }

  /** Ends it before it has begun; what the runtime has to say to the other end is said already. */
  fail(error: Error): void {
    const outcome = this.#settle()
    if (!outcome) return
    outcome.reject(
      error instanceof TunnelError ? error : new TunnelError(
        'tls/handshake',
        `Cannot finish TLS with visitor: ${(error as { code?: string }).code ?? error.message}`,
        { cause: error },
      ),
    )
    this.socket?.end()
  }

  /** Sends the alert below TLS, half-closes, and lets the other end read it before the socket goes. */
  #refuse(secure: TlsShape, leaf: Uint8Array | undefined): void {
    const alert = leaf ? 'access_denied' : 'certificate_required'
    const secret = this.#secret
    const record = secret && sealAlert(secure.getCipher().name, secret, ALERT[alert])
    const outcome = this.#settle()
    const timer = setTimeout(() => this.abort(), REFUSED_LINGER_MS)
    // What the client still sends is read and dropped: unread bytes would make the close a reset.
    this.handle({
      data() {},
      end: () => this.abort(),
      closed: () => clearTimeout(timer),
    })
    if (record && this.#below) {
      this.#below.write(record)
      this.#below.shutdown()
    } else this.end()
    outcome?.reject(
      new TunnelError(
        'tls/refused',
        leaf
          ? 'Cannot admit visitor: its certificate is not among those allowed'
          : 'Cannot admit visitor: it showed no certificate',
      ),
    )
  }

  /** The runtime's `keylog` callback. */
  logged(line: Uint8Array): void {
    if (this.#outcome) this.#secret ??= serverSecret(line)
  }

  /** The other end has ended in the handshake. Behind it an end may wait, as bytes may, for admission. */
  cut(): void {
    if (!this.#shaken) this.fail(new Error('the connection was closed'))
  }

  override readEnded(): void {
    this.cut()
    super.readEnded()
  }

  override gone(error?: Error): void {
    this.fail(error ?? new Error('the connection was closed'))
    super.gone(error)
  }

  exporter(label: string, bytes: number, context?: Uint8Array): Uint8Array {
    return (this.socket as TlsShape).exportKeyingMaterial(
      bytes,
      label,
      Buffer.from(context ?? EMPTY),
    )
  }

  /** As a stream, for what speaks nothing else. */
  detach(): DuplexShape {
    return new ConnDuplex(this)
  }
}

type Socket = TlsShape & { data: ServedConn }

const PLAIN = {
  open: (socket: Socket) => socket.data.opened(socket),
  data: (socket: Socket, bytes: Uint8Array) => socket.data.received(bytes),
  drain: (socket: Socket) => socket.data.writable(),
  end: (socket: Socket) => socket.data.readEnded(),
  close: (socket: Socket, error?: unknown) =>
    socket.data.gone(error instanceof Error ? error : undefined),
  error: (socket: Socket, error: Error) => socket.data.gone(error),
  handshake: (socket: Socket, success: boolean, error: Error | null) =>
    socket.data.shaken(socket, success, error),
}
const ASKS = { ...PLAIN, keylog: (socket: Socket, line: Uint8Array) => socket.data.logged(line) }
const chooses = {
  alpnCallback(socket: Socket, _name: unknown, wire: Uint8Array): string | undefined {
    const offered: string[] = []
    for (let at = 0; at < wire.length; at += 1 + wire[at]!) {
      offered.push(Buffer.from(wire.subarray(at + 1, at + 1 + wire[at]!)).toString('latin1'))
    }
    const chosen = socket.data.options.chooseAlpn!(offered)
    return chosen !== undefined && offered.includes(chosen) ? chosen : undefined
  },
}
const CHOOSES = { ...PLAIN, ...chooses }
const CHOOSES_AND_ASKS = { ...ASKS, ...chooses }

/** As on the wire (RFC 7301 §3.1). */
function protocolsOf(alpn: readonly string[]): Buffer {
  return Buffer.concat(
    alpn.flatMap((name) => [Buffer.from([name.length]), Buffer.from(name, 'latin1')]),
  )
}
