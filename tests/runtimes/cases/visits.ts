/**
 * Agents that meet: names of agents, sessions and datagrams over visit links, grants between scopes,
 * rooms, lists of agents. The rules are those of tests/relay/visits.test.ts; here every runtime keeps them.
 */
import * as assert from 'uvu/assert'
import { fromHex, utf8 } from '../../../core/bytes.ts'
import { RESET } from '../../../core/frame.ts'
import type { VisitName } from '../../../core/frame.ts'
import { formatKey, generateIdentity } from '../../../core/key.ts'
import { StreamReset } from '../../../core/mux.ts'
import type { Stream } from '../../../core/mux.ts'
import { encodePassport } from '../../../core/passport.ts'
import { encodeStatement } from '../../../core/statement.ts'
import { api, ask, Reader, Refused, within } from '../../support/client.ts'
import type { WireAgent } from '../../support/client.ts'
import { fast } from '../../support/crypto.ts'
import type { Bed, Cases } from '../bed.ts'
import { echo, until, writeAll } from '../bed.ts'

const NOTHING: Uint8Array = new Uint8Array(0)

interface Row {
  key: string
  scope: string
  names: { name: string; kind?: string }[]
  labels: Record<string, string>
  online: boolean
}

function open(agent: WireAgent, kind: VisitName, endpoint: string, tail = NOTHING): Stream {
  return agent.mux.open({ kind, port: 1, address: 'a lie', endpoint, tail })
}

async function refused(stream: Stream): Promise<number> {
  const error = await within(new Reader(stream).closed, 'a reset')
  assert.instance(error, StreamReset)
  return (error as StreamReset).reset
}

/** An agent with a name that other agents alone ask for. */
async function named(
  bed: Bed,
  options: Parameters<Bed['agent']>[0] = {},
): Promise<{ agent: WireAgent; name: string }> {
  const agent = await bed.agent(options)
  const name = bed.name()
  assert.equal(await agent.claim(name, { kind: 'agent', mode: 'session' }), { ok: true, name })
  return { agent, name }
}

async function publish(agent: WireAgent, names: string[]): Promise<void> {
  const passport = encodePassport({
    identity: agent.identity.public,
    sequence: 1,
    notBefore: Date.now() - 1000,
    notAfter: Date.now() + 1e9,
    certificates: [],
    names,
    ciphers: [],
  }, (message) => fast.ed25519Sign(agent.identity.seed, message))
  const text = Buffer.from(passport).toString('base64')
  const reply = await agent.request({ do: 'publish', passport: text, after: 0 })
  assert.is(reply['ok'], true, JSON.stringify(reply))
}

const codeOf = (reply: Record<string, unknown>): string =>
  (reply['error'] as { code: string } | undefined)?.code ?? 'ok'

async function rows(agent: WireAgent, more: object = {}): Promise<Row[]> {
  return (await agent.request({ do: 'agents', ...more }))['agents'] as Row[]
}

async function grant(bed: Bed, body: { names: string; to: string }): Promise<void> {
  const key = await bed.secret('alice')
  const answer = await api(bed.relay, '/grants', { body, key })
  assert.is(answer.status, 201, answer.text)
}

const visitTo = (target: WireAgent) => ({ role: 'visit', target: target.identity.public }) as const

export const visitCases: Cases = (test, bed) => {
  test('a session passes bytes both ways to a name of its scope', async () => {
    const { agent, name } = await named(bed)
    const visiting = await bed.agent(visitTo(agent))
    const near = open(visiting, 'session', name)
    const far = await agent.opened()
    assert.equal([far.visit.kind, far.visit.endpoint, far.visit.port], ['session', name, 0])
    assert.not.match(far.visit.address, 'lie')
    echo(far)
    const reader = new Reader(near)
    const sent = fast.randomBytes(500_000)
    const [, got] = await Promise.all([
      writeAll(near, sent).then(() => near.end()),
      reader.take(sent.length),
    ])
    assert.ok(got.equals(sent))
    assert.is((await reader.rest()).end, 'end')
  })

  test('datagrams pass both ways on a channel of one process', async () => {
    const { agent, name } = await named(bed)
    const visiting = await bed.agent(visitTo(agent))
    const near = open(
      visiting,
      'datagrams',
      name,
      Uint8Array.from([...agent.group, ...agent.group]),
    )
    const far = await agent.opened()
    far.accept()
    const come = (stream: Stream): Promise<string> =>
      within(
        new Promise((resolve) => {
          stream.onPacket = (datagram) => resolve(Buffer.from(datagram).toString())
        }),
        'a datagram',
      )
    const [there, back] = [come(far), come(near)]
    near.sendPacket(utf8('ping'))
    assert.is(await there, 'ping')
    far.sendPacket(utf8('pong'))
    assert.is(await back, 'pong')
  })

  test('a tail that names a group leads to that process alone', async () => {
    const identity = generateIdentity(fast)
    const { agent: one, name } = await named(bed, { identity })
    const two = await bed.agent({ identity })
    await two.claim(name, { kind: 'agent', mode: 'session' })
    const visiting = await bed.agent(visitTo(one))
    for (const agent of [one, two, one, two]) {
      open(visiting, 'session', name, agent.group)
      assert.equal(Uint8Array.from((await agent.opened()).visit.tail), agent.group)
    }
    assert.is(await refused(open(visiting, 'session', name, new Uint8Array(16))), RESET.refused)
    assert.is(await refused(open(visiting, 'session', name, new Uint8Array(5))), RESET.refused)
  })

  test('another scope sees nothing of a name, until it is granted, and no more after', async () => {
    const { agent, name } = await named(bed, { labels: { env: 'prod' } })
    await publish(agent, [name])
    const bob = await bed.agent({ scope: 'bob' })
    const visiting = await bed.agent({ ...visitTo(agent), scope: 'bob' })
    const unknown = await bob.request({ do: 'resolve', name: 'nobody-has-this' })
    assert.equal(await bob.request({ do: 'resolve', name }), unknown)
    assert.is((await ask(bed.relay, `/v1/names/${name}`)).status, 404)
    assert.is(await refused(open(visiting, 'session', name)), RESET.refused)
    assert.not.ok((await rows(bob)).some(({ key }) => key === agent.key))

    await grant(bed, { names: name, to: 'bob' })
    const seen = await bob.request({ do: 'resolve', name })
    const [row] = seen['agents'] as Record<string, unknown>[]
    assert.equal([seen['scope'], row!['key'], row!['labels']], ['alice', agent.key, {
      env: 'prod',
    }])
    open(visiting, 'session', name)
    await agent.opened()
    const shown = (await rows(bob)).find(({ key }) => key === agent.key)
    assert.equal(shown?.names, [{ name, kind: 'agent' }])

    const words = new URLSearchParams({ names: name, to: 'bob' })
    const key = await bed.secret('alice')
    const gone = await api(bed.relay, `/grants?${words}`, { method: 'DELETE', key })
    assert.is(gone.status, 204, gone.text)
    assert.is(await refused(open(visiting, 'session', name)), RESET.refused)
    assert.equal(await bob.request({ do: 'resolve', name }), unknown)
  })

  test('a grant of before the claim holds for it too', async () => {
    const agent = await bed.agent()
    const name = `early-${bed.name()}`
    await grant(bed, { names: 'early-*', to: 'carol' })
    await agent.claim(name, { kind: 'agent', mode: 'session' })
    const visiting = await bed.agent({ ...visitTo(agent), scope: 'carol' })
    open(visiting, 'session', name)
    assert.is((await agent.opened()).visit.endpoint, name)
  })

  test('agents lists the scope by labels, with those that are away, the same by REST', async () => {
    const scope = 'herd'
    const one = await named(bed, { scope, labels: { env: 'prod', region: 'us' } })
    const two = await named(bed, { scope, labels: { env: 'prod', region: 'eu' } })
    const all = await rows(one.agent)
    assert.equal(all.map(({ key }) => key), [one.agent.key, two.agent.key].sort())
    const [west] = await rows(one.agent, { selector: 'env=prod,region!=eu' })
    assert.equal([west!.key, west!.names[0]!.name], [one.agent.key, one.name])
    const key = await bed.secret(scope)
    const rest = await api(bed.relay, '/peers?selector=region%3Deu', { key })
    assert.equal((rest.json()['items'] as Row[]).map((row) => row.key), [two.agent.key])
    const { etag } = await one.agent.request({ do: 'agents' })
    assert.is((await one.agent.request({ do: 'agents', etag }))['unchanged'], true)
    await two.agent.close()
    await until(
      async () => (await rows(one.agent)).some((row) => row.key === two.agent.key && !row.online),
      'the agent that went away',
    )
  })

  test('a room leads a stranger to the link that made it, once for each entry', async () => {
    const alice = await bed.agent({ scope: 'alice' })
    const bob = await bed.agent({ scope: 'bob' })
    const { room, expires } = await alice.request({ do: 'room' }) as Record<string, number>
    assert.ok(room! >= 1 && expires! > Date.now())
    assert.is(codeOf(await alice.request({ do: 'enter', room })), 'pair/own-room')
    const entered = await bob.request({ do: 'enter', room })
    assert.is(entered['key'], alice.key)
    const token = fromHex(String(entered['token']))
    const visit = { ...visitTo(alice), scope: 'bob' }
    const visiting = await bed.agent({ ...visit, identity: bob.identity })
    const near = open(visiting, 'pair', String(room), token)
    const far = await alice.opened()
    far.accept()
    far.write(utf8('greet'))
    assert.is((await new Reader(near).take(5)).toString(), 'greet')
    assert.is(await refused(open(visiting, 'pair', String(room), token)), RESET.refused, 'used')
    const stolen = fromHex(String((await bob.request({ do: 'enter', room }))['token']))
    const thief = await bed.agent(visit)
    assert.is(await refused(open(thief, 'pair', String(room), stolen)), RESET.refused)
    await bob.request({ do: 'enter', room })
    assert.is(codeOf(await bob.request({ do: 'enter', room })), 'pair/taken')
    await alice.request({ do: 'leave', room })
    const late = await bed.agent({ scope: 'bob' })
    assert.is(codeOf(await late.request({ do: 'enter', room })), 'pair/unknown-room')
  })

  test('a room ends with its link', async () => {
    const alice = await bed.agent({ scope: 'alice' })
    const { room } = await alice.request({ do: 'room' })
    await alice.close()
    await until(async () => {
      const guest = await bed.agent({ scope: 'bob' })
      return codeOf(await guest.request({ do: 'enter', room })) === 'pair/unknown-room'
    }, 'the end of the room')
  })

  test('a revoked identity loses home and visit links, and is let in no more', async () => {
    const identity = generateIdentity(fast)
    const host = await bed.agent({ scope: 'alice' })
    const home = await bed.agent({ scope: 'bob', identity })
    const visiting = await bed.agent({ ...visitTo(host), scope: 'bob', identity })
    const statement = encodeStatement(
      { kind: 'revocation', identity: identity.public, time: Date.now() },
      (message) => fast.ed25519Sign(identity.seed, message),
    )
    const text = Buffer.from(statement).toString('base64')
    const forged = Buffer.from(statement)
    forged[forged.length - 1]! ^= 1
    const wrong = { do: 'publish', statement: forged.toString('base64') }
    assert.is(codeOf(await host.request(wrong)), 'statement/forged')
    assert.is(codeOf(await host.request({ do: 'publish', statement: text })), 'ok')
    assert.is((await home.closed).code, 4403)
    assert.is((await visiting.closed).code, 4403)
    for (const options of [{ identity }, { ...visitTo(host), identity }]) {
      const error = await bed.agent({ ...options, scope: 'bob' }).then(() => undefined, (e) => e)
      assert.instance(error, Refused)
      assert.is((error as Refused).code, 4403)
      assert.is((error as Refused).notice?.code, 'admit/revoked')
    }
    const key = formatKey(identity.public)
    assert.equal((await host.request({ do: 'statements', key }))['statements'], [text])
  })
}
