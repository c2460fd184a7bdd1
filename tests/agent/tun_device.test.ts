// seconds: 20
// needs: root ip
// The real interface: packets come in order and none is lost, whoever reads them; it ends when it is closed, also while
// somebody waits, and it is told when it was removed.
import { spawnSync } from 'node:child_process'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { isTunnelError } from '../../core/errors.ts'
import { openTun } from '../../agent/host/tun_device.ts'

const PACKETS = 3_000
const test = suite('agent/tun_device')
const name = `st${process.pid % 100_000}`
/** 198.18.0.0/15 is for tests of networks (RFC 2544) and routed nowhere. */
const NET = `198.19.${process.pid % 256}`

function ip(...words: string[]): number | null {
  return spawnSync('ip', words, { timeout: 10_000 }).status
}

const isThere = (): boolean => ip('link', 'show', name) === 0

async function open() {
  const tun = await openTun(name)
  ip('link', 'set', name, 'addrgenmode', 'none')
  ip('address', 'add', `${NET}.1/24`, 'dev', name)
  ip('link', 'set', name, 'txqueuelen', String(PACKETS * 2), 'up')
  return tun
}

test('packets come in order and whole, some by a read and most after it; those that are written arrive', async () => {
  const tun = await open()
  const got: number[] = []
  let taken = 0
  const socket = await Bun.udpSocket({
    hostname: `${NET}.1`,
    connect: { hostname: `${NET}.2`, port: 9 },
    socket: {},
  })
  for (let number = 0; number < PACKETS; number++) {
    const datagram = new Uint8Array(1 + number % 1_300 + 4)
    new DataView(datagram.buffer).setUint32(0, number)
    socket.send(datagram)
  }
  const into = new Uint8Array(1_500)
  const see = (packet: Uint8Array): void => {
    const number = new DataView(packet.buffer, packet.byteOffset).getUint32(28)
    assert.is(packet.length, 28 + 1 + number % 1_300 + 4)
    got.push(number)
  }
  while (got.length < PACKETS) {
    see((await tun.read())!)
    for (let count = 0; count < 100; count++) {
      const length = tun.take(into)
      if (length === 0) break
      taken++
      see(into.subarray(0, length))
    }
  }
  assert.equal(got, Array.from({ length: PACKETS }, (_, i) => i))
  assert.ok(taken > PACKETS / 2, `${taken} were taken`)
  socket.close()
  // The other way: a datagram, written where others lie before it.
  const answered = Promise.withResolvers<string>()
  const taker = await Bun.udpSocket({
    hostname: `${NET}.1`,
    socket: { data: (_, bytes) => answered.resolve(String(bytes)) },
  })
  assert.ok(tun.write(datagramTo(taker.port), 7, 30))
  assert.is(await answered.promise, 'hi')
  assert.not(tun.write(new Uint8Array(20), 0, 20), 'what is no packet is not taken')
  assert.is(tun.dropped, 1)
  taker.close()
  await tun.close()
  assert.not(isThere())
})

/** `hi` from NET.2, behind seven other bytes. */
function datagramTo(port: number): Uint8Array {
  const bytes = new Uint8Array(37)
  const view = new DataView(bytes.buffer, 7)
  bytes.set([
    0x45,
    0,
    0,
    30,
    0,
    0,
    0,
    0,
    64,
    17,
    0,
    0,
    ...`${NET}.2.${NET}.1`.split('.').map(Number),
  ], 7)
  let sum = 0
  for (let at = 0; at < 20; at += 2) sum += view.getUint16(at)
  sum = (sum & 0xffff) + (sum >>> 16)
  view.setUint16(10, ~sum & 0xffff)
  view.setUint16(20, 9)
  view.setUint16(22, port)
  view.setUint16(24, 10)
  bytes.set(new TextEncoder().encode('hi'), 35)
  return bytes
}

test('closing it ends a read that waits, and the interface; one of that name may be made again', async () => {
  for (let round = 0; round < 3; round++) {
    const tun = await open()
    const waiting = tun.read()
    await tun.close()
    assert.is(await waiting, undefined)
    assert.not(isThere())
    assert.is(await tun.read(), undefined)
    assert.is(tun.take(new Uint8Array(100)), 0)
    assert.not(tun.write(new Uint8Array(40), 0, 40))
    await tun.close()
  }
})

test('whoever waits hears that it was removed', async () => {
  const tun = await open()
  const waiting = tun.read()
  assert.is(ip('link', 'delete', name), 0)
  assert.is(await waiting, undefined)
  await tun.close()
})

test('a name that is taken is refused, also where the other would lend itself', async () => {
  assert.is(ip('tuntap', 'add', 'dev', name, 'mode', 'tun'), 0)
  try {
    const error = await openTun(name).then(() => undefined, (thrown) => thrown)
    assert.ok(isTunnelError(error, 'tun/taken'), String(error))
  } finally {
    ip('tuntap', 'delete', 'dev', name, 'mode', 'tun')
  }
})

test.after(() => {
  ip('link', 'delete', name)
})

test.run()
