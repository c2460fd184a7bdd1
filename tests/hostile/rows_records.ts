/** Lies about the records of an open session: every region of them, their order, number and end. */
import { concat, EMPTY } from '../../core/bytes.ts'
import { encodeEnvelope, ENVELOPE } from '../../core/envelope.ts'
import { decodeVisit, FRAME, RESET } from '../../core/frame.ts'
import { fast } from '../support/crypto.ts'
import { flipped } from './relay.ts'
import type { CarrierEnvelope, Hooks } from './relay.ts'
import type { Stage } from './stage.ts'
import type { Row } from './table.ts'

const HEADER = 4
/** After so long without a carrier a session is lost; docs/protocol.md §10. */
const LOST_MS = 61_000
/** A stream in a session waits so long for its answer. */
const STREAM_MS = 66_000

type Change = (bytes: Uint8Array, envelope: CarrierEnvelope, stage: Stage) => Uint8Array[]

/** Once, to one record of a way: of the data of the first message, unless said otherwise. */
function once(
  change: Change,
  { way = 'forth', nth = 1, type = ENVELOPE.data as number } = {},
): Row['attack'] {
  return (stage) => {
    let count = 0
    stage.relay.hooks.envelope = (envelope) => {
      if (envelope.type !== type || envelope.way !== way || count++ !== nth) return undefined
      return stage.relay.lied(change(envelope.bytes, envelope, stage))
    }
  }
}

/** From one record on everything is done to all that follow. */
function from(change: Change, more: Partial<Hooks> = {}): Row['attack'] {
  return (stage) => {
    let isOn = false
    const { relay } = stage
    Object.assign(relay.hooks, more)
    relay.hooks.envelope = (envelope) => {
      isOn ||= envelope.type === ENVELOPE.data && envelope.way === 'forth'
      return isOn ? relay.lied(change(envelope.bytes, envelope, stage)) : undefined
    }
  }
}

/** The first carrier goes through, and no other. */
function noOtherCarrier(): Partial<Hooks> {
  let carriers = 0
  return {
    frame: ({ type, payload }, { way }) =>
      way === 'up' && type === FRAME.open && decodeVisit(payload).kind === 'session' &&
        carriers++ > 0
        ? []
        : undefined,
  }
}

const otherLeg = ({ relay }: Stage, { way }: CarrierEnvelope) =>
  relay.legs.find((leg) => leg.way !== way)!

function row(name: string, attack: Row['attack'], more: Partial<Row> = {}): Row {
  return { name, layer: 'record', says: ['session/forged'], attack, ...more }
}

export const RECORDS: Row[] = [
  row(
    'the type of a record is another',
    once((bytes) => [concat(Uint8Array.of(ENVELOPE.control), bytes.subarray(1))]),
  ),
  row('a record is said to be longer', once((bytes) => [flipped(bytes, 3, 0x80)]), {
    says: ['session/envelope', 'session/forged'],
  }),
  row('a bit of the first sealed byte is turned', once((bytes) => [flipped(bytes, HEADER)])),
  row('a bit amid the sealed bytes is turned', once((bytes) => [flipped(bytes, 20_000)])),
  row('a bit of the tag is turned', once((bytes) => [flipped(bytes, -1)])),
  row('the tag is all zero', once((bytes) => [concat(bytes.subarray(0, -16), new Uint8Array(16))])),
  row(
    'a bit of the answer is turned',
    once((bytes) => [flipped(bytes, 20_000)], { way: 'back' }),
  ),
  row(
    'a bit of an opened stream is turned',
    once((bytes) => [flipped(bytes, 10)], { type: ENVELOPE.control, nth: 0 }),
  ),
  row(
    'a bit of an acknowledgement is turned',
    once((bytes) => [flipped(bytes, 10)], { type: ENVELOPE.ack, way: 'back', nth: 0 }),
  ),
  row('a record comes twice', once((bytes) => [bytes, bytes])),
  row(
    'an old record comes again later',
    ({ relay }) => {
      let old: Uint8Array | undefined
      let count = 0
      relay.hooks.envelope = ({ type, way, bytes }) => {
        if (type !== ENVELOPE.data || way !== 'forth') return undefined
        old ??= bytes.slice()
        return count++ === 4 ? relay.lied([bytes, old]) : undefined
      }
    },
  ),
  row(
    'a whole message is sent again after its end',
    ({ relay }) => {
      const kept: Uint8Array[] = []
      relay.hooks.envelope = ({ type, way, bytes, leg }) => {
        if (way !== 'forth' || type < ENVELOPE.data) return undefined
        kept.push(bytes.slice())
        // The end of its stream is a small control record after the data.
        if (type !== ENVELOPE.control || kept.length < 5) return undefined
        relay.hooks.envelope = () => undefined
        queueMicrotask(() => leg.inject(relay.lied(concat(...kept))))
        return undefined
      }
    },
  ),
  row('a record is dropped', once(() => [])),
  row(
    'the last record of a message is dropped',
    once(() => [], { nth: 2 }),
  ),
  row(
    'two records change places',
    ({ relay }) => {
      let held: Uint8Array | undefined
      let count = 0
      relay.hooks.envelope = ({ type, way, bytes }) => {
        if (type !== ENVELOPE.data || way !== 'forth' || ++count > 2) return undefined
        if (held) return relay.lied([bytes, held])
        held = bytes
        return []
      }
    },
  ),
  row('a record is cut short', once((bytes) => [bytes.subarray(0, -1)])),
  row(
    'a record comes back to its sender',
    once((bytes, envelope, stage) => {
      otherLeg(stage, envelope).inject(bytes)
      return [bytes]
    }),
  ),
  row(
    'a made-up record is put in',
    once((bytes) => [encodeEnvelope(ENVELOPE.data, fast.randomBytes(500)), bytes]),
  ),
  row(
    'a made-up end is put in',
    once((bytes) => [encodeEnvelope(ENVELOPE.close, fast.randomBytes(48)), bytes]),
  ),
  row(
    'a made-up acknowledgement is put in',
    once((bytes) => [encodeEnvelope(ENVELOPE.ack, fast.randomBytes(48)), bytes]),
  ),
  row(
    'a made-up change of keys is put in',
    once((bytes) => [encodeEnvelope(ENVELOPE.rekey, fast.randomBytes(48)), bytes]),
  ),
  row(
    'an envelope of a type that is none',
    once((bytes) => [Uint8Array.of(0x77, 0, 0, 0), bytes]),
    { says: ['session/envelope'] },
  ),
  row(
    'a word of the handshake amid records',
    once((bytes) => [encodeEnvelope(ENVELOPE.proceed, new Uint8Array(32)), bytes]),
    { says: ['session/order'] },
  ),
  row(
    'every record is changed, on every carrier: the session ends',
    from((bytes) => [flipped(bytes, -1)]),
    {
      lies: 4,
      passes: 20_000,
      holds: ({ heard, arrived }) => {
        if (!heard.some(({ where }) => where === 'state')) throw new Error('nobody was told')
        if (arrived.some(({ isEnded }) => isEnded)) throw new Error('something was taken as whole')
      },
    },
  ),
  row(
    'the carrier is cut as if it had finished, and no other comes',
    from((_, { leg }) => {
      leg.end()
      return [EMPTY]
    }, noOtherCarrier()),
    { says: ['session/lost'], passes: LOST_MS },
  ),
  row(
    'the carrier is reset, and no other comes',
    from((_, { leg }) => {
      leg.reset(RESET.gone)
      return [EMPTY]
    }, noOtherCarrier()),
    { says: ['session/lost'], passes: LOST_MS },
  ),
  row(
    'records are held for ever',
    from(() => []),
    { says: ['stream/timeout'], passes: STREAM_MS },
  ),
]
