/**
 * The relay's HTTP app over real credentials, registry and quotas on the store in memory, with time
 * that stands still. The visitor's address comes by a header that only the test's port reads.
 */
import { ManualClock } from '../../core/clock.ts'
import { generateIdentity } from '../../core/key.ts'
import type { Identity } from '../../core/key.ts'
import { createApp } from '../../relay/app.ts'
import type { AppPorts } from '../../relay/app.ts'
import { Credentials } from '../../relay/credentials.ts'
import { Logins } from '../../relay/device.ts'
import { createLog } from '../../relay/log.ts'
import { Metrics } from '../../relay/metrics.ts'
import { mergePeers } from '../../relay/peers.ts'
import type { Peer } from '../../relay/peers.ts'
import { Quota } from '../../relay/quota.ts'
import { Registry } from '../../relay/registry.ts'
import type { AgentInfo } from '../../relay/relay.ts'
import { RevokedCertificates } from '../../relay/revoked_certificates.ts'
import { readSettings } from '../../relay/settings.ts'
import { memoryStore } from '../../relay/store/memory.ts'
import type { Store } from '../../relay/store/store.ts'
import { fast } from './crypto.ts'

export const ADDRESS_HEADER = 'x-test-address'
export const HOST = 'https://relay.example.com'

export interface TestRelay {
  clock: ManualClock
  store: Store
  ports: AppPorts
  identity: Identity
  /** Lines of the log, and what was handed to `upgrade`. */
  lines: string[]
  upgrades: { request: Request; key: string; address: string }[]
  agents: AgentInfo[]
  peers: Peer[]
  state: { draining: boolean }
  request(
    path: string,
    options?: RequestInit & { from?: string; key?: string; json?: unknown },
  ): Promise<Response>
  /** A new credential's secret and id. */
  key(
    scope: string,
    options?: Partial<Parameters<Credentials['create']>[0]>,
  ): Promise<{ secret: string; id: string }>
}

export async function testRelay(
  options: {
    flags?: Record<string, unknown>
    limits?: Record<string, number>
    store?: Store
    upgraded?: Response
    ports?: Partial<AppPorts>
  } = {},
): Promise<TestRelay> {
  const clock = new ManualClock()
  const store = options.store ?? memoryStore()
  const identity = generateIdentity(fast)
  const lines: string[] = []
  const upgrades: TestRelay['upgrades'] = []
  const agents: AgentInfo[] = []
  const peers: Peer[] = []
  const state = { draining: false }
  const settings = readSettings({ flags: { domain: 'relay.example.com', ...options.flags } })
  const credentials = new Credentials({ store, crypto: fast, clock })
  const registry = await Registry.open({ store, crypto: fast, clock })
  const ports: AppPorts = {
    clock,
    crypto: fast,
    credentials,
    registry,
    revoked: await RevokedCertificates.open(store, clock),
    quota: new Quota(clock, { limits: options.limits ?? {} }),
    metrics: new Metrics({ clock, version: '0.1.0', runtime: 'bun' }),
    log: createLog({ write: (line) => void lines.push(line), clock, level: 'debug', json: true }),
    store,
    identity,
    logins: new Logins({ store, clock }),
    settings,
    version: '0.1.0',
    runtime: 'bun',
    abilities: { rawTcp: true, rawUdp: true, bulkLinks: true, inspectable: true },
    publicPort: () => settings.publicPort,
    draining: () => state.draining,
    agents: (scope) => agents.filter((agent) => scope === undefined || agent.scope === scope),
    peers: async (scope) => mergePeers(peers.filter((peer) => peer.scope === scope)),
    grants: registry.grants,
    upgrade(request, { key, address }) {
      upgrades.push({ request, key, address })
      return options.upgraded ?? new Response('upgraded')
    },
    remoteAddress: (request) => request.headers.get(ADDRESS_HEADER) ?? '198.51.100.7',
    ...options.ports,
  }
  const app = createApp(ports)
  return {
    clock,
    store,
    ports,
    identity,
    lines,
    upgrades,
    agents,
    peers,
    state,
    async request(path, { from, key, json, headers, ...init } = {}) {
      const all = new Headers(headers)
      if (from !== undefined) all.set(ADDRESS_HEADER, from)
      if (key !== undefined) all.set('authorization', `Bearer ${key}`)
      if (json !== undefined) all.set('content-type', 'application/json')
      return await app.request(path.startsWith('/') ? HOST + path : path, {
        ...init,
        headers: all,
        ...(json === undefined ? {} : { body: JSON.stringify(json) }),
      })
    },
    async key(scope, more = {}) {
      return await credentials.create({ kind: 'key', scope, ...more })
    },
  }
}

/** The code of an error answer, which must have exactly the shape that every error has. */
export async function problemCode(response: Response): Promise<string> {
  const body = await response.json() as { error: Record<string, unknown> }
  const { code, message, hint, ...rest } = body.error
  if (Object.keys(body).length !== 1 || Object.keys(rest).length !== 0) {
    throw new Error(`odd error: ${JSON.stringify(body)}`)
  }
  if (typeof code !== 'string' || !/^[a-z-]+\/[a-z-]+$/.test(code)) throw new Error(`code ${code}`)
  if (typeof message !== 'string' || message.length < 10) throw new Error(`message ${message}`)
  if (hint !== undefined && typeof hint !== 'string') throw new Error(`hint ${hint}`)
  return code
}
