/**
 * The REST API under `/api/v1`: credentials, names, grants, blocks, live agents. Described by the same
 * schemas that check it, at `/api/v1/openapi.json`, and as a page at `/api/v1/docs`.
 *
 * Who may do what: the admin key everything; an API key what belongs to its scope, and new
 * credentials for it that are no wider than itself; a fleet token reads. What belongs to another
 * scope is not there: the answer is the same as for what does not exist.
 */
import { createRoute, OpenAPIHono } from '@hono/zod-openapi'
import type { z } from '@hono/zod-openapi'
import type { Context } from 'hono'
import {
  BODY_PROBLEMS,
  CONFLICT,
  jsonAnswer,
  jsonBody,
  MISSING,
  missing,
  NOTHING,
  PROBLEMS,
} from './api_answers.ts'
import type { Api } from './api_answers.ts'
import { blockRoutes, certificateRoutes } from './api_operator.ts'
import { grantRoutes, peerRoutes } from './api_peers.ts'
import { loginRoutes } from './device_api.ts'
import * as shapes from './api_shapes.ts'
import type { AppEnv, AppPorts } from './app.ts'
import { authenticate, relayAnswer } from './app.ts'
import { needNoToken, seenScope, sees, wantedCredential } from './api_rights.ts'
import type { CredentialKind, CredentialRecord } from './credentials.ts'
import { apiPage } from './pages/api.ts'
import { overQuota, Problem, wrongMethod } from './problem.ts'
import { scopeWho } from './quota.ts'

/** Rounds through the store for one page of credentials, when most are of the other kind. */
const ROUNDS_MAX = 8

export function createApi(ports: AppPorts): Api {
  const api: Api = new OpenAPIHono<AppEnv>({
    defaultHook: (result) => {
      if (!result.success) throw unreadable(result.error)
    },
  })
  api.openAPIRegistry.registerComponent('securitySchemes', 'bearer', {
    type: 'http',
    scheme: 'bearer',
    description: 'An API key (sk_…), a fleet token (ft_…) or the admin key (ak_…).',
  })
  const about = document(ports.version)
  const described = (): Described => api.getOpenAPI31Document(about) as Described
  api.get('/openapi.json', (c) => c.json(described()))
  api.get('/docs', (c) => c.html(apiPage(described())))
  for (const path of ['/openapi.json', '/docs']) api.all(path, wrongMethod('GET'))

  api.use(async (c, next) => {
    const grant = await authenticate(c, ports)
    const taken = ports.quota.take('requests', scopeWho(grant.scope))
    if (!taken.ok) {
      ports.metrics.refused.add({ reason: 'quota' })
      throw overQuota(taken)
    }
    c.set('grant', grant)
    if (c.req.method === 'POST') needJson(c)
    await next()
  })
  relayRoutes(api, ports)
  credentialRoutes(api, ports, 'key')
  credentialRoutes(api, ports, 'token')
  nameRoutes(api, ports)
  peerRoutes(api, ports)
  grantRoutes(api, ports)
  loginRoutes(api, ports)
  blockRoutes(api, ports)
  certificateRoutes(api, ports)
  refuseOtherMethods(api)
  return api
}

/** What the page needs of the document. */
export type Described = ReturnType<Api['getOpenAPI31Document']>

function document(version: string) {
  return {
    openapi: '3.1.0',
    info: {
      title: 'sotto relay',
      version,
      description: 'Credentials, names, blocks and live agents of one relay.',
      license: { name: 'MIT', identifier: 'MIT' },
    },
    servers: [{ url: '/api/v1' }],
    security: [{ bearer: [] }],
    tags: [
      { name: 'relay', description: 'This relay and who asks.' },
      { name: 'keys', description: 'API keys.' },
      { name: 'tokens', description: 'Fleet tokens.' },
      { name: 'names', description: 'Names that are reserved.' },
      { name: 'peers', description: 'Agents as other agents see them.' },
      { name: 'grants', description: 'Names that one scope shows to another.' },
      { name: 'logins', description: 'Machines that ask to be let in.' },
      { name: 'blocks', description: 'The kill switch.' },
      { name: 'certificates', description: 'Client certificates that are revoked.' },
    ],
  }
}

function relayRoutes(api: Api, ports: AppPorts): void {
  api.openapi(
    createRoute({
      method: 'get',
      path: '/relay',
      tags: ['relay'],
      operationId: 'getRelay',
      summary: 'What this relay is and can',
      responses: { 200: jsonAnswer(shapes.relaySchema), ...PROBLEMS },
    }),
    (c) => c.json(relayAnswer(ports), 200),
  )
  api.openapi(
    createRoute({
      method: 'get',
      path: '/grant',
      tags: ['relay'],
      operationId: 'getGrant',
      summary: 'What the credential of this request allows',
      responses: { 200: jsonAnswer(shapes.grantSchema), ...PROBLEMS },
    }),
    (c) => {
      const { kind, expiresAt, ...grant } = c.get('grant')
      return c.json({
        ...grant,
        // Certificates admit links alone, so none gets here.
        kind: kind as CredentialKind,
        ...(expiresAt === undefined ? {} : { expiresAt: new Date(expiresAt).toISOString() }),
      }, 200)
    },
  )
  api.openapi(
    createRoute({
      method: 'get',
      path: '/agents',
      tags: ['relay'],
      operationId: 'listAgents',
      summary: 'Agents that are linked now',
      request: { query: shapes.scopeQuerySchema },
      responses: { 200: jsonAnswer(shapes.pageOf(shapes.agentSchema)), ...PROBLEMS },
    }),
    async (c) => {
      const scope = seenScope(c.get('grant'), c.req.valid('query').scope)
      const items = await ports.agents(scope)
      return c.json({ items }, 200)
    },
  )
}

function credentialRoutes(api: Api, ports: AppPorts, kind: 'key' | 'token'): void {
  const { credentials, log } = ports
  const [tag, title, what] = kind === 'key'
    ? ['keys', 'Key', 'an API key'] as const
    : ['tokens', 'Token', 'a fleet token'] as const
  const kinds: readonly CredentialKind[] = kind === 'key' ? ['key', 'admin'] : ['token']
  api.openapi(
    createRoute({
      method: 'get',
      path: `/${tag}`,
      tags: [tag],
      operationId: `list${title}s`,
      summary: `Every ${what.replace(/^an? /, '')}, revoked and expired ones of late included`,
      request: { query: shapes.credentialQuerySchema },
      responses: { 200: jsonAnswer(shapes.pageOf(shapes.credentialSchema)), ...PROBLEMS },
    }),
    async (c) => {
      const { scope, after } = c.req.valid('query')
      const page = await listCredentials(ports, {
        kinds,
        scope: seenScope(c.get('grant'), scope),
        after,
      })
      return c.json(page, 200)
    },
  )
  api.openapi(
    createRoute({
      method: 'post',
      path: `/${tag}`,
      tags: [tag],
      operationId: `create${title}`,
      summary: `Make ${what}`,
      request: { body: jsonBody(kind === 'key' ? shapes.newKeySchema : shapes.newTokenSchema) },
      responses: { 201: jsonAnswer(shapes.madeSchema), ...PROBLEMS, ...BODY_PROBLEMS },
    }),
    async (c) => {
      const grant = c.get('grant')
      const wanted = wantedCredential(grant, kind, c.req.valid('json'))
      const { secret, record } = await credentials.create(wanted)
      log.info('credential made', { credential: record.id, kind: record.kind, scope: record.scope })
      return c.json({ secret, credential: shapes.showCredential(record) }, 201)
    },
  )
  revokeRoute(api, ports, { tag, title, what, kinds })
}

function revokeRoute(
  api: Api,
  ports: AppPorts,
  of: { tag: string; title: string; what: string; kinds: readonly CredentialKind[] },
): void {
  const { credentials, log } = ports
  const { tag, title, what, kinds } = of
  api.openapi(
    createRoute({
      method: 'delete',
      path: `/${tag}/{id}`,
      tags: [tag],
      operationId: `revoke${title}`,
      summary: `Revoke ${what}; links that it admitted end`,
      request: { params: shapes.idParamSchema },
      responses: { 204: NOTHING, ...PROBLEMS, ...MISSING, ...CONFLICT },
    }),
    async (c) => {
      const { id } = c.req.valid('param')
      const grant = c.get('grant')
      const record = await credentials.get(id)
      if (!record || !kinds.includes(record.kind) || !sees(grant, record.scope)) {
        throw missing(what)
      }
      needNoToken(grant)
      if (grant.admin && id === grant.id) {
        throw new Problem(409, {
          code: 'api/own-key',
          message: 'Cannot revoke the admin key that this request is made with',
          hint: 'Make another admin key and revoke this one with it.',
        })
      }
      await credentials.revoke(id)
      log.info('credential revoked', { credential: id, kind: record.kind, scope: record.scope })
      return c.body(null, 204)
    },
  )
}

function nameRoutes(api: Api, ports: AppPorts): void {
  const { registry, log } = ports
  api.openapi(
    createRoute({
      method: 'get',
      path: '/names',
      tags: ['names'],
      operationId: 'listNames',
      summary: 'Names that are reserved',
      request: { query: shapes.nameQuerySchema },
      responses: { 200: jsonAnswer(shapes.pageOf(shapes.ownedNameSchema)), ...PROBLEMS },
    }),
    async (c) => {
      const { scope, after } = c.req.valid('query')
      const records = await registry.list(seenScope(c.get('grant'), scope), {
        limit: shapes.PAGE_MAX + 1,
        ...(after === undefined ? {} : { after }),
      })
      const items = records.slice(0, shapes.PAGE_MAX).map(shapes.showName)
      const more = records.length > shapes.PAGE_MAX
      return c.json({ items, ...(more ? { next: items.at(-1)!.name } : {}) }, 200)
    },
  )
  api.openapi(
    createRoute({
      method: 'delete',
      path: '/names/{name}',
      tags: ['names'],
      operationId: 'releaseName',
      summary: 'Release a name that nobody serves now',
      request: { params: shapes.nameParamSchema },
      responses: { 204: NOTHING, ...PROBLEMS, ...MISSING, ...CONFLICT },
    }),
    async (c) => {
      const { name } = c.req.valid('param')
      const grant = c.get('grant')
      const scope = await registry.owner(name)
      if (scope === undefined || !sees(grant, scope)) throw missing('a name')
      needNoToken(grant)
      const agents = await ports.agents(scope)
      if (agents.some(({ endpoints }) => endpoints.includes(name))) {
        throw new Problem(409, {
          code: 'api/live',
          message: `Cannot release "${name}": found an agent that serves it now`,
          hint: 'Stop its tunnel first; an operator can also block the name.',
        })
      }
      if (!await registry.release(name, scope)) throw missing('a name')
      log.info('name released', { name, scope })
      return c.body(null, 204)
    },
  )
}

async function listCredentials(
  { credentials }: AppPorts,
  want: {
    kinds: readonly CredentialKind[]
    scope: string | undefined
    after: string | undefined
  },
) {
  const items: ReturnType<typeof shapes.showCredential>[] = []
  let after = want.after
  for (let round = 0; round < ROUNDS_MAX; round++) {
    const records: CredentialRecord[] = await credentials.list({
      limit: shapes.PAGE_MAX,
      ...(want.scope === undefined ? {} : { scope: want.scope }),
      ...(after === undefined ? {} : { after }),
    })
    for (const record of records) {
      after = record.id
      if (want.kinds.includes(record.kind)) items.push(shapes.showCredential(record))
      if (items.length === shapes.PAGE_MAX) return { items, next: after }
    }
    if (records.length < shapes.PAGE_MAX) return { items }
  }
  return { items, ...(after === undefined ? {} : { next: after }) }
}

function needJson(c: Context<AppEnv>): void {
  const type = (c.req.header('content-type') ?? '').split(';')[0]!.trim().toLowerCase()
  if (type === 'application/json') return
  throw new Problem(415, {
    code: 'api/content-type',
    message: 'Cannot read the request: expected a body of content-type application/json',
  })
}

/** The first few things that are wrong with a request, by where they are. */
function unreadable(error: z.core.$ZodError): Problem {
  const wrong = error.issues.slice(0, 5).map(({ path, message }) => {
    const where = path.map(String).join('.').slice(0, 80)
    return `${where === '' ? 'it' : `"${where}"`}: ${message.slice(0, 160)}`
  })
  return new Problem(400, {
    code: 'api/request',
    message: `Cannot read the request: ${wrong.join('; ')}`,
    hint: 'See /api/v1/docs for what is expected.',
  })
}

function refuseOtherMethods(api: Api): void {
  const methods = new Map<string, Set<string>>()
  for (const definition of api.openAPIRegistry.definitions) {
    if (definition.type !== 'route') continue
    const path = definition.route.path.replace(/\{(\w+)\}/g, ':$1')
    const known = methods.get(path) ?? new Set()
    methods.set(path, known.add(definition.route.method.toUpperCase()))
  }
  for (const [path, known] of methods) api.all(path, wrongMethod(...known))
}
