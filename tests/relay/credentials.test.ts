// runtimes: bun node deno
/**
 * Credentials from birth to revocation, what the store holds of them, and what a stranger learns.
 */
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ManualClock } from '../../core/clock.ts'
import { TunnelError } from '../../core/errors.ts'
import type { NewCredential } from '../../relay/credentials.ts'
import {
  allowsLabels,
  allowsName,
  Credentials,
  CREDENTIALS_PER_SCOPE_MAX,
  KEPT_MS,
  REFUSED,
} from '../../relay/credentials.ts'
import { globMatches } from '../../core/glob.ts'
import { memoryStore } from '../../relay/store/memory.ts'
import type { Store } from '../../relay/store/store.ts'
import { walk } from '../../relay/store/walk.ts'
import { fast, seededCrypto } from '../support/crypto.ts'
import { rejection } from '../support/rejection.ts'

const test = suite('relay/credentials')

function open(store: Store = memoryStore(), clock = new ManualClock()): Credentials {
  return new Credentials({ store, crypto: fast, clock })
}

async function dump(store: Store): Promise<string> {
  let text = ''
  for (const prefix of ['c', 'n', 'b', 'p', 's', 'm']) {
    for await (const entry of walk(store, prefix)) text += JSON.stringify(entry)
  }
  return text
}

test('a secret has the documented form and gives its grant', async () => {
  const credentials = open()
  const { id, secret, record } = await credentials.create({ kind: 'key', scope: 'alice' })
  assert.match(secret, /^sk_alice_[A-Za-z0-9_-]{43}$/)
  assert.equal(await credentials.verify(secret), { id, kind: 'key', scope: 'alice', admin: false })
  assert.equal(await credentials.get(id), record)
  assert.equal(await credentials.list({ scope: 'alice' }), [record])
})

test('a fleet token carries its limits into the grant', async () => {
  const clock = new ManualClock()
  const credentials = open(memoryStore(), clock)
  const limits = {
    names: ['web-*', 'api'],
    labels: { site: 'berlin-?' },
    maxAgents: 3,
    expiresAt: clock.now() + 1000,
  }
  const { id, secret, record } = await credentials.create({
    kind: 'token',
    scope: 'fleet',
    label: 'build machines',
    ...limits,
  })
  assert.match(secret, /^ft_fleet_/)
  const grant = await credentials.verify(secret)
  assert.equal(grant, { id, kind: 'token', scope: 'fleet', admin: false, ...limits })
  assert.is(record.label, 'build machines')
  assert.equal(
    ['web-1', 'web-', 'api', 'api-2', 'db'].map((name) => allowsName(grant, name)),
    [true, true, true, false, false],
  )
  assert.ok(allowsLabels(grant, { site: 'berlin-1' }))
  for (
    const labels of [{}, { site: 'berlin-10' }, { rack: 'berlin-1' }, {
      site: 'berlin-1',
      rack: '4',
    }] as Record<string, string>[]
  ) {
    assert.not(allowsLabels(grant, labels), JSON.stringify(labels))
  }
})

test('names and labels without patterns allow everything, and admins too', () => {
  assert.ok(allowsName({ admin: false }, 'web'))
  assert.ok(allowsLabels({ admin: false }, {}))
  assert.ok(allowsName({ admin: true, names: ['x'] }, 'web'))
  assert.ok(allowsLabels({ admin: true, labels: { a: 'b' } }, {}))
})

test('the store holds no secret, nor any part of one that would help', async () => {
  const store = memoryStore()
  const credentials = open(store)
  const secrets: string[] = []
  for (const kind of ['key', 'token'] as const) {
    secrets.push((await credentials.create({ kind, scope: 'alice' })).secret)
  }
  secrets.push((await credentials.ensureAdmin())!.secret)
  const text = await dump(store)
  assert.match(text, 'credential-hashes/')
  for (const secret of secrets) {
    const random = secret.slice(-43)
    for (let at = 0; at + 8 <= random.length; at++) assert.not.match(text, random.slice(at, at + 8))
  }
})

test('unknown, expired and revoked read the same to a stranger', async () => {
  const clock = new ManualClock()
  const credentials = open(memoryStore(), clock)
  const expired = await credentials.create({
    kind: 'key',
    scope: 'alice',
    expiresAt: clock.now() + 1000,
  })
  const revoked = await credentials.create({ kind: 'key', scope: 'alice' })
  await credentials.revoke(revoked.id)
  clock.advance(999)
  await credentials.verify(expired.secret)
  clock.advance(1)
  const shown = {
    unknown: `sk_alice_${'A'.repeat(43)}`,
    expired: expired.secret,
    revoked: revoked.secret,
  }
  const errors: TunnelError[] = []
  for (const [reason, secret] of Object.entries(shown)) {
    try {
      await credentials.verify(secret)
    } catch (error) {
      assert.instance(error, TunnelError)
      assert.is((error as TunnelError).code, `credentials/${reason}`)
      errors.push(error as TunnelError)
    }
  }
  assert.equal(errors.map(({ message }) => message), [REFUSED, REFUSED, REFUSED])
  assert.is(new Set(errors.map(({ hint }) => hint)).size, 1)
  for (const error of errors) assert.not.match(JSON.stringify(error), 'alice')
})

test('refuses what is no secret without asking the store', async () => {
  const store = memoryStore()
  const asked: string[] = []
  const spied: Store = { ...store, get: (key) => (asked.push(key), store.get(key)) }
  const credentials = open(spied)
  const { secret } = await credentials.create({ kind: 'key', scope: 'alice' })
  asked.length = 0
  const wrong = [
    '',
    'sk_alice_',
    secret.slice(0, -1),
    `${secret}A`,
    ` ${secret}`,
    `${secret}\n`,
    secret.replace('sk_', 'xk_'),
    secret.replace('_alice_', '_Alice_'),
    secret.replace('_alice_', '_../_'),
    'x'.repeat(1_000_000),
  ]
  for (const text of wrong) {
    assert.is(await rejection(credentials.verify(text)), 'credentials/unknown', text.slice(0, 60))
  }
  assert.equal(asked, [])
})

test('no other secret gets in: other kind, other scope, any letter changed', async () => {
  const credentials = open()
  const { secret } = await credentials.create({ kind: 'key', scope: 'alice' })
  const others = [
    secret.replace('sk_', 'ak_'),
    secret.replace('sk_', 'ft_'),
    secret.replace('alice', 'admin'),
  ]
  for (let at = secret.length - 43; at < secret.length; at++) {
    others.push(secret.slice(0, at) + (secret[at] === 'A' ? 'B' : 'A') + secret.slice(at + 1))
  }
  for (const other of others) {
    assert.is(await rejection(credentials.verify(other)), 'credentials/unknown')
  }
})

test('a record that was moved under another hash does not let that hash in', async () => {
  const store = memoryStore()
  const credentials = open(store)
  const [one, two] = [
    await credentials.create({ kind: 'key', scope: 'alice' }),
    await credentials.create({ kind: 'key', scope: 'bob' }),
  ]
  const hashes = await store.list('credential-hashes/', { limit: 10 })
  const bobs = hashes.find(({ value }) => (value as { id: string }).id === two.id)!
  await store.commit({ puts: [{ key: bobs.key, value: { scope: 'alice', id: one.id } }] })
  assert.is(await rejection(credentials.verify(two.secret)), 'credentials/unknown')
})

test('refuses to create what could not be kept or meant', async () => {
  const clock = new ManualClock()
  const credentials = open(memoryStore(), clock)
  const key: NewCredential = { kind: 'key', scope: 'alice' }
  const wrong: unknown[] = [
    { ...key, kind: 'root' },
    { ...key, kind: 'constructor' },
    { ...key, scope: 'A' },
    { ...key, scope: '' },
    { ...key, scope: 'a_b' },
    { ...key, scope: 'admin' },
    { kind: 'admin', scope: 'alice' },
    { ...key, label: 'x'.repeat(201) },
    { ...key, expiresAt: clock.now() },
    { ...key, expiresAt: NaN },
    { ...key, names: [] },
    { ...key, names: ['a b'] },
    { ...key, names: Array(51).fill('a') },
    { ...key, labels: { 'A b': 'x' } },
    { ...key, labels: { a: 'x'.repeat(129) } },
    { ...key, maxAgents: 0 },
    { ...key, maxAgents: 1.5 },
  ]
  for (const wanted of wrong) {
    const created = credentials.create(wanted as NewCredential)
    assert.is(await rejection(created), 'credentials/wanted', JSON.stringify(wanted))
  }
  assert.equal(await credentials.list(), [])
})

test('revoke() ends it at once, tells the listeners once, and only once', async () => {
  const clock = new ManualClock()
  const credentials = open(memoryStore(), clock)
  const { id, secret } = await credentials.create({ kind: 'key', scope: 'alice' })
  const told: string[] = []
  const stop = credentials.onRevoked((id, scope) => told.push(`${scope}/${id}`))
  clock.advance(5)
  assert.equal(await Promise.all([credentials.revoke(id), credentials.revoke(id)]), [true, false])
  assert.is(await credentials.revoke('no id'), false)
  assert.is(await credentials.revoke('0'.repeat(20)), false)
  assert.equal(told, [`alice/${id}`])
  assert.is(await rejection(credentials.verify(secret)), 'credentials/revoked')
  assert.is((await credentials.get(id))?.revokedAt, clock.now())
  stop()
  const other = await credentials.create({ kind: 'key', scope: 'alice' })
  await credentials.revoke(other.id)
  assert.is(told.length, 1)
})

test('under watch() revocations of another process are told within half a second, each once', async () => {
  const store = memoryStore()
  const clock = new ManualClock()
  const [relay, command] = [open(store, clock), open(store, clock)]
  const made = await Promise.all(
    [1, 2, 3, 4].map(() => command.create({ kind: 'key', scope: 'alice' })),
  )
  const [before, first, own, later] = made.map(({ id }) => id)
  await command.revoke(before!)
  const told: string[] = []
  relay.onRevoked((id) => told.push(id))
  const watch = relay.watch()
  await tick(clock, 0)
  await command.revoke(first!)
  await relay.revoke(own!)
  assert.equal(told, [own])
  await tick(clock, 500)
  assert.equal(told, [own, first])
  await tick(clock, 500)
  await command.revoke(later!)
  await tick(clock, 500)
  assert.equal(told, [own, first, later])
  watch.cancel()
  assert.is(clock.pending, 0)
})

test('under watch() more revocations than the news holds are told all the same', async () => {
  const store = memoryStore()
  const clock = new ManualClock()
  const [relay, command] = [open(store, clock), open(store, clock)]
  const told = new Set<string>()
  relay.onRevoked((id) => told.add(id))
  const watch = relay.watch()
  await tick(clock, 0)
  const made: string[] = []
  for (let at = 0; at < 210; at++) {
    const { id } = await command.create({ kind: 'key', scope: 'alice' })
    await command.revoke(id)
    made.push(id)
  }
  await tick(clock, 500)
  assert.equal([...told].sort(), made.sort())
  watch.cancel()
})

test('under watch() a store that fails for a while loses no revocation', async () => {
  const store = memoryStore()
  const clock = new ManualClock()
  let failing = true
  const unless = <Result>(run: () => Promise<Result>): Promise<Result> =>
    failing ? Promise.reject(new TunnelError('store/busy', 'no')) : run()
  const relay = open({
    ...store,
    get: (key) => unless(() => store.get(key)),
    list: (prefix, options) => unless(() => store.list(prefix, options)),
  }, clock)
  const command = open(store, clock)
  const told: string[] = []
  relay.onRevoked((id) => told.push(id))
  const failures: unknown[] = []
  const watch = relay.watch({ failed: (error) => failures.push(error) })
  const made = [1, 2].map(() => command.create({ kind: 'key', scope: 'alice' }))
  const [first, second] = (await Promise.all(made)).map(({ id }) => id)
  await command.revoke(first!)
  await tick(clock, 500)
  assert.ok(failures.length > 0)
  assert.equal(told, [])
  failing = false
  await tick(clock, 500)
  assert.equal(told, [first])
  failing = true
  await command.revoke(second!)
  await tick(clock, 500)
  failing = false
  await tick(clock, 500)
  assert.equal(told, [first, second])
  watch.cancel()
})

test('the first start makes one admin key, of several at once only one', async () => {
  const store = memoryStore()
  const made = (await Promise.all([1, 2, 3, 4].map(() => open(store).ensureAdmin()))).filter(
    Boolean,
  )
  assert.is(made.length, 1)
  const { secret, id } = made[0]!
  assert.match(secret, /^ak_admin_/)
  const credentials = open(store)
  assert.equal(await credentials.verify(secret), { id, kind: 'admin', scope: 'admin', admin: true })
  assert.is(await credentials.ensureAdmin(), undefined)
  await credentials.revoke(id)
  assert.is(await credentials.ensureAdmin(), undefined, 'never again by itself')
  assert.ok((await credentials.create({ kind: 'admin', scope: 'admin' })).secret)
  assert.is((await credentials.list()).length, 2, 'those that lost the race left nothing')
})

test('a scope holds a bounded number; the long dead make room, the living do not', async () => {
  const store = memoryStore()
  const clock = new ManualClock()
  const credentials = open(store, clock)
  const wanted: NewCredential = { kind: 'key', scope: 'alice' }
  const made = []
  for (let at = 0; at < CREDENTIALS_PER_SCOPE_MAX; at++) made.push(await credentials.create(wanted))
  assert.is(await rejection(credentials.create(wanted)), 'credentials/too-many')
  await credentials.create({ ...wanted, scope: 'bob' })
  await credentials.revoke(made[0]!.id)
  assert.is(await rejection(credentials.create(wanted)), 'credentials/too-many')
  clock.advance(KEPT_MS + 1)
  await credentials.create(wanted)
  assert.is(await credentials.get(made[0]!.id), undefined)
  assert.is(await rejection(credentials.verify(made[0]!.secret)), 'credentials/unknown')
  await credentials.verify(made[1]!.secret)
})

test('list() pages by scope and id', async () => {
  const credentials = open()
  for (const scope of ['bob', 'alice', 'bob']) await credentials.create({ kind: 'key', scope })
  const all = await credentials.list()
  assert.equal(all.map(({ scope }) => scope), ['alice', 'bob', 'bob'])
  assert.equal(await credentials.list({ limit: 2, after: all[0]!.id }), all.slice(1))
  assert.equal(await credentials.list({ scope: 'bob', limit: 1, after: all[1]!.id }), [all[2]])
  assert.equal(await credentials.list({ after: 'nothing' }), [])
  assert.equal(await credentials.list({ scope: 'b' }), [])
})

test('secrets come from the crypto port and never repeat', async () => {
  const make = async (seed: string): Promise<string[]> => {
    const credentials = new Credentials({
      store: memoryStore(),
      crypto: seededCrypto(seed),
      clock: new ManualClock(),
    })
    const secrets: string[] = []
    for (let at = 0; at < 5; at++) {
      secrets.push((await credentials.create({ kind: 'key', scope: 'alice' })).secret)
    }
    return secrets
  }
  const [one, again, other] = [await make('a'), await make('a'), await make('b')]
  assert.equal(one, again)
  assert.is(new Set([...one, ...other]).size, 10)
})

test('globMatches() agrees with a regular expression and is never slow', () => {
  const letters = fc.constantFrom('a', 'b', '-')
  const text = fc.array(letters, { maxLength: 12 }).map((all) => all.join(''))
  const pattern = fc.array(fc.oneof(letters, fc.constantFrom('*', '?')), { maxLength: 8 })
    .map((all) => all.join(''))
  fc.assert(
    fc.property(pattern, text, (pattern, text) => {
      const source = pattern.replaceAll('*', '.*').replaceAll('?', '.')
      assert.is(globMatches(pattern, text), new RegExp(`^${source}$`).test(text))
    }),
    { numRuns: 3000 },
  )
  // As a regular expression this would take longer than the world has stood.
  assert.not(globMatches('*a'.repeat(60) + 'b', 'a'.repeat(5000)))
  assert.ok(globMatches('*a'.repeat(60), 'a'.repeat(5000)))
})

/** Moves the clock; what the timers began over a store in memory is done before the next task. */
async function tick(clock: ManualClock, ms: number): Promise<void> {
  clock.advance(ms)
  await new Promise((resolve) => setTimeout(resolve, 0))
}

test.run()
