// The package's TypeScript face: devices meet, batches pass, memory may grow, a trap is survived.
// runtimes: bun node deno
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Batch, Device, WireGuardError } from '../../agent/wireguard-wasm/index.ts'
import { ipv4, module, Node, nodes, settle, Time } from '../support/wireguard.ts'

const test = suite('wireguard/device')
const code = (expected: string) => (error: unknown): boolean =>
  error instanceof WireGuardError && error.code === expected

test('two devices meet and a packet passes each way', () => {
  const time = new Time()
  const notices: string[] = []
  const [a, b] = nodes(time, { onNotice: (notice) => notices.push(notice) })
  assert.ok(a.device.send(ipv4(1, 2, 100)))
  settle(a, b)
  assert.equal(b.packets, [ipv4(1, 2, 100)])
  assert.ok(b.device.send(ipv4(2, 1, 1400)))
  settle(a, b)
  assert.equal(a.packets, [ipv4(2, 1, 1400)])
  assert.equal(notices, ['connected', 'connected'])
  const stats = a.peer.stats()
  assert.is(stats.endpoint?.host, '192.0.2.2')
  assert.ok(stats.lastHandshakeMs! > 1.7e12 && stats.receivedBytes > 1400)
})

test('an endpoint is learned from whoever proves to be the peer', () => {
  const [a, b] = [new Node(1, new Time()), new Node(2, new Time())]
  a.know(b)
  b.know(a, false)
  a.device.send(ipv4(1, 2, 10))
  settle(a, b)
  assert.is(b.peer.stats().endpoint?.host, '192.0.2.1')
})

test('44 packets are one run, and more than a call takes pass in pieces', () => {
  const [a, b] = nodes(new Time(), { receivePoolBytes: 16 * 2 ** 20, sendPoolBytes: 8 * 2 ** 20 })
  a.peer.connect()
  settle(a, b)
  for (let i = 0; i < 44; i++) assert.ok(a.device.send(ipv4(1, 2, 1400)))
  const runs: number[][] = []
  const kept = Batch.make(2 ** 20)
  a.device.flush((batch) => {
    for (let i = 0; i < batch.count; i++) runs.push([...batch.words.subarray(i * 4, i * 4 + 4)])
    kept.push(
      batch.bytes.subarray(batch.words[0]!, batch.words[0]! + batch.words[1]!),
      a.record,
      1452,
    )
  })
  assert.equal(runs, [[0, 44 * 1452, 0, 1452]])
  assert.is(b.device.receive(kept), 44)
  const many = Batch.make(8 * 2 ** 20, 5000)
  for (let round = 0; round < 2; round++) {
    for (let i = 0; i < 2000; i++) assert.ok(a.device.send(ipv4(1, 2, 1400)))
    for (const datagram of a.flush()) assert.ok(many.push(datagram, a.record))
  }
  assert.is(b.device.receive(many), 4000)
})

test('a path that writes into the inbox is received without a copy', () => {
  const [a, b] = nodes(new Time())
  a.peer.connect()
  settle(a, b)
  a.device.send(ipv4(1, 2, 50))
  for (const datagram of a.flush()) assert.ok(b.device.inbox.push(datagram, a.record))
  let inPool = false
  const { buffer } = b.device.inbox.bytes
  assert.is(
    b.device.receive(b.device.inbox, (packets) => inPool = packets.bytes.buffer === buffer),
    1,
  )
  assert.ok(inPool)
  assert.is(b.device.inbox.count, 0)
})

test('send() says when nothing fits until the next flush', () => {
  const [a, b] = nodes(new Time(), { sendPoolBytes: 10_000 })
  a.peer.connect()
  settle(a, b)
  let count = 0
  while (a.device.send(ipv4(1, 2, 1400))) count++
  assert.is(count, 6)
  assert.is(a.flush().length, 6)
  assert.ok(a.device.send(ipv4(1, 2, 1400)))
})

test('views are made anew when memory grows', () => {
  const time = new Time()
  const [a, b] = nodes(time, { reserveBytes: 0 })
  a.peer.connect()
  settle(a, b)
  const before = a.device.inbox.bytes.buffer
  for (let i = 0; i < 3000; i++) {
    a.device.addPeer({ publicKey: crypto.getRandomValues(new Uint8Array(32)) })
  }
  assert.is.not(a.device.inbox.bytes.buffer, before)
  assert.is(before.byteLength, 0, 'the old view is detached')
  a.device.send(ipv4(1, 2, 300))
  b.device.send(ipv4(2, 1, 300))
  settle(a, b)
  assert.is(a.packets.length + b.packets.length, 2)
})

test('a trap is survived: peers are there again, and a new handshake follows', () => {
  const time = new Time()
  const causes: unknown[] = []
  const notices: string[] = []
  const [a, b] = nodes(time, {
    onRestart: (cause) => causes.push(cause),
    onNotice: (notice) => notices.push(notice),
  })
  const psk = new Uint8Array(32).fill(9)
  a.peer.update({ presharedKey: psk, keepaliveSeconds: 25 })
  b.peer.update({ presharedKey: psk })
  a.device.send(ipv4(1, 2, 100))
  settle(a, b)
  // What a bug in the module might do: all of its memory is overwritten.
  time.ms += 50
  new Uint8Array(a.device.inbox.bytes.buffer).fill(0xff)
  a.device.send(ipv4(1, 2, 101))
  settle(a, b)
  assert.is(causes.length, 1, 'one trap')
  assert.is(a.device.stats().restarts, 1)
  a.device.send(ipv4(1, 2, 102))
  settle(a, b)
  assert.equal(b.packets.at(-1), ipv4(1, 2, 102))
  assert.is(notices.filter((notice) => notice === 'connected').length, 4)
  assert.equal(a.peer.allowedIps, ['10.0.0.2/32', 'fd00::2/128'])
})

test('a module that traps again and again is given up', () => {
  const [a] = nodes(new Time())
  assert.throws(() => {
    for (let i = 0; i < 20; i++) {
      new Uint8Array(a.device.inbox.bytes.buffer).fill(0xff)
      a.device.tick()
      a.device.send(ipv4(1, 2, 1))
      a.flush()
    }
  }, code('wireguard/trapped'))
})

test('peers change while they talk: keys, prefixes, endpoints, and away', () => {
  const time = new Time()
  const [a, b] = nodes(time)
  a.device.send(ipv4(1, 2, 1))
  settle(a, b)
  assert.is(a.device.route('10.0.0.2'), a.peer)
  a.peer.update({ allowedIps: ['10.0.0.0/24'], endpoint: undefined })
  assert.is(a.device.route('10.0.0.77'), a.peer)
  assert.is(a.device.route('fd00::2'), undefined)
  assert.is(a.peer.stats().endpoint, undefined)
  const third = new Node(3, time)
  const other = a.device.addPeer({ publicKey: third.device.publicKey, allowedIps: ['10.0.0.0/24'] })
  assert.is(a.device.route('10.0.0.77'), other, 'a prefix is one peer’s at a time')
  assert.equal(a.peer.allowedIps, [])
  other.remove()
  assert.is(a.device.findPeer(third.device.publicKey), undefined)
  assert.throws(() => other.update({ keepaliveSeconds: 1 }), code('wireguard/peer'))
  a.device.setPrivateKey(crypto.getRandomValues(new Uint8Array(32)))
  a.peer.update({ allowedIps: ['10.0.0.2/32'], endpoint: '192.0.2.2:51820' })
  a.device.send(ipv4(1, 2, 5))
  settle(a, b)
  assert.is(b.packets.length, 1, 'whoever has another key is another peer')
})

test('nonsense is refused with a code and changes nothing', () => {
  const [a, b] = nodes(new Time())
  const key = new Uint8Array(32).fill(1)
  for (
    const [act, expected] of [
      [() => new Device({ module, privateKey: new Uint8Array(31) }), 'wireguard/key'],
      [() => a.device.addPeer({ publicKey: new Uint8Array(33) }), 'wireguard/key'],
      [() => a.device.addPeer({ publicKey: new Uint8Array(32) }), 'wireguard/key'],
      [() => a.device.addPeer({ publicKey: b.device.publicKey }), 'wireguard/peer'],
      [() => a.device.addPeer({ publicKey: key, endpoint: 'example.com:1' }), 'wireguard/address'],
      [
        () => a.device.addPeer({ publicKey: key, allowedIps: ['10.0.0.0/33'] }),
        'wireguard/address',
      ],
      [() => a.peer.update({ keepaliveSeconds: -1 }), 'wireguard/peer'],
      [() => a.device.send(ipv4(1, 2, 1401)), 'wireguard/packet'],
      [() => a.device.send(new Uint8Array(0)), 'wireguard/packet'],
      [() => a.device.setMtu(100), 'wireguard/packet'],
    ] as const
  ) assert.throws(act, code(expected))
  assert.is(a.device.peers.length, 1)
})

test('randomness that fails makes handshakes wait, and nothing weaker', () => {
  const time = new Time()
  const [a, b] = nodes(time, { random: () => {} })
  a.device.send(ipv4(1, 2, 1))
  // Zeros are bytes too: whoever gives them is believed, so that tests may be exact.
  settle(a, b)
  assert.is(b.packets.length, 1)
})

test('the AEAD over vectors agrees with its twin in this engine', () => {
  assert.ok(new Node(9, new Time()).device.selfTest())
})

/** How often a key lies in the module's memory. */
function found({ device }: Node, key: Uint8Array): number {
  const memory = new Uint8Array(device.instance.buffer as ArrayBuffer)
  let count = 0
  for (let at = memory.indexOf(key[0]!); at >= 0; at = memory.indexOf(key[0]!, at + 1)) {
    if (key.every((byte, i) => memory[at + i] === byte)) count++
  }
  return count
}

test('a pre-shared key and a private key that were replaced are nowhere any more, nor those of a peer that left', () => {
  const time = new Time()
  const [a, b] = nodes(time)
  const meet = (key: Uint8Array): Uint8Array => {
    for (const node of [a, b]) node.peer.update({ presharedKey: key })
    time.ms += 6_000
    a.peer.connect()
    a.device.send(ipv4(1, 2, 100))
    settle(a, b)
    return key
  }
  const first = meet(crypto.getRandomValues(new Uint8Array(32)))
  const kept = a.peer.state.presharedKey!
  assert.equal([...kept], [...first])
  assert.ok(found(a, first) > 0 && found(b, first) > 0)
  const second = meet(crypto.getRandomValues(new Uint8Array(32)))
  assert.is(b.packets.length, 2)
  assert.equal([...kept], [...new Uint8Array(32)])
  assert.equal([found(a, first), found(b, first)], [0, 0])
  // Whoever gave it has it still, and wipes it when they like.
  assert.ok(first.some((byte) => byte !== 0))
  const before = crypto.getRandomValues(new Uint8Array(32))
  a.device.setPrivateKey(before)
  assert.ok(found(a, before) > 0)
  a.device.setPrivateKey(crypto.getRandomValues(new Uint8Array(32)))
  assert.is(found(a, before), 0)
  const last = b.peer.state.presharedKey!
  b.peer.remove()
  assert.equal([...last], [...new Uint8Array(32)])
  assert.is(found(b, second), 0)
})

test.run()
