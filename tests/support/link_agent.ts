/**
 * An agent's link to a relay that is a real process: the agent's own WebSocket, admission and mux,
 * and nothing of the layers above.
 */
import { fromHex } from '../../core/bytes.ts'
import {
  decodeFrame,
  decodeJson,
  decodeNotice,
  encodeFrame,
  encodeJson,
  FRAME,
} from '../../core/frame.ts'
import type { Frame } from '../../core/frame.ts'
import { formatKey, generateIdentity, parseKey } from '../../core/key.ts'
import type { Identity } from '../../core/key.ts'
import { Mux } from '../../core/mux.ts'
import type { Stream } from '../../core/mux.ts'
import type { Socket } from '../../core/socket.ts'
import { openLink } from '../../agent/link.ts'
import type { LinkEnd, Welcome } from '../../agent/link.ts'
import { hostLink } from '../../agent/host/websocket.ts'
import { systemClock } from '../../relay/serve/host.ts'
import { fast } from './crypto.ts'

export interface LinkAgentOptions {
  url: string
  secret?: string
  identity?: Identity
  role?: 'home' | 'visit'
  /** KEY of the star; default: the agent's own. */
  target?: string
  group?: string
  labels?: Record<string, string>
}

export class LinkAgent {
  readonly identity: Identity
  readonly key: string
  socket!: Socket
  welcome!: Welcome
  mux!: Mux
  readonly notices: { code: string; message: string }[] = []
  readonly frames: Frame[] = []
  readonly closed: Promise<{ code: number; reason: string }>
  onOpen: (stream: Stream) => void = (stream) => stream.accept()
  #close!: (end: { code: number; reason: string }) => void
  readonly #replies = new Map<number, (reply: Record<string, unknown>) => void>()
  #next = 1

  private constructor(identity: Identity) {
    this.identity = identity
    this.key = formatKey(identity.public)
    this.closed = new Promise((resolve) => void (this.#close = resolve))
  }

  /** Rejects with how the link ended when it is not admitted. */
  static async open(options: LinkAgentOptions): Promise<LinkAgent> {
    const agent = new LinkAgent(options.identity ?? generateIdentity(fast))
    await new Promise<void>((resolve, reject) => {
      openLink({
        clock: systemClock,
        crypto: fast,
        identity: agent.identity,
        relay: new URL(options.url),
        credential: options.secret === undefined
          ? { kind: 'none' }
          : { kind: options.secret.startsWith('ft_') ? 'token' : 'key', secret: options.secret },
        group16: options.group === undefined ? fast.randomBytes(16) : fromHex(options.group),
        version: 'test',
        labels: options.labels,
        open: async (url) => ({ ...await hostLink.open(url, { trust: 'ca' }), trusted: true }),
        pin: () => true,
      }, {
        role: options.role ?? 'home',
        target: options.target === undefined ? agent.identity.public : parseKey(options.target),
        admitted: ({ socket, welcome }) => {
          agent.#up(socket, welcome)
          resolve()
          return {
            message: (message) => agent.#receive(decodeFrame(message)),
            drain: () => agent.mux.drain(),
            closed: (code, reason) => {
              agent.mux.close()
              agent.#close({ code, reason })
            },
          }
        },
        ended: (end) => reject(new LinkRefused(end)),
      }).catch(reject)
    })
    return agent
  }

  #up(socket: Socket, welcome: Welcome): void {
    this.socket = socket
    this.welcome = welcome
    this.mux = new Mux({
      side: 'agent',
      clock: systemClock,
      windowMaxBytes: welcome.window,
      send: (frame) => socket.send(frame),
      buffered: () => socket.buffered(),
      onOpen: (stream) => this.onOpen(stream),
      onProtocolError: (error) => socket.close(4400, error.code),
    })
  }

  #receive(frame: Frame): void {
    if (frame.type === FRAME.reply) this.#replies.get(frame.id)?.(decodeJson(frame.payload))
    else if (frame.type === FRAME.notice) this.notices.push(decodeNotice(frame.payload))
    else if (frame.type >= FRAME.open && frame.type <= FRAME.packet) this.mux.receive(frame)
    else this.frames.push(frame)
  }

  request(body: object): Promise<Record<string, unknown>> {
    const id = this.#next++
    return new Promise((resolve) => {
      this.#replies.set(id, resolve)
      this.socket.send(encodeFrame('request', id, encodeJson(body)))
    })
  }

  claim(name: string, more: object = {}): Promise<Record<string, unknown>> {
    return this.request({ do: 'claim', name, kind: 'http', mode: 'inspectable', ...more })
  }

  /** A stream of a visit link. */
  connect(endpoint: string): Stream {
    return this.mux.open({
      kind: 'connect',
      port: 0,
      address: '',
      endpoint,
      tail: new Uint8Array(0),
    })
  }

  close(): Promise<unknown> {
    this.socket.close(1000, 'done')
    return this.closed
  }
}

export class LinkRefused extends Error {
  readonly code: number
  readonly error: LinkEnd['error']

  constructor({ code, reason, error }: LinkEnd) {
    super(`closed with ${code} ${reason}: ${error?.message ?? 'without a word'}`)
    this.code = code
    this.error = error
  }
}
