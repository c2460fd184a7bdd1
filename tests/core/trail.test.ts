/**
 * Trails and what is found in them offline, docs/protocol.md §12. A session of two ends is run, both
 * trails are written, and then one of them, or what passed between, is tampered with by a table; each
 * row says what must be found and where.
 */
// runtimes: bun, node, deno
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Fault } from '../../core/audit.ts'
import { verifyTrail } from '../../core/audit.ts'
import { concat, hex, utf8 } from '../../core/bytes.ts'
import type { Comparison, Difference } from '../../core/compare.ts'
import { compareTrails } from '../../core/compare.ts'
import { fingerprint } from '../../core/key.ts'
import { encodeTrailHeader, readTrail, redactTrail } from '../../core/trail.ts'
import { codeOf, fast, filled } from '../support/crypto.ts'
import type { Middle } from '../support/transcripts.ts'
import { ALICE, BOB, DATA, Pair, SESSION, START, trailOf } from '../support/transcripts.ts'

const test = suite('core/trail')

const IDS = [ALICE.public, BOB.public]
const HEADER = { session: SESSION, initiator: ALICE.public, responder: BOB.public }
const LENGTHS = [28, 28, 233, 233, 40, 40, 72, 72]

/** Header and entries of a trail. */
function split(trail: Uint8Array): [header: Uint8Array, ...entries: Uint8Array[]] {
  let at = 8 + 16 + 64 + 1 + 8
  at += 1 + trail[at]!
  const header = trail.slice(0, at)
  const entries: Uint8Array[] = []
  while (at < trail.length) {
    const end = at + 1 + LENGTHS[trail[at]! - 1]!
    entries.push(trail.slice(at, end))
    at = end
  }
  return [header, ...entries]
}

/** Places of the entries of a kind. */
function places(entries: Uint8Array[], kind: number): number[] {
  return entries.flatMap((entry, i) => entry[0] === kind ? [i] : [])
}

interface Trails {
  alice: Uint8Array
  bob: Uint8Array
}

/** Twenty records from alice, ten from bob, checkpoints at 10 and at the end, two commitments. */
function session({ middle, whole = true }: { middle?: Middle; whole?: boolean } = {}): Trails {
  const pair = new Pair(middle)
  const say = (count: number) => {
    for (let i = 0; i < count; i++) {
      pair.pass('alice')
      if (i % 2) pair.pass('bob')
    }
  }
  const commit = (text: string) => {
    const content = fast.sha256(utf8(text))
    const { index } = pair.bob.transcript.commitReceived(
      pair.alice.transcript.commit(content).value,
    )
    pair.bob.transcript.openReceived(index, content)
  }
  say(10)
  commit('one')
  pair.check('alice')
  pair.check('bob')
  say(10)
  commit('two')
  if (whole) pair.close()
  return { alice: trailOf(pair.alice), bob: trailOf(pair.bob) }
}

const verify = (trail: Uint8Array) => verifyTrail(fast, trail, IDS)
const compare = ({ alice, bob }: Trails) => compareTrails(fast, [alice, bob], IDS)
const short = ({ differences }: Comparison) =>
  differences.map((one: Difference) =>
    `${one.kind} ${one.subject} ${one.from} ${one.number}+${one.count}${one.at ? ` ${one.at}` : ''}`
  )
const faultsOf = (faults: Fault[]) => faults.map(({ kind }) => kind)

test('two honest trails are sound, complete and the same', () => {
  const trails = session()
  for (const trail of [trails.alice, trails.bob]) {
    const report = verify(trail)
    assert.equal(report.faults, [])
    assert.ok(report.sound && report.complete)
    assert.is(report.service, 'a2a')
    assert.equal(report.checkpoints, { sent: 2, received: 2 })
  }
  const { records, covered } = verify(trails.alice)
  assert.equal(records, { sent: 23, received: 13 })
  assert.equal(covered, { sent: 23, received: 11 })
  const found = compare(trails)
  assert.equal(found.differences, [])
  assert.ok(found.same)
  assert.ok(compareTrails(fast, [trails.bob, trails.alice], IDS).same, 'in any order')
})

test('encodeTrailHeader() and entries are the golden bytes', () => {
  const trail = session().alice
  const [header, ...entries] = split(trail)
  assert.is(
    hex(header),
    '00736f7474' + '6f6101' + '5e'.repeat(16) + hex(ALICE.public) + hex(BOB.public) + '01' +
      '0000018bcfe56800' + '03613261',
  )
  const tag = hex(fast.sha256(utf8('tag 0')).subarray(0, 16))
  assert.is(hex(entries[0]!), '01' + '00'.repeat(8) + '11' + '0003e8' + tag)
  assert.equal(concat(header, ...entries), trail)
  assert.is(
    codeOf(() =>
      encodeTrailHeader({ ...HEADER, session: filled(1), role: 'initiator', start: 0, service: '' })
    ),
    'trail/length',
  )
})

test("fingerprints are enough to verify, and others' are refused", () => {
  const { alice } = session()
  const prints = IDS.map((one) => fingerprint(fast, one))
  assert.ok(verifyTrail(fast, alice, prints).sound)
  assert.ok(verifyTrail(fast, alice, prints.toReversed()).sound)
  const stranger = fast.ed25519Public(filled(5))
  for (
    const ids of [[ALICE.public], [ALICE.public, stranger], [ALICE.public, ALICE.public], [], [
      ...IDS,
      stranger,
    ]]
  ) {
    assert.is(codeOf(() => verifyTrail(fast, alice, ids)), 'trail/identities')
  }
})

test('a trail cut at any byte is sound, and never complete', () => {
  const { alice, bob } = session()
  for (const trail of [alice, bob]) {
    const [header] = split(trail)
    for (let length = 0; length < header.length; length++) {
      const code = codeOf(() => verify(trail.subarray(0, length)))
      assert.ok(['trail/truncated'].includes(code!), `${length}: ${code}`)
    }
    for (let length = header.length; length < trail.length; length += 3) {
      const report = verify(trail.subarray(0, length))
      assert.equal(report.faults, [], `${length}`)
      assert.not.ok(report.complete)
    }
    assert.is(verify(trail.subarray(0, trail.length - 1)).tornBytes, 28)
  }
})

/** What is done to alice's trail, and what verifying it alone must find. */
const TAMPERED: [name: string, edit: (entries: Uint8Array[]) => void, kinds: string[]][] = [
  ['a record is changed', (entries) => void (entries[places(entries, 1)[3]!]![28]! ^= 1), [
    'records',
  ]],
  [
    'its length is changed',
    (entries) => void (entries[places(entries, 1)[3]!]![12]! ^= 1),
    ['records'],
  ],
  ['a received record is changed', (entries) => {
    entries[places(entries, 2)[3]!]![20]! ^= 1
  }, ['records']],
  ['a record is taken out', (entries) => void entries.splice(places(entries, 1)[3]!, 1), [
    'counter',
    'checkpoint',
    'records',
  ]],
  ['a record is put in', (entries) => {
    const at = places(entries, 1)[3]!
    entries.splice(at, 0, entries[at]!)
  }, ['counter', 'records', 'checkpoint']],
  ['two records change places', (entries) => {
    const [one, other] = places(entries, 1).slice(3)
    const kept = entries[one!]!
    entries[one!] = entries[other!]!
    entries[other!] = kept
  }, ['counter', 'records']],
  ['two records change places and numbers', (entries) => {
    const [one, other] = places(entries, 1).slice(3)
    const kept = entries[one!]!.slice(9)
    entries[one!]!.set(entries[other!]!.subarray(9), 9)
    entries[other!]!.set(kept, 9)
  }, ['records']],
  ['a checkpoint is changed', (entries) => {
    entries[places(entries, 4)[0]!]![1]! ^= 1
  }, ['signature']],
  ['a checkpoint of the own side is taken out', (entries) => {
    entries.splice(places(entries, 3)[0]!, 1)
  }, ['checkpoint']],
  ['a checkpoint of the other side is taken out', (entries) => {
    entries.splice(places(entries, 4)[0]!, 1)
  }, ['checkpoint']],
  ['a checkpoint comes twice', (entries) => {
    const at = places(entries, 4)[0]!
    entries.splice(at, 0, entries[at]!)
  }, ['checkpoint']],
  ['a checkpoint is moved', (entries) => {
    const [entry] = entries.splice(places(entries, 3)[0]!, 1)
    entries.splice(2, 0, entry!)
  }, ['checkpoint']],
  ['a commitment is changed', (entries) => {
    entries[places(entries, 5)[0]!]![20]! ^= 1
  }, ['commitments', 'opening']],
  ['a commitment is taken out', (entries) => {
    entries.splice(places(entries, 5)[0]!, 1)
  }, ['commitments']],
  ['an opening is changed', (entries) => {
    entries[places(entries, 7)[1]!]![60]! ^= 1
  }, ['opening']],
]

for (const [name, edit, kinds] of TAMPERED) {
  test(`verifyTrail() finds that ${name}`, () => {
    const trails = session()
    const [header, ...entries] = split(trails.alice)
    edit(entries)
    const changed = concat(header, ...entries)
    assert.not.equal(changed, trails.alice, 'the row does something')
    const report = verify(changed)
    assert.not.ok(report.sound)
    for (const kind of kinds) assert.ok(faultsOf(report.faults).includes(kind as never), kind)
    assert.not.ok(compare({ ...trails, alice: changed }).same)
    assert.ok(compare({ ...trails, alice: changed }).reports.responder.sound)
  })
}

test('a fault of records lies between the last checkpoint that agrees and the first that does not', () => {
  for (const [place, from, to] of [[3, 0, 9], [15, 10, 20]] as const) {
    const [header, ...entries] = split(session().alice)
    entries[places(entries, 1)[place]!]![28]! ^= 1
    const fault = verify(concat(header, ...entries)).faults.find(({ kind }) => kind === 'records')!
    assert.is(fault.direction, 'sent')
    assert.ok(fault.from >= from && fault.from <= place, `${fault.from}`)
    assert.ok(fault.to <= to + 2 && fault.to >= place, `${fault.to}`)
  }
})

test('who rewrites its own trail and signs it anew is caught by what the other signed', () => {
  const [header, ...entries] = split(session().alice)
  const { alice } = new Pair()
  const { transcript, trail } = alice
  for (const [at, entry] of entries.entries()) {
    const [kind] = entry
    const record = () => {
      const [one] = readTrail(concat(header, entry)).records[kind === 1 ? 'sent' : 'received']
      const forged = at === places(entries, 1)[3] ? { ...one!, tag: filled(7, 16) } : one!
      transcript.record(kind === 1 ? 'sent' : 'received', forged)
    }
    if (kind === 1 || kind === 2) record()
    else if (kind === 3) transcript.checkpoint(START, { final: at === places(entries, 3)[1] })
    else if (kind === 5) {
      transcript.commit(fast.sha256(utf8(at === places(entries, 5)[0] ? 'one' : 'two')))
    } else if (kind === 4) trail.push(entry)
  }
  const forged = trailOf(alice)
  assert.is(forged.length, concat(header, ...entries).length, 'it is whole')
  const report = verify(forged)
  assert.equal(report.faults, [{ kind: 'records', direction: 'sent', from: 0, to: 10 }])
})

/** What happens on the way or to bob's trail, and what comparing must say. */
const COMPARED: [name: string, make: () => Trails, expected: string[]][] = [
  ['modified on the way', () =>
    session({
      whole: false,
      middle: (record, from) =>
        from === 'alice' && record.counter === 17 ? { ...record, tag: filled(1, 16) } : record,
    }), ['modified record initiator 17+1']],
  ['another type on the way', () =>
    session({
      whole: false,
      middle: (record, from) =>
        from === 'bob' && record.counter === 8 ? { ...record, type: 0x12 } : record,
    }), ['modified record responder 8+1']],
  ['dropped on the way', () =>
    session({
      whole: false,
      middle: (record, from) => from === 'alice' && record.counter === 15 ? null : record,
    }), ['dropped record initiator 15+1']],
  ['three dropped', () =>
    session({
      whole: false,
      middle: (record, from) =>
        from === 'alice' && record.counter >= 14 && record.counter < 17 ? null : record,
    }), ['dropped record initiator 14+3']],
  ['the end cut off', () =>
    session({
      whole: false,
      middle: (record, from) => from === 'alice' && record.counter >= 18 ? null : record,
    }), ['truncated record initiator 18+3 responder']],
  ["modified in bob's file", () =>
    edited((entries) => {
      entries[places(entries, 2)[4]!]![25]! ^= 1
    }), ['modified record initiator 4+1']],
  ["dropped from bob's file", () =>
    edited((entries) => {
      entries.splice(places(entries, 2)[4]!, 1)
    }), ['dropped record initiator 4+1']],
  ["dropped from bob's file and renumbered", () =>
    edited((entries) => {
      entries.splice(places(entries, 2)[4]!, 1)
      renumber(entries)
    }), ['dropped record initiator 4+1']],
  ["injected into bob's file", () =>
    edited((entries) => {
      entries.splice(places(entries, 2)[4]!, 0, forgedRecord(4))
    }), ['injected record initiator 4+1']],
  ['injected and renumbered', () =>
    edited((entries) => {
      entries.splice(places(entries, 2)[4]!, 0, forgedRecord(4))
      renumber(entries)
    }), ['injected record initiator 4+1']],
  ['replayed', () =>
    edited((entries) => {
      const [, one, other] = places(entries, 2).slice(3)
      entries.splice(other!, 0, entries[one!]!)
    }), ['injected record initiator 4+1']],
  ['injected behind the end', () =>
    edited((entries) => {
      entries.push(forgedRecord(23))
    }), ['injected record initiator 23+1']],
  ["reordered in bob's file", () =>
    edited((entries) => {
      const [one, other] = places(entries, 2).slice(4)
      const kept = entries[one!]!
      entries[one!] = entries[other!]!
      entries[other!] = kept
    }), ['reordered record initiator 4+1']],
  ['reordered and renumbered', () =>
    edited((entries) => {
      const [one, , , other] = places(entries, 2).slice(4)
      const [moved] = entries.splice(one!, 1)
      entries.splice(other!, 0, moved!)
      renumber(entries)
    }), ['reordered record initiator 4+1']],
  ["bob's file cut short", () =>
    edited((entries) => {
      entries.splice(places(entries, 2)[20]!)
    }), ['truncated record initiator 20+3 responder']],
  ["alice's file cut short", () => {
    const { alice, bob } = session()
    const [header, ...entries] = split(alice)
    return { alice: concat(header, ...entries.slice(0, places(entries, 1)[20]!)), bob }
  }, ['truncated record initiator 20+3 initiator']],
  ["a commitment of bob's file is another", () =>
    edited((entries) => {
      entries[places(entries, 6)[1]!]![30]! ^= 1
    }), ['modified commitment initiator 1+1']],
  ['a commitment is missing', () =>
    edited((entries) => {
      entries.splice(places(entries, 6)[0]!, 1)
    }), ['dropped commitment initiator 0+1']],
  ['modified and dropped side by side', () =>
    edited((entries) => {
      entries[places(entries, 2)[6]!]![25]! ^= 1
      entries.splice(places(entries, 2)[7]!, 1)
    }), ['modified record initiator 6+1', 'dropped record initiator 7+1']],
]

function edited(edit: (entries: Uint8Array[]) => void): Trails {
  const { alice, bob } = session()
  const [header, ...entries] = split(bob)
  edit(entries)
  return { alice, bob: concat(header, ...entries) }
}

function forgedRecord(counter: number): Uint8Array {
  return concat(
    Uint8Array.of(2, 0, 0, 0, 0, 0, 0, 0, counter, DATA, 0, 3, 0xe8),
    filled(0xcc, 16),
  )
}

function renumber(entries: Uint8Array[]): void {
  for (const [number, at] of places(entries, 2).entries()) {
    entries[at] = Uint8Array.from(entries[at]!)
    entries[at]![8] = number
  }
}

for (const [name, make, expected] of COMPARED) {
  test(`compareTrails(): ${name}`, () => {
    const found = compare(make())
    const first = short(found).slice(0, expected.length)
    assert.equal(first, expected, short(found).join(', '))
    if (!name.includes('cut short')) assert.is(found.differences.length, expected.length)
    assert.not.ok(found.same)
  })
}

test('compareTrails() tells all kinds apart wherever they are', () => {
  const kinds = fc.constantFrom('modified', 'dropped', 'injected', 'reordered')
  fc.assert(
    fc.property(kinds, fc.nat(20), (kind, at) => {
      const found = compare(edited((entries) => {
        const [one, next] = places(entries, 2).slice(at)
        if (kind === 'modified') entries[one!]![25]! ^= 1
        else if (kind === 'dropped') entries.splice(one!, 1)
        else if (kind === 'injected') entries.splice(one!, 0, forgedRecord(at))
        else [entries[one!], entries[next!]] = [entries[next!]!, entries[one!]!]
      }))
      assert.equal(short(found), [`${kind} record initiator ${at}+1`])
    }),
    { numRuns: 60 },
  )
})

test('compareTrails() refuses what are not the two sides of one session', () => {
  const { alice, bob } = session()
  assert.is(codeOf(() => compareTrails(fast, [alice, alice], IDS)), 'trail/pair')
  const [header, ...entries] = split(bob)
  for (const at of [8, 24, 56, 98]) {
    const other = Uint8Array.from(header)
    other[at]! ^= 1
    const trails = [alice, concat(other, ...entries)] as const
    assert.is(codeOf(() => compareTrails(fast, trails, IDS)), 'trail/pair', `${at}`)
  }
})

test('readTrail() names what is no trail', () => {
  const { alice } = session()
  const changed = (at: number, value: number) => {
    const out = Uint8Array.from(alice)
    out[at] = value
    return out
  }
  const header = split(alice)[0].length
  assert.is(codeOf(() => readTrail(utf8('{"hello":"world"}'))), 'trail/magic')
  assert.is(codeOf(() => readTrail(changed(7, 2))), 'trail/magic')
  assert.is(codeOf(() => readTrail(changed(88, 3))), 'trail/role')
  assert.is(codeOf(() => readTrail(changed(header, 9))), 'trail/entry')
  assert.is(codeOf(() => readTrail(changed(header, 0))), 'trail/entry')
  assert.is(codeOf(() => readTrail(changed(header + 1, 0xff))), 'trail/range')
})

test('readTrail() throws nothing but its own errors on any bytes', () => {
  const { alice } = session()
  fc.assert(
    fc.property(fc.nat(alice.length - 1), fc.nat(255), fc.nat(alice.length), (at, to, cut) => {
      const bytes = alice.slice(0, cut)
      if (at < cut) bytes[at] = to
      codeOf(() => verify(bytes))
      codeOf(() => redactTrail(bytes))
    }),
    { numRuns: 300 },
  )
})

test('redactTrail() leaves out openings but those to show, and a torn end', () => {
  const { alice } = session()
  assert.is(readTrail(alice).openings.sent.length, 2)
  const bare = redactTrail(concat(alice, Uint8Array.of(1, 2, 3)))
  assert.equal(readTrail(bare).openings.sent, [])
  assert.ok(verify(bare).sound && verify(bare).complete)
  const one = redactTrail(alice, (direction, index) => direction === 'sent' && index === 1)
  const { openings, commitments } = readTrail(one)
  assert.equal(openings.sent.map(({ index }) => index), [1])
  const { salt, content } = openings.sent[0]!
  assert.equal(content, fast.sha256(utf8('two')))
  assert.equal(fast.hmacSha256(salt, content), commitments.sent[1]!.value)
  assert.not.ok(hex(bare).includes(hex(content)))
})

test('a long trail is verified and compared in time that grows with its length', () => {
  const pair = new Pair((record, from) =>
    from === 'alice' && record.counter === 9000 ? { ...record, type: 0x12 } : record
  )
  for (let i = 0; i < 4; i++) {
    for (let n = 0; n < 4000; n++) pair.pass('alice')
    const step = pair.check('bob')
    if (step.trace) break
  }
  const found = compare({ alice: trailOf(pair.alice), bob: trailOf(pair.bob) })
  assert.equal(short(found), ['modified record initiator 9000+1'])
  assert.is(found.reports.initiator.faults[0]!.kind, 'records')
})

test.run()
