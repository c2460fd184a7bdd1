/**
 * A whole relay in memory, with agents that talk to it over in-memory sockets by the real protocol:
 * admission, frames, streams. Only the sockets are not real.
 */
import { AgentAdmission } from '../../core/admit.ts'
import type { Credential } from '../../core/admit.ts'
import {
  decodeFrame,
  decodeJson,
  decodeNotice,
  encodeFrame,
  encodeJson,
  FRAME,
} from '../../core/frame.ts'
import type { Frame } from '../../core/frame.ts'
import { formatKey, generateIdentity } from '../../core/key.ts'
import type { Identity } from '../../core/key.ts'
import { Mux } from '../../core/mux.ts'
import type { Stream } from '../../core/mux.ts'
import { memoryConns, memorySockets } from '../../core/socket.ts'
import type { Conn, Socket } from '../../core/socket.ts'
import { encodeTicket } from '../../core/ticket.ts'
import { certificateVerifier } from '../../relay/client_ca.ts'
import { Credentials } from '../../relay/credentials.ts'
import { silentLog } from '../../relay/log.ts'
import { Metrics } from '../../relay/metrics.ts'
import { Quota } from '../../relay/quota.ts'
import { Registry } from '../../relay/registry.ts'
import { Relay } from '../../relay/relay.ts'
import { RevokedCertificates } from '../../relay/revoked_certificates.ts'
import { systemClock } from '../../relay/serve/host.ts'
import { readSettings } from '../../relay/settings.ts'
import { memoryStore } from '../../relay/store/memory.ts'
import { fast } from './crypto.ts'

export interface Star {
  relay: Relay
  credentials: Credentials
  registry: Registry
  metrics: Metrics
  quota: Quota
  revoked: RevokedCertificates
  /** Connections that the ingress handed to the relay's own HTTPS. */
  handedOff: { conn: Conn; first: Uint8Array }[]
  agent(options?: AgentOptions): Promise<TestAgent>
  /** A visitor's connection on the public port; the near end. */
  visitor(): Conn
  close(): Promise<void>
}

export interface AgentOptions {
  identity?: Identity
  role?: 'home' | 'visit'
  target?: Uint8Array
  credential?: Credential
  labels?: Record<string, string>
  group?: Uint8Array
  scope?: string
}

export async function makeStar(
  flags: Record<string, string> = {},
  limits: Record<string, number> = {},
  clientCa?: string,
): Promise<Star> {
  const store = memoryStore()
  const clock = systemClock
  const settings = readSettings({ flags: { domain: 'relay.test', ...flags } })
  const credentials = new Credentials({ store, crypto: fast, clock })
  const registry = await Registry.open({ store, crypto: fast, clock })
  const metrics = new Metrics({ clock, version: 'test', runtime: 'test' })
  const quota = new Quota(clock, { limits })
  const identity = generateIdentity(fast)
  const revoked = await RevokedCertificates.open(store, clock)
  const handedOff: Star['handedOff'] = []
  const agents: TestAgent[] = []
  const relay = new Relay({
    clock,
    crypto: fast,
    identity: { ...identity, names: settings.names, certificates: [] },
    credentials,
    registry,
    quota,
    metrics,
    log: silentLog,
    settings,
    version: 'test',
    net: {
      listen: () => Promise.reject(new Error('no ports in memory')),
      later: setImmediate,
      udp: () => Promise.reject(new Error('no ports in memory')),
    },
    app: (conn, first) => void handedOff.push({ conn, first }),
    publicPort: () => 8443,
    revoked,
    ...(clientCa ? { verifyCertificate: certificateVerifier(clientCa, clock) } : {}),
  })
  const secrets = new Map<string, string>()
  async function secretOf(scope: string): Promise<string> {
    let secret = secrets.get(scope)
    if (!secret) {
      secrets.set(scope, secret = (await credentials.create({ kind: 'key', scope })).secret)
    }
    return secret
  }
  return {
    relay,
    credentials,
    registry,
    metrics,
    quota,
    revoked,
    handedOff,
    async agent(options = {}) {
      const credential = options.credential ??
        { kind: 'key', secret: await secretOf(options.scope ?? 'alice') }
      const agent = new TestAgent(relay, { ...options, credential })
      agents.push(agent)
      await agent.ready
      return agent
    },
    visitor() {
      const [near, far] = memoryConns()
      relay.ingress.accept(far)
      return near
    },
    async close() {
      for (const agent of agents) agent.socket.terminate()
      await relay.close()
      await store.close()
    },
  }
}

/** An agent by the book, with hooks for the books' enemies. */
export class TestAgent {
  readonly identity: Identity
  readonly key: string
  readonly socket: Socket
  readonly ready: Promise<void>
  mux!: Mux
  welcome: Record<string, unknown> = {}
  bulkKey!: Uint8Array
  closed: Promise<{ code: number; reason: string }>
  notices: { code: string; message: string }[] = []
  /** Frames that are not the mux's own. */
  frames: Frame[] = []
  opened: Stream[] = []
  onOpen: (stream: Stream) => void = (stream) => stream.accept()
  #replies = new Map<number, (reply: Record<string, unknown>) => void>()
  #next = 1
  #tickets = 0

  constructor(relay: Relay, options: AgentOptions & { credential: Credential }) {
    this.identity = options.identity ?? generateIdentity(fast)
    this.key = formatKey(this.identity.public)
    const target = options.target ?? this.identity.public
    const [near, far] = memorySockets(1_048_576)
    this.socket = near
    const admission = new AgentAdmission({
      crypto: fast,
      identity: this.identity,
      target,
      role: options.role ?? 'home',
      dialledName: 'relay.test',
      certificateTrusted: true,
      pin: () => true,
      credential: options.credential,
      group16: options.group ?? fast.randomBytes(16),
      version: 'test',
      labels: options.labels,
    })
    let close!: (end: { code: number; reason: string }) => void
    this.closed = new Promise((resolve) => void (close = resolve))
    this.ready = new Promise((resolve, reject) => {
      near.handle({
        message: (message) => {
          const frame = decodeFrame(message)
          if (frame.type === FRAME.challenge) {
            near.send(encodeFrame('admit', 0, admission.answer(frame.payload)))
          } else if (frame.type === FRAME.welcome) {
            const finished = admission.finish(frame.payload)
            this.welcome = finished.welcome
            this.bulkKey = finished.bulkKey
            this.#up()
            resolve()
          } else this.#receive(frame)
        },
        drain: () => this.mux?.drain(),
        closed: (code, reason) => {
          this.mux?.close()
          close({ code, reason })
          reject(new Error(`closed ${code} ${reason}`))
        },
      })
    })
    this.ready.catch(() => {})
    relay.attach(far, { key: formatKey(target), address: '192.0.2.9' })
    near.send(encodeFrame('hello', 0, admission.hello()))
  }

  #up(): void {
    this.mux = new Mux({
      side: 'agent',
      clock: systemClock,
      send: (frame) => this.socket.send(frame),
      buffered: () => this.socket.buffered(),
      onOpen: (stream) => {
        this.opened.push(stream)
        this.onOpen(stream)
      },
      onProtocolError: (error) => this.socket.close(4400, error.code),
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
    return this.request({ do: 'claim', name, kind: 'http', mode: 'verified', ...more })
  }

  /** A bulk link of the next ticket; the agent's end. */
  bulk(star: Star, counter = ++this.#tickets): Conn {
    const conn = star.visitor()
    const linkId = Uint8Array.from(
      (this.welcome['link'] as string).match(/../g)!,
      (pair) => parseInt(pair, 16),
    )
    conn.write(encodeTicket(fast, { linkId, counter, class: 'verified' }, this.bulkKey))
    return conn
  }
}

/** Collects what a connection brings until `count` bytes, its end, or its close. */
export function collect(
  conn: Conn,
  count = Infinity,
): Promise<{ bytes: Uint8Array; end: 'count' | 'end' | 'closed' }> {
  const parts: Uint8Array[] = []
  let length = 0
  return new Promise((resolve) => {
    const done = (end: 'count' | 'end' | 'closed'): void =>
      resolve({ bytes: Buffer.concat(parts), end })
    conn.handle({
      data(bytes) {
        parts.push(bytes)
        length += bytes.length
        if (length >= count) done('count')
      },
      end: () => done('end'),
      closed: () => done('closed'),
    })
  })
}
