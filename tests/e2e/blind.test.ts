// seconds: 90
// needs: curl openssl
/**
 * The relay is blind, and the search that says so has eyes. A tap before the relay's port holds the
 * relay's own TLS key and keeps all bytes of all connections, of visitors and of agents, over bulk
 * links and over streams. Markers of 64 random bytes go both ways in paths, headers and bodies. In
 * verified mode none is found, on the wire, under the relay's TLS, or in the relay's memory while the
 * exchange is open; the same search finds every one of them in inspectable mode, and in the agent.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { randomBytes } from 'node:crypto'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { memoryHolds, startTap } from '../support/tap.ts'
import type { Tap } from '../support/tap.ts'
import { E2eWorld } from '../support/world.ts'
import type { Program, Relay } from '../support/world.ts'

const KINDS = ['path', 'header', 'body', 'answerHeader', 'answerBody'] as const
type Markers = Record<(typeof KINDS)[number], string>

let world: E2eWorld
let upstreamPort: number
/** By the marker in the path: what is answered, and when the answer may end. */
const expected = new Map<string, { markers: Markers; end: Promise<void> }>()
const missing: string[] = []

const test = suite('e2e/blind')

test.before(async () => {
  world = new E2eWorld()
  const upstream = createServer(async (request, response) => {
    const { markers, end } = expected.get(request.url!.slice(1))!
    let body = ''
    for await (const part of request) body += part
    if (request.headers['x-marker'] !== markers.header) missing.push('header')
    if (!body.includes(markers.body)) missing.push('body')
    response.setHeader('x-answer', markers.answerHeader)
    response.write(`begin ${markers.answerBody} `)
    await end
    response.end('end')
  })
  await new Promise<void>((resolve) => upstream.listen(0, '127.0.0.1', resolve))
  upstreamPort = (upstream.address() as AddressInfo).port
  world.defer(() => {
    upstream.close()
    upstream.closeAllConnections()
  })
  const made = await world.run('openssl', [
    ...'req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2'.split(' '),
    ...['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost,DNS:*.apps.localhost'],
    ...['-keyout', world.path('relay.key'), '-out', world.path('relay.crt')],
  ])
  assert.is(made.code, 0, made.stderr)
})

test.after(() => world.close())

interface Tapped {
  relay: Relay
  tap: Tap
  env: Record<string, string>
}

async function tapped(name: string, ...flags: string[]): Promise<Tapped> {
  const [certPath, keyPath] = [world.path('relay.crt'), world.path('relay.key')]
  const data = ['--data', world.path(name), '--tls-cert', certPath, '--tls-key', keyPath]
  const program = world.sotto(['relay', '--port', '0', '--json', ...data, ...flags], { home: name })
  const { port, url, apiKey, adminKey } = await program.event('listening')
  const tap = await startTap({
    relayPort: port,
    cert: await Bun.file(certPath).text(),
    key: await Bun.file(keyPath).text(),
    sealed: '.secure.localhost',
  })
  world.defer(() => tap.close())
  const env = { SOTTO_RELAY: `https://localhost:${tap.port}`, SOTTO_API_KEY: apiKey }
  return { relay: { program, port, origin: url, apiKey, adminKey }, tap, env }
}

/** One exchange through the tap; `during` runs while the answer is half sent. */
async function exchange(
  { relay, tap, env }: Tapped,
  flags: readonly string[],
  during: (markers: Markers, agent: Program) => void | Promise<void>,
): Promise<Markers> {
  const agent = await world.tunnel(
    relay,
    ['http', String(upstreamPort), '--name', 'web', ...flags],
    {
      env,
    },
  )
  const markers = Object.fromEntries(
    KINDS.map((kind) => [kind, randomBytes(32).toString('hex')]),
  ) as Markers
  let end = (): void => {}
  expected.set(markers.path, { markers, end: new Promise((resolve) => void (end = resolve)) })
  const visitor = world.start('curl', [
    ...['-sSkNi', '--noproxy', '*', '--max-time', '40', '--connect-to', `::127.0.0.1:${tap.port}`],
    ...['-H', `x-marker: ${markers.header}`, '--data-binary', `<<${markers.body}>>`],
    `${agent.up['url']}${markers.path}`,
  ])
  await visitor.says(new RegExp(`begin ${markers.answerBody}`))
  assert.ok(visitor.stdout.includes(markers.answerHeader))
  await during(markers, agent)
  end()
  assert.is((await visitor.ended).code, 0, visitor.stderr)
  assert.match(visitor.stdout, /end$/)
  assert.equal(missing, [])
  await agent.stop()
  return markers
}

for (const [way, flags] of [['bulk links', []], ['streams', ['--bulk', '0']]] as const) {
  test(`verified, over ${way}: no marker anywhere`, async () => {
    const at = await tapped(`verified-${way.split(' ')[0]}`, ...flags)
    const markers = await exchange(at, [], (sent, agent) => {
      const all = Object.values(sent)
      assert.equal(memoryHolds(at.relay.program.child.pid!, all), [])
      // The same search finds them where the plaintext must be.
      assert.equal(memoryHolds(agent.child.pid!, all).length, all.length)
    })
    for (const kind of KINDS) assert.equal(at.tap.layersWith(markers[kind]), [], kind)
    // It did look at this traffic: the name is what a relay sees of it.
    assert.ok(at.tap.layersWith('web.secure.localhost').includes('wire'))
    assert.ok(at.tap.recorded('wire') > 2000)
    assert.ok(at.tap.recorded('frames') > (way === 'streams' ? 2000 : 200))
  })
}

test('inspectable: the same search finds every marker', async () => {
  const at = await tapped('inspectable')
  const markers = await exchange(at, ['--e2ee=false'], (sent) => {
    const held = memoryHolds(at.relay.program.child.pid!, Object.values(sent))
    assert.ok(held.includes(sent.path), 'the path in memory')
    assert.ok(held.includes(sent.answerHeader), 'the answer in memory')
  })
  for (const kind of KINDS) {
    const layers = at.tap.layersWith(markers[kind])
    // From the visitor to the relay, and again in the frames from there to the agent.
    assert.ok(layers.includes('opened'), `${kind}: ${layers}`)
    assert.ok(layers.includes('frames'), `${kind}: ${layers}`)
    assert.not.ok(layers.includes('wire'), `${kind} outside of TLS`)
  }
})

test.run()
