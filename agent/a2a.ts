/**
 * Messages between agents: one message is one stream of a session. The request rides in the open,
 * and records pass until `fin`: forth the message, back the answer, of which the last is the result.
 * Whoever sends a content commits to it in the session and names the commitment behind it. A message
 * passes as it comes and is nowhere held as a whole. docs/protocol.md §16.
 *
 *   kind     1      see RECORD
 *   length   4      of what follows
 *   payload
 */
import { ByteReader, ByteWriter, concat, EMPTY, text, utf8 } from '../core/bytes.ts'
import { asTunnelError, isTunnelError, TunnelError } from '../core/errors.ts'
import { RESET } from '../core/frame.ts'
import type { HashStream } from '../core/crypto.ts'
import type { Session } from '../core/session.ts'
import type { Conn } from '../core/socket.ts'
import type { Transcript } from '../core/transcript.ts'

// Specification constants.
export const MESSAGE_BYTES_MAX = 16_777_216
/** Every kind with its payload. Numbers are never reused. */
export const RECORD = Object.freeze({
  output: 1, // 1 to 65,536 bytes of the reply; back
  errors: 2, // 1 to 65,536 bytes; back
  result: 3, // JSON, at most 4,096 bytes; back, the last
  body: 4, // 1 to 65,536 bytes of the message; forth
  commitment: 5, // kind 1, number 8: to all that passed of this kind, which is over; the last forth
})
const RECORD_HEADER_BYTES = 5
const RECORD_BYTES_MAX = 65_536
const RESULT_BYTES_MAX = 4096
const COMMITMENT_BYTES = 9
const REQUEST_BYTES_MAX = 1024
/** Our own choice: the messages of so many peers, each with as many as may be, are remembered. */
const TAKEN_PEERS = 16
const ID_TEXT = /^[0-9a-f]{32}$/
const STATUS = ['delivered', 'refused', 'failed', 'timeout'] as const

/** What the open's tail says, JSON. */
export interface MessageRequest {
  /** 16 bytes in hex, the same when a message is sent again after its session was lost. */
  id: string
  /** Length, where it is known. */
  bytes?: number
  /** The sender wants a program to run, and has the right to be refused by name. */
  exec?: boolean
}

export interface MessageResult {
  /** `delivered`: taken, and the program, if one ran, exited with 0. */
  status: (typeof STATUS)[number]
  /** Exit code of the program that ran. */
  exit?: number
  /** Why not: a stable code and a sentence. */
  code?: string
  message?: string
  /** It had been delivered before: this was the second try of one message. */
  again?: boolean
}

/** The session that a message passes over: each side commits there to what it sends (§12). */
export type Witness = Pick<Session, 'commit' | 'check'> & {
  transcript: Pick<Transcript, 'hash'>
}

/** Where a message's answer goes while it comes. */
export interface AnswerSink {
  output(bytes: Uint8Array): void | Promise<void>
  errors(bytes: Uint8Array): void | Promise<void>
}

/** Throws `a2a/request`. */
export function encodeRequest(request: MessageRequest): Uint8Array {
  checkRequest(request)
  return utf8(JSON.stringify(request))
}

/** Throws `a2a/request`. Unknown members are skipped. */
export function decodeRequest(tail: Uint8Array): MessageRequest {
  let value: unknown
  try {
    if (tail.length > REQUEST_BYTES_MAX) throw new Error('too long')
    value = JSON.parse(text(tail))
  } catch (cause) {
    throw wrongRequest('found no JSON object', cause)
  }
  if (typeof value !== 'object' || value === null) throw wrongRequest('found no JSON object')
  const { id, bytes, exec } = value as Record<string, unknown>
  const request = {
    id: id as string,
    ...(bytes === undefined ? {} : { bytes: bytes as number }),
    ...(exec === undefined ? {} : { exec: exec as boolean }),
  }
  checkRequest(request)
  return request
}

function checkRequest({ id, bytes, exec }: MessageRequest): void {
  if (typeof id !== 'string' || !ID_TEXT.test(id)) throw wrongRequest('found no id of 16 bytes')
  if (exec !== undefined && typeof exec !== 'boolean') throw wrongRequest('found a wrong "exec"')
  if (bytes === undefined) return
  if (!Number.isInteger(bytes) || bytes < 0) throw wrongRequest('found a wrong length')
  if (bytes > MESSAGE_BYTES_MAX) throw tooLong(bytes)
}

function wrongRequest(found: string, cause?: unknown): TunnelError {
  return new TunnelError('a2a/request', `Cannot read the message's request: ${found}`, { cause })
}

function tooLong(bytes: number): TunnelError {
  return new TunnelError(
    'a2a/size',
    `Cannot send the message: found ${bytes} bytes, expected at most ${MESSAGE_BYTES_MAX}`,
    { hint: 'Files go by "sotto p2p send".' },
  )
}

/** The contents that pass on one stream in one way, by kind, and what they are committed to by. */
class Contents {
  readonly #witness: Witness
  readonly #open = new Map<number, HashStream>()
  readonly #over = new Set<number>()

  constructor(witness: Witness) {
    this.#witness = witness
  }

  /** Throws `a2a/protocol` behind the commitment to this kind. */
  add(kind: number, bytes: Uint8Array): void {
    if (this.#over.has(kind)) throw protocol(`kind ${kind} behind the commitment to it`)
    let hash = this.#open.get(kind)
    if (!hash) this.#open.set(kind, hash = this.#witness.transcript.hash())
    hash.update(bytes)
  }

  /** Commits to what passed of `kind`: the record that says so. */
  commit(kind: number): Uint8Array {
    const index = this.#witness.commit(this.#digest(kind))
    const payload = new ByteWriter(COMMITMENT_BYTES).u8(kind).u64(index).done()
    return encodeRecord(RECORD.commitment, payload)
  }

  /** Kinds that nobody has committed to yet. */
  get open(): number[] {
    return [...this.#open.keys()]
  }

  isOver(kind: number): boolean {
    return this.#over.has(kind)
  }

  /** Throws `a2a/protocol`, and `transcript/commitment`, which has ended the session. */
  check(payload: Uint8Array, kinds: readonly number[]): void {
    const reader = new ByteReader(payload, 'a2a', 'commitment')
    const kind = reader.u8()
    const index = reader.u64()
    if (!kinds.includes(kind) || this.#over.has(kind)) {
      throw protocol(`a commitment to kind ${kind}`)
    }
    this.#witness.check(index, this.#digest(kind))
  }

  #digest(kind: number): Uint8Array {
    const hash = this.#open.get(kind) ?? this.#witness.transcript.hash()
    this.#open.delete(kind)
    this.#over.add(kind)
    return hash.digest()
  }
}

/**
 * Sends one message on a stream of `witness` that was opened with `encodeRequest` as its tail, and
 * gives the result. Throws `a2a/size` (the stream is reset), `a2a/protocol`, `transcript/commitment`
 * when the answer is not the one that its sender has committed to (the session has ended), and
 * `a2a/broken` when the stream ended before the result: then it is not known whether the message was
 * taken.
 */
export async function sendMessage(
  stream: Conn,
  body: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  sink: AnswerSink,
  witness: Witness,
): Promise<MessageResult> {
  const flow = new Flow(stream)
  const answer = readAnswer(flow, sink, witness)
  // What breaks the answer ends the sending too, and is what is told.
  answer.catch(() => {})
  const sending = sendBody(flow, body, new Contents(witness))
  // After an early result nobody waits for it any more.
  sending.catch(() => {})
  try {
    await Promise.race([sending, answer])
    const result = await answer
    flow.end()
    return result
  } catch (error) {
    const refused = untaken(flow.error)
    flow.abort()
    if (refused) throw refused
    const isTold = isTunnelError(error) && /^(a2a|stream|transcript)\//.test(error.code)
    throw isTold ? error : broken(error)
  }
}

async function sendBody(
  flow: Flow,
  body: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  contents: Contents,
): Promise<void> {
  let sentBytes = 0
  for await (const chunk of body) {
    sentBytes += chunk.length
    if (sentBytes > MESSAGE_BYTES_MAX) throw tooLong(sentBytes)
    for (let at = 0; at < chunk.length; at += RECORD_BYTES_MAX) {
      const part = chunk.subarray(at, at + RECORD_BYTES_MAX)
      contents.add(RECORD.body, part)
      await flow.write(encodeRecord(RECORD.body, part))
      // An early result: the other side wants no more of it.
      if (flow.isEnded) return
    }
  }
  await flow.write(contents.commit(RECORD.body))
  flow.end()
}

async function readAnswer(
  flow: Flow,
  sink: AnswerSink,
  witness: Witness,
): Promise<MessageResult> {
  const contents = new Contents(witness)
  const { output, errors, result, commitment } = RECORD
  for await (const { kind, payload } of readRecords(flow, [output, errors, result, commitment])) {
    if (kind === result) {
      if (contents.open.length > 0) throw uncommitted()
      return decodeResult(payload)
    }
    if (kind === commitment) contents.check(payload, contents.open)
    else {
      contents.add(kind, payload)
      await (kind === output ? sink.output(payload) : sink.errors(payload))
    }
  }
  throw untaken(flow.error) ?? broken(flow.error)
}

/** Whole records until the stream ends, in whichever way. Throws `a2a/protocol`. */
async function* readRecords(
  flow: Flow,
  kinds: readonly number[],
): AsyncGenerator<{ kind: number; payload: Uint8Array }, void, void> {
  let held: Uint8Array = EMPTY
  for (;;) {
    while (held.length >= RECORD_HEADER_BYTES) {
      const reader = new ByteReader(held, 'a2a', 'record')
      const kind = reader.u8()
      const length = reader.u32()
      if (!kinds.includes(kind) || !isLength(kind, length)) {
        throw protocol(`kind ${kind} of ${length} bytes`)
      }
      if (held.length < RECORD_HEADER_BYTES + length) break
      const payload = held.subarray(RECORD_HEADER_BYTES, RECORD_HEADER_BYTES + length)
      held = held.subarray(RECORD_HEADER_BYTES + length)
      yield { kind, payload }
    }
    const more = await flow.read()
    if (more === undefined) break
    held = held.length === 0 ? more : concat(held, more)
  }
  if (held.length > 0 && !flow.error) throw protocol('a record that was cut')
}

function isLength(kind: number, length: number): boolean {
  if (kind === RECORD.commitment) return length === COMMITMENT_BYTES
  return length <= (kind === RECORD.result ? RESULT_BYTES_MAX : RECORD_BYTES_MAX)
}

function decodeResult(payload: Uint8Array): MessageResult {
  let value: Record<string, unknown>
  try {
    value = JSON.parse(text(payload)) as Record<string, unknown>
    if (typeof value !== 'object' || value === null) throw new Error('no object')
  } catch {
    throw protocol('a result that is no JSON object')
  }
  const { status, exit, code, message, again } = value
  if (!STATUS.includes(status as MessageResult['status'])) throw protocol('an unknown status')
  return {
    status: status as MessageResult['status'],
    ...(Number.isInteger(exit) ? { exit: exit as number } : {}),
    ...(typeof code === 'string' ? { code } : {}),
    ...(typeof message === 'string' ? { message } : {}),
    ...(again === true ? { again } : {}),
  }
}

function protocol(found: string): TunnelError {
  return new TunnelError('a2a/protocol', `Cannot read a message or its answer: found ${found}`)
}

function uncommitted(): TunnelError {
  return new TunnelError(
    'a2a/commitment',
    'Cannot take a message or its answer: found nothing by which its sender committed to it',
    { hint: 'Update sotto on the other machine.' },
  )
}

/** The other side said, before it took anything, that it would not. */
function untaken(error: unknown): TunnelError | undefined {
  const said = isTunnelError(error) && /^stream\/(refused|overload|protocol)$/.test(error.code)
  return said ? error : undefined
}

function broken(cause?: unknown): TunnelError {
  return new TunnelError(
    'a2a/broken',
    'Cannot tell whether the message was taken: the stream ended before the result',
    { cause },
  )
}

/** A message that comes in; the owner reads it, may answer while it does, and finishes it once. */
export class Incoming {
  readonly request: MessageRequest
  readonly #flow: Flow
  readonly #received: Contents
  readonly #answered: Contents
  #receivedBytes = 0
  #finished = false

  /** Throws `a2a/request` on a stream whose tail is none; the owner resets it. */
  constructor(stream: Conn, tail: Uint8Array, witness: Witness) {
    this.request = decodeRequest(tail)
    this.#flow = new Flow(stream)
    this.#received = new Contents(witness)
    this.#answered = new Contents(witness)
  }

  /** Bytes read so far. */
  get bytes(): number {
    return this.#receivedBytes
  }

  /** Resolves when the stream is closed, in whichever way. */
  get over(): Promise<void> {
    return this.#flow.over
  }

  /** Fires when the sender went away before the result. */
  get gone(): AbortSignal {
    return this.#flow.gone
  }

  /**
   * The message as it comes; once. Whatever was made of it counts only when it has ended without a
   * throw: `a2a/size`, `a2a/length`, `a2a/gone`, `a2a/protocol`, `a2a/commitment`, and
   * `transcript/commitment` when its sender has committed to another one (the session has ended).
   */
  async *body(): AsyncGenerator<Uint8Array, void, void> {
    const { bytes: said } = this.request
    const { body, commitment } = RECORD
    for await (const { kind, payload } of readRecords(this.#flow, [body, commitment])) {
      if (kind === commitment) {
        this.#received.check(payload, [body])
        continue
      }
      this.#received.add(body, payload)
      this.#receivedBytes += payload.length
      if (this.#receivedBytes > (said ?? MESSAGE_BYTES_MAX)) {
        throw said === undefined ? tooLong(this.#receivedBytes) : this.#wrongLength()
      }
      yield payload
    }
    if (this.#flow.error) {
      throw new TunnelError('a2a/gone', 'Cannot read the message: its sender went away', {
        cause: this.#flow.error,
      })
    }
    if (!this.#received.isOver(body)) throw uncommitted()
    if (said !== undefined && this.#receivedBytes !== said) throw this.#wrongLength()
  }

  #wrongLength(): TunnelError {
    const found = `found ${this.#receivedBytes} bytes, expected ${this.request.bytes}`
    return new TunnelError('a2a/length', `Cannot read the message: ${found}`)
  }

  /** Waits while the sender does not read. Throws when it is gone. */
  output(bytes: Uint8Array): Promise<void> {
    return this.#answer(RECORD.output, bytes)
  }

  errors(bytes: Uint8Array): Promise<void> {
    return this.#answer(RECORD.errors, bytes)
  }

  async #answer(kind: number, bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; at += RECORD_BYTES_MAX) {
      const part = bytes.subarray(at, at + RECORD_BYTES_MAX)
      this.#answered.add(kind, part)
      await this.#flow.write(encodeRecord(kind, part))
    }
  }

  /** The last word; a second one is dropped. */
  async finish(result: MessageResult): Promise<void> {
    if (this.#finished) return
    this.#finished = true
    const short = {
      ...result,
      ...(result.message ? { message: result.message.slice(0, 1000) } : {}),
    }
    try {
      for (const kind of this.#answered.open) {
        await this.#flow.write(this.#answered.commit(kind))
      }
      await this.#flow.write(encodeRecord(RECORD.result, utf8(JSON.stringify(short))))
      this.#flow.end()
      // What is left of the message is of no use; the sender stops when it sees the result.
      this.#flow.drain()
    } catch {
      // The sender is gone: nobody to tell.
    }
  }

  /** Ends it without a result. */
  abort(): void {
    this.#flow.abort()
  }
}

export function encodeRecord(kind: number, payload: Uint8Array): Uint8Array {
  return new ByteWriter(RECORD_HEADER_BYTES + payload.length)
    .u8(kind)
    .u32(payload.length)
    .bytes(payload)
    .done()
}

/** A `Conn` as something to await: one chunk at a time, reading paused while nobody asks. */
class Flow {
  readonly #conn: Conn
  readonly #gone = new AbortController()
  #chunks: Uint8Array[] = []
  #ended = false
  #closed = false
  #draining = false
  error: Error | undefined
  #wake: (() => void) | undefined
  /** A program's output and errors may both wait. */
  #drains: (() => void)[] = []
  readonly over: Promise<void>
  #settle!: () => void

  constructor(conn: Conn) {
    this.#conn = conn
    this.over = new Promise((resolve) => void (this.#settle = resolve))
    conn.handle({
      data: (bytes) => {
        if (this.#draining) return
        this.#chunks.push(bytes)
        conn.pause()
        this.#wake?.()
      },
      drain: () => this.#drained(),
      end: () => {
        this.#ended = true
        this.#wake?.()
      },
      closed: (error) => {
        this.#closed = true
        this.#ended = true
        this.error = error
        if (error) this.#gone.abort(error)
        this.#wake?.()
        this.#drained()
        this.#settle()
      },
    })
  }

  #drained(): void {
    for (const wake of this.#drains.splice(0)) wake()
  }

  get gone(): AbortSignal {
    return this.#gone.signal
  }

  get isEnded(): boolean {
    return this.#ended
  }

  /** Undefined at the end; `error` tells a broken one. */
  async read(): Promise<Uint8Array | undefined> {
    while (this.#chunks.length === 0 && !this.#ended) {
      await new Promise<void>((resolve) => void (this.#wake = resolve))
    }
    const chunk = this.#chunks.shift()
    if (this.#chunks.length === 0 && !this.#closed) this.#conn.resume()
    return chunk
  }

  /** Throws what closed the stream. */
  async write(bytes: Uint8Array): Promise<void> {
    if (bytes.length === 0) return
    if (this.#closed) throw broken(this.error)
    const sent = this.#conn.write(bytes)
    if (sent === 'lost') throw broken(this.error)
    if (sent === 'queued' && this.#conn.buffered() > 0) {
      await new Promise<void>((resolve) => void this.#drains.push(resolve))
    }
  }

  end(): void {
    if (!this.#closed) this.#conn.end()
  }

  /** Drops what still comes. */
  drain(): void {
    this.#draining = true
    this.#chunks = []
    if (!this.#closed) this.#conn.resume()
  }

  abort(): void {
    if (this.#closed) return
    const { reset } = this.#conn as { reset?: (code: number, reason?: string) => void }
    if (reset) reset.call(this.#conn, RESET.aborted)
    else this.#conn.abort()
  }
}

/** Remembers which messages were taken, so that one that is sent again is not taken twice. */
export class Taken {
  /** Of each peer, oldest first. */
  readonly #results = new Map<string, Map<string, MessageResult>>()
  readonly #most: number
  #size = 0

  /** `most` messages of one peer are remembered, 16 times as many of all; the oldest go first. */
  constructor(most = 4096) {
    this.#most = most
  }

  /** What became of it the first time. */
  find(peer: string, id: string): MessageResult | undefined {
    const result = this.#results.get(peer)?.get(id)
    return result && { ...result, again: true }
  }

  keep(peer: string, id: string, result: MessageResult): void {
    const own = this.#results.get(peer) ?? new Map<string, MessageResult>()
    this.#results.set(peer, own)
    if (!own.has(id)) this.#size++
    own.set(id, result)
    if (own.size > this.#most) this.#forgetOldest(peer)
    else if (this.#size > this.#most * TAKEN_PEERS) {
      // Of whoever has most: nobody can make what others sent be forgotten by sending more.
      const [[largest]] = [...this.#results].sort(([, a], [, b]) => b.size - a.size) as [
        [string, unknown],
      ]
      this.#forgetOldest(largest)
    }
  }

  #forgetOldest(peer: string): void {
    const own = this.#results.get(peer)!
    for (const oldest of own.keys()) {
      own.delete(oldest)
      this.#size--
      break
    }
    if (own.size === 0) this.#results.delete(peer)
  }
}

/** A thrown error as a result for the sender. */
export function failure(error: unknown): MessageResult {
  const { code, message } = asTunnelError(error, 'a2a/fault')
  return { status: 'failed', code, message }
}
