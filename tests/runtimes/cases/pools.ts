/** Several agents on one name, and bulk links: who is asked, who is asked next, who never again. */
import * as assert from 'uvu/assert'
import { concat, utf8 } from '../../../core/bytes.ts'
import type { Visit } from '../../../core/frame.ts'
import { RESET } from '../../../core/frame.ts'
import type { Stream } from '../../../core/mux.ts'
import { encodeTicket, readPrelude } from '../../../core/ticket.ts'
import type { TicketClass } from '../../../core/ticket.ts'
import { api, dialTls, Reader, within } from '../../support/client.ts'
import type { WireAgent } from '../../support/client.ts'
import { fast } from '../../support/crypto.ts'
import type { Bed, Cases } from '../bed.ts'
import { until, writeAll } from '../bed.ts'

const TAKEN = Uint8Array.of(1)
const REFUSED = Uint8Array.of(0)

/** How many bulk links the relay holds idle for an agent. */
async function idle(bed: Bed, agent: WireAgent, count: number): Promise<void> {
  await until(async () => {
    const { items } = (await api(bed.relay, '/agents')).json() as {
      items: { key: string; bulkIdle: number }[]
    }
    return items.find(({ key }) => key === agent.key)?.bulkIdle === count
  }, `${count} idle bulk links`)
}

/** A bulk link that the relay has taken, with the counter of its ticket. */
async function bulk(
  bed: Bed,
  agent: WireAgent,
): Promise<{ reader: Reader; counter: number }> {
  const reader = await bed.dial()
  reader.conn.write(agent.ticket())
  return { reader, counter: agent.ticketsUsed }
}

/** The prelude on a bulk link. */
async function prelude(
  agent: WireAgent,
  { reader, counter }: { reader: Reader; counter: number },
): Promise<Visit> {
  const head = await reader.take(2)
  const rest = await reader.take(head.readUInt16BE(0) + 16)
  const read = readPrelude(concat(head, rest), {
    crypto: fast,
    linkId: agent.linkId,
    counter,
    bulkKey: agent.bulkKey,
  })
  if (read === 'more') throw new Error('the prelude is not whole')
  return read.visit
}

async function pooled(bed: Bed, count: number): Promise<{ name: string; agents: WireAgent[] }> {
  const name = bed.name()
  const agents: WireAgent[] = []
  for (let i = 0; i < count; i++) {
    const agent = await bed.agent()
    await agent.claim(name)
    agents.push(agent)
  }
  return { name, agents }
}

export const poolCases: Cases = (test, bed) => {
  if (!bed.can.raw) return

  test('visitors of a pooled name go to the agent with the fewest', async () => {
    const { name, agents } = await pooled(bed, 3)
    const counts = agents.map(() => 0)
    const streams: Stream[] = []
    let opened = (): void => {}
    agents.forEach((agent, i) => {
      agent.onOpen = (stream) => {
        counts[i]!++
        stream.accept()
        streams.push(stream)
        opened()
      }
    })
    for (let visitors = 1; visitors <= 6; visitors++) {
      const next = new Promise<void>((resolve) => void (opened = resolve))
      await bed.visitor(name)
      await within(next, 'a stream')
    }
    assert.equal(counts, [2, 2, 2])
  })

  test('a visitor that one agent refuses reaches another, no byte lost', async () => {
    const { name, agents: [one, two] } = await pooled(bed, 2)
    for (const agent of [one!, two!]) {
      agent.onOpen = (stream) => stream.reset(RESET.refused)
    }
    const served = new Promise<Stream>((resolve) => {
      two!.onOpen = (stream) => {
        stream.accept()
        resolve(stream)
      }
    })
    const { reader, first } = await bed.visitor(name)
    const far = new Reader(await within(served, 'the second agent'))
    assert.ok((await far.take(first.length)).equals(first))
    far.conn.write(utf8('from the second'))
    assert.is((await reader.take(15)).toString(), 'from the second')
  })

  test('when all refuse, the visitor gets an alert that it can read', async () => {
    const { name, agents } = await pooled(bed, 2)
    for (const agent of agents) agent.onOpen = (stream) => stream.reset(RESET.refused)
    const { reader } = await bed.visitor(name)
    const { bytes, end } = await reader.rest()
    assert.equal([...bytes], [21, 3, 3, 0, 2, 2, 80])
    assert.is(end, 'end')
  })

  test('an agent that does not answer in 5 s loses its turn, by stream and by bulk link', async () => {
    const { name, agents: [one, two] } = await pooled(bed, 2)
    const other = await pooled(bed, 2)
    const [mute, able] = other.agents
    const silent = await bulk(bed, mute!)
    await idle(bed, mute!, 1)
    one!.onOpen = () => {}
    const served = async ({ name, agent }: { name: string; agent: WireAgent }): Promise<number> => {
      const startedMs = performance.now()
      const { first } = await bed.visitor(name)
      const stream = await agent.opened()
      stream.accept()
      assert.ok((await new Reader(stream).take(first.length)).equals(first))
      return performance.now() - startedMs
    }
    const tookMs = await Promise.all([
      served({ name, agent: two! }),
      served({ name: other.name, agent: able! }),
    ])
    for (const ms of tookMs) assert.ok(ms > 4500, `${ms} ms`)
    assert.is((await prelude(mute!, silent)).endpoint, other.name)
    // The slower way to say it: without its turn lost, each of these would cost 5 s more.
    const next = await Promise.all([
      served({ name, agent: two! }),
      served({ name: other.name, agent: able! }),
    ])
    for (const ms of next) assert.ok(ms < 4000, `${ms} ms`)
  })

  test('an agent whose link is lost is out of the pool at once', async () => {
    const { name, agents: [one, two] } = await pooled(bed, 2)
    one!.link.ws.terminate()
    await one!.closed
    await until(async () => {
      const reply = await two!.request({ do: 'resolve', name })
      return reply['ok'] === true
    }, 'the relay')
    for (let i = 0; i < 3; i++) {
      await bed.visitor(name)
      ;(await two!.opened()).accept()
    }
  })

  test('a visitor goes over a bulk link: prelude, first bytes, then bytes without frames', async () => {
    const { name, agents: [agent] } = await pooled(bed, 1)
    const link = await bulk(bed, agent!)
    await idle(bed, agent!, 1)
    const { reader, first } = await bed.visitor(name)
    const visit = await prelude(agent!, link)
    assert.is(visit.kind, 'tls')
    assert.is(visit.endpoint, name)
    assert.is(visit.address, '127.0.0.1')
    assert.is(visit.port, reader.conn.raw.localPort)
    assert.ok((await link.reader.take(first.length)).equals(first))
    link.reader.conn.write(concat(TAKEN, utf8('hi')))
    assert.is((await reader.take(2)).toString(), 'hi')
    const sent = fast.randomBytes(4_000_000)
    const [, forth] = await Promise.all([
      writeAll(reader.conn, sent).then(() => reader.conn.end()),
      link.reader.take(sent.length),
    ])
    assert.ok(forth.equals(sent))
    assert.is((await link.reader.rest()).end, 'end')
    const [, back] = await Promise.all([
      writeAll(link.reader.conn, sent).then(() => link.reader.conn.end()),
      reader.take(sent.length),
    ])
    assert.ok(back.equals(sent))
    assert.is((await reader.rest()).end, 'end')
    assert.is(agent!.mux.size, 0, 'no stream was used')
  })

  test('a bulk link that refuses, or is dead, costs the visitor nothing', async () => {
    const { name, agents: [one, two] } = await pooled(bed, 2)
    const refusing = await bulk(bed, one!)
    await idle(bed, one!, 1)
    one!.onOpen = (stream) => stream.reset(RESET.refused)
    two!.onOpen = (stream) => stream.accept()
    const opened = new Promise<Stream>((resolve) => {
      two!.onOpen = (stream) => {
        stream.accept()
        resolve(stream)
      }
    })
    const { first } = await bed.visitor(name)
    await prelude(one!, refusing)
    refusing.reader.conn.write(REFUSED)
    const far = new Reader(await within(opened, 'the second agent'))
    assert.ok((await far.take(first.length)).equals(first))
    assert.is((await refusing.reader.rest()).bytes.length, first.length, 'both close')
  })

  test('a ticket is good once; forged, old, foreign and torn ones are dropped unanswered', async () => {
    const agent = await bed.agent()
    const other = await bed.agent()
    const reader = await bed.dial()
    reader.conn.write(agent.ticket('verified', 5000))
    await idle(bed, agent, 1)
    const { linkId } = agent
    const flipped = agent.ticket('verified', 5001)
    flipped[48]! ^= 1
    const raised = agent.ticket('verified', 5002)
    raised[32]! ^= 4
    const cases: [string, Uint8Array][] = [
      ['used', agent.ticket('verified', 5000)],
      ['too old', agent.ticket('verified', 900)],
      ['a wrong tag', flipped],
      ['another counter', raised],
      [
        "another's key",
        encodeTicket(fast, { linkId, counter: 5003, class: 'verified' }, other.bulkKey),
      ],
      [
        'an unknown link',
        encodeTicket(fast, {
          linkId: fast.randomBytes(16),
          counter: 1,
          class: 'verified',
        }, agent.bulkKey),
      ],
      ['another class', agent.ticket('verified', 5004).map((byte, i) => (i === 8 ? 2 : byte))],
      ['no class', agent.ticket('verified', 5005).map((byte, i) => (i === 8 ? 9 : byte))],
      ['bytes behind it', concat(agent.ticket('verified', 5006), utf8('x'))],
      ['another magic', agent.ticket('verified', 5007).map((byte, i) => (i === 7 ? 2 : byte))],
    ]
    for (const [what, ticket] of cases) {
      const refused = await bed.dial()
      refused.conn.write(ticket)
      assert.is((await refused.rest()).bytes.length, 0, what)
    }
    const late = await bed.dial()
    late.conn.write(agent.ticket('verified', 4999))
    await idle(bed, agent, 2)
    await agent.close()
    assert.is((await reader.rest()).bytes.length, 0, 'its link is gone')
  })

  test('an idle bulk link that speaks, or ends, is taken off', async () => {
    const { agents: [agent] } = await pooled(bed, 1)
    const one = await bulk(bed, agent!)
    const two = await bulk(bed, agent!)
    await idle(bed, agent!, 2)
    one.reader.conn.write(utf8('hello?'))
    await one.reader.rest()
    two.reader.conn.end()
    await two.reader.rest()
    await idle(bed, agent!, 0)
  })

  test('a bulk link inside TLS to the own name carries what the relay can read', async () => {
    const name = bed.name()
    const agent = await bed.agent()
    const { port } = await agent.claim(name, { mode: 'raw', port: 0 })
    const clear = async (kind: TicketClass): Promise<Reader> => {
      const reader = await dialTls(bed.relay, { servername: 'localhost', alpn: ['sotto-bulk/1'] })
      bed.after(() => reader.conn.raw.destroy())
      reader.conn.write(agent.ticket(kind))
      return reader
    }
    const reader = await clear('clear')
    const counter = agent.ticketsUsed
    await idle(bed, agent, 1)
    const visitor = await bed.dial(Number(port))
    const visit = await prelude(agent, { reader, counter })
    assert.is(visit.kind, 'raw')
    assert.is(visit.endpoint, name)
    reader.conn.write(concat(TAKEN, utf8('banner')))
    assert.is((await visitor.take(6)).toString(), 'banner')
    visitor.conn.write(utf8('reply'))
    assert.is((await reader.take(5)).toString(), 'reply')
    const forged = await dialTls(bed.relay, { servername: 'localhost', alpn: ['sotto-bulk/1'] })
    bed.after(() => forged.conn.raw.destroy())
    forged.conn.write(agent.ticket('clear', counter))
    assert.is((await forged.rest()).bytes.length, 0)
  })
}
