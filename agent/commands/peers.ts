/** `sotto peers`: pins, which identity is behind which name. */
import { TunnelError } from '../../core/errors.ts'
import { fingerprint, parseKey } from '../../core/key.ts'
import { printList } from '../cli/operator.ts'
import { command, isSet, JSON_FLAG } from '../cli/page.ts'
import { pinPrint } from '../known_agents.ts'
import { Profile } from '../profile.ts'

export const listPeers = command<{ json: boolean }>({
  page: {
    name: 'sotto peers list',
    summary: 'list the pins',
    examples: [
      ['sotto peers list', 'Who is pinned, how, and since when.'],
      ['sotto peers list --json', 'The same for programs.'],
    ],
    flags: [JSON_FLAG],
    more:
      'Pins made by "first-use" say who serves a name; the others are also let into your endpoints.',
  },
  read: (given) => ({ json: isSet(given, 'json') }),
  check() {},
  async run({ json }, world) {
    const pins = await new Profile(world).knownAgents().list()
    printList(world, {
      items: pins.map((pin) => ({
        ...pin,
        fingerprint: pinPrint(world.crypto, pin),
      })),
      heads: { NAME: 'name', FINGERPRINT: 'fingerprint', HOW: 'how', WHEN: 'when', KEY: 'key' },
      json,
      none: 'nobody is pinned',
    })
    return 0
  },
})

interface TrustOptions {
  name: string
  key: string
  json: boolean
}

export const trustPeer = command<TrustOptions>({
  page: {
    name: 'sotto peers trust',
    summary: 'pin an identity to a name, and let it into private endpoints',
    args: ['NAME', 'KEY'],
    examples: [
      [
        'sotto peers trust alice cbi4thcgdpxj3nxkahjxwzowoylykvd2z2swdcwcdpmw6qhjjrma',
        'The KEY as "sotto identity" prints it on her machine.',
      ],
      [
        'sotto peers trust db cbi4thcgdpxj3nxkahjxwzowoylykvd2z2swdcwcdpmw6qhjjrma',
        'Whoever serves the endpoint "db", before the first "sotto connect db".',
      ],
    ],
    flags: [JSON_FLAG],
  },
  read: (given) => ({ name: given.args[0]!, key: given.args[1]!, json: isSet(given, 'json') }),
  check({ key }) {
    try {
      parseKey(key)
    } catch (cause) {
      throw new TunnelError(
        'cli/key',
        `Cannot pin "${key.slice(0, 60)}": expected a KEY of 52 letters and digits`,
        { hint: 'The other side prints it by "sotto identity".', cause },
      )
    }
  },
  async run({ name, key, json }, world) {
    await new Profile(world).knownAgents().trust(name, key)
    const print = fingerprint(world.crypto, parseKey(key))
    const { stdout, stderr } = world.terminal
    if (json) stdout.write(`${JSON.stringify({ name, key, fingerprint: print })}\n`)
    else stderr.write(`pinned ${name} to ${print}\n`)
    return 0
  },
})

export const forgetPeer = command<{ name: string; json: boolean }>({
  page: {
    name: 'sotto peers forget',
    summary: 'remove the pins of a name',
    args: ['NAME'],
    examples: [
      ['sotto peers forget alice', 'She is let in no longer.'],
      ['sotto peers forget db', 'The next "sotto connect db" pins whoever serves it then.'],
    ],
    flags: [JSON_FLAG],
  },
  read: (given) => ({ name: given.args[0]!, json: isSet(given, 'json') }),
  check() {},
  async run({ name, json }, world) {
    const removed = await new Profile(world).knownAgents().forget(name)
    const { stdout, stderr } = world.terminal
    if (json) stdout.write(`${JSON.stringify({ name, removed })}\n`)
    else if (removed > 0) stderr.write(`forgot ${name}\n`)
    if (removed > 0) return 0
    throw new TunnelError('peers/unknown', `Cannot forget "${name}": it is not pinned`, {
      hint: 'See "sotto peers list".',
    })
  },
})
