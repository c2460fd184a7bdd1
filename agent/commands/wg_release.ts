/** `sotto wg release`: takes a leased address back, and ends a stock client. */
import { TunnelError } from '../../core/errors.ts'
import { parseKey } from '../../core/key.ts'
import { command, isSet, JSON_FLAG } from '../cli/page.ts'
import { checkName } from '../cli/plan.ts'
import { columns, Screen } from '../cli/screen.ts'
import { Profile } from '../profile.ts'
import type { World } from '../world.ts'
import type { Lease } from '../wireguard/leases.ts'
import { networkLeases, stockClient } from '../wireguard/served_network.ts'
import { StockClients } from '../wireguard/stock_clients.ts'

interface ReleaseOptions {
  network: string
  who: string | undefined
  json: boolean
}

async function run({ network, who, json }: ReleaseOptions, world: World): Promise<number> {
  const screen = new Screen(world, { json })
  const profile = new Profile(world)
  const { public: identity32 } = await profile.identity()
  const leases = networkLeases(world, { profile, identity32, name: network, subnet: undefined })
  const all = await leases.list()
  const known = await profile.knownAgents().list()
  const nameOf = ({ client }: Lease): string => {
    const [key = '', number] = client.replace(/^stock:/, '').split('/')
    const name = known.find((pin) => pin.key === key)?.name ?? key
    return number === undefined ? name : `${name}/${number}`
  }
  if (who === undefined) return list(world, { all, nameOf, json })
  const stock = new StockClients(world, profile, network)
  const wasStock = await stock.remove(who)
  const wanted = all.filter((lease) =>
    lease.client === stockClient(who) || lease.client === who || nameOf(lease) === who ||
    lease.four === who
  )
  for (const { client } of wanted) {
    // One that was named by its address is ended as well.
    if (client.startsWith('stock:')) await stock.remove(client.slice('stock:'.length))
    await leases.release(client)
  }
  if (!wasStock && wanted.length === 0) {
    throw new TunnelError(
      'lease/unknown',
      `Cannot release "${who}": it has no address in ${network}`,
      {
        hint: `See who has: sotto wg release ${network}`,
      },
    )
  }
  const addresses = wanted.map(({ four }) => four)
  screen.tell(`released ${who}${addresses.length === 0 ? '' : `, ${addresses.join(', ')}`}`, {
    event: 'released',
    fields: { network, client: who, addresses },
  })
  return 0
}

function list(
  { terminal: { stdout, stderr } }: World,
  { all, nameOf, json }: { all: Lease[]; nameOf: (lease: Lease) => string; json: boolean },
): number {
  if (json) {
    for (const { client, four, six, sinceMs } of all) {
      const line = { event: 'lease', client, address: four, address6: six, since: sinceMs }
      stdout.write(`${JSON.stringify(line)}\n`)
    }
  } else if (all.length === 0) stderr.write('no address is leased\n')
  else {
    const rows = all.map((lease) => [
      nameOf(lease),
      lease.four,
      lease.six,
      new Date(lease.sinceMs).toISOString().slice(0, 10),
    ])
    stdout.write(columns(['WHO', 'ADDRESS', 'IPV6', 'SINCE'], rows, stdout))
  }
  return 0
}

export const releaseWg = command<ReleaseOptions>({
  page: {
    name: 'sotto wg release',
    summary: 'list leased addresses of a network, or take one back',
    args: ['NET', '[WHO]'],
    examples: [
      ['sotto wg release office', 'Who has which address.'],
      [
        'sotto wg release office laptop',
        'A stock client is out at once, and its key is worth nothing.',
      ],
    ],
    flags: [JSON_FLAG],
    more:
      `WHO is a pinned name, a KEY, a stock client, or an address. An agent that comes again gets an address
again; to keep it out: sotto access deny PEER wg`,
  },
  read: (given) => ({ network: given.args[0]!, who: given.args[1], json: isSet(given, 'json') }),
  check: ({ network, who }) => {
    checkName(network)
    if (who !== undefined && /^[a-z2-7]{52}$/.test(who)) parseKey(who)
  },
  run,
})
