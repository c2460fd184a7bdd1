/** Lies about lengths and counts, and floods: each ends by name, and memory stays what it was. */
import { concat, utf8 } from '../../core/bytes.ts'
import { ENVELOPE } from '../../core/envelope.ts'
import { encodeFrame, encodeVisit, FRAME } from '../../core/frame.ts'
import { encodeRequest, sendMessage } from '../../agent/a2a.ts'
import { SERVICE } from './stage.ts'
import type { Stage } from './stage.ts'
import { MESSAGE } from './table.ts'
import type { Row, Scene } from './table.ts'

/** Far below what a believed length would have cost. */
const GROWTH_BYTES_MAX = 48 * 1_048_576
let before = 0

/** As `attack`, and memory is looked at. */
function lean(attack: Row['attack']): Pick<Row, 'attack' | 'holds'> {
  return {
    attack: (stage) => {
      Bun.gc(true)
      before = process.memoryUsage().rss
      return attack(stage)
    },
    holds: () => {
      const grown = process.memoryUsage().rss - before
      if (grown > GROWTH_BYTES_MAX) throw new Error(`${grown} bytes more`)
    },
  }
}

/** Instead of the first frame of a type that goes to Alice over a link of that role. */
function toAlice(
  type: number,
  lie: (stage: Stage, of: { id: number; message: Uint8Array }) => Uint8Array[],
): Row['attack'] {
  return (stage) => {
    let isDone = false
    const { relay } = stage
    relay.hooks.frame = (frame, { way, link }) => {
      if (isDone || way !== 'down' || frame.type !== type) return undefined
      if (stage.nameOf(link.agent) !== 'alice') return undefined
      isDone = true
      const message = concat(
        Uint8Array.of(frame.type, 0, 0, frame.id >> 8, frame.id),
        frame.payload,
      )
      return relay.lied(lie(stage, { id: frame.id, message }))
    }
  }
}

function envelopeOf(type: number, way: 'forth' | 'back', lengthBytes: number): Row['attack'] {
  return ({ relay }) => {
    let isDone = false
    relay.hooks.envelope = (envelope) => {
      if (isDone || envelope.type !== type || envelope.way !== way) return undefined
      isDone = true
      const header = Uint8Array.of(type, lengthBytes >>> 16, lengthBytes >>> 8, lengthBytes)
      return relay.lied([concat(header, envelope.bytes.subarray(4))])
    }
  }
}

const MOST = 0xff_ffff
const RAW = (id: number, type: number, length: number): Uint8Array =>
  concat(Uint8Array.of(type, 0, 0, 0, id), new Uint8Array(length))

function link(
  name: string,
  says: string,
  lie: Parameters<typeof toAlice>[1],
  type: number,
): Row {
  return { name, layer: 'link', says: [says], ...lean(toAlice(type, lie)) }
}

function envelope(name: string, type: number, way: 'forth' | 'back', says: string[]): Row {
  return { name, layer: 'envelope', says, ...lean(envelopeOf(type, way, MOST)) }
}

function resolving(change: (agent: Record<string, unknown>) => object): Row['attack'] {
  return ({ relay }) => {
    relay.hooks.reply = (reply, { request }) =>
      request['do'] === 'resolve'
        ? relay.lied({
          ...reply,
          agents: (reply['agents'] as Record<string, unknown>[]).map(change),
        })
        : undefined
  }
}

/** Bob answers messages in his own way. */
function answering(answer: Uint8Array): Scene {
  return {
    async set(stage) {
      const bob = await stage.enter('bob')
      const alice = await stage.enter('alice')
      await stage.introduce(alice, bob)
      bob.presence.peers.serve(SERVICE, {
        needs: 'a2a',
        session: () => ({
          ...stage.events('bob'),
          onOpen: (stream) => {
            stream.accept()
            const lies = stage.liars.has('bob')
            stream.write(
              lies
                ? stage.relay.lied(answer)
                : concat(Uint8Array.of(3, 0, 0, 0, 22), utf8('{"status":"delivered"}')),
            )
          },
        }),
      })
    },
    async act(stage) {
      const { session } = await stage.open()
      const stream = session.open(encodeRequest({ id: '00112233445566778899aabbccddeeff' }))
      const result = await sendMessage(
        stream,
        [utf8(stage.marker)],
        { output() {}, errors() {} },
        session,
      )
      if (result.status !== 'delivered') throw new Error(result.status)
    },
    went() {},
  }
}

/** Strangers of the same scope open carriers to Bob and say nothing. */
async function flood(stage: Stage): Promise<void> {
  const bob = stage.actor('bob')
  const target = bob.joining.identity.public
  for (let i = 0; i < 2; i++) {
    const stranger = await stage.relay.stranger({ role: 'visit', target })
    for (let j = 0; j < 60; j++) {
      const visit = { kind: 'session', address: '', port: 0, endpoint: 'bob' } as const
      stranger.mux.open({ ...visit, tail: new Uint8Array(0) })
      stage.relay.interventions++
    }
  }
}

const STRAY = encodeVisit({
  kind: 'session',
  windowBytes: 1000,
  address: '',
  port: 0,
  endpoint: 'alice',
  tail: new Uint8Array(0),
})

export const SIZES: Row[] = [
  envelope('an opening of 16 MiB', ENVELOPE.opening, 'forth', ['session/envelope']),
  envelope('an answer of 16 MiB', ENVELOPE.answer, 'back', ['session/envelope']),
  envelope('a record of 16 MiB', ENVELOPE.data, 'forth', ['session/envelope']),
  envelope('an end of 16 MiB', ENVELOPE.control, 'forth', ['session/envelope']),
  link('a frame longer than any', 'frame/size', () => [RAW(1, FRAME.data, 65_537)], FRAME.data),
  link('a frame of a type that is none', 'frame/unknown', () => [RAW(0, 0x7f, 9)], FRAME.data),
  link('half a frame', 'frame/truncated', () => [Uint8Array.of(0x11, 0)], FRAME.data),
  link('data for a stream that never was', 'mux/unknown', (_, { message }) => [
    RAW(0x21, FRAME.data, 10),
    message,
  ], FRAME.data),
  link('credit of 4 GiB', 'frame/credit', (_, { id }) => [
    concat(Uint8Array.of(FRAME.credit, 0, 0, 0, id), new Uint8Array(4).fill(0xff)),
  ], FRAME.credit),
  link('a stream with an id of her own side', 'mux/parity', (_, { message }) => [
    encodeFrame('open', 0x31, STRAY),
    message,
  ], FRAME.data),
  link('a reply that is no JSON', 'frame/json', (_, { id }) => [
    encodeFrame('reply', id, utf8('[[[[')),
  ], FRAME.reply),
  {
    name: 'a passport of 40,000 bytes',
    layer: 'passport',
    says: ['passport/size'],
    ...lean(resolving((one) => ({
      ...one,
      passport: Buffer.alloc(40_000, 1).toString('base64'),
    }))),
  },
  {
    name: 'a passport whose lists say that they go on',
    layer: 'passport',
    says: ['passport/forged'],
    ...lean(resolving((one) => {
      const bytes = Buffer.from(String(one['passport']), 'base64')
      // How many certificates: after version, identity, three numbers, flags and the static key.
      bytes[2 + 32 + 24 + 1 + 32] = 0xff
      return { ...one, passport: bytes.toString('base64') }
    })),
  },
  {
    name: '600 agents of one name, none with a passport that holds',
    layer: 'names',
    says: ['passport/size'],
    ...lean(({ relay }) => {
      relay.hooks.reply = (reply, { request }) => {
        if (request['do'] !== 'resolve') return undefined
        const [one] = reply['agents'] as Record<string, unknown>[]
        const agent = { key: one!['key'], passport: 'AAAA' }
        return relay.lied({ ...reply, agents: Array.from({ length: 600 }, () => agent) })
      }
    }),
  },
  {
    name: 'an answer to a message that says 64 MiB, by a peer that lies',
    layer: 'a2a',
    says: ['a2a/protocol'],
    scene: answering(Uint8Array.of(1, 4, 0, 0, 0, 1, 2, 3)),
    ...lean((stage) => void stage.liars.add('bob')),
  },
  {
    name: 'strangers open carriers and say nothing',
    layer: 'session',
    says: ['session/timeout'],
    lies: 120,
    passes: 6000,
    scene: MESSAGE,
    ...lean((stage) => () => flood(stage)),
  },
]
