/**
 * `sotto.yaml`: where it is found, and what it says once it is read, checked and filled in. Words and
 * places of mistakes come from config_reader.ts, the fields from config_table.ts.
 *
 *   --config PATH  →  ./sotto.yaml  →  sotto.yaml in the profile's folder  →  /etc/sotto/sotto.yaml
 */
import { text as textFrom } from '../core/bytes.ts'
import { readHostName } from '../core/dns.ts'
import { isTunnelError, TunnelError } from '../core/errors.ts'
import type { AcmeWords } from './acme_choice.ts'
import { ConfigError } from './config_problem.ts'
import type { ConfigProblem } from './config_problem.ts'
import { FILE_BYTES_MAX, readConfig } from './config_reader.ts'
import type { Read } from './config_reader.ts'
import { ACME_NAMES_MAX, CONFIG } from './config_table.ts'
import { parseUpstream } from './forward.ts'
import type { Upstream } from './forward.ts'
import { Profile } from './profile.ts'
import type { TunnelKind, TunnelMode } from './tunnel.ts'
import type { World } from './world.ts'

export const CONFIG_NAME = 'sotto.yaml'
const SYSTEM_PATH = `/etc/sotto/${CONFIG_NAME}`
const SECRET_BYTES_MAX = 4096

export interface TunnelConfig {
  /** What the file calls it. */
  readonly key: string
  /** The endpoint. */
  readonly name: string
  readonly kind: TunnelKind
  readonly mode: TunnelMode
  /** Raw: the public port asked for, 0 for any. */
  readonly port: number
  readonly upstream: Upstream
  /** PEM files, absolute. */
  readonly certificate?: { readonly cert: string; readonly key: string }
  readonly hostHeader?: string
  /** HTTP, verified: whether a CA is asked for certificates. */
  readonly acme?: boolean
  /** Names of the person's own that lead here, with a certificate of a CA and without. */
  readonly acmeDomains?: readonly string[]
  readonly domains?: readonly string[]
  readonly proxyProtocol?: 'v1' | 'v2'
  /** Verified TCP: who may come in beside the rules; absent: any TLS client. */
  readonly allow?: readonly string[]
}

export interface Config {
  /** Absolute. */
  readonly path: string
  readonly relay?: string
  readonly relayFingerprint?: string
  readonly profile?: string
  /** PEM file of CAs to trust for the relay, absolute. */
  readonly ca?: string
  /** Which CA; files are absolute. */
  readonly acme?: AcmeWords
  readonly apiKeyFile?: string
  readonly apiKeyEnv?: string
  /** `NAME=VALUE` each. */
  readonly labels: readonly string[]
  readonly tunnels: readonly TunnelConfig[]
}

type Surroundings = Pick<World, 'env' | 'files'>

/**
 * The file that is meant. Throws `config/none` where there is no file, and `config/foreign` where one that
 * nobody named is of another user: it says which relay gets our key, and what is published.
 */
export async function findConfig(
  world: World,
  given: string | undefined,
): Promise<string> {
  const named = given ?? (world.env['SOTTO_CONFIG'] || undefined)
  const paths = named === undefined
    ? [
      `${world.directory}/${CONFIG_NAME}`,
      `${new Profile(world).configDir}/${CONFIG_NAME}`,
      SYSTEM_PATH,
    ]
    : [absolute(world.directory, named)]
  for (const path of paths) {
    const info = await world.files.info(path)
    if (!info || info.directory) continue
    if (named !== undefined || info.own || info.system) return path
    throw new TunnelError(
      'config/foreign',
      `Cannot use ${path}: it is there, and belongs to another user`,
      { hint: `Look at it first. If you mean it: --config ${path}` },
    )
  }
  throw new TunnelError(
    'config/none',
    `Cannot find ${
      paths.length === 1 ? paths[0] : `a configuration: there is no ${orList(paths)}`
    }${paths.length === 1 ? ': there is no such file' : ''}`,
    { hint: 'Write one, such as "tunnels: {web: {http: 3000}}", or name one by --config PATH.' },
  )
}

/** Reads and checks. Throws `ConfigError`, `config/none`, `files/…`. */
export async function loadConfig(world: Surroundings, path: string): Promise<Config> {
  const { config, problems } = await checkConfig(world, path)
  if (config) return config
  throw new ConfigError(path, problems)
}

/** The same, with everything that is wrong in place of an error. Throws `config/none`, `files/…`. */
export async function checkConfig(
  world: Surroundings,
  path: string,
): Promise<{ config: Config | undefined; problems: readonly ConfigProblem[] }> {
  // One byte more tells the file that is too long.
  const bytes = await world.files.read(path, { bytesMax: FILE_BYTES_MAX + 1, head: true })
  if (!bytes) {
    throw new TunnelError('config/none', `Cannot read ${path}: there is no such file`)
  }
  return await checkBytes(bytes, { path, env: world.env })
}

/** What `checkConfig` does with the file's bytes, whatever they are; never throws. */
export async function checkBytes(
  bytes: Uint8Array,
  { path, env }: { path: string; env: World['env'] },
): Promise<{ config: Config | undefined; problems: readonly ConfigProblem[] }> {
  const whole = (found: string, expected: string, code: ConfigProblem['code']): ConfigProblem => ({
    ...{ code, line: 0, column: 0, field: '', excerpt: [] },
    message: `Cannot read the file: found ${found}, expected ${expected}`,
  })
  if (bytes.length > FILE_BYTES_MAX) {
    const words = `more than ${FILE_BYTES_MAX} bytes`
    return { config: undefined, problems: [whole(words, 'a file of tunnels', 'config/size')] }
  }
  let words: string
  try {
    words = textFrom(bytes)
  } catch (error) {
    if (!isTunnelError(error, 'bytes/utf8')) throw error
    const problem = whole('bytes that are no text', 'UTF-8', 'config/syntax')
    return { config: undefined, problems: [problem] }
  }
  const read = await readConfig(words.replace(/^\ufeff/, ''), CONFIG, env)
  if (read.problems.length > 0) return { config: undefined, problems: read.problems }
  const config = fill(read, path)
  return read.problems.length > 0
    ? { config: undefined, problems: read.problems }
    : { config, problems: [] }
}

/**
 * The world as this file wants it: the secret from its file or variable is where `join` looks for it.
 * A profile that is `named` on the command line beats the file's. Throws `config/secret-file`,
 * `config/variable`.
 */
export async function configWorld(
  world: World,
  config: Config,
  named?: string,
): Promise<World> {
  const { apiKeyFile, apiKeyEnv, profile } = config
  const env: Record<string, string | undefined> = { ...world.env }
  if (profile !== undefined && named === undefined) env['SOTTO_PROFILE'] = profile
  if (apiKeyFile !== undefined) env['SOTTO_API_KEY'] = await readSecret(world, apiKeyFile)
  if (apiKeyEnv !== undefined) {
    const secret = world.env[apiKeyEnv]
    if (!secret) {
      throw new TunnelError(
        'config/variable',
        `Cannot read the API key: the variable ${apiKeyEnv} is not set`,
      )
    }
    env['SOTTO_API_KEY'] = secret
  }
  return { ...world, env }
}

async function readSecret({ files }: Pick<World, 'files'>, path: string): Promise<string> {
  const fail = (found: string, hint?: string): TunnelError =>
    new TunnelError(
      'config/secret-file',
      `Cannot read the API key from ${path}: found ${found}`,
      hint === undefined ? {} : { hint },
    )
  const info = await files.info(path)
  if (!info || info.directory) throw fail('no such file')
  if (info.own && (info.mode & 0o077) !== 0) {
    throw fail(`mode ${info.mode.toString(8)}, expected 600`, `Run: chmod 600 ${path}`)
  }
  const secret = textFrom(
    await files.read(path, { bytesMax: SECRET_BYTES_MAX }) ?? new Uint8Array(),
  )
    .trim()
  if (secret === '' || /\s/.test(secret)) throw fail('no key, expected one line')
  return secret
}

// deno-lint-ignore no-explicit-any
type Raw = any

function fill(read: Read, path: string): Config {
  const raw: Raw = read.value
  const directory = path.slice(0, path.lastIndexOf('/')) || '/'
  const tunnels: TunnelConfig[] = []
  const names = new Map<string, string>()
  for (const [key, one] of Object.entries<Raw>(raw.tunnels ?? {})) {
    const tunnel = readTunnel(key, one, { directory, certificates: raw.certificates ?? {} })
    const before = names.get(tunnel.name)
    if (before !== undefined) {
      const field = one.name === undefined ? `tunnels.${key}` : `tunnels.${key}.name`
      read.note(field, {
        code: 'config/duplicate',
        found: `"${tunnel.name}", which is the name of ${before} as well`,
        expected: 'a name of its own for each tunnel',
      })
    }
    names.set(tunnel.name, `tunnels.${key}`)
    if (one.certificate !== undefined && !tunnel.certificate) {
      const known = Object.keys(raw.certificates ?? {})
      read.note(`tunnels.${key}.certificate`, {
        code: 'config/value',
        found: `"${one.certificate}"`,
        expected: `one of "certificates"${
          known.length === 0 ? ', of which there is none' : `: ${known.join(', ')}`
        }`,
      })
    }
    tunnels.push(tunnel)
  }
  noteDomains(read, tunnels)
  return {
    path,
    ...(raw.relay === undefined ? {} : { relay: raw.relay }),
    ...(raw['relay-fingerprint'] === undefined
      ? {}
      : { relayFingerprint: raw['relay-fingerprint'] }),
    ...(raw.ca === undefined ? {} : { ca: absolute(directory, raw.ca) }),
    ...(raw.acme === undefined ? {} : { acme: acmeOf(raw.acme, directory) }),
    ...(raw.profile === undefined ? {} : { profile: raw.profile }),
    ...(raw['api-key-file'] === undefined
      ? {}
      : { apiKeyFile: absolute(directory, raw['api-key-file']) }),
    ...(raw['api-key-env'] === undefined ? {} : { apiKeyEnv: raw['api-key-env'] }),
    labels: Object.entries(raw.labels ?? {}).map(([name, value]) => `${name}=${value}`),
    tunnels,
  }
}

function acmeOf(raw: Raw, directory: string): AcmeWords {
  const path = (given: unknown): string | undefined =>
    given === undefined ? undefined : absolute(directory, String(given))
  return {
    directory: raw.directory,
    contact: raw.contact,
    caPath: path(raw.ca),
    eabId: raw['eab-kid'],
    eabKeyPath: path(raw['eab-key-file']),
  }
}

/** Of each name one tunnel, and of a CA no more than may be. */
function noteDomains(read: Read, tunnels: readonly TunnelConfig[]): void {
  const holders = new Map<string, string>()
  let asked = 0
  for (const { key, acmeDomains = [], domains = [] } of tunnels) {
    const lists = [['acme-domains', acmeDomains], ['domains', domains]] as const
    for (const [field, names] of lists) {
      names.forEach((name, i) => {
        const place = `tunnels.${key}.${field}[${i}]`
        const before = holders.get(name)
        holders.set(name, `tunnels.${key}.${field}`)
        if (before !== undefined) {
          const found = `"${name}", which is in ${before} as well`
          read.note(place, { code: 'config/duplicate', found, expected: 'each name once' })
        }
        if (field !== 'acme-domains' || ++asked !== ACME_NAMES_MAX + 1) return
        read.note(place, {
          code: 'config/size',
          found: 'more names',
          expected: `at most ${ACME_NAMES_MAX} in the "acme-domains" of all tunnels`,
        })
      })
    }
  }
}

function readTunnel(
  key: string,
  one: Raw,
  { directory, certificates }: { directory: string; certificates: Raw },
): TunnelConfig {
  const kind = one.kind as TunnelKind
  const isVerified = kind !== 'udp' && one.e2ee !== false
  const mode: TunnelMode = isVerified ? 'verified' : kind === 'http' ? 'inspectable' : 'raw'
  const pair = one.certificate === undefined
    ? one['e2ee-cert'] && { cert: one['e2ee-cert'], key: one['e2ee-key'] }
    : certificates[one.certificate]
  const isPrivate = kind === 'tcp' && isVerified && one.public !== true
  return {
    key,
    name: one.name ?? key,
    kind,
    mode,
    port: one['public-port'] ?? 0,
    upstream: parseUpstream(one[kind]),
    ...(pair
      ? {
        certificate: {
          cert: absolute(directory, pair.cert),
          key: absolute(directory, pair.key),
        },
      }
      : {}),
    ...(one['host-header'] === undefined ? {} : { hostHeader: one['host-header'] }),
    ...(one['proxy-protocol'] === undefined ? {} : { proxyProtocol: one['proxy-protocol'] }),
    ...(kind === 'http' && isVerified
      ? {
        acme: one.acme !== 'off',
        acmeDomains: (one['acme-domains'] ?? []).map(readHostName),
        domains: (one.domains ?? []).map(readHostName),
      }
      : {}),
    ...(isPrivate ? { allow: one.allow ?? [] } : {}),
  }
}

/** Relative paths of a file begin in its own folder. */
function absolute(directory: string, path: string): string {
  return /^(?:\/|[A-Za-z]:[\\/])/.test(path) ? path : `${directory}/${path.replace(/^\.\//, '')}`
}

function orList(paths: readonly string[]): string {
  return `${paths.slice(0, -1).join(', no ')} and no ${paths.at(-1)}`
}
