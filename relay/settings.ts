/**
 * Everything that can be set on a relay, in one table: its flag, its variable, its default, what it
 * expects. A flag wins over `SOTTO_RELAY_*`, that wins over the default. Nothing secret is set here:
 * secrets rest in the store as hashes, and keys are named by the path of their file.
 *
 * All mistakes are told at once, each with the setting, what was found and what was expected.
 */
import { z } from 'zod'
import { TunnelError } from '../core/errors.ts'
import { isName } from '../core/key.ts'
import { decodeMinisignKey } from '../core/minisign.ts'
import { LOG_LEVELS } from './log.ts'
import type { LogLevel } from './log.ts'
import { QUOTA_DEFAULTS } from './quota.ts'

export const ENVIRONMENT_PREFIX = 'SOTTO_RELAY_'
const DOMAIN_LENGTH_MAX = 190
/** Host names that a relay answers to; docs/protocol.md, `challenge`. */
const NAMES_MAX = 16
/** Public ports that one relay may open. */
const PUBLIC_PORTS_MAX = 10_000
const GRACE_SECONDS_MAX = 3600
const BULK_IDLE_MAX = 64
const PATH_LENGTH_MAX = 4096
const RELEASE_KEYS_MAX = 4
const RELEASE_URL_LENGTH_MAX = 1024
/** A public key of minisign without the line above it. */
const RELEASE_KEY = /^[A-Za-z0-9+/]{56}$/
/** Most of a wrong value that an error repeats. */
const FOUND_LENGTH_MAX = 60

export const METRICS_ACCESS = ['loopback', 'admin', 'open', 'off'] as const

/** What a relay runs by; every field is filled in and checked. */
export interface Settings {
  /** The relay's own host name. */
  domain: string
  /** Endpoints whose TLS ends in the agent are one label under it. */
  secureDomain: string
  /** Endpoints that the relay can read are one label under it. */
  appsDomain: string
  /** Every host name of the relay itself, the domain first. */
  names: string[]
  host: string
  /** 0 for any free one. */
  port: number
  /** The port in URLs; 0: the one that is listened on. */
  publicPort: number
  /** Where the store, the identity and certificates are kept; empty: the runtime's default. */
  dataDirectory: string
  /** Raw public ports, first and last; undefined: none. */
  publicPorts: readonly [first: number, last: number] | undefined
  /** Quota overrides by the quota's own name. */
  quotas: Readonly<Record<string, number>>
  graceSeconds: number
  /** PEM files, both or neither; empty: a self-signed certificate of the relay's own. */
  tlsCertPath: string
  tlsKeyPath: string
  /** PEM file of the CA whose certificates admit agents; empty: none do. */
  clientCaPath: string
  /** Folder of a release that `/download/NAME` hands out; empty: none. */
  downloads: string
  /** Where a release is elsewhere, that `/download/NAME` sends on to; empty: nowhere. */
  releaseUrl: string
  /** Keys that the install scripts believe, in minisign's base64. */
  releaseKeys: string[]
  /** Whether an agent without a credential is admitted, to a scope named after its key. */
  openRegistration: boolean
  /** Idle bulk links that an agent is asked to keep; 0 switches them off. */
  bulkIdle: number
  /** Whether endpoints that the relay can read may be claimed. */
  inspectable: boolean
  /** Who may read /metrics: `loopback` is the machine itself, or the admin key from anywhere. */
  metrics: (typeof METRICS_ACCESS)[number]
  logLevel: LogLevel
  logFormat: 'json' | 'text'
}

type Raw = { [K in keyof typeof SCHEMAS]: z.output<(typeof SCHEMAS)[K]> }

const switchSchema = z.enum(['true', 'false', 'yes', 'no', 'on', 'off', '1', '0'])
  .transform((value) => ['true', 'yes', 'on', '1'].includes(value))
const pathSchema = z.string().min(1).max(PATH_LENGTH_MAX).refine((path) => !path.includes('\0'))
const domainSchema = z.string().transform((value) => value.toLowerCase().replace(/\.$/, ''))
  .refine(isDomain)

const SCHEMAS = {
  domain: domainSchema,
  secureDomain: domainSchema,
  appsDomain: domainSchema,
  names: list(isDomain, NAMES_MAX - 1),
  host: z.string().refine(isHost),
  port: integer(0, 65_535),
  publicPort: integer(0, 65_535),
  dataDirectory: pathSchema,
  publicPorts: z.string().transform(readRange).refine((range) => range !== null),
  quotas: z.string().transform(readQuotas).refine((quotas) => quotas !== null),
  graceSeconds: integer(0, GRACE_SECONDS_MAX),
  tlsCertPath: pathSchema,
  tlsKeyPath: pathSchema,
  clientCaPath: pathSchema,
  downloads: pathSchema,
  releaseUrl: z.string().refine(isReleaseUrl),
  releaseKeys: z.string().transform((value) => value.split(',').map((key) => key.trim()))
    .refine((keys) => keys.length <= RELEASE_KEYS_MAX && keys.every(isReleaseKey)),
  openRegistration: switchSchema,
  bulkIdle: integer(0, BULK_IDLE_MAX),
  inspectable: switchSchema,
  metrics: z.enum(METRICS_ACCESS),
  logLevel: z.enum(LOG_LEVELS),
  logFormat: z.enum(['json', 'text']),
}

export interface SettingLine {
  readonly setting: keyof Settings
  /** Long flag without its dashes; the variable is the prefix and this in capitals. */
  readonly flag: string
  readonly value: string
  /** The default in words. */
  readonly without: string
  readonly expected: string
  readonly help: string
}

/** The table: what help pages, documents and errors are made of, in the order of help. */
export const SETTINGS: readonly SettingLine[] = [
  line('domain', 'domain', 'NAME', {
    without: 'localhost',
    expected: 'a host name such as relay.example.com',
    help: "The relay's own host name.",
  }),
  line('secureDomain', 'secure-domain', 'NAME', {
    without: 'secure.DOMAIN',
    expected: 'a host name such as secure.example.com',
    help: 'Verified endpoints are NAME under it; needs a wildcard DNS record.',
  }),
  line('appsDomain', 'apps-domain', 'NAME', {
    without: 'apps.DOMAIN',
    expected: 'a host name such as apps.example.com',
    help: 'Endpoints that the relay can read are NAME under it.',
  }),
  line('names', 'names', 'NAMES', {
    without: 'none',
    expected: `at most ${NAMES_MAX - 1} host names with commas between`,
    help: 'More host names that the relay answers to.',
  }),
  line('host', 'host', 'ADDRESS', {
    without: '127.0.0.1 for localhost, else 0.0.0.0',
    expected: 'an IP address such as 0.0.0.0 or ::',
    help: 'The address to listen on.',
  }),
  line('port', 'port', 'PORT', {
    without: '8443 for localhost, else 443',
    expected: 'a whole number from 0 to 65535',
    help: 'The one public port, 0 for any free one.',
  }),
  line('publicPort', 'public-port', 'PORT', {
    without: 'the port',
    expected: 'a whole number from 0 to 65535',
    help: 'The port in URLs, where something in front forwards another one.',
  }),
  line('dataDirectory', 'data', 'PATH', {
    without: "the runtime's own",
    expected: 'a path',
    help: 'Where the store, the identity and certificates are kept.',
  }),
  line('publicPorts', 'public-ports', 'FIRST-LAST', {
    without: 'none',
    expected: `a range of at most ${PUBLIC_PORTS_MAX} ports such as 20000-20999, or none`,
    help: 'Ports that raw endpoints may open.',
  }),
  line('quotas', 'quota', 'NAME=NUMBER', {
    without: "the relay's own",
    expected: 'NAME=NUMBER with commas between, such as scope.links=100,address.visitors=50',
    help: 'Overrides of quotas.',
  }),
  line('graceSeconds', 'grace', 'SECONDS', {
    without: '30',
    expected: `a whole number from 0 to ${GRACE_SECONDS_MAX}`,
    help: 'How long visitors may finish when the relay goes down.',
  }),
  line('tlsCertPath', 'tls-cert', 'PATH', {
    without: 'a self-signed certificate',
    expected: 'a path',
    help: "PEM file: the relay's certificate and its chain.",
  }),
  line('tlsKeyPath', 'tls-key', 'PATH', {
    without: 'a self-signed certificate',
    expected: 'a path',
    help: 'PEM file: the key of that certificate.',
  }),
  line('clientCaPath', 'client-ca', 'PATH', {
    without: 'none',
    expected: 'a path',
    help: 'PEM file: the CA whose certificates admit agents.',
  }),
  line('downloads', 'downloads', 'PATH', {
    without: 'none',
    expected: 'a path',
    help: 'Folder of programs, with their SHA256SUMS, that /install.sh installs.',
  }),
  line('releaseUrl', 'release-url', 'URL', {
    without: 'none',
    expected: 'a URL such as https://downloads.example.com/sotto without a query',
    help: 'Where those files are, if not here: /download/NAME sends on to URL/NAME.',
  }),
  line('releaseKeys', 'release-key', 'KEYS', {
    without: 'none',
    expected: `at most ${RELEASE_KEYS_MAX} public keys of minisign with commas between`,
    help: 'Whose signature of SHA256SUMS the install scripts believe.',
  }),
  line('openRegistration', 'open', 'SWITCH', {
    without: 'false',
    expected: 'true or false',
    help: 'Admit agents that bring no credential.',
  }),
  line('bulkIdle', 'bulk', 'COUNT', {
    without: '8',
    expected: `a whole number from 0 to ${BULK_IDLE_MAX}`,
    help: 'Idle bulk links that each agent is asked to keep, 0 for none.',
  }),
  line('inspectable', 'inspectable', 'SWITCH', {
    without: 'true',
    expected: 'true or false',
    help: 'Allow endpoints that the relay can read.',
  }),
  line('metrics', 'metrics', 'WHO', {
    without: 'loopback',
    expected: METRICS_ACCESS.join(', '),
    help: 'Who may read /metrics; the admin key always may, unless it is off.',
  }),
  line('logLevel', 'log-level', 'LEVEL', {
    without: 'info',
    expected: LOG_LEVELS.join(', '),
    help: 'The least that is logged.',
  }),
  line('logFormat', 'log-format', 'FORMAT', {
    without: 'json',
    expected: 'json or text',
    help: 'Lines for machines or for people.',
  }),
]

export interface SettingsSources {
  /** By flag, without dashes; what a command line library makes of them is taken as well. */
  flags?: Readonly<Record<string, unknown>>
  environment?: Readonly<Record<string, string | undefined>>
}

/** The settings of a relay. Throws `settings/invalid` with every mistake in its sentence. */
export function readSettings({ flags = {}, environment = {} }: SettingsSources = {}): Settings {
  const raw: Partial<Raw> = {}
  const mistakes: string[] = []
  for (const each of SETTINGS) {
    const found = findValue(each, { flags, environment })
    if (!found) continue
    const parsed = SCHEMAS[each.setting].safeParse(found.value)
    if (parsed.success) Object.assign(raw, { [each.setting]: parsed.data })
    else mistakes.push(`${found.from}: found ${quote(found.value)}, expected ${each.expected}`)
  }
  for (const flag of Object.keys(flags)) {
    if (flags[flag] !== undefined && !SETTINGS.some((each) => each.flag === flag)) {
      mistakes.push(`--${flag}: found an unknown setting${suggestion(flag, '--')}`)
    }
  }
  if (mistakes.length > 0) throw invalid(mistakes)
  const settings = complete(raw)
  check(settings)
  return settings
}

/** The variable that sets what `flag` sets: `secure-domain` is `SOTTO_RELAY_SECURE_DOMAIN`. */
export function variableOf(flag: string): string {
  return ENVIRONMENT_PREFIX + flag.toUpperCase().replaceAll('-', '_')
}

/**
 * Variables that begin like ours and set nothing, each with what was perhaps meant: a warning, no
 * error, since an agent on the same machine has variables of its own.
 */
export function unknownVariables(
  environment: Readonly<Record<string, string | undefined>>,
): { variable: string; perhaps: string | undefined }[] {
  const known = SETTINGS.map((each) => variableOf(each.flag))
  return Object.keys(environment)
    .filter((variable) => variable.startsWith(ENVIRONMENT_PREFIX))
    .filter((variable) => !known.includes(variable) && !AGENT_VARIABLES.includes(variable))
    .map((variable) => ({ variable, perhaps: nearest(variable, known) }))
}

/** Variables of the agent that share our prefix. */
const AGENT_VARIABLES = [`${ENVIRONMENT_PREFIX}FINGERPRINT`]

function complete(raw: Partial<Raw>): Settings {
  const domain = raw.domain ?? 'localhost'
  const local = domain === 'localhost' || domain.endsWith('.localhost')
  return {
    domain,
    secureDomain: raw.secureDomain ?? `secure.${domain}`,
    appsDomain: raw.appsDomain ?? `apps.${domain}`,
    names: [...new Set([domain, ...(raw.names ?? [])])],
    host: raw.host ?? (local ? '127.0.0.1' : '0.0.0.0'),
    port: raw.port ?? (local ? 8443 : 443),
    publicPort: raw.publicPort ?? raw.port ?? (local ? 8443 : 443),
    dataDirectory: raw.dataDirectory ?? '',
    publicPorts: raw.publicPorts ?? undefined,
    quotas: raw.quotas ?? {},
    graceSeconds: raw.graceSeconds ?? 30,
    tlsCertPath: raw.tlsCertPath ?? '',
    tlsKeyPath: raw.tlsKeyPath ?? '',
    clientCaPath: raw.clientCaPath ?? '',
    downloads: raw.downloads ?? '',
    releaseUrl: raw.releaseUrl ?? '',
    releaseKeys: raw.releaseKeys ?? [],
    openRegistration: raw.openRegistration ?? false,
    bulkIdle: raw.bulkIdle ?? 8,
    inspectable: raw.inspectable ?? true,
    metrics: raw.metrics ?? 'loopback',
    logLevel: raw.logLevel ?? 'info',
    logFormat: raw.logFormat ?? 'json',
  }
}

/** What only holds between settings. */
function check(settings: Settings): void {
  const { secureDomain, appsDomain, names, tlsCertPath, tlsKeyPath, publicPorts, port } = settings
  const mistakes: string[] = []
  // The name alone tells which trust model applies, so no name may mean two.
  const zones = [['--secure-domain', secureDomain], ['--apps-domain', appsDomain]] as const
  if (under(secureDomain, appsDomain) || under(appsDomain, secureDomain)) {
    mistakes.push(
      `--apps-domain: found ${quote(appsDomain)}, expected it apart from --secure-domain`,
    )
  }
  for (const [flag, zone] of zones) {
    const inside = names.find((name) => name !== zone && under(name, zone))
    if (inside !== undefined || names.includes(zone)) {
      mistakes.push(
        `${flag}: found ${quote(zone)} over the relay's own name ${quote(inside ?? zone)}, ` +
          'expected none of them in it',
      )
    }
  }
  if ((tlsCertPath === '') !== (tlsKeyPath === '')) {
    const [missing, given] = tlsCertPath === ''
      ? ['--tls-cert', '--tls-key']
      : ['--tls-key', '--tls-cert']
    mistakes.push(`${missing}: found nothing, expected a path as for ${given}`)
  }
  if (settings.downloads !== '' && settings.releaseUrl !== '') {
    mistakes.push('--release-url: found it beside --downloads, expected one of them')
  }
  if (publicPorts && port !== 0 && port >= publicPorts[0] && port <= publicPorts[1]) {
    mistakes.push(`--public-ports: found ${publicPorts.join('-')}, expected --port outside of it`)
  }
  if (mistakes.length > 0) throw invalid(mistakes)
}

function findValue(
  each: SettingLine,
  { flags, environment }: Required<SettingsSources>,
): { value: string; from: string } | undefined {
  const flag = flags[each.flag]
  if (flag !== undefined) {
    const value = Array.isArray(flag) ? flag.join(',') : String(flag)
    return { value, from: `--${each.flag}` }
  }
  const variable = variableOf(each.flag)
  const value = environment[variable]
  // An empty variable is how a shell or a compose file unsets one.
  return value === undefined || value === '' ? undefined : { value, from: variable }
}

function line(
  setting: keyof Settings,
  flag: string,
  value: string,
  words: { without: string; expected: string; help: string },
): SettingLine {
  return { setting, flag, value, ...words }
}

function integer(min: number, max: number) {
  return z.string().regex(/^[0-9]{1,9}$/).transform(Number)
    .refine((value) => value >= min && value <= max)
}

function list(item: (text: string) => boolean, max: number) {
  return z.string()
    .transform((value) => value.split(',').map((text) => text.trim().toLowerCase()).filter(Boolean))
    .refine((items) => items.length <= max && items.every(item))
}

function isDomain(value: string): boolean {
  return value.length <= DOMAIN_LENGTH_MAX && value.split('.').every(isName) &&
    // All digits at the end would be an address to every URL parser (WHATWG URL, "ends in a number").
    !/(^|\.)[0-9]+$/.test(value)
}

function isHost(value: string): boolean {
  if (/^[0-9.]+$/.test(value)) {
    const parts = value.split('.')
    return parts.length === 4 && parts.every((part) => /^(0|[1-9][0-9]{0,2})$/.test(part)) &&
      parts.every((part) => Number(part) <= 255)
  }
  if (!value.includes(':')) return value === 'localhost'
  // The URL parser knows the forms of IPv6 (RFC 4291 §2.2) better than a pattern would.
  return /^[0-9a-fA-F:.]+$/.test(value) && URL.canParse(`http://[${value}]/`)
}

/** `none` gives undefined, what is no range gives null. */
function readRange(value: string): readonly [number, number] | undefined | null {
  if (value === 'none') return undefined
  const found = /^([0-9]{1,5})(?:-([0-9]{1,5}))?$/.exec(value)
  if (!found) return null
  const first = Number(found[1])
  const last = Number(found[2] ?? found[1])
  const fits = first >= 1 && last <= 65_535 && first <= last && last - first < PUBLIC_PORTS_MAX
  return fits ? [first, last] : null
}

/** Null on a name that is no quota, a number that is none, or one quota twice. */
function readQuotas(value: string): Record<string, number> | null {
  const quotas: Record<string, number> = {}
  for (const part of value.split(',').map((text) => text.trim()).filter(Boolean)) {
    const found = /^([a-zA-Z][a-zA-Z.]{0,62})=([0-9]{1,15})$/.exec(part)
    if (!found || !Object.hasOwn(QUOTA_DEFAULTS, found[1]!)) return null
    if (Object.hasOwn(quotas, found[1]!)) return null
    quotas[found[1]!] = Number(found[2])
  }
  return quotas
}

/** One whose text is safe in a header, a script and a page as it is. */
function isReleaseUrl(value: string): boolean {
  if (!/^https:\/\/[a-z0-9.-]+(:[0-9]{1,5})?(\/[A-Za-z0-9._~-]+)*\/?$/.test(value)) return false
  return value.length <= RELEASE_URL_LENGTH_MAX && URL.canParse(value)
}

function isReleaseKey(value: string): boolean {
  try {
    return RELEASE_KEY.test(value) && decodeMinisignKey(value).public32.length > 0
  } catch {
    return false
  }
}

function under(name: string, zone: string): boolean {
  return name === zone || name.endsWith(`.${zone}`)
}

function invalid(mistakes: string[]): TunnelError {
  return new TunnelError(
    'settings/invalid',
    `Cannot start the relay: ${mistakes.join('; ')}`,
    { hint: 'See "sotto relay --help" for every setting.' },
  )
}

function quote(value: string): string {
  return value.length > FOUND_LENGTH_MAX
    ? `${JSON.stringify(value.slice(0, FOUND_LENGTH_MAX))} and more`
    : JSON.stringify(value)
}

function suggestion(flag: string, before: string): string {
  const near = nearest(flag, SETTINGS.map((each) => each.flag))
  return near === undefined ? '' : `, expected perhaps ${before}${near}`
}

/** The known word at most two edits away. */
function nearest(word: string, known: string[]): string | undefined {
  let best: string | undefined
  let fewest = 3
  for (const other of known) {
    if (Math.abs(other.length - word.length) > 2) continue
    const edits = distance(word, other)
    if (edits < fewest) [best, fewest] = [other, edits]
  }
  return best
}

/** Levenshtein's, over one row. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const change = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, change))
    }
    row = next
  }
  return row[b.length]!
}
