/**
 * Lies about who is on which packet channel, agreements of other sessions, and members of one network
 * against each other, where they may reach each other: what one does ends at its own bounds.
 */
import * as assert from 'uvu/assert'
import { AGREEMENT_NONCE_BYTES, AgreementReader, encodeAgreement } from '../../core/agreement.ts'
import { ENVELOPE } from '../../core/envelope.ts'
import { decodeVisit, encodeFrame, FRAME, RESET } from '../../core/frame.ts'
import type { Stream } from '../../core/mux.ts'
import { BETWEEN_MAX } from '../../agent/wireguard/gateway.ts'
import { SESSIONS_OF_ONE_MAX, TUNNEL_SERVICE } from '../../agent/wireguard/tunnel_server.ts'
import { fast } from '../support/crypto.ts'
import type { Stage } from './stage.ts'
import type { Row, Scene } from './table.ts'
import {
  enterOffice,
  hearDrops,
  joinedOf,
  officeOf,
  sayThrough,
  serve,
  UNHARMED,
} from './tunnel_stage.ts'

const KEY_BYTES = 32
/** How often a carrier is cut; renewals within half a second are refused. */
const CUTS = 4

const deeds = new WeakMap<Stage, () => Promise<void>>()

/** Alice, and Carol beside her, in one network; between two words of each something is done. */
function both(options: Parameters<typeof serve>[2] = {}): Scene {
  return {
    set: (stage) => serve(stage, ['alice', 'carol'], options),
    async act(stage) {
      for (const who of ['alice', 'carol']) await enterOffice(stage, who)
      for (const who of ['alice', 'carol']) await sayThrough(stage, who)
      await deeds.get(stage)?.()
      for (const who of ['alice', 'carol']) await sayThrough(stage, who)
      hearDrops(stage)
    },
    went: ({ complete }) => assert.ok(complete),
  }
}

const complete = ({ complete }: Stage): void => assert.ok(complete)

/** Ids of packet channels on Bob's link, in the order in which they were opened, and what was said to open them. */
function channels(stage: Stage, change?: Stage['relay']['hooks']['frame']) {
  const ids: number[] = []
  const opens: Uint8Array[] = []
  stage.relay.hooks.frame = (frame, of) => {
    const isBob = stage.nameOf(of.link.agent) === 'bob'
    if (frame.type === FRAME.open && of.way === 'down' && isBob) {
      if (decodeVisit(frame.payload).kind === 'datagrams') {
        ids.push(frame.id)
        opens.push(frame.payload.slice())
      }
    }
    return isBob ? change?.(frame, of) : undefined
  }
  return { ids, opens }
}

function crossed(name: string, ways: readonly string[], more: Partial<Row>): Row {
  return {
    name,
    layer: 'channel',
    says: [UNHARMED],
    scene: both(),
    attack: (stage) => {
      let isOn = false
      const { ids } = channels(stage, (frame, { way }) => {
        const place = ids.indexOf(frame.id)
        if (!isOn || frame.type !== FRAME.packet || place < 0 || !ways.includes(way)) {
          return undefined
        }
        const other = ids[1 - place]
        if (other === undefined) return undefined
        return stage.relay.lied([encodeFrame('packet', other, frame.payload)])
      })
      deeds.set(stage, () => {
        isOn = true
        return Promise.resolve()
      })
    },
    holds: complete,
    ...more,
  }
}

const CHANNELS: Row[] = [
  crossed("two members' channels are crossed, there and back", ['up', 'down'], {}),
  crossed("two members' channels are crossed on the way to Bob", ['down'], {
    says: ['net/timeout'],
    // What is meant for one arrives at the other, to whom it is noise.
    holds: undefined,
  }),
  {
    name: "the relay opens the channel in Alice's place",
    layer: 'channel',
    says: [UNHARMED],
    scene: both(),
    attack: (stage) => {
      const { opens } = channels(stage)
      deeds.set(stage, async () => {
        const target = stage.actor('bob').joining.identity.public
        const other = await stage.relay.stranger({ role: 'visit', target })
        const got: Uint8Array[] = []
        for (const open of [...opens]) {
          const stream = other.mux.open(decodeVisit(stage.relay.lied(open)))
          stream.onPacket = (datagram) => void got.push(datagram.slice())
          stream.handle({ data() {}, end() {}, closed() {} })
          for (let i = 0; i < 100; i++) stream.sendPacket(fast.randomBytes(96))
          stream.sendPacket(Uint8Array.of(4, 0, 0, 0, ...fast.randomBytes(60)))
        }
      })
    },
    holds: complete,
  },
  {
    name: 'carriers are cut again and again',
    layer: 'agreement',
    says: [UNHARMED],
    scene: both(),
    attack: (stage) => {
      deeds.set(stage, async () => {
        for (let i = 0; i < CUTS; i++) {
          for (const leg of stage.relay.legs.filter(({ isCut }) => !isCut)) {
            leg.isCut = true
            leg.reset(stage.relay.lied(RESET.gone))
          }
          const before = stage.relay.legs.length
          while (stage.relay.legs.length < before + 4) await stage.turn()
        }
      })
    },
    holds: (stage) => {
      complete(stage)
      assert.not.ok(stage.heard.some(({ code }) => code === 'network/order'))
    },
  },
]

/** Alice comes in, leaves, and comes in again. */
const TWICE: Scene = {
  set: (stage) => serve(stage),
  async act(stage) {
    await enterOffice(stage)
    await sayThrough(stage)
    joinedOf(stage, 'alice').close()
    await enterOffice(stage)
    await sayThrough(stage)
  },
  went: ({ complete }) => assert.ok(complete),
}

/** What was said in one session is said in the next. */
function again(name: string, way: 'forth' | 'back', says: string[]): Row {
  return {
    name,
    layer: 'agreement',
    says,
    scene: TWICE,
    attack: ({ relay }) => {
      let kept: Uint8Array | undefined
      relay.hooks.envelope = ({ way: going, type, carrier, bytes }) => {
        if (going !== way || type !== ENVELOPE.data) return undefined
        if (carrier > 0) return relay.lied([kept!])
        kept ??= bytes.slice()
        return undefined
      }
    },
    holds: (stage) => assert.is(officeOf(stage).dialled.length, 1),
  }
}

/** Carol, who may come in, says these bytes in a session; what comes back, until it ends. */
async function saying(stage: Stage, bytes: Uint8Array): Promise<string[]> {
  stage.liars.add('carol')
  const { session } = await stage.actor('carol').presence.peers.open('bob', TUNNEL_SERVICE)
  const stream: Stream = session.open()
  const reader = new AgreementReader()
  const answers: string[] = []
  const over = new Promise<void>((resolve) => {
    stream.handle({
      data: (chunk) => {
        for (const one of reader.push(chunk)) {
          answers.push(one.kind === 'refused' ? `refused ${one.reason}` : one.kind)
        }
        resolve()
      },
      end: resolve,
      closed: () => resolve(),
    })
  })
  stream.write(stage.relay.lied(bytes))
  stream.end()
  await over
  return answers
}

const proposal = (): Uint8Array =>
  encodeAgreement({
    kind: 'propose',
    key: fast.x25519Public(fast.randomBytes(KEY_BYTES)),
    nonce: fast.randomBytes(AGREEMENT_NONCE_BYTES),
    channel: fast.randomBytes(16),
    taken: [],
    endpoints: [],
  })

/** Carol says something that is no proposal. */
function says(name: string, bytes: () => Uint8Array, answers: string[]): Row {
  return {
    name,
    layer: 'agreement',
    says: [UNHARMED],
    scene: {
      set: (stage) => serve(stage, ['alice', 'carol']),
      async act(stage) {
        await enterOffice(stage)
        await deeds.get(stage)?.()
        await sayThrough(stage)
        hearDrops(stage)
      },
      went: complete,
    },
    attack: (stage) => {
      deeds.set(stage, async () => {
        assert.equal(await saying(stage, bytes()), answers)
      })
    },
    holds: (stage) => {
      complete(stage)
      const { served } = officeOf(stage)
      assert.equal(served.server.members.map(({ peer }) => peer.name), ['alice'])
      assert.is(served.tunnel.device.stats().peers, 1)
    },
  }
}

const VERSION_AT = 4
const edited = (at: number, values: number[]): Uint8Array => {
  const bytes = proposal()
  bytes.set(values, at)
  return bytes
}

const AGREEMENTS: Row[] = [
  again('what Alice proposed in another session', 'forth', ['session/forged', 'session/unknown']),
  again('what Bob agreed on in another session', 'back', ['session/forged']),
  says('version 0', () => edited(VERSION_AT, [0, 0]), ['refused version']),
  says('version 2', () => edited(VERSION_AT, [0, 2]), ['refused version']),
  says('a proposal that is cut short', () => proposal().subarray(0, 60), []),
  says('the answer of a server', () =>
    encodeAgreement({
      kind: 'renewed',
      nonce: fast.randomBytes(AGREEMENT_NONCE_BYTES),
    }), ['refused order']),
  says('new keys before there are any', () =>
    encodeAgreement({
      kind: 'renew',
      nonce: fast.randomBytes(AGREEMENT_NONCE_BYTES),
    }), ['refused order']),
]

const PORT = 9

const CROWDS: Row[] = [
  {
    name: 'Carol opens session after session and says nothing',
    layer: 'lease',
    says: [UNHARMED],
    scene: {
      ...both(),
      async act(stage) {
        await deeds.get(stage)?.()
        await enterOffice(stage)
        await sayThrough(stage)
        hearDrops(stage)
      },
    },
    attack: (stage) => {
      stage.liars.add('carol')
      deeds.set(stage, async () => {
        for (let i = 0; i < SESSIONS_OF_ONE_MAX + 8; i++) {
          await stage.actor('carol').presence.peers.open('bob', TUNNEL_SERVICE)
          stage.relay.lied(i)
        }
        const { server } = officeOf(stage).served
        assert.ok(server.waiting <= SESSIONS_OF_ONE_MAX, `${server.waiting} wait`)
      })
    },
    holds: complete,
  },
  {
    name: 'Carol opens connections to Alice, more than one may have',
    layer: 'between',
    says: [UNHARMED],
    scene: both({ between: true }),
    attack: (stage) => {
      stage.liars.add('carol')
      deeds.set(stage, async () => {
        const open = new Set<unknown>()
        const [alice, carol] = ['alice', 'carol'].map((who) => joinedOf(stage, who).network)
        await alice!.listen({ port: PORT }, (conn) => {
          open.add(conn)
          conn.handle({ data() {}, end() {}, closed: () => void open.delete(conn) })
        })
        const host = alice!.localAddresses[0]!
        let refused = 0
        for (let i = 0; i < BETWEEN_MAX + 32; i++) {
          await stage.relay.lied(carol!.connect({ host, port: PORT, timeoutMs: 3000 })).catch(
            () => {
              refused++
            },
          )
        }
        assert.is(refused, 32)
        assert.is(open.size, BETWEEN_MAX)
      })
    },
    holds: complete,
  },
  {
    name: 'a connection of Carol to Alice, after her right was taken back',
    layer: 'between',
    says: [UNHARMED],
    scene: {
      ...both({ between: true }),
      async act(stage) {
        for (const who of ['alice', 'carol']) await enterOffice(stage, who)
        await sayThrough(stage, 'carol')
        await deeds.get(stage)?.()
        await sayThrough(stage, 'alice')
        hearDrops(stage)
      },
    },
    attack: (stage) => {
      stage.liars.add('carol')
      deeds.set(stage, async () => {
        const { served } = officeOf(stage)
        const [alice, carol] = ['alice', 'carol'].map((who) => joinedOf(stage, who).network)
        const ended = new Promise<void>((resolve) => {
          void alice!.listen({ port: PORT }, (conn) => {
            conn.handle({ data() {}, end: () => resolve(), closed: () => resolve() })
          })
        })
        const host = alice!.localAddresses[0]!
        await carol!.connect({ host, port: PORT, timeoutMs: 3000 })
        const { profile } = stage.actor('bob').joining
        const { key } = stage.actor('alice')
        await profile.changeAccess((rules) =>
          stage.relay.lied({ rules: rules.filter(({ peer }) => peer === key), answer: true })
        )
        await ended
        assert.equal(served.server.members.map(({ peer }) => peer.name), ['alice'])
        assert.is(served.counts.connections, 0)
      })
    },
    holds: complete,
  },
]

export const NETWORK: Row[] = [...CHANNELS, ...AGREEMENTS, ...CROWDS]
