// The relay on workerd, as a process: what a Durable Object has to do differently from a process of
// its own. Sleep and wake are counted by the object itself (`/v1/hubs/KEY`), whose own asking counts.
// seconds: 240
// alone
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { WINDOW_INITIAL_BYTES } from '../../core/frame.ts'
import { generateIdentity } from '../../core/key.ts'
import type { Stream } from '../../core/mux.ts'
import type { Conn } from '../../core/socket.ts'
import { fast } from '../support/crypto.ts'
import { LinkAgent, LinkRefused } from '../support/link_agent.ts'
import { api, makeKey, startWorker } from '../support/worker_relay.ts'

/** An object sleeps after 10 s without a message; a little more, since the platform looks now and then. */
const ASLEEP_MS = 14_000

const worker = suite('runtimes/worker')
let relay: Awaited<ReturnType<typeof startWorker>>
let secret = ''
const agents: LinkAgent[] = []

async function link(options: Partial<Parameters<typeof LinkAgent.open>[0]> = {}) {
  const agent = await LinkAgent.open({ url: relay.url, secret, ...options })
  agents.push(agent)
  return agent
}

interface Report {
  wakes: number
  links: number
  streams: number
}

async function report(key: string): Promise<Report> {
  const response = await fetch(`${relay.url}/v1/hubs/${key}`, {
    headers: { authorization: `Bearer ${relay.adminKey}` },
  })
  return await response.json() as Report
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

/** What a stream brings until its end. */
function whole(conn: Conn): Promise<Uint8Array> {
  const parts: Uint8Array[] = []
  return new Promise((resolve, reject) => {
    conn.handle({
      data: (bytes) => void parts.push(bytes),
      end: () => resolve(Buffer.concat(parts)),
      closed: (error) => (error ? reject(error) : resolve(Buffer.concat(parts))),
    })
  })
}

/** Sends back what comes, under backpressure. */
function echo(stream: Stream): void {
  stream.accept()
  stream.handle({
    data: (bytes) => {
      if (stream.write(bytes) === 'queued') stream.pause()
    },
    drain: () => stream.resume(),
    end: () => stream.end(),
    closed: () => {},
  })
}

/** Sends `bytes` and gives what came back. */
async function through(stream: Stream, bytes: Uint8Array): Promise<Uint8Array> {
  const back = whole(stream)
  let sent = 0
  await new Promise<void>((resolve) => {
    const pump = (): void => {
      while (sent < bytes.length) {
        const next = bytes.subarray(sent, sent + 65_536)
        const result = stream.write(next)
        if (result === 'lost') return
        sent += next.length
        if (result === 'queued') return void setTimeout(pump, 5)
      }
      stream.end()
      resolve()
    }
    pump()
  })
  return await back
}

worker.before(async () => {
  relay = await startWorker()
  secret = (await makeKey(relay)).secret
})

worker.after(async () => {
  for (const agent of agents) agent.socket?.terminate()
  await relay?.stop()
})

worker('a link is admitted by its key, and told what this relay can', async () => {
  const agent = await link()
  assert.is(agent.welcome.scope, 'alice')
  assert.is(agent.welcome.window, 1_048_576)
  assert.is(agent.welcome.bulk, 0)
  assert.equal(agent.welcome.can, ['inspectable'])
  await agent.close()
})

worker('unknown, foreign and missing credentials are refused with 4401', async () => {
  for (
    const wrong of [`sk_alice_${'A'.repeat(43)}`, `sk_nobody_${'A'.repeat(43)}`, 'x', undefined]
  ) {
    try {
      await LinkAgent.open({ url: relay.url, ...(wrong === undefined ? {} : { secret: wrong }) })
      assert.unreachable()
    } catch (error) {
      assert.instance(error, LinkRefused)
      assert.is((error as LinkRefused).code, 4401)
      assert.match(
        String((error as LinkRefused).error?.code),
        /^(credentials\/unknown|admit\/credential)$/,
      )
    }
  }
})

worker('a verified http claim is refused with the reason and both remedies', async () => {
  const agent = await link()
  const reply = await agent.claim('web', { mode: 'verified' })
  assert.is(reply['ok'], false)
  const { code, message, hint } = reply['error'] as Record<string, string>
  assert.is(code, 'claim/passthrough')
  assert.match(message!, /no raw TCP port/)
  assert.match(hint!, /--e2ee=false/)
  assert.match(hint!, /sotto connect/)
  assert.is((await agent.claim('raw', { mode: 'raw', kind: 'tcp' }))['ok'], false)
  await agent.close()
})

worker('names are of one scope; another is refused and offered a free one', async () => {
  const bob = (await makeKey(relay, { scope: 'bob' })).secret
  const mine = await link()
  const his = await link({ secret: bob })
  assert.is((await mine.claim('shop'))['ok'], true)
  assert.is((await mine.claim('shop-2'))['ok'], true)
  const reply = await his.claim('shop')
  const error = reply['error'] as Record<string, string>
  assert.is(error['code'], 'registry/taken')
  assert.match(error['hint']!, /--name shop-3/)
  const { items } = await (await api(relay, '/names?scope=alice')).json() as {
    items: { name: string }[]
  }
  assert.ok(items.some(({ name }) => name === 'shop'))
  await Promise.all([mine.close(), his.close()])
})

worker('a visit link reaches the endpoint, under credit, both ways', async () => {
  const home = await link()
  home.onOpen = echo
  assert.is((await home.claim('db', { kind: 'tcp', mode: 'verified' }))['ok'], true)
  const visit = await link({ role: 'visit', target: home.key })
  const bytes = fast.randomBytes(3_000_000)
  assert.equal(Buffer.from(await through(visit.connect('db'), bytes)), Buffer.from(bytes))
  assert.equal(await through(visit.connect('db'), new Uint8Array([1])), Buffer.from([1]))
  const refused = visit.connect('nothing')
  const error = await whole(refused).then(() => undefined, (error) => error)
  assert.is(error?.code, 'stream/refused')
  await Promise.all([visit.close(), home.close()])
})

worker('a stalled reader holds no more than its window, and others go on', async () => {
  const home = await link()
  const stalled: Stream[] = []
  home.onOpen = (stream) => {
    if (stalled.length > 0) return echo(stream)
    stalled.push(stream)
    stream.accept()
    stream.pause()
  }
  await home.claim('slow', { kind: 'tcp', mode: 'verified' })
  const visit = await link({ role: 'visit', target: home.key })
  const first = visit.connect('slow')
  await new Promise<void>((resolve) => void (first.onAccept = resolve))
  for (let i = 0; i < 32; i++) first.write(new Uint8Array(65_536))
  const bytes = fast.randomBytes(500_000)
  assert.equal(Buffer.from(await through(visit.connect('slow'), bytes)), Buffer.from(bytes))
  assert.ok(stalled[0]!.heldBytes <= WINDOW_INITIAL_BYTES)
  await Promise.all([visit.close(), home.close()])
})

worker('resolve gives the passports of those that serve a name', async () => {
  const home = await link()
  await home.claim('pass', { kind: 'tcp', mode: 'verified' })
  assert.equal((await home.request({ do: 'resolve', name: 'pass' }))['agents'], [])
  assert.is((await home.request({ do: 'passport' }))['passport'], undefined)
  const seen = await fetch(`${relay.url}/v1/names/pass`).then((response) => response.json()) as {
    agents: { key: string }[]
  }
  assert.is(seen.agents[0]?.key, home.key)
  await home.close()
})

worker('a claim ends with its process, and the name stays reserved', async () => {
  const one = await link()
  await one.claim('gone', { kind: 'tcp', mode: 'verified' })
  await one.close()
  const two = await link()
  // Another mode is another trust: refused while the first one is live, and it is not.
  let reply = await two.claim('gone')
  for (let i = 0; i < 50 && reply['ok'] !== true; i++) {
    await pause(100)
    reply = await two.claim('gone')
  }
  assert.is(reply['ok'], true)
  await two.close()
})

worker('a revoked key ends its links within a second', async () => {
  const key = await makeKey(relay)
  const agent = await link({ secret: key.secret })
  const visit = await link({ secret: key.secret, role: 'visit', target: agent.key })
  const other = await link()
  const begun = performance.now()
  await api(relay, `/keys/${key.id}`, undefined, 'DELETE')
  assert.is((await agent.closed).code, 4403)
  assert.is((await visit.closed).code, 4403)
  assert.ok(performance.now() - begun < 1000)
  assert.is(other.mux.size, 0)
  assert.is((await other.request({ do: 'passport' }))['ok'], true)
  await other.close()
})

worker(
  'a blocked name cuts its streams and takes no new ones; a blocked scope ends its links',
  async () => {
    const carol = await makeKey(relay, { scope: 'carol' })
    const home = await link({ secret: carol.secret })
    home.onOpen = echo
    await home.claim('bad', { kind: 'tcp', mode: 'verified' })
    const visit = await link({ role: 'visit', target: home.key })
    const stream = visit.connect('bad')
    const ended = whole(stream).then(() => undefined, (error) => error)
    await new Promise<void>((resolve) => void (stream.onAccept = resolve))
    await api(relay, '/blocks', { name: 'bad', reason: 'phishing' })
    assert.is((await ended)?.code, 'stream/blocked')
    const again = await whole(visit.connect('bad')).then(() => undefined, (error) => error)
    assert.is(again?.code, 'stream/refused')
    assert.is((await fetch(`${relay.url}/v1/names/bad`)).status, 403)
    await api(relay, '/blocks?name=bad', undefined, 'DELETE')
    assert.is((await fetch(`${relay.url}/v1/names/bad`)).status, 200)
    await api(relay, '/blocks', { scope: 'carol', reason: 'phishing' })
    assert.is((await home.closed).code, 4403)
    const { items } = await (await api(relay, '/blocks')).json() as { items: { scope?: string }[] }
    assert.equal(items.map(({ scope }) => scope), ['carol'])
    await visit.close()
  },
)

worker(
  'a fleet token admits as many agents as it allows, and those that left are not counted',
  async () => {
    const token = await makeKey(relay, { path: 'tokens', scope: 'dave', maxAgents: 1 })
    const one = await link({ secret: token.secret })
    await LinkAgent.open({ url: relay.url, secret: token.secret }).then(
      () => assert.unreachable(),
      (error) => assert.is((error as LinkRefused).code, 4429),
    )
    const twin = await link({ secret: token.secret, identity: one.identity })
    await Promise.all([one.close(), twin.close()])
    for (let i = 0; i < 50; i++) {
      const next = await LinkAgent.open({ url: relay.url, secret: token.secret }).catch(() =>
        undefined
      )
      if (next) return void await next.close()
      await pause(100)
    }
    assert.unreachable('the token is still counted as used')
  },
)

worker('text and oversize messages end the link', async () => {
  const { hostname, port } = new URL(relay.url)
  for (const message of ['hello', new Uint8Array(70_000)]) {
    const identity = generateIdentity(fast)
    const { formatKey } = await import('../../core/key.ts')
    const ws = new WebSocket(
      `ws://${hostname}:${port}/v1/link/${formatKey(identity.public)}`,
      'sotto.v1',
    )
    const closed = new Promise<number>((resolve) => ws.onclose = ({ code }) => resolve(code))
    ws.onopen = () => ws.send(message)
    assert.is(await closed, 4400)
  }
})

worker(
  'it sleeps with its links, pings do not wake it, and it wakes with claims and ids',
  async () => {
    const home = await link()
    home.onOpen = echo
    await home.claim('sleepy', { kind: 'tcp', mode: 'verified' })
    const visit = await link({ role: 'visit', target: home.key })
    const before = fast.randomBytes(1000)
    assert.equal(Buffer.from(await through(visit.connect('sleepy'), before)), Buffer.from(before))
    await pause(ASLEEP_MS)
    const asleep = await report(home.key)
    assert.is(asleep.links, 2)
    // Our own question woke it; then a minute of pings from two links, and one more question.
    const ping = setInterval(() => {
      home.socket.ping!()
      visit.socket.ping!()
    }, 2000)
    await pause(60_000)
    clearInterval(ping)
    const after = await report(home.key)
    assert.is(after.wakes, asleep.wakes + 1)
    await pause(ASLEEP_MS)
    const again = fast.randomBytes(400_000)
    assert.equal(Buffer.from(await through(visit.connect('sleepy'), again)), Buffer.from(again))
    assert.ok((await report(home.key)).wakes > after.wakes)
    assert.is(home.frames.length, 0)
    assert.is((await home.request({ do: 'release', name: 'sleepy' }))['ok'], true)
    await Promise.all([visit.close(), home.close()])
  },
)

worker('a stream that is open and silent keeps it awake', async () => {
  const home = await link()
  home.onOpen = echo
  await home.claim('awake', { kind: 'tcp', mode: 'verified' })
  const visit = await link({ role: 'visit', target: home.key })
  const stream = visit.connect('awake')
  await new Promise<void>((resolve) => void (stream.onAccept = resolve))
  const { wakes } = await report(home.key)
  await pause(ASLEEP_MS)
  assert.equal(await report(home.key), { wakes, links: 2, streams: 1 })
  assert.equal(await through(stream, new Uint8Array([7])), Buffer.from([7]))
  await Promise.all([visit.close(), home.close()])
})

worker('what was reserved, made and published outlives the process', async () => {
  const home = await link()
  await home.claim('kept')
  await relay.stop({ keep: true })
  const { data, adminKey } = relay
  relay = { ...await startWorker({ data }), adminKey }
  assert.is((await fetch(`${relay.url}/v1/names/kept`)).status, 200)
  const back = await link({ identity: home.identity })
  assert.is((await back.claim('kept'))['ok'], true)
  await back.close()
})

worker.run()
