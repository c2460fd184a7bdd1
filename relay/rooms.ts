/**
 * Rooms, where two agents that share a code find each other; docs/protocol.md §13. A room is a number
 * and whose link made it; it says nothing of the code. Numbers are drawn at random from a pool that
 * grows, so that strangers cannot burn the low ones, and entering is counted before it is looked up,
 * so that walking through the numbers costs as much as knocking on a door that is there.
 */
import type { Clock } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { TunnelError } from '../core/errors.ts'

// Specification constants.
export const ROOM_MS_MAX = 600_000
export const ENTRIES_MAX = 3
export const IDENTITY_ENTRIES_MAX = 10
export const ADDRESS_ENTRIES_MAX = 30
/** The window of the two limits above. */
export const ENTRIES_MS = 600_000
const POOL_MIN = 99
const POOL_GROWTH = 10

// Our own choices.
/** Rooms at once: a third of the largest pool. */
export const ROOMS_MAX = 33_333
/** Rooms of one link at once. */
export const LINK_ROOMS_MAX = 4
/** Identities and addresses whose tries are remembered; beyond that nobody new may try. */
export const TRIERS_MAX = 65_536
/** Numbers drawn before the first free one after the last is taken. */
const DRAWS_MAX = 64

export interface Maker {
  /** KEY. */
  key: string
  group: string
  link: string
  address: string
}

export interface Room {
  room: number
  key: string
  group: string
  link: string
  /** Milliseconds since 1970. */
  expires: number
  entries: number
}

/** Keeps rooms and tries through a sleep, where the owner has one. */
export interface RoomsKept {
  room(number: number, room: Room | undefined): void
  tries(who: string, times: readonly number[] | undefined): void
}

export interface RoomsPorts {
  clock: Clock
  crypto: Crypto
  keep?: RoomsKept
}

export class Rooms {
  readonly #clock: Clock
  readonly #crypto: Crypto
  readonly #keep: RoomsKept | undefined
  /** In the order in which they were made, so that those that expire come first. */
  readonly #rooms = new Map<number, Room>()
  readonly #byLink = new Map<string, Set<number>>()
  /** Times of the last tries, in the order of the last one. */
  readonly #tries = new Map<string, number[]>()

  constructor({ clock, crypto, keep }: RoomsPorts) {
    this.#clock = clock
    this.#crypto = crypto
    this.#keep = keep
  }

  get size(): number {
    return this.#rooms.size
  }

  /** Takes up what was kept. */
  restore(rooms: readonly Room[], tries: readonly (readonly [string, number[]])[]): void {
    for (const room of [...rooms].sort((a, b) => a.expires - b.expires)) {
      this.#put(room)
    }
    for (const [who, times] of [...tries].sort((a, b) => (a[1].at(-1)! - b[1].at(-1)!))) {
      this.#tries.set(who, times)
    }
    this.#prune()
  }

  /** A room of this link, for 10 minutes. Throws `pair/limit`. */
  make({ key, group, link, address }: Maker): Room {
    this.#prune()
    this.#try('make', { key, address })
    const own = this.#byLink.get(link)?.size ?? 0
    if (own >= LINK_ROOMS_MAX) throw limited(`${own} rooms of this link`)
    if (this.#rooms.size >= ROOMS_MAX) throw limited(`${ROOMS_MAX} rooms on this relay`)
    const number = this.#draw()
    const room = {
      room: number,
      key,
      group,
      link,
      expires: this.#clock.now() + ROOM_MS_MAX,
      entries: 0,
    }
    this.#put(room)
    this.#keep?.room(number, room)
    return room
  }

  /** Who made it, for one that wants in. Throws `pair/limit`, `pair/unknown-room`, `pair/taken`. */
  enter(number: number, visitor: { key: string; address: string }): Room {
    this.#prune()
    this.#try('enter', visitor)
    const room = this.#rooms.get(number)
    if (!room) throw unknownRoom(number)
    if (room.key === visitor.key) {
      throw new TunnelError(
        'pair/own-room',
        `Cannot enter room ${number}: it was made by this same identity`,
        { hint: 'Type the code on the other machine.' },
      )
    }
    if (room.entries >= ENTRIES_MAX) {
      throw new TunnelError(
        'pair/taken',
        `Cannot enter room ${number}: found ${ENTRIES_MAX} entries already, the most there may be`,
        { hint: 'Somebody may be guessing at the code. Make a new one with "sotto pair".' },
      )
    }
    room.entries++
    this.#keep?.room(number, room)
    return room
  }

  /** The maker gives it up; what anybody else says changes nothing. */
  leave(number: number, key: string): boolean {
    if (this.#rooms.get(number)?.key !== key) return false
    this.#drop(number)
    return true
  }

  /** The link is gone, and its rooms with it. */
  ended(link: string): number[] {
    const gone = [...this.#byLink.get(link) ?? []]
    for (const number of gone) this.#drop(number)
    return gone
  }

  #put(room: Room): void {
    this.#rooms.set(room.room, room)
    const own = this.#byLink.get(room.link)
    if (own) own.add(room.room)
    else this.#byLink.set(room.link, new Set([room.room]))
  }

  #drop(number: number): void {
    const room = this.#rooms.get(number)
    if (!room) return
    this.#rooms.delete(number)
    const own = this.#byLink.get(room.link)
    own?.delete(number)
    if (own?.size === 0) this.#byLink.delete(room.link)
    this.#keep?.room(number, undefined)
  }

  /** Counts one more try of the identity and its address, or of neither. */
  #try(what: string, { key, address }: { key: string; address: string }): void {
    const who = [
      [`${what} ${key}`, IDENTITY_ENTRIES_MAX],
      [`${what} ${address}`, ADDRESS_ENTRIES_MAX],
    ] as const
    const now = this.#clock.now()
    const recent = (name: string): number[] =>
      (this.#tries.get(name) ?? []).filter((time) => time + ENTRIES_MS > now)
    for (const [name, most] of who) {
      if (recent(name).length >= most) throw limited(`${most} tries in 10 minutes`)
      if (!this.#tries.has(name) && this.#tries.size + who.length > TRIERS_MAX) {
        throw limited('too many that try')
      }
    }
    for (const [name] of who) {
      const times = [...recent(name), now]
      this.#tries.delete(name)
      this.#tries.set(name, times)
      this.#keep?.tries(name, times)
    }
  }

  /** Forgets what has expired. Both maps are in the order of time, so that what stays is not walked. */
  #prune(): void {
    const now = this.#clock.now()
    for (const [number, { expires }] of this.#rooms) {
      if (expires > now) break
      this.#drop(number)
    }
    for (const [who, times] of this.#tries) {
      if (times.at(-1)! + ENTRIES_MS > now) break
      this.#tries.delete(who)
      this.#keep?.tries(who, undefined)
    }
  }

  /** A free number, from a pool of which at most a third is taken. */
  #draw(): number {
    let pool = POOL_MIN
    while (this.#rooms.size * 3 > pool) pool = pool * POOL_GROWTH + POOL_GROWTH - 1
    let number = 1
    for (let draw = 0; draw < DRAWS_MAX; draw++) {
      number = 1 + this.#below(pool)
      if (!this.#rooms.has(number)) return number
    }
    // Each draw hits a free number two times out of three: this is for a broken source of chance.
    while (this.#rooms.has(number)) number = number === pool ? 1 : number + 1
    return number
  }

  /** Even over 0 to `bound` - 1, for bounds far below 2^32: the first draws of a cut are thrown away. */
  #below(bound: number): number {
    const cut = 2 ** 32 - (2 ** 32 % bound)
    for (;;) {
      const [a, b, c, d] = this.#crypto.randomBytes(4) as unknown as [
        number,
        number,
        number,
        number,
      ]
      const value = ((a << 24) | (b << 16) | (c << 8) | d) >>> 0
      if (value < cut) return value % bound
    }
  }
}

/** An entry that may be used once, for one stream of kind `pair`. */
export interface Entry {
  token: string
  room: number
  /** KEY of who entered. */
  visitor: string
  /** The link that made the room. */
  link: string
  expires: number
}

/** Entries that wait for their stream at the star of the maker: at most 3 of a room. */
export class Entries {
  readonly #clock: Clock
  readonly #keep: ((entries: Entry[]) => void) | undefined
  readonly #byToken: Map<string, Entry>

  constructor(clock: Clock, entries: Entry[] = [], keep?: (entries: Entry[]) => void) {
    this.#clock = clock
    this.#byToken = new Map(entries.map((entry) => [entry.token, entry]))
    this.#keep = keep
  }

  get size(): number {
    return this.#byToken.size
  }

  add(entry: Entry): void {
    for (const [token, { expires }] of this.#byToken) {
      if (expires > this.#clock.now()) break
      this.#byToken.delete(token)
    }
    this.#byToken.set(entry.token, entry)
    this.#kept()
  }

  /** The link that a stream of this visitor leads to; the token is used up, right or wrong for it. */
  use(token: string, of: { room: number; visitor: string }): string | undefined {
    const found = this.#byToken.get(token)
    if (!found) return undefined
    this.#byToken.delete(token)
    this.#kept()
    const fits = found.room === of.room && found.visitor === of.visitor &&
      found.expires > this.#clock.now()
    return fits ? found.link : undefined
  }

  /** Forgets those of rooms that are gone. */
  drop(rooms: readonly number[]): void {
    if (rooms.length === 0) return
    const { size } = this.#byToken
    for (const [token, { room }] of this.#byToken) {
      if (rooms.includes(room)) this.#byToken.delete(token)
    }
    if (this.#byToken.size < size) this.#kept()
  }

  /** Forgets those of rooms of a link that is gone. */
  dropOf(link: string): void {
    this.drop(
      [...this.#byToken.values()].filter((one) => one.link === link).map(({ room }) => room),
    )
  }

  #kept(): void {
    this.#keep?.([...this.#byToken.values()])
  }
}

/** Throws `pair/unknown-room` on what is no room's number. */
export function roomNumber(value: unknown): number {
  if (Number.isSafeInteger(value) && (value as number) >= 1) return value as number
  throw unknownRoom(value)
}

export function unknownRoom(number: unknown): TunnelError {
  return new TunnelError(
    'pair/unknown-room',
    `Cannot enter room ${
      String(JSON.stringify(number)).slice(0, 20)
    }: there is none of that number`,
    {
      hint:
        'Codes expire after 10 minutes, and with "sotto pair" on the other side: make a new one.',
    },
  )
}

function limited(found: string): TunnelError {
  return new TunnelError('pair/limit', `Cannot pair now: found ${found}`, {
    hint: 'Wait ten minutes and try again.',
  })
}
