/**
 * One message over one stream: that it arrives whole or not at all, that neither end holds it, that
 * a lie about lengths ends it, and that no second try is taken twice. Two muxes joined in memory.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ANSWER, decodeRequest, encodeRecord, encodeRequest, Incoming } from '../../agent/a2a.ts'
import { MESSAGE_BYTES_MAX, sendMessage, Taken } from '../../agent/a2a.ts'
import { concat, EMPTY, text, utf8 } from '../../core/bytes.ts'
import { joined, Sink } from '../support/message_link.ts'
import { rejection, thrown } from '../support/rejection.ts'

const test = suite('agent/a2a')
const ID = '00112233445566778899aabbccddeeff'

test('a message arrives whole, and its answer comes back apart from errors and result', async () => {
  const link = joined()
  const next = link.next()
  const sink = new Sink()
  const body = Array.from({ length: 40 }, (_, i) => new Uint8Array(25_000).fill(i))
  const sent = sendMessage(link.open({ id: ID, bytes: 1_000_000 }), body, sink)
  const stream = await next
  const incoming = new Incoming(stream, stream.visit.tail)
  let got: Uint8Array = EMPTY
  for await (const chunk of incoming.body()) got = concat(got, chunk)
  assert.equal(got, concat(...body))
  await incoming.output(utf8('out'))
  await incoming.errors(utf8('err'))
  await incoming.output(new Uint8Array(200_000).fill(7))
  await incoming.finish({ status: 'delivered', exit: 3 })
  assert.equal(await sent, { status: 'delivered', exit: 3 })
  assert.is(text(sink.out.subarray(0, 3)), 'out')
  assert.is(sink.out.length, 200_003)
  assert.is(text(sink.err), 'err')
})

test('a sender whose reader does not read holds no more than the windows', async () => {
  const link = joined()
  const next = link.next()
  let made = 0
  const body = (function* () {
    while (made < MESSAGE_BYTES_MAX) {
      made += 65_536
      yield new Uint8Array(65_536)
    }
  })()
  const sent = sendMessage(link.open({ id: ID }), body, new Sink())
  const stream = await next
  const incoming = new Incoming(stream, stream.visit.tail)
  const reading = incoming.body()
  await reading.next()
  for (let i = 0; i < 200; i++) await new Promise((resolve) => setTimeout(resolve))
  assert.ok(made < 2_000_000, `${made} bytes were taken from the source`)
  let read = 65_536
  for await (const chunk of reading) read += chunk.length
  assert.is(read >= MESSAGE_BYTES_MAX, true)
  await incoming.finish({ status: 'delivered' })
  assert.is((await sent).status, 'delivered')
})

test('a message of more than 16 MiB is refused by the sender, and by a receiver who is lied to', async () => {
  const link = joined()
  let next = link.next()
  const much = (function* () {
    for (let i = 0; i < 257; i++) yield new Uint8Array(65_536)
  })()
  const sent = rejection(sendMessage(link.open({ id: ID }), much, new Sink()))
  const stream = await next
  const incoming = new Incoming(stream, stream.visit.tail)
  const reading = rejection((async () => {
    for await (const _ of incoming.body());
  })())
  assert.is(await sent, 'a2a/size')
  assert.is(await reading, 'a2a/gone')
  assert.is(thrown(() => encodeRequest({ id: ID, bytes: MESSAGE_BYTES_MAX + 1 })), 'a2a/size')

  for (const [said, given] of [[10, 11], [10, 9]] as const) {
    next = link.next()
    const liar = sendMessage(
      link.open({ id: ID, bytes: said }),
      [new Uint8Array(given)],
      new Sink(),
    )
    const other = await next
    const deceived = new Incoming(other, other.visit.tail)
    assert.is(
      await rejection((async () => {
        for await (const _ of deceived.body());
      })()),
      'a2a/length',
    )
    await deceived.finish({ status: 'failed', code: 'a2a/length' })
    assert.is((await liar).status, 'failed')
  }
})

test('a stream that ends before the result leaves it open, and says so', async () => {
  const link = joined()
  const next = link.next()
  const sent = rejection(sendMessage(link.open({ id: ID }), [utf8('hi')], new Sink()))
  const stream = await next
  stream.end()
  assert.is(await sent, 'a2a/broken')
})

test('records that are none end the exchange', async () => {
  const records = [
    Uint8Array.of(9, 0, 0, 0, 0),
    Uint8Array.of(0, 0, 0, 0, 0),
    Uint8Array.of(1, 0xff, 0xff, 0xff, 0xff),
    Uint8Array.of(3, 0, 0, 0x10, 1),
    encodeRecord(ANSWER.result, utf8('no json')),
    encodeRecord(ANSWER.result, utf8('{"status":"fine"}')),
    encodeRecord(ANSWER.result, utf8('null')),
  ]
  for (const record of records) {
    const link = joined()
    const next = link.next()
    const sent = rejection(sendMessage(link.open({ id: ID }), [utf8('hi')], new Sink()))
    const stream = await next
    stream.write(record)
    assert.is(await sent, 'a2a/protocol', String(record))
  }
})

test('requests are read strictly', () => {
  assert.equal(decodeRequest(encodeRequest({ id: ID, bytes: 0, exec: true })), {
    id: ID,
    bytes: 0,
    exec: true,
  })
  for (
    const tail of [
      '',
      '[]',
      'null',
      '{}',
      '{"id":"0"}',
      `{"id":"${ID.toUpperCase()}"}`,
      `{"id":"${ID}","bytes":-1}`,
      `{"id":"${ID}","bytes":1.5}`,
      `{"id":"${ID}","exec":1}`,
      `{"id":"${ID}","pad":"${'x'.repeat(1024)}"}`,
    ]
  ) assert.is(thrown(() => decodeRequest(utf8(tail))), 'a2a/request')
})

test('what was taken is remembered by peer and id, and the oldest is forgotten first', () => {
  const taken = new Taken(2)
  taken.keep('a', '1', { status: 'delivered', exit: 0 })
  assert.equal(taken.find('a', '1'), { status: 'delivered', exit: 0, again: true })
  assert.is(taken.find('b', '1'), undefined)
  taken.keep('a', '2', { status: 'failed' })
  taken.keep('a', '3', { status: 'failed' })
  assert.is(taken.find('a', '1'), undefined)
  assert.ok(taken.find('a', '3'))
})

test.run()
