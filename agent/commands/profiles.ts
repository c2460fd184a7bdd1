/** `sotto profiles`: which there are, which is used, and removing one. */
import { TunnelError } from '../../core/errors.ts'
import { fingerprint } from '../../core/key.ts'
import { command, isSet, JSON_FLAG } from '../cli/page.ts'
import type { Command, Flag, Given } from '../cli/page.ts'
import { columns, Screen } from '../cli/screen.ts'
import { profileName } from '../profile.ts'
import { needProfile, profileNames, profileOf, removeProfile, useProfile } from '../profiles.ts'
import type { World } from '../world.ts'

interface ListOptions {
  json: boolean
}

async function list({ json }: ListOptions, world: World): Promise<number> {
  const { stdout } = world.terminal
  const now = profileName(world)
  const rows: Record<string, unknown>[] = []
  for (const name of await profileNames(world)) {
    const profile = profileOf(world, name)
    const { relay, apiKey } = await profile.settings()
    const identity = await profile.identityAt(profile.identityPath)
    rows.push({
      profile: name,
      used: name === now,
      relay: relay ?? null,
      loggedIn: apiKey !== undefined,
      // The scope is written in the key, and is no secret.
      scope: /^(?:sk|ft)_([a-z0-9-]+)_/.exec(apiKey ?? '')?.[1] ?? null,
      identity: identity ? fingerprint(world.crypto, identity.public) : null,
    })
  }
  if (json) { for (const row of rows) stdout.write(`${JSON.stringify(row)}\n`) }
  else {
    stdout.write(columns(
      ['', 'PROFILE', 'RELAY', 'SCOPE', 'IDENTITY'],
      rows.map((row) => [
        row['used'] ? '*' : '',
        String(row['profile']),
        String(row['relay'] ?? '-'),
        String(row['scope'] ?? '-'),
        String(row['identity'] ?? '-').slice(0, 19),
      ]),
      stdout,
    ))
  }
  return 0
}

function listing(name: string): Command {
  return command<ListOptions>({
    page: {
      name,
      summary: 'list the profiles: relay, scope and identity of each',
      examples: [
        [name, 'The one with * is used where none is named.'],
        [`${name} --json`, 'The same for programs.'],
      ],
      flags: [JSON_FLAG],
      more: `Each profile is a whole of its own: relay, key, pins and identity. One is made by
"sotto login RELAY --profile NAME", and meant by --profile NAME, SOTTO_PROFILE, or "use".`,
    },
    read: (given) => ({ json: isSet(given, 'json') }),
    check: () => {},
    run: list,
  })
}

export const profiles = listing('sotto profiles')
export const listProfiles = listing('sotto profiles list')

interface NameOptions {
  name: string
  force: boolean
  json: boolean
}

const readName = (given: Given): NameOptions => ({
  name: given.args[0]!,
  force: isSet(given, 'force'),
  json: isSet(given, 'json'),
})

export const useOne = command<NameOptions>({
  page: {
    name: 'sotto profiles use',
    summary: 'use a profile wherever none is named',
    args: ['NAME'],
    examples: [
      ['sotto profiles use work', 'From now on, in every terminal.'],
      ['sotto profiles use default', 'Back to the first.'],
    ],
    flags: [JSON_FLAG],
  },
  read: readName,
  check: () => {},
  async run({ name, json }, world) {
    await useProfile(world, name)
    const screen = new Screen(world, { json })
    screen.show('profile', [{ name: 'profile', value: name, line: `using the profile ${name}` }])
    if (world.env['SOTTO_PROFILE'] && world.env['SOTTO_PROFILE'] !== name) {
      screen.tell(
        `SOTTO_PROFILE, or --profile, is set to ${world.env['SOTTO_PROFILE']} and goes first`,
      )
    }
    return 0
  },
})

const FORCE_FLAG: Flag = {
  name: 'force',
  help: 'Also when it holds a key, which stays good at its relay.',
}

export const removeOne = command<NameOptions>({
  page: {
    name: 'sotto profiles remove',
    summary: 'remove a profile for good, its identity and pins with it',
    args: ['NAME'],
    examples: [
      ['sotto profiles remove work', 'After "sotto logout --profile work".'],
      ['sotto profiles remove work --force', 'Its relay is gone.'],
    ],
    flags: [FORCE_FLAG, JSON_FLAG],
  },
  read: readName,
  check: () => {},
  async run({ name, force, json }, world) {
    await needProfile(world, name)
    const settings = await profileOf(world, name).settings()
    const holds = settings.apiKey !== undefined || settings['adminKey'] !== undefined
    if (holds && name !== 'default' && !force) {
      throw new TunnelError(
        'profile/key',
        `Cannot remove the profile "${name}": it holds a key for ${settings.relay}`,
        { hint: `Revoke it first: sotto logout --profile ${name}. Or leave it good: --force` },
      )
    }
    await removeProfile(world, name)
    const screen = new Screen(world, { json })
    screen.show('removed', [{ name: 'profile', value: name, line: `removed the profile ${name}` }])
    return 0
  },
})
