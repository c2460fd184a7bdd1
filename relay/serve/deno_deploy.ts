/**
 * The relay on `Deno.serve`, for Deno Deploy and other hosts that let in HTTP and nothing else: one
 * process, Deno KV as its store, no raw TCP, so no verified endpoints for plain browsers. One
 * instance: two of them cannot reach each other. Settings: relay/serve/edge.ts; without an identity
 * among them the first start makes one and keeps it in the store.
 *
 *   deno run -A --unstable-kv relay/serve/deno_deploy.ts
 */
import * as nodeCrypto from 'node:crypto'
import { hex } from '../../core/bytes.ts'
import { fastCrypto } from '../../core/crypto.ts'
import type { Crypto } from '../../core/crypto.ts'
import { fingerprint, formatKey } from '../../core/key.ts'
import { createApp, LINK_PROTOCOL } from '../app.ts'
import { pickBackend } from '../backends.ts'
import { Credentials } from '../credentials.ts'
import type { Grant } from '../credentials.ts'
import { Logins } from '../device.ts'
import { Gateway } from '../gateway.ts'
import { createLog } from '../log.ts'
import { Metrics } from '../metrics.ts'
import { Quota } from '../quota.ts'
import { Registry } from '../registry.ts'
import { Relay } from '../relay.ts'
import { kvStore } from '../store/kv.ts'
import type { KvPort } from '../store/kv.ts'
import { commitWhen } from '../store/retry.ts'
import type { Store } from '../store/store.ts'
import {
  ADMIN_GRANT,
  EDGE_WINDOW_BYTES_MAX,
  endpointOf,
  readEdge,
  readIdentity,
  VERSION,
  webClock,
} from './edge.ts'
import type { Edge } from './edge.ts'
import { serveFetch } from './fetch_gateway.ts'
import { WebSocketLink } from './web_socket.ts'

const IDENTITY_KEY = 'relay/identity'
/** The runtime pings a link that says nothing for so long, and closes one that does not answer. */
const IDLE_SECONDS = 30

/** The members of Deno that are used. */
declare const Deno: {
  version: { deno: string }
  env: { toObject(): Record<string, string> }
  exit(code: number): never
  addSignalListener(signal: 'SIGINT' | 'SIGTERM', run: () => void): void
  openKv(path?: string): Promise<unknown>
  upgradeWebSocket(
    request: Request,
    options: { protocol?: string; idleTimeout: number },
  ): { socket: DenoSocket; response: Response }
  serve(
    options: { hostname: string; port: number; onListen(at: { port: number }): void },
    handle: (
      request: Request,
      info: { remoteAddr: { hostname: string; port: number } },
    ) => Response | Promise<Response>,
  ): { shutdown(): Promise<void> }
}

/** Without the overloads of `send`, which each runtime's types write differently. */
type DenoSocket = Omit<WebSocket, 'send'> & { send(message: Uint8Array): void }

/** The operator's own key is a secret of the platform; all others are in the store. */
class EdgeCredentials extends Credentials {
  readonly #edge: Edge

  constructor(ports: ConstructorParameters<typeof Credentials>[0], edge: Edge) {
    super(ports)
    this.#edge = edge
  }

  override async verify(secret: string): Promise<Grant> {
    return this.#edge.isAdmin(secret) ? ADMIN_GRANT : await super.verify(secret)
  }
}

async function main(): Promise<void> {
  const variables = Deno.env.toObject()
  const crypto = fastCrypto(nodeCrypto)
  const edge = readEdge(variables, crypto)
  const { settings } = edge
  const kv = await Deno.openKv(settings.dataDirectory || undefined)
  const store = kvStore(kv as KvPort)
  const seed = variables['SOTTO_RELAY_IDENTITY'] ?? await keptSeed(store, crypto)
  const identity = readIdentity(seed, { crypto, names: settings.names })
  const quota = new Quota(webClock, { limits: settings.quotas })
  const credentials = new EdgeCredentials({ store, crypto, clock: webClock }, edge)
  const registry = await Registry.open({
    store,
    crypto,
    clock: webClock,
    namesMax: (scope) => quota.limit('names', { scope }),
  })
  const admin = variables['SOTTO_RELAY_ADMIN_HASH'] ? undefined : await credentials.ensureAdmin()
  const ports = {
    clock: webClock,
    crypto,
    identity,
    credentials,
    registry,
    quota,
    metrics: new Metrics({
      clock: webClock,
      version: VERSION,
      runtime: `deno ${Deno.version.deno}`,
    }),
    log: createLog({
      write: (line) => console.error(line),
      clock: webClock,
      level: settings.logLevel,
      json: settings.logFormat === 'json',
    }),
    settings,
    version: VERSION,
    publicPort: () => edge.place.port,
  }
  const relay = new Relay({
    ...ports,
    web: edge.place,
    windowBytesMax: EDGE_WINDOW_BYTES_MAX,
    watchesSilence: false,
  })
  const handle = handler(relay, { edge, ports: { ...ports, store } })
  const server = Deno.serve({
    hostname: settings.host,
    port: settings.port,
    onListen: ({ port }) => {
      if (edge.place.port === 0) edge.place.port = port
      const line = {
        event: 'listening',
        port,
        domain: settings.domain,
        key: formatKey(identity.public),
        fingerprint: fingerprint(crypto, identity.public),
        ...(admin ? { adminKey: admin.secret } : {}),
      }
      console.log(JSON.stringify(line))
    },
  }, handle)
  const stop = (): void => {
    // The platform gives 5 s; agents come back by themselves.
    relay.close().then(() => server.shutdown()).finally(() => Deno.exit(0))
    setTimeout(() => Deno.exit(0), 1000)
  }
  for (const signal of ['SIGINT', 'SIGTERM'] as const) Deno.addSignalListener(signal, stop)
}

type Ports = Omit<
  Parameters<typeof createApp>[0],
  | 'runtime'
  | 'abilities'
  | 'draining'
  | 'agents'
  | 'peers'
  | 'grants'
  | 'logins'
  | 'upgrade'
  | 'remoteAddress'
>

function handler(
  relay: Relay,
  { edge, ports }: { edge: Edge; ports: Ports & { store: Store } },
): Parameters<typeof Deno.serve>[1] {
  const from = new WeakMap<Request, string>()
  const app = createApp({
    ...ports,
    runtime: 'deno',
    paths: edge.place.paths,
    abilities: {
      rawTcp: false,
      rawUdp: false,
      bulkLinks: false,
      inspectable: edge.settings.inspectable,
    },
    draining: () => relay.draining,
    agents: (scope) => relay.agents(scope),
    peers: (scope) => relay.peers(scope),
    grants: ports.registry.grants,
    logins: new Logins({ store: ports.store, clock: webClock }),
    remoteAddress: (request) => from.get(request) ?? '',
    upgrade(request, link) {
      const { socket, response } = Deno.upgradeWebSocket(request, {
        protocol: LINK_PROTOCOL,
        idleTimeout: IDLE_SECONDS,
      })
      attach(relay, socket, link)
      return response
    },
  })
  const { registry, quota } = ports
  const gateway = new Gateway({
    clock: webClock,
    domain: edge.settings.appsDomain,
    paths: edge.place.paths,
    pick: (name, { address, attempt }) => {
      const scope = relay.endpoints.get(name)?.scope
      const blocked = scope !== undefined && registry.isBlocked(name, scope) !== undefined
      return pickBackend(relay.endpoints, name, { attempt, blocked, quota, address })
    },
  })
  registry.onBlocked(({ name, scope }) => {
    gateway.cut((exchange) =>
      exchange.name === name || relay.endpoints.get(exchange.name)?.scope === scope
    )
  })
  return (request, { remoteAddr }) => {
    const address = edge.addressHeader === ''
      ? remoteAddr.hostname
      : (request.headers.get(edge.addressHeader) ?? '').slice(0, 64)
    if (endpointOf(request, edge)) {
      const visitor = { address, port: remoteAddr.port }
      return serveFetch(gateway, request, visitor)
    }
    from.set(request, address)
    return app.fetch(request)
  }
}

/** The link begins when the runtime has answered the upgrade. */
function attach(relay: Relay, socket: DenoSocket, link: { key: string; address: string }): void {
  socket.binaryType = 'arraybuffer'
  const port = new WebSocketLink(socket, webClock)
  socket.addEventListener('open', () => relay.attach(port, link))
  socket.addEventListener('message', ({ data }) => port.receive(data))
  socket.addEventListener('close', ({ code = 1006, reason = '' }) => port.closed(code, reason))
  socket.addEventListener('error', () => port.closed(1006, 'lost'))
}

/** The relay's seed in hex: made once, by whoever is first. */
async function keptSeed(store: Store, crypto: Crypto): Promise<string> {
  return await commitWhen(store, async () => {
    const kept = await store.get(IDENTITY_KEY)
    if (kept) return { result: String(kept.value) }
    const value = hex(crypto.randomBytes(32))
    return {
      commit: {
        checks: [{ key: IDENTITY_KEY, version: 0 }],
        puts: [{ key: IDENTITY_KEY, value }],
      },
      result: value,
    }
  })
}

await main()
