/** `sotto wg ping`: echoes of a host in a private network. */
import { asTunnelError, TunnelError } from '../../core/errors.ts'
import { parseAddress } from '../../core/address.ts'
import { checkNetwork, inNetwork, RELAY_ONLY_FLAG } from '../cli/network.ts'
import { command, isSet, JSON_FLAG, numberOf, RELAY_FLAGS } from '../cli/page.ts'
import type { Given, Page } from '../cli/page.ts'
import { durationOf, readChoice } from '../cli/plan.ts'
import type { Screen } from '../cli/screen.ts'
import { checkChoice } from '../join.ts'
import type { RelayChoice } from '../join.ts'
import type { StackNetwork } from '../wireguard/stack_network.ts'
import { hostName } from '../wireguard/socks.ts'
import type { World } from '../world.ts'
import { utf8 } from '../../core/bytes.ts'

const COUNT = 4
const COUNT_MAX = 10_000
const TIMEOUT_MS = 5_000
const BETWEEN_MS = 1_000
const BYTES = 56
const BYTES_MAX = 1_400

const page: Page = {
  name: 'sotto wg ping',
  summary: 'see whether a host of a private network answers',
  args: ['NET', 'HOST'],
  examples: [
    ['sotto wg ping office 192.168.1.1', 'Four echoes, one a second.'],
    ['sotto wg ping office printer.lan --count 1', 'A name, as the network knows it.'],
  ],
  flags: [
    { name: 'count', value: 'COUNT', without: `${COUNT}`, help: 'How many echoes.' },
    { name: 'timeout', value: 'TIME', without: '5s', help: 'For one echo.' },
    { name: 'size', value: 'BYTES', without: `${BYTES}`, help: `Of one echo, up to ${BYTES_MAX}.` },
    RELAY_ONLY_FLAG,
    ...RELAY_FLAGS,
    JSON_FLAG,
  ],
  more: 'Exit codes: 0 an echo came, 1 none did, or anything else.',
}

interface PingOptions {
  name: string
  host: string
  count: number
  timeoutMs: number
  bytes: number
  direct: boolean
  choice: RelayChoice
  json: boolean
}

function read(given: Given): PingOptions {
  return {
    name: given.args[0]!,
    host: given.args[1]!,
    count: numberOf(given, 'count', { min: 1, max: COUNT_MAX }) ?? COUNT,
    timeoutMs: durationOf(given, 'timeout') ?? TIMEOUT_MS,
    bytes: numberOf(given, 'size', { min: 0, max: BYTES_MAX }) ?? BYTES,
    direct: !isSet(given, 'relay-only'),
    choice: readChoice(given),
    json: isSet(given, 'json'),
  }
}

function check({ name, host, choice }: PingOptions): void {
  checkChoice(choice)
  checkNetwork(name)
  if (hostName(utf8(host)) !== undefined) return
  throw new TunnelError(
    'cli/host',
    `Cannot ping "${host.slice(0, 80)}": expected an address or a name, such as 192.168.1.1`,
  )
}

async function run(options: PingOptions, world: World): Promise<number> {
  return await inNetwork(world, options, async ({ network }, screen) => {
    const { host, count } = options
    const [address = host] = parseAddress(host) ? [host] : await network.resolve(host)
    const times: number[] = []
    for (let number = 1; number <= count; number++) {
      const startedMs = world.clock.monotonic()
      const ms = await echo({ network, screen, address, number }, options)
      if (ms !== undefined) times.push(ms)
      const leftMs = BETWEEN_MS - (world.clock.monotonic() - startedMs)
      if (number < count && leftMs > 0) {
        await new Promise<void>((resolve) => void world.clock.after(leftMs, resolve))
      }
    }
    const fastest = times.length === 0 ? '' : `, fastest ${Math.min(...times).toFixed(1)} ms`
    screen.tell(`${times.length} of ${count} answered${fastest}`, {
      event: 'summary',
      fields: { sent: count, received: times.length },
      again: true,
    })
    return times.length > 0 ? 0 : 1
  })
}

async function echo(
  { network, screen, address, number }: {
    network: StackNetwork
    screen: Screen
    address: string
    number: number
  },
  { timeoutMs, bytes }: PingOptions,
): Promise<number | undefined> {
  try {
    const ms = await network.ping(address, { timeoutMs, bytes })
    screen.show('echo', [
      { name: 'address', value: address, line: `${address}  ${number}  ${ms.toFixed(1)} ms` },
      { name: 'number', value: number },
      { name: 'ms', value: Number(ms.toFixed(3)) },
    ])
    return ms
  } catch (error) {
    const family = asTunnelError(error, 'net/unreachable')
    if (family.code !== 'net/timeout') throw family
    screen.tell(family.message, { event: 'none', fields: { address, number }, again: true })
    return undefined
  }
}

export const pingWg = command({ page, read, check, run })
