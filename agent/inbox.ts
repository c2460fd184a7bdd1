/**
 * Messages as they come in: whoever sends one is asked for again, each is taken once however often
 * it is sent, and what becomes of it is told to the sender. What is done with a message is the
 * owner's business. docs/protocol.md §16.
 */
import { failure, Incoming, Taken } from './a2a.ts'
import type { MessageResult } from './a2a.ts'
import type { PeerView, Service } from './access.ts'
import type { Peer, Peers } from './peers.ts'
import type { Clock } from '../core/clock.ts'
import { concat } from '../core/bytes.ts'
import { isTunnelError } from '../core/errors.ts'
import { RESET } from '../core/frame.ts'
import type { Stream } from '../core/mux.ts'
import type { Session } from '../core/session.ts'

/** Messages under way at once: of all peers, and of one, which can so not crowd the others out. */
const OPEN_MAX = 1024
const OPEN_OF_ONE_MAX = 128
/** How long a sender may take to close a stream whose message is finished. */
const LINGER_MS = 10_000
/** Of all messages that are held until they are whole, together. */
const HELD_BYTES_MAX = 67_108_864

export const MESSAGE_SERVICE = 'a2a'

/** What the owner did with a message. */
export interface Outcome {
  result: MessageResult
  /** False when nothing of it was acted on, so that it may come again. */
  taken: boolean
}

export interface InboxPorts {
  clock: Clock
  peers: Pick<Peers, 'serve' | 'mayStill'>
  /** The right that a sender needs. */
  needs: Extract<Service, 'a2a' | 'a2a exec'>
  /** Reads the message and answers it; may throw. */
  take(incoming: Incoming, peer: Peer): Promise<Outcome>
}

export class Inbox {
  readonly #ports: InboxPorts
  readonly #taken = new Taken()
  /** Messages that are being taken, by peer and id. */
  readonly #pending = new Map<string, Promise<unknown>>()
  readonly #open = new Map<string, number>()
  #size = 0
  #closed = false

  /** From now on messages are taken. */
  constructor(ports: InboxPorts) {
    this.#ports = ports
    ports.peers.serve(MESSAGE_SERVICE, {
      needs: ports.needs,
      session: (session, peer, view) => ({
        onOpen: (stream) => this.#opened(stream, { session, peer, view }),
        closed: () => {},
      }),
    })
  }

  /** Messages under way. */
  get size(): number {
    return this.#size
  }

  /** Takes no more. */
  close(): void {
    this.#closed = true
  }

  #opened(stream: Stream, from: { session: Session; peer: Peer; view: PeerView }): void {
    const { key } = from.peer
    const open = this.#open.get(key) ?? 0
    if (this.#closed) return stream.reset(RESET.refused, 'nobody listens any more')
    if (this.#size >= OPEN_MAX || open >= OPEN_OF_ONE_MAX) {
      return stream.reset(RESET.overload, 'too many messages at once')
    }
    stream.accept()
    let incoming: Incoming
    try {
      incoming = new Incoming(stream, stream.visit.tail, from.session)
    } catch {
      return stream.reset(RESET.protocol, 'not a message')
    }
    this.#size++
    this.#open.set(key, open + 1)
    void this.#answer(incoming, from).finally(() => {
      this.#size--
      const left = this.#open.get(key)! - 1
      if (left > 0) this.#open.set(key, left)
      else this.#open.delete(key)
    })
  }

  async #answer(incoming: Incoming, from: { peer: Peer; view: PeerView }): Promise<void> {
    let result: MessageResult
    try {
      result = await this.#decide(incoming, from)
    } catch (error) {
      result = failure(error)
    }
    await incoming.finish(result)
    const late = this.#ports.clock.after(LINGER_MS, () => incoming.abort())
    await incoming.over
    late.cancel()
  }

  async #decide(
    incoming: Incoming,
    { peer, view }: { peer: Peer; view: PeerView },
  ): Promise<MessageResult> {
    const { peers, needs } = this.#ports
    const { id, exec } = incoming.request
    if (!await peers.mayStill(view, needs)) {
      return { status: 'refused', code: 'a2a/refused', message: `"${needs}" is not allowed here` }
    }
    if (exec && needs !== 'a2a exec') {
      const message = 'no program answers messages here'
      return { status: 'refused', code: 'a2a/exec', message }
    }
    const name = `${peer.key} ${id}`
    for (;;) {
      const before = this.#taken.find(peer.key, id)
      if (before) return before
      const pending = this.#pending.get(name)
      if (!pending) break
      // The same message over a session that is being given up.
      await pending
    }
    const outcome = this.#take(incoming, peer)
    this.#pending.set(name, outcome)
    try {
      return (await outcome).result
    } finally {
      this.#pending.delete(name)
    }
  }

  async #take(incoming: Incoming, peer: Peer): Promise<Outcome> {
    try {
      const outcome = await this.#ports.take(incoming, peer)
      if (outcome.taken) this.#taken.keep(peer.key, incoming.request.id, outcome.result)
      return outcome
    } catch (error) {
      return { result: failure(error), taken: false }
    }
  }
}

/** Room for messages that are held until they are whole; one for all that are. */
export class Holding {
  readonly #most: number
  #bytes = 0

  constructor(most = HELD_BYTES_MAX) {
    this.#most = most
  }

  get bytes(): number {
    return this.#bytes
  }

  /**
   * The whole message goes to `use`, and its room is given back after. Nothing is used of one that
   * broke off, or for which there is no room: then the outcome says so.
   */
  async whole(
    incoming: Incoming,
    use: (chunks: Uint8Array[]) => Promise<void> | void,
  ): Promise<Outcome> {
    const chunks: Uint8Array[] = []
    let bytes = 0
    try {
      for await (const chunk of incoming.body()) {
        if (this.#bytes + chunk.length > this.#most) {
          const message = 'too many messages are being held; try again later'
          return { result: { status: 'refused', code: 'a2a/busy', message }, taken: false }
        }
        this.#bytes += chunk.length
        bytes += chunk.length
        chunks.push(chunk)
      }
      await use(chunks)
      return { result: { status: 'delivered' }, taken: true }
    } catch (error) {
      if (isTunnelError(error)) return { result: failure(error), taken: false }
      throw error
    } finally {
      this.#bytes -= bytes
    }
  }
}

/** Joined, without a copy where there is one chunk alone. */
export function joinChunks(chunks: readonly Uint8Array[]): Uint8Array {
  return chunks.length === 1 ? chunks[0]! : concat(...chunks)
}
