/**
 * Comparing the two sides' trails of one session: records modified, dropped, injected, reordered,
 * truncated, and at which number. Whose trail lies is for the signatures in each to say.
 * docs/protocol.md §12.
 */
import type { TrailReport } from './audit.ts'
import { FINDINGS_MAX, judgeTrail } from './audit.ts'
import { equal, hex } from './bytes.ts'
import type { Role } from './chain.ts'
import type { Crypto } from './crypto.ts'
import { TunnelError } from './errors.ts'
import type { TrailRecord } from './trail.ts'
import { readTrail } from './trail.ts'
import type { Commitment } from './transcript.ts'

export type DifferenceKind = 'modified' | 'dropped' | 'injected' | 'reordered' | 'truncated'

export interface Difference {
  kind: DifferenceKind
  subject: 'record' | 'commitment'
  /** Whose records they are: who sent them. */
  from: Role
  /** The number of the first one; by the sender's count, or the receiver's where it never sent it. */
  number: number
  /** How many, in a row. */
  count: number
  /** `truncated`: whose trail ends too early. */
  at?: Role
}

export interface Comparison {
  /** True when both trails are sound and say the same to their ends. */
  same: boolean
  differences: Difference[]
  /** Also those that are not listed. */
  differenceCount: number
  reports: Readonly<Record<Role, TrailReport>>
}

/**
 * Compares the two sides' trails of one session, in any order. `identities` as in `verifyTrail`.
 * Throws `trail/pair` when they are not the two sides of one session, and what `verifyTrail` throws.
 */
export function compareTrails(
  crypto: Crypto,
  [one, other]: readonly [Uint8Array, Uint8Array],
  identities: readonly (Uint8Array | string)[],
): Comparison {
  const trails = [readTrail(one), readTrail(other)]
  const initiator = trails.find(({ role }) => role === 'initiator')
  const responder = trails.find(({ role }) => role === 'responder')
  if (
    !initiator || !responder || !equal(initiator.session, responder.session) ||
    !equal(initiator.initiator, responder.initiator) ||
    !equal(initiator.responder, responder.responder) || initiator.service !== responder.service
  ) {
    throw new TunnelError(
      'trail/pair',
      'Cannot compare trails: found two that are not the two sides of one session',
    )
  }
  const reports = {
    initiator: judgeTrail(crypto, initiator, identities),
    responder: judgeTrail(crypto, responder, identities),
  }
  const found = new Differences()
  for (
    const [from, sender, receiver] of [
      ['initiator', initiator, responder],
      ['responder', responder, initiator],
    ] as const
  ) {
    const context = { found, from, senderEnded: reports[from].complete }
    compareLists(sender.records.sent, receiver.records.received, {
      ...context,
      subject: 'record',
      item: recordItem,
    })
    compareLists(sender.commitments.sent, receiver.commitments.received, {
      ...context,
      subject: 'commitment',
      item: commitmentItem,
    })
  }
  const sound = reports.initiator.sound && reports.responder.sound
  return {
    same: sound && found.count === 0,
    differences: found.list,
    differenceCount: found.count,
    reports,
  }
}

/** What is compared: `key` is the whole of it but its number. */
interface Item {
  number: number
  key: string
}

function recordItem({ counter, type, length, tag }: TrailRecord): Item {
  return { number: counter, key: `${type} ${length} ${hex(tag)}` }
}

function commitmentItem({ index, value }: Commitment): Item {
  return { number: index, key: hex(value) }
}

class Differences {
  readonly list: Difference[] = []
  count = 0

  add(difference: Omit<Difference, 'count'>): void {
    this.count++
    const last = this.list.at(-1)
    if (
      last && last.kind === difference.kind && last.subject === difference.subject &&
      last.from === difference.from && last.at === difference.at &&
      last.number + last.count === difference.number
    ) last.count++
    else if (this.list.length < FINDINGS_MAX) this.list.push({ ...difference, count: 1 })
  }
}

interface CompareContext<T> {
  found: Differences
  subject: 'record' | 'commitment'
  from: Role
  /** True when the sender's trail ends as the session did. */
  senderEnded: boolean
  item(one: T): Item
}

/**
 * Aligns both lists on what they have in common and in order, then judges what lies between. What is
 * common is found by content, so that a renumbered file hides nothing.
 */
function compareLists<T>(sent: T[], received: T[], context: CompareContext<T>): void {
  const { item, found, subject, from, senderEnded } = context
  let head = 0
  for (const end = Math.min(sent.length, received.length); head < end; head++) {
    const [one, other] = [item(sent[head]!), item(received[head]!)]
    if (one.number !== other.number || one.key !== other.key) break
  }
  const left = sent.slice(head).map(item)
  const right = received.slice(head).map(item)
  const { anchors, moved } = align(left, right)
  const report: Report = (kind, number, at) =>
    found.add({ kind, subject, from, number, ...(at && { at }) })
  let [i, j] = [0, 0]
  for (const [toI, toJ] of [...anchors, [left.length, right.length] as const]) {
    const only = left.slice(i, toI).filter((_, at) => !moved.left.has(i + at))
    const extra = right.slice(j, toJ).filter((_, at) => !moved.right.has(j + at))
    const last = toI === left.length && toJ === right.length
    judgeGap(only, extra, { report, from, last, senderEnded })
    const [one, other] = [left[toI], right[toJ]]
    // The same content in the same place under another number.
    if (one && other && toI === toJ && one.number !== other.number) report('modified', one.number)
    i = toI + 1
    j = toJ + 1
  }
  for (const at of [...moved.left].sort((one, other) => one - other)) {
    report('reordered', left[at]!.number)
  }
}

type Report = (kind: DifferenceKind, number: number, at?: Role) => void

/** Between two anchors: what has its counterpart by number was modified, the rest came or went. */
function judgeGap(
  only: Item[],
  extra: Item[],
  { report, from, last, senderEnded }: {
    report: Report
    from: Role
    /** Nothing that both have follows. */
    last: boolean
    senderEnded: boolean
  },
): void {
  const byNumber = new Map<number, Item[]>()
  for (const item of extra) {
    const list = byNumber.get(item.number)
    if (list) list.push(item)
    else byNumber.set(item.number, [item])
  }
  const modified = new Set<Item>()
  const gone: Item[] = []
  for (const item of only) {
    const counterpart = byNumber.get(item.number)?.shift()
    if (!counterpart) gone.push(item)
    else {
      modified.add(counterpart)
      report('modified', item.number)
    }
  }
  const come = extra.filter((item) => !modified.has(item))
  for (const { number } of gone) {
    // At the end nothing was lost but what was still on its way, or cut off the file.
    if (last && come.length === 0) report('truncated', number, other(from))
    else report('dropped', number)
  }
  for (const { number } of come) {
    // Where the sender's own trail has no end, it is that trail which lacks something.
    if (last && gone.length === 0 && !senderEnded) report('truncated', number, from)
    else report('injected', number)
  }
}

function other(role: Role): Role {
  return role === 'initiator' ? 'responder' : 'initiator'
}

/**
 * Pairs of places that hold the same content in both lists, ascending in both and as many as can be;
 * and the places whose content is in both and out of order.
 */
function align(
  left: Item[],
  right: Item[],
): { anchors: [number, number][]; moved: { left: Set<number>; right: Set<number> } } {
  const places = new Map<string, number[]>()
  for (const [j, { key }] of right.entries()) {
    const list = places.get(key)
    if (list) list.push(j)
    else places.set(key, [j])
  }
  const pairs: [number, number][] = []
  for (const [i, { key }] of left.entries()) {
    // Of doubles the first counts; the others are left over, and so injected or dropped.
    const j = places.get(key)?.shift()
    if (j !== undefined) pairs.push([i, j])
  }
  const kept = longestAscending(pairs.map(([, j]) => j))
  const moved = { left: new Set<number>(), right: new Set<number>() }
  for (const [at, [i, j]] of pairs.entries()) {
    if (kept.has(at)) continue
    moved.left.add(i)
    moved.right.add(j)
  }
  return { anchors: pairs.filter((_, at) => kept.has(at)), moved }
}

/** Places of a longest ascending choice among different numbers (patience sorting). */
function longestAscending(numbers: number[]): Set<number> {
  const tails: number[] = []
  const before: number[] = []
  for (const [at, value] of numbers.entries()) {
    let [low, high] = [0, tails.length]
    while (low < high) {
      const middle = (low + high) >> 1
      if (numbers[tails[middle]!]! < value) low = middle + 1
      else high = middle
    }
    before[at] = low > 0 ? tails[low - 1]! : -1
    tails[low] = at
  }
  const chosen = new Set<number>()
  for (let at = tails.at(-1) ?? -1; at >= 0; at = before[at]!) chosen.add(at)
  return chosen
}
