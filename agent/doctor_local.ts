/** Checks of this machine alone: the profile, who may read it, the disk. */
import type { Check, Finding } from './doctor.ts'
import { fail, failed, ok, warning } from './doctor.ts'
import { Profile } from './profile.ts'
import { bytesWords } from './cli/screen.ts'
import type { World } from './world.ts'

const FREE_BYTES_WARN = 500_000_000
const FREE_BYTES_MIN = 20_000_000
/** Files of a profile that are looked at. */
const FILES_MAX = 2_000
/** In the folder of the configuration: whoever reads one of them is this agent, or comes in as it. */
const SECRET =
  /(^|\/)(identity|session_key|settings\.json|authority|key|.*\.key|.*\.pem|account.*)$/

export function localChecks(world: World): Check[] {
  const profile = new Profile(world)
  return [
    { name: 'profile', title: 'profile', run: () => checkProfile(profile) },
    { name: 'permissions', title: 'permissions', run: () => checkPermissions(world, profile) },
    { name: 'disk', title: 'disk', run: () => checkDisk(world, profile) },
  ]
}

async function checkProfile(profile: Profile): Promise<Finding> {
  try {
    const { relay } = await profile.settings()
    return ok(`${profile.configDir}${relay === undefined ? ', no relay yet' : ''}`, {
      config: profile.configDir,
      state: profile.stateDir,
    })
  } catch (error) {
    return failed(error)
  }
}

async function checkPermissions(world: World, profile: Profile): Promise<Finding> {
  if (world.system.platform === 'windows') {
    return ok('kept by Windows: the folder is in your own profile')
  }
  const wide: string[] = []
  const foreign: string[] = []
  let count = 0
  for (const folder of [...new Set([profile.configDir, profile.stateDir])]) {
    const queue = [folder]
    for (let path = queue.pop(); path !== undefined && count < FILES_MAX; path = queue.pop()) {
      const info = await world.files.info(path)
      if (!info) continue
      count++
      if (!info.own && world.system.uid !== 0) foreign.push(path)
      const isSecret = info.directory ? path === folder : SECRET.test(path.slice(folder.length))
      if (isSecret && (info.mode & 0o077) !== 0) wide.push(path)
      if (!info.directory) continue
      const names = await world.files.list(path).catch(() => [])
      for (const name of names.slice(0, FILES_MAX)) queue.push(`${path}/${name}`)
    }
  }
  if (foreign.length > 0) {
    return fail(
      `${some(foreign)} belongs to another user`,
      `sudo chown -R ${world.username} ${profile.configDir} ${profile.stateDir}`,
      { foreign },
    )
  }
  if (wide.length > 0) {
    return fail(
      `${some(wide)} can be read by others`,
      `chmod -R go= ${profile.configDir} ${profile.stateDir}`,
      { wide },
    )
  }
  return ok(count === 0 ? 'nothing is kept yet' : 'for you alone', { looked: count })
}

async function checkDisk(world: World, { stateDir }: Profile): Promise<Finding> {
  const { freeBytes, totalBytes } = await world.probes.space(stateDir)
  const words = `${bytesWords(freeBytes)} free of ${bytesWords(totalBytes)}`
  const facts = { freeBytes, totalBytes, path: stateDir }
  const remedy = `Make room on the disk of ${stateDir}, or move it by SOTTO_HOME.`
  if (freeBytes < FREE_BYTES_MIN) return fail(words, remedy, facts)
  return freeBytes < FREE_BYTES_WARN ? warning(words, remedy, facts) : ok(words, facts)
}

function some(paths: readonly string[]): string {
  return paths.length === 1 ? paths[0]! : `${paths[0]} and ${paths.length - 1} more`
}
