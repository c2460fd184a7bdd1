// runtimes: bun node deno
/**
 * Names, blocks, passports and members over the store in memory and over SQLite with two
 * connections, which is what two processes on one data directory are.
 */
import fc from 'fast-check'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ManualClock } from '../../core/clock.ts'
import { TunnelError } from '../../core/errors.ts'
import { formatKey, isName } from '../../core/key.ts'
import { PASSPORTS_PER_SCOPE_MAX } from '../../relay/passports.ts'
import type { Block } from '../../relay/registry.ts'
import { MEMBERS_MAX, Registry, RESERVED_NAMES } from '../../relay/registry.ts'
import { memoryStore } from '../../relay/store/memory.ts'
import { sqliteStore } from '../../relay/store/sqlite.ts'
import type { Store } from '../../relay/store/store.ts'
import { fast, filled } from '../support/crypto.ts'
import { rejection } from '../support/rejection.ts'

const test = suite('relay/registry')
const clock = new ManualClock()
const KEY = formatKey(filled(1))

async function open(
  store: Store = memoryStore(),
  namesMax?: (scope: string) => number,
): Promise<Registry> {
  return await Registry.open({ store, crypto: fast, clock, ...(namesMax && { namesMax }) })
}

async function errorOf(promise: Promise<unknown>): Promise<TunnelError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof TunnelError) return error
    throw error
  }
  throw new Error('nothing was thrown')
}

test('reserve() gives a free name to the first scope and keeps it', async () => {
  const registry = await open()
  assert.is(await registry.owner('web'), undefined)
  await registry.reserve({ name: 'web', scope: 'alice' })
  await registry.reserve({ name: 'web', scope: 'alice' })
  assert.is(await registry.owner('web'), 'alice')
  assert.equal(await registry.list('alice'), [
    { name: 'web', scope: 'alice', reservedAt: clock.now() },
  ])
})

test('reserve() refuses another scope and suggests a name that is free', async () => {
  const registry = await open()
  for (const name of ['web', 'web-2', 'web-3']) await registry.reserve({ name, scope: 'alice' })
  const error = await errorOf(registry.reserve({ name: 'web', scope: 'bob' }))
  assert.is(error.code, 'registry/taken')
  assert.match(error.hint!, '"web-4" is free: use --name web-4')
  assert.not.match(error.message + error.hint, 'alice', 'tells nobody who owns it')
  assert.match((await errorOf(registry.reserve({ name: 'web-2', scope: 'bob' }))).hint!, 'web-4')
})

test('a suggestion is always a name, however long or crowded', async () => {
  const registry = await open(memoryStore(), () => 1000)
  const long = 'a'.repeat(63)
  const dashed = `${'b'.repeat(60)}-c1`
  const crowded = ['x', ...Array.from({ length: 20 }, (_, at) => `x-${at}`)]
  for (const name of [long, dashed, '7', ...crowded]) {
    await registry.reserve({ name, scope: 'alice' })
  }
  for (const name of [long, dashed, '7', 'x', 'x-5']) {
    const { hint } = await errorOf(registry.reserve({ name, scope: 'bob' }))
    const free = /^"([^"]+)" is free/.exec(hint!)![1]!
    assert.ok(isName(free), free)
    assert.is(await registry.owner(free), undefined, free)
  }
})

test('reserve() refuses what is no name, and reserved ones but for an admin', async () => {
  const registry = await open()
  const bad = ['', 'Web', 'a.b', '-a', 'a-', 'a_b', 'ü', 'a'.repeat(64), 'a/b', '../a', 'xn--80ak6']
  for (const name of bad) {
    assert.is(await rejection(registry.reserve({ name, scope: 'alice' })), 'registry/name', name)
    assert.is(await registry.owner(name), undefined)
    assert.is(await registry.release(name, 'alice'), false)
  }
  for (const scope of ['', 'A', 'a/b']) {
    assert.is(await rejection(registry.reserve({ name: 'web', scope })), 'registry/scope')
  }
  for (const name of RESERVED_NAMES) {
    assert.ok(isName(name), name)
    assert.is(await rejection(registry.reserve({ name, scope: 'alice' })), 'registry/reserved')
  }
  await registry.reserve({ name: 'www', scope: 'operator', admin: true })
  assert.is(await registry.owner('www'), 'operator')
})

test('a scope owns no more names than its quota, and releasing makes room', async () => {
  const registry = await open(memoryStore(), (scope) => scope === 'small' ? 2 : 100)
  const reserve = (name: string, scope = 'small'): Promise<void> =>
    registry.reserve({ name, scope })
  await reserve('a')
  await reserve('b')
  assert.is(await rejection(reserve('c')), 'registry/quota')
  await reserve('a') // its own still
  await reserve('c', 'large')
  assert.is(await registry.release('a', 'large'), false)
  assert.is(await registry.release('a', 'small'), true)
  assert.is(await registry.release('a', 'small'), false)
  await reserve('d')
  assert.equal((await registry.list('small')).map(({ name }) => name), ['b', 'd'])
})

test('releasing forgets the members, so that the next owner starts with none', async () => {
  const registry = await open()
  await registry.reserve({ name: 'web', scope: 'alice' })
  await registry.memberJoined('web', KEY)
  await registry.release('web', 'alice')
  await registry.reserve({ name: 'web', scope: 'bob' })
  assert.equal(await registry.members('web'), [])
})

test('list() pages through one scope and through all', async () => {
  const registry = await open()
  for (const name of ['c', 'a', 'b', 'a-1']) await registry.reserve({ name, scope: 'alice' })
  await registry.reserve({ name: 'bb', scope: 'bob' })
  const names = async (...how: Parameters<Registry['list']>): Promise<string[]> =>
    (await registry.list(...how)).map(({ name, scope }) => `${scope}.${name}`)
  assert.equal(await names('alice'), ['alice.a', 'alice.a-1', 'alice.b', 'alice.c'])
  assert.equal(await names('alice', { limit: 2, after: 'a' }), ['alice.a-1', 'alice.b'])
  assert.equal(await names(undefined, { limit: 2, after: 'b' }), ['bob.bb', 'alice.c'])
  assert.equal(await names('carol'), [])
})

test('members are a set, latest first, of bounded size', async () => {
  const registry = await open()
  assert.is(await rejection(registry.memberJoined('web', KEY)), 'registry/unowned')
  await registry.reserve({ name: 'web', scope: 'alice' })
  const keys = Array.from({ length: MEMBERS_MAX + 3 }, (_, at) => formatKey(filled(at)))
  for (const key of [...keys, ...keys.slice(-3)]) await registry.memberJoined('web', key)
  assert.equal(await registry.members('web'), keys.slice(3).reverse())
  assert.is(await rejection(registry.memberJoined('web', 'no key')), 'key/format')
  assert.equal(await registry.members('nobody'), [])
})

const action = fc.record({
  scope: fc.constantFrom('alice', 'bob', 'carol'),
  name: fc.constantFrom('a', 'b', 'c', 'd'),
  release: fc.boolean(),
  second: fc.boolean(),
})

test('of scopes that race for a name exactly one wins, on one store and between two', async () => {
  const seed = Date.now() % 1_000_000
  console.log(`seed ${seed}`)
  const directory = mkdtempSync(join(tmpdir(), 'sotto-registry-'))
  let files = 0
  try {
    await fc.assert(
      fc.asyncProperty(fc.array(action, { maxLength: 24 }), async (actions) => {
        const path = join(directory, `${files++}.db`)
        const stores = [1, 2].map(() => sqliteStore(new DatabaseSync(path)))
        const [one, two] = await Promise.all(stores.map((store) => open(store, () => 3)))
        const results = await Promise.all(actions.map(({ scope, name, release, second }) => {
          const registry = second ? two! : one!
          return release
            ? registry.release(name, scope).then(() => undefined)
            : rejection(registry.reserve({ name, scope }))
        }))
        const allowed = new Set([undefined, 'registry/taken', 'registry/quota'])
        assert.ok(results.every((code) => allowed.has(code as 'registry/taken')), `${results}`)
        await checkAgreement(one!, stores[0]!)
        for (const store of stores) await store.close()
      }),
      { numRuns: 40, seed },
    )
  } finally {
    rmSync(directory, { recursive: true })
  }
})

test('of 50 scopes that ask for one name at once one gets it', async () => {
  for (let round = 0; round < 20; round++) {
    const registry = await open()
    const codes = await Promise.all(
      Array.from(
        { length: 50 },
        (_, at) => rejection(registry.reserve({ name: 'web', scope: `scope-${at}` })),
      ),
    )
    assert.is(codes.filter((code) => code === undefined).length, 1)
    assert.is(codes.filter((code) => code === 'registry/taken').length, 49)
  }
})

/** Index, counts and owners say the same, and no scope is over its quota. */
async function checkAgreement(registry: Registry, store: Store): Promise<void> {
  const all = await registry.list()
  for (const scope of ['alice', 'bob', 'carol']) {
    const owned = all.filter((record) => record.scope === scope)
    assert.equal(await registry.list(scope), owned)
    assert.is(Number((await store.get(`name-counts/${scope}`))?.value ?? 0), owned.length)
    assert.ok(owned.length <= 3)
  }
}

test('a block holds for its name or its scope, at once, and is told once', async () => {
  const registry = await open()
  const told: Block[] = []
  const stop = registry.onBlocked((block) => told.push(block))
  await registry.block({ name: 'web', reason: 'phishing' })
  await registry.block({ scope: 'mallory', reason: 'x'.repeat(2000) })
  await registry.block({ name: 'web', reason: 'again' })
  assert.equal(told.map(({ name, scope }) => [name, scope]), [['web', undefined], [
    undefined,
    'mallory',
  ]])
  assert.is(told[1]!.reason.length, 500)
  assert.is(registry.isBlocked('web', 'alice')?.reason, 'again')
  assert.ok(registry.isBlocked('any', 'mallory'))
  assert.ok(registry.isBlocked(undefined, 'mallory'))
  assert.not(registry.isBlocked('api', 'alice'))
  assert.not(registry.isBlocked(undefined, 'alice'))
  assert.is(registry.blocks().length, 2)
  assert.is(await rejection(registry.reserve({ name: 'web', scope: 'alice' })), 'registry/blocked')
  assert.is(await rejection(registry.reserve({ name: 'a', scope: 'mallory' })), 'registry/blocked')
  assert.is(await registry.unblock({ name: 'web' }), true)
  assert.is(await registry.unblock({ name: 'web' }), false)
  assert.not(registry.isBlocked('web', 'alice'))
  stop()
  await registry.block({ name: 'web', reason: '' })
  assert.is(told.length, 2)
})

test('a block is a name or a scope, not both or neither', async () => {
  const registry = await open()
  const wrong = [{}, { name: 'a', scope: 'b' }, { name: 'A' }, { scope: 'a/b' }, { name: '' }]
  for (const target of wrong) {
    assert.is(await rejection(registry.block({ ...target, reason: '' })), 'registry/block')
  }
})

test('blocks survive a new start and reach another process under watch()', async () => {
  const store = memoryStore()
  const [relay, command] = [await open(store), await open(store)]
  const told: string[] = []
  relay.onBlocked(({ name, scope }) => told.push(name ?? scope!))
  const watch = relay.watch({ everyMs: 400 })
  await command.block({ scope: 'mallory', reason: 'abuse' })
  assert.not(relay.isBlocked('web', 'mallory'))
  await tick(400)
  assert.ok(relay.isBlocked('web', 'mallory'))
  await command.unblock({ scope: 'mallory' })
  await command.block({ name: 'web', reason: 'abuse' })
  await tick(400)
  assert.not(relay.isBlocked('api', 'mallory'))
  assert.equal(told, ['mallory', 'web'])
  watch.cancel()
  assert.is(clock.pending, 0)
  assert.ok((await open(store)).isBlocked('web', 'alice'))
})

test('watch() goes on after the store failed, and says so', async () => {
  const store = memoryStore()
  let failing = true
  const flaky: Store = {
    ...store,
    get: (key) => failing ? Promise.reject(new TunnelError('store/busy', 'no')) : store.get(key),
  }
  failing = false
  const [relay, command] = [await open(flaky), await open(store)]
  failing = true
  const failures: unknown[] = []
  const watch = relay.watch({ failed: (error) => failures.push(error) })
  await command.block({ name: 'web', reason: '' })
  await tick(500)
  assert.is(failures.length, 1)
  failing = false
  await tick(500)
  assert.ok(relay.isBlocked('web', 'alice'))
  watch.cancel()
})

test('a passport is published by compare-and-set on its number', async () => {
  const registry = await open()
  const publish = (sequence: number, expected: number, byte = sequence): Promise<void> =>
    registry.publishPassport(KEY, { bytes: filled(byte, 100), sequence, expected })
  assert.is(await registry.passport(KEY), undefined)
  await publish(1, 0)
  for (const [sequence, expected] of [[1, 0], [2, 0], [1, 1], [0, 1], [2, 2], [3, 2], [2.5, 1]]) {
    assert.is(await rejection(publish(sequence!, expected!)), 'registry/stale')
  }
  await publish(7, 1)
  assert.equal(await registry.passport(KEY), { bytes: filled(7, 100), sequence: 7 })
  const error = await errorOf(publish(8, 1))
  assert.match(error.message, 'found number 7 stored, expected 1')
  const race = await Promise.all([9, 10, 11].map((sequence) => rejection(publish(sequence, 7))))
  assert.is(race.filter((code) => code === undefined).length, 1)
})

test('passports are of one key and of bounded size, bytes kept exactly', async () => {
  const registry = await open()
  const all = Uint8Array.from({ length: 4096 }, (_, at) => at)
  await registry.publishPassport(KEY, { bytes: all, sequence: 1, expected: 0 })
  assert.equal((await registry.passport(KEY))?.bytes, all)
  for (const length of [0, 4097]) {
    const bytes = new Uint8Array(length)
    const published = registry.publishPassport(KEY, { bytes, sequence: 2, expected: 1 })
    assert.is(await rejection(published), 'registry/passport')
  }
  for (const key of ['', 'a', KEY.toUpperCase(), `${KEY}/x`]) {
    assert.is(await rejection(registry.passport(key)), 'key/format')
  }
})

test('identities of one scope are counted; old passports are forgotten and make room', async () => {
  const store = memoryStore()
  const registry = await open(store)
  const publish = (at: number, scope: string): Promise<void> =>
    registry.publishPassport(formatKey(filled(at)), {
      bytes: filled(at),
      sequence: 1,
      expected: 0,
      scope,
    })
  await publish(1, 'alice')
  const early = clock.now()
  clock.advance(1000)
  await publish(2, 'alice')
  const count = async (): Promise<unknown> => (await store.get('passport-counts/alice'))?.value
  assert.is(await count(), 2)
  assert.is(await registry.prunePassports(early + 1), 1)
  assert.is(await count(), 1)
  assert.is(await registry.passport(formatKey(filled(1))), undefined)
  assert.ok(await registry.passport(formatKey(filled(2))))
  await store.commit({ puts: [{ key: 'passport-counts/alice', value: PASSPORTS_PER_SCOPE_MAX }] })
  assert.is(await rejection(publish(3, 'alice')), 'registry/quota')
  await publish(3, 'bob')
})

/** Moves the clock; what the timers began over a store in memory is done before the next task. */
async function tick(ms: number): Promise<void> {
  clock.advance(ms)
  await new Promise((resolve) => setTimeout(resolve, 0))
}

test.run()
