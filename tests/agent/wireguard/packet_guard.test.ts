// What a private network may send to an interface of this machine, attacked packet by packet: sources, destinations,
// kinds, openings, answers to nobody; then at random, against a slow twin that reads packets by fields.
// runtimes: bun node deno
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { isWithin, parseAddress, parseNetwork } from '../../../core/address.ts'
import { PacketGuard, unreachableSix } from '../../../agent/wireguard/packet_guard.ts'
import type { GuardOptions } from '../../../agent/wireguard/packet_guard.ts'

const OWN = '100.64.9.2'
const OWN6 = 'fd00:9::2'
const PRINTER = '192.168.1.100'
const PRINTER6 = 'fd00:77::100'
const TCP = 6
const UDP = 17

const test = suite('agent/wireguard/packet_guard')

const bytesOf = (address: string): Uint8Array => parseAddress(address)!

interface Parts {
  from: string
  to: string
  protocol: number
  payload: Uint8Array
}

function packet({ from, to, protocol, payload }: Parts): Uint8Array {
  const [source, target] = [bytesOf(from), bytesOf(to)]
  const head = source.length === 4 ? 20 : 40
  const made = new Uint8Array(head + payload.length)
  const view = new DataView(made.buffer)
  if (head === 20) {
    made[0] = 0x45
    view.setUint16(2, made.length)
    made[8] = 64
    made[9] = protocol
    made.set(source, 12)
    made.set(target, 16)
  } else {
    made[0] = 0x60
    view.setUint16(4, payload.length)
    made[6] = protocol
    made[7] = 64
    made.set(source, 8)
    made.set(target, 24)
  }
  made.set(payload, head)
  return made
}

function udp(from: number, to: number): Uint8Array {
  const payload = new Uint8Array(12)
  const view = new DataView(payload.buffer)
  view.setUint16(0, from)
  view.setUint16(2, to)
  view.setUint16(4, 12)
  return payload
}

function tcp(from: number, to: number, flags: number): Uint8Array {
  const payload = new Uint8Array(20)
  const view = new DataView(payload.buffer)
  view.setUint16(0, from)
  view.setUint16(2, to)
  payload[12] = 0x50
  payload[13] = flags
  return payload
}

const icmp = (type: number, id = 7, rest: Uint8Array = new Uint8Array(0)): Uint8Array =>
  Uint8Array.from([type, 0, 0, 0, id >> 8, id & 255, 0, 1, ...rest])

function guard(changes: Partial<GuardOptions> = {}): PacketGuard {
  return new PacketGuard({
    own: [bytesOf(OWN), bytesOf(OWN6)],
    routes: ['192.168.1.0/24', '100.64.9.0/24', 'fd00:77::/64', 'fd00:9::/64']
      .map((words) => parseNetwork(words)!),
    accept: new Set(),
    now: () => 0,
    seed: 12_345,
    ...changes,
  })
}

const comes = (one: PacketGuard, parts: Parts): boolean => {
  const bytes = packet(parts)
  return one.in(bytes, 0, bytes.length)
}
const goes = (one: PacketGuard, parts: Parts): string => {
  const bytes = packet(parts)
  return one.out(bytes, 0, bytes.length)
}

const ENDS = [{ own: OWN, far: PRINTER }, { own: OWN6, far: PRINTER6 }]

test('UDP comes from where this machine has sent to, from that port to that port, and from nowhere else', () => {
  for (const { own, far } of ENDS) {
    const one = guard()
    const answer = { from: far, to: own, protocol: UDP, payload: udp(53, 40_000) }
    assert.not(comes(one, answer), 'before anything was asked')
    assert.is(goes(one, { from: own, to: far, protocol: UDP, payload: udp(40_000, 53) }), 'pass')
    assert.ok(comes(one, answer))
    assert.not(comes(one, { ...answer, payload: udp(54, 40_000) }))
    assert.not(comes(one, { ...answer, payload: udp(53, 40_001) }))
    const neighbour = far.replace(/100$/, '101')
    assert.not(comes(one, { ...answer, from: neighbour }))
    assert.is(one.counts.unasked, 4)
  }
})

test('an answer that is late by five minutes is none; a new question makes it one again', () => {
  let now = 0
  const one = guard({ now: () => now })
  const ask = { from: OWN, to: PRINTER, protocol: UDP, payload: udp(40_000, 53) }
  const answer = { from: PRINTER, to: OWN, protocol: UDP, payload: udp(53, 40_000) }
  goes(one, ask)
  now = 299_999
  assert.ok(comes(one, answer))
  now = 300_000
  assert.not(comes(one, answer))
  goes(one, ask)
  assert.ok(comes(one, answer))
})

test('TCP is not opened from there, nor asked what is open; what was opened from here goes on', () => {
  const one = guard()
  const from = (flags: number): boolean =>
    comes(one, { from: PRINTER, to: OWN, protocol: TCP, payload: tcp(80, 50_000, flags) })
  const [FIN, SYN, RST, PSH, ACK, URG] = [1, 2, 4, 8, 16, 32]
  for (const flags of [SYN, SYN | FIN, SYN | RST, SYN | PSH, 0, FIN, FIN | PSH | URG, PSH]) {
    assert.not(from(flags!), `flags ${flags}`)
  }
  for (const flags of [SYN | ACK, ACK, ACK | PSH, ACK | FIN, RST, RST | ACK]) {
    assert.ok(from(flags!), `flags ${flags}`)
  }
})

test('ports that were asked for are open to all of the network, and no others', () => {
  const one = guard({ accept: new Set([22]) })
  for (
    const [protocol, make] of [[TCP, (to: number) => tcp(5_000, to, 2)], [
      UDP,
      (to: number) => udp(5_000, to),
    ]] as const
  ) {
    assert.ok(comes(one, { from: PRINTER, to: OWN, protocol, payload: make(22) }))
    assert.not(comes(one, { from: PRINTER, to: OWN, protocol, payload: make(23) }))
  }
  assert.not(comes(one, { from: PRINTER, to: OWN, protocol: 1, payload: icmp(8) }))
  assert.ok(
    comes(guard({ accept: 'all' }), { from: PRINTER, to: OWN, protocol: 1, payload: icmp(8) }),
  )
})

test('packets to other addresses than the leased one never come: of this machine, of its LAN, to many', () => {
  const one = guard({ accept: 'all' })
  for (
    const to of [
      '127.0.0.1',
      '192.168.1.5',
      '100.64.9.3',
      '224.0.0.1',
      '255.255.255.255',
      '0.0.0.0',
      '100.64.9.255',
    ]
  ) {
    assert.not(comes(one, { from: PRINTER, to, protocol: UDP, payload: udp(1, 2) }), to)
  }
  for (const to of ['::1', 'ff02::1', 'fe80::1', 'fd00:9::3', '::']) {
    assert.not(comes(one, { from: PRINTER6, to, protocol: UDP, payload: udp(1, 2) }), to)
  }
  assert.is(one.counts.destination, 12)
})

test('packets from nobody, from this machine itself, from one link, from many, from beyond the routes never come', () => {
  const one = guard({ accept: 'all', routes: [parseNetwork('0.0.0.0/0')!, parseNetwork('::/0')!] })
  const sources = [
    '127.0.0.1',
    '0.0.0.0',
    '0.1.2.3',
    '169.254.169.254',
    '224.0.0.1',
    '255.255.255.255',
    OWN,
  ]
  for (const from of sources) {
    assert.not(comes(one, { from, to: OWN, protocol: UDP, payload: udp(1, 2) }), from)
  }
  for (const from of ['::1', '::', 'fe80::1', 'ff02::1', OWN6]) {
    assert.not(comes(one, { from, to: OWN6, protocol: UDP, payload: udp(1, 2) }), from)
  }
  // As text it is IPv4, and so it is written by hand here.
  const mapped = packet({ from: PRINTER6, to: OWN6, protocol: UDP, payload: udp(1, 2) })
  mapped.set([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 127, 0, 0, 1], 8)
  assert.not(one.in(mapped, 0, mapped.length))
  assert.is(one.counts.source, 13)
  const routed = guard({ accept: 'all' })
  for (const from of ['8.8.8.8', '192.168.2.1', '10.0.0.1']) {
    assert.not(comes(routed, { from, to: OWN, protocol: UDP, payload: udp(1, 2) }), from)
  }
})

test('fragments, options, extension headers, other protocols, redirects and router advertisements never come', () => {
  const one = guard({ accept: 'all' })
  const whole = { from: PRINTER, to: OWN, protocol: UDP, payload: udp(1, 2) }
  assert.ok(comes(one, whole))
  for (const [at, value] of [[6, 0x20], [7, 0x01], [6, 0x1f]] as const) {
    const bytes = packet(whole)
    bytes[at] = value
    assert.not(one.in(bytes, 0, bytes.length), `fragment ${at} ${value}`)
  }
  const options = packet({ ...whole, payload: new Uint8Array(24) })
  options[0] = 0x46
  assert.not(one.in(options, 0, options.length))
  for (const protocol of [0, 2, 4, 41, 43, 44, 47, 50, 51, 60, 89, 132, 136, 255]) {
    assert.not(comes(one, { ...whole, protocol }), `protocol ${protocol}`)
    assert.not(comes(one, { from: PRINTER6, to: OWN6, protocol, payload: udp(1, 2) }))
  }
  // ICMP of the other family.
  assert.not(comes(one, { ...whole, protocol: 58, payload: icmp(128) }))
  assert.not(comes(one, { from: PRINTER6, to: OWN6, protocol: 1, payload: icmp(8) }))
  for (const type of [4, 5, 9, 10, 13, 15, 17, 40]) {
    assert.not(
      comes(one, { ...whole, protocol: 1, payload: icmp(type, 0, packet(whole)) }),
      `${type}`,
    )
  }
  for (const type of [130, 131, 133, 134, 135, 136, 137, 138, 143, 200]) {
    const payload = icmp(type, 0, new Uint8Array(40))
    assert.not(comes(one, { from: PRINTER6, to: OWN6, protocol: 58, payload }), `${type}`)
  }
})

test('echoes are answers to echoes; errors are about packets of this machine', () => {
  for (const [family, { own, far }] of ENDS.entries()) {
    const [protocol, request, reply, error] = family === 0 ? [1, 8, 0, 3] : [58, 128, 129, 1]
    const one = guard()
    const back = { from: far, to: own, protocol, payload: icmp(reply) }
    assert.not(comes(one, back))
    assert.is(goes(one, { from: own, to: far, protocol, payload: icmp(request) }), 'pass')
    assert.ok(comes(one, back))
    assert.not(comes(one, { ...back, payload: icmp(reply, 8) }))
    assert.not(comes(one, { ...back, payload: icmp(request) }))
    const ours = packet({ from: own, to: far, protocol: UDP, payload: udp(1, 2) })
    const theirs = packet({ from: far, to: far, protocol: UDP, payload: udp(1, 2) })
    assert.ok(comes(one, { ...back, payload: icmp(error, 0, ours) }))
    assert.not(comes(one, { ...back, payload: icmp(error, 0, theirs) }))
    assert.not(comes(one, { ...back, payload: icmp(error, 0, ours.subarray(0, 19)) }))
    assert.not(comes(one, { ...back, payload: icmp(error, 0, new Uint8Array(60)) }))
  }
})

test('out go packets of our own addresses, to what is routed, and not the tunnel itself', () => {
  const one = guard()
  const ask = { from: OWN, to: PRINTER, protocol: UDP, payload: udp(40_000, 53) }
  assert.is(goes(one, ask), 'pass')
  assert.is(goes(one, { ...ask, from: '192.168.7.7' }), 'drop')
  assert.is(goes(one, { ...ask, to: '224.0.0.251' }), 'drop')
  assert.is(goes(one, { ...ask, to: '255.255.255.255' }), 'drop')
  assert.is(goes(one, { ...ask, to: '8.8.8.8' }), 'unroutable')
  one.avoid({ bytes: bytesOf(PRINTER), port: 51_820 })
  assert.is(goes(one, { ...ask, payload: udp(40_000, 51_820) }), 'drop')
  assert.is(goes(one, ask), 'pass')
})

test('a flood of questions makes the oldest answers be forgotten, and holds no more memory', () => {
  const one = guard()
  for (let port = 1; port < 65_536; port++) {
    goes(one, { from: OWN, to: PRINTER, protocol: UDP, payload: udp(port, 53) })
  }
  let known = 0
  for (let port = 1; port < 65_536; port++) {
    if (comes(one, { from: PRINTER, to: OWN, protocol: UDP, payload: udp(53, port) })) known++
  }
  assert.ok(known > 8_192 && known <= 16_384, `${known} are known`)
  assert.ok(comes(one, { from: PRINTER, to: OWN, protocol: UDP, payload: udp(53, 65_535) }))
})

test('unreachableSix() quotes what cannot be sent, with a checksum that adds up; never an error about an error', () => {
  const sent = packet({ from: OWN6, to: '2001:db8::5', protocol: UDP, payload: udp(1, 2) })
  const error = unreachableSix(sent, 0, sent.length)!
  assert.equal(error.subarray(8, 24), bytesOf('2001:db8::5'))
  assert.equal(error.subarray(24, 40), bytesOf(OWN6))
  assert.equal(error.subarray(48), sent)
  let sum = error.length - 40 + 58
  for (let i = 8; i < error.length; i += 2) sum += error[i]! * 256 + (error[i + 1] ?? 0)
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16)
  assert.is(sum, 0xffff)
  const large = packet({
    from: OWN6,
    to: '2001:db8::5',
    protocol: UDP,
    payload: new Uint8Array(9_001),
  })
  assert.is(unreachableSix(large, 0, large.length)!.length, 1_280)
  assert.is(unreachableSix(error, 0, error.length), undefined)
  const four = packet({ from: OWN, to: PRINTER, protocol: UDP, payload: udp(1, 2) })
  assert.is(unreachableSix(four, 0, four.length), undefined)
})

/** What may come where all ports are open, by fields and text. */
function twin(bytes: Uint8Array): boolean {
  const version = bytes[0] === undefined ? 0 : bytes[0] >> 4
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const text = (at: number, size: number): string =>
    size === 4
      ? bytes.slice(at, at + 4).join('.')
      : Array.from({ length: 8 }, (_, i) => view.getUint16(at + i * 2).toString(16)).join(':')
  const routes = ['192.168.1.0/24', '100.64.9.0/24', 'fd00:77::/64', 'fd00:9::/64']
    .map((words) => parseNetwork(words)!)
  if (version === 4) {
    if (bytes.length < 28 || bytes[0] !== 0x45 || view.getUint16(2) !== bytes.length) return false
    if ((view.getUint16(6) & 0x3fff) !== 0) return false
    if (text(16, 4) !== OWN || text(12, 4) === OWN || !isWithin(text(12, 4), routes)) return false
  } else if (version === 6) {
    if (bytes.length < 48 || view.getUint16(4) !== bytes.length - 40) return false
    const same = (at: number, own: string): boolean =>
      bytes.slice(at, at + 16).join() === bytesOf(own).join()
    if (!same(24, OWN6) || same(8, OWN6)) return false
    if (!isWithin(text(8, 16), routes)) return false
  } else return false
  const protocol = bytes[version === 4 ? 9 : 6]
  const head = version === 4 ? 20 : 40
  return protocol === UDP || (protocol === TCP && bytes.length >= head + 20)
}

test('packets that are changed at random come where a slow twin lets them, and are never read beyond their end', () => {
  const one = guard({ accept: 'all' })
  const bases = ENDS.flatMap(({ own, far }) => [
    packet({ from: far, to: own, protocol: UDP, payload: udp(1, 2) }),
    packet({ from: far, to: own, protocol: TCP, payload: tcp(1, 2, 2) }),
  ])
  const changed = fc.record({
    base: fc.constantFrom(...bases),
    changes: fc.array(fc.tuple(fc.nat(79), fc.nat(255)), { maxLength: 3 }),
    cut: fc.option(fc.nat(80)),
    at: fc.nat(9),
  })
  fc.assert(
    fc.property(changed, ({ base, changes, cut, at }) => {
      const bytes = base.slice(0, cut ?? base.length)
      for (const [place, value] of changes) if (place < bytes.length) bytes[place] = value
      const protocol = bytes[bytes[0]! >> 4 === 4 ? 9 : 6]
      if (protocol === 1 || protocol === 58) return true
      // In the midst of other bytes that would let it pass.
      const pool = new Uint8Array(at + bytes.length + 40).fill(0x45)
      pool.set(bytes, at)
      return one.in(pool, at, bytes.length) === twin(bytes)
    }),
    { numRuns: 20_000 },
  )
})

test.run()
