/** `sotto identity`: who this agent is, for others to pin. */
import { fingerprint, formatKey } from '../../core/key.ts'
import { command, isSet, JSON_FLAG } from '../cli/page.ts'
import { Screen } from '../cli/screen.ts'
import { Profile } from '../profile.ts'

export const identity = command<{ json: boolean }>({
  page: {
    name: 'sotto identity',
    summary: 'show who this agent is; made on first use, and never sent',
    examples: [
      ['sotto identity', 'The key and its fingerprint, to read out to somebody.'],
      ['sotto identity --json', 'The same for programs.'],
    ],
    flags: [JSON_FLAG],
    more: 'Others let this agent in by: sotto peers trust NAME KEY',
  },
  read: (given) => ({ json: isSet(given, 'json') }),
  check() {},
  async run(options, world) {
    const profile = new Profile(world)
    const own = await profile.identity()
    const key = formatKey(own.public)
    const print = fingerprint(world.crypto, own.public)
    new Screen(world, options).show('identity', [
      { name: 'key', value: key, line: `key          ${key}` },
      { name: 'fingerprint', value: print, line: `fingerprint  ${print}` },
      { name: 'path', value: profile.identityPath, line: `kept in      ${profile.identityPath}` },
    ])
    return 0
  },
})
