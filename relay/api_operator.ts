/** Routes of the API for whoever runs the relay: the kill switch, and certificates that are revoked. */
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
import { needAdmin } from './api_rights.ts'
import * as shapes from './api_shapes.ts'
import type { AppPorts } from './app.ts'
import { Problem } from './problem.ts'
import type { RevokedCertificates } from './revoked_certificates.ts'

export function blockRoutes(api: Api, ports: AppPorts): void {
  const { registry, log } = ports
  api.openapi(
    createRoute({
      method: 'get',
      path: '/blocks',
      tags: ['blocks'],
      operationId: 'listBlocks',
      summary: 'Names and scopes that are cut off',
      responses: { 200: jsonAnswer(shapes.pageOf(shapes.blockSchema)), ...PROBLEMS },
    }),
    (c) => {
      needAdmin(c.get('grant'))
      return c.json({ items: registry.blocks().map(shapes.showBlock) }, 200)
    },
  )
  api.openapi(
    createRoute({
      method: 'post',
      path: '/blocks',
      tags: ['blocks'],
      operationId: 'addBlock',
      summary: 'Cut a name or a scope off, visitors of now included',
      request: { body: jsonBody(shapes.newBlockSchema) },
      responses: { 201: jsonAnswer(shapes.blockSchema), ...PROBLEMS, ...BODY_PROBLEMS },
    }),
    async (c) => {
      needAdmin(c.get('grant'))
      const { reason, ...wanted } = c.req.valid('json')
      const target = oneTarget(wanted)
      await registry.block({ ...target, reason })
      log.warn('blocked', { ...target, reason })
      const added = registry.blocks().find((block) =>
        block.name === target.name && block.scope === target.scope
      )
      if (!added) throw missing('a block')
      return c.json(shapes.showBlock(added), 201)
    },
  )
  api.openapi(
    createRoute({
      method: 'delete',
      path: '/blocks',
      tags: ['blocks'],
      operationId: 'removeBlock',
      summary: 'Let a name or a scope in again',
      request: { query: shapes.blockQuerySchema },
      responses: { 204: NOTHING, ...PROBLEMS, ...MISSING },
    }),
    async (c) => {
      needAdmin(c.get('grant'))
      const target = oneTarget(c.req.valid('query'))
      if (!await registry.unblock(target)) throw missing('a block')
      log.warn('unblocked', target)
      return c.body(null, 204)
    },
  )
}

export function certificateRoutes(api: Api, { revoked, log }: AppPorts): void {
  api.openapi(
    createRoute({
      method: 'get',
      path: '/certificates',
      tags: ['certificates'],
      operationId: 'listRevokedCertificates',
      summary: 'Client certificates that are revoked',
      responses: { 200: jsonAnswer(shapes.pageOf(shapes.revokedSchema)), ...PROBLEMS },
    }),
    (c) => {
      needAdmin(c.get('grant'))
      return c.json({ items: (revoked?.all() ?? []).map(shapes.showRevoked) }, 200)
    },
  )
  api.openapi(
    createRoute({
      method: 'post',
      path: '/certificates',
      tags: ['certificates'],
      operationId: 'revokeCertificate',
      summary: 'Revoke a client certificate; links that it admitted end',
      request: { body: jsonBody(shapes.newRevokedSchema) },
      responses: {
        201: jsonAnswer(shapes.revokedSchema),
        ...PROBLEMS,
        ...BODY_PROBLEMS,
        ...CONFLICT,
      },
    }),
    async (c) => {
      needAdmin(c.get('grant'))
      const { serial, reason } = c.req.valid('json')
      const made = await needCertificates(revoked).revoke(serial, reason)
      log.warn('certificate revoked', { credential: made.serial, reason })
      return c.json(shapes.showRevoked(made), 201)
    },
  )
  api.openapi(
    createRoute({
      method: 'delete',
      path: '/certificates/{serial}',
      tags: ['certificates'],
      operationId: 'restoreCertificate',
      summary: 'Let a client certificate admit again',
      request: { params: shapes.serialParamSchema },
      responses: { 204: NOTHING, ...PROBLEMS, ...MISSING, ...CONFLICT },
    }),
    async (c) => {
      needAdmin(c.get('grant'))
      const { serial } = c.req.valid('param')
      if (!await needCertificates(revoked).restore(serial)) throw missing('a revoked certificate')
      log.warn('certificate restored', { credential: serial })
      return c.body(null, 204)
    },
  )
}

function needCertificates(revoked: RevokedCertificates | undefined): RevokedCertificates {
  if (revoked) return revoked
  throw new Problem(409, {
    code: 'api/certificates',
    message: 'Cannot revoke a certificate: this relay admits nobody by one',
  })
}

function oneTarget(target: {
  name?: string | undefined
  scope?: string | undefined
}): { name: string; scope?: never } | { scope: string; name?: never } {
  const { name, scope } = target
  if (name !== undefined && scope === undefined) return { name }
  if (scope !== undefined && name === undefined) return { scope }
  throw new Problem(400, {
    code: 'api/request',
    message: 'Cannot read the request: expected exactly one of "name" and "scope"',
  })
}
