// Statements at a relay: kept under whom they speak of, few of each, and nobody can fill anybody up. A
// revoked identity is put out and stays out. Real statements, real signatures.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ManualClock } from '../../core/clock.ts'
import { isTunnelError } from '../../core/errors.ts'
import { formatKey, generateIdentity } from '../../core/key.ts'
import type { Identity } from '../../core/key.ts'
import { encodeStatement, openStatement } from '../../core/statement.ts'
import type { Statement } from '../../core/statement.ts'
import { Statements, STATEMENTS_MAX } from '../../relay/statements.ts'
import { memoryStore } from '../../relay/store/memory.ts'
import { fast } from '../support/crypto.ts'
import { makeStar } from '../support/star.ts'
import type { Star, TestAgent } from '../support/star.ts'

const statements = suite<{ star: Star }>('relay/statements')

statements.before.each(async (context) => {
  context.star = await makeStar()
})
statements.after.each(async (context) => {
  await context.star.close()
})

const DAY = 86_400_000

function signed(statement: Statement, ...identities: Identity[]): Uint8Array {
  return encodeStatement(statement, (message, signer) => {
    const identity = identities.find((one) => Buffer.from(one.public).equals(Buffer.from(signer)))
    return fast.ed25519Sign(identity!.seed, message)
  })
}

function revocation(of: Identity, time = 1): Uint8Array {
  return signed({ kind: 'revocation', identity: of.public, time }, of)
}

function vouch(authority: Identity, of: Identity, notBefore: number, notAfter: number): Uint8Array {
  return signed({
    kind: 'vouch',
    authority: authority.public,
    identity: of.public,
    serial: notBefore,
    notBefore,
    notAfter,
    scope: '',
    names: [],
    labels: {},
  }, authority)
}

function withdrawal(authority: Identity, sequence: number): Uint8Array {
  return signed(
    { kind: 'withdrawal', authority: authority.public, sequence, time: 1, serials: [] },
    authority,
  )
}

function rotation(old: Identity, successor: Identity, time = 1): Uint8Array {
  return signed(
    { kind: 'rotation', old: old.public, new: successor.public, time },
    old,
    successor,
  )
}

const keyOf = (identity: Identity): string => formatKey(identity.public)
const identities = (count: number): Identity[] =>
  Array.from({ length: count }, () => generateIdentity(fast))

async function codeOf(run: () => unknown): Promise<string> {
  try {
    await run()
  } catch (error) {
    assert.ok(isTunnelError(error), String(error))
    return error.code
  }
  return 'nothing'
}

function made(): { clock: ManualClock; kept: Statements } {
  const clock = new ManualClock()
  return { clock, kept: new Statements({ store: memoryStore(), crypto: fast, clock }) }
}

async function publish(kept: Statements, bytes: Uint8Array, by: Identity): Promise<void> {
  for (const key of kept.about(bytes, keyOf(by))) {
    await kept.keep(key, bytes, { key: keyOf(by), scope: 'alice' })
  }
}

async function kindsOf(kept: Statements, identity: Identity): Promise<string[]> {
  return (await kept.of(keyOf(identity))).map((bytes) => openStatement(fast, bytes).kind)
}

statements('each is kept under whom it speaks of, what matters most first', async () => {
  const { kept, clock } = made()
  const [old, successor, authority] = identities(3) as [Identity, Identity, Identity]
  const now = clock.now()
  await publish(kept, vouch(authority, old, now, now + DAY), old)
  await publish(kept, rotation(old, successor), old)
  await publish(kept, withdrawal(authority, 1), successor)
  await publish(kept, revocation(old), successor)
  assert.equal(await kindsOf(kept, old), ['revocation', 'rotation', 'vouch'])
  assert.equal(await kindsOf(kept, successor), ['rotation'])
  assert.equal(await kindsOf(kept, authority), ['withdrawal'])
})

statements('forged and foreign ones are refused, and nothing is kept of them', async () => {
  const { kept, clock } = made()
  const [victim, thief, authority] = identities(3) as [Identity, Identity, Identity]
  const now = clock.now()
  const forged = revocation(victim)
  forged[forged.length - 1]! ^= 1
  const cases: [string, Uint8Array, string][] = [
    ['a forged revocation', forged, 'statement/forged'],
    ['nothing', new Uint8Array(0), 'statement/size'],
    ['too much', new Uint8Array(4097), 'statement/size'],
    ['a vouch for another', vouch(authority, victim, now, now + DAY), 'statements/publisher'],
    ['a rotation of others', rotation(victim, authority), 'statements/publisher'],
  ]
  for (const [what, bytes, code] of cases) {
    assert.is(await codeOf(() => publish(kept, bytes, thief)), code, what)
  }
  assert.equal(await kept.of(keyOf(victim)), [])
  assert.is(await kept.isRevoked(keyOf(victim)), false)
})

statements(
  'sixteen at most; expired vouches make room, and a revocation always finds some',
  async () => {
    const { kept, clock } = made()
    const owner = generateIdentity(fast)
    const now = clock.now()
    const authorities = identities(STATEMENTS_MAX + 2)
    for (const authority of authorities.slice(0, STATEMENTS_MAX)) {
      await publish(kept, vouch(authority, owner, now, now + DAY), owner)
    }
    const more = vouch(authorities[STATEMENTS_MAX]!, owner, now, now + DAY)
    assert.is(await codeOf(() => publish(kept, more, owner)), 'statements/limit')
    await publish(kept, revocation(owner), owner)
    const kinds = await kindsOf(kept, owner)
    assert.is(kinds.length, STATEMENTS_MAX)
    assert.is(kinds[0], 'revocation')
    clock.advance(2 * DAY)
    const later = vouch(authorities[STATEMENTS_MAX + 1]!, owner, clock.now(), clock.now() + DAY)
    await publish(kept, later, owner)
    assert.equal(await kindsOf(kept, owner), ['revocation', 'vouch'])
  },
)

statements('the newer of one authority replaces the older, and never the other way', async () => {
  const { kept, clock } = made()
  const [authority, owner] = identities(2) as [Identity, Identity]
  const now = clock.now()
  await publish(kept, withdrawal(authority, 5), owner)
  assert.is(await codeOf(() => publish(kept, withdrawal(authority, 4), owner)), 'statements/stale')
  await publish(kept, withdrawal(authority, 5), owner)
  await publish(kept, withdrawal(authority, 6), owner)
  const [bytes, ...rest] = await kept.of(keyOf(authority))
  assert.equal(rest, [])
  assert.is((openStatement(fast, bytes!) as { sequence: number }).sequence, 6)
  const second = vouch(authority, owner, now + 1, now + DAY)
  await publish(kept, vouch(authority, owner, now, now + DAY), owner)
  await publish(kept, second, owner)
  const older = vouch(authority, owner, now - 1, now + DAY)
  assert.is(await codeOf(() => publish(kept, older, owner)), 'statements/stale')
  assert.equal((await kept.of(keyOf(owner))).map((one) => Buffer.from(one)), [Buffer.from(second)])
})

statements('two successors are both kept: whoever follows must see that they differ', async () => {
  const { kept } = made()
  const [old, one, two] = identities(3) as [Identity, Identity, Identity]
  await publish(kept, rotation(old, one), old)
  await publish(kept, rotation(old, two), two)
  assert.equal(await kindsOf(kept, old), ['rotation', 'rotation'])
})

statements(
  'one revocation is enough: more take no room, and are told to nobody twice',
  async () => {
    const { kept } = made()
    const [owner, other] = identities(2) as [Identity, Identity]
    const told: string[] = []
    kept.onRevoked((key) => void told.push(key))
    for (let time = 1; time <= 20; time++) await publish(kept, revocation(owner, time), other)
    assert.equal(await kindsOf(kept, owner), ['revocation'])
    assert.equal(told, [keyOf(owner)])
  },
)

const say = (agent: TestAgent, bytes: Uint8Array): Promise<Record<string, unknown>> =>
  agent.request({ do: 'publish', statement: Buffer.from(bytes).toString('base64') })
const errorOf = (reply: Record<string, unknown>): string =>
  (reply['error'] as { code: string } | undefined)?.code ?? 'ok'

statements(
  'a revoked identity loses all its links with 4403, and gets none any more',
  async ({ star }) => {
    const identity = generateIdentity(fast)
    const home = await star.agent({ identity })
    const host = await star.agent()
    const visiting = await star.agent({ identity, role: 'visit', target: host.identity.public })
    assert.is(errorOf(await say(host, revocation(identity))), 'ok')
    assert.is((await home.closed).code, 4403)
    assert.is((await visiting.closed).code, 4403)
    let message = ''
    await star.agent({ identity }).catch((error: Error) => void (message = error.message))
    assert.match(message, /closed 4403/)
    assert.is((await host.request({ do: 'passport' }))['ok'], true, 'others are not touched')
  },
)

statements('an admission that a revocation overtakes comes to nothing', async ({ star }) => {
  const identity = generateIdentity(fast)
  const host = await star.agent()
  const late = star.agent({ identity }).then(() => 'in', (error: Error) => error.message)
  const reply = await say(host, revocation(identity))
  assert.is(errorOf(reply), 'ok')
  const words = await late
  if (words === 'in') {
    // It was faster: then it was put out again.
    assert.is(star.relay.agents().some(({ key }) => key === keyOf(identity)), false)
  } else assert.match(words, /closed 4403/)
})

statements('statements are served by key, and with resolve', async ({ star }) => {
  const [authority, successor] = identities(2) as [Identity, Identity]
  const agent = await star.agent()
  await agent.claim('web')
  const { encodePassport } = await import('../../core/passport.ts')
  const passport = encodePassport({
    identity: agent.identity.public,
    sequence: 1,
    notBefore: Date.now(),
    notAfter: Date.now() + DAY,
    certificates: [],
    names: ['web'],
    ciphers: [],
  }, (message) => fast.ed25519Sign(agent.identity.seed, message))
  const text = Buffer.from(passport).toString('base64')
  await agent.request({ do: 'publish', passport: text, after: 0 })
  const all = [
    rotation(agent.identity, successor),
    vouch(authority, agent.identity, Date.now(), Date.now() + DAY),
  ]
  for (const bytes of all) assert.is(errorOf(await say(agent, bytes)), 'ok')
  const expected = all.map((bytes) => Buffer.from(bytes).toString('base64'))
  const other = await star.agent({ scope: 'bob' })
  const resolved = await other.request({ do: 'resolve', name: 'web' })
  const [served] = resolved['agents'] as Record<string, unknown>[]
  assert.equal(served!['statements'], expected)
  const reply = await other.request({ do: 'statements', key: agent.key })
  assert.equal([reply['statements'], reply['next']], [expected, undefined])
  assert.is(errorOf(await other.request({ do: 'statements', key: 'nobody' })), 'key/format')
  assert.is(errorOf(await agent.request({ do: 'publish', statement: '!' })), 'request/statement')
})

statements('many long statements come in pages, each within a frame', async ({ star }) => {
  const agent = await star.agent()
  const names = Array.from({ length: 16 }, (_, i) => `${'n'.repeat(60)}${10 + i}`)
  const labels = Object.fromEntries(names.map((name) => [name, 'v'.repeat(63)]))
  for (const authority of identities(STATEMENTS_MAX)) {
    const bytes = signed({
      kind: 'vouch',
      authority: authority.public,
      identity: agent.identity.public,
      serial: 1,
      notBefore: Date.now(),
      notAfter: Date.now() + DAY,
      scope: '',
      names,
      labels,
    }, authority)
    assert.ok(bytes.length > 2500, `${bytes.length} bytes`)
    assert.is(errorOf(await say(agent, bytes)), 'ok')
  }
  const found = new Set<string>()
  let pages = 0
  for (let after: unknown = 0; after !== undefined; pages++) {
    const reply = await agent.request({ do: 'statements', key: agent.key, after })
    for (const text of reply['statements'] as string[]) found.add(text)
    after = reply['next']
  }
  assert.is(found.size, STATEMENTS_MAX)
  assert.ok(pages > 1)
})

statements.run()
