/**
 * What a relay at the edge does as every other does, proven over its real sockets: links, claims,
 * visit links, readable HTTP, revocation, blocks. The suites of workerd and of `Deno.serve` share it.
 */
import type { Test } from 'uvu'
import * as assert from 'uvu/assert'
import { WINDOW_INITIAL_BYTES } from '../../core/frame.ts'
import { formatKey, generateIdentity } from '../../core/key.ts'
import type { Stream } from '../../core/mux.ts'
import type { Conn } from '../../core/socket.ts'
import { fast } from './crypto.ts'
import { LinkAgent, LinkRefused } from './link_agent.ts'
import type { LinkAgentOptions } from './link_agent.ts'
import { serveReadable, startUpstream } from './upstream.ts'
import { api, makeKey } from './worker_relay.ts'
import type { EdgeRelay } from './worker_relay.ts'

/** A relay that runs, with agents and a local service that a suite needs. */
export class Edge {
  relay!: EdgeRelay & { data: string }
  secret = ''
  readonly upstreamLeft: Promise<void>
  /** Close codes that the service saw on its WebSockets. */
  readonly codes: number[] = []
  readonly #agents: LinkAgent[] = []
  #left!: () => void
  #upstream: { port: number; close(): Promise<void> } | undefined

  constructor() {
    this.upstreamLeft = new Promise((resolve) => void (this.#left = resolve))
  }

  async start(start: () => Promise<EdgeRelay & { data: string }>): Promise<void> {
    this.#upstream = await startUpstream({
      left: (code) => {
        if (code === undefined) this.#left()
        else this.codes.push(code)
      },
    })
    this.relay = await start()
    this.secret = (await makeKey(this.relay)).secret
  }

  async close(): Promise<void> {
    for (const agent of this.#agents) agent.socket?.terminate()
    await this.#upstream?.close()
    await this.relay?.stop()
  }

  async link(options: Partial<LinkAgentOptions> = {}): Promise<LinkAgent> {
    const agent = await LinkAgent.open({ url: this.relay.url, secret: this.secret, ...options })
    this.#agents.push(agent)
    return agent
  }

  /** An agent that serves the name from the local service. */
  async serving(name: string): Promise<LinkAgent> {
    const agent = await this.link()
    agent.onOpen = (stream) => serveReadable(stream, this.#upstream!.port)
    assert.is((await agent.claim(name))['ok'], true)
    return agent
  }

  visit(name: string, path: string, init: RequestInit = {}): Promise<Response> {
    const host = `${name}.apps.localhost:${this.relay.port}`
    const headers = { ...init.headers as Record<string, string>, host }
    return fetch(`${this.relay.url}${path}`, { ...init, headers })
  }
}

export const pause = (ms: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, ms))

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
export function echo(stream: Stream): void {
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
export async function through(stream: Stream, bytes: Uint8Array): Promise<Uint8Array> {
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

/** Equal in length first: two megabytes that differ are no help in a terminal. */
export function same(found: Uint8Array | ArrayBuffer, expected: Uint8Array): void {
  const bytes = new Uint8Array(found)
  assert.is(bytes.length, expected.length)
  assert.is(Buffer.compare(bytes, expected), 0)
}

async function streamsOf(relay: EdgeRelay, key: string): Promise<number> {
  const { items } = await (await api(relay, '/agents')).json() as {
    items: { key: string; streams: number }[]
  }
  return items.find((agent) => agent.key === key)?.streams ?? 0
}

/** Adds every claim to `test`; `edge` is started by the suite. */
export function edgeClaims(test: Test, edge: Edge): void {
  const link = edge.link.bind(edge)
  const serving = edge.serving.bind(edge)
  const visit = edge.visit.bind(edge)

  test('a link is admitted by its key, and told what this relay can', async () => {
    const agent = await link()
    assert.is(agent.welcome.scope, 'alice')
    assert.is(agent.welcome.window, 1_048_576)
    assert.is(agent.welcome.bulk, 0)
    assert.equal(agent.welcome.can, ['inspectable'])
    await agent.close()
  })

  test('unknown, foreign and missing credentials are refused with 4401', async () => {
    for (
      const wrong of [`sk_alice_${'A'.repeat(43)}`, `sk_nobody_${'A'.repeat(43)}`, 'x', undefined]
    ) {
      try {
        await LinkAgent.open({
          url: edge.relay.url,
          ...(wrong === undefined ? {} : { secret: wrong }),
        })
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

  test('a verified http claim is refused with the reason and both remedies', async () => {
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

  test('names are of one scope; another is refused and offered a free one', async () => {
    const bob = (await makeKey(edge.relay, { scope: 'bob' })).secret
    const mine = await link()
    const his = await link({ secret: bob })
    assert.is((await mine.claim('shop'))['ok'], true)
    assert.is((await mine.claim('shop-2'))['ok'], true)
    const reply = await his.claim('shop')
    const error = reply['error'] as Record<string, string>
    assert.is(error['code'], 'registry/taken')
    assert.match(error['hint']!, /--name shop-3/)
    const { items } = await (await api(edge.relay, '/names?scope=alice')).json() as {
      items: { name: string }[]
    }
    assert.ok(items.some(({ name }) => name === 'shop'))
    await Promise.all([mine.close(), his.close()])
  })

  test('a visit link reaches the endpoint, under credit, both ways', async () => {
    const home = await link()
    home.onOpen = echo
    assert.is((await home.claim('db', { kind: 'tcp', mode: 'verified' }))['ok'], true)
    const visit = await link({ role: 'visit', target: home.key })
    const bytes = fast.randomBytes(3_000_000)
    same(await through(visit.connect('db'), bytes), bytes)
    assert.equal(await through(visit.connect('db'), new Uint8Array([1])), Buffer.from([1]))
    const refused = visit.connect('nothing')
    const error = await whole(refused).then(() => undefined, (error) => error)
    assert.is(error?.code, 'stream/refused')
    await Promise.all([visit.close(), home.close()])
  })

  test('a stalled reader holds no more than its window, and others go on', async () => {
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
    same(await through(visit.connect('slow'), bytes), bytes)
    assert.ok(stalled[0]!.heldBytes <= WINDOW_INITIAL_BYTES)
    await Promise.all([visit.close(), home.close()])
  })

  test('resolve gives the passports of those that serve a name', async () => {
    const home = await link()
    await home.claim('pass', { kind: 'tcp', mode: 'verified' })
    assert.equal((await home.request({ do: 'resolve', name: 'pass' }))['agents'], [])
    assert.is((await home.request({ do: 'passport' }))['passport'], undefined)
    const seen = await fetch(`${edge.relay.url}/v1/names/pass`).then((response) =>
      response.json()
    ) as {
      agents: { key: string }[]
    }
    assert.is(seen.agents[0]?.key, home.key)
    await home.close()
  })

  test('a claim ends with its process, and the name stays reserved', async () => {
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

  test('a revoked key ends its links within a second', async () => {
    const key = await makeKey(edge.relay)
    const agent = await link({ secret: key.secret })
    const visit = await link({ secret: key.secret, role: 'visit', target: agent.key })
    const other = await link()
    const begun = performance.now()
    await api(edge.relay, `/keys/${key.id}`, undefined, 'DELETE')
    assert.is((await agent.closed).code, 4403)
    assert.is((await visit.closed).code, 4403)
    assert.ok(performance.now() - begun < 1000)
    assert.is(other.mux.size, 0)
    assert.is((await other.request({ do: 'passport' }))['ok'], true)
    await other.close()
  })

  test(
    'a blocked name cuts its streams and takes no new ones; a blocked scope ends its links',
    async () => {
      const carol = await makeKey(edge.relay, { scope: 'carol' })
      const home = await link({ secret: carol.secret })
      home.onOpen = echo
      await home.claim('bad', { kind: 'tcp', mode: 'verified' })
      const visit = await link({ role: 'visit', target: home.key })
      const stream = visit.connect('bad')
      const ended = whole(stream).then(() => undefined, (error) => error)
      await new Promise<void>((resolve) => void (stream.onAccept = resolve))
      await api(edge.relay, '/blocks', { name: 'bad', reason: 'phishing' })
      assert.is((await ended)?.code, 'stream/blocked')
      const again = await whole(visit.connect('bad')).then(() => undefined, (error) => error)
      assert.is(again?.code, 'stream/refused')
      assert.is((await fetch(`${edge.relay.url}/v1/names/bad`)).status, 403)
      await api(edge.relay, '/blocks?name=bad', undefined, 'DELETE')
      assert.is((await fetch(`${edge.relay.url}/v1/names/bad`)).status, 200)
      await api(edge.relay, '/blocks', { scope: 'carol', reason: 'phishing' })
      assert.is((await home.closed).code, 4403)
      const { items } = await (await api(edge.relay, '/blocks')).json() as {
        items: { scope?: string }[]
      }
      assert.equal(items.map(({ scope }) => scope), ['carol'])
      await visit.close()
    },
  )

  test(
    'a fleet token admits as many agents as it allows, and those that left are not counted',
    async () => {
      const token = await makeKey(edge.relay, { path: 'tokens', scope: 'dave', maxAgents: 1 })
      const one = await link({ secret: token.secret })
      await LinkAgent.open({ url: edge.relay.url, secret: token.secret }).then(
        () => assert.unreachable(),
        (error) => assert.is((error as LinkRefused).code, 4429),
      )
      const twin = await link({ secret: token.secret, identity: one.identity })
      await Promise.all([one.close(), twin.close()])
      for (let i = 0; i < 50; i++) {
        const next = await LinkAgent.open({ url: edge.relay.url, secret: token.secret }).catch(() =>
          undefined
        )
        if (next) return void await next.close()
        await pause(100)
      }
      assert.unreachable('the token is still counted as used')
    },
  )

  test('text and oversize messages end the link', async () => {
    const { hostname, port } = new URL(edge.relay.url)
    for (const message of ['hello', new Uint8Array(70_000)]) {
      const identity = generateIdentity(fast)
      const ws = new WebSocket(
        `ws://${hostname}:${port}/v1/link/${formatKey(identity.public)}`,
        'sotto.v1',
      )
      const closed = new Promise<number>((resolve) => ws.onclose = ({ code }) => resolve(code))
      ws.onopen = () => ws.send(message)
      assert.is(await closed, 4400)
    }
  })

  test('a readable endpoint: bodies both ways, in pieces, and who asked', async () => {
    const agent = await serving('site')
    const hello = await visit('site', '/hello?x=1', { headers: { 'x-forwarded-for': '6.6.6.6' } })
    assert.is(hello.status, 200)
    const seen = await hello.json() as Record<string, string>
    assert.is(seen['url'], '/hello?x=1')
    assert.is(seen['host'], `site.apps.localhost:${edge.relay.port}`)
    assert.is(seen['x-forwarded-for'], '127.0.0.1')
    assert.is(seen['sotto-order'], undefined)
    const bytes = fast.randomBytes(2_000_000)
    const echoed = await visit('site', '/echo', { method: 'POST', body: bytes as BodyInit })
    same(await echoed.arrayBuffer(), bytes)
    const head = await visit('site', '/hello', { method: 'HEAD' })
    assert.is(head.status, 200)
    assert.is(await head.text(), '')
    await agent.close()
  })

  test('a readable response comes as it is written, and a visitor who leaves ends it', async () => {
    const agent = await serving('ticks')
    const leaving = new AbortController()
    const response = await visit('ticks', '/ticks', { signal: leaving.signal })
    const reader = response.body!.getReader()
    const first = await reader.read()
    assert.match(new TextDecoder().decode(first.value), /^data: 1/)
    assert.is(await streamsOf(edge.relay, agent.key), 1)
    leaving.abort()
    await reader.read().catch(() => {})
    await edge.upstreamLeft
    for (let i = 0; i < 100 && await streamsOf(edge.relay, agent.key) > 0; i++) await pause(50)
    assert.is(await streamsOf(edge.relay, agent.key), 0)
    await agent.close()
  })

  test('a WebSocket of a readable endpoint: text, bytes, sub-protocol, and close codes', async () => {
    const agent = await serving('chat')
    const open = async (): Promise<WebSocket> => {
      const Client = WebSocket as unknown as new (url: string, options: object) => WebSocket
      const socket = new Client(`ws://127.0.0.1:${edge.relay.port}/ws`, {
        protocols: ['one', 'two'],
        headers: { host: `chat.apps.localhost:${edge.relay.port}` },
      })
      socket.binaryType = 'arraybuffer'
      await new Promise((resolve, reject) => {
        socket.onopen = resolve
        socket.onerror = () => reject(new Error('the WebSocket did not open'))
      })
      return socket
    }
    const next = (socket: WebSocket): Promise<unknown> =>
      new Promise((resolve) => void (socket.onmessage = ({ data }) => resolve(data)))
    const socket = await open()
    assert.is(socket.protocol, 'two')
    socket.send('ciao')
    assert.is(await next(socket), 'you said ciao')
    for (const length of [0, 125, 126, 65_535, 65_536, 1_000_000]) {
      const bytes = fast.randomBytes(length)
      const back = next(socket)
      socket.send(bytes as Uint8Array<ArrayBuffer>)
      same(await back as ArrayBuffer, bytes)
    }
    const closed = new Promise<CloseEvent>((resolve) => void (socket.onclose = resolve))
    socket.send('bye')
    assert.is((await closed).code, 4321)
    const other = await open()
    other.close(4000, 'enough')
    for (let i = 0; i < 100 && !edge.codes.includes(4000); i++) await pause(50)
    assert.ok(edge.codes.includes(4000))
    await agent.close()
  })

  test('unknown names, agents that left and blocked names each get their answer', async () => {
    assert.is((await visit('nobody-here', '/')).status, 404)
    const agent = await serving('shut')
    await api(edge.relay, '/blocks', { name: 'shut', reason: 'phishing' })
    assert.is((await visit('shut', '/hello')).status, 403)
    await api(edge.relay, '/blocks?name=shut', undefined, 'DELETE')
    assert.is((await visit('shut', '/hello')).status, 200)
    await agent.close()
    for (let i = 0; i < 50 && (await visit('shut', '/hello')).status !== 404; i++) await pause(100)
    assert.is((await visit('shut', '/hello')).status, 404)
  })

  test('two agents of a scope share one name, and one goes on when the other left', async () => {
    const one = await serving('pool')
    const two = await serving('pool')
    for (let i = 0; i < 8; i++) assert.is((await visit('pool', '/hello')).status, 200)
    await one.close()
    for (let i = 0; i < 20; i++) {
      if ((await visit('pool', '/hello')).status === 200) continue
      await pause(50)
    }
    for (let i = 0; i < 8; i++) assert.is((await visit('pool', '/hello')).status, 200)
    await two.close()
  })
}
