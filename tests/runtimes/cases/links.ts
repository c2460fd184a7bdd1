/** What may pass on a link, what ends it, and how an agent comes back. */
import * as assert from 'uvu/assert'
import { utf8 } from '../../../core/bytes.ts'
import { encodeFrame, FRAME } from '../../../core/frame.ts'
import { generateIdentity } from '../../../core/key.ts'
import { encodePassport } from '../../../core/passport.ts'
import { fast } from '../../support/crypto.ts'
import { api, Reader, Refused } from '../../support/client.ts'
import type { Cases } from '../bed.ts'
import { echo, until } from '../bed.ts'

/** Close codes for a message that the WebSocket layer itself may be the one to refuse. */
const OVERSIZE_CODES = [4400, 1009]

export const linkCases: Cases = (test, bed) => {
  test('a text message ends the link with 4400', async () => {
    const agent = await bed.agent()
    agent.link.ws.send('{"do":"claim"}')
    assert.is((await agent.closed).code, 4400)
  })

  test('a message longer than a frame ends the link, one as long does not', async () => {
    const agent = await bed.agent()
    const target = await bed.agent()
    const name = bed.name()
    await target.claim(name)
    target.onOpen = echo
    const visiting = await bed.agent({ role: 'visit', target: target.identity.public })
    const stream = visiting.connect(name)
    const reader = new Reader(stream)
    stream.write(new Uint8Array(65_536).fill(7))
    assert.is((await reader.take(65_536))[65_535], 7)
    for (const length of [65_542, 1_000_000]) {
      const victim = await bed.agent()
      victim.link.ws.send(new Uint8Array(length).fill(0x11))
      const { code } = await victim.closed
      assert.ok(OVERSIZE_CODES.includes(code), `${length} bytes: ${code}`)
    }
    assert.is((await agent.request({ do: 'passport' }))['ok'], true, 'other links go on')
  })

  test('what has no place on a link ends it with 4400', async () => {
    const cases: [string, Uint8Array][] = [
      ['an empty message', new Uint8Array(0)],
      ['a short frame', Uint8Array.of(0x11, 0, 0)],
      ['an unknown type', Uint8Array.of(0x7f, 0, 0, 0, 0)],
      ['a second hello', encodeFrame('hello', 0, new Uint8Array(131))],
      ['a welcome', encodeFrame('welcome', 0, new Uint8Array(20))],
      ['a reply', encodeFrame('reply', 1, utf8('{}'))],
      ['a request that is no JSON', encodeFrame('request', 1, utf8('nonsense'))],
      ['a request that is a list', encodeFrame('request', 1, utf8('[]'))],
      ['data on stream 0', Uint8Array.of(0x11, 0, 0, 0, 0, 1)],
      ['data on a stream that was never opened', encodeFrame('data', 8, utf8('x'))],
      ['credit of three bytes', Uint8Array.of(0x12, 0, 0, 0, 2, 1, 1, 1)],
    ]
    for (const [name, message] of cases) {
      const agent = await bed.agent()
      agent.link.ws.send(message)
      assert.is((await agent.closed).code, 4400, name)
    }
    const target = await bed.agent()
    const visit = { role: 'visit', target: target.identity.public } as const
    const asking = await bed.agent(visit)
    asking.link.send('request', 1, utf8('{"do":"passport"}'))
    assert.is((await asking.closed).code, 4400, 'a request on a visit link')
  })

  test('a ping frame is answered with its eight bytes, a WebSocket ping by itself', async () => {
    const agent = await bed.agent()
    agent.link.send('ping', 0, Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8))
    const { payload } = await agent.frame(FRAME.pong)
    assert.equal([...payload], [1, 2, 3, 4, 5, 6, 7, 8])
    const ponged = new Promise((resolve) => agent.link.ws.once('pong', resolve))
    agent.link.ws.ping('x')
    assert.is(String(await ponged), 'x')
  })

  test('an agent that lost its link comes back to its name; the old link is no longer asked', async () => {
    const name = bed.name()
    const one = await bed.agent()
    await one.claim(name)
    const { identity, group } = one
    one.link.ws.terminate()
    const two = await bed.agent({ identity, group })
    assert.is((await two.ask(name))['ok'], true)
    two.onOpen = echo
    const visiting = await bed.agent({ role: 'visit', target: identity.public })
    const stream = visiting.connect(name)
    stream.write(utf8('again'))
    stream.end()
    assert.is((await new Reader(stream).rest()).bytes.toString(), 'again')
  })

  test('one process may have four home links, and no fifth', async () => {
    const first = await bed.agent()
    const { identity, group } = first
    for (let i = 0; i < 3; i++) await bed.agent({ identity, group })
    let refused: unknown
    await bed.agent({ identity, group }).catch((error) => void (refused = error))
    assert.instance(refused, Refused)
    assert.is((refused as Refused).notice?.code, 'hub/links')
  })

  test('a visit link is told when its agent has no link, and when it loses the last', async () => {
    const agent = await bed.agent()
    const visiting = await bed.agent({ role: 'visit', target: agent.identity.public })
    await agent.close()
    await visiting.frame(FRAME.peer_gone)
    const absent = await bed.agent({ role: 'visit', target: generateIdentity(fast).public })
    await absent.frame(FRAME.peer_gone)
  })

  test("passports are published by compare-and-set, and only one's own", async () => {
    const agent = await bed.agent()
    const passport = (sequence: number, of = agent.identity): string =>
      Buffer.from(
        encodePassport({
          identity: of.public,
          sequence,
          notBefore: Date.now(),
          notAfter: Date.now() + 1e9,
          certificates: [],
          names: [],
          ciphers: [],
        }, (message) => fast.ed25519Sign(of.seed, message)),
      ).toString('base64')
    const publish = async (text: string, after: number): Promise<unknown> => {
      const reply = await agent.request({ do: 'publish', passport: text, after })
      return reply['ok'] === true ? 'ok' : (reply['error'] as { code: string }).code
    }
    assert.is(await publish(passport(1), 0), 'ok')
    assert.is(await publish(passport(2), 0), 'registry/stale')
    assert.is(await publish(passport(2), 1), 'ok')
    assert.is(await publish(passport(3, generateIdentity(fast)), 2), 'passport/signer')
    const forged = Buffer.from(passport(3), 'base64')
    forged[60]! ^= 1
    assert.is(await publish(forged.toString('base64'), 2), 'passport/forged')
    assert.type((await agent.request({ do: 'passport' }))['passport'], 'string')
    const name = bed.name()
    await agent.claim(name)
    const resolved = await agent.request({ do: 'resolve', name })
    const [served] = resolved['agents'] as { key: string }[]
    assert.is(served?.key, agent.key)
  })

  test('a name belongs to the scope that used it first; others get a free suggestion', async () => {
    const name = bed.name()
    const alice = await bed.agent({ scope: 'alice' })
    const bob = await bed.agent({ scope: 'bob' })
    await alice.claim(name)
    const { error } = await bob.ask(name) as { error: { code: string; hint: string } }
    assert.is(error.code, 'registry/taken')
    const free = /--name (\S+)/.exec(error.hint)?.[1]
    assert.ok(free)
    assert.is((await bob.ask(free!))['ok'], true)
    await alice.close()
    const still = await bob.ask(name) as { error: { code: string } }
    assert.is(still.error.code, 'registry/taken', 'a reservation outlives the link')
    for (
      const [wrong, code] of [['UPPER', 'claim/name'], ['admin', 'registry/reserved']] as const
    ) {
      const reply = await bob.ask(wrong) as { error: { code: string } }
      assert.is(reply.error.code, code)
    }
  })

  test('a name is released by REST once nobody serves it', async () => {
    const name = bed.name()
    const alice = await bed.agent({ scope: 'alice' })
    const bob = await bed.agent({ scope: 'bob' })
    await alice.claim(name)
    const release = async (): Promise<number> =>
      (await api(bed.relay, `/names/${name}`, { method: 'DELETE' })).status
    assert.is(await release(), 409)
    assert.is((await alice.request({ do: 'release', name }))['ok'], true)
    await until(async () => await release() === 204, 'the release')
    assert.is((await bob.ask(name))['ok'], true)
  })

  test('requests that are unknown or wrong are answered, not ended', async () => {
    const agent = await bed.agent()
    const code = async (body: object): Promise<unknown> =>
      (await agent.request(body) as { error: { code: string } }).error.code
    assert.is(await code({ do: 'dance' }), 'request/unknown')
    assert.is(
      await code({ do: 'claim', name: 'x', kind: 'gopher', mode: 'verified' }),
      'claim/kind',
    )
    assert.is(await code({ do: 'claim', name: 'x', kind: 'tcp', mode: 'psychic' }), 'claim/mode')
    assert.is(await code({ do: 'claim', name: 'x', kind: 'udp', mode: 'verified' }), 'claim/mode')
    assert.is(await code({ do: 'publish', passport: '!!', after: 0 }), 'request/passport')
  })
}
