/**
 * Pairing by docs/protocol.md §13, with a relay between the two that changes, swaps, reflects,
 * replays and cuts what passes. Whatever it does, neither side takes a peer that did not have the
 * words, and where a proof was wrong both sides learn that somebody guessed.
 */
// runtimes: bun, node, deno
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, EMPTY, hex } from '../../core/bytes.ts'
import type { PairedPeer, PairingOptions } from '../../core/pairing.ts'
import { isPeerName, PAIR, PairingError, PairJoiner, PairMaker } from '../../core/pairing.ts'
import { codeOf, filled, seededCrypto } from '../support/crypto.ts'
import { PAIR_NOW, pairAgent, pairOptions, splitEnvelopes } from '../support/pair.ts'

const test = suite('core/pairing')

const A = pairAgent(1)
const B = pairAgent(2)
const M = pairAgent(3)

interface Outcome {
  peer?: PairedPeer
  code?: string
  burned: boolean
}
/** Changes one message on its way; undefined drops it and ends the stream for its receiver. */
type Middle = (message: Uint8Array, from: 'a' | 'b', index: number) => Uint8Array[] | undefined

const pass: Middle = (message) => [message]

/** Runs both sides until nothing moves. */
function run(
  a: PairJoiner,
  b: PairMaker,
  middle: Middle = pass,
): { a: Outcome; b: Outcome; messages: [from: string, bytes: Uint8Array][] } {
  const sides = { a, b }
  const outcome = { a: { burned: false } as Outcome, b: { burned: false } as Outcome }
  const messages: [string, Uint8Array][] = []
  const queue: ['a' | 'b', Uint8Array][] = []
  const say = (from: 'a' | 'b', bytes: Uint8Array) => {
    for (const message of splitEnvelopes(bytes)) queue.push([from, message])
  }
  say('b', b.start())
  const count = { a: 0, b: 0 }
  while (queue.length > 0) {
    const [from, message] = queue.shift()!
    const to = from === 'a' ? 'b' : 'a'
    messages.push([from, message])
    const changed = middle(message, from, count[from]++)
    if (!changed) break
    for (const one of changed) {
      if (outcome[to].code !== undefined) continue
      try {
        const step = sides[to].receive(one)
        say(to, step.send)
        if (step.peer) outcome[to].peer = step.peer
      } catch (error) {
        assert.instance(error, PairingError)
        outcome[to].code = (error as PairingError).code
        say(to, (error as PairingError).send)
      }
    }
  }
  for (const side of ['a', 'b'] as const) {
    outcome[side].burned = sides[side].burned
    outcome[side].code ??= outcome[side].peer ? undefined! : sides[side].ended()?.code!
  }
  return { ...outcome, messages }
}

function pair(
  ofA: Partial<PairingOptions> = {},
  ofB: Partial<PairingOptions> = {},
  middle: Middle = pass,
) {
  const a = new PairJoiner(pairOptions(A, 'alice', ofA))
  const b = new PairMaker(pairOptions(B, 'bob.work', ofB))
  return run(a, b, middle)
}

/** Nobody took a peer, and the words are gone where a proof was shown. */
function assertGuessed({ a, b }: { a: Outcome; b: Outcome }, message?: string): void {
  assert.is(a.code, 'pair/guessed', `${message}: a`)
  assert.is(b.code, 'pair/guessed', `${message}: b`)
  assert.is(a.peer, undefined)
  assert.is(b.peer, undefined)
  assert.ok(b.burned, 'the code must not serve again')
}

test("two who have the words get each other's passport and name", () => {
  const { a, b, messages } = pair()
  assert.is(a.code, undefined)
  assert.is(b.code, undefined)
  assert.equal(a.peer!.identity, B.identity)
  assert.equal(a.peer!.passportBytes, B.passport)
  assert.is(a.peer!.name, 'bob.work')
  assert.equal(b.peer!.identity, A.identity)
  assert.equal(b.peer!.passport.staticKey, filled(2))
  assert.is(b.peer!.name, 'alice')
  const types = messages.map(([from, bytes]) => `${from} ${bytes[0]!.toString(16)}`)
  assert.equal(types, ['b 20', 'a 21', 'b 22', 'a 23', 'a 24', 'b 24'])
})

test('lengths on the wire are those of docs/protocol.md §13', () => {
  const { messages } = pair()
  const sealed = (passport: Uint8Array, name: string) =>
    4 + 2 + passport.length + 1 + name.length + 16
  assert.equal(messages.map(([, bytes]) => bytes.length), [
    4 + 50,
    4 + 80,
    4 + 96,
    4 + 64,
    sealed(A.passport, 'alice'),
    sealed(B.passport, 'bob.work'),
  ])
})

test('neither passports nor names nor words pass in clear', () => {
  const { messages } = pair()
  const wire = hex(concat(...messages.map(([, bytes]) => bytes)))
  for (const secret of [A.passport, B.passport].map((one) => hex(one.subarray(34, 66)))) {
    assert.not.ok(wire.includes(secret))
  }
  for (const text of ['alice', 'bob.work', 'crop', 'lamp', 'vivid']) {
    assert.not.ok(wire.includes(hex(new TextEncoder().encode(text))), text)
  }
})

test('bytes may come in any pieces', () => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 90 }), { minLength: 1 }), (sizes) => {
      const a = new PairJoiner(pairOptions(A, 'alice'))
      const b = new PairMaker(pairOptions(B, 'bob'))
      const cut: Middle = (message) => {
        const out: Uint8Array[] = []
        for (let at = 0, i = 0; at < message.length; i++) {
          const size = sizes[i % sizes.length]!
          out.push(message.subarray(at, at + size))
          at += size
        }
        return out
      }
      const done = run(a, b, cut)
      assert.ok(done.a.peer && done.b.peer)
    }),
    { numRuns: 20 },
  )
})

test('wrong words: both are told that somebody guessed, and nothing else passed', () => {
  const { messages, ...sides } = pair({ words: 'crop-lamp-vital' })
  assertGuessed(sides)
  assert.not.ok(messages.some(([, bytes]) => bytes[0] === PAIR.sealed), 'no passport left')
})

test('another room, or another relay in between, is a guess too', () => {
  assertGuessed(pair({ room: 8 }), 'room')
  assertGuessed(pair({ relay: filled(0x78) }), 'relay')
})

test('a stranger who looks at the proof and leaves is told as a guess, not as an accident', () => {
  const { a, b } = pair({}, {}, (message) => message[0] === PAIR.confirm_a ? undefined : [message])
  assert.is(b.code, 'pair/guessed')
  assert.ok(b.burned)
  assert.is(a.code, 'pair/truncated')
})

test('in place of its proof nothing passes for less than a guess', () => {
  for (
    const instead of [
      Uint8Array.of(PAIR.failed, 0, 0, 1, 1),
      Uint8Array.of(PAIR.failed, 0, 0, 1, 4),
      Uint8Array.of(PAIR.failed, 0, 0, 1, 0xff),
      Uint8Array.of(0x7f, 0, 0, 0),
      Uint8Array.of(PAIR.confirm_a, 0, 0, 63),
      concat(Uint8Array.of(PAIR.confirm_a, 0, 0, 64), filled(0, 64)),
      concat(Uint8Array.of(PAIR.pake_a, 0, 0, 80), filled(0, 80)),
      concat(Uint8Array.of(PAIR.sealed, 0, 0, 20), filled(0, 20)),
    ]
  ) {
    const { b } = pair({}, {}, (message) => message[0] === PAIR.confirm_a ? [instead] : [message])
    assert.is(b.code, 'pair/guessed', hex(instead))
    assert.is(b.peer, undefined)
  }
})

test('before a proof was shown an end is an accident, and the words may serve again', () => {
  for (const type of [PAIR.greet_b, PAIR.pake_a]) {
    const { a, b } = pair({}, {}, (message) => message[0] === type ? undefined : [message])
    assert.is(a.code, 'pair/truncated')
    assert.is(b.code, 'pair/truncated')
    assert.not.ok(b.burned)
  }
})

test('the stream cut at every byte of every message gives no peer to whom it was cut from', () => {
  const whole = pair().messages
  for (const [index, [from, bytes]] of whole.entries()) {
    // The long passports are sampled, the rest is cut everywhere.
    const step = bytes.length > 120 ? 23 : 1
    for (let length = 0; length < bytes.length; length += step) {
      let seen = -1
      const a = new PairJoiner(pairOptions(A, 'alice', { crypto: seededCrypto('a') }))
      const b = new PairMaker(pairOptions(B, 'bob', { crypto: seededCrypto('b') }))
      const receiver = from === 'a' ? b : a
      const done = run(a, b, (message) => {
        if (++seen < index) return [message]
        if (length > 0) receiver.receive(message.subarray(0, length))
        return undefined
      })
      const cut = from === 'a' ? done.b : done.a
      assert.is(cut.peer, undefined)
      const shown = from === 'a' && index === 3
      assert.is(cut.code, shown ? 'pair/guessed' : 'pair/truncated', `${index} at ${length}`)
    }
    if (bytes.length > 120) break
  }
})

test('a change of any byte of the first four messages is found', () => {
  const whole = pair().messages
  for (let index = 0; index < 4; index++) {
    const length = whole[index]![1].length
    // Each run costs a few multiplications: every third byte, and all of the heads.
    for (let at = 0; at < length; at += at < 6 ? 1 : 5) {
      let seen = -1
      const done = pair({}, {}, (message) => {
        if (++seen !== index) return [message]
        const changed = Uint8Array.from(message)
        changed[at]! ^= 1
        return [changed]
      })
      assert.is(done.a.peer, undefined, `message ${index}, byte ${at}`)
      assert.is(done.b.peer, undefined, `message ${index}, byte ${at}`)
      assert.ok(done.a.code && done.b.code)
    }
  }
})

test('a change of the sealed boxes is found', () => {
  for (const index of [4, 5]) {
    let seen = -1
    const done = pair({}, {}, (message) => {
      if (++seen !== index) return [message]
      const changed = Uint8Array.from(message)
      changed[40]! ^= 0x80
      return [changed]
    })
    const receiver = index === 4 ? done.b : done.a
    assert.is(receiver.code, 'pair/forged')
    assert.is(receiver.peer, undefined)
  }
})

test('a relay that plays both ends with its own shares and no words gets neither passport', () => {
  const a = new PairJoiner(pairOptions(A, 'alice'))
  const b = new PairMaker(pairOptions(B, 'bob'))
  const toA = new PairMaker(pairOptions(M, 'bob', { words: 'zoo-zoo-zoo' }))
  const toB = new PairJoiner(pairOptions(M, 'alice', { words: 'zoo-zoo-zoo' }))
  assertGuessed({ a: run(a, toA).a, b: run(toB, b).b })
})

test('a relay that swaps only Ya or Yb for its own element is a guess', () => {
  const own = new PairJoiner(pairOptions(M, 'm', { words: 'zoo-zoo-zoo' }))
  const stolen = own.receive(new PairMaker(pairOptions(B, 'bob')).start()).send.subarray(52)
  assertGuessed(
    pair({}, {}, (message) => {
      if (message[0] !== PAIR.pake_a) return [message]
      return [concat(message.subarray(0, 52), stolen)]
    }),
    'Ya',
  )
  assertGuessed(
    pair({}, {}, (message) => {
      if (message[0] !== PAIR.pake_b) return [message]
      return [concat(message.subarray(0, 4), stolen, message.subarray(36))]
    }),
    'Yb',
  )
})

test('the identity element, and bytes that are none, are refused on both sides', () => {
  for (const bad of [filled(0), filled(0xff), concat(Uint8Array.of(1), filled(0, 31))]) {
    const atB = pair({}, {}, (message) => {
      return [message[0] === PAIR.pake_a ? concat(message.subarray(0, 52), bad) : message]
    })
    assert.is(atB.b.code, 'pake/element')
    assert.is(atB.a.code, 'pair/refused', 'and A is told')
    assert.not.ok(atB.b.burned, 'no proof was shown')
    const atA = pair({}, {}, (message) => {
      if (message[0] !== PAIR.pake_b) return [message]
      return [concat(message.subarray(0, 4), bad, message.subarray(36))]
    })
    assert.is(atA.a.code, 'pake/element')
    assert.is(atA.b.code, 'pair/guessed', 'its proof was seen')
  }
})

test('an identity swapped in a greeting or an answer is a guess', () => {
  for (const [type, at] of [[PAIR.greet_b, 22], [PAIR.pake_a, 20]] as const) {
    assertGuessed(pair({}, {}, (message) => {
      if (message[0] !== type) return [message]
      const changed = Uint8Array.from(message)
      changed.set(M.identity, at)
      return [changed]
    }))
  }
})

test('an agent that meets itself, or its own message, stops', () => {
  const same = run(
    new PairJoiner(pairOptions(A, 'alice')),
    new PairMaker(pairOptions(A, 'alice')),
  )
  assert.is(same.a.code, 'pair/reflected')
  assert.is(same.b.code, 'pair/reflected')
  const b = new PairMaker(pairOptions(B, 'bob'))
  assert.is(codeOf(() => b.receive(b.start())), 'pair/order')
  const a = new PairJoiner(pairOptions(A, 'alice'))
  const { send } = a.receive(new PairMaker(pairOptions(B, 'bob')).start())
  assert.is(codeOf(() => a.receive(send)), 'pair/order')
})

test('the own share or tag sent back is refused', () => {
  let share: Uint8Array = EMPTY
  const back = pair({}, {}, (message) => {
    if (message[0] === PAIR.pake_a) share = message.subarray(52)
    if (message[0] !== PAIR.pake_b) return [message]
    return [concat(message.subarray(0, 4), share, message.subarray(36))]
  })
  assert.is(back.a.code, 'pake/reflected')
  let tag: Uint8Array = EMPTY
  const tags = pair({}, {}, (message) => {
    if (message[0] === PAIR.pake_b) tag = message.subarray(36)
    return [message[0] === PAIR.confirm_a ? concat(message.subarray(0, 4), tag) : message]
  })
  assert.is(tags.b.code, 'pair/guessed')
  assert.is(tags.b.peer, undefined)
})

test('a run recorded with the right words cannot be played again to either side', () => {
  const { messages } = pair()
  const of = (from: string) => messages.filter(([side]) => side === from).map(([, bytes]) => bytes)
  const b = new PairMaker(pairOptions(B, 'bob'))
  b.start()
  const [pakeA, confirmA] = of('a')
  b.receive(pakeA!)
  assert.is(codeOf(() => b.receive(confirmA!)), 'pair/guessed')
  const a = new PairJoiner(pairOptions(A, 'alice'))
  const [greetB, pakeB] = of('b')
  a.receive(greetB!)
  assert.is(codeOf(() => a.receive(pakeB!)), 'pair/guessed')
})

test('a message that comes twice, early or after the end is out of order', () => {
  for (const type of [PAIR.greet_b, PAIR.pake_a, PAIR.pake_b]) {
    const { a, b } = pair({}, {}, (message) => message[0] === type ? [message, message] : [message])
    assert.not.ok(a.peer && b.peer)
    assert.ok(['pair/order', 'pair/guessed'].includes(type === PAIR.pake_a ? b.code! : a.code!))
  }
  const a = new PairJoiner(pairOptions(A, 'alice'))
  const b = new PairMaker(pairOptions(B, 'bob'))
  const done = run(a, b)
  assert.ok(done.a.peer)
  assert.is(codeOf(() => a.receive(b.start())), 'pair/order')
  assert.is(a.ended()?.code, 'pair/truncated', 'and what followed is not a good end')
  assert.is(b.ended(), undefined)
})

test('another version is named on both sides', () => {
  const { a, b } = pair({}, {}, (message) => {
    const changed = Uint8Array.from(message)
    if (message[0] === PAIR.greet_b) changed[5] = 2
    return [changed]
  })
  assert.is(a.code, 'pair/version')
  assert.is(b.code, 'pair/version')
})

test("a passport that is another's, expired or forged is no peer, though the words were right", () => {
  const forged = Uint8Array.from(A.passport)
  forged[40]! ^= 1
  for (
    const [passport, now, code] of [
      [M.passport, PAIR_NOW, 'passport/signer'],
      [forged, PAIR_NOW, 'passport/forged'],
      [A.passport, PAIR_NOW + 2 * 86_400_000, 'passport/expired'],
      [A.passport, PAIR_NOW - 2 * 86_400_000, 'passport/early'],
      [A.passport.subarray(0, 60), PAIR_NOW, 'passport/size'],
    ] as const
  ) {
    const { a, b } = pair({ passport }, { now })
    assert.is(b.code, code)
    assert.is(b.peer, undefined)
    assert.is(a.code, 'pair/refused')
  }
})

test('names are labels joined by dots', () => {
  for (const name of ['alice', 'work.alice', 'a.b.c', 'x'.repeat(63)]) assert.ok(isPeerName(name))
  for (
    const name of ['', '.', 'a.', '.a', 'a..b', 'Alice', 'a b', 'a/b', '..', 'a\n', 'x'.repeat(64)]
  ) {
    assert.not.ok(isPeerName(name), JSON.stringify(name))
    assert.is(codeOf(() => new PairJoiner(pairOptions(A, name))), 'pair/name')
  }
})

test('the table of messages is unchanged', () => {
  assert.equal({ ...PAIR }, {
    greet_b: 0x20,
    pake_a: 0x21,
    pake_b: 0x22,
    confirm_a: 0x23,
    sealed: 0x24,
    failed: 0x25,
  })
})

test.run()
