/**
 * What may follow on an unfinished command line: commands, flags, values that are known, and names
 * that this machine has pinned. Read from the pages, so that nothing is written down twice. Asks no
 * relay, since it runs at each press of Tab, and never fails: where nothing is known, nothing follows.
 */
import { everyError } from '../errors/table.ts'
import { SERVICES } from '../access.ts'
import { Profile } from '../profile.ts'
import { profileNames } from '../profiles.ts'
import type { World } from '../world.ts'
import type { Flag, Page } from './page.ts'

/** Names offered at once; more help nobody. */
const OFFERED_MAX = 200
/** A longer line was typed by nobody. */
const WORDS_MAX = 200

export interface Offer {
  word: string
  /** A few words beside it, where the shell shows them. */
  about: string
}

/** Where the words of a line lead. */
export interface Branch {
  /** Below this one, with what each is for. */
  verbs: readonly (readonly [word: string, summary: string])[]
  page?: Page
  /** Words that the verbs did not use up. */
  rest: readonly string[]
}

type Names = (world: World) => Promise<Offer[]>

const PEERS: Names = async (world) =>
  (await new Profile(world).knownAgents().list()).map(({ name, verified }) => ({
    word: name,
    about: verified ? 'pinned, verified' : 'pinned',
  }))
const SERVICE_NAMES: Names = () =>
  Promise.resolve(SERVICES.map((word) => ({ word, about: 'service' })))
const RELAYS: Names = async (world) =>
  (await new Profile(world).knownRelays().list()).map(({ host }) => ({
    word: `https://${host}`,
    about: 'pinned relay',
  }))
const CODES: Names = async () =>
  Object.entries(await everyError()).flatMap(([module, { codes }]) =>
    Object.keys(codes).map((reason) => ({ word: [module, reason].join('/'), about: 'error code' }))
  )

const PROFILES: Names = async (world) =>
  (await profileNames(world)).map((word) => ({ word, about: 'profile' }))

const TUNNELS: Names = async (world) => {
  const { findConfig, loadConfig } = await import('../config.ts')
  const { tunnels } = await loadConfig(world, await findConfig(world, undefined))
  return tunnels.map(({ key }) => ({ word: key, about: 'tunnel' }))
}

/** Networks of others, by the names that they are pinned under. */
const NETWORKS: Names = async (world) => [...await SERVED(world), ...await PEERS(world)]
const SERVED: Names = async (world) => {
  const names = await world.files.list(`${new Profile(world).stateDir}/wireguard`)
  return names.flatMap((name) => {
    const word = /^([a-z0-9-]+)\.json$/.exec(name)?.[1]
    return word === undefined ? [] : [{ word, about: 'served here' }]
  })
}

/** By what an argument or a flag's value is called on the page. */
const VALUES: Readonly<Record<string, Names>> = {
  NET: NETWORKS,
  PEER: PEERS,
  TARGET: PEERS,
  PEER_OR_SERVICE: async (world) => [...await PEERS(world), ...await SERVICE_NAMES(world)],
  SERVICE: SERVICE_NAMES,
  SERVICES: SERVICE_NAMES,
  CODE: CODES,
  SWITCH: () => Promise.resolve(words('true', 'false')),
  VERSION: () => Promise.resolve(words('v1', 'v2')),
  SHELL: () => Promise.resolve(words('bash', 'zsh', 'fish', 'powershell')),
}
/** Where one word means something else on one page. */
const BY_PAGE: Readonly<Record<string, Names>> = {
  'sotto up NAME': TUNNELS,
  'sotto logs NAME': TUNNELS,
  'sotto connect NAME': PEERS,
  'sotto peers forget NAME': PEERS,
  'sotto peers verify NAME': PEERS,
  'sotto pair CODE': () => Promise.resolve([]),
  'relay URL': RELAYS,
  'sotto login RELAY': RELAYS,
  'profile NAME': PROFILES,
  'sotto wg config NET': SERVED,
  'sotto wg release NET': SERVED,
  'sotto profiles use NAME': PROFILES,
  'sotto profiles remove NAME': PROFILES,
}

/** What may stand where the last of `rest` is being typed; the others stand already. */
export async function offers(branch: Branch, world: World): Promise<Offer[]> {
  const { page, verbs, rest } = branch
  const typed = rest.at(-1) ?? ''
  if (rest.length > WORDS_MAX) return []
  const before = rest.slice(0, -1)
  const found: Offer[] = []
  if (before.length === 0) found.push(...verbs.map(([word, about]) => ({ word, about })))
  if (page) found.push(...await pageOffers(page, { before, typed }, world))
  const seen = new Set<string>()
  return found.filter(({ word }) => {
    const isNew = word.startsWith(typed) && !seen.has(word)
    seen.add(word)
    return isNew
  }).slice(0, OFFERED_MAX)
}

async function pageOffers(
  page: Page,
  { before, typed }: { before: readonly string[]; typed: string },
  world: World,
): Promise<Offer[]> {
  // All that follows such a flag belongs to another program.
  if (page.flags.some(({ rest, name }) => rest && before.includes(`--${name}`))) return []
  const open = flagOf(page, before.at(-1))
  if (open?.value !== undefined) return await valueOffers(page, open, world)
  const equals = /^--([a-z0-9-]+)=/.exec(typed)
  if (equals) {
    const flag = flagOf(page, `--${equals[1]}`)
    const values = flag?.value === undefined ? [] : await valueOffers(page, flag, world)
    return values.map(({ word, about }) => ({ word: equals[0] + word, about }))
  }
  if (typed.startsWith('-')) {
    const flags = [...page.flags, { name: 'help', help: 'Print this page.' } as Flag]
    return flags.filter(({ name, many }) => many || !before.includes(`--${name}`))
      .map(({ name, help }) => ({ word: `--${name}`, about: help }))
  }
  const place =
    before.filter((word, i) =>
      !word.startsWith('-') && flagOf(page, before[i - 1])?.value === undefined
    ).length
  const args = page.args ?? []
  const last = args.at(-1)
  const arg = args[place] ?? (last?.includes('...') ? last : undefined)
  return arg === undefined ? [] : await named(page, arg.replace(/[[\].]/g, ''), world)
}

function flagOf(page: Page, word: string | undefined): Flag | undefined {
  return page.flags.find(({ name, short }) =>
    word === `--${name}` || (short !== undefined && word === `-${short}`)
  )
}

async function valueOffers(page: Page, flag: Flag, world: World): Promise<Offer[]> {
  const special = BY_PAGE[`${flag.name} ${flag.value}`]
  return special ? await quiet(special, world) : await named(page, flag.value!, world)
}

async function named(page: Page, name: string, world: World): Promise<Offer[]> {
  const names = BY_PAGE[`${page.name} ${name}`] ??
    (Object.hasOwn(VALUES, name) ? VALUES[name] : undefined)
  return names ? await quiet(names, world) : []
}

/** A broken profile is told by commands, not into the middle of a line. */
async function quiet(names: Names, world: World): Promise<Offer[]> {
  try {
    return await names(world)
  } catch {
    return []
  }
}

function words(...list: string[]): Offer[] {
  return list.map((word) => ({ word, about: '' }))
}
