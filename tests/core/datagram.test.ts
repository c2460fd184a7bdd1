/**
 * docs/protocol.md §11: each counter once, within a window of 8,192 behind the highest that was
 * authentic (RFC 6479), and keys that change every 2^24 counters.
 */
// runtimes: bun, node, deno
import * as fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { EMPTY, hex, text, utf8 } from '../../core/bytes.ts'
import {
  DATAGRAM_CONTENT_BYTES_MAX,
  DatagramOpener,
  Datagrams,
  DatagramSealer,
  EPOCH_COUNTERS,
  EPOCHS_AHEAD_MAX,
} from '../../core/datagram.ts'
import { CipherState } from '../../core/noise.ts'
import { REPLAY_WINDOW, ReplayWindow } from '../../core/replay.ts'
import { codeOf, fast, filled } from '../support/crypto.ts'

const test = suite('core/datagram')
const cipher = (byte = 1): CipherState =>
  new CipherState({ crypto: fast, suite: 'chachapoly', key32: filled(byte) })

// As wireguard-go's replay_test.go has it, for a window of 8,192.
const W = REPLAY_WINDOW
const TABLE: [name: string, steps: [counter: number, isTaken: boolean][]][] = [
  ['from 0', [[0, true], [1, true], [1, false], [9, true], [8, true], [7, true], [7, false]]],
  ['edge of the window', [[W - 1, true], [0, true], [0, false], [W, true], [0, false], [1, true]]],
  ['one too old', [[W, true], [0, false], [1, true], [1, false]]],
  ['word edges', [[31, true], [32, true], [31, false], [32, false], [63, true], [64, true]]],
  ['a leap over the window', [[5, true], [3 * W, true], [5, false], [2 * W, false], [
    2 * W + 1,
    true,
  ]]],
  ['a leap of one ring', [[1, true], [2 * W + 1, true], [W + 2, true], [W + 1, false]]],
  ['a leap of two rings', [[7, true], [4 * W + 7, true], [4 * W + 6, true], [4 * W + 7, false]]],
  ['forward by one, again and again', Array.from({ length: 3 * W }, (_, i) => [i, true])],
  ['backward from the top', Array.from({ length: W }, (_, i) => [W - 1 - i, true])],
  ['the largest', [[2 ** 53 - 2, true], [2 ** 53 - 2, false], [2 ** 53 - 3, true], [0, false]]],
]

for (const [name, steps] of TABLE) {
  test(`the window: ${name}`, () => {
    const window = new ReplayWindow()
    for (const [counter, isTaken] of steps) {
      assert.is(window.isFresh(counter), isTaken, `${counter}`)
      assert.is(window.take(counter), isTaken, `${counter}`)
      assert.is(window.isFresh(counter), false)
    }
  })
}

test('the window agrees with a slow twin', () => {
  const step = fc.oneof(
    fc.integer({ min: -9000, max: 9000 }),
    fc.integer({ min: -40, max: 40 }),
    fc.integer({ min: 0, max: 40_000 }),
    fc.constantFrom(-W - 1, -W, -W + 1, W - 1, W, W + 1, 2 * W, -31, -32, -33),
  )
  fc.assert(
    fc.property(fc.nat(20_000), fc.array(step, { maxLength: 200 }), (start, steps) => {
      const window = new ReplayWindow()
      const seen = new Set<number>()
      let highest = -1
      for (const delta of [start, ...steps]) {
        const counter = Math.max(0, highest + delta)
        const expected = !seen.has(counter) && counter > highest - W
        assert.is(window.take(counter), expected)
        if (expected) seen.add(counter)
        highest = Math.max(highest, seen.has(counter) ? counter : -1)
        assert.is(window.highest, highest)
      }
    }),
    { numRuns: 500 },
  )
})

test('a datagram is its counter, ciphertext and tag', () => {
  const sealer = new DatagramSealer(cipher())
  sealer.seal(utf8('first'))
  const found = sealer.seal(utf8('second'))
  const sealed = fast.chachaPolySeal({
    key32: filled(1),
    nonce12: new Uint8Array([0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]),
    associated: EMPTY,
    plaintext: utf8('second'),
  })
  assert.is(hex(found), '0000000000000001' + hex(sealed))
})

test('in any order, each once; forged ones move nothing', () => {
  const sealer = new DatagramSealer(cipher())
  const opener = new DatagramOpener(cipher())
  const sent = Array.from({ length: 40 }, (_, i) => sealer.seal(utf8(`${i}`)))
  assert.is(text(opener.open(sent[39]!)), '39')
  assert.is(text(opener.open(sent[3]!)), '3')
  assert.is(codeOf(() => opener.open(sent[3]!)), 'datagram/replayed')
  const before = opener.highest
  // Every bit of one that is new, counters far ahead among them.
  const next = sealer.seal(utf8('x'))
  for (let bit = 0; bit < next.length * 8; bit++) {
    const wrong = next.slice()
    wrong[bit >> 3]! ^= 1 << (bit & 7)
    const code = codeOf(() => opener.open(wrong))
    assert.ok(/^datagram\/(forged|ahead|replayed)$/.test(code!), `${bit}: ${code}`)
    assert.is(opener.highest, before)
  }
  for (let length = 0; length < next.length; length++) {
    const code = codeOf(() => opener.open(next.subarray(0, length)))
    assert.is(code, length < 24 ? 'datagram/size' : 'datagram/forged')
  }
  assert.is(text(opener.open(next)), 'x')
  assert.is(codeOf(() => opener.open(new Uint8Array(65_535))), 'datagram/size')
})

test('each epoch has a key of its own; 16 ahead are made and no more', () => {
  /** Sealed as a sender does that has sent so many before. */
  function at(counter: number): Uint8Array {
    let key = cipher()
    for (let epoch = 0; epoch < Math.floor(counter / EPOCH_COUNTERS); epoch++) key = key.rekeyed()
    const out = new Uint8Array(24 + 1)
    const view = new DataView(out.buffer)
    view.setUint32(0, Math.floor(counter / 2 ** 32))
    view.setUint32(4, counter >>> 0)
    out.set(key.sealAt(counter, EMPTY, utf8('x')), 8)
    return out
  }
  const opener = new DatagramOpener(cipher())
  const E = EPOCH_COUNTERS
  assert.is(text(opener.open(at(E - 2))), 'x')
  assert.is(text(opener.open(at(E))), 'x')
  assert.is(text(opener.open(at(E - 1))), 'x', 'back over the edge')
  assert.is(text(opener.open(at(2 * E + 1))), 'x')
  assert.is(codeOf(() => opener.open(at(E + 1))), 'datagram/replayed', 'older than the window')
  assert.is(codeOf(() => opener.open(at((3 + EPOCHS_AHEAD_MAX) * E))), 'datagram/ahead')
  assert.is(text(opener.open(at((2 + EPOCHS_AHEAD_MAX) * E))), 'x')
  assert.is(text(opener.open(at((2 + EPOCHS_AHEAD_MAX) * E - 1))), 'x')
  const high = new Uint8Array(25).fill(255)
  assert.is(codeOf(() => opener.open(high)), 'datagram/ahead')
  // The sealer does the same, counter by counter.
  const slow = new DatagramSealer(cipher())
  assert.is(hex(slow.seal(utf8('x'))), hex(at(0)))
})

test('what is too long is refused before it is numbered', () => {
  const sealer = new DatagramSealer(cipher())
  assert.is(codeOf(() => sealer.seal(new Uint8Array(65_511))), 'datagram/size')
  assert.is(sealer.counter, 0)
  assert.is(sealer.seal(new Uint8Array(DATAGRAM_CONTENT_BYTES_MAX)).length, 65_534)
})

test('a new carrier goes on with the counters, and forged datagrams are counted alone', () => {
  const a = new Datagrams(cipher(1), cipher(2))
  const b = new Datagrams(cipher(2), cipher(1))
  const sent: Uint8Array[] = []
  const carrier = () => ({
    sendPacket(bytes: Uint8Array) {
      sent.push(bytes)
      return 'ok' as const
    },
  })
  assert.is(a.send(utf8('x')), 'lost')
  a.attach(carrier())
  a.send(utf8('1'))
  a.attach(carrier())
  a.send(utf8('2'))
  assert.equal(sent.map((one) => one[7]), [0, 1])
  const got: string[] = []
  b.onDatagram = (content) => void got.push(text(content))
  const far: ReturnType<typeof carrier> & { onPacket?: (bytes: Uint8Array) => void } = carrier()
  b.attach(far)
  for (const one of [sent[1]!, sent[0]!, sent[0]!, new Uint8Array(40)]) far.onPacket!(one)
  assert.equal([got, b.refused], [['2', '1'], 2])
  // Its own datagrams come back.
  b.send(utf8('mine'))
  far.onPacket!(sent[2]!)
  assert.equal([got.length, b.refused], [2, 3])
})

test.run()
