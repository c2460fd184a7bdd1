/**
 * A relay that lies. It is a real one, with real WebSockets in front of it, and everything that passes
 * on them goes through hooks that may change, hold, drop, double and invent. It keeps every byte that
 * crossed it, counts its own interventions, and has agents of its own that may do what strangers may.
 */
import { concat, EMPTY } from '../../core/bytes.ts'
import {
  decodeFrame,
  decodeJson,
  decodeVisit,
  encodeFrame,
  encodeJson,
  FRAME,
} from '../../core/frame.ts'
import type { Frame, FrameName } from '../../core/frame.ts'
import { formatKey } from '../../core/key.ts'
import type { Socket } from '../../core/socket.ts'
import { linkHandlers } from '../../relay/serve/bun_socket.ts'
import type { LinkData } from '../../relay/serve/bun_socket.ts'
import { makeStar } from '../support/star.ts'
import type { AgentOptions, Star, TestAgent } from '../support/star.ts'

const ENVELOPE_HEADER_BYTES = 4

/** One WebSocket that an agent opened. */
export interface HostileLink {
  /** KEY of the agent, from its hello. */
  agent: string
  role: 'home' | 'visit'
  /** Sends this message to the agent as if the relay had. */
  inject(message: Uint8Array): void
}

/** `up`: from the agent to the relay. */
export type LinkWay = 'up' | 'down'
/** `forth`: from who opened the carrier. */
export type CarrierWay = 'forth' | 'back'

/** One envelope on its last leg, of a stream of kind session or pair. */
export interface CarrierEnvelope {
  way: CarrierWay
  /** From 0, in the order in which carriers of that way were opened. */
  carrier: number
  kind: 'session' | 'pair'
  type: number
  /** Header and body. */
  bytes: Uint8Array
  /** Where it goes. */
  leg: Leg
}

/** The last leg of one way of a carrier: the stream on the link to whoever receives. */
export interface Leg {
  way: CarrierWay
  link: HostileLink
  id: number
  /** Sends these bytes to the receiver. */
  inject(bytes: Uint8Array): void
  /** Says to the receiver that the other end took the carrier. */
  accept(): void
  /** Somebody has reset it. */
  isCut: boolean
  /** Tells the receiver that the sender has finished, or that it was reset. */
  end(): void
  reset(code: number): void
}

type Json = Record<string, unknown>

/** What the relay does to what passes; what a hook gives goes on in place of what came. */
export interface Hooks {
  /** Undefined: as it is. */
  frame?(frame: Frame, of: { way: LinkWay; link: HostileLink }): Uint8Array[] | undefined
  envelope?(envelope: CarrierEnvelope): Uint8Array[] | undefined
  reply?(reply: Json, of: { request: Json; link: HostileLink }): Json | undefined
  /** Another relay that this link leads to. */
  star?(of: { target: string }): Star | undefined
}

interface LegState extends Leg {
  carrier: number
  kind: 'session' | 'pair'
  held: Uint8Array
}

export class HostileRelay {
  readonly star: Star
  readonly url: string
  hooks: Hooks = {}
  interventions = 0
  /** Closes of links by agents. */
  onClosed: (link: HostileLink, code: number, reason: string) => void = () => {}
  /** Everything that crossed, by link and direction, in the pieces in which it came. */
  readonly transcript: Uint8Array[][] = []
  readonly legs: LegState[] = []
  readonly links: HostileLink[] = []
  readonly #server: Bun.Server<LinkData>

  static async open(): Promise<HostileRelay> {
    return new HostileRelay(await makeStar({ domain: 'relay.test', names: 'localhost' }))
  }

  private constructor(star: Star) {
    this.star = star
    this.#server = Bun.serve<LinkData>({
      hostname: '127.0.0.1',
      port: 0,
      websocket: linkHandlers((socket, { key, address }) => {
        const to = this.hooks.star?.({ target: key }) ?? star
        to.relay.attach(this.#between(socket), { key, address })
      }),
      fetch(request, server) {
        const key = /^\/v1\/link\/([a-z2-7]{52})$/.exec(new URL(request.url).pathname)?.[1]
        const data = { key: key ?? '', address: '192.0.2.1', link: undefined }
        const headers = { 'sec-websocket-protocol': 'sotto.v1' }
        return key !== undefined && server.upgrade(request, { data, headers })
          ? undefined
          : new Response(null, { status: 404 })
      },
    })
    this.url = `http://localhost:${this.#server.port}`
  }

  /** Counts one lie. */
  lied<T>(answer: T): T {
    this.interventions++
    return answer
  }

  /** An agent of the relay's own, admitted like any other. */
  stranger(options: AgentOptions): Promise<TestAgent> {
    return this.star.agent(options)
  }

  /** True when these bytes crossed the relay, whole links and single streams looked through. */
  saw(plaintext: Uint8Array): boolean {
    const wanted = Buffer.from(plaintext)
    return this.transcript.some((pieces) => Buffer.concat(pieces).includes(wanted))
  }

  get crossedBytes(): number {
    return this.transcript.flat().reduce((sum, { length }) => sum + length, 0)
  }

  async close(): Promise<void> {
    this.hooks = {}
    await this.star.close()
    await this.#server.stop(true)
  }

  /** The socket that the true relay gets. */
  #between(socket: Socket): Socket {
    const link: HostileLink = {
      agent: '',
      role: 'home',
      inject: (message) => {
        down.push(message)
        socket.send(message)
      },
    }
    this.links.push(link)
    const [up, down]: [Uint8Array[], Uint8Array[]] = [[], []]
    const streams = { up: new Map<number, Uint8Array[]>(), down: new Map<number, Uint8Array[]>() }
    this.transcript.push(up, down)
    const keep = (way: LinkWay, message: Uint8Array): void => {
      ;(way === 'up' ? up : down).push(message.slice())
      if (message[0] !== FRAME.data) return
      // A word may be cut by a frame's header.
      const { id, payload } = decodeFrame(message)
      let pieces = streams[way].get(id)
      if (!pieces) this.transcript.push(pieces = [])
      streams[way].set(id, pieces)
      pieces.push(payload.slice())
    }
    const requests = new Map<number, Json>()
    return {
      send: (message) => {
        keep('down', message)
        const out = this.#down(decodeFrame(message), { link, requests, message })
        let sent: ReturnType<Socket['send']> = 'ok'
        for (const one of out) sent = socket.send(one)
        return sent
      },
      buffered: () => socket.buffered(),
      handle: (handler) =>
        socket.handle({
          ...handler,
          drain: () => handler.drain?.(),
          alive: () => handler.alive?.(),
          closed: (code, reason) => {
            this.onClosed(link, code, reason)
            handler.closed(code, reason)
          },
          message: (message) => {
            keep('up', message)
            for (const one of this.#up(message, { link, requests })) handler.message(one)
          },
        }),
      close: (code, reason) => socket.close(code, reason),
      terminate: () => socket.terminate(),
    }
  }

  #up(
    message: Uint8Array,
    { link, requests }: { link: HostileLink; requests: Map<number, Json> },
  ): Uint8Array[] {
    const frame = decodeFrame(message)
    const { type, id, payload } = frame
    if (type === FRAME.hello) {
      link.role = payload[2] === 1 ? 'home' : 'visit'
      link.agent = formatKey(payload.slice(3, 35))
    } else if (type === FRAME.request) requests.set(id, decodeJson(payload))
    else if (type === FRAME.open) this.#legOf('back', { link, id, payload })
    return this.hooks.frame?.(frame, { way: 'up', link }) ?? [message]
  }

  #down(
    frame: Frame,
    { link, requests, message }: {
      link: HostileLink
      requests: Map<number, Json>
      message: Uint8Array
    },
  ): Uint8Array[] {
    const { type, id, payload } = frame
    const changed = this.hooks.frame?.(frame, { way: 'down', link })
    if (changed) return changed
    if (type === FRAME.open) this.#legOf('forth', { link, id, payload })
    if (type === FRAME.reply && this.hooks.reply) {
      const request = requests.get(id) ?? {}
      const reply = this.hooks.reply(decodeJson(payload), { request, link })
      return reply ? [encodeFrame('reply', id, encodeJson(reply))] : [message]
    }
    const leg = this.legs.find((one) => one.link === link && one.id === id)
    if (leg && type === FRAME.data) return this.#envelopes(leg, payload)
    return [message]
  }

  #legOf(
    way: CarrierWay,
    { link, id, payload }: { link: HostileLink; id: number; payload: Uint8Array },
  ): void {
    const { kind } = decodeVisit(payload)
    if (kind !== 'session' && kind !== 'pair') return
    const carrier = this.legs.filter((leg) => leg.way === way).length
    const frame = (name: FrameName, body: Uint8Array = EMPTY): void =>
      link.inject(encodeFrame(name, id, body))
    this.legs.push({
      way,
      carrier,
      kind,
      link,
      id,
      held: EMPTY,
      isCut: false,
      inject: (bytes) => {
        for (let at = 0; at < bytes.length; at += 65_536) {
          frame('data', bytes.subarray(at, at + 65_536))
        }
      },
      accept: () => frame('credit', new Uint8Array(4)),
      end: () => frame('fin'),
      reset: (code) => frame('reset', Uint8Array.of(0, code)),
    })
  }

  /** Whole envelopes, one frame each; what is not whole yet waits. */
  #envelopes(leg: LegState, payload: Uint8Array): Uint8Array[] {
    leg.held = concat(leg.held, payload)
    const out: Uint8Array[] = []
    while (leg.held.length >= ENVELOPE_HEADER_BYTES) {
      const { held } = leg
      const length = ENVELOPE_HEADER_BYTES + (held[1]! << 16 | held[2]! << 8 | held[3]!)
      if (held.length < length) break
      const bytes = held.slice(0, length)
      leg.held = held.subarray(length)
      const { way, carrier, kind } = leg
      const envelope = { way, carrier, kind, type: bytes[0]!, bytes, leg }
      out.push(...this.hooks.envelope?.(envelope) ?? [bytes])
    }
    return out.filter(({ length }) => length > 0).map((one) => encodeFrame('data', leg.id, one))
  }
}

/** A copy with these bits of one byte turned; counted from the end where `at` is below 0. */
export function flipped(bytes: Uint8Array, at: number, bits = 0x40): Uint8Array {
  const copy = bytes.slice()
  const place = at < 0 ? copy.length + at : at
  copy[place] = copy[place]! ^ bits
  return copy
}
