/** Routes of the API on who sees whom: agents of one's own scope and of others, and grants between them. */
import { createRoute } from '@hono/zod-openapi'
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
import { forbidden, needNoToken, seenScope } from './api_rights.ts'
import * as shapes from './api_shapes.ts'
import type { AppPorts } from './app.ts'
import type { Grant } from './credentials.ts'
import type { Shown } from './grants.ts'
import { peerPage } from './peers.ts'
import { Problem } from './problem.ts'

export function peerRoutes(api: Api, ports: AppPorts): void {
  api.openapi(
    createRoute({
      method: 'get',
      path: '/peers',
      tags: ['peers'],
      operationId: 'listPeers',
      summary: 'Agents that those of a scope may see; ask again with If-None-Match',
      request: { query: shapes.peerQuerySchema },
      responses: {
        200: jsonAnswer(shapes.pageOf(shapes.peerSchema)),
        304: { description: 'As it was.' },
        ...PROBLEMS,
      },
    }),
    async (c) => {
      const { scope, selector, after } = c.req.valid('query')
      const seen = ownScope(c.get('grant'), scope)
      const known = /^"([0-9a-f]{32})"$/.exec(c.req.header('if-none-match') ?? '')?.[1]
      const page = peerPage(ports.crypto, await ports.peers(seen), { selector, after, etag: known })
      c.header('etag', `"${page.etag}"`)
      c.header('cache-control', 'no-cache')
      if (page.unchanged) return c.body(null, 304)
      const { agents = [], next } = page
      return c.json({
        items: agents.map((agent) => ({ ...agent, labels: { ...agent.labels } })),
        ...(next === undefined ? {} : { next }),
      }, 200)
    },
  )
}

export function grantRoutes(api: Api, ports: AppPorts): void {
  const { grants, log } = ports
  api.openapi(
    createRoute({
      method: 'get',
      path: '/grants',
      tags: ['grants'],
      operationId: 'listGrants',
      summary: 'Names that scopes show to each other: those from the scope, and those to it',
      request: { query: shapes.scopeQuerySchema },
      responses: { 200: jsonAnswer(shapes.pageOf(shapes.shownSchema)), ...PROBLEMS },
    }),
    async (c) => {
      const scope = seenScope(c.get('grant'), c.req.valid('query').scope)
      return c.json({ items: (await grants.list(scope)).map(shapes.showShown) }, 200)
    },
  )
  api.openapi(
    createRoute({
      method: 'post',
      path: '/grants',
      tags: ['grants'],
      operationId: 'addGrant',
      summary: 'Show names to the agents of another scope',
      request: { body: jsonBody(shapes.newShownSchema) },
      responses: {
        201: jsonAnswer(shapes.shownSchema),
        ...PROBLEMS,
        ...CONFLICT,
        ...BODY_PROBLEMS,
      },
    }),
    async (c) => {
      const shown = wantedGrant(c.get('grant'), c.req.valid('json'))
      const record = await grants.add(shown)
      log.info('names granted', { ...shown })
      return c.json(shapes.showShown(record), 201)
    },
  )
  api.openapi(
    createRoute({
      method: 'delete',
      path: '/grants',
      tags: ['grants'],
      operationId: 'removeGrant',
      summary: 'Show them no more; streams that are open go on',
      request: { query: shapes.newShownSchema },
      responses: { 204: NOTHING, ...PROBLEMS, ...MISSING },
    }),
    async (c) => {
      const shown = wantedGrant(c.get('grant'), c.req.valid('query'))
      if (!await grants.remove(shown)) throw missing('a grant')
      log.info('names no longer granted', { ...shown })
      return c.body(null, 204)
    },
  )
}

/** Whose names: the key's own; the admin key says. A key of some names cannot show others. */
function wantedGrant(
  grant: Grant,
  { scope, to, names }: { scope?: string | undefined; to: string; names: string },
): Shown {
  needNoToken(grant)
  if (!grant.admin && grant.names) throw forbidden('a restricted key grants nothing')
  return { scope: ownScope(grant, scope), to, names }
}

function ownScope(grant: Grant, scope: string | undefined): string {
  const seen = seenScope(grant, scope)
  if (seen !== undefined) return seen
  throw new Problem(400, {
    code: 'api/scope',
    message: 'Cannot answer the request: found no scope, expected whose it is',
  })
}
