/**
 * Agreements on tunnels between two agents on a real relay, with real devices: packets pass, nobody gets
 * in without the right, whoever loses it is out at once, and a lost session is opened anew under the same
 * address.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { encodeAgreement } from '../../core/agreement.ts'
import type { Agreed } from '../../core/agreement.ts'
import { hex } from '../../core/bytes.ts'
import { isTunnelError } from '../../core/errors.ts'
import {
  allow,
  ask,
  begin,
  end,
  Engine,
  enter,
  HOST,
  packetOf,
  serve,
  speak,
} from '../support/tunnel_bench.ts'

// seconds: 120
const test = suite('agent/tunnel')
test.before.each(begin)
test.after.each(end)

test('packets pass both ways through the relay, sealed by keys that were agreed in a session', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const served = serve(server)
  const asking = ask(client)
  const agreed = await asking.client.open()
  assert.equal([...agreed.address4.bytes], [100, 80, 1, 2])
  assert.equal([...agreed.key], [...served.engine.device.publicKey])
  const request = packetOf(agreed.address4.bytes, HOST)
  asking.engine().send(request)
  await served.engine.until(request)
  const answer = packetOf(HOST, agreed.address4.bytes, 1400)
  served.engine.send(answer)
  await asking.engine().until(answer)
  assert.is(served.joined.length, 1)
  assert.is(served.joined[0]!.peer.key, client.key)
  // The one that was agreed, and no other.
  assert.ok(served.joined[0]!.wireguard.stats().lastHandshakeMs !== undefined)
})

test('whoever has no right is refused, and no key of theirs is kept', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  const served = serve(server)
  await ask(client).client.open().then(
    () => assert.unreachable(),
    (error) => assert.is(error.code, 'session/refused'),
  )
  assert.is(served.engine.device.peers.length, 0)
})

test('a right that is taken back ends the tunnel at once, and the client tries no more', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const served = serve(server)
  const asking = ask(client)
  await asking.client.open()
  await server.joining.profile.changeAccess(() => ({ rules: [], answer: undefined }))
  await served.server.recheck()
  assert.is(served.engine.device.peers.length, 0)
  assert.is(served.server.members.length, 0)
  const over = await asking.until('over')
  assert.is(over.kind === 'over' && over.error?.code, 'network/revoked')
  assert.is(asking.engine().device.peers.length, 0)
})

test('a narrower choice of members refuses whom the rules alone would let in', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  serve(server, { narrows: () => false })
  await ask(client).client.open().then(
    () => assert.unreachable(),
    (error) => assert.is(error.code, 'session/refused'),
  )
})

test('two processes of one identity have an address each; the first keeps its own', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const served = serve(server)
  const [one, two] = [ask(client), ask(client)]
  const [first, second] = [await one.client.open(), await two.client.open()]
  assert.equal([first.address4.bytes[3], second.address4.bytes[3]], [2, 3])
  for (const [asking, agreed] of [[one, first], [two, second]] as const) {
    const packet = packetOf(agreed.address4.bytes, HOST)
    asking.engine().send(packet)
    await served.engine.until(packet)
  }
  // Somebody else's address is not taken, even by one with the right.
  const before = served.engine.device.stats().drops.foreignSource
  two.engine().send(packetOf(first.address4.bytes, HOST))
  const good = packetOf(second.address4.bytes, HOST, 99)
  two.engine().send(good)
  await served.engine.until(good)
  assert.is(served.engine.device.stats().drops.foreignSource, before + 1)
})

test('a lost way is found again in the same session, with a new pre-shared key', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const served = serve(server)
  const asking = ask(client)
  const agreed = await asking.client.open()
  const packet = packetOf(agreed.address4.bytes, HOST)
  asking.engine().send(packet)
  await served.engine.until(packet)
  const [peer] = served.engine.device.peers
  const before = hex(peer!.state.presharedKey!)
  client.cut(server.key)
  for (let length = 61;; length++) {
    const again = packetOf(agreed.address4.bytes, HOST, length)
    asking.engine().send(again)
    const late = new Promise<false>((resolve) => setTimeout(resolve, 200, false))
    if (await Promise.race([served.engine.until(again).then(() => true), late])) break
    assert.ok(length < 400, 'it never came')
  }
  while (hex(peer!.state.presharedKey!) === before) {
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  assert.equal(
    hex(asking.engine().device.peers[0]!.state.presharedKey!),
    hex(peer!.state.presharedKey!),
  )
  assert.is(asking.states.length, 1)
})

test('a session that ended is opened anew: another key, the same address', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const served = serve(server)
  const asking = ask(client)
  const agreed = await asking.client.open()
  await asking.until('up')
  const key = hex(asking.engine().device.publicKey)
  server.presence.peers.sessions[0]!.close()
  const up = await asking.until('up') as { agreed: Agreed }
  assert.equal([...up.agreed.address4.bytes], [...agreed.address4.bytes])
  assert.is.not(hex(asking.engine().device.publicKey), key)
  const packet = packetOf(agreed.address4.bytes, HOST)
  asking.engine().send(packet)
  await served.engine.until(packet)
  assert.is(served.engine.device.peers.length, 1)
})

test('hostile members are refused by name, and leave nothing behind', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const served = serve(server)
  const propose = (fields: object = {}): Uint8Array =>
    encodeAgreement({
      kind: 'propose',
      key: client.test.world.crypto.randomBytes(32),
      nonce: new Uint8Array(32),
      channel: client.test.world.crypto.randomBytes(16),
      taken: [],
      endpoints: [],
      ...fields,
    })
  const renew = encodeAgreement({ kind: 'renew', nonce: new Uint8Array(32) })
  const version = propose()
  version[5] = 9
  const rows: [claim: string, said: Uint8Array[], reason: string][] = [
    ['another version', [version], 'version'],
    ['bytes of nothing', [Uint8Array.of(1, 2, 3, 4)], 'order'],
    ['a renewal before anything', [renew], 'order'],
    ['two proposals', [propose(), propose()], 'order'],
    [
      'the word of a server',
      [encodeAgreement({ kind: 'renewed', nonce: new Uint8Array(32) })],
      'order',
    ],
    ["the server's own key", [propose({ key: served.engine.device.publicKey })], 'fault'],
  ]
  for (const [claim, said, reason] of rows) {
    const heard = await speak(client, said)
    const last = heard.at(-1)!
    assert.is(last.kind === 'refused' && last.reason, reason, claim)
    assert.is(served.engine.device.peers.length, 0, claim)
    assert.is(served.server.members.length, 0, claim)
  }
})

test("a member cannot take another's key or channel", async () => {
  const [server, client, other] = [await enter('office'), await enter('laptop'), await enter('eve')]
  await allow(server, client)
  await allow(server, other)
  const served = serve(server)
  const asking = ask(client)
  const agreed = await asking.client.open()
  const { publicKey } = asking.engine().device
  const heard = await speak(other, [
    encodeAgreement({
      kind: 'propose',
      key: publicKey,
      nonce: new Uint8Array(32),
      channel: new Uint8Array(16),
      taken: [],
      endpoints: [],
    }),
  ])
  assert.is(heard.at(-1)!.kind, 'refused')
  const packet = packetOf(agreed.address4.bytes, HOST)
  asking.engine().send(packet)
  await served.engine.until(packet)
})

test('a relay that floods, repeats, reorders and changes datagrams delivers none twice and none of its own', async () => {
  const [server, client] = [await enter('office'), await enter('laptop')]
  await allow(server, client)
  const { crypto } = server.test.world
  let held: Uint8Array | undefined
  const served = serve(server, {
    channels: {
      add: (stream) => {
        const path = paths.add(stream)
        const take = stream.onPacket!
        stream.onPacket = (datagram) => {
          for (let i = 0; i < 50; i++) take(crypto.randomBytes(32 + i * 8))
          // A handshake is left alone: without it nothing would be shown.
          if (datagram[0] !== 4) return take(datagram)
          // It may be a Buffer, whose slice is a view.
          const changed = Uint8Array.from(datagram)
          changed[changed.length - 1]! ^= 1
          take(changed)
          const bytes = Uint8Array.from(datagram)
          // Each pair the other way round, and all of it three times.
          if (!held) held = bytes
          else {
            for (const one of [bytes, held, bytes, held, held, bytes]) take(one.slice())
            held = undefined
          }
        }
        return path
      },
      remove: (path) => paths.remove(path),
    },
  })
  const paths: Engine['channels'] = served.engine.channels
  const asking = ask(client)
  const agreed = await asking.client.open()
  const sent = Array.from({ length: 40 }, (_, i) => packetOf(agreed.address4.bytes, HOST, 100 + i))
  for (const packet of sent) asking.engine().send(packet)
  // One that is held back may wait for another behind it.
  await Promise.race([
    Promise.all(sent.map((packet) => served.engine.until(packet))),
    (async () => {
      for (let i = 0; i < 40; i++) {
        await new Promise((resolve) => setTimeout(resolve, 50))
        asking.engine().send(packetOf(agreed.address4.bytes, HOST, 60))
      }
    })(),
  ])
  for (const packet of sent) {
    assert.is(served.engine.packets.filter((one) => one === hex(packet)).length, 1)
  }
  const { drops } = served.engine.device.stats()
  assert.ok(drops.replayed > 0 && drops.forged > 0 && drops.malformed > 0, JSON.stringify(drops))
  const known = new Set([...sent.map(hex), hex(packetOf(agreed.address4.bytes, HOST, 60))])
  assert.ok(served.engine.packets.every((one) => known.has(one)))
})

test('a network that nobody serves is said to be away', async () => {
  const client = await enter('laptop')
  try {
    await ask(client).client.open()
    assert.unreachable()
  } catch (error) {
    assert.ok(isTunnelError(error))
    assert.is(error.code, 'dial/unknown')
  }
})

test.run()
