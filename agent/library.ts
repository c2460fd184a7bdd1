/**
 * sotto for programs, on Bun and on Node 22 or later: messages and streams between agents, sealed
 * from end to end, by the identity and the pins of a profile.
 *
 *   import { connect } from 'sotto'
 *   const agent = await connect({ name: 'worker' })
 *   await agent.listen(async (message) => `got ${await message.text()}`)
 *   const reply = await agent.send('alice', 'hello')
 *
 * What goes wrong is a `TunnelError` with a stable `code`, such as `session/refused`, `trust/changed`,
 * `a2a/timeout`, and a `hint` where something can be done.
 */
import { concat, text, utf8 } from '../core/bytes.ts'
import { isTunnelError, TunnelError } from '../core/errors.ts'
import { fingerprint, formatKey } from '../core/key.ts'
import type { Labels } from '../core/labels.ts'
import type { Stream } from '../core/mux.ts'
import type { Session } from '../core/session.ts'
import type { Conn } from '../core/socket.ts'
import { MESSAGE_BYTES_MAX } from './a2a.ts'
import type { Incoming, MessageResult } from './a2a.ts'
import type { AccessRule, Service } from './access.ts'
import { readAccess } from './access.ts'
import { defaultAgentName } from './cli/plan.ts'
import { Courier } from './courier.ts'
import type { Parcel } from './courier.ts'
import { Directory } from './directory.ts'
import type { SeenAgent } from './directory.ts'
import { libraryWorld } from './host/library_world.ts'
import { Inbox, joinChunks } from './inbox.ts'
import type { Outcome } from './inbox.ts'
import { join } from './join.ts'
import type { Joining } from './join.ts'
import type { OpenedSession, Peer } from './peers.ts'
import { Presence } from './presence.ts'
import type { UplinkState } from './uplink.ts'
import type { World } from './world.ts'

export { isTunnelError, TunnelError }
export type { AccessRule, Conn, Labels, MessageResult, Peer, SeenAgent, Service }

const TIMEOUT_MS = 120_000
/** Timers of the world keep nothing alive; an agent that is connected does. */
const ALIVE_MS = 2_147_483_647

export interface ConnectOptions {
  /** The relay, such as `https://relay.example`; default `SOTTO_RELAY`, else the profile. */
  relay?: string
  /** SHA256:… of the relay's identity; default: as pinned, or pinned on first use. */
  relayFingerprint?: string
  /** API key or fleet token; default `SOTTO_API_KEY`, else the profile. */
  apiKey?: string
  /** Folder of the profile, absolute; default `SOTTO_HOME`, else the person's own. */
  profile?: string
  /** What others send to, one label; default `agent-` and the beginning of the key. False: none. */
  name?: string | false
  /** In place of the profile's access table: who may do what here. */
  access?: readonly AccessRule[]
  /** What this agent says of itself. */
  labels?: Labels
  /** First contacts, successors and lost links, in a sentence each; default: nobody hears them. */
  tell?(sentence: string): void
  /** Somebody was refused; `calledSelf` is their own word. */
  refused?(knock: { service: string; key: string; fingerprint: string; calledSelf: string[] }): void
}

/** What a message may be made of. A stream of chunks can be sent once alone. */
export type Body = string | Uint8Array | AsyncIterable<Uint8Array> | Iterable<Uint8Array>

export interface SendOptions {
  /** How long to wait for a peer that is away, ms; default 0. */
  waitMs?: number
  /** From the first try that reached the peer to the result, ms; default 120,000. */
  timeoutMs?: number
  /** Ask for a program to run there. */
  exec?: boolean
  /** Takes the reply as it comes; `Reply.bytes` is empty then. */
  output?(bytes: Uint8Array): void | Promise<void>
  /** Takes the standard error of a program there; else it is kept in `Reply.errors`. */
  errors?(bytes: Uint8Array): void | Promise<void>
  signal?: AbortSignal
}

export interface Reply extends MessageResult {
  /** Who answered, as the session proved it. */
  peer: OpenedSession['peer']
  id: string
  bytes: Uint8Array
  errors: Uint8Array
  /** `bytes` as text. Throws `bytes/text` when it is no UTF-8. */
  text(): string
}

/** A message that somebody sent. Read it once: as a whole, or as it comes. */
export interface Message extends AsyncIterable<Uint8Array> {
  readonly id: string
  readonly from: Peer
  /** Length, where the sender has said it. */
  readonly length: number | undefined
  /** Fires when the sender went away. */
  readonly gone: AbortSignal
  bytes(): Promise<Uint8Array>
  /** Throws when it is no UTF-8. */
  text(): Promise<string>
  /** A part of the reply, at once; what the handler returns comes after. */
  reply(part: string | Uint8Array): Promise<void>
}

/** What it returns is the reply. What it throws is told to the sender, as code and sentence. */
export type MessageHandler = (message: Message) => Promise<Body | void> | Body | void

/** A stream that a peer opened, or that was opened to one; `request` was its first word. */
export interface PeerStream {
  conn: Conn
  peer: Peer
  request: Uint8Array
}

/**
 * Joins a relay and resolves once it has let this agent in. Throws `relay/none`, `link/…`, `profile/…`,
 * `access/…`, and what the relay refuses with.
 */
export async function connect(options: ConnectOptions = {}): Promise<Agent> {
  const world = await libraryWorld({
    ...(options.profile === undefined ? {} : { SOTTO_HOME: options.profile }),
    ...(options.apiKey === undefined ? {} : { SOTTO_API_KEY: options.apiKey }),
  })
  const alive = setInterval(() => {}, ALIVE_MS)
  try {
    const access = options.access && readAccess([...options.access])
    const tell = (sentence: string): void => options.tell?.(sentence)
    const joining = await join(world, {
      relay: options.relay,
      fingerprint: options.relayFingerprint,
      labels: Object.entries(options.labels ?? {}).map(([name, value]) => `${name}=${value}`),
    }, tell)
    if (access) joining.profile.access = () => Promise.resolve(access)
    const presence = await Presence.open(world, {
      joining,
      tell,
      onState: (state) => told(state, tell),
      refused: ({ service, peer: { key, fingerprint }, calledSelf }) =>
        options.refused?.({ service, key, fingerprint, calledSelf: [...calledSelf] }),
    })
    try {
      await presence.ready()
      const name = options.name === false ? undefined : options.name ?? defaultAgentName(
        joining.identity,
      )
      if (name !== undefined) await presence.agent.announce(name)
      return new Agent({ world, joining, presence, name, ended: () => clearInterval(alive) })
    } catch (error) {
      presence.close()
      throw error
    }
  } catch (error) {
    clearInterval(alive)
    throw error
  }
}

function told(state: UplinkState, tell: (sentence: string) => void): void {
  if (state.kind === 'refused') tell(state.error.message)
  else if (state.kind === 'down') tell(`relay lost (${state.reason}), trying again`)
}

/** One process of an identity on one relay. */
export class Agent {
  /** KEY of this agent's identity. */
  readonly key: string
  readonly fingerprint: string
  /** What others send to. */
  readonly name: string | undefined
  readonly #world: World
  readonly #presence: Presence
  readonly #courier: Courier
  readonly #directory: Directory
  readonly #ended: () => void
  #inbox: Inbox | undefined

  /** Made by `connect`. */
  constructor(parts: {
    world: World
    joining: Joining
    presence: Presence
    name: string | undefined
    ended(): void
  }) {
    const { world, joining, presence, name, ended } = parts
    const { crypto, clock } = world
    this.#world = world
    this.#presence = presence
    this.#ended = ended
    this.name = name
    this.key = formatKey(joining.identity.public)
    this.fingerprint = fingerprint(crypto, joining.identity.public)
    const known = joining.profile.knownAgents()
    const { uplink } = presence.agent
    this.#directory = new Directory({ crypto, uplink, known, trust: presence.trust, own: this.key })
    this.#courier = new Courier({
      clock,
      crypto,
      peers: presence.peers,
      directory: this.#directory,
      known,
    })
  }

  /**
   * Sends one message, at most 16 MiB, and gives what became of it with the reply. `to` is a name,
   * `scope.name`, a name of `sotto peers`, a KEY, a fingerprint, or one of `agents()` that is pinned
   * or vouched for. Throws `trust/…`, `session/refused`, `a2a/timeout`, `a2a/away`, `a2a/broken`,
   * `a2a/size`; a result that is not `delivered` is no error.
   */
  async send(to: string | SeenAgent, message: Body, options: SendOptions = {}): Promise<Reply> {
    const { waitMs = 0, timeoutMs = TIMEOUT_MS, exec = false, signal } = options
    const out: Uint8Array[] = []
    const err: Uint8Array[] = []
    const sink = {
      output: options.output ?? keeper(out),
      errors: options.errors ?? keeper(err),
    }
    const parcel = { ...parcelOf(message), id: this.#courier.newId(), exec }
    const delivery = await this.#courier.send(to, parcel, { sink, waitMs, timeoutMs, signal })
    const bytes = joinChunks(out)
    return { ...delivery, id: parcel.id, bytes, errors: joinChunks(err), text: () => text(bytes) }
  }

  /** Takes messages of peers that may "a2a" here; once. Each is taken once, however often it is sent. */
  listen(handler: MessageHandler): void {
    if (this.#inbox) {
      throw new TunnelError('library/listening', 'Cannot listen: a handler listens already')
    }
    this.#inbox = new Inbox({
      clock: this.#world.clock,
      peers: this.#presence.peers,
      needs: 'a2a',
      take: (incoming, peer) => handle(handler, incoming, peer),
    })
  }

  /**
   * A stream of a session for `service` with a peer; `request`, at most 61,440 bytes, is its first
   * word. The session ends with the stream. Throws as `send` does.
   */
  async openStream(
    to: string,
    service: string,
    request: Uint8Array | string = '',
  ): Promise<PeerStream> {
    const { session, peer } = await this.#presence.peers.open(to, service)
    const first = asBytes(request)
    const conn = session.open(first)
    return { conn: whole(conn, session), peer, request: first }
  }

  /** Takes streams that peers open for `service`; `needs` is the right that they must have here. */
  onStream(service: string, needs: Service, handler: (stream: PeerStream) => void): void {
    this.#presence.peers.serve(service, {
      needs,
      session: (_, peer) => ({
        onOpen: (stream: Stream) => {
          stream.accept()
          handler({ conn: stream, peer, request: stream.visit.tail })
        },
        closed: () => {},
      }),
    })
  }

  /** The agents that this one sees; a selector such as `role=worker,env!=prod` chooses. */
  async agents(selector = ''): Promise<SeenAgent[]> {
    return (await this.#directory.list(selector))!.agents
  }

  /** Ends sessions in good order, then all the rest; takes 5 s at most. */
  async close(): Promise<void> {
    this.#inbox?.close()
    this.#courier.close()
    try {
      await this.#presence.end()
    } finally {
      this.#ended()
    }
  }
}

/** The session of one stream ends when the stream does. */
function whole(stream: Stream, session: Session): Conn {
  const { handle } = stream
  stream.handle = (handler) =>
    handle.call(stream, {
      ...bound(handler),
      closed: (error?: Error) => {
        handler.closed(error)
        session.close()
      },
    })
  return stream
}

function bound(handler: Parameters<Conn['handle']>[0]): Parameters<Conn['handle']>[0] {
  return {
    data: (bytes) => handler.data(bytes),
    drain: () => handler.drain?.(),
    end: () => handler.end(),
    closed: (error) => handler.closed(error),
  }
}

function asBytes(body: string | Uint8Array): Uint8Array {
  return typeof body === 'string' ? utf8(body) : body
}

function parcelOf(message: Body): Omit<Parcel, 'id'> {
  if (typeof message === 'string' || message instanceof Uint8Array) {
    const bytes = asBytes(message)
    if (bytes.length > MESSAGE_BYTES_MAX) {
      throw new TunnelError(
        'a2a/size',
        `Cannot send the message: found ${bytes.length} bytes, expected at most ${MESSAGE_BYTES_MAX}`,
      )
    }
    return { bytes: bytes.length, body: () => [bytes], repeatable: true }
  }
  return { body: () => message, repeatable: false }
}

/** Keeps a reply as a whole: at most as much as a message may be. */
function keeper(parts: Uint8Array[]): (bytes: Uint8Array) => void {
  let kept = 0
  return (bytes) => {
    kept += bytes.length
    if (kept > MESSAGE_BYTES_MAX) {
      throw new TunnelError('a2a/size', 'Cannot keep the reply: found more than 16 MiB', {
        hint: 'Take it as it comes, by "output".',
      })
    }
    parts.push(bytes.slice())
  }
}

/** A message that did not come whole, or was another than its sender committed to. */
const BROKEN = /^(a2a\/(gone|length|size|protocol|commitment)|transcript\/commitment)$/

async function handle(
  handler: MessageHandler,
  incoming: Incoming,
  peer: Peer,
): Promise<Outcome> {
  // Once the handler has seen a message it is not handled again.
  try {
    const reply = await handler(new Letter(incoming, peer))
    if (reply !== undefined) await answer(incoming, reply as Body)
    return { result: { status: 'delivered' }, taken: true }
  } catch (error) {
    const broke = isTunnelError(error) && BROKEN.test(error.code)
    const { code, message } = isTunnelError(error)
      ? error
      : { code: 'a2a/handler', message: 'the program there failed' }
    return { result: { status: 'failed', code, message }, taken: !broke }
  }
}

async function answer(incoming: Incoming, reply: Body): Promise<void> {
  if (typeof reply === 'string' || reply instanceof Uint8Array) {
    return await incoming.output(asBytes(reply))
  }
  for await (const part of reply) await incoming.output(part)
}

class Letter implements Message {
  readonly id: string
  readonly from: Peer
  readonly length: number | undefined
  readonly #incoming: Incoming

  constructor(incoming: Incoming, from: Peer) {
    this.#incoming = incoming
    this.id = incoming.request.id
    this.length = incoming.request.bytes
    this.from = from
  }

  get gone(): AbortSignal {
    return this.#incoming.gone
  }

  [Symbol.asyncIterator](): AsyncIterator<Uint8Array> {
    return this.#incoming.body()
  }

  async bytes(): Promise<Uint8Array> {
    const parts: Uint8Array[] = []
    for await (const part of this.#incoming.body()) parts.push(part)
    return concat(...parts)
  }

  async text(): Promise<string> {
    return text(await this.bytes())
  }

  reply(part: string | Uint8Array): Promise<void> {
    return this.#incoming.output(asBytes(part))
  }
}
