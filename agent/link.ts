/**
 * Opening a link: the WebSocket, then admission, for home and visit links alike. What comes after
 * the welcome goes to the handler that `admitted` returns, in the same turn, so nothing is lost.
 */
import { AgentAdmission } from '../core/admit.ts'
import type { Credential } from '../core/admit.ts'
import type { Clock } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { asTunnelError, TunnelError } from '../core/errors.ts'
import { decodeFrame, decodeNotice, encodeFrame, FRAME } from '../core/frame.ts'
import { formatKey } from '../core/key.ts'
import type { Identity } from '../core/key.ts'
import type { Labels } from '../core/labels.ts'
import type { Socket, SocketHandler } from '../core/socket.ts'

/** From the open WebSocket to the welcome. */
const ADMIT_MS_MAX = 10_000

/** What a relay says of itself and its limits; docs/protocol.md, "Welcome and requests". */
export interface Welcome {
  link: string
  scope: string
  secure: string
  apps: string
  port: number
  scheme: string
  window: number
  streams: number
  bulk: number
  can: string[]
  address: string
  version: string
}

export interface LinkPorts {
  clock: Clock
  crypto: Crypto
  identity: Identity
  /** The relay's origin, `https://host:port`. */
  relay: URL
  credential: Credential
  /** 16 random bytes of this process. */
  group16: Uint8Array
  version: string
  /** What the agent says of itself. */
  labels?: Labels | undefined
  /** Opens a WebSocket; the certificate is the one that this very connection got. */
  open(url: string): Promise<OpenedSocket>
  /** Checks the relay's identity against its pin; false refuses, throwing says why. */
  pin(relayPublic: Uint8Array): boolean
}

export interface OpenedSocket {
  socket: Socket
  certificate: Uint8Array | undefined
  /** True when a CA that this machine trusts vouches for the certificate. */
  trusted: boolean
}

export interface Link {
  socket: Socket
  welcome: Welcome
  bulkKey: Uint8Array
  relayKey: Uint8Array
  certificate: Uint8Array | undefined
}

/** Why a link ended: `error` where the relay said so, or where it broke the protocol. */
export interface LinkEnd {
  code: number
  reason: string
  error: TunnelError | undefined
}

/**
 * Opens a link to `target`'s star. Rejects when the WebSocket cannot be opened; from then on
 * `admitted` or `ended` tell. `ended` runs once at most, and only before `admitted`.
 */
export async function openLink(
  ports: LinkPorts,
  link: {
    role: 'home' | 'visit'
    target: Uint8Array
    admitted(link: Link): SocketHandler
    ended(end: LinkEnd): void
  },
): Promise<Socket> {
  const { clock } = ports
  const origin = ports.relay.origin.replace(/^http/, 'ws')
  const opened = await ports.open(`${origin}/v1/link/${formatKey(link.target)}`)
  const { socket } = opened
  const admission = admissionOf(ports, { ...link, opened })
  let over = false
  let notice: TunnelError | undefined
  const end = (code: number, reason: string, error?: TunnelError): void => {
    if (over) return
    over = true
    late.cancel()
    socket.terminate()
    link.ended({ code, reason, error })
  }
  const late = clock.after(
    ADMIT_MS_MAX,
    () => end(4408, 'the relay did not finish admission in 10 s'),
  )
  let challenged = false
  const step = (message: Uint8Array): void => {
    const frame = decodeFrame(message)
    if (frame.type === FRAME.notice) {
      const { code, message: words } = decodeNotice(frame.payload)
      notice = new TunnelError(
        code.includes('/') ? (code as `${string}/${string}`) : 'relay/notice',
        words,
      )
    } else if (!challenged && frame.type === FRAME.challenge) {
      challenged = true
      socket.send(encodeFrame('admit', 0, admission.answer(frame.payload)))
    } else if (challenged && frame.type === FRAME.welcome) {
      const { welcome, bulkKey, relay: relayKey } = admission.finish(frame.payload)
      over = true
      late.cancel()
      const { certificate } = opened
      socket.handle(
        link.admitted({ socket, welcome: readWelcome(welcome), bulkKey, relayKey, certificate }),
      )
    } else {
      throw new TunnelError('link/order', `Cannot accept frame type ${frame.type} during admission`)
    }
  }
  socket.handle({
    message(message) {
      try {
        step(message)
      } catch (error) {
        end(4400, 'protocol', asTunnelError(error, 'link/protocol'))
      }
    },
    closed: (code, reason) => end(code, reason, notice),
  })
  socket.send(encodeFrame('hello', 0, admission.hello()))
  return socket
}

function admissionOf(
  ports: LinkPorts,
  link: { role: 'home' | 'visit'; target: Uint8Array; opened: OpenedSocket },
): AgentAdmission {
  return new AgentAdmission({
    crypto: ports.crypto,
    identity: ports.identity,
    target: link.target,
    role: link.role,
    dialledName: ports.relay.hostname.replace(/^\[|\]$/g, ''),
    certificate: link.opened.certificate,
    certificateTrusted: link.opened.trusted,
    pin: (relayPublic) => ports.pin(relayPublic),
    credential: ports.credential,
    group16: ports.group16,
    version: ports.version,
    labels: ports.labels,
  })
}

/** A relay is not believed to send the right types. Throws `link/welcome`. */
export function readWelcome(body: Record<string, unknown>): Welcome {
  const wrong = (field: string): TunnelError =>
    new TunnelError('link/welcome', `Cannot read the relay's welcome: found no good "${field}"`)
  const words = (field: string): string => {
    const value = body[field]
    if (typeof value !== 'string' || value.length > 255) throw wrong(field)
    return value
  }
  const count = (field: string, most: number): number => {
    const value = body[field]
    if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > most) {
      throw wrong(field)
    }
    return value
  }
  // Endpoints' host names are made of them, and of those the names of files.
  const domain = (field: string): string => {
    const value = words(field)
    if (!/^[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})*$/.test(value)) throw wrong(field)
    return value
  }
  const can = body['can']
  if (!Array.isArray(can) || can.length > 32 || can.some((one) => typeof one !== 'string')) {
    throw wrong('can')
  }
  const link = words('link')
  if (!/^[0-9a-f]{32}$/.test(link)) throw wrong('link')
  return {
    link,
    scope: words('scope'),
    secure: domain('secure'),
    apps: domain('apps'),
    port: count('port', 65_535),
    scheme: words('scheme'),
    window: count('window', 16_777_216),
    streams: count('streams', 65_536),
    bulk: count('bulk', 1024),
    can: can as string[],
    address: words('address'),
    version: words('version'),
  }
}
