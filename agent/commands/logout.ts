/** `sotto logout`: the key of the profile is revoked at its relay, and gone from here. */
import { isTunnelError, TunnelError } from '../../core/errors.ts'
import { command, isSet, JSON_FLAG, RELAY_FLAGS } from '../cli/page.ts'
import { readChoice } from '../cli/plan.ts'
import { Screen } from '../cli/screen.ts'
import { checkChoice, join } from '../join.ts'
import type { RelayChoice } from '../join.ts'
import { Profile, profileName } from '../profile.ts'
import { RelayApi } from '../relay_api.ts'
import type { World } from '../world.ts'

interface LogoutOptions {
  choice: RelayChoice
  local: boolean
  json: boolean
}

async function run({ choice, local, json }: LogoutOptions, world: World): Promise<number> {
  const screen = new Screen(world, { json })
  const profile = new Profile(world)
  const { relay, apiKey, ...settings } = await profile.settings()
  const admin = settings['adminKey']
  if (relay === undefined || (apiKey === undefined && admin === undefined)) {
    throw new TunnelError(
      'login/none',
      `Cannot log out: the profile "${profileName(world)}" holds no key`,
      { hint: 'See "sotto profiles" for where there is one.' },
    )
  }
  let revoked = 'no'
  if (!local && apiKey !== undefined) {
    // What the profile names, whatever the variables say.
    const env = { ...world.env, SOTTO_RELAY: undefined, SOTTO_API_KEY: undefined }
    const own = { ...world, env }
    revoked = await revokeAt({ world: own, choice: { ...choice, relay }, apiKey, screen })
  }
  await profile.change({ apiKey: undefined, adminKey: undefined })
  const words = {
    yes: `logged out of ${relay}; its key is revoked`,
    before: `logged out of ${relay}; its key was no longer good there`,
    shared: `logged out of ${relay}; a fleet token is of many machines and stays good there`,
    no: `logged out of ${relay} here alone; ${
      apiKey === undefined ? 'the admin key' : 'the key'
    } stays good there`,
  }[revoked]
  screen.show('logout', [
    { name: 'relay', value: relay, line: words! },
    { name: 'revoked', value: revoked },
    { name: 'profile', value: profileName(world) },
  ])
  if (world.env['SOTTO_API_KEY']) screen.tell('SOTTO_API_KEY is still set, and is used')
  return 0
}

async function revokeAt(
  { world, choice, apiKey, screen }: {
    world: World
    choice: RelayChoice
    apiKey: string
    screen: Screen
  },
): Promise<'yes' | 'before' | 'shared'> {
  try {
    const joining = await join(world, choice, (line) => screen.tell(line))
    const api = new RelayApi(world, joining, apiKey)
    const { id, kind } = await api.call('GET', '/grant') as { id: string; kind: string }
    if (kind !== 'key') return 'shared'
    await api.call('DELETE', `/keys/${id}`)
    return 'yes'
  } catch (error) {
    if (isTunnelError(error) && /^credentials\/(unknown|revoked|expired)$/.test(error.code)) {
      return 'before'
    }
    throw new TunnelError(
      'login/not-revoked',
      `Cannot revoke the key at ${choice.relay}: ${(error as Error).message}`,
      {
        cause: error,
        hint: 'Nothing was changed. To forget it here alone: sotto logout --local',
      },
    )
  }
}

export const logout = command<LogoutOptions>({
  page: {
    name: 'sotto logout',
    summary: "revoke the profile's key at its relay, and forget it here",
    examples: [
      ['sotto logout', 'The relay lets nobody in with that key from now on.'],
      ['sotto logout --profile work', 'Another profile.'],
      ['sotto logout --local', 'The relay is gone, or cannot be reached: only here.'],
    ],
    flags: [
      { name: 'local', help: 'Forget the key here; it stays good at the relay.' },
      ...RELAY_FLAGS.filter(({ name }) => name !== 'relay'),
      JSON_FLAG,
    ],
    more: 'Identity, pins and the address of the relay stay: "sotto login" comes back to it.',
  },
  read: (given) => ({
    choice: readChoice(given),
    local: isSet(given, 'local'),
    json: isSet(given, 'json'),
  }),
  check: ({ choice }) => checkChoice(choice),
  run,
})
