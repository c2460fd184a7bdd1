/**
 * The relay on Cloudflare Workers, and on workerd alone: the HTTP app in front, Durable Objects behind
 * it. TLS is the platform's. `node compile/worker.mjs` builds and runs it here.
 */
import { createApp } from '../app.ts'
import { createLog } from '../log.ts'
import { Metrics } from '../metrics.ts'
import { mergePeers } from '../peers.ts'
import { problemOf } from '../problem.ts'
import { Quota } from '../quota.ts'
import type { Credentials } from '../credentials.ts'
import type { Registry } from '../registry.ts'
import { addressOf, endpointOf, readIdentity, VERSION, webClock } from './edge.ts'
import { HubObject, ORDER_HEADER } from './hub_object.ts'
import type { Order } from './hub_object.ts'
import { DirectoryObject } from './directory_object.ts'
import { edgeOf, fast, objects } from './objects.ts'
import type { WorkerEnv } from './objects.ts'
import { valueOf } from './outcome.ts'
import {
  remoteAgents,
  RemoteCredentials,
  RemoteGrants,
  remoteLogins,
  remotePeers,
  RemoteRegistry,
} from './remote.ts'

export { DirectoryObject, HubObject }

type App = ReturnType<typeof createApp>
interface Front {
  app: App
  registry: RemoteRegistry
  credentials: RemoteCredentials
  quota: Quota
}

const fronts = new WeakMap<WorkerEnv, Front>()

export default {
  async fetch(request: Request, env: WorkerEnv): Promise<Response> {
    const { app, registry, credentials, quota } = frontOf(env)
    const edge = edgeOf(env)
    const endpoint = endpointOf(request, edge)
    if (endpoint) {
      const address = addressOf(request, edge)
      if (!quota.take('visitors', { address }).ok) {
        return new Response('too many requests\n', { status: 429, headers: { 'retry-after': '1' } })
      }
      return await exchange(request, { env, name: endpoint.name, address })
    }
    const { pathname } = new URL(request.url)
    const hub = /^\/v1\/hubs\/([a-z2-7]{52})$/.exec(pathname)?.[1]
    if (hub !== undefined) return await report(request, { env, credentials, key: hub })
    if (pathname === '/api/v1/blocks' && request.headers.has('authorization')) {
      await registry.refreshBlocks()
    }
    return await app.fetch(request)
  },
}

function frontOf(env: WorkerEnv): Front {
  let front = fronts.get(env)
  if (!front) fronts.set(env, front = makeFront(env))
  return front
}

function makeFront(env: WorkerEnv): Front {
  const edge = edgeOf(env)
  const crypto = fast()
  const { settings, place } = edge
  const registry = new RemoteRegistry(env)
  const credentials = new RemoteCredentials(env)
  const quota = new Quota(webClock, { limits: settings.quotas })
  const app = createApp({
    clock: webClock,
    crypto,
    credentials: credentials as Pick<Credentials, keyof RemoteCredentials> as Credentials,
    registry: registry as Pick<Registry, keyof Registry & keyof RemoteRegistry> as Registry,
    quota,
    metrics: new Metrics({ clock: webClock, version: VERSION, runtime: 'worker' }),
    log: createLog({
      write: (line) => console.log(line),
      clock: webClock,
      level: settings.logLevel,
      json: true,
    }),
    store: {
      commit: ({ puts = [] }) => valueOf(objects(env).index().probe(puts[0]!.key, puts[0]!.value)),
    },
    identity: readIdentity(env['SOTTO_RELAY_IDENTITY'], { crypto, names: settings.names }),
    settings,
    version: VERSION,
    runtime: 'worker',
    paths: place.paths,
    abilities: {
      rawTcp: false,
      rawUdp: false,
      bulkLinks: false,
      inspectable: settings.inspectable,
    },
    publicPort: () => place.port,
    draining: () => false,
    agents: (scope) => remoteAgents(env, scope),
    peers: async (scope) => mergePeers(await remotePeers(env, scope)),
    grants: new RemoteGrants(env),
    logins: remoteLogins(env),
    upgrade: (request, { key, address }) =>
      objects(env).hub(key).fetch(ordered(request, { do: 'link', key, address })),
    remoteAddress: (request) => addressOf(request, edge),
  })
  return { app, registry, credentials, quota }
}

/** The same request with our own word on it, in the place of whatever was there. */
function ordered(request: Request, order: Order): Request {
  const headers = new Headers(request.headers)
  headers.set(ORDER_HEADER, JSON.stringify(order))
  return new Request(request, { headers })
}

/** Asks the star of an agent that serves the name; who that is, the object of the name knows. */
async function exchange(
  request: Request,
  { env, name, address }: { env: WorkerEnv; name: string; address: string },
): Promise<Response> {
  try {
    const { serving } = await valueOf(objects(env).name(name).state(name))
    const agents = [...new Set(serving.map(({ agent }) => agent))]
    // Any will do; one that is gone is told apart by the gateway of its own star.
    const key = agents[Math.floor(Math.random() * agents.length)] ?? NOBODY
    return await objects(env).hub(key).fetch(ordered(request, { do: 'exchange', key, address }))
  } catch (error) {
    const problem = problemOf(error)
    return Response.json({ error: problem.toJSON() }, { status: problem.status })
  }
}

/** The star of no agent: it answers for names that nobody serves. */
const NOBODY = 'nobody'

/** How often an agent's object woke, and what it carries; for the operator. */
async function report(
  request: Request,
  { env, credentials, key }: { env: WorkerEnv; credentials: RemoteCredentials; key: string },
): Promise<Response> {
  try {
    const secret = /^bearer +(\S+)$/i.exec(request.headers.get('authorization') ?? '')?.[1] ?? ''
    const { admin } = await credentials.verify(secret)
    if (!admin) return new Response(null, { status: 403 })
    return Response.json(await valueOf(objects(env).hub(key).report(key)))
  } catch (error) {
    const problem = problemOf(error)
    return Response.json({ error: problem.toJSON() }, { status: problem.status })
  }
}
