/**
 * What every store promises, as claims over an `open` of one of them. Run by store.test.ts on all
 * that the runtime has; a store that fits these fits the registry and the credentials.
 */
import fc from 'fast-check'
import type { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Commit, Entry, Json, Store } from '../../relay/store/store.ts'
import { CHANGES_MAX, KEY_LENGTH_MAX, LIST_MAX, VALUE_BYTES_MAX } from '../../relay/store/store.ts'
import { memoryStore } from '../../relay/store/memory.ts'
import { walk } from '../../relay/store/walk.ts'
import { rejection } from '../support/rejection.ts'

export type OpenStore = () => Store | Promise<Store>

/** Adds the claims to `test`; each opens a store of its own and closes it. */
export function storeClaims(
  test: ReturnType<typeof suite>,
  name: string,
  open: OpenStore,
): void {
  const claim = (text: string, run: (store: Store) => Promise<void>): void => {
    test(`${name}: ${text}`, async () => {
      const store = await open()
      try {
        await run(store)
      } finally {
        await store.close()
      }
    })
  }

  claim('an absent key is undefined and has version 0', async (store) => {
    assert.is(await store.get('names/web'), undefined)
    assert.ok(await store.commit({ checks: [{ key: 'names/web', version: 0 }] }))
    assert.not(await store.commit({ checks: [{ key: 'names/web', version: 1 }] }))
  })

  claim('values come back as they were', async (store) => {
    const values: Json[] = [null, true, 0, -1.5, 1e300, '', 'ü\u0000\u{1f600}"\\', [], {}, [[1, {
      a: [null, 'b'],
    }]]]
    for (const [index, value] of values.entries()) {
      assert.ok(await store.commit({ puts: [{ key: `v/${index}`, value }] }))
      assert.equal((await store.get(`v/${index}`))?.value, value)
    }
  })

  claim('a version changes with each write and never returns', async (store) => {
    const seen = new Set<number>()
    for (let round = 0; round < 5; round++) {
      await store.commit({ puts: [{ key: 'a', value: 'same' }] })
      const { version } = (await store.get('a'))!
      assert.ok(Number.isSafeInteger(version) && version > 0)
      assert.not(seen.has(version), `version ${version} again in round ${round}`)
      seen.add(version)
      if (round % 2) await store.commit({ deletes: ['a'] })
    }
  })

  claim('a failed check writes nothing of the commit', async (store) => {
    await store.commit({ puts: [{ key: 'a', value: 1 }, { key: 'b', value: 1 }] })
    const a = (await store.get('a'))!
    const stale: Commit = {
      checks: [{ key: 'a', version: a.version }, { key: 'b', version: 0 }],
      puts: [{ key: 'c', value: 2 }],
      deletes: ['a'],
    }
    assert.is(await store.commit(stale), false)
    assert.equal(await store.get('a'), a)
    assert.is(await store.get('c'), undefined)
  })

  claim('checks, puts and deletes go through together', async (store) => {
    await store.commit({ puts: [{ key: 'a', value: 1 }] })
    const { version } = (await store.get('a'))!
    assert.ok(
      await store.commit({
        checks: [{ key: 'a', version }, { key: 'b', version: 0 }],
        puts: [{ key: 'b', value: 2 }],
        deletes: ['a'],
      }),
    )
    assert.is(await store.get('a'), undefined)
    assert.is((await store.get('b'))?.value, 2)
    // A deleted key is as absent as one that never was.
    assert.ok(await store.commit({ checks: [{ key: 'a', version: 0 }], deletes: ['a'] }))
  })

  claim('list gives the keys under a prefix in the order of their bytes', async (store) => {
    const keys = ['n/a', 'n/a-b', 'n/a/b', 'n/a0', 'n/B', 'n/~', 'n', 'm/z', 'o/a', 'n/a!']
    await store.commit({ puts: keys.map((key) => ({ key, value: key })) })
    const listed = await store.list('n/', { limit: 100 })
    const expected = ['n/B', 'n/a', 'n/a!', 'n/a-b', 'n/a/b', 'n/a0', 'n/~']
    assert.equal(listed.map(({ key }) => key), expected)
    assert.ok(listed.every(({ key, value, version }) => value === key && version > 0))
    const after = await store.list('n/', { limit: 2, after: 'n/a' })
    assert.equal(after.map(({ key }) => key), ['n/a!', 'n/a-b'])
    assert.equal(await store.list('n/', { limit: 5, after: 'n/~' }), [])
    assert.equal(await store.list('n/', { limit: 5, after: 'z' }), [])
    assert.is((await store.list('n/', { limit: 5, after: 'a' }))[0]?.key, 'n/B')
    assert.equal(await store.list('x', { limit: 5 }), [])
  })

  claim('walk() reads every entry over several pages', async (store) => {
    const count = LIST_MAX * 2 + 1
    const all = Array.from({ length: count }, (_, at) => `w/${String(at).padStart(6, '0')}`)
    for (let at = 0; at < count; at += CHANGES_MAX) {
      const puts = all.slice(at, at + CHANGES_MAX).map((key) => ({ key, value: 0 }))
      assert.ok(await store.commit({ puts }))
    }
    const found: string[] = []
    for await (const { key } of walk(store, 'w/')) found.push(key)
    assert.equal(found, all)
  })

  claim('of 40 increments at once none is lost', async (store) => {
    const increment = async (): Promise<void> => {
      for (;;) {
        const entry = await store.get('n')
        const checks = [{ key: 'n', version: entry?.version ?? 0 }]
        const puts = [{ key: 'n', value: Number(entry?.value ?? 0) + 1 }]
        if (await store.commit({ checks, puts })) return
      }
    }
    await Promise.all(Array.from({ length: 40 }, increment))
    assert.is((await store.get('n'))?.value, 40)
  })

  claim('refuses keys, values and counts that some store would not take', async (store) => {
    const longest = 'k'.repeat(KEY_LENGTH_MAX)
    assert.ok(await store.commit({ puts: [{ key: longest, value: 1 }] }))
    assert.is((await store.get(longest))?.value, 1)
    for (const key of ['', 'a b', 'ü', 'a\n', 'a\0', '\x7f', `${longest}k`]) {
      assert.is(await rejection(store.get(key)), 'store/key')
      assert.is(await rejection(store.commit({ puts: [{ key, value: 1 }] })), 'store/key')
      assert.is(await rejection(store.commit({ deletes: [key] })), 'store/key')
      assert.is(await rejection(store.list(key, { limit: 1 })), 'store/key')
    }
    for (const letter of ['x', 'é', '漢']) {
      const bytes = new TextEncoder().encode(letter).length
      const fits = letter.repeat(Math.floor((VALUE_BYTES_MAX - 2) / bytes))
      assert.ok(await store.commit({ puts: [{ key: 'v', value: fits }] }))
      assert.is((await store.get('v'))?.value, fits)
      const over = store.commit({ puts: [{ key: 'v', value: fits + letter + letter }] })
      assert.is(await rejection(over), 'store/value')
    }
    const nothing = undefined as unknown as Json
    assert.is(
      await rejection(store.commit({ puts: [{ key: 'v', value: nothing }] })),
      'store/value',
    )
    for (const limit of [0, -1, 1.5, NaN, LIST_MAX + 1]) {
      assert.is(await rejection(store.list('v', { limit })), 'store/limit')
    }
    const many = Array.from({ length: CHANGES_MAX + 1 }, (_, at) => `m/${at}`)
    assert.is(await rejection(store.commit({ deletes: many })), 'store/limit')
    assert.ok(await store.commit({ deletes: many.slice(1) }))
    const twice = { puts: [{ key: 'a', value: 1 }], deletes: ['a'] }
    assert.is(await rejection(store.commit(twice)), 'store/key')
  })

  claim('holds a full commit of the largest values', async (store) => {
    const value = 'v'.repeat(VALUE_BYTES_MAX - 2)
    const keys = Array.from({ length: 30 }, (_, at) => `big/${at}`)
    assert.ok(await store.commit({ puts: keys.map((key) => ({ key, value })) }))
    assert.is((await store.list('big/', { limit: 100 })).length, 30)
  })

  claim('agrees with the store in memory on any history', async (store) => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 30 }), async (steps) => {
        const twin = memoryStore()
        for (const { key } of await store.list('p/', { limit: 100 })) {
          await store.commit({ deletes: [key] })
        }
        for (const next of steps) await compare(store, twin, next)
      }),
      { numRuns: 60, verbose: 1 },
    )
  })

  test(`${name}: a closed store refuses everything and closes twice`, async () => {
    const store = await open()
    await store.close()
    await store.close()
    assert.is(await rejection(store.get('a')), 'store/closed')
    assert.is(await rejection(store.list('a', { limit: 1 })), 'store/closed')
    assert.is(await rejection(store.commit({})), 'store/closed')
  })
}

interface Step {
  check: [key: string, current: boolean][]
  put: [key: string, value: number][]
  remove: string[]
  prefix: string
  after: string
  limit: number
}

const key = fc.constantFrom('p/a', 'p/a/b', 'p/a-b', 'p/b', 'p/Z')
const step: fc.Arbitrary<Step> = fc.record({
  check: fc.array(fc.tuple(key, fc.boolean()), { maxLength: 2 }),
  put: fc.array(fc.tuple(key, fc.nat(9)), { maxLength: 2 }),
  remove: fc.array(key, { maxLength: 1 }),
  prefix: fc.constantFrom('p/', 'p/a', 'p/a/', 'p/b', 'p/zz'),
  after: fc.constantFrom('a', 'p/a', 'p/a-b', 'p/b', 'q'),
  limit: fc.integer({ min: 1, max: 6 }),
})

async function compare(store: Store, twin: Store, step: Step): Promise<void> {
  const outcomes: unknown[] = []
  for (const one of [store, twin]) {
    const checks = await Promise.all(step.check.map(async ([key, current]) => {
      const version = (await one.get(key))?.version ?? 0
      return { key, version: current ? version : version + 1 }
    }))
    const puts = step.put.map(([key, value]) => ({ key, value }))
    const done = await one.commit({ checks, puts, deletes: step.remove })
      .catch((error) => error.code)
    const { prefix, limit, after } = step
    outcomes.push([
      done,
      plain(await one.list('p/', { limit: 100 })),
      plain(await one.list(prefix, { limit, after })),
    ])
  }
  assert.equal(outcomes[0], outcomes[1])
}

function plain(entries: Entry[]): unknown[] {
  return entries.map(({ key, value }) => [key, value])
}
