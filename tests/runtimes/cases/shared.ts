/** Shared bulk links: many visitors of raw ports as streams over one raw connection, and who attacks it. */
import * as assert from 'uvu/assert'
import { concat, EMPTY, text, utf8 } from '../../../core/bytes.ts'
import {
  decodeFrame,
  decodeReset,
  decodeVisit,
  encodeCredit,
  encodeFrame,
  encodeVisit,
  FRAME,
  RESET,
} from '../../../core/frame.ts'
import type { Frame, FrameName, Visit } from '../../../core/frame.ts'
import type { Stream } from '../../../core/mux.ts'
import { SharedLink } from '../../../core/shared_link.ts'
import { systemClock } from '../../../relay/serve/host.ts'
import { api, ask, dialTls, Reader, within } from '../../support/client.ts'
import type { WireAgent } from '../../support/client.ts'
import { fast } from '../../support/crypto.ts'
import type { Bed, Cases } from '../bed.ts'
import { echo, until, writeAll } from '../bed.ts'

/** An agent with a raw endpoint that answers for nothing on its home link. */
async function raw(bed: Bed): Promise<{ agent: WireAgent; name: string; port: number }> {
  const name = bed.name()
  const agent = await bed.agent()
  const { port } = await agent.claim(name, { mode: 'raw', port: 0 })
  return { agent, name, port: Number(port) }
}

/** A shared link by the book; ready when the relay has heard its answer. */
async function share(
  bed: Bed,
  agent: WireAgent,
  onOpen: (stream: Stream) => void,
  reader?: Reader,
): Promise<{ link: SharedLink; closed: Promise<unknown> }> {
  const { conn } = reader ?? await bed.dial()
  conn.write(agent.ticket('shared'))
  let close!: (error: unknown) => void
  const closed = new Promise((resolve) => void (close = resolve))
  const link = new SharedLink(conn, {
    side: 'agent',
    clock: systemClock,
    later: setImmediate,
    windowMaxBytes: 16_777_216,
    onOpen,
    onClosed: close,
  })
  bed.after(() => link.close())
  // The relay's pong is the second message; it has our own pong by then.
  await until(() => link.ready && link.heard >= 2, 'the relay on the shared link')
  return { link, closed }
}

/** So many idle bulk links for one visitor each. */
async function idleLinks(bed: Bed, agent: WireAgent, count: number): Promise<Reader[]> {
  const links = await Promise.all(Array.from({ length: count }, async () => {
    const reader = await bed.dial()
    reader.conn.write(agent.ticket('clear'))
    return reader
  }))
  await until(async () => {
    const { items } = (await api(bed.relay, '/agents')).json() as {
      items: { key: string; bulkIdle: number }[]
    }
    return items.find(({ key }) => key === agent.key)?.bulkIdle === count
  }, `${count} idle bulk links`)
  return links
}

/** The same by hand, frame by frame. */
class Wire {
  readonly reader: Reader

  constructor(reader: Reader) {
    this.reader = reader
  }

  static async open(bed: Bed, agent: WireAgent): Promise<Wire> {
    const wire = new Wire(await bed.dial())
    wire.reader.conn.write(agent.ticket('shared'))
    const ping = await wire.next()
    assert.is(ping.type, FRAME.ping, 'the relay speaks first')
    wire.send('pong', 0, ping.payload)
    // An answer shows that the pong was read too.
    wire.send('ping', 0, new Uint8Array(8))
    assert.is((await wire.next()).type, FRAME.pong)
    return wire
  }

  async next(): Promise<Frame> {
    const length = (await this.reader.take(4)).readUInt32BE(0)
    return decodeFrame(await this.reader.take(length))
  }

  send(name: FrameName, id: number, payload: Uint8Array = EMPTY): void {
    this.write(encodeFrame(name, id, payload))
  }

  write(message: Uint8Array): void {
    const { length } = message
    this.reader.conn.write(concat(Uint8Array.of(0, length >>> 16, length >>> 8, length), message))
  }

  async opened(): Promise<{ id: number; visit: Visit }> {
    const frame = await this.next()
    assert.is(frame.type, FRAME.open)
    return { id: frame.id, visit: decodeVisit(frame.payload) }
  }
}

export const sharedCases: Cases = (test, bed) => {
  if (!bed.can.raw) return

  test('a relay with raw ports says that it takes shared links', async () => {
    const agent = await bed.agent()
    assert.ok((agent.welcome['can'] as string[]).includes('shared'))
  })

  test('visitors go over a shared link, bytes and half-closes both ways, none over the home link', async () => {
    const { agent, name, port } = await raw(bed)
    const visits: Visit[] = []
    const { link } = await share(bed, agent, (stream) => {
      visits.push(stream.visit)
      echo(stream)
    })
    const sizes = [1, 5, 16_384, 65_536, 65_537, 300_000, 2_000_000]
    await Promise.all([...sizes, ...sizes, ...sizes].map(async (size) => {
      const visitor = await bed.dial(port)
      const sent = fast.randomBytes(size)
      const [, got] = await Promise.all([
        writeAll(visitor.conn, sent).then(() => visitor.conn.end()),
        visitor.take(size),
      ])
      assert.ok(got.equals(sent))
      assert.is((await visitor.rest()).end, 'end')
    }))
    assert.is(visits.length, 21)
    for (const { kind, endpoint, address } of visits) {
      assert.equal([kind, endpoint, address], ['raw', name, '127.0.0.1'])
    }
    assert.is(agent.mux.size, 0)
    await until(() => link.size === 0, 'the end of the streams')
  })

  test('a service that speaks first, and one that ends first', async () => {
    const { agent, port } = await raw(bed)
    await share(bed, agent, (stream) => {
      stream.write(utf8('220 ready'))
      stream.end()
      stream.handle({ data: (bytes) => heard(bytes), end() {}, closed() {} })
    })
    let heard = (_: Uint8Array): void => {}
    const said = new Promise<Uint8Array>((resolve) => void (heard = resolve))
    const visitor = await bed.dial(port)
    assert.is((await visitor.take(9)).toString(), '220 ready')
    assert.is((await visitor.rest()).end, 'end')
    visitor.conn.write(utf8('still here'))
    assert.is(text(await within(said, 'what the visitor says after')), 'still here')
  })

  test('the first visitors get links of their own, the others the shared one', async () => {
    const { agent, port } = await raw(bed)
    let shared = 0
    await share(bed, agent, (stream) => {
      shared++
      stream.accept()
    })
    const own = await idleLinks(bed, agent, 12)
    for (let i = 0; i < 12; i++) await bed.dial(port)
    const asked = (): number => own.filter(({ held }) => held > 0).length
    await until(() => shared + asked() === 12, 'all visitors')
    assert.equal([asked(), shared], [2, 10])
  })

  test('a rush of visitors one by one uses up few links of their own', async () => {
    const { agent, port } = await raw(bed)
    let shared = 0
    await share(bed, agent, (stream) => {
      shared++
      echo(stream)
    })
    const own = await idleLinks(bed, agent, 30)
    const asked = (): number => own.filter(({ held }) => held > 0).length
    const startedMs = performance.now()
    for (let i = 1; i <= 30; i++) {
      const visitor = await bed.dial(port)
      await until(() => shared + asked() === i, 'the visitor')
      // A link is taken with one byte; the relay closes it with its visitor.
      for (const { held, conn } of own) if (held > 0) conn.write(Uint8Array.of(1))
      visitor.conn.raw.destroy()
    }
    // A burst, and so many a second as the agent may be asked to make again.
    const most = 4 + Math.ceil(((performance.now() - startedMs) / 1000) * 20)
    assert.ok(asked() <= most, `${asked()} of at most ${most}`)
  })

  test('a reader that stalls stops itself alone, and the agent within its window', async () => {
    const { agent, port } = await raw(bed)
    let wrote = 0
    const { link } = await share(bed, agent, (stream) => {
      if (wrote > 0) return echo(stream)
      const chunk = new Uint8Array(65_536)
      const fill = (): void => {
        while (wrote < 64_000_000) {
          wrote += chunk.length
          if (stream.write(chunk) !== 'ok') return
        }
      }
      stream.handle({ data() {}, drain: fill, end() {}, closed() {} })
      fill()
    })
    const stalled = await bed.dial(port)
    stalled.conn.pause()
    await until(() => wrote > 0, 'the flood')
    for (let i = 0; i < 20; i++) {
      const mouse = await bed.dial(port)
      const words = utf8(`mouse ${i}`)
      mouse.conn.write(words)
      assert.equal(new Uint8Array(await mouse.take(words.length)), words)
      mouse.conn.end()
      await mouse.rest()
    }
    // Windows, the relay's queue for the visitor, and what two kernels keep.
    assert.ok(wrote < 32_000_000, `${wrote} bytes`)
    stalled.conn.raw.destroy()
    await until(() => link.size === 0, 'the end of the streams')
  })

  test('when it is lost its visitors end, and the next go over the home link', async () => {
    const { agent, port } = await raw(bed)
    const { link } = await share(bed, agent, echo)
    const visitor = await bed.dial(port)
    visitor.conn.write(utf8('x'))
    await visitor.take(1)
    link.close()
    assert.is.not((await visitor.rest()).end, 'end')
    agent.onOpen = echo
    const next = await bed.dial(port)
    next.conn.write(utf8('y'))
    assert.is((await next.take(1)).toString(), 'y')
    assert.is(agent.mux.size, 1)
  })

  test('a newer one of the same home link takes its place; it ends with that link', async () => {
    const { agent, port } = await raw(bed)
    const one = await share(bed, agent, echo)
    const two = await share(bed, agent, echo)
    await within(one.closed, 'the end of the first')
    const visitor = await bed.dial(port)
    visitor.conn.write(utf8('x'))
    await visitor.take(1)
    assert.is(two.link.size, 1)
    await agent.close()
    await within(two.closed, 'the end of the second')
    assert.is.not((await visitor.rest()).end, 'end')
  })

  test('an agent that does not answer on it is asked on the home link', async () => {
    const { agent, port } = await raw(bed)
    const mute = await bed.dial()
    mute.conn.write(agent.ticket('shared'))
    await mute.take(4 + 13)
    agent.onOpen = echo
    const visitor = await bed.dial(port)
    visitor.conn.write(utf8('x'))
    await visitor.take(1)
    assert.is(agent.mux.size, 1)
  })

  test('a visitor that is not accepted in 5 s goes to the home link, and so does the next', async () => {
    const { agent, port } = await raw(bed)
    const wire = await Wire.open(bed, agent)
    agent.onOpen = echo
    const first = await bed.dial(port)
    const { id } = await wire.opened()
    first.conn.write(utf8('x'))
    assert.is((await first.take(1)).toString(), 'x')
    const reset = await wire.next()
    assert.equal([reset.type, reset.id], [FRAME.reset, id])
    const next = await bed.dial(port)
    next.conn.write(utf8('y'))
    await next.take(1)
    assert.is(agent.mux.size, 2)
    wire.send('ping', 0, new Uint8Array(8))
    assert.is((await wire.next()).type, FRAME.pong)
    await bed.dial(port)
    await wire.opened()
  })

  test('its visitors are counted, and cut when the name is blocked', async () => {
    const { agent, name, port } = await raw(bed)
    const { link } = await share(bed, agent, echo)
    const visitor = await bed.dial(port)
    visitor.conn.write(utf8('x'))
    await visitor.take(1)
    const { text } = await ask(bed.relay, '/metrics')
    const gauges = [...text.matchAll(/^\S*(streams\{kind|visitors_active\{route)="raw"\} (\d+)$/gm)]
    assert.is(gauges.length, 2, text)
    for (const [line, , count] of gauges) assert.ok(Number(count) >= 1, line)
    const { items } = (await api(bed.relay, '/agents')).json() as {
      items: { key: string; streams: number; bulkIdle: number }[]
    }
    const told = items.find(({ key }) => key === agent.key)
    assert.equal([told?.streams, told?.bulkIdle], [1, 0])
    const block = await api(bed.relay, '/blocks', { body: { name, reason: 'abuse' } })
    assert.is(block.status, 201)
    await visitor.rest()
    await until(() => link.size === 0, 'the reset')
    await api(bed.relay, `/blocks?name=${name}`, { method: 'DELETE' })
  })

  test('inside TLS to the own name', async () => {
    const { agent, port } = await raw(bed)
    const reader = await dialTls(bed.relay, { servername: 'localhost', alpn: ['sotto-bulk/1'] })
    bed.after(() => reader.conn.raw.destroy())
    const { link } = await share(bed, agent, echo, reader)
    const visitor = await bed.dial(port)
    const sent = fast.randomBytes(1_000_000)
    const [, got] = await Promise.all([
      writeAll(visitor.conn, sent).then(() => visitor.conn.end()),
      visitor.take(sent.length),
    ])
    assert.ok(got.equals(sent))
    await visitor.rest()
    await until(() => link.size === 0, 'the end of the stream')
  })

  test("a visitor's bytes are never taken for frames, and every verified name stays off it", async () => {
    const { agent, port } = await raw(bed)
    const verified = bed.name()
    await agent.claim(verified)
    const wire = await Wire.open(bed, agent)
    const visitor = await bed.dial(port)
    const { id } = await wire.opened()
    wire.send('credit', id, encodeCredit(0))
    const evil = encodeFrame('reset', id, Uint8Array.of(0, 1))
    const words = concat(Uint8Array.of(0, 0, 0, evil.length), evil, agent.ticket('shared', 999))
    visitor.conn.write(words)
    const data = await wire.next()
    assert.equal([data.type, data.id], [FRAME.data, id])
    assert.equal(new Uint8Array(data.payload), words)
    const home = agent.opened()
    await bed.visitor(verified)
    assert.is((await home).visit.kind, 'tls')
    assert.is(wire.reader.held, 0)
  })

  test('an agent that opens streams on it is refused, each time', async () => {
    const { agent } = await raw(bed)
    const wire = await Wire.open(bed, agent)
    const visit = { ...VISIT, endpoint: 'any' }
    for (const id of [1, 3]) {
      wire.send('open', id, encodeVisit(visit))
      const { type, payload } = await wire.next()
      assert.equal([type, decodeReset(payload).code], [FRAME.reset, RESET.refused])
    }
  })

  test('an agent that sends more than it was granted loses that stream alone', async () => {
    const { agent, port } = await raw(bed)
    const wire = await Wire.open(bed, agent)
    const [one, two] = [await bed.dial(port), await bed.dial(port)]
    one.conn.pause()
    const ids = [(await wire.opened()).id, (await wire.opened()).id]
    for (const id of ids) wire.send('credit', id, encodeCredit(0))
    let reset: Frame | undefined
    const chunk = new Uint8Array(65_536)
    // More than the sockets on the way take and any window is.
    for (let i = 0; i < 400; i++) wire.send('data', ids[0]!, chunk)
    while (reset?.type !== FRAME.reset) reset = await wire.next()
    assert.equal([reset.id, decodeReset(reset.payload).code], [ids[0], RESET.overdrawn])
    wire.send('data', ids[1]!, utf8('alive'))
    assert.is((await two.take(5)).toString(), 'alive')
    one.conn.resume()
    await one.rest()
  })

  test('what has no place on it ends it, and its visitors', async () => {
    const { agent, port } = await raw(bed)
    const requests = encodeFrame('request', 1, utf8('{"do":"passport"}'))
    const cases: [string, (wire: Wire) => unknown][] = [
      ['a length beyond a frame', ({ reader }) => reader.conn.write(Uint8Array.of(0, 1, 0, 6))],
      ['a length of 4 GiB', ({ reader }) => reader.conn.write(new Uint8Array(4).fill(255))],
      ['no length', ({ reader }) => reader.conn.write(new Uint8Array(4))],
      ['a request', (wire) => wire.write(requests)],
      ['an unknown type', (wire) => wire.write(Uint8Array.of(0x7f, 0, 0, 0, 1))],
      ['a torn frame', (wire) => wire.write(Uint8Array.of(0x11, 0))],
      ['data without a stream', (wire) => wire.write(Uint8Array.of(0x11, 0, 0, 0, 0, 1))],
      ['data without bytes', (wire) => wire.write(Uint8Array.of(0x11, 0, 0, 0, 2))],
      ['a stream that was never opened', (wire) => wire.send('data', 4000, utf8('x'))],
      ['an id of the relay', (wire) => wire.send('open', 2, encodeVisit(VISIT))],
    ]
    for (const [what, attack] of cases) {
      const wire = await Wire.open(bed, agent)
      const visitor = await bed.dial(port)
      const { id } = await wire.opened()
      wire.send('credit', id, encodeCredit(0))
      wire.send('data', id, utf8('x'))
      await visitor.take(1)
      attack(wire)
      await wire.reader.rest()
      assert.is.not((await visitor.rest()).end, 'end', what)
    }
    assert.is((await agent.request({ do: 'passport' }))['ok'], true, 'the home link goes on')
  })

  test('its tickets are good once and for no other class; a visit link has none', async () => {
    const { agent } = await raw(bed)
    const ticket = agent.ticket('shared')
    const first = await bed.dial()
    first.conn.write(ticket)
    await first.take(17)
    const visiting = await bed.agent({ role: 'visit', target: agent.identity.public })
    const cases: [string, Uint8Array][] = [
      ['used', ticket],
      ['another class', agent.ticket('clear', 50).map((byte, i) => (i === 8 ? 3 : byte))],
      ['to another class', agent.ticket('shared', 51).map((byte, i) => (i === 8 ? 2 : byte))],
      ['a wrong tag', agent.ticket('shared', 52).map((byte, i) => (i === 48 ? byte ^ 1 : byte))],
      ['bytes behind it', concat(agent.ticket('shared', 53), new Uint8Array(4))],
      ['of a visit link', visiting.ticket('shared')],
    ]
    for (const [what, bytes] of cases) {
      const refused = await bed.dial()
      refused.conn.write(bytes)
      assert.is((await refused.rest()).bytes.length, 0, what)
    }
    first.conn.write(concat(Uint8Array.of(0, 0, 0, 13), encodeFrame('ping', 0, new Uint8Array(8))))
    assert.is((await first.take(17))[4], FRAME.pong, 'the first is still there')
  })
}

const VISIT: Visit = {
  kind: 'raw',
  windowBytes: 0,
  port: 1,
  address: '',
  endpoint: 'any',
  tail: EMPTY,
}
