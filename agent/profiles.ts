/**
 * Profiles beside the first: each is a whole of its own, with its relay, key, pins and identity, so
 * that two relays cannot tell that one person uses both. Which of them is meant: `--profile`, else
 * `SOTTO_PROFILE`, else what `sotto profiles use` wrote, else the first, whose name is `default`.
 */
import { text, utf8 } from '../core/bytes.ts'
import { isTunnelError, TunnelError } from '../core/errors.ts'
import { isName } from '../core/key.ts'
import { baseDirectories, DEFAULT_PROFILE, Profile, profileName } from './profile.ts'
import type { World } from './world.ts'

const NAME_BYTES_MAX = 256
/** Folders below one another in a profile, and files that removing one may touch. */
const DEPTH_MAX = 8
const FILES_MAX = 100_000

type Place = Pick<World, 'env' | 'files' | 'home'>

/** The same world in the profile that is meant. Throws `profile/name`, `files/…`. */
export async function inProfile(world: World, named?: string): Promise<World> {
  const name = named ?? (world.env['SOTTO_PROFILE'] || await usedProfile(world))
  if (name === undefined || name === world.env['SOTTO_PROFILE']) return world
  const env = { ...world.env, SOTTO_PROFILE: name === DEFAULT_PROFILE ? undefined : name }
  profileName({ env })
  return { ...world, env }
}

/** What `sotto profiles use` chose. */
async function usedProfile(world: Place): Promise<string | undefined> {
  let path: string
  try {
    path = usedPath(world)
  } catch (error) {
    // A command that needs no profile needs no home either; one that does says so itself.
    if (isTunnelError(error, 'profile/home')) return undefined
    throw error
  }
  const content = await world.files.read(path, { bytesMax: NAME_BYTES_MAX })
  return content === undefined ? undefined : text(content).trim() || undefined
}

export async function useProfile(world: Place, name: string): Promise<void> {
  await needProfile(world, name)
  if (name === DEFAULT_PROFILE) await world.files.remove(usedPath(world))
  else await world.files.write(usedPath(world), utf8(`${name}\n`))
}

function usedPath(world: Place): string {
  return `${baseDirectories(world).configDir}/current_profile`
}

/** All there are, the first one first. */
export async function profileNames(world: Place): Promise<string[]> {
  const folder = `${baseDirectories(world).configDir}/profiles`
  const names: string[] = [DEFAULT_PROFILE]
  for (const name of await world.files.list(folder)) {
    if (!isName(name) || name === DEFAULT_PROFILE) continue
    // What was removed may have left an empty folder.
    const there = ['settings.json', 'identity'].map((file) =>
      world.files.info(`${folder}/${name}/${file}`)
    )
    if ((await Promise.all(there)).some((info) => info !== undefined)) names.push(name)
  }
  return names
}

/** Throws `profile/unknown`. */
export async function needProfile(world: Place, name: string): Promise<void> {
  const names = await profileNames(world)
  if (names.includes(name)) return
  throw new TunnelError('profile/unknown', `Cannot find the profile "${name.slice(0, 80)}"`, {
    hint: `The profiles: ${names.join(', ')}. Make one: sotto login RELAY --profile NAME`,
  })
}

/** A profile by its name, as its own commands see it. */
export function profileOf(world: World, name: string): Profile {
  const env = { ...world.env, SOTTO_PROFILE: name === DEFAULT_PROFILE ? undefined : name }
  return new Profile({ ...world, env })
}

/** Removes all files of a profile, its identity among them. Throws `profile/unknown`, `files/…`. */
export async function removeProfile(world: World, name: string): Promise<void> {
  if (name === DEFAULT_PROFILE) {
    throw new TunnelError(
      'profile/default',
      'Cannot remove the profile "default": it is always there',
      {
        hint: '"sotto logout" takes its key away.',
      },
    )
  }
  await needProfile(world, name)
  const { configDir, stateDir } = profileOf(world, name)
  let left = FILES_MAX
  const clear = async (path: string, depth: number): Promise<void> => {
    for (const entry of await world.files.list(path)) {
      const below = `${path}/${entry}`
      const info = await world.files.info(below)
      if (left-- <= 0 || depth > DEPTH_MAX) throw tooMany(name)
      if (info?.directory) await clear(below, depth + 1)
      else await world.files.remove(below)
    }
  }
  await clear(stateDir, 0)
  await clear(configDir, 0)
  if (await usedProfile(world) === name) await world.files.remove(usedPath(world))
}

function tooMany(name: string): TunnelError {
  return new TunnelError(
    'profile/corrupt',
    `Cannot remove the profile "${name}": too much is in it`,
  )
}
