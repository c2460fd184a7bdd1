/**
 * What an agent keeps between runs: its identity, settings, pins and certificates, in plain files that
 * a person can read, move and back up. Secret files are 0600 and are refused when they are wider.
 *
 *   config  ~/.config/sotto        identity, session_key, settings.json, known_agents, known_relays,
 *                                  known_passports, known_withdrawals, statements, authorities/
 *   state   ~/.local/state/sotto   certificates/, locks/, trails/
 *
 * `XDG_CONFIG_HOME` and `XDG_STATE_HOME` are honoured; `SOTTO_HOME` moves both below itself.
 * `SOTTO_PROFILE` names another profile, whole and apart from this one: profiles/NAME below both.
 */
import { base32nopad } from '@scure/base'
import { equal, text, utf8 } from '../core/bytes.ts'
import { KEY_BYTES } from '../core/crypto.ts'
import { TunnelError } from '../core/errors.ts'
import { formatKey, generateIdentity, isName } from '../core/key.ts'
import type { Identity } from '../core/key.ts'
import { checkLabels } from '../core/labels.ts'
import type { Labels } from '../core/labels.ts'
import { encodeStatement, ROTATIONS_MAX, STATEMENTS_MAX } from '../core/statement.ts'
import { readAccess } from './access.ts'
import type { AccessRule } from './access.ts'
import { fromBase64, toBase64 } from './base64.ts'
import { KnownAgents, KnownPassports, KnownRelays } from './known_agents.ts'
import { Trails } from './trails.ts'
import { KnownWithdrawals } from './withdrawals.ts'
import type { TlsIdentity, World } from './world.ts'

/** Longest wait for another process that is writing the same file. */
const LOCK_MS_MAX = 5_000
const SETTINGS_BYTES_MAX = 65_536
/** The profile that there is without any word about profiles. */
export const DEFAULT_PROFILE = 'default'
const PEM_BYTES_MAX = 262_144
const STATEMENTS_FILE_BYTES_MAX = 131_072

const IDENTITY_HEAD =
  `# The identity of this agent. Whoever holds this file is this agent: keep it private,
# keep a copy, and never share it.`

const SESSION_KEY_HEAD =
  `# The key of this agent's sessions, which its passport names. Keep it private; without it
# another is made, and peers learn it from the next passport.`

const WIREGUARD_KEY_HEAD =
  `# The WireGuard key of a network that this agent serves. Keep it private.`

/** X25519, for sessions; docs/protocol.md §10. */
export interface SessionKey {
  /** 32 bytes, secret. */
  private32: Uint8Array
  public32: Uint8Array
}

/** What `settings.json` may hold; unknown fields are kept as they are. */
export interface Settings {
  /** The relay's address, such as `https://relay.example`. */
  relay?: string
  apiKey?: string
  /** SHA256:… of the relay's identity. */
  relayFingerprint?: string
  /** What this agent says of itself to relays, such as `{"role": "web"}`. */
  labels?: Labels
  [other: string]: unknown
}

type Surroundings = Pick<World, 'env' | 'files' | 'crypto' | 'clock' | 'home'>

export class Profile {
  readonly configDir: string
  readonly stateDir: string
  readonly #world: Surroundings

  constructor(world: Surroundings) {
    this.#world = world
    const { configDir, stateDir } = directories(world)
    this.configDir = configDir
    this.stateDir = stateDir
  }

  get identityPath(): string {
    return `${this.configDir}/identity`
  }

  get settingsPath(): string {
    return `${this.configDir}/settings.json`
  }

  /**
   * The identity; made on first use, by exactly one of several processes that start at once. Throws
   * `profile/permissions`, `profile/corrupt`, `files/…`.
   */
  async identity(): Promise<Identity> {
    return await this.#readIdentity() ?? await this.locked('identity', async () => {
      const existing = await this.#readIdentity()
      if (existing) return existing
      const made = generateIdentity(this.#world.crypto)
      await this.#writeIdentity(made, [])
      return made
    })
  }

  /** Statements by which earlier identities of this profile led to the one of now. */
  async rotations(): Promise<Uint8Array[]> {
    const content = await this.readSecret(this.identityPath, SETTINGS_BYTES_MAX)
    return content === undefined ? [] : readRotations(this.identityPath, content)
  }

  /**
   * Puts a new identity in the place of this one, with the statement by which it follows, in one
   * step: whatever happens, either the old one works or the new one. Sessions get a new key as well.
   * Throws as `identity` does.
   */
  async rotateIdentity(): Promise<{ old: Identity; next: Identity; statement: Uint8Array }> {
    const { crypto, clock, files } = this.#world
    await this.identity()
    return await this.locked('identity', async () => {
      const old = (await this.#readIdentity())!
      const next = generateIdentity(crypto)
      const seeds = [old, next]
      const statement = encodeStatement(
        {
          kind: 'rotation',
          old: old.public,
          new: next.public,
          time: clock.now(),
        },
        (message, signer) =>
          crypto.ed25519Sign(seeds.find((one) => equal(one.public, signer))!.seed, message),
      )
      const before = await this.rotations()
      // First: a passport names the new key soon, whichever identity it is of.
      await this.locked('session_key', () => files.remove(this.#sessionKeyPath))
      await this.#writeIdentity(next, [...before, statement].slice(-ROTATIONS_MAX))
      return { old, next, statement }
    })
  }

  async #writeIdentity(identity: Identity, rotations: readonly Uint8Array[]): Promise<void> {
    const lines = [
      IDENTITY_HEAD,
      `# public: ${formatKey(identity.public)}`,
      `seed: ${base32nopad.encode(identity.seed).toLowerCase()}`,
      ...rotations.map((bytes) => `rotation: ${toBase64(bytes)}`),
      '',
    ]
    await this.#world.files.write(this.identityPath, utf8(lines.join('\n')))
  }

  async #readIdentity(): Promise<Identity | undefined> {
    const path = this.identityPath
    const seed = await this.#readKey(path, {
      label: 'seed',
      hint: `Restore it from a copy. Without one, move ${path} away and a new identity is made; ` +
        'peers and relays that pinned the old one must be told.',
    })
    return seed && { seed, public: this.#world.crypto.ed25519Public(seed) }
  }

  /** What this identity tells every relay of itself: whom it follows, and who vouches for it. */
  async ownStatements(): Promise<Uint8Array[]> {
    return [...await this.rotations(), ...await this.#keptStatements()]
  }

  /** Keeps a statement on this identity, such as a vouch, for every relay; the newest last. */
  async keepStatement(statement: Uint8Array): Promise<void> {
    await this.locked('statements', async () => {
      const line = toBase64(statement)
      const kept = (await this.#keptStatements()).map(toBase64).filter((one) => one !== line)
      const lines = [...kept, line].slice(-STATEMENTS_MAX).map((one) => `${one}\n`)
      await this.#world.files.write(this.#statementsPath, utf8(lines.join('')))
    })
  }

  get #statementsPath(): string {
    return `${this.configDir}/statements`
  }

  async #keptStatements(): Promise<Uint8Array[]> {
    const path = this.#statementsPath
    const content = await this.#world.files.read(path, { bytesMax: STATEMENTS_FILE_BYTES_MAX })
    const lines = content === undefined ? [] : asText(path, content).split('\n')
    return lines.filter((line) => line !== '').map((line) => readStatement(path, line))
  }

  /** What is kept of sessions; `problem` hears when a trail could not be written. */
  trails(problem: (error: TunnelError) => void): Trails {
    const { files, clock, crypto } = this.#world
    return new Trails({ dir: `${this.stateDir}/trails`, files, clock, crypto, problem })
  }

  /** The folder of an authority: its key and its register, where its key is kept here. */
  authorityPath(name: string): string {
    return `${this.configDir}/authorities/${name}`
  }

  /** Names of the authorities whose keys are kept here. */
  async authorityNames(): Promise<string[]> {
    const names = await this.#world.files.list(`${this.configDir}/authorities`)
    return names.filter(isName)
  }

  /** The identity in a file of the same form as this profile's own; undefined: there is no file. */
  async identityAt(path: string): Promise<Identity | undefined> {
    const hint = `Restore it from a copy: ${path}`
    const seed = await this.#readKey(path, { label: 'seed', hint })
    return seed && { seed, public: this.#world.crypto.ed25519Public(seed) }
  }

  /** The key of sessions; made on first use, as the identity is. Throws the same. */
  async sessionKey(): Promise<SessionKey> {
    return await this.#readSessionKey() ?? await this.locked('session_key', async () => {
      const existing = await this.#readSessionKey()
      if (existing) return existing
      const private32 = this.#world.crypto.randomBytes(KEY_BYTES)
      const line = `private: ${base32nopad.encode(private32).toLowerCase()}`
      await this.#world.files.write(
        this.#sessionKeyPath,
        utf8([SESSION_KEY_HEAD, line, ''].join('\n')),
      )
      return { private32, public32: this.#world.crypto.x25519Public(private32) }
    })
  }

  /** The WireGuard key of a network that this profile serves; made on first use. Throws the same. */
  async wireguardKey(network: string): Promise<SessionKey> {
    const path = `${this.configDir}/wireguard/${network}.key`
    const hint = `Move ${path} away and another is made; stock clients have to be told.`
    const read = (): Promise<Uint8Array | undefined> =>
      this.#readKey(path, { label: 'private', hint })
    const private32 = await read() ?? await this.locked(`wireguard-${network}`, async () => {
      const existing = await read()
      if (existing) return existing
      const made = this.#world.crypto.randomBytes(KEY_BYTES)
      const line = `private: ${base32nopad.encode(made).toLowerCase()}`
      await this.#world.files.write(path, utf8([WIREGUARD_KEY_HEAD, line, ''].join('\n')))
      return made
    })
    return { private32, public32: this.#world.crypto.x25519Public(private32) }
  }

  get #sessionKeyPath(): string {
    return `${this.configDir}/session_key`
  }

  async #readSessionKey(): Promise<SessionKey | undefined> {
    const path = this.#sessionKeyPath
    const private32 = await this.#readKey(path, {
      label: 'private',
      hint: `Move ${path} away and another is made.`,
    })
    return private32 && { private32, public32: this.#world.crypto.x25519Public(private32) }
  }

  /** 32 bytes in a line of its own, or undefined without the file. */
  async #readKey(
    path: string,
    { label, hint }: { label: string; hint: string },
  ): Promise<Uint8Array | undefined> {
    const content = await this.readSecret(path, SETTINGS_BYTES_MAX)
    if (content === undefined) return undefined
    const found = new RegExp(`^${label}: ([a-z2-7]{52})$`, 'm').exec(asText(path, content))?.[1]
    let key: Uint8Array | undefined
    try {
      key = found === undefined ? undefined : base32nopad.decode(found.toUpperCase())
    } catch {
      // Bits after the end that are not zero: not what was written here.
    }
    if (key?.length === KEY_BYTES) return key
    throw corrupt(path, `no line "${label}: " with 52 characters of base32`, { hint })
  }

  /** Empty when there are none. Throws `profile/permissions`, `profile/corrupt`. */
  async settings(): Promise<Settings> {
    const path = this.settingsPath
    const content = await this.readSecret(path, SETTINGS_BYTES_MAX)
    if (content === undefined) return {}
    let value: unknown
    try {
      value = JSON.parse(asText(path, content))
    } catch (error) {
      throw corrupt(path, `no JSON (${error instanceof Error ? error.message : error})`, {
        hint: `Mend it or move it away: ${path}`,
      })
    }
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw corrupt(path, 'no JSON object', { hint: `Mend it or move it away: ${path}` })
    }
    const settings = value as Settings
    for (const field of ['relay', 'apiKey', 'relayFingerprint'] as const) {
      if (settings[field] !== undefined && typeof settings[field] !== 'string') {
        throw corrupt(path, `"${field}" that is not text`, { hint: `Mend it: ${path}` })
      }
    }
    const { labels } = settings
    if (labels !== undefined) {
      if (typeof labels !== 'object' || labels === null || Array.isArray(labels)) {
        throw corrupt(path, '"labels" that are no object', { hint: `Mend it: ${path}` })
      }
      try {
        checkLabels(labels)
      } catch (error) {
        throw corrupt(path, `wrong "labels" (${(error as Error).message})`, {
          hint: `Mend it: ${path}`,
        })
      }
    }
    return settings
  }

  /** Sets the fields given; `undefined` removes one. Others stay as they are. */
  async change(fields: { [field in keyof Settings]: Settings[field] | undefined }): Promise<void> {
    await this.locked('settings', async () => {
      const next: Record<string, unknown> = { ...await this.settings() }
      for (const [field, value] of Object.entries(fields)) {
        if (value === undefined) delete next[field]
        else next[field] = value
      }
      await this.#writeSettings(next)
    })
  }

  /** Who may do what here. Throws `access/…`, and what `settings` throws. */
  async access(): Promise<AccessRule[]> {
    return readAccess((await this.settings())['access'])
  }

  /** Changes the access table; the answer is what `edit` gave. */
  async changeAccess<T>(
    edit: (rules: AccessRule[]) => { rules: AccessRule[]; answer: T },
  ): Promise<T> {
    return await this.locked('settings', async () => {
      const settings = await this.settings()
      const { rules, answer } = edit(readAccess(settings['access']))
      await this.#writeSettings({ ...settings, access: rules })
      return answer
    })
  }

  async #writeSettings(settings: Record<string, unknown>): Promise<void> {
    const content = utf8(`${JSON.stringify(settings, null, 2)}\n`)
    await this.#world.files.write(this.settingsPath, content)
  }

  /** Who is behind names; see `KnownAgents`. */
  knownAgents(): KnownAgents {
    return new KnownAgents(this.#pinPorts('known_agents'))
  }

  /** Which identity each relay has. */
  knownRelays(): KnownRelays {
    return new KnownRelays(this.#pinPorts('known_relays'))
  }

  /** The newest passport seen of each identity. */
  knownPassports(): KnownPassports {
    return new KnownPassports(this.#pinPorts('known_passports'))
  }

  /** The newest list of withdrawn vouches of each authority. */
  knownWithdrawals(): KnownWithdrawals {
    return new KnownWithdrawals(this.#pinPorts('known_withdrawals'))
  }

  #pinPorts(name: string): ConstructorParameters<typeof KnownAgents>[0] {
    return {
      path: `${this.configDir}/${name}`,
      files: this.#world.files,
      clock: this.#world.clock,
      crypto: this.#world.crypto,
      locked: (run) => this.locked(name, run),
    }
  }

  certificatePath(name: string): string {
    return `${this.stateDir}/certificates/${name.toLowerCase().replace(/[^a-z0-9.-]/g, '_')}.pem`
  }

  /** A kept pair, or undefined where there is none or it is no PEM (it is made anew then). */
  async certificate(name: string): Promise<TlsIdentity | undefined> {
    const content = await this.readSecret(this.certificatePath(name), PEM_BYTES_MAX)
    if (content === undefined) return undefined
    const blocks = new TextDecoder().decode(content).match(
      /-----BEGIN ([A-Z ]+)-----[A-Za-z0-9+/=\s]+-----END \1-----/g,
    ) ?? []
    const key = blocks.find((block) => block.includes('PRIVATE KEY'))
    const cert = blocks.filter((block) => block.includes('BEGIN CERTIFICATE')).join('\n')
    return key === undefined || cert === '' ? undefined : { cert, key }
  }

  async keepCertificate(name: string, { cert, key }: TlsIdentity): Promise<void> {
    await this.#world.files.write(
      this.certificatePath(name),
      utf8(`${cert.trimEnd()}\n${key.trimEnd()}\n`),
    )
  }

  /**
   * Runs alone among all processes of this profile. Throws `profile/busy` when another one does not
   * finish within 5 s.
   */
  async locked<T>(name: string, run: () => Promise<T>): Promise<T> {
    const path = `${this.stateDir}/locks/${name}`
    const release = await this.#world.files.lock(path, { waitMs: LOCK_MS_MAX })
    if (!release) {
      throw new TunnelError(
        'profile/busy',
        `Cannot write ${name}: another process holds ${path} for more than ${LOCK_MS_MAX / 1000} s`,
        { hint: 'Is another sotto stuck? End it and try again.' },
      )
    }
    try {
      return await run()
    } finally {
      await release()
    }
  }

  /** Undefined where there is none. Throws `profile/permissions` where others have it, or may read it. */
  async readSecret(path: string, bytesMax: number): Promise<Uint8Array | undefined> {
    const { files } = this.#world
    const info = await files.info(path)
    if (!info) return undefined
    if ((info.mode & 0o077) !== 0) {
      throw new TunnelError(
        'profile/permissions',
        `Cannot use ${path}: found mode ${info.mode.toString(8).padStart(4, '0')}, expected 0600`,
        { hint: `Others may have read it. If not: chmod 600 ${path}` },
      )
    }
    if (!info.own) {
      throw new TunnelError(
        'profile/permissions',
        `Cannot use ${path}: it belongs to another user`,
        { hint: `Run as that user, or choose another folder with SOTTO_HOME` },
      )
    }
    return await files.read(path, { bytesMax })
  }
}

/** The profile that a world is in. Throws `profile/name`. */
export function profileName({ env }: Pick<World, 'env'>): string {
  const name = env['SOTTO_PROFILE'] || DEFAULT_PROFILE
  if (isName(name)) return name
  throw new TunnelError(
    'profile/name',
    `Cannot use the profile "${name.slice(0, 80)}": expected 1 to 63 of a-z 0-9 and inner hyphens`,
    { hint: 'Profiles are named by --profile, SOTTO_PROFILE and "sotto profiles use".' },
  )
}

/** Throws `profile/home`, `profile/name`. */
function directories(world: Pick<World, 'env' | 'home'>): { configDir: string; stateDir: string } {
  const base = baseDirectories(world)
  const name = profileName(world)
  if (name === DEFAULT_PROFILE) return base
  return {
    configDir: `${base.configDir}/profiles/${name}`,
    stateDir: `${base.stateDir}/profiles/${name}`,
  }
}

/** Of the profile that has no name, and of what all profiles share. Throws `profile/home`. */
export function baseDirectories(
  world: Pick<World, 'env' | 'home'>,
): { configDir: string; stateDir: string } {
  const { SOTTO_HOME, XDG_CONFIG_HOME, XDG_STATE_HOME } = world.env
  if (SOTTO_HOME !== undefined && SOTTO_HOME !== '') {
    if (!isAbsolute(SOTTO_HOME)) {
      throw new TunnelError(
        'profile/home',
        `Cannot use SOTTO_HOME: found "${SOTTO_HOME}", expected an absolute path`,
      )
    }
    const base = SOTTO_HOME.replace(/\/+$/, '')
    return { configDir: base, stateDir: `${base}/state` }
  }
  // The XDG base directory specification: paths that are not absolute are ignored.
  const pick = (given: string | undefined, usual: string): string =>
    given !== undefined && isAbsolute(given) ? `${given}/sotto` : `${world.home}/${usual}/sotto`
  return {
    configDir: pick(XDG_CONFIG_HOME, '.config'),
    stateDir: pick(XDG_STATE_HOME, '.local/state'),
  }
}

function readRotations(path: string, content: Uint8Array): Uint8Array[] {
  return [...asText(path, content).matchAll(/^rotation: (.*)$/gm)]
    .map(([, line]) => readStatement(path, line!))
}

function readStatement(path: string, line: string): Uint8Array {
  try {
    return fromBase64(line.trim())
  } catch {
    throw corrupt(path, 'a line that is no statement', { hint: `Mend it: ${path}` })
  }
}

function isAbsolute(path: string): boolean {
  return path.startsWith('/') || /^[A-Za-z]:[\\/]/.test(path)
}

function asText(path: string, content: Uint8Array): string {
  try {
    return text(content)
  } catch {
    throw corrupt(path, 'bytes that are no text', { hint: `Mend it or move it away: ${path}` })
  }
}

function corrupt(path: string, found: string, options: { hint: string }): TunnelError {
  return new TunnelError('profile/corrupt', `Cannot read ${path}: found ${found}`, options)
}
