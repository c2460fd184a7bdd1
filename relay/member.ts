/**
 * A member: one agent's link as the relay sees it, from the first message on. Admission first
 * (core/admit.ts), then frames: streams that the relay itself opened go to its mux, streams that
 * belong to another link are forwarded by the hub, requests are answered. One message at a time, no
 * awaiting loop; what must outlive a sleep fits `snapshot()`.
 */
import { RelayAdmission } from '../core/admit.ts'
import type { Admitted, RelayIdentity } from '../core/admit.ts'
import { hex } from '../core/bytes.ts'
import type { Clock, Timer } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { asTunnelError, isTunnelError, TunnelError } from '../core/errors.ts'
import {
  decodeFrame,
  decodeJson,
  encodeFrame,
  encodeJson,
  encodeNotice,
  encodeRestarting,
  FRAME,
  FRAME_BYTES_MAX,
} from '../core/frame.ts'
import type { Frame, FrameName, VisitName } from '../core/frame.ts'
import { formatKey, parseKey } from '../core/key.ts'
import type { Labels } from '../core/labels.ts'
import { Mux } from '../core/mux.ts'
import type { MuxIds } from '../core/mux.ts'
import type { Socket, SocketHandler } from '../core/socket.ts'
import { TicketWindow } from '../core/ticket.ts'

/** From the upgrade to a good `admit`. */
const ADMIT_MS_MAX = 5000
/** Nothing heard for so long (agents ping every 2 s): the link is dead. */
export const SILENCE_MS_MAX = 15_000
/** Requests of one link that may wait for their answer. */
const REQUESTS_MAX = 64

export const CLOSE = Object.freeze({
  done: 1000,
  restarting: 1001,
  protocol: 4400,
  notAdmitted: 4401,
  revoked: 4403,
  late: 4408,
  replaced: 4409,
  tooMany: 4429,
  fault: 4500,
})

const NO_LABELS: Labels = Object.freeze({})

/** What an admission led to; who decides is the hub's owner. */
export interface Authorised {
  scope: string
  /** Which credential let it in, for revocation. */
  grant: string
  /** Milliseconds since 1970: the link ends with the credential. */
  expiresAt?: number | undefined
  /** Serial numbers of the certificates that let it in. */
  serials?: readonly string[] | undefined
  /** Whether that credential may claim the name. */
  allows(name: string): boolean
  /** It is for some names of its scope alone. */
  isRestricted?: boolean
}

/** What the owner of a member does for it. */
export interface MemberOwner {
  readonly crypto: Crypto
  readonly clock: Clock
  readonly identity: RelayIdentity
  /** Whether client certificates are looked at at all. */
  readonly takesCertificates: boolean
  readonly windowBytesMax: number
  /** Whether it calls `look`. False where a timer would keep the host awake, or pings are hidden. */
  readonly watchesSilence: boolean
  authorise(admitted: Admitted, member: Member): Promise<Authorised>
  /** Admitted: joins the star. Returns the welcome's JSON. Throws to refuse. */
  joined(member: Member): object
  /** A frame on a stream that is not the mux's own; false when the id means nothing here. */
  forward(member: Member, frame: Frame, message: Uint8Array): boolean
  request(member: Member, body: Record<string, unknown>): Promise<object>
  /** The socket can take more. */
  drained(member: Member): void
  left(member: Member, reason: string): void
  log(level: 'info' | 'warn', event: string, fields: Record<string, unknown>): void
  /** The last own stream closed, or claims changed: what `snapshot` says is new. */
  changed?(member: Member): void
}

/** What a hibernating runtime keeps beside the socket. */
export interface MemberSnapshot {
  link: string
  agent: string
  role: 'home' | 'visit'
  group: string
  labels: Labels
  scope: string
  grant: string
  names?: string[]
  address: string
  ids: MuxIds
}

export class Member implements SocketHandler {
  readonly socket: Socket
  readonly address: string
  /** KEY of the agent that this link leads to: which hub it belongs to. */
  readonly target: string
  link = ''
  agent = ''
  role: 'home' | 'visit' = 'home'
  group = ''
  version = ''
  /** What the agent says of itself. */
  labels: Labels = NO_LABELS
  authorised: Authorised | undefined
  /** The scope against whose links it counts. */
  countedIn: string | undefined
  bulkKey: Uint8Array | undefined
  readonly tickets = new TicketWindow()
  readonly since: number
  #mux: Mux | undefined
  #ids: MuxIds | undefined
  /** Streams joined to one of another link, by the id they have here; kept by the hub. */
  readonly forwards = new Map<number, { readonly kind: VisitName }>()
  bytesIn = 0
  #owner: MemberOwner
  #admission: RelayAdmission | undefined
  #state: 'hello' | 'admit' | 'deciding' | 'up' | 'closed' = 'hello'
  #deadline: Timer | undefined
  #heardMs: number
  #requests = 0

  constructor(socket: Socket, link: { owner: MemberOwner; target: string; address: string }) {
    this.socket = socket
    this.target = link.target
    this.address = link.address
    this.#owner = link.owner
    this.since = link.owner.clock.now()
    this.#heardMs = link.owner.clock.monotonic()
  }

  /** How long nothing was heard; 0 where pings are hidden, since silence then means nothing. */
  get quietMs(): number {
    const { clock, watchesSilence } = this.#owner
    return watchesSilence ? clock.monotonic() - this.#heardMs : 0
  }

  get up(): boolean {
    return this.#state === 'up'
  }

  /** Made when the first stream needs it: most links of a relay carry none at any moment. */
  get mux(): Mux {
    return this.#mux ??= this.#openMux()
  }

  /** Own streams of one kind. */
  count(kind: VisitName): number {
    return this.#mux?.count(kind) ?? 0
  }

  /** Streams on this link, own and forwarded. */
  get streams(): number {
    return (this.#mux?.size ?? 0) + this.forwards.size
  }

  /** Starts admission. */
  start(): void {
    const owner = this.#owner
    this.#admission = new RelayAdmission({
      crypto: owner.crypto,
      identity: owner.identity,
      target: parseKey(this.target),
      takesCertificates: owner.takesCertificates,
    })
    this.#deadline = owner.clock.after(ADMIT_MS_MAX, () => {
      this.close(CLOSE.late, 'not admitted in time')
    })
    this.socket.handle(this)
  }

  /** Wakes with what `snapshot` kept: the link was up, and carried no stream. */
  restore(kept: MemberSnapshot, allows: (name: string) => boolean): void {
    this.link = kept.link
    this.agent = kept.agent
    this.role = kept.role
    this.group = kept.group
    this.labels = kept.labels
    this.authorised = { scope: kept.scope, grant: kept.grant, allows }
    this.#state = 'up'
    this.#ids = kept.ids
    this.socket.handle(this)
  }

  snapshot(): MemberSnapshot {
    return {
      link: this.link,
      agent: this.agent,
      role: this.role,
      group: this.group,
      labels: this.labels,
      scope: this.authorised?.scope ?? '',
      grant: this.authorised?.grant ?? '',
      address: this.address,
      ids: this.mux.ids,
    }
  }

  #openMux(): Mux {
    const owner = this.#owner
    return new Mux({
      side: 'relay',
      clock: owner.clock,
      windowMaxBytes: owner.windowBytesMax,
      send: (frame) => this.socket.send(frame),
      buffered: () => this.socket.buffered(),
      // An agent opens streams on visit links alone, and those are forwarded, never ours.
      onOpen: (stream) => stream.reset(1),
      onProtocolError: (error) => this.#protocol(error),
      onEmpty: () => owner.changed?.(this),
      ...(this.#ids ? { ids: this.#ids } : {}),
    })
  }

  // The socket's events; a member is its own handler, which costs an idle link nothing.

  drain(): void {
    this.#mux?.drain()
    this.#owner.drained(this)
  }

  alive(): void {
    this.#heardMs = this.#owner.clock.monotonic()
  }

  closed(code: number, reason: string): void {
    this.#end(reason || `closed with ${code}`)
  }

  /** One message from the agent. */
  message(message: Uint8Array): void {
    if (this.#state === 'closed') return
    this.#heardMs = this.#owner.clock.monotonic()
    this.bytesIn += message.length
    try {
      if (message.length > FRAME_BYTES_MAX) {
        throw new TunnelError('frame/size', `Cannot accept frame: found ${message.length} bytes`)
      }
      const frame = decodeFrame(message)
      if (this.#state === 'up') this.#dispatch(frame, message)
      else this.#admit(frame)
    } catch (error) {
      this.#protocol(asTunnelError(error, 'relay/fault'))
    }
  }

  #admit(frame: Frame): void {
    const admission = this.#admission!
    if (this.#state === 'hello' && frame.type === FRAME.hello) {
      this.#state = 'admit'
      this.send('challenge', 0, admission.challenge(frame.payload))
      return
    }
    if (this.#state === 'admit' && frame.type === FRAME.admit) {
      this.#state = 'deciding'
      const admitted = admission.open(frame.payload)
      this.role = admitted.role
      // A home link's target is its own agent, and one string does for both.
      this.agent = admitted.role === 'home' ? this.target : formatKey(admitted.agent)
      this.group = admitted.group
      this.version = admitted.version
      this.labels = admitted.labels
      this.#owner.authorise(admitted, this).then(
        (authorised) => this.#welcome(authorised),
        (error) => this.refuse(asTunnelError(error, 'relay/fault')),
      )
      return
    }
    throw new TunnelError('relay/order', `Cannot accept frame type ${frame.type} before admission`)
  }

  #welcome(authorised: Authorised): void {
    if (this.#state !== 'deciding') return
    const { crypto } = this.#owner
    this.#deadline?.cancel()
    this.#deadline = undefined
    this.authorised = authorised
    this.link = hex(crypto.randomBytes(16))
    this.bulkKey = this.#admission!.bulkKey
    this.#state = 'up'
    try {
      const body = this.#owner.joined(this)
      this.send('welcome', 0, this.#admission!.welcome({ ...body, link: this.link }))
    } catch (error) {
      this.refuse(asTunnelError(error, 'relay/fault'))
      return
    }
    this.#admission = undefined
    this.#owner.changed?.(this)
  }

  /** Ends the link when it is silent, or its credential over; for an owner that watches. */
  look(): void {
    if (!this.up) return
    if (this.quietMs >= SILENCE_MS_MAX) this.terminate('silent')
    else if (this.#owner.clock.now() > (this.authorised?.expiresAt ?? Infinity)) {
      this.notice('credentials/expired', 'The credential of this link has expired')
      this.close(CLOSE.revoked, 'the credential has expired')
    }
  }

  /** Not admitted: the agent is told the code and the reason, and the link is closed. */
  refuse(error: TunnelError): void {
    if (this.#state === 'closed') return
    this.#owner.log('warn', 'link refused', { code: error.code, address: this.address })
    this.notice(error.code, error.hint ? `${error.message}. ${error.hint}` : error.message)
    const code = error.code.startsWith('quota/')
      ? CLOSE.tooMany
      : error.code === 'relay/blocked' || error.code === 'admit/revoked'
      ? CLOSE.revoked
      : error.code.startsWith('relay/')
      ? CLOSE.fault
      : CLOSE.notAdmitted
    this.close(code, error.code)
  }

  #dispatch(frame: Frame, message: Uint8Array): void {
    switch (frame.type) {
      case FRAME.open:
      case FRAME.data:
      case FRAME.credit:
      case FRAME.fin:
      case FRAME.reset:
      case FRAME.packet:
        if (this.forwards.size > 0 || this.role === 'visit') {
          if (this.#owner.forward(this, frame, message)) return
        }
        this.mux.receive(frame)
        return
      case FRAME.ping:
        this.send('pong', 0, frame.payload)
        return
      case FRAME.pong:
        return
      case FRAME.request:
        this.#request(frame)
        return
      default:
        throw new TunnelError('relay/order', `Cannot accept frame type ${frame.type} here`)
    }
  }

  #request(frame: Frame): void {
    if (this.role !== 'home') {
      throw new TunnelError('relay/order', 'Cannot accept a request on a visit link')
    }
    if (this.#requests >= REQUESTS_MAX) {
      throw new TunnelError(
        'relay/order',
        `Cannot accept more than ${REQUESTS_MAX} requests at once`,
      )
    }
    const body = decodeJson(frame.payload)
    this.#requests++
    this.#owner.request(this, body).then(
      (reply) => ({ ok: true, ...reply }),
      (error) => {
        if (!isTunnelError(error)) {
          this.#owner.log('warn', 'request failed', { error: String(error) })
        }
        return { ok: false, error: asTunnelError(error, 'relay/fault').toJSON() }
      },
    ).then((reply) => {
      this.#requests--
      if (this.#state === 'up') this.send('reply', frame.id, encodeJson(reply))
    })
  }

  send(name: FrameName, id: number, payload?: Uint8Array): void {
    if (this.#state === 'closed') return
    if (this.socket.send(encodeFrame(name, id, payload)) === 'lost') this.terminate('lost')
  }

  notice(code: string, message: string): void {
    this.send('notice', 0, encodeNotice(code, message))
  }

  restarting(reconnectInMs: number, tryForMs: number): void {
    this.send('restarting', 0, encodeRestarting(reconnectInMs, tryForMs))
  }

  #protocol(error: TunnelError): void {
    this.#owner.log('warn', 'link ended', {
      code: error.code,
      reason: error.message,
      address: this.address,
      agent: this.agent,
    })
    this.close(error.code.startsWith('relay/fault') ? CLOSE.fault : CLOSE.protocol, error.code)
  }

  /** Ends the link with a close handshake. */
  close(code: number, reason: string): void {
    if (this.#state === 'closed') return
    this.socket.close(code, reason.slice(0, 120))
    this.#end(reason)
  }

  terminate(reason: string): void {
    if (this.#state === 'closed') return
    // In this order: some runtimes tell of the close, without the reason, within the call.
    this.#end(reason)
    this.socket.terminate()
  }

  #end(reason: string): void {
    if (this.#state === 'closed') return
    const wasUp = this.#state === 'up'
    this.#state = 'closed'
    this.#deadline?.cancel()
    this.#mux?.close()
    if (wasUp || this.role) this.#owner.left(this, reason)
  }
}
