/** `sotto wg status`: networks that this profile serves or is in now, on this machine. */
import { command, isSet, JSON_FLAG } from '../cli/page.ts'
import { bytesWords, columns } from '../cli/screen.ts'
import { waitWords } from '../cli/screen.ts'
import { Profile } from '../profile.ts'
import type { World } from '../world.ts'
import { askMemberships } from '../wireguard/membership_control.ts'
import type { Line } from '../wireguard/membership_control.ts'

interface StatusOptions {
  network: string | undefined
  json: boolean
}

async function run({ network, json }: StatusOptions, world: World): Promise<number> {
  const { stdout, stderr } = world.terminal
  const all = await askMemberships(world, new Profile(world))
  const lines = network === undefined
    ? all
    : all.filter((line) =>
      (line['event'] === 'member' ? line['network'] : line['name']) === network
    )
  if (json) {
    for (const line of lines) stdout.write(`${JSON.stringify(line)}\n`)
    return 0
  }
  const of = (event: string): Line[] => lines.filter((line) => line['event'] === event)
  if (lines.length === 0) stderr.write('no private network is served or used here now\n')
  for (const serving of of('serving')) {
    const routes = serving['routes'] as string[]
    const udp = serving['udp'] === undefined ? '' : `, UDP port ${serving['udp']}`
    stdout.write(
      `serving ${serving['name']} as process ${serving['pid']}${udp}\n` +
        `leads to ${routes.join(', ') || 'nothing'}; ` +
        `${serving['connections']} connections, ${serving['flows']} UDP ports\n\n`,
    )
    const members = of('member').filter((one) => one['network'] === serving['name'])
    if (members.length > 0) {
      const rows = members.map((one) => [String(one['peer']), ...cells(world, one)])
      stdout.write(`${columns(['MEMBER', ...HEADS], rows, stdout)}\n`)
    }
  }
  if (of('joined').length > 0) {
    const rows = of('joined').map((one) => [
      String(one['name']),
      ...cells(world, { ...one, address: (one['addresses'] as string[])[0] }),
      one['interface'] === undefined
        ? String(one['pid'])
        : `${one['pid']}, interface ${one['interface']}`,
    ])
    stdout.write(columns(['NETWORK', ...HEADS, 'PROCESS'], rows, stdout))
  }
  return 0
}

const HEADS = ['ADDRESS', 'PATH', 'HANDSHAKE', 'RECEIVED', 'SENT']

function cells({ clock }: World, line: Line): string[] {
  const { address, path, handshake, received, sent } = line
  const ago = typeof handshake === 'number'
    ? `${waitWords(Math.max(0, clock.now() - handshake))} ago`
    : 'none yet'
  return [
    String(address ?? ''),
    String(path ?? 'none yet'),
    ago,
    bytesWords(Number(received)),
    bytesWords(Number(sent)),
  ]
}

export const statusWg = command<StatusOptions>({
  page: {
    name: 'sotto wg status',
    summary: 'show the private networks that are served or used here now',
    args: ['[NET]'],
    examples: [
      ['sotto wg status', 'Members, their ways and handshakes, and what has passed.'],
      ['sotto wg status office --json', 'One network, for programs.'],
    ],
    flags: [JSON_FLAG],
  },
  read: (given) => ({ network: given.args[0], json: isSet(given, 'json') }),
  check: () => {},
  run,
})
