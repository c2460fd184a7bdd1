// Which routes of a network an interface gets: nothing public or everything unless that was said, nothing that no
// interface has, nothing that this machine routes itself. Then the program `ip`, where it is missing or another.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Agreed } from '../../../core/agreement.ts'
import { parseAddress, parseNetwork } from '../../../core/address.ts'
import type { Network } from '../../../core/address.ts'
import { isTunnelError, TunnelError } from '../../../core/errors.ts'
import { IpProgram } from '../../../agent/wireguard/ip_program.ts'
import { planRoutes } from '../../../agent/wireguard/route_plan.ts'
import type { RouteChoice } from '../../../agent/wireguard/route_plan.ts'
import { prefixText } from '../../../agent/wireguard/peer_table.ts'
import { hostClock } from '../../../agent/host/process.ts'
import type { Programs } from '../../../agent/world.ts'

const test = suite('agent/wireguard/route_plan')

const nets = (...words: string[]): Network[] => words.map((one) => parseNetwork(one)!)

function agreed(...routes: string[]): Agreed {
  return {
    kind: 'agreed',
    address4: { bytes: parseAddress('100.64.9.2')!, bits: 24 },
    address6: { bytes: parseAddress('fd00:9::2')!, bits: 64 },
    routes: nets(...routes),
  } as unknown as Agreed
}

function plan(routes: string[], choice: RouteChoice = undefined, ways: string[] = []) {
  const { routed, left } = planRoutes(agreed(...routes), { choice, ways: nets(...ways) })
  return {
    routed: routed.map(prefixText),
    left: left.map(({ route, why }) => `${prefixText(route)} ${why}`),
  }
}

const OWN = ['100.64.9.0/24', 'fd00:9::/64']

test("without a word private networks are routed, and the network's own", () => {
  const { routed, left } = plan([
    ...['10.1.0.0/16', '172.16.0.0/12', '192.168.1.0/24', 'fd00:77::/64'],
    ...[
      '8.8.8.8/32',
      '172.0.0.0/8',
      '2001:db8::/32',
      '0.0.0.0/0',
      '::/0',
      '0.0.0.0/1',
      '128.0.0.0/1',
    ],
  ])
  assert.equal(routed, [...OWN, '10.1.0.0/16', '172.16.0.0/12', '192.168.1.0/24', 'fd00:77::/64'])
  assert.equal(left, [
    ...[
      '8.8.8.8/32 public',
      '172.0.0.0/8 public',
      '2001:db8::/32 public',
      '0.0.0.0/0 all',
      '::/0 all',
    ],
    ...['0.0.0.0/1 public', '128.0.0.0/1 public'],
  ])
})

test('a network that is chosen is routed where it is served, also a part of one', () => {
  assert.equal(plan(['8.8.0.0/16'], nets('8.8.8.0/24')).routed, [...OWN, '8.8.8.0/24'])
  assert.throws(
    () => plan(['8.8.0.0/16'], nets('8.9.0.0/16')),
    (error: unknown) => isTunnelError(error, 'tun/route'),
  )
  assert.throws(
    () => plan(['8.8.8.0/24'], nets('8.8.0.0/16')),
    (error: unknown) => isTunnelError(error, 'tun/route'),
  )
})

test('all is routed where all is served', () => {
  assert.equal(plan(['0.0.0.0/0', '8.8.8.8/32'], 'all').routed, [...OWN, '0.0.0.0/0', '8.8.8.8/32'])
  assert.throws(
    () => plan(['0.0.0.0/1', '128.0.0.0/1'], 'all'),
    (error: unknown) => isTunnelError(error, 'tun/all'),
  )
})

test('what no interface has is never routed, whoever asks for it', () => {
  const special = [
    '127.0.0.0/8',
    '127.0.0.1',
    '169.254.169.254',
    '224.0.0.0/4',
    '255.255.255.255',
    '::1',
    'fe80::/10',
    'ff02::/16',
  ]
  for (const choice of [undefined, 'all', nets(...special)] as RouteChoice[]) {
    const { routed, left } = plan([...special, '0.0.0.0/0'], choice)
    assert.equal(routed.filter((one) => !OWN.includes(one) && one !== '0.0.0.0/0'), [])
    assert.is(left.filter((one) => one.endsWith(' special')).length, special.length)
  }
})

test('what this machine has a way to stays as it is, and so does a part of that', () => {
  const { routed, left } = plan(
    ['192.168.1.0/24', '192.168.1.1', '192.168.0.0/16', '10.0.0.0/8'],
    undefined,
    ['192.168.1.0/24'],
  )
  assert.equal(left, ['192.168.1.0/24 own', '192.168.1.1/32 own'])
  assert.equal(routed, [...OWN, '192.168.0.0/16', '10.0.0.0/8'])
})

/** Answers as a program would, by what it is asked. */
function programs(
  answer: (argv: readonly string[]) => { code: number; output?: string; errors?: string },
  written: string[] = [],
): Programs {
  return {
    start({ argv }, sink) {
      const { code, output = '', errors = '' } = answer(argv)
      sink.output(new TextEncoder().encode(output))
      sink.errors(new TextEncoder().encode(errors))
      return Promise.resolve({
        pid: 1,
        done: Promise.resolve({ code, signal: undefined }),
        write: (bytes) => {
          if (bytes.length > 0) written.push(new TextDecoder().decode(bytes))
          return Promise.resolve()
        },
        end() {},
        kill() {},
      })
    },
  }
}

const ours = () => Promise.resolve(() => Promise.resolve())
const ipOf = (one: Programs) => new IpProgram({ programs: one, clock: hostClock, env: {} })
async function problem(work: Promise<unknown>): Promise<TunnelError> {
  const error = await work.then(() => undefined, (thrown) => thrown)
  assert.instance(error, TunnelError)
  return error
}

test('a machine without "ip" is told what to install, and so is one with that of BusyBox', async () => {
  const missing = await problem(
    ipOf({ start: () => Promise.reject(new TunnelError('program/start', 'there is none')) })
      .freeTable(ours),
  )
  assert.is(missing.code, 'tun/ip')
  assert.match(missing.hint ?? '', /apt-get install iproute2/)
  const busy = await problem(
    ipOf(programs(() => ({ code: 1, errors: 'ip: unrecognized option: N\nBusyBox v1.36\n' })))
      .freeTable(ours),
  )
  assert.is(busy.code, 'tun/ip')
  assert.match(busy.message, /unrecognized option/)
})

test('words of "ip" about a line of many are told with that line', async () => {
  const errors = 'RTNETLINK answers: Operation not permitted\nCommand failed -:2\n'
  const error = await problem(
    ipOf(programs(() => ({ code: 1, errors }))).batch(4, ['first', 'second', 'third']),
  )
  assert.match(error.message, /"ip second" says RTNETLINK answers: Operation not permitted/)
})

test('rules that a killed process has left at a number are removed, those of others are not', async () => {
  const rules = [
    { priority: 0, table: 'local' },
    { priority: 5_210, table: 'main', protocol: '83' },
    { priority: 30_009, table: '51900', protocol: '83' },
    { priority: 30_016, table: 'main', protocol: '83' },
    { priority: 30_025, table: '51901', protocol: '83' },
    { priority: 30_026, table: '51901', protocol: '4' },
    { priority: 30_032, table: 'main', protocol: '83' },
  ]
  const lines: string[] = []
  const ip = ipOf(programs((argv) => {
    const words = argv.join(' ')
    const output = words.includes('-4 rule show') ? JSON.stringify(rules) : '[]'
    return { code: 0, output }
  }, lines))
  // The first is another process's; one that is not needed is given back.
  const given: number[] = []
  const table = await ip.freeTable((number) =>
    Promise.resolve(number === 0 ? undefined : () => Promise.resolve(void given.push(number)))
  )
  assert.is(table.table, 51_901)
  assert.equal(lines, ['rule del pref 30016\nrule del pref 30025\n', 'rule del pref 30032\n'])
  assert.equal(given, [2])
  await table.off()
  assert.equal(given, [2, 1])
  const error = await problem(ip.freeTable(() => Promise.resolve(undefined)))
  assert.is(error.code, 'tun/full')
})

test.run()
