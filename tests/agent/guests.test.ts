/**
 * Who may come in: rules over views of identities, certificates that passports name, and strangers who
 * claim to be whomever they like. The relay is a map of passports here; certificates are any DER that
 * carries a KEY, since a name in one proves nothing.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Guests } from '../../agent/guests.ts'
import type { Knock } from '../../agent/guests.ts'
import type { PeerView } from '../../agent/access.ts'
import type { Joining } from '../../agent/join.ts'
import { Profile } from '../../agent/profile.ts'
import type { TlsServeOptions, World } from '../../agent/world.ts'
import { concat, utf8 } from '../../core/bytes.ts'
import { TunnelError } from '../../core/errors.ts'
import { fingerprint, formatKey, generateIdentity, parseKey } from '../../core/key.ts'
import type { Identity } from '../../core/key.ts'
import { encodePassport } from '../../core/passport.ts'
import type { Conn } from '../../core/socket.ts'
import { testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'
import { rejection } from '../support/rejection.ts'

const test = suite('agent/guests')
const ASKING_MAX = 8

const NO_CONN = {} as Conn
const NO_IDENTITY = { identity: { cert: '', key: '' } }

let t: TestWorld
/** What the TLS server was told to ask last. */
let admit: TlsServeOptions['admit']
let profile: Profile
let guests: Guests | undefined
let passports: Map<string, Uint8Array>
let views: Map<string, Partial<PeerView> | TunnelError>
let knocks: Knock[]
let asked: string[]
/** Questions that wait until it resolves. */
let gate: Promise<void>

test.before.each(async () => {
  t = await testWorld()
  profile = new Profile(t.world)
  guests = undefined
  passports = new Map()
  views = new Map()
  knocks = []
  asked = []
  gate = Promise.resolve()
})
test.after.each(async () => {
  guests?.close()
  await t.close()
})

interface Person {
  identity: Identity
  key: string
  /** One that carries this person's KEY. */
  der: Uint8Array
}

function claiming(key: string, salt = ''): Uint8Array {
  return concat(Uint8Array.of(0x30, 0x0c, 0x34), utf8(key), utf8(`.${salt}`))
}

/** Somebody whose passport names the certificate. */
function person(salt = ''): Person {
  const { crypto, clock } = t.world
  const identity = generateIdentity(crypto)
  const key = formatKey(identity.public)
  const der = claiming(key, salt)
  passports.set(
    key,
    encodePassport({
      identity: identity.public,
      sequence: 1,
      notBefore: clock.now() - 1000,
      notAfter: clock.now() + 100_000,
      certificates: [crypto.sha256(der)],
      names: [],
      ciphers: [],
    }, (message) => crypto.ed25519Sign(identity.seed, message)),
  )
  return { identity, key, der }
}

async function open(allow: string[] = []): Promise<Guests> {
  const identity = await profile.identity()
  const tls: World['tls'] = {
    ...t.world.tls,
    serve(_conn, _first, options) {
      admit = options.admit
      return Promise.reject(new Error('only asked'))
    },
  }
  guests = new Guests({ ...t.world, tls }, {
    joining: { profile, identity } as unknown as Joining,
    api: {
      passport: async (key) => {
        asked.push(key)
        await gate
        return passports.get(key)
      },
    },
    trust: {
      view: async (key) => {
        await Promise.resolve()
        const view = views.get(key)
        if (view instanceof TunnelError) throw view
        const print = fingerprint(t.world.crypto, parseKey(key))
        return { key, fingerprint: print, names: [], vouched: [], ...view }
      },
    },
    allow,
    onKnock: (knock) => void knocks.push(knock),
    onProblem() {},
  })
  await guests.start()
  await guests.settled()
  return guests
}

/** What the TLS server would say to a certificate, and who that was. */
async function shows(door: Guests, der: Uint8Array): Promise<string | undefined> {
  const hash = t.world.crypto.sha256(der)
  const isKnown = (): boolean => door.admits(hash) !== undefined
  void door.watching().tls.serve(NO_CONN, new Uint8Array(0), { ...NO_IDENTITY, admit: isKnown })
    .catch(() => {})
  return await admit!(der) ? door.admits(hash) : undefined
}

const allow = (rules: object[]): Promise<void> => profile.change({ access: rules })

test('nobody may come in whom no rule allows, pinned or not; this identity may', async () => {
  const [pinned, stranger] = [person(), person()]
  await profile.knownAgents().trust('alice', pinned.key)
  views.set(pinned.key, { names: ['alice'] })
  const door = await open()
  assert.is(door.size, 1)
  for (const { der } of [pinned, stranger]) assert.is(await shows(door, der), undefined)
  await allow([{ peer: 'alice', services: ['a2a'] }])
  door.refresh()
  await door.settled()
  assert.is(await shows(door, pinned.der), undefined, 'another service')
  await allow([{ peer: 'alice', services: ['a2a', 'connect'] }])
  door.refresh()
  await door.settled()
  assert.is(await shows(door, pinned.der), 'alice')
  assert.is(await shows(door, stranger.der), undefined)
})

test('a change of settings.json and of known_agents is seen while it runs', async () => {
  const alice = person()
  const door = await open()
  const sees = async (name: string | undefined): Promise<void> => {
    for (let i = 0; i < 200; i++) {
      await door.settled()
      if (door.admits(t.world.crypto.sha256(alice.der)) === name) return
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
    throw new Error(`it was never ${name}`)
  }
  views.set(alice.key, { names: ['alice'] })
  await allow([{ peer: 'alice', services: ['connect'] }])
  await profile.knownAgents().trust('alice', alice.key)
  await sees('alice')
  await allow([])
  await sees(undefined)
  await allow([{ peer: alice.key, services: ['connect'] }])
  await sees('alice')
  views.set(alice.key, new TunnelError('trust/revoked', 'gone'))
  await profile.knownAgents().trust('other', alice.key)
  await sees(undefined)
})

test('whom an authority vouches for comes in by its labels, when it comes', async () => {
  const [web, db] = [person(), person()]
  for (const [{ key }, role] of [[web, 'web'], [db, 'db']] as const) {
    views.set(key, { vouched: [{ authority: 'ops', names: [`${role}-1`], labels: { role } }] })
  }
  await allow([{ authority: 'ops', labels: 'role=web', services: ['connect'] }])
  const door = await open()
  assert.equal([door.size, door.authorities], [1, ['ops']])
  assert.is(await shows(door, web.der), 'web-1')
  assert.is(await shows(door, db.der), undefined)
  // Taken back: gone with the next look, and not let in anew.
  views.set(web.key, {})
  door.refresh()
  await door.settled()
  assert.is(await shows(door, web.der), undefined)
})

test('a certificate that only claims a KEY is refused, and its owner is not blamed', async () => {
  const alice = person()
  const door = await open([alice.key])
  const forged = claiming(alice.key, 'forged')
  assert.is(await shows(door, forged), undefined)
  await door.knocked({ fingerprint: t.world.crypto.sha256(forged), address: '' })
  assert.equal(knocks.map(({ key }) => key), [undefined])
  assert.is(await shows(door, alice.der), fingerprint(t.world.crypto, alice.identity.public))
})

test('a knock says whose it was, and by which name that is pinned', async () => {
  const [pinned, stranger] = [person(), person()]
  views.set(pinned.key, { names: ['alice'] })
  const door = await open()
  for (const { der } of [pinned, stranger]) {
    assert.is(await shows(door, der), undefined)
    await door.knocked({ fingerprint: t.world.crypto.sha256(der), address: '1.2.3.4' })
  }
  assert.equal(knocks.map(({ key, name }) => [key, name]), [
    [pinned.key, 'alice'],
    [stranger.key, undefined],
  ])
})

test('strangers who claim to be many make few questions, and those who may come in are not held up', async () => {
  const alice = person()
  views.set(alice.key, { names: ['alice'] })
  await profile.knownAgents().trust('alice', alice.key)
  await allow([{ peer: 'alice', services: ['connect'] }])
  const door = await open()
  asked = []
  let release = (): void => {}
  gate = new Promise((resolve) => release = resolve)
  const flood = Array.from({ length: 200 }, () => person())
  const answers = flood.map(({ der }) => shows(door, der))
  await new Promise((resolve) => setTimeout(resolve, 20))
  assert.ok(asked.length <= ASKING_MAX, `${asked.length} questions`)
  assert.is(await shows(door, alice.der), 'alice')
  release()
  assert.equal(new Set(await Promise.all(answers)), new Set([undefined]))
  // The same KEY again and again is one question.
  asked = []
  const one = person()
  await Promise.all(Array.from({ length: 50 }, (_, i) => shows(door, claiming(one.key, `${i}`))))
  assert.is(asked.length, 1)
})

test('--allow of a name needs a pin that a person made', async () => {
  const alice = person()
  assert.is(await rejection(open(['alice'])), 'guests/unknown')
  await profile.knownAgents().trust('alice', alice.key, { how: 'first-use' })
  assert.is(await rejection(open(['alice'])), 'guests/unknown')
  await profile.knownAgents().trust('alice', alice.key)
  views.set(alice.key, { names: ['alice'] })
  const door = await open(['alice'])
  assert.is(await shows(door, alice.der), 'alice')
})

test.run()
