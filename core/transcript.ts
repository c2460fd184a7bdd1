/**
 * What passed in a session, chained: each side hashes every record that it seals or opens into
 * one chain for each direction, and signs checkpoints of both that pass inside the session. A
 * record that was changed, lost, added or moved makes the chains differ, and the ends then ask
 * each other for single values until the first record that differs has a number. Contents can be
 * committed to beside the records, so that one of them can be shown later and no other.
 * docs/protocol.md §12.
 */
import { ByteWriter, equal } from './bytes.ts'
import type { ChainRecord, Checkpoint, Direction, Role, Trace, TranscriptContext } from './chain.ts'
import {
  ANSWER,
  Chain,
  ChainInput,
  chainStart,
  checkpointMessage,
  commitmentsStart,
  decodeTrace,
  encodeCheckpoint,
  encodeTrace,
  needLength,
  nextCommitment,
  openCheckpoint,
  QUESTION,
  RECORD_TAG_BYTES,
  SESSION_ID_BYTES,
  wrongTrace,
} from './chain.ts'
import type { Crypto, HashStream } from './crypto.ts'
import { HASH_BYTES, KEY_BYTES } from './crypto.ts'
import { TunnelError } from './errors.ts'

// Specification constants.
export const CHECKPOINT_RECORDS = 4096
export const CHECKPOINT_AFTER_MS = 30_000
/** Most values of one chain that are kept while the peer has not agreed to them. */
export const KEPT_VALUES_MAX = 16_384
export const TRACE_QUESTIONS_MAX = 64
/** Envelopes (§10) that need no checkpoint of their own, since each would call for the next. */
const QUIET_TYPES: readonly number[] = [0x13, 0x15, 0x16]

// Our own choices.
/** Of those, what `full` leaves for records that must pass: acks, checkpoints, traces, the end. */
const KEPT_VALUES_RESERVE = 1024
/** Records that a peer may have opened and not covered by a checkpoint: two of its turns. */
const UNCOVERED_RECORDS_MAX = 2 * CHECKPOINT_RECORDS
/** Values of the peer whose contents may still be on their way; of older ones none is taken. */
const UNOPENED_COMMITMENTS_MAX = 16_384
/** How long the search for the first difference may take. */
const TRACE_MS_MAX = 10_000

export interface Commitment {
  index: number
  /** `m(i)`, 32 bytes: tells nothing of the content without its salt. */
  value: Uint8Array
}

/** What shows that a commitment is to this content; secret until it is shown. */
export interface Opening {
  index: number
  salt: Uint8Array
  /** SHA-256 of the content. */
  content: Uint8Array
}

/** What a trail keeps. Arrays are valid during the call alone. */
export type TranscriptEvent =
  | ({ kind: 'record'; direction: Direction } & ChainRecord)
  | { kind: 'checkpoint'; direction: Direction; bytes: Uint8Array }
  | ({ kind: 'commitment'; direction: Direction } & Commitment)
  | ({ kind: 'opening'; direction: Direction } & Opening)

/** The same for longer than the call. */
export function keptEvent(event: TranscriptEvent): TranscriptEvent {
  const copy = (bytes: Uint8Array): Uint8Array => Uint8Array.from(bytes)
  if (event.kind === 'record') return { ...event, tag: copy(event.tag) }
  if (event.kind === 'checkpoint') return { ...event, bytes: copy(event.bytes) }
  if (event.kind === 'commitment') return { ...event, value: copy(event.value) }
  return { ...event, salt: copy(event.salt), content: copy(event.content) }
}

export interface TranscriptOptions extends TranscriptContext {
  crypto: Crypto
  role: Role
  /** The own identity's signature of a message, 64 bytes. */
  sign(message: Uint8Array): Uint8Array
  /** The session's exporter: `export(label, context, bytes)`. */
  exporter(label: string, context: Uint8Array, bytes: number): Uint8Array
  onEvent?: ((event: TranscriptEvent) => void) | undefined
}

/** What the session does after a checkpoint or a trace: send first, then end where it failed. */
export interface TranscriptStep {
  /** Content of a `trace` record to send. */
  trace?: Uint8Array
  /** `transcript/mismatch`: the session ends with it once `trace` was sent. */
  failed?: TunnelError
}

interface Search {
  direction: Direction
  /** Chain values agree at `low` and differ at `high`. */
  low: number
  high: number
  /** Of which the peer was told, or told us. */
  questions: number
  asked: number
  since: number | undefined
}

/**
 * The transcript of one session at one of its ends. The session tells `record()` each record in
 * order, also those that carry checkpoints and traces, and before it hands their contents to
 * `receive()` and `receiveTrace()`; it asks `due()` after records and at `dueAt`, and seals what
 * `checkpoint()` gives as its very next record.
 */
export class Transcript {
  readonly #options: TranscriptOptions
  readonly #sent: Chain
  readonly #received: Chain
  readonly #sentCommitments: Chain
  readonly #receivedCommitments: Chain
  readonly #input: ChainInput
  readonly #saltKeys: { sent?: Uint8Array; received?: Uint8Array } = {}
  /** Values of the peer whose contents were not shown to `openReceived` yet, the oldest first. */
  readonly #unopened = new Map<number, Uint8Array>()
  /** Records of either direction that no checkpoint of ours covers. */
  #uncovered = 0
  #loud = false
  #firstUncoveredAt: number | undefined
  /** Records sent that the peer's newest checkpoint covers, and that it said to have opened. */
  #peerCovered = 0
  #peerFinal = false
  #asking: Search | undefined
  #answering: Search | undefined

  /** Throws `transcript/length` when a session id or an identity has the wrong length. */
  constructor(options: TranscriptOptions) {
    const { crypto, session, initiator, responder, role } = options
    needLength('session id', session, SESSION_ID_BYTES)
    needLength('identity', initiator, KEY_BYTES)
    needLength('identity', responder, KEY_BYTES)
    this.#options = options
    const own = role === 'initiator' ? 1 : 2
    this.#sent = new Chain(chainStart(crypto, session, own))
    this.#received = new Chain(chainStart(crypto, session, 3 - own))
    this.#sentCommitments = new Chain(commitmentsStart(crypto, session, own))
    this.#receivedCommitments = new Chain(commitmentsStart(crypto, session, 3 - own))
    this.#input = new ChainInput(crypto)
  }

  get role(): Role {
    return this.#options.role
  }

  get sentRecords(): number {
    return this.#sent.count
  }

  get receivedRecords(): number {
    return this.#received.count
  }

  /** True once the peer's last checkpoint was here and agreed. */
  get peerFinal(): boolean {
    return this.#peerFinal
  }

  /**
   * True when the session must seal nothing but acks, checkpoints, traces and its end, until a
   * checkpoint of the peer has come: what was sent could no longer be searched.
   */
  get full(): boolean {
    return this.#sent.kept >= KEPT_VALUES_MAX - KEPT_VALUES_RESERVE
  }

  /** True from a mismatch on: the session must deliver nothing that comes after. */
  get suspect(): boolean {
    return this.#asking !== undefined || this.#answering !== undefined
  }

  /**
   * Chains one record; one hash. Throws `transcript/counter` when it is not the next one, and
   * `transcript/silent` when the peer sent too many without a checkpoint.
   */
  record(direction: Direction, record: ChainRecord): void {
    const chain = this.#chain(direction)
    if (record.counter !== chain.count || record.tag.length !== RECORD_TAG_BYTES) {
      throw new TunnelError(
        'transcript/counter',
        `Cannot chain record: found number ${record.counter}, expected ${chain.count}`,
      )
    }
    if (chain.kept >= KEPT_VALUES_MAX) throw silent(chain.kept)
    chain.push(this.#input.next(chain.head, record))
    this.#uncovered++
    if (!QUIET_TYPES.includes(record.type)) this.#loud = true
    this.#options.onEvent?.({ kind: 'record', direction, ...record })
  }

  /**
   * The peer acknowledged that it has opened this many. Throws `transcript/silent` when none of
   * its checkpoints covers the latest: it had its turn twice.
   */
  opened(count: number): void {
    const uncovered = count - this.#peerCovered
    if (uncovered > UNCOVERED_RECORDS_MAX) throw silent(uncovered)
  }

  /**
   * True when a checkpoint is to be sent now. Throws `transcript/mismatch` when a search for the
   * first difference was not answered in 10 s.
   */
  due(now: number): boolean {
    const search = this.#asking ?? this.#answering
    if (search) {
      search.since ??= now
      if (now - search.since >= TRACE_MS_MAX) throw this.#mismatch(search)
      return false
    }
    if (this.#loud) this.#firstUncoveredAt ??= now
    return this.#uncovered >= CHECKPOINT_RECORDS ||
      (this.#firstUncoveredAt !== undefined && now - this.#firstUncoveredAt >= CHECKPOINT_AFTER_MS)
  }

  /** When `due()` wants to be asked again though no record passes; undefined for never. */
  get dueAt(): number | undefined {
    const since = (this.#asking ?? this.#answering)?.since
    if (since !== undefined) return since + TRACE_MS_MAX
    return this.#firstUncoveredAt === undefined
      ? undefined
      : this.#firstUncoveredAt + CHECKPOINT_AFTER_MS
  }

  /** The content of a `checkpoint` record, which must be sealed before any other. */
  checkpoint(now: number, { final = false }: { final?: boolean } = {}): Uint8Array {
    const { role, sign } = this.#options
    const bytes = encodeCheckpoint({
      sent: this.#sent.count,
      sentChain: this.#sent.head,
      received: this.#received.count,
      receivedChain: this.#received.head,
      sentCommitments: this.#sentCommitments.count,
      sentCommitmentsChain: this.#sentCommitments.head,
      receivedCommitments: this.#receivedCommitments.count,
      receivedCommitmentsChain: this.#receivedCommitments.head,
      time: now,
      final,
    }, (body) => sign(checkpointMessage(this.#options, role, body)))
    this.#uncovered = 0
    this.#loud = false
    this.#firstUncoveredAt = undefined
    this.#options.onEvent?.({ kind: 'checkpoint', direction: 'sent', bytes })
    return bytes
  }

  /**
   * The content of the peer's `checkpoint` record, the newest that was told to `record()`. Throws
   * `transcript/length`, `transcript/forged`, `transcript/flags`, `transcript/range`,
   * `transcript/count`, `transcript/final`, `transcript/commitment`; each ends the session, and
   * none has changed anything.
   */
  receive(bytes: Uint8Array): TranscriptStep {
    const { crypto, role, onEvent } = this.#options
    const checkpoint = openCheckpoint(crypto, bytes, {
      context: this.#options,
      role: role === 'initiator' ? 'responder' : 'initiator',
    })
    this.#checkCounts(checkpoint)
    // Signed evidence is kept before it is judged.
    onEvent?.({ kind: 'checkpoint', direction: 'received', bytes })
    if (this.suspect) return {}
    const { sent, sentChain, received, receivedChain } = checkpoint
    if (!equal(sentChain, this.#received.at(sent))) return this.#search('received', sent)
    if (!equal(receivedChain, this.#sent.at(received))) return this.#search('sent', received)
    this.#checkCommitments(checkpoint)
    this.#received.forget(sent)
    this.#sent.forget(received)
    this.#peerCovered = received
    this.#peerFinal = checkpoint.final
    return {}
  }

  /**
   * The content of a `trace` record. Throws `transcript/length` and `transcript/trace` on what no
   * honest peer sends.
   */
  receiveTrace(bytes: Uint8Array): TranscriptStep {
    const trace = decodeTrace(bytes)
    const own = this.#options.role === 'initiator' ? 1 : 2
    const direction = trace.direction === own ? 'sent' : 'received'
    return trace.kind === QUESTION
      ? this.#answer(direction, trace)
      : this.#compare(direction, trace)
  }

  /** For the hash of a content that passes in pieces. */
  hash(): HashStream {
    return this.#options.crypto.sha256Stream()
  }

  /**
   * Commits to a content of ours by its SHA-256; the value goes to the peer as the very next record
   * but checkpoints. Throws `transcript/length`.
   */
  commit(content32: Uint8Array): Commitment {
    needLength('content hash', content32, HASH_BYTES)
    const index = this.#sentCommitments.count
    const salt = this.salt('sent', index)
    const value = this.#options.crypto.hmacSha256(salt, content32)
    this.#chainCommitment('sent', value)
    this.#options.onEvent?.({ kind: 'opening', direction: 'sent', index, salt, content: content32 })
    return { index, value }
  }

  /** Takes the value of the peer's next commitment. Throws `transcript/length`. */
  commitReceived(value: Uint8Array): Commitment {
    needLength('commitment', value, HASH_BYTES)
    const index = this.#receivedCommitments.count
    const kept = Uint8Array.from(value)
    this.#chainCommitment('received', kept)
    this.#unopened.set(index, kept)
    this.#unopened.delete(index - UNOPENED_COMMITMENTS_MAX)
    return { index, value: kept }
  }

  /**
   * Compares what was received, by its SHA-256, with what the peer committed to; once for each
   * commitment. Throws `transcript/commitment` when it is another content, and when there is no
   * such commitment; the session ends with it.
   */
  openReceived(index: number, content32: Uint8Array): void {
    needLength('content hash', content32, HASH_BYTES)
    const value = this.#unopened.get(index)
    if (!value) throw wrongCommitment(index, 'found none of that number whose content may come')
    const salt = this.salt('received', index)
    if (!equal(this.#options.crypto.hmacSha256(salt, content32), value)) {
      throw wrongCommitment(index, 'found another content than the one that was committed to')
    }
    this.#unopened.delete(index)
    const event = { kind: 'opening', direction: 'received', index, salt } as const
    this.#options.onEvent?.({ ...event, content: content32 })
  }

  /** What opens content `index` of a direction to whom one shows it, and no other content. */
  salt(direction: Direction, index: number): Uint8Array {
    const { crypto, role, exporter } = this.#options
    const wire = (direction === 'sent') === (role === 'initiator') ? 1 : 2
    this.#saltKeys[direction] ??= exporter('commitment', Uint8Array.of(wire), HASH_BYTES)
    return crypto.hmacSha256(this.#saltKeys[direction], new ByteWriter(8).u64(index).done())
  }

  #chain(direction: Direction): Chain {
    return direction === 'sent' ? this.#sent : this.#received
  }

  /** What would be false whatever the chains say. */
  #checkCounts(checkpoint: Checkpoint): void {
    if (this.#peerFinal) {
      throw new TunnelError(
        'transcript/final',
        'Cannot take checkpoint: found one after the one that was said to be the last',
      )
    }
    // The carrying record is the newest, and its counter is what the peer had sent before it.
    needCount('sent', checkpoint.sent, this.#received.count - 1, this.#received.count - 1)
    needCount('received', checkpoint.received, this.#peerCovered, this.#sent.count)
    // Commitments are records: all that were sent before this one are here.
    const [sent, received] = [this.#receivedCommitments.count, this.#sentCommitments]
    needCount('sent commitments', checkpoint.sentCommitments, sent, sent)
    const { receivedCommitments: taken } = checkpoint
    needCount('received commitments', taken, received.first, received.count)
  }

  #checkCommitments(checkpoint: Checkpoint): void {
    const own = this.#sentCommitments
    const { receivedCommitments: taken, sentCommitments: sent } = checkpoint
    if (!equal(checkpoint.receivedCommitmentsChain, own.at(taken))) {
      throw wrongCommitment(own.first, 'found another chain at the peer from here on')
    }
    const { first } = this.#receivedCommitments
    if (!equal(checkpoint.sentCommitmentsChain, this.#receivedCommitments.head)) {
      throw wrongCommitment(first, 'found another chain than the peer signed from here on')
    }
    own.forget(taken)
    this.#receivedCommitments.forget(sent)
  }

  #chainCommitment(direction: Direction, value: Uint8Array): void {
    const chain = direction === 'sent' ? this.#sentCommitments : this.#receivedCommitments
    const index = chain.count
    chain.push(nextCommitment(this.#options.crypto, chain.head, value))
    this.#options.onEvent?.({ kind: 'commitment', direction, index, value })
  }

  /** Begins where both agreed, so that the peer can follow and ends with the same number. */
  #search(direction: Direction, high: number): TranscriptStep {
    const low = this.#chain(direction).first
    this.#asking = { direction, low, high, questions: 0, asked: low, since: undefined }
    return this.#ask(low)
  }

  #ask(number: number): TranscriptStep {
    const search = this.#asking!
    if (++search.questions > TRACE_QUESTIONS_MAX) return { failed: this.#mismatch(search) }
    search.asked = number
    return { trace: this.#trace(QUESTION, search.direction, number) }
  }

  #trace(kind: number, direction: Direction, number: number): Uint8Array {
    const wire = (direction === 'sent') === (this.#options.role === 'initiator') ? 1 : 2
    return encodeTrace({ kind, direction: wire, number, chain: this.#chain(direction).at(number) })
  }

  #answer(direction: Direction, { number, chain }: Trace): TranscriptStep {
    const own = this.#chain(direction)
    const search = this.#answering ??= {
      direction,
      low: own.first,
      high: Infinity,
      questions: 0,
      asked: 0,
      since: undefined,
    }
    if (++search.questions > TRACE_QUESTIONS_MAX || search.direction !== direction) {
      throw wrongTrace('one question too many')
    }
    // What was forgotten had been agreed: the nearest value that is left serves the search.
    const near = Math.min(Math.max(number, own.first), own.count)
    if (near === number) narrow(search, number, equal(chain, own.at(number)))
    const trace = this.#trace(ANSWER, direction, near)
    return search.high - search.low <= 1 ? { trace, failed: this.#mismatch(search) } : { trace }
  }

  #compare(direction: Direction, { number, chain }: Trace): TranscriptStep {
    const search = this.#asking
    if (!search || search.direction !== direction) throw wrongTrace('an answer to no question')
    const own = this.#chain(direction)
    if (number < own.first || number > own.count) throw wrongTrace(`the number ${number}`)
    const before = search.high - search.low
    const first = search.questions === 1
    narrow(search, number, equal(chain, own.at(number)))
    if (first) return this.#ask(search.high)
    const second = search.questions === 2
    const width = search.high - search.low
    // No progress: the peer answered beside the question, or against its own signature.
    if (width <= 1 || (!second && width >= before)) return { failed: this.#mismatch(search) }
    return this.#ask(search.low + Math.floor(width / 2))
  }

  #mismatch({ direction, low, high }: Search): TunnelError {
    const from = (direction === 'sent') === (this.#options.role === 'initiator')
      ? 'initiator'
      : 'responder'
    const found = high - low <= 1
      ? `record ${Math.min(low, high - 1)}`
      : `one of the records ${low} to ${Number.isFinite(high) ? high - 1 : 'the newest'}`
    return new TunnelError(
      'transcript/mismatch',
      `Cannot continue session: found ${found} from the ${from} differing between the two ends, expected one transcript`,
      { hint: 'One of the two ends is broken or lies. Compare both trails: sotto audit compare' },
    )
  }
}

function narrow(search: Search, number: number, same: boolean): void {
  if (same) search.low = Math.max(search.low, number)
  else search.high = Math.min(search.high, number)
}

function needCount(subject: string, found: number, min: number, max: number): void {
  if (found >= min && found <= max) return
  throw new TunnelError(
    'transcript/count',
    `Cannot take checkpoint: found ${found} ${subject}, expected ${min} to ${max}`,
  )
}

function silent(count: number): TunnelError {
  return new TunnelError(
    'transcript/silent',
    `Cannot continue session: found ${count} records without a checkpoint of the peer, expected one after ${CHECKPOINT_RECORDS}`,
  )
}

function wrongCommitment(index: number, found: string): TunnelError {
  return new TunnelError('transcript/commitment', `Cannot take commitment ${index}: ${found}`)
}
