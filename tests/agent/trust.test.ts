/**
 * Whom an agent believes: pins, successors, revocations and authorities, judged from statements that a
 * relay hands out, keeps back, repeats and forges. Everything is signed for real; the relay is a map,
 * which is all that it may be here: it makes nothing and decides nothing.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { TunnelError } from '../../core/errors.ts'
import { rejection } from '../support/rejection.ts'
import {
  EVERYBODY,
  FOUR,
  HOUR_MS,
  keyOf,
  ONE,
  openBench,
  OPS,
  OPS2,
  OTHER,
  printOf,
  revocation,
  rotation,
  START_MS,
  THREE,
  TWO,
  vouch,
  withdrawal,
} from '../support/trust_bench.ts'

const test = suite('agent/trust')

interface Case {
  name: string
  /** Pins of `web`: number, and how. */
  pins?: [number, ('first-use' | 'manual' | 'code' | 'rotation')?][]
  authorities?: [string, number][]
  statements?: [number[], Uint8Array][]
  serves: number[]
  /** Numbers that are trusted, or the code that stops it. */
  gives: number[] | string
  first?: boolean
  how?: string
  /** Whose fingerprints the person is shown when it stops. */
  names?: number[]
  moved?: [number, number]
}

const BY_OPS = { authorities: [['ops', OPS]] as [string, number][] }

const CASES: Case[] = [
  { name: 'a pin that serves', pins: [[ONE]], serves: [ONE], gives: [ONE], how: 'manual' },
  { name: 'nobody pinned: first use', serves: [ONE], gives: [ONE], first: true, how: 'first-use' },
  { name: 'nobody pinned, a pool', serves: [ONE, TWO], gives: [ONE, TWO], first: true },
  { name: 'another one', pins: [[ONE]], serves: [TWO], gives: 'trust/changed', names: [ONE, TWO] },
  {
    name: 'another one, where first use pinned',
    pins: [[ONE, 'first-use']],
    serves: [TWO],
    gives: 'trust/changed',
    names: [ONE, TWO],
  },
  { name: 'one of a pool', pins: [[ONE], [TWO]], serves: [TWO, THREE], gives: [TWO] },
  { name: 'nobody', serves: [], gives: 'trust/none' },
  { name: 'nobody, where one is pinned', pins: [[ONE]], serves: [], gives: 'trust/none' },
  {
    name: 'a pin that revoked itself',
    pins: [[ONE]],
    statements: [[[ONE], revocation(ONE)]],
    serves: [ONE],
    gives: 'trust/revoked',
    names: [ONE],
  },
  {
    name: 'a pin that revoked itself, where another serves',
    pins: [[ONE]],
    statements: [[[ONE], revocation(ONE)]],
    serves: [TWO],
    gives: 'trust/revoked',
    names: [ONE],
  },
  {
    name: 'a stranger that revoked itself is not pinned',
    statements: [[[ONE], revocation(ONE)]],
    serves: [ONE],
    gives: 'trust/revoked',
    names: [ONE],
  },
  {
    name: 'one of a pool that revoked itself',
    pins: [[ONE], [TWO]],
    statements: [[[ONE], revocation(ONE)]],
    serves: [ONE, TWO],
    gives: [TWO],
  },
  {
    name: 'a revocation that somebody else signed',
    pins: [[ONE]],
    statements: [[[ONE], revocation(TWO)]],
    serves: [ONE],
    gives: [ONE],
  },
  {
    name: 'a successor',
    pins: [[ONE]],
    statements: [[[ONE, TWO], rotation(ONE, TWO)]],
    serves: [TWO],
    gives: [TWO],
    how: 'rotation',
    moved: [ONE, TWO],
  },
  {
    name: 'a successor, where the relay tells it of the new one alone',
    pins: [[ONE]],
    statements: [[[TWO], rotation(ONE, TWO)]],
    serves: [TWO],
    gives: [TWO],
    moved: [ONE, TWO],
  },
  {
    name: 'a chain of successors',
    pins: [[ONE]],
    statements: [[[ONE, TWO], rotation(ONE, TWO)], [[TWO, THREE], rotation(TWO, THREE)]],
    serves: [THREE],
    gives: [THREE],
    moved: [ONE, THREE],
  },
  {
    name: 'the old one, which has a successor',
    pins: [[ONE]],
    statements: [[[ONE, TWO], rotation(ONE, TWO)]],
    serves: [ONE],
    gives: 'trust/changed',
    names: [ONE, TWO],
    moved: [ONE, TWO],
  },
  {
    name: 'two successors',
    pins: [[ONE]],
    statements: [[[ONE, TWO], rotation(ONE, TWO)], [[ONE, THREE], rotation(ONE, THREE)]],
    serves: [TWO],
    gives: 'trust/split',
    names: [TWO, THREE],
  },
  {
    name: 'two successors, each told under its own name alone',
    pins: [[ONE]],
    statements: [[[TWO], rotation(ONE, TWO)], [[THREE], rotation(ONE, THREE)]],
    serves: [TWO, THREE],
    gives: 'trust/split',
    names: [TWO, THREE],
  },
  {
    name: 'a circle',
    pins: [[ONE]],
    statements: [[[ONE, TWO], rotation(ONE, TWO)], [[ONE, TWO], rotation(TWO, ONE)]],
    serves: [ONE],
    gives: 'trust/circle',
  },
  {
    name: 'more successors than are followed',
    pins: [[30]],
    statements: Array.from({ length: 18 }, (_, i) => [[30 + i, 31 + i], rotation(30 + i, 31 + i)]),
    serves: [48],
    gives: 'trust/steps',
  },
  {
    name: 'a successor that revoked itself',
    pins: [[ONE]],
    statements: [[[ONE, TWO], rotation(ONE, TWO)], [[TWO], revocation(TWO)]],
    serves: [TWO],
    gives: 'trust/revoked',
  },
  {
    name: 'a revocation beats a rotation of the same identity',
    pins: [[ONE]],
    statements: [[[ONE, TWO], rotation(ONE, TWO)], [[ONE], revocation(ONE)]],
    serves: [TWO],
    gives: 'trust/revoked',
    names: [ONE],
  },
  {
    name: 'a rotation that was signed long before the pin',
    pins: [[ONE]],
    statements: [[[ONE, TWO], rotation(ONE, TWO, START_MS - HOUR_MS)]],
    serves: [TWO],
    gives: 'trust/changed',
    names: [ONE, TWO],
  },
  {
    name: 'a rotation that waited at the relay, of a pin that a rotation moved',
    pins: [[ONE, 'rotation']],
    statements: [[[ONE, TWO], rotation(ONE, TWO, START_MS - HOUR_MS)]],
    serves: [TWO],
    gives: [TWO],
    moved: [ONE, TWO],
  },
  {
    name: 'the rotation of somebody else',
    pins: [[ONE]],
    statements: [[[ONE, TWO], rotation(THREE, TWO)]],
    serves: [TWO],
    gives: 'trust/changed',
    names: [ONE, TWO],
  },
  {
    name: 'an authority vouches',
    ...BY_OPS,
    statements: [[[ONE], vouch(OPS, ONE)]],
    serves: [ONE, TWO],
    gives: [ONE],
    how: 'authority',
  },
  {
    name: 'an authority vouches under another name',
    ...BY_OPS,
    statements: [[[ONE], vouch(OPS, ONE, { names: ['db'] })]],
    serves: [ONE],
    gives: [ONE],
    first: true,
    how: 'first-use',
  },
  {
    name: 'an authority vouches in this scope',
    ...BY_OPS,
    statements: [[[ONE], vouch(OPS, ONE, { scope: 'team' })]],
    serves: [ONE, TWO],
    gives: [ONE],
    how: 'authority',
  },
  {
    name: 'an authority vouches in another scope',
    ...BY_OPS,
    statements: [[[ONE], vouch(OPS, ONE, { scope: 'elsewhere' })]],
    serves: [ONE],
    gives: [ONE],
    how: 'first-use',
    first: true,
  },
  {
    name: 'a vouch that has run out',
    ...BY_OPS,
    statements: [[[ONE], vouch(OPS, ONE, { notAfter: START_MS - HOUR_MS / 2 })]],
    serves: [ONE],
    gives: [ONE],
    how: 'first-use',
    first: true,
  },
  {
    name: 'a vouch that is not valid yet',
    ...BY_OPS,
    statements: [[[ONE], vouch(OPS, ONE, { notBefore: START_MS + HOUR_MS })]],
    serves: [ONE],
    gives: [ONE],
    how: 'first-use',
    first: true,
  },
  {
    name: 'a vouch that was taken back',
    ...BY_OPS,
    statements: [[[ONE], vouch(OPS, ONE)], [[OPS], withdrawal(OPS, 1, [1])]],
    serves: [ONE],
    gives: [ONE],
    how: 'first-use',
    first: true,
  },
  {
    name: 'a vouch that another authority took back',
    authorities: [['ops', OPS], ['other', OTHER]],
    statements: [[[ONE], vouch(OPS, ONE)], [[OPS, OTHER], withdrawal(OTHER, 1, [1])]],
    serves: [ONE],
    gives: [ONE],
    how: 'authority',
  },
  {
    name: 'two lists under one number',
    ...BY_OPS,
    statements: [
      [[ONE], vouch(OPS, ONE)],
      [[OPS], withdrawal(OPS, 1, [7])],
      [[OPS], withdrawal(OPS, 1, [8])],
    ],
    serves: [ONE],
    gives: 'trust/split',
    names: [OPS],
  },
  {
    name: 'an authority that is pinned nowhere',
    statements: [[[ONE], vouch(OPS, ONE)]],
    serves: [ONE],
    gives: [ONE],
    how: 'first-use',
    first: true,
  },
  {
    name: 'a vouch for another identity',
    ...BY_OPS,
    statements: [[[ONE], vouch(OPS, TWO)]],
    serves: [ONE],
    gives: [ONE],
    how: 'first-use',
    first: true,
  },
  {
    name: 'a pin of a person is worth more than a vouch',
    ...BY_OPS,
    pins: [[ONE]],
    statements: [[[TWO], vouch(OPS, TWO)]],
    serves: [TWO],
    gives: 'trust/changed',
    names: [ONE, TWO],
  },
  {
    name: 'an authority with a successor: its own vouches count',
    ...BY_OPS,
    statements: [[[OPS, OPS2], rotation(OPS, OPS2)], [[ONE], vouch(OPS2, ONE)]],
    serves: [ONE],
    gives: [ONE],
    how: 'authority',
    moved: [OPS, OPS2],
  },
  {
    name: 'an authority with a successor: those of the old one do not',
    ...BY_OPS,
    statements: [[[OPS, OPS2], rotation(OPS, OPS2)], [[ONE], vouch(OPS, ONE)]],
    serves: [ONE],
    gives: [ONE],
    how: 'first-use',
    first: true,
    moved: [OPS, OPS2],
  },
  {
    name: 'an authority that revoked itself',
    ...BY_OPS,
    statements: [[[OPS], revocation(OPS)], [[ONE], vouch(OPS, ONE)]],
    serves: [ONE],
    gives: [ONE],
    how: 'first-use',
    first: true,
  },
  {
    name: 'a vouched identity that revoked itself',
    ...BY_OPS,
    statements: [[[ONE], vouch(OPS, ONE)], [[ONE], revocation(ONE)]],
    serves: [ONE],
    gives: 'trust/revoked',
    names: [ONE],
  },
]

for (const each of CASES) {
  test(`${each.name}: ${each.gives instanceof Array ? 'trusted' : each.gives}`, async () => {
    const bench = openBench()
    for (const [n, how = 'manual'] of each.pins ?? []) {
      await bench.known.trust('web', keyOf(n), { how })
    }
    for (const [name, n] of each.authorities ?? []) {
      await bench.known.trust(name, keyOf(n), { authority: true })
    }
    bench.keep(...each.statements ?? [])
    const candidates = bench.candidates(...each.serves)
    if (typeof each.gives === 'string') {
      const before = await bench.known.list()
      let error: unknown
      await bench.trust.judge('web', candidates).catch((caught) => error = caught)
      assert.instance(error, TunnelError)
      const { code, message } = error as TunnelError
      assert.is(code, each.gives, message)
      for (const n of each.names ?? []) assert.ok(message.includes(printOf(n)), message)
      if (!each.moved) assert.equal(await bench.known.list(), before, 'nothing else was pinned')
    } else {
      const { trusted, first } = await bench.trust.judge('web', candidates)
      assert.equal(trusted.map(({ key }) => key), each.gives.map(keyOf))
      assert.is(first, each.first ?? false)
      if (each.how) assert.equal([...new Set(trusted.map(({ how }) => how))], [each.how])
      // What was trusted once is trusted the same way again, and nobody is told twice.
      const again = await bench.trust.judge('web', candidates)
      assert.equal(again.trusted.map(({ key }) => key), each.gives.map(keyOf))
      assert.equal([again.first, again.followed], [false, []])
    }
    const moved = bench.told.map(({ from, to }) => [from, to])
    assert.equal(moved, each.moved ? [each.moved.map(keyOf)] : [])
  })
}

test('what a pinned identity revoked is remembered when the relay keeps it back', async () => {
  const bench = openBench()
  await bench.known.trust('web', keyOf(ONE))
  bench.keep([[ONE], revocation(ONE)])
  assert.is(await rejection(bench.trust.judge('web', bench.candidates(ONE))), 'trust/revoked')
  bench.relay.clear()
  assert.is(await rejection(bench.trust.judge('web', bench.candidates(ONE))), 'trust/revoked')
  assert.is(await rejection(bench.trust.view(keyOf(ONE))), 'trust/revoked')
  // Nor does it come back by first use under another name.
  assert.is(await rejection(bench.trust.judge('db', bench.candidates(ONE))), 'trust/revoked')
  assert.equal(await bench.known.find('db'), [])
})

test('the same for whoever comes, pinned or vouched for', async () => {
  const bench = openBench()
  await bench.known.trust('alice', keyOf(ONE))
  await bench.known.trust('ops', keyOf(OPS), { authority: true })
  bench.keep([[ONE], revocation(ONE)], [[TWO], revocation(TWO)], [[TWO], vouch(OPS, TWO)])
  for (let look = 0; look < 2; look++) {
    for (const n of [ONE, TWO]) {
      assert.is(await rejection(bench.trust.view(keyOf(n))), 'trust/revoked', `${n}`)
    }
    bench.relay.clear()
    bench.keep([[TWO], vouch(OPS, TWO)])
  }
})

test('a fingerprint alone is a pin of what is revoked, and of whoever succeeds it', async () => {
  const bench = openBench()
  await bench.known.trust('web', printOf(ONE))
  await bench.known.trust('db', printOf(THREE))
  bench.keep([[ONE, TWO], rotation(ONE, TWO)], [[THREE], revocation(THREE)])
  const { trusted } = await bench.trust.judge('web', bench.candidates(TWO))
  assert.equal(trusted.map(({ key }) => key), [keyOf(TWO)])
  assert.is(await rejection(bench.trust.judge('db', bench.candidates(THREE))), 'trust/revoked')
  bench.relay.clear()
  assert.is(await rejection(bench.trust.judge('db', bench.candidates(THREE))), 'trust/revoked')
})

test('strangers who revoked themselves do not fill the file, however many a relay makes up', async () => {
  const bench = openBench()
  for (const n of EVERYBODY) {
    bench.keep([[n], revocation(n)])
    assert.is(await rejection(bench.trust.judge('web', bench.candidates(n))), 'trust/revoked')
    assert.is(await rejection(bench.trust.view(keyOf(n))), 'trust/revoked')
  }
  assert.is(bench.file(), '')
})

test('a verified pin stays verified through a rotation, and a pool does not hold one twice', async () => {
  const bench = openBench()
  await bench.known.trust('web', keyOf(ONE), { verified: true })
  await bench.known.trust('www', keyOf(ONE))
  await bench.known.trust('www', keyOf(TWO))
  bench.keep([[ONE, TWO], rotation(ONE, TWO)])
  const { trusted, followed } = await bench.trust.judge('web', bench.candidates(TWO))
  assert.equal(trusted, [{ key: keyOf(TWO), how: 'rotation', verified: true }])
  assert.equal(followed, [{ from: keyOf(ONE), to: keyOf(TWO), names: ['web', 'www'] }])
  assert.equal((await bench.known.find('www')).map(({ key }) => key), [keyOf(TWO)])
})

test('an old rotation that is replayed after forgetting leads nowhere', async () => {
  const bench = openBench()
  await bench.known.trust('web', keyOf(ONE))
  bench.keep([[ONE, TWO], rotation(ONE, TWO)])
  await bench.trust.judge('web', bench.candidates(TWO))
  // The successor was a thief's: the person forgets it and pins the first one anew.
  await bench.known.forget('web')
  bench.clock.advance(HOUR_MS)
  await bench.known.trust('web', keyOf(ONE))
  const { trusted, followed } = await bench.trust.judge('web', bench.candidates(ONE, TWO))
  assert.equal(trusted.map(({ key }) => key), [keyOf(ONE)])
  assert.equal(followed, [])
  assert.is(await rejection(bench.trust.judge('web', bench.candidates(TWO))), 'trust/changed')
})

test('statements whose signatures do not hold, and bytes that are none, change nothing', async () => {
  const bench = openBench()
  await bench.known.trust('web', keyOf(ONE))
  await bench.known.trust('ops', keyOf(OPS), { authority: true })
  const forged = [revocation(ONE), rotation(ONE, TWO), vouch(OPS, TWO), withdrawal(OPS, 9, [1])]
    .flatMap((bytes) =>
      [0, 40, bytes.length - 1, bytes.length - 70].map((at) => {
        const wrong = Uint8Array.from(bytes)
        wrong[at]! ^= 1
        return wrong
      })
    )
  bench.keep(
    ...[...forged, new Uint8Array(0), new Uint8Array(5000)].map((bytes) =>
      [[ONE, TWO, OPS], bytes] as [number[], Uint8Array]
    ),
  )
  const { trusted } = await bench.trust.judge('web', bench.candidates(ONE, TWO))
  assert.equal(trusted.map(({ key }) => key), [keyOf(ONE)])
  assert.equal((await bench.trust.view(keyOf(TWO))).vouched, [])
  assert.equal(bench.told, [])
  assert.equal(await bench.known.revoked(), [])
})

test('a withdrawal is remembered by its number: kept back or replaced by an older one, it holds', async () => {
  const bench = openBench()
  await bench.known.trust('ops', keyOf(OPS), { authority: true })
  const [first, second] = [withdrawal(OPS, 1, []), withdrawal(OPS, 2, [1])]
  const looks = async (...lists: Uint8Array[]): Promise<number> => {
    bench.relay.clear()
    bench.keep(
      [[ONE], vouch(OPS, ONE)],
      ...lists.map((one) => [[OPS], one] as [number[], Uint8Array]),
    )
    return (await bench.trust.view(keyOf(ONE))).vouched.length
  }
  assert.is(await looks(first), 1)
  assert.is(await looks(second), 0)
  assert.is(await looks(), 0, 'kept back')
  assert.is(await looks(first), 0, 'an older one')
  assert.is(await looks(first, second), 0)
  assert.is(await looks(withdrawal(OPS, 3, [])), 1, 'a newer one gives it back')
})

test('whoever comes is known by pins of a person and by what pinned authorities signed', async () => {
  const bench = openBench()
  await bench.known.trust('alice', keyOf(ONE))
  await bench.known.trust('found', keyOf(ONE), { how: 'first-use' })
  await bench.known.trust('bob', keyOf(TWO), { how: 'first-use' })
  await bench.known.trust('ops', keyOf(OPS), { authority: true })
  bench.keep(
    [[ONE, TWO], vouch(OTHER, ONE, { names: ['ghost'] })],
    [[TWO], vouch(OPS, TWO, { serial: 5, names: [], labels: { env: 'prod' } })],
  )
  const one = await bench.trust.view(keyOf(ONE))
  assert.equal([one.names, one.vouched, one.fingerprint], [['alice'], [], printOf(ONE)])
  const two = await bench.trust.view(keyOf(TWO))
  assert.equal([two.names, two.vouched], [
    [],
    [{ authority: 'ops', names: [], labels: { env: 'prod' } }],
  ])
  await bench.known.verify('bob', keyOf(TWO))
  assert.equal((await bench.trust.view(keyOf(TWO))).names, ['bob'])
})

test('a successor that comes by itself is known as the one it follows, over several steps', async () => {
  const bench = openBench()
  await bench.known.trust('alice', keyOf(ONE))
  bench.keep(
    [[ONE, TWO], rotation(ONE, TWO)],
    [[TWO, THREE], rotation(TWO, THREE)],
    [[THREE, FOUR], rotation(THREE, FOUR)],
  )
  assert.equal((await bench.trust.view(keyOf(FOUR))).names, ['alice'])
  assert.equal(bench.told, [{ from: keyOf(ONE), to: keyOf(FOUR), names: ['alice'] }])
  // Whoever has an old key is nobody any more.
  for (const n of [ONE, TWO, THREE]) {
    assert.equal((await bench.trust.view(keyOf(n))).names, [], `${n}`)
  }
})

test('the old identity that comes after it rotated moves the pin and is nobody', async () => {
  const bench = openBench()
  await bench.known.trust('alice', keyOf(ONE))
  bench.keep([[ONE, TWO], rotation(ONE, TWO)])
  assert.equal((await bench.trust.view(keyOf(ONE))).names, [])
  assert.equal((await bench.trust.view(keyOf(TWO))).names, ['alice'])
})

test('two successors let neither in, whichever comes', async () => {
  const bench = openBench()
  await bench.known.trust('alice', keyOf(ONE))
  bench.keep([[ONE, TWO], rotation(ONE, TWO)], [[ONE, THREE], rotation(ONE, THREE)])
  for (const n of [ONE, TWO, THREE]) {
    assert.is(await rejection(bench.trust.view(keyOf(n))), 'trust/split', `${n}`)
  }
})

test('a relay that answers nothing about statements lets in whom a person pinned, and nobody else', async () => {
  const bench = openBench()
  await bench.known.trust('alice', keyOf(ONE))
  assert.equal((await bench.trust.view(keyOf(ONE))).names, ['alice'])
  assert.equal((await bench.trust.view(keyOf(TWO))).names, [])
})

test('a second look follows the pins of now and asks the relay nothing', async () => {
  const bench = openBench()
  await bench.known.trust('alice', keyOf(ONE))
  await bench.known.trust('ops', keyOf(OPS), { authority: true })
  bench.keep([[ONE], vouch(OPS, ONE)])
  const view = await bench.trust.view(keyOf(ONE))
  bench.relay.clear()
  assert.equal(await bench.trust.refresh(view), view)
  await bench.known.forget('alice')
  assert.equal((await bench.trust.refresh(view)).names, [])
  await bench.known.forget('ops', { authority: true })
  assert.equal((await bench.trust.refresh(view)).vouched, [])
  await bench.known.trust('alice', keyOf(ONE))
  await bench.known.revoke(keyOf(ONE))
  assert.equal((await bench.trust.refresh(view)).names, [])
})

test.run()
