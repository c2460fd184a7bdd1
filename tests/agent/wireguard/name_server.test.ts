// Names inside a network: what is answered, what is refused, and that no query breaks it. Bytes by
// RFC 1035 §4, written by hand once.
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { answerNames, decodeNameQuery } from '../../../agent/wireguard/name_server.ts'
import { fromHex, hex } from '../../../core/bytes.ts'
import { decodeDnsAnswer, encodeDnsQuery } from '../../../core/dns.ts'
import { TunnelError } from '../../../core/errors.ts'

const test = suite('agent/wireguard/name_server')
const asked: string[] = []
const resolve = (name: string): Promise<string[]> => {
  asked.push(name)
  if (name === 'printer.lan') return Promise.resolve(['192.168.1.100', 'fd00::100'])
  if (name === 'broken.lan') return Promise.reject(new TunnelError('net/timeout', 'no answer'))
  return Promise.reject(new TunnelError('net/unknown-host', 'there is none'))
}
const ask = async (name: string, type: 'A' | 'AAAA' | 'TXT') => {
  const question = { id: 7, name, type }
  return decodeDnsAnswer((await answerNames(encodeDnsQuery(question), resolve))!, question)
}

test('the golden answer', async () => {
  const query = fromHex('1234 0100 0001 0000 0000 0000 07 7072696e746572 03 6c616e 00 0001 0001')
  assert.is(
    hex((await answerNames(query, resolve))!),
    '123481800001000100000000' + '077072696e746572036c616e0000010001' +
      'c00c000100010000001e0004c0a80164',
  )
})

test('addresses of the family that was asked for; other types have no answer; case is no matter', async () => {
  assert.equal((await ask('printer.lan', 'A')).records.map(({ value }) => value), ['192.168.1.100'])
  assert.equal((await ask('printer.lan', 'AAAA')).records.map(({ value }) => value), [
    'fd00:0:0:0:0:0:0:100',
  ])
  const before = asked.length
  assert.equal(await ask('printer.lan', 'TXT'), { rcode: 0, truncated: false, records: [] })
  assert.is(asked.length, before, 'nothing was looked up')
  const upper = fromHex('1234 0100 0001 0000 0000 0000 07 5052494e544552 03 4c414e 00 0001 0001')
  assert.is(hex((await answerNames(upper, resolve))!).slice(4, 16), '818000010001')
})

test('no such name, and a resolver that does not answer, are told apart', async () => {
  assert.is((await ask('nothing.lan', 'A')).rcode, 3)
  assert.is((await ask('broken.lan', 'A')).rcode, 2)
})

test('every truncation is answered as malformed or not at all; answers are never answered', async () => {
  const query = encodeDnsQuery({ id: 1, name: 'printer.lan', type: 'A' })
  // 12 of the head, 17 of the question; what follows is EDNS.
  for (let length = 0; length < 29; length++) {
    const answer = await answerNames(query.subarray(0, length), resolve)
    if (length < 12) assert.is(answer, undefined)
    else assert.is(answer![3]! & 15, 1, `${length} bytes`)
  }
  const answered = query.slice()
  answered[2]! |= 0x80
  assert.is(await answerNames(answered, resolve), undefined)
  assert.is(decodeNameQuery(answered), undefined)
})

test('whatever comes, nothing is thrown and the answer is short', async () => {
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 600 }), async (bytes) => {
      const answer = await answerNames(bytes, resolve)
      return answer === undefined || answer.length <= 600
    }),
    { numRuns: 3000 },
  )
})

test.run()
