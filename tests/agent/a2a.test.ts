/**
 * One message over one stream: that it arrives whole or not at all, that neither end holds it, that
 * a lie about lengths ends it, and that no second try is taken twice. Two muxes joined in memory.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { decodeRequest, encodeRecord, encodeRequest, Incoming, RECORD } from '../../agent/a2a.ts'
import { MESSAGE_BYTES_MAX, sendMessage, Taken } from '../../agent/a2a.ts'
import type { Witness } from '../../agent/a2a.ts'
import { concat, EMPTY, hex, text, utf8 } from '../../core/bytes.ts'
import { fast } from '../support/crypto.ts'
import { joined, Sink } from '../support/message_link.ts'
import { rejection, thrown } from '../support/rejection.ts'

const test = suite('agent/a2a')
const ID = '00112233445566778899aabbccddeeff'

test('a message arrives whole, and its answer comes back apart from errors and result', async () => {
  const link = joined()
  const next = link.next()
  const sink = new Sink()
  const body = Array.from({ length: 40 }, (_, i) => new Uint8Array(25_000).fill(i))
  const sent = sendMessage(link.open({ id: ID, bytes: 1_000_000 }), body, sink, link.near)
  const stream = await next
  const incoming = new Incoming(stream, stream.visit.tail, link.far)
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
  const sent = sendMessage(link.open({ id: ID }), body, new Sink(), link.near)
  const stream = await next
  const incoming = new Incoming(stream, stream.visit.tail, link.far)
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
  const sent = rejection(sendMessage(link.open({ id: ID }), much, new Sink(), link.near))
  const stream = await next
  const incoming = new Incoming(stream, stream.visit.tail, link.far)
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
      link.near,
    )
    const other = await next
    const deceived = new Incoming(other, other.visit.tail, link.far)
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
  const sent = rejection(sendMessage(link.open({ id: ID }), [utf8('hi')], new Sink(), link.near))
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
    encodeRecord(RECORD.result, utf8('no json')),
    encodeRecord(RECORD.result, utf8('{"status":"fine"}')),
    encodeRecord(RECORD.result, utf8('null')),
  ]
  for (const record of records) {
    const link = joined()
    const next = link.next()
    const sent = rejection(sendMessage(link.open({ id: ID }), [utf8('hi')], new Sink(), link.near))
    const stream = await next
    stream.write(record)
    assert.is(await sent, 'a2a/protocol', String(record))
  }
})

/** Commits to something else than what it hashes. */
const lying = (honest: Witness): Witness => ({
  ...honest,
  commit: (content32) => honest.commit(content32.map((byte) => byte ^ 1)),
})

test('a message and its answer are committed to, apart, and both ends keep what opens them', async () => {
  const link = joined()
  const next = link.next()
  const sent = sendMessage(
    link.open({ id: ID }),
    [utf8('ques'), utf8('tion')],
    new Sink(),
    link.near,
  )
  const stream = await next
  const incoming = new Incoming(stream, stream.visit.tail, link.far)
  for await (const _ of incoming.body());
  await incoming.output(utf8('ans'))
  await incoming.errors(utf8('oops'))
  await incoming.output(utf8('wer'))
  await incoming.finish({ status: 'delivered' })
  await sent
  const hashes = (...words: string[]): string[] => words.map((one) => hex(fast.sha256(utf8(one))))
  for (const [at, { openings, commitments }] of link.trails().entries()) {
    const [question, answer] = [openings.sent, openings.received].map((list) =>
      list.map(({ content }) => hex(content))
    ).toSorted((one, other) => one.length - other.length)
    assert.equal(question, hashes('question'), `at ${at}`)
    assert.equal(answer, hashes('answer', 'oops'), `at ${at}`)
    const all = [...commitments.sent, ...commitments.received]
    assert.is(all.length, 3)
  }
})

test('a message other than the one committed to is refused, and so is such an answer', async () => {
  const link = joined()
  const next = link.next()
  const sending = sendMessage(link.open({ id: ID }), [utf8('yes')], new Sink(), lying(link.near))
  const stream = await next
  const incoming = new Incoming(stream, stream.visit.tail, link.far)
  const got: string[] = []
  const reading = rejection((async () => {
    for await (const chunk of incoming.body()) got.push(text(chunk))
    got.push('end')
  })())
  assert.is(await reading, 'transcript/commitment')
  assert.equal(got, ['yes'], 'what was made of it never hears that it is whole')
  await incoming.finish({ status: 'failed', code: 'transcript/commitment' })
  assert.is((await sending).code, 'transcript/commitment')

  const back = joined()
  const other = back.next()
  const sent = rejection(
    sendMessage(back.open({ id: ID }), [utf8('hi')], new Sink(), back.near),
  )
  const far = await other
  const answering = new Incoming(far, far.visit.tail, lying(back.far))
  await answering.output(utf8('no'))
  await answering.finish({ status: 'delivered' })
  assert.is(await sent, 'transcript/commitment')
})

test('a message or an answer that nobody committed to is refused', async () => {
  const body = encodeRecord(RECORD.body, utf8('hi'))
  const named = (kind: number, number: number): Uint8Array =>
    encodeRecord(RECORD.commitment, Uint8Array.of(kind, 0, 0, 0, 0, 0, 0, 0, number))
  for (
    const [records, code] of [
      [[body], 'a2a/commitment'],
      [[], 'a2a/commitment'],
      [[body, named(4, 0)], 'transcript/commitment'],
      [[body, named(1, 0)], 'a2a/protocol'],
      [[body, encodeRecord(RECORD.commitment, new Uint8Array(8))], 'a2a/protocol'],
      [[body.subarray(0, -1)], 'a2a/protocol'],
      [[encodeRecord(RECORD.output, utf8('hi'))], 'a2a/protocol'],
      [[encodeRecord(RECORD.body, new Uint8Array(65_537))], 'a2a/protocol'],
    ] as const
  ) {
    const link = joined()
    const next = link.next()
    const stream = link.open({ id: ID })
    for (const record of records) stream.write(record)
    stream.end()
    const far = await next
    const incoming = new Incoming(far, far.visit.tail, link.far)
    const reading = rejection((async () => {
      for await (const _ of incoming.body());
    })())
    assert.is(await reading, code)
  }

  // The number of another message's commitment says nothing of this one.
  const link = joined()
  const index = link.near.commit(fast.sha256(utf8('hi')))
  for (const code of [undefined, 'transcript/commitment']) {
    const next = link.next()
    const stream = link.open({ id: ID })
    stream.write(body)
    stream.write(named(RECORD.body, index))
    stream.end()
    const far = await next
    const incoming = new Incoming(far, far.visit.tail, link.far)
    const reading = (async () => {
      for await (const _ of incoming.body());
    })()
    if (code) assert.is(await rejection(reading), code)
    else await reading
  }

  const answers = joined()
  const other = answers.next()
  const sent = rejection(
    sendMessage(answers.open({ id: ID }), [utf8('hi')], new Sink(), answers.near),
  )
  const stream = await other
  stream.write(encodeRecord(RECORD.output, utf8('made up')))
  stream.write(encodeRecord(RECORD.result, utf8('{"status":"delivered"}')))
  assert.is(await sent, 'a2a/commitment')
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
  // However many somebody sends, what others sent stays.
  taken.keep('b', '1', { status: 'delivered' })
  for (let i = 0; i < 1000; i++) taken.keep('a', String(i), { status: 'delivered' })
  assert.ok(taken.find('b', '1'))
  for (let i = 0; i < 100; i++) taken.keep(`peer ${i}`, '1', { status: 'delivered' })
  const kept = Array.from({ length: 100 }, (_, i) => taken.find(`peer ${i}`, '1')).filter(Boolean)
  assert.ok(kept.length >= 29 && kept.length <= 32, String(kept.length))
})

test.run()
