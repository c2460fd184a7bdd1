/** Routes of the API on logins that wait: who asks, letting in, turning away. By code alone: none is listed. */
import { createRoute } from '@hono/zod-openapi'
import type { Context } from 'hono'
import { BODY_PROBLEMS, jsonAnswer, jsonBody, MISSING, NOTHING, PROBLEMS } from './api_answers.ts'
import type { Api } from './api_answers.ts'
import { needNoToken } from './api_rights.ts'
import * as shapes from './api_shapes.ts'
import type { AppEnv, AppPorts } from './app.ts'
import { DeviceDesk } from './device_desk.ts'
import { approveLogin } from './device_routes.ts'

/** Who may do everything need not guess; any other key's tries are counted as those of the page. */
function counted(c: Context<AppEnv>): string | undefined {
  return c.get('grant').admin ? undefined : c.get('address')
}

export function loginRoutes(api: Api, ports: AppPorts): void {
  const desk = new DeviceDesk(ports)
  api.openapi(
    createRoute({
      method: 'post',
      path: '/logins/look',
      tags: ['logins'],
      operationId: 'lookAtLogin',
      summary: 'Who asks to be let in by this code',
      request: { body: jsonBody(shapes.loginCodeSchema) },
      responses: { 200: jsonAnswer(shapes.loginSchema), ...PROBLEMS, ...BODY_PROBLEMS, ...MISSING },
    }),
    async (c) => {
      needNoToken(c.get('grant'))
      return c.json(shapes.showLogin(await desk.look(c.req.valid('json').code, counted(c))), 200)
    },
  )
  api.openapi(
    createRoute({
      method: 'post',
      path: '/logins/approve',
      tags: ['logins'],
      operationId: 'approveLogin',
      summary: 'Let who asks in, with an API key that is made when it fetches it',
      request: { body: jsonBody(shapes.approvalSchema) },
      responses: {
        200: jsonAnswer(shapes.approvedSchema),
        ...PROBLEMS,
        ...BODY_PROBLEMS,
        ...MISSING,
      },
    }),
    async (c) => {
      const grant = c.get('grant')
      needNoToken(grant)
      const { code, scope, names, expiresAt } = c.req.valid('json')
      const asking = await desk.look(code, counted(c))
      const done = await approveLogin(ports, desk, {
        code,
        grant,
        asking,
        ...(scope === undefined ? {} : { scope }),
        ...(names === undefined ? {} : { names }),
        ...(expiresAt === undefined ? {} : { expiresAt }),
      })
      return c.json({ ...shapes.showLogin(asking), scope: done.scope }, 200)
    },
  )
  api.openapi(
    createRoute({
      method: 'post',
      path: '/logins/deny',
      tags: ['logins'],
      operationId: 'denyLogin',
      summary: 'Turn who asks away',
      request: { body: jsonBody(shapes.loginCodeSchema) },
      responses: { 204: NOTHING, ...PROBLEMS, ...BODY_PROBLEMS, ...MISSING },
    }),
    async (c) => {
      needNoToken(c.get('grant'))
      await desk.deny(c.req.valid('json').code, counted(c))
      return c.body(null, 204)
    },
  )
}
