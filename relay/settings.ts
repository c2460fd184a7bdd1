/**
 * Everything that can be set on a relay, in one table: its flag, its variable, its default, what it
 * expects. A flag wins over `SOTTO_RELAY_*`, that wins over the default. Nothing secret is set here:
 * secrets rest in the store as hashes, and keys are named by the path of their file.
 *
 * All mistakes are told at once, each with the setting, what was found and what was expected.
 */
import { z } from 'zod'
import type { Network } from '../core/address.ts'
import { dnsServer } from '../core/dns.ts'
import { TunnelError } from '../core/errors.ts'
import { LOG_LEVELS } from './log.ts'
import type { LogLevel } from './log.ts'
import {
  isDomain,
  isHost,
  isHttpsUrl,
  isReleaseKey,
  isReleaseUrl,
  nearest,
  NETWORKS_MAX,
  PUBLIC_PORTS_MAX,
  readNetworks,
  readQuotas,
  readRange,
} from './setting_forms.ts'

export const ENVIRONMENT_PREFIX = 'SOTTO_RELAY_'
/** Host names that a relay answers to; docs/protocol.md, `challenge`. */
const NAMES_MAX = 16
const GRACE_SECONDS_MAX = 3600
const BULK_IDLE_MAX = 64
const PATH_LENGTH_MAX = 4096
const ACME_DIRECTORY = 'https://acme-v02.api.letsencrypt.org/directory'
const RELEASE_KEYS_MAX = 4
const DNS_SERVERS_MAX = 4
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
  /** Gets certificates for its own name and for inspectable endpoints from a CA (RFC 8555). */
  acme: boolean
  acmeDirectory: string
  /** An e-mail address for the CA; empty: none. */
  acmeContact: string
  /** PEM file of roots to trust when talking to the CA; empty: the system's. */
  acmeCaPath: string
  /** External account binding (RFC 8555 §7.3.4): the id, and the file of its key; empty: none. */
  acmeEabId: string
  acmeEabKeyPath: string
  /** Whose PROXY protocol headers are believed; undefined: no proxy, and none are read. */
  behindProxy: readonly Network[] | undefined
  /** Whether a relay that has the port already is asked to go once this one listens. */
  takeOver: boolean
  /** Resolvers that are asked whose a domain is; empty: the system's. */
  dns: string[]
  /** Whether agents may claim domains that their owners point here. */
  customDomains: boolean
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
  /** Whether anybody may approve a login of their own machine, into a new scope. */
  openSignup: boolean
  /** Whether agents are told that they may get certificates of a CA for their names. */
  agentsAcme: boolean
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
  acme: switchSchema,
  acmeDirectory: z.string().refine(isHttpsUrl),
  acmeContact: z.string().regex(/^[^\s@,?&%:]{1,64}@[A-Za-z0-9.-]{1,253}$/),
  acmeCaPath: pathSchema,
  acmeEabId: z.string().regex(/^[\x21-\x7e]{1,256}$/),
  acmeEabKeyPath: pathSchema,
  behindProxy: z.string().transform(readNetworks).refine((networks) => networks !== null),
  takeOver: switchSchema,
  dns: list((value) => dnsServer(value) !== undefined, DNS_SERVERS_MAX),
  customDomains: switchSchema,
  clientCaPath: pathSchema,
  downloads: pathSchema,
  releaseUrl: z.string().refine(isReleaseUrl),
  releaseKeys: z.string().transform((value) => value.split(',').map((key) => key.trim()))
    .refine((keys) => keys.length <= RELEASE_KEYS_MAX && keys.every(isReleaseKey)),
  openRegistration: switchSchema,
  openSignup: switchSchema,
  agentsAcme: switchSchema,
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
  line('acme', 'acme', '[SWITCH]', {
    without: 'false',
    expected: 'true or false',
    help: "Certificates for the relay's own name and for inspectable endpoints from a CA.",
  }),
  line('acmeDirectory', 'acme-directory', 'URL', {
    without: "Let's Encrypt",
    expected: 'an https URL of an ACME directory',
    help: 'Which CA.',
  }),
  line('acmeContact', 'acme-contact', 'ADDRESS', {
    without: 'none',
    expected: 'one e-mail address',
    help: 'Where the CA may write to.',
  }),
  line('acmeCaPath', 'acme-ca', 'PATH', {
    without: "the system's",
    expected: 'a path',
    help: 'PEM file: roots to trust when talking to the CA.',
  }),
  line('acmeEabId', 'acme-eab-kid', 'ID', {
    without: 'none',
    expected: 'the key id that the CA gave',
    help: 'External account binding.',
  }),
  line('acmeEabKeyPath', 'acme-eab-key-file', 'PATH', {
    without: 'none',
    expected: 'a path',
    help: 'File with the key of that binding, in base64url.',
  }),
  line('behindProxy', 'behind-proxy', '[NETWORKS]', {
    without: 'none; 127.0.0.0/8,::1 without a value',
    expected:
      `at most ${NETWORKS_MAX} addresses or networks such as 10.0.0.0/8, with commas between`,
    help: 'Proxies that say by the PROXY protocol who comes; nobody else is let in.',
  }),
  line('takeOver', 'take-over', '[SWITCH]', {
    without: 'false',
    expected: 'true or false',
    help:
      'Replace the relay that runs with this data: its visitors finish there, new ones come here.',
  }),
  line('dns', 'dns', 'ADDRESSES', {
    without: "the system's",
    expected: `at most ${DNS_SERVERS_MAX} addresses with commas between, such as 127.0.0.1:53`,
    help: 'Resolvers that are asked whose a domain is.',
  }),
  line('customDomains', 'custom-domains', 'SWITCH', {
    without: 'true',
    expected: 'true or false',
    help: 'Let agents claim domains of their own that lead here.',
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
  line('openSignup', 'open-signup', 'SWITCH', {
    without: 'false',
    expected: 'true or false',
    help: 'Let anybody approve a login of their own, for a new scope.',
  }),
  line('agentsAcme', 'agents-acme', 'SWITCH', {
    without: 'true for a public domain at port 443',
    expected: 'true or false',
    help: 'Let agents get certificates of a CA for NAME.SECURE-DOMAIN.',
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

/** Names that no public CA would give a certificate for: RFC 6761, RFC 6762, RFC 9476, and a lone label. */
function isPublicName(domain: string): boolean {
  return domain.includes('.') &&
    !/(^|\.)(localhost|local|test|invalid|example|internal|alt|onion|arpa|lan|home)$/.test(domain)
}

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
    acme: raw.acme ?? false,
    acmeDirectory: raw.acmeDirectory ?? ACME_DIRECTORY,
    acmeContact: raw.acmeContact ?? '',
    acmeCaPath: raw.acmeCaPath ?? '',
    acmeEabId: raw.acmeEabId ?? '',
    acmeEabKeyPath: raw.acmeEabKeyPath ?? '',
    behindProxy: raw.behindProxy ?? undefined,
    takeOver: raw.takeOver ?? false,
    dns: raw.dns ?? [],
    customDomains: raw.customDomains ?? true,
    clientCaPath: raw.clientCaPath ?? '',
    downloads: raw.downloads ?? '',
    releaseUrl: raw.releaseUrl ?? '',
    releaseKeys: raw.releaseKeys ?? [],
    openRegistration: raw.openRegistration ?? false,
    openSignup: raw.openSignup ?? false,
    agentsAcme: raw.agentsAcme ??
      (isPublicName(raw.secureDomain ?? domain) && (raw.publicPort ?? raw.port ?? 443) === 443),
    bulkIdle: raw.bulkIdle ?? 8,
    inspectable: raw.inspectable ?? true,
    metrics: raw.metrics ?? 'loopback',
    logLevel: raw.logLevel ?? 'info',
    logFormat: raw.logFormat ?? 'json',
  }
}

/** RFC 8555 §8.3, RFC 8737 §3. */
const CA_PORTS = [80, 443]

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
  mistakes.push(...acmeMistakes(settings))
  if (settings.downloads !== '' && settings.releaseUrl !== '') {
    mistakes.push('--release-url: found it beside --downloads, expected one of them')
  }
  if (publicPorts && port !== 0 && port >= publicPorts[0] && port <= publicPorts[1]) {
    mistakes.push(`--public-ports: found ${publicPorts.join('-')}, expected --port outside of it`)
  }
  // Whoever answers there at the relay's address gets a CA's certificate for any name that leads to it.
  const asked = CA_PORTS.filter((one) =>
    publicPorts && one >= publicPorts[0] && one <= publicPorts[1]
  )
  if (asked.length > 0) {
    mistakes.push(
      `--public-ports: found ${publicPorts!.join('-')}, expected it without ${
        asked.join(' and ')
      }, where CAs ask for the relay's own names`,
    )
  }
  if (mistakes.length > 0) throw invalid(mistakes)
}

function acmeMistakes(settings: Settings): string[] {
  const { acme, domain, tlsCertPath, acmeEabId, acmeEabKeyPath } = settings
  const mistakes: string[] = []
  if (acme && tlsCertPath !== '') {
    mistakes.push('--acme: found it beside --tls-cert, expected one of them')
  }
  if (acme && under(domain, 'localhost')) {
    mistakes.push(`--acme: found --domain ${quote(domain)}, expected a name that the CA can reach`)
  }
  if ((acmeEabId === '') !== (acmeEabKeyPath === '')) {
    const missing = acmeEabId === '' ? '--acme-eab-kid' : '--acme-eab-key-file'
    mistakes.push(`${missing}: found nothing, expected it with the other half of the binding`)
  }
  return mistakes
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
