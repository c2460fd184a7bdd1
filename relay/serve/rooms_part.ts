/**
 * The part of the directory that holds rooms (relay/rooms.ts): one object for the whole relay, since a
 * number must lead to one maker. Rooms and tries are in its storage, so that a sleep neither ends a
 * pairing nor gives a guesser his tries back.
 */
import type { ObjectContext } from 'cloudflare:workers'
import { hex } from '../../core/bytes.ts'
import { TOKEN_BYTES } from '../local_desk.ts'
import type { Entered, Opened } from '../requests.ts'
import { Rooms, unknownRoom } from '../rooms.ts'
import type { Entry, Maker, Room } from '../rooms.ts'
import { webClock } from './edge.ts'
import { fast } from './objects.ts'

type Kv = ObjectContext['storage']['kv']

export class RoomsPart {
  readonly #rooms: Rooms

  constructor(kv: Kv) {
    const keep = (key: string, value: unknown): void => {
      if (value === undefined) kv.delete(key)
      else kv.put(key, value)
    }
    this.#rooms = new Rooms({
      clock: webClock,
      crypto: fast(),
      keep: {
        room: (number, room) => keep(`rooms/${number}`, room),
        tries: (who, times) => keep(`tries/${who}`, times),
      },
    })
    const tries = [...kv.list<number[]>({ prefix: 'tries/' })]
    this.#rooms.restore(
      [...kv.list<Room>({ prefix: 'rooms/' })].map(([, room]) => room),
      tries.map(([key, times]) => [key.slice('tries/'.length), times]),
    )
  }

  make(maker: Maker): Opened {
    const { room, expires } = this.#rooms.make(maker)
    return { room, expires }
  }

  /** `told` says it to the star of the maker; false: the link that made the room is gone. */
  async enter(
    number: number,
    { visitor, told }: {
      visitor: { key: string; address: string }
      told(maker: string, entry: Entry): Promise<boolean>
    },
  ): Promise<Entered> {
    const { key, group, link, expires } = this.#rooms.enter(number, visitor)
    const token = hex(fast().randomBytes(TOKEN_BYTES))
    if (!await told(key, { token, room: number, visitor: visitor.key, link, expires })) {
      this.#rooms.ended(link)
      throw unknownRoom(number)
    }
    return { key, group, token }
  }

  leave(number: number, key: string): void {
    this.#rooms.leave(number, key)
  }

  ended(link: string): void {
    this.#rooms.ended(link)
  }
}
