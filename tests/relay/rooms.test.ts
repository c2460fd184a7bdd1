// Rooms: numbers from a pool that grows, entries and tries that are counted, nothing that stays. The
// attacks are those of strangers: walking the numbers, taking them all, coming back with a used token.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ManualClock } from '../../core/clock.ts'
import { isTunnelError } from '../../core/errors.ts'
import {
  ADDRESS_ENTRIES_MAX,
  Entries,
  ENTRIES_MAX,
  IDENTITY_ENTRIES_MAX,
  LINK_ROOMS_MAX,
  ROOM_MS_MAX,
  roomNumber,
  Rooms,
} from '../../relay/rooms.ts'
import type { Room } from '../../relay/rooms.ts'
import { fast } from '../support/crypto.ts'

const rooms = suite('relay/rooms')

let next = 0
/** An identity, link and address that nobody else has. */
const maker = (of: Partial<{ key: string; link: string; address: string }> = {}) => {
  next++
  return { key: `k${next}`, group: `g${next}`, link: `l${next}`, address: `a${next}`, ...of }
}
const visitor = (of: Partial<{ key: string; address: string }> = {}) => {
  next++
  return { key: `v${next}`, address: `b${next}`, ...of }
}

function made(): { clock: ManualClock; rooms: Rooms } {
  const clock = new ManualClock()
  return { clock, rooms: new Rooms({ clock, crypto: fast }) }
}

function codeOf(run: () => unknown): string {
  try {
    run()
  } catch (error) {
    assert.ok(isTunnelError(error), String(error))
    assert.ok(error.hint, `${error.code} has a remedy`)
    return error.code
  }
  return 'nothing'
}

rooms('numbers are few and random first, and the pool grows tenfold beyond a third', () => {
  const { rooms } = made()
  const numbers: number[] = []
  for (let i = 0; i < 400; i++) numbers.push(rooms.make(maker()).room)
  assert.is(new Set(numbers).size, 400)
  assert.ok(
    numbers.slice(0, 34).every((number) => number >= 1 && number <= 99),
    'up to a third of 99',
  )
  assert.ok(numbers.slice(34, 334).every((number) => number <= 999), 'up to a third of 999')
  assert.ok(numbers.slice(34, 334).some((number) => number > 99))
  assert.ok(numbers.slice(334).some((number) => number > 999))
  const sorted = [...numbers.slice(0, 34)].sort((a, b) => a - b)
  assert.not.equal(numbers.slice(0, 34), sorted, 'not in order')
})

rooms('each number of the smallest pool can come', () => {
  const seen = new Set<number>()
  for (let i = 0; i < 3000; i++) seen.add(made().rooms.make(maker()).room)
  assert.is(seen.size, 99)
  assert.is(Math.min(...seen), 1)
  assert.is(Math.max(...seen), 99)
})

rooms('enter() leads to the maker, three times', () => {
  const { rooms } = made()
  const from = maker()
  const { room } = rooms.make(from)
  for (let i = 0; i < ENTRIES_MAX; i++) {
    const found = rooms.enter(room, visitor())
    assert.equal([found.key, found.group, found.link], [from.key, from.group, from.link])
  }
  assert.is(codeOf(() => rooms.enter(room, visitor())), 'pair/taken')
})

rooms('a room that never was, has expired, was left, or whose link is gone is unknown', () => {
  const { rooms, clock } = made()
  assert.is(codeOf(() => rooms.enter(7, visitor())), 'pair/unknown-room')
  const expired = rooms.make(maker()).room
  clock.advance(ROOM_MS_MAX - 1)
  rooms.enter(expired, visitor())
  clock.advance(1)
  assert.is(codeOf(() => rooms.enter(expired, visitor())), 'pair/unknown-room')
  const from = maker()
  const left = rooms.make(from).room
  assert.is(rooms.leave(left, 'somebody else'), false)
  rooms.enter(left, visitor())
  assert.is(rooms.leave(left, from.key), true)
  assert.is(codeOf(() => rooms.enter(left, visitor())), 'pair/unknown-room')
  const other = maker()
  const [one, two] = [rooms.make(other).room, rooms.make(other).room]
  assert.equal(rooms.ended(other.link).sort(), [one, two].sort())
  assert.is(codeOf(() => rooms.enter(one, visitor())), 'pair/unknown-room')
  assert.is(rooms.size, 0)
})

rooms('nobody enters a room of its own', () => {
  const { rooms } = made()
  const from = maker()
  const { room } = rooms.make(from)
  assert.is(codeOf(() => rooms.enter(room, from)), 'pair/own-room')
})

rooms(
  'an identity that walks the numbers is stopped, found or not, and only for 10 minutes',
  () => {
    const { rooms, clock } = made()
    const { room } = rooms.make(maker())
    const walker = visitor()
    const tries: string[] = []
    for (let i = 0; i < IDENTITY_ENTRIES_MAX; i++) {
      tries.push(codeOf(() => rooms.enter(100_000 + i, { ...walker, address: `walk${i}` })))
    }
    assert.ok(tries.every((code) => code === 'pair/unknown-room'))
    assert.is(codeOf(() => rooms.enter(room, { ...walker, address: 'yet another' })), 'pair/limit')
    clock.advance(ROOM_MS_MAX)
    assert.is(codeOf(() => rooms.enter(100_000, walker)), 'pair/unknown-room')
  },
)

rooms('an address with ever new identities is stopped too, and others are not', () => {
  const { rooms } = made()
  const { room } = rooms.make(maker())
  for (let i = 0; i < ADDRESS_ENTRIES_MAX; i++) {
    assert.is(codeOf(() => rooms.enter(100_000, visitor({ address: 'one' }))), 'pair/unknown-room')
  }
  assert.is(codeOf(() => rooms.enter(room, visitor({ address: 'one' }))), 'pair/limit')
  rooms.enter(room, visitor())
})

rooms('a refused try is not counted against the identity whose address was the reason', () => {
  const { rooms } = made()
  for (let i = 0; i < ADDRESS_ENTRIES_MAX; i++) {
    codeOf(() => rooms.enter(100_000, visitor({ address: 'full' })))
  }
  const honest = visitor()
  for (let i = 0; i < IDENTITY_ENTRIES_MAX; i++) {
    assert.is(codeOf(() => rooms.enter(1, { ...honest, address: 'full' })), 'pair/limit')
  }
  assert.is(codeOf(() => rooms.enter(100_000, honest)), 'pair/unknown-room')
})

rooms('making rooms has the same limits, and a link has four at once', () => {
  const { rooms } = made()
  const from = maker()
  for (let i = 0; i < LINK_ROOMS_MAX; i++) rooms.make(from)
  assert.is(codeOf(() => rooms.make(from)), 'pair/limit')
  for (let i = LINK_ROOMS_MAX + 1; i < IDENTITY_ENTRIES_MAX; i++) {
    rooms.make({ ...from, link: `other${i}`, address: `other${i}` })
  }
  assert.is(
    codeOf(() => rooms.make({ ...from, link: 'fresh', address: 'fresh' })),
    'pair/limit',
    'ten of an identity',
  )
  for (let i = 0; i < ADDRESS_ENTRIES_MAX; i++) rooms.make(maker({ address: 'crowd' }))
  assert.is(codeOf(() => rooms.make(maker({ address: 'crowd' }))), 'pair/limit')
})

rooms('what is kept is taken up: rooms, entries and tries', () => {
  const clock = new ManualClock()
  const kept = new Map<number, Room>()
  const tries = new Map<string, number[]>()
  const keep = {
    room: (number: number, room: Room | undefined) =>
      void (room ? kept.set(number, { ...room }) : kept.delete(number)),
    tries: (who: string, times: readonly number[] | undefined) =>
      void (times ? tries.set(who, [...times]) : tries.delete(who)),
  }
  const before = new Rooms({ clock, crypto: fast, keep })
  const [one, two] = [before.make(maker()).room, before.make(maker()).room]
  before.enter(one, visitor())
  const walker = visitor()
  for (let i = 0; i < IDENTITY_ENTRIES_MAX; i++) codeOf(() => before.enter(100_000, walker))
  const after = new Rooms({ clock, crypto: fast, keep })
  after.restore([...kept.values()], [...tries])
  assert.is(after.size, 2)
  after.enter(one, visitor())
  after.enter(one, visitor())
  assert.is(codeOf(() => after.enter(one, visitor())), 'pair/taken')
  assert.is(codeOf(() => after.enter(two, walker)), 'pair/limit')
  clock.advance(ROOM_MS_MAX)
  codeOf(() => after.enter(one, visitor()))
  assert.is(kept.size, 0)
  assert.is(tries.size, 2, 'of the last visitor alone')
})

rooms('roomNumber() refuses what is no number of a room', () => {
  assert.is(roomNumber(1), 1)
  for (const wrong of [0, -1, 1.5, NaN, Infinity, '7', null, undefined, {}, 2 ** 60]) {
    assert.is(codeOf(() => roomNumber(wrong)), 'pair/unknown-room')
  }
})

rooms('a token works once, for its room and its visitor, until it expires', () => {
  const clock = new ManualClock()
  const entries = new Entries(clock)
  const entry = (token: string) => ({
    token,
    room: 7,
    visitor: 'v',
    link: 'l',
    expires: clock.now() + 10,
  })
  for (const token of ['a', 'b', 'c', 'd', 'e']) entries.add(entry(token))
  assert.is(entries.use('a', { room: 7, visitor: 'v' }), 'l')
  assert.is(entries.use('a', { room: 7, visitor: 'v' }), undefined)
  assert.is(entries.use('b', { room: 8, visitor: 'v' }), undefined)
  assert.is(entries.use('b', { room: 7, visitor: 'v' }), undefined, 'burned by the wrong room')
  assert.is(entries.use('c', { room: 7, visitor: 'thief' }), undefined)
  assert.is(entries.use('c', { room: 7, visitor: 'v' }), undefined, 'burned by the thief')
  entries.drop([7])
  assert.is(entries.size, 0)
  entries.add(entry('f'))
  clock.advance(10)
  assert.is(entries.use('f', { room: 7, visitor: 'v' }), undefined)
  entries.add(entry('g'))
  clock.advance(10)
  entries.add(entry('h'))
  assert.is(entries.size, 1, 'expired ones are forgotten')
})

rooms.run()
