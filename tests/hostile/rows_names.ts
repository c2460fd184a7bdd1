/**
 * Lies about who is who: passports and keys behind names, statements about identities, lists, scopes,
 * grants, and the relay's own identity. Nothing here breaks cryptography; it swaps, strips and replays.
 */
import * as assert from 'uvu/assert'
import { Directory } from '../../agent/directory.ts'
import { KEY_BYTES } from '../../core/crypto.ts'
import { formatKey, generateIdentity, parseKey } from '../../core/key.ts'
import type { Identity } from '../../core/key.ts'
import { encodePassport } from '../../core/passport.ts'
import type { Passport } from '../../core/passport.ts'
import { encodeStatement } from '../../core/statement.ts'
import type { Statement } from '../../core/statement.ts'
import { fast } from '../support/crypto.ts'
import { rejection } from '../support/rejection.ts'
import { flipped } from './relay.ts'
import type { Actor, Stage } from './stage.ts'
import { MESSAGE } from './table.ts'
import type { Row, Scene } from './table.ts'

type Agent = Record<string, unknown>

const DAY_MS = 86_400_000
/** Where things stand in a passport of an agent with a static key and no WireGuard key; §8. */
const AT = { identity: 2, sequence: 34, notAfter: 50, flags: 58, staticKey: 59, certificates: 91 }

const from64 = (value: unknown): Uint8Array => Uint8Array.from(Buffer.from(String(value), 'base64'))
const to64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64')

/** What `resolve` says of agents is another. */
function resolving(lie: (agents: Agent[], stage: Stage) => Agent[]): Row['attack'] {
  return (stage) => {
    stage.relay.hooks.reply = (reply, { request }) =>
      request['do'] === 'resolve'
        ? stage.relay.lied({ ...reply, agents: lie(reply['agents'] as Agent[], stage) })
        : undefined
  }
}

/** The passport is another. */
function passport(lie: (bytes: Uint8Array) => Uint8Array): Row['attack'] {
  return resolving(([one]) => [{ ...one, passport: to64(lie(from64(one!['passport']))) }])
}

/** What `statements` says of an identity is another; the very list is no lie. */
function stating(lie: (key: string, held: string[], stage: Stage) => string[]): Row['attack'] {
  return (stage) => {
    const { relay } = stage
    relay.hooks.reply = (reply, { request }) => {
      if (request['do'] !== 'statements') return undefined
      const held = reply['statements'] as string[]
      const said = lie(String(request['key']), held, stage)
      return said === held ? undefined : relay.lied({ ...reply, statements: said })
    }
  }
}

function signed(statement: Statement, ...signers: Identity[]): string {
  return to64(encodeStatement(statement, (message, signer) => {
    const by = signers.find((one) => formatKey(one.public) === formatKey(signer)) ?? signers[0]!
    return fast.ed25519Sign(by.seed, message)
  }))
}

/** A passport of somebody that names Bob and holds. */
function passportOf(identity: Identity, fields: Partial<Passport> = {}): string {
  const now = Date.now()
  return to64(encodePassport({
    identity: identity.public,
    sequence: now,
    notBefore: now - 1000,
    notAfter: now + DAY_MS,
    staticKey: fast.x25519Public(fast.randomBytes(KEY_BYTES)),
    certificates: [],
    names: ['bob'],
    ciphers: ['Noise_IKhfs_25519+MLKEM768_AESGCM_SHA256'],
    ...fields,
  }, (message) => fast.ed25519Sign(identity.seed, message)))
}

/** The relay's own identity, with all that belongs to it. */
function ownAgent(identity = generateIdentity(fast), statements: string[] = []): Agent {
  return { key: formatKey(identity.public), passport: passportOf(identity), statements }
}

const identityOf = ({ joining }: Actor): Identity => joining.identity

async function couple(stage: Stage): Promise<{ alice: Actor; bob: Actor }> {
  const bob = await stage.enter('bob')
  const alice = await stage.enter('alice')
  await stage.introduce(alice, bob)
  stage.serveEcho(bob)
  return { alice, bob }
}

async function ask(who: Actor, body: object): Promise<void> {
  await who.presence.agent.uplink.request(body)
}

/** Bob is called by his scope too. */
const BY_SCOPE: Scene = {
  async act(stage) {
    const { session } = await stage.open('alice.bob')
    await stage.say(session)
  },
}

/** Alice speaks with Bob, he publishes a newer passport, and she speaks with him again. */
const TWICE: Scene = {
  async act(stage) {
    const bob = stage.actor('bob')
    const first = await stage.open()
    await stage.say(first.session)
    first.session.close()
    await bob.presence.agent.announce('bob-as-well')
    const second = await stage.open()
    await stage.say(second.session)
    second.session.close()
    const third = await stage.open()
    await stage.say(third.session)
  },
}

/** Carol is there too, and an honest agent like any. */
const WITH_CAROL: Scene = {
  ...MESSAGE,
  async set(stage) {
    await couple(stage)
    stage.serveEcho(await stage.enter('carol'))
  },
}

/** Alice is told that Bob revoked himself, once. */
async function seeRevocation(stage: Stage): Promise<void> {
  const bob = identityOf(stage.actor('bob'))
  const statement = { kind: 'revocation', identity: bob.public, time: Date.now() } as const
  stage.relay.hooks.reply = (reply, { request }) =>
    request['do'] === 'resolve'
      ? {
        ...reply,
        agents: (reply['agents'] as Agent[]).map((one) => ({
          ...one,
          statements: [signed(statement, bob)],
        })),
      }
      : undefined
  assert.is(await rejection(stage.open()), 'trust/revoked')
  stage.relay.hooks = {}
}

const AUTHORITY = generateIdentity(fast)

function vouchFor(identity: Uint8Array, serial: number, role = 'worker'): Statement {
  const now = Date.now()
  return {
    kind: 'vouch',
    authority: AUTHORITY.public,
    identity,
    serial,
    notBefore: now - 1000,
    notAfter: now + DAY_MS,
    scope: '',
    names: [],
    labels: { role },
  }
}

function withdrawal(sequence: number, serials: number[]): string {
  const { public: authority } = AUTHORITY
  return signed({ kind: 'withdrawal', authority, sequence, time: Date.now(), serials }, AUTHORITY)
}

/** Bob lets in whom the authority calls a worker; Alice is one. */
function fleet(more: (stage: Stage, of: { alice: Actor; bob: Actor }) => Promise<void>): Scene {
  return {
    ...MESSAGE,
    async set(stage) {
      const bob = await stage.enter('bob')
      const alice = await stage.enter('alice')
      await stage.pin(alice, 'bob', bob.key)
      await stage.pin(bob, 'ops', formatKey(AUTHORITY.public), true)
      await stage.allow(bob, { authority: 'ops', labels: 'role=worker', services: ['a2a'] })
      await more(stage, { alice, bob })
      stage.serveEcho(bob)
    },
  }
}

const vouched = (serial: number, role?: string) =>
  fleet(async (_, { alice }) => {
    const statement = signed(vouchFor(identityOf(alice).public, serial, role), AUTHORITY)
    await ask(alice, { do: 'publish', statement })
  })

/** Somebody whom nobody knows comes by: the relay says what it likes of them, Bob does not. */
function intruder(name: string, says: string[], more: Partial<Row>): Row {
  const attack: Row['attack'] = (stage) => more.attack?.(stage)
  return { name, layer: 'trust', says, ...more, attack }
}

/** Alice asks for whoever has a label, and sends to all of them that she trusts. */
const BY_LABEL: Scene = {
  async set(stage) {
    const { alice } = await couple(stage)
    stage.serveEcho(await stage.enter('carol'))
    await stage.pin(alice, 'ops', formatKey(AUTHORITY.public), true)
    const bob = stage.actor('bob')
    const statement = signed(vouchFor(identityOf(bob).public, 5), AUTHORITY)
    await ask(bob, { do: 'publish', statement })
  },
  async act(stage) {
    const { presence, joining, key: own } = stage.actor('alice')
    const directory = new Directory({
      crypto: fast,
      uplink: presence.agent.uplink,
      known: joining.profile.knownAgents(),
      trust: presence.trust,
      own,
    })
    const { agents } = (await directory.list('role=worker'))!
    for (const agent of agents) {
      if (!['pinned', 'vouched', 'verified'].includes(agent.standing)) {
        stage.hear('alice', 'list', 'trust/unknown')
        continue
      }
      const { name } = agent.names[0]!
      const trusted = { key: agent.key, how: 'authority', verified: false } as const
      const { session } = await presence.peers.openTo(trusted, {
        at: name,
        name,
        service: 'echo',
        events: stage.events('alice'),
      })
      await stage.say(session)
    }
  },
}

const listing = (lie: (agents: Agent[], stage: Stage) => Agent[]): Row['attack'] => (stage) => {
  const { relay } = stage
  relay.hooks.reply = (reply, { request }) =>
    request['do'] === 'agents'
      ? relay.lied({ ...reply, agents: lie(reply['agents'] as Agent[], stage) })
      : undefined
}

function noneOf(who: string): Row['holds'] {
  return (stage) => {
    const got = stage.arrived.filter((one) => one.who === who)
    assert.equal(got, [], `${who} got something`)
  }
}

export const PASSPORTS: Row[] = [
  {
    name: 'the passport of another identity',
    layer: 'passport',
    says: ['passport/signer'],
    attack: resolving(([one]) => [{ ...one, passport: passportOf(generateIdentity(fast)) }]),
  },
  ...([
    ['another static key in it', (b) => {
      const copy = b.slice()
      copy.set(fast.x25519Public(fast.randomBytes(KEY_BYTES)), AT.staticKey)
      return copy
    }],
    ['no static key in it', (b) => flipped(b, AT.flags, 1)],
    ['one certificate more in it', (b) => flipped(b, AT.certificates, 1)],
    ['another name in it', (b) => flipped(b, AT.certificates + 4, 1)],
    ['another suite in it', (b) => flipped(b, -64 - 5)],
    ['a later end in it', (b) => flipped(b, AT.notAfter + 1, 1)],
    ['a higher number on it', (b) => flipped(b, AT.sequence + 1, 1)],
    ['a bit of its signature turned', (b) => flipped(b, -1)],
    ['a byte of it missing', (b) => b.subarray(0, -1)],
    ['a byte after its end', (b) => Uint8Array.from([...b, 0])],
  ] satisfies [string, (bytes: Uint8Array) => Uint8Array][]).map(([name, lie]): Row => ({
    name: `a passport with ${name}`,
    layer: 'passport',
    says: ['passport/forged'],
    attack: passport(lie),
  })),
  {
    name: 'a passport of another version',
    layer: 'passport',
    says: ['passport/version'],
    attack: passport((b) => flipped(b, 1, 2)),
  },
  {
    name: 'the old passport after the newer one was seen',
    layer: 'passport',
    says: ['passport/stale'],
    scene: TWICE,
    attack: (stage) => {
      let old: unknown
      let count = 0
      stage.relay.hooks.reply = (reply, { request }) => {
        if (request['do'] !== 'resolve') return undefined
        const [one] = reply['agents'] as Agent[]
        old ??= one!['passport']
        if (count++ < 2) return undefined
        return stage.relay.lied({ ...reply, agents: [{ ...one, passport: old }] })
      }
    },
  },
  {
    name: 'a passport that ran out',
    layer: 'passport',
    says: ['passport/expired'],
    attack: resolving(([one], stage) => {
      const notAfter = Date.now() - DAY_MS
      const fields = { notBefore: notAfter - DAY_MS, notAfter }
      return [{ ...one, passport: passportOf(identityOf(stage.actor('bob')), fields) }]
    }),
  },
]

export const NAMES: Row[] = [
  {
    name: 'its own identity for a pinned name',
    layer: 'trust',
    says: ['trust/changed'],
    attack: resolving(() => [ownAgent()]),
  },
  {
    name: 'another honest agent for a pinned name',
    layer: 'trust',
    says: ['trust/changed'],
    scene: WITH_CAROL,
    attack: (stage) => {
      resolving(([bob]) => [{
        ...bob,
        key: stage.actor('carol').key,
        passport: to64(stage.actor('carol').presence.agent.passport!.bytes),
      }])(stage)
    },
    holds: noneOf('carol'),
  },
  {
    name: 'nobody for a name that is there',
    layer: 'names',
    says: ['dial/unknown'],
    attack: resolving(() => []),
  },
  {
    name: 'another scope for a name',
    layer: 'names',
    says: ['dial/unknown'],
    scene: BY_SCOPE,
    attack: ({ relay }) => {
      relay.hooks.reply = (reply, { request }) =>
        request['do'] === 'resolve' ? relay.lied({ ...reply, scope: 'mallory' }) : undefined
    },
  },
  {
    name: 'a rotation to itself that Bob did not sign',
    layer: 'statements',
    says: ['trust/changed'],
    attack: resolving((_, stage) => {
      const own = generateIdentity(fast)
      const old = parseKey(stage.actor('bob').key)
      const rotation = { kind: 'rotation', old, new: own.public, time: Date.now() } as const
      return [ownAgent(own, [signed(rotation, own)])]
    }),
  },
  {
    name: 'a rotation that Bob signed years before he was pinned',
    layer: 'statements',
    says: ['trust/changed'],
    attack: resolving((_, stage) => {
      const own = generateIdentity(fast)
      const bob = identityOf(stage.actor('bob'))
      const rotation = {
        kind: 'rotation',
        old: bob.public,
        new: own.public,
        time: Date.now() - 700 * DAY_MS,
      } as const
      return [ownAgent(own, [signed(rotation, bob, own)])]
    }),
  },
  {
    name: 'two successors, by a thief of the key',
    layer: 'statements',
    says: ['trust/split'],
    attack: resolving(([one], stage) => {
      const bob = identityOf(stage.actor('bob'))
      const statements = [1, 2].map(() => {
        const next = generateIdentity(fast)
        const time = Date.now()
        return signed({ kind: 'rotation', old: bob.public, new: next.public, time }, bob, next)
      })
      return [{ ...one, statements }]
    }),
  },
  {
    name: 'successors that lead in a circle, by a thief of the keys',
    layer: 'statements',
    says: ['trust/circle'],
    attack: resolving(([one], stage) => {
      const bob = identityOf(stage.actor('bob'))
      const next = generateIdentity(fast)
      const time = Date.now()
      return [{
        ...one,
        statements: [
          signed({ kind: 'rotation', old: bob.public, new: next.public, time }, bob, next),
          signed({ kind: 'rotation', old: next.public, new: bob.public, time }, bob, next),
        ],
      }]
    }),
  },
  {
    name: 'a revoked identity, its revocation kept back after it was seen',
    layer: 'statements',
    says: ['trust/revoked'],
    before: seeRevocation,
    attack: resolving((agents) => agents.map((one) => ({ ...one, statements: [] }))),
  },
  {
    name: 'a revoked identity is admitted, its revocation kept back after it was seen',
    layer: 'access',
    says: ['session/refused'],
    before: async (stage) => {
      await stage.actor('bob').joining.profile.knownAgents().revoke(stage.actor('alice').key)
    },
    attack: stating(() => []),
    holds: noneOf('bob'),
  },
  {
    name: 'a label that no authority signed',
    layer: 'access',
    says: ['session/refused'],
    scene: vouched(1),
    attack: stating((key, held, stage) => {
      if (key !== stage.actor('alice').key) return held
      const forged = { ...vouchFor(parseKey(key), 1), authority: AUTHORITY.public } as Statement
      return [signed(forged, generateIdentity(fast))]
    }),
  },
  {
    name: 'the vouch for another identity',
    layer: 'access',
    says: ['session/refused'],
    scene: vouched(2),
    attack: stating((key, held, stage) =>
      key === stage.actor('alice').key
        ? [signed(vouchFor(generateIdentity(fast).public, 2), AUTHORITY)]
        : held
    ),
  },
  {
    name: 'an old withdrawal in place of the newest that was seen',
    layer: 'access',
    says: ['session/refused'],
    scene: fleet(async (_, { alice, bob }) => {
      const statement = signed(vouchFor(identityOf(alice).public, 3), AUTHORITY)
      await ask(alice, { do: 'publish', statement })
      const { profile } = bob.joining
      const key = formatKey(AUTHORITY.public)
      await profile.knownWithdrawals().keep(key, 1, [])
    }),
    // He has seen that her vouch was taken back; what the relay shows is from before.
    before: async (stage) => {
      const { profile } = stage.actor('bob').joining
      await profile.knownWithdrawals().keep(formatKey(AUTHORITY.public), 2, [3])
    },
    attack: stating((key, held) =>
      key === formatKey(AUTHORITY.public) ? [withdrawal(1, [])] : held
    ),
  },
  {
    name: 'two lists of withdrawals under one number',
    layer: 'access',
    says: ['session/refused'],
    scene: fleet(async (_, { alice, bob }) => {
      const statement = signed(vouchFor(identityOf(alice).public, 4), AUTHORITY)
      await ask(alice, { do: 'publish', statement })
      await bob.joining.profile.knownWithdrawals().keep(formatKey(AUTHORITY.public), 7, [99])
    }),
    attack: stating((key, held) =>
      key === formatKey(AUTHORITY.public) ? [withdrawal(7, [])] : held
    ),
  },
  intruder('a grant that was never given: another scope is let through', ['session/refused'], {
    scene: {
      ...MESSAGE,
      async set(stage) {
        const bob = await stage.enter('bob')
        await stage.enter('alice')
        await stage.pin(stage.actor('alice'), 'bob', bob.key)
        stage.serveEcho(bob)
        await stage.allow(bob, { peer: stage.actor('alice').key, services: ['a2a'] })
      },
    },
    attack: (stage) => () => trespass(stage, 'mallory'),
  }),
  intruder('a stranger of the same scope is called by the name of a friend', ['session/refused'], {
    scene: {
      ...MESSAGE,
      async set(stage) {
        await couple(stage)
        const carol = await stage.enter('carol')
        await stage.pin(stage.actor('bob'), 'carol', carol.key)
        await stage.allow(stage.actor('bob'), { peer: 'carol', services: ['a2a'] })
      },
    },
    attack: (stage) => () => trespass(stage, 'alice'),
  }),
  {
    name: 'a list that gives its own agent the label that is asked for',
    layer: 'list',
    says: ['trust/unknown'],
    scene: { ...BY_LABEL },
    attack: listing((agents, stage) => [
      ...agents.map((one) =>
        one['key'] === stage.actor('carol').key ? { ...one, labels: { role: 'worker' } } : one
      ),
    ]),
    holds: noneOf('carol'),
  },
  {
    name: 'a list that gives the name of a trusted agent to another',
    layer: 'list',
    says: ['dial/unknown'],
    scene: { ...BY_LABEL },
    attack: listing((agents, stage) =>
      agents.map((one) =>
        one['key'] === stage.actor('bob').key
          ? { ...one, names: [{ name: 'carol', kind: 'agent' }] }
          : one
      )
    ),
    holds: noneOf('carol'),
  },
]

/** Somebody of a scope opens a session with Bob, who has never heard of them. */
async function trespass(stage: Stage, scope: string): Promise<void> {
  const bob = stage.actor('bob')
  const mallory = await stage.enter('mallory', { scope, announce: '' })
  stage.liars.add('mallory')
  await stage.pin(mallory, 'bob', bob.key)
  // What the relay alone could refuse, it lets through.
  await stage.relay.star.registry.grants.add({ scope: 'alice', names: '*', to: 'mallory' })
  stage.relay.lied(undefined)
  await mallory.presence.peers.open('bob', 'echo').catch(() => {})
}
