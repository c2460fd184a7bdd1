/** `sotto access`: who may do what on this machine; nobody may do anything that no rule allows. */
import { TunnelError } from '../../core/errors.ts'
import { allow, checkPeer, deny, readService, SERVICES } from '../access.ts'
import type { AccessRule, Service } from '../access.ts'
import { printList } from '../cli/operator.ts'
import { command, isSet, JSON_FLAG, textOf } from '../cli/page.ts'
import type { Flag, Given } from '../cli/page.ts'
import { Profile } from '../profile.ts'
import type { World } from '../world.ts'

const WHO_FLAGS: readonly Flag[] = [
  {
    name: 'authority',
    value: 'NAME',
    help: 'In place of PEER: whoever this pinned authority vouches for.',
  },
  {
    name: 'labels',
    value: 'SELECTOR',
    without: 'any',
    help: 'Of those, the ones whose signed labels match, such as role=web,env!=prod.',
  },
]

const MORE = `Services: ${SERVICES.join(', ')}.
PEER is a pinned name, a KEY or a fingerprint. A name counts by the pins that a person made; one of
first use lets nobody in.`

interface AccessOptions {
  who: Omit<AccessRule, 'services'>
  services: Service[]
  json: boolean
}

export const listAccess = command<{ json: boolean }>({
  page: {
    name: 'sotto access list',
    summary: 'list who may do what here',
    examples: [
      ['sotto access list', 'Every rule, in order.'],
      ['sotto access list --json', 'The same for programs.'],
    ],
    flags: [JSON_FLAG],
  },
  read: (given) => ({ json: isSet(given, 'json') }),
  check() {},
  async run({ json }, world) {
    const profile = new Profile(world)
    printList(world, {
      items: (await profile.access()).map((rule) => ({ ...rule, who: whoWords(rule) })),
      heads: { WHO: 'who', SERVICES: 'services' },
      json,
      none: `nobody may do anything here; the rules are "access" in ${profile.settingsPath}`,
    })
    return 0
  },
})

export const allowAccess = command<AccessOptions>({
  page: {
    name: 'sotto access allow',
    summary: 'let a peer use services of this machine',
    args: ['PEER_OR_SERVICE', '[SERVICES...]'],
    examples: [
      [
        'sotto access allow alice connect a2a',
        'Alice may reach private endpoints and send messages.',
      ],
      [
        "sotto access allow 'a2a exec' --authority ops --labels role=deploy",
        'Whoever "ops" labelled so may run the program of "a2a listen --exec".',
      ],
    ],
    flags: [...WHO_FLAGS, JSON_FLAG],
    more: MORE,
  },
  read: readOptions,
  check: ({ services }) => needServices(services),
  run: async (options, world) => {
    const { who, services } = options
    await new Profile(world).changeAccess((rules) => ({
      rules: allow(rules, who, services),
      answer: undefined,
    }))
    tell(world, options, `${whoWords(who)} may use ${services.join(', ')}`)
    return 0
  },
})

export const denyAccess = command<AccessOptions>({
  page: {
    name: 'sotto access deny',
    summary: 'take services from a peer; all of them where none is named',
    args: ['PEER_OR_SERVICE', '[SERVICES...]'],
    examples: [
      ['sotto access deny alice a2a', 'No more messages from her.'],
      ['sotto access deny alice', 'Nothing any more.'],
    ],
    flags: [...WHO_FLAGS, JSON_FLAG],
    more: MORE,
  },
  read: readOptions,
  check() {},
  run: async (options, world) => {
    const { who, services } = options
    const taken = await new Profile(world).changeAccess((rules) => {
      const left = deny(rules, who, services)
      return { rules: left.rules, answer: left.taken }
    })
    if (taken === 0) {
      throw new TunnelError('access/unknown', `Cannot deny ${whoWords(who)}: no rule allows that`, {
        hint: 'See "sotto access list".',
      })
    }
    tell(
      world,
      options,
      `${whoWords(who)} may not use ${services.join(', ') || 'anything'} any more`,
    )
    return 0
  },
})

function readOptions(given: Given): AccessOptions {
  const authority = textOf(given, 'authority')
  const labels = textOf(given, 'labels')
  const [first, ...rest] = given.args as [string, ...string[]]
  if (labels !== undefined && authority === undefined) {
    throw new TunnelError('cli/conflict', 'Cannot use --labels without --authority', {
      hint: 'Only labels that an authority signed count.',
    })
  }
  const words = authority === undefined ? rest : [first, ...rest]
  return {
    who: authority === undefined
      ? { peer: checkPeer(first) }
      : { authority, ...(labels === undefined ? {} : { labels }) },
    services: words.map((word) => readService(word)),
    json: isSet(given, 'json'),
  }
}

function needServices(services: Service[]): void {
  if (services.length > 0) return
  throw new TunnelError('cli/usage', 'Cannot allow nothing: expected at least one service', {
    hint: `One of ${SERVICES.join(', ')}.`,
  })
}

function whoWords({ peer, authority, labels }: Omit<AccessRule, 'services'>): string {
  if (peer !== undefined) return peer
  return `those of ${authority}${labels === undefined ? '' : ` with ${labels}`}`
}

function tell(world: World, { who, services, json }: AccessOptions, sentence: string): void {
  const { stdout, stderr } = world.terminal
  if (json) stdout.write(`${JSON.stringify({ ...who, services })}\n`)
  else stderr.write(`${sentence}\n`)
}
