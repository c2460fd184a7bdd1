/** `sotto wg forward`: fixed ports of this machine onto places of a private network, and the reverse. */
import { asTunnelError, TunnelError } from '../../core/errors.ts'
import { checkNetwork, FORWARD_FLAGS, inNetwork, readForwards, stopped } from '../cli/network.ts'
import { command, isSet, JSON_FLAG, RELAY_FLAGS } from '../cli/page.ts'
import type { Given, Page } from '../cli/page.ts'
import { RELAY_ONLY_FLAG } from '../cli/network.ts'
import { readChoice } from '../cli/plan.ts'
import { checkChoice } from '../join.ts'
import type { RelayChoice } from '../join.ts'
import { placeText } from '../wireguard/network.ts'
import { openForwards } from '../wireguard/port_forward.ts'
import type { Forward, OpenForward } from '../wireguard/port_forward.ts'
import type { World } from '../world.ts'

const page: Page = {
  name: 'sotto wg forward',
  summary: 'forward ports into a private network, and out of it',
  args: ['NET'],
  examples: [
    [
      'sotto wg forward office -L 5432:db.internal:5432 -U 53:10.0.0.53:53',
      'A database and a DNS server of the network as ports of this machine.',
    ],
    [
      'sotto wg forward office -R 8080:localhost:3000',
      'Port 8080 of our address in the network leads to port 3000 here, for whom the serving side lets: -L or --between there.',
    ],
  ],
  flags: [
    ...FORWARD_FLAGS,
    RELAY_ONLY_FLAG,
    ...RELAY_FLAGS,
    JSON_FLAG,
  ],
  more: 'Without ADDRESS a port is taken on 127.0.0.1; * is all addresses of this machine.',
}

interface ForwardOptions {
  name: string
  forwards: Forward[]
  direct: boolean
  choice: RelayChoice
  json: boolean
}

function read(given: Given): ForwardOptions {
  return {
    name: given.args[0]!,
    forwards: readForwards(given),
    direct: !isSet(given, 'relay-only'),
    choice: readChoice(given),
    json: isSet(given, 'json'),
  }
}

function check({ name, forwards, choice }: ForwardOptions): void {
  checkChoice(choice)
  checkNetwork(name)
  if (forwards.length > 0) return
  throw new TunnelError('cli/usage', 'Cannot forward nothing: expected -L, -U or -R', {
    hint: 'Such as -L 5432:db.internal:5432.',
  })
}

async function run(options: ForwardOptions, world: World): Promise<number> {
  return await inNetwork(world, options, async (joined, screen) => {
    const { net, clock, wireguard } = world
    const { network } = joined
    const ports = { net, clock, network, bindUdp: wireguard.bindUdp }
    const open = await openForwards({
      ...ports,
      told: (_, error) => screen.trouble(asTunnelError(error, 'net/failed')),
    }, options.forwards)
    try {
      const own = network.localAddresses[0] ?? ''
      screen.tell(`in the network ${joined.name} as ${own}`, {
        event: 'listening',
        fields: { network: joined.name, address: own, forwards: open.map(fields) },
      })
      for (const one of open) screen.print([words(one, own)])
      screen.follow(() => `${open.reduce((sum, { active }) => sum + active, 0)} open`)
      return await stopped(world)
    } finally {
      for (const one of open) await one.close()
    }
  })
}

function fields({ forward: { kind, listen, to }, port }: OpenForward): object {
  return { kind, listen: placeText({ ...listen, port }), to: placeText(to) }
}

function words({ forward: { kind, listen, to }, port }: OpenForward, own: string): string {
  const place = placeText({ host: kind === 'reverse' ? own : listen.host, port })
  return `${kind === 'udp' ? 'UDP ' : 'TCP '} ${place}  leads to ${placeText(to)}`
}

export const forwardWg = command({ page, read, check, run })
