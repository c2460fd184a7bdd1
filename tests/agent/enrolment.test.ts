// What passes between a machine and the agent of its authority, under attack: ends that do not know
// the secret, proofs of other sessions, vouches of others, and a book that was cut or is full.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Authority } from '../../agent/authority.ts'
import { toBase64 } from '../../agent/base64.ts'
import { enroll, isSecret, makeSecret, readSecret, Registrar } from '../../agent/enrolment.ts'
import type { EnrolmentSecret, EnrolmentTerms } from '../../agent/enrolment.ts'
import { EnrolmentBook } from '../../agent/enrolment_book.ts'
import { Profile } from '../../agent/profile.ts'
import { text, utf8 } from '../../core/bytes.ts'
import { TunnelError } from '../../core/errors.ts'
import { formatKey } from '../../core/key.ts'
import type { Stream } from '../../core/mux.ts'
import { testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'
import { fast as crypto, seededCrypto } from '../support/crypto.ts'
import { Pair } from '../support/sessions.ts'

const test = suite('agent/enrolment')
const TERMS: EnrolmentTerms = { names: ['web-*'], scope: '', labels: { role: 'web' }, days: 30 }
const HOUR_MS = 3_600_000

let base: TestWorld
let pair: Pair
let authority: Authority
let refused: string[]
test.before.each(async () => {
  base = await testWorld()
  pair = new Pair()
  const world = { ...base.world, clock: pair.clock }
  authority = await Authority.init(world, new Profile(world), { name: 'ops' })
  refused = []
})
test.after.each(() => base.close())

function bookOf(secret: EnrolmentSecret, count: number | undefined): Promise<EnrolmentBook> {
  const profile = new Profile(base.world)
  return EnrolmentBook.open({
    path: `${base.dir}/book`,
    files: base.world.files,
    clock: pair.clock,
    locked: (run) => profile.locked(secret.at, run),
  }, {
    authority: authority.key,
    count,
    expires: count === undefined ? undefined : pair.clock.now() + HOUR_MS,
  })
}

function registrar(secret?: { key: Uint8Array; book: EnrolmentBook }, terms = TERMS): Registrar {
  const enrolling = new Registrar({
    clock: pair.clock,
    crypto,
    authority,
    terms,
    ...(secret && { secret }),
    enrolled: () => {},
    refused: (_key, reason) => void refused.push(reason),
  })
  pair.onOpenB = (stream) => {
    const session = pair.sessionsOfB.at(-1)!
    enrolling.take(session, formatKey(session.peer.identity)).onOpen(stream)
  }
  return enrolling
}

async function ask(secret?: Uint8Array, names: readonly string[] = ['web-1']) {
  const { a } = await pair.open()
  return await enroll({ clock: pair.clock, crypto }, a, {
    identity: pair.a.identity.public,
    names,
    secret,
  })
}

async function codeOf(outcome: Promise<unknown>): Promise<string> {
  try {
    await outcome
  } catch (error) {
    if (error instanceof TunnelError) return error.code
    throw error
  }
  throw new Error('nothing was refused')
}

/** The other end answers with whatever it likes. */
function answerWith(answer: (stream: Stream) => unknown): void {
  pair.onOpenB = (stream) => {
    stream.accept()
    stream.handle({ data: () => {}, end: () => {}, closed: () => {} })
    const made = answer(stream)
    if (made === undefined) return
    stream.write(made instanceof Uint8Array ? made : utf8(JSON.stringify(made)))
    stream.end()
  }
}

async function vouchFor(key: Uint8Array, days = 30): Promise<string> {
  const grant = { key: formatKey(key), names: [], scope: '', labels: {}, days }
  return toBase64((await authority.sign([grant]))[0]!.statement)
}

test('a secret is 160 bits, read in any case, and its place says nothing of it', () => {
  const secret = makeSecret(seededCrypto('enrolment'))
  assert.match(secret.words, /^en_[a-z2-7]{32}$/)
  assert.match(secret.at, /^enroll-[0-9a-f]{16}$/)
  assert.is(readSecret(crypto, ` ${secret.words.toUpperCase()}\n`).at, secret.at)
  assert.ok(isSecret(secret.words))
  assert.not(isSecret('7-crop-lamp-vivid'))
  for (const wrong of ['en_', 'en_abc', secret.words.slice(0, -1), `${secret.words}a`, 'x', '']) {
    assert.throws(
      () => readSecret(crypto, wrong),
      (error: TunnelError) =>
        error.code === 'enroll/secret' && !error.message.includes(secret.words.slice(3)),
    )
  }
})

test('both who know the secret come together, and the vouch says what the authority meant', async () => {
  const secret = makeSecret(crypto)
  registrar({ key: secret.key, book: await bookOf(secret, 1) })
  const { vouch, authority: key, name } = await ask(secret.key)
  assert.equal([key, name], [authority.key, 'ops'])
  assert.equal([vouch.names, vouch.labels], [['web-1'], { role: 'web' }])
  assert.is(vouch.notAfter - vouch.notBefore, 30 * 24 * HOUR_MS)
})

test('an agent that does not know the secret is not believed, though its vouch holds', async () => {
  const vouch = await vouchFor(pair.a.identity.public)
  const answer = { authority: authority.key, name: 'ops', vouch }
  const { key } = makeSecret(crypto)
  for (const proof of [undefined, '', 'ab'.repeat(32), 7]) {
    answerWith(() => ({ ...answer, ...(proof !== undefined && { proof }) }))
    assert.is(await codeOf(ask(key)), 'enroll/proof')
  }
})

test("the machine's own proof come back is no proof of the other end", async () => {
  const vouch = await vouchFor(pair.a.identity.public)
  const { key } = makeSecret(crypto)
  answerWith((stream) => {
    const { proof } = JSON.parse(text(stream.visit.tail)) as { proof: string }
    return { authority: authority.key, name: 'ops', vouch, proof }
  })
  assert.is(await codeOf(ask(key)), 'enroll/proof')
})

test('a proof is good in its own session alone: whoever sits between gets nothing', async () => {
  const secret = makeSecret(crypto)
  let stolen = ''
  answerWith((stream) => {
    stolen = text(stream.visit.tail)
    return { error: 'fault' }
  })
  assert.is(await codeOf(ask(secret.key)), 'enroll/refused')
  assert.match(stolen, /"proof":"[0-9a-f]{64}"/)
  const book = await bookOf(secret, 1)
  registrar({ key: secret.key, book })
  const { a } = await pair.open()
  const answer = await new Promise<string>((resolve) => {
    const stream = a.open(utf8(stolen))
    stream.handle({ data: (bytes) => resolve(text(bytes)), end: () => {}, closed: () => {} })
  })
  assert.is(answer, '{"error":"proof"}')
  assert.is(book.left, 1, 'and it was not counted')
  assert.equal((await authority.register()).length, 0, 'and nothing was signed')
})

test('vouches of others, run out, forged or none at all are refused', async () => {
  const own = await vouchFor(pair.a.identity.public)
  const good = { authority: authority.key, name: 'ops', vouch: own }
  const others = await vouchFor(pair.b.identity.public)
  pair.clock.jump(-2 * 24 * HOUR_MS)
  const short = await vouchFor(pair.a.identity.public, 1)
  pair.clock.jump(2 * 24 * HOUR_MS)
  const { vouch: _, ...bare } = good
  for (
    const [what, answer] of [
      ['of another', { ...good, vouch: others }],
      ['by another', { ...good, authority: formatKey(pair.b.identity.public) }],
      ['run out', { ...good, vouch: short }],
      ['forged', { ...good, vouch: own.replace(/.{4}(.{4})$/, 'AAAA$1') }],
      ['no statement', { ...good, vouch: 'AAAA' }],
      ['none', bare],
      ['no name', { ...good, name: 'a b' }],
      ['no object', utf8('[')],
      ['too long', new Uint8Array(20_000)],
    ] as const
  ) {
    answerWith(() => answer)
    assert.is(await codeOf(ask()), 'enroll/answer', what)
  }
})

test('silence ends in time, with its own word', async () => {
  answerWith(() => undefined)
  const { a } = await pair.open()
  const asking = codeOf(enroll({ clock: pair.clock, crypto }, a, {
    identity: pair.a.identity.public,
    names: [],
  }))
  await pair.pass(21_000)
  assert.is(await asking, 'enroll/timeout')
})

test('by a code only the identity that paired is served, and once', async () => {
  const enrolling = registrar()
  assert.is(await codeOf(ask()), 'enroll/refused')
  assert.equal((await authority.register()).length, 0)
  enrolling.invite(formatKey(pair.a.identity.public))
  assert.equal((await ask()).vouch.names, ['web-1'])
  assert.is(await codeOf(ask()), 'enroll/refused')
})

test('requests that are none are answered so, and count nothing', async () => {
  const enrolling = registrar()
  enrolling.invite(formatKey(pair.a.identity.public))
  for (
    const request of [
      '',
      '[]',
      '{"names":"web-1"}',
      '{"names":["Web"]}',
      '{"names":[7]}',
      JSON.stringify({ names: Array.from({ length: 17 }, (_, i) => `web-${i}`) }),
      `{"names":[],"x":"${'x'.repeat(5000)}"}`,
    ]
  ) {
    const { a } = await pair.open()
    const answer = await new Promise<string>((resolve) => {
      const stream = a.open(utf8(request))
      stream.handle({ data: (bytes) => resolve(text(bytes)), end: () => {}, closed: () => {} })
    })
    assert.is(answer, '{"error":"request"}', request.slice(0, 40))
  }
  assert.equal((await ask()).vouch.names, ['web-1'])
})

test('without patterns a vouch has no names, whatever the machine asks for', async () => {
  const enrolling = registrar(undefined, { ...TERMS, names: [] })
  enrolling.invite(formatKey(pair.a.identity.public))
  assert.equal((await ask(undefined, ['db'])).vouch.names, [])
})

test('the book counts identities, not tries; three tries each; what broke off counts as one', async () => {
  const secret = makeSecret(crypto)
  const book = await bookOf(secret, 3)
  const [one, two, three] = [1, 2, 3].map((n) => formatKey(new Uint8Array(32).fill(n))) as [
    string,
    string,
    string,
  ]
  for (let i = 0; i < 3; i++) await book.enter(one)
  assert.is(await codeOf(book.enter(one)), 'enroll/count')
  assert.is(book.left, 2)
  await book.enter(two)
  await base.world.files.append(`${base.dir}/book`, utf8('abc\n'))
  assert.is(await codeOf(book.enter(three)), 'enroll/count')
  const again = await bookOf(secret, undefined)
  assert.equal([again.terms.count, again.left], [3, 0])
})

test('forty at once get no more places than there are', async () => {
  const secret = makeSecret(crypto)
  const [book, other] = [await bookOf(secret, 5), await bookOf(secret, undefined)]
  const outcomes = await Promise.all(
    Array.from(
      { length: 40 },
      (_, i) =>
        (i % 2 === 0 ? book : other).enter(formatKey(new Uint8Array(32).fill(i + 1)))
          .then(() => 'in', (error: TunnelError) => error.code),
    ),
  )
  assert.is(outcomes.filter((one) => one === 'in').length, 5)
  assert.is(outcomes.filter((one) => one === 'enroll/count').length, 35)
})

test('a book that ran out lets nobody in, one that is spoilt stops, and one is of one authority', async () => {
  const secret = makeSecret(crypto)
  const book = await bookOf(secret, 3)
  assert.is(await codeOf(bookOf(secret, 4)), 'enroll/begun')
  pair.clock.jump(HOUR_MS)
  assert.is(await codeOf(book.enter(authority.key)), 'enroll/expired')
  await base.world.files.write(`${base.dir}/book`, utf8('{}\n'))
  assert.is(await codeOf(bookOf(secret, undefined)), 'enroll/book')
  assert.is(await codeOf(book.enter(authority.key)), 'enroll/book')
})

test.run()
