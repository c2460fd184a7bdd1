// The relay as a whole, over in-memory sockets by the real protocol: who is admitted, whose visitor
// goes where, what a link may do, what happens when it does something else.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { utf8 } from '../../core/bytes.ts'
import {
  encodeCredit,
  encodeFrame,
  encodeVisit,
  FRAME,
  RESET,
  WINDOW_INITIAL_BYTES,
} from '../../core/frame.ts'
import { generateIdentity } from '../../core/key.ts'
import { decodePrelude } from '../support/prelude.ts'
import { fast } from '../support/crypto.ts'
import { hello, serverNames } from '../support/hello.ts'
import { collect, makeStar } from '../support/star.ts'
import type { Star } from '../support/star.ts'

const star = suite<{ star: Star }>('relay/star')

star.before.each(async (context) => {
  context.star = await makeStar()
})
star.after.each(async (context) => {
  await context.star.close()
})

/** A ClientHello for a name under the secure domain. */
const helloFor = (name: string): Uint8Array =>
  hello({ extensions: [serverNames(`${name}.secure.relay.test`)] } as Parameters<typeof hello>[0])

star('an agent is admitted with a key and told what the relay can', async ({ star }) => {
  const agent = await star.agent()
  assert.is(agent.welcome['scope'], 'alice')
  assert.is(agent.welcome['secure'], 'secure.relay.test')
  assert.match(agent.welcome['link'] as string, /^[0-9a-f]{32}$/)
  assert.ok((agent.welcome['can'] as string[]).includes('passthrough'))
})

star(
  'a wrong key, a revoked key and no key are refused, with 4401 and a reason',
  async ({ star }) => {
    const made = await star.credentials.create({ kind: 'key', scope: 'alice' })
    await star.credentials.revoke(made.id)
    for (
      const credential of [
        { kind: 'none' } as const,
        { kind: 'key', secret: 'sk_alice_wrong' } as const,
        { kind: 'key', secret: made.secret } as const,
      ]
    ) {
      let message = ''
      await star.agent({ credential }).catch((error: Error) => void (message = error.message))
      assert.match(message, /closed 4401/, JSON.stringify(credential.kind))
    }
  },
)

star(
  'a fleet token lets in those with the labels that it names, and no others',
  async ({ star }) => {
    const { secret } = await star.credentials.create({
      kind: 'token',
      scope: 'shops',
      labels: { role: 'till', site: 'berlin-?' },
    })
    const bring = (labels: Record<string, string>) =>
      star.agent({ credential: { kind: 'token', secret }, labels })
    const good = { role: 'till', site: 'berlin-1' }
    await bring(good)
    assert.equal(star.relay.agents('shops').map(({ labels }) => labels), [good])
    for (
      const labels of [
        {},
        { role: 'till' },
        { role: 'web', site: 'berlin-1' },
        { ...good, site: 'berlin-12' },
        { ...good, rack: '4' },
      ] as Record<string, string>[]
    ) {
      let message = ''
      await bring(labels).catch((error: Error) => void (message = error.message))
      assert.match(message, /closed 4401 credentials\/labels/, JSON.stringify(labels))
    }
    // An API key restricts none.
    assert.ok(await star.agent({ labels: { anything: 'goes' } }))
  },
)

star('revoking a key closes its live links', async ({ star }) => {
  const made = await star.credentials.create({ kind: 'key', scope: 'alice' })
  const agent = await star.agent({ credential: { kind: 'key', secret: made.secret } })
  await star.credentials.revoke(made.id)
  assert.is((await agent.closed).code, 4403)
})

star(
  'a visitor of a claimed name reaches its agent over a stream, untouched, both ways',
  async ({ star }) => {
    const agent = await star.agent()
    assert.is((await agent.claim('web'))['ok'], true)
    const visitor = star.visitor()
    const first = helloFor('web')
    visitor.write(first)
    const stream = await new Promise<import('../../core/mux.ts').Stream>((resolve) => {
      agent.onOpen = (opened) => {
        opened.accept()
        resolve(opened)
      }
    })
    assert.is(stream.visit.kind, 'tls')
    assert.is(stream.visit.address, '192.0.2.1')
    assert.is(stream.visit.port, 40_000)
    const got = await collect(stream, first.length)
    assert.equal(got.bytes, Buffer.from(first))
    stream.write(utf8('answer'))
    assert.is((await collect(visitor, 6)).bytes.toString(), 'answer')
  },
)

star(
  'a visitor goes over a bulk link when one is idle, first bytes behind the prelude',
  async ({ star }) => {
    const agent = await star.agent()
    await agent.claim('web')
    const bulk = agent.bulk(star)
    await new Promise((resolve) => setTimeout(resolve, 0))
    const visitor = star.visitor()
    const first = helloFor('web')
    visitor.write(first)
    const got = await collect(bulk, first.length + 20)
    const prelude = decodePrelude(agent, { bytes: got.bytes, counter: 1 })
    assert.is(prelude.visit.endpoint, 'web')
    assert.equal(Buffer.from(prelude.rest), Buffer.from(first))
    bulk.write(Uint8Array.of(1, 0x68, 0x69))
    assert.is((await collect(visitor, 2)).bytes.toString(), 'hi')
    bulk.write(utf8('more'))
    assert.is((await collect(visitor, 4)).bytes.toString(), 'more')
    visitor.write(utf8('back'))
    assert.is((await collect(bulk, 4)).bytes.toString(), 'back')
  },
)

star(
  'a bulk link that refuses sends the visitor to the next member, first bytes whole',
  async ({ star }) => {
    const one = await star.agent()
    const two = await star.agent()
    await one.claim('web')
    await two.claim('web')
    const refusing = one.bulk(star)
    await new Promise((resolve) => setTimeout(resolve, 0))
    collect(refusing, 30).then(() => refusing.write(Uint8Array.of(0)))
    const reached = new Promise<import('../../core/mux.ts').Stream>((resolve) => {
      two.onOpen = (opened) => {
        opened.accept()
        resolve(opened)
      }
    })
    const visitor = star.visitor()
    const first = helloFor('web')
    visitor.write(first)
    assert.equal((await collect(await reached, first.length)).bytes, Buffer.from(first))
  },
)

star('a ticket works once, and one under another key not at all', async ({ star }) => {
  const agent = await star.agent()
  const other = await star.agent()
  await agent.claim('web')
  agent.bulk(star, 5)
  const replayed = agent.bulk(star, 5)
  assert.is((await collect(replayed)).end, 'closed')
  const forged = star.visitor()
  const { encodeTicket } = await import('../../core/ticket.ts')
  const linkId = Uint8Array.from(
    (agent.welcome['link'] as string).match(/../g)!,
    (pair) => parseInt(pair, 16),
  )
  forged.write(encodeTicket(fast, { linkId, counter: 9, class: 'verified' }, other.bulkKey))
  assert.is((await collect(forged)).end, 'closed')
})

star('an unknown name gets unrecognized_name and a half-close', async ({ star }) => {
  const visitor = star.visitor()
  visitor.write(helloFor('nobody'))
  const { bytes, end } = await collect(visitor)
  assert.equal([...bytes], [21, 3, 3, 0, 2, 2, 112])
  assert.is(end, 'end')
})

star('an agent that does not answer costs the visitor 5 s and an alert, not a hang', async () => {
  // With a pool of one and no answer, the open times out on the mux's own clock: shown with a short one.
  const quick = await makeStar()
  try {
    const agent = await quick.agent()
    await agent.claim('web')
    agent.onOpen = (stream) => stream.reset(RESET.refused)
    const visitor = quick.visitor()
    visitor.write(helloFor('web'))
    assert.equal([...(await collect(visitor)).bytes], [21, 3, 3, 0, 2, 2, 80])
  } finally {
    await quick.close()
  }
})

star('a name belongs to the scope that used it first', async ({ star }) => {
  const alice = await star.agent({ scope: 'alice' })
  const bob = await star.agent({ scope: 'bob' })
  assert.is((await alice.claim('web'))['ok'], true)
  const reply = await bob.claim('web')
  assert.is(reply['ok'], false)
  const error = reply['error'] as { code: string; hint: string }
  assert.is(error.code, 'registry/taken')
  assert.match(error.hint, /web-/)
})

star('a verified name has no readable twin', async ({ star }) => {
  const one = await star.agent()
  const two = await star.agent()
  await one.claim('web')
  const reply = await two.claim('web', { mode: 'inspectable' })
  assert.is((reply['error'] as { code: string }).code, 'endpoints/mode')
})

star('two processes of one identity get their own visitors', async ({ star }) => {
  const identity = generateIdentity(fast)
  const one = await star.agent({ identity })
  const two = await star.agent({ identity })
  await one.claim('web')
  await two.claim('db', { kind: 'tcp' })
  for (const [name, agent] of [['web', one], ['db', two]] as const) {
    const reached = new Promise<string>((resolve) => {
      agent.onOpen = (stream) => {
        stream.accept()
        resolve(stream.visit.endpoint)
      }
    })
    star.visitor().write(helloFor(name))
    assert.is(await reached, name)
  }
  assert.is(one.opened.length, 1)
  assert.is(two.opened.length, 1)
})

star('a pool spreads visitors by least connections', async ({ star }) => {
  const agents = [await star.agent(), await star.agent(), await star.agent()]
  for (const agent of agents) await agent.claim('web')
  for (let i = 0; i < 9; i++) {
    const before = agents.reduce((sum, agent) => sum + agent.opened.length, 0)
    star.visitor().write(helloFor('web'))
    while (agents.reduce((sum, agent) => sum + agent.opened.length, 0) === before) {
      await new Promise((resolve) => setTimeout(resolve, 0))
    }
  }
  assert.equal(agents.map((agent) => agent.opened.length), [3, 3, 3])
})

star(
  'when the last link goes the name is free of members, and comes back with the next claim',
  async ({ star }) => {
    const identity = generateIdentity(fast)
    const agent = await star.agent({ identity })
    await agent.claim('web')
    agent.socket.close(1000, 'bye')
    await agent.closed
    while (star.relay.endpoints.size > 0) await new Promise((resolve) => setTimeout(resolve, 0))
    const again = await star.agent({ identity })
    assert.is((await again.claim('web'))['ok'], true)
  },
)

star('blocking a name cuts its live visitors', async ({ star }) => {
  const agent = await star.agent()
  await agent.claim('web')
  const visitor = star.visitor()
  visitor.write(helloFor('web'))
  while (star.relay.visitors.size === 0 || agent.opened.length === 0) {
    await new Promise((resolve) => setTimeout(resolve, 0))
  }
  const ended = collect(visitor)
  await star.registry.block({ name: 'web', reason: 'abuse' })
  assert.is((await ended).end, 'closed')
  const later = star.visitor()
  later.write(helloFor('web'))
  assert.equal([...(await collect(later)).bytes].slice(-1), [112])
})

star(
  'a visit link reaches a verified endpoint through the hub, credit forwarded',
  async ({ star }) => {
    const agent = await star.agent({ scope: 'alice' })
    await agent.claim('db', { kind: 'tcp' })
    agent.onOpen = (stream) => {
      stream.accept()
      stream.handle({
        data: (bytes) => void stream.write(bytes),
        end: () => stream.end(),
        closed() {},
      })
    }
    const visiting = await star.agent({
      role: 'visit',
      target: agent.identity.public,
      scope: 'bob',
    })
    const stream = visiting.mux.open({
      kind: 'connect',
      address: 'a lie',
      port: 1,
      endpoint: 'db',
      tail: new Uint8Array(0),
    })
    const sent = fast.randomBytes(2_000_000)
    const got = collect(stream, sent.length)
    let at = 0
    const write = (): void => {
      while (at < sent.length) {
        const chunk = sent.subarray(at, at + 50_000)
        at += chunk.length
        if (stream.write(chunk) === 'queued') return
      }
    }
    const handler = { data() {}, end() {}, closed() {} }
    void handler
    write()
    const timer = setInterval(write, 1)
    assert.ok(Buffer.from((await got).bytes).equals(Buffer.from(sent)))
    clearInterval(timer)
    assert.is(agent.opened[0]!.visit.address, '192.0.2.9', 'the relay writes what it saw')
  },
)

star('a visit link that overdraws is reset on both sides', async ({ star }) => {
  const agent = await star.agent()
  await agent.claim('db', { kind: 'tcp' })
  let ended: unknown
  agent.onOpen = (stream) => {
    stream.accept()
    stream.pause()
    stream.handle({ data() {}, end() {}, closed: (error) => void (ended = error) })
  }
  const visiting = await star.agent({ role: 'visit', target: agent.identity.public })
  const visit = encodeVisit({
    kind: 'connect',
    windowBytes: 0,
    address: '',
    port: 0,
    endpoint: 'db',
    tail: new Uint8Array(0),
  })
  visiting.socket.send(encodeFrame('open', 1, visit))
  const resets: number[] = []
  visiting.mux.receive = (frame) => {
    if (frame.type === FRAME.reset) resets.push(frame.payload[1]!)
    return true
  }
  for (let sent = 0; sent <= WINDOW_INITIAL_BYTES; sent += 65_536) {
    visiting.socket.send(encodeFrame('data', 1, new Uint8Array(65_536)))
  }
  while (resets.length === 0 || ended === undefined) {
    await new Promise((resolve) => setTimeout(resolve, 0))
  }
  assert.equal(resets, [RESET.overdrawn])
})

star('what has no place on a link ends it with 4400', async ({ star }) => {
  const cases: [string, Uint8Array][] = [
    ['an unknown type', Uint8Array.of(0x7f, 0, 0, 0, 0)],
    ['a short frame', Uint8Array.of(0x11)],
    ['a second hello', encodeFrame('hello', 0, new Uint8Array(131))],
    ['a welcome', encodeFrame('welcome', 0, new Uint8Array(20))],
    ['an oversize frame', new Uint8Array(70_000).fill(0x11)],
    ['a request that is no JSON', encodeFrame('request', 1, utf8('nonsense'))],
  ]
  for (const [name, message] of cases) {
    const agent = await star.agent()
    agent.socket.send(message)
    assert.is((await agent.closed).code, 4400, name)
  }
  const visiting = await star.agent({ role: 'visit', target: (await star.agent()).identity.public })
  visiting.socket.send(encodeFrame('data', 7, utf8('never opened')))
  assert.is((await visiting.closed).code, 4400, 'data on a stream that was never opened')
  const asking = await star.agent({ role: 'visit', target: (await star.agent()).identity.public })
  asking.socket.send(encodeFrame('request', 1, utf8('{"do":"claim"}')))
  assert.is((await asking.closed).code, 4400, 'a request on a visit link')
})

star(
  'a visit link is told when its agent has no link, and when it loses the last',
  async ({ star }) => {
    const agent = await star.agent()
    const visiting = await star.agent({ role: 'visit', target: agent.identity.public })
    assert.is(visiting.frames.length, 0)
    agent.socket.close(1000, 'bye')
    while (visiting.frames.length === 0) await new Promise((resolve) => setTimeout(resolve, 0))
    assert.is(visiting.frames[0]!.type, FRAME.peer_gone)
    const absent = await star.agent({ role: 'visit', target: generateIdentity(fast).public })
    while (absent.frames.length === 0) await new Promise((resolve) => setTimeout(resolve, 0))
    assert.is(absent.frames[0]!.type, FRAME.peer_gone)
  },
)

star("passports are published by compare-and-set, and only one's own", async ({ star }) => {
  const { encodePassport } = await import('../../core/passport.ts')
  const agent = await star.agent()
  const passport = (sequence: number, of = agent.identity): string =>
    Buffer.from(
      encodePassport({
        identity: of.public,
        sequence,
        notBefore: Date.now(),
        notAfter: Date.now() + 1e9,
        certificates: [],
        names: [],
        ciphers: [],
      }, (message) => fast.ed25519Sign(of.seed, message)),
    ).toString('base64')
  assert.is((await agent.request({ do: 'publish', passport: passport(1), after: 0 }))['ok'], true)
  assert.is(
    ((await agent.request({ do: 'publish', passport: passport(2), after: 0 }))['error'] as {
      code: string
    }).code,
    'registry/stale',
  )
  assert.is((await agent.request({ do: 'publish', passport: passport(2), after: 1 }))['ok'], true)
  const foreign = await agent.request({
    do: 'publish',
    passport: passport(3, generateIdentity(fast)),
    after: 2,
  })
  assert.is((foreign['error'] as { code: string }).code, 'passport/signer')
  const forged = Buffer.from(passport(3), 'base64')
  forged[60]! ^= 1
  const reply = await agent.request({
    do: 'publish',
    passport: forged.toString('base64'),
    after: 2,
  })
  assert.is((reply['error'] as { code: string }).code, 'passport/forged')
})

star('a fleet token allows its names and no more agents than it says', async ({ star }) => {
  const token = await star.credentials.create({
    kind: 'token',
    scope: 'fleet',
    names: ['edge-*'],
    maxAgents: 2,
  })
  const credential = { kind: 'token', secret: token.secret } as const
  const one = await star.agent({ credential })
  assert.is((await one.claim('edge-1'))['ok'], true)
  assert.is(((await one.claim('web'))['error'] as { code: string }).code, 'claim/not-allowed')
  await star.agent({ credential })
  let message = ''
  await star.agent({ credential }).catch((error: Error) => void (message = error.message))
  assert.match(message, /closed 44/)
})

star('credit beyond any window ends a forwarded stream', async ({ star }) => {
  const agent = await star.agent()
  await agent.claim('db', { kind: 'tcp' })
  const visiting = await star.agent({ role: 'visit', target: agent.identity.public })
  const stream = visiting.mux.open({
    kind: 'connect',
    address: '',
    port: 0,
    endpoint: 'db',
    tail: new Uint8Array(0),
  })
  const closed = new Promise<unknown>((resolve) =>
    stream.handle({ data() {}, end() {}, closed: resolve })
  )
  for (let i = 0; i < 3; i++) {
    visiting.socket.send(encodeFrame('credit', stream.id, encodeCredit(16_777_216)))
  }
  assert.ok(await closed)
})

star('a quota of bytes slows a visitor down, and loses nothing of it', async () => {
  const slow = await makeStar({}, { 'address.bytes': 400_000, 'address.bytesBurst': 100_000 })
  try {
    const agent = await slow.agent()
    await agent.claim('web')
    let got = 0
    agent.onOpen = (stream) => {
      stream.accept()
      stream.handle({ data: (bytes) => void (got += bytes.length), end() {}, closed() {} })
    }
    const visitor = slow.visitor()
    const first = helloFor('web')
    visitor.write(first)
    while (got < first.length) await new Promise((resolve) => setTimeout(resolve, 0))
    for (let i = 0; i < 20; i++) visitor.write(new Uint8Array(16_384))
    // What the bucket holds passes at once; the rest waits for it to fill.
    for (let i = 0; i < 20; i++) await new Promise((resolve) => setTimeout(resolve, 0))
    assert.ok(got < 250_000, `${got} bytes passed at once`)
    while (got < first.length + 20 * 16_384) await new Promise((resolve) => setTimeout(resolve, 5))
    assert.is(got, first.length + 20 * 16_384)
  } finally {
    await slow.close()
  }
})

star('draining turns visitors away and lets running ones finish', async ({ star }) => {
  const agent = await star.agent()
  await agent.claim('web')
  agent.onOpen = (stream) => {
    stream.accept()
    stream.handle({ data() {}, end: () => stream.end(), closed() {} })
  }
  const running = star.visitor()
  running.write(helloFor('web'))
  while (star.relay.visitors.size === 0 || agent.opened.length === 0) {
    await new Promise((resolve) => setTimeout(resolve, 0))
  }
  const drained = star.relay.drain(5000)
  while (!agent.frames.some((frame) => frame.type === FRAME.restarting)) {
    await new Promise((resolve) => setTimeout(resolve, 0))
  }
  const late = star.visitor()
  late.write(helloFor('web'))
  assert.equal([...(await collect(late)).bytes].slice(-1), [80])
  running.end()
  await drained
  assert.is(star.relay.visitors.size, 0)
})

star.run()
