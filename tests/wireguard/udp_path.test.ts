// Datagrams over UDP, by the runtime's own socket and by the system's offload: both carry the same.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { UdpPath } from '../../agent/host/udp_path.ts'
import { UdpOffload } from '../../agent/host/udp_offload.ts'
import { Batch, decodeEndpoint, encodeEndpoint } from '../../agent/wireguard-wasm/index.ts'

const test = suite('wireguard/udp_path')

interface End {
  path: UdpPath
  datagrams: Uint8Array[]
  from: (string | undefined)[]
  records: Uint8Array[]
  arrived(count: number): Promise<void>
}

async function open(host: string, offload: boolean): Promise<End> {
  const path = await UdpPath.open({ host, offload })
  let wake = (): void => {}
  const end: End = {
    path,
    datagrams: [],
    from: [],
    records: [],
    async arrived(count) {
      while (end.datagrams.length < count) await new Promise<void>((resolve) => wake = resolve)
    },
  }
  path.onReceive = (batch) => {
    batch.each((datagram, endpoint) => {
      end.datagrams.push(datagram.slice())
      end.from.push(endpoint?.host)
    })
    for (let i = 0; i < batch.count; i++) {
      end.records.push(batch.endpoints.slice(i * 32, i * 32 + 32))
    }
    wake()
  }
  return end
}

/** A data message of one session. */
function data(counter: number, length: number, session = 0x1234): Uint8Array {
  const bytes = crypto.getRandomValues(new Uint8Array(length))
  const view = new DataView(bytes.buffer)
  view.setUint32(0, 4, true)
  view.setUint32(4, session, true)
  view.setUint32(8, counter, true)
  view.setUint32(12, 0, true)
  return bytes
}

/** A run of datagrams, all of one size but the last. */
function push(batch: Batch, datagrams: readonly Uint8Array[], record: Uint8Array): void {
  const all = new Uint8Array(datagrams.reduce((sum, { length }) => sum + length, 0))
  let at = 0
  for (const datagram of datagrams) {
    all.set(datagram, at)
    at += datagram.length
  }
  assert.ok(batch.push(all, record, datagrams[0]!.length))
}

for (const offload of [false, true]) {
  const how = offload ? 'offload' : 'the runtime'
  for (
    const [bind, reach] of [['127.0.0.1', '127.0.0.1'], ['::', '127.0.0.1'], ['::', '::1']] as const
  ) {
    test(`${how}: trains and single datagrams come to ${reach} on ${bind} as they were sent`, async () => {
      const [a, b] = [await open(bind, offload), await open(bind, offload)]
      const record = encodeEndpoint({ host: reach, port: b.path.port })
      const batch = Batch.make(2 ** 20)
      const sent: Uint8Array[] = []
      for (
        const lengths of [
          Array<number>(40).fill(1452),
          [...Array<number>(20).fill(1452), 96],
          [148],
          [1280, 1280, 1000],
          [32],
        ]
      ) {
        const run = lengths.map((length, i) => data(sent.length + i, length))
        if (lengths[0] === 148) run[0]![0] = 1
        sent.push(...run)
        push(batch, run, record)
      }
      assert.ok(a.path.send(batch))
      await b.arrived(sent.length)
      const key = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex')
      assert.equal(new Set(b.datagrams.map(key)), new Set(sent.map(key)))
      assert.is(b.datagrams.length, sent.length)
      assert.equal([...new Set(b.from)], [reach])
      // One sender is one endpoint, by whichever way it was read.
      assert.is(new Set(b.records.map(key)).size, 1)
      assert.is(decodeEndpoint(b.records[0]!)?.port, a.path.port)
      const back = Batch.make(4096)
      back.push(data(1, 80), b.records[0]!)
      b.path.send(back)
      await a.arrived(1)
      a.path.close()
      b.path.close()
    })
  }
}

test('offload: what the system reads in one call comes with its sizes and its sender', async () => {
  const a = await open('127.0.0.1', true)
  const socket = await Bun.udpSocket({ hostname: '127.0.0.1' })
  const { fd } = socket as unknown as { fd: number }
  const offload = (await UdpOffload.open(fd, false))!
  const batch = Batch.make(2 ** 17)
  // No header of WireGuard here: the sizes are the system's word.
  const run = Array.from({ length: 30 }, () => crypto.getRandomValues(new Uint8Array(1000)))
  push(
    batch,
    [...run, new Uint8Array(10)],
    encodeEndpoint({ host: '127.0.0.1', port: socket.port }),
  )
  const inbox = Batch.make(2 ** 21)
  a.path.send(batch)
  // On the loopback what was sent is there when the call returns, and the loop has not run yet.
  offload.receive(inbox)
  const lengths: number[] = []
  inbox.each((datagram, endpoint) => {
    lengths.push(datagram.length)
    assert.equal([endpoint?.host, endpoint?.port], ['127.0.0.1', a.path.port])
  })
  assert.equal(lengths, [...run.map(() => 1000), 10])
  assert.is(inbox.count, 1, 'one train')
  socket.close()
  a.path.close()
})

test('offload: the receive buffer is 4 MiB at least, and both abilities are found here', async () => {
  const { path } = await open('127.0.0.1', true)
  assert.ok(path.offload!.receiveBufferBytes >= 4 * 2 ** 20)
  assert.ok(path.offload!.segments && path.offload!.coalesces)
  path.close()
})

test('offload: where segmentation is refused trains go datagram by datagram', async () => {
  const [a, b] = [await open('127.0.0.1', true), await open('127.0.0.1', true)]
  const socket = await Bun.udpSocket({ hostname: '127.0.0.1' })
  const { fd } = socket as unknown as { fd: number }
  const offload = (await UdpOffload.open(fd, false))!
  offload.segments = false
  const batch = Batch.make(2 ** 20)
  const record = encodeEndpoint({ host: '127.0.0.1', port: b.path.port })
  const sent = Array.from({ length: 60 }, (_, i) => data(i, 1000))
  push(batch, [data(99, 500)], record)
  push(batch, sent, record)
  push(batch, [data(100, 500)], record)
  assert.is(offload.send(batch, 0, batch.count), batch.count)
  await b.arrived(62)
  socket.close()
  a.path.close()
  b.path.close()
})

test('what cannot be sent is lost, and what follows it is not', async () => {
  for (const offload of [false, true]) {
    const [a, b] = [await open('0.0.0.0', offload), await open('127.0.0.1', offload)]
    const batch = Batch.make(2 ** 18)
    // Multicast beyond its reach and port 0 are refused by the system; so is a train beyond its size.
    push(batch, [data(1, 100)], encodeEndpoint({ host: '255.255.255.255', port: 9 }))
    const record = encodeEndpoint({ host: '127.0.0.1', port: b.path.port })
    push(batch, [data(2, 100)], record)
    a.path.send(batch)
    if (offload) await b.arrived(1)
    const again = Batch.make(1000)
    push(again, [data(3, 100)], record)
    a.path.send(again)
    await b.arrived(offload ? 2 : 1)
    a.path.close()
    b.path.close()
  }
})

test('addresses that others choose are not kept without end', async () => {
  const { path } = await open('0.0.0.0', false)
  // One port, and one last byte: all in one row of the table, as whoever asks for cookies could choose them.
  for (let i = 0; i < 6000; i++) {
    const batch = Batch.make(100)
    push(batch, [data(1, 32)], encodeEndpoint({ host: `127.${i >> 8}.${i & 255}.9`, port: 9 }))
    path.send(batch)
    path.take(data(1, 32), `127.${i >> 8}.${i & 255}.9`, 9)
  }
  assert.ok(path.addressesKept <= 2 * 1024, `${path.addressesKept} addresses`)
  path.close()
})

test('a port that is taken is refused by its code', async () => {
  const { path } = await open('127.0.0.1', false)
  const error = await UdpPath.open({ host: '127.0.0.1', port: path.port }).catch((error) => error)
  assert.is(error.code, 'net/in-use')
  path.close()
})

test.run()
