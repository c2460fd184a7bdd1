// The relay on workerd, as a process: what every relay at the edge does, and what a Durable Object has
// to do differently. It counts its wake-ups itself (`/v1/hubs/KEY`), and whoever asks wakes it.
// seconds: 300
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Stream } from '../../core/mux.ts'
import { fast } from '../support/crypto.ts'
import { echo, Edge, edgeClaims, pause, same, through } from '../support/edge_suite.ts'
import { makeKey, startWorker } from '../support/worker_relay.ts'

/** An object sleeps after 10 s without a message; a little more, since the platform looks now and then. */
const ASLEEP_MS = 14_000

const worker = suite('runtimes/worker')
const edge = new Edge()
const link = edge.link.bind(edge)

interface Report {
  wakes: number
  links: number
  streams: number
}

async function report(key: string): Promise<Report> {
  const response = await fetch(`${edge.relay.url}/v1/hubs/${key}`, {
    headers: { authorization: `Bearer ${edge.relay.adminKey}` },
  })
  return await response.json() as Report
}

/** Serves what a browser asks, and echoes what another agent sends. */
function either(readable: (stream: Stream) => void): (stream: Stream) => void {
  return (stream) => (stream.visit.kind === 'http' ? readable(stream) : echo(stream))
}

worker.before(() => edge.start(() => startWorker()))
worker.after(() => edge.close())

edgeClaims(worker, edge)

worker(
  'it sleeps with its links, pings do not wake it, and it wakes with claims and ids',
  async () => {
    const home = await edge.serving('sleepy-site')
    home.onOpen = either(home.onOpen)
    await home.claim('sleepy', { kind: 'tcp', mode: 'verified' })
    const visit = await link({ role: 'visit', target: home.key })
    const before = fast.randomBytes(1000)
    same(await through(visit.connect('sleepy'), before), before)
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
    same(await through(visit.connect('sleepy'), again), again)
    await pause(ASLEEP_MS)
    assert.is((await edge.visit('sleepy-site', '/hello')).status, 200)
    assert.ok((await report(home.key)).wakes > after.wakes)
    assert.is(home.frames.length, 0)
    assert.is((await home.request({ do: 'release', name: 'sleepy' }))['ok'], true)
    await Promise.all([visit.close(), home.close()])
  },
)

worker(
  'a star that slept still knows who was granted its names, and who entered its room',
  async () => {
    const { secret } = await makeKey(edge.relay, { scope: 'sleepers' })
    const guestSecret = (await makeKey(edge.relay, { scope: 'guests' })).secret
    const home = await link({ secret })
    const answer = await fetch(`${edge.relay.url}/api/v1/grants`, {
      method: 'POST',
      headers: { authorization: `Bearer ${secret}`, 'content-type': 'application/json' },
      body: JSON.stringify({ names: 'drows*', to: 'guests' }),
    })
    assert.is(answer.status, 201)
    await home.claim('drowsy', { kind: 'agent', mode: 'session' })
    const guest = await link({ secret: guestSecret })
    const visit = await link({
      role: 'visit',
      target: home.key,
      secret: guestSecret,
      identity: guest.identity,
    })
    const { room } = await home.request({ do: 'room' })
    const { token } = await guest.request({ do: 'enter', room })
    const before = await report(home.key)
    // Twice: the object that told it of the entry goes to sleep first.
    await pause(2 * ASLEEP_MS)
    home.onOpen = echo
    const tail = Uint8Array.from(Buffer.from(String(token), 'hex'))
    const open = (kind: 'pair' | 'session', endpoint: string, tail: Uint8Array): Stream =>
      visit.mux.open({ kind, port: 0, address: '', endpoint, tail })
    const sent = fast.randomBytes(1000)
    same(await through(open('pair', String(room), tail), sent), sent)
    same(await through(open('session', 'drowsy', new Uint8Array(0)), sent), sent)
    assert.ok((await report(home.key)).wakes > before.wakes, 'it did sleep')
    await pause(ASLEEP_MS)
    await home.close()
    const gone = await guest.request({ do: 'enter', room })
    assert.is((gone['error'] as { code: string }).code, 'pair/unknown-room')
    await Promise.all([visit.close(), guest.close()])
  },
)

worker('a link ends with its credential, though its object sleeps', async () => {
  const expiresAt = new Date(Date.now() + ASLEEP_MS + 2000).toISOString()
  const agent = await link({ secret: (await makeKey(edge.relay, { expiresAt })).secret })
  const begun = Date.now()
  assert.is((await agent.closed).code, 4403)
  assert.ok(Date.now() - begun >= ASLEEP_MS)
  assert.is(agent.notices[0]?.code, 'credentials/expired')
})

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

worker('without a wildcard an endpoint is a path, which its service does not see', async () => {
  const twin = new Edge()
  await twin.start(() => startWorker({ variables: { SOTTO_RELAY_PATHS: 'true' } }))
  const agent = await twin.serving('site')
  const reply = await agent.claim('site')
  assert.is(reply['path'], '/t/site/')
  assert.is(reply['url'], `http://localhost:${twin.relay.port}/t/site/`)
  assert.ok(agent.welcome.can.includes('path'))
  const seen = await (await fetch(`${twin.relay.url}/t/site/hello?x=1`)).json() as { url: string }
  assert.is(seen.url, '/hello?x=1')
  assert.is((await fetch(`${twin.relay.url}/t/none/`)).status, 404)
  assert.is((await fetch(`${twin.relay.url}/healthz`)).status, 200)
  await twin.close()
})

worker('what was reserved, made and published outlives the process', async () => {
  const home = await link()
  await home.claim('kept')
  await edge.relay.stop({ keep: true })
  const { data, adminKey } = edge.relay
  edge.relay = { ...await startWorker({ data }), adminKey }
  assert.is((await fetch(`${edge.relay.url}/v1/names/kept`)).status, 200)
  const back = await link({ identity: home.identity })
  assert.is((await back.claim('kept'))['ok'], true)
  await back.close()
})

worker.run()
