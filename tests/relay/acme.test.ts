/**
 * Which certificates a relay asks for, and how often at most, by a clock that is wound by hand: a name
 * that nobody serves costs nothing, each is ordered once, limits and back-off hold over restarts.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ManualClock } from '../../core/clock.ts'
import { AcmeDesk, HOLD_MS_MAX, NEW_PER_DAY_MAX, NEW_PER_SCOPE_MAX } from '../../relay/acme.ts'
import type { AcmePorts, Kept, Spent } from '../../relay/acme.ts'
import type { CertificatePair } from '../../relay/certificate.ts'

const test = suite('relay/acme')
const DAY_MS = 86_400_000
const LIFE_MS = 90 * DAY_MS

class Stage {
  readonly clock = new ManualClock()
  readonly kept = new Map<string, Kept>()
  spent: readonly Spent[] = []
  /** Scope of each endpoint that is served now. */
  readonly live = new Map<string, string>()
  readonly orders: string[] = []
  running = 0
  hang = false
  fail: (Error & { retryAfterMs?: number }) | undefined
  ask: AcmePorts['ask'] = () => Promise.resolve(undefined)
  desk = this.#open()

  #open(): AcmeDesk {
    return new AcmeDesk({
      clock: this.clock,
      random: () => 0,
      ownNames: ['relay.test'],
      scopeOf: (name) => this.live.get(name),
      order: async ([name]) => {
        assert.is(this.running++, 0, 'one at a time')
        await (this.hang ? new Promise(() => {}) : Promise.resolve())
        this.running--
        this.orders.push(name!)
        if (this.fail) throw this.fail
        return { cert: `${name} ${this.clock.now()}`, key: '' }
      },
      ask: (pair) => this.ask(pair),
      read: ({ cert }: CertificatePair) => {
        const notBeforeMs = Number(cert.split(' ')[1])
        return { notBeforeMs, notAfterMs: notBeforeMs + LIFE_MS, fraction: 0.5 }
      },
      keep: (name, kept) => Promise.resolve(void this.kept.set(name, structuredClone(kept))),
      keepBudget: (spent) => Promise.resolve(void (this.spent = [...spent])),
      forget: (name) => Promise.resolve(void this.kept.delete(name)),
      changed: () => Promise.resolve(),
      log() {},
    }, { kept: this.kept.values(), spent: this.spent })
  }

  restart(): void {
    this.desk = this.#open()
  }

  /** Until nothing is under way. */
  async settle(): Promise<void> {
    for (let i = 0; i < 200; i++) await Promise.resolve()
  }

  async look(): Promise<void> {
    this.desk.look()
    await this.settle()
  }
}

test('its own name at once, and again at two thirds of its life', async () => {
  const at = new Stage()
  await at.look()
  assert.equal(at.orders, ['relay.test'])
  assert.ok(at.desk.pair('relay.test'))
  at.clock.advance(LIFE_MS * 2 / 3 - 1000)
  await at.look()
  assert.is(at.orders.length, 1)
  at.clock.advance(2000)
  await at.look()
  assert.is(at.orders.length, 2)
})

test("the CA's window wins over two thirds", async () => {
  const at = new Stage()
  await at.look()
  const now = at.clock.now()
  at.ask = () => Promise.resolve({ window: { startMs: now + DAY_MS, endMs: now + 3 * DAY_MS } })
  await at.look()
  at.clock.advance(2 * DAY_MS - 1000)
  await at.look()
  assert.is(at.orders.length, 1)
  at.clock.advance(2000)
  await at.look()
  assert.is(at.orders.length, 2)
})

test('an endpoint is ordered once, however many come, and only while it is served', async () => {
  const at = new Stage()
  await at.look()
  await at.desk.ready('nobody.apps.relay.test')
  at.live.set('web.apps.relay.test', 'ana')
  await Promise.all(Array.from({ length: 9 }, () => at.desk.ready('web.apps.relay.test')))
  await at.desk.ready('web.apps.relay.test')
  assert.equal(at.orders, ['relay.test', 'web.apps.relay.test'])
  at.live.clear()
  at.clock.advance(LIFE_MS - 1000)
  await at.look()
  assert.equal(at.orders.filter((name) => name.startsWith('web')).length, 1, 'nobody serves it')
  at.clock.advance(2000)
  await at.look()
  assert.not(at.kept.has('web.apps.relay.test'), 'what has ended is forgotten')
})

test('no scope takes all, nor all scopes more than a day has; a restart changes nothing', async () => {
  const at = new Stage()
  const served = (): number => at.orders.length
  for (let i = 0; i < 30; i++) {
    const name = `n${i}.apps.relay.test`
    at.live.set(name, 'eve')
    await at.desk.ready(name)
    if (i % 5 === 0) at.restart()
  }
  assert.is(served(), NEW_PER_SCOPE_MAX)
  for (let i = 0; i < 60; i++) {
    const name = `m${i}.apps.relay.test`
    at.live.set(name, `scope${i}`)
    await at.desk.ready(name)
    at.restart()
  }
  assert.is(served(), NEW_PER_DAY_MAX)
  at.clock.advance(DAY_MS)
  await at.desk.ready('m59.apps.relay.test')
  assert.is(served(), NEW_PER_DAY_MAX + 1)
})

test('after a failure it waits, longer each time, as long as the CA says, over restarts too', async () => {
  const at = new Stage()
  at.fail = new Error('no')
  await at.look()
  await at.look()
  at.restart()
  await at.look()
  assert.is(at.orders.length, 1)
  at.clock.advance(2 * 60_000)
  await at.look()
  assert.is(at.orders.length, 2)
  at.clock.advance(7 * 60_000)
  await at.look()
  assert.is(at.orders.length, 2)
  at.fail = Object.assign(new Error('later'), { retryAfterMs: 5 * 3_600_000 })
  at.clock.advance(2 * 60_000)
  await at.look()
  assert.is(at.orders.length, 3)
  at.clock.advance(4 * 3_600_000)
  await at.look()
  assert.is(at.orders.length, 3)
  at.fail = undefined
  at.clock.advance(3_600_000)
  await at.look()
  assert.is(at.orders.length, 4)
  assert.ok(at.desk.pair('relay.test'))
})

test('a visitor waits no longer than it is told to', async () => {
  const at = new Stage()
  at.live.set('slow.apps.relay.test', 'ana')
  at.hang = true
  let through = false
  const waits = at.desk.ready('slow.apps.relay.test').then(() => void (through = true))
  await at.settle()
  assert.not(through)
  at.clock.advance(HOLD_MS_MAX)
  await waits
})

test.run()
