/** `sotto peers`: pins, which identity is behind which name. */
import { isTunnelError, TunnelError } from '../../core/errors.ts'
import { fingerprint, isName, parseFingerprint, parseKey } from '../../core/key.ts'
import { allow, readService } from '../access.ts'
import type { Service } from '../access.ts'
import { printList } from '../cli/operator.ts'
import { command, isSet, JSON_FLAG, RELAY_FLAGS, textOf } from '../cli/page.ts'
import type { Command } from '../cli/page.ts'
import { readChoice } from '../cli/plan.ts'
import { Screen } from '../cli/screen.ts'
import { askOnline, askServing, askStatements, enquire } from '../enquiry.ts'
import { checkChoice, join } from '../join.ts'
import type { RelayChoice } from '../join.ts'
import { pinPrint } from '../known_agents.ts'
import type { KnownAgent } from '../known_agents.ts'
import { Profile } from '../profile.ts'
import { followedWords, Trust } from '../trust.ts'
import type { Uplink } from '../uplink.ts'
import type { World } from '../world.ts'

/** Pins about which the relay is asked. */
const ASKED_MAX = 256

const AUTHORITY_FLAG = {
  name: 'authority',
  help: 'The pin of an authority, which vouches for others.',
} as const

/** What the relay adds to a pin. */
interface Seen {
  online: boolean
  revoked: boolean
  /** What pinned authorities signed, by the name of each. */
  labels: Readonly<Record<string, string>>
  authorities: readonly string[]
}

function listing(name: string): Command {
  return command<{ choice: RelayChoice; json: boolean }>({
    page: {
      name,
      summary: 'list the pins',
      examples: [
        [name, 'Who is pinned, how, since when, and who of them is there now.'],
        [`${name} --json`, 'The same for programs.'],
      ],
      flags: [...RELAY_FLAGS, JSON_FLAG],
      more: `@NAME is an authority. LABELS are those that a pinned authority signed.
Where a relay is set it is asked who is there; the pins are what is written here, whatever it says.
A pin says who somebody is; what they may do says "sotto access".`,
    },
    read: (given) => ({ choice: readChoice(given), json: isSet(given, 'json') }),
    check: ({ choice }) => checkChoice(choice),
    run: runList,
  })
}

async function runList(
  { choice, json }: { choice: RelayChoice; json: boolean },
  world: World,
): Promise<number> {
  const profile = new Profile(world)
  const known = profile.knownAgents()
  const seen = (await known.list()).length === 0
    ? new Map<string, Seen>()
    : await look(world, { choice, json })
  const row = (pin: KnownAgent, kind: 'agent' | 'authority'): Record<string, unknown> => {
    const found = seen.get(`${pin.name} ${pin.key}`)
    return {
      kind,
      ...pin,
      fingerprint: pinPrint(world.crypto, pin),
      ...(found
        ? { online: found.online, labels: found.labels, authorities: found.authorities }
        : {}),
      ...(found?.revoked ? { revoked: true } : {}),
    }
  }
  const revoked = await known.revoked()
  const items = [
    ...(await known.list()).map((pin) => row(pin, 'agent')),
    ...(await known.authorities()).map((pin) => row(pin, 'authority')),
  ].map((item) => revoked.includes(String(item['key'])) ? { ...item, revoked: true } : item)
  const shown = (item: Record<string, unknown>): Record<string, unknown> => ({
    ...item,
    name: item['kind'] === 'authority' ? `@${item['name']}` : item['name'],
    verified: item['verified'] ? 'yes' : undefined,
    online: item['revoked']
      ? 'revoked'
      : item['online'] === undefined
      ? undefined
      : item['online']
      ? 'yes'
      : 'no',
    labels: Object.keys(item['labels'] ?? {}).length === 0 ? undefined : item['labels'],
  })
  printList(world, {
    items: json ? items : items.map(shown),
    heads: {
      NAME: 'name',
      FINGERPRINT: 'fingerprint',
      HOW: 'how',
      WHEN: 'when',
      VERIFIED: 'verified',
      ONLINE: 'online',
      LABELS: 'labels',
    },
    json,
    none: 'nobody is pinned',
  })
  return 0
}

/** What the relay says of each pin, by name and key; nothing where there is no relay. */
async function look(
  world: World,
  { choice, json }: { choice: RelayChoice; json: boolean },
): Promise<Map<string, Seen>> {
  const screen = new Screen(world, { json: false })
  const tell = (line: string): void => json ? undefined : screen.tell(line)
  try {
    const joining = await join(world, choice, tell)
    return await enquire(world, joining, (uplink) => lookThrough(world, { uplink, tell }))
  } catch (error) {
    if (!isTunnelError(error)) throw error
    if (error.code !== 'relay/none') tell(`the relay was not asked: ${error.message}`)
    return new Map()
  }
}

async function lookThrough(
  world: World,
  { uplink, tell }: { uplink: Uplink; tell(line: string): void },
): Promise<Map<string, Seen>> {
  const { crypto, clock } = world
  const profile = new Profile(world)
  const known = profile.knownAgents()
  const trust = new Trust({
    crypto,
    clock,
    known,
    withdrawals: profile.knownWithdrawals(),
    statements: (key) => askStatements(uplink, key),
    followed: (pins) => tell(followedWords(crypto, pins)),
  })
  const online = await askOnline(uplink)
  const seen = new Map<string, Seen>()
  for (const pin of (await known.list()).slice(0, ASKED_MAX)) {
    const { name, key } = pin
    const serving = isName(name) ? await askServing(uplink, name) : []
    const found = [...online, ...serving].find((one) =>
      one === key || fingerprint(crypto, parseKey(one)) === key
    )
    const whole = key.startsWith('SHA256:') ? found : key
    const entry: Seen = { online: found !== undefined, revoked: false, labels: {}, authorities: [] }
    if (whole !== undefined) {
      try {
        const { vouched } = await trust.view(whole)
        entry.labels = Object.assign({}, ...vouched.map(({ labels }) => labels))
        entry.authorities = vouched.map(({ authority }) => authority)
      } catch (error) {
        if (!isTunnelError(error)) throw error
        entry.revoked = error.code === 'trust/revoked'
        tell(`${name}: ${error.message}`)
      }
    }
    seen.set(`${name} ${key}`, entry)
  }
  return seen
}

export const peers = listing('sotto peers')
export const listPeers = listing('sotto peers list')

interface TrustOptions {
  name: string
  key: string
  services: Service[]
  authority: boolean
  json: boolean
}

export const trustPeer = command<TrustOptions>({
  page: {
    name: 'sotto peers trust',
    summary: 'pin an identity to a name',
    args: ['NAME', 'KEY'],
    examples: [
      [
        'sotto peers trust alice cbi4thcgdpxj3nxkahjxwzowoylykvd2z2swdcwcdpmw6qhjjrma ' +
        '--allow connect',
        'The KEY as "sotto identity" prints it on her machine; she may reach private endpoints.',
      ],
      [
        'sotto peers trust db SHA256:aX9nRq0hGZ1rXyUO2h5NQWjdmkSDJ8sfT0wRHEuPTgk',
        'Whoever serves the endpoint "db", by fingerprint, before the first "sotto connect db".',
      ],
      [
        'sotto peers trust --authority ops cbi4thcgdpxj3nxkahjxwzowoylykvd2z2swdcwcdpmw6qhjjrma',
        'Whomever "ops" vouches for is as good as pinned.',
      ],
    ],
    flags: [
      {
        name: 'allow',
        value: 'SERVICES',
        without: 'nothing',
        help: 'What they may do here too, such as connect,a2a; see "sotto access".',
      },
      AUTHORITY_FLAG,
      JSON_FLAG,
    ],
  },
  read: (given) => ({
    name: given.args[0]!,
    key: given.args[1]!,
    services: (textOf(given, 'allow')?.split(',') ?? []).map((word) => readService(word.trim())),
    authority: isSet(given, 'authority'),
    json: isSet(given, 'json'),
  }),
  check({ key }) {
    try {
      if (key.startsWith('SHA256:')) parseFingerprint(key)
      else parseKey(key)
    } catch (cause) {
      throw new TunnelError(
        'cli/key',
        `Cannot pin "${key.slice(0, 60)}": expected a KEY of 52 letters and digits, or SHA256:…`,
        { hint: 'The other side prints it by "sotto identity".', cause },
      )
    }
  },
  async run({ name, key, services, authority, json }, world) {
    const profile = new Profile(world)
    const known = profile.knownAgents()
    const print = pinPrint(world.crypto, { key })
    const gone = await known.revoked()
    if (gone.some((one) => fingerprint(world.crypto, parseKey(one)) === print)) {
      throw new TunnelError('trust/revoked', `Cannot pin ${print}: it has revoked itself`, {
        hint: 'Ask its owner for the identity of now.',
      })
    }
    await known.trust(name, key, { authority })
    if (services.length > 0) {
      const who = authority ? { authority: name } : { peer: name }
      await profile.changeAccess((rules) => ({
        rules: allow(rules, who, services),
        answer: undefined,
      }))
    }
    const { stdout, stderr } = world.terminal
    const what = authority ? 'the authority ' : ''
    if (json) {
      stdout.write(`${JSON.stringify({ name, key, fingerprint: print, services, authority })}\n`)
    } else stderr.write(`pinned ${what}${name} to ${print}\n`)
    if (!json && services.length > 0) {
      stderr.write(`${authority ? `those of ${name}` : name} may use ${services.join(', ')}\n`)
    }
    return 0
  },
})

export const forgetPeer = command<{ name: string; authority: boolean; json: boolean }>({
  page: {
    name: 'sotto peers forget',
    summary: 'remove the pins of a name',
    args: ['NAME'],
    examples: [
      ['sotto peers forget alice', 'Rules that name her let nobody in any more.'],
      ['sotto peers forget db', 'The next "sotto connect db" pins whoever serves it then.'],
    ],
    flags: [AUTHORITY_FLAG, JSON_FLAG],
  },
  read: (given) => ({
    name: given.args[0]!,
    authority: isSet(given, 'authority'),
    json: isSet(given, 'json'),
  }),
  check() {},
  async run({ name, authority, json }, world) {
    const removed = await new Profile(world).knownAgents().forget(name, { authority })
    const { stdout, stderr } = world.terminal
    if (json) stdout.write(`${JSON.stringify({ name, removed })}\n`)
    else if (removed > 0) stderr.write(`forgot ${name}\n`)
    if (removed > 0) return 0
    throw new TunnelError('peers/unknown', `Cannot forget "${name}": it is not pinned`, {
      hint: 'See "sotto peers".',
    })
  },
})
