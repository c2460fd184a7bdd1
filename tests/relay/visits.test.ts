// What agents ask of a relay about each other, and what visit links may open, over in-memory sockets by
// the real protocol. Each rule is attacked by an agent of another scope that knows every key and name.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { fromHex, utf8 } from '../../core/bytes.ts'
import { encodeFrame, encodePackets, encodeVisit, FRAME, RESET } from '../../core/frame.ts'
import type { VisitName } from '../../core/frame.ts'
import { generateIdentity } from '../../core/key.ts'
import { StreamReset } from '../../core/mux.ts'
import type { Stream } from '../../core/mux.ts'
import { encodePassport } from '../../core/passport.ts'
import { fast } from '../support/crypto.ts'
import { collect, makeStar } from '../support/star.ts'
import type { Star, TestAgent } from '../support/star.ts'

const visits = suite<{ star: Star }>('relay/visits')

visits.before.each(async (context) => {
  context.star = await makeStar()
})
visits.after.each(async (context) => {
  await context.star.close()
})

const NOTHING: Uint8Array = new Uint8Array(0)

async function publish(agent: TestAgent, names: string[]): Promise<void> {
  const passport = encodePassport({
    identity: agent.identity.public,
    sequence: 1,
    notBefore: Date.now(),
    notAfter: Date.now() + 1e9,
    certificates: [],
    names,
    ciphers: [],
  }, (message) => fast.ed25519Sign(agent.identity.seed, message))
  const text = Buffer.from(passport).toString('base64')
  const reply = await agent.request({ do: 'publish', passport: text, after: 0 })
  assert.is(reply['ok'], true, JSON.stringify(reply))
}

function open(agent: TestAgent, kind: VisitName, endpoint: string, tail = NOTHING): Stream {
  return agent.mux.open({ kind, address: 'a lie', port: 1, endpoint, tail })
}

/** How a stream that is refused ended. */
function refusal(stream: Stream): Promise<number> {
  return new Promise((resolve) =>
    stream.handle({
      data() {},
      end() {},
      closed: (error) => resolve(error instanceof StreamReset ? error.reset : -1),
    })
  )
}

function nextOpened(agent: TestAgent): Promise<Stream> {
  return new Promise((resolve) => {
    agent.onOpen = (stream) => {
      stream.accept()
      resolve(stream)
    }
  })
}

const codeOf = (reply: Record<string, unknown>): string =>
  (reply['error'] as { code: string } | undefined)?.code ?? 'ok'

visits("an agent's name has no host, no port, and one owner", async ({ star }) => {
  const alice = await star.agent({ scope: 'alice' })
  const bob = await star.agent({ scope: 'bob' })
  const reply = await alice.request({ do: 'claim', name: 'box', kind: 'agent' })
  assert.equal(reply, { ok: true, name: 'box' })
  assert.is(
    codeOf(await bob.request({ do: 'claim', name: 'box', kind: 'agent' })),
    'registry/taken',
  )
  assert.is(codeOf(await bob.claim('box')), 'registry/taken')
  for (
    const [kind, mode] of [
      ['agent', 'verified'],
      ['agent', 'inspectable'],
      ['agent', 'raw'],
      ['http', 'session'],
      ['tcp', 'session'],
    ]
  ) {
    const wrong = await alice.request({ do: 'claim', name: 'other', kind, mode })
    assert.is(codeOf(wrong), 'claim/mode', `${kind} ${mode}`)
  }
  const { sniffed } = await import('../support/hello.ts').then(({ hello, serverNames }) => ({
    sniffed: hello({ extensions: [serverNames('box.secure.relay.test')] }),
  }))
  const visitor = star.visitor()
  visitor.write(sniffed)
  assert.equal([...(await collect(visitor)).bytes].slice(-1), [112], 'no visitor reaches it')
})

visits(
  'a session reaches a name of its own scope, in any mode that is end to end',
  async ({ star }) => {
    const alice = await star.agent({ scope: 'alice' })
    await alice.request({ do: 'claim', name: 'box', kind: 'agent' })
    await alice.claim('web')
    await alice.claim('plain', { mode: 'inspectable' })
    const visiting = await star.agent({
      role: 'visit',
      target: alice.identity.public,
      scope: 'alice',
    })
    for (const name of ['box', 'web']) {
      const reached = nextOpened(alice)
      const near = open(visiting, 'session', name)
      const far = await reached
      assert.equal([far.visit.kind, far.visit.endpoint, far.visit.address, far.visit.port], [
        'session',
        name,
        '192.0.2.9',
        0,
      ])
      near.write(utf8('sealed'))
      assert.is((await collect(far, 6)).bytes.toString(), 'sealed')
    }
    assert.is(await refusal(open(visiting, 'session', 'plain')), RESET.refused)
    assert.is(await refusal(open(visiting, 'session', 'nothing')), RESET.refused)
    assert.is(await refusal(open(visiting, 'connect', 'box')), RESET.refused, 'no TLS behind it')
  },
)

visits('another scope reaches nothing but by TLS, until it is granted', async ({ star }) => {
  const alice = await star.agent({ scope: 'alice' })
  await alice.request({ do: 'claim', name: 'box', kind: 'agent' })
  await alice.claim('web')
  const bob = await star.agent({ role: 'visit', target: alice.identity.public, scope: 'bob' })
  for (const kind of ['session', 'datagrams'] as const) {
    const tail = kind === 'session' ? NOTHING : new Uint8Array(32)
    for (const name of ['box', 'web']) {
      assert.is(await refusal(open(bob, kind, name, tail)), RESET.refused, `${kind} ${name}`)
    }
  }
  const tls = nextOpened(alice)
  open(bob, 'connect', 'web')
  assert.is((await tls).visit.kind, 'connect')

  await star.registry.grants.add({ scope: 'alice', to: 'bob', names: 'b?x' })
  const reached = nextOpened(alice)
  open(bob, 'session', 'box')
  await reached
  assert.is(await refusal(open(bob, 'session', 'web')), RESET.refused, 'not what was granted')
  const carol = await star.agent({ role: 'visit', target: alice.identity.public, scope: 'carol' })
  assert.is(await refusal(open(carol, 'session', 'box')), RESET.refused, 'granted to bob alone')
  await star.registry.grants.remove({ scope: 'alice', to: 'bob', names: 'b?x' })
  assert.is(await refusal(open(bob, 'session', 'box')), RESET.refused, 'no more')
})

visits('what is blocked takes no session', async ({ star }) => {
  const alice = await star.agent()
  await alice.request({ do: 'claim', name: 'box', kind: 'agent' })
  const visiting = await star.agent({ role: 'visit', target: alice.identity.public })
  const reached = nextOpened(alice)
  const live = open(visiting, 'session', 'box')
  await reached
  await star.registry.block({ name: 'box', reason: 'abuse' })
  assert.is(await refusal(live), RESET.blocked)
  assert.is(await refusal(open(visiting, 'session', 'box')), RESET.refused)
})

visits('a tail that names a group leads to that process, and to no other', async ({ star }) => {
  const identity = generateIdentity(fast)
  const [one, two] = ['11', '22'].map((pair) => fromHex(pair.repeat(16))) as [
    Uint8Array,
    Uint8Array,
  ]
  const first = await star.agent({ identity, group: one })
  const second = await star.agent({ identity, group: two })
  for (const agent of [first, second]) {
    await agent.request({ do: 'claim', name: 'box', kind: 'agent' })
  }
  const visiting = await star.agent({ role: 'visit', target: identity.public })
  for (const [agent, other, group] of [[first, second, one], [second, first, two]] as const) {
    other.onOpen = (stream) => stream.reset(RESET.aborted, 'wrong process')
    for (let i = 0; i < 3; i++) {
      const reached = nextOpened(agent)
      open(visiting, 'session', 'box', group)
      await reached
    }
    const channel = nextOpened(agent)
    open(visiting, 'datagrams', 'box', Uint8Array.from([...group, ...new Uint8Array(16)]))
    assert.is((await channel).visit.tail.length, 32)
  }
  assert.is(await refusal(open(visiting, 'session', 'box', new Uint8Array(16))), RESET.refused)
  await second.request({ do: 'release', name: 'box' })
  assert.is(
    await refusal(open(visiting, 'session', 'box', two)),
    RESET.refused,
    'claims it no more',
  )
  for (const length of [1, 15, 17, 32]) {
    assert.is(
      await refusal(open(visiting, 'session', 'box', new Uint8Array(length))),
      RESET.refused,
    )
  }
  for (const length of [0, 16, 33]) {
    const tail = new Uint8Array(length)
    assert.is(await refusal(open(visiting, 'datagrams', 'box', tail)), RESET.refused)
  }
})

visits('a visit link opens nothing but what is its own', async ({ star }) => {
  const alice = await star.agent()
  await alice.claim('web')
  const visiting = await star.agent({ role: 'visit', target: alice.identity.public })
  for (const kind of ['tls', 'raw', 'http', 'udp', 'service'] as const) {
    assert.is(await refusal(open(visiting, kind, 'web')), RESET.refused, kind)
  }
})

visits(
  'datagrams pass both ways, and only where they belong',
  async ({ star }) => {
    const group = fast.randomBytes(16)
    const alice = await star.agent({ group })
    await alice.request({ do: 'claim', name: 'box', kind: 'agent', mode: 'session' })
    const visiting = await star.agent({ role: 'visit', target: alice.identity.public })
    const reached = nextOpened(alice)
    const near = open(visiting, 'datagrams', 'box', Uint8Array.from([...group, ...NOTHING16]))
    const far = await reached
    const got = (stream: Stream): Promise<string> =>
      new Promise((resolve) => {
        stream.onPacket = (datagram) => resolve(Buffer.from(datagram).toString())
      })
    const [there, back] = [got(far), got(near)]
    near.sendPacket(utf8('ping'))
    assert.is(await there, 'ping')
    far.sendPacket(utf8('pong'))
    assert.is(await back, 'pong')
    assert.match(star.metrics.render(), /sotto_packets_total\{direction="in"\} 1\n/)
    assert.match(star.metrics.render(), /sotto_streams\{kind="datagrams"\} 1\n/)
    const ended = refusal(far)
    visiting.socket.send(encodeFrame('data', near.id, utf8('bytes')))
    assert.is(await ended, RESET.protocol)
    const stream = nextOpened(alice)
    const bytes = open(visiting, 'session', 'box')
    const session = refusal(await stream)
    visiting.socket.send(encodeFrame('packet', bytes.id, encodePackets([utf8('no credit asked')])))
    assert.is(await session, RESET.protocol)
  },
)
const NOTHING16 = new Uint8Array(16)

visits(
  'a socket that is full takes no datagrams, and holds nobody up for them',
  async ({ star }) => {
    const group = fast.randomBytes(16)
    const alice = await star.agent({ group })
    await alice.request({ do: 'claim', name: 'box', kind: 'agent' })
    const visiting = await star.agent({ role: 'visit', target: alice.identity.public })
    const reached = nextOpened(alice)
    const near = open(visiting, 'datagrams', 'box', Uint8Array.from([...group, ...NOTHING16]))
    const far = await reached
    let come = 0
    far.onPacket = () => void come++
    alice.socket.pause!()
    const sent = 60
    const bundle = encodePackets([new Uint8Array(30_000), new Uint8Array(30_000)])
    for (let i = 0; i < sent; i++) visiting.socket.send(encodeFrame('packet', near.id, bundle))
    while (visiting.socket.buffered() > 0) await new Promise((resolve) => setTimeout(resolve, 0))
    const count = (name: string): number =>
      Number(
        new RegExp(`^${name.replace(/[{}]/g, '\\$&')} (\\d+)$`, 'm').exec(star.metrics.render())
          ?.[1],
      )
    const passed = count('sotto_packets_total{direction="in"}')
    const dropped = count('sotto_packets_dropped_total{reason="other"}')
    assert.is(passed + dropped, 2 * sent)
    assert.ok(passed * 30_000 < 1_048_576 + 2 * 60_000, `${passed} are held`)
    alice.socket.resume!()
    while (come < passed) await new Promise((resolve) => setTimeout(resolve, 0))
  },
)

visits(
  'resolve: names of agents to their own scope and by grant, others hear nothing',
  async ({ star }) => {
    const alice = await star.agent({ scope: 'alice', labels: { env: 'prod' } })
    await alice.request({ do: 'claim', name: 'box', kind: 'agent' })
    await alice.claim('web')
    await publish(alice, ['box', 'web'])
    const friend = await star.agent({ scope: 'alice' })
    const bob = await star.agent({ scope: 'bob' })
    const seen = await friend.request({ do: 'resolve', name: 'box' })
    assert.is(seen['scope'], 'alice')
    const [agent] = seen['agents'] as Record<string, unknown>[]
    assert.is(agent!['key'], alice.key)
    assert.equal(agent!['labels'], { env: 'prod' })
    assert.equal(agent!['statements'], [])
    const hidden = await bob.request({ do: 'resolve', name: 'box' })
    assert.equal(hidden, await bob.request({ do: 'resolve', name: 'never-was' }), 'word for word')
    const open = await bob.request({ do: 'resolve', name: 'web' })
    const [public_] = open['agents'] as Record<string, unknown>[]
    assert.is(public_!['key'], alice.key)
    assert.not.ok('labels' in public_!, 'labels are for those who see the agent')
    await star.registry.grants.add({ scope: 'alice', to: 'bob', names: 'box' })
    assert.is((await bob.request({ do: 'resolve', name: 'box' }))['scope'], 'alice')
  },
)

visits('agents: own scope and granted names, chosen by labels, with an etag', async ({ star }) => {
  const alice = await star.agent({ scope: 'alice', labels: { env: 'prod' } })
  await alice.request({ do: 'claim', name: 'box', kind: 'agent' })
  await alice.request({ do: 'claim', name: 'secret', kind: 'agent' })
  const test = await star.agent({ scope: 'alice', labels: { env: 'test' } })
  await test.request({ do: 'claim', name: 'lab', kind: 'agent' })
  const bob = await star.agent({ scope: 'bob' })
  type Row = { key: string; names: { name: string; kind?: string }[]; online: boolean }
  const rows = async (agent: TestAgent, more: object = {}): Promise<Row[]> =>
    (await agent.request({ do: 'agents', ...more }))['agents'] as Row[]
  const names = (row: Row | undefined): string[] => row!.names.map(({ name }) => name)
  const all = await rows(alice)
  assert.equal(all.map(({ key }) => key), [alice.key, test.key].sort())
  const [prod] = await rows(alice, { selector: 'env=prod' })
  assert.equal(names(prod), ['box', 'secret'])
  assert.equal((await rows(bob)).map(({ key }) => key), [bob.key])
  await star.registry.grants.add({ scope: 'alice', to: 'bob', names: 'b*' })
  const shown = (await rows(bob)).find(({ key }) => key === alice.key)
  assert.equal(names(shown), ['box'], 'the granted name alone')
  assert.is((await rows(bob)).length, 2, 'and no agent without one')
  assert.not.match(JSON.stringify(await rows(bob)), /192\.0\.2|address|group/)
  const first = await bob.request({ do: 'agents' })
  const again = await bob.request({ do: 'agents', etag: first['etag'] })
  assert.equal(again, { ok: true, etag: first['etag'], unchanged: true })
  test.socket.close(1000, 'bye')
  await test.closed
  while ((await rows(alice, { selector: 'env=test' })).length > 0) {
    await new Promise((resolve) => setTimeout(resolve, 0))
  }
  const away = (await rows(alice)).find(({ key }) => key === test.key)
  assert.equal([away!.online, names(away)], [false, ['lab']])
  assert.is(codeOf(await alice.request({ do: 'agents', selector: 'what' })), 'selector/term')
  assert.is(codeOf(await alice.request({ do: 'agents', selector: 7 })), 'request/field')
})

visits('pages of agents fit a frame and join to the whole', async ({ star }) => {
  const long = 'x'.repeat(63)
  const labels = Object.fromEntries(
    Array.from({ length: 16 }, (_, i) => [`${String.fromCharCode(97 + i)}${long.slice(1)}`, long]),
  )
  const keys = new Set<string>()
  for (let i = 0; i < 40; i++) keys.add((await star.agent({ labels })).key)
  const asking = await star.agent()
  keys.add(asking.key)
  const found = new Set<string>()
  let pages = 0
  let after: unknown
  do {
    const reply = await asking.request({ do: 'agents', ...(after === undefined ? {} : { after }) })
    for (const { key } of reply['agents'] as { key: string }[]) found.add(key)
    after = reply['next']
    pages++
  } while (after !== undefined)
  assert.ok(pages > 1, `${pages} pages`)
  assert.equal([...found].sort(), [...keys].sort())
})

visits(
  'pairing: a room leads a stranger to the link that made it, once a token',
  async ({ star }) => {
    const identity = generateIdentity(fast)
    const other = await star.agent({ identity, scope: 'alice' })
    other.onOpen = (stream) => stream.reset(RESET.aborted, 'the wrong link')
    const alice = await star.agent({ identity, scope: 'alice' })
    const bob = await star.agent({ scope: 'bob' })
    const { room, expires } = await alice.request({ do: 'room' }) as {
      room: number
      expires: number
    }
    assert.ok(room >= 1 && room <= 99)
    assert.ok(expires > Date.now())
    const entered = await bob.request({ do: 'enter', room })
    assert.is(entered['key'], alice.key)
    assert.match(String(entered['token']), /^[0-9a-f]{32}$/)
    const token = fromHex(String(entered['token']))
    const visit = { role: 'visit', target: identity.public } as const
    const thief = await star.agent({ ...visit, scope: 'carol' })
    const bobs = await star.agent({ ...visit, identity: bob.identity, scope: 'bob' })
    assert.is(await refusal(open(bobs, 'pair', String(room), new Uint8Array(16))), RESET.refused)
    const reached = nextOpened(alice)
    const near = open(bobs, 'pair', String(room), token)
    const far = await reached
    assert.equal([far.visit.kind, far.visit.endpoint], ['pair', String(room)])
    near.write(utf8('greet'))
    assert.is((await collect(far, 5)).bytes.toString(), 'greet')
    assert.is(await refusal(open(bobs, 'pair', String(room), token)), RESET.refused, 'used')
    const second = await bob.request({ do: 'enter', room })
    const stolen = fromHex(String(second['token']))
    assert.is(await refusal(open(thief, 'pair', String(room), stolen)), RESET.refused)
    assert.is(await refusal(open(bobs, 'pair', String(room), stolen)), RESET.refused, 'burned')
    const third = await bob.request({ do: 'enter', room })
    assert.is(codeOf(await bob.request({ do: 'enter', room })), 'pair/taken')
    assert.is((await alice.request({ do: 'leave', room }))['ok'], true)
    assert.is(
      await refusal(open(bobs, 'pair', String(room), fromHex(String(third['token'])))),
      RESET.refused,
      'given up',
    )
  },
)

visits('a room ends with the link that made it, and its tokens too', async ({ star }) => {
  const identity = generateIdentity(fast)
  const group = fast.randomBytes(16)
  await star.agent({ identity, group })
  const alice = await star.agent({ identity, group })
  const bob = await star.agent({ scope: 'bob' })
  const { room } = await alice.request({ do: 'room' })
  const { token } = await bob.request({ do: 'enter', room })
  const visiting = await star.agent({
    role: 'visit',
    target: identity.public,
    identity: bob.identity,
    scope: 'bob',
  })
  alice.socket.close(1000, 'bye')
  await alice.closed
  while (codeOf(await bob.request({ do: 'enter', room })) === 'ok') {
    await new Promise((resolve) => setTimeout(resolve, 0))
  }
  const tail = fromHex(String(token))
  assert.is(await refusal(open(visiting, 'pair', String(room), tail)), RESET.refused)
  assert.is(codeOf(await bob.request({ do: 'enter', room })), 'pair/unknown-room')
  assert.is(codeOf(await bob.request({ do: 'enter', room: 'seven' })), 'pair/unknown-room')
})

visits('a name that is a number and a room are two things', async ({ star }) => {
  const alice = await star.agent()
  for (let number = 1; number <= 9; number++) {
    await alice.request({ do: 'claim', name: String(number), kind: 'agent' })
  }
  const visiting = await star.agent({ role: 'visit', target: alice.identity.public })
  assert.is(await refusal(open(visiting, 'pair', '7', new Uint8Array(16))), RESET.refused)
  const reached = nextOpened(alice)
  open(visiting, 'session', '7')
  assert.is((await reached).visit.kind, 'session')
})

visits('a visit that overdraws is reset on both sides, whatever its kind', async ({ star }) => {
  const alice = await star.agent()
  await alice.request({ do: 'claim', name: 'box', kind: 'agent' })
  const visiting = await star.agent({ role: 'visit', target: alice.identity.public })
  const visit = encodeVisit({
    kind: 'session',
    windowBytes: 10,
    address: '',
    port: 0,
    endpoint: 'box',
    tail: NOTHING,
  })
  const reached = nextOpened(alice)
  const resets: number[] = []
  visiting.mux.receive = (frame) => {
    if (frame.type === FRAME.reset) resets.push(frame.payload[1]!)
    return true
  }
  visiting.socket.send(encodeFrame('open', 1, visit))
  const far = await reached
  const ended = refusal(far)
  alice.socket.send(encodeFrame('data', far.id, new Uint8Array(11)))
  assert.is(await ended, RESET.overdrawn)
  assert.equal(resets, [RESET.overdrawn])
})

visits.run()
