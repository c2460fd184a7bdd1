/**
 * Lies about a tunnel: of the relay that carries its datagrams and the session in which it is agreed on,
 * of the agent that serves it, and of those who come in. Datagrams may be lost, as in any network; what
 * comes out of the tunnel is what went in.
 */
import * as assert from 'uvu/assert'
import { EMPTY } from '../../core/bytes.ts'
import {
  AGREEMENT_CHANNEL_BYTES,
  AGREEMENT_NONCE_BYTES,
  AgreementReader,
  encodeAgreement,
} from '../../core/agreement.ts'
import type { Agreed, AgreementMessage, Proposal } from '../../core/agreement.ts'
import { ENVELOPE } from '../../core/envelope.ts'
import { decodePackets, encodeFrame, encodePackets, FRAME } from '../../core/frame.ts'
import type { Stream } from '../../core/mux.ts'
import { TUNNEL_SERVICE } from '../../agent/wireguard/tunnel_server.ts'
import { fast } from '../support/crypto.ts'
import { flipped } from './relay.ts'
import type { Stage } from './stage.ts'
import type { Row, Scene } from './table.ts'
import {
  enterOffice,
  hearDrops,
  HOST,
  joinedOf,
  officeOf,
  sayThrough,
  serve,
  UNHARMED,
} from './tunnel_stage.ts'

/** Alice comes into the network, and says two things to the host there. */
const THROUGH: Scene = {
  set: (stage) => serve(stage),
  async act(stage) {
    await enterOffice(stage)
    await sayThrough(stage)
    await sayThrough(stage)
    hearDrops(stage)
  },
  went(stage) {
    assert.ok(stage.complete)
    assert.is(officeOf(stage).dialled.length, 2)
  },
}

type Change = (
  datagrams: Uint8Array[],
  of: { stage: Stage; to: string },
) => Uint8Array[][] | undefined

/** Something is done to frames of datagrams on their last leg. */
function carried(name: string, says: string[], make: () => Change, more: Partial<Row> = {}): Row {
  return {
    name,
    layer: 'tunnel',
    says,
    scene: THROUGH,
    attack: (stage) => {
      const change = make()
      stage.relay.hooks.frame = ({ type, id, payload }, { way, link }) => {
        if (type !== FRAME.packet || way !== 'down') return undefined
        const to = stage.nameOf(link.agent)
        const out = change(decodePackets(payload), { stage, to })
        if (!out) return undefined
        stage.relay.lied(undefined)
        return out.filter(({ length }) => length > 0)
          .map((datagrams) => encodeFrame('packet', id, encodePackets(datagrams)))
      }
    },
    holds: says.includes('net/timeout')
      ? ({ arrived }) => assert.equal(arrived, [])
      : ({ complete }) => assert.ok(complete, 'all came, whatever the relay did'),
    ...more,
  }
}

const DATAGRAMS: Row[] = [
  carried('every datagram is dropped', ['net/timeout'], () => () => []),
  carried('one datagram of nine is dropped', [UNHARMED], () => {
    let count = 0
    return (datagrams) => [datagrams.filter(() => ++count % 9 !== 0)]
  }),
  carried('every datagram comes twice', ['wireguard/replayed'], () => (datagrams) => [
    datagrams,
    datagrams,
  ]),
  carried('everything that came before comes again', ['wireguard/replayed'], () => {
    const kept: Uint8Array[] = []
    return (datagrams, { to }) => {
      if (to !== 'bob') return undefined
      const before = kept.slice(-64).map((one) => [one])
      kept.push(...datagrams)
      return [datagrams, ...before]
    }
  }),
  carried('datagrams come in reverse, and a frame after the next', [UNHARMED], () => {
    const held = new Map<string, Uint8Array[]>()
    return (datagrams, { to }) => {
      const turned = datagrams.toReversed()
      // Handshakes and single ones pass, so that something follows what is held.
      if (datagrams.length < 2) return [datagrams, ...free(held, to)]
      if (held.has(to)) return [turned, ...free(held, to)]
      held.set(to, turned)
      return []
    }
  }),
  carried('a bit of one datagram of three is turned', ['wireguard/forged'], () => {
    let count = 0
    // Those that carry something, to where it is counted what is dropped.
    const turn = (one: Uint8Array): boolean => one[0] === 4 && one.length > 48 && ++count % 3 === 2
    return (datagrams, { to }) => [
      datagrams.map((one) => to === 'bob' && turn(one) ? flipped(one, -1) : one),
    ]
  }),
  carried('datagrams are cut short', ['wireguard/forged', 'wireguard/malformed'], () => {
    let count = 0
    // Those that carry something, to where it is counted what is dropped.
    const cut = (one: Uint8Array): boolean => one[0] === 4 && one.length > 48 && ++count % 3 === 2
    return (datagrams, { to }) => [
      datagrams.map((one) => to === 'bob' && cut(one) ? one.subarray(0, one.length - 16) : one),
    ]
  }),
  carried('datagrams are made up, hundreds for each', ['wireguard/malformed'], () => {
    const noise = Array.from({ length: 256 }, () => fast.randomBytes(64))
    return (datagrams) => [noise, datagrams]
  }),
  carried('a datagram of 65,000 bytes with each', ['wireguard/unknownIndex'], () => {
    const large = new Uint8Array(65_000)
    large[0] = 4
    return (datagrams) => [[large], datagrams]
  }),
  carried('handshakes with a wrong mac, hundreds', ['wireguard/badMac1'], () => {
    const starts = Array.from({ length: 256 }, () => {
      const bytes = fast.randomBytes(148)
      bytes.set([1, 0, 0, 0])
      return bytes
    })
    return (datagrams) => [starts, datagrams]
  }),
  carried(
    'the first handshake again, 500 times',
    ['wireguard/badHandshake', 'wireguard/rateLimited', 'wireguard/underLoad'],
    () => {
      let first: Uint8Array | undefined
      return (datagrams, { to }) => {
        if (to !== 'bob') return undefined
        first ??= datagrams[0]!.slice()
        return [datagrams, Array.from({ length: 100 }, () => first!)]
      }
    },
  ),
  carried("Bob's own datagrams come back to him", ['wireguard/unknownIndex'], () => {
    let own: Uint8Array[] = []
    return (datagrams, { to }) => {
      if (to !== 'bob') {
        own = datagrams.filter(([type]) => type === 4)
        return undefined
      }
      return own.length === 0 ? undefined : [datagrams, own.splice(0)]
    }
  }),
]

function free(held: Map<string, Uint8Array[]>, to: string): Uint8Array[][] {
  const found = held.get(to)
  held.delete(to)
  return found ? [found] : []
}

/** Records of the session in which the agreement passes. */
function agreeing(name: string, says: string[], way: 'forth' | 'back', at: number): Row {
  return {
    name,
    layer: 'agreement',
    says,
    scene: THROUGH,
    attack: ({ relay }) => {
      relay.hooks.envelope = (envelope) =>
        envelope.way === way && envelope.type === ENVELOPE.data
          ? relay.lied([flipped(envelope.bytes, at)])
          : undefined
    },
    holds: (stage) => {
      assert.equal(officeOf(stage).dialled, [])
      const { drops, peers } = officeOf(stage).served.tunnel.device.stats()
      assert.is(peers, way === 'forth' ? 0 : 1)
      assert.equal(Object.values(drops).filter((count) => count > 0), [], 'nothing was tried')
    },
  }
}

const AGREEING: Row[] = [
  // Of a session whose first record is forged there is nothing yet, and nothing to be resumed.
  agreeing('the key that Alice proposes is changed', ['session/unknown'], 'forth', 30),
  agreeing('the key, lease or routes that Bob gives are changed', ['session/forged'], 'back', 30),
  agreeing('the last byte of what is agreed is changed', ['session/forged'], 'back', -1),
  {
    name: 'another agent answers under the name, with a network of its own',
    layer: 'agreement',
    says: ['trust/changed'],
    scene: THROUGH,
    async before(stage) {
      await stage.enter('mallory')
      stage.liars.add('mallory')
    },
    attack: (stage) => {
      const { presence, key } = stage.actor('mallory')
      presence.peers.serve(TUNNEL_SERVICE, {
        needs: TUNNEL_SERVICE,
        session: () => ({
          onOpen: () => stage.hear('alice', 'session', 'mallory/reached'),
          closed() {},
        }),
      })
      const passport = Buffer.from(presence.agent.passport!.bytes).toString('base64')
      stage.relay.hooks.reply = (reply, { request }) =>
        request['do'] === 'resolve'
          ? stage.relay.lied({ ...reply, agents: [{ key, passport, statements: [] }] })
          : undefined
    },
    holds: ({ heard, arrived }) => {
      assert.not.ok(heard.some(({ code }) => code === 'mallory/reached'))
      assert.equal(arrived, [])
    },
  },
]

const AGREED: Omit<Agreed, 'key' | 'nonce'> = {
  kind: 'agreed',
  address4: { bytes: Uint8Array.of(100, 64, 9, 7), bits: 24 },
  address6: { bytes: Uint8Array.of(0xfd, ...new Uint8Array(14), 7), bits: 64 },
  relayMtu: 1420,
  directMtu: 1420,
  dns: [],
  routes: [],
  endpoints: [],
}
const [HEADER, KEY, NONCE] = [4, 32, 32]
const LEASE_AT = HEADER + KEY + NONCE
const MTU_AT = LEASE_AT + 5 + 17

/** Bob agrees on something else than the rules have it. */
function lying(
  name: string,
  says: string[],
  lie: (proposal: Proposal, honest: Uint8Array) => Uint8Array[],
): Row {
  return {
    name,
    layer: 'agreement',
    says,
    scene: THROUGH,
    attack: (stage) => {
      stage.liars.add('bob')
      stage.actor('bob').presence.peers.serve(TUNNEL_SERVICE, {
        needs: TUNNEL_SERVICE,
        session: () => ({
          closed() {},
          onOpen: (stream) => {
            stream.accept()
            const honest = encodeAgreement({
              ...AGREED,
              key: fast.x25519Public(fast.randomBytes(KEY)),
              nonce: fast.randomBytes(NONCE),
            })
            read(stream, (message) => {
              if (message.kind !== 'propose') return
              for (const bytes of stage.relay.lied(lie(message, honest))) stream.write(bytes)
            })
          },
        }),
      })
    },
    holds: ({ arrived }) => assert.equal(arrived, []),
  }
}

function edited(bytes: Uint8Array, at: number, values: readonly number[]): Uint8Array {
  const copy = bytes.slice()
  copy.set(values, at)
  return copy
}

function read(stream: Stream, take: (message: AgreementMessage) => void): void {
  const reader = new AgreementReader()
  stream.handle({
    data: (bytes) => reader.push(bytes).forEach(take),
    end() {},
    closed() {},
  })
}

const LYING: Row[] = [
  lying("a network with Alice's own key", ['agreement/reflected'], ({ key }, honest) => [
    edited(honest, HEADER, [...key]),
  ]),
  lying('a network with a key of zeros', ['agreement/key'], (_, honest) => [
    edited(honest, HEADER, [...new Uint8Array(KEY)]),
  ]),
  lying('a lease of a public address', ['agreement/address'], (_, honest) => [
    edited(honest, LEASE_AT, [8, 8, 8, 8]),
  ]),
  lying('a lease of the whole pool', ['agreement/address'], (_, honest) => [
    edited(honest, LEASE_AT + 4, [8]),
  ]),
  lying('an MTU of nothing', ['agreement/mtu'], (_, honest) => [edited(honest, MTU_AT, [0, 0])]),
  lying('two agreements', ['agreement/order', 'network/gone'], (_, honest) => [honest, honest]),
  lying('keys renewed that nobody asked for', ['agreement/order'], () => [
    encodeAgreement({ kind: 'renewed', nonce: fast.randomBytes(AGREEMENT_NONCE_BYTES) }),
  ]),
  lying('an agreement that goes on for ever', ['agreement/envelope'], () => [
    Uint8Array.of(0x31, 0xff, 0xff, 0xff, ...new Uint8Array(4096)),
  ]),
  {
    name: 'a tunnel under another pre-shared key than was agreed',
    layer: 'agreement',
    says: ['net/timeout'],
    scene: THROUGH,
    attack: (stage) => {
      const { device } = officeOf(stage).served.tunnel
      const add = device.addPeer.bind(device)
      device.addPeer = (options) => {
        const presharedKey = stage.relay.lied(flipped(options.presharedKey!, 0))
        return add({ ...options, presharedKey })
      }
    },
    holds: (stage) => {
      assert.equal(stage.arrived, [])
      assert.equal(officeOf(stage).dialled, [])
    },
  },
]

/** Carol, who may come in, proposes what she likes; the answer. */
async function propose(stage: Stage, change: Partial<Proposal>): Promise<AgreementMessage> {
  const { session } = await stage.actor('carol').presence.peers.open('bob', TUNNEL_SERVICE)
  const stream = session.open()
  const answer = new Promise<AgreementMessage>((resolve) => read(stream, resolve))
  stream.write(encodeAgreement({
    kind: 'propose',
    key: fast.x25519Public(fast.randomBytes(KEY)),
    nonce: fast.randomBytes(AGREEMENT_NONCE_BYTES),
    channel: fast.randomBytes(AGREEMENT_CHANNEL_BYTES),
    taken: [],
    endpoints: [],
    ...change,
  }))
  return await answer
}

/** Alice is in the network and stays there, whatever Carol does. */
function beside(
  name: string,
  deed: (stage: Stage) => Promise<void>,
  { says = [UNHARMED], ...more }: Partial<Row> & { scene?: Scene } = {},
): Row {
  const scene: Scene = {
    set: (stage) => serve(stage, ['alice', 'carol']),
    async act(stage) {
      await enterOffice(stage)
      await sayThrough(stage)
      await deeds.get(stage)?.()
      await sayThrough(stage)
      hearDrops(stage)
    },
    went: ({ complete }) => assert.ok(complete),
  }
  return {
    name,
    layer: 'lease',
    says,
    scene,
    attack: (stage) => {
      stage.liars.add('carol')
      deeds.set(stage, () => deed(stage))
    },
    holds: ({ complete }) => assert.ok(complete),
    ...more,
  }
}

const deeds = new WeakMap<Stage, () => Promise<void>>()

const MEMBERS: Row[] = [
  beside("Carol proposes Alice's key", async (stage) => {
    const [alice] = officeOf(stage).served.server.members
    const answer = await propose(stage, stage.relay.lied({ key: alice!.key }))
    assert.is(answer.kind === 'refused' && answer.reason, 'fault')
    const { members } = officeOf(stage).served.server
    assert.equal(members.map(({ peer }) => peer.name), ['alice'])
  }),
  beside("Carol proposes Bob's own key", async (stage) => {
    const { publicKey } = officeOf(stage).served
    const answer = await propose(stage, stage.relay.lied({ key: publicKey }))
    assert.is(answer.kind === 'refused' && answer.reason, 'fault')
  }),
  beside('Carol calls herself a neighbour of all', async (stage) => {
    const taken = Array.from({ length: 32 }, (_, i) => ({
      bytes: Uint8Array.of(100, 64 + i, 0, 0),
      bits: 16,
    }))
    await propose(stage, stage.relay.lied({ taken }))
  }),
]

/** Room for Bob and one more. */
const NARROW: Scene = {
  set: (stage) => serve(stage, ['alice', 'carol'], { subnet: '100.64.9.0/30' }),
  async act(stage) {
    await enterOffice(stage)
    await deeds.get(stage)?.()
    await sayThrough(stage)
  },
  went: ({ complete }) => assert.ok(complete),
}

/** Those whose right ends, and addresses for which two ask. */
const LEASES: Row[] = [
  {
    name: 'one address for two identities, one after the other',
    layer: 'lease',
    says: ['network/full'],
    scene: NARROW,
    attack: (stage) => {
      deeds.set(stage, async () => {
        await stage.relay.lied(enterOffice(stage, 'carol')).catch((error) => {
          stage.hear('carol', 'network', error)
        })
        const { members } = officeOf(stage).served.server
        assert.equal(members.map(({ peer }) => peer.name), ['alice'])
      })
    },
    holds: async (stage) => {
      while (!stage.complete) await stage.turn()
    },
  },
  {
    name: 'and at the same time, after the first has gone',
    layer: 'lease',
    says: ['network/full'],
    scene: NARROW,
    attack: (stage) => {
      deeds.set(stage, async () => {
        // It stays hers, who was there first.
        joinedOf(stage, 'alice').close()
        const carol = stage.relay.lied(enterOffice(stage, 'carol'))
          .catch((error) => stage.hear('carol', 'network', error))
        await Promise.all([carol, enterOffice(stage)])
      })
    },
    holds: async (stage) => {
      while (!stage.complete) await stage.turn()
    },
  },
  {
    name: 'Alice goes on after her right was taken back',
    layer: 'lease',
    says: ['network/revoked'],
    scene: {
      ...THROUGH,
      async act(stage) {
        const joined = await enterOffice(stage)
        await sayThrough(stage)
        // One that is open and says nothing.
        stage.sent.set('tunnel 9', EMPTY)
        const held = await joined.network.connect({ host: HOST, port: 9, timeoutMs: 3000 })
        await deeds.get(stage)?.()
        held.end()
        await sayThrough(stage)
      },
      went: (stage) => assert.is(officeOf(stage).dialled.length, 3),
    },
    attack: (stage) => {
      deeds.set(stage, async () => {
        const { served, open } = officeOf(stage)
        assert.is(open.size, 1)
        const { profile } = stage.actor('bob').joining
        await profile.changeAccess(() => stage.relay.lied({ rules: [], answer: true }))
        while (served.server.members.length > 0) await stage.turn()
        assert.is(served.tunnel.device.stats().peers, 0)
      })
    },
    holds: async (stage) => {
      const { dialled, open } = officeOf(stage)
      while (open.size > 0) await stage.turn()
      assert.is(dialled.length, 2)
    },
  },
]

export const TUNNEL: Row[] = [...DATAGRAMS, ...AGREEING, ...LYING, ...MEMBERS, ...LEASES]
