/** `sotto status`: this agent, its relay, and what is served there under its scope now. */
import { asTunnelError } from '../../core/errors.ts'
import type { TunnelError } from '../../core/errors.ts'
import { fingerprint, formatKey } from '../../core/key.ts'
import { command, isSet, JSON_FLAG, RELAY_FLAGS } from '../cli/page.ts'
import { readChoice } from '../cli/plan.ts'
import { runningProcesses } from '../cli/running.ts'
import type { Running } from '../cli/running.ts'
import { columns, printableLines, Screen } from '../cli/screen.ts'
import type { Fact } from '../cli/screen.ts'
import { checkChoice, join } from '../join.ts'
import type { Joining, RelayChoice } from '../join.ts'
import { Profile } from '../profile.ts'
import { RelayApi } from '../relay_api.ts'
import type { TerminalOutput, World } from '../world.ts'

/** What the screen sets in at a terminal. */
const INDENT = '  '

interface StatusOptions {
  choice: RelayChoice
  json: boolean
}

interface Seen {
  relay: Record<string, unknown>
  grant: Record<string, unknown>
  agents: Record<string, unknown>[]
}

async function run({ choice, json }: StatusOptions, world: World): Promise<number> {
  const screen = new Screen(world, { json })
  const running = await runningProcesses(world)
  showRunning(world, running, json)
  if (running.length > 0 && !await knowsRelay(world, choice)) return 0
  const joining = await join(world, choice, (line) => screen.tell(line))
  const print = fingerprint(world.crypto, joining.identity.public)
  const key = formatKey(joining.identity.public)
  let seen: Seen | TunnelError
  try {
    seen = await look(world, joining)
  } catch (error) {
    seen = asTunnelError(error, 'relay/unreachable')
  }
  const facts: Fact[] = [
    { name: 'fingerprint', value: print, line: `identity   ${print}` },
    { name: 'key', value: key },
    { name: 'relay', value: joining.relay.origin, line: `relay      ${joining.relay.origin}` },
  ]
  if (seen instanceof Error) {
    screen.show('status', [
      ...facts,
      { name: 'reachable', value: 'no', line: 'state      no answer' },
    ])
    throw seen
  }
  const { relay, grant, agents } = seen
  const served: (Record<string, unknown> & { endpoint: string; own: boolean })[] = agents.flatMap(
    (agent) => {
      const endpoints = Array.isArray(agent['endpoints']) ? agent['endpoints'] as string[] : []
      return endpoints.map((endpoint) => ({ ...agent, endpoint, own: agent['key'] === key }))
    },
  )
  screen.show('status', [
    ...facts,
    {
      name: 'relayFingerprint',
      value: String(relay['fingerprint']),
      line: `           ${relay['fingerprint']}`,
    },
    {
      name: 'relayVersion',
      value: String(relay['version']),
      line: `version    ${relay['version']} on ${relay['runtime']}`,
    },
    { name: 'scope', value: String(grant['scope']), line: `scope      ${grant['scope']}` },
    { name: 'endpoints', value: served.length },
  ])
  const { stdout, stderr } = world.terminal
  if (json) {
    for (const one of served) stdout.write(`${JSON.stringify({ event: 'endpoint', ...one })}\n`)
  } else if (served.length === 0) stderr.write('nothing is being served\n')
  else {
    stdout.write(table(
      ['ENDPOINT', 'AGENT', 'ADDRESS', 'SINCE', 'STREAMS', 'BULK'],
      served.map((one) => [
        one.endpoint,
        one.own ? 'this identity' : String(one['key']).slice(0, 12),
        String(one['address']),
        String(one['since']).slice(0, 16).replace('T', ' '),
        String(one['streams']),
        String(one['bulkIdle']),
      ]),
      stdout,
    ))
  }
  return 0
}

/** At a terminal as far in as the lines of the screen. */
function table(
  heads: readonly string[],
  rows: readonly (readonly string[])[],
  { isTTY, columns: width }: TerminalOutput,
): string {
  const words = columns(heads, rows, { isTTY, columns: width - INDENT.length })
  return isTTY ? words.replace(/^(?=.)/gm, INDENT) : words
}

/** Else the file of what runs names the relay, and what runs has said how it stands. */
async function knowsRelay(world: World, { relay }: RelayChoice): Promise<boolean> {
  if (relay !== undefined || world.env['SOTTO_RELAY']) return true
  return (await new Profile(world).settings()).relay !== undefined
}

/** Each "sotto up" of this profile, and its tunnels. */
function showRunning({ terminal }: World, running: readonly Running[], json: boolean): void {
  const { stdout } = terminal
  for (const { process, tunnels } of running) {
    if (json) {
      stdout.write(`${JSON.stringify({ event: 'process', ...process })}\n`)
      for (const one of tunnels) stdout.write(`${JSON.stringify({ event: 'tunnel', ...one })}\n`)
      continue
    }
    const { config, pid, link, relay } = process
    const reason = process['reason'] === undefined ? '' : ` (${process['reason']})`
    const gap = stdout.isTTY ? INDENT : ''
    stdout.write(printableLines(
      `${gap}running    ${config} as process ${pid}\n${gap}link       ${link}${reason}, to ${relay}\n\n`,
    ))
    const rows = tunnels.map((one) => [
      String(one['tunnel']),
      String(one['state']),
      String(one['url'] ?? (one['mode'] === 'verified' ? `sotto connect ${one['name']}` : '')),
      String(one['upstream']),
      `${one['visitors']}/${one['total']}`,
    ])
    stdout.write(table(['TUNNEL', 'STATE', 'ADDRESS', 'LEADS TO', 'VISITORS'], rows, stdout))
    for (const one of tunnels) {
      const error = one['error'] as { message?: unknown } | undefined
      if (error) stdout.write(printableLines(`${one['tunnel']}: ${error.message}\n`))
    }
    stdout.write('\n')
  }
}

async function look(world: World, joining: Joining): Promise<Seen> {
  const { credential } = joining
  const secret = 'secret' in credential ? credential.secret : undefined
  const api = new RelayApi(world, joining, secret)
  const relay = await api.call('GET', '/relay') as Seen['relay']
  const grant = await api.call('GET', '/grant') as Seen['grant']
  return { relay, grant, agents: await api.list('/agents') }
}

export const status = command<StatusOptions>({
  page: {
    name: 'sotto status',
    summary: 'show the relay, the identity and what is being served',
    examples: [
      ['sotto status', 'The relay of the profile, and the endpoints of your scope.'],
      ['sotto status --relay https://relay.example --json', 'Another relay, for programs.'],
    ],
    flags: [...RELAY_FLAGS, JSON_FLAG],
  },
  read: (given) => ({ choice: readChoice(given), json: isSet(given, 'json') }),
  check: ({ choice }) => checkChoice(choice),
  run,
})
