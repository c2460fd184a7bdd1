/**
 * A session: streams between two identities, sealed over any reliable stream of bytes. A carrier
 * may be lost at any byte; the session waits for another and goes on where the other side left
 * off, so that all bytes of all streams arrive once. core/initiate.ts and core/responder.ts make
 * sessions and bring them carriers. docs/protocol.md §10.
 *
 *   stream ─ frame ─▶ mux ─▶ record, sealed ─▶ kept until acknowledged ─▶ envelope ─▶ carrier
 *
 * Only a record that opened moves anything. What does not open ends the carrier and not the
 * session, since the peer's own bytes may still come over another; what opened and has no place
 * ends the session. Handlers must not throw.
 */
import { ByteReader, ByteWriter, EMPTY } from './bytes.ts'
import type { Clock, Timer } from './clock.ts'
import { Datagrams, type PacketCarrier } from './datagram.ts'
import {
  ENVELOPE,
  type Envelope,
  type EnvelopeReader,
  SESSION_PAYLOAD_BYTES_MAX,
} from './envelope.ts'
import { asTunnelError, TunnelError } from './errors.ts'
import { Exporter } from './exporter.ts'
import { decodeFrame, decodeReset, encodeReset, FRAME, RESET } from './frame.ts'
import { Mux, type Stream } from './mux.ts'
import type { Role } from './noise.ts'
import type { SessionPeer } from './opening.ts'
import { AcksOwed, isForged, RecordReceiver, RecordSender } from './records.ts'
import type { ResumeKeys } from './resume.ts'
import {
  Admission,
  type Carrier,
  CLOSE_MS,
  endError,
  HELD_BYTES_MAX,
  LOST_MS,
  lostEnd,
  OPEN_TIMEOUT_MS,
  outOfOrder,
  type SessionEnd,
  type SessionOptions,
  type SessionState,
  SpoiledCarriers,
  Waiting,
} from './session_options.ts'
import type { Conn, Sent } from './socket.ts'
import { Transcript, type TranscriptStep } from './transcript.ts'

export * from './session_options.ts'

export class Session {
  /** 16 bytes, the same at both ends. */
  readonly id: Uint8Array
  readonly role: Role
  readonly service: string
  readonly peer: SessionPeer
  /** Where the responder can be reached again, 16 bytes. */
  readonly group: Uint8Array
  readonly transcript: Transcript
  /** Sealed by themselves, over whatever channel is attached; may be lost. */
  readonly datagrams: Datagrams

  readonly #options: SessionOptions
  readonly #exporter: Exporter
  readonly #clock: Clock
  readonly #mux: Mux
  readonly #sender: RecordSender
  readonly #receiver: RecordReceiver
  readonly #acks: AcksOwed
  #state: SessionState = 'opening'
  #carrier: Carrier | undefined
  /** Frames of the mux, and hashes to commit to, that could not be sealed yet. */
  readonly #waiting = new Waiting()
  /** Contents that were committed to, those that wait included. */
  #committed = 0
  #drainOwed = false
  #pumping = false
  /** Responder: `ready` came and nobody has said yes yet. */
  #held = false
  #readyCame = false
  readonly #admission = new Admission()
  #checkTimer: Timer | undefined
  #lostTimer: Timer | undefined
  #endTimer: Timer | undefined
  readonly #spoiled = new SpoiledCarriers()
  /** What `close` was called with. */
  #closing: SessionEnd | undefined
  #closeSealed = false
  #ended: SessionEnd | undefined

  constructor(options: SessionOptions) {
    const { crypto, clock, role, suite, split, peer, identity } = options
    this.#options = options
    this.#clock = clock
    this.role = role
    this.service = options.service
    this.peer = peer
    this.group = options.group
    this.#exporter = new Exporter(crypto, split)
    this.id = this.#exporter.id
    const other = role === 'initiator' ? 'responder' : 'initiator'
    this.datagrams = new Datagrams(
      this.#exporter.datagrams(role, suite),
      this.#exporter.datagrams(other, suite),
    )
    this.transcript = new Transcript({
      crypto,
      role,
      session: this.id,
      initiator: role === 'initiator' ? identity.public : peer.identity,
      responder: role === 'initiator' ? peer.identity : identity.public,
      sign: (message) => crypto.ed25519Sign(identity.seed, message),
      exporter: (label, context, bytes) => this.exporter(label, context, bytes),
      onEvent: options.onTranscript,
    })
    this.#sender = new RecordSender({
      cipher: split.send,
      clock,
      onRecord: (record) => this.transcript.record('sent', record),
    })
    this.#receiver = new RecordReceiver({
      cipher: split.receive,
      clock,
      onRecord: (record) => this.transcript.record('received', record),
    })
    this.#acks = new AcksOwed(clock, () => {
      this.#ack()
      this.#pump()
    })
    this.#mux = new Mux({
      ...options.limits,
      side: role === 'initiator' ? 'agent' : 'relay',
      clock,
      openTimeoutMs: OPEN_TIMEOUT_MS,
      payloadBytesMax: SESSION_PAYLOAD_BYTES_MAX,
      send: (frame) => this.#send(frame),
      buffered: () => this.bufferedBytes,
      onOpen: (stream) => this.#onOpen(stream),
      onProtocolError: (error) => this.fail(error),
    })
  }

  get state(): SessionState {
    return this.#state
  }

  /** Streams that are open now. */
  get size(): number {
    return this.#mux.size
  }

  /** Sealed or waiting to be, and not yet given to a carrier. */
  get bufferedBytes(): number {
    const queued = this.#carrier?.conn.buffered() ?? 0
    return this.#waiting.bytes + this.#sender.unwrittenBytes + queued
  }

  /** Sealed bytes that the peer has not acknowledged; at most 16 MiB and a little. */
  get keptBytes(): number {
    return this.#sender.keptBytes
  }

  get ended(): SessionEnd | undefined {
    return this.#ended
  }

  /**
   * Opens a stream of the session's service; `request`, at most 61,440 bytes, is its first word.
   * Writing may start at once. Throws `session/closed`, `mux/limit`, `mux/exhausted`, `frame/size`.
   */
  open(request: Uint8Array = EMPTY): Stream {
    if (this.#state !== 'open' && this.#state !== 'waiting') {
      throw new TunnelError('session/closed', 'Cannot open a stream: found the session closed')
    }
    const visit = { address: '', port: 0, endpoint: this.service, tail: request }
    return this.#mux.open({ kind: 'service', ...visit })
  }

  /**
   * Bytes that both ends and nobody else can make, by a label of ASCII without a zero byte: 1 to
   * 8,160. The same label and context always give the same. Throws `session/closed`.
   */
  exporter(label: string, context: Uint8Array, bytes: number): Uint8Array {
    return this.#exporter.export(label, context, bytes)
  }

  /** Commits to a content by its SHA-256, before what is written after; the peer knows it by the number. */
  commit(content32: Uint8Array): number {
    if (!this.#closing && !this.#ended) {
      this.#waiting.push('commitment', content32)
      this.#pump()
    }
    return this.#committed++
  }

  /**
   * Holds the peer to commitment `index`. On another content the session ends with what is thrown,
   * `transcript/commitment`.
   */
  check(index: number, content32: Uint8Array): void {
    try {
      this.transcript.openReceived(index, content32)
    } catch (error) {
      this.fail(asTunnelError(error, 'transcript/commitment'))
      throw error
    }
  }

  /**
   * Initiator: resolves once the responder's owner has let this session in, and rejects with how
   * it ended instead. Streams may be opened before.
   */
  admitted(): Promise<void> {
    return this.#admission.wait(this.#ended)
  }

  /**
   * Ends the session: streams that are still open end with `gone`, the peer is told, and `closed`
   * follows when it has answered, or after 5 s. `code` is 0 for done or one of RESET.
   */
  close(code = 0, reason = ''): void {
    if (this.#closing || this.#state === 'closed') return
    this.#closing = { code, reason, remote: false }
    this.#mux.close()
    this.#endTimer = this.#clock.after(CLOSE_MS, () => {
      const found = 'found no answer of the peer in time'
      const error = new TunnelError('session/unconfirmed', `Cannot confirm the end: ${found}`)
      this.#finish({ ...this.#closing!, error })
    })
    this.#state = 'closing'
    this.#pump()
    this.#release()
  }

  /** Initiator: datagrams go over `carrier` from now on, which the peer will know by `channel`. */
  attachChannel(carrier: PacketCarrier, channel: Uint8Array): void {
    if (this.#state === 'open' || this.#state === 'waiting') {
      this.#sealed(() => this.#sender.seal('channel', channel))
      this.datagrams.attach(carrier)
      this.#pump()
    }
  }

  // What follows is called by core/initiate.ts and core/responder.ts alone.

  get resumeKeys(): ResumeKeys {
    return this.#exporter.resumeKeys
  }

  /** True while there is something left to say and nothing that carries it. */
  get needsCarrier(): boolean {
    return this.#carrier === undefined && this.#ended === undefined
  }

  get received(): number {
    return this.#receiver.opened
  }

  /**
   * Goes on over this carrier; the one before is dropped. `sendFrom` is what the peer has said it
   * received, `receiveFrom` what this end has said. `reader` may hold bytes already.
   */
  attach(
    conn: Conn,
    reader: EnvelopeReader,
    from: { sendFrom: number; receiveFrom: number } = { sendFrom: 0, receiveFrom: 0 },
  ): void {
    const before = this.#carrier
    const carrier = { conn, reader, number: from.receiveFrom, blocked: false }
    this.#carrier = carrier
    before?.conn.abort()
    conn.handle({
      data: (bytes) => {
        if (this.#carrier !== carrier || this.#ended) return
        reader.push(bytes)
        this.#read(carrier)
      },
      drain: () => {
        carrier.blocked = false
        if (this.#carrier === carrier) this.#pump()
      },
      // Once both have said `close` an end is no loss.
      end: () => this.#ended || this.#lose(carrier),
      closed: () => this.#lose(carrier),
    })
    if (!this.#sealed(() => this.#sender.rewind(from.sendFrom))) return
    if (this.#state === 'waiting') this.#change('open')
    // Proof of life, so that either end knows at once that records pass.
    if (this.#state !== 'opening') this.#ack()
    this.#pump()
    queueMicrotask(() => this.#read(carrier))
  }

  /** Initiator: says the word that proves that this is no replay. */
  sendReady(): void {
    this.#state = 'open'
    this.#sealed(() => this.#sender.seal('ready', EMPTY))
    this.#pump()
  }

  /** Responder: the owner lets it in. */
  admit(): void {
    if (this.#state !== 'opening' || !this.#held) return
    this.#state = 'open'
    this.#admission.agree()
    this.#ack()
    this.#pump()
    this.#release()
  }

  /** Ends the session at once because of what the peer or a carrier did, and says so to the peer. */
  fail(error: TunnelError): void {
    if (this.#ended) return
    this.#mux.close()
    this.#waiting.clear()
    this.#state = 'closing'
    if (this.#readyCame || this.role === 'initiator') this.#sealClose(RESET.protocol, error.code)
    this.#finish({ code: RESET.protocol, reason: error.code, remote: false, error })
  }

  #onOpen(stream: Stream): void {
    const { kind, endpoint } = stream.visit
    if (kind === 'service' && endpoint === this.service) this.#options.onOpen(stream)
    else stream.reset(RESET.protocol, 'not a stream of this session')
  }

  #change(state: SessionState, error?: TunnelError): void {
    this.#state = state
    this.#options.onState?.(state, error)
  }

  // Sending.

  #send(frame: Uint8Array): Sent {
    if (this.#ended || this.#closing) return 'lost'
    this.#waiting.push(frame[0] === FRAME.data ? 'data' : 'control', frame)
    this.#pump()
    if (this.#ended || this.#closing) return 'lost'
    if (this.#isFlowing()) return 'ok'
    this.#drainOwed = true
    return 'queued'
  }

  #isFlowing(): boolean {
    return this.#carrier !== undefined && !this.#carrier.blocked && this.#waiting.length === 0
  }

  /** Seals what may be sealed, and writes what the carrier takes. */
  #pump(): void {
    this.#fill()
    if (this.#pumping) return
    this.#pumping = true
    for (let carrier = this.#carrier; carrier && !carrier.blocked; carrier = this.#carrier) {
      const envelope = this.#sender.take()
      if (envelope === undefined) break
      const sent = carrier.conn.write(envelope)
      if (sent === 'queued') carrier.blocked = true
      else if (sent === 'lost') this.#lose(carrier)
      this.#fill()
    }
    this.#pumping = false
    if (this.#ended) this.#linger()
    else if (this.#drainOwed && this.#isFlowing()) {
      this.#drainOwed = false
      this.#mux.drain()
    }
  }

  #fill(): void {
    if (this.#state === 'opening' || this.#ended || this.#closeSealed) return
    while (this.#waiting.length > 0 && this.#sender.hasRoom && !this.transcript.full) {
      if (this.transcript.suspect) return
      const { name, content } = this.#waiting.shift()!
      const bytes = name === 'commitment' ? this.transcript.commit(content).value : content
      if (!this.#sealed(() => this.#sender.seal(name, bytes))) return
      this.#check()
    }
    if (this.#closing && this.#waiting.length === 0) {
      this.#sealClose(this.#closing.code, this.#closing.reason)
    }
  }

  /** False when it failed, and the session with it. */
  #sealed(run: () => void): boolean {
    try {
      run()
      return true
    } catch (error) {
      this.fail(asTunnelError(error, 'session/send'))
      return false
    }
  }

  #sealClose(code: number, reason: string): void {
    if (this.#closeSealed) return
    this.#closeSealed = true
    try {
      this.#sender.refresh()
      if (!this.transcript.suspect) {
        this.#sender.seal(
          'checkpoint',
          this.transcript.checkpoint(this.#clock.now(), { final: true }),
        )
      }
      this.#sender.seal('close', encodeReset(code, reason))
    } catch {
      // The peer acknowledges nothing, or the counters are used up: it will find the carrier cut.
    }
  }

  #ack(): void {
    this.#acks.paid()
    if (this.#closeSealed || this.#ended) return
    const content = new ByteWriter(8).u64(this.#receiver.opened).done()
    this.#sealed(() => this.#sender.seal('ack', content))
  }

  /** Sends a checkpoint when one is due, and looks again when the next may be. */
  #check(): void {
    if (this.#ended || this.#closeSealed) return
    this.#sealed(() => {
      const nowMs = this.#clock.monotonic()
      if (this.transcript.due(nowMs)) {
        this.#sender.refresh()
        this.#sender.seal('checkpoint', this.transcript.checkpoint(this.#clock.now()))
      }
      const { dueAt } = this.transcript
      if (dueAt === undefined || this.#checkTimer) return
      this.#checkTimer = this.#clock.after(Math.max(0, dueAt - nowMs), () => {
        this.#checkTimer = undefined
        this.#check()
        this.#pump()
      })
    })
  }

  // Receiving.

  #read(carrier: Carrier): void {
    while (carrier === this.#carrier && !this.#ended && !this.#held) {
      let envelope: Envelope | undefined
      try {
        envelope = carrier.reader.next()
      } catch (error) {
        return this.#lose(carrier, asTunnelError(error, 'session/envelope'))
      }
      if (!envelope) break
      this.#receive(carrier, envelope)
    }
    if (this.#held && carrier.reader.bytes > HELD_BYTES_MAX) this.#lose(carrier)
  }

  #receive(carrier: Carrier, envelope: Envelope): void {
    const { type } = envelope
    if (type < ENVELOPE.ready) {
      const error = new TunnelError(
        'session/order',
        `Cannot take an envelope of type ${type}: found it among records`,
      )
      return this.#lose(carrier, error)
    }
    // Sent again, and opened meanwhile over the carrier before.
    if (carrier.number++ < this.#receiver.opened) return
    try {
      const content = this.#receiver.open(envelope)
      this.#lostTimer?.cancel()
      this.#lostTimer = undefined
      this.#act(type, content)
    } catch (error) {
      if (isForged(error)) return this.#lose(carrier, asTunnelError(error, 'session/forged'))
      return this.fail(asTunnelError(error, 'session/record'))
    }
    if (this.#ended || this.#held) return
    if (type !== ENVELOPE.ack) this.#acks.add(envelope.body.length)
    this.#check()
    this.#pump()
  }

  #act(type: number, content: Uint8Array): void {
    if (this.role === 'responder' && !this.#readyCame) {
      if (type !== ENVELOPE.ready) throw outOfOrder(type)
      return this.#hold()
    }
    if (type === ENVELOPE.data || type === ENVELOPE.control) this.#actFrame(type, content)
    else if (type === ENVELOPE.ack) this.#actAck(content)
    else if (type === ENVELOPE.checkpoint) this.#step(this.transcript.receive(content))
    else if (type === ENVELOPE.commitment) this.transcript.commitReceived(content)
    else if (type === ENVELOPE.trace) this.#step(this.transcript.receiveTrace(content))
    else if (type === ENVELOPE.close) this.#actClose(content)
    else if (type === ENVELOPE.channel && this.role === 'responder' && content.length === 16) {
      this.#options.owner.channel?.(content)
    } else if (type !== ENVELOPE.rekey) throw outOfOrder(type)
  }

  #hold(): void {
    this.#readyCame = true
    this.#held = true
    this.#carrier?.conn.pause()
    this.#options.owner.ready?.()
  }

  #release(): void {
    if (!this.#held) return
    this.#held = false
    const carrier = this.#carrier
    carrier?.conn.resume()
    if (carrier) this.#read(carrier)
  }

  #actFrame(type: number, content: Uint8Array): void {
    // The responder acks nothing, and sends nothing, before its owner has said yes.
    if (this.role === 'initiator') this.#admission.agree()
    // From a difference on nothing is delivered; the search for it goes on.
    if (this.transcript.suspect) return
    const frame = decodeFrame(content)
    if ((frame.type === FRAME.data) !== (type === ENVELOPE.data) || !this.#mux.receive(frame)) {
      throw new TunnelError(
        'session/frame',
        `Cannot take a frame of type ${frame.type}: found it in a record of type ${type}`,
      )
    }
  }

  #actAck(content: Uint8Array): void {
    const reader = new ByteReader(content, 'session', 'ack')
    const received = reader.u64()
    reader.end()
    this.#sender.acknowledge(received)
    this.transcript.opened(received)
    if (this.role === 'initiator') this.#admission.agree()
  }

  #step({ trace, failed }: TranscriptStep): void {
    if (trace) this.#sender.seal('trace', trace)
    if (failed) throw failed
  }

  #actClose(content: Uint8Array): void {
    const { code, reason } = decodeReset(content)
    this.#mux.close()
    this.#waiting.clear()
    const mine = this.#closing
    this.#state = 'closing'
    this.#sealClose(0, '')
    if (mine) return this.#finish(mine)
    const end: SessionEnd = { code, reason, remote: true }
    this.#finish(code === 0 ? end : { ...end, error: endError(end) })
  }

  // Carriers and the end.

  #lose(carrier: Carrier, error?: TunnelError): void {
    if (carrier !== this.#carrier) return
    this.#carrier = undefined
    carrier.conn.abort()
    if (this.#ended) return this.#forget()
    if (this.#state === 'opening') return this.#finish(lostEnd(error))
    if (error && this.#spoiled.isOneTooMany(this.#clock.monotonic())) return this.fail(error)
    this.#lostTimer ??= this.#clock.after(LOST_MS, () => this.#finish(lostEnd()))
    if (this.#state === 'open') this.#change('waiting', error)
    this.#options.owner.lost?.()
  }

  #finish(end: SessionEnd): void {
    if (this.#ended) return
    this.#ended = end
    const told = this.role === 'initiator' || this.#admission.agreed
    this.#acks.paid()
    for (const timer of [this.#checkTimer, this.#lostTimer, this.#endTimer]) timer?.cancel()
    this.#mux.close()
    this.#state = 'closed'
    this.#admission.refuse(end)
    this.#endTimer = this.#clock.after(CLOSE_MS, () => {
      this.#carrier?.conn.abort()
      this.#forget()
    })
    this.#pump()
    this.datagrams.close()
    this.#options.owner.gone(end)
    if (told) this.#options.closed(end)
  }

  /** Closed: the last records leave, then our half of the carrier ends. */
  #linger(): void {
    if (!this.#carrier) return this.#forget()
    if (this.#sender.unwrittenBytes > 0) return
    this.#carrier.conn.end()
  }

  #forget(): void {
    this.#endTimer?.cancel()
    this.#carrier = undefined
    this.#sender.erase()
    this.#receiver.erase()
    this.#exporter.erase()
  }
}
