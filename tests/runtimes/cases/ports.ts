/** Raw public ports, TCP and UDP. */
import * as assert from 'uvu/assert'
import { createSocket } from 'node:dgram'
import type { Socket as UdpSocket } from 'node:dgram'
import { utf8 } from '../../../core/bytes.ts'
import type { Stream } from '../../../core/mux.ts'
import { ask, Reader, within } from '../../support/client.ts'
import { fast } from '../../support/crypto.ts'
import type { Bed, Cases } from '../bed.ts'
import { echo, until, writeAll } from '../bed.ts'

/** A UDP visitor; `next` gives datagrams in order. */
async function udpVisitor(bed: Bed): Promise<{ socket: UdpSocket; next(): Promise<Buffer> }> {
  const socket = createSocket('udp4')
  const waiting: Buffer[] = []
  const askers: ((bytes: Buffer) => void)[] = []
  socket.on('message', (bytes) => {
    const asker = askers.shift()
    if (asker) asker(bytes)
    else waiting.push(bytes)
  })
  await new Promise<void>((resolve) => socket.bind(0, '127.0.0.1', resolve))
  bed.after(() => socket.close())
  return {
    socket,
    next: () => {
      const bytes = waiting.shift()
      if (bytes) return Promise.resolve(bytes)
      return within(new Promise((resolve) => void askers.push(resolve)), 'a datagram')
    },
  }
}

/** The sum of a metric over its labels. */
async function metric(bed: Bed, name: string): Promise<number> {
  const { text } = await ask(bed.relay, '/metrics')
  let sum = 0
  for (const [, value] of text.matchAll(new RegExp(`^${name}(?:\\{[^}]*\\})? (\\S+)$`, 'gm'))) {
    sum += Number(value)
  }
  return sum
}

export const portCases: Cases = (test, bed) => {
  if (!bed.can.raw) return

  test('a public TCP port carries a visitor from its first byte, whoever speaks first', async () => {
    const name = bed.name()
    const agent = await bed.agent()
    const reply = await agent.claim(name, { mode: 'raw', port: 0 })
    assert.is(reply['host'], 'localhost')
    const port = Number(reply['port'])
    const visitor = await bed.dial(port)
    const stream = await agent.opened()
    assert.is(stream.visit.kind, 'raw')
    assert.is(stream.visit.address, '127.0.0.1')
    assert.is(stream.visit.port, visitor.conn.raw.localPort)
    stream.write(utf8('220 ready'))
    assert.is((await visitor.take(9)).toString(), '220 ready')
    agent.onOpen = echo
    const other = await bed.dial(port)
    const sent = fast.randomBytes(2_000_000)
    const [, got] = await Promise.all([
      writeAll(other.conn, sent).then(() => other.conn.end()),
      other.take(sent.length),
    ])
    assert.ok(got.equals(sent))
    assert.is((await other.rest()).end, 'end')
    assert.is((await agent.ask(name, { mode: 'raw', port: 0 }))['port'], port, 'the same again')
    await agent.request({ do: 'release', name })
    await until(async () => {
      try {
        const late = await bed.dial(port)
        late.conn.raw.destroy()
        return false
      } catch {
        return true
      }
    }, 'the end of the port')
    stream.write(utf8('221 bye'))
    assert.is((await visitor.take(7)).toString(), '221 bye', 'who was there stays')
    const again = await agent.claim(name, { mode: 'raw', port })
    assert.is(again['port'], port, 'the port is free, whoever is still on it')
    visitor.conn.raw.destroy()
  })

  test('a port is asked for by number, within the range, and only once', async () => {
    const agent = await bed.agent()
    const taken = bed.name()
    const { port } = await agent.claim(taken, { mode: 'raw', port: 0 })
    const code = async (more: object): Promise<unknown> =>
      (await agent.ask(bed.name(), { mode: 'raw', ...more }) as { error: { code: string } }).error
        ?.code
    assert.is(await code({ port: 1 }), 'ports/range')
    assert.is(await code({ port: Number(port) }), 'ports/taken')
    assert.is(await code({ port: 70_000 }), 'claim/port')
  })

  test('a UDP port is a flow for each visitor, and answers go where they came from', async () => {
    const name = bed.name()
    const agent = await bed.agent()
    const port = Number((await agent.claim(name, { kind: 'udp', mode: 'raw', port: 0 }))['port'])
    agent.onOpen = (stream) => {
      stream.accept()
      stream.onPacket = (bytes) => void stream.sendPacket(bytes)
      stream.handle({ data() {}, end() {}, closed() {} })
    }
    const [one, two] = [await udpVisitor(bed), await udpVisitor(bed)]
    for (const [visitor, word] of [[one, 'one'], [two, 'two'], [one, 'again']] as const) {
      visitor.socket.send(word, port, '127.0.0.1')
      assert.is((await visitor.next()).toString(), word)
    }
    const large = fast.randomBytes(1400)
    two.socket.send(large, port, '127.0.0.1')
    assert.ok((await two.next()).equals(large))
    assert.is(agent.mux.size, 2)
    assert.ok(await metric(bed, 'sotto_packets_total') >= 8)
  })

  test('a forged address is not sent much more than it sent; what is held back is counted', async () => {
    const name = bed.name()
    const agent = await bed.agent()
    const port = Number((await agent.claim(name, { kind: 'udp', mode: 'raw', port: 0 }))['port'])
    const opened = agent.opened()
    const visitor = await udpVisitor(bed)
    const before = await metric(bed, 'sotto_packets_dropped_total')
    visitor.socket.send('tiny', port, '127.0.0.1')
    const stream = await opened
    for (let i = 0; i < 20; i++) stream.sendPacket(new Uint8Array(1000))
    let bytes = 0
    await visitor.next().then(({ length }) => void (bytes += length))
    await until(
      async () => await metric(bed, 'sotto_packets_dropped_total') >= before + 18,
      'the drop count',
    )
    visitor.socket.on('message', ({ length }) => void (bytes += length))
    assert.ok(bytes <= 2048 + 4 * 3, `${bytes} bytes`)
  })

  test('datagrams for an agent that does not read are dropped, oldest first, and counted', async () => {
    const name = bed.name()
    const agent = await bed.agent()
    const port = Number((await agent.claim(name, { kind: 'udp', mode: 'raw', port: 0 }))['port'])
    const visitor = await udpVisitor(bed)
    const opened = agent.opened()
    visitor.socket.send('first', port, '127.0.0.1')
    const stream: Stream = await opened
    stream.accept()
    const last = { length: 0, text: '' }
    stream.onPacket = (bytes) => {
      last.length++
      last.text = Buffer.from(bytes.subarray(0, 20)).toString().trim()
    }
    new Reader(stream)
    const before = await metric(bed, 'sotto_packets_dropped_total')
    agent.link.ws.pause()
    let sent = 0
    await until(
      async () => {
        for (let i = 0; i < 100; i++) {
          const datagram = Buffer.alloc(1400, 32)
          datagram.write(`${++sent}`)
          visitor.socket.send(datagram, port, '127.0.0.1')
        }
        await new Promise((resolve) => setTimeout(resolve, 2))
        return await metric(bed, 'sotto_packets_dropped_total') > before
      },
      'the first drop',
      30_000,
    )
    agent.link.ws.resume()
    visitor.socket.send('over', port, '127.0.0.1')
    await until(() => last.text === 'over', 'the newest datagram')
    assert.ok(last.length < sent, 'some are missing')
  })
}
