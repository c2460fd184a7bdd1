/**
 * The relay's own HTTP: health, metrics, the small page, who serves a name, passports, the door of
 * links, and the API. The same app on every runtime; what it needs from below is `AppPorts`.
 *
 * A link is not ended here: the app checks the request and hands it to `upgrade`, whose response
 * goes back untouched, since runtimes tie the WebSocket to that very object.
 */
import { Hono } from 'hono'
import type { Context, MiddlewareHandler } from 'hono'
import { bodyLimit } from 'hono/body-limit'
import type { Clock } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { fingerprint, formatKey, isName, parseKey } from '../core/key.ts'
import { createApi } from './api.ts'
import type { Credentials, Grant } from './credentials.ts'
import type { LoginsPort } from './device_desk.ts'
import { deviceRoutes } from './device_routes.ts'
import { grantOfSecret } from './failures.ts'
import type { ReleaseFiles } from './downloads.ts'
import type { Grants } from './grants.ts'
import { installLines, installRoutes, relayOrigin } from './install.ts'
import { errorFields } from './log.ts'
import type { Log } from './log.ts'
import { METRICS_TYPE, STATUS_CLASSES } from './metrics.ts'
import type { Metrics } from './metrics.ts'
import { indexPage } from './pages/index.ts'
import { STYLE, STYLE_PATH } from './pages/style.ts'
import type { Peer } from './peers.ts'
import { overQuota, Problem, problemOf, tell, wrongMethod } from './problem.ts'
import { addressWho } from './quota.ts'
import type { Quota } from './quota.ts'
import type { Registry } from './registry.ts'
import type { AgentInfo } from './relay.ts'
import type { RevokedCertificates } from './revoked_certificates.ts'
import type { Settings } from './settings.ts'
import type { Store } from './store/store.ts'

/** The WebSocket sub-protocol of links; docs/protocol.md, "Links". */
export const LINK_PROTOCOL = 'sotto.v1'
/** Most of a request's body; the API's largest is a fleet token with all its patterns. */
export const BODY_BYTES_MAX = 65_536
/** A readiness probe writes to the store at most this often, whoever asks. */
const PROBE_EVERY_MS = 1000
/** A store that has not answered by then is failing. */
const PROBE_MS_MAX = 2000
const PROBE_KEY = 'health/probe'
/** Longest bearer secret that is looked at. */
const SECRET_LENGTH_MAX = 256

/** What this runtime can do beyond HTTP and WebSocket. */
export interface Abilities {
  rawTcp: boolean
  rawUdp: boolean
  bulkLinks: boolean
  inspectable: boolean
}

export interface AppPorts {
  clock: Clock
  crypto: Crypto
  credentials: Credentials
  registry: Registry
  quota: Quota
  /** Absent where no certificate admits anybody. */
  revoked?: RevokedCertificates
  metrics: Metrics
  log: Log
  store: Pick<Store, 'commit'>
  /** The relay's Ed25519 identity, 32 bytes. */
  identity: { readonly public: Uint8Array; readonly seed: Uint8Array }
  /** Logins that wait for a person. */
  logins: LoginsPort
  settings: Pick<
    Settings,
    | 'domain'
    | 'secureDomain'
    | 'appsDomain'
    | 'names'
    | 'metrics'
    | 'releaseUrl'
    | 'releaseKeys'
    | 'openSignup'
  >
  /** Files of a release to hand out; absent: none. */
  files?: ReleaseFiles
  version: string
  /** `bun`, `node`, `deno`, `worker`. */
  runtime: string
  abilities: Abilities
  /** Readable endpoints are paths of the relay's own host: what agents serve there shares its origin. */
  paths?: boolean
  /** The port that URLs name. */
  publicPort(): number
  draining(): boolean
  /** Live members, those of one scope where it is given. */
  agents(scope?: string): AgentInfo[] | Promise<AgentInfo[]>
  /** Agents that those of a scope may see, merged and in order. */
  peers(scope: string): Promise<Peer[]>
  grants: Pick<Grants, 'add' | 'remove' | 'list'>
  /** Makes the request a link and answers it; the response goes back as it is. */
  upgrade(request: Request, link: { key: string; address: string }): Response | Promise<Response>
  /** The visitor's address as the runtime saw it; empty when unknown. Never taken from a header. */
  remoteAddress(request: Request): string
}

/** What requests carry along. */
export interface AppEnv {
  Variables: {
    address: string
    /** Set once `upgrade` has answered: from then on nobody touches the response. */
    upgraded: boolean
    grant: Grant
  }
}

/** Who serves a name, as `/v1/names/NAME` and the `resolve` request say it. */
export interface NameAnswer {
  name: string
  scope: string
  agents: {
    key: string
    fingerprint: string
    /** Base64 of the signed bytes; null when none was published yet. */
    passport: string | null
  }[]
}

/** What this relay is, as `/v1/relay` and the API say it. */
export interface RelayAnswer {
  key: string
  fingerprint: string
  names: string[]
  domain: string
  secure: string
  apps: string
  port: number
  version: string
  runtime: string
  can: Abilities
}

export function createApp(ports: AppPorts): Hono<AppEnv> {
  const app = new Hono<AppEnv>()
  app.onError((error, c) => {
    const problem = problemOf(error)
    if (problem.status >= 500) {
      ports.log.error('request failed', {
        method: c.req.method,
        path: c.req.path,
        status: problem.status,
        ...errorFields(error),
      })
    }
    return tell(c, problem)
  })
  app.notFound((c) =>
    tell(
      c,
      new Problem(404, {
        code: 'http/path',
        message: 'Cannot answer the request: there is nothing at this path',
      }),
    )
  )
  app.use(observe(ports), limit(ports))
  const ready = readiness(ports)

  app.get('/healthz', (c) => c.text('ok\n'))
  app.get('/readyz', async (c) => {
    const why = ports.draining() ? 'draining' : await ready()
    if (why === undefined) return c.text('ok\n')
    throw new Problem(503, {
      code: why === 'draining' ? 'relay/draining' : 'relay/store',
      message: why === 'draining'
        ? 'Cannot take visitors: the relay is going down'
        : 'Cannot take visitors: the store fails',
      headers: { 'retry-after': '5' },
    })
  })
  app.get('/metrics', async (c) => {
    await mayReadMetrics(c, ports)
    return c.body(ports.metrics.render(), 200, { 'content-type': METRICS_TYPE })
  })
  app.get(STYLE_PATH, (c) =>
    c.body(STYLE, 200, {
      'content-type': 'text/css; charset=utf-8',
      'cache-control': 'public, max-age=3600',
    }))
  app.get('/', (c) => c.html(indexPage(indexFacts(ports, c.req.header('user-agent') ?? ''))))
  installRoutes(app, ports)
  deviceRoutes(app, ports)
  app.get('/v1/relay', (c) => c.json(relayAnswer(ports)))
  app.get('/v1/passports/:key', (c) => passport(c, ports))
  app.get('/v1/names/:name', async (c) => c.json(await nameAnswer(ports, c.req.param('name'))))
  app.get('/v1/link/:key', (c) => link(c, ports))
  for (
    const path of [
      '/',
      '/healthz',
      '/readyz',
      '/metrics',
      STYLE_PATH,
      '/v1/relay',
      '/v1/passports/:key',
      '/v1/names/:name',
      '/v1/link/:key',
    ]
  ) app.all(path, wrongMethod('GET'))
  app.route('/api/v1', createApi(ports))
  return app
}

/**
 * Who serves `name`. Throws a 400 on what is no name, a 403 when the name is cut off, a 404 when
 * nobody has it.
 */
export async function nameAnswer(
  { registry, crypto }: Pick<AppPorts, 'registry' | 'crypto'>,
  name: string,
): Promise<NameAnswer> {
  if (!isName(name)) {
    throw new Problem(400, {
      code: 'registry/name',
      message: 'Cannot look up the name: expected 1 to 63 of a-z, 0-9 and hyphens inside',
    })
  }
  const scope = await registry.owner(name)
  // One that was never served to visitors is a name between agents, which is nobody else's business.
  const members = await registry.members(name)
  if (scope === undefined || members.length === 0) {
    throw new Problem(404, {
      code: 'registry/unknown',
      message: `Cannot look up "${name}": nobody has that name here`,
      hint: 'Check the name and the relay ("sotto status" on the side that serves it).',
    })
  }
  if (registry.isBlocked(name, scope)) {
    throw new Problem(403, {
      code: 'registry/blocked',
      message: `Cannot look up "${name}": the relay's operator has blocked it`,
    })
  }
  const agents: NameAnswer['agents'] = []
  for (const key of members) {
    const stored = await registry.passport(key)
    agents.push({
      key,
      fingerprint: fingerprint(crypto, parseKey(key)),
      passport: stored ? base64(stored.bytes) : null,
    })
  }
  return { name, scope, agents }
}

export function relayAnswer(ports: AppPorts): RelayAnswer {
  const { settings, identity, crypto } = ports
  return {
    key: formatKey(identity.public),
    fingerprint: fingerprint(crypto, identity.public),
    names: settings.names,
    domain: settings.domain,
    secure: settings.secureDomain,
    apps: settings.appsDomain,
    port: ports.publicPort(),
    version: ports.version,
    runtime: ports.runtime,
    can: ports.abilities,
  }
}

/**
 * The grant of the request's bearer secret. Throws a 401 without one or with a wrong one, a 429
 * when the address brought too many wrong ones.
 */
export async function authenticate(
  c: Context<AppEnv>,
  ports: AppPorts,
): Promise<Grant> {
  const header = c.req.header('authorization') ?? ''
  const secret = /^bearer +([A-Za-z0-9_-]+)$/i.exec(header.slice(0, SECRET_LENGTH_MAX + 16))?.[1]
  if (secret === undefined || secret.length > SECRET_LENGTH_MAX) {
    throw new Problem(401, {
      code: 'credentials/missing',
      message: 'Cannot answer the request: found no credential, expected one',
      hint: 'Send "Authorization: Bearer KEY" with an API key or the admin key.',
      headers: { 'www-authenticate': 'Bearer' },
    })
  }
  return await grantOfSecret(ports, { secret, address: c.get('address'), path: c.req.path })
}

/** Headers, counts and log lines of every response but that of an upgrade. */
function observe({ metrics, log, clock, remoteAddress }: AppPorts): MiddlewareHandler<AppEnv> {
  return async (c, next) => {
    const startedMs = clock.monotonic()
    const address = remoteAddress(c.req.raw)
    c.set('address', address)
    await next()
    if (c.get('upgraded')) {
      metrics.requests.add({ status: '1xx' })
      return
    }
    const { status, headers } = c.res
    metrics.requests.add({ status: STATUS_CLASSES[Math.floor(status / 100) - 1] ?? '5xx' })
    // A page with a form has said its own.
    for (const [name, value] of SECURITY_HEADERS) if (!headers.has(name)) headers.set(name, value)
    if (!headers.has('cache-control')) headers.set('cache-control', 'no-store')
    log.debug('request', {
      method: c.req.method,
      path: c.req.path,
      status,
      address,
      ms: Math.round(clock.monotonic() - startedMs),
    })
  }
}

/** Unless a page says otherwise: no page of ours runs a script, is framed, or loads anything but the style sheet. */
const SECURITY_HEADERS: readonly (readonly [name: string, value: string])[] = [
  [
    'content-security-policy',
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  ],
  ['x-content-type-options', 'nosniff'],
  ['x-frame-options', 'DENY'],
  ['referrer-policy', 'no-referrer'],
  ['cross-origin-resource-policy', 'same-origin'],
  ['cross-origin-opener-policy', 'same-origin'],
  ['permissions-policy', 'camera=(), geolocation=(), microphone=()'],
]

/** Requests a second by address, and the size of bodies. Health checks must not be starved. */
function limit({ quota, metrics }: AppPorts): MiddlewareHandler<AppEnv> {
  const bodies = bodyLimit({
    maxSize: BODY_BYTES_MAX,
    onError: () => {
      throw new Problem(413, {
        code: 'http/body',
        message: `Cannot read the request: expected a body of at most ${BODY_BYTES_MAX} bytes`,
      })
    },
  })
  return async (c, next) => {
    if (c.req.path === '/healthz' || c.req.path === '/readyz') return await next()
    const taken = quota.take('requests', addressWho(c.get('address')))
    if (!taken.ok) {
      metrics.refused.add({ reason: 'quota' })
      throw overQuota(taken)
    }
    const { method } = c.req
    return method === 'GET' || method === 'HEAD' ? await next() : await bodies(c, next)
  }
}

/** Writes one row at most once a second and says whether that went well. */
function readiness({ store, clock, metrics, log }: AppPorts): () => Promise<'store' | undefined> {
  let asked: Promise<'store' | undefined> | undefined
  let askedMs = 0
  async function probe(): Promise<'store' | undefined> {
    try {
      await within(clock, store.commit({ puts: [{ key: PROBE_KEY, value: clock.now() }] }))
      return undefined
    } catch (error) {
      metrics.storeErrors.add({ operation: 'commit' })
      log.error('store fails', errorFields(error))
      return 'store'
    }
  }
  return () => {
    const now = clock.monotonic()
    if (asked && now - askedMs < PROBE_EVERY_MS) return asked
    askedMs = now
    asked = probe()
    return asked
  }
}

async function within<T>(clock: Clock, work: Promise<T>): Promise<T> {
  return await new Promise<T>((resolve, reject) => {
    const timer = clock.after(PROBE_MS_MAX, () => reject(new Error('the store does not answer')))
    work.then(resolve, reject).finally(() => timer.cancel())
  })
}

async function mayReadMetrics(c: Context<AppEnv>, ports: AppPorts): Promise<void> {
  const { metrics: access, names } = ports.settings
  if (access === 'open') return
  if (access === 'off') {
    throw new Problem(404, { code: 'http/path', message: 'Cannot show metrics: they are off' })
  }
  if (access === 'loopback' && isLoopback(c.get('address')) && isDirect(c, names)) return
  if (!(await authenticate(c, ports)).admin) {
    throw new Problem(403, {
      code: 'api/forbidden',
      message: 'Cannot show metrics: found a key of a scope, expected the admin key',
    })
  }
}

function isLoopback(address: string): boolean {
  return /^(::ffff:)?127\.\d{1,3}\.\d{1,3}\.\d{1,3}$/i.test(address) || address === '::1'
}

/**
 * Came from this machine and is meant for us: a proxy on loopback speaks for others, and a web page
 * that points its own name here (DNS rebinding) is read by a browser that runs on this machine.
 */
function isDirect(c: Context<AppEnv>, names: readonly string[]): boolean {
  if (c.req.header('forwarded') ?? c.req.header('x-forwarded-for') ?? c.req.header('x-real-ip')) {
    return false
  }
  const host = new URL(c.req.url).hostname.replace(/^\[|\]$/g, '')
  return isLoopback(host) || host === 'localhost' || names.includes(host)
}

async function passport(c: Context<AppEnv, '/v1/passports/:key'>, { registry }: AppPorts) {
  const key = c.req.param('key')
  parseKey(key)
  const stored = await registry.passport(key)
  if (!stored) {
    throw new Problem(404, {
      code: 'registry/unknown',
      message: 'Cannot find the passport: that identity has published none here',
    })
  }
  const etag = `"${stored.sequence}"`
  const headers = { etag, 'cache-control': 'no-cache' }
  if (c.req.header('if-none-match') === etag) return c.body(null, 304, headers)
  return c.body(new Uint8Array(stored.bytes), 200, {
    ...headers,
    'content-type': 'application/octet-stream',
  })
}

async function link(c: Context<AppEnv, '/v1/link/:key'>, ports: AppPorts): Promise<Response> {
  // Hono answers HEAD from the handler of GET; a link cannot come of it.
  if (c.req.method !== 'GET') wrongMethod('GET')(c)
  const key = c.req.param('key')
  parseKey(key)
  if (c.req.header('upgrade')?.toLowerCase() !== 'websocket') {
    throw new Problem(426, {
      code: 'link/upgrade',
      message: 'Cannot open a link: found a plain request, expected a WebSocket',
      hint: 'This address is for agents; "sotto status" shows whether yours is linked.',
      headers: { upgrade: 'websocket', connection: 'Upgrade' },
    })
  }
  const offered = (c.req.header('sec-websocket-protocol') ?? '').split(',')
  if (!offered.some((protocol) => protocol.trim() === LINK_PROTOCOL)) {
    throw new Problem(400, {
      code: 'link/protocol',
      message: `Cannot open a link: expected the sub-protocol ${LINK_PROTOCOL}`,
      hint: 'Update the agent, or the relay, so that both speak one protocol.',
    })
  }
  if (ports.draining()) {
    throw new Problem(503, {
      code: 'relay/draining',
      message: 'Cannot open a link: the relay is going down',
      headers: { 'retry-after': '5' },
    })
  }
  const response = await ports.upgrade(c.req.raw, { key, address: c.get('address') })
  c.set('upgraded', true)
  return response
}

function indexFacts(ports: AppPorts, userAgent: string) {
  const { settings, abilities, version } = ports
  return {
    domain: settings.domain,
    secureDomain: settings.secureDomain,
    appsDomain: settings.appsDomain,
    fingerprint: fingerprint(ports.crypto, ports.identity.public),
    origin: relayOrigin(ports),
    install: installLines(ports, userAgent),
    version,
    passthrough: abilities.rawTcp,
    inspectable: abilities.inspectable,
  }
}

function base64(bytes: Uint8Array): string {
  let binary = ''
  for (const byte of bytes) binary += String.fromCharCode(byte)
  return btoa(binary)
}
