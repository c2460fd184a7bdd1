// A UDP port of the relay as a path of a device: real streams between two muxes, real handshakes, a relay that says
// who the visitors are, and may lie.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { NETWORK_NAME_LETTERS_MAX, PublicPort } from '../../../agent/wireguard/public_port.ts'
import type { Batch } from '../../../agent/wireguard-wasm/index.ts'
import { EMPTY } from '../../../core/bytes.ts'
import { decodeFrame } from '../../../core/frame.ts'
import { isName } from '../../../core/key.ts'
import { Mux } from '../../../core/mux.ts'
import type { Stream } from '../../../core/mux.ts'
import { DeskMux } from '../../support/streams.ts'
import { ipv4, Node, Time } from '../../support/wireguard.ts'

const test = suite('agent/wireguard/public_port')
const FROM = { address: '198.51.100.7', port: 40_001 }

/** The server behind its relay; what the relay lets a visitor see comes out of `visit`. */
class Bed {
  readonly time = new Time()
  readonly client: Node
  readonly server: Node
  readonly port = new PublicPort('office', 0)
  readonly relay: Mux

  constructor() {
    this.client = new Node(1, this.time)
    this.server = new Node(2, this.time)
    this.client.know(this.server)
    this.server.know(this.client, false)
    const agent: DeskMux = new DeskMux({
      send: (frame) => {
        queueMicrotask(() => this.relay.receive(decodeFrame(frame)))
        return 'ok'
      },
    })
    agent.onOpen = (stream) => this.port.opened(stream)
    this.relay = new Mux({
      side: 'relay',
      clock: agent.clock,
      send: (frame) => {
        queueMicrotask(() => agent.mux.receive(decodeFrame(frame)))
        return 'ok'
      },
      buffered: () => 0,
      onOpen: () => {},
      onProtocolError: (error) => {
        throw error
      },
    })
    this.port.onReceive = (batch: Batch) => {
      this.server.device.receive(batch, (packets) => this.server.keep(packets))
      this.server.device.flush((out) => this.port.send(out))
    }
  }

  visit(from: { address: string; port: number } = FROM): Visitor {
    const stream = this.relay.open({ kind: 'udp', ...from, endpoint: 'office-udp', tail: EMPTY })
    return new Visitor(stream)
  }

  /** What the client has to say goes to a visitor's flow, and what comes back goes to it, until both are silent. */
  async talk(visitor: Visitor): Promise<void> {
    for (let turns = 0; turns < 20; turns++) {
      for (const datagram of this.client.flush()) visitor.stream.sendPacket(datagram)
      this.server.device.flush((out) => this.port.send(out))
      await turn()
      const back = visitor.got.splice(0)
      if (back.length > 0) this.client.take(back, this.server)
    }
  }
}

class Visitor {
  readonly stream: Stream
  got: Uint8Array[] = []
  error: (Error & { code?: number }) | undefined
  isOver = false

  constructor(stream: Stream) {
    this.stream = stream
    stream.onPacket = (datagram) => void this.got.push(datagram.slice())
    stream.handle({
      data() {},
      end() {},
      closed: (error) => {
        this.isOver = true
        this.error = error
      },
    })
  }
}

/** All that waits as a microtask, or for the next turn. */
function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

test('a handshake and packets pass; the peer is at the address that the relay said', async () => {
  const bed = new Bed()
  bed.client.device.send(ipv4(1, 2, 40))
  await bed.talk(bed.visit())
  assert.is(bed.server.packets.length, 1)
  assert.equal(bed.server.peer.stats().endpoint, {
    host: FROM.address,
    port: FROM.port,
    path: 2,
    scope: 0,
  })
  bed.server.device.send(ipv4(2, 1, 40))
  await bed.talk(bed.visit())
  assert.is(bed.client.packets.length, 0, 'a flow that the server has heard nothing on')
})

test('a client that moves is followed by its next packet; the flow before may end', async () => {
  const bed = new Bed()
  bed.client.device.send(ipv4(1, 2, 40))
  const first = bed.visit()
  await bed.talk(first)
  first.stream.abort()
  await turn()
  assert.is(bed.port.size, 0)
  // Nobody is there: lost, as on any network, and no more.
  bed.server.device.send(ipv4(2, 1, 40))
  await bed.talk(first)
  assert.is(bed.client.packets.length, 0)
  const second = bed.visit({ address: '203.0.113.9', port: 9 })
  bed.client.device.send(ipv4(1, 2, 40))
  await bed.talk(second)
  assert.is(bed.server.peer.stats().endpoint?.host, '203.0.113.9')
  bed.server.device.send(ipv4(2, 1, 40))
  await bed.talk(second)
  assert.is(bed.client.packets.length, 1)
})

test('under load a cookie is good at the address that it was sent to, and at no other', async () => {
  const bed = new Bed()
  bed.server.device.setLoadLimit(0)
  bed.client.device.send(ipv4(1, 2, 40))
  const here = bed.visit()
  await bed.talk(here)
  assert.is(bed.server.packets.length, 0, 'the first brings a cookie alone')
  // The second carries it; the relay says that it comes from elsewhere.
  bed.time.ms += 5_400
  bed.client.device.tick()
  await bed.talk(bed.visit({ ...FROM, port: FROM.port + 1 }))
  assert.is(bed.server.packets.length, 0, 'it was taken at another port')
  // Now the client has a cookie of that other place; it says nothing for this one.
  bed.time.ms += 5_400
  bed.client.device.tick()
  await bed.talk(here)
  assert.is(bed.server.packets.length, 0)
  bed.time.ms += 5_400
  bed.client.device.tick()
  await bed.talk(here)
  assert.is(bed.server.packets.length, 1, 'the right cookie at the right place')
})

test('what a relay invents, repeats or changes is dropped, and no session ends', async () => {
  const bed = new Bed()
  bed.client.device.send(ipv4(1, 2, 40))
  const visitor = bed.visit()
  await bed.talk(visitor)
  const liar = bed.visit({ address: '192.0.2.66', port: 6 })
  for (const datagram of bed.client.sent) {
    liar.stream.sendPacket(datagram.slice())
    const changed = datagram.slice()
    changed[changed.length - 1]! ^= 1
    liar.stream.sendPacket(changed)
  }
  for (let length = 0; length < 200; length++) {
    liar.stream.sendPacket(new Uint8Array(length).fill(4))
  }
  await turn()
  await turn()
  assert.is(bed.server.packets.length, 1)
  assert.is(bed.server.peer.stats().endpoint?.host, FROM.address, 'it was moved')
  bed.client.device.send(ipv4(1, 2, 40))
  await bed.talk(visitor)
  assert.is(bed.server.packets.length, 2)
})

test('IPv4 in IPv6 is IPv4; the same visitor again takes the place of the flow before', async () => {
  const bed = new Bed()
  const first = bed.visit()
  await turn()
  bed.client.device.send(ipv4(1, 2, 40))
  const again = bed.visit({ ...FROM, address: `::ffff:${FROM.address}` })
  await bed.talk(again)
  assert.ok(first.isOver)
  assert.not.ok(again.isOver)
  assert.is(bed.port.size, 1)
  assert.is(bed.server.peer.stats().endpoint?.host, FROM.address)
})

test('a visitor without an address, or of another kind, is turned away', async () => {
  const bed = new Bed()
  for (const from of [{ address: 'nowhere', port: 7 }, { address: '192.0.2.1', port: 0 }]) {
    const visitor = bed.visit(from)
    await turn()
    assert.ok(visitor.isOver, from.address)
  }
  const bytes = new Visitor(
    bed.relay.open({ kind: 'raw', ...FROM, endpoint: 'office-udp', tail: EMPTY }),
  )
  await turn()
  assert.ok(bytes.isOver)
})

test('strangers from everywhere take the places of each other, and of no client', async () => {
  const bed = new Bed()
  bed.client.device.send(ipv4(1, 2, 40))
  const client = bed.visit()
  await bed.talk(client)
  const all: Visitor[] = []
  for (let i = 0; i < 1_200; i++) {
    const stranger = bed.visit({ address: '192.0.2.1', port: 1 + i })
    stranger.stream.sendPacket(new Uint8Array(148).fill(1))
    all.push(stranger)
    if (i % 100 === 0) await turn()
  }
  await turn()
  const left = all.filter(({ isOver }) => !isOver)
  assert.is(left.length, 511)
  assert.not.ok(client.isOver, 'the client was shut out')
  bed.client.device.send(ipv4(1, 2, 40))
  await bed.talk(client)
  assert.is(bed.server.packets.length, 2)
  bed.port.close()
  await turn()
  assert.is(all.filter(({ isOver }) => !isOver).length, 0)
  assert.is(bed.port.size, 0)
})

test("its name at the relay is the network's with an end, and a name", () => {
  const { options } = new PublicPort('a'.repeat(NETWORK_NAME_LETTERS_MAX), 0)
  assert.ok(isName(options.name))
  assert.equal(new PublicPort('office', 20_820).claim(), {
    ...{ do: 'claim', name: 'office-udp', kind: 'udp', mode: 'raw', port: 20_820 },
  })
})

test.run()
