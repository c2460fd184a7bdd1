/** `sotto udp`: a UDP port of the relay onto a local service, for protocols with encryption of their own. */
import { TunnelError } from '../../core/errors.ts'
import { command, JSON_FLAG, numberOf, RELAY_FLAGS } from '../cli/page.ts'
import type { Given, Page } from '../cli/page.ts'
import {
  checkTunnel,
  defaultName,
  E2EE_FLAG,
  LABEL_FLAG,
  NAME_FLAG,
  PLAIN_FLAG,
  readTunnel,
} from '../cli/plan.ts'
import type { TunnelChoice } from '../cli/plan.ts'
import { publish } from '../cli/publish.ts'
import { Screen } from '../cli/screen.ts'
import { parseUpstream } from '../forward.ts'
import { join } from '../join.ts'
import type { World } from '../world.ts'

const page: Page = {
  name: 'sotto udp',
  summary: 'open a UDP port of the relay onto a local service',
  args: ['UPSTREAM'],
  examples: [
    [
      'sotto udp 51820 --e2ee=false --public-port 20820',
      'WireGuard on this machine: its packets are encrypted by itself.',
    ],
    ['sotto udp 10.0.0.7:9000 --e2ee=false --json', 'Another machine, at any free port.'],
  ],
  flags: [
    { ...NAME_FLAG, help: 'What the port is called on the relay; reserved to you on first use.' },
    {
      ...E2EE_FLAG,
      without: 'none',
      help: 'Must be false: nothing is added to the packets, so say that you know.',
    },
    {
      name: 'public-port',
      value: 'PORT',
      without: 'any free one',
      help: "The relay's port for it.",
    },
    LABEL_FLAG,
    ...RELAY_FLAGS,
    PLAIN_FLAG,
    JSON_FLAG,
  ],
  more: 'UPSTREAM is 51820 or host:port.',
}

export interface UdpOptions extends TunnelChoice {
  publicPort: number | undefined
}

function read(given: Given): UdpOptions {
  return {
    ...readTunnel(given),
    publicPort: numberOf(given, 'public-port', { min: 1, max: 65_535 }),
  }
}

function check(options: UdpOptions): void {
  checkTunnel(options)
  if (options.e2ee) {
    throw new TunnelError(
      'cli/e2ee',
      'Cannot open a UDP port end to end encrypted: packets pass the relay as they are',
      { hint: 'Add --e2ee=false if the protocol brings its own encryption, as WireGuard does.' },
    )
  }
  if (parseUpstream(options.upstream).kind !== 'tcp') {
    throw new TunnelError(
      'upstream/format',
      `Cannot send packets to "${options.upstream}": expected a port or host:port`,
    )
  }
}

async function run(options: UdpOptions, world: World): Promise<number> {
  const screen = new Screen(world, options)
  const joining = await join(world, options.choice, (line) => screen.tell(line))
  const upstream = parseUpstream(options.upstream)
  return await publish(world, {
    name: options.name ?? defaultName(upstream, joining.identity),
    kind: 'udp',
    mode: 'raw',
    port: options.publicPort ?? 0,
    upstream,
  }, { joining, screen })
}

export const udp = command({ page, read, check, run })
