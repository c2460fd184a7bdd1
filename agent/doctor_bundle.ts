/**
 * One file for whoever helps: what the checks found, and how this machine is set up, without secrets.
 * Only what is known to be harmless is put in; then everything that is known to be secret here, or has
 * the form of a secret, is taken out of the whole once more.
 */
import { text } from '../core/bytes.ts'
import type { Result } from './doctor.ts'
import { Profile } from './profile.ts'
import { VERSION } from './version.ts'
import type { World } from './world.ts'

export const REMOVED = '[removed]'
/** Shorter values are no secrets, and would be found in every other word. */
const SECRET_LENGTH_MIN = 6
const FILE_BYTES_MAX = 262_144
const FILES_MAX = 500
/** Variables whose values say how sotto runs; all others are left out, but by name where they are ours. */
const PLAIN_VARIABLES = [
  'SOTTO_RELAY',
  'SOTTO_HOME',
  'SOTTO_RELAY_FINGERPRINT',
  'XDG_CONFIG_HOME',
  'XDG_STATE_HOME',
  'LANG',
  'LC_ALL',
  'TERM',
  'NO_COLOR',
  'SSL_CERT_FILE',
]
const PROXY_VARIABLE = /^(SOTTO_PROXY|(https?|all|no)_proxy)$/i
/** Of settings.json and of sotto.yaml: what may be seen. */
const PLAIN_FIELDS = [
  'relay',
  'relayFingerprint',
  'relay-fingerprint',
  'profile',
  'http',
  'tcp',
  'udp',
  'public-port',
  'version',
  'tunnels',
  'name',
  'type',
  'kind',
  'mode',
  'port',
  'upstream',
  'e2ee',
  'hostHeader',
  'host-header',
  'proxyProtocol',
  'proxy-protocol',
  'log',
  'level',
]
const LOGIN = /:\/\/([^/\s]*)@/
/** What looks like a secret, wherever it stands. */
const PATTERNS: readonly (readonly [RegExp, string])[] = [
  [/-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(-----END [A-Z ]*PRIVATE KEY-----|$)/g, REMOVED],
  [/\b(sk|ak|ft|tk|ek)_[A-Za-z0-9_-]{6,}/g, REMOVED],
  // Up to the last one: a password may hold another.
  [/([a-z][a-z0-9+.-]*:\/\/)[^\s/"']*@/gi, `$1${REMOVED}@`],
  [/\b(Bearer|Basic)\s+[A-Za-z0-9+/_=.-]{6,}/gi, `$1 ${REMOVED}`],
  [
    /\b(seed|private|password|passwd|secret|token|api[-_]?key)(["']?\s*[:=]\s*["']?)[^\s"',}\\]+/gi,
    `$1$2${REMOVED}`,
  ],
]

/** The file's content; JSON, made to be read by people as well. */
export async function makeBundle(world: World, results: readonly Result[]): Promise<string> {
  const profile = new Profile(world)
  const bundle = {
    sotto: VERSION,
    made: new Date(world.clock.now()).toISOString(),
    platform: world.system.platform,
    checks: results,
    environment: environment(world.env),
    settings: await settings(world, profile),
    config: await config(world, profile),
    files: await files(world, profile),
    interfaces: world.probes.interfaces().map(({ name, family, internal }) => ({
      name,
      family,
      internal,
    })),
    knownRelays: await profile.knownRelays().list().catch(() => []),
  }
  const secrets = await knownSecrets(world, profile)
  return `${redact(JSON.stringify(bundle, null, 2), secrets)}\n`
}

/** `content` without the secrets named, as they are and as JSON or a URL writes them, and without what looks like one. */
export function redact(content: string, secrets: readonly string[] = []): string {
  const forms = new Set(secrets.flatMap((secret) => [
    secret,
    JSON.stringify(secret).slice(1, -1),
    encodeURIComponent(secret),
    decoded(secret),
  ]))
  let clean = content
  // The longest first: one may hold another.
  for (const form of [...forms].sort((a, b) => b.length - a.length)) {
    if (form.length >= SECRET_LENGTH_MIN) clean = clean.replaceAll(form, REMOVED)
  }
  for (const [pattern, words] of PATTERNS) clean = clean.replace(pattern, words)
  return clean
}

function environment(env: World['env']): Record<string, string> {
  return Object.fromEntries(
    Object.entries(env).flatMap(([name, value]): [string, string][] => {
      if (value === undefined) return []
      if (PLAIN_VARIABLES.includes(name) || PROXY_VARIABLE.test(name)) {
        return [[name, withoutLogin(value)]]
      }
      return name.startsWith('SOTTO_') ? [[name, value === '' ? '' : REMOVED]] : []
    }),
  )
}

/** A proxy may be written without a scheme, and wrongly: whatever stands before its last `@` goes. */
function withoutLogin(value: string): string {
  return value.replace(/^(\s*[a-z][a-z0-9+.-]*:\/\/|).*@/is, `$1${REMOVED}@`)
}

/** Names of all fields, values of the harmless ones. */
async function settings(world: World, { settingsPath }: Profile): Promise<unknown> {
  const content = await readText(world, settingsPath)
  if (content === undefined) return undefined
  try {
    const value: unknown = JSON.parse(content)
    if (typeof value !== 'object' || value === null) return REMOVED
    return Object.fromEntries(
      Object.entries(value).map((
        [name, one],
      ) => [name, PLAIN_FIELDS.includes(name) ? one : REMOVED]),
    )
  } catch {
    return 'no JSON'
  }
}

/** Line by line, since it may be broken: keys, and the values of harmless ones. No comments. */
async function config(world: World, { configDir }: Profile): Promise<string[] | undefined> {
  const content = await readText(world, `${configDir}/sotto.yaml`)
  return content?.split('\n').filter((line) => !/^\s*(#|$)/.test(line)).map((line) => {
    const [, head, key, value] = /^(\s*(?:- )?([\w.-]+)\s*:)(.*)$/.exec(line) ?? []
    if (head === undefined) return REMOVED
    const bare = value!.replace(/\s#.*$/, '')
    return bare.trim() === '' || (PLAIN_FIELDS.includes(key!) && !/[[{&*!|>]/.test(bare.trim()[0]!))
      ? `${head}${bare}`
      : `${head} ${REMOVED}`
  })
}

/** What is there, how large, for whom; no content. */
async function files(world: World, profile: Profile): Promise<string[]> {
  const found: string[] = []
  for (const folder of [profile.configDir, profile.stateDir]) {
    const queue = [folder]
    for (let path = queue.pop(); path !== undefined; path = queue.pop()) {
      const info = await world.files.info(path)
      if (!info || found.length >= FILES_MAX) continue
      found.push(
        `${info.mode.toString(8).padStart(4, '0')} ${
          info.own ? 'own' : 'foreign'
        } ${info.bytes} ${path}`,
      )
      if (!info.directory) continue
      for (const name of await world.files.list(path).catch(() => [])) queue.push(`${path}/${name}`)
    }
  }
  return found.sort()
}

/** Every secret that this machine's profile and variables hold. */
async function knownSecrets(world: World, profile: Profile): Promise<string[]> {
  const secrets: string[] = []
  for (const [name, value] of Object.entries(world.env)) {
    if (value === undefined) continue
    if (/KEY|TOKEN|SECRET|PASS|PWD|CRED|AUTH|COOKIE/i.test(name)) secrets.push(value)
    const login = (PROXY_VARIABLE.test(name) ? /^(?:\s*[a-z][a-z0-9+.-]*:\/\/)?(.*)@/is : LOGIN)
      .exec(value)?.[1]
    if (login === undefined) continue
    const [user] = login.split(':', 1)
    secrets.push(login, user!, login.slice(user!.length + 1))
  }
  const paths = (await files(world, profile)).map((line) => line.slice(line.indexOf('/')))
  for (const path of paths) {
    if (!/(identity|session_key|settings\.json|authorit|\.key|\.pem|\.env|\.yaml)/.test(path)) {
      continue
    }
    const content = await readText(world, path)
    if (content === undefined) continue
    if (path.endsWith('.json')) secrets.push(...secretFields(content))
    for (const [, value] of content.matchAll(/^(?:seed|private): (\S+)$/gm)) secrets.push(value!)
    for (
      const [, value] of content.matchAll(
        /^\s*(?:- )?[\w.-]*(?:key|token|secret|pass|auth)[\w.-]*\s*[:=]\s*["']?([^"'#\s]+)/gim,
      )
    ) secrets.push(value!)
  }
  return secrets.filter((secret) => !secret.startsWith('SHA256:') && !secret.startsWith('/'))
}

function secretFields(content: string): string[] {
  const found: string[] = []
  const look = (value: unknown, name: string): void => {
    if (typeof value === 'string' && /key|token|secret|pass|auth|credential/i.test(name)) {
      found.push(value)
    } else if (typeof value === 'object' && value !== null) {
      for (const [inner, one] of Object.entries(value)) {
        look(one, Array.isArray(value) ? name : inner)
      }
    }
  }
  try {
    look(JSON.parse(content), '')
  } catch {
    // Nothing of it is in the bundle.
  }
  return found
}

async function readText(world: World, path: string): Promise<string | undefined> {
  try {
    const content = await world.files.read(path, { bytesMax: FILE_BYTES_MAX })
    return content && text(content)
  } catch {
    return undefined
  }
}

function decoded(secret: string): string {
  try {
    return decodeURIComponent(secret)
  } catch {
    return secret
  }
}
