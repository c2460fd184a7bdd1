/**
 * Verifying one trail offline, with nothing but the two identities: whether it still says what both
 * sides signed, and where it stops to. What one trail cannot show, two can: core/compare.ts.
 * docs/protocol.md §12.
 */
import { equal } from './bytes.ts'
import type { Checkpoint, Direction, Role } from './chain.ts'
import {
  ChainInput,
  chainStart,
  commitmentsStart,
  nextCommitment,
  openCheckpoint,
} from './chain.ts'
import type { Crypto } from './crypto.ts'
import { isTunnelError, TunnelError } from './errors.ts'
import { fingerprint } from './key.ts'
import type { Trail, TrailCheckpoint, TrailHeader } from './trail.ts'
import { readTrail, signerOf, wireDirection } from './trail.ts'

// Specification constants.
/** Envelope type of the records that carry checkpoints (§10). */
const CHECKPOINT_TYPE = 0x15
const CLOSE_TYPE = 0x18

// Our own choices.
/** Findings of one kind of judgement that are listed; more are counted. */
export const FINDINGS_MAX = 1000

const DIRECTIONS: readonly Direction[] = ['sent', 'received']

export type FaultKind =
  /** A record's counter is not the next one: some are missing, double or moved in the file. */
  | 'counter'
  /** A checkpoint is not signed by whom it must be. */
  | 'signature'
  /** A checkpoint is missing, double or in another place than the record that carried it. */
  | 'checkpoint'
  /** The records before this checkpoint are not those that its signer had. */
  | 'records'
  /** The commitments before this checkpoint are not those that its signer had. */
  | 'commitments'
  /** An opening does not open its commitment. */
  | 'opening'

export interface Fault {
  kind: FaultKind
  /** As seen from the trail's own side. */
  direction: Direction
  /** The first record, commitment or checkpoint, counted in the file, that can be wrong. */
  from: number
  /** The last one that can be. */
  to: number
}

export interface TrailReport extends TrailHeader {
  /** True when nothing in it contradicts a signature. */
  sound: boolean
  faults: Fault[]
  /** Also those that are not listed. */
  faultCount: number
  records: Readonly<Record<Direction, number>>
  checkpoints: Readonly<Record<Direction, number>>
  commitments: Readonly<Record<Direction, number>>
  /** Records of each direction that the other side's signature covers. */
  covered: Readonly<Record<Direction, number>>
  /** True when both sides signed a last checkpoint and both closed: nothing is missing at the end. */
  complete: boolean
  tornBytes: number
}

/**
 * Verifies one trail. `identities` are those of the two that it must be of, 32 bytes or
 * `SHA256:…` each, in any order. Throws `trail/identities`, and what `readTrail` throws.
 */
export function verifyTrail(
  crypto: Crypto,
  bytes: Uint8Array,
  identities: readonly (Uint8Array | string)[],
): TrailReport {
  return judgeTrail(crypto, readTrail(bytes), identities)
}

/** The same of a trail that was read. Throws `trail/identities`. */
export function judgeTrail(
  crypto: Crypto,
  trail: Trail,
  identities: readonly (Uint8Array | string)[],
): TrailReport {
  return new Verifier(crypto, trail, identities).run()
}

class Verifier {
  readonly #crypto: Crypto
  readonly #trail: Trail
  readonly #faults: Fault[] = []
  #faultCount = 0
  readonly #covered = { sent: 0, received: 0 }
  readonly #final = { sent: false, received: false }

  constructor(crypto: Crypto, trail: Trail, identities: readonly (Uint8Array | string)[]) {
    this.#crypto = crypto
    this.#trail = trail
    needIdentities(crypto, trail, identities)
  }

  run(): TrailReport {
    const trail = this.#trail
    for (const direction of DIRECTIONS) this.#checkCounters(direction)
    const opened = this.#openCheckpoints()
    for (const direction of DIRECTIONS) {
      this.#checkPlaces(direction)
      this.#checkChain(direction, opened)
      this.#checkCommitments(direction, opened)
      this.#checkOpenings(direction)
    }
    const { records, checkpoints, commitments, openings: _, ...rest } = trail
    const count = (direction: Direction) =>
      checkpoints.filter((one) => one.direction === direction).length
    const closed = DIRECTIONS.every((one) => records[one].at(-1)?.type === CLOSE_TYPE)
    return {
      ...rest,
      sound: this.#faultCount === 0,
      faults: this.#faults,
      faultCount: this.#faultCount,
      records: { sent: records.sent.length, received: records.received.length },
      checkpoints: { sent: count('sent'), received: count('received') },
      commitments: { sent: commitments.sent.length, received: commitments.received.length },
      covered: this.#covered,
      complete: closed && this.#final.sent && this.#final.received,
    }
  }

  #fault(kind: FaultKind, direction: Direction, from: number, to = from): void {
    this.#faultCount++
    if (this.#faults.length < FINDINGS_MAX) this.#faults.push({ kind, direction, from, to })
  }

  #checkCounters(direction: Direction): void {
    for (const [i, { counter }] of this.#trail.records[direction].entries()) {
      if (counter === i) continue
      // What comes after is shifted as well: one fault says so.
      return this.#fault('counter', direction, i)
    }
  }

  /** Those whose signature holds, in the order of the file. */
  #openCheckpoints(): Opened[] {
    const opened: Opened[] = []
    for (const [i, entry] of this.#trail.checkpoints.entries()) {
      const checkpoint = this.#open(entry, signerOf(this.#trail, entry.direction))
      if (!checkpoint) {
        this.#fault('signature', entry.direction, i)
        continue
      }
      if (checkpoint.final) this.#final[entry.direction] = true
      if (checkpoint.sent !== placeOf(entry)) this.#fault('checkpoint', entry.direction, i)
      opened.push({ ...entry, checkpoint })
    }
    return opened
  }

  /** Each checkpoint stands beside the record that carried it, and each such record has one. */
  #checkPlaces(direction: Direction): void {
    const records = this.#trail.records[direction]
    const places = this.#trail.checkpoints.filter((one) => one.direction === direction).map(placeOf)
    const unmatched = new Set<number>()
    for (const [place, { type }] of records.entries()) {
      if (type === CHECKPOINT_TYPE) unmatched.add(place)
    }
    // A crash may part the two at the end: sent ones come before their record, received ones behind.
    if (direction === 'sent' && places.at(-1) === records.length) places.pop()
    for (const place of places) {
      if (!unmatched.delete(place)) this.#fault('checkpoint', direction, place)
    }
    if (direction === 'received') unmatched.delete(records.length - 1)
    for (const place of unmatched) this.#fault('checkpoint', direction, place)
  }

  #open(entry: TrailCheckpoint, role: Role): Checkpoint | undefined {
    try {
      return openCheckpoint(this.#crypto, entry.bytes, { context: this.#trail, role })
    } catch (error) {
      if (!isTunnelError(error)) throw error
      return undefined
    }
  }

  /** Recomputes one chain once, and stops at each number that a checkpoint speaks of. */
  #checkChain(direction: Direction, opened: readonly Opened[]): void {
    const records = this.#trail.records[direction]
    const input = new ChainInput(this.#crypto)
    const start = wireDirection(this.#trail, direction)
    let chain = chainStart(this.#crypto, this.#trail.session, start)
    let at = 0
    let agreed = 0
    const claims = opened.map((one) => claimOf(one, direction))
      .sort((one, other) => one.count - other.count)
    for (const { count, value, own } of claims) {
      for (; at < count && at < records.length; at++) chain = input.next(chain, records[at]!)
      if (at !== count || !equal(chain, value)) {
        // All later ones differ too.
        return this.#fault('records', direction, agreed, count - 1)
      }
      // The own signature proves nothing against oneself: it can be made anew.
      if (!own) this.#covered[direction] = agreed = count
    }
  }

  #checkCommitments(direction: Direction, opened: readonly Opened[]): void {
    const list = this.#trail.commitments[direction]
    const start = wireDirection(this.#trail, direction)
    let chain = commitmentsStart(this.#crypto, this.#trail.session, start)
    let at = 0
    let agreed = 0
    const claims = opened.map((one) => commitmentsOf(one, direction))
      .sort((one, other) => one.count - other.count)
    for (const { count, value, bySender, own } of claims) {
      for (; at < count && at < list.length; at++) {
        if (list[at]!.index !== at) return this.#fault('commitments', direction, at)
        chain = nextCommitment(this.#crypto, chain, list[at]!.value)
      }
      // What the peer committed to may still be missing here: contents are read at their own pace.
      if (at < count && bySender && !own) return
      if (at < count || !equal(chain, value)) {
        return this.#fault('commitments', direction, agreed, count - 1)
      }
      if (!own) agreed = count
    }
  }

  #checkOpenings(direction: Direction): void {
    const values = new Map(
      this.#trail.commitments[direction].map(({ index, value }) => [index, value]),
    )
    for (const { index, salt, content } of this.#trail.openings[direction]) {
      const value = values.get(index)
      // Openings may be written before an earlier commitment lets theirs be chained.
      if (!value) continue
      if (!equal(this.#crypto.hmacSha256(salt, content), value)) {
        this.#fault('opening', direction, index)
      }
    }
  }
}

interface Opened extends TrailCheckpoint {
  checkpoint: Checkpoint
}

/** The place among the records of its direction where the one that carried it must be. */
function placeOf({ direction, after }: TrailCheckpoint): number {
  return direction === 'sent' ? after.sent : after.received - 1
}

interface Claim {
  count: number
  value: Uint8Array
  /** True when the checkpoint is of the side that sent the records in question. */
  bySender: boolean
  /** True when it is of the trail's own side. */
  own: boolean
}

/** What a checkpoint says about the records of a direction, seen from the trail's side. */
function claimOf({ direction: from, checkpoint }: Opened, about: Direction): Claim {
  const bySender = from === about
  return {
    count: bySender ? checkpoint.sent : checkpoint.received,
    value: bySender ? checkpoint.sentChain : checkpoint.receivedChain,
    bySender,
    own: from === 'sent',
  }
}

function commitmentsOf({ direction: from, checkpoint }: Opened, about: Direction): Claim {
  const bySender = from === about
  return {
    count: bySender ? checkpoint.sentCommitments : checkpoint.receivedCommitments,
    value: bySender ? checkpoint.sentCommitmentsChain : checkpoint.receivedCommitmentsChain,
    bySender,
    own: from === 'sent',
  }
}

function needIdentities(
  crypto: Crypto,
  trail: Trail,
  identities: readonly (Uint8Array | string)[],
): void {
  const given = identities.map((one) => typeof one === 'string' ? one : fingerprint(crypto, one))
  const found = [trail.initiator, trail.responder].map((one) => fingerprint(crypto, one))
  if (new Set(given).size === 2 && found.every((one) => given.includes(one))) return
  throw new TunnelError(
    'trail/identities',
    `Cannot verify trail: found one between ${found.join(' and ')}, expected ${
      given.join(' and ')
    }`,
    { hint: 'Give the fingerprints of both agents, as sotto peers shows them.' },
  )
}
