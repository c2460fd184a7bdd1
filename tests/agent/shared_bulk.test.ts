/** The agent's shared link: its ticket, its streams, and that it comes back while its home link lasts. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { BulkPool } from '../../agent/bulk.ts'
import { SharedBulk } from '../../agent/shared_bulk.ts'
import type { Up } from '../../agent/uplink.ts'
import { EMPTY, fromHex } from '../../core/bytes.ts'
import { ManualClock } from '../../core/clock.ts'
import type { Stream } from '../../core/mux.ts'
import { SharedLink } from '../../core/shared_link.ts'
import { memoryConns } from '../../core/socket.ts'
import type { Conn } from '../../core/socket.ts'
import { checkTicket, readTicket, TICKET_BYTES } from '../../core/ticket.ts'
import type { TicketClass } from '../../core/ticket.ts'
import { fast } from '../support/crypto.ts'

const test = suite('agent/shared_bulk')

const LINK = 'a0a1a2a3a4a5a6a7a8a9aaabacadaeaf'
const BULK_KEY = new Uint8Array(32).fill(9)

async function settle(): Promise<void> {
  for (let i = 0; i < 10; i++) await new Promise((resolve) => setTimeout(resolve, 0))
}

/** A home link of which only what bulk links need is there. */
function home(bulk = 0): Up {
  return { welcome: { link: LINK, bulk, window: 1_048_576 }, bulkKey: BULK_KEY } as unknown as Up
}

class Desk {
  readonly clock = new ManualClock()
  readonly opened: Stream[] = []
  /** The relay's ends, in order; undefined for a connection that was refused. */
  readonly conns: (Conn | undefined)[] = []
  refuse = false
  readonly asked: TicketClass[] = []
  #tickets = 0
  readonly bulk = new SharedBulk({
    clock: this.clock,
    crypto: fast,
    later: (run) => void setTimeout(run, 0),
    connect: (kind) => {
      this.asked.push(kind)
      const [near, far] = memoryConns()
      this.conns.push(this.refuse ? undefined : far)
      return this.refuse ? Promise.reject(new Error('refused')) : Promise.resolve(near)
    },
    opened: (stream) => void this.opened.push(stream),
  }, { up: home(), count: () => ++this.#tickets })

  /** Plays the relay on the newest connection. */
  async relay(): Promise<{ link: SharedLink; counter: number }> {
    const conn = this.conns.at(-1)!
    let bytes: Uint8Array = EMPTY
    conn.handle({ data: (chunk) => void (bytes = chunk), end() {}, closed() {} })
    await settle()
    const ticket = readTicket(bytes)
    assert.is(bytes.length, TICKET_BYTES, 'silent until the relay speaks')
    if (ticket === 'more') throw new Error('more')
    assert.ok(checkTicket(fast, ticket, BULK_KEY))
    assert.equal([ticket.class, ticket.linkId], ['shared', fromHex(LINK)])
    const link = new SharedLink(conn, {
      side: 'relay',
      clock: this.clock,
      later: (run) => void setTimeout(run, 0),
      windowMaxBytes: 1_048_576,
      onOpen() {},
      onClosed() {},
    })
    await settle()
    return { link, counter: ticket.counter }
  }
}

const VISIT = { kind: 'raw', address: '192.0.2.7', port: 1, endpoint: 'ssh', tail: EMPTY } as const

test('it shows a ticket, then takes streams', async () => {
  const desk = new Desk()
  desk.bulk.start()
  await settle()
  const { link, counter } = await desk.relay()
  assert.equal([counter, desk.asked], [1, ['shared']])
  assert.ok(link.ready)
  link.open(VISIT)
  await settle()
  assert.is(desk.opened[0]?.visit.endpoint, 'ssh')
  desk.bulk.close()
  await settle()
  assert.not(link.ready)
})

test('a lost one is opened again with the next ticket, after waits that grow to 10 s', async () => {
  const desk = new Desk()
  desk.bulk.start()
  await settle()
  const { link } = await desk.relay()
  link.close()
  await settle()
  assert.is(desk.conns.length, 1)
  desk.clock.advance(200)
  await settle()
  assert.is((await desk.relay()).counter, 2)
  desk.refuse = true
  desk.conns.at(-1)!.abort()
  await settle()
  const waits: number[] = []
  for (let i = 0; i < 8; i++) {
    const before = desk.conns.length
    let ms = 0
    while (desk.conns.length === before) {
      desk.clock.advance(100)
      ms += 100
    }
    waits.push(ms)
    await settle()
  }
  assert.equal(waits, [400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000])
  desk.bulk.close()
  assert.is(desk.clock.pending, 0)
})

test('one that lasted comes back after the short wait', async () => {
  const desk = new Desk()
  desk.bulk.start()
  await settle()
  for (let i = 0; i < 3; i++) {
    const { link } = await desk.relay()
    for (let s = 0; s < 4; s++) {
      desk.clock.advance(10_000)
      await settle()
    }
    link.close()
    await settle()
    desk.clock.advance(200)
    await settle()
    assert.is(desk.conns.length, i + 2)
  }
  desk.bulk.close()
})

test('with the home link it ends for good, also while it is being opened', async () => {
  const desk = new Desk()
  desk.bulk.start()
  desk.bulk.close()
  await settle()
  const ends: unknown[] = []
  desk.conns[0]!.handle({ data() {}, end() {}, closed: (error) => void ends.push(error) })
  await settle()
  desk.clock.advance(60_000)
  await settle()
  assert.equal([ends.length, desk.conns.length], [1, 1])
})

test('a pool beside it does not grow, however many come', async () => {
  for (const grows of [false, true]) {
    const clock = new ManualClock()
    let count = 0
    const pool = new BulkPool({
      clock,
      crypto: fast,
      connect: () => Promise.resolve(memoryConns()[0]),
      offered() {},
    }, { up: home(8), kind: 'clear', count: () => ++count, grows })
    pool.start()
    await settle()
    for (let i = 0; i < 20; i++) pool.overflowed()
    await settle()
    assert.is(pool.idle, grows ? 28 : 8)
    pool.close()
  }
})

test.run()
