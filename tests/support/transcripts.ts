/** Two ends of a session as their transcripts see it: records that pass, checkpoints, trails. */
import { concat, utf8 } from '../../core/bytes.ts'
import type { ChainRecord } from '../../core/chain.ts'
import type { TranscriptEvent, TranscriptStep } from '../../core/transcript.ts'
import { Transcript } from '../../core/transcript.ts'
import { encodeTrailEntry, encodeTrailHeader } from '../../core/trail.ts'
import { fast, filled } from './crypto.ts'

export const SESSION = filled(0x5e, 16)
export const START = 1_700_000_000_000
export const ALICE = { seed: filled(1), public: fast.ed25519Public(filled(1)) }
export const BOB = { seed: filled(2), public: fast.ed25519Public(filled(2)) }
export const DATA = 0x11
export const ACK = 0x13
export const CHECKPOINT = 0x15
export const TRACE = 0x16
export const CLOSE = 0x18

export interface End {
  transcript: Transcript
  /** What is written of it. */
  trail: Uint8Array[]
  sent: number
  received: number
}

export type Side = 'alice' | 'bob'

export function trailOf({ trail }: End): Uint8Array {
  return concat(...trail)
}

function end(role: 'initiator' | 'responder', heard: (event: TranscriptEvent) => void): End {
  const own = role === 'initiator' ? ALICE : BOB
  const ids = { session: SESSION, initiator: ALICE.public, responder: BOB.public }
  const header = encodeTrailHeader({ ...ids, role, start: START, service: 'a2a' })
  const trail = [Uint8Array.from(header)]
  const transcript = new Transcript({
    ...ids,
    crypto: fast,
    role,
    sign: (message) => fast.ed25519Sign(own.seed, message),
    exporter: (label, context, bytes) =>
      fast.hkdfSha256({ key: filled(9), salt: context, info: `sotto ${label}`, bytes }),
    onEvent: (event) => {
      trail.push(Uint8Array.from(encodeTrailEntry(event)))
      heard(event)
    },
  })
  return { transcript, trail, sent: 0, received: 0 }
}

/** What the relay in the middle makes of a record; null loses it. */
export type Middle = (record: ChainRecord, from: Side) => ChainRecord | null

export class Pair {
  readonly alice: End
  readonly bob: End
  readonly #middle: Middle
  #tags = 0

  /** `heard` is told of what a trail keeps, besides the trails here. */
  constructor(
    middle: Middle = (record) => record,
    heard: (event: TranscriptEvent, side: Side) => void = () => {},
  ) {
    this.alice = end('initiator', (event) => heard(event, 'alice'))
    this.bob = end('responder', (event) => heard(event, 'bob'))
    this.#middle = middle
  }

  /** One record from `from` to the other end; both chain it. */
  pass(from: Side, type = DATA, length = 1000): void {
    const [sender, receiver] = from === 'alice' ? [this.alice, this.bob] : [this.bob, this.alice]
    const tag = fast.sha256(utf8(`tag ${this.#tags++}`)).subarray(0, 16)
    const record = { counter: sender.sent++, type, length, tag }
    sender.transcript.record('sent', record)
    const arrived = this.#middle(record, from)
    if (!arrived) return
    receiver.transcript.record('received', { ...arrived, counter: receiver.received++ })
  }

  /** A checkpoint of `from`, and what the other end makes of it. */
  check(from: Side, { final = false, now = START } = {}): TranscriptStep {
    const [sender, receiver] = from === 'alice' ? [this.alice, this.bob] : [this.bob, this.alice]
    const bytes = sender.transcript.checkpoint(now, { final })
    this.pass(from, CHECKPOINT, 528)
    return receiver.transcript.receive(bytes)
  }

  /** Passes traces until one of both ends it; gives both failures. */
  search(step: TranscriptStep, at: Side): { failed: Record<Side, string>; questions: number } {
    const failed: Record<Side, string> = { alice: '', bob: '' }
    let here: Side = at
    let questions = 0
    let next = step
    while (true) {
      if (next.failed) failed[here] ||= next.failed.message
      if (!next.trace) return { failed, questions }
      questions++
      this.pass(here, TRACE, 144)
      here = here === 'alice' ? 'bob' : 'alice'
      next = this[here].transcript.receiveTrace(next.trace)
    }
  }

  /** Both say that this is the end. */
  close(): void {
    this.check('alice', { final: true })
    this.pass('alice', CLOSE, 144)
    this.check('bob', { final: true })
    this.pass('bob', CLOSE, 144)
  }
}
