/** What the commands of `sotto audit` have in common: files, identities, and words for both. */
import type { TrailHeader } from '../../core/trail.ts'
import { hex } from '../../core/bytes.ts'
import type { Direction } from '../../core/chain.ts'
import { TunnelError } from '../../core/errors.ts'
import { fingerprint, formatKey, parseKey } from '../../core/key.ts'
import type { Fault, TrailReport } from '../../core/audit.ts'
import { isPinOf } from '../known_agents.ts'
import { Profile } from '../profile.ts'
import { TRAIL_BYTES_MAX } from '../trails.ts'
import type { World } from '../world.ts'
import { listOf } from './page.ts'
import type { Flag, Given } from './page.ts'

/** Findings that people are told; programs get all that are listed. */
export const FINDINGS_SHOWN = 20

export const IDENTITY_FLAG: Flag = {
  name: 'identity',
  value: 'SHA256:…',
  many: true,
  without: "this profile's own and its pins",
  help: 'One of the two that the session must be of; say both.',
}

/** Two fingerprints, or none. Throws `cli/identity`. */
export function readIdentities(given: Given): string[] {
  return listOf(given, 'identity')
}

export function checkIdentities(identities: readonly string[]): void {
  const wrong = identities.find((one) => !/^(SHA256:[A-Za-z0-9+/]{43}|[a-z2-7]{52})$/.test(one))
  if (wrong === undefined && (identities.length === 0 || identities.length === 2)) return
  throw new TunnelError(
    'cli/identity',
    wrong === undefined
      ? `Cannot verify: found ${identities.length} of --identity, expected two or none`
      : `Cannot read --identity: found "${wrong.slice(0, 80)}", expected a fingerprint or a KEY`,
    { hint: 'Each of the two agents prints its own by "sotto identity".' },
  )
}

/**
 * The two identities that a trail must be of: those that were given, else this profile's own and one
 * that it has pinned. Never those that the file names itself. Throws `audit/identities`.
 */
export async function expectedIdentities(
  world: World,
  trail: TrailHeader,
  given: readonly string[],
): Promise<string[]> {
  const print = (key: string): string =>
    key.startsWith('SHA256:') ? key : fingerprint(world.crypto, parseKey(key))
  if (given.length > 0) return given.map(print)
  const profile = new Profile(world)
  const own = await profile.identityAt(profile.identityPath)
  const keys = [trail.initiator, trail.responder].map((one) => formatKey(one))
  const ownKey = own && formatKey(own.public)
  const other = keys.find((key) => key !== ownKey)
  if (ownKey && keys.includes(ownKey) && other) {
    const pins = await profile.knownAgents().list()
    if (pins.some((pin) => isPinOf(world.crypto, pin, other))) return [ownKey, other].map(print)
  }
  throw new TunnelError(
    'audit/identities',
    'Cannot verify: found a session that is not of this agent and one that it has pinned',
    {
      hint: 'Say both fingerprints, as "sotto identity" prints them on the two machines: ' +
        '--identity SHA256:… --identity SHA256:…',
    },
  )
}

/** Throws `audit/file`, `files/…`. */
export async function readTrailFile(world: World, path: string): Promise<Uint8Array> {
  const bytes = await world.files.read(path, { bytesMax: TRAIL_BYTES_MAX })
  if (bytes) return bytes
  throw new TunnelError('audit/file', `Cannot read ${path}: it is not there`, {
    hint: 'Give a file that "sotto audit export" wrote.',
  })
}

/** What each side is called here: its pin's name, else its fingerprint. */
export class Names {
  readonly #names = new Map<string, string>()
  readonly #world: World

  static async of(world: World): Promise<Names> {
    const names = new Names(world)
    const profile = new Profile(world)
    for (const pin of await profile.knownAgents().list()) {
      const { key, name } = pin
      const print = key.startsWith('SHA256:') ? key : fingerprint(world.crypto, parseKey(key))
      if (!names.#names.has(print)) names.#names.set(print, name)
    }
    const own = await profile.identityAt(profile.identityPath)
    if (own) names.#names.set(fingerprint(world.crypto, own.public), 'this agent')
    return names
  }

  private constructor(world: World) {
    this.#world = world
  }

  print(identity: Uint8Array): string {
    return fingerprint(this.#world.crypto, identity)
  }

  /** A pin's name or the fingerprint. */
  name(identity: Uint8Array): string {
    const print = this.print(identity)
    return this.#names.get(print) ?? print
  }

  /** Both where there is a name. */
  full(identity: Uint8Array): string {
    const print = this.print(identity)
    const name = this.#names.get(print)
    return name === undefined ? print : `${name} (${print})`
  }
}

/** The identity at the other end. */
export function peerOf(trail: TrailHeader): Uint8Array {
  return trail.role === 'initiator' ? trail.responder : trail.initiator
}

/** `sent-3`: a content, by whose commitment of which number. */
export interface ContentNumber {
  direction: Direction
  index: number
}

/** Throws `cli/record`. */
export function parseContent(words: string): ContentNumber {
  const found = /^(sent|received)-(\d{1,9})$/.exec(words)
  if (found) return { direction: found[1] as Direction, index: Number(found[2]) }
  throw new TunnelError(
    'cli/record',
    `Cannot read "${words.slice(0, 40)}": expected sent-NUMBER or received-NUMBER`,
    { hint: '"sotto audit show" lists them.' },
  )
}

export function contentWords({ direction, index }: ContentNumber): string {
  return `${direction}-${index}`
}

/** One line for each fault. */
export function faultWords({ kind, direction, from, to }: Fault): string {
  const which = from === to ? `${from}` : `${from} to ${to}`
  const whose = direction === 'sent' ? 'sent by the one who kept it' : 'received'
  switch (kind) {
    case 'counter':
      return `records: number ${which}, ${whose}, is missing, double or in another place`
    case 'signature':
      return `checkpoint ${which} in the file, ${whose}: the signature does not hold`
    case 'checkpoint':
      return `checkpoint at record ${which}, ${whose}: missing, double or in another place`
    case 'records':
      return `records: one of ${which}, ${whose}, is not what was signed`
    case 'commitments':
      return `commitments: one of ${which}, ${whose}, is not what was signed`
    case 'opening':
      return `content ${direction}-${which}: what is said to open it does not`
  }
}

/** How far a report says that the file reaches. */
export function stateWords({ sound, complete, faultCount }: TrailReport): string {
  if (!sound) return faultCount === 1 ? '1 fault' : `${faultCount} faults`
  return complete ? 'complete' : 'cut'
}

export function reportFields(report: TrailReport, names: Names): Record<string, unknown> {
  const { session, initiator, responder, role, service, start, ...rest } = report
  return {
    session: hex(session),
    initiator: names.print(initiator),
    responder: names.print(responder),
    role,
    service,
    start: new Date(start).toISOString(),
    ...rest,
  }
}
