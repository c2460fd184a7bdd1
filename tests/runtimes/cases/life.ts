/** Limits, cuts, and the end of a relay: quotas, blocks, stalled readers, drains and kills. */
import * as assert from 'uvu/assert'
import { utf8 } from '../../../core/bytes.ts'
import { decodeRestarting, FRAME } from '../../../core/frame.ts'
import type { Stream } from '../../../core/mux.ts'
import { api, ask, makeKey, Reader, Refused, WireAgent, within } from '../../support/client.ts'
import { residentBytes } from '../../support/relays.ts'
import type { RelayProcess } from '../../support/relays.ts'
import type { Bed, Cases } from '../bed.ts'
import { echo, until } from '../bed.ts'

const ALERT_INTERNAL = [21, 3, 3, 0, 2, 2, 80]
const ALERT_UNKNOWN = [21, 3, 3, 0, 2, 2, 112]
const MIB = 1_048_576
/** The receive window of one stalled visitor. */
const STALLED_BYTES_MAX = 2 * MIB
/** What the kernel may hold of one connection on loopback, both ends' buffers together. */
const KERNEL_BYTES_MAX = 40 * MIB

async function refused(opening: Promise<unknown>): Promise<Refused> {
  const error = await opening.then(() => undefined, (error: unknown) => error)
  assert.instance(error, Refused)
  return error as Refused
}

/** An agent of a relay that is not the bed's own. */
async function agentOf(bed: Bed, relay: RelayProcess, secret: string): Promise<WireAgent> {
  const agent = await WireAgent.open(relay, { secret })
  bed.after(() => agent.link.ws.terminate())
  return agent
}

function pageCases(test: Parameters<Cases>[0], bed: Bed): void {
  test('healthz, readyz, metrics and the pages answer; metrics are text of Prometheus', async () => {
    const { relay } = bed
    for (const path of ['/healthz', '/readyz']) {
      const { status, text } = await ask(relay, path)
      assert.equal([status, text], [200, 'ok\n'])
    }
    const agent = await bed.agent()
    const metrics = await ask(relay, '/metrics', {
      headers: { authorization: `Bearer ${relay.adminKey}` },
    })
    assert.is(metrics.status, 200)
    assert.match(String(metrics.headers['content-type']), /^text\/plain; version=0\.0\.4/)
    for (const line of metrics.text.trim().split('\n')) {
      assert.match(line, /^(# (HELP|TYPE) sotto_\w+ .+|sotto_\w+(\{.*\})? \S+)$/)
    }
    const about = (await ask(relay, '/v1/relay')).json()
    if (relay.relayKey !== '') assert.is(about['key'], relay.relayKey)
    assert.is((about['can'] as { rawTcp: boolean }).rawTcp, bed.can.raw)
    assert.match((await ask(relay, '/')).text, /<html/)
    const { items } = (await api(relay, '/agents')).json() as { items: { key: string }[] }
    assert.ok(items.some(({ key }) => key === agent.key))
    assert.is((await ask(relay, '/v1/names/nobody-has-it')).status, 404)
  })

  test('a blocked name is cut off at once and comes back; a blocked scope loses its links', async () => {
    const scope = 'blocked'
    const name = bed.name()
    const agent = await bed.agent({ scope })
    await agent.claim(name)
    agent.onOpen = echo
    const visiting = await bed.agent({ role: 'visit', target: agent.identity.public })
    const stream = visiting.connect(name)
    const near = new Reader(stream)
    stream.write(utf8('here'))
    assert.is((await near.take(4)).toString(), 'here')
    const visitor = bed.can.raw ? (await bed.visitor(name)).reader : undefined
    if (visitor) await visitor.take(20)
    const block = async (what: object): Promise<void> => {
      const answer = await api(bed.relay, '/blocks', { body: { ...what, reason: 'abuse' } })
      assert.is(answer.status, 201, answer.text)
    }
    await block({ name })
    assert.is((await within(near.closed, 'the reset') as { code?: string }).code, 'stream/blocked')
    if (visitor) {
      assert.is.not((await visitor.rest()).end, 'end')
      const late = await bed.visitor(name)
      assert.equal([...(await late.reader.rest()).bytes], ALERT_UNKNOWN)
    }
    const unblock = await api(bed.relay, `/blocks?name=${name}`, { method: 'DELETE' })
    assert.is(unblock.status, 204)
    const again = visiting.connect(name)
    again.write(utf8('back'))
    assert.is((await new Reader(again).take(4)).toString(), 'back')

    await block({ scope })
    assert.is((await agent.closed).code, 4403)
    assert.is((await refused(bed.agent({ scope }))).code, 4403)
    await api(bed.relay, `/blocks?scope=${scope}`, { method: 'DELETE' })
    await bed.agent({ scope })
  })
}

function quotaCases(test: Parameters<Cases>[0], bed: Bed): void {
  test('each quota answers: an alert, a Retry-After, a close code, an error', async () => {
    const relay = await bed.another({
      flags: {
        quota: 'address.visitors=1,address.visitorsBurst=3,address.links=4,scope.links=2,' +
          'scope.names=2,address.requests=1,address.requestsBurst=20,' +
          'address.failures=1,address.failuresBurst=2',
      },
    })
    const { secret } = await makeKey(relay, { scope: 'alice' })
    const { secret: other } = await makeKey(relay, { scope: 'bob' })
    const agent = await agentOf(bed, relay, secret)
    agent.onOpen = (stream) => stream.accept()
    await agent.claim('one')
    await agent.claim('two')
    const { error } = await agent.ask('three') as { error: { code: string } }
    assert.is(error.code, 'registry/quota')

    if (bed.can.raw) {
      for (let i = 0; i < 3; i++) await bed.visitor('one', relay)
      const { bytes, end } = await (await bed.visitor('one', relay)).reader.rest()
      assert.equal([[...bytes], end], [ALERT_INTERNAL, 'end'])
    }

    await agentOf(bed, relay, secret)
    const third = await refused(agentOf(bed, relay, secret))
    assert.equal([third.code, third.notice?.code], [4429, 'quota/exceeded'])
    await agentOf(bed, relay, other)
    await agentOf(bed, relay, other)
    assert.is((await refused(agentOf(bed, relay, other))).code, 4429, 'links of the address')

    const statuses = new Set<number>()
    for (let i = 0; i < 4; i++) {
      statuses.add((await api(relay, '/keys', { key: 'sk_alice_wrong' })).status)
    }
    assert.ok(statuses.has(429), `wrong secrets: ${[...statuses]}`)
    let answer = await ask(relay, '/')
    for (let i = 0; i < 30 && answer.status === 200; i++) answer = await ask(relay, '/')
    assert.is(answer.status, 429)
    assert.ok(Number(answer.headers['retry-after']) >= 1)
    assert.is((await ask(relay, '/healthz')).status, 200, 'health is always told')
  })
}

function stallCases(test: Parameters<Cases>[0], bed: Bed): void {
  if (bed.can.raw) {
    test('one visitor that stops reading costs its window; seven go on', async () => {
      const name = bed.name()
      const agent = await bed.agent()
      await agent.claim(name)
      const streams: Stream[] = []
      agent.onOpen = (stream) => {
        streams.push(stream)
        stream.accept()
      }
      const readers: Reader[] = []
      for (let i = 0; i < 8; i++) {
        const { reader } = await bed.visitor(name)
        readers.push(reader)
        await until(() => streams.length === i + 1, 'the stream')
      }
      const stalled = readers[0]!
      stalled.conn.pause()
      const before = residentBytes(bed.relay.pid)
      let peak = before
      const watch = setInterval(() => {
        peak = Math.max(peak, residentBytes(bed.relay.pid))
      }, 50)
      const offered = 64 * MIB
      const chunk = new Uint8Array(MIB)
      for (const stream of streams) {
        let left = stream === streams[0] ? offered : 8 * MIB
        const more = (): void => {
          while (left > 0) {
            left -= chunk.length
            if (stream.write(chunk) === 'queued') return
          }
        }
        stream.handle({ data() {}, drain: more, end() {}, closed() {} })
        more()
      }
      try {
        await Promise.all(readers.slice(1).map((reader) => reader.take(8 * MIB)))
      } finally {
        clearInterval(watch)
      }
      const { sentBytes } = streams[0]!
      assert.ok(sentBytes <= STALLED_BYTES_MAX + KERNEL_BYTES_MAX, `sent ${sentBytes}`)
      assert.ok(sentBytes < offered)
      const grown = peak - before
      assert.ok(grown < 160 * MIB, `the relay grew by ${Math.round(grown / MIB)} MiB`)
    })

    test('an agent that stops reading holds up its visitors, not the relay', async () => {
      const name = bed.name()
      const agent = await bed.agent()
      await agent.claim(name)
      agent.onOpen = (stream) => {
        stream.accept()
        stream.handle({ data() {}, end() {}, closed() {} })
      }
      const readers: Reader[] = []
      for (let i = 0; i < 8; i++) readers.push((await bed.visitor(name)).reader)
      await until(() => agent.mux.size === 8, 'the streams')
      agent.link.ws.pause()
      const before = residentBytes(bed.relay.pid)
      const chunk = new Uint8Array(MIB)
      for (const { conn } of readers) {
        for (let i = 0; i < 24; i++) conn.write(chunk)
      }
      await new Promise((resolve) => setTimeout(resolve, 1000))
      const grown = residentBytes(bed.relay.pid) - before
      assert.ok(grown < 120 * MIB, `the relay grew by ${Math.round(grown / MIB)} MiB of 192`)
      const others = await bed.agent()
      assert.is((await others.request({ do: 'passport' }))['ok'], true)
    })
  }
}

function endCases(test: Parameters<Cases>[0], bed: Bed): void {
  test('SIGTERM drains: agents are told, visitors are turned away, running ones finish', async () => {
    const relay = await bed.another({ flags: { grace: '20' } })
    const { secret } = await makeKey(relay, {})
    const agent = await agentOf(bed, relay, secret)
    await agent.claim('web')
    agent.onOpen = echo
    const { reader, first } = await bed.visitor('web', relay)
    await reader.take(first.length)
    relay.kill('SIGTERM')
    const { payload } = await agent.frame(FRAME.restarting)
    const { reconnectInMs, tryForMs } = decodeRestarting(payload)
    assert.ok(reconnectInMs >= 200 && reconnectInMs <= 20_000, `${reconnectInMs} ms`)
    assert.ok(tryForMs >= 20_000)
    const late = await bed.visitor('web', relay)
    assert.equal([...(await late.reader.rest()).bytes], ALERT_INTERNAL)
    const ready = await ask(relay, '/readyz')
    assert.is(ready.status, 503)
    assert.ok(ready.headers['retry-after'])
    assert.is((await ask(relay, '/healthz')).status, 200)
    const link = await agentOf(bed, relay, secret).then(() => '', (error: Error) => error.message)
    assert.match(link, 'status 503')
    reader.conn.write(utf8('still here'))
    assert.is((await reader.take(10)).toString(), 'still here')
    reader.conn.end()
    assert.is((await reader.rest()).end, 'end')
    assert.is(await within(relay.exited, 'its exit'), 0)
    assert.is((await agent.closed).code, 1001)
  })

  test('kill -9 and a start on the same files: identity, keys, names and blocks are kept', async () => {
    const flags = { 'log-level': 'warn' }
    const relay = await bed.another({ flags })
    const { secret } = await makeKey(relay, { scope: 'alice' })
    const { secret: gone, id } = await makeKey(relay, { scope: 'alice' })
    const { secret: bob } = await makeKey(relay, { scope: 'bob' })
    await api(relay, `/keys/${id}`, { method: 'DELETE' })
    await (await agentOf(bed, relay, secret)).claim('kept')
    await api(relay, '/blocks', { body: { name: 'evil', reason: 'abuse' } })
    const agent = await agentOf(bed, relay, secret)
    relay.kill('SIGKILL')
    await relay.exited
    assert.is((await agent.closed).code, 1006)
    const { data, relayKey, port } = relay
    const again = await bed.another({ data, flags: { ...flags, port: String(port) } })
    assert.is(again.relayKey, relayKey)
    assert.is(again.port, port)
    assert.is(again.adminKey, '', 'made once')
    assert.is((await refused(agentOf(bed, again, gone))).code, 4401)
    const alice = await agentOf(bed, again, secret)
    const other = await agentOf(bed, again, bob)
    const code = async (agent: WireAgent, name: string): Promise<unknown> =>
      (await agent.ask(name) as { error?: { code: string } }).error?.code
    assert.is(await code(other, 'kept'), 'registry/taken')
    assert.is(await code(alice, 'kept'), undefined)
    assert.match(String(await code(alice, 'evil')), /blocked$/)
  })
}

export const lifeCases: Cases = (test, bed) => {
  pageCases(test, bed)
  stallCases(test, bed)
  if (bed.can.flags) quotaCases(test, bed)
  if (bed.can.process && bed.can.raw) endCases(test, bed)
}
