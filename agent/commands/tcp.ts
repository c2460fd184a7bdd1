/** `sotto tcp`: a local TCP service, private to chosen agents unless said otherwise. */
import { TunnelError } from '../../core/errors.ts'
import { fingerprint, formatCertificateFingerprint, parseKey } from '../../core/key.ts'
import { command, isSet, JSON_FLAG, listOf, numberOf, RELAY_FLAGS } from '../cli/page.ts'
import type { Given, Page } from '../cli/page.ts'
import {
  checkTunnel,
  defaultName,
  E2EE_FLAG,
  LABEL_FLAG,
  NAME_FLAG,
  PLAIN_FLAG,
  PROXY_FLAG,
  proxyOf,
  readTunnel,
} from '../cli/plan.ts'
import type { TunnelChoice } from '../cli/plan.ts'
import { publish } from '../cli/publish.ts'
import type { Plan } from '../cli/publish.ts'
import { Screen } from '../cli/screen.ts'
import type { Fact } from '../cli/screen.ts'
import type { Agent } from '../agent.ts'
import { askStatements } from '../enquiry.ts'
import { parseUpstream } from '../forward.ts'
import { checkAllow, Guests } from '../guests.ts'
import type { Knock } from '../guests.ts'
import { join } from '../join.ts'
import type { Joining } from '../join.ts'
import { RelayApi } from '../relay_api.ts'
import { followedWords, Trust } from '../trust.ts'
import type { World } from '../world.ts'

const page: Page = {
  name: 'sotto tcp',
  summary: 'let chosen agents, or anybody, reach a local TCP service',
  args: ['UPSTREAM'],
  examples: [
    [
      'sotto tcp 5432 --name db --allow alice',
      'A database for the agent pinned as "alice", who types: sotto connect db',
    ],
    [
      'sotto tcp 22 --e2ee=false --public-port 20022',
      'An SSH server at a port of the relay: its protocol is encrypted by itself.',
    ],
  ],
  flags: [
    NAME_FLAG,
    {
      name: 'allow',
      value: 'WHO',
      many: true,
      without: 'the rules of "sotto access" alone',
      help: 'A KEY, a fingerprint, or a pinned name that may come in too.',
    },
    { name: 'public', help: 'Let any TLS client in, such as psql with sslmode.' },
    {
      ...E2EE_FLAG,
      help: 'Whether TLS ends in this agent; false: a raw public port, nothing added.',
    },
    {
      name: 'public-port',
      value: 'PORT',
      without: 'any free one',
      help: "The relay's port for it, with --e2ee=false.",
    },
    PROXY_FLAG,
    LABEL_FLAG,
    ...RELAY_FLAGS,
    PLAIN_FLAG,
    JSON_FLAG,
  ],
  more: `UPSTREAM is 5432, host:port or unix:/path.
Let in are those whom "sotto access allow PEER connect" allows, as soon as it does, and those whom
--allow names, while this runs. A pin alone lets nobody in.`,
}

export interface TcpOptions extends TunnelChoice {
  allow: string[]
  open: boolean
  publicPort: number | undefined
  proxyProtocol: 'v1' | 'v2' | undefined
}

function read(given: Given): TcpOptions {
  return {
    ...readTunnel(given),
    allow: listOf(given, 'allow'),
    open: isSet(given, 'public'),
    publicPort: numberOf(given, 'public-port', { min: 1, max: 65_535 }),
    proxyProtocol: proxyOf(given),
  }
}

function check(options: TcpOptions): void {
  const { e2ee, allow, open, publicPort } = options
  checkTunnel(options)
  for (const words of allow) checkAllow(words)
  const conflict = (words: string, hint: string): TunnelError =>
    new TunnelError('cli/conflict', `Cannot use ${words}`, { hint })
  if (allow.length > 0 && open) {
    throw conflict(
      '--allow together with --public: anybody comes in then',
      'Leave out one of them.',
    )
  }
  if (!e2ee && (allow.length > 0 || open)) {
    throw conflict(
      `${open ? '--public' : '--allow'} together with --e2ee=false: a raw port knows nobody`,
      'Leave out --e2ee=false; others then reach it by "sotto connect".',
    )
  }
  if (e2ee && publicPort !== undefined) {
    throw conflict(
      '--public-port alone: verified endpoints are reached by name',
      'Add --e2ee=false if the protocol brings its own encryption.',
    )
  }
}

async function run(options: TcpOptions, world: World): Promise<number> {
  const screen = new Screen(world, options)
  const joining = await join(world, options.choice, (line) => screen.tell(line))
  const upstream = parseUpstream(options.upstream)
  const { e2ee, open, allow, proxyProtocol, publicPort = 0 } = options
  const plan: Plan = {
    name: options.name ?? defaultName(upstream, joining.identity),
    kind: 'tcp',
    mode: e2ee ? 'verified' : 'raw',
    port: publicPort,
    upstream,
    ...(proxyProtocol ? { proxyProtocol } : {}),
  }
  if (!e2ee) return await publish(world, plan, { joining, screen })
  if (open) {
    const facts = (): Fact[] => [
      { name: 'admits', value: 'anybody', line: 'admits      any TLS client' },
    ]
    return await publish(world, { ...plan, facts }, { joining, screen })
  }
  let uplink: Agent['uplink'] | undefined
  const { profile } = joining
  const guests = new Guests(world, {
    joining,
    api: new RelayApi(world, joining),
    trust: new Trust({
      crypto: world.crypto,
      clock: world.clock,
      known: profile.knownAgents(),
      withdrawals: profile.knownWithdrawals(),
      statements: (key) => uplink?.up ? askStatements(uplink, key) : Promise.resolve([]),
      followed: (pins) => screen.tell(followedWords(world.crypto, pins)),
    }),
    allow,
    onKnock: (knock) => tellKnock(world, { knock, screen, name: plan.name }),
    onProblem: (error) => screen.trouble(error),
  })
  await guests.start()
  try {
    return await publish(guests.watching(), {
      ...plan,
      admits: (certificate) => guests.admits(certificate),
      onAgent: (agent) => void (uplink = agent.uplink),
      onKnock: (knock) => void guests.knocked(knock),
      onUp: async () => {
        guests.refresh()
        await guests.settled()
      },
      facts: () => privateFacts(world, { joining, name: plan.name, guests }),
    }, { joining, screen })
  } finally {
    guests.close()
  }
}

function privateFacts(
  { crypto }: World,
  { joining, name, guests }: { joining: Joining; name: string; guests: Guests },
): Fact[] {
  const print = fingerprint(crypto, joining.identity.public)
  // One is this identity itself.
  const others = guests.size - 1
  const words = [
    ...(others === 0 ? [] : [others === 1 ? '1 identity' : `${others} identities`]),
    ...guests.authorities.map((authority) => `those of ${authority}`),
  ]
  return [
    { name: 'admits', value: others, line: `admits      ${words.join(', ') || 'nobody else yet'}` },
    { name: 'connect', value: `sotto connect ${name}`, line: `identity    ${print}\n` },
    { name: 'identity', value: print, line: `reached by: sotto connect ${name}`, whole: true },
  ]
}

/** Who knocked, and the command that would let them in. */
function tellKnock(
  { crypto }: World,
  { knock, screen, name }: { knock: Knock; screen: Screen; name: string },
): void {
  const { key, name: pinned, certificate, address } = knock
  const from = address === '' ? '' : ` from ${address}`
  const shown = certificate && formatCertificateFingerprint(certificate)
  const fields = {
    name,
    address,
    ...(key ? { key } : {}),
    ...(shown ? { certificate: shown } : {}),
  }
  if (key !== undefined) {
    const called = pinned ?? `peer-${key.slice(0, 6)}`
    const pin = pinned === undefined ? `sotto peers trust ${called} ${key} && ` : ''
    screen.tell(`${fingerprint(crypto, parseKey(key))} knocked${from} and was not let in`, {
      hint: `To let them in: ${pin}sotto access allow ${called} connect`,
      event: 'knock',
      fields,
    })
  } else if (shown !== undefined) {
    screen.tell(`A stranger knocked${from} and was not let in; no passport names its certificate`, {
      hint: `To let them in: run this again with --allow ${shown}`,
      event: 'knock',
      fields,
    })
  } else {
    screen.tell(`A client without a certificate knocked${from} and was not let in`, {
      hint: `Agents come in by "sotto connect ${name}"; --public lets in any TLS client.`,
      event: 'knock',
      fields,
    })
  }
}

export const tcp = command({ page, read, check, run })
