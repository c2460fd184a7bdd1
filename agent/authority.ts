/**
 * An authority: an identity whose word about others counts where it is pinned as one, as the key of
 * an SSH certificate authority does. Beside its key, which may lie on another disk, is its register:
 *
 *   authorities/NAME            the key, in the form of a profile's identity
 *   authorities/NAME.register   what it signed and took back, one JSON object a line, never shortened
 *
 * A serial or a sequence number is in the register, on disk, before anything is signed under it, so
 * that none is used twice, whatever happens in between.
 */
import { base32nopad } from '@scure/base'
import { text, utf8 } from '../core/bytes.ts'
import { TunnelError } from '../core/errors.ts'
import { formatKey, generateIdentity, isName, parseKey } from '../core/key.ts'
import type { Identity } from '../core/key.ts'
import type { Labels } from '../core/labels.ts'
import { encodeStatement, STATEMENT_SKEW_MS, WITHDRAWAL_SERIALS_MAX } from '../core/statement.ts'
import type { Profile } from './profile.ts'
import type { World } from './world.ts'

const DAY_MS = 86_400_000
/** About 100,000 vouches. */
const REGISTER_BYTES_MAX = 33_554_432
export const DAYS_DEFAULT = 365
export const DAYS_MAX = 3650

type Surroundings = Pick<World, 'files' | 'crypto' | 'clock'>

/** What an authority says of one identity. */
export interface Grant {
  /** KEY. */
  key: string
  names: readonly string[]
  /** Empty: any. */
  scope: string
  labels: Labels
  days: number
}

export interface SignedVouch {
  serial: number
  key: string
  statement: Uint8Array
}

/** One line of the register. */
export type RegisterLine =
  | {
    do: 'sign'
    serial: number
    key: string
    names: readonly string[]
    scope: string
    labels: Labels
    /** ISO 8601. */
    at: string
    until: string
  }
  | { do: 'revoke'; sequence: number; serials: readonly number[]; at: string }

export class Authority {
  readonly name: string
  readonly identity: Identity
  readonly #world: Surroundings
  readonly #profile: Profile
  readonly #registerPath: string

  private constructor(
    world: Surroundings,
    profile: Profile,
    parts: { name: string; path: string; identity: Identity },
  ) {
    this.#world = world
    this.#profile = profile
    this.name = parts.name
    this.identity = parts.identity
    this.#registerPath = `${parts.path}.register`
  }

  /** Makes one. Throws `authority/exists`, `authority/name`, `files/…`. */
  static async init(
    world: Surroundings,
    profile: Profile,
    { name, keyFile }: { name: string; keyFile?: string | undefined },
  ): Promise<Authority> {
    checkAuthorityName(name)
    const path = keyFile ?? profile.authorityPath(name)
    return await profile.locked(`authority-${name}`, async () => {
      for (const file of [path, `${path}.register`]) {
        if (await world.files.info(file) === undefined) continue
        throw new TunnelError('authority/exists', `Cannot make "${name}": ${file} is there`, {
          hint: 'Choose another name, or --key-file.',
        })
      }
      const identity = generateIdentity(world.crypto)
      // The register first: a key without one is refused, since it could use a serial twice.
      await world.files.write(`${path}.register`, utf8(''))
      await world.files.write(
        path,
        utf8(
          [
            `# The key of the authority "${name}". Whoever holds this file decides whom all believe that`,
            '# pinned it: keep it offline, with the register beside it, and keep a copy of both.',
            `# public: ${formatKey(identity.public)}`,
            `seed: ${base32nopad.encode(identity.seed).toLowerCase()}`,
            '',
          ].join('\n'),
        ),
      )
      return new Authority(world, profile, { name, path, identity })
    })
  }

  /**
   * The one of that name, or the only one there is. Throws `authority/unknown`, `authority/which`,
   * `authority/register`, `profile/permissions`, `profile/corrupt`.
   */
  static async open(
    world: Surroundings,
    profile: Profile,
    { name, keyFile }: { name?: string | undefined; keyFile?: string | undefined },
  ): Promise<Authority> {
    const found = name ?? (keyFile === undefined ? await only(profile) : baseName(keyFile))
    checkAuthorityName(found)
    const path = keyFile ?? profile.authorityPath(found)
    const identity = await profile.identityAt(path)
    if (!identity) {
      throw new TunnelError('authority/unknown', `Cannot use "${found}": there is no ${path}`, {
        hint: `Make it by "sotto authority init ${found}", or say --key-file PATH.`,
      })
    }
    if (await world.files.info(`${path}.register`) === undefined) {
      throw new TunnelError(
        'authority/register',
        `Cannot use "${found}": its register ${path}.register is gone`,
        { hint: 'Restore it from a copy: without it serial numbers would be used again.' },
      )
    }
    return new Authority(world, profile, { name: found, path, identity })
  }

  /** KEY. */
  get key(): string {
    return formatKey(this.identity.public)
  }

  /** All that was signed and taken back, in order. Throws `authority/register`. */
  async register(): Promise<RegisterLine[]> {
    const content = await this.#world.files.read(this.#registerPath, {
      bytesMax: REGISTER_BYTES_MAX,
    })
    return text(content ?? new Uint8Array(0)).split('\n').flatMap((line, i) => {
      if (line === '') return []
      const read = readLine(line)
      if (read) return [read]
      throw new TunnelError(
        'authority/register',
        `Cannot read ${this.#registerPath}: line ${i + 1} is no entry`,
        { hint: 'Restore the file from a copy, or mend that line.' },
      )
    })
  }

  /** Signs vouches, each under a serial of its own. Throws `statement/…`, `labels/…`, `key/format`. */
  async sign(grants: readonly Grant[]): Promise<SignedVouch[]> {
    const { clock } = this.#world
    return await this.#change((lines) => {
      const last = Math.max(0, ...lines.map((line) => line.do === 'sign' ? line.serial : 0))
      const now = clock.now()
      // Signed first in memory, so that what cannot be signed is not registered either.
      const signed = grants.map((grant, i) => this.#vouch(grant, { serial: last + 1 + i, now }))
      const added = grants.map(({ key, names, scope, labels, days }, i): RegisterLine => ({
        do: 'sign',
        serial: last + 1 + i,
        key,
        names,
        scope,
        labels,
        at: new Date(now).toISOString(),
        until: new Date(now + days * DAY_MS).toISOString(),
      }))
      return { added, answer: signed }
    })
  }

  /**
   * Takes vouches back: a list of all that ever were taken back and have not run out by themselves.
   * Throws `authority/serial`, `authority/full`.
   */
  async revoke(serials: readonly number[]): Promise<{ sequence: number; statement: Uint8Array }> {
    return await this.#change((lines) => {
      for (const serial of serials) {
        if (lines.some((line) => line.do === 'sign' && line.serial === serial)) continue
        throw new TunnelError('authority/serial', `Cannot take ${serial} back: it was not signed`, {
          hint: 'See "sotto authority list".',
        })
      }
      const now = this.#world.clock.now()
      const gone = new Set([...withdrawn(lines), ...serials])
      const live = lines.flatMap((line) =>
        line.do === 'sign' && gone.has(line.serial) &&
          Date.parse(line.until) + STATEMENT_SKEW_MS >= now
          ? [line.serial]
          : []
      )
      if (live.length > WITHDRAWAL_SERIALS_MAX) {
        throw new TunnelError(
          'authority/full',
          `Cannot take more back: found ${WITHDRAWAL_SERIALS_MAX} that have not run out, the most that fit a list`,
          { hint: 'Make a new authority, or sign for fewer days.' },
        )
      }
      const sequence = 1 +
        Math.max(0, ...lines.map((line) => line.do === 'revoke' ? line.sequence : 0))
      const statement = encodeStatement({
        kind: 'withdrawal',
        authority: this.identity.public,
        sequence,
        time: now,
        serials: live,
      }, (message) => this.#sign(message))
      const at = new Date(now).toISOString()
      return {
        added: [{ do: 'revoke', sequence, serials: [...serials], at }],
        answer: { sequence, statement },
      }
    })
  }

  #vouch(grant: Grant, { serial, now }: { serial: number; now: number }): SignedVouch {
    const { key, names, scope, labels, days } = grant
    const statement = encodeStatement({
      kind: 'vouch',
      authority: this.identity.public,
      identity: parseKey(key),
      serial,
      notBefore: now,
      notAfter: now + days * DAY_MS,
      scope,
      names: [...new Set(names)],
      labels,
    }, (message) => this.#sign(message))
    return { serial, key, statement }
  }

  #sign(message: Uint8Array): Uint8Array {
    return this.#world.crypto.ed25519Sign(this.identity.seed, message)
  }

  /** Adds lines; the answer is given once they are on disk, and not when they cannot be. */
  async #change<T>(
    edit: (lines: RegisterLine[]) => { added: RegisterLine[]; answer: T },
  ): Promise<T> {
    const { files } = this.#world
    return await this.#profile.locked(`authority-${this.key}`, async () => {
      const lines = await this.register()
      const { added, answer } = edit(lines)
      // Replaced as a whole: a line that broke off could hide a number that was used.
      const content = [...lines, ...added].map((line) => `${JSON.stringify(line)}\n`).join('')
      await files.write(this.#registerPath, utf8(content))
      return answer
    })
  }
}

/** Serials that were ever taken back. */
export function withdrawn(lines: readonly RegisterLine[]): Set<number> {
  return new Set(lines.flatMap((line) => line.do === 'revoke' ? line.serials : []))
}

/** Throws `authority/name`. */
export function checkAuthorityName(name: string): void {
  if (isName(name)) return
  throw new TunnelError(
    'authority/name',
    `Cannot use the name "${name}": expected 1 to 63 of a-z 0-9 and inner hyphens`,
  )
}

async function only(profile: Profile): Promise<string> {
  const names = await profile.authorityNames()
  if (names.length === 1) return names[0]!
  throw new TunnelError(
    'authority/which',
    names.length === 0
      ? 'Cannot use an authority: there is none here'
      : `Cannot tell which authority is meant: found ${names.join(', ')}`,
    { hint: 'Say --authority NAME; "sotto authority init NAME" makes one.' },
  )
}

function baseName(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1).toLowerCase().replace(/\.[a-z]+$/, '')
}

function readLine(line: string): RegisterLine | undefined {
  try {
    const value = JSON.parse(line) as Record<string, unknown>
    const isNumber = (one: unknown): boolean => Number.isSafeInteger(one) && (one as number) > 0
    const isDate = (one: unknown): boolean => typeof one === 'string' && Date.parse(one) > 0
    const isList = (one: unknown): boolean => Array.isArray(one)
    if (value['do'] === 'revoke') {
      const { sequence, serials, at } = value
      return isNumber(sequence) && isList(serials) && (serials as unknown[]).every(isNumber) &&
          isDate(at)
        ? value as unknown as RegisterLine
        : undefined
    }
    const { serial, key, names, scope, labels, until } = value
    parseKey(String(key))
    return value['do'] === 'sign' && isNumber(serial) && isList(names) &&
        typeof scope === 'string' && typeof labels === 'object' && labels !== null && isDate(until)
      ? value as unknown as RegisterLine
      : undefined
  } catch {
    return undefined
  }
}
