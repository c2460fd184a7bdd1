/** UDP ports of this machine, as the exit and forwards open them. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { bindUdp } from '../../../agent/host/datagrams.ts'
import { isTunnelError } from '../../../core/errors.ts'

const test = suite('agent/host/datagrams')

async function refusal(opening: Promise<unknown>): Promise<string> {
  try {
    await opening
  } catch (error) {
    assert.ok(isTunnelError(error), String(error))
    return error.code
  }
  return 'opened'
}

test('a port that is taken, and an address of another machine, are refused by name', async () => {
  for (const host of ['127.0.0.1', '::1']) {
    const first = await bindUdp({ host, port: 0 })
    assert.is(await refusal(bindUdp({ host, port: first.port })), 'net/in-use', host)
    first.close()
    const again = await bindUdp({ host, port: first.port })
    again.close()
  }
  assert.match(await refusal(bindUdp({ host: '192.0.2.1', port: 0 })), /^net\//)
})

test('datagrams go both ways, to anybody, and none after the end', async () => {
  const [one, two] = [
    await bindUdp({ host: '127.0.0.1', port: 0 }),
    await bindUdp({ host: '127.0.0.1', port: 0 }),
  ]
  const heard: string[] = []
  const next = (): Promise<void> =>
    new Promise((resolve) => {
      two.handle({
        message: (from, bytes) => {
          heard.push(`${from.port} ${bytes.join()}`)
          resolve()
        },
      })
    })
  const first = next()
  assert.ok(one.send({ address: '127.0.0.1', port: two.port }, Uint8Array.of(1, 2)))
  await first
  assert.equal(heard, [`${one.port} 1,2`])
  one.close()
  assert.not.ok(one.send({ address: '127.0.0.1', port: two.port }, Uint8Array.of(3)))
  two.close()
})

test.run()
