/** Who is let in, who is not, and what either is told. */
import * as assert from 'uvu/assert'
import { decodeNotice, encodeJson, FRAME } from '../../../core/frame.ts'
import { formatKey, generateIdentity } from '../../../core/key.ts'
import { encodeHello } from '../../../core/greeting.ts'
import { admissionFor, api, ask, makeKey, RawLink, Refused } from '../../support/client.ts'
import type { AgentOptions } from '../../support/client.ts'
import { fast } from '../../support/crypto.ts'
import type { Bed, Cases } from '../bed.ts'
import { until } from '../bed.ts'

const ADMIT_MS_MAX = 5000

/** How a link that must not be admitted was refused. */
async function refusal(bed: Bed, options: AgentOptions): Promise<Refused> {
  try {
    await bed.agent(options)
  } catch (error) {
    if (error instanceof Refused) return error
    throw error
  }
  throw new Error('it was admitted')
}

export const admissionCases: Cases = (test, bed) => {
  test('an agent is admitted with a key, by the pinned relay, and told what it can', async () => {
    const { relay, can } = bed
    const agent = await bed.agent(relay.relayKey === '' ? {} : { pin: relay.relayKey })
    const { welcome } = agent
    assert.is(welcome['scope'], 'alice')
    assert.is(welcome['secure'], 'secure.localhost')
    assert.is(welcome['apps'], 'apps.localhost')
    assert.is(welcome['port'], relay.port)
    assert.is(welcome['scheme'], can.tls ? 'https' : 'http')
    assert.match(String(welcome['link']), /^[0-9a-f]{32}$/)
    const told = welcome['can'] as string[]
    for (const word of ['passthrough', 'raw-tcp', 'raw-udp']) {
      assert.is(told.includes(word), can.raw, word)
    }
    assert.is(told.includes('bulk'), can.bulk)
    assert.is(Number(welcome['bulk']) > 0, can.bulk)
    assert.ok(told.includes('inspectable'))
    assert.is(agent.link.certificate !== undefined, can.tls)
  })

  test('no key and a wrong key are refused with 4401 and words for people', async () => {
    for (
      const options of [
        { credential: { kind: 'none' } } as const,
        { secret: 'sk_alice_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA' },
        { secret: 'nonsense' },
        { credential: { kind: 'token', secret: 'ft_alice_wrong' } } as const,
      ]
    ) {
      const { code, notice } = await refusal(bed, options)
      assert.is(code, 4401, JSON.stringify(options))
      assert.match(notice?.code ?? '', /^(credentials|admit)\//)
      assert.match(notice?.message ?? '', /^Cannot /)
    }
  })

  test('a key that has expired is refused with 4401', async () => {
    const expiresAt = new Date(Date.now() + 1000).toISOString()
    const { secret } = await makeKey(bed.relay, { expiresAt })
    await bed.agent({ secret })
    await until(() => Date.now() > Date.parse(expiresAt), 'the expiry')
    assert.is((await refusal(bed, { secret })).code, 4401)
  })

  test('keys are made, listed and revoked by REST; a live link ends within a second', async () => {
    const { relay } = bed
    const scope = 'revoked'
    const { id, secret } = await makeKey(relay, { scope })
    const other = await makeKey(relay, { scope })
    const agent = await bed.agent({ secret })
    const bystander = await bed.agent({ secret: other.secret })
    const list = async (): Promise<Record<string, unknown>[]> =>
      (await api(relay, `/keys?scope=${scope}`)).json()['items'] as Record<string, unknown>[]
    assert.equal((await list()).map((key) => key['id']).sort(), [id, other.id].sort())
    assert.not.match(JSON.stringify(await list()), secret)
    const startedMs = performance.now()
    const deleted = await api(relay, `/keys/${id}`, { method: 'DELETE' })
    assert.is(deleted.status, 204, deleted.text)
    assert.is((await agent.closed).code, 4403)
    assert.ok(performance.now() - startedMs < 1000, 'within a second')
    assert.ok((await list()).find((key) => key['id'] === id)!['revokedAt'])
    assert.is((await refusal(bed, { secret })).code, 4401)
    assert.is((await bystander.ask(bed.name()))['ok'], true, 'another key of the scope goes on')
    assert.is((await api(relay, '/keys', { key: '' })).status, 401)
    assert.is((await api(relay, '/keys', { key: 'sk_alice_wrong' })).status, 401)
  })

  test('a fleet token allows its names and no more agents than it says', async () => {
    const { secret } = await makeKey(bed.relay, {
      path: 'tokens',
      scope: 'fleet',
      names: ['edge-*'],
      maxAgents: 2,
    })
    const one = await bed.agent({ secret })
    assert.is((await one.ask('edge-1'))['ok'], true)
    const refused = await one.ask('other')
    assert.is((refused['error'] as { code: string }).code, 'claim/not-allowed')
    await bed.agent({ secret })
    await bed.agent({ secret, identity: one.identity })
    const third = await refusal(bed, { secret })
    assert.is(third.code, 4429)
    assert.is(third.notice?.code, 'quota/exceeded')
  })

  test('an admit that was recorded on another link is refused', async () => {
    const identity = generateIdentity(fast)
    const key = formatKey(identity.public)
    const secret = await bed.secret('alice')
    const first = await bed.rawLink(key)
    const admission = admissionFor(first, { identity, secret })
    const helloBytes = admission.hello()
    first.send('hello', 0, helloBytes)
    const recorded = admission.answer((await first.next()).payload)
    first.send('admit', 0, recorded)
    assert.is((await first.next()).type, FRAME.welcome)
    const second = await bed.rawLink(key)
    second.send('hello', 0, helloBytes)
    assert.is((await second.next()).type, FRAME.challenge)
    second.send('admit', 0, recorded)
    assert.is((await second.closed).code, 4400)
    first.send('admit', 0, recorded)
    assert.is((await first.closed).code, 4400, 'nor twice on its own')
  })

  test('a hello to another star than the path says is refused', async () => {
    const [one, two] = [generateIdentity(fast), generateIdentity(fast)]
    const cases: [string, 'home' | 'visit', Uint8Array, Uint8Array][] = [
      ['home at the star of another', 'home', one.public, two.public],
      ['home whose target is another', 'home', two.public, one.public],
      ['visit to another than the path', 'visit', two.public, one.public],
    ]
    for (const [name, role, target, path] of cases) {
      const link = await bed.rawLink(formatKey(path))
      link.send(
        'hello',
        0,
        encodeHello({
          role,
          agent: one.public,
          target,
          nonce: fast.randomBytes(32),
          ephemeral: fast.x25519Public(fast.randomBytes(32)),
        }),
      )
      assert.is((await link.closed).code, 4400, name)
    }
  })

  test('an agent without the key of its identity, or with a torn admit, is refused', async () => {
    const mine = generateIdentity(fast)
    const theirs = generateIdentity(fast)
    const secret = await bed.secret('alice')
    const cases: [string, (admit: Uint8Array) => Uint8Array, typeof mine][] = [
      ['a stolen name', (admit) => admit, { seed: mine.seed, public: theirs.public }],
      ['a bit that flipped', (admit) => admit.map((b, i) => (i === 9 ? b ^ 1 : b)), mine],
      ['a byte short', (admit) => admit.subarray(0, -1), mine],
      ['a byte too many', (admit) => Uint8Array.from([...admit, 0]), mine],
    ]
    for (const [name, change, identity] of cases) {
      const link = await bed.rawLink(formatKey(identity.public))
      const admission = admissionFor(link, { identity, secret })
      link.send('hello', 0, admission.hello())
      const challenge = await link.next()
      link.send('admit', 0, change(admission.answer(challenge.payload)))
      assert.is((await link.closed).code, 4400, name)
    }
  })

  test('anything but a hello first ends the link', async () => {
    for (const name of ['request', 'admit', 'ping'] as const) {
      const link = await bed.rawLink(formatKey(generateIdentity(fast).public))
      const payload = name === 'ping' ? new Uint8Array(8) : encodeJson({ do: 'passport' })
      link.send(name, name === 'request' ? 1 : 0, payload)
      assert.is((await link.closed).code, 4400, name)
    }
  })

  test('a link that is not admitted within 5 s is closed with 4408, pings or not', async () => {
    const identity = generateIdentity(fast)
    const startedMs = performance.now()
    const silent = await bed.rawLink(formatKey(identity.public))
    const halfway = await bed.rawLink(formatKey(identity.public))
    halfway.send('hello', 0, admissionFor(halfway, { identity, secret: 'sk' }).hello())
    assert.is((await halfway.next()).type, FRAME.challenge)
    const ends = await Promise.all([silent.closed, halfway.closed])
    assert.equal(ends.map(({ code }) => code), [4408, 4408])
    const tookMs = performance.now() - startedMs
    assert.ok(tookMs > ADMIT_MS_MAX - 500 && tookMs < ADMIT_MS_MAX + 5000, `${tookMs} ms`)
  })

  test('the door says what is wrong with a request that is no link', async () => {
    const key = formatKey(generateIdentity(fast).public)
    const status = async (path: string, method = 'GET'): Promise<number> =>
      (await ask(bed.relay, path, { method })).status
    assert.is(await status(`/v1/link/${key}`), 426)
    assert.is(await status(`/v1/link/${key}`, 'POST'), 405)
    assert.is(await status('/v1/link/short'), 400)
    assert.is(await status('/v1/nothing'), 404)
    for (const [path, protocol] of [[key, 'other'], ['a'.repeat(51), 'sotto.v1']] as const) {
      let message = ''
      await RawLink.open(bed.relay, path, protocol).catch((error: Error) => {
        message = error.message
      })
      assert.match(message, 'status 400', path)
    }
  })

  test('a notice comes before the close, on the same link', async () => {
    const identity = generateIdentity(fast)
    const link = await bed.rawLink(formatKey(identity.public))
    const admission = admissionFor(link, { identity })
    link.send('hello', 0, admission.hello())
    link.send('admit', 0, admission.answer((await link.next()).payload))
    const { type, payload } = await link.next()
    assert.is(type, FRAME.notice)
    assert.is(decodeNotice(payload).code, 'admit/credential')
    assert.is((await link.closed).code, 4401)
  })
}
