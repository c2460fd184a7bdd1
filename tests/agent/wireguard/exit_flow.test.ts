// A UDP port at the exit, with sockets in memory: when an address is judged, and that each that is new is.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ExitFlow } from '../../../agent/wireguard/exit_flow.ts'
import type { BindUdp, DatagramHandler, FarEnd } from '../../../agent/wireguard/network.ts'
import { ManualClock } from '../../../core/clock.ts'

const test = suite('agent/wireguard/exit_flow')
const settle = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 0))

function scene() {
  const clock = new ManualClock()
  const judged: string[] = []
  const sent: string[] = []
  const denied = new Set<string>()
  let handler: DatagramHandler | undefined
  const bindUdp: BindUdp = () =>
    Promise.resolve({
      port: 1,
      send: (to: FarEnd) => sent.push(to.address) > 0,
      handle: (given: DatagramHandler) => void (handler = given),
      close: () => {},
    })
  const flow = new ExitFlow({ bindUdp, clock }, {
    judge: (address) => {
      judged.push(address)
      return denied.has(address) ? 'route' : undefined
    },
    closed: () => {},
  })
  const send = (address: string): boolean => flow.send({ address, port: 9 }, new Uint8Array(1))
  return {
    clock,
    judged,
    sent,
    denied,
    flow,
    send,
    from: (end: FarEnd) => handler!.message(end, new Uint8Array(1)),
  }
}

test('an address is judged when it is new, when it comes back, and a second later again', async () => {
  const { clock, judged, sent, denied, send } = scene()
  assert.ok(send('192.0.2.1'))
  await settle()
  for (let i = 0; i < 5; i++) assert.ok(send('192.0.2.1'))
  assert.equal(judged, ['192.0.2.1'])
  assert.ok(send('192.0.2.2'))
  assert.ok(send('192.0.2.1'))
  assert.equal(judged, ['192.0.2.1', '192.0.2.2', '192.0.2.1'])
  denied.add('192.0.2.1')
  clock.advance(1_001)
  assert.not(send('192.0.2.1'))
  assert.not(send('192.0.2.1'), 'what was refused is not remembered as allowed')
  denied.add('192.0.2.3')
  assert.not(send('192.0.2.3'))
  assert.is(sent.length, 8)
  assert.not(send('nonsense'))
})

test('answers come in from addresses that were sent to, however they are spelled', async () => {
  const { send, flow, from } = scene()
  const got: string[] = []
  flow.handle({ message: ({ address }) => void got.push(address) })
  send('::ffff:192.0.2.1')
  send('2001:DB8::0:1')
  await settle()
  from({ address: '192.0.2.1', port: 9 })
  from({ address: '2001:db8::1', port: 9 })
  from({ address: '192.0.2.9', port: 9 })
  assert.equal(got, ['192.0.2.1', '2001:db8::1'])
})

test.run()
