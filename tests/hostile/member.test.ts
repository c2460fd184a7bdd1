// A member of a private network that means harm: real handshakes, packets by hand. Each row is played without its
// attack too, and in both cases a neighbour in the same network is served to the end.
// seconds: 120
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { EXIT_LIMITS } from '../../agent/wireguard/exit.ts'
import { parseRoute } from '../../agent/wireguard/exit_policy.ts'
import type { ServedOptions } from '../../agent/wireguard/served_network.ts'
import { EMPTY, utf8 } from '../../core/bytes.ts'
import { encodeDnsQuery } from '../../core/dns.ts'
import { fast } from '../support/crypto.ts'
import { DEAD, echo, HOST, ip, MemberStage, syn, udp, udpSegment } from './member_stage.ts'

interface Row {
  name: string
  /** Codes; each must be heard. */
  says: string[]
  options?: Partial<ServedOptions>
  /** The same without harm; a datagram to the host and its answer where absent. */
  honest?(stage: MemberStage): Promise<void>
  attack(stage: MemberStage): Promise<void>
  holds?(stage: MemberStage): void | Promise<void>
}

/** Of the stack: SYNs that wait, to one address and port, and all told. */
const [HALF_OPEN_TO_ONE_MAX, HALF_OPEN_MAX] = [128, 1024]
const LAN = { routes: [parseRoute('192.0.2.0/24')] }
/** Nothing of what was sent has left the exit. */
function nothingLeft({ dialled, sent }: MemberStage): void {
  assert.equal(dialled.filter((one) => one !== `${HOST} 7`), [])
  assert.equal(sent.filter((one) => one !== `${HOST} 53`), [])
}

const range = (count: number): number[] => Array.from({ length: count }, (_, i) => i)

function spoofs(name: string, source: (stage: MemberStage) => string): Row {
  return {
    name,
    says: ['wireguard/foreignSource'],
    async attack(stage) {
      const six = source(stage).includes(':')
      const destination = six ? '2001:db8::10' : HOST
      const ends = { source: source(stage), destination, destinationPort: 99 }
      await stage.member.send([udp(ends), syn(ends)])
    },
    holds: nothingLeft,
  }
}

function reaches(name: string, destination: (stage: MemberStage) => string, more = {}): Row {
  return {
    name,
    says: ['exit/denied'],
    async attack(stage) {
      const ends = { source: stage.member.at.address, destination: destination(stage) }
      if (ends.destination.includes(':')) ends.source = stage.member.at.address6
      await stage.member.send([syn(ends), udp({ ...ends, destinationPort: 99 })])
    },
    holds: nothingLeft,
    ...more,
  }
}

const SOURCES: Row[] = [
  spoofs("the neighbour's address as source", ({ neighbourAt }) => neighbourAt.address),
  spoofs("the neighbour's IPv6 address", ({ neighbourAt }) => neighbourAt.address6),
  spoofs("the exit's own address", ({ served }) => served.stockMembers[0]!.lease.serverFour),
  spoofs('an address of nobody', () => '203.0.113.9'),
  spoofs('a loopback address', () => '127.0.0.1'),
  spoofs('the host behind the exit', () => HOST),
]

const DESTINATIONS: Row[] = [
  reaches('an address outside the routes', () => '198.51.100.1', { options: LAN }),
  reaches('the neighbour', ({ neighbourAt }) => neighbourAt.address, {
    options: LAN,
    holds(stage: MemberStage) {
      nothingLeft(stage)
      assert.not.ok(stage.codes().has('neighbour/called'))
    },
  }),
  reaches('link-local: the metadata of a cloud', () => '169.254.169.254'),
  reaches('link-local of IPv6', () => 'fe80::1'),
  reaches('loopback within IPv6', () => '::ffff:127.0.0.1', {
    says: [],
    attack: async (stage: MemberStage) => {
      const { address6: source } = stage.member.at
      await stage.member.send(
        ['::ffff:127.0.0.1', '::127.0.0.1', '64:ff9b::7f00:1', '2002:7f00:1::1']
          .flatMap((destination) => [
            syn({ source, destination }),
            udp({ source, destination, destinationPort: 99 }),
          ]),
      )
      await stage.member.isServed()
    },
  }),
  {
    name: 'loopback, nobody, all and many',
    says: [],
    async attack({ member }) {
      const { address: source } = member.at
      for (const destination of ['127.0.0.1', '0.0.0.0', '255.255.255.255', '224.0.0.251']) {
        await member.send([
          syn({ source, destination }),
          udp({ source, destination, destinationPort: 99 }),
          echo({ source, destination }, 1),
        ])
      }
      await member.isServed()
    },
    holds(stage) {
      nothingLeft(stage)
      assert.is(stage.pingingMost, 0)
    },
  },
]

/** Where members may reach each other's ports: nothing else than that, and from no other address. */
const BETWEEN: Row[] = [
  {
    ...spoofs("the neighbour's address as source", ({ neighbourAt }) => neighbourAt.address),
    options: { between: true },
  },
  {
    name: 'datagrams and echoes to the neighbour',
    says: ['exit/denied'],
    options: { between: true, ...LAN },
    async attack(stage) {
      const { member, neighbourAt } = stage
      const ends = { source: member.at.address, destination: neighbourAt.address }
      await member.send(
        range(100).flatMap((i) => [
          udp({ ...ends, destinationPort: 1 + i }),
          udp({ ...ends, destinationPort: 53, sourcePort: 53 }),
          echo(ends, i),
        ]),
      )
      // What is refused is told of connections alone.
      await member.send([syn({ ...ends, destination: '198.51.100.1' })])
      await member.isServed()
    },
    holds(stage) {
      nothingLeft(stage)
      assert.not.ok(stage.codes().has('neighbour/called'))
      assert.is(stage.pingingMost, 0)
    },
  },
  {
    name: "the neighbour's ports, one after the other, thousands at once",
    says: ['neighbour/called'],
    options: { between: true },
    async attack(stage) {
      const { member, neighbourAt } = stage
      const ends = { source: member.at.address, destination: neighbourAt.address }
      await member.send(
        range(3000).map((i) => syn({ ...ends, sourcePort: 2000 + i, destinationPort: 1 + i })),
      )
      await stage.until(() => stage.codes().has('neighbour/called'), 'one that arrives')
      await member.connects(HOST, 7)
      await member.isServed()
    },
    holds({ served }) {
      assert.ok(served.tunnel.stats().flows <= HALF_OPEN_MAX + 2)
    },
  },
]

const PACKETS: Row[] = [
  {
    name: 'fragments whose rest never comes',
    says: [],
    async attack({ member }) {
      const ends = { source: member.at.address, destination: HOST, destinationPort: 99 }
      const segment = udpSegment({ ...ends, payload: new Uint8Array(1200) })
      await member.send(
        range(5000).map((id) => ip(ends, 17, segment.subarray(0, 800), { id, fragment: 0x2000 })),
      )
      await member.isServed()
    },
    holds: nothingLeft,
  },
  {
    name: 'fragments that lie over each other, beyond 65,535 bytes, and none at all',
    says: [],
    async attack({ member }) {
      const ends = { source: member.at.address, destination: HOST, destinationPort: 99 }
      const part = new Uint8Array(800)
      await member.send(
        range(500).flatMap((id) => [
          ip(ends, 17, part, { id, fragment: 0x2000 }),
          ip(ends, 17, part, { id, fragment: 0x2001 }),
          ip(ends, 17, part, { id, fragment: 0x1fff }),
          ip(ends, 17, EMPTY, { id, fragment: 0x0001 }),
        ]),
      )
      await member.isServed()
    },
    holds: nothingLeft,
  },
  {
    name: 'packets larger than the tunnel carries',
    says: [],
    async attack({ member }) {
      const ends = { source: member.at.address, destination: HOST, destinationPort: 99 }
      const payload = new Uint8Array(15_000)
      await member.send(range(100).map(() => udp({ ...ends, payload })))
      await member.isServed()
    },
  },
  {
    name: 'lengths that lie',
    says: [],
    async attack({ member }) {
      const ends = { source: member.at.address, destination: HOST, destinationPort: 99 }
      await member.send(
        range(2000).flatMap((i) => {
          const [packet] = [i % 2 ? udp(ends) : syn(ends)]
          packet!.set([0x40 | (i % 16), 0, i >> 3, (i * 37) & 255])
          return [packet!, packet!.subarray(0, 1 + i % packet!.length)]
        }),
      )
      await member.isServed()
    },
  },
  {
    name: 'noise in sealed packets',
    says: [],
    async attack({ member }) {
      const { address, address6 } = member.at
      await member.send(
        range(4000).map((i) => {
          const [protocol] = fast.randomBytes(1)
          const ends = i % 3
            ? { source: address, destination: HOST }
            : { source: address6, destination: '2001:db8::10' }
          return ip(
            ends,
            [1, 6, 17, 58, 0, 43, 44, 60, protocol!][i % 9]!,
            fast.randomBytes(i % 200),
          )
        }),
      )
      await member.isServed()
    },
  },
]

const LOADS: Row[] = [
  {
    name: 'connections to a dead host, thousands',
    says: ['stack/dropped'],
    honest: async ({ member }) => {
      await member.send([syn({ source: member.at.address, destination: HOST })])
    },
    async attack(stage) {
      const { member } = stage
      await member.send(
        range(3000).map((i) =>
          syn({ source: member.at.address, destination: DEAD, sourcePort: 2000 + i })
        ),
      )
      await stage.until(() => stage.dialling >= EXIT_LIMITS.dialsToOne, 'the bound')
      // The member itself gets to another place, and the neighbour to all.
      await member.connects(HOST, 7)
      await member.isServed()
    },
    holds({ diallingMost, served }) {
      assert.ok(diallingMost <= EXIT_LIMITS.dialsToOne + 2, `${diallingMost} half-open`)
      assert.ok(served.tunnel.stats().flows <= HALF_OPEN_TO_ONE_MAX + 2)
    },
  },
  {
    name: 'connections to dead places all over',
    says: ['exit/busy'],
    async attack(stage) {
      const { member } = stage
      await member.send(
        range(3000).map((i) =>
          syn({
            source: member.at.address,
            destination: `198.51.100.${1 + i % 250}`,
            sourcePort: 2000 + i,
            destinationPort: 1 + i,
          })
        ),
      )
      await stage.until(() => stage.codes().has('exit/busy'), 'the bound')
    },
    holds({ diallingMost, served }) {
      // The neighbour's own are beside it.
      assert.ok(diallingMost <= EXIT_LIMITS.dials + 2, `${diallingMost} half-open`)
      assert.ok(served.tunnel.stats().flows <= HALF_OPEN_MAX / 2 + 2)
    },
  },
  {
    name: 'place after place that no route names, so that the log fills',
    says: ['exit/denied'],
    options: LAN,
    async attack({ member }) {
      await member.send(
        range(1000).map((i) =>
          syn({
            source: member.at.address,
            destination: `203.0.113.${i % 250}`,
            sourcePort: 2000 + i,
            destinationPort: 1 + i,
          })
        ),
      )
      await member.connects(HOST, 7)
    },
    holds({ denials, dialled }) {
      assert.ok(denials >= 1 && denials <= 30, `told ${denials} times`)
      assert.not.ok(dialled.some((one) => one.startsWith('203.')))
    },
  },
  {
    name: 'UDP from more ports than one may have',
    says: [],
    honest: async ({ member }) => {
      for (const port of [4000, 4001, 4002]) await member.isServed(port)
    },
    async attack(stage) {
      const { member } = stage
      await member.send(
        range(3000).map((i) =>
          udp({ source: member.at.address, destination: HOST, sourcePort: 2000 + i })
        ),
      )
      // Told that it may not, by ICMP.
      const isTold = (one: Uint8Array): boolean => one[9] === 1 && one[20] === 3
      await stage.until(() => member.packets.some(isTold), 'a refusal')
      await member.isServed(2001)
      const flow = await stage.neighbour.bindDatagrams()
      const back = new Promise((resolve) => flow.handle({ message: resolve }))
      flow.send({ address: HOST, port: 53 }, utf8('neighbour'))
      await back
    },
    holds({ portsMost }) {
      assert.ok(portsMost <= EXIT_LIMITS.flows + 1, `${portsMost} ports`)
    },
  },
  {
    name: 'echoes without end',
    says: [],
    honest: async (stage) => {
      const { member } = stage
      await member.send([echo({ source: member.at.address, destination: HOST }, 1)])
      await stage.until(() => member.packets.some((one) => one[9] === 1), 'an echo')
    },
    async attack(stage) {
      const { member } = stage
      await member.send(
        range(3000).map((i) => echo({ source: member.at.address, destination: HOST }, i)),
      )
      await stage.neighbour.ping(HOST, { timeoutMs: 5000 })
    },
    holds({ pingingMost }) {
      assert.ok(pingingMost <= EXIT_LIMITS.pings + 1, `${pingingMost} echoes`)
    },
  },
]

const NAMES: Row[] = [
  {
    name: 'a name that leads to the exit itself',
    says: ['exit/denied'],
    async honest(stage) {
      stage.names.set('rebound.test', [HOST])
      const conn = await stage.neighbour.connect({ host: 'rebound.test', port: 7 })
      conn.abort()
    },
    async attack(stage) {
      for (const address of ['169.254.169.254', '127.0.0.1']) {
        stage.names.set('rebound.test', [address])
        await stage.neighbour.connect({ host: 'rebound.test', port: 80, timeoutMs: 1000 })
          .then((conn) => {
            conn.abort()
            throw new Error(`connected to ${address}`)
          }, () => {})
      }
    },
    holds: nothingLeft,
  },
  {
    name: 'questions that are none',
    says: [],
    async attack(stage) {
      const { member, served } = stage
      const destination = served.stockMembers[0]!.lease.serverFour
      const good = encodeDnsQuery({ id: 1, name: 'a.test', type: 'A' })
      const ask = (payload: Uint8Array): Uint8Array =>
        udp({ source: member.at.address, destination, destinationPort: 53, payload })
      await member.send(
        range(2000).map((i) => {
          if (i % 3 === 0) return ask(fast.randomBytes(i % 300))
          const bytes = good.slice(0, i % 5 === 0 ? i % good.length : good.length)
          if (bytes.length > 0) bytes[i % bytes.length] = i & 255
          return ask(bytes)
        }),
      )
      const before = member.packets.length
      await member.send([ask(good)])
      await stage.until(() => member.packets.length > before, 'an answer')
    },
  },
]

const RIGHTS: Row[] = [
  {
    name: 'going on after access was withdrawn',
    says: ['wireguard/unknownIndex'],
    async attack(stage) {
      const { member } = stage
      await member.isServed()
      const ends = { source: member.at.address, destination: HOST, destinationPort: 99 }
      await stage.withdraw()
      await member.send(range(100).flatMap(() => [udp(ends), syn(ends)]))
      assert.is(stage.portsOpen, 0, 'what it had open is closed')
    },
    holds: nothingLeft,
  },
  {
    name: 'coming again after access was withdrawn',
    says: ['wireguard/unknownPeer'],
    async attack(stage) {
      const { member } = stage
      await stage.withdraw()
      await member.send([udp({ source: member.at.address, destination: HOST })])
    },
    holds: nothingLeft,
  },
]

const TABLES = { SOURCES, DESTINATIONS, BETWEEN, PACKETS, LOADS, NAMES, RIGHTS }
/** Part of a group's name and a row's, to play those alone. */
const only = process.env['ROW'] ?? ''

async function play(row: Row): Promise<void> {
  for (const isHonest of [true, false]) {
    const stage = await MemberStage.open(row.options)
    try {
      await stage.neighbourIsServed()
      if (isHonest) {
        await (row.honest?.(stage) ?? stage.member.isServed())
        assert.equal([...stage.codes()], [], 'nothing is turned away without the attack')
      } else {
        await row.attack(stage)
        for (const code of row.says) await stage.until(() => stage.codes().has(code), code)
        await stage.neighbourIsServed()
        await row.holds?.(stage)
        const { restarts } = stage.served.tunnel.device.stats()
        assert.is(restarts, 0, 'the module went on')
        assert.not.ok([...stage.heard].some((code) => code.startsWith('problem')))
      }
    } finally {
      await stage.close()
    }
  }
}

for (const [group, rows] of Object.entries(TABLES)) {
  const test = suite(`hostile member, ${group.toLowerCase()}`)
  for (const row of rows) {
    if (`${group} ${row.name}`.includes(only)) test(row.name, () => play(row))
  }
  test.run()
}
